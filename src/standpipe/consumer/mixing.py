"""Ordered mode is for all members of a group at work, or for none: whether that is so.

One that is not of ordered mode would take entries from under the owners of their shards. By their
leases it sees that there are any, at its start and then once a second. The other way round, the
server says when a consumer was last at work: one that is no member of ordered mode and is seen at
work once more is still there. Up to Redis 7.0 a read that finds nothing does not count as work; a
worker that only waits there is overlooked, sees the leases itself, and ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from standpipe.consumer.lane import Lane
from standpipe.consumer.leases import lease_keys
from standpipe.consumer.member import Member
from standpipe.errors import GroupInUseError, NotPermittedError, StandpipeError
from standpipe.limits import START_TRIES_MAX, STRANGERS_LOOK_MS, STRANGERS_MS_MAX
from standpipe.policy import backoff_ms
from standpipe.wire import pack

T = TypeVar("T")


def lasting_keys(lane: Lane) -> list[str]:
    """The keys that are there while shards of a lane have owners of ordered mode."""
    return [lease_keys(key, lane.member.group)[1] for key in lane.keys]


def ordered_at_work(member: Member) -> GroupInUseError:
    """The error of a member that is not of ordered mode, where there are owners."""
    return GroupInUseError(
        f"workers of group {member.group} of {member.stream.name} work in ordered mode, and "
        f"{member.name} does not",
        hint="Start all workers of a group with ordered=True (--ordered), or none; the lease of "
        "one that was killed ends by itself after lease_ms.",
    )


async def require_no_owners(lanes: Sequence[Lane]) -> None:
    """Make sure that nobody works in ordered mode.

    Raises:
        GroupInUseError: some do; not retryable.
    """

    async def count(lane: Lane) -> int:
        try:
            (found,) = await _patiently(lambda: lane.ask([pack("EXISTS", *lasting_keys(lane))]))
        except NotPermittedError:
            return 0  # An ACL from before there was ordered mode: nobody can work in it.
        return found

    if any(await asyncio.gather(*map(count, lanes))):
        raise ordered_at_work(lanes[0].member)


async def require_no_strangers(
    lanes: Sequence[Lane], meet: Callable[[int], Coroutine[Any, Any, list[str]]]
) -> None:
    """Make sure that nobody is at work who is not in ordered mode.

    Args:
        lanes: Of the member that is about to join; over all shards.
        meet: As Leases.loop has it.

    Raises:
        GroupInUseError: somebody is; not retryable.
    """
    began = time.monotonic()
    first = await _idle_ms(lanes)
    members = {*await _patiently(lambda: meet(0)), lanes[0].member.name}
    suspects = [
        place for place, ms in first.items() if place[1] not in members and ms <= STRANGERS_MS_MAX
    ]
    while suspects and (time.monotonic() - began) * 1000 < STRANGERS_MS_MAX:
        await asyncio.sleep(STRANGERS_LOOK_MS / 1000)
        passed_ms = (time.monotonic() - began) * 1000
        now = await _idle_ms(lanes)
        # One of ordered mode is a member before it is a consumer.
        members = {*await _patiently(lambda: meet(0)), lanes[0].member.name}
        for place in suspects:
            name = place[1]
            if name not in members and now.get(place, passed_ms) < passed_ms - STRANGERS_LOOK_MS:
                member = lanes[0].member
                raise GroupInUseError(
                    f"consumer {name} is at work in group {member.group} of "
                    f"{member.stream.name}, and not in ordered mode",
                    hint="Start all workers of a group with ordered=True (--ordered), or none: "
                    "stop that one first.",
                )


async def _patiently(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Ask again where a connection is cut: a start that takes seconds must not fail for that."""
    for attempt in range(1, START_TRIES_MAX):
        try:
            return await ask()
        except StandpipeError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(backoff_ms(attempt) / 1000)
    return await ask()


async def _idle_ms(lanes: Sequence[Lane]) -> dict[tuple[str, str], int]:
    """For how long each consumer has not been at work on each shard, ms."""

    async def of(lane: Lane) -> list[tuple[tuple[str, str], int]]:
        group = lane.member.group
        asked = [pack("XINFO", "CONSUMERS", key, group) for key in lane.keys]
        replies = await _patiently(lambda: lane.ask(asked))
        return [
            ((key, found[b"name"].decode(errors="replace")), found[b"idle"])
            for key, consumers in zip(lane.keys, replies, strict=True)
            for found in consumers
        ]

    found = await asyncio.gather(*map(of, lanes))
    return dict(pair for pairs in found for pair in pairs)
