"""``standpipe work``: a user's handler over a stream, in one process or several."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from standpipe.cli.running import (
    TUNING,
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

EXAMPLE = "Example: standpipe work power_grid_stream app:store --group monitoring --processes 2"


@command
def work(
    stream: StreamName,
    handler: Annotated[
        str,
        typer.Argument(help="module:function, importable from here.", show_default=False),
    ],
    group: Annotated[
        str, typer.Option("--group", "-g", help="The consumer group.", show_default=False)
    ],
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, max=256, help="Worker processes.")
    ] = 1,
    batch: Annotated[
        bool | None,
        typer.Option(
            "--batch/--each",
            help="Call the handler with whole batches, or with single events "
            "[default: by the annotation of its first argument]",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str, typer.Option("--start", help="Where a new group begins: 0, $ or an entry ID.")
    ] = "0",
    concurrency: Annotated[
        int | None,
        typer.Option(help="Handlers at a time in each process.", rich_help_panel=TUNING),
    ] = None,
    deliveries_max: Annotated[
        int | None, typer.Option(help="Then an event is dead.", rich_help_panel=TUNING)
    ] = None,
    idle_ms_min: Annotated[
        str | None,
        typer.Option(help="Take over what is idle for so long: 30s.", rich_help_panel=TUNING),
    ] = None,
    in_flight_events_max: Annotated[int | None, typer.Option(rich_help_panel=TUNING)] = None,
    drain_ms_max: Annotated[
        str | None, typer.Option(help="Wait so long for handlers.", rich_help_panel=TUNING)
    ] = None,
    url: Url = None,
    as_json: Json = False,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a handler over every event of a stream until SIGTERM or Ctrl-C, which drain.

    The handler is called as handler(event) or handler(event, context); with --batch it gets a
    Batch. Events whose handler raises are tried again and become dead letters in the end.
    """
    set_up_logging()
    if processes > 1:
        run_async(_run_processes(processes, handler))
        return
    from standpipe.stream import Stream
    from standpipe.worker import Worker

    function = load_handler(handler)
    wants_batch = takes_batch(function) if batch is None else batch
    settings = settings_from(
        url=url,
        concurrency=concurrency,
        deliveries_max=deliveries_max,
        idle_ms_min=idle_ms_min,
        in_flight_events_max=in_flight_events_max,
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
                drain_ms_max=settings.drain_ms_max,
            )
            (worker.batch if wants_batch else worker.each)(function)
            on_stop_signals(worker.stop)
            if until_stdin_closes:
                await _on_stdin_closed(worker.stop)
            await worker.run()
            counted, seen = worker.stats, worker.consumer.stats
            return {
                "handled": counted.handled,
                "retried": counted.retried,
                "dead": counted.dead,
                "taken_over": seen.taken_over,
                "lost": seen.lost,
            }

    counts = run_async(run())
    if as_json:
        print_json(counts)
    else:
        typer.echo(", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items()))


def load_handler(path: str) -> Callable[..., Any]:
    """Import ``module:function``, also from the current folder.

    Raises:
        HandlerError: the path is malformed, the module cannot be imported, or has no such function.
    """
    from importlib import import_module

    from standpipe.errors import HandlerError

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


def takes_batch(function: Callable[..., Any]) -> bool:
    """Whether the first argument of a handler is annotated as a Batch."""
    import inspect

    from standpipe.event import Batch

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters:
        return False
    annotation = parameters[0].annotation
    return annotation is Batch or str(annotation).rpartition(".")[2] == "Batch"


async def _on_stdin_closed(stop: Callable[[], None]) -> None:
    """The parent holds the other end: that it is closed means the parent is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def watch() -> None:
        await reader.read()
        stop()

    _watches.add(watching := asyncio.create_task(watch()))
    watching.add_done_callback(_watches.discard)


_watches: set[asyncio.Task[None]] = set()


async def _run_processes(processes: int, handler: str) -> None:
    """Keep so many processes of this same command alive until asked to stop."""
    from standpipe.errors import HandlerError

    # Fail here, once and clearly, instead of in every child again and again.
    load_handler(handler)
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    given = sys.argv[1:]
    # The last one wins, so the child's own count goes to the end.
    line = [sys.executable, "-m", "standpipe", *given, "--processes", "1", "--until-stdin-closes"]
    results = await asyncio.gather(*[_keep_process(line, stopped) for _ in range(processes)])
    failed = [code for code in results if code]
    if failed:
        raise HandlerError(
            f"{len(failed)} of {processes} worker processes failed",
            hint="Their own messages stand above.",
        )


async def _keep_process(line: list[str], stopped: asyncio.Event) -> int:
    import logging

    from standpipe.cli.running import WRONG_USAGE
    from standpipe.policy import backoff_ms

    log = logging.getLogger("standpipe.work")
    attempt = 0
    while True:
        child = await asyncio.create_subprocess_exec(*line, stdin=asyncio.subprocess.PIPE)
        ending = asyncio.create_task(child.wait())
        asked = asyncio.create_task(stopped.wait())
        await asyncio.wait([ending, asked], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            child.terminate()
            return await ending
        asked.cancel()
        if child.returncode in (0, WRONG_USAGE):
            return child.returncode or 0
        attempt += 1
        wait_ms = backoff_ms(attempt, ms_min=200)
        log.error("a worker ended with %s; starting another in %d ms", child.returncode, wait_ms)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await stopped.wait()
            return 0
        except TimeoutError:
            continue
