"""What all formats share: the options, the chunks they return, and how values are taken."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self, TypeVar

import msgspec

from standpipe.clock import now_ms, parse_time
from standpipe.errors import ConfigError, EventError, FieldError, LineError
from standpipe.event import Event, FieldValue, check_events
from standpipe.limits import (
    FIELDS_PER_EVENT_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    LINE_BYTES_MAX,
    NUMBER_BYTES_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
)

Record = TypeVar("Record")

KEY_FIELD: Final = "key"

MS_PER: Final = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}
"""Unit of a numeric time → what to multiply it with and divide it by for milliseconds."""

_KEY_HINT: Final = (
    "Name the one that holds the device id with --key-field, "
    "or give one key for the whole input with --key."
)
_RUN: Final = 64
"""Where one of many records is bad, they are tried again in runs of this many, and one by one only
in the runs that have a bad one: a bad line in a thousand then doubles the cost and no more."""

_TEXT_CHARACTERS_MAX: Final = 300
"""A reason quotes the value it is about, and a value can be a megabyte long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How an input is to be read; the defaults suit what ``standpipe tail`` writes.

    Args:
        key_field: The field, column or tag that holds the device id; None means ``key``, and for
            line protocol the first of the tags ``key``, ``device``, ``device_id`` and ``host``.
        key: The key of every reading without a key of its own; None makes such readings errors.
        time_field: The field or column that holds the time; None means that the input has none, and
            every reading gets the time at which it is read. Line protocol has a place of its own.
        time_precision: The unit of times that are numbers: ``s``, ``ms``, ``us`` or ``ns``; None
            means ``ns`` for line protocol and ``ms`` elsewhere. ISO 8601 texts and Parquet's
            timestamps need none.
        null_texts: What stands for a missing reading, as in ``{"NaN", "-1000000"}``: a value
            becomes None when it is this text, or the number that the text writes.
        leave_out: Fields, columns or tags that are not sent.
        delimiter: What parts the columns of a CSV file; None looks for ``, ; | TAB`` in its header.
        numbers: Whether CSV cells that write a number, ``true`` or ``false`` become that; otherwise
            all are text.
        text_fields: CSV columns whose cells stay text whatever they look like.

    Raises:
        ConfigError: an option has a value that it cannot have.
    """

    key_field: str | None = None
    key: str | None = None
    time_field: str | None = "time"
    time_precision: str | None = None
    null_texts: frozenset[str] = frozenset()
    leave_out: frozenset[str] = frozenset()
    delimiter: str | None = None
    numbers: bool = True
    text_fields: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.time_precision is not None and self.time_precision not in MS_PER:
            raise ConfigError(
                f"time_precision is {self.time_precision!r}", hint="Write s, ms, us or ns."
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ConfigError(
                f"delimiter is {self.delimiter!r}",
                hint="Write one character, such as ; or a tab ($'\\t' in the shell).",
            )


@dataclass(slots=True)
class Chunk:
    """What became of a run of lines or rows.

    Args:
        events: The good ones, checked, in order.
        numbers: The line or row number of each event, from 1; of a CSV row that spans several lines
            the first. For errors that only sending brings to light.
        errors: The bad ones, in order.
        lines: Lines or rows read since the start of the input, with blank lines and comments.
        bytes: Bytes read since the start of the input, as they lie on disk (for Parquet an estimate
            by rows), so that ``bytes / file size`` is the progress.
        header: The CSV header as read, which a file of rejects has to begin with.
    """

    events: list[Event] = field(default_factory=list[Event])
    numbers: Sequence[int] = ()
    errors: list[LineError] = field(default_factory=list[LineError])
    lines: int = 0
    bytes: int = 0
    header: str = ""


def read_records(
    records: Sequence[tuple[int, Record]],
    events_of: Callable[[Sequence[Record]], Sequence[Event]],
    text_of: Callable[[Record], str],
    *,
    what: str = "line",
) -> Chunk:
    """Turn records into events, all at once if they are good, so that a bad one costs only itself.

    Args:
        records: Each with its line's or row's number.
        events_of: Makes the events of some records; raises EventError if one of them is bad, and
            says what is wrong with it when it is the only one.
        text_of: The record as it is to stand in a file of rejects.
        what: ``line`` or ``row``.
    """
    events: list[Event] = []
    numbers: list[int] = []
    errors: list[LineError] = []

    def read(run: Sequence[tuple[int, Record]]) -> None:
        try:
            made = events_of([record for _, record in run])
            check_events(made)
        except EventError as error:
            if len(run) == 1:
                number, record = run[0]
                errors.append(line_error(error, number, text_of(record), what=what))
                return
            size = _RUN if len(run) > _RUN else 1
            for start in range(0, len(run), size):
                read(run[start : start + size])
        else:
            events.extend(made)
            numbers.extend([number for number, _ in run])

    if records:
        read(records)
    return Chunk(events, numbers, errors)


def line_error(error: EventError, number: int, text: str, *, what: str = "line") -> LineError:
    """The error of one line: its number, the reason, and the way out that the reason knows."""
    reason = error.message
    if len(reason) > _TEXT_CHARACTERS_MAX:
        reason = reason[:_TEXT_CHARACTERS_MAX] + "…"
    return LineError(f"{what} {number}: {reason}", line=number, text=text, hint=error.hint or None)


def too_long_error(number: int, size: int) -> LineError:
    """The error of a line that was passed over; its text is not kept."""
    return LineError(
        f"line {number}: has {size} bytes, more than {LINE_BYTES_MAX}",
        line=number,
        hint=f"It is not among the rejects; take it out of the input with: sed -n {number}p",
    )


# --- values --------------------------------------------------------------------------------------

_NUMBER: Final = re.compile(r"(-?(?:0|[1-9][0-9]*)(\.[0-9]+)?)([eE][+-]?[0-9]+)?")
_DIGITS: Final = re.compile(r"-?[0-9]+")
_SPACE: Final = " \t\r\n"
_EXACT_CHARACTERS_MAX: Final = 15
"""Every decimal number of up to 15 digits survives the way through a double unchanged."""

_DELICATE: Final = (*_SPACE, "e", "E")
"""Characters that a column parsed at once must not have: an exponent can underflow to zero."""

_numbers_decoder: Final = msgspec.json.Decoder(list[int | float])


def number_of(text: str) -> int | float | None:
    """The number that a text writes, or None if it is to stay text; as for plain entries.

    A number is what JSON's grammar calls one (no ``+5``, no ``007``, no ``1_000``) and what an int
    of 64 bits, or a double, holds without changing its decimal value.
    """
    if len(text) > NUMBER_BYTES_MAX or (match := _NUMBER.fullmatch(text)) is None:
        return None
    decimals, fraction, exponent = match.groups()
    if fraction is None and exponent is None:
        value = int(text)
        if not value and text[0] == "-":
            return -0.0  # An int has no negative zero.
        return value if INTEGER_MIN <= value <= INTEGER_MAX else None
    number = float(text)
    if len(text) <= _EXACT_CHARACTERS_MAX and exponent is None:
        return number
    if not number:
        return None if decimals.strip("-0.") else number
    return number if math.isfinite(number) and Decimal(repr(number)) == Decimal(text) else None


def cell_value(text: str) -> FieldValue:
    """The value of a CSV cell: empty is None, a number may have spaces around it, else text.

    ``true`` and ``false`` are bools, as in plain entries.
    """
    if not text:
        return None
    number = number_of(text.strip(_SPACE))
    if number is None:
        return _BOOLS.get(text, text)
    return number


_BOOLS: Final[Mapping[str, bool]] = {"true": True, "false": False}


def cell_values(cells: Sequence[str]) -> list[FieldValue]:
    """:func:`cell_value` of many cells, by one call to a JSON parser if all are short numbers."""
    if max(map(len, cells), default=0) <= _EXACT_CHARACTERS_MAX and "-0" not in cells:
        joined = ",".join(cells)
        if not any(character in joined for character in _DELICATE):
            try:
                values = _numbers_decoder.decode(f"[{joined}]")
            except msgspec.DecodeError:
                values = []
            # A cell that holds a comma makes more values than there are cells.
            if len(values) == len(cells):
                return [*values]
    # States and the like repeat, so each text is looked at once.
    found = {text: cell_value(text) for text in set(cells)}
    return [found[text] for text in cells]


def _is_in_range(ms: int) -> bool:
    return TIME_MS_MIN <= ms <= TIME_MS_MAX


class Values:
    """Takes keys, times and missing readings as the options say.

    Args:
        options: The options.
        precision: The unit of numeric times when the options name none.
    """

    def __init__(self, options: ReadOptions, *, precision: str = "ms") -> None:
        self.options: Final = options
        self.key_field: Final = options.key_field or KEY_FIELD
        self.precision: Final = options.time_precision or precision
        self._times, self._per = MS_PER[self.precision]
        numbers = map(number_of, options.null_texts)
        self._null_numbers = frozenset(number for number in numbers if number is not None)
        self._nan_is_null = any(text.strip("+-").lower() == "nan" for text in options.null_texts)

    def key(self, value: object) -> str:
        """The key as text; whole numbers are device ids too.

        Raises:
            FieldError: it is empty, or neither text nor a whole number.
        """
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise FieldError(
            f"the key, {self.key_field!r}, is {value!r}, not a device id",
            field=self.key_field,
            value=value,
            hint="The key is the device's id, as text or a whole number.",
        )

    def missing_key(self, names: Iterable[str]) -> str:
        """The key of a reading that has none.

        Raises:
            FieldError: the options give none.
        """
        if self.options.key is not None:
            return self.options.key
        raise FieldError(
            f"the key, {self.key_field!r}, is missing from {sorted(names)}",
            field=self.key_field,
            hint=_KEY_HINT,
        )

    def time(self, value: object) -> int:
        """The time in milliseconds since the epoch.

        Integers in a finer unit are rounded down, floats to the nearest.

        Raises:
            FieldError: it is no time, or outside the years 1 to 9999.
        """
        if type(value) is int and self._times == self._per and _is_in_range(value):
            return value
        name = self.options.time_field or "time"
        text = value.strip(_SPACE) if isinstance(value, str) else ""
        number = number_of(text) if text else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return self._scaled(number, name)
        try:
            # Digits that are no number (007, or too many) would be read as a date without dashes.
            if text and not _DIGITS.fullmatch(text):
                return parse_time(text, name=name)
        # An OverflowError is -999…d. The hint below is that of files, not of options.
        except (ConfigError, OverflowError):
            pass
        raise FieldError(
            f"the time, {name!r}, is {value!r}, not a time",
            field=name,
            value=value,
            hint="Write a number (--time-precision names its unit), "
            "or ISO 8601 (2026-01-31T12:00:00Z).",
        )

    def _scaled(self, number: float, name: str) -> int:
        """A time in the input's unit as milliseconds."""
        ms = None
        if isinstance(number, int):
            ms = number * self._times // self._per
        elif math.isfinite(scaled := number * self._times / self._per):
            # To the nearest: 1700000000.123 s is a little less than that as a double.
            ms = round(scaled)
        if ms is not None and _is_in_range(ms):
            return ms
        raise FieldError(
            f"the time, {name!r}, is {number!r} {self.precision}, not in the years 1 to 9999",
            field=name,
            value=number,
            hint="Name its unit with --time-precision: s, ms, us or ns.",
        )

    def times(self, cells: Sequence[str]) -> list[int]:
        """:meth:`time` of a column's cells."""
        if number_of(cells[0]) is not None:
            numbers = cell_values(cells)
            if set(map(type, numbers)) == {int}:
                return [self.time(number) for number in numbers]
        # Devices share their times, so each text is looked at once.
        found = {text: self.time(text) for text in set(cells)}
        return [found[text] for text in cells]

    def is_null(self, value: object) -> bool:
        """Whether the value is one of those that stand for a missing reading."""
        if isinstance(value, str):
            return value.strip(_SPACE) in self.options.null_texts
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value in self._null_numbers or (self._nan_is_null and math.isnan(value))

    def without_nulls(self, values: Iterable[FieldValue]) -> list[FieldValue]:
        """The values, with None for those that stand for a missing reading."""
        return [None if self.is_null(value) else value for value in values]

    def clean(self, fields: dict[str, FieldValue]) -> Mapping[str, FieldValue]:
        """The fields to send: some left out, None for missing readings."""
        for name in self.options.leave_out:
            fields.pop(name, None)
        if self.options.null_texts:
            return dict(zip(fields, self.without_nulls(fields.values()), strict=True))
        return fields

    def now(self) -> int:
        """The time of a reading that has none."""
        return now_ms()


# --- columns -------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Positions of a table's columns: the key, the time (None: there is none) and the fields."""

    key: int | None
    time: int | None
    fields: tuple[int, ...]


def plan_columns(names: Sequence[str], options: ReadOptions) -> Columns:
    """Find the key, the time and the fields among a table's columns.

    Raises:
        ConfigError: the key or the time is not there, a name is empty or there twice, a name to
            leave out is unknown, or there are too many fields.
    """
    having = f"the columns are {list(names)}"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"columns {twice} are there more than once; {having}",
            hint="Give every column a name of its own.",
        )
    key_field = options.key_field or KEY_FIELD
    unknown = sorted((options.leave_out | options.text_fields) - set(names))
    if unknown:
        raise ConfigError(f"there are no columns {unknown}; {having}", hint="Check the spelling.")
    if key_field not in names and options.key is None:
        raise ConfigError(f"there is no column {key_field!r} for the key; {having}", hint=_KEY_HINT)
    if options.time_field is not None and options.time_field not in names:
        raise ConfigError(
            f"there is no column {options.time_field!r} for the time; {having}",
            hint="Name the one that holds it with --time-field; --time-field '' takes the time of "
            "reading instead.",
        )
    kept = [name for name in names if name not in options.leave_out]
    if "" in kept:
        raise ConfigError(
            f"column {list(names).index('') + 1} has no name; {having}",
            hint="Give it one, or pass --leave-out ''.",
        )
    fields = [name for name in kept if name not in (key_field, options.time_field)]
    if len(fields) > FIELDS_PER_EVENT_MAX:
        raise ConfigError(
            f"there are {len(fields)} fields, more than {FIELDS_PER_EVENT_MAX}",
            hint="Leave some out with --leave-out, or split the table.",
        )
    at = {name: position for position, name in enumerate(names)}
    return Columns(
        at.get(key_field),
        at[options.time_field] if options.time_field is not None else None,
        tuple(at[name] for name in fields),
    )


# --- rejects -------------------------------------------------------------------------------------


class Rejects:
    """The bad lines of one input in a file of their own, to be mended and sent again.

    The bytes are those of the input, invalid ones included; a CSV file begins with the header. The
    bad rows of a Parquet file are written as NDJSON. The file is created with the first bad line.

    Args:
        path: The file to write; it must not be there yet, since it might be the only copy of lines
            that failed before.

    Raises:
        ConfigError: the file is there already.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise ConfigError(
                f"{path} is there already",
                hint="Choose another file for the rejects, or remove it.",
            )
        self._path = path
        self._file: BinaryIO | None = None
        self.written: int = 0
        """Errors whose text is in the file."""
        self.lost: int = 0
        """Errors of lines that were too long to be kept."""

    def add(self, chunk: Chunk) -> None:
        """Write the chunk's bad lines.

        Raises:
            ConfigError: the file cannot be written.
        """
        lines = [error.text for error in chunk.errors if error.text]
        self.lost += len(chunk.errors) - len(lines)
        if not lines:
            return
        self.written += len(lines)
        try:
            if self._file is None:
                self._file = self._path.open("xb")
                if chunk.header:
                    lines.insert(0, chunk.header)
            text = "".join(f"{line}\n" for line in lines)
            self._file.write(text.encode("utf-8", "surrogateescape"))
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be written: {error.strerror}",
                hint="Check the folder, its permissions and the free disk space.",
            ) from error

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
