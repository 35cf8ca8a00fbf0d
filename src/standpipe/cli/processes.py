"""The worker processes of ``standpipe work --processes N``: started, watched, replaced, drained."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import Final

from standpipe.cli.running import WRONG_USAGE, on_stop_signals
from standpipe.errors import StandpipeError
from standpipe.policy import backoff_ms

log: Final = logging.getLogger("standpipe.work")


async def on_stdin_closed(stop: Callable[[], None]) -> None:
    """The parent holds the other end: that it is closed means the parent is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def watch() -> None:
        await reader.read()
        stop()

    _watches.add(watching := asyncio.create_task(watch()))
    watching.add_done_callback(_watches.discard)


_watches: set[asyncio.Task[None]] = set()


async def run_processes(processes: int) -> None:
    """Keep so many processes of this same command alive until asked to stop."""
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    given = sys.argv[1:]
    # The last one wins, so the child's own count goes to the end.
    line = [sys.executable, "-m", "standpipe", *given, "--processes", "1", "--until-stdin-closes"]
    results = await asyncio.gather(*[_keep_process(line, stopped) for _ in range(processes)])
    failed = [code for code in results if code]
    if failed:
        raise StandpipeError(
            f"{len(failed)} of {processes} worker processes failed",
            hint="Their own messages stand above.",
        )


async def _keep_process(line: list[str], stopped: asyncio.Event) -> int:
    attempt = 0
    while True:
        child = await asyncio.create_subprocess_exec(*line, stdin=asyncio.subprocess.PIPE)
        ending = asyncio.create_task(child.wait())
        asked = asyncio.create_task(stopped.wait())
        await asyncio.wait([ending, asked], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            child.terminate()
            code = await ending
            # One that was only just starting has no handler for the signal yet, and no event.
            return 0 if code == -signal.SIGTERM else code
        asked.cancel()
        if child.returncode in (0, WRONG_USAGE):
            return child.returncode or 0
        attempt += 1
        wait_ms = backoff_ms(attempt, ms_min=200)
        log.error("a worker ended with %s; starting another in %d ms", child.returncode, wait_ms)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await stopped.wait()
            return 0
        except TimeoutError:
            continue
