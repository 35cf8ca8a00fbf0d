"""From events to the rows of a table: which columns, of which kind, and what does not fit. Pure.

A wide table: the columns of ``ID_COLUMNS``, then one for each field. A column comes when its first
value does; a field that is None, or that an event does not have, is NULL.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, repeat
from math import isnan
from typing import Any, Final, NamedTuple

from standpipe.errors import SinkRefusedError, SinkUnusableError
from standpipe.event import Batch, Event
from standpipe.limits import INTEGER_MAX, INTEGER_MIN, SINK_COLUMNS_MAX, TIME_MS_MAX, TIME_MS_MIN


class Kind(enum.Enum):
    """What a column holds."""

    INT = "whole numbers"
    FLOAT = "numbers"
    TEXT = "text"
    BOOL = "true or false"
    BYTES = "bytes"
    OTHER = "what its type takes"
    """A column that the user made; the database says what fits."""


ID_COLUMNS: Final = {
    "time": Kind.OTHER,
    "key": Kind.TEXT,
    "stream": Kind.TEXT,
    "shard": Kind.INT,
    "entry_ms": Kind.INT,
    "entry_seq": Kind.INT,
    "entry_index": Kind.INT,
}
"""What every row has beside its fields."""

IDENTITY: Final = ("stream", "shard", "entry_ms", "entry_seq", "entry_index")
"""Which event a row is."""

PRIMARY_KEY: Final = ("time", *IDENTITY)
"""The time adds nothing to the identity. It leads so that the key's index finds a span of time, and
it is in the key because TimescaleDB partitions by it and takes no unique index without it."""

_FIELD_PREFIX: Final = "field_"
_KINDS: Final = {
    int: Kind.INT,
    float: Kind.FLOAT,
    str: Kind.TEXT,
    bool: Kind.BOOL,
    bytes: Kind.BYTES,
}
_NUMBERS: Final = frozenset({Kind.INT, Kind.FLOAT})


class Rules(NamedTuple):
    """What a kind of database cannot hold."""

    name_bytes_max: int | None
    """Bytes of a column's name; a longer one would be cut, or refused."""
    is_case_blind: bool
    """Whether columns ``Volts`` and ``volts`` are the same."""
    takes_nul: bool
    """Whether text may hold the character U+0000."""
    takes_nan: bool
    """Whether a float may be no number; event rules forbid it, other writers do not ask them."""


class Rows(NamedTuple):
    """A batch as columns, and what the table needs before it takes them."""

    names: list[str]
    """The columns' names: those of ``ID_COLUMNS``, then the fields'."""
    kinds: list[Kind]
    """Parallel to ``names``; of the table after ``new`` and ``widened``."""
    columns: list[Sequence[Any]]
    """Parallel to ``names``; ``time`` in ms. All of the same length."""
    new: dict[str, Kind]
    """Columns that the table does not have yet."""
    widened: list[str]
    """Columns of whole numbers that have to take numbers."""


def column_name(field: str) -> str:
    """The column of a field: its own name, but for those that ``ID_COLUMNS`` has taken.

    ``time`` stands in ``field_time``, and so that this is never taken itself, ``field_time`` in
    ``field_field_time``.
    """
    bare = field.lower()
    while bare.startswith(_FIELD_PREFIX):
        bare = bare.removeprefix(_FIELD_PREFIX)
    return _FIELD_PREFIX + field if bare in ID_COLUMNS else field


def rows_of(batch: Batch, stream: str, known: Mapping[str, Kind], rules: Rules) -> Rows:
    """Lay out a batch for a table.

    Args:
        batch: The events.
        stream: What the column ``stream`` says.
        known: The table's columns.
        rules: What it cannot hold.

    Raises:
        SinkRefusedError: something does not fit; it names the column. Not retryable: the worker
            tries ever smaller parts, so that the event it is about stands alone in the end.
        DecodeError: as :attr:`Batch.events`.

    Cost: 0.15 µs per field and event, in loops that run in C.
    """
    events = batch.events
    names, kinds = list(ID_COLUMNS), list(ID_COLUMNS.values())
    columns = _id_columns(batch, events, stream, rules)
    new: dict[str, Kind] = {}
    widened: list[str] = []
    fields = [event.fields for event in events]
    # A dict keeps the order of the first event's fields, which a set would not.
    for field in dict.fromkeys(chain.from_iterable(fields)):
        values = [each.get(field) for each in fields]
        kind = _kind_of(field, values)
        if kind is None:
            continue
        name = column_name(field)
        have = known.get(name)
        if have is None:
            _check_name(field, name, [*known, *new], rules)
            new[name] = have = kind
        elif have is Kind.INT and kind is Kind.FLOAT:
            widened.append(name)
            have = kind
        elif have is not kind and have is not Kind.OTHER and not {have, kind} <= _NUMBERS:
            raise SinkRefusedError(
                f"field {field!r} is {kind.value}, and its column holds {have.value}"
            )
        if not _surely_fit(values, have, rules):
            _check_values(field, values, have, rules)
        names.append(name)
        kinds.append(have)
        columns.append(values)
    if len(known) + len(new) > SINK_COLUMNS_MAX:
        raise SinkRefusedError(
            f"the table has {len(known)} columns, and {', '.join(list(new)[:5])} would make them "
            f"more than {SINK_COLUMNS_MAX}",
            hint="A name that carries a value (volts_meter_7) belongs into the event's key.",
        )
    return Rows(names, kinds, columns, new, widened)


def identity_of(keys: Collection[Collection[str]], table: str) -> tuple[str, ...]:
    """The columns by which a table tells events apart.

    Args:
        keys: The columns of each of its unique indexes.
        table: What to call it.

    Raises:
        SinkUnusableError: no index does, so nothing would keep an event from being there twice.
    """
    for identity in (PRIMARY_KEY, IDENTITY):
        if any(set[str](identity) == set(key) for key in keys):
            return identity
    raise SinkUnusableError(
        f"{table} has no unique index on {', '.join(IDENTITY)}, with or without time"
    )


def another_event(names: Sequence[str], row: Sequence[Any]) -> str:
    """What is wrong with an event whose ID is taken by one with other values."""
    found = dict(zip(names, row, strict=True))
    event_id = f"{found['entry_ms']}-{found['entry_seq']}/{found['entry_index']}"
    return (
        f"another event of stream {found['stream']!r}, shard {found['shard']}, is there with the "
        f"ID {event_id}: give streams of the same name on different servers a source of their own"
    )


def _id_columns(
    batch: Batch, events: list[Event], stream: str, rules: Rules
) -> list[Sequence[Any]]:
    times = [event.time for event in events]
    if times and not TIME_MS_MIN <= min(times) <= max(times) <= TIME_MS_MAX:
        raise SinkRefusedError(
            f"a time, {min(times)} or {max(times)}, is outside the years 1 to 9999",
            hint="Times are milliseconds since the epoch.",
        )
    keys = [event.key for event in events]
    if not rules.takes_nul and any("\0" in key for key in keys if key):
        raise SinkRefusedError("a key holds the character U+0000, which the database cannot")
    ms: list[int] = []
    seq: list[int] = []
    index: list[int] = []
    for entry in batch.entries:
        first, count = entry.id, entry.count
        if max(first.ms, first.seq) > INTEGER_MAX:
            raise SinkRefusedError(
                f"entry ID {first.entry} does not fit in 64 bits with a sign",
                hint="Leave the IDs to the server: XADD <stream> * …",
            )
        ms += repeat(first.ms, count)
        seq += repeat(first.seq, count)
        index += range(first.index, first.index + count)
    count = len(events)
    return [times, keys, [stream] * count, [batch.shard] * count, ms, seq, index]


def _kind_of(field: str, values: Sequence[Any]) -> Kind | None:
    """The kind of a field in a batch; None when no event has a value."""
    types = set(map(type, values))
    types.discard(type(None))
    if not types:
        return None
    if other := types - set(_KINDS):
        found = ", ".join(sorted(kind.__name__ for kind in other))
        raise SinkRefusedError(f"field {field!r} is a {found}, which no column holds")
    kinds = {_KINDS[kind] for kind in types}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds <= _NUMBERS:
        return Kind.FLOAT
    found = " and ".join(sorted(kind.value for kind in kinds))
    raise SinkRefusedError(f"field {field!r} is both {found}, and has no column yet")


def _check_name(field: str, name: str, taken: Sequence[str], rules: Rules) -> None:
    if "\0" in name:
        raise SinkRefusedError(f"field {field!r} has the character U+0000 in its name")
    size = len(name.encode())
    if rules.name_bytes_max is not None and size > rules.name_bytes_max:
        raise SinkRefusedError(
            f"field {field!r} has a name of {size} bytes, more than the {rules.name_bytes_max} of "
            "a column",
        )
    if rules.is_case_blind:
        alike = [other for other in taken if _folded(other) == _folded(name)]
        if alike:
            raise SinkRefusedError(
                f"field {field!r} differs from column {alike[0]!r} in upper and lower case alone, "
                "which this database does not tell apart"
            )


def _folded(name: str) -> str:
    # SQLite folds A to Z and nothing else.
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


def _surely_fit(values: Sequence[Any], kind: Kind, rules: Rules) -> bool:
    """A quick look in C; where it is not sure, each value gets a closer one."""
    there = [value for value in values if value is not None]
    if kind is Kind.INT:
        return INTEGER_MIN <= min(there) <= max(there) <= INTEGER_MAX
    if kind is Kind.FLOAT:
        # A sum of numbers is no number if one of them is none.
        return set(map(type, there)) == {float} and (rules.takes_nan or not isnan(sum(there)))
    if kind is Kind.TEXT:
        return rules.takes_nul or "\0" not in "".join(there)
    return kind is not Kind.OTHER


def _check_values(field: str, values: Sequence[Any], kind: Kind, rules: Rules) -> None:
    for wrong, what in _CHECKS[kind]:
        if what == "U+0000" and rules.takes_nul:
            continue
        if what == "NaN" and rules.takes_nan:
            continue
        found = next((value for value in values if value is not None and wrong(value)), None)
        if found is not None:
            raise SinkRefusedError(f"field {field!r} is {found!r}: {_WHY[what]}")


def _is_rounded(value: float | int) -> bool:
    return type(value) is int and (
        not -_EXACT_MAX <= value <= _EXACT_MAX and int(float(value)) != value
    )


_EXACT_MAX: Final = 2**53
_WHY: Final = {
    "64 bits": "it does not fit in 64 bits",
    "rounded": "the column holds floating point numbers, which would round it",
    "NaN": "the database has nothing that is not a number",
    "U+0000": "the database holds no character U+0000",
}
_CHECKS: Final[dict[Kind, list[tuple[Callable[[Any], bool], str]]]] = {
    Kind.INT: [(lambda value: not INTEGER_MIN <= value <= INTEGER_MAX, "64 bits")],
    Kind.FLOAT: [(_is_rounded, "rounded"), (lambda value: value != value, "NaN")],
    Kind.TEXT: [(lambda value: "\0" in value, "U+0000")],
    Kind.BOOL: [],
    Kind.BYTES: [],
    Kind.OTHER: [(lambda value: isinstance(value, str) and "\0" in value, "U+0000")],
}
