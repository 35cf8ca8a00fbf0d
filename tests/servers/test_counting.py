"""Of many tries that begin at the same time, each is counted on the server before it begins."""

from __future__ import annotations

import asyncio

import pytest

from standpipe import Batch, Context, Event, Stream, Worker
from tests.conditions import eventually
from tests.servers.consuming import NEVER_IDLE_MS, hand_out
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestServer
from tests.servers.working import calls, pending, running, send, settled

pytestmark = pytest.mark.servers


async def counted(stream: Stream, worker: Worker, context: Context) -> int:
    """The server's count of the entry that a handler was called for."""
    entry_id = str(context.event_id).partition("/")[0]
    key = stream.keys[0]
    ((_, name, _, count),) = await stream.server.call(
        "XPENDING", key, "g", entry_id, entry_id, 1, key=key
    )
    assert name == worker.consumer.name.encode()
    return count


async def test_each_try_is_counted_before_it_begins(server: TestServer, stream_name: str) -> None:
    """After a crash, and again when all of the handlers fail: the server's count is the try's."""
    counts: list[tuple[int, int]] = []
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(300), "plain")
        hand_out(server, stream, "dead", 300)
        worker = Worker(stream, "g", idle_ms_min=NEVER_IDLE_MS)

        @worker.each
        async def handle(event: Event, context: Context) -> None:
            counts.append((context.deliveries, await counted(stream, worker, context)))
            if context.deliveries == 2:
                raise ValueError("once more")

        before = calls(server, "xclaim")
        async with running(worker):
            await eventually(lambda: worker.stats.handled == 300, 30)
            await eventually(lambda: settled(stream))
        # Each third try by itself; of the second ones, what is on its way is not sent once more.
        assert calls(server, "xclaim") - before <= 330
    assert sorted(counts) == [(2, 2)] * 300 + [(3, 3)] * 300


@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
async def test_tries_one_after_another_are_counted_together(
    server: TestServer, stream_name: str, ordered: bool
) -> None:
    """What a dead worker has left comes to a batch handler one at a time, each counted before it
    begins; and not with a round trip for each."""
    counts: list[tuple[int, int]] = []
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(500), "plain")
        hand_out(server, stream, "dead", 500)
        worker = Worker(stream, "g", idle_ms_min=NEVER_IDLE_MS, ordered=ordered)

        @worker.batch
        async def handle(batch: Batch, context: Context) -> None:
            assert len(batch) == 1
            counts.append((context.deliveries, await counted(stream, worker, context)))

        before = calls(server, "xclaim")
        async with running(worker):
            await eventually(lambda: worker.stats.handled == 500, 30)
            await eventually(lambda: settled(stream))
        # 100 in each, and some more where a page of what is taken over ended; those by which a
        # lease takes over come on top.
        assert calls(server, "xclaim") - before <= 30
    assert counts == [(2, 2)] * 500


async def test_what_was_counted_and_not_begun_is_given_back_so(
    server: TestServer, stream_name: str
) -> None:
    """A worker that is stopped leaves behind the counts of the tries that have begun, no others."""
    begun: list[int] = []
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(20), "plain")
        hand_out(server, stream, "dead", 20)
        worker = Worker(stream, "g", idle_ms_min=NEVER_IDLE_MS, drain_ms_max=1)

        @worker.batch
        async def handle(batch: Batch) -> None:
            begun.extend(numbers(batch))
            if begun[-1] == 0:
                await eventually(lambda: worker.consumer.in_flight == 20)
            if begun[-1] == 7:
                await asyncio.Event().wait()

        async with running(worker):
            await eventually(lambda: 7 in begun, 20)
            assert [count for _, count in await pending(stream)].count(2) > 1
        assert begun == list(range(8))
        assert [count for _, count in await pending(stream)] == [2, *[1] * 12]


async def test_the_last_tries_are_counted_one_by_one(server: TestServer, stream_name: str) -> None:
    """Where the next try is the last, or the last but one, only that which begins is counted."""
    begun: list[int] = []
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(20), "plain")
        hand_out(server, stream, "dead", 20)
        worker = Worker(stream, "g", idle_ms_min=NEVER_IDLE_MS, drain_ms_max=1, deliveries_max=3)

        @worker.batch
        async def handle(batch: Batch) -> None:
            begun.extend(numbers(batch))
            if begun[-1] == 0:
                await eventually(lambda: worker.consumer.in_flight == 20)
            else:
                await asyncio.Event().wait()

        async with running(worker):
            await eventually(lambda: 1 in begun, 20)
            assert [count for _, count in await pending(stream)].count(2) == 1
