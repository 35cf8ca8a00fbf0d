"""Draining a spool without sending anything new: for one whose producer does not come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from standpipe.errors import SpoolNotDrainedError
from standpipe.limits import SPOOL_WATCH_MS
from standpipe.producer.producer import Producer
from standpipe.spool import SpoolReader, SpoolSummary
from standpipe.stream import Definition, Stream


class Drained(NamedTuple):
    """What a drain has done."""

    events: int
    """Events that the server has by now."""
    set_aside: int
    """Events of blocks that it will never take; they stay in the spool with the reason."""


async def drain(
    spool: Path | str,
    url: str,
    *,
    deadline_ms: int | None = None,
    acknowledge: str = "memory",
    on_progress: Callable[[SpoolSummary], object] | None = None,
) -> Drained:
    """Send what waits in a spool, and return when nothing does.

    The spool knows its stream. A server that has lost the stream's definition is given it again.

    Args:
        spool: The spool's file.
        url: The server.
        deadline_ms: How long to try, ms; None: until it is empty.
        acknowledge: As :class:`Producer` has it: at this level blocks leave the spool.
        on_progress: Called with what the spool holds, every SPOOL_WATCH_MS.

    Raises:
        SpoolInUseError: a producer has it; that one drains it.
        SpoolUnusableError, SpoolDamagedError: it is not there, or cannot be read.
        SpoolNotDrainedError: events still wait at the deadline; the message says why. Retryable.
        ConfigError: the server has another definition of the stream.
        StandpipeError: the server refuses in a way that waiting does not mend.

    Delivery:
        Each block is added once, also when the process dies within this and it is done again.
    """
    deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
    first, known = await asyncio.to_thread(_look, spool)
    if not first.blocks or first.stream is None:
        return Drained(0, 0)
    async with Producer(
        _stream(first.stream, url, known),
        spool=spool,
        spool_bytes_max=first.bytes_max,
        acknowledge=acknowledge,
    ) as producer:
        reader = await asyncio.to_thread(SpoolReader, spool)
        try:
            while (left := await asyncio.to_thread(reader.summary)).blocks:
                if on_progress is not None:
                    on_progress(left)
                trouble = producer.trouble
                if trouble is not None and not trouble.retryable:
                    raise trouble
                if deadline is not None and time.monotonic() >= deadline:
                    raise SpoolNotDrainedError(
                        f"{left.events} events still wait in the spool {reader.path}: "
                        + ("there was not enough time" if trouble is None else str(trouble))
                    )
                await asyncio.sleep(SPOOL_WATCH_MS / 1000)
        finally:
            # Before the producer closes: the last to close removes the log, if it may write.
            await asyncio.to_thread(reader.close)
    set_aside = left.aside_events - first.aside_events
    return Drained(first.events - set_aside, set_aside)


def _look(spool: Path | str) -> tuple[SpoolSummary, str | None]:
    with SpoolReader(spool) as reader:
        return reader.summary(), reader.definition


def _stream(name: str, url: str, known: str | None) -> Stream:
    """The stream as the spool's last producer knew it."""
    if not known:
        return Stream(name, url)
    definition = msgspec.json.decode(known, type=Definition)
    return Stream(
        name,
        url,
        shards=definition.shards,
        codec=definition.codec,
        key_field=definition.key_field,
        time_field=definition.time_field,
        schema=definition.layout.schema,
        max_len=definition.max_len,
        max_bytes=definition.max_bytes,
        when_full=definition.when_full,
    )
