"""The doctor finds what is wrong with streams and groups, and tells it from what is well."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

import pytest

from standpipe import Producer, Stream
from standpipe.clock import now_ms
from standpipe.doctor import Finding, streams
from standpipe.doctor.run import CHECKS
from standpipe.doctor.streams import StreamFacts, check_stream, find_streams, read_stream
from standpipe.doctor.thresholds import DOCTOR_SAMPLES
from standpipe.keyspace import shard_keys
from standpipe.wire import Server
from tests.doctoring import PROVOKED, of, only, provokes
from tests.servers.fleet import TestCluster, TestServer
from tests.servers.moving import move_slot

OwnServer = Callable[..., TestServer]
WINDOW_MS = 400


async def read(server: TestServer | TestCluster, name: str, window_ms: int = WINDOW_MS) -> Any:
    async with Stream(name, server.url) as stream:
        return await read_stream(stream, window_ms, DOCTOR_SAMPLES)


async def look(server: TestServer, name: str) -> list[Finding]:
    return list(check_stream(await read(server, name), None))


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
async def test_forgotten_entries(server: TestServer, stream_name: str) -> None:
    """Entries that a dead worker holds, and a group that nobody reads any more, are named with what
    they hold and what that pins. (XCLAIM sets the idle time that hours would.)"""
    add(server, stream_name, 40, at=now_ms() - 3 * 3_600_000)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    server.command("XGROUP", "CREATE", stream_name, "unread", "0")
    row = server.command(
        "XREADGROUP", "GROUP", "g", "gone", "COUNT", 3, "STREAMS", stream_name, ">"
    )
    assert len(row[0][1]) == 3
    facts = await read(server, stream_name)
    found = list(check_stream(facts, None))
    assert "pending since 10" in only(streams.PENDING_AGE, found).evidence
    unread = only(streams.UNREAD_GROUP, found).evidence
    assert "group unread: lag 40, no consumers; it pins about" in unread
    assert of(streams.DEAD_CONSUMER, found) == []  # it has just read
    facts = _aged(facts, 2 * 3_600_000)
    dead = only(streams.DEAD_CONSUMER, check_stream(facts, None))
    assert "gone holds 3 entries, idle for 7" in dead.evidence
    texts = [each.evidence for each in of(streams.UNREAD_GROUP, check_stream(facts, None))]
    lag = "unknown" if server.name == "redis-6.2" else "37"
    assert any(f"group g: lag {lag}, 1 consumers, all gone" in text for text in texts), texts


def _aged(facts: StreamFacts, ms: int) -> StreamFacts:
    """As if its consumers had asked for nothing for so much longer: no server can be told that."""
    import msgspec

    def age(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: each + ms if name == "idle_ms" else age(each) for name, each in value.items()
            }
        return [age(each) for each in value] if isinstance(value, list) else value

    looks = [
        msgspec.convert(age(msgspec.to_builtins(status)), type(status)) for status in facts.looks
    ]
    facts.looks = looks
    return facts


@provokes(streams.LOST)
async def test_lost(server: TestServer, stream_name: str) -> None:
    """What a ring took from a group is counted: a warning while it grows, else a note."""
    server.command("XGROUP", "CREATE", stream_name, "g", "0", "MKSTREAM")
    async with (
        Stream(stream_name, server.url, max_len=100, when_full="ring", codec="plain") as stream,
        Producer(stream) as producer,
    ):
        for _ in range(4):
            await (await producer.send_many([{"key": f"m{n}", "v": n} for n in range(200)]))
    facts = await read(server, stream_name)
    lost = facts.counters()["lost"]
    assert lost > 0
    assert only(streams.LOST, check_stream(facts, None)).level == "note"
    found = only(streams.LOST, check_stream(facts, {"lost": lost, "dead": 0}))
    assert found.level == "warning" and f"{lost:,} since the last look" in found.evidence


@provokes(streams.DEAD_LETTERS, streams.NO_LIMIT)
async def test_dead_letters(server: TestServer, stream_name: str) -> None:
    add(server, stream_name, 1)
    server.command("XADD", f"{{{stream_name}}}:dead", "*", "reason", "x")
    findings = await look(server, stream_name)
    assert "1 dead letters" in only(streams.DEAD_LETTERS, findings).evidence
    assert only(streams.NO_LIMIT, findings).level == "note"


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
    found = only(streams.HOT_KEY, await look(server, stream_name))
    assert "'pump-7'" in found.evidence and found.level == "note"


@provokes(streams.BIG_ENTRIES)
async def test_big_entries(server: TestServer, stream_name: str) -> None:
    add(server, stream_name, 3)
    entry_id = server.command("XADD", stream_name, "*", "image", "x" * 2_000_000)
    found = only(streams.BIG_ENTRIES, await look(server, stream_name))
    assert entry_id in found.evidence and "2,000,005 bytes" in found.evidence


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


@provokes(streams.UNREADABLE)
async def test_unreadable(server: TestServer, stream_name: str) -> None:
    """A definition that this version does not read is a finding, not the end of the visit."""
    from standpipe.doctor.run import examine

    server.command("SET", f"{{{stream_name}}}:definition", "{ cut off")
    report = await examine(server.url, names=[stream_name], window_ms=10)
    found = only(streams.UNREADABLE, report.findings)
    assert "cannot be read" in found.evidence and report.streams == []


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
