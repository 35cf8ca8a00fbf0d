"""Worker processes that are killed, stopped or die of an event: nothing is lost by it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from standpipe import Context, Event, Stream, Worker
from tests.conditions import eventually
from tests.faults.processes import Process
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import letters, pending, running, send, settled

pytestmark = [pytest.mark.servers, pytest.mark.faults]
IDLE_MS = 300


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.fixture
def start(server: TestServer, stream_name: str) -> Iterator[Callable[..., Process]]:
    """``start(mode, **options)``: a worker process in the group ``g`` of the test's stream."""
    processes: list[Process] = []

    def begin(mode: str, **options: int) -> Process:
        options = {"idle_ms_min": IDLE_MS, **options}
        given = [f"{name}={value}" for name, value in options.items()]
        processes.append(Process(server.url, stream_name, mode, *given))
        return processes[-1]

    yield begin
    for process in processes:
        process.end()


async def finish(stream: Stream, **options: int) -> tuple[Counter[int], Worker]:
    """Handle what is left with a worker of this process, to the end."""
    seen: Counter[int] = Counter()
    worker = Worker(stream, "g", **{"idle_ms_min": IDLE_MS, **options})
    worker.batch(lambda batch: seen.update(event.fields["n"] for event in batch))
    async with running(worker):
        await eventually(lambda: settled(stream), 20)
    return seen, worker


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_killed_again_and_again(
    stream: Stream, start: Callable[..., Process], codec: str
) -> None:
    """However often workers are killed, each event is handled by one that lived to finish it."""
    for first in range(0, 600, 60):
        await send(stream, make_events(60, first=first), codec)
    done: Counter[int] = Counter()
    for turn in range(3):
        process = start("slow", concurrency=10)
        await eventually(lambda p=process: len(p.numbers("done")) >= 50, what=f"turn {turn}")
        process.end()
        done.update(process.numbers("done"))
    seen, worker = await finish(stream)
    assert worker.consumer.stats.taken_over > 0
    assert set(done) | set(seen) == set(range(600))
    assert await letters(stream) == []
    # Acknowledgements leave within milliseconds; a block is delivered again as a whole.
    twice = sum((done + seen).values()) - 600
    assert twice <= 3 * (60 if codec == "plain" else 300)


async def test_taken_over_while_the_stream_is_idle(
    stream: Stream, start: Callable[..., Process]
) -> None:
    """What a killed worker held is taken over without any new event having to come."""
    await send(stream, make_events(50), "plain")
    process = start("hang")
    await eventually(lambda: len(process.numbers("begin")) == 50)
    seen: list[int] = []
    worker = Worker(stream, "g", idle_ms_min=IDLE_MS)
    worker.batch(lambda batch: seen.extend(event.fields["n"] for event in batch))
    async with running(worker):
        process.end()
        await eventually(lambda: len(seen) == 50)
        await eventually(lambda: settled(stream))
    assert sorted(seen) == list(range(50))
    assert worker.consumer.stats.taken_over == 50


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_a_deadly_event_dies_alone(
    stream: Stream, start: Callable[..., Process], codec: str
) -> None:
    """An entry that kills its worker every time ends as a dead letter; those beside it, begun with
    it or waiting behind it each time, are handled."""
    blocks = [make_events(1 if codec == "plain" else 4, first=n * 4) for n in range(30)]
    for events in blocks:
        await send(stream, events, codec)
    everyone = {event.fields["n"] for events in blocks for event in events}
    if codec == "plain":
        await send(stream, make_events(1, first=5), codec)
        everyone.add(5)
    done: set[int] = set()
    for _ in range(3):
        process = start("poison", deliveries_max=3)
        assert await asyncio.to_thread(process.process.wait, 20) == 1
        process.end()
        done.update(process.numbers("done"))
    seen, worker = await finish(stream, deliveries_max=3)
    deadly = {5} if codec == "plain" else {4, 5, 6, 7}
    found = await letters(stream)
    assert {msgspec.msgpack.decode(one["d"], type=Event).fields["n"] for one in found} == deadly
    assert {one["deliveries"] for one in found} == {b"3"}
    assert b"its workers died of it" in found[0]["reason"]
    assert worker.stats.dead == len(deadly)
    assert done | set(seen) | deadly == everyone


async def test_a_deadly_entry_is_isolated_though_tries_are_counted_together(
    stream: Stream, start: Callable[..., Process]
) -> None:
    """In a batch and behind others, an entry kills all workers that it may: those that wait behind
    it are begun once more, alone, and were counted with it once. Those before it, too; but what was
    acknowledged only just before is begun a second time, and no third."""
    await send(stream, make_events(30), "plain")
    (key,) = stream.keys
    *_, (deadly, _) = await stream.server.call("XRANGE", key, "-", "+", "COUNT", 6, key=key)
    begun: Counter[int] = Counter()
    done: set[int] = set()
    for turn in range(1, 6):
        process = start("deadly-batch", deliveries_max=5)
        assert await asyncio.to_thread(process.process.wait, 30) == 1
        process.end()
        begun.update(process.numbers("begin"))
        done.update(process.numbers("done"))
        rows = await stream.server.call("XPENDING", key, "g", deadly, "+", 100, key=key)
        count, *behind = [row[3] for row in rows]
        assert count == turn
        assert {*behind} <= ({1} if turn == 1 else {1, 2})
    seen, worker = await finish(stream, deliveries_max=5)
    (letter,) = await letters(stream)
    assert msgspec.msgpack.decode(letter["d"], type=Event).fields["n"] == 5
    assert letter["deliveries"] == b"5"
    assert b"its workers died of it" in letter["reason"]
    assert worker.stats.dead == 1
    assert done | set(seen) | {5} == set(range(30))
    begun += seen
    assert all(begun[n] <= 3 for n in range(5))
    assert all(begun[n] <= 2 for n in range(6, 30))


async def test_a_count_survives_a_kill(stream: Stream, start: Callable[..., Process]) -> None:
    """Failed tries are counted on the server: another worker goes on where a killed one was."""
    await send(stream, make_events(1))
    process = start("fail")
    await eventually(lambda: len(process.numbers("begin")) >= 3)
    process.end()
    tries = [int(said[2]) for said in process.said]
    assert tries == list(range(1, len(tries) + 1))
    first: list[int] = []
    worker = Worker(stream, "g", idle_ms_min=IDLE_MS, deliveries_max=len(tries) + 1)

    @worker.each
    async def handle(event: Event, context: Context) -> None:
        first.append(context.deliveries)
        raise ValueError("still wrong")

    async with running(worker):
        await eventually(lambda: worker.stats.dead == 1)
    assert first == [len(tries) + 1]
    (letter,) = await letters(stream)
    assert letter["deliveries"] == b"%d" % (len(tries) + 1)
    assert await settled(stream)


async def test_one_that_was_stopped_too_long(stream: Stream, start: Callable[..., Process]) -> None:
    """A worker that slept while its entries were taken over learns of it: what it would still do
    with them, acknowledge or bury, it does not do."""
    await send(stream, make_events(3), "plain")
    process = start("late", deliveries_max=1)
    await eventually(lambda: len(process.numbers("begin")) == 3)
    process.signal(signal.SIGSTOP)
    go, begun = asyncio.Event(), []
    worker = Worker(stream, "g", name="other", idle_ms_min=IDLE_MS)

    @worker.each
    async def handle(event: Event) -> None:
        begun.append(event.fields["n"])
        await go.wait()

    async with running(worker):
        await eventually(lambda: len(begun) == 3)
        for _ in range(3):
            process.go_on()
        process.signal(signal.SIGCONT)
        await eventually(lambda: process.numbers("counts"))
        assert {consumer for consumer, _ in await pending(stream)} == {b"other"}
        assert await letters(stream) == []
        assert begun == [0, 1, 2]
        go.set()
        await eventually(lambda: settled(stream))
    assert await letters(stream) == []
    assert worker.consumer.stats.taken_from_us == 0
