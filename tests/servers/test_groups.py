"""Groups by hand: what is said of them is what the server says, and nothing is lost in silence."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from standpipe import EventId, Producer, Stream, Worker, groups
from standpipe.clock import now_ms
from standpipe.errors import (
    ConfigError,
    ConsumerNotFoundError,
    EntryUnitError,
    EventError,
    GroupInUseError,
    GroupNotFoundError,
    StreamNotFoundError,
    WrongTypeError,
)
from standpipe.wire import Server, script
from tests.conditions import eventually
from tests.servers.entries import make_events
from tests.servers.fleet import TestCluster, TestServer, require_server, selected_servers
from tests.servers.working import running

OwnServer = Callable[..., TestServer]


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture
async def stream(wire: Server, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, wire) as found:
        yield found


def add(server: TestServer, key: str, count: int = 10) -> None:
    """Plain entries 1-0, 2-0, …"""
    one = "redis.call('XADD', KEYS[1], n .. '-0', 'key', 'm', 'n', n)"
    server.command("EVAL", f"for n = 1, ARGV[1] do {one} end", 1, key, count)


def give(server: TestServer, key: str, group: str, consumer: str, count: int) -> list[str]:
    """Deliver entries to a consumer; returns their IDs."""
    read = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", key, ">")
    ((_, rows),) = server.command(*read)
    return [entry_id for entry_id, _ in rows]


def raw_groups(server: TestServer, key: str) -> dict[str, dict[str, Any]]:
    rows = server.command("XINFO", "GROUPS", key)
    named = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
    return {row["name"]: row for row in named}


def raw_consumers(server: TestServer, key: str, group: str) -> dict[str, dict[str, Any]]:
    rows = server.command("XINFO", "CONSUMERS", key, group)
    named = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
    return {row["name"]: row for row in named}


def next_id(server: TestServer, key: str, group: str) -> str:
    """What a group is given next."""
    return give(server, key, group, "looks", 1)[0]


# --- list ----------------------------------------------------------------------------------------


async def test_the_list_is_what_xinfo_says(server: TestServer, stream: Stream) -> None:
    """`list_groups` says of every group and consumer what XINFO and XPENDING say."""
    key = stream.name
    add(server, key)
    for group in ("storage", "alarms"):
        server.command("XGROUP", "CREATE", key, group, "0")
    give(server, key, "storage", "w1", 3)
    give(server, key, "storage", "w2", 1)
    found = await groups.list_groups(stream)
    assert [(each.name, each.shard, each.key) for each in found] == [
        ("alarms", 0, key),
        ("storage", 0, key),
    ]
    for each in found:
        raw = raw_groups(server, key)[each.name]
        assert (each.pending, each.last_delivered) == (raw["pending"], raw["last-delivered-id"])
        # A group at the beginning is known to have everything before it, on any server.
        assert each.lag == (10 if each.name == "alarms" else raw.get("lag"))
        consumers = raw_consumers(server, key, each.name)
        assert {c.name: c.pending for c in each.consumers} == {
            name: consumer["pending"] for name, consumer in consumers.items()
        }


async def test_the_lag_is_exact_at_the_ends(server: TestServer, stream: Stream) -> None:
    """Behind the newest entry the lag is 0 and before the oldest it is all there is, also where the
    server does not know it or counts what was trimmed; in between it is None, not 0."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "start", "0")
    give(server, key, "start", "w", 2)
    server.command("XGROUP", "CREATE", key, "middle", "6-0")
    server.command("XGROUP", "CREATE", key, "end", "$")
    server.command("XTRIM", key, "MINID", "4-0")
    server.command("XDEL", key, "8-0")
    found = {each.name: each.lag for each in await groups.list_groups(stream)}
    assert found == {"start": 6, "middle": None, "end": 0}


# --- create --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("begin", "1-0"),
        ("0", "1-0"),
        ("4-0", "4-0"),
        ("4-0/0", "4-0"),
        (EventId(4, 0), "4-0"),
        ("1970-01-01T00:00:00.004Z", "4-0"),
    ],
)
async def test_a_group_begins_with_the_point_given(
    server: TestServer, stream: Stream, start: str | EventId, first: str
) -> None:
    """The entry at the point, or the first one after the time, is the first that is delivered."""
    add(server, stream.name)
    (made,) = await groups.create_group(stream, "g", start)
    assert (made.outcome, made.is_new_stream) == ("created", False)
    assert next_id(server, stream.name, "g") == first


async def test_a_group_at_the_end(server: TestServer, stream: Stream) -> None:
    """`end` gives what is added later alone."""
    add(server, stream.name)
    await groups.create_group(stream, "g", "end")
    server.command("XADD", stream.name, "99-0", "n", 99)
    assert next_id(server, stream.name, "g") == "99-0"


async def test_creating_twice_changes_nothing(
    server: TestServer, wire: Server, stream_name
) -> None:
    """Where a group stands it stays as it is; shards that are missing are created, as said."""
    async with Stream(stream_name, wire, shards=3) as stream:
        server.command("XGROUP", "CREATE", stream.keys[1], "g", "7-0", "MKSTREAM")
        made = await groups.create_group(stream, "g")
        assert [(each.shard, each.outcome, each.is_new_stream) for each in made] == [
            (0, "created", True),
            (1, "exists", False),
            (2, "created", True),
        ]
        last = [each.last_delivered for each in await groups.list_groups(stream)]
        assert last == ["0-0", "7-0", "0-0"]
        (one,) = await groups.create_group(stream, "h", shard=2)
        assert (one.shard, one.key) == (2, stream.keys[2])
        assert [each.shard for each in await groups.list_groups(stream) if each.name == "h"] == [2]


@pytest.mark.parametrize(
    ("start", "error"),
    [
        ("4-0/3", ConfigError),
        ("yesterday", ConfigError),
        ("4-x/0", EventError),
        ("9999-01-01T00:00:00Z", ConfigError),
        ("99999999999999-5", ConfigError),
    ],
)
async def test_points_that_are_none(
    server: TestServer, stream: Stream, start: str, error: type[Exception]
) -> None:
    """A point inside an entry, in the future, or none at all is refused; nothing is created."""
    add(server, stream.name)
    with pytest.raises(error):
        await groups.create_group(stream, "g", start)
    assert await groups.list_groups(stream) == []


async def test_an_entry_ahead_of_the_clock_is_a_point(server: TestServer, stream: Stream) -> None:
    """IDs that producers chose themselves may be ahead of the clock."""
    ahead = f"{now_ms() + 1_000_000}-5"
    server.command("XADD", stream.name, ahead, "n", 1)
    await groups.create_group(stream, "g", ahead)
    assert next_id(server, stream.name, "g") == ahead


async def test_what_is_no_stream(server: TestServer, stream: Stream) -> None:
    """A stream, shard or group that is not there, a key that is none: each has its error."""
    with pytest.raises(StreamNotFoundError):
        await groups.list_groups(stream)
    with pytest.raises(StreamNotFoundError):
        await groups.read_pending(stream, "g")
    add(server, stream.name, 1)
    for call in (
        groups.read_pending(stream, "g"),
        groups.delete_group(stream, "g", force=True),
        groups.move_group(stream, "g", "begin"),
        groups.ack_entries(stream, "g", ["1-0"]),
        groups.claim_idle(stream, "g", "w"),
        groups.remove_consumer(stream, "g", "w"),
    ):
        with pytest.raises(GroupNotFoundError, match="'g'"):
            await call
    with pytest.raises(ConfigError, match="shard is 1"):
        await groups.list_groups(stream, shard=1)
    with pytest.raises(ConfigError, match="group is"):
        await groups.create_group(stream, "a b")
    server.command("DEL", stream.name)
    server.command("SET", stream.name, "text")
    with pytest.raises(WrongTypeError):
        await groups.create_group(stream, "g")
    with pytest.raises(WrongTypeError):
        await groups.list_groups(stream)


# --- move ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "skipped", "again", "after", "first"),
    [
        ("begin", 0, 4, "0-0", "2-0"),
        ("3-0", 0, 3, "2-18446744073709551615", "3-0"),
        ("6-0", 0, 0, "5-18446744073709551615", "6-0"),
        ("9-0", 3, 0, "8-18446744073709551615", "9-0"),
        ("end", 5, 0, "10-0", None),
    ],
)
async def test_moving_says_what_it_does(
    server: TestServer,
    stream: Stream,
    to: str,
    skipped: int,
    again: int,
    after: str,
    first: str | None,
) -> None:
    """The dry run counts what would be skipped or delivered again and changes nothing; the move
    does just that, and leaves what is pending pending."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    pending = give(server, key, "g", "w", 5)
    server.command("XDEL", key, "1-0")
    (would,) = await groups.move_group(stream, "g", to, dry_run=True)
    assert raw_groups(server, key)["g"]["last-delivered-id"] == "5-0"
    (did,) = await groups.move_group(stream, "g", to, force=True)
    assert would == did
    assert (did.before, did.after, did.is_exact) == ("5-0", after, True)
    assert (did.skipped, did.again) == (skipped, again)
    assert raw_groups(server, key)["g"]["last-delivered-id"] == after
    assert server.command("XPENDING", key, "g")[0] == len(pending)
    if first is None:
        server.command("XADD", key, "99-0", "n", 99)
    assert next_id(server, key, "g") == (first or "99-0")


async def test_counting_has_a_bound(server: TestServer, stream: Stream) -> None:
    """Beyond count_max the number is said to be a lower bound; up to it, it is exact."""
    key = stream.name
    add(server, key, 600)
    server.command("XGROUP", "CREATE", key, "g", "1-0")
    for count_max, expected in ((400, (400, False)), (497, (497, False)), (498, (498, True))):
        (move,) = await groups.move_group(stream, "g", "500-0", dry_run=True, count_max=count_max)
        assert (move.skipped, move.is_exact) == expected


async def test_a_known_lag_is_not_counted(server: TestServer, stream: Stream) -> None:
    """To the ends of a stream nothing is read where the lag is known, so no bound applies."""
    key = stream.name
    add(server, key, 20)
    server.command("XGROUP", "CREATE", key, "g", "0")
    (move,) = await groups.move_group(stream, "g", "end", dry_run=True, count_max=5)
    assert (move.skipped, move.is_exact) == (20, True)
    server.command("XGROUP", "SETID", key, "g", "$")
    (move,) = await groups.move_group(stream, "g", "begin", dry_run=True, count_max=5)
    assert (move.again, move.is_exact) == (20, True)


async def test_a_group_at_work_is_not_moved(server: TestServer, stream: Stream) -> None:
    """While a consumer asks for entries, a group is only moved by force."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w1", 2)
    with pytest.raises(GroupInUseError, match=r"w1 \(idle \d+ms\)"):
        await groups.move_group(stream, "g", "end")
    assert raw_groups(server, key)["g"]["last-delivered-id"] == "2-0"
    await eventually(lambda: raw_consumers(server, key, "g")["w1"]["idle"] >= 20, what="idle")
    await groups.move_group(stream, "g", "end", active_ms=20)
    assert raw_groups(server, key)["g"]["last-delivered-id"] == "10-0"


# --- delete, remove ------------------------------------------------------------------------------


async def test_deleting_refuses_what_would_be_lost(server: TestServer, stream: Stream) -> None:
    """A group with entries pending, or not delivered, is deleted only by force, and says what it
    had: a lag that is not known is unknown, not none."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    with pytest.raises(GroupInUseError, match="10 entries not delivered"):
        await groups.delete_group(stream, "g")
    give(server, key, "g", "w", 10)
    with pytest.raises(GroupInUseError, match="10 entries pending"):
        await groups.delete_group(stream, "g", active_ms=0)
    server.command("XGROUP", "SETID", key, "g", "5-0")
    server.command("XACK", key, "g", *(f"{n}-0" for n in range(1, 11)))
    server.command("XDEL", key, "8-0")
    with pytest.raises(GroupInUseError, match="an unknown number of entries of shard 0"):
        await groups.delete_group(stream, "g", active_ms=0)
    (would,) = await groups.delete_group(stream, "g", dry_run=True)
    assert (would.outcome, would.pending, would.lag) == ("kept", 0, None)
    assert "g" in raw_groups(server, key)
    (did,) = await groups.delete_group(stream, "g", force=True)
    assert (did.outcome, did.last_delivered) == ("deleted", "5-0")
    assert raw_groups(server, key) == {}
    assert server.command("XLEN", key) == 9


async def test_a_group_that_has_done_all_is_deleted(server: TestServer, stream: Stream) -> None:
    """With nothing pending, nothing undelivered and nobody at work, no force is needed."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    server.command("XACK", key, "g", *give(server, key, "g", "w", 10))
    with pytest.raises(GroupInUseError, match="consumers are at work: w "):
        await groups.delete_group(stream, "g")
    letter = stream.requeued_key(0, "g")
    server.command("XADD", letter, "*", "d", "x")
    with pytest.raises(GroupInUseError, match="requeued dead letters: 1"):
        await groups.delete_group(stream, "g", active_ms=0)
    (would,) = await groups.delete_group(stream, "g", dry_run=True)
    assert would.requeued == 1
    # Settled, and still there until a worker looks again.
    server.command("XGROUP", "CREATE", letter, "g", "0")
    server.command("XACK", letter, "g", *give(server, letter, "g", "w", 10))
    (would,) = await groups.delete_group(stream, "g", dry_run=True)
    assert would.requeued == 0
    (did,) = await groups.delete_group(stream, "g", active_ms=0)
    assert (did.outcome, did.pending, did.lag, did.requeued) == ("deleted", 0, 0, 0)
    assert raw_groups(server, key) == {}


async def test_a_group_that_was_read_meanwhile_is_kept(server: TestServer, stream: Stream) -> None:
    """Between looking and deleting a worker may read: the script looks again, in the same step."""
    key = stream.name
    add(server, key, 2)
    server.command("XGROUP", "CREATE", key, "g", "0")
    run = stream.server.run
    (entry_id,) = give(server, key, "g", "w", 1)
    assert await run(script("destroy"), (key,), "g", "0-0") == 0
    assert await run(script("destroy"), (key,), "g", "1-0") == 0, "it has an entry pending"
    server.command("XACK", key, "g", entry_id)
    assert await run(script("destroy"), (key,), "g", "0-0") == 0, "it was given 1-0 meanwhile"
    assert await run(script("destroy"), (key,), "h", "1-0") == 0
    assert await run(script("destroy"), (key,), "g", "1-0") == 1
    assert raw_groups(server, key) == {}


async def test_a_consumer_with_entries_is_never_removed(server: TestServer, stream: Stream) -> None:
    """A consumer is removed when it has nothing pending and is not at work; force only helps
    against the second, as the entries would be lost with it."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    (entry_id,) = give(server, key, "g", "w", 1)
    for force in (False, True):
        with pytest.raises(GroupInUseError, match="has 1 entry pending"):
            await groups.remove_consumer(stream, "g", "w", active_ms=0, force=force)
    server.command("XACK", key, "g", entry_id)
    with pytest.raises(GroupInUseError, match="at work"):
        await groups.remove_consumer(stream, "g", "w")
    with pytest.raises(ConsumerNotFoundError, match="'nobody'"):
        await groups.remove_consumer(stream, "g", "nobody")
    (done,) = await groups.remove_consumer(stream, "g", "w", force=True)
    assert done.outcome == "removed"
    assert raw_consumers(server, key, "g") == {}


async def test_the_removal_is_one_step(server: TestServer, stream: Stream) -> None:
    """The script says how it went and removes nothing that has entries or is at work."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    ids = give(server, key, "g", "w", 2)

    async def remove(idle_ms: int, name: str = "w") -> tuple[str, int]:
        outcome, pending, _ = await stream.server.run(script("remove"), (key,), "g", name, idle_ms)
        return outcome.decode(), pending

    assert await remove(0) == ("pending", 2)
    server.command("XACK", key, "g", *ids)
    assert await remove(60_000) == ("active", 0)
    assert await remove(0, "nobody") == ("absent", 0)
    assert "w" in raw_consumers(server, key, "g")
    assert await remove(0) == ("removed", 0)
    assert raw_consumers(server, key, "g") == {}
    with pytest.raises(GroupNotFoundError):
        await stream.server.run(script("remove"), (key,), "nogroup", "w", 0)


# --- pending -------------------------------------------------------------------------------------


async def test_pending_is_what_xpending_says(server: TestServer, stream: Stream) -> None:
    """The summary and every entry are those of XPENDING, under each filter."""
    key = stream.name
    add(server, key, 20)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w1", 5)
    give(server, key, "g", "w2", 8)
    server.command("XCLAIM", key, "g", "w2", 0, "2-0", "IDLE", 90_000, "RETRYCOUNT", 7)
    found = await groups.read_pending(stream, "g", count=100)
    total, _, _, names = server.command("XPENDING", key, "g")
    assert (found.stream, found.group, found.pending) == (key, "g", total)
    assert [[c.name, str(c.pending)] for c in found.consumers] == sorted(names, reverse=True)
    rows = server.command("XPENDING", key, "g", "-", "+", 100)
    assert [[e.id, e.consumer, e.deliveries] for e in found.entries] == [
        [entry_id, name, count] for entry_id, name, _, count in rows
    ]
    for entry, (_, _, idle, _) in zip(found.entries, rows, strict=True):
        assert 0 <= idle - entry.idle_ms < 10_000
    assert {(e.events, e.is_deleted) for e in found.entries} == {(None, None)}

    async def ids(**options: Any) -> list[str]:
        report = await groups.read_pending(stream, "g", **options)
        assert (report.pending, len(report.consumers)) == (13, 2)
        return [entry.id for entry in report.entries]

    assert await ids(idle_ms_min=60_000) == ["2-0"]
    assert await ids(consumer="w1") == ["1-0", "3-0", "4-0", "5-0"]
    assert await ids(consumer="w1", idle_ms_min=60_000) == []
    assert await ids(count=3) == ["1-0", "2-0", "3-0"]
    assert await ids(count=0) == []


async def test_pending_beyond_a_page(server: TestServer, stream: Stream) -> None:
    """More entries than one XPENDING asks for come in pages, each once."""
    key = stream.name
    add(server, key, 1_200)
    server.command("XGROUP", "CREATE", key, "g", "0")
    given = give(server, key, "g", "w", 1_200)
    found = await groups.read_pending(stream, "g", count=1_150)
    assert [entry.id for entry in found.entries] == given[:1_150]


async def test_events_of_what_is_pending(server: TestServer, stream: Stream) -> None:
    """When asked, each entry says how many events it carries, or that it is deleted; of one that no
    codec reads it is not known."""
    key = stream.name
    async with Producer(stream, codec="rows") as producer:
        await (await producer.send_many(make_events(40)))
    server.command("XADD", key, "*", "volts", 230)
    unreadable = server.command("XADD", key, "*", "c", "zip9", "n", 3, "d", "x")
    deleted = server.command("XADD", key, "*", "volts", 231)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w", 100)
    server.command("XDEL", key, deleted)
    found = (await groups.read_pending(stream, "g", with_events=True)).entries
    assert sum(entry.events or 0 for entry in found[:-2]) == 41
    assert (found[-2].id, found[-2].events, found[-2].is_deleted) == (unreadable, None, False)
    assert (found[-1].id, found[-1].events, found[-1].is_deleted) == (deleted, None, True)


# --- ack -----------------------------------------------------------------------------------------


async def test_ack_says_what_it_did(server: TestServer, stream: Stream) -> None:
    """Each ID has its outcome, in the order given and once; what is not pending is said."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w", 4)
    found = await groups.ack_entries(stream, "g", ["3-0", "9-0", "1", "3-0", "77-7"])
    assert [(each.id, each.outcome) for each in found] == [
        ("3-0", "acknowledged"),
        ("9-0", "not pending"),
        ("1-0", "acknowledged"),
        ("77-7", "not pending"),
    ]
    assert (found[0].shard, found[0].consumer, found[0].deliveries) == (0, "w", 1)
    assert found[1].shard is None
    rows = server.command("XPENDING", key, "g", "-", "+", 10)
    assert [entry_id for entry_id, *_ in rows] == ["2-0", "4-0"]


async def test_an_event_of_a_block_is_no_unit(server: TestServer, stream: Stream) -> None:
    """An event ID is refused, and nothing is done, unless it is all of its entry."""
    key = stream.name
    add(server, key, 1)
    async with Producer(stream, codec="rows") as producer:
        receipts = await producer.send_many(make_events(3))
        ids = [str(event_id) for event_id in await receipts]
    entry = ids[0].partition("/")[0]
    assert ids == [f"{entry}/{n}" for n in range(3)]
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w", 10)

    def left() -> list[str]:
        return [row[0] for row in server.command("XPENDING", key, "g", "-", "+", 10)]

    part, none = "of the 3 events of one entry", "does not have: it has 3"
    for wrong, said in (
        (ids[1:2], f"/1 is 1 {part}"),
        (ids[:2], f"/0 is 2 {part}"),
        ([*ids, f"{entry}/3"], none),
        ([f"{entry}/9"], none),
    ):
        with pytest.raises(EntryUnitError, match=said):
            await groups.ack_entries(stream, "g", ["1-0", *wrong])
        with pytest.raises(EntryUnitError):
            await groups.claim_entries(stream, "g", "w", ["1-0", *wrong], idle_ms_min=0)
    with pytest.raises(EntryUnitError, match="not in the stream"):
        await groups.ack_entries(stream, "g", ["5-5/0"])
    with pytest.raises(EventError, match="not an event ID"):
        await groups.ack_entries(stream, "g", ["1-0", "no"])
    with pytest.raises(ConfigError, match="no entry ID"):
        await groups.ack_entries(stream, "g", [])
    assert left() == ["1-0", entry]
    (one,) = await groups.ack_entries(stream, "g", ["1-0/0"])
    assert (one.id, one.outcome) == ("1-0", "acknowledged")
    (one,) = await groups.ack_entries(stream, "g", [ids[2], ids[0], ids[1]])
    assert (one.id, one.outcome) == (entry, "acknowledged")
    assert left() == []


async def test_an_id_on_two_shards_needs_the_shard(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """An ID that is pending on several shards is left alone until one of them is named."""
    async with Stream(stream_name, wire, shards=3) as stream:
        for key in stream.keys[:2]:
            add(server, key, 2)
            server.command("XGROUP", "CREATE", key, "g", "0")
            give(server, key, "g", "w", 2)
        server.command("XACK", stream.keys[1], "g", "2-0")
        found = await groups.ack_entries(stream, "g", ["1-0", "2-0"])
        assert [(each.outcome, each.shard) for each in found] == [
            ("ambiguous", None),
            ("acknowledged", 0),
        ]
        (one,) = await groups.ack_entries(stream, "g", ["1-0"], shard=1)
        assert (one.outcome, one.shard) == ("acknowledged", 1)
        left = await groups.read_pending(stream, "g")
        assert [(entry.shard, entry.id) for entry in left.entries] == [(0, "1-0")]


# --- claim ---------------------------------------------------------------------------------------


async def test_claiming_by_id(server: TestServer, stream: Stream) -> None:
    """What has been idle for long enough becomes the consumer's, without counting as a delivery;
    everything else is left alone, and said."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w1", 3)
    give(server, key, "g", "w2", 1)
    server.command("XCLAIM", key, "g", "w1", 0, "1-0", "2-0", "IDLE", 90_000, "JUSTID")
    server.command("XCLAIM", key, "g", "w2", 0, "4-0", "IDLE", 90_000, "JUSTID")
    found = await groups.claim_entries(
        stream, "g", "w2", ["9-0", "4-0", "3-0", "2-0", "1-0"], owner="w1"
    )
    assert [(each.id, each.outcome, each.consumer) for each in found] == [
        ("9-0", "not pending", None),
        ("4-0", "another owner", "w2"),
        ("3-0", "not idle", "w1"),
        ("2-0", "claimed", "w1"),
        ("1-0", "claimed", "w1"),
    ]
    rows = server.command("XPENDING", key, "g", "-", "+", 10)
    assert [(i, name, count) for i, name, _, count in rows] == [
        ("1-0", "w2", 1),
        ("2-0", "w2", 1),
        ("3-0", "w1", 1),
        ("4-0", "w2", 1),
    ]
    assert [idle > 60_000 for _, _, idle, _ in rows] == [False, False, False, True]


async def test_claiming_for_nobody_is_refused(server: TestServer, stream: Stream) -> None:
    """A consumer that the group does not have gets nothing, unless it is meant."""
    key = stream.name
    add(server, key, 2)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w1", 2)
    with pytest.raises(ConsumerNotFoundError, match="'w9'"):
        await groups.claim_entries(stream, "g", "w9", ["1-0"], idle_ms_min=0)
    with pytest.raises(ConsumerNotFoundError, match="'w9'"):
        await groups.claim_idle(stream, "g", "w9", idle_ms_min=0)
    with pytest.raises(ConsumerNotFoundError, match="'w8'"):
        await groups.claim_idle(stream, "g", "w1", owner="w8", idle_ms_min=0)
    assert list(raw_consumers(server, key, "g")) == ["w1"]
    (one,) = await groups.claim_entries(stream, "g", "w9", ["1-0"], idle_ms_min=0, create=True)
    assert (one.outcome, one.consumer) == ("claimed", "w1")
    assert raw_consumers(server, key, "g")["w9"]["pending"] == 1


async def test_claiming_all_that_is_idle(server: TestServer, stream: Stream) -> None:
    """Without IDs everything that is idle goes over, page by page, up to the count."""
    key = stream.name
    add(server, key, 1_300)
    server.command("XGROUP", "CREATE", key, "g", "0")
    ids = give(server, key, "g", "w1", 1_200)
    give(server, key, "g", "w2", 50)
    server.command("XCLAIM", key, "g", "w1", 0, *ids[1:], "IDLE", 90_000, "JUSTID")
    few = await groups.claim_idle(stream, "g", "w2", count=7)
    assert [(each.id, each.outcome, each.consumer) for each in few] == [
        (entry_id, "claimed", "w1") for entry_id in ids[1:8]
    ]
    rest = await groups.claim_idle(stream, "g", "w2", owner="w1")
    assert [each.id for each in rest] == ids[8:]
    assert {name: c["pending"] for name, c in raw_consumers(server, key, "g").items()} == {
        "w1": 1,
        "w2": 1_249,
    }
    server.command("XCLAIM", key, "g", "w2", 0, ids[1], "IDLE", 90_000, "JUSTID")
    assert await groups.claim_idle(stream, "g", "w2") == [], "it has it already"


async def test_claiming_what_was_deleted(server: TestServer, stream: Stream) -> None:
    """An entry that is gone from the stream is said to be (on Redis 6.2, which claims it like any
    other, by its new owner); one that was renewed or acknowledged at the last moment, too."""
    key = stream.name
    add(server, key, 3)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w1", 3)
    server.command("XDEL", key, "2-0")
    found = await groups.claim_idle(stream, "g", "w2", idle_ms_min=0, create=True)
    is_old = server.name == "redis-6.2"
    assert [each.outcome for each in found] == [
        "claimed",
        "claimed" if is_old else "deleted",
        "claimed",
    ]
    assert server.command("XPENDING", key, "g")[0] == (3 if is_old else 2)


async def test_a_worker_takes_on_what_was_claimed_for_it(
    server: TestServer, stream: Stream
) -> None:
    """What is claimed for a worker's name is handled by it, whether it starts or is at work."""
    key = stream.name
    add(server, key, 2)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "dead", 2)
    worker = Worker(stream, "g", name="alive", idle_ms_min=200)
    seen: list[str] = []

    @worker.each
    async def handle(_event: Any, context: Any) -> None:
        seen.append(context.event_id.entry)

    await groups.claim_entries(stream, "g", "alive", ["1-0"], idle_ms_min=0, create=True)
    server.command("XCLAIM", key, "g", "dead", 0, "2-0", "IDLE", 0, "JUSTID")
    async with running(worker):
        await eventually(lambda: "1-0" in seen, 20, what="1-0 handled")
        await eventually(lambda: "2-0" in seen, 20, what="2-0 handled")
    assert server.command("XPENDING", key, "g")[0] == 0


async def test_what_is_claimed_for_a_worker_at_work_is_taken_up_soon(
    own_server: Callable[..., TestServer], stream_name: str
) -> None:
    """A worker need not wait until what it was given has been idle for idle_ms_min; what it was
    given counts its tries, and what it holds already is not handled again."""
    server = own_server("valkey-9.1")
    async with Stream(stream_name, server.url) as stream:
        await _given_while_at_work(server, stream)


async def _given_while_at_work(server: TestServer, stream: Stream) -> None:
    key = stream.name
    add(server, key, 5)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "failed", 3)
    worker = Worker(stream, "g", name="alive", idle_ms_min=4_500)
    seen: list[tuple[str, int]] = []
    go = asyncio.Event()

    @worker.each
    async def handle(_event: Any, context: Any) -> None:
        seen.append((context.event_id.entry, context.deliveries))
        await go.wait()

    # Failed members that are at work all the same: their entries are nobody else's to take.
    claim = ("XCLAIM", key, "g", "failed", 0, "1-0", "2-0", "3-0", "IDLE", 0, "JUSTID")
    async with running(worker):
        await eventually(lambda: len(seen) == 2)
        server.command(*claim)
        given = await groups.claim_entries(stream, "g", "alive", ["1-0", "3-0"], idle_ms_min=0)
        assert [each.outcome for each in given] == ["claimed", "claimed"]

        def is_taken() -> bool:
            server.command("XCLAIM", key, "g", "failed", 0, "2-0", "IDLE", 0, "JUSTID")
            return len(seen) == 4

        await eventually(is_taken, 20)
        go.set()
        await eventually(lambda: worker.stats.handled == 4)
    assert sorted(seen) == [("1-0", 2), ("3-0", 2), ("4-0", 1), ("5-0", 1)]
    # By idle_ms_min it would have been.
    assert worker.consumer.stats.taken_over == 0
    assert server.command("XPENDING", key, "g")[0] == 1


# --- permissions ---------------------------------------------------------------------------------


async def test_the_permissions_in_the_documentation_are_enough(
    server_name: str, own_server: OwnServer
) -> None:
    """docs/operations.md names what a user needs who works on groups, and on the stream's keys."""
    server = own_server(server_name)
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (said,) = re.findall(r"\[groups by hand\]\(groups.md\)\s+`([A-Z ]+)`", page)
    commands = [f"+{name.lower()}" for name in said.split()]
    keys = ("~power*", "~{power}*")
    server.command(
        "ACL", "SETUSER", "ops", "on", ">pw", *keys, "+hello", "+client|setname", *commands
    )
    add(server, "power", 3)
    async with Stream("power", f"redis://ops:pw@127.0.0.1:{server.port}") as stream:
        await groups.create_group(stream, "g", "1-0")
        give(server, "power", "g", "w1", 3)
        report = await groups.read_pending(stream, "g", with_events=True)
        assert [entry.events for entry in report.entries] == [1, 1, 1]
        await groups.claim_idle(stream, "g", "w2", idle_ms_min=0, create=True)
        await groups.ack_entries(stream, "g", ["1-0/0", "2-0", "3-0"])
        await groups.remove_consumer(stream, "g", "w1", force=True)
        await groups.move_group(stream, "g", "2-0", force=True)
        await groups.move_group(stream, "g", "end", force=True)
        (done,) = await groups.delete_group(stream, "g", active_ms=0)
        assert done.outcome == "deleted"


# --- in a cluster --------------------------------------------------------------------------------


async def test_cluster(cluster: Callable[..., TestCluster]) -> None:
    """Every operation reaches all shards, whichever node has them."""
    # Once: the versions differ in what a node answers, which the tests above hold.
    name = selected_servers()[-1]
    require_server(name)
    found = cluster(name)
    async with Stream("power", found.url, shards=6, codec="plain") as stream:
        made = await groups.create_group(stream, "g")
        assert [each.shard for each in made] == list(range(6))
        async with Producer(stream) as producer:
            await (await producer.send_many(make_events(120, keys=60)))
        lengths = []
        for key in stream.keys:
            node = found.node_of(key)
            lengths.append(node.command("XLEN", key))
            give(node, key, "g", "w1", 1_000)
        report = await groups.read_pending(stream, "g", count=120, with_events=True)
        assert (report.pending, sum(entry.events or 0 for entry in report.entries)) == (120, 120)
        order = [EventId.parse(entry.id) for entry in report.entries]
        assert order == sorted(order)
        first = [entry for entry in report.entries if entry.shard == 0]
        acked = await groups.ack_entries(stream, "g", [e.id for e in first], shard=0)
        assert {each.outcome for each in acked} == {"acknowledged"}
        claimed = await groups.claim_idle(stream, "g", "w2", idle_ms_min=0, create=True)
        assert len(claimed) == 120 - lengths[0]
        for each in claimed:
            await groups.ack_entries(stream, "g", [each.id], shard=each.shard)
        moved = await groups.move_group(stream, "g", "begin", force=True)
        assert [each.again for each in moved] == lengths
        with pytest.raises(GroupInUseError, match="120 entries not delivered"):
            await groups.delete_group(stream, "g", active_ms=0)
        await groups.move_group(stream, "g", "end", force=True)
        removed = await groups.remove_consumer(stream, "g", "w1", force=True)
        assert {each.outcome for each in removed} == {"removed"}
        deleted = await groups.delete_group(stream, "g", active_ms=0)
        assert [each.outcome for each in deleted] == ["deleted"] * 6
        assert await groups.list_groups(stream) == []


def test_results_are_json() -> None:
    """What the functions return can be written as JSON, unknown as null."""
    said = msgspec.json.encode(groups.Deleted(0, "k", "kept", 3, None, 0, "5-0"))
    assert msgspec.json.decode(said) == {
        "shard": 0, "key": "k", "outcome": "kept", "pending": 3, "lag": None,
        "requeued": 0, "last_delivered": "5-0",
    }  # fmt: skip
