"""What a spool costs: sending while the server is away, draining when it is back.

    python benchmarks/spool.py [--events N] [--rounds N] [--folder DIR]

Runs on the embedded server with its AOF (everysec), which is ended and started again on the same
port and data. Each round, per codec: all events in lists of 1,000 while the server is away; then a
thousand single sends, one each millisecond; then the server comes back and the spool is drained.
The medians over the rounds are printed; the longest wait is the longest of all. CPU is this
process's time, the spool's thread included. An event has a key, a time and three numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from standpipe import EmbeddedServer, Event, Producer, Stream
from standpipe.spool import Spool

CODECS = ("plain", "rows", "columns")
CHUNK = 1_000
SINGLE = 1_000


def make_events(count: int) -> list[Event]:
    draw = random.Random(1)
    return [
        Event(
            f"meter-{n % 200}",
            1_700_000_000_000 + n // 200 * 1_000,
            {
                "volts": round(draw.gauss(230, 2), 1),
                "amps": round(draw.gauss(8, 2), 3),
                "watts": round(draw.gauss(1_800, 400), 1),
            },
        )
        for n in range(count)
    ]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def one_round(folder: Path, codec: str, events: list[Event]) -> dict[str, float]:
    found: dict[str, float] = {}
    spool = folder / f"{codec}.spool"
    server = EmbeddedServer(folder / "server", port=0)
    async with server:
        url = server.url
        stream = Stream(f"bench_{codec}", url, codec=codec)
        producer = Producer(stream, spool=spool, deadline_ms=200)
        await producer.start()
    # The trouble has to be met once; from then on blocks are spooled as they come.
    await producer.send(events[0])
    await producer.flush()
    wall, cpu, waits = time.perf_counter(), time.process_time(), []
    for start in range(0, len(events), CHUNK):
        began = time.perf_counter()
        await producer.send_many(events[start : start + CHUNK])
        waits.append(time.perf_counter() - began)
    await producer.flush()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    with Spool.open_readonly(spool) as reader:
        size = reader.summary().bytes
    found |= {
        "spool events/s": len(events) / wall_s,
        "spool MB/s": size / wall_s / 1e6,
        "spool cpu us": cpu_s / len(events) * 1e6,
        "send_many p99 ms": percentile(waits, 0.99) * 1e3,
        "send_many max ms": max(waits) * 1e3,
    }
    waits = []
    for event in events[:SINGLE]:
        began = time.perf_counter()
        await producer.send(event)
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    await producer.flush()
    found |= {
        "send p50 us": statistics.median(waits) * 1e6,
        "send p99 us": percentile(waits, 0.99) * 1e6,
        "send max us": max(waits) * 1e6,
    }
    waiting = producer.stats.spooled
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with EmbeddedServer(folder / "server", port=port):
        up = time.perf_counter()
        while not producer.stats.drained:  # noqa: ASYNC110  stats wake nobody
            await asyncio.sleep(0.005)
        wall, cpu = time.perf_counter(), time.process_time()
        already = producer.stats.drained
        while producer.stats.drained < waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        drained = waiting - already
        found |= {
            "first drained ms": (wall - up) * 1e3,
            "drain events/s": drained / wall_s,
            "drain MB/s": size * drained / waiting / wall_s / 1e6,
            "drain cpu us": cpu_s / drained * 1e6,
        }
        await producer.close()
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the spool and the server's data go")
    given = parser.parse_args()
    events = make_events(given.events)
    rounds: dict[str, list[dict[str, float]]] = {codec: [] for codec in CODECS}
    for _ in range(given.rounds):
        for codec in CODECS:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                rounds[codec].append(await one_round(Path(folder), codec, events))
    print(f"{'':<18}" + "".join(f"{codec:>14}" for codec in CODECS))
    for name in rounds["rows"][0]:
        combine = max if " max " in name else statistics.median
        values = [combine(each[name] for each in rounds[codec]) for codec in CODECS]
        print(f"{name:<18}" + "".join(f"{value:>14,.1f}" for value in values))


if __name__ == "__main__":
    uvloop.run(main())
