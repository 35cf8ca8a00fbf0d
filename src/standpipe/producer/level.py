"""Acknowledgement levels: what has to be true of an entry before its receipt resolves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from standpipe.errors import (
    ConfigError,
    NotDurableError,
    StandpipeError,
    TooFewReplicasError,
)
from standpipe.keyspace import side_key
from standpipe.limits import FSYNC_PROBE_MS, FSYNC_PROBES
from standpipe.wire import Link, info_fields, pack

_HINT: Final = "Write memory, fsync, replicas=1, or fsync,replicas=1."


class Level(NamedTuple):
    """An acknowledgement level.

    ``memory`` is neither of the two: the reply of the append is enough.
    """

    fsync: bool = False
    """The primary's append-only file has it on disk."""
    replicas: int = 0
    """So many replicas have it in memory."""
    by_waitaof: bool = True
    """Whether WAITAOF says that it is on disk; else the server syncs before it replies."""

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read ``memory``, ``fsync``, ``replicas=2`` or ``fsync,replicas=2``.

        Raises:
            ConfigError: it is none of these.
        """
        fsync, replicas = False, 0
        for part in text.split(","):
            word = part.strip()
            if word == "fsync":
                fsync = True
            elif found := re.fullmatch(r"replicas=([1-9][0-9]?)", word):
                replicas = int(found[1])
            elif word != "memory":
                raise ConfigError(f"acknowledge is {text!r}", hint=_HINT)
        return cls(fsync, replicas)

    def __str__(self) -> str:
        parts = ["fsync"] * self.fsync + [f"replicas={self.replicas}"] * bool(self.replicas)
        return ",".join(parts) or "memory"

    @property
    def is_memory(self) -> bool:
        """Whether the reply of the append is enough."""
        return not self.fsync and not self.replicas

    # --- whether the server can give it ----------------------------------------------------------

    async def verified(self, link: Link, shard_key: str) -> Level:
        """The level as this server gives it.

        Args:
            link: A connection to the server.
            shard_key: A shard that it serves.

        Raises:
            ConfigError: it cannot: no append-only file, or it replies before that is on disk and
                cannot be asked when it is, or how it syncs cannot be read.
            TooFewReplicasError: fewer replicas are connected. Retryable.

        Cost: nothing for ``memory``; else one round trip, and with ``fsync`` and ``appendfsync
            everysec`` FSYNC_PROBES writes of a key that goes by itself, in most of a second.
        """
        if self.is_memory:
            return self
        info, waitaof, policy = await link.exchange(
            [
                pack("INFO"),
                pack("COMMAND", "INFO", "WAITAOF"),
                pack("CONFIG", "GET", "appendfsync"),
            ],
            3,
        )
        if isinstance(info, StandpipeError):
            raise info
        fields = info_fields(info)
        self._require_replicas(fields, link.where)
        if not self.fsync:
            return self
        if fields.get("aof_enabled") != "1":
            raise ConfigError(
                f"{link.where}: the level {str(self)!r} is asked for, but appendonly is off",
                hint="Set appendonly yes on the server, or ask for the level memory.",
            )
        has_waitaof = isinstance(waitaof, (list, dict)) and any(cast("list[Any]", waitaof))
        await self._require_sync(link, shard_key, policy, has_waitaof=has_waitaof)
        return self._replace(by_waitaof=has_waitaof)

    def _require_replicas(self, info: Mapping[str, str], where: str) -> None:
        connected = int(info.get("connected_slaves", 0))
        if connected < self.replicas:
            raise TooFewReplicasError(
                f"{where}: {connected} replicas are connected, the level {str(self)!r} asks for "
                f"{self.replicas}",
                hint="Attach the replicas, or ask for a lower level.",
            )

    async def _require_sync(
        self, link: Link, shard_key: str, policy: Any, *, has_waitaof: bool
    ) -> None:
        if isinstance(policy, StandpipeError):
            syncs = f"unreadable ({policy})"
        else:
            syncs = policy.get(b"appendfsync", b"unknown").decode()
        if syncs == "always":
            # What is replied is on disk already.
            return
        if has_waitaof and syncs != "no" and await _waits_for_disk(link, shard_key):
            return
        lacks = "whose answer comes too early on" if has_waitaof else "which is missing on"
        raise ConfigError(
            f"the level {str(self)!r} needs appendfsync always, or everysec and WAITAOF, {lacks} "
            f"{link.where}; appendfsync is {syncs}",
            hint="Set appendfsync always (and allow the user CONFIG GET), or ask for memory.",
        )

    # --- whether it was reached ------------------------------------------------------------------

    def commands(self, wait_ms: int, *, mark: str | None = None) -> list[bytes]:
        """What to send behind the appends, on the same connection, to learn whether it is reached.

        Args:
            wait_ms: How long the server may wait for the disk, and then for the replicas.
            mark: A shard's key when a block may have been written over an earlier connection. Then
                the append writes nothing, and since Redis 7.2 the server waits for the last write
                of this connection alone; so there is one.

        Source: https://redis.io/docs/latest/commands/waitaof/ ,
        https://redis.io/docs/latest/commands/wait/
        """
        found: list[bytes] = []
        if self.fsync and self.by_waitaof:
            found.append(pack("WAITAOF", 1, 0, wait_ms))
        if self.replicas:
            found.append(pack("WAIT", self.replicas, wait_ms))
        if found and mark is not None:
            found.insert(0, pack(*_probe(mark)))
        return found

    def shortfall(self, replies: Sequence[Any], where: str) -> NotDurableError | None:
        """What the replies to :meth:`commands` leave to be desired; None when it is reached."""
        known: list[str] = []
        reached = True
        waiting = iter(replies)
        if len(replies) > (self.fsync and self.by_waitaof) + bool(self.replicas):
            mark = next(waiting)
            if isinstance(mark, StandpipeError):
                reached = False
                known.append(f"with nothing to wait for{_why(mark)}")
        if self.fsync and self.by_waitaof:
            reply = next(waiting)
            is_there = not isinstance(reply, StandpipeError) and reply[0] >= 1
            reached &= is_there
            known.append("on its disk" if is_there else f"not yet on its disk{_why(reply)}")
        if self.replicas:
            reply = next(waiting)
            count = 0 if isinstance(reply, StandpipeError) else reply
            reached &= count >= self.replicas
            known.append(f"in the memory of {count} of {self.replicas} replicas{_why(reply)}")
        if reached:
            return None
        return NotDurableError(f"{where}: in the memory of the primary, {', '.join(known)}")


async def _waits_for_disk(link: Link, shard_key: str) -> bool:
    """Whether WAITAOF really waits for the disk, of a server that syncs once a second.

    Redis 7.4 and Valkey 8 and 9 say at once that a write is on disk which is not (10,000 such
    answers in three seconds, and four syncs, were seen). Three writes, one after the other, that
    are all said to be on disk within less than a second give that away.

    Source: https://github.com/redis/redis/pull/13793
    """
    probe = _probe(shard_key)
    said = 0
    for _ in range(FSYNC_PROBES):
        # In two exchanges: behind a write in the same one, the answer may take a while on these.
        await link.call(*probe)
        on_disk, _ = await link.call("WAITAOF", 1, 0, FSYNC_PROBE_MS)
        said += on_disk
        if said == 3:
            return False
    return True


def _probe(shard_key: str) -> tuple[str | int, ...]:
    """A write that leaves nothing."""
    return "SET", side_key(shard_key, "seq:probe"), 0, "PX", 1_000


def _why(reply: Any) -> str:
    return f" ({reply})" if isinstance(reply, StandpipeError) else ""
