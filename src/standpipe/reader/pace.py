"""Giving events out in the time in which they came, or a multiple of it."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

from standpipe.errors import ConfigError
from standpipe.limits import REPLAY_TICK_MS

Speed = float | Literal["max"]
PaceBy = Literal["entry", "event"]


class Pace:
    """When events are due.

    The time follows the monotonic clock from the first event on. What a slow consumer holds up
    comes at once afterwards, so that the whole takes no longer.

    Args:
        speed: How many times as fast as it was; ``max``: as fast as it goes.

    Raises:
        ConfigError: it is no number above 0.
    """

    def __init__(self, speed: Speed) -> None:
        if speed != "max" and not 0 < speed < float("inf"):
            raise ConfigError(
                f"speed is {speed!r}",
                hint="Give 1 for the real pace, 10 for ten times that, or max.",
            )
        self._factor = None if speed == "max" else float(speed)
        self._origin: tuple[float, int] | None = None

    @property
    def is_flat_out(self) -> bool:
        return self._factor is None

    def cuts(self, times: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The spans of events that are given out together: REPLAY_TICK_MS of real time each.

        Args:
            times: Of each event, ms. One that is earlier than those before it goes with them.
        """
        rising: list[float] = list(accumulate(times, max))
        tick = max(1.0, REPLAY_TICK_MS * (self._factor or 0))
        start = 0
        while start < len(rising):
            stop = bisect_left(rising, rising[start] + tick, start + 1)
            yield start, stop
            start = stop

    async def wait(self, at: int) -> None:
        """Wait until an event of this time, ms, is due."""
        if self._factor is None:
            return
        now = time.monotonic()
        if self._origin is None:
            self._origin = now, at
        began, first = self._origin
        due = began + (at - first) / 1000 / self._factor
        if due > now:
            await asyncio.sleep(due - now)
