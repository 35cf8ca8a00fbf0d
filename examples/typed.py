"""Handlers that take readings of their own type: validated, and with names that an editor knows.

standpipe up                # in another terminal, or set STANDPIPE_URL to your server
python examples/typed.py
"""

import asyncio
import os
from typing import Annotated

from msgspec import Meta, Struct

from standpipe import DeadLetters, Event, Producer, Stream, Worker

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")


class Reading(Struct):
    """What every inverter sends. A dataclass or a TypedDict would do as well."""

    key: str  # The event's key, and its time if there were a field of that name.
    volts: Annotated[float, Meta(ge=0, le=1000)]
    amps: float | None = None  # May be missing.


async def main() -> None:
    async with Stream("inverter_stream", URL) as stream:
        async with Producer(stream) as producer:
            await producer.send_many(
                [
                    Event.now("inverter-1", volts=230.5, amps=1.2),
                    Event.now("inverter-2", volts="high"),
                    Event.now("inverter-3", volts=231),
                ]
            )

        worker = Worker(stream, group="power_group")
        watts: dict[str, float] = {}

        @worker.each
        async def add(reading: Reading) -> None:
            watts[reading.key] = reading.volts * (reading.amps or 0.0)
            if len(watts) == 2:
                worker.stop()

        await worker.run()
        for key, power in sorted(watts.items()):
            print(f"{key}: {power:.1f} W")

        # What is not of the type was not handed to the handler: it is a dead letter, with the path.
        async for letter in DeadLetters(stream).find():
            assert letter.event is not None
            print(f"{letter.event.key}: {letter.reason}")


asyncio.run(main())
