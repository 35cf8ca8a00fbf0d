"""Ordered mode is for all workers of a group or for none: a worker that does not fit says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Batch, Event, Stream, Worker
from standpipe.consumer.leases import lease_keys
from standpipe.errors import GroupInUseError
from tests.conditions import eventually
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.working import calls, pending, running, send

pytestmark = pytest.mark.servers
OVERLOOKS = ("redis-6.2", "redis-7.0")
"""Servers that do not say that a consumer waits for something new."""


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url, shards=2) as found:
        yield found


def make_worker(stream: Stream, *, ordered: bool, **options: int) -> Worker:
    worker = Worker(stream, "g", ordered=ordered, **options)

    @worker.batch
    async def handle(batch: Batch) -> None: ...

    return worker


async def works(worker: Worker, stream: Stream, first: int = 0) -> None:
    """Wait until a worker has handled something."""
    await send(stream, make_events(20, first=first))
    await eventually(lambda: worker.stats.handled > 0)


async def refused(worker: Worker) -> GroupInUseError:
    with pytest.raises(GroupInUseError) as caught:
        await asyncio.wait_for(worker.run(), 10)
    assert "--ordered" in caught.value.hint
    return caught.value


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered first", "ordered last"])
async def test_another_mode_is_refused(stream: Stream, server: TestServer, ordered: bool) -> None:
    """Who comes into a group at work in the other mode gets an error, and the group goes on."""
    if not ordered and server.name in OVERLOOKS:
        await _one_of_them_ends(stream)
        return
    there = make_worker(stream, ordered=ordered)
    async with running(there):
        await works(there, stream)
        await refused(make_worker(stream, ordered=not ordered))
        another = make_worker(stream, ordered=ordered)
        async with running(another):
            await eventually(lambda: another.consumer.stats.groups_created == 0)
            before = there.stats.handled + another.stats.handled
            await send(stream, make_events(20, first=20))
            await eventually(lambda: there.stats.handled + another.stats.handled >= before + 20)
    # When they have left, the other mode may come.
    after = make_worker(stream, ordered=not ordered)
    async with running(after):
        await works(after, stream, 40)


async def _one_of_them_ends(stream: Stream) -> None:
    first, last = make_worker(stream, ordered=False), make_worker(stream, ordered=True)
    running_them = [asyncio.create_task(first.run())]
    await works(first, stream)
    running_them.append(asyncio.create_task(last.run()))
    done, _ = await asyncio.wait(running_them, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for worker in (first, last):
        worker.stop()
    results = await asyncio.gather(*running_them, return_exceptions=True)
    assert [type(each) for each in results].count(GroupInUseError) == len(done) == 1


async def test_who_has_left_is_not_at_work(
    own_server: Callable[..., TestServer], stream_name: str
) -> None:
    """What workers of the other mode have given back does not keep ordered ones away."""
    async with Stream(stream_name, own_server("valkey-9.1").url, shards=2) as stream:
        await _ordered_after_another(stream)


async def _ordered_after_another(stream: Stream) -> None:
    go = asyncio.Event()
    leaving = Worker(stream, "g", drain_ms_max=1)

    @leaving.each
    async def hang(event: Event) -> None:
        await go.wait()

    await send(stream, make_events(20))
    async with running(leaving):
        await eventually(lambda: leaving.consumer.in_flight == 20)
    assert await pending(stream)
    after = make_worker(stream, ordered=True)
    async with running(after):
        began = time.monotonic()
        await eventually(lambda: after.stats.handled == 20)
        assert time.monotonic() - began < 8


async def test_a_worker_at_work_notices(stream: Stream, server: TestServer) -> None:
    """If owners of ordered mode come all the same, a worker that is none ends with an error."""
    worker = make_worker(stream, ordered=False)
    running_it = asyncio.create_task(worker.run())
    await works(worker, stream)
    server.command("SET", lease_keys(stream.keys[1], "g")[1], 1, "PX", 60_000)
    with pytest.raises(GroupInUseError):
        await asyncio.wait_for(running_it, 10)
    assert await pending(stream) == []


async def test_in_a_cluster(cluster: Callable[..., TestCluster]) -> None:
    """The same over the nodes of a cluster."""
    async with Stream("s", cluster("valkey-9.1").url, shards=6) as stream:
        for ordered in (True, False):
            there = make_worker(stream, ordered=ordered)
            async with running(there):
                await works(there, stream)
                await refused(make_worker(stream, ordered=not ordered))


async def test_looking_costs_one_command(
    own_server: Callable[..., TestServer], stream_name: str
) -> None:
    """However many shards a server has, a worker asks one question a second whether something was
    requeued and whether ordered mode is at work."""
    server = own_server("valkey-9.1")
    async with Stream(stream_name, server.url, shards=32) as stream:
        worker = make_worker(stream, ordered=False)
        async with running(worker):
            await works(worker, stream)
            before, began = calls(server, "exists"), time.monotonic()
            await eventually(lambda: calls(server, "exists") >= before + 2)
            assert calls(server, "exists") - before <= (time.monotonic() - began) / 0.8 + 2
