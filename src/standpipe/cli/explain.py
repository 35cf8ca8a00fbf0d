"""``standpipe explain``: cause, check and cure of an error code."""

from __future__ import annotations

from typing import Annotated

import typer

from standpipe.cli.running import Json, command, print_json

EXAMPLE = 'Example: standpipe explain MISCONF, or standpipe explain "OOM command not allowed"'


@command
def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="A code, an error's name, or a line of a log.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what an error code means, how to find its cause, and how to cure it.

    Without a code, all of them are listed.
    """
    from standpipe.doctor.explain import EXPLANATIONS
    from standpipe.doctor.explain import explain as find

    if code is None:
        if as_json:
            print_json({name: each.cause for name, each in EXPLANATIONS.items()})
            return
        width = max(map(len, EXPLANATIONS))
        for name, each in EXPLANATIONS.items():
            typer.echo(f"{name:<{width}}  {each.error}")
        return
    found = find(code)
    if as_json:
        print_json(found._asdict())
        return
    typer.echo(f"{found.code}  ({found.error})")
    typer.echo(f"\ncause\n  {found.cause}")
    typer.echo(f"\nwhat Standpipe does\n  {found.standpipe}")
    for title, lines in (("check", found.check), ("cure", found.cure)):
        typer.echo(f"\n{title}")
        for line in lines:
            typer.echo(f"  {line}")
