"""What goes into the archive comes back from it: the same events, with the same types."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from standpipe.archive import Archive, column_of, field_of
from standpipe.archive.fields import RESERVED
from standpipe.archive.file import build
from standpipe.archive.gathering import Gathering, Row
from standpipe.archive.merging import merge_small
from standpipe.archive.names import BEGIN, file_path
from standpipe.codec import (
    PlainLayout,
    block_fields,
    decode_entry,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
)
from standpipe.errors import DecodeError
from standpipe.event import Event, EventId

LAYOUT = PlainLayout()
START = 1_700_000_000_000
FEW_NAMES = ("v", "volts", "V", "_key", "marks", "Index", "_")
Exact = tuple[Any, ...]

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from((0.0, -0.0, 1.0, 2.0**53, 2.0**60, 0.1)),
    st.text(max_size=4),
    st.sampled_from(("1", "1.0", "true", "", "nan")),
    st.binary(max_size=4),
)
names = st.one_of(st.sampled_from(FEW_NAMES), st.text(max_size=3))
# Few names: what matters is how the values of one field meet.
fields = st.dictionaries(names, values, max_size=4)
times = st.integers(-(10**12), 10**13)
keys = st.one_of(st.none(), st.text(min_size=1, max_size=3))
events = st.builds(Event, keys, times, fields)
row_blocks = st.lists(events, min_size=1, max_size=5)
# Of one type per column, as a table has them, among them 32-bit floats and nothing at all.
column_values = st.sampled_from(
    [
        (pa.float64(), st.floats(allow_nan=True)),
        (pa.float32(), st.floats(width=32)),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.int8(), st.integers(-128, 127)),
        (pa.string(), st.text(max_size=3)),
        (pa.bool_(), st.booleans()),
        (pa.binary(), st.binary(max_size=3)),
        (pa.null(), st.none()),
    ]
)


@st.composite
def entry_fields(draw: st.DrawFn) -> list[bytes]:
    """The fields of an entry of any of the codecs, or of none."""
    kind = draw(st.sampled_from(("plain", "rows", "rows", "columns", "raw")))
    if kind == "plain":
        plain = draw(st.dictionaries(names.filter(lambda n: n not in ("key", "time")), values))
        return encode_plain(Event(draw(keys), draw(times), plain), LAYOUT)
    if kind == "rows":
        block = draw(row_blocks)
        return block_fields("rows", len(block), encode_rows(block))
    if kind == "columns":
        count = draw(st.integers(1, 4))
        columns: dict[str, Any] = {
            "key": pa.array([draw(keys) for _ in range(count)], pa.string()),
            "time": pa.array([draw(times) for _ in range(count)], pa.int64()),
        }
        for name in draw(st.lists(st.sampled_from(FEW_NAMES), unique=True, max_size=3)):
            type_, cells = draw(column_values)
            column = [draw(st.one_of(st.none(), cells)) for _ in range(count)]
            columns[name] = pa.array(column, type_)
        return block_fields("columns", count, encode_columns(pa.table(columns)))
    return draw(
        st.sampled_from(
            [
                [b"c", b"rows9", b"n", b"1", b"d", b"?"],
                [b"\xff\xfe", b"\x00", b"volts", b"1"],
                [b"time", b"yesterday", b"v", b"1"],
                block_fields("rows", 3, encode_rows([Event("m", 1, {"v": 1})])),
            ]
        )
    )


@st.composite
def entries(draw: st.DrawFn) -> list[Row]:
    """Entries of a shard, some of them in the same millisecond, some hours apart."""
    found: list[Row] = []
    ms, seq = START, 0
    for each in draw(st.lists(entry_fields(), min_size=1, max_size=8)):
        step = draw(st.sampled_from((0, 0, 1, 1000, 3_600_000)))
        ms, seq = (ms, seq + 1) if step == 0 else (ms + step, 0)
        found.append((b"%d-%d" % (ms, seq), each))
    return found


def exact(event: Event) -> Exact:
    """An event so that 1 is not 1.0, and NaN is itself."""
    return event.key, event.time, tuple(sorted((n, repr(v)) for n, v in event.fields.items()))


def expected(rows: Sequence[Row]) -> tuple[list[tuple[str, Exact]], list[tuple[str, list[bytes]]]]:
    """What a reader of the live stream gets: event ID and event; and what nobody reads."""
    read: list[tuple[str, Exact]] = []
    raw: list[tuple[str, list[bytes]]] = []
    for entry_id, each in rows:
        try:
            found = decode_entry(entry_id, each, LAYOUT).events()
        except DecodeError:
            raw.append((entry_id.decode(), each))
            continue
        read += [(f"{entry_id.decode()}/{at}", exact(event)) for at, event in enumerate(found)]
    return read, raw


@contextlib.contextmanager
def new_archive() -> Iterator[Archive]:
    """An archive in memory: forcing so many files to a disk would take most of the time."""
    url = f"memory://{uuid.uuid4().hex}"
    try:
        yield Archive(url)
    finally:
        fsspec.filesystem("memory").rm(url, recursive=True)


def store(archive: Archive, rows: Sequence[Row], cuts: Sequence[int]) -> None:
    """Archive entries, in pieces that end at some of them."""
    after = BEGIN
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        gathering = Gathering("s", 0, LAYOUT, after=after, generation=0)
        for draft in gathering.add(rows[start:stop]) + gathering.finish():
            info, content = build(draft)
            path = file_path(
                "s",
                shard=0,
                generation=0,
                after=draft.after,
                first=EventId.parse(info.first),
                last=EventId.parse(info.last),
                content=content,
            )
            archive.place.store(path, content, "test")
        after = gathering.after


def read(
    archive: Archive, **options: Any
) -> tuple[list[tuple[str, Exact]], list[tuple[str, list[bytes]]]]:
    found: list[tuple[str, Exact]] = []
    raw: list[tuple[str, list[bytes]]] = []
    for table in archive.read("s", **options):
        assert len(table) == len(table.table) == len(table.batch())
        of_batch = [exact(event) for event in table.batch().events]
        assert [str(id) for id in table.batch().ids] == [str(id) for id in table.ids()]
        own = [exact(event) for event in table.events()]
        assert of_batch == own
        found += zip(map(str, table.ids()), own, strict=True)
        raw += [(each.id.entry, each.fields) for each in table.undecodable]
    return found, raw


class NoLease:
    """A lease where there is no server, and nobody else."""

    shard = 0
    mark = "test"

    async def confirm(self) -> None:
        return


@settings(max_examples=100, deadline=None)
@given(entries(), st.data())
def test_what_is_archived_comes_back(rows: list[Row], data: st.DataObject) -> None:
    """Events of all codecs mixed, cut into files anywhere, read from files and from the files that
    were put together from them: the same events, types included; and entries that no codec reads,
    with their raw fields."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)), max_size=3)))
    with new_archive() as archive:
        store(archive, rows, cuts)
        assert read(archive) == expected(rows)
        before = archive.files("s")
        lease: Any = NoLease()
        merged = asyncio.run(merge_small(archive, "s", lease, everything=True))
        assert len(archive.files("s")) <= len(before) - merged // 2
        assert read(archive, rows=data.draw(st.integers(1, 5))) == expected(rows)


@settings(max_examples=60, deadline=None)
@given(entries(), st.data())
def test_what_is_asked_for(rows: list[Row], data: st.DataObject) -> None:
    """Bounds, keys and event times leave out exactly the events that they should."""
    with new_archive() as archive:
        store(archive, rows, [len(rows) // 2])
        everything, _ = expected(rows)
        ids = [EventId.parse(id) for id, _ in everything] or [EventId(START, 0)]
        start, end = sorted((data.draw(st.sampled_from(ids)), data.draw(st.sampled_from(ids))))
        between = [e for e in everything if start <= EventId.parse(e[0]) <= end]
        assert read(archive, start=start, end=end)[0] == between
        entry = data.draw(st.sampled_from(rows))[0].decode()
        behind = [e for e in everything if EventId.parse(e[0])[:2] > EventId.parse(entry)[:2]]
        assert read(archive, after=EventId.parse(entry))[0] == behind
        wanted = {event[0] for _, event in everything[::2] if event[0] is not None}
        found, raw = read(archive, keys=wanted)
        assert (found, raw) == ([e for e in everything if e[1][0] in wanted], [])
        moments = sorted(event[1] for _, event in everything) or [0]
        low, high = moments[len(moments) // 3], moments[-1 - len(moments) // 3]
        found, _ = read(archive, event_start=low, event_end=high)
        assert found == [e for e in everything if low <= e[1][1] <= high]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(events, min_size=1, max_size=4), min_size=1, max_size=3))
def test_tables_have_the_columns_of_all_files(blocks: list[list[Event]]) -> None:
    """Whatever a field is in each file, its column has one type in all tables, and no value is
    lost: it is what all the events in one table would have, or says at least as much."""
    rows = [
        (b"%d-0" % (START + at), block_fields("rows", len(block), encode_rows(block)))
        for at, block in enumerate(blocks)
    ]
    with new_archive() as archive:
        store(archive, rows, list(range(1, len(rows))))
        tables = [table.table for table in archive.read("s")]
        assert {table.schema for table in tables} == {archive.schema("s")}
        whole = pa.concat_tables(tables)
        names = list(dict.fromkeys(name for block in blocks for e in block for name in e.fields))
        every = [event for block in blocks for event in block]
        for name in names:
            # Alone, so that fields named key and time can be compared as well.
            alone = [Event("m", e.time, {"f": e.fields.get(name)}) for e in every]
            wanted = events_to_table(alone, mixed="text").column("f")
            found = whole.column(column_of(name))
            if wanted.type == found.type:
                assert found.to_pylist() == wanted.to_pylist()
            else:
                # Big ints of one file beside floats of another: text, whatever their values.
                assert (wanted.type, found.type) == (pa.float64(), pa.string())
                assert [v and float(v) for v in found.to_pylist()] == wanted.to_pylist()


@given(st.text(max_size=6), st.text(max_size=6))
def test_no_two_fields_share_a_column(one: str, other: str) -> None:
    """A field's column is its own, is none of the reserved ones in any case, and tells its name."""
    assert (column_of(one) == column_of(other)) == (one == other)
    assert column_of(one).lower() not in RESERVED
    assert field_of(column_of(one)) == one


def test_reserved_names_are_escaped() -> None:
    """Each reserved name, in any case, stands behind an underscore, and so does the empty one."""
    for name in ("", "key", "KEY", "_key", "__Time", "hour"):
        assert column_of(name) == f"_{name}"
        assert field_of(column_of(name)) == name
    assert column_of("keys") == "keys"
