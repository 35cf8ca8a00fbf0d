"""Typed events: what a handler's annotation says an event is. Pure.

``async def handle(reading: Reading)``, with a msgspec Struct, a dataclass or a TypedDict, gets each
event as one, validated; ``def store(readings: list[Reading])`` those of a batch. The event's fields
are the type's fields; ``key`` and ``time`` are the event's, where the type has fields of these
names.

Validation is strict: 230 is a float, since many languages write 230.0 so, but text is no number and
1 is no bool. Plain entries have their numbers recognised before that, wherever nothing is lost by
it; what is still text is text for a reason (``"007"``, ``"NaN"``).
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import msgspec

from standpipe.codec import RowsEntry, StructRows
from standpipe.errors import EventTypeError, HandlerError
from standpipe.event import Batch, Event

_HINT: Final = (
    "Annotate it with Event, or Batch for a batch; with a msgspec Struct, a dataclass or a "
    "TypedDict, or a list of them for a batch; or leave the annotation out."
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LISTS: Final = (list, Sequence, Collection, Iterable)
_UNTYPED: Final = frozenset({"Event", "Batch"})
_BYTES: Final = (
    msgspec.inspect.BytesType,
    msgspec.inspect.ByteArrayType,
    msgspec.inspect.MemoryViewType,
)

Converter = Callable[[Any], Any]


def takes_batch(handler: Callable[..., Any]) -> bool:
    """Whether a handler's first argument is annotated as a batch: ``Batch`` or a list."""
    annotation = _annotation(handler)
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] == "Batch"
    return annotation is Batch or typing.get_origin(annotation) in _LISTS


def converter(handler: Callable[..., Any], *, is_batch: bool) -> Converter | None:
    """What makes a handler's argument of an Event, or of a Batch.

    Args:
        handler: A function, a method, a ``functools.partial`` or an object that can be called.
        is_batch: Whether it is to get batches.

    Returns:
        None where the event or the batch is the argument itself: its annotation says so, or there
        is none. Calling the converter raises EventTypeError for events that are not of the type.

    Raises:
        HandlerError: the annotation cannot be resolved, or is none that an event can be.

    Cost: per event with three fields beside key and time about 0.5 µs for a Struct, 1 µs for a
        dataclass, 1.7 µs for a TypedDict; to copy such fields into a new dict takes 0.2 µs. Structs
        of numbers, text and bools in batches of rows cost nothing on top: no Event is made.
    """
    name = getattr(handler, "__name__", repr(handler))
    annotation = _annotation(handler)
    if isinstance(annotation, str):
        if annotation.rpartition(".")[2] in _UNTYPED:
            return None
        raise HandlerError(
            f"{name}: the annotation {annotation!r} cannot be resolved",
            hint="Define or import it at the module's level, not under TYPE_CHECKING.",
        )
    item = annotation
    if is_batch and typing.get_origin(annotation) in _LISTS:
        (item,) = typing.get_args(annotation)
        if _takes(item, Event):
            # A Batch is a Sequence of them already, and decodes when it is looked at.
            return _events if typing.get_origin(annotation) is list else None
    elif _takes(annotation, Batch if is_batch else Event):
        return None
    elif is_batch:
        raise _unusable(name, annotation)
    convert = _one(name, item)
    if not is_batch:
        return functools.partial(_single, convert)
    rows = StructRows.of(item)
    return (
        functools.partial(_all, convert)
        if rows is None
        else functools.partial(_read, rows, convert)
    )


# --- which annotation ----------------------------------------------------------------------------


def _annotation(handler: Callable[..., Any]) -> Any:
    """What the first argument is annotated with: Any without one, a str where unresolvable."""
    function: Any = handler
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        # Some functions written in C have no signature.
        return Any
    if not parameters or parameters[0].annotation is inspect.Parameter.empty:
        return Any
    annotation: Any = parameters[0].annotation
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    if inspect.ismethod(function):
        function = function.__func__
    # Its names are those of the module where it is written, not of a decorator's.
    function = inspect.unwrap(function)
    return _resolve(annotation, function)


def _resolve(annotation: Any, function: Any) -> Any:
    """An annotation as the type it names, by what the function sees."""

    def only() -> None: ...

    # This one alone: the context's may be a name that is there for the type checker only.
    only.__annotations__ = {"event": annotation}
    names: dict[str, Any] = getattr(function, "__globals__", {})
    code: Any = getattr(function, "__code__", None)
    cells: Any = getattr(function, "__closure__", None) or ()
    local: dict[str, Any] = {}
    for free, cell in zip(code.co_freevars if code is not None else (), cells, strict=False):
        try:
            local[free] = cell.cell_contents
        except ValueError:
            continue  # Not assigned yet.
    try:
        return typing.get_type_hints(only, names, local)["event"]
    except (NameError, AttributeError, SyntaxError, TypeError):
        return annotation if isinstance(annotation, str) else str(annotation)


def _takes(annotation: Any, kind: type) -> bool:
    """Whether an argument so annotated takes an Event (or a Batch) as it is."""
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return True
    if typing.get_origin(annotation) is not None:
        return any(_takes(part, kind) for part in _members(annotation))
    if not inspect.isclass(annotation) or typing.is_typeddict(annotation):
        return False
    # What a protocol asks for is the type checker's business.
    return bool(getattr(annotation, "_is_protocol", False)) or issubclass(kind, annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    from types import UnionType

    is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
    return typing.get_args(annotation) if is_union else ()


# --- from an event to the type -------------------------------------------------------------------


def _one(name: str, kind: Any) -> Callable[[Event], Any]:
    """What makes one event an instance of a type; it raises msgspec.ValidationError."""
    try:
        info = msgspec.inspect.type_info(kind)
        fields = cast(Any, info).fields if _is_object(info) else None
    except (TypeError, NameError) as error:
        raise HandlerError(
            f"{name}: {kind!r} cannot be a type of events: {error}", hint=_HINT
        ) from error
    if fields is None:
        raise _unusable(name, kind)
    for field in fields:
        if _holds(field.type, msgspec.inspect.CustomType):
            raise HandlerError(
                f"{name}: the field {field.name!r} of {_shown(kind)} has a type that no value has",
                hint="A value is a number, text, a bool, bytes or None; an enum, a datetime or a "
                "UUID is read from these.",
            )
    types = {field.encode_name: field.type for field in fields}
    has_key, time_type = "key" in types, types.get("time")
    as_time = _datetime if _holds(time_type, msgspec.inspect.DateTimeType) else None
    # The arguments are spelled out: functools.partial with keywords takes as long as the rest.
    to_kind = msgspec.convert
    if any(_holds(each, *_BYTES) for each in types.values()):
        # Else text would be decoded as base64: of plain entries, bytes that happen to be UTF-8.
        to_kind = functools.partial(msgspec.convert, builtin_types=(bytes,))
    if not has_key and time_type is None:
        return lambda event: to_kind(event.fields, kind)

    def flat(event: Event) -> Any:
        values: dict[str, Any] = dict(event.fields)
        if has_key:
            values["key"] = event.key
        if time_type is not None:
            values["time"] = event.time if as_time is None else as_time(event.time)
        return to_kind(values, kind)

    return flat


def _is_object(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.StructType):
        return not info.array_like
    return isinstance(info, (msgspec.inspect.DataclassType, msgspec.inspect.TypedDictType))


def _holds(info: Any, *kinds: type) -> bool:
    """Whether a field's type is, or is a union with, one of msgspec's kinds of types."""
    return any(isinstance(part, kinds) for part in getattr(info, "types", (info,)))


def _datetime(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _single(convert: Callable[[Event], Any], event: Event) -> Any:
    try:
        return convert(event)
    except msgspec.ValidationError as error:
        reason = _reason(error)
        raise EventTypeError(reason, invalid=[(0, reason)]) from None


def _all(convert: Callable[[Event], Any], batch: Batch) -> list[Any]:
    found: list[Any] = []
    invalid: list[tuple[int, str]] = []
    for place, event in enumerate(batch.events):
        try:
            found.append(convert(event))
        except msgspec.ValidationError as error:
            invalid.append((place, _reason(error)))
    if invalid:
        raise EventTypeError(
            f"{len(invalid)} of {len(batch)} events are not of the type, the first: "
            f"{invalid[0][1]}",
            invalid=invalid,
        )
    return found


def _read(rows: StructRows, convert: Callable[[Event], Any], batch: Batch) -> list[Any]:
    """:func:`_all`, with the events of rows blocks read as Structs at once."""
    found: list[Any] = []
    for entry in batch.entries:
        structs = rows.read(entry) if isinstance(entry, RowsEntry) else None
        if structs is None:
            break
        found += structs
    return found if len(found) == len(batch) else _all(convert, batch)


def _events(batch: Batch) -> list[Event]:
    return list(batch.events)


def _reason(error: msgspec.ValidationError) -> str:
    """What msgspec says, with the field's path first: ``$.volts: Expected float, got str``."""
    text, _, path = str(error).replace("`", "").rpartition(" - at ")
    return f"{path}: {text}" if text else f"$: {path}"


def _unusable(name: str, annotation: Any) -> HandlerError:
    return HandlerError(f"{name}: its first argument is a {_shown(annotation)}", hint=_HINT)


def _shown(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)
