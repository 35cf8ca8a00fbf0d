"""A block on its way to the server, and the receipts that wait for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator, Sequence
from typing import Any, Final

from standpipe.codec import rows_payload
from standpipe.errors import StandpipeError
from standpipe.event import EventId
from standpipe.spool import SpooledBlock

BLOCK_OVERHEAD_BYTES: Final = 256
"""What a block costs this process beside its payload."""


class Block:
    """Events of one shard that travel and are acknowledged together."""

    __slots__ = (
        "arguments",
        "connection",
        "count",
        "deadline",
        "error",
        "is_uncertain",
        "mark",
        "parts",
        "payload",
        "producer_id",
        "runs",
        "seen",
        "sequence",
        "size",
        "waiters",
        "wire_bytes",
    )

    def __init__(self, mark: str, deadline: float) -> None:
        self.mark = mark
        self.parts: list[bytes] = []
        self.payload: bytes | None = None
        self.count = 0
        self.size = BLOCK_OVERHEAD_BYTES
        self.wire_bytes = 0
        self.arguments = 0
        """Of a plain run: how many RESP arguments its parts hold."""
        self.sequence = 0
        self.producer_id = ""
        """Of a block from the spool: whose it is; empty: this producer's."""
        self.is_uncertain = False
        """Whether it may be on the server without an acknowledgement: it was written and no reply
        came, or its level was not reached."""
        self.connection = 0
        """The number of the lane's connection over which it was written last; 0: none yet."""
        self.deadline = deadline
        self.waiters: list[asyncio.Future[None]] = []
        self.runs: list[tuple[int, int, int]] | None = None
        """(ms, seq, entries) of each run of consecutive entry IDs."""
        self.error: StandpipeError | None = None
        self.seen: set[int] | None = None
        """Of a block that failed: which of its events have said so to somebody."""

    @property
    def unseen(self) -> int:
        """Of a block that failed: how many events have said so to nobody."""
        return self.count - len(self.seen or ())

    @property
    def is_settled(self) -> bool:
        return self.error is not None or self.runs is not None

    async def wait(self) -> None:
        """Wait until it is settled."""
        if not self.is_settled:
            # Each waiter has its own, as cancelling one must not cancel the others.
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            await waiter

    def see(self, start: int, count: int) -> None:
        """Somebody learns what has become of so many of its events."""
        if self.error is not None:
            if self.seen is None:
                self.seen = set()
            self.seen.update(range(start, start + count))

    def raise_error(self) -> None:
        if self.error is not None:
            # One error may be raised at thousands of receipts; each would add to its traceback.
            raise self.error.with_traceback(None)

    def seal(self, *, compress: bool) -> bytes:
        """Its payload, made of its parts; nothing can be added any more."""
        if self.payload is None:
            if self.mark:
                self.payload = rows_payload(self.count, self.parts, compress=compress)
            else:
                self.payload = b"".join(self.parts)
            self.parts = []
            self.wire_bytes = len(self.payload)
        return self.payload

    def to_spooled(self, shard_key: str, producer_id: str, *, compress: bool) -> SpooledBlock:
        return SpooledBlock(
            shard_key=shard_key,
            producer_id=producer_id,
            sequence=self.sequence,
            mark=self.mark,
            count=self.count,
            payload=self.seal(compress=compress),
            arguments=self.arguments,
        )

    @classmethod
    def from_spooled(cls, spooled: SpooledBlock) -> Block:
        block = cls(spooled.mark, math.inf)
        block.producer_id = spooled.producer_id
        block.sequence = spooled.sequence
        block.count = spooled.count
        block.payload = spooled.payload
        block.arguments = spooled.arguments
        block.wire_bytes = len(spooled.payload)
        block.size += len(spooled.payload)
        # The process that spooled it may have written it before.
        block.is_uncertain = True
        return block

    def settle(self) -> None:
        self.parts = []
        self.payload = None
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters = []

    def ids(self, start: int, count: int) -> list[EventId]:
        """The event IDs of ``count`` events from ``start``; empty when they are not known."""
        runs = self.runs or []
        if self.mark:
            return [EventId(ms, seq, start + i) for ms, seq, _ in runs for i in range(count)]
        found = [EventId(ms, seq + i) for ms, seq, entries in runs for i in range(entries)]
        return found[start : start + count]


class Receipt:
    """The promise of an acknowledgement for one event.

    Await it for the event's ID. It raises what the event failed with, UnknownOutcomeError when it
    may have been added all the same, and SpooledError when it is kept on local disk. None instead
    of an ID means: the server has the event and had acknowledged it before the reply was lost, but
    its ID is not remembered any more.
    """

    __slots__ = ("_block", "_index")

    def __init__(self, block: Block, index: int) -> None:
        self._block = block
        self._index = index

    def __await__(self) -> Generator[Any, None, EventId | None]:
        yield from self._block.wait().__await__()
        self._block.see(self._index, 1)
        self._block.raise_error()
        ids = self._block.ids(self._index, 1)
        return ids[0] if ids else None

    @property
    def is_done(self) -> bool:
        return self._block.is_settled


class Receipts:
    """The promise of an acknowledgement for many events.

    Await it for their IDs, in the order in which the events were given (see :class:`Receipt` for
    None). When all are settled it raises what the first failed block failed with, if one has; the
    other blocks are not affected.
    """

    __slots__ = ("_parts", "count")

    def __init__(self) -> None:
        self._parts: list[tuple[Block, int, int, Sequence[int]]] = []
        self.count = 0

    def add(self, block: Block, start: int, count: int, positions: Sequence[int]) -> None:
        self._parts.append((block, start, count, positions))
        self.count += count

    def first(self) -> Receipt:
        """The receipt of the first event alone."""
        block, start, *_ = self._parts[0]
        return Receipt(block, start)

    def __await__(self) -> Generator[Any, None, list[EventId | None]]:
        for block, start, count, _ in self._parts:
            yield from block.wait().__await__()
            block.see(start, count)
        for block, *_ in self._parts:
            block.raise_error()
        found: list[EventId | None] = [None] * self.count
        for block, start, count, positions in self._parts:
            for position, event_id in zip(positions, block.ids(start, count), strict=False):
                found[position] = event_id
        return found

    async def errors(self) -> list[StandpipeError | None]:
        """What each event failed with, in the order given, when all are settled; None: nothing."""
        found: list[StandpipeError | None] = [None] * self.count
        for block, start, count, positions in self._parts:
            await block.wait()
            block.see(start, count)
            for position in positions:
                found[position] = block.error
        return found

    @property
    def is_done(self) -> bool:
        return all(block.is_settled for block, *_ in self._parts)
