"""One shard, from the archive and then from the live stream, without a gap and without an overlap.

The seam. Between two reads of ours the archiver may copy entries and the trimmer remove them. It
removes nothing behind the archive's cursor, and that moves only after the file is there. So behind
each page the cursor is asked for, in the same write: while it stands at or before the entry behind
which the page was read, nothing of the page can be missing for that reason. If it stands further,
the page is thrown away, and the archive is read up to where it has come by then. That goes on until
the live stream alone has what is behind the last entry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence, Sized
from typing import Any, Final, Generic, NamedTuple, TypeVar

from standpipe.archive import Archive, ArchivedTable, Undecodable
from standpipe.codec import ColumnsEntry, decode_entry
from standpipe.errors import DecodeError, ScriptMissingError, StandpipeError
from standpipe.event import Batch, Entry, EventId
from standpipe.limits import GAPS_KEPT_MAX, PAGE_COUNT, SEND_DEADLINE_MS
from standpipe.policy import backoff_ms
from standpipe.reader.archived import Reach, read_reach
from standpipe.reader.kept import Gap, Kept, Track
from standpipe.reader.points import BEGIN, SEQ_MAX, Bounds, entry_of, whole
from standpipe.reader.selecting import Choice
from standpipe.stream import Stream
from standpipe.wire import script

log: Final = logging.getLogger("standpipe.reader")

T = TypeVar("T")
Read = TypeVar("Read", bound=Sized)


async def retried(stream: Stream, call: Callable[[], Awaitable[T]]) -> T:
    """Call something until it succeeds, while its errors are retryable and for two minutes."""
    deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
    attempt = 0
    while True:
        try:
            return await call()
        except StandpipeError as error:
            attempt += 1
            await pause(stream, error, attempt, deadline)


async def pause(stream: Stream, error: StandpipeError, attempt: int, deadline: float) -> None:
    """Wait before the next try; raises the error if there is to be none."""
    if not error.retryable or time.monotonic() >= deadline:
        raise error
    if stream.server.is_cluster:
        await stream.server.refresh()
    wait_ms = backoff_ms(attempt)
    log.warning("%s; trying again in %d ms (%s)", error, wait_ms, error.hint)
    await asyncio.sleep(wait_ms / 1000)


async def read_kept(stream: Stream, shard: int) -> Kept:
    """What a shard has and had; see lua/kept.lua.

    Raises:
        ServerError: it cannot be reached for two minutes, or refuses.
    """
    keys = (stream.keys[shard], stream.archived_key(shard))
    return Kept.parse(await retried(stream, lambda: stream.server.run(script("kept"), keys)))


class Findings:
    """What the sources of a reader have met beside events."""

    def __init__(self, name: str, on_gap: Callable[[Gap], object] | None = None) -> None:
        self.undecodable = 0
        self.gaps: list[Gap] = []
        """The first GAPS_KEPT_MAX."""
        self.gaps_total = 0
        self._name = name
        self._on_gap = on_gap

    def add_gap(self, gap: Gap) -> None:
        log.warning("%s: %s", self._name, gap)
        self.gaps_total += 1
        if len(self.gaps) < GAPS_KEPT_MAX:
            self.gaps.append(gap)
        if self._on_gap is not None:
            self._on_gap(gap)

    def add_undecodable(self, shard: int, entry: EventId, reason: object) -> None:
        self.undecodable += 1
        log.warning("entry %s of shard %d: %s", entry.entry, shard, reason)


class Way(NamedTuple, Generic[Read]):
    """How the sources of one reading read, and what they make of it."""

    stream: Stream
    archive: Archive | None
    choice: Choice
    of_batch: Callable[[Batch], Read]
    """Of a page of the live stream."""
    of_archived: Callable[[ArchivedTable], Read]
    """Of a table of the archive's; called in a thread."""
    rows: int
    """Events per table of the archive's, at most."""
    is_ahead: bool
    """Whether the archive's next table is read while this one is used."""
    findings: Findings


class Source(Generic[Read]):
    """What one shard has between two bounds, page by page.

    Args:
        way: How it is read.
        shard: The shard's number.
        bounds: The first and the last event that are wanted.
    """

    def __init__(self, way: Way[Read], shard: int, bounds: Bounds) -> None:
        self.shard: Final = shard
        self.stream: Final = way.stream.name
        self._way = way
        self._key = way.stream.keys[shard]
        self._bounds = bounds
        self._behind = _before(bounds.start)
        """The entry up to which all has been given, or is not wanted."""
        self._archived: _Archived[Read] | None = None
        self._archive_end = BEGIN
        """Up to where the archive was read, or has nothing."""
        self._track = Track()
        self._is_first = True

    @property
    def behind(self) -> bytes:
        """The entry behind which the next read begins, as XREAD takes it."""
        return self._behind.entry.encode()

    def start_behind(self, newest: EventId) -> None:
        """Leave out all there is up to an entry."""
        self._behind = max(self._behind, newest)
        self._is_first = False

    async def next(self) -> Read | None:
        """The next page that has something wanted; None: there is no more for now.

        Raises:
            ServerError, ArchiveError: out of reach for two minutes, or refused.
            ArchiveDamagedError: a file cannot be read.
        """
        if self._is_first:
            if self._way.archive is not None:
                await self._open_archive()
            self._is_first = False
        while True:
            if self._archived is not None:
                found = await self._next_archived()
                if found is not None:
                    return found
                continue
            if self._behind[:2] >= self._bounds.end[:2]:
                return None
            rows, kept = await self._page()
            is_further = self._is_further(kept)
            if is_further and await self._open_archive():
                # What is archived may have been trimmed before the page was read.
                continue
            self._note(rows, kept, is_in_archive=is_further)
            if not rows:
                return None
            self._behind = entry_of(rows[-1][0])
            batch = self._bounds.cut(self._decoded(rows))
            if len(batch):
                found = self._way.of_batch(batch)
                if len(found):
                    return found

    async def close(self) -> None:
        """Close what is open; returns when no thread is at work for it any more."""
        archived, self._archived = self._archived, None
        if archived is not None:
            await archived.close()

    @property
    def _is_at_start(self) -> bool:
        """Whether nothing that is wanted has been passed."""
        return self._behind[:2] < self._bounds.start[:2]

    # --- the archive -----------------------------------------------------------------------------

    def _is_further(self, kept: Kept) -> bool:
        """Whether entries behind the last one are in the archive, and may be there alone."""
        if self._way.archive is None or kept.cursor is None:
            return False
        return kept.cursor > max(self._behind, self._archive_end)

    async def _open_archive(self) -> bool:
        """Begin to read what the archive has behind the last entry; False if that is nothing."""
        archive = self._way.archive
        assert archive is not None
        start = self._bounds.start if self._is_at_start else whole(self._behind)
        reach = await retried(
            self._way.stream,
            lambda: asyncio.to_thread(
                read_reach, archive, self._way.stream.name, self.shard, start, self._bounds.end
            ),
        )
        self._archive_end = max(self._archive_end, reach.end)
        if reach.end <= self._behind:
            return False
        for gap in reach.gaps:
            self._way.findings.add_gap(gap)
        self._archived = _Archived(self._way, self.shard, start, self._bounds.end, reach)
        return True

    async def _next_archived(self) -> Read | None:
        archived = self._archived
        assert archived is not None
        step = await retried(self._way.stream, archived.next)
        if step is None:
            self._behind = self._archive_end = archived.reached
            self._track.restart(archived.added)
            await self.close()
            return None
        for each in step.undecodable:
            self._way.findings.add_undecodable(self.shard, each.id, each.reason)
        return step.made

    # --- the live stream -------------------------------------------------------------------------

    async def _page(self) -> tuple[list[Any], Kept]:
        """The entries behind the last one, and what the server says of the shard right after."""
        first = self._bounds.start.entry if self._is_at_start else f"({self._behind.entry}"
        page = ("XRANGE", self._key, first, self._bounds.end_text, "COUNT", PAGE_COUNT)
        server, kept = self._way.stream.server, script("kept")
        keys = (self._key, self._way.stream.archived_key(self.shard))

        async def read() -> tuple[list[Any], Kept]:
            run = ("EVALSHA", kept.sha, 2, *keys)
            replies = await server.call_many([page, run], key=self._key)
            if isinstance(replies[1], ScriptMissingError):
                run = ("EVAL", kept.text, 2, *keys)
                replies = await server.call_many([page, run], key=self._key)
            for reply in replies:
                if isinstance(reply, StandpipeError):
                    raise reply
            return replies[0], Kept.parse(replies[1])

        return await retried(self._way.stream, read)

    def _note(self, rows: list[Any], kept: Kept, *, is_in_archive: bool) -> None:
        """Look whether entries were gone before this page was read.

        Args:
            rows: The page.
            kept: As the server answered behind it.
            is_in_archive: Whether the server says that entries behind the last one are archived,
                and the archive does not have them: it may be another one, or an older copy.
        """
        page = [entry_of(entry_id) for entry_id, _ in rows]
        found = self._track.missed(self._behind, page, kept, is_full=len(rows) == PAGE_COUNT)
        is_trimmed = kept.first is None or kept.first > self._behind
        if is_in_archive:
            assert kept.cursor is not None
            self._archive_end = kept.cursor
        if is_in_archive and is_trimmed:
            gap = Gap(self.shard, self._behind, kept.first, found and found[0], "archive")
        elif found is not None:
            entries, reason = found
            gap = Gap(self.shard, self._behind, page[0] if page else None, entries, reason)
        else:
            return
        self._way.findings.add_gap(gap)

    def _decoded(self, rows: list[Any]) -> Batch:
        entries: list[Entry] = []
        for entry_id, fields in rows:
            try:
                entry = decode_entry(entry_id, fields, self._way.stream.definition.layout)
                # Now, so that what cannot be read is left out here and not met by the caller.
                if isinstance(entry, ColumnsEntry):
                    entry.table()
                else:
                    entry.events()
            except DecodeError as error:
                self._way.findings.add_undecodable(self.shard, entry_of(entry_id), error)
                continue
            entries.append(entry)
        return Batch(entries, stream=self._way.stream.name, shard=self.shard)


# --- the archive of one shard --------------------------------------------------------------------


class _Step(NamedTuple, Generic[Read]):
    made: Read | None
    """None: there is nothing but entries that no codec reads."""
    undecodable: Sequence[Undecodable]
    last: EventId
    generation: int


class _Archived(Generic[Read]):
    """One pass over a shard's archive, in threads."""

    def __init__(
        self, way: Way[Read], shard: int, start: EventId, end: EventId, reach: Reach
    ) -> None:
        self._way = way
        self._shard = shard
        self._start = start
        self._end = end
        self._reach = reach
        self._tables: Iterator[ArchivedTable] | None = None
        self._ahead: asyncio.Future[_Step[Read] | None] | None = None
        self.reached = reach.end
        """Up to which entry all will have been given: what was archived when the reading began,
        or since."""
        self.added = reach.added
        """How many entries had ever been added up to it; None: not known."""

    async def next(self) -> _Step[Read] | None:
        """The next table, as it was made use of; None at the end.

        Raises:
            ArchiveError: after a retryable one the next call begins behind the last table.
        """
        while True:
            if self._ahead is None:
                self._ahead = self._begin()
            try:
                # A thread cannot be cancelled: close() waits for it.
                step = await asyncio.shield(self._ahead)
            except StandpipeError:
                self._tables = self._ahead = None
                raise
            self._ahead = None
            if step is None:
                return None
            is_newest = step.generation >= self._reach.generation
            if is_newest and step.last[:2] > self.reached[:2]:
                self.reached, self.added = step.last._replace(index=0), None
            self._start = step.last._replace(index=step.last.index + 1)
            if self._way.is_ahead:
                self._ahead = self._begin()
            if step.made is not None or step.undecodable:
                return step

    def _begin(self) -> asyncio.Future[_Step[Read] | None]:
        return asyncio.ensure_future(asyncio.to_thread(self._advance))

    def _advance(self) -> _Step[Read] | None:
        if self._tables is None:
            self._tables = self._open()
        table = next(self._tables, None)
        if table is None:
            return None
        made = self._way.of_archived(table) if len(table) else None
        return _Step(made, table.undecodable, table.last, table.generation)

    def _open(self) -> Iterator[ArchivedTable]:
        assert self._way.archive is not None
        return self._way.archive.read(
            self._way.stream.name,
            shard=self._shard,
            start=self._start,
            end=self._end,
            columns=self._way.choice.fields,
            keys=self._way.choice.keys,
            rows=self._way.rows,
        )

    async def close(self) -> None:
        step, self._ahead = self._ahead, None
        if step is not None:
            await asyncio.wait([step])
            if not step.cancelled():
                # What it could not read is nobody's any more.
                step.exception()
        tables: Any = self._tables
        self._tables = None
        if tables is not None:
            await asyncio.to_thread(tables.close)


def _before(event: EventId) -> EventId:
    """The entry before the one in which a start lies."""
    if event.seq:
        return EventId(event.ms, event.seq - 1)
    return EventId(event.ms - 1, SEQ_MAX) if event.ms else BEGIN
