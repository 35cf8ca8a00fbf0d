"""The worker processes of ``standpipe work --processes N``: started, watched, replaced, drained."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from standpipe.cli.running import WRONG_USAGE, on_stop_signals
from standpipe.errors import ConfigError, StandpipeError
from standpipe.limits import (
    PROCESSES_MAX,
    RESTART_MS_MAX,
    RESTART_MS_MIN,
    RESTARTS_WINDOW_MS,
    WRONG_USAGE_MS_MAX,
)
from standpipe.policy import backoff_ms
from standpipe.worker.processors import allowed_processors

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


def process_count(given: str) -> int:
    """How many worker processes ``--processes`` asks for: a number, or ``auto``.

    ``auto`` is one for each processor that this process may use, by its affinity and by the quota
    of its control group (what a container is given): beyond that they would only take turns.

    Raises:
        ConfigError: it is neither.
    """
    if given.strip().lower() == "auto":
        return min(allowed_processors(), PROCESSES_MAX)
    if not given.strip().isdecimal() or not 1 <= int(given) <= PROCESSES_MAX:
        raise ConfigError(
            f"--processes is {given!r}", hint=f"Give a number from 1 to {PROCESSES_MAX}, or auto."
        )
    return int(given)


async def run_processes(processes: int) -> int:
    """Keep so many processes of this same command alive until asked to stop.

    Returns:
        How often one was started again.

    Raises:
        StandpipeError: some ended because the command is wrong, or failed while stopping.
    """
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    given = sys.argv[1:]
    # The last one wins, so the child's own count goes to the end.
    line = [sys.executable, "-m", "standpipe", *given, "--processes", "1", "--until-stdin-closes"]
    kept = [_Process(f"{n} of {processes}", line, stopped) for n in range(1, processes + 1)]
    codes = await asyncio.gather(*[process.keep() for process in kept])
    failed = [code for code in codes if code]
    if failed:
        raise StandpipeError(
            f"{len(failed)} of {processes} worker processes failed",
            hint="Their own messages stand above.",
        )
    return sum(process.restarts for process in kept)


class _Process:
    """One of the worker processes, which is started again however it ends unasked."""

    def __init__(self, name: str, line: list[str], stopped: asyncio.Event) -> None:
        self.restarts = 0
        self._name = name
        self._line = line
        self._stopped = stopped

    async def keep(self) -> int:
        """Keep it alive until asked to stop; returns its last exit code."""
        attempt = 0
        while True:
            began = time.monotonic()
            child = await asyncio.create_subprocess_exec(*self._line, stdin=asyncio.subprocess.PIPE)
            if await self._ends_first(child):
                code = await child.wait()
            else:
                child.terminate()
                code = await child.wait()
                # One that was only just starting has no handler for the signal yet, and no event.
                return 0 if code == -signal.SIGTERM else code
            lived_ms = (time.monotonic() - began) * 1000
            if code == WRONG_USAGE and not self.restarts and lived_ms < WRONG_USAGE_MS_MAX:
                return code  # It would end so again and again; its message says why.
            attempt = 1 if lived_ms > RESTARTS_WINDOW_MS else attempt + 1
            self.restarts += 1
            wait_ms = backoff_ms(attempt, ms_min=RESTART_MS_MIN, ms_max=RESTART_MS_MAX)
            log.error(
                "worker process %s (%d) ended with %d, which nobody asked for; it is started again "
                "in %d ms, for the %d. time",
                self._name,
                child.pid,
                code,
                wait_ms,
                self.restarts,
            )
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._stopped.wait()
                return 0
            except TimeoutError:
                continue

    async def _ends_first(self, child: asyncio.subprocess.Process) -> bool:
        """Wait until the process ends or is to be stopped; returns whether it was the former."""
        ending = asyncio.create_task(child.wait())
        asked = asyncio.create_task(self._stopped.wait())
        await asyncio.wait([ending, asked], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if ending.done():
            return not self._stopped.is_set()
        ending.cancel()
        return False
