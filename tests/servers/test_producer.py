"""What a producer takes is in the stream as it was given, once, in order, and within its limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pytest

from standpipe import Event, Producer, Stream
from standpipe.errors import (
    BackpressureError,
    CodecError,
    ConfigError,
    EventTooLargeError,
    FieldError,
    NotAcknowledgedError,
    ProducerClosedError,
    ProducerError,
    ReplyTimeoutError,
    StandpipeError,
    UnknownOutcomeError,
    WrongTypeError,
)
from standpipe.keyspace import partition
from standpipe.limits import PART_EVENTS_MAX, SHARDS_MAX, TABLE_BLOCK_BYTES_MAX
from standpipe.wire import Link, Server
from tests.conditions import eventually
from tests.servers.entries import (
    TIME,
    entries_at,
    events_at,
    events_of,
    make_events,
    numbers,
    numbers_at,
    require_once_in_order,
)
from tests.servers.fleet import Fleet, TestCluster, TestServer

OwnServer = Callable[..., TestServer]
CODECS = ("plain", "rows", "columns")
pytestmark = pytest.mark.servers


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TestCluster]]:
    """One cluster of each server's, for all tests of this file."""
    fleet = Fleet(tmp_path_factory.mktemp("clusters"))
    yield cache(fleet.cluster)
    fleet.close()


def table_of(events: Sequence[Event]) -> pa.Table:
    names = list(events[0].fields)
    columns: dict[str, Any] = {
        "key": [event.key for event in events],
        "time": [event.time for event in events],
    }
    return pa.table(columns | {n: [event.fields[n] for event in events] for n in names})


# --- what is in the stream -----------------------------------------------------------------------


async def test_plain_entry(server: TestServer, wire: Server, stream_name: str) -> None:
    """A plain entry's fields are the event's own, as any client reads them."""
    fields = {"volts": 230.5, "phase": 3, "state": "on", "ok": True, "amps": None}
    async with (
        Stream(stream_name, wire, codec="plain") as stream,
        Producer(stream) as producer,
    ):
        first = await (await producer.send(Event("inverter-7", TIME, fields)))
        second = await (await producer.send({"key": "inverter-8", "time": TIME + 1, "volts": 1}))
        third = await (await producer.send(Event(None, TIME, {"volts": 2})))
    assert first is not None and second is not None and third is not None
    common = ["key", "inverter-7", "time", str(TIME)]
    assert server.command("XRANGE", stream_name, "-", "+") == [
        [first.entry, [*common, "volts", "230.5", "phase", "3", "state", "on", "ok", "true"]],
        [second.entry, ["key", "inverter-8", "time", str(TIME + 1), "volts", "1"]],
        [third.entry, ["time", str(TIME), "volts", "2"]],
    ]
    shown = server.cli("XRANGE", stream_name, "-", "+", "COUNT", 1)
    assert shown.splitlines()[5:7] == ["volts", "230.5"]


async def test_a_list_lets_the_writer_run(wire: Server, stream_name: str) -> None:
    """A long list of plain events is on its way before the last of it has been taken."""
    async with Stream(stream_name, wire, codec="plain") as stream, Producer(stream) as producer:
        receipts = await producer.send_many(
            [Event("m", TIME, {"n": n}) for n in range(20 * PART_EVENTS_MAX)]
        )
        (shard,) = producer._buffer.shards
        assert shard.sequence, "the writer has had no turn yet"
        await receipts


async def test_names_of_key_and_time(server: TestServer, wire: Server, stream_name: str) -> None:
    """The key and the time of a plain entry stand under the names that the stream gives them."""
    async with (
        Stream(stream_name, wire, codec="plain", key_field="meter", time_field="at") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send({"meter": "m-1", "at": TIME, "volts": 230.5}))
    ((_, fields),) = server.command("XRANGE", stream_name, "-", "+")
    assert fields == ["meter", "m-1", "at", str(TIME), "volts", "230.5"]


@pytest.mark.parametrize("shards", [1, 8, SHARDS_MAX])
@pytest.mark.parametrize("codec", CODECS)
async def test_receipts(codec: str, shards: int, wire: Server, stream_name: str) -> None:
    """Every receipt gives the ID under which its event stands in its key's shard, whatever sends it
    and however many go together."""
    events = make_events(3_000)
    async with (
        Stream(stream_name, wire, codec=codec, shards=shards) as stream,
        Producer(stream) as producer,
    ):
        one_by_one = [await producer.send(event) for event in events[:300]]
        together = await producer.send_many(events[300:2_000])
        table = await producer.send_table(table_of(events[2_000:]))
        assert (together.count, table.count) == (1_700, 1_000)
        ids = [await receipt for receipt in one_by_one] + await together + await table
        assert together.is_done and table.is_done and one_by_one[0].is_done
        found = [dict(pairs) for pairs in await events_of(stream)]
        for event, event_id in zip(events, ids, strict=True):
            assert event_id is not None
            assert found[partition(event.key, shards)].pop(event_id) == event
        assert found == [{}] * shards
        assert producer.stats.sent == producer.stats.acknowledged == 3_000
        assert producer.stats.retries == producer.stats.failed == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_order_of_a_key(codec: str, wire: Server, stream_name: str) -> None:
    """The events of one key stand in one shard in the order in which they were sent, though several
    tasks and ways of sending are at work."""
    async with (
        Stream(stream_name, wire, codec=codec, shards=4) as stream,
        Producer(stream, block_events_max=50) as producer,
    ):

        async def feed(key: str) -> None:
            events = [Event(key, TIME + n, {"n": n}) for n in range(600)]
            await producer.send_many(events[:200])
            for event in events[200:400]:
                await producer.send(event)
            await producer.send_table(table_of(events[400:]))

        keys = [f"pump-{number}" for number in range(9)]
        await asyncio.gather(*map(feed, keys))
        await producer.flush()
        shards = await events_of(stream)
    for key in keys:
        homes = [[event for _, event in shard if event.key == key] for shard in shards]
        (home,) = filter(None, homes)
        require_once_in_order(numbers(home), 600)


async def test_a_lone_event_leaves_at_once(wire: Server, stream_name: str) -> None:
    """With nothing in flight an event is acknowledged after one round trip: nothing waits for
    more to come."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        await (await producer.send(Event("m", TIME, {"n": 0})))
        for event in make_events(5):
            start = time.perf_counter()
            await (await producer.send(event))
            assert time.perf_counter() - start < 0.05
        assert producer.stats.blocks == 6


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_blocks_fill_under_load(codec: str, wire: Server, stream_name: str) -> None:
    """What is sent while a write is in flight leaves together: few writes for many events."""
    async with (
        Stream(stream_name, wire, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        for event in make_events(10_000):
            await producer.send(event)
        await producer.flush()
        assert producer.stats.blocks < 200
        require_once_in_order(await numbers_at(wire, stream_name), 10_000)


async def test_entries_shrink(wire: Server, stream_name: str) -> None:
    """Blocks are compressed when that is smaller, and not when they are told not to be."""
    sizes: list[int] = []
    for compress in (True, False):
        async with (
            Stream(stream_name, wire) as stream,
            Producer(stream, compress=compress) as producer,
        ):
            await (await producer.send_many(make_events(500)))
            await (await producer.send_table(table_of(make_events(500))))
            sizes.append(producer.stats.wire_bytes)
    assert sizes[0] < sizes[1] / 2
    assert len(await events_at(wire, stream_name)) == 2_000


async def test_nothing_to_send(wire: Server, stream_name: str) -> None:
    """An empty list and an empty table are acknowledged at once and leave nothing."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        assert await (await producer.send_many([])) == []
        assert await (await producer.send_table(table_of(make_events(1)).slice(0, 0))) == []
        assert not await stream.exists()


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["rows", "columns"])
async def test_block_events_max(codec: str, wire: Server, stream_name: str) -> None:
    """No block of a list has more events than block_events_max."""
    async with (
        Stream(stream_name, wire, codec=codec) as stream,
        Producer(stream, block_events_max=70) as producer,
    ):
        await producer.send_many(make_events(1_000))
        if codec == "rows":
            for event in make_events(500, first=1_000):
                await producer.send(event)
        await producer.flush()
        entries = await entries_at(wire, stream_name)
        assert max(entry.count for entry in entries) <= 70
        assert sum(entry.count for entry in entries) == producer.stats.sent


async def test_block_bytes_max(server: TestServer, wire: Server, stream_name: str) -> None:
    """No block has more bytes than block_bytes_max, whether its events came in a list or singly."""
    events = [
        Event(f"meter-{n}", TIME + n, {"n": n, "note": "x" * (n % 300)}) for n in range(2_000)
    ]
    async with (
        Stream(stream_name, wire) as stream,
        Producer(stream, block_bytes_max=8_192, compress=False) as producer,
    ):
        await producer.send_many(events[:1_000])
        for event in events[1_000:]:
            await producer.send(event)
        await producer.flush()
        sizes = [len(entry.fields[5]) for entry in await entries_at(wire, stream_name)]
        assert max(sizes) <= 8_192
        # They are not small for it either.
        assert len(sizes) < 3 * sum(sizes) / 8_192
        require_once_in_order(await numbers_at(wire, stream_name), 2_000)


async def test_table_blocks(wire: Server, stream_name: str) -> None:
    """A table's blocks are bounded in rows and in bytes, and hold its rows in order."""
    rows = 40_000
    table = pa.table(
        {"key": ["meter-1"] * rows, "time": range(TIME, TIME + rows), "n": range(rows)}
    )
    wide = pa.table(
        {"key": ["m"] * 200, "time": [TIME] * 200, "n": range(200), "raw": [bytes(60_000)] * 200}
    )
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        ids = await (await producer.send_table(table))
        assert [entry.count for entry in await entries_at(wire, stream_name)] == [
            16_384,
            16_384,
            rows - 2 * 16_384,
        ]
        assert ids[16_385] is not None and ids[16_385].index == 1
        await (await producer.send_table(wide))
        parts = (await entries_at(wire, stream_name))[3:]
        assert len(parts) >= 3
        assert all(part.table().nbytes <= TABLE_BLOCK_BYTES_MAX for part in parts)
        found = await numbers_at(wire, stream_name)
        assert found == [*range(rows), *range(200)]


@pytest.mark.parametrize("codec", CODECS)
async def test_event_bytes_max(codec: str, wire: Server, stream_name: str) -> None:
    """An event above event_bytes_max is refused by its key and size, and nothing that was given
    with it is sent."""
    large = Event("camera-9", TIME, {"frame": bytes(70_000)})
    events = [*make_events(1_200), large]
    filled = [Event("m", TIME, {"n": n, "frame": b""}) for n in range(10)]
    async with (
        Stream(stream_name, wire, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        for send, given in (
            (producer.send, large),
            (producer.send_many, events),
            (
                producer.send_table,
                table_of([*filled, Event("camera-9", TIME, {"n": 1} | large.fields)]),
            ),
        ):
            with pytest.raises(
                EventTooLargeError, match=r"'camera-9'.* has 70\d\d\d bytes"
            ) as caught:
                await send(given)
            assert "standpipe.blobs" in caught.value.hint
        await producer.flush()
        assert producer.stats.sent == 0
        assert not await stream.exists()
        # One just below the limit goes.
        await (await producer.send(Event("camera-9", TIME, {"frame": bytes(65_000)})))
    async with (
        Stream(stream_name, wire) as stream,
        Producer(stream, event_bytes_max=80_000) as more,
    ):
        await (await more.send(large))
        await (await more.send_many([large]))


@pytest.mark.parametrize("codec", CODECS)
async def test_wrong_event_among_others(codec: str, wire: Server, stream_name: str) -> None:
    """An event that cannot be sent is refused by its field, and nothing that was given with it is
    sent."""
    bad = Event("m", TIME, {"n": float("nan")})
    async with (
        Stream(stream_name, wire, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        with pytest.raises(FieldError, match="'n'"):
            await producer.send(bad)
        with pytest.raises(FieldError, match="'n'"):
            await producer.send_many([*make_events(600), bad])
        await producer.flush()
        assert producer.stats.sent == 0


async def test_columns_of_mixed_types(wire: Server, stream_name: str) -> None:
    """Events that fit in no column are refused before any of them is sent."""
    events = [*make_events(600), Event("m", TIME, {"n": "text"})]
    async with (
        Stream(stream_name, wire, codec="columns") as stream,
        Producer(stream) as producer,
    ):
        with pytest.raises(CodecError, match="'n'"):
            await producer.send_many(events)
        await producer.flush()
        assert producer.stats.sent == 0


# --- the buffer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"buffer_events_max": 100}, {"buffer_bytes_max": 4_000}])
async def test_full_buffer_raises(limit: dict[str, int], own_server: OwnServer) -> None:
    """With on_full="raise" a full buffer refuses what does not fit, whole; what it has taken
    arrives, and later there is room again."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, on_full="raise", **limit) as producer,
    ):
        server.stop()
        events = make_events(1_000)
        taken = 0
        with pytest.raises(BackpressureError, match="do not fit") as caught:
            for event in events:
                await producer.send(event)
                taken += 1
        assert caught.value.retryable
        assert 10 < taken <= 120
        for send, given in (
            (producer.send_many, events[taken:]),
            (producer.send_table, table_of(events[taken:])),
        ):
            with pytest.raises(BackpressureError):
                await send(given)
        assert producer.stats.sent == taken
        server.cont()
        await producer.flush()
        # Larger than the buffer: it goes through alone.
        await (await producer.send_many(events[taken:]))
        require_once_in_order(await numbers_at(stream.server, "power"), 1_000)


@pytest.mark.parametrize("codec", CODECS)
async def test_full_buffer_takes_all_or_none(codec: str, own_server: OwnServer) -> None:
    """With on_full="raise" a list that does not fit as a whole leaves nothing behind."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url, codec=codec) as stream,
        Producer(
            stream, on_full="raise", buffer_events_max=1_000, block_events_max=100
        ) as producer,
    ):
        server.stop()
        await producer.send_many(make_events(300))
        with pytest.raises(BackpressureError):
            await producer.send_many(make_events(701, first=300))
        assert producer.stats.sent == 300
        await producer.send_many(make_events(700, first=300))
        server.cont()
        await producer.flush()
        require_once_in_order(await numbers_at(stream.server, "power"), 1_000)


@pytest.mark.parametrize("limit", [{"buffer_events_max": 100}, {"buffer_bytes_max": 4_000}])
async def test_full_buffer_waits(limit: dict[str, int], own_server: OwnServer) -> None:
    """By default send waits for room, and goes on when there is some; nothing is lost or twice."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, block_events_max=20, **limit) as producer,
    ):
        server.stop()

        async def feed() -> None:
            for event in make_events(500):
                await producer.send(event)
            await producer.send_many(make_events(500, first=500))

        feeding = asyncio.create_task(feed())
        await eventually(lambda: producer.stats.sent > 10)
        # Time enough to pass the limit.
        await asyncio.wait({feeding}, timeout=0.3)
        assert not feeding.done()
        assert 10 < producer.stats.sent <= 120
        server.cont()
        await feeding
        await producer.flush()
        require_once_in_order(await numbers_at(stream.server, "power"), 1_000)


async def test_cancelled_send(own_server: OwnServer) -> None:
    """A send that is cancelled while it waits for room has sent nothing, and the next goes on."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, buffer_events_max=10) as producer,
    ):
        server.stop()
        for event in make_events(10):
            await producer.send(event)
        waiting = asyncio.create_task(producer.send(Event("m", TIME, {"n": 99})))
        await asyncio.wait({waiting}, timeout=0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        server.cont()
        await producer.send(make_events(1, first=10)[0])
        await producer.flush()
        require_once_in_order(await numbers_at(stream.server, "power"), 11)


async def test_cancelled_await(own_server: OwnServer) -> None:
    """Who stops waiting for a receipt takes neither the event back nor another's receipt."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        server.stop()
        receipts = [await producer.send(event) for event in make_events(2)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await receipts[0]
        server.cont()
        ids = [await receipt for receipt in receipts]
        assert [event_id for event_id, _ in await events_at(stream.server, "power")] == ids


async def test_one_shard_does_not_hold_up_another(own_server: OwnServer) -> None:
    """What waits for one shard leaves with the next write, however much waits for another."""
    server = own_server("valkey-9.1")
    async with (
        Stream("power", server.url, shards=2) as stream,
        Producer(stream, compress=False) as producer,
    ):
        busy, calm = (next(k for k in map(str, range(99)) if partition(k, 2) == s) for s in (0, 1))
        server.stop()
        await producer.send(Event(busy, TIME, {"n": 0}))
        # Twice what fits in one write.
        frames = [Event(busy, TIME, {"frame": bytes(60_000)}) for _ in range(140)]
        many = await producer.send_many(frames)
        one = await producer.send(Event(calm, TIME, {"n": 1}))
        server.cont()
        await one
        assert not many.is_done
        await many


# --- the end -------------------------------------------------------------------------------------


async def test_sending_while_it_does_not_run(wire: Server, stream_name: str) -> None:
    """Before the start and after the end a send is refused, and nothing waits for ever."""
    async with Stream(stream_name, wire) as stream:
        producer = Producer(stream)
        for _ in range(2):
            for send, given in (
                (producer.send, make_events(1)[0]),
                (producer.send, {"key": "m", "volts": 1}),
                (producer.send_many, make_events(2)),
                (producer.send_table, table_of(make_events(2))),
            ):
                with pytest.raises(ProducerClosedError, match="not running"):
                    await send(given)
            async with producer:
                await producer.send(make_events(1)[0])
        assert len(await events_at(wire, stream_name)) == 2


async def test_started_again(wire: Server, stream_name: str) -> None:
    """A producer that was closed and is started again adds what it is given: it is not taken for a
    repetition of what it sent before."""
    async with Stream(stream_name, wire) as stream:
        producer = Producer(stream)
        for first in (0, 10):
            async with producer:
                ids = await (await producer.send_many(make_events(10, first=first)))
                assert None not in ids
                assert producer.stats.recognised == 0
        require_once_in_order(await numbers_at(wire, stream_name), 20)


async def test_opens_and_closes_what_it_opened(server: TestServer, stream_name: str) -> None:
    """A producer opens a stream that is not open, and closes that one with itself."""
    stream = Stream(stream_name, server.url)
    async with Producer(stream) as producer:
        assert stream.is_open
        await producer.send(make_events(1)[0])
    assert not stream.is_open
    async with Stream(stream_name, server.url) as stream:
        async with Producer(stream):
            pass
        assert stream.is_open


async def test_failures_that_nobody_saw(server: TestServer, wire: Server, stream_name: str) -> None:
    """Flushing and closing raise for events that failed, unless their receipts have said so; and
    say why."""
    server.command("SET", stream_name, "no stream")
    async with Stream(stream_name, wire) as stream:
        producer = Producer(stream)
        async with producer:
            with pytest.raises(WrongTypeError):
                await (await producer.send(make_events(1)[0]))
            await producer.flush()
            await producer.send_many(make_events(700))
            with pytest.raises(NotAcknowledgedError, match=r"700 events.*WRONGTYPE") as caught:
                await producer.flush()
            assert caught.value.count == 700
            assert isinstance(caught.value.__cause__, WrongTypeError)
            await producer.flush()
            assert producer.stats.failed == 701
            with pytest.raises(WrongTypeError):
                await (await producer.send_many(make_events(1_600)))
            await producer.flush()
        with pytest.raises(NotAcknowledgedError, match="1 events"):
            async with producer:
                await producer.send(make_events(1)[0])
        # The body's own error is the one that goes on.
        with pytest.raises(LookupError):
            async with producer:
                await producer.send(make_events(1)[0])
                raise LookupError


async def test_memory_of_failures_that_nobody_saw(
    server: TestServer, wire: Server, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer all of whose events fail, and nobody looks, takes no more and more memory; flush
    still says how many there were."""
    monkeypatch.setattr("standpipe.producer.buffer.FAILED_BLOCKS_MAX", 100)
    async with (
        Stream(stream_name, wire) as stream,
        Producer(stream, block_events_max=1) as producer,
    ):
        server.command("SET", stream_name, "no stream")
        for first in range(0, 1_300, 100):
            await producer.send_many(make_events(100, first=first))
        await eventually(lambda: producer.stats.failed == 1_300, 60)
        assert len(producer._buffer._failures) < 1_300
        with pytest.raises(NotAcknowledgedError, match=r"1300 events were not .* WRONGTYPE"):
            await producer.flush()
        await producer.flush()


async def test_flush_while_others_send(wire: Server, stream_name: str) -> None:
    """flush() waits for what was sent before it, not for what others go on sending."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        events = make_events(1)

        async def send() -> None:
            while True:
                await producer.send(events[0])
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        try:
            await (await producer.send(events[0]))
            receipt = await producer.send(events[0])
            async with asyncio.timeout(10):
                await producer.flush()
            assert receipt.is_done
        finally:
            sending.cancel()


async def test_goes_on_behind_a_failed_block(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """When the key is a stream again, later events are added, and the gap that the failed ones have
    left is not taken for a loss of the server's."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        await (await producer.send(make_events(1)[0]))
        server.command("RENAME", stream_name, f"{stream_name}:away")
        server.command("SET", stream_name, "no stream")
        many = await producer.send_many(make_events(2_000, first=1_000))
        with pytest.raises(WrongTypeError):
            await many
        assert many.is_done
        server.command("RENAME", f"{stream_name}:away", stream_name)
        await (await producer.send_many(make_events(1_500, first=1)))
        require_once_in_order(await numbers_at(wire, stream_name), 1_501)
        assert producer.stats.forgotten == 0


async def test_closing_with_a_deadline(own_server: OwnServer) -> None:
    """Closing gives up at its deadline, says how many events are not acknowledged, and their
    receipts tell those that may have arrived from those that were never written."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url) as stream:
        producer = await Producer(stream).start()
        server.stop()
        written = await producer.send(make_events(1)[0])
        await asyncio.sleep(0)  # The writer's turn: the event is on its way.
        unwritten = await producer.send_many(make_events(700, first=1))
        start = time.monotonic()
        with pytest.raises(NotAcknowledgedError, match="701 events") as caught:
            await producer.close(deadline_ms=200)
        assert time.monotonic() - start < 1
        assert caught.value.hint
        with pytest.raises(UnknownOutcomeError):
            await written
        with pytest.raises(ProducerClosedError):
            await unwritten
        server.cont()


async def test_closing_ends_a_waiting_send(own_server: OwnServer) -> None:
    """A send that waits for room when the producer is closed is refused, not left waiting."""
    server = own_server("valkey-9.1")
    async with Stream("power", server.url) as stream:
        producer = await Producer(stream, buffer_events_max=1).start()
        server.stop()
        await producer.send(make_events(1)[0])
        waiting = asyncio.create_task(producer.send(make_events(1)[0]))
        await asyncio.wait({waiting}, timeout=0.1)
        with pytest.raises(NotAcknowledgedError, match="1 events"):
            await producer.close(deadline_ms=100)
        with pytest.raises(ProducerClosedError):
            await waiting
        server.cont()


async def test_deadline_of_a_block(own_server: OwnServer) -> None:
    """A block that the server does not answer for deadline_ms fails as of unknown outcome; the
    next goes on, and whether the failed one arrived does not matter to it."""
    server = own_server("valkey-9.1")
    async with (
        Server(server.url, reply_ms_max=300) as wire,
        Stream("power", wire) as stream,
        Producer(stream, deadline_ms=200) as producer,
    ):
        server.stop()
        start = time.monotonic()
        with pytest.raises(UnknownOutcomeError) as caught:
            await (await producer.send(make_events(1)[0]))
        assert isinstance(caught.value.__cause__, ReplyTimeoutError)
        assert time.monotonic() - start < 1
        server.cont()
        await (await producer.send(make_events(1, first=1)[0]))
        assert await numbers_at(wire, "power") in ([0, 1], [1])
        assert producer.stats.forgotten == 0


async def test_deadline_of_two_days(server: TestServer, wire: Server, stream_name: str) -> None:
    """The server remembers a producer for longer than the producer tries to send a block."""
    deadline_ms = 2 * 24 * 3600 * 1000
    async with (
        Stream(stream_name, wire) as stream,
        Producer(stream, deadline_ms=deadline_ms) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        sequence_key = producer._buffer.shards[0].sequence_key
        assert server.command("PTTL", sequence_key) > deadline_ms


async def test_receipt_of_a_lost_block(own_server: OwnServer) -> None:
    """When the deadline passes with the server still silent, the receipt says so."""
    server = own_server("valkey-9.1")
    server.command("CONFIG", "SET", "maxmemory", "1")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, deadline_ms=200) as producer,
    ):
        receipt = await producer.send(make_events(1)[0])
        with pytest.raises(StandpipeError, match="bytes are in use, of 1 that") as caught:
            await receipt
        assert caught.value.retryable
        server.command("CONFIG", "SET", "maxmemory", "0")
        await (await producer.send(make_events(1, first=1)[0]))
        assert await numbers_at(stream.server, "power") == [1]


async def test_unforeseen_failure(
    wire: Server, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in our own code fails the receipts instead of leaving them waiting for ever."""
    async with Stream(stream_name, wire) as stream, Producer(stream) as producer:
        with monkeypatch.context() as patched:
            patched.setattr(Link, "exchange", None)
            with pytest.raises(ProducerError, match="TypeError"):
                await (await producer.send(make_events(1)[0]))
        await (await producer.send(make_events(1)[0]))


@pytest.mark.parametrize(
    "options",
    [
        {"on_full": "drop"},
        {"codec": "json"},
        {"buffer_bytes_max": 0},
        {"block_events_max": -1},
        {"deadline_ms": 0},
    ],
)
async def test_wrong_options(options: dict[str, Any]) -> None:
    """A value that is not allowed is refused by its name before anything is connected."""
    with pytest.raises((ConfigError, CodecError), match=next(iter(options))):
        Producer(Stream("power", "redis://127.0.0.1:1"), **options)


# --- other servers -------------------------------------------------------------------------------


async def test_over_tls_with_a_password(tls_server: OwnServer) -> None:
    """All of it works over TLS and with a user's password."""
    server = tls_server()
    server.command("ACL", "SETUSER", "meter", "on", ">secret", "~*", "+@all")
    url = server.url.replace("rediss://", "rediss://meter:secret@")
    async with Stream("power", url, shards=2) as stream, Producer(stream) as producer:
        await (await producer.send_many(make_events(2_000)))
        shards = await events_of(stream)
        assert sorted(n for shard in shards for n in numbers(e for _, e in shard)) == list(
            range(2_000)
        )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_cluster(name: str, codec: str, clusters: Callable[[str], TestCluster]) -> None:
    """In a cluster the shards lie on all nodes, each event is where its receipt says, and each
    key's events are in order."""
    found = clusters(name)
    stream_name = f"power_{codec}"
    events = make_events(2_400, keys=40)
    async with (
        Stream(stream_name, found.url, shards=8, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        assert {found.node_of(key).port for key in stream.keys} == {n.port for n in found.nodes}
        singly = [await producer.send(event) for event in events[:200]]
        many = await producer.send_many(events[200:1_600])
        table = await producer.send_table(table_of(events[1_600:]))
        ids = [await receipt for receipt in singly] + await many + await table
        shards = await events_of(stream)
        standing = [dict(shard) for shard in shards]
        for event, event_id in zip(events, ids, strict=True):
            assert event_id is not None
            assert standing[partition(event.key, 8)].pop(event_id) == event
        assert standing == [{}] * 8
        for shard in shards:
            for key in {event.key for _, event in shard}:
                mine = numbers(event for _, event in shard if event.key == key)
                assert mine == sorted(mine)
        assert all(found.node_of(key).command("XLEN", key) for key in stream.keys)
