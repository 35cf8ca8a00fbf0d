"""Reader: looks at a stream without a group, from any point of time, and follows it.

Nothing is consumed: a reader has no place in any group and acknowledges nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from standpipe.clock import parse_time
from standpipe.codec import decode_entry
from standpipe.errors import ConfigError, DecodeError, StandpipeError
from standpipe.event import Batch, Entry, Event, EventId
from standpipe.limits import READ_BLOCK_MS, READ_COUNT, SEND_DEADLINE_MS
from standpipe.policy import backoff_ms
from standpipe.stream import Stream
from standpipe.wire import Link, pack

log: Final = logging.getLogger("standpipe.reader")

Point = str | int | EventId
"""A time (ms, ISO 8601, ``-2h``), an event ID, ``-`` (the oldest) or ``$`` (now)."""


class Reader:
    """Reads a stream in order, between two points, or from one onwards.

    Args:
        stream: The stream; opened if it is not.
        start: Where to begin: a time (ms since the epoch, ISO 8601, ``-2h``), an EventId or its
            text, ``-`` for the oldest entry, ``$`` for what comes from now on. Times are those at
            which the server added the entry; an event's own time may be earlier.
        end: Where to stop, inclusive; None or ``$``: at what is there when the reader gets to the
            end. An EventId is one event; the text of an entry ID without an index the whole entry.
        follow: Go on with what is added later, until the iteration is left.

    Raises:
        ConfigError: a point is none of these, or ``end`` is given with ``follow``.
        StreamNotFoundError: on the first read: the stream does not exist (unless ``follow``).
        ServerError: the server cannot be reached for two minutes, or refuses.

    Between two points the entries of all shards come merged in the order of their IDs; following,
    in each shard's order as they arrive. Entries that no codec reads are counted in
    ``undecodable``, logged and left out.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        start: Point = "-",
        end: Point | None = None,
        follow: bool = False,
    ) -> None:
        if follow and end is not None:
            raise ConfigError("end is given with follow", hint="Give one of the two.")
        self.stream: Final = stream
        self.undecodable = 0
        self._follow = follow
        self._start = parse_point(start, "start", is_end=False)
        self._end = "+" if end is None or end == "$" else parse_point(end, "end", is_end=True)
        self._first_index = _index(start) or 0
        self._last_index = _index(end)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """What is read as batches of one shard each: events with their IDs, or a table.

        Cost: XRANGE of 256 entries per page and shard; following, one XREAD of all shards.
        """
        opened_here = not self.stream.is_open
        await self.stream.open()
        try:
            if not self._follow:
                await self.stream.require()
            last = dict.fromkeys(range(self.stream.shards), b"")
            if self._start == "$":
                for shard in last:
                    last[shard] = await self._newest(shard)
            else:
                async with aclosing(self._merged(last)) as merged:
                    async for batch in merged:
                        yield batch
            if self._follow:
                async with aclosing(self._followed(last)) as followed:
                    async for batch in followed:
                        yield batch
        finally:
            if opened_here:
                await self.stream.close()

    # --- between two points ----------------------------------------------------------------------

    async def _merged(self, last: dict[int, bytes]) -> AsyncGenerator[Batch, None]:
        """Pages of all shards, merged by entry ID; ``last`` takes the last ID of each."""
        pages: dict[int, deque[Any]] = {}
        heads: list[tuple[tuple[int, int], int]] = []

        async def refill(shard: int) -> None:
            rows = await self._page(shard, last[shard])
            if rows:
                last[shard] = rows[-1][0]
                pages[shard] = deque(rows)
                heapq.heappush(heads, (_order(rows[0][0]), shard))

        for shard in list(last):
            await refill(shard)
        while heads:
            _, shard = heapq.heappop(heads)
            # All of this shard's page that is older than the next shard's oldest goes out at once.
            limit = heads[0][0] if heads else None
            rows: list[Any] = []
            page = pages[shard]
            while page and (limit is None or _order(page[0][0]) <= limit):
                rows.append(page.popleft())
            if page:
                heapq.heappush(heads, (_order(page[0][0]), shard))
            else:
                await refill(shard)
            batch = self._decode(shard, rows)
            if batch:
                yield batch

    async def _page(self, shard: int, after: bytes) -> list[Any]:
        key = self.stream.keys[shard]
        start = b"(" + after if after else self._start
        reply: list[Any] = await self._retried(
            lambda: self.stream.server.call(
                "XRANGE", key, start, self._end, "COUNT", READ_COUNT, key=key
            )
        )
        return reply

    async def _newest(self, shard: int) -> bytes:
        key = self.stream.keys[shard]
        rows: list[Any] = await self._retried(
            lambda: self.stream.server.call("XREVRANGE", key, "+", "-", "COUNT", 1, key=key)
        )
        return rows[0][0] if rows else b"0-0"

    async def _retried(self, call: Any) -> Any:
        deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
        attempt = 0
        while True:
            try:
                return await call()
            except StandpipeError as error:
                attempt += 1
                await self._pause(error, attempt, deadline)

    async def _pause(self, error: StandpipeError, attempt: int, deadline: float) -> None:
        if not error.retryable or time.monotonic() >= deadline:
            raise error
        if self.stream.server.is_cluster:
            await self.stream.server.refresh()
        wait_ms = backoff_ms(attempt)
        log.warning("%s; trying again in %d ms (%s)", error, wait_ms, error.hint)
        await asyncio.sleep(wait_ms / 1000)

    # --- following -------------------------------------------------------------------------------

    async def _followed(self, last: dict[int, bytes]) -> AsyncGenerator[Batch, None]:
        shards = list(last)
        clustered = self.stream.server.is_cluster
        groups = [[shard] for shard in shards] if clustered else [shards]
        arrived: asyncio.Queue[Batch | Exception] = asyncio.Queue(maxsize=16)
        loops = [
            asyncio.create_task(self._keep_following(group, last, arrived)) for group in groups
        ]
        try:
            while True:
                found = await arrived.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _keep_following(
        self, shards: list[int], last: dict[int, bytes], arrived: asyncio.Queue[Batch | Exception]
    ) -> None:
        try:
            await self._follow_loop(shards, last, arrived)
        except Exception as error:
            # Whatever it is: without this loop the reader would wait in silence for ever.
            await arrived.put(error)

    async def _follow_loop(
        self, shards: list[int], last: dict[int, bytes], arrived: asyncio.Queue[Batch | Exception]
    ) -> None:
        keys = [self.stream.keys[shard] for shard in shards]
        link: Link | None = None
        attempt = 0
        deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
        try:
            while True:
                try:
                    if link is None or not link.is_open:
                        link = await self.stream.server.link(keys[0])
                    points = [last[shard] or id_before(self._start) for shard in shards]
                    read = pack(
                        "XREAD", "COUNT", READ_COUNT, "BLOCK", READ_BLOCK_MS,
                        "STREAMS", *keys, *points,
                    )  # fmt: skip
                    wait = READ_BLOCK_MS + link.reply_ms_max
                    (reply,) = await link.exchange((read,), 1, reply_ms_max=wait)
                    if isinstance(reply, StandpipeError):
                        raise reply
                except StandpipeError as error:
                    attempt += 1
                    if link is not None:
                        # The shard may be on another node by now: ask anew for the one that has it.
                        await link.close()
                    await self._pause(error, attempt, deadline)
                    continue
                attempt = 0
                deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
                arrived_rows: dict[bytes, list[Any]] = reply or {}
                for key, rows in arrived_rows.items():
                    shard = self.stream.keys.index(key.decode())
                    last[shard] = rows[-1][0]
                    batch = self._decode(shard, rows)
                    if batch:
                        await arrived.put(batch)
        finally:
            if link is not None:
                await link.close()

    # --- decoding --------------------------------------------------------------------------------

    def _decode(self, shard: int, rows: list[Any]) -> Batch:
        entries: list[Entry] = []
        for entry_id, fields in rows:
            try:
                entry = decode_entry(entry_id, fields, self.stream.definition.layout)
                # Now, so that what cannot be read is left out here and not met by the caller.
                entry.events()
            except DecodeError as error:
                self.undecodable += 1
                log.warning("entry %s of shard %d: %s", entry_id.decode(), shard, error)
                continue
            entries.append(entry)
        batch = Batch(entries, stream=self.stream.name, shard=shard)
        if not entries:
            return batch
        # Only the entries that the two points name are cut; those between are whole.
        first, stop = 0, len(batch)
        if entries[0].id.entry == self._start:
            first = min(self._first_index, entries[0].count)
        if self._last_index is not None and entries[-1].id.entry == self._end:
            stop -= max(0, entries[-1].count - self._last_index - 1)
        return batch if (first, stop) == (0, len(batch)) else batch.part(first, stop)[0]


def _order(entry_id: bytes) -> tuple[int, int]:
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)


def id_before(point: str) -> bytes:
    """The entry ID before a point: XREAD and XGROUP, unlike XRANGE, leave out the one given."""
    ms, seq = _order(b"0-0" if point == "-" else point.encode())
    if seq or not ms:
        return b"%d-%d" % (ms, max(0, seq - 1))
    return b"%d-%d" % (ms - 1, 2**64 - 1)


def _index(value: Point | None) -> int | None:
    """The index of the event that a point names; None where it names a time or a whole entry."""
    if isinstance(value, str) and "/" in value:
        return EventId.parse(value.strip()).index
    return value.index if isinstance(value, EventId) else None


def parse_point(value: Point, name: str, *, is_end: bool) -> str:
    """A point as XRANGE takes it.

    Raises:
        ConfigError, EventError: it is none.
    """
    if isinstance(value, EventId):
        return value.entry
    if isinstance(value, str):
        text = value.strip()
        if text in ("-", "$"):
            return text
        head, dash, rest = text.partition("-")
        if head.isdigit() and (dash or "/" in text) and rest.partition("/")[0].isdigit():
            return EventId.parse(text).entry
    ms = max(0, parse_time(value, name=name))
    # A bare time covers its whole millisecond: as a start from -0, as an end to the last.
    return str(ms) if is_end else f"{ms}-0"
