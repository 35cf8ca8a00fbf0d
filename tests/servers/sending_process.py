"""A process that sends and keeps a ledger until it is killed, for tests.

Run as ``python -m tests.servers.sending_process URL STREAM LOG``.
"""

from __future__ import annotations

import asyncio
import sys

from standpipe import Producer, Stream
from standpipe.testing import Ledger, send_and_record


async def send(url: str, name: str, log: str) -> None:
    ledger = Ledger(log)
    async with Stream(name, url) as stream, Producer(stream, buffer_events_max=2_000) as producer:
        await send_and_record(producer, ledger, ledger.events(10_000_000, keys=7), together=100)


if __name__ == "__main__":
    asyncio.run(send(*sys.argv[1:]))
