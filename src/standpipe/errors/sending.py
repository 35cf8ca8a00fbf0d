"""Sending, beside what the server says."""

from __future__ import annotations

from standpipe.errors.root import StandpipeError


class ProducerError(StandpipeError):
    """Sending failed for a reason that is not the server's."""


class BackpressureError(ProducerError):
    """The producer's buffer is full and it was told to raise instead of to wait."""

    retryable = True
    default_hint = "Wait and send again, raise buffer_bytes_max, or leave on_full at 'wait'."


class ProducerClosedError(ProducerError):
    """The producer was closed before the server acknowledged the event."""

    default_hint = (
        "Await flush() or the receipts before closing; send the event again if it counts."
    )


class NotAcknowledgedError(ProducerError):
    """Events failed whose receipts nobody awaited; raised by ``flush()`` and ``close()``.

    Args:
        count: How many events.
    """

    default_hint = "Await the receipts of send() to learn which events failed, and why."

    def __init__(self, message: str, *, count: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.count = count


class UnknownOutcomeError(ProducerError):
    """An event was written, no reply came, and it was given up: it may have been added or not.

    With idempotence on it is only given up at the deadline or on closing; with ``idempotent=False``
    at once, as sending it again could add it twice.
    """

    default_hint = (
        "Read the stream to see whether it is there before you send it again; leave idempotence on "
        "and raise the deadline, or give the producer a spool."
    )


class SpooledError(ProducerError):
    """An event has not been acknowledged, but is kept on local disk and sent from there."""

    default_hint = (
        "Nothing to do: it goes out, once, when the server takes it. Do not send it again."
    )


class SequenceError(ProducerError):
    """The server is missing an earlier block of this producer; that one is sent again first."""

    retryable = True
    default_hint = "It is sent again by itself, behind the one that is missing; nothing to do."


class SpoolError(ProducerError):
    """The spool, which keeps a producer's blocks on local disk, refused or failed."""


class SpoolFullError(SpoolError):
    """The spool has reached its bytes_max, or its disk is full; nothing was stored."""

    retryable = True
    default_hint = "It empties by itself once the server takes blocks again; or raise bytes_max."


class SpoolInUseError(SpoolError):
    """Another process, or another producer of this one, has the spool."""

    default_hint = "Give every producer a spool of its own, or end the process that has this one."


class SpoolUnusableError(SpoolError):
    """The spool cannot be created, opened, read or written."""

    default_hint = "Give the path of a file on a local disk that this user may read and write."


class SpoolNotDrainedError(SpoolError):
    """Blocks still wait in the spool at the deadline of draining it; they are kept."""

    retryable = True
    default_hint = (
        "Drain it again when the server takes events; `standpipe spool show` says how many."
    )


class SpoolDamagedError(SpoolError):
    """The spool does not hold what was written to it. It is left as it is.

    Args:
        shard_key, producer_id, sequence: The block it is about; None when it is the file.
    """

    default_hint = (
        "Look for a failing disk, and move the spool's files away to start with an empty one: "
        "nothing deletes or overwrites them."
    )

    def __init__(
        self,
        message: str,
        *,
        shard_key: str | None = None,
        producer_id: str | None = None,
        sequence: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.shard_key = shard_key
        self.producer_id = producer_id
        self.sequence = sequence


class SpoolOrderError(SpoolError):
    """A block was given to the spool after a later one of its producer; nothing was stored."""

    default_hint = "Blocks go in by rising number; a producer that starts again takes a new id."
