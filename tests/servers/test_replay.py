"""Replay: a reader goes through the archive and the live stream as if they were one."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from standpipe import Batch, Event, EventId, Producer, Reader, Stream, sync
from standpipe.archive import Archive, Archiver
from standpipe.codec import block_fields, encode_rows
from standpipe.errors import ArchiveNotFoundError, ConfigError, NotKeptError
from standpipe.keyspace import definition_key
from standpipe.reader import Gap
from standpipe.reader.source import Source
from standpipe.reader.tables import ID_COLUMNS
from standpipe.wire import Server
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestServer


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


async def test_following_across_the_seam(wire: Server, stream_name: str, archive: Archive) -> None:
    """A reader that follows begins in the archive and goes on with what arrives, also when that is
    archived and trimmed before the reader has come to it."""
    async with Stream(stream_name, wire, shards=2) as stream:
        await send(stream, 1_000)
        await archive_all(stream, archive)
        await trim_archived(stream)
        found: list[int] = []
        sent = 1_000
        async with aclosing(Reader(stream, archive=archive, follow=True).batches()) as batches:
            while sent < 4_000 or len(found) < sent:
                batch = await asyncio.wait_for(anext(batches), 20)
                found += numbers(batch)
                if sent < 4_000:
                    await send(stream, 300, first=sent)
                    sent += 300
                    await archive_all(stream, archive)
                    await trim_archived(stream)
        require_each_once(found, sent)


async def test_points_across_the_seam(
    server: TestServer, wire: Server, stream_name: str, archive: Archive
) -> None:
    """Start and end cut exactly, by entry time, entry and event, in the archive as in the live
    stream; a block is cut within."""
    async with Stream(stream_name, wire) as stream:
        for block in range(4):
            events = [Event("m", 5, {"n": n}) for n in range(block * 10, block * 10 + 10)]
            fields = block_fields("rows", 10, encode_rows(events))
            server.command("XADD", stream_name, f"{100_000 + block * 10}-0", *fields)
            if block == 1:
                await archive_all(stream, archive)
                await trim_archived(stream)

        async def both(**points: object) -> list[int]:
            found = await read(stream, archive=archive, **points)
            assert await read_tables(stream, archive=archive, **points) == found
            return found

        assert await both() == list(range(40))
        for point, first in (
            (100_000, 0), ("100001", 10), ("100010-0/3", 13), (EventId(100_010, 0, 9), 19),
            (EventId(100_010, 0, 10), 20), ("100020-0/0", 20), (EventId(100_030, 0, 4), 34),
            ("100030-1", 40),
        ):  # fmt: skip
            assert await both(start=point) == list(range(first, 40)), point
        for point, stop in (
            (100_000, 10), (EventId(100_000, 0, 0), 1), ("100010-0", 20), ("100010-0/3", 14),
            ("100009", 10), ("100020-0/0", 21), (EventId(100_030, 0, 8), 39), ("100019", 20),
        ):  # fmt: skip
            assert await both(end=point) == list(range(stop)), point
        assert await both(start="100010-0/5", end="100020-0/4") == list(range(15, 25))
        assert await both(start="100010-0/5", end="100010-0/5") == [15]
        assert await both(start="100020-0/5", end="100020-0/4") == []
        assert await both(after={0: EventId(100_010, 0, 5)}) == list(range(16, 40))
        assert await both(
            after={0: EventId(100_010, 0, 5)}, until={0: EventId(100_020, 0, 1)}
        ) == list(range(16, 22))


async def test_going_on_from_any_position(wire: Server, stream_name: str, archive: Archive) -> None:
    """From the positions of a reader that was left anywhere, another one goes on with the next
    event of each shard."""
    async with Stream(stream_name, wire, shards=3) as stream:
        await send(stream, 600, codec="rows")
        await archive_all(stream, archive, rows_max=100)
        await trim_archived(stream)
        await send(stream, 600, first=600, codec="plain")
        for batches_read in (1, 3, 6, 40, 300):
            left = batches_read
            reader = Reader(stream, archive=archive)
            found: list[int] = []
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    found += numbers(batch)
                    left -= 1
                    if not left:
                        break
            found += await read(stream, archive=archive, after=reader.positions)
            require_each_once(found, 1_200)
            assert len(found) == 1_200


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_keys_and_fields(
    wire: Server, stream_name: str, archive: Archive, codec: str
) -> None:
    """Of some devices and fields alone, events keep their IDs, in the archive as in the stream."""
    async with Stream(stream_name, wire, shards=2) as stream:
        await send(stream, 300, codec=codec)
        await archive_all(stream, archive)
        await trim_archived(stream)
        await send(stream, 300, first=300, codec=codec)
        everything: dict[tuple[int, EventId], Event] = {}
        async for batch in Reader(stream, archive=archive).batches():
            everything |= {(batch.shard, i): e for i, e in zip(batch.ids, batch, strict=True)}
        wanted = {"meter-3", "meter-8", "nobody"}
        some: dict[tuple[int, EventId], Event] = {}
        async for batch in Reader(
            stream, archive=archive, keys=wanted, fields=["n", "none"]
        ).batches():
            some |= {(batch.shard, i): e for i, e in zip(batch.ids, batch, strict=True)}
        assert some == {
            place: Event(event.key, event.time, {"n": event.fields["n"]})
            for place, event in everything.items()
            if event.key in wanted
        }
        rows: list[tuple[object, ...]] = []
        async for table in Reader(
            stream, archive=archive, keys=wanted, fields=["n", "none"]
        ).tables():
            assert set(table.column_names) <= {*ID_COLUMNS, "n", "none"}
            columns = (table.column(name).to_pylist() for name in (*ID_COLUMNS, "n"))
            rows += zip(*columns, strict=True)
        assert {
            (shard, EventId(ms, seq, index)): Event(key, time, {"n": n})
            for shard, ms, seq, index, key, time, n in rows
        } == some
        assert [row[1:3] for row in rows] == sorted(row[1:3] for row in rows)


def test_without_async(server: TestServer, stream_name: str) -> None:
    """The synchronous face takes the same options."""
    with sync.Stream(stream_name, server.url) as stream:
        stream.send_many(make_events(50))
        found = list(stream.read(keys=["meter-3"], fields=["n"]))
        assert found == [
            Event("meter-3", e.time, {"n": e.fields["n"]}) for e in make_events(50)[3::10]
        ]
        (batch,) = stream.read_batches(end="-0s", keys=["meter-4"])
        assert numbers(batch) == [4, 14, 24, 34, 44]


# --- what is not kept ----------------------------------------------------------------------------


def knows_gaps(server: TestServer) -> bool:
    """Redis 6.2 does not count what was ever added."""
    return server.name != "redis-6.2"


async def test_older_than_anything_kept(
    server: TestServer, wire: Server, stream_name: str, archive: Archive
) -> None:
    """A start before the oldest entry is an error once entries were trimmed, and names the oldest
    time of the live stream and of the archive; what is there can be had all the same."""
    async with Stream(stream_name, wire) as stream:
        for n in range(20):
            server.command("XADD", stream_name, f"{100_000 + n}-0", "n", n)
        assert await read(stream, start=99_000) == list(range(20))
        server.command("XTRIM", stream_name, "MINID", "100005-0")
        if knows_gaps(server):
            with pytest.raises(NotKeptError, match=r"begins at 1970.*\(100005-0\)") as caught:
                await read(stream, start=99_000)
            assert caught.value.oldest == EventId(100_005, 0)
            assert "--from-oldest" in caught.value.hint
            with pytest.raises(NotKeptError):
                await read_tables(stream, start="100004-0")
        reader = Reader(stream, start=99_000, from_oldest=True)
        assert numbers([event async for event in reader]) == list(range(5, 20))
        assert list(reader.gaps) == []
        assert await read(stream, start="100005-0") == list(range(5, 20))
        assert await read(stream) == list(range(5, 20))
        await archive_all(stream, archive)
        server.command("XTRIM", stream_name, "MINID", "100010-0")
        if knows_gaps(server):
            with pytest.raises(NotKeptError) as caught:
                await read(stream, start=100_007)
            assert "It is archived up to 100019-0: give the archive" in caught.value.hint
            with pytest.raises(NotKeptError, match=r"archive .*\(100005-0\), the live .*100010-0"):
                await read(stream, start=99_000, archive=archive)
        assert await read(stream, start=100_007, archive=archive) == list(range(7, 20))
        # A stream of which all is gone.
        server.command("XTRIM", stream_name, "MAXLEN", 0)
        if knows_gaps(server):
            with pytest.raises(NotKeptError, match="begins at nothing"):
                await read(stream, start=100_007)
        assert await read(stream, start=100_020) == []


async def test_one_shard_begins_later(server: TestServer, wire: Server, stream_name: str) -> None:
    """Where some shard has what was asked for, the others that lack it are told as gaps."""
    async with Stream(stream_name, wire, shards=2) as stream:
        for key in stream.keys:
            for n in range(10):
                server.command("XADD", key, f"{100_000 + n}-0", "n", n)
        server.command("XTRIM", stream.keys[1], "MINID", "100006-0")
        reader = Reader(stream, start=100_003)
        found = [event async for event in reader]
        assert len(found) == 7 + 4
        if knows_gaps(server):
            expected = Gap(1, EventId(100_003, 0), EventId(100_006, 0), None, "trimmed")
            assert list(reader.gaps) == [expected]


async def test_trimmed_under_a_reader(server: TestServer, wire: Server, stream_name: str) -> None:
    """Entries that are trimmed before a reader comes to them are told, with their number."""
    async with Stream(stream_name, wire) as stream:
        fill = "for n = 1, 3000 do redis.call('XADD', KEYS[1], n .. '-0', 'n', n) end"
        server.command("EVAL", fill, 1, stream_name)
        told: list[Gap] = []
        reader = Reader(stream, on_gap=told.append)
        found: list[int] = []
        async for batch in reader.batches():
            found += numbers(batch)
            if len(found) == 512:
                server.command("XTRIM", stream_name, "MINID", "1001-0")
                server.command("XADD", stream_name, "3001-0", "n", 3001)
        assert found == [*range(1, 513), *range(1001, 3002)]
        (gap,) = reader.gaps
        assert told == [gap]
        assert (gap.after, gap.before, gap.reason) == (
            EventId(512, 0), EventId(1001, 0), "trimmed",
        )  # fmt: skip
        assert gap.entries == (488 if knows_gaps(server) else None)


async def test_trimmed_behind_a_reader_is_no_gap(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """What a reader has read already may go, up to the very last entry, without being told."""
    async with Stream(stream_name, wire) as stream:
        for n in range(1, 301):
            server.command("XADD", stream_name, f"{n}-0", "n", n)
        reader = Reader(stream, follow=True)
        found: list[int] = []
        async with aclosing(reader.batches()) as batches:
            last = 300
            while last < 340:
                while len(found) < last:
                    found += numbers(await asyncio.wait_for(anext(batches), 20))
                keep = 0 if last % 2 else 1
                server.command("XTRIM", stream_name, "MAXLEN", keep)
                last += 1
                server.command("XADD", stream_name, f"{last}-0", "n", last)
        assert found == list(range(1, len(found) + 1))
        assert list(reader.gaps) == []


async def test_deleted_and_made_anew(server: TestServer, wire: Server, stream_name: str) -> None:
    """Entries that were deleted one by one behind the last that was read, and a stream that was
    made anew, are told while following."""
    if not knows_gaps(server):
        return
    async with Stream(stream_name, wire) as stream:
        server.command("XADD", stream_name, "1-0", "n", 1)
        reader = Reader(stream, follow=True)
        async with aclosing(aiter(reader)) as events:
            await asyncio.wait_for(anext(events), 20)
            server.command(
                "EVAL",
                "for n = 2, 9 do redis.call('XADD', KEYS[1], n .. '-0', 'n', n) end "
                "redis.call('XDEL', KEYS[1], '3-0', '4-0')",
                1,
                stream_name,
            )
            found = [(await asyncio.wait_for(anext(events), 20)).fields["n"] for _ in range(6)]
            assert found == [2, 5, 6, 7, 8, 9]
            assert [(gap.entries, gap.reason) for gap in reader.gaps] == [(2, "deleted")]
            server.command("DEL", stream_name)
            server.command("XADD", stream_name, "20-0", "n", 20)
            assert (await asyncio.wait_for(anext(events), 20)).fields["n"] == 20
            assert [(gap.entries, gap.reason) for gap in reader.gaps][1:] == [(None, "replaced")]


async def test_archives_that_are_the_wrong_one(
    server: TestServer, wire: Server, stream_name: str, archive: Archive, tmp_path: Path
) -> None:
    """An archive that has nothing of a stream that is archived is an error, one that ends too early
    a gap; before anything is archived, the live stream will do."""
    async with Stream(stream_name, wire) as stream:
        await send(stream, 20, codec="plain")
        assert await read(stream, archive=archive) == list(range(20))
        await archive_all(stream, archive)
        with pytest.raises(ArchiveNotFoundError, match=r"archived up to .* nothing of it is in"):
            await read(stream, archive=tmp_path / "elsewhere")
        shutil.copytree(tmp_path / "archive", tmp_path / "older")
        await send(stream, 20, first=20, codec="plain")
        await archive_all(stream, archive)
        await trim_archived(stream)
        reader = Reader(stream, archive=tmp_path / "older")
        assert numbers([event async for event in reader]) == list(range(20))
        count = 20 if knows_gaps(server) else None
        assert [(gap.entries, gap.reason) for gap in reader.gaps] == [(count, "archive")]
        assert await read(stream, archive=archive) == list(range(40))


async def test_an_archive_with_more_shards(
    wire: Server, server: TestServer, stream_name: str, archive: Archive
) -> None:
    """Shards that a server has forgotten are not left out in silence."""
    async with Stream(stream_name, wire, shards=3) as stream:
        await send(stream, 60)
        await archive_all(stream, archive)
        server.command("UNLINK", *stream.keys, definition_key(stream_name))
        server.command("UNLINK", *(stream.archived_key(n) for n in range(3)))
    async with Stream(stream_name, wire) as stream:
        with pytest.raises(ConfigError, match=r"has 1 shards .*, and 3 in"):
            await read(stream, archive=archive)
    async with Stream(stream_name, wire, shards=3) as stream:
        assert sorted(await read(stream, archive=archive)) == list(range(60))


# --- pace ----------------------------------------------------------------------------------------


async def test_at_the_pace_of_the_entries(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """At speed 10 what was added over two seconds comes over 0.2 s, no event before its time."""
    async with Stream(stream_name, wire) as stream:
        for n in range(21):
            server.command("XADD", stream_name, f"{100_000 + n * 100}-0", "n", n)
        for use in ("batches", "tables"):
            began = asyncio.get_running_loop().time()
            arrived: list[float] = []
            async for part in getattr(Reader(stream, speed=10), use)():
                arrived += [asyncio.get_running_loop().time() - began] * len(part)
            assert len(arrived) == 21
            assert all(at >= n * 0.01 - 0.005 for n, at in enumerate(arrived))


async def test_at_the_pace_of_the_events(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """By the events' own times a late one comes at once, where it was added."""
    times = [0, 100, 50, 200, 20, 300]
    events = [Event("m", 1_000_000 + at, {"n": n}) for n, at in enumerate(times)]
    async with Stream(stream_name, wire) as stream:
        server.command("XADD", stream_name, "*", *block_fields("rows", 6, encode_rows(events)))
        loop = asyncio.get_running_loop()
        reader = Reader(stream, speed=2, pace_by="event")
        began = loop.time()
        arrived = [(event.fields["n"], loop.time() - began) async for event in reader]
        assert [n for n, _ in arrived] == list(range(6))
        assert all(at >= max(times[: n + 1]) / 2000 - 0.005 for n, at in arrived)


@pytest.mark.parametrize(
    "wrong", [{"speed": 0}, {"speed": -1}, {"keys": "m"}, {"fields": "n"}, {"pace_by": "x"}]
)
def test_wrong_options(wrong: dict[str, object]) -> None:
    """What is no speed, no list or no pace is refused at once."""
    with pytest.raises(ConfigError):
        Reader(Stream("power", "redis://127.0.0.1:1"), **wrong)
