"""Counting tries on the server, each before it begins: its process may not live to do so after."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Final

from standpipe.consumer import Consumer
from standpipe.errors import StandpipeError
from standpipe.limits import COUNT_AHEAD_ENTRIES_MAX
from standpipe.worker.call import Call, Calls, Open

log: Final = logging.getLogger("standpipe.worker")


class Tries:
    """Counts the tries of calls that were delivered before.

    After a crash there are thousands that are tried a second time. A handler that is called for one
    at a time would wait a round trip for each, so those of them that come next are counted with it.
    Such an entry may be counted and never begun, if one before it kills the worker: once, for any
    later try is counted by itself, and so is the last, by which a killer is found out.

    Args:
        consumer: What the entries are held by.
        calls: Those that come next.
        deliveries_max: Tries after which an entry is given up.
    """

    def __init__(self, consumer: Consumer, calls: Calls, deliveries_max: int) -> None:
        self._consumer: Final = consumer
        self._calls: Final = calls
        # Else the third would be the last try of what was counted for a second, and never begun.
        self._is_ahead: Final = deliveries_max > 3
        self._turn: Final = asyncio.Lock()
        self._asking: dict[Call, None] = {}
        """Those whose handlers wait to begin, in order."""
        self._ahead: list[Open] = []
        """Counted for a try that has not begun yet, some of them."""

    async def begin(self, call: Call) -> None:
        """Have a try counted, now or before; only then its handler may begin."""
        if not self.may_be_ahead(call):
            await self.count(call)
            return
        self._asking[call] = None
        try:
            # Whoever was counted with another one must not go on before that has been answered.
            async with self._turn:
                if any(entry.counted < call.deliveries for entry in call.opened):
                    await self._count_with_next(call)
        finally:
            del self._asking[call]
        for entry in call.opened:
            entry.deliveries = max(entry.deliveries, call.deliveries)

    async def count(self, call: Call) -> None:
        """Write the delivery count of a call's entries to the server."""
        # Of an entry's events each is tried by itself, and the entry has one count for all.
        count = max(call.deliveries, *(entry.deliveries for entry in call.opened))
        for entry in call.opened:
            entry.deliveries = count
        await self._write(call.opened, count)

    async def give_back(self) -> None:
        """Take back the counts of tries that will not begin."""
        by_count: defaultdict[tuple[type[int], int, int], list[Open]] = defaultdict(list)
        for entry in self._not_begun():
            by_count[type(entry.shard), entry.shard, entry.deliveries].append(entry)
        for (_, _, deliveries), entries in by_count.items():
            await self._write(entries, deliveries)

    def may_be_ahead(self, call: Call) -> bool:
        """Whether a try may be counted together with others."""
        # The count of an entry of which another event is further on must not be lowered.
        return (
            self._is_ahead
            and call.deliveries == 2
            and all(entry.deliveries <= 2 for entry in call.opened)
        )

    async def _count_with_next(self, call: Call) -> None:
        shard = call.opened[0].shard
        # An entry has as many calls as events.
        entries = dict.fromkeys(call.opened)
        for each in (*self._asking, *self._calls.behind(call, COUNT_AHEAD_ENTRIES_MAX)):
            if len(entries) >= COUNT_AHEAD_ENTRIES_MAX:
                break
            # A number may be that of a shard, or of what was requeued for it.
            other = each.opened[0].shard
            is_there = other == shard and type(other) is type(shard)
            if is_there and self.may_be_ahead(each):
                entries |= dict.fromkeys(each.opened)
        self._ahead = [*self._not_begun(), *entries]
        await self._write(list(entries), call.deliveries)

    def _not_begun(self) -> list[Open]:
        return [
            entry
            for entry in self._ahead
            if entry.counted > entry.deliveries and self._consumer.holds(entry.shard, entry.id)
        ]

    async def _write(self, entries: list[Open], count: int) -> None:
        shard, ids = entries[0].shard, [entry.id for entry in entries]
        try:
            await self._consumer.count_delivery(shard, ids, count)
        except StandpipeError as error:
            log.debug("the delivery count of %s could not be kept: %s", ids[0].decode(), error)
        else:
            for entry in entries:
                entry.counted = count
