"""``standpipe retain``: keep streams within their limits; or say what holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.running import (
    Idle,
    Json,
    Url,
    command,
    idle_ms,
    on_stop_signals,
    print_json,
    run_async,
    set_up_logging,
    settings_from,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from standpipe.holding import Holding, ShardHolding
    from standpipe.stream import Stream
    from standpipe.wire import Server

EXAMPLE = "Example: standpipe retain power_grid_stream --dry-run"


@command
def retain(
    streams: Annotated[
        list[str] | None,
        typer.Argument(
            help="The streams [default: all that have a definition]", show_default=False
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Let go what may go now, and end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and what holds the rest.")
    ] = False,
    idle: Idle = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Keep streams within their limits until SIGTERM or Ctrl-C, one process at a time.

    What a group has not acknowledged, or the archive does not have, stays. Workers and `standpipe
    up` do the same beside their work; this is for servers that have neither.
    """
    set_up_logging()
    settings = settings_from(url=url)
    idle_ms_min = idle_ms(idle, settings)

    async def run() -> None:
        from standpipe.errors import StandpipeError
        from standpipe.retention import find_streams
        from standpipe.stream import Stream
        from standpipe.wire import Server

        async with Server(settings.url) as server:
            if not once and not dry_run:
                await _until_stopped(server, streams)
                return
            found: list[dict[str, Any]] = []
            failed: list[StandpipeError] = []
            for name in streams or await find_streams(server):
                try:
                    async with Stream(name, server) as stream:
                        if streams:
                            await stream.require()
                        elif not await stream.exists():
                            # Defined, and not there yet.
                            continue
                        if dry_run:
                            found.append(await _look(stream, idle_ms_min, quiet=as_json))
                        else:
                            found.append(await _trim(stream, quiet=as_json))
                except StandpipeError as error:
                    if error.retryable:
                        raise
                    # It may be somebody else's key of such a name: the others come all the same.
                    failed.append(error)
                    typer.echo(f"{name}: {error.message}", err=True)
            if as_json:
                print_json({"dry_run": dry_run, "streams": found})
            elif not found:
                typer.echo("no stream of this server has limits")
            if failed:
                raise failed[0]

    run_async(run())


async def _look(stream: Stream, idle_ms_min: int, *, quiet: bool) -> dict[str, Any]:
    import msgspec

    from standpipe.holding import what_holds

    found = await what_holds(stream, idle_ms_min=idle_ms_min)
    if not quiet:
        _print(found)
    return msgspec.to_builtins(found)


async def _trim(stream: Stream, *, quiet: bool) -> dict[str, Any]:
    from standpipe.retention import Janitor

    shards = await Janitor(stream).once()
    trimmed, lost = sum(each.trimmed for each in shards), sum(each.lost for each in shards)
    if not quiet:
        more = f", {lost:,} more that the ring lets go" if lost else ""
        typer.echo(f"{stream.name}  {trimmed:,} entries have gone{more}")
    return {"stream": stream.name, "trimmed": trimmed, "lost": lost}


async def _until_stopped(server: Server, names: list[str] | None) -> None:
    """Run a janitor for each of the streams, or for all that there are."""
    import asyncio

    from standpipe.retention import Janitor, Janitors
    from standpipe.stream import Stream

    works: list[Coroutine[Any, Any, Any]]
    if not names:
        works = [Janitors(server).run()]
    else:
        opened = [await Stream(name, server).open() for name in names]
        for stream in opened:
            await stream.require()
        works = [Janitor(stream).run() for stream in opened]
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    tasks = [asyncio.create_task(work) for work in (*works, stopped.wait())]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for task in done:
        task.result()


def _print(found: Holding) -> None:
    from standpipe.cli.status import shown_size
    from standpipe.cli.stream import shown_limits
    from standpipe.cli.tables import console, new_table

    typer.echo(f"{found.stream}  {shown_limits(found)}")
    table = new_table(
        None, "shard", "key", "entries", "memory", "over the limits", "would go", texts=("key",)
    )
    for shard in found.shards:
        least = "" if shard.is_exact else "at least "
        table.add_row(
            str(shard.shard), shard.key, f"{shard.entries:,}", shown_size(shard.bytes),
            f"{shard.over:,}", f"{least}{shard.goes:,}",
        )  # fmt: skip
    console().print(table)
    for shard in found.shards:
        _print_holds(shard, is_alone=len(found.shards) == 1)
    if found.janitor is None:
        typer.echo("nobody keeps it within its limits: run a worker, or `standpipe retain`")
    else:
        typer.echo(f"kept within its limits by {found.janitor}")
    typer.echo("dry run: nothing was changed")


def _print_holds(shard: ShardHolding, *, is_alone: bool) -> None:
    where = "" if is_alone else f"{shard.key}: "
    for hold in shard.holds:
        what = "held by" if hold.is_first else "then by"
        typer.echo(f"{where}{what} {hold.seen}")
        typer.echo(f"    {hold.do}")
