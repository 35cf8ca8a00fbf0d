"""Replay into a file: Parquet, CSV or NDJSON.

A file gets its name when it is complete. A column of a Parquet or CSV file has one type from top to
bottom, and which one it is shows at the end alone: until then parts lie beside the file, each with
the columns that were known when it began.
"""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from standpipe.archive.fields import FieldSpec, as_type, spec_type
from standpipe.errors import ConfigError, ReplayFileError
from standpipe.formats import to_ndjson
from standpipe.limits import REPLAY_GROUP_ROWS
from standpipe.reader import Reader
from standpipe.reader.tables import ID_COLUMNS, concatenated, conform, merged, specs_of
from standpipe.replay.running import Progress, Replayed, Run, until_stopped

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS: Final = ("parquet", "ndjson", "csv")
_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
}


def guess_format(path: str | Path) -> str:
    """The format that a file name's suffix stands for.

    Raises:
        ConfigError: it stands for none.
    """
    found = _SUFFIXES.get(Path(path).suffix.lower())
    if found is None:
        raise ConfigError(
            f"the name {str(path)!r} does not say the file's format",
            hint=f"End it with .parquet, .ndjson or .csv, or name one: {', '.join(FORMATS)}.",
        )
    return found


async def to_file(
    reader: Reader,
    path: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    stop: asyncio.Event | None = None,
) -> Replayed:
    """Write what a reader reads into a new file.

    Parquet and CSV have the columns of :meth:`standpipe.Reader.tables`, ``time`` as a timestamp in
    UTC; NDJSON has a line per event as ``standpipe tail --json`` prints it. In a column of Parquet
    or CSV, ints and floats are floats if that is exact, and what mixes otherwise is text; NDJSON
    keeps each value's type.

    Args:
        reader: What is read.
        path: The file. Its folder has to be there.
        format: ``parquet``, ``csv`` or ``ndjson``; default: by the suffix.
        overwrite: Whether a file of that name is replaced.
        on_progress: Called after each part.
        stop: Set it to end early. A reader that follows has come to its end then, and the file is
            complete; otherwise none is made.

    Raises:
        ConfigError: the format is none, or the file is there and ``overwrite`` is not given.
        ReplayFileError: it cannot be written.

    Delivery: the file is there, complete and on disk, or not at all, whatever dies.

    Cost: bounded memory; disk twice the file's size where the columns' types change on the way, and
        for CSV.
    """
    target = Path(path)
    chosen = format or guess_format(target)
    if chosen not in FORMATS:
        raise ConfigError(f"format is {chosen!r}", hint=f"It is one of {', '.join(FORMATS)}.")
    if not overwrite and await asyncio.to_thread(target.exists):
        raise ConfigError(
            f"{target} is there already", hint="Choose another name, or pass --overwrite."
        )
    run = Run(reader, on_progress)
    with _working_folder(target) as folder:
        finished = folder / target.name
        if chosen == "ndjson":
            with finished.open("wb") as file:
                is_complete = await _write_lines(run, file, stop)
        else:
            is_complete = await _write_tables(run, folder, finished, chosen, stop)
        if is_complete or reader.is_following:
            await asyncio.to_thread(_put_in_place, finished, target)
            is_complete = True
    return run.end(is_complete=is_complete)


async def to_lines(
    reader: Reader,
    file: BinaryIO,
    *,
    on_progress: Progress | None = None,
    stop: asyncio.Event | None = None,
) -> Replayed:
    """Write what a reader reads to an open file or pipe, as NDJSON, as it comes.

    Raises:
        ReplayFileError: it cannot be written to. A pipe that is closed is BrokenPipeError.
    """
    run = Run(reader, on_progress)
    with _file_errors(getattr(file, "name", "the file")):
        is_complete = await _write_lines(run, file, stop)
    return run.end(is_complete=is_complete or reader.is_following)


async def _write_lines(run: Run, file: BinaryIO, stop: asyncio.Event | None) -> bool:
    async with aclosing(until_stopped(run.reader.batches(), stop)) as batches:
        async for batch in batches:
            shard = batch.shard
            lines = [
                to_ndjson(event, event_id, shard=shard)
                for event, event_id in zip(batch.events, batch.ids, strict=True)
            ]
            # In a thread: a pipe whose reader is slow must not hold up the event loop.
            await asyncio.to_thread(_write, file, b"".join(lines))
            run.add(len(batch))
    return stop is None or not stop.is_set()


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


# --- tables --------------------------------------------------------------------------------------


async def _write_tables(
    run: Run, folder: Path, finished: Path, format: str, stop: asyncio.Event | None
) -> bool:
    parts = _Parts(folder)
    try:
        async with aclosing(until_stopped(run.reader.tables(), stop)) as tables:
            async for table in tables:
                await asyncio.to_thread(parts.add, table)
                run.add(len(table))
        is_complete = stop is None or not stop.is_set()
        if is_complete or run.reader.is_following:
            await asyncio.to_thread(parts.finish, finished, format)
    finally:
        parts.close()
    return is_complete


class _Parts:
    """Tables on disk, in Parquet files with one set of columns each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._specs: dict[str, FieldSpec] = {}
        """Of the part that is being written."""
        self._done: list[tuple[Path, dict[str, FieldSpec]]] = []
        self._writer: Any = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= REPLAY_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = concatenated(self._waiting)
        self._waiting, self._rows = [], 0
        specs = merged([self._specs, specs_of(table)])
        if self._writer is not None and not _same_columns(specs, self._specs):
            self._end_part()
        if self._writer is None:
            self._writer = _parquet_writer(self._path(len(self._done)), _schema(specs))
        # Whether its ints are all small may change without a new part.
        self._specs = specs
        self._writer.write_table(_for_file(conform(table, specs)), row_group_size=len(table))

    def _end_part(self) -> None:
        self._writer.close()
        self._writer = None
        self._done.append((self._path(len(self._done)), self._specs))

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number}"

    def finish(self, finished: Path, format: str) -> None:
        """Make one file of them."""
        self._flush()
        if self._writer is None and not self._done:
            self._writer = _parquet_writer(self._path(0), _schema({}))
        if self._writer is not None:
            self._end_part()
        if format == "parquet" and len(self._done) == 1:
            self._done[0][0].rename(finished)
            return
        specs = merged(each for _, each in self._done)
        if format == "csv":
            _write_csv(finished, specs, self._tables(specs))
            return
        with _parquet_writer(finished, _schema(specs)) as writer:
            for table in self._tables(specs):
                writer.write_table(table, row_group_size=len(table))

    def _tables(self, specs: dict[str, FieldSpec]) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        for path, own in self._done:
            with cast("Any", pq).ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield _as_specs(file.read_row_group(group), own, specs)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _as_specs(table: pa.Table, own: dict[str, FieldSpec], specs: dict[str, FieldSpec]) -> pa.Table:
    """A part's table with the columns of the whole."""
    import pyarrow as pa

    columns = {name: table.column(name) for name in ID_COLUMNS}
    for name, wanted in specs.items():
        has = own.get(name)
        columns[name] = (
            pa.chunked_array([pa.nulls(len(table), spec_type(wanted))])
            if has is None or has.kind == "null"
            else as_type(table.column(name), has, wanted)
        )
    return pa.table(columns)


def _same_columns(a: dict[str, FieldSpec], b: dict[str, FieldSpec]) -> bool:
    return {n: spec_type(s) for n, s in a.items()} == {n: spec_type(s) for n, s in b.items()}


def _schema(specs: dict[str, FieldSpec]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("shard", pa.int32()),
            ("entry_ms", pa.uint64()),
            ("entry_seq", pa.uint64()),
            ("index", pa.int32()),
            ("key", pa.string()),
            ("time", pa.timestamp("ms", "UTC")),
            *((name, spec_type(spec)) for name, spec in specs.items()),
        ]
    )


def _for_file(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    at = table.column_names.index("time")
    return table.set_column(at, "time", table.column("time").cast(pa.timestamp("ms", "UTC")))


def _parquet_writer(path: Path, schema: pa.Schema) -> Any:
    import pyarrow.parquet as pq

    return cast("Any", pq).ParquetWriter(path, schema, compression="zstd")


def _write_csv(path: Path, specs: dict[str, FieldSpec], tables: Iterator[pa.Table]) -> None:
    import pyarrow as pa
    from pyarrow import csv

    writing: Any = csv
    # Bytes are text in CSV, as base64.
    fields = [
        pa.field(field.name, pa.string() if field.type == pa.binary() else field.type)
        for field in _schema(specs)
    ]
    with writing.CSVWriter(path, pa.schema(fields)) as writer:
        for table in tables:
            columns = {name: _csv_column(table.column(name)) for name in table.column_names}
            writer.write_table(pa.table(columns))


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import base64

    import pyarrow as pa

    if column.type != pa.binary():
        return column
    texts = [None if v is None else base64.b64encode(v).decode() for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


# --- the file ------------------------------------------------------------------------------------


@contextmanager
def _working_folder(target: Path) -> Generator[Path]:
    """A folder beside the file, on the same disk, that is gone afterwards."""
    with _file_errors(str(target)):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _file_errors(name: str) -> Generator[None]:
    import pyarrow as pa

    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ReplayFileError(f"{name} cannot be written: {error}") from error


def _put_in_place(finished: Path, target: Path) -> None:
    with finished.open("rb+") as file:
        os.fsync(file.fileno())
    finished.rename(target)
    number = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
