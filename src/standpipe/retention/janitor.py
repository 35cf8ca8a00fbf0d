"""Janitor: keeps a stream within its limits, one at a time by lease.

The lease saves work, it protects nothing: each step finds out anew what may go, and lets it go,
while the server does nothing else. Two janitors, or one that was believed dead, do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from standpipe.errors import ConfigError, ServerFullError, StandpipeError
from standpipe.keyspace import side_key
from standpipe.limits import (
    FILL_PERCENT,
    LEASE_MS,
    LEAVE_MS_MAX,
    LIMITS_LOOK_MS,
    RENEWALS_PER_IDLE,
    RETAIN_LOOK_MS,
    RETAIN_LOOK_MS_MIN,
    RETAIN_LOOKS_PER_FILL,
    RETAIN_READ_ENTRIES,
    RETAIN_RETRY_MS_MAX,
    RETAIN_STEP_BYTES,
    RETAIN_STEP_ENTRIES,
)
from standpipe.policy import backoff_ms
from standpipe.stream import Definition, Stream
from standpipe.wire import script

log: Final = logging.getLogger("standpipe.retention")


class ShardLook(NamedTuple):
    """What a step has found at a shard, and done."""

    entries: int
    """Before the step, as all that follows."""
    bytes: int
    trimmed: int
    """Entries that everybody was done with, and are gone now."""
    lost: int
    """Others that a ring has let go; what each group loses by that is counted on the server."""
    is_more: bool
    """Whether there is more to do at once."""
    safe: str | None
    """The entry ID before which nothing is held by anybody; None: there is nobody."""
    old: str | None
    """The entry ID before which all is older than max_age; None: any age is allowed."""


@dataclass
class JanitorStats:
    """Counters of one janitor."""

    looks: int = 0
    """Looks at all shards."""
    trimmed: int = 0
    lost: int = 0
    """Entries, as in ShardLook."""
    longest_ms: float = 0
    """The longest step with its way to the server and back."""


@dataclass
class _Fill:
    """How full a shard was left, to tell how fast it fills."""

    at: float = 0
    entries: float = 0
    bytes: float = 0


@dataclass
class _Turn:
    """What comes of a look at all shards."""

    wait_s: float
    shards: list[ShardLook] = field(default_factory=list[ShardLook])


class Janitor:
    """Lets entries of one stream go that its limits do not keep.

    Args:
        stream: The stream, open.
        lease_ms: How long a janitor that is not heard of keeps others away.

    Delivery:
        In ``block`` an entry goes when every group has acknowledged it and the archive has it. If
        the process dies, another janitor goes on when the lease has ended; nothing is half done.

    Cost: a script per shard and look (see RETAIN_LOOK_MS); a stream without limits costs the GET of
        its definition every LIMITS_LOOK_MS.
    """

    def __init__(self, stream: Stream, *, lease_ms: int = LEASE_MS) -> None:
        self.stream: Final = stream
        self.name: Final = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.stats: Final = JanitorStats()
        self._lease_ms = lease_ms
        self._fence = 0
        self._renew_at = 0.0
        self._refresh_at = 0.0
        self._fills = [_Fill() for _ in stream.keys]

    @property
    def is_owner(self) -> bool:
        """Whether it has the lease, as far as it knows."""
        return self._fence > 0

    # --- for ever --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the stream within its limits until this is cancelled.

        Raises:
            ConfigError: the stream is another one by now, not only with other limits.
        """
        failed = 0
        try:
            while True:
                try:
                    wait_s = await self._turn()
                    failed = 0
                except ConfigError:
                    raise
                except StandpipeError as error:
                    failed += 1
                    if not error.retryable:
                        # As without the right to trim: another one may have it.
                        await self._release()
                    wait_ms = backoff_ms(failed, ms_min=RETAIN_LOOK_MS, ms_max=RETAIN_RETRY_MS_MAX)
                    wait_s = wait_ms / 1000
                    # Ever more rarely: an outage of a day is not worth 8,000 lines.
                    if failed & (failed - 1) == 0:
                        log.warning("retention of %s: %s; trying again in %d ms (%s)",
                                    self.stream.name, error, wait_ms, error.hint)  # fmt: skip
                await asyncio.sleep(wait_s)
        finally:
            await self._release()

    async def _turn(self) -> float:
        """One look, if it is this janitor's; how long to wait for the next, s."""
        now = time.monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + LIMITS_LOOK_MS / 1000
            await self.stream.refresh()
        if not _has_limits(self.stream.definition):
            return LIMITS_LOOK_MS / 1000
        left_s = await self._lease()
        if left_s is not None:
            # A bit later than it ends, and not all at once.
            return left_s + random.uniform(0.05, 0.3)
        return (await self._look()).wait_s

    async def _lease(self) -> float | None:
        """Take or renew the lease; None: it is this janitor's, else: for how long another's, s."""
        now = time.monotonic()
        if self._fence and now < self._renew_at:
            return None
        what = "renew" if self._fence else "take"
        try:
            owner, fence, left_ms = await _lease(
                self.stream, what, self.name, self._fence, self._lease_ms
            )
        except ServerFullError:
            # Taking needs memory, and nobody needs a janitor more than a server that has none.
            return None
        if owner != self.name:
            self._fence = 0
            return left_ms / 1000
        self._fence = fence
        self._renew_at = now + self._lease_ms / RENEWALS_PER_IDLE / 1000
        return None

    async def _release(self) -> None:
        if not self._fence:
            return
        fence, self._fence = self._fence, 0
        try:
            async with asyncio.timeout(LEAVE_MS_MAX / 1000):
                await _lease(self.stream, "release", self.name, fence, 0)
        except (StandpipeError, TimeoutError) as error:
            log.debug("the lease of %s was not given back and ends by itself: %s",
                      self.stream.name, error)  # fmt: skip

    # --- a look ----------------------------------------------------------------------------------

    async def once(self) -> list[ShardLook]:
        """Let go what there is to let go now, whoever has the lease.

        Returns:
            Per shard how it was before, and what has gone in all.

        Raises:
            ConfigError: as :meth:`run`.
            ServerError: the server cannot be reached or refuses.
        """
        await self.stream.refresh()
        return (await self._look()).shards

    async def _look(self) -> _Turn:
        turn = _Turn(RETAIN_LOOK_MS / 1000)
        for shard in range(self.stream.shards):
            found = await self._clear(shard)
            turn.shards.append(found)
            turn.wait_s = min(turn.wait_s, self._due_s(shard, found))
        turn.wait_s = max(turn.wait_s, RETAIN_LOOK_MS_MIN / 1000)
        self.stats.looks += 1
        return turn

    async def _clear(self, shard: int) -> ShardLook:
        first: ShardLook | None = None
        trimmed = lost = 0
        while True:
            began = time.perf_counter()
            step = await look(self.stream, shard, "trim")
            took_ms = (time.perf_counter() - began) * 1000
            self.stats.longest_ms = max(self.stats.longest_ms, took_ms)
            first = first or step
            trimmed, lost = trimmed + step.trimmed, lost + step.lost
            self.stats.trimmed += step.trimmed
            self.stats.lost += step.lost
            if not step.is_more:
                break
        if trimmed or lost:
            log.debug("%s: %d entries have gone, %d others were lost by the ring",
                      self.stream.keys[shard], trimmed, lost)  # fmt: skip
        return first._replace(trimmed=trimmed, lost=lost, is_more=False)

    def _due_s(self, shard: int, found: ShardLook) -> float:
        """When to look again: several times before the shard is full at its present rate, s."""
        now, last = time.monotonic(), self._fills[shard]
        left = max(0, found.entries - found.trimmed - found.lost)
        size = found.bytes * left / max(1, found.entries)
        self._fills[shard] = _Fill(now, left, size)
        definition = self.stream.definition
        waits = [RETAIN_LOOK_MS / 1000]
        for at_most, keep, was, came, there in (
            (definition.entries_max, keep_entries(definition), last.entries, found.entries, left),
            (definition.bytes_max, keep_bytes(definition), last.bytes, found.bytes, size),
        ):
            if at_most is None or keep is None:
                continue
            if there > keep:
                # It is held: producers may be waiting, and go on when a group has caught up.
                waits.append(RETAIN_LOOK_MS / 1000 / RETAIN_LOOKS_PER_FILL)
            if last.at and came > was:
                full_s = max(0, at_most - there) * (now - last.at) / (came - was)
                waits.append(full_s / RETAIN_LOOKS_PER_FILL)
        return min(waits)


async def keep(stream: Stream) -> None:
    """Run a janitor beside other work, which goes on whatever becomes of it."""
    try:
        await Janitor(stream).run()
    except ConfigError as error:
        log.error("retention of %s ends here: %s (%s)", stream.name, error, error.hint)
    except Exception:
        log.exception("retention of %s failed in a way that was not foreseen", stream.name)


async def look(stream: Stream, shard: int, what: Literal["trim", "look"]) -> ShardLook:
    """One step at a shard, or only a look at what it would find.

    Raises:
        ServerError: the server cannot be reached or refuses.
    """
    definition = stream.definition
    keys = (
        stream.keys[shard],
        stream.trimmed_key(shard),
        stream.lost_key(shard),
        stream.archived_key(shard),
    )
    reply: list[Any] = await stream.server.run(
        script("retain"),
        keys,
        definition.when_full,
        definition.max_age_ms or 0,
        _pair(keep_entries(definition), keep_bytes(definition)),
        _pair(definition.entries_max, definition.bytes_max),
        RETAIN_STEP_ENTRIES,
        RETAIN_STEP_BYTES,
        RETAIN_READ_ENTRIES,
        what,
    )
    entries, used, trimmed, lost, is_more, safe, old = reply
    return ShardLook(
        entries, used, trimmed, lost, bool(is_more), safe.decode() or None, old.decode() or None
    )


async def janitor_of(stream: Stream) -> str | None:
    """Who keeps a stream within its limits now; None: nobody.

    Raises:
        ServerError: the server cannot be reached or refuses.
    """
    owner, _, _ = await _lease(stream, "look", "", 0, 0)
    return owner or None


async def _lease(
    stream: Stream, what: str, name: str, fence: int, lease_ms: int
) -> tuple[str, int, int]:
    key = side_key(stream.keys[0], "janitor")
    owner, found, left_ms = await stream.server.run(
        script("lease"), (key, f"{key}:lasts"), what, name, fence, lease_ms
    )
    return owner.decode(), found, left_ms


def keep_entries(definition: Definition) -> int | None:
    """Up to how many entries a shard is filled with what is acknowledged; None: any number."""
    if definition.entries_max is None:
        return None
    return definition.entries_max - definition.spare_entries


def keep_bytes(definition: Definition) -> int | None:
    """Up to how many bytes, likewise."""
    return None if definition.bytes_max is None else definition.bytes_max * FILL_PERCENT // 100


def _has_limits(definition: Definition) -> bool:
    return any(
        value is not None
        for value in (definition.max_len, definition.max_bytes, definition.max_age_ms)
    )


def _pair(entries: int | None, size: int | None) -> str:
    return f"{'-' if entries is None else entries} {'-' if size is None else size}"
