"""The ledger's check on real streams: a sound producer passes, and broken ones are caught.

The broken producers are written on redis-py, as a user would write them, each with one mistake
that is made in earnest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from standpipe import Event, Producer, Stream
from standpipe.errors import ConfigError, LedgerUnsoundError
from standpipe.keyspace import partition
from standpipe.testing import Ledger, Report, check, read_logs, send_and_record
from standpipe.wire import Server
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]
pytestmark = pytest.mark.servers
EVENTS = 2_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "sends.log") as found:
        yield found


# --- our producer --------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_a_sound_run(
    codec: str, shards: int, server: TestServer, stream_name: str, ledger: Ledger
) -> None:
    """What our producer acknowledges is there once, unaltered and in order, in any codec."""
    fields = lambda n: {"value": n / 7, "n": n, "state": "on", "ok": n % 2 == 0, "gap": None}  # noqa: E731
    async with (
        Stream(stream_name, server.url, codec=codec, shards=shards) as stream,
        Producer(stream) as producer,
    ):
        await send_and_record(producer, ledger, ledger.events(EVENTS, keys=50, fields=fields))
        single = ledger.stamp(Event("device-0", 1_700_000_000_000, fields(1)))
        with ledger.sending(single):
            await (await producer.send(single))
    report = await check(Stream(stream_name, server.url), ledger)
    report.raise_unless_sound()
    assert (report.acknowledged, report.stored) == (EVENTS + 1, EVENTS + 1)
    assert report.unchecked == 0


async def test_our_producer_through_cuts(own_server: OwnServer, ledger: Ledger) -> None:
    """Lost replies that make a blind retry add twice leave a sound ledger with ours."""
    server = own_server("valkey-9.1")
    async with (
        Proxy(server.port, faults=["lost reply", "half a request"], every=2) as proxy,
        Server(proxy.url) as wire,
        Stream("power", wire, shards=4) as stream,
        Producer(stream, block_events_max=25) as producer,
    ):
        while proxy.done["lost reply"] < 5:
            await send_and_record(producer, ledger, ledger.events(20))
        # The check reads past the proxy.
        report = await check(Stream("power", server.url), ledger)
    report.raise_unless_sound()
    assert report.acknowledged == report.sent == report.stored


async def test_outcomes_per_event(own_server: OwnServer, ledger: Ledger) -> None:
    """When one shard refuses, its events are unknown and those of the others acknowledged."""
    server = own_server("redis-8.2")
    async with Stream("power", server.url, shards=4) as stream:
        server.command("SET", stream.keys[2], "no stream")
        events = list(ledger.events(400, keys=40))
        refused = sum(partition(event.key, 4) == 2 for event in events)
        async with Producer(stream) as producer:
            await send_and_record(producer, ledger, events)
        server.command("UNLINK", stream.keys[2])
        report = await check(stream, ledger)
    report.raise_unless_sound()
    assert 0 < refused < 400
    assert (report.failed, report.acknowledged) == (refused, 400 - refused)
    assert report.unknown_stored == 0


async def test_refused_events_have_failed(own_server: OwnServer, ledger: Ledger) -> None:
    """What is refused before it is handed over is recorded as failed, and the rest goes on."""
    server = own_server("redis-6.2")
    async with (
        Stream("power", server.url) as stream,
        Producer(stream, event_bytes_max=200) as producer,
    ):
        fields = lambda n: {"text": "x" * (300 if n == 150 else 3)}  # noqa: E731
        await send_and_record(producer, ledger, ledger.events(300, fields=fields), together=100)
        report = await check(stream, ledger)
    report.raise_unless_sound()
    assert (report.failed, report.acknowledged) == (100, 200)
    assert "EventTooLargeError: " in ledger.path.read_text()


async def test_given_up_without_a_reply(own_server: OwnServer, ledger: Ledger) -> None:
    """Events given up on because no reply came are unknown, and found where the server added
    them."""
    server = own_server("valkey-9.1")
    async with (
        Proxy(server.port, faults=["late reply"], late_ms=60_000) as proxy,
        Server(proxy.url, reply_ms_max=400) as wire,
        Stream("power", wire) as stream,
        Producer(stream, deadline_ms=100) as producer,
    ):
        await send_and_record(producer, ledger, ledger.events(100))
        proxy.every = 1
        await send_and_record(producer, ledger, ledger.events(50))
        report = await check(Stream("power", server.url), ledger)
    report.raise_unless_sound()
    # On a slow machine a reply of the first hundred may have been too late as well.
    assert report.unknown >= 50
    assert report.acknowledged + report.unknown == 150
    assert report.unknown_stored > 0


async def test_a_spool(own_server: OwnServer, ledger: Ledger, tmp_path: Path) -> None:
    """Events that went to local disk are unknown when their receipts say so, and stored once, in
    order, when the spool is drained."""
    server = own_server("valkey-9.1", appendonly="yes")

    async def drained() -> Report | None:
        report = await check(Stream("power", server.url), ledger)
        return report if report.stored >= 200 else None

    async with (
        Stream("power", server.url) as stream,
        Producer(stream, spool=tmp_path / "spool", deadline_ms=200) as producer,
    ):
        await send_and_record(producer, ledger, ledger.events(100))
        server.kill()
        await send_and_record(producer, ledger, ledger.events(100))
        server.start()
        report = await eventually(drained)
    report.raise_unless_sound()
    # On a slow machine some of the first hundred may have gone to the disk as well.
    assert 100 <= report.unknown == report.unknown_stored < 200
    assert report.stored == 200


# --- broken producers ----------------------------------------------------------------------------


@asynccontextmanager
async def through_cuts(server: TestServer, fault: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client that sees every seventh of its writes fail, and does not retry by itself."""
    async with (
        Proxy(server.port, faults=[fault], every=7, write="XADD") as proxy,
        redis.asyncio.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        yield client
        assert proxy.done[fault] > 3


async def retries_blindly(server: TestServer, name: str, ledger: Ledger) -> None:
    """A lost reply is taken for a write that did not happen."""
    async with through_cuts(server, "lost reply") as client:
        for event in ledger.events(100):
            while True:
                try:
                    await client.xadd(name, event.to_mapping())
                    break
                except redis.ConnectionError:
                    continue
            ledger.record(event, "acknowledged")


async def acknowledges_too_early(server: TestServer, name: str, ledger: Ledger) -> None:
    """An event counts as sent once it is in the client's buffer, which a cut empties."""
    async with through_cuts(server, "half a request") as client:
        buffer: list[Event] = []
        for event in ledger.events(1_000):
            buffer.append(event)
            ledger.record(event, "acknowledged")
            if len(buffer) == 10:
                pipeline = client.pipeline(transaction=False)
                for each in buffer:
                    pipeline.xadd(name, each.to_mapping())
                buffer.clear()
                try:
                    await pipeline.execute()
                except redis.ConnectionError:
                    continue


async def reorders_on_retry(server: TestServer, name: str, ledger: Ledger) -> None:
    """What failed is sent again behind what came after it."""
    async with through_cuts(server, "half a request") as client:
        waiting = deque(ledger.events(100))
        while waiting:
            event = waiting.popleft()
            try:
                await client.xadd(name, event.to_mapping())
                ledger.record(event, "acknowledged")
            except redis.ConnectionError:
                waiting.append(event)


async def drops_in_silence(server: TestServer, name: str, ledger: Ledger) -> None:
    """Every thousandth event falls through."""
    async with redis.asyncio.Redis.from_url(server.url) as client:
        events = list(ledger.events(3_000))
        pipeline = client.pipeline(transaction=False)
        for n, event in enumerate(events, start=1):
            if n % 1_000:
                pipeline.xadd(name, event.to_mapping())
        with ledger.sending(events):
            await pipeline.execute()


async def rounds_values(server: TestServer, name: str, ledger: Ledger) -> None:
    """Values go through a float of 32 bits."""
    async with redis.asyncio.Redis.from_url(server.url) as client:
        for event in ledger.events(50):
            (rounded,) = struct.unpack("f", struct.pack("f", event.fields["value"]))
            with ledger.sending(event):
                await client.xadd(name, {**event.to_mapping(), "value": rounded})


async def makes_no_mistake(server: TestServer, name: str, ledger: Ledger) -> None:
    """A lost reply leaves an unknown outcome, and is not retried."""
    async with through_cuts(server, "lost reply") as client:
        for event in ledger.events(100):
            try:
                with ledger.sending(event):
                    await client.xadd(name, event.to_mapping())
            except redis.ConnectionError:
                continue


@pytest.mark.parametrize(
    ("producer", "fault", "count"),
    [
        (retries_blindly, "duplicates", None),
        (acknowledges_too_early, "lost", None),
        (reorders_on_retry, "out_of_order", None),
        (drops_in_silence, "lost", 3),
        (rounds_values, "altered", 50),
    ],
)
async def test_a_broken_producer_is_caught(
    producer: Callable[..., AsyncIterator[None]],
    fault: str,
    count: int | None,
    server: TestServer,
    stream_name: str,
    ledger: Ledger,
) -> None:
    """Each mistake is found, under its own name and no other."""
    await producer(server, stream_name, ledger)  # type: ignore[misc]
    report = await check(Stream(stream_name, server.url), ledger)
    assert set(report.faults) == {fault}
    if count is not None:
        assert report.faults[fault] == count  # type: ignore[index]
    with pytest.raises(LedgerUnsoundError, match=fault.replace("_", " ")):
        report.raise_unless_sound()


async def test_a_producer_on_redis_py_may_be_sound(
    server: TestServer, stream_name: str, ledger: Ledger
) -> None:
    """The same client through the same cuts passes when it makes no mistake."""
    await makes_no_mistake(server, stream_name, ledger)
    report = await check(Stream(stream_name, server.url), ledger)
    report.raise_unless_sound()
    assert report.unknown > 3
    # The server had executed each of them before the reply was lost.
    assert report.unknown_stored == report.unknown


# --- the check itself ----------------------------------------------------------------------------


async def test_a_server_that_forgot_everything(own_server: OwnServer, ledger: Ledger) -> None:
    """A stream that is gone is a loss of all that was acknowledged, not an error of the check."""
    server = own_server("redis-8.2")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        await send_and_record(producer, ledger, ledger.events(10))
        server.command("FLUSHALL")
        report = await check(stream, ledger)
    assert report.faults == {"lost": 10}


async def test_what_nobody_can_read_is_a_fault(
    server: TestServer, stream_name: str, ledger: Ledger
) -> None:
    """Foreign events are phantoms, and an entry that no codec reads is counted."""
    async with Stream(stream_name, server.url) as stream, Producer(stream) as producer:
        await send_and_record(producer, ledger, ledger.events(10))
        server.command("XADD", stream_name, "*", "c", "rows1", "n", "3", "d", "rubbish")
        server.command("XADD", stream_name, "*", "volts", "230.5")
        report = await check(stream, ledger)
        assert report.faults == {"undecodable": 1, "phantoms": 1}
        assert f"without a number, key None, at {report.examples['phantoms'][0].event_id}" in str(
            report
        )


async def test_several_senders(
    server: TestServer, stream_name: str, ledger: Ledger, tmp_path: Path
) -> None:
    """A stream that several sent to is compared with the ledgers of all of them; one is not
    enough, and naming one twice does not count it twice."""
    with Ledger(tmp_path / "other.log") as other:
        async with Stream(stream_name, server.url) as stream, Producer(stream) as producer:
            for each in (ledger, other, ledger):
                await send_and_record(producer, each, each.events(20))
            same = tmp_path / ".." / tmp_path.name / "sends.log"
            report = await check(stream, ledger, tmp_path / "other.log", str(same))
            assert report.raise_unless_sound().acknowledged == 60
            assert (await check(stream, ledger)).faults == {"phantoms": 20}
            with pytest.raises(ConfigError, match="no ledger"):
                await check(stream)


async def test_a_producer_process_that_was_killed(own_server: OwnServer, tmp_path: Path) -> None:
    """The log of a process killed in mid-send says what was acknowledged and what is unknown, and
    the stream agrees."""
    server = own_server("valkey-9.1")
    log = tmp_path / "sends.log"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.servers.sending_process", server.url, "power", log),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        await eventually(lambda: log.exists() and log.read_bytes().count(b"ack") > 20, 30)
        # The server stands still, so that there is a send without an outcome.
        server.stop()
        await eventually(lambda: _unknown(log) >= 2_000)
    finally:
        process.kill()
        server.cont()
    assert await process.wait() == -signal.SIGKILL
    # What the process had written into the socket may still be added, before the connection ends.
    await eventually(lambda: "cmd=evalsha" not in server.cli("CLIENT", "LIST"))
    async with Stream("power", server.url) as stream:
        report = await check(stream, log)
        report.raise_unless_sound()
        assert report.acknowledged >= 2_000
        assert report.unknown > 0
        # A restarted process goes on in the same log and stream.
        with Ledger(log) as ledger:
            async with Producer(stream) as producer:
                await send_and_record(producer, ledger, ledger.events(100))
        again = await check(stream, log)
    again.raise_unless_sound()
    assert again.acknowledged == report.acknowledged + 100
    assert again.unknown == report.unknown


def _unknown(log: Path) -> int:
    """Events of the log that have no outcome."""
    senders = read_logs(log).senders.values()
    return sum(sender.states.count(0) for sender in senders)
