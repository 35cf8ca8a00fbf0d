"""The command line: one file per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from standpipe.cli import (
    ack,
    archive,
    bench,
    claim,
    dead,
    demo,
    doctor,
    explain,
    group,
    pending,
    provision,
    replay,
    retain,
    send,
    spool,
    status,
    stream,
    tail,
    up,
    version,
    work,
)

app = typer.Typer(
    name="standpipe",
    help="A message queue and ingestion layer for telemetry on Redis and Valkey Streams.",
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 critical (doctor). "
    "Start with: standpipe demo",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain help: boxes cost 80 ms at every start, and would read "[default: 1]" as markup.
    rich_markup_mode=None,
)


@app.callback()
def options(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings [default: ./standpipe.toml]", show_default=False),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", help="debug, info, warning or error", show_default=False),
    ] = None,
) -> None:
    """A message queue and ingestion layer for telemetry on Redis and Valkey Streams."""
    # By the environment, so that the processes that a command starts have them too.
    if config is not None:
        os.environ["STANDPIPE_CONFIG"] = str(config)
    if log_level is not None:
        os.environ["STANDPIPE_LOG_LEVEL"] = log_level


app.command(
    "demo", short_help="Real readings, a killed worker, a balanced ledger.", epilog=demo.EXAMPLE
)(demo.demo)
app.command("up", short_help="Run a server here; its data stays in a folder.", epilog=up.EXAMPLE)(
    up.up
)
app.command("send", short_help="Send readings from a file or standard input.", epilog=send.EXAMPLE)(
    send.send
)
app.command(
    "work", short_help="Run your handler over every event of a stream.", epilog=work.EXAMPLE
)(work.work)
app.command(
    "tail", short_help="Print a stream's events; nothing is consumed.", epilog=tail.EXAMPLE
)(tail.tail)
app.command(
    "replay",
    short_help="Replay archived and live events into a file or stream.",
    epilog=replay.EXAMPLE,
)(replay.replay)
app.command("status", short_help="What waits, who works, what would help.", epilog=status.EXAMPLE)(
    status.status
)
app.command("bench", short_help="Measure this machine and this server.", epilog=bench.EXAMPLE)(
    bench.bench
)
app.command(
    "doctor", short_help="What is wrong, why it matters, what mends it.", epilog=doctor.EXAMPLE
)(doctor.doctor)
app.command(
    "explain", short_help="Cause, check and cure of an error code.", epilog=explain.EXAMPLE
)(explain.explain)
app.command(
    "provision",
    short_help="A deployment's files: written, put in place, compared.",
    epilog=provision.EXAMPLE,
)(provision.provision)
app.add_typer(stream.app, name="stream", short_help="A stream's definition and its limits.")
app.command(
    "retain",
    short_help="Keep streams within their limits; say what holds them.",
    epilog=retain.EXAMPLE,
)(retain.retain)
app.add_typer(dead.app, name="dead", short_help="Dead letters: list, show, requeue, purge.")
spools = typer.Typer(
    help="What waits in a producer's spool, whether it is sound, and sending it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
spools.command("show", short_help="What waits, and what was set aside.", epilog=spool.SHOW_EXAMPLE)(
    spool.show
)
spools.command("verify", short_help="Look for damage.", epilog=spool.VERIFY_EXAMPLE)(spool.verify)
spools.command("drain", short_help="Send what waits.", epilog=spool.DRAIN_EXAMPLE)(spool.drain)
app.add_typer(spools, name="spool", short_help="Show, check or drain a producer's spool.")
app.add_typer(group.app, name="group", short_help="Create, list, move and delete consumer groups.")
app.add_typer(
    archive.app, name="archive", short_help="Keep a stream's events in Parquet files, for good."
)
app.command(
    "pending",
    short_help="What a group has not acknowledged, and who has it.",
    epilog=pending.EXAMPLE,
)(pending.pending)
app.command("claim", short_help="Give pending entries to another consumer.", epilog=claim.EXAMPLE)(
    claim.claim
)
app.command("ack", short_help="Acknowledge entries by hand.", epilog=ack.EXAMPLE)(ack.ack)
app.command("version", short_help="What is installed.", epilog=version.EXAMPLE)(version.version)


def main() -> None:
    """The entry point of the ``standpipe`` command."""
    app()
