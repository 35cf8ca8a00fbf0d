"""The names of archive files alone say which of them count."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from standpipe.archive.names import (
    BEGIN,
    ArchiveFile,
    Chain,
    file_path,
    parse_path,
    resolve,
    slice_folder,
)
from standpipe.event import EventId


def edge(after: int, last: int, *, generation: int = 0, digest: int = 0) -> ArchiveFile:
    """A file of the entries ``after + 1`` to ``last``."""
    return ArchiveFile(
        f"{generation}.{after}-{last}.{digest}", 0, generation, EventId(after, 0),
        EventId(after + 1, 0), EventId(last, 0), f"{digest:016x}",
    )  # fmt: skip


def shown(chain: Chain) -> list[tuple[int, int, int]]:
    return [(each.behind.ms, each.file.after.ms, each.file.last.ms) for each in chain.pieces]


def test_a_name_says_all() -> None:
    """What a name is made of is read from it again, for the longest stream and the largest IDs;
    and no name is longer than a file system takes."""
    most = 2**64 - 1
    for stream in ("power", "a/b ü", "p" * 256, "ü" * 128):
        path = file_path(
            stream,
            shard=255,
            generation=3,
            after=EventId(most - 1, most),
            first=EventId(most, 0),
            last=EventId(most, most),
            content=b"x",
        )
        found = parse_path(path)
        assert found is not None
        assert (found.shard, found.generation) == (255, 3)
        assert found.first == EventId(most, 0)
        assert found.last == EventId(most, most)
        assert found.after == EventId(most - 1, most)
        assert all(len(part.encode()) <= 255 for part in path.split("/"))
        assert path.startswith("stream=")
        assert "/date=9999-12-31/hour=23/" in path
    assert slice_folder("power", 1_700_000_000_000) == "stream=power/date=2023-11-14/hour=22"


def test_what_is_no_archive_file() -> None:
    """Other names, and names whose IDs make no sense, are none."""
    good = "s.0.2-0_3-0.after-1-0.g0.0123456789abcdef.parquet"
    assert parse_path(f"x/{good}") is not None
    wrong = (
        "notes.txt",
        good.replace("g0", "x0"),
        good.replace("_3-0", "_1-0"),
        good.replace("after-1-0", "after-2-0"),
        good + ".tmp",
    )
    assert [name for name in wrong if parse_path(name) is not None] == []


def test_one_that_covers_others_takes_their_place() -> None:
    """All at once, whichever of its parts are still there."""
    parts = [edge(0, 2), edge(2, 5), edge(5, 6)]
    whole = edge(0, 5)
    for left in ([], parts[:1], parts[1:2], parts[:2]):
        chain = resolve([whole, *left, parts[2]])
        assert shown(chain) == [(0, 0, 5), (5, 5, 6)]
        assert list(chain.superseded) == left
        assert (chain.gaps, chain.overlaps) == ([], [])
    assert shown(resolve(parts)) == [(0, 0, 2), (2, 2, 5), (5, 5, 6)]
    # However many files follow.
    more: list[ArchiveFile] = []
    for after in range(6, 10):
        more.append(edge(after, after + 1))
        assert len(resolve([whole, *parts, *more]).pieces) == 2 + len(more)


def test_one_of_a_process_that_had_lost_its_lease() -> None:
    """It does not break the path of the other one, longer or shorter as it may be."""
    assert shown(resolve([edge(0, 3), edge(3, 7), edge(0, 5)])) == [(0, 0, 3), (3, 3, 7)]
    assert shown(resolve([edge(0, 3), edge(0, 5)])) == [(0, 0, 5)]
    # Of two that hold the same, all readers take the same.
    twins = [edge(0, 3, digest=1), edge(0, 3, digest=2)]
    assert resolve(twins).pieces[0] == resolve(twins[::-1]).pieces[0]


def test_gaps_and_overlaps() -> None:
    """A missing file is a gap, what two files hold is read from one."""
    chain = resolve([edge(0, 2), edge(4, 6)])
    assert shown(chain) == [(0, 0, 2), (4, 4, 6)]
    assert [(gap.after.ms, gap.before.ms) for gap in chain.gaps] == [(2, 4)]
    chain = resolve([edge(0, 4), edge(2, 6)])
    assert shown(chain) == [(0, 0, 4), (4, 2, 6)]
    assert [piece.file for piece in chain.overlaps] == [edge(2, 6)]
    assert resolve([]).end is None


def test_generations_are_paths_of_their_own() -> None:
    """IDs that went back do not mingle with those before."""
    chain = resolve([edge(0, 9), edge(5, 7, generation=1), edge(7, 12, generation=1)])
    assert shown(chain) == [(0, 0, 9), (5, 5, 7), (7, 7, 12)]
    assert (chain.generation, chain.end) == (1, EventId(12, 0))


edges = st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda at: edge(at[0], at[0] + at[1]))


@given(st.lists(edges, unique=True, max_size=12))
def test_any_files_at_all(files: list[ArchiveFile]) -> None:
    """Every entry of any file is read, from exactly one piece, in order; what is in no file is a
    gap; and the order in which the files are listed makes no difference."""
    chain = resolve(files)
    covered = {n for file in files for n in range(file.after.ms + 1, file.last.ms + 1)}
    read = [n for p in chain.pieces for n in range(p.behind.ms + 1, p.file.last.ms + 1)]
    assert read == sorted(covered)
    assert all(piece.behind >= piece.file.after for piece in chain.pieces)
    missing = {n for gap in chain.gaps for n in range(gap.after.ms + 1, gap.before.ms + 1)}
    everything = set(range(min(covered, default=1), max(covered, default=0) + 1))
    assert missing == everything - covered
    assert resolve(reversed(files)) == chain._replace(superseded=list(reversed(chain.superseded)))
    assert {f.path for f in chain.superseded} | {p.file.path for p in chain.pieces} == {
        file.path for file in files
    }
    assert all(one.file.last <= other.behind for one, other in pairwise(chain.pieces))


def test_nothing_is_before_the_first() -> None:
    """The point at which every stream begins is below each ID that a server gives."""
    assert EventId(0, 1) > BEGIN
