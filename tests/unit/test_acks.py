"""What a handler says it acknowledges, and what that is."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe import Context, Stream, Worker
from standpipe.codec import PlainLayout, block_fields, decode_entry, encode_rows
from standpipe.errors import AckError, HandlerError
from standpipe.event import Batch, Event, EventId
from standpipe.worker.acks import Acks

TIME = 1_700_000_000_000


def make_batch(*counts: int) -> Batch:
    """Blocks of so many events each, which are all equal: only their places tell them apart."""
    entries = []
    for seq, count in enumerate(counts):
        events = [Event("m", TIME, {"volts": 230.5})] * count
        fields = block_fields("rows", count, encode_rows(events))
        entries.append(decode_entry(f"{TIME}-{seq}".encode(), fields, PlainLayout()))
    return Batch(entries)


def make_acks(batch: Batch, *, is_ordered: bool = False) -> Acks:
    acks = Acks(batch, EventId(TIME, 0), lambda: None, is_ordered=is_ordered)
    batch.acks = acks
    return acks


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ((), [0, 1, 2, 3, 4]),
        ((1,), [1]),
        ((-1,), [4]),
        (([3, 0, 3],), [0, 3]),
        ((range(2),), [0, 1]),
        ((np.array([2, 4]),), [2, 4]),
        ((EventId(TIME, 1, 0),), [3]),
        (([EventId(TIME, 0, 2), 4],), [2, 4]),
        (([],), []),
    ],
)
def test_what_can_be_acknowledged(given: tuple[Any, ...], places: list[int]) -> None:
    """Indices, event IDs and mixtures of them; nothing given is all, an empty list is nothing."""
    batch = make_batch(3, 2)
    acks = make_acks(batch)
    batch.ack(*given)
    assert acks.take() == places
    assert acks.close() == [place for place in range(5) if place not in places]


def test_an_event_is_itself_and_not_one_like_it() -> None:
    """Of events that are equal, the very ones that were given are acknowledged."""
    batch = make_batch(3, 2)
    acks = make_acks(batch)
    batch.ack(batch[1])
    batch.ack([batch[4], batch[3]])
    assert acks.take() == [1, 3, 4]
    with pytest.raises(AckError, match="not of this batch"):
        batch.ack(copy.deepcopy(batch[0]))
    assert acks.close() == [0, 2]


@pytest.mark.parametrize(
    "given", [5, -6, True, [False, True, True], "1", "alles", None, 1.0, [0, 9], EventId(TIME, 7)]
)
def test_what_is_not_there_is_refused(given: Any) -> None:
    """What names no event of the batch is an error with a hint, and acknowledges nothing."""
    batch = make_batch(3, 2)
    acks = make_acks(batch)
    with pytest.raises(AckError) as caught:
        batch.ack(given)
    assert caught.value.hint
    assert acks.take() == []


def test_twice_does_no_harm() -> None:
    """What is acknowledged again is not counted again."""
    batch = make_batch(3)
    acks = make_acks(batch)
    batch.ack([0, 1])
    assert acks.take() == [0, 1]
    batch.ack([1, 2])
    batch.ack()
    assert acks.take() == [2]


def test_too_late_is_refused() -> None:
    """When the handler has returned an acknowledgement is an error: the event comes again."""
    batch = make_batch(3)
    acks = make_acks(batch)
    batch.ack(0)
    assert acks.close() == [1, 2]
    with pytest.raises(AckError, match="returned"):
        batch.ack(1)
    assert acks.take() == [0]


def test_ordered_acknowledges_from_the_front() -> None:
    """In ordered mode an event is refused while one before it is not acknowledged."""
    batch = make_batch(3, 2)
    acks = make_acks(batch, is_ordered=True)
    batch.ack([1, 0])
    with pytest.raises(AckError, match="event 2 "):
        batch.ack([3, 4])
    batch.ack(batch.ids[:3])
    assert acks.take() == [0, 1, 2]
    batch.ack()
    assert acks.take() == [3, 4]


def test_many_threads_acknowledge() -> None:
    """Each event is taken once, whoever acknowledges while it is taken."""
    batch = make_batch(4_000)
    acks = make_acks(batch)
    threads = [
        threading.Thread(target=lambda part=part: [batch.ack(n) for n in range(part, 4_000, 4)])
        for part in range(4)
    ]
    taken: list[int] = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += acks.take()
    taken += acks.take()
    assert sorted(taken) == list(range(4_000))


@given(
    counts=st.lists(st.integers(1, 6), max_size=6),
    chosen=st.sets(st.integers(0, 40)),
    is_decoded=st.booleans(),
)
def test_the_events_at_some_places(counts: list[int], chosen: set[int], is_decoded: bool) -> None:
    """What is picked from a batch has the events, IDs and entries of just these places."""
    batch = make_batch(*counts)
    places = sorted(place for place in chosen if place < len(batch))
    if is_decoded:
        assert len(batch.events) == len(batch)
    picked, indexes = batch.pick(places)
    assert picked.ids == [batch.ids[place] for place in places]
    assert picked.events == [batch.events[place] for place in places]
    assert [piece.id.entry for piece in picked.entries] == [
        batch.entries[index].id.entry for index in indexes
    ]
    assert [event for piece in picked.entries for event in piece.events()] == picked.events


def test_a_handler_that_cannot_acknowledge_is_refused() -> None:
    """One that gets neither a batch nor the context could acknowledge nothing."""
    for kind, handler in (
        ("each", lambda event: None),
        ("batch", _takes_a_list),
    ):
        worker = Worker(Stream("s", "redis://127.0.0.1:1"), "g")
        with pytest.raises(HandlerError, match="nothing to acknowledge with"):
            getattr(worker, kind)(handler, ack="manual")
    worker = Worker(Stream("s", "redis://127.0.0.1:1"), "g")
    with pytest.raises(HandlerError, match="ack is 'by hand'"):
        worker.batch(ack="by hand")(lambda batch: None)  # type: ignore[call-overload]


def _takes_a_list(events: list[Event]) -> None: ...


def test_without_manual_mode_it_is_refused() -> None:
    """A batch, or a context, of a handler that does not acknowledge by itself says so."""
    with pytest.raises(HandlerError, match="when its handler returns"):
        make_batch(1).ack()
    with pytest.raises(HandlerError, match="when it returns"):
        Context("s", 0, "g", EventId(TIME, 0), 1).ack()
