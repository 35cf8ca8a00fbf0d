"""What has been delivered to a consumer and is not settled yet, counted and bounded."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from standpipe.errors import DecodeError
from standpipe.event import Batch


class Undecodable(NamedTuple):
    """An entry that no codec reads, as it stands on the server."""

    id: bytes
    fields: list[bytes]
    error: DecodeError


class Delivery:
    """Entries of one shard that arrived together.

    ``ids`` are the entry IDs as the server wrote them, parallel to ``batch.entries``.
    ``deliveries`` says of those that were delivered before how often: how often a handler was begun
    with them, whatever became of it. It is empty if none was. ``fence`` is that of the lease under
    which they were read; 0 without leases.
    """

    __slots__ = ("batch", "deliveries", "fence", "ids", "shard", "undecodable")

    def __init__(
        self,
        shard: int,
        batch: Batch,
        ids: list[bytes],
        deliveries: dict[bytes, int],
        undecodable: list[Undecodable],
        fence: int = 0,
    ) -> None:
        self.shard = shard
        self.batch = batch
        self.ids = ids
        self.deliveries = deliveries
        self.undecodable = undecodable
        self.fence = fence


class ConsumerStats:
    """Counters of one consumer, since it was started."""

    __slots__ = (
        "acknowledged",
        "consumers_removed",
        "events",
        "groups_created",
        "leases_lost",
        "leases_taken",
        "lost",
        "read",
        "refused",
        "taken_from_us",
        "taken_over",
    )

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
        self.consumers_removed = 0
        """Names of other consumers, long unseen and with nothing pending, taken off the group."""
        self.groups_created = 0
        """Groups created, or created again after the server lost them."""
        self.leases_taken = 0
        """Ordered mode: shards that have become this consumer's."""
        self.leases_lost = 0
        """Ordered mode: shards that were taken from it, as it was not heard of for too long."""
        self.refused = 0
        """Ordered mode: entries whose acknowledgement came when the shard was another's."""

    def __repr__(self) -> str:
        return f"ConsumerStats({', '.join(f'{n}={getattr(self, n)}' for n in self.__slots__)})"


class Room(NamedTuple):
    """How much more may be delivered."""

    events: int
    bytes: int


NOTHING: Final = Room(0, 0)


class Intake:
    """Where the lanes put what arrives, and how much more may come.

    Args:
        events_max: Events delivered and not settled, at most. Entries taken over may pass it by a
            quarter, so that a busy consumer too helps with what the dead have left.
        bytes_max: Bytes of their entries, likewise.
    """

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self.stats: Final = ConsumerStats()
        self.limits: Final = Room(events_max, bytes_max)
        self.in_flight = 0
        """Events delivered and not yet settled."""
        self.in_flight_bytes = 0
        """Bytes of their entries, as the server sent them."""
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._room = asyncio.Event()
        self._arrived: asyncio.Queue[Delivery | Exception] = asyncio.Queue()

    async def wait_for_room(self) -> Room:
        """Wait for room; return how much may be asked for.

        At most half of the limits, so that the other half is worked on meanwhile.
        """
        while (room := self.room()) is None:
            self._room.clear()
            await self._room.wait()
        return room

    def room(self, beside: Room = NOTHING) -> Room | None:
        """How much may be asked for now, as :meth:`wait_for_room` has it; None: nothing.

        ``beside`` is about to be put here.
        """
        room = Room(
            min(self._events_max - self.in_flight - beside.events, (self._events_max + 1) // 2),
            min(self._bytes_max - self.in_flight_bytes - beside.bytes, (self._bytes_max + 1) // 2),
        )
        return room if min(room) > 0 else None

    def room_for_takeover(self) -> Room | None:
        """How much may be taken over now; None: nothing."""
        room = Room(
            self._events_max + max(1, self._events_max // 4) - self.in_flight,
            self._bytes_max + max(1, self._bytes_max // 4) - self.in_flight_bytes,
        )
        return room if min(room) > 0 else None

    def put(self, delivery: Delivery, size: int) -> None:
        """Something has arrived, of so many bytes."""
        self.in_flight_bytes += size
        self.stats.read += len(delivery.ids) + len(delivery.undecodable)
        self.stats.events += len(delivery.batch)
        self.in_flight += len(delivery.batch) + len(delivery.undecodable)
        self._arrived.put_nowait(delivery)

    def fail(self, error: Exception) -> None:
        """Nothing more will arrive, for a reason that no retry mends."""
        self._arrived.put_nowait(error)

    async def get(self) -> Delivery:
        """The next delivery.

        Raises:
            Exception: what :meth:`fail` was given, after all that had arrived before it.
        """
        found = await self._arrived.get()
        if isinstance(found, Exception):
            raise found
        return found

    def release(self, events: int, size: int) -> None:
        """So many events, of so many bytes, are settled or have become another consumer's."""
        self.in_flight -= events
        self.in_flight_bytes -= size
        self._room.set()
