"""Whether a producer keeps its promises: send numbered events, keep a ledger, compare the stream.

standpipe up                          # in another terminal, or set STANDPIPE_URL to your server
python examples/ledger.py             # a producer that is sound
python examples/ledger.py broken      # one that rounds, drops and retries blindly

Both may be run again: the log goes on with the stream, which then holds the events of all runs.
"""

import asyncio
import os
import sys

from standpipe import Event, Producer, Stream
from standpipe.testing import Ledger, check, send_and_record

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")


async def main(*, broken: bool) -> None:
    name = "broken_stream" if broken else "sound_stream"
    async with Stream(name, URL, shards=4) as stream, Producer(stream) as producer:
        with Ledger(f"{name}.log") as ledger:
            events = ledger.events(10_000, keys=100)
            if broken:
                await send_badly(producer, ledger, list(events))
            else:
                await send_and_record(producer, ledger, events)
        report = await check(stream, f"{name}.log")
        print(report)
        sys.exit(0 if report.is_sound else 1)


async def send_badly(producer: Producer, ledger: Ledger, events: list[Event]) -> None:
    """Acknowledges all, though it rounds the first, drops one, and sends the last two twice."""
    first = events[0]
    rounded = Event(first.key, first.time, {**first.fields, "value": round(first.fields["value"])})
    with ledger.sending(events):
        await (await producer.send_many([rounded, *events[1:5_000], *events[5_001:]]))
        await (await producer.send_many(events[-2:]))


asyncio.run(main(broken="broken" in sys.argv[1:]))
