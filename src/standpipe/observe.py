"""What a stream and its groups look like on the server, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from standpipe.errors import ReplyError, StandpipeError
from standpipe.stream import Stream


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
    """Entries not yet delivered; None where the server cannot know it (deletions, Redis 6.2)."""
    pending: int
    """Entries delivered and not acknowledged."""
    oldest_pending_ms: int | None
    """Age of the oldest pending entry since it was added, ms; None when nothing is pending."""
    last_delivered: str
    consumers: list[ConsumerStatus]


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
    """Entries that a ring has trimmed to stay within its limits; None where it may not be read."""
    groups: list[GroupStatus]


class StreamStatus(msgspec.Struct, frozen=True):
    """A stream, over all its shards."""

    name: str
    url: str
    shards: list[ShardStatus]
    read_at: int
    """The server's clock when it was read, ms."""


async def stream_status(stream: Stream) -> StreamStatus:
    """Read the state of an open stream.

    Returns:
        Shards in order, groups and consumers as the server lists them.

    Raises:
        StreamNotFoundError: it does not exist.
        ServerError: the server cannot be reached or refuses.

    Cost: per shard about six commands in three round trips, one more per group; O(1) each, but for
        MEMORY USAGE, which samples.
    """
    await stream.require()
    seconds, micros = await stream.server.call("TIME", key=stream.keys[0])
    read_at = int(seconds) * 1000 + int(micros) // 1000
    shards = [await _shard_status(stream, shard, read_at) for shard in range(stream.shards)]
    return StreamStatus(stream.name, stream.server.address.shown, shards, read_at)


async def _shard_status(stream: Stream, shard: int, now: int) -> ShardStatus:
    key = stream.keys[shard]
    info, groups, memory, dead, ringed = await stream.server.call_many(
        [
            ("XINFO", "STREAM", key),
            ("XINFO", "GROUPS", key),
            ("MEMORY", "USAGE", key),
            ("XLEN", stream.dead_key(shard)),
            ("GET", stream.trimmed_key(shard)),
        ],
        key=key,
    )
    dead = 0 if isinstance(dead, StandpipeError) else dead
    trimmed = None if isinstance(ringed, StandpipeError) else int(ringed or 0)
    if isinstance(info, ReplyError) and "no such key" in str(info):
        # A shard that no event has reached yet: that is no fault.
        return ShardStatus(shard, key, 0, None, None, 0, dead, trimmed, [])
    if isinstance(info, StandpipeError):
        raise info
    if isinstance(groups, StandpipeError):
        raise groups
    found = _mapping(info)
    return ShardStatus(
        shard=shard,
        key=key,
        length=found["length"],
        first=_first_id(found.get("first-entry")),
        last=_first_id(found.get("last-entry")),
        memory_bytes=memory if isinstance(memory, int) else None,
        dead=dead,
        trimmed=trimmed,
        groups=[await _group_status(stream, key, _mapping(group), now) for group in groups],
    )


async def _group_status(
    stream: Stream, key: str, group: Mapping[str, Any], now: int
) -> GroupStatus:
    name: bytes = group["name"]
    pending, consumers = await stream.server.call_many(
        [("XPENDING", key, name), ("XINFO", "CONSUMERS", key, name)], key=key
    )
    for reply in (pending, consumers):
        if isinstance(reply, StandpipeError):
            raise reply
    oldest = None if pending[1] is None else now - int(pending[1].partition(b"-")[0])
    return GroupStatus(
        name=name.decode(),
        lag=group.get("lag"),
        pending=pending[0],
        oldest_pending_ms=oldest,
        last_delivered=group["last-delivered-id"].decode(),
        consumers=[
            ConsumerStatus(row["name"].decode(), row["pending"], row["idle"])
            for row in map(_mapping, consumers)
        ],
    )


def _mapping(reply: Any) -> dict[str, Any]:
    """XINFO answers with maps over RESP3, and with flat lists in versions that never changed it."""
    if isinstance(reply, dict):
        pairs: Any = reply.items()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def _first_id(entry: Any) -> str | None:
    return None if entry is None else entry[0].decode()
