"""Producer: from events to acknowledged entries, in order per shard, each added once.

How batching adapts without a timer: with nothing in flight a send leaves at once. While a write is
in flight events gather, and the next write takes them all, up to the limits. So latency is one round
trip when idle and blocks are full when loaded.

How an event is added once: every block carries this producer's id and a number that counts up per
shard; ``lua/append.lua`` compares, appends and remembers in one atomic step. A block whose reply
was lost is sent again with the same number and recognised.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from standpipe.codec import (
    MARKS,
    check_codec,
    check_table,
    encode_columns,
    encode_plain,
    rows_part,
    rows_payload,
)
from standpipe.errors import (
    BackpressureError,
    ClusterDownError,
    ConfigError,
    EventTooLargeError,
    NotAcknowledgedError,
    PrimaryDownError,
    ProducerClosedError,
    ReadOnlyServerError,
    ReplyError,
    ScriptMissingError,
    SequenceError,
    SlotMovedError,
    StandpipeError,
)
from standpipe.event import Event, EventId, check_event, check_events
from standpipe.keyspace import partition, side_key
from standpipe.limits import (
    BLOCK_BYTES_MAX,
    BLOCK_EVENTS_MAX,
    BUFFER_BYTES_MAX,
    BUFFER_EVENTS_MAX,
    DRAIN_MS_MAX,
    EVENT_BYTES_MAX,
    SEND_DEADLINE_MS,
    SEQUENCE_TTL_MS,
    TABLE_BLOCK_ROWS_MAX,
    WRITE_BYTES_MAX,
)
from standpipe.policy import backoff_ms
from standpipe.stream import Stream
from standpipe.wire import Link, pack, script

if TYPE_CHECKING:
    import pyarrow as pa

log: Final = logging.getLogger("standpipe.producer")

_ASK_ANOTHER: Final = (ReadOnlyServerError, PrimaryDownError, ClusterDownError, SlotMovedError)
"""Replies that say that another node may be the one to write to."""

_BLOCK_OVERHEAD_BYTES: Final = 256
"""What a block costs this process beside its payload."""


class ProducerStats:
    """Counters of one producer, since it was started."""

    __slots__ = (
        "acknowledged",
        "blocks",
        "failed",
        "forgotten",
        "recognised",
        "retries",
        "sent",
        "wire_bytes",
    )

    def __init__(self) -> None:
        self.sent = 0
        """Events taken by send, send_many and send_table."""
        self.acknowledged = 0
        """Events whose entries the server has."""
        self.failed = 0
        """Events given up on; their receipts say why."""
        self.blocks = 0
        """Writes acknowledged: blocks, or runs of plain events."""
        self.wire_bytes = 0
        """Payload bytes of these, compressed."""
        self.retries = 0
        """Exchanges that had to be repeated, wholly or in part."""
        self.recognised = 0
        """Blocks sent again that the server already had."""
        self.forgotten = 0
        """Blocks before which the server had lost this producer's earlier ones."""

    def __repr__(self) -> str:
        return f"ProducerStats({', '.join(f'{n}={getattr(self, n)}' for n in self.__slots__)})"


class _Block:
    """Events of one shard that travel and are acknowledged together."""

    __slots__ = (
        "arguments",
        "count",
        "deadline",
        "done",
        "error",
        "mark",
        "parts",
        "payload",
        "reported",
        "runs",
        "sequence",
        "size",
        "wire_bytes",
    )

    def __init__(self, mark: str, deadline: float) -> None:
        self.mark = mark
        self.parts: list[bytes] = []
        self.payload: bytes | None = None
        self.count = 0
        self.size = _BLOCK_OVERHEAD_BYTES
        self.wire_bytes = 0
        self.arguments = 0
        """Of a plain run: how many RESP arguments its parts hold."""
        self.sequence = 0
        self.deadline = deadline
        self.done: asyncio.Future[None] | None = None
        self.runs: list[tuple[int, int, int]] | None = None
        """(ms, seq, entries) of each run of consecutive entry IDs."""
        self.error: StandpipeError | None = None
        self.reported = False

    @property
    def is_settled(self) -> bool:
        return self.error is not None or self.runs is not None

    async def wait(self) -> None:
        if not self.is_settled:
            if self.done is None:
                self.done = asyncio.get_running_loop().create_future()
            # Shielded: one waiter's cancellation must not cancel the others' future.
            await asyncio.shield(self.done)
        self.reported = True
        if self.error is not None:
            raise self.error

    def settle(self) -> None:
        self.parts = []
        self.payload = None
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def ids(self, start: int, count: int) -> list[EventId]:
        """The event IDs of ``count`` events from ``start``; empty when they are not known."""
        runs = self.runs or []
        if self.mark:
            return [EventId(ms, seq, start + i) for ms, seq, _ in runs for i in range(count)]
        found = [EventId(ms, seq + i) for ms, seq, entries in runs for i in range(entries)]
        return found[start : start + count]


class Receipt:
    """The promise of an acknowledgement for one event.

    Await it for the event's ID. It raises what the event failed with. None instead of an ID means:
    the server has the event and had acknowledged it before the reply was lost, but its ID is not
    remembered any more.
    """

    __slots__ = ("_block", "_index")

    def __init__(self, block: _Block, index: int) -> None:
        self._block = block
        self._index = index

    def __await__(self) -> Generator[Any, None, EventId | None]:
        yield from self._block.wait().__await__()
        ids = self._block.ids(self._index, 1)
        return ids[0] if ids else None

    @property
    def is_done(self) -> bool:
        return self._block.is_settled


class Receipts:
    """The promise of an acknowledgement for many events.

    Await it for their IDs, in the order in which the events were given (see :class:`Receipt` for
    None). It raises what the first failed block failed with; the other blocks are not affected.
    """

    __slots__ = ("_parts", "count")

    def __init__(self) -> None:
        self._parts: list[tuple[_Block, int, int, Sequence[int]]] = []
        self.count = 0

    def _add(self, block: _Block, start: int, count: int, positions: Sequence[int]) -> None:
        self._parts.append((block, start, count, positions))
        self.count += count

    def __await__(self) -> Generator[Any, None, list[EventId | None]]:
        for block, *_ in self._parts:
            yield from block.wait().__await__()
        found: list[EventId | None] = [None] * self.count
        for block, start, count, positions in self._parts:
            for position, event_id in zip(positions, block.ids(start, count), strict=False):
                found[position] = event_id
        return found

    @property
    def is_done(self) -> bool:
        return all(block.is_settled for block, *_ in self._parts)


class _Shard:
    """What the producer holds for one shard."""

    __slots__ = ("floor", "key", "queue", "sequence", "sequence_key")

    def __init__(self, key: str, producer_id: str) -> None:
        self.key = key
        self.sequence_key = side_key(key, f"seq:{producer_id}")
        self.queue: deque[_Block] = deque()
        self.sequence = 0
        """The last number given out."""
        self.floor = 0
        """Every block up to this number is settled."""


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
        self.stats: Final = ProducerStats()
        self.id: Final = uuid.uuid4().hex
        self._codec = None if codec is None else check_codec(codec)
        self._on_full = on_full
        self._buffer_bytes_max = buffer_bytes_max
        self._buffer_events_max = buffer_events_max
        self._block_events_max = block_events_max
        self._block_bytes_max = block_bytes_max
        self._event_bytes_max = event_bytes_max
        self._deadline_ms = deadline_ms
        self._compress = compress
        self._opened_stream = False
        self._shards: list[_Shard] = []
        self._lanes: list[_Lane] = []
        self._held_bytes = 0
        self._held_events = 0
        self._room = asyncio.Event()
        self._settled = asyncio.Event()
        self._failures: list[_Block] = []
        self._is_closing = False

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
        self._shards = [_Shard(key, self.id) for key in self.stream.keys]
        if self.stream.server.is_cluster:
            # The shards' slots move between nodes one by one, so each has a connection of its own.
            groups = [[shard] for shard in self._shards]
        else:
            groups = [self._shards]
        self._lanes = [_Lane(self, shards) for shards in groups]
        try:
            for lane in self._lanes:
                await lane.connect()
        except BaseException:
            await self._stop()
            raise
        for lane in self._lanes:
            lane.start()
        self._is_closing = False
        return self

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or has failed.

        Raises:
            NotAcknowledgedError: events failed whose receipts nobody has awaited.
        """
        while self._held_events:
            self._settled.clear()
            await self._settled.wait()
        self._raise_failures()

    async def close(self, *, deadline_ms: int = DRAIN_MS_MAX) -> None:
        """Flush, then disconnect. What is not acknowledged by the deadline fails.

        Raises:
            NotAcknowledgedError: as :meth:`flush`; the connections are closed all the same.
        """
        self._is_closing = True
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                while self._held_events:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            for shard in self._shards:
                self._fail_all(shard, ProducerClosedError("the producer was closed first"))
        finally:
            await self._stop()
        self._raise_failures()

    async def _stop(self) -> None:
        self._is_closing = True
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.stop()
        # Whoever is still waiting, after a cancelled close() say, must learn that nothing comes.
        for shard in self._shards:
            self._fail_all(shard, ProducerClosedError("the producer was closed first"))
        self._room.set()
        if self._opened_stream:
            self._opened_stream = False
            await self.stream.close()

    def _raise_failures(self) -> None:
        unseen = [block for block in self._failures if not block.reported]
        self._failures = []
        if unseen:
            count = sum(block.count for block in unseen)
            first = unseen[0].error
            raise NotAcknowledgedError(
                f"{count} events were not acknowledged; the first because: {first}",
                count=count,
                hint=first.hint if first is not None else None,
            ) from first

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
        shard = self._shards[partition(event.key, len(self._shards))]
        if self._codec == "columns":
            receipts = Receipts()
            await self._send_as_table([event], shard, range(1), receipts)
            block, start, _, _ = receipts._parts[0]
            return Receipt(block, start)
        if self._codec == "plain":
            fields = encode_plain(event, self._layout)
            part, arguments = _resp_arguments(len(fields), *fields), len(fields) + 1
        else:
            part, arguments = rows_part((event,)), 0
        if len(part) > self._event_bytes_max:
            raise self._too_large(event, len(part))
        await self._wait_for_room(len(part), 1)
        block = self._add(shard, part, 1, arguments)
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
            self._require_room(sum(len(e[1]) for e in encoded), len(given))
        for shard, part, count, arguments, positions in encoded:
            await self._wait_for_room(len(part), count)
            block = self._add(shard, part, count, arguments)
            receipts._add(block, block.count - count, count, positions)
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

    def _split(self, events: list[Event]) -> Iterable[tuple[_Shard, list[Event], Sequence[int]]]:
        """The events by shard, cut to blocks, with their positions in the list."""
        step = self._block_events_max
        if len(self._shards) == 1:
            for start in range(0, len(events), step):
                chunk = events[start : start + step]
                yield self._shards[0], chunk, range(start, start + len(chunk))
            return
        number = {event.key: 0 for event in events}
        for key in number:
            number[key] = partition(key, len(self._shards))
        by_shard: list[list[int]] = [[] for _ in self._shards]
        for position, event in enumerate(events):
            by_shard[number[event.key]].append(position)
        for shard, positions in zip(self._shards, by_shard, strict=True):
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
        self, events: list[Event], shard: _Shard, positions: Sequence[int], receipts: Receipts
    ) -> None:
        from standpipe.codec import events_to_table

        for event in events:
            if len(rows_part((event,))) > self._event_bytes_max:
                raise self._too_large(event, len(rows_part((event,))))
        await self._add_table(events_to_table(events), shard, positions, receipts)

    def _split_table(self, table: pa.Table) -> Iterable[tuple[_Shard, pa.Table, Sequence[int]]]:
        step = TABLE_BLOCK_ROWS_MAX
        if len(self._shards) == 1:
            for start in range(0, table.num_rows, step):
                part = table.slice(start, step)
                yield self._shards[0], part, range(start, start + part.num_rows)
            return
        import pyarrow.compute as pc

        # Hash each distinct key once, then pick the rows of each shard.
        keys = pc.dictionary_encode(table.column("key").combine_chunks())
        homes = [partition(key, len(self._shards)) for key in keys.dictionary.to_pylist()]
        by_shard: list[list[int]] = [[] for _ in self._shards]
        for position, index in enumerate(keys.indices.to_pylist()):
            by_shard[0 if index is None else homes[index]].append(position)
        for shard, positions in zip(self._shards, by_shard, strict=True):
            for start in range(0, len(positions), step):
                picked = positions[start : start + step]
                yield shard, table.take(picked), picked

    async def _add_table(
        self, table: pa.Table, shard: _Shard, positions: Sequence[int], receipts: Receipts
    ) -> None:
        payload = encode_columns(table)
        await self._wait_for_room(len(payload), table.num_rows)
        block = self._new_block(MARKS["columns"])
        block.payload = payload
        block.count = table.num_rows
        block.size += len(payload)
        shard.queue.append(block)
        self._take(shard, len(payload) + _BLOCK_OVERHEAD_BYTES, table.num_rows)
        receipts._add(block, 0, table.num_rows, positions)
        await asyncio.sleep(0)

    # --- the buffer ------------------------------------------------------------------------------

    def _has_room(self, size: int, count: int) -> bool:
        # One that is larger than the whole buffer still goes through, alone.
        return self._held_events == 0 or (
            self._held_bytes + size <= self._buffer_bytes_max
            and self._held_events + count <= self._buffer_events_max
        )

    def _require_room(self, size: int, count: int) -> None:
        if not self._has_room(size, count):
            raise BackpressureError(
                f"the buffer holds {self._held_events} events and {self._held_bytes} bytes; "
                f"{count} more with {size} bytes do not fit"
            )

    async def _wait_for_room(self, size: int, count: int) -> None:
        if self._is_closing or not self._lanes:
            raise ProducerClosedError(
                "the producer is not running",
                hint="Use `async with Producer(...)`, and send before leaving it.",
            )
        if self._on_full == "raise":
            self._require_room(size, count)
        while not self._has_room(size, count):
            self._room.clear()
            await self._room.wait()
            if self._is_closing:
                raise ProducerClosedError("the producer was closed while send waited for room")

    def _new_block(self, mark: str) -> _Block:
        return _Block(mark, time.monotonic() + self._deadline_ms / 1000)

    def _add(self, shard: _Shard, part: bytes, count: int, arguments: int) -> _Block:
        """Put encoded events into the shard's last block if they fit, else into a new one."""
        mark = MARKS[self._codec or "rows"]
        block = shard.queue[-1] if shard.queue else None
        size = len(part)
        if (
            block is None
            or block.sequence  # It has been written already.
            or block.mark != mark
            or block.payload is not None
            or block.count + count > self._block_events_max
            or block.size + size > self._block_bytes_max
        ):
            block = self._new_block(mark)
            shard.queue.append(block)
            size += _BLOCK_OVERHEAD_BYTES
        block.parts.append(part)
        block.count += count
        block.size += len(part)
        block.arguments += arguments
        self._take(shard, size, count)
        return block

    def _take(self, shard: _Shard, size: int, count: int) -> None:
        self._held_bytes += size
        self._held_events += count
        self.stats.sent += count
        for lane in self._lanes:
            if shard in lane.shards:
                lane.wake.set()

    # --- settling --------------------------------------------------------------------------------

    def _acknowledge(self, shard: _Shard, runs: list[tuple[int, int, int]]) -> None:
        block = shard.queue.popleft()
        block.runs = runs
        self.stats.acknowledged += block.count
        self.stats.blocks += 1
        self.stats.wire_bytes += block.wire_bytes
        self._release(shard, block)

    def _fail(self, shard: _Shard, error: StandpipeError) -> None:
        block = shard.queue.popleft()
        block.error = error
        self.stats.failed += block.count
        self._failures.append(block)
        self._release(shard, block)

    def _fail_all(self, shard: _Shard, error: StandpipeError) -> None:
        while shard.queue:
            self._fail(shard, error)

    def _release(self, shard: _Shard, block: _Block) -> None:
        shard.floor = block.sequence or shard.floor
        self._held_bytes -= block.size
        self._held_events -= block.count
        block.settle()
        self._room.set()
        self._settled.set()


class _Lane:
    """One connection and the shards whose blocks go over it, one write at a time."""

    def __init__(self, producer: Producer, shards: list[_Shard]) -> None:
        self.producer = producer
        self.shards = shards
        self.wake = asyncio.Event()
        self._server = producer.stream.server
        self._link: Link | None = None
        self._runner: asyncio.Task[None] | None = None
        self._script = script("append")

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name="standpipe-producer")

    async def connect(self) -> Link:
        if self._link is None or not self._link.is_open:
            self._link = await self._server.link(self.shards[0].key)
        return self._link

    async def stop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._link is not None:
            await self._link.close()
            self._link = None

    async def _run(self) -> None:
        attempt = 0
        while True:
            written = self._collect()
            if not written:
                self.wake.clear()
                await self.wake.wait()
                continue
            trouble = await self._write(written)
            if trouble is None:
                attempt = 0
                continue
            attempt += 1
            self.producer.stats.retries += 1
            self._give_up_late(trouble)
            wait_ms = backoff_ms(attempt)
            log.warning("%s; trying again in %d ms (%s)", trouble, wait_ms, trouble.hint)
            await asyncio.sleep(wait_ms / 1000)

    def _collect(self) -> list[tuple[_Shard, _Block]]:
        """The blocks of the next write: of each shard as many as fit, oldest first."""
        room = WRITE_BYTES_MAX
        found: list[tuple[_Shard, _Block]] = []
        for shard in self.shards:
            for block in shard.queue:
                if found and block.size > room:
                    break
                if not block.sequence:
                    shard.sequence += 1
                    block.sequence = shard.sequence
                room -= block.size
                found.append((shard, block))
        return found

    async def _write(self, written: list[tuple[_Shard, _Block]]) -> StandpipeError | None:
        """One exchange. Settles what it can and returns what calls for another try, if anything."""
        try:
            link = await self.connect()
            commands = [self._pack(link, shard, block) for shard, block in written]
            replies = await link.exchange(commands, len(commands))
        except StandpipeError as error:
            if not error.retryable:
                for shard in self.shards:
                    self.producer._fail_all(shard, error)
                return None
            return error
        trouble: StandpipeError | None = None
        blocked: set[str] = set()
        for (shard, _), reply in zip(written, replies, strict=True):
            if shard.key in blocked:
                # An earlier block of this shard has to go first, so the server refused this one.
                continue
            if isinstance(reply, list):
                self._acknowledge(shard, reply)
            elif isinstance(reply, StandpipeError) and not reply.retryable:
                self.producer._fail(shard, reply)
            else:
                blocked.add(shard.key)
                if not isinstance(reply, StandpipeError):
                    reply = ReplyError(f"unexpected reply to an append: {reply!r}", hint="")
                # Behind a block that failed for good the next is out of order once: no trouble.
                if not isinstance(reply, SequenceError):
                    trouble = reply
        if isinstance(trouble, ScriptMissingError):
            link.taught.clear()
        elif isinstance(trouble, _ASK_ANOTHER):
            # The server that refuses may not be the one to ask: find it anew.
            await self._reconnect()
        return trouble

    async def _reconnect(self) -> None:
        if self._link is not None:
            await self._link.close()
            self._link = None
        if self._server.is_cluster:
            await self._server.refresh()

    def _pack(self, link: Link, shard: _Shard, block: _Block) -> bytes:
        whole = self._script.name not in link.taught
        link.taught.add(self._script.name)
        keys = (shard.key, shard.sequence_key)
        fixed = (block.sequence, shard.floor, SEQUENCE_TTL_MS, block.mark, block.count)
        if block.mark:
            if block.payload is None:
                block.payload = rows_payload(
                    block.count, block.parts, compress=self.producer._compress
                )
                block.parts = []
            block.wire_bytes = len(block.payload)
            return self._script.pack(keys, *fixed, block.payload, whole=whole)
        packed = self._script.pack(keys, *fixed, whole=whole)
        end = packed.index(b"\n") + 1
        count = int(packed[1:end]) + block.arguments
        block.wire_bytes = sum(map(len, block.parts))
        return b"".join((b"*%d\r\n" % count, packed[end:], *block.parts))

    def _acknowledge(self, shard: _Shard, reply: list[Any]) -> None:
        status, *rest = reply
        if status == b"old":
            self.producer.stats.recognised += 1
        elif status == b"gap":
            self.producer.stats.forgotten += 1
            log.warning(
                "the server has lost track of what this producer sent to %s before: "
                "it lost data, or nothing was sent for %d h",
                shard.key,
                SEQUENCE_TTL_MS // 3_600_000,
            )
        runs: list[tuple[int, int, int]] = []
        for first, entries in zip(rest[::2], rest[1::2], strict=True):
            ms, _, seq = first.partition(b"-")
            runs.append((int(ms), int(seq), int(entries)))
        self.producer._acknowledge(shard, runs)

    def _give_up_late(self, error: StandpipeError) -> None:
        now = time.monotonic()
        for shard in self.shards:
            while shard.queue and shard.queue[0].deadline <= now:
                self.producer._fail(shard, error)


def _resp_arguments(*arguments: Any) -> bytes:
    """RESP of some arguments without the command's header, to be joined into a longer command."""
    packed = pack(*arguments)
    return packed[packed.index(b"\n") + 1 :]
