"""``standpipe pending``: what a group was given and has not acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.group import GroupName
from standpipe.cli.running import (
    Json,
    Shard,
    StreamName,
    Url,
    command,
    print_json,
    run_async,
    settings_from,
)
from standpipe.limits import PENDING_SHOWN

if TYPE_CHECKING:
    from standpipe.groups import PendingEntry, PendingReport

EXAMPLE = "Example: standpipe pending power_grid_stream storage --idle 30s --events"


@command
def pending(
    stream: StreamName,
    group: GroupName,
    consumer: Annotated[
        str | None,
        typer.Option("--consumer", "-c", help="Entries of this one alone.", show_default=False),
    ] = None,
    idle: Annotated[str, typer.Option("--idle", help="Entries idle for at least so long.")] = "0s",
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="Show so many, the oldest.")
    ] = PENDING_SHOWN,
    events: Annotated[
        bool, typer.Option("--events", help="Fetch them, to say how many events each carries.")
    ] = False,
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what a group has pending: how much each consumer, and the oldest entries one by one."""
    import msgspec

    from standpipe.clock import parse_duration
    from standpipe.groups import read_pending
    from standpipe.stream import Stream

    idle_ms_min = parse_duration(idle, name="--idle")

    async def read() -> PendingReport:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await read_pending(
                opened, group, shard=shard, consumer=consumer, idle_ms_min=idle_ms_min,
                count=count, with_events=events,
            )  # fmt: skip

    found = run_async(read())
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _print(found, events)


def _print(found: PendingReport, events: bool) -> None:
    from standpipe.cli.tables import add_columns, console, lasting, new_table
    from standpipe.groups.shards import entries

    typer.echo(f"{entries(found.pending)} of {found.stream} pending for {found.group}")
    if not found.pending:
        return
    summary = new_table(None, "consumer", "pending", texts=("consumer",))
    for each in found.consumers:
        summary.add_row(each.name, f"{each.pending:,}")
    console().print(summary)
    if not found.entries:
        return
    table = new_table(
        None, "entry", "shard", "consumer", "idle", "deliveries", texts=("entry", "consumer")
    )
    if events:
        add_columns(table, "events")
    for entry in found.entries:
        table.add_row(
            entry.id,
            str(entry.shard),
            entry.consumer,
            lasting(entry.idle_ms),
            f"{entry.deliveries:,}",
            *([_events(entry)] if events else []),
        )
    console().print(table)


def _events(entry: PendingEntry) -> str:
    if entry.is_deleted:
        return "deleted"
    return "unreadable" if entry.events is None else f"{entry.events:,}"
