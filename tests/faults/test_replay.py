"""Replays go on through cut connections, restarting servers and their own death: no event is left
out and none comes twice."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Producer, Reader, Stream, replay
from standpipe.archive import Archive, Archiver
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.commands import ENV
from tests.servers.entries import events_of, make_events, numbers
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.moving import move_slot

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
FAULTS = ("lost reply", "half a reply", "half a request")


async def send(stream: Stream, count: int, *, first: int = 0, codec: str | None = None) -> None:
    async with Producer(stream, codec=codec) as producer:
        await (await producer.send_many(make_events(count, first=first)))


def require_all_once(found: list[int], count: int) -> None:
    assert len(found) == count
    assert sorted(found) == list(range(count))
    for key in range(10):
        mine = [n for n in found if n % 10 == key]
        assert mine == sorted(mine)


async def numbers_in(stream: Stream) -> list[int]:
    return [event.fields["n"] for shard in await events_of(stream) for _, event in shard]


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_cut_while_reading(name: str, own_server: OwnServer, tmp_path: Path) -> None:
    """With every third exchange of the connection cut, a replay over the seam gives each event
    once, in batches as in tables."""
    server = own_server(name)
    archive = Archive(tmp_path / "archive")
    async with Stream("power", server.url, shards=2) as direct:
        await send(direct, 3_000, codec="plain")
        await Archiver(direct, archive).run()
        for key in direct.keys:
            server.command("XTRIM", key, "MAXLEN", 500)
        await send(direct, 3_000, first=3_000, codec="plain")
    async with (
        Proxy(server.port, seed=1, faults=FAULTS, every=3, late_ms=250) as proxy,
        Stream("power", proxy.url) as stream,
    ):
        found = numbers([event async for event in Reader(stream, archive=archive)])
        require_all_once(found, 6_000)
        found = []
        async for table in Reader(stream, archive=archive).tables():
            found += table.column("n").to_pylist()
        require_all_once(found, 6_000)
        assert sum(proxy.done.values()) > 5


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_cut_while_copying(codec: str, own_server: OwnServer) -> None:
    """Into another stream over a connection that is cut all the time, each event arrives once."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url, shards=2) as direct:
        await send(direct, 4_000, codec="plain")
    async with (
        Proxy(server.port, seed=2, faults=FAULTS, every=4, late_ms=250) as proxy,
        Stream("power", proxy.url) as source,
        Stream("copy", proxy.url, shards=2, codec=codec) as target,
    ):
        done = await replay.to_stream(Reader(source), target, name="copy")
        assert done.events == 4_000
        assert sum(proxy.done.values()) > 10
    async with Stream("copy", server.url) as target:
        require_all_once(await numbers_in(target), 4_000)


async def test_restarts_while_reading(
    server_name: str, own_server: OwnServer, tmp_path: Path
) -> None:
    """A server that is killed again and again while a reader goes over the seam and follows costs
    no event."""
    server = own_server(server_name, appendonly="yes", appendfsync="always")
    archive = Archive(tmp_path / "archive")
    async with Stream("power", server.url, shards=2) as stream:
        await send(stream, 1_000, codec="plain")
        await Archiver(stream, archive).run()
        for key in stream.keys:
            server.command("XTRIM", key, "MAXLEN", 0)
        await send(stream, 1_000, first=1_000, codec="plain")
        found: list[int] = []
        sent = 2_000
        stop = asyncio.Event()

        def handle(event: object) -> None:
            found.append(event.fields["n"])

        reader = Reader(stream, archive=archive, follow=True)
        running = asyncio.create_task(replay.to_handler(reader, handle, stop=stop))
        for _ in range(3):
            await eventually(lambda count=sent: len(found) >= count, 60)
            server.kill()
            server.start()
            await send(stream, 200, first=sent)
            sent += 200
        await eventually(lambda: len(found) >= sent, 60)
        stop.set()
        await asyncio.wait_for(running, 30)
        require_all_once(found, sent)
        assert list(reader.gaps) == []


def start_copying(server: TestServer, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "standpipe", "replay", "power", "--to", "stream:copy",
         "--archive", str(folder), "--speed", "max", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENV | {"STANDPIPE_URL": server.url},
    )  # fmt: skip


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_killed_while_copying(kills: int, own_server: OwnServer, tmp_path: Path) -> None:
    """kill -9 at random moments of a replay into another stream: started again with the same
    command it comes to its end, and each event is there once."""
    server = own_server("valkey-9.1")
    count = 40_000 if kills < 10 else 200_000
    archive = Archive(tmp_path / "archive")
    async with Stream("power", server.url, shards=3) as stream:
        await send(stream, count // 2, codec="plain")
        await Archiver(stream, archive).run()
        for key in stream.keys:
            server.command("XTRIM", key, "MAXLEN", 100)
        await send(stream, count - count // 2, first=count // 2, codec="plain")
    chance = random.Random(kills)
    async with Stream("copy", server.url, shards=2) as target:
        reached = 0
        killed = 0
        while killed < kills:
            process = start_copying(server, tmp_path / "archive")

            async def is_further(least: int = reached) -> bool:
                if process.poll() is not None:  # noqa: B023
                    return True
                lengths = [server.command("XLEN", key) for key in target.keys]
                return sum(lengths) > least

            await eventually(is_further, 60)
            # Somewhere in what it does next.
            await asyncio.sleep(chance.random() * 0.05)
            process.kill()
            await asyncio.to_thread(process.communicate)
            killed += 1
            reached = sum(server.command("XLEN", key) for key in target.keys)
            if process.returncode == 0:
                break
        process = start_copying(server, tmp_path / "archive")
        out, err = await asyncio.to_thread(process.communicate, timeout=120)
        assert process.returncode == 0, err + out
        require_all_once(await numbers_in(target), count)


async def test_a_cluster(cluster: Callable[..., TestCluster], tmp_path: Path) -> None:
    """In a cluster a replay goes over the seam on every shard, also while a slot moves, and into
    a stream whose shards lie on other nodes."""
    found = cluster("valkey-9.1")
    archive = Archive(tmp_path / "archive")
    async with (
        Stream("power", found.url, shards=4) as source,
        Stream("copy", found.url, shards=3) as target,
    ):
        await send(source, 1_000, codec="plain")
        await Archiver(source, archive).run()
        for key in source.keys:
            found.node_of(key).command("XTRIM", key, "MAXLEN", 0)
        await send(source, 1_000, first=1_000, codec="plain")
        seen: list[int] = []
        is_moved = False
        async for batch in Reader(source, archive=archive).batches():
            seen += numbers(batch)
            if len(seen) > 1_000 and not is_moved:
                is_moved = True
                key = source.keys[0]
                move_slot(found, key, next(n for n in found.nodes if n is not found.node_of(key)))
        require_all_once(seen, 2_000)
        done = await replay.to_stream(Reader(source, archive=archive), target, name="x")
        assert done.events == 2_000
        require_all_once(await numbers_in(target), 2_000)
