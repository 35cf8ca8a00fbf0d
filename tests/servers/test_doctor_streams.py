"""The doctor finds what is wrong with streams and groups, and tells it from what is well."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from standpipe import Event, Producer, Reject, Stream, Worker
from standpipe.clock import now_ms
from standpipe.doctor import Finding, streams
from standpipe.doctor.history import grown
from standpipe.doctor.run import CHECKS
from standpipe.doctor.streams import StreamFacts, check_stream, find_streams, read_stream
from standpipe.doctor.thresholds import DOCTOR_SAMPLES
from standpipe.keyspace import shard_keys
from standpipe.wire import Server
from tests.conditions import eventually
from tests.doctoring import PROVOKED, advised, of, only, provokes, run_advised
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.moving import move_slot
from tests.servers.sight import Sight
from tests.servers.working import running

OwnServer = Callable[..., TestServer]
WINDOW_MS = 400
AT_ONCE_MS = 20
"""Where nothing is judged by how it changes."""


async def read(server: TestServer | TestCluster, name: str, window_ms: int = WINDOW_MS) -> Any:
    async with Stream(name, server.url) as stream:
        return await read_stream(stream, window_ms, DOCTOR_SAMPLES)


async def look(server: TestServer, name: str, window_ms: int = WINDOW_MS) -> list[Finding]:
    return list(check_stream(await read(server, name, window_ms), None))


def add(server: TestServer, key: str, count: int, at: int | None = None, **fields: object) -> None:
    """Plain entries, of so many devices; with a time their IDs are of that time."""
    first = now_ms() if at is None else at
    for number in range(count):
        entry_id = "*" if at is None else f"{first + number}-0"
        words = [word for pair in fields.items() for word in pair]
        server.command("XADD", key, entry_id, "key", f"meter-{number % 20}", *words, "volts", "1")


async def watch(server: TestServer, name: str, work: Callable[[], None]) -> list[Finding]:
    """Look at a stream while something is done to it again and again."""
    reading = asyncio.create_task(read(server, name, window_ms=1_000))
    while not reading.done():
        await asyncio.to_thread(work)
    facts: StreamFacts = await reading
    return list(check_stream(facts, None))


async def test_sound_stream(server: TestServer, stream_name: str) -> None:
    """A stream with a limit, whose group has acknowledged everything, has no findings."""
    async with Stream(stream_name, server.url, max_len=10_000, codec="plain") as stream:
        server.command("XGROUP", "CREATE", stream_name, "g", "0", "MKSTREAM")
        async with Producer(stream) as producer:
            await (await producer.send_many([{"key": f"m{n}", "volts": 1.0} for n in range(50)]))
    for entry_id, _ in server.command("XREADGROUP", "GROUP", "g", "w", "STREAMS", stream_name, ">")[
        0
    ][1]:
        server.command("XACK", stream_name, "g", entry_id)
    assert await look(server, stream_name) == []


@provokes(streams.LAG)
async def test_falling_behind(server: TestServer, stream_name: str) -> None:
    """A group whose lag grows is a warning, one that nobody serves is critical, and one that
    catches up is well, however large its lag."""
    add(server, stream_name, 300)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    read_one = ("XREADGROUP", "GROUP", "g", "w", "NOACK", "COUNT", 1, "STREAMS", stream_name, ">")

    def fall_behind() -> None:
        server.command(*read_one)
        add(server, stream_name, 4)

    findings = await watch(server, stream_name, fall_behind)
    found = only(streams.LAG, findings)
    assert found.level == "warning" and "its backlog grows" in found.evidence

    def catch_up() -> None:
        server.command(*read_one)

    if server.name != "redis-6.2":
        # That does not say how large a lag is: there the age of the oldest entry speaks, and these
        # were all added within a moment.
        assert of(streams.LAG, await watch(server, stream_name, catch_up)) == []

    add(server, stream_name, 4)
    found = only(streams.LAG, await look(server, stream_name))
    assert found.level == "critical" and "stands still" in found.evidence


@provokes(streams.PENDING_GROWTH)
async def test_growing_pending(server: TestServer, stream_name: str) -> None:
    """Entries that are taken and not acknowledged, more and more of them."""
    add(server, stream_name, 1_000)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    take = ("XREADGROUP", "GROUP", "g", "w", "COUNT", 2, "STREAMS", stream_name, ">")
    findings = await watch(server, stream_name, lambda: server.command(*take))
    assert "pending" in only(streams.PENDING_GROWTH, findings).evidence
    assert of(streams.PENDING_GROWTH, await look(server, stream_name)) == []


@provokes(streams.PENDING_AGE, streams.DEAD_CONSUMER, streams.UNREAD_GROUP)
async def test_forgotten_entries(own_server: OwnServer, server_name: str, tmp_path: Path) -> None:
    """Entries that a dead worker holds, and a group that nobody reads any more, are named with what
    they hold and what that pins, and gone when the commands were run that the findings give. The
    server's own clock goes two hours on."""
    sight = Sight(tmp_path)
    target = own_server(server_name, inside=sight.inside)
    add(target, "grid", 40)
    for group in ("g", "unread"):
        target.command("XGROUP", "CREATE", "grid", group, "0")
    take = ("XREADGROUP", "GROUP", "g", "gone", "COUNT", 3, "STREAMS", "grid", ">")
    assert len(target.command(*take)[0][1]) == 3
    found = await look(target, "grid", AT_ONCE_MS)
    assert of(streams.DEAD_CONSUMER, found) == of(streams.PENDING_AGE, found) == []
    unread = only(streams.UNREAD_GROUP, found)
    assert "group unread: lag 40, no consumers; it pins about" in unread.evidence

    sight.move_clock(2 * 3_600_000)
    found = await look(target, "grid", AT_ONCE_MS)
    assert "pending since 7,2" in only(streams.PENDING_AGE, found).evidence
    dead = only(streams.DEAD_CONSUMER, found)
    assert "gone holds 3 entries, idle for 7,2" in dead.evidence
    texts = [each.evidence for each in of(streams.UNREAD_GROUP, found)]
    lag = "unknown" if server_name == "redis-6.2" else "37"
    assert any(f"group g: lag {lag}, 1 consumers, all gone" in text for text in texts), texts

    (delete,), (claim,) = advised(unread), advised(dead)
    target.command("XREADGROUP", "GROUP", "g", "new", "COUNT", 1, "STREAMS", "grid", ">")
    for words in (delete, [word.replace("…", "new") for word in claim]):
        await run_advised(words, target.url)
    found = await look(target, "grid", AT_ONCE_MS)
    assert of(streams.DEAD_CONSUMER, found) == of(streams.UNREAD_GROUP, found) == []
    ((shown,),) = map(advised, of(streams.PENDING_AGE, found))
    entries = json.loads(await run_advised([*shown, "--json"], target.url))["entries"]
    assert len(entries) == 4
    await run_advised(["ack", "grid", "g", *(entry["id"] for entry in entries)], target.url)
    assert of(streams.PENDING_AGE, await look(target, "grid", AT_ONCE_MS)) == []


@provokes(streams.LOST)
async def test_lost(server: TestServer, stream_name: str) -> None:
    """What a ring took from a group is counted: a warning while it grows, else a note."""
    server.command("XGROUP", "CREATE", stream_name, "g", "0", "MKSTREAM")
    async with (
        Stream(stream_name, server.url, max_len=100, when_full="ring", codec="plain") as stream,
        Producer(stream) as producer,
    ):
        before = (await read(server, stream_name, AT_ONCE_MS)).counters()
        assert before["lost"] == 0
        for _ in range(4):
            await (await producer.send_many([{"key": f"m{n}", "v": n} for n in range(200)]))
    facts = await read(server, stream_name, AT_ONCE_MS)
    lost = facts.counters()["lost"]
    assert lost > 0
    found = only(streams.LOST, check_stream(facts, grown(before, facts.counters())))
    assert found.level == "warning" and f"{lost:,} since the last look" in found.evidence
    before, facts = facts.counters(), await read(server, stream_name, AT_ONCE_MS)
    assert only(streams.LOST, check_stream(facts, grown(before, facts.counters()))).level == "note"
    assert only(streams.LOST, check_stream(facts, None)).level == "note"


@provokes(streams.DEAD_LETTERS)
async def test_dead_letters(server: TestServer, stream_name: str) -> None:
    """A letter that a worker gave up on is told; requeued by the command that the finding gives,
    and handled, it is gone."""
    is_mended = False

    def handle(event: Event) -> None:
        if not is_mended:
            raise Reject("no such meter")

    async with Stream(stream_name, server.url) as stream, Producer(stream) as producer:
        worker = Worker(stream, "g")
        worker.each(handle)
        async with running(worker):
            assert of(streams.DEAD_LETTERS, await look(server, stream_name, AT_ONCE_MS)) == []
            await (await producer.send({"key": "m1", "v": 1}))

            async def is_found() -> list[Finding]:
                return of(streams.DEAD_LETTERS, await look(server, stream_name, AT_ONCE_MS))

            (found,) = await eventually(is_found, 30, what="it was given up")
            assert "1 dead letters" in found.evidence
            listed, requeued = advised(found)
            assert "no such meter" in await run_advised(listed, server.url)
            is_mended = True
            await run_advised(requeued, server.url)

            async def is_gone() -> bool:
                return not await is_found()

            await eventually(is_gone, 30, what="it is handled")


@provokes(streams.NO_LIMIT)
async def test_no_limit(server: TestServer, stream_name: str) -> None:
    """A stream that may grow for ever is told, until it has a limit."""
    add(server, stream_name, 1)
    found = only(streams.NO_LIMIT, await look(server, stream_name, AT_ONCE_MS))
    assert found.level == "note"
    (words,) = advised(found)
    await run_advised(words, server.url)
    assert of(streams.NO_LIMIT, await look(server, stream_name, AT_ONCE_MS)) == []


@provokes(streams.HOT_SHARD)
async def test_hot_shard(server: TestServer, stream_name: str) -> None:
    """One key for everything fills one shard; many keys fill all."""
    async with (
        Stream(stream_name, server.url, shards=4, codec="plain", max_len=100_000) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many([{"key": "site-1", "v": n} for n in range(200)]))
        assert (
            "the mean of all is 50"
            in only(streams.HOT_SHARD, await look(server, stream_name)).evidence
        )
        await (await producer.send_many([{"key": f"m{n}", "v": n} for n in range(2_000)]))
        assert of(streams.HOT_SHARD, await look(server, stream_name)) == []


@provokes(streams.HOT_KEY)
@pytest.mark.parametrize("codec", ["plain", "rows"])
async def test_hot_key(server: TestServer, stream_name: str, codec: str) -> None:
    """A device that sends more than a quarter of everything is named, in blocks as in entries."""
    events = [{"key": "pump-7" if n % 2 else f"m{n}", "v": n} for n in range(200)]
    async with (
        Stream(stream_name, server.url, codec=codec) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(events))
        found = only(streams.HOT_KEY, await look(server, stream_name, AT_ONCE_MS))
        assert "'pump-7'" in found.evidence and found.level == "note"
        # As the finding says: over several keys.
        events = [{"key": f"pump-7/{n % 5}" if n % 2 else f"m{n}", "v": n} for n in range(2_000)]
        await (await producer.send_many(events))
        assert of(streams.HOT_KEY, await look(server, stream_name, AT_ONCE_MS)) == []


@provokes(streams.BIG_ENTRIES)
async def test_big_entries(server: TestServer, stream_name: str) -> None:
    add(server, stream_name, 3)
    entry_id = server.command("XADD", stream_name, "*", "image", "x" * 2_000_000)
    found = only(streams.BIG_ENTRIES, await look(server, stream_name))
    assert entry_id in found.evidence and "2,000,005 bytes" in found.evidence
    server.command("XDEL", stream_name, entry_id)
    assert of(streams.BIG_ENTRIES, await look(server, stream_name, AT_ONCE_MS)) == []


@provokes(streams.NODES)
async def test_nodes(cluster: Callable[..., TestCluster], stream_name: str) -> None:
    """Shards that lie unevenly over the nodes of a cluster: those of one node are moved to another,
    with everything in them."""
    three = cluster("valkey-9.1")
    async with (
        Stream(stream_name, three.url, shards=6, max_len=1_000) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many([{"key": f"m{n}", "v": n} for n in range(200)]))
    facts = await read(three, stream_name)
    assert sorted(facts.nodes.values()) == [2, 2, 2]
    assert of(streams.NODES, check_stream(facts, None)) == []
    async with Server(three.url) as opened:
        assert await find_streams(opened) == [stream_name]
    keys = shard_keys(stream_name, 6)
    source, target = three.node_of(keys[0]), three.node_of(keys[-1])
    for key in [key for key in keys if three.node_of(key) is source]:
        move_slot(three, key, target)
    found = only(streams.NODES, check_stream(await read(three, stream_name), None))
    assert f"127.0.0.1:{target.port}: 4" in found.evidence
    for key in keys[:2]:
        move_slot(three, key, source)
    facts = await read(three, stream_name, AT_ONCE_MS)
    assert of(streams.NODES, check_stream(facts, None)) == []


@provokes(streams.UNREADABLE)
async def test_unreadable(server: TestServer, stream_name: str) -> None:
    """A definition that this version does not read is a finding, not the end of the visit."""
    from standpipe.doctor.run import examine

    server.command("SET", f"{{{stream_name}}}:definition", "{ cut off")
    report = await examine(server.url, names=[stream_name], window_ms=10)
    found = only(streams.UNREADABLE, report.findings)
    assert "cannot be read" in found.evidence and report.streams == []
    server.command("DEL", f"{{{stream_name}}}:definition")
    add(server, stream_name, 1)
    report = await examine(server.url, names=[stream_name], window_ms=10)
    assert of(streams.UNREADABLE, report.findings) == [] and report.streams == [stream_name]


async def test_streams_are_found(own_server: OwnServer, server_name: str) -> None:
    """Without names all streams are looked at, by their names, and nothing that stands beside."""
    target = own_server(server_name)
    async with (
        Stream("grid", target.url, shards=3, codec="plain") as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many([{"key": f"m{n}", "v": n} for n in range(50)]))
        target.command("XADD", stream.dead_key(0), "*", "reason", "x")
    add(target, "power_grid_stream", 3)
    target.command("SET", "other", "x")
    async with Server(target.url) as opened:
        assert await find_streams(opened) == ["grid", "power_grid_stream"]


def test_every_check_is_provoked() -> None:
    """No check is without a test that sets what it looks for."""
    for module in ("unit.test_doctor", "servers.test_doctor_server"):
        importlib.import_module(f"tests.{module}")
    assert {check.name for check in CHECKS} == PROVOKED
