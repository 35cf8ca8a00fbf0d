"""Archiver: turns what is new in each shard into files, and keeps the server's cursor behind them.

A turn at a shard: take its lease, find out where the archive goes on, read from there to the end
that the shard had when the turn began, write files, and after each of them set the cursor. A file
counts from the moment in which it gets its name. Whatever dies at whatever point, the next turn
begins behind the last file that is there; what was read and not written is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Generator, Iterable
from contextlib import aclosing
from typing import Final

import msgspec

from standpipe.archive.file import Draft, build
from standpipe.archive.gathering import Gathering
from standpipe.archive.history import Live, Position, find_position, live, pages
from standpipe.archive.lease import (
    CursorGoneError,
    Lease,
    LeaseLostError,
    commit,
    new_owner,
    renewed,
    take,
)
from standpipe.archive.merging import clean, merge_small
from standpipe.archive.names import file_path, resolve
from standpipe.archive.reading import Archive
from standpipe.errors import ArchiveDamagedError, ArchiveInUseError, ConfigError, StandpipeError
from standpipe.event import EventId
from standpipe.limits import (
    ARCHIVE_EVERY_MS,
    ARCHIVE_EVERY_MS_MIN,
    ARCHIVE_FILE_ROWS_MAX,
    LEASE_LOOK_MS,
    LEASE_MS,
    LEASE_MS_MIN,
)
from standpipe.policy import handler_backoff_ms
from standpipe.stream import Stream

log: Final = logging.getLogger("standpipe.archive")


class ArchiverStats(msgspec.Struct):
    """What an archiver has done so far."""

    files: int = 0
    entries: int = 0
    events: int = 0
    undecodable: int = 0
    """Entries that no codec reads, kept with their raw fields."""
    bytes: int = 0
    """Of the files."""
    merged: int = 0
    """Files that were put together into larger ones."""
    said: list[str] = msgspec.field(default_factory=list[str])
    """What a person should know: each is logged as a warning as well."""


class Archiver:
    """Archives a stream.

    Args:
        stream: The stream; opened if it is not.
        archive: Where to.
        every_ms: With ``follow``: how often what is new is archived, at least 1 s; default 60 s.
        rows_max: Events per file, at most, but for a larger entry.
        merge: Whether the files of an hour that is over are put together.
        lease_ms: How long a shard stays with an archiver that is not heard of any more.

    Raises:
        ConfigError: a number is too small.

    Several processes may archive one stream: a shard is one's at a time, by lease.

    Delivery:
        Each entry is in the archive once, whatever dies: see the module's description. While a
        shard has its cursor, the trimmer leaves what is not archived.
    """

    def __init__(
        self,
        stream: Stream,
        archive: Archive,
        *,
        every_ms: int = ARCHIVE_EVERY_MS,
        rows_max: int = ARCHIVE_FILE_ROWS_MAX,
        merge: bool = True,
        lease_ms: int = LEASE_MS,
    ) -> None:
        if every_ms < ARCHIVE_EVERY_MS_MIN:
            raise ConfigError(
                f"every is {every_ms} ms", hint=f"It is at least {ARCHIVE_EVERY_MS_MIN} ms."
            )
        if rows_max < 1:
            raise ConfigError(f"rows_max is {rows_max}", hint="It is at least 1.")
        if lease_ms < LEASE_MS_MIN:
            raise ConfigError(f"lease_ms is {lease_ms}", hint=f"It is at least {LEASE_MS_MIN} ms.")
        self.stream: Final = stream
        self.archive: Final = archive
        self.stats: Final = ArchiverStats()
        self.owner: Final = new_owner()
        self._every_ms: Final = every_ms
        self._rows_max: Final = rows_max
        self._merge: Final = merge
        self._lease_ms: Final = lease_ms
        self._stop = asyncio.Event()
        self._kept: dict[int, Lease] = {}
        """Those that keep shards from being looked at again too soon."""

    def stop(self) -> None:
        """End :meth:`run` after the file in progress."""
        self._stop.set()

    async def run(self, *, follow: bool = False) -> ArchiverStats:
        """Archive all that is in the stream now; with ``follow`` also what comes, until stopped.

        A shard whose cursor is removed meanwhile (``detach --force``) is left there until the next
        turn, without ``follow`` until the next run; ``said`` has it.

        Raises:
            StreamNotFoundError: without ``follow``: it does not exist.
            ArchiveError, ServerError: the place or the server refuses; without ``follow`` also
                when it is out of reach (retryable).

        Cost: per turn and shard some eight round trips and a listing of the archive, and XRANGE of
            about 4 MB each for what is new.
        """
        opened_here = not self.stream.is_open
        await self.stream.open()
        try:
            if follow:
                try:
                    await self._follow()
                finally:
                    for lease in self._kept.values():
                        await self._let_go(lease, 0)
            else:
                await self.stream.require()
                await self._once()
        finally:
            if opened_here:
                await self.stream.close()
        return self.stats

    async def _once(self) -> None:
        """Archive each shard up to its present end, or see another process do it."""
        goals = {n: (await live(self.stream, n)).last_id for n in range(self.stream.shards)}
        while goals and not self._stop.is_set():
            waits: list[int] = []
            for shard in _shuffled(goals):
                if self._stop.is_set():
                    return
                try:
                    await self.turn(shard)
                    del goals[shard]
                except ArchiveInUseError as error:
                    cursor = (await live(self.stream, shard)).cursor
                    if cursor is not None and cursor >= goals[shard]:
                        del goals[shard]
                    waits.append(error.left_ms)
            if goals:
                await self._pause(min(LEASE_LOOK_MS, *waits))

    async def _follow(self) -> None:
        due = dict.fromkeys(range(self.stream.shards), 0.0)
        failures = 0
        while not self._stop.is_set():
            for shard in _shuffled(due):
                if self._stop.is_set() or due[shard] > time.monotonic():
                    continue
                try:
                    await self.turn(shard, keep_ms=self._every_ms)
                    due[shard] = time.monotonic() + self._every_ms / 1000
                    failures = 0
                except ArchiveInUseError as error:
                    due[shard] = time.monotonic() + max(1, error.left_ms) / 1000
                except StandpipeError as error:
                    if not error.retryable:
                        raise
                    failures += 1
                    wait_ms = handler_backoff_ms(failures)
                    due[shard] = time.monotonic() + wait_ms / 1000
                    log.warning(
                        "%s; trying again in %d ms (%s)", error.message, wait_ms, error.hint
                    )
                    if self.stream.server.is_cluster:
                        await self.stream.server.refresh()
            left = min(due.values()) - time.monotonic()
            # Not all processes at the same moment, or the first would get all shards every time.
            await self._pause(left * 1000 + random.uniform(1, 50))

    async def _pause(self, ms: float) -> None:
        try:
            async with asyncio.timeout(max(1.0, ms) / 1000):
                await self._stop.wait()
        except TimeoutError:
            return

    async def merge(self, *, everything: bool = False) -> int:
        """Put small files together; how many were.

        Args:
            everything: Those of the newest hour as well, to which more may be added.

        Raises:
            ArchiveInUseError: another process archives a shard.
            ArchiveError, ServerError: as :meth:`run`.
        """
        for shard in await asyncio.to_thread(self.archive.shards, self.stream.name):
            lease = await take(self.stream, shard, self.owner, self._lease_ms)
            try:
                async with renewed(lease):
                    chains = await asyncio.to_thread(self.archive.chains, self.stream.name)
                    await asyncio.to_thread(clean, self.archive, chains[shard])
                    self.stats.merged += await merge_small(
                        self.archive, self.stream.name, lease, everything=everything
                    )
            except LeaseLostError:
                raise _taken_over(self.stream, shard) from None
            finally:
                await self._let_go(lease, 0)
        return self.stats.merged

    # --- one turn --------------------------------------------------------------------------------

    async def turn(self, shard: int, *, keep_ms: int = 0) -> None:
        """Archive what is new in a shard.

        Args:
            shard: Its number.
            keep_ms: For how long nobody need look at it again: others leave it alone until then.

        Raises:
            ArchiveInUseError: another process has it.
            ArchiveError, ServerError: as :meth:`run`.
        """
        lease = await take(self.stream, shard, self.owner, self._lease_ms)
        try:
            async with renewed(lease):
                await self._turn(lease)
        except LeaseLostError:
            # Whoever has it goes on from the files. This process was not heard of for too long.
            log.warning("shard %d was taken over by another process", shard)
            raise _taken_over(self.stream, shard) from None
        except BaseException:
            await self._let_go(lease, 0)
            raise
        await self._let_go(lease, 0 if self._stop.is_set() else keep_ms)

    async def _let_go(self, lease: Lease, keep_ms: int) -> None:
        try:
            if keep_ms:
                self._kept[lease.shard] = lease
                await lease.keep_for(keep_ms)
            else:
                await lease.release()
        except StandpipeError as error:
            # It ends by itself.
            log.warning("the lease of shard %d was not given back: %s", lease.shard, error.message)

    async def _turn(self, lease: Lease) -> None:
        shard, stream = lease.shard, self.stream
        await asyncio.to_thread(self.archive.place.clear, lease.mark)
        chains = await asyncio.to_thread(self.archive.chains, stream.name)
        chain = chains.get(shard) or resolve(())
        with self._saying_damage():
            await asyncio.to_thread(clean, self.archive, chain)
        position = await find_position(stream, shard, self.archive, chain)
        for text in position.said:
            self._say(text)
        await lease.set_cursor(position.read_after, is_new=True)
        try:
            await self._read(lease, position)
            if self._merge and not self._stop.is_set():
                with self._saying_damage():
                    self.stats.merged += await merge_small(self.archive, stream.name, lease)
        except CursorGoneError:
            self._say(
                f"the archive cursor of shard {shard} is gone: it was detached, or the server lost "
                "data. The next turn looks where to go on"
            )

    async def _read(self, lease: Lease, position: Position) -> None:
        shard, stream = lease.shard, self.stream
        at = await live(stream, shard)
        gathering = Gathering(
            stream.name,
            shard,
            stream.definition.layout,
            after=position.read_after,
            generation=position.generation,
            rows_max=self._rows_max,
        )
        is_first = True
        async with aclosing(pages(stream, shard, position.read_after, at.last_id)) as found:
            async for rows in found:
                if is_first:
                    is_first = False
                    first = EventId.parse(rows[0][0])
                    gathering.after, gathering.generation = position.begin(first)
                    self._count(gathering, position, at)
                # In a thread, so that the lease is renewed meanwhile.
                for draft in await asyncio.to_thread(gathering.add, rows):
                    await self._commit(lease, draft)
                if self._stop.is_set():
                    break
        for draft in await asyncio.to_thread(gathering.finish):
            await self._commit(lease, draft)

    def _count(self, gathering: Gathering, position: Position, at: Live) -> None:
        """See whether entries were removed from the stream before they were archived."""
        gathering.added = position.added
        if at.added is not None and at.first is not None and at.first > position.read_after:
            # Nothing that is archived is on the server any more: before what it has it was given
            # so many.
            gathering.added = at.added - at.length
            if position.added is not None and gathering.added >= position.added:
                gathering.lost = gathering.added - position.added
        elif position.added is not None:
            gathering.lost = 0
        if gathering.lost:
            self._say(
                f"shard {gathering.shard}: {gathering.lost:,} entries behind "
                f"{position.read_after.entry} were removed from the stream before they were "
                "archived"
            )

    async def _commit(self, lease: Lease, draft: Draft) -> None:
        """Make a draft a file, and move the cursor behind it."""
        info, content = await asyncio.to_thread(build, draft)
        last = EventId.parse(info.last)
        path = file_path(
            draft.stream,
            shard=draft.shard,
            generation=draft.generation,
            after=draft.after,
            first=EventId.parse(info.first),
            last=last,
            content=content,
        )
        await commit(lease, self.archive.place, path, content)
        self.stats.files += 1
        self.stats.entries += info.entries
        self.stats.events += info.events
        self.stats.undecodable += info.undecodable
        self.stats.bytes += len(content)
        await lease.set_cursor(last)

    @contextlib.contextmanager
    def _saying_damage(self) -> Generator[None]:
        """Older files that are damaged must not keep new events from being archived."""
        try:
            yield
        except ArchiveDamagedError as error:
            self._say(f"{error.message} ({error.hint})")

    def _say(self, text: str) -> None:
        log.warning("%s", text)
        self.stats.said.append(text)


def _taken_over(stream: Stream, shard: int) -> ArchiveInUseError:
    text = f"shard {shard} of stream {stream.name!r} was taken over by another process"
    return ArchiveInUseError(text, left_ms=LEASE_MS)


def _shuffled(shards: Iterable[int]) -> list[int]:
    # Each process in an order of its own, so that they do not queue up at the same shards.
    found = list(shards)
    random.shuffle(found)
    return found
