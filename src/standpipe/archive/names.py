"""The names of archive files, and which files count. Pure.

    stream=<stream>/date=2026-11-24/hour=14/
        <stream>.<shard>.<first>_<last>.after-<after>.g<generation>.<digest>.parquet

A file holds all entries of a shard from behind ``after`` up to ``last``: it is an edge from one
entry ID to another, and the archive of a shard is the path along them. So the names alone say what
is there, what is missing and what stands there twice, and a file that was put together from others
(its edge spans theirs) takes their place in the same moment in which it gets its name.

The generation counts how often the server's entry IDs went back, because it was restored to an
older state; each generation is a path of its own. The digest is the beginning of the SHA-256 of the
file's content, so that a byte that changes later is found without anything kept beside the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote

from standpipe.event import EventId
from standpipe.limits import (
    ARCHIVE_FILE_STEM_BYTES_MAX,
    ARCHIVE_FOLDER_STEM_BYTES_MAX,
    ARCHIVE_SLICE_MS,
    TIME_MS_MAX,
)

BEGIN: Final = EventId(0, 0)
"""Before the first entry of every stream: the server gives no entry this ID."""

_ID: Final = r"[0-9]{1,20}-[0-9]{1,20}"
_NAME: Final = re.compile(
    rf"(?P<stem>.+)\.(?P<shard>[0-9]{{1,3}})\.(?P<first>{_ID})_(?P<last>{_ID})"
    rf"\.after-(?P<after>{_ID})\.g(?P<generation>[0-9]{{1,4}})\.(?P<digest>[0-9a-f]{{16}})\.parquet"
)


def stem_of(stream: str, bytes_max: int) -> str:
    """A stream's name as a part of a path; a long one is cut and told apart by a digest."""
    stem = quote(stream, safe="")
    if len(stem) <= bytes_max:
        return stem
    digest = hashlib.sha256(stream.encode()).hexdigest()[:16]
    return f"{stem[: bytes_max - 17]}-{digest}"


def stream_folder(stream: str) -> str:
    """The folder of a stream, below the archive's own."""
    return f"stream={stem_of(stream, ARCHIVE_FOLDER_STEM_BYTES_MAX)}"


def slice_of(ms: int) -> int:
    """The number of the slice, an hour, that an entry's time is in; a file never holds two."""
    # A writer may give any ID; what is no time at all lies in the last hour that there is.
    return min(ms, TIME_MS_MAX) // ARCHIVE_SLICE_MS


def slice_end(ms: int) -> int:
    """The first millisecond behind the slice that an entry's time is in."""
    return 2**64 if ms > TIME_MS_MAX else (slice_of(ms) + 1) * ARCHIVE_SLICE_MS


def slice_folder(stream: str, ms: int) -> str:
    """The folder of a slice: ``stream=meters/date=2026-11-24/hour=14``."""
    start = datetime.fromtimestamp(slice_of(ms) * ARCHIVE_SLICE_MS // 1000, tz=UTC)
    day = f"{start.year:04d}-{start.month:02d}-{start.day:02d}"
    return f"{stream_folder(stream)}/date={day}/hour={start.hour:02d}"


class ArchiveFile(NamedTuple):
    """One file of an archive, as its name tells it."""

    path: str
    """Below the archive's folder or URL, with ``/`` between folders."""
    shard: int
    generation: int
    after: EventId
    """Where it begins: behind this entry."""
    first: EventId
    """Its first entry; nothing was in the stream between ``after`` and it."""
    last: EventId
    digest: str

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


def file_path(
    stream: str,
    *,
    shard: int,
    generation: int,
    after: EventId,
    first: EventId,
    last: EventId,
    content: bytes,
) -> str:
    """The path of a file below the archive's folder."""
    stem = stem_of(stream, ARCHIVE_FILE_STEM_BYTES_MAX)
    name = (
        f"{stem}.{shard}.{first.entry}_{last.entry}.after-{after.entry}.g{generation}"
        f".{digest_of(content)}.parquet"
    )
    return f"{slice_folder(stream, first.ms)}/{name}"


def digest_of(content: bytes) -> str:
    """What a file's name says of its content."""
    return hashlib.sha256(content).hexdigest()[:16]


def parse_path(path: str) -> ArchiveFile | None:
    """What a path says; None if it is not the name of an archive file."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    if found is None:
        return None
    file = ArchiveFile(
        path=path,
        shard=int(found["shard"]),
        generation=int(found["generation"]),
        after=EventId.parse(found["after"]),
        first=EventId.parse(found["first"]),
        last=EventId.parse(found["last"]),
        digest=found["digest"],
    )
    return file if file.after < file.first <= file.last else None


# --- which files count ---------------------------------------------------------------------------


class Piece(NamedTuple):
    """A file that counts, from a point on."""

    file: ArchiveFile
    behind: EventId
    """Entries up to this one are not taken from it: an earlier piece has them. Mostly the file's
    own ``after``, which leaves nothing out."""


class Gap(NamedTuple):
    """A part of a shard that should be in a file and is in none."""

    generation: int
    after: EventId
    before: EventId
    """The next file begins behind this entry, which may be missing itself."""


class Chain(NamedTuple):
    """The archive of one shard: the files that count, in order, and what is wrong with them."""

    pieces: Sequence[Piece]
    gaps: Sequence[Gap]
    overlaps: Sequence[Piece]
    """Those of the pieces that repeat entries of the pieces before them, which are left out."""
    superseded: Sequence[ArchiveFile]
    """Files all of whose entries are in pieces: parts of a file that took their place."""

    @property
    def generation(self) -> int:
        """The newest one."""
        return self.pieces[-1].file.generation if self.pieces else 0

    @property
    def end(self) -> EventId | None:
        """Up to where the newest generation is archived; None: nothing is."""
        return self.pieces[-1].file.last if self.pieces else None


def resolve(files: Iterable[ArchiveFile]) -> Chain:
    """Which files of one shard count.

    From where the archive begins it takes the path of files that leads furthest and, of such
    paths, the one with the fewest files: a file that was put together from others wins over them as
    soon as it is there, and one that a process left which had lost its lease does not break the
    path of the one that took over.
    """
    by_generation: dict[int, list[ArchiveFile]] = {}
    for file in files:
        by_generation.setdefault(file.generation, []).append(file)
    pieces: list[Piece] = []
    gaps: list[Gap] = []
    overlaps: list[Piece] = []
    superseded: list[ArchiveFile] = []
    for generation, found in sorted(by_generation.items()):
        taken = _walk(generation, found, gaps, overlaps)
        pieces += taken
        counted = {piece.file.path for piece in taken}
        superseded += [file for file in found if file.path not in counted]
    return Chain(pieces, gaps, overlaps, superseded)


def _walk(
    generation: int, files: Sequence[ArchiveFile], gaps: list[Gap], overlaps: list[Piece]
) -> list[Piece]:
    graph = _Graph(files)
    at = min(file.after for file in files)
    pieces: list[Piece] = []
    while True:
        while (file := graph.best(at)) is not None:
            pieces.append(Piece(file, at))
            at = file.last
        left = [file for file in files if file.last > at]
        if not left:
            return pieces
        if crossing := [file for file in left if file.after < at]:
            # No path leads here, so a file was lost or something foreign has come in: what it has
            # beyond the point counts all the same.
            file = max(crossing, key=lambda each: (graph.reach(each.last), each.last, each.path))
            pieces.append(Piece(file, at))
            overlaps.append(pieces[-1])
            at = file.last
        else:
            start = min(file.after for file in left)
            gaps.append(Gap(generation, at, start))
            at = start


class _Graph:
    """How far the paths lead that begin at a point."""

    def __init__(self, files: Iterable[ArchiveFile]) -> None:
        self._best: dict[EventId, tuple[tuple[EventId, int, str], ArchiveFile]] = {}
        # Every edge leads upwards, so by falling start what an edge leads to is known before it.
        for file in sorted(files, key=lambda each: each.after, reverse=True):
            further = self._best.get(file.last)
            end, hops = (further[0][0], further[0][1]) if further else (file.last, 0)
            # The path breaks ties, so that all readers choose the same file.
            rank = (end, hops - 1, file.path)
            known = self._best.get(file.after)
            if known is None or rank > known[0]:
                self._best[file.after] = (rank, file)

    def best(self, at: EventId) -> ArchiveFile | None:
        found = self._best.get(at)
        return found[1] if found else None

    def reach(self, at: EventId) -> EventId:
        found = self._best.get(at)
        return found[0][0] if found else at
