"""What retention would let go of a stream now, and who holds the rest."""

from __future__ import annotations

from typing import Any, Literal, cast

import msgspec

from standpipe.clock import format_duration
from standpipe.event import EventId
from standpipe.limits import ENTRIES_PER_LOOK, RETAIN_COUNT_MAX
from standpipe.observe import GroupStatus, read_groups
from standpipe.retention import ShardLook, janitor_of, look
from standpipe.retention.janitor import keep_bytes, keep_entries
from standpipe.stream import Stream


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is not done with a shard yet."""

    kind: Literal["unread", "pending", "archive"]
    name: str
    """The group; of an archive ``archive``."""
    first: str
    """The entry ID from which on everything is held."""
    age_ms: int | None
    """How long ago that entry was added; None: there is none, as when the group begins at 0."""
    waiting: int | None
    """Entries that the group has not been given, or has pending; None: it cannot be known."""
    consumer: str | None = None
    """Who has the oldest pending entry."""
    idle_ms: int | None = None
    """How long ago that consumer, or of an unread one the last of the group, asked for anything."""
    is_first: bool
    """Whether it is what holds the shard: it goes on when this has."""
    seen: str
    """The same in a sentence."""
    do: str
    """What to do, likewise."""


class ShardHolding(msgspec.Struct, frozen=True, kw_only=True):
    """One shard."""

    shard: int
    key: str
    entries: int
    bytes: int
    over: int
    """Entries that the limits would let go, if nobody held them."""
    goes: int
    """Of these, those that would go now."""
    is_exact: bool
    """Whether these are the numbers, or at least so many: more than RETAIN_COUNT_MAX are not
    counted."""
    holds: list[Hold]
    """Who is not done with the shard, the first one first."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A stream."""

    stream: str
    when_full: Literal["block", "ring"]
    max_len: int | None
    max_bytes: int | None
    max_age_ms: int | None
    janitor: str | None
    """Who keeps it within its limits now, as ``host:pid:…``; None: nobody."""
    shards: list[ShardHolding]


async def what_holds(stream: Stream, *, idle_ms_min: int) -> Holding:
    """Look at what retention would do to a stream; nothing is changed.

    Args:
        stream: The stream, open.
        idle_ms_min: A consumer that has not asked for anything for so long counts as dead.

    Raises:
        StreamNotFoundError: it does not exist.
        ConfigError: it is another one by now, not only with other limits.
        ServerError: the server cannot be reached or refuses.

    Cost: per shard what a look of the janitor costs and what reading its groups does; up to
        RETAIN_COUNT_MAX entries are read to be counted.
    """
    await stream.refresh()
    await stream.require()
    definition = stream.definition
    shards = [await _shard(stream, shard, idle_ms_min) for shard in range(stream.shards)]
    return Holding(
        stream=stream.name, **definition.limits, janitor=await janitor_of(stream), shards=shards
    )


async def _shard(stream: Stream, shard: int, idle_ms_min: int) -> ShardHolding:
    found = await look(stream, shard, "look")
    key, definition = stream.keys[shard], stream.definition
    over = _excess(found, keep_entries(definition), keep_bytes(definition))
    is_exact = True
    if found.old is not None:
        too_old, is_exact = await _count_before(stream, key, found.old, found.entries)
        over = max(over, too_old)
    goes, is_counted = over, True
    if found.safe is not None:
        goes, is_counted = await _count_before(stream, key, found.safe, over)
    if definition.when_full == "ring":
        hard = _excess(found, definition.entries_max, definition.bytes_max)
        goes = over if found.old is not None else max(goes, hard)
    return ShardHolding(
        shard=shard,
        key=key,
        entries=found.entries,
        bytes=found.bytes,
        over=over,
        goes=goes,
        is_exact=is_exact and is_counted,
        holds=await _holds(stream, shard, found, idle_ms_min),
    )


def _excess(found: ShardLook, entries_max: int | None, bytes_max: int | None) -> int:
    """As ``lua/retain.lua`` counts it."""
    over = 0 if entries_max is None else found.entries - entries_max
    if bytes_max is not None and found.bytes > bytes_max:
        over = max(over, found.entries - found.entries * bytes_max // found.bytes)
    return max(0, over)


async def _count_before(stream: Stream, key: str, end: str, most: int) -> tuple[int, bool]:
    """How many entries lie before an ID, of so many at most, and whether all were counted."""
    found, start = 0, "-"
    while found < most:
        if found >= RETAIN_COUNT_MAX:
            return found, False
        count = min(ENTRIES_PER_LOOK, most - found)
        rows: list[Any] = await stream.server.call(
            "XRANGE", key, start, f"({end}", "COUNT", count, key=key
        )
        found += len(rows)
        if len(rows) < count:
            break
        start = f"({rows[-1][0].decode()}"
    return found, True


# --- who holds -----------------------------------------------------------------------------------


async def _holds(stream: Stream, shard: int, found: ShardLook, idle_ms_min: int) -> list[Hold]:
    key = stream.keys[shard]
    newest, clock, cursor = await stream.server.call_many(
        [
            ("XREVRANGE", key, "+", "-", "COUNT", 1),
            ("TIME",),
            ("GET", stream.archived_key(shard)),
        ],
        key=key,
    )
    rows = cast("list[Any]", newest) if isinstance(newest, list) else []
    if not rows:
        return []
    last = EventId.parse(rows[0][0].decode())
    now = int(clock[0]) * 1000 + int(clock[1]) // 1000
    holds: list[Hold] = []
    for group in await read_groups(stream, shard):
        if group.pending:
            holds.append(await _pending(stream, shard, group, now, idle_ms_min))
        if EventId.parse(group.last_delivered) < last:
            holds.append(_unread(stream, group, now))
    if isinstance(cursor, bytes) and _position(cursor.decode()) < last:
        holds.append(_archive(stream, cursor.decode(), now))
    # A pending entry is held itself; of what has been read or archived only what comes after it.
    holds.sort(key=lambda hold: (_position(hold.first), hold.kind != "pending"))
    return [msgspec.structs.replace(hold, is_first=place == 0) for place, hold in enumerate(holds)]


async def _pending(
    stream: Stream, shard: int, group: GroupStatus, now: int, idle_ms_min: int
) -> Hold:
    key = stream.keys[shard]
    rows: list[Any] = await stream.server.call("XPENDING", key, group.name, "-", "+", 1, key=key)
    # Acknowledged meanwhile, it holds nothing any more, and the next look says so.
    first, consumer = (rows[0][0].decode(), rows[0][1].decode()) if rows else ("0-0", None)
    idle_ms = next((each.idle_ms for each in group.consumers if each.name == consumer), None)
    age_ms = _age(first, now)
    seen = f"group {group.name} has {entries(group.pending)} pending, the oldest {first}"
    if age_ms is not None:
        seen += f", added {_ago(age_ms)}"
    if consumer is not None and idle_ms is not None:
        seen += f", with consumer {consumer}, which last asked for something {_ago(idle_ms)}"
    if idle_ms is not None and idle_ms >= idle_ms_min:
        do = (
            f"If {consumer} is dead, any worker of {group.name} takes over; by hand: "
            f"`standpipe claim {stream.name} {group.name} --from {consumer} --to OTHER`."
        )
    else:
        do = f"See what its handler is at: `standpipe pending {stream.name} {group.name}`."
    return Hold(
        kind="pending",
        name=group.name,
        first=first,
        age_ms=age_ms,
        waiting=group.pending,
        consumer=consumer,
        idle_ms=idle_ms,
        is_first=False,
        seen=seen,
        do=do,
    )


def _unread(stream: Stream, group: GroupStatus, now: int) -> Hold:
    age_ms = _age(group.last_delivered, now)
    idle_ms = min((each.idle_ms for each in group.consumers), default=None)
    lag = "some entries" if group.lag is None else entries(group.lag)
    begun = "has read nothing yet" if age_ms is None else f"has read up to what came {_ago(age_ms)}"
    seen = f"group {group.name} {begun} and has {lag} to go"
    if idle_ms is None:
        seen += ", without any consumer"
        do = (
            f"Start a worker of {group.name}; if nobody needs the group any more: "
            f"`standpipe group delete {stream.name} {group.name} --force`."
        )
    else:
        seen += f"; a consumer last asked for something {_ago(idle_ms)}"
        do = (
            f"Run more workers of {group.name}, or let it skip what it has not read: "
            f"`standpipe group set {stream.name} {group.name} --to end`."
        )
    return Hold(
        kind="unread",
        name=group.name,
        first=group.last_delivered,
        age_ms=age_ms,
        waiting=group.lag,
        idle_ms=idle_ms,
        is_first=False,
        seen=seen,
        do=do,
    )


def _archive(stream: Stream, cursor: str, now: int) -> Hold:
    age_ms = _age(cursor, now)
    begun = "has nothing yet" if age_ms is None else f"has what came until {_ago(age_ms)}"
    return Hold(
        kind="archive",
        name="archive",
        first=cursor,
        age_ms=age_ms,
        waiting=None,
        is_first=False,
        seen=f"the archive {begun}, its cursor is {cursor}",
        do=f"Run the archiver: `standpipe archive run {stream.name}`.",
    )


def _position(text: str) -> EventId:
    """An entry ID; what is none holds everything."""
    head, _, tail = text.partition("-")
    return EventId.parse(text) if head.isdigit() and tail.isdigit() else EventId(0, 0)


def _age(entry_id: str, now: int) -> int | None:
    ms = _position(entry_id).ms
    return max(0, now - ms) if ms else None


def _ago(ms: int) -> str:
    return f"{format_duration(ms)} ago"


def entries(count: int) -> str:
    """A number of entries, in words."""
    return f"{count:,} entry" if count == 1 else f"{count:,} entries"
