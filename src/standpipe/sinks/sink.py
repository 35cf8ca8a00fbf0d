"""Sink: what all sinks share, which is how their errors end for the events."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from typing import Final

from standpipe.errors import (
    SinkError,
    SinkRefusedError,
    SinkUnreachableError,
    SinkUnusableError,
)
from standpipe.event import Batch
from standpipe.limits import SINK_RETRY_MS_MAX, SINK_RETRY_MS_MIN
from standpipe.policy import backoff_ms
from standpipe.worker import Reject, Retry

log: Final = logging.getLogger("standpipe.sinks")


class Sink(ABC):
    """A place that keeps events exactly once: ``worker.batch(sink.write)``.

    One connection, used by one thread at a time; several processes may write to the same place, as
    members of one group or of several.

    Args:
        source: Tells apart streams of the same name on different servers that go to one place: the
            column ``stream`` then says ``source/name``.
    """

    def __init__(self, *, source: str | None = None) -> None:
        self._source = source
        self._lock: Final = threading.Lock()
        self._failures = 0
        self._again_at = 0.0

    def open(self) -> None:
        """Connect, and make or check the table; :meth:`write` does it too, when it has to.

        Raises:
            SinkUnreachableError: it cannot be reached now; retryable.
            SinkUnusableError: the table, the folder or the rights on it are not what is needed.
            MissingExtraError: its package is not installed.
        """
        with self._lock:
            self._open()

    def write(self, batch: Batch) -> None:
        """Keep the events of a batch that are not kept yet; a handler for ``worker.batch``.

        Raises:
            Reject: an event does not fit the table. The worker makes the batch smaller until that
                event stands alone, and then a dead letter of it.
            Retry: the place cannot be reached, is full or lacks rights: the events wait, however
                long it takes, and it counts as no delivery.

        Delivery: when it returns, the events are on the disk of the place, each once. If the
        process dies before, either all of them are or none is; delivered again, those that are
        there are left alone.

        Cost: one transaction.
        """
        with self._lock:
            if (wait_s := self._again_at - time.monotonic()) > 0:
                raise self._later(round(wait_s * 1000), f"{self} is not there yet")
            try:
                self._open()
                self._store(batch, self._stream_name(batch))
            except SinkRefusedError as error:
                raise Reject(f"{self}: {error}") from error
            except SinkError as error:
                raise self._failed(error) from error
            if self._failures:
                log.warning("%s is there again, after %d failures", self, self._failures)
            self._failures = 0

    def close(self) -> None:
        """Let go of the connection. What was written stays."""
        with self._lock:
            self._disconnect()

    def _failed(self, error: SinkError) -> Retry:
        """Note a failure that is not the events', and say when to come again."""
        is_open = self._is_open
        self._disconnect()
        if is_open and isinstance(error, SinkUnusableError):
            # It is about this batch, such as a field that may not get its column: others go on.
            wait_ms = SINK_RETRY_MS_MAX
        else:
            self._failures += 1
            wait_ms = backoff_ms(self._failures, ms_min=SINK_RETRY_MS_MIN, ms_max=SINK_RETRY_MS_MAX)
            self._again_at = time.monotonic() + wait_ms / 1000
        # Once for all calls that wait for the same.
        log.warning("%s: %s; the events wait, again in %d ms", self, error, wait_ms)
        return self._later(wait_ms, str(error))

    @staticmethod
    def _later(wait_ms: int, reason: str) -> Retry:
        return Retry(reason, after=max(1, wait_ms), counts=False)

    def _stream_name(self, batch: Batch) -> str:
        return batch.stream if self._source is None else f"{self._source}/{batch.stream}"

    @property
    @abstractmethod
    def _is_open(self) -> bool:
        """Whether there is a connection to a place that does."""

    @abstractmethod
    def _open(self) -> None:
        """As :meth:`open`; nothing to do when it is open."""

    @abstractmethod
    def _store(self, batch: Batch, stream: str) -> None:
        """Commit the events that are not there yet.

        Raises:
            SinkRefusedError: an event does not fit; nothing was stored.
            SinkError: anything else; whether it was stored is found out when it comes again.
        """

    @abstractmethod
    def _disconnect(self) -> None:
        """Let go of the connection, whatever state it is in."""


def require_reachable(sink: Sink) -> None:
    """Look at a sink before its worker starts, and go on if it is only not there yet.

    Raises:
        SinkUnusableError, MissingExtraError: as :meth:`Sink.open`.
    """
    try:
        sink.open()
    except SinkUnreachableError as error:
        log.warning("%s: %s; its events will wait", sink, error)
    finally:
        # Whoever only started the processes that write has no use for it.
        sink.close()
