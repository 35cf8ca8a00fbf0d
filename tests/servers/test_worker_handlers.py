"""What handlers may do to a worker: block it, wait, fail in odd ways, or not be handlers at all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from standpipe import Batch, Context, Event, Reject, Retry, Stream, Worker
from standpipe.errors import HandlerError
from tests.conditions import eventually
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import Fleet, TestServer
from tests.servers.working import calls, letters, pending, running, send, settled

pytestmark = pytest.mark.servers


@pytest.fixture
def server(fleet: Fleet) -> Iterator[TestServer]:
    """One server stands for all: what is held here is held by the worker alone."""
    found = fleet.shared("valkey-9.1")
    yield found
    fleet.check(found)


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


# --- not a handler -------------------------------------------------------------------------------


def _generator(event: Event) -> Any:
    yield event


async def _async_generator(event: Event) -> Any:
    yield event


def _keyword(event: Event, *, database: str) -> None:
    pass


@pytest.mark.parametrize("handler", [_generator, _async_generator, _keyword])
def test_what_would_do_nothing_is_refused(handler: Callable[..., Any]) -> None:
    """A function that a call does not run, or that cannot be called, is refused with a hint."""
    for kind in ("each", "batch"):
        worker = Worker(Stream("s", "redis://127.0.0.1:1"), "g")
        with pytest.raises(HandlerError) as caught:
            getattr(worker, kind)(handler)
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["each", "batch"])
@pytest.mark.parametrize("what", ["coroutine", "generator"])
async def test_what_has_only_begun_is_not_acknowledged(
    stream: Stream, kind: str, what: str
) -> None:
    """A plain handler that returns something to be awaited has handled nothing: run() says so."""

    async def store(given: Any) -> None:
        raise AssertionError("never awaited")

    def returned(given: Any) -> Any:
        return store(given) if what == "coroutine" else _generator(given)

    await send(stream, make_events(3))
    worker = Worker(stream, "g")
    getattr(worker, kind)(returned)
    with pytest.raises(HandlerError, match="handled nothing yet") as caught:
        await asyncio.wait_for(worker.run(), 10)
    assert "async def" in caught.value.hint
    assert len(await pending(stream)) == 1
    gc.collect()  # A coroutine that is forgotten would warn now.


async def test_a_handler_that_has_only_begun_in_a_slice(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If one event of many in a thread shows that the handler is none, those before it are
    acknowledged, those behind it are given back at once, and the worker leaves."""
    worker = Worker(stream, "g", concurrency=1, idle_ms_min=60_000)

    @worker.each
    def handle(event: Event) -> Any:
        return _generator(event) if event.fields["n"] >= 100 else None  # type: ignore[operator]

    await send(stream, make_events(200), "plain")
    with pytest.raises(HandlerError, match="handled nothing yet"):
        await asyncio.wait_for(worker.run(), 10)
    rows = server.command("XPENDING", stream.name, "g", "-", "+", 1_000)
    assert len(rows) == 100
    assert all(idle >= 60_000 for _, _, idle, _ in rows)
    assert "could not be left" not in caplog.text


@pytest.mark.parametrize("kind", ["partial", "callable", "method", "wrapped", "built-in"])
async def test_what_may_be_a_handler(stream: Stream, kind: str) -> None:
    """Partials, objects, methods, decorated functions and functions written in C are handlers."""
    seen: list[Event] = []

    async def three(extra: str, event: Event, context: Context) -> None:
        assert (extra, context.group) == ("x", "g")
        seen.append(event)

    class Sink:
        async def __call__(self, event: Event) -> None:
            seen.append(event)

        def store(self, event: Event, context: Context) -> None:
            assert context.group == "g"
            seen.append(event)

    @functools.wraps(three)
    async def wrapped(*arguments: Any) -> None:
        await three(*arguments)

    handlers: dict[str, Callable[..., Any]] = {
        "partial": functools.partial(three, "x"),
        "callable": Sink(),
        "method": Sink().store,
        "wrapped": functools.partial(wrapped, "x"),
        "built-in": seen.append,
    }
    await send(stream, make_events(3))
    worker = Worker(stream, "g")
    worker.each(handlers[kind])
    async with running(worker):
        await eventually(lambda: len(seen) == 3)
        await eventually(lambda: settled(stream))


# --- odd failures --------------------------------------------------------------------------------


async def test_a_cancellation_inside_a_handler_is_a_failure(stream: Stream) -> None:
    """If something that a handler waits for is cancelled, that is tried again like any failure."""
    tries = 0
    worker = Worker(stream, "g")

    @worker.each
    async def handle(event: Event) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            waiting = asyncio.ensure_future(asyncio.Event().wait())
            waiting.cancel()
            await waiting

    await send(stream, make_events(1))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 1)
    assert tries == 2
    assert worker.stats.retried == 1


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("meter-\udc80"), rb"ValueError: meter-\udc80"),
        (ValueError("x" * 100_000), b"ValueError: xxx"),
        (Unspeakable(), b"Unspeakable"),
        (ExceptionGroup("both", [ValueError("a"), KeyError("b")]), b"both (2 sub-exceptions)"),
    ],
    ids=["no unicode", "long", "no text", "group"],
)
async def test_any_exception_makes_a_letter(
    stream: Stream, error: Exception, reason: bytes
) -> None:
    """Whatever a handler raises is kept as the reason: it never ends the worker."""
    worker = Worker(stream, "g", deliveries_max=1)

    @worker.each
    async def handle(event: Event) -> None:
        if event.fields["n"] == 0:
            raise error

    await send(stream, make_events(2))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1 and worker.stats.handled == 1)
        await eventually(lambda: settled(stream))
    (letter,) = await letters(stream)
    assert reason in letter["reason"]
    assert len(letter["reason"]) <= 4_000
    assert letter["trace"]


async def test_many_letters_of_one_block(stream: Stream) -> None:
    """All events of a block that are given up on are kept in the step that acknowledges it."""
    worker = Worker(stream, "g")

    @worker.batch
    def handle(batch: Batch) -> None:
        raise Reject("none of them")

    await send(stream, make_events(300))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 300)
        await eventually(lambda: settled(stream))
    kept = [msgspec.msgpack.decode(letter["d"], type=Event) for letter in await letters(stream)]
    assert sorted(numbers(kept)) == list(range(300))


async def test_events_of_a_block_fail_apart(stream: Stream) -> None:
    """In one block one event is rejected, one fails and is mended, one is hopeless, the rest go
    through; the block is acknowledged when the last of them is settled."""
    tries: dict[int, list[int]] = {}
    worker = Worker(stream, "g", deliveries_max=3)

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        n = event.fields["n"]
        tries.setdefault(n, []).append(context.deliveries)  # type: ignore[arg-type]
        if n == 1:
            raise Reject("never")
        if n == 3:
            raise ValueError("hopeless")
        if n == 2 and context.deliveries == 1:
            raise Retry(after=20)

    await send(stream, make_events(6))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1 and worker.stats.handled == 4)
        # One of its events is still to be tried: the entry waits, with the highest count.
        assert len(await pending(stream)) == 1
        await eventually(lambda: worker.stats.dead == 2)
        await eventually(lambda: settled(stream))
    assert tries == {0: [1], 1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1], 5: [1]}
    found = {letter["id"].rpartition(b"/")[2]: letter["reason"] for letter in await letters(stream)}
    assert found == {b"1": b"never", b"3": b"ValueError: hopeless"}


async def test_a_failing_batch_is_tried_whole_first(stream: Stream) -> None:
    """A batch that fails for a passing reason is tried again as it was, and all are counted."""
    sizes: list[tuple[int, int]] = []
    worker = Worker(stream, "g")

    @worker.batch
    async def handle(batch: Batch, context: Context) -> None:
        sizes.append((len(batch), context.deliveries))
        if len(sizes) == 1:
            raise Retry("database is away", after=20)

    for first in range(0, 30, 10):
        await send(stream, make_events(10, first=first))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 30)
        assert sizes == [(30, 1), (30, 2)]
        await eventually(lambda: settled(stream))


# --- threads and the loop ------------------------------------------------------------------------


async def test_as_many_threads_as_asked(stream: Stream) -> None:
    """Plain handlers that wait run as many at a time as concurrency says, whatever the machine."""
    together = threading.Barrier(24)
    worker = Worker(stream, "g", concurrency=24)

    @worker.each
    def handle(event: Event) -> None:
        together.wait(10)

    await send(stream, make_events(24))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 24)
    assert worker.stats.retried == 0
    assert not [thread for thread in threading.enumerate() if "standpipe" in thread.name]


async def test_a_handler_that_never_waits_starves_nothing(
    stream: Stream, server: TestServer
) -> None:
    """An async handler that only computes leaves the loop to reading, renewing and stopping."""
    worker = Worker(stream, "g", idle_ms_min=2_000, concurrency=4)
    other = Worker(stream, "g", idle_ms_min=2_000, in_flight_events_max=1)
    begun = asyncio.Event()

    @worker.each
    async def compute(event: Event) -> None:
        begun.set()
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass

    @other.each
    async def wait(event: Event) -> None:
        await asyncio.Event().wait()

    await send(stream, make_events(3_000), "plain")
    async with running(worker):
        await begun.wait()
        before = calls(server, "xclaim")
        # The other one has nothing to read: all it could get is what was not renewed.
        other_run = asyncio.create_task(other.run())
        await eventually(lambda: worker.stats.handled == 3_000, 60)
        # Renewed while more than 3 s were computed.
        assert calls(server, "xclaim") > before
        assert worker.consumer.stats.taken_from_us == 0
        assert other.consumer.stats.taken_over == 0
        other_run.cancel()
        await asyncio.gather(other_run, return_exceptions=True)


# --- stopping ------------------------------------------------------------------------------------


async def test_a_drain_begins_nothing(stream: Stream) -> None:
    """While a worker drains, no event is begun: neither one that waits nor one to be retried."""
    begun: list[int] = []
    go = asyncio.Event()
    worker = Worker(stream, "g", concurrency=2)

    @worker.each
    async def handle(event: Event) -> None:
        begun.append(event.fields["n"])  # type: ignore[arg-type]
        if event.fields["n"] == 0:
            raise Retry(after=30)
        await go.wait()
        if event.fields["n"] == 1:
            raise Retry(after=0)

    await send(stream, make_events(5), "plain")
    task = asyncio.create_task(worker.run())
    await eventually(lambda: len(begun) == 3)
    worker.stop()
    loop = asyncio.get_running_loop()
    stopped = loop.time()
    await eventually(lambda: loop.time() > stopped + 0.1, what="the retry would be due")
    go.set()
    await task
    assert sorted(begun) == [0, 1, 2]
    assert {count for _, count in await pending(stream)} == {1}
    assert len(await pending(stream)) == 4


async def test_a_thread_that_hangs_does_not_hold_up_the_end(stream: Stream) -> None:
    """A plain handler that outlasts drain_ms_max is left behind; its event stays pending."""
    go = threading.Event()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()
    worker = Worker(stream, "g", drain_ms_max=50)

    @worker.each
    def handle(event: Event) -> None:
        loop.call_soon_threadsafe(began.set)
        go.wait(30)

    await send(stream, make_events(1))
    task = asyncio.create_task(worker.run())
    await began.wait()
    worker.stop()
    await asyncio.wait_for(task, 5)
    assert len(await pending(stream)) == 1
    go.set()
    await eventually(
        lambda: not [thread for thread in threading.enumerate() if "standpipe" in thread.name]
    )


@pytest.mark.parametrize("how", ["cancelled", "cancelled twice", "failed"])
async def test_a_run_that_ends_otherwise_leaves_in_order(
    stream: Stream, server: TestServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """However run() ends, the acknowledgements that wait are sent, the rest is given back at once,
    and no task or connection is left."""
    # Nothing but leaving sends them within the time of this test.
    monkeypatch.setattr("standpipe.consumer.lane.ACK_GRACE_MS", 60_000)
    before = asyncio.all_tasks()
    fail, waiting = asyncio.Event(), 0
    worker = Worker(stream, "g", name="me", idle_ms_min=60_000)

    @worker.each
    async def handle(event: Event) -> None:
        nonlocal waiting
        if event.fields["n"] < 3:  # type: ignore[operator]
            return
        waiting += 1
        await (fail.wait() if event.fields["n"] == 3 else asyncio.Event().wait())
        raise HandlerError("this cannot go on")

    await send(stream, make_events(8), "plain")
    task = asyncio.create_task(worker.run())
    await eventually(lambda: worker.stats.handled == 3 and waiting == 5)
    if how == "failed":
        fail.set()
    else:
        task.cancel()
    if how == "cancelled twice":
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(HandlerError if how == "failed" else asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() <= before
    rows = server.command("XPENDING", stream.name, "g", "-", "+", 10)
    assert len(rows) == 5
    assert all(idle >= 60_000 for _, _, idle, _ in rows)
    gc.collect()  # An open connection that is forgotten would warn now.


async def test_leaving_is_bounded_in_time(
    own_server: Callable[..., TestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs does not keep a worker that was cancelled."""
    monkeypatch.setattr("standpipe.worker.worker.LEAVE_MS_MAX", 200)
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        task = asyncio.create_task(worker.run())
        await eventually(lambda: worker.consumer.stats.groups_created)
        server.stop()
        try:
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5)
            assert done
        finally:
            server.cont()


async def test_a_handler_that_ignores_its_cancellation(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that goes on though it is cancelled does not keep run() from ending."""
    monkeypatch.setattr("standpipe.worker.worker.LEAVE_MS_MAX", 100)
    go, began = asyncio.Event(), asyncio.Event()
    worker = Worker(stream, "g", drain_ms_max=10)

    @worker.each
    async def stubborn(event: Event) -> None:
        while not go.is_set():
            began.set()
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    await send(stream, make_events(1))
    task = asyncio.create_task(worker.run())
    await began.wait()
    worker.stop()
    await asyncio.wait_for(task, 5)
    assert "stubborn" in caplog.text
    go.set()


async def test_what_a_slice_has_handled_is_acknowledged(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    """Of plain handlers' events that went to a thread together, one that hangs leaves itself and
    those behind it pending when the worker stops: those before it are acknowledged."""
    go, began = threading.Event(), threading.Event()
    worker = Worker(stream, "g", concurrency=1, drain_ms_max=50)

    @worker.each
    def hangs_at_100(event: Event) -> None:
        if event.fields["n"] == 100:
            began.set()
            go.wait(60)

    await send(stream, make_events(200), "plain")
    task = asyncio.create_task(worker.run())
    try:
        await eventually(began.is_set)
        worker.stop()
        with caplog.at_level(logging.INFO, "standpipe.consumer"):
            await asyncio.wait_for(task, 10)
    finally:
        go.set()
    assert len(await pending(stream)) == 100
    assert "handler hangs_at_100 still runs after 50 ms" in caplog.text
    assert "gives back 100 entries" in caplog.text


async def test_a_drain_ends_a_slice(stream: Stream) -> None:
    """A worker that stops lets its threads finish the event they are at, not all that they got."""
    begun: list[int] = []
    worker = Worker(stream, "g", concurrency=1)
    stopped = threading.Event()
    loop = asyncio.get_running_loop()

    @worker.each
    def handle(event: Event) -> None:
        begun.append(event.fields["n"])  # type: ignore[arg-type]
        if event.fields["n"] == 100:
            loop.call_soon_threadsafe(worker.stop)
            stopped.wait(0.05)

    await send(stream, make_events(200), "plain")
    await asyncio.wait_for(worker.run(), 10)
    assert begun == list(range(101))
    assert len(await pending(stream)) == 99


async def test_one_that_hangs_holds_up_no_other(stream: Stream) -> None:
    """Events behind one that hangs in a thread go to the other threads, in their order."""
    go = threading.Event()
    begun: list[int] = []
    worker = Worker(stream, "g", concurrency=2, drain_ms_max=50)

    @worker.each
    def handle(event: Event) -> None:
        begun.append(event.fields["n"])  # type: ignore[arg-type]
        if event.fields["n"] == 150:
            go.wait(60)

    await send(stream, make_events(300), "plain")
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 299)
        await eventually(lambda: worker.consumer.stats.acknowledged == 299)
        assert len(await pending(stream)) == 1
        assert sorted(begun) == list(range(300))
        go.set()


async def test_a_retry_does_not_wait_behind_one_that_hangs(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event to be tried again that a thread would have come to goes to another one."""
    gate, go = threading.Event(), threading.Event()
    worker = Worker(stream, "g", concurrency=2, drain_ms_max=50)
    # Four at a time, however long they take.
    monkeypatch.setattr("standpipe.worker.worker.SYNC_SLICE_EVENTS_MAX", 4)
    monkeypatch.setattr("standpipe.worker.worker.SYNC_SLICE_MS", 1_000_000)

    @worker.each
    def handle(event: Event, context: Context) -> None:
        n = event.fields["n"]
        if n == 0 and context.deliveries == 1:
            raise Retry(after=0)
        if n in (1, 4):
            gate.wait(60)
        if n == 9:
            go.wait(60)

    await send(stream, make_events(10), "plain")
    async with running(worker):
        # Both threads are held up, and all the rest waits, the retry behind number 9.
        await eventually(lambda: worker._calls.qsize() == 8)
        gate.set()
        await eventually(lambda: worker.stats.handled == 9)
        go.set()


async def test_a_slow_slice_keeps_its_order(stream: Stream) -> None:
    """With one thread events are handled in the order of the shard, however slow some are."""
    begun: list[int] = []
    worker = Worker(stream, "g", concurrency=1)

    @worker.each
    def handle(event: Event) -> None:
        begun.append(event.fields["n"])  # type: ignore[arg-type]
        if event.fields["n"] % 100 == 50:  # type: ignore[operator]
            time.sleep(0.25)

    await send(stream, make_events(300), "plain")
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 300)
    assert begun == list(range(300))
