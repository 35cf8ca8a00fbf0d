"""The spool's file: who holds it, how it is opened, and what its errors mean.

    PATH          a SQLite database in WAL mode
    PATH-wal      its write-ahead log, PATH-shm the index of that; both go when it is closed
    PATH.lock     held by the producer that has the spool; its pid
    PATH.reserve  room that is given up when the disk is full, so that blocks can be removed: SQLite
                  needs some for the log, and some to copy the log into the file

The lock is flock(2), as for the server's data folder: it ends with the process that holds it,
whatever ended it.

Source: https://sqlite.org/wal.html, https://sqlite.org/pragma.html
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from standpipe.errors import (
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolInUseError,
    SpoolUnusableError,
)
from standpipe.limits import (
    SPOOL_BLOCK_OVERHEAD_BYTES,
    SPOOL_BUSY_MS_MAX,
    SPOOL_PAGE_BYTES,
    SPOOL_RESERVE_BYTES,
    SPOOL_WAL_BYTES,
)

log: Final = logging.getLogger("standpipe.spool")

APPLICATION_ID: Final = 0x53745370
"""``StSp``: how file(1) and this module tell a spool from other SQLite files."""

VERSION: Final = 1

DISK_FULL_HINT: Final = "Free space there. What the spool holds is kept, and drained all the same."

_LAST_PAGE: Final = f"MIN(LENGTH(payload), {SPOOL_PAGE_BYTES // 2})"
SIZE: Final = f"{SPOOL_BLOCK_OVERHEAD_BYTES} + LENGTH(payload) + {_LAST_PAGE}"
"""``SpooledBlock.size`` in SQL."""

_SCHEMA: Final = (
    # meta: stream, bytes_max.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # A series is the blocks of one producer on one shard. A shard's series are drained by number.
    """CREATE TABLE series (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        shard_key TEXT NOT NULL,
        producer_id TEXT NOT NULL,
        last_sequence INTEGER NOT NULL DEFAULT 0,
        blocks INTEGER NOT NULL DEFAULT 0,
        events INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        aside_blocks INTEGER NOT NULL DEFAULT 0,
        aside_events INTEGER NOT NULL DEFAULT 0,
        aside_bytes INTEGER NOT NULL DEFAULT 0,
        UNIQUE (shard_key, producer_id)
    )""",
    # The payload comes last, so that the rest is read without it.
    """CREATE TABLE block (
        series INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        mark TEXT NOT NULL,
        count INTEGER NOT NULL,
        arguments INTEGER NOT NULL,
        spooled_at INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (series, sequence)
    )""",
    """CREATE TABLE aside (
        series INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        reason TEXT NOT NULL,
        set_aside_at INTEGER NOT NULL,
        mark TEXT NOT NULL,
        count INTEGER NOT NULL,
        arguments INTEGER NOT NULL,
        spooled_at INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (series, sequence)
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


class SpoolFile:
    """The open database, for one thread at a time.

    Args:
        path: The file; the folders above it are created when they are not there.
        writes: Hold the spool and create it if need be; else it is only read, whoever holds it.
        fsync: Whether each transaction is forced to disk before it counts as done.

    Raises:
        SpoolInUseError: ``writes``, and another process holds it.
        SpoolUnusableError: it cannot be created or opened, or it is no spool.
        SpoolDamagedError: SQLite cannot make sense of it.
        SpoolFullError: there is no room on the disk to create it.
    """

    def __init__(self, path: Path | str, *, writes: bool, fsync: bool = False) -> None:
        self.path: Final = Path(path).expanduser().absolute()
        self._turn = threading.Lock()
        self._held: int | None = None
        self._db: sqlite3.Connection | None = None
        self._has_reserve = False
        try:
            if writes:
                self._held = self._hold()
                self._create_if_absent()
            elif not self.path.is_file():
                raise SpoolUnusableError(f"there is no spool at {self.path}")
            try:
                self._db = self._connect(writes=writes, fsync=fsync)
            except SpoolFullError:
                # The index of the log finds no room.
                if not (writes and self.give_up_reserve()):
                    raise
                self._db = self._connect(writes=writes, fsync=fsync)
        except BaseException:
            self.close()
            raise

    # --- opening ---------------------------------------------------------------------------------

    def _hold(self) -> int:
        """The locked descriptor of the lock file. The file stays when the lock is let go: removing
        it would let two processes lock two files of the same name."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = os.open(self._beside(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._os_error("create", error) from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Always as long, so that a lock that has been taken before needs no room on the disk.
            os.pwrite(held, b"%-19d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            pid = os.pread(held, 20, 0).strip().decode(errors="replace")
            os.close(held)
            raise SpoolInUseError(
                f"{self.path} is in use by process {pid or '(unknown)'}"
            ) from error
        except OSError as error:
            os.close(held)
            raise self._os_error("lock", error) from error
        return held

    def _create_if_absent(self) -> None:
        wal = self._beside("-wal")
        try:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size == 0 and wal.exists() and wal.stat().st_size > 0:
                # SQLite would delete a log without its file; it holds blocks.
                raise SpoolDamagedError(
                    f"{self.path} is missing or empty, but its write-ahead log is there",
                    hint=f"Put the file back that belongs to {wal.name}, or move that away.",
                )
            if not self.path.exists():
                # Readings may be confidential; SQLite gives the log the same mode.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise self._os_error("create", error) from error

    def _connect(self, *, writes: bool, fsync: bool) -> sqlite3.Connection:
        with self._typed("open"):
            db = sqlite3.connect(
                f"{self.path.as_uri()}?mode={'rw' if writes else 'ro'}",
                uri=True,
                timeout=SPOOL_BUSY_MS_MAX / 1000,
                isolation_level=None,
                # Threads take turns here already.
                check_same_thread=False,
            )
            try:
                if not (writes and _is_empty(db)):
                    self._check_kind(db)
                if writes:
                    self._prepare(db, fsync=fsync)
            except BaseException:
                db.close()
                raise
        return db

    def _check_kind(self, db: sqlite3.Connection) -> None:
        application_id, version = pragma(db, "application_id"), pragma(db, "user_version")
        if application_id != APPLICATION_ID:
            raise SpoolUnusableError(
                f"{self.path} is a SQLite file, but no spool", hint="Give another path."
            )
        if version > VERSION:
            raise SpoolUnusableError(
                f"{self.path} has layout {version}; this version of Standpipe reads {VERSION}",
                hint="Drain it with the version that wrote it.",
            )

    def _prepare(self, db: sqlite3.Connection, *, fsync: bool) -> None:
        """Settings of the connection, and the tables if the file is new."""
        for setting in (
            f"page_size = {SPOOL_PAGE_BYTES}",
            "synchronous = FULL",
            # macOS: fsync(2) alone leaves the data in the drive's cache. Elsewhere no effect.
            f"fullfsync = {int(fsync)}",
            f"wal_autocheckpoint = {SPOOL_WAL_BYTES // SPOOL_PAGE_BYTES}",
            f"journal_size_limit = {SPOOL_WAL_BYTES}",
            # Debian's SQLite overwrites what is deleted with zeros: more to write while draining.
            "secure_delete = OFF",
        ):
            db.execute(f"PRAGMA {setting}")
        mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise SpoolUnusableError(
                f"the file system of {self.path} cannot share memory between processes",
                hint="Give a path on a local disk.",
            )
        if _is_empty(db):
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("COMMIT")
        if not fsync:
            db.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close it and let it go; without effect the second time.

        Delivery: nothing depends on it: what was stored is stored.
        """
        with self._turn:
            db, self._db = self._db, None
            held, self._held = self._held, None
            try:
                if db is not None:
                    with self._typed("close"):
                        db.close()
            finally:
                if held is not None:
                    os.close(held)

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """One state of the database for several statements; raises as :meth:`writing`."""
        with self._transaction("read", "BEGIN") as db:
            yield db

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """All or nothing of what is done within.

        Raises:
            SpoolFullError: the disk is full. Retryable.
            SpoolInUseError: another program has locked the file for longer than SPOOL_BUSY_MS_MAX.
            SpoolUnusableError: it is closed, or the disk refuses.
            SpoolDamagedError: SQLite cannot make sense of it.
        """
        with self._transaction("write to", "BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def outside(self) -> Generator[sqlite3.Connection]:
        """For statements that SQLite takes outside of transactions alone; raises likewise."""
        with self._turn, self._typed("write to"):
            yield self._open_db()

    @contextmanager
    def _transaction(self, what: str, begin: str) -> Generator[sqlite3.Connection]:
        with self._turn, self._typed(what):
            db = self._open_db()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                # After some errors SQLite has rolled back by itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise SpoolUnusableError(f"the spool {self.path} is closed", hint="Open it again.")
        return self._db

    # --- room on the disk ------------------------------------------------------------------------

    @property
    def bytes_on_disk(self) -> int:
        """Of the file and its write-ahead log."""
        return self._bytes_of("") + self.log_bytes

    @property
    def log_bytes(self) -> int:
        """Of the write-ahead log, which is there only while someone has the file open."""
        return self._bytes_of("-wal")

    def _bytes_of(self, suffix: str) -> int:
        try:
            return self._beside(suffix).stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._os_error("ask the size of", error) from error

    @property
    def disk_free_bytes(self) -> int:
        """What the disk has left for users that are not root.

        Raises:
            SpoolUnusableError: the file is not there any more. SQLite would not notice, and go on
                writing to one that is gone for good when it is closed.
        """
        try:
            found = os.statvfs(self.path)
        except OSError as error:
            raise self._os_error("ask the disk of", error) from error
        return found.f_bavail * found.f_frsize

    def keep_reserve(self) -> None:
        """Take the reserve if it is not there.

        Raises:
            SpoolFullError: there is no room for it. Retryable.
            SpoolUnusableError: it cannot be written.
        """
        if self._has_reserve:
            return
        reserve = self._beside(".reserve")
        try:
            if self._bytes_of(".reserve") < SPOOL_RESERVE_BYTES:
                reserve.touch(mode=0o600)
                # A file with holes reserves nothing, nor do zeros where the file system compresses.
                reserve.write_bytes(os.urandom(SPOOL_RESERVE_BYTES))
        except OSError as error:
            with suppress(OSError):
                reserve.unlink(missing_ok=True)
            raise self._os_error("reserve room for", error) from error
        self._has_reserve = True

    def give_up_reserve(self) -> bool:
        """Give the reserve back to the disk; whether there was one."""
        self._has_reserve = False
        try:
            self._beside(".reserve").unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._os_error("give up the reserve of", error) from error
        log.warning("%s: the disk is full; what was reserved on it is used for draining", self.path)
        return True

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    # --- errors ----------------------------------------------------------------------------------

    @contextmanager
    def _typed(self, what: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(what, error) from error

    def _translate(self, what: str, error: sqlite3.Error) -> SpoolError:
        text = f"cannot {what} the spool {self.path}: {error}"
        # Python itself finds text that is not UTF-8, which was never written, and gives no code.
        is_python = isinstance(error, sqlite3.OperationalError)
        unknown = sqlite3.SQLITE_CORRUPT if is_python else sqlite3.SQLITE_ERROR
        code: int = getattr(error, "sqlite_errorcode", unknown)
        match code & 0xFF:  # The rest says where in SQLite it was met.
            case sqlite3.SQLITE_FULL:
                return self._full_error()
            case sqlite3.SQLITE_IOERR if self.disk_free_bytes < SPOOL_PAGE_BYTES:
                # For some of its files SQLite says it so.
                return self._full_error()
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return SpoolInUseError(text, hint="Close the other program that has it open.")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return SpoolDamagedError(text)
            case _:
                return SpoolUnusableError(text)

    def _os_error(self, what: str, error: OSError) -> SpoolError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full_error()
        return SpoolUnusableError(f"cannot {what} the spool {self.path}: {error.strerror or error}")

    def _full_error(self) -> SpoolFullError:
        return SpoolFullError(f"the disk of the spool {self.path} is full", hint=DISK_FULL_HINT)


def _is_empty(db: sqlite3.Connection) -> bool:
    """Whether nothing was ever put into it: it is new, or its creation was cut short."""
    return not pragma(db, "application_id") and not pragma(db, "schema_version")


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The number that SQLite gives for a pragma."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def meta(db: sqlite3.Connection, name: str) -> str | None:
    """What is kept under this name about the spool as a whole."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep it; nothing is written when it is there already, so that a full disk is no obstacle."""
    if meta(db, name) != value:
        db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))
