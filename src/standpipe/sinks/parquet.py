"""The sink that writes Parquet files to a folder.

    FOLDER/_standpipe.sqlite                       which entries are in which file
    FOLDER/<stream>.<shard>.<first>_<last>.<number>.parquet    one batch
    FOLDER/.<its name>.tmp                         one that is not committed yet, or only just

A batch is written to its temporary file; the commit of the index, which names the file and what is
in it, makes it count; then the file gets its name. If the process dies before the commit, the
temporary file is rubbish and is removed by the next who opens the folder. If it dies after, the
next write, of whichever process, gives the file its name: the events were not acknowledged, so
they are delivered again, and there is such a write. So a reader meets an event in one file at most.

The index is locked from the look at what is there to the commit, so several processes may write to
one folder, one after the other.
"""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

from standpipe.event import Batch, Entry
from standpipe.limits import SINK_FILE_STEM_BYTES_MAX
from standpipe.sinks.rows import ID_COLUMNS, Kind, Rows, Rules, rows_of
from standpipe.sinks.sink import Sink
from standpipe.sinks.sqlitefile import open_file, sqlite_errors, write_transaction

log: Final = logging.getLogger("standpipe.sinks")

INDEX: Final = "_standpipe.sqlite"
"""Readers of Parquet folders pass over names that begin with an underscore or a dot."""

_RULES: Final = Rules(name_bytes_max=None, is_case_blind=False, takes_nul=True, takes_nan=True)
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS field (name TEXT PRIMARY KEY, kind TEXT NOT NULL) WITHOUT ROWID",
    # is_placed: it has been seen to have its name.
    """CREATE TABLE IF NOT EXISTS file (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, is_placed INTEGER NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS unplaced ON file (number) WHERE NOT is_placed",
    # Which events of an entry are in a file: the whole of it, mostly.
    """CREATE TABLE IF NOT EXISTS span (
        stream TEXT, shard INTEGER, ms INTEGER, seq INTEGER, first INTEGER,
        count INTEGER NOT NULL, file INTEGER NOT NULL,
        PRIMARY KEY (stream, shard, ms, seq, first)
    ) WITHOUT ROWID""",
)


class ParquetSink(Sink):
    """Keeps events in Parquet files of a folder, one for each batch that was delivered.

    Args:
        folder: Created where it does not exist. On a local disk: the index needs file locks.
        source: As for every :class:`Sink`.
    """

    def __init__(self, folder: Path, *, source: str | None = None) -> None:
        super().__init__(source=source)
        self._folder = folder
        self._index: sqlite3.Connection | None = None

    def __str__(self) -> str:
        return f"folder {self._folder}"

    @property
    def _is_open(self) -> bool:
        return self._index is not None

    def _open(self) -> None:
        if self._is_open:
            return
        with sqlite_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            index = open_file(self._folder / INDEX)
            try:
                with write_transaction(index):
                    for line in _SCHEMA:
                        index.execute(line)
                    self._place_all(index)
                    # Only who has the lock writes one: those left were never committed.
                    for path in self._folder.glob(".*.parquet.tmp"):
                        path.unlink()
            except BaseException:
                index.close()
                raise
        self._index = index

    def _store(self, batch: Batch, stream: str) -> None:
        index = self._index
        assert index is not None
        with sqlite_errors(self._folder):
            with write_transaction(index):
                self._place_all(index)
                left = _not_there(index, batch, stream)
                if not len(left):
                    return
                fields = index.execute("SELECT name, kind FROM field").fetchall()
                known = ID_COLUMNS | {name: Kind[kind] for name, kind in fields}
                rows = rows_of(left, stream, known, _RULES)
                for name in [*rows.new, *rows.widened]:
                    kind = rows.kinds[rows.names.index(name)]
                    index.execute("REPLACE INTO field VALUES (?, ?)", (name, kind.name))
                name = _enter(index, left, stream)
                self._write(name, rows)
            self._place(name)
            _sync_folder(self._folder)

    def _write(self, name: str, rows: Rows) -> None:
        """Write a file under its temporary name, and onto the disk."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types: dict[Kind, Any] = {
            Kind.INT: pa.int64(),
            Kind.FLOAT: pa.float64(),
            Kind.TEXT: pa.string(),
            Kind.BOOL: pa.bool_(),
            Kind.BYTES: pa.binary(),
            Kind.OTHER: pa.timestamp("ms", tz="UTC"),
        }
        arrays = [
            pa.array(values, type=types[kind])
            for values, kind in zip(rows.columns, rows.kinds, strict=True)
        ]
        table = pa.Table.from_arrays(arrays, names=rows.names)
        with self._temporary(name).open("wb") as file:
            cast("Any", pq).write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._folder)

    def _temporary(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def _place_all(self, index: sqlite3.Connection) -> None:
        """Give the files that were committed the names that their writers may not have given."""
        waiting = index.execute("SELECT number, name FROM file WHERE NOT is_placed").fetchall()
        for number, name in waiting:
            self._place(name)
            index.execute("UPDATE file SET is_placed = 1 WHERE number = ?", (number,))
        if waiting:
            _sync_folder(self._folder)

    def _place(self, name: str) -> None:
        try:
            self._temporary(name).rename(self._folder / name)
        except FileNotFoundError:
            # It has its name already: from its writer, or from a process that came in between.
            if not (self._folder / name).exists():
                log.warning("%s is not in %s any more", name, self._folder)

    def _disconnect(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None


def _not_there(index: sqlite3.Connection, batch: Batch, stream: str) -> Batch:
    """The events of a batch that are in no file."""
    left: list[Entry] = []
    start = 0
    for entry in batch.entries:
        spans = index.execute(
            "SELECT first, count FROM span WHERE stream = ? AND shard = ? AND ms = ? AND seq = ?",
            (stream, batch.shard, entry.id.ms, entry.id.seq),
        ).fetchall()
        if not spans:
            left.append(entry)
        else:
            # A batch that was tried in parts may have left some of an entry there.
            there = {at for first, count in spans for at in range(first, first + count)}
            events = range(entry.id.index, entry.id.index + entry.count)
            for is_there, run in groupby(events, there.__contains__):
                if not is_there:
                    indexes = list(run)
                    at = start + indexes[0] - entry.id.index
                    left += batch.part(at, at + len(indexes))[0].entries
        start += entry.count
    return Batch(left, stream=batch.stream, shard=batch.shard)


def _enter(index: sqlite3.Connection, batch: Batch, stream: str) -> str:
    """Enter a file and what is in it into the index; returns the file's name."""
    first, last = batch.entries[0].id, batch.entries[-1].id
    number = index.execute("INSERT INTO file (name, is_placed) VALUES ('', 0)").lastrowid
    stem = quote(stream, safe="")
    if len(stem) > SINK_FILE_STEM_BYTES_MAX:
        digest = hashlib.sha256(stream.encode()).hexdigest()[:16]
        stem = f"{stem[:SINK_FILE_STEM_BYTES_MAX]}-{digest}"
    name = f"{stem}.{batch.shard}.{first.entry}_{last.entry}.{number}.parquet"
    index.execute("UPDATE file SET name = ? WHERE number = ?", (name, number))
    index.executemany(
        "INSERT INTO span VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (stream, batch.shard, entry.id.ms, entry.id.seq, entry.id.index, entry.count, number)
            for entry in batch.entries
            if entry.count
        ],
    )
    return name


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder onto the disk: syncing a file does not."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
