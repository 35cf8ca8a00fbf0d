"""Replay into handlers, files and groups, and the command."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from typer.testing import CliRunner

from standpipe import Event, Reader, Stream, replay
from standpipe.archive import Archive, Archiver
from standpipe.cli import app_with
from standpipe.errors import ConfigError, ReplayFileError
from standpipe.formats import ReadOptions, read_events
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.commands import run
from tests.servers.entries import events_in, make_events, numbers
from tests.servers.fleet import TestServer
from tests.servers.working import send

MIXED = [
    Event("a", 1_700_000_000_000, {"n": 0, "volts": 230, "note": "ok"}),
    Event("b", 1_700_000_000_001, {"n": 1, "volts": 230.5}),
    Event(None, 1_700_000_000_002, {"n": 2, "raw": b"\x00\xff", "key": "own", "time": 5}),
    Event("a", 1_700_000_000_003, {"n": 3, "note": None, "on": True}),
]


@pytest.fixture
def server_name() -> str:
    """What is written does not depend on the server; test_replay.py reads from all of them."""
    return "valkey-9.1"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert table.column("_raw").to_pylist()[2] == b"\x00\xff"
    assert names_in(tmp_path) == ["x.parquet"]


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
    assert names_in(tmp_path) == ["x.csv", "x.parquet"]


@pytest.mark.parametrize("suffix", ["ndjson", "csv", "parquet"])
async def test_files_can_be_sent_again(
    stream: Stream, wire: Server, stream_name: str, tmp_path: Path, suffix: str
) -> None:
    """What a replay has written, `standpipe send` reads: the same events again."""
    events = make_events(600)
    await send(stream, events)
    target = tmp_path / f"x.{suffix}"
    await replay.to_file(Reader(stream), target)
    ids = frozenset({"shard", "entry_ms", "entry_seq", "index"})
    options = None if suffix == "ndjson" else ReadOptions(leave_out=ids)
    found = [event for chunk in read_events(target, suffix, options) for event in chunk.events]
    assert found == events


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
    assert names_in(tmp_path) == ["x.ndjson"]


async def test_a_stopped_file(stream: Stream, tmp_path: Path) -> None:
    """A file that was to have an end is not made when it is stopped before; one that follows is
    complete then."""
    await send(stream, make_events(50), codec="plain")
    stop = asyncio.Event()
    stop.set()
    done = await replay.to_file(Reader(stream), tmp_path / "x.parquet", stop=stop)
    assert not done.is_complete
    assert names_in(tmp_path) == []
    stop.clear()
    done = await replay.to_file(
        Reader(stream, follow=True),
        tmp_path / "x.parquet",
        stop=stop,
        on_progress=lambda _: stop.set(),
    )
    assert done.is_complete
    assert pq.read_table(tmp_path / "x.parquet").column("n").to_pylist() == list(range(50))


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
    old = await command("--from", "2020-01-01")
    assert old.returncode == 1
    assert "has nothing as old as 2020-01-01T00:00:00.000Z" in old.stderr
    assert "hint: It is archived up to" in old.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--speed", "fast"),
        ("--to", "stream:"),
        ("--to", "x.doc"),
        ("--pace-by", "x"),
        ("--follow", "--until", "-1h"),
    ],
)
def test_wrong_usage(server: TestServer, wrong: tuple[str, ...], stream_name: str) -> None:
    """What makes no sense is wrong usage, with a hint."""
    server.command("XADD", stream_name, "*", "n", 1)
    done = CliRunner().invoke(app_with(), ["replay", stream_name, "--url", server.url, *wrong])
    assert done.exit_code == 2
    assert "hint: " in done.stderr


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
