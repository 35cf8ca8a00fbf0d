"""The producer itself: checks and encodes events, and hands them to the buffer."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from standpipe.codec import (
    MARKS,
    check_codec,
    check_table,
    encode_columns,
    encode_plain,
    events_to_table,
    rows_part,
)
from standpipe.errors import ConfigError, EventTooLargeError, NotAcknowledgedError
from standpipe.event import Event, check_event, check_events
from standpipe.keyspace import partition
from standpipe.limits import (
    BLOCK_BYTES_MAX,
    BLOCK_EVENTS_MAX,
    BUFFER_BYTES_MAX,
    BUFFER_EVENTS_MAX,
    DRAIN_MS_MAX,
    EVENT_BYTES_MAX,
    SEND_DEADLINE_MS,
    TABLE_BLOCK_ROWS_MAX,
)
from standpipe.producer.block import Receipt, Receipts
from standpipe.producer.buffer import Buffer, ProducerStats, Shard
from standpipe.producer.lane import Lane
from standpipe.stream import Stream
from standpipe.wire import pack

if TYPE_CHECKING:
    import pyarrow as pa

log: Final = logging.getLogger("standpipe.producer")


class Producer:
    """Sends events into a stream.

    Args:
        stream: The stream; opened if it is not, and closed again by this producer only then.
        codec: ``plain``, ``rows`` or ``columns``; default: the stream's. ``columns`` turns lists of
            events into tables; send_table always writes columns.
        on_full: ``wait``: send waits for room; ``raise``: it raises BackpressureError.
        buffer_bytes_max: Bytes held between send and acknowledgement.
        buffer_events_max: Events held, likewise.
        block_events_max: Events per block.
        block_bytes_max: Bytes per block before compression.
        event_bytes_max: A larger event is refused.
        deadline_ms: How long a block is tried before its receipt fails, ms.
        compress: Whether rows and columns are compressed when that is smaller.

    Raises:
        ConfigError: a value that is not allowed.
        ServerError: on starting: the server cannot be reached or refuses.

    Delivery:
        An acknowledged event is in the server's memory (level ``memory``). A server that crashes
        loses what its AOF has not synced yet: up to a second with ``appendfsync everysec``, nothing
        with ``always``. If this process dies, events that were not acknowledged may or may not
        have been added.

    Use it as an async context manager; leaving it flushes.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        codec: str | None = None,
        on_full: Literal["wait", "raise"] = "wait",
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
        buffer_events_max: int = BUFFER_EVENTS_MAX,
        block_events_max: int = BLOCK_EVENTS_MAX,
        block_bytes_max: int = BLOCK_BYTES_MAX,
        event_bytes_max: int = EVENT_BYTES_MAX,
        deadline_ms: int = SEND_DEADLINE_MS,
        compress: bool = True,
    ) -> None:
        if on_full not in ("wait", "raise"):
            raise ConfigError(f"on_full is {on_full!r}", hint="It is 'wait' or 'raise'.")
        for name, value in (
            ("buffer_bytes_max", buffer_bytes_max),
            ("buffer_events_max", buffer_events_max),
            ("block_events_max", block_events_max),
            ("block_bytes_max", block_bytes_max),
            ("event_bytes_max", event_bytes_max),
            ("deadline_ms", deadline_ms),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}", hint="It is at least 1.")
        self.stream: Final = stream
        self.id: Final = uuid.uuid4().hex
        self._codec = None if codec is None else check_codec(codec)
        self._on_full = on_full
        self._block_events_max = block_events_max
        self._event_bytes_max = event_bytes_max
        self._compress = compress
        self._new_buffer: Callable[[Sequence[str]], Buffer] = lambda keys: Buffer(
            keys,
            self.id,
            bytes_max=buffer_bytes_max,
            events_max=buffer_events_max,
            block_bytes_max=block_bytes_max,
            block_events_max=block_events_max,
            deadline_ms=deadline_ms,
        )
        self._buffer = self._new_buffer(())
        self._buffer.close()
        self._lanes: list[Lane] = []
        self._opened_stream = False

    @property
    def stats(self) -> ProducerStats:
        """Counters since the start."""
        return self._buffer.stats

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> Producer:
        """Connect, so that a wrong URL or password shows now and not at the first send."""
        if self._lanes:
            return self
        if not self.stream.is_open:
            await self.stream.open()
            self._opened_stream = True
        self._codec = self._codec or self.stream.definition.codec
        self._layout = self.stream.definition.layout
        buffer = self._new_buffer(self.stream.keys)
        server = self.stream.server
        # In a cluster the shards' slots move between nodes one by one: each has its own connection.
        groups = [[shard] for shard in buffer.shards] if server.is_cluster else [buffer.shards]
        self._lanes = [Lane(buffer, group, server, compress=self._compress) for group in groups]
        try:
            for lane in self._lanes:
                await lane.connect()
        except BaseException:
            await self._stop()
            raise
        for lane in self._lanes:
            lane.start()
        self._buffer = buffer
        return self

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or has failed.

        Raises:
            NotAcknowledgedError: events failed whose receipts nobody has awaited.
        """
        await self._buffer.wait_until_empty()
        self._buffer.raise_failures()

    async def close(self, *, deadline_ms: int = DRAIN_MS_MAX) -> None:
        """Flush, then disconnect. What is not acknowledged by the deadline fails.

        Raises:
            NotAcknowledgedError: as :meth:`flush`; the connections are closed all the same.
        """
        self._buffer.is_closed = True
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._buffer.wait_until_empty()
        except TimeoutError:
            log.error("events were not acknowledged within the %d ms that closing has", deadline_ms)
        finally:
            await self._stop()
        self._buffer.raise_failures()

    async def _stop(self) -> None:
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.stop()
        self._buffer.close()
        if self._opened_stream:
            self._opened_stream = False
            await self.stream.close()

    async def __aenter__(self) -> Producer:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await self.close()
        except NotAcknowledgedError as error:
            if kind is None:
                raise
            # The body's own error goes on; what failed beside it is still said.
            log.error("%s", error)

    # --- sending ---------------------------------------------------------------------------------

    async def send(self, event: Event | Mapping[str, Any]) -> Receipt:
        """Take one event; returns at once unless the buffer is full.

        Args:
            event: An Event, or a flat mapping with key and time under the stream's names.

        Returns:
            A receipt; await it for the event's ID, that is for the acknowledgement.

        Raises:
            FieldError, EventTooLargeError: the event cannot be sent; nothing was.
            BackpressureError: the buffer is full and ``on_full="raise"``. Retryable.
            ProducerClosedError: the producer is not running.

        Delivery:
            If the process dies before the receipt resolves, the event may or may not be there.

        Cost: one write for all events that gathered while the last one was in flight.
        """
        if not isinstance(event, Event):
            event = self._from_mapping(event)
        check_event(event)
        shard = self._buffer.shards[partition(event.key, len(self._buffer.shards))]
        if self._codec == "columns":
            receipts = Receipts()
            await self._send_as_table([event], shard, range(1), receipts)
            return receipts.first()
        if self._codec == "plain":
            fields = encode_plain(event, self._layout)
            part, arguments = _resp_arguments(len(fields), *fields), len(fields) + 1
        else:
            part, arguments = rows_part((event,)), 0
        if len(part) > self._event_bytes_max:
            raise self._too_large(event, len(part))
        await self._wait_for_room(len(part), 1)
        block = self._buffer.add(shard, MARKS[self._codec or "rows"], part, 1, arguments)
        if block.count >= self._block_events_max:
            # A loop of sends that never waits would keep the writer from running.
            await asyncio.sleep(0)
        return Receipt(block, block.count - 1)

    async def send_many(self, events: Iterable[Event | Mapping[str, Any]]) -> Receipts:
        """Take many events, in their order per key; faster per event than :meth:`send`.

        Returns:
            One receipt for all.

        Raises:
            FieldError, EventTooLargeError: an event cannot be sent; none of these was.
            BackpressureError: they do not fit and ``on_full="raise"``; none was taken. Retryable.
            ProducerClosedError: the producer is not running.

        Delivery: as :meth:`send`; blocks are acknowledged one by one.
        """
        listed = list(events)
        if set(map(type, listed)) <= {Event}:
            given = cast("list[Event]", listed)
        else:
            given = [e if isinstance(e, Event) else self._from_mapping(e) for e in listed]
        check_events(given)
        receipts = Receipts()
        pieces = self._split(given)
        if self._codec == "columns":
            for shard, chunk, positions in pieces:
                await self._send_as_table(chunk, shard, positions, receipts)
            return receipts
        encoded = [(shard, *self._encode(chunk), positions) for shard, chunk, positions in pieces]
        if self._on_full == "raise":
            self._buffer.require_room(sum(len(e[1]) for e in encoded), len(given))
        for shard, part, count, arguments, positions in encoded:
            await self._wait_for_room(len(part), count)
            block = self._buffer.add(shard, MARKS[self._codec or "rows"], part, count, arguments)
            receipts.add(block, block.count - count, count, positions)
            await asyncio.sleep(0)
        return receipts

    async def send_table(self, table: Any) -> Receipts:
        """Take a table of readings: columns ``key``, ``time`` and one per field.

        Args:
            table: A pyarrow Table or RecordBatch, a pandas or polars frame, or anything else that
                gives Arrow data. ``time`` in ms (int) or as timestamps.

        Returns:
            One receipt for all rows, IDs in their order.

        Raises:
            FieldError, EventError: a column is missing, nested, or holds what no event may.
            BackpressureError, ProducerClosedError: as :meth:`send_many`.

        Delivery: as :meth:`send_many`. The blocks are written as columns whatever the codec.
        """
        checked = check_table(table)
        receipts = Receipts()
        for shard, part, positions in self._split_table(checked):
            await self._add_table(part, shard, positions, receipts)
        return receipts

    # --- from events to blocks -------------------------------------------------------------------

    def _from_mapping(self, mapping: Mapping[str, Any]) -> Event:
        definition = self.stream.definition
        return Event.from_mapping(
            mapping, key_field=definition.key_field, time_field=definition.time_field
        )

    def _split(self, events: list[Event]) -> Iterable[tuple[Shard, list[Event], Sequence[int]]]:
        """The events by shard, cut to blocks, with their positions in the list."""
        step = self._block_events_max
        if len(self._buffer.shards) == 1:
            for start in range(0, len(events), step):
                chunk = events[start : start + step]
                yield self._buffer.shards[0], chunk, range(start, start + len(chunk))
            return
        number = {event.key: 0 for event in events}
        for key in number:
            number[key] = partition(key, len(self._buffer.shards))
        by_shard: list[list[int]] = [[] for _ in self._buffer.shards]
        for position, event in enumerate(events):
            by_shard[number[event.key]].append(position)
        for shard, positions in zip(self._buffer.shards, by_shard, strict=True):
            for start in range(0, len(positions), step):
                part = positions[start : start + step]
                yield shard, [events[position] for position in part], part

    def _encode(self, events: list[Event]) -> tuple[bytes, int, int]:
        """The events' bytes, how many they are, and for plain ones how many RESP arguments."""
        if self._codec == "plain":
            parts: list[bytes] = []
            arguments = 0
            for event in events:
                fields = encode_plain(event, self._layout)
                parts.append(_resp_arguments(len(fields), *fields))
                arguments += len(fields) + 1
            part = b"".join(parts)
        else:
            part, arguments = rows_part(events), 0
        if len(part) > self._event_bytes_max:
            # Only now can one of them be too large; this is rare enough to encode it once more.
            for event in events:
                size = len(rows_part((event,)))
                if size > self._event_bytes_max:
                    raise self._too_large(event, size)
        return part, len(events), arguments

    def _too_large(self, event: Event, size: int) -> EventTooLargeError:
        return EventTooLargeError(
            f"event of {event.key!r} at {event.time} has {size} bytes, more than "
            f"event_bytes_max ({self._event_bytes_max})"
        )

    async def _send_as_table(
        self, events: list[Event], shard: Shard, positions: Sequence[int], receipts: Receipts
    ) -> None:

        for event in events:
            if len(rows_part((event,))) > self._event_bytes_max:
                raise self._too_large(event, len(rows_part((event,))))
        await self._add_table(events_to_table(events), shard, positions, receipts)

    def _split_table(self, table: pa.Table) -> Iterable[tuple[Shard, pa.Table, Sequence[int]]]:
        step = TABLE_BLOCK_ROWS_MAX
        if len(self._buffer.shards) == 1:
            for start in range(0, table.num_rows, step):
                part = table.slice(start, step)
                yield self._buffer.shards[0], part, range(start, start + part.num_rows)
            return
        import pyarrow.compute as pc

        # Hash each distinct key once, then pick the rows of each shard.
        keys = pc.dictionary_encode(table.column("key").combine_chunks())
        homes = [partition(key, len(self._buffer.shards)) for key in keys.dictionary.to_pylist()]
        by_shard: list[list[int]] = [[] for _ in self._buffer.shards]
        for position, index in enumerate(keys.indices.to_pylist()):
            by_shard[0 if index is None else homes[index]].append(position)
        for shard, positions in zip(self._buffer.shards, by_shard, strict=True):
            for start in range(0, len(positions), step):
                picked = positions[start : start + step]
                yield shard, table.take(picked), picked

    async def _add_table(
        self, table: pa.Table, shard: Shard, positions: Sequence[int], receipts: Receipts
    ) -> None:
        payload = encode_columns(table)
        await self._wait_for_room(len(payload), table.num_rows)
        block = self._buffer.add_payload(shard, MARKS["columns"], payload, table.num_rows)
        receipts.add(block, 0, table.num_rows, positions)
        await asyncio.sleep(0)

    async def _wait_for_room(self, size: int, count: int) -> None:
        if self._on_full == "raise" and not self._buffer.is_closed:
            self._buffer.require_room(size, count)
        await self._buffer.wait_for_room(size, count)


def _resp_arguments(*arguments: Any) -> bytes:
    """RESP of some arguments without the command's header, to be joined into a longer command."""
    packed = pack(*arguments)
    return packed[packed.index(b"\n") + 1 :]
