"""The loop of ``standpipe send``: the input, the way to the producer, and what is said about it."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from standpipe.cli.progress import Bar
from standpipe.cli.running import on_stop_signals
from standpipe.errors import ConfigError, EventError, LineError
from standpipe.formats import read_events
from standpipe.limits import DRAIN_MS_MAX
from standpipe.spool import Spool

if TYPE_CHECKING:
    from standpipe.formats import Chunk, ReadOptions, Rejects
    from standpipe.producer import Producer

_ERRORS_SHOWN_MAX = 20


@dataclass
class Counts:
    """What became of the input."""

    sent: int = 0
    """Events that the producer took."""
    rejected: int = 0
    """Lines that are no events, or none that can be sent."""
    kept: int = 0
    """Of these, the ones in the file of rejects."""
    spooled: int = 0
    """Events that went to the spool for a time."""
    drained: int = 0
    """Events of the spool, also of earlier runs, that the server has by now."""
    in_spool: int | None = None
    """Events that wait in the spool at the end; None without a spool."""
    set_aside: int | None = None
    """Events of blocks that were set aside in this run; None without a spool."""
    unread: bool = False
    """Whether a signal ended it before the end of the file."""
    unsent: int = 0
    """Events that were read, and not taken before the time to stop was over."""
    seconds: float = 0
    events_per_s: int = 0


class Stopped(Exception):
    """Reading was asked to end."""


class _StoppableInput:
    """A pipe whose reads end when they are asked to, not only when more comes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._woken, self._wake = os.pipe()

    def read1(self, size: int) -> bytes:
        """What is there, or comes first; raises Stopped once it has been stopped."""
        if self._woken in select.select([self._descriptor, self._woken], [], [])[0]:
            raise Stopped
        return os.read(self._descriptor, size)

    read = read1

    def stop(self) -> None:
        os.write(self._wake, b"\n")

    def close(self) -> None:
        os.close(self._woken)
        os.close(self._wake)


class Source:
    """The input: its chunks, and how far they are.

    Raises:
        ConfigError: Parquet is to come from standard input.
    """

    def __init__(self, file: str, format: str, options: ReadOptions) -> None:
        self.name = "standard input" if file == "-" else file
        self.size: int | None = None
        self.is_at_end = False
        self._is_stopped = False
        self._input: _StoppableInput | None = None
        if file == "-" or Path(file).is_fifo():
            if format == "parquet":
                raise ConfigError(
                    f"Parquet cannot be read from {self.name}, which cannot seek",
                    hint="Save it to a file and give the file's name.",
                )
            self._pipe = sys.stdin.fileno() if file == "-" else os.open(file, os.O_RDONLY)
            self._input = _StoppableInput(self._pipe)
            self._chunks = read_events(cast("BinaryIO", self._input), format, options)
        else:
            path = Path(file)
            self.size = path.stat().st_size if path.is_file() else None
            self._chunks = read_events(path, format, options)

    @property
    def is_file(self) -> bool:
        return self._input is None

    def next(self) -> Chunk | None:
        """The next chunk; None at the end, or once it has been stopped."""
        if self._is_stopped:
            return None
        try:
            chunk = next(self._chunks, None)
        except Stopped:
            return None
        self.is_at_end = chunk is None
        return chunk

    def stop(self) -> None:
        """Read no more. What has been read goes through: of a chunk in the making, all lines that
        have their end."""
        self._is_stopped = True
        if self._input is not None:
            self._input.stop()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()
        if self._input is not None:
            self._input.close()
            if self._pipe != sys.stdin.fileno():
                os.close(self._pipe)


class NoRejects:
    """Where bad lines go that nobody wants to keep."""

    written = 0

    def add(self, chunk: Chunk) -> None:
        """Nothing: they are counted and reported all the same."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def send_all(
    producer: Producer, source: Source, rejects: Rejects | NoRejects, *, quiet: bool
) -> Counts:
    """Send an input to its end, or until SIGTERM or Ctrl-C, and close the producer.

    Raises:
        NotAcknowledgedError: events failed, or were neither acknowledged nor spooled in time.
    """
    counts, began = Counts(), time.perf_counter()
    good = 0

    def settled() -> int:
        return producer.stats.acknowledged + producer.stats.spooled

    async def pump() -> None:
        nonlocal good
        # Reading may wait for a pipe, so it has a thread; sending goes on meanwhile.
        while (chunk := await asyncio.to_thread(source.next)) is not None:
            good += len(chunk.events)
            good -= await _send_chunk(producer, chunk)
            shown = counts.rejected
            counts.rejected += len(chunk.errors)
            for error in chunk.errors[: max(0, _ERRORS_SHOWN_MAX - shown)]:
                bar.say(f"{source.name}: {error.message} ({error.hint})")
            if counts.rejected > _ERRORS_SHOWN_MAX >= shown:
                bar.say("more lines were rejected and are only counted")
            rejects.add(chunk)
            bar.update(completed=chunk.bytes, events=settled())
        await producer.flush()
        bar.update(completed=source.size or 0, events=settled())

    stop_asked = asyncio.Event()
    on_stop_signals(stop_asked.set)
    text = "{task.fields[events]:,} events"
    with Bar(source.name, text, total=source.size, is_quiet=quiet, events=0) as bar:
        pumping = asyncio.create_task(pump())
        asking = asyncio.create_task(stop_asked.wait())
        await asyncio.wait({pumping, asking}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        if not pumping.done():
            source.stop()
            await asyncio.wait({pumping}, timeout=DRAIN_MS_MAX / 1000)
            pumping.cancel()
            await asyncio.wait({pumping})
    if not pumping.cancelled():
        pumping.result()
    counts.sent = producer.stats.sent
    counts.unsent = good - counts.sent
    counts.unread = source.is_file and not source.is_at_end
    # What has had its time goes to the spool now, or fails.
    await producer.close(deadline_ms=1 if pumping.cancelled() else DRAIN_MS_MAX)
    seconds = time.perf_counter() - began
    counts.kept = rejects.written
    counts.spooled, counts.drained = producer.stats.spooled, producer.stats.drained
    counts.seconds = round(seconds, 3)
    counts.events_per_s = round(counts.sent / seconds) if seconds else 0
    return counts


async def _send_chunk(producer: Producer, chunk: Chunk) -> int:
    """Send a chunk's events; those that only the producer refuses join the chunk's errors, and are
    counted."""
    try:
        await producer.send_many(chunk.events)
        return 0
    except EventError:
        # One of them is too large, and none was taken: find it by sending them one by one.
        refused = 0
        for event, number in zip(chunk.events, chunk.numbers, strict=True):
            try:
                await producer.send(event)
            except EventError as error:
                refused += 1
                text = f"line {number}: {error.message}"
                chunk.errors.append(LineError(text, line=number, hint=error.hint))
        return refused


def events_in(spool: Path) -> tuple[int, int]:
    """The events that wait in a spool, and those that were set aside there."""
    if not spool.expanduser().exists():
        return 0, 0
    with Spool.open_readonly(spool) as reader:
        summary = reader.summary()
    return summary.events, summary.aside_events
