"""``standpipe stream``: the definition of a stream, and changing its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

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

if TYPE_CHECKING:
    from standpipe.stream import Definition, Stream

EXAMPLE = "Example: standpipe stream set power_grid_stream --max-age 7d --max-bytes 2GiB"

app = typer.Typer(
    help="A stream's definition: show it, change its limits.",
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode=None,
)


class _Limited(Protocol):
    @property
    def max_len(self) -> int | None: ...
    @property
    def max_bytes(self) -> int | None: ...
    @property
    def max_age_ms(self) -> int | None: ...
    @property
    def when_full(self) -> str: ...


@app.command("show", short_help="Shards, codec, limits, and how full it is.")
@command
def show(stream: StreamName, url: Url = None, as_json: Json = False) -> None:
    """Show what all processes go by."""

    async def run() -> tuple[Definition, list[tuple[int, int | None]]]:
        from standpipe.stream import Stream

        async with Stream(stream, settings_from(url=url).url) as opened:
            await opened.require()
            return opened.definition, [await _size(opened, key) for key in opened.keys]

    definition, sizes = run_async(run())
    entries = sum(each[0] for each in sizes)
    known = [each[1] for each in sizes if each[1] is not None]
    used = sum(known) if len(known) == len(sizes) else None
    if as_json:
        facts: dict[str, Any] = {"stream": stream, "entries": entries, "bytes": used}
        print_json(facts | _facts(definition))
        return
    from standpipe.cli.status import shown_size

    typer.echo(f"stream     {stream}")
    typer.echo(f"shards     {definition.shards}")
    typer.echo(f"codec      {definition.codec}")
    typer.echo(f"key, time  {definition.key_field}, {definition.time_field}")
    if definition.schema is not None:
        fields = (f"{name} {kind}" for name, kind in definition.schema.items())
        typer.echo(f"schema     {', '.join(fields)}")
    typer.echo(f"limits     {shown_limits(definition)}")
    typer.echo(f"holds      {entries:,} entries, {shown_size(used)}")


async def _size(stream: Stream, key: str) -> tuple[int, int | None]:
    length, used = await stream.server.call_many([("XLEN", key), ("MEMORY", "USAGE", key)], key=key)
    return length, used if isinstance(used, int) else 0 if used is None else None


@app.command("set", short_help="Change its limits.", epilog=EXAMPLE)
@command
def set_(
    stream: StreamName,
    max_age: Annotated[
        str | None, typer.Option("--max-age", help="Age of an entry: 7d; none: any.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="Bytes on the server: 2GiB; none: any number.")
    ] = None,
    max_len: Annotated[
        str | None,
        typer.Option("--max-len", help="Entries (a block is one); none: any number."),
    ] = None,
    when_full: Annotated[
        str | None,
        typer.Option(
            "--when-full",
            help="block: what is not acknowledged stays, producers wait; ring: the oldest go.",
        ),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Change the limits of a stream for all processes; what is not given stays as it is.

    Running producers, workers and janitors go by them within seconds.
    """
    from standpipe.errors import ConfigError

    asked = {"max_age": max_age, "max_bytes": max_bytes, "max_len": max_len, "when_full": when_full}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        raise ConfigError("no limit was given", hint=EXAMPLE)
    # What is "none" is no setting's value; all others are read as settings are.
    read = settings_from(url=url, **{k: v for k, v in given.items() if v.lower() != "none"})
    changes: dict[str, Any] = {
        name: None if value.lower() == "none" else getattr(read, name)
        for name, value in given.items()
    }
    if "when_full" in changes and changes["when_full"] is None:
        raise ConfigError("--when-full is none", hint="It is block or ring.")
    if "max_age" in changes:
        changes["max_age_ms"] = changes.pop("max_age")

    async def run() -> Definition:
        from standpipe.stream import Stream

        async with Stream(stream, read.url) as opened:
            return await opened.set_limits(**changes)

    found = run_async(run())
    if as_json:
        print_json({"stream": stream} | _facts(found))
    else:
        typer.echo(f"{stream}  {shown_limits(found)}")


def _facts(definition: Definition) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(definition)


def shown_limits(limited: _Limited) -> str:
    """The limits on one line."""
    from standpipe.cli.status import shown_size
    from standpipe.clock import format_duration

    said = [
        f"max_age {format_duration(limited.max_age_ms)}" if limited.max_age_ms is not None else "",
        f"max_bytes {shown_size(limited.max_bytes)}" if limited.max_bytes is not None else "",
        f"max_len {limited.max_len:,}" if limited.max_len is not None else "",
    ]
    found = ", ".join(filter(None, said))
    return f"{found}; when full: {limited.when_full}" if found else "none: nothing is trimmed"
