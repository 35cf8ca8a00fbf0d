"""A producer process that is killed, again and again, while its server comes and goes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standpipe import Stream
from standpipe.producer import drain
from standpipe.spool import Spool
from tests.conditions import eventually_sync
from tests.faults.nursery import Nursery
from tests.faults.spooling import summary_of
from tests.servers.entries import events_of
from tests.servers.fleet import TestServer

pytestmark = pytest.mark.faults
OwnServer = Callable[..., TestServer]
Point = tuple[str, str, int]
POINTS: list[Point] = [
    (name, when, number)
    for name, numbers in (("append", (1, 2, 5)), ("remove", (1, 2)), ("exchange", (3, 6)))
    for when in ("before", "after")
    for number in numbers
]


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery("tests.faults.spool_process")
    yield found
    found.close()


class Weather:
    """A server that is well, dead, hanging, or out of memory."""

    def __init__(self, server: TestServer, chance: random.Random) -> None:
        self._server = server
        self._chance = chance
        self._mend: Callable[[], object] | None = None

    @property
    def is_well(self) -> bool:
        return self._mend is None

    @property
    def hangs(self) -> bool:
        return self._mend == self._server.cont

    def break_it(self) -> None:
        server = self._server
        match self._chance.choice(("kill", "stop", "fill")):
            case "kill":
                server.kill()
                self._mend = server.start
            case "stop":
                server.stop()
                self._mend = server.cont
            case _:
                server.command("CONFIG", "SET", "maxmemory", "1")
                self._mend = lambda: server.command("CONFIG", "SET", "maxmemory", "0")

    def mend(self) -> None:
        if self._mend is not None:
            self._mend()
            self._mend = None


class Log:
    """What the processes noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self) -> tuple[Counter[str], dict[str, set[int]]]:
        """How often each word came, and the numbers of events under it."""
        words: Counter[str] = Counter()
        numbers: dict[str, set[int]] = {"t": set(), "a": set(), "s": set()}
        for line in self.path.read_text().splitlines():
            word, *rest = line.split()
            words[word] += 1
            if rest:
                first, count = map(int, rest)
                numbers[word].update(range(first, first + count))
        return words, numbers


def _kill_often(
    nursery: Nursery, server: TestServer, folder: Path, *, kills: int, codec: str, seed: int
) -> None:
    chance = random.Random(seed)
    weather, log, spool = Weather(server, chance), Log(folder / "log"), folder / "s"
    points = chance.sample(POINTS, len(POINTS))
    missed = 0
    for number in range(kills):
        # About every second dies by itself at a chosen point, the others at some time.
        point = points[number // 2 % len(points)] if number % 2 else None
        first = max(log.read()[1]["t"], default=-1) + 1
        # Starting while it hangs takes the five seconds that a connection may take.
        if (
            number == 0
            or weather.hangs
            or (point is not None and point[0] != "append")
            or chance.random() < 0.5
        ):
            weather.mend()
        begun = log.size
        nursery.begin(
            url=server.url,
            spool=str(spool),
            log=str(log.path),
            first=first,
            codec=codec,
            point=point,
        )
        if point is not None and point[0] != "append":
            # What is to be drained was spooled by those before.
            missed += not nursery.wait(1)
        else:
            lines = chance.randrange(1, 60)
            eventually_sync(
                lambda begun=begun, lines=lines: log.size > begun + 8 * lines or nursery.wait(0),
                20,
                what="it sends",
            )
            if nursery.pid is not None:
                if weather.is_well:
                    weather.break_it()
                else:
                    weather.mend()
                if point is not None:
                    missed += not nursery.wait(1)
                else:
                    deadline = time.monotonic() + chance.uniform(0, 0.25)
                    while time.monotonic() < deadline:
                        pass
        if nursery.pid is not None:
            nursery.kill()
    weather.mend()
    asyncio.run(_require(server, spool, log))
    assert missed < kills / 4, f"{missed} of {kills} were not where they were to die"


async def _require(server: TestServer, spool: Path, log: Log) -> None:
    words, numbers = log.read()
    with Spool(spool) as opened:
        # A gap: blocks that were acknowledged before a later one was spooled, or the reverse.
        assert {finding.kind for finding in opened.verify()} <= {"gap"}
    drained = await drain(spool, server.url, deadline_ms=30_000)
    assert drained.set_aside == 0
    assert summary_of(spool).blocks == 0
    stored: list[int] = []
    async with Stream("power", server.url) as stream:
        for shard in await events_of(stream):
            by_key: dict[str | None, list[int]] = {}
            for _, event in shard:
                by_key.setdefault(event.key, []).append(event.fields["n"])
            for key, found in by_key.items():
                assert found == sorted(found), f"{key} is out of order"
                stored += found
    twice = [n for n, count in Counter(stored).items() if count > 1]
    assert twice == []
    assert sorted((numbers["a"] | numbers["s"]) - set(stored)) == [], "lost"
    assert sorted(set(stored) - numbers["t"]) == [], "never sent"
    # The kills have hit what they are to hit.
    assert min(len(numbers["a"]), len(numbers["s"]), words["d"]) > 20, words
    assert numbers["t"] - numbers["a"] - numbers["s"], "all outcomes were known"


def test_kills(nursery: Nursery, own_server: OwnServer, tmp_path: Path) -> None:
    """However often the process dies, and wherever: what it was told is acknowledged or spooled is
    on the server in the end, once, in order per key, and nothing is there that was not sent."""
    server = own_server("valkey-9.1", appendonly="yes", appendfsync="always")
    _kill_often(nursery, server, tmp_path, kills=40, codec="rows", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("plain", "redis-6.2"),
        ("rows", "redis-8.2"),
        ("columns", "valkey-9.1"),
    ],
)
def test_many_kills(
    nursery: Nursery, own_server: OwnServer, tmp_path: Path, codec: str, name: str
) -> None:
    """So 360 times, in each codec."""
    server = own_server(name, appendonly="yes", appendfsync="always")
    _kill_often(nursery, server, tmp_path, kills=120, codec=codec, seed=2)
