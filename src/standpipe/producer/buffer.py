"""What a producer holds between send and acknowledgement: blocks by shard, counted and bounded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from standpipe.errors import (
    BackpressureError,
    NotAcknowledgedError,
    NotDurableError,
    ProducerClosedError,
    SpooledError,
    StandpipeError,
    UnknownOutcomeError,
)
from standpipe.forks import forks, require_same_process
from standpipe.keyspace import archived_key, side_key
from standpipe.limits import FAILED_BLOCKS_MAX
from standpipe.policy import backoff_ms
from standpipe.producer.block import BLOCK_OVERHEAD_BYTES, Block


class ProducerStats:
    """Counters of one producer, since it was started."""

    __slots__ = (
        "acknowledged",
        "blocks",
        "drained",
        "failed",
        "forgotten",
        "recognised",
        "retries",
        "sent",
        "spooled",
        "wire_bytes",
    )

    def __init__(self) -> None:
        self.sent = 0
        """Events taken by send, send_many and send_table."""
        self.acknowledged = 0
        """Events whose entries the server has."""
        self.failed = 0
        """Events given up on; their receipts say why."""
        self.spooled = 0
        """Events that went to the spool instead of being acknowledged."""
        self.drained = 0
        """Events of the spool, also of earlier processes, whose entries the server has by now."""
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


class Shard:
    """What the producer holds for one shard, and how writing to it goes."""

    __slots__ = (
        "acknowledged",
        "attempt",
        "drain",
        "error",
        "key",
        "paused_until",
        "queue",
        "ring_keys",
        "sequence",
        "sequence_key",
        "spooled",
        "trouble_since",
        "wake",
    )

    def __init__(self, key: str, producer_id: str) -> None:
        self.key = key
        self.sequence_key = side_key(key, f"seq:{producer_id}")
        self.ring_keys = (side_key(key, "trimmed"), side_key(key, "lost"), archived_key(key))
        """What the append script needs besides where the stream is a ring."""
        self.queue: deque[Block] = deque()
        self.drain: deque[Block] = deque()
        """The oldest blocks of the spool, brought back to be written; all of one producer id."""
        self.spooled = 0
        """Blocks in the spool, these included; they go before those of the queue."""
        self.sequence = 0
        """The last number given out."""
        self.acknowledged = 0
        """The number of this producer's last block that was acknowledged."""
        self.attempt = 0
        """Tries that failed since the last that did not."""
        self.paused_until = 0.0
        """When the next try may be, on the monotonic clock."""
        self.trouble_since: float | None = None
        self.error: StandpipeError | None = None
        """Why the last try failed."""
        self.wake = asyncio.Event()
        """Set when there is something to write; the shards of one lane share it."""

    @property
    def waiting(self) -> deque[Block]:
        """What is to be written next."""
        return self.drain if self.spooled else self.queue

    def number(self, block: Block) -> None:
        """Give the block its number, if it has none yet; nothing is added to it after that."""
        if not block.sequence:
            self.sequence += 1
            block.sequence = self.sequence

    def fail_once(self, began: float, error: StandpipeError) -> int:
        """A try that began then failed: the next one comes after a pause, whose ms are returned."""
        self.attempt += 1
        self.error = error
        wait_ms = backoff_ms(self.attempt)
        self.paused_until = time.monotonic() + wait_ms / 1000
        if self.trouble_since is None:
            self.trouble_since = began
        return wait_ms

    def succeed(self) -> None:
        self.attempt = 0
        self.paused_until = 0.0
        self.trouble_since = None
        self.error = None


class Buffer:
    """The blocks of all shards, and the room for more.

    Args:
        keys: The shards' keys, in order.
        producer_id: What the server remembers this producer by.
        bytes_max, events_max: Held at most.
        block_bytes_max, block_events_max: In one block at most.
        deadline_ms: How long a block is tried.
        on_failed: Called with each block that is given up on, before its receipts settle.
    """

    def __init__(
        self,
        keys: Sequence[str],
        producer_id: str,
        *,
        bytes_max: int,
        events_max: int,
        block_bytes_max: int,
        block_events_max: int,
        deadline_ms: int,
        on_failed: Callable[[Shard, Block, StandpipeError], None] | None = None,
    ) -> None:
        self.shards: Final = [Shard(key, producer_id) for key in keys]
        self.stats: Final = ProducerStats()
        self.is_closed = False
        self._bytes_max = bytes_max
        self._events_max = events_max
        self._block_bytes_max = block_bytes_max
        self.block_events_max = block_events_max
        self._deadline_ms = deadline_ms
        self._on_failed = on_failed
        self._producer_id = producer_id
        self._forks = forks()
        self._held_bytes = 0
        self._held_events = 0
        self._room = asyncio.Event()
        self._settled = asyncio.Event()
        self._failures: list[Block] = []
        self._failures_swept_at = 1_000
        self._forgotten_failures = 0
        """Events of failed blocks that are not among these any more."""

    # --- taking in -------------------------------------------------------------------------------

    def has_room(self, size: int, count: int) -> bool:
        """Whether so many bytes and events fit now."""
        # One that is larger than the whole buffer still goes through, alone.
        return self._held_events == 0 or (
            self._held_bytes + size <= self._bytes_max
            and self._held_events + count <= self._events_max
        )

    @property
    def is_half_full(self) -> bool:
        return self._held_bytes > self._bytes_max // 2 or self._held_events > self._events_max // 2

    def require_room(self, size: int, count: int) -> None:
        """Raise unless so many bytes and events fit now.

        Raises:
            BackpressureError: they do not. Retryable.
        """
        if not self.has_room(size, count):
            raise BackpressureError(
                f"the buffer holds {self._held_events} events and {self._held_bytes} bytes; "
                f"{count} more with {size} bytes do not fit"
            )

    def require_open(self) -> None:
        """Raise unless the producer runs.

        Raises:
            ProducerClosedError: it does not.
            ForkedError: it runs in the process that this one was forked from.
        """
        require_same_process(self._forks, "producer")
        if self.is_closed:
            raise ProducerClosedError(
                "the producer is not running",
                hint="Use `async with Producer(...)`, and send before leaving it.",
            )

    async def wait_for_room(self, size: int, count: int) -> None:
        """Wait until so many bytes and events fit.

        Raises:
            ProducerClosedError: the producer is not running, or was closed meanwhile.
        """
        self.require_open()
        while not self.has_room(size, count):
            self._room.clear()
            await self._room.wait()
            self.require_open()

    def add(self, shard: Shard, mark: str, part: bytes, count: int, arguments: int | None) -> Block:
        """Put encoded events into the shard's last block if they fit, else into a new one.

        Args:
            part: The events, or with ``arguments=None`` the payload of a whole block.
            count: How many events.
            arguments: Of plain events: how many RESP arguments; else 0.
        """
        block = shard.queue[-1] if shard.queue else None
        if arguments is None:
            block = self._new_block(shard, mark)
            block.payload = part
            self._take(shard, block, len(part), count)
            return block
        if (
            block is None
            or block.sequence  # It has been written already.
            or block.mark != mark
            or block.payload is not None
            or block.count + count > self.block_events_max
            or block.size + len(part) > self._block_bytes_max
        ):
            block = self._new_block(shard, mark)
        block.parts.append(part)
        block.arguments += arguments
        self._take(shard, block, len(part), count)
        return block

    def _new_block(self, shard: Shard, mark: str) -> Block:
        block = Block(mark, time.monotonic() + self._deadline_ms / 1000)
        shard.queue.append(block)
        self._held_bytes += BLOCK_OVERHEAD_BYTES
        return block

    def _take(self, shard: Shard, block: Block, size: int, count: int) -> None:
        block.size += size
        block.count += count
        self._held_bytes += size
        self._held_events += count
        self.stats.sent += count
        shard.wake.set()

    # --- settling --------------------------------------------------------------------------------

    def acknowledge(self, shard: Shard, block: Block, runs: list[tuple[int, int, int]]) -> None:
        """A block that waited is on the server, its entries in these runs of IDs."""
        shard.waiting.remove(block)
        self.stats.blocks += 1
        self.stats.wire_bytes += block.wire_bytes
        if block.producer_id:
            self.stats.drained += block.count
            if block.producer_id == self._producer_id:
                shard.acknowledged = block.sequence
            return
        block.runs = runs
        shard.acknowledged = block.sequence
        self.stats.acknowledged += block.count
        self._release(block)

    def fail(self, shard: Shard, block: Block, error: StandpipeError) -> None:
        """A block of the shard's queue is given up."""
        shard.queue.remove(block)
        if block.is_uncertain and not isinstance(error, NotDurableError):
            unknown = UnknownOutcomeError(
                f"{block.count} events may have been added or not: {error}"
            )
            unknown.__cause__ = error
            error = unknown
        block.error = error
        self.stats.failed += block.count
        self._failures.append(block)
        if len(self._failures) > self._failures_swept_at:
            # Those whose receipts have been awaited meanwhile need not be kept for flush().
            unseen = [block for block in self._failures if block.unseen]
            # The first one says why.
            forgotten = unseen[1 : max(1, len(unseen) - FAILED_BLOCKS_MAX)]
            self._forgotten_failures += sum(block.count for block in forgotten)
            self._failures = unseen[:1] + unseen[1 + len(forgotten) :]
            self._failures_swept_at = 2 * len(self._failures) + 1_000
        if self._on_failed is not None:
            self._on_failed(shard, block, error)
        self._release(block)

    def fail_all(self, shards: Sequence[Shard], error: StandpipeError) -> None:
        """So is everything in their queues."""
        for shard in shards:
            while shard.queue:
                self.fail(shard, shard.queue[0], error)

    def spool(self, shard: Shard) -> None:
        """The oldest block of the shard's queue is in the spool now."""
        block = shard.queue.popleft()
        shard.spooled += 1
        block.error = SpooledError(
            f"{block.count} events of {shard.key} are not acknowledged, but kept in the spool"
        )
        self.stats.spooled += block.count
        self._release(block)

    def _release(self, block: Block) -> None:
        self._held_bytes -= block.size
        self._held_events -= block.count
        block.settle()
        self._room.set()
        self._settled.set()

    async def wait_until_settled(self) -> None:
        """Wait until everything taken in by now is acknowledged, spooled, or has failed. What comes
        later is not waited for: others may send without end."""
        for block in [block for shard in self.shards for block in shard.queue]:
            while not block.is_settled:
                self._settled.clear()
                await self._settled.wait()

    def raise_failures(self) -> None:
        """Raise for the failures that nobody has seen; they count as seen then.

        Raises:
            NotAcknowledgedError: there are some.
        """
        first = self._failures[0].error if self._failures else None
        unseen = [block for block in self._failures if block.unseen]
        count = self._forgotten_failures + sum(block.unseen for block in unseen)
        self._failures, self._forgotten_failures = [], 0
        if count:
            first = unseen[0].error if unseen else first
            raise NotAcknowledgedError(
                f"{count} events were not acknowledged; the first because: {first}",
                count=count,
                hint=first.hint if first is not None else None,
            ) from first

    def close(self) -> None:
        """Take in nothing more, and fail what is left: whoever waits learns that it ends here."""
        self.is_closed = True
        self.fail_all(self.shards, ProducerClosedError("the producer was closed first"))
        self._room.set()
