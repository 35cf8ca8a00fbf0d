"""Moving a group says what that skips or repeats in events, and goes not back to what is gone."""

from __future__ import annotations

from typing import Any

import pytest

from standpipe import EventId, Stream, groups
from standpipe.errors import NotKeptError
from standpipe.groups import changing
from tests.servers.fleet import TestServer
from tests.servers.test_groups import add, give, next_id, raw_groups


def add_blocks(server: TestServer, key: str, count: int, events: int) -> None:
    """Blocks with IDs from 1-0 on; what they hold is not looked at."""
    fill = (
        "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], n .. '-0', "
        "'c', 'rows1', 'n', ARGV[2], 'd', 'x') end"
    )
    server.command("EVAL", fill, 1, key, count, events)


@pytest.mark.parametrize("to", ["begin", "4-0", "8-0", "end"])
async def test_moving_counts_events(server: TestServer, stream: Stream, to: str) -> None:
    """A block counts the events that it announces, a plain entry one."""
    key = stream.name
    add_blocks(server, key, 10, 7)
    server.command("XADD", key, "11-0", "n", 1)
    server.command("XADD", key, "12-0", "c", "rows1", "n", "many", "d", "x")
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w", 5)
    (move,) = await groups.move_group(stream, "g", to, dry_run=True)
    again = {"begin": 35, "4-0": 14}.get(to, 0)
    skipped = {"8-0": 14, "end": 37}.get(to, 0)
    assert (move.again_events, move.skipped_events) == (again, skipped)
    assert (move.events_are, move.pending, move.lacks) == ("exact", 5, False)


async def test_counting_events_is_bounded(server: TestServer, stream: Stream) -> None:
    """Of many entries a sample tells the events, as an estimate; where the number of entries is
    not known, counting ends at its limit, with a lower bound."""
    key = stream.name
    add_blocks(server, key, 3_000, 20)
    server.command("XGROUP", "CREATE", key, "g", "0")
    (move,) = await groups.move_group(stream, "g", "end", dry_run=True)
    assert (move.skipped, move.is_exact) == (3_000, True)
    assert (move.skipped_events, move.events_are) == (60_000, "estimated")
    server.command("XGROUP", "SETID", key, "g", "1000-0")
    (move,) = await groups.move_group(stream, "g", "2500-0", dry_run=True, count_max=700)
    assert (move.skipped, move.is_exact) == (700, False)
    assert (move.skipped_events, move.events_are) == (14_000, "at least")
    (move,) = await groups.move_group(stream, "g", "1600-0", dry_run=True, count_max=700)
    assert (move.skipped, move.skipped_events, move.events_are) == (599, 11_980, "exact")


async def test_what_is_pending_behind_the_point_is_delivered_again(
    server: TestServer, stream: Stream
) -> None:
    """An entry that is pending is, once the group went back, given to who reads next: it stays
    pending, of that one."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "0")
    give(server, key, "g", "w", 5)
    (move,) = await groups.move_group(stream, "g", "4-0", force=True)
    assert (move.again, move.pending) == (2, 5)
    give(server, key, "g", "v", 2)
    owners = {row[0]: row[1] for row in server.command("XPENDING", key, "g", "-", "+", 10)}
    assert owners == {"1-0": "w", "2-0": "w", "3-0": "w", "4-0": "v", "5-0": "v"}


async def test_moving_to_what_is_not_kept(server: TestServer, stream: Stream) -> None:
    """A point that is older than what was trimmed is refused, unless the oldest will do; a dry run
    says so. `begin` is what there is."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "8-0")
    (move,) = await groups.move_group(stream, "g", "2-0", dry_run=True)
    assert not move.lacks
    server.command("XTRIM", key, "MINID", "5-0")
    if server.name == "redis-6.2":
        # It does not count what was ever added, so nobody can tell.
        return
    (move,) = await groups.move_group(stream, "g", "2-0", dry_run=True)
    assert (move.lacks, move.oldest, move.again) == (True, "5-0", 4)
    with pytest.raises(NotKeptError, match=r"nothing as old as .*\(2-0\).*\(5-0\)") as caught:
        await groups.move_group(stream, "g", "2-0")
    assert caught.value.oldest == EventId(5, 0)
    assert raw_groups(server, key)["g"]["last-delivered-id"] == "8-0"
    with pytest.raises(NotKeptError):
        await groups.create_group(stream, "h", "2-0", from_oldest=False)
    (move,) = await groups.move_group(stream, "g", "2-0", from_oldest=True)
    assert next_id(server, key, "g") == "5-0"
    (move,) = await groups.move_group(stream, "g", "begin", force=True)
    assert not move.lacks
    # What lies before the group, but was kept, is no loss.
    await groups.move_group(stream, "g", "6-0", force=True)
    assert next_id(server, key, "g") == "6-0"


async def test_moving_to_what_goes_meanwhile(
    server: TestServer, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is moved the group holds nothing behind the point: what was trimmed while it was
    counted is said, not promised."""
    key = stream.name
    add(server, key)
    server.command("XGROUP", "CREATE", key, "g", "8-0")
    original = changing.count_between

    async def count_between(*args: Any, **options: Any) -> object:
        counted = await original(*args, **options)
        server.command("XTRIM", key, "MINID", "5-0")
        return counted

    monkeypatch.setattr(changing, "count_between", count_between)
    (move,) = await groups.move_group(stream, "g", "2-0")
    assert next_id(server, key, "g") == "5-0"
    assert move.oldest == "5-0"
    # Redis 6.2 does not count what was ever added, so nobody can tell.
    assert move.lacks is (server.name != "redis-6.2")
