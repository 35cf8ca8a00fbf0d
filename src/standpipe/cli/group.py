"""``standpipe group``: create, list, move and delete groups, and remove their consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.running import (
    FAILED,
    Idle,
    Json,
    Shard,
    StreamName,
    Url,
    command,
    idle_ms,
    print_json,
    run_async,
    settings_from,
)
from standpipe.limits import MOVE_COUNT_MAX

if TYPE_CHECKING:
    from standpipe.groups import Created, Deleted, Moved, Removed, ShardGroup

EXAMPLE = "Example: standpipe group set power_grid_stream storage --to -2h --dry-run"

app = typer.Typer(
    help="Consumer groups by hand: create, list, move, delete, remove a consumer.",
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode=None,
)

GroupName = Annotated[str, typer.Argument(help="The consumer group.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, only count.")]
_POINT = "begin, end (what comes from now on), an entry ID, or a time: -2h, 2026-01-31T12:00:00Z"


@app.command("create", short_help="Create a group on all shards.")
@command
def create(
    stream: StreamName,
    group: GroupName,
    start: Annotated[
        str, typer.Option("--from", help=f"What it is given first: {_POINT}.")
    ] = "begin",
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Create a group. As with a worker's, shards that are not there yet are created, empty.

    Where it stands already it is left as it is, said, and the exit code is 1.
    """
    import msgspec

    from standpipe.groups import create_group
    from standpipe.stream import Stream

    async def run() -> list[Created]:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await create_group(opened, group, start, shard=shard)

    found = run_async(run())
    if as_json:
        print_json({"stream": stream, "group": group, "shards": msgspec.to_builtins(found)})
    else:
        for each in found:
            note = " (the stream was not there: created, empty)" if each.is_new_stream else ""
            said = "created" if each.outcome == "created" else "exists already, left as it is"
            typer.echo(f"{each.key}  {group}  {said}{note}")
    if any(each.outcome == "exists" for each in found):
        raise typer.Exit(FAILED)


@app.command("list", short_help="Groups with lag, pending and consumers.")
@command
def list_(stream: StreamName, shard: Shard = None, url: Url = None, as_json: Json = False) -> None:
    """List the groups of a stream, shard by shard, with their consumers."""
    import msgspec

    from standpipe.groups import list_groups
    from standpipe.stream import Stream

    async def run() -> list[ShardGroup]:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await list_groups(opened, shard=shard)

    found = run_async(run())
    if as_json:
        print_json({"stream": stream, "groups": msgspec.to_builtins(found)})
    else:
        _print_groups(found)


def _print_groups(found: list[ShardGroup]) -> None:
    from standpipe.cli.tables import console, lasting, new_table, number_or_unknown

    if not found:
        typer.echo("no consumer groups")
        return
    table = new_table(
        None, "group", "shard", "lag", "pending", "oldest pending", "last delivered", "consumers",
        texts=("group", "consumers"),
    )  # fmt: skip
    for each in found:
        oldest = each.oldest_pending_ms
        consumers = [
            f"{one.name}: {one.pending:,} pending, idle {lasting(one.idle_ms)}"
            for one in each.consumers
        ]
        table.add_row(
            each.name,
            str(each.shard),
            number_or_unknown(each.lag),
            f"{each.pending:,}",
            "-" if oldest is None else lasting(oldest),
            each.last_delivered,
            "\n".join(consumers) or "none",
        )
    console().print(table)


@app.command("set", short_help="Move a group, counting what that skips or repeats.", epilog=EXAMPLE)
@command
def set_(
    stream: StreamName,
    group: GroupName,
    to: Annotated[
        str,
        typer.Option("--to", help=f"What it is given next: {_POINT}.", show_default=False),
    ],
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Also under consumers at work.")] = False,
    from_oldest: Annotated[
        bool, typer.Option("--from-oldest", help="To the oldest there is, if --to is older.")
    ] = False,
    idle: Idle = None,
    count_max: Annotated[
        int, typer.Option("--count-max", min=1, help="Count so many entries of a shard, at most.")
    ] = MOVE_COUNT_MAX,
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Move a group. Refuses while consumers are at work, and to go back to what is not kept.

    Says how many entries, and events in them, that skips or delivers again; where they are many, as
    an estimate ("about") or a lower bound ("at least"). What is pending stays pending.
    """
    import msgspec

    from standpipe.event import EventId
    from standpipe.groups import move_group
    from standpipe.groups.shards import entries
    from standpipe.reader import shown_point
    from standpipe.stream import Stream

    settings = settings_from(url=url)

    async def run() -> list[Moved]:
        async with Stream(stream, settings.url) as opened:
            return await move_group(
                opened, group, to, shard=shard, active_ms=idle_ms(idle, settings),
                count_max=count_max, dry_run=dry_run, force=force, from_oldest=from_oldest,
            )  # fmt: skip

    found = run_async(run())
    if as_json:
        shards: Any = msgspec.to_builtins(found)
        print_json({"stream": stream, "group": group, "dry_run": dry_run, "shards": shards})
        return
    would = "would be " if dry_run else ""
    for each in found:
        least = "" if each.is_exact else "at least "
        what = "delivered again" if each.again else "skipped"
        count = each.again or each.skipped
        said = f"{least}{entries(count)} {would}{what}"
        if count:
            words = {"exact": "", "estimated": "about ", "at least": "at least "}
            events = each.again_events or each.skipped_events
            noun = "event" if events == 1 else "events"
            said += f" ({words[each.events_are]}{events:,} {noun})"
        typer.echo(f"{each.key}  {each.before} -> {each.after}  {said}")
        if each.pending:
            more = ", those behind the point delivered again as well" if each.again else ""
            typer.echo(f"  {entries(each.pending)} pending: they stay so{more}")
        if each.lacks:
            kept = "nothing" if each.oldest is None else shown_point(EventId.parse(each.oldest))
            typer.echo(f"  older than what is kept: entries were trimmed, it begins at {kept}")
    if dry_run:
        typer.echo("dry run: nothing was changed")


@app.command("delete", short_help="Delete a group that has nothing left to handle.")
@command
def delete(
    stream: StreamName,
    group: GroupName,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also with entries pending or not delivered.")
    ] = False,
    idle: Idle = None,
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Delete a group; the entries stay. Refuses while entries are pending or not delivered, while
    that is not known, and while consumers are at work.
    """
    import msgspec

    from standpipe.groups import delete_group
    from standpipe.groups.shards import entries
    from standpipe.stream import Stream

    settings = settings_from(url=url)

    async def run() -> list[Deleted]:
        async with Stream(stream, settings.url) as opened:
            return await delete_group(
                opened, group, shard=shard, active_ms=idle_ms(idle, settings),
                dry_run=dry_run, force=force,
            )  # fmt: skip

    found = run_async(run())
    if as_json:
        shards: Any = msgspec.to_builtins(found)
        print_json({"stream": stream, "group": group, "dry_run": dry_run, "shards": shards})
    else:
        from standpipe.cli.tables import number_or_unknown

        words = {
            "deleted": "deleted, with",
            "kept": "would be deleted, with",
            "changed": "read from meanwhile and kept; it had",
        }
        for each in found:
            typer.echo(
                f"{each.key}  {group}  {words[each.outcome]} {entries(each.pending)} pending, "
                f"{number_or_unknown(each.lag)} not delivered"
                + (f", requeued dead letters: {each.requeued:,}" if each.requeued else "")
            )
    if any(each.outcome == "changed" for each in found):
        raise typer.Exit(FAILED)


@app.command("remove-consumer", short_help="Remove a consumer that has nothing pending.")
@command
def remove_consumer(
    stream: StreamName,
    group: GroupName,
    consumer: Annotated[str, typer.Argument(help="The consumer's name.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also if it is at work.")] = False,
    idle: Idle = None,
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove a consumer from its group. Never while it has entries pending: claim them first."""
    import msgspec

    from standpipe import groups
    from standpipe.stream import Stream

    settings = settings_from(url=url)

    async def run() -> list[Removed]:
        async with Stream(stream, settings.url) as opened:
            return await groups.remove_consumer(
                opened, group, consumer, shard=shard, active_ms=idle_ms(idle, settings), force=force
            )

    found = run_async(run())
    if as_json:
        shards: Any = msgspec.to_builtins(found)
        print_json({"stream": stream, "group": group, "consumer": consumer, "shards": shards})
    else:
        words = {
            "removed": "removed",
            "absent": "was not there",
            "pending": "was given entries meanwhile, kept",
            "active": "came back to work meanwhile, kept",
        }
        for each in found:
            typer.echo(f"{each.key}  {consumer}  {words[each.outcome]}")
    if any(each.outcome in ("pending", "active") for each in found):
        raise typer.Exit(FAILED)
