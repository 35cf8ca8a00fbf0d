"""``standpipe claim``: give pending entries to another consumer by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.ack import report
from standpipe.cli.group import GroupName
from standpipe.cli.running import (
    FAILED,
    Idle,
    Json,
    Shard,
    StreamName,
    Url,
    command,
    idle_ms,
    run_async,
    settings_from,
)

if TYPE_CHECKING:
    from standpipe.groups import Settled

EXAMPLE = "Example: standpipe claim power_grid_stream storage --to worker_02 --from worker_01"


@command
def claim(
    stream: StreamName,
    group: GroupName,
    to: Annotated[
        str, typer.Option("--to", help="The consumer that gets them.", show_default=False)
    ],
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID", help="Entry IDs [default: all that are idle]", show_default=False
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option("--from", help="Only what this consumer has.", show_default=False),
    ] = None,
    idle: Idle = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Without IDs: so many, at most.")
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="--to may be a consumer that is not there yet.")
    ] = False,
    shard: Shard = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make pending entries another consumer's, if they have been idle for long enough.

    That is no delivery: their counts stay. Says of each what was done; the exit code is 1 if one
    was not claimed.
    """
    from standpipe.groups import claim_entries, claim_idle
    from standpipe.stream import Stream

    settings = settings_from(url=url)
    idle_ms_min = idle_ms(idle, settings)

    async def run() -> list[Settled]:
        async with Stream(stream, settings.url) as opened:
            if ids:
                return await claim_entries(
                    opened, group, to, ids, owner=owner, idle_ms_min=idle_ms_min,
                    shard=shard, create=create,
                )  # fmt: skip
            return await claim_idle(
                opened, group, to, owner=owner, idle_ms_min=idle_ms_min,
                shard=shard, count=count, create=create,
            )  # fmt: skip

    found = run_async(run())
    report(stream, group, found, as_json)
    if not found and not as_json:
        typer.echo("nothing has been idle for so long")
    if any(each.outcome != "claimed" for each in found):
        raise typer.Exit(FAILED)
