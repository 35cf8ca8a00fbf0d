"""Times and durations as people write them, in integer milliseconds. Pure but for now_ms."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from typing import Final, cast

from standpipe.errors import ConfigError
from standpipe.limits import TIME_MS_MAX, TIME_MS_MIN

_UNITS_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_DURATION: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*(ms|s|min|m|h|d|w)", re.ASCII)
# A date, alone or with what is no digit behind it: T, a blank.
_ISO: Final = re.compile(r"\d{4}(-?\d{2}-?\d{2}|-?W\d{2}(-?\d)?)(\D|$)", re.ASCII)
_ISO_CHARS_MAX: Final = 64
_DURATION_HINT: Final = "Write a number and a unit: 500ms, 30s, 5m, 2h, 7d."
_TIME_HINT: Final = (
    "Write milliseconds since the epoch (1700000000000), ISO 8601 (2026-01-31T12:00:00Z), "
    "or a time ago (-2h)."
)


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch: for data, never for deadlines."""
    return time.time_ns() // 1_000_000


def parse_duration(value: str | int, *, name: str = "duration") -> int:
    """Turn ``"30s"`` into milliseconds; an int is milliseconds already.

    Args:
        value: Numbers with units (``ms s m min h d w``): ``30s``, ``1h30m``, ``2h 5m``; or an int
            in ms.
        name: The setting it belongs to, for the error.

    Raises:
        ConfigError: not a duration, or negative.
    """
    if isinstance(value, int):
        if value < 0:
            raise ConfigError(f"{name} is {value} ms, below zero", hint=_DURATION_HINT)
        return value
    text = value.strip().lower()
    total, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            break
        total += float(match[1]) * _UNITS_MS[match[2]]
        end = match.end()
    if not text or end != len(text):
        raise ConfigError(f"{name} is {value!r}, not a duration", hint=_DURATION_HINT)
    return round(total)


def parse_time(value: str | int | float, *, name: str = "time", now: int | None = None) -> int:
    """Turn a time as people and files write it into milliseconds since the epoch.

    Args:
        value: Milliseconds (int, or digits), ISO 8601 (no zone means UTC), ``now``, or ``-2h``.
        name: The field or option it belongs to, for the error.
        now: What relative times are relative to, ms; default: the wall clock.

    Raises:
        ConfigError: not a time, or outside the years 1 to 9999.
    """
    found: int | None = None
    # A parsed JSON object or a CSV row can hold anything, whatever the annotation says.
    given = cast(object, value)
    if isinstance(given, bool):
        pass
    elif isinstance(given, int):
        found = given
    elif isinstance(given, float):
        found = round(given) if math.isfinite(given) else None
    elif isinstance(given, str):
        found = _parse_text(given.strip(), now)
    if found is None:
        raise ConfigError(f"{name} is {_shown(value)}, not a time", hint=_TIME_HINT)
    if not TIME_MS_MIN <= found <= TIME_MS_MAX:
        raise ConfigError(
            f"{name} is {_shown(value)}, outside the years 1 to 9999",
            hint="Times are milliseconds; microseconds or nanoseconds have to be divided first.",
        )
    return found


def _shown(value: object) -> str:
    """A wrong value for the message: some of it, if it is long."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes out no int of more than some thousand digits.
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}…"


def _parse_text(text: str, now: int | None) -> int | None:
    if re.fullmatch(r"-?[0-9]{5,30}", text):
        return int(text)
    if text == "now":
        return now_ms() if now is None else now
    if text.startswith("-") and _DURATION.match(text, 1):
        try:
            ago = parse_duration(text[1:])
        except ConfigError:
            return None
        return (now_ms() if now is None else now) - ago
    if len(text) > _ISO_CHARS_MAX or not _ISO.match(text):
        # fromisoformat takes any run of digits for a date, a time and fractions of a second.
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # Whole milliseconds by integers: timestamp() is a float and loses some.
        delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def format_time(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC: ``2023-11-14T22:13:20.000Z``."""
    seconds, millis = divmod(ms, 1000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    # Not strftime: it writes years before 1000 with fewer than four digits.
    return f"{moment.replace(tzinfo=None).isoformat()}.{millis:03d}Z"


def format_duration(ms: int) -> str:
    """Milliseconds as the two largest units: ``2h 5m``, ``1.2s``, ``350ms``."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        # Cut off, not rounded: 59 999 ms is not 60 s.
        return f"{ms // 100 / 10}s"
    seconds = ms // 1000
    for name, size, small, small_size in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // small_size
            return f"{seconds // size}{name}" + (f" {rest}{small}" if rest else "")
    raise AssertionError("unreachable: above 60 s a unit fits")
