"""What is said about a group, whatever its state, and of a queue whose rates are known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from standpipe.advice import Point, bottleneck, judge, trend_of
from standpipe.observe import ConsumerStatus, StreamStatus, WorkerStatus
from tests.advising import reading, worker

shares = st.none() | st.floats(0, 1)
counts = st.none() | st.integers(0, 10**6)


@st.composite
def workers(draw: st.DrawFn) -> list[WorkerStatus]:
    return [
        worker(
            f"w{n}",
            pid=draw(st.none() | st.integers(1, 3)),
            host=draw(st.none() | st.sampled_from(["north", "south"])),
            concurrency=draw(st.none() | st.integers(1, 64)),
            shards=draw(st.none() | st.lists(st.integers(0, 3), unique=True)),
            is_ordered=draw(st.none() | st.booleans()),
            is_batch=draw(st.none() | st.booleans()),
            processors=draw(st.none() | st.integers(1, 8)),
            in_flight=draw(counts),
            in_flight_max=draw(st.none() | st.integers(1, 10**6)),
            window_ms=draw(st.none() | st.integers(1, 10**4)),
            events_per_s=draw(st.none() | st.floats(0, 10**6)),
            handlers=draw(st.none() | st.floats(0, 64)),
            waiting_share=draw(shares),
            cpu_share=draw(st.none() | st.floats(0, 8)),
            cpu_wait_share=draw(shares),
            loop_lag_ms=draw(counts),
            blocked_share=draw(shares),
            idle_processors=draw(st.none() | st.floats(0, 64)),
            failures=draw(counts),
        )
        for n in range(draw(st.integers(0, 3)))
    ]


@st.composite
def states(draw: st.DrawFn) -> list[StreamStatus]:
    shards, at, found = draw(st.integers(1, 4)), 0, []
    for _ in range(draw(st.integers(1, 4))):
        consumers = st.lists(
            st.builds(
                ConsumerStatus,
                st.sampled_from(["w0", "x", "y"]),
                st.integers(0, 9),
                st.integers(0, 10**7),
            ),
            max_size=3,
        )
        found.append(
            reading(
                at,
                lag=draw(counts),
                pending=draw(st.integers(0, 10**4)),
                behind_ms=draw(counts),
                added=draw(counts),
                requeued=draw(st.integers(0, 5)),
                consumers=tuple(draw(consumers)),
                workers=draw(workers()),
                shards=shards,
                server_cpu_ms=draw(counts),
            )
        )
        at += draw(st.integers(0, 5_000))
    return found


@given(states())
def test_whatever_the_state(readings: list[StreamStatus]) -> None:
    """There is an answer to any state, none contradicts another, and each has its evidence."""
    (judged,) = judge(readings)
    last = readings[-1]
    assert last.workers is not None
    found = [advice.kind for advice in judged.advice]
    assert len(found) == len(set(found))
    assert all(advice.seen for advice in judged.advice)
    # Of what would help with the load there is one answer.
    load = {"more_workers", "more_concurrency", "more_shards", "server_bound", "round_trips",
            "handler_blocks", "retries", "slow_handler", "fewer_workers", "keeps_up",
            "no_worker", "not_reported"}  # fmt: skip
    assert len(load & set(found)) <= 1
    short_of = [bottleneck(each.report) for each in last.workers]
    ordered = any(each.report.is_ordered for each in last.workers)
    if "more_workers" in found:
        assert "cpu" in short_of
        assert not (ordered and len(last.workers) >= len(last.shards))
    if "fewer_workers" in found:
        assert len(last.workers) > 1 and judged.trend.direction != "growing"
    if "more_concurrency" in found:
        assert "handlers" in short_of
    if {"server_bound", "round_trips"} & set(found):
        assert "server" in short_of
    if last.workers and any(short_of):
        assert "no_worker" not in found and "not_reported" not in found


@given(
    start=st.integers(0, 10**6),
    comes_in=st.integers(10, 10**5),
    done=st.integers(10, 10**5),
    readings=st.integers(2, 30),
    every_ms=st.integers(500, 5_000),
    age_ms=st.none() | st.integers(0, 10**6),
)
def test_a_queue_of_known_rates(
    start: int, comes_in: int, done: int, readings: int, every_ms: int, age_ms: int | None
) -> None:
    """The direction is that of the rates, the rates are found again, and so is the end."""
    # It must not run dry in the window: then the rates are not what they were.
    start += done * readings * every_ms // 1000
    points = [
        Point(at, start + round((comes_in - done) * at / 1000), age_ms, round(comes_in * at / 1000))
        for at in range(0, readings * every_ms, every_ms)
    ]
    trend = trend_of(points)
    difference = comes_in - done
    if abs(difference) > 0.06 * max(comes_in, done) + 3:
        assert trend.direction == ("growing" if difference > 0 else "shrinking")
    if abs(difference) < 0.04 * max(comes_in, done):
        assert trend.direction == "steady"
    assert trend.added_per_s is not None and abs(trend.added_per_s - comes_in) < 3
    assert trend.done_per_s is not None and abs(trend.done_per_s - done) < 6
    if trend.catch_up_ms is not None and abs(difference) > 100:
        expected = 1000 * points[-1].backlog / -difference  # type: ignore[operator]
        assert abs(trend.catch_up_ms - expected) <= 0.1 * expected + 10
