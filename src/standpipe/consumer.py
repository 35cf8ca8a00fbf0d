"""Consumer: one member of a group; reads, acknowledges, renews and takes over.

Per connected node it runs three loops:

* the reader: first what this consumer name already has pending, then new entries, with the waiting
  acknowledgements in the same round trip;
* the flusher: acknowledgements that no read comes along to carry;
* the keeper: renews what is held, so that a slow handler is not taken for dead, and sweeps the
  group's pending entries for those of the dead.

Reads block on a connection of their own; everything else goes over a second one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, NamedTuple

from standpipe.codec import decode_entry
from standpipe.errors import (
    ConfigError,
    DecodeError,
    GroupNotFoundError,
    ReplyError,
    StandpipeError,
)
from standpipe.event import Batch, Entry
from standpipe.limits import (
    ACK_GRACE_MS,
    CLAIM_COUNT,
    EVENTS_PER_ENTRY_GUESS,
    IDLE_MS_MIN,
    IDS_PER_COMMAND_MAX,
    IN_FLIGHT_EVENTS_MAX,
    READ_BLOCK_MS,
    READ_COUNT,
    RENEWALS_PER_IDLE,
    REPLY_MS_MAX,
)
from standpipe.policy import backoff_ms, renew_every_ms
from standpipe.stream import Stream
from standpipe.wire import Link, pack, script

log: Final = logging.getLogger("standpipe.consumer")


class Undecodable(NamedTuple):
    """An entry that no codec reads, as it stands on the server."""

    id: bytes
    fields: list[bytes]
    error: DecodeError


class Delivery:
    """Entries of one shard that arrived together.

    ``ids`` are the entry IDs as the server wrote them, parallel to ``batch.entries``.
    ``deliveries`` has the delivery count of those that were delivered before; others have 1.
    """

    __slots__ = ("batch", "deliveries", "ids", "shard", "undecodable")

    def __init__(
        self,
        shard: int,
        batch: Batch,
        ids: list[bytes],
        deliveries: dict[bytes, int],
        undecodable: list[Undecodable],
    ) -> None:
        self.shard = shard
        self.batch = batch
        self.ids = ids
        self.deliveries = deliveries
        self.undecodable = undecodable


class ConsumerStats:
    """Counters of one consumer, since it was started."""

    __slots__ = ("acknowledged", "events", "groups_created", "lost", "read", "taken_from_us", "taken_over")

    def __init__(self) -> None:
        self.read = 0
        """Entries delivered, taken over ones included."""
        self.events = 0
        """Events in them."""
        self.acknowledged = 0
        """Entries whose acknowledgement the server has confirmed."""
        self.taken_over = 0
        """Entries that another consumer had left idle."""
        self.taken_from_us = 0
        """Entries that another consumer took over while this one held them."""
        self.lost = 0
        """Entries deleted from the stream while they were pending."""
        self.groups_created = 0
        """Groups created, or created again after the server lost them."""

    def __repr__(self) -> str:
        return f"ConsumerStats({', '.join(f'{n}={getattr(self, n)}' for n in self.__slots__)})"


def default_consumer_name() -> str:
    """A name that no other process has: host, process id and some random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class Consumer:
    """One member of a consumer group, over all shards of a stream.

    Args:
        stream: An open stream.
        group: The group's name; created where it does not exist.
        name: This consumer's name, unique among the living ones. One that comes back under its old
            name begins with what it had pending. Default: unique to this process.
        start: Where a new group begins: ``"0"`` with everything that is kept, ``"$"`` with what
            comes after (that silently skips what came before), or an entry ID.
        idle_ms_min: Entries idle for this long are taken over from their consumer, ms.
        in_flight_events_max: Events delivered and not yet acknowledged, at most.

    Delivery:
        At least once. What is delivered stays pending until acknowledged; if this process dies,
        another member takes it over after ``idle_ms_min``.
    """

    def __init__(
        self,
        stream: Stream,
        group: str,
        name: str | None = None,
        *,
        start: str = "0",
        idle_ms_min: int = IDLE_MS_MIN,
        in_flight_events_max: int = IN_FLIGHT_EVENTS_MAX,
    ) -> None:
        if not group or any(c.isspace() for c in group):
            raise ConfigError(f"group is {group!r}", hint="Give the group a name without spaces.")
        if name is not None and (not name or any(c.isspace() for c in name)):
            raise ConfigError(f"consumer is {name!r}", hint="Give it a name without spaces.")
        if idle_ms_min < 1:
            raise ConfigError(f"idle_ms_min is {idle_ms_min}", hint="It is at least 1 ms.")
        if in_flight_events_max < 1:
            raise ConfigError(
                f"in_flight_events_max is {in_flight_events_max}", hint="It is at least 1."
            )
        self.stream: Final = stream
        self.group: Final = group
        self.name: Final = name or default_consumer_name()
        self.stats: Final = ConsumerStats()
        self.idle_ms_min: Final = idle_ms_min
        self._start = start
        self._in_flight_max = in_flight_events_max
        self._in_flight = 0
        self._room = asyncio.Event()
        self._arrived: asyncio.Queue[Delivery | StandpipeError] = asyncio.Queue()
        self._lanes: list[_Lane] = []
        self._loops: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Create the group where it is missing, connect, and begin to read.

        Raises:
            ServerError: the server cannot be reached or refuses.
            WrongTypeError: a shard's key holds something else.
        """
        keys = self.stream.keys
        clustered = self.stream.server.is_cluster
        groups = [[shard] for shard in range(len(keys))] if clustered else [list(range(len(keys)))]
        self._lanes = [_Lane(self, shards) for shards in groups]
        try:
            for lane in self._lanes:
                await lane.create_groups()
        except BaseException:
            await self.close()
            raise
        for lane in self._lanes:
            self._readers.append(asyncio.create_task(lane.read_loop(), name="standpipe-reader"))
            self._loops.append(asyncio.create_task(lane.flush_loop(), name="standpipe-flusher"))
            self._loops.append(asyncio.create_task(lane.keep_loop(), name="standpipe-keeper"))

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """What arrives, until the consumer is closed or meets an error that no retry mends.

        Raises:
            StandpipeError: such an error, after what had arrived before it.
        """
        while True:
            found = await self._arrived.get()
            if isinstance(found, StandpipeError):
                raise found
            yield found

    async def stop_reading(self) -> None:
        """Deliver nothing more; what was delivered can still be acknowledged."""
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def leave(self) -> None:
        """Send the last acknowledgements, give back what is still held, and leave the group.

        What is given back is marked idle, so that another member takes it at its next sweep. The
        consumer is removed from the group only where it has nothing pending.
        """
        await self.stop_reading()
        for lane in self._lanes:
            await lane.leave()

    async def close(self) -> None:
        """Disconnect. What is held stays pending until it is idle for long enough."""
        await self.stop_reading()
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        for lane in self._lanes:
            await lane.close()
        self._lanes = []

    # --- settling --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Events delivered and not yet settled."""
        return self._in_flight

    def holds(self, shard: int, entry_id: bytes) -> bool:
        """Whether an entry is still this consumer's, as far as it knows."""
        return entry_id in self._lane(shard).held[shard]

    def ack(self, shard: int, ids: Iterable[bytes]) -> None:
        """Acknowledge entries; leaves with the next read, or within some milliseconds by itself.

        Sent again until the server has answered, or until the entry is another consumer's.
        """
        self._lane(shard).ack(shard, ids)

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        """Acknowledge one entry and keep dead letters of it, in one atomic step.

        Args:
            shard: The shard's number.
            entry_id: The entry.
            letters: Flat ``[name, value, …]`` of each dead letter.

        Delivery: If the process dies here, either both have happened or neither; then the entry is
            delivered again.
        """
        await self._lane(shard).settle(shard, entry_id, letters)

    async def count_attempt(self, shard: int, entry_id: bytes, deliveries: int) -> None:
        """Write an entry's delivery count to the server, so that it survives this process."""
        await self._lane(shard).hold(shard, [entry_id], deliveries)

    def _lane(self, shard: int) -> _Lane:
        return self._lanes[shard if len(self._lanes) > 1 else 0]

    def _release(self, events: int) -> None:
        self._in_flight -= events
        self._room.set()

    async def _wait_for_room(self) -> int:
        """How many events may be asked for; at most half of the limit, so that the other half is
        worked on meanwhile."""
        while self._in_flight >= self._in_flight_max:
            self._room.clear()
            await self._room.wait()
        return min(self._in_flight_max - self._in_flight, (self._in_flight_max + 1) // 2)

    def _deliver(self, delivery: Delivery) -> None:
        self.stats.read += len(delivery.ids) + len(delivery.undecodable)
        self.stats.events += len(delivery.batch)
        self._in_flight += len(delivery.batch) + len(delivery.undecodable)
        self._arrived.put_nowait(delivery)


class _Lane:
    """The shards behind one connection, or a pair: one that blocks and one that does not."""

    def __init__(self, consumer: Consumer, shards: list[int]) -> None:
        self.consumer = consumer
        self.stream = consumer.stream
        self.shards = shards
        self.keys = [consumer.stream.keys[shard] for shard in shards]
        self.held: dict[int, dict[bytes, tuple[int, float]]] = {shard: {} for shard in shards}
        """Per shard: entry ID → events in it, and since when it is held or renewed."""
        self._acks: list[tuple[int, list[bytes]]] = []
        self._acking: dict[int, set[bytes]] = {shard: set() for shard in shards}
        """Acknowledged here and not yet by the server: not to be delivered again meanwhile."""
        self._ack_ready = asyncio.Event()
        self._read_link: Link | None = None
        self._control_link: Link | None = None
        self._control = asyncio.Lock()
        self._events_per_entry = float(EVENTS_PER_ENTRY_GUESS)
        self._layout = consumer.stream.definition.layout

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
            self.consumer._arrived.put_nowait(error)
            raise error
        if self.stream.server.is_cluster:
            await self.stream.server.refresh()
        wait_ms = backoff_ms(attempt)
        log.warning("%s; trying again in %d ms (%s)", error, wait_ms, error.hint)
        await asyncio.sleep(wait_ms / 1000)

    async def create_groups(self) -> None:
        commands = [
            pack("XGROUP", "CREATE", key, self.consumer.group, self.consumer._start, "MKSTREAM")
            for key in self.keys
        ]
        for reply in await self._exchange(commands):
            if isinstance(reply, ReplyError) and "BUSYGROUP" in str(reply):
                continue
            if isinstance(reply, StandpipeError):
                raise reply
            self.consumer.stats.groups_created += 1

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
                log.error("%s; the group is created again at %s", error, self.consumer._start)
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
        consumer = self.consumer
        room = await consumer._wait_for_room()
        count = max(1, min(READ_COUNT, int(room / self._events_per_entry)))
        read = pack(
            "XREADGROUP", "GROUP", consumer.group, consumer.name, "COUNT", count,
            "BLOCK", READ_BLOCK_MS, "STREAMS", *self.keys, *[">"] * len(self.keys),
        )  # fmt: skip
        reply = await self._read_with_acks(read, READ_BLOCK_MS)
        self._take(reply, {})

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
        consumer = self.consumer
        await consumer._wait_for_room()
        keys = list(old)
        read = pack(
            "XREADGROUP", "GROUP", consumer.group, consumer.name, "COUNT", READ_COUNT,
            "STREAMS", *keys, *old.values(),
        )  # fmt: skip
        reply = await self._read_with_acks(read, 0)
        for key in keys:
            rows: list[Any] = (reply or {}).get(key.encode(), [])
            if not rows:
                del old[key]
                continue
            old[key] = rows[-1][0]
            shard = self.stream.keys.index(key)
            new = [row for row in rows if not self.knows(shard, row[0])]
            await self._take_pending(shard, new)

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
        consumer = self.consumer
        held = len(self.held[shard])
        (reply,) = await self._exchange(
            [
                pack(
                    "XPENDING", self.stream.keys[shard], consumer.group,
                    first, last, rows + held, consumer.name,
                )
            ]
        )  # fmt: skip
        if isinstance(reply, StandpipeError):
            raise reply
        return {row[0]: row[3] for row in reply}

    async def _clear_lost(self, shard: int, ids: list[bytes]) -> None:
        """Take entries off the pending list that were deleted from the stream, loudly."""
        consumer = self.consumer
        consumer.stats.lost += len(ids)
        log.error(
            "%d entries of %s were deleted while pending for group %s and are lost to it: %s%s",
            len(ids),
            self.stream.keys[shard],
            consumer.group,
            ", ".join(entry_id.decode() for entry_id in ids[:10]),
            " …" if len(ids) > 10 else "",
        )
        for reply in await self._exchange(self._pack_acks([(shard, ids)])):
            if isinstance(reply, StandpipeError):
                raise reply

    def _take(self, reply: Any, counts: dict[bytes, int]) -> None:
        """Decode a reply of XREADGROUP, by shard, and deliver it."""
        now = time.monotonic()
        entries_seen = events_seen = 0
        for key, rows in (reply or {}).items():
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
            self.consumer._deliver(Delivery(shard, batch, ids, counts, undecodable))
        if entries_seen:
            self._events_per_entry = max(1.0, events_seen / entries_seen)

    # --- acknowledging ---------------------------------------------------------------------------

    def knows(self, shard: int, entry_id: bytes) -> bool:
        return entry_id in self.held[shard] or entry_id in self._acking[shard]

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
            self.consumer._release(events)

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
            pack("XACK", self.stream.keys[shard], self.consumer.group, *ids) for shard, ids in acks
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
                self.consumer.stats.acknowledged += len(ids)

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
                done = await self._run("settle", keys, self.consumer.group, entry_id, *arguments)
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt)
                continue
            self.consumer.stats.acknowledged += 1 if done else 0
            if (known := self.held[shard].pop(entry_id, None)) is not None:
                self.consumer._release(known[0])

    # --- renewing and taking over ----------------------------------------------------------------

    async def hold(self, shard: int, ids: list[bytes], deliveries: int | None = None) -> None:
        """Renew entries; forget those that have become another consumer's."""
        consumer, held = self.consumer, self.held[shard]
        count = "" if deliveries is None else deliveries
        for start in range(0, len(ids), IDS_PER_COMMAND_MAX):
            part = ids[start : start + IDS_PER_COMMAND_MAX]
            key = self.stream.keys[shard]
            gone = await self._run("hold", (key,), consumer.group, consumer.name, count, *part)
            now = time.monotonic()
            for entry_id in part:
                if entry_id in held:
                    held[entry_id] = (held[entry_id][0], now)
            for entry_id in gone:
                if (known := held.pop(entry_id, None)) is not None:
                    consumer.stats.taken_from_us += 1
                    consumer._release(known[0])
                    log.warning(
                        "entry %s of %s was taken over from %s, which held it for too long",
                        entry_id.decode(),
                        key,
                        consumer.name,
                    )

    async def keep_loop(self) -> None:
        period = renew_every_ms(self.consumer.idle_ms_min, RENEWALS_PER_IDLE) / 1000
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
        consumer = self.consumer
        for shard in self.shards:
            cursor = b"0-0"
            while True:
                await consumer._wait_for_room()
                (reply,) = await self._exchange(
                    [
                        pack(
                            "XAUTOCLAIM", self.stream.keys[shard], consumer.group, consumer.name,
                            consumer.idle_ms_min, cursor, "COUNT", CLAIM_COUNT,
                        )
                    ]
                )  # fmt: skip
                if isinstance(reply, StandpipeError):
                    raise reply
                # Redis 6.2 has null in the place of an entry that was deleted; later versions
                # name it in a third part and have taken it off the list already.
                cursor, rows, *deleted = reply
                rows = [row for row in rows if row is not None]
                new = [row for row in rows if not self.knows(shard, row[0])]
                consumer.stats.taken_over += len(new)
                if new:
                    log.info("took over %d entries of %s", len(new), self.stream.keys[shard])
                await self._take_pending(shard, new)
                if deleted and deleted[0]:
                    await self._clear_lost(shard, deleted[0])
                if len(rows) < len(reply[1]):
                    await self._find_lost(shard)
                if cursor == b"0-0":
                    break

    async def _find_lost(self, shard: int) -> None:
        """On Redis 6.2: which of the entries now pending for this consumer are not there."""
        consumer, key = self.consumer, self.stream.keys[shard]
        held = self.held[shard]
        (pending,) = await self._exchange(
            [
                pack(
                    "XPENDING", key, consumer.group, "-", "+",
                    len(held) + CLAIM_COUNT, consumer.name,
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
        consumer = self.consumer
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
                            "XPENDING", key, consumer.group, cursor, "+",
                            IDS_PER_COMMAND_MAX, consumer.name,
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
                            "XCLAIM", key, consumer.group, consumer.name, 0, *[r[0] for r in rows],
                            "IDLE", consumer.idle_ms_min, "JUSTID",
                        )
                    ]
                )  # fmt: skip
                if isinstance(reply, StandpipeError):
                    raise reply
                cursor = b"(" + rows[-1][0]
            await self._run("leave", (key,), consumer.group, consumer.name)


def _entry_order(entry_id: bytes) -> tuple[int, int]:
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
