"""Reader: looks at a stream without a group, from any point of time, and follows it.

Nothing is consumed: a reader has no place in any group and acknowledges nothing.
"""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from standpipe.archive import Archive, ArchivedTable
from standpipe.errors import ArchiveNotFoundError, ConfigError, NotKeptError
from standpipe.event import Batch, Event, EventId
from standpipe.limits import ARCHIVE_READ_ROWS, REPLAY_AHEAD_SHARDS_MAX, REPLAY_BATCH_ROWS
from standpipe.reader.archived import ArchivedShard, what_is_archived
from standpipe.reader.following import followed
from standpipe.reader.kept import Gap, Kept
from standpipe.reader.merging import merged_batches, merged_tables
from standpipe.reader.pace import Pace, PaceBy, Speed
from standpipe.reader.points import (
    BEGIN,
    Bounds,
    Point,
    first_event,
    last_event,
    shown_point,
    whole,
)
from standpipe.reader.selecting import Choice
from standpipe.reader.source import Findings, Source, Way, read_kept, retried
from standpipe.stream import Stream

if TYPE_CHECKING:
    import pyarrow as pa


log: Final = logging.getLogger("standpipe.reader")


class Reader:
    """Reads a stream in order, between two points, or from one onwards: the archive first, where
    one is given, then the live stream, each event once.

    Args:
        stream: The stream; opened if it is not.
        start: Where to begin: a time (ms since the epoch, ISO 8601, ``-2h``), an EventId or its
            text, ``-`` for the oldest entry, ``$`` for what comes from now on. Times are those at
            which the server added the entry; an event's own time may be earlier.
        end: Where to stop, inclusive; None or ``$``: at what is there when the reader gets to the
            end. An EventId is one event; the text of an entry ID without an index the whole entry.
        follow: Go on with what is added later, until the iteration is left.
        archive: Where older entries are: an Archive, a folder or a URL. None: live stream alone.
        keys: Events of these devices alone; None: of all.
        fields: These fields of each event, where it has them; None: all. Every event stays.
        speed: ``max``: as fast as it goes; 1: at the pace at which the entries were added, 10: ten
            times as fast.
        pace_by: ``event``: at the pace of the events' own times instead; one that is earlier than
            those before it comes at once. The order is the same.
        from_oldest: Begin at the oldest entry there is where ``start`` is older than that, instead
            of raising NotKeptError.
        after: Shard → event: begin there behind this event, whatever ``start`` says, to go on where
            another reader's :attr:`positions` were.
        until: Shard → event: stop there behind this event; with other shards left out altogether.
        on_gap: Called with each :class:`Gap` when it is found.

    Raises:
        ConfigError: a point is none of these, ``end`` is given with ``follow``, or another value is
            not allowed.

    The iteration raises, beside what :class:`Stream` does:
        StreamNotFoundError: the stream does not exist (unless ``follow``, or it is archived).
        NotKeptError: nothing as old as ``start`` is kept.
        ArchiveNotFoundError: the stream is archived, but not in this archive.
        ServerError, ArchiveError: out of reach for two minutes, or refused.

    Order: between two points the entries of all shards come merged in the order of their IDs, which
    is that of the times at which they were added; an event that was late comes where it was added.
    Following, in each shard's order as they arrive. Entries that no codec reads are counted in
    ``undecodable``, logged and left out.

    Delivery: a server or an archive that is away is waited for; nothing is given twice or left out.
    What was trimmed before the reader came to it is in :attr:`gaps`, as far as the server knows
    (Redis 6.2 does not count what it has added), and logged.

    Cost: XRANGE of 256 entries and a script per page and shard; of the archive a row group (32 MB
    at most) in memory per shard, two up to REPLAY_AHEAD_SHARDS_MAX shards. Following, also one
    XREAD over all shards, of one entry each.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        start: Point = "-",
        end: Point | None = None,
        follow: bool = False,
        archive: Archive | str | Path | None = None,
        keys: Collection[str] | None = None,
        fields: Collection[str] | None = None,
        speed: Speed = "max",
        pace_by: PaceBy = "entry",
        from_oldest: bool = False,
        after: Mapping[int, EventId] | None = None,
        until: Mapping[int, EventId] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
    ) -> None:
        if follow and end is not None:
            raise ConfigError("end is given with follow", hint="Give one of the two.")
        for name, names in (("keys", keys), ("fields", fields)):
            if isinstance(names, str):
                raise ConfigError(f"{name} is the text {names!r}", hint="Give a list of them.")
        if pace_by not in ("entry", "event"):
            raise ConfigError(f"pace_by is {pace_by!r}", hint="It is 'entry' or 'event'.")
        Pace(speed)
        self.stream: Final = stream
        self.positions: dict[int, EventId] = dict(after or {})
        """Shard → the last event that was given out."""
        self.reached: int | None = None
        """When the last entry that was given out was added, ms."""
        self.span: tuple[int, int] | None = None
        """Between which entry times, ms, there is something to read, as far as it is there at the
        beginning; None before that, or if there is nothing."""
        self._findings = Findings(stream.name, on_gap)
        self._options: dict[str, Any] = {
            "follow": follow, "archive": archive, "keys": keys, "fields": fields, "speed": speed,
            "pace_by": pace_by, "from_oldest": from_oldest,
        }  # fmt: skip
        self._follow = follow
        self._is_from_now = isinstance(start, str) and start.strip() == "$"
        self._bounds = Bounds(BEGIN if self._is_from_now else first_event(start), last_event(end))
        self._archive = archive
        self._choice = Choice(keys, fields)
        self._speed: Speed = speed
        self._pace_by: PaceBy = pace_by
        self._from_oldest = from_oldest
        self._after = dict(after or {})
        self._until = None if until is None else dict(until)

    def resumed(
        self,
        *,
        after: Mapping[int, EventId],
        start: EventId | None = None,
        end: EventId | None = None,
        until: Mapping[int, EventId] | None = None,
    ) -> Reader:
        """A reader as this one, that goes on elsewhere; gaps and ``undecodable`` are shared.

        Args:
            after: As for a new one.
            until: Likewise, and then it does not follow; default: this one's.
            start: Of shards that are not in ``after``; default: this one's.
            end: Default: this one's.
        """
        options: dict[str, Any] = {**self._options, "follow": self._follow and until is None}
        ends = self._until if until is None else until
        found = Reader(self.stream, after=after, until=ends, **options)
        found._bounds = Bounds(
            self._bounds.start if start is None else start, self._bounds.end if end is None else end
        )
        found._is_from_now = self._is_from_now and not after
        found._findings = self._findings
        return found

    async def begins(self) -> dict[int, EventId]:
        """Shard → event behind which it begins, whatever ``start`` says: ``after``, and of one that
        begins with what comes from now on the newest of each shard, so that another reader can go
        on where nothing has come yet.

        Cost: nothing, or a script per shard.
        """
        if not self._is_from_now:
            return dict(self._after)
        opened_here = not self.stream.is_open
        await self.stream.open()
        try:
            kept = {n: await read_kept(self.stream, n) for n in range(self.stream.shards)}
        finally:
            if opened_here:
                await self.stream.close()
        return {n: whole(each.newest) for n, each in kept.items()} | self._after

    @property
    def bounds(self) -> Bounds:
        """The first and the last event that are wanted."""
        return self._bounds

    @property
    def is_following(self) -> bool:
        """Whether it goes on with what is added later."""
        return self._follow

    @property
    def undecodable(self) -> int:
        """Entries that no codec reads, so far."""
        return self._findings.undecodable

    @property
    def gaps(self) -> Sequence[Gap]:
        """Where entries were gone before the reader came to them; the first GAPS_KEPT_MAX."""
        return self._findings.gaps

    @property
    def gaps_total(self) -> int:
        return self._findings.gaps_total

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """What is read as batches of one shard each: events with their IDs, or a table."""
        pace = Pace(self._speed)

        def of_archived(table: ArchivedTable) -> Batch:
            batch = table.batch()
            # Decoded here, in its thread, and kept.
            _ = batch.events
            return batch

        way = self._way(self._choice.of, of_archived, REPLAY_BATCH_ROWS)
        async with aclosing(self._read(way, merged_batches)) as found:
            async for batch in found:
                if pace.is_flat_out:
                    self._give(batch)
                    yield batch
                    continue
                for part, at in _paced(batch, pace, self._pace_by):
                    await pace.wait(at)
                    self._give(part)
                    yield part

    async def tables(self, *, rows: int = ARCHIVE_READ_ROWS) -> AsyncGenerator[pa.Table, None]:
        """What is read as pyarrow tables: ``shard``, ``entry_ms``, ``entry_seq``, ``index``,
        ``key``, ``time`` (int64, ms), then one column per field.

        A field that an event does not have is null. Columns may differ from table to table, where
        entries do; ``pa.concat_tables(…, promote_options="permissive")`` puts them together. A
        field with the name of one of the first columns has an underscore before it.

        Args:
            rows: Of a table of the archive's, at most; one over several shards may have more.

        Cost: the archive gives millions of events per second; the live stream what decoding takes.
        """
        if rows < 1:
            raise ConfigError(f"rows is {rows}", hint="It is at least 1.")
        pace = Pace(self._speed)
        way = self._way(self._choice.table, _table_of, rows)
        async with aclosing(self._read(way, merged_tables)) as found:
            async for table in found:
                if pace.is_flat_out:
                    self._give_table(table)
                    yield table
                    continue
                column = "time" if self._pace_by == "event" else "entry_ms"
                times: list[int] = table.column(column).to_pylist()
                for start, stop in pace.cuts(times):
                    await pace.wait(times[start])
                    part = table.slice(start, stop - start)
                    self._give_table(part)
                    yield part

    # --- reading ---------------------------------------------------------------------------------

    def _way(self, of_batch: Any, of_archived: Any, rows: int) -> Way[Any]:
        archive = self._archive
        return Way(
            stream=self.stream,
            archive=archive
            if archive is None or isinstance(archive, Archive)
            else Archive(archive),
            choice=self._choice,
            of_batch=of_batch,
            of_archived=of_archived,
            rows=rows,
            is_ahead=False,
            findings=self._findings,
        )

    async def _read(self, way: Way[Any], merge: Callable[..., Any]) -> AsyncGenerator[Any, None]:
        opened_here = not self.stream.is_open
        await self.stream.open()
        sources: list[Source[Any]] = []
        try:
            sources = await self._sources(way)
            if not self._is_from_now:
                async with aclosing(merge(sources)) as merged:
                    async for found in merged:
                        yield found
            if self._follow:
                async with aclosing(followed(self.stream, sources)) as arriving:
                    async for found in arriving:
                        yield found
        finally:
            for source in sources:
                await source.close()
            if opened_here:
                await self.stream.close()

    async def _sources(self, way: Way[Any]) -> list[Source[Any]]:
        shards = range(self.stream.shards) if self._until is None else sorted(self._until)
        way = way._replace(is_ahead=len(shards) <= REPLAY_AHEAD_SHARDS_MAX)
        kept = {shard: await read_kept(self.stream, shard) for shard in shards}
        archived: dict[int, ArchivedShard] = {}
        if way.archive is not None:
            archive, name = way.archive, self.stream.name
            archived = await retried(
                self.stream,
                lambda: asyncio.to_thread(what_is_archived, archive, name),
            )
            self._require_right_archive(archive, kept, archived)
        if not self._follow and not archived:
            await self.stream.require()
        self._note_span(kept, archived)
        if not self._is_from_now:
            self._require_kept(kept, archived)
        sources = [Source(way, shard, self._bounds_of(shard)) for shard in shards]
        if self._is_from_now:
            for source in sources:
                if source.shard not in self._after:
                    source.start_behind(kept[source.shard].newest)
        return sources

    def _bounds_of(self, shard: int) -> Bounds:
        bounds = self._bounds
        if (after := self._after.get(shard)) is not None:
            bounds = bounds._replace(start=after._replace(index=after.index + 1))
        if self._until is not None:
            bounds = bounds._replace(end=min(bounds.end, self._until[shard]))
        return bounds

    # --- what is kept ----------------------------------------------------------------------------

    def _require_right_archive(
        self, archive: Archive, kept: Mapping[int, Kept], archived: Mapping[int, ArchivedShard]
    ) -> None:
        """Raise if the stream is archived, but elsewhere: that would be left out unseen."""
        if max(archived, default=0) >= self.stream.shards:
            raise ConfigError(
                f"stream {self.stream.name!r} has {self.stream.shards} shards on "
                f"{self.stream.server.address.shown}, and {max(archived) + 1} in "
                f"{archive.place.shown}",
                hint="Is it the right server? One that lost its data has to be told the shards "
                "(shards=…).",
            )
        cursors = [each.cursor for each in kept.values() if each.cursor is not None]
        if cursors and not archived:
            raise ArchiveNotFoundError(
                f"stream {self.stream.name!r} is archived up to {max(cursors).entry}, but nothing "
                f"of it is in {archive.place.shown}"
            )

    def _note_span(self, kept: Mapping[int, Kept], archived: Mapping[int, ArchivedShard]) -> None:
        oldest = [at for at in map(_oldest, *_side_by_side(kept, archived)) if at is not None]
        newest = [each.newest for each in kept.values()]
        newest += [each.end for each in archived.values()]
        if oldest:
            first = max(self._bounds.start, min(oldest))
            last = min(self._bounds.end, max(newest))
            self.span = first.ms, max(first.ms, last.ms)

    def _require_kept(
        self, kept: Mapping[int, Kept], archived: Mapping[int, ArchivedShard]
    ) -> None:
        """Say what is missing before the oldest entries, if something is.

        Raises:
            NotKeptError: nothing as old as the start is kept of any shard.
        """
        start = self._bounds.start
        if start == BEGIN:
            return
        oldest = {shard: _oldest(kept[shard], archived.get(shard)) for shard in kept}
        lacking = [
            shard
            for shard in kept
            if shard not in self._after
            and (archived[shard].lacks(start) if shard in archived else kept[shard].lacks(start))
        ]
        if not lacking:
            return
        is_older_there = any(each is not None and each[:2] <= start[:2] for each in oldest.values())
        if not is_older_there:
            if not self._from_oldest:
                raise self._not_kept(kept, archived)
            # Asked for: it is no gap then.
            log.warning("%s; that is where this begins", self._not_kept(kept, archived))
            return
        for shard in lacking:
            after = start._replace(index=0)
            self._findings.add_gap(Gap(shard, after, oldest[shard], None, "trimmed"))

    def _not_kept(
        self, kept: Mapping[int, Kept], archived: Mapping[int, ArchivedShard]
    ) -> NotKeptError:
        start = self._bounds.start
        live = min((each.first for each in kept.values() if each.first is not None), default=None)
        old = min((each.first for each in archived.values()), default=None)
        places: list[str] = []
        if self._archive is not None:
            where = getattr(getattr(self._archive, "place", None), "shown", self._archive)
            places.append(f"the archive {where} begins at {shown_point(old)}")
        places.append(f"the live stream begins at {shown_point(live)}")
        cursors = [each.cursor for each in kept.values() if each.cursor is not None]
        hint = None
        if self._archive is None and cursors:
            hint = (
                f"It is archived up to {max(cursors).entry}: give the archive (--archive). Or ask "
                "for that time or a later one, or pass --from-oldest (from_oldest=True)."
            )
        return NotKeptError(
            f"stream {self.stream.name!r} has nothing as old as {shown_point(start)} any more: "
            + ", ".join(places),
            oldest=min((each for each in (live, old) if each is not None), default=None),
            hint=hint,
        )

    # --- giving out ------------------------------------------------------------------------------

    def _give(self, batch: Batch) -> None:
        last = batch.entries[-1]
        self.positions[batch.shard] = last.id._replace(index=last.id.index + last.count - 1)
        self.reached = last.id.ms

    def _give_table(self, table: pa.Table) -> None:
        import pyarrow.compute as pc

        self.reached = table.column("entry_ms")[-1].as_py()
        for shard in pc.unique(table.column("shard")).to_pylist():
            rows = table
            if table.column("shard")[0].as_py() != shard or self.stream.shards > 1:
                rows = table.filter(pc.equal(table.column("shard"), shard))
            ms, seq, index = (
                rows.column(name)[-1].as_py() for name in ("entry_ms", "entry_seq", "index")
            )
            self.positions[shard] = EventId(ms, seq, index)


def _table_of(table: ArchivedTable) -> pa.Table:
    return table.table


def _side_by_side(
    kept: Mapping[int, Kept], archived: Mapping[int, ArchivedShard]
) -> tuple[list[Kept], list[ArchivedShard | None]]:
    return list(kept.values()), [archived.get(shard) for shard in kept]


def _oldest(kept: Kept, archived: ArchivedShard | None) -> EventId | None:
    return kept.first if archived is None else archived.first


def _paced(batch: Batch, pace: Pace, by: PaceBy) -> list[tuple[Batch, int]]:
    """A batch in parts that are due at different times."""
    if by == "event":
        times = [event.time for event in batch.events]
    else:
        times = [entry.id.ms for entry in batch.entries for _ in range(entry.count)]
    return [(batch.part(start, stop)[0], times[start]) for start, stop in pace.cuts(times)]
