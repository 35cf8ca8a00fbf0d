"""The producer under light load, under overload, and without its checks.

    python benchmarks/producer.py [--rounds N] [--overload-s SECONDS] [--json FILE]

On the embedded server with its AOF (everysec), in one run:

* light: 1,000 events/s, from send to acknowledgement, beside redis-py's XADD of the same event at
  the same rate. The two take turns, a second each. A time is from when an event was due, so that a
  late start counts.
* overload: for a minute a producer of plain events is faster than the server, which also stands
  still (SIGSTOP) for three seconds of every ten; what the process takes beside what it had before
  is compared with the bound that docs/producer.md states.
* idempotence: rows with and without, in turns; and acknowledgement levels likewise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
import uvloop

from standpipe import EmbeddedServer, Event, Producer, Stream
from standpipe.limits import BUFFER_BYTES_MAX, BUFFER_EVENTS_MAX, EVENT_HELD_BYTES

RATE = 1_000
CHUNK = 5_000
ROWS = 300_000


def reading(n: int) -> Event:
    return Event(f"meter-{n % 10_000}", 1_700_000_000_000 + n, {"volts": 230.5, "amps": 1.25})


def fields(n: int) -> dict[str, Any]:
    return {
        "key": f"meter-{n % 10_000}",
        "time": 1_700_000_000_000 + n,
        "volts": 230.5,
        "amps": 1.25,
    }


async def at_rate(count: int, one: Callable[[int], Awaitable[object]]) -> list[float]:
    """So many calls at RATE; the ms of each from when it was due."""
    times: list[float] = []

    async def timed(n: int, due: float) -> None:
        await one(n)
        times.append((time.perf_counter() - due) * 1000)

    began = time.perf_counter() + 0.01
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            due = began + n / RATE
            await asyncio.sleep(max(0, due - time.perf_counter()))
            group.create_task(timed(n, due))
    return times


async def light(url: str, rounds: int) -> dict[str, Any]:
    client = redis.asyncio.Redis.from_url(url, protocol=3)
    async with Stream("light", url) as stream, Producer(stream) as producer:

        async def ours(n: int) -> None:
            await (await producer.send(reading(n)))

        async def theirs(n: int) -> None:
            await client.xadd("light_redis_py", fields(n))

        found: dict[str, list[float]] = {"standpipe": [], "redis-py": []}
        await at_rate(RATE // 4, ours)
        await at_rate(RATE // 4, theirs)
        for _ in range(rounds):
            found["standpipe"] += await at_rate(RATE, ours)
            found["redis-py"] += await at_rate(RATE, theirs)
    await client.aclose()
    return {
        name: {
            f"p{str(q).replace('.', '')}_ms": statistics.quantiles(times, n=1000)[int(q * 10) - 1]
            for q in (50, 99, 99.9)
        }
        for name, times in found.items()
    }


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def overload(server: EmbeddedServer, seconds: float) -> dict[str, Any]:
    url, pid = server.url, server.pid
    assert pid is not None
    chunk = [reading(n) for n in range(CHUNK)]
    ends = time.monotonic() + seconds
    peak = waited = 0.0

    async def stop_now_and_then() -> None:
        try:
            while True:
                await asyncio.sleep(7)
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(3)
                os.kill(pid, signal.SIGCONT)
        finally:
            os.kill(pid, signal.SIGCONT)

    async with (
        Stream("overload", url, codec="plain", max_len=1_000_000, when_full="ring") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(chunk))
        gc.collect()
        before = rss_bytes()
        stopping = asyncio.create_task(stop_now_and_then())
        while time.monotonic() < ends:
            began = time.monotonic()
            await producer.send_many(chunk)
            waited = max(waited, time.monotonic() - began)
            peak = max(peak, rss_bytes() - before)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await producer.flush()
        stats = producer.stats
        assert stats.acknowledged == stats.sent
    return {
        "seconds": seconds,
        "events": stats.sent,
        "events_per_s": stats.sent / seconds,
        "peak_bytes": peak,
        "bound_bytes": BUFFER_BYTES_MAX + BUFFER_EVENTS_MAX * EVENT_HELD_BYTES,
        "longest_wait_of_send_s": waited,
    }


async def throughput(url: str, name: str, options: dict[str, Any]) -> dict[str, float]:
    events = [reading(n) for n in range(ROWS)]
    async with Stream(name, url, codec="rows") as stream, Producer(stream, **options) as producer:
        await (await producer.send_many(events[:CHUNK]))
        cpu, wall = time.process_time(), time.perf_counter()
        for start in range(0, ROWS, CHUNK):
            await producer.send_many(events[start : start + CHUNK])
        await producer.flush()
        found = {
            "events_per_s": ROWS / (time.perf_counter() - wall),
            "client_cpu_us": (time.process_time() - cpu) / ROWS * 1e6,
        }
        await stream.server.call("UNLINK", name, key=name)
    return found


async def in_turns(
    url: str, rounds: int, ways: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for number, (way, options) in enumerate(ways.items()):
            found[way].append(await throughput(url, f"rows_{number}", options))
    return {
        way: {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        for way, runs in found.items()
    }


async def main(rounds: int, overload_s: float) -> dict[str, Any]:
    ways = {"idempotent": {}, "not idempotent": {"idempotent": False}}
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as folder:
        async with EmbeddedServer(Path(folder) / "server", port=0) as server:
            return {
                "when": time.strftime("%Y-%m-%d"),
                "light": await light(server.url, rounds),
                "idempotence": await in_turns(server.url, rounds, ways),
                "overload": await overload(server, overload_s),
            }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--overload-s", type=float, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    outcome = uvloop.run(main(given.rounds, given.overload_s))
    print(json.dumps(outcome, indent=2))
    if given.json:
        given.json.write_text(json.dumps(outcome, indent=2) + "\n")
