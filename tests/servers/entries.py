"""What stands in a stream, read past the code under test: raw commands and the codec alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from standpipe import Event, EventId
from standpipe.codec import PlainLayout, decode_entry
from standpipe.event import Entry
from standpipe.stream import Stream
from standpipe.wire import Server

TIME = 1_700_000_000_000


def make_events(count: int, *, keys: int = 10, first: int = 0) -> list[Event]:
    """Readings of some devices in turn; ``n`` counts up from ``first`` over all of them."""
    return [
        Event(f"meter-{n % keys}", TIME + n, {"n": n, "volts": 230.5})
        for n in range(first, first + count)
    ]


async def entries_at(server: Server, key: str, layout: PlainLayout | None = None) -> list[Entry]:
    """All entries at a key, decoded."""
    rows = await server.call("XRANGE", key, "-", "+", key=key)
    return [decode_entry(entry_id, fields, layout or PlainLayout()) for entry_id, fields in rows]


async def events_at(server: Server, key: str) -> list[tuple[EventId, Event]]:
    """All events at a key with their IDs, in order."""
    return [
        (EventId(entry.id.ms, entry.id.seq, index), event)
        for entry in await entries_at(server, key)
        for index, event in enumerate(entry.events())
    ]


async def events_of(stream: Stream) -> list[list[tuple[EventId, Event]]]:
    """The same of each shard of an open stream."""
    return [await events_at(stream.server, key) for key in stream.keys]


async def events_in(stream: Stream) -> list[Event]:
    """The events of all shards, by n."""
    found = [event for shard in await events_of(stream) for _, event in shard]
    return sorted(found, key=lambda event: event.fields["n"])


def numbers(events: Iterable[Event]) -> list[int]:
    """The numbers that make_events gave."""
    return [event.fields["n"] for event in events]


async def numbers_at(server: Server, key: str) -> list[int]:
    """The numbers at a key, in order."""
    return numbers(event for _, event in await events_at(server, key))


def require_once_in_order(found: Sequence[int], count: int, *, first: int = 0) -> None:
    """Fail unless the numbers are all of them, each once, counting up."""
    expected = list(range(first, first + count))
    if list(found) == expected:
        return
    twice = sorted({n for n in found if found.count(n) > 1}) if len(found) < 20_000 else []
    missing = sorted(set(expected) - set(found))
    raise AssertionError(
        f"{len(found)} found of {count}; twice: {twice[:10]}; missing: {missing[:10]}; "
        f"in order: {list(found) == sorted(found)}"
    )
