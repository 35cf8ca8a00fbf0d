"""When to try again, how long to wait, when to give up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from standpipe.limits import RETRY_AFTER_MS, RETRY_AFTER_MS_MAX, RETRY_MS_MAX, RETRY_MS_MIN
from standpipe.policy import (
    after_failure,
    backoff_ms,
    handler_backoff_ms,
    on_takeover,
    renew_every_ms,
)


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_limits(attempt: int, drawn: float) -> None:
    """Whatever the attempt, a wait is at least half of the first and at most the longest."""
    wait = backoff_ms(attempt, draw=lambda: drawn)
    assert RETRY_MS_MIN / 2 <= wait <= RETRY_MS_MAX
    wait = handler_backoff_ms(attempt, draw=lambda: drawn)
    assert RETRY_AFTER_MS / 2 <= wait <= RETRY_AFTER_MS_MAX


def test_backoff_doubles_up_to_the_longest() -> None:
    """Without jitter the waits double until the longest is reached, and stay there."""
    waits = [backoff_ms(n, ms_min=10, ms_max=100, draw=lambda: 1.0) for n in range(1, 7)]
    assert waits == [10, 20, 40, 80, 100, 100]


def test_jitter_spreads_half_of_the_wait() -> None:
    """Jitter takes away up to half of a wait, so clients that failed together part."""
    assert backoff_ms(1, ms_min=100, draw=lambda: 0.0) == 50
    assert backoff_ms(1, ms_min=100, draw=lambda: 0.5) == 75


def test_an_event_is_tried_as_often_as_allowed() -> None:
    """A failing event is tried up to the limit, the last one included, and not once more."""
    assert [after_failure(n, 3) for n in (1, 2, 3, 4)] == ["retry", "retry", "dead", "dead"]


def test_a_takeover_gives_one_delivery_less() -> None:
    """An entry that its workers left is handed out up to the limit, then given up unhandled."""
    assert [on_takeover(n, 3) for n in (2, 3, 4)] == ["retry", "retry", "dead"]


def test_renewal_is_well_within_the_idle_time() -> None:
    """A live worker renews so often that missing it twice does no harm."""
    assert renew_every_ms(30_000, 3) == 10_000
    assert renew_every_ms(1, 3) == 1
