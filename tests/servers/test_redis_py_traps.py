"""Three habits of redis-py that a queue cannot afford, shown on it, and that ours has none of them.

The times are shortened (redis-py's default is a socket_timeout of 5 s and ten retries); what
happens is the same. When one of the first tests fails, redis-py has changed: see if wire/ can be
simpler.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import redis.asyncio as redis_py
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from standpipe import Event, Producer, Stream
from standpipe.wire import Server, pack
from tests.conditions import eventually
from tests.servers.entries import numbers_at
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]


def _client(server: TestServer, **options: object) -> redis_py.Redis:
    """redis-py with its own kind and number of retries, and shorter waits between them."""
    retry = Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.05), 10)
    return redis_py.Redis(port=server.port, socket_timeout=0.3, retry=retry, **options)


async def test_defaults_are_what_we_take_them_for(server: TestServer) -> None:
    """redis-py's defaults are a socket_timeout of five seconds and ten retries."""
    async with redis_py.Redis(port=server.port) as client:
        assert client.connection_pool.connection_kwargs["socket_timeout"] == 5
        assert client.get_retry().get_retries() == 10


async def test_redis_py_ends_a_longer_block(own_server: OwnServer) -> None:
    """redis-py: a BLOCK above socket_timeout is asked eleven times over and ends in an error."""
    server = own_server("valkey-9.1")
    before = int(server.info("stats")["total_connections_received"])
    async with _client(server) as client:
        with pytest.raises(RedisTimeoutError):
            await client.xread({"power": "$"}, block=400)
    after = int(server.info("stats")["total_connections_received"])
    # The second INFO came over a connection of its own.
    assert after - before - 1 == 11


async def test_ours_waits_as_long_as_it_says(own_server: OwnServer) -> None:
    """Ours: the same read, with a shorter deadline for replies, waits once and says that there is
    nothing."""
    server = own_server("valkey-9.1")
    async with Server(server.url, reply_ms_max=300) as wire:
        link = await wire.link("power")
        before = server.info("stats")["total_connections_received"]
        start = time.monotonic()
        read = pack("XREAD", "BLOCK", 400, "STREAMS", "power", "$")
        assert await link.exchange((read,), 1, reply_ms_max=400 + 300) == [None]
        assert 0.35 < time.monotonic() - start < 0.7
        after = server.info("stats")["total_connections_received"]
        assert int(after) - int(before) == 1
        assert link._connection.socket_timeout is None
        await link.close()


async def test_redis_py_adds_twice(server_name: str, own_server: OwnServer) -> None:
    """redis-py: one xadd() over a stall leaves more than one entry, and nobody hears of it."""
    server = own_server(server_name)
    async with _client(server) as client:
        await client.ping()
        server.stop()
        adding = asyncio.create_task(client.xadd("power", {"volts": 230.5}))
        # Longer than its socket_timeout: by then it has sent the command again.
        await asyncio.wait({adding}, timeout=0.5)
        assert not adding.done()
        server.cont()
        assert await adding
    assert server.command("XLEN", "power") > 1


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_ours_adds_once(codec: str, server_name: str, own_server: OwnServer) -> None:
    """Ours: an event that was sent again over a stall is in the stream once."""
    server = own_server(server_name)
    async with (
        Server(server.url, reply_ms_max=300) as wire,
        Stream("power", wire, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        server.stop()
        receipt = await producer.send(Event("meter-1", 1_700_000_000_000, {"n": 1}))
        await eventually(lambda: producer.stats.retries)
        server.cont()
        event_id = await receipt
        assert event_id is not None
        assert await numbers_at(wire, "power") == [1]
        assert server.command("XRANGE", "power", event_id.entry, event_id.entry)
        assert producer.stats.recognised == 1


async def test_redis_py_has_two_reply_shapes(server: TestServer, stream_name: str) -> None:
    """redis-py: the same call over the same RESP3 answers in two shapes, by whether protocol=3 was
    said or is the default."""
    server.command("XADD", stream_name, "1-1", "volts", 230.5)
    async with (
        redis_py.Redis(port=server.port) as silent,
        redis_py.Redis(port=server.port, protocol=3) as said,
    ):
        if server.name not in ("redis-6.2", "redis-7.0", "valkey-8.1"):
            # Older servers do not say it in CLIENT INFO.
            for client in (silent, said):
                assert "resp=3" in str(await client.execute_command("CLIENT", "INFO"))
        entry = (b"1-1", {b"volts": b"230.5"})
        assert await silent.xread({stream_name: "0"}) == [[stream_name.encode(), [entry]]]
        assert await said.xread({stream_name: "0"}) == {stream_name.encode(): [[entry]]}


async def test_ours_has_one(server: TestServer, stream_name: str) -> None:
    """Ours: a reply is what the server said over RESP3, in every version."""
    server.command("XADD", stream_name, "1-1", "volts", 230.5)
    async with Server(server.url) as wire:
        reply = await wire.call("XREAD", "STREAMS", stream_name, "0", key=stream_name)
        assert reply == {stream_name.encode(): [[b"1-1", [b"volts", b"230.5"]]]}
