"""Who owns which shard in ordered mode: leases, taken, renewed, given up and lost.

A lease stands beside its shard on the server: owner, fence and when it ends. The fence counts the
owners. Whatever a consumer does to a shard carries its fence, and the server refuses one that is
not the last. So order depends on no clock; the time alone decides when others may take over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from standpipe.consumer.intake import ConsumerStats
from standpipe.errors import StandpipeError
from standpipe.keyspace import side_key
from standpipe.limits import LEASE_LOOK_MS, LEASE_LOOKS_MIN
from standpipe.policy import balance

log: Final = logging.getLogger("standpipe.consumer")


def lease_keys(shard_key: str, group: str) -> tuple[str, str]:
    """The keys of a shard's lease: of its owner and fence, and of that it lasts."""
    key = side_key(shard_key, f"lease:{group}")
    return key, f"{key}:lasts"


class Lease:
    """A shard that this consumer owns, as far as it knows."""

    __slots__ = ("cursor", "fence", "is_ending", "shard", "until")

    def __init__(self, shard: int, fence: int, until: float) -> None:
        self.shard = shard
        self.fence = fence
        self.until = until
        """When another may have it, by this process' monotonic clock: counted from before the last
        renewal was sent, so never later than on the server."""
        self.cursor: bytes | None = b"-"
        """Up to where the pending entries were taken over; None: all of them were."""
        self.is_ending = False
        """Whether it is given up when what is in progress on the shard is done."""


class LeasedLane(Protocol):
    """What the leases need of the lane that a shard is on."""

    shards: list[int]

    async def lease(self, calls: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Run lease.lua for each of ``(what, shard, fence)``; its replies, in one round trip."""
        ...

    async def flush(self) -> None:
        """Send the waiting acknowledgements."""
        ...

    def facts(self, shard: int | None, state: str | None = None) -> dict[str, Any]:
        """What a log line says beside its text."""
        ...

    async def recover(self, error: StandpipeError) -> None:
        """Get over an error, or raise it if no retry mends it."""
        ...

    def works(self) -> None:
        """A round has gone through without one."""
        ...

    def wake(self) -> None:
        """There is a shard more to read."""
        ...

    def drop(self, shard: int) -> None:
        """Forget what is held of a shard: it is another consumer's."""
        ...


class Leases:
    """The shards that one consumer owns.

    Args:
        me: The consumer's name.
        lease_ms: How long a lease lasts without being renewed.
        stats: Where to count.
    """

    def __init__(self, me: str, lease_ms: int, stats: ConsumerStats) -> None:
        self.lease_ms: Final = lease_ms
        self.owned: Final[dict[int, Lease]] = {}
        self.is_busy: Callable[[int], bool] = lambda _: False
        """Whether something is in progress on a shard that is to be finished first."""
        self.changed: Callable[[], None] = lambda: None
        """Called when a shard may be handled that could not be before, or is lost."""
        self._me = me
        self._stats = stats
        self._lane_of: dict[int, LeasedLane] = {}
        self._lanes: Sequence[LeasedLane] = ()
        self._owners: dict[int, tuple[str, float]] = {}
        """Per shard: the owner as last seen, and when its lease will end."""
        self._is_leaving = False
        self._troubled: set[LeasedLane] = set()
        """The lanes that have met an error in this round."""
        self._due = asyncio.Event()
        self._look_s = min(LEASE_LOOK_MS, lease_ms / LEASE_LOOKS_MIN) / 1000

    # --- what others ask -------------------------------------------------------------------------

    def fence(self, shard: int) -> int | None:
        """The fence of a shard that is this consumer's; None: it is not."""
        lease = self.owned.get(shard)
        return None if lease is None else lease.fence

    def may_begin(self, shard: int, fence: int, *, is_begun: bool = False) -> bool:
        """Whether a handler may begin with something that was delivered under a fence.

        Not when another may own the shard by now, nor, unless it belongs to an entry that has been
        begun, when the shard is being given up.
        """
        lease = self.owned.get(shard)
        return (
            lease is not None
            and lease.fence == fence
            and (is_begun or not lease.is_ending)
            and time.monotonic() < lease.until
        )

    def nudge(self, shard: int) -> None:
        """Something in progress on a shard is done: it may be what its release waits for."""
        lease = self.owned.get(shard)
        if lease is not None and lease.is_ending:
            self._due.set()

    def give_up(self) -> None:
        """Take no more shards, and give up those there are as soon as nothing is in progress."""
        self._is_leaving = True
        for lease in self.owned.values():
            lease.is_ending = True
        self._due.set()

    def lose(self, lease: Lease) -> None:
        """The server says that a lease is not this consumer's any more."""
        if self.owned.get(lease.shard) is not lease:
            return
        del self.owned[lease.shard]
        self._stats.leases_lost += 1
        lane = self._lane_of[lease.shard]
        log.warning("shard %d is no longer %s's, which was not heard of for too long (fence %d)",
                    lease.shard, self._me, lease.fence,
                    extra=lane.facts(lease.shard, "shard_lost"))  # fmt: skip
        lane.drop(lease.shard)
        self.changed()

    # --- keeping ---------------------------------------------------------------------------------

    def set_lanes(self, lanes: Sequence[LeasedLane]) -> None:
        """Say where the shards are."""
        self._lanes = lanes
        self._lane_of = {shard: lane for lane in lanes for shard in lane.shards}

    async def loop(self, meet: Callable[[int], Coroutine[Any, Any, list[str]]]) -> None:
        """Renew, look, and balance with the other members, for ever.

        Args:
            meet: Tells the others that this one is there for so many ms (0: it goes), and returns
                who is there.
        """
        while True:
            self._due.clear()
            self._troubled.clear()
            members = await self._meet(meet)
            await asyncio.gather(*map(self._look, self._lanes))
            if members is not None and not self._is_leaving:
                await self._balance(members)
            await self._release()
            for lane in self._lanes:
                if lane not in self._troubled:
                    lane.works()
            # What was waiting for a renewal may go on.
            self.changed()
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._due.wait()
            except TimeoutError:
                continue

    def _wait_s(self) -> float:
        """How long until the next look: a dead owner's lease may end before that."""
        now = time.monotonic()
        ends = [end - now for _, end in self._owners.values() if end > now]
        soonest = min(ends, default=math.inf) + random.uniform(0.001, 0.02)
        return min(self._look_s * random.uniform(0.8, 1.0), soonest)

    async def _meet(
        self, meet: Callable[[int], Coroutine[Any, Any, list[str]]]
    ) -> list[str] | None:
        """The members; None: they are not known now, so the shards stay as they are."""
        try:
            return await meet(0 if self._is_leaving else self.lease_ms)
        except StandpipeError as error:
            await self._recover(self._lanes[0], error)
            return None

    async def _recover(self, lane: LeasedLane, error: StandpipeError) -> None:
        self._troubled.add(lane)
        await lane.recover(error)

    async def _look(self, lane: LeasedLane) -> None:
        """Renew the leases on a lane that are this consumer's, and look at the others."""
        mine = {shard: lease for shard in lane.shards if (lease := self.owned.get(shard))}
        calls = [
            ("renew", shard, mine[shard].fence) if shard in mine else ("look", shard, 0)
            for shard in lane.shards
        ]
        sent = time.monotonic()
        try:
            replies = await lane.lease(calls)
        except StandpipeError as error:
            await self._recover(lane, error)
            return
        for shard, (owner, fence, left_ms) in zip(lane.shards, replies, strict=True):
            lease = mine.get(shard)
            self._owners[shard] = (owner, sent + left_ms / 1000 if owner != self._me else 0.0)
            if lease is None:
                continue
            if owner == self._me and fence == lease.fence:
                lease.until = sent + self.lease_ms / 1000
            else:
                self.lose(lease)

    async def _balance(self, members: list[str]) -> None:
        if len(self._owners) < len(self._lane_of):
            return  # Some shards have not been seen yet.
        owners: list[str | None] = []
        for shard in sorted(self._owners):
            owner = self._me if shard in self.owned else self._owners[shard][0]
            # One of our own name that we do not know is of one that died.
            owners.append(None if owner == self._me and shard not in self.owned else owner or None)
        moves = balance(members, owners, self._me)
        for lease in self.owned.values():
            is_ending = lease.shard in moves.release
            if is_ending and not lease.is_ending:
                facts = self._lane_of[lease.shard].facts(lease.shard, "shard_given_up")
                log.info("%s gives up shard %d to others", self._me, lease.shard, extra=facts)
            lease.is_ending = is_ending
        for lane in self._lanes:
            if wanted := [shard for shard in moves.take if self._lane_of[shard] is lane]:
                await self._take(lane, wanted)

    async def _take(self, lane: LeasedLane, shards: list[int]) -> None:
        sent = time.monotonic()
        try:
            replies = await lane.lease([("take", shard, 0) for shard in shards])
        except StandpipeError as error:
            # What was taken all the same is taken again at the next look: it has our name.
            await self._recover(lane, error)
            return
        for shard, (owner, fence, _) in zip(shards, replies, strict=True):
            if owner == self._me:
                self.owned[shard] = Lease(shard, fence, sent + self.lease_ms / 1000)
                self._stats.leases_taken += 1
                log.info("%s owns shard %d now (fence %d)", self._me, shard, fence,
                         extra=lane.facts(shard, "shard_owned"))  # fmt: skip
        lane.wake()

    async def _release(self) -> None:
        """Give up the leases that are to end and have nothing in progress."""
        for lane in self._lanes:
            over = [
                lease
                for shard in lane.shards
                if (lease := self.owned.get(shard)) is not None
                and lease.is_ending
                and not self.is_busy(shard)
            ]
            if not over:
                continue
            try:
                # Unacknowledged, what was handled would be handled again by the next owner.
                await lane.flush()
                # Meanwhile it may have been lost, or a retry may have begun.
                over = [
                    x for x in over if x is self.owned.get(x.shard) and not self.is_busy(x.shard)
                ]
                for lease in over:
                    del self.owned[lease.shard]
                    lane.drop(lease.shard)
                await lane.lease([("release", lease.shard, lease.fence) for lease in over])
            except StandpipeError as error:
                # Those that are not owned any more end by themselves.
                await self._recover(lane, error)

    async def leave(self, meet: Callable[[int], Coroutine[Any, Any, list[str]]]) -> None:
        """Give everything up that has nothing in progress, and go."""
        self.give_up()
        await self._meet(meet)
        await self._release()
