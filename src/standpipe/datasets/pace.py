"""Replay: events handed out as fast as they were read, faster, at a rate, or as fast as they go."""

from __future__ import annotations

import asyncio
import math
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING

from standpipe.datasets.series import Dataset
from standpipe.errors import ConfigError
from standpipe.event import Event
from standpipe.limits import REPLAY_EVENTS_MAX, REPLAY_TICK_MS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence


def replay(
    source: Dataset | Iterable[Event] | Iterable[Sequence[Event]],
    *,
    rate: float | None = None,
    speed: float | None = None,
) -> AsyncIterator[list[Event]]:
    """Hand out events when they are due, each time all that are.

    The pace follows the monotonic clock from the first list on. What a slow reader of the lists, or
    a busy event loop, holds up is handed out as soon as it can be, so the pace does not drift.

    Args:
        source: A dataset, or events in order, one by one or in lists.
        rate: Events per second, above 0.
        speed: Seconds of the events' own time per second, above 0: 1 is as it happened, 900 makes a
            quarter of an hour a second. Events without a time before theirs are due at once.

    Returns:
        Lists of events in the source's order, none empty. With neither rate nor speed they follow
        each other without a pause.

    Raises:
        ConfigError: both rate and speed are given, or one is not a finite number above 0.

    Cost: one timer per list, not per event.
    """
    for name, value in (("rate", rate), ("speed", speed)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}", hint="Give a number above 0.")
    if rate is not None and speed is not None:
        raise ConfigError(
            "both rate and speed are given",
            hint="Give the rate in events per second, or the speed in times real time.",
        )
    steps = source.steps() if isinstance(source, Dataset) else _steps(source)
    return _at_rate(steps, rate) if speed is None else _at_speed(steps, speed)


def _steps(source: Iterable[Event] | Iterable[Sequence[Event]]) -> Iterator[Sequence[Event]]:
    for item in source:
        yield (item,) if isinstance(item, Event) else item


async def _at_rate(
    steps: Iterator[Sequence[Event]], rate: float | None
) -> AsyncIterator[list[Event]]:
    events = chain.from_iterable(steps)
    start = monotonic()
    sent = 0
    while True:
        due = REPLAY_EVENTS_MAX + 1
        if rate is not None:
            # Event number n is due n / rate seconds after the start. A timer that fires a little
            # early leaves none due; one is sent then, and counted, so that nothing adds up.
            due = max(1, int((monotonic() - start) * rate) + 1 - sent)
        burst = list(islice(events, min(due, REPLAY_EVENTS_MAX)))
        if not burst:
            return
        sent += len(burst)
        yield burst
        wait = 0.0
        if rate is not None and due <= REPLAY_EVENTS_MAX:
            wait = max(start + sent / rate - monotonic(), REPLAY_TICK_MS / 1000)
        # Even without a wait the event loop gets its turn.
        await asyncio.sleep(wait)


async def _at_speed(steps: Iterator[Sequence[Event]], speed: float) -> AsyncIterator[list[Event]]:
    start = monotonic()
    first: int | None = None
    burst: list[Event] = []
    for step in steps:
        if not step:
            continue
        if first is None:
            first = step[0].time
        due = start + (step[0].time - first) / 1000 / speed
        if burst and (due > monotonic() or len(burst) + len(step) > REPLAY_EVENTS_MAX):
            yield burst
            burst = []
            await asyncio.sleep(max(due - monotonic(), 0.0))
        burst.extend(step)
    if burst:
        yield burst
