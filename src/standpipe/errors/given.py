"""What was given, and what stands in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from standpipe.errors.root import StandpipeError


class InputError(StandpipeError):
    """What was given is wrong; nothing was sent."""


class ConfigError(InputError):
    """A setting, an option or a URL is wrong."""


class EventError(InputError):
    """An event cannot be sent as it is. The rest of the events is not affected."""


class FieldError(EventError):
    """One field of an event has a name or a value that no codec carries.

    Args:
        field: The field's name, or ``key`` / ``time``.
        value: The value as given.
    """

    default_hint = "A field is a finite number, text, a bool, bytes or None (a missing reading)."

    def __init__(
        self, message: str, *, field: str, value: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class EventTooLargeError(EventError):
    """An event is larger than ``event_bytes_max``."""

    default_hint = (
        "Keep the payload beside the stream with standpipe.blobs and send its reference, "
        "or raise event_bytes_max on the producer."
    )


class CodecError(InputError):
    """The codec is unknown, or it cannot carry what was given."""

    default_hint = "The codecs are plain, rows and columns."


class LineError(InputError):
    """A line of an input cannot be turned into an event; the others go on.

    Args:
        line: The line's number, from 1.
        text: The line itself, as read.
    """

    default_hint = "Pass --rejects FILE to keep the bad lines, mend them and send that file again."

    def __init__(self, message: str, *, line: int, text: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line
        self.text = text


class EntryUnitError(InputError):
    """One event of a block was named where only the whole entry can be acknowledged or moved."""

    default_hint = "Give the entry ID, without the /index, if all of its events are meant."


class HandlerError(InputError):
    """A handler cannot be imported or cannot be called as a handler."""

    default_hint = "Give module:function, importable from the current folder or installed."


class AckError(InputError):
    """A handler acknowledged what its batch does not have, out of order, or too late.

    Nothing of that call to ``ack`` is acknowledged. Raised inside the handler; if the handler lets
    it out, it has failed as with any other exception.
    """

    default_hint = "Give indices, event IDs or events of the batch, before the handler returns."


class ForkedError(InputError):
    """An object that holds connections was used in a process forked from the one that made it.

    Both would read from the same socket and take each other's replies. Nothing was sent.
    """

    default_hint = "Make it after the fork, in the process that uses it."


class MissingExtraError(InputError):
    """A feature needs an extra that is not installed."""


class DecodeError(StandpipeError):
    """No codec reads this entry; it goes to the dead letters with its raw fields."""

    default_hint = "See docs/wire-format.md for the three layouts that are read."


class EventTypeError(StandpipeError):
    """An event is not of the type that the handler's annotation names: it is a dead letter at once.

    Args:
        invalid: The places of such events in their batch, each with its reason.
    """

    default_hint = "Requeue it once the type takes it, or mend the producer."

    def __init__(
        self, message: str, *, invalid: Sequence[tuple[int, str]], hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.invalid = tuple(invalid)


class StreamError(StandpipeError):
    """The stream is not what the caller takes it for."""


class StreamNotFoundError(StreamError):
    """Nothing stands at the stream's key."""

    default_hint = "Check the name and the URL, or send an event first: that creates the stream."


class NotKeptError(StreamError):
    """What is asked for is older than anything that is kept: it was trimmed.

    Args:
        oldest: The oldest entry there is, an EventId; None: there is none.
    """

    default_hint = (
        "Ask for that time or a later one, or pass --from-oldest (from_oldest=True) to begin with "
        "what there is."
    )

    def __init__(self, message: str, *, oldest: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.oldest = oldest


class WrongTypeError(StreamError):
    """The key holds something else than a stream (WRONGTYPE)."""

    default_hint = "Choose another stream name; TYPE <key> says what stands there."


class GroupNotFoundError(StreamError):
    """The consumer group is not there, or not any more (NOGROUP)."""

    default_hint = (
        "A worker creates its group again; `standpipe group list <stream>` names those that exist."
    )


class ConsumerNotFoundError(StreamError):
    """The group has no consumer of that name."""

    default_hint = "`standpipe group list <stream>` names the consumers of each group."


class GroupInUseError(StreamError):
    """It would lose what a group has pending or unread, or upset the consumers at work."""

    default_hint = "Stop the workers, let them finish, or say that it is meant (--force)."


class LetterNotFoundError(StreamError):
    """There is no dead letter of this ID: it was requeued or purged, or never there."""

    default_hint = "`standpipe dead list` shows those that there are."
