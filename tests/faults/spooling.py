"""A feeder for producers with a spool, and what has to be true in the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from standpipe import Event, EventId, Producer, Stream
from standpipe.errors import SpooledError
from standpipe.keyspace import partition
from standpipe.producer.block import Receipt, Receipts
from standpipe.spool import Spool, SpoolSummary
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.entries import TIME, events_at, numbers

LIST = 20
"""Events of one round."""
RUN = 4
"""Of these, so many in turn are of the same device: the first sent singly, the others as lists,
each of which then lies in one block and has one outcome."""


def runs_of_events(count: int, *, keys: int, first: int) -> list[Event]:
    """Readings of some devices, RUN in turn of each; ``n`` counts up from ``first``."""
    return [
        Event(f"meter-{n // RUN % keys}", TIME + n, {"n": n}) for n in range(first, first + count)
    ]


class SpoolFeeder:
    """Sends numbered events until told to stop, and notes what became of each."""

    def __init__(self, producer: Producer, *, keys: int = 10, first: int = 0) -> None:
        self.events: list[Event] = []
        self.acknowledged: dict[int, EventId | None] = {}
        self.spooled: set[int] = set()
        self.longest_send_s = 0.0
        self._first = first
        self._producer = producer
        self._keys = keys
        self._stopping = False
        self._waiting: set[asyncio.Task[None]] = set()
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopping:
            events = runs_of_events(LIST, keys=self._keys, first=self._first + len(self.events))
            self.events += events
            began = time.monotonic()
            receipts: list[tuple[int, Receipt | Receipts]] = [
                (1, await self._producer.send(event)) for event in events[:RUN]
            ]
            receipts += [
                (RUN, await self._producer.send_many(events[start : start + RUN]))
                for start in range(RUN, LIST, RUN)
            ]
            self.longest_send_s = max(self.longest_send_s, time.monotonic() - began)
            waiting = asyncio.create_task(self._note(events[0].fields["n"], receipts))
            self._waiting.add(waiting)
            # As fast as the server answers, and never more than some lists ahead.
            await asyncio.wait({waiting}, timeout=0.01)

    async def _note(self, first: int, receipts: Sequence[tuple[int, Receipt | Receipts]]) -> None:
        for count, receipt in receipts:
            try:
                found = await receipt
            except SpooledError:
                self.spooled.update(range(first, first + count))
            else:
                ids = found if isinstance(found, list) else [found]
                self.acknowledged.update(zip(range(first, first + count), ids, strict=True))
            first += count

    def _settled(self) -> int:
        if self._running.done():
            self._running.result()
        return len(self.acknowledged)

    async def until_acknowledged(self, count: int, deadline_s: float = 20) -> None:
        """Wait until so many more events are acknowledged."""
        goal = len(self.acknowledged) + count
        what = f"{goal} events are acknowledged"
        await eventually(lambda: self._settled() >= goal, deadline_s, what=what)

    async def until_spooled(self, count: int, deadline_s: float = 20) -> None:
        """Wait until so many more events are in the spool."""
        goal = len(self.spooled) + count
        what = f"{goal} events are spooled"
        await eventually(
            lambda: self._settled() >= 0 and len(self.spooled) >= goal, deadline_s, what=what
        )

    async def finish(self) -> None:
        """Stop, and wait until every event has its outcome."""
        self._stopping = True
        await self._running
        await asyncio.gather(*self._waiting)

    def require_true_stats(self) -> None:
        """Fail unless the producer counted what its receipts said."""
        stats = self._producer.stats
        assert stats.sent == len(self.events)
        assert stats.acknowledged == len(self.acknowledged)
        assert stats.spooled == len(self.spooled)
        assert stats.failed == 0
        assert len(self.acknowledged) + len(self.spooled) == len(self.events)

    async def require_all_once(
        self, stream: Stream, *, before: Sequence[Event] = (), taken: dict[str, list] | None = None
    ) -> None:
        """Fail unless every event stands in its shard once, in order, and the acknowledged ones
        under their IDs.

        Args:
            before: Events of earlier producers, which come first.
            taken: What was taken out of the shards meanwhile, oldest first: (ID, event) by key.
        """
        for shard, key in enumerate(stream.keys):
            standing = (taken or {}).get(key, []) + await events_at(stream.server, key)
            mine = [
                event.fields["n"]
                for event in (*before, *self.events)
                if partition(event.key, stream.shards) == shard
            ]
            require_same(numbers(event for _, event in standing), mine)
            ids = {event.fields["n"]: event_id for event_id, event in standing}
            for n, event_id in self.acknowledged.items():
                if n in ids and event_id is not None:
                    assert ids[n] == event_id


def require_same(found: Sequence[int], wanted: Sequence[int]) -> None:
    """Fail unless two sequences of numbers are the same, and say how they differ."""
    if list(found) == list(wanted):
        return
    twice = [n for n, count in Counter(found).items() if count > 1]
    missing, phantom = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    raise AssertionError(
        f"{len(found)} found of {len(wanted)}; twice: {twice[:10]}; missing: {missing[:10]}; "
        f"phantom: {phantom[:10]}; in order: {list(found) == sorted(found)}"
    )


def summary_of(path: Path) -> SpoolSummary:
    with Spool.open_readonly(path) as reader:
        return reader.summary()


async def until_empty(path: Path, deadline_s: float = 30) -> None:
    """Wait until nothing waits in a spool."""
    await eventually(lambda: summary_of(path).blocks == 0, deadline_s, what="the spool is empty")


async def take_out(server: Server, key: str, taken: dict[str, list]) -> None:
    """Take all entries out of a shard, as trimming does, and keep what they were."""
    found = await events_at(server, key)
    if found:
        last = found[-1][0]
        taken.setdefault(key, []).extend(found)
        await server.call("XTRIM", key, "MINID", f"{last.ms}-{last.seq + 1}", key=key)
