"""Commands typed by hand, and a program in another language, work on the same stream as ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from standpipe import Context, Event, Producer, Reader, Stream, Worker
from standpipe.keyspace import partition, shard_keys
from standpipe.limits import INTEGER_MAX, INTEGER_MIN
from standpipe.testing import Ledger, check
from tests.conditions import eventually
from tests.servers.entries import TIME, make_events
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]
STREAM, GROUP = "power_grid_stream", "monitoring_group"


async def handled_by_worker(stream: Stream, group: str, count: int) -> list[Event]:
    """What a worker of the group is given, once it has acknowledged so many events."""
    worker = Worker(stream, group)
    seen: list[Event] = []

    @worker.each
    async def keep(event: Event, context: Context) -> None:
        seen.append(event)

    running = asyncio.create_task(worker.run())
    try:
        await eventually(lambda: len(seen) >= count)
    finally:
        worker.stop()
        await running
    return seen


# --- typed by hand -------------------------------------------------------------------------------


async def test_commands_of_the_manual(server_name: str, own_server: OwnServer) -> None:
    """The manual's commands, as it gives them, and our producer, reader and worker share one stream
    and one group."""
    server = own_server(server_name)

    def typed(line: str) -> str:
        return server.cli(*line.split())

    assert typed(f"XGROUP CREATE {STREAM} {GROUP} $ MKSTREAM") == "OK"
    by_hand = typed(f"XADD {STREAM} * volts 230.5 amps 1.2")
    async with Stream(STREAM, server.url, codec="plain") as stream:
        async with Producer(stream) as producer:
            ours = await (await producer.send(Event("inverter-7", TIME, {"volts": 229.0})))
        assert ours is not None

        # Ours reads what was typed.
        events = [event async for event in Reader(stream)]
        assert events[0] == Event(None, int(by_hand.split("-")[0]), {"volts": 230.5, "amps": 1.2})
        assert events[1] == Event("inverter-7", TIME, {"volts": 229.0})

        # What is typed reads ours.
        read = f"XREADGROUP GROUP {GROUP} worker_01 COUNT 10 STREAMS {STREAM} >"
        assert typed(read).splitlines() == [
            STREAM, by_hand, "volts", "230.5", "amps", "1.2",
            ours.entry, "key", "inverter-7", "time", str(TIME), "volts", "229.0",
        ]  # fmt: skip
        assert typed(f"XPENDING {STREAM} {GROUP}").splitlines()[0] == "2"
        assert typed(f"XACK {STREAM} {GROUP} {by_hand} {ours.entry}") == "2"
        assert typed(f"XPENDING {STREAM} {GROUP}").splitlines()[0] == "0"

        # The group goes on with a worker of ours, and leaves nothing behind.
        typed(f"XADD {STREAM} MAXLEN ~ 10000 * volts 231 amps 1.3")
        (event,) = await handled_by_worker(stream, GROUP, 1)
        assert event.fields == {"volts": 231, "amps": 1.3}
        assert typed(f"XPENDING {STREAM} {GROUP}").splitlines()[0] == "0"
        assert f"length\n{3}" in typed(f"XINFO STREAM {STREAM}")


async def test_taking_over_by_hand(server: TestServer, stream_name: str) -> None:
    """What a consumer that was typed in has left pending is found with XPENDING, given to a worker
    of ours with XCLAIM, and handled."""
    entry_id = server.cli("XADD", stream_name, "*", "volts", 230.5)
    server.cli("XGROUP", "CREATE", stream_name, GROUP, 0)
    server.cli("XREADGROUP", "GROUP", GROUP, "worker_01", "STREAMS", stream_name, ">")
    pending = server.command("XPENDING", stream_name, GROUP, "-", "+", 10)
    assert [row[:2] for row in pending] == [[entry_id, "worker_01"]]
    server.cli("XCLAIM", stream_name, GROUP, "worker_02", 0, entry_id)
    async with Stream(stream_name, server.url) as stream:
        worker = Worker(stream, GROUP, name="worker_02")
        seen: list[int] = []

        @worker.each
        async def keep(event: Event, context: Context) -> None:
            seen.append(context.deliveries)

        running = asyncio.create_task(worker.run())
        await eventually(lambda: seen)
        worker.stop()
        await running
    assert len(seen) == 1
    assert server.command("XPENDING", stream_name, GROUP)[0] == 0


# --- from Node.js --------------------------------------------------------------------------------

Node = Callable[..., Any]


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tests/interop with its packages installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("interop") / "interop"
    shutil.copytree(Path(__file__).parents[1] / "interop", folder)
    install = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent")
    subprocess.run(install, cwd=folder, check=True, timeout=120)
    return folder


@pytest.fixture
def node(node_folder: Path) -> Node:
    """``node(command, *arguments)``: run the client there; what it prints."""

    def run(*arguments: object) -> Any:
        said = subprocess.run(
            ["node", "client.mjs", *map(str, arguments)],
            cwd=node_folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return json.loads(said.stdout)

    return run


async def test_node_writes_plain(server: TestServer, stream_name: str, node: Node) -> None:
    """Plain entries that node-redis adds are events for our reader and our worker."""
    ids = node("add", server.url, stream_name, 20)
    expected = [Event(f"node-{n % 3}", TIME + n, {"n": n, "volts": 230.5}) for n in range(20)]
    async with Stream(stream_name, server.url) as stream:
        batches = [batch async for batch in Reader(stream).batches()]
        assert [event for batch in batches for event in batch] == expected
        assert [event_id.entry for batch in batches for event_id in batch.ids] == ids
        assert await handled_by_worker(stream, "g", 20) == expected
    assert server.command("XPENDING", stream_name, "g")[0] == 0


async def test_node_reads_plain(server: TestServer, stream_name: str, node: Node) -> None:
    """Plain entries of ours are read by node-redis as a member of a group, and acknowledged."""
    async with (
        Stream(stream_name, server.url, codec="plain") as stream,
        Producer(stream) as producer,
    ):
        ids = await (await producer.send_many(make_events(25)))
    handled = node("work", server.url, stream_name, "node_group", 25)
    assert handled == [
        {"id": event_id.entry, "key": event.key, "time": str(event.time)}
        | {"n": str(event.fields["n"]), "volts": "230.5"}
        for event_id, event in zip(ids, make_events(25), strict=True)
        if event_id is not None
    ]
    assert server.command("XPENDING", stream_name, "node_group")[0] == 0


async def test_node_reads_rows(server: TestServer, stream_name: str, node: Node) -> None:
    """Rows blocks of ours, compressed or not, are decoded in JavaScript to the same events, with
    values of every type, under the same IDs."""
    fields = {
        "volts": 230.5, "tiny": 5e-324, "phase": 3, "most": INTEGER_MAX, "least": INTEGER_MIN,
        "state": "größer ☂", "ok": True, "raw": bytes(range(256)), "gap": None,
    }  # fmt: skip
    events = [Event("meter-ü", TIME, fields), *make_events(499)]
    async with Stream(stream_name, server.url, codec="rows") as stream:
        for compress in (True, False):
            async with Producer(stream, compress=compress) as producer:
                await (await producer.send_many(events))
        ids = [str(i) async for batch in Reader(stream).batches() for i in batch.ids]
    found = node("read", server.url, stream_name)
    assert [event["id"] for event in found] == ids
    assert {event["isZstd"] for event in found[:500]} == {True}
    assert {event["isZstd"] for event in found[500:]} == {False}
    for first in (found[0], found[500]):
        assert (first["key"], first["time"]) == ("meter-ü", TIME)
        assert first["fields"] == fields | {
            "most": str(INTEGER_MAX),
            "least": str(INTEGER_MIN),
            "raw": {"hex": bytes(range(256)).hex()},
        }
    read = [Event(e["key"], e["time"], e["fields"]) for e in found[1:500]]
    assert read == make_events(499)


async def test_node_writes_rows(server: TestServer, stream_name: str, node: Node) -> None:
    """A rows block that JavaScript writes after the documentation is read by ours."""
    entry_id = node("add-rows", server.url, stream_name, 100)
    async with Stream(stream_name, server.url) as stream:
        (batch,) = [batch async for batch in Reader(stream).batches()]
    assert batch.ids[99].entry == entry_id and batch.ids[99].index == 99
    more = {"volts": 230.5, "state": "on", "ok": True, "gap": None}
    assert list(batch) == [Event(f"node-{n % 3}", TIME + n, {"n": n} | more) for n in range(100)]


async def test_node_keeps_a_ledger(
    server: TestServer, stream_name: str, node: Node, tmp_path: Path
) -> None:
    """A program in JavaScript sends events that Python numbered, adds its outcomes to the log, and
    is checked like any producer."""
    log, lines = tmp_path / "sends.log", tmp_path / "events.ndjson"
    with Ledger(log) as ledger:
        made = [json.dumps(event.to_mapping()) for event in ledger.events(100)]
    lines.write_text("\n".join(made) + "\n")
    assert node("ledger", server.url, stream_name, lines, log) == 100
    report = await check(Stream(stream_name, server.url), log)
    report.raise_unless_sound()
    assert (report.acknowledged, report.failed, report.unchecked) == (90, 10, 0)


def test_node_finds_the_shards(node: Node) -> None:
    """The keys of the shards and each event's shard are found in JavaScript by the written rule."""
    keys = [f"meter-{n}" for n in range(50)] + ["größer ☂"]
    for shards in (1, 3, 8, 64):
        found = node("places", STREAM, shards, *keys)
        assert found["shardKeys"] == list(shard_keys(STREAM, shards))
        assert found["homes"] == [partition(key, shards) for key in keys]
