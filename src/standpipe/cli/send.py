"""``standpipe send``: readings from a file or standard input into a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from collections.abc import Iterator

    from standpipe.formats import Chunk, ReadOptions, Rejects
    from standpipe.producer import Producer

EXAMPLE = "Example: standpipe send power_grid_stream readings.csv --key-field meter --null NaN"
_ERRORS_SHOWN_MAX = 20


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
    event_bytes_max: Annotated[
        str | None, typer.Option(help="Refuse larger events; 64KiB.")
    ] = None,
    block_events_max: Annotated[int | None, typer.Option(help="Events per entry; 500.")] = None,
    block_bytes_max: Annotated[str | None, typer.Option(help="Bytes per entry; 256KiB.")] = None,
    buffer_events_max: Annotated[
        int | None, typer.Option(help="Events held until acknowledged.")
    ] = None,
    buffer_bytes_max: Annotated[
        str | None, typer.Option(help="Bytes held until acknowledged.")
    ] = None,
    send_deadline_ms: Annotated[str | None, typer.Option(help="Try for so long; 2m.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send readings into a stream; the exit code is 0 once every one of them is acknowledged.

    A bad line is reported with its number and counted, the rest goes through, and the exit code
    is 1. Standard input is sent as it comes, so the command can stay at the end of a pipe.
    """
    from standpipe.formats import ReadOptions, Rejects, guess_format
    from standpipe.producer import Producer
    from standpipe.stream import Stream

    set_up_logging()
    settings = settings_from(
        url=url,
        shards=shards,
        codec=codec,
        event_bytes_max=event_bytes_max,
        block_events_max=block_events_max,
        block_bytes_max=block_bytes_max,
        buffer_events_max=buffer_events_max,
        buffer_bytes_max=buffer_bytes_max,
        send_deadline_ms=send_deadline_ms,
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
    source = _Source(file, chosen, options)

    async def run() -> dict[str, Any]:
        async with (
            Stream(stream, settings.url, shards=settings.shards, codec=settings.codec) as opened,
            Producer(
                opened,
                event_bytes_max=settings.event_bytes_max,
                block_events_max=settings.block_events_max,
                block_bytes_max=settings.block_bytes_max,
                buffer_events_max=settings.buffer_events_max,
                buffer_bytes_max=settings.buffer_bytes_max,
                deadline_ms=settings.send_deadline_ms,
            ) as producer,
        ):
            with source, Rejects(rejects) if rejects else _NoRejects() as kept:
                return await _send_all(producer, source, kept, quiet=as_json)

    counts = run_async(run())
    if as_json:
        print_json(counts)
    else:
        typer.echo(
            f"sent {counts['sent']:,} events in {counts['seconds']:.2f} s "
            f"({counts['events_per_s']:,.0f}/s), {counts['rejected']:,} lines rejected"
            + (f", {counts['kept']:,} of them in {rejects}" if counts["kept"] else "")
        )
    if counts["rejected"]:
        raise typer.Exit(FAILED)


class _NoRejects:
    """Where bad lines go that nobody wants to keep."""

    written = 0

    def add(self, chunk: Chunk) -> None:
        """Nothing: they are counted and reported all the same."""

    def __enter__(self) -> _NoRejects:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Source:
    """The input: its chunks, and how far they are."""

    def __init__(self, file: str, format: str, options: ReadOptions) -> None:
        import sys

        from standpipe.errors import ConfigError
        from standpipe.formats import read_events

        self.name = "standard input" if file == "-" else file
        self.size: int | None = None
        if file == "-":
            if format == "parquet":
                raise ConfigError(
                    "Parquet cannot be read from standard input, which cannot seek",
                    hint="Save it to a file and give the file's name.",
                )
            self._chunks = read_events(sys.stdin.buffer, format, options)
        else:
            path = Path(file)
            self.size = path.stat().st_size if path.is_file() else None
            self._chunks = read_events(path, format, options)

    def next(self) -> Chunk | None:
        return next(self._chunks, None)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()


async def _send_all(
    producer: Producer, source: _Source, rejects: Rejects | _NoRejects, *, quiet: bool
) -> dict[str, Any]:
    import asyncio
    import time

    began = time.perf_counter()
    sent = rejected = 0
    with _Progress(source, quiet=quiet) as progress:
        # Reading may wait for a pipe, so it has a thread; sending goes on meanwhile.
        while (chunk := await asyncio.to_thread(source.next)) is not None:
            sent += await _send_chunk(producer, chunk)
            for error in chunk.errors:
                rejected += 1
                if rejected <= _ERRORS_SHOWN_MAX:
                    progress.say(f"{source.name}: {error.message} ({error.hint})")
            if rejected > _ERRORS_SHOWN_MAX >= rejected - len(chunk.errors):
                progress.say("more lines were rejected and are only counted")
            rejects.add(chunk)
            progress.update(chunk.bytes, producer.stats.acknowledged)
        await producer.flush()
        progress.update(source.size or 0, producer.stats.acknowledged)
    seconds = time.perf_counter() - began
    return {
        "sent": sent,
        "rejected": rejected,
        "kept": rejects.written,
        "seconds": round(seconds, 3),
        "events_per_s": round(sent / seconds) if seconds else 0,
    }


async def _send_chunk(producer: Producer, chunk: Chunk) -> int:
    """Send a chunk's events; those that only the producer refuses join the chunk's errors."""
    from standpipe.errors import EventError, LineError

    try:
        await producer.send_many(chunk.events)
        return len(chunk.events)
    except EventError:
        # One of them is too large, and none was taken: find it by sending them one by one.
        sent = 0
        for event, number in zip(chunk.events, chunk.numbers, strict=True):
            try:
                await producer.send(event)
                sent += 1
            except EventError as error:
                text = f"line {number}: {error.message}"
                chunk.errors.append(LineError(text, line=number, hint=error.hint))
        return sent


class _Progress:
    """A progress bar on a terminal, and lines about what is wrong above it."""

    def __init__(self, source: _Source, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[events]:,} events"),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._line = self._bar.add_task(source.name, total=source.size, events=0)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, size: int, events: int) -> None:
        self._bar.update(self._line, completed=size, events=events)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
