"""The lease of a shard: one process at a time archives it, compacts it, or lets go of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncGenerator
from typing import Final

from standpipe.archive.names import stem_of
from standpipe.archive.place import Place
from standpipe.errors import ArchiveInUseError, StandpipeError
from standpipe.event import EventId
from standpipe.keyspace import side_key
from standpipe.limits import ARCHIVE_FILE_STEM_BYTES_MAX, LEASE_MS, RENEWALS_PER_IDLE
from standpipe.stream import Stream
from standpipe.wire import script

log: Final = logging.getLogger("standpipe.archive")


def new_owner() -> str:
    """A name for this process in the leases it takes."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class LeaseLostError(Exception):
    """Another process has the shard by now; never leaves this package."""


class CursorGoneError(Exception):
    """The server has no cursor any more: it was detached, or the server lost data."""


class Lease:
    """A shard's lease, held by this process as far as it knows."""

    def __init__(self, stream: Stream, shard: int, owner: str, fence: int, ms: int) -> None:
        self.fence: Final = fence
        self.ms: Final = ms
        """How long it lasts without being renewed."""
        self.shard: Final = shard
        self._stream = stream
        self._owner = owner

    @property
    def mark(self) -> str:
        """Whose files are that are being written: those of this shard."""
        return f"{stem_of(self._stream.name, ARCHIVE_FILE_STEM_BYTES_MAX)}.{self.shard}"

    async def confirm(self) -> None:
        """Renew it.

        Raises:
            LeaseLostError: it is another's.
            ServerError: the server cannot be reached or refuses.
        """
        owner, fence, _ = await _call(
            self._stream, self.shard, "renew", self._owner, self.fence, self.ms
        )
        if (owner, fence) != (self._owner, self.fence):
            raise LeaseLostError

    async def set_cursor(self, at: EventId, *, is_new: bool = False) -> None:
        """Say on the server that all up to an entry is archived.

        Raises:
            LeaseLostError: the lease is another's.
            CursorGoneError: there is no cursor, and it should not be new.
            ServerError: the server cannot be reached or refuses.
        """
        key = _lease_key(self._stream, self.shard)
        done: int = await self._stream.server.run(
            script("archived"),
            (key, f"{key}:lasts", self._stream.archived_key(self.shard)),
            self._owner, self.fence, self.ms, at.entry, int(is_new),
        )  # fmt: skip
        if done == 0:
            raise LeaseLostError
        if done < 0:
            raise CursorGoneError

    async def keep_for(self, ms: int) -> None:
        """Leave the shard alone for so long, and let nobody else have it meanwhile."""
        await _call(self._stream, self.shard, "renew", self._owner, self.fence, max(1, ms))

    async def release(self) -> None:
        """Give it up."""
        await _call(self._stream, self.shard, "release", self._owner, self.fence, 0)


def _lease_key(stream: Stream, shard: int) -> str:
    return side_key(stream.keys[shard], "archive:lease")


async def _call(
    stream: Stream, shard: int, what: str, owner: str, fence: int, ms: int
) -> tuple[str, int, int]:
    key = _lease_key(stream, shard)
    found: tuple[bytes, int, int] = await stream.server.run(
        script("lease"), (key, f"{key}:lasts"), what, owner, fence, ms
    )
    return found[0].decode(), found[1], found[2]


async def look(stream: Stream, shard: int) -> tuple[str, int]:
    """Who archives a shard, and for how many ms more at least; ``""``: nobody."""
    owner, _, left_ms = await _call(stream, shard, "look", "", 0, 0)
    return owner, left_ms


async def take(stream: Stream, shard: int, owner: str, ms: int = LEASE_MS) -> Lease:
    """Take a shard's lease.

    Raises:
        ArchiveInUseError: it is another's; ``left_ms`` says how long at least.
        ServerError: the server cannot be reached or refuses.
    """
    found, fence, left_ms = await _call(stream, shard, "take", owner, 0, ms)
    if found != owner:
        raise ArchiveInUseError(
            f"shard {shard} of stream {stream.name!r} is archived by {found}", left_ms=left_ms
        )
    return Lease(stream, shard, owner, fence, ms)


async def commit(lease: Lease, place: Place, path: str, content: bytes) -> None:
    """Make a file of a shard count, if the lease is still held.

    Should it be lost in just this moment, the file counts all the same: it holds what the other
    process archives as well, and names tell which of the two is read.

    Raises:
        LeaseLostError: it is another's; the file does not count.
        ArchiveError, ServerError: the place or the server refuses or is out of reach.
    """
    await lease.confirm()
    try:
        await asyncio.to_thread(place.store, path, content, lease.mark)
    except FileNotFoundError:
        # Whoever has the shard by now has removed what was unfinished.
        raise LeaseLostError from None


@contextlib.asynccontextmanager
async def renewed(lease: Lease) -> AsyncGenerator[None]:
    """Renew a lease as long as the block runs.

    A renewal that fails is only logged: what counts is asked for when something is committed.
    """

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease.ms / RENEWALS_PER_IDLE / 1000)
            try:
                await lease.confirm()
            except LeaseLostError:
                return
            except StandpipeError as error:
                log.warning("the lease of shard %d was not renewed: %s", lease.shard, error)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
