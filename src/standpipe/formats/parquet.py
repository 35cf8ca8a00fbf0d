"""Parquet: one reading per row, read in batches; flat columns only."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from standpipe.clock import format_time
from standpipe.errors import ConfigError, InputError
from standpipe.event import Event, FieldValue
from standpipe.formats.lines import compression_of, opened
from standpipe.formats.ndjson import row_text
from standpipe.formats.reading import (
    KEY_FIELD,
    MS_PER,
    Chunk,
    ReadOptions,
    Values,
    number_of,
    plan_columns,
    read_records,
)
from standpipe.limits import INPUT_CHUNK_ROWS

_DAY_MS: Final = 86_400_000
_READ_BYTES: Final = 1024 * 1024
"""Bytes of a column that are read ahead, so that a large row group is not read whole."""

Row = tuple[object, object, dict[str, Any]]
"""Key and time as they stand in the file, and the fields."""


def read_parquet(source: BinaryIO | Path, options: ReadOptions) -> Generator[Chunk]:
    """Read a Parquet file to its end, batch by batch.

    Args:
        source: A path, or an open stream that can seek; it is left open.
        options: How to read it.

    Raises:
        ConfigError: it is no Parquet file, cannot be opened or cannot seek, or its columns do not
            fit the options.
        InputError: a part of it is damaged; the chunks before it are good.
    """
    if isinstance(source, Path):
        if compression_of(source):
            raise ConfigError(
                f"{source} is compressed as a whole; a Parquet file has to be read from its end",
                hint="Unpack it first; Parquet compresses its columns by itself.",
            )
        with opened(source) as file:
            yield from _read(file, options, name=str(source))
    else:
        yield from _read(source, options, name="the input")


@contextmanager
def _arrow_errors(kind: type[InputError], message: str, hint: str) -> Generator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise kind(f"{message}: {error}", hint=hint) from error


def _read(file: BinaryIO, options: ReadOptions, *, name: str) -> Generator[Chunk]:
    import pyarrow.parquet as pq

    if not file.seekable():
        raise ConfigError(
            f"{name} cannot seek, and Parquet has to be read from its end",
            hint="Save it to a file and give that file's name.",
        )
    size = file.seek(0, 2)
    file.seek(0)
    with _arrow_errors(ConfigError, f"{name} is no Parquet file", "Name its format with --format."):
        table: Any = cast("Any", pq).ParquetFile(file, buffer_size=_READ_BYTES)
    rows_total: int = table.metadata.num_rows
    reader = _TableReader(table.schema_arrow, options)
    batches = table.iter_batches(batch_size=INPUT_CHUNK_ROWS, columns=reader.names)
    done = 0
    while True:
        with _arrow_errors(
            InputError,
            f"{name} cannot be read on after row {done}",
            "The rows before are good. Write the file again where it came from.",
        ):
            batch = next(batches, None)
            if batch is None:
                break
            columns = reader.columns(batch)
        chunk = reader.chunk(columns, first=done + 1, rows=batch.num_rows)
        done += batch.num_rows
        chunk.lines, chunk.bytes = done, size * done // rows_total
        yield chunk
    if not rows_total:
        yield Chunk(bytes=size)


class _TableReader:
    """Turns batches of one schema into events.

    Raises:
        ConfigError: the schema does not fit the options.
    """

    def __init__(self, schema: Any, options: ReadOptions) -> None:
        names: list[str] = schema.names
        self._values = Values(options)
        self._at = plan_columns(names, options)
        self._names = [names[position] for position in self._at.fields]
        converters = [_converter(field.type) for field in schema]
        used = [at for at in (self._at.key, self._at.time, *self._at.fields) if at is not None]
        refused = [
            f"{names[at]} ({schema.field(at).type})" for at in used if converters[at] is None
        ]
        if refused:
            raise ConfigError(
                f"columns that no event can hold: {', '.join(refused)}",
                hint="Send one column per number, or pass --leave-out for each.",
            )
        if self._at.key is not None and not _can_be_key(schema.field(self._at.key).type):
            raise ConfigError(
                f"the key, {names[self._at.key]!r}, is {schema.field(self._at.key).type}",
                hint="The key is the device's id: a column of text or whole numbers.",
            )
        self._converters = {at: convert for at in used if (convert := converters[at]) is not None}
        self.names: Final = [names[at] for at in used]
        at = self._at.time
        self._time_is_ms = at is not None and _is_moment(schema.field(at).type)

    def columns(self, batch: Any) -> dict[int, list[Any]]:
        """The columns in use as lists of Python values, by their position in the file."""
        return {
            at: convert(batch.column(name))
            for (at, convert), name in zip(self._converters.items(), self.names, strict=True)
        }

    def chunk(self, columns: dict[int, list[Any]], *, first: int, rows: int) -> Chunk:
        """The events of a batch, and an error for every row that is none."""
        nothing: list[Any] = [None] * rows
        keys = nothing if self._at.key is None else columns[self._at.key]
        times = nothing if self._at.time is None else columns[self._at.time]
        values = [columns[at] for at in self._at.fields]
        fields: list[dict[str, FieldValue]] = (
            list(map(dict, map(zip, repeat(self._names), zip(*values, strict=True))))
            if values
            else [{} for _ in range(rows)]
        )
        table = list(enumerate(zip(keys, times, fields, strict=True), first))
        return read_records(table, self._events, self._text, what="row")

    def _events(self, rows: Sequence[Row]) -> list[Event]:
        return list(map(self._event, rows))

    def _event(self, row: Row) -> Event:
        key, time, fields = row
        values = self._values
        key = values.missing_key(self._names) if self._at.key is None else values.key(key)
        if self._at.time is None:
            ms = values.now()
        elif self._time_is_ms and isinstance(time, int):
            ms = time
        else:
            ms = values.time(time)
        # The row itself stays as it is: it may have to be written to the rejects.
        return Event(key, ms, values.clean(fields) if values.options.null_texts else fields)

    def _text(self, row: Row) -> str:
        key, time, fields = row
        options = self._values.options
        if self._time_is_ms and isinstance(time, int):
            # As text, so that it means the same whatever --time-precision says.
            time = _moment_text(time)
        return row_text(options.key_field or KEY_FIELD, key, options.time_field, time, fields)


def _moment_text(ms: int) -> object:
    try:
        return format_time(ms)
    except (ValueError, OverflowError, OSError):
        return ms  # outside the years 1 to 9999, which is why the row is bad


Converter = Callable[[Any], list[Any]]


def _is_moment(kind: Any) -> bool:
    import pyarrow.types as types

    check: Any = types
    return check.is_timestamp(kind) or check.is_date(kind)


def _can_be_key(kind: Any) -> bool:
    import pyarrow.types as types

    check: Any = types
    if check.is_dictionary(kind):
        kind = kind.value_type
    kinds = (check.is_string, check.is_large_string, check.is_string_view, check.is_integer)
    return any(is_kind(kind) for is_kind in kinds)


def _converter(kind: Any) -> Converter | None:
    """How to turn a column of an Arrow type into field values; None when no event can hold it."""
    import pyarrow.types as types

    check: Any = types
    if check.is_timestamp(kind):
        return partial(_moments, unit=MS_PER[kind.unit])
    if check.is_date32(kind):
        return partial(_moments, unit=(_DAY_MS, 1), width=32)
    if check.is_date64(kind):
        return partial(_moments, unit=(1, 1))
    if check.is_decimal(kind):
        return _decimals
    if check.is_dictionary(kind):
        convert = _converter(kind.value_type)
        return None if convert is None else lambda column: convert(column.dictionary_decode())
    if check.is_float16(kind):
        return lambda column: column.cast("float32").to_pylist()
    as_they_are = (
        check.is_integer,
        check.is_floating,
        check.is_boolean,
        check.is_string,
        check.is_large_string,
        check.is_string_view,
        check.is_binary,
        check.is_large_binary,
        check.is_binary_view,
        check.is_fixed_size_binary,
        check.is_null,
    )
    return _as_they_are if any(is_kind(kind) for is_kind in as_they_are) else None


def _as_they_are(column: Any) -> list[Any]:
    return column.to_pylist()


def _moments(column: Any, *, unit: tuple[int, int], width: int = 64) -> list[Any]:
    """Timestamps as milliseconds since the epoch, rounded down as everywhere."""
    times, per = unit
    whole = column.view(f"int{width}").to_pylist()
    if times == per:
        return whole
    return [None if value is None else value * times // per for value in whole]


def _decimals(column: Any) -> list[Any]:
    """Decimals as numbers where a double holds their value, else as text."""
    texts = (None if value is None else str(value) for value in column.to_pylist())
    return [text if text is None or (n := number_of(text)) is None else n for text in texts]
