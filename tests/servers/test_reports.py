"""What was not acknowledged is reported, event by event, whatever ended the producer."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from standpipe import Event, Producer, Stream, sync
from standpipe.errors import (
    ForkedError,
    NotAcknowledgedError,
    ProducerClosedError,
    ServerFullError,
    StandpipeError,
    UnknownOutcomeError,
)
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.entries import make_events, numbers, numbers_at
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]
pytestmark = pytest.mark.servers


class Reports:
    """What a producer reported."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.errors: list[StandpipeError] = []

    def __call__(self, events: list[Event], error: StandpipeError) -> None:
        self.events += events
        self.errors += [error] * len(events)


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_events_of_failed_blocks(codec: str, own_server: OwnServer) -> None:
    """on_failed is given every event that was not added, as it was sent, with the reason."""
    server = own_server("valkey-9.1")
    reports = Reports()
    mixed = [
        Event(
            "m-1", 1_700_000_000_000, {"volts": 230.5, "state": "on", "ok": True, "raw": b"\x00"}
        ),
        Event(None, 1_700_000_000_001, {"volts": -1.25e-9, "state": "ü", "ok": False, "raw": b"1"}),
    ]
    many = [event for n in range(600) for event in mixed[n % 2 : n % 2 + 1]]
    async with (
        Stream("power", server.url, codec=codec, schema={"raw": bytes}) as stream,
        Producer(stream, deadline_ms=200, on_failed=reports) as producer,
    ):
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ServerFullError):
            await (await producer.send_many(many))
        assert reports.events == many
        assert all(isinstance(error, ServerFullError) for error in reports.errors)
        server.command("CONFIG", "SET", "maxmemory", "0")
        await (await producer.send_many(many))
        assert len(reports.events) == producer.stats.failed == len(many)


async def test_callback_that_raises(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises is logged, and the producer goes on."""
    server = own_server("valkey-9.1")

    def broken(events: list[Event], error: StandpipeError) -> None:
        raise KeyError("broken")

    async with (
        Stream("power", server.url) as stream,
        Producer(stream, deadline_ms=100, on_failed=broken) as producer,
    ):
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ServerFullError), caplog.at_level(logging.ERROR):
            await (await producer.send(make_events(1)[0]))
        assert "on_failed raised for 1 events" in caplog.text
        server.command("CONFIG", "SET", "maxmemory", "0")
        await (await producer.send(make_events(1, first=1)[0]))
        assert await numbers_at(stream.server, "power") == [1]


async def test_closed_before_the_acknowledgement(own_server: OwnServer) -> None:
    """Closing reports what is left, and tells what may have arrived from what was never written."""
    server = own_server("valkey-9.1")
    reports = Reports()
    async with Stream("power", server.url) as stream:
        producer = await Producer(stream, on_failed=reports).start()
        server.stop()
        await producer.send(make_events(1)[0])
        await asyncio.sleep(0)  # The writer's turn: the event is on its way.
        await producer.send_many(make_events(9, first=1))
        with pytest.raises(NotAcknowledgedError, match="10 events"):
            await producer.close(deadline_ms=50)
        server.cont()
    assert numbers(reports.events) == list(range(10))
    kinds = [type(error) for error in reports.errors]
    assert kinds == [UnknownOutcomeError] + 9 * [ProducerClosedError]


async def test_closed_amid_the_replies(own_server: OwnServer) -> None:
    """Closing when the replies of a write have come in part does not say of what was added that it
    was not."""
    server = own_server("valkey-9.1")
    reports = Reports()
    async with (
        Proxy(server.port, faults=["late second half"], late_ms=60_000) as proxy,
        Stream("power", proxy.url) as stream,
    ):
        producer = await Producer(stream, block_events_max=5, on_failed=reports).start()
        await (await producer.send(make_events(1)[0]))
        # The second write takes all blocks but the first.
        proxy.every = 2
        server.stop()
        await producer.send_many(make_events(200, first=1))
        server.cont()
        await eventually(lambda: server.command("XLEN", "power") == 41)
        with pytest.raises(NotAcknowledgedError):
            await producer.close(deadline_ms=500)
    assert numbers(reports.events) == list(range(6, 201))
    assert {type(error) for error in reports.errors} == {UnknownOutcomeError}


async def test_cancelled_body(own_server: OwnServer) -> None:
    """When what uses the producer is cancelled, it still waits for the server, and reports what is
    left when that does not answer."""
    server = own_server("valkey-9.1")
    reports = Reports()
    sent = asyncio.Event()

    async def use(stream: Stream) -> None:
        async with Producer(stream, deadline_ms=100, on_failed=reports) as producer:
            await producer.send_many(make_events(100))
            sent.set()
            await asyncio.Event().wait()

    async with Stream("power", server.url) as stream:
        for expected in ([], list(range(100))):
            if expected:
                server.command("CONFIG", "SET", "maxmemory", "1")
            sent.clear()
            using = asyncio.create_task(use(stream))
            await sent.wait()
            using.cancel()
            with pytest.raises(asyncio.CancelledError):
                await using
            assert numbers(reports.events) == expected
        assert await numbers_at(stream.server, "power") == list(range(100))


async def test_scope_that_is_cancelled(own_server: OwnServer) -> None:
    """What is left is reported also when every wait of closing is cancelled, as anyio does it."""
    server = own_server("valkey-9.1")
    reports = Reports()
    async with Stream("power", server.url) as stream:
        with anyio.CancelScope() as scope:
            async with Producer(stream, on_failed=reports) as producer:
                server.stop()
                await producer.send_many(make_events(100))
                scope.cancel()
                await asyncio.Event().wait()
        server.cont()
    assert numbers(reports.events) == list(range(100))


NEVER_CLOSED = """
import asyncio, os, signal, sys
from standpipe import Event, Producer, Stream

def report(events, error):
    print(type(error).__name__, *(event.fields["n"] for event in events), flush=True)

async def main(url, server):
    global kept
    stream = await Stream("power", url).open()
    spool = sys.argv[3] if len(sys.argv) > 3 else None
    producer = await Producer(stream, on_failed=report, spool=spool).start()
    kept = stream, producer
    await (await producer.send(Event("m", 0, {"n": 0})))
    os.kill(server, signal.SIGSTOP)
    for n in range(1, 4):
        await producer.send(Event("m", 0, {"n": n}))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def _end_the_loop(server: TestServer, *more: str) -> list[str]:
    """What a program reports whose event loop ends under its producer."""
    ended = subprocess.run(
        [sys.executable, "-c", NEVER_CLOSED, server.url, str(server.pid), *more],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    server.cont()
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_loop_that_ends(own_server: OwnServer) -> None:
    """A program that never closes its producer hears, when its event loop ends, which events were
    not acknowledged."""
    assert _end_the_loop(own_server("valkey-9.1")) in (
        ["ProducerClosedError", "1", "2", "3"],
        ["UnknownOutcomeError", "1", "2", "3"],
    )


async def test_loop_that_ends_with_a_spool(own_server: OwnServer, tmp_path: Path) -> None:
    """With a spool they are there then, and the next producer sends them, once."""
    server = own_server("valkey-9.1")
    spool = tmp_path / "spool"
    assert _end_the_loop(server, str(spool)) == []
    async with Stream("power", server.url) as stream:
        async with Producer(stream, spool=spool) as producer:
            await eventually(lambda: producer.stats.drained == 3)
        assert await numbers_at(stream.server, "power") == [0, 1, 2, 3]


# --- forks ---------------------------------------------------------------------------------------


def _in_a_fork(check: Callable[[], None]) -> None:
    """Run it in a forked process and fail if it fails there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_synchronous_face_across_a_fork(server: TestServer, stream_name: str) -> None:
    """In a forked process a stream of the parent's is an error, not a wait without end; the parent
    goes on, and a stream made after the fork works."""
    with sync.Stream(stream_name, server.url) as stream:
        stream.send(make_events(1)[0])

        def check() -> None:
            for use in (
                lambda: stream.send(make_events(1)[0]),
                lambda: stream.send_many(make_events(2)),
                lambda: list(stream.read()),
                lambda: stream.__exit__(None, None, None),
            ):
                with pytest.raises(ForkedError, match="before a fork") as caught:
                    use()
                assert "after the fork" in caught.value.hint
            with sync.Stream(stream_name, server.url) as own:
                own.send(make_events(1, first=1)[0])

        _in_a_fork(check)
        stream.send(make_events(1, first=2)[0])
        assert numbers(stream.read()) == [0, 1, 2]


async def test_producer_across_a_fork(server: TestServer, stream_name: str) -> None:
    """So with the asynchronous one: sending, closing and bare commands in the forked process are
    errors that leave the parent's connections alone."""
    async with Stream(stream_name, server.url) as stream, Producer(stream) as producer:
        await (await producer.send(make_events(1)[0]))

        def check() -> None:
            # There is no loop to run in: up to the error none of these waits for anything.
            for step in (
                producer.send(make_events(1)[0]),
                producer.send_many(make_events(2)),
                producer.flush(),
                producer.close(),
                stream.exists(),
            ):
                with pytest.raises(ForkedError):
                    step.send(None)

        _in_a_fork(check)
        receipts = await producer.send_many(make_events(500, first=1))
        await eventually(lambda: receipts.is_done)
        assert await numbers_at(stream.server, stream_name) == list(range(501))
