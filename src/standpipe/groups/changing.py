"""Creating, moving and deleting groups, and removing their consumers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from standpipe.clock import format_duration
from standpipe.errors import (
    ConfigError,
    ConsumerNotFoundError,
    GroupInUseError,
    NotKeptError,
    ReplyError,
    StandpipeError,
)
from standpipe.event import EventId
from standpipe.groups.counting import How, count_between
from standpipe.groups.shards import (
    ShardGroup,
    active_consumers,
    entries,
    find_group,
    shards_of,
)
from standpipe.limits import IDLE_MS_MIN, MOVE_COUNT_MAX
from standpipe.observe import info_map
from standpipe.reader import (
    SEQ_MAX,
    Kept,
    Point,
    id_before,
    parse_point,
    read_kept,
    shown_point,
)
from standpipe.stream import Stream
from standpipe.wire import script


class Created(msgspec.Struct, frozen=True):
    """What :func:`create_group` did on one shard."""

    shard: int
    key: str
    outcome: Literal["created", "exists"]
    is_new_stream: bool
    """Whether the shard's key was not there: it is now, empty."""


class Moved(msgspec.Struct, frozen=True):
    """What :func:`move_group` does on one shard."""

    shard: int
    key: str
    before: str
    """Its last-delivered ID until then."""
    after: str
    skipped: int
    """Entries that have not been delivered and will not be."""
    again: int
    """Entries that have been passed and will be delivered again."""
    is_exact: bool
    """False: the two are lower bounds, as counting ended at its limit."""
    skipped_events: int = 0
    """Events in the entries that will be skipped."""
    again_events: int = 0
    """Events in the entries that will be delivered again."""
    events_are: How = "exact"
    """How the two were found: ``estimated`` from a sample, or ``at least`` so many."""
    pending: int = 0
    """Entries that are pending: they stay so. Of those behind the new point a further delivery is
    under way as well: it takes them from whoever has them."""
    lacks: bool = False
    """Whether the new point is older than the oldest entry that is kept, and entries that lay
    between the two are gone."""
    oldest: str | None = None
    """The oldest entry that is kept; None: there is none."""


class Deleted(msgspec.Struct, frozen=True):
    """What :func:`delete_group` does on one shard, and what the group had there."""

    shard: int
    key: str
    outcome: Literal["deleted", "kept", "changed"]
    """``kept``: a dry run; ``changed``: it was read from meanwhile, and is left as it is."""
    pending: int
    lag: int | None
    """Entries that it had not been given; None: not known."""
    requeued: int
    """Dead letters that were requeued for it and wait: they stay, for a group of its name."""
    last_delivered: str


class Removed(msgspec.Struct, frozen=True):
    """What :func:`remove_consumer` did on one shard."""

    shard: int
    key: str
    outcome: Literal["removed", "absent", "pending", "active"]
    """The last two: it came back to work meanwhile, and is left as it is."""
    pending: int


# --- create, move --------------------------------------------------------------------------------


async def create_group(
    stream: Stream,
    group: str,
    start: Point = "begin",
    *,
    shard: int | None = None,
    from_oldest: bool = True,
) -> list[Created]:
    """Create a group, on the shards where it does not stand yet; the others stay as they are.

    Args:
        stream: An open stream; shards that are not there yet are created, empty, as a worker does.
        group: Its name.
        start: What it is given first: ``begin``, ``end`` (what comes from now on: silently skips
            what came before), a time, or an entry ID, itself included.
        shard: This one alone.
        from_oldest: Begin at the oldest entry there is where ``start`` is older than that, instead
            of raising NotKeptError.

    Raises:
        ConfigError: a name or a point that is none, or a point in the future.
        NotKeptError: nothing as old as ``start`` is kept, and ``from_oldest`` is False.
        StreamNotFoundError: ``from_oldest`` is False, and there is no stream.
        EventError: the point looks like an ID and is none.
        WrongTypeError: a shard's key holds something else.
        ServerError: the server cannot be reached or refuses; the group may then stand on some
            shards. Calling it again creates the rest.

    Cost: TIME, XINFO STREAM, EXISTS and XGROUP CREATE per shard, in two round trips.
    """
    if not group or any(c.isspace() for c in group):
        raise ConfigError(f"group is {group!r}", hint="Give the group a name without spaces.")
    last_delivered = _last_delivered(start, "start")
    await _require_past(stream, start, last_delivered, shard)
    if not from_oldest:
        await stream.require()
        kept = {number: await read_kept(stream, number) for number in shards_of(stream, shard)}
        _require_kept(stream, last_delivered, kept)
    found: list[Created] = []
    for number in shards_of(stream, shard):
        key = stream.keys[number]
        existed, reply = await stream.server.call_many(
            [
                ("EXISTS", key),
                ("XGROUP", "CREATE", key, group, last_delivered, "MKSTREAM"),
            ],
            key=key,
        )
        is_there = isinstance(reply, ReplyError) and "BUSYGROUP" in str(reply)
        for error in (existed, None if is_there else reply):
            if isinstance(error, StandpipeError):
                raise error
        found.append(Created(number, key, "exists" if is_there else "created", existed == 0))
    return found


async def move_group(
    stream: Stream,
    group: str,
    to: Point,
    *,
    shard: int | None = None,
    active_ms: int = IDLE_MS_MIN,
    count_max: int = MOVE_COUNT_MAX,
    dry_run: bool = False,
    force: bool = False,
    from_oldest: bool = False,
) -> list[Moved]:
    """Move a group: what it is given next is what is added at, or stands behind, a point.

    What it has pending stays pending. Of that, what stands behind the point is delivered again as
    well, and taken from whoever has it.

    Args:
        stream: An open stream.
        group: Its name.
        to: As ``start`` of :func:`create_group`. ``end`` is the newest entry that is there now.
        shard: On this one alone.
        active_ms: A consumer that asked for something within so many ms is at work.
        count_max: Entries of a shard that are counted by reading them, at most.
        dry_run: Count, and change nothing.
        force: Also under consumers at work: they go on from the new point.
        from_oldest: Go to the oldest entry there is where ``to`` is older than that, instead of
            raising NotKeptError; a dry run says so and raises nothing.

    Returns:
        Per shard on which it stands, what is skipped or delivered again, in entries and events.

    Raises:
        NotKeptError: nothing as old as ``to`` is kept.
        GroupInUseError: consumers are at work, and neither dry_run nor force is given.
        GroupNotFoundError: it stands on no shard.
        ConfigError, EventError: a point that is none, or in the future.
        ServerError: the server cannot be reached or refuses; it may then be moved on some shards.

    Cost: XGROUP SETID and a script per shard. Counting: a script per COUNT_PAGE_ENTRIES entries;
        all of them, up to ``count_max``, or a sample of COUNT_SAMPLE_ENTRIES where the lag is known
        and the point lies at an end of the stream.
    """
    wanted = _last_delivered(to, "to")
    found = await find_group(stream, group, shard)
    await _require_past(stream, to, wanted, shard)
    active = active_consumers(found, active_ms)
    if active and not force and not dry_run:
        raise GroupInUseError(
            f"group {group!r} has consumers at work: {', '.join(active)}",
            hint="Stop them first. With --force they go on from the new point; "
            "--dry-run says what it would skip or deliver again.",
        )
    kept = {each.shard: await read_kept(stream, each.shard) for each in found}
    if not dry_run and not from_oldest:
        _require_kept(stream, wanted, kept)
    moves = [await _move(stream, each, wanted, count_max, kept[each.shard]) for each in found]
    if not dry_run:
        for at, each in enumerate(moves):
            await stream.server.call("XGROUP", "SETID", each.key, group, each.after, key=each.key)
            # Nothing behind the point was the group's until now: it may have gone while it was
            # counted.
            now = await read_kept(stream, each.shard)
            moves[at] = msgspec.structs.replace(
                each,
                lacks=_lacks(now, wanted),
                oldest=None if now.first is None else now.first.entry,
            )
    return moves


async def _move(
    stream: Stream, group: ShardGroup, wanted: str, count_max: int, kept: Kept
) -> Moved:
    key = group.key
    info = info_map(await stream.server.call("XINFO", "STREAM", key, key=key))
    # The ID that "$" stands for now: what comes before the group is moved is not skipped unsaid.
    after = info["last-generated-id"].decode() if wanted == "$" else wanted
    old, new = EventId.parse(group.last_delivered), EventId.parse(after)
    first, last = info["first-entry"], info["last-entry"]
    is_forward = new > old
    known: int | None = None
    if new == old or first is None:
        known = 0
    elif group.lag is not None and is_forward and new >= EventId.parse(last[0]):
        known = group.lag
    elif group.lag is not None and not is_forward and new < EventId.parse(first[0]):
        known = info["length"] - group.lag
    low, high = (old, new) if is_forward else (new, old)
    count = await count_between(
        stream, key, low.entry, high.entry, entries=known, count_max=count_max
    )
    return Moved(
        shard=group.shard,
        key=key,
        before=group.last_delivered,
        after=after,
        skipped=count.entries if is_forward else 0,
        again=0 if is_forward else count.entries,
        is_exact=count.is_exact,
        skipped_events=count.events if is_forward else 0,
        again_events=0 if is_forward else count.events,
        events_are=count.events_are,
        pending=group.pending,
        lacks=_lacks(kept, wanted),
        oldest=None if first is None else first[0].decode(),
    )


def _lacks(kept: Kept, last_delivered: str) -> bool:
    """Whether entries behind a point are gone; `begin` takes what there is, and lacks nothing."""
    return last_delivered not in ("$", "0-0") and kept.lacks(_first_behind(last_delivered))


def _first_behind(last_delivered: str) -> EventId:
    ms, seq, _ = EventId.parse(last_delivered)
    return EventId(ms + 1, 0) if seq == SEQ_MAX else EventId(ms, seq + 1)


def _require_kept(stream: Stream, last_delivered: str, kept: Mapping[int, Kept]) -> None:
    """Raise if nothing as old as a point is kept, though it was there."""
    if not any(_lacks(each, last_delivered) for each in kept.values()):
        return
    start = _first_behind(last_delivered)
    oldest = [each.first for each in kept.values() if each.first is not None]
    if any(first <= start for first in oldest):
        return
    shown = "there is nothing" if not oldest else f"it begins at {shown_point(min(oldest))}"
    raise NotKeptError(
        f"stream {stream.name!r} has nothing as old as {shown_point(start)} any more: {shown}",
        oldest=min(oldest, default=None),
        hint="Give that time or a later one, `begin`, or --from-oldest (from_oldest=True).",
    )


def _last_delivered(point: Point, name: str) -> str:
    """The ID that XGROUP takes, so that the entry at the point is the next one."""
    text = point.strip() if isinstance(point, str) else point
    if text in ("begin", "0", "-"):
        return "0-0"
    if text in ("end", "$"):
        return "$"
    if (isinstance(text, str) and "/" in text) or isinstance(text, EventId):
        found = EventId.parse(text) if isinstance(text, str) else text
        if found.index:
            raise ConfigError(
                f"{name} is {found}, an event inside an entry",
                hint=f"A group is given whole entries: write {found.entry}.",
            )
    return id_before(parse_point(text, name, is_end=False)).decode()


async def _require_past(
    stream: Stream, point: Point, last_delivered: str, shard: int | None
) -> None:
    """Refuse a point to come: what is added until then would be skipped without a word."""
    if last_delivered == "$":
        return
    wanted = EventId.parse(last_delivered)
    for number in shards_of(stream, shard):
        key = stream.keys[number]
        clock, info = await stream.server.call_many([("TIME",), ("XINFO", "STREAM", key)], key=key)
        if isinstance(clock, StandpipeError):
            raise clock
        # The newest entry may be ahead of the clock: other producers choose their own IDs.
        newest = 0
        if not isinstance(info, StandpipeError):
            newest = EventId.parse(info_map(info)["last-generated-id"]).ms
        if wanted.ms > max(int(clock[0]) * 1000 + 999, newest):
            raise ConfigError(
                f"{point} is in the future of {key}",
                hint="A group there skips all that is added until then; `end` is what comes next.",
            )


# --- delete, remove ------------------------------------------------------------------------------


async def delete_group(
    stream: Stream,
    group: str,
    *,
    shard: int | None = None,
    active_ms: int = IDLE_MS_MIN,
    dry_run: bool = False,
    force: bool = False,
) -> list[Deleted]:
    """Delete a group, if nothing is lost by it.

    The entries stay in the stream. What is lost is that the group knew which of them it had to
    handle. A worker at work would create it again, and be given everything.

    Args:
        stream: An open stream.
        group: Its name.
        shard: On this one alone.
        active_ms: A consumer that asked for something within so many ms is at work.
        dry_run: Say what it has, and delete nothing.
        force: Also with entries pending or not delivered, and under consumers at work.

    Returns:
        Per shard on which it stood, what it had.

    Raises:
        GroupInUseError: something is pending, not delivered or requeued for it, that is not known,
            or consumers are at work; and neither dry_run nor force is given. Nothing was deleted.
        GroupNotFoundError: it stands on no shard.
        ServerError: the server cannot be reached or refuses; it may then be gone from some shards.

    Cost: waiting.lua and XGROUP DESTROY per shard, beside looking.
    """
    found = await find_group(stream, group, shard)
    requeued = [
        await stream.server.run(script("waiting"), (stream.requeued_key(each.shard, group),))
        for each in found
    ]
    if not force and not dry_run and (reasons := _losses(found, sum(requeued), active_ms)):
        raise GroupInUseError(
            f"group {group!r} of {stream.name!r} is in use: {'; '.join(reasons)}",
            hint="Let workers handle it, or look at it with `standpipe pending`; "
            "--force deletes the group and what it had to handle with it.",
        )
    deleted: list[Deleted] = []
    for each, letters in zip(found, requeued, strict=True):
        outcome: Literal["deleted", "kept", "changed"] = "kept"
        if not dry_run:
            is_gone = (
                await stream.server.call("XGROUP", "DESTROY", each.key, group, key=each.key)
                if force
                else await stream.server.run(
                    script("destroy"), (each.key,), group, each.last_delivered
                )
            )
            outcome = "deleted" if is_gone else "changed"
        deleted.append(
            Deleted(
                each.shard, each.key, outcome, each.pending, each.lag, letters, each.last_delivered
            )
        )
    return deleted


def _losses(groups: list[ShardGroup], requeued: int, active_ms: int) -> list[str]:
    """Why a group should not be deleted."""
    reasons: list[str] = []
    if pending := sum(each.pending for each in groups):
        reasons.append(f"{entries(pending)} pending")
    if lag := sum(each.lag or 0 for each in groups):
        reasons.append(f"{entries(lag)} not delivered")
    if unknown := [str(each.shard) for each in groups if each.lag is None]:
        reasons.append(f"an unknown number of entries of shard {', '.join(unknown)} not delivered")
    if requeued:
        reasons.append(f"requeued dead letters: {requeued:,}")
    if active := active_consumers(groups, active_ms):
        reasons.append(f"consumers are at work: {', '.join(active)}")
    return reasons


async def remove_consumer(
    stream: Stream,
    group: str,
    consumer: str,
    *,
    shard: int | None = None,
    active_ms: int = IDLE_MS_MIN,
    force: bool = False,
) -> list[Removed]:
    """Remove a consumer from its group, if it has nothing pending.

    Args:
        stream: An open stream.
        group: The group's name.
        consumer: The consumer's.
        shard: On this one alone.
        active_ms: If it asked for something within so many ms it is at work.
        force: Also if it is at work: it is there again with its next read. Never with entries
            pending, which would be lost with it.

    Returns:
        Per shard on which the group stands.

    Raises:
        GroupInUseError: it has entries pending, or is at work. It was removed nowhere.
        ConsumerNotFoundError, GroupNotFoundError: it, or the group, stands on no shard.
        ServerError: the server cannot be reached or refuses.

    Cost: one script per shard, beside looking.
    """
    found = await find_group(stream, group, shard)
    known = [each for group in found for each in group.consumers if each.name == consumer]
    if not known:
        raise no_consumer(group, consumer)
    if pending := sum(each.pending for each in known):
        raise GroupInUseError(
            f"consumer {consumer!r} of group {group!r} has {entries(pending)} pending",
            hint="They would never be delivered again: claim them for another consumer first.",
        )
    idle_ms = min(each.idle_ms for each in known)
    if idle_ms < active_ms and not force:
        raise GroupInUseError(
            f"consumer {consumer!r} of group {group!r} is at work: idle {format_duration(idle_ms)}",
            hint="Stop it first: with its next read it would be there again.",
        )
    removed: list[Removed] = []
    for each in found:
        outcome, pending, _ = await stream.server.run(
            script("remove"), (each.key,), group, consumer, 0 if force else active_ms
        )
        removed.append(Removed(each.shard, each.key, outcome.decode(), pending))
    return removed


def no_consumer(group: str, consumer: str, hint: str | None = None) -> ConsumerNotFoundError:
    return ConsumerNotFoundError(f"group {group!r} has no consumer {consumer!r}", hint=hint)
