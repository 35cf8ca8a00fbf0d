"""The server's memory, as far as a producer has to know: it waits before the server refuses.

A server at its maxmemory refuses not only events but dead letters, leases and other programs'
writes, too. So producers stop a little below, each by itself: what was free when it last asked, it
fills only by a part before it asks again.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Final

from standpipe.errors import ServerNearlyFullError, StandpipeError
from standpipe.limits import MEMORY_LOOK_MS, MEMORY_LOOKS_PER_FILL, MEMORY_UNLIMITED_LOOK_MS
from standpipe.wire import Link, info_fields, pack

log: Final = logging.getLogger("standpipe.producer")

_INFO: Final = pack("INFO", "memory")


class Headroom:
    """What one server may take before it is near its maxmemory.

    Args:
        percent: Share of maxmemory that is left free; 0: the server is not asked.
    """

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._is_watched = percent > 0
        # The first write is small beside any server, and says how the server is.
        self._budget = math.inf
        """Bytes that may be written before the next look."""
        self._due = 0.0
        self._seen: tuple[float, int] | None = None
        """When it was last looked at, and what was in use."""

    async def room(self, link: Link) -> float:
        """How many bytes may be written now.

        Raises:
            ServerNearlyFullError: none.
            ServerError: as :meth:`Link.exchange`.

        Cost: nothing, or an INFO where what was free has been used up.
        """
        if self._budget <= 0:
            self.saw((await link.exchange([_INFO], 1))[0], link.where)
        return self._budget

    def write(self, size: int) -> list[bytes]:
        """So many bytes are written; what is to be asked behind them."""
        self._budget -= size
        return [_INFO] if self._is_watched and time.monotonic() >= self._due else []

    def saw(self, reply: Any, where: str) -> None:
        """Take in what the server said.

        Raises:
            ServerNearlyFullError: nothing may be written.
        """
        now = time.monotonic()
        if isinstance(reply, StandpipeError):
            # Nobody may ask, and nobody has to: then the server itself says when it is full.
            log.info("the memory of %s cannot be watched: %s", where, reply)
            self._is_watched, self._budget = False, math.inf
            return
        found = info_fields(reply)
        maxmemory = int(found.get("maxmemory", 0))
        if not maxmemory or found.get("maxmemory_policy") != "noeviction":
            # One that evicts never refuses: waiting for it would have no end.
            self._seen, self._budget = None, math.inf
            self._due = now + MEMORY_UNLIMITED_LOOK_MS / 1000
            return
        # As the server reckons when it refuses: without the buffers of replicas and of its AOF.
        used = int(found["used_memory"]) - int(found.get("mem_not_counted_for_evict", 0))
        free = maxmemory * (100 - self._percent) // 100 - used
        wait_s = MEMORY_LOOK_MS / 1000
        if self._seen is not None and used > self._seen[1]:
            full_s = max(0, free) * (now - self._seen[0]) / (used - self._seen[1])
            wait_s = min(wait_s, full_s / MEMORY_LOOKS_PER_FILL)
        self._seen, self._due = (now, used), now + wait_s
        self._budget = free / MEMORY_LOOKS_PER_FILL
        if free <= 0:
            raise ServerNearlyFullError(
                f"{where}: {used:,} bytes are in use, of {maxmemory:,} that the server may have; "
                f"producers leave {self._percent} % free"
            )
