"""Dicts with the same names go straight to rows, and mean what the long way over Events says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe.codec import encode_rows, rows_from_dicts
from standpipe.codec.rows import _read_rows  # pyright: ignore[reportPrivateUsage]
from standpipe.errors import EventError, FieldError
from standpipe.event import Event, events_from_dicts

TIME = 1_700_000_000_000
GOOD = {"key": "meter-1", "time": TIME, "volts": 230.5}
NAMES = {"key_field": "key", "time_field": "time"}


def written(events: list[Event]) -> list[Event]:
    """What a reader gets of them."""
    return _read_rows(encode_rows(events, compress=False), len(events))


def exactly(events: list[Event]) -> str:
    """All of them, with the sign of a zero and the type of a number, fields in no order."""
    return repr([(event.key, event.time, sorted(event.fields.items())) for event in events])


def test_they_are_written_as_events_are() -> None:
    """Names that are no identifiers, in any order, under other names for key and time."""
    dicts = [
        {"ts": TIME, "flow rate": 1, "class": None, "key": "é", "id": "m1"},
        {"id": "m2", "key": b"\xff", "class": True, "flow rate": -0.5, "ts": TIME + 1},
    ]
    given_dicts = [dict(each) for each in dicts]
    rows = rows_from_dicts(dicts, key_field="id", time_field="ts")
    assert rows is not None
    assert written(rows) == [
        Event("m1", TIME, {"flow rate": 1, "class": None, "key": "é"}),
        Event("m2", TIME + 1, {"flow rate": -0.5, "class": True, "key": b"\xff"}),
    ]
    assert [row.key for row in rows] == ["m1", "m2"]
    assert dicts == given_dicts


@pytest.mark.parametrize(
    "other",
    [
        {"key": "m", "time": TIME},
        {"key": "m", "time": TIME, "amps": 1.0},
        {"key": "m", "time": TIME, "volts": 1.0, "amps": 1.0},
        {"key": "m", "volts": 1.0},
        {"key": "m", "volts": 1.0, "at": TIME},
        {**GOOD, "key": ""},
        {**GOOD, "key": 7},
        {**GOOD, "time": True},
        {**GOOD, "time": 10**15},
        {**GOOD, "time": "2026-01-31T12:00:00Z"},
        {**GOOD, "volts": math.nan},
        {**GOOD, "volts": -math.inf},
        {**GOOD, "volts": 2**63},
        {**GOOD, "volts": "NaN"},
        {**GOOD, "volts": "\ud800"},
        {**GOOD, "volts": [1.0]},
    ],
)
def test_what_differs_or_may_not_be_is_looked_at(other: dict[str, Any]) -> None:
    """One of them sends all the long way, which sends it or says what is wrong; first or last."""
    for dicts in ([GOOD, other], [other, GOOD]):
        assert rows_from_dicts(dicts, **NAMES) is None


@pytest.mark.parametrize(
    "names", [[], ["volts", ""], ["volts", 1], ["\ud800"], [f"n{n}" for n in range(2_000)]]
)
def test_names_that_no_event_has(names: list[Any]) -> None:
    """So do names that are wrong or too many, and a dict that holds no field."""
    assert rows_from_dicts([GOOD], **NAMES) is not None
    with_names: dict[Any, Any] = {"key": "m", "time": TIME} | dict.fromkeys(names, 1.0)
    assert rows_from_dicts([with_names], **NAMES) is None


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(), st.text(), st.binary()
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"key": st.text(min_size=1, max_size=3), "volts": VALUES},
            optional={"time": st.just(TIME), "amps": VALUES},
        ),
        min_size=1,
        max_size=4,
    )
)
def test_both_ways_write_the_same(dicts: list[dict[str, Any]]) -> None:
    """Whatever the short way lets pass, the long way lets pass, and a reader gets the same."""
    rows = rows_from_dicts(dicts, **NAMES)
    try:
        events = events_from_dicts(dicts, **NAMES)
    except (FieldError, EventError):
        assert rows is None
        return
    if rows is not None:
        assert exactly(written(rows)) == exactly(written(events))
