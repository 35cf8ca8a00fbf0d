"""``standpipe tail``: what is, or arrives, in a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.running import (
    Json,
    StreamName,
    Url,
    command,
    run_async,
    set_up_logging,
    settings_from,
)

if TYPE_CHECKING:
    from standpipe.event import Event, EventId

EXAMPLE = "Example: standpipe tail power_grid_stream --from -10m --follow"


@command
def tail(
    stream: StreamName,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Where to begin: -10m, 2026-01-31T12:00:00Z, ms, an event ID, '-' (the oldest) "
            "[default: '$' (now) with --follow, else '-']",
            show_default=False,
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Where to stop, inclusive.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what arrives.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Stop after so many events.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print a stream's events, one a line; nothing is consumed.

    Times are those at which the server added the event.
    """
    import sys

    from standpipe.reader import Reader
    from standpipe.stream import Stream

    set_up_logging()
    begin = start if start is not None else ("$" if follow else "-")

    async def show() -> None:
        left = count
        show_line = _json_line if as_json else _text_line
        async with Stream(stream, settings_from(url=url).url) as opened:
            reader = Reader(opened, start=begin, end=end, follow=follow)
            async for batch in reader.batches():
                lines = [
                    show_line(event, event_id, batch.shard)
                    for event, event_id in zip(batch.events, batch.ids, strict=True)
                ][:left]
                sys.stdout.write("".join(lines))
                sys.stdout.flush()
                if left is not None:
                    left -= len(lines)
                    if not left:
                        return

    run_async(show())


def _json_line(event: Event, event_id: EventId, shard: int) -> str:
    from standpipe.formats import to_ndjson

    return to_ndjson(event, event_id, shard=shard).decode()


def _text_line(event: Event, event_id: EventId, shard: int) -> str:
    from standpipe.clock import format_time

    fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
    return f"{format_time(event.time)} {event_id} {event.key or '-'} {fields}\n"
