"""Handlers that take events of their own types: what is not of the type is a dead letter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from standpipe import Context, Event, Producer, Stream, Worker
from standpipe.errors import FieldError
from tests.conditions import eventually
from tests.servers.entries import TIME
from tests.servers.fleet import Fleet, TestServer
from tests.servers.test_cli import run
from tests.servers.working import letters, running, send, settled

pytestmark = pytest.mark.servers


class Reading(msgspec.Struct):
    key: str
    time: int
    n: int
    volts: float


@dataclasses.dataclass
class Plain:
    key: str
    n: int
    volts: float


def events(count: int, *wrong: int) -> list[Event]:
    return [
        Event(f"m{n % 3}", TIME + n, {"n": n, "volts": "high" if n in wrong else 230.5})
        for n in range(count)
    ]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("codec", ["rows", "plain", "columns"])
async def test_structs_in_and_structs_out(
    server: TestServer, stream_name: str, codec: str, shards: int
) -> None:
    """What is sent as Structs, in lists or one by one, is handled as Structs, and refused whole."""
    sent = [Reading(f"m{n % 7}", TIME + n, n, n / 4) for n in range(1_300)]
    seen: list[Reading] = []
    async with (
        Stream(stream_name, server.url, codec=codec, shards=shards) as stream,
        Producer(stream) as producer,
    ):
        ids = await (await producer.send_many(sent[:1_200]))
        assert len(ids) == len(set(ids)) == 1_200 or shards > 1
        for reading in sent[1_200:]:
            await producer.send(reading)
        with pytest.raises(FieldError, match="volts"):
            await producer.send_many([sent[0], Reading("m", TIME, 1, math.nan)])
        await producer.flush()
        assert producer.stats.acknowledged == len(sent)
        worker = Worker(stream, "g")

        @worker.batch
        async def handle(batch: list[Reading]) -> None:
            seen.extend(batch)

        async with running(worker):
            await eventually(lambda: len(seen) == len(sent))
    for key in {reading.key for reading in sent}:
        assert [r for r in seen if r.key == key] == [r for r in sent if r.key == key]


@pytest.mark.parametrize("kind", ["each-async", "each-sync", "batch-async", "batch-sync"])
async def test_invalid_events_are_dead_at_once(stream: Stream, kind: str) -> None:
    """Of a block only the invalid events are dead, at the first delivery, with the field's path."""
    seen: list[Reading] = []
    deliveries: list[int] = []
    worker = Worker(stream, "g")

    async def each(event: Reading, context: Context) -> None:
        deliveries.append(context.deliveries)
        seen.append(event)

    def each_sync(event: Reading) -> None:
        seen.append(event)

    async def batch(batch: list[Reading], context: Context) -> None:
        deliveries.append(context.deliveries)
        seen.extend(batch)

    def batch_sync(batch: list[Reading]) -> None:
        seen.extend(batch)

    handler = {
        "each-async": each, "each-sync": each_sync, "batch-async": batch, "batch-sync": batch_sync,
    }[kind]  # fmt: skip
    (worker.batch if kind.startswith("batch") else worker.each)(handler)
    wrong = (0, 7, 8, 99)
    await send(stream, events(100, *wrong))
    await send(stream, events(2), "plain")
    async with running(worker):
        await eventually(lambda: settled(stream), ignore=(ValueError,))
    expected = [n for n in range(100) if n not in wrong]
    assert sorted(reading.n for reading in seen) == sorted([*expected, 0, 1])
    assert all(isinstance(reading, Reading) for reading in seen)
    found = await letters(stream)
    assert [letter["reason"] for letter in found] == [b"$.volts: Expected float, got str"] * 4
    assert {letter["deliveries"] for letter in found} == {b"1"}
    assert sorted(msgspec.msgpack.decode(letter["d"])[2]["n"] for letter in found) == list(wrong)
    ids = {int(letter["id"].partition(b"/")[2]) for letter in found}
    assert ids == set(wrong)
    assert set(deliveries) <= {1}
    assert (worker.stats.dead, worker.stats.retried) == (4, 0)


async def test_a_batch_of_invalid_events_alone(stream: Stream) -> None:
    """A batch handler is not called where nothing is left for it, and all is settled."""
    called = 0
    worker = Worker(stream, "g")

    @worker.batch
    async def handle(batch: list[Reading]) -> None:
        nonlocal called
        called += 1

    await send(stream, events(5, *range(5)))
    async with running(worker):
        await eventually(lambda: settled(stream), ignore=(ValueError,))
    assert called == 0
    assert len(await letters(stream)) == 5


async def test_a_failing_typed_handler_is_retried(stream: Stream) -> None:
    """What is valid and fails is retried, with an event made anew each time, then given up on."""
    seen: list[tuple[int, float]] = []
    worker = Worker(stream, "g", deliveries_max=2)

    @worker.batch
    def handle(batch: list[Plain]) -> None:
        for reading in batch:
            seen.append((reading.n, reading.volts))
            reading.volts = 0.0
            if reading.n == 1:
                raise ValueError("no")

    await send(stream, events(3, 2))
    async with running(worker):
        await eventually(lambda: settled(stream), ignore=(ValueError,))
    assert {volts for _, volts in seen} == {230.5}
    assert sorted(letter["reason"] for letter in await letters(stream)) == [
        b"$.volts: Expected float, got str", b"ValueError: no",
    ]  # fmt: skip


def test_work_names_the_annotation_that_it_cannot_use(fleet: Fleet, tmp_path: Path) -> None:
    """`standpipe work` takes a list for a batch, and exits with 2 where it is a list of numbers."""
    (tmp_path / "handlers.py").write_text("def store(event: list[int]): ...\n")
    server = fleet.shared("valkey-9.1")
    done = run("work", "s", "handlers:store", "--group", "g", url=server.url, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "store: its first argument is a int" in done.stderr
    assert "TypedDict" in done.stderr
