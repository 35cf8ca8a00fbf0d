"""Replay into a function."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from standpipe.event import Batch
from standpipe.reader import Reader
from standpipe.replay.running import Progress, Replayed, Run, until_stopped


async def to_handler(
    reader: Reader,
    handler: Callable[[Any], Any],
    *,
    batches: bool = False,
    on_progress: Progress | None = None,
    stop: asyncio.Event | None = None,
) -> Replayed:
    """Call a function with every event that a reader reads, one after the other.

    Args:
        reader: What is read, and how fast.
        handler: ``handler(event)``, async or not; one that is not runs in a thread.
        batches: Call it with batches instead: events of one shard with their IDs.
        on_progress: Called after each batch.
        stop: Set it to end after the batch in progress.

    Returns:
        What was done. What the handler raises ends the replay, and is raised.

    Delivery: if the process dies nothing remembers how far it was; ``reader.positions`` says so
        while it lives, and ``Reader(after=…)`` goes on from there.
    """
    run = Run(reader, on_progress)
    call = handler if batches else _each(handler)
    is_async = inspect.iscoroutinefunction(call)
    async with aclosing(until_stopped(reader.batches(), stop)) as found:
        async for batch in found:
            if is_async:
                await call(batch)
            else:
                result = await asyncio.to_thread(call, batch)
                if inspect.isawaitable(result):
                    await result
            run.add(len(batch))
    return run.end(is_complete=stop is None or not stop.is_set())


def _each(handler: Callable[[Any], Any]) -> Callable[[Batch], Any]:
    """A handler of events as one of batches."""
    if inspect.iscoroutinefunction(handler):

        async def call_each(batch: Batch) -> None:
            for event in batch:
                await handler(event)

        return call_each

    def call_each_plain(batch: Batch) -> None:
        for event in batch:
            handler(event)

    return call_each_plain
