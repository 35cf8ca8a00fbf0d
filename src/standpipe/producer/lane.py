"""The producer's way to the server: one connection, one write at a time, until it is settled."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import zip_longest
from typing import Any, Final, cast

from standpipe.codec import rows_payload
from standpipe.errors import (
    ClusterDownError,
    PrimaryDownError,
    ProducerError,
    ReadOnlyServerError,
    ScriptMissingError,
    SequenceError,
    SlotMovedError,
    StandpipeError,
)
from standpipe.limits import SEQUENCE_TTL_MS, WRITE_BYTES_MAX
from standpipe.policy import backoff_ms
from standpipe.producer.block import Block
from standpipe.producer.buffer import Buffer, Shard
from standpipe.wire import Link, Server, script

log: Final = logging.getLogger("standpipe.producer")

_ASK_ANOTHER: Final = (ReadOnlyServerError, PrimaryDownError, ClusterDownError, SlotMovedError)
"""Replies that say that another node may be the one to write to."""


class Lane:
    """One connection and the shards whose blocks go over it, one write at a time."""

    def __init__(
        self, buffer: Buffer, shards: list[Shard], server: Server, *, compress: bool
    ) -> None:
        self._buffer = buffer
        self._shards = shards
        self._server = server
        self._compress = compress
        self._wake = asyncio.Event()
        for shard in shards:
            shard.wake = self._wake
        self._link: Link | None = None
        self._runner: asyncio.Task[None] | None = None
        self._script = script("append")

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name="standpipe-producer")

    async def connect(self) -> Link:
        if self._link is None or not await self._link.is_usable():
            if self._link is not None:
                await self._link.close()
            self._link = await self._server.link(self._shards[0].key)
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
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                trouble = await self._write(written)
            except Exception as error:
                # Whatever it is, senders must not wait for ever for a lane that has ended.
                log.exception("the producer failed in a way that was not foreseen")
                fault = ProducerError(f"the producer failed: {error!r}", hint="See the log.")
                self._buffer.fail_all(self._shards, fault)
                trouble = None
            if trouble is None:
                attempt = 0
                continue
            attempt += 1
            self._buffer.stats.retries += 1
            self._give_up_late(trouble)
            wait_ms = backoff_ms(attempt)
            log.warning("%s; trying again in %d ms (%s)", trouble, wait_ms, trouble.hint)
            await asyncio.sleep(wait_ms / 1000)

    def _collect(self) -> list[tuple[Shard, Block]]:
        """The blocks of the next write: one of each shard in turn, oldest first, till full."""
        room = WRITE_BYTES_MAX
        found: list[tuple[Shard, Block]] = []
        for row in zip_longest(*(shard.queue for shard in self._shards)):
            for shard, block in zip(self._shards, row, strict=True):
                if block is None:
                    continue
                if found and block.size > room:
                    return found
                if not block.sequence:
                    shard.sequence += 1
                    block.sequence = shard.sequence
                room -= block.size
                found.append((shard, block))
        return found

    async def _write(self, written: list[tuple[Shard, Block]]) -> StandpipeError | None:
        """One exchange. Settles what it can and returns what calls for another try, if anything."""
        try:
            link = await self.connect()
            commands = [self._pack(link, shard, block) for shard, block in written]
            replies = await link.exchange(commands, len(commands))
        except StandpipeError as error:
            if not error.retryable:
                self._buffer.fail_all(self._shards, error)
                return None
            return error
        trouble: StandpipeError | None = None
        blocked: set[str] = set()
        for (shard, _), reply in zip(written, replies, strict=True):
            if shard.key in blocked:
                # An earlier block of this shard has to go first, so the server refused this one.
                continue
            if isinstance(reply, list):
                self._acknowledge(shard, cast("list[Any]", reply))
            elif not reply.retryable:
                self._buffer.fail(shard, reply)
            else:
                blocked.add(shard.key)
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

    def _pack(self, link: Link, shard: Shard, block: Block) -> bytes:
        whole = self._script.name not in link.taught
        link.taught.add(self._script.name)
        keys = (shard.key, shard.sequence_key)
        numbers = (block.sequence, shard.floor, shard.acknowledged)
        fixed = (*numbers, SEQUENCE_TTL_MS, block.mark, block.count)
        if block.mark:
            if block.payload is None:
                block.payload = rows_payload(block.count, block.parts, compress=self._compress)
                block.parts = []
            block.wire_bytes = len(block.payload)
            return self._script.pack(keys, *fixed, block.payload, whole=whole)
        packed = self._script.pack(keys, *fixed, whole=whole)
        end = packed.index(b"\n") + 1
        count = int(packed[1:end]) + block.arguments
        block.wire_bytes = sum(map(len, block.parts))
        return b"".join((b"*%d\r\n" % count, packed[end:], *block.parts))

    def _acknowledge(self, shard: Shard, reply: list[Any]) -> None:
        status, *rest = reply
        if status == b"old":
            self._buffer.stats.recognised += 1
        elif status == b"gap":
            self._buffer.stats.forgotten += 1
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
        self._buffer.acknowledge(shard, runs)

    def _give_up_late(self, error: StandpipeError) -> None:
        now = time.monotonic()
        for shard in self._shards:
            while shard.queue and shard.queue[0].deadline <= now:
                self._buffer.fail(shard, error)
