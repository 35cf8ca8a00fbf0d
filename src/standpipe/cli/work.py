"""``standpipe work``: a user's handler over a stream, in one process or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from standpipe.cli.running import (
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
    from standpipe.sinks import Sink

EXAMPLE = "Example: standpipe work power_grid_stream app:store --group monitoring --processes 2"


@command
def work(
    stream: StreamName,
    group: Annotated[
        str, typer.Option("--group", "-g", help="The consumer group.", show_default=False)
    ],
    handler: Annotated[
        str | None,
        typer.Argument(help="module:function, importable from here.", show_default=False),
    ] = None,
    sink: Annotated[
        str | None,
        typer.Option(
            "--sink",
            help="Instead of a handler: keep every event once in postgres://…, sqlite:PATH or "
            "parquet:FOLDER.",
        ),
    ] = None,
    processes: Annotated[
        str,
        typer.Option(
            "--processes",
            "-p",
            metavar="N|auto",
            help="Worker processes; auto: one for each processor.",
        ),
    ] = "1",
    batch: Annotated[
        bool | None,
        typer.Option(
            "--batch/--each",
            help="Call the handler with whole batches, or with single events "
            "[default: by the annotation of its first argument]",
            show_default=False,
        ),
    ] = None,
    ack: Annotated[
        str,
        typer.Option(
            "--ack",
            metavar="auto|manual",
            help="manual: the handler acknowledges by context.ack() or batch.ack().",
        ),
    ] = "auto",
    start: Annotated[
        str, typer.Option("--start", help="Where a new group begins: 0, $ or an entry ID.")
    ] = "0",
    concurrency: Annotated[
        int | None,
        typer.Option(help="Handlers at a time in each process."),
    ] = None,
    deliveries_max: Annotated[int | None, typer.Option(help="Then an event is dead.")] = None,
    idle_ms_min: Annotated[
        str | None,
        typer.Option(help="Take over what is idle for so long: 30s."),
    ] = None,
    in_flight_events_max: Annotated[
        int | None, typer.Option(help="Events held unacknowledged.")
    ] = None,
    in_flight_bytes_max: Annotated[
        str | None, typer.Option(help="Bytes of entries held unacknowledged: 64MiB.")
    ] = None,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered",
            help="Keep the order of each key, also across failures; for all workers of the group.",
        ),
    ] = False,
    lease_ms: Annotated[
        str | None, typer.Option(help="With --ordered: a dead worker's shards go on after so long.")
    ] = None,
    drain_ms_max: Annotated[str | None, typer.Option(help="Wait so long for handlers.")] = None,
    retain: Annotated[
        bool,
        typer.Option(
            "--retain/--no-retain", help="Also keep the stream within its limits, if nobody does."
        ),
    ] = True,
    url: Url = None,
    as_json: Json = False,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a handler over every event of a stream until SIGTERM or Ctrl-C, which drain.

    The handler is called as handler(event) or handler(event, context); with --batch it gets a
    Batch. Events whose handler raises are tried again and become dead letters in the end.
    """
    set_up_logging()
    from standpipe.cli.processes import on_stdin_closed, process_count, run_processes

    count = process_count(processes)
    # With processes: fail here, once and clearly, instead of in every child again and again.
    keeper = load_sink(sink) if sink and not handler else None
    ack_mode = parse_ack(ack, sink)
    function = keeper.write if keeper else load_handler(handler, sink)
    if count > 1:
        restarts = run_async(run_processes(count))
        if as_json:
            print_json({"processes": count, "restarts": restarts})
        else:
            typer.echo(f"processes {count}, restarts {restarts:,}")
        return
    from standpipe.errors import StandpipeError
    from standpipe.stream import Stream
    from standpipe.typed import takes_batch
    from standpipe.worker import Worker

    wants_batch = takes_batch(function) if batch is None else batch
    settings = settings_from(
        url=url,
        concurrency=concurrency,
        deliveries_max=deliveries_max,
        idle_ms_min=idle_ms_min,
        in_flight_events_max=in_flight_events_max,
        in_flight_bytes_max=in_flight_bytes_max,
        lease_ms=lease_ms,
        drain_ms_max=drain_ms_max,
    )

    async def run() -> dict[str, int]:
        async with Stream(stream, settings.url) as opened:
            worker = Worker(
                opened,
                group,
                start=start,
                concurrency=settings.concurrency,
                deliveries_max=settings.deliveries_max,
                idle_ms_min=settings.idle_ms_min,
                in_flight_events_max=settings.in_flight_events_max,
                in_flight_bytes_max=settings.in_flight_bytes_max,
                drain_ms_max=settings.drain_ms_max,
                ordered=ordered,
                lease_ms=settings.lease_ms,
                retain=retain,
            )
            (worker.batch if wants_batch else worker.each)(function, ack=ack_mode)
            on_stop_signals(worker.stop)
            if until_stdin_closes:
                await on_stdin_closed(worker.stop)
            await worker.run()
            counted, seen = worker.stats, worker.consumer.stats
            return {
                "handled": counted.handled,
                "retried": counted.retried,
                "dead": counted.dead,
                "taken_over": seen.taken_over,
                "lost": seen.lost,
            }

    try:
        counts = run_async(run())
    except SystemExit as ended:
        # Its code is not ours: 0 would say that all went well, 2 that the command was wrong.
        raise StandpipeError(
            f"the handler called sys.exit({ended.code!r})",
            hint="Its event comes again; raise Reject to give it up, or Retry to try it later.",
        ) from None
    finally:
        if keeper:
            keeper.close()
    if as_json:
        print_json(counts)
    else:
        typer.echo(", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items()))


def parse_ack(text: str, sink: str | None) -> Literal["auto", "manual"]:
    """Who acknowledges.

    Raises:
        ConfigError: it is neither, or a sink would have to do what it does not.
    """
    from standpipe.errors import ConfigError

    if text == "manual" and sink is None:
        return "manual"
    if text != "auto":
        raise ConfigError(
            f"--ack is {text!r}" + (" for a sink" if sink else ""),
            hint="auto, or manual for a handler that calls context.ack() or batch.ack().",
        )
    return "auto"


def load_sink(url: str) -> Sink:
    """The sink of a URL, which can be used, or is only not there yet.

    Raises:
        ConfigError: the URL is none of a sink.
        SinkUnusableError, MissingExtraError: the sink cannot be used as it is.
    """
    from standpipe.sinks import open_sink
    from standpipe.sinks.sink import require_reachable

    sink = open_sink(url)
    require_reachable(sink)
    return sink


def load_handler(path: str | None, sink: str | None = None) -> Callable[..., Any]:
    """Import ``module:function``, also from the current folder.

    Raises:
        HandlerError: the path is malformed, the module cannot be imported, or has no such function;
            or there is not just one of handler and sink.
    """
    from importlib import import_module

    from standpipe.errors import HandlerError

    if path is None or sink is not None:
        raise HandlerError(
            "a worker has a handler or a sink, and one of the two",
            hint="Give module:function, or --sink URL.",
        )
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise HandlerError(f"handler {path!r} is not module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise HandlerError(f"handler {path!r} cannot be imported: {error}") from error
    except Exception as error:
        raise HandlerError(
            f"handler {path!r}: module {module_name!r} raised {type(error).__name__}: {error}",
            hint=f"Run `python -c 'import {module_name}'` to see where.",
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise HandlerError(f"handler {path!r}: there is no {part!r} in {module_name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise HandlerError(f"handler {path!r} is not callable but {found!r}")
    return found
