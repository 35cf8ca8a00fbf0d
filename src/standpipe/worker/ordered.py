"""The calls of ordered mode: a line for each shard, of which one call at a time is made."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice
from typing import Final

from standpipe.consumer.leases import Leases
from standpipe.worker.call import Call, Calls


class NotBegun(Exception):
    """In place of the handler's call: the shard may be another worker's, so it was not made."""


class _Line:
    """The calls of one shard, in the order of its entries."""

    __slots__ = ("calls", "is_offered", "is_running", "not_before")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()
        self.is_offered = False
        """Whether a runner will look at it."""
        self.is_running = False
        self.not_before = 0.0
        """Until when its first call waits to be tried again, and so do all behind it."""


class Lines(Calls):
    """The calls that wait, by shard.

    A call that was taken out keeps its shard from going on until it is :meth:`done`; put back, it
    is the first again.

    Args:
        leases: Say which calls may be made.
    """

    def __init__(self, leases: Leases) -> None:
        super().__init__()
        self._leases: Final = leases
        self._lines: Final[dict[int, _Line]] = {}
        self._is_closed = False
        self._offered: Final[asyncio.Queue[_Line]] = asyncio.Queue()

    def put_nowait(self, item: Call) -> None:
        line = self._line(item)
        line.calls.append(item)
        self._offer(line)

    def put_back(self, calls: list[Call]) -> None:
        for call in reversed(calls):
            line = self._line(call)
            line.calls.appendleft(call)
            self._offer(line)

    def put_back_until(self, call: Call, wait_s: float) -> None:
        """Put a call back that is to be made again after so long, its shard waiting for it."""
        self._line(call).not_before = time.monotonic() + wait_s
        self.put_back([call])

    async def get(self) -> Call:
        while True:
            line = await self._offered.get()
            line.is_offered = False
            self._drop_stale(line)
            if self._is_closed or not line.calls or not self._may_begin(line.calls[0]):
                continue  # A change of its lease offers it again.
            line.is_running = True
            return line.calls.popleft()

    def more(self, first: Call, count: int) -> list[Call]:
        """The calls behind one that was taken out, of its shard; none that was tried before."""
        calls = self._line(first).calls
        found: list[Call] = []
        while calls and len(found) < count and calls[0].deliveries == 1:
            found.append(calls.popleft())
        return found

    def behind(self, call: Call, count: int) -> list[Call]:
        return list(islice(self._line(call).calls, count))

    def done(self, call: Call) -> None:
        """A call that was taken out, and what was put back of it, is through: the next may go."""
        line = self._line(call)
        line.is_running = False
        self._offer(line)
        self._leases.nudge(call.opened[0].shard)

    def changed(self) -> None:
        """Leases may have been renewed, or waits be over: look at all shards again."""
        for line in self._lines.values():
            self._offer(line)

    def close(self) -> None:
        """Give no more calls out; may be called from a signal handler."""
        self._is_closed = True

    def ready(self) -> int:
        return self._offered.qsize()

    def clear(self) -> None:
        for line in self._lines.values():
            line.calls.clear()

    def is_busy(self, shard: int) -> bool:
        """Whether a handler runs for a shard, or is between two events of one entry."""
        line = self._lines.get(shard)
        if line is None:
            return False
        if line.is_running:
            return True
        self._drop_stale(line)
        is_waiting = time.monotonic() < line.not_before
        return bool(line.calls) and not is_waiting and line.calls[0].opened[0].is_begun

    def is_stale(self, call: Call) -> bool:
        """Whether its entries have been another worker's since they were delivered."""
        opened = call.opened[0]
        return self._leases.fence(opened.shard) != opened.fence

    def require(self, call: Call) -> None:
        """Called just before the handler, in whatever thread.

        Raises:
            NotBegun: another worker may own the shard by now, or this one is to stop.
        """
        if self._is_closed or not self._may_begin(call):
            raise NotBegun

    def _may_begin(self, call: Call) -> bool:
        opened = call.opened[0]
        return self._leases.may_begin(opened.shard, opened.fence, is_begun=opened.is_begun)

    def _drop_stale(self, line: _Line) -> None:
        while line.calls and self.is_stale(line.calls[0]):
            line.calls.popleft()
            line.not_before = 0.0

    def _line(self, call: Call) -> _Line:
        shard = int(call.opened[0].shard)
        line = self._lines.get(shard)
        if line is None:
            line = self._lines[shard] = _Line()
        return line

    def _offer(self, line: _Line) -> None:
        if not line.calls or line.is_running or line.is_offered:
            return
        if time.monotonic() >= line.not_before or self.is_stale(line.calls[0]):
            line.is_offered = True
            self._offered.put_nowait(line)
