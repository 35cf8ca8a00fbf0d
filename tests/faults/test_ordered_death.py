"""Ordered mode while its workers join, leave, are killed and are stopped: the order of each key."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from standpipe import Event, Producer, Stream
from tests.conditions import eventually
from tests.faults.processes import Process
from tests.servers.fleet import TestServer
from tests.servers.working import letters, send, settled

pytestmark = [pytest.mark.servers, pytest.mark.faults]
LEASE_MS = 500
LOOK_S = LEASE_MS / 5 / 1000
SHARDS = 8
KEYS = 24


class Handled(NamedTuple):
    """A line of the log."""

    fence: int
    pid: int
    shard: int
    key: str
    n: int


class Log:
    """What all processes have handled, in the order in which they noted it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Handled]:
        text = self.path.read_text() if self.path.exists() else ""
        rows = [line.split() for line in text.splitlines()]
        return [Handled(int(f), int(p), int(s), k, int(n)) for _, f, p, s, k, n in rows]


class Found(NamedTuple):
    """What a log says."""

    repeated: int
    late: int
    """Noted by an owner when the next one had noted something: it was in the middle of them."""
    owners: int


def check(rows: list[Handled], sent: int) -> Found:
    """Fail unless each key was handled in order by one owner after another."""
    owner: dict[tuple[int, int], int] = {}
    latest: dict[int, int] = defaultdict(int)
    late: dict[tuple[int, int], int] = defaultdict(int)
    by_key: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for fence, pid, shard, key, n in rows:
        assert owner.setdefault((shard, fence), pid) == pid, "one fence, two owners"
        by_key[key][fence].append(n)
        if fence < latest[shard]:
            late[shard, fence] += 1
        latest[shard] = max(fence, latest[shard])
    # What its handler was in the middle of, and nothing after it.
    assert all(count == 1 for count in late.values()), late
    for key, by_fence in by_key.items():
        reached = -1
        for fence, numbers in sorted(by_fence.items()):
            jumps = [pair for pair in pairwise(numbers) if pair[1] != pair[0] + 1]
            ranges = {f: (found[0], found[-1]) for f, found in by_fence.items()}
            assert not jumps, f"{key}: under fence {fence}, {jumps}; all: {ranges}"
            assert numbers[0] <= reached + 1, f"{key}: {fence} goes past a gap"
            reached = max(reached, numbers[-1])
        assert reached == sent - 1, f"{key}: not all was handled"
    assert len(by_key) == KEYS
    return Found(len(rows) - sent * KEYS, sum(late.values()), len(owner))


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url, shards=SHARDS) as found:
        yield found


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def start(server: TestServer, stream_name: str, log: Log) -> Iterator[Callable[[], Process]]:
    processes: list[Process] = []

    def begin() -> Process:
        given = (server.url, stream_name, str(log.path), str(LEASE_MS))
        processes.append(Process(*given, module="ordered_process"))
        return processes[-1]

    yield begin
    for process in processes:
        process.end()


def readings(first: int, count: int) -> list[Event]:
    numbers = range(first, first + count)
    return [Event(f"d{key}", 0, {"n": n}) for n in numbers for key in range(KEYS)]


async def ill_treat(
    stream: Stream, start: Callable[[], Process], log: Log, *, turns: int, seed: int
) -> Found:
    """Random turns of fate for up to four workers, while events keep coming; then the check."""
    chance = random.Random(seed)
    sent = 0
    is_over = False

    async def keep_sending() -> None:
        nonlocal sent
        while not is_over:
            before = noted()
            codec = chance.choice(["plain", "rows"])
            async with Producer(stream, codec=codec) as producer:
                await (await producer.send_many(readings(sent, 5)))
            sent += 5
            # Never more than about a list ahead, however slow the machine is.
            await eventually(lambda least=before + KEYS * 20: is_over or noted() > least, 60)

    def noted() -> int:
        """How long the log is, in bytes; about 20 for each event handled."""
        return log.path.stat().st_size if log.path.exists() else 0

    async def grows(by: int) -> None:
        """Until so much more was handled."""
        before = noted()
        await eventually(lambda: noted() > before + by * 20, 30)

    living = [start(), start()]
    stopped: list[Process] = []
    sending = asyncio.create_task(keep_sending())
    await grows(10)
    for turn in range(turns):
        what = chance.choice(["start", "kill", "kill", "stop", "stop", "leave", "wake"])
        if turn == 0:
            what = "kill"
        if what == "wake" and stopped:
            stopped.pop().signal(signal.SIGCONT)
        elif what == "start" and len(living) < 4:
            living.append(start())
        elif living:
            victim = living.pop(chance.randrange(len(living)))
            if what == "stop":
                victim.signal(signal.SIGSTOP)
                stopped.append(victim)
            elif what == "leave":
                victim.signal(signal.SIGTERM)
            else:
                victim.signal(signal.SIGKILL)
        while len(living) < 2:
            living.append(start())
        await grows(chance.randrange(1, 60))
    for process in stopped:
        process.signal(signal.SIGCONT)
    is_over = True
    await sending
    await eventually(lambda: settled(stream), 60)
    # Those that woke may still be noting what they were in the middle of.
    for process in [*stopped, *living]:
        process.signal(signal.SIGTERM)
    for process in [*stopped, *living]:
        await asyncio.to_thread(process.process.wait, 20)
    assert await letters(stream) == []
    return check(log.read(), sent)


async def test_order_through_kills_and_stops(
    stream: Stream, start: Callable[[], Process], log: Log
) -> None:
    """Whatever happens to workers: per key, a new owner repeats the end of what was handled at
    most, goes on behind it without a gap, and no event is missing."""
    found = await ill_treat(stream, start, log, turns=6, seed=time.time_ns())
    assert found.owners > SHARDS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_order_through_many_kills_and_stops(
    stream: Stream, start: Callable[[], Process], log: Log, seed: int
) -> None:
    """The same, forty times over."""
    found = await ill_treat(stream, start, log, turns=40, seed=seed)
    print(f"\nhandled {len(log.read()):,}: {found}")


async def test_a_stopped_owner_wakes(
    stream: Stream, start: Callable[[], Process], log: Log
) -> None:
    """A dead or stopped owner's shards are taken within the stated time. When it wakes, what it was
    in the middle of is refused, and it handles nothing more until it owns shards again."""
    await send(stream, readings(0, 60), "plain")
    old = start()
    await eventually(lambda: len(log.read()) > 100)
    old.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    before = len(log.read())
    new = start()
    await eventually(lambda: len(log.read()) > before, 20)
    first = time.monotonic() - stopped
    # An interpreter has to start within it as well, on a loaded machine.
    assert first < LEASE_MS / 1000 + 2 * LOOK_S + 5
    fences = {row.fence for row in log.read()[before:]}
    old.signal(signal.SIGCONT)
    await send(stream, readings(60, 40), "plain")
    await eventually(lambda: settled(stream), 30)
    for process in (old, new):
        process.signal(signal.SIGTERM)
        await asyncio.to_thread(process.process.wait, 20)
        process.end()
    found = check(log.read(), 100)
    assert fences == {2}
    assert found.late <= SHARDS
    _, refused, lost = next(said for said in old.said if said[0] == "counts")
    assert int(lost) == SHARDS
    # One handler was at work on each shard that had something left.
    assert int(refused) >= 1
    assert next(said for said in new.said if said[0] == "counts")[1] == "0"
