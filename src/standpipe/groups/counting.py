"""How many entries, and events in them, lie between two points of a shard."""

from __future__ import annotations

from typing import Literal, NamedTuple

from standpipe.limits import COUNT_PAGE_ENTRIES, COUNT_SAMPLE_ENTRIES
from standpipe.stream import Stream
from standpipe.wire import script

How = Literal["exact", "estimated", "at least"]


class Count(NamedTuple):
    """What was counted."""

    entries: int
    is_exact: bool
    """False: there are more entries than were counted."""
    events: int
    """A block counts those that it announces."""
    events_are: How


async def count_between(
    stream: Stream, key: str, above: str, up_to: str, *, entries: int | None, count_max: int
) -> Count:
    """Count what lies above an entry ID, up to another one.

    Args:
        stream: An open stream.
        key: The shard's.
        above: Exclusive.
        up_to: Inclusive.
        entries: How many entries these are, if that is known: then no more than a sample at both
            ends is looked at.
        count_max: Entries that are looked at otherwise.

    Cost: a script per COUNT_PAGE_ENTRIES entries; only numbers are sent.
    """
    if entries == 0:
        return Count(0, True, 0, "exact")
    if entries is None:
        return await _counted(stream, key, above, up_to, count_max)
    sample = min(COUNT_SAMPLE_ENTRIES, count_max)
    if entries <= sample:
        found = await _run(stream, key, f"({above}", up_to, sample)
        return Count(entries, True, found[1], "exact")
    half = max(1, sample // 2)
    first = await _run(stream, key, f"({above}", up_to, half)
    last = await _run(stream, key, f"({above}", up_to, half, back=True)
    seen, events = first[0] + last[0], first[1] + last[1]
    return Count(entries, True, round(entries * events / max(1, seen)), "estimated")


async def _counted(stream: Stream, key: str, above: str, up_to: str, count_max: int) -> Count:
    entries = events = 0
    while True:
        # One more than may be counted, so that it shows whether these are all.
        page = min(COUNT_PAGE_ENTRIES, count_max + 1 - entries)
        found, found_events, last = await _run(stream, key, f"({above}", up_to, page)
        if entries + found > count_max:
            if found > 1:
                found, found_events, _ = await _run(stream, key, f"({above}", up_to, found - 1)
                entries, events = entries + found, events + found_events
            return Count(entries, False, events, "at least")
        entries, events = entries + found, events + found_events
        if found < page:
            return Count(entries, True, events, "exact")
        above = last


async def _run(
    stream: Stream, key: str, first: str, last: str, count: int, *, back: bool = False
) -> tuple[int, int, str]:
    entries = events = 0
    while True:
        page = min(COUNT_PAGE_ENTRIES, count - entries)
        found, found_events, reached = await stream.server.run(
            script("count"), (key,), first, last, page, "back" if back else ""
        )
        entries, events = entries + found, events + found_events
        if found < page or entries >= count:
            return entries, events, reached.decode()
        if back:
            last = f"({reached.decode()}"
        else:
            first = f"({reached.decode()}"
