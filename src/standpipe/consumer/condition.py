"""In what condition the way to the server is: a log line for each change of it, none between."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from standpipe.errors import ReplyTimeoutError, ServerUnavailableError, StandpipeError

log: Final = logging.getLogger("standpipe.consumer")


class Condition:
    """The condition of one lane: all is well, or it waits for what an error names to be over.

    Several loops share a lane, and each meets an outage by itself and tries again in its own time.
    Logged is when the first of them meets it, when it becomes another one, and when the last of
    them is through.

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
        self._waiting: Final[set[str]] = set()
        """The loops that have met it and are not through yet."""
        self._server = ""
        """Where the lane was connected when all was well."""

    def met(self, who: str, error: StandpipeError, wait_ms: int) -> None:
        """A loop has met an error, and will try again."""
        self._waiting.add(who)
        self._tries += 1
        kind = _kind(error)
        if self.is_waiting and kind == self._error:
            log.debug("%s: %s; again in %d ms", who, error, wait_ms)
            return
        if not self.is_waiting:
            self.is_waiting, self._since, self._tries = True, time.monotonic(), 1
        self._error = kind
        log.warning("%s; trying until it is over (%s)", error, error.hint,
                    extra=self._facts | {"state": "waiting", "error": kind})  # fmt: skip

    def through(self, who: str, server: str) -> None:
        """A loop has done what it could not; called often, so ask ``is_waiting`` first."""
        self._waiting.discard(who)
        if self._waiting:
            return
        self.is_waiting = False
        ms = round((time.monotonic() - self._since) * 1000)
        before, self._server = self._server, server
        is_elsewhere = before and server != before
        place = f"by {server} in place of {before}" if is_elsewhere else f"by {server}"
        log.warning(
            "%s is served again %s, after %d ms and %d tries",
            _named(self._facts),
            place,
            ms,
            self._tries,
            extra=self._facts
            | {
                "state": "ok",
                "error": self._error,
                "server": server,
                "server_before": before or None,
                "waited_ms": ms,
                "tries": self._tries,
            },
        )

    def is_at(self, server: str) -> None:
        """All is well at a server."""
        self._server = server


def _kind(error: StandpipeError) -> str:
    # Whether a server that is away refuses, resets or does not answer varies from try to try.
    if isinstance(error, ReplyTimeoutError):
        return ServerUnavailableError.__name__
    return type(error).__name__


def _named(facts: dict[str, Any]) -> str:
    shard = facts["shard"]
    where = "" if shard is None else f" shard {shard} of"
    return f"group {facts['group']} of{where} {facts['stream']}"
