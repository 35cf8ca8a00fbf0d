"""Between a producer and its spool: what waits too long goes out, and comes back in order.

A shard's blocks are written in one order: those of the spool first, then those in memory. So once a
shard has blocks in the spool, what comes later waits behind them or goes there as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

from standpipe.errors import ConfigError, SpoolDamagedError, SpoolError, SpoolFullError
from standpipe.limits import (
    RETRY_MS_MAX,
    SPOOL_HEAD_BLOCKS,
    SPOOL_HEAD_BYTES,
    WRITE_BYTES_MAX,
)
from standpipe.producer.block import Block
from standpipe.producer.buffer import Buffer, Shard
from standpipe.spool import Spool, SpooledBlock
from standpipe.wire import holds_arguments

T = TypeVar("T")
log: Final = logging.getLogger("standpipe.producer")


class Overflow:
    """Moves blocks between a buffer and a spool.

    Args:
        spool: The spool, bound to the buffer's stream.
        buffer: The producer's.
        producer_id: Of the blocks in the buffer.
        after_ms: How long a shard is in trouble before its blocks go to the spool.
        compress: Whether rows are compressed.
    """

    def __init__(
        self, spool: Spool, buffer: Buffer, producer_id: str, *, after_ms: int, compress: bool
    ) -> None:
        self._spool = spool
        self._buffer = buffer
        self._producer_id = producer_id
        self._after_s = after_ms / 1000
        self._compress = compress
        self._is_full = False
        self._refused_until = 0.0
        held = {shard.key: shard for shard in buffer.shards}
        for series in spool.summary().series:
            if series.blocks:
                held[series.shard_key].spooled += series.blocks

    def is_due(self, shard: Shard) -> bool:
        """Whether the shard has been in trouble for so long that its blocks go to the spool."""
        since, now = shard.trouble_since, time.monotonic()
        is_late = bool(shard.queue) and shard.queue[0].deadline <= now
        return is_late or (since is not None and now - since >= self._after_s)

    async def turn(self, shards: Iterable[Shard]) -> None:
        """Before a write: bring back what goes first, and make room where the spool is in use."""
        now = time.monotonic()
        for shard in shards:
            if not shard.spooled:
                continue
            if shard.queue and self._buffer.is_half_full and now >= self._refused_until:
                await self.put([shard])
            if not shard.drain and now >= shard.paused_until:
                await to_its_end(self._bring_back(shard))

    async def put(self, shards: Sequence[Shard]) -> None:
        """Move what waits in memory into the spool, as far as there is room; each part of it is in
        one of the two at any time."""
        await to_its_end(self._put(shards))

    async def _put(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            while shard.queue:
                blocks = self._next_blocks(shard)
                try:
                    await asyncio.to_thread(self._spool.append, blocks)
                except (SpoolError, ConfigError) as error:
                    self._say(error)
                    return
                for _ in blocks:
                    self._buffer.spool(shard)
        if self._is_full:
            self._is_full = False
            log.info("the spool %s takes events again", self._spool.path)

    def put_now(self, shards: Sequence[Shard]) -> None:
        """The same when the event loop ends, and nothing can be waited for any more."""
        for shard in shards:
            # A thread that nobody waits for any more may have put the first of them there.
            last = max(
                (
                    series.last_sequence
                    for series in self._spool.summary().series
                    if (series.shard_key, series.producer_id) == (shard.key, self._producer_id)
                ),
                default=0,
            )
            while shard.queue and 0 < shard.queue[0].sequence <= last:
                self._buffer.spool(shard)
            while shard.queue:
                blocks = self._next_blocks(shard)
                try:
                    self._spool.append(blocks)
                except (SpoolError, ConfigError) as error:
                    self._say(error)
                    return
                for _ in blocks:
                    self._buffer.spool(shard)

    def _next_blocks(self, shard: Shard) -> list[SpooledBlock]:
        """The oldest of the queue, closed: what is sent meanwhile goes into blocks behind them."""
        found: list[SpooledBlock] = []
        room = WRITE_BYTES_MAX
        for block in shard.queue:
            room -= block.size
            if found and room < 0:
                break
            shard.number(block)
            found.append(block.to_spooled(shard.key, self._producer_id, compress=self._compress))
        return found

    def _say(self, error: SpoolError | ConfigError) -> None:
        # Whoever has events wakes the lane: it must not ask a full disk each time.
        self._refused_until = time.monotonic() + RETRY_MS_MAX / 1000
        if not isinstance(error, SpoolFullError):
            log.error("%s; events stay in memory (%s)", error, error.hint)
        elif not self._is_full:
            self._is_full = True
            log.warning("%s; events stay in memory, then sending waits (%s)", error, error.hint)

    async def _bring_back(self, shard: Shard) -> None:
        try:
            head = await asyncio.to_thread(
                self._spool.head,
                shard.key,
                bytes_max=SPOOL_HEAD_BYTES,
                count_max=SPOOL_HEAD_BLOCKS,
            )
        except SpoolDamagedError as error:
            if error.sequence is None or error.producer_id is None:
                self._say(error)
                shard.fail_once(time.monotonic(), error)
                return
            await self._set_aside(shard, error.producer_id, error.sequence, str(error))
            return
        except SpoolError as error:
            self._say(error)
            shard.fail_once(time.monotonic(), error)
            return
        if not head:
            # What was counted is not there: somebody took it out.
            shard.spooled = 0
        for spooled in head:
            if spooled.producer_id != head[0].producer_id:
                # A floor is of one producer id: the next one's blocks have their own write.
                break
            if not spooled.mark and not holds_arguments(spooled.payload, spooled.arguments):
                if not shard.drain:
                    why = f"its payload is not the {spooled.arguments} arguments that were counted"
                    await self._set_aside(shard, spooled.producer_id, spooled.sequence, why)
                break
            shard.drain.append(Block.from_spooled(spooled))

    async def settled(self, shard: Shard, block: Block) -> None:
        """The shard's blocks up to this one, which came from the spool, are on the server."""
        await to_its_end(self._remove(shard, block))

    async def _remove(self, shard: Shard, block: Block) -> None:
        try:
            shard.spooled -= await asyncio.to_thread(
                self._spool.remove, shard.key, block.producer_id, block.sequence
            )
        except SpoolError as error:
            # They are written again, and recognised; not in a hot loop.
            self._say(error)
            shard.drain.clear()
            shard.fail_once(time.monotonic(), error)

    async def refused(self, shard: Shard, error: Exception) -> None:
        """The server will never take the oldest block that was brought back: it is set aside, so
        that it neither holds up those behind it nor is lost."""
        block = shard.drain.popleft()
        await to_its_end(self._set_aside(shard, block.producer_id, block.sequence, str(error)))

    async def _set_aside(self, shard: Shard, producer_id: str, sequence: int, why: str) -> None:
        log.error(
            "block %d of producer %s on %s is set aside in the spool %s: %s "
            "(`standpipe spool show` lists it)",
            sequence,
            producer_id,
            shard.key,
            self._spool.path,
            why,
        )
        try:
            if await asyncio.to_thread(
                self._spool.set_aside, shard.key, producer_id, sequence, reason=why
            ):
                shard.spooled -= 1
            else:
                # The damage reaches to where it is looked up.
                shard.fail_once(
                    time.monotonic(), SpoolDamagedError(f"the spool {self._spool.path}: {why}")
                )
        except SpoolError as error:
            self._say(error)
            shard.drain.clear()
            shard.fail_once(time.monotonic(), error)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Go on with it when this is cancelled: a thread cannot be stopped half-way, and what it has
    done has to be counted."""
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            # Maybe not the last one: a scope of anyio cancels at every await.
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if running.cancelled() else running.exception())
    return running.result()
