"""``standpipe spool``: what waits in a producer's spool, whether it is sound, and sending it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.progress import Bar
from standpipe.cli.running import (
    FAILED,
    Json,
    Url,
    command,
    print_json,
    run_async,
    set_up_logging,
    settings_from,
)
from standpipe.cli.status import shown_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standpipe.event import Event
    from standpipe.spool import AsideBlock, SpoolReader, SpoolSummary

SHOW_EXAMPLE = "Example: standpipe spool show /var/lib/power/producer.spool --events 3"
VERIFY_EXAMPLE = "Example: standpipe spool verify /var/lib/power/producer.spool"
DRAIN_EXAMPLE = "Example: standpipe spool drain /var/lib/power/producer.spool --deadline 10m"
_ASIDE_SHOWN_MAX = 20
_EVENTS_BYTES_MAX = 64 * 1024 * 1024
"""Of blocks that are read to show events: no more than that in memory."""

app = typer.Typer(
    help="What waits in a producer's spool, whether it is sound, and sending it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SpoolPath = Annotated[Path, typer.Argument(help="The spool's file.", show_default=False)]


# --- show ----------------------------------------------------------------------------------------


@app.command("show", short_help="What waits, and what was set aside.", epilog=SHOW_EXAMPLE)
@command
def show(
    path: SpoolPath,
    events: Annotated[
        int, typer.Option("--events", min=0, max=1000, help="Print the first N events as well.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Show what waits in a spool: blocks per shard and producer, and those that were set aside.

    It changes nothing, and may be asked while a producer has the spool.
    """
    from standpipe.spool import Spool

    with Spool.open_readonly(path) as reader:
        summary = reader.summary()
        aside = reader.aside(count_max=_ASIDE_SHOWN_MAX)
        first = list(_first_events(reader, summary, events)) if events else []
    if as_json:
        print_json(_facts(path, summary, aside, first))
    else:
        _print(path, summary, aside, first)


def _first_events(reader: SpoolReader, summary: SpoolSummary, count: int) -> Iterator[Event]:
    """The first events of each shard, in the order in which they will be sent, up to a number."""
    import msgspec

    from standpipe.codec import PlainLayout
    from standpipe.stream import Definition

    known = reader.definition
    layout = msgspec.json.decode(known, type=Definition).layout if known else PlainLayout()
    for shard_key in dict.fromkeys(each.shard_key for each in summary.series):
        # Each block has an event at least.
        for block in reader.head(shard_key, bytes_max=_EVENTS_BYTES_MAX, count_max=count):
            for event in block.events(layout):
                if not count:
                    return
                count -= 1
                yield event


def _facts(
    path: Path, summary: SpoolSummary, aside: list[AsideBlock], first: list[Event]
) -> dict[str, Any]:
    import msgspec

    from standpipe.formats import to_ndjson

    return {
        "path": str(path),
        **msgspec.to_builtins(summary),
        "blocks": summary.blocks,
        "events": summary.events,
        "bytes": summary.bytes,
        "oldest_spooled_at": summary.oldest_spooled_at,
        "aside_blocks": summary.aside_blocks,
        "aside_events": summary.aside_events,
        "aside": [
            {
                "shard_key": each.block.shard_key,
                "producer_id": each.block.producer_id,
                "sequence": each.block.sequence,
                "events": each.block.count,
                "set_aside_at": each.set_aside_at,
                "reason": each.reason,
            }
            for each in aside
        ],
        "first_events": [json.loads(to_ndjson(event)) for event in first],
    }


def _print(path: Path, summary: SpoolSummary, aside: list[AsideBlock], first: list[Event]) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from standpipe.clock import format_duration, format_time, now_ms

    def age(at: int | None) -> str:
        return "-" if at is None else format_duration(max(0, now_ms() - at))

    def table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in (*left, *right):
            made.add_column(name, justify="left" if name in left else "right", overflow="fold")
        return made

    # Into a file or a pipe a line is as long as it has to be.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    say = typer.echo
    say(f"{path}: the spool of {summary.stream or 'no stream yet'}")
    say(
        f"{summary.events:,} events wait in {summary.blocks:,} blocks, "
        f"{shown_size(summary.bytes + summary.aside_bytes)} of {shown_size(summary.bytes_max)}, "
        f"{shown_size(summary.file_bytes)} on disk"
    )
    series = table("", ("shard key", "producer"), ("blocks", "events", "size", "oldest"))
    for each in summary.series:
        if each.blocks:
            oldest = age(each.oldest_spooled_at)
            numbers = (f"{each.blocks:,}", f"{each.events:,}", shown_size(each.bytes), oldest)
            series.add_row(each.shard_key, each.producer_id, *numbers)
    if series.row_count:
        console.print(series)
    if aside:
        text = f"set aside: {summary.aside_events:,} events in {summary.aside_blocks:,} blocks"
        if len(aside) < summary.aside_blocks:
            text += f", of which the first {len(aside)}"
        blocks = table(text, ("shard key", "producer", "reason"), ("block", "events", "age"))
        for each in aside:
            block = each.block
            numbers = (str(block.sequence), f"{block.count:,}", age(each.set_aside_at))
            blocks.add_row(block.shard_key, block.producer_id, each.reason, *numbers)
        console.print(blocks)
    for event in first:
        fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
        say(f"{format_time(event.time)} {event.key or '-'} {fields}")


# --- verify --------------------------------------------------------------------------------------


@app.command("verify", short_help="Look for damage.", epilog=VERIFY_EXAMPLE)
@command
def verify(path: SpoolPath, as_json: Json = False) -> None:
    """Check a spool: the file, the counters, every block; the exit code is 1 if anything is wrong.

    It reads all that is stored and changes nothing; a producer may have the spool meanwhile.
    """
    import msgspec

    from standpipe.spool import Spool

    with Spool.open_readonly(path) as reader:
        summary, findings = reader.summary(), reader.verify()
    if as_json:
        print_json(
            {
                "path": str(path),
                "blocks": summary.blocks + summary.aside_blocks,
                "findings": msgspec.to_builtins(findings),
            }
        )
    else:
        for each in findings:
            block = f"block {each.sequence} of " if each.sequence is not None else ""
            where = f"{block}producer {each.producer_id} on {each.shard_key}: "
            typer.echo(f"{each.kind}: {where if each.producer_id else ''}{each.text}")
        blocks = f"{summary.blocks + summary.aside_blocks:,} blocks"
        typer.echo(f"{path}: {blocks}, " + (f"{len(findings):,} findings" if findings else "sound"))
    if findings:
        raise typer.Exit(FAILED)


# --- drain ---------------------------------------------------------------------------------------


@app.command("drain", short_help="Send what waits.", epilog=DRAIN_EXAMPLE)
@command
def drain(
    path: SpoolPath,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            help="Give up after so long, with exit code 1 and the reason: 10m [default: never]",
            show_default=False,
        ),
    ] = None,
    acknowledge: Annotated[
        str | None, typer.Option(help="memory, fsync, replicas=N or fsync,replicas=N.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send what waits in a spool, for a producer that does not come back by itself.

    It ends when nothing waits. While a producer has the spool it refuses: that one drains it.
    Blocks that were set aside stay where they are.
    """
    from standpipe.clock import parse_duration
    from standpipe.producer import drain as drain_spool
    from standpipe.spool import Spool

    set_up_logging()
    settings = settings_from(url=url, acknowledge=acknowledge)
    deadline_ms = None if deadline is None else parse_duration(deadline, name="deadline")
    with Spool.open_readonly(path) as reader:
        before = reader.summary()
    total, text = before.events, "{task.completed:,.0f} of {task.total:,.0f} events"
    with Bar("draining", text, total=total, is_quiet=as_json) as bar:
        done = run_async(
            drain_spool(
                path,
                settings.url,
                deadline_ms=deadline_ms,
                acknowledge=settings.acknowledge,
                on_progress=lambda left: bar.update(completed=total - left.events),
            )
        )
    aside = before.aside_events + done.set_aside
    if as_json:
        print_json({"drained": done.events, "set_aside": done.set_aside, "aside_events": aside})
    else:
        typer.echo(f"drained {done.events:,} events; nothing waits in {path}")
        if aside:
            typer.echo(
                f"{aside:,} events are set aside there, {done.set_aside:,} of them now; "
                f"standpipe spool show {path} says why"
            )
    if done.set_aside:
        raise typer.Exit(FAILED)
