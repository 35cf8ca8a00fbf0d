"""The plain layout: one entry per event, whose fields are the event's own."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from standpipe.clock import parse_time
from standpipe.codec.table import readers_table
from standpipe.codec.values import (
    ENCODING_FAILED,
    FROM_TEXT,
    TO_TEXT,
    name_culprit,
    read_typed,
    refuse_taken_name,
    sniff,
    sniff_all,
    text_or_bytes,
    to_json,
)
from standpipe.errors import ConfigError, DecodeError
from standpipe.event import Event, EventId, FieldValue

if TYPE_CHECKING:
    import pyarrow as pa


_ints_from_json: Final = msgspec.json.Decoder(list[int]).decode
_COLUMN_ENTRIES_MIN: Final = 4
"""Fewer entries are read faster one by one."""


@dataclass(frozen=True)
class PlainLayout:
    """How a stream's plain entries are laid out; part of the stream's definition.

    Args:
        key_field: The field that holds the event's key, default ``key``.
        time_field: The field that holds the event's time, default ``time``.
        schema: Name → float, int, str, bool or bytes, for the fields whose type is known. The
            others are read as ``numbers`` says.
        numbers: ``sniff`` turns text into a number or a bool where nothing is lost by it; ``text``
            leaves it text.

    Raises:
        ConfigError: a name is empty, taken twice or reserved, or a type is none of the five.
    """

    key_field: str = "key"
    time_field: str = "time"
    schema: Mapping[str, type] | None = None
    numbers: Literal["sniff", "text"] = "sniff"
    key_bytes: bytes = field(init=False, repr=False, compare=False)
    time_bytes: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.key_field or not self.time_field or self.key_field == self.time_field:
            raise ConfigError(
                f"the key field is {self.key_field!r} and the time field {self.time_field!r}",
                hint="Give two different names of at least one character.",
            )
        if self.time_field in ("c", "n", "d"):
            # Every plain entry has its time field, so none of them is ever taken for a block.
            raise ConfigError(
                f"the time field is {self.time_field!r}, a name that marks blocks",
                hint="Choose any name but c, n and d.",
            )
        if self.numbers not in ("sniff", "text"):
            raise ConfigError(f"numbers is {self.numbers!r}", hint="It is sniff or text.")
        for name, kind in (self.schema or {}).items():
            if kind not in FROM_TEXT:
                raise ConfigError(
                    f"the schema gives {name!r} the type {kind!r}",
                    hint="A field is a float, int, str, bool or bytes.",
                )
            if name in (self.key_field, self.time_field):
                raise ConfigError(
                    f"the schema gives {name!r} a type, but that is the key or the time",
                    hint="The key is text and the time milliseconds; leave them out of the schema.",
                )
        object.__setattr__(self, "key_bytes", self.key_field.encode())
        object.__setattr__(self, "time_bytes", self.time_field.encode())


def encode_plain(event: Event, layout: PlainLayout) -> list[bytes]:
    """One event as the fields of one entry: key (left out when None), time, then its fields.

    Numbers become their shortest decimal text, bools ``true`` or ``false``; text is UTF-8, bytes
    are themselves, and a field that is None is left out.

    Returns:
        Name, value, name, value…, as XADD takes them.

    Raises:
        FieldError: a field has the name of the key or the time field, or cannot be encoded.
    """
    try:
        fields = event.fields
        if layout.key_field in fields or layout.time_field in fields:
            refuse_taken_name(fields, layout.key_field, layout.time_field)
        flat: list[bytes] = []
        if event.key is not None:
            flat += (layout.key_bytes, event.key.encode())
        flat += (layout.time_bytes, to_json(event.time))
        for name, value in fields.items():
            if value is not None:
                flat += (name.encode(), TO_TEXT[type(value)](value))
    except ENCODING_FAILED as error:
        name_culprit((event,), error)
    return flat


def id_from(entry_id: bytes) -> EventId:
    """The ID of an entry's first event.

    Raises:
        DecodeError: the bytes are no entry ID.
    """
    ms, _, seq = entry_id.partition(b"-")
    if not (ms.isdigit() and seq.isdigit() and len(entry_id) < 64):
        raise DecodeError(f"{entry_id[:80]!r} is not an entry ID")
    return EventId(int(ms), int(seq))


def _time_from(raw: bytes, entry_id: bytes, name: str) -> int:
    if raw.isdigit() and len(raw) < 15:
        return int(raw)
    try:
        value = int(raw) if raw.removeprefix(b"-").isdigit() else raw.decode()
        # "now" and "-2h" are relative to the entry, so that every reader sees the same time.
        return parse_time(value, name=f"field {name!r}", now=id_from(entry_id).ms)
    except ConfigError as error:
        raise DecodeError(error.message, hint=error.hint) from None
    except (ValueError, OverflowError):
        raise DecodeError(f"field {name!r} is {raw[:80]!r}, not a time") from None


class PlainEntry(msgspec.Struct, gc=False):
    """One event, written as the entry's own fields."""

    entry_id: bytes
    fields: list[bytes]
    layout: PlainLayout
    count: int = 1

    @property
    def id(self) -> EventId:
        return id_from(self.entry_id)

    def events(self) -> list[Event]:
        """The event, alone in a list. An empty key is None.

        Raises:
            DecodeError: a name or the key is not UTF-8, a name stands there twice, the time is
                none, or a value is not what the schema says; not retryable.
        """
        layout, flat = self.layout, self.fields
        key_bytes, time_bytes, schema = layout.key_bytes, layout.time_bytes, layout.schema
        read = sniff if layout.numbers == "sniff" else text_or_bytes
        key: str | None = None
        time: int | None = None
        fields: dict[str, FieldValue] = {}
        if len(flat) % 2:
            raise DecodeError(f"the entry's last field, {flat[-1][:80]!r}, has no value")
        pairs = iter(flat)
        try:
            for name, raw in zip(pairs, pairs):  # noqa: B905  strict= costs a tenth of the decoding
                if name == key_bytes:
                    key = raw.decode()
                elif name == time_bytes:
                    time = _time_from(raw, self.entry_id, layout.time_field)
                elif schema is None:
                    fields[name.decode()] = read(raw)
                else:
                    text = name.decode()
                    kind = schema.get(text)
                    fields[text] = read(raw) if kind is None else read_typed(text, raw, kind)
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"a field's name or the key is not UTF-8: {error.object[:80]!r}"
            ) from None
        if len(fields) + (key is not None) + (time is not None) < len(flat) // 2:
            _refuse_twice(flat[::2])
        return [Event(key or None, self.id.ms if time is None else time, fields)]

    @classmethod
    def events_of(cls, entries: Sequence[PlainEntry]) -> list[Event]:
        """:meth:`events` of many entries of one stream.

        Those with the same names are read column by column: half the time.

        Raises:
            DecodeError: as :meth:`events`, of one that cannot be read.
        """
        by_width: dict[int, list[int]] = {}
        for position, entry in enumerate(entries):
            by_width.setdefault(len(entry.fields), []).append(position)
        if len(by_width) == 1:
            return _read_alike(entries)
        found: dict[int, Event] = {}
        for positions in by_width.values():
            events = _read_alike([entries[position] for position in positions])
            found.update(zip(positions, events, strict=True))
        return [found[position] for position in range(len(entries))]

    @property
    def typed_by(self) -> dict[str, Literal["schema", "sniffed", "text"]]:
        """What gave each field its type: the stream's schema, sniffing, or nothing (text, bytes).

        Raises:
            DecodeError: as :meth:`events`.
        """
        schema = self.layout.schema or {}
        return {
            name: "schema" if name in schema else "text" if _is_text(value) else "sniffed"
            for name, value in self.events()[0].fields.items()
        }

    def table(self) -> pa.Table:
        """The event as a table of one row.

        Raises:
            DecodeError: as :meth:`events`, or a field is named ``key`` or ``time``.
        """
        return readers_table(self.events())


def _read_alike(entries: Sequence[PlainEntry]) -> list[Event]:
    """The events of entries that have as many fields each."""
    events = _read_columns(entries) if len(entries) >= _COLUMN_ENTRIES_MIN else None
    if events is None:
        # Also to say what is wrong with which.
        return [event for entry in entries for event in entry.events()]
    return events


def _read_columns(entries: Sequence[PlainEntry]) -> list[Event] | None:
    """The same, column by column; None: each is to be looked at by itself."""
    layout, count, width = entries[0].layout, len(entries), len(entries[0].fields)
    flat = list(chain.from_iterable(entry.fields for entry in entries))
    names = flat[:width:2]
    if width % 2 or len(set(names)) < len(names):
        return None
    if any(flat[2 * place :: width].count(name) < count for place, name in enumerate(names)):
        return None
    read = sniff_all if layout.numbers == "sniff" else _texts_or_bytes
    schema = layout.schema or {}
    keys: Sequence[str | None] = (None,) * count
    times: Sequence[int] | None = None
    fields: list[dict[str, FieldValue]] = [{} for _ in entries]
    try:
        for place, name in enumerate(names):
            raws = flat[2 * place + 1 :: width]
            if name == layout.key_bytes:
                keys = [key or None for key in map(bytes.decode, raws)]
            elif name == layout.time_bytes:
                times = _times_from(raws)
                if times is None:
                    return None
            else:
                text = name.decode()
                kind = schema.get(text)
                column = read(raws) if kind is None else [read_typed(text, r, kind) for r in raws]
                for each, value in zip(fields, column, strict=True):
                    each[text] = value
    except (UnicodeDecodeError, DecodeError):
        return None
    if times is None:
        times = [entry.id.ms for entry in entries]
    return list(map(Event, keys, times, fields))


def _times_from(raws: list[bytes]) -> list[int] | None:
    """Times that are milliseconds in digits; None: one is not."""
    joined = b",".join(raws)
    if not joined.replace(b",", b"").isdigit() or max(map(len, raws)) >= 15:
        return None
    try:
        times = _ints_from_json(b"[%b]" % joined)
    except msgspec.MsgspecError:
        return None  # Leading zeros.
    return times if len(times) == len(raws) else None


def _texts_or_bytes(raws: Sequence[bytes]) -> list[FieldValue]:
    return list(map(text_or_bytes, raws))


def _is_text(value: FieldValue) -> bool:
    return isinstance(value, (str, bytes))


def _refuse_twice(names: Sequence[bytes]) -> None:
    seen: set[bytes] = set()
    for name in names:
        if name in seen:
            raise DecodeError(
                f"the entry has the field {name[:80]!r} twice",
                hint="Only one of the values could be kept; give each a name of its own.",
            )
        seen.add(name)
