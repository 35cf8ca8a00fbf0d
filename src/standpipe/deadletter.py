"""Dead letters: looking at what groups have given up on, putting it back, and removing it.

A worker keeps a dead letter beside the shard of its event (``Stream.dead_key``), with the group
that gave it up. Put back, it goes to a stream of that group alone (``Stream.requeued_key``), in one
step with its removal from the dead letters; the group's workers look there once a second.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, NamedTuple

import msgspec

from standpipe.clock import parse_time
from standpipe.codec import read_event
from standpipe.errors import ConfigError, DecodeError, EventError, LetterNotFoundError
from standpipe.event import Event, EventId
from standpipe.limits import (
    DEAD_IDS_MAX,
    DEAD_PAGE_LETTERS,
    REQUEUES_MAX,
)
from standpipe.stream import Stream
from standpipe.wire import script


class LetterId(NamedTuple):
    """Where a dead letter stands: its shard, and the entry ID among the shard's letters."""

    shard: int
    entry: str

    def __str__(self) -> str:
        return f"{self.shard}:{self.entry}"

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """Read ``0:1700000000000-0``; without a shard it is shard 0.

        Raises:
            ConfigError: the text is neither.
        """
        shard, _, entry = text.strip().rpartition(":")
        try:
            point = EventId.parse(entry)
            if "/" in entry or "-" not in entry:
                raise ValueError
            return cls(int(shard or 0), point.entry)
        except (EventError, ValueError):
            raise ConfigError(
                f"{text!r} is not the ID of a dead letter",
                hint="`standpipe dead list` shows the IDs: 0:1700000000000-0, shard and entry.",
            ) from None

    @property
    def order(self) -> tuple[int, int, int]:
        """What letters of all shards are sorted by: when they were kept, by the server's clock."""
        point = EventId.parse(self.entry)
        return point.ms, point.seq, self.shard


class DeadLetter(msgspec.Struct, frozen=True):
    """One event that a group gave up on. What is not known of it is None."""

    id: LetterId
    group: str | None
    consumer: str | None
    """The member of the group that gave it up."""
    event_id: str | None
    """The event's ID in its shard; of an entry that no codec read, the entry's."""
    reason: str | None
    trace: str | None
    """The end of the traceback; None where no exception was raised."""
    deliveries: int | None
    """How often a handler was begun with it, since it was requeued or from the beginning."""
    deliveries_before: int
    """How often before it was requeued, all times together."""
    requeues: int
    """How often it was requeued."""
    at: int | None
    """When it was given up, ms, by the worker's clock."""
    event: Event | None
    """None for an entry that no codec read, and for a letter that is damaged."""
    raw: list[bytes] | None
    """Name, value, name, value…: the entry that no codec read, or the damaged letter itself."""

    @property
    def is_usable(self) -> bool:
        """Whether it can be requeued: whether it says whose it is and which event."""
        return self.group is not None and self.event_id is not None

    @classmethod
    def read(cls, shard: int, entry_id: bytes, fields: list[bytes]) -> DeadLetter:
        """A letter as it stands on the server, whoever wrote it: what cannot be read is None."""
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        event: Event | None = None
        raw: list[bytes] | None = None
        try:
            if b"d" in found:
                event = read_event(found[b"d"])
            else:
                raw = msgspec.msgpack.decode(found[b"raw"], type=list[bytes])
        except (msgspec.MsgspecError, DecodeError, KeyError):
            raw = fields
        return cls(
            LetterId(shard, entry_id.decode()),
            group=_text(found.get(b"group")),
            consumer=_text(found.get(b"consumer")),
            event_id=_text(found.get(b"id")),
            reason=_text(found.get(b"reason")),
            trace=_text(found.get(b"trace")),
            deliveries=_number(found.get(b"deliveries")),
            deliveries_before=_number(found.get(b"deliveries_before")) or 0,
            requeues=_number(found.get(b"requeues")) or 0,
            at=_number(found.get(b"at")),
            event=event,
            raw=raw,
        )


def _text(value: bytes | None) -> str | None:
    return value.decode(errors="replace") if value else None


def _number(value: bytes | None) -> int | None:
    # Longer digits are no time and no count, and nothing that could be shown as one.
    return int(value) if value is not None and value.isdigit() and len(value) < 15 else None


class Selection:
    """Which dead letters are meant: all that every condition given applies to.

    Args:
        group: The group that gave them up.
        key: The event's key.
        reason: A text that the reason contains, upper and lower case alike.
        start: Given up from this time on, by the server's clock: ms, ISO 8601 or ``-2h``.
        end: Given up until this time, inclusive.
        ids: These letters alone, by ``letter.id`` or its text.

    Raises:
        ConfigError: a time or an ID is none.
    """

    def __init__(
        self,
        *,
        group: str | None = None,
        key: str | None = None,
        reason: str | None = None,
        start: str | int | None = None,
        end: str | int | None = None,
        ids: Iterable[LetterId | str] = (),
    ) -> None:
        self.group: Final = group
        self.key: Final = key
        self.reason: Final = reason
        self.start_ms: Final = None if start is None else parse_time(start, name="start")
        self.end_ms: Final = None if end is None else parse_time(end, name="end")
        self.ids: Final = frozenset(
            LetterId.parse(one) if isinstance(one, str) else one for one in ids
        )

    @property
    def is_everything(self) -> bool:
        """Whether no condition was given."""
        given = (self.group, self.key, self.reason, self.start_ms, self.end_ms)
        return not self.ids and all(value is None for value in given)

    def includes(self, letter: DeadLetter) -> bool:
        """Whether a letter meets the conditions other than the times, which the server applies."""
        if self.group is not None and letter.group != self.group:
            return False
        if self.key is not None and (letter.event is None or letter.event.key != self.key):
            return False
        if self.reason is not None and self.reason.lower() not in (letter.reason or "").lower():
            return False
        return not self.ids or letter.id in self.ids


class Requeued(msgspec.Struct):
    """What became of the letters that were to be requeued."""

    requeued: int = 0
    over_limit: int = 0
    """Requeued as often as is allowed already; they stay."""
    unusable: int = 0
    """Not letters as a worker writes them; they stay."""
    gone: int = 0
    """Requeued or purged by somebody else meanwhile."""


class DeadLetters:
    """The dead letters of a stream, over all shards and groups.

    Args:
        stream: An open stream.

    Example:
        letters = DeadLetters(stream)
        async for letter in letters.find(Selection(group="storage", start="-1h")):
            print(letter.id, letter.reason, letter.event)
        await letters.requeue(Selection(group="storage", reason="ConnectionError"))
    """

    def __init__(self, stream: Stream) -> None:
        self.stream: Final = stream

    # --- looking ---------------------------------------------------------------------------------

    async def find(
        self,
        selection: Selection | None = None,
        *,
        newest_first: bool = False,
        after: LetterId | str | None = None,
    ) -> AsyncGenerator[DeadLetter, None]:
        """The selected letters of all shards, in the order in which they were given up.

        Args:
            selection: Default: all.
            newest_first: The other way round.
            after: Begin behind this one, in that order: how a page follows another.

        Raises:
            StreamNotFoundError: there is neither a letter nor the stream.
            ServerError: the server cannot be reached or refuses.

        Cost: XRANGE of up to 128 letters over all shards at a time, whether they are selected or
            not; only the times narrow down what is read. No more than that is held in memory.
        """
        behind = LetterId.parse(after) if isinstance(after, str) else after
        found = self._within(selection or Selection(), {}, newest_first, behind)
        async with aclosing(found):
            async for letter in found:
                yield letter

    async def show(self, letter_id: LetterId | str) -> DeadLetter:
        """One letter.

        Raises:
            ConfigError: the text is not the ID of a letter.
            LetterNotFoundError: it is not there (any more).
            ServerError: the server cannot be reached or refuses.
        """
        async with aclosing(self.find(Selection(ids=[letter_id]))) as found:
            async for letter in found:
                return letter
        raise LetterNotFoundError(f"stream {self.stream.name!r} has no dead letter {letter_id}")

    async def _within(
        self,
        selection: Selection,
        newest: dict[int, bytes],
        newest_first: bool = False,
        after: LetterId | None = None,
    ) -> AsyncGenerator[DeadLetter, None]:
        """The selected letters, and none added after those in ``newest``, where that is given."""
        await self._require()
        sign = -1 if newest_first else 1
        heads: list[tuple[tuple[int, ...], int, DeadLetter]] = []

        async with AsyncExitStack() as stack:
            sources: list[AsyncGenerator[DeadLetter, None]] = []

            async def put_next(number: int) -> None:
                async for letter in sources[number]:
                    order = tuple(sign * part for part in letter.id.order)
                    heapq.heappush(heads, (order, number, letter))
                    return

            for shard in range(self.stream.shards):
                last = newest.get(shard, b"+" if not newest else b"")
                if not last:
                    continue  # It had none when this was begun.
                source = self._of_shard(shard, selection, last, newest_first, after)
                sources.append(await stack.enter_async_context(aclosing(source)))
                await put_next(len(sources) - 1)
            while heads:
                _, number, letter = heapq.heappop(heads)
                yield letter
                await put_next(number)

    async def _of_shard(
        self,
        shard: int,
        selection: Selection,
        last: bytes,
        newest_first: bool,
        after: LetterId | None,
    ) -> AsyncGenerator[DeadLetter, None]:
        low: str | bytes = "-" if selection.start_ms is None else str(selection.start_ms)
        high: str | bytes = last
        if selection.end_ms is not None and (
            last == b"+" or selection.end_ms < EventId.parse(last).ms
        ):
            high = str(selection.end_ms)
        if selection.ids:
            async for letter in self._by_id(shard, selection, newest_first):
                yield letter
            return
        if after is not None:
            # Letters of other shards with the same entry ID stand before or behind it by shard.
            is_past = shard >= after.shard if newest_first else shard <= after.shard
            edge = f"({after.entry}" if is_past else after.entry
            low, high = (low, edge) if newest_first else (edge, high)
        count = max(1, DEAD_PAGE_LETTERS // self.stream.shards)
        key = self.stream.dead_key(shard)
        while True:
            span = ("XREVRANGE", key, high, low) if newest_first else ("XRANGE", key, low, high)
            rows = await self.stream.server.call(*span, "COUNT", count, key=key)
            for entry_id, fields in rows:
                letter = DeadLetter.read(shard, entry_id, fields)
                if selection.includes(letter):
                    yield letter
            if len(rows) < count:
                return
            edge = b"(" + rows[-1][0]
            low, high = (low, edge) if newest_first else (edge, high)

    async def _by_id(
        self, shard: int, selection: Selection, newest_first: bool
    ) -> AsyncGenerator[DeadLetter, None]:
        key = self.stream.dead_key(shard)
        wanted = sorted(
            (one for one in selection.ids if one.shard == shard),
            key=lambda one: one.order,
            reverse=newest_first,
        )
        for letter_id in wanted:
            entry = letter_id.entry
            for entry_id, fields in await self.stream.server.call(
                "XRANGE", key, entry, entry, key=key
            ):
                letter = DeadLetter.read(shard, entry_id, fields)
                if selection.includes(letter):
                    yield letter

    async def _require(self) -> None:
        for shard in range(self.stream.shards):
            key = self.stream.dead_key(shard)
            if await self.stream.server.call("EXISTS", key, key=key):
                return
        await self.stream.require()

    async def _newest(self) -> dict[int, bytes]:
        """The newest letter of each shard: what is given up later is not meant by a command."""
        found: dict[int, bytes] = {}
        for shard in range(self.stream.shards):
            key = self.stream.dead_key(shard)
            rows: list[Any] = await self.stream.server.call(
                "XREVRANGE", key, "+", "-", "COUNT", 1, key=key
            )
            found[shard] = rows[0][0] if rows else b""
        return found

    # --- requeueing and removing -----------------------------------------------------------------

    async def requeue(
        self,
        selection: Selection,
        *,
        count_max: int | None = None,
        requeues_max: int | None = REQUEUES_MAX,
        dry_run: bool = False,
    ) -> Requeued:
        """Put letters back: their groups' workers, and no others, get their events once more.

        Their deliveries are counted from 1 again; what was before stays known. What is given up
        while this runs is not meant.

        Args:
            selection: Which; an empty one means all of all groups.
            count_max: The oldest so many of them alone.
            requeues_max: Letters requeued so often already stay; None: no limit.
            dry_run: Only count.

        Raises:
            StreamNotFoundError: there is neither a letter nor the stream.
            ServerError: the server cannot be reached or refuses. Retryable; what was requeued
                until then is.

        Delivery: If the process dies here, each letter is either requeued or still a letter, never
            both and never neither: a second call does the rest.

        Cost: as :meth:`find`, and one script call per 128 letters of a shard and group.
        """
        outcome = Requeued()
        waiting: dict[tuple[int, str], list[str]] = {}
        left = count_max
        found = self._within(selection, await self._newest())
        async with aclosing(found):
            async for letter in found:
                if left is not None:
                    if not left:
                        break
                    left -= 1
                if not letter.is_usable or letter.group is None:
                    outcome.unusable += 1
                elif dry_run:
                    is_over = requeues_max is not None and letter.requeues >= requeues_max
                    outcome.over_limit += is_over
                    outcome.requeued += not is_over
                else:
                    place = (letter.id.shard, letter.group)
                    ids = waiting.setdefault(place, [])
                    ids.append(letter.id.entry)
                    if len(ids) >= DEAD_IDS_MAX:
                        await self._requeue(*place, waiting.pop(place), requeues_max, outcome)
        for (shard, group), ids in waiting.items():
            await self._requeue(shard, group, ids, requeues_max, outcome)
        return outcome

    async def _requeue(
        self, shard: int, group: str, ids: list[str], requeues_max: int | None, outcome: Requeued
    ) -> None:
        keys = (self.stream.dead_key(shard), self.stream.requeued_key(shard, group))
        limit = "" if requeues_max is None else requeues_max
        statuses: list[bytes] = await self.stream.server.run(
            script("requeue"), keys, group, limit, *ids
        )
        outcome.requeued += statuses.count(b"requeued")
        outcome.over_limit += statuses.count(b"limit")
        outcome.unusable += statuses.count(b"unusable")
        outcome.gone += statuses.count(b"gone")

    async def purge(self, selection: Selection, *, dry_run: bool = False) -> int:
        """Remove letters for good.

        Args:
            selection: Which; an empty one means all of all groups.
            dry_run: Only count.

        Returns:
            How many were removed, or would be.

        Raises:
            StreamNotFoundError: there is neither a letter nor the stream.
            ServerError: the server cannot be reached or refuses. Retryable; what was removed until
                then is.

        Cost: as :meth:`find`, and one XDEL per 128 letters of a shard.
        """
        removed = 0
        waiting: dict[int, list[str]] = {}
        found = self._within(selection, await self._newest())
        async with aclosing(found):
            async for letter in found:
                if dry_run:
                    removed += 1
                    continue
                ids = waiting.setdefault(letter.id.shard, [])
                ids.append(letter.id.entry)
                if len(ids) >= DEAD_IDS_MAX:
                    removed += await self._remove(letter.id.shard, waiting.pop(letter.id.shard))
        for shard, ids in waiting.items():
            removed += await self._remove(shard, ids)
        return removed

    async def _remove(self, shard: int, ids: list[str]) -> int:
        key = self.stream.dead_key(shard)
        count: int = await self.stream.server.call("XDEL", key, *ids, key=key)
        return count
