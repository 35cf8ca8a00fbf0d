"""Files into events where it hurts: broken, cut off, huge, misnamed, half written."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from standpipe.clock import now_ms
from standpipe.errors import ConfigError, InputError, LineError
from standpipe.event import Event
from standpipe.formats import ReadOptions, Rejects, guess_format, read_events, to_ndjson
from standpipe.limits import FIELDS_PER_EVENT_MAX, INPUT_CHUNK_ROWS, LINE_BYTES_MAX

TIME = 1_700_000_000_000
FORMATS_OF_LINES = ("ndjson", "csv", "line")
GOOD = {
    "ndjson": f'{{"key": "m", "time": {TIME}, "volts": 1}}',
    "csv": f"m,{TIME},1",
    "line": f"meter,key=m volts=1 {TIME}000000",
}
BAD = {"ndjson": '{"key": "m", "volts": [1]}', "csv": "m,1", "line": "meter"}
START = {"ndjson": "", "csv": "key,time,volts\n", "line": ""}


def read(
    source: str | bytes | Path | Any, format: str, **options: Any
) -> tuple[list[Event], list[LineError]]:
    """All events and errors of an input."""
    if isinstance(source, str):
        source = source.encode()
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    events: list[Event] = []
    errors: list[LineError] = []
    for chunk in read_events(source, format, ReadOptions(**options)):
        events += chunk.events
        errors += chunk.errors
    return events, errors


def only_error(source: str | bytes, format: str, **options: Any) -> LineError:
    """The one error of an input without any event."""
    events, (error,) = read(source, format, **options)
    assert events == []
    assert error.hint
    return error


def parquet(table: pa.Table, **options: Any) -> io.BytesIO:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink


# --- all formats of lines ------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_bad_lines_among_many_keep_their_numbers(format: str) -> None:
    """However bad lines are strewn, the good ones all go through and each number is right."""
    bad = {1, 2, 64, 65, 66, 500, 777, 1000}
    first = 1 + START[format].count("\n")
    lines = [BAD[format] if n in bad else GOOD[format] for n in range(1, 1001)]
    chunks = list(read_events(io.BytesIO((START[format] + "\n".join(lines)).encode()), format))
    numbers = [n for chunk in chunks for n in chunk.numbers]
    errors = [error for chunk in chunks for error in chunk.errors]
    assert {error.line - first + 1 for error in errors} == bad
    assert {n - first + 1 for n in numbers} == set(range(1, 1001)) - bad
    assert all(error.text == BAD[format] for error in errors)
    assert chunks[-1].lines == 1000 + first - 1


@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_line_ends_and_a_mark_at_the_start_change_nothing(format: str) -> None:
    """CRLF, a byte order mark and a missing last newline give the same events and texts."""
    plain = START[format] + "\n".join([GOOD[format], BAD[format], "", GOOD[format]])
    expected = read(plain + "\n", format)
    assert [error.text for error in expected[1]] == [BAD[format]]
    for text in (plain, plain.replace("\n", "\r\n"), "\ufeff" + plain):
        events, errors = read(text, format)
        assert events == expected[0]
        assert [(e.line, e.text) for e in errors] == [(e.line, e.text) for e in expected[1]]


@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_a_line_that_never_ends_takes_no_memory(format: str) -> None:
    """Of a line above the limit, nothing is kept: memory stays far below its size."""
    size = 48 * LINE_BYTES_MAX

    class Endless(io.RawIOBase):
        left = size

        def readable(self) -> bool:
            return True

        def read(self, count: int = -1) -> bytes:
            part = b"x" * min(count, self.left)
            self.left -= len(part)
            return part

    if format == "csv":
        with pytest.raises(ConfigError, match="header"):
            read(Endless(), "csv")
        return
    tracemalloc.start()
    try:
        events, (error,) = read(Endless(), format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (events, error.line, error.text) == ([], 1, "")
    assert str(size) in error.message
    assert peak < 4 * LINE_BYTES_MAX


@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_a_line_at_the_limit_is_read_and_one_byte_more_is_not(format: str) -> None:
    """The limit counts the line's own bytes, and a line above it is the only one lost."""
    inner = {
        "ndjson": '{"key": "m", "volts": "%s"}',
        "csv": f"m,{TIME},%s",
        "line": 'meter,key=m volts="%s"',
    }[format]
    room = LINE_BYTES_MAX - len(inner) + 2
    # The csv module has a limit of its own for one field, so that the row is parted in many.
    filler = ",".join(["x" * 1000] * (room // 1001 + 1))[:room]
    for extra, said in (("", None), ("y", str(LINE_BYTES_MAX + 1))):
        text = START[format] + inner % (filler + extra) + "\n" + GOOD[format] + "\n"
        events, errors = read(text, format)
        assert len(events) + len(errors) == 2
        assert events[-1].fields.get("volts") == 1
        assert any("has" in e.message and str(said) in e.message for e in errors) == bool(said)


@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_lines_come_out_of_a_pipe_that_stays_open(format: str) -> None:
    """What a pipe has brought is read at once; it does not wait for more or for the end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        chunks = read_events(source, format)
        sink.write(START[format].encode())
        for n in range(3):
            sink.write(f"{GOOD[format]}\n".encode())
            found: list[Event] = []
            while not found:
                found = next(chunks).events
            assert len(found) == 1, n
        chunks.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"a", mtime=0), "gzip -dc"),
        (zstandard.compress(b"a"), "zstd -dc"),
        ("key,time".encode("utf-16"), "iconv"),
        (parquet(pa.table({"key": ["m"]})).getvalue(), "--format parquet"),
    ],
)
@pytest.mark.parametrize("format", FORMATS_OF_LINES)
def test_content_of_another_kind_is_one_error_and_not_thousands(
    format: str, content: bytes, said: str
) -> None:
    """Compressed, UTF-16 and Parquet content is recognised, and the hint says what to do."""
    with pytest.raises(ConfigError) as caught:
        read(content, format)
    assert said in caught.value.hint


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_off_is_an_error(tmp_path: Path, suffix: str) -> None:
    """A download that stopped half-way never passes for a whole file."""
    raw = b"".join(b'{"key":"m%d","time":%d}\n' % (n * 7919 % 100_003, n) for n in range(60_000))
    packed = gzip.compress(raw) if suffix == ".gz" else zstandard.compress(raw)
    path = tmp_path / f"a.ndjson{suffix}"
    for end in (len(packed) - 1, len(packed) // 2):
        path.write_bytes(packed[:end])
        found: list[Event] = []
        with pytest.raises(InputError, match="cannot be read on") as caught:
            for chunk in read_events(path, "ndjson"):
                found += chunk.events
        assert caught.value.hint
        # What came before the damage is good and in order.
        assert [event.time for event in found] == list(range(len(found)))
    assert found


def test_a_file_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path) -> None:
    """A missing file and a folder are refused with their names, for every format."""
    for format in (*FORMATS_OF_LINES, "parquet"):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ConfigError, match=str(path)):
                read(path, format)


def test_a_stream_stays_open() -> None:
    """Whoever opened standard input, or any stream, closes it."""
    for format in (*FORMATS_OF_LINES, "parquet"):
        content = START.get(format, "").encode()
        source = io.BytesIO(content)
        if format == "parquet":
            source = parquet(pa.table({"key": ["m"], "time": [1]}))
        read(source, format)
        assert not source.closed


# --- time and key --------------------------------------------------------------------------------


def test_a_reading_without_time_gets_the_time_of_reading_it() -> None:
    """An absent time is now; one that is there and empty, or null, is an error."""
    before = now_ms()
    events = read('{"key": "m", "volts": 1}', "ndjson")[0]
    events += read("meter,key=m volts=1", "line")[0]
    events += read("key,volts\nm,1", "csv", time_field=None)[0]
    events += read(parquet(pa.table({"key": ["m"]})), "parquet", time_field=None)[0]
    assert len(events) == 4
    assert all(before <= event.time <= now_ms() for event in events)
    assert "time" in only_error('{"key": "m", "time": null}', "ndjson").message
    assert "time" in only_error("key,time\nm,\n", "csv").message
    table = pa.table({"key": ["m"], "time": pa.array([None], pa.timestamp("ms"))})
    assert read(parquet(table), "parquet")[1][0].message.startswith("row 1: the time, 'time'")


@pytest.mark.parametrize(
    ("value", "precision", "expected"),
    [
        ("1700000000.123", "s", TIME + 123),
        ("1700000000123.9", "ms", TIME + 124),
        ("1700000000123999999", "ns", TIME + 123),
        ("-1", "us", -1),
        (" 1700000000000 ", "ms", TIME),
        ("2023-11-14T23:13:20.5+01:00", "s", TIME + 500),
        ("2023-11-14", "ns", 1_699_920_000_000),
    ],
)
def test_times_are_whole_milliseconds(value: str, precision: str, expected: int) -> None:
    """A finer integer is rounded down, a decimal to the nearest; ISO text has its own unit."""
    events, errors = read(f"key,time\nm,{value}\n", "csv", time_precision=precision)
    assert errors == []
    assert events[0].time == expected


@pytest.mark.parametrize(
    "value",
    [
        "1e308",
        "-1e308",
        "true",
        "1" * 30,
        "1" * 4200,
        "1" * 5000,
        f"-{'9' * 400}d",
        '"noon"',
        "[1]",
    ],
)
def test_a_time_that_is_none_is_an_error_and_nothing_else(value: str) -> None:
    """Overflow, thousands of digits and other types are bad lines, whatever Python says."""
    for precision in ("s", "ns"):
        if not value.endswith("d"):
            line = f'{{"key": "m", "time": {value}}}'
            assert only_error(line, "ndjson", time_precision=precision).line == 1
        line = f"key,time\nm,{value.strip(chr(34))}\n"
        assert only_error(line, "csv", time_precision=precision).line == 2


def test_a_time_in_another_unit_points_to_the_option() -> None:
    """Nanoseconds taken for milliseconds are the year 53 million: the hint names the option."""
    error = only_error(f'{{"key": "m", "time": {TIME}000000}}', "ndjson")
    assert f"{TIME}000000 ms" in error.message
    assert "--time-precision" in error.hint


def test_one_key_for_the_whole_input() -> None:
    """--key is the key of readings that have none, and of no others."""
    events, errors = read('{"volts": 1}\n{"key": null}\n{"key": "b"}', "ndjson", key="a")
    assert ([event.key for event in events], errors) == (["a", "a", "b"], [])
    events, errors = read("time,volts\n1,2\n", "csv", key="a")
    assert (events, errors) == ([Event("a", 1, {"volts": 2})], [])
    events, errors = read("meter,site=x volts=1 1000000\nmeter,host=b v=1 1", "line", key="a")
    assert ([event.key for event in events], errors) == (["a", "b"], [])
    assert events[0].fields == {"measurement": "meter", "site": "x", "volts": 1.0}


def test_a_missing_key_names_what_is_there() -> None:
    """Without a key the error lists the names found and the options that help."""
    error = only_error('{"meter": "m", "volts": 1}', "ndjson")
    assert "['meter', 'volts']" in error.message
    assert "--key-field" in error.hint
    assert "['site']" in only_error("meter,site=a volts=1", "line", key_field="device").message
    # Whole numbers are device ids too, other numbers and bools are not.
    assert read('{"key": 42, "time": 1}', "ndjson")[0] == [Event("42", 1, {})]
    for key in ("1.5", "true", '""', "[1]"):
        assert "key" in only_error(f'{{"key": {key}}}', "ndjson").message


def test_sentinels_are_texts_and_numbers() -> None:
    """--null means the value that is written, as text or as a number, in every format."""
    nulls = frozenset({"NaN", "-1000000", "n/a"})
    lines = '{"key": "m", "a": -1e6, "b": "NaN", "c": "n/a", "d": 0, "e": true, "f": "-1000000"}'
    assert list(read(lines, "ndjson", null_texts=nulls)[0][0].fields.values()) == [
        *[None] * 3,
        *(0, True, None),
    ]
    cells = f"key,time,a,b,c\nm,{TIME},-1000000.0,n/a,NaN\n"
    assert list(read(cells, "csv", null_texts=nulls)[0][0].fields.values()) == [None] * 3
    text = 'meter,key=m a=-1000000i,b="NaN",c=-1000000'
    assert [*read(text, "line", null_texts=nulls)[0][0].fields.values()][1:] == [None] * 3
    table = pa.table({"key": ["m"], "time": [1], "a": [float("nan")], "b": [-1000000]})
    assert read(parquet(table), "parquet", null_texts=nulls)[0] == [
        Event("m", 1, {"a": None, "b": None})
    ]
    # A bool is not the number that Python takes it for.
    assert read('{"key": "m", "on": true}', "ndjson", null_texts=frozenset({"1"}))[0][0].fields == {
        "on": True
    }


# --- NDJSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"key": "m", "volts": NaN}', "byte 22"),
        ("{'key': 'm'}", "byte 1"),
        ('{"key": "m"', "byte 11"),
        ('{"key": "m"} {"key": "n"}', "trailing"),
        ('{"key": "m", "t": "\\ud800"}', "surrogate"),
        ('{"key": "m", "v": 1e999}', "out of range"),
        ('{"key": "m", "v": ' + "1" * 5000 + "}", "out of range"),
        ('{"key": "m", "v": ' + "[" * 100_000, "nested"),
        ('{"key": "m", "v": {"a": 1}}', "'v'"),
        ('{"key": "m", "": 1}', "name"),
        ("5", "int"),
        ('{"key": "m", "site": "a", "fields": {}}', "['site']"),
        ('{"key": "m", "v": {"$base64": "not base64"}}', "'not base64'"),
        ('{"key": "m", "v": {"$base64": 5}}', "'v'"),
    ],
)
def test_what_is_wrong_with_a_line_of_ndjson(line: str, said: str) -> None:
    """The reason names the position or the field, and is of bounded length."""
    error = only_error(line, "ndjson")
    assert said in error.message
    assert len(error.message) < 500
    assert error.text == line


def test_an_array_points_to_jq() -> None:
    """A JSON document is not NDJSON, and one line of jq makes it that."""
    assert "jq" in only_error('[{"key": "m"}]', "ndjson").hint
    with pytest.raises(ConfigError) as caught:
        guess_format("a.json")
    assert "jq" in caught.value.hint


def test_bytes_whose_name_is_written_in_another_way() -> None:
    """JSON's escapes do not hide what the object is."""
    line = '{"key": "m", "time": 1, "v": {"\\u0024base64": "AAEC"}}'
    assert read(line, "ndjson")[0] == [Event("m", 1, {"v": b"\0\1\2"})]


def test_an_event_without_key_survives_tail_and_send() -> None:
    """A plain entry that someone wrote without a key has an explicit null."""
    event = Event(None, 1, {"volts": 1})
    assert read(to_ndjson(event), "ndjson") == ([event], [])


# --- CSV -----------------------------------------------------------------------------------------


def test_a_quote_that_is_not_closed_costs_its_line_only() -> None:
    """The lines after a stray quote are read as if it were not there."""
    text = f'key,time,note\na,{TIME},ok\nb,{TIME},"open\nc,{TIME},ok\nd,{TIME},ok\n'
    events, (error,) = read(text, "csv")
    assert [event.key for event in events] == ["a", "c", "d"]
    assert (error.line, error.text) == (3, f'b,{TIME},"open')
    assert "quote" in error.message


def test_a_quote_closed_by_a_later_one_is_named_with_its_lines() -> None:
    """A row that swallowed others says how many lines it took, and keeps them all."""
    text = f'key,time,note\na,{TIME},"x\nb,{TIME},y\nc,{TIME},z",1\nd,{TIME},ok\n'
    events, (error,) = read(text, "csv")
    assert [event.key for event in events] == ["d"]
    assert error.line == 2
    assert "4 columns instead of 3, in 3 lines" in error.message
    assert error.text == f'a,{TIME},"x\nb,{TIME},y\nc,{TIME},z",1'
    assert "quote" in error.hint


def test_a_quote_inside_a_quoted_cell_has_to_be_doubled() -> None:
    """A cell that goes on after its quote is refused, since its content would be a guess."""
    error = only_error(f'key,time,note\na,{TIME},"5" pipe"\n', "csv")
    assert error.line == 2
    assert "Double" in error.hint


def test_quoted_newlines_are_kept_and_counted() -> None:
    """A header and cells may span lines; CRLF inside a cell stays what it is."""
    text = f'key,time,"two\nlines"\r\na,{TIME},"1\r\n2"\r\n\r\nb,{TIME}\r\n'
    (chunk, last) = read_events(io.BytesIO(text.encode()), "csv")
    assert chunk.events == [Event("a", TIME, {"two\nlines": "1\r\n2"})]
    assert list(chunk.numbers) == [3]
    assert [error.line for error in chunk.errors + last.errors] == [6]
    assert chunk.header == 'key,time,"two\nlines"'


def test_a_row_of_empty_cells_is_no_blank_line() -> None:
    """Delimiters alone are a row without a key, also where the delimiter is white space."""
    for delimiter in (",", "\t"):
        text = "key,time,v\n,,\n\n   \nm,1,2\n".replace(",", delimiter)
        events, errors = read(text, "csv")
        assert len(events) == 1
        # The line of blanks is one; where it stands in a file is of no consequence.
        assert [error.line for error in errors] == [2]


def test_csv_that_is_not_utf8_is_kept_byte_for_byte() -> None:
    """A cell in another encoding is a bad row, not a changed one."""
    raw = b"key,time,note\nm,1,M\xfcnchen\nm,1,Munich\n"
    events, (error,) = read(raw, "csv")
    assert len(events) == 1
    assert error.text.encode("utf-8", "surrogateescape") == b"m,1,M\xfcnchen"
    assert "iconv" in error.hint


def test_a_csv_line_above_the_limit_costs_itself_only() -> None:
    """An endless line between good rows is one error, also where a quote was open before it."""
    huge = "x" * (LINE_BYTES_MAX + 1)
    text = f'key,time,v\na,1,2\nb,1,"open\n{huge}\nc,1,2\n'
    events, errors = read(text, "csv")
    assert [event.key for event in events] == ["a", "c"]
    assert [error.line for error in errors] == [3, 4]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "empty"),
        ("\n\n", {}, "empty"),
        ("key,time,v,v\n", {}, r"\['v'\]"),
        (",key,time\n", {}, "column 1 has no name"),
        ("key,time,v\n", {"leave_out": frozenset({"w"})}, r"\['w'\]"),
        ("key,time,v\n", {"text_fields": frozenset({"w"})}, r"\['w'\]"),
        ("key;time\n", {"delimiter": ","}, "key;time"),
        ('key,time,"v', {}, "quote"),
        ("key,time\rm,1\r", {}, "header"),
        ("key,time,M\udcfcnchen\n", {}, "UTF-8"),
        ("x" * 200_000 + "\n", {}, "header"),
    ],
)
def test_what_is_wrong_with_a_header(text: str, options: dict[str, Any], said: str) -> None:
    """A header that does not fit ends the reading before any event, with a hint."""
    with pytest.raises(ConfigError, match=said) as caught:
        read(text.encode("utf-8", "surrogateescape"), "csv", **options)
    assert caught.value.hint


def test_a_column_without_name_can_be_left_out() -> None:
    """The index that pandas writes, a first column without a name, is one option away."""
    events, errors = read(",key,time\n0,m,1\n", "csv", leave_out=frozenset({""}))
    assert (events, errors) == ([Event("m", 1, {})], [])


def test_too_many_columns_are_refused_at_the_header() -> None:
    """A table wider than an event can be is one error, not one per row."""
    names = ",".join(f"c{n}" for n in range(FIELDS_PER_EVENT_MAX + 1))
    with pytest.raises(ConfigError, match=str(FIELDS_PER_EVENT_MAX)):
        read(f"key,time,{names}\n", "csv")


def test_numbers_can_stay_text() -> None:
    """Without number sniffing every cell is text, and an empty one still missing."""
    events, _ = read("key,time,a,b\nm,1,230.5,\n", "csv", numbers=False)
    assert events == [Event("m", 1, {"a": "230.5", "b": None})]


# --- line protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("meter,key=m v=1,v=2", "more than once"),
        ("meter,key=m,v=a v=2", "'v'"),
        ('meter,key=m measurement="x"', "'measurement'"),
        ("meter,key=m v=18446744073709551615u", "64 bits"),
        ('meter,key=m v="NaN"', "'NaN'"),
        ('meter,key=m v="two', "field"),
        ("meter,key=m v=1 99999999999999999999", "timestamp"),
        ("meter,key=" + "k" * 600 + " v=1", "600 bytes"),
    ],
)
def test_what_is_wrong_with_a_line_of_line_protocol(line: str, said: str) -> None:
    """A value that would vanish or change is refused, with its name."""
    error = only_error(line, "line")
    assert said in error.message
    assert error.text == line


def test_a_line_of_line_protocol_that_is_not_utf8() -> None:
    """The position counts bytes, as an editor for bytes does."""
    assert "byte 18 is 0xff" in only_error(b'meter,key=m t="\xc3\xa9\xff" 5', "line").message


def test_no_two_series_share_a_key() -> None:
    """A series' name escapes what its parts are made of, and is sorted by tag."""
    lines = r"m,b=2,a=1 v=1" + "\n" + r"m,a=1\,b\=2 v=1" + "\n" + r"m\,a=1,b=2 v=1"
    events, errors = read(lines, "line")
    assert errors == []
    assert [event.key for event in events] == ["m,a=1,b=2", r"m,a=1\,b\=2", r"m\,a=1,b=2"]


# --- Parquet -------------------------------------------------------------------------------------


def test_parquet_types_and_what_they_become() -> None:
    """Moments become milliseconds, rounded down; decimals numbers where a double holds them."""
    moment = datetime.datetime(1969, 12, 31, 23, 59, 59, 999_500)
    table = pa.table(
        {
            "key": pa.array([7], pa.int32()),
            "time": pa.array([moment], pa.timestamp("us")),
            "ns": pa.array([1_999_999], pa.timestamp("ns")),
            "day": pa.array([datetime.date(1970, 1, 2)], pa.date32()),
            "day64": pa.array([datetime.date(1970, 1, 2)], pa.date64()),
            "price": pa.array([decimal.Decimal("12.50")], pa.decimal128(9, 2)),
            "exact": pa.array([decimal.Decimal("0.12345678901234567890")], pa.decimal128(30, 20)),
            "state": pa.array(["on"]).dictionary_encode(),
            "half": pa.array([1.5], pa.float16()),
            "large": pa.array(["x"], pa.large_string()),
            "raw": pa.array([b"\0\xff"], pa.binary()),
            "flag": pa.array([True]),
            "void": pa.array([None], pa.null()),
            "a.b": pa.array([2**63 - 1], pa.uint64()),
        }
    )
    (event,), errors = read(parquet(table), "parquet")
    assert errors == []
    assert (event.key, event.time) == ("7", -1)
    assert repr(list(event.fields.values())) == repr(
        [
            *(1, 86_400_000, 86_400_000, 12.5, "0.12345678901234567890", "on", 1.5, "x"),
            *(b"\0\xff", True, None, 2**63 - 1),
        ]
    )


def test_nested_columns_can_be_left_out() -> None:
    """The error names all columns that no event can hold; without them the rest is read."""
    table = pa.table({"key": ["m"], "time": [1], "l": [[1]], "s": [{"x": 1}], "v": [2]})
    with pytest.raises(ConfigError, match=r"l \(list.*s \(struct"):
        read(parquet(table), "parquet")
    events, _ = read(parquet(table), "parquet", leave_out=frozenset({"l", "s"}))
    assert events == [Event("m", 1, {"v": 2})]


@pytest.mark.parametrize("kind", [pa.float64(), pa.binary(), pa.bool_()])
def test_a_parquet_key_is_text_or_whole_numbers(kind: pa.DataType) -> None:
    """A key column of another type is one error at the start."""
    table = pa.table({"key": pa.array([None], kind), "time": [1]})
    with pytest.raises(ConfigError, match="the key, 'key'"):
        read(parquet(table), "parquet")


def test_parquet_rows_keep_their_numbers_across_batches() -> None:
    """Rows are read in batches and row groups of any size, and counted through."""
    count = INPUT_CHUNK_ROWS * 2 + 10
    bad = {1, INPUT_CHUNK_ROWS, INPUT_CHUNK_ROWS + 1, count}
    volts = [float("nan") if n in bad else float(n) for n in range(1, count + 1)]
    table = pa.table({"key": ["m"] * count, "time": list(range(count)), "volts": volts})
    source = parquet(table, row_group_size=1000)
    chunks = list(read_events(source, "parquet"))
    assert {error.line for chunk in chunks for error in chunk.errors} == bad
    for chunk in chunks:
        assert [event.fields["volts"] for event in chunk.events] == list(chunk.numbers)
        assert len(chunk.events) <= INPUT_CHUNK_ROWS
    assert (chunks[-1].lines, chunks[-1].bytes) == (count, len(source.getvalue()))


def test_a_damaged_parquet_file_is_an_error_after_the_rows_before() -> None:
    """Damage in a later row group does not take the rows before it along."""
    table = pa.table(
        {"key": ["m"] * 4000, "time": list(range(4000)), "v": os.urandom(4000).hex(" ").split()}
    )
    raw = bytearray(parquet(table, row_group_size=1000, use_dictionary=False).getvalue())
    begin = pq.ParquetFile(io.BytesIO(raw)).metadata.row_group(3).column(0).data_page_offset
    raw[begin : begin + 200] = b"\xff" * 200
    with pytest.raises(InputError, match="cannot be read on") as caught:
        read(bytes(raw), "parquet")
    assert caught.value.hint


def test_parquet_needs_to_seek() -> None:
    """A pipe is refused with the way out, before anything is read."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb") as source,
        os.fdopen(writing, "wb"),
        pytest.raises(ConfigError) as caught,
    ):
        read(source, "parquet")
    assert "Save it" in caught.value.hint


# --- rejects -------------------------------------------------------------------------------------


def keep_rejects(path: Path, source: bytes | io.BytesIO, format: str) -> Rejects:
    """Read a source and keep what is bad."""
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with Rejects(path) as rejects:
        for chunk in read_events(source, format):
            rejects.add(chunk)
    return rejects


def test_the_header_of_rejects_is_written_once(tmp_path: Path) -> None:
    """Bad rows of many chunks stand below one header, bytes that are no UTF-8 included."""
    rows = [
        b"m,1,M\xfcnchen" if n % 1000 == 0 else b"m,1,Munich and some more" for n in range(10_000)
    ]
    raw = b"key,time,note\r\n" + b"\r\n".join(rows) + b"\r\n"
    rejects = keep_rejects(tmp_path / "bad.csv", raw, "csv")
    assert (rejects.written, rejects.lost) == (10, 0)
    written = (tmp_path / "bad.csv").read_bytes()
    assert written == b"key,time,note\n" + b"m,1,M\xfcnchen\n" * 10
    mended = written.decode("latin1")
    assert len(read(mended, "csv")[0]) == 10


def test_without_bad_lines_there_is_no_file(tmp_path: Path) -> None:
    """The file of rejects is there only if something is in it."""
    keep_rejects(tmp_path / "bad.csv", f"{START['csv']}{GOOD['csv']}".encode(), "csv")
    assert not (tmp_path / "bad.csv").exists()


def test_lines_too_long_to_keep_are_counted(tmp_path: Path) -> None:
    """A line that was not kept is not written, half of it least of all, but counted."""
    raw = b"x" * (LINE_BYTES_MAX + 1) + b"\nbad\n"
    rejects = keep_rejects(tmp_path / "bad.line", raw, "line")
    assert (rejects.written, rejects.lost) == (1, 1)
    assert (tmp_path / "bad.line").read_bytes() == b"bad\n"


def test_bad_parquet_rows_fail_in_the_same_way_as_ndjson_until_mended(tmp_path: Path) -> None:
    """Rejects of Parquet are NDJSON that nothing mends unseen, and that can be sent once mended."""
    table = pa.table(
        {
            "key": ["m", None, "m", "m"],
            "time": pa.array([1, 2, None, 3], pa.timestamp("s")),
            "volts": [float("nan"), 1.0, 2.0, float("inf")],
            "raw": [b"\xff"] * 4,
        }
    )
    rejects = keep_rejects(tmp_path / "bad.ndjson", parquet(table), "parquet")
    assert rejects.written == 4
    text = (tmp_path / "bad.ndjson").read_text()
    events, errors = read(text, "ndjson")
    assert events == []
    assert [error.line for error in errors] == [1, 2, 3, 4]
    # ISO 8601, so that the unit of numeric times has no say.
    mended = text.replace('"nan"', "230.5").splitlines()[0]
    for precision in ("s", "ms"):
        assert read(mended, "ndjson", time_precision=precision)[0] == [
            Event("m", 1000, {"volts": 230.5, "raw": b"\xff"})
        ]


def test_rejects_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    """A folder that is not there is reported, rather than the bad lines lost."""
    with pytest.raises(ConfigError, match="cannot be written"):
        keep_rejects(tmp_path / "no" / "bad.line", b"bad\n", "line")
