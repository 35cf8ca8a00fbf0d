"""Exactly once in effect: whatever is killed, and when, each event is in the sink once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from standpipe import Event, Stream
from tests.conditions import eventually
from tests.servers.entries import TIME
from tests.servers.fleet import TestServer
from tests.servers.places import KINDS, ParquetPlace, Place, PostgresPlace, SqlitePlace
from tests.servers.postgres import Postgres
from tests.servers.working import letters, pending, send, settled

pytestmark = [pytest.mark.servers, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
BLOCK = 20
TURN_EVENTS = 400


class WorkProcess:
    """A process of ``standpipe work``, and what it has logged."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "standpipe", "work", *arguments],
                cwd=log.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                stdout=file,
                stderr=file,
            )

    @property
    def logged(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


Starter = Callable[..., WorkProcess]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.fixture
def start(server: TestServer, stream_name: str, tmp_path: Path) -> Iterator[Starter]:
    """``start(url)``: a process of ``standpipe work --sink URL``."""
    processes: list[WorkProcess] = []

    def begin(url: str, *options: str) -> WorkProcess:
        line = [stream_name, "--sink", url, "--group", "g", "--url", server.url]
        # Little in flight: many small transactions, so that kills meet all of their moments.
        line += ["--idle-ms-min", "300ms", "--in-flight-events-max", "100", *options]
        processes.append(WorkProcess(line, tmp_path / f"worker-{len(processes)}.log"))
        return processes[-1]

    yield begin
    for each in processes:
        each.end(signal.SIGKILL)
        # Shown when the test has failed.
        print(each.logged[-1000:])


def place_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> Place:
    if kind == "sqlite":
        return SqlitePlace(folder / "readings.db")
    if kind == "parquet":
        return ParquetPlace(folder / "readings")
    return PostgresPlace(request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex[:12]}")


def readings(count: int, first: int) -> list[Event]:
    return [
        Event(f"meter-{n % 7}", TIME + n, {"n": n, "volts": 207 + n / 8, "on": n % 2 == 0})
        for n in range(first, first + count)
    ]


async def send_blocks(stream: Stream, events: list[Event]) -> None:
    """Blocks of 20: an entry is what is delivered again as a whole."""
    for at in range(0, len(events), BLOCK):
        await send(stream, events[at : at + BLOCK], "rows")


def require_once(place: Place, sent: list[Event]) -> None:
    """Fail unless the rows are the events sent, each once, with its values."""
    rows = place.rows()
    found = [(row["key"], row["time"], row["n"], row["volts"], row["on"]) for row in rows]
    wanted = [(e.key, e.time, *(e.fields[name] for name in ("n", "volts", "on"))) for e in sent]
    assert len(found) == len(sent), f"{len(found)} rows of {len(sent)} events"
    assert sorted(found, key=lambda row: row[2]) == wanted


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_killed_at_random(
    kind: str,
    kills: int,
    stream: Stream,
    start: Starter,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Of three workers on one place one is killed again and again, at moments of chance: each
    event is there once, none is a dead letter."""
    place = place_of(kind, tmp_path, request)
    chance = random.Random(f"{kind} {kills}")
    sent: list[Event] = []
    workers = [start(place.url) for _ in range(3)]
    held = 0
    for _ in range(kills):
        have = len(sent)
        sent += readings(TURN_EVENTS, have)
        sending = asyncio.create_task(send_blocks(stream, sent[have:]))
        # Some of this turn's are there and others are under way.
        enough = max(0, have + chance.randrange(-TURN_EVENTS // 2, TURN_EVENTS // 2))
        await eventually(lambda n=enough: place.count() > n, 60, what=f"{enough} rows")
        moment = time.monotonic() + chance.uniform(0, 0.03)
        await eventually(lambda at=moment: time.monotonic() >= at)
        # The oldest: it has had time to start.
        victim = workers.pop(0)
        victim.end(signal.SIGKILL)
        held += sum(f"-{victim.process.pid}-".encode() in name for name, _ in await pending(stream))
        await sending
        workers.append(start(place.url))
    await eventually(lambda: settled(stream), 60, what="all is settled")
    print(f"{kind}: {kills} kills met {held} entries under way")
    assert held > 0
    assert await letters(stream) == []
    require_once(place, sent)


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_a_database_that_is_down(
    stream: Stream, start: Starter, own_postgres: Postgres
) -> None:
    """PostgreSQL crashes under its workers and stays away, longer than they live: the events wait,
    none is given up, though three deliveries are all it may have; and each is there once."""
    place = PostgresPlace(own_postgres, "readings")
    # One for the read, one to be taken over, one that the kill may leave counted in mid-try.
    options = ("--deliveries-max", "3")
    sent = readings(TURN_EVENTS, 0)
    worker = start(place.url, *options)
    await send_blocks(stream, sent)
    await eventually(lambda: place.count() > 0, 30)
    own_postgres.stop()
    more = readings(TURN_EVENTS, len(sent))
    sent += more
    await send_blocks(stream, more)
    for turn in range(3):
        # This one has events, and has found out that they must wait.
        await eventually(lambda worker=worker: worker.logged.count("the events wait") > 1, 30)
        worker.end(signal.SIGKILL if turn == 1 else signal.SIGTERM)
        worker = start(place.url, *options)
    own_postgres.start()
    await eventually(lambda: settled(stream), 60)
    assert await letters(stream) == []
    require_once(place, sent)


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_a_database_that_crashes(
    stream: Stream, start: Starter, own_postgres: Postgres
) -> None:
    """PostgreSQL crashes in the middle of transactions and comes back: what the worker cannot know
    to be committed it finds out by writing it again."""
    place = PostgresPlace(own_postgres, "readings")
    sent: list[Event] = []
    start(place.url)
    start(place.url)
    for _ in range(3):
        have = len(sent)
        sent += readings(TURN_EVENTS, have)
        await send_blocks(stream, sent[have:])
        await eventually(lambda have=have: place.count() > have, 60)
        own_postgres.stop()
        own_postgres.start()
    await eventually(lambda: settled(stream), 60)
    assert await letters(stream) == []
    require_once(place, sent)
