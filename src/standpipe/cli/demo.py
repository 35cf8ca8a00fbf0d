"""``standpipe demo``: the whole way through, in under two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from standpipe.cli.running import FAILED, Json, command, print_json, run_async

EXAMPLE = "Example: standpipe demo --dataset wntr --variant ky10 --days 1"


@command
def demo(
    dataset: Annotated[
        str, typer.Option("--dataset", help="wntr, simbench, pvanalytics, river…")
    ] = "wntr",
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Which network or grid of it.", show_default=False),
    ] = None,
    days: Annotated[float, typer.Option("--days", min=0.05, help="Days of readings.")] = 7,
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            min=1,
            help="Number of devices [default: all there are].",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", min=1, max=256, help="Shards.")] = 2,
    rate: Annotated[
        float, typer.Option("--rate", min=1, help="Events per second of the steady part.")
    ] = 1_000,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="How long the steady part lasts.")
    ] = 10,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="Your own server [default: an embedded one].", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Keep the embedded server's data in this folder [default: a temporary one].",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send real readings through a real server to three workers, kill one, and balance the ledger.

    Exit code 0 only if every reading that was sent was processed, and nothing else was.
    """
    from rich.console import Console

    from standpipe.demo.run import Options, run, show_result

    console = Console(stderr=as_json)
    options = Options(dataset, variant, days, devices, shards, rate, seconds, url, data)
    result = run_async(run(options, console))
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(result))
    else:
        show_result(result, console)
    if not result.balances:
        raise typer.Exit(FAILED)
