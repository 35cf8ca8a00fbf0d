"""The three layouts: what is written, what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from standpipe.codec import (
    CODECS,
    MARKS,
    PlainEntry,
    PlainLayout,
    block_fields,
    check_codec,
    decode_entry,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
)
from standpipe.errors import (
    CodecError,
    ConfigError,
    DecodeError,
    FieldError,
)
from standpipe.event import Batch, Event, EventId
from standpipe.limits import DECODED_EVENTS_MAX

LAYOUT = PlainLayout()
ID = b"1700000000123-4"

EVENTS = [
    Event("inverter-7", 1_700_000_000_000, {"volts": 230.5, "amps": 1.2}),
    Event("meter-0001", 1_700_000_000_250, {"volts": None, "ok": True, "state": "on", "count": 42}),
]
MANY = [Event(f"m{i % 7}", 1_700_000_000_000 + i, {"flow": i / 7, "n": i}) for i in range(500)]


def plain(*flat: str | bytes, layout: PlainLayout = LAYOUT) -> Event:
    fields = [part.encode() if isinstance(part, str) else part for part in flat]
    entry = decode_entry(ID, fields, layout)
    assert isinstance(entry, PlainEntry)
    (event,) = entry.events()
    return event


# --- codecs by name ------------------------------------------------------------------------------


def test_codecs_are_known_by_name() -> None:
    """Every codec passes its check and has a mark, which is empty for plain alone."""
    assert [check_codec(name) for name in CODECS] == list(CODECS)
    assert MARKS == {"plain": "", "rows": "rows1", "columns": "arrow1"}


@pytest.mark.parametrize(
    ("name", "meant"), [("row", "rows"), ("Columns", "columns"), ("plane", "plain")]
)
def test_unknown_codec_names_the_nearest(name: str, meant: str) -> None:
    """A misspelled codec is an error that says which one was meant."""
    with pytest.raises(CodecError, match=repr(name)) as caught:
        check_codec(name)
    assert meant in caught.value.hint.split("?")[0]


def test_unknown_codec_that_is_near_none_lists_all() -> None:
    """A codec that resembles none is an error that lists them."""
    with pytest.raises(CodecError) as caught:
        check_codec("protobuf")
    assert caught.value.hint == "The codecs are plain, rows and columns."


# --- plain: writing ------------------------------------------------------------------------------


def test_plain_is_the_events_own_fields() -> None:
    """A plain entry is what a person would type: key, time, then the fields in their order."""
    assert encode_plain(EVENTS[0], LAYOUT) == [
        b"key", b"inverter-7", b"time", b"1700000000000", b"volts", b"230.5", b"amps", b"1.2",
    ]  # fmt: skip


def test_plain_leaves_out_what_is_none() -> None:
    """A key or a field that is None is left out; a time is always there."""
    assert encode_plain(Event(None, 5, {"volts": None}), LAYOUT) == [b"time", b"5"]


def test_plain_uses_the_layouts_names() -> None:
    """Key and time stand under the names that the stream's definition gives them."""
    layout = PlainLayout(key_field="device", time_field="ts")
    flat = encode_plain(Event("a", 5, {"key": 1, "time": 2}), layout)
    assert flat == [b"device", b"a", b"ts", b"5", b"key", b"1", b"time", b"2"]
    assert plain(*flat, layout=layout) == Event("a", 5, {"key": 1, "time": 2})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (230.0, b"230.0"),
        (-0.0, b"-0.0"),
        (0.1 + 0.2, b"0.30000000000000004"),
        (1e300, b"1e300"),
        (5e-324, b"5e-324"),
        (-(2**63), b"-9223372036854775808"),
        (True, b"true"),
        (False, b"false"),
        ("°C", "°C".encode()),
        (b"\xff\x00", b"\xff\x00"),
    ],
)
def test_plain_values_as_text(value: Any, text: bytes) -> None:
    """Each type has one spelling on the wire, and it comes back as the same value and type."""
    flat = encode_plain(Event(None, 5, {"x": value}), LAYOUT)
    assert flat[2:] == [b"x", text]
    back = plain(*flat).fields["x"]
    assert (repr(back), type(back)) == (repr(value), type(value))


@pytest.mark.parametrize(("name", "owner"), [("key", "key"), ("time", "time")])
def test_plain_refuses_a_field_named_as_key_or_time(name: str, owner: str) -> None:
    """A field that would overwrite the key or the time is refused by name."""
    with pytest.raises(FieldError, match=f"name of the {owner}") as caught:
        encode_plain(Event("a", 5, {"volts": 1.0, name: 2}), LAYOUT)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (Event("a", 5, {"volts": "\ud800"}), "volts"),
        (Event("a", 5, {"\ud800": 1}), "\ud800"),
        (Event("\ud800", 5, {}), "key"),
        (Event("a", 5, {"ok": 1.5, "volts": object()}), "volts"),  # type: ignore[dict-item]
    ],
)
def test_encoding_an_unchecked_event_names_its_wrong_field(event: Event, field: str) -> None:
    """Where an event that was not checked cannot be encoded, the error names the field."""
    encoders: list[Callable[[Event], object]] = [
        lambda event: encode_plain(event, LAYOUT),
        lambda event: encode_rows([Event("b", 4, {}), event]),
        lambda event: events_to_table([Event("b", 4, {}), event]),
    ]
    for encode in encoders:
        with pytest.raises(FieldError) as caught:
            encode(event)
        assert caught.value.field == field


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_field": ""},
        {"time_field": ""},
        {"key_field": "time"},
        {"time_field": "c"},
        {"time_field": "n"},
        {"time_field": "d"},
        {"numbers": "guess"},
        {"schema": {"volts": complex}},
        {"schema": {"volts": "float"}},
        {"schema": {"time": int}},
        {"schema": {"key": str}},
    ],
)
def test_layout_refuses_what_could_not_be_read_back(wrong: dict[str, Any]) -> None:
    """A layout whose entries would be ambiguous is a ConfigError, when it is made."""
    with pytest.raises(ConfigError):
        PlainLayout(**wrong)


def test_plain_entries_are_never_taken_for_blocks() -> None:
    """Whatever an event's fields are called, its plain entry comes back as that event."""
    event = Event("rows1", 5, {"n": 2, "d": "x"})
    assert (
        plain(*encode_plain(event, PlainLayout(key_field="c")), layout=PlainLayout(key_field="c"))
        == event
    )
    event = Event(None, 5, {"c": "rows1", "n": 2, "d": "x"})
    assert plain(*encode_plain(event, LAYOUT)) == event


# --- plain: reading ------------------------------------------------------------------------------


def test_plain_without_key_and_time() -> None:
    """What redis-cli writes without key and time has no key and the time of its entry ID."""
    assert plain("volts", "230.5") == Event(None, 1_700_000_000_123, {"volts": 230.5})
    assert plain() == Event(None, 1_700_000_000_123, {})
    assert plain("key", "", "volts", "1") == Event(None, 1_700_000_000_123, {"volts": 1})


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1700000000000", 1_700_000_000_000),
        ("0", 0),
        ("-5", -5),
        ("-62135596800000", -62_135_596_800_000),
        ("253402300799999", 253_402_300_799_999),
        ("2023-11-14T22:13:20.250Z", 1_700_000_000_250),
        ("2023-11-14 23:13:20.250999+01:00", 1_700_000_000_250),
        ("now", 1_700_000_000_123),
        ("-1s", 1_699_999_999_123),
    ],
)
def test_plain_time(text: str, ms: int) -> None:
    """A time is milliseconds or ISO 8601; what is relative counts from the entry, not the clock."""
    assert plain("time", text, "x", "1").time == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "1700000000.5",
        "17e11",
        "253402300800000",
        "9" * 25,
        "9" * 5000,
        "-" + "9" * 400 + "w",
        b"\xff",
    ],
)
def test_plain_time_that_is_none(text: str | bytes) -> None:
    """A time that is not one is a DecodeError that names the field, never a guess."""
    with pytest.raises(DecodeError, match="time"):
        plain("time", text, "x", "1")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("230.5", 230.5),
        ("230.50", 230.5),
        ("230.0", 230.0),
        ("0.000", 0.0),
        ("2.305e2", 230.5),
        ("1E+5", 100000.0),
        ("42", 42),
        ("0", 0),
        ("-7", -7),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", "9223372036854775808"),
        ("10000000000000000000000", "10000000000000000000000"),
        ("-0", -0.0),
        ("-0.0", -0.0),
        ("0e5", 0.0),
        ("1e400", "1e400"),
        ("-1e400", "-1e400"),
        ("1e-400", "1e-400"),
        ("4e-324", "4e-324"),
        ("5e-324", 5e-324),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("0.30000000000000004", 0.30000000000000004),
        ("123456789.12345678", 123456789.12345678),
        ("9007199254740993.0", "9007199254740993.0"),
        ("007", "007"),
        ("00", "00"),
        ("+5", "+5"),
        (".5", ".5"),
        ("5.", "5."),
        (" 5", " 5"),
        ("5 ", "5 "),
        ("5\n", "5\n"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1,5", "1,5"),
        ("-", "-"),
        ("", ""),
        ("1" + "0" * 63 + ".0", "1" + "0" * 63 + ".0"),
        ("9" * 5000, "9" * 5000),
        ("NaN", "NaN"),
        ("inf", "inf"),
        ("-inf", "-inf"),
        ("null", "null"),
        ("[1]", "[1]"),
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("٣", "٣"),
        ("2026-01-31", "2026-01-31"),
    ],
)
def test_sniffing_loses_nothing(text: str, value: Any) -> None:
    """Text becomes a number only if it is one in JSON and keeps its value; else it stays text."""
    found = plain("x", text).fields["x"]
    assert (repr(found), type(found)) == (repr(value), type(value))


def test_text_that_is_not_utf8_is_bytes() -> None:
    """A value that is no UTF-8 arrives as the bytes it is."""
    assert plain("x", b"\xff1", "y", b"1\xff").fields == {"x": b"\xff1", "y": b"1\xff"}


def test_numbers_as_text() -> None:
    """With numbers="text" nothing is turned into a number or a bool."""
    layout = PlainLayout(numbers="text")
    assert plain("x", "5", "y", "true", layout=layout).fields == {"x": "5", "y": "true"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (float, "230", 230.0),
        (float, "0.1234567890123456789", 0.12345678901234568),
        (float, "+.5", 0.5),
        (float, "007", 7.0),
        (int, "007", 7),
        (int, "-5", -5),
        (bool, "TRUE", True),
        (bool, "0", False),
        (str, "42", "42"),
        (str, "true", "true"),
        (bytes, "42", b"42"),
        (bytes, b"\xff", b"\xff"),
    ],
)
def test_schema_decides_the_type(kind: type, text: str | bytes, value: Any) -> None:
    """A field that the schema names has the schema's type, whatever its text looks like."""
    found = plain("x", text, layout=PlainLayout(schema={"x": kind})).fields["x"]
    assert (found, type(found)) == (value, kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (float, "abc"),
        (float, ""),
        (float, "nan"),
        (float, "1e400"),
        (float, "1_0"),
        (float, "[1]"),
        (int, "1.0"),
        (int, "9223372036854775808"),
        (int, "1_0"),
        (int, "9" * 5000),
        (bool, "yes"),
        (bool, b"\xff"),
        (str, b"\xff"),
    ],
)
def test_schema_mismatch_names_field_and_value(kind: type, text: str | bytes) -> None:
    """A value that is not what the schema says is a DecodeError with the field, value and type."""
    with pytest.raises(DecodeError) as caught:
        plain("ok", "1", "x", text, layout=PlainLayout(schema={"x": kind}))
    assert "'x'" in str(caught.value)
    assert kind.__name__ in str(caught.value)
    assert str(text)[:20].strip("b'") in str(caught.value)


def test_entry_says_what_gave_each_field_its_type() -> None:
    """A plain entry tells apart fields typed by the schema, sniffed fields and text."""
    layout = PlainLayout(schema={"volts": float, "serial": str, "absent": int})
    flat = [
        b"key",
        b"a",
        b"volts",
        b"1",
        b"serial",
        b"007",
        b"amps",
        b"1.5",
        b"on",
        b"true",
        b"s",
        b"x",
    ]
    entry = decode_entry(ID, flat, layout)
    assert isinstance(entry, PlainEntry)
    assert entry.typed_by == {
        "volts": "schema", "serial": "schema", "amps": "sniffed", "on": "sniffed", "s": "text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flat", "why"),
    [
        ([b"x", b"1", b"x", b"2"], "twice"),
        ([b"key", b"a", b"key", b"b"], "twice"),
        ([b"time", b"1", b"x", b"2", b"time", b"3"], "twice"),
        ([b"key", b"", b"key", b"b"], "twice"),
        ([b"x"], "no value"),
        ([b"x", b"1", b"y"], "no value"),
        ([b"\xff", b"1"], "UTF-8"),
        ([b"key", b"\xff"], "UTF-8"),
    ],
)
def test_plain_entries_that_cannot_be_an_event(flat: list[bytes], why: str) -> None:
    """An entry of which something would be lost or garbled is a DecodeError that says what."""
    with pytest.raises(DecodeError, match=why):
        decode_entry(ID, flat, LAYOUT).events()


# --- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        encode_plain(EVENTS[0], LAYOUT),
        block_fields("rows", 2, encode_rows(EVENTS)),
        block_fields("columns", 2, encode_columns(events_to_table(EVENTS))),
    ],
)
def test_every_entry_knows_its_id_count_and_raw_fields(fields: list[bytes]) -> None:
    """Whatever the layout, an entry has the ID, the count and the fields that the server has."""
    entry = decode_entry(ID, fields, LAYOUT)
    assert entry.id == EventId(1_700_000_000_123, 4)
    assert entry.count == len(entry.events()) == entry.table().num_rows
    assert entry.fields == fields
    assert len(repr(entry)) < 600


@pytest.mark.parametrize(
    "bad", [b"", b"5", b"5-", b"-5", b"a-b", b"5-1-1", b"\xff-1", b"9" * 5000 + b"-1"]
)
def test_an_id_that_is_none(bad: bytes) -> None:
    """An entry ID that is not one is a DecodeError, not a crash."""
    with pytest.raises(DecodeError, match="entry ID"):
        _ = decode_entry(bad, [b"x", b"1"], LAYOUT).id


def test_block_fields_in_any_order() -> None:
    """Clients that write maps may change the order of c, n and d."""
    c, rows1, n, two_, d, payload = block_fields("rows", 2, encode_rows(EVENTS))
    for flat in ([d, payload, c, rows1, n, two_], [n, two_, d, payload, c, rows1]):
        assert decode_entry(ID, flat, LAYOUT).events() == EVENTS


@pytest.mark.parametrize(
    "flat",
    [
        [b"c", b"rows1", b"n", b"2"],
        [b"c", b"rows1", b"n", b"2", b"x", b"y"],
        [b"c", b"rows1", b"n", b"2", b"d", b"y", b"e", b"1"],
        [b"c", b"1", b"n", b"2", b"c", b"3"],
    ],
)
def test_only_exactly_c_n_d_is_a_block(flat: list[bytes]) -> None:
    """An entry that merely has fields of a block's names is a plain one."""
    assert isinstance(decode_entry(ID, flat, LAYOUT), PlainEntry)


def test_unknown_mark_is_not_guessed_at() -> None:
    """A block of an unknown layout is a DecodeError at once, and asks for a newer version."""
    with pytest.raises(DecodeError, match="rows2") as caught:
        decode_entry(ID, [b"c", b"rows2", b"n", b"1", b"d", b""], LAYOUT)
    assert "newer version" in caught.value.hint


@pytest.mark.parametrize(
    "number", [b"", b"0", b"-1", b"+2", b"2.0", b" 2", b"1_0", b"1000001", b"9" * 5000, b"\xb2"]
)
def test_block_announces_a_number_of_events(number: bytes) -> None:
    """A header whose n is no number of events, or beyond the limit, is refused at once."""
    with pytest.raises(DecodeError, match="number of events"):
        decode_entry(ID, [b"c", b"rows1", b"n", number, b"d", b""], LAYOUT)
    assert DECODED_EVENTS_MAX == 1_000_000


def test_block_fields_refuse_what_is_no_block() -> None:
    """Neither a plain codec nor an empty block can be written as a block."""
    with pytest.raises(CodecError, match="plain"):
        block_fields("plain", 1, b"")
    with pytest.raises(CodecError, match="0 events"):
        block_fields("rows", 0, b"\x90")


# --- mixed ---------------------------------------------------------------------------------------


def test_all_three_layouts_in_one_batch() -> None:
    """A group may meet all three layouts in one stream: one batch, its events in order."""
    entries = [
        decode_entry(b"5-0", encode_plain(EVENTS[0], LAYOUT), LAYOUT),
        decode_entry(b"5-1", block_fields("rows", 2, encode_rows(EVENTS)), LAYOUT),
        decode_entry(
            b"5-2", block_fields("columns", 500, encode_columns(events_to_table(MANY))), LAYOUT
        ),
    ]
    batch = Batch(entries, stream="s")
    assert batch.events == [EVENTS[0], *EVENTS, *MANY]
    assert [str(batch.ids[i]) for i in (0, 1, 2, 3, 502)] == [
        "5-0/0",
        "5-1/0",
        "5-1/1",
        "5-2/0",
        "5-2/499",
    ]
    table = batch.table()
    assert table.num_rows == 503
    assert table.column("volts").to_pylist()[:4] == [230.5, 230.5, None, None]
