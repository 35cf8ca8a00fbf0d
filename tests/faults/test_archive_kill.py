"""The archive holds every event once, wherever the process that archives it is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from standpipe import Stream
from standpipe.archive import Archive, Archiver, verify
from standpipe.errors import ArchiveInUseError
from tests.conditions import eventually
from tests.faults.archive_process import OWNERS
from tests.faults.nursery import Nursery
from tests.servers.archiving import archived
from tests.servers.entries import events_of, make_events
from tests.servers.fleet import TestServer
from tests.servers.working import send

pytestmark = [
    pytest.mark.servers,
    pytest.mark.faults,
    pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True),
]
MODULE = "tests.faults.archive_process"
BLOCK = 7

QUICK = [
    ("find_position", "before", 1),
    ("_write", "before", 1),
    ("_rename", "before", 1),
    ("_rename", "after", 1),
    ("set_cursor", "before", 1),
    ("set_cursor", "after", 2),
    ("_merged", "before", 1),
    # Of the parts of a file that took their place none is gone, then one, then more.
    ("remove", "before", 1),
    ("remove", "after", 1),
    ("remove", "before", 3),
]
POINTS = [
    *QUICK,
    *[
        pytest.param((name, when, number), marks=pytest.mark.slow)
        for name in OWNERS
        for when in ("before", "after")
        for number in (1, 2)
        # A shard is looked at by two turns, but released by the first.
        if (name, when, number) not in QUICK
    ],
]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url, shards=2) as found:
        yield found


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery(MODULE)
    yield found
    found.close()


async def send_blocks(stream: Stream, count: int, first: int) -> None:
    events = make_events(count, first=first)
    for start in range(0, count, BLOCK):
        await send(stream, events[start : start + BLOCK])


async def finish(stream: Stream, archive: Archive) -> None:
    """Archive what is left, once the lease of who was killed is over, and fail unless all is there
    once, and sound."""
    archiver = Archiver(stream, archive, rows_max=50)

    async def turned(shard: int) -> bool:
        await archiver.turn(shard)
        return True

    for shard in range(stream.shards):
        await eventually(lambda n=shard: turned(n), ignore=(ArchiveInUseError,))
    assert archived(archive, stream) == await events_of(stream)
    found = await verify(archive, stream.name, stream)
    assert found.is_sound, found.findings
    assert [each for each in found.findings if each.kind == "superseded"] == []
    assert list((Path(archive.place.shown) / "_unfinished").glob("*")) == []
    for shard, key in enumerate(stream.keys):
        cursor = await stream.server.call("GET", stream.archived_key(shard), key=key)
        assert cursor.decode() == archive.position(stream.name, shard).entry


@pytest.mark.parametrize("point", POINTS, ids=lambda point: "-".join(map(str, point)))
async def test_killed_at_each_step(
    point: tuple[str, str, int], stream: Stream, nursery: Nursery, tmp_path: Path
) -> None:
    """Killed before or after any step of archiving and of putting files together, nothing is lost,
    and nothing is there twice, neither right then nor after the next run."""
    archive = Archive(tmp_path / "archive")
    options = {
        "name": stream.name,
        "url": stream.server.address.url,
        "folder": str(tmp_path / "archive"),
    }
    await send_blocks(stream, 210, 0)
    # A first turn that is whole, so that there is something to go on from and to put together.
    await Archiver(stream, archive, rows_max=40).run()
    await send_blocks(stream, 210, 210)
    name, when, number = point
    nursery.begin(point=[name, when, number], turns=1, **options)
    assert nursery.wait(30)
    assert nursery.status == signal.SIGKILL, "the step was not met"
    # What a reader meets at this moment: the beginning of the stream, each event once.
    for found, live in zip(archived(archive, stream), await events_of(stream), strict=True):
        assert found == live[: len(found)]
    await finish(stream, archive)


@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
async def test_killed_at_random(
    kills: int, stream: Stream, nursery: Nursery, tmp_path: Path
) -> None:
    """Killed again and again, at moments of chance, while events come in: what is archived is at
    any time the beginning of each shard, and at the end all of it, each event once."""
    archive = Archive(tmp_path / "archive")
    options = {
        "name": stream.name,
        "url": stream.server.address.url,
        "folder": str(tmp_path / "archive"),
    }
    chance = random.Random(kills)
    sent = met = 0
    for _ in range(kills):
        nursery.begin(turns=None, **options)
        sending = asyncio.create_task(send_blocks(stream, 140, sent))
        sent += 140
        # It is at work, past the leases that the one before has left.
        files = archive.files(stream.name)
        await eventually(lambda old=files: archive.files(stream.name) != old, 30)
        moment = time.monotonic() + chance.uniform(0, 0.1)
        await eventually(lambda at=moment: time.monotonic() >= at)
        nursery.kill()
        await sending
        met += len(list((tmp_path / "archive" / "_unfinished").glob("*")))
        for found, live in zip(archived(archive, stream), await events_of(stream), strict=True):
            assert found == live[: len(found)]
    print(f"{kills} kills left {met} unfinished files")
    await finish(stream, archive)


async def test_one_that_stood_still(stream: Stream, nursery: Nursery, tmp_path: Path) -> None:
    """A process stands still for longer than its lease, another one goes on in its place; when it
    wakes up in the middle of what it did, nothing is there twice."""
    archive = Archive(tmp_path / "archive")
    nursery.begin(
        turns=None,
        name=stream.name,
        url=stream.server.address.url,
        folder=str(tmp_path / "archive"),
    )
    assert nursery.pid is not None
    sent = 0
    for _ in range(5):
        before = [archive.position(stream.name, shard) for shard in range(2)]
        sending = asyncio.create_task(send_blocks(stream, 700, sent))
        sent += 700
        await eventually(
            lambda old=before: [archive.position(stream.name, n) for n in range(2)] != old, 30
        )
        os.kill(nursery.pid, signal.SIGSTOP)
        await sending
        await Archiver(stream, archive, rows_max=50).run()
        os.kill(nursery.pid, signal.SIGCONT)
        for found, live in zip(archived(archive, stream), await events_of(stream), strict=True):
            assert found == live[: len(found)]
    nursery.kill()
    # It lived until now: to lose a shard is nothing that it dies of.
    assert nursery.status == signal.SIGKILL
    await finish(stream, archive)
