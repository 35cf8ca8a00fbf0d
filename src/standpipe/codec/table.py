"""What a table of events is: the columns ``key``, ``time`` (int64, ms) and one per field."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from standpipe.codec.values import ENCODING_FAILED, TO_TEXT, name_culprit, refuse_taken_name
from standpipe.errors import CodecError, DecodeError, EventError, FieldError, InputError
from standpipe.event import Event, FieldValue
from standpipe.limits import FIELDS_PER_EVENT_MAX, KEY_BYTES_MAX, TIME_MS_MAX, TIME_MS_MIN

if TYPE_CHECKING:
    import pyarrow as pa

# --- from events ---------------------------------------------------------------------------------


def events_to_table(
    events: Sequence[Event], *, mixed: Literal["refuse", "text"] = "refuse"
) -> pa.Table:
    """Events as a table: ``key``, ``time`` (int64, ms), then every field that any of them has.

    A field that an event does not have is null. A field that is an int here and a float there
    becomes float if each of its ints is one exactly (within ±2**53).

    Args:
        events: Checked by check_events.
        mixed: What to do with a field whose values agree in no type otherwise: ``refuse`` it, or
            make it ``text``, each value as a plain entry would hold it (bytes, where one of them
            is).

    Raises:
        CodecError: a field mixes types and ``mixed`` is ``refuse``.
        FieldError: a field is named ``key`` or ``time``, or a value cannot be encoded.
    """
    import pyarrow as pa

    try:
        rows = [event.fields for event in events]
        names = dict.fromkeys(chain.from_iterable(rows))
        if "key" in names or "time" in names:
            refuse_taken_name(names, "key", "time")
        columns = [
            pa.array([event.key for event in events], pa.string()),
            pa.array([event.time for event in events], pa.int64()),
            *(_column(name, [row.get(name) for row in rows], mixed) for name in names),
        ]
        return pa.table(columns, names=["key", "time", *names])
    except ENCODING_FAILED as error:
        name_culprit(events, error)


def _column(name: str, values: list[FieldValue], mixed: Literal["refuse", "text"]) -> pa.Array:
    import pyarrow as pa

    types = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    kinds: set[type] = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.array(values, pa.null())
    if len(kinds) == 1:
        # Every type is given: pyarrow's own guess takes a bool among floats for 1.0.
        return pa.array(values, types.get(kinds.pop(), pa.binary()))
    if kinds == {int, float}:
        try:
            return pa.array(values, pa.float64())
        except pa.ArrowInvalid:
            pass  # An int beyond 2**53 would lose digits; what follows decides.
    if mixed == "refuse":
        found = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise CodecError(
            f"field {name!r} holds {found}; a column holds one type",
            hint="Send with codec='rows', where each value keeps its type, or make them alike.",
        )
    texts = [None if value is None else TO_TEXT[type(value)](value) for value in values]
    return pa.array(texts, pa.binary() if bytes in kinds else pa.string())


def readers_table(events: Sequence[Event]) -> pa.Table:
    """Decoded events as a table, whatever their fields hold.

    Raises:
        DecodeError: a field is named ``key`` or ``time``, or another writer's value fits in no
            column.
    """
    try:
        return events_to_table(events, mixed="text")
    except InputError as error:
        raise DecodeError(f"the entry is no table: {error.message}", hint=error.hint) from error


# --- from tables of others -----------------------------------------------------------------------


def check_table(table_like: object) -> pa.Table:
    """A table that can be sent: ``key``, ``time`` (int64, ms), then the fields.

    Text and bytes of any Arrow type become utf8 and binary, timestamps milliseconds (rounded down),
    and metadata is dropped, so that the tables of one stream can be put together and any language
    reads them. The other columns are not copied.

    Args:
        table_like: A pyarrow Table or RecordBatch; a pandas DataFrame (NaN is a missing reading, a
            named index becomes columns); or anything else with ``__arrow_c_stream__``, such as a
            polars DataFrame or a DuckDB relation.

    Raises:
        FieldError: a column's name, type or values cannot be sent; it names the first such column.
        EventError: it is no table.
    """
    import pyarrow as pa

    try:
        table = settled_table(_as_table(table_like))
        table.validate(full=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise EventError(
            f"the {type(table_like).__name__} cannot be read as a table: {error}",
            hint="Every column holds one type: numbers, text, bools or bytes.",
        ) from error
    _check_key(table.column("key"))
    for name in table.column_names[2:]:
        _check_values(name, table.column(name))
    return table


def _as_table(table_like: Any) -> pa.Table:
    import pyarrow as pa

    if isinstance(table_like, pa.Table):
        return table_like
    if isinstance(table_like, pa.RecordBatch):
        return pa.Table.from_batches([table_like])
    package = type(table_like).__module__.partition(".")[0]
    if package == "pandas" and hasattr(table_like, "columns"):
        # pandas' own Arrow stream would bring the row numbers along and keep NaN.
        if all(name is not None for name in table_like.index.names):
            table_like = table_like.reset_index()
        return pa.Table.from_pandas(table_like, preserve_index=False)
    if hasattr(table_like, "__arrow_c_stream__"):
        return pa.table(table_like)
    raise EventError(
        f"a {type(table_like).__name__} is no table",
        hint="Give a pyarrow Table, a pandas or polars DataFrame, or anything else that speaks the "
        "Arrow stream protocol (__arrow_c_stream__).",
    )


def settled_table(table: pa.Table) -> pa.Table:
    """The table with its columns in order and of the types that a table of events has.

    Raises:
        FieldError: a column's name or type is not allowed, or a value does not fit the type.
    """
    import pyarrow as pa

    names = table.column_names
    if "" in names or len(set(names)) < len(names):
        raise FieldError(
            f"a column's name is empty or stands there twice: {names[:20]!r}",
            field="",
            hint="Give every column a name of its own.",
        )
    for name in ("key", "time"):
        if name not in names:
            raise FieldError(
                f"the table has no column {name!r}; it has {', '.join(map(repr, names[:20]))}",
                field=name,
                hint="Name the column with the device id key, and the one with the time (a "
                "timestamp, or milliseconds) time.",
            )
    fields = [name for name in names if name not in ("key", "time")]
    if len(fields) > FIELDS_PER_EVENT_MAX:
        raise FieldError(
            f"the table has {len(fields)} field columns, more than {FIELDS_PER_EVENT_MAX}",
            field=fields[FIELDS_PER_EVENT_MAX],
            hint="Split the readings over several tables.",
        )
    columns = [
        _settled_key(table.column("key")),
        _settled_time(table.column("time")),
        *(_settled_field(name, table.column(name)) for name in fields),
    ]
    return pa.table(columns, names=["key", "time", *fields])


def _settled_key(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.string())
    settled = _settled_field("key", column)
    if settled.type != pa.string():
        raise FieldError(
            f"the column 'key' is {column.type}, not text",
            field="key",
            hint="The key is the device's id, as text.",
        )
    return settled


def _settled_time(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.unit in ("us", "ns"):
            # A cast alone would round towards 1970 instead of down.
            column = pc.floor_temporal(column, unit="millisecond")
        column = _cast("time", column, pa.timestamp("ms", kind.tz))
    elif not pa.types.is_integer(kind):
        raise FieldError(
            f"the column 'time' is {kind}, not a time",
            field="time",
            hint="Give int64 milliseconds since the epoch, or a timestamp.",
        )
    column = _cast("time", column, pa.int64())
    if column.null_count:
        raise FieldError(
            f"the column 'time' has {column.null_count} nulls",
            field="time",
            hint="Every reading has a time; leave out or fill the rows without one.",
        )
    extremes = pc.min_max(column).as_py()
    if len(column) and not TIME_MS_MIN <= extremes["min"] <= extremes["max"] <= TIME_MS_MAX:
        raise FieldError(
            f"the column 'time' reaches from {extremes['min']} to {extremes['max']}, outside the "
            "years 1 to 9999",
            field="time",
            hint="Times are milliseconds; microseconds or nanoseconds have to be divided first.",
        )
    return column


def _settled_field(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        kind = _settled_type(column.type.value_type)
        # Unfolding knows fewer types of values than changing them does.
        column = _cast(name, column, pa.dictionary(column.type.index_type, kind))
    else:
        kind = _settled_type(column.type)
    if not (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or kind in (pa.string(), pa.binary())
    ):
        raise FieldError(
            f"the column {name!r} is {kind}, which no field can hold",
            field=name,
            hint="A column is float, int, bool, text or bytes: give a nested one as several "
            "columns, a decimal as float64, a timestamp as int64 milliseconds.",
        )
    return _cast(name, column, kind)


def _settled_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    types = pa.types
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if (
        types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return pa.binary()
    if types.is_uint64(kind):
        return pa.int64()
    return pa.float32() if types.is_float16(kind) else kind


def _cast(name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise FieldError(
            f"the column {name!r} does not fit in {kind}: {error}",
            field=name,
            hint="Integers are 64 bits signed; send larger ones as float or text. Text and bytes "
            "beyond 2 GiB need several tables.",
        ) from error


def _check_key(column: pa.ChunkedArray) -> None:
    import pyarrow.compute as pc

    lengths = pc.min_max(pc.binary_length(column)).as_py()
    shortest, longest = lengths["min"], lengths["max"]
    if longest is not None and not 1 <= shortest <= longest <= KEY_BYTES_MAX:
        raise FieldError(
            f"the keys have {shortest} to {longest} bytes",
            field="key",
            hint=f"A key has 1 to {KEY_BYTES_MAX} bytes; null stands for none.",
        )


def _check_values(name: str, column: pa.ChunkedArray) -> None:
    """Refuse the values that check_events refuses, by passes over the whole column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        # A sum is finite only if all its parts are; one that overflows only costs the closer look.
        if math.isfinite(pc.sum(column).as_py() or 0):
            return
        allowed = pc.is_finite(column)
    elif column.type == pa.string():
        pattern = r"^\s*[+-]?(nan|inf|infinity)\s*$"
        allowed = pc.invert(pc.match_substring_regex(column, pattern, ignore_case=True))
    else:
        return
    row = allowed.index(False).as_py()
    if row >= 0:
        value = column[row].as_py()
        raise FieldError(
            f"the column {name!r} holds {value!r} in row {row}, which is no finite number",
            field=name,
            value=value,
            hint="Fill it, or make it null: a missing reading (polars: fill_nan(None)).",
        )
