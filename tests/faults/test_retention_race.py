"""Trimming beside producers, workers that die, and janitors that are killed: nothing is lost."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest

from standpipe import Producer, Stream, Worker
from tests.conditions import eventually
from tests.faults.feeder import Feeder
from tests.faults.processes import Process
from tests.servers.entries import numbers
from tests.servers.fleet import TestServer

pytestmark = [pytest.mark.servers, pytest.mark.faults]
GROUPS = ("a", "b")


class Members:
    """The workers of some groups, of which one dies now and then, and what they have handled."""

    def __init__(self, stream: Stream) -> None:
        self.handled: dict[str, set[int]] = {group: set() for group in GROUPS}
        self.stream = stream
        self.workers: list[tuple[Worker, asyncio.Task[None]]] = []

    def start(self, group: str) -> None:
        worker = Worker(self.stream, group, idle_ms_min=200, deliveries_max=1_000, retain=False)

        @worker.each
        async def handle(event: object) -> None:
            await asyncio.sleep(random.uniform(0, 0.004))
            self.handled[group].update(numbers([event]))  # type: ignore[list-item]

        self.workers.append((worker, asyncio.create_task(worker.run())))

    async def kill_one(self) -> None:
        """As a process that is killed: nothing more reaches the server."""
        worker, task = self.workers.pop(random.randrange(len(self.workers)))

        async def nothing() -> None:
            pass

        worker.consumer.leave = nothing  # type: ignore[method-assign]
        task.cancel()
        await asyncio.wait([task])
        self.start(worker.consumer.group)

    async def stop(self) -> None:
        for worker, _ in self.workers:
            worker.stop()
        await asyncio.gather(*(task for _, task in self.workers))


async def _race(server: TestServer, kills: int) -> None:
    name = f"race_{uuid.uuid4().hex}"
    async with (
        Stream(name, server.url, shards=2, codec="plain", max_len=200) as stream,
        Producer(stream, block_events_max=5) as producer,
    ):
        members = Members(stream)
        for group in GROUPS:
            for key in stream.keys:
                server.command("XGROUP", "CREATE", key, group, 0, "MKSTREAM")
            members.start(group)
            members.start(group)
        janitors = [Process(server.url, name, module="retain_process") for _ in range(2)]
        feeder = Feeder(producer)
        trimmed = 0
        try:
            for _ in range(kills):
                # Whichever works, and so has the lease, is killed in the middle of its work.
                working = await eventually(
                    lambda: next((each for each in janitors if each.numbers("trimmed")), None), 40
                )
                before = working.numbers("trimmed")[-1]
                await eventually(lambda w=working, b=before: w.numbers("trimmed")[-1] > b, 20)
                working.end()
                trimmed += working.numbers("trimmed")[-1]
                janitors.remove(working)
                await members.kill_one()
                janitors.append(Process(server.url, name, module="retain_process"))
                for key in stream.keys:
                    assert server.command("XLEN", key) <= 100
            sent = await feeder.finish()
            for group in GROUPS:
                await eventually(lambda g=group: len(members.handled[g]) == sent, 30)
                assert members.handled[group] == set(range(sent))
        finally:
            for janitor in janitors:
                janitor.end()
            await members.stop()
        assert trimmed > 200 * kills / 4
        for shard, key in enumerate(stream.keys):
            # Without a ring nothing can be lost, and no pending record is left of what has gone.
            assert not server.command("EXISTS", stream.lost_key(shard))
            for group in GROUPS:
                assert server.command("XPENDING", key, group)[0] == 0


async def test_janitors_are_killed(server: TestServer) -> None:
    """While entries are let go as fast as they are acknowledged, janitors are killed in the middle
    and workers die: every group handles every event, and no shard passes its limit."""
    await _race(server, 2)


@pytest.mark.slow
async def test_janitors_are_killed_often(server: TestServer) -> None:
    """The same, 25 times."""
    await _race(server, 25)
