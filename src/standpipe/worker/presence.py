"""What a worker says of itself to the server, so that others can see who does what.

A report stands beside the stream for REPORT_TTL_MS and is written anew every REPORT_MS: a worker
that is killed is gone by itself. It is measured by looking: ten times a second at how many handlers
are at work and how late the event loop is. So no event pays for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import msgspec

from standpipe.clock import now_ms
from standpipe.consumer import Consumer, cancel_tasks
from standpipe.errors import ServerFullError, StandpipeError
from standpipe.limits import LOOP_LATE_MS, REPORT_LOOK_MS, REPORT_MS, REPORT_TTL_MS
from standpipe.wire import script
from standpipe.worker.context import WorkerStats
from standpipe.worker.processors import allowed_processors, idle_seconds, waited_seconds

log: Final = logging.getLogger("standpipe.worker")


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker says of itself; None is what it does not know, or its version does not say.

    All from ``window_ms`` to ``failures`` is of the time since the report before, and None in the
    first.
    """

    host: str | None = None
    pid: int | None = None
    version: str | None = None
    since: int | None = None
    """When it started, by its own clock, ms since the epoch."""
    handler: str | None = None
    is_batch: bool | None = None
    """Whether the handler takes batches."""
    is_ordered: bool | None = None
    shards: list[int] | None = None
    """Those that it owns in ordered mode; None in others, where it reads all."""
    concurrency: int | None = None
    """Handlers at a time, at most."""
    processors: int | None = None
    """How many its process may use."""
    in_flight: int | None = None
    """Events delivered to it and not settled, at present."""
    in_flight_max: int | None = None
    handled: int | None = None
    """Events whose handler returned, since it started."""
    retried: int | None = None
    """Calls that failed and were, or will be, repeated, since it started."""
    dead: int | None = None
    """Events that became dead letters, since it started."""
    window_ms: int | None = None
    events_per_s: float | None = None
    """Events whose handler returned."""
    handlers: float | None = None
    """How many handlers were at work, on average. Those that never wait have one turn together."""
    waiting_share: float | None = None
    """Of the time, in which it had nothing to handle and waited for the server to give it some."""
    cpu_share: float | None = None
    """Processor time of its process by time; above 1 where threads compute at the same time."""
    cpu_wait_share: float | None = None
    """The same for the time in which its threads could have run and had no processor."""
    loop_lag_ms: int | None = None
    """The longest time for which the event loop did not come round."""
    blocked_share: float | None = None
    """Of the time, in which the event loop was late."""
    idle_processors: float | None = None
    """Processors of the machine that nobody used, on average."""
    failures: int | None = None
    """Calls that failed, and events that became dead letters."""


class Kind(msgspec.Struct, frozen=True):
    """What does not change about a worker while it runs."""

    handler: str
    is_batch: bool
    concurrency: int


class _Start(msgspec.Struct, frozen=True):
    """Where the counters stood when a window began."""

    at: float
    cpu_s: float
    idle_s: float | None
    waited_s: float | None
    handled: int
    failures: int


class Presence:
    """Reports what a worker does until it ends. An error of it is logged and disturbs nothing.

    Args:
        consumer: The worker's.
        stats: The worker's counters.
        look: How many handlers are at work, and how many calls could begin but for that.
    """

    def __init__(
        self, consumer: Consumer, stats: WorkerStats, look: Callable[[], tuple[int, int]]
    ) -> None:
        self._consumer = consumer
        self._stats = stats
        self._look = look
        self._since = now_ms()
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: type[StandpipeError] | None = None
        """What has been logged to keep the reports from the server."""
        self._kind: Kind
        self._version: str

    def start(self, kind: Kind) -> None:
        """Report from now on."""
        # Looked up here: it reads the files of the installation.
        self._kind, self._version = kind, version("standpipe")
        self._tasks.append(asyncio.create_task(self._run(), name="standpipe-presence"))

    async def leave(self) -> None:
        """Report no more, and tell the server that this worker is gone.

        Delivery: If that fails, the last report ends by itself.
        """
        if self._tasks:
            await self.close()
            await self._send(b"")

    async def close(self) -> None:
        """Report no more."""
        await cancel_tasks(self._tasks)

    async def _run(self) -> None:
        await self._send(msgspec.json.encode(self._report(None)))
        self._begin_window()
        # Some jitter, so that many workers started together do not report together.
        length = REPORT_MS / 1000 * random.uniform(0.8, 1.0)
        while True:
            await self._watch(REPORT_LOOK_MS / 1000 * random.uniform(0.5, 1.5))
            if time.monotonic() - self._window.at >= length:
                report = self._report(self._window)
                self._begin_window()
                await self._send(msgspec.json.encode(report))

    async def _watch(self, pause_s: float) -> None:
        """Wait a little, and count it to what the worker is at when the time is over."""
        began = time.monotonic()
        await asyncio.sleep(pause_s)
        took = time.monotonic() - began
        late = took - pause_s
        busy, ready = self._look()
        # Calls that could begin are beside a handler that never waits: it has ended by now, and the
        # next begins after this look. One that held the loop up for long may have been the last.
        is_late = late * 1000 > LOOP_LATE_MS
        at_work = max(busy, 1 if ready or is_late else 0)
        self._handler_s += at_work * took
        self._waiting_s += 0 if at_work else took
        self._looked_s += took
        if is_late:
            self._late_s += late
            self._late_s_max = max(self._late_s_max, late)

    def _begin_window(self) -> None:
        stats = self._stats
        self._window = _Start(
            time.monotonic(),
            time.process_time(),
            idle_seconds(),
            waited_seconds(),
            stats.handled,
            stats.retried + stats.dead,
        )
        self._handler_s = self._waiting_s = self._looked_s = self._late_s = self._late_s_max = 0.0

    def _report(self, window: _Start | None) -> WorkerReport:
        consumer, stats, kind = self._consumer, self._stats, self._kind
        leases = consumer.leases
        report = WorkerReport(
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._version,
            since=self._since,
            handler=kind.handler,
            is_batch=kind.is_batch,
            is_ordered=leases is not None,
            shards=None if leases is None else sorted(leases.owned),
            concurrency=kind.concurrency,
            processors=allowed_processors(),
            in_flight=consumer.in_flight,
            in_flight_max=consumer.in_flight_max,
            handled=stats.handled,
            retried=stats.retried,
            dead=stats.dead,
        )
        if window is None:
            return report
        lasted = time.monotonic() - window.at
        cpu_share = (time.process_time() - window.cpu_s) / lasted
        idle = _share(window.idle_s, idle_seconds(), lasted)
        cpu_wait = _share(window.waited_s, waited_seconds(), lasted)
        # Who waits does not compute. Many short calls in a row are over whenever it can look.
        waiting = min(self._waiting_s / self._looked_s, max(0.0, 1 - cpu_share))
        return msgspec.structs.replace(
            report,
            window_ms=round(lasted * 1000),
            events_per_s=round((stats.handled - window.handled) / lasted, 1),
            handlers=round(self._handler_s / self._looked_s, 2),
            waiting_share=round(waiting, 3),
            cpu_share=round(cpu_share, 3),
            cpu_wait_share=cpu_wait,
            loop_lag_ms=round(self._late_s_max * 1000),
            blocked_share=round(self._late_s / self._looked_s, 3),
            idle_processors=idle,
            failures=stats.retried + stats.dead - window.failures,
        )

    async def _send(self, report: bytes) -> None:
        consumer = self._consumer
        keys = consumer.stream.report_keys(consumer.group)
        try:
            await consumer.stream.server.run(
                script("report"), keys, consumer.name, REPORT_TTL_MS, report
            )
        except StandpipeError as error:
            # This is only about being seen. What the consumer meets as well, it logs; a server
            # without memory still takes what that sends.
            if error.retryable and not isinstance(error, ServerFullError):
                log.debug("what %s does cannot be reported: %s", consumer.name, error)
            elif type(error) is not self._trouble:
                self._trouble = type(error)
                log.warning("what %s does cannot be reported: %s (%s)",
                            consumer.name, error, error.hint)  # fmt: skip
        else:
            if self._trouble is not None:
                self._trouble = None
                log.info("what %s does is reported again", consumer.name)


def _share(before: float | None, after: float | None, lasted: float) -> float | None:
    """What a counter of seconds has gained, by time; None where it is not known."""
    if before is None or after is None:
        return None
    # The count of a thread that has ended is gone.
    return round(max(0.0, after - before) / lasted, 3)
