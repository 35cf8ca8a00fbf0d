"""Event, EventId and Batch: what goes through a stream. Pure: nothing here touches a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    cast,
    overload,
)

import msgspec

from standpipe.clock import now_ms, parse_time
from standpipe.errors import ConfigError, DecodeError, EventError, FieldError, HandlerError
from standpipe.limits import (
    FIELDS_PER_EVENT_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    KEY_BYTES_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
)

if TYPE_CHECKING:
    import pyarrow as pa

if TYPE_CHECKING:
    FieldValue = float | int | str | bool | bytes | None
else:
    # msgspec has no union of text and bytes: an event with bytes is read as codec.rows says.
    FieldValue = float | int | str | bool | None
"""What a field can hold. A number is finite; a missing reading is None."""


Milliseconds = Annotated[int, msgspec.Meta(ge=TIME_MS_MIN, le=TIME_MS_MAX)]
"""Since the epoch, in the years 1 to 9999. The limits are looked at where an event is decoded."""


_copy: Final[Callable[[dict[str, Any]], dict[str, Any]]] = cast(Any, dict).copy
_pop: Final[Callable[[dict[str, Any], str, None], Any]] = cast(Any, dict).pop


class Event(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One reading of one device.

    Args:
        key: The device id; also what decides the shard. None only for plain entries that others
            wrote without one.
        time: When it was read, milliseconds since the epoch.
        fields: Name → number, text, bool, bytes or None (a missing reading).
    """

    key: str | None
    time: Milliseconds
    fields: Mapping[str, FieldValue]

    @classmethod
    def now(cls, key: str | None, **fields: FieldValue) -> Event:
        """An event read at this moment: ``Event.now("inverter-7", volts=230.5)``."""
        return cls(key, now_ms(), fields)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, key_field: str = "key", time_field: str = "time"
    ) -> Event:
        """An event from a flat mapping, such as a parsed JSON object or a CSV row.

        Args:
            mapping: The key and the time under their names, every other item a field. Without a
                time it is now; the time may be an int (ms) or ISO 8601 text.
            key_field: The name that holds the key.
            time_field: The name that holds the time.

        Raises:
            FieldError: the key or the time is not one. The fields are checked on sending.
        """
        fields = dict(mapping)
        key = fields.pop(key_field, None)
        time = fields.pop(time_field, None)
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if key is not None and not isinstance(key, str):
            raise FieldError(
                f"the key, {key_field!r}, is {key!r}, not text",
                field=key_field,
                value=key,
                hint="The key is the device's id, as text.",
            )
        try:
            ms = now_ms() if time is None else parse_time(time, name=time_field)
        except ConfigError as error:
            raise FieldError(error.message, field=time_field, value=time, hint=error.hint) from None
        return cls(key, ms, fields)

    @classmethod
    def from_struct(cls, struct: msgspec.Struct) -> Event:
        """An event from a msgspec Struct, with its fields as they are encoded (an enum by its
        value, ``rename`` followed), ``key`` and ``time`` for the event's.

        Raises:
            FieldError: as :meth:`from_mapping`.
            EventError: it is encoded as an array, or holds what cannot be encoded.
        """
        try:
            mapping: Any = msgspec.to_builtins(struct, builtin_types=(bytes,))
        except (TypeError, ValueError, RecursionError) as error:
            raise EventError(
                f"a {type(struct).__name__} cannot be sent: {error}",
                hint="Its fields are numbers, text, bools, bytes or None.",
            ) from error
        if not isinstance(mapping, dict):
            raise EventError(
                f"a {type(struct).__name__} is encoded as an array, without names",
                hint="Leave out array_like=True.",
            )
        return cls.from_mapping(cast("dict[str, Any]", mapping))

    def to_mapping(self, *, key_field: str = "key", time_field: str = "time") -> dict[str, Any]:
        """The flat mapping that :meth:`from_mapping` reads."""
        return {key_field: self.key, time_field: self.time, **self.fields}


class EventId(NamedTuple):
    """Where an event stands in its shard: entry ID plus index inside the entry.

    Ordered as the shard is. Unique within a shard; with several shards the pair
    (shard, event ID) is unique in the stream.
    """

    ms: int
    seq: int
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def entry(self) -> str:
        """The entry ID as Redis writes it, ``1700000000000-0``."""
        return f"{self.ms}-{self.seq}"

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}/{self.index}"

    @classmethod
    def parse(cls, text: str | bytes) -> EventId:
        """Read ``1700000000000-0/17``, ``1700000000000-0`` or ``1700000000000``.

        Raises:
            EventError: the text is none of these.
        """
        raw = text.decode("ascii", "replace") if isinstance(text, bytes) else text
        entry, slash, index = raw.partition("/")
        ms, dash, seq = entry.partition("-")
        numbers = (ms, seq if dash else "0", index if slash else "0")
        # The server's IDs are two numbers of 64 bits, which have 20 digits at most.
        if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in numbers):
            raise EventError(
                f"{raw[:80]!r} is not an event ID",
                hint="Write 1700000000000-0/17 or 1700000000000-0.",
            )
        return cls(*map(int, numbers))


class Entry(Protocol):
    """One decoded entry of a shard: what a codec makes of it.

    ``id`` is the event ID of its first event (index 0), ``count`` how many events it carries.
    Decoding may be put off until ``events`` or ``table`` is called, and may then raise DecodeError.
    """

    @property
    def id(self) -> EventId: ...

    @property
    def count(self) -> int: ...

    @property
    def fields(self) -> list[bytes]:
        """Name, value, name, value… as they stand on the server."""
        ...

    def events(self) -> list[Event]: ...

    def table(self) -> pa.Table: ...


class _Part:
    """A span of an entry's events."""

    __slots__ = ("_entry", "count", "id")

    def __init__(self, entry: Entry, start: int, stop: int) -> None:
        self._entry = entry
        self.id = EventId(entry.id.ms, entry.id.seq, entry.id.index + start)
        self.count = stop - start

    @property
    def fields(self) -> list[bytes]:
        return self._entry.fields

    def events(self) -> list[Event]:
        start = self.id.index - self._entry.id.index
        return self._entry.events()[start : start + self.count]

    def table(self) -> pa.Table:
        return self._entry.table().slice(self.id.index - self._entry.id.index, self.count)


def _events_of(entries: Sequence[Entry]) -> list[Event]:
    kind = type(entries[0]) if entries else None
    together: Callable[[Sequence[Entry]], list[Event]] | None = getattr(kind, "events_of", None)
    if together is not None and len(entries) > 1 and all(type(entry) is kind for entry in entries):
        # One event each: it is faster to read them all at once.
        return together(entries)
    lists = [entry.events() for entry in entries]
    return lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))


Acked = int | EventId | Event | Iterable[int | EventId | Event] | Literal["all"]
"""What can be acknowledged of a batch: by index, event ID or the event itself, one or several."""


class Acknowledging(Protocol):
    """What takes the acknowledgements of a handler that gives them itself."""

    def ack(self, events: Acked = "all") -> None: ...


class Batch(Sequence[Event]):
    """Events of one shard, in the shard's order, decoded when they are looked at.

    Args:
        entries: The decoded entries, in order.
        stream: The stream's name.
        shard: The shard's number, from 0.
    """

    __slots__ = ("_events", "_length", "acks", "entries", "shard", "stream")

    def __init__(self, entries: Sequence[Entry], *, stream: str = "", shard: int = 0) -> None:
        self.entries: Final = tuple(entries)
        self.stream: Final = stream
        self.shard: Final = shard
        self.acks: Acknowledging | None = None
        """Where a handler's own acknowledgements go; None where it gives none."""
        self._length = sum(entry.count for entry in self.entries)
        self._events: list[Event] | None = None

    @property
    def events(self) -> list[Event]:
        """All events as a list, in order.

        Raises:
            DecodeError: an entry's content is not what its header says; not retryable.
        """
        if self._events is None:
            self._events = _events_of(self.entries)
        return self._events

    @property
    def ids(self) -> list[EventId]:
        """The event IDs, parallel to :attr:`events`."""
        return [
            EventId(first.ms, first.seq, first.index + offset)
            for first, count in ((entry.id, entry.count) for entry in self.entries)
            for offset in range(count)
        ]

    def part(self, start: int, stop: int) -> tuple[Batch, list[int]]:
        """The events from ``start`` to ``stop``, and of which of :attr:`entries` each piece is."""
        pieces: list[Entry] = []
        indexes: list[int] = []
        position = 0
        for index, entry in enumerate(self.entries):
            low, high = max(start, position), min(stop, position + entry.count)
            if low < high:
                whole = high - low == entry.count
                pieces.append(entry if whole else _Part(entry, low - position, high - position))
                indexes.append(index)
            position += entry.count
        return Batch(pieces, stream=self.stream, shard=self.shard), indexes

    def pick(self, places: Iterable[int]) -> tuple[Batch, list[int]]:
        """The events at some places, ascending, and of which of :attr:`entries` each piece is."""
        pieces: list[Entry] = []
        indexes: list[int] = []
        chosen = list(places)
        at = position = 0
        for index, entry in enumerate(self.entries):
            end = position + entry.count
            while at < len(chosen) and chosen[at] < end:
                low = high = chosen[at]
                while at < len(chosen) and chosen[at] == high < end:
                    at, high = at + 1, high + 1
                whole = high - low == entry.count
                pieces.append(entry if whole else _Part(entry, low - position, high - position))
                indexes.append(index)
            position = end
        picked = Batch(pieces, stream=self.stream, shard=self.shard)
        if self._events is not None:
            # A columns block would be decoded once for each of its pieces.
            picked._events = [self._events[place] for place in chosen]
        return picked, indexes

    def ack(self, events: Acked = "all") -> None:
        """Acknowledge events, in a handler declared with ``ack="manual"``.

        May be called any number of times, in the handler's thread or another, until the handler
        returns. What is acknowledged already stays so.

        Args:
            events: Indices, event IDs or the events themselves (the very objects), one or several;
                default: all. An empty list acknowledges nothing.

        Raises:
            AckError: the batch has no such event; in ordered mode, one before it is not
                acknowledged; or the handler has returned. Not retryable.
            HandlerError: the handler is not declared so.

        Delivery: An entry is acknowledged when all of its events are: at once, with the next read.
            Of a block of which some are not, all are delivered again if the process dies.
        """
        if self.acks is None:
            raise HandlerError(
                "this batch is acknowledged when its handler returns",
                hint='Declare the handler with @worker.batch(ack="manual").',
            )
        self.acks.ack(events)

    def table(self) -> pa.Table:
        """The batch as a pyarrow Table: ``key``, ``time`` (int64, ms), then one column per field.

        Columns blocks are handed over without copying; other entries are converted. A field that
        an event does not have is null.

        Raises:
            DecodeError: as :attr:`events`; or a field is a number in one entry, text in another.
        """
        import pyarrow as pa

        tables = [entry.table() for entry in self.entries]
        if len(tables) == 1:
            return tables[0]
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise DecodeError(
                f"the entries of this batch do not fit into one table: {error}",
                hint="Use batch.events, or give the stream a schema that says the fields' types.",
            ) from None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self.events[index]

    def __repr__(self) -> str:
        if not self.entries:
            return f"<Batch of {self.stream!r}: empty>"
        first, last = self.entries[0].id, self.entries[-1].id
        return (
            f"<Batch of {self.stream!r} shard {self.shard}: {self._length} events, "
            f"{first.entry} to {last.entry}>"
        )


# --- checking before sending ---------------------------------------------------------------------

_PLAIN_TYPES: Final = frozenset({float, int, str, bool, bytes, type(None)})
_values_of: Final = dict[Any, Any].values
_NUMBER_TYPES: Final = frozenset({float, int, bool})
_NAN_TEXTS: Final = frozenset(
    sign + word for sign in ("", "+", "-") for word in ("nan", "inf", "infinity")
)
"""Text that most languages would read as a number that is none, in lower case."""


def check_events(events: Sequence[Event]) -> None:
    """Refuse events that no codec carries or that would come back as something else.

    Looks at all events together in loops that run in C (about 0.3 µs per event with three numbers),
    and at each by itself only to name the wrong one.

    Raises:
        FieldError: a key, a time, a field's name or a value is not allowed; its ``args`` name the
            first such field.
        EventError: something in the sequence is no Event.
    """
    if _all_plain(events):
        return
    for event in events:
        check_event(event)


def events_from_dicts(
    dicts: Sequence[dict[str, Any]], *, key_field: str, time_field: str
) -> list[Event]:
    """:meth:`Event.from_mapping` of many dicts, checked as :func:`check_events` does; 0.4 µs each.

    Raises:
        FieldError: as both.
    """
    fields = list(map(_copy, dicts))
    keys = list(map(_pop, fields, repeat(key_field), repeat(None)))
    times = list(map(_pop, fields, repeat(time_field), repeat(None)))
    if _are_plain(keys, times, fields):
        return list(map(Event, keys, times, fields))
    events = [Event.from_mapping(d, key_field=key_field, time_field=time_field) for d in dicts]
    check_events(events)
    return events


def _all_plain(events: Sequence[Event]) -> bool:
    if not events:
        return True
    if set(map(type, events)) != {Event}:
        return False
    fields = cast(list[dict[Any, Any]], [event.fields for event in events])
    return _are_plain([event.key for event in events], [event.time for event in events], fields)


def _are_plain(keys: list[Any], times: list[Any], fields: list[dict[Any, Any]]) -> bool:
    """Whether a quick look finds nothing that needs a closer one.

    It may send good events to the closer look, but never lets a wrong one pass.
    """
    try:
        return (
            _are_plain_keys(keys)
            and _are_plain_times(times)
            and _are_plain_fields(set[Any]().union(*fields), fields)
            and _are_plain_values(list(chain.from_iterable(map(_values_of, fields))))
        )
    except (TypeError, ValueError, OverflowError):
        # Fields that are no dict, text that is no Unicode, an int that no float can hold.
        return False


def are_plain_columns(keys: list[Any], times: list[Any], columns: Iterable[list[Any]]) -> bool:
    """:func:`check_events` for events that stand in columns, without saying what is wrong.

    Returns:
        False where something is wrong, or needs the closer look that check_events takes.
    """
    try:
        return (
            _are_plain_keys(keys)
            and _are_plain_times(times)
            and all(map(_are_plain_values, columns))
        )
    except (TypeError, ValueError, OverflowError):
        return False


def _are_plain_keys(keys: list[Any]) -> bool:
    try:
        joined = "".join(keys)
    except TypeError:
        # Some are None, or no text: then this raises again.
        keys = [key for key in keys if key is not None]
        joined = "".join(keys)
    size_max = KEY_BYTES_MAX
    if not joined.isascii():
        joined.encode()
        # UTF-8 takes at most four bytes per character; the closer look counts them.
        size_max //= 4
    sizes = set(map(len, keys))
    return 0 not in sizes and max(sizes, default=0) <= size_max


def _are_plain_times(times: list[Any]) -> bool:
    return (
        set(map(type, times)) == {int} and min(times) >= TIME_MS_MIN and max(times) <= TIME_MS_MAX
    )


def are_plain_names(names: Collection[Any]) -> bool:
    """:func:`check_events` for the names of one event's fields, without saying what is wrong."""
    try:
        return len(names) <= FIELDS_PER_EVENT_MAX and _are_texts(names)
    except ValueError:
        return False


def _are_texts(names: Collection[Any]) -> bool:
    if set(map(type, names)) - {str} or "" in names:
        return False
    "".join(names).encode()
    return True


def _are_plain_fields(names: set[Any], fields: list[dict[Any, Any]]) -> bool:
    if not _are_texts(names):
        return False
    return len(names) <= FIELDS_PER_EVENT_MAX or max(map(len, fields)) <= FIELDS_PER_EVENT_MAX


def _are_plain_values(values: list[Any]) -> bool:
    types = set(map(type, values))
    if not types <= _PLAIN_TYPES:
        return False
    if str in types:
        texts = [value for value in values if type(value) is str]
        "".join(texts).encode()
        if not _NAN_TEXTS.isdisjoint(map(str.lower, map(str.strip, texts))):
            return False
    numbers = values
    if not types <= _NUMBER_TYPES:
        numbers = [value for value in values if type(value) in _NUMBER_TYPES]
    # A sum is finite only if all its parts are; one that overflows only costs the closer look.
    if not math.isfinite(sum(numbers)):
        return False
    return int not in types or (min(numbers) >= INTEGER_MIN and max(numbers) <= INTEGER_MAX)


def _is_plain(event: Event) -> bool:
    """:func:`_all_plain` of one event: a third of what the closer look takes."""
    if type(event) is not Event:
        return False
    key, time = event.key, event.time
    fields: Any = event.fields
    # What is not ASCII, or text that may stand for NaN, gets the closer look.
    if type(key) is not str or not 0 < len(key) <= KEY_BYTES_MAX or not key.isascii():
        return False
    if type(time) is not int or not TIME_MS_MIN <= time <= TIME_MS_MAX:
        return False
    if type(event.fields) is not dict or len(fields) > FIELDS_PER_EVENT_MAX:
        return False
    for name, value in fields.items():
        if type(name) is not str or not name or not name.isascii():
            return False
        kind = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind is float:
            # Of infinity and NaN the difference is NaN, which equals nothing.
            if value - value != 0.0:
                return False
        elif kind is int:
            if not INTEGER_MIN <= value <= INTEGER_MAX:
                return False
        elif kind is not bool and value is not None and kind is not bytes:
            return False
    return True


def check_event(event: Event) -> None:
    """Refuse one event; see :func:`check_events`.

    Raises:
        FieldError: see there.
        EventError: it is no Event.
    """
    if not _is_plain(event):
        _look_closely(event)


def _look_closely(event: Event) -> None:
    if not isinstance(cast(object, event), Event):
        raise EventError(
            f"{event!r} is not an Event", hint="Build it with Event(key, time, fields)."
        )
    _check_key(event.key)
    _check_time(event.time)
    fields = cast(object, event.fields)
    if not isinstance(fields, dict):
        raise EventError(
            f"the fields of {event.key!r} are {fields!r}, not a dict",
            hint="Build the event with Event(key, time, {name: value}).",
        )
    if len(event.fields) > FIELDS_PER_EVENT_MAX:
        raise EventError(
            f"event of {event.key!r} has {len(event.fields)} fields, more than "
            f"{FIELDS_PER_EVENT_MAX}",
            hint="Split the reading over several events.",
        )
    for name, value in event.fields.items():
        _check_field(name, value)


def _check_key(key: object) -> None:
    if key is None:
        return
    if not isinstance(key, str):
        raise FieldError(f"key is {key!r}, not text", field="key", value=key)
    if not key:
        raise FieldError(
            "key is empty",
            field="key",
            value=key,
            hint="The key is the device's id; None stands for a reading without one.",
        )
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise FieldError(
            f"key {key!r} is not valid Unicode",
            field="key",
            value=key,
            hint="It holds half a surrogate pair; decode the input with its right encoding.",
        ) from None
    if size > KEY_BYTES_MAX:
        raise FieldError(
            f"key {key[:40]!r}… has {size} bytes, more than {KEY_BYTES_MAX}",
            field="key",
            value=key,
            hint="The key is the device's id; put the rest into fields.",
        )


def _check_time(time: object) -> None:
    if type(time) is not int:
        raise FieldError(
            f"time is {time!r}, not an int",
            field="time",
            value=time,
            hint="Times are whole milliseconds since the epoch.",
        )
    if not TIME_MS_MIN <= time <= TIME_MS_MAX:
        raise FieldError(
            f"time {time} is outside the years 1 to 9999",
            field="time",
            value=time,
            hint="Times are milliseconds; microseconds or nanoseconds have to be divided first.",
        )


def _check_field(name: object, value: object) -> None:
    if not isinstance(name, str) or not name:
        raise FieldError(
            f"field name {name!r} is not text or empty",
            field=str(name),
            value=value,
            hint="Give every field a name of at least one character.",
        )
    try:
        name.encode()
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        raise FieldError(
            f"field {name!r} is not valid Unicode",
            field=name,
            value=value,
            hint="It holds half a surrogate pair; send bytes, or decode with the right encoding.",
        ) from None
    if isinstance(value, (list, tuple, set, dict)):
        raise FieldError(
            f"field {name!r} is a {type(cast(object, value)).__name__}: {value!r}",
            field=name,
            value=cast(object, value),
            hint="Send one field per number (phase_1, phase_2), or the whole as text or bytes.",
        )
    if type(value) not in _PLAIN_TYPES:
        raise FieldError(
            f"field {name!r} is a {type(value).__name__}: {value!r}",
            field=name,
            value=value,
            hint="Turn it into a float, int, text, bool or bytes (numpy: value.item()).",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(
            f"field {name!r} is {value!r}, not a finite number",
            field=name,
            value=value,
            hint="Send None for a missing reading.",
        )
    if type(value) is int and not INTEGER_MIN <= value <= INTEGER_MAX:
        raise FieldError(
            f"field {name!r} is {value}, which does not fit in 64 bits",
            field=name,
            value=value,
            hint="Send it as a float or as text.",
        )
    if isinstance(value, str) and value.strip().lower() in _NAN_TEXTS:
        raise FieldError(
            f"field {name!r} is the text {value!r}, which stands for no number",
            field=name,
            value=value,
            hint="Send None for a missing reading; `standpipe send --null NaN` does it for files.",
        )
