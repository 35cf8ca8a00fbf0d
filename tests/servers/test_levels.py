"""A receipt resolves at the level that was asked for, or says what is missing; never below it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import (
    ConfigError,
    NotAcknowledgedError,
    NotDurableError,
    StandpipeError,
    StreamFullError,
    TooFewReplicasError,
    UnknownOutcomeError,
)
from tests.conditions import eventually, eventually_sync
from tests.faults.proxy import Proxy
from tests.servers.entries import make_events, numbers_at, require_once_in_order
from tests.servers.fleet import TestCluster, TestSentinel, TestServer

OwnServer = Callable[..., TestServer]
pytestmark = pytest.mark.servers

WAITAOF = ("valkey-8.1", "redis-8.2", "valkey-9.1")
TRUE_WAITAOF = ("redis-8.2",)
"""Valkey's answers that a write is on disk before it is, when it syncs once a second."""


def replica_of(own_server: OwnServer, primary: TestServer) -> TestServer:
    replica = own_server(primary.name, replicaof=f"127.0.0.1 {primary.port}")
    eventually_sync(lambda: "state=online" in primary.cli("INFO", "replication"), 20)
    return replica


def calls(server: TestServer, command: str) -> int:
    found = server.info("commandstats").get(f"cmdstat_{command}", "calls=0,")
    return int(found.partition("calls=")[2].partition(",")[0])


# --- fsync ---------------------------------------------------------------------------------------


async def test_fsync(server_name: str, own_server: OwnServer) -> None:
    """With the level fsync a receipt resolves when the primary's disk has the event: as WAITAOF
    says, or because the server syncs before it replies."""
    sync = "everysec" if server_name in TRUE_WAITAOF else "always"
    server = own_server(server_name, appendonly="yes", appendfsync=sync)
    async with Stream("power", server.url) as stream:
        async with Producer(stream, acknowledge="fsync") as producer:
            await (await producer.send_many(make_events(2_000)))
            assert producer.stats.acknowledged == 2_000
        assert (calls(server, "waitaof") > 0) == (server_name in WAITAOF)
        require_once_in_order(await numbers_at(stream.server, "power"), 2_000)


async def test_fsync_that_does_not_come(own_server: OwnServer) -> None:
    """A server that leaves syncing to the system never says that it has; the receipt fails at its
    deadline, says that the event is in memory alone, and the event is there once."""
    server = own_server("redis-8.2", appendonly="yes", appendfsync="everysec")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, acknowledge="fsync", deadline_ms=1_500) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        server.command("CONFIG", "SET", "appendfsync", "no")
        with pytest.raises(NotDurableError, match="in the memory of the primary, not yet on its"):
            await (await producer.send(make_events(1, first=1)[0]))
        server.command("CONFIG", "SET", "appendfsync", "everysec")
        await (await producer.send(make_events(1, first=2)[0]))
        assert await numbers_at(stream.server, "power") == [0, 1, 2]


async def test_fsync_that_the_server_cannot_give(server_name: str, own_server: OwnServer) -> None:
    """Without an append-only file, or where the server would sync later than it replies and cannot
    be asked, starting is an error that says what to set."""
    server = own_server(server_name, appendonly="no")
    async with Stream("power", server.url) as stream:
        with pytest.raises(ConfigError, match="appendonly is off") as caught:
            await Producer(stream, acknowledge="fsync").start()
        assert "appendonly yes" in caught.value.hint
        server.command("CONFIG", "SET", "appendonly", "yes")
        if server_name in TRUE_WAITAOF:
            async with Producer(stream, acknowledge="fsync") as producer:
                await (await producer.send(make_events(1)[0]))
        else:
            why = "comes too early" if server_name in WAITAOF else "is missing"
            for _ in range(10):
                with pytest.raises(ConfigError, match=f"{why}.*appendfsync is everysec") as caught:
                    await Producer(stream, acknowledge="fsync").start()
                assert "appendfsync always" in caught.value.hint
        server.command("CONFIG", "SET", "appendfsync", "no")
        with pytest.raises(ConfigError, match="appendfsync is no"):
            await Producer(stream, acknowledge="fsync").start()


@pytest.mark.faults
async def test_fsync_is_no_lie(server_name: str, own_server: OwnServer) -> None:
    """Every receipt at the level fsync has a sync of the server's file behind it, as the system
    calls of the server show."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    sync = "everysec" if server_name in TRUE_WAITAOF else "always"
    server = own_server(server_name, appendonly="yes", appendfsync=sync)
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, acknowledge="fsync") as producer,
    ):
        trace = await asyncio.create_subprocess_exec(
            *(strace, "-f", "-e", "trace=fsync,fdatasync", "-p", str(server.pid)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert trace.stderr is not None
        if b"attached" not in await trace.stderr.readline():
            await trace.wait()
            pytest.skip("strace may not trace here")
        for n in range(3):
            await (await producer.send(make_events(1, first=n)[0]))
        trace.terminate()
        _, traced = await trace.communicate()
        assert traced.count(b"sync(") >= 3


async def test_fsync_whose_policy_cannot_be_read(own_server: OwnServer) -> None:
    """A user who may not read the policy of a server without WAITAOF is told so."""
    server = own_server("redis-6.2", appendonly="yes", appendfsync="always")
    server.command("ACL", "SETUSER", "meter", "on", ">secret", "~*", "+@all", "-config")
    async with Stream("power", f"redis://meter:secret@127.0.0.1:{server.port}") as stream:
        with pytest.raises(ConfigError, match=r"appendfsync is unreadable \(.*NOPERM"):
            await Producer(stream, acknowledge="fsync").start()


async def test_file_that_is_switched_off(own_server: OwnServer) -> None:
    """When the append-only file is switched off later, receipts fail instead of promising less."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, acknowledge="fsync", deadline_ms=300) as producer,
    ):
        server.command("CONFIG", "SET", "appendonly", "no")
        with pytest.raises(NotDurableError, match="appendonly is disabled"):
            await (await producer.send(make_events(1)[0]))


# --- replicas ------------------------------------------------------------------------------------


async def test_replicas(server_name: str, own_server: OwnServer) -> None:
    """With the level replicas=1 the replica has each event at the moment when its receipt resolves;
    while it does not answer receipts wait, and fail at their deadline with what is known."""
    primary = own_server(server_name)
    replica = replica_of(own_server, primary)
    async with (
        Stream("power", primary.url, codec="plain") as stream,
        Producer(stream, acknowledge="replicas=1", deadline_ms=1_000) as producer,
    ):
        for n in range(50):
            await (await producer.send(make_events(1, first=n)[0]))
            assert replica.command("XLEN", "power") == n + 1
        replica.stop()
        with pytest.raises(NotDurableError, match="in the memory of 0 of 1 replicas"):
            await (await producer.send(make_events(1, first=50)[0]))
        late = await producer.send(make_events(1, first=51)[0])
        await eventually(lambda: primary.command("XLEN", "power") == 52)
        assert not late.is_done
        replica.cont()
        await late
        assert replica.command("XLEN", "power") == 52
        require_once_in_order(await numbers_at(stream.server, "power"), 52)


@pytest.mark.parametrize("server_name", WAITAOF)
async def test_reply_that_was_lost(server_name: str, own_server: OwnServer) -> None:
    """A block that is recognised after its connection was cut is not acknowledged before the
    replica has it: the server would say so, since the new connection has written nothing."""
    primary = own_server(server_name)
    replica = replica_of(own_server, primary)
    async with (
        Stream("power", primary.url, codec="plain") as stream,
        Producer(stream, acknowledge="replicas=1", deadline_ms=60_000) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        replica.stop()
        receipt = await producer.send(make_events(1, first=1)[0])
        await eventually(lambda: primary.command("XLEN", "power") == 2)
        before = calls(primary, "wait")
        primary.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        # A call that has ended without the replica.
        await eventually(lambda: calls(primary, "wait") > before)
        await eventually(lambda: receipt.is_done or producer.stats.retries > 1)
        assert not receipt.is_done
        replica.cont()
        await receipt
        assert producer.stats.recognised == 1
        assert replica.command("XLEN", "power") == 2
        require_once_in_order(await numbers_at(stream.server, "power"), 2)


async def test_too_few_replicas(server_name: str, own_server: OwnServer) -> None:
    """With fewer replicas than the level asks for, starting is an error."""
    primary = own_server(server_name)
    replica_of(own_server, primary)
    async with Stream("power", primary.url) as stream:
        with pytest.raises(TooFewReplicasError, match=r"1 replicas are connected.*asks for 2"):
            await Producer(stream, acknowledge="replicas=2").start()


async def test_both(own_server: OwnServer) -> None:
    """Both levels hold together: disk and replica."""
    primary = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    replica = replica_of(own_server, primary)
    async with (
        Stream("power", primary.url) as stream,
        Producer(stream, acknowledge="fsync,replicas=1", deadline_ms=3_000) as producer,
    ):
        # The replica may be busy with its first synchronisation for most of a second.
        await (await producer.send(make_events(1)[0]))
        assert replica.command("XLEN", "power") == 1
        assert calls(primary, "waitaof") == calls(primary, "wait") > 0
        replica.stop()
        with pytest.raises(NotDurableError, match="on its disk, in the memory of 0 of 1 replicas"):
            await (await producer.send(make_events(1, first=1)[0]))
        replica.cont()


async def test_cluster(cluster: Callable[..., TestCluster]) -> None:
    """In a cluster each shard waits for the replicas of its own node."""
    found = cluster("valkey-9.1", replicas=1)
    async with Stream("power", found.url, shards=6) as stream:

        async def started() -> Producer | None:
            try:
                return await Producer(stream, acknowledge="replicas=1").start()
            except TooFewReplicasError:
                return None

        producer = await eventually(started, 20)
        await (await producer.send_many(make_events(600, keys=60)))
        assert sum(calls(node, "wait") > 0 for node in found.nodes) == 3
        await producer.close()


@pytest.mark.faults
async def test_failover_takes_nothing(sentinel: Callable[..., TestSentinel]) -> None:
    """What was acknowledged at replicas=1 is still there after the primary died in full flight."""
    found = sentinel("valkey-9.1")
    acknowledged: list[int] = []

    async def feed(producer: Producer) -> None:
        for n in itertools.count():
            receipt = await producer.send(Event(f"m-{n % 7}", 1_700_000_000_000, {"n": n}))
            if n % 10 == 0:
                await receipt
                acknowledged.append(n)

    async with Stream("power", found.url) as stream:
        producer = await Producer(stream, acknowledge="replicas=1", block_events_max=5).start()
        feeding = asyncio.create_task(feed(producer))
        await eventually(lambda: len(acknowledged) > 100, 20)
        found.primary.kill()
        await eventually(lambda: producer.stats.retries > 0)
        # Where the server was hit, all that failed may be in the block that is awaited below.
        with contextlib.suppress(NotAcknowledgedError):
            await producer.close(deadline_ms=100)
        with pytest.raises(StandpipeError):
            await feeding
    eventually_sync(lambda: found.current() is found.replica, 30)
    async with Stream("power", found.replica.url) as stream:
        standing = await numbers_at(stream.server, "power")
        assert set(acknowledged) <= set(standing)
        assert len(set(standing)) == len(standing)


# --- without idempotence -------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "stands"), [("lost reply", [0]), ("half a request", [])])
async def test_unknown_outcome(fault: str, stands: list[int], own_server: OwnServer) -> None:
    """Without idempotence a block whose reply does not come is not sent again: it may have been
    added or not, and the error says that."""
    server = own_server("valkey-9.1")
    async with (
        Proxy(server.port, faults=[fault]) as proxy,
        Stream("power", proxy.url) as stream,
        Producer(stream, idempotent=False) as producer,
        Stream("power", server.url) as direct,
    ):
        proxy.every = 1
        with pytest.raises(UnknownOutcomeError, match="1 events may have been added or not"):
            await (await producer.send(make_events(1)[0]))
        proxy.every = 0
        assert await numbers_at(direct.server, "power") == stands
        assert producer.stats.retries == 0
        # What certainly was not executed is sent again all the same.
        await (await producer.send(make_events(1, first=1)[0]))
        server.command("SCRIPT", "FLUSH")
        await (await producer.send(make_events(1, first=2)[0]))
        assert producer.stats.retries == 1
        assert await numbers_at(direct.server, "power") == [*stands, 1, 2]


def test_spool_needs_idempotence(tmp_path: Path) -> None:
    """What is drained may be on the server already, so it has to be recognised."""
    stream = Stream("power", "redis://127.0.0.1:1")
    with pytest.raises(ConfigError, match="not idempotent"):
        Producer(stream, idempotent=False, spool=tmp_path / "spool")


async def test_each_reply_counts_without_idempotence(own_server: OwnServer) -> None:
    """Of blocks written together one may be refused and the next be added: without numbers the
    server refuses none because of another, and none of those that it has is sent again."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url, codec="plain", max_len=8) as stream,
        Producer(stream, idempotent=False, block_events_max=3, deadline_ms=300) as producer,
    ):
        for n in range(3):
            await stream.server.call("XADD", "power", "*", "n", n, key="power")
        # Three fit, three more do not, and two do: the second block alone is refused.
        first, second = make_events(6)[:3], make_events(6)[3:]
        receipts = [await producer.send_many(first), await producer.send_many(second)]
        third = await producer.send_many(
            [Event("other", 1_700_000_000_000, {"n": n}) for n in (6, 7)]
        )
        await receipts[0]
        await third
        with pytest.raises(StreamFullError):
            await receipts[1]
        assert await numbers_at(stream.server, "power") == [0, 1, 2, 0, 1, 2, 6, 7]
