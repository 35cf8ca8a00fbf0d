"""What a stream and its groups look like on the server, as numbers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from standpipe.consumer import count_requeued
from standpipe.errors import NotPermittedError, ReplyError, StandpipeError
from standpipe.event import EventId
from standpipe.limits import MEMORY_WINDOW_MS, REPORT_TTL_MS
from standpipe.stream import Stream
from standpipe.wire import info_fields
from standpipe.worker import WorkerReport

log: Final = logging.getLogger("standpipe.observe")


class ConsumerStatus(msgspec.Struct, frozen=True):
    """One consumer of a group on one shard, in Redis' own terms."""

    name: str
    pending: int
    idle_ms: int
    """Since it last asked for anything."""


class GroupStatus(msgspec.Struct, frozen=True):
    """One group on one shard."""

    name: str
    lag: int | None
    """Entries not yet delivered; None where it cannot be known (see :func:`known_lag`)."""
    pending: int
    """Entries delivered and not acknowledged."""
    oldest_pending_ms: int | None
    """Age of the oldest pending entry since it was added, ms; None when nothing is pending."""
    last_delivered: str
    consumers: list[ConsumerStatus]
    behind_ms: int | None
    """Age of the oldest entry that is not acknowledged, ms; 0: all are. None: not to be read."""
    requeued: int | None
    """Dead letters that were put back for this group and are not settled yet; None where it may not
    be read."""
    lost: int | None = None
    """Events that the limits have taken from it before it had acknowledged them, since it was first
    created; None where it may not be read."""


class ShardStatus(msgspec.Struct, frozen=True):
    """One shard."""

    shard: int
    key: str
    length: int
    """Entries."""
    first: str | None
    """Entry ID of the oldest entry; None when it is empty."""
    last: str | None
    memory_bytes: int | None
    """As MEMORY USAGE estimates it; None where the command is not allowed."""
    dead: int
    """Dead letters."""
    trimmed: int | None
    """Entries that its limits have let go; None where it may not be read."""
    groups: list[GroupStatus]
    added: int | None = None
    """Entries that were ever added; None where the server does not count them (Redis 6.2)."""
    server_cpu_ms: int | None = None
    """Processor time that the thread which runs the commands of its server has used since the
    start, ms; None where it may not be asked."""


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker, as it said of itself last."""

    group: str
    name: str
    """Of its consumer."""
    age_ms: int
    """How old the report is."""
    report: WorkerReport


class StreamStatus(msgspec.Struct, frozen=True):
    """A stream, over all its shards."""

    name: str
    url: str
    shards: list[ShardStatus]
    read_at: int
    """The server's clock when it was read, ms."""
    workers: list[WorkerStatus] | None = None
    """Those that have reported within REPORT_TTL_MS; None where that may not be read."""


async def stream_status(stream: Stream) -> StreamStatus:
    """Read the state of an open stream.

    Returns:
        Shards in order, groups and consumers as the server lists them.

    Raises:
        StreamNotFoundError: it does not exist.
        ServerError: the server cannot be reached or refuses.

    Cost: per shard about seven commands in three round trips, and per group two round trips more;
        O(1) each, but for MEMORY USAGE, which samples, and what the workers report, O(workers).
    """
    await stream.require()
    seconds, micros = await stream.server.call("TIME", key=stream.keys[0])
    read_at = int(seconds) * 1000 + int(micros) // 1000
    shards = [await _shard_status(stream, shard, read_at) for shard in range(stream.shards)]
    groups = {group.name for shard in shards for group in shard.groups}
    workers = await read_workers(stream, sorted(groups))
    return StreamStatus(stream.name, stream.server.address.shown, shards, read_at, workers)


async def read_workers(stream: Stream, groups: Iterable[str]) -> list[WorkerStatus] | None:
    """What the workers of some groups of an open stream say they do.

    Returns:
        By group and name. None where that may not be read.

    Raises:
        ServerError: the server cannot be reached or refuses.

    Cost: TIME, and two commands per group, O(workers), in one round trip.
    """
    names = list(groups)
    commands: list[tuple[str | int, ...]] = []
    for name in names:
        reports, until = stream.report_keys(name)
        commands += [("HGETALL", reports), ("ZRANGE", until, 0, -1, "WITHSCORES")]
    clock, *replies = await stream.server.call_many([("TIME",), *commands], key=stream.keys[0])
    for reply in (clock, *replies):
        if isinstance(reply, NotPermittedError):
            return None
        if isinstance(reply, StandpipeError):
            raise reply
    now = int(clock[0]) * 1000 + int(clock[1]) // 1000
    found: list[WorkerStatus] = []
    for group, reports, until in zip(names, replies[::2], replies[1::2], strict=True):
        ends = {name: int(end) for name, end in until}
        for name, raw in sorted(reports.items()):
            # One that ended goes when another reports, or with the whole.
            if (end := ends.get(name, 0)) > now:
                age_ms = max(0, now - (end - REPORT_TTL_MS))
                found.append(WorkerStatus(group, name.decode(), age_ms, _read_report(raw)))
    return found


def _read_report(raw: bytes) -> WorkerReport:
    try:
        return msgspec.json.decode(raw, type=WorkerReport)
    except msgspec.MsgspecError as error:
        # Of another version, perhaps: that it is there is worth knowing all the same.
        log.warning("a worker's report cannot be read: %s", error)
        return WorkerReport()


async def _shard_status(stream: Stream, shard: int, now: int) -> ShardStatus:
    key = stream.keys[shard]
    info, groups, memory, dead, ringed, cpu, lost = await stream.server.call_many(
        [
            ("XINFO", "STREAM", key),
            ("XINFO", "GROUPS", key),
            ("MEMORY", "USAGE", key),
            ("XLEN", stream.dead_key(shard)),
            ("GET", stream.trimmed_key(shard)),
            ("INFO", "cpu"),
            ("HGETALL", stream.lost_key(shard)),
        ],
        key=key,
    )
    dead = 0 if isinstance(dead, StandpipeError) else dead
    trimmed = None if isinstance(ringed, StandpipeError) else int(ringed or 0)
    if _is_missing(info):
        # A shard that no event has reached yet: that is no fault.
        return ShardStatus(shard, key, 0, None, None, 0, dead, trimmed, [])
    if isinstance(info, StandpipeError):
        raise info
    if isinstance(groups, StandpipeError):
        raise groups
    found = info_map(info)
    return ShardStatus(
        shard=shard,
        key=key,
        length=found["length"],
        first=_first_id(found.get("first-entry")),
        last=_first_id(found.get("last-entry")),
        memory_bytes=memory if isinstance(memory, int) else None,
        dead=dead,
        trimmed=trimmed,
        groups=[
            _with_lost(await _group_status(stream, shard, found, info_map(group), now), lost)
            for group in groups
        ],
        added=found.get("entries-added"),
        server_cpu_ms=None if isinstance(cpu, StandpipeError) else _cpu_ms(info_fields(cpu)),
    )


def _with_lost(group: GroupStatus, lost: Any) -> GroupStatus:
    if isinstance(lost, StandpipeError):
        return group
    count = int(lost.get(f"group:{group.name}".encode(), 0))
    return msgspec.structs.replace(group, lost=count)


def _cpu_ms(fields: Mapping[str, str]) -> int | None:
    try:
        system, user = (float(fields[f"used_cpu_{kind}_main_thread"]) for kind in ("sys", "user"))
    except KeyError:
        return None  # Not every system counts by thread.
    return round((system + user) * 1000)


async def read_groups(stream: Stream, shard: int) -> list[GroupStatus]:
    """Read the groups on one shard of an open stream.

    Returns:
        As the server lists them; none where no event or group has reached the shard yet.

    Raises:
        WrongTypeError: its key holds something else.
        ServerError: the server cannot be reached or refuses.

    Cost: XINFO STREAM, XINFO GROUPS and TIME; per group XPENDING, XINFO CONSUMERS and XLEN, and a
    script if something was requeued for it.
    """
    key = stream.keys[shard]
    info, groups, clock = await stream.server.call_many(
        [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key), ("TIME",)], key=key
    )
    if _is_missing(info):
        return []
    for reply in (info, groups, clock):
        if isinstance(reply, StandpipeError):
            raise reply
    now = int(clock[0]) * 1000 + int(clock[1]) // 1000
    found = info_map(info)
    return [await _group_status(stream, shard, found, info_map(group), now) for group in groups]


async def _group_status(
    stream: Stream, shard: int, info: Mapping[str, Any], group: Mapping[str, Any], now: int
) -> GroupStatus:
    key = stream.keys[shard]
    name: bytes = group["name"]
    pending, consumers, requeued = await stream.server.call_many(
        [
            ("XPENDING", key, name),
            ("XINFO", "CONSUMERS", key, name),
            ("XLEN", stream.requeued_key(shard, name.decode())),
        ],
        key=key,
    )
    for reply in (pending, consumers):
        if isinstance(reply, StandpipeError):
            raise reply
    # What is settled may still stand there: only whether there is anything does its length say.
    if isinstance(requeued, StandpipeError):
        requeued = None
    elif requeued:
        requeued = await count_requeued(stream, name.decode(), shard)
    oldest = None if pending[1] is None else now - EventId.parse(pending[1]).ms
    lag, behind = known_lag(info, group), oldest
    if oldest is None and lag == 0:
        behind = 0
    elif oldest is None:
        # When the entry came that is delivered next, only that entry knows.
        after = b"(" + group["last-delivered-id"]
        (rows,) = await stream.server.call_many([("XRANGE", key, after, "+", "COUNT", 1)], key=key)
        if not isinstance(rows, StandpipeError):
            behind = now - EventId.parse(rows[0][0]).ms if rows else 0
    return GroupStatus(
        name=name.decode(),
        lag=lag,
        pending=pending[0],
        oldest_pending_ms=oldest,
        last_delivered=group["last-delivered-id"].decode(),
        consumers=[
            ConsumerStatus(row["name"].decode(), row["pending"], row["idle"])
            for row in map(info_map, consumers)
        ],
        behind_ms=None if behind is None else max(0, behind),
        requeued=requeued,
    )


def known_lag(info: Mapping[str, Any], group: Mapping[str, Any]) -> int | None:
    """How many entries of a shard a group has not been given yet.

    Args:
        info: The reply to XINFO STREAM.
        group: The group's part of the reply to XINFO GROUPS.

    Returns:
        Exact at the ends of the stream: 0 behind the newest entry, all of them before the oldest.
        In between what the server says; None where it does not know (entries were deleted, the
        group was put there by ID, Redis 6.2).
    """
    last_delivered = EventId.parse(group["last-delivered-id"])
    first, last = (_first_id(info.get(f"{end}-entry")) for end in ("first", "last"))
    if first is None or last is None or last_delivered >= EventId.parse(last):
        return 0
    if last_delivered < EventId.parse(first):
        # Redis 7.0 and Valkey count what was trimmed before it was delivered as lag, too.
        return info["length"]
    # What lies behind it is there, so a server that says 0 is wrong.
    lag = group.get("lag")
    return lag if lag and lag > 0 else None


def _is_missing(reply: Any) -> bool:
    return isinstance(reply, ReplyError) and "no such key" in str(reply)


def info_map(reply: Any) -> dict[str, Any]:
    """XINFO answers with maps over RESP3, and with flat lists in versions that never changed it."""
    if isinstance(reply, dict):
        pairs: Any = reply.items()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def _first_id(entry: Any) -> str | None:
    return None if entry is None else entry[0].decode()


# --- memory --------------------------------------------------------------------------------------


class ServerMemory(msgspec.Struct, frozen=True):
    """The memory of one server that has shards of a stream."""

    shards: list[int]
    used_bytes: int
    """As the server counts it against maxmemory."""
    maxmemory_bytes: int | None
    """None: no limit but that of the machine."""
    policy: str
    """What it does at maxmemory; with anything but ``noeviction`` it deletes, and never refuses."""
    bytes_per_s: float
    """How fast it grows, all that is on it; negative: it shrinks."""
    full_in_ms: int | None
    """When it is full at this rate, ms; None: never."""


class MemoryWatch(msgspec.Struct, frozen=True):
    """What a stream takes, and how long its servers can go on like this."""

    bytes: int
    """Of all shards, as MEMORY USAGE estimates it."""
    bytes_per_s: float
    """How fast it grows; negative: it shrinks."""
    limit_in_ms: int | None
    """When the first shard has reached its part of max_bytes at its rate, ms; None: never."""
    over_ms: int
    """Between the two readings."""
    servers: list[ServerMemory]


async def watch_memory(stream: Stream, *, over_ms: int = MEMORY_WINDOW_MS) -> MemoryWatch:
    """Read a stream's memory twice, and say where it is going.

    Args:
        stream: The stream, open.
        over_ms: Time between the two readings, ms.

    Raises:
        ServerError: a server cannot be reached or refuses.

    Cost: twice per shard MEMORY USAGE, which samples, and INFO.
    """
    began = time.monotonic()
    first = [await _memory(stream, shard) for shard in range(stream.shards)]
    await asyncio.sleep(over_ms / 1000)
    last = [await _memory(stream, shard) for shard in range(stream.shards)]
    seconds = time.monotonic() - began
    servers: dict[str, ServerMemory] = {}
    limits: list[int | None] = []
    for shard, (was, now) in enumerate(zip(first, last, strict=True)):
        rate = (now.bytes - was.bytes) / seconds
        limits.append(_reached_in_ms(now.bytes, stream.definition.bytes_max, rate))
        if now.server in servers:
            servers[now.server].shards.append(shard)
            continue
        rate = (now.used - was.used) / seconds if now.server == was.server else 0.0
        servers[now.server] = ServerMemory(
            shards=[shard],
            used_bytes=now.used,
            maxmemory_bytes=now.maxmemory,
            policy=now.policy,
            bytes_per_s=rate,
            full_in_ms=_reached_in_ms(now.used, now.maxmemory, rate),
        )
    return MemoryWatch(
        bytes=sum(each.bytes for each in last),
        bytes_per_s=sum(b.bytes - a.bytes for a, b in zip(first, last, strict=True)) / seconds,
        limit_in_ms=min((ms for ms in limits if ms is not None), default=None),
        over_ms=round(seconds * 1000),
        servers=list(servers.values()),
    )


class _Memory(NamedTuple):
    """What is read of a shard and its server."""

    bytes: int
    server: str
    used: int
    maxmemory: int | None
    policy: str


async def _memory(stream: Stream, shard: int) -> _Memory:
    key = stream.keys[shard]
    size, *replies = await stream.server.call_many(
        [("MEMORY", "USAGE", key), ("INFO", "server"), ("INFO", "memory")], key=key
    )
    for reply in (size, *replies):
        if isinstance(reply, StandpipeError):
            raise reply
    about, memory = map(info_fields, replies)
    return _Memory(
        bytes=size or 0,
        server=about["run_id"],
        used=int(memory["used_memory"]) - int(memory.get("mem_not_counted_for_evict", 0)),
        maxmemory=int(memory["maxmemory"]) or None,
        policy=memory["maxmemory_policy"],
    )


def _reached_in_ms(used: int, limit: int | None, bytes_per_s: float) -> int | None:
    if limit is None or bytes_per_s <= 0:
        return None
    return round(max(0, limit - used) / bytes_per_s * 1000)
