"""What every replay does: count, report progress, stop when told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from standpipe.reader import Gap, Reader

T = TypeVar("T")


class Replayed(msgspec.Struct):
    """What a replay has done."""

    events: int = 0
    first_ms: int | None = None
    """When the first entry that was replayed was added; None: there was none."""
    last_ms: int | None = None
    """When the last one was."""
    undecodable: int = 0
    """Entries that no codec reads, left out."""
    refused: int = 0
    """Events that the target stream cannot take, left out."""
    gaps: int = 0
    """Places where entries were gone before the reader came to them."""
    known_gaps: list[Gap] = msgspec.field(default_factory=list[Gap])
    """The first of them."""
    seconds: float = 0.0
    was_complete_at: int | None = None
    """Into a stream: when it had come to its end before, ms, so that nothing was done."""
    is_complete: bool = False
    """Whether it came to its end; False: it was stopped."""

    @property
    def events_per_s(self) -> int:
        return round(self.events / self.seconds) if self.seconds else 0


Progress = Callable[[Replayed], object]
"""Called with what has been done so far, often."""


class Run:
    """One replay."""

    def __init__(self, reader: Reader, on_progress: Progress | None) -> None:
        self.done = Replayed()
        self.reader = reader
        self._on_progress = on_progress
        self._began = time.monotonic()

    def add(self, events: int, reader: Reader | None = None) -> None:
        """Count events that have arrived where they should."""
        done, reader = self.done, reader or self.reader
        done.events += events
        if done.first_ms is None and reader.reached is not None:
            done.first_ms = reader.span[0] if reader.span else reader.reached
        done.last_ms = reader.reached
        self._update()
        if self._on_progress is not None:
            self._on_progress(done)

    def end(self, *, is_complete: bool) -> Replayed:
        self.done.is_complete = is_complete
        self._update()
        return self.done

    def _update(self) -> None:
        done, reader = self.done, self.reader
        done.undecodable = reader.undecodable
        done.gaps = reader.gaps_total
        done.known_gaps = list(reader.gaps)
        done.seconds = time.monotonic() - self._began


async def until_stopped(
    found: AsyncGenerator[T, None], stop: asyncio.Event | None
) -> AsyncGenerator[T, None]:
    """What a generator gives until it ends or the event is set; closes it."""
    async with aclosing(found):
        if stop is None:
            async for each in found:
                yield each
            return
        stopping = asyncio.ensure_future(stop.wait())
        step: asyncio.Future[T | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(found, None))
                await asyncio.wait({step, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    return
                each = step.result()
                if each is None:
                    return
                yield each
        finally:
            stopping.cancel()
            if step is not None and not step.done():
                # The generator cannot be closed while it is at work.
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
