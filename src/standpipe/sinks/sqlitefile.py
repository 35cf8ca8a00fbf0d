"""A SQLite file that sinks write to: how it is opened, and what its errors mean.

``synchronous=FULL``: with ``NORMAL``, the usual choice in WAL mode, a commit may be gone after a
power cut, and by then the worker has acknowledged its events.

Source: https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from standpipe.errors import SinkRefusedError, SinkUnreachableError, SinkUnusableError
from standpipe.limits import SINK_BUSY_MS_MAX

_UNUSABLE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_ERROR,
    }
)
"""Result codes that no waiting mends. SQLITE_ERROR: an SQL error, such as a view in the way."""


@contextmanager
def sqlite_errors(path: Path) -> Generator[None]:
    """Turn SQLite's errors into ours: does the event not fit, the file not do, or must it wait?"""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
        raise SinkRefusedError(f"SQLite refuses the row: {error}") from error
    except sqlite3.Error as error:
        # The low byte is the primary code; the rest says which kind of it.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_TOOBIG:
            raise SinkRefusedError(f"SQLite refuses the row: {error}") from error
        kind = SinkUnusableError if code in _UNUSABLE else SinkUnreachableError
        raise kind(f"{path}: {error}") from error
    except OSError as error:
        raise SinkUnreachableError(f"{path}: {error}") from error


def open_file(path: Path) -> sqlite3.Connection:
    """Open or create a file in WAL mode, with transactions by hand and each commit on the disk.

    Raises:
        sqlite3.Error: for :func:`sqlite_errors`.
    """
    database = sqlite3.connect(
        path, timeout=SINK_BUSY_MS_MAX / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def write_transaction(database: sqlite3.Connection) -> Generator[None]:
    """One transaction that has the write lock from its beginning, so that what it reads stays."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # A full disk has rolled it back already.
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
