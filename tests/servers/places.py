"""The places of sinks in a test, read past the code under test."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from standpipe import Batch, Event, EventId
from standpipe.sinks import Sink, open_sink
from tests.servers.postgres import Postgres

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KINDS = ("postgres", "sqlite", "parquet")
MS = 1_700_000_000_000


class Place(ABC):
    """Where a sink writes, with its URL."""

    url: str

    def sink(self, **options: str) -> Sink:
        mark = "&" if "?" in self.url else "?"
        given = "&".join(f"{name}={value}" for name, value in options.items())
        return open_sink(self.url + (mark + given if given else ""))

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order of time; the column ``time`` in ms."""

    @abstractmethod
    def count(self) -> int: ...


class PostgresPlace(Place):
    def __init__(self, server: Postgres, table: str) -> None:
        self.server, self.table = server, table
        self.url = server.url(table=table)

    def rows(self) -> list[dict[str, Any]]:
        found = self.server.rows(f'SELECT * FROM "{self.table}" ORDER BY time, entry_index')
        for row in found:
            row["time"] = (row["time"] - EPOCH) // timedelta(milliseconds=1)
        return found

    def count(self) -> int:
        query = "SELECT count(*) AS count FROM pg_class WHERE relname = %s"
        if not self.server.rows(query, self.table)[0]["count"]:
            return 0
        return self.server.rows(f'SELECT count(*) AS count FROM "{self.table}"')[0]["count"]


class SqlitePlace(Place):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:{path}"

    def query(self, query: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path, timeout=30)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query)]

    def rows(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM readings ORDER BY time, entry_index")

    def count(self) -> int:
        try:
            return self.query("SELECT count(*) AS count FROM readings")[0]["count"]
        except sqlite3.OperationalError:
            return 0  # There is no table yet.


class ParquetPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"parquet:{folder}"
        self._counts: dict[Path, int] = {}

    def rows(self) -> list[dict[str, Any]]:
        tables = [pq.read_table(path) for path in self.folder.glob("*.parquet")]
        rows = pa.concat_tables(tables, promote_options="permissive").to_pylist()
        for row in rows:
            row["time"] = (row["time"] - EPOCH) // timedelta(milliseconds=1)
        return sorted(rows, key=lambda row: (row["time"], row["entry_index"]))

    def count(self) -> int:
        for path in self.folder.glob("*.parquet"):
            if path not in self._counts:
                self._counts[path] = pq.read_metadata(path).num_rows
        return sum(self._counts.values())


class Block:
    """A decoded entry made by hand."""

    fields: list[bytes] = []  # noqa: RUF012

    def __init__(self, events: Sequence[Event], ms: int, seq: int = 0) -> None:
        self.id = EventId(ms, seq)
        self.count = len(events)
        self._events = list(events)

    def events(self) -> list[Event]:
        return self._events

    def table(self) -> pa.Table:
        raise NotImplementedError


def batch_of(*blocks: Sequence[Event], ms: int = MS, shard: int = 0, stream: str = "s") -> Batch:
    """Entries with these events, a millisecond apart."""
    entries = [Block(events, ms + n) for n, events in enumerate(blocks)]
    return Batch(entries, stream=stream, shard=shard)
