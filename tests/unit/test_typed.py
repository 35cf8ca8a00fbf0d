"""A handler's annotation says what an event is, however it is written; validation is strict."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar

import msgspec
import pytest

from standpipe import Batch, Context, Event, Stream, Worker
from standpipe.codec import PlainLayout, decode_entry
from standpipe.errors import EventTypeError, HandlerError
from standpipe.typed import converter, takes_batch

if TYPE_CHECKING:
    from decimal import Decimal

    from standpipe.event import Batch as OnlyChecked

T = TypeVar("T")


class State(enum.Enum):
    ON = "on"
    OFF = "off"


class Reading(msgspec.Struct):
    key: str
    time: int
    volts: float
    amps: float | None = None


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    volts: float


class Renamed(msgspec.Struct, rename={"device": "key", "at": "time", "v": "volts"}):
    device: str | None
    at: datetime
    v: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    state: State = State.ON


class Wide(msgspec.Struct, Generic[T]):
    volts: T


@dataclasses.dataclass
class Plain:
    key: str
    volts: float

    def __post_init__(self) -> None:
        if self.volts < 0:
            raise ValueError("volts below zero")


class Row(TypedDict):
    key: str
    time: int
    volts: float


class Pair(NamedTuple):
    key: str
    volts: float


class Listed(msgspec.Struct, array_like=True):
    volts: float


class Opaque:
    pass


class Holds(msgspec.Struct):
    volts: Opaque | None


class HasKey(Protocol):
    key: str


EVENT = Event("m1", 1_700_000_000_250, {"volts": 230.5})


def batch_of(*events: Event) -> Batch:
    found = Batch([])
    found._events = list(events)
    found._length = len(events)
    return found


def made(handler: Callable[..., Any], event: Event = EVENT) -> Any:
    convert = converter(handler, is_batch=False)
    assert convert is not None
    return convert(event)


# --- what an event becomes -----------------------------------------------------------------------


def test_each_kind_of_type() -> None:
    """Structs, dataclasses, TypedDicts and generic Structs are filled from fields, key and time."""

    def struct(event: Reading) -> None: ...
    def data(event: Plain) -> None: ...
    def row(event: Row) -> None: ...
    def wide(event: Wide[float]) -> None: ...

    assert made(struct) == Reading("m1", EVENT.time, 230.5, None)
    assert made(data) == Plain("m1", 230.5)
    assert made(row) == {"key": "m1", "time": EVENT.time, "volts": 230.5}
    assert made(wide) == Wide(230.5)


def test_key_and_time_only_where_asked_for() -> None:
    """A type without the fields key and time is not given them, even if it forbids others."""

    def strict(event: Strict) -> None: ...

    assert made(strict) == Strict(230.5)
    with pytest.raises(EventTypeError, match="unknown field watts"):
        made(strict, Event("m1", 1, {"volts": 1.0, "watts": 2.0}))


def test_names_as_the_type_encodes_them() -> None:
    """A renamed field is filled by its name in the stream; a time that is a datetime is one."""

    def handle(event: Renamed) -> None: ...

    event = Event(None, EVENT.time, {"volts": 230.5, "state": "off"})
    at = datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    assert made(handle, event) == Renamed(None, at, 230.5, State.OFF)
    with pytest.raises(EventTypeError, match=r"^\$\.volts: Expected float <= 1000"):
        made(handle, Event(None, 1, {"volts": 2000}))
    with pytest.raises(EventTypeError, match=r"^\$\.state: Invalid enum value 'half'"):
        made(handle, Event(None, 1, {"volts": 1, "state": "half"}))


def test_the_event_is_left_as_it_is() -> None:
    """Converting changes nothing of the event, which may be handled once more."""

    def handle(event: Reading) -> None: ...

    made(handle)
    assert EVENT.fields == {"volts": 230.5}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"volts": "high"}, "$.volts: Expected float, got str"),
        ({"volts": "230.5"}, "$.volts: Expected float, got str"),
        ({"volts": True}, "$.volts: Expected float, got bool"),
        ({"volts": None}, "$.volts: Expected float, got null"),
        ({"amps": 1.0}, "$: Object missing required field volts"),
        ({"volts": 1.0, "amps": "NaN"}, "$.amps: Expected float | null, got str"),
    ],
)
def test_strict(fields: dict[str, Any], reason: str) -> None:
    """What is not of the type says so with the field's path; text is no number, a bool neither."""

    def handle(event: Reading) -> None: ...

    with pytest.raises(EventTypeError) as caught:
        made(handle, Event("m1", 1, fields))
    assert caught.value.message == reason
    assert caught.value.invalid == ((0, reason),)


def test_an_int_is_a_float() -> None:
    """230 is a float where one is asked for: other languages write 230.0 so."""

    def handle(event: Reading) -> None: ...

    found = made(handle, Event("m1", 1, {"volts": 230})).volts
    assert (found, type(found)) == (230.0, float)


def test_plain_entries_are_typed_by_their_codec() -> None:
    """Numbers that others wrote as text have become numbers before the type is held to them."""
    fields = [b"key", b"m1", b"volts", b"230.50", b"amps", b"1"]
    (event,) = decode_entry(b"1700000000000-0", fields, PlainLayout()).events()

    def handle(event: Reading) -> None: ...

    assert made(handle, event) == Reading("m1", 1_700_000_000_000, 230.5, 1.0)


def test_bytes_are_not_read_from_base64() -> None:
    """Text where bytes are asked for is an error, and not decoded as base64."""

    class Blob(msgspec.Struct):
        data: bytes

    convert = converter(_annotated(Blob), is_batch=False)
    assert convert is not None
    assert convert(Event(None, 1, {"data": b"\xff"})) == Blob(b"\xff")
    with pytest.raises(EventTypeError, match=r"\$\.data: Expected bytes, got str"):
        convert(Event(None, 1, {"data": "QUJD"}))


def test_what_the_type_itself_refuses() -> None:
    """An error of a dataclass' __post_init__ is one of validation."""

    def handle(event: Plain) -> None: ...

    with pytest.raises(EventTypeError, match="volts below zero"):
        made(handle, Event("m1", 1, {"volts": -1.0}))


def test_a_batch_names_all_that_are_invalid() -> None:
    """Of a batch the places of all invalid events are named, each with its reason."""

    def handle(batch: list[Reading]) -> None: ...

    good, bad = EVENT, Event("m1", 1, {"volts": "x"})
    convert = converter(handle, is_batch=True)
    assert convert is not None
    assert convert(batch_of(good, good)) == [Reading("m1", EVENT.time, 230.5)] * 2
    with pytest.raises(EventTypeError, match="2 of 3 events") as caught:
        convert(batch_of(bad, good, bad))
    assert [place for place, _ in caught.value.invalid] == [0, 2]


# --- how the annotation is found -----------------------------------------------------------------


def _annotated(kind: Any) -> Callable[..., Any]:
    def handle(event): ...  # type: ignore[no-untyped-def]

    handle.__annotations__["event"] = kind
    return handle


class Handlers:
    def method(self, event: Reading, context: Context) -> None: ...

    async def other(self, event: Reading) -> None: ...

    @staticmethod
    def static(event: Reading) -> None: ...

    @classmethod
    def clazz(cls, event: Reading) -> None: ...

    def __call__(self, event: Reading, context: Context | None = None) -> None: ...


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def _configured(place: str, event: Reading, context: Context) -> None: ...


@_decorated
def _wrapped(event: Reading) -> None: ...


def _beside_unresolved(event: Reading, context: Decimal) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        Handlers().method,
        Handlers().other,
        Handlers.static,
        Handlers.clazz,
        Handlers(),
        functools.partial(_configured, "here"),
        functools.partial(Handlers().method),
        _wrapped,
        _beside_unresolved,
        _annotated("Reading"),
        _annotated(Reading),
    ],
    ids=lambda handler: getattr(handler, "__qualname__", repr(handler))[:40],
)
def test_wherever_the_annotation_stands(handler: Callable[..., Any]) -> None:
    """Methods, partials, callable objects, decorated functions, annotations that are text."""
    assert made(handler) == Reading("m1", EVENT.time, 230.5, None)
    assert not takes_batch(handler)


def test_a_name_that_the_handler_encloses() -> None:
    """An annotation as text may name what the handler has from the function around it."""

    class Local(msgspec.Struct):
        volts: float

    def handle(event: Local) -> None:
        assert isinstance(event, Local)

    assert made(handle) == Local(230.5)


def _event(event: Event) -> None: ...
def _batch(batch: Batch) -> None: ...
def _maybe(event: Event | Batch) -> None: ...
def _anything(event: Any) -> None: ...
def _object(event: object) -> None: ...
def _protocol(event: HasKey) -> None: ...
def _generic(event: T) -> None: ...
def _checked(batch: OnlyChecked) -> None: ...
def _none(event) -> None: ...  # type: ignore[no-untyped-def]
def _sequence(batch: Sequence[Event]) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        _event,
        _maybe,
        _anything,
        _object,
        _protocol,
        _generic,
        _none,
        lambda event: None,
        [].append,
        print,
    ],
)
def test_events_stay_events(handler: Callable[..., Any]) -> None:
    """Event, what an Event is, and no annotation at all: the handler gets the Event."""
    assert converter(handler, is_batch=False) is None


@pytest.mark.parametrize(
    "handler", [_batch, _maybe, _anything, _object, _none, _sequence, _generic, [].extend]
)
def test_batches_stay_batches(handler: Callable[..., Any]) -> None:
    """So with batches; a Batch is a Sequence of Events."""
    assert converter(handler, is_batch=True) is None


def test_a_list_of_events() -> None:
    """list[Event] is a list, as it says."""
    convert = converter(_annotated(list[Event]), is_batch=True)
    assert convert is not None
    assert convert(batch_of(EVENT)) == [EVENT]


def test_a_name_for_the_type_checker_alone() -> None:
    """Event and Batch may be imported under TYPE_CHECKING, as before; other types may not."""
    assert converter(_annotated("mod.Event"), is_batch=False) is None
    assert converter(_annotated("Batch"), is_batch=True) is None
    with pytest.raises(HandlerError, match="'Decimal' cannot be resolved") as caught:
        converter(_annotated("Decimal"), is_batch=False)
    assert "TYPE_CHECKING" in caught.value.hint


@pytest.mark.parametrize(
    "kind",
    [int, str, dict, dict[str, float], Pair, Listed, Opaque, Holds, Reading | None, list[Reading],
     Batch, tuple[Reading], 5],
    ids=str,
)  # fmt: skip
def test_annotations_that_cannot_be_used(kind: Any) -> None:
    """What no event can be is a HandlerError, with a hint, when the handler is registered."""
    worker = Worker(Stream("s", "redis://127.0.0.1:1"), "g")
    with pytest.raises(HandlerError) as caught:
        worker.each(_annotated(kind))
    assert caught.value.hint


@pytest.mark.parametrize("kind", [Reading, Event, list[int], list[list[Reading]], list], ids=str)
def test_annotations_of_batches_that_cannot_be_used(kind: Any) -> None:
    """So is one event's type where batches come."""
    with pytest.raises(HandlerError):
        converter(_annotated(kind), is_batch=True)


def test_which_handlers_take_batches() -> None:
    """`standpipe work` sees by the annotation whether a handler takes batches."""
    assert takes_batch(_batch)
    assert takes_batch(_checked) is False  # An alias; the name alone says nothing.
    assert takes_batch(_annotated("standpipe.Batch"))
    assert takes_batch(_annotated(list[Reading]))
    assert takes_batch(_annotated("list[Reading]"))
    assert takes_batch(functools.partial(_batch))
    assert not any(map(takes_batch, (_event, _none, print, _annotated("Nowhere"), _anything)))
