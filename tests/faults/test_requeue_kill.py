"""A program that requeues is killed at any point: no letter is lost, and none put back twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from standpipe import DeadLetters, Event, Selection, Stream, Worker
from tests.conditions import eventually
from tests.servers.fleet import TestServer
from tests.servers.working import running

pytestmark = [pytest.mark.servers, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
LETTERS = 6_000


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


async def numbers_at(stream: Stream, key: str) -> list[int]:
    rows: list[Any] = await stream.server.call("XRANGE", key, "-", "+", key=key)
    contents = [dict(zip(fields[::2], fields[1::2], strict=True))[b"d"] for _, fields in rows]
    return [msgspec.msgpack.decode(content)[2]["n"] for content in contents]


# Two letters per call, so that there are thousands of points at which it can be killed.
COMMAND = """
from standpipe import cli, deadletter
deadletter.DEAD_IDS_MAX = 2
cli.main()
"""


def requeue(stream: Stream) -> subprocess.Popen[bytes]:
    """`standpipe dead requeue --all` in a process of its own."""
    line = [sys.executable, "-c", COMMAND, "dead", "requeue", stream.name, "--all"]
    return subprocess.Popen(
        [*line, "--url", stream.server.address.url],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.DEVNULL,
    )


async def test_killed_while_it_requeues(stream: Stream) -> None:
    """Wherever SIGKILL meets it, each letter is either requeued or still there; a worker of the
    group then gets each once."""
    dead, put_back = stream.dead_key(0), stream.requeued_key(0, "g")
    for start in range(0, LETTERS, 500):
        commands = [
            (
                "XADD", dead, "*", "group", "g", "id", f"1700000000000-{n}/0", "deliveries", "5",
                "d", msgspec.msgpack.encode(Event("m", 1_700_000_000_000, {"n": n})),
            )
            for n in range(start, start + 500)
        ]  # fmt: skip
        await stream.server.call_many(commands, key=dead)
    moved = 0
    in_the_middle = 0
    for share in (1, LETTERS // 4, LETTERS // 2):
        process = requeue(stream)
        deadline = time.monotonic() + 30
        # No pause between two looks: the whole takes it about a second.
        while (
            await stream.server.call("XLEN", put_back, key=put_back) < max(share, moved + 1)
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            pass
        process.kill()
        process.wait()
        letters, requeued = await numbers_at(stream, dead), await numbers_at(stream, put_back)
        assert sorted(letters + requeued) == list(range(LETTERS))
        assert len(requeued) > moved
        moved = len(requeued)
        in_the_middle += bool(letters)
        if not letters:
            break  # It was quicker than this process.
    assert in_the_middle, "it was never killed in the middle"
    await DeadLetters(stream).requeue(Selection())
    seen: Counter[int] = Counter()
    worker = Worker(stream, "g")
    worker.batch(lambda batch: seen.update(event.fields["n"] for event in batch))
    async with running(worker):
        await eventually(lambda: len(seen) == LETTERS, 30)
    assert set(seen.values()) == {1}
