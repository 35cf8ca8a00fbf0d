"""What the state of a stream's groups says, and what would help. Pure.

From readings of the same stream, some seconds apart: where each group's backlog is going, what its
workers spend their time on, and so whether more workers, more handlers at a time, larger blocks or
more shards would help, or nothing is needed.

A backlog alone says little: a group with much of it may be catching up, and one with little may be
losing. So it is the direction that counts, as in Burrow
(https://github.com/linkedin/Burrow/wiki/Consumer-Lag-Evaluation-Rules), and what is delivered and
not acknowledged belongs to it as well.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from standpipe.clock import format_duration
from standpipe.limits import (
    BLOCKED_PERCENT,
    BUSY_PERCENT,
    FAILING_PERCENT,
    KEEPS_UP_MS,
    PROCESSOR_SHARERS_MAX,
    SILENT_MS_MIN,
    SPARE_PERCENT,
    STEADY_PERCENT,
    WAITING_PERCENT,
)
from standpipe.observe import GroupStatus, StreamStatus
from standpipe.worker import WorkerReport

Direction = Literal["growing", "steady", "shrinking"]
Bottleneck = Literal["cpu", "blocked", "handlers", "retries", "server", "none"]
Level = Literal["ok", "notice", "warning"]
Kind = Literal[
    "catching_up",
    "dead_consumers",
    "failing",
    "fewer_workers",
    "handler_blocks",
    "keeps_up",
    "measuring",
    "mixed_modes",
    "more_concurrency",
    "more_shards",
    "more_workers",
    "no_worker",
    "not_reported",
    "requeued",
    "retries",
    "round_trips",
    "server_bound",
    "slow_handler",
    "standing_by",
]


class Trend(msgspec.Struct, frozen=True):
    """Where a backlog is going."""

    direction: Direction | None
    """None: there is but one reading, or what waits is unknown."""
    backlog: int | None
    """Entries that are not acknowledged, delivered or not; None where that is unknown."""
    backlog_per_s: float | None
    """By how many entries it grows, or shrinks below 0."""
    added_per_s: float | None
    """Entries added to the stream."""
    done_per_s: float | None
    """Entries that the group has acknowledged."""
    behind_ms: int | None
    """Age of the oldest entry that is not acknowledged."""
    catch_up_ms: int | None
    """How long until nothing waits, if it shrinks and goes on so."""
    window_ms: int
    """Between the first reading and the last."""


class Advice(msgspec.Struct, frozen=True):
    """One thing that is so, and what would help."""

    kind: Kind
    level: Level
    seen: str
    """The evidence."""
    do: str
    """What would help; empty: nothing is needed."""


class Judgement(msgspec.Struct, frozen=True):
    """What is to be said about a group."""

    group: str
    trend: Trend
    workers: int | None
    """Those that report; None where that may not be read."""
    advice: list[Advice]


def judge(readings: Sequence[StreamStatus]) -> list[Judgement]:
    """What is to be said about each group of a stream, by name.

    Args:
        readings: Of one stream, in order of time, at least one. One alone knows no direction.
    """
    names = {group.name for shard in readings[-1].shards for group in shard.groups}
    return [_judge(_View(readings, name)) for name in sorted(names)]


# --- where a backlog is going --------------------------------------------------------------------


class Point(NamedTuple):
    """One reading of a group."""

    at: int
    """ms."""
    backlog: int | None
    behind_ms: int | None
    added: int | None
    """Entries ever added to the stream."""


def trend_of(points: Sequence[Point]) -> Trend:
    """Where a backlog is going, by its readings in order of time, at least one.

    In entries where these are known, otherwise by the age of the oldest that is not acknowledged.
    It is steady when it changes by less than STEADY_PERCENT of what comes in or is done meanwhile.
    """
    first, last = points[0], points[-1]
    seconds = (last.at - first.at) / 1000
    grows = _slope([(point.at, point.backlog) for point in points])
    ages = _slope([(point.at, point.behind_ms) for point in points])
    added = _slope([(first.at, first.added), (last.at, last.added)])
    if added is not None and added < 0:
        added = None  # The stream was deleted and has begun anew.
    done = None if added is None or grows is None else max(0.0, added - grows)
    direction: Direction | None = None
    left_ms: float | None = None
    if grows is not None and last.backlog is not None:
        # One entry more or less is what any reading may have met half-way.
        flow = max(added or 0.0, done or 0.0) or last.backlog / seconds
        noise = max(1 / seconds, flow * STEADY_PERCENT / 100)
        direction = _direction(grows, noise)
        left_ms = -1000 * last.backlog / grows if direction == "shrinking" else None
    elif ages is not None and last.behind_ms is not None:
        # In ms per s: 1000 is a group that stands still.
        direction = _direction(ages, 10 * STEADY_PERCENT)
        left_ms = -1000 * last.behind_ms / ages if direction == "shrinking" else None
    return Trend(
        direction=direction,
        backlog=last.backlog,
        backlog_per_s=_rounded(grows),
        added_per_s=_rounded(added),
        done_per_s=_rounded(done),
        behind_ms=last.behind_ms,
        catch_up_ms=None if left_ms is None else round(left_ms),
        window_ms=last.at - first.at,
    )


def _slope(points: Sequence[tuple[int, int | None]]) -> float | None:
    """By how much something grows per second; None where it is not known at every point."""
    values = [value for _, value in points if value is not None]
    if len(values) < len(points) or points[-1][0] <= points[0][0]:
        return None
    return statistics.linear_regression([at / 1000 for at, _ in points], values).slope


def _direction(slope: float, noise: float) -> Direction:
    if abs(slope) <= noise:
        return "steady"
    return "growing" if slope > 0 else "shrinking"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


# --- what a worker spends its time on ------------------------------------------------------------


def slots(report: WorkerReport) -> int | None:
    """How many handlers of a worker can be at work: in ordered mode one for each shard it owns."""
    if report.concurrency is None or report.shards is None:
        return report.concurrency
    return min(report.concurrency, len(report.shards))


def cpu_wanted(report: WorkerReport) -> float | None:
    """What a worker uses of a processor, and would have used had there been one for it."""
    if report.cpu_share is None:
        return None
    # Each of many threads waits a little for a processor whenever it wakes. Only of one that
    # computes is that the lack of one, and it gets its part of those that there are.
    waited = min(report.cpu_wait_share or 0.0, report.cpu_share * (PROCESSOR_SHARERS_MAX - 1))
    return report.cpu_share + waited


def busy_share(report: WorkerReport) -> float | None:
    """How much of a worker is taken: by its processor or by its handlers, whichever is more."""
    cpu, at_work, most = cpu_wanted(report), report.handlers, slots(report)
    if cpu is None or at_work is None or most is None:
        return None
    return max(min(cpu, 1.0), at_work / most if most else 0.0)


def bottleneck(report: WorkerReport) -> Bottleneck | None:
    """What a worker would need more of to handle more; None: it has not measured yet.

    ``cpu``: a processor of its own; it has taken one, or shares it with too many others.
    ``blocked``: its event loop, which a handler holds without computing.
    ``handlers``: calls at a time; all of them wait for something.
    ``retries``: room, for all that it holds waits to be tried again.
    ``server``: events; it waits for the server to hand them out.
    ``none``: nothing, it has time left.
    """
    cpu, at_work, waiting = cpu_wanted(report), report.handlers, report.waiting_share
    most = slots(report)
    if cpu is None or at_work is None or waiting is None or most is None:
        return None
    if cpu * 100 >= BUSY_PERCENT:
        return "cpu"
    is_crowded = (report.cpu_wait_share or 0.0) * 100 >= BLOCKED_PERCENT
    if not is_crowded and (report.blocked_share or 0.0) * 100 >= BLOCKED_PERCENT:
        return "blocked"
    if most and at_work * 100 >= most * BUSY_PERCENT:
        return "handlers"
    if waiting * 100 >= WAITING_PERCENT:
        is_full = report.in_flight is not None and report.in_flight_max is not None
        if is_full and (report.in_flight or 0) * 100 >= (report.in_flight_max or 1) * BUSY_PERCENT:
            return "retries"
        return "server"
    return "none"


# --- one group -----------------------------------------------------------------------------------


class _View:
    """One group in all readings."""

    def __init__(self, readings: Sequence[StreamStatus], name: str) -> None:
        self.name = name
        self.readings = readings
        last = readings[-1]
        self.shards = len(last.shards)
        self.parts = list(_parts(last, name))
        self.trend = trend_of([_point(reading, name) for reading in readings])
        self.lag = _sum([part.lag for part in self.parts])
        self.are_known = last.workers is not None
        self.workers = [worker for worker in last.workers or [] if worker.group == name]
        self.measured = [w for w in self.workers if bottleneck(w.report) is not None]
        self.is_ordered = any(worker.report.is_ordered for worker in self.workers)
        """As one is, all have to be."""

    def mean(
        self, what: Literal["cpu_share", "cpu_wait_share", "waiting_share", "handlers"]
    ) -> float:
        found: list[float] = [getattr(worker.report, what) or 0.0 for worker in self.measured]
        return statistics.fmean(found) if found else 0.0

    def outcomes(self) -> tuple[int, float]:
        """Calls that failed, and events that were handled, in what the workers measured."""
        reports = [worker.report for worker in self.measured]
        handled = [(each.events_per_s or 0.0) * (each.window_ms or 0) / 1000 for each in reports]
        return sum(each.failures or 0 for each in reports), sum(handled)

    def server_share(self) -> float | None:
        """How much of its processor the busiest server of the stream has used."""
        first, last = self.readings[0], self.readings[-1]
        took_ms = last.read_at - first.read_at
        if took_ms <= 0 or len(first.shards) != len(last.shards):
            return None
        used = [
            after.server_cpu_ms - before.server_cpu_ms
            for before, after in zip(first.shards, last.shards, strict=True)
            if before.server_cpu_ms is not None and after.server_cpu_ms is not None
        ]
        # Below 0 it has been started anew.
        return max(used) / took_ms if used and min(used) >= 0 else None

    def idle_processors(self) -> dict[str, float]:
        """Per machine: processors that its workers may use and nobody does, where that is known."""
        found: dict[str, float] = {}
        for report in (worker.report for worker in self.measured):
            if report.host is None or report.processors is None:
                continue
            if report.idle_processors is None:
                continue
            # Its allowance may be less than the machine, and its own use counts against it.
            room = min(
                report.idle_processors, max(0.0, report.processors - self._used(report.host))
            )
            found[report.host] = min(room, found.get(report.host, room))
        return found

    def _used(self, host: str) -> float:
        # Several workers may share a process.
        by_process = {
            w.report.pid: w.report.cpu_share or 0.0 for w in self.measured if w.report.host == host
        }
        return sum(by_process.values())


def _parts(reading: StreamStatus, name: str) -> Iterator[GroupStatus]:
    return (group for shard in reading.shards for group in shard.groups if group.name == name)


def _point(reading: StreamStatus, name: str) -> Point:
    parts = list(_parts(reading, name))
    lags = [part.lag for part in parts]
    ages = [part.behind_ms for part in parts]
    added = [shard.added for shard in reading.shards if shard.length or shard.groups]
    return Point(
        reading.read_at,
        _sum(lags, sum(part.pending for part in parts)),
        None if None in ages else max((age for age in ages if age is not None), default=0),
        _sum(added),
    )


def _sum(values: Sequence[int | None], more: int = 0) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) + more if len(known) == len(values) else None


def _judge(view: _View) -> Judgement:
    advice = [*_beside(view), *_about_load(view)]
    workers = len(view.workers) if view.are_known else None
    return Judgement(view.name, view.trend, workers, advice)


def _beside(view: _View) -> Iterator[Advice]:
    """What is so whatever the load."""
    reporting = {worker.name for worker in view.workers}
    dead = Counter(
        {
            each.name: each.pending
            for part in view.parts
            for each in part.consumers
            if each.pending and each.name not in reporting and each.idle_ms >= SILENT_MS_MIN
        }
    )
    if dead:
        some = ", ".join(sorted(dead)[:3]) + (" …" if len(dead) > 3 else "")
        yield Advice(
            "dead_consumers",
            "notice" if view.workers else "warning",
            f"{_count(len(dead), 'consumer')} not seen for {format_duration(SILENT_MS_MIN)} or "
            f"longer {_are(len(dead), 'holds', 'hold')} {sum(dead.values()):,} pending: {some}",
            "The running workers take them over once they have been idle for idle_ms_min."
            if view.workers
            else "Start a worker, which takes them over, or move them with `standpipe claim`.",
        )
    requeued = sum(part.requeued or 0 for part in view.parts)
    if requeued:
        yield Advice(
            "requeued",
            "notice",
            f"{_count(requeued, 'requeued event')} {_are(requeued, 'waits', 'wait')} or "
            f"{_are(requeued, 'is', 'are')} being handled",
            ""
            if view.workers
            else "Only a worker of this group handles what was requeued: start one.",
        )
    modes = {w.report.is_ordered for w in view.workers if w.report.is_ordered is not None}
    if len(modes) > 1:
        yield Advice(
            "mixed_modes",
            "warning",
            "some workers are ordered and others are not: the others take entries from under the "
            "owners of the shards, so no order is kept",
            "Run all workers of the group with --ordered, or none.",
        )
    failed, handled = view.outcomes()
    if failed and failed * 100 >= (failed + handled) * FAILING_PERCENT:
        yield Advice(
            "failing",
            "warning",
            f"{failed:,} handler calls failed in the last seconds, while {handled:,.0f} events "
            "were handled",
            "See the workers' log for the errors, and `standpipe dead list` for what was given up.",
        )
    if view.is_ordered and len(view.workers) > view.shards:
        idle = len(view.workers) - view.shards
        yield Advice(
            "standing_by",
            "notice",
            f"{_count(len(view.workers), 'ordered worker')} share {_count(view.shards, 'shard')}: "
            f"{idle:,} {_are(idle, 'stands', 'stand')} by",
            "",
        )


def _about_load(view: _View) -> Iterator[Advice]:
    trend = view.trend
    waits = bool(trend.backlog) or bool(trend.behind_ms)
    if not view.workers:
        if waits:
            yield _nobody_reports(view)
        return
    if len(view.measured) < len(view.workers):
        count = len(view.workers) - len(view.measured)
        yield Advice(
            "measuring",
            "ok",
            f"{_count(count, 'worker')} {_are(count, 'has', 'have')} not measured yet",
            "Look again in some seconds.",
        )
    if not view.measured:
        return
    keeps_up = trend.behind_ms is not None and trend.behind_ms <= KEEPS_UP_MS
    if trend.direction == "growing" or not keeps_up:
        yield from _about_backlog(view)
    else:
        yield from _about_calm(view)


def _nobody_reports(view: _View) -> Advice:
    silent = all(each.idle_ms >= SILENT_MS_MIN for part in view.parts for each in part.consumers)
    if view.are_known and silent:
        return Advice(
            "no_worker",
            "warning",
            f"no worker is there, and {_waiting(view.trend)}",
            "Start one with `standpipe work`, or remove the group if nobody needs it.",
        )
    return Advice(
        "not_reported",
        "notice",
        f"no worker reports, though somebody has read lately; {_waiting(view.trend)}",
        "Only workers of Standpipe report, and whoever looks has to be allowed to read it.",
    )


def _about_calm(view: _View) -> Iterator[Advice]:
    shares = [busy_share(worker.report) or 0.0 for worker in view.measured]
    count, busy = len(shares), sum(shares)
    needed = max(1, math.ceil(round(busy * 100 / SPARE_PERCENT, 6)))
    if needed < count and count == len(view.workers):
        yield Advice(
            "fewer_workers",
            "notice",
            f"{count:,} workers keep up, busy for {busy / count:.0%} of the time on average",
            f"{needed:,} would do, and one more in case one dies. This is of the last seconds: "
            "think of the peaks of the day.",
        )
    else:
        yield Advice(
            "keeps_up",
            "ok",
            f"{_count(count, 'worker')} {_are(count, 'keeps', 'keep')} up, busy for "
            f"{busy / count:.0%} of the time",
            "",
        )


def _about_backlog(view: _View) -> Iterator[Advice]:
    trend = view.trend
    if trend.direction == "shrinking" and trend.catch_up_ms is not None:
        yield Advice(
            "catching_up",
            "ok",
            f"{_waiting(trend)}, and it shrinks",
            f"Going on so, nothing waits in about {format_duration(_coarse(trend.catch_up_ms))}.",
        )
    failed, handled = view.outcomes()
    if failed > handled:
        return  # Whatever the workers are short of, there would only be more failures of it.
    found = Counter(bottleneck(worker.report) for worker in view.measured)
    ((what, count),) = found.most_common(1)
    level: Level = "warning" if trend.direction == "growing" else "notice"
    if view.is_ordered and what in ("cpu", "handlers") and len(view.workers) >= view.shards:
        yield Advice(
            "more_shards",
            level,
            "in ordered mode one handler is at work per shard, and "
            + ("the one shard has" if view.shards == 1 else f"each of {view.shards:,} shards has")
            + " a worker of its own",
            "More workers will not help. A faster handler would, or a stream with more shards.",
        )
    elif what == "cpu":
        yield _more_workers(view, level, count)
    elif what == "handlers":
        yield _more_handlers(view, level, count)
    elif what == "blocked":
        lag = max(worker.report.loop_lag_ms or 0 for worker in view.measured)
        yield Advice(
            "handler_blocks",
            level,
            f"the handler holds up the event loop of {_who(view, count)}, for {lag:,} ms at the "
            f"longest, at {view.mean('cpu_share'):.0%} CPU: it waits without `await`",
            "Make it a plain function, which runs in threads, or let it await what it waits for.",
        )
    elif what == "retries":
        yield Advice(
            "retries",
            level,
            f"{_who(view, count)} {_are(count, 'holds', 'hold')} as many events as "
            "in_flight_events_max allows, and no handler is at work: they wait to be tried again",
            "More workers will not help for long. See the log for why the handler fails; `Reject` "
            "gives up at once what cannot succeed.",
        )
    elif what == "server" and view.lag != 0:
        yield _server(view, level, count)
    else:
        yield _slow(view, level)


def _more_workers(view: _View, level: Level, count: int) -> Advice:
    trend, idle = view.trend, view.idle_processors()
    seen = (
        f"{_who(view, count)} {_are(count, 'needs', 'need')} a whole processor "
        f"({view.mean('cpu_share'):.0%} on average"
    )
    crowded = view.mean("cpu_wait_share") * 100 >= BLOCKED_PERCENT
    seen += ", as others have it for the rest of the time)" if crowded else ")"
    enough = _enough(trend, len(view.workers))
    number = "" if enough is None else f" By these rates about {enough:,} would keep up."
    free = {host: int(round(cores, 1)) for host, cores in idle.items() if round(cores, 1) >= 1}
    if free:
        where = ", ".join(f"{n:,} on {host}" for host, n in sorted(free.items()))
        do = f"More worker processes help; processors that are idle: {where}.{number}"
    elif idle:
        do = f"More worker processes help, on other machines: here no processor is idle.{number}"
    else:
        do = f"More worker processes help where a processor is idle.{number}"
    if view.is_ordered:
        do += f" In ordered mode at most {view.shards:,} have work at a time, one per shard."
    return Advice("more_workers", level, seen, do)


def _more_handlers(view: _View, level: Level, count: int) -> Advice:
    reports = [worker.report for worker in view.measured]
    cpu = view.mean("cpu_share")
    is_limited_by_shards = all(
        report.shards is not None and len(report.shards) <= (report.concurrency or 0)
        for report in reports
    )
    seen = (
        f"the handlers of {_who(view, count)} are all at work ({view.mean('handlers'):.1f} at a "
        f"time) at {cpu:.0%} CPU, so they wait for something else"
    )
    if is_limited_by_shards:
        return Advice(
            "more_shards",
            level,
            f"{seen}. In ordered mode one is at work per shard",
            "Neither more handlers nor more workers will help: a stream with more shards would, or "
            "a faster handler.",
        )
    now = max(report.concurrency or 1 for report in reports)
    # Doubling shows whether what they wait for can take more; what the processor can is known.
    most = max(2 * now, now * BUSY_PERCENT // max(1, round(100 * cpu)))
    wanted = _enough(view.trend, now)
    enough = min(most, 2 * now if wanted is None else max(now + 1, wanted))
    do = f"Raise concurrency from {now:,} to about {enough:,}, if what they wait for can take it."
    if any(report.is_batch for report in reports):
        do += " Or let each call take a larger batch."
    return Advice("more_concurrency", level, seen, do)


def _server(view: _View, level: Level, count: int) -> Advice:
    share = view.server_share()
    seen = (
        f"{_who(view, count)} {_are(count, 'waits', 'wait')} for the server for "
        f"{view.mean('waiting_share'):.0%} of the time, though there are events"
    )
    if share is not None and share * 100 < BUSY_PERCENT:
        return Advice(
            "round_trips",
            level,
            f"{seen}. The server itself is at {share:.0%} of a processor",
            "More workers will hardly help: the time goes by on the way. Larger blocks would "
            "(codec rows or columns, send_many), or workers nearer to the server.",
        )
    at = "how busy it is cannot be asked" if share is None else f"it is at {share:.0%} of one"
    return Advice(
        "server_bound",
        level,
        f"{seen}. A server executes commands on one processor, and {at}",
        "More workers will not help. Larger blocks would (codec rows or columns, send_many), or "
        "more shards, on more servers of a cluster.",
    )


def _slow(view: _View, level: Level) -> Advice:
    seen = f"{_waiting(view.trend)}, though the workers have time left"
    if view.trend.direction == "growing":
        return Advice("slow_handler", level, seen, "Look again: it may be a peak that passes.")
    return Advice(
        "slow_handler",
        "notice",
        seen,
        "Nothing is needed if single events take that long, or wait to be tried again.",
    )


def _who(view: _View, count: int) -> str:
    """So many of the workers that have measured."""
    total = len(view.measured)
    if count < total:
        return f"{count:,} of {total:,} workers"
    return "the worker" if total == 1 else f"{'both' if total == 2 else f'all {total:,}'} workers"


def _enough(trend: Trend, now: int) -> int | None:
    """How many of something would keep up that now do less than comes in; None: not known."""
    added, done = trend.added_per_s, trend.done_per_s
    if added is None or not done or trend.direction != "growing":
        return None
    return max(now + 1, math.ceil(round(now * added / done, 6)))


def _waiting(trend: Trend) -> str:
    """How much waits, and since when."""
    what = "entries wait" if trend.backlog is None else f"{_count(trend.backlog, 'entry')} "
    if trend.backlog is not None:
        what += _are(trend.backlog, "waits", "wait")
    age = trend.behind_ms
    since = "" if age is None else f", the oldest for {format_duration(_coarse(age))}"
    if trend.direction == "growing" and trend.backlog_per_s:
        return f"{what}{since}, {trend.backlog_per_s:,.0f} more each second"
    return f"{what}{since}"


def _coarse(ms: int) -> int:
    """To a precision that makes sense: 1.2 s, 43 s, 12 min."""
    step = 100 if ms < 10_000 else 1_000 if ms < 600_000 else 60_000
    return round(ms / step) * step


def _count(count: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _are(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
