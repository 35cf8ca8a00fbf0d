"""A stream with hard limits: it refuses what does not fit, or lets the oldest go and counts it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import ConfigError, NotPermittedError, ServerFullError, StreamFullError
from standpipe.keyspace import side_key
from standpipe.observe import stream_status
from standpipe.wire import Link, Server, script
from tests.conditions import eventually
from tests.servers.entries import events_of, make_events, numbers, numbers_at
from tests.servers.fleet import TestCluster, TestServer

OwnServer = Callable[..., TestServer]
pytestmark = pytest.mark.servers

NODE_ENTRIES = 100
"""Entries of one node of a stream, the server's default: what trimming with ~ may leave over."""
NODE_BYTES = 4_096


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


async def trimmed(stream: Stream, shard: int = 0) -> int:
    key = stream.trimmed_key(shard)
    return int(await stream.server.call("GET", key, key=key) or 0)


# --- the script ----------------------------------------------------------------------------------


async def run(link: Link, key: str, number: int, limits: str, *fields: bytes) -> Any:
    beside = ("seq:p", "trimmed", "lost", "archived")
    keys = (key, *(side_key(key, what) for what in beside))
    fixed = (number, number - 1, number - 1, 60_000, limits)
    if fields:
        return await link.run(script("append"), keys, *fixed, "", 1, len(fields), *fields)
    return await link.run(script("append"), keys, *fixed, "rows1", 1, b"x" * 100)


async def test_a_block_that_the_stream_has(wire: Server, stream_name: str) -> None:
    """A block sent again is recognised in a full stream, too; only a new one is refused, and it is
    taken as soon as there is room."""
    link = await wire.link(stream_name)
    assert (await run(link, stream_name, 1, "block 1 0"))[0] == b"new"
    assert (await run(link, stream_name, 1, "block 1 0"))[0] == b"old"
    with pytest.raises(StreamFullError, match="has 1 entries"):
        await run(link, stream_name, 2, "block 1 0")
    await link.call("XTRIM", stream_name, "MAXLEN", 0)
    assert (await run(link, stream_name, 2, "block 1 0"))[0] == b"new"
    assert await link.call("EXISTS", side_key(stream_name, "trimmed")) == 0
    await link.close()


async def test_a_ring_asks_the_acl_first(own_server: OwnServer) -> None:
    """A user who may not trim, or not count, adds nothing and trims nothing."""
    server = own_server("redis-6.2")
    for forbidden in ("xtrim", "incrby", "hincrby", "xinfo"):
        server.command("FLUSHALL")
        server.command("XGROUP", "CREATE", "s", "g", 0, "MKSTREAM")
        server.command("ACL", "SETUSER", "m", "reset", "on", ">p", "~*", "+@all", f"-{forbidden}")
        async with Server(f"redis://m:p@127.0.0.1:{server.port}") as wire:
            link = await wire.link("s")
            for number in range(1, 301):
                await run(link, "s", number, "ring 300 0", b"n", b"1")
            with pytest.raises(NotPermittedError):
                await run(link, "s", 301, "ring 300 0", b"n", b"1")
            assert await link.call("XLEN", "s") == 300
            await link.close()


# --- block ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_max_len_blocks(codec: str, server: TestServer, stream_name: str) -> None:
    """A stream never has more entries than max_len; what does not fit waits, and fails at its
    deadline with an error that says so. Trimming lets it go on, in order."""
    entries = 40
    async with Stream(stream_name, server.url, codec=codec, max_len=entries) as stream:
        key = stream.keys[0]
        many = make_events(entries + 10)
        async with Producer(stream, deadline_ms=300, block_events_max=1) as producer:
            receipts = [await producer.send(event) for event in many[:entries]]
            for receipt in receipts:
                await receipt
            with pytest.raises(StreamFullError, match=f"{entries} entries") as caught:
                await (await producer.send(many[entries]))
            assert caught.value.retryable
        async with Producer(stream, block_events_max=1) as producer:
            late = [await producer.send(event) for event in many[entries:]]
            await eventually(lambda: producer.stats.retries > 1)
            assert await stream.server.call("XLEN", key, key=key) == entries
            assert not any(receipt.is_done for receipt in late)
            await stream.server.call("XTRIM", key, "MAXLEN", 5, key=key)
            for receipt in late:
                await receipt
        assert await numbers_at(stream.server, key) == list(range(entries - 5, entries + 10))
        assert await trimmed(stream) == 0


async def test_a_run_as_long_as_the_stream(server: TestServer, stream_name: str) -> None:
    """Plain events are written in runs; none is longer than half of the stream."""
    async with (
        Stream(stream_name, server.url, codec="plain", max_len=7) as stream,
        Producer(stream) as producer,
    ):
        waiting = await producer.send_many(make_events(18))
        for round_ in range(3):
            key = stream.keys[0]
            await eventually(lambda r=round_: producer.stats.acknowledged == 6 * (r + 1))
            expected = list(range(6 * round_, 6 * round_ + 6))
            assert await numbers_at(stream.server, key) == expected
            await stream.server.call("XTRIM", key, "MAXLEN", 0, key=key)
        assert len(await waiting) == 18


async def test_max_len_of_shards(cluster: Callable[..., TestCluster]) -> None:
    """Each shard has its part of the limit; one that is full does not hold up the others, in one
    server or in a cluster."""
    found = cluster("valkey-9.1")
    async with (
        Stream("power", found.url, shards=4, codec="plain", max_len=40) as stream,
        Producer(stream, deadline_ms=60_000) as producer,
    ):
        sent = await producer.send_many([Event("same", n, {"n": n}) for n in range(30)])
        others = [Event(f"m-{n}", n, {"n": n}) for n in range(20)]
        receipts = [await producer.send(event) for event in others]
        full = [
            n for n, event in enumerate(others) if _shard(event) == _shard(Event("same", 0, {}))
        ]
        for n, receipt in enumerate(receipts):
            if n not in full:
                await receipt
        assert not sent.is_done
        for n, standing in enumerate(await events_of(stream)):
            assert len(standing) <= 10, f"shard {n}"
        for key in stream.keys:
            await stream.server.call("XTRIM", key, "MAXLEN", 0, key=key)

        async def drained() -> bool:
            for key in stream.keys:
                await stream.server.call("XTRIM", key, "MAXLEN", 0, key=key)
            return sent.is_done and all(receipt.is_done for receipt in receipts)

        await eventually(drained, 20)
        await sent


def _shard(event: Event) -> int:
    from standpipe.keyspace import partition

    return partition(event.key, 4)


async def test_max_bytes_blocks(server: TestServer, stream_name: str) -> None:
    """A stream stops growing when it takes max_bytes on the server, one block more at most."""
    limit = 300_000
    async with (
        Stream(stream_name, server.url, max_bytes=limit) as stream,
        Producer(stream, deadline_ms=300, compress=False) as producer,
    ):
        key = stream.keys[0]
        with pytest.raises(StreamFullError, match=r"bytes; at most .* 300000"):
            for n in range(1_000):
                await (await producer.send_many(make_events(100, first=100 * n)))
        used = await stream.server.call("MEMORY", "USAGE", key, "SAMPLES", 0, key=key)
        assert limit * 0.9 <= used <= limit + 3 * NODE_BYTES + 100 * 64


# --- ring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_ring_of_max_len(codec: str, server: TestServer, stream_name: str) -> None:
    """A ring keeps the newest entries, and every entry that went is counted."""
    limit = 250
    async with (
        Stream(stream_name, server.url, codec=codec, max_len=limit, when_full="ring") as stream,
        Producer(stream, block_events_max=1 if codec == "rows" else 20) as producer,
    ):
        key = stream.keys[0]
        for n in range(20):
            await (await producer.send_many(make_events(100, first=100 * n)))
            length = await stream.server.call("XLEN", key, key=key)
            assert length <= limit + NODE_ENTRIES
            assert length + await trimmed(stream) == 100 * (n + 1)
        found = numbers(event for _, event in (await events_of(stream))[0])
        assert found == list(range(2_000 - len(found), 2_000))
        assert len(found) >= limit - 20
        assert producer.stats.retries == 0
        status = await stream_status(stream)
        assert status.shards[0].trimmed == 2_000 - len(found)


async def test_ring_of_max_bytes(server: TestServer, stream_name: str) -> None:
    """A ring stays below max_bytes, give or take a node, whatever goes through it."""
    limit = 200_000
    async with (
        Stream(stream_name, server.url, max_bytes=limit, when_full="ring") as stream,
        Producer(stream, compress=False) as producer,
    ):
        key = stream.keys[0]
        for n in range(100):
            await (await producer.send_many(make_events(200, first=200 * n)))
            used = await stream.server.call("MEMORY", "USAGE", key, "SAMPLES", 0, key=key)
            assert used <= limit * 1.05 + 200 * 64 + NODE_BYTES
        entries = await stream.server.call("XLEN", key, key=key)
        assert entries + await trimmed(stream) == 100
        assert used >= limit * 0.8


# --- what everybody agrees on --------------------------------------------------------------------


async def test_limits_are_the_streams(server: TestServer, stream_name: str) -> None:
    """The limits stand with the stream's definition: a producer that knows nothing of them keeps
    them, and one with other ones is refused."""
    async with Stream(stream_name, server.url, codec="plain", max_len=10, when_full="ring"):
        pass
    async with Stream(stream_name, server.url) as stream, Producer(stream) as producer:
        await (await producer.send_many(make_events(1_000)))
        assert await stream.server.call("XLEN", stream_name, key=stream_name) < 1_000
    with pytest.raises(ConfigError, match="max_len 10 on the server, 20 was asked"):
        await Stream(stream_name, server.url, max_len=20).open()


@pytest.mark.parametrize(
    "options",
    [
        {"max_len": 0},
        {"max_len": 3, "shards": 4},
        {"max_bytes": 1_000},
        {"max_bytes": 100_000, "shards": 2},
        {"when_full": "drop"},
    ],
)
def test_wrong_limits(options: dict[str, Any]) -> None:
    """A limit that no shard could live with is an error that names it."""
    with pytest.raises(ConfigError, match="|".join(options)) as caught:
        Stream("power", "redis://127.0.0.1:1", **options)
    assert caught.value.hint


async def test_limit_below_maxmemory(own_server: OwnServer) -> None:
    """With max_bytes below maxmemory the producer hears that the stream is full, not the server."""
    server = own_server("valkey-9.1", maxmemory="8mb")
    async with (
        Stream("power", server.url, max_bytes=1_000_000) as stream,
        Producer(stream, deadline_ms=200) as producer,
    ):
        with pytest.raises(StreamFullError) as caught:
            for n in range(1_000):
                await (await producer.send_many(make_events(1_000, first=1_000 * n)))
        assert not isinstance(caught.value, ServerFullError)
