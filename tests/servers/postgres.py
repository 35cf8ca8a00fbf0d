"""A real PostgreSQL, from Debian's package, on a data folder and a Unix socket of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.rows import dict_row

from standpipe.server.embedded import tied_command
from tests.conditions import eventually_sync

USER = "standpipe"


@cache
def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs; None: not there. Debian keeps them off the PATH."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    found = [folder for folder in folders if (folder / "initdb").exists()]
    return max(found, key=lambda folder: float(folder.parent.name), default=None)


class Postgres:
    """A PostgreSQL server that a test may ill-treat.

    It refuses to run as root; then it runs as the user that its package makes.
    """

    def __init__(self, folder: Path) -> None:
        programs = find_postgres()
        if programs is None:
            pytest.skip("PostgreSQL is not installed")
        self._programs = programs
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        # What it keeps need not outlive the machine, but does outlive the server.
        options = ("-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync")
        line = self._line("initdb", "-D", "data", *options)
        subprocess.run(line, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    def _line(self, program: str, *arguments: str) -> tuple[str, ...]:
        """A command line that runs one of its programs, which ends with this process."""
        path = str(self._programs / program)
        if os.getuid() != 0:
            return tied_command(path, *arguments, number=signal.SIGQUIT)
        change = ("--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=QUIT")
        return ("setpriv", *change, path, *arguments)

    def start(self) -> None:
        """Start it, and wait until it can be worked with."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            # The first is the sink's to set right.
            "synchronous_commit": "off",
            "shared_buffers": "16MB",
            # Nothing writes to its log but what a test asks it to.
            "autovacuum": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
        }
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._line("postgres", "-D", "data", *given),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        eventually_sync(
            lambda: self.rows("SELECT 1"),
            30,
            what="PostgreSQL is up",
            ignore=(psycopg.OperationalError,),
        )

    def stop(self) -> None:
        """End it as a crash does: no checkpoint, all connections cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def url(self, database: str = "postgres", **options: str) -> str:
        """The URL of a sink into it."""
        given = {"host": str(self.folder), "user": USER, **options}
        query = "&".join(f"{name}={quote(value)}" for name, value in given.items())
        return f"postgres:///{database}?{query}"

    def rows(self, query: str, *values: Any, database: str = "postgres") -> list[dict[str, Any]]:
        """What a query gives, past the code under test."""
        with (
            self.connect(database) as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(query, values)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """A connection to it, past the code under test."""
        host = str(self.folder)
        return psycopg.connect(host=host, user=USER, dbname=database, autocommit=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests that only need a table; each takes a table of its own."""
    yield from _started()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that the test may stop."""
    yield from _started()


def _started() -> Iterator[Postgres]:
    # Not pytest's folder: another user may not enter it, and its path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="sp-pg-") as folder:
        server = Postgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
