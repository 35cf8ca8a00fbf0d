"""Files into events: what is good goes through, what is bad is named with its line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from standpipe.errors import ConfigError, LineError
from standpipe.event import Event, EventId
from standpipe.formats import (
    ReadOptions,
    Rejects,
    guess_format,
    read_events,
    rejects_format,
    to_ndjson,
)
from standpipe.limits import INTEGER_MAX, INTEGER_MIN, LINE_BYTES_MAX

TIME = 1_700_000_000_000


def read(
    text: str | bytes, format: str, **options: Any
) -> tuple[list[Event], list[LineError], list[int]]:
    """All events, errors and line numbers of an input."""
    raw = text.encode() if isinstance(text, str) else text
    events: list[Event] = []
    errors: list[LineError] = []
    numbers: list[int] = []
    for chunk in read_events(io.BytesIO(raw), format, ReadOptions(**options)):
        events += chunk.events
        errors += chunk.errors
        numbers += chunk.numbers
    return events, errors, numbers


# --- which format --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.ndjson", "ndjson"),
        ("a.jsonl.gz", "ndjson"),
        ("A.CSV", "csv"),
        ("a.tsv.zst", "csv"),
        ("a.parquet", "parquet"),
        ("a.lp", "line"),
    ],
)
def test_the_suffix_says_the_format(name: str, format: str) -> None:
    """A file's suffix, also behind .gz or .zst, decides how it is read."""
    assert guess_format(name) == format


@pytest.mark.parametrize("name", ["-", "readings", "a.json", "a.xlsx"])
def test_a_name_that_says_nothing_is_an_error_with_the_option(name: str) -> None:
    """Where the name does not tell, the error names the option that does."""
    with pytest.raises(ConfigError) as caught:
        guess_format(name)
    assert "--format" in caught.value.hint


def test_an_unknown_format_and_wrong_options_are_refused() -> None:
    """Formats and options that do not exist are refused with what there is."""
    with pytest.raises(ConfigError, match="xml"):
        read("", "xml")
    with pytest.raises(ConfigError, match="time_precision"):
        ReadOptions(time_precision="min")
    with pytest.raises(ConfigError, match="delimiter"):
        ReadOptions(delimiter="ab")
    with pytest.raises(ConfigError, match=r"missing\.csv"):
        list(read_events(Path("missing.csv"), "csv"))


# --- NDJSON --------------------------------------------------------------------------------------


def test_ndjson_flat_and_apart() -> None:
    """An object is a flat reading, or has its fields apart; blank lines are no readings."""
    lines = [
        {"key": "m", "time": TIME, "volts": 230.5, "on": True, "note": None},
        {"key": "m", "time": "2023-11-14T22:13:20Z", "fields": {"volts": 1, "time": "CET"}},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n"
    events, errors, numbers = read(text, "ndjson")
    assert errors == []
    assert numbers == [1, 3]
    assert events == [
        Event("m", TIME, {"volts": 230.5, "on": True, "note": None}),
        Event("m", TIME, {"volts": 1, "time": "CET"}),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"key": "m", "volts": [1, 2]}', "volts"),
        ('{"key": "m", "volts": "NaN"}', "'NaN'"),
        ('{"key": "", "volts": 1}', "key"),
        ('{"key": "m", "volts": 1', "line 2"),
        ("[1, 2]", "line 2"),
        ('{"key": "m", "time": "yesterday", "volts": 1}', "yesterday"),
        ('{"key": "m", "volts": 99999999999999999999999}', "volts"),
    ],
)
def test_a_bad_ndjson_line_is_named_and_the_rest_goes_on(line: str, said: str) -> None:
    """A line that is no event is reported with its number, its reason and a hint."""
    good = '{"key": "m", "volts": 1}'
    events, errors, numbers = read("\n".join([good, line, good]), "ndjson")
    assert len(events) == 2
    assert numbers == [1, 3]
    (error,) = errors
    assert (error.line, error.text) == (2, line)
    assert said in error.message
    assert error.message.startswith("line 2")
    assert error.hint


def test_a_line_that_is_not_utf8_is_named() -> None:
    """Bytes that are no UTF-8 are a bad line, kept byte for byte."""
    raw = b'{"key": "m", "note": "\xff"}'
    events, errors, _ = read(raw + b'\n{"key": "m", "volts": 1}\n', "ndjson")
    assert len(events) == 1
    assert errors[0].line == 1
    assert errors[0].text.encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("format", ["ndjson", "line"])
def test_a_line_without_end_is_passed_over(format: str) -> None:
    """A line above the limit is an error of its own and takes no memory; the next one is read."""
    good = '{"key": "m", "volts": 1}' if format == "ndjson" else "meter,key=m volts=1"
    huge = "x" * (LINE_BYTES_MAX * 3)
    events, errors, numbers = read(f"{good}\n{huge}\n{good}\n", format)
    assert len(events) == 2
    assert numbers == [1, 3]
    assert [error.line for error in errors] == [2]
    assert str(len(huge)) in errors[0].message


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(INTEGER_MIN, INTEGER_MAX),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=20),
    st.text(st.characters(codec="utf-8"), max_size=20).filter(
        lambda text: text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")
    ),
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)
EVENTS = st.builds(
    Event,
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.integers(0, 253_402_300_799_999),
    st.dictionaries(NAMES, VALUES, max_size=5),
)


@given(st.lists(EVENTS, max_size=5))
def test_what_tail_writes_send_reads(events: list[Event]) -> None:
    """Any event written as NDJSON is the same event when it is read, types included."""
    lines = b"".join(to_ndjson(event, EventId(1, 2, 3), shard=4) for event in events)
    found, errors, _ = read(lines, "ndjson")
    assert errors == []
    assert found == events
    assert [list(map(type, e.fields.values())) for e in found] == [
        list(map(type, e.fields.values())) for e in events
    ]


# --- CSV -----------------------------------------------------------------------------------------

CSV = """meter,time,volts,note
m1,2023-11-14T22:13:20Z,230.5,ok
m2,1700000000000,,"a, ""b""
c"
m3,1700000000000,007,true
"""


def test_csv_cells_become_values_without_loss() -> None:
    """Numbers, bools, missing and text cells are what they write; quotes and newlines are kept."""
    events, errors, numbers = read(CSV, "csv", key_field="meter")
    assert errors == []
    assert numbers == [2, 3, 5]
    assert events == [
        Event("m1", TIME, {"volts": 230.5, "note": "ok"}),
        Event("m2", TIME, {"volts": None, "note": 'a, "b"\nc'}),
        Event("m3", TIME, {"volts": "007", "note": True}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_from_anywhere(delimiter: str, newline: str, mark: str) -> None:
    """Delimiters are found in the header; CRLF and a byte order mark do not matter."""
    rows = ["key,time,volts", f"m,{TIME},1.5", f"m,{TIME},2"]
    text = mark + newline.join(row.replace(",", delimiter) for row in rows) + newline
    events, errors, _ = read(text, "csv")
    assert errors == []
    assert [event.fields for event in events] == [{"volts": 1.5}, {"volts": 2}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (f"m,{TIME}", "2 columns instead of 3"),
        (f"m,{TIME},1,2", "4 columns instead of 3"),
        (f"m,{TIME},NaN", "'NaN'"),
        (f",{TIME},1", "key"),
        ("m,noon,1", "noon"),
    ],
)
def test_a_bad_csv_row_is_named_and_the_rest_goes_on(row: str, said: str) -> None:
    """A row with too few columns, a NaN, no key or no time is reported with its line."""
    good = f"m,{TIME},1"
    events, errors, _ = read("\n".join(["key,time,volts", good, row, good]), "csv")
    assert len(events) == 2
    (error,) = errors
    assert error.line == 3
    assert said in error.message
    assert error.text == row
    assert error.hint


@pytest.mark.parametrize(
    ("header", "said"), [("meter,time,v", "key"), ("key,v", "time"), ("key,time,v,v", "v")]
)
def test_a_header_that_does_not_fit_is_refused(header: str, said: str) -> None:
    """A missing key or time column, or two of one name, ends the reading before it begins."""
    with pytest.raises(ConfigError, match=said) as caught:
        read(f"{header}\na,b,c,d\n", "csv")
    assert caught.value.hint


def test_null_texts_leave_out_and_text_columns() -> None:
    """Sentinels become None, columns can be left out, and text can stay text."""
    text = f"key,time,volts,serial,junk\nm,{TIME},-1000000,42,x\nm,{TIME},NaN,43,y\n"
    events, errors, _ = read(
        text,
        "csv",
        null_texts=frozenset({"NaN", "-1000000"}),
        leave_out=frozenset({"junk"}),
        text_fields=frozenset({"serial"}),
    )
    assert errors == []
    assert [event.fields for event in events] == [
        {"volts": None, "serial": "42"},
        {"volts": None, "serial": "43"},
    ]


# --- line protocol -------------------------------------------------------------------------------


def test_line_protocol() -> None:
    """Measurement and tags become text fields, nanoseconds milliseconds, a tag the key."""
    text = (
        "# readings\n"
        'meter,device=inverter-7,site=a volts=230.5,count=3i,ok=t,state="on" 1700000000000999999\n'
        "meter,site=b volts=1\n"
    )
    events, errors, numbers = read(text, "line")
    assert errors == []
    assert numbers == [2, 3]
    assert events[0] == Event(
        "inverter-7",
        TIME,
        {
            "measurement": "meter",
            "site": "a",
            "volts": 230.5,
            "count": 3,
            "ok": True,
            "state": "on",
        },
    )
    assert events[1].key == "meter,site=b"


@pytest.mark.parametrize("line", ["meter", "meter volts=", "meter volts=1 noon", "meter,x volts=1"])
def test_a_bad_line_of_line_protocol_is_named(line: str) -> None:
    """A line that is no line protocol is reported with its number and how it is written."""
    events, errors, _ = read(f"meter,key=m volts=1\n{line}\n", "line")
    assert len(events) == 1
    assert [error.line for error in errors] == [2]
    assert errors[0].hint


def test_the_precision_of_numeric_times() -> None:
    """--time-precision decides the unit of times that are numbers."""
    for precision, time in (("s", TIME // 1000), ("us", TIME * 1000), ("ns", TIME * 10**6)):
        for format, text in (
            ("line", f"meter,key=m volts=1 {time}"),
            ("ndjson", f'{{"key": "m", "time": {time}, "volts": 1}}'),
            ("csv", f"key,time,volts\nm,{time},1"),
        ):
            events, errors, _ = read(text, format, time_precision=precision)
            assert errors == []
            assert events[0].time == TIME


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_parquet_rows() -> None:
    """Rows become events: timestamps milliseconds, null None, numbers what they are."""
    table = pa.table(
        {
            "meter": ["m1", "m2"],
            "time": pa.array([TIME, TIME + 1], pa.timestamp("ms", tz="UTC")),
            "volts": pa.array([230.5, None]),
            "count": pa.array([3, 4], pa.int32()),
        }
    )
    events, errors, numbers = read(_parquet(table), "parquet", key_field="meter")
    assert errors == []
    assert numbers == [1, 2]
    assert events == [
        Event("m1", TIME, {"volts": 230.5, "count": 3}),
        Event("m2", TIME + 1, {"volts": None, "count": 4}),
    ]


def test_a_bad_parquet_row_is_named_and_nested_columns_are_refused() -> None:
    """A row that is no event has its number; a nested column ends the reading with a hint."""
    table = pa.table({"key": ["m", "", "m"], "time": [TIME] * 3, "volts": [1.0, 2.0, None]})
    events, errors, _ = read(_parquet(table), "parquet")
    assert len(events) == 2
    assert [error.line for error in errors] == [2]
    nested = pa.table({"key": ["m"], "time": [TIME], "volts": [[1.0, 2.0]]})
    with pytest.raises(ConfigError, match="volts"):
        read(_parquet(nested), "parquet")
    with pytest.raises(ConfigError):
        read(b"not parquet at all", "parquet")


# --- files ---------------------------------------------------------------------------------------


def test_compressed_files_and_progress(tmp_path: Path) -> None:
    """.gz and .zst are unpacked, and the bytes read so far reach the file's size."""
    raw = "".join(f'{{"key": "m", "time": {TIME + n}, "n": {n}}}\n' for n in range(20_000)).encode()
    contents = {
        "a.ndjson": raw,
        "a.ndjson.gz": gzip.compress(raw),
        "a.ndjson.zst": zstandard.compress(raw),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        chunks = list(read_events(path, guess_format(name)))
        assert [e.fields["n"] for chunk in chunks for e in chunk.events] == list(range(20_000))
        assert max(len(chunk.events) for chunk in chunks) < 20_000
        assert chunks[-1].bytes == path.stat().st_size
        assert chunks[-1].lines == 20_000


def test_rejects_can_be_sent_again(tmp_path: Path) -> None:
    """The bad rows of a CSV file are a CSV file; one that is there is never overwritten."""
    path = tmp_path / "bad.csv"
    text = f"key,time,volts\nm,{TIME},1\nm,{TIME}\nm,{TIME},NaN\n"
    with Rejects(path) as rejects:
        for chunk in read_events(io.BytesIO(text.encode()), "csv"):
            rejects.add(chunk)
    assert path.read_text() == f"key,time,volts\nm,{TIME}\nm,{TIME},NaN\n"
    assert rejects.written == 2
    with pytest.raises(ConfigError, match="is there already"):
        Rejects(path)
    assert rejects_format("parquet") == "ndjson"
