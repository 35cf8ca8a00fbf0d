"""What an archive has of each shard of a stream."""

from __future__ import annotations

from typing import NamedTuple

from standpipe.archive import Archive
from standpipe.event import EventId
from standpipe.reader.kept import Kept
from standpipe.reader.points import BEGIN


class ArchivedShard(NamedTuple):
    """What the archive has of a shard."""

    first: EventId
    end: EventId
    complete_behind: EventId
    """What was added behind this entry is there, as far as the archive knows."""
    entries: int | None
    """All that it has; None: not counted."""

    def lacks(self, start: EventId, kept: Kept) -> bool:
        """Whether entries from ``start`` on were removed before they were archived."""
        if start[:2] <= self.complete_behind[:2] and self.complete_behind > BEGIN:
            return True
        if start[:2] >= self.first[:2] or kept.added is None or self.entries is None:
            return False
        # Of what was ever added, the rest is neither archived nor still in the stream, at least.
        behind = 0 if kept.newest <= self.end else kept.length
        return kept.added > self.entries + behind


def what_is_archived(archive: Archive, stream: str, start: EventId) -> dict[int, ArchivedShard]:
    """What there is of each shard; blocks.

    Args:
        archive: The archive.
        stream: The stream's name.
        start: From where on it is to be read. Before the first entry, all entries are counted.
    """
    found: dict[int, ArchivedShard] = {}
    for shard, chain in archive.chains(stream).items():
        if chain.end is None:
            continue
        files = [piece.file for piece in chain.pieces]
        first = min(files, key=lambda file: file.first)
        lost = archive.info(first).lost_before
        behind = first.after if lost is None else max(first.after, EventId.parse(lost))
        entries = None
        if BEGIN < start < first.first and not chain.overlaps:
            # All of it will be read, so that the files' footers are needed anyway.
            entries = sum(archive.info(file).entries for file in files)
        found[shard] = ArchivedShard(first.first, chain.end, behind, entries)
    return found
