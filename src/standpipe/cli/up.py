"""``standpipe up``: the embedded server in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from standpipe.cli.running import (
    Json,
    command,
    on_stop_signals,
    print_json,
    run_async,
    set_up_logging,
    settings_from,
)

EXAMPLE = "Example: standpipe up --data ./queue --port 6390"


@command
def up(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder for everything that is kept between runs "
            "[default: ~/.local/share/standpipe/server]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port; 0 takes a free one [default: the folder's last, else 6390]",
            show_default=False,
        ),
    ] = None,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = "127.0.0.1",
    fsync: Annotated[
        str, typer.Option("--fsync", help="When writes reach the disk: everysec, always or no.")
    ] = "everysec",
    retain: Annotated[
        bool,
        typer.Option("--retain/--no-retain", help="Also keep the streams within their limits."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a Valkey server here until SIGTERM or Ctrl-C; its data stays in the folder.

    Any Redis client can use the URL that is printed. The server is restarted if it dies.
    """
    import asyncio

    from standpipe.errors import ConfigError
    from standpipe.retention import Janitors
    from standpipe.server.embedded import EmbeddedServer
    from standpipe.wire import Server

    if fsync not in ("always", "everysec", "no"):
        raise ConfigError(f"--fsync is {fsync!r}", hint="It is everysec, always or no.")
    set_up_logging()

    async def serve() -> None:
        folder = settings_from(data=data).data
        server = EmbeddedServer(folder, port=port, bind=bind, appendfsync=fsync)  # pyright: ignore[reportArgumentType]  checked above
        await server.start()
        facts: dict[str, Any] = {
            "url": server.url,
            "data": str(server.data),
            "pid": server.pid,
            "log": str(server.log),
        }
        if as_json:
            print_json(facts)
        else:
            typer.echo(f"server  {facts['url']}  (pid {facts['pid']})")
            typer.echo(f"data    {facts['data']}")
            typer.echo(f"log     {facts['log']}")
            typer.echo("stop with Ctrl-C; the data stays")
        stopped = asyncio.Event()
        on_stop_signals(stopped.set)
        wire = Server(server.url, name="standpipe-up")
        retaining = asyncio.create_task(Janitors(wire).run() if retain else asyncio.sleep(0))
        watching = asyncio.create_task(server.supervise())
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            for task in (retaining, watching, waiting):
                task.cancel()
            await asyncio.gather(retaining, watching, waiting, return_exceptions=True)
            await wire.close()
            await server.stop()
        if not as_json:
            typer.echo("stopped")

    run_async(serve())
