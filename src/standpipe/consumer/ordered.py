"""A lane of ordered mode: it reads the shards that its consumer owns, and no others.

Whatever changes a shard's group goes through a script that checks the lease in the same step. A
blocking XREADGROUP cannot: it would give an entry to whoever asked first, though another one owns
the shard by then. So what waits here is an XREAD, which takes nothing, and the entries are read by
the script.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from standpipe.consumer.condition import Condition
from standpipe.consumer.intake import Intake
from standpipe.consumer.lane import Lane, entry_order
from standpipe.consumer.leases import Lease, Leases, lease_keys
from standpipe.consumer.member import Member
from standpipe.errors import GroupNotFoundError, StandpipeError
from standpipe.keyspace import side_key
from standpipe.limits import (
    FORGET_IDLES_MIN,
    FORGET_TRIES,
    READ_BLOCK_MS,
    READ_COUNT,
)
from standpipe.wire import pack

log: Final = logging.getLogger("standpipe.consumer")


class _Request(NamedTuple):
    """One call of ordered.lua."""

    lease: Lease
    ids: list[bytes]
    """To acknowledge."""
    new_max: int
    """To read."""


class OrderedLane(Lane):
    """The shards behind one pair of connections, those of them that the consumer owns."""

    def __init__(
        self,
        member: Member,
        intake: Intake,
        shards: list[int],
        condition: Condition,
        leases: Leases,
    ) -> None:
        super().__init__(member, intake, shards, condition)
        self._leases = leases
        self._wake = asyncio.Event()
        self._ack_order = asyncio.Lock()
        self._reading_under: dict[int, Lease] = {}
        """The leases of the round that the reader is at."""
        self._full: set[int] = set()
        """Shards that are not read since so much of them is held."""
        self.dropped: Callable[[int], None] = lambda _: None
        """Called when a shard is given up or lost, for what is kept of it elsewhere."""

    # --- leases ----------------------------------------------------------------------------------

    def _lease_key(self, shard: int) -> str:
        return lease_keys(self.stream.keys[shard], self.member.group)[0]

    def own(self) -> list[int]:
        return [shard for shard in self.shards if shard in self._leases.owned]

    def fence(self, shard: int) -> int | None:
        return self._leases.fence(shard)

    def _stamp(self, shard: int) -> int | None:
        lease = self._leases.owned.get(shard)
        # Lost and taken again while its reply was on the way: what is pending comes first now.
        return lease.fence if lease and lease is self._reading_under.get(shard) else None

    async def meet(self, ms: int) -> list[str]:
        """Tell the other members of the group that this one is there, and return who is."""
        key = side_key(self.stream.keys[0], f"members:{self.member.group}")
        names: list[bytes] = await self._run("members", (key,), self.member.name, ms)
        return [name.decode(errors="replace") for name in names]

    async def lease(self, calls: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        name, ms = self.member.name, self._leases.lease_ms
        replies = await self._run_all(
            "lease",
            [
                (lease_keys(self.stream.keys[n], self.member.group), (what, name, fence, ms))
                for what, n, fence in calls
            ],
        )
        found: list[tuple[str, int, int]] = []
        for reply in replies:
            if isinstance(reply, StandpipeError):
                raise reply
            owner, fence, left_ms = reply
            found.append((owner.decode(errors="replace"), fence, left_ms))
        return found

    async def recover(self, error: StandpipeError) -> None:
        await self._pause("leases", error, 1, self._control_link)

    def works(self) -> None:
        self._works("leases")

    def wake(self) -> None:
        self._wake.set()

    def drop(self, shard: int) -> None:
        # Those that have not left yet would be refused.
        self.intake.stats.refused += self.acking.drop(shard)
        for entry_id in list(self.held[shard]):
            self._forget(shard, entry_id)
        self._full.discard(shard)
        self.dropped(shard)

    # --- reading ---------------------------------------------------------------------------------

    async def read_loop(self) -> None:
        attempt = 0
        is_group_lost = False
        while True:
            try:
                if is_group_lost:
                    await self.create_groups(again=True)
                    is_group_lost = False
                is_inheriting = any(
                    self._leases.owned[shard].cursor is not None for shard in self.own()
                )
                if not await self._read_round():
                    await self._wait()
                if not is_inheriting:
                    # Not sooner: a replica shows what is pending, and refuses to give out more.
                    attempt = 0
                    self._works("reader")
            except StandpipeError as error:
                attempt += 1
                is_group_lost = isinstance(error, GroupNotFoundError) or is_group_lost
                await self._pause("reader", error, attempt, self._read_link, self._control_link)
                # A reply that was lost left its entries pending: they come before all others.
                for shard in self.own():
                    self._leases.owned[shard].cursor = b"-"

    def _room_in(self, shard: int) -> int:
        """How many more entries of a shard may be held.

        Each shard has a share of its own: one that waits for an event that fails must not fill up
        what the others need.
        """
        shares = max(1, len(self._leases.owned))
        of_all = self.intake.limits
        share = min(
            of_all.events // shares // self._entry_events,
            of_all.bytes // shares // self._entry_bytes,
        )
        held = len(self.held[shard])
        # When half is worked off, so that not each acknowledgement makes a read.
        return min(READ_COUNT, max(1, share - held)) if held <= share // 2 else 0

    async def _read_round(self) -> bool:
        """Read each shard that has room; returns whether there may be more."""
        self._wake.clear()
        self._full.clear()
        self._reading_under = {shard: self._leases.owned[shard] for shard in self.own()}
        is_more = False
        requests: list[_Request] = []
        for shard, lease in self._reading_under.items():
            if lease.is_ending:
                continue
            if (count := self._room_in(shard)) <= 0:
                self._full.add(shard)
            elif lease.cursor is not None:
                await self._inherit(lease, lease.cursor, count)
                is_more = True
            else:
                requests.append(_Request(lease, [], count))
        if requests:
            is_more = await self._request(requests) or is_more
        return is_more

    async def _inherit(self, lease: Lease, start: bytes, count: int) -> None:
        """Take over a page of what is pending, whoever holds it: there is one owner."""
        shard, member = lease.shard, self.member
        key = self.stream.keys[shard]
        reply = await self._run(
            "inherit", (key, self._lease_key(shard)),
            member.group, member.name, lease.fence, start, count,
        )  # fmt: skip
        if reply is None:
            self._leases.lose(lease)
            return
        ids, others, deleted = reply
        if deleted:
            await self._clear_lost(shard, deleted)
        if not ids and not deleted:
            await self._ask_reached(shard)
            lease.cursor = None
            return
        if others:
            self.intake.stats.taken_over += others
            log.info("took over %d entries of %s with its lease", others, key,
                     extra=self.facts(shard, "taken_over"))  # fmt: skip
        if new := [entry_id for entry_id in ids if not self.knows(shard, entry_id)]:
            await self._take_pending(shard, new)
        lease.cursor = b"(" + max((*ids, *deleted), key=entry_order)

    async def _ask_reached(self, shard: int) -> None:
        """Learn up to where the group has been given a shard; only its owner moves that."""
        name, key = self.member.group.encode(), self.stream.keys[shard]
        (groups,) = await self.ask([pack("XINFO", "GROUPS", key)])
        for found in groups:
            if found[b"name"] == name:
                self._reached[shard] = found[b"last-delivered-id"]

    async def _request(self, requests: list[_Request]) -> bool:
        """Send the waiting acknowledgements and read, in one round trip; returns whether it found
        something."""
        # One after another: those that are put back have to leave before later ones. If this
        # process dies in between, what is not acknowledged is the end of what was handled.
        async with self._ack_order:
            return await self._acknowledge_and_read(requests)

    async def _acknowledge_and_read(self, requests: list[_Request]) -> bool:
        all_acks = [
            _Request(self._leases.owned[shard], ids, 0)
            for shard, ids in self.acking.take()
            if shard in self._leases.owned
        ]
        requests = [*all_acks, *requests]
        member = self.member
        calls = [
            (
                (self.stream.keys[lease.shard], self._lease_key(lease.shard)),
                (member.group, member.name, lease.fence, new_max, *ids),
            )
            for lease, ids, new_max in requests
        ]
        try:
            replies = await self._run_all("ordered", calls)
        except BaseException:
            self.acking.put_back(
                [(lease.shard, ids) for lease, ids, _ in all_acks if self._has(lease)]
            )
            raise
        failed: StandpipeError | None = None
        is_found = False
        for (lease, ids, new_max), rows in zip(requests, replies, strict=True):
            shard = lease.shard
            if isinstance(rows, StandpipeError):
                failed = rows
                if ids and self._has(lease):
                    self.acking.put_back([(shard, ids)])
            elif rows is None:
                self.intake.stats.refused += len(ids)
                self._leases.lose(lease)
            else:
                self.intake.stats.acknowledged += len(ids)
                if self._has(lease):
                    self.acking.confirmed(shard, ids)
                    if new_max and rows:
                        is_found = True
                        self._reached[shard] = rows[-1][0]
                        self._take(shard, rows, {})
        if failed is not None:
            raise failed
        return is_found

    def _has(self, lease: Lease) -> bool:
        return self._leases.owned.get(lease.shard) is lease

    async def _wait(self) -> None:
        """Wait for an entry, or for a shard to read that there was not; not for ever."""
        shards = [
            shard
            for shard in self.own()
            if shard not in self._full and not self._leases.owned[shard].is_ending
        ]
        waking = asyncio.create_task(self._wake.wait())
        waiting: list[asyncio.Task[Any]] = [waking]
        try:
            if shards:
                keys = [self.stream.keys[shard] for shard in shards]
                ids = [self._reached.get(shard, b"$") for shard in shards]
                command = pack("XREAD", "COUNT", 1, "BLOCK", READ_BLOCK_MS, "STREAMS", *keys, *ids)
                link = await self._reading()
                waiting.append(
                    asyncio.create_task(
                        link.exchange([command], 1, reply_ms_max=READ_BLOCK_MS + link.reply_ms_max)
                    )
                )
            done, _ = await asyncio.wait(
                waiting, return_when=asyncio.FIRST_COMPLETED, timeout=None if shards else 1
            )
        finally:
            for task in waiting:
                task.cancel()
            # Cut off, the exchange closes its link: that is awaited here.
            await asyncio.gather(*waiting, return_exceptions=True)
        if done and waking not in done:
            (reply,) = waiting[1].result()
            if isinstance(reply, StandpipeError):
                raise reply

    # --- acknowledging ---------------------------------------------------------------------------

    def ack(self, shard: int, ids: Iterable[bytes]) -> None:
        super().ack(shard, ids)
        if shard in self._full and self._room_in(shard) > 0:
            self._wake.set()

    async def flush(self) -> None:
        # Those that are on their way may come back.
        if self.acking or self._ack_order.locked():
            await self._request([])

    async def settle(self, shard: int, entry_id: bytes, letters: Sequence[list[bytes]]) -> None:
        # What was handled before is acknowledged before.
        try:
            await self.flush()
        except StandpipeError as error:
            log.debug("acknowledgements wait: %s", error)
        await super().settle(shard, entry_id, letters)

    def _fencing(self, shard: int) -> tuple[Sequence[str], Sequence[Any]]:
        return (self._lease_key(shard),), (self._leases.fence(shard) or 0,)

    def _refused(self, shard: int, entry_id: bytes) -> None:
        self.intake.stats.refused += 1
        if lease := self._leases.owned.get(shard):
            self._leases.lose(lease)
        self._forget(shard, entry_id)

    # --- keeping ---------------------------------------------------------------------------------

    async def keep_loop(self) -> None:
        """Forget names of the dead. Nothing is renewed or swept: the lease stands for all of it."""
        period = self.member.idle_ms_min * FORGET_IDLES_MIN / FORGET_TRIES / 1000
        while True:
            await asyncio.sleep(period)
            try:
                await self._forget_the_dead()
                self._works("keeper")
            except GroupNotFoundError:
                log.debug("the group is gone; nobody to forget")
            except StandpipeError as error:
                await self._pause("keeper", error, 1, self._control_link)
