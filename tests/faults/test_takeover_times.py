"""How long the events of a killed worker lie, with the values that workers have by default."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Event, Stream
from standpipe.keyspace import partition, side_key
from standpipe.limits import IDLE_MS_MIN, LEASE_MS
from tests.conditions import eventually
from tests.faults.processes import Process
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import send

pytestmark = [pytest.mark.servers, pytest.mark.faults, pytest.mark.slow]
OwnServer = Callable[..., TestServer]
KILLS = 5
SHARDS = 4
LATE_MS = 1_000


def report(mode: str, found_ms: list[float]) -> None:
    rounded = [round(ms) for ms in sorted(found_ms)]
    print(json.dumps({"mode": mode, "takeover ms": rounded}))


async def test_in_a_group(own_server: OwnServer) -> None:
    """What a killed worker held is another's after idle_ms_min and a second at most."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    chance = random.Random(3)

    async def once(number: int) -> float:
        async with Stream(f"s{number}", server.url) as stream:
            key = stream.name

            async def held() -> int:
                rows = await stream.server.call("XPENDING", key, "g", "-", "+", 99, "a", key=key)
                return len(rows)

            await send(stream, make_events(20), "plain")
            dead = Process(server.url, key, "hang", "name=a")
            other: Process | None = None
            try:
                await eventually(lambda: len(dead.numbers("begin")) == 20, 30)
                other = Process(server.url, key, "slow", "name=b")
                due = time.monotonic() + chance.uniform(5, 15)
                await eventually(lambda: time.monotonic() >= due, 30)
                dead.signal(signal.SIGKILL)
                killed = time.monotonic()

                async def is_over() -> bool:
                    return not await held()

                await eventually(is_over, 60)
                return (time.monotonic() - killed) * 1000
            finally:
                dead.end()
                if other is not None:
                    other.end()

    found_ms = await asyncio.gather(*map(once, range(KILLS)))
    report("group", found_ms)
    assert max(found_ms) <= IDLE_MS_MIN + LATE_MS


async def test_in_order(own_server: OwnServer, tmp_path: Path) -> None:
    """A killed worker's shards go on after lease_ms and a second at most."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    chance = random.Random(3)
    log = tmp_path / "log"
    found_ms: list[float] = []
    processes: list[Process] = []

    def start() -> None:
        options = (server.url, "s", str(log), str(LEASE_MS))
        processes.append(Process(*options, module="ordered_process"))

    def rows() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    async def all_handled(stream: Stream, turn: int) -> None:
        """Send an event to each shard, and wait until those are handled."""
        keys: dict[int, str] = {}
        for n in range(200):
            keys.setdefault(partition(f"k{n}", SHARDS), f"k{n}")
        await send(stream, [Event(key, 1 + turn, {"n": turn}) for key in keys.values()])
        await eventually(lambda: sum(row[5] == str(turn) for row in rows()) >= SHARDS, 60)

    async with Stream("s", server.url, shards=SHARDS) as stream:
        try:
            start()
            for turn in range(0, 2 * KILLS, 2):
                start()
                await all_handled(stream, turn)

                def owners() -> set[str]:
                    keys = [side_key(key, "lease:g") for key in stream.keys]
                    return {str(server.command("HGET", key, "owner")) for key in keys}

                # Both have some of them.
                await eventually(lambda: len(owners()) == 2, 60)
                due = time.monotonic() + chance.uniform(0, 2)
                await eventually(lambda due=due: time.monotonic() >= due, 30)
                victim = processes.pop(chance.randrange(2))
                victim.signal(signal.SIGKILL)
                killed = time.monotonic()
                await all_handled(stream, turn + 1)
                found_ms.append((time.monotonic() - killed) * 1000)
                victim.end()
        finally:
            for process in processes:
                process.end()
    report("ordered", found_ms)
    assert max(found_ms) <= LEASE_MS + LATE_MS
