"""A spool survives SIGKILL at any point, and a disk that is full."""

from __future__ import annotations

import inspect
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from standpipe.errors import SpoolFullError, SpoolInUseError, SpoolUnusableError
from standpipe.limits import SPOOL_WAL_BYTES
from standpipe.spool import Spool, SpooledBlock
from tests.faults.disk import fill, mounted_disk

pytestmark = pytest.mark.faults
SHARDS: Final = ("power:{0-0}", "power:{1-2}")
KILLS = 100
CREATION_KILLS = 10
BYTES_MAX = 6 * 1024 * 1024
SHRINK_BYTES_MIN = 1024 * 1024
"""Small, so that the kills hit a shrinking file as well."""


def block(shard: str, producer: str, sequence: int) -> SpooledBlock:
    """A block that follows from its name alone, of a size between nothing and 200 KB."""
    chance = random.Random(f"{shard} {producer} {sequence}")
    payload = chance.randbytes(chance.choice((0, 60, 3_000, 40_000, 40_000, 200_000)))
    return SpooledBlock(shard, producer, sequence, "rows1", 1 + sequence % 500, payload, 0, 1)


# Prints a line before each call and one after it. It fills the spool, drains it, and so on; a run
# goes on where the one before it was killed, under a producer id of its own, as a producer does.
PROGRAM: Final = f"""
import random, sys, uuid
from standpipe.errors import SpoolFullError
from standpipe.spool import Spool, SpooledBlock, store

{inspect.getsource(block)}
SHARDS = {SHARDS}
store.SPOOL_SHRINK_BYTES_MIN = {SHRINK_BYTES_MIN}
path, seed, openings = sys.argv[1:]
chance = random.Random(seed)
producer = uuid.uuid4().hex
print("opening", flush=True)
for _ in range(int(openings)):
    Spool(path, bytes_max={BYTES_MAX}).close()
spool = Spool(path, bytes_max={BYTES_MAX})
spool.bind("power", SHARDS)
print("opened", flush=True)
last = dict.fromkeys(SHARDS, 0)
fills = chance.random() < 0.7
while True:
    if fills:
        new, before = [], dict(last)
        for _ in range(chance.choice((1, 1, 3, 40))):
            shard = chance.choice(SHARDS)
            last[shard] += 1
            new.append(block(shard, producer, last[shard]))
        what = " ".join(f"{{each.shard_key}}/{{producer}}/{{each.sequence}}" for each in new)
        print("append", what, flush=True)
        try:
            spool.append(new)
        except SpoolFullError:
            print("full", flush=True)
            last, fills = before, False
        else:
            print("appended", flush=True)
            fills = chance.random() < 0.998
        continue
    blocks = []
    for shard in chance.sample(SHARDS, 2):
        blocks = spool.head(shard, bytes_max=4_000_000, count_max=chance.choice((1, 5, 200)))
        if blocks:
            break
    fills = not blocks or chance.random() < 0.01
    if blocks:
        run = [each for each in blocks if each.producer_id == blocks[0].producer_id]
        what = " ".join(f"{{shard}}/{{each.producer_id}}/{{each.sequence}}" for each in run)
        print("remove", what, flush=True)
        removed = spool.remove(shard, run[0].producer_id, run[-1].sequence)
        assert removed == len(run)
        print("removed", flush=True)
"""

CREATING: Final = f"""
import itertools, random, sys
from standpipe.spool import Spool, SpooledBlock

{inspect.getsource(block)}
for number in itertools.count():
    spool = Spool(f"{{sys.argv[1]}}/{{number}}/spool")
    print("created", flush=True)
    spool.append([block("{SHARDS[0]}", "p", 1)])
    print("appended", flush=True)
    if number % 2:
        spool.close()
"""

# For each SQL statement that the calls below come to, forks a process that kills itself before it.
# A kill from outside would hardly ever meet what lies between two of them.
COUNTING: Final = f"""
import itertools, os, random, signal, sqlite3, sys
from standpipe.spool import Spool, SpooledBlock, store

{inspect.getsource(block)}
# Writing the reserve is no statement, but would take most of the time.
store.SPOOL_RESERVE_BYTES = 2**60

def blocks(producer, *names):
    return [block(dict(A="{SHARDS[0]}", B="{SHARDS[1]}")[n[0]], producer, int(n[1])) for n in names]

def run(folder, statements):
    def count(statement):
        nonlocal statements
        if statements == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        statements -= 1

    def connect(*args, connect=sqlite3.connect, **options):
        database = connect(*args, **options)
        database.set_trace_callback(count)
        return database

    sqlite3.connect = connect
    os.mkdir(folder)
    with open(folder + "/out", "w", buffering=1) as out:
        spool = Spool(folder + "/spool")
        spool.bind("power", {SHARDS})
        for call in (
            lambda: spool.append(blocks("p", "A1", "B1")),
            lambda: spool.append(blocks("p", "A2", "A3", "B2")),
            lambda: spool.remove("{SHARDS[0]}", "p", 2),
            lambda: spool.set_aside("{SHARDS[1]}", "p", 1, reason="refused"),
            lambda: spool.append(blocks("q", "A1", "B1")),
            lambda: spool.remove("{SHARDS[0]}", "p", 3),
            lambda: spool.remove_aside("{SHARDS[1]}", "p", 1),
            lambda: spool.remove("{SHARDS[1]}", "p", 2),
        ):
            call()
            out.write("done\\n")
        spool.close()

for number in itertools.count():
    process = os.fork()
    if process == 0:
        run(f"{{sys.argv[1]}}/{{number}}", number)
        os._exit(0)
    if os.waitpid(process, 0)[1] == 0:
        break
"""
# What is there after so many of these calls: of the one shard, of the other, and aside.
STATES: Final = (
    ([], [], []),
    (["p1"], ["p1"], []),
    (["p1", "p2", "p3"], ["p1", "p2"], []),
    (["p3"], ["p1", "p2"], []),
    (["p3"], ["p2"], ["p1"]),
    (["p3", "q1"], ["p2", "q1"], ["p1"]),
    (["q1"], ["p2", "q1"], ["p1"]),
    (["q1"], ["p2", "q1"], []),
    (["q1"], ["q1"], []),
)

Name = tuple[str, str, int]


class Child:
    """The program in a process of its own, whose output says how far it has come."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.text = b""
        self.line_s = 0.0
        """Time that it takes from one line to the next."""

    def read_lines(self, count: int) -> None:
        """Wait until it has printed so many lines."""
        first = 0.0
        while self.text.count(b"\n") < count:
            assert select.select([self.out], [], [], 30)[0], f"it hangs: {self.text!r}"
            chunk = self.out.read(65_536)
            assert chunk, f"it has ended: {self.text!r}"
            self.text += chunk
            first = first or time.monotonic()
        self.line_s = (time.monotonic() - first) / self.text.count(b"\n")

    def kill(self, delay_s: float) -> list[list[str]]:
        """Kill it after some time; return all lines that it has printed."""
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline:
            # A sleep would wake up when the process has come to wait for something.
            pass
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(30) == -signal.SIGKILL, self.text
        self.text += self.out.read()
        self.out.close()
        # What stands behind the last line end was cut off in the middle of printing.
        return [line.decode().split() for line in self.text.split(b"\n")[:-1]]


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program; when the test has failed in between, nothing goes on running."""
    started: list[Child] = []

    def begin(*arguments: str) -> Child:
        started.append(Child(*arguments))
        return started[-1]

    yield begin
    for child in started:
        if child.process.poll() is None:
            child.kill(0)
        child.out.close()


def names(words: list[str]) -> list[Name]:
    split = (word.split("/") for word in words)
    return [(shard, producer, int(sequence)) for shard, producer, sequence in split]


def stored(spool: Spool) -> dict[str, list[Name]]:
    """The names of all blocks, whose content was checked against their names."""
    found: dict[str, list[Name]] = {}
    for shard in SHARDS:
        blocks = spool.head(shard, bytes_max=2**40, count_max=2**40)
        for each in blocks:
            assert each == block(each.shard_key, each.producer_id, each.sequence)
        found[shard] = [(each.shard_key, each.producer_id, each.sequence) for each in blocks]
    return found


def after(state: dict[str, list[Name]], call: list[str]) -> dict[str, list[Name]]:
    """The state that a call leads to."""
    changed = {shard: list(blocks) for shard, blocks in state.items()}
    for name in names(call[1:]):
        if call[0] == "append":
            changed[name[0]].append(name)
        else:
            changed[name[0]].remove(name)
    return changed


def test_kills(tmp_path: Path, start: Start) -> None:
    """However often and wherever the producer is killed: what it was told is stored is there, in
    order and undamaged; what it was told is removed is gone; of the call that it died in, all or
    nothing has happened; and nothing else is there."""
    path = tmp_path / "spool"
    chance = random.Random(11)
    state: dict[str, list[Name]] = {shard: [] for shard in SHARDS}
    seen = Counter[str]()
    sizes: list[int] = []
    for number in range(KILLS):
        # Some die while they open or close it over and over, most at work.
        openings = 1000 if number % 6 == 0 else 0
        child = start(PROGRAM, str(path), str(number), str(openings))
        child.read_lines(1 if openings else chance.randrange(2, 40))
        # Up to two calls later, however fast the machine is.
        lines = child.kill(chance.uniform(0, 0.03 if openings else 4 * child.line_s))
        call: list[str] | None = None
        for line in lines:
            match line[0]:
                case "append" | "remove":
                    call = line
                case "appended" | "removed":
                    assert call is not None
                    state, call = after(state, call), None
                case "full":
                    call = None
                case word:
                    assert word in ("opening", "opened"), lines
            seen[line[0]] += 1
        with Spool(path, bytes_max=BYTES_MAX) as spool:
            found = stored(spool)
            if call is not None:
                seen["cut"] += 1
                # It may have been killed between its success and the line that says so.
                state = state if found == state else after(state, call)
            assert found == state, number
            # The content is random bytes; everything else has to be right.
            assert {finding.kind for finding in spool.verify()} <= {"content"}
        sizes.append(path.stat().st_size)
    # The kills have hit what they are to hit.
    assert seen["opening"] - seen["opened"] == len(range(0, KILLS, 6))
    assert seen["cut"] > KILLS / 10
    assert min(seen["appended"], seen["removed"], seen["full"]) > 10, seen
    assert any(a > 3 * SHRINK_BYTES_MIN and b < SHRINK_BYTES_MIN for a, b in pairwise(sizes)), sizes


def test_kills_before_every_statement(tmp_path: Path) -> None:
    """Killed before each single statement that it has SQLite do: each call has done all or nothing,
    counters included, and all if it had returned."""
    subprocess.run(
        [sys.executable, "-c", COUNTING, str(tmp_path)],
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    folders = list(tmp_path.iterdir())
    assert len(folders) > 80
    between = 0
    for folder in folders:
        done = (folder / "out").read_text().count("done")
        with Spool(folder / "spool") as spool:
            found = stored(spool)
            aside = [each.block for each in spool.aside(count_max=9)]
            state = (
                *([f"{producer}{n}" for _, producer, n in found[shard]] for shard in SHARDS),
                [f"{each.producer_id}{each.sequence}" for each in aside],
            )
            assert state in STATES[done : done + 2], folder
            between += state != STATES[done]
            assert {finding.kind for finding in spool.verify()} <= {"content", "gap"}
    # Some had done all of a call that had not returned yet.
    assert between >= 4


def test_kills_while_it_is_created(tmp_path: Path, start: Start) -> None:
    """A spool whose creation was cut short can be opened and used as if it were new."""
    chance = random.Random(5)
    for number in range(CREATION_KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        child = start(CREATING, str(folder))
        child.read_lines(chance.randrange(1, 12))
        lines = child.kill(chance.uniform(0, 4 * child.line_s))
        assert {line[0] for line in lines} <= {"created", "appended"}, lines
        made = sorted(each for each in folder.iterdir() if each.is_dir())
        for each in made:
            with Spool(each / "spool") as spool:
                blocks = stored(spool)[SHARDS[0]]
                # Only the last one may have died before it had its block.
                assert blocks == [(SHARDS[0], "p", 1)] or int(each.name) == len(made) - 1
                spool.append([block(SHARDS[0], "q", 1)])
                assert len(stored(spool)[SHARDS[0]]) == len(blocks) + 1


def test_a_killed_process_leaves_no_lock(tmp_path: Path, start: Start) -> None:
    """While it lives the spool is in use, with its pid; once it is killed it is not."""
    path = tmp_path / "spool"
    child = start(PROGRAM, str(path), "1", "0")
    try:
        child.read_lines(3)
        with pytest.raises(SpoolInUseError, match=f"in use by process {child.process.pid}$"):
            Spool(path)
        # Reading is possible meanwhile, and shows a sound spool at every moment.
        with Spool.open_readonly(path) as reader:
            for _ in range(3):
                child.read_lines(child.text.count(b"\n") + 1)
                assert {finding.kind for finding in reader.verify()} <= {"content"}
    finally:
        child.kill(0)
    Spool(path).close()


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own."""
    with mounted_disk(tmp_path / "disk", 40) as folder:
        yield folder


def append_until_full(spool: Spool, shard: str, first: int) -> int:
    """Append blocks till the spool refuses; return the last number that it took."""
    number = first
    while True:
        try:
            spool.append([block(shard, "p", number)])
        except SpoolFullError as error:
            assert error.retryable
            assert error.hint
            return number - 1
        number += 1
        assert number < 10_000


def sequences(spool: Spool, shard: str) -> list[int]:
    return [sequence for _, _, sequence in stored(spool)[shard]]


@pytest.mark.parametrize("free_min", [0, SPOOL_WAL_BYTES])
def test_a_disk_that_the_spool_fills(small_disk: Path, free_min: int) -> None:
    """A disk without room is a typed, retryable error; what is stored stays, can be read and
    drained, and appending goes on when there is room again."""
    path = small_disk / "spool"
    shard = SHARDS[0]
    with Spool(path, disk_free_bytes_min=free_min) as spool:
        taken = append_until_full(spool, shard, 1)
        assert taken > 50
        fill(small_disk)
        for size in (1, taken):
            with pytest.raises(SpoolFullError):
                spool.append([block(shard, "p", taken + n) for n in range(1, size + 1)])
        assert sequences(spool, shard) == list(range(1, taken + 1))
        # The content is random bytes; everything else has to be right.
        assert {finding.kind for finding in spool.verify()} == {"content"}
        assert spool.remove(shard, "p", taken - 1) == taken - 1
        (small_disk / "ballast").unlink()
        more = append_until_full(spool, shard, taken + 1)
        assert sequences(spool, shard) == list(range(taken, more + 1))
        assert more > taken + 50


@pytest.mark.parametrize("count", [5, 30, 60, 90, 118])
def test_a_disk_that_others_fill(small_disk: Path, count: int) -> None:
    """At whatever point of the write-ahead log others take the rest of the disk, to the last byte:
    the spool is drained to the end, by the process that has it and by one that opens it."""
    path = small_disk / "spool"
    shard = SHARDS[0]
    with Spool(path, disk_free_bytes_min=0) as spool:
        for number in range(1, count + 1):
            spool.append([block(shard, "p", number)])
        ballast = fill(small_disk)
        for number in range(1, count):
            assert spool.remove(shard, "p", number) == 1
        assert spool.set_aside(shard, "p", count, reason="refused")
        ballast.unlink()
        spool.append([block(shard, "p", count + n) for n in (1, 2)])
    # Closed properly, it has neither a log nor the log's index.
    fill(small_disk)
    with Spool(path, disk_free_bytes_min=0) as spool:
        assert sequences(spool, shard) == [count + 1, count + 2]
        assert spool.remove(shard, "p", count + 2) == 2


def test_there_is_no_room_for_a_spool(small_disk: Path) -> None:
    """Creating one on a full disk is the same typed, retryable error."""
    fill(small_disk)
    with pytest.raises(SpoolFullError) as caught:
        Spool(small_disk / "spool")
    assert caught.value.retryable


def test_a_disk_that_cannot_be_written(small_disk: Path) -> None:
    """On a disk that is mounted for reading a spool cannot be opened, with a typed error; it can be
    when the disk is writable again, with all its blocks."""
    path = small_disk / "spool"
    with Spool(path, disk_free_bytes_min=0) as spool:
        spool.append([block(SHARDS[0], "p", 1)])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SpoolUnusableError) as caught:
        Spool(path)
    assert caught.value.hint
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Spool(path) as spool:
        assert len(stored(spool)[SHARDS[0]]) == 1
