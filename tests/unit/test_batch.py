"""A batch: events of one shard, their IDs beside them, whole or in parts."""

from __future__ import annotations

import pytest

from standpipe.codec import (
    MARKS,
    PlainLayout,
    block_fields,
    decode_entry,
    encode_plain,
    encode_rows,
)
from standpipe.errors import DecodeError
from standpipe.event import Batch, Event, EventId

LAYOUT = PlainLayout()
TIME = 1_700_000_000_000


def _events(count: int, first: int = 0) -> list[Event]:
    return [Event("m", TIME + n, {"n": n}) for n in range(first, first + count)]


def _rows(seq: int, events: list[Event]):
    fields = block_fields("rows", len(events), encode_rows(events))
    return decode_entry(f"{TIME}-{seq}".encode(), fields, LAYOUT)


def _plain(seq: int, event: Event):
    return decode_entry(f"{TIME}-{seq}".encode(), encode_plain(event, LAYOUT), LAYOUT)


@pytest.fixture
def batch() -> Batch:
    """A block of three, a plain entry, a block of four."""
    entries = [_rows(0, _events(3)), _plain(1, _events(1, 3)[0]), _rows(2, _events(4, 4))]
    return Batch(entries, stream="s", shard=5)


def test_a_batch_is_its_events_in_order(batch: Batch) -> None:
    """Events and IDs are parallel, in the shard's order, through entries of any layout."""
    assert len(batch) == len(batch.events) == len(batch.ids) == 8
    assert [event.fields["n"] for event in batch] == list(range(8))
    assert batch.ids == [
        *(EventId(TIME, 0, n) for n in range(3)),
        EventId(TIME, 1, 0),
        *(EventId(TIME, 2, n) for n in range(4)),
    ]
    assert batch[4] == batch.events[4]
    assert [event.fields["n"] for event in batch[2:5]] == [2, 3, 4]
    assert "8 events" in repr(batch)
    assert "empty" in repr(Batch([]))


@pytest.mark.parametrize("start", range(9))
def test_a_part_is_the_same_events(batch: Batch, start: int) -> None:
    """Any part has the events and IDs that the whole has there, and says whose they are."""
    for stop in range(start, 9):
        part, indexes = batch.part(start, stop)
        assert part.events == batch.events[start:stop]
        assert part.ids == batch.ids[start:stop]
        assert (part.stream, part.shard) == ("s", 5)
        assert [batch.entries[i].id.entry for i in indexes] == [e.id.entry for e in part.entries]
        if start < stop:
            assert part.table().to_pylist() == batch.table().to_pylist()[start:stop]


def test_a_part_of_a_part(batch: Batch) -> None:
    """Parts can be divided again: halving goes on to single events."""
    part, _ = batch.part(1, 7)
    inner, _ = part.part(1, 5)
    assert inner.ids == batch.ids[2:6]
    assert inner.events == batch.events[2:6]


def test_a_table_unites_the_fields(batch: Batch) -> None:
    """A field that an event does not have is null in its row."""
    other = _plain(3, Event("m", TIME, {"volts": 230.5}))
    table = Batch([*batch.entries, other]).table()
    assert table.column_names == ["key", "time", "n", "volts"]
    assert table.column("n").to_pylist() == [*range(8), None]
    assert table.column("volts").to_pylist() == [None] * 8 + [230.5]


def test_types_that_do_not_fit_are_an_error_with_a_way_out() -> None:
    """A field that is a number in one entry and text in another is a DecodeError with a hint."""
    entries = [_plain(n, Event("m", TIME, {"x": value})) for n, value in enumerate((1, "abc"))]
    with pytest.raises(DecodeError) as caught:
        Batch(entries).table()
    assert "schema" in caught.value.hint
    assert [event.fields["x"] for event in Batch(entries)] == [1, "abc"]


def test_a_batch_is_decoded_once(batch: Batch) -> None:
    """Looking at the events again costs no decoding."""
    assert batch.events is batch.events
    assert MARKS["plain"] == ""
