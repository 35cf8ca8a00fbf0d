"""What a stream's state is said to be is what the server says it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Producer, Stream
from standpipe.clock import now_ms
from standpipe.errors import StreamNotFoundError, WrongTypeError
from standpipe.keyspace import shard_keys
from standpipe.observe import stream_status
from standpipe.wire import Server
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestServer

OwnServer = Callable[..., TestServer]


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


async def test_shards(server: TestServer, wire: Server, stream_name: str) -> None:
    """Each shard has its length, ends, size and dead letters; one that no event has reached is
    empty, which is no fault."""
    async with (
        Stream(stream_name, wire, shards=3, codec="plain") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(make_events(100, keys=1)))
        used = next(s for s in range(3) if server.command("EXISTS", stream.keys[s]))
        server.command("XADD", stream.dead_key(used), "*", "reason", "x")
        status = await stream_status(stream)
    assert (status.name, status.url) == (stream_name, server.url)
    assert abs(status.read_at - now_ms()) < 5_000
    assert [shard.key for shard in status.shards] == list(shard_keys(stream_name, 3))
    for number, shard in enumerate(status.shards):
        assert shard.shard == number and shard.groups == []
        if number != used:
            assert (shard.length, shard.first, shard.last, shard.dead) == (0, None, None, 0)
            assert shard.memory_bytes == 0
            continue
        ids = [row[0] for row in server.command("XRANGE", shard.key, "-", "+")]
        assert (shard.length, shard.first, shard.last) == (100, ids[0], ids[-1])
        assert shard.dead == 1
        assert shard.memory_bytes is not None and shard.memory_bytes > 1_000


async def test_groups(server: TestServer, wire: Server, stream_name: str) -> None:
    """Each group has its lag, what is pending, since when, and with whom."""
    old = now_ms() - 60_000
    for n in range(5):
        server.command("XADD", stream_name, f"{old + n}-0", "n", n)
    for group in ("monitoring_group", "idle_group"):
        server.command("XGROUP", "CREATE", stream_name, group, "0")
    read = ("XREADGROUP", "GROUP", "monitoring_group", "worker_01", "COUNT", 3)
    server.command(*read, "STREAMS", stream_name, ">")
    server.command("XACK", stream_name, "monitoring_group", f"{old}-0")
    async with Stream(stream_name, wire) as stream:
        (shard,) = (await stream_status(stream)).shards
    idle, monitoring = sorted(shard.groups, key=lambda group: group.name)
    knows_lag = server.name != "redis-6.2"
    assert monitoring.name == "monitoring_group"
    assert (monitoring.lag, monitoring.pending) == (2 if knows_lag else None, 2)
    assert monitoring.last_delivered == f"{old + 2}-0"
    assert monitoring.oldest_pending_ms is not None
    assert 59_000 < monitoring.oldest_pending_ms < 70_000
    ((name, pending, idle_ms),) = [(c.name, c.pending, c.idle_ms) for c in monitoring.consumers]
    assert (name, pending) == ("worker_01", 2)
    assert 0 <= idle_ms < 5_000
    # A group that has been given nothing yet lags by all there is, which any server says.
    assert (idle.name, idle.lag, idle.pending) == ("idle_group", 5, 0)
    assert (idle.oldest_pending_ms, idle.consumers) == (None, [])


async def test_what_a_trend_is_made_of(server: TestServer, wire: Server, stream_name: str) -> None:
    """How old the oldest unacknowledged entry is, delivered or not; what was ever added, what was
    requeued for a group, and what the server has computed."""
    old = now_ms() - 60_000
    for n in range(3):
        server.command("XADD", stream_name, f"{old + 10_000 * n}-0", "n", n)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")

    async def group_of(stream: Stream) -> tuple[int | None, int | None]:
        (shard,) = (await stream_status(stream)).shards
        assert shard.added == (None if server.name == "redis-6.2" else 3)
        assert shard.server_cpu_ms is not None and shard.server_cpu_ms > 0
        return shard.groups[0].behind_ms, shard.groups[0].requeued

    read = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", stream_name, ">")
    async with Stream(stream_name, wire) as stream:
        for age in (60_000, 50_000, 40_000):
            for is_delivered in (False, True):
                if is_delivered:
                    server.command(*read)
                behind, requeued = await group_of(stream)
                assert behind is not None and age - 10 <= behind < age + 9_000 and requeued == 0
            server.command("XACK", stream_name, "g", f"{old + 60_000 - age}-0")
        server.command("XADD", stream.requeued_key(0, "g"), "*", "id", "1-0")
        assert await group_of(stream) == (0, 1)
        # Its length is 3, of which one is settled.
        key = stream.requeued_key(0, "g")
        server.command("XADD", key, "*", "id", "2-0")
        server.command("XADD", key, "*", "id", "3-0")
        server.command("XGROUP", "CREATE", key, "g", "0")
        taken = server.command("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", key, ">")
        server.command("XACK", key, "g", taken[0][1][0][0])
        assert await group_of(stream) == (0, 2)


async def test_lag_that_cannot_be_known(server: TestServer, wire: Server, stream_name: str) -> None:
    """Where deletions make the lag unknowable it is None, not a number."""
    for n in range(5):
        server.command("XADD", stream_name, f"{n + 1}-0", "n", n)
    server.command("XGROUP", "CREATE", stream_name, "g", "2-0")
    server.command("XDEL", stream_name, "4-0")
    async with Stream(stream_name, wire) as stream:
        (shard,) = (await stream_status(stream)).shards
    assert shard.groups[0].lag is None


async def test_memory_that_may_not_be_asked(server_name: str, own_server: OwnServer) -> None:
    """A user who may not run MEMORY USAGE sees the rest."""
    server = own_server(server_name)
    server.command("XADD", "power", "*", "volts", 1)
    server.command("ACL", "SETUSER", "viewer", "on", ">pw", "~*", "+@all", "-memory")
    async with Stream("power", f"redis://viewer:pw@127.0.0.1:{server.port}") as stream:
        (shard,) = (await stream_status(stream)).shards
    assert (shard.length, shard.memory_bytes) == (1, None)


async def test_what_is_no_stream(server: TestServer, wire: Server, stream_name: str) -> None:
    """A stream that is not there, or a key that is none, is an error that says so."""
    async with Stream(stream_name, wire) as stream:
        with pytest.raises(StreamNotFoundError, match=stream_name):
            await stream_status(stream)
        server.command("SET", stream_name, "text")
        with pytest.raises(WrongTypeError):
            await stream_status(stream)


async def test_cluster(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """In a cluster the shards of all nodes are seen."""
    found = cluster(server_name)
    async with (
        Stream("power", found.url, shards=6, codec="plain") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(make_events(600, keys=60)))
        status = await stream_status(stream)
    assert sum(shard.length for shard in status.shards) == 600
    assert all(shard.length for shard in status.shards)
