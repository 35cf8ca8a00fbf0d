"""One side of a measurement, in a process of its own: it produces or consumes and reports what it
took.

    python benchmarks/sides.py SUBJECT produce|consume|send-at|time URL STREAM COUNT [RATE]

It prepares, prints ``ready``, waits for a line on standard input, works, and prints its figures as
JSON: wall and CPU seconds of the work, and what it saw. benchmarks/run.py starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

# Only what is measured is imported beyond this, each in the function that needs it.

DEVICES = 10_000
CHUNK = 5_000
PIPELINE = 1_000
GROUP = "bench"
FIELDS = ("volts", "amps", "temperature")


class Reading(msgspec.Struct):
    """An event as a user declares it."""

    key: str
    time: int
    volts: float
    amps: float
    temperature: float


def columns(count: int, devices: int = DEVICES) -> tuple[list[str], list[int], list[list[float]]]:
    """The same readings for every subject: meters in turn, three numbers that wander as measured
    ones do, with the decimals that meters send."""
    chance = np.random.default_rng(7)
    device = np.arange(count) % devices
    volts = np.round(230 + np.cumsum(chance.normal(0, 0.02, count)) % 10, 1)
    amps = np.round(np.abs(chance.normal(6, 2, count)), 2)
    temperature = np.round(20 + 5 * np.sin(np.arange(count) / 50_000), 1)
    keys = [f"meter-{number:05d}" for number in range(devices)]
    start = 1_767_225_600_000
    return (
        [keys[number] for number in device.tolist()],
        (start + np.arange(count) // 10).tolist(),
        [volts.tolist(), amps.tolist(), temperature.tolist()],
    )


def dicts(count: int, devices: int = DEVICES) -> list[dict[str, Any]]:
    keys, times, values = columns(count, devices)
    return [
        {"key": key, "time": at, "volts": v, "amps": a, "temperature": t}
        for key, at, v, a, t in zip(keys, times, *values, strict=True)
    ]


def table(count: int) -> Any:
    import pyarrow as pa

    keys, times, values = columns(count)
    named = dict(zip(FIELDS, values, strict=True))
    return pa.table({"key": keys, "time": pa.array(times, pa.int64()), **named})


# --- the protocol with run.py --------------------------------------------------------------------


def ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


class Clock:
    """Wall and CPU seconds from its making."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def report(self, events: int, **more: Any) -> None:
        facts = {
            "events": events,
            "wall_s": time.perf_counter() - self.wall,
            "cpu_s": time.process_time() - self.cpu,
            **more,
        }
        print(json.dumps(facts), flush=True)


def paced(rate: int, count: int) -> Iterator[int]:
    """The instants, ns of the monotonic clock, at which events are due."""
    start = time.monotonic_ns() + 20_000_000
    for number in range(count):
        yield start + number * 1_000_000_000 // rate


async def on_time(rate: int, count: int) -> AsyncIterator[int]:
    """The same instants, each as it comes: by the kernel's timers, for an event loop's own go by
    whole milliseconds."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    # os.timerfd_create() comes with Python 3.13.
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    loop.add_reader(timer, came.set)
    try:
        for due in paced(rate, count):
            if due > time.monotonic_ns():
                came.clear()
                # Interval (none) and first instant, each in s and ns; 1: an instant of that clock.
                at = struct.pack("@4l", 0, 0, *divmod(due, 1_000_000_000))
                assert libc.timerfd_settime(timer, 1, at, None) == 0, os.strerror(
                    ctypes.get_errno()
                )
                await came.wait()
                os.read(timer, 8)
            yield due
    finally:
        loop.remove_reader(timer)
        os.close(timer)


class Latencies:
    """From the instant at which an event was due, not at which it went out: a sender that was held
    up does not hide what waited (no coordinated omission)."""

    def __init__(self) -> None:
        from hdrh.histogram import HdrHistogram

        # 1 µs to 60 s, three digits.
        self._found = HdrHistogram(1, 60_000_000, 3)

    def add(self, due_ns: int) -> None:
        self._found.record_value(max(1, (time.monotonic_ns() - due_ns) // 1000))

    def facts(self) -> dict[str, float]:
        marks = {"p50": 50, "p99": 99, "p99.9": 99.9}
        found = {f"{k}_ms": self._found.get_value_at_percentile(v) / 1000 for k, v in marks.items()}
        return {**found, "max_ms": self._found.get_max_value() / 1000}


# --- Standpipe -----------------------------------------------------------------------------------


async def standpipe(subject: str, what: str, url: str, name: str, count: int, rate: int) -> None:
    from standpipe import Batch, Event, Producer, Stream, Worker

    codec = subject.split("-")[1]
    async with Stream(name, url) as stream:
        if what == "produce":
            async with Producer(stream, codec=codec) as producer:
                if codec == "columns":
                    readings = table(count)
                    ready()
                    clock = Clock()
                    await producer.send_table(readings)
                elif subject.endswith("-struct"):
                    structs = [Reading(**each) for each in dicts(count)]
                    ready()
                    clock = Clock()
                    for start in range(0, count, CHUNK):
                        await producer.send_many(structs[start : start + CHUNK])
                elif subject.endswith("-send"):
                    events = [Event.from_mapping(each) for each in dicts(count)]
                    ready()
                    clock = Clock()
                    for event in events:
                        await producer.send(event)
                else:
                    given = dicts(count)
                    ready()
                    clock = Clock()
                    for start in range(0, count, CHUNK):
                        await producer.send_many(given[start : start + CHUNK])
                await producer.flush()
                clock.report(count)
        elif what == "send-at":
            async with Producer(stream, codec=codec) as producer:
                ready()
                clock = Clock()
                async for due in on_time(rate, count):
                    await producer.send(
                        Event("meter", 1_767_225_600_000, {"due": due, "volts": 1.5})
                    )
                await producer.flush()
                clock.report(count)
        else:
            worker = Worker(stream, GROUP)
            seen = 0
            latencies = Latencies() if what == "time" else None

            def done(more: int) -> None:
                nonlocal seen
                seen += more
                if seen >= count:
                    worker.stop()

            if codec == "columns":
                # Once in a worker's life, and a sixth of the seconds that are measured here.
                import pyarrow.compute  # noqa: F401

                @worker.batch
                async def handle_table(batch: Batch) -> None:
                    done(batch.table().num_rows)

            elif subject.endswith("-struct"):

                @worker.batch
                async def handle_structs(readings: list[Reading]) -> None:
                    done(len(readings))

            else:

                @worker.batch
                async def handle(batch: Batch) -> None:
                    events = batch.events
                    if latencies is not None:
                        for event in events:
                            latencies.add(event.fields["due"])  # pyright: ignore[reportArgumentType]
                    done(len(events))

            ready()
            clock = Clock()
            await worker.run()
            clock.report(seen, **(latencies.facts() if latencies else {}))


# --- redis-py, as a careful user writes it -------------------------------------------------------


def redis_py(what: str, url: str, name: str, count: int, rate: int) -> None:
    import redis

    client = redis.Redis.from_url(url)
    if what == "produce":
        given = dicts(count)
        ready()
        clock = Clock()
        for start in range(0, count, PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for each in given[start : start + PIPELINE]:
                pipeline.xadd(name, each)
            pipeline.execute()
        clock.report(count)
        return
    if what == "send-at":
        ready()
        clock = Clock()
        for due in paced(rate, count):
            while (left := due - time.monotonic_ns()) > 0:
                time.sleep(left / 1e9)
            client.xadd(name, {"key": "meter", "time": 1_767_225_600_000, "due": due, "volts": 1.5})
        clock.report(count)
        return
    client.xgroup_create(name, GROUP, "0", mkstream=True)
    latencies = Latencies() if what == "time" else None
    ready()
    clock = Clock()
    seen = 0
    while seen < count:
        reply = client.xreadgroup(GROUP, "worker_01", {name: ">"}, count=PIPELINE, block=1_000)
        for _, entries in reply:
            handled: list[dict[str, Any]] = []
            for _, fields in entries:
                if latencies is not None:
                    latencies.add(int(fields[b"due"]))
                    continue
                handled.append(
                    {
                        "key": fields[b"key"].decode(),
                        "time": int(fields[b"time"]),
                        "volts": float(fields[b"volts"]),
                        "amps": float(fields[b"amps"]),
                        "temperature": float(fields[b"temperature"]),
                    }
                )
            client.xack(name, GROUP, *(entry_id for entry_id, _ in entries))
            seen += len(entries)
    clock.report(seen, **(latencies.facts() if latencies else {}))


# --- FastStream ----------------------------------------------------------------------------------


async def faststream(what: str, url: str, name: str, count: int) -> None:
    import logging

    from faststream import AckPolicy
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(url, logger=None, log_level=logging.ERROR)
    if what == "produce":
        given = dicts(count)
        async with broker:
            await broker.connect()
            ready()
            clock = Clock()
            for start in range(0, count, PIPELINE):
                async with broker._connection.pipeline(transaction=False) as pipeline:
                    for each in given[start : start + PIPELINE]:
                        await broker.publish(each, stream=name, pipeline=pipeline)
                    await pipeline.execute()
            clock.report(count)
        return
    import redis

    # Its own group would begin at the end and skip what is there.
    with contextlib.suppress(redis.ResponseError), redis.Redis.from_url(url) as client:
        client.xgroup_create(name, GROUP, "0", mkstream=True)
    seen, all_seen = 0, asyncio.Event()
    source = StreamSub(name, group=GROUP, consumer="worker_01", batch=True, max_records=PIPELINE)

    @broker.subscriber(stream=source, ack_policy=AckPolicy.ACK)
    async def handle(readings: list[dict[str, Any]]) -> None:
        nonlocal seen
        seen += len(readings)
        if seen >= count:
            all_seen.set()

    async with broker:
        ready()
        clock = Clock()
        await broker.start()
        await all_seen.wait()
        clock.report(seen)


def main() -> None:
    subject, what, url, name, number, *more = sys.argv[1:]
    count, rate = int(number), int(more[0]) if more else 0
    if subject == "redis-py":
        redis_py(what, url, name, count, rate)
        return
    run: Callable[[], Awaitable[None]] = lambda: (  # noqa: E731
        faststream(what, url, name, count)
        if subject == "faststream"
        else standpipe(subject, what, url, name, count, rate)
    )
    uvloop.run(run())  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    # Beside the checkout's own package, whichever is installed.
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
    main()
