"""Events, their IDs, batches of them, and what is refused before it is sent."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe.clock import now_ms
from standpipe.codec import read_event
from standpipe.errors import EventError, FieldError
from standpipe.event import (
    Batch,
    Event,
    EventId,
    _look_closely,  # pyright: ignore[reportPrivateUsage]
    check_event,
    check_events,
    events_from_dicts,
)
from standpipe.limits import (
    FIELDS_PER_EVENT_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    KEY_BYTES_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
)

NOW = 1_700_000_000_000
GOOD = Event("inverter-7", NOW, {"volts": 230.5, "amps": 1.2})


# --- events --------------------------------------------------------------------------------------


def test_an_event_of_now_has_the_wall_clock_and_its_fields() -> None:
    """Event.now takes fields by name and reads the clock once."""
    before = now_ms()
    event = Event.now("inverter-7", volts=230.5, state="on")
    assert event.key == "inverter-7"
    assert before <= event.time <= now_ms()
    assert event.fields == {"volts": 230.5, "state": "on"}


def test_an_event_cannot_be_changed() -> None:
    """What was handed to a producer stays what it was."""
    with pytest.raises(AttributeError):
        GOOD.time = 0  # type: ignore[misc]


def test_events_with_the_same_content_are_equal() -> None:
    """Equality goes by content, so that tests and users can compare."""
    assert Event("a", 1, {"x": 1}) == Event("a", 1, {"x": 1})
    assert Event("a", 1, {"x": 1}) != Event("a", 1, {"x": 2})


def test_an_event_is_an_array_in_messagepack() -> None:
    """The rows layout is [key, time, {fields}], as docs/wire-format.md has it."""
    event = Event("a", 1, {"f": 1.5, "i": 2, "t": "x", "b": b"\0", "n": None, "y": True})
    packed = msgspec.msgpack.encode(event)
    assert msgspec.msgpack.decode(packed) == ["a", 1, event.fields]
    assert read_event(packed) == event


@pytest.mark.parametrize(
    ("mapping", "event"),
    [
        ({"key": "a", "time": 5, "x": 1}, Event("a", 5, {"x": 1})),
        ({"key": 17, "time": "5000000", "x": 1}, Event("17", 5_000_000, {"x": 1})),
        ({"key": None, "time": "1970-01-01T00:00:01Z"}, Event(None, 1000, {})),
        ({"time": 5.6, "x": None}, Event(None, 6, {"x": None})),
    ],
)
def test_a_flat_mapping_becomes_an_event(mapping: dict[str, Any], event: Event) -> None:
    """Key and time by their names, all else fields; times as people write them."""
    given_mapping = dict(mapping)
    assert Event.from_mapping(mapping) == event
    assert mapping == given_mapping


def test_the_names_of_key_and_time_can_be_chosen() -> None:
    """Files of others call them meter and ts; then key and time are fields like any."""
    event = Event.from_mapping(
        {"meter": "a", "ts": 5, "key": "k"}, key_field="meter", time_field="ts"
    )
    assert event == Event("a", 5, {"key": "k"})


def test_without_a_time_it_is_now() -> None:
    """A reading without a time was read at this moment."""
    before = now_ms()
    assert before <= Event.from_mapping({"key": "a"}).time <= now_ms()
    assert before <= Event.from_mapping({"key": "a", "time": None}).time <= now_ms()


@pytest.mark.parametrize(
    ("mapping", "field"),
    [
        ({"key": True}, "key"),
        ({"key": 1.5}, "key"),
        ({"key": ["a"]}, "key"),
        ({"key": b"a"}, "key"),
        ({"time": "yesterday"}, "time"),
        ({"time": True}, "time"),
        ({"time": [5]}, "time"),
        ({"time": {"a": 1}}, "time"),
        ({"time": float("nan")}, "time"),
        ({"time": NOW * 1000}, "time"),
    ],
)
def test_a_mapping_with_a_wrong_key_or_time_is_refused(mapping: dict[str, Any], field: str) -> None:
    """The error is about the field by its name, holds the value and names the way out."""
    with pytest.raises(FieldError, match=field) as caught:
        Event.from_mapping(mapping)
    assert caught.value.field == field
    assert caught.value.value is mapping[field]
    assert caught.value.hint


@given(
    st.none() | st.text(),
    st.integers(TIME_MS_MIN, TIME_MS_MAX),
    st.dictionaries(st.text().filter(lambda name: name not in ("key", "time")), st.integers()),
)
def test_to_mapping_and_from_mapping_are_inverse(
    key: str | None, time: int, fields: dict[str, Any]
) -> None:
    """An event that goes through a flat mapping comes back as itself."""
    event = Event(key, time, fields)
    assert Event.from_mapping(event.to_mapping()) == event


# --- event IDs -----------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**64 - 1)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_an_event_id_reads_back_as_itself(ms: int, seq: int, index: int) -> None:
    """str and parse are inverse, from text and from bytes, over all 64 bits."""
    event_id = EventId(ms, seq, index)
    assert EventId.parse(str(event_id)) == event_id
    assert EventId.parse(str(event_id).encode()) == event_id
    assert EventId.parse(event_id.entry) == EventId(ms, seq, 0)


@pytest.mark.parametrize(
    ("text", "event_id"),
    [
        ("1700000000000-0/17", EventId(NOW, 0, 17)),
        ("1700000000000-5", EventId(NOW, 5, 0)),
        ("1700000000000", EventId(NOW, 0, 0)),
        (b"0-1", EventId(0, 1, 0)),
        ("1700000000000/2", EventId(NOW, 0, 2)),
    ],
)
def test_what_is_left_out_of_an_id_is_zero(text: str | bytes, event_id: EventId) -> None:
    """An entry ID stands for its first event, milliseconds for their first entry."""
    assert EventId.parse(text) == event_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1-",
        "-1",
        "1-2/",
        "1-2/3/4",
        "1-2-3",
        "a-0",
        "1.5-0",
        " 1-0",
        "+1-0",
        "1_0-0",
        "$",
        "*",
        "²-0",
        "\u0661-0",
        b"\xff-0",
        "1" * 21 + "-0",
        "9" * 5000,
    ],
)
def test_what_is_no_event_id_is_refused(text: str | bytes) -> None:
    """Everything else is an EventError, other digits and endless numbers included."""
    with pytest.raises(EventError, match="not an event ID") as caught:
        EventId.parse(text)
    assert "1700000000000-0/17" in caught.value.hint


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=20))
def test_event_ids_are_ordered_as_their_shard_is(numbers: list[tuple[int, int, int]]) -> None:
    """By milliseconds, then sequence, then index: the order in which they are delivered."""
    assert [tuple(event_id) for event_id in sorted(EventId(*n) for n in numbers)] == sorted(numbers)


# --- batches -------------------------------------------------------------------------------------


class ListEntry:
    """An entry whose events are at hand, and which counts how often they are asked for."""

    def __init__(self, entry_id: str, events: Sequence[Event]) -> None:
        self.id = EventId.parse(entry_id)
        self.count = len(events)
        self.fields = [b"name", b"value"]
        self.decoded = 0
        self._events = list(events)

    def events(self) -> list[Event]:
        self.decoded += 1
        return self._events

    def table(self) -> pa.Table:
        rows = [{"key": e.key, "time": e.time, **e.fields} for e in self._events]
        return pa.Table.from_pylist(rows)


def numbered(*numbers: int) -> list[Event]:
    return [Event("meter", number, {"n": number}) for number in numbers]


def test_a_batch_is_the_sequence_of_its_entries_events() -> None:
    """Order, length, indexes and slices are those of the events one after the other."""
    batch = Batch([ListEntry("5-0", numbered(1, 2)), ListEntry("5-1", numbered(3))], stream="s")
    assert list(batch) == batch.events == numbered(1, 2, 3)
    assert len(batch) == 3
    assert batch[0] == numbered(1)[0]
    assert batch[-1] == numbered(3)[0]
    assert batch[1:] == numbered(2, 3)
    assert [str(event_id) for event_id in batch.ids] == ["5-0/0", "5-0/1", "5-1/0"]


def test_a_batch_decodes_when_it_is_looked_at_and_once() -> None:
    """Counting and naming events costs nothing; a second look is free."""
    entry = ListEntry("5-0", numbered(1, 2))
    batch = Batch([entry])
    assert len(batch) == 2
    assert "2 events" in repr(batch)
    assert batch.ids[1].index == 1
    assert entry.decoded == 0
    assert batch.events is batch.events
    assert batch[1] in batch
    assert entry.decoded == 1


def test_a_batch_becomes_one_table_in_which_missing_fields_are_null() -> None:
    """Entries with other fields or number types still make one table."""
    with_other_fields = [Event("pump", 3, {"n": 0.5, "state": "on"})]
    batch = Batch([ListEntry("5-0", numbered(1, 2)), ListEntry("5-1", with_other_fields)])
    table = batch.table()
    assert table.column_names == ["key", "time", "n", "state"]
    assert table.column("n").to_pylist() == [1.0, 2.0, 0.5]
    assert table.column("state").to_pylist() == [None, None, "on"]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    bounds=st.tuples(st.integers(0, 25), st.integers(0, 25)).map(sorted),
)
def test_a_part_of_a_batch_is_a_batch_of_these_events(sizes: list[int], bounds: list[int]) -> None:
    """part() cuts events, IDs and tables alike, and says which entry each piece belongs to."""
    start, stop = bounds
    numbers = iter(range(sum(sizes)))
    entries = [
        ListEntry(f"7-{seq}", numbered(*(next(numbers) for _ in range(size))))
        for seq, size in enumerate(sizes)
    ]
    batch = Batch(entries, stream="s", shard=3)
    part, indexes = batch.part(start, stop)
    assert list(part) == batch.events[start:stop]
    assert part.ids == batch.ids[start:stop]
    assert len(part) == len(batch.ids[start:stop])
    assert (part.stream, part.shard) == ("s", 3)
    assert [entries[index].id.entry for index in indexes] == [e.id.entry for e in part.entries]
    if part.entries:
        assert part.table().column("n").to_pylist() == [e.fields["n"] for e in part]
    for index, piece in zip(indexes, part.entries, strict=True):
        assert piece.fields == entries[index].fields


def test_a_batch_names_itself_by_stream_shard_and_ids() -> None:
    """What stands in a log line leads back to the entries on the server."""
    entries = [ListEntry("5-0", numbered(1)), ListEntry("6-2", numbered(2))]
    assert repr(Batch(entries, stream="s", shard=1)) == (
        "<Batch of 's' shard 1: 2 events, 5-0 to 6-2>"
    )
    assert repr(Batch([], stream="s")) == "<Batch of 's': empty>"
    assert list(Batch([])) == []


# --- what is refused -----------------------------------------------------------------------------


class Sub(Event, array_like=True, frozen=True, gc=False):
    """An Event of a user's own class."""


class Text(str):
    """Text of a user's own class."""


FINE: dict[str, Any] = {
    "good": GOOD,
    "no_key": Event(None, NOW, {}),
    "no_fields": Event("a", NOW, {}),
    "all_types": Event("a", NOW, {"f": 1.5, "i": -2, "t": "x", "b": b"\xff", "n": None, "y": True}),
    "other_alphabet": Event("Zähler-7", NOW, {"Spannung/Ω": 1.0, "状态": "良い"}),
    "integers_at_the_ends": Event("a", NOW, {"low": INTEGER_MIN, "high": INTEGER_MAX}),
    "integer_beside_large_float": Event("a", NOW, {"x": 1e300, "n": 1}),
    "floats_whose_sum_overflows": Event("a", NOW, {"x": 1.7e308, "y": 1.7e308}),
    "times_at_the_ends": Event("a", TIME_MS_MIN, {"last": TIME_MS_MAX}),
    "longest_key": Event("ä" * (KEY_BYTES_MAX // 2), NOW, {"x": 1}),
    "most_fields": Event("a", NOW, {f"f{n}": n for n in range(FIELDS_PER_EVENT_MAX)}),
    "words_like_nan": Event("a", NOW, {"a": "maintenance", "b": "info", "c": "nan-7", "d": "+"}),
    "own_class": Sub("a", NOW, {"x": 1}),
    "own_key": Event(Text("a"), NOW, {"x": 1}),
}

WRONG: dict[str, tuple[Any, str]] = {
    "key_number": (Event(7, NOW, {"x": 1}), "key"),  # type: ignore[arg-type]
    "key_bytes": (Event(b"a", NOW, {"x": 1}), "key"),  # type: ignore[arg-type]
    "key_list": (Event(["a"], NOW, {"x": 1}), "key"),  # type: ignore[arg-type]
    "key_empty": (Event("", NOW, {"x": 1}), "key"),
    "key_half_character": (Event("\ud800", NOW, {"x": 1}), "key"),
    "key_too_long": (Event("a" * (KEY_BYTES_MAX + 1), NOW, {"x": 1}), "key"),
    "key_too_many_bytes": (Event("ä" * (KEY_BYTES_MAX // 2 + 1), NOW, {"x": 1}), "key"),
    "time_float": (Event("a", 1.5, {"x": 1}), "time"),  # type: ignore[arg-type]
    "time_bool": (Event("a", True, {"x": 1}), "time"),
    "time_text": (Event("a", "now", {"x": 1}), "time"),  # type: ignore[arg-type]
    "time_none": (Event("a", None, {"x": 1}), "time"),  # type: ignore[arg-type]
    "time_too_early": (Event("a", TIME_MS_MIN - 1, {"x": 1}), "time"),
    "time_in_microseconds": (Event("a", NOW * 1000, {"x": 1}), "time"),
    "name_empty": (Event("a", NOW, {"": 1}), ""),
    "name_number": (Event("a", NOW, {1: 1}), "1"),  # type: ignore[dict-item]
    "name_half_character": (Event("a", NOW, {"x\udc00": 1}), "x\udc00"),
    "text_half_character": (Event("a", NOW, {"x": "\ud800"}), "x"),
    "value_nan": (Event("a", NOW, {"ok": 1.0, "x": math.nan}), "x"),
    "value_infinite": (Event("a", NOW, {"x": -math.inf}), "x"),
    "value_infinities": (Event("a", NOW, {"x": math.inf, "y": -math.inf}), "x"),
    "value_nan_beside_text": (Event("a", NOW, {"t": "x", "x": math.nan, "n": None}), "x"),
    "value_too_large": (Event("a", NOW, {"x": INTEGER_MAX + 1}), "x"),
    "value_too_small": (Event("a", NOW, {"f": 1.5, "x": INTEGER_MIN - 1}), "x"),
    "value_far_too_large": (Event("a", NOW, {"f": 1.5, "x": 10**400}), "x"),
    "value_list": (Event("a", NOW, {"x": [1, 2]}), "x"),  # type: ignore[dict-item]
    "value_dict": (Event("a", NOW, {"x": {"y": 1}}), "x"),  # type: ignore[dict-item]
    "value_complex": (Event("a", NOW, {"x": 1j}), "x"),  # type: ignore[dict-item]
    "value_own_text": (Event("a", NOW, {"x": Text("on")}), "x"),
    "value_numpy": (Event("a", NOW, {"x": pa.scalar(1)}), "x"),
    **{
        f"text_{word!r}": (Event("a", NOW, {"x": word}), "x")
        for word in (
            "nan",
            "NaN",
            "NAN",
            "-nan",
            "+NaN",
            "inf",
            "-Inf",
            "INFINITY",
            " nan\n",
            "nAn",
        )
    },
}

NO_EVENTS: dict[str, Any] = {
    "dict": {"key": "a", "time": NOW, "fields": {}},
    "none": None,
    "tuple": ("a", NOW, {}),
    "look_alike": types.SimpleNamespace(key="a", time=NOW, fields={"x": 1}),
    "fields_none": Event("a", NOW, None),  # type: ignore[arg-type]
    "fields_list": Event("a", NOW, [("x", 1)]),  # type: ignore[arg-type]
    "fields_proxy": Event("a", NOW, types.MappingProxyType({"x": 1})),
    "too_many_fields": Event("a", NOW, {f"f{n}": n for n in range(FIELDS_PER_EVENT_MAX + 1)}),
}


@pytest.mark.parametrize("name", FINE)
def test_a_good_event_passes_alone_and_among_others(name: str) -> None:
    """Neither the quick nor the close look refuses what every codec carries."""
    check_event(FINE[name])
    check_events([FINE[name]])
    check_events([GOOD, FINE[name], GOOD])


def test_all_good_events_pass_together() -> None:
    """One odd but good event does not spoil the others, and no events are good events."""
    check_events(list(FINE.values()))
    check_events(tuple(FINE.values()))
    check_events([])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named_alone_and_among_others(name: str) -> None:
    """Both looks refuse it, with the field's name, its value and the way out."""
    event, field = WRONG[name]
    for check, argument in (
        (check_event, event),
        (check_events, [event]),
        (check_events, [GOOD, event, GOOD]),
        (check_events, [*FINE.values(), event]),
    ):
        with pytest.raises(FieldError) as caught:
            check(argument)
        assert caught.value.field == field
        assert caught.value.hint


@pytest.mark.parametrize("name", NO_EVENTS)
def test_what_is_no_event_is_refused_alone_and_among_others(name: str) -> None:
    """Look-alikes pass no check: a codec would meet them later and fail in its own way."""
    for check, argument in (
        (check_event, NO_EVENTS[name]),
        (check_events, [NO_EVENTS[name]]),
        (check_events, [GOOD, NO_EVENTS[name]]),
    ):
        with pytest.raises(EventError) as caught:
            check(argument)
        assert caught.value.hint


def test_the_first_wrong_event_is_the_one_that_is_named() -> None:
    """Whoever mends input from the top meets the errors in their order."""
    with pytest.raises(FieldError) as caught:
        check_events([GOOD, WRONG["time_bool"][0], WRONG["key_empty"][0]])
    assert caught.value.field == "time"


ODD_TEXT = st.text(st.characters(exclude_categories=[]), max_size=4) | st.sampled_from(
    ["nan", " NaN ", "-inf", "Infinity", "info", "\ud800", "ä" * 300, "a" * 600]
)
ODD_NUMBERS = (
    st.floats()
    | st.integers()
    | st.sampled_from([INTEGER_MAX, INTEGER_MAX + 1, INTEGER_MIN, INTEGER_MIN - 1, 1e308, 10**400])
)
ODD_VALUES = ODD_NUMBERS | ODD_TEXT | st.booleans() | st.none() | st.binary(max_size=3)
ODD_EVENTS = st.builds(
    Event,
    st.none() | ODD_TEXT | st.integers(),
    st.integers(NOW, NOW + 5) | st.integers() | st.booleans() | st.floats(),
    st.dictionaries(ODD_TEXT | st.integers(), ODD_VALUES | st.lists(st.none()), max_size=4),
)
PLAIN_EVENTS = st.builds(
    Event,
    st.sampled_from([None, "meter-1", "Zähler"]),
    st.integers(NOW, NOW + 5),
    st.dictionaries(st.sampled_from("abcd"), ODD_VALUES, max_size=4),
)


def refusal(check: Any, argument: Any) -> tuple[type, str] | None:
    try:
        check(argument)
    except EventError as error:
        return type(error), error.message
    return None


@given(st.lists(PLAIN_EVENTS | ODD_EVENTS, max_size=6))
def test_the_quick_look_agrees_with_the_close_one(events: list[Event]) -> None:
    """check_events refuses exactly what the close look at each event refuses first, and so does
    check_event of one."""
    refusals = [refusal(_look_closely, event) for event in events]
    assert refusal(check_events, events) == next(filter(None, refusals), None)
    assert [refusal(check_event, event) for event in events] == refusals


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "key": st.sampled_from(["meter-1", "", 7, None]),
                "time": st.sampled_from([NOW, "2026-01-31T12:00:00Z", str(NOW)]),
                "volts": ODD_VALUES,
                "id": st.just("x"),
            },
        ),
        max_size=5,
    ),
    st.sampled_from(["key", "id"]),
)
def test_many_dicts_become_what_each_becomes(dicts: list[dict[str, Any]], key_field: str) -> None:
    """events_from_dicts is from_mapping of each, checked, whether the quick way is open or not, and
    leaves the caller's dicts as they are."""

    def together(given: list[dict[str, Any]]) -> list[Event]:
        return events_from_dicts(given, key_field=key_field, time_field="time")

    def one_by_one(given: list[dict[str, Any]]) -> list[Event]:
        events = [Event.from_mapping(each, key_field=key_field) for each in given]
        check_events(events)
        return events

    given_dicts = [dict(each) for each in dicts]
    refused = refusal(one_by_one, dicts)
    assert refusal(together, dicts) == refused
    assert dicts == given_dicts
    if refused is None:
        for found, alone, each in zip(together(dicts), one_by_one(dicts), dicts, strict=True):
            assert (found.key, found.fields) == (alone.key, alone.fields)
            assert found.time == alone.time or "time" not in each


@pytest.mark.parametrize("time", [TIME_MS_MIN - 1, TIME_MS_MAX + 1, 2**70])
def test_many_dicts_refuse_a_time_that_one_refuses(time: int) -> None:
    """The quick way looks at the range of times as well."""
    given = {"key": "meter-1", "time": time}
    with pytest.raises(FieldError):
        Event.from_mapping(given)
    with pytest.raises(FieldError):
        events_from_dicts([given], key_field="key", time_field="time")
