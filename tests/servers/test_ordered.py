"""Ordered mode: a shard belongs to one worker at a time, and its events stay in order."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Batch, Context, DeadLetters, Event, Reject, Retry, Selection, Stream, Worker
from standpipe.consumer import Consumer
from standpipe.errors import ConfigError, StandpipeError
from standpipe.keyspace import partition
from tests.conditions import eventually
from tests.servers.consuming import Taken
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.working import letters, running, send, settled

pytestmark = pytest.mark.servers
LEASE_MS = 400
LOOK_S = LEASE_MS / 5 / 1000
SHARDS = 8


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url, shards=SHARDS) as found:
        yield found


def readings(count: int, *, keys: int = 24, first: int = 0) -> list[Event]:
    """So many of each key in turn, numbered by key."""
    return [
        Event(f"d{key}", 0, {"n": n}) for n in range(first, first + count) for key in range(keys)
    ]


def ordered(stream: Stream, name: str | None = None, **options: int) -> Worker:
    return Worker(stream, "g", name=name, ordered=True, **{"lease_ms": LEASE_MS, **options})


def owned(*workers: Worker) -> list[int]:
    """How many shards each has; fails when two have the same."""
    leases = [worker.consumer.leases for worker in workers]
    sets = [set() if found is None else set(found.owned) for found in leases]
    assert len(set().union(*sets)) == sum(map(len, sets))
    return [len(found) for found in sets]


async def through(stream: Stream) -> None:
    """Wait until everything is settled; the group may not be there yet."""
    await eventually(lambda: settled(stream), 20, ignore=(ValueError, StandpipeError))


Seen = dict[str, list[int]]


def handler(worker: Worker, kind: str, seen: Seen) -> None:
    """A handler of some kind that notes what it is given."""
    if kind == "async":

        @worker.each
        async def one(event: Event) -> None:
            await asyncio.sleep(0)
            seen[event.key].append(event.fields["n"])
    elif kind == "plain":

        @worker.each
        def plain(event: Event) -> None:
            seen[event.key].append(event.fields["n"])
    else:

        @worker.batch
        async def batch(batch: Batch) -> None:
            for event in batch.events:
                seen[event.key].append(event.fields["n"])


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_members_come_and_go(stream: Stream, codec: str) -> None:
    """While members join and leave under load each key's events are handled in order, each
    once: who gives a shard up has acknowledged what it handled."""
    seen: Seen = defaultdict(list)
    total = 0

    async def keep_sending() -> None:
        nonlocal total
        for first in range(0, 200, 10):
            await send(stream, readings(10, first=first), codec)
            total += 10

    first = ordered(stream)
    handler(first, "async", seen)
    async with running(first):
        sending = asyncio.create_task(keep_sending())
        for kind in ("plain", "batch"):
            await eventually(lambda: sum(owned(first)) == SHARDS)
            other = ordered(stream)
            handler(other, kind, seen)
            async with running(other):
                await eventually(lambda o=other: owned(first, o) == [4, 4])
            assert owned(other) == [0]
        await sending
        await through(stream)
    for numbers in seen.values():
        assert list(dict.fromkeys(numbers)) == list(range(200))
        # One that is stopped leaves a block in the middle: it is handled again as a whole.
        assert codec == "rows" or len(numbers) == 200
    assert len(seen) == 24
    assert first.consumer.stats.refused == 0


async def test_balance_within_the_stated_time(stream: Stream) -> None:
    """A member that joins has its share within two looks, one that leaves is followed within one;
    with fair shares nothing moves."""
    await send(stream, readings(1))
    one, two, three = (ordered(stream, lease_ms=2_000) for _ in range(3))
    for worker in (one, two, three):
        handler(worker, "async", defaultdict(list))
    look, slack = 0.4, 1.0  # The second is the machine's.
    async with running(one):
        await eventually(lambda: owned(one) == [SHARDS])
        async with running(two):
            began = time.monotonic()
            await eventually(lambda: owned(one, two) == [4, 4])
            assert time.monotonic() - began < 2 * look + slack
            async with running(three):
                await eventually(lambda: sorted(owned(one, two, three)) == [2, 3, 3])
                taken = [w.consumer.stats.leases_taken for w in (one, two, three)]
                until = time.monotonic() + 3 * look
                await eventually(lambda: time.monotonic() > until)
                assert taken == [w.consumer.stats.leases_taken for w in (one, two, three)]
            began = time.monotonic()
            await eventually(lambda: sum(owned(one, two)) == SHARDS)
            assert time.monotonic() - began < look + slack


@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_one_that_fails_holds_up_its_shard_alone(stream: Stream, kind: str) -> None:
    """A failing event is tried again where it stands: nothing of its shard overtakes it, the others
    go on; given up in the end, it is a dead letter, and its shard goes on."""
    await send(stream, readings(20), "plain")
    bad = partition("d0", SHARDS)
    seen: Seen = defaultdict(list)
    tries: list[int] = []
    may_go = asyncio.Event()

    def check(event: Event) -> None:
        if event.key == "d0" and event.fields["n"] == 7:
            tries.append(len(seen["d0"]))
            raise Reject("never") if may_go.is_set() else Retry("not yet", after=20)
        seen[event.key].append(event.fields["n"])

    worker = ordered(stream, deliveries_max=100_000, in_flight_events_max=64)
    if kind == "async":

        @worker.each
        async def one(event: Event) -> None:
            check(event)
    elif kind == "plain":
        worker.each(check)
    else:

        @worker.batch
        async def batch(batch: Batch) -> None:
            for event in batch.events:
                check(event)

    async with running(worker):
        others = [f"d{n}" for n in range(24) if partition(f"d{n}", SHARDS) != bad]
        await eventually(lambda: all(len(seen[key]) == 20 for key in others))
        await eventually(lambda: len(tries) >= 3)
        beside = [f"d{n}" for n in range(1, 24) if partition(f"d{n}", SHARDS) == bad]
        # A batch is called whole; what stands before the failing event is seen each time.
        assert all(set(seen[key]) <= set(range(8)) for key in ("d0", *beside))
        may_go.set()
        await through(stream)
    (letter,) = await letters(stream)
    assert b"never" in letter["reason"]
    firsts = {key: list(dict.fromkeys(numbers)) for key, numbers in seen.items()}
    assert firsts["d0"] == [n for n in range(20) if n != 7]
    assert all(firsts[key] == list(range(20)) for key in (*others, *beside))


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_rejected_and_taken_out_of_a_block(stream: Stream, kind: str) -> None:
    """An event that is rejected, or fails once, out of a block changes nothing in the order."""
    await send(stream, readings(40))
    seen: Seen = defaultdict(list)
    failed: set[tuple[str, int]] = set()

    def check(event: Event) -> None:
        n, key = event.fields["n"], event.key
        if n % 10 == 3:
            raise Reject("three")
        if n % 10 == 5 and (key, n) not in failed:
            failed.add((key, n))
            raise Retry(after=1)
        seen[key].append(n)

    async def check_async(event: Event) -> None:
        check(event)

    worker = ordered(stream)
    worker.each(check if kind == "plain" else check_async)
    async with running(worker):
        await through(stream)
    assert all(numbers == [n for n in range(40) if n % 10 != 3] for numbers in seen.values())
    assert len(await letters(stream)) == 24 * 4


async def test_parts_of_what_may_have_killed_workers_go_one_at_a_time(stream: Stream) -> None:
    """At their last try, blocks that a dead worker has left are handled one at a time over all
    shards, and so are the parts of one that fails: which one it was must be clear."""
    await send(stream, readings(4))
    for key in stream.keys:
        await stream.server.call("XGROUP", "CREATE", key, "g", "0", key=key)
        read = ("XREADGROUP", "GROUP", "g", "dead", "STREAMS", key, ">")
        await stream.server.call(*read, key=key)
    worker = ordered(stream, deliveries_max=2, concurrency=4)
    seen: Seen = defaultdict(list)
    at_work: list[int] = []
    most = 0

    @worker.batch
    async def handle(batch: Batch, context: Context) -> None:
        nonlocal most
        assert context.deliveries == 2
        at_work.append(context.shard)
        most = max(most, len(at_work))
        for _ in range(5):  # Time enough for another one to begin.
            await stream.server.call("PING", key=stream.keys[0])
        at_work.remove(context.shard)
        if len(batch) > 3:
            raise ValueError("too many at once")
        for event in batch:
            seen[event.key].append(event.fields["n"])

    async with running(worker):
        await through(stream)
    assert most == 1
    assert [*seen.values()] == [[0, 1, 2, 3]] * 24
    assert await letters(stream) == []


async def test_a_former_owner_is_refused(stream: Stream) -> None:
    """One that was not heard of for longer than its lease: another owns its shards, and what it
    acknowledges or buries is refused and counted; it forgets what it held."""
    await send(stream, readings(4), "plain")
    old = Consumer(stream, "g", "old", ordered=True, lease_ms=LEASE_MS)
    await old.start()
    taken = Taken(old)
    taking = asyncio.create_task(taken.take())
    await eventually(lambda: len(taken.ids) == 96)
    # It renews and reads no more, as if it were stopped: so it does not learn of anything before
    # its acknowledgements are on their way.
    for loop in (*old._loops, *old._readers):
        if loop.get_name() in ("standpipe-leases", "standpipe-reader"):
            loop.cancel()
    assert old.leases is not None
    last = max(lease.until for lease in old.leases.owned.values())
    fences: set[int | None] = set()
    began: list[float] = []
    seen: Seen = defaultdict(list)
    worker = ordered(stream, "new")
    hold = asyncio.Event()

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        began.append(time.monotonic())
        fences.add(context.fence)
        await hold.wait()
        seen[event.key].append(event.fields["n"])

    try:
        async with running(worker):
            await eventually(lambda: owned(worker) == [SHARDS])
            # Clocks of the same machine: the old owner's handlers may not begin any more by then.
            assert time.monotonic() - last < LEASE_MS / 1000 + LOOK_S + 1.0
            await eventually(lambda: began)
            assert min(began) > last
            await eventually(lambda: worker.consumer.stats.taken_over == 96)
            await old.settle(taken.deliveries[0].shard, taken.deliveries[0].ids[0], [[b"a", b"b"]])
            assert old.stats.refused == 1
            taken.ack_all()
            # The first shard was forgotten when its letter was refused.
            first = taken.deliveries[0].shard
            left = sum(len(found.ids) for found in taken.deliveries if found.shard != first)
            await eventually(lambda: old.stats.refused == 1 + left)
            assert (old.stats.acknowledged, old.stats.leases_lost) == (0, SHARDS)
            assert old.leases.owned == {}
            assert old.in_flight == 0
            assert await letters(stream) == []
            hold.set()
            await through(stream)
        assert fences == {2}
        assert all(numbers == list(range(4)) for numbers in seen.values())
    finally:
        await old.close()
        taking.cancel()


async def test_connections_that_are_cut(server: TestServer, stream: Stream) -> None:
    """Entries whose reply was lost are found again before later ones are read."""
    seen: Seen = defaultdict(list)
    worker = ordered(stream, lease_ms=5_000)
    handler(worker, "async", seen)
    async with running(worker):
        # Its start is not what is tested here.
        await eventually(lambda: owned(worker)[0])
        for first in range(0, 100, 5):
            await send(stream, readings(5, first=first), "plain")
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await through(stream)
    assert all(numbers == list(range(100)) for numbers in seen.values())
    assert worker.consumer.stats.leases_lost == 0


async def test_a_lost_group(server: TestServer, stream: Stream) -> None:
    """A group that the server has lost is created again, and read in order."""
    await send(stream, readings(3))
    seen: Seen = defaultdict(list)
    worker = ordered(stream)
    handler(worker, "async", seen)
    async with running(worker):
        await through(stream)
        for key in stream.keys:
            server.command("XGROUP", "DESTROY", key, "g")
        await send(stream, readings(3, first=3))
        await through(stream)
        await eventually(lambda: all(numbers[-1] == 5 for numbers in seen.values()))
    assert all(numbers == [0, 1, 2, 0, 1, 2, 3, 4, 5] for numbers in seen.values())


async def test_what_is_requeued_goes_to_the_owner(stream: Stream) -> None:
    """A letter that is put back is handled by the one that owns its shard."""
    await send(stream, readings(1))
    is_mended = False
    by: dict[str, str] = {}
    workers = [ordered(stream, name) for name in ("one", "two")]
    for worker in workers:

        @worker.each
        async def handle(event: Event, worker: Worker = worker) -> None:
            if not is_mended:
                raise Reject("broken")
            by[event.key] = worker.consumer.name

    async with running(*workers):
        await eventually(lambda: sorted(owned(*workers)) == [4, 4])
        await through(stream)
        is_mended = True
        await DeadLetters(stream).requeue(Selection(group="g"))
        await eventually(lambda: len(by) == 24)
        owner = {
            shard: worker.consumer.name
            for worker in workers
            if worker.consumer.leases
            for shard in worker.consumer.leases.owned
        }
        assert by == {key: owner[partition(key, SHARDS)] for key in by}


async def test_a_server_out_of_memory(
    own_server: Callable[..., TestServer], server_name: str
) -> None:
    """Leases are renewed, and what there is is handled, when the server takes no more data."""
    server = own_server(server_name)
    async with Stream("s", server.url, shards=2) as stream:
        await send(stream, readings(5), "plain")
        seen: Seen = defaultdict(list)
        go = asyncio.Event()
        worker = ordered(stream)

        @worker.each
        async def handle(event: Event) -> None:
            await go.wait()
            seen[event.key].append(event.fields["n"])

        async with running(worker):
            await eventually(lambda: worker.consumer.in_flight == 5 * 24)
            server.command("CONFIG", "SET", "maxmemory", "1mb")
            until = time.monotonic() + 3 * LEASE_MS / 1000
            await eventually(lambda: time.monotonic() > until)
            go.set()
            await through(stream)
            assert worker.consumer.stats.leases_lost == 0
            server.command("CONFIG", "SET", "maxmemory", 0)
        assert all(numbers == list(range(5)) for numbers in seen.values())


async def test_in_a_cluster(cluster: Callable[..., TestCluster]) -> None:
    """Each shard's lease is in its slot, so that members share shards over all nodes."""
    found = cluster("valkey-9.1")
    async with Stream("c", found.url, shards=SHARDS) as stream:
        await send(stream, readings(20))
        seen: Seen = defaultdict(list)
        workers = [ordered(stream, lease_ms=2_000) for _ in range(2)]
        for worker in workers:
            handler(worker, "async", seen)
        async with running(*workers):
            await eventually(lambda: owned(*workers) == [4, 4], 20)
            await send(stream, readings(20, first=20))
            await through(stream)
        assert all(numbers == list(range(40)) for numbers in seen.values())


async def test_a_lease_that_is_too_short(stream: Stream) -> None:
    """A lease that a busy event loop would lose is refused."""
    with pytest.raises(ConfigError, match="lease_ms"):
        ordered(stream, lease_ms=99)
