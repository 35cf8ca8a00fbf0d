"""The producer itself: checks and encodes events, and hands them to the buffer."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import msgspec

from standpipe.codec import (
    MARKS,
    StructRows,
    check_codec,
    check_table,
    encode_columns,
    events_to_table,
    row_part,
    rows_from_dicts,
    rows_part,
)
from standpipe.errors import (
    ConfigError,
    EventTooLargeError,
    NotAcknowledgedError,
    ServerError,
    StandpipeError,
)
from standpipe.event import Event, check_event, check_events, events_from_dicts
from standpipe.forks import forks, require_same_process
from standpipe.keyspace import partition
from standpipe.limits import (
    BLOCK_BYTES_MAX,
    BLOCK_EVENTS_MAX,
    BUFFER_BYTES_MAX,
    BUFFER_EVENTS_MAX,
    DRAIN_MS_MAX,
    EVENT_BYTES_MAX,
    HOMES_REMEMBERED_MAX,
    LIMITS_LOOK_MS,
    MEMORY_HEADROOM_PERCENT,
    PART_EVENTS_MAX,
    SEND_DEADLINE_MS,
    SEQUENCE_TTL_MS,
    SPOOL_AFTER_MS,
    SPOOL_BYTES_MAX,
    SPOOLED_SEQUENCE_TTL_MS,
    TABLE_BLOCK_BYTES_MAX,
    TABLE_BLOCK_ROWS_MAX,
)
from standpipe.producer.arguments import plain_part
from standpipe.producer.block import Block, Receipt, Receipts
from standpipe.producer.buffer import Buffer, ProducerStats, Shard
from standpipe.producer.lane import Lane, Way
from standpipe.producer.level import Level
from standpipe.producer.overflow import Overflow, to_its_end
from standpipe.spool import Spool
from standpipe.stream import Definition, Stream
from standpipe.wire import Link

if TYPE_CHECKING:
    import pyarrow as pa

log: Final = logging.getLogger("standpipe.producer")

_key_of: Final = attrgetter("key")


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
        deadline_ms: How long a block is tried before its receipt fails, ms; with a spool before it
            goes there. Looked at between two tries; one that waits for a reply waits for the
            server's ``reply_ms_max``.
        compress: Whether rows and columns are compressed when that is smaller.
        acknowledge: The level at which receipts resolve: ``memory``, ``fsync``, ``replicas=2``, or
            both: ``fsync,replicas=2``. docs/producer.md says what each can still lose.
        idempotent: Whether the server checks numbers, so that a block sent again is added once.
            Without, a block whose reply is lost fails with UnknownOutcomeError.
        memory_headroom_percent: Share of the server's maxmemory that stays free: nearer to it,
            sending waits, or spools. 0: until the server refuses.
        spool: A file on a local disk, of this producer alone, that takes what the server has not
            taken for SPOOL_AFTER_MS (or ``deadline_ms``, if that is less); None: no spool.
        spool_bytes_max: Bytes that it may take there.
        on_failed: Called with the events of each block that is given up on, and the error, before
            its receipts settle. It must not block; what it raises is logged.
        producer_id: What the server is to remember this producer by, in place of a new id. Only for
            one that sends, each time it is started, the very same blocks in the same order: what
            it sent before is not added again.

    Raises:
        ConfigError: a value that is not allowed; on starting: a level that the server cannot give.
        SpoolError: on starting: the spool cannot be used.
        ServerError: on starting: the server cannot be reached or refuses. With a spool that knows
            the stream an error that is retryable is none: events go there.

    Delivery:
        An acknowledged event is as safe as the level says. If this process dies, events that were
        not acknowledged may or may not have been added; those in the spool are sent, once, by the
        next producer that is given it.

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
        acknowledge: str = "memory",
        idempotent: bool = True,
        memory_headroom_percent: int = MEMORY_HEADROOM_PERCENT,
        spool: Path | str | None = None,
        spool_bytes_max: int = SPOOL_BYTES_MAX,
        on_failed: Callable[[list[Event], StandpipeError], object] | None = None,
        producer_id: str | None = None,
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
            ("spool_bytes_max", spool_bytes_max),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}", hint="It is at least 1.")
        if not 0 <= memory_headroom_percent < 100:
            raise ConfigError(
                f"memory_headroom_percent is {memory_headroom_percent}", hint="It is 0 to 99."
            )
        if spool is not None and not idempotent:
            raise ConfigError(
                "a spool was given to a producer that is not idempotent",
                hint="Leave idempotent on: what is drained may be on the server already.",
            )
        self._made = forks()
        self.stream: Final = stream
        self.id = ""
        """What the server remembers this producer by; a new one from each start."""
        self._codec = None if codec is None else check_codec(codec)
        self._on_full = on_full
        self._block_events_max = block_events_max
        self._event_bytes_max = event_bytes_max
        self._part_bytes_max = min(event_bytes_max, block_bytes_max)
        self._compress = compress
        self._level = Level.parse(acknowledge)
        self._idempotent = idempotent
        self._headroom_percent = memory_headroom_percent
        self._spool_path = spool
        self._spool_bytes_max = spool_bytes_max
        self._spool_after_ms = min(SPOOL_AFTER_MS, deadline_ms)
        known_ms = SEQUENCE_TTL_MS if spool is None else SPOOLED_SEQUENCE_TTL_MS
        # A block that is tried for longer has to be recognised until the end.
        self._sequence_ttl_ms = max(known_ms, 2 * deadline_ms)
        self._on_failed = on_failed
        self._given_id = producer_id
        self._new_buffer: Callable[[Sequence[str]], Buffer] = lambda keys: Buffer(
            keys,
            self.id,
            bytes_max=buffer_bytes_max,
            events_max=buffer_events_max,
            block_bytes_max=block_bytes_max,
            block_events_max=self._block_events_max,
            deadline_ms=deadline_ms,
            on_failed=self._report if on_failed is not None else None,
        )
        self._buffer = self._new_buffer(())
        self._buffer.close()
        self._lanes: list[Lane] = []
        self._watching: asyncio.Task[None] | None = None
        self._spool: Spool | None = None
        self._overflow: Overflow | None = None
        self._turn = asyncio.Lock()
        """Whoever starts or stops it."""
        self._opened_stream = False
        self._is_confirmed = True

    @property
    def stats(self) -> ProducerStats:
        """Counters since the start."""
        return self._buffer.stats

    @property
    def trouble(self) -> StandpipeError | None:
        """What keeps events from the server now, of the first shard that has trouble; else None."""
        return next((each.error for each in self._buffer.shards if each.error is not None), None)

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> Producer:
        """Connect, so that a wrong URL or password shows now and not at the first send."""
        async with self._turn:
            if not self._lanes:
                await self._start()
        return self

    async def _start(self) -> None:
        # Blocks are numbered from 1 again: under its old id the server would take them for old.
        self.id = self._given_id or uuid.uuid4().hex
        try:
            # To its end: a spool that nobody closes would stay this process's.
            await to_its_end(self._open_spool())
            await self._open_stream()
            definition = self.stream.definition
            self._codec = check_codec(self._codec or definition.codec)
            self._mark = MARKS[self._codec]
            self._homes = _Homes(definition.shards)
            self._layout = definition.layout
            buffer = self._new_buffer(self.stream.keys)
            if self._spool is not None:
                self._overflow = await asyncio.to_thread(self._bound, self._spool, buffer)
            self._lanes = self._new_lanes(buffer)
            await self._connect()
        except BaseException:
            await to_its_end(self._stop())
            raise
        for lane in self._lanes:
            lane.start()
        self._buffer = buffer
        self._fit_runs()
        self._watching = asyncio.create_task(self._watch_limits(), name="standpipe-limits")

    def _fit_runs(self) -> None:
        """Make runs of plain events small enough for the stream's limit."""
        events = self._block_events_max
        if self._codec == "plain":
            events = min(events, PART_EVENTS_MAX, self.stream.definition.spare_entries)
        self._buffer.block_events_max = events

    async def _watch_limits(self) -> None:
        """Go by the limits that the stream has, whoever changes them."""
        said = ""
        while True:
            await asyncio.sleep(LIMITS_LOOK_MS / 1000)
            try:
                if await self.stream.refresh():
                    self._fit_runs()
                said = ""
            except StandpipeError as error:
                if not error.retryable and str(error) != said:
                    log.error("%s; the limits stay as they are (%s)", error, error.hint)
                    said = str(error)

    async def _open_spool(self) -> None:
        if self._spool_path is not None:
            # What stands on the server has to be on disk, so what stands here has to be as well.
            self._spool = await asyncio.to_thread(
                Spool, self._spool_path, bytes_max=self._spool_bytes_max, fsync=self._level.fsync
            )

    async def _open_stream(self) -> None:
        self._is_confirmed = True
        if self.stream.is_open:
            return
        try:
            await self.stream.open()
        except ServerError as error:
            spool = self._spool
            known = None if spool is None else await asyncio.to_thread(lambda: spool.definition)
            if not known or not error.retryable:
                raise
            log.warning("%s; events go to the spool %s (%s)", error, self._spool_path, error.hint)
            self.stream.open_as(known)
            self._is_confirmed = False
        self._opened_stream = True

    def _bound(self, spool: Spool, buffer: Buffer) -> Overflow:
        stream = self.stream
        spool.bind(stream.name, stream.keys, msgspec.json.encode(stream.definition).decode())
        after_ms = self._spool_after_ms
        return Overflow(spool, buffer, self.id, after_ms=after_ms, compress=self._compress)

    def _new_lanes(self, buffer: Buffer) -> list[Lane]:
        server = self.stream.server
        way = Way(
            idempotent=self._idempotent,
            compress=self._compress,
            sequence_ttl_ms=self._sequence_ttl_ms,
            headroom_percent=self._headroom_percent,
        )
        # In a cluster the shards' slots move between nodes one by one: each has its own connection.
        groups = [[shard] for shard in buffer.shards] if server.is_cluster else [buffer.shards]
        return [
            Lane(
                buffer,
                group,
                self.stream,
                way,
                on_connected=self._on_connected,
                on_forgotten=self._on_forgotten,
                overflow=self._overflow,
            )
            for group in groups
        ]

    async def _connect(self) -> None:
        for lane in self._lanes:
            try:
                await lane.connect()
            except ServerError as error:
                if self._overflow is None or not error.retryable:
                    raise
                log.warning("%s; events go to the spool (%s)", error, error.hint)
                return

    async def _on_connected(self, link: Link, shard_key: str) -> Level:
        if not self._is_confirmed:
            await self.stream.confirm()
            self._is_confirmed = True
        return await self._level.verified(link, shard_key)

    def _on_forgotten(self) -> None:
        # The definition may be gone as well: a reader would look for one shard.
        self._is_confirmed = self.stream.definition == Definition()

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged, in the spool, or has failed.

        Raises:
            NotAcknowledgedError: events failed whose receipts nobody has awaited.
        """
        require_same_process(self._made, "producer")
        await self._buffer.wait_until_settled()
        self._buffer.raise_failures()

    async def close(self, *, deadline_ms: int = DRAIN_MS_MAX) -> None:
        """Flush, then disconnect. What is not acknowledged by the deadline goes to the spool, or
        fails where there is none.

        Raises:
            NotAcknowledgedError: as :meth:`flush`; the connections are closed all the same.
        """
        require_same_process(self._made, "producer")
        self._buffer.is_closed = True
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._buffer.wait_until_settled()
        except TimeoutError:
            log.error("events were not acknowledged within the %d ms that closing has", deadline_ms)
        finally:
            # To its end: what is left is spooled or reported, however often this is cancelled.
            async with self._turn:
                await to_its_end(self._stop())
        self._buffer.raise_failures()

    async def _stop(self) -> None:
        lanes, self._lanes = self._lanes, []
        overflow, self._overflow = self._overflow, None
        spool, self._spool = self._spool, None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        try:
            for lane in lanes:
                await lane.stop()
            if overflow is not None:
                await overflow.put(self._buffer.shards)
        finally:
            self._buffer.close()
            if spool is not None:
                await asyncio.to_thread(spool.close)
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

    def _report(self, shard: Shard, block: Block, error: StandpipeError) -> None:
        assert self._on_failed is not None
        spooled = block.to_spooled(shard.key, self.id, compress=False)
        try:
            self._on_failed(spooled.events(self._layout), error)
        except Exception:
            log.exception("on_failed raised for %d events that failed: %s", block.count, error)

    # --- sending ---------------------------------------------------------------------------------

    async def send(self, event: Event | Mapping[str, Any] | msgspec.Struct) -> Receipt:
        """Take one event; returns at once unless the buffer is full.

        Args:
            event: An Event; a flat mapping with key and time under the stream's names; or a msgspec
                Struct, with the fields ``key`` and ``time`` for these where it has them.

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
        self._buffer.require_open()
        if not isinstance(event, Event):
            event = self._event_from(event)
        check_event(event)
        shard = self._buffer.shards[partition(event.key, len(self._buffer.shards))]
        if self._codec == "columns":
            receipts = await self._put(self._encode_tables([(shard, [event], range(1))]))
            return receipts.first()
        part, arguments = self._encode_one(event)
        if self._on_full == "raise":
            self._buffer.require_room(len(part), 1)
        elif not self._buffer.has_room(len(part), 1):
            await self._buffer.wait_for_room(len(part), 1)
        block = self._buffer.add(shard, self._mark, part, 1, arguments)
        if block.count >= self._buffer.block_events_max:
            # A loop of sends that never waits would keep the writer from running.
            await asyncio.sleep(0)
        return Receipt(block, block.count - 1)

    async def send_many(
        self, events: Iterable[Event | Mapping[str, Any] | msgspec.Struct]
    ) -> Receipts:
        """Take many events, in their order per key; faster per event than :meth:`send`.

        Returns:
            One receipt for all.

        Raises:
            FieldError, EventTooLargeError: an event cannot be sent; none of these was.
            BackpressureError: they do not fit and ``on_full="raise"``; none was taken. Retryable.
            ProducerClosedError: the producer is not running.

        Delivery: as :meth:`send`; blocks are acknowledged one by one.
        """
        self._buffer.require_open()
        listed = list(events)
        kinds = set(map(type, listed))
        if kinds <= {Event}:
            checked = cast("list[Event]", listed)
            check_events(checked)
        elif kinds == {dict}:
            dicts = cast("list[dict[str, Any]]", listed)
            definition = self.stream.definition
            names = {"key_field": definition.key_field, "time_field": definition.time_field}
            checked = rows_from_dicts(dicts, **names) if self._codec == "rows" else None
            if checked is None:
                checked = events_from_dicts(dicts, **names)
        else:
            rows = StructRows.of(kinds.pop()) if len(kinds) == 1 and self._codec == "rows" else None
            checked = None if rows is None else rows.events(listed)
            if checked is None:
                checked = [e if isinstance(e, Event) else self._event_from(e) for e in listed]
                check_events(checked)
        encode = self._encode_tables if self._codec == "columns" else self._encode_events
        # All are encoded before the first is taken: one that is too large must not come in between.
        return await self._put(list(encode(self._split(checked))))

    async def send_table(self, table: Any) -> Receipts:
        """Take a table of readings: columns ``key``, ``time`` and one per field.

        Args:
            table: A pyarrow Table or RecordBatch, a pandas or polars frame, or anything else that
                gives Arrow data. ``time`` in ms (int) or as timestamps.

        Returns:
            One receipt for all rows, IDs in their order.

        Raises:
            FieldError, EventError: a column is missing, nested, or holds what no event may.
            EventTooLargeError: a row is larger than ``event_bytes_max``; none was sent.
            BackpressureError, ProducerClosedError: as :meth:`send_many`.

        Delivery: as :meth:`send_many`. The blocks are written as columns whatever the codec.
        """
        self._buffer.require_open()
        checked = check_table(table)
        self._check_rows(checked)
        return await self._put(self._encode_table(checked))

    # --- from events to blocks -------------------------------------------------------------------

    def _event_from(self, given: Mapping[str, Any] | msgspec.Struct) -> Event:
        if isinstance(given, msgspec.Struct):
            return Event.from_struct(given)
        definition, mapping = self.stream.definition, given
        return Event.from_mapping(
            mapping, key_field=definition.key_field, time_field=definition.time_field
        )

    def _split(self, events: list[Event]) -> Iterable[tuple[Shard, list[Event], Sequence[int]]]:
        """The events by shard, cut to parts of blocks, with their positions in the list."""
        step = self._buffer.block_events_max
        if self._codec != "columns":
            step = min(step, PART_EVENTS_MAX)
        if len(self._buffer.shards) == 1:
            for start in range(0, len(events), step):
                chunk = events[start : start + step]
                yield self._buffer.shards[0], chunk, range(start, start + len(chunk))
            return
        by_shard: list[list[int]] = [[] for _ in self._buffer.shards]
        put = [positions.append for positions in by_shard]
        for position, home in enumerate(map(self._homes.__getitem__, map(_key_of, events))):
            put[home](position)
        for shard, positions in zip(self._buffer.shards, by_shard, strict=True):
            for start in range(0, len(positions), step):
                part = positions[start : start + step]
                yield shard, [events[position] for position in part], part

    def _encode_events(
        self, chunks: Iterable[tuple[Shard, list[Event], Sequence[int]]]
    ) -> Iterator[_Piece]:
        for shard, chunk, positions in chunks:
            start = 0
            for part, count, arguments in self._encode(chunk):
                stop = start + count
                yield _Piece(shard, self._mark, part, count, arguments, positions[start:stop])
                start = stop

    def _encode(self, events: list[Event]) -> Iterator[tuple[bytes, int, int]]:
        """The events' bytes in parts that fit in a block, how many events each part holds, and for
        plain ones how many RESP arguments."""
        count = len(events)
        packed = None if self._looks_too_large(events) else self._packed(events)
        if count > 1 and (packed is None or len(packed[0]) > self._part_bytes_max):
            # In halves, until each fits, or stands alone and is too large by itself.
            yield from self._encode(events[: count // 2])
            yield from self._encode(events[count // 2 :])
            return
        assert packed is not None
        if count == 1:
            self._check_size(events[0].key, events[0].time, len(packed[0]))
        yield packed[0], count, packed[1]

    def _looks_too_large(self, events: list[Event]) -> bool:
        """Whether events are too large for a part if they are as the first one is: plain ones take
        long, and are not to be packed for nothing."""
        if self._codec != "plain" or len(events) == 1:
            return False
        return len(events) * len(self._packed(events[:1])[0]) > self._part_bytes_max

    def _packed(self, events: list[Event]) -> tuple[bytes, int]:
        """The events' bytes, and of plain ones how many RESP arguments."""
        if self._codec == "plain":
            return plain_part(events, self._layout)
        return rows_part(events), 0

    def _encode_one(self, event: Event) -> tuple[bytes, int]:
        """One event's bytes, and of a plain one how many RESP arguments: :meth:`_encode` of one."""
        if self._codec == "plain":
            part, arguments = plain_part((event,), self._layout)
        else:
            part, arguments = row_part(event), 0
        self._check_size(event.key, event.time, len(part))
        return part, arguments

    def _check_size(self, key: str | None, time: int, size: int) -> None:
        if size > self._event_bytes_max:
            raise EventTooLargeError(
                f"event of {key!r} at {time} has {size} bytes, more than "
                f"event_bytes_max ({self._event_bytes_max})"
            )

    def _encode_tables(
        self, chunks: Iterable[tuple[Shard, list[Event], Sequence[int]]]
    ) -> Iterator[_Piece]:
        for shard, chunk, positions in chunks:
            table = events_to_table(chunk)
            self._check_rows(table)
            yield from self._encode_part(shard, table, positions)

    def _encode_table(self, table: pa.Table) -> Iterator[_Piece]:
        shards = self._buffer.shards
        if len(shards) == 1:
            yield from self._encode_part(shards[0], table, range(table.num_rows))
            return
        import pyarrow as pa
        import pyarrow.compute as pc

        # Hash each distinct key once, then bring the rows of each shard together, in their order.
        keys = pc.dictionary_encode(table.column("key").combine_chunks())
        homes = [partition(key, len(shards)) for key in keys.dictionary.to_pylist()]
        # There are at most 256 shards, and single bytes are sorted and counted in half the time.
        home = pc.fill_null(pc.take(pa.array(homes, pa.uint8()), keys.indices), 0)
        order = pc.sort_indices(home)
        together, start = table.take(order), 0
        counts = {each["values"]: each["counts"] for each in pc.value_counts(home).to_pylist()}
        # As they stand in memory, 64 bits each: a list of them would take a third of all this.
        positions = memoryview(order.buffers()[1]).cast("Q")
        for number, shard in enumerate(shards):
            stop = start + counts.get(number, 0)
            if stop > start:
                part = together.slice(start, stop - start)
                yield from self._encode_part(shard, part, positions[start:stop])
            start = stop

    def _encode_part(
        self, shard: Shard, table: pa.Table, positions: Sequence[int]
    ) -> Iterator[_Piece]:
        """One shard's rows as columns blocks of bounded size."""
        step = TABLE_BLOCK_ROWS_MAX
        for start in range(0, table.num_rows, step):
            stop = min(start + step, table.num_rows)
            part = table.slice(start, stop - start)
            if len(part) > 1 and part.nbytes > TABLE_BLOCK_BYTES_MAX:
                middle = (start + stop) // 2
                for low, high in ((start, middle), (middle, stop)):
                    half = table.slice(low, high - low)
                    yield from self._encode_part(shard, half, positions[low:high])
            else:
                payload = encode_columns(part, compress=self._compress)
                yield _Piece(
                    shard, MARKS["columns"], payload, len(part), None, positions[start:stop]
                )

    def _check_rows(self, table: pa.Table) -> None:
        """Refuse a table that has a row above event_bytes_max, by the bytes of its values."""
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
        fixed = 0
        lengths: list[Any] = []
        for column in table.columns:
            if column.type in texts:
                lengths.append(pc.binary_length(column))
            elif not pa.types.is_null(column.type):
                fixed += (column.type.bit_width + 7) // 8
        # The longest of each column together are mostly small enough.
        if fixed + sum(pc.max(each).as_py() or 0 for each in lengths) <= self._event_bytes_max:
            return
        sizes = pa.scalar(0, pa.int64())
        for each in lengths:
            sizes = pc.add(sizes, pc.fill_null(each, 0))
        sizes = pc.add(sizes, fixed)
        largest = pc.max(sizes).as_py()
        if largest is not None and largest > self._event_bytes_max:
            row = pc.index(sizes, largest).as_py()
            key, time = (table.column(name)[row].as_py() for name in ("key", "time"))
            self._check_size(key, time, largest)

    # --- to the buffer ---------------------------------------------------------------------------

    async def _put(self, pieces: Iterable[_Piece]) -> Receipts:
        receipts = Receipts()
        waits = self._on_full == "wait"
        if not waits:
            # All or none: nothing else may come in between, so there is no wait from here on.
            pieces = list(pieces)
            self._buffer.require_room(
                sum(len(p.part) for p in pieces), sum(p.count for p in pieces)
            )
        for piece in pieces:
            if waits:
                await self._buffer.wait_for_room(len(piece.part), piece.count)
            block = self._buffer.add(
                piece.shard, piece.mark, piece.part, piece.count, piece.arguments
            )
            receipts.add(block, block.count - piece.count, piece.count, piece.positions)
            if waits and (piece.arguments is None or block.count >= self._buffer.block_events_max):
                # Not earlier: the writer would take the block while more of the list is to come.
                await asyncio.sleep(0)
        return receipts


class _Homes(dict[str | None, int]):
    """The shard of each key that was met: devices repeat themselves."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def __missing__(self, key: str | None) -> int:
        if len(self) >= HOMES_REMEMBERED_MAX:
            self.clear()
        home = self[key] = partition(key, self._shards)
        return home


class _Piece(NamedTuple):
    """Encoded events of one shard that go into one block together."""

    shard: Shard
    mark: str
    part: bytes
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    arguments: int | None
    """Of plain events: how many RESP arguments. None: the part is a whole block's payload."""
    positions: Sequence[int]
    """Where the events stood in what was given."""
