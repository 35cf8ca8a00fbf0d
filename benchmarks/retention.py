"""Retention under full load, and what it costs the server.

    python benchmarks/retention.py [--seconds S] [--stall-s S] [--max-bytes BYTES] [--json FILE]

On the embedded server with its AOF (everysec):

* load: a producer that never pauses, and two groups of which one stands still in the middle of
  the run and then catches up. Each has a process of its own; the workers keep the limits.
  What the stream takes on the server is read four times a second, over all its nodes, and compared
  with max_bytes; at the end both groups have to have handled every event that was sent, once.
* steps: how long the server is held up while a million entries are let go, as a client sees it
  that asks for something else all the time; and what a look costs that finds nothing to do.
* appends: what the limits cost an append of rows: none, block, and a ring that is full.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import uvloop

from standpipe import Batch, EmbeddedServer, Event, Producer, Stream, Worker
from standpipe.retention import Janitor, look
from standpipe.wire import Server

GROUPS = ("steady", "stalling")
ROWS = 5_000
"""Events per table that is sent."""
SAMPLES_PER_S = 4


def columns() -> dict[str, pa.Array]:
    """All but the number, made once: the producer is to be as fast as it can."""
    draw = random.Random(1)
    return {
        "key": pa.array([f"meter-{n % 500}" for n in range(ROWS)]),
        "time": pa.array([1_700_000_000_000 + n for n in range(ROWS)]),
        "volts": pa.array([draw.gauss(230, 5) for _ in range(ROWS)]),
        "amps": pa.array([draw.uniform(0, 40) for _ in range(ROWS)]),
    }


# --- load ----------------------------------------------------------------------------------------


async def produce(url: str, seconds: float) -> dict[str, Any]:
    sent, longest = 0, 0.0
    async with Stream("load", url) as stream, Producer(stream, deadline_ms=600_000) as producer:
        made = columns()
        numbers = pa.array(range(ROWS))
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            await producer.send_table(pa.table(made | {"n": pc.add(numbers, sent)}))
            longest = max(longest, time.monotonic() - began)
            sent += ROWS
        await producer.flush()
        return {"sent": sent, "longest_wait_s": longest, "retries": producer.stats.retries}


async def consume(
    url: str, group: str, stall: tuple[float, float] | None, pipe: Connection
) -> None:
    count = total = 0
    began = time.monotonic()
    stands = False
    async with Stream("load", url) as stream:
        worker = Worker(stream, group, idle_ms_min=600_000)

        @worker.batch
        async def handle(batch: Batch) -> None:
            nonlocal count, total, stands
            if stall and not stands and time.monotonic() - began > stall[0]:
                stands = True
                await asyncio.sleep(stall[1])
            numbers = batch.table()["n"]
            count += len(numbers)
            total += pc.sum(numbers).as_py()

        async def report() -> None:
            while True:
                await asyncio.sleep(0.2)
                if pipe.poll():
                    pipe.recv()
                    pipe.send((count, total))

        reporting = asyncio.create_task(report())
        await asyncio.gather(worker.run(), reporting)


def in_process(target: Any, *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(target, arguments), daemon=True
    )
    process.start()
    return process


def _run(target: Any, arguments: tuple[Any, ...]) -> None:
    uvloop.run(target(*arguments))


async def producing(url: str, seconds: float, pipe: Connection) -> None:
    pipe.send(await produce(url, seconds))


async def load(url: str, seconds: float, stall_s: float, max_bytes: int) -> dict[str, Any]:
    async with Stream("load", url, codec="columns", max_bytes=max_bytes) as stream:
        pipes = {}
        processes = []
        for group in GROUPS:
            here, there = multiprocessing.Pipe()
            stall = (seconds / 3, stall_s) if group == "stalling" else None
            pipes[group] = here
            processes.append(in_process(consume, url, group, stall, there))
            await stream.server.call("XGROUP", "CREATE", "load", group, 0, "MKSTREAM", key="load")
        here, there = multiprocessing.Pipe()
        processes.append(in_process(producing, url, seconds, there))
        sizes: list[int] = []
        full = 0
        while not here.poll():
            size = await stream.server.call("MEMORY", "USAGE", "load", "SAMPLES", 0, key="load")
            sizes.append(size)
            full += size >= 0.95 * max_bytes
            await asyncio.sleep(1 / SAMPLES_PER_S)
        made = here.recv()
        expected = (made["sent"], made["sent"] * (made["sent"] - 1) // 2)
        found = dict.fromkeys(GROUPS, (0, 0))
        ends = time.monotonic() + 120
        while found != dict.fromkeys(GROUPS, expected) and time.monotonic() < ends:
            for group, pipe in pipes.items():
                pipe.send("?")
                found[group] = await asyncio.to_thread(pipe.recv)
        for process in processes:
            process.kill()
            process.join()
        lost = await stream.server.call("EXISTS", stream.lost_key(0), key="load")
        return {
            "seconds": seconds,
            "stall_s": stall_s,
            "max_bytes": max_bytes,
            "events": made["sent"],
            "events_per_s": made["sent"] / seconds,
            "handled": {group: count for group, (count, _) in found.items()},
            "is_balanced": found == dict.fromkeys(GROUPS, expected) and not lost,
            "bytes_max_share": max(sizes) / max_bytes,
            "bytes_median_share": statistics.median(sizes) / max_bytes,
            "share_of_time_full": full / len(sizes),
            "longest_wait_of_send_s": made["longest_wait_s"],
        }


# --- steps ---------------------------------------------------------------------------------------


async def steps(url: str, codec: str, entries: int) -> dict[str, Any]:
    name = f"steps_{codec}"
    async with Server(url) as other, Stream(name, url, max_len=1) as stream:
        server, key = stream.server, stream.keys[0]
        size = 40 if codec == "plain" else 20_000
        adds = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'd', ARGV[2]) end"
        for _ in range(entries // 1_000):
            await server.call("EVAL", adds, 1, key, 1_000, "x" * size, key=key)
        await server.call("XGROUP", "CREATE", key, "g", "$", key=key)
        for option, value in (("slowlog-log-slower-than", 100), ("slowlog-max-len", 10_000)):
            await server.call("CONFIG", "SET", option, value, key=key)
        await server.call("SLOWLOG", "RESET", key=key)
        waits: list[float] = []
        janitor = Janitor(stream)
        clearing = asyncio.create_task(janitor.once())
        while not clearing.done():
            began = time.perf_counter()
            await other.call("PING", key=key)
            waits.append((time.perf_counter() - began) * 1000)
        (found,) = await clearing
        slow = await server.call("SLOWLOG", "GET", 10_000, key=key)
        scripts = [row[2] / 1000 for row in slow if row[3][0].upper().startswith(b"EVAL")]
        looks: list[float] = []
        for _ in range(200):
            began = time.perf_counter()
            await look(stream, 0, "trim")
            looks.append((time.perf_counter() - began) * 1000)
        return {
            "entries": entries,
            "bytes_each": size,
            "trimmed": found.trimmed,
            "longest_step_ms": {
                "in the server": max(scripts, default=0.1),
                "there and back": janitor.stats.longest_ms,
            },
            "other_client_ms": {"median": statistics.median(waits), "longest": max(waits)},
            "idle_look_ms": statistics.median(looks),
        }


# --- appends -------------------------------------------------------------------------------------


async def appends(url: str, rounds: int) -> dict[str, float]:
    """Server µs per event in rows, by INFO commandstats, in turns."""
    events = [
        Event(f"meter-{n % 500}", 1_700_000_000_000 + n, {"volts": 230.5, "n": n})
        for n in range(100_000)
    ]
    options: dict[str, dict[str, Any]] = {
        "no limit": {},
        "block": {"max_bytes": 10**10},
        "full ring, no group": {"max_len": 100, "when_full": "ring"},
        "full ring, a group that reads nothing": {"max_len": 100, "when_full": "ring"},
    }
    found: dict[str, list[float]] = {name: [] for name in options}
    async with Server(url) as server:
        for round_ in range(rounds):
            for name, limits in options.items():
                stream_name = f"appends_{name.replace(' ', '_')}_{round_}"
                async with Stream(stream_name, url, **limits) as stream:
                    if "a group" in name:
                        await server.call(
                            "XGROUP", "CREATE", stream_name, "g", 0, "MKSTREAM", key=stream_name
                        )
                    async with Producer(stream) as producer:
                        await (await producer.send_many(events))
                        await server.call("CONFIG", "RESETSTAT", key="")
                        await (await producer.send_many(events))
                    stats = await server.info("", "commandstats")
                usec = sum(
                    int(dict(p.split("=") for p in stats[command].split(","))["usec"])
                    for command in ("cmdstat_evalsha", "cmdstat_eval")
                    if command in stats
                )
                found[name].append(usec / len(events))
                await server.call("UNLINK", stream_name, key=stream_name)
    return {name: statistics.median(values) for name, values in found.items()}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--stall-s", type=float, default=None)
    parser.add_argument("--max-bytes", type=int, default=64_000_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    stall_s = arguments.seconds / 10 if arguments.stall_s is None else arguments.stall_s
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServer(Path(folder), port=0) as server:
            found = {
                "load": await load(server.url, arguments.seconds, stall_s, arguments.max_bytes),
                "steps": [
                    await steps(server.url, "plain", arguments.entries),
                    await steps(server.url, "rows", arguments.entries // 50),
                ],
                "appends_server_us_per_event": await appends(server.url, arguments.rounds),
            }
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
