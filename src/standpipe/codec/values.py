"""One value as text and back: shortest decimals out, and numbers in only where nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NoReturn, cast

import msgspec

from standpipe.errors import DecodeError, EventError, FieldError
from standpipe.event import Event, FieldValue, check_event
from standpipe.limits import INTEGER_MAX, INTEGER_MIN, NUMBER_BYTES_MAX

# msgspec writes the shortest decimal that reads back the same, as repr does, in half the time.
to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode
_numbers_from_json: Final = msgspec.json.Decoder(list[int | float]).decode

TO_TEXT: Final[Mapping[type, Any]] = {
    float: to_json,
    int: to_json,
    bool: to_json,
    str: str.encode,
    bytes: bytes,
}
"""How a value of each type is written in a plain entry."""

VALUE_TYPES: Final = frozenset(TO_TEXT) | {type(None)}
"""What the value of a field can be."""

# --- encoding that fails -------------------------------------------------------------------------

ENCODING_FAILED: Final = (TypeError, ValueError, KeyError, AttributeError, OverflowError)
"""What encoders raise at events that check_events would not have let pass."""


def name_culprit(events: Sequence[Event], error: Exception) -> NoReturn:
    """Raise what check_event says about the first event that it refuses."""
    for event in events:
        check_event(event)
    raise EventError(
        f"the events cannot be encoded: {error}", hint="Check them with check_events first."
    ) from error


def refuse_taken_name(names: Iterable[str], key_field: str, time_field: str) -> NoReturn:
    """Raise that one of the names is the key's or the time's."""
    name, owner = (key_field, "key") if key_field in names else (time_field, "time")
    raise FieldError(
        f"a field is named {name!r}, which is the name of the {owner} here",
        field=name,
        hint="Rename the field, or give the stream other names for its key and time.",
    )


# --- reading text --------------------------------------------------------------------------------


def sniff(raw: bytes) -> FieldValue:
    """Text as a number or a bool if nothing is lost by it, else as text, else (no UTF-8) as bytes.

    Text is a number if it is one in JSON, and the int fits in 64 bits, or the float's shortest
    decimal has the same value: ``230.50`` is 230.5; ``007``, ``1e400`` and
    ``0.1234567890123456789`` stay text.
    """
    # 45 to 57 are "-" to "9": of what JSON allows, only numbers begin there. The last byte rules
    # out the white space that JSON allows behind them.
    if raw and 45 <= raw[0] <= 57 and raw[-1] >= 48 and len(raw) <= NUMBER_BYTES_MAX:
        try:
            number = _from_json(raw)
        except msgspec.DecodeError:
            return text_or_bytes(raw)
        # A double keeps every decimal of up to 15 digits (DBL_DIG) that is not extremely small.
        if len(raw) <= 16 and (1e-15 < number < 1e16 or -1e16 < number < -1e-15):
            return number
        if _is_exact(raw, number):
            return number
        return -0.0 if raw == b"-0" else raw.decode()
    if raw == b"true":
        return True
    if raw == b"false":
        return False
    return text_or_bytes(raw)


def sniff_all(raws: Sequence[bytes]) -> list[FieldValue]:
    """:func:`sniff` of many; a third of the time where all are numbers in their shortest form."""
    joined = b",".join(raws)
    try:
        numbers = _numbers_from_json(b"[%b]" % joined)
    except msgspec.MsgspecError:
        return list(map(sniff, raws))
    # Written out they are the same bytes, so each stands for itself and nothing was lost. There are
    # as many, so none of them was two with a comma.
    if (
        len(numbers) == len(raws)
        and to_json(numbers)[1:-1] == joined
        and min(numbers) >= INTEGER_MIN
        and max(numbers) <= INTEGER_MAX
    ):
        return cast("list[FieldValue]", numbers)
    return list(map(sniff, raws))


def _is_exact(raw: bytes, number: float) -> bool:
    """Whether the number, written out, has the text's decimal value."""
    if isinstance(number, int):
        # An int has no negative zero; the caller makes it a float.
        return INTEGER_MIN <= number <= INTEGER_MAX and raw != b"-0"
    if to_json(number) == raw:
        return True
    if not number:
        # 1e-400 underflows to 0.0; where zero is meant, only zeros stand before the exponent.
        return not raw.lower().partition(b"e")[0].strip(b"-0.")
    return Decimal(raw.decode()) == Decimal(repr(number))


def text_or_bytes(raw: bytes) -> str | bytes:
    """Text if the bytes are UTF-8, else the bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _float_from(raw: bytes) -> float:
    known = sniff(raw)  # Three times as fast as float(), which reads what is left.
    if isinstance(known, float):
        return known
    number = float(raw)
    if not math.isfinite(number) or b"_" in raw:
        raise ValueError
    return number


def _int_from(raw: bytes) -> int:
    number = int(raw)
    if not INTEGER_MIN <= number <= INTEGER_MAX or b"_" in raw:
        raise ValueError
    return number


def _bool_from(raw: bytes) -> bool:
    return {b"true": True, b"false": False, b"1": True, b"0": False}[raw.lower()]


FROM_TEXT: Final[Mapping[type, Any]] = {
    float: _float_from,
    int: _int_from,
    bool: _bool_from,
    str: bytes.decode,
    bytes: bytes,
}
"""How a value is read whose type the schema gives. Floats are rounded to the nearest double."""


def read_typed(name: str, raw: bytes, kind: type) -> FieldValue:
    """A value as the type that the schema gives the field.

    Raises:
        DecodeError: it is none.
    """
    try:
        return FROM_TEXT[kind](raw)
    except (ValueError, KeyError):
        raise DecodeError(
            f"field {name!r} is {raw[:80]!r}, not the {kind.__name__} that the schema says",
            hint="Mend the writer, or take the field out of the stream's schema.",
        ) from None
