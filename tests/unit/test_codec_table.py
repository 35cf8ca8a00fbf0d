"""Tables of events: made of events, and taken from other libraries."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from standpipe.codec import (
    PlainLayout,
    RowsEntry,
    block_fields,
    check_table,
    decode_entry,
    encode_rows,
    events_to_table,
)
from standpipe.errors import (
    CodecError,
    DecodeError,
    EventError,
    FieldError,
)
from standpipe.event import Event

LAYOUT = PlainLayout()
ID = b"1700000000123-4"
EVENTS = [
    Event("inverter-7", 1_700_000_000_000, {"volts": 230.5, "amps": 1.2}),
    Event("meter-0001", 1_700_000_000_250, {"volts": None, "ok": True, "state": "on", "count": 42}),
]


def rows(payload: bytes, count: int = 2) -> RowsEntry:
    entry = decode_entry(ID, block_fields("rows", count, payload), LAYOUT)
    assert isinstance(entry, RowsEntry)
    return entry


def two(**columns: Any) -> pa.Table:
    return pa.table({"key": ["a", "b"], "time": [1, 2], **columns})


# --- events to tables ----------------------------------------------------------------------------


def test_ints_and_floats_become_floats_without_loss() -> None:
    """A field that is int here and float there becomes a float column if that loses nothing."""
    events = [Event("a", 1, {"x": 1}), Event("a", 2, {"x": 2.5}), Event("a", 3, {})]
    assert events_to_table(events).column("x").to_pylist() == [1.0, 2.5, None]
    lossy = [Event("a", 1, {"x": 2**53 + 1}), Event("a", 2, {"x": 2.5})]
    with pytest.raises(CodecError, match="float and int"):
        events_to_table(lossy)
    as_text = events_to_table(lossy, mixed="text").column("x").to_pylist()
    assert as_text == ["9007199254740993", "2.5"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1.5, True], ["1.5", "true"]),
        ([True, 1], ["true", "1"]),
        ([1, "x"], ["1", "x"]),
        (["x", None, 1.5], ["x", None, "1.5"]),
        (["x", b"\xff"], [b"x", b"\xff"]),
        ([b"\xff", 1], [b"\xff", b"1"]),
    ],
)
def test_mixed_types_are_refused_or_made_text(values: list[Any], texts: list[Any]) -> None:
    """Types that do not agree are refused with the way out, or become text when that was asked."""
    events = [Event("a", i, {"x": value}) for i, value in enumerate(values)]
    with pytest.raises(CodecError, match="'x'") as caught:
        events_to_table(events)
    assert "rows" in caught.value.hint
    assert events_to_table(events, mixed="text").column("x").to_pylist() == texts
    assert rows(encode_rows(events), len(events)).table().column("x").to_pylist() == texts


@pytest.mark.parametrize("name", ["key", "time"])
def test_a_field_named_key_or_time_has_no_column(name: str) -> None:
    """A field that would be a second key or time column is refused, and names itself."""
    events = [Event("a", 1, {name: 2})]
    with pytest.raises(FieldError, match=name):
        events_to_table(events)
    with pytest.raises(DecodeError, match=name):
        rows(encode_rows(events), 1).table()


def test_no_events_are_an_empty_table() -> None:
    """No events make a table of no rows with the two columns that every table has."""
    table = events_to_table([])
    assert (table.column_names, table.num_rows) == (["key", "time"], 0)


# --- tables of others ----------------------------------------------------------------------------


class Frame:
    """A data frame of another library, as far as Arrow sees one."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_frames_that_speak_arrow_are_taken() -> None:
    """Whatever hands out an Arrow stream is taken, with the types that polars and others use."""
    table = pa.table(
        {
            "x": pa.array([1.5, None], pa.float16()),
            "time": pa.array([1_999, -1], pa.timestamp("us")),
            "key": pa.array(["a", "b"], pa.string_view()),
            "c": pa.DictionaryArray.from_arrays(
                pa.array([0, None], pa.uint32()), pa.array(["on"], pa.string_view())
            ),
            "y": pa.array([b"q", None], pa.binary_view()),
        },
        metadata={"made by": "another"},
    )
    checked = check_table(Frame(table))
    assert checked.schema == pa.schema(
        {
            "key": pa.string(),
            "time": pa.int64(),
            "x": pa.float32(),
            "c": pa.string(),
            "y": pa.binary(),
        }
    )
    assert checked.schema.metadata is None
    assert checked.to_pylist() == [
        {"key": "a", "time": 1, "x": 1.5, "c": "on", "y": b"q"},
        {"key": "b", "time": -1, "x": None, "c": None, "y": None},
    ]
    assert check_table(table.to_reader()).equals(checked)


def test_a_record_batch_is_a_table() -> None:
    """A RecordBatch is taken as it is."""
    assert check_table(two(x=[1, 2]).to_batches()[0]).equals(two(x=[1, 2]))


def test_columns_that_fit_are_not_copied() -> None:
    """Checking a table leaves its columns where they are in memory."""
    table = two(x=[1.5, 2.5], s=["a", "b"])
    checked = check_table(table)
    for name in table.column_names:
        before, after = (
            table.column(name).chunk(0).buffers(),
            checked.column(name).chunk(0).buffers(),
        )
        assert [b and b.address for b in before] == [b and b.address for b in after]


def test_pandas_frames() -> None:
    """In a pandas frame NaN is a missing reading, a named index is data and row numbers are not."""
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime(["2023-11-14T22:13:20", "2023-11-14T22:13:21"]),
            "key": ["a", "b"],
            "x": [1.5, float("nan")],
            "n": pd.array([None, 7], dtype="Int64"),
        }
    )
    expected = [
        {"key": "a", "time": 1_700_000_000_000, "x": 1.5, "n": None},
        {"key": "b", "time": 1_700_000_001_000, "x": None, "n": 7},
    ]
    assert check_table(frame).to_pylist() == expected
    assert check_table(frame.set_index("time")).to_pylist() == expected
    assert check_table(frame.set_index(["key", "time"])).to_pylist() == expected
    assert check_table(frame[frame.x > 0]).to_pylist() == expected[:1]


def test_integer_keys_become_text() -> None:
    """Device numbers are keys as text, as in Event.from_mapping."""
    assert check_table(pa.table({"key": [7, None], "time": [1, 2]})).column("key").to_pylist() == [
        "7",
        None,
    ]


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (pa.table({"key": ["a"]}), "time"),
        (pa.table({"time": [1]}), "key"),
        (pa.table({"key": [""], "time": [1]}), "key"),
        (pa.table({"key": ["a" * 513], "time": [1]}), "key"),
        (pa.table({"key": [1.5], "time": [1]}), "key"),
        (pa.table({"key": ["a"], "time": [1.5]}), "time"),
        (pa.table({"key": ["a"], "time": ["2024-01-01"]}), "time"),
        (pa.table({"key": ["a"], "time": pa.nulls(1, pa.int64())}), "time"),
        (pa.table({"key": ["a"], "time": [1_700_000_000_000_000]}), "time"),
        (pa.table({"key": ["a"], "time": pa.array([2**62], pa.timestamp("s"))}), "time"),
        (two(x=[1.5, float("nan")]), "x"),
        (two(x=[float("-inf"), None]), "x"),
        (two(x=pa.array([1.5, float("nan")], pa.float32())), "x"),
        (two(x=[" NaN ", "b"]), "x"),
        (two(x=["-Infinity", "b"]), "x"),
        (two(x=[[1], [2]]), "x"),
        (two(x=pa.array([1, 2], pa.decimal128(5, 2))), "x"),
        (two(x=pa.array([1, 2], pa.date32())), "x"),
        (two(x=pa.array([2**64 - 1, 0], pa.uint64())), "x"),
        (two(**{"": [1, 2]}), ""),
        (two(**{f"f{i}": [1, 2] for i in range(513)}), "f512"),
        (pd.DataFrame({"key": ["a"], "time": [1], "x": [float("inf")]}), "x"),
    ],
)
def test_tables_that_cannot_be_sent_name_the_column(table: object, field: str) -> None:
    """A column, a type or a value that no event has is refused, naming the column."""
    with pytest.raises(FieldError) as caught:
        check_table(table)
    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize(
    "thing",
    [
        None,
        {"key": ["a"]},
        [EVENTS[0]],
        "a,b",
        pd.Series([1.5]),
        pd.DataFrame({"key": ["a", 1], "time": [1, 2]}),
    ],
)
def test_what_is_no_table_is_refused(thing: object) -> None:
    """What is no table, or holds columns of mixed objects, is an EventError with a hint."""
    with pytest.raises(EventError) as caught:
        check_table(thing)
    assert caught.value.hint
