"""Whether an archive holds what it should: the files by themselves, and against the live stream."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from standpipe.archive.history import archived_entries, is_among, live, pages
from standpipe.archive.merging import check_digest
from standpipe.archive.names import (
    BEGIN,
    ArchiveFile,
    Chain,
    parse_path,
    resolve,
    stream_folder,
)
from standpipe.archive.reading import Archive
from standpipe.errors import ArchiveDamagedError, ArchiveNotFoundError
from standpipe.event import EventId
from standpipe.limits import ARCHIVE_FINDINGS_MAX
from standpipe.stream import Stream

Kind = Literal[
    "gap", "overlap", "damaged", "foreign", "differs", "missing", "cursor",
    "lost", "superseded",
]  # fmt: skip

HARMLESS: Final = frozenset({"lost", "superseded"})
"""Nothing is wrong with the archive: entries were gone before they were archived, or a file that
does not count any more will be removed by the next who archives the shard."""


class Finding(msgspec.Struct, frozen=True):
    """Something that :func:`verify` found."""

    kind: Kind
    shard: int | None
    text: str
    path: str | None = None
    """The file that it is about, below the archive's folder or URL."""

    @property
    def is_harmless(self) -> bool:
        return self.kind in HARMLESS


class Verified(msgspec.Struct):
    """What was looked at, and what was found."""

    files: int = 0
    bytes: int = 0
    entries: int = 0
    events: int = 0
    live_entries: int = 0
    """Entries on the server that were compared with the archive."""
    not_yet: int = 0
    """Entries on the server that are not archived yet: they are behind the archive's end."""
    findings: list[Finding] = msgspec.field(default_factory=list[Finding])
    omitted: int = 0
    """Findings beyond the first so many, counted alone."""

    @property
    def is_sound(self) -> bool:
        return not self.omitted and all(each.is_harmless for each in self.findings)

    def add(self, findings: Sequence[Finding]) -> None:
        room = ARCHIVE_FINDINGS_MAX - len(self.findings)
        self.findings += findings[:room]
        self.omitted += max(0, len(findings) - room)


async def verify(archive: Archive, name: str, stream: Stream | None = None) -> Verified:
    """Look for gaps, overlaps and damage in the archive of a stream.

    Args:
        archive: Where it is.
        name: The stream's name.
        stream: The open stream, to compare the archive with as much as the server still has; None:
            the files alone. Of a shard whose last files are missing the files alone do not tell.

    Raises:
        ArchiveNotFoundError: nothing of the stream is archived there.
        ArchiveError, ServerError: the place or the server cannot be reached.

    Cost: reads every file; with a stream also every entry on the server.
    """
    found = Verified()
    chains = await asyncio.to_thread(archive.chains, name)
    if not chains and stream is None:
        raise ArchiveNotFoundError(
            f"nothing of stream {name!r} is archived in {archive.place.shown}"
        )
    found.add(await asyncio.to_thread(_foreign, archive, name))
    for shard, chain in chains.items():
        found.add(_of_names(archive, shard, chain))
        for piece in chain.pieces:
            found.add(await asyncio.to_thread(_of_file, archive, name, piece.file, found))
    if stream is not None:
        for shard in range(stream.shards):
            chain = chains.get(shard) or resolve(())
            found.add(await _against_live(archive, stream, shard, chain, found))
    return found


def _foreign(archive: Archive, name: str) -> list[Finding]:
    return [
        Finding("foreign", None, "is no file of an archive; other programs may read it", path)
        for path in archive.place.files(stream_folder(name))
        if parse_path(path) is None
    ]


def _of_names(archive: Archive, shard: int, chain: Chain) -> list[Finding]:
    """What the names say."""
    found: list[Finding] = []
    begins: dict[int, ArchiveFile] = {}
    for piece in chain.pieces:
        begins.setdefault(piece.file.generation, piece.file)
    ends = {piece.file.generation: piece.file.last for piece in chain.pieces}
    for generation, file in begins.items():
        before = [end for number, end in ends.items() if number < generation]
        if (not before and file.after > BEGIN) or (before and file.after > max(before)):
            text = f"what was archived before {file.after.entry}, inclusive, is missing"
            found.append(Finding("gap", shard, text, file.path))
    for gap in chain.gaps:
        text = f"entries behind {gap.after.entry}, up to {gap.before.entry}, are in no file"
        found.append(Finding("gap", shard, text))
    for piece in chain.overlaps:
        text = f"holds entries up to {piece.behind.entry} that other files hold as well"
        found.append(Finding("overlap", shard, text, piece.file.path))
    found += [
        Finding("superseded", shard, "its entries are in another file", file.path)
        for file in chain.superseded
    ]
    return found


def _of_file(archive: Archive, name: str, file: ArchiveFile, totals: Verified) -> list[Finding]:
    """What the file says."""
    totals.files += 1
    try:
        content = check_digest(archive, resolve((file,)).pieces[0])
        totals.bytes += len(content)
        info = archive.info(file)
        totals.entries += info.entries
        totals.events += info.events
        named = (name, file.shard, file.generation, *(i.entry for i in file[3:6]))
        said = (info.stream, info.shard, info.generation, info.after, info.first, info.last)
        if named != said:
            raise ArchiveDamagedError(f"its name says {named}, its footer {said}")
        with archive.opened(file) as parquet:
            _check_rows(parquet, file, info.events + info.undecodable)
    except FileNotFoundError:
        return [Finding("damaged", file.shard, "is not there any more", file.path)]
    except ArchiveDamagedError as error:
        text = error.message.removeprefix(archive.path(file)).strip()
        return [Finding("damaged", file.shard, text, file.path)]
    if not info.lost:
        return []
    text = (
        f"{info.lost:,} entries behind {info.after} were removed from the stream before they were "
        "archived"
    )
    return [Finding("lost", file.shard, text, file.path)]


def _check_rows(parquet: Any, file: ArchiveFile, rows: int) -> None:
    """Raise unless the rows are as many as they should be, and in order."""
    ids: list[EventId] = []
    for group in range(parquet.metadata.num_row_groups):
        columns = parquet.read_row_group(group, columns=["entry_ms", "entry_seq", "index"])
        ids += map(EventId, *(column.to_pylist() for column in columns.columns))
    if len(ids) != rows:
        raise ArchiveDamagedError(f"has {len(ids)} rows, its footer says {rows}")
    if any(one >= other for one, other in pairwise(ids)):
        raise ArchiveDamagedError("its rows are not in order")
    if ids[0] != file.first or ids[-1][:2] != file.last[:2]:
        raise ArchiveDamagedError(f"has {ids[0]} to {ids[-1]}, its name says something else")


async def _against_live(
    archive: Archive, stream: Stream, shard: int, chain: Chain, totals: Verified
) -> list[Finding]:
    """What the server says."""
    found: list[Finding] = []
    end = chain.end or BEGIN
    at = await live(stream, shard)
    if at.cursor is not None and at.cursor > end:
        text = f"the server says {at.cursor.entry} is archived, the files end at {end.entry}"
        found.append(Finding("cursor", shard, text))
    seen = behind = 0
    missing: list[str] = []
    differing: list[str] = []
    async with aclosing(pages(stream, shard, BEGIN, at.last_id)) as all_pages:
        async for rows in all_pages:
            ids = [EventId.parse(row[0]) for row in rows]
            seen += len(rows)
            behind += sum(id > end for id in ids)
            try:
                known = await asyncio.to_thread(archived_entries, archive, stream.name, shard, rows)
            except (ArchiveDamagedError, FileNotFoundError):
                continue  # Found already, and named.
            for id, row in zip(ids, rows, strict=True):
                if id > end:
                    continue
                if id not in known:
                    missing.append(id.entry)
                elif not is_among(row, stream, known[id]):
                    differing.append(id.entry)
    totals.live_entries += seen
    totals.not_yet += behind
    found += [
        Finding("missing", shard, f"{id} is on the server, should be archived, and is not")
        for id in missing
    ]
    found += [
        Finding("differs", shard, f"{id} is another entry on the server than in the archive")
        for id in differing
    ]
    return found
