"""``standpipe ack``: acknowledge entries by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.group import GroupName
from standpipe.cli.running import (
    FAILED,
    Json,
    Shard,
    StreamName,
    Url,
    command,
    print_json,
    run_async,
    settings_from,
)

if TYPE_CHECKING:
    from standpipe.groups import Settled

EXAMPLE = "Example: standpipe ack power_grid_stream storage 1700000000000-0"


@command
def ack(
    stream: StreamName,
    group: GroupName,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Entry IDs.", show_default=False)],
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Acknowledge entries, handled or not: the group is not given them again.

    An entry is acknowledged whole, with all of its events. Says of each what was done; the exit
    code is 1 if one was not pending.
    """
    from standpipe.groups import ack_entries
    from standpipe.stream import Stream

    async def run() -> list[Settled]:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await ack_entries(opened, group, ids, shard=shard)

    found = run_async(run())
    report(stream, group, found, as_json)
    if any(each.outcome != "acknowledged" for each in found):
        raise typer.Exit(FAILED)


def report(stream: str, group: str, found: list[Settled], as_json: bool) -> None:
    """Print what was done about each entry."""
    import msgspec

    from standpipe.cli.tables import lasting

    if as_json:
        print_json({"stream": stream, "group": group, "entries": msgspec.to_builtins(found)})
        return
    for each in found:
        said: str = each.outcome
        if each.outcome == "ambiguous":
            said = "pending on several shards, left alone: give --shard"
        elif each.idle_ms is not None:
            said += (
                f" (shard {each.shard}, {each.consumer}, idle {lasting(each.idle_ms)}, "
                f"deliveries {each.deliveries})"
            )
        typer.echo(f"{each.id}  {said}")
