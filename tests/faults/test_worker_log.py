"""What a worker logs of trouble with its server: a line for each change of state, no line for a
retry; and what it costs the server meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from standpipe import Batch, Stream, Worker
from tests.conditions import eventually
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestCluster, TestSentinel, TestServer, free_port
from tests.servers.working import running, send

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
MODES = pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])


class Watched:
    """A worker that handles what comes, and the lines that it has logged."""

    def __init__(self, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
        self.worker = worker
        self._caplog = caplog
        self.seen: list[int] = []

    @property
    def records(self) -> list[Any]:
        """Those of the trouble: not of its leases, nor of takeovers."""
        aside = ("shard_owned", "taken_over")
        return [
            record
            for record in self._caplog.records
            if record.name == "standpipe.consumer"
            and record.levelno >= logging.INFO
            and getattr(record, "state", None) not in aside
        ]

    @property
    def states(self) -> list[tuple[str, str | None]]:
        return [(record.state, getattr(record, "error", None)) for record in self.records]

    @property
    def retries(self) -> int:
        return sum(
            record.name == "standpipe.consumer" and "; again in " in record.message
            for record in self._caplog.records
        )

    async def goes_on(self, stream: Stream, number: int) -> None:
        """A new event is handled, and whatever waited is through."""

        async def sent() -> bool:
            await send(stream, make_events(1, first=number))
            return True

        await eventually(sent, 30, ignore=(Exception,))
        await eventually(lambda: number in self.seen, 30)
        await eventually(lambda: not self.states or self.states[-1][0] != "waiting", 30)


@contextlib.asynccontextmanager
async def watched(
    stream: Stream, caplog: pytest.LogCaptureFixture, **options: Any
) -> AsyncIterator[Watched]:
    """A worker at work, whose loops all have something to do often."""
    caplog.set_level(logging.DEBUG, "standpipe")
    worker = Worker(stream, "g", idle_ms_min=600, **options)
    found = Watched(worker, caplog)

    @worker.batch
    def handle(batch: Batch) -> None:
        found.seen.extend(numbers(batch))

    async with running(worker):
        await found.goes_on(stream, 0)
        yield found


@contextlib.contextmanager
def refusing(port: int) -> Iterator[list[float]]:
    """Something on a port that takes each connection and closes it; when it did."""
    loop = asyncio.get_running_loop()
    at: list[float] = []
    listener = socket.create_server(("127.0.0.1", port))
    listener.setblocking(False)

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            listener.accept()[0].close()
            at.append(loop.time())

    loop.add_reader(listener, accept)
    try:
        yield at
    finally:
        loop.remove_reader(listener)
        listener.close()


def commands(server: TestServer) -> int:
    return int(server.info("stats")["total_commands_processed"])


async def rate(count: Callable[[], int], seconds: float) -> float:
    """How often something happens per second, looked at for some time."""
    loop = asyncio.get_running_loop()
    before, began = count(), loop.time()
    await eventually(lambda: loop.time() >= began + seconds, 60)
    return (count() - before) / (loop.time() - began)


@MODES
async def test_a_server_that_is_away(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture, ordered: bool
) -> None:
    """A server that is killed and comes back: two lines, and some tries a second between."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    async with (
        Stream("s", server.url, shards=2) as stream,
        watched(stream, caplog, ordered=ordered) as found,
    ):
        server.kill()
        with refusing(server.port) as tries:
            await eventually(lambda: found.retries >= 10, 20)
            assert await rate(lambda: len(tries), 1) < 40
        await asyncio.to_thread(server.start)
        await found.goes_on(stream, 1)
        # On a busy machine it may be met while it reads its file in.
        down, *loading, up = found.records
        assert (down.state, down.error, up.state) == ("waiting", "ServerUnavailableError", "ok")
        assert [each.error for each in loading] in ([], ["ServerLoadingError"])
        assert (down.stream, down.shard, down.group) == ("s", None, "g")
        assert down.consumer == found.worker.consumer.name
        assert up.tries == found.retries + 1 + len(loading)
        assert up.server == f"127.0.0.1:{server.port}"
        assert up.waited_ms > 1_000


@MODES
async def test_a_server_that_takes_no_writes(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture, ordered: bool
) -> None:
    """A primary that becomes a replica and a primary again: READONLY, two lines, no hot loop."""
    server = own_server("valkey-9.1")
    async with (
        Stream("s", server.url) as stream,
        watched(stream, caplog, ordered=ordered) as found,
    ):
        server.cli("REPLICAOF", "127.0.0.1", free_port())
        await eventually(lambda: found.retries >= 20, 30)
        # Each of three loops tries again within 2 s, with some commands and over a new connection;
        # one that did not wait longer and longer would send 500 in a second.
        assert await rate(lambda: commands(server), 1) < 150
        server.cli("REPLICAOF", "NO", "ONE")
        await found.goes_on(stream, 1)
        assert found.states == [("waiting", "ReadOnlyServerError"), ("ok", "ReadOnlyServerError")]


async def test_a_server_that_is_loading(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that reads its data set in: LOADING is a state of its own, and no hot loop."""
    server = own_server("valkey-9.1", appendonly="yes")
    async with Stream("s", server.url) as stream, watched(stream, caplog) as found:
        # A server that loads looks at its clients after every 2 MiB.
        fill = "for i = 1, 400 do redis.call('SET', 'k' .. i, ('x'):rep(50000)) end"
        server.command("EVAL", fill, 0)
        server.command("CONFIG", "SET", "rdbcompression", "no")
        server.command("BGREWRITEAOF")
        await eventually(lambda: server.info("persistence")["aof_rewrite_in_progress"] == "0")
        server.kill()
        server.config |= {"key-load-delay": "5000"}
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        await eventually(lambda: ("waiting", "ServerLoadingError") in found.states, 20)
        await starting
        await found.goes_on(stream, 1)
        assert found.states == [
            ("waiting", "ServerUnavailableError"),
            ("waiting", "ServerLoadingError"),
            ("ok", "ServerLoadingError"),
        ]
        assert found.retries >= 3
        assert int(server.info("stats")["total_connections_received"]) < 100


@MODES
@pytest.mark.parametrize("how", ["stream", "group"])
async def test_what_is_deleted(
    own_server: OwnServer,
    stream_name: str,
    caplog: pytest.LogCaptureFixture,
    how: str,
    ordered: bool,
) -> None:
    """A stream that is deleted, or its group: one line that says which, and the worker goes on."""
    server = own_server("valkey-9.1")
    async with (
        Stream(stream_name, server.url) as stream,
        watched(stream, caplog, ordered=ordered) as found,
    ):
        if how == "stream":
            server.cli("DEL", stream_name)
        else:
            server.cli("XGROUP", "DESTROY", stream_name, "g")
        await eventually(lambda: found.worker.consumer.stats.groups_created == 2)
        await found.goes_on(stream, 1)
        assert found.states == [(f"{how}_created", None)]
        (line,) = found.records
        assert (line.levelno, line.shard, line.stream) == (logging.ERROR, 0, stream_name)


async def test_a_failover(
    sentinel: Callable[..., TestSentinel], caplog: pytest.LogCaptureFixture
) -> None:
    """When another server takes over: the trouble, and in the end which server it is now."""
    group = sentinel("valkey-9.1")
    async with Stream("s", group.url) as stream, watched(stream, caplog) as found:
        await eventually(lambda: group.replica.cli("XLEN", "s") == "1")
        group.primary.kill()
        await eventually(lambda: group.current() is group.replica, 30)
        await found.goes_on(stream, 1)
        first, *_, last = found.records
        assert (first.state, first.error) == ("waiting", "ServerUnavailableError")
        assert last.state == "ok"
        assert last.server == f"127.0.0.1:{group.replica.port}"
        assert last.server_before == f"127.0.0.1:{group.primary.port}"
        # In between the new primary may have been a replica still.
        assert len(found.records) <= 4


@MODES
async def test_a_node_that_is_away(
    cluster: Callable[..., TestCluster], caplog: pytest.LogCaptureFixture, ordered: bool
) -> None:
    """However many shards a node of a cluster has, its outage begins with one line and ends with
    one; one more says that the nodes that are left take nothing without it."""
    nodes = cluster("valkey-9.1", appendonly="yes", appendfsync="always")
    async with (
        Stream("s", nodes.url, shards=12) as stream,
        watched(stream, caplog, ordered=ordered) as found,
    ):
        await eventually(lambda: not ordered or len(found.worker.consumer.leases.owned) == 12, 20)
        node = nodes.node_of(stream.keys[0])
        node.kill()
        await eventually(lambda: len(found.states) > 1 and found.retries >= 40, 30)
        await asyncio.to_thread(node.start)
        await found.goes_on(stream, 1)
        first, *between, last = found.states
        assert first == ("waiting", "ServerUnavailableError")
        assert last[0] == "ok"
        kinds = [error for state, error in between if state == "waiting"]
        assert "ClusterDownError" in kinds
        # Beside, it may be met while it loads or is not known again yet.
        assert len(kinds) == len(between) <= 3
        assert (found.records[0].shard, found.records[0].stream) == (None, "s")


async def test_a_server_that_is_away_while_a_handler_ends(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An acknowledgement that waits while the server is away goes with whatever is first through;
    that all is well again is said then, and not when the next one comes."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    caplog.set_level(logging.DEBUG, "standpipe")
    async with Stream("s", server.url) as stream:
        worker = Worker(stream, "g", idle_ms_min=600)
        found = Watched(worker, caplog)
        begun, may_end = asyncio.Event(), asyncio.Event()

        @worker.batch
        async def handle(batch: Batch) -> None:
            begun.set()
            await may_end.wait()

        async with running(worker):
            await send(stream, make_events(1))
            await begun.wait()
            server.kill()
            may_end.set()
            await eventually(lambda: found.retries >= 6, 20)
            assert any("flusher: " in record.message for record in caplog.records)
            await asyncio.to_thread(server.start)
            await eventually(lambda: found.states[-1][0] == "ok", 20)
