"""A worker process for tests of what workers say of themselves; it says it every 0.5 s.

Run as ``python -m tests.faults.reporting_process URL STREAM HANDLER [OPTION=NUMBER…]``. Handlers:

* ``quick``: does nothing.
* ``compute``: computes for 5 ms of its thread's time; ``compute_async`` in the event loop.
* ``wait``: awaits for 300 ms.
* ``block``: sleeps for 300 ms in the event loop.
* ``fail``: raises.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from standpipe import Event, Stream, Worker
from standpipe.worker import presence

REPORT_MS = 500
REPORT_TTL_MS = 2_000


def quick(event: Event) -> None:
    pass


def compute(event: Event) -> None:
    ends = time.thread_time() + 0.005
    while time.thread_time() < ends:
        pass


async def compute_async(event: Event) -> None:
    compute(event)


async def wait(event: Event) -> None:
    await asyncio.sleep(0.3)


async def block(event: Event) -> None:
    time.sleep(0.3)  # noqa: ASYNC251  that is what it is for


def fail(event: Event) -> None:
    raise ValueError("this meter is always wrong")


HANDLERS: dict[str, Callable[[Event], Any]] = {
    each.__name__: each for each in (quick, compute, compute_async, wait, block, fail)
}


async def work(url: str, name: str, handler: str, *options: str) -> None:
    presence.REPORT_MS, presence.REPORT_TTL_MS = REPORT_MS, REPORT_TTL_MS  # type: ignore[misc]
    pairs = [option.partition("=")[::2] for option in options]
    given: dict[str, Any] = {key: int(value) for key, value in pairs}
    async with Stream(name, url) as stream:
        worker = Worker(stream, "g", **given)
        worker.each(HANDLERS[handler])
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
