"""Acknowledgement levels: what has to be true of an entry before its receipt resolves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from standpipe.errors import (
    ConfigError,
    NotDurableError,
    StandpipeError,
    TooFewReplicasError,
)
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

    # --- whether the server can give it ----------------------------------------------------------

    async def verified(self, link: Link) -> Level:
        """The level as this server gives it.

        Raises:
            ConfigError: it cannot: no append-only file, or no WAITAOF and it syncs later than it
                replies, or that cannot be read.
            TooFewReplicasError: fewer replicas are connected. Retryable.

        Cost: one round trip; nothing for ``memory``.
        """
        if not self.fsync and not self.replicas:
            return self
        info, waitaof, appendfsync = await link.exchange(
            [
                pack("INFO"),
                pack("COMMAND", "INFO", "WAITAOF"),
                pack("CONFIG", "GET", "appendfsync"),
            ],
            3,
        )
        if isinstance(info, StandpipeError):
            raise info
        self._require_replicas(info_fields(info), link.where)
        if not self.fsync:
            return self
        if info_fields(info).get("aof_enabled") != "1":
            raise ConfigError(
                f"{link.where}: the level {str(self)!r} is asked for, but appendonly is off",
                hint="Set appendonly yes on the server, or ask for the level memory.",
            )
        if isinstance(waitaof, (list, dict)) and any(waitaof):  # pyright: ignore[reportUnknownArgumentType]
            return self._replace(by_waitaof=True)
        self._require_always(appendfsync, link.where)
        return self._replace(by_waitaof=False)

    def _require_replicas(self, info: Mapping[str, str], where: str) -> None:
        connected = int(info.get("connected_slaves", 0))
        if connected < self.replicas:
            raise TooFewReplicasError(
                f"{where}: {connected} replicas are connected, the level {str(self)!r} asks for "
                f"{self.replicas}",
                hint="Attach the replicas, or ask for a lower level.",
            )

    def _require_always(self, reply: Any, where: str) -> None:
        problem = f"{where}: the level {str(self)!r} needs WAITAOF, which this server lacks, or "
        if isinstance(reply, StandpipeError):
            raise ConfigError(
                f"{problem}appendfsync always, which cannot be read: {reply}",
                hint="Allow the user CONFIG GET, or use Redis 7.2 or Valkey.",
            ) from reply
        found = reply.get(b"appendfsync", b"unknown").decode()
        if found != "always":
            raise ConfigError(
                f"{problem}appendfsync always; it is {found}",
                hint="Set appendfsync always, use Redis 7.2 or Valkey, or ask for memory.",
            )

    # --- whether it was reached ------------------------------------------------------------------

    def commands(self, wait_ms: int) -> list[bytes]:
        """What to send behind the appends, on the same connection, to learn whether it is reached.

        Args:
            wait_ms: How long the server may wait for the disk, and then for the replicas.

        Source: https://redis.io/docs/latest/commands/waitaof/ ,
        https://redis.io/docs/latest/commands/wait/
        """
        found: list[bytes] = []
        if self.fsync and self.by_waitaof:
            found.append(pack("WAITAOF", 1, 0, wait_ms))
        if self.replicas:
            found.append(pack("WAIT", self.replicas, wait_ms))
        return found

    def shortfall(self, replies: Sequence[Any], where: str) -> NotDurableError | None:
        """What the replies to :meth:`commands` leave to be desired; None when it is reached."""
        known: list[str] = []
        reached = True
        waiting = iter(replies)
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


def _why(reply: Any) -> str:
    return f" ({reply})" if isinstance(reply, StandpipeError) else ""
