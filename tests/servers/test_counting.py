"""Of many tries that begin at the same time, each is counted on the server before it begins."""

from __future__ import annotations

import pytest

from standpipe import Context, Event, Stream, Worker
from tests.conditions import eventually
from tests.servers.consuming import NEVER_IDLE_MS, hand_out
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import running, send, settled

pytestmark = pytest.mark.servers


async def test_each_try_is_counted_before_it_begins(server: TestServer, stream_name: str) -> None:
    """After a crash, and again when all of the handlers fail: the server's count is the try's."""
    counts: list[tuple[int, int]] = []
    async with Stream(stream_name, server.url) as stream:
        await send(stream, make_events(300), "plain")
        hand_out(server, stream, "dead", 300)
        worker = Worker(stream, "g", idle_ms_min=NEVER_IDLE_MS)

        @worker.each
        async def handle(event: Event, context: Context) -> None:
            entry_id = str(context.event_id).partition("/")[0]
            key = stream.keys[0]
            ((_, name, _, count),) = await stream.server.call(
                "XPENDING", key, "g", entry_id, entry_id, 1, key=key
            )
            assert name == worker.consumer.name.encode()
            counts.append((context.deliveries, count))
            if context.deliveries == 2:
                raise ValueError("once more")

        async with running(worker):
            await eventually(lambda: worker.stats.handled == 300, 30)
            await eventually(lambda: settled(stream))
    assert sorted(counts) == [(2, 2)] * 300 + [(3, 3)] * 300
