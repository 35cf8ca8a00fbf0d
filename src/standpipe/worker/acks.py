"""What a handler acknowledges by itself, in manual mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from operator import index
from typing import Any, Final, cast

from standpipe.errors import AckError
from standpipe.event import Acked, Batch, Event, EventId


class NotAcknowledged(Exception):
    """In place of what a handler raises: it has returned, and left something."""

    def __init__(self) -> None:
        super().__init__("the handler returned without acknowledging it")


class Acks:
    """What of one call its handler has acknowledged.

    A handler may run in a thread while the worker's loop settles what it has acknowledged so far.

    Args:
        argument: What the handler is called for.
        first: The event ID of it, or of its first event.
        is_ordered: Whether nothing may be acknowledged before all that comes ahead of it.
        added: Called when there is something to take, in whatever thread.
    """

    def __init__(
        self,
        argument: Batch | Event,
        first: EventId,
        added: Callable[[], None],
        *,
        is_ordered: bool,
    ) -> None:
        self._argument: Final = argument
        self._first: Final = first
        self._added: Final = added
        self._is_ordered: Final = is_ordered
        self._missing: Final = dict.fromkeys(range(_length(argument)))
        """The places that are not acknowledged, ascending."""
        self._fresh: list[int] = []
        """Those that are, and have not been taken yet."""
        self._is_over = False
        self._lock: Final = threading.Lock()
        self._place_of: dict[Any, int] = {}

    def ack(self, events: Acked = "all") -> None:
        """See :meth:`Batch.ack`."""
        is_all = isinstance(events, str) and events == "all"
        places = [] if is_all else sorted({*self._places(events)})
        with self._lock:
            if self._is_over:
                raise AckError(
                    "the handler has returned: what it has not acknowledged comes again",
                    hint="Let the handler wait for what it hands on to others.",
                )
            missing = self._missing
            new = list(missing) if is_all else [place for place in places if place in missing]
            if self._is_ordered and (behind := _overtaken(missing, new)) is not None:
                raise AckError(
                    f"event {behind} of the batch is not acknowledged, and a later one cannot be "
                    "before it in ordered mode",
                    hint="Acknowledge from the front; what is left is handled again, in order.",
                )
            for place in new:
                del missing[place]
            is_first = not self._fresh
            self._fresh += new
            if new and is_first:
                self._added()

    def take(self) -> list[int]:
        """The places acknowledged since the last call, each once, ascending."""
        with self._lock:
            taken, self._fresh = sorted(self._fresh), []
        return taken

    def close(self) -> list[int]:
        """Take no more; returns the places that were never acknowledged, ascending."""
        with self._lock:
            self._is_over = True
            return list(self._missing)

    # --- which events are meant ------------------------------------------------------------------

    def _places(self, events: Acked) -> Iterable[int]:
        # An event ID is a tuple, and text is a sequence of texts.
        if isinstance(events, (EventId, Event, str)) or not hasattr(events, "__iter__"):
            return [self._place(events)]
        return map(self._place, cast("Iterable[Any]", events))

    def _place(self, event: Any) -> int:
        if isinstance(event, EventId):
            return self._look_up(event, event, "event ID")
        if isinstance(event, Event):
            return self._look_up(id(event), event, "event")
        length = _length(self._argument)
        try:
            if isinstance(event, bool):
                raise TypeError
            place = index(event)
        except TypeError:
            raise AckError(f"{event!r} is no index, event ID or event of the batch") from None
        if not -length <= place < length:
            raise AckError(f"there is no event {place} in this batch of {length}")
        return place % length

    def _look_up(self, key: Any, shown: object, what: str) -> int:
        if not self._place_of:
            argument = self._argument
            if isinstance(argument, Event):
                events, ids = [argument], [self._first]
            else:
                events, ids = argument.events, argument.ids
            # By identity: devices repeat themselves, so two events may well be equal.
            self._place_of |= {id(event): place for place, event in enumerate(events)}
            self._place_of |= {event_id: place for place, event_id in enumerate(ids)}
        place = self._place_of.get(key)
        if place is None:
            raise AckError(
                f"the {what} {shown} is not of this batch",
                hint="Give the batch's own objects, or indices: a copy of an event is another one.",
            )
        return place


def _length(argument: Batch | Event) -> int:
    return 1 if isinstance(argument, Event) else len(argument)


def _overtaken(missing: dict[int, None], new: list[int]) -> int | None:
    """The first of what is missing that is not among the new ones, though a later one is."""
    for first, place in zip(missing, new, strict=False):
        if first != place:
            return first
    return None
