"""The command line: one file per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import typer

from standpipe.cli import demo, send, status, tail, up, version, work

app = typer.Typer(
    name="standpipe",
    help="A message queue and ingestion layer for telemetry on Redis and Valkey Streams.",
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong usage. Start with: standpipe demo",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("up", epilog=up.EXAMPLE)(up.up)
app.command("send", epilog=send.EXAMPLE)(send.send)
app.command("work", epilog=work.EXAMPLE)(work.work)
app.command("tail", epilog=tail.EXAMPLE)(tail.tail)
app.command("status", epilog=status.EXAMPLE)(status.status)
app.command("version", epilog=version.EXAMPLE)(version.version)


def main() -> None:
    """The entry point of the ``standpipe`` command."""
    app()
