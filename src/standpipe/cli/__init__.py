"""The command line: one file per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

COMMANDS: Final = {
    "demo": "Real readings, a killed worker, a balanced ledger.",
    "up": "Run a server here; its data stays in a folder.",
    "send": "Send readings from a file or standard input.",
    "work": "Run your handler over every event of a stream.",
    "tail": "Print a stream's events; nothing is consumed.",
    "replay": "Replay archived and live events into a file or stream.",
    "status": "What waits, who works, what would help.",
    "bench": "Measure this machine and this server.",
    "doctor": "What is wrong, why it matters, what mends it.",
    "explain": "Cause, check and cure of an error code.",
    "provision": "A deployment's files: written, put in place, compared.",
    "stream": "A stream's definition and its limits.",
    "retain": "Keep streams within their limits; say what holds them.",
    "dead": "Dead letters: list, show, requeue, purge.",
    "spool": "Show, check or drain a producer's spool.",
    "group": "Create, list, move and delete consumer groups.",
    "archive": "Keep a stream's events in Parquet files, for good.",
    "pending": "What a group has not acknowledged, and who has it.",
    "claim": "Give pending entries to another consumer.",
    "ack": "Acknowledge entries by hand.",
    "version": "What is installed.",
}
"""The commands and what each is for, in the order of ``--help``; each has its file here, with a
function of its name, or an ``app`` of subcommands."""


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


def app_with(names: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with some of its commands."""
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
    app.callback()(options)
    for name in names:
        module = import_module(f"{__name__}.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, short_help=COMMANDS[name])
        else:
            register = app.command(name, short_help=COMMANDS[name], epilog=module.EXAMPLE)
            register(getattr(module, name))
    return app


def _needed(words: Sequence[str]) -> Iterable[str]:
    """The command that a command line begins with, if it is one; else all.

    All of them are 60 ms at every start: typer looks at each option of each command.
    """
    rest = iter(words)
    for word in rest:
        if word in ("--config", "--log-level"):
            next(rest, None)
        elif not word.startswith(("--config=", "--log-level=")):
            return [word] if word in COMMANDS else COMMANDS
    return COMMANDS


def main() -> None:
    """The entry point of the ``standpipe`` command."""
    app_with(_needed(sys.argv[1:]))()
