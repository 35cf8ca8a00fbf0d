"""``standpipe archive``: a stream's events in Parquet files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.running import (
    FAILED,
    Json,
    StreamName,
    Url,
    command,
    on_stop_signals,
    print_json,
    run_async,
    set_up_logging,
    settings_from,
)
from standpipe.errors import ConfigError

if TYPE_CHECKING:
    from standpipe.archive import Archive, ArchivedShard, ArchiverStats, Verified
    from standpipe.config import Settings

EXAMPLE = "Example: standpipe archive run power_grid_stream --to archive --follow"

app = typer.Typer(
    help="Keep a stream's events in Parquet files, in a folder or behind any fsspec URL.",
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Place = Annotated[
    str | None,
    typer.Option(
        "--to",
        "--archive",
        help="The archive: a folder, or a URL such as s3://bucket/readings "
        "[default: STANDPIPE_ARCHIVE, or archive in standpipe.toml]",
        show_default=False,
    ),
]


@app.command("run", short_help="Archive what is new.", epilog=EXAMPLE)
@command
def run(
    stream: StreamName,
    to: Place = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="End when all that is there now is archived: the default."),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until stopped.")
    ] = False,
    every: Annotated[
        str, typer.Option("--every", help="With --follow: how often what is new is archived.")
    ] = "60s",
    merge: Annotated[
        bool,
        typer.Option("--merge/--no-merge", help="Put the files of an hour that is over together."),
    ] = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Archive a stream: its events go to Parquet files, each event once, whatever dies.

    From the first run on nothing is trimmed from the stream before it is archived, until
    `standpipe archive detach`. Several of these may run at once; each shard is one's at a time.
    """
    from standpipe.archive import Archiver
    from standpipe.clock import parse_duration
    from standpipe.stream import Stream

    if once and follow:
        raise ConfigError("--once is given with --follow", hint="Give one of the two.")
    set_up_logging()
    settings = settings_from(url=url, archive=to)
    archive = _open(settings)
    every_ms = parse_duration(every, name="--every")

    async def go_on() -> ArchiverStats:
        archiver = Archiver(Stream(stream, settings.url), archive, every_ms=every_ms, merge=merge)
        on_stop_signals(archiver.stop)
        async with archiver.stream:
            return await archiver.run(follow=follow)

    done = run_async(go_on())
    if as_json:
        import msgspec

        print_json({"stream": stream, "archive": archive.place.shown, **msgspec.to_builtins(done)})
        return
    undecodable = f", {done.undecodable:,} of them undecodable" if done.undecodable else ""
    merged = f"; {done.merged:,} files put together" if done.merged else ""
    typer.echo(
        f"archived {done.events:,} events of {done.entries:,} entries{undecodable} in "
        f"{done.files:,} files, {done.bytes:,} bytes{merged}"
    )


@app.command(
    "status",
    short_help="How far the archive is.",
    epilog="Example: standpipe archive status power_grid_stream --to archive",
)
@command
def status(stream: StreamName, to: Place = None, url: Url = None, as_json: Json = False) -> None:
    """Show, per shard, what is archived, what is not yet, and who archives it."""
    from standpipe.archive import status as read_status
    from standpipe.stream import Stream

    settings = settings_from(url=url, archive=to)
    archive = _open(settings)

    async def read() -> list[ArchivedShard]:
        async with Stream(stream, settings.url) as opened:
            await opened.require()
            return await read_status(archive, opened)

    found = run_async(read())
    if as_json:
        import msgspec

        shards = msgspec.to_builtins(found)
        print_json({"stream": stream, "archive": archive.place.shown, "shards": shards})
        return
    _print_status(archive, stream, found)


def _print_status(archive: Archive, stream: str, found: list[ArchivedShard]) -> None:
    from rich.console import Console

    from standpipe.cli.tables import new_table
    from standpipe.clock import format_duration, format_time

    def when(entry: str | None) -> str:
        return "-" if entry is None else format_time(int(entry.partition("-")[0]))[:19]

    table = new_table(
        f"stream {stream} in {archive.place.shown}",
        "shard", "files", "from", "to", "behind", "not yet", "cursor", "archived by",
        texts=("from", "to", "cursor", "archived by"),
    )  # fmt: skip
    for each in found:
        table.add_row(
            str(each.shard),
            f"{each.files:,}",
            when(each.first),
            when(each.last),
            "-" if each.behind_ms is None else format_duration(each.behind_ms),
            f"{'at least ' if each.is_at_least else ''}{each.not_yet:,}",
            each.cursor or "none",
            each.owner or "-",
        )
    Console(soft_wrap=True).print(table)
    for each in found:
        if each.gaps:
            typer.echo(f"shard {each.shard}: {each.gaps} gaps; standpipe archive verify names them")
        if each.cursor is None and each.files:
            typer.echo(
                f"shard {each.shard} has no cursor: trimming does not wait for the archive until "
                "standpipe archive run"
            )


@app.command(
    "verify",
    short_help="Look for gaps, overlaps and damage.",
    epilog="Example: standpipe archive verify power_grid_stream --to archive",
)
@command
def verify(
    stream: StreamName,
    to: Place = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Ask no server; missing last files do not show.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Check every file of a stream's archive, and compare it with what the server still has.

    The exit code is 1 if anything is wrong.
    """
    from standpipe.archive import verify as look
    from standpipe.stream import Stream

    settings = settings_from(url=url, archive=to)
    archive = _open(settings)

    async def check() -> Verified:
        if files_only:
            return await look(archive, stream)
        async with Stream(stream, settings.url) as opened:
            return await look(archive, stream, opened)

    found = run_async(check())
    if as_json:
        import msgspec

        print_json(
            {
                "stream": stream,
                "archive": archive.place.shown,
                "is_sound": found.is_sound,
                **msgspec.to_builtins(found),
            }
        )
    else:
        for each in found.findings:
            where = "" if each.shard is None else f"shard {each.shard}: "
            typer.echo(f"{each.kind}: {where}{each.path + ': ' if each.path else ''}{each.text}")
        if found.omitted:
            typer.echo(f"and {found.omitted:,} findings more")
        wrong = sum(not each.is_harmless for each in found.findings) + found.omitted
        compared = "" if files_only else f", {found.live_entries:,} entries of the server compared"
        typer.echo(
            f"{found.files:,} files, {found.entries:,} entries, {found.events:,} events"
            f"{compared}: " + (f"{wrong:,} findings" if wrong else "sound")
        )
    if not found.is_sound:
        raise typer.Exit(FAILED)


@app.command(
    "compact",
    short_help="Put small files together.",
    epilog="Example: standpipe archive compact power_grid_stream --to archive",
)
@command
def compact(
    stream: StreamName,
    to: Place = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Those of the newest hour as well, which still gets more."),
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Put the small files of each hour together; readers meet the old or the new ones, never both.

    `standpipe archive run` does it by itself for hours that are over.
    """
    from standpipe.archive import Archiver
    from standpipe.stream import Stream

    set_up_logging()
    settings = settings_from(url=url, archive=to)
    archive = _open(settings)

    async def put_together() -> tuple[int, int]:
        async with Stream(stream, settings.url) as opened:
            merged = await Archiver(opened, archive).merge(everything=everything)
        return merged, len(archive.files(stream))

    merged, files = run_async(put_together())
    if as_json:
        print_json({"stream": stream, "merged": merged, "files": files})
    else:
        typer.echo(f"{merged:,} files put together; there are {files:,} now")


@app.command(
    "files",
    short_help="The files, for other programs.",
    epilog="Example: standpipe archive files power_grid_stream --to archive",
)
@command
def files(stream: StreamName, to: Place = None, as_json: Json = False) -> None:
    """Print the path of each file that counts, in order: what DuckDB or polars are to read.

    A folder can hold more for a moment: the parts of a file that was put together from them.
    """
    archive = _open(settings_from(archive=to))
    paths = [archive.path(file) for file in archive.files(stream)]
    if as_json:
        print_json({"stream": stream, "files": paths})
    else:
        for path in paths:
            typer.echo(path)


@app.command(
    "detach",
    short_help="Let trimming go on without the archive.",
    epilog="Example: standpipe archive detach power_grid_stream --yes",
)
@command
def detach(
    stream: StreamName,
    yes: Annotated[bool, typer.Option("--yes", help="It is meant.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while the stream is being archived.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove a stream's archive cursors, so that trimming waits for the archive no more.

    What is trimmed from then on without having been archived is lost to the archive. The files
    stay; the next `standpipe archive run` goes on where they end.
    """
    from standpipe.archive import detach as let_go
    from standpipe.stream import Stream

    if not yes:
        raise ConfigError(
            f"stream {stream!r} would be trimmed without being archived",
            hint="Say that it is meant with --yes.",
        )

    async def remove() -> list[tuple[int, str]]:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await let_go(opened, force=force)

    removed = run_async(remove())
    if as_json:
        shards = [{"shard": shard, "cursor": at} for shard, at in removed]
        print_json({"stream": stream, "detached": shards})
        return
    for shard, at in removed:
        typer.echo(f"shard {shard} detached: archived up to {at}")
    if not removed:
        typer.echo(f"stream {stream} has no archive cursor")
    else:
        typer.echo(
            "warning: what is trimmed from now on is in no archive, unless it was archived already",
            err=True,
        )


def _open(settings: Settings) -> Archive:
    from standpipe.archive import Archive

    if settings.archive is None:
        raise ConfigError(
            "no archive is named",
            hint="Give --to FOLDER or URL, or set archive in standpipe.toml or STANDPIPE_ARCHIVE.",
        )
    return Archive(settings.archive)
