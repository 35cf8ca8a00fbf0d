"""What lag does over a window: the direction, not the size, says whether a group is well. Pure.

Source: https://github.com/linkedin/Burrow/wiki/Consumer-Lag-Evaluation-Rules
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Trend = Literal["idle", "fine", "catching_up", "behind", "falling_behind", "stopped", "unknown"]


class Sample(NamedTuple):
    """One look at a group on all shards together."""

    at_ms: int
    lag: int | None
    """Entries not delivered; None where the server does not know."""
    pending: int
    delivered: tuple[str, ...]
    """The last ID that was given out, of each shard."""
    oldest: tuple[str, ...]
    """The oldest ID that is pending, of each shard; empty where there is none."""


def judge(samples: Sequence[Sample]) -> Trend:
    """What a group does, from a few looks at it.

    Returns:
        ``idle``: nothing to do. ``fine``: the lag was 0 at some time in the window.
        ``catching_up``: it shrinks. ``behind``: it stays. ``falling_behind``: it never shrank, and
        grew. ``stopped``: there was something to do, and nothing was given out or acknowledged.
        ``unknown``: the server does not know the lag.
    """
    lags = [sample.lag for sample in samples]
    known = [lag for lag in lags if lag is not None]
    first, last = samples[0], samples[-1]
    has_moved = first.delivered != last.delivered or first.oldest != last.oldest
    has_moved = has_moved or last.pending < first.pending
    if len(known) < len(lags):
        return "unknown" if has_moved else "stopped"
    if any(lag == 0 for lag in known):
        # What is pending and does not move has its own checks: a slow handler is no lag.
        return "fine" if has_moved or any(known) or last.pending else "idle"
    if not has_moved:
        return "stopped"
    steps = [later - earlier for earlier, later in pairwise(known)]
    if steps and min(steps) >= 0 and max(steps) > 0:
        return "falling_behind"
    return "catching_up" if known[-1] < known[0] else "behind"


def is_growing(values: Sequence[int]) -> bool:
    """Whether it never fell in the window, and rose in all."""
    steps = [later - earlier for earlier, later in pairwise(values)]
    return bool(steps) and min(steps) >= 0 and values[-1] > values[0]
