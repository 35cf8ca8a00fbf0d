"""The rows layout: a block of events as a MessagePack array of ``[key, time, {fields}]``."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec

from standpipe.codec.payload import Block, pack, unpack
from standpipe.codec.table import readers_table
from standpipe.codec.values import ENCODING_FAILED, VALUE_TYPES, name_culprit
from standpipe.errors import DecodeError
from standpipe.event import Event
from standpipe.limits import ROWS_ZSTD_LEVEL, TIME_MS_MAX, TIME_MS_MIN

if TYPE_CHECKING:
    import pyarrow as pa

_to_msgpack: Final = msgspec.msgpack.Encoder().encode
_from_msgpack: Final = msgspec.msgpack.Decoder(list[Event]).decode
_event_from_msgpack: Final = msgspec.msgpack.Decoder(Event).decode
_Loose = tuple[str | None, int, dict[str, Any]]
_loosely: Final = msgspec.msgpack.Decoder(list[_Loose]).decode
_one_loosely: Final = msgspec.msgpack.Decoder(_Loose).decode


class Row(msgspec.Struct, array_like=True, gc=False):
    """What is encoded as an Event is, with a Struct in the place of its dict of fields."""

    key: str | None
    time: int
    fields: Any


def encode_rows(events: Sequence[Event], *, compress: bool = True) -> bytes:
    """Events as the payload of a rows block.

    Args:
        events: At least one; a list or a tuple.
        compress: Whether a zstd frame takes the array's place where that is smaller.

    Raises:
        FieldError: a value cannot be encoded.
    """
    try:
        return pack(_to_msgpack(events), compress, ROWS_ZSTD_LEVEL)
    except (*ENCODING_FAILED, RecursionError) as error:
        name_culprit(events, error)


def rows_part(events: Sequence[Event]) -> bytes:
    """Events as a part of a rows block that is still being gathered: the array without its header.

    Raises:
        FieldError: a value cannot be encoded.
    """
    return encode_rows(events, compress=False)[len(_header(len(events))) :]


def row_part(event: Event) -> bytes:
    """:func:`rows_part` of one event.

    Raises:
        FieldError: a value cannot be encoded.
    """
    try:
        return _to_msgpack(event)
    except (*ENCODING_FAILED, RecursionError) as error:
        name_culprit((event,), error)


def rows_payload(count: int, parts: Iterable[bytes], *, compress: bool = True) -> bytes:
    """The payload of a rows block out of its parts.

    Args:
        count: How many events the parts hold together.
        parts: From :func:`rows_part`, in order.
        compress: As in :func:`encode_rows`.
    """
    return pack(b"".join((_header(count), *parts)), compress, ROWS_ZSTD_LEVEL)


def _header(count: int) -> bytes:
    """How MessagePack begins an array of so many elements."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 65_536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def announced(payload: bytes) -> int | None:
    """How many elements the array has that begins here; other writers may use longer headers."""
    first = payload[:1]
    if first == b"\xdc":
        return int.from_bytes(payload[1:3], "big")
    if first == b"\xdd":
        return int.from_bytes(payload[1:5], "big")
    return first[0] & 0x0F if b"\x90" <= first <= b"\x9f" else None


class RowsEntry(Block):
    """A block of events, each with its own fields."""

    decoded: list[Event] | None = None

    def events(self) -> list[Event]:
        """The block's events, in order.

        A value is handed over as its writer wrote it, NaN and the infinities included.

        Raises:
            DecodeError: the payload is not an array of ``n`` times ``[key, time, {fields}]``, or a
                value is none that a field can hold; not retryable.
        """
        if self.decoded is None:
            self.decoded = _read_rows(unpack(self.payload), self.count)
        return self.decoded

    def table(self) -> pa.Table:
        """The events as a table; see :func:`events_to_table` with ``mixed="text"``.

        Raises:
            DecodeError: as :meth:`events`, or a field is named ``key`` or ``time``.
        """
        return readers_table(self.events())


def _read_rows(payload: bytes, count: int) -> list[Event]:
    # The array's own header comes first, so that n bounds what is built from the rest.
    length = announced(payload)
    if length != count:
        found = "no MessagePack array" if length is None else f"an array of {length}"
        raise DecodeError(f"n says {count} events, the payload is {found}")
    try:
        # Types and times are checked while it is read, at no cost: half of what checking them
        # afterwards would take.
        return _from_msgpack(payload)
    except (ValueError, RecursionError):
        # It has bytes, which the decoder cannot tell from text in a union, or something is wrong.
        return _checked(_loosely, payload)


def read_event(payload: bytes) -> Event:
    """One event out of a rows block, as a dead letter keeps it.

    Raises:
        DecodeError: it is none; not retryable.
    """
    try:
        return _event_from_msgpack(payload)
    except (ValueError, RecursionError):
        return _checked(lambda raw: [_one_loosely(raw)], payload)[0]


def _checked(decode: Callable[[bytes], list[_Loose]], payload: bytes) -> list[Event]:
    """Events whose values may be bytes, or wrong."""
    try:
        events = [Event(*parts) for parts in decode(payload)]
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the rows block is damaged: {error}") from error
    values = chain.from_iterable(event.fields.values() for event in events)
    strange = set(map(type, values)) - VALUE_TYPES
    if strange:
        raise DecodeError(
            f"a field in the rows block holds a {strange.pop().__name__}",
            hint="A field is a number, text, a bool, bytes or nil; lists and maps are not.",
        )
    if any(not TIME_MS_MIN <= event.time <= TIME_MS_MAX for event in events):
        raise DecodeError(
            "a time in the rows block is outside the years 1 to 9999",
            hint="Times are milliseconds; microseconds or nanoseconds have to be divided first.",
        )
    return events
