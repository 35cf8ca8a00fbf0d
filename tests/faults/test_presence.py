"""Workers say what they do while they live; and what is advised is what would help them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from standpipe import Producer, Stream, Worker, __version__
from standpipe.advice import Judgement, judge
from standpipe.clock import now_ms
from standpipe.errors import StandpipeError
from standpipe.observe import StreamStatus, WorkerStatus, stream_status
from standpipe.worker import presence
from tests.conditions import eventually
from tests.faults import reporting_process
from tests.faults.processes import Process
from tests.faults.proxy import Proxy
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.working import calls, running, send, settled

pytestmark = [pytest.mark.servers, pytest.mark.faults]
OwnServer = Callable[..., TestServer]
NEWEST = "valkey-9.1"
TTL_S = reporting_process.REPORT_TTL_MS / 1000


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """``start(stream, handler, **options)``: a worker process in the group ``g``."""
    processes: list[Process] = []

    def begin(stream: Stream, handler: str, *, url: str = "", **options: int) -> Process:
        given = [f"{name}={value}" for name, value in options.items()]
        arguments = (url or stream.server.address.url, stream.name, handler, *given)
        processes.append(Process(*arguments, module="reporting_process"))
        return processes[-1]

    yield begin
    for process in processes:
        process.end()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process report as often as those of their own."""
    monkeypatch.setattr(presence, "REPORT_MS", 100)
    monkeypatch.setattr(presence, "REPORT_TTL_MS", 60_000)


async def workers_of(stream: Stream) -> dict[int | None, WorkerStatus]:
    """The workers that report, by pid."""
    if not await stream.exists():
        return {}
    found = (await stream_status(stream)).workers
    assert found is not None
    return {each.report.pid: each for each in found}


@contextlib.asynccontextmanager
async def feeding(stream: Stream, each_second: int) -> AsyncIterator[None]:
    """So many plain entries come in each second."""

    async def feed() -> None:
        count = max(1, each_second // 10)
        while True:
            await producer.send_many(make_events(count, keys=20))
            await asyncio.sleep(0.1)

    async with Producer(stream, codec="plain") as producer:
        feeder = asyncio.create_task(feed())
        try:
            yield
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)


async def advised(stream: Stream, kind: str) -> Judgement:
    """Watch a stream until this is advised, by readings of its last two seconds."""
    readings: list[StreamStatus] = []
    last: Judgement | None = None

    async def is_advised() -> bool:
        nonlocal last
        if await stream.exists():
            readings.append(await stream_status(stream))
            while readings[-1].read_at - readings[0].read_at > 2_500:
                del readings[0]
            is_trend = readings[-1].read_at - readings[0].read_at > 500
            for last in judge(readings):
                return is_trend and kind in [advice.kind for advice in last.advice]
        return False

    try:
        await eventually(is_advised, 30, what=kind)
    except AssertionError as error:
        raise AssertionError(f"{last}; {readings[-1].workers}") from error
    assert last is not None
    return last


# --- being there and being gone ------------------------------------------------------------------


async def test_killed_ones_are_gone_by_themselves(
    own_server: OwnServer, start: Callable[..., Process]
) -> None:
    """A worker shows soon after its start, with what it is; killed, it is gone after the TTL, also
    where others go on; and with the last of them its keys."""
    server = own_server(NEWEST)
    async with Stream("power", server.url) as stream:
        await _are_gone(server, stream, start)


async def _are_gone(server: TestServer, stream: Stream, start: Callable[..., Process]) -> None:
    began = now_ms()
    await send(stream, make_events(50))
    first, second = start(stream, "quick"), start(stream, "quick")
    pids = {first.process.pid, second.process.pid}

    async def have_measured() -> bool:
        found = await workers_of(stream)
        return set(found) == pids and all(each.report.window_ms for each in found.values())

    await eventually(have_measured, 20)
    report = (await workers_of(stream))[first.process.pid].report
    assert (report.host, report.version) == (socket.gethostname(), __version__)
    assert report.since is not None and began - 100 <= report.since <= now_ms() + 100
    assert (report.handler, report.is_batch, report.is_ordered) == ("quick", False, False)
    assert (report.concurrency, report.processors) == (64, len(os.sched_getaffinity(0)))
    assert report.waiting_share is not None and report.waiting_share > 0.5
    handled = [each.report.handled for each in (await workers_of(stream)).values()]
    assert sum(count or 0 for count in handled) == 50

    first.signal(signal.SIGKILL)
    await eventually(lambda: _are(stream, {second.process.pid}), TTL_S + 10)
    # What the killed one said is not kept for as long as others live.
    await eventually(lambda: server.command("HLEN", stream.report_keys("g")[0]) == 1)
    second.signal(signal.SIGSTOP)
    await eventually(lambda: _are(stream, set()), TTL_S + 10)
    await eventually(lambda: not server.command("EXISTS", *stream.report_keys("g")))
    second.signal(signal.SIGCONT)
    await eventually(lambda: _are(stream, {second.process.pid}), 20)


async def _are(stream: Stream, pids: set[int]) -> bool:
    return set(await workers_of(stream)) == pids


async def test_one_that_ends_is_gone_at_once(
    server: TestServer, stream: Stream, often: None
) -> None:
    """A worker that stops takes its report along; one that an error ends does as well."""
    await send(stream, make_events(5))
    worker, other = Worker(stream, "g"), Worker(stream, "g")
    worker.each(lambda event: None)
    other.each(lambda event: None)
    async with running(other):
        async with running(worker):
            await eventually(lambda: _names(stream, {worker, other}))
        assert await _names(stream, {other})
        cancelled = Worker(stream, "g")
        cancelled.each(lambda event: None)
        task = asyncio.create_task(cancelled.run())
        await eventually(lambda: _names(stream, {cancelled, other}))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await _names(stream, {other})
    assert server.command("EXISTS", *stream.report_keys("g")) == 0


async def _names(stream: Stream, workers: set[Worker]) -> bool:
    found = (await stream_status(stream)).workers
    return {each.name for each in found or []} == {each.consumer.name for each in workers}


async def test_in_a_cluster(cluster: Callable[..., TestCluster], often: None) -> None:
    """In a cluster one place has the reports of all workers, with the shards that each owns."""
    found = cluster(NEWEST)
    async with Stream("power", found.url, shards=6) as stream:
        await send(stream, make_events(60, keys=20))
        pair = [Worker(stream, "g", ordered=True, lease_ms=2_000) for _ in range(2)]
        for each in pair:
            each.each(lambda event: None)
        async with running(*pair):

            async def share_all() -> bool:
                seen = (await stream_status(stream)).workers or []
                owned = [shard for each in seen for shard in each.report.shards or []]
                return len(seen) == 2 and sorted(owned) == list(range(6))

            await eventually(share_all, 20)


# --- what it must not do -------------------------------------------------------------------------


def _refusals(server: TestServer) -> int:
    """How often a server has refused a user something."""
    rows = server.command("ACL", "LOG")
    return sum(int(row[row.index("count") + 1]) for row in rows)


async def test_reports_that_may_not_be_written(
    own_server: OwnServer, server_name: str, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that may not report works on, says so once, and again when it may; whoever may not
    read the reports sees all the rest."""
    server = own_server(server_name)
    rules = ("on", ">pw", "+@all", "~power", "~{power}:definition", "~{power}:requeued:*")
    server.command("ACL", "SETUSER", "narrow", *rules, "~{power}:dead", "~{power}:trimmed")
    caplog.set_level(logging.INFO, "standpipe.worker")
    async with Stream("power", f"redis://narrow:pw@127.0.0.1:{server.port}") as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        async with running(worker):
            for n in range(20):
                server.command("XADD", "power", "*", "n", n)
                await eventually(lambda n=n: worker.stats.handled == n + 1)
            # It goes on trying.
            await eventually(lambda: _refusals(server) >= 5)
            status = await stream_status(stream)
            assert status.workers is None and status.shards[0].length == 20
            assert judge([status])[0].workers is None
            assert _said(caplog, "cannot be reported") == 1
            server.command("ACL", "SETUSER", "narrow", "~{power}:workers*")
            await eventually(lambda: _said(caplog, "is reported again") == 1)
            assert [each.name for each in (await stream_status(stream)).workers or []] == [
                worker.consumer.name
            ]
    assert _said(caplog, "cannot be reported") == 1


async def test_a_full_server(
    own_server: OwnServer, server_name: str, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A server without memory takes no reports; the work goes on, and each trouble is said once."""
    server = own_server(server_name)
    caplog.set_level(logging.INFO, "standpipe.worker")
    async with Stream("power", server.url) as stream:
        await send(stream, make_events(2_000), codec="plain")
        worker = Worker(stream, "g", in_flight_events_max=100)

        @worker.each
        async def slow(event: object) -> None:
            await asyncio.sleep(0.02)

        async with running(worker):
            await eventually(lambda: worker.stats.handled > 10)
            server.command("CONFIG", "SET", "maxmemory", 1)
            await eventually(lambda: _said(caplog, "cannot be reported") == 1)
            before = worker.stats.handled
            await eventually(lambda: worker.stats.handled > before + 200)
            server.command("CONFIG", "SET", "maxmemory", 0)
            await eventually(lambda: _said(caplog, "is reported again") == 1)
            await eventually(lambda: settled(stream), 20)
    assert _said(caplog, "cannot be reported") == 1
    assert worker.stats.handled == 2_000


async def test_a_server_that_is_away(
    own_server: OwnServer, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What the consumer says of its server is not said once more for the reports."""
    server = own_server(NEWEST, appendonly="yes")
    caplog.set_level(logging.DEBUG, "standpipe.worker")
    async with Stream("power", server.url) as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        async with running(worker):
            await eventually(lambda: workers_of(stream))
            server.kill()
            await eventually(lambda: _said(caplog, "cannot be reported"), 30)
            await asyncio.to_thread(server.start)
            await eventually(lambda: workers_of(stream), 30, ignore=(StandpipeError,))
    levels = {each.levelno for each in caplog.records if "reported" in each.getMessage()}
    assert levels == {logging.DEBUG}


def _said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


async def test_one_call_for_each_report(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report is one script call, and there is one for each period and none besides."""
    monkeypatch.setattr(presence, "REPORT_MS", 300)
    server = own_server(NEWEST)
    async with Stream("power", server.url) as stream:
        server.command("XADD", "power", "*", "n", 1)
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        async with running(worker):
            await eventually(lambda: calls(server, "hset") == 1)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await eventually(lambda: calls(server, "hset") == 8, 20)
            # With jitter a period is 0.8 to 1 of what it is called, and up to half a look longer.
            assert loop.time() - began > 7 * 0.3 * 0.8 - 0.05


async def test_a_report_that_has_ended(server: TestServer, stream: Stream) -> None:
    """What is not believed any more is not shown, though it still stands there."""
    await send(stream, make_events(1))
    server.command("XGROUP", "CREATE", stream.name, "g", "0")
    reports, until = stream.report_keys("g")
    server.command("HSET", reports, "ended", '{"pid":7}', "untimed", '{"pid":8}')
    server.command("ZADD", until, now_ms() - 1_000, "ended")
    assert await workers_of(stream) == {}
    server.command("ZADD", until, now_ms() + 60_000, "ended")
    assert set(await workers_of(stream)) == {7}


async def test_who_computes_does_not_wait(stream: Stream, often: None) -> None:
    """A process that is kept busy in pieces, too short to make a look late, does not wait."""
    await send(stream, make_events(1))
    worker = Worker(stream, "g")
    worker.each(lambda event: None)

    async def keep_busy() -> None:
        while True:
            ends = time.thread_time() + 0.004
            while time.thread_time() < ends:
                pass
            await asyncio.sleep(0)

    async with running(worker):
        task = asyncio.create_task(keep_busy())
        for _ in range(5):
            await eventually(lambda: _has_measured(stream))
            (found,) = (await workers_of(stream)).values()
            report = found.report
            assert report.cpu_share is not None and report.waiting_share is not None
            assert report.waiting_share <= max(0.0, 1 - report.cpu_share) + 0.01
        task.cancel()


async def _has_measured(stream: Stream) -> bool:
    found = await workers_of(stream)
    return bool(found) and all(each.report.window_ms for each in found.values())


async def test_an_unreadable_report(server: TestServer, stream: Stream, often: None) -> None:
    """What another version may have written does not keep the others from being shown."""
    await send(stream, make_events(1))
    worker = Worker(stream, "g")
    worker.each(lambda event: None)
    async with running(worker):
        await eventually(lambda: _names(stream, {worker}))
        reports, until = stream.report_keys("g")
        server.command("HSET", reports, "odd", '{"pid":"seven"}', "newer", '{"pid":7,"more":[1]}')
        server.command("ZADD", until, now_ms() + 60_000, "odd", now_ms() + 60_000, "newer")
        found = {each.name: each.report for each in (await stream_status(stream)).workers or []}
        assert set(found) == {"odd", "newer", worker.consumer.name}
        assert found["odd"].pid is None and found["newer"].pid == 7


# --- what would help -----------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["compute", "compute_async"])
async def test_a_handler_that_computes_wants_more_processes(
    own_server: OwnServer, start: Callable[..., Process], handler: str
) -> None:
    """A worker that uses a processor up, by threads or in its loop, is told of more workers."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        start(stream, handler)
        async with feeding(stream, 2_000):
            judged = await advised(stream, "more_workers")
        (found,) = (await workers_of(stream)).values()
    assert judged.trend.direction == "growing" and judged.workers == 1
    assert found.report.handlers is not None and found.report.handlers > 0.5
    assert judged.trend.added_per_s is not None and judged.trend.added_per_s > 500


async def test_a_handler_that_waits_wants_more_at_a_time(
    own_server: OwnServer, start: Callable[..., Process]
) -> None:
    """A worker whose handlers all wait is told to have more of them, and is told right: with these
    the backlog shrinks."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        slow = start(stream, "wait", concurrency=8)
        async with feeding(stream, 200):
            judged = await advised(stream, "more_concurrency")
            assert judged.trend.direction == "growing"
            slow.signal(signal.SIGTERM)
            start(stream, "wait", concurrency=400)
            await advised(stream, "keeps_up")


async def test_a_handler_that_blocks(own_server: OwnServer, start: Callable[..., Process]) -> None:
    """An async handler that sleeps in the event loop is named for what it does."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        start(stream, "block")
        async with feeding(stream, 100):
            await advised(stream, "handler_blocks")
        (found,) = (await workers_of(stream)).values()
    assert found.report.handlers is not None and found.report.handlers > 0.5


async def test_a_slow_line_wants_no_more_workers(
    own_server: OwnServer, start: Callable[..., Process]
) -> None:
    """A worker whose reads take long is not told of more workers, though it falls behind."""
    server = own_server(NEWEST)
    slow = Proxy(server.port, faults=["late reply"], every=1, late_ms=500, write="XREADGROUP")
    async with slow as line, Stream("power", server.url) as stream:
        start(stream, "quick", url=line.url)
        async with feeding(stream, 2_000):
            judged = await advised(stream, "round_trips")
    assert judged.trend.direction == "growing"
    assert "more_workers" not in [advice.kind for advice in judged.advice]


@pytest.mark.parametrize("handler", ["wait", "compute_async"])
async def test_as_many_ordered_workers_as_shards(
    own_server: OwnServer, start: Callable[..., Process], handler: str
) -> None:
    """Where each shard has its worker, a further one is not what is advised."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        start(stream, handler, ordered=1)
        async with feeding(stream, 1_000):
            await advised(stream, "more_shards")
        (found,) = (await workers_of(stream)).values()
    assert found.report.handlers is not None and found.report.handlers > 0.5


async def test_idle_workers_could_be_fewer(
    own_server: OwnServer, start: Callable[..., Process]
) -> None:
    """Of workers with nothing to do fewer are advised."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        for _ in range(2):
            start(stream, "quick")
        judged = await advised(stream, "fewer_workers")
    assert judged.workers == 2 and judged.trend.behind_ms == 0


async def test_on_the_oldest_server(own_server: OwnServer, start: Callable[..., Process]) -> None:
    """Where the server does not know the lag (Redis 6.2) the trend is told all the same."""
    async with Stream("power", own_server("redis-6.2").url) as stream:
        start(stream, "wait", concurrency=1, in_flight_events_max=10)
        async with feeding(stream, 200):
            judged = await advised(stream, "more_concurrency")
    assert judged.trend.backlog is None and judged.trend.direction == "growing"


async def test_a_handler_that_fails(own_server: OwnServer, start: Callable[..., Process]) -> None:
    """Failing calls are said, and no more workers for them."""
    async with Stream("power", own_server(NEWEST).url) as stream:
        start(stream, "fail")
        async with feeding(stream, 200):
            judged = await advised(stream, "failing")
    assert "more_workers" not in [advice.kind for advice in judged.advice]
