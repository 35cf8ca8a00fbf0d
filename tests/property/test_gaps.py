"""What a reader says it has missed is what it has missed: never more, and all of it where nothing
comes in between a page and the server's counters."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from standpipe import EventId
from standpipe.reader.kept import Kept, Track
from standpipe.reader.points import BEGIN

PAGE = 4


class Shard:
    """A stream as the server keeps it: IDs, and what it counts."""

    def __init__(self) -> None:
        self.there: list[EventId] = []
        self.added = 0
        self.deleted: EventId | None = None

    def do(self, what: str, count: int) -> None:
        if what == "add":
            for _ in range(count):
                self.added += 1
                self.there.append(EventId(self.added, 0))
        elif what == "trim":
            del self.there[:count]
        elif self.there:
            gone = self.there.pop(count % len(self.there))
            self.deleted = max(gone, self.deleted or BEGIN)

    def page(self, behind: EventId) -> list[EventId]:
        return [each for each in self.there if each > behind][:PAGE]

    def kept(self) -> Kept:
        first = self.there[0] if self.there else None
        newest = EventId(self.added, 0) if self.added else BEGIN
        return Kept(len(self.there), first, newest, self.added, self.deleted, None)


changes = st.lists(
    st.tuples(st.sampled_from(("add", "add", "trim")), st.integers(0, 9)), max_size=4
)
deletions = st.lists(
    st.tuples(st.sampled_from(("add", "trim", "delete")), st.integers(0, 9)), max_size=4
)
rounds = st.lists(st.tuples(changes, st.just(())), max_size=20)
rough_rounds = st.lists(st.tuples(deletions, st.one_of(st.just(()), deletions)), max_size=20)

Round = tuple[Sequence[tuple[str, int]], Sequence[tuple[str, int]]]


def read_all(shard: Shard, steps: Sequence[Round]) -> tuple[int, list[int | None], int]:
    """Read a page after each change, and the rest at the end; returns how many entries were read,
    what was said to be missing, and how many there were to read."""
    track, behind = Track(), BEGIN
    read = 0
    said: list[int | None] = []

    def read_page(between: Sequence[tuple[str, int]]) -> bool:
        nonlocal behind, read
        page = shard.page(behind)
        for change in between:
            shard.do(*change)
        found = track.missed(behind, page, shard.kept(), is_full=len(page) == PAGE)
        if found is not None:
            said.append(found[0])
        read += len(page)
        behind = page[-1] if page else behind
        return len(page) == PAGE

    before = shard.added - len(shard.there)
    for change, between in steps:
        for each in change:
            shard.do(*each)
        read_page(between)
    while read_page(()):
        pass
    return read, said, shard.added - before


@given(first=st.integers(0, 12), trimmed=st.integers(0, 6), steps=rounds)
def test_what_is_missed_is_told(first: int, trimmed: int, steps: Sequence[Round]) -> None:
    """With adds and trims alone each missed entry is counted, from the first page on."""
    shard = Shard()
    shard.do("add", first)
    shard.do("trim", trimmed)
    # The first page says where the reader stands; what went before it is no gap.
    read, said, there = read_all(shard, [((), ()), *steps])
    assert sum(each or 0 for each in said) == there - read
    assert None not in said


@given(first=st.integers(0, 12), steps=rough_rounds)
def test_nothing_is_told_that_is_not_missed(first: int, steps: Sequence[Round]) -> None:
    """Also with deletions, and with changes between a page and the counters, no more is counted
    than was missed."""
    shard = Shard()
    shard.do("add", first)
    read, said, there = read_all(shard, [((), ()), *steps])
    assert sum(each or 0 for each in said) <= there - read
