"""However a connection fails, what was sent is in the stream once, in order and complete."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import ServerUnavailableError
from standpipe.keyspace import partition
from standpipe.wire import Server
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.entries import (
    TIME,
    events_of,
    make_events,
    numbers,
    numbers_at,
)
from tests.servers.fleet import TestCluster, TestServer

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
CUTS = 200
# A late reply takes its time, so it is rarer.
FAULTS = ("lost reply", "half a reply", "half a request") * 5 + ("late reply",)


def _proxy(server: TestServer, seed: int) -> Proxy:
    return Proxy(server.port, seed=seed, faults=FAULTS, every=2, late_ms=250)


@contextlib.asynccontextmanager
async def _proxies(cluster: TestCluster) -> AsyncIterator[list[Proxy]]:
    """A proxy before each node of a cluster, which the nodes announce in their own places."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for number, node in enumerate(cluster.nodes):
            proxy = await stack.enter_async_context(_proxy(node, number))
            node.command("CONFIG", "SET", "cluster-announce-port", proxy.port)
            found.append(proxy)
        ports = {proxy.port for proxy in found}
        for node in cluster.nodes:
            await eventually(lambda node=node: _announced(node) == ports)
        yield found


def _announced(node: TestServer) -> set[int]:
    return {port for _, _, (_, port, *_) in node.command("CLUSTER", "SLOTS")}


async def _require_all_once(
    url: str, proxies: list[Proxy], cuts: int, *, codec: str, shards: int
) -> None:
    """Send until so many cuts are done, and fail unless everything is there, once, in order, under
    the IDs that the receipts gave."""
    started = time.monotonic()
    done: Counter[str] = Counter()

    async with (
        Server(url, reply_ms_max=200) as wire,
        Stream("power", wire, codec=codec, shards=shards) as stream,
        Producer(stream, block_events_max=25) as producer,
    ):
        sent: list[Event] = []
        receipts = []
        while sum(proxy.done.total() for proxy in proxies) < cuts:
            events = make_events(60, keys=7 * shards, first=len(sent))
            sent += events
            receipts.append(await producer.send_many(events[:50]))
            single = [await producer.send(event) for event in events[50:]]
            receipts += single
            await single[-1]
        for proxy in proxies:
            proxy.every = 0
            done += proxy.done
        await producer.flush()
        print(f"{len(sent)} events, {dict(done)}, {producer.stats}, ", end="")
        print(f"{time.monotonic() - started:.0f} s")
        assert all(done[fault] > cuts / 50 for fault in FAULTS)
        assert producer.stats.retries > cuts / 2
        # Lost, halved and late replies are to blocks that the server had: three of four faults, if
        # their number is not so small that chance has a say.
        assert producer.stats.recognised > cuts / 3
        assert producer.stats.forgotten == producer.stats.failed == 0

        ids = []
        for receipt in receipts:
            given = await receipt
            ids += given if isinstance(given, list) else [given]
        # With the usual time for replies: a long stream takes longer to read.
        async with Stream("power", url) as direct:
            found = await events_of(direct)
        for shard, standing in enumerate(found):
            mine = [n for n, event in enumerate(sent) if partition(event.key, shards) == shard]
            assert numbers(event for _, event in standing) == mine
            assert [event_id for event_id, _ in standing] == [ids[n] for n in mine]
        assert sum(map(len, found)) == len(sent)


@pytest.mark.parametrize("cuts", [CUTS, pytest.param(10 * CUTS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("codec", "shards", "name"),
    [("plain", 1, "redis-6.2"), ("rows", 4, "redis-8.2"), ("columns", 1, "valkey-9.1")],
)
async def test_cuts(codec: str, shards: int, name: str, cuts: int, own_server: OwnServer) -> None:
    """Hundreds of cuts before, in and after replies lose nothing, add nothing twice and keep the
    order; and every receipt gives the right ID."""
    async with _proxy(own_server(name), seed=7) as proxy:
        await _require_all_once(proxy.url, [proxy], cuts, codec=codec, shards=shards)


@pytest.mark.parametrize(
    ("codec", "cuts"),
    [
        ("rows", CUTS // 2),
        *(
            pytest.param(codec, 10 * CUTS, marks=pytest.mark.slow)
            for codec in ("plain", "rows", "columns")
        ),
    ],
)
async def test_cuts_in_a_cluster(
    codec: str, cuts: int, cluster: Callable[..., TestCluster]
) -> None:
    """So in a cluster, where the connections to all nodes are cut."""
    async with _proxies(cluster("valkey-9.1")) as proxies:
        url = proxies[0].url.replace("redis://", "redis+cluster://")
        await _require_all_once(url, proxies, cuts, codec=codec, shards=6)
        assert all(proxy.done.total() > cuts / 20 for proxy in proxies)


async def test_one_lost_reply(own_server: OwnServer) -> None:
    """A block whose reply was lost is sent again, recognised, and keeps its ID."""
    server = own_server("valkey-9.1")
    async with (
        Proxy(server.port, faults=["lost reply"]) as proxy,
        Stream("power", proxy.url) as stream,
        Producer(stream) as producer,
    ):
        proxy.every = 1
        receipt = await producer.send(Event("m", TIME, {"n": 0}))
        await eventually(proxy.done.total)
        # The next try is to get through.
        proxy.every = 0
        event_id = await receipt
        assert producer.stats.recognised == 1
        ((standing, _),) = (await events_of(stream))[0]
        assert standing == event_id


async def test_cut_while_nobody_waits(own_server: OwnServer) -> None:
    """A connection that the server closed while the producer was idle is replaced before it is
    written to."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        for n in range(5):
            await (await producer.send(make_events(1, first=n)[0]))
            # When this one has seen its end, so have the others.
            witness = await stream.server.link("power")
            server.command("CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(ServerUnavailableError):
                await witness.call("XREAD", "BLOCK", 0, "STREAMS", "power", "$")
            assert await numbers_at(stream.server, "power") == list(range(n + 1))
        assert producer.stats.retries == 0
