"""``standpipe dead``: what the groups of a stream have given up on."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.running import (
    Json,
    StreamName,
    Url,
    command,
    print_json,
    run_async,
    settings_from,
)
from standpipe.errors import ConfigError
from standpipe.limits import REQUEUES_MAX

if TYPE_CHECKING:
    from standpipe.deadletter import DeadLetter, Requeued, Selection

EXAMPLE = "Example: standpipe dead list power_grid_stream --group storage --from -1h"

app = typer.Typer(
    help="What groups have given up on: look at it, put it back, remove it.",
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Letters = Annotated[
    list[str] | None,
    typer.Argument(help="IDs of letters: 0:1700000000000-0.", show_default=False),
]
Group = Annotated[
    str | None, typer.Option("--group", "-g", help="Given up by this group.", show_default=False)
]
Key = Annotated[str | None, typer.Option("--key", help="Of this device.", show_default=False)]
Reason = Annotated[
    str | None,
    typer.Option("--reason", help="Whose reason contains this text.", show_default=False),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from", help="Given up since: -1h, 2026-01-31T12:00:00Z or ms.", show_default=False
    ),
]
End = Annotated[
    str | None, typer.Option("--to", help="Given up until, inclusive.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All of them, of all groups.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, only count.")]


@app.command("list", short_help="Dead letters, one a line.", epilog=EXAMPLE)
@command
def list_letters(
    stream: StreamName,
    group: Group = None,
    key: Key = None,
    reason: Reason = None,
    start: Start = None,
    end: End = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Stop after so many.")] = 100,
    after: Annotated[
        str | None,
        typer.Option("--after", help="Go on behind this letter.", show_default=False),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List dead letters, one a line: letter, group, event, key, deliveries, reason.

    With --json each line is a letter with its event and traceback.
    """
    from standpipe.deadletter import DeadLetters
    from standpipe.stream import Stream

    selection = _selection([], group, key, reason, start, end)

    async def show() -> None:
        left = count
        async with Stream(stream, settings_from(url=url).url) as opened:
            letters = DeadLetters(opened)
            found = letters.find(selection, newest_first=newest, after=after)
            async with aclosing(found):
                async for letter in found:
                    if not left:
                        typer.echo("there are more: --after the last one, or --count", err=True)
                        return
                    left -= 1
                    if as_json:
                        print_json(_as_json(letter))
                    else:
                        typer.echo(_line(letter))

    run_async(show())


@app.command(
    "show",
    short_help="All of one letter, traceback included.",
    epilog="Example: standpipe dead show power_grid_stream 0:1700000000000-0",
)
@command
def show_letter(
    stream: StreamName,
    letter: Annotated[str, typer.Argument(help="Its ID, as `list` shows it.", show_default=False)],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show all of one dead letter: its event or raw fields, reason, traceback, counts, times."""
    from standpipe.deadletter import DeadLetters
    from standpipe.stream import Stream

    async def read() -> DeadLetter:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await DeadLetters(opened).show(letter)

    found = run_async(read())
    if as_json:
        print_json(_as_json(found))
    else:
        _print(found)


@app.command(
    "requeue",
    short_help="Put letters back, for their group alone.",
    epilog="Example: standpipe dead requeue power_grid_stream --group storage --reason Timeout",
)
@command
def requeue(
    stream: StreamName,
    letters: Letters = None,
    group: Group = None,
    key: Key = None,
    reason: Reason = None,
    start: Start = None,
    end: End = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="The oldest so many.", show_default=False),
    ] = None,
    requeues_max: Annotated[
        int, typer.Option(min=1, help="Leave those requeued so often already.")
    ] = REQUEUES_MAX,
    everything: All = False,
    dry_run: DryRun = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Put dead letters back: the group that gave them up, and no other, gets them once more.

    Its workers take them up within about a second; their deliveries are counted anew.
    """
    from standpipe.deadletter import DeadLetters
    from standpipe.stream import Stream

    selection = _selection(letters or [], group, key, reason, start, end)
    _refuse_everything(selection, everything)

    async def put_back() -> Requeued:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await DeadLetters(opened).requeue(
                selection, count_max=count, requeues_max=requeues_max, dry_run=dry_run
            )

    done = run_async(put_back())
    counts = {
        "requeued": done.requeued,
        "over_limit": done.over_limit,
        "unusable": done.unusable,
        "gone": done.gone,
    }
    _say(counts, dry_run, as_json)


@app.command(
    "purge",
    short_help="Remove letters for good.",
    epilog="Example: standpipe dead purge power_grid_stream --older-than 30d --dry-run",
)
@command
def purge(
    stream: StreamName,
    letters: Letters = None,
    group: Group = None,
    key: Key = None,
    reason: Reason = None,
    start: Start = None,
    end: End = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", help="Given up longer ago: 30d.", show_default=False),
    ] = None,
    everything: All = False,
    dry_run: DryRun = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove dead letters for good."""
    from standpipe.clock import now_ms, parse_duration
    from standpipe.deadletter import DeadLetters
    from standpipe.stream import Stream

    if older_than is not None:
        if end is not None:
            raise ConfigError("--older-than is given with --to", hint="Give one of the two.")
        end = str(now_ms() - parse_duration(older_than, name="--older-than"))
    selection = _selection(letters or [], group, key, reason, start, end)
    _refuse_everything(selection, everything)

    async def remove() -> int:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await DeadLetters(opened).purge(selection, dry_run=dry_run)

    _say({"purged": run_async(remove())}, dry_run, as_json)


# --- which letters -------------------------------------------------------------------------------


def _selection(
    letters: list[str],
    group: str | None,
    key: str | None,
    reason: str | None,
    start: str | None,
    end: str | None,
) -> Selection:
    from standpipe.deadletter import Selection

    return Selection(group=group, key=key, reason=reason, start=start, end=end, ids=letters)


def _refuse_everything(selection: Selection, everything: bool) -> None:
    if selection.is_everything and not everything:
        raise ConfigError(
            "this would be all dead letters of all groups",
            hint="Say which by ID, --group, --key, --reason, --from or --to; or --all.",
        )


# --- showing -------------------------------------------------------------------------------------


def _say(counts: dict[str, int], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**counts, "dry_run": dry_run})
        return
    text = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
    typer.echo(f"{text} (dry run: nothing was changed)" if dry_run else text)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    from standpipe.formats import to_ndjson

    return {
        "letter": str(letter.id),
        "shard": letter.id.shard,
        "group": letter.group,
        "consumer": letter.consumer,
        "id": letter.event_id,
        "reason": letter.reason,
        "trace": letter.trace,
        "deliveries": letter.deliveries,
        "deliveries_before": letter.deliveries_before,
        "requeues": letter.requeues,
        "at": letter.at,
        "event": None if letter.event is None else json.loads(to_ndjson(letter.event)),
        "raw": None if letter.raw is None else list(map(_raw, letter.raw)),
    }


def _raw(value: bytes) -> str | dict[str, str]:
    """Text, or as NDJSON has bytes that are none."""
    from base64 import b64encode

    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"$base64": b64encode(value).decode()}


def _line(letter: DeadLetter) -> str:
    key = letter.event.key if letter.event is not None else None
    reason = " ".join((letter.reason or "-").split())
    deliveries = "-" if letter.deliveries is None else str(letter.deliveries)
    parts = (str(letter.id), letter.group or "-", letter.event_id or "-", key or "-", deliveries)
    return f"{' '.join(parts)} {reason}"


def _print(letter: DeadLetter) -> None:
    from standpipe.clock import format_time

    shown: dict[str, Any] = {
        "letter": letter.id,
        "group": letter.group,
        "consumer": letter.consumer,
        "given up": None if letter.at is None else format_time(letter.at),
        "event ID": letter.event_id,
        "deliveries": letter.deliveries,
    }
    if letter.requeues:
        shown |= {"requeued": letter.requeues, "before that": letter.deliveries_before}
    if letter.event is not None:
        shown |= {"key": letter.event.key, "time": format_time(letter.event.time)}
        shown |= {f"  {name}": repr(value) for name, value in letter.event.fields.items()}
    shown["reason"] = letter.reason
    for name, value in shown.items():
        typer.echo(f"{name:<12} {'unknown' if value is None else value}")
    for name, value in zip((letter.raw or [])[::2], (letter.raw or [])[1::2], strict=False):
        typer.echo(f"  {name!r} {value!r}")
    if letter.trace:
        typer.echo(f"\n{letter.trace.rstrip()}")
