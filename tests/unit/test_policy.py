"""When something is tried again and when it is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe.limits import (
    IDLE_MS_MIN,
    RENEWALS_PER_IDLE,
    RETRY_AFTER_MS,
    RETRY_AFTER_MS_MAX,
    RETRY_MS_MAX,
    RETRY_MS_MIN,
)
from standpipe.policy import (
    after_failure,
    backoff_ms,
    handler_backoff_ms,
    on_takeover,
    renew_every_ms,
)


def test_backoff_doubles_to_its_limit() -> None:
    """Without jitter's part each wait is twice the last, until the longest is reached."""
    waits = [
        backoff_ms(attempt, ms_min=20, ms_max=2_000, draw=lambda: 1) for attempt in range(1, 10)
    ]
    assert waits == [20, 40, 80, 160, 320, 640, 1_280, 2_000, 2_000]


@given(attempt=st.integers(1, 10**6), draw=st.floats(0, 1, exclude_max=True))
def test_backoff_is_between_half_and_whole(attempt: int, draw: float) -> None:
    """Half of a wait is jitter: it is never none, never above the limit, and costs nothing to
    compute after however long an outage."""
    whole = backoff_ms(attempt, draw=lambda: 1)
    assert RETRY_MS_MIN <= whole <= RETRY_MS_MAX
    assert whole // 2 <= backoff_ms(attempt, draw=lambda: draw) <= whole


def test_backoff_spreads() -> None:
    """Those who failed together do not come back together."""
    assert len({backoff_ms(8) for _ in range(100)}) > 20


def test_handlers_wait_longer() -> None:
    """A failing handler is given more time than a failing connection."""
    assert handler_backoff_ms(1, draw=lambda: 0) == RETRY_AFTER_MS // 2
    assert handler_backoff_ms(50, draw=lambda: 1) == RETRY_AFTER_MS_MAX


@pytest.mark.parametrize("deliveries_max", [1, 5])
def test_failing_event_is_given_up(deliveries_max: int) -> None:
    """An event whose handler fails is handled just so often as it is allowed to be delivered."""
    verdicts = [after_failure(n, deliveries_max) for n in range(1, deliveries_max + 2)]
    assert verdicts == ["retry"] * (deliveries_max - 1) + ["dead"] * 2


@pytest.mark.parametrize("deliveries_max", [2, 5])
def test_entry_that_kills_its_workers_is_given_up(deliveries_max: int) -> None:
    """An entry that has been begun as often as it may, and never reported, is not begun again."""
    verdicts = [on_takeover(n, deliveries_max) for n in range(1, deliveries_max + 2)]
    assert verdicts == ["retry"] * deliveries_max + ["dead"]


def test_one_delivery_says_nothing_against_an_entry() -> None:
    """What was read once may never have been begun: it is handled, even if once is the limit."""
    assert [on_takeover(n, 1) for n in (1, 2, 3)] == ["retry", "retry", "dead"]


@given(idle_ms=st.integers(1, 10**9), renewals=st.integers(1, 100))
def test_renewing_in_time(idle_ms: int, renewals: int) -> None:
    """What is held is renewed so often within the idle time as was asked, and never without a
    pause."""
    every = renew_every_ms(idle_ms, renewals)
    assert every >= 1
    assert every == 1 or every * renewals <= idle_ms


def test_renewals_may_fail() -> None:
    """By default two renewals may fail before a live worker is taken for dead."""
    assert 3 * renew_every_ms(IDLE_MS_MIN, RENEWALS_PER_IDLE) <= IDLE_MS_MIN
