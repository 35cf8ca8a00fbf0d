"""``standpipe bench``: what this machine and this server do with a stream of your kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.running import Json, Url, command, print_json, run_async, settings_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from standpipe.stream import Stream

EXAMPLE = "Example: standpipe bench --url redis://127.0.0.1:6390 --codec rows --events 500000"

DEVICES = 10_000
CHUNK = 5_000
RATE = 1_000
SECONDS = 3


@command
def bench(
    url: Url = None,
    codec: Annotated[
        str | None, typer.Option("--codec", help="plain, rows or columns [default: rows]")
    ] = None,
    events: Annotated[int, typer.Option("--events", min=1_000, max=50_000_000)] = 200_000,
    shards: Annotated[int, typer.Option("--shards", min=1, max=256)] = 1,
    as_json: Json = False,
) -> None:
    """Send, store, deliver and acknowledge events on a stream of its own, which is removed again.

    The readings have a key of 10,000 devices, a time and three numbers. Producing and consuming are
    measured one after the other, in this process; then 1,000 events/s are sent for three seconds
    and timed from when each was due to its handler.
    """
    import os

    from standpipe.codec import check_codec
    from standpipe.stream import Stream

    chosen = check_codec(codec or "rows")

    async def run() -> dict[str, Any]:
        name = f"standpipe_bench_{os.urandom(6).hex()}"
        async with Stream(name, settings_from(url=url).url, codec=chosen, shards=shards) as stream:
            try:
                return await _measure(stream, events)
            finally:
                await _remove(stream)

    found = run_async(run())
    if as_json:
        print_json(found)
    else:
        _print(found)


async def _measure(stream: Stream, count: int) -> dict[str, Any]:
    from standpipe.producer import Producer
    from standpipe.worker import Worker

    given = _readings(stream.definition.codec, count)

    async def produce() -> None:
        async with Producer(stream) as producer:
            if stream.definition.codec == "columns":
                await producer.send_table(given)
            else:
                for start in range(0, count, CHUNK):
                    await producer.send_many(given[start : start + CHUNK])
            await producer.flush()

    worker, seen = Worker(stream, "bench"), 0

    @worker.batch
    async def handle(batch: Any) -> None:
        nonlocal seen
        is_table = stream.definition.codec == "columns"
        seen += batch.table().num_rows if is_table else len(batch.events)
        if seen >= count:
            worker.stop()

    found: dict[str, Any] = {
        "stream": {"codec": stream.definition.codec, "shards": stream.shards, "events": count},
        "produce": await _timed(stream, count, produce),
        "consume": await _timed(stream, count, worker.run),
    }
    used = [await stream.server.call("MEMORY", "USAGE", key, key=key) for key in stream.keys]
    found["server_bytes_per_event"] = sum(each or 0 for each in used) / count
    found["latency_ms"] = await _latency(stream)
    return found


def _readings(codec: str, count: int) -> Any:
    """Lists are made before the clock starts."""
    import random

    chance = random.Random(7)
    numbers = [
        (230 + chance.randrange(100) / 10, chance.randrange(1200) / 100, chance.randrange(250) / 10)
        for _ in range(min(count, 100_000))
    ]
    rows = [
        {"key": f"meter-{n % DEVICES:05d}", "time": 1_767_225_600_000 + n // 10,
         "volts": volts, "amps": amps, "temperature": temperature}
        for n in range(count)
        for volts, amps, temperature in (numbers[n % len(numbers)],)
    ]  # fmt: skip
    if codec != "columns":
        return rows
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


async def _timed(
    stream: Stream, count: int, work: Callable[[], Awaitable[Any]]
) -> dict[str, float]:
    import time

    server, cpu, wall = await _server_s(stream), time.process_time(), time.perf_counter()
    await work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "events_per_s": count / wall,
        "client_cpu_us": cpu / count * 1e6,
        "server_cpu_us": (await _server_s(stream) - server) / count * 1e6,
    }


async def _server_s(stream: Stream) -> float:
    """CPU seconds of the servers that hold the shards."""
    total = 0.0
    seen: set[str] = set()
    for key in stream.keys:
        info = await stream.server.info(key, "all")
        if info["run_id"] not in seen:
            seen.add(info["run_id"])
            total += float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
    return total


async def _latency(stream: Stream) -> dict[str, float]:
    import asyncio
    import time

    from standpipe.consumer import cancel_tasks
    from standpipe.event import Event
    from standpipe.groups import create_group
    from standpipe.producer import Producer
    from standpipe.worker import Worker

    count = RATE * SECONDS
    taken: list[float] = []
    await create_group(stream, "latency", "end")
    worker, is_warm = Worker(stream, "latency"), asyncio.Event()

    @worker.each
    async def handle(event: Event) -> None:
        if not is_warm.is_set():
            is_warm.set()
            return
        taken.append(time.monotonic() * 1000 - float(event.fields["due"]))  # pyright: ignore[reportArgumentType]  sent below
        if len(taken) >= count:
            worker.stop()

    running = asyncio.create_task(worker.run())
    try:
        async with Producer(stream) as producer:
            # The first event brings connections and scripts up; it does not count.
            await producer.send(Event("meter", 1_767_225_600_000, {"due": 0.0}))
            await is_warm.wait()
            began = time.monotonic()
            for number in range(count):
                # From when it was due, not from when it went out: what was held up counts.
                due = began + number / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                event = Event(f"meter-{number}", 1_767_225_600_000, {"due": due * 1000})
                await producer.send(event)
        await running
    finally:
        # One that is still at work would write again what is about to be removed.
        await cancel_tasks([running])
    taken.sort()
    marks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: taken[min(count - 1, int(share * count))] for name, share in marks.items()}


async def _remove(stream: Stream) -> None:
    # By its name, which no other has: producers' numbers stand beside it as well.
    for key in await stream.server.scan(f"*{stream.name}*"):
        await stream.server.call("UNLINK", key, key=key.decode())


def _print(found: dict[str, Any]) -> None:
    from standpipe.cli.tables import console, new_table

    kind = found["stream"]
    title = f"{kind['events']:,} events, {kind['codec']}, {kind['shards']} shards"
    table = new_table(title, "", "events/s", "CPU µs here", "CPU µs server", texts=("",))
    for side in ("produce", "consume"):
        each = found[side]
        table.add_row(
            side,
            f"{each['events_per_s']:,.0f}",
            f"{each['client_cpu_us']:.2f}",
            f"{each['server_cpu_us']:.2f}",
        )
    console().print(table)
    typer.echo(f"memory of the server  {found['server_bytes_per_event']:.1f} bytes/event")
    told = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["latency_ms"].items())
    typer.echo(f"due to handled, at {RATE:,}/s  {told}")
