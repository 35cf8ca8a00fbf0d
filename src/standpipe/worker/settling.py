"""How entries are settled: acknowledged when all of their events are, with their dead letters."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Final

import msgspec

from standpipe.clock import now_ms
from standpipe.consumer import Consumer
from standpipe.errors import DecodeError
from standpipe.event import Batch, Event, EventId
from standpipe.limits import TRACE_CHARS_MAX
from standpipe.worker.call import Open, event_counts
from standpipe.worker.context import WorkerStats

log: Final = logging.getLogger("standpipe.worker")


class Settler:
    """Counts down the events of open entries, and settles the entries that are through.

    Args:
        consumer: What the entries are held by.
        stats: Where dead letters are counted.
    """

    def __init__(self, consumer: Consumer, stats: WorkerStats) -> None:
        self._consumer: Final = consumer
        self._stats: Final = stats

    def acknowledge(self, opened: Sequence[Open], counts: Sequence[int]) -> None:
        """Count events as settled, of entries that have no dead letters; see :meth:`settle`."""
        done: list[bytes] = []
        for entry, count in zip(opened, counts, strict=True):
            entry.left -= count
            if entry.left > 0:
                entry.is_begun = True
            else:
                done.append(entry.id)
        if done:
            self._consumer.ack(opened[0].shard, done)

    async def settle(self, opened: Sequence[Open], counts: Sequence[int]) -> None:
        """Count events of entries as settled, and acknowledge the entries that are through.

        In the entries' order: what goes before a dead letter is acknowledged before.
        """
        done: list[bytes] = []
        for entry, count in zip(opened, counts, strict=True):
            entry.left -= count
            if entry.left > 0:
                entry.is_begun = True
                continue
            if not entry.letters:
                done.append(entry.id)
                continue
            if done:
                self._consumer.ack(entry.shard, done)
                done = []
            await self._consumer.settle(entry.shard, entry.id, entry.letters)
        if done:
            self._consumer.ack(opened[0].shard, done)

    async def bury(
        self,
        argument: Batch | Event,
        opened: Sequence[Open],
        first: EventId,
        deliveries: int,
        reason: str,
        error: BaseException | None,
    ) -> None:
        """Make dead letters of events; they are stored when their entry is settled."""
        if isinstance(argument, Event):
            events, ids = [argument], [first]
        else:
            events, ids = argument.events, argument.ids
        counts = event_counts(argument)
        owners = [o for o, n in zip(opened, counts, strict=True) for _ in range(n)]
        for event, event_id, owner in zip(events, ids, owners, strict=True):
            letter = self._letter(str(event_id), deliveries, reason, error)
            owner.letters.append([*letter, b"d", msgspec.msgpack.encode(event)])
        self._stats.dead += len(events)
        log.error(
            "gave up on %d events from %s of shard %d after %d deliveries: %s",
            len(events),
            first,
            opened[0].shard,
            deliveries,
            reason,
        )
        await self.settle(opened, counts)

    async def bury_raw(self, opened: Open, fields: list[bytes], error: DecodeError) -> None:
        """Make a dead letter of an entry that no codec reads, with its fields as they are."""
        letter = self._letter(opened.id.decode(), 1, f"DecodeError: {error}", None)
        opened.letters.append([*letter, b"raw", msgspec.msgpack.encode(fields)])
        self._stats.dead += 1
        log.error("entry %s of shard %d: %s", opened.id.decode(), opened.shard, error)
        await self.settle([opened], [1])

    def _letter(
        self, event_id: str, deliveries: int, reason: str, error: BaseException | None
    ) -> list[bytes]:
        trace = "" if error is None else "".join(traceback.format_exception(error))
        pairs = {
            "group": self._consumer.group,
            "consumer": self._consumer.name,
            "id": event_id,
            "reason": reason[:TRACE_CHARS_MAX],
            "trace": trace[-TRACE_CHARS_MAX:],
            "deliveries": str(deliveries),
            "at": str(now_ms()),
        }
        # An error's text may hold what is no valid Unicode, such as a file's name.
        return [part.encode(errors="backslashreplace") for pair in pairs.items() for part in pair]
