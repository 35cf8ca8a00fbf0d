"""Blocks of rows and columns: what is written, what is read, and what is refused."""

from __future__ import annotations

import datetime as dt
import random
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import zstandard

from standpipe.codec import (
    ColumnsEntry,
    PlainLayout,
    RowsEntry,
    block_fields,
    check_table,
    decode_entry,
    encode_columns,
    encode_rows,
    events_to_table,
    rows_part,
    rows_payload,
)
from standpipe.errors import (
    DecodeError,
    StandpipeError,
)
from standpipe.event import Event
from standpipe.keyspace import partition, shard_keys, side_key
from standpipe.limits import COMPRESS_BYTES_MIN, DECODED_BYTES_MAX

LAYOUT = PlainLayout()
ID = b"1700000000123-4"
DOCS = Path(__file__).parents[2] / "docs" / "wire-format.md"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

EVENTS = [
    Event("inverter-7", 1_700_000_000_000, {"volts": 230.5, "amps": 1.2}),
    Event("meter-0001", 1_700_000_000_250, {"volts": None, "ok": True, "state": "on", "count": 42}),
]
MANY = [Event(f"m{i % 7}", 1_700_000_000_000 + i, {"flow": i / 7, "n": i}) for i in range(500)]


def rows(payload: bytes, count: int = 2) -> RowsEntry:
    entry = decode_entry(ID, block_fields("rows", count, payload), LAYOUT)
    assert isinstance(entry, RowsEntry)
    return entry


def columns(payload: bytes, count: int = 2) -> ColumnsEntry:
    entry = decode_entry(ID, block_fields("columns", count, payload), LAYOUT)
    assert isinstance(entry, ColumnsEntry)
    return entry


def ipc(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def two(**columns: Any) -> pa.Table:
    return pa.table({"key": ["a", "b"], "time": [1, 2], **columns})


# --- rows ----------------------------------------------------------------------------------------


def test_rows_bytes_are_those_of_the_documentation() -> None:
    """The rows block that docs/wire-format.md spells out is the one that is written and read."""
    (text,) = re.findall(r"```hex\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert encode_rows(EVENTS) == bytes.fromhex(text)
    assert rows(bytes.fromhex(text)).events() == EVENTS


def test_documentation_names_the_right_keys_and_shards() -> None:
    """The keys, shards and the size that docs/wire-format.md names are what the code makes."""
    text = DOCS.read_text("utf-8")
    keys = shard_keys("power_grid_stream", 4)
    for key in (*keys, side_key(keys[2], "dead"), side_key("power_grid_stream", "dead")):
        assert f"`{key}`" in text
    assert f"`inverter-7` is in shard {partition('inverter-7', 4)}" in text
    assert f"`meter-0001` in shard {partition('meter-0001', 4)}" in text
    size = len(encode_columns(events_to_table(EVENTS), compress=False))
    assert f"stream of {size} bytes" in text


def test_rows_are_compressed_where_that_is_smaller() -> None:
    """A block becomes one zstd frame with its size in the header, unless that gains nothing."""
    array = encode_rows(MANY, compress=False)
    frame = encode_rows(MANY)
    assert array[:1] == b"\xdc"
    assert frame.startswith(ZSTD_MAGIC)
    assert len(frame) < len(array) / 2
    assert zstandard.frame_content_size(frame) == len(array)
    assert zstandard.decompress(frame) == array
    assert rows(frame, 500).events() == rows(array, 500).events() == MANY
    noise = [Event("a", 5, {"x": random.Random(1).randbytes(5000)})]
    assert not encode_rows(noise).startswith(ZSTD_MAGIC)
    small = [Event("aaaaaaaaaaaa", 5, {"x": 1})] * 10
    assert len(encode_rows(small)) < COMPRESS_BYTES_MIN
    assert not encode_rows(small).startswith(ZSTD_MAGIC)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 300])
def test_rows_gathered_in_parts_are_the_same_block(count: int) -> None:
    """Events encoded as they come and joined later make the block that one call makes."""
    events = MANY[:count]
    for cut in {0, 1, count // 2, count}:
        parts = [rows_part(events[:cut]), *(rows_part((event,)) for event in events[cut:])]
        for compress in (True, False):
            payload = rows_payload(count, parts, compress=compress)
            assert payload == encode_rows(events, compress=compress)


def test_rows_of_more_than_65535_events() -> None:
    """The longest of MessagePack's array headers is written and read too."""
    events = [Event("a", 5, {})] * 70_000
    assert rows_payload(70_000, [rows_part(events)]) == encode_rows(events)
    assert len(rows(encode_rows(events), 70_000).events()) == 70_000


def test_rows_of_other_writers() -> None:
    """Longer headers, other number formats and frames without a size are read alike."""
    array = msgspec.msgpack.encode([["a", 5, {"x": 1.5}], [None, 6, {}]])
    expected = [Event("a", 5, {"x": 1.5}), Event(None, 6, {})]
    longer = b"\xdd\x00\x00\x00\x02" + array[1:]
    assert rows(array).events() == rows(longer).events() == expected
    streamed = zstandard.ZstdCompressor().compressobj().compress(b"")
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    streamed = compressor.compress(array)
    assert zstandard.frame_content_size(streamed) == -1
    assert rows(streamed).events() == expected
    single = b"\x91\x93\xa1a\x05\x81\xa1x\xca" + struct.pack(">f", 1.5)
    assert rows(single, 1).events() == expected[:1]


ONE = ["a", 5, {"x": 1.5}]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x92",
        b"\xc0",
        b"\x92\xc1",
        encode_rows(EVENTS)[:-1],
        encode_rows(EVENTS) + b"\x00",
        b"\xdc\x00",
        b"\xdd\xff\xff\xff\xff",
        *map(
            msgspec.msgpack.encode,
            [
                [ONE],
                [ONE, ONE, ONE],
                {"a": 1, "b": 2},
                [ONE, None],
                [ONE, []],
                [ONE, ["a", 5]],
                [ONE, ["a", 5, None]],
                [ONE, ["a", 5, [1]]],
                [ONE, ["a", 5, {1: 2}]],
                [ONE, ["a", 5.5, {}]],
                [ONE, ["a", "5", {}]],
                [ONE, ["a", None, {}]],
                [ONE, ["a", 10**15, {}]],
                [ONE, ["a", -(10**15), {}]],
                [ONE, [b"a", 5, {}]],
                [ONE, [7, 5, {}]],
                [ONE, ["a", 5, {"x": [1]}]],
                [ONE, ["a", 5, {"x": {"y": 1}}]],
                [ONE, ["a", 5, {"x": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}]],
                [ONE, ["a", 5, {"x": msgspec.msgpack.Ext(5, b"x")}]],
            ],
        ),
        b"\x92" + b"\x91" * 200_000,
        b"\x92\x93\xa1a\x05\x81\xa1x" + b"\x91" * 200_000 + b"\xc0",
        b"\x92\x93\xa1a\x05\x81\xa1\xff\x01" + msgspec.msgpack.encode(ONE),
        b"\x92\x93\xa1a\x05\x81\xa1x\xa1\xff" + msgspec.msgpack.encode(ONE),
        ZSTD_MAGIC,
        ZSTD_MAGIC + b"\x00" * 20,
        zstandard.compress(encode_rows(EVENTS))[:-5],
        zstandard.compress(encode_rows(EVENTS)) + b"x",
        zstandard.compress(encode_rows(EVENTS)[:-1]),
        zstandard.ZstdCompressor(write_content_size=False).compress(encode_rows(EVENTS))[:-3],
    ],
)
def test_damaged_rows_are_decode_errors(payload: bytes) -> None:
    """A rows payload that is cut off, of another shape or of strange types is a DecodeError."""
    entry = rows(payload)
    with pytest.raises(DecodeError):
        entry.events()
    with pytest.raises(DecodeError):
        entry.table()


@pytest.mark.parametrize("says_size", [True, False])
def test_a_small_frame_cannot_fill_the_memory(says_size: bool) -> None:
    """A frame that would unpack beyond the limit is refused, whether it admits it or not."""
    zeros = bytes(DECODED_BYTES_MAX + 1)
    bomb = zstandard.ZstdCompressor(write_content_size=says_size).compress(zeros)
    assert len(bomb) < 10_000
    with pytest.raises(DecodeError, match=f"more than {DECODED_BYTES_MAX}"):
        rows(bomb).events()
    with pytest.raises(DecodeError, match=f"more than {DECODED_BYTES_MAX}"):
        columns(bomb).table()


def test_rows_in_many_threads() -> None:
    """Handlers in threads compress and decompress at the same time without mixing their data."""
    failures: list[object] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        events = [Event(f"t{number}", i, {"x": number * i / 3}) for i in range(300)]
        start.wait()
        for _ in range(30):
            try:
                if rows(encode_rows(events), 300).events() != events:
                    failures.append(number)
            except StandpipeError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def test_rows_as_a_table() -> None:
    """The table of a rows block has every field of any event, null where one has it not."""
    table = rows(encode_rows(EVENTS)).table()
    assert table.column_names == ["key", "time", "volts", "amps", "ok", "state", "count"]
    assert table.column("time").type == pa.int64()
    assert table.column("volts").to_pylist() == [230.5, None]
    assert table.column("count").to_pylist() == [None, 42]


def test_other_writers_numbers_stay_what_they_are() -> None:
    """NaN in another writer's block is handed over, and what fits in no column is an error."""
    nan = rows(msgspec.msgpack.encode([["a", 5, {"x": float("nan")}]]), 1)
    assert repr(nan.events()[0].fields["x"]) == "nan"
    huge = rows(msgspec.msgpack.encode([["a", 5, {"x": 2**64 - 1}]]), 1)
    assert huge.events()[0].fields["x"] == 2**64 - 1
    with pytest.raises(DecodeError, match="64 bits"):
        huge.table()


# --- columns -------------------------------------------------------------------------------------


def test_columns_come_back_as_they_were_sent() -> None:
    """Every type of field, nulls and missing keys included, survives a columns block."""
    table = check_table(
        pa.table(
            {
                "f": pa.array([1.5, None], pa.float32()),
                "time": [1, 2],
                "i": pa.array([-1, None], pa.int8()),
                "b": [None, True],
                "s": ["é", None],
                "y": [b"\xff", None],
                "n": pa.nulls(2),
                "key": [None, "b"],
            }
        )
    )
    for compress in (True, False):
        entry = columns(encode_columns(table, compress=compress))
        assert entry.table().equals(table)
        assert entry.events() == [
            Event(None, 1, {"f": 1.5, "i": -1, "b": None, "s": "é", "y": b"\xff", "n": None}),
            Event("b", 2, dict.fromkeys(("f", "i", "s", "y", "n"), None) | {"b": True}),
        ]


def test_columns_without_fields() -> None:
    """A block of keys and times alone is allowed: something was there at that time."""
    assert columns(encode_columns(check_table(two()))).events() == [
        Event("a", 1, {}),
        Event("b", 2, {}),
    ]


def test_a_columns_table_lies_over_the_payload() -> None:
    """An uncompressed columns block becomes a table without a copy of any column."""
    table = check_table(events_to_table(MANY))
    payload = encode_columns(table, compress=False)
    inside = pa.py_buffer(payload)
    for column in columns(payload, 500).table().columns:
        assert column.num_chunks == 1
        for buffer in filter(None, column.chunk(0).buffers()):
            assert 0 <= buffer.address - inside.address < inside.size


def test_a_slice_is_written_alone() -> None:
    """A block of a slice of a large table holds the slice's rows and nothing of the rest."""
    table = events_to_table(MANY)
    payload = encode_columns(table.slice(100, 10), compress=False)
    assert len(payload) < 2500
    assert columns(payload, 10).events() == MANY[100:110]


def test_chunks_become_one() -> None:
    """A table in chunks is written as one record batch, so that its readers get whole columns."""
    table = pa.concat_tables([events_to_table(MANY[:200]), events_to_table(MANY[200:])])
    decoded = columns(encode_columns(table), 500)
    assert decoded.table().column("flow").num_chunks == 1
    assert decoded.events() == MANY


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_columns_of_other_writers(compression: str | None) -> None:
    """Dictionaries, large types, timestamps and Arrow's own compression are read."""
    keys = pa.array(["meter", "meter"]).dictionary_encode()
    table = pa.table(
        {
            "s": pa.array(["x", None], pa.large_string()),
            "u": pa.array([2**63 - 1, 0], pa.uint64()),
            "time": pa.array([1_999_999, -1], pa.timestamp("ns", "Europe/Berlin")),
            "key": keys,
            "d": pa.array([b"a", b"a"]).dictionary_encode(),
            "y": pa.array([b"ab", None], pa.binary(2)),
        }
    )
    entry = columns(ipc(table, compression=compression))
    assert entry.events() == [
        Event("meter", 1, {"s": "x", "u": 2**63 - 1, "d": b"a", "y": b"ab"}),
        Event("meter", -1, {"s": None, "u": 0, "d": b"a", "y": None}),
    ]
    assert entry.table().schema.field("key").type == pa.string()


def test_columns_in_several_batches() -> None:
    """A stream of several record batches is one block of all their rows."""
    table = events_to_table(MANY)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=100)
    assert columns(sink.getvalue().to_pybytes(), 500).events() == MANY


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"key": ["a", "b"]}),
        pa.table({"time": [1, 2]}),
        two(x=[[1], [2]]),
        two(x=[{"a": 1}, {"a": 2}]),
        two(x=pa.array([1, 2], pa.decimal128(5, 2))),
        two(x=pa.array([1, 2], pa.timestamp("ms"))),
        two(x=pa.array(["a", "b"], pa.string_view())),
        two(x=pa.array([2**64 - 1, 0], pa.uint64())),
        pa.table({"key": ["a", "b"], "time": [1.5, 2.5]}),
        pa.table({"key": ["a", "b"], "time": [1, None]}),
        pa.table({"key": ["a", "b"], "time": [1, 10**18]}),
        pa.table({"key": [1.5, 2.5], "time": [1, 2]}),
        two(x=[1, 2]).append_column("x", pa.array([3, 4])),
        pa.table({"key": ["a"], "time": [1]}),
        pa.table({"key": ["a", "b", "c"], "time": [1, 2, 3]}),
    ],
)
def test_tables_that_are_no_events_are_decode_errors(table: pa.Table) -> None:
    """An Arrow stream of other columns, types or rows than a block has is a DecodeError."""
    with pytest.raises(DecodeError):
        columns(ipc(table)).table()


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: b"",
        lambda p: b"\xff\xff\xff\xff",
        lambda p: p[:100],
        lambda p: p[: len(p) // 2],
        lambda p: bytes(len(p)),
        lambda p: p[8:],
        lambda p: encode_rows(EVENTS),
        lambda p: zstandard.compress(p[:300]),
        lambda p: zstandard.compress(p)[:-1],
    ],
)
def test_damaged_columns_are_decode_errors(damage: Callable[[bytes], bytes]) -> None:
    """An Arrow stream that is cut off or overwritten is a DecodeError."""
    entry = columns(damage(ipc(two(x=[1.5, 2.5], s=["long enough", "to be cut"]))))
    with pytest.raises(DecodeError):
        entry.table()
    with pytest.raises(DecodeError):
        entry.events()


def test_offsets_that_point_outside_are_refused() -> None:
    """Foreign offsets are checked before they are followed, so that they cannot end the process."""
    payload = ipc(two(s=["aaaa", "bbbb"]))
    at = payload.rindex(struct.pack("<3i", 0, 4, 8))
    bad = payload[:at] + struct.pack("<3i", 0, 4, 2_000_000_000) + payload[at + 12 :]
    with pytest.raises(DecodeError):
        columns(bad).table()


def test_text_that_is_not_utf8_in_a_column() -> None:
    """A utf8 column that holds something else is refused, not handed to the handler."""
    payload = ipc(two(s=["aaaa", "bbbb"]))
    with pytest.raises(DecodeError, match="UTF8"):
        columns(payload.replace(b"aaaabbbb", b"\xffaaabbbb")).table()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_small_arrow_buffers_cannot_fill_the_memory(compression: str) -> None:
    """Compressed Arrow buffers that would unpack beyond the limit are refused beforehand."""
    zeros = bytes(DECODED_BYTES_MAX // 2 + 1)
    for column in (pa.array([zeros, zeros]), pa.array([zeros, zeros[1:]]).dictionary_encode()):
        bomb = ipc(two(x=column), compression=compression)
        assert len(bomb) < 1_000_000
        with pytest.raises(DecodeError, match=f"more than {DECODED_BYTES_MAX}"):
            columns(bomb).table()


def test_a_dictionary_cannot_fill_the_memory() -> None:
    """One long text that stands for every row is refused before it is unfolded."""
    count = 20_000
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * count, pa.int8()), pa.array(["x" * 10_000])
    )
    bomb = ipc(pa.table({"key": column, "time": range(count)}))
    with pytest.raises(DecodeError, match=f"more than {DECODED_BYTES_MAX}"):
        columns(bomb, count).table()
