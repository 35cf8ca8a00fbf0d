"""What an archive has of each shard of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from standpipe.archive import Archive
from standpipe.event import EventId
from standpipe.reader.kept import Gap
from standpipe.reader.points import BEGIN


class ArchivedShard(NamedTuple):
    """What the archive has of a shard."""

    first: EventId
    end: EventId
    complete_behind: EventId
    """What was added behind this entry is there, as far as the archive knows."""

    def lacks(self, start: EventId) -> bool:
        """Whether entries from ``start`` on were never archived, or are not there any more."""
        return start[:2] < self.first[:2] and start[:2] <= self.complete_behind[:2]


def what_is_archived(archive: Archive, stream: str) -> dict[int, ArchivedShard]:
    """What there is of each shard; blocks."""
    found: dict[int, ArchivedShard] = {}
    for shard, chain in archive.chains(stream).items():
        if chain.end is None:
            continue
        first = min((piece.file for piece in chain.pieces), key=lambda file: file.first)
        # What lay between the two was gone when it was to be archived.
        complete_behind = first.first if archive.info(first).lost else first.after
        found[shard] = ArchivedShard(first.first, chain.end, complete_behind)
    return found


class Reach(NamedTuple):
    """How far a shard is archived."""

    end: EventId
    """Up to this entry; BEGIN: nothing is."""
    generation: int
    added: int | None
    """How many entries had ever been added up to the end; None: not known."""
    gaps: Sequence[Gap]
    """What is missing there between two bounds."""


def read_reach(archive: Archive, stream: str, shard: int, start: EventId, end: EventId) -> Reach:
    """How far a shard is archived, and what is missing between two events. Blocks."""
    chain = archive.chains(stream).get(shard)
    if chain is None or chain.end is None:
        return Reach(BEGIN, 0, None, ())
    gaps = [
        Gap(shard, gap.after, gap.before, None, "archive")
        for gap in chain.gaps
        if gap.before >= start and gap.after <= end
    ]
    for piece in chain.pieces:
        if piece.file.first[:2] < start[:2] or piece.file.after > end:
            continue
        lost = archive.info(piece.file).lost
        # Before the first one it is no gap: the archive begins there.
        if lost and piece.file.after > BEGIN:
            gaps.append(Gap(shard, piece.file.after, piece.file.first, lost, "trimmed"))
    added = archive.info(chain.pieces[-1].file).added
    return Reach(chain.end, chain.generation, added, gaps)
