"""Archives a stream, and reads the files with DuckDB, polars and pandas.

pip install duckdb polars pandas
python examples/archive.py [FOLDER]
"""

import asyncio
import os
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl

from standpipe import Archive, Archiver, Event, Producer, Stream

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "archive")
NAME = "archived_pump_stream"
NEW_YEAR = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def readings() -> list[Event]:
    """A pump reports every second, and a valve now and then."""
    pumps = [Event("pump-1", NEW_YEAR + 1000 * n, {"flow": 40 + n / 4}) for n in range(60)]
    valves = [Event("valve-7", NEW_YEAR + 15_000 * n, {"open": n % 2 == 0}) for n in range(4)]
    return pumps + valves


async def archive() -> None:
    async with Stream(NAME, URL) as stream:
        async with Producer(stream) as producer:
            await (await producer.send_many(readings()))
        done = await Archiver(stream, Archive(FOLDER)).run()
        print(f"archived {done.events} events in {done.files} file")


asyncio.run(archive())
# All files that count: a folder can hold more for a moment, while small ones are put together.
there = Archive(FOLDER)
files = [there.path(file) for file in there.files(NAME)]

mean, latest = duckdb.execute(
    "SELECT avg(flow), max(time) FROM read_parquet(?, union_by_name = true) WHERE key = 'pump-1'",
    [files],
).fetchone()
print(f"DuckDB: mean flow {mean}, the last at {latest:%H:%M:%S}")

pump = pl.scan_parquet(files, missing_columns="insert").filter(pl.col("key") == "pump-1")
print("polars: mean flow", pump.select(pl.col("flow").mean()).collect().item())

frame = pd.concat(pd.read_parquet(file) for file in files)
print("pandas:", frame.groupby("key").size().to_dict())
