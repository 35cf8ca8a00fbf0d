"""A server that dies, fills up, forgets or moves takes nothing from a producer that is at work."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import AuthenticationError, NotAcknowledgedError, UnknownOutcomeError
from standpipe.keyspace import partition, slot
from tests.conditions import eventually, eventually_sync
from tests.faults.feeder import Feeder
from tests.faults.proxy import Proxy
from tests.servers.entries import (
    TIME,
    events_of,
    make_events,
    numbers,
    numbers_at,
    require_once_in_order,
)
from tests.servers.fleet import TestCluster, TestSentinel, TestServer
from tests.servers.moving import begin_move, end_move

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
CODECS = ("plain", "rows", "columns")


@pytest.mark.parametrize("codec", CODECS)
async def test_killed_server(codec: str, server_name: str, own_server: OwnServer) -> None:
    """A server that syncs its AOF at every write is killed and comes back, twice: every event is
    there once, in order, under the ID that its receipt gave."""
    server = own_server(server_name, appendonly="yes", appendfsync="always")
    async with (
        Stream("power", server.url, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer)
        for _ in range(2):
            await feeder.until(100)
            before = producer.stats.retries
            server.kill()
            await eventually(lambda before=before: producer.stats.retries > before)
            server.start()
        await feeder.until(100)
        await feeder.finish()
        await feeder.require_all_once(stream)
        assert producer.stats.forgotten == producer.stats.failed == 0


async def test_restarted_server_that_keeps_nothing(server_name: str, own_server: OwnServer) -> None:
    """A server without persistence loses what it had; the producer notices, counts it, and what it
    sends from then on is there."""
    server = own_server(server_name)
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(200)
        server.restart()
        await feeder.until(200)
        await feeder.finish()
        assert producer.stats.forgotten == 1
        found = await numbers_at(stream.server, "power")
        require_once_in_order(found, len(found), first=found[0])
        assert found[-1] == len(feeder.events) - 1
        standing = {event_id for event_id, _ in (await events_of(stream))[0]}
        assert {feeder.ids[n] for n in found} == standing


@pytest.mark.parametrize("codec", CODECS)
async def test_forgotten_scripts(codec: str, server_name: str, own_server: OwnServer) -> None:
    """SCRIPT FLUSH while writes are in flight costs a try, and nothing else."""
    server = own_server(server_name)
    async with (
        Stream("power", server.url, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer)
        for _ in range(10):
            await feeder.until(40)
            server.command("SCRIPT", "FLUSH")
        await feeder.until(40)
        await feeder.finish()
        await feeder.require_all_once(stream)
        assert 1 <= producer.stats.retries <= 20
        assert producer.stats.failed == 0


def _fill(server: TestServer) -> Callable[[], object]:
    server.command("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.command("CONFIG", "SET", "maxmemory", "0")


def _break_disk(server: TestServer) -> Callable[[], object]:
    folder = Path(tempfile.mkdtemp())
    server.command("CONFIG", "SET", "dir", str(folder))
    server.command("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(folder)
    server.command("BGSAVE")
    eventually_sync(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
    return lambda: server.command("CONFIG", "SET", "save", "")


def _take_replicas(server: TestServer) -> Callable[[], object]:
    server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    return lambda: server.command("CONFIG", "SET", "min-replicas-to-write", "0")


@pytest.mark.parametrize("refuse", [_fill, _break_disk, _take_replicas])
async def test_server_that_refuses_for_a_while(
    refuse: Callable[[TestServer], Callable[[], object]], server_name: str, own_server: OwnServer
) -> None:
    """Out of memory, without a disk or without replicas, the server refuses; when it is mended the
    waiting events go in, each once and in order."""
    server = own_server(server_name)
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(100)
        mend = refuse(server)
        await eventually(lambda: producer.stats.retries >= 3)
        mend()
        await feeder.until(100)
        await feeder.finish()
        await feeder.require_all_once(stream)
        assert producer.stats.failed == producer.stats.forgotten == 0


async def test_stopped_server(server_name: str, own_server: OwnServer) -> None:
    """A server that hangs for less than the reply's deadline delays the events and nothing more."""
    server = own_server(server_name)
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        for _ in range(3):
            await feeder.until(50)
            server.stop()
            sent = producer.stats.sent
            await eventually(lambda sent=sent: producer.stats.sent > sent + 200)
            server.cont()
        await feeder.until(50)
        await feeder.finish()
        await feeder.require_all_once(stream)
        assert producer.stats.retries == 0


async def test_backlog_of_small_blocks(own_server: OwnServer) -> None:
    """A block of a large backlog costs the server about what one of a small backlog does."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url, codec="columns") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        costs = []
        for count in (20, 1_500):
            server.command("CONFIG", "RESETSTAT")
            server.stop()
            # Each a block of its own: tables are not joined.
            for event in make_events(count):
                await producer.send(event)
            server.cont()
            await producer.flush()
            usec = server.info("commandstats")["cmdstat_evalsha"].split("usec_per_call=")[1]
            costs.append(float(usec.split(",")[0]))
        assert costs[1] < 4 * costs[0]


async def test_cuts_amid_the_replies(own_server: OwnServer) -> None:
    """A connection that is always cut when some of many replies have come makes progress by
    those."""
    server = own_server("valkey-9.1")
    async with (
        Proxy(server.port, faults=["half a reply"]) as proxy,
        Stream("power", proxy.url) as stream,
        Producer(stream, block_events_max=5) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        proxy.every = 1
        try:
            await producer.send_many(make_events(200, first=1))
            await eventually(lambda: producer.stats.acknowledged > 100, 3)
        finally:
            proxy.every = 0


async def test_password_that_changes(own_server: OwnServer) -> None:
    """A user who loses access while sending is told at the receipts: no retry mends that."""
    server = own_server("valkey-9.1")
    server.command("ACL", "SETUSER", "meter", "on", ">secret", "~*", "+@all")
    url = f"redis://meter:secret@127.0.0.1:{server.port}"
    async with Stream("power", url) as stream:
        producer = await Producer(stream).start()
        await (await producer.send(make_events(1)[0]))
        server.command("ACL", "SETUSER", "meter", "resetpass", ">other")
        server.command("CLIENT", "KILL", "USER", "meter")
        with pytest.raises((AuthenticationError, UnknownOutcomeError), match="WRONGPASS"):
            # Unknown if it was written just before the server cut the connection.
            await (await producer.send(make_events(1)[0]))
        await producer.send(make_events(1)[0])
        with pytest.raises(NotAcknowledgedError, match="WRONGPASS"):
            await producer.close()


# --- several nodes -------------------------------------------------------------------------------


async def test_sentinel_failover(sentinel: Callable[..., TestSentinel]) -> None:
    """When the primary dies under a Sentinel, the producer goes on at the new one; nothing is there
    twice, and what the failover has lost is counted."""
    found = sentinel("valkey-9.1")
    await _require_replicating(found.primary, found.replica)
    async with Stream("power", found.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(200)
        found.primary.kill()
        await feeder.until(200, 30)
        await feeder.finish()
        await _require_once_after_failover(feeder, stream, producer)


async def test_cluster_failover(cluster: Callable[..., TestCluster]) -> None:
    """So in a cluster, where the shards of the other nodes are not held up by it."""
    found = cluster("valkey-9.1", replicas=1)
    for replica in found.nodes[3:]:
        port = int(replica.info("replication")["master_port"])
        await _require_replicating(next(n for n in found.nodes if n.port == port), replica)
    async with (
        Stream("power", found.url, shards=6) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer, keys=60)
        await feeder.until(500)
        dead = found.node_of(stream.keys[0])
        dead.kill()
        await feeder.until(500, 40)
        await feeder.finish()
        await stream.server.refresh()
        await _require_once_after_failover(feeder, stream, producer)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_slot_that_moves(name: str, codec: str, cluster: Callable[..., TestCluster]) -> None:
    """While a shard's slot moves to another node, with entries and the memory of its producers, the
    events wait or follow: each is there once, in order."""
    found = cluster(name)
    async with (
        Stream("power", found.url, shards=4, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer, keys=40)
        key = stream.keys[0]
        await feeder.until(200)
        target = next(node for node in found.nodes if node is not found.node_of(key))
        begin_move(found, key, target)
        await feeder.until(60)
        end_move(found, key, target)
        await feeder.until(400)
        await feeder.finish()
        assert found.node_of(key) is target
        await feeder.require_all_once(stream)
        assert producer.stats.failed == producer.stats.forgotten == 0


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_slot_that_stays_half_moved(name: str, cluster: Callable[..., TestCluster]) -> None:
    """While a slot is on its way, its node answers TRYAGAIN when it has only one of the keys that
    an append touches, and ASK when it has none: producers, new ones too, wait for the end of the
    move, and everything is there once."""
    found = cluster(name)
    async with (
        Stream("power", found.url, codec="rows") as stream,
        Producer(stream) as producer,
        Producer(stream) as newcomer,
    ):
        feeder = Feeder(producer)
        await feeder.until(200)
        source = found.node_of("power")
        target = next(node for node in found.nodes if node is not source)
        begin_move(found, "power", target)
        source.command("MIGRATE", "127.0.0.1", target.port, "power", 0, 10_000)
        # Redis 6.2 says ASK for both.
        answer = "ASK" if name == "redis-6.2" else "TRYAGAIN"
        await eventually(lambda: f"errorstat_{answer}" in source.info("errorstats"), what=answer)
        number = slot("power")
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", number, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
        source.command("CONFIG", "RESETSTAT")
        await eventually(lambda: "errorstat_ASK" in source.info("errorstats"), what="ASK")
        receipt = await newcomer.send(Event("new", TIME, {"n": -1}))
        await eventually(lambda: newcomer.stats.retries >= 2)
        end_move(found, "power", target)
        moved = time.monotonic()
        last = await receipt
        await feeder.until(1)
        print(f"events go in {time.monotonic() - moved:.1f} s after the move")
        await feeder.until(200)
        await feeder.finish()
        standing = (await events_of(stream))[0]
        assert [event_id for event_id, event in standing if event.key == "new"] == [last]
        mine = [(event_id, event) for event_id, event in standing if event.key != "new"]
        assert numbers(event for _, event in mine) == list(range(len(feeder.events)))
        assert [event_id for event_id, _ in mine] == [feeder.ids[n] for n in range(len(mine))]
        for one in (producer, newcomer):
            assert one.stats.failed == one.stats.forgotten == 0


async def _require_replicating(primary: TestServer, replica: TestServer) -> None:
    """Wait until the replica takes writes as they come: one that is online may still hold off."""
    primary.command("PUBLISH", "any", "write")

    def has_caught_up() -> bool:
        told = int(primary.info("replication")["master_repl_offset"])
        return 0 < told <= int(replica.info("replication")["slave_repl_offset"])

    await eventually(has_caught_up)


async def _require_once_after_failover(feeder: Feeder, stream: Stream, producer: Producer) -> None:
    """Nothing twice, all in order, and nothing missing but what the failover itself can lose: some
    last acknowledged writes, which the producer then counts."""
    missing = 0
    for shard, standing in enumerate(await events_of(stream)):
        mine = [
            n for n, event in enumerate(feeder.events)
            if partition(event.key, stream.shards) == shard
        ]  # fmt: skip
        found = numbers(event for _, event in standing)
        assert found == sorted(set(found))
        missing += len(set(mine) - set(found))
        for event_id, event in standing:
            assert feeder.ids[event.fields["n"]] == event_id
    assert missing == 0 or producer.stats.forgotten
    assert missing < 100
