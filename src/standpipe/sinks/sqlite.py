"""The sink that writes to a table of a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Final

from standpipe.errors import SinkRefusedError, SinkUnusableError
from standpipe.event import Batch
from standpipe.sinks.rows import (
    ID_COLUMNS,
    PRIMARY_KEY,
    Kind,
    Rows,
    Rules,
    another_event,
    identity_of,
    rows_of,
)
from standpipe.sinks.sink import Sink
from standpipe.sinks.sqlitefile import open_file, quoted, sqlite_errors, write_transaction

_RULES: Final = Rules(name_bytes_max=None, is_case_blind=True, takes_nul=True, takes_nan=False)
_TYPES: Final = {
    Kind.INT: "INTEGER",
    Kind.FLOAT: "REAL",
    Kind.TEXT: "TEXT",
    Kind.BOOL: "BOOLEAN",
    Kind.BYTES: "BLOB",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()}


class SqliteSink(Sink):
    """Keeps events in a table of a SQLite file in WAL mode.

    A column of whole numbers takes others without being changed: SQLite gives each value a type.

    Args:
        path: The file; created where it does not exist. On a local disk: WAL needs shared memory.
        table: The table; created where it does not exist.
        source: As for every :class:`Sink`.
    """

    def __init__(self, path: Path, *, table: str, source: str | None = None) -> None:
        super().__init__(source=source)
        self._path = path
        self._table = table
        self._identity: tuple[str, ...] = PRIMARY_KEY
        self._database: sqlite3.Connection | None = None

    def __str__(self) -> str:
        return f"table {self._table!r} of {self._path}"

    @property
    def _is_open(self) -> bool:
        return self._database is not None

    def _open(self) -> None:
        if self._is_open:
            return
        with sqlite_errors(self._path):
            database = open_file(self._path)
            try:
                with write_transaction(database):
                    database.execute(_create(self._table))
                    self._check_table(database)
            except BaseException:
                database.close()
                raise
        self._database = database

    def _check_table(self, database: sqlite3.Connection) -> None:
        known = self._columns(database)
        if missing := [name for name in ID_COLUMNS if name not in known]:
            raise SinkUnusableError(f"{self} has no column {', '.join(missing)}")
        keys = [
            {name for (name,) in database.execute("SELECT name FROM pragma_index_info(?)", (key,))}
            for key, is_unique, is_partial in database.execute(
                'SELECT name, "unique", partial FROM pragma_index_list(?)', (self._table,)
            ).fetchall()
            if is_unique and not is_partial
        ]
        self._identity = identity_of(keys, str(self))

    def _columns(self, database: sqlite3.Connection) -> dict[str, Kind]:
        rows = database.execute("SELECT name, type FROM pragma_table_info(?)", (self._table,))
        return {name: _KINDS.get(type_.upper(), Kind.OTHER) for name, type_ in rows}

    def _store(self, batch: Batch, stream: str) -> None:
        database = self._database
        assert database is not None
        with sqlite_errors(self._path), write_transaction(database):
            # The lock is held, so no other process adds a column until this one has committed.
            rows = rows_of(batch, stream, self._columns(database), _RULES)
            self._add_columns(database, rows.new)
            names = ", ".join(map(quoted, rows.names))
            marks = ", ".join("?" * len(rows.names))
            identity = ", ".join(map(quoted, self._identity))
            done = database.executemany(
                f"INSERT INTO {quoted(self._table)} ({names}) VALUES ({marks}) "
                f"ON CONFLICT ({identity}) DO NOTHING",
                zip(*rows.columns, strict=True),
            )
            if done.rowcount < len(batch):
                self._check_there(database, rows)

    def _add_columns(self, database: sqlite3.Connection, new: Mapping[str, Kind]) -> None:
        for name, kind in new.items():
            database.execute(
                f"ALTER TABLE {quoted(self._table)} ADD COLUMN {quoted(name)} {_TYPES[kind]}"
            )

    def _check_there(self, database: sqlite3.Connection, rows: Rows) -> None:
        """Require that what was left out is there with these values, and is no other event."""
        same = " AND ".join(f"{quoted(name)} IS ?" for name in rows.names)
        query = f"SELECT 1 FROM {quoted(self._table)} WHERE {same}"
        for row in zip(*rows.columns, strict=True):
            if database.execute(query, row).fetchone() is None:
                raise SinkRefusedError(another_event(rows.names, row))

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _create(table: str) -> str:
    types = {Kind.INT: "INTEGER NOT NULL", Kind.TEXT: "TEXT NOT NULL", Kind.OTHER: "INTEGER"}
    types_of = {name: types[kind] for name, kind in ID_COLUMNS.items()} | {"key": "TEXT"}
    columns = [f"{quoted(name)} {type_}" for name, type_ in types_of.items()]
    key = ", ".join(map(quoted, PRIMARY_KEY))
    # Without a rowid the table is its key's index: each row is written once, not twice.
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(table)} "
        f"({', '.join(chain(columns, [f'PRIMARY KEY ({key})']))}) WITHOUT ROWID"
    )
