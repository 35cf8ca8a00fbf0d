"""``standpipe send``: readings from a file or standard input into a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.running import (
    FAILED,
    Json,
    StreamName,
    Url,
    command,
    print_json,
    run_async,
    set_up_logging,
    settings_from,
)

if TYPE_CHECKING:
    from standpipe.cli.sending import Counts

EXAMPLE = "Example: standpipe send power_grid_stream readings.csv --key-field meter --null NaN"
IN_SPOOL = 3
"""The exit code when everything is safe, but some of it waits in the spool."""


@command
def send(
    stream: StreamName,
    file: Annotated[
        str, typer.Argument(help="A file (also .gz, .zst), or - for standard input.")
    ] = "-",
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-F",
            help="ndjson, csv, parquet or line (InfluxDB line protocol) [default: by the suffix]",
            show_default=False,
        ),
    ] = None,
    key_field: Annotated[
        str | None,
        typer.Option(
            "--key-field", help="What holds the device id [default: key]", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The device id of readings that have none.", show_default=False),
    ] = None,
    time_field: Annotated[
        str | None,
        typer.Option(
            "--time-field", help="What holds the time; '' if nothing does: then it is now."
        ),
    ] = "time",
    time_precision: Annotated[
        str | None,
        typer.Option(
            "--time-precision",
            help="Unit of times that are numbers: s, ms, us, ns [default: ms; line protocol: ns]",
            show_default=False,
        ),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option("--null", help="A value that stands for a missing reading; may be repeated."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="A field not to send; may be repeated."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A CSV column that stays text; may be repeated."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter", help="Of CSV [default: found in the header]", show_default=False
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option("--rejects", help="Write the bad lines to this new file.", show_default=False),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option("--shards", help="Shards of a new stream [default: 1]", show_default=False),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            help="plain, rows or columns [default: the stream's; rows for a new one]",
            show_default=False,
        ),
    ] = None,
    max_len: Annotated[int | None, typer.Option(help="Entries of a new stream, at most.")] = None,
    max_bytes: Annotated[str | None, typer.Option(help="Bytes of a new stream, at most.")] = None,
    max_age: Annotated[str | None, typer.Option(help="Age of its entries, at most: 7d.")] = None,
    when_full: Annotated[
        str | None, typer.Option(help="block, or ring: a new stream drops its oldest then.")
    ] = None,
    event_bytes_max: Annotated[
        str | None, typer.Option(help="Refuse larger events; 64KiB.")
    ] = None,
    block_events_max: Annotated[int | None, typer.Option(help="Events per entry; 2000.")] = None,
    block_bytes_max: Annotated[str | None, typer.Option(help="Bytes per entry; 256KiB.")] = None,
    buffer_events_max: Annotated[
        int | None, typer.Option(help="Events held until acknowledged.")
    ] = None,
    buffer_bytes_max: Annotated[
        str | None, typer.Option(help="Bytes held until acknowledged.")
    ] = None,
    send_deadline_ms: Annotated[str | None, typer.Option(help="Try for so long; 2m.")] = None,
    acknowledge: Annotated[
        str | None, typer.Option(help="memory, fsync, replicas=N or fsync,replicas=N.")
    ] = None,
    spool: Annotated[
        str | None, typer.Option(help="A file that takes what the server does not; of this alone.")
    ] = None,
    spool_bytes_max: Annotated[str | None, typer.Option(help="Bytes in it; 1GiB.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send readings into a stream; the exit code is 0 once every one of them is acknowledged.

    A bad line is reported with its number and counted, the rest goes through, and the exit code
    is 1. Standard input is sent as it comes, so the command can stay at the end of a pipe.

    With --spool the server may be away: the exit code is 3 when everything is safe, but some of it
    waits in the spool. The next run, or `standpipe spool drain`, sends that first.

    SIGTERM and Ctrl-C end the input: what was read is sent, or spooled, within ten seconds. If
    there is more of a file the exit code is 1.
    """
    from standpipe.cli.sending import NoRejects, Source, events_in, send_all
    from standpipe.formats import ReadOptions, Rejects, guess_format
    from standpipe.producer import Producer
    from standpipe.stream import Stream

    set_up_logging()
    settings = settings_from(
        url=url,
        shards=shards,
        codec=codec,
        max_len=max_len,
        max_bytes=max_bytes,
        max_age=max_age,
        when_full=when_full,
        event_bytes_max=event_bytes_max,
        block_events_max=block_events_max,
        block_bytes_max=block_bytes_max,
        buffer_events_max=buffer_events_max,
        buffer_bytes_max=buffer_bytes_max,
        send_deadline_ms=send_deadline_ms,
        acknowledge=acknowledge,
        spool=spool,
        spool_bytes_max=spool_bytes_max,
    )
    chosen = format or guess_format(file)
    options = ReadOptions(
        key_field=key_field,
        key=key,
        time_field=time_field or None,
        time_precision=time_precision,
        null_texts=frozenset(null or ()),
        leave_out=frozenset(leave_out or ()),
        text_fields=frozenset(text or ()),
        delimiter=delimiter,
    )
    source = Source(file, chosen, options)
    aside_before = 0 if settings.spool is None else events_in(settings.spool)[1]

    async def run() -> Counts:
        opened = Stream(
            stream,
            settings.url,
            shards=settings.shards,
            codec=settings.codec,
            max_len=settings.max_len,
            max_bytes=settings.max_bytes,
            max_age_ms=settings.max_age,
            when_full=settings.when_full,
        )
        # The producer opens the stream: with a spool it can do so while the server is away.
        async with Producer(
            opened,
            event_bytes_max=settings.event_bytes_max,
            block_events_max=settings.block_events_max,
            block_bytes_max=settings.block_bytes_max,
            buffer_events_max=settings.buffer_events_max,
            buffer_bytes_max=settings.buffer_bytes_max,
            deadline_ms=settings.send_deadline_ms,
            acknowledge=settings.acknowledge,
            spool=settings.spool,
            spool_bytes_max=settings.spool_bytes_max,
        ) as producer:
            with source, Rejects(rejects) if rejects else NoRejects() as kept:
                return await send_all(producer, source, kept, quiet=as_json)

    counts = run_async(run())
    if settings.spool is not None:
        counts.in_spool, aside = events_in(settings.spool)
        counts.set_aside = aside - aside_before
    if as_json:
        print_json(vars(counts))
    else:
        typer.echo(_summary(counts, rejects, settings.spool))
    if counts.rejected or counts.unread or counts.unsent or counts.set_aside:
        raise typer.Exit(FAILED)
    if counts.in_spool:
        raise typer.Exit(IN_SPOOL)


def _summary(counts: Counts, rejects: Path | None, spool: Path | None) -> str:
    lines = [
        f"sent {counts.sent:,} events in {counts.seconds:.2f} s "
        f"({counts.events_per_s:,}/s), {counts.rejected:,} lines rejected"
        + (f", {counts.kept:,} of them in {rejects}" if counts.kept else "")
    ]
    if spool is not None:
        lines.append(
            f"spool {spool}: {counts.spooled:,} events went there, {counts.drained:,} were "
            f"drained, {counts.in_spool:,} wait"
            + (f", {counts.set_aside:,} were set aside" if counts.set_aside else "")
        )
    if counts.unsent:
        lines.append(f"{counts.unsent:,} events were read, but there was no room for them")
    if counts.unread:
        lines.append("stopped before the end of the file")
    return "\n".join(lines)
