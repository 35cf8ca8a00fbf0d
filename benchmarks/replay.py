"""Events per second of a replay, out of the archive and out of the live stream.

    python benchmarks/replay.py [--events N] [--rounds N] [--shards N] [--json FILE]

Runs on the embedded server. The readings are those of `standpipe demo`: the water network Net3
simulated by EPANET, two numbers per node and one per link. They are sent as rows, archived, and
trimmed, and then replayed flat out: as tables, as events, into a Parquet and an NDJSON file, and
into another stream; and as tables out of the live stream, rows and columns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import uvloop

from standpipe import EmbeddedServer, Event, Producer, Reader, Stream, datasets, replay
from standpipe.archive import Archive, Archiver

Measured = Callable[[], Awaitable[int]]


async def measured(what: str, events: int, rounds: int, run: Measured) -> dict[str, Any]:
    """The median over rounds of events per second and of this process' CPU-µs per event."""
    rates: list[float] = []
    costs: list[float] = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        found = await run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert found == events, f"{what}: {found} of {events}"
        rates.append(events / wall)
        costs.append(cpu / events * 1e6)
    result = {
        "what": what,
        "events_per_s": round(statistics.median(rates)),
        "events_per_s_min": round(min(rates)),
        "events_per_s_max": round(max(rates)),
        "cpu_us_per_event": round(statistics.median(costs), 3),
    }
    print(f"| {what} | {result['events_per_s']:,} | {result['cpu_us_per_event']:.2f} |", flush=True)
    return result


async def count_tables(reader: Reader) -> int:
    return sum([len(table) async for table in reader.tables()])


async def count_events(reader: Reader) -> int:
    return sum([len(batch.events) async for batch in reader.batches()])


async def main(count: int, rounds: int, shards: int) -> dict[str, Any]:
    events = list(datasets.load("wntr", days=min(10, max(1, count / 20_736))).events())[:count]
    # The archive is larger than what is simulated: the same readings, day after day.
    repeats = max(1, -(-count // len(events)))
    total = repeats * len(events)
    print(f"{total:,} events, {shards} shards\n")
    print("| replay | events/s | µs per event |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as name:
        folder = Path(name)
        async with EmbeddedServer(folder / "server", port=0) as server:
            found = await measure(server.url, folder, events, repeats, rounds, shards)
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "events": total,
        "shards": shards,
        "rounds": rounds,
        "results": found,
    }


async def measure(
    url: str, folder: Path, events: list[Event], repeats: int, rounds: int, shards: int
) -> list[dict[str, Any]]:
    total = repeats * len(events)
    archive = Archive(folder / "archive")
    found: list[dict[str, Any]] = []
    async with Stream("bench", url, shards=shards) as stream:
        for _ in range(repeats):
            await fill(stream, events, "rows")
            await Archiver(stream, archive).run()
            for key in stream.keys:
                await stream.server.call("XTRIM", key, "MAXLEN", 0, key=key)

        async def add(what: str, run: Measured, times: int = rounds, of: int = total) -> None:
            found.append(await measured(what, of, times, run))

        def reader(**options: Any) -> Reader:
            return Reader(stream, archive=archive, **options)

        await add("archive, tables", lambda: count_tables(reader()))
        await add("archive, tables, one field", lambda: count_tables(reader(fields=["pressure"])))
        await add("archive, events", lambda: count_events(reader()), 1)

        async def to(path: Path) -> int:
            return (await replay.to_file(reader(), path, overwrite=True)).events

        await add("archive into Parquet", lambda: to(folder / "x.parquet"))
        await add("archive into NDJSON", lambda: to(folder / "x.ndjson"), 1)

        async def copy() -> int:
            async with Stream("bench-copy", url) as other:
                try:
                    return (await replay.to_stream(reader(), other, name="bench")).events
                finally:
                    await other.server.call("UNLINK", "bench-copy", key="bench-copy")

        await add("archive into another stream, rows", copy, 1)
    for codec in ("rows", "columns"):
        async with Stream(f"live-{codec}", url, shards=shards) as stream:
            await fill(stream, events, codec)
            for what, run in (("tables", count_tables), ("events", count_events)):
                live = await measured(
                    f"live stream of {codec}, {what}",
                    len(events),
                    rounds,
                    lambda run=run, stream=stream: run(Reader(stream)),
                )
                found.append(live)
    return found


async def fill(stream: Stream, events: list[Event], codec: str) -> None:
    async with Producer(stream, codec=codec) as producer:
        for start in range(0, len(events), 16_384):
            await producer.send_many(events[start : start + 16_384])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    facts = uvloop.run(main(options.events, options.rounds, options.shards))
    if options.json is not None:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
