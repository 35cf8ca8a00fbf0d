"""One worker process of the demo: handles batches, keeps its records, reports its counters.

Run as ``python -m standpipe.demo.process URL STREAM GROUP NAME FOLDER IDLE_MS``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from standpipe import Batch, Stream, Worker
from standpipe.demo.ledger import records
from standpipe.testing import AppendOnlyFile


class Report(msgspec.Struct):
    """What a worker process tells the display, rewritten some times a second."""

    pid: int
    events: int
    taken_over: int
    acknowledged: int


def report_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def records_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.records"


async def work(
    url: str, stream_name: str, group: str, name: str, folder: Path, idle_ms: int
) -> None:
    """Handle events until SIGTERM."""
    file = AppendOnlyFile(records_path(folder, name))
    async with Stream(stream_name, url) as stream:
        worker = Worker(stream, group, name=name, idle_ms_min=idle_ms, in_flight_events_max=4_000)

        @worker.batch
        async def keep(batch: Batch) -> None:  # pyright: ignore[reportUnusedFunction]
            rows = records(
                [batch.shard] * len(batch), batch.ids, batch.events, time.time_ns()
            ).tobytes()
            file.write(rows)

        def report() -> None:
            seen = worker.consumer.stats
            found = Report(os.getpid(), seen.events, seen.taken_over, seen.acknowledged)
            path = report_path(folder, name)
            fresh = path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(found))
            fresh.replace(path)

        async def keep_reporting() -> None:
            while True:
                report()
                await asyncio.sleep(0.1)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        reporting = asyncio.create_task(keep_reporting())
        try:
            await worker.run()
        finally:
            reporting.cancel()
            report()
    file.close()


if __name__ == "__main__":
    url, stream_name, group, name, folder, idle_ms = sys.argv[1:]
    asyncio.run(work(url, stream_name, group, name, Path(folder), int(idle_ms)))
