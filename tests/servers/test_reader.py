"""A reader shows a stream from any point on, in order, without a place in any group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from standpipe import Batch, Event, EventId, Producer, Reader, Stream
from standpipe.clock import format_time, now_ms
from standpipe.codec import block_fields, encode_rows
from standpipe.errors import ConfigError, StreamNotFoundError, WrongTypeError
from standpipe.reader.source import Source
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.entries import TIME, make_events, numbers, require_once_in_order
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.moving import move_slot

OwnServer = Callable[..., TestServer]
HOUR_MS = 3_600_000


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


async def read(stream: Stream, **points: object) -> list[int]:
    """The numbers that a reader shows between two points."""
    return numbers([event async for event in Reader(stream, **points)])


def add_plain(server: TestServer, key: str, entry_id: str, n: int) -> None:
    server.command("XADD", key, entry_id, "key", "m", "n", n)


def add_rows(server: TestServer, key: str, entry_id: str, first: int, count: int) -> None:
    events = [Event("m", TIME, {"n": n}) for n in range(first, first + count)]
    server.command("XADD", key, entry_id, *block_fields("rows", count, encode_rows(events)))


class Following:
    """A reader that follows in the background; what it has seen is in ``events``."""

    def __init__(self, stream: Stream, **points: object) -> None:
        self.reader = Reader(stream, follow=True, **points)
        self.events: list[Event] = []
        self.error: BaseException | None = None

    async def __aenter__(self) -> Following:
        self._running = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        async with aclosing(self.reader.batches()) as batches:
            async for batch in batches:
                self.events += batch

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def until(self, *expected: int, deadline_s: float = 10) -> None:
        """Wait until just these numbers have been seen, in this order."""

        def is_seen() -> bool:
            if self._running.done():
                self._running.result()
            return numbers(self.events) == list(expected)

        await eventually(is_seen, deadline_s, what=f"{expected} seen")

    async def blocked(self, server: TestServer) -> None:
        """Wait until it waits at the server for more."""
        await eventually(lambda: " cmd=xread " in server.cli("CLIENT", "LIST"))


# --- points --------------------------------------------------------------------------------------


async def test_points(server: TestServer, wire: Server, stream_name: str) -> None:
    """A start and an end are a time in each of its forms, an entry, or an event within one; both
    are inclusive."""
    at = now_ms() - 5 * HOUR_MS
    add_plain(server, stream_name, f"{at}-0", 0)
    add_plain(server, stream_name, f"{at}-7", 1)
    add_rows(server, stream_name, f"{at + HOUR_MS}-0", 2, 3)
    add_plain(server, stream_name, f"{at + 2 * HOUR_MS}-1", 5)
    add_plain(server, stream_name, f"{now_ms()}-0", 6)
    async with Stream(stream_name, wire) as stream:
        everything = [0, 1, 2, 3, 4, 5, 6]
        assert await read(stream) == everything
        assert await read(stream, start="-", end="$") == everything
        for start in (at, str(at), format_time(at), EventId(at, 0), f"{at}-0", "-5h1m", "-301m"):
            assert await read(stream, start=start) == everything, start
        assert await read(stream, start=at + 1) == [2, 3, 4, 5, 6]
        assert await read(stream, start=f"{at}-1") == [1, 2, 3, 4, 5, 6]
        assert await read(stream, start="-3h1m") == [5, 6]
        assert await read(stream, start="-1h") == [6]
        assert await read(stream, start="now") in ([], [6])
        assert await read(stream, start="$") == []
        assert await read(stream, start="2999-01-01") == []
        # As an end, a time covers its whole millisecond.
        assert await read(stream, end=at) == [0, 1]
        assert await read(stream, end=format_time(at)) == [0, 1]
        assert await read(stream, end=f"{at}-0") == [0]
        assert await read(stream, start=at + HOUR_MS, end="-2h") == [2, 3, 4, 5]
        assert await read(stream, start=at + 1, end=at) == []
        # Within a block.
        block = at + HOUR_MS
        assert await read(stream, start=EventId(block, 0, 1), end=EventId(block, 0, 1)) == [3]
        assert await read(stream, start=f"{block}-0/2") == [4, 5, 6]
        assert await read(stream, end=f"{block}-0/0") == [0, 1, 2]
        assert await read(stream, end=f"{block}-0") == [0, 1, 2, 3, 4]
        assert await read(stream, start=EventId(block, 0, 9)) == [5, 6]
        assert await read(stream, end=EventId(block, 0, 9)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("point", ["yesterday", "", "1-2-3", "-2x"])
def test_wrong_points(point: str) -> None:
    """What is no point is refused by its name."""
    stream = Stream("power", "redis://127.0.0.1:1")
    with pytest.raises(ConfigError, match="start"):
        Reader(stream, start=point)
    with pytest.raises(ConfigError, match="end"):
        Reader(stream, end=point)


def test_end_of_what_has_none() -> None:
    """Following has no end."""
    with pytest.raises(ConfigError, match="follow"):
        Reader(Stream("power", "redis://127.0.0.1:1"), end="now", follow=True)


async def test_resuming(wire: Server, stream_name: str) -> None:
    """Reading on from any event's ID shows that one and what comes after it, and reading up to it
    what came before."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        for first in range(0, 60, 20):
            await (await producer.send_many(make_events(20, first=first)))
        seen: list[tuple[EventId, int]] = []
        async for batch in Reader(stream).batches():
            seen += zip(batch.ids, numbers(batch), strict=True)
        for event_id, n in seen[::7]:
            assert await read(stream, start=event_id) == list(range(n, 60))
            assert await read(stream, start=str(event_id)) == list(range(n, 60))
            assert await read(stream, end=event_id) == list(range(n + 1))


# --- what is shown -------------------------------------------------------------------------------


async def test_nothing_is_consumed(server: TestServer, wire: Server, stream_name: str) -> None:
    """A reader leaves the stream and its groups as they were."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        await (await producer.send_many(make_events(10)))
        server.command("XGROUP", "CREATE", stream_name, "g", "0")
        before = server.command("XINFO", "GROUPS", stream_name)
        assert await read(stream) == list(range(10))
        assert await read(stream) == list(range(10))
        assert server.command("XINFO", "GROUPS", stream_name) == before


async def test_three_layouts(wire: Server, stream_name: str) -> None:
    """Plain entries, rows and columns in one stream come out as the same events."""
    events = make_events(900)
    async with Stream(stream_name, wire) as stream:
        for start, codec in enumerate(("plain", "rows", "columns") * 3):
            async with Producer(stream, codec=codec) as producer:
                await (await producer.send_many(events[start * 100 : start * 100 + 100]))
        assert [event async for event in Reader(stream)] == events
        tables = [batch.table() async for batch in Reader(stream).batches()]
        assert sum(table.num_rows for table in tables) == 900


async def test_entries_that_cannot_be_read(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """An entry that no codec reads is counted and left out; the others are shown."""
    add_plain(server, stream_name, "1-0", 0)
    server.command("XADD", stream_name, "2-0", "c", "rows9", "n", 1, "d", "x")
    server.command("XADD", stream_name, "3-0", "c", "rows1", "n", 5, "d", b"\xc1damaged")
    add_rows(server, stream_name, "4-0", 1, 2)
    server.command("XADD", stream_name, "5-0", "time", "noon", "n", 9)
    add_plain(server, stream_name, "6-0", 3)
    async with Stream(stream_name, wire) as stream:
        reader = Reader(stream)
        assert numbers([event async for event in reader]) == [0, 1, 2, 3]
        assert reader.undecodable == 3
        async with Following(stream) as following:
            await following.until(0, 1, 2, 3)
            server.command("XADD", stream_name, "7-0", "c", "rows1", "n", "many", "d", "x")
            add_plain(server, stream_name, "8-0", 4)
            await following.until(0, 1, 2, 3, 4)
            assert following.reader.undecodable == 4


async def test_merged_order(wire: Server, stream_name: str) -> None:
    """Between two points the entries of all shards come in the order of their IDs, over many pages
    and however unevenly they lie."""
    async with Stream(stream_name, wire, shards=4) as stream:
        commands: list[tuple[object, ...]] = []
        for n in range(3_000):
            # Long runs in one shard, then short ones; some with the same ID in two shards.
            shard = 0 if n < 1_000 else (n // 7 + n % 2) % 4
            second = n % 2 if n < 1_000 else 0
            entry_id = f"{1_000 + n // 2}-{second}"
            commands.append(("XADD", stream.keys[shard], entry_id, "n", n))
        await wire.call_many(commands, key=stream.keys[0])
        seen: list[tuple[EventId, int]] = []
        batches: list[Batch] = []
        async for batch in Reader(stream).batches():
            seen += zip(batch.ids, numbers(batch), strict=True)
            batches.append(batch)
        assert [event_id for event_id, _ in seen] == sorted(event_id for event_id, _ in seen)
        assert sorted(n for _, n in seen) == list(range(3_000))
        assert {batch.shard for batch in batches} == {0, 1, 2, 3}
        assert all(batch.stream == stream_name for batch in batches)
        some = await read(stream, start="1600-0", end="1699-0")
        assert sorted(some) == list(range(1_200, 1_400))


async def test_missing_stream(server: TestServer, wire: Server, stream_name: str) -> None:
    """A stream that is not there is an error that names it, and so is a key that is none."""
    async with Stream(stream_name, wire) as stream:
        with pytest.raises(StreamNotFoundError, match=stream_name) as caught:
            await read(stream)
        assert caught.value.hint
        server.command("SET", stream_name, "text")
        with pytest.raises(WrongTypeError):
            await read(stream)
        with pytest.raises(WrongTypeError):
            await read(stream, start="$", follow=True)


async def test_opens_and_closes_what_it_opened(server: TestServer, stream_name: str) -> None:
    """A reader opens a stream that is not open, and closes that one, also when it is left early."""
    for n in range(600):
        add_plain(server, stream_name, f"{n + 1}-0", n)
    stream = Stream(stream_name, server.url)
    assert await read(stream) == list(range(600))
    assert not stream.is_open
    async with aclosing(Reader(stream).batches()) as batches:
        async for _ in batches:
            assert stream.is_open
            break
    assert not stream.is_open


# --- following -----------------------------------------------------------------------------------


async def test_following(server: TestServer, wire: Server, stream_name: str) -> None:
    """Following shows what is there, and then what arrives, in every layout."""
    add_plain(server, stream_name, "1-0", 0)
    async with Stream(stream_name, wire) as stream, Following(stream) as following:
        await following.until(0)
        await following.blocked(server)
        add_plain(server, stream_name, "2-0", 1)
        await following.until(0, 1)
        add_rows(server, stream_name, "3-0", 2, 3)
        await following.until(0, 1, 2, 3, 4)
        async with Producer(stream, codec="columns") as producer:
            await (await producer.send_many(make_events(2, first=5)))
        await following.until(*range(7))


async def test_a_fault_while_following_is_raised(
    server: TestServer, wire: Server, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw ends the reader with it: it does not wait in silence."""

    def broken(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(Source, "_decoded", broken)
    async with Stream(stream_name, wire) as stream:
        add_plain(server, stream_name, "1-1", 1)
        async with aclosing(Reader(stream, start="$", follow=True).batches()) as batches:
            arriving = asyncio.create_task(anext(batches))
            await eventually(lambda: " cmd=xread " in server.cli("CLIENT", "LIST"))
            add_plain(server, stream_name, "2-1", 2)
            with pytest.raises(KeyError):
                await asyncio.wait_for(arriving, 10)


async def test_following_from_now(server: TestServer, wire: Server, stream_name: str) -> None:
    """From ``$`` on only what is added later is shown."""
    add_plain(server, stream_name, "1-0", 0)
    async with Stream(stream_name, wire) as stream, Following(stream, start="$") as following:
        await following.blocked(server)
        add_plain(server, stream_name, "2-0", 1)
        await following.until(1)


@pytest.mark.parametrize("start", ["-1h", "now", "2999-01-01"])
async def test_following_from_a_time(
    start: str, server: TestServer, wire: Server, stream_name: str
) -> None:
    """What is older than the start is not shown, also when nothing else is there yet; a start that
    is to come is waited for."""
    async with Stream(stream_name, wire, shards=2) as stream:
        for key in stream.keys:
            add_plain(server, key, f"{now_ms() - 2 * HOUR_MS}-0", 0)
        async with Following(stream, start=start) as following:
            await following.blocked(server)
            added = "32503680000000-0" if start == "2999-01-01" else "*"
            for n, key in enumerate(stream.keys, 1):
                add_plain(server, key, added, n)
            await eventually(lambda: sorted(numbers(following.events)) == [1, 2])


async def test_following_before_the_first_event(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """A stream that does not exist yet is waited for."""
    async with Stream(stream_name, wire) as stream, Following(stream) as following:
        await following.blocked(server)
        add_plain(server, stream_name, "1-0", 0)
        await following.until(0)


async def test_following_many_shards(wire: Server, stream_name: str) -> None:
    """Each shard's events are shown in its order, none twice, while they are being sent."""
    async with (
        Stream(stream_name, wire, shards=8) as stream,
        Producer(stream) as producer,
        Following(stream) as following,
    ):
        for first in range(0, 4_000, 500):
            await (await producer.send_many(make_events(500, keys=30, first=first)))
        await eventually(lambda: len(following.events) == 4_000)
        for key in {event.key for event in following.events}:
            mine = numbers(event for event in following.events if event.key == key)
            assert mine == sorted(mine)
        require_once_in_order(sorted(numbers(following.events)), 4_000)


async def test_leaving_frees_the_connections(server_name: str, own_server: OwnServer) -> None:
    """A reader that is left, by whatever way, closes its connections and ends its tasks."""
    server = own_server(server_name)
    add_plain(server, "power", "1-0", 0)
    async with Stream("power", server.url) as stream:
        tasks = asyncio.all_tasks()
        async with aclosing(aiter(Reader(stream, follow=True))) as events:
            async for _ in events:
                break
        async with Following(stream) as following:
            await following.blocked(server)
        assert asyncio.all_tasks() == tasks
        await eventually(lambda: "cmd=xread" not in server.cli("CLIENT", "LIST"))


async def test_restart_while_following(server_name: str, own_server: OwnServer) -> None:
    """A server that is killed and comes back interrupts a reader; nothing is left out or shown
    twice."""
    server = own_server(server_name, appendonly="yes", appendfsync="always")
    add_plain(server, "power", "1-0", 0)
    async with Stream("power", server.url) as stream, Following(stream) as following:
        await following.until(0)
        await following.blocked(server)
        server.kill()
        server.start()
        add_plain(server, "power", "2-0", 1)
        await following.until(0, 1)
        server.command("CLIENT", "KILL", "TYPE", "normal")
        add_plain(server, "power", "3-0", 2)
        await following.until(0, 1, 2)


async def test_restart_between_two_points(own_server: OwnServer) -> None:
    """So does one that is killed while a reader goes through what is there."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    fill = "for n = 0, 1999 do redis.call('XADD', 'power', (n + 1) .. '-0', 'n', n) end"
    server.command("EVAL", fill, 0)
    seen: list[int] = []
    async with Stream("power", server.url) as stream:
        async for batch in Reader(stream).batches():
            seen += numbers(batch)
            if len(seen) == 512:
                server.kill()
                server.start()
    assert seen == list(range(2_000))


async def test_slow_reader(server: TestServer, wire: Server, stream_name: str) -> None:
    """A reader that is slower than the stream sees all of it in the end."""
    async with (
        Stream(stream_name, wire) as stream,
        Producer(stream) as producer,
        aclosing(Reader(stream, start="$", follow=True).batches()) as batches,
    ):
        first = asyncio.create_task(anext(batches))
        await eventually(lambda: " cmd=xread " in server.cli("CLIENT", "LIST"))
        for first_number in range(0, 40_000, 1_000):
            await (await producer.send_many(make_events(1_000, first=first_number)))
        seen = numbers(await first)
        while len(seen) < 40_000:
            seen += numbers(await anext(batches))
        require_once_in_order(seen, 40_000)


async def test_cluster(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """In a cluster all shards are read and followed, also one whose slot moves meanwhile."""
    found = cluster(server_name)
    async with (
        Stream("power", found.url, shards=4) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(make_events(1_000, keys=30)))
        assert sorted(await read(stream)) == list(range(1_000))
        async with Following(stream) as following:
            await eventually(lambda: len(following.events) == 1_000)
            key = stream.keys[0]
            move_slot(found, key, next(n for n in found.nodes if n is not found.node_of(key)))
            await (await producer.send_many(make_events(1_000, keys=30, first=1_000)))
            await eventually(lambda: len(following.events) == 2_000)
            require_once_in_order(sorted(numbers(following.events)), 2_000)
        assert sorted(await read(stream)) == list(range(2_000))


async def test_replica_promotion_while_following(own_server: OwnServer) -> None:
    """A primary that becomes a replica under a blocked read does not end it with an error."""
    server, other = own_server("valkey-9.1"), own_server("valkey-9.1")
    add_plain(server, "power", "1-0", 0)
    async with Stream("power", server.url) as stream, Following(stream) as following:
        await following.until(0)
        await following.blocked(server)
        server.command("REPLICAOF", "127.0.0.1", other.port)
        server.command("REPLICAOF", "NO", "ONE")
        # Full synchronisation has emptied it, or not; either way the reader goes on.
        add_plain(server, "power", "9-0", 1)
        await following.until(0, 1)
