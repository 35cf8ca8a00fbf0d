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
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from standpipe import Producer, Stream
from standpipe.errors import SpooledError
from standpipe.producer.block import Receipts
from standpipe.spool import Spool
from standpipe.wire import Link, Server
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


def kill_at(owner: type, name: str, when: str, number: int) -> None:
    """End this process, as SIGKILL does, before or after one of the calls of a method."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def before() -> bool:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        return calls == number

    def call(*args: Any, **options: Any) -> Any:
        is_last = before()
        result = original(*args, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    async def call_async(*args: Any, **options: Any) -> Any:
        is_last = before()
        result = await original(*args, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call_async if asyncio.iscoroutinefunction(original) else call)


OWNERS = {"append": Spool, "remove": Spool, "exchange": Link}


def main() -> None:
    logging.disable()
    for line in sys.stdin:
        given = json.loads(line)
        child = os.fork()
        if child == 0:
            if point := given.pop("point"):
                name, when, number = point
                kill_at(OWNERS[name], name, when, number)
            log = os.open(given.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            asyncio.run(produce(log=log, **given))
            os._exit(0)
        print("pid", child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
