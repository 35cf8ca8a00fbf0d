"""Decisions that need no server: when to try again, when to give up, who has which shard. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from standpipe.limits import RETRY_AFTER_MS, RETRY_AFTER_MS_MAX, RETRY_MS_MAX, RETRY_MS_MIN

Verdict = Literal["retry", "dead"]


def backoff_ms(
    attempt: int,
    *,
    ms_min: int = RETRY_MS_MIN,
    ms_max: int = RETRY_MS_MAX,
    draw: Callable[[], float] = random.random,
) -> int:
    """How long to wait before a try: doubling from ``ms_min`` to ``ms_max``, half of it jitter.

    Args:
        attempt: Failed tries so far, from 1.
        ms_min: The first wait, ms.
        ms_max: The longest wait, ms.
        draw: A number in [0, 1); for tests.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("equal
    jitter": half is kept, so that a wait is never so short that it is none).
    """
    # The exponent is bounded so that a long outage does not compute ever larger powers.
    whole = min(ms_max, ms_min * 2 ** min(attempt - 1, 30))
    return round(whole / 2 + whole / 2 * draw())


def handler_backoff_ms(deliveries: int, *, draw: Callable[[], float] = random.random) -> int:
    """The wait before a failed event is handled again, after so many deliveries."""
    return backoff_ms(deliveries, ms_min=RETRY_AFTER_MS, ms_max=RETRY_AFTER_MS_MAX, draw=draw)


def after_failure(deliveries: int, deliveries_max: int) -> Verdict:
    """Whether an event whose handler failed is tried again or given up on.

    Args:
        deliveries: How often it has been delivered by now, this one included.
        deliveries_max: The limit.
    """
    return "retry" if deliveries < deliveries_max else "dead"


def on_takeover(deliveries: int, deliveries_max: int) -> Verdict:
    """Whether an entry that its worker left unfinished is handled or given up on.

    It has been delivered ``deliveries`` times, the takeover included. One that has already been
    tried ``deliveries_max`` times most likely kills its workers: no handler lives to report it.
    One delivery alone says nothing: the entry may have been read and never begun.
    """
    return "retry" if deliveries <= max(deliveries_max, 2) else "dead"


def renew_every_ms(idle_ms_min: int, renewals: int) -> int:
    """How often a live worker renews what it holds so that it is not taken for dead."""
    return max(1, idle_ms_min // renewals)


class Moves(NamedTuple):
    """What a member does about its shards."""

    release: list[int]
    """Shards of its own that it gives up, once what it is in the middle of is done."""
    take: list[int]
    """Shards without an owner that it tries to take."""


def balance(members: Iterable[str], owners: Sequence[str | None], me: str) -> Moves:
    """Which shards a member gives up and which it takes, so that all have as many, or one more.

    Each member decides for itself. From the same view all decide alike: what they take does not
    overlap, and a member that has a fair share gives up nothing.

    Args:
        members: Who is there to own shards.
        owners: The owner of each shard; None: it is free.
        me: The member that decides; one of the members.
    """
    there = {*members, me}
    held = Counter(owner for owner in owners if owner is not None)
    # An owner that is no member is on its way out: nobody counts on its shards before it is gone.
    shared = len(owners) - sum(count for owner, count in held.items() if owner not in there)
    share, extra = divmod(shared, len(there))
    # Those who have one more keep it, so that nothing moves without need.
    ranked = sorted(there, key=lambda name: (-held[name], name))
    due = {name: share + (rank < extra) for rank, name in enumerate(ranked)}
    mine = [shard for shard, owner in enumerate(owners) if owner == me]
    free = [shard for shard, owner in enumerate(owners) if owner is None]
    before = ranked[: ranked.index(me)]
    start = sum(max(0, due[name] - held[name]) for name in before)
    return Moves(mine[due[me] :], free[start : start + max(0, due[me] - len(mine))])
