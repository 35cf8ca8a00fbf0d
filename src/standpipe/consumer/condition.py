"""In what condition the way to the server is: a log line for each change of it, none between."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from standpipe.errors import ReplyTimeoutError, ServerUnavailableError, StandpipeError

log: Final = logging.getLogger("standpipe.consumer")


class Condition:
    """The condition of a consumer: all is well, or it waits for what errors name to be over.

    Several loops share a lane, a cluster has a lane for each shard, and each loop meets an outage
    by itself and tries again in its own time. Logged is when the first of them meets it, when one
    meets another error than those that wait, and when the last of them is through.

    Args:
        facts: What each line says beside: stream, shard, group, consumer.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.is_waiting = False
        self._facts: Final = facts
        self._error = ""
        """The kind of the error that was logged last."""
        self._since = 0.0
        self._tries = 0
        self._waiting: Final[dict[tuple[int, str], str]] = {}
        """The loops, by their lane, that have met it and are not through yet; and what they met."""
        self._servers: Final[dict[int, str]] = {}
        """Where each lane was connected when all was well."""
        self._through: Final[dict[int, str]] = {}
        """Where those lanes are connected that had met it and are through."""

    def met(self, who: str, error: StandpipeError, wait_ms: int, *, lane: int = 0) -> None:
        """A loop has met an error, and will try again."""
        kind = _kind(error)
        # Some may wait for one error while others meet another, each again and again.
        is_new = kind not in self._waiting.values()
        self._waiting[lane, who] = kind
        self._tries += 1
        if not is_new:
            log.debug("%s: %s; again in %d ms", who, error, wait_ms)
            return
        if not self.is_waiting:
            self.is_waiting, self._since, self._tries = True, time.monotonic(), 1
        self._error = kind
        log.warning("%s; trying until it is over (%s)", error, error.hint,
                    extra=self._facts | {"state": "waiting", "error": kind})  # fmt: skip

    def through(self, who: str, server: str, *, lane: int = 0) -> None:
        """A loop has done what it could not; called often, so ask ``is_waiting`` first."""
        if self._waiting.pop((lane, who), None) is None:
            return
        self._through[lane] = server
        if self._waiting:
            return
        self.is_waiting = False
        ms = round((time.monotonic() - self._since) * 1000)
        before = {each: self._servers.get(each, "") for each in self._through}
        is_elsewhere = any(was and was != self._through[each] for each, was in before.items())
        now, was = _joined(self._through.values()), _joined(before.values())
        self._servers.update(self._through)
        self._through.clear()
        log.warning(
            "%s is served again %s, after %d ms and %d tries",
            _named(self._facts),
            f"by {now} in place of {was}" if is_elsewhere else f"by {now}",
            ms,
            self._tries,
            extra=self._facts
            | {
                "state": "ok",
                "error": self._error,
                "server": now,
                "server_before": was or None,
                "waited_ms": ms,
                "tries": self._tries,
            },
        )

    def is_at(self, server: str, *, lane: int = 0) -> None:
        """All is well at a server."""
        self._servers[lane] = server


def _joined(servers: Iterable[str]) -> str:
    return ", ".join(sorted({server for server in servers if server}))


def _kind(error: StandpipeError) -> str:
    # Whether a server that is away refuses, resets or does not answer varies from try to try.
    if isinstance(error, ReplyTimeoutError):
        return ServerUnavailableError.__name__
    return type(error).__name__


def _named(facts: dict[str, Any]) -> str:
    shard = facts["shard"]
    where = "" if shard is None else f" shard {shard} of"
    return f"group {facts['group']} of{where} {facts['stream']}"
