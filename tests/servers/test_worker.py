"""Every event is settled: by its worker, by another one that took over, or as a dead letter."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from standpipe import Batch, Context, Event, Producer, Reject, Retry, Stream, Worker
from standpipe.errors import (
    AuthenticationError,
    ConfigError,
    HandlerError,
    ServerUnavailableError,
    WrongTypeError,
)
from tests.conditions import eventually
from tests.servers.entries import TIME, make_events, numbers
from tests.servers.fleet import TestServer
from tests.servers.working import calls, letters, running, send, settled

pytestmark = pytest.mark.servers
OwnServer = Callable[..., TestServer]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


# --- delivery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["each-async", "each-sync", "batch-async", "batch-sync"])
@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_every_event_once(stream: Stream, codec: str, kind: str) -> None:
    """Each kind of handler gets every event of each codec once, and all are acknowledged."""
    seen: list[int] = []
    worker = Worker(stream, "g")

    async def each(event: Event) -> None:
        seen.append(event.fields["n"])  # type: ignore[arg-type]

    async def batch(batch: Batch) -> None:
        seen.extend(numbers(batch))

    handlers: dict[str, Callable[..., Any]] = {
        "each-async": worker.each(each) if kind == "each-async" else each,
        "batch-async": worker.batch(batch) if kind == "batch-async" else batch,
    }
    if kind == "each-sync":
        worker.each(lambda event: seen.append(event.fields["n"]))
    if kind == "batch-sync":
        worker.batch(lambda batch: seen.extend(numbers(batch)))
    assert handlers
    await send(stream, make_events(1_200), codec)
    async with running(worker):
        await eventually(lambda: len(seen) >= 1_200)
    assert sorted(seen) == list(range(1_200))
    assert await settled(stream)


async def test_one_stream_in_all_layouts(stream: Stream, server: TestServer) -> None:
    """A group meets plain, rows and columns, and what redis-cli wrote, in one stream."""
    for codec, first in (("plain", 0), ("rows", 3), ("columns", 6)):
        await send(stream, make_events(3, first=first), codec)
    server.cli("XADD", stream.name, "*", "n", "9", "volts", "230.5")
    seen: list[Event] = []
    worker = Worker(stream, "g")
    worker.batch(seen.extend)
    async with running(worker):
        await eventually(lambda: len(seen) == 10)
    assert numbers(seen) == list(range(10))
    assert seen[9].key is None
    assert seen[9].fields == {"n": 9, "volts": 230.5}


async def test_groups_and_workers_share(stream: Stream) -> None:
    """Every group gets everything; within a group each event goes to one worker."""
    seen: dict[str, list[int]] = {"a": [], "b": [], "other": []}
    workers = []
    for name, group in (("a", "g"), ("b", "g"), ("other", "h")):
        worker = Worker(stream, group, name=name, in_flight_events_max=50)
        worker.batch(lambda batch, name=name: seen[name].extend(numbers(batch)))
        workers.append(worker)
    async with running(*workers):
        for first in range(0, 2_000, 20):
            await send(stream, make_events(20, first=first), "plain")
        await eventually(lambda: sum(map(len, seen.values())) >= 4_000)
    assert sorted(seen["a"] + seen["b"]) == list(range(2_000))
    assert sorted(seen["other"]) == list(range(2_000))
    assert seen["a"]
    assert seen["b"]


async def test_the_context_says_where_an_event_is(stream: Stream) -> None:
    """A handler that asks for it gets event ID, shard, group, delivery count and time in queue."""
    seen: list[tuple[Event, Context]] = []
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        seen.append((event, context))

    async with Producer(stream) as producer:
        ids = await (await producer.send_many(make_events(3)))
    async with running(worker):
        await eventually(lambda: len(seen) == 3)
    assert [context.event_id for _, context in seen] == ids
    assert {(c.stream, c.shard, c.group, c.deliveries) for _, c in seen} == {
        (stream.name, 0, "g", 1)
    }
    assert all(0 <= context.queued_ms < 60_000 for _, context in seen)


async def test_concurrency_is_bounded(stream: Stream) -> None:
    """No more handlers run at a time than concurrency allows, and that many do."""
    now = peak = done = 0
    enough = asyncio.Event()
    worker = Worker(stream, "g", concurrency=3)

    @worker.each
    async def handle(event: Event) -> None:
        nonlocal now, peak, done
        now += 1
        peak = max(peak, now)
        if now == 3:
            enough.set()
        await enough.wait()
        await asyncio.sleep(0)
        now -= 1
        done += 1

    await send(stream, make_events(40))
    async with running(worker):
        await eventually(lambda: done == 40)
    assert peak == 3


async def test_in_flight_is_bounded(stream: Stream) -> None:
    """A worker holds no more unsettled events than in_flight_events_max."""
    go = asyncio.Event()
    worker = Worker(stream, "g", in_flight_events_max=10, concurrency=100)

    @worker.each
    async def handle(event: Event) -> None:
        await go.wait()

    await send(stream, make_events(100), "plain")
    async with running(worker):
        await eventually(lambda: worker.consumer.in_flight >= 10)
        key = stream.name
        pending = (await stream.server.call("XPENDING", key, "g", key=key))[0]
        assert pending == worker.consumer.in_flight == 10
        go.set()
        await eventually(lambda: worker.stats.handled == 100)


async def test_acks_leave_on_an_idle_stream(stream: Stream) -> None:
    """An acknowledgement does not wait for the next event to come."""
    worker = Worker(stream, "g")
    worker.each(lambda event: None)
    async with running(worker):
        await send(stream, make_events(5))
        await eventually(lambda: worker.stats.handled == 5)
        await eventually(lambda: settled(stream), 1.5)


async def test_a_group_begins_at_the_oldest_entry_unless_told(stream: Stream) -> None:
    """A new group gets what was sent before it; with start="$" it gets what comes after."""
    await send(stream, make_events(3))
    seen: dict[str, list[int]] = {"all": [], "new": []}
    workers = []
    for group, start in (("all", "0"), ("new", "$")):
        worker = Worker(stream, group, start=start)
        worker.batch(lambda batch, group=group: seen[group].extend(numbers(batch)))
        workers.append(worker)
    async with running(*workers):
        await eventually(lambda: len(seen["all"]) == 3 and workers[1].consumer.stats.groups_created)
        await send(stream, make_events(2, first=3))
        await eventually(lambda: len(seen["all"]) == 5 and len(seen["new"]) == 2)
    assert seen == {"all": [0, 1, 2, 3, 4], "new": [3, 4]}


async def test_own_pending_comes_first(stream: Stream, server: TestServer) -> None:
    """A worker that comes back under its name begins with what it had pending."""
    await send(stream, make_events(4), "plain")
    server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    server.cli("XREADGROUP", "GROUP", "g", "me", "COUNT", 2, "STREAMS", stream.name, ">")
    seen: list[tuple[int, int]] = []
    worker = Worker(stream, "g", name="me", concurrency=1)

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        seen.append((event.fields["n"], context.deliveries))  # type: ignore[arg-type]

    async with running(worker):
        await eventually(lambda: len(seen) == 4)
    assert seen == [(0, 2), (1, 2), (2, 1), (3, 1)]


# --- trouble with the handler --------------------------------------------------------------------


async def test_a_failing_event_does_not_hold_up_others(stream: Stream) -> None:
    """An event whose handler raises is tried again; the others go on meanwhile."""
    tries: Counter[int] = Counter()
    done: list[int] = []
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        n = event.fields["n"]
        assert isinstance(n, int)
        tries[n] += 1
        assert context.deliveries == tries[n]
        if n == 3 and tries[n] < 3:
            raise ValueError("not yet")
        done.append(n)

    await send(stream, make_events(10))
    async with running(worker):
        await eventually(lambda: len(done) == 10)
    assert sorted(done) == list(range(10))
    assert done[-1] == 3
    assert tries[3] == 3
    assert worker.stats.retried == 2
    assert await settled(stream)


async def test_a_hopeless_event_becomes_a_dead_letter(stream: Stream) -> None:
    """After deliveries_max an event is kept with the reason, alone of its block."""
    done: list[int] = []
    worker = Worker(stream, "g", deliveries_max=2)

    @worker.each
    async def handle(event: Event) -> None:
        if event.fields["n"] == 3:
            raise ValueError("the meter speaks in tongues")
        done.append(event.fields["n"])  # type: ignore[arg-type]

    async with Producer(stream) as producer:
        ids = await (await producer.send_many(make_events(10)))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1 and len(done) == 9)
    (letter,) = await letters(stream)
    assert letter["group"] == b"g"
    assert letter["id"].decode() == str(ids[3])
    assert letter["reason"] == b"ValueError: the meter speaks in tongues"
    assert b"handle" in letter["trace"]
    assert letter["deliveries"] == b"2"
    assert msgspec.msgpack.decode(letter["d"], type=Event) == make_events(10)[3]
    assert await settled(stream)


async def test_without_its_letter_an_entry_stays_pending(
    stream: Stream, server: TestServer
) -> None:
    """Where a dead letter cannot be kept the entry is not acknowledged: nothing is lost."""
    server.command("RPUSH", stream.dead_key(0), "something else")
    await send(stream, make_events(1))
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event) -> None:
        raise Reject("never")

    with pytest.raises(WrongTypeError):
        await worker.run()
    assert server.command("XPENDING", stream.name, "g")[0] == 1


async def test_reject_is_dead_at_once(stream: Stream) -> None:
    """Reject makes a dead letter without another try."""
    worker = Worker(stream, "g")
    tries = 0

    @worker.each
    def handle(event: Event) -> None:
        nonlocal tries
        tries += 1
        raise Reject("volts out of range")

    await send(stream, make_events(1))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1)
    (letter,) = await letters(stream)
    assert letter["reason"] == b"volts out of range"
    assert tries == 1


async def test_retry_waits_as_long_as_it_says(stream: Stream) -> None:
    """Retry(after=…) decides when the event comes again."""
    at: list[float] = []
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event) -> None:
        at.append(asyncio.get_running_loop().time())
        if len(at) == 1:
            raise Retry("database is locked", after="700ms")

    await send(stream, make_events(1))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 1)
    assert 0.69 <= at[1] - at[0] < 3


async def test_a_poison_event_in_a_batch_stands_alone(stream: Stream) -> None:
    """Of a failing batch only the event that fails by itself becomes a dead letter."""
    handled: Counter[int] = Counter()
    worker = Worker(stream, "g", deliveries_max=2)

    @worker.batch
    async def handle(batch: Batch) -> None:
        if 37 in numbers(batch):
            raise ValueError("poison")
        handled.update(numbers(batch))

    await send(stream, make_events(100))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1 and len(handled) == 99)
    (letter,) = await letters(stream)
    assert msgspec.msgpack.decode(letter["d"], type=Event).fields["n"] == 37
    assert set(handled) == set(range(100)) - {37}
    assert max(handled.values()) == 1
    assert await settled(stream)


async def test_what_no_codec_reads_is_kept_as_it_is(stream: Stream, server: TestServer) -> None:
    """An entry that cannot be decoded becomes a dead letter with its raw fields."""
    await send(stream, make_events(2))
    server.command("XADD", stream.name, "*", "c", "rows1", "n", "5", "d", b"\x93garbage")
    server.command("XADD", stream.name, "*", "c", "rows9", "n", "1", "d", "x")
    await send(stream, make_events(2, first=2))
    seen: list[int] = []
    worker = Worker(stream, "g")
    worker.batch(lambda batch: seen.extend(numbers(batch)))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 2 and len(seen) == 4)
    assert sorted(seen) == [0, 1, 2, 3]
    found = await letters(stream)
    assert {tuple(msgspec.msgpack.decode(letter["raw"])) for letter in found} == {
        (b"c", b"rows1", b"n", b"5", b"d", b"\x93garbage"),
        (b"c", b"rows9", b"n", b"1", b"d", b"x"),
    }
    assert all(letter["reason"].startswith(b"DecodeError: ") for letter in found)
    assert await settled(stream)


async def test_what_no_codec_reads_is_kept_after_a_takeover(
    stream: Stream, server: TestServer
) -> None:
    """An undecodable entry that was delivered too often is a dead letter with its raw fields."""
    server.command("XADD", stream.name, "*", "c", "rows1", "n", "5", "d", b"\x93garbage")
    server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    rows = server.command("XREADGROUP", "GROUP", "g", "dead", "STREAMS", stream.name, ">")
    claim = ("XCLAIM", stream.name, "g", "dead", 0, rows[0][1][0][0])
    server.command(*claim, "IDLE", 60_000, "RETRYCOUNT", 99, "JUSTID")
    worker = Worker(stream, "g")
    worker.batch(lambda batch: batch.events)
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1)
    (letter,) = await letters(stream)
    assert msgspec.msgpack.decode(letter["raw"])[4:] == [b"d", b"\x93garbage"]
    assert await settled(stream)


async def test_an_empty_block_holds_up_nothing(stream: Stream, server: TestServer) -> None:
    """A block of no events is acknowledged, and so are those around it."""
    server.command("XADD", stream.name, "*", "c", "rows1", "n", "0", "d", b"\x90")
    await send(stream, make_events(2))
    server.command("XADD", stream.name, "*", "c", "rows1", "n", "0", "d", b"\x90")
    for group in ("each", "batch"):
        worker = Worker(stream, group)
        (worker.each if group == "each" else worker.batch)(lambda given: None)
        async with running(worker):
            await eventually(lambda w=worker: w.stats.handled == 2)
            await eventually(lambda group=group: settled(stream, group))


async def test_tables_of_entries_that_differ(stream: Stream) -> None:
    """Where a batch does not fit into one table, its entries come alone, and none is lost."""
    for n, value in enumerate((1, "text", 2.5)):
        await send(stream, [Event("m", TIME + n, {"x": value})], "plain")
    seen: list[Any] = []
    worker = Worker(stream, "g")
    worker.batch(lambda batch: seen.extend(batch.table().column("x").to_pylist()))
    async with running(worker):
        await eventually(lambda: len(seen) == 3)
    assert sorted(map(str, seen)) == ["1", "2.5", "text"]
    assert worker.stats.dead == 0


async def test_attempts_survive_the_worker(stream: Stream) -> None:
    """The count of failed attempts is kept on the server: the next worker goes on counting."""
    await send(stream, make_events(1))
    counts: list[int] = []
    for _ in range(2):
        worker = Worker(stream, "g", name="me", idle_ms_min=60_000)

        @worker.each
        async def handle(event: Event, context: Context, worker: Worker = worker) -> None:
            counts.append(context.deliveries)
            raise Retry(after="1h")

        async with running(worker):
            before = len(counts)
            await eventually(lambda before=before: len(counts) > before)
            await eventually(lambda w=worker: w.stats.retried == 1)
    assert counts == [1, 2]


@pytest.mark.parametrize(
    "handler", [lambda: None, lambda a, b, c: None, 17], ids=["none", "three", "number"]
)
def test_a_handler_that_cannot_be_called_is_refused(handler: Any) -> None:
    """A handler with the wrong arguments is refused when it is given, with a hint."""
    worker = Worker(Stream("s", "redis://127.0.0.1:1"), "g")
    with pytest.raises(HandlerError) as caught:
        worker.each(handler)
    assert caught.value.hint


async def test_wrong_arguments_are_refused(stream: Stream, server: TestServer) -> None:
    """Values that make no sense, and a key that is no stream, are typed errors."""
    for options in ({"concurrency": 0}, {"deliveries_max": 0}, {"idle_ms_min": 0}, {"name": "a b"}):
        with pytest.raises(ConfigError):
            Worker(stream, "g", **options)
    with pytest.raises(ConfigError):
        Worker(stream, "")
    with pytest.raises(HandlerError):
        await Worker(stream, "g").run()
    server.cli("SET", stream.name, "text")
    worker = Worker(stream, "g")
    worker.each(lambda event: None)
    with pytest.raises(WrongTypeError):
        await worker.run()


# --- takeover ------------------------------------------------------------------------------------


async def test_a_slow_handler_is_not_run_twice(stream: Stream, server: TestServer) -> None:
    """A living worker renews what it holds: a handler may take longer than idle_ms_min."""
    names: list[str] = []
    go = asyncio.Event()
    workers = []
    for name in ("slow", "eager"):
        worker = Worker(stream, "g", name=name, idle_ms_min=300)

        @worker.each
        async def handle(event: Event, name: str = name) -> None:
            names.append(name)
            await go.wait()

        workers.append(worker)
    await send(stream, make_events(1))
    async with running(*workers):
        await eventually(lambda: names)
        before = calls(server, "xautoclaim")
        await eventually(lambda: calls(server, "xautoclaim") >= before + 20)
        go.set()
        await eventually(lambda: settled(stream))
    assert len(names) == 1
    assert sum(worker.consumer.stats.taken_over for worker in workers) == 0


async def test_a_long_pending_list_is_swept_to_its_end(stream: Stream, server: TestServer) -> None:
    """The idle entries behind thousands of busy ones are found: a sweep goes on to the end."""
    for n in range(0, 6_000, 500):
        await send(stream, make_events(500, first=n), "plain")
    server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    reading = ("XREADGROUP", "GROUP", "g")
    server.command(*reading, "busy", "COUNT", 5_950, "STREAMS", stream.name, ">")
    server.command(*reading, "dead", "COUNT", 50, "STREAMS", stream.name, ">")
    rows = server.command("XPENDING", stream.name, "g", "-", "+", 6_000)
    dead = [row[0] for row in rows if row[1] == "dead"]
    busy = [row[0] for row in rows if row[1] == "busy"]
    server.command("XCLAIM", stream.name, "g", "dead", 0, *dead, "IDLE", 60_000, "JUSTID")
    server.command("XCLAIM", stream.name, "g", "busy", 0, *busy, "IDLE", 0, "JUSTID")
    seen: list[int] = []
    worker = Worker(stream, "g", idle_ms_min=30_000)
    worker.batch(lambda batch: seen.extend(numbers(batch)))
    async with running(worker):
        await eventually(lambda: len(seen) >= 50)
        await eventually(lambda: worker.consumer.stats.acknowledged >= 50)
    assert sorted(seen) == list(range(5_950, 6_000))


async def test_deleted_while_pending_is_counted_and_named(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries deleted from the stream while pending are counted as lost, named, and cleared."""
    await send(stream, make_events(4), "plain")
    server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    rows = server.command(
        "XREADGROUP", "GROUP", "g", "dead", "COUNT", 4, "STREAMS", stream.name, ">"
    )
    ids = [row[0] for row in rows[0][1]]
    server.command("XDEL", stream.name, ids[1], ids[2])
    seen: list[int] = []
    worker = Worker(stream, "g", idle_ms_min=100)
    worker.batch(lambda batch: seen.extend(numbers(batch)))
    with caplog.at_level(logging.ERROR, "standpipe.consumer"):
        async with running(worker):
            await eventually(lambda: worker.consumer.stats.lost == 2 and len(seen) == 2)
            await eventually(lambda: settled(stream))
    assert sorted(seen) == [0, 3]
    assert ids[1] in caplog.text
    assert ids[2] in caplog.text


@pytest.mark.parametrize("kind", ["each", "batch"])
async def test_a_slow_plain_handler_is_run_once(
    stream: Stream, server: TestServer, kind: str
) -> None:
    """A plain handler that takes three times idle_ms_min, beside idle workers that sweep all the
    time, is run once."""
    began: list[str] = []
    workers = [Worker(stream, "g", name=f"w{n}", idle_ms_min=300) for n in range(3)]
    for worker in workers:

        def handle(given: Any, name: str = worker.consumer.name) -> None:
            began.append(name)
            time.sleep(0.9)

        getattr(worker, kind)(handle)
    await send(stream, make_events(1))
    async with running(*workers):
        before = calls(server, "xautoclaim")
        await eventually(lambda: sum(worker.stats.handled for worker in workers))
        await eventually(lambda: calls(server, "xautoclaim") >= before + 20)
        await eventually(lambda: settled(stream))
    assert len(began) == 1


# --- leaving -------------------------------------------------------------------------------------


async def test_a_drain_finishes_what_has_begun(stream: Stream) -> None:
    """stop() waits for the handlers in progress, acknowledges, and leaves the group."""
    began, go = asyncio.Event(), asyncio.Event()
    worker = Worker(stream, "g", name="me")

    @worker.batch
    async def handle(batch: Batch) -> None:
        began.set()
        await go.wait()

    await send(stream, make_events(5))
    task = asyncio.create_task(worker.run())
    await began.wait()
    worker.stop()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await task
    assert await settled(stream)
    key = stream.name
    assert await stream.server.call("XINFO", "CONSUMERS", key, "g", key=key) == []


async def test_what_a_drain_leaves_goes_to_another_at_once(stream: Stream) -> None:
    """Unfinished entries are given back, so that another worker need not wait idle_ms_min."""
    began = asyncio.Event()
    first = Worker(stream, "g", name="first", drain_ms_max=50, idle_ms_min=60_000)

    @first.batch
    async def hang(batch: Batch) -> None:
        began.set()
        await asyncio.Event().wait()

    await send(stream, make_events(5))
    task = asyncio.create_task(first.run())
    await began.wait()
    first.stop()
    await task
    key = stream.name
    (left,) = await stream.server.call("XINFO", "CONSUMERS", key, "g", key=key)
    assert (left[b"name"], left[b"pending"]) == (b"first", 1)
    seen: list[int] = []
    second = Worker(stream, "g", idle_ms_min=60_000)
    second.batch(lambda batch: seen.extend(numbers(batch)))
    async with running(second):
        await eventually(lambda: len(seen) == 5)
    assert await settled(stream)


async def test_a_worker_runs_once(stream: Stream) -> None:
    """What has run does not silently do nothing when it is run again."""
    worker = Worker(stream, "g")
    worker.each(lambda event: None)
    worker.stop()
    await worker.run()
    with pytest.raises(ConfigError, match="has run already"):
        await worker.run()


async def test_nothing_is_left_running(stream: Stream) -> None:
    """After run() no task of the worker is left, and no thread but the pool's."""
    before = asyncio.all_tasks()
    worker = Worker(stream, "g")
    worker.each(lambda event: None)
    await send(stream, make_events(10))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 10)
    assert asyncio.all_tasks() <= before
    others = [t.name for t in threading.enumerate() if "standpipe" in t.name]
    assert others == []


# --- trouble with the server ---------------------------------------------------------------------


async def test_a_lost_group_is_created_again(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the server has lost the stream the group is created again, loudly, without spinning."""
    seen: list[int] = []
    worker = Worker(stream, "g")
    worker.batch(lambda batch: seen.extend(numbers(batch)))
    async with running(worker):
        await send(stream, make_events(2))
        await eventually(lambda: len(seen) == 2)
        server.cli("DEL", stream.name)
        await eventually(lambda: worker.consumer.stats.groups_created == 2)
        await send(stream, make_events(2, first=2))
        await eventually(lambda: len(seen) == 4)
    assert sorted(seen) == [0, 1, 2, 3]
    assert "is created again" in caplog.text


async def test_a_server_that_comes_back_empty(
    own_server: OwnServer, server_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that has lost everything by a restart: the worker goes on with what comes then, says
    so, and asks for a group that is not there some times only."""
    server = own_server(server_name)
    seen: list[int] = []
    async with Stream("s", server.url) as stream:
        worker = Worker(stream, "g")
        worker.batch(lambda batch: seen.extend(numbers(batch)))
        async with running(worker):
            await send(stream, make_events(3))
            await eventually(lambda: len(seen) == 3)
            server.kill()
            await asyncio.to_thread(server.start)
            await eventually(lambda: worker.consumer.stats.groups_created == 2)
            await send(stream, make_events(3, first=3))
            await eventually(lambda: len(seen) == 6)
            assert calls(server, "xreadgroup") <= 6
    assert seen == list(range(6))
    assert "is created again" in caplog.text


async def test_an_idle_worker_costs_a_command_a_second(own_server: OwnServer) -> None:
    """With nothing to do, a worker with the settings that it has by default sends one command per
    second at most."""
    server = own_server("valkey-9.1")

    def commands() -> int:
        """What has to do with streams: looking at them here takes other commands."""
        return sum(
            int(value.partition("calls=")[2].partition(",")[0])
            for name, value in server.info("commandstats").items()
            if name.startswith(("cmdstat_x", "cmdstat_eval"))
        )

    async with Stream("s", server.url) as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        async with running(worker):
            await send(stream, make_events(10))
            await eventually(lambda: settled(stream))
            await eventually(lambda: " cmd=xreadgroup " in server.cli("CLIENT", "LIST"))
            before, began = commands(), time.monotonic()
            reads = calls(server, "xreadgroup")
            await eventually(lambda: calls(server, "xreadgroup") >= reads + 2)
            assert commands() - before <= time.monotonic() - began + 1


async def test_a_cut_connection_loses_nothing(stream: Stream, server: TestServer) -> None:
    """Connections cut again and again: every event is handled, and few of them twice."""
    seen: Counter[int] = Counter()
    worker = Worker(stream, "g", idle_ms_min=2_000)
    worker.batch(lambda batch: seen.update(numbers(batch)))
    async with running(worker):
        await eventually(lambda: worker.consumer.stats.groups_created == 1)
        async with Producer(stream, codec="plain") as producer:
            for first in range(0, 2_000, 100):
                await producer.send_many(make_events(100, first=first))
                server.cli("CLIENT", "KILL", "TYPE", "normal")
                await eventually(lambda first=first: len(seen) > first // 2, 20)
            await producer.flush()
        await eventually(lambda: set(seen) == set(range(2_000)), 30)
        await eventually(lambda: settled(stream), ignore=(ServerUnavailableError,))
    key = stream.name
    assert server.cli("XLEN", key) == "2000"


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_a_restarted_server_loses_nothing(own_server: OwnServer, name: str) -> None:
    """A server killed and started again with its AOF: workers go on by themselves, nothing lost."""
    server = own_server(name, appendonly="yes", appendfsync="always")
    async with Stream("s", server.url) as stream:
        seen: Counter[int] = Counter()
        worker = Worker(stream, "g", idle_ms_min=1_000)
        worker.batch(lambda batch: seen.update(numbers(batch)))
        async with running(worker), Producer(stream) as producer:
            # Starting is the one moment at which a server that is away is an error.
            await eventually(lambda: worker.consumer.stats.groups_created == 1)
            for turn in range(3):
                receipt = await producer.send_many(make_events(500, first=turn * 1_000))
                await receipt
                server.kill()
                late = await producer.send_many(make_events(500, first=turn * 1_000 + 500))
                await asyncio.to_thread(server.start)
                await late
            await eventually(lambda: set(seen) == set(range(3_000)), 30)
            await eventually(lambda: settled(stream), 20, ignore=(ServerUnavailableError,))
        assert await stream.server.call("XLEN", "s", key="s") == producer.stats.blocks


async def test_a_refused_password_ends_the_worker(own_server: OwnServer) -> None:
    """An error that no retry mends is raised by run(), not retried for ever."""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        task = asyncio.create_task(worker.run())
        await eventually(lambda: worker.consumer.stats.groups_created == 1)
        server.cli("CONFIG", "SET", "requirepass", "secret")
        server.config["requirepass"] = "secret"
        server.cli("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(AuthenticationError):
            await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_a_cluster(cluster: Callable[..., Any], name: str) -> None:
    """Over a cluster, workers read all shards on all nodes and take over a dead one's entries."""
    nodes = cluster(name)
    async with Stream("s", nodes.url, shards=6) as stream:
        await send(stream, make_events(3_000, keys=100))
        for key in stream.keys:
            await stream.server.call("XGROUP", "CREATE", key, "g", "0", key=key)
            # What a worker held that is dead by now, and was for a minute.
            await stream.server.call(
                "XREADGROUP", "GROUP", "g", "dead", "COUNT", 1, "STREAMS", key, ">", key=key
            )
            rows = await stream.server.call("XPENDING", key, "g", "-", "+", 9, key=key)
            ids = [row[0] for row in rows]
            claim = ("XCLAIM", key, "g", "dead", 0, *ids, "IDLE", 60_000, "JUSTID")
            await stream.server.call(*claim, key=key)
        seen: Counter[int] = Counter()
        workers = [Worker(stream, "g", idle_ms_min=2_000) for _ in range(2)]
        for worker in workers:
            worker.batch(lambda batch: seen.update(numbers(batch)))
        async with running(*workers):
            await eventually(lambda: set(seen) == set(range(3_000)), 20)
            await eventually(lambda: settled(stream))
    assert max(seen.values()) == 1
    assert sum(worker.consumer.stats.taken_over for worker in workers) == 6
    assert TIME
