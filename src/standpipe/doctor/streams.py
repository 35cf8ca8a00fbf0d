"""Checks of streams and groups: who is behind, who is dead, what pins memory, what was lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from standpipe.advice import Judgement, judge
from standpipe.codec import decode_entry
from standpipe.doctor.finding import MANUAL, Check, Finding, Level
from standpipe.doctor.history import Counters
from standpipe.doctor.thresholds import (
    DEAD_CONSUMER_MS,
    ENTRY_BYTES_LARGE,
    HOT_KEY_PERCENT,
    HOT_SHARD_RATIO,
    PENDING_AGE_MS_MAX,
    SAMPLE_BYTES,
    SAMPLE_EVENTS,
    STREAMS_LOOKED_AT_MAX,
    UNREAD_GROUP_MS,
)
from standpipe.errors import DecodeError, NotPermittedError, StandpipeError
from standpipe.keyspace import slot
from standpipe.observe import GroupStatus, StreamStatus, stream_status
from standpipe.stream import Stream
from standpipe.wire import Server

_XPENDING: Final = MANUAL + "step 6 and Section C (XPENDING)"

LAG: Final = Check(
    "stream.lag",
    "what each group's lag does over the window",
    "A group that falls behind or stands still pins memory and reads what is old.",
    "https://github.com/linkedin/Burrow/wiki/Consumer-Lag-Evaluation-Rules",
)
PENDING_GROWTH: Final = Check(
    "stream.pending_growth",
    "whether the entries that are pending grow over the window",
    "Workers take more than they finish: memory grows until the server is full.",
    MANUAL + "step 6 (the PEL grows indefinitely)",
)
PENDING_AGE: Final = Check(
    "stream.pending_age",
    "the age of the oldest entry that is pending",
    "Its worker died, or its handler fails again and again; it pins what is behind it.",
    _XPENDING,
)
DEAD_CONSUMER: Final = Check(
    "stream.dead_consumer",
    "consumers that hold entries and ask for nothing",
    "What they hold is handled by nobody until somebody takes it over.",
    MANUAL + "Admin Desk (consumer failures)",
)
UNREAD_GROUP: Final = Check(
    "stream.unread_group",
    "groups from which nobody reads",
    "What a group has not read cannot be trimmed.",
    MANUAL + "Admin Desk (memory usage)",
)
LOST: Final = Check(
    "stream.lost",
    "events that a ring has taken from a group before it had acknowledged them",
    "It never will.",
    MANUAL + "Performance Tuning (MAXLEN)",
)
DEAD_LETTERS: Final = Check(
    "stream.dead_letters",
    "events that were given up on",
    "Nobody handles them until somebody looks at why.",
    "docs/dead-letters.md",
)
HOT_SHARD: Final = Check(
    "stream.hot_shard",
    "how evenly the shards fill over the window",
    "One shard is one node and, in order, one worker: the others stand idle beside it.",
    MANUAL + "Scaling Logic",
)
NODES: Final = Check(
    "stream.nodes",
    "how the shards lie over the nodes of a cluster",
    "A node without a shard does nothing for the stream; one with most of them is the limit.",
    MANUAL + "Scaling Logic",
)
HOT_KEY: Final = Check(
    "stream.hot_key",
    "the share of single devices in a sample of each shard",
    "All that one device sends is in one shard, however many there are.",
    MANUAL + "Scaling Logic",
)
BIG_ENTRIES: Final = Check(
    "stream.big_entries",
    "the size of entries in a sample of each shard",
    "A large entry holds up its connection and the server: payloads belong elsewhere.",
    MANUAL + "Admin Desk (media files)",
)
NO_LIMIT: Final = Check(
    "stream.no_limit",
    "whether the stream has any limit of length, bytes or age",
    "It grows until the server's memory is full.",
    MANUAL + "Admin Desk (memory usage)",
)
UNREADABLE: Final = Check(
    "stream.unreadable",
    "streams that cannot be opened or read",
    "What cannot be read was not checked.",
    "docs/errors.md",
)

CHECKS: Final = (
    LAG, PENDING_GROWTH, PENDING_AGE, DEAD_CONSUMER, UNREAD_GROUP, LOST, DEAD_LETTERS, HOT_SHARD,
    NODES,    HOT_KEY, BIG_ENTRIES, NO_LIMIT, UNREADABLE,
)  # fmt: skip


@dataclass(slots=True)
class StreamFacts:
    """A stream, over a window."""

    looks: list[StreamStatus]
    has_limit: bool
    nodes: Counter[str] | None
    """Shards per primary, those with none as well; None where it is no cluster."""
    keys: Counter[str]
    """Events per device in the sample."""
    largest: tuple[str, int]
    """The largest entry of the sample, and its bytes."""

    @property
    def last(self) -> StreamStatus:
        return self.looks[-1]

    def counters(self) -> Counters:
        shards = self.last.shards
        return {
            "lost": sum(group.lost or 0 for shard in shards for group in shard.groups),
            "dead": sum(shard.dead for shard in shards),
        }


async def find_streams(server: Server) -> list[str]:
    """The names of the streams on a server, with a definition or without, side keys left out.

    Cost: SCAN over all keys of all primaries.
    """
    keys = await server.scan("*", "TYPE", "stream")
    found = {stream_name(key.decode("utf-8", "replace")) for key in keys}
    return sorted(name for name in found if name is not None)[:STREAMS_LOOKED_AT_MAX]


def stream_name(key: str) -> str | None:
    """The stream that a key is a shard of; None for a key beside a shard, such as dead letters."""
    head, brace, rest = key.partition("{")
    if not brace:
        return key
    tag, _, side = rest.partition("}")
    if side:
        return None
    # name:{0-0} of a stream with shards; a tag of the user's own is part of the name.
    return head[:-1] if head.endswith(":") and "-" in tag else key


async def read_stream(stream: Stream, window_ms: int, samples: int) -> StreamFacts:
    """Look at an open stream several times.

    Raises:
        StreamNotFoundError: it is not there.
        ServerError: the server cannot be reached or refuses.
    """
    looks = [await stream_status(stream)]
    for _ in range(samples - 1):
        await asyncio.sleep(window_ms / 1000 / (samples - 1))
        looks.append(await stream_status(stream))
    nodes = await _nodes(stream) if stream.server.is_cluster else None
    keys: Counter[str] = Counter()
    largest = ("", 0)
    async for shard_keys, entry in _sample(stream):
        keys.update(shard_keys)
        largest = max(largest, entry, key=lambda each: each[1])
    definition = stream.definition
    limits = (definition.max_len, definition.max_bytes, definition.max_age_ms)
    has_limit = any(limit is not None for limit in limits)
    return StreamFacts(looks, has_limit, nodes, keys, largest)


async def _nodes(stream: Stream) -> Counter[str]:
    first = stream.keys[0]
    found: Counter[str] = Counter()
    for start, end, primary, *_ in await stream.server.call("CLUSTER", "SLOTS", key=first):
        found[f"{primary[0].decode()}:{primary[1]}"] += sum(
            start <= slot(key) <= end for key in stream.keys
        )
    return found


async def _sample(stream: Stream) -> AsyncIterator[tuple[list[str], tuple[str, int]]]:
    """The devices in each of the last entries of every shard, with the entry and its size."""
    for key in stream.keys:
        events, end, count = 0, "+", 4
        # A few first: entries may be blocks of megabytes.
        while events < SAMPLE_EVENTS and count:
            page = await stream.server.call("XREVRANGE", key, end, "-", "COUNT", count, key=key)
            sizes = [sum(map(len, fields)) for _, fields in page]
            for (entry_id, fields), size in zip(page, sizes, strict=True):
                found = _devices(entry_id, fields, stream)
                yield found, (f"{key} {entry_id.decode()}", size)
                events += len(found)
            is_all = len(page) < count or count > 4
            count = 0 if is_all or max(sizes) > SAMPLE_BYTES // 100 else 100
            end = f"({page[-1][0].decode()}" if page else ""


def _devices(entry_id: bytes, fields: list[bytes], stream: Stream) -> list[str]:
    try:
        events = decode_entry(entry_id, fields, stream.definition.layout).events()
    except DecodeError:
        # A worker turns it into a dead letter, which has its own check.
        return []
    return [event.key for event in events if event.key is not None]


class _Look(NamedTuple):
    facts: StreamFacts
    more: Counters | None

    def finding(self, check: Check, level: Level, evidence: str, fix: str) -> Finding:
        return Finding(check, level, f"stream {self.facts.last.name}", evidence, fix)


def check_stream(facts: StreamFacts, more: Counters | None) -> Iterator[Finding]:
    """Look at what a stream did over the window.

    Args:
        facts: As read.
        more: By how much its counters grew since the last look; None when there was none.
    """
    look = _Look(facts, more)
    for judged in judge(facts.looks):
        yield from _group(look, judged)
    yield from _kept(look)
    yield from _spread(look)


def _groups(status: StreamStatus, name: str) -> list[GroupStatus]:
    return [group for shard in status.shards for group in shard.groups if group.name == name]


def _group(look: _Look, judged: Judgement) -> Iterator[Finding]:
    last, name = look.facts.last, judged.group
    groups, stream = _groups(last, name), last.name
    consumers = [each for group in groups for each in group.consumers]
    is_unread = all(each.idle_ms >= UNREAD_GROUP_MS for each in consumers)
    if is_unread and any(group.lag != 0 for group in groups):
        lags = [group.lag for group in groups if group.lag is not None]
        told = f"{sum(lags):,}" if len(lags) == len(groups) else "unknown"
        who = "no consumers" if not consumers else f"{len(consumers)} consumers, all gone"
        yield look.finding(
            UNREAD_GROUP, "warning",
            f"group {name}: lag {told}, {who}; it pins {_pinned(last, name)}",
            f"Start its workers; if nobody needs it, `standpipe group delete {stream} {name} "
            "--force` (with --dry-run it says first what is given up).",
        )  # fmt: skip
    else:
        yield from _lag(look, judged)
    counts = [sum(g.pending for g in _groups(status, name)) for status in look.facts.looks]
    if counts == sorted(counts) and counts[0] < counts[-1]:
        yield look.finding(
            PENDING_GROWTH, "warning", f"group {name}: {counts[0]:,} → {counts[-1]:,} pending",
            f"`standpipe pending {stream} {name}` shows who holds them: a slow or hanging handler.",
        )  # fmt: skip
    ages = [g.oldest_pending_ms for g in groups if g.oldest_pending_ms is not None]
    if ages and max(ages) > PENDING_AGE_MS_MAX:
        yield look.finding(
            PENDING_AGE, "warning", f"group {name}: pending since {max(ages) // 1000:,} s",
            f"`standpipe pending {stream} {name}` names its consumer and its deliveries.",
        )  # fmt: skip
    yield from _dead_consumers(look, name, groups)


def _lag(look: _Look, judged: Judgement) -> Iterator[Finding]:
    """By its direction, as `standpipe status` judges it."""
    trend, stream = judged.trend, look.facts.last.name
    looks = [_groups(status, judged.group) for status in look.facts.looks]
    has_moved = len({_position(groups) for groups in looks}) > 1
    waits = "unknown" if trend.backlog is None else f"{trend.backlog:,}"
    over = f"over {trend.window_ms / 1000:.1f} s"
    is_unread = any(group.lag != 0 for group in looks[-1])
    if is_unread and trend.behind_ms and not has_moved:
        # Handlers that take longer than the window look the same, but for what they hold.
        is_held = any(group.pending for group in looks[-1])
        level: Level = "warning" if is_held else "critical"
        yield look.finding(
            LAG, level,
            f"group {judged.group}: it stands still, nothing was given out or acknowledged {over}; "
            f"{waits} entries wait",
            f"`standpipe status {stream}` says who works, and on what.",
        )  # fmt: skip
    elif trend.direction == "growing":
        yield look.finding(
            LAG, "warning",
            f"group {judged.group}: its backlog grows, {waits} entries wait, the oldest for "
            f"{(trend.behind_ms or 0) / 1000:,.1f} s; looked at {over}",
            f"`standpipe status {stream}` says whether more workers would help.",
        )  # fmt: skip


def _position(groups: list[GroupStatus]) -> tuple[object, ...]:
    """What changes when a group is given something or acknowledges something."""
    return tuple((group.last_delivered, group.pending) for group in groups)


def _dead_consumers(look: _Look, name: str, groups: list[GroupStatus]) -> Iterator[Finding]:
    held: Counter[str] = Counter()
    idle: dict[str, int] = {}
    for group in groups:
        for each in group.consumers:
            held[each.name] += each.pending
            idle[each.name] = min(each.idle_ms, idle.get(each.name, each.idle_ms))
    for consumer, count in sorted(held.items()):
        if count and idle[consumer] >= DEAD_CONSUMER_MS:
            yield look.finding(
                DEAD_CONSUMER, "warning",
                f"group {name}: {consumer} holds {count:,} entries, idle for "
                f"{idle[consumer] // 1000:,} s",
                "A running worker takes them over; by hand `standpipe claim "
                f"{look.facts.last.name} {name} --from {consumer} --to …`.",
            )  # fmt: skip


def _pinned(status: StreamStatus, name: str) -> str:
    """About how much memory a group's unread entries take."""
    pinned = 0.0
    for shard in status.shards:
        for group in shard.groups:
            if group.name == name and shard.length and shard.memory_bytes:
                unread = shard.length if group.lag is None else group.lag
                pinned += shard.memory_bytes * min(1, unread / shard.length)
    return f"about {pinned:,.0f} bytes"


def _kept(look: _Look) -> Iterator[Finding]:
    facts = look.facts
    name = facts.last.name
    counters = facts.counters()
    newly = (look.more or {}).get
    if lost := counters["lost"]:
        since = newly("lost", 0)
        yield look.finding(
            LOST, "warning" if since else "note",
            f"{lost:,} events lost to the ring by groups, {since:,} since the last look",
            "Raise its limit, or let it refuse (when_full block) where every reading counts.",
        )  # fmt: skip
    if dead := counters["dead"]:
        since = newly("dead", 0)
        yield look.finding(
            DEAD_LETTERS, "warning", f"{dead:,} dead letters, {since:,} more since the last look",
            f"`standpipe dead list {name}` says why; after mending that `standpipe dead requeue "
            f"{name} --all`.",
        )  # fmt: skip
    if not facts.has_limit:
        yield look.finding(
            NO_LIMIT, "note", "no max_len, max_bytes or max_age",
            f"`standpipe stream set {name} --max-bytes 2GiB`, or as much as it may have: what all "
            "have read is trimmed, and then it refuses.",
        )  # fmt: skip
    where, size = facts.largest
    if size > ENTRY_BYTES_LARGE:
        yield look.finding(
            BIG_ENTRIES, "warning", f"{where} has {size:,} bytes",
            "Keep payloads with standpipe.blobs and send their reference; smaller blocks else.",
        )  # fmt: skip


def _spread(look: _Look) -> Iterator[Finding]:
    first, last = look.facts.looks[0], look.facts.last
    if len(last.shards) > 1:
        # By what came in over the window; by what is there when nothing came.
        counts = [
            _added(before, now) for before, now in zip(first.shards, last.shards, strict=True)
        ]
        if sum(counts) < 10 * len(counts):
            counts = [shard.length for shard in last.shards]
        mean = sum(counts) / len(counts)
        top = max(range(len(counts)), key=counts.__getitem__)
        if sum(counts) >= 10 * len(counts) and counts[top] > HOT_SHARD_RATIO * mean:
            yield look.finding(
                HOT_SHARD, "warning",
                f"shard {top} has {counts[top]:,} entries, the mean of all is {mean:,.0f}",
                "Give events a key with many values: the device, not the site.",
            )  # fmt: skip
    if look.facts.nodes is not None and len(look.facts.nodes) > 1:
        yield from _over_nodes(look, look.facts.nodes)
    total = sum(look.facts.keys.values())
    if total >= 100 and len(look.facts.keys) >= 8:
        key, count = look.facts.keys.most_common(1)[0]
        if count * 100 > HOT_KEY_PERCENT * total:
            yield look.finding(
                HOT_KEY, "note", f"{key!r}: {count:,} of the last {total:,} events",
                "Split that device's readings over several keys, if their order does not matter.",
            )  # fmt: skip


def _over_nodes(look: _Look, nodes: Counter[str]) -> Iterator[Finding]:
    least, most = min(nodes.values()), max(nodes.values())
    if most - least > 1:
        told = ", ".join(f"{node}: {count}" for node, count in sorted(nodes.items()))
        yield look.finding(
            NODES, "warning", f"shards per node: {told}",
            "Give the stream at least as many shards as nodes; `redis-cli --cluster rebalance` "
            "spreads the slots.",
        )  # fmt: skip


def _added(before: Any, now: Any) -> int:
    return max(0, now.length - before.length)


def unreadable(name: str, error: StandpipeError) -> Finding:
    """What stands in place of a stream's findings when it cannot be looked at."""
    level: Level = "note" if isinstance(error, NotPermittedError) else "warning"
    return Finding(UNREADABLE, level, f"stream {name}", error.message, error.hint)
