"""The consumer itself: one member of a group over all shards, made of its lanes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from standpipe.consumer.condition import Condition
from standpipe.consumer.counting import Hold
from standpipe.consumer.intake import ConsumerStats, Delivery, Intake
from standpipe.consumer.lane import Lane, entry_order
from standpipe.consumer.leases import Leases
from standpipe.consumer.member import Member
from standpipe.consumer.mixing import require_no_owners, require_no_strangers
from standpipe.consumer.ordered import OrderedLane
from standpipe.consumer.requeued import RequeuedLane, RequeuedShard
from standpipe.errors import ConfigError, StandpipeError
from standpipe.limits import (
    IDLE_MS_MIN,
    IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_EVENTS_MAX,
    LEASE_MS,
    LEASE_MS_MIN,
    LEAVE_TRIES_MAX,
)
from standpipe.policy import backoff_ms
from standpipe.stream import Stream

log: Final = logging.getLogger("standpipe.consumer")


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
        in_flight_events_max: Events delivered and not yet acknowledged, at most. What is taken over
            may pass it, by less than as much again, so that a busy consumer too helps with what the
            dead have left; and a read may, whose entries turn out larger than those before.
        in_flight_bytes_max: Bytes of their entries, as the server sent them; likewise.
        ordered: A shard is read by one member at a time, by lease: what is pending on it first, in
            order, whoever held it. All members of the group have to be so.
        lease_ms: In ordered mode, how long a shard stays with an owner that is not heard of, ms.

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
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        ordered: bool = False,
        lease_ms: int = LEASE_MS,
    ) -> None:
        if not group or any(c.isspace() for c in group):
            raise ConfigError(f"group is {group!r}", hint="Give the group a name without spaces.")
        if name is not None and (not name or any(c.isspace() for c in name)):
            raise ConfigError(f"consumer is {name!r}", hint="Give it a name without spaces.")
        if idle_ms_min < 1:
            raise ConfigError(f"idle_ms_min is {idle_ms_min}", hint="It is at least 1 ms.")
        for option, value in (
            ("in_flight_events_max", in_flight_events_max),
            ("in_flight_bytes_max", in_flight_bytes_max),
        ):
            if value < 1:
                raise ConfigError(f"{option} is {value}", hint="It is at least 1.")
        if lease_ms < LEASE_MS_MIN:
            raise ConfigError(f"lease_ms is {lease_ms}", hint=f"At least {LEASE_MS_MIN} ms.")
        self.stream: Final = stream
        self.group: Final = group
        self.name: Final = name or default_consumer_name()
        self._member = Member(stream, group, self.name, start, idle_ms_min)
        self._intake = Intake(in_flight_events_max, in_flight_bytes_max)
        self.leases: Final = Leases(self.name, lease_ms, self.stats) if ordered else None
        """In ordered mode: the shards that this consumer owns."""
        self._lanes: list[Lane] = []
        self._meet: Callable[[int], Coroutine[Any, Any, list[str]]] | None = None
        self._requeued: list[RequeuedLane] = []
        """Beside each lane: what was requeued for this group on its shards."""
        self._loops: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    @property
    def stats(self) -> ConsumerStats:
        """Counters since the start."""
        return self._intake.stats

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Create the group where it is missing, connect, and begin to read.

        Raises:
            ServerError: the server cannot be reached or refuses.
            WrongTypeError: a shard's key holds something else.
            GroupInUseError: members are at work of which some are in ordered mode and others not.
        """
        keys = self.stream.keys
        clustered = self.stream.server.is_cluster
        groups = [[shard] for shard in range(len(keys))] if clustered else [list(range(len(keys)))]
        condition = Condition(self._member.facts(None if len(keys) > 1 else 0))
        given = [(self._member, self._intake, shards, condition) for shards in groups]
        leased: list[OrderedLane] = []
        if self.leases is None:
            self._lanes = [Lane(*each) for each in given]
        else:
            leased = [OrderedLane(*each, self.leases) for each in given]
            self._lanes = [*leased]
        try:
            for lane in self._lanes:
                await lane.create_groups()
            if leased:
                await require_no_strangers(leased, leased[0].meet)
            else:
                await require_no_owners(self._lanes)
        except BaseException:
            await self.close()
            raise
        self._requeued = list(map(RequeuedLane, self._lanes))
        for lane in (*self._lanes, *self._requeued):
            self._readers.append(self._loop(lane.read_loop(), "standpipe-reader"))
            self._loops.append(self._loop(lane.flush_loop(), "standpipe-flusher"))
            self._loops.append(self._loop(lane.keep_loop(), "standpipe-keeper"))
        if self.leases is not None:
            for lane, requeued in zip(leased, self._requeued, strict=True):
                lane.dropped = requeued.drop
            self.leases.set_lanes(leased)
            self._meet = leased[0].meet
            self._loops.append(self._loop(self.leases.loop(self._meet), "standpipe-leases"))

    def _loop(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        loop = asyncio.create_task(work, name=name)
        loop.add_done_callback(self._loop_ended)
        return loop

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        # Whatever it ended with: without one of its loops a consumer would stand still in silence.
        if not loop.cancelled() and isinstance(error := loop.exception(), Exception):
            self._intake.fail(error)

    def offer_to(self, taker: Callable[[Delivery], bool]) -> None:
        """Offer what arrives to a function as it arrives, before it waits for :meth:`deliveries`.

        Args:
            taker: Says whether it has taken it. It must not raise, nor take long.
        """
        self._intake.taker = taker

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """What arrives, without an end, but for an error that no retry mends.

        Raises:
            StandpipeError: such an error, after what had arrived before it. What is none of ours,
                a fault of this package, is raised as it is.
        """
        while True:
            yield await self._intake.get()

    async def stop_reading(self) -> None:
        """Deliver nothing more; what was delivered can still be acknowledged.

        In ordered mode, shards on which nothing is in progress are given up at once.
        """
        if self.leases is not None:
            self.leases.give_up()
        await cancel_tasks(self._readers)

    async def leave(self) -> None:
        """Send the last acknowledgements, give back what is still held, and leave the group.

        What is given back is marked idle, so that another member takes it at its next sweep. The
        consumer is removed from the group only where it has nothing pending. If the server cannot
        be reached, everything stays pending until it is idle for long enough.
        """
        await self.stop_reading()
        # The keeper would renew what is given back.
        await cancel_tasks(self._loops)
        for lane in (*self._requeued, *self._lanes):
            await self._leave(lane)
        if self.leases is not None and self._meet is not None:
            await self.leases.leave(self._meet)

    async def _leave(self, lane: Lane) -> None:
        for attempt in range(1, LEAVE_TRIES_MAX + 1):
            try:
                await lane.leave()
                return
            except StandpipeError as error:
                if not error.retryable or attempt == LEAVE_TRIES_MAX:
                    log.warning("%s could not leave its group: %s; what it holds is taken over "
                                "when it has been idle for long enough", self.name, error,
                                extra=lane.facts(None, "not_left"))  # fmt: skip
                    return
                await asyncio.sleep(backoff_ms(attempt) / 1000)

    async def close(self) -> None:
        """Disconnect. What is held stays pending until it is idle for long enough."""
        await self.stop_reading()
        await cancel_tasks(self._loops)
        for lane in self._lanes:
            await lane.close()
        self._lanes = []
        self._requeued = []

    # --- settling --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Events delivered and not yet settled."""
        return self._intake.in_flight

    @property
    def in_flight_max(self) -> int:
        """How many of them it takes."""
        return self._intake.limits.events

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of their entries, as the server sent them."""
        return self._intake.in_flight_bytes

    @property
    def has_lost_some(self) -> bool:
        """Whether an entry has ever ceased to be this consumer's before it was settled."""
        return self._intake.stats.taken_from_us > 0 or self._intake.stats.lost > 0

    def holds(self, shard: int, entry_id: bytes) -> bool:
        """Whether an entry is still this consumer's, as far as it knows."""
        return entry_id in self._lane(shard).held[shard]

    def ack(self, shard: int, ids: Iterable[bytes]) -> None:
        """Acknowledge entries; leaves with the next read, or within some milliseconds by itself.

        Sent again until the server has answered, or until the entry is another consumer's.
        """
        self._lane(shard).ack(shard, ids)

    async def flush(self, shard: int) -> None:
        """Send the acknowledgements of a shard that are waiting; what fails is sent again later."""
        try:
            await self._lane(shard).flush()
        except StandpipeError as error:
            log.debug("acknowledgements wait: %s", error)

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        """Acknowledge one entry and keep dead letters of it, in one atomic step.

        More than 1,000 letters, or 4 MiB, take several steps, so that the server is not held up for
        long; the acknowledgement comes with the last.

        Args:
            shard: The shard's number.
            entry_id: The entry.
            letters: Flat ``[name, value, …]`` of each dead letter.

        Delivery: If the process dies here, either both have happened or neither; then the entry is
            delivered again. With several steps, letters may then be there twice; none is lost.
        """
        await self._lane(shard).settle(shard, entry_id, letters)

    async def count_delivery(self, shard: int, ids: list[bytes], deliveries: int) -> None:
        """Write entries' delivery count to the server, so that it survives this process.

        Renews them as well, and notices those that are not this consumer's any more.

        Cost: one round trip; counts that are asked for while it is under way go together next.
        """
        ids = sorted(ids, key=entry_order)
        await self._lane(shard).counting.write(Hold(shard, ids, deliveries))

    def _lane(self, shard: int) -> Lane:
        lanes = self._requeued if isinstance(shard, RequeuedShard) else self._lanes
        return lanes[shard if len(lanes) > 1 else 0]


async def cancel_tasks(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks, wait until they have ended, and forget them."""
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do something to its end though this task is cancelled meanwhile; raise that afterwards."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
