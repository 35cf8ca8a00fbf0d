"""The archive of a stream on real servers: each event once, whatever the server went through."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from standpipe import Event, EventId, Stream
from standpipe.archive import Archive, Archiver, detach, status, verify
from standpipe.archive import archiver as archiver_module
from standpipe.archive.file import Draft
from standpipe.archive.lease import take
from standpipe.codec import check_table, decode_entry
from standpipe.errors import (
    ArchiveDamagedError,
    ArchiveInUseError,
    ArchiveNotFoundError,
    ConfigError,
    StreamNotFoundError,
)
from standpipe.producer import Producer
from tests.conditions import eventually
from tests.servers.archiving import add, archived, numbers_of
from tests.servers.entries import TIME, events_of, make_events
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.working import send

OwnServer = Callable[..., TestServer]
HOUR_MS = 3_600_000
one_server = pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


async def cursors(stream: Stream) -> list[str | None]:
    found = [await stream.server.call("GET", stream.archived_key(n), key=stream.keys[n])
             for n in range(stream.shards)]  # fmt: skip
    return [None if each is None else each.decode() for each in found]


async def send_all_codecs(stream: Stream) -> None:
    """Events of all codecs in turn, with values of all types, and an entry that is none."""
    values = [1, 2.5, True, "text", b"\xff", None, -0.0, 2**60]
    for turn, codec in enumerate(("plain", "rows", "columns", "rows", "plain")):
        events = [
            Event(f"meter-{n % 7}", TIME + n, {"n": n, "volts": 207 + n / 8})
            for n in range(turn * 50, turn * 50 + 50)
        ]
        if codec == "rows":
            events += [Event("any", TIME, {"value": value, "key": "k"}) for value in values]
        await send(stream, events, codec)
    await stream.server.call(
        "XADD", stream.keys[0], "*", "c", "?", "n", 1, "d", "", key=stream.keys[0]
    )


async def live_events(stream: Stream) -> list[list[tuple[EventId, Event]]]:
    """What is on the server, without what no codec reads."""
    found = []
    for key in stream.keys:
        rows = await stream.server.call("XRANGE", key, "-", "+", key=key)
        good = [row for row in rows if row[1][:2] != [b"c", b"?"]]
        entries = [decode_entry(*row, stream.definition.layout) for row in good]
        found.append(
            [
                (EventId(each.id.ms, each.id.seq, at), event)
                for each in entries
                for at, event in enumerate(each.events())
            ]
        )
    return found


async def test_all_codecs_come_back(server: TestServer, stream_name: str, archive: Archive) -> None:
    """Plain entries, rows and columns in one stream of several shards come back as the events that
    they are, and an entry that is none of them with its raw fields."""
    async with Stream(stream_name, server.url, shards=3) as stream:
        await send_all_codecs(stream)
        done = await Archiver(stream, archive).run()
        live = await live_events(stream)
        found = archived(archive, stream)
        assert found == live
        assert [type(v) for _, e in found[0] for v in e.fields.values()] == [
            type(v) for _, e in live[0] for v in e.fields.values()
        ]
        assert done.events == sum(map(len, live))
        assert done.undecodable == 1
        raw = [each for table in archive.read(stream.name, shard=0) for each in table.undecodable]
        assert [each.fields for each in raw] == [[b"c", b"?", b"n", b"1", b"d", b""]]
        looked = await verify(archive, stream.name, stream)
        assert (looked.is_sound, looked.findings) == (True, [])
        assert (looked.events, looked.not_yet) == (done.events, 0)
        assert await cursors(stream) == [archive.position(stream.name, n).entry for n in range(3)]


async def test_a_run_goes_on_behind_the_last(stream: Stream, archive: Archive) -> None:
    """What is archived is not archived again, and a run without anything new writes no file."""
    await send(stream, make_events(100))
    first = await Archiver(stream, archive).run()
    again = await Archiver(stream, archive).run()
    await send(stream, make_events(50, first=100))
    then = await Archiver(stream, archive).run()
    assert [(each.files, each.events) for each in (first, again, then)] == [
        (1, 100),
        (0, 0),
        (1, 50),
    ]
    assert archived(archive, stream) == await events_of(stream)


@one_server
async def test_on_a_cluster(
    server_name: str, cluster: Callable[..., TestCluster], archive: Archive
) -> None:
    """Each shard of a cluster is archived from the node that has it."""
    async with Stream("power", cluster(server_name).url, shards=6) as stream:
        await send(stream, make_events(500))
        await Archiver(stream, archive).run()
        assert archived(archive, stream) == await events_of(stream)
        assert all(await cursors(stream))
        assert (await verify(archive, stream.name, stream)).is_sound


@one_server
async def test_the_cursor_is_there_before_anything_is_read(
    stream: Stream, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor is created before the first entry is read, so that nothing is trimmed in between;
    detaching removes it, not while somebody archives; the next run brings it back."""
    await send(stream, make_events(10))
    assert await cursors(stream) == [None]
    seen: list[str | None] = []
    original = Archiver._read

    async def read(self: Archiver, *arguments: object) -> None:
        seen.extend(await cursors(stream))
        await original(self, *arguments)

    monkeypatch.setattr(Archiver, "_read", read)
    await Archiver(stream, archive).run()
    assert seen == ["0-0"]
    end = archive.position(stream.name, 0)
    assert end is not None
    lease = await take(stream, 0, "somebody")
    with pytest.raises(ArchiveInUseError, match="somebody"):
        await detach(stream)
    assert await cursors(stream) == [end.entry]
    assert await detach(stream, force=True) == [(0, end.entry)]
    await lease.release()
    assert await cursors(stream) == [None]
    assert await detach(stream) == []
    await Archiver(stream, archive).run()
    assert await cursors(stream) == [end.entry]


@one_server
async def test_the_files_are_the_truth(
    server: TestServer, stream: Stream, archive: Archive, tmp_path: Path
) -> None:
    """A cursor that is lost, or behind or before the files, is put where the files end, without an
    event lost or repeated; one before them is said, as files seem to be missing."""
    for n in range(5):
        add(server, stream.name, f"100-{n}", n)
    await Archiver(stream, archive).run()
    for wrong in (None, "0-0", "100-2"):
        server.command("DEL", stream.archived_key(0))
        if wrong is not None:
            server.command("SET", stream.archived_key(0), wrong)
        done = await Archiver(stream, archive).run()
        assert (done.files, done.said) == (0, [])
        assert await cursors(stream) == ["100-4"]
    add(server, stream.name, "100-5", 5)
    server.command("SET", stream.archived_key(0), "100-5")
    done = await Archiver(stream, archive).run()
    assert done.events == 1
    assert "some are missing" in done.said[0]
    assert numbers_of(archive, stream.name) == list(range(6))
    # Another, empty place: what there is goes there, and it is said.
    elsewhere = Archive(tmp_path / "elsewhere")
    done = await Archiver(stream, elsewhere).run()
    assert "another place" in done.said[0]
    assert numbers_of(elsewhere, stream.name) == list(range(6))


@one_server
async def test_a_cursor_that_goes_in_the_middle(
    server: TestServer, stream: Stream, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detached by force, or lost by the server, while the shard is being archived: it is said and
    not brought back by this turn, which what was trimmed meanwhile would be behind."""
    for n in range(9):
        add(server, stream.name, f"100-{n}", n)
    original = archiver_module.build

    def build(draft: Draft) -> object:
        server.command("DEL", stream.archived_key(0))
        return original(draft)

    monkeypatch.setattr(archiver_module, "build", build)
    done = await Archiver(stream, archive, rows_max=3).run()
    assert (done.files, await cursors(stream)) == (1, [None])
    assert "is gone" in done.said[0]
    monkeypatch.undo()
    assert (await Archiver(stream, archive).run()).events == 6
    assert numbers_of(archive, stream.name) == list(range(9))


@one_server
async def test_a_server_restored_to_an_older_state(
    server: TestServer, stream: Stream, archive: Archive
) -> None:
    """The server lost its last entries and gives their IDs to others: what it lost stays in the
    archive, what is new is archived, what both have is there once; it is said, and holds for all
    runs after that, with a restore of the restored state as well."""
    for n in range(10):
        add(server, stream.name, f"100-{n}", n)
    await Archiver(stream, archive).run()

    def restore(numbers: range | list[int]) -> None:
        server.command("DEL", stream.name)
        for at, n in enumerate(numbers):
            add(server, stream.name, f"100-{at}", n)

    restore([*range(6), 60, 70])
    done = await Archiver(stream, archive).run()
    assert "restored" in done.said[0]
    assert "from behind 100-5 on" in done.said[0]
    assert done.events == 2
    assert numbers_of(archive, stream.name) == [*range(10), 60, 70]
    assert await cursors(stream) == ["100-7"]
    assert archive.position(stream.name, 0) == EventId(100, 7)
    assert (await Archiver(stream, archive).run()).said == []
    add(server, stream.name, "100-8", 80)
    assert (await Archiver(stream, archive).run()).events == 1
    looked = await verify(archive, stream.name, stream)
    assert (looked.is_sound, looked.findings) == (True, [])
    restore([*range(6), 60, 700])
    done = await Archiver(stream, archive).run()
    assert (done.events, len(done.said)) == (1, 1)
    assert numbers_of(archive, stream.name) == [*range(10), 60, 70, 80, 700]
    assert [table.generation for table in archive.read(stream.name)] == [0, 1, 1, 2]
    # It can be put together, each generation by itself.
    assert await Archiver(stream, archive).merge(everything=True) == 2
    assert numbers_of(archive, stream.name) == [*range(10), 60, 70, 80, 700]
    assert (await verify(archive, stream.name, stream)).is_sound


@one_server
async def test_a_server_that_lost_all(server: TestServer, stream: Stream, archive: Archive) -> None:
    """The stream is gone: new entries with higher IDs go on where the archive ends, entries with
    lower ones are a generation of their own; none is left out."""
    for n in range(4):
        add(server, stream.name, f"100-{n}", n)
    await Archiver(stream, archive).run()
    server.command("FLUSHALL")
    async with Stream(stream.name, server.url) as again:
        with pytest.raises(StreamNotFoundError):
            await Archiver(again, archive).run()
        add(server, again.name, "200-0", 4)
        done = await Archiver(again, archive).run()
        assert (done.events, await cursors(again)) == (1, ["200-0"])
        assert [table.generation for table in archive.read(again.name)] == [0, 0]
        server.command("FLUSHALL")
        add(server, again.name, "50-0", 5)
        add(server, again.name, "100-1", 6)
        done = await Archiver(again, archive).run()
        assert (done.events, len(done.said), await cursors(again)) == (2, 1, ["100-1"])
        assert numbers_of(archive, again.name) == [0, 1, 2, 3, 4, 5, 6]
        assert (await verify(archive, again.name, again)).is_sound


@one_server
async def test_restored_and_empty(server: TestServer, stream: Stream, archive: Archive) -> None:
    """Restored to before its first entry, with an ID below the archive's end: what comes then is
    not taken for archived, though nothing is there to compare."""
    add(server, stream.name, "100-0", 0)
    add(server, stream.name, "100-1", 1)
    await Archiver(stream, archive).run()
    server.command("DEL", stream.name)
    server.command("XADD", stream.name, "50-0", "n", "9")
    server.command("XDEL", stream.name, "50-0")
    done = await Archiver(stream, archive).run()
    assert "from behind 50-0 on" in done.said[0]
    assert await cursors(stream) == ["50-0"]
    add(server, stream.name, "100-1", 2)
    await Archiver(stream, archive).run()
    assert numbers_of(archive, stream.name) == [0, 1, 2]


@one_server
async def test_trimmed_or_deleted_behind_the_cursor(
    server: TestServer, stream: Stream, archive: Archive
) -> None:
    """Entries that are archived may go, the last one too, by trimming or by hand: nothing is said
    or archived again."""
    for n in range(6):
        add(server, stream.name, f"100-{n}", n)
    await Archiver(stream, archive).run()
    server.command("XDEL", stream.name, "100-5")
    assert (await Archiver(stream, archive).run()).said == []
    server.command("XTRIM", stream.name, "MINID", "100-4")
    assert (await Archiver(stream, archive).run()).said == []
    server.command("XTRIM", stream.name, "MAXLEN", "0")
    add(server, stream.name, "100-6", 6)
    done = await Archiver(stream, archive).run()
    assert (done.said, done.events) == ([], 1)
    assert numbers_of(archive, stream.name) == list(range(7))


async def test_removed_before_it_was_archived(
    server: TestServer, stream: Stream, archive: Archive
) -> None:
    """Entries that somebody removed before they were archived are counted, in the file and by
    verify; Redis 6.2 keeps no record of it."""
    for n in range(6):
        add(server, stream.name, f"100-{n}", n)
    await Archiver(stream, archive).run()
    for n in range(6, 10):
        add(server, stream.name, f"100-{n}", n)
    server.command("XTRIM", stream.name, "MAXLEN", "2")
    done = await Archiver(stream, archive).run()
    assert numbers_of(archive, stream.name) == [0, 1, 2, 3, 4, 5, 8, 9]
    looked = await verify(archive, stream.name, stream)
    assert looked.is_sound
    if server.name != "redis-6.2":
        assert "2 entries behind 100-5" in done.said[0]
        assert [each.kind for each in looked.findings] == ["lost"]
    add(server, stream.name, "100-10", 10)
    add(server, stream.name, "100-11", 11)
    server.command("XTRIM", stream.name, "MAXLEN", "2")
    assert (await Archiver(stream, archive).run()).said == []


async def test_a_server_out_of_memory(
    own_server: OwnServer, server_name: str, archive: Archive
) -> None:
    """A server that takes no more writes is archived all the same, from the first run on, and its
    cursor moves: it is what makes room."""
    server = own_server(server_name)
    async with Stream("full", server.url) as stream:
        await send(stream, make_events(1000))
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Exception, match="used memory"):
            server.command("SET", "a", "b")
        done = await Archiver(stream, archive).run()
        assert done.events == 1000
        end = archive.position("full", 0)
        assert end is not None
        assert await cursors(stream) == [end.entry]


@one_server
async def test_several_share_the_shards(
    server: TestServer, stream_name: str, archive: Archive
) -> None:
    """Of three archivers at once each shard is one's at a time: all is archived, once."""
    async with Stream(stream_name, server.url, shards=8) as stream:
        await send(stream, make_events(4000))
        others = [Stream(stream_name, server.url) for _ in range(3)]
        archivers = [Archiver(each, archive) for each in others]
        done = await asyncio.gather(*(each.run() for each in archivers))
        assert sum(each.events for each in done) == 4000
        assert sum(each.files for each in done) == 8
        assert archived(archive, stream) == await events_of(stream)


@one_server
async def test_following(stream: Stream, archive: Archive) -> None:
    """An archiver that follows archives what comes, and ends when it is told to."""
    await send(stream, make_events(10))
    archiver = Archiver(stream, archive, every_ms=1000)
    running = asyncio.create_task(archiver.run(follow=True))
    await eventually(lambda: archiver.stats.events == 10)
    (shown,) = await status(archive, stream)
    assert (shown.owner, shown.not_yet) == (archiver.owner, 0)
    await send(stream, make_events(10, first=10))
    await eventually(lambda: archiver.stats.events == 20)
    archiver.stop()
    await running
    assert archived(archive, stream) == await events_of(stream)
    # Told to stop it leaves the shard to others at once.
    await Archiver(stream, archive).turn(0)


async def test_a_follower_waits_for_its_server_and_its_disk(
    own_server: OwnServer, tmp_path: Path
) -> None:
    """A server that is down, or a place that fails, is waited for; nothing is lost or repeated."""
    server = own_server("valkey-9.1", appendonly="yes")
    folder = tmp_path / "archive"
    async with Stream("s", server.url) as stream:
        add(server, "s", "100-0", 0)
        archiver = Archiver(stream, Archive(folder), every_ms=1000, lease_ms=300)
        running = asyncio.create_task(archiver.run(follow=True))
        await eventually(lambda: archiver.stats.events == 1)
        server.kill()
        server.start()
        add(server, "s", "100-1", 1)
        await eventually(lambda: archiver.stats.events == 2, 30)
        archiver.stop()
        await running
        assert numbers_of(Archive(folder), "s") == [0, 1]


@one_server
async def test_hours_have_files_of_their_own_and_are_put_together(
    server: TestServer, stream: Stream, archive: Archive
) -> None:
    """Entries go into the folder of the hour in which they were added; the files of an hour that is
    over are put together, those of the newest only when asked for. Readers see each event once,
    also one that began before."""
    start = 1_700_000_000_000 // HOUR_MS * HOUR_MS
    for turn in range(3):
        add(server, stream.name, f"{start + turn * HOUR_MS}-0", 4 * turn, 4 * turn + 1)
        await Archiver(stream, archive, merge=False).run()
        add(server, stream.name, f"{start + turn * HOUR_MS + 1}-0", 4 * turn + 2, 4 * turn + 3)
        await Archiver(stream, archive, merge=False).run()
    hours = [file.folder.rpartition("/")[2] for file in archive.files(stream.name)]
    assert hours == ["hour=22"] * 2 + ["hour=23"] * 2 + ["hour=00"] * 2
    reading = archive.read(stream.name)
    seen = [event.fields["n"] for event in next(reading).events()]
    assert (await Archiver(stream, archive).run()).merged == 4
    assert len(archive.files(stream.name)) == 4
    assert numbers_of(archive, stream.name) == list(range(12))
    seen += [event.fields["n"] for table in reading for event in table.events()]
    assert seen == list(range(12))
    assert await Archiver(stream, archive).merge(everything=True) == 2
    assert len(archive.files(stream.name)) == 3
    assert numbers_of(archive, stream.name) == list(range(12))
    assert (await verify(archive, stream.name, stream)).is_sound


@one_server
async def test_reading_while_files_are_put_together(
    server: TestServer, stream: Stream, archive: Archive
) -> None:
    """Readers that go on all the time while files come in and are put together see the beginning of
    the stream, each event once, at every moment."""
    stop = False

    def read_on() -> int:
        reads = 0
        while not stop:
            with suppress(ArchiveNotFoundError):
                found = numbers_of(Archive(archive.place.shown), stream.name)
                assert found == list(range(len(found)))
                reads += 1
        return reads

    readers = [asyncio.create_task(asyncio.to_thread(read_on)) for _ in range(2)]
    try:
        for turn in range(6):
            for n in range(turn * 5, turn * 5 + 5):
                add(server, stream.name, f"100-{n}", n)
                await Archiver(stream, archive).run()
            await Archiver(stream, archive).merge(everything=True)
    finally:
        stop = True
        reads = await asyncio.gather(*readers)
    assert min(reads) > 3
    assert numbers_of(archive, stream.name) == list(range(30))


@one_server
async def test_behind_a_url(stream: Stream, stream_name: str) -> None:
    """An archive behind an fsspec URL: archived, put together, read, verified. memory:// is a real
    place within the process, whose uploads are whole like an object store's."""
    archive = Archive(f"memory://{stream_name}/readings")
    for turn in range(3):
        await send(stream, make_events(100, first=100 * turn))
        await Archiver(stream, archive).run()
    assert archived(archive, stream) == await events_of(stream)
    assert archive.streams() == [stream.name]
    assert await Archiver(stream, archive).merge(everything=True) == 3
    assert archived(archive, stream) == await events_of(stream)
    assert (await verify(archive, stream.name, stream)).is_sound
    found = [e.fields["n"] for t in archive.read(stream.name, keys=["meter-3"]) for e in t.events()]
    assert found == list(range(3, 300, 10))


# --- what verify finds ---------------------------------------------------------------------------


@pytest.fixture
async def three_files(server: TestServer, stream: Stream, archive: Archive) -> list[Path]:
    """An archive of three files."""
    for n in range(9):
        add(server, stream.name, f"100-{n}", n)
        if n % 3 == 2:
            await Archiver(stream, archive).run()
    return [Path(archive.path(file)) for file in archive.files(stream.name)]


@one_server
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9, -1])
async def test_a_flipped_byte_is_found(
    at: float, stream: Stream, archive: Archive, three_files: list[Path]
) -> None:
    """One bit that is not as it was written is found, wherever it is."""
    content = bytearray(three_files[1].read_bytes())
    content[round(at * len(content)) if at > 0 else -1] ^= 1
    three_files[1].write_bytes(content)
    found = await verify(Archive(archive.place.shown), stream.name, stream)
    assert [each.kind for each in found.findings] == ["damaged"]
    assert found.findings[0].path is not None
    assert three_files[1].name in found.findings[0].path
    assert not found.is_sound
    if at == 0.1:
        # Among the values: reading it is an error, not another value.
        with pytest.raises(ArchiveDamagedError):
            numbers_of(Archive(archive.place.shown), stream.name)


@one_server
@pytest.mark.parametrize(("which", "kinds"), [(0, {"gap"}), (1, {"gap"}), (2, {"cursor"})])
async def test_a_missing_file_is_found(
    which: int, kinds: set[str], stream: Stream, archive: Archive, three_files: list[Path]
) -> None:
    """The first, one in the middle, or the last, which the server's cursor tells; and the entries
    that it should hold and the server still has are named. The others can be read."""
    three_files[which].unlink()
    found = await verify(archive, stream.name, stream)
    expected = kinds if which == 2 else kinds | {"missing"}
    assert {each.kind for each in found.findings} == expected
    left = [n for n in range(9) if n // 3 != which]
    assert numbers_of(archive, stream.name) == left
    if which == 2:
        # The server still has them: the next run puts them there again.
        await Archiver(stream, archive).run()
        assert numbers_of(archive, stream.name) == list(range(9))
        assert (await verify(archive, stream.name, stream)).is_sound


@one_server
async def test_an_overlap_is_found(
    server: TestServer, stream: Stream, archive: Archive, three_files: list[Path], tmp_path: Path
) -> None:
    """A file of another archive of the same stream that has come in: what it repeats is read once,
    and it is named. One that repeats nothing new does not count."""
    other = Archive(tmp_path / "other")
    server.command("DEL", stream.archived_key(0))
    add(server, stream.name, "100-9", 9)
    await Archiver(stream, other, rows_max=4).run()
    theirs = [Path(other.path(file)) for file in other.files(stream.name)]
    shutil.copy(theirs[1], three_files[0].parent)
    found = await verify(archive, stream.name)
    assert [each.kind for each in found.findings] == ["superseded"]
    assert numbers_of(archive, stream.name) == list(range(9))
    shutil.copy(theirs[2], three_files[0].parent)
    found = await verify(archive, stream.name)
    assert {each.kind for each in found.findings if not each.is_harmless} == {"overlap"}
    assert numbers_of(archive, stream.name) == list(range(10))


@one_server
async def test_what_else_verify_finds(
    server: TestServer, stream: Stream, archive: Archive, three_files: list[Path]
) -> None:
    """Files that are none of an archive, renamed files, and entries that differ."""
    folder = three_files[0].parent
    (folder / "notes.txt").write_text("?")
    name = three_files[2].name.replace("100-8", "100-7")
    three_files[2].rename(folder / name)
    found = await verify(archive, stream.name)
    assert {each.kind for each in found.findings} == {"foreign", "damaged"}
    (folder / name).rename(three_files[2])
    (folder / "notes.txt").unlink()
    server.command("DEL", stream.name)
    for n in range(9):
        add(server, stream.name, f"100-{n}", n if n != 4 else 44)
    found = await verify(archive, stream.name, stream)
    assert [(each.kind, each.text.split()[0]) for each in found.findings] == [("differs", "100-4")]


@one_server
async def test_a_damaged_old_file_does_not_keep_new_events_out(
    server: TestServer, stream: Stream, archive: Archive, three_files: list[Path]
) -> None:
    """Archiving goes on beside it, it is said, and it is not put together with others."""
    content = bytearray(three_files[0].read_bytes())
    content[len(content) // 2] ^= 1
    three_files[0].write_bytes(content)
    add(server, stream.name, f"{HOUR_MS}-0", 9)
    done = await Archiver(stream, Archive(archive.place.shown)).run()
    assert done.events == 1
    assert "is not what was written" in done.said[0]
    assert three_files[0].exists()


@one_server
async def test_status(server: TestServer, stream_name: str, archive: Archive) -> None:
    """What is archived of each shard, what is not yet, and how far behind it is."""
    async with Stream(stream_name, server.url, shards=2) as stream:
        for n in range(3):
            add(server, stream.keys[1], f"{1000 * (n + 1)}-0", n)
            if n == 0:
                await Archiver(stream, archive).run()
        first, second = await status(archive, stream)
        assert (first.files, first.last, first.not_yet, first.behind_ms) == (0, None, 0, None)
        assert (second.files, second.first, second.last) == (1, "1000-0", "1000-0")
        assert (second.not_yet, second.behind_ms, second.cursor) == (2, 2000, "1000-0")


@one_server
async def test_wrong_usage(stream: Stream, archive: Archive) -> None:
    """Errors say what is wrong, before anything is done."""
    with pytest.raises(ConfigError, match="every"):
        Archiver(stream, archive, every_ms=10)
    with pytest.raises(ConfigError, match="rows_max"):
        Archiver(stream, archive, rows_max=0)
    with pytest.raises(ArchiveNotFoundError, match="nothing of stream"):
        archive.read("nothing")
    with pytest.raises(ArchiveNotFoundError):
        await verify(archive, "nothing")
    with pytest.raises(StreamNotFoundError):
        await Archiver(stream, archive).run()


@one_server
async def test_columns_of_any_writer(stream: Stream, archive: Archive) -> None:
    """Tables of other widths: what a column is narrower than is kept, 32-bit floats as such."""
    table = check_table(
        pa.table(
            {
                "key": pa.array(["a", "b"]).dictionary_encode(),
                "time": [1, 2],
                "f32": pa.array([1.5, 0.1], pa.float32()),
                "small": pa.array([1, None], pa.int8()),
                "kind": pa.array(["x", None]).dictionary_encode(),
            }
        )
    )
    async with Producer(stream, codec="columns") as producer:
        await (await producer.send_table(table))
    await Archiver(stream, archive).run()
    assert archived(archive, stream) == await events_of(stream)
    types = {field.name: field.type for field in archive.schema(stream.name)}
    assert (types["f32"], types["small"], types["kind"]) == (pa.float32(), pa.int64(), pa.string())
