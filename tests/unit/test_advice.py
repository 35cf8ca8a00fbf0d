"""What is said about a group follows from what was measured, and says when nothing would help."""

from __future__ import annotations

import msgspec
import pytest

from standpipe.advice import Advice, Point, bottleneck, busy_share, judge, trend_of
from standpipe.observe import ConsumerStatus, StreamStatus
from tests.advising import grows, reading, report, worker

BUSY = {"cpu_share": 0.99, "handlers": 1.0, "waiting_share": 0.0}
FULL = {"cpu_share": 0.05, "handlers": 4.0, "waiting_share": 0.0}
STARVED = {"cpu_share": 0.1, "handlers": 0.1, "waiting_share": 0.9}
BLOCKED = {"cpu_share": 0.1, "handlers": 1.0, "waiting_share": 0.0, "blocked_share": 0.8}


def advise(*readings: StreamStatus) -> list[Advice]:
    (judged,) = judge(readings)
    return judged.advice


def kinds(*readings: StreamStatus) -> list[str]:
    return [advice.kind for advice in advise(*readings)]


# --- trend ---------------------------------------------------------------------------------------


def test_trend_in_entries() -> None:
    """What comes in and what is done say where a backlog goes, and when it will be gone."""
    growing = trend_of([Point(0, 1_000, 9_000, 5_000), Point(2_000, 1_400, 10_000, 5_600)])
    assert (growing.direction, growing.backlog, growing.backlog_per_s) == ("growing", 1_400, 200)
    assert (growing.added_per_s, growing.done_per_s, growing.catch_up_ms) == (300, 100, None)
    shrinking = trend_of([Point(0, 1_400, 0, 5_000), Point(2_000, 1_000, 0, 5_600)])
    assert (shrinking.direction, shrinking.done_per_s) == ("shrinking", 500)
    assert shrinking.catch_up_ms == 5_000
    steady = trend_of([Point(0, 1_000, 0, 5_000), Point(2_000, 1_005, 0, 5_600)])
    assert (steady.direction, steady.window_ms) == ("steady", 2_000)


def test_trend_of_many_readings() -> None:
    """One reading that stands out does not turn the trend of a minute."""
    points = [Point(2_000 * n, 1_000 + 100 * n, None, 1_000 * n) for n in range(30)]
    points[-1] = points[-1]._replace(backlog=1_500)
    assert trend_of(points).direction == "growing"


def test_trend_by_age() -> None:
    """Where the entries are not known (Redis 6.2), the age of the oldest says it."""
    behind = trend_of([Point(0, None, 4_000, None), Point(2_000, None, 5_500, None)])
    assert (behind.direction, behind.backlog, behind.backlog_per_s) == ("growing", None, None)
    back = trend_of([Point(0, None, 4_000, None), Point(2_000, None, 3_000, None)])
    assert (back.direction, back.catch_up_ms) == ("shrinking", 6_000)
    assert trend_of([Point(0, None, 50, None), Point(2_000, None, 80, None)]).direction == "steady"


def test_trend_that_is_not_known() -> None:
    """One reading has no direction; a stream that began anew has no rate of what came in."""
    assert trend_of([Point(0, 10, 10, 10)]).direction is None
    assert trend_of([Point(0, 10, 10, 10)]).added_per_s is None
    assert trend_of([Point(0, None, None, None), Point(9, None, None, None)]).direction is None
    anew = trend_of([Point(0, 10, 10, 1_000), Point(2_000, 20, 10, 5)])
    assert (anew.added_per_s, anew.done_per_s) == (None, None)


# --- a worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known, expected",
    [
        (BUSY, "cpu"),
        (FULL, "handlers"),
        (STARVED, "server"),
        (BLOCKED, "blocked"),
        (STARVED | {"in_flight": 1_000}, "retries"),
        # It stands still because others have the processors, not because its handler sleeps.
        (BLOCKED | {"cpu_share": 0.3, "cpu_wait_share": 0.6}, "cpu"),
        (BLOCKED | {"cpu_wait_share": None}, "blocked"),
        (BLOCKED | {"cpu_share": 0.05, "cpu_wait_share": 0.6}, "none"),
        # Many threads that wait for something, each a little for a processor too.
        (FULL | {"cpu_wait_share": 3.0}, "handlers"),
        ({}, "none"),
        ({"window_ms": None, "cpu_share": None, "handlers": None}, None),
        ({"concurrency": None}, None),
        # In ordered mode as many handlers as it has shards are all that can be at work.
        (FULL | {"handlers": 2.0, "shards": [0, 3]}, "handlers"),
        (FULL | {"handlers": 2.0}, "none"),
        # It owns no shard, so it waits.
        (STARVED | {"handlers": 0.0, "shards": []}, "server"),
    ],
)
def test_bottleneck(known: dict[str, object], expected: str | None) -> None:
    """What a worker is short of follows from what it spent its time on."""
    assert bottleneck(report(**known)) == expected


def test_busy_share() -> None:
    """A worker is as busy as its processor or its handlers, and not more than wholly."""
    assert busy_share(report(cpu_share=3.1)) == 1
    assert busy_share(report(cpu_share=0.1, handlers=2.0)) == 0.5
    assert busy_share(report(cpu_share=0.1, handlers=0.0, shards=[])) == 0.1
    assert busy_share(report(cpu_share=None)) is None


# --- advice --------------------------------------------------------------------------------------


def test_busy_processors_want_more_workers() -> None:
    """At a whole processor each, more processes help: how many, by the rates, and where."""
    (advice,) = advise(*grows(workers=[worker(**BUSY)]))
    assert (advice.kind, advice.level) == ("more_workers", "warning")
    assert "2 on north" in advice.do and "about 3 would keep up" in advice.do
    (full,) = advise(*grows(workers=[worker(**BUSY, idle_processors=0.2)]))
    assert full.kind == "more_workers" and "no processor is idle" in full.do
    shared = BUSY | {"cpu_share": 0.3, "cpu_wait_share": 0.65, "idle_processors": 0.0}
    (crowded,) = advise(*grows(workers=[worker(**shared)]))
    assert "30% on average, as others have it" in crowded.seen
    assert "on other machines" in crowded.do
    (unknown,) = advise(*grows(workers=[worker(**BUSY, idle_processors=None)]))
    assert "where a processor is idle" in unknown.do


def test_idle_processors_are_counted_once() -> None:
    """The allowance of a process bounds what is idle, and workers of one process use it once."""
    pair = [worker("a", **BUSY, processors=2, pid=7), worker("b", **BUSY, processors=2, pid=7)]
    assert "1 on north" in advise(*grows(workers=pair))[0].do
    apart = [worker("a", **BUSY, processors=2, pid=7), worker("b", **BUSY, processors=2, pid=8)]
    assert "no processor is idle" in advise(*grows(workers=apart))[0].do


def test_waiting_handlers_want_concurrency() -> None:
    """All handlers at work and no processor used: more of them at a time, as many as are needed."""
    (advice,) = advise(*grows(workers=[worker(**FULL)]))
    assert advice.kind == "more_concurrency" and "from 4 to about 12" in advice.do
    (batch,) = advise(*grows(workers=[worker(**FULL, is_batch=True)]))
    assert "larger batch" in batch.do


def test_blocked_loop() -> None:
    """An event loop that stands still without computing is named for what it is."""
    (advice,) = advise(*grows(workers=[worker(**BLOCKED, loop_lag_ms=3_000)]))
    assert advice.kind == "handler_blocks" and "3,000 ms" in advice.seen


def test_a_busy_server_wants_no_workers() -> None:
    """Workers that wait for a server at its limit: more of them will not help."""
    (advice,) = advise(*grows(workers=[worker(**STARVED)], cpu_ms=1_900))
    assert (advice.kind, advice.level) == ("server_bound", "warning")
    assert "95%" in advice.seen and "More workers will not help" in advice.do
    (near,) = advise(*grows(workers=[worker(**STARVED)], cpu_ms=200))
    assert near.kind == "round_trips" and "10%" in near.seen
    (unknown,) = advise(*[
        msgspec.structs.replace(each, shards=[
            msgspec.structs.replace(shard, server_cpu_ms=None) for shard in each.shards
        ])
        for each in grows(workers=[worker(**STARVED)])
    ])  # fmt: skip
    assert unknown.kind == "server_bound" and "cannot be asked" in unknown.seen


def test_as_many_ordered_workers_as_shards() -> None:
    """In ordered mode a worker more than there are shards has nothing to do."""
    two = [worker(n, **BUSY, is_ordered=True, shards=[i]) for i, n in enumerate("ab")]
    (advice,) = advise(*grows(workers=two, shards=2))
    assert advice.kind == "more_shards" and "More workers will not help" in advice.do
    (helps,) = advise(*grows(workers=two, shards=3))
    assert helps.kind == "more_workers" and "at most 3" in helps.do
    three = [*two, worker("c", **STARVED, is_ordered=True, shards=[])]
    assert kinds(*grows(workers=three, shards=2)) == ["standing_by", "more_shards"]


def test_one_handler_per_shard() -> None:
    """In ordered mode more handlers at a time do not help where each shard has its one."""
    owner = worker(**FULL | {"handlers": 2.0}, is_ordered=True, shards=[0, 1])
    (advice,) = advise(*grows(workers=[owner], shards=4))
    assert advice.kind == "more_shards" and "Neither" in advice.do


def test_retries_fill_the_room() -> None:
    """A worker that holds all it may, and is at none of it, waits to try again."""
    (advice,) = advise(*grows(workers=[worker(**STARVED, in_flight=1_000)]))
    assert advice.kind == "retries"


def test_failures() -> None:
    """Many failures are said; when most calls fail, nothing else is advised."""
    some = advise(*grows(workers=[worker(**BUSY, failures=100)]))
    assert [each.kind for each in some] == ["failing", "more_workers"]
    assert kinds(*grows(workers=[worker(**BUSY, failures=900)])) == ["failing"]
    assert kinds(*grows(workers=[worker(**BUSY, failures=5)])) == ["more_workers"]


def test_fewer_would_do() -> None:
    """Workers that idle while nothing waits could be fewer; one alone could not."""
    idle = [worker(name, cpu_share=0.05, handlers=0.1) for name in "abc"]
    (advice,) = advise(reading(workers=idle))
    assert advice.kind == "fewer_workers" and advice.do.startswith("1 would do")
    assert kinds(reading(workers=idle[:1])) == ["keeps_up"]
    half = [worker(name, cpu_share=0.5) for name in "abc"]
    assert kinds(reading(workers=half)) == ["keeps_up"]


def test_catching_up() -> None:
    """A backlog that shrinks is said with the time that it takes, and what would make it less."""
    waits = dict(workers=[worker(**BUSY)], behind_ms=60_000)
    found = advise(
        reading(0, lag=1_400, added=0, **waits), reading(2_000, lag=1_000, added=600, **waits)
    )
    assert [each.kind for each in found] == ["catching_up", "more_workers"]
    assert "5.0s" in found[0].do and found[1].level == "notice"


def test_nobody_works() -> None:
    """What waits for nobody is a warning, unless somebody reads who does not report."""
    waits = dict(lag=10, behind_ms=5_000)
    dead = ConsumerStatus("gone", 0, 10**6)
    assert kinds(reading(**waits)) == ["no_worker"]
    assert kinds(reading(**waits, consumers=(dead,))) == ["no_worker"]
    assert kinds(reading(**waits, consumers=(ConsumerStatus("cli", 0, 5),))) == ["not_reported"]
    unknown = msgspec.structs.replace(reading(**waits), workers=None)
    assert kinds(unknown) == ["not_reported"]
    assert kinds(reading()) == []


def test_dead_consumers() -> None:
    """Consumers long unseen that hold something are named, and what becomes of it."""
    dead = (ConsumerStatus("gone", 7, 10**6), ConsumerStatus("empty", 0, 10**6))
    held = dict(pending=7, behind_ms=10**6, consumers=dead)
    alone = advise(reading(**held))
    assert [each.kind for each in alone] == ["dead_consumers", "no_worker"]
    assert "1 consumer " in alone[0].seen and "7 pending: gone" in alone[0].seen
    assert "standpipe claim" in alone[0].do
    # Nothing is to be had from the server, so that is not what the worker waits for.
    with_worker = advise(reading(**held, workers=[worker(**STARVED)]))
    assert [each.kind for each in with_worker] == ["dead_consumers", "slow_handler"]
    assert "take them over" in with_worker[0].do
    known = (ConsumerStatus("w", 7, 10**6),)
    assert kinds(reading(consumers=known, pending=7, workers=[worker()])) == ["keeps_up"]


def test_requeued_and_mixed() -> None:
    """Requeued events that wait are counted; workers of both modes in one group are a fault."""
    (waits,) = advise(reading(requeued=3))
    assert waits.kind == "requeued" and "3 requeued events wait" in waits.seen and waits.do
    both = [worker("a", is_ordered=True, shards=[0]), worker("b")]
    assert "mixed_modes" in kinds(reading(workers=both))


def test_before_the_first_measurement() -> None:
    """A worker that has just started is there, and nothing is said of what it is short of."""
    new = worker(window_ms=None, handlers=None, cpu_share=None, waiting_share=None)
    assert kinds(*grows(workers=[new])) == ["measuring"]


def test_time_left() -> None:
    """Slow single events are no fault: with time left nothing more is needed."""
    held = dict(pending=3, behind_ms=9_000, added=100, workers=[worker()])
    assert kinds(reading(0, **held), reading(2_000, **held)) == ["slow_handler"]
