"""Events per second from a stream of rows blocks into each sink.

    python benchmarks/sinks.py [--events N] [--rounds N] [--postgres URL]

Runs on the embedded server, one worker, everything sent before it starts. The readings are the
water network Net3 simulated by EPANET, two numbers per node and one per link. PostgreSQL takes part
where a URL is given: postgres://user@host/database; its tables are left there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import uvloop

from standpipe import Batch, EmbeddedServer, Event, Producer, Stream, Worker, datasets
from standpipe.sinks import open_sink


async def into_sink(server_url: str, url: str, events: list[Event]) -> tuple[float, float]:
    """Events per second and this process' CPU-µs per event, from the worker's start to its end."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    async with Stream(name, server_url) as stream:
        async with Producer(stream) as producer:
            await (await producer.send_many(events))
        sink = open_sink(url)
        sink.open()
        worker = Worker(stream, "bench")
        loop, kept = asyncio.get_running_loop(), 0

        @worker.batch
        def keep(batch: Batch) -> None:
            nonlocal kept
            sink.write(batch)
            kept += len(batch)
            if kept == len(events):
                loop.call_soon_threadsafe(worker.stop)

        wall, cpu = time.perf_counter(), time.process_time()
        await worker.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        sink.close()
        await stream.server.call("UNLINK", name, key=name)
    return len(events) / wall, cpu / len(events) * 1e6


async def main(count: int, rounds: int, postgres: str | None) -> None:
    events = list(datasets.load("wntr", days=max(1, count / 20_736)).events())[:count]
    print("| sink | events/s | worker µs per event |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as folder:
        async with EmbeddedServer(Path(folder) / "server", port=0) as server:
            for kind in ("postgres", "sqlite", "parquet"):
                found = []
                for n in range(rounds):
                    if kind == "sqlite":
                        url = f"sqlite:{folder}/{n}.db"
                    elif kind == "parquet":
                        url = f"parquet:{folder}/{n}"
                    elif postgres:
                        mark = "&" if "?" in postgres else "?"
                        url = f"{postgres}{mark}table=bench_{uuid.uuid4().hex[:8]}"
                    else:
                        continue
                    found.append(await into_sink(server.url, url, events))
                if found:
                    rate, cpu = map(statistics.median, zip(*found, strict=True))
                    print(f"| {kind} | {rate:,.0f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=145_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgres", help="postgres://user@host/database")
    options = parser.parse_args()
    uvloop.run(main(options.events, options.rounds, options.postgres))
