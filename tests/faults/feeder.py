"""A producer at work in a test, and what its stream has to hold afterwards."""

from __future__ import annotations

import asyncio

from standpipe import Event, EventId, Producer, Stream
from standpipe.keyspace import partition
from tests.conditions import eventually
from tests.servers.entries import events_of, make_events, numbers


class Feeder:
    """Sends events, singly and in lists, until told to stop; keeps the receipts."""

    def __init__(self, producer: Producer, *, keys: int = 10) -> None:
        self.events: list[Event] = []
        self.ids: dict[int, EventId | None] = {}
        """Of the acknowledged events, by their number."""
        self._producer = producer
        self._keys = keys
        self._stopping = False
        self._waiting: set[asyncio.Task[None]] = set()
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopping:
            events = make_events(20, keys=self._keys, first=len(self.events))
            self.events += events
            singly = [await self._producer.send(event) for event in events[:5]]
            many = await self._producer.send_many(events[5:])
            first = len(self.events) - 20
            waiting = asyncio.create_task(self._note(first, singly, many))
            self._waiting.add(waiting)
            # As fast as the server answers, and never more than some lists ahead.
            await asyncio.wait({waiting}, timeout=0.01)

    async def _note(self, first: int, singly: list, many: object) -> None:
        ids = [await receipt for receipt in singly] + await many
        self.ids.update(zip(range(first, first + 20), ids, strict=True))

    async def until(self, count: int, deadline_s: float = 10) -> None:
        """Wait until so many more events are acknowledged."""
        goal = len(self.ids) + count

        def is_reached() -> bool:
            if self._running.done():
                self._running.result()
            return len(self.ids) >= goal

        await eventually(is_reached, deadline_s, what=f"{goal} events are acknowledged")

    async def finish(self) -> int:
        """Stop, and wait for all acknowledgements; how many events there were."""
        self._stopping = True
        await self._running
        await asyncio.gather(*self._waiting)
        return len(self.events)

    async def require_all_once(self, stream: Stream) -> None:
        """Fail unless every event is in its shard once, in order, under the ID of its receipt."""
        for shard, standing in enumerate(await events_of(stream)):
            mine = [
                n for n, event in enumerate(self.events)
                if partition(event.key, stream.shards) == shard
            ]  # fmt: skip
            assert numbers(event for _, event in standing) == mine
            told = [self.ids[n] for n in mine]
            assert [event_id for event_id, _ in standing] == told
