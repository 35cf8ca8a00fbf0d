"""Send readings so that nothing is lost on the way in: level, spool, and what failed.

standpipe up --fsync always       # in another terminal, or set STANDPIPE_URL to your server
python examples/durable.py
"""

import asyncio
import os
from pathlib import Path

from standpipe import Event, Producer, StandpipeError, Stream
from standpipe.errors import ConfigError, SpooledError, UnknownOutcomeError

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")
SPOOL = Path("pump_stream.spool")
"""On a local disk, and of this producer alone."""


def keep(events: list[Event], error: StandpipeError) -> None:
    """What the producer gives up on ends here, event by event."""
    for event in events:
        print("not acknowledged:", event, "because:", error)


async def level_of(stream: Stream) -> str:
    """The highest level that this server gives; starting says so if it does not."""
    try:
        async with Producer(stream, acknowledge="fsync"):
            return "fsync"
    except ConfigError as error:
        print(f"{error}\n  {error.hint}")
        return "memory"


async def main() -> None:
    async with Stream("pump_stream", URL) as stream:
        level = await level_of(stream)
        async with Producer(stream, acknowledge=level, spool=SPOOL, on_failed=keep) as producer:
            receipt = await producer.send(Event.now("pump-7", flow_m3s=0.42, pressure_bar=5.1))
            try:
                print(f"acknowledged at the level {level} as", await receipt)
            except SpooledError as error:
                print("on local disk, and sent from there:", error)
            except UnknownOutcomeError as error:
                print("it may be there or not:", error)
            print(producer.stats)


asyncio.run(main())
