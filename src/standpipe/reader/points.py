"""Points of a stream as people write them, and the bounds that they make. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, cast

from standpipe.clock import format_time, parse_time
from standpipe.event import Batch, EventId

Point = str | int | EventId
"""A time (ms, ISO 8601, ``-2h``), an event ID, ``-`` (the oldest) or ``$`` (now)."""

INDEX_MAX: Final = 2**31 - 1
"""Behind the last event of any entry."""
SEQ_MAX: Final = 2**64 - 1
BEGIN: Final = EventId(0, 0)
END: Final = EventId(SEQ_MAX, SEQ_MAX, INDEX_MAX)


class Bounds(NamedTuple):
    """The first and the last event that are wanted, both inclusive."""

    start: EventId = BEGIN
    end: EventId = END

    @property
    def end_text(self) -> str:
        """The last entry as XRANGE takes it."""
        return "+" if self.end == END else self.end.entry

    def cut(self, batch: Batch) -> Batch:
        """A batch without what lies outside: only its first and last entry can be cut."""
        if not batch.entries:
            return batch
        first, last = batch.entries[0], batch.entries[-1]
        start, stop = 0, len(batch)
        if first.id[:2] == self.start[:2]:
            start = min(max(0, self.start.index - first.id.index), first.count)
        if last.id[:2] == self.end[:2]:
            stop -= max(0, last.id.index + last.count - 1 - self.end.index)
        if (start, stop) == (0, len(batch)):
            return batch
        return batch.part(start, max(start, stop))[0]


def entry_of(entry_id: bytes) -> EventId:
    """The first event of an entry, by its ID as the server writes it."""
    ms, _, seq = entry_id.partition(b"-")
    return EventId(int(ms), int(seq))


def whole(entry: EventId) -> EventId:
    """The last event that an entry can have."""
    return entry._replace(index=INDEX_MAX)


def first_event(point: Point, name: str = "start") -> EventId:
    """The first event that a start lets in; ``-`` is the oldest.

    Raises:
        ConfigError, EventError: it is none.
    """
    if isinstance(point, str) and point.strip() == "-":
        return BEGIN
    if (found := _event(point)) is not None:
        return found
    return EventId.parse(parse_point(point, name, is_end=False))


def last_event(point: Point | None, name: str = "end") -> EventId:
    """The last event that an end lets in; None and ``$``: the newest.

    Raises:
        ConfigError, EventError: it is none.
    """
    if point is None or (isinstance(point, str) and point.strip() == "$"):
        return END
    if (event := _event(point)) is not None:
        return event
    text = parse_point(point, name, is_end=True)
    if text == "-":
        return BEGIN
    found = EventId.parse(text)
    # A bare time covers its whole millisecond, the text of an entry ID the whole entry.
    return whole(found if "-" in text else found._replace(seq=SEQ_MAX))


def _event(point: Point) -> EventId | None:
    """The one event that a point names; None where it names a time or a whole entry."""
    if isinstance(point, EventId):
        return point
    is_event = isinstance(point, str) and re.fullmatch(r"[0-9]+(-[0-9]+)?/[0-9]+", point.strip())
    return EventId.parse(cast(str, point).strip()) if is_event else None


def parse_point(value: Point, name: str, *, is_end: bool) -> str:
    """A point as XRANGE takes it.

    Raises:
        ConfigError, EventError: it is none.
    """
    if isinstance(value, EventId):
        return value.entry
    if isinstance(value, str):
        text = value.strip()
        if text in ("-", "$"):
            return text
        head, dash, rest = text.partition("-")
        if head.isdigit() and (dash or "/" in text) and rest.partition("/")[0].isdigit():
            return EventId.parse(text).entry
    ms = max(0, parse_time(value, name=name))
    # A bare time covers its whole millisecond: as a start from -0, as an end to the last.
    return str(ms) if is_end else f"{ms}-0"


def id_before(point: str) -> bytes:
    """The entry ID before a point: XREAD and XGROUP, unlike XRANGE, leave out the one given."""
    ms, seq, _ = EventId.parse("0-0" if point == "-" else point)
    if seq or not ms:
        return b"%d-%d" % (ms, max(0, seq - 1))
    return b"%d-%d" % (ms - 1, SEQ_MAX)


def shown_point(event: EventId | None) -> str:
    """A point for people: the time, and the entry if it is one."""
    if event is None:
        return "nothing"
    try:
        return f"{format_time(event.ms)} ({event.entry})"
    except (ValueError, OverflowError, OSError):
        return event.entry
