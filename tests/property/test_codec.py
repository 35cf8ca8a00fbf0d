"""What the codecs promise for any event, any text and any bytes."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from standpipe.codec import (
    PlainEntry,
    PlainLayout,
    block_fields,
    check_table,
    decode_entry,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
    rows_part,
    rows_payload,
)
from standpipe.errors import CodecError, DecodeError, FieldError
from standpipe.event import Batch, Event, check_events
from standpipe.limits import INTEGER_MAX, INTEGER_MIN, TIME_MS_MAX, TIME_MS_MIN
from standpipe.producer.arguments import plain_part
from standpipe.wire import holds_arguments

# Two cores and cold imports make single examples slow; what counts is that they all hold.
patient = settings(deadline=None, max_examples=100)

LAYOUT = PlainLayout()
ID = b"1700000000123-4"

# --- any allowed event ---------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WORDS = TEXT.filter(
    lambda text: text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")
)
NUMERALS = st.from_regex(r"[+-]?[0-9]{0,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
KEYS = st.none() | TEXT.filter(bool)
NAMES = TEXT.filter(lambda name: name and name not in ("key", "time"))
TIMES = st.integers(TIME_MS_MIN, TIME_MS_MAX)
KINDS: dict[type, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(INTEGER_MIN, INTEGER_MAX),
    bool: st.booleans(),
    str: WORDS | NUMERALS | st.sampled_from(["true", "false", "", "null"]),
    bytes: st.binary(max_size=20),
}
VALUES = st.none() | st.one_of(*KINDS.values())
EVENTS = st.builds(Event, KEYS, TIMES, st.dictionaries(NAMES, VALUES, max_size=5))
LISTS = st.lists(EVENTS, min_size=1, max_size=20)


@st.composite
def alike(draw: st.DrawFn) -> list[Event]:
    """Events whose fields hold one type each, as columns need it."""
    kinds = draw(st.dictionaries(NAMES, st.sampled_from(list(KINDS)), max_size=4))
    fields = st.fixed_dictionaries({}, optional={n: st.none() | KINDS[k] for n, k in kinds.items()})
    return draw(st.lists(st.builds(Event, KEYS, TIMES, fields), min_size=1, max_size=20))


def same(left: object, right: object) -> bool:
    """Equal, of the same type, and with the same sign of zero."""
    return repr(left) == repr(right)


def given_up(entry_fields: list[bytes], layout: PlainLayout = LAYOUT) -> list[Event] | None:
    """The events of an entry, or None where it is a DecodeError, as long as it is nothing else."""
    try:
        entry = decode_entry(ID, entry_fields, layout)
        entry.table()
        return entry.events()
    except DecodeError as error:
        assert str(error)
        assert error.hint
        return None


@patient
@given(LISTS)
def test_the_events_of_these_tests_are_allowed(events: list[Event]) -> None:
    """What these tests generate is what a producer lets pass."""
    check_events(events)


# --- round trips ---------------------------------------------------------------------------------


@patient
@given(EVENTS)
def test_plain_with_a_schema_keeps_every_value(event: Event) -> None:
    """With a schema a plain entry gives back every value that is not None, type and all."""
    fields = {name: value for name, value in event.fields.items() if value is not None}
    layout = PlainLayout(schema={name: type(value) for name, value in fields.items()})
    (back,) = decode_entry(ID, encode_plain(event, layout), layout).events()
    assert same(back, Event(event.key, event.time, fields))


@patient
@given(EVENTS)
def test_plain_without_a_schema_keeps_numbers_bools_and_meaning(event: Event) -> None:
    """Sniffed, numbers and bools come back exactly, text as text or the number that it spells."""
    entry = decode_entry(ID, encode_plain(event, LAYOUT), LAYOUT)
    assert isinstance(entry, PlainEntry)
    (back,) = entry.events()
    assert (back.key, back.time) == (event.key, event.time)
    sent = {name: value for name, value in event.fields.items() if value is not None}
    assert list(back.fields) == list(sent)
    assert entry.typed_by.keys() == sent.keys()
    for name, given_value in sent.items():
        found = back.fields[name]
        is_read = isinstance(given_value, bytes) and not isinstance(found, bytes)
        value = given_value.decode() if is_read else given_value
        if isinstance(value, str) and isinstance(found, bool):
            assert value == json.dumps(found)
        elif isinstance(value, str) and isinstance(found, (int, float)):
            assert Decimal(value) == Decimal(repr(found))
        else:
            assert same(found, value)
        assert entry.typed_by[name] == ("text" if isinstance(found, (str, bytes)) else "sniffed")


@patient
@given(EVENTS, TEXT.filter(bool), TEXT.filter(lambda name: name not in ("", "c", "n", "d")))
def test_plain_under_any_names(event: Event, key_field: str, time_field: str) -> None:
    """Whatever key and time are called, an entry comes back, or the event is refused for a name."""
    if key_field == time_field:
        return
    layout = PlainLayout(key_field=key_field, time_field=time_field, numbers="text")
    try:
        flat = encode_plain(event, layout)
    except FieldError as error:
        assert error.field in {key_field, time_field} & event.fields.keys()
        return
    (back,) = decode_entry(ID, flat, layout).events()
    assert (back.key, back.time) == (event.key, event.time)


@patient
@given(LISTS, st.booleans())
def test_rows_keep_everything(events: list[Event], compress: bool) -> None:
    """A rows block gives back exactly what was sent, whatever the events hold."""
    payload = encode_rows(events, compress=compress)
    assert same(
        decode_entry(ID, block_fields("rows", len(events), payload), LAYOUT).events(), events
    )


@patient
@given(st.lists(LISTS, min_size=1, max_size=5))
def test_rows_in_parts_are_one_block(lists: list[list[Event]]) -> None:
    """However a block was gathered, it holds all the events in their order."""
    events = [event for part in lists for event in part]
    payload = rows_payload(len(events), map(rows_part, lists))
    assert payload == encode_rows(events)


@patient
@given(alike(), st.booleans())
def test_columns_keep_everything_and_fill_with_none(events: list[Event], compress: bool) -> None:
    """A columns block gives back every value, and None for a field that an event has not."""
    table = events_to_table(events)
    payload = encode_columns(table, compress=compress)
    entry = decode_entry(ID, block_fields("columns", len(events), payload), LAYOUT)
    assert entry.table().equals(table)
    names = table.column_names[2:]
    expected = [Event(e.key, e.time, {name: e.fields.get(name) for name in names}) for e in events]
    assert same(entry.events(), expected)


@patient
@given(LISTS)
def test_any_events_make_a_table(events: list[Event]) -> None:
    """Reading as a table never fails over the types of fields; sending as one says which field."""
    table = events_to_table(events, mixed="text")
    assert table.num_rows == len(events)
    payload = encode_rows(events)
    read = decode_entry(ID, block_fields("rows", len(events), payload), LAYOUT).table()
    assert read.equals(table)
    try:
        assert events_to_table(events).num_rows == len(events)
    except CodecError as error:
        assert any(repr(name) in str(error) for event in events for name in event.fields)


@patient
@given(alike())
def test_tables_of_allowed_events_are_allowed_tables(events: list[Event]) -> None:
    """A table that was made of events passes the check for tables, unchanged."""
    table = events_to_table(events)
    assert check_table(table).equals(table)


@patient
@given(st.lists(alike(), min_size=1, max_size=6), st.data())
def test_mixed_entries_are_read_in_order(lists: list[list[Event]], data: st.DataObject) -> None:
    """A stream of all three layouts in any order is read as the events that were sent."""
    entries, expected = [], []
    for events in lists:
        codec = data.draw(st.sampled_from(["plain", "rows", "columns"]))
        if codec == "plain":
            entries += [decode_entry(ID, encode_plain(event, LAYOUT), LAYOUT) for event in events]
        elif codec == "rows":
            fields = block_fields("rows", len(events), encode_rows(events))
            entries.append(decode_entry(ID, fields, LAYOUT))
        else:
            table = events_to_table(events)
            fields = block_fields("columns", len(events), encode_columns(table))
            entries.append(decode_entry(ID, fields, LAYOUT))
        expected += [(event.key, event.time) for event in events]
    batch = Batch(entries)
    assert [(event.key, event.time) for event in batch] == expected
    assert len(batch.ids) == len(expected)


# --- numbers out of text -------------------------------------------------------------------------

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def expected_number(text: str) -> object:
    """The rule of docs/wire-format.md, written down a second time and slowly."""
    if text in ("true", "false"):
        return text == "true"
    match = _JSON_NUMBER.fullmatch(text)
    if match is None or len(text) > 64:
        return text
    if match[2] is None and match[3] is None:
        number = int(text)
        if number == 0 and text.startswith("-"):
            return -0.0
        return number if INTEGER_MIN <= number <= INTEGER_MAX else text
    found = float(text)
    if found in (float("inf"), float("-inf")) or Decimal(repr(found)) != Decimal(text):
        return text
    return found


@settings(patient, max_examples=2000)
@given(
    NUMERALS | TEXT | st.floats().map(repr) | st.integers().map(str) | st.floats(width=32).map(repr)
)
@example("1e-324")
@example("2.2250738585072014e-308")
@example("1234567890123456")
@example("0.1e-14")
@example("9007199254740993.0")
@example("123456789012345.6")
@example("-0e-5")
def test_sniffing_follows_the_written_rule(text: str) -> None:
    """Any text becomes what the documentation says, and nothing else."""
    (event,) = decode_entry(ID, [b"x", text.encode()], LAYOUT).events()
    assert same(event.fields["x"], expected_number(text))


@patient
@given(st.binary(max_size=30), st.sampled_from(list(KINDS)))
def test_a_schema_gives_its_type_or_an_error(raw: bytes, kind: type) -> None:
    """A field with a schema is of the schema's type, or the entry is a DecodeError."""
    events = given_up([b"x", raw], PlainLayout(schema={"x": kind}))
    assert events is None or type(events[0].fields["x"]) is kind


# --- bytes of anybody ----------------------------------------------------------------------------

MARKS = st.sampled_from([b"rows1", b"arrow1"])
COUNTS = st.integers(0, 20).map(lambda count: b"%d" % count) | st.binary(max_size=3)


@patient
@given(st.lists(st.binary(max_size=12), max_size=12))
def test_any_plain_fields_are_an_event_or_a_decode_error(flat: list[bytes]) -> None:
    """Whatever fields an entry has, it becomes one event or a DecodeError."""
    events = given_up(flat)
    assert events is None or len(events) == 1


# What reads alike in places: as in real streams, most entries have the same names.
RAWS = (
    st.sampled_from(
        [b"1", b"230.5", b"0.0", b"-0", b"-0.0", b"1,2", b"", b" 5", b"[1", b"2]", b"x"]
    )
    | st.sampled_from(
        [b"007", b"1e400", b"9223372036854775808", b"true", b"1700000000000", b"\xff"]
    )
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: repr(number).encode())
)


@st.composite
def entries_alike(draw: st.DrawFn) -> list[list[bytes]]:
    names = draw(st.lists(st.sampled_from([b"key", b"time", b"volts", b"amps"]), max_size=4))
    column = st.one_of(*(st.just(raw) for raw in draw(st.lists(RAWS, min_size=1, max_size=3))))
    entry = st.tuples(*[column for _ in names]).map(
        lambda values: [part for pair in zip(names, values, strict=True) for part in pair]
    )
    return draw(st.lists(entry, min_size=4, max_size=8)) + draw(
        st.lists(st.lists(RAWS, max_size=5), max_size=2)
    )


@example([[b"volts", b"9223372036854775808"]] * 4, LAYOUT)
@example([[b"volts", b"0.1234567890123456789"]] * 4, LAYOUT)
@example([[b"volts", b" 5"]] * 4, LAYOUT)
@example([[b"volts", b"1"]] * 4 + [[b"amps", b"1"]], LAYOUT)
@example([[b"volts", b"1,2"]] + [[b"volts", b"1"]] * 4, LAYOUT)
@example([[b"time", b"1,2"]] + [[b"time", b"1"]] * 4, LAYOUT)
@example([[b"time", b"1"], [b"key", b"a"]] * 4, LAYOUT)
@patient
@given(
    entries_alike(),
    st.sampled_from(
        [PlainLayout(), PlainLayout(numbers="text"), PlainLayout(schema={"amps": int})]
    ),
)
def test_plain_entries_together_are_what_each_is(
    fields: list[list[bytes]], layout: PlainLayout
) -> None:
    """Entries that are read together become the same events, or an error where one of them does."""
    entries = [PlainEntry(b"1700000000123-%d" % n, each, layout) for n, each in enumerate(fields)]
    try:
        expected = [event for entry in entries for event in entry.events()]
    except DecodeError:
        with pytest.raises(DecodeError):
            PlainEntry.events_of(entries)
    else:
        assert same(PlainEntry.events_of(entries), expected)
        assert same(Batch(entries).events, expected)


@patient
@given(LISTS | alike().filter(bool), st.sampled_from([1, 4]))
def test_plain_events_packed_together_are_what_each_is(events: list[Event], times: int) -> None:
    """Events that are packed together are the arguments that each is by itself."""
    events = events * times
    parts = [plain_part((event,), LAYOUT) for event in events]
    together = b"".join(part for part, _ in parts), sum(count for _, count in parts)
    assert plain_part(events, LAYOUT) == together
    assert holds_arguments(*together)


@patient
@given(st.binary(max_size=30), st.integers(0, 2**64 - 1))
def test_any_time_is_a_time_or_a_decode_error(raw: bytes, ms: int) -> None:
    """Whatever stands in the time field, it becomes a time that can be shown, or a DecodeError."""
    events = given_up([b"time", raw])
    assert events is None or TIME_MS_MIN <= events[0].time <= TIME_MS_MAX
    events = given_up([b"time", b"%d" % ms])
    assert (events is None) == (ms > TIME_MS_MAX)


@patient
@given(
    MARKS, COUNTS, st.binary(max_size=200), st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b"\x92\x93"])
)
def test_any_payload_is_events_or_a_decode_error(
    mark: bytes, number: bytes, payload: bytes, start: bytes
) -> None:
    """Whatever bytes a block carries, in a frame or not, it fails with nothing but DecodeError."""
    for data in (start + payload, zstandard.compress(start + payload)):
        events = given_up([b"c", mark, b"n", number, b"d", data])
        assert events is None or len(events) == int(number)


SAMPLE = [
    Event(
        f"m{i % 3}",
        1_700_000_000_000 + i,
        {"f": i / 7, "i": i, "s": f"t{i}", "b": i > 9, "y": b"x"},
    )
    for i in range(20)
]


def _ipc(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


_TABLE = events_to_table(SAMPLE)
_FOLDED = _TABLE.set_column(0, "key", _TABLE.column("key").dictionary_encode())
VALID = [
    (b"rows1", encode_rows(SAMPLE)),
    (b"rows1", encode_rows(SAMPLE, compress=False)),
    (b"arrow1", encode_columns(_TABLE)),
    (b"arrow1", _ipc(_TABLE)),
    (b"arrow1", _ipc(_TABLE, "zstd")),
    (b"arrow1", _ipc(_FOLDED)),
    (b"arrow1", _ipc(_FOLDED, "lz4")),
]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid payload with some of its bytes changed, taken out, put in or cut off."""
    mark, payload = draw(st.sampled_from(VALID))
    data = bytearray(payload)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        patch = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(8)]))
        match draw(st.sampled_from(["over", "over", "over", "in", "out", "cut"])):
            case "over":
                data[at : at + len(patch)] = patch
            case "in":
                data[at:at] = patch
            case "out":
                del data[at : at + len(patch)]
            case _:
                del data[at:]
    return mark, bytes(data)


@settings(patient, max_examples=3000)
@given(damaged())
def test_damaged_blocks_are_events_or_a_decode_error(block: tuple[bytes, bytes]) -> None:
    """A block that was damaged on its way is as many events as it says, or a DecodeError."""
    mark, payload = block
    events = given_up([b"c", mark, b"n", b"20", b"d", payload])
    assert events is None or len(events) == 20
