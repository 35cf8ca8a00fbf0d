"""What every command does around its own work: options, the event loop, errors, exit codes."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from standpipe.errors import ConfigError, HandlerError, MissingExtraError, StandpipeError

if TYPE_CHECKING:
    from standpipe.config import Settings

P = ParamSpec("P")
T = TypeVar("T")

FAILED = 1
WRONG_USAGE = 2

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The server: redis://, rediss://, redis+sentinel://, redis+cluster:// "
        "[default: STANDPIPE_URL, standpipe.toml, or the server that `standpipe up` runs here]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON, for programs.")]
StreamName = Annotated[str, typer.Argument(help="The stream's name.", show_default=False)]

Shard = Annotated[
    int | None,
    typer.Option("--shard", min=0, help="This shard alone [default: all]", show_default=False),
]
Idle = Annotated[
    str | None,
    typer.Option(
        "--idle",
        help="Idle for less is at work: 30s; 0s for none [default: the setting idle_ms_min]",
        show_default=False,
    ),
]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn errors of ours into a message with its hint and an exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except StandpipeError as error:
            fail(error)
        except BrokenPipeError:
            # `standpipe tail … | head` closes our output: that is its way of saying enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None

    return run


def fail(error: StandpipeError) -> NoReturn:
    """Print an error and its hint to standard error, and exit."""
    typer.secho(f"error: {error.message}", fg="red", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)
    usage = isinstance(error, (ConfigError, HandlerError, MissingExtraError))
    raise typer.Exit(WRONG_USAGE if usage else FAILED)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine, on uvloop where it is installed."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call a function on SIGTERM and SIGINT instead of ending; a second SIGINT interrupts."""
    import asyncio

    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        # SIGTERM may come twice, from a service manager to all processes and from the parent.
        if number == signal.SIGINT:
            loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)


def settings_from(**flags: object) -> Settings:
    """The settings in force, with the flags that were given; None means not given.

    Raises:
        ConfigError: a setting is wrong; the message says where it was given.
    """
    from standpipe.config import load

    return load(flags)


def idle_ms(flag: str | None, settings: Settings) -> int:
    """What --idle says, in ms."""
    from standpipe.clock import parse_duration

    return settings.idle_ms_min if flag is None else parse_duration(flag, name="--idle")


def print_json(value: Any) -> None:
    """One JSON document on one line of standard output."""
    typer.echo(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def set_up_logging() -> None:
    """Log lines go to standard error, so that standard output stays for facts."""
    import logging

    logging.basicConfig(
        level=settings_from().log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
