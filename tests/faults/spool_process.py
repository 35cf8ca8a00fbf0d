"""Producer processes with a spool, for tests that kill them.

Run as ``python -m tests.faults.spool_process``. For each line of JSON on standard input it forks a
process that sends numbered events until it is killed (importing once, so that a fork is cheap),
says ``pid <pid>``, and when that process has ended ``ended``.

The process notes in its log, each with one write: ``t <first> <count>`` before it sends events,
``a <first> <count>`` when they are acknowledged, ``s <first> <count>`` when they are spooled, and
``d`` when something was drained.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from standpipe import Producer, Stream
from standpipe.errors import SpooledError
from standpipe.producer.block import Receipts
from standpipe.spool import Spool
from standpipe.wire import Link, Server
from tests.faults.nursery import kill_at, serve
from tests.faults.spooling import RUN, runs_of_events

KEYS = 5


async def produce(url: str, spool: str, log: int, first: int, codec: str) -> None:
    stream = Stream("power", Server(url, reply_ms_max=300), shards=3, codec=codec)
    async with Producer(stream, spool=spool, deadline_ms=40, block_events_max=2 * RUN) as producer:

        async def note(number: int, receipts: Receipts) -> None:
            try:
                await receipts
                outcome = "a"
            except SpooledError:
                outcome = "s"
            os.write(log, f"{outcome} {number} {RUN}\n".encode())

        drained = 0
        waiting: set[asyncio.Task[None]] = set()
        while True:
            os.write(log, f"t {first} {RUN}\n".encode())
            receipts = await producer.send_many(runs_of_events(RUN, keys=KEYS, first=first))
            noting = asyncio.create_task(note(first, receipts))
            waiting.add(noting)
            noting.add_done_callback(waiting.discard)
            first += RUN
            await asyncio.wait({noting}, timeout=0.002)
            if producer.stats.drained > drained:
                drained = producer.stats.drained
                os.write(log, b"d\n")


OWNERS = {"append": Spool, "remove": Spool, "exchange": Link}


def start(given: dict[str, Any]) -> None:
    if point := given.pop("point"):
        name, when, number = point
        kill_at(OWNERS[name], name, when, number)
    log = os.open(given.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(produce(log=log, **given))


if __name__ == "__main__":
    logging.disable()
    serve(start)
