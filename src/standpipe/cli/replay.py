"""``standpipe replay``: archived and live events, in time, into a file, a stream or a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from standpipe.cli.progress import Bar
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

if TYPE_CHECKING:
    import asyncio

    from standpipe.config import Settings
    from standpipe.reader import Reader
    from standpipe.replay import Replayed
    from standpipe.stream import Stream

EXAMPLE = "Example: standpipe replay power_grid_stream --from -2h --to inverters.parquet"


class _Options(NamedTuple):
    stream: str
    start: str
    end: str | None
    to: str
    archive: str | None
    keys: list[str] | None
    fields: list[str] | None
    speed: str
    pace_by: str
    follow: bool
    from_oldest: bool
    format: str | None
    overwrite: bool
    name: str | None
    again: bool
    acknowledge: str


@command
def replay(
    stream: StreamName,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to begin: -2h, 2026-01-31T12:00:00Z, ms, an event ID, '-' (the oldest), "
            "'$' (now).",
        ),
    ] = "-",
    end: Annotated[
        str | None,
        typer.Option(
            "--until",
            help="Where to stop, inclusive [default: what is there at the end]",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="FILE.parquet, FILE.ndjson, FILE.csv, stream:NAME, group:NAME, or - (NDJSON on "
            "standard output).",
        ),
    ] = "-",
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            help="The folder or URL where older events are [default: the setting archive]",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="This device alone; may be repeated.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", help="This field alone; may be repeated.")
    ] = None,
    speed: Annotated[
        str, typer.Option("--speed", help="1: as it was, 10: ten times as fast, max.")
    ] = "max",
    pace_by: Annotated[
        str, typer.Option("--pace-by", help="entry: when it was added; event: its own time.")
    ] = "entry",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what arrives, until stopped.")
    ] = False,
    from_oldest: Annotated[
        bool,
        typer.Option("--from-oldest", help="Begin at the oldest there is, if --from is older."),
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-F",
            help="parquet, ndjson or csv [default: by the suffix]",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="With stream:NAME: under which it goes on when it is started again "
            "[default: made of what is replayed]",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="With stream:NAME: once more, if it is complete."),
    ] = False,
    acknowledge: Annotated[
        str | None,
        typer.Option(
            "--acknowledge", help="With stream:NAME: memory, fsync, replicas=N.", show_default=False
        ),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Replay a stream's events: the archive first, then the live stream, each event once, in the
    order in which they were added.

    A file is complete or not there. Into a stream, a replay that was interrupted goes on where it
    was when the same command is started again, and adds no event twice; one that is complete does
    nothing for a day, unless --again is given. group:NAME makes a group
    that begins there, for workers.

    The exit code is 1 when something is missing: entries that were trimmed before they could be
    read, or that no codec reads. SIGTERM and Ctrl-C end it after what is in progress.
    """
    from standpipe.errors import ConfigError

    set_up_logging()
    settings = settings_from(url=url, acknowledge=acknowledge)
    options = _Options(
        stream, start, end, to, archive, key, field, speed, pace_by, follow, from_oldest, format,
        overwrite, name, again, settings.acknowledge,
    )  # fmt: skip
    if to.startswith("group:"):
        run_async(_make_group(options, settings, as_json=as_json))
        return
    if to in ("stream:", ""):
        raise ConfigError(f"--to is {to!r}", hint="Write stream:NAME, a file's name, or -.")
    done = run_async(_replay(options, settings, quiet=as_json))
    if as_json:
        _print_facts(done, options)
    else:
        typer.echo(_summary(done, options), err=to == "-")
    if done.gaps or done.undecodable or done.refused or not done.is_complete:
        raise typer.Exit(FAILED)


async def _replay(options: _Options, settings: Settings, *, quiet: bool) -> Replayed:
    import asyncio

    from standpipe.stream import Stream

    stop = asyncio.Event()
    on_stop_signals(stop.set)
    async with Stream(options.stream, settings.url) as source:
        reader = await _reader(source, options, settings)
        with _Bar(reader, options, is_quiet=quiet) as bar:
            return await _to(reader, options, settings, bar, stop)


async def _to(
    reader: Reader, options: _Options, settings: Settings, bar: _Bar, stop: asyncio.Event
) -> Replayed:
    import sys

    from standpipe import replay as replaying
    from standpipe.stream import Stream

    if options.to == "-":
        return await replaying.to_lines(
            reader, sys.stdout.buffer, on_progress=bar.replayed, stop=stop
        )
    if not options.to.startswith("stream:"):
        return await replaying.to_file(
            reader,
            options.to,
            format=options.format,
            overwrite=options.overwrite,
            on_progress=bar.replayed,
            stop=stop,
        )
    # A server of its own: the two streams must not wait for each other's replies.
    async with Stream(options.to.removeprefix("stream:"), settings.url) as target:
        return await replaying.to_stream(
            reader,
            target,
            name=options.name or _name_of(options),
            again=options.again,
            acknowledge=options.acknowledge,
            on_progress=bar.replayed,
            stop=stop,
        )


async def _reader(source: Stream, options: _Options, settings: Settings) -> Reader:
    from typing import cast

    from standpipe.errors import ConfigError
    from standpipe.reader import Reader

    try:
        speed = "max" if options.speed == "max" else float(options.speed)
    except ValueError:
        raise ConfigError(
            f"--speed is {options.speed!r}", hint="Give 1, 10, 0.5, or max."
        ) from None
    return Reader(
        source,
        start=options.start,
        end=options.end,
        follow=options.follow,
        archive=options.archive or settings.archive,
        keys=options.keys or None,
        fields=options.fields or None,
        speed=cast("Any", speed),
        pace_by=cast("Any", options.pace_by),
        from_oldest=options.from_oldest,
    )


def _name_of(options: _Options) -> str:
    """What tells this replay from others into the same stream, as it was written."""
    import hashlib

    parts = (
        options.stream, options.start, options.end, options.keys, options.fields, options.follow,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


async def _make_group(options: _Options, settings: Settings, *, as_json: bool) -> None:
    """A group that begins at the start; workers of it replay what the live stream has."""
    import msgspec

    from standpipe.groups import create_group
    from standpipe.stream import Stream

    group = options.to.removeprefix("group:")
    async with Stream(options.stream, settings.url) as opened:
        await opened.require()
        start = "begin" if options.start == "-" else options.start
        found = await create_group(opened, group, start, from_oldest=options.from_oldest)
    if as_json:
        shards: Any = msgspec.to_builtins(found)
        print_json({"stream": options.stream, "group": group, "shards": shards})
    else:
        for each in found:
            said = "created" if each.outcome == "created" else "exists already, left as it is"
            typer.echo(f"{each.key}  {group}  {said}")
        typer.echo(f"replay it with: standpipe work {options.stream} --group {group} HANDLER")
    if any(each.outcome == "exists" for each in found):
        raise typer.Exit(FAILED)


# --- what is said --------------------------------------------------------------------------------


def _print_facts(done: Replayed, options: _Options) -> None:
    import json
    import sys

    facts: dict[str, Any] = {
        "stream": options.stream,
        "to": options.to,
        "events": done.events,
        "first_ms": done.first_ms,
        "last_ms": done.last_ms,
        "undecodable": done.undecodable,
        "refused": done.refused,
        "gaps": done.gaps,
        "known_gaps": [
            {
                "shard": gap.shard,
                "after": gap.after.entry,
                "before": None if gap.before is None else gap.before.entry,
                "entries": gap.entries,
                "reason": gap.reason,
            }
            for gap in done.known_gaps
        ],
        "seconds": round(done.seconds, 3),
        "events_per_s": done.events_per_s,
        "is_complete": done.is_complete,
        "was_complete_at": done.was_complete_at,
    }
    if options.to == "-":
        # Standard output has the events.
        print(json.dumps(facts), file=sys.stderr)
    else:
        print_json(facts)


def _summary(done: Replayed, options: _Options) -> str:
    from standpipe.clock import format_time

    if done.was_complete_at is not None:
        return (
            f"nothing to do: this replay was complete at {format_time(done.was_complete_at)}; "
            "--again replays it once more"
        )
    lines = [
        f"replayed {done.events:,} events to {options.to} in {done.seconds:.2f} s "
        f"({done.events_per_s:,}/s)"
    ]
    if done.first_ms is not None and done.last_ms is not None:
        lines[0] += f", added {format_time(done.first_ms)} to {format_time(done.last_ms)}"
    if done.undecodable:
        lines.append(f"{done.undecodable:,} entries could not be read and were left out")
    if done.refused:
        lines.append(f"{done.refused:,} events could not be sent and were left out")
    lines += [f"missing: {gap}" for gap in done.known_gaps]
    if done.gaps > len(done.known_gaps):
        lines.append(f"missing: in {done.gaps - len(done.known_gaps):,} more places")
    if not done.is_complete:
        again = options.to.startswith("stream:")
        lines.append(
            "stopped before the end; "
            + ("the same command goes on there" if again else "no file was made")
        )
    return "\n".join(lines)


class _Bar(Bar):
    """On a terminal: how far it is in the events' time, how fast, and how long it will take."""

    def __init__(self, reader: Reader, options: _Options, *, is_quiet: bool) -> None:
        text = "{task.fields[at]}  {task.fields[events]:,} events, {task.fields[rate]:,}/s"
        super().__init__(
            options.stream,
            text,
            total=None,
            is_quiet=is_quiet,
            shows_left=True,
            at="",
            events=0,
            rate=0,
        )
        self._reader = reader
        self._follows = options.follow

    def replayed(self, done: Replayed) -> None:
        """So much has been replayed by now."""
        from standpipe.clock import format_time

        span, at = self._reader.span, done.last_ms
        known: dict[str, Any] = {}
        if span is not None and at is not None and not self._follows:
            known = {"total": max(1, span[1] - span[0]), "completed": at - span[0]}
        shown = "" if at is None else format_time(at)
        self.update(at=shown, events=done.events, rate=done.events_per_s, **known)
