"""What was requeued for a group: dead letters that were put back, beside the shard they came from.

They stand in a stream of their own per shard and group (``Stream.requeued_key``), which exists only
while there are any. So no other group sees them, and a member of the group looks for them now and
then instead of reading one more key with every read. What it finds is delivered, renewed, taken
over and settled as everything else: a lane over other keys.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from standpipe.codec import decode_entry, read_event
from standpipe.codec.plain import id_from
from standpipe.codec.table import readers_table
from standpipe.consumer.lane import Lane
from standpipe.consumer.mixing import lasting_keys, ordered_at_work
from standpipe.consumer.ordered import OrderedLane
from standpipe.errors import (
    DecodeError,
    EventError,
    GroupNotFoundError,
    NotPermittedError,
    StandpipeError,
)
from standpipe.event import Entry, Event, EventId
from standpipe.limits import REQUEUED_LOOK_GAP_MS, REQUEUED_LOOK_MS
from standpipe.stream import Definition, Stream
from standpipe.wire import Link, pack, script

if TYPE_CHECKING:
    import pyarrow as pa

log: Final = logging.getLogger("standpipe.consumer")


class RequeuedShard(int):
    """The number of a shard, where what was requeued for it is meant and not what stands in it."""

    __slots__ = ()


class _RequeuedKeys(Stream):
    """The stream, with what is requeued for a group in the place of its shards."""

    def __init__(self, stream: Stream, group: str) -> None:
        super().__init__(stream.name, stream.server)
        self._stream = stream
        self._keys = tuple(stream.requeued_key(n, group) for n in range(stream.shards))

    @property
    def definition(self) -> Definition:
        return self._stream.definition

    def dead_key(self, shard: int) -> str:
        return self._stream.dead_key(shard)


class _Origin(NamedTuple):
    """The letter that an entry was requeued from."""

    id: bytes
    """The event's, or of an entry that no codec read the entry's."""
    requeues: bytes
    deliveries_before: bytes
    kind: bytes
    """``d``: an event; ``raw``: the fields of an entry."""
    content: bytes

    @classmethod
    def read(cls, fields: Sequence[bytes]) -> _Origin:
        """Read an entry as requeue.lua has written it.

        Raises:
            DecodeError: it is none; not retryable.
        """
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        kind = b"d" if b"d" in found else b"raw"
        try:
            return cls(
                found[b"id"], found[b"requeues"], found[b"deliveries_before"], kind, found[kind]
            )
        except KeyError as error:
            raise DecodeError(f"a requeued entry has no field {error}") from None

    def entry(self, stream: Stream) -> Entry:
        """What was given up on, under the ID that it had.

        Raises:
            DecodeError: no codec reads it (still); not retryable.
        """
        try:
            if self.kind == b"d":
                return _OneEvent(EventId.parse(self.id), read_event(self.content))
            raw = msgspec.msgpack.decode(self.content, type=list[bytes])
        except (msgspec.MsgspecError, DecodeError, EventError) as error:
            raise DecodeError(f"the requeued letter of {self.id!r} is damaged: {error}") from error
        id_from(self.id)
        return decode_entry(self.id, raw, stream.definition.layout)

    def into(self, letter: list[bytes]) -> list[bytes]:
        """A new letter, with what this one knows."""
        pairs = dict(zip(letter[::2], letter[1::2], strict=True))
        if pairs.pop(b"raw", None) is not None:
            # It has the ID and the fields of what was requeued, not of what stood in the shard.
            pairs |= {b"id": self.id, self.kind: self.content}
        pairs |= {b"requeues": self.requeues, b"deliveries_before": self.deliveries_before}
        return [part for pair in pairs.items() for part in pair]


class _OneEvent(msgspec.Struct, gc=False):
    """One event out of whatever entry it came with."""

    id: EventId
    event: Event
    count: int = 1

    @property
    def fields(self) -> list[bytes]:
        return [b"d", msgspec.msgpack.encode(self.event)]

    def events(self) -> list[Event]:
        return [self.event]

    def table(self) -> pa.Table:
        return readers_table(self.events())


async def count_requeued(stream: Stream, group: str, shard: int) -> int | None:
    """How many events that were requeued for a group on a shard are not settled yet.

    Returns:
        Those that wait and those that are being handled; None where this may not be read.

    Raises:
        ServerError: the server cannot be reached or refuses.

    Cost: one script call, O(entries that no member was given yet).
    """
    try:
        return await stream.server.run(script("waiting"), (stream.requeued_key(shard, group),))
    except NotPermittedError:
        return None


class RequeuedLane(Lane):
    """What was requeued for the shards of a lane, over that lane's second connection."""

    def __init__(self, lane: Lane) -> None:
        keys = _RequeuedKeys(lane.stream, lane.member.group)
        member = lane.member._replace(stream=keys)
        super().__init__(member, lane.intake, lane.shards, lane.condition)
        self._lane = lane
        lanes = len(self.stream.keys) // len(lane.shards)
        self._look_s = max(REQUEUED_LOOK_MS, lanes * REQUEUED_LOOK_GAP_MS) / 1000
        self.shards = []
        """Those for which something was requeued, at the last look: the others have no key."""

    def fence(self, shard: int) -> int | None:
        # In ordered mode the shard's owner handles what was requeued too.
        return self._lane.fence(shard)

    def drop(self, shard: int) -> None:
        """Renew nothing of a shard any more; its next owner finds it when it has been idle."""
        self.acking.drop(shard)
        for entry_id in list(self.held[shard]):
            self._forget(shard, entry_id)

    async def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        return await self._lane._exchange(commands)

    async def _run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        return await self._lane._run(name, keys, *arguments)

    async def _pause(
        self, who: str, error: StandpipeError, attempt: int, *links: Link | None
    ) -> None:
        await self._lane._pause(f"requeued {who}", error, attempt, self._lane._control_link)

    def _works(self, who: str) -> None:
        self._lane._works(f"requeued {who}")

    # --- reading ---------------------------------------------------------------------------------

    async def read_loop(self) -> None:
        attempt = 0
        seen: set[str] = set()
        while True:
            try:
                found = await self._look(seen)
                attempt = 0
                self._works("reader")
            except GroupNotFoundError:
                # Another member has found everything settled, and the key went under our hands.
                found = False
            except NotPermittedError as error:
                # An ACL from before there was this lets the worker do what it did then.
                log.warning("%s; what is requeued for this group is not seen", error,
                            extra=self.facts(None, "requeued_unseen"))  # fmt: skip
                self._works("reader")
                return
            except StandpipeError as error:
                attempt += 1
                # A reply that was lost left its entries pending for this consumer.
                seen.clear()
                await self._pause("reader", error, attempt)
                continue
            if not found:
                # Some jitter, so that many workers started together do not look together.
                await asyncio.sleep(self._look_s * random.uniform(0.8, 1.0))

    async def _look(self, seen: set[str]) -> bool:
        """Deliver what was requeued; returns whether there may be more.

        ``seen`` are the keys of which what this consumer has pending is known already.
        """
        self.shards = await self._there()
        keys = [self.stream.keys[shard] for shard in self.shards]
        seen.intersection_update(keys)
        found = False
        for shard, key in zip(self.shards, keys, strict=True):
            count = await self._read_count()
            async with self._pending:
                rows = await self._run(
                    "requeued", (key,), self.member.group, self.member.name, count
                )
                self._take(shard, rows, {})
            found = found or bool(rows)
            if key not in seen:
                old = {key: b"-"}
                while old:
                    await self._read_old(old)
        if not seen.issuperset(keys):
            # The keeper's next sweep may be far, and others may have given something back.
            await self._sweep()
            seen.update(keys)
        return found

    async def _there(self) -> list[int]:
        """The shards for which something was requeued.

        Raises:
            GroupInUseError: workers of ordered mode have come, and this is none; not retryable.
        """
        own = self._lane.own()
        keys = [self.stream.keys[shard] for shard in own]
        lasting = [] if isinstance(self._lane, OrderedLane) else lasting_keys(self._lane)
        if not keys or not (await self.ask([pack("EXISTS", *keys, *lasting)]))[0]:
            return []
        there = await self.ask([pack("EXISTS", key) for key in (*keys, *lasting)])
        if any(there[len(keys) :]):
            raise ordered_at_work(self._lane.member)
        return [shard for shard, is_there in zip(own, there, strict=False) if is_there]

    def _take(self, shard: int, rows: list[Any], counts: dict[bytes, int]) -> None:
        super()._take(RequeuedShard(shard), rows, counts)

    def _decode(self, entry_id: bytes, fields: list[bytes]) -> Entry:
        return _Origin.read(fields).entry(self.stream)

    # --- settling --------------------------------------------------------------------------------

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        fields = await self._stored(shard, entry_id)
        try:
            letters = list(map(_Origin.read(fields).into, letters))
        except DecodeError as error:
            log.warning("%s: its letter has no history", error)
        await super().settle(shard, entry_id, letters)

    async def _stored(self, shard: int, entry_id: bytes) -> list[bytes]:
        """The fields of an entry that is held; none if it was deleted."""
        attempt = 0
        while True:
            try:
                (rows,) = await self.ask(
                    [pack("XRANGE", self.stream.keys[shard], entry_id, entry_id)]
                )
            except StandpipeError as error:
                attempt += 1
                await self._pause("settler", error, attempt)
            else:
                return rows[0][1] if rows else []
