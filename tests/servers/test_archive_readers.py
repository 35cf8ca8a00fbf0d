"""What other programs read in the archive: DuckDB, polars and pandas."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest

from standpipe import Archive, Archiver, Event, Stream
from tests.servers.entries import TIME
from tests.servers.fleet import TestServer
from tests.servers.working import send

pytestmark = pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
MOMENT = datetime.fromtimestamp(TIME / 1000, tz=UTC)


@pytest.fixture
async def archive(server: TestServer, stream_name: str, tmp_path: Path) -> Archive:
    """Of three files: volts are ints in the first, floats in the second, text in the third; and
    names that SQL finds hard."""
    archive = Archive(tmp_path / "archive")
    async with Stream(stream_name, server.url) as stream:
        for volts in (230, 230.5, "off"):
            events = [
                Event(f"meter-{n}", TIME + n, {"volts": volts, "key": n, "Time": "x", "in V": n})
                for n in range(3)
            ]
            await send(stream, [*events, Event("valve", TIME + 3, {"open": True})])
            await Archiver(stream, archive).run()
        await stream.server.call(
            "XADD", stream.name, "*", "c", "?", "n", 1, "d", "", key=stream.name
        )
        await Archiver(stream, archive).run()
    return archive


def paths(archive: Archive) -> list[str]:
    (name,) = archive.streams()
    return [archive.path(file) for file in archive.files(name)]


async def test_duckdb(archive: Archive, stream_name: str) -> None:
    """By the list of files and by the folder: all rows, times as times, columns of several types
    unified, the folders' names as columns, escaped names."""
    glob = f"{archive.place.shown}/**/*.parquet"
    for source in (paths(archive), [glob]):
        with duckdb.connect() as database:
            table = "read_parquet(?, union_by_name = true, hive_partitioning = true)"
            events = f"FROM {table} WHERE raw IS NULL"
            count = f"SELECT count(*), count(DISTINCT entry_ms), min(stream) {events}"
            assert database.execute(count, [source]).fetchone() == (12, 3, stream_name)
            rows = database.execute(
                f'SELECT volts, _key, "_Time", "in V", time AT TIME ZONE \'UTC\' {events} '
                "AND key = 'meter-0' ORDER BY entry_ms, entry_seq, index",
                [source],
            ).fetchall()
            naive = MOMENT.replace(tzinfo=None)
            assert [row[0] for row in rows] == ["230", "230.5", "off"]
            assert {row[1:] for row in rows} == {(0, "x", 0, naive)}
            raw = f"SELECT count(*) FROM {table} WHERE raw IS NOT NULL"
            assert database.execute(raw, [source]).fetchone() == (1,)
            hours = f"SELECT count(DISTINCT (date, hour)) {events}"
            assert database.execute(hours, [source]).fetchone()[0] in (1, 2)


async def test_polars(archive: Archive) -> None:
    """Files of the same types lazily together, in order; each has the columns that it has."""
    first, second, *_ = paths(archive)
    lazy = pl.scan_parquet(first)
    assert lazy.collect_schema()["volts"] == pl.Int64
    assert pl.scan_parquet(second).collect_schema()["volts"] == pl.Float64
    found = lazy.filter(pl.col("key").str.starts_with("meter")).collect()
    assert found["volts"].to_list() == [230, 230, 230]
    assert found["_key"].to_list() == [0, 1, 2]
    assert found["time"][0] == MOMENT
    both = pl.concat([pl.read_parquet(each) for each in (first, second)], how="diagonal_relaxed")
    assert both["volts"].drop_nulls().to_list() == [230.0] * 3 + [230.5] * 3


async def test_pandas(archive: Archive) -> None:
    """Each file is a frame, with times as times; together they are one."""
    frame = pd.concat([pd.read_parquet(path, partitioning=None) for path in paths(archive)])
    meters = frame[frame["key"] == "meter-1"]
    assert [str(volts) for volts in meters["volts"]] == ["230.0", "230.5", "off"]
    assert meters["time"].iloc[0].to_pydatetime() == datetime.fromtimestamp(
        (TIME + 1) / 1000, tz=UTC
    )
    assert frame["open"].dropna().tolist() == [True] * 3


async def test_our_own_tables_go_there_as_well(archive: Archive, stream_name: str) -> None:
    """What Archive.read gives is unified already, and any of the three takes it without a file."""
    tables = [table.table for table in archive.read(stream_name)]
    frame = pl.concat([pl.from_arrow(table) for table in tables])
    assert frame.height == 12
    assert frame["volts"].drop_nulls().unique().sort().to_list() == ["230", "230.5", "off"]
    assert tables[0].to_pandas()["volts"].dropna().tolist() == ["230"] * 3
