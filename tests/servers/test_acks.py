"""Manual mode: what a handler acknowledges stays so, and what it does not comes again."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from standpipe import Batch, Context, Event, Reject, Retry, Stream, Worker
from standpipe.errors import AckError, HandlerError
from tests.conditions import eventually
from tests.servers.consuming import watching
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestServer
from tests.servers.working import letters, pending, running, send, settled

pytestmark = pytest.mark.servers


class Reading(msgspec.Struct):
    n: int


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        *(("rows", f"{what}-{how}") for what in ("each", "batch") for how in ("async", "sync")),
        *((codec, kind) for codec in ("plain", "columns") for kind in ("each-sync", "batch-async")),
        *(("ordered", kind) for kind in ("each-sync", "batch-async")),
    ],
)
async def test_what_is_left_comes_again(stream: Stream, codec: str, kind: str) -> None:
    """Each event comes until it is acknowledged, and never after; the next try counts."""
    seen: Counter[int] = Counter()
    deliveries: dict[int, int] = {}
    ordered = codec == "ordered"
    worker = Worker(stream, "g", ordered=ordered)

    def handle(given: Batch | Event, context: Context) -> None:
        for event in [given] if isinstance(given, Event) else given:
            n = event.fields["n"]
            assert isinstance(n, int)
            seen[n] += 1
            deliveries[n] = context.deliveries
            if n % 7 == 3 and seen[n] == 1:
                if ordered:
                    return
                continue
            context.ack(event)

    async def handle_async(given: Batch | Event, context: Context) -> None:
        handle(given, context)

    register = worker.each if kind.startswith("each") else worker.batch
    register(ack="manual")(handle if kind.endswith("-sync") else handle_async)
    await send(stream, make_events(20), "rows" if ordered else codec)
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 20)
        await eventually(lambda: settled(stream))
    late = {3, 10, 17}
    assert set(seen) == set(range(20))
    assert {n for n, count in seen.items() if count == 2} == late
    assert all(seen[n] == 1 for n in set(range(20)) - late)
    assert all(deliveries[n] >= 2 for n in late)
    assert worker.stats.dead == 0


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
@pytest.mark.parametrize(("codec", "acknowledged"), [("plain", 1), ("rows", 0)])
async def test_it_is_acknowledged_at_once(
    stream: Stream, codec: str, acknowledged: int, in_thread: bool
) -> None:
    """An acknowledgement leaves while the handler goes on: a block's with its last event."""
    go_async, go_thread = asyncio.Event(), threading.Event()
    begun: list[Batch] = []
    worker = Worker(stream, "g")

    async def handle(batch: Batch) -> None:
        begun.append(batch)
        batch.ack(0)
        await go_async.wait()
        batch.ack()

    def handle_in_thread(batch: Batch) -> None:
        begun.append(batch)
        batch.ack(0)
        go_thread.wait(20)
        batch.ack()

    worker.batch(handle_in_thread if in_thread else handle, ack="manual")
    await send(stream, make_events(5), codec)
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 1)
        await eventually(lambda: worker.consumer.stats.acknowledged == acknowledged)
        entries = len(begun[0].entries)
        begun[0].ack()
        await eventually(lambda: worker.consumer.stats.acknowledged == entries)
        assert len(begun) == 1
        go_async.set()
        go_thread.set()
        await eventually(lambda: settled(stream))
    assert worker.stats.handled == 5


async def test_what_it_raises_is_about_the_rest(stream: Stream) -> None:
    """What was acknowledged before an exception, Retry or Reject is not touched by it."""
    tries: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    counts: list[int] = []
    worker = Worker(stream, "g")

    @worker.batch(ack="manual")
    async def handle(batch: Batch, context: Context) -> None:
        seen.update(numbers(batch))
        counts.append(context.deliveries)
        tries["all"] += 1
        if tries["all"] < 4:
            batch.ack(range(2))
            raise (ValueError("broken"), Retry(after=1), Retry(after=1, counts=False))[
                tries["all"] - 1
            ]
        batch.ack(range(len(batch) - 1))
        raise Reject("never")

    await send(stream, make_events(10))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1)
        await eventually(lambda: settled(stream))
    assert counts == [1, 2, 3, 3]
    (letter,) = await letters(stream)
    assert msgspec.msgpack.decode(letter["d"], type=Event).fields["n"] == 9
    assert letter["reason"] == b"never"
    assert worker.stats.handled == 9
    assert [seen[n] for n in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]


async def test_what_is_never_acknowledged_is_a_dead_letter(stream: Stream) -> None:
    """After deliveries_max tries what no try acknowledged is given up, alone of its block."""
    worker = Worker(stream, "g", deliveries_max=2)

    @worker.batch(ack="manual")
    def handle(batch: Batch) -> None:
        batch.ack([place for place, n in enumerate(numbers(batch)) if n not in (3, 8)])

    await send(stream, make_events(10))
    async with running(worker):
        await eventually(lambda: worker.stats.dead == 2)
        await eventually(lambda: settled(stream))
    found = await letters(stream)
    assert {msgspec.msgpack.decode(each["d"], type=Event).fields["n"] for each in found} == {3, 8}
    assert {each["reason"] for each in found} == {b"the handler returned without acknowledging it"}
    assert {each["deliveries"] for each in found} == {b"2"}


async def test_letters_are_kept_with_the_last_acknowledgement(stream: Stream) -> None:
    """Of an entry with dead letters the rest is acknowledged in the same step as they are kept."""
    worker = Worker(stream, "g", deliveries_max=1)

    @worker.batch(ack="manual")
    async def handle(batch: Batch) -> None:
        found = numbers(batch)
        if 0 in found and len(found) > 1:
            raise ValueError("all of it, at first")
        if 0 in found:
            raise Reject("the first")
        batch.ack()
        # The loop takes its turns in order: when this one comes it has looked at what is
        # acknowledged, and must not have settled the entry without its letter.
        turn = asyncio.Event()
        asyncio.get_running_loop().call_soon_threadsafe(turn.set)
        await turn.wait()

    await send(stream, make_events(8))
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 7)
        await eventually(lambda: settled(stream))
    (letter,) = await letters(stream)
    assert letter["reason"] == b"the first"


async def test_the_next_worker_gets_what_is_left(stream: Stream) -> None:
    """A handler that outlives its worker: what it acknowledged does not come again, what it had
    not does, and it is told that it is too late."""
    go, told = threading.Event(), threading.Event()
    errors: list[Exception] = []
    first = Worker(stream, "g", name="first", drain_ms_max=1, idle_ms_min=60_000)

    @first.batch(ack="manual")
    def hang(batch: Batch) -> None:
        batch.ack(batch[0])
        go.wait(20)
        try:
            batch.ack(batch[1])
        except AckError as error:
            errors.append(error)
        told.set()

    await send(stream, make_events(3), "plain")
    async with running(first):
        await eventually(lambda: first.consumer.stats.acknowledged == 1)
    go.set()
    assert await asyncio.to_thread(told.wait, 10)
    assert len(errors) == 1
    seen: list[int] = []
    second = Worker(stream, "g", name="second", idle_ms_min=60_000)
    second.batch(lambda batch: seen.extend(numbers(batch)))
    async with running(second):
        await eventually(lambda: len(seen) == 2)
        await eventually(lambda: settled(stream))
    assert sorted(seen) == [1, 2]


async def test_ordered_keeps_the_order(stream: Stream) -> None:
    """In ordered mode what is left is handled before anything later, and a gap is a failure."""
    handled: list[int] = []
    gaps: list[AckError] = []
    worker = Worker(stream, "g", ordered=True)

    @worker.batch(ack="manual")
    async def handle(batch: Batch, context: Context) -> None:
        found = numbers(batch)
        if context.deliveries == 1 and found[0] == 0:
            try:
                batch.ack(len(batch) - 1)
            except AckError as error:
                gaps.append(error)
            handled.extend(found[:2])
            batch.ack(range(2))
            return
        handled.extend(found)
        context.ack()

    await send(stream, make_events(5, keys=1))
    await send(stream, make_events(5, keys=1, first=5), "plain")
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 10)
        await eventually(lambda: settled(stream))
    assert handled == list(range(10))
    assert len(gaps) == 1


async def test_typed_lists_acknowledge_by_place(stream: Stream) -> None:
    """A handler of a list of a type acknowledges by index; what was not of the type is dead."""
    seen: list[list[int]] = []
    worker = Worker(stream, "g")

    @worker.batch(ack="manual")
    def handle(readings: list[Reading], context: Context) -> None:
        seen.append([reading.n for reading in readings])
        context.ack([place for place, reading in enumerate(readings) if reading.n or len(seen) > 1])

    events = make_events(4)
    await send(stream, [*events[:2], Event("m", 1, {"n": "text"}), *events[2:]])
    async with running(worker):
        await eventually(lambda: worker.stats.handled == 4)
        await eventually(lambda: settled(stream))
    assert seen == [[0, 1, 2, 3], [0]]
    assert worker.stats.dead == 1


async def test_misuse_ends_the_worker(stream: Stream) -> None:
    """A handler that acknowledges without having been declared so ends run(), and loses nothing."""
    worker = Worker(stream, "g")
    worker.batch(lambda batch: batch.ack())
    await send(stream, make_events(3))
    with pytest.raises(HandlerError, match="when its handler returns"):
        await asyncio.wait_for(worker.run(), 10)
    assert len(await pending(stream)) == 1
    assert await letters(stream) == []


async def test_the_command_line(
    own_server: Callable[..., TestServer],
    stream_name: str,
    started: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """`standpipe work --ack manual` runs such a handler; a sink, which acknowledges none, is
    refused."""
    (tmp_path / "app.py").write_text(
        "tries = {}\n"
        "def store(batch, context):\n"
        "    for event in batch:\n"
        "        n = event.fields['n']\n"
        "        tries[n] = tries.get(n, 0) + 1\n"
        "        if n != 1 or tries[n] == 2:\n"
        "            batch.ack(event)\n"
    )
    server = own_server("valkey-9.1")
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(3))
        arguments = ["work", stream_name, "--group", "g", "--ack", "manual", "--url", server.url]
        process = started(*arguments, "app:store", "--batch", "--json", cwd=tmp_path)
        await eventually(lambda: settled(stream), 20, ignore=(ValueError,))
        process.terminate()
        said, _ = await asyncio.to_thread(process.communicate, timeout=20)
        assert msgspec.json.decode(said)["handled"] == 3
        assert msgspec.json.decode(said)["retried"] == 1
        refused = started(*arguments, "--sink", f"sqlite:{tmp_path}/a.db", cwd=tmp_path)
        _, trouble = await asyncio.to_thread(refused.communicate, timeout=20)
        assert refused.returncode == 2
        assert "for a sink" in str(trouble)


async def test_acknowledgements_go_ahead_of_a_dead_letter(
    server: TestServer, stream: Stream
) -> None:
    """In ordered mode what stands before a dead letter of its batch is acknowledged before it: if
    the worker dies in between, what comes again is the end of what was handled."""
    await send(stream, make_events(1), "plain")
    await send(stream, [Event("m", 1, {"n": "text"}), Event("m", 2, {"n": 2})])
    worker = Worker(stream, "g", ordered=True)
    seen: list[int] = []

    @worker.batch
    def handle(readings: list[Reading]) -> None:
        seen.extend(reading.n for reading in readings)

    with watching(server) as commands:
        async with running(worker):
            await eventually(lambda: worker.stats.dead == 1 and len(seen) == 2)
            await eventually(lambda: settled(stream))
    plain, block = (row[0] for row in server.command("XRANGE", stream.name, "-", "+"))
    acks = [command for _, command in commands if command.startswith('"XACK" ')]
    assert [plain in acks[0], block in acks[1]] == [True, True], acks
