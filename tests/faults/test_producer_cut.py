"""However a connection fails, what was sent is in the stream once, in order and complete."""

from __future__ import annotations

from collections.abc import Callable

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
from tests.servers.fleet import TestServer

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
CUTS = 200
# A late reply takes its time, so it is rarer.
FAULTS = ("lost reply", "half a reply", "half a request") * 5 + ("late reply",)


@pytest.mark.parametrize(
    ("codec", "shards", "name"),
    [("plain", 1, "redis-6.2"), ("rows", 4, "redis-8.2"), ("columns", 1, "valkey-9.1")],
)
async def test_cuts(codec: str, shards: int, name: str, own_server: OwnServer) -> None:
    """Hundreds of cuts before, in and after replies lose nothing, add nothing twice and keep the
    order; and every receipt gives the right ID."""
    server = own_server(name)
    async with (
        Proxy(server.port, seed=7, faults=FAULTS, every=2, late_ms=250) as proxy,
        Server(proxy.url, reply_ms_max=200) as wire,
        Stream("power", wire, codec=codec, shards=shards) as stream,
        Producer(stream, block_events_max=25) as producer,
        Stream("power", server.url) as direct,
    ):
        sent: list[Event] = []
        receipts = []
        while proxy.done.total() < CUTS:
            events = make_events(60, keys=7, first=len(sent))
            sent += events
            receipts.append(await producer.send_many(events[:50]))
            single = [await producer.send(event) for event in events[50:]]
            receipts += single
            await single[-1]
        proxy.every = 0
        await producer.flush()
        assert all(proxy.done[fault] > CUTS / 50 for fault in FAULTS)
        assert producer.stats.retries > CUTS / 2
        # Lost, halved and late replies are to blocks that the server had.
        assert producer.stats.recognised > CUTS / 2
        assert producer.stats.forgotten == producer.stats.failed == 0

        ids = []
        for receipt in receipts:
            given = await receipt
            ids += given if isinstance(given, list) else [given]
        found = await events_of(direct)
        for shard, standing in enumerate(found):
            mine = [n for n, event in enumerate(sent) if partition(event.key, shards) == shard]
            assert numbers(event for _, event in standing) == mine
            assert [event_id for event_id, _ in standing] == [ids[n] for n in mine]
        assert sum(map(len, found)) == len(sent)


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
