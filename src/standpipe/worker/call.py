"""Calls of the handler to come, and the entries that they belong to."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable
from itertools import accumulate, islice

import msgspec

from standpipe.event import Batch, Event, EventId
from standpipe.worker.acks import Acks


class Open(msgspec.Struct, eq=False, gc=False):
    """An entry whose events are not all settled yet."""

    # A Struct, since each plain event has its own: it is made in a third of the time.
    shard: int
    id: bytes
    left: int
    fence: int
    """Of the lease under which it was delivered; 0 without leases."""
    is_begun: bool = False
    """Whether some of its events are settled and others are not."""
    deliveries: int = 1
    """The highest of its events that have begun."""
    counted: int = 1
    """The same as the server knows it; higher where a try was counted before its turn."""
    letters: list[list[bytes]] = []


class Call:
    """One call of the handler to come: a batch, or one event of it."""

    __slots__ = ("acks", "argument", "deliveries", "first", "is_suspect", "opened")

    def __init__(
        self,
        argument: Batch | Event,
        opened: list[Open],
        first: EventId,
        deliveries: int,
        *,
        is_suspect: bool = False,
    ) -> None:
        self.argument = argument
        self.opened = opened
        """The open entry of each of the batch's entries, parallel; of an event, its one."""
        self.first = first
        self.deliveries = deliveries
        """Times that the handler has been called for it, this one included."""
        self.is_suspect = is_suspect
        """Whether its workers may have died of it, and this is its last try."""
        self.acks: Acks | None = None
        """What the handler acknowledges while it runs, in manual mode."""

    def pick(self, places: list[int]) -> Call:
        """The same call for some of its events alone; ``places`` are ascending."""
        argument = self.argument
        if isinstance(argument, Event) or len(places) == len(argument):
            return self
        picked, indexes = argument.pick(places)
        opened = [self.opened[index] for index in indexes]
        first = picked.entries[0].id
        return Call(picked, opened, first, self.deliveries, is_suspect=self.is_suspect)

    def counts_at(self, places: Iterable[int]) -> tuple[list[Open], list[int]]:
        """The open entries that some of its events are of, and how many of each, in order."""
        ends = list(accumulate(event_counts(self.argument)))
        found = Counter(bisect_right(ends, place) for place in places)
        return [self.opened[index] for index in sorted(found)], [found[i] for i in sorted(found)]


class Calls(asyncio.Queue[Call]):
    """The calls that wait, in the order in which they came."""

    def put_back(self, calls: list[Call]) -> None:
        """Put calls that were taken out, and not made, at the front again."""
        self._is_putting_back = True
        for call in reversed(calls):
            self.put_nowait(call)
        self._is_putting_back = False

    def behind(self, call: Call, count: int) -> list[Call]:
        """The first of those that come behind one that was taken out; they stay."""
        return list(islice(self._queue, count))

    def ready(self) -> int:
        """How many could be made now."""
        return self.qsize()

    def clear(self) -> None:
        """Forget all of them."""
        self._queue.clear()

    def _init(self, maxsize: int) -> None:
        self._is_putting_back = False
        self._queue = deque[Call]()

    def _put(self, item: Call) -> None:
        # asyncio.Queue lets its subclasses decide where an item goes.
        (self._queue.appendleft if self._is_putting_back else self._queue.append)(item)


def event_counts(argument: Batch | Event) -> list[int]:
    """How many events of each entry a call is for."""
    return [1] if isinstance(argument, Event) else [entry.count for entry in argument.entries]
