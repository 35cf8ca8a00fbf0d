"""How far the archive of a stream is, and letting a stream go from it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from standpipe.archive.history import live, pages
from standpipe.archive.lease import Lease, look, new_owner, take
from standpipe.archive.names import BEGIN, resolve
from standpipe.archive.reading import Archive
from standpipe.errors import ArchiveInUseError
from standpipe.event import EventId
from standpipe.limits import MOVE_COUNT_MAX
from standpipe.stream import Stream


class ArchivedShard(msgspec.Struct, frozen=True):
    """The archive of one shard."""

    shard: int
    files: int
    first: str | None
    """The oldest archived entry; None: nothing is archived."""
    last: str | None
    """Up to where the newest generation is archived."""
    generations: int
    """More than 1: the server's entry IDs went back, as it was restored to an older state."""
    gaps: int
    cursor: str | None
    """What the server says; None: it has no cursor, and trimming does not wait for the archive."""
    owner: str | None
    """Who archives it just now, or is the next to; None: nobody."""
    not_yet: int
    """Entries on the server that are not archived."""
    is_at_least: bool
    """Whether ``not_yet`` stopped counting there."""
    behind_ms: int | None
    """How much older the archive's last entry is than the newest one; None: nothing is archived."""


async def status(archive: Archive, stream: Stream) -> list[ArchivedShard]:
    """What is archived of each shard of an open stream, and what is not yet.

    Raises:
        ArchiveError, ServerError: the place or the server cannot be reached.

    Cost: a listing of the archive; per shard three commands, and XRANGE of what is not archived, up
        to 10 000 entries.
    """
    chains = await asyncio.to_thread(archive.chains, stream.name)
    found: list[ArchivedShard] = []
    for shard in range(stream.shards):
        chain = chains.get(shard) or resolve(())
        at = await live(stream, shard)
        owner, _ = await look(stream, shard)
        end = chain.end
        first = min((piece.file.first for piece in chain.pieces), default=None)
        count = await _count(stream, shard, end or BEGIN, at.last_id)
        found.append(
            ArchivedShard(
                shard=shard,
                files=len(chain.pieces),
                first=None if first is None else first.entry,
                last=None if end is None else end.entry,
                generations=len({piece.file.generation for piece in chain.pieces}),
                gaps=len(chain.gaps),
                cursor=None if at.cursor is None else at.cursor.entry,
                owner=owner or None,
                not_yet=min(count, MOVE_COUNT_MAX),
                is_at_least=count > MOVE_COUNT_MAX,
                behind_ms=None if end is None else max(0, at.last_id.ms - end.ms),
            )
        )
    return found


async def _count(stream: Stream, shard: int, after: EventId, last: EventId) -> int:
    count = 0
    if last > after:
        async with aclosing(pages(stream, shard, after, last)) as found:
            async for rows in found:
                count += len(rows)
                if count > MOVE_COUNT_MAX:
                    break
    return count


async def detach(stream: Stream, *, force: bool = False) -> list[tuple[int, str]]:
    """Let a stream go from its archive: trimming waits for it no more.

    The files stay. Whoever archives the stream again goes on where they end, as long as the server
    still has it.

    Args:
        stream: The open stream.
        force: Even while somebody archives it, which would only bring the cursor back.

    Returns:
        The shards that had a cursor, and where it stood.

    Raises:
        ArchiveInUseError: a shard is being archived, and it is not forced; nothing is changed.
        ServerError: the server cannot be reached or refuses.
    """
    owner = new_owner()
    leases: list[Lease] = []
    removed: list[tuple[int, str]] = []
    try:
        for shard in range(stream.shards):
            try:
                leases.append(await take(stream, shard, owner))
            except ArchiveInUseError as error:
                if not force:
                    raise ArchiveInUseError(
                        error.message,
                        left_ms=error.left_ms,
                        hint="Stop `standpipe archive run` first, or it would bring the cursor "
                        "back; --force removes it all the same.",
                    ) from None
        for shard in range(stream.shards):
            key = stream.archived_key(shard)
            at = (await live(stream, shard)).cursor
            if at is not None and await stream.server.call("DEL", key, key=key):
                removed.append((shard, at.entry))
    finally:
        for lease in leases:
            await lease.release()
    return removed
