"""Retention: what goes and what stays, who keeps it so, and what is said about it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import pytest

from standpipe import Event, Producer, Stream, Worker
from standpipe.clock import now_ms
from standpipe.errors import (
    ConfigError,
    NotPermittedError,
    ServerNearlyFullError,
    StreamFullError,
    StreamNotFoundError,
)
from standpipe.holding import what_holds
from standpipe.observe import stream_status, watch_memory
from standpipe.retention import Janitor, Janitors, find_streams, janitor_of
from standpipe.retention import janitor as janitor_module
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.commands import run
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.working import calls, running

OwnServer = Callable[..., TestServer]
pytestmark = pytest.mark.servers
HOUR_MS = 3_600_000


def add(server: TestServer, key: str, count: int, *, ms: int | None = None) -> list[str]:
    """Plain entries of now, or of another time, which has to be the first."""
    start = now_ms() if ms is None else ms
    return [server.command("XADD", key, f"{start}-{n + 1}", "n", n) for n in range(count)]


def read(server: TestServer, key: str, group: str, consumer: str, count: int) -> list[str]:
    ((_, rows),) = server.command(
        "XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", key, ">"
    )
    return [row[0] for row in rows]


def left(server: TestServer, key: str) -> list[str]:
    return [row[0] for row in server.command("XRANGE", key, "-", "+")]


# --- what goes -----------------------------------------------------------------------------------


async def test_age(server: TestServer, stream_name: str) -> None:
    """What is older than max_age goes to the entry, when all groups and the archive are done."""
    async with Stream(stream_name, server.url, codec="plain", max_age_ms=HOUR_MS) as stream:
        old = add(server, stream_name, 250, ms=now_ms() - 2 * HOUR_MS)
        new = add(server, stream_name, 10)
        server.command("XGROUP", "CREATE", stream_name, "g", 0)
        janitor = Janitor(stream)
        await janitor.once()
        assert left(server, stream_name) == old + new
        given = read(server, stream_name, "g", "c", 120)
        server.command("XACK", stream_name, "g", *given[:30])
        await janitor.once()
        assert left(server, stream_name) == old[30:] + new
        server.command("XACK", stream_name, "g", *given)
        await janitor.once()
        assert left(server, stream_name) == old[120:] + new
        server.command("XGROUP", "DESTROY", stream_name, "g")
        server.command("SET", stream.archived_key(0), old[199])
        await janitor.once()
        assert left(server, stream_name) == old[200:] + new
        server.command("DEL", stream.archived_key(0))
        await janitor.once()
        assert left(server, stream_name) == new
        assert janitor.stats.trimmed == 250 and janitor.stats.lost == 0
        assert (await stream_status(stream)).shards[0].trimmed == 250


async def test_a_group_without_anything_to_read(server: TestServer, stream_name: str) -> None:
    """An idle stream may become empty, and a group that is created at 0 then gets what comes."""
    async with Stream(stream_name, server.url, max_age_ms=1_000) as stream:
        add(server, stream_name, 3, ms=now_ms() - HOUR_MS)
        server.command("XGROUP", "CREATE", stream_name, "g", "$")
        assert (await Janitor(stream).once())[0].trimmed == 3
        assert left(server, stream_name) == []
        server.command("XGROUP", "CREATE", stream_name, "late", 0)
        new = add(server, stream_name, 1)
        assert read(server, stream_name, "late", "c", 5) == new


async def test_room_for_producers(server: TestServer, stream_name: str) -> None:
    """What is acknowledged is kept as far as the limits go, less what producers need: none waits
    for room that nobody makes."""
    async with (
        Stream(stream_name, server.url, codec="plain", max_len=100) as stream,
        Producer(stream, deadline_ms=60_000) as producer,
    ):
        server.command("XGROUP", "CREATE", stream_name, "g", 0, "MKSTREAM")
        sending = asyncio.create_task(_send(producer, 1_000))
        janitor = asyncio.create_task(Janitor(stream).run())
        handled = 0
        while handled < 1_000:
            reply = server.command(
                "XREADGROUP", "GROUP", "g", "c", "COUNT", 7, "STREAMS", stream_name, ">"
            )
            ids = [row[0] for row in reply[0][1]] if reply else []
            if ids:
                server.command("XACK", stream_name, "g", *ids)
            handled += len(ids)
            assert server.command("XLEN", stream_name) <= 100
            await asyncio.sleep(0)
        await sending
        await eventually(lambda: server.command("XLEN", stream_name) == 50)
        janitor.cancel()
        await asyncio.gather(janitor, return_exceptions=True)


async def _send(producer: Producer, count: int) -> None:
    await (await producer.send_many(make_events(count)))


async def test_after_deletions_by_hand(own_server: OwnServer) -> None:
    """Trimming up to entries that somebody has deleted leaves a stream that the server can save
    and load again."""
    server = own_server("redis-8.2", save="", appendonly="no")
    async with Stream("power", server.url, max_len=4) as stream:
        ids = add(server, "power", 12)
        server.command("XGROUP", "CREATE", "power", "g", 0)
        server.command("XACK", "power", "g", *read(server, "power", "g", "c", 7))
        server.command("XDEL", "power", *ids[6:9], ids[11])
        await Janitor(stream).once()
        server.command("XACK", "power", "g", *read(server, "power", "g", "c", 7))
        await Janitor(stream).once()
        there = left(server, "power")
        assert server.command("DEBUG", "RELOAD")
        assert left(server, "power") == there


# --- a ring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_a_ring_counts_events_per_group(
    codec: str, server: TestServer, stream_name: str
) -> None:
    """Each group loses the events that it has not been given or has not acknowledged, and no
    other; status says how many."""
    async with (
        Stream(stream_name, server.url, codec=codec, max_len=40, when_full="ring") as stream,
        Producer(stream, block_events_max=5) as producer,
    ):
        per_entry = 1 if codec == "plain" else 5
        for group in ("done", "held", "unread"):
            server.command("XGROUP", "CREATE", stream_name, group, 0, "MKSTREAM")
        for n in range(40):
            await (await producer.send_many(make_events(per_entry, first=n)))
        server.command("XACK", stream_name, "done", *read(server, stream_name, "done", "c", 40))
        given = read(server, stream_name, "held", "c", 40)
        server.command("XACK", stream_name, "held", *given[1::2])
        for n in range(20):
            await (await producer.send_many(make_events(per_entry, first=n)))
        assert left(server, stream_name)[:20] == given[20:]
        groups = (await stream_status(stream)).shards[0].groups
        assert {group.name: group.lost for group in groups} == {
            "done": 0,
            "held": 10 * per_entry,
            "unread": 20 * per_entry,
        }


async def test_a_ring_is_lowered(server: TestServer, stream_name: str) -> None:
    """A limit that is set far below what is there is reached in steps, all of them counted."""
    async with (
        Stream(stream_name, server.url, codec="plain", when_full="ring") as stream,
        Producer(stream) as producer,
    ):
        server.command("XGROUP", "CREATE", stream_name, "g", 0, "MKSTREAM")
        await _send(producer, 3_000)
        await stream.set_limits(max_len=10)
        assert (await Janitor(stream).once())[0].lost == 2_990
        assert server.command("XLEN", stream_name) == 10
        assert server.command("HGET", stream.lost_key(0), "group:g") == "2990"


async def test_a_worker_does_not_count_what_the_ring_has_counted(
    server: TestServer, stream_name: str
) -> None:
    """The server counts an event that a group loses once, whoever finds its pending record."""
    async with (
        Stream(stream_name, server.url, codec="plain", max_len=10, when_full="ring") as stream,
        Producer(stream) as producer,
    ):
        server.command("XGROUP", "CREATE", stream_name, "g", 0, "MKSTREAM")
        await _send(producer, 5)
        ids = read(server, stream_name, "g", "dead", 5)
        await _send(producer, 10)
        assert server.command("HGET", stream.lost_key(0), "group:g") == "5"
        server.command("XCLAIM", stream_name, "g", "dead", 0, *ids, "IDLE", 90_000, "JUSTID")
        worker = Worker(stream, "g", idle_ms_min=100)
        worker.each(lambda _: None)
        async with running(worker):
            await eventually(lambda: server.command("XPENDING", stream_name, "g")[0] == 0)
            await eventually(lambda: worker.stats.handled == 10)
        assert server.command("HGET", stream.lost_key(0), "group:g") == "5"


# --- limits that change --------------------------------------------------------------------------


async def test_limits_reach_those_who_run(
    server: TestServer, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running producer goes by new limits within seconds; they stand in the definition."""
    monkeypatch.setattr("standpipe.producer.producer.LIMITS_LOOK_MS", 20)
    async with (
        Stream(stream_name, server.url, codec="plain") as stream,
        Producer(stream, deadline_ms=100) as producer,
        Stream(stream_name, server.url) as other,
    ):
        await _send(producer, 20)
        await other.set_limits(max_len=20)
        await eventually(lambda: stream.definition.max_len == 20)
        with pytest.raises(StreamFullError):
            await _send(producer, 1)
        await other.set_limits(max_len=None, max_bytes=1_000_000, when_full="ring")
        await eventually(lambda: stream.shard_limits == "ring 0 1000000")
        await _send(producer, 1)
    async with Stream(stream_name, server.url) as later:
        assert later.definition.limits == {
            "max_len": None,
            "max_bytes": 1_000_000,
            "max_age_ms": None,
            "when_full": "ring",
        }
    with pytest.raises(ConfigError, match="max_bytes 1000000 on the server") as caught:
        await Stream(stream_name, server.url, max_bytes=2_000_000).open()
    assert "standpipe stream set" in caught.value.hint


async def test_limits_of_many_at_once(server: TestServer, stream_name: str) -> None:
    """Of changes at the same time none is lost: each is made to what the other has left."""
    async with Stream(stream_name, server.url, shards=2) as stream:
        server.command("XADD", stream.keys[0], "*", "n", 1)
        others = [Stream(stream_name, server.url) for _ in range(3)]
        for other in others:
            await other.open()
        changes = ({"max_len": 50}, {"max_age_ms": HOUR_MS}, {"max_bytes": 10**6})
        await asyncio.gather(
            *(other.set_limits(**change) for other, change in zip(others, changes, strict=True))
        )
        await stream.refresh()
        assert stream.definition.limits == {
            "max_len": 50, "max_bytes": 10**6, "max_age_ms": HOUR_MS, "when_full": "block",
        }  # fmt: skip
        assert stream.definition.shards == 2
        with pytest.raises(ConfigError, match="max_bytes is 70000"):
            await stream.set_limits(max_bytes=70_000)
        for other in others:
            await other.close()


async def test_another_stream_under_the_name(server: TestServer, stream_name: str) -> None:
    """A definition that differs in more than its limits is an error, not something to go by."""
    async with Stream(stream_name, server.url, shards=2) as stream:
        server.command("SET", f"{{{stream_name}}}:definition", '{"shards":4,"max_len":99}')
        with pytest.raises(ConfigError, match="another definition"):
            await stream.refresh()
        assert stream.definition.max_len is None
        with pytest.raises(ConfigError, match="another definition"):
            await Janitor(stream).run()


async def test_limits_of_nothing(server: TestServer, stream_name: str) -> None:
    """A name under which nothing stands is an error: a definition would be made for a typo."""
    async with Stream(stream_name, server.url) as stream:
        with pytest.raises(StreamNotFoundError):
            await stream.set_limits(max_len=5)
        assert not server.command("EXISTS", f"{{{stream_name}}}:definition")


# --- who does it ---------------------------------------------------------------------------------


async def test_one_at_a_time(server: TestServer, stream_name: str) -> None:
    """Of several janitors one works; when it ends, or dies, another goes on."""
    async with Stream(stream_name, server.url, max_len=10) as stream:
        janitors = [Janitor(stream, lease_ms=300) for _ in range(3)]
        tasks = [asyncio.create_task(janitor.run()) for janitor in janitors]
        await eventually(lambda: any(janitor.stats.looks for janitor in janitors))
        (owner,) = [janitor for janitor in janitors if janitor.is_owner]
        assert await janitor_of(stream) == owner.name
        # As one that is killed: it gives nothing back.
        owner._fence = 0
        owner._lease_ms = 0
        tasks[janitors.index(owner)].cancel()

        async def has_another() -> bool:
            return await janitor_of(stream) not in (None, owner.name)

        await eventually(has_another)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await janitor_of(stream) is None


async def test_a_janitor_that_may_not_trim(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One without the rights says so and leaves the lease to others."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url, max_len=10) as stream:
        add(server, "power", 30)
        server.command("ACL", "SETUSER", "m", "on", ">p", "~*", "+@all", "-xtrim")
        async with Stream("power", f"redis://m:p@127.0.0.1:{server.port}") as weak:
            with pytest.raises(NotPermittedError):
                await Janitor(weak).once()
            with caplog.at_level(logging.WARNING):
                task = asyncio.create_task(Janitor(weak).run())
                await eventually(lambda: "xtrim" in caplog.text.lower())
                strong = asyncio.create_task(Janitor(stream).run())
                await eventually(lambda: server.command("XLEN", "power") < 10)
            for each in (task, strong):
                each.cancel()
            await asyncio.gather(task, strong, return_exceptions=True)


async def test_workers_keep_the_limits(server: TestServer, stream_name: str) -> None:
    """A worker keeps its stream within the limits, unless it is told not to."""
    async with (
        Stream(stream_name, server.url, codec="plain", max_len=20) as stream,
        Producer(stream) as producer,
    ):
        await _send(producer, 20)
        lazy = Worker(stream, "g", retain=False)
        lazy.each(lambda _: None)
        async with running(lazy):
            await eventually(lambda: lazy.stats.handled == 20)
        assert server.command("XLEN", stream_name) == 20
        worker = Worker(stream, "g")
        worker.each(lambda _: None)
        async with running(worker):
            await eventually(lambda: server.command("XLEN", stream_name) == 10)
        assert await janitor_of(stream) is None


async def test_janitors_of_a_cluster(
    cluster: Callable[..., TestCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are found on all nodes, also those that come later, and each is kept."""
    monkeypatch.setattr("standpipe.retention.janitors.RETAIN_FIND_MS", 50)
    found = cluster("valkey-9.1")
    async with Server(found.url) as server:
        task = asyncio.create_task(Janitors(server).run())
        for name in ("one", "two", "three", "tagged{x}"):
            shards = 1 if "{" in name else 3
            async with (
                Stream(name, server, codec="plain", shards=shards, max_len=30) as stream,
                Producer(stream) as producer,
            ):
                await (await producer.send_many([Event(f"m{n}", n, {"n": n}) for n in range(12)]))
                await stream.set_limits(max_len=3)

                async def is_short(stream: Stream = stream) -> bool:
                    sizes = [await server.call("XLEN", key, key=key) for key in stream.keys]
                    return sum(sizes) <= 3

                await eventually(is_short)
        assert await find_streams(server) == ["one", "tagged{x}", "three", "two"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_janitors_beside_keys_of_others(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What looks like a definition and is none keeps no other stream from being kept; it is said
    once, and `retain --once` fails after it has kept the rest."""
    monkeypatch.setattr("standpipe.retention.janitors.RETAIN_FIND_MS", 20)
    server = own_server("valkey-9.1")
    server.command("HSET", "{a}:definition", "n", 1)
    server.command("SET", "{b}:definition", "text")
    async with Server(server.url) as wire, Stream("z", wire, codec="plain", max_len=10):
        add(server, "z", 30)
        task = asyncio.create_task(Janitors(wire).run())
        await eventually(lambda: server.command("XLEN", "z") <= 5)
        scans = calls(server, "scan")
        await eventually(lambda: calls(server, "scan") > scans + 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [text.partition(":")[0] for text in said] == ["retention of a", "retention of b"]
        add(server, "z", 20, ms=now_ms() + 1_000)
        once = await asyncio.to_thread(run, "retain", "--once", url=server.url)
        assert once.returncode == 1 and "a: " in once.stderr and "b: " in once.stderr
        assert server.command("XLEN", "z") == 5


async def test_steps_are_short(server: TestServer, stream_name: str) -> None:
    """However much there is to trim, the server does it in steps of bounded size."""
    async with Stream(stream_name, server.url, max_len=1) as stream:
        server.command(
            "EVAL",
            "for n = 1, 20000 do redis.call('XADD', KEYS[1], '*', 'n', n) end",
            1,
            stream_name,
        )
        found = await janitor_module.look(stream, 0, "trim")
        assert found.trimmed == janitor_module.RETAIN_STEP_ENTRIES and found.is_more
        assert (await Janitor(stream).once())[0].trimmed == 19_000


# --- memory --------------------------------------------------------------------------------------


async def test_producers_wait_before_the_server_is_full(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near maxmemory producers wait; the server never refuses anything for lack of memory. When
    the group catches up the janitor makes room, and every event arrives."""
    server = own_server("valkey-9.1", maxmemory="64mb")
    count, chunk = 250, 1_000
    async with (
        Stream("power", server.url, max_bytes=30_000_000) as stream,
        Producer(
            stream, compress=False, buffer_bytes_max=4_000_000, deadline_ms=60_000
        ) as producer,
    ):
        server.command("XGROUP", "CREATE", "power", "g", 0, "MKSTREAM")
        # What takes the memory is not the stream alone.
        server.command("SETRANGE", "ballast", 45_000_000, "x")

        async def send() -> None:
            for n in range(count):
                events = [
                    Event(f"m{i}", n, {"n": n * chunk + i, "text": "x" * 120}) for i in range(chunk)
                ]
                await producer.send_many(events)
            await producer.flush()

        sending = asyncio.create_task(send())
        await eventually(lambda: isinstance(producer.trouble, ServerNearlyFullError), 30)
        info = server.info("memory")
        assert int(info["used_memory"]) < 0.98 * int(info["maxmemory"])
        server.command("SET", "others", "x" * 1_000)
        seen: set[int] = set()
        worker = Worker(stream, "g", in_flight_bytes_max=500_000)
        worker.each(lambda event: seen.add(event.fields["n"]))
        async with running(worker):
            # Below its own limit nothing of the stream goes: the ballast has to.
            await eventually(lambda: worker.stats.handled > 0, 30)
            server.command("DEL", "ballast")
            await eventually(sending.done, 60)
            await sending
            await eventually(lambda: len(seen) == count * chunk, 30)
        assert server.info("errorstats").get("errorstat_OOM") is None
        assert producer.stats.acknowledged == count * chunk


async def test_a_server_that_evicts_is_not_waited_for(own_server: OwnServer) -> None:
    """With another policy than noeviction there is no end to wait for, so nobody waits."""
    server = own_server("valkey-9.1", **{"maxmemory": "1mb", "maxmemory-policy": "allkeys-lru"})
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, deadline_ms=500) as producer,
    ):
        with pytest.raises(Exception, match="OOM"):
            await _send(producer, 1)
            await _send(producer, 1)
        assert not isinstance(producer.trouble, ServerNearlyFullError)


async def test_retention_of_a_full_server(server_name: str, own_server: OwnServer) -> None:
    """A janitor can take its lease, trim and count on a server that has no memory left."""
    server = own_server(server_name)
    async with Stream("power", server.url, codec="plain", max_len=10, when_full="ring") as stream:
        add(server, "power", 500)
        server.command("XGROUP", "CREATE", "power", "g", 0)
        server.command("CONFIG", "SET", "maxmemory", 1)
        task = asyncio.create_task(Janitor(stream).run())
        await eventually(lambda: server.command("XLEN", "power") == 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert server.command("HGET", stream.lost_key(0), "group:g") == "490"


async def test_where_memory_is_going(own_server: OwnServer) -> None:
    """What a stream takes, how fast it grows, and when its limit and the server's are reached."""
    server = own_server("redis-7.0", maxmemory="100mb")
    async with Stream("power", server.url, shards=2, max_bytes=50_000_000) as stream:
        server.command("XADD", stream.keys[0], "*", "d", "x" * 100_000)
        watching = asyncio.create_task(watch_memory(stream, over_ms=300))
        # Behind the first of the two readings.
        await eventually(lambda: calls(server, "memory|usage") >= 2)
        server.command("XADD", stream.keys[0], "*", "d", "x" * 1_000_000)
        found = await watching
    assert 1_100_000 <= found.bytes <= 1_400_000
    assert 1_000_000 <= found.bytes_per_s * found.over_ms / 1000 <= 1_300_000
    (memory,) = found.servers
    assert memory.shards == [0, 1] and memory.policy == "noeviction"
    assert memory.maxmemory_bytes == 100 * 2**20
    assert memory.full_in_ms is not None and found.limit_in_ms is not None
    # 24 of 25 MB are left, at a million per window.
    assert 15 <= found.limit_in_ms / found.over_ms <= 30
    assert 60 <= memory.full_in_ms / found.over_ms <= 110


# --- what is said --------------------------------------------------------------------------------


async def test_what_holds(server: TestServer, stream_name: str) -> None:
    """A dry run names who holds a stream, in their order, with what they have and what to do."""
    async with Stream(stream_name, server.url, codec="plain", max_len=20) as stream:
        ids = add(server, stream_name, 100)
        for group in ("dead", "slow", "fast"):
            server.command("XGROUP", "CREATE", stream_name, group, 0)
        read(server, stream_name, "fast", "f", 100)
        server.command("XACK", stream_name, "fast", *ids)
        given = read(server, stream_name, "dead", "worker_02", 100)
        server.command("XACK", stream_name, "dead", *given[:10], *given[11:])
        server.command("XACK", stream_name, "slow", *read(server, stream_name, "slow", "s", 40))
        server.command("SET", stream.archived_key(0), ids[59])
        await eventually(
            lambda: (
                server.command("XINFO", "CONSUMERS", stream_name, "dead")[0]["idle"] > 50
                if isinstance(server.command("XINFO", "CONSUMERS", stream_name, "dead")[0], dict)
                else server.command("XINFO", "CONSUMERS", stream_name, "dead")[0][5] > 50
            )
        )
        found = await what_holds(stream, idle_ms_min=50)
    (shard,) = found.shards
    assert (shard.entries, shard.over, shard.goes, shard.is_exact) == (100, 90, 10, True)
    assert [(hold.kind, hold.name) for hold in shard.holds] == [
        ("pending", "dead"), ("unread", "slow"), ("archive", "archive"),
    ]  # fmt: skip
    dead, slow, archive = shard.holds
    assert (dead.consumer, dead.first, dead.waiting, dead.is_first) == (
        "worker_02", ids[10], 1, True,
    )  # fmt: skip
    assert "--from worker_02" in dead.do and "worker_02" in dead.seen
    assert slow.waiting in (60, None) and "--to end" in slow.do
    assert archive.first == ids[59] and "archive run" in archive.do
    assert found.janitor is None
    assert left(server, stream_name) == ids


def test_the_commands(own_server: OwnServer, stream_name: str) -> None:
    """Limits are set, shown and kept from the command line; a dry run changes nothing."""
    server = own_server("redis-6.2")
    add(server, stream_name, 50)
    url = server.url
    set_ = run(
        "stream", "set", stream_name, "--max-age", "7d", "--max-bytes", "2gb", "--max-len", "20",
        "--when-full", "ring", url=url,
    )  # fmt: skip
    assert set_.returncode == 0, set_.stderr
    assert set_.stdout.strip().endswith(
        "max_age 7d, max_bytes 1.9 GiB, max_len 20; when full: ring"
    )
    run("stream", "set", stream_name, "--max-bytes", "none", "--when-full", "block", url=url)
    shown = json.loads(run("stream", "show", stream_name, "--json", url=url).stdout)
    assert (shown["max_age_ms"], shown["max_bytes"], shown["max_len"], shown["when_full"]) == (
        7 * 24 * HOUR_MS, None, 20, "block",
    )  # fmt: skip
    assert shown["entries"] == 50 and shown["bytes"] > 0
    dry = run("retain", stream_name, "--dry-run", url=url)
    assert dry.returncode == 0, dry.stderr
    assert "dry run: nothing was changed" in dry.stdout
    assert "nobody keeps it" in dry.stdout
    server.command("XGROUP", "CREATE", stream_name, "g", 0)
    held = json.loads(run("retain", stream_name, "--dry-run", "--json", url=url).stdout)
    (found,) = held["streams"]
    assert found["shards"][0]["over"] == 40 and found["shards"][0]["goes"] == 0
    assert found["shards"][0]["holds"][0]["name"] == "g"
    server.command("XGROUP", "DESTROY", stream_name, "g")
    once = run("retain", "--once", "--json", url=url)
    assert once.returncode == 0, once.stderr
    rows = {row["stream"]: row for row in json.loads(once.stdout)["streams"]}
    assert rows[stream_name]["trimmed"] == 40
    assert server.command("XLEN", stream_name) == 10
    status = json.loads(run("status", stream_name, "--json", url=url).stdout)
    assert status["memory"]["bytes"] > 0 and status["shards"][0]["trimmed"] == 40
    for wrong in (["--max-len", "no"], [], ["--when-full", "none"], ["--max-age", "1ms"]):
        failed = run("stream", "set", stream_name, *wrong, url=url)
        assert failed.returncode == 2 and "hint:" in failed.stderr, wrong
    missing = run("stream", "set", stream_name + "_none", "--max-len", "5", url=url)
    assert missing.returncode == 1 and "does not exist" in missing.stderr
