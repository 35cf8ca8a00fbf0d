"""The producer's way to the server: one connection, one write at a time, until it is settled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice, zip_longest
from typing import Any, Final, NamedTuple, cast

from standpipe.errors import (
    ClusterDownError,
    PrimaryDownError,
    ProducerClosedError,
    ProducerError,
    ReadOnlyServerError,
    ReplyError,
    ScriptMissingError,
    SequenceError,
    ServerNearlyFullError,
    SlotMovedError,
    StandpipeError,
    StreamFullError,
)
from standpipe.keyspace import side_key
from standpipe.limits import CONFIRM_MS_MAX, REFUSALS_MAX, WRITE_BLOCKS_MAX, WRITE_BYTES_MAX
from standpipe.producer.block import Block
from standpipe.producer.buffer import Buffer, Shard
from standpipe.producer.headroom import Headroom
from standpipe.producer.level import Level
from standpipe.producer.overflow import Overflow
from standpipe.stream import Stream
from standpipe.wire import Link, script

log: Final = logging.getLogger("standpipe.producer")

_ASK_ANOTHER: Final = (ReadOnlyServerError, PrimaryDownError, ClusterDownError, SlotMovedError)
"""Replies that say that another node may be the one to write to."""

_FULL: Final = (StreamFullError, ServerNearlyFullError)
"""What ends when groups catch up."""

Trouble = dict[Shard, StandpipeError]


class Way(NamedTuple):
    """How blocks are written; the same for all lanes of a producer."""

    idempotent: bool
    compress: bool
    sequence_ttl_ms: int
    """How long the server remembers the producer's numbers."""
    headroom_percent: int
    """Share of the server's maxmemory that is left free."""


class Lane:
    """One connection and the shards whose blocks go over it, one write at a time.

    Args:
        buffer: The producer's.
        shards: Those that go over this connection.
        stream: Where to.
        way: How blocks are written.
        on_connected: Called with each new connection, and a shard, before anything is written to
            it; says what level the server gives.
        on_forgotten: Called when the server has lost what it had; a new connection follows.
        overflow: Where blocks go that wait too long; None: they fail at their deadline.
    """

    def __init__(
        self,
        buffer: Buffer,
        shards: list[Shard],
        stream: Stream,
        way: Way,
        *,
        on_connected: Callable[[Link, str], Awaitable[Level]],
        on_forgotten: Callable[[], object],
        overflow: Overflow | None,
    ) -> None:
        self._buffer = buffer
        self._shards = shards
        self._stream = stream
        self._server = stream.server
        self._way = way
        self._on_connected = on_connected
        self._on_forgotten = on_forgotten
        self._is_forgotten = False
        self._overflow = overflow
        self._wake = asyncio.Event()
        for shard in shards:
            shard.wake = self._wake
        self._link: Link | None = None
        self._connections = 0
        self._level = Level()
        self._headroom = Headroom(way.headroom_percent)
        self._runner: asyncio.Task[None] | None = None
        self._script = script("append")

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name="standpipe-producer")

    async def connect(self) -> Link:
        if self._link is None or not await self._link.is_usable():
            await self._disconnect()
            link = await self._server.link(self._shards[0].key)
            try:
                self._level = await self._on_connected(link, self._shards[0].key)
            except BaseException:
                await link.close()
                raise
            self._link = link
            self._connections += 1
        return self._link

    async def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        await self._disconnect()

    async def _run(self) -> None:
        try:
            while True:
                try:
                    if self._overflow is not None:
                        await self._overflow.turn(self._shards)
                    written = self._collect()
                    if written:
                        await self._try(written)
                    else:
                        await self._rest()
                except Exception as error:
                    began = time.monotonic()
                    for shard, fault in self._unforeseen(error).items():
                        shard.fail_once(began, fault)
        finally:
            if self._runner is not None:
                # Not by stop(): the event loop ends under a producer that was never closed.
                if self._overflow is not None:
                    self._overflow.put_now(self._shards)
                ended = ProducerClosedError("the event loop ended before the acknowledgement")
                self._buffer.fail_all(self._shards, ended)

    async def _rest(self) -> None:
        """Wait for something to write, or for the end of the first pause."""
        pauses = [s.paused_until for s in self._shards if s.queue or s.spooled]
        self._wake.clear()
        if not pauses:
            await self._wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(pauses) - time.monotonic()):
                await self._wake.wait()

    # --- one write -------------------------------------------------------------------------------

    def _collect(self) -> list[tuple[Shard, Block]]:
        """The blocks of the next write: one of each shard in turn, oldest first, till full."""
        now = time.monotonic()
        shards = [shard for shard in self._shards if shard.paused_until <= now]
        room = WRITE_BYTES_MAX
        found: list[tuple[Shard, Block]] = []
        heads = (islice(shard.waiting, WRITE_BLOCKS_MAX) for shard in shards)
        for row in zip_longest(*heads):
            for shard, block in zip(shards, row, strict=True):
                if block is None:
                    continue
                if found and block.size > room:
                    return found
                shard.number(block)
                room -= block.size
                found.append((shard, block))
        return found

    async def _try(self, written: list[tuple[Shard, Block]]) -> None:
        began = time.monotonic()
        try:
            trouble = await self._write(written)
        except Exception as error:
            trouble = self._unforeseen(error)
        if not trouble:
            return
        self._buffer.stats.retries += 1
        wait_ms = max(shard.fail_once(began, error) for shard, error in trouble.items())
        shard, error = next(iter(trouble.items()))
        # Ever more rarely: an outage of a day is not worth 40,000 lines. And being full for a
        # moment is how a producer that is faster than its groups waits for them.
        is_news = shard.attempt >= 4 or not isinstance(error, _FULL)
        if shard.attempt & (shard.attempt - 1) == 0 and is_news:
            log.warning("%s; trying again in %d ms (%s)", error, wait_ms, error.hint)
        if self._overflow is None:
            self._give_up_late(trouble)
        else:
            # What finds no room there waits in memory, however long: then sending waits.
            await self._overflow.put([shard for shard in trouble if self._overflow.is_due(shard)])

    def _unforeseen(self, error: Exception) -> Trouble:
        """Whatever it is, senders must not wait for ever for a lane that has ended."""
        log.exception("the producer failed in a way that was not foreseen")
        fault = ProducerError(f"the producer failed: {error!r}", hint="See the log.")
        if self._overflow is not None:
            return {shard: fault for shard in self._shards if shard.queue or shard.spooled}
        self._buffer.fail_all(self._shards, fault)
        return {}

    async def _write(self, written: list[tuple[Shard, Block]]) -> Trouble:
        """One exchange. Settles what it can; returns what calls for another try, by shard."""
        try:
            link = await self.connect()
            written = self._fitting(written, await self._headroom.room(link))
        except StandpipeError as error:
            if error.retryable or self._overflow is not None:
                return {shard: error for shard in self._shards if shard.queue or shard.spooled}
            self._buffer.fail_all(self._shards, error)
            return {}
        appends = [chunk for shard, block in written for chunk in self._pack(link, shard, block)]
        confirms, wait_ms = self._confirms(written)
        deadline_ms = link.reply_ms_max + wait_ms * len(confirms)
        watch = self._headroom.write(sum(block.wire_bytes for _, block in written))
        count = len(written) + len(confirms) + len(watch)
        replies: list[Any] = []
        try:
            await link.exchange(
                [*appends, *confirms, *watch], count, reply_ms_max=deadline_ms, into=replies
            )
        except StandpipeError as error:
            # At a higher level than memory a reply to an append is no acknowledgement yet.
            came = 0 if confirms else len(replies)
            for _, block in written[came:]:
                block.is_uncertain = True
            trouble = await self._settle(written[:came], replies, None)
            return trouble | self._unanswered(written[came:], error)
        except BaseException:
            # Cancelled: nobody looks at the replies that have come.
            for _, block in written:
                block.is_uncertain = True
            raise
        if watch:
            # Near the limit the next write is held, not this one.
            with contextlib.suppress(ServerNearlyFullError):
                self._headroom.saw(replies.pop(), link.where)
        short = self._level.shortfall(replies[len(written) :], link.where) if confirms else None
        trouble = await self._settle(written, replies, short)
        if self._is_forgotten:
            self._is_forgotten = False
            self._on_forgotten()
            await self._disconnect()
        if any(isinstance(error, ScriptMissingError) for error in trouble.values()):
            link.taught.clear()
        if any(isinstance(error, _ASK_ANOTHER) for error in trouble.values()):
            # The server that refuses may not be the one to ask: find it anew.
            await self._disconnect()
            if self._server.is_cluster:
                await self._server.refresh()
        return trouble

    def _fitting(
        self, written: list[tuple[Shard, Block]], room: float
    ) -> list[tuple[Shard, Block]]:
        """The first of them, at least one: as many as go into so many bytes."""
        for count, (_, block) in enumerate(written):
            room -= block.size
            if count and room < 0:
                return written[:count]
        return written

    def _confirms(self, written: list[tuple[Shard, Block]]) -> tuple[list[bytes], int]:
        """What is to be asked behind the appends, and how long each answer may take, ms."""
        if self._level.is_memory:
            return [], 0
        wait_ms = self._confirm_ms(written)
        is_moved = any(b.is_uncertain and b.connection != self._connections for _, b in written)
        for _, block in written:
            block.connection = self._connections
        return self._level.commands(wait_ms, mark=written[0][0].key if is_moved else None), wait_ms

    def _confirm_ms(self, written: Iterable[tuple[Shard, Block]]) -> int:
        """How long to wait for disk and replicas: no longer than until the first gives up."""
        if self._overflow is not None:
            return CONFIRM_MS_MAX
        left_s = min(block.deadline for _, block in written) - time.monotonic()
        return max(1, int(min(CONFIRM_MS_MAX, left_s * 1000)))

    def _unanswered(self, written: list[tuple[Shard, Block]], error: StandpipeError) -> Trouble:
        if self._way.idempotent:
            return dict.fromkeys((shard for shard, _ in written), error)
        # Sent again they might be added twice.
        for shard, block in written:
            self._buffer.fail(shard, block, error)
        return {}

    async def _settle(
        self,
        written: list[tuple[Shard, Block]],
        replies: list[Any],
        short: StandpipeError | None,
    ) -> Trouble:
        trouble: Trouble = {}
        drained: dict[Shard, Block] = {}
        for (shard, block), reply in zip(written, replies, strict=False):
            if shard in trouble and self._way.idempotent:
                # An earlier block of this shard has to go first, so the server refused this one.
                continue
            if isinstance(reply, list):
                if short is None:
                    self._acknowledge(shard, block, cast("list[Any]", reply))
                    if block.producer_id:
                        drained[shard] = block
                    continue
                block.is_uncertain = True
                if self._way.idempotent:
                    trouble[shard] = short
                else:
                    self._buffer.fail(shard, block, short)
            elif block.producer_id:
                # Nobody waits for this one, so it stays until the server takes it. One that is
                # itself at fault, and refused again and again, would hold up all those behind it.
                is_refused = isinstance(reply, ReplyError) and shard.attempt + 1 >= REFUSALS_MAX
                if is_refused and self._overflow is not None:
                    shard.succeed()
                    await self._overflow.refused(shard, reply)
                else:
                    trouble[shard] = reply
            elif reply.retryable or self._keeps(reply):
                trouble[shard] = reply
            else:
                self._buffer.fail(shard, block, reply)
        if self._overflow is not None:
            for shard, block in drained.items():
                await self._overflow.settled(shard, block)
        # Behind a block that failed for good the next is out of order once: no trouble.
        return {s: error for s, error in trouble.items() if not isinstance(error, SequenceError)}

    def _keeps(self, error: StandpipeError) -> bool:
        """Whether a block that the server refused waits for what is wrong to be mended: with a
        spool it does, unless the server's reply is about the block itself."""
        return self._overflow is not None and not isinstance(error, ReplyError)

    def _pack(self, link: Link, shard: Shard, block: Block) -> tuple[bytes, ...]:
        """The command that appends a block, in one or two pieces."""
        whole = self._script.name not in link.taught
        link.taught.add(self._script.name)
        # What came before the first that is written is settled: it will not be sent again.
        floor = shard.waiting[0].sequence - 1
        numbers: tuple[int | str, ...] = ("", 0, 0)
        sequence_key = shard.sequence_key
        if block.producer_id:
            sequence_key = side_key(shard.key, f"seq:{block.producer_id}")
            is_own = sequence_key == shard.sequence_key
            numbers = (block.sequence, floor, shard.acknowledged if is_own else 0)
        elif self._way.idempotent:
            numbers = (block.sequence, floor, shard.acknowledged)
        keys = [shard.key, sequence_key]
        # As they are now: they may be changed at any time.
        limits = self._stream.shard_limits
        if limits.startswith("ring"):
            # Only then: a key that is not there makes a cluster refuse while the slot moves.
            keys += shard.ring_keys
        fixed = (*numbers, self._way.sequence_ttl_ms, limits, block.mark, block.count)
        payload = block.seal(compress=self._way.compress)
        if block.mark:
            return (self._script.pack(keys, *fixed, payload, whole=whole),)
        packed = self._script.pack(keys, *fixed, whole=whole)
        end = packed.index(b"\n") + 1
        count = int(packed[1:end]) + block.arguments
        return b"*%d\r\n%b" % (count, packed[end:]), payload

    def _acknowledge(self, shard: Shard, block: Block, reply: list[Any]) -> None:
        status, *rest = reply
        if status == b"old":
            self._buffer.stats.recognised += 1
        elif status == b"gap":
            self._buffer.stats.forgotten += 1
            self._is_forgotten = True
            log.warning(
                "the server has lost track of what this producer sent to %s before: "
                "it lost data, or nothing was sent for %d h",
                shard.key,
                self._way.sequence_ttl_ms // 3_600_000,
            )
        runs: list[tuple[int, int, int]] = []
        for first, entries in zip(rest[::2], rest[1::2], strict=True):
            ms, _, seq = first.partition(b"-")
            runs.append((int(ms), int(seq), int(entries)))
        if shard.attempt:
            log.info("%s takes events again, after %d tries", shard.key, shard.attempt)
            shard.succeed()
        self._buffer.acknowledge(shard, block, runs)

    def _give_up_late(self, trouble: Trouble) -> None:
        now = time.monotonic()
        for shard, error in trouble.items():
            while shard.queue and shard.queue[0].deadline <= now:
                self._buffer.fail(shard, shard.queue[0], error)
