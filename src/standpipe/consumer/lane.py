"""The shards behind a pair of connections: reading, acknowledging, renewing, taking over.

Three loops run over it. The reader: first what this consumer name already has pending, then new
entries, with the waiting acknowledgements in the same round trip. The flusher: acknowledgements
that no read comes along to carry. The keeper: renews what is held, so that a slow handler is not
taken for dead, sweeps the group's pending entries for those of the dead, and forgets their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from standpipe.codec import decode_entry
from standpipe.consumer.acking import Acking, Acks
from standpipe.consumer.condition import Condition
from standpipe.consumer.counting import Counting, Hold
from standpipe.consumer.intake import Delivery, Intake, Room, Undecodable
from standpipe.consumer.links import Links
from standpipe.consumer.member import Member
from standpipe.errors import (
    DecodeError,
    GroupNotFoundError,
    ReplyError,
    StandpipeError,
)
from standpipe.event import Batch, Entry
from standpipe.limits import (
    ACK_GRACE_MS,
    BYTES_PER_ENTRY_GUESS,
    CLAIM_COUNT,
    EVENTS_PER_ENTRY_GUESS,
    FORGET_IDLES_MIN,
    FORGET_TRIES,
    GIVEN_IDLE_MS_MIN,
    IDS_PER_COMMAND_MAX,
    READ_BLOCK_MS,
    READ_COUNT,
    RENEWALS_PER_IDLE,
    WRITE_BYTES_MAX,
)
from standpipe.policy import backoff_ms, renew_every_ms
from standpipe.wire import Link, pack

log: Final = logging.getLogger("standpipe.consumer")


class _Asked(NamedTuple):
    """A read that is under way."""

    link: Link
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    """Entries of each shard, at most."""
    acks: Acks
    """The acknowledgements that went ahead of it."""


class Lane(Links):
    """The shards behind one connection, or a pair: one that blocks and one that does not."""

    def __init__(
        self, member: Member, intake: Intake, shards: list[int], condition: Condition
    ) -> None:
        self.member = member
        self.intake = intake
        self.shards = shards
        self.keys = [member.stream.keys[shard] for shard in shards]
        super().__init__(member.stream, self.keys[0])
        self.held: dict[int, dict[bytes, tuple[int, int, float]]] = {shard: {} for shard in shards}
        """Per shard: entry ID → events in it, their bytes, since when it is held or renewed."""
        self.acking = Acking(shards)
        self._swept_to: dict[int, bytes] = {}
        """Where the last sweep of a shard had to end early."""
        self.counting = Counting(self._hold_all)
        self._pending = asyncio.Lock()
        """Held from asking for pending entries until they are known here: the reader, which asks
        for its own, must not meet what a sweep has just made its own."""
        self._entry_events = EVENTS_PER_ENTRY_GUESS
        """The largest entry of late, in events: what the next ones are expected to have."""
        self._entry_bytes = BYTES_PER_ENTRY_GUESS
        """The same in bytes."""
        self._asked: _Asked | None = None
        self._reached: dict[int, bytes] = {}
        """Per shard: the last entry that the group was given, as far as is known here."""
        self._layout = member.stream.definition.layout
        self.condition = condition
        """Of what the loops meet; all lanes of the consumer share it."""
        self._place: Final = shards[0]
        self.facts: Final = member.facts

    # --- what ordered mode does otherwise --------------------------------------------------------

    def own(self) -> list[int]:
        """The shards that this consumer may read: all, but for ordered mode."""
        return self.shards

    def fence(self, shard: int) -> int | None:
        """The fence of the lease that it has of a shard; 0 without leases, None if it has none."""
        return 0

    def _stamp(self, shard: int) -> int | None:
        """The fence under which entries are delivered; None: they are not to be."""
        return self.fence(shard)

    def _fencing(self, shard: int) -> tuple[Sequence[str], Sequence[Any]]:
        """Keys and arguments that a script gets on top, so that it can refuse."""
        return (), ()

    def _refused(self, shard: int, entry_id: bytes) -> None:
        """The server has refused to settle an entry, as its shard is another consumer's."""
        self._taken_from_us(shard, entry_id)

    # --- trouble ---------------------------------------------------------------------------------

    async def _pause(
        self, who: str, error: StandpipeError, attempt: int, *links: Link | None
    ) -> None:
        """Wait before trying again over new links, or pass on an error that no retry mends."""
        wait_ms = backoff_ms(attempt)
        if not isinstance(error, GroupNotFoundError):
            if not error.retryable:
                raise error
            self.condition.met(who, error, wait_ms, lane=self._place)
            # The server that refuses may not be the one to ask any more: find it anew.
            for link in links:
                if link is not None:
                    await link.close()
            if self.stream.server.is_cluster:
                await self.stream.server.refresh()
        # That a group is lost is said by the reader that creates it again.
        await asyncio.sleep(wait_ms / 1000)

    def _works(self, who: str) -> None:
        """What a loop could not do, it has done."""
        if self.condition.is_waiting:
            self.condition.through(who, self._server(), lane=self._place)

    # --- groups ----------------------------------------------------------------------------------

    async def create_groups(self, *, again: bool = False) -> None:
        """Create the group where it is missing; ``again``: because the server has lost it."""
        group = self.member.group
        starts = [await self._where_to_begin(shard) for shard in self.shards]
        commands: list[bytes] = []
        for key, start in zip(self.keys, starts, strict=True):
            create = pack("XGROUP", "CREATE", key, group, start, "MKSTREAM")
            commands += (pack("EXISTS", key), create)
        replies = await self._exchange(commands)
        for shard, key, start, was_there, reply in zip(
            self.shards, self.keys, starts, replies[::2], replies[1::2], strict=True
        ):
            if isinstance(reply, ReplyError) and "BUSYGROUP" in str(reply):
                continue
            if isinstance(reply, StandpipeError):
                raise reply
            self.intake.stats.groups_created += 1
            if again and was_there:
                log.error("the server has lost group %s of %s; it is created again at %s",
                          group, key, start, extra=self.facts(shard, "group_created"))  # fmt: skip
            elif again:
                log.error("the server has lost the stream %s; with group %s it is created again at "
                          "%s", key, group, start,
                          extra=self.facts(shard, "stream_created"))  # fmt: skip
        self.condition.is_at(self._server(), lane=self._place)
        await self._learn_reached()

    async def _where_to_begin(self, shard: int) -> str:
        """Where a group has to begin that is missing.

        One that began at ``$`` would skip what has come since it was lost. So it goes on behind
        what it was given last, or before the oldest entry that is still being handled here.
        """
        start, reached = self.member.start, self._reached.get(shard)
        if start != "$" or reached is None:
            return start
        (info,) = await self._exchange([pack("XINFO", "STREAM", self.stream.keys[shard])])
        if isinstance(info, ReplyError) and "no such key" in str(info):
            return "0"  # Whatever will be found there has come since.
        if isinstance(info, StandpipeError):
            raise info
        if entry_order(info[b"last-generated-id"]) < entry_order(reached):
            return "0"  # It was deleted and has begun anew, or was set back.
        unsettled = [*self.held[shard], *self.acking.of[shard]]
        if not unsettled:
            return reached.decode()
        ms, seq = entry_order(min(unsettled, key=entry_order))
        return f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{2**64 - 1}"

    async def _learn_reached(self) -> None:
        """Ask how far the group has come: others read from it too."""
        if self.member.start != "$":
            return
        name = self.member.group.encode()
        replies = await self.ask([pack("XINFO", "GROUPS", key) for key in self.keys])
        for shard, groups in zip(self.shards, replies, strict=True):
            for found in groups:
                if found[b"name"] == name:
                    self._reached[shard] = found[b"last-delivered-id"]

    # --- reading ---------------------------------------------------------------------------------

    async def read_loop(self) -> None:
        attempt = 0
        is_group_lost = False
        old: dict[str, bytes] = dict.fromkeys(self.keys, b"-")
        while True:
            try:
                if is_group_lost:
                    await self.create_groups(again=True)
                    is_group_lost = False
                if old:
                    # After a cut as at the start: a reply that was lost left its entries pending.
                    await self._read_old(old)
                else:
                    await self._read_new()
                    # Not sooner: a replica shows what is pending, and refuses to give out more.
                    attempt = 0
                    self._works("reader")
            except StandpipeError as error:
                attempt += 1
                if isinstance(error, GroupNotFoundError):
                    is_group_lost = True
                await self._pause("reader", error, attempt, self._read_link, self._control_link)
                old = dict.fromkeys(self.keys, b"-")

    async def _read_new(self) -> None:
        """New entries, with the waiting acknowledgements ahead of them in the same round trip."""
        if self._asked is None:
            count = await self._read_count()
            self._ask(await self._reading(), count)
        asked, self._asked = self._asked, None
        assert asked is not None
        by_key = await self._answer(asked)
        is_full = any(len(rows) == asked.count for rows in by_key.values())
        if is_full and (count := self._count_on_top_of(by_key)) >= asked.count:
            # There is more, and the server can be at it while this is decoded and handled.
            self._ask(asked.link, count)
        for key, rows in by_key.items():
            shard = self.stream.keys.index(key.decode())
            self._reached[shard] = rows[-1][0]
            self._take(shard, rows, {})
        if not is_full:
            # In the loop's next turn it is at its handler, which the next write would hold up.
            await asyncio.sleep(0)

    def _ask(self, link: Link, count: int) -> None:
        """Ask for so many new entries of each shard; :meth:`_answer` waits for them."""
        member = self.member
        read = pack(
            "XREADGROUP", "GROUP", member.group, member.name, "COUNT", count,
            "BLOCK", READ_BLOCK_MS, "STREAMS", *self.keys, *[">"] * len(self.keys),
        )  # fmt: skip
        acks = self.acking.take()
        try:
            link.write([*self._pack_acks(acks), read])
        except BaseException:
            self.acking.put_back(acks)
            raise
        self._asked = _Asked(link, count, acks)

    async def _answer(self, asked: _Asked) -> dict[bytes, list[Any]]:
        """The entries that were asked for, by key."""
        link, acks = asked.link, asked.acks
        try:
            *acked, found = await link.replies(
                len(acks) + 1, reply_ms_max=READ_BLOCK_MS + link.reply_ms_max
            )
        except BaseException:
            self.acking.put_back(acks)
            raise
        self._count_acks(acks, acked)
        if isinstance(found, StandpipeError):
            raise found
        return found or {}

    def _count_on_top_of(self, arrived: dict[bytes, list[Any]]) -> int:
        """How many entries of each shard may be asked for while those that came are not taken."""
        entries = sum(map(len, arrived.values()))
        beside = Room(entries * self._entry_events, entries * self._entry_bytes)
        room = self.intake.room(beside)
        return 0 if room is None else self._entries_each(room)

    async def _read_count(self) -> int:
        """Wait for room; return how many entries of each shard may be asked for."""
        return self._entries_each(await self.intake.wait_for_room())

    def _entries_each(self, room: Room) -> int:
        return max(1, min(READ_COUNT, self._entries_in(room) // len(self.stream.keys)))

    def _entries_in(self, room: Room) -> int:
        return min(room.events // self._entry_events, room.bytes // self._entry_bytes)

    async def _read_old(self, old: dict[str, bytes]) -> None:
        """One page of what this consumer has pending already; forgets the keys that are through.

        Not by XREADGROUP with an ID: that would count as one more delivery of all that is held.
        """
        member = self.member
        await self.intake.wait_for_room()
        async with self._pending:
            # Asked for here: while this waited for its turn a sweep may have filled the room.
            if (room := self.intake.room()) is None:
                return
            count = self._entries_each(room)
            pages = await self.ask(
                [
                    pack(
                        "XPENDING", key, member.group, start, "+",
                        IDS_PER_COMMAND_MAX, member.name,
                    )
                    for key, start in old.items()
                ]
            )  # fmt: skip
            for key, page in zip(list(old), pages, strict=True):
                if not page:
                    del old[key]
                    continue
                shard = self.stream.keys.index(key)
                unknown = [row[0] for row in page if not self.knows(shard, row[0])][:count]
                # The next page begins behind what was looked at.
                old[key] = b"(" + (unknown[-1] if len(unknown) == count else page[-1][0])
                if unknown:
                    await self._take_pending(shard, unknown)
                    # It has been idle for however long this consumer was away.
                    await self.hold(shard, unknown)

    async def _take_pending(self, shard: int, ids: list[bytes]) -> None:
        """Deliver entries pending for this consumer, with their counts; clear the deleted ones."""
        member, key = self.member, self.stream.keys[shard]
        commands: list[bytes] = []
        for entry_id in ids:
            commands += (
                pack("XPENDING", key, member.group, entry_id, entry_id, 1, member.name),
                pack("XRANGE", key, entry_id, entry_id),
            )
        replies = await self.ask(commands)
        rows: list[Any] = []
        counts: dict[bytes, int] = {}
        deleted: list[bytes] = []
        for entry_id, pending, found in zip(ids, replies[::2], replies[1::2], strict=True):
            if not pending:
                continue  # Another consumer has taken it over meanwhile.
            if found:
                rows.append(found[0])
                counts[entry_id] = pending[0][3]
            else:
                deleted.append(entry_id)
        self._take(shard, rows, counts)
        if deleted:
            await self._clear_lost(shard, deleted)

    async def _clear_lost(self, shard: int, ids: list[bytes]) -> None:
        """Take entries off the pending list that were deleted from the stream, loudly."""
        member = self.member
        self.intake.stats.lost += len(ids)
        log.error(
            "%d entries of %s were deleted while pending for group %s and are lost to it: %s%s",
            len(ids),
            self.stream.keys[shard],
            member.group,
            ", ".join(entry_id.decode() for entry_id in ids[:10]),
            " …" if len(ids) > 10 else "",
            extra=self.facts(shard, "entries_lost"),
        )
        await self.ask(self._pack_acks([(shard, ids)]))

    def _take(self, shard: int, rows: list[Any], counts: dict[bytes, int]) -> None:
        """Decode entries of a shard and deliver them."""
        fence = self._stamp(shard)
        if fence is None:
            return
        now = time.monotonic()
        held, acking, decode = self.held[shard], self.acking.of[shard], self._decode
        entries: list[Entry] = []
        ids: list[bytes] = []
        undecodable: list[Undecodable] = []
        sizes: list[int] = []
        for entry_id, fields in rows:
            if entry_id in held or entry_id in acking:
                # A group that was created again gives out once more what is being handled.
                continue
            # What is no block is small, and joined in half the time that adding up takes.
            size = sum(map(len, fields)) if len(fields) == 6 else len(b"".join(fields))
            sizes.append(size)
            try:
                entry = decode(entry_id, fields)
            except DecodeError as error:
                undecodable.append(Undecodable(entry_id, fields, error))
                held[entry_id] = (1, size, now)
                continue
            entries.append(entry)
            ids.append(entry_id)
            held[entry_id] = (entry.count, size, now)
        if entries or undecodable:
            largest = max((entry.count for entry in entries), default=1)
            self._entry_events = max(1, largest, self._entry_events // 2)
            self._entry_bytes = max(1, *sizes, self._entry_bytes // 2)
            batch = Batch(entries, stream=self.stream.name, shard=int(shard))
            self.intake.put(Delivery(shard, batch, ids, counts, undecodable, fence), sum(sizes))

    def _decode(self, entry_id: bytes, fields: list[bytes]) -> Entry:
        return decode_entry(entry_id, fields, self._layout)

    # --- acknowledging ---------------------------------------------------------------------------

    def knows(self, shard: int, entry_id: bytes) -> bool:
        return entry_id in self.held[shard] or entry_id in self.acking.of[shard]

    def ack(self, shard: int, ids: Iterable[bytes]) -> None:
        held = self.held[shard]
        mine: list[bytes] = []
        events = size = 0
        for entry_id in ids:
            # Not held any more: another consumer took it over, and the acknowledgement is its own.
            if (known := held.pop(entry_id, None)) is not None:
                mine.append(entry_id)
                events += known[0]
                size += known[1]
        if mine:
            self.acking.add(shard, mine)
            self.intake.release(events, size)

    def _pack_acks(self, acks: Acks) -> list[bytes]:
        return [
            pack("XACK", self.stream.keys[shard], self.member.group, *ids) for shard, ids in acks
        ]

    def _count_acks(self, acks: Acks, replies: list[Any]) -> None:
        """Count what the server has acknowledged; put back the rest, and raise its error."""
        refused: StandpipeError | None = None
        for (shard, ids), reply in zip(acks, replies, strict=True):
            if isinstance(reply, StandpipeError):
                self.acking.put_back([(shard, ids)])
                refused = reply
            else:
                self.acking.confirmed(shard, ids)
                self.intake.stats.acknowledged += len(ids)
        if refused is not None:
            raise refused

    async def flush_loop(self) -> None:
        attempt = 0
        while True:
            if not attempt:
                await self.acking.ready.wait()
                await asyncio.sleep(ACK_GRACE_MS / 1000)
            # After an error a read may have taken them along: then there is nothing to wait for.
            try:
                await self.flush()
                attempt = 0
                self._works("flusher")
            except StandpipeError as error:
                attempt += 1
                await self._pause("flusher", error, attempt, self._control_link)

    async def flush(self) -> None:
        """Send the waiting acknowledgements, if a read has not taken them along."""
        acks = self.acking.take()
        if not acks:
            return
        try:
            replies = await self._exchange(self._pack_acks(acks))
        except BaseException:
            self.acking.put_back(acks)
            raise
        self._count_acks(acks, replies)

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        *first, last = _parts(letters)
        for part in first:
            await self._settle_part(shard, entry_id, part, is_last=False)
        await self._settle_part(shard, entry_id, last, is_last=True)

    async def _settle_part(
        self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]], *, is_last: bool
    ) -> None:
        member, attempt = self.member, 0
        lease, fence = self._fencing(shard)
        arguments = [part for letter in letters for part in (len(letter), *letter)]
        keys = (self.stream.keys[shard], self.stream.dead_key(shard), *lease)
        while entry_id in self.held[shard]:
            what = "ack" if is_last else "again" if attempt else "keep"
            try:
                kept = await self._run(
                    "settle", keys, member.group, member.name, entry_id, what, *arguments, *fence
                )
            except StandpipeError as error:
                attempt += 1
                await self._pause("settler", error, attempt, self._control_link)
                continue
            if kept < 0:
                self._refused(shard, entry_id)
            elif not kept and not (is_last and attempt):
                self._taken_from_us(shard, entry_id)
            elif is_last:
                # Nothing kept at a later try: the first one was done, and its reply was lost.
                self.intake.stats.acknowledged += 1
                self._forget(shard, entry_id)
            else:
                break
        # Also when the entry has become another consumer's meanwhile.
        self._works("settler")

    # --- renewing and taking over ----------------------------------------------------------------

    async def hold(self, shard: int, ids: list[bytes]) -> None:
        """Renew entries; forget those that have become another consumer's, or were deleted."""
        await self._hold_all([Hold(shard, ids)])

    async def _hold_all(self, holds: Sequence[Hold]) -> None:
        """Renew entries, all in one round trip: while handlers keep the loop busy each takes long.

        Raises:
            StandpipeError: one of them was refused; what was answered for the others is known.
        """
        parts = [
            Hold(shard, ids[start : start + IDS_PER_COMMAND_MAX], count)
            for shard, ids, count in holds
            for start in range(0, len(ids), IDS_PER_COMMAND_MAX)
        ]
        member = self.member
        replies = await self._run_all(
            "hold",
            [
                (
                    (self.stream.keys[shard],),
                    (member.group, member.name, "" if count is None else count, *ids),
                )
                for shard, ids, count in parts
            ],
        )
        now = time.monotonic()
        refused: StandpipeError | None = None
        for (shard, ids, _), reply in zip(parts, replies, strict=True):
            if isinstance(reply, StandpipeError):
                refused = reply
                continue
            gone, deleted = reply
            held = self.held[shard]
            for entry_id in ids:
                if known := held.get(entry_id):
                    held[entry_id] = (*known[:2], now)
            for entry_id in gone:
                self._taken_from_us(shard, entry_id)
            lost = [entry_id for entry_id in deleted if self._forget(shard, entry_id)]
            if lost:
                await self._clear_lost(shard, lost)
        if refused is not None:
            raise refused

    def _forget(self, shard: int, entry_id: bytes) -> bool:
        """Hold an entry no longer; returns whether it was held until now."""
        known = self.held[shard].pop(entry_id, None)
        if known is not None:
            self.intake.release(*known[:2])
        return known is not None

    def _taken_from_us(self, shard: int, entry_id: bytes) -> None:
        if self._forget(shard, entry_id):
            self.intake.stats.taken_from_us += 1
            log.warning(
                "entry %s of %s was taken over from %s, which held it for too long",
                entry_id.decode(),
                self.stream.keys[shard],
                self.member.name,
                extra=self.facts(shard, "entry_taken"),
            )

    async def keep_loop(self) -> None:
        period = renew_every_ms(self.member.idle_ms_min, RENEWALS_PER_IDLE) / 1000
        forget_after = self.member.idle_ms_min * FORGET_IDLES_MIN / 1000
        forget_due = time.monotonic() + forget_after / FORGET_TRIES
        attempt = 0
        while True:
            # Some jitter, so that many workers started together do not sweep together.
            due = time.monotonic() + period * random.uniform(0.8, 1.0)
            try:
                await self._renew(older_than=period / 2)
                wait, is_cut = await self._sweep()
                dies = time.monotonic() + wait
                if time.monotonic() >= forget_due:
                    await self._forget_the_dead()
                    forget_due += forget_after / FORGET_TRIES * random.uniform(0.8, 1.2)
                attempt = 0
                self._works("keeper")
            except GroupNotFoundError:
                # The reader meets it too, and is the one that creates the group again.
                dies, is_cut = due, False
                log.debug("the group is gone; nothing to renew or to take over")
            except StandpipeError as error:
                attempt += 1
                await self._pause("keeper", error, attempt, self._control_link)
                continue
            left = min(due, dies) - time.monotonic()
            if not is_cut:
                await asyncio.sleep(left)
                continue
            # What the dead have left is more than fits: on with it as soon as there is room.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, left)):
                    await self.intake.wait_for_room()

    async def _renew(self, *, older_than: float) -> None:
        limit = time.monotonic() - older_than
        for shard in self.shards:
            old = [i for i, (_, _, since) in self.held[shard].items() if since <= limit]
            if old:
                await self.hold(shard, sorted(old, key=entry_order))

    async def _sweep(self) -> tuple[float, bool]:
        """Take over what has been idle for too long, to the end of each shard's pending list.

        Returns in how many seconds there will be more to take over, as far as can be told, and
        whether it ended early for want of room: what is held has to be renewed in time. The next
        sweep then goes on where this one ended.
        """
        dies, is_cut = math.inf, False
        for shard in self.shards:
            cursor = self._swept_to.pop(shard, b"0-0")
            while True:
                async with self._pending:
                    # Asked for here: while this waited for its turn the reader may have filled it.
                    if (room := self.intake.room_for_takeover()) is None:
                        self._swept_to[shard] = cursor
                        is_cut = True
                        break
                    count = max(1, min(CLAIM_COUNT, self._entries_in(room)))
                    cursor, wait = await self._claim(shard, cursor, count)
                dies = min(dies, wait)
                if cursor == b"0-0":
                    break
        return dies, is_cut

    def _next_death(self, consumers: list[Any]) -> float:
        """In how many seconds a member that holds something will have been unseen for too long.

        Between two sweeps a third of that time passes. Waiting for the next one, the dead member's
        entries would lie for up to so much longer.
        """
        name = self.member.name.encode()
        left_ms = [
            self.member.idle_ms_min - found[b"idle"]
            for found in consumers
            if found[b"pending"] and found[b"name"] != name
        ]
        # What is due by now is being swept.
        waits = [ms for ms in left_ms if ms > 0]
        return (min(waits) + random.uniform(1, 50)) / 1000 if waits else math.inf

    async def _claim(self, shard: int, cursor: bytes, count: int) -> tuple[bytes, float]:
        """One page of a sweep; returns where the next one begins, and when the next member dies."""
        member, key = self.member, self.stream.keys[shard]
        # JUSTID, so that it is no delivery yet: a worker that dies before it comes to these entries
        # says nothing against them.
        reply, consumers = await self.ask(
            [
                pack(
                    "XAUTOCLAIM", key, member.group, member.name,
                    member.idle_ms_min, cursor, "COUNT", count, "JUSTID",
                ),
                pack("XINFO", "CONSUMERS", key, member.group),
            ]
        )  # fmt: skip
        # Since Redis 7 the entries that were deleted are named apart, and are off the list already.
        following, ids, *deleted = reply
        if deleted and deleted[0]:
            # Before anything that may fail: nobody names them a second time.
            await self._clear_lost(shard, deleted[0])
        new = [entry_id for entry_id in ids if not self.knows(shard, entry_id)]
        if new:
            self.intake.stats.taken_over += len(new)
            log.info("took over %d entries of %s", len(new), key,
                     extra=self.facts(shard, "taken_over"))  # fmt: skip
            await self._take_pending(shard, new)
        if following == b"0-0":
            await self._take_given(shard, consumers)
        return following, self._next_death(consumers)

    async def _take_given(self, shard: int, consumers: list[Any]) -> None:
        """Take in what somebody has claimed for this consumer: it was not told.

        Not what a read has brought whose reply is on its way, so it has to be idle for a moment.
        """
        member, key = self.member, self.stream.keys[shard]
        name = member.name.encode()
        mine = sum(found[b"pending"] for found in consumers if found[b"name"] == name)
        start = b"-"
        while mine > len(self.held[shard]) + len(self.acking.of[shard]):
            room = self.intake.room_for_takeover()
            (page,) = await self.ask(
                [
                    pack(
                        "XPENDING", key, member.group, "IDLE", GIVEN_IDLE_MS_MIN, start, "+",
                        IDS_PER_COMMAND_MAX, member.name,
                    )
                ]
            )  # fmt: skip
            if room is None or not page:
                return
            given = [row[0] for row in page if not self.knows(shard, row[0])]
            given = given[: max(1, self._entries_in(room))]
            if given:
                log.info("was given %d entries of %s", len(given), key,
                         extra=self.facts(shard, "given"))  # fmt: skip
                await self._take_pending(shard, given)
                await self.hold(shard, given)
            start = b"(" + page[-1][0]

    async def _forget_the_dead(self) -> None:
        """Remove members that were killed long ago; not those that still have something pending."""
        member = self.member
        for key in self.keys:
            removed: list[bytes] = await self._run(
                "forget", (key,), member.group,
                member.idle_ms_min * FORGET_IDLES_MIN, IDS_PER_COMMAND_MAX,
            )  # fmt: skip
            if removed:
                self.intake.stats.consumers_removed += len(removed)
                names = ", ".join(name.decode(errors="replace") for name in removed[:10])
                log.info("%d consumers of group %s of %s were not seen for long, hold nothing and "
                         "are removed: %s%s", len(removed), member.group, key, names,
                         " …" if len(removed) > 10 else "")  # fmt: skip
        await self._learn_reached()

    # --- leaving ---------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Send the last acknowledgements, give back what is held, and leave the group."""
        member = self.member
        await self.flush()
        for shard in self.shards:
            try:
                given, deleted = await self._run(
                    "leave",
                    (self.stream.keys[shard],),
                    member.group,
                    member.name,
                    member.idle_ms_min,
                )
            except GroupNotFoundError:
                continue  # Nothing to leave.
            if given:
                log.info(
                    "%s gives back %d entries of %s", member.name, given, self.stream.keys[shard]
                )
            if deleted:
                await self._clear_lost(shard, deleted)


def _parts(letters: Sequence[list[bytes]]) -> list[list[list[bytes]]]:
    """Dead letters in order, so many at a time as one script call may have."""
    parts: list[list[list[bytes]]] = [[]]
    room = WRITE_BYTES_MAX
    for letter in letters:
        size = sum(map(len, letter))
        if parts[-1] and (size > room or len(parts[-1]) == IDS_PER_COMMAND_MAX):
            parts.append([])
            room = WRITE_BYTES_MAX
        parts[-1].append(letter)
        room -= size
    return parts


def entry_order(entry_id: bytes) -> tuple[int, int]:
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
