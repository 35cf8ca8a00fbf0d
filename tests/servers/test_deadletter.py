"""Dead letters are found, put back for their group alone, and removed; nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from standpipe import Batch, Context, DeadLetters, Event, Reject, Selection, Stream, Worker
from standpipe.consumer import count_requeued
from standpipe.deadletter import DeadLetter, LetterId
from standpipe.errors import LetterNotFoundError, ServerFullError, StreamNotFoundError
from standpipe.limits import DEAD_IDS_MAX, DEAD_PAGE_LETTERS, REQUEUED_LOOK_MS
from tests.conditions import eventually
from tests.servers.entries import make_events
from tests.servers.fleet import Fleet, TestCluster, TestServer
from tests.servers.test_cli import run
from tests.servers.working import calls, running, send, settled

pytestmark = pytest.mark.servers


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members look for requeued events ten times as often as by default."""
    monkeypatch.setattr("standpipe.consumer.requeued.REQUEUED_LOOK_MS", REQUEUED_LOOK_MS // 10)


@pytest.fixture
async def stream(quick: None, server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


async def give_up(stream: Stream, group: str, *numbers: int, reason: str = "no") -> None:
    """A worker of a group handles everything there is, and gives up on some."""
    worker = Worker(stream, group)

    @worker.each
    async def handle(event: Event) -> None:
        if event.fields["n"] in numbers:
            raise Reject(f"{reason} {event.fields['n']}")

    async with running(worker):
        await eventually(lambda: settled(stream, group), ignore=(ValueError,))


async def add_letter(stream: Stream, shard: int = 0, **fields: Any) -> LetterId:
    """A letter as a worker writes it; a field that is None is left out."""
    event = Event(fields.pop("key", "meter-1"), 1_700_000_000_000, {"n": fields.pop("n", 1)})
    given = {
        "group": "g", "consumer": "c", "id": "1700000000000-0/0", "reason": "no", "trace": "",
        "deliveries": "5", "at": "1700000000001", "d": msgspec.msgpack.encode(event), **fields,
    }  # fmt: skip
    flat = [part for pair in given.items() if pair[1] is not None for part in pair]
    key = stream.dead_key(shard)
    entry: bytes = await stream.server.call("XADD", key, "*", *flat, key=key)
    return LetterId(shard, entry.decode())


async def found(stream: Stream, selection: Selection | None = None, **how: Any) -> list[DeadLetter]:
    return [letter async for letter in DeadLetters(stream).find(selection, **how)]


class Seen:
    """A worker that notes what it gets, and fails for what it is told to."""

    def __init__(self, stream: Stream, group: str, **options: Any) -> None:
        self.got: list[tuple[int, Context]] = []
        self.fails = False
        self.worker = Worker(stream, group, **options)

        @self.worker.each
        async def handle(event: Event, context: Context) -> None:
            self.got.append((event.fields["n"], context))  # type: ignore[arg-type]
            if self.fails:
                raise Reject("still no")

    @property
    def numbers(self) -> list[int]:
        return [n for n, _ in self.got]


async def requeued_keys(stream: Stream, *groups: str) -> int:
    """How many streams of requeued events there are."""
    return sum(
        [
            await stream.server.call("EXISTS", key, key=key)
            for shard in range(stream.shards)
            for group in groups
            for key in (stream.requeued_key(shard, group),)
        ]
    )


# --- looking -------------------------------------------------------------------------------------


async def test_a_letter_says_all(stream: Stream) -> None:
    """A letter has its event, group, consumer, event ID, reason, traceback, counts and time."""
    await send(stream, make_events(3))
    worker = Worker(stream, "storage", name="w1", deliveries_max=1)

    @worker.each
    async def handle(event: Event) -> None:
        if event.fields["n"] == 1:
            raise ValueError("disk full")

    async with running(worker):
        await eventually(lambda: settled(stream, "storage"), ignore=(ValueError,))
    (letter,) = await found(stream)
    (entry,) = await stream.server.call("XRANGE", stream.name, "-", "+", key=stream.name)
    assert letter.event == make_events(3)[1]
    assert letter.event_id == f"{entry[0].decode()}/1"
    assert (letter.group, letter.consumer, letter.reason) == (
        "storage", "w1", "ValueError: disk full",
    )  # fmt: skip
    assert letter.trace is not None
    assert letter.trace.rstrip().endswith("ValueError: disk full")
    assert (letter.deliveries, letter.deliveries_before, letter.requeues) == (1, 0, 0)
    assert letter.at is not None
    assert letter.raw is None
    assert await DeadLetters(stream).show(letter.id) == letter
    assert await DeadLetters(stream).show(str(letter.id)) == letter
    with pytest.raises(LetterNotFoundError, match="1-1"):
        await DeadLetters(stream).show(LetterId(0, "1-1"))


async def test_what_is_no_letter_is_shown_as_it_is(stream: Stream) -> None:
    """An entry that no codec read has its raw fields; a damaged letter is shown, never an error."""
    raw = [b"c", b"rows9", b"n", b"1", b"d", b"\xff"]
    await add_letter(stream, d=None, raw=msgspec.msgpack.encode(raw))
    await add_letter(stream, d=b"\xc1")
    await stream.server.call("XADD", stream.dead_key(0), "*", "foo", "bar", key=stream.name)
    undecoded, damaged, foreign = await found(stream)
    assert undecoded.raw == raw
    assert (undecoded.event, damaged.event, foreign.event) == (None, None, None)
    assert damaged.raw is not None
    assert b"\xc1" in damaged.raw
    assert foreign.raw == [b"foo", b"bar"]
    assert (foreign.group, foreign.deliveries, foreign.at) == (None, None, None)
    done = await DeadLetters(stream).requeue(Selection(ids=[foreign.id]))
    assert (done.requeued, done.unusable) == (0, 1)
    assert len(await found(stream)) == 3


async def test_selections(stream: Stream) -> None:
    """Letters are found by group, key, reason, time and ID, and by all conditions together."""
    ids = [
        await add_letter(stream, n=0, group="a", key="m1", reason="ValueError: Disk full"),
        await add_letter(stream, n=1, group="a", key="m2", reason="no"),
        await add_letter(stream, n=2, group="b", key="m1", reason="disk gone"),
    ]

    async def numbers(**conditions: Any) -> list[int]:
        letters = await found(stream, Selection(**conditions))
        return [letter.event.fields["n"] for letter in letters]  # type: ignore[union-attr, misc]

    assert await numbers() == [0, 1, 2]
    assert await numbers(group="a") == [0, 1]
    assert await numbers(key="m1") == [0, 2]
    assert await numbers(reason="disk") == [0, 2]
    assert await numbers(reason="disk", group="b", key="m1") == [2]
    assert await numbers(ids=[ids[2], ids[0]]) == [0, 2]
    assert await numbers(ids=ids, group="b") == [2]
    assert await numbers(start="-1h") == [0, 1, 2]
    assert await numbers(end="-1h") == []
    assert await numbers(start=int(ids[0].entry.partition("-")[0])) == [0, 1, 2]
    assert await numbers(start=int(ids[2].entry.partition("-")[0]) + 1) == []


async def test_pages_over_shards(server: TestServer, stream_name: str) -> None:
    """Letters of all shards come merged, page after page, both ways round, none twice."""
    async with Stream(stream_name, server.url, shards=3) as stream:
        ids = [await add_letter(stream, n % 3, n=n) for n in range(DEAD_PAGE_LETTERS + 20)]
        expected = sorted(ids, key=lambda one: one.order)
        assert [letter.id for letter in await found(stream)] == expected
        backwards = await found(stream, newest_first=True)
        assert [letter.id for letter in backwards] == expected[::-1]
        for place in (0, 1, 70, len(ids) - 1):
            rest = await found(stream, after=expected[place])
            assert [letter.id for letter in rest] == expected[place + 1 :]
            rest = await found(stream, after=expected[place], newest_first=True)
            assert [letter.id for letter in rest] == expected[:place][::-1]


async def test_same_entry_id_on_two_shards(server: TestServer, stream_name: str) -> None:
    """A page that ends between letters of the same entry ID loses neither."""
    async with Stream(stream_name, server.url, shards=2) as stream:
        for shard in (0, 1):
            key = stream.dead_key(shard)
            await stream.server.call("XADD", key, "5-0", "group", "g", key=key)
        first, second = [letter.id for letter in await found(stream)]
        assert (first.shard, second.shard) == (0, 1)
        assert [letter.id for letter in await found(stream, after=first)] == [second]
        assert [letter.id for letter in await found(stream, after=second)] == []
        backwards = await found(stream, after=second, newest_first=True)
        assert [letter.id for letter in backwards] == [first]


async def test_a_stream_that_is_not_there(stream: Stream) -> None:
    """A name that was mistyped is an error, and not a stream without dead letters."""
    with pytest.raises(StreamNotFoundError):
        await found(stream)
    await send(stream, make_events(1))
    assert await found(stream) == []


# --- requeueing ----------------------------------------------------------------------------------


async def test_requeued_for_its_group_alone(stream: Stream) -> None:
    """A running worker of the group gets the event once more, and no other group does."""
    await send(stream, make_events(4))
    await give_up(stream, "g", 1)
    await give_up(stream, "h", 1, 2)
    (letter,) = await found(stream, Selection(group="g"))
    mine, other = Seen(stream, "g"), Seen(stream, "h")
    length = await stream.server.call("XLEN", stream.name, key=stream.name)
    async with running(mine.worker, other.worker):
        done = await DeadLetters(stream).requeue(Selection(group="g"))
        assert (done.requeued, done.gone, done.over_limit) == (1, 0, 0)
        await eventually(lambda: mine.numbers == [1], 5)
        await eventually(lambda: _no_keys(stream, "g", "h"), 5)
    assert mine.numbers == [1]
    assert other.numbers == []
    ((_, context),) = mine.got
    assert str(context.event_id) == letter.event_id
    assert (context.shard, type(context.shard), context.deliveries) == (0, int, 1)
    assert {found.group for found in await found(stream)} == {"h"}
    # Plain clients and readers of the stream see nothing of it.
    assert await stream.server.call("XLEN", stream.name, key=stream.name) == length


async def test_what_is_requeued_is_counted(stream: Stream) -> None:
    """What waits and what is being handled is counted, and what is settled is not, though it may
    stand in the stream of requeued events still."""
    await send(stream, make_events(5))
    assert await count_requeued(stream, "g", 0) == 0
    await give_up(stream, "g", *range(5))
    await DeadLetters(stream).requeue(Selection(group="g"))
    assert await count_requeued(stream, "g", 0) == 5
    assert await count_requeued(stream, "h", 0) == 0
    go = asyncio.Event()
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event) -> None:
        if event.fields["n"] == 0:
            await go.wait()

    async with running(worker):
        await eventually(lambda: worker.stats.handled == 4)
        await eventually(lambda: _requeued_are(stream, 1))
        key = stream.requeued_key(0, "g")
        assert await stream.server.call("XLEN", key, key=key) == 5
        go.set()
        await eventually(lambda: _requeued_are(stream, 0))


async def _requeued_are(stream: Stream, count: int) -> bool:
    return await count_requeued(stream, "g", 0) == count


async def _no_keys(stream: Stream, *groups: str) -> bool:
    return not await requeued_keys(stream, *groups)


async def test_an_idle_worker_is_quick(server: TestServer, stream_name: str) -> None:
    """A worker that runs takes a requeued event up within about a second, on an idle stream."""
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(1))
        await give_up(stream, "g", 0)
        seen = Seen(stream, "g")
        async with running(seen.worker):
            await eventually(lambda: settled(stream))
            await DeadLetters(stream).requeue(Selection())
            began = time.monotonic()
            await eventually(lambda: seen.numbers == [0], 10)
        # A second is what it takes; the rest is for a machine under load.
        assert time.monotonic() - began < 5


async def test_a_worker_that_starts_later_gets_it(stream: Stream) -> None:
    """What was requeued while no worker ran waits for the next one."""
    await send(stream, make_events(4))
    await give_up(stream, "g", 0, 3)
    await DeadLetters(stream).requeue(Selection())
    assert await requeued_keys(stream, "g") == 1
    await send(stream, make_events(2, first=10))
    later = Seen(stream, "g")
    async with running(later.worker):
        await eventually(lambda: len(later.got) == 4, 5)
        await eventually(lambda: _no_keys(stream, "g"), 5)
    assert sorted(later.numbers) == [0, 3, 10, 11]


async def test_history_and_limit(stream: Stream) -> None:
    """An event that dies again says how often it was requeued and tried before; a limit holds."""
    await send(stream, make_events(1))
    await give_up(stream, "g", 0)
    (first,) = await found(stream)
    seen = Seen(stream, "g")
    seen.fails = True
    async with running(seen.worker):
        for times in (1, 2):
            assert (await DeadLetters(stream).requeue(Selection(), requeues_max=2)).requeued == 1
            await eventually(lambda times=times: seen.worker.stats.dead == times, 5)
            await eventually(lambda: found(stream), 5)
        (letter,) = await found(stream)
        for dry_run in (True, False):
            done = await DeadLetters(stream).requeue(Selection(), requeues_max=2, dry_run=dry_run)
            assert (done.requeued, done.over_limit) == (0, 1)
    assert (letter.requeues, letter.deliveries, letter.deliveries_before) == (2, 1, 2)
    assert (letter.event, letter.event_id) == (first.event, first.event_id)
    assert letter.reason == "still no"
    assert (await DeadLetters(stream).requeue(Selection(), requeues_max=None)).requeued == 1


async def test_retries_of_a_requeued_event(stream: Stream) -> None:
    """A requeued event has all its tries again, and its count is kept on the server."""
    await send(stream, make_events(1))
    await give_up(stream, "g", 0)
    await DeadLetters(stream).requeue(Selection())
    tries: list[int] = []
    worker = Worker(stream, "g", deliveries_max=3)

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        tries.append(context.deliveries)
        raise ValueError("wrong")

    async with running(worker):
        await eventually(lambda: found(stream), 10)
    assert tries == [1, 2, 3]
    (letter,) = await found(stream)
    assert (letter.deliveries, letter.deliveries_before, letter.requeues) == (3, 1, 1)


async def test_requeued_to_batches_and_threads(stream: Stream) -> None:
    """Handlers of batches and plain functions get requeued events as all others."""
    await send(stream, make_events(300))
    await give_up(stream, "g", *range(300))
    assert len(await found(stream)) == 300
    seen: Counter[int] = Counter()
    worker = Worker(stream, "g")

    @worker.batch
    def handle(batch: Batch, context: Context) -> None:
        assert (batch.shard, type(batch.shard)) == (0, int)
        assert batch.table().num_rows == len(batch)
        seen.update(event.fields["n"] for event in batch)

    async with running(worker):
        assert (await DeadLetters(stream).requeue(Selection())).requeued == 300
        await eventually(lambda: len(seen) == 300)
        await eventually(lambda: _no_keys(stream, "g"), 5)
    assert set(seen.values()) == {1}
    assert await found(stream) == []


async def test_raw_entries_can_be_requeued(stream: Stream) -> None:
    """An entry that no codec read is tried again: handled if one does now, else the same letter."""
    bad = ["c", "rows9", "n", "1", "d", "x"]
    entry_id = await stream.server.call("XADD", stream.name, "*", *bad, key=stream.name)
    seen = Seen(stream, "g")
    async with running(seen.worker):
        (letter,) = await eventually(lambda: found(stream))
        await DeadLetters(stream).requeue(Selection(ids=[letter.id]))
        again = await eventually(
            lambda: found(stream, Selection(ids=()), after=letter.id), 5, what="given up again"
        )
        assert again[0].raw == letter.raw == [part.encode() for part in bad]
        assert again[0].event_id == letter.event_id == entry_id.decode()
        assert again[0].requeues == 1
        # A letter from before the schema was mended, say.
        good = msgspec.msgpack.encode([b"n", b"7"])
        await add_letter(stream, d=None, raw=good, id=entry_id)
        await DeadLetters(stream).requeue(Selection(reason="no"))
        await eventually(lambda: seen.numbers == [7], 5)
    assert seen.got[0][1].event_id.entry == entry_id.decode()


async def test_taken_over_from_a_dead_worker(stream: Stream) -> None:
    """A requeued event whose worker dies goes to another one of the group."""
    await send(stream, make_events(1))
    await give_up(stream, "g", 0)
    await DeadLetters(stream).requeue(Selection())
    hangs = Worker(stream, "g", name="hangs", idle_ms_min=200)
    begun = asyncio.Event()

    @hangs.each
    async def handle(event: Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(hangs.run())
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await requeued_keys(stream, "g") == 1
    seen = Seen(stream, "g", idle_ms_min=200)
    async with running(seen.worker):
        await eventually(lambda: seen.numbers == [0], 10)
        await eventually(lambda: _no_keys(stream, "g"), 5)


async def test_back_under_its_name(stream: Stream) -> None:
    """A worker that comes back under its name begins with the requeued events it had pending."""
    await send(stream, make_events(1))
    await give_up(stream, "g", 0)
    await DeadLetters(stream).requeue(Selection())
    key = stream.requeued_key(0, "g")
    await stream.server.call("XGROUP", "CREATE", key, "g", "0", key=key)
    await stream.server.call("XREADGROUP", "GROUP", "g", "me", "STREAMS", key, ">", key=key)
    seen = Seen(stream, "g", name="me")
    async with running(seen.worker):
        await eventually(lambda: seen.numbers == [0], 5)
        await eventually(lambda: _no_keys(stream, "g"), 5)


async def test_leaving_gives_it_back(stream: Stream) -> None:
    """A worker that stops gives back the requeued event that it has not handled."""
    await send(stream, make_events(1))
    await give_up(stream, "g", 0)
    await DeadLetters(stream).requeue(Selection())
    hangs = Worker(stream, "g", drain_ms_max=50)
    begun = asyncio.Event()

    @hangs.each
    async def handle(event: Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running(hangs):
        await asyncio.wait_for(begun.wait(), 10)
    seen = Seen(stream, "g")
    async with running(seen.worker):
        # Far sooner than idle_ms_min, which is 30 s: it was marked idle.
        await eventually(lambda: seen.numbers == [0], 5)


async def test_it_costs_nothing_while_there_is_nothing(
    own_server: Callable[..., TestServer], stream_name: str
) -> None:
    """Without requeued events a worker asks one EXISTS a second, and reads no key more."""
    server = own_server("valkey-9.1")
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(1))
        seen = Seen(stream, "g")
        async with running(seen.worker):
            await eventually(lambda: seen.numbers == [0])
            before = calls(server, "exists"), calls(server, "evalsha"), calls(server, "xreadgroup")
            await eventually(lambda: calls(server, "exists") >= before[0] + 2, 5)
            after = calls(server, "exists"), calls(server, "evalsha"), calls(server, "xreadgroup")
        assert after[0] - before[0] <= 3
        assert after[1] == before[1]
        assert after[2] - before[2] <= 3
        assert int(server.info("clients")["connected_clients"]) <= 4


async def test_an_acl_from_before(
    own_server: Callable[..., TestServer], stream_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that may not read what is requeued says so and handles what it may."""
    server = own_server("valkey-9.1")
    keys = (stream_name, f"{{{stream_name}}}:definition", f"{{{stream_name}}}:dead")
    server.command("ACL", "SETUSER", "w", "on", ">pw", "+@all", *[f"~{key}" for key in keys])
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(3))
    url = server.url.replace("redis://", "redis://w:pw@")
    async with Stream(stream_name, url) as stream:
        seen = Seen(stream, "g")
        async with running(seen.worker):
            await eventually(lambda: len(seen.got) == 3)
            await eventually(lambda: "requeued for this group is not seen" in caplog.text)
    assert seen.numbers == [0, 1, 2]


async def test_full_memory_loses_no_letter(
    own_server: Callable[..., TestServer], stream_name: str
) -> None:
    """A server that refuses for lack of memory leaves every letter where it is."""
    server = own_server("redis-6.2")
    async with Stream(stream_name, server.url) as stream:
        for n in range(5):
            await add_letter(stream, n=n)
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ServerFullError):
            await DeadLetters(stream).requeue(Selection())
        assert len(await found(stream)) == 5
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert (await DeadLetters(stream).requeue(Selection())).requeued == 5


async def test_two_at_once_requeue_each_letter_once(stream: Stream) -> None:
    """Two programs that requeue the same letters move each of them once."""
    for n in range(400):
        await add_letter(stream, n=n)
    async with Stream(stream.name, stream.server.address.url) as second:
        outcomes = await asyncio.gather(
            DeadLetters(stream).requeue(Selection()), DeadLetters(second).requeue(Selection())
        )
    assert sum(done.requeued for done in outcomes) == 400
    key = stream.requeued_key(0, "g")
    assert await stream.server.call("XLEN", key, key=key) == 400
    assert await found(stream) == []


async def test_what_dies_meanwhile_is_not_meant(stream: Stream) -> None:
    """Requeueing ends, although what is requeued fails again at once."""

    class WhileOthersFail(DeadLetters):
        async def _requeue(self, *args: Any) -> None:
            await super()._requeue(*args)
            for n in range(len(args[2])):
                await add_letter(stream, n=n)

    for n in range(DEAD_IDS_MAX + 10):
        await add_letter(stream, n=n)
    async with asyncio.timeout(30):
        done = await WhileOthersFail(stream).requeue(Selection(), requeues_max=None)
    assert done.requeued == DEAD_IDS_MAX + 10
    assert len(await found(stream)) == DEAD_IDS_MAX + 10


async def test_count_and_dry_run(stream: Stream) -> None:
    """The oldest so many are requeued; a dry run counts the same and changes nothing."""
    for n in range(5):
        await add_letter(stream, n=n)
    for dry_run, left in ((True, 5), (False, 3)):
        done = await DeadLetters(stream).requeue(Selection(), count_max=2, dry_run=dry_run)
        assert done.requeued == 2
        assert len(await found(stream)) == left
    numbers = [letter.event.fields["n"] for letter in await found(stream)]  # type: ignore[union-attr]
    assert numbers == [2, 3, 4]


async def test_in_a_cluster(cluster: Callable[..., TestCluster], stream_name: str) -> None:
    """Over the shards of a cluster letters are listed, requeued and taken up, each on its node."""
    async with Stream(stream_name, cluster("valkey-9.1").url, shards=4) as stream:
        await send(stream, make_events(40, keys=40))
        await give_up(stream, "g", *range(40))
        assert len({letter.id.shard for letter in await found(stream)}) == 4
        seen = Seen(stream, "g")
        async with running(seen.worker):
            assert (await DeadLetters(stream).requeue(Selection(group="g"))).requeued == 40
            await eventually(lambda: len(seen.got) == 40)
            await eventually(lambda: _no_keys(stream, "g"), 5)
        assert sorted(seen.numbers) == list(range(40))
        assert {context.shard for _, context in seen.got} == {0, 1, 2, 3}
        assert await found(stream) == []


# --- removing ------------------------------------------------------------------------------------


async def test_purge(stream: Stream) -> None:
    """What is selected goes for good, counted; a dry run counts the same and removes nothing."""
    await send(stream, make_events(1))
    for n in range(300):
        await add_letter(stream, n=n, group="a" if n % 3 else "b")
    letters = DeadLetters(stream)
    assert await letters.purge(Selection(group="b"), dry_run=True) == 100
    assert len(await found(stream)) == 300
    assert await letters.purge(Selection(group="b")) == 100
    assert await letters.purge(Selection(end="-1h")) == 0
    assert {letter.group for letter in await found(stream)} == {"a"}
    assert await letters.purge(Selection()) == 200
    assert await found(stream) == []


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
async def one_stream(fleet: Fleet, stream_name: str) -> AsyncIterator[Stream]:
    """On one server: what the commands do there, the tests above do on each."""
    async with Stream(stream_name, fleet.shared("valkey-9.1").url) as found:
        yield found


async def test_command_line(one_stream: Stream) -> None:
    """`standpipe dead` lists, shows, requeues and purges, with JSON and dry runs."""
    stream = one_stream
    await send(stream, make_events(4))
    await give_up(stream, "g", 1, 2, 3)

    async def dead(*args: str) -> list[Any]:
        line = ("dead", *args, "--json")
        done = await asyncio.to_thread(run, *line, url=stream.server.address.url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    listed = await dead("list", stream.name, "--newest", "-n", "2")
    assert [line["event"]["fields"]["n"] for line in listed] == [3, 2]
    (rest,) = await dead("list", stream.name, "--newest", "--after", listed[1]["letter"])
    (shown,) = await dead("show", stream.name, rest["letter"])
    assert shown == rest
    assert (shown["group"], shown["reason"], shown["deliveries"]) == ("g", "no 1", 1)
    assert (shown["event"]["key"], shown["raw"]) == ("meter-1", None)
    args = ("requeue", stream.name, rest["letter"])
    counts = {"over_limit": 0, "unusable": 0, "gone": 0}
    assert await dead(*args, "--dry-run") == [{"requeued": 1, **counts, "dry_run": True}]
    assert await dead(*args) == [{"requeued": 1, **counts, "dry_run": False}]
    assert await requeued_keys(stream, "g") == 1
    assert await dead("purge", stream.name, "--older-than", "1h") == [
        {"purged": 0, "dry_run": False}
    ]
    assert await dead("purge", stream.name, "--all") == [{"purged": 2, "dry_run": False}]
    assert await found(stream) == []


async def test_command_line_for_people(one_stream: Stream) -> None:
    """Without --json the commands print lines, and what is wrong with a hint and an exit code."""
    stream = one_stream
    await send(stream, make_events(1))
    letter = await add_letter(stream, reason="disk\nfull", trace="Traceback …")
    cases = (
        ("list", (), 0, f"{letter} g 1700000000000-0/0 meter-1 5 disk full\n"),
        ("show", (str(letter),), 0, "Traceback …"),
        ("show", ("1-1",), 1, "standpipe dead list"),
        ("show", ("nonsense",), 2, "ID of a dead letter"),
        ("requeue", (), 2, "--all"),
        ("purge", (), 2, "--all"),
        ("purge", ("--group", "g", "--dry-run"), 0, "purged 1 (dry run: nothing was changed)"),
    )
    for name, args, code, text in cases:
        line = ("dead", name, stream.name, *args)
        done = await asyncio.to_thread(run, *line, url=stream.server.address.url)
        assert done.returncode == code, done.stderr
        assert text in (done.stderr if code else done.stdout)
    assert len(await found(stream)) == 1
