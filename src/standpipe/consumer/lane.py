"""The shards behind a pair of connections: reading, acknowledging, renewing, taking over.

Three loops run over it. The reader: first what this consumer name already has pending, then new
entries, with the waiting acknowledgements in the same round trip. The flusher: acknowledgements
that no read comes along to carry. The keeper: renews what is held, so that a slow handler is not
taken for dead, and sweeps the group's pending entries for those of the dead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from standpipe.codec import decode_entry
from standpipe.consumer.intake import Delivery, Intake, Undecodable
from standpipe.errors import DecodeError, GroupNotFoundError, ReplyError, StandpipeError
from standpipe.event import Batch, Entry
from standpipe.limits import (
    ACK_GRACE_MS,
    CLAIM_COUNT,
    EVENTS_PER_ENTRY_GUESS,
    IDS_PER_COMMAND_MAX,
    READ_BLOCK_MS,
    READ_COUNT,
    RENEWALS_PER_IDLE,
    REPLY_MS_MAX,
)
from standpipe.policy import backoff_ms, renew_every_ms
from standpipe.stream import Stream
from standpipe.wire import Link, pack, script

log: Final = logging.getLogger("standpipe.consumer")


_Rows = dict[bytes, list[Any]]
"""A reply of XREADGROUP: shard key → [entry ID, fields] of each entry."""


class Member(NamedTuple):
    """Who reads: one name in one group of one stream."""

    stream: Stream
    group: str
    name: str
    start: str
    """Where the group begins if it has to be created."""
    idle_ms_min: int


class Lane:
    """The shards behind one connection, or a pair: one that blocks and one that does not."""

    def __init__(self, member: Member, intake: Intake, shards: list[int]) -> None:
        self.member = member
        self.intake = intake
        self.stream = member.stream
        self.shards = shards
        self.keys = [member.stream.keys[shard] for shard in shards]
        self.held: dict[int, dict[bytes, tuple[int, float]]] = {shard: {} for shard in shards}
        """Per shard: entry ID → events in it, and since when it is held or renewed."""
        self._acks: list[tuple[int, list[bytes]]] = []
        self._acking: dict[int, set[bytes]] = {shard: set() for shard in shards}
        """Acknowledged here and not yet by the server: not to be delivered again meanwhile."""
        self._ack_ready = asyncio.Event()
        self._read_link: Link | None = None
        self._control_link: Link | None = None
        self._control = asyncio.Lock()
        self._pending = asyncio.Lock()
        """Held from asking for pending entries until they are known here: the reader, which asks
        for its own, must not meet what a sweep has just made its own."""
        self._events_per_entry = float(EVENTS_PER_ENTRY_GUESS)
        self._layout = member.stream.definition.layout

    # --- connections -----------------------------------------------------------------------------

    async def _reading(self) -> Link:
        if self._read_link is None or not self._read_link.is_open:
            self._read_link = await self.stream.server.link(self.keys[0])
        return self._read_link

    async def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Commands that do not block, over the second connection."""
        async with self._control:
            if self._control_link is None or not self._control_link.is_open:
                self._control_link = await self.stream.server.link(self.keys[0])
            return await self._control_link.exchange(commands, len(commands))

    async def _run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        async with self._control:
            if self._control_link is None or not self._control_link.is_open:
                self._control_link = await self.stream.server.link(self.keys[0])
            return await self._control_link.run(script(name), keys, *arguments)

    async def close(self) -> None:
        for link in (self._read_link, self._control_link):
            if link is not None:
                await link.close()

    async def _pause(self, error: StandpipeError, attempt: int) -> None:
        """Wait before trying again, or pass on an error that no retry mends."""
        if not error.retryable and not isinstance(error, GroupNotFoundError):
            self.intake.fail(error)
            raise error
        if self.stream.server.is_cluster:
            await self.stream.server.refresh()
        wait_ms = backoff_ms(attempt)
        log.warning("%s; trying again in %d ms (%s)", error, wait_ms, error.hint)
        await asyncio.sleep(wait_ms / 1000)

    async def create_groups(self) -> None:
        commands = [
            pack("XGROUP", "CREATE", key, self.member.group, self.member.start, "MKSTREAM")
            for key in self.keys
        ]
        for reply in await self._exchange(commands):
            if isinstance(reply, ReplyError) and "BUSYGROUP" in str(reply):
                continue
            if isinstance(reply, StandpipeError):
                raise reply
            self.intake.stats.groups_created += 1

    # --- reading ---------------------------------------------------------------------------------

    async def read_loop(self) -> None:
        attempt = 0
        old: dict[str, bytes] = dict.fromkeys(self.keys, b"0")
        while True:
            try:
                if old:
                    # After a cut as at the start: a reply that was lost left its entries pending.
                    await self._read_old(old)
                else:
                    await self._read_new()
                attempt = 0
            except GroupNotFoundError as error:
                attempt += 1
                log.error("%s; the group is created again at %s", error, self.member.start)
                await self._pause(error, attempt)
                await self._create_again()
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt)
                old = dict.fromkeys(self.keys, b"0")

    async def _create_again(self) -> None:
        try:
            await self.create_groups()
        except StandpipeError as error:
            # The read that follows meets the same trouble, and is the one place that handles it.
            log.warning("the group could not be created: %s", error)

    async def _read_new(self) -> None:
        member = self.member
        room = await self.intake.wait_for_room()
        count = max(1, min(READ_COUNT, int(room / self._events_per_entry)))
        read = pack(
            "XREADGROUP", "GROUP", member.group, member.name, "COUNT", count,
            "BLOCK", READ_BLOCK_MS, "STREAMS", *self.keys, *[">"] * len(self.keys),
        )  # fmt: skip
        self._take(await self._read_with_acks(read, READ_BLOCK_MS) or {}, {})

    async def _read_with_acks(self, read: bytes, block_ms: int) -> Any:
        """A read, with the waiting acknowledgements ahead of it in the same round trip."""
        link = await self._reading()
        acks = self._take_acks()
        try:
            replies = await link.exchange(
                [*self._pack_acks(acks), read],
                len(acks) + 1,
                reply_ms_max=block_ms + REPLY_MS_MAX,
            )
        except BaseException:
            self._put_back(acks)
            raise
        self._count_acks(acks, replies[:-1])
        if isinstance(replies[-1], StandpipeError):
            raise replies[-1]
        return replies[-1]

    async def _read_old(self, old: dict[str, bytes]) -> None:
        """One page of what this consumer has pending already; forgets the keys that are through."""
        member = self.member
        await self.intake.wait_for_room()
        keys = list(old)
        read = pack(
            "XREADGROUP", "GROUP", member.group, member.name, "COUNT", READ_COUNT,
            "STREAMS", *keys, *old.values(),
        )  # fmt: skip
        async with self._pending:
            found: _Rows = await self._read_with_acks(read, 0) or {}
            for key in keys:
                rows = found.get(key.encode(), [])
                if not rows:
                    del old[key]
                    continue
                old[key] = rows[-1][0]
                shard = self.stream.keys.index(key)
                await self._take_pending(shard, self._unknown(shard, rows))

    async def _take_pending(self, shard: int, rows: list[Any]) -> None:
        """Deliver entries that were delivered before, with their counts; clear the deleted ones."""
        gone = [row[0] for row in rows if row[1] is None]
        if gone:
            await self._clear_lost(shard, gone)
        rows = [row for row in rows if row[1] is not None]
        if rows:
            counts = await self._delivery_counts(shard, rows[0][0], rows[-1][0], len(rows))
            self._take({self.stream.keys[shard].encode(): rows}, counts)

    async def _delivery_counts(
        self, shard: int, first: bytes, last: bytes, rows: int
    ) -> dict[bytes, int]:
        member = self.member
        held = len(self.held[shard])
        (reply,) = await self._exchange(
            [
                pack(
                    "XPENDING", self.stream.keys[shard], member.group,
                    first, last, rows + held, member.name,
                )
            ]
        )  # fmt: skip
        if isinstance(reply, StandpipeError):
            raise reply
        return {row[0]: row[3] for row in reply}

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
        )
        for reply in await self._exchange(self._pack_acks([(shard, ids)])):
            if isinstance(reply, StandpipeError):
                raise reply

    def _take(self, found: _Rows, counts: dict[bytes, int]) -> None:
        """Decode what was read, by shard, and deliver it."""
        now = time.monotonic()
        entries_seen = events_seen = 0
        for key, rows in found.items():
            shard = self.stream.keys.index(key.decode())
            held = self.held[shard]
            entries: list[Entry] = []
            ids: list[bytes] = []
            undecodable: list[Undecodable] = []
            for entry_id, fields in rows:
                try:
                    entry = decode_entry(entry_id, fields, self._layout)
                except DecodeError as error:
                    undecodable.append(Undecodable(entry_id, fields, error))
                    held[entry_id] = (1, now)
                    continue
                entries.append(entry)
                ids.append(entry_id)
                held[entry_id] = (entry.count, now)
                events_seen += entry.count
            entries_seen += len(rows)
            batch = Batch(entries, stream=self.stream.name, shard=shard)
            self.intake.put(Delivery(shard, batch, ids, counts, undecodable))
        if entries_seen:
            self._events_per_entry = max(1.0, events_seen / entries_seen)

    # --- acknowledging ---------------------------------------------------------------------------

    def knows(self, shard: int, entry_id: bytes) -> bool:
        return entry_id in self.held[shard] or entry_id in self._acking[shard]

    def _unknown(self, shard: int, rows: list[Any]) -> list[Any]:
        return [row for row in rows if not self.knows(shard, row[0])]

    def ack(self, shard: int, ids: Iterable[bytes]) -> None:
        held = self.held[shard]
        mine: list[bytes] = []
        events = 0
        for entry_id in ids:
            # Not held any more: another consumer took it over, and the acknowledgement is its own.
            if (known := held.pop(entry_id, None)) is not None:
                mine.append(entry_id)
                events += known[0]
        if mine:
            self._acking[shard].update(mine)
            self._acks.append((shard, mine))
            self._ack_ready.set()
            self.intake.release(events)

    def _take_acks(self) -> list[tuple[int, list[bytes]]]:
        """The waiting acknowledgements, joined by shard and cut to commands."""
        by_shard: dict[int, list[bytes]] = {}
        for shard, ids in self._acks:
            by_shard.setdefault(shard, []).extend(ids)
        self._acks = []
        self._ack_ready.clear()
        return [
            (shard, ids[start : start + IDS_PER_COMMAND_MAX])
            for shard, ids in by_shard.items()
            for start in range(0, len(ids), IDS_PER_COMMAND_MAX)
        ]

    def _put_back(self, acks: list[tuple[int, list[bytes]]]) -> None:
        if acks:
            self._acks = acks + self._acks
            self._ack_ready.set()

    def _pack_acks(self, acks: Iterable[tuple[int, list[bytes]]]) -> list[bytes]:
        return [
            pack("XACK", self.stream.keys[shard], self.member.group, *ids) for shard, ids in acks
        ]

    def _count_acks(self, acks: list[tuple[int, list[bytes]]], replies: list[Any]) -> None:
        for (shard, ids), reply in zip(acks, replies, strict=True):
            if isinstance(reply, StandpipeError) and reply.retryable:
                self._put_back([(shard, ids)])
                continue
            self._acking[shard].difference_update(ids)
            if isinstance(reply, StandpipeError):
                # The entries stay pending and will be delivered again: at least once.
                log.error("%d acknowledgements were refused: %s", len(ids), reply)
            else:
                self.intake.stats.acknowledged += len(ids)

    async def flush_loop(self) -> None:
        attempt = 0
        while True:
            await self._ack_ready.wait()
            await asyncio.sleep(ACK_GRACE_MS / 1000)
            acks = self._take_acks()
            if not acks:
                continue
            try:
                await self._flush(acks)
                attempt = 0
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt)

    async def _flush(self, acks: list[tuple[int, list[bytes]]]) -> None:
        try:
            replies = await self._exchange(self._pack_acks(acks))
        except BaseException:
            self._put_back(acks)
            raise
        self._count_acks(acks, replies)

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        attempt = 0
        arguments = [part for letter in letters for part in (len(letter), *letter)]
        keys = (self.stream.keys[shard], self.stream.dead_key(shard))
        while entry_id in self.held[shard]:
            try:
                done = await self._run("settle", keys, self.member.group, entry_id, *arguments)
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt)
                continue
            self.intake.stats.acknowledged += 1 if done else 0
            if (known := self.held[shard].pop(entry_id, None)) is not None:
                self.intake.release(known[0])

    # --- renewing and taking over ----------------------------------------------------------------

    async def hold(self, shard: int, ids: list[bytes], deliveries: int | None = None) -> None:
        """Renew entries; forget those that have become another consumer's."""
        member, held = self.member, self.held[shard]
        count = "" if deliveries is None else deliveries
        for start in range(0, len(ids), IDS_PER_COMMAND_MAX):
            part = ids[start : start + IDS_PER_COMMAND_MAX]
            key = self.stream.keys[shard]
            gone = await self._run("hold", (key,), member.group, member.name, count, *part)
            now = time.monotonic()
            for entry_id in part:
                if entry_id in held:
                    held[entry_id] = (held[entry_id][0], now)
            for entry_id in gone:
                if (known := held.pop(entry_id, None)) is not None:
                    self.intake.stats.taken_from_us += 1
                    self.intake.release(known[0])
                    log.warning(
                        "entry %s of %s was taken over from %s, which held it for too long",
                        entry_id.decode(),
                        key,
                        member.name,
                    )

    async def keep_loop(self) -> None:
        period = renew_every_ms(self.member.idle_ms_min, RENEWALS_PER_IDLE) / 1000
        attempt = 0
        while True:
            try:
                await self._renew(older_than=period / 2)
                await self._sweep()
                attempt = 0
            except GroupNotFoundError:
                # The reader meets it too, and is the one that creates the group again.
                log.debug("the group is gone; nothing to renew or to take over")
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt)
                continue
            # Some jitter, so that many workers started together do not sweep together.
            await asyncio.sleep(period * random.uniform(0.8, 1.0))

    async def _renew(self, *, older_than: float) -> None:
        limit = time.monotonic() - older_than
        for shard in self.shards:
            old = [i for i, (_, since) in self.held[shard].items() if since <= limit]
            if old:
                await self.hold(shard, sorted(old, key=_entry_order))

    async def _sweep(self) -> None:
        """Take over what has been idle for too long, to the end of each shard's pending list."""
        for shard in self.shards:
            cursor = b"0-0"
            while True:
                await self.intake.wait_for_room()
                async with self._pending:
                    cursor = await self._claim(shard, cursor)
                if cursor == b"0-0":
                    break

    async def _claim(self, shard: int, cursor: bytes) -> bytes:
        """One page of a sweep; returns where the next one begins."""
        member = self.member
        (reply,) = await self._exchange(
            [
                pack(
                    "XAUTOCLAIM", self.stream.keys[shard], member.group, member.name,
                    member.idle_ms_min, cursor, "COUNT", CLAIM_COUNT,
                )
            ]
        )  # fmt: skip
        if isinstance(reply, StandpipeError):
            raise reply
        # Redis 6.2 has null in the place of an entry that was deleted; later versions name it in a
        # third part and have taken it off the list already.
        following, found, *deleted = reply
        rows = [row for row in found if row is not None]
        new = self._unknown(shard, rows)
        if new:
            self.intake.stats.taken_over += len(new)
            log.info("took over %d entries of %s", len(new), self.stream.keys[shard])
            await self._take_pending(shard, new)
        if deleted and deleted[0]:
            await self._clear_lost(shard, deleted[0])
        if len(rows) < len(found):
            await self._find_lost(shard)
        return following

    async def _find_lost(self, shard: int) -> None:
        """On Redis 6.2: which of the entries now pending for this consumer are not there."""
        member, key = self.member, self.stream.keys[shard]
        held = self.held[shard]
        (pending,) = await self._exchange(
            [
                pack(
                    "XPENDING", key, member.group, "-", "+",
                    len(held) + CLAIM_COUNT, member.name,
                )
            ]
        )  # fmt: skip
        if isinstance(pending, StandpipeError):
            raise pending
        unknown = [row[0] for row in pending if not self.knows(shard, row[0])]
        found = await self._exchange([pack("XRANGE", key, i, i) for i in unknown])
        gone = [i for i, rows in zip(unknown, found, strict=True) if rows == []]
        if gone:
            await self._clear_lost(shard, gone)

    # --- leaving ---------------------------------------------------------------------------------

    async def leave(self) -> None:
        member = self.member
        acks = self._take_acks()
        if acks:
            await self._flush(acks)
        for shard in self.shards:
            key = self.stream.keys[shard]
            cursor = b"-"
            while True:
                (rows,) = await self._exchange(
                    [
                        pack(
                            "XPENDING", key, member.group, cursor, "+",
                            IDS_PER_COMMAND_MAX, member.name,
                        )
                    ]
                )  # fmt: skip
                if isinstance(rows, StandpipeError):
                    raise rows
                if not rows:
                    break
                # Marked idle, an entry goes to another member at its next sweep. JUSTID leaves the
                # delivery count alone.
                (reply,) = await self._exchange(
                    [
                        pack(
                            "XCLAIM", key, member.group, member.name, 0, *[r[0] for r in rows],
                            "IDLE", member.idle_ms_min, "JUSTID",
                        )
                    ]
                )  # fmt: skip
                if isinstance(reply, StandpipeError):
                    raise reply
                cursor = b"(" + rows[-1][0]
            await self._run("leave", (key,), member.group, member.name)


def _entry_order(entry_id: bytes) -> tuple[int, int]:
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
