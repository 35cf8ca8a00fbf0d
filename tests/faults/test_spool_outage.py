"""A producer with a spool: however the server fails, nothing is lost, added twice or overtaken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import (
    BackpressureError,
    ProducerError,
    ServerUnavailableError,
    SpoolDamagedError,
    SpooledError,
    UnknownOutcomeError,
)
from standpipe.keyspace import partition
from standpipe.producer import drain
from standpipe.spool import Spool, SpooledBlock
from standpipe.wire import Server, pack
from tests.conditions import eventually
from tests.faults.disk import mounted_disk
from tests.faults.proxy import Proxy
from tests.faults.spooling import (
    SpoolFeeder,
    require_same,
    summary_of,
    take_out,
    until_empty,
)
from tests.faults.test_producer_outage import _break_disk, _fill
from tests.servers.entries import events_of, make_events, numbers
from tests.servers.fleet import TestCluster, TestServer, free_port

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
CODECS = ("plain", "rows", "columns")
KEPT = {"appendonly": "yes", "appendfsync": "always"}
"""A server that has what it acknowledged after it was killed."""
AFTER_MS = 60
"""The deadline of the producers here: so long a shard is in trouble before its blocks are
spooled."""

Trouble = Callable[[TestServer, Stream], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(server: TestServer, stream: Stream) -> AsyncIterator[None]:
    server.kill()
    yield
    await asyncio.to_thread(server.start)


@asynccontextmanager
async def stopped(server: TestServer, stream: Stream) -> AsyncIterator[None]:
    server.stop()
    yield
    server.cont()


@asynccontextmanager
async def out_of_memory(server: TestServer, stream: Stream) -> AsyncIterator[None]:
    mend = _fill(server)
    yield
    mend()


@asynccontextmanager
async def without_disk(server: TestServer, stream: Stream) -> AsyncIterator[None]:
    # Waits for the failed save with the event loop standing still, so in a thread.
    mend = await asyncio.to_thread(_break_disk, server)
    yield
    mend()


TROUBLES: dict[str, Trouble] = {
    "killed": killed,
    "stopped": stopped,
    "out of memory": out_of_memory,
    "without disk": without_disk,
}
FEW = [
    *(("killed", codec, shards) for codec in CODECS for shards in (1, 4)),
    ("stopped", "plain", 4),
    ("stopped", "rows", 1),
    ("out of memory", "rows", 4),
    ("out of memory", "columns", 1),
    ("without disk", "plain", 1),
]
ALL = [(name, codec, shards) for name in TROUBLES for codec in CODECS for shards in (1, 4)]


async def _outage(
    server: TestServer, spool: Path, name: str, codec: str, shards: int, *, times: int
) -> None:
    # A write to a server that hangs is given up after this.
    async with (
        Server(server.url, reply_ms_max=300) as own,
        Stream("power", own, codec=codec, shards=shards) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS) as producer,
    ):
        feeder = SpoolFeeder(producer)
        for _ in range(times):
            await feeder.until_acknowledged(60)
            async with TROUBLES[name](server, stream):
                await feeder.until_spooled(100)
            await feeder.until_acknowledged(60)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        assert producer.stats.drained == producer.stats.spooled
        assert producer.stats.forgotten == 0
        assert producer.trouble is None
        await feeder.require_all_once(stream)


@pytest.mark.parametrize(("name", "codec", "shards"), FEW)
async def test_outage(
    name: str, codec: str, shards: int, own_server: OwnServer, tmp_path: Path
) -> None:
    """While the server is dead, hangs, is out of memory or without a disk, what is sent goes to the
    spool, and the receipts say so; then all of it is on the server, once and in order."""
    await _outage(own_server("valkey-9.1", **KEPT), tmp_path / "s", name, codec, shards, times=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "shards"), ALL)
async def test_outage_of_every_server(
    name: str, codec: str, shards: int, server_name: str, own_server: OwnServer, tmp_path: Path
) -> None:
    """So with every server that is supported."""
    await _outage(own_server(server_name, **KEPT), tmp_path / "s", name, codec, shards, times=3)


@pytest.mark.parametrize(("codec", "shards"), [("plain", 4), ("columns", 1)])
async def test_full_stream(codec: str, shards: int, own_server: OwnServer, tmp_path: Path) -> None:
    """A stream that has reached its limit refuses; what is sent goes to the spool until somebody
    has made room, and then goes in, once and in order."""
    spool = tmp_path / "s"
    taken: dict[str, list] = {}
    async with (
        Stream(
            "power", own_server("valkey-9.1").url, codec=codec, shards=shards, max_len=40 * shards
        ) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS) as producer,
    ):
        feeder = SpoolFeeder(producer)
        await feeder.until_spooled(200)
        await feeder.finish()

        async def is_empty() -> bool:
            for key in stream.keys:
                await take_out(stream.server, key, taken)
            return summary_of(spool).blocks == 0

        await eventually(is_empty, 20)
        feeder.require_true_stats()
        await feeder.require_all_once(stream, taken=taken)


async def test_cluster_that_loses_a_node(
    cluster: Callable[..., TestCluster], tmp_path: Path
) -> None:
    """In a cluster the shards of a dead node are spooled, the others go on as if nothing were; when
    it is back everything is there, once and in order."""
    found = cluster("valkey-9.1", **KEPT | {"cluster-require-full-coverage": "no"})
    spool = tmp_path / "s"
    async with (
        Stream("power", found.url, shards=6) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS) as producer,
    ):
        feeder = SpoolFeeder(producer, keys=60)
        await feeder.until_acknowledged(200)
        dead = found.node_of(stream.keys[0])
        gone = {n for n, key in enumerate(stream.keys) if found.node_of(key) is dead}
        dead.kill()
        await feeder.until_spooled(200)
        await feeder.until_acknowledged(500)
        there = {partition(feeder.events[n].key, 6) for n in list(feeder.acknowledged)[-200:]}
        assert there == set(range(6)) - gone
        await asyncio.to_thread(dead.start)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        await stream.server.refresh()
        await feeder.require_all_once(stream)


# --- while draining ------------------------------------------------------------------------------


async def fill_spool(
    server: TestServer, path: Path, count: int, *, codec: str = "rows", shards: int = 1
) -> list[Event]:
    """Make a spool of blocks of ten events, sent while the server was dead; it is up again then."""
    events = make_events(count)
    async with Stream("power", server.url, codec=codec, shards=shards) as stream:
        producer = Producer(stream, spool=path, deadline_ms=AFTER_MS, block_events_max=10)
        await producer.start()
        server.kill()
        receipts = await producer.send_many(events)
        with pytest.raises(SpooledError):
            await receipts
        await producer.flush()
        await producer.close()
    assert summary_of(path).events == count
    server.start()
    return events


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_server_that_dies_while_it_is_drained_into(
    codec: str, own_server: OwnServer, tmp_path: Path
) -> None:
    """A server that is killed three times while a spool is drained into it has every event once, in
    order."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    events = await fill_spool(server, spool, 6_000, codec=codec)
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS) as producer,
    ):
        for share in (1, 2, 3):
            goal = share * 1_500
            await eventually(lambda goal=goal: producer.stats.drained >= goal, 20)
            server.kill()
            await asyncio.to_thread(server.start)
        await until_empty(spool)
        assert producer.stats.drained == 6_000
        ((standing),) = await events_of(stream)
        require_same(numbers(event for _, event in standing), numbers(events))


@pytest.mark.parametrize(
    "codec",
    ["rows", *(pytest.param(codec, marks=pytest.mark.slow) for codec in ("plain", "columns"))],
)
async def test_network_that_fails_while_draining(
    codec: str, own_server: OwnServer, tmp_path: Path
) -> None:
    """Replies that are lost, late or cut, and requests that are cut, add nothing twice."""
    server, spool = own_server("valkey-9.1"), tmp_path / "s"
    events = make_events(3_000)
    async with Proxy(server.port, seed=3, late_ms=200) as proxy:  # noqa: SIM117  its URL is used
        async with (
            Server(proxy.url, reply_ms_max=100) as own,
            Stream("power", own, codec=codec, shards=2) as stream,
            Producer(stream, spool=spool, deadline_ms=AFTER_MS, block_events_max=10) as producer,
        ):
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(SpooledError):
                await (await producer.send_many(events))
            await producer.flush()
            proxy.every = 5
            server.command("CONFIG", "SET", "maxmemory", "0")
            feeder = SpoolFeeder(producer, first=3_000)
            await until_empty(spool, 60)
            await eventually(lambda: proxy.done.total() >= 3 and producer.stats.recognised, 20)
            proxy.every = 0
            await feeder.finish()
            await until_empty(spool)
            assert producer.stats.failed == 0
            await feeder.require_all_once(stream, before=events)


async def test_other_shards_are_not_held_up(own_server: OwnServer, tmp_path: Path) -> None:
    """While one shard is full, and while it is drained, events of the others are acknowledged as
    they come, and sending does not wait."""
    server, spool = own_server("valkey-9.1"), tmp_path / "s"
    taken: dict[str, list] = {}
    async with (
        Stream("power", server.url, shards=4, max_len=100_000) as stream,
        Producer(
            stream, spool=spool, deadline_ms=AFTER_MS, block_events_max=10, buffer_events_max=4_000
        ) as producer,
    ):
        full = stream.keys[0]
        with contextlib.closing(_Pipe(server)) as pipe:
            pipe.add(full, 25_000)
        feeder = SpoolFeeder(producer, keys=40)
        await feeder.until_spooled(200)
        behind = [n for n in feeder.spooled if partition(feeder.events[n].key, 4) != 0]
        assert behind == []
        # More than the buffer holds, all of the shard that is full: to the spool, not into the way.
        mine = [event for event in make_events(40_000, keys=40) if partition(event.key, 4) == 0]
        began = time.monotonic()
        for start in range(0, len(mine), 500):
            await producer.send_many(
                Event(event.key, event.time, {"n": -1}) for event in mine[start : start + 500]
            )
        await feeder.until_acknowledged(300)
        assert time.monotonic() - began < 10
        await stream.server.call("XTRIM", full, "MAXLEN", "0", key=full)
        longest = feeder.longest_send_s
        feeder.longest_send_s = 0.0
        while summary_of(spool).blocks:
            await feeder.until_acknowledged(20)
            await take_out(stream.server, full, taken)
        await feeder.finish()
        assert max(longest, feeder.longest_send_s) < 3
        assert [n for n in feeder.spooled if partition(feeder.events[n].key, 4) != 0] == []


class _Pipe:
    """Adds many entries past the code under test."""

    def __init__(self, server: TestServer) -> None:
        import redis

        self._client = redis.Redis(port=server.port)

    def add(self, key: str, count: int) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for _ in range(count):
            pipeline.xadd(key, {"key": "other"})
        pipeline.execute()

    def close(self) -> None:
        self._client.close()


async def test_a_long_drain_does_not_make_send_wait(own_server: OwnServer, tmp_path: Path) -> None:
    """While much more than the buffer holds is drained, send takes what comes: what does not fit
    goes behind it into the spool, and everything arrives in order."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    before = await fill_spool(server, spool, 30_000, codec="plain")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS, buffer_events_max=400) as producer,
    ):
        feeder = SpoolFeeder(producer, first=30_000)
        await until_empty(spool)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        assert feeder.spooled
        assert feeder.longest_send_s < 2
        await feeder.require_all_once(stream, before=before)


# --- a full spool --------------------------------------------------------------------------------


async def test_send_waits_when_the_spool_is_full(own_server: OwnServer, tmp_path: Path) -> None:
    """With the spool and the buffer full, send waits and nothing is dropped; when the server is
    back it goes on by itself, and everything is there."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    async with (
        Stream("power", server.url) as stream,
        Producer(
            stream,
            spool=spool,
            spool_bytes_max=16 * 1024,
            deadline_ms=AFTER_MS,
            buffer_events_max=200,
        ) as producer,
    ):
        feeder = SpoolFeeder(producer)
        await feeder.until_acknowledged(20)
        server.kill()
        await eventually(lambda: producer.stats.spooled and _is_waiting(feeder, producer), 30)
        sent = producer.stats.sent
        tries = producer.stats.retries
        await eventually(lambda: producer.stats.retries > tries, 20)
        assert producer.stats.sent == sent
        assert producer.stats.failed == 0
        await asyncio.to_thread(server.start)
        await feeder.until_acknowledged(300)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        await feeder.require_all_once(stream)


def _is_waiting(feeder: SpoolFeeder, producer: Producer) -> bool:
    held = producer.stats.sent - producer.stats.acknowledged - producer.stats.spooled
    return held >= 200


async def test_send_raises_when_the_spool_is_full(own_server: OwnServer, tmp_path: Path) -> None:
    """With ``on_full="raise"`` send raises then, what it took before is kept, and it can be sent
    again later."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    events = iter(make_events(100_000))
    taken: list[Event] = []
    async with (
        Stream("power", server.url) as stream,
        Producer(
            stream,
            spool=spool,
            spool_bytes_max=16 * 1024,
            deadline_ms=AFTER_MS,
            buffer_events_max=200,
            on_full="raise",
        ) as producer,
    ):
        server.kill()
        deadline = time.monotonic() + 30
        full_since: float | None = None
        event = next(events)
        # Full for good: it has stayed so for longer than it takes to move a buffer to the spool.
        while full_since is None or time.monotonic() - full_since < 1:
            assert time.monotonic() < deadline
            try:
                await producer.send(event)
            except BackpressureError as error:
                assert error.retryable
                full_since = full_since or time.monotonic()
                await asyncio.sleep(0.02)
            else:
                taken.append(event)
                event = next(events)
                full_since = None
                await asyncio.sleep(0)
        assert producer.stats.spooled
        await asyncio.to_thread(server.start)

        async def is_taken() -> bool:
            try:
                await producer.send(event)
            except BackpressureError:
                return False
            return True

        await eventually(is_taken, 20)
        await producer.flush()
        await until_empty(spool)
        assert producer.stats.failed == 0
        ((standing),) = await events_of(stream)
        require_same(numbers(event for _, event in standing), numbers([*taken, event]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB of its own, of which a spool leaves 64 free."""
    with mounted_disk(tmp_path / "disk", 96) as folder:
        yield folder


async def test_full_disk(own_server: OwnServer, small_disk: Path) -> None:
    """When others fill the spool's disk, sending waits as with a full spool; nothing is lost, and
    it is drained while the disk is still full."""
    server, spool = own_server("valkey-9.1", **KEPT), small_disk / "s"
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=spool, deadline_ms=AFTER_MS, buffer_events_max=200) as producer,
    ):
        feeder = SpoolFeeder(producer)
        server.kill()
        await feeder.until_spooled(1_000)
        ballast = small_disk / "ballast"
        stat = os.statvfs(small_disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize)
        await eventually(lambda: _is_waiting(feeder, producer), 30, what="send waits")
        await asyncio.to_thread(server.start)
        await feeder.until_acknowledged(300)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        await feeder.require_all_once(stream)


# --- starting without a server -------------------------------------------------------------------


async def test_start_while_the_server_is_away(own_server: OwnServer, tmp_path: Path) -> None:
    """A producer whose spool knows the stream starts without the server; what it sends goes behind
    what was there, and all of it goes out when the server comes."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    before = await fill_spool(server, spool, 300, shards=4)
    server.kill()
    async with Producer(Stream("power", server.url), spool=spool, deadline_ms=AFTER_MS) as producer:
        feeder = SpoolFeeder(producer, first=300)
        await feeder.until_spooled(100)
        assert producer.stream.shards == 4
        assert isinstance(producer.trouble, ServerUnavailableError)
        await asyncio.to_thread(server.start)
        await feeder.until_acknowledged(100)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        assert producer.stats.drained == 300 + producer.stats.spooled
        async with Stream("power", server.url) as stream:
            await feeder.require_all_once(stream, before=before)


async def test_first_start_without_a_server(tmp_path: Path) -> None:
    """A spool that knows no stream does not help: how many shards there are is not known."""
    stream = Stream("power", f"redis://127.0.0.1:{free_port()}")
    for _ in range(2):
        with pytest.raises(ServerUnavailableError):
            await Producer(stream, spool=tmp_path / "s").start()
    assert summary_of(tmp_path / "s").stream is None


async def test_server_that_comes_back_empty(own_server: OwnServer, tmp_path: Path) -> None:
    """A server that has lost everything gets the definition again, and what was spooled."""
    server, spool = own_server("valkey-9.1"), tmp_path / "s"
    async with Stream("power", server.url, shards=4, key_field="meter", codec="plain"):
        pass
    before = await fill_spool(server, spool, 300, shards=4, codec="plain")
    server.kill()
    async with Producer(Stream("power", server.url), spool=spool, deadline_ms=AFTER_MS) as producer:
        feeder = SpoolFeeder(producer, first=300)
        await feeder.until_spooled(20)
        await asyncio.to_thread(server.start)
        await feeder.until_acknowledged(20)
        await feeder.finish()
        await until_empty(spool)
        feeder.require_true_stats()
        async with Stream("power", server.url, shards=4) as stream:
            await feeder.require_all_once(stream, before=before)


@pytest.mark.parametrize("has_spool", [True, False])
async def test_server_that_is_emptied_under_a_producer(
    has_spool: bool, own_server: OwnServer, tmp_path: Path
) -> None:
    """So under a producer that runs: a reader that comes later finds all shards."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url, shards=4, key_field="meter") as stream,
        Producer(
            stream, spool=tmp_path / "s" if has_spool else None, deadline_ms=5_000
        ) as producer,
    ):
        await (await producer.send_many(make_events(50)))
        server.kill()
        receipts = await producer.send_many(make_events(50, first=50))
        await asyncio.to_thread(server.start)
        with contextlib.suppress(SpooledError):
            await receipts
        if has_spool:
            await until_empty(tmp_path / "s")
    async with Stream("power", server.url) as found:
        assert (found.shards, found.definition.key_field) == (4, "meter")
        standing = [event for shard in await events_of(found) for _, event in shard]
        assert sorted(numbers(standing)) == list(range(50, 100))


async def test_server_with_another_definition(
    own_server: OwnServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server whose stream was made anew in another way is given nothing; the error is in the log,
    and everything stays in the spool until the server is as it was."""
    server, spool = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    before = await fill_spool(server, spool, 300, shards=4)
    server.command("SET", "{power}:definition", '{"shards":2}')
    server.kill()
    async with Producer(Stream("power", server.url), spool=spool, deadline_ms=AFTER_MS) as producer:
        await asyncio.to_thread(server.start)
        feeder = SpoolFeeder(producer, first=300)
        await feeder.until_spooled(100)
        await feeder.finish()
        assert "has another definition" in caplog.text
        assert summary_of(spool).events == 300 + len(feeder.events)
        assert server.command("KEYS", "power:*") == []
        server.command("DEL", "{power}:definition")
        await until_empty(spool)
        async with Stream("power", server.url, shards=4) as stream:
            await feeder.require_all_once(stream, before=before)


# --- blocks that the server will never take ------------------------------------------------------


def _plain(shard_key: str, producer: str, sequence: int, *, odd: bool = False):
    """A plain block of one event, whose last value may be missing."""
    fields = ("key", f"m{sequence}", "n", sequence)[: 3 if odd else 4]
    packed = pack(len(fields), *fields)
    payload = packed[packed.index(b"\n") + 1 :]
    return SpooledBlock(shard_key, producer, sequence, "", 1, payload, arguments=len(fields) + 1)


@pytest.mark.parametrize("shards", [1, 4])
async def test_block_that_is_refused_for_good(
    shards: int, own_server: OwnServer, tmp_path: Path
) -> None:
    """A block that the server will never take is set aside with its reply; those before and behind
    it, of its producer and of others, go through."""
    server, path = own_server("valkey-9.1"), tmp_path / "s"
    async with Stream("power", server.url, shards=shards) as stream:
        key = stream.keys[-1]
        with Spool(path) as spool:
            spool.bind("power", stream.keys)
            # A name without a value: that is wrong in every try.
            spool.append([_plain(key, "a", n, odd=n in (1, 5)) for n in range(1, 8)])
            spool.append([_plain(key, "b", n, odd=n == 1) for n in range(1, 4)])
        async with Producer(stream, spool=path, deadline_ms=AFTER_MS) as producer:
            feeder = SpoolFeeder(producer, first=100)
            await feeder.until_acknowledged(40)
            await until_empty(path)
            await feeder.finish()
            # What was sent while the tries went on may have gone through the spool as well.
            assert producer.stats.drained - producer.stats.spooled == 7
            assert producer.trouble is None
        by_shard = await events_of(stream)
        assert numbers(event for _, event in by_shard[-1])[:7] == [2, 3, 4, 6, 7, 2, 3]
        with Spool.open_readonly(path) as reader:
            aside = [
                (each.block.producer_id, each.block.sequence) for each in reader.aside(count_max=9)
            ]
            assert aside == [("a", 1), ("a", 5), ("b", 1)]
            assert "wrong number of arguments" in reader.aside(count_max=1)[0].reason.lower()


@pytest.mark.parametrize("difference", [-1, 1])
async def test_block_whose_arguments_are_miscounted(
    difference: int, own_server: OwnServer, tmp_path: Path
) -> None:
    """A plain block whose count of arguments is not that of its payload would put all that follows
    on the connection out of step; it is set aside as well, and those behind it go through."""
    server, path = own_server("valkey-9.1"), tmp_path / "s"
    async with (
        Server(server.url, reply_ms_max=500) as own,
        Stream("power", own) as stream,
    ):
        with Spool(path) as spool:
            spool.bind("power", stream.keys)
            good = [_plain("power", "a", n) for n in (1, 2, 3)]
            bad = SpooledBlock(
                "power", "a", 2, "", 1, good[1].payload, arguments=good[1].arguments + difference
            )
            spool.append([good[0], bad, good[2]])
        async with Producer(stream, spool=path, deadline_ms=AFTER_MS):
            await until_empty(path, 10)
        ((standing),) = await events_of(stream)
        assert numbers(event for _, event in standing) == [1, 3]
        assert summary_of(path).aside_blocks == 1


@pytest.mark.parametrize("payload", ["zeroblob(30)", "5"])
async def test_damaged_block(payload: str, own_server: OwnServer, tmp_path: Path) -> None:
    """A block that the disk has changed is not sent but set aside; the others go through."""
    import sqlite3

    server, path = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    await fill_spool(server, path, 50)
    db = sqlite3.connect(path)
    # Also its type: the byte that says that may be the one.
    db.execute(f"UPDATE block SET payload = {payload} WHERE sequence = 3")
    db.commit()
    db.close()
    drained = await drain(path, server.url, deadline_ms=20_000)
    assert drained == (40, 10)
    async with Stream("power", server.url) as stream:
        ((standing),) = await events_of(stream)
        found = numbers(event for _, event in standing)
        require_same(found, [n for n in range(50) if not 20 <= n < 30])


async def test_damage_where_blocks_are_looked_up(
    own_server: OwnServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that is damaged and cannot be found to be set aside is tried again with pauses."""
    server, path = own_server("valkey-9.1", **KEPT), tmp_path / "s"
    await fill_spool(server, path, 50)
    producer_id = summary_of(path).series[0].producer_id.encode()
    stored = path.read_bytes()
    # The row, which comes first; the index of the rows keeps what was stored.
    assert stored.count(producer_id) == 2
    path.write_bytes(stored.replace(producer_id, b"0" * len(producer_id), 1))
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=path, deadline_ms=60) as producer,
    ):
        trouble = await eventually(lambda: producer.trouble)
        assert isinstance(trouble, SpoolDamagedError)
        # Each try comes after a longer pause, so the lines are as many as the tries.
        (shard,) = producer._buffer.shards
        await eventually(lambda: shard.attempt >= 5)
        assert sum("is set aside" in line for line in caplog.messages) <= shard.attempt + 1


async def test_thread_that_cannot_be_started(
    own_server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that nobody foresaw on the way to the spool loses nothing, and the producer goes on
    when it is over."""
    server, path = own_server("valkey-9.1", **KEPT), tmp_path / "s"

    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=path, deadline_ms=60) as producer,
    ):
        server.kill()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "to_thread", refuse)
            await producer.send(make_events(1)[0])
            await eventually(lambda: isinstance(producer.trouble, ProducerError))
        await asyncio.to_thread(server.start)
        await producer.send(make_events(1, first=1)[0])
        async with asyncio.timeout(20):
            await producer.flush()
        await until_empty(path)
        ((standing),) = await events_of(stream)
        assert numbers(event for _, event in standing) == [0, 1]


# --- others --------------------------------------------------------------------------------------


async def test_close_spools_what_has_no_outcome(own_server: OwnServer, tmp_path: Path) -> None:
    """Closing while the server hangs puts what it may have got into the spool; the next producer
    sends it, and it is there once."""
    server, path = own_server("valkey-9.1"), tmp_path / "s"
    async with Stream("power", server.url) as stream:
        producer = await Producer(stream, spool=path).start()
        await (await producer.send(make_events(1)[0]))
        server.stop()
        receipts = await producer.send_many(make_events(50, first=1))
        await producer.close(deadline_ms=50)
        with pytest.raises((SpooledError, UnknownOutcomeError)):
            await receipts
        assert producer.stats.spooled == 50
        server.cont()
        async with Producer(stream, spool=path) as after:
            feeder = SpoolFeeder(after, first=51)
            await feeder.until_acknowledged(20)
            await feeder.finish()
            await until_empty(path)
        await feeder.require_all_once(stream, before=make_events(51))


async def test_closed_twice_at_once(own_server: OwnServer, tmp_path: Path) -> None:
    """A second close waits for the first: what goes to the spool is not reported as failed too."""
    server, path = own_server("valkey-9.1"), tmp_path / "s"
    async with Stream("power", server.url) as stream:
        producer = await Producer(stream, spool=path).start()
        server.stop()
        await producer.send_many(make_events(5_000))
        await asyncio.gather(producer.close(deadline_ms=50), producer.close(deadline_ms=51))
        server.cont()
    assert (producer.stats.spooled, producer.stats.failed) == (5_000, 0)
    assert summary_of(path).events == 5_000


async def test_start_that_is_cancelled(
    own_server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is cancelled while its spool is being opened lets it go again."""
    server, path = own_server("valkey-9.1"), tmp_path / "s"
    opening, go_on = threading.Event(), threading.Event()
    shrink = Spool._shrink

    def slow(spool: Spool) -> None:
        opening.set()
        assert go_on.wait(10)
        shrink(spool)

    async with Stream("power", server.url) as stream:
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "_shrink", slow)
            starting = asyncio.create_task(Producer(stream, spool=path).start())
            await eventually(opening.is_set)
            starting.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await starting
        async with Producer(stream, spool=path) as producer:
            await (await producer.send(make_events(1)[0]))
