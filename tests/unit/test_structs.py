"""Structs go straight to and from rows, and mean what the long way over Events says."""

from __future__ import annotations

import enum
import math
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import pytest

from standpipe.codec import RowsEntry, StructRows, decode_entry, encode_rows
from standpipe.codec.plain import PlainLayout
from standpipe.errors import DecodeError, EventError, EventTypeError, FieldError
from standpipe.event import Batch, Event
from standpipe.typed import converter

TIME = 1_700_000_000_000


class Reading(msgspec.Struct):
    key: str | None
    time: int
    volts: float
    n: int = 7
    note: str | None = None


class Renamed(msgspec.Struct, rename={"v": "volts", "device": "key"}, frozen=True):
    v: float
    device: str
    is_ok: bool


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    volts: float


class State(enum.Enum):
    ON = "on"


def block(*rows: Any) -> RowsEntry:
    """A block as any writer may write it."""
    payload = msgspec.msgpack.encode(rows)
    fields = [b"c", b"rows1", b"n", b"%d" % len(rows), b"d", payload]
    entry = decode_entry(b"1700000000000-0", fields, PlainLayout())
    assert isinstance(entry, RowsEntry)
    return entry


def read(kind: Any, entry: RowsEntry) -> list[Any] | None:
    rows = StructRows.of(kind)
    assert rows is not None
    return rows.read(entry)


def handled(kind: Any, entry: RowsEntry) -> Any:
    """What a handler of lists of a type gets."""

    def handle(batch: Any) -> None: ...

    handle.__annotations__["batch"] = list[kind]
    convert = converter(handle, is_batch=True)
    assert convert is not None
    return convert(Batch([entry]))


def the_long_way(kind: Any, entry: RowsEntry) -> Any:
    """What msgspec makes of each event by itself."""
    return [
        msgspec.convert({**event.fields, "key": event.key, "time": event.time}, kind)
        for event in entry.events()
    ]


# --- in ------------------------------------------------------------------------------------------


def test_they_are_read_as_the_long_way_reads_them() -> None:
    """Fields in any order, defaults, None and ints for floats come out alike."""
    entry = block(
        ["m1", TIME, {"volts": 230.5, "n": 1, "note": "a"}],
        [None, TIME + 1, {"note": None, "volts": 230}],
        ["m2", TIME + 2, {"n": -1, "volts": -0.0, "watts": 5, "raw": b"\x00"}],
    )
    expected = the_long_way(Reading, entry)
    assert expected[1] == Reading(None, TIME + 1, 230.0)
    assert repr(read(Reading, entry)) == repr(handled(Reading, entry)) == repr(expected)


def test_names_and_order_are_the_types() -> None:
    """A renamed field is read under its name in the stream, wherever the type has it."""
    entry = block(["m1", TIME, {"is_ok": True, "volts": 1.5}])
    assert read(Renamed, entry) == [Renamed(1.5, "m1", True)]
    entry = block(["m1", TIME, {"volts": 1.5}])
    assert read(Strict, entry) == [Strict(1.5)]


@pytest.mark.parametrize("value", [1, 1.0, True, "1", b"1", None, 2**63, [1], {"a": 1}])
@pytest.mark.parametrize("kind", [float, int, str, bool, float | None, int | str | None])
def test_each_type_takes_what_it_takes_the_long_way(kind: Any, value: Any) -> None:
    """No type takes a value that it refuses the long way, and none becomes another."""
    struct = msgspec.defstruct("Typed", [("key", str), ("time", int), ("volts", kind)])
    entry = block(["m1", TIME, {"volts": 1}], ["m1", TIME, {"volts": value}])
    direct = read(struct, block(["m1", TIME, {"volts": value}]))
    try:
        expected = the_long_way(struct, block(["m1", TIME, {"volts": value}]))
    except (msgspec.ValidationError, DecodeError):
        assert direct is None
        with pytest.raises((EventTypeError, DecodeError)):
            handled(struct, entry)
    else:
        assert repr(direct) == repr(expected)


@pytest.mark.parametrize(
    "row",
    [
        ["m1", TIME, {"volts": "x"}],
        ["m1", TIME, {}],
        [5, TIME, {"volts": 1.0}],
        ["m1", 10**15, {"volts": 1.0}],
        ["m1", 1.5, {"volts": 1.0}],
        ["m1", TIME],
        "text",
    ],
)
def test_what_is_wrong_goes_the_long_way(row: Any) -> None:
    """A block with something wrong is left to those that say what."""
    assert read(Reading, block(["m1", TIME, {"volts": 1.0}], row)) is None


def test_a_handler_learns_which_events_are_wrong() -> None:
    """One wrong event among blocks is named by its place in the whole batch."""
    good, bad = ["m1", TIME, {"volts": 1.0}], ["m1", TIME, {"volts": "x"}]

    def handle(batch: list[Reading]) -> None: ...

    convert = converter(handle, is_batch=True)
    assert convert is not None
    with pytest.raises(EventTypeError) as caught:
        convert(Batch([block(good, good), block(good, bad)]))
    assert [place for place, _ in caught.value.invalid] == [3]


def test_n_is_checked() -> None:
    """A block whose n is not its number of events is refused, typed or not."""
    entry = block(["m1", TIME, {"volts": 1.0}])
    entry.count = 2
    assert read(Reading, entry) is None
    with pytest.raises(DecodeError):
        handled(Reading, entry)


def test_which_types_go_the_long_way() -> None:
    """What has more to it than numbers, text and bools is not read directly."""

    class Checked(msgspec.Struct):
        volts: float

        def __post_init__(self) -> None:
            raise ValueError

    class Nothing(msgspec.Struct):
        key: str

    kinds: list[Any] = [
        Checked,
        Nothing,
        Annotated[int, msgspec.Meta(ge=0)],
        dict,
        msgspec.defstruct("A", ["volts"], array_like=True),
        msgspec.defstruct("A", [("volts", float)], tag=True),
        msgspec.defstruct("A", [("volts", float, 1.0)], omit_defaults=True),
        msgspec.defstruct("A", [("volts", float)], kw_only=True),
        msgspec.defstruct("A", [("state", State)]),
        msgspec.defstruct("A", [("raw", bytes)]),
        msgspec.defstruct("A", [("any", Any)]),
        msgspec.defstruct("A", [("time", datetime), ("volts", float)]),
        msgspec.defstruct("A", [("key", Annotated[str, msgspec.Meta(min_length=3)]), ("v", float)]),
    ]
    assert [StructRows.of(kind) for kind in kinds] == [None] * len(kinds)


# --- out -----------------------------------------------------------------------------------------


def test_they_are_written_as_events_are() -> None:
    """The bytes are those of the Events with the same fields."""
    structs = [Reading("m1", TIME, 230.5), Reading(None, TIME + 1, -1.0, 5, "é")]
    rows = StructRows.of(Reading)
    assert rows is not None
    sent = rows.events(structs)
    assert sent is not None
    events = [
        Event("m1", TIME, {"volts": 230.5, "n": 7, "note": None}),
        Event(None, TIME + 1, {"volts": -1.0, "n": 5, "note": "é"}),
    ]
    assert encode_rows(sent, compress=False) == encode_rows(events, compress=False)
    assert [(each.key, each.time) for each in sent] == [("m1", TIME), (None, TIME + 1)]


@pytest.mark.parametrize(
    "struct",
    [
        Reading("", TIME, 1.0),
        Reading("m1", 10**15, 1.0),
        Reading("m1", True, 1.0),
        Reading("m1", TIME, math.nan),
        Reading("m1", TIME, math.inf),
        Reading("m1", TIME, 1.0, 2**63),
        Reading("m1", TIME, 1.0, note="NaN"),
        Reading("m1", TIME, [1.0]),  # type: ignore[arg-type]
        Reading(5, TIME, 1.0),  # type: ignore[arg-type]
        Reading("m1", TIME, 1.0, note="\ud800"),
    ],
)
def test_what_events_may_not_hold_is_looked_at(struct: Reading) -> None:
    """A Struct is not validated when it is made; what is wrong is left to those that say what."""
    rows = StructRows.of(Reading)
    assert rows is not None
    assert rows.events([Reading("m1", TIME, 1.0), struct]) is None


def test_an_event_from_a_struct() -> None:
    """Whatever msgspec encodes as numbers and text is sent so; what it cannot is an error."""

    class Wide(msgspec.Struct, rename={"v": "volts"}):
        key: int
        time: datetime
        v: float
        state: State
        raw: bytes = b"\xff"
        left_out: float | msgspec.UnsetType = msgspec.UNSET

    at = datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    assert Event.from_struct(Wide(5, at, 1.5, State.ON)) == Event(
        "5", TIME + 250, {"volts": 1.5, "state": "on", "raw": b"\xff"}
    )
    with pytest.raises(EventError, match="encoded as an array"):
        Event.from_struct(msgspec.defstruct("A", ["volts"], array_like=True)(1.0))
    with pytest.raises(EventError, match="cannot be sent"):
        Event.from_struct(msgspec.defstruct("A", ["volts"])(object()))
    with pytest.raises(FieldError):
        Event.from_struct(msgspec.defstruct("A", ["time"])("soon"))
