"""Replay into handlers, files, groups and other streams, in the library and by the command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from standpipe import Event, Producer, Reader, Stream, replay
from standpipe.archive import Archive, Archiver
from standpipe.codec import block_fields, encode_rows
from standpipe.errors import ConfigError, ReplayFileError, ReplayInUseError, ReplayLostError
from standpipe.formats import read_events
from standpipe.keyspace import side_key
from standpipe.limits import SEQUENCE_TTL_MS
from standpipe.replay import streams
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.commands import run
from tests.servers.entries import events_of, make_events, numbers
from tests.servers.fleet import TestServer

MIXED = [
    Event("a", 1_700_000_000_000, {"n": 0, "volts": 230, "note": "ok"}),
    Event("b", 1_700_000_000_001, {"n": 1, "volts": 230.5}),
    Event(None, 1_700_000_000_002, {"n": 2, "raw": b"\x00\xff", "key": "own", "time": 5}),
    Event("a", 1_700_000_000_003, {"n": 3, "note": None, "on": True}),
]


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture
async def stream(wire: Server, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, wire) as found:
        yield found


async def send(stream: Stream, events: list[Event], codec: str = "rows") -> None:
    async with Producer(stream, codec=codec) as producer:
        await (await producer.send_many(events))


async def events_in(stream: Stream) -> list[Event]:
    """All events of a stream, read past the code under test, by n."""
    found = [event for shard in await events_of(stream) for _, event in shard]
    return sorted(found, key=lambda event: event.fields["n"])


# --- handlers ------------------------------------------------------------------------------------


async def test_into_handlers(stream: Stream) -> None:
    """A handler is called with each event in order, async or not, or with batches; what it raises
    ends the replay."""
    await send(stream, make_events(700))
    seen: list[int] = []

    async def each(event: Event) -> None:
        seen.append(event.fields["n"])

    done = await replay.to_handler(Reader(stream), each)
    assert seen == list(range(700))
    assert (done.events, done.gaps, done.is_complete) == (700, 0, True)
    assert done.first_ms is not None and done.first_ms <= done.last_ms
    seen.clear()
    await replay.to_handler(Reader(stream), lambda event: seen.append(event.fields["n"]))
    assert seen == list(range(700))
    seen.clear()
    await replay.to_handler(Reader(stream), lambda batch: seen.extend(numbers(batch)), batches=True)
    assert seen == list(range(700))

    def fails(event: Event) -> None:
        raise KeyError(event.fields["n"])

    with pytest.raises(KeyError):
        await replay.to_handler(Reader(stream), fails)


async def test_a_handler_that_follows_is_stopped(stream: Stream) -> None:
    """A replay that follows ends when it is told to, and counts what it did."""
    await send(stream, make_events(10))
    stop = asyncio.Event()
    seen: list[int] = []
    running = asyncio.create_task(
        replay.to_handler(
            Reader(stream, follow=True), lambda event: seen.append(event.fields["n"]), stop=stop
        )
    )
    await eventually(lambda: len(seen) == 10)
    await send(stream, make_events(5, first=10))
    await eventually(lambda: len(seen) == 15)
    stop.set()
    assert (await asyncio.wait_for(running, 20)).events == 15


# --- files ---------------------------------------------------------------------------------------


async def test_parquet_files(stream: Stream, tmp_path: Path) -> None:
    """A Parquet file has every event, its IDs, and one column per field, whose type fits all."""
    await send(stream, MIXED)
    await send(stream, make_events(1_000, first=4), codec="columns")
    target = tmp_path / "x.parquet"
    done = await replay.to_file(Reader(stream), target)
    table = pq.read_table(target)
    assert done.events == len(table) == 1_004
    assert table.column("n").to_pylist() == list(range(1_004))
    assert table.schema.field("time").type == pa.timestamp("ms", "UTC")
    assert table.column("time").cast(pa.int64()).to_pylist()[:2] == [MIXED[0].time, MIXED[1].time]
    assert table.schema.field("volts").type == pa.float64()
    assert table.column("_key").to_pylist()[:4] == [None, None, "own", None]
    assert table.column("raw").to_pylist()[2] == b"\x00\xff"
    assert os.listdir(tmp_path) == ["x.parquet"]


async def test_columns_that_change_on_the_way(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields that come later, and types that differ between parts, end in one column each; nothing
    is rounded."""
    monkeypatch.setattr("standpipe.replay.files.REPLAY_GROUP_ROWS", 4)
    values: list[object] = [1, 2, 2.5, 2**53 + 1, True, "text", 3, b"\x01"]
    for n, value in enumerate(values):
        events = [Event("m", 1_000 + n, {"n": n, "v": value, f"f{n}": float(n)})] * 4
        await send(stream, events)
    for name in ("x.parquet", "x.csv"):
        await replay.to_file(Reader(stream), tmp_path / name)
    table = pq.read_table(tmp_path / "x.parquet")
    texts = [b"1", b"2", b"2.5", str(2**53 + 1).encode(), b"true", b"text", b"3", b"\x01"]
    # Those of a part that were floats together read as such.
    texts[:2] = [table.column("v")[0].as_py(), table.column("v")[4].as_py()]
    assert table.column("v").to_pylist() == [text for text in texts for _ in range(4)]
    assert {float(text) for text in texts[:2]} == {1.0, 2.0}
    assert table.column("f7").to_pylist() == [None] * 28 + [7.0] * 4
    rows = csv.read_csv(tmp_path / "x.csv")
    assert rows.column("n").to_pylist() == [n for n in range(8) for _ in range(4)]
    assert sorted(os.listdir(tmp_path)) == ["x.csv", "x.parquet"]


@pytest.mark.parametrize("suffix", ["ndjson", "csv", "parquet"])
async def test_files_can_be_sent_again(
    stream: Stream, wire: Server, stream_name: str, tmp_path: Path, suffix: str
) -> None:
    """What a replay has written, `standpipe send` reads: the same events again."""
    events = make_events(600)
    await send(stream, events)
    target = tmp_path / f"x.{suffix}"
    await replay.to_file(Reader(stream), target)
    ids = {"shard", "entry_ms", "entry_seq", "index"}
    options = None if suffix == "ndjson" else replay_options(ids)
    found = [event for chunk in read_events(target, suffix, options) for event in chunk.events]
    assert found == events


def replay_options(leave_out: set[str]) -> object:
    from standpipe.formats import ReadOptions

    return ReadOptions(leave_out=frozenset(leave_out))


async def test_ndjson_keeps_types(stream: Stream, tmp_path: Path) -> None:
    """A line has each value as it was sent."""
    await send(stream, MIXED)
    await replay.to_file(Reader(stream), tmp_path / "x.ndjson")
    (chunk,) = [c for c in read_events(tmp_path / "x.ndjson", "ndjson") if c.events]
    assert chunk.events == MIXED
    assert [type(e.fields.get("volts")) for e in chunk.events[:2]] == [int, float]


async def test_nothing_to_write(stream: Stream, tmp_path: Path) -> None:
    """A replay without an event makes a file all the same."""
    await send(stream, MIXED)
    for suffix in ("parquet", "csv", "ndjson"):
        reader = Reader(stream, keys=["nobody"])
        done = await replay.to_file(reader, tmp_path / f"x.{suffix}")
        assert (done.events, done.is_complete) == (0, True)
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 0


async def test_files_that_cannot_be(stream: Stream, tmp_path: Path) -> None:
    """A file that is there is left alone unless told otherwise; one that cannot be written, or is
    of no format, is an error, and none is left half-written."""
    await send(stream, MIXED)
    there = tmp_path / "x.ndjson"
    there.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        await replay.to_file(Reader(stream), there)
    assert there.read_text() == "mine"
    await replay.to_file(Reader(stream), there, overwrite=True)
    assert there.read_text().count("\n") == 4
    with pytest.raises(ConfigError, match="does not say"):
        await replay.to_file(Reader(stream), tmp_path / "x.xlsx")
    with pytest.raises(ConfigError, match="format is"):
        await replay.to_file(Reader(stream), tmp_path / "x", format="xlsx")
    with pytest.raises(ReplayFileError):
        await replay.to_file(Reader(stream), tmp_path / "no" / "x.parquet")

    def fails(done: replay.Replayed) -> None:
        raise KeyError("cut")

    for suffix in ("parquet", "ndjson", "csv"):
        with pytest.raises(KeyError):
            await replay.to_file(Reader(stream), tmp_path / f"y.{suffix}", on_progress=fails)
    assert os.listdir(tmp_path) == ["x.ndjson"]


async def test_a_stopped_file(stream: Stream, tmp_path: Path) -> None:
    """A file that was to have an end is not made when it is stopped before; one that follows is
    complete then."""
    await send(stream, make_events(50), codec="plain")
    stop = asyncio.Event()
    stop.set()
    done = await replay.to_file(Reader(stream), tmp_path / "x.parquet", stop=stop)
    assert not done.is_complete
    assert os.listdir(tmp_path) == []
    stop.clear()
    done = await replay.to_file(
        Reader(stream, follow=True),
        tmp_path / "x.parquet",
        stop=stop,
        on_progress=lambda _: stop.set(),
    )
    assert done.is_complete
    assert pq.read_table(tmp_path / "x.parquet").column("n").to_pylist() == list(range(50))


# --- another stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_into_another_stream(
    server: TestServer, wire: Server, stream_name: str, tmp_path: Path, codec: str
) -> None:
    """Every event of the archive and the live stream arrives in the other one, in its key's order;
    nothing of the replay is left on the server."""
    archive = Archive(tmp_path)
    async with (
        Stream(stream_name, wire, shards=3) as source,
        Stream(stream_name + "-copy", wire, shards=2, codec=codec) as target,
    ):
        await send(source, make_events(1_500))
        await Archiver(source, archive).run()
        for key in source.keys:
            server.command("XTRIM", key, "MAXLEN", 0)
        await send(source, make_events(500, first=1_500))
        done = await replay.to_stream(Reader(source, archive=archive), target, name="copy")
        assert (done.events, done.refused, done.is_complete) == (2_000, 0, True)
        assert await events_in(target) == make_events(2_000)
        for shard in await events_of(target):
            by_key: dict[str, list[int]] = {}
            for _, event in shard:
                by_key.setdefault(event.key, []).append(event.fields["n"])
            assert all(found == sorted(found) for found in by_key.values())
        left = [key for key in server.command("KEYS", f"*{stream_name}-copy*") if ":seq:" in key]
        assert left == []
        assert not server.command("EXISTS", side_key(target.keys[0], "replay:copy"))


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_a_restart_goes_on_without_doubles(
    server: TestServer,
    wire: Server,
    stream_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
) -> None:
    """A replay that dies at any point of a step, in the middle of sending it too, goes on when it
    is started again: each event arrives once. What was archived and trimmed meanwhile changes
    nothing."""
    monkeypatch.setattr(streams, "COPY_STEP_EVENTS", 200)
    monkeypatch.setattr(streams, "COPY_QUEUE_BATCHES", 2)
    archive = Archive(tmp_path)
    async with (
        Stream(stream_name, wire, shards=2) as source,
        Stream(stream_name + "-copy", wire, shards=2, codec=codec) as target,
    ):
        await send(source, make_events(8_000), codec="plain")
        copying = streams._Copying
        deaths = 0
        # Where it dies: before a note, after it, after half a step, after all of it.
        for place in ("_write", "_forget", "half", "all") * 2:
            deaths += 1
            with monkeypatch.context() as patch:
                patch.setattr(copying, *dying(copying, place, after=deaths % 3 + 1))
                with pytest.raises(Died):
                    await replay.to_stream(Reader(source, archive=archive), target, name="copy")
            await Archiver(source, archive).run()
            for key in source.keys:
                server.command("XTRIM", key, "MAXLEN", "~", 100)
        done = await replay.to_stream(Reader(source, archive=archive), target, name="copy")
        assert done.is_complete
        assert await events_in(target) == make_events(8_000)


def dying(copying: type, place: str, *, after: int) -> tuple[str, Callable[..., object]]:
    """A method of a replay that dies the so-manieth time."""
    name = place if place.startswith("_") else "_put"
    method = getattr(copying, name)
    left = after

    async def dies(self: object, *args: object) -> object:
        nonlocal left
        left -= 1
        if left:
            return await method(self, *args)
        if place == "half":
            events, *others = args
            # The blocks that had been written when it died are the first ones of the step.
            producer = Producer(
                self._target,
                codec=others[1],
                on_full="raise",
                buffer_bytes_max=2**62,
                buffer_events_max=2**62,
                event_bytes_max=2**26,
                producer_id=others[0],
            )
            async with producer:
                receipts = await producer.send_many(events)
                await receipts
            raise Died
        if place in ("all", "_forget"):
            await method(self, *args)
        raise Died

    return name, dies


async def test_following_into_another_stream(wire: Server, stream_name: str) -> None:
    """A replay that follows keeps the other stream up, and goes on behind what it has sent when it
    is stopped and started again, whatever --from said."""
    async with (
        Stream(stream_name, wire, shards=2) as source,
        Stream(stream_name + "-copy", wire) as target,
    ):
        for first in (0, 400):
            await send(source, make_events(200, first=first))
            stop = asyncio.Event()
            reader = Reader(source, follow=True)
            running = asyncio.create_task(
                replay.to_stream(reader, target, name="mirror", stop=stop)
            )

            async def arrived(count: int) -> bool:
                return len(await events_in(target)) == count

            await eventually(lambda count=first + 200: arrived(count))
            await send(source, make_events(200, first=first + 200))
            await eventually(lambda count=first + 400: arrived(count))
            stop.set()
            await asyncio.wait_for(running, 20)
        assert await events_in(target) == make_events(800)


async def test_notes_that_do_not_fit(
    server: TestServer, stream: Stream, wire: Server, stream_name: str
) -> None:
    """A name that stands for another replay, another process that goes on, a step that is no more
    what it was, and one that is too old to be remembered, are errors."""
    await send(stream, make_events(100), codec="plain")
    async with Stream(stream_name + "-copy", wire) as target:
        with pytest.raises(ConfigError, match="into itself"):
            await replay.to_stream(Reader(stream), stream)
        key = side_key(target.keys[0], "replay:x")
        server.command("SET", key, "{}")
        with pytest.raises(ConfigError, match="cannot be read"):
            await replay.to_stream(Reader(stream), target, name="x")
        note = {
            "source": "other redis://x", "start": "0-0/0", "end": "5-0/0", "producer": "p", "at": 1,
        }  # fmt: skip
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ConfigError, match="is one of other"):
            await replay.to_stream(Reader(stream), target, name="x")
        ids = [entry_id for entry_id, _ in server.command("XRANGE", stream_name, "-", "+")]
        note |= {
            "source": f"{stream_name} {wire.address.shown}",
            "end": f"{ids[-1]}/0",
            "step": {"0": f"{ids[49]}/0"},
            "events": 60,
            "at": 2**45,
        }
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ReplayLostError, match=r"of the 60 events .*, 50 are kept"):
            await replay.to_stream(Reader(stream), target, name="x")
        note |= {"events": 50, "at": 2**40 - SEQUENCE_TTL_MS}
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ReplayLostError, match="more than a day ago"):
            await replay.to_stream(Reader(stream), target, name="x")
        server.command("DEL", key)
        assert await events_in(target) == []

        def other_process(done: replay.Replayed) -> None:
            server.command("SET", key, json.dumps(note))

        with pytest.raises(ReplayInUseError):
            await replay.to_stream(Reader(stream), target, name="x", on_progress=other_process)


async def test_events_that_the_other_stream_cannot_take(
    server: TestServer, stream: Stream, wire: Server, stream_name: str
) -> None:
    """An event that no codec carries is left out, counted and said; the others arrive. Fields of
    mixed types arrive in a stream of columns as rows."""
    events = [Event("m", 5, {"n": 0, "v": 1}), Event("m", 6, {"n": 1, "v": "one"})]
    await send(stream, events)
    async with Stream(stream_name + "-copy", wire, codec="columns") as target:
        done = await replay.to_stream(Reader(stream), target)
        assert (done.events, done.refused) == (2, 0)
        assert await events_in(target) == events
    broken = [*events, Event("m", 7, {"n": 2, "v": float("nan")})]
    server.command("DEL", stream_name)
    server.command("XADD", stream_name, "*", *block_fields("rows", 3, encode_rows(broken)))
    async with Stream(stream_name + "-other", wire) as target:
        done = await replay.to_stream(Reader(stream), target)
        assert (done.events, done.refused) == (2, 1)
        assert await events_in(target) == events


# --- the command ---------------------------------------------------------------------------------


def facts(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_the_command(
    server: TestServer, wire: Server, stream_name: str, tmp_path: Path
) -> None:
    """`standpipe replay` writes files and streams, says what it did, and finds the archive."""
    async with Stream(stream_name, wire, shards=2) as stream:
        await send(stream, make_events(300))
        await Archiver(stream, Archive(tmp_path / "archive")).run()
        for key in stream.keys:
            server.command("XTRIM", key, "MAXLEN", 0)
        await send(stream, make_events(100, first=300))
    archive = str(tmp_path / "archive")
    loop = asyncio.get_running_loop()

    async def command(*args: str) -> subprocess.CompletedProcess[str]:
        line = ("replay", stream_name, *args)
        return await loop.run_in_executor(None, lambda: run(*line, url=server.url, cwd=tmp_path))

    done = await command("--to", "x.parquet", "--archive", archive)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("replayed 400 events to x.parquet in ")
    table = pq.read_table(tmp_path / "x.parquet")
    assert sorted(table.column("n").to_pylist()) == list(range(400))
    again = await command("--to", "x.parquet")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    found = facts(await command("--to", "x.csv", "--key", "meter-3", "--field", "n", "--json"))
    assert (found["events"], found["gaps"], found["is_complete"]) == (10, 0, True)
    done = await command("--archive", archive, "--speed", "1000000")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["fields"]["n"] for line in lines) == list(range(400))
    assert "replayed 400 events to -" in done.stderr
    found = facts(
        await command("--to", f"stream:{stream_name}-copy", "--archive", archive, "--json")
    )
    assert found["events"] == 400
    async with Stream(f"{stream_name}-copy", wire) as copy:
        assert await events_in(copy) == make_events(400)
    assert (await command("--speed", "fast")).returncode == 2
    assert (await command("--to", "stream:")).returncode == 2
    if server.name != "redis-6.2":
        old = await command("--from", "2020-01-01")
        assert old.returncode == 1
        assert "has nothing as old as 2020-01-01T00:00:00.000Z" in old.stderr
        assert "hint: It is archived up to" in old.stderr
        assert (await command("--from", "2020-01-01", "--from-oldest")).returncode == 0


async def test_the_command_makes_a_group(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """`--to group:NAME` makes a group that begins there, and says so where that is not kept."""
    for n in range(10):
        server.command("XADD", stream_name, f"{100_000 + n}-0", "n", n)
    loop = asyncio.get_running_loop()

    async def command(*args: str) -> subprocess.CompletedProcess[str]:
        return await loop.run_in_executor(
            None, lambda: run("replay", stream_name, *args, url=server.url)
        )

    found = facts(await command("--from", "100004-0", "--to", "group:again", "--json"))
    assert found["shards"][0]["outcome"] == "created"
    read = ("XREADGROUP", "GROUP", "again", "w", "COUNT", 1, "STREAMS", stream_name, ">")
    ((_, ((entry_id, _),)),) = server.command(*read)
    assert entry_id == "100004-0"
    assert (await command("--to", "group:again")).returncode == 1
    server.command("XTRIM", stream_name, "MAXLEN", 3)
    if server.name != "redis-6.2":
        done = await command("--from", "100004-0", "--to", "group:other")
        assert done.returncode == 1
        assert "it begins at" in done.stderr


async def test_the_command_is_stopped(
    server: TestServer,
    wire: Server,
    stream_name: str,
    tmp_path: Path,
    started: Callable[..., object],
) -> None:
    """SIGTERM ends a replay that follows after what is in progress: its file is complete."""
    async with Stream(stream_name, wire) as stream:
        await send(stream, make_events(100))
        process = started(
            "replay", stream_name, "--follow", "--to", "x.ndjson", "--json",
            url=server.url, cwd=tmp_path,
        )  # fmt: skip
        await eventually(lambda: " cmd=xread " in server.cli("CLIENT", "LIST"), 20)
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 0, err
        assert json.loads(out)["events"] == 100
        assert (tmp_path / "x.ndjson").read_text().count("\n") == 100
