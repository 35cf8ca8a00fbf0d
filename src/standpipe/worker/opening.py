"""From what the consumer delivers to the calls of the handler."""

from __future__ import annotations

from typing import Final

from standpipe.consumer import Delivery
from standpipe.errors import DecodeError
from standpipe.event import Batch, Entry
from standpipe.policy import on_takeover
from standpipe.worker.call import Call, Open
from standpipe.worker.settling import Settler


class Opener:
    """Opens entries: makes the calls that their events are handled by.

    What no call can be made of is settled here: empty blocks, entries that no codec reads, and
    those that have killed too many workers.

    Args:
        settler: What settles them.
        is_batch: Whether the handler takes whole batches.
        deliveries_max: Tries after which an entry that was never finished is given up.
    """

    def __init__(self, settler: Settler, *, is_batch: bool, deliveries_max: int) -> None:
        self._settler: Final = settler
        self._is_batch: Final = is_batch
        self._deliveries_max: Final = deliveries_max

    def calls_at_once(self, delivery: Delivery) -> list[Call] | None:
        """The calls for a delivery; None: something has to be settled first, see :meth:`calls`."""
        if delivery.undecodable or delivery.deliveries:
            return None
        opened = _opened(delivery)
        if not all(entry.left for entry in opened):
            return None
        try:
            return self._made(delivery.batch, opened, 1)
        except DecodeError:
            return None

    async def calls(self, delivery: Delivery) -> list[Call]:
        """The calls for a delivery."""
        batch, shard, counts = delivery.batch, delivery.shard, delivery.deliveries
        fence = delivery.fence
        for bad in delivery.undecodable:
            await self._settler.bury_raw(Open(shard, bad.id, 1, fence), bad.fields, bad.error)
        opened = _opened(delivery)
        if not counts:
            return await self._calls_of(batch, opened, 1)
        # After a takeover the entries' counts differ, so each goes by itself.
        calls: list[Call] = []
        for entry, open_entry in zip(batch.entries, opened, strict=True):
            alone = Batch([entry], stream=batch.stream, shard=batch.shard)
            before = counts.get(open_entry.id, 0)
            open_entry.deliveries = open_entry.counted = before
            if on_takeover(before + 1, self._deliveries_max) == "retry" or decode_error(entry):
                calls += await self._calls_of(alone, [open_entry], before + 1)
            else:
                reason = f"delivered {before} times and never finished: its workers died of it"
                await self._settler.bury(alone, [open_entry], entry.id, before, reason, None)
        return calls

    async def _calls_of(self, batch: Batch, opened: list[Open], deliveries: int) -> list[Call]:
        if empty := [entry for entry in opened if not entry.left]:
            await self._settler.settle(empty, [0] * len(empty))
            if not len(batch):
                return []
        try:
            return self._made(batch, opened, deliveries)
        except DecodeError:
            return await self.decodable(batch, opened, deliveries)

    def _made(self, batch: Batch, opened: list[Open], deliveries: int) -> list[Call]:
        is_suspect = 1 < deliveries >= self._deliveries_max
        if self._is_batch:
            # Not decoded here: a handler that takes tables needs no events.
            first = batch.entries[0].id
            return [Call(batch, opened, first, deliveries, is_suspect=is_suspect)]
        owners = [o for o in opened for _ in range(o.left)]
        return [
            Call(event, [owner], event_id, deliveries, is_suspect=is_suspect)
            for event, event_id, owner in zip(batch.events, batch.ids, owners, strict=True)
        ]

    async def decodable(self, batch: Batch, opened: list[Open], deliveries: int) -> list[Call]:
        """The calls for the entries that can be decoded, each alone; the others are buried."""
        calls: list[Call] = []
        for entry, open_entry in zip(batch.entries, opened, strict=True):
            if error := decode_error(entry):
                open_entry.left = 1
                await self._settler.bury_raw(open_entry, entry.fields, error)
            else:
                alone = Batch([entry], stream=batch.stream, shard=batch.shard)
                calls += await self._calls_of(alone, [open_entry], deliveries)
        return calls


def _opened(delivery: Delivery) -> list[Open]:
    return [
        Open(delivery.shard, entry_id, entry.count, delivery.fence)
        for entry_id, entry in zip(delivery.ids, delivery.batch.entries, strict=True)
    ]


def decode_error(entry: Entry) -> DecodeError | None:
    """Why an entry is not what its header says; None: it is."""
    try:
        entry.events()
    except DecodeError as error:
        return error
    return None
