"""The groups of a stream, shard by shard."""

from __future__ import annotations

import msgspec

from standpipe.clock import format_duration
from standpipe.errors import ConfigError, GroupNotFoundError
from standpipe.observe import GroupStatus, read_groups
from standpipe.stream import Stream


class ShardGroup(GroupStatus, frozen=True, kw_only=True):
    """A group on one shard, in Redis' own terms."""

    shard: int
    key: str


def shards_of(stream: Stream, shard: int | None) -> range:
    """The shards that are meant: all, or one.

    Raises:
        ConfigError: the stream has no such shard.
    """
    if shard is None:
        return range(stream.shards)
    if not 0 <= shard < stream.shards:
        raise ConfigError(
            f"shard is {shard}, stream {stream.name!r} has {stream.shards}",
            hint=f"Give 0 to {stream.shards - 1}, or none for all.",
        )
    return range(shard, shard + 1)


async def list_groups(stream: Stream, *, shard: int | None = None) -> list[ShardGroup]:
    """Read all groups of a stream with their consumers.

    Returns:
        By name, then shard.

    Raises:
        StreamNotFoundError: it does not exist.
        ServerError: the server cannot be reached or refuses.

    Cost: per shard and group as :func:`standpipe.observe.read_groups`.
    """
    await stream.require()
    found = [
        ShardGroup(shard=number, key=stream.keys[number], **msgspec.structs.asdict(group))
        for number in shards_of(stream, shard)
        for group in await read_groups(stream, number)
    ]
    return sorted(found, key=lambda group: (group.name, group.shard))


async def find_group(stream: Stream, group: str, shard: int | None) -> list[ShardGroup]:
    """The shards on which a group stands.

    Raises:
        GroupNotFoundError: none.
        StreamNotFoundError, ServerError: as :func:`list_groups`.
    """
    found = [each for each in await list_groups(stream, shard=shard) if each.name == group]
    if not found:
        raise no_group(stream, group, shard)
    return found


def no_group(stream: Stream, group: str, shard: int | None) -> GroupNotFoundError:
    where = "" if shard is None else f" on shard {shard}"
    return GroupNotFoundError(f"stream {stream.name!r} has no group {group!r}{where}")


def active_consumers(groups: list[ShardGroup], active_ms: int) -> list[str]:
    """Who has asked for something within so many ms, with how long ago; each name once."""
    idle: dict[str, int] = {}
    for group in groups:
        for consumer in group.consumers:
            idle[consumer.name] = min(consumer.idle_ms, idle.get(consumer.name, consumer.idle_ms))
    return [
        f"{name} (idle {format_duration(ms)})"
        for name, ms in sorted(idle.items())
        if ms < active_ms
    ]


def entries(count: int) -> str:
    """A number of entries, in words."""
    return f"{count:,} entry" if count == 1 else f"{count:,} entries"
