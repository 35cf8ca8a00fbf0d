"""Where the archive of a shard goes on, whatever the server has been through.

The files are the truth of what is archived; what the server's cursor says only follows. Mostly the
archive goes on behind its last entry, which the server still has or has trimmed. But a server may
have been restored to an older state, failed over to a replica that lacked the end, or lost all: its
stream is then another one from some entry on, whose IDs may be lower than the archive's last. It is
told by that last entry, which is not there, or is another one. Then the entries that the server has
are compared with the archive's, from the oldest on, and those behind the last common one count as
new, in a generation of their own where their IDs would mingle with what is archived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from typing import Any, NamedTuple, cast

from standpipe.archive.gathering import Row, hash_of
from standpipe.archive.names import BEGIN, Chain
from standpipe.archive.reading import Archive
from standpipe.codec import decode_entry
from standpipe.errors import ArchiveNotFoundError, DecodeError, ReplyError, StandpipeError
from standpipe.event import Event, EventId
from standpipe.limits import ARCHIVE_PAGE_BYTES, ARCHIVE_PAGE_ENTRIES_MAX
from standpipe.stream import Stream
from standpipe.wire import Link


class Live(NamedTuple):
    """A shard on the server."""

    first: EventId | None
    """Its oldest entry; None: it is empty."""
    last_id: EventId
    """The highest ID that it ever gave, as far as it knows; BEGIN: the key is not there."""
    added: int | None
    """How many entries it was ever given; None: not known (before Redis 7)."""
    cursor: EventId | None
    """What its archive cursor says; None: there is none."""
    length: int


async def live(stream: Stream, shard: int) -> Live:
    """Look at a shard.

    Cost: XINFO STREAM and GET, in one round trip.
    """
    key = stream.keys[shard]
    info, cursor = await stream.server.call_many(
        [("XINFO", "STREAM", key), ("GET", stream.archived_key(shard))], key=key
    )
    if isinstance(cursor, StandpipeError):
        raise cursor
    at = None if cursor is None else EventId.parse(cursor)
    if isinstance(info, ReplyError) and "no such key" in str(info):
        return Live(None, BEGIN, None, at, 0)
    if isinstance(info, StandpipeError):
        raise info
    found = cast("dict[bytes, Any]", info)
    first = found[b"first-entry"]
    return Live(
        first=None if first is None else EventId.parse(first[0]),
        last_id=EventId.parse(found[b"last-generated-id"]),
        added=found.get(b"entries-added"),
        cursor=at,
        length=found[b"length"],
    )


class Position(NamedTuple):
    """Where a shard's archive goes on."""

    read_after: EventId
    """The entry of the server's behind which nothing is archived."""
    chain_end: EventId
    """Where the newest generation ends."""
    generation: int
    added: int | None = None
    """How many entries the server had been given up to ``read_after``; None: not known."""
    said: Sequence[str] = ()
    """What a person should know."""

    def begin(self, first: EventId) -> tuple[EventId, int]:
        """``after`` and generation of a file whose first entry is this one."""
        if first > self.chain_end:
            return self.chain_end, self.generation
        return self.read_after, self.generation + 1


async def find_position(stream: Stream, shard: int, archive: Archive, chain: Chain) -> Position:
    """Where the archive of a shard goes on.

    Cost: two round trips. Where the histories differ, reading all that is on the server up to the
        archive's end, and as much of the archive.
    """
    at = await live(stream, shard)
    if chain.end is None:
        elsewhere: tuple[str, ...] = ()
        if at.cursor is not None and at.cursor > BEGIN:
            elsewhere = (
                f"shard {shard} was archived up to {at.cursor.entry}, says the server, but nothing "
                f"of it is in {archive.place.shown}: is this another place? All that the server "
                "still has is archived here",
            )
        return Position(BEGIN, BEGIN, 0, 0, elsewhere)
    end = chain.end
    info = await asyncio.to_thread(archive.info, chain.pieces[-1].file)
    said: list[str] = []
    if at.cursor is not None and at.cursor > end and at.last_id >= at.cursor:
        said.append(
            f"shard {shard} was archived up to {at.cursor.entry}, says the server, but the files "
            f"end at {end.entry}: some are missing. What the server still has of it is archived"
        )
    if at.last_id >= end and (at.first is None or at.first > end):
        return Position(end, end, chain.generation, info.added, said)
    if at.last_id >= end:
        rows = await page(stream, shard, end, end, 1, is_first=True)
        if rows and hash_of(rows[0][1]) == info.last_hash:
            return Position(end, end, chain.generation, info.added, said)
    common, differs = await _last_common(stream, shard, archive, end)
    if not differs and at.last_id >= end:
        # The entry at the end was deleted by hand; all before it are those that are archived.
        return Position(end, end, chain.generation, info.added, said)
    if not differs:
        common = min(at.last_id, end)
    said.append(
        f"shard {shard} is archived up to {end.entry}, but on the server it is another stream from "
        f"behind {common.entry} on: was it restored to an older state? What was archived stays, "
        "and what is new there is archived as well"
    )
    return Position(common, end, chain.generation, None, said)


async def _last_common(
    stream: Stream, shard: int, archive: Archive, end: EventId
) -> tuple[EventId, bool]:
    """The last entry up to which the server has nothing that is not archived, and whether it has
    something behind it, up to the end of the archive."""
    common = BEGIN
    async for rows in pages(stream, shard, BEGIN, end):
        known = await asyncio.to_thread(archived_entries, archive, stream.name, shard, rows)
        for row in rows:
            id = EventId.parse(row[0])
            if not is_among(row, stream, known.get(id, ())):
                return common, True
            common = id
    return common, False


# --- comparing -----------------------------------------------------------------------------------

Fingerprint = tuple[Any, ...]
"""An entry's events, or its raw fields: equal for what is stored alike, whatever its layout."""


def is_among(row: Row, stream: Stream, known: Collection[Fingerprint]) -> bool:
    """Whether an entry as the server has it is one of those that are archived under its ID."""
    if not known:
        return False
    if tuple(row[1]) in known:
        return True  # One that could not be read when it was archived.
    try:
        events = decode_entry(row[0], row[1], stream.definition.layout).events()
    except DecodeError:
        return False
    return _of_events(events) in known


def _of_events(events: Iterable[Event]) -> Fingerprint:
    # repr tells 1 from 1.0, and holds a NaN, which is not equal to itself.
    return tuple(
        (event.key, event.time, tuple(sorted((n, repr(v)) for n, v in event.fields.items())))
        for event in events
    )


def archived_entries(
    archive: Archive, stream: str, shard: int, rows: Sequence[Row]
) -> dict[EventId, list[Fingerprint]]:
    """What is archived between the first and the last of some entries; by all generations."""
    first, last = EventId.parse(rows[0][0]), rows[-1][0].decode()
    events: dict[tuple[int, EventId], list[Event]] = {}
    found: dict[EventId, list[Fingerprint]] = {}
    try:
        for table in archive.read(stream, shard=shard, start=first, end=last):
            for raw in table.undecodable:
                found.setdefault(raw.id, []).append(tuple(raw.fields))
            for id, event in zip(table.ids(), table.events(), strict=True):
                entry = (table.generation, EventId(id.ms, id.seq))
                events.setdefault(entry, []).append(event)
    except ArchiveNotFoundError:
        return {}
    for (_, id), own in events.items():
        found.setdefault(id, []).append(_of_events(own))
    return found


# --- reading the server --------------------------------------------------------------------------


async def page(
    stream: Stream,
    shard: int,
    after: EventId,
    last: EventId,
    count: int,
    *,
    link: Link | None = None,
    is_first: bool = False,
) -> list[Row]:
    """Entries behind one (or from it on, with ``is_first``), up to another, inclusive."""
    key = stream.keys[shard]
    start = after.entry if is_first else f"({after.entry}"
    arguments = ("XRANGE", key, start, last.entry, "COUNT", count)
    found: Any
    if link is not None:
        found = await link.call(*arguments)
    else:
        found = await stream.server.call(*arguments, key=key)
    return found


async def pages(
    stream: Stream, shard: int, after: EventId, last: EventId
) -> AsyncGenerator[list[Row]]:
    """All entries behind one, up to another, as many at a time as make some megabytes."""
    link = await stream.server.link(stream.keys[shard])
    count = 1
    try:
        while rows := await page(stream, shard, after, last, count, link=link):
            after = EventId.parse(rows[-1][0])
            size = sum(len(value) for _, fields in rows for value in fields) // len(rows) + 64
            # Doubled at most: the next entries may be larger than these.
            count = max(1, min(ARCHIVE_PAGE_BYTES // size, 2 * count, ARCHIVE_PAGE_ENTRIES_MAX))
            yield rows
    finally:
        await link.close()
