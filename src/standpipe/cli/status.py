"""``standpipe status``: a stream, its groups and their workers, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.memory import memory_lines, memory_of
from standpipe.cli.running import (
    Json,
    StreamName,
    Url,
    command,
    on_stop_signals,
    print_json,
    run_async,
    settings_from,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from standpipe.advice import Judgement, Trend
    from standpipe.observe import GroupStatus, MemoryWatch, StreamStatus
    from standpipe.stream import Stream

_TEXTS = ("key", "group", "consumers", "worker", "process", "handler")
_COLOURS = {"ok": "green", "notice": "yellow", "warning": "red"}

EXAMPLE = "Example: standpipe status power_grid_stream --watch --url redis://127.0.0.1:6390"


@command
def status(
    stream: StreamName,
    window: Annotated[
        str | None,
        typer.Option(
            help="Where something waits, time between the two readings that tell its direction; "
            "0s: read once [default: 2s]",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, once in each window.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show shards, groups and workers: what waits, where that is going, and what would help."""
    from standpipe.clock import parse_duration
    from standpipe.errors import ConfigError
    from standpipe.limits import STATUS_WINDOW_MS
    from standpipe.stream import Stream

    window_ms = STATUS_WINDOW_MS if window is None else parse_duration(window, name="--window")
    if watch and not window_ms:
        raise ConfigError("--watch reads once in each window", hint="Give a --window above 0s.")

    async def read() -> None:
        async with Stream(stream, settings_from(url=url).url) as opened:
            if watch:
                await _watch(opened, window_ms / 1000, as_json=as_json)
            else:
                readings = await _read(opened, window_ms / 1000)
                _show(readings, await memory_of(opened), as_json=as_json)

    run_async(read())


async def _read(stream: Stream, window_s: float) -> list[StreamStatus]:
    """One reading, and another where something waits whose direction is to be known."""
    import asyncio

    from standpipe.observe import stream_status

    readings = [await stream_status(stream)]
    groups = [group for shard in readings[0].shards for group in shard.groups]
    if window_s and any(group.behind_ms != 0 for group in groups):
        await asyncio.sleep(window_s)
        readings.append(await stream_status(stream))
    return readings


async def _watch(stream: Stream, window_s: float, *, as_json: bool) -> None:
    """A reading in each window until told to stop; judged together with the last ones."""
    import asyncio
    import contextlib
    from collections import deque

    from rich.console import Group
    from rich.live import Live

    from standpipe.cli.tables import console
    from standpipe.limits import STATUS_READINGS_MAX
    from standpipe.observe import stream_status

    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    readings: deque[StreamStatus] = deque(maxlen=STATUS_READINGS_MAX)
    # Only a terminal can be written over; elsewhere one reading follows the other.
    is_live = not as_json and console().is_terminal
    with (
        Live(console=console(), screen=True, auto_refresh=False)
        if is_live
        else (contextlib.nullcontext()) as live
    ):
        while not stopped.is_set():
            readings.append(await stream_status(stream))
            memory = await memory_of(stream)
            if live is None:
                _show(list(readings), memory, as_json=as_json)
            else:
                live.update(Group(*_rendered(list(readings), memory)), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(window_s):
                    await stopped.wait()


def _show(readings: Sequence[StreamStatus], memory: MemoryWatch | None, *, as_json: bool) -> None:
    if as_json:
        print_json(_facts(readings, memory))
        return
    from standpipe.cli.tables import console

    console().print(*_rendered(readings, memory), sep="\n")


def _facts(readings: Sequence[StreamStatus], memory: MemoryWatch | None) -> dict[str, Any]:
    import msgspec

    from standpipe.advice import judge

    more = {"groups": judge(readings), "memory": memory}
    return msgspec.to_builtins(readings[-1]) | msgspec.to_builtins(more)


# --- for people ----------------------------------------------------------------------------------


def _rendered(readings: Sequence[StreamStatus], memory: MemoryWatch | None) -> list[RenderableType]:
    from rich.text import Text

    from standpipe.advice import judge

    status = readings[-1]
    parts: list[RenderableType] = [_shards(status), *memory_lines(memory)]
    groups = _groups(status)
    if not groups.row_count:
        return [*parts, "no consumer groups"]
    parts.append(groups)
    if status.workers:
        parts.append(_workers(status))
    for judged in judge(readings):
        parts.append(Text(f"{judged.group}: {_trend(judged.trend)}", style="bold"))
        for advice in judged.advice:
            parts += [
                Text.assemble((f"  {advice.level}: ", _COLOURS[advice.level]), advice.seen),
                *([Text(f"    {advice.do}")] if advice.do else []),
            ]
        if not judged.advice:
            parts.append(Text(_no_advice(judged)))
    return parts


def _no_advice(judged: Judgement) -> str:
    if judged.workers is None:
        return "  what its workers report may not be read"
    return "  no worker reports, and nothing waits"


def _trend(trend: Trend) -> str:
    if trend.behind_ms == 0:
        return "nothing waits"
    from standpipe.cli.tables import number_or_unknown

    text = (
        f"{number_or_unknown(trend.backlog)} entries wait, the oldest for {_age(trend.behind_ms)}"
    )
    if trend.direction is None:
        return text
    text += f"; {trend.direction} over {_age(trend.window_ms)}"
    if trend.added_per_s is not None and trend.done_per_s is not None:
        text += f" ({trend.added_per_s:,.0f}/s come in, {trend.done_per_s:,.0f}/s are done)"
    return text


def _age(ms: int | None) -> str:
    from standpipe.cli.tables import lasting

    return "-" if ms is None else lasting(ms)


def _shards(status: StreamStatus) -> Table:
    from standpipe.cli.tables import add_columns, new_table
    from standpipe.event import EventId

    def since(entry_id: str | None) -> str:
        if entry_id is None:
            return "-"
        return _age(status.read_at - EventId.parse(entry_id).ms) + " ago"

    table = new_table(
        f"{status.name} on {status.url}",
        "shard", "key", "entries", "oldest", "newest", "memory", "dead",
        texts=_TEXTS,
    )  # fmt: skip
    # Only a stream with limits is trimmed, so only there the column is needed.
    is_ring = any(shard.trimmed for shard in status.shards)
    if is_ring:
        add_columns(table, "trimmed")
    for shard in status.shards:
        table.add_row(
            str(shard.shard),
            shard.key,
            f"{shard.length:,}",
            since(shard.first),
            since(shard.last),
            shown_size(shard.memory_bytes),
            f"{shard.dead:,}",
            *([f"{shard.trimmed or 0:,}"] if is_ring else []),
        )
    return table


def _groups(status: StreamStatus) -> Table:
    from standpipe.cli.tables import add_columns, new_table, number_or_unknown

    table = new_table(
        "groups",
        "group", "shard", "lag", "pending", "oldest pending", "requeued", "consumers",
        texts=_TEXTS,
    )  # fmt: skip
    is_lossy = any(group.lost for shard in status.shards for group in shard.groups)
    if is_lossy:
        add_columns(table, "lost events")
    for shard in status.shards:
        for group in shard.groups:
            table.add_row(
                group.name,
                str(shard.shard),
                number_or_unknown(group.lag),
                f"{group.pending:,}",
                _age(group.oldest_pending_ms),
                number_or_unknown(group.requeued),
                _consumers(group),
                *([number_or_unknown(group.lost)] if is_lossy else []),
            )
    return table


def _consumers(group: GroupStatus) -> str:
    rows = [
        f"{each.name}: {each.pending:,} pending, idle {_age(each.idle_ms)}"
        for each in group.consumers
    ]
    return "\n".join(rows) or "none"


def _workers(status: StreamStatus) -> Table:
    from standpipe.advice import slots
    from standpipe.cli.tables import new_table, number_or_unknown

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    def number(value: float | None, decimals: int = 0) -> str:
        return "-" if value is None else f"{value:,.{decimals}f}"

    table = new_table(
        "workers",
        "group", "worker", "process", "up", "handler", "events/s", "at work", "CPU", "waiting",
        "loop lag", "in flight", "failed",
        texts=_TEXTS,
    )  # fmt: skip
    versions = {worker.report.version for worker in status.workers or []}
    for worker in status.workers or []:
        report = worker.report
        # By two clocks, so it may be off by what these differ.
        up = None if report.since is None else status.read_at - report.since
        version = f", {report.version}" if len(versions) > 1 else ""
        owned = "" if report.shards is None else f" on {len(report.shards)} shards"
        table.add_row(
            worker.group,
            worker.name,
            f"{report.pid or '?'} on {report.host or '?'}{version}",
            _age(up),
            f"{report.handler or '?'}{owned}",
            number(report.events_per_s),
            f"{number(report.handlers, 1)} of {number_or_unknown(slots(report))}",
            share(report.cpu_share),
            share(report.waiting_share),
            _age(report.loop_lag_ms),
            number_or_unknown(report.in_flight),
            number(report.failures),
        )
    return table


def shown_size(count: int | None) -> str:
    """Bytes in the unit in which they have one to four digits."""
    if count is None:
        return "unknown"
    for power, unit in enumerate(("B", "KiB", "MiB")):
        if count < 1024 ** (power + 1):
            return f"{count / 1024**power:,.{min(power, 1)}f} {unit}"
    return f"{count / 1024**3:,.1f} GiB"
