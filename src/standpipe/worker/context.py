"""What a handler has to do with: where its event comes from, and what it may raise."""

from __future__ import annotations

from typing import Final

from standpipe.clock import now_ms, parse_duration
from standpipe.errors import HandlerError
from standpipe.event import Acked, Acknowledging, EventId


class Retry(Exception):
    """Raised by a handler: handle this again later. Counts as a delivery.

    Args:
        after: How long to wait, ms or ``"30s"``; None: the usual backoff.
        counts: False when it is no fault of the event, such as a database that is down: it then
            waits as long as it takes, and is not given up for it.
    """

    def __init__(
        self,
        reason: str = "the handler asked for a retry",
        *,
        after: int | str | None = None,
        counts: bool = True,
    ) -> None:
        super().__init__(reason)
        self.counts: Final = counts
        self.after_ms: Final = None if after is None else parse_duration(after, name="after")


class Reject(Exception):
    """Raised by a handler: give this event up at once; it becomes a dead letter with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class Context:
    """Where an event, or the first of a batch, comes from.

    ``deliveries`` counts this delivery too. ``queued_ms`` is the time since the entry was added, by
    the wall clocks of server and worker. ``fence`` counts the owners of the shard in ordered mode;
    a sink that refuses one lower than it has seen of the shard is safe from a worker that was
    stopped in the middle of a handler. It is None in other modes.
    """

    __slots__ = ("_acks", "deliveries", "event_id", "fence", "group", "shard", "stream")

    def __init__(
        self,
        stream: str,
        shard: int,
        group: str,
        event_id: EventId,
        deliveries: int,
        fence: int | None = None,
        acks: Acknowledging | None = None,
    ) -> None:
        self._acks = acks
        self.fence = fence
        self.stream = stream
        self.shard = shard
        self.group = group
        self.event_id = event_id
        self.deliveries = deliveries

    @property
    def queued_ms(self) -> int:
        return now_ms() - self.event_id.ms

    def ack(self, events: Acked = "all") -> None:
        """Acknowledge the event, or some of a batch, in a handler declared with ``ack="manual"``.

        Args:
            events: Of a batch: indices, event IDs or events; see Batch.ack. Default: all.

        Raises:
            AckError, HandlerError: as Batch.ack.
        """
        if self._acks is None:
            raise HandlerError(
                "what this handler is called for is acknowledged when it returns",
                hint='Declare the handler with @worker.each(ack="manual"), or batch.',
            )
        self._acks.ack(events)


class WorkerStats:
    """Counters of one worker, since it was started; more in ``worker.consumer.stats``."""

    __slots__ = ("dead", "handled", "retried")

    def __init__(self) -> None:
        self.handled = 0
        """Events whose handler returned."""
        self.retried = 0
        """Handler calls that failed and were, or will be, repeated."""
        self.dead = 0
        """Events that became dead letters."""

    def __repr__(self) -> str:
        return f"WorkerStats(handled={self.handled}, retried={self.retried}, dead={self.dead})"
