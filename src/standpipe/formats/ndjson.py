"""NDJSON: one JSON object per line, which ``standpipe tail`` writes and ``standpipe send`` reads.

An object is flat, or keeps its fields apart, so that they can have any name::

    {"key": "inverter-7", "time": 1700000000000, "volts": 230.5}
    {"key": "inverter-7", "time": 1700000000000, "fields": {"volts": 230.5, "time": "CET"}}

Bytes, which JSON does not have, are ``{"$base64": "AAEC"}``.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from standpipe.errors import EventError, FieldError
from standpipe.event import Event, EventId
from standpipe.formats.lines import Piece
from standpipe.formats.reading import Chunk, ReadOptions, Values, read_records, too_long_error

_BASE64: Final = "$base64"
_WRITTEN_BESIDE_FIELDS: Final = ("id", "shard")
"""What to_ndjson writes about the place an event came from. It gets a new one when it is sent."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(dict[str, Any])


def to_ndjson(event: Event, event_id: EventId | None = None, *, shard: int | None = None) -> bytes:
    """One event as a line of NDJSON, its newline included.

    Reading the line gives the same event again: integers stay integers, floats floats, bytes bytes.
    Only a float that is no finite number, which no codec carries, becomes null.

    Args:
        event: The event.
        event_id: Where it stands in its shard; written as ``id``.
        shard: Its shard; written as ``shard``.
    """
    line: dict[str, Any] = {}
    if event_id is not None:
        line["id"] = str(event_id)
    if shard is not None:
        line["shard"] = shard
    line["key"] = event.key
    line["time"] = event.time
    line["fields"] = _with_base64(event.fields)
    return _encoder.encode(line) + b"\n"


def _with_base64(fields: Any) -> Any:
    if bytes not in map(type, fields.values()):
        return fields
    # msgspec writes bytes as their base64 text.
    return {
        name: {_BASE64: value} if isinstance(value, bytes) else value
        for name, value in fields.items()
    }


def row_text(key_field: str, key: object, time_field: str | None, time: object, fields: Any) -> str:
    """A row of a table that is no event, as a line that fails in the same way when it is sent.

    A float that is no number is written as text, ``"nan"``: JSON has none, and null would mend it
    unseen.
    """
    # A null key would be that of an event without a key, which is allowed.
    line: dict[str, Any] = {} if key is None else {key_field: key}
    if time_field is not None:
        line[time_field] = time
    line["fields"] = {
        name: str(value) if isinstance(value, float) and value - value != 0 else value
        for name, value in _with_base64(fields).items()
    }
    return _encoder.encode(line).decode()


class NdjsonParser:
    """Turns lines of NDJSON into events."""

    def __init__(self, options: ReadOptions) -> None:
        self._values = Values(options)

    def parse(self, piece: Piece) -> Chunk:
        """The events of a piece, and an error for every line that is none."""
        if piece.too_long:
            return Chunk(errors=[too_long_error(piece.first, piece.too_long)])
        lines = piece.data.split(b"\n")
        # Blank lines are no readings; they count as lines all the same.
        numbered = [(at, line) for at, line in enumerate(lines, piece.first) if line.strip()]
        return read_records(numbered, self._events, _text)

    def _events(self, lines: Sequence[bytes]) -> list[Event]:
        if len(lines) == 1:
            return [self._event(_decoded(lines[0]), packed=True)]
        data = b"\n".join(lines)
        try:
            mappings = _decoder.decode_lines(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EventError("a line is bad") from error
        if len(mappings) != len(lines):
            raise EventError("a line holds two objects, or an object two lines")
        packed = _BASE64.encode() in data
        return [self._event(mapping, packed=packed) for mapping in mappings]

    def _event(self, mapping: dict[str, Any], *, packed: bool) -> Event:
        values = self._values
        time_field = values.options.time_field
        fields: dict[str, Any] = mapping
        if values.key_field in mapping:
            key = mapping.pop(values.key_field)
            # An explicit null is what to_ndjson writes for an event without a key.
            key = values.options.key if key is None else values.key(key)
        else:
            key = values.missing_key(mapping)
        if time_field is not None and time_field in mapping:
            time = values.time(mapping.pop(time_field))
        else:
            time = values.now()
        if isinstance(mapping.get("fields"), dict):
            fields = cast("dict[str, Any]", mapping.pop("fields"))
            beside = mapping.keys() - _WRITTEN_BESIDE_FIELDS - values.options.leave_out
            if beside:
                raise FieldError(
                    f"{sorted(beside)} stand beside 'fields'",
                    field=min(beside),
                    hint="Put them inside, or pass --leave-out for each.",
                )
        if packed:
            fields = {name: _unpacked(name, value) for name, value in fields.items()}
        return Event(key, time, values.clean(fields))


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "surrogateescape")


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        line.decode()
        return _decoder.decode(line)
    except UnicodeDecodeError as error:
        raise EventError(
            f"byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8",
            hint="Turn the file into UTF-8, as in: iconv -f latin1 -t utf-8 FILE",
        ) from None
    except RecursionError:
        raise EventError(
            "lists or objects are nested too deeply", hint="Send flat fields."
        ) from None
    except msgspec.ValidationError as error:
        hint = "A line is a JSON object, with a key, a time and fields."
        if line.lstrip()[:1] == b"[":
            hint = "Turn a JSON array into lines: jq -c '.[]' FILE"
        elif "out of range" in str(error):
            hint = "An integer has to fit in 64 bits, another number in a double."
        raise EventError(str(error), hint=hint) from None
    except msgspec.DecodeError as error:
        reason = str(error)
        if "truncated" in reason:
            # msgspec's words for a line that ends early and for half a surrogate pair.
            reason = f"JSON ends too early, or has half a surrogate pair (byte {len(line)})"
        raise EventError(
            reason,
            hint="The byte is counted from 0. JSON knows no NaN, no comments and no single quotes.",
        ) from None


def _unpacked(name: str, value: Any) -> Any:
    """The bytes that ``{"$base64": …}`` stands for; any other value as it is."""
    if not isinstance(value, dict) or cast("dict[str, Any]", value).keys() != {_BASE64}:
        return cast("Any", value)
    text = cast("dict[str, Any]", value)[_BASE64]
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (AttributeError, ValueError):
        raise FieldError(
            f"field {name!r} is {text!r}, not base64",
            field=name,
            value=text,
            hint='Write bytes as base64 text with its padding: {"$base64": "AAEC"}.',
        ) from None
