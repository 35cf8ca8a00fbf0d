"""What a shard still has, and whether entries were gone before a reader came to them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from standpipe.event import EventId
from standpipe.reader.points import BEGIN, entry_of


class Gap(msgspec.Struct, frozen=True):
    """Entries that were gone before the reader came to them."""

    shard: int
    after: EventId
    """The entry behind which they are missing."""
    before: EventId | None
    """The first one that is there again; None: none yet."""
    entries: int | None
    """How many; None: not known, perhaps none at all."""
    reason: Literal["trimmed", "deleted", "replaced", "archive"]
    """``trimmed``: from the live stream. ``deleted``: one by one, by XDEL. ``replaced``: the stream
    is not the one that it was. ``archive``: files are missing there, or the archiver came too
    late."""

    def __str__(self) -> str:
        count = "an unknown number of" if self.entries is None else f"{self.entries:,}"
        until = "" if self.before is None else f" and before {self.before.entry}"
        return (
            f"shard {self.shard}: {count} entries behind {self.after.entry}{until} are missing "
            f"({self.reason})"
        )


class Kept(NamedTuple):
    """What lua/kept.lua says of a shard."""

    length: int
    first: EventId | None
    newest: EventId
    """The last ID ever given, whether its entry is still there or not."""
    added: int | None
    """Entries ever added; None: Redis 6.2 does not count them."""
    deleted: EventId | None
    """The highest one that was deleted by XDEL, if any was."""
    cursor: EventId | None
    """Up to where it is archived, if anything is."""

    @classmethod
    def parse(cls, reply: Sequence[Any]) -> Kept:
        length, first, newest, added, deleted, cursor = reply
        highest = entry_of(deleted) if deleted else BEGIN
        archived = entry_of(cursor) if cursor else BEGIN
        return cls(
            length,
            entry_of(first) if first else None,
            entry_of(newest),
            None if added < 0 else added,
            highest if highest > BEGIN else None,
            archived if archived > BEGIN else None,
        )

    @property
    def removed(self) -> int | None:
        """Entries that were there once and are not any more; None: not known."""
        return None if self.added is None else self.added - self.length

    def lacks(self, start: EventId) -> bool:
        """Whether entries from ``start`` on may have been removed from its front."""
        if not self.removed or self.newest[:2] < start[:2]:
            return False
        return self.first is None or self.first[:2] > start[:2]


class Track:
    """Counts the entries that a reader of one shard has passed, and so those that it has missed.

    The server counts what was ever added. Behind a page that ends at the newest entry, or that
    reaches over the oldest one, the number of the page's last entry follows from that; together
    with the number before the page and the length of the page it says how many are missing.
    """

    def __init__(self) -> None:
        self._passed: int | None = None
        """How many were ever added up to the entry that was read last; None: not known."""
        self._was_full = False

    def restart(self, passed: int | None) -> None:
        """Go on behind an entry up to which so many were ever added; None: not known."""
        self._passed, self._was_full = passed, False

    def missed(
        self, behind: EventId, page: Sequence[EventId], kept: Kept, *, is_full: bool
    ) -> tuple[int | None, Literal["trimmed", "deleted", "replaced"]] | None:
        """Take a page; returns how many entries are missing before its end, and why, if any are.

        Args:
            behind: The entry behind which it was read.
            page: Its entries.
            kept: As the server answered behind it.
            is_full: Whether there may be more.
        """
        reached = page[-1] if page else behind
        is_trimmed = kept.first is None or kept.first > behind
        passed = self._passed_at(reached, page, kept, is_trimmed=is_trimmed)
        before, was_full = self._passed, self._was_full
        self._was_full = is_full
        if passed is None:
            # Taken for whole: what is missing here shows when the number is known again.
            self._passed = None if before is None else before + len(page)
        else:
            self._passed = passed
        if before is not None and kept.added is not None and kept.added < before:
            self._passed = passed
            return None, "replaced"
        if before is not None and passed is not None:
            missing = passed - before - len(page)
            why = "trimmed" if is_trimmed else "deleted"
            return (missing, why) if missing > 0 else None
        if before is None and was_full and is_trimmed and kept.newest > behind:
            # There was more behind the last page, and now that page is gone as well.
            return None, "trimmed"
        return None

    @staticmethod
    def _passed_at(
        reached: EventId, page: Sequence[EventId], kept: Kept, *, is_trimmed: bool
    ) -> int | None:
        if kept.added is None:
            return None
        if kept.newest <= reached:
            return kept.added
        if not is_trimmed:
            return None
        if kept.first is not None and kept.deleted is not None and kept.deleted > kept.first:
            # One is missing somewhere in what is there.
            return None
        # All that is there now was added last, and begins in the page or behind it.
        there = 0 if kept.first is None else sum(entry >= kept.first for entry in page)
        return kept.added - (kept.length - there)
