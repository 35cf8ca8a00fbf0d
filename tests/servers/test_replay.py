"""Replay: a reader goes through the archive and the live stream as if they were one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from standpipe import Batch, Event, Producer, Reader, Stream
from standpipe.archive import Archive, Archiver
from standpipe.reader.source import Source
from standpipe.wire import Server
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


async def send(stream: Stream, count: int, *, first: int = 0, codec: str | None = None) -> None:
    async with Producer(stream, codec=codec) as producer:
        await (await producer.send_many(make_events(count, first=first)))


async def archive_all(stream: Stream, archive: Archive, *, rows_max: int = 1_000_000) -> None:
    await Archiver(stream, archive, rows_max=rows_max, merge=False).run()


async def trim_archived(stream: Stream) -> int:
    """Remove all that is archived, as the trimmer may; returns how many entries."""
    removed = 0
    for shard, key in enumerate(stream.keys):
        cursor = await stream.server.call("GET", stream.archived_key(shard), key=key)
        if cursor is not None:
            ms, _, seq = cursor.decode().partition("-")
            behind = f"{ms}-{int(seq) + 1}"
            removed += await stream.server.call("XTRIM", key, "MINID", behind, key=key)
    return removed


async def read(stream: Stream, **options: object) -> list[int]:
    return numbers([event async for event in Reader(stream, **options)])


async def read_tables(stream: Stream, **options: object) -> list[int]:
    found: list[int] = []
    async for table in Reader(stream, **options).tables():
        found += table.column("n").to_pylist()
    return found


def require_each_once(found: list[int], at_least: int, *, keys: int = 10) -> None:
    """Fail unless each key's numbers count up from its first without a hole, at least so far."""
    for key in range(keys):
        mine = [n for n in found if n % keys == key]
        assert mine == list(range(key, key + len(mine) * keys, keys)), f"meter-{key}"
        assert len(mine) >= (at_least - key + keys - 1) // keys, f"meter-{key}"


@asynccontextmanager
async def in_background(*loops: object) -> AsyncIterator[None]:
    """Run coroutines meanwhile; what they raise is raised."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- the seam ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_trimmed", [False, True])
async def test_archive_first_then_live(
    wire: Server, stream_name: str, archive: Archive, is_trimmed: bool
) -> None:
    """What is archived comes from the archive, what is not from the live stream: each event once,
    whether the archived ones are still in the stream or not."""
    async with Stream(stream_name, wire, shards=2) as stream:
        for first, codec in ((0, "plain"), (200, "rows"), (400, "columns")):
            await send(stream, 200, first=first, codec=codec)
        await archive_all(stream, archive, rows_max=90)
        if is_trimmed:
            assert await trim_archived(stream)
        await send(stream, 200, first=600, codec="rows")
        reader = Reader(stream, archive=archive)
        ids: list[tuple[int, int]] = []
        events: list[Event] = []
        async for batch in reader.batches():
            ids += [each[:2] for each in batch.ids]
            events += batch
        assert ids == sorted(ids)
        assert sorted(events, key=lambda event: event.fields["n"]) == make_events(800)
        assert reader.gaps == []
        assert sorted(await read_tables(stream, archive=archive)) == list(range(800))
        assert len(await read(stream)) == (200 if is_trimmed else 800)


async def test_the_seam_holds_while_everything_moves(
    server: TestServer, wire: Server, stream_name: str, archive: Archive
) -> None:
    """While events arrive, are archived and trimmed all the time, readers from the oldest on get
    each event once, in each key's order."""
    async with Stream(stream_name, wire, shards=2) as stream, Server(server.url) as other:
        mover = Stream(stream_name, other)
        await mover.open()
        await send(mover, 10)
        sent = 10
        archiver = Archiver(mover, archive, rows_max=150)

        async def feed() -> None:
            nonlocal sent
            async with Producer(mover, block_events_max=7) as producer:
                while True:
                    count = random.randrange(1, 60)
                    await (await producer.send_many(make_events(count, first=sent)))
                    sent += count

        async def move() -> None:
            while True:
                for shard in range(stream.shards):
                    await archiver.turn(shard)
                await trim_archived(mover)

        async with in_background(feed(), move()):
            passes = 0
            while passes < 12 or sent < 3_000:
                passes += 1
                at_least = sent
                use = read if passes % 2 else read_tables
                require_each_once(await use(stream, archive=archive), at_least)
        await mover.close()


@pytest.mark.parametrize("use", [read, read_tables])
async def test_moved_between_any_two_reads(
    wire: Server,
    stream_name: str,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[..., object],
) -> None:
    """Right before each page is read from the live stream, what was still there a moment ago is
    archived and trimmed, and new events come; nothing is left out or given twice."""
    async with Stream(stream_name, wire, shards=2) as stream:
        sent = 0
        turns = random.Random(stream_name)
        archiver = Archiver(stream, archive, rows_max=100, merge=False)
        page = Source._page

        async def moved_first(source: Source[Batch]) -> object:
            nonlocal sent
            if sent < 3_000:
                count = turns.randrange(1, 400)
                await send(stream, count, first=sent, codec=turns.choice(["plain", "rows"]))
                sent += count
            for shard in range(2):
                if turns.random() < 0.7:
                    await archiver.turn(shard)
            if turns.random() < 0.8:
                await trim_archived(stream)
            return await page(source)

        await send(stream, 600)
        sent = 600
        await archive_all(stream, archive)
        monkeypatch.setattr(Source, "_page", moved_first)
        for _ in range(4):
            at_least = sent
            require_each_once(await use(stream, archive=archive), at_least)
        assert sent > 1_500
