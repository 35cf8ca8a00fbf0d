"""One member of a group: what it reads, acknowledges and leaves, and what ends it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis

from standpipe import Event, Producer, Stream
from standpipe.consumer.lane import Lane
from standpipe.errors import AuthenticationError, NotPermittedError, WrongTypeError
from standpipe.limits import READ_COUNT
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.consuming import Taken, consuming, hand_out, watching
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestSentinel, TestServer
from tests.servers.moving import move_slot
from tests.servers.working import calls, pending, send

pytestmark = pytest.mark.servers
OwnServer = Callable[..., TestServer]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


# --- reading -------------------------------------------------------------------------------------


async def test_acks_travel_with_reads(own_server: OwnServer, server_name: str) -> None:
    """While there is more to read, acknowledgements go ahead of the next read in its round trip."""
    server = own_server(server_name)
    async with Stream("s", server.url) as stream:
        await send(stream, make_events(60), "plain")
        with watching(server) as seen:
            async with consuming(stream, in_flight_events_max=2) as taken:
                done = 0
                while done < 60:
                    await eventually(lambda done=done: len(taken.deliveries) > done)
                    for delivery in taken.deliveries[done:]:
                        taken.consumer.ack(0, delivery.ids)
                        done += len(delivery.ids)
                await eventually(lambda: taken.consumer.stats.acknowledged == 60)
            await eventually(lambda: any("XACK" in line for _, line in seen))
    reader = next(address for address, line in seen if "XREADGROUP" in line)
    mine = [line for address, line in seen if address == reader]
    acks = [at for at, line in enumerate(mine) if line.startswith('"XACK"')]
    # The last ones find the reader waiting for new entries and go by themselves.
    assert sum('"XACK"' in line for address, line in seen if address != reader) <= 2
    assert len(acks) >= 20
    assert all('"XREADGROUP"' in mine[at + 1] for at in acks)


async def test_an_idle_consumer_costs_little(own_server: OwnServer, server_name: str) -> None:
    """With nothing to do a consumer waits at the server: it does not ask again and again."""
    server = own_server(server_name)
    async with Stream("s", server.url) as stream, consuming(stream, idle_ms_min=300) as taken:
        await send(stream, make_events(3))
        await eventually(lambda: len(taken.ids) == 1)
        taken.ack_all()
        await eventually(lambda: taken.consumer.stats.acknowledged == 1)
        before = {name: calls(server, name) for name in ("xreadgroup", "xack", "xautoclaim")}
        # Some ten sweeps take a second.
        await eventually(lambda: calls(server, "xautoclaim") >= before["xautoclaim"] + 10)
        assert calls(server, "xreadgroup") <= before["xreadgroup"] + 1
        assert calls(server, "xack") == before["xack"]


@pytest.mark.parametrize("shards", [1, 8])
async def test_new_entries_stay_within_the_limit(
    server: TestServer, stream_name: str, shards: int
) -> None:
    """However many shards one read covers, no more events are in flight than is allowed, but for
    the one entry that each shard gives at least."""
    async with Stream(stream_name, server.url, shards=shards) as stream:
        await send(stream, make_events(400, keys=50), "plain")
        async with consuming(stream, in_flight_events_max=64) as taken:
            await eventually(lambda: taken.consumer.in_flight >= 56)
            assert taken.consumer.in_flight == len(await pending(stream)) <= 64 + shards - 1
            for _ in range(100):
                taken.ack_all()
                if taken.consumer.stats.read == 400:
                    break
                read = taken.consumer.stats.read
                await eventually(lambda read=read: taken.consumer.stats.read > read)
                assert taken.consumer.in_flight <= 64 + shards - 1
            assert sorted(taken.numbers) == list(range(400))


async def test_blocks_stay_within_the_limit(stream: Stream) -> None:
    """Blocks count by their events: a read does not ask for many large ones at once."""
    for first in range(0, 5_000, 250):
        await send(stream, make_events(250, first=first))
    async with consuming(stream, in_flight_events_max=1_000) as taken:
        await eventually(lambda: taken.consumer.in_flight >= 1_000)
        assert taken.consumer.in_flight == 1_000
        while taken.consumer.stats.read < 20:
            taken.ack_all()
            read = taken.consumer.stats.read
            await eventually(lambda read=read: taken.consumer.stats.read > read)
            assert taken.consumer.in_flight <= 1_250
        assert sorted(taken.numbers) == list(range(5_000))


@pytest.mark.parametrize(("size", "limit"), [(300_000, 600_000), (1_000, 10_000)])
async def test_bytes_stay_within_the_limit(stream: Stream, size: int, limit: int) -> None:
    """What is held is bounded in bytes too, however large the entries; all of them come."""
    sent = 10 if size > limit // 10 else 50
    async with Producer(stream, codec="plain", event_bytes_max=2 * size) as producer:
        for n in range(sent):
            await producer.send(Event("m", n, {"n": n, "text": "x" * size}))
    async with consuming(stream, in_flight_bytes_max=limit) as taken:
        while len(taken.ids) < sent:
            seen = len(taken.ids)
            await eventually(lambda seen=seen: len(taken.ids) > seen)
            # By less than one entry it may be passed: what comes is not known beforehand.
            assert taken.consumer.in_flight_bytes < limit + size
            assert taken.consumer.in_flight_bytes >= size
            taken.ack_all()
        assert taken.consumer.in_flight_bytes == 0
        assert sorted(taken.numbers) == list(range(sent))


async def test_large_entries_are_taken_over_within_the_limit(
    stream: Stream, server: TestServer
) -> None:
    """A takeover is bounded in bytes as well: a large legacy is taken in as there is room."""
    async with Producer(stream, codec="plain", event_bytes_max=200_000) as producer:
        for n in range(12):
            await producer.send(Event("m", n, {"n": n, "text": "x" * 100_000}))
    hand_out(server, stream, "dead", 12)
    async with consuming(stream, idle_ms_min=200, in_flight_bytes_max=250_000) as taken:
        while len(taken.ids) < 12:
            seen = len(taken.ids)
            await eventually(lambda seen=seen: len(taken.ids) > seen)
            assert taken.consumer.in_flight_bytes <= 450_000
            taken.ack_all()
        assert sorted(taken.numbers) == list(range(12))


async def test_own_pending_entries_stay_within_the_limit(
    stream: Stream, server: TestServer
) -> None:
    """Coming back to a long pending list, a consumer takes it in by what it has room for, though
    its reader and its sweep both do; a sweep may pass the limit by a quarter."""
    await send(stream, make_events(300), "plain")
    hand_out(server, stream, "me", 300)
    async with consuming(stream, in_flight_events_max=40) as taken:
        while taken.consumer.stats.read < 300:
            assert taken.consumer.in_flight <= 50
            taken.ack_all()
            read = taken.consumer.stats.read
            await eventually(lambda read=read: taken.consumer.stats.read > read)
        assert sorted(taken.numbers) == list(range(300))
        assert {count for d in taken.deliveries for count in d.deliveries.values()} == {1}


async def test_reconnecting_is_no_delivery(stream: Stream, server: TestServer) -> None:
    """What is held while the connection is cut is neither delivered nor counted again."""
    await send(stream, make_events(5), "plain")
    async with consuming(stream) as taken:
        await eventually(lambda: len(taken.ids) == 5)
        for turn in range(5, 11):
            server.cli("CLIENT", "KILL", "TYPE", "normal")
            await send(stream, make_events(1, first=turn), "plain")
            await eventually(lambda turn=turn: turn in taken.numbers)
        assert taken.numbers == [*range(5), *range(5, 11)]
        assert {count for _, count in (await pending(stream))} == {1}


class ReadCutter(Proxy):
    """Cuts the connection before the reply to a read of new entries arrives."""

    def _choose(self, request: bytes) -> str:
        if not self.every or b"XREADGROUP" not in request:
            return ""
        self.done["lost reply"] += 1
        return "lost reply"


async def test_a_lost_reply_is_read_again(server: TestServer, stream_name: str) -> None:
    """Entries whose reply was lost on the way are delivered, and those that arrived only once."""
    async with (
        ReadCutter(server.port) as proxy,
        Stream(stream_name, proxy.url) as stream,
        consuming(stream) as taken,
    ):
        await send(stream, make_events(3), "plain")
        await eventually(lambda: len(taken.ids) == 3)
        for turn in range(1, 5):
            proxy.every = 1
            # The read that waits was sent before; this event ends it.
            await send(stream, make_events(1, first=3 * turn), "plain")
            await eventually(lambda turn=turn: proxy.done["lost reply"] >= turn)
            await send(stream, make_events(2, first=3 * turn + 1), "plain")
            proxy.every = 0
            await eventually(lambda turn=turn: len(taken.numbers) == 3 * turn + 3)
        assert sorted(taken.numbers) == list(range(15))
        assert proxy.done["lost reply"] >= 4


async def test_the_next_read_is_under_way_while_one_is_decoded(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a backlog the server is asked for more before what came is decoded, within the limits."""
    seen: list[tuple[int, int]] = []
    take = Lane._take

    def watched(lane: Lane, shard: int, rows: list[Any], counts: dict[bytes, int]) -> None:
        asked = 0 if lane._asked is None else lane._asked.count
        seen.append((len(rows), asked))
        take(lane, shard, rows, counts)

    monkeypatch.setattr(Lane, "_take", watched)
    await send(stream, make_events(4_000), "plain")
    async with consuming(stream, in_flight_events_max=3_000) as taken:
        await eventually(lambda: len(taken.ids) == 3_000)
        full = [asked for rows, asked in seen if rows == READ_COUNT]
        assert full[0] == READ_COUNT
        # Then nothing more would fit.
        assert full[-1] == 0
        taken.ack_all()
        await eventually(lambda: sorted(taken.numbers) == list(range(4_000)))


async def test_cuts_while_reading_ahead(server: TestServer, stream_name: str) -> None:
    """Connections are cut while there is a backlog: each entry is delivered once, as it is known
    here, and nothing is left pending."""
    count, cuts = 15_000, 6
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(count), "plain")
        async with consuming(stream) as taken:
            acked = 0
            for cut in range(1, cuts + 1):
                await eventually(lambda cut=cut: len(taken.ids) > cut * count // (cuts + 2))
                server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                for delivery in taken.deliveries[acked:]:
                    taken.consumer.ack(delivery.shard, delivery.ids)
                acked = len(taken.deliveries)
            await eventually(lambda: len(taken.ids) == count, 30)
            for delivery in taken.deliveries[acked:]:
                taken.consumer.ack(delivery.shard, delivery.ids)
            await eventually(lambda: taken.consumer.stats.acknowledged == count, 30)
        assert await pending(stream) == []
        assert sorted(taken.numbers) == list(range(count))


class AckCutter(Proxy):
    """Cuts the connection in the middle of the first requests that acknowledge."""

    def _choose(self, request: bytes) -> str:
        if self.done["half a request"] == 3 or b"XACK" not in request:
            return ""
        self.done["half a request"] += 1
        return "half a request"


async def test_an_acknowledgement_that_is_cut_off_is_sent_again(
    server: TestServer, stream_name: str
) -> None:
    """Acknowledgements that did not arrive are sent until they have; nothing is delivered anew."""
    async with (
        AckCutter(server.port) as proxy,
        Stream(stream_name, proxy.url) as stream,
        consuming(stream) as taken,
    ):
        await send(stream, make_events(5), "plain")
        await eventually(lambda: len(taken.ids) == 5)
        taken.ack_all()
        await eventually(lambda: taken.consumer.stats.acknowledged == 5)
        assert proxy.done["half a request"] == 3
        assert await pending(stream) == []
        assert taken.numbers == list(range(5))


async def test_an_acknowledgement_that_is_refused_for_now_is_sent_again(
    own_server: OwnServer,
) -> None:
    """A server that takes no writes for a while refuses acknowledgements: they are kept."""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream, consuming(stream) as taken:
        await send(stream, make_events(5), "plain")
        await eventually(lambda: len(taken.ids) == 5)
        # Of a primary that is not there: it keeps its data and answers READONLY.
        server.cli("REPLICAOF", "127.0.0.1", 1)
        failed = _rejected(server)
        taken.ack_all()
        await eventually(lambda: _rejected(server) > failed + 1)
        assert taken.consumer.stats.acknowledged == 0
        server.cli("REPLICAOF", "NO", "ONE")
        await eventually(lambda: taken.consumer.stats.acknowledged == 5)
        assert await pending(stream) == []
        assert taken.numbers == list(range(5))


def _rejected(server: TestServer) -> int:
    """How many acknowledgements a server has refused."""
    found = server.info("commandstats").get("cmdstat_xack", "")
    return int(found.partition("rejected_calls=")[2].partition(",")[0] or 0)


async def test_a_blocked_read_holds_up_nothing(server: TestServer, stream_name: str) -> None:
    """Each reader waits over a connection of its own: commands of the same process, and other
    consumers over the same Stream, do not wait with it."""
    async with (
        Stream(stream_name, server.url) as stream,
        consuming(stream, "one") as one,
        consuming(stream, "two") as two,
    ):

        def blocked() -> int:
            return server.cli("CLIENT", "LIST").count(" cmd=xreadgroup ")

        await eventually(lambda: blocked() == 2)
        began = asyncio.get_running_loop().time()
        for n in range(20):
            await stream.server.call("XLEN", stream.name, key=stream.name)
            await send(stream, make_events(1, first=n), "plain")
            await eventually(lambda n=n: len(one.ids) + len(two.ids) == n + 1)
        # One read that waits is two seconds.
        assert asyncio.get_running_loop().time() - began < 2


# --- groups --------------------------------------------------------------------------------------


async def test_a_destroyed_group_is_created_again(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a group that is created again, what is being handled is not delivered a second time."""
    await send(stream, make_events(3), "plain")
    async with consuming(stream) as taken:
        await eventually(lambda: len(taken.ids) == 3)
        server.cli("XGROUP", "DESTROY", stream.name, "g")
        await send(stream, make_events(1, first=3), "plain")
        await eventually(lambda: 3 in taken.numbers)
        assert taken.numbers == [0, 1, 2, 3]
        assert taken.consumer.stats.groups_created == 2
        assert taken.consumer.in_flight == 4
        taken.ack_all()
        await eventually(lambda: taken.consumer.stats.acknowledged == 4)
        assert taken.consumer.in_flight == 0
        assert await pending(stream) == []
    assert "is created again at 0" in caplog.text


@pytest.mark.parametrize("how", ["DESTROY", "DEL", "FLUSHALL"])
async def test_a_group_from_now_on_skips_nothing_when_it_is_lost(
    own_server: OwnServer, server_name: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A group that began at ``$`` is created again where it was, not at ``$``: what came meanwhile
    is delivered, and what came before it is not."""
    server = own_server(server_name)
    async with Stream("s", server.url) as stream:
        await send(stream, make_events(2), "plain")
        async with consuming(stream, start="$") as taken:
            await send(stream, make_events(2, first=2), "plain")
            await eventually(lambda: taken.numbers == [2, 3])
            taken.consumer.ack(0, taken.ids[:1])
            await eventually(lambda: taken.consumer.stats.acknowledged == 1)
            # In one step with what comes then, so that no read can be quicker.
            lose = {"DESTROY": "'XGROUP','DESTROY','s','g'", "DEL": "'DEL','s'"}.get(
                how, f"'{how}'"
            )
            add = "redis.call('XADD','s','*','key','m','n',ARGV[1])"
            server.command("EVAL", f"redis.call({lose}); {add}", 1, "s", 4)
            await send(stream, make_events(1, first=5), "plain")
            await eventually(lambda: 5 in taken.numbers)
            assert taken.numbers == [2, 3, 4, 5]
            # What was being handled when the group was lost is pending once more.
            assert len(await pending(stream)) == (3 if how == "DESTROY" else 2)
    assert "it is created again at" in caplog.text


async def test_an_idle_member_skips_nothing_when_the_group_is_lost(
    stream: Stream, server: TestServer
) -> None:
    """A member that was given nothing yet knows where the group stood as well."""
    await send(stream, make_events(2), "plain")
    async with consuming(stream, start="$") as taken:
        await eventually(lambda: taken.consumer.stats.groups_created)
        server.command(
            "EVAL",
            "redis.call('XGROUP','DESTROY',KEYS[1],'g');"
            "redis.call('XADD',KEYS[1],'*','key','m','n','2')",
            1,
            stream.name,
        )
        await eventually(lambda: taken.numbers)
        assert taken.numbers == [2]


async def test_losing_a_group_does_not_spin(own_server: OwnServer, server_name: str) -> None:
    """A group that is lost again and again costs some commands each time, not a hot loop."""
    server = own_server(server_name)
    async with Stream("s", server.url) as stream, consuming(stream) as taken:
        for turn in range(2, 6):
            server.cli(
                "DEL" if turn % 2 else "XGROUP", *(["s"] if turn % 2 else ["DESTROY", "s", "g"])
            )
            await eventually(lambda turn=turn: taken.consumer.stats.groups_created == turn)
        assert calls(server, "xreadgroup") <= 4 * 3
        before = calls(server, "xreadgroup")
        await send(stream, make_events(1))
        await eventually(lambda: taken.numbers == [0])
        assert calls(server, "xreadgroup") <= before + 3


async def test_a_group_that_may_not_be_created_ends_the_consumer(own_server: OwnServer) -> None:
    """Where the group is lost and may not be created again, that is an error and not a loop."""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream, consuming(stream) as taken:
        server.cli("ACL", "SETUSER", "default", "-xgroup")
        server.cli("DEL", "s")
        await eventually(lambda: taken.error)
        assert isinstance(taken.error, NotPermittedError)


async def test_another_type_at_the_key_ends_the_consumer(
    stream: Stream, server: TestServer
) -> None:
    """If something else takes the stream's place the consumer says so and ends."""
    async with consuming(stream) as taken:
        server.cli("SET", stream.name, "text")
        await eventually(lambda: taken.error)
        assert isinstance(taken.error, WrongTypeError)


async def test_a_refused_acknowledgement_ends_the_consumer(own_server: OwnServer) -> None:
    """An acknowledgement that may not be given is an error: the events would come for ever."""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream, consuming(stream) as taken:
        await send(stream, make_events(1))
        await eventually(lambda: taken.ids)
        server.cli("ACL", "SETUSER", "default", "-xack")
        taken.ack_all()
        await eventually(lambda: taken.error)
        assert isinstance(taken.error, NotPermittedError)
        assert len(await pending(stream)) == 1


@pytest.mark.parametrize("method", ["_read_new", "flush", "_renew"])
async def test_a_loop_that_breaks_ends_the_consumer(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """An error that nobody foresaw, in the reader, the flusher or the keeper, is raised: the
    consumer does not stand still without a word."""

    async def broken(*_: object, **__: object) -> None:
        raise KeyError("a fault of ours")

    async with consuming(stream, idle_ms_min=300) as taken:
        await send(stream, make_events(1))
        await eventually(lambda: taken.ids)
        with monkeypatch.context() as patched:
            patched.setattr(Lane, method, broken)
            taken.ack_all()
            await send(stream, make_events(1, first=1))
            await eventually(lambda: taken.error)
    assert isinstance(taken.error, KeyError)


# --- leaving -------------------------------------------------------------------------------------


async def test_leaving_with_nothing_pending(stream: Stream, server: TestServer) -> None:
    """A consumer that has settled everything is no member of the group any more."""
    await send(stream, make_events(3), "plain")
    async with consuming(stream, leave=True) as taken:
        await eventually(lambda: len(taken.ids) == 3)
        taken.ack_all()
    assert await pending(stream) == []
    assert server.command("XINFO", "CONSUMERS", stream.name, "g") == []


async def test_leaving_gives_back(stream: Stream, server: TestServer) -> None:
    """What is left is marked idle, keeps its count, and its consumer stays until it is taken."""
    await send(stream, make_events(2_500), "plain")
    async with consuming(stream, "first", leave=True, idle_ms_min=200) as first:
        await eventually(lambda: len(first.ids) == 2_500)
        first.consumer.ack(0, first.ids[:10])
    (row,) = server.command("XINFO", "CONSUMERS", stream.name, "g")
    assert (row[1], row[3]) == ("first", 2_490)
    rows = server.command("XPENDING", stream.name, "g", "-", "+", 5_000)
    assert len(rows) == 2_490
    assert all(idle >= 200 and count == 1 for _, _, idle, count in rows)


async def test_leaving_a_group_that_is_gone(stream: Stream, server: TestServer) -> None:
    """Leaving goes through where there is nothing to leave any more."""
    async with consuming(stream, leave=True) as taken:
        await taken.consumer.stop_reading()
        server.cli("DEL", stream.name)
    assert server.cli("EXISTS", stream.name) == "0"


async def test_leaving_a_server_that_is_gone(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a server, leaving ends after some tries and says what that means."""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream, consuming(stream, leave=True) as taken:
        await send(stream, make_events(1))
        await eventually(lambda: taken.ids)
        taken.ack_all()
        server.kill()
    assert "could not leave" in caplog.text


# --- failover ------------------------------------------------------------------------------------


async def _follows(
    stream: Stream, trouble: Callable[[], Awaitable[None]], taken: Taken, shards: int
) -> None:
    await send(stream, make_events(50, keys=50), "plain")
    await eventually(lambda: len(taken.numbers) == 50)
    await trouble()
    await send(stream, make_events(50, keys=50, first=50), "plain")
    taken.ack_all()
    await eventually(lambda: set(taken.numbers) == set(range(100)), 30)
    taken.ack_all()
    await eventually(lambda: taken.consumer.in_flight == 0, 30)

    async def nothing_pending() -> bool:
        return not await pending(stream)

    await eventually(nothing_pending, 30)


@pytest.mark.faults
async def test_a_slot_that_moves(cluster: Callable[..., TestCluster]) -> None:
    """When a shard moves to another node of the cluster its consumer follows."""
    nodes = cluster("valkey-9.1")
    async with Stream("s", nodes.url, shards=6) as stream, consuming(stream) as taken:

        async def move() -> None:
            key = stream.keys[0]
            target = next(node for node in nodes.nodes if node is not nodes.node_of(key))
            await asyncio.to_thread(move_slot, nodes, key, target)
            await stream.server.refresh()

        await _follows(stream, move, taken, 6)
        assert max(Counter(taken.numbers).values()) == 1


@pytest.mark.faults
async def test_a_failover(sentinel: Callable[..., TestSentinel]) -> None:
    """When Sentinel names another primary the consumer goes on there."""
    found = sentinel("valkey-9.1")
    async with Stream("s", found.url) as stream, consuming(stream) as taken:

        async def fail_over() -> None:
            await eventually(lambda: found.replica.cli("XLEN", "s") == "50")
            found.sentinel.command("SENTINEL", "FAILOVER", "mymaster")
            await eventually(lambda: found.current() is found.replica, 30)
            await eventually(
                lambda: found.primary.info("replication")["role"] == "slave",
                30,
                ignore=(redis.RedisError,),  # It drops its clients meanwhile.
            )
            await stream.server.refresh()

        await _follows(stream, fail_over, taken, 1)


async def test_a_password_that_changes(own_server: OwnServer) -> None:
    """A server that asks for another password ends the consumer with an AuthenticationError."""
    server = own_server("redis-6.2", requirepass="old")
    url = server.url.replace("//", "//:old@")
    async with Stream("s", url) as stream, consuming(stream) as taken:
        server.cli("CONFIG", "SET", "requirepass", "new")
        server.config["requirepass"] = "new"
        server.cli("CLIENT", "KILL", "TYPE", "normal")
        await eventually(lambda: taken.error)
        assert isinstance(taken.error, AuthenticationError)


async def test_producing_goes_on_beside_consuming(stream: Stream) -> None:
    """Events that come while others are handled are delivered once, in the shard's order."""
    async with consuming(stream) as taken, Producer(stream, codec="plain") as producer:
        for first in range(0, 1_000, 10):
            await producer.send_many(make_events(10, first=first))
            if first % 100 == 0:
                taken.ack_all()
        await producer.flush()
        await eventually(lambda: len(taken.numbers) >= 1_000)
        assert taken.numbers == list(range(1_000))
