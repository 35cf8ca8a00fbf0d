"""What a network does to packets costs a producer and a worker time, and never an event."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from standpipe import Event, Producer, Receipt, Stream, Worker
from standpipe.errors import ServerUnavailableError, StandpipeError, UnknownOutcomeError
from standpipe.limits import CONNECT_MS_MAX, RETRY_MS_MAX
from standpipe.wire import Server, pack
from tests.conditions import eventually, eventually_sync
from tests.faults.feeder import Feeder
from tests.faults.network import PREFIX, Network, require_network
from tests.servers.entries import make_events, numbers_at
from tests.servers.fleet import TestServer
from tests.servers.working import running, send, settled

pytestmark = [pytest.mark.faults, pytest.mark.servers]
ROOT = Path(__file__).parents[2]
NAME = "valkey-9.1"
SLACK_S = 10
"""What a busy machine may add to a time that is asserted."""
BACK_S = (CONNECT_MS_MAX + RETRY_MS_MAX) / 1000
"""How long after its healing a network is in use again, at most: a connection attempt whose packets
were all lost has to end, and a backoff after it."""


@pytest.fixture
def network() -> Iterator[Network]:
    require_network()
    with Network() as found:
        yield found


@pytest.fixture
def far(network: Network, tmp_path: Path) -> Iterator[TestServer]:
    """A server behind the network, with a socket file that leads to it past the network."""
    # The path of a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp())
    yield network.server(NAME, tmp_path / "far", unixsocket=str(folder / "s"))
    shutil.rmtree(folder)


@pytest.fixture
async def direct(far: TestServer) -> AsyncIterator[Stream]:
    """The stream, past the network."""
    async with Stream("power", f"unix://{far.config['unixsocket']}") as stream:
        yield stream


# --- the producer --------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_random_loss(codec: str, network: Network, far: TestServer, direct: Stream) -> None:
    """With every twentieth packet lost in each direction, everything is acknowledged, and in the
    stream once and in order."""
    async with (
        Stream("power", far.url, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        network.lose(5)
        feeder = Feeder(producer)
        await feeder.until(3_000, 60)
        assert network.hits >= 5
        await feeder.finish()
        await feeder.require_all_once(direct)
        assert producer.stats.failed == producer.stats.forgotten == 0


@pytest.mark.parametrize(
    "hole_s",
    [
        1.5,
        pytest.param(4, marks=pytest.mark.slow),
        pytest.param(9, marks=pytest.mark.slow),
        pytest.param(20, marks=pytest.mark.slow),
    ],
)
async def test_black_hole(hole_s: float, network: Network, far: TestServer, direct: Stream) -> None:
    """A network that swallows everything for longer than replies are waited for, and heals: nothing
    is lost or doubled, and events pass again within the time that an attempt to connect has."""
    async with (
        Server(far.url, reply_ms_max=500) as wire,
        Stream("power", wire) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer)
        await feeder.until(200)
        network.swallow()
        started = time.monotonic()
        await eventually(lambda: producer.stats.retries >= 1, what="the producer notices")
        assert 0.3 < time.monotonic() - started < 0.5 + SLACK_S
        await eventually(
            lambda: time.monotonic() - started > hole_s, hole_s + SLACK_S, what="it lasts"
        )
        assert network.hits
        network.heal()
        healed = time.monotonic()
        await feeder.until(1, BACK_S + SLACK_S)
        print(f"{hole_s} s: events pass {time.monotonic() - healed:.1f} s after the healing")
        await feeder.until(200)
        await feeder.finish()
        await feeder.require_all_once(direct)
        assert producer.stats.failed == producer.stats.forgotten == 0


async def test_black_hole_beyond_the_deadline(
    network: Network, far: TestServer, direct: Stream
) -> None:
    """What cannot be sent in time fails soon after the deadline, with an error that says to try
    again, or that it may have been added; it is in the stream once or not at all, and the producer
    goes on afterwards."""
    deadline_s = 1.5
    async with (
        Server(far.url, reply_ms_max=500) as wire,
        Stream("power", wire, codec="rows") as stream,
        Producer(stream, deadline_ms=int(deadline_s * 1000), block_events_max=10) as producer,
    ):
        await producer.send_many(make_events(50))
        await producer.flush()
        network.swallow()
        lost = [await producer.send(event) for event in make_events(50, first=50)]
        started = time.monotonic()
        never = set()
        for number, receipt in enumerate(lost, 50):
            with pytest.raises(StandpipeError) as caught:
                await receipt
            assert caught.value.hint
            if not isinstance(caught.value, UnknownOutcomeError):
                assert caught.value.retryable
                never.add(number)
        took = time.monotonic() - started
        print(f"given up {took - deadline_s:.1f} s after the deadline")
        assert deadline_s - 0.5 < took < deadline_s + BACK_S + SLACK_S
        network.heal()
        # The attempt to connect that is under way may still fail, after the deadline of this one.
        await eventually(lambda: _sent(producer, make_events(1, first=100)[0]), ignore=_GIVEN_UP)
        await (await producer.send_many(make_events(50, first=200)))
        found = await numbers_at(direct.server, "power")
        assert found == sorted(set(found))
        assert set(range(50)) | {100} | set(range(200, 250)) <= set(found)
        assert set(found) <= (set(range(101)) | set(range(200, 250))) - never


_GIVEN_UP = (StandpipeError,)


async def _sent(producer: Producer, event: Event) -> bool:
    receipt: Receipt = await producer.send(event)
    await receipt
    return True


@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_resets(codec: str, network: Network, far: TestServer, direct: Stream) -> None:
    """Connections that are reset over and over while events are sent cost a try each, no event."""
    async with (
        Stream("power", far.url, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        feeder = Feeder(producer)
        slowest = 0.0
        for _ in range(15):
            await feeder.until(40)
            network.reset()
            before = producer.stats.retries
            await eventually(lambda: network.hits, what="a packet is answered by a reset")
            await eventually(lambda before=before: producer.stats.retries > before)
            network.heal()
            healed = time.monotonic()
            await feeder.until(1)
            slowest = max(slowest, time.monotonic() - healed)
        print(f"events pass at most {slowest * 1000:.0f} ms after the healing")
        await feeder.finish()
        await feeder.require_all_once(direct)
        assert producer.stats.retries >= 15
        assert producer.stats.failed == producer.stats.forgotten == 0


async def test_slow_line(network: Network, far: TestServer, direct: Stream) -> None:
    """What takes longer to write than a reply may take gets through: as long as replies come, a
    write is not given up and begun again."""
    chance = random.Random(5)
    events = [
        Event("meter", 1_700_000_000_000 + n, {"n": n, "noise": chance.randbytes(20_000)})
        for n in range(40)
    ]
    async with (
        Server(far.url, reply_ms_max=2_000) as wire,
        Stream("power", wire) as stream,
        Producer(stream, block_bytes_max=50_000) as producer,
    ):
        network.slow(200)
        started = time.monotonic()
        await asyncio.wait_for(await producer.send_many(events), 90)
        print(f"800 kB in {time.monotonic() - started:.1f} s, {producer.stats.retries} retries")
        assert time.monotonic() - started > 2
        assert network.hits
        assert await numbers_at(direct.server, "power") == list(range(40))


@pytest.fixture
def short_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead connection is found out after 3 s, not 45."""
    monkeypatch.setattr("standpipe.wire.address.KEEPALIVE_IDLE_S", 1)
    monkeypatch.setattr("standpipe.wire.address.KEEPALIVE_INTERVAL_S", 1)
    monkeypatch.setattr("standpipe.wire.address.KEEPALIVE_PROBES_MAX", 2)


@pytest.mark.parametrize("fault", ["forgotten", "reset"])
async def test_idle_producer(
    fault: str, short_keepalive: None, network: Network, far: TestServer, direct: Stream
) -> None:
    """A producer with nothing to send finds out by itself that its connection leads nowhere, or
    has been reset, so that the next event goes out over a new one at once."""
    async with (
        # It looks for changed limits as well: that look has an end of its own.
        Server(far.url, reply_ms_max=2_000) as wire,
        Stream("power", wire) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send(make_events(1)[0]))
        before = set(network.ports())
        if fault == "forgotten":
            network.forget()
        else:
            network.reset()
        started = time.monotonic()
        await eventually(
            lambda: before.isdisjoint(network.ports()), 20, what="the connections are given up"
        )
        print(f"{fault}: noticed after {time.monotonic() - started:.1f} s")
        # The kernel knows; the event loop looks at its sockets at each turn.
        for _ in range(10):
            await asyncio.sleep(0)
        network.heal()
        await (await producer.send(make_events(1, first=1)[0]))
        assert producer.stats.retries == 0
        assert await numbers_at(direct.server, "power") == [0, 1]


async def test_connection_that_dies_under_a_reply(
    short_keepalive: None, network: Network, far: TestServer
) -> None:
    """A connection that the kernel gives up while a reply is waited for is an error; it is not
    taken for a reply of nothing."""
    async with Server(far.url) as wire:
        link = await wire.link("k")
        read = pack("XREAD", "BLOCK", 0, "STREAMS", "k", "$")
        reading = asyncio.create_task(link.exchange((read,), 1, reply_ms_max=60_000))
        await eventually(lambda: "cmd=xread" in _clients(far))
        await eventually(network.is_quiet)
        network.swallow()
        with pytest.raises(ServerUnavailableError, match="stopped answering"):
            await asyncio.wait_for(reading, 30)
        assert not link.is_open


# --- the worker ----------------------------------------------------------------------------------


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> float:
    """A blocked read may take 1.5 s in all, not 12."""
    monkeypatch.setattr("standpipe.consumer.lane.READ_BLOCK_MS", 500)
    return 1.5


@pytest.mark.parametrize("fault", ["black hole", "forgotten"])
async def test_worker(
    fault: str,
    network: Network,
    far: TestServer,
    direct: Stream,
    short_reads: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker whose blocked read will never be answered notices within the read's deadline, and
    gets what the server has handed to the dead connection too, without waiting to take it over."""
    handled: set[int] = set()
    async with Server(far.url, reply_ms_max=1000) as wire, Stream("power", wire) as stream:
        worker = Worker(stream, "g")

        @worker.each
        async def handle(event: Event) -> None:
            handled.add(event.fields["n"])

        async with running(worker):
            await send(direct, make_events(50))
            await eventually(lambda: len(handled) == 50)
            await eventually(lambda: "cmd=xreadgroup" in _clients(far))
            if fault == "forgotten":
                network.forget()
            else:
                network.swallow()
            started = time.monotonic()
            # The server answers the read that is blocked with the first of these: to nobody.
            for first in range(50, 100, 10):
                await send(direct, make_events(10, first=first))
            await eventually(
                lambda: re.search("no reply within|no connection within", caplog.text),
                short_reads + BACK_S + SLACK_S,
                what="the worker notices",
            )
            print(f"{fault}: noticed after {time.monotonic() - started:.1f} s")
            assert network.hits
            if fault == "black hole":
                network.heal()
                started = time.monotonic()
            await eventually(lambda: len(handled) == 100, BACK_S + SLACK_S)
            print(f"{fault}: all handled {time.monotonic() - started:.1f} s later")
            await eventually(lambda: settled(direct))
    assert handled == set(range(100))


def _clients(server: TestServer) -> str:
    return server.cli("CLIENT", "LIST")


# --- the network itself --------------------------------------------------------------------------

MAKER = """
import pathlib, sys, time
from tests.faults.network import Network
with Network() as network:
    server = network.server("valkey-9.1", pathlib.Path(sys.argv[1]))
    print(server.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    """A network goes with the process that made it, and what a killed one could not remove goes
    before the next is made."""
    require_network()
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(tmp_path / "server")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert maker.stdout is not None
    server = int(maker.stdout.readline())
    mark = f"{PREFIX}{maker.pid}"
    assert len(_remains(mark)) == 3
    maker.send_signal(number)
    maker.wait(10)
    maker.stdout.close()
    with Network():
        pass
    eventually_sync(lambda: not _remains(mark))
    eventually_sync(lambda: not Path(f"/proc/{server}/exe").exists())


def _remains(mark: str) -> list[str]:
    """The namespaces and devices of a process."""
    paths = [*Path("/run/netns").iterdir(), *Path("/sys/class/net").iterdir()]
    return [path.name for path in paths if re.match(rf"{mark}\D", path.name)]
