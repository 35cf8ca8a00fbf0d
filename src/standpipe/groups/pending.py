"""What a group has pending: to look at it, to give it to another consumer, to acknowledge it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from standpipe.codec import decode_entry
from standpipe.errors import (
    ConfigError,
    DecodeError,
    EntryUnitError,
    GroupNotFoundError,
    StandpipeError,
)
from standpipe.event import EventId
from standpipe.groups.changing import no_consumer
from standpipe.groups.shards import find_group, no_group, shards_of
from standpipe.limits import ENTRIES_PER_LOOK, IDLE_MS_MIN, IDS_PER_COMMAND_MAX, PENDING_SHOWN
from standpipe.stream import Stream


class PendingConsumer(msgspec.Struct, frozen=True):
    """What one consumer has pending, over the shards that were asked."""

    name: str
    pending: int


class PendingEntry(msgspec.Struct, frozen=True):
    """One pending entry."""

    shard: int
    id: str
    consumer: str
    idle_ms: int
    """Since it was last delivered, claimed or renewed."""
    deliveries: int
    events: int | None = None
    """How many it carries; None: not asked, deleted, or not readable."""
    is_deleted: bool | None = None
    """Whether it is gone from the stream; None: not asked."""


class PendingReport(msgspec.Struct, frozen=True):
    """What a group has pending."""

    stream: str
    group: str
    pending: int
    consumers: list[PendingConsumer]
    """By how much they have pending, the most first."""
    entries: list[PendingEntry]
    """The oldest that were asked for, by entry ID."""


Outcome = Literal[
    "acknowledged", "claimed", "not pending", "not idle", "another owner", "deleted", "ambiguous"
]


class Settled(msgspec.Struct, frozen=True):
    """What :func:`ack_entries` or :func:`claim_entries` did about one entry ID.

    ``not pending``: on no shard that was asked; ``ambiguous``: pending on several shards, so that
    one has to be named; ``not idle``: for less than was asked; ``another owner``: than was asked;
    ``deleted``: it is gone from the stream and off the list. All but ``acknowledged``, ``claimed``
    and ``deleted`` have changed nothing.
    """

    id: str
    outcome: Outcome
    shard: int | None = None
    consumer: str | None = None
    """Who had it until then."""
    idle_ms: int | None = None
    deliveries: int | None = None


class _Row(NamedTuple):
    """A row of XPENDING, and where it stands."""

    shard: int
    id: bytes
    consumer: str
    idle_ms: int
    deliveries: int

    def settled(self, outcome: Outcome) -> Settled:
        return Settled(
            self.id.decode(), outcome, self.shard, self.consumer, self.idle_ms, self.deliveries
        )


def _row(shard: int, reply: Any) -> _Row:
    entry_id, consumer, idle_ms, deliveries = reply
    return _Row(shard, entry_id, consumer.decode(errors="replace"), idle_ms, deliveries)


# --- looking -------------------------------------------------------------------------------------


async def read_pending(
    stream: Stream,
    group: str,
    *,
    shard: int | None = None,
    consumer: str | None = None,
    idle_ms_min: int = 0,
    count: int = PENDING_SHOWN,
    with_events: bool = False,
) -> PendingReport:
    """Read what a group has pending: per consumer how many, and the oldest entries one by one.

    Args:
        stream: An open stream.
        group: The group's name.
        shard: This one alone.
        consumer: Entries of this consumer alone; the numbers per consumer stay those of all.
        idle_ms_min: Entries idle for at least so many ms.
        count: Entries, at most; 0: none.
        with_events: Fetch each of these entries, to count its events.

    Raises:
        GroupNotFoundError: it stands on no shard that was asked.
        StreamNotFoundError: the stream does not exist.
        ServerError: the server cannot be reached or refuses.

    Cost: per shard XPENDING in both its forms, the long one per 1000 entries and O(pending) with a
        filter; with_events the entries themselves.
    """
    await stream.require()
    pending = 0
    consumers: dict[str, int] = {}
    rows: list[_Row] = []
    has_group = False
    for number in shards_of(stream, shard):
        key = stream.keys[number]
        try:
            total, _, _, names = await stream.server.call("XPENDING", key, group, key=key)
        except GroupNotFoundError:
            continue
        has_group = True
        pending += total
        for name, held in names or ():
            shown = name.decode(errors="replace")
            consumers[shown] = consumers.get(shown, 0) + int(held)
        rows += await _oldest(stream, group, number, consumer, idle_ms_min, count)
    if not has_group:
        raise no_group(stream, group, shard)
    rows = sorted(rows, key=lambda row: EventId.parse(row.id))[:count]
    entries = [PendingEntry(row.shard, row.id.decode(), *row[2:]) for row in rows]
    if with_events:
        entries = await _with_events(stream, entries)
    by_count = sorted(consumers.items(), key=lambda item: (-item[1], item[0]))
    return PendingReport(
        stream.name, group, pending, [PendingConsumer(*item) for item in by_count], entries
    )


async def _oldest(
    stream: Stream,
    group: str,
    shard: int,
    consumer: str | None,
    idle_ms_min: int,
    count: int,
) -> list[_Row]:
    found: list[_Row] = []
    start = "-"
    while len(found) < count:
        wanted = min(IDS_PER_COMMAND_MAX, count - len(found))
        page = await _page(stream, group, shard, consumer, idle_ms_min, start, wanted)
        found += page
        if len(page) < wanted:
            break
        start = f"({page[-1].id.decode()}"
    return found


async def _page(
    stream: Stream,
    group: str,
    shard: int,
    consumer: str | None,
    idle_ms_min: int,
    start: str,
    count: int,
) -> list[_Row]:
    key = stream.keys[shard]
    idle = ("IDLE", idle_ms_min) if idle_ms_min else ()
    owner = () if consumer is None else (consumer,)
    reply = await stream.server.call(
        "XPENDING", key, group, *idle, start, "+", count, *owner, key=key
    )
    return [_row(shard, row) for row in reply]


async def _with_events(stream: Stream, entries: list[PendingEntry]) -> list[PendingEntry]:
    by_shard: dict[int, list[str]] = {}
    for entry in entries:
        by_shard.setdefault(entry.shard, []).append(entry.id)
    counts: dict[tuple[int, str], int | None] = {}
    for shard, ids in by_shard.items():
        for entry_id, count in (await _event_counts(stream, shard, ids)).items():
            counts[shard, entry_id] = count
    return [
        msgspec.structs.replace(
            entry,
            events=counts.get((entry.shard, entry.id)),
            is_deleted=(entry.shard, entry.id) not in counts,
        )
        for entry in entries
    ]


async def _event_counts(stream: Stream, shard: int, ids: Sequence[str]) -> dict[str, int | None]:
    """How many events entries carry; None: no codec reads it; not in there: deleted."""
    key, layout = stream.keys[shard], stream.definition.layout
    found: dict[str, int | None] = {}
    for at in range(0, len(ids), ENTRIES_PER_LOOK):
        part = ids[at : at + ENTRIES_PER_LOOK]
        for entry_id, fields in await _entries(stream, key, part):
            try:
                found[entry_id.decode()] = decode_entry(entry_id, fields, layout).count
            except DecodeError:
                found[entry_id.decode()] = None
    return found


async def _entries(stream: Stream, key: str, ids: Sequence[str]) -> list[Any]:
    replies = await _ask(stream, key, [("XRANGE", key, each, each) for each in ids])
    return [row for reply in replies for row in reply]


async def _ask(stream: Stream, key: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Commands in round trips of a bounded size; an error reply to one of them is raised."""
    replies: list[Any] = []
    for at in range(0, len(commands), IDS_PER_COMMAND_MAX):
        part = commands[at : at + IDS_PER_COMMAND_MAX]
        replies += await stream.server.call_many(part, key=key)
    for reply in replies:
        if isinstance(reply, StandpipeError):
            raise reply
    return replies


# --- entries that somebody names -----------------------------------------------------------------


async def _entry_ids(stream: Stream, ids: Iterable[str], shard: int | None) -> list[str]:
    """The entries that IDs mean, each once.

    Raises:
        EventError: one is no ID.
        EntryUnitError: events of an entry are named, and not all of them.
    """
    parts: dict[str, set[int] | None] = {}
    for text in ids:
        found = EventId.parse(text.strip())
        if "/" not in text:
            parts[found.entry] = None
        elif (named := parts.setdefault(found.entry, set())) is not None:
            named.add(found.index)
    for entry_id, named in parts.items():
        if named is not None:
            await _require_whole(stream, entry_id, named, shard)
    if not parts:
        raise ConfigError("no entry ID is given", hint="`standpipe pending` shows them.")
    return list(parts)


async def _require_whole(stream: Stream, entry_id: str, named: set[int], shard: int | None) -> None:
    """Raise unless these are all events of the entry."""
    shown = f"{entry_id}/{min(named)}"
    sizes: list[int | None] = []
    for number in shards_of(stream, shard):
        sizes += (await _event_counts(stream, number, [entry_id])).values()
    if not sizes:
        raise EntryUnitError(f"{shown} names an event of an entry that is not in the stream")
    for size in sizes:
        if size is None:
            raise EntryUnitError(f"{shown} names an event of an entry that no codec reads")
        if max(named) >= size:
            raise EntryUnitError(
                f"{entry_id}/{max(named)} names an event that the entry does not have: it has "
                f"{size:,}, from /0",
                hint="`standpipe pending --events` shows how many each entry carries.",
            )
        if named != set(range(size)):
            raise EntryUnitError(
                f"{shown} is {len(named):,} of the {size:,} events of one entry, and the entry is "
                "the unit: Redis keeps one pending record for all of them",
                hint=f"Give {entry_id} if all {size:,} are meant. A single event can be given "
                "up by a worker: its handler raises Reject, and it becomes a dead letter.",
            )


async def _locate(
    stream: Stream, group: str, ids: Sequence[str], shard: int | None
) -> tuple[list[_Row], dict[str, Settled]]:
    """Where entries are pending, and what is to be said of those that are not, or not clearly."""
    await stream.require()
    rows: dict[str, list[_Row]] = {entry_id: [] for entry_id in ids}
    has_group = False
    for number in shards_of(stream, shard):
        key = stream.keys[number]
        commands = [("XPENDING", key, group, each, each, 1) for each in ids]
        try:
            replies = await _ask(stream, key, commands)
        except GroupNotFoundError:
            continue
        has_group = True
        for entry_id, reply in zip(ids, replies, strict=True):
            rows[entry_id] += [_row(number, row) for row in reply]
    if not has_group:
        raise no_group(stream, group, shard)
    clear = [found[0] for found in rows.values() if len(found) == 1]
    return clear, {
        entry_id: Settled(entry_id, "ambiguous" if found else "not pending")
        for entry_id, found in rows.items()
        if len(found) != 1
    }


async def ack_entries(
    stream: Stream, group: str, ids: Iterable[str], *, shard: int | None = None
) -> list[Settled]:
    """Acknowledge entries for a group: it will not be given them again.

    Args:
        stream: An open stream.
        group: The group's name.
        ids: Entry IDs. An event ID of a block is refused, unless all of the block's are given.
        shard: On this one alone. Without it, an ID that is pending on several is left alone.

    Returns:
        What was done about each entry, in the order given.

    Raises:
        EntryUnitError: events of an entry are named, and not all of them. Nothing was done.
        EventError: an ID that is none. Nothing was done.
        GroupNotFoundError, StreamNotFoundError: it is not there.
        ServerError: the server cannot be reached or refuses; some may be acknowledged.

    Delivery: Acknowledged is acknowledged, whether anything has handled the entry or not.
    Cost: XPENDING per ID and shard, XACK per ID; 1000 per round trip.
    """
    wanted = await _entry_ids(stream, ids, shard)
    rows, said = await _locate(stream, group, wanted, shard)
    for number in {row.shard for row in rows}:
        key = stream.keys[number]
        here = [row for row in rows if row.shard == number]
        # One by one: a single XACK says how many, and not which.
        replies = await _ask(stream, key, [("XACK", key, group, row.id) for row in here])
        for row, reply in zip(here, replies, strict=True):
            said[row.id.decode()] = row.settled("acknowledged" if reply else "not pending")
    return [said[entry_id] for entry_id in wanted]


# --- claiming ------------------------------------------------------------------------------------


async def claim_entries(
    stream: Stream,
    group: str,
    to: str,
    ids: Iterable[str],
    *,
    owner: str | None = None,
    idle_ms_min: int = IDLE_MS_MIN,
    shard: int | None = None,
    create: bool = False,
) -> list[Settled]:
    """Make pending entries another consumer's.

    It is no delivery: their counts stay as they are.

    Args:
        stream: An open stream.
        group: The group's name.
        to: The consumer that gets them.
        ids: Entry IDs, as of :func:`ack_entries`.
        owner: Only what this consumer has.
        idle_ms_min: Only what has been idle for so many ms: a living worker renews what it holds,
            and what is taken from it is handled twice.
        shard: On this one alone.
        create: ``to`` may be a consumer that the group does not have yet.

    Returns:
        What was done about each entry, in the order given.

    Raises:
        ConsumerNotFoundError: the group has no consumer ``to``, and create is not given.
        EntryUnitError, EventError, GroupNotFoundError, StreamNotFoundError, ServerError: as
            :func:`ack_entries`.

    Delivery: A worker begins with what its name has pending when it starts, and takes on the rest
        when it has been idle for its ``idle_ms_min``.
    Cost: XPENDING per ID and shard, XCLAIM JUSTID per 1000.
    """
    wanted = await _entry_ids(stream, ids, shard)
    await _require_consumers(stream, group, to, owner, shard, create=create)
    rows, said = await _locate(stream, group, wanted, shard)
    taken: list[_Row] = []
    for row in rows:
        if owner is not None and row.consumer != owner:
            said[row.id.decode()] = row.settled("another owner")
        else:
            taken.append(row)
    for number in {row.shard for row in taken}:
        here = [row for row in taken if row.shard == number]
        for at in range(0, len(here), IDS_PER_COMMAND_MAX):
            part = here[at : at + IDS_PER_COMMAND_MAX]
            for each in await _claim(stream, group, to, part, idle_ms_min):
                said[each.id] = each
    return [said[entry_id] for entry_id in wanted]


async def claim_idle(
    stream: Stream,
    group: str,
    to: str,
    *,
    owner: str | None = None,
    idle_ms_min: int = IDLE_MS_MIN,
    shard: int | None = None,
    count: int | None = None,
    create: bool = False,
) -> list[Settled]:
    """Make everything that has been idle for long another consumer's, the oldest of each shard
    first; what is ``to``'s already stays as it is.

    Args:
        count: So many entries at most, of all shards together; None: all.
        stream, group, to, owner, idle_ms_min, shard, create: As :func:`claim_entries`.

    Returns:
        What was done about each entry.

    Raises:
        ConsumerNotFoundError, GroupNotFoundError, StreamNotFoundError, ServerError: as
            :func:`claim_entries`.

    Cost: per 1000 entries XPENDING, O(pending) of it where few are idle, and XCLAIM JUSTID.
    """
    await _require_consumers(stream, group, to, owner, shard, create=create)
    found: list[Settled] = []
    for number in shards_of(stream, shard):
        start: str | None = "-"
        while start is not None and (count is None or len(found) < count):
            left = IDS_PER_COMMAND_MAX if count is None else count - len(found)
            try:
                page = await _page(
                    stream, group, number, owner, idle_ms_min, start, IDS_PER_COMMAND_MAX
                )
            except GroupNotFoundError:
                break
            others = [row for row in page if row.consumer != to][:left]
            if others:
                found += await _claim(stream, group, to, others, idle_ms_min)
            is_last = len(page) < IDS_PER_COMMAND_MAX
            start = None if is_last else f"({page[-1].id.decode()}"
    return found


async def _require_consumers(
    stream: Stream, group: str, to: str, owner: str | None, shard: int | None, *, create: bool
) -> None:
    known = {
        consumer.name
        for each in await find_group(stream, group, shard)
        for consumer in each.consumers
    }
    if to not in known and not create:
        raise no_consumer(
            group, to, hint="Is the name right? --create gives the entries to a new consumer."
        )
    if owner is not None and owner not in known:
        raise no_consumer(group, owner)


async def _claim(
    stream: Stream, group: str, to: str, rows: Sequence[_Row], idle_ms_min: int
) -> list[Settled]:
    """Claim entries of one shard, and find out what became of those that were not to be had."""
    key = stream.keys[rows[0].shard]
    ids = [row.id for row in rows]
    claimed = set(
        await stream.server.call("XCLAIM", key, group, to, idle_ms_min, *ids, "JUSTID", key=key)
    )
    said = {row.id: row.settled("claimed") for row in rows if row.id in claimed}
    missed = [row for row in rows if row.id not in claimed]
    replies = await _ask(
        stream,
        key,
        [
            command
            for row in missed
            for command in (
                ("XPENDING", key, group, row.id, row.id, 1),
                ("XRANGE", key, row.id, row.id),
            )
        ],
    )
    for row, pending, there in zip(missed, replies[::2], replies[1::2], strict=True):
        # Since Redis 7 a claim takes what was deleted from the stream off the list.
        outcome: Outcome = "not idle" if pending else "not pending" if there else "deleted"
        said[row.id] = row.settled(outcome)
    return [said[row.id] for row in rows]
