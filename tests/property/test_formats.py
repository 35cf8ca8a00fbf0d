"""Files into events, for any content: nothing is lost, nothing changes, nothing is made up."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from standpipe.codec.values import sniff
from standpipe.errors import ConfigError, LineError
from standpipe.event import Event
from standpipe.formats import FORMATS, ReadOptions, read_events
from standpipe.formats.reading import cell_value, cell_values, number_of

# Two cores and cold imports make single examples slow; what counts is that they all hold.
patient = settings(deadline=None, max_examples=200)


class SlowPipe(io.RawIOBase):
    """A stream that returns its bytes in portions of given sizes, as a pipe does."""

    def __init__(self, content: bytes, sizes: Iterator[int]) -> None:
        self._left = content
        self._sizes = sizes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(next(self._sizes), size)
        part, self._left = self._left[:size], self._left[size:]
        return part


def read(source: Any, format: str, **options: Any) -> tuple[list[Event], list[LineError], int]:
    """All events and errors of an input, and the number of its lines."""
    events: list[Event] = []
    errors: list[LineError] = []
    lines = 0
    for chunk in read_events(source, format, ReadOptions(**options)):
        events += chunk.events
        errors += chunk.errors
        assert len(chunk.events) == len(chunk.numbers)
        assert list(chunk.numbers) == sorted(chunk.numbers)
        assert chunk.lines >= lines
        lines = chunk.lines
    return events, errors, lines


def _fingerprint(read_back: tuple[list[Event], list[LineError], int]) -> str:
    """Everything that was read, types included; repr tells 1 from 1.0 and 0.0 from -0.0."""
    events, errors, lines = read_back
    return repr((events, [(e.line, e.message, e.text) for e in errors], lines))


# --- numbers -------------------------------------------------------------------------------------

NUMBERLIKE = st.one_of(
    st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
    st.from_regex(r"[-+0-9.eE_ ]{0,8}", fullmatch=True),
    st.floats().map(repr),
    st.sampled_from(["true", "false", "True", "null", "", "-0", "-0.0", "1,2", "[1]", '"1"']),
    st.text(max_size=6),
)


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


@patient
@given(NUMBERLIKE)
def test_a_cell_means_what_it_means_in_a_plain_entry(text: str) -> None:
    """CSV and plain entries have one rule for what text is a number, down to -0 and 1e400."""
    text = text.strip()
    expected = sniff(text.encode("utf-8", "surrogatepass")) if text else None
    if not isinstance(expected, bytes):
        assert _same(cell_value(text), expected)


@patient
@given(st.lists(NUMBERLIKE, max_size=6))
def test_a_column_is_read_as_its_cells_are(cells: list[str]) -> None:
    """The quick way through a column gives what looking at every cell gives."""
    for found, cell in zip(cell_values(cells), cells, strict=True):
        assert _same(found, cell_value(cell))


@patient
@given(NUMBERLIKE)
def test_a_number_has_the_value_of_its_text(text: str) -> None:
    """What becomes a number has exactly the decimal value that was written."""
    number = number_of(text)
    if number is not None:
        assert Decimal(repr(number)) == Decimal(text)
        assert isinstance(json.loads(text), int | float)


# --- CSV -----------------------------------------------------------------------------------------

CELL_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12).filter(
        lambda text: not _is_nan(text)
    ),
)
ROWS = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8),
        st.integers(0, 4_102_444_800_000),
        CELL_VALUES,
        CELL_VALUES,
    ),
    max_size=8,
)


def _is_nan(text: str) -> bool:
    """Whether the text is one that no event holds, since it stands for no number."""
    return text.strip().lstrip("+-").lower() in {"nan", "inf", "infinity"}


def _written(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


@patient
@given(ROWS, st.sampled_from(",;|\t"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_gives_back_what_was_written(rows: list[Any], delimiter: str, quoting: Any) -> None:
    """Values that the csv module writes come back, in their order and with their types."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerow(["key", "time", "a", "b"])
    for key, time, a, b in rows:
        writer.writerow([key, time, _written(a), _written(b)])
    events, errors, _ = read(io.BytesIO(file.getvalue().encode()), "csv")
    # A text that looks like a number is one in CSV: what it means is the rule of plain entries.
    expected = [
        Event(k, t, {"a": cell_value(_written(a)), "b": cell_value(_written(b))})
        for k, t, a, b in rows
    ]
    assert errors == []
    assert repr(events) == repr(expected)


# --- line protocol -------------------------------------------------------------------------------

# A backslash at the end of a name would escape what follows it; line protocol cannot write that.
LINE_NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\\\n\r\0", exclude_categories=["Z", "C"]),
    min_size=1,
    max_size=6,
).filter(lambda name: name[0] != "#" and name != "measurement" and not _is_nan(name))
LINE_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\\\n\r\0"), max_size=8
).filter(lambda text: not _is_nan(text))


def _name(text: str) -> str:
    return text.replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


@patient
@given(
    LINE_NAMES,
    st.dictionaries(LINE_NAMES, LINE_NAMES, max_size=3),
    st.dictionaries(LINE_NAMES, LINE_TEXTS, min_size=1, max_size=3),
    st.booleans(),
)
def test_line_protocol_gives_back_what_was_written(
    measurement: str, tags: dict[str, str], fields: dict[str, str], twice: bool
) -> None:
    """Every name and text comes back, in its order; a field given twice is never dropped unseen."""
    tags = {name: value for name, value in tags.items() if name not in fields}
    series = measurement.replace(",", "\\,")
    series += "".join(f",{_name(tag)}={_name(value)}" for tag, value in tags.items())
    pairs = [f'{_name(name)}="' + text.replace('"', '\\"') + '"' for name, text in fields.items()]
    if twice:
        pairs.append(pairs[0])
    raw = f"{series} {','.join(pairs)} 1700000000000000000".encode()
    events, errors, _ = read(io.BytesIO(raw), "line", key_field="no such tag", key="k")
    if twice:
        assert (events, len(errors)) == ([], 1)
    else:
        expected = {"measurement": measurement, **tags, **fields}
        assert errors == []
        assert events == [Event("k", 1_700_000_000_000, expected)]
        assert list(events[0].fields) == list(expected)


# --- every line is accounted for -----------------------------------------------------------------

NDJSON_LINES = st.one_of(
    st.sampled_from(
        [
            b'{"key":"m","time":1,"v":1}',
            b'{"key":"m","time":1,"fields":{"v":{"$base64":"AAEC"}}}',
            b'{"key":"m","time":1,"v":[1]}',
            b'{"key":"m","v":"NaN","time":1}',
            b'{"key":"m","time":1}{"key":"m","time":2}',
            b'{"key":"m",',
            b'"time":1}',
            b"[]",
        ]
    ),
    st.binary(max_size=12),
)
LINE_LINES = st.one_of(
    st.sampled_from(
        [
            b"meter,device=a volts=1 1",
            b'meter,device=a s="x=\\"1\\", y" 1',
            b"meter,device=a v=1,v=2 1",
            b"# comment",
            b"meter",
        ]
    ),
    st.binary(max_size=12),
)
CSV_LINES = st.one_of(
    st.sampled_from([b"m,1,2", b'm,1,"a"', b'm,1,"', b'",1,2', b"m,1", b',,""', b"m,1,NaN"]),
    st.binary(max_size=8).filter(lambda raw: b'"' not in raw),
)


def _lines(raw: bytes) -> list[bytes]:
    return raw.removesuffix(b"\n").split(b"\n") if raw else []


@patient
@given(st.lists(NDJSON_LINES, max_size=12), st.booleans())
def test_every_ndjson_line_is_an_event_or_an_error(lines: list[bytes], ended: bool) -> None:
    """A line that is not blank is an event or a named error, whatever it holds."""
    raw = b"\n".join([b'{"key":"m","time":1}', *lines]) + b"\n" * ended
    events, errors, count = read(io.BytesIO(raw), "ndjson")
    written = _lines(raw)
    assert count == len(written)
    assert len(events) + len(errors) == sum(bool(line.strip()) for line in written)
    for error in errors:
        assert error.text.encode("utf-8", "surrogateescape") == written[error.line - 1].rstrip(
            b"\r"
        )


@patient
@given(st.lists(LINE_LINES, max_size=12))
def test_every_line_of_line_protocol_is_an_event_or_an_error(lines: list[bytes]) -> None:
    """A line that is neither blank nor a comment is an event or a named error."""
    raw = b"\n".join([b"meter,device=a volts=1 1", *lines, b"end v=1 1"])
    events, errors, count = read(io.BytesIO(raw), "line")
    texts = [line.decode("utf-8", "surrogateescape").strip() for line in _lines(raw)]
    assert count == len(texts)
    assert len(events) + len(errors) == sum(bool(t) and t[0] != "#" for t in texts)


@patient
@given(st.lists(CSV_LINES, max_size=12))
def test_every_csv_row_is_an_event_or_an_error(lines: list[bytes]) -> None:
    """Where the csv module finds rows, each that is not blank is an event or a named error."""
    raw = b"\n".join([b"key,time,v", *lines, b"end,1,2", b""])
    events, errors, count = read(io.BytesIO(raw), "csv")
    texts = [line.decode("utf-8", "surrogateescape") + "\n" for line in _lines(raw)]
    assert count == len(texts)
    try:
        rows = list(csv.reader(texts, strict=True))[1:]
    except csv.Error:
        # One line is given up, and what follows it is read: the last row is good, or swallowed by
        # a quote that some line before it opened.
        assert errors
    else:
        blank = [len(row) < 2 and not "".join(row).strip() for row in rows]
        assert len(events) + len(errors) == blank.count(False)


# --- portions ------------------------------------------------------------------------------------


CONTENTS = st.one_of(
    st.tuples(st.just("ndjson"), st.lists(NDJSON_LINES, max_size=10)),
    st.tuples(
        st.just("csv"), st.lists(CSV_LINES, max_size=10).map(lambda ls: [b"key,time,v", *ls])
    ),
    st.tuples(st.just("line"), st.lists(LINE_LINES, max_size=10)),
)


@patient
@given(CONTENTS, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_what_is_read_does_not_depend_on_the_portions(
    content: tuple[str, list[bytes]], sizes: list[int]
) -> None:
    """A pipe that brings a few bytes at a time gives the events and errors of a whole file."""
    format, lines = content
    if format != "csv":
        lines = [b"", *lines]  # What a whole file begins with can be that of a compressed one.
    raw = b"\n".join(lines)
    whole = read(io.BytesIO(raw), format)
    parts = read(SlowPipe(raw, itertools.cycle(sizes)), format)
    assert _fingerprint(whole) == _fingerprint(parts)


@patient
@given(st.sampled_from(FORMATS), st.binary(max_size=200))
def test_no_content_breaks_a_reader(format: str, raw: bytes) -> None:
    """Whatever the bytes are, the only thing that escapes is an error that names the format."""
    try:
        read(io.BytesIO(raw), format)
    except ConfigError as error:
        assert error.hint
