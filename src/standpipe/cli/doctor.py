"""``standpipe doctor``: what is wrong, why it matters, and the command that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from standpipe.cli.running import Json, Url, command, print_json, run_async, settings_from

if TYPE_CHECKING:
    from standpipe.doctor import Finding, Report
    from standpipe.doctor.repair import Repaired

CRITICAL = 3
"""The exit code when something critical was found."""

EXAMPLE = "Example: standpipe doctor power_grid_stream --log /var/log/redis/redis-server.log"


@command
def doctor(
    streams: Annotated[
        list[str] | None,
        typer.Argument(help="The streams to look at [default: all]", show_default=False),
    ] = None,
    url: Url = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", help="The server's log file, to look for trouble in."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what a command can mend; the rest stays advice.")
    ] = False,
    window: Annotated[
        str, typer.Option("--window", help="How long lag and load are watched.")
    ] = "5s",
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="Where counters of the last look are kept "
            "[default: ~/.local/state/standpipe/doctor.json]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at the machine, the server, this Python, the streams and the log; say what is wrong.

    Each finding has what was read, why it matters and the command that mends it. The exit code is 3
    when something critical was found.
    """
    from standpipe.clock import parse_duration
    from standpipe.doctor import examine
    from standpipe.doctor.repair import repair_all

    async def visit() -> tuple[Report, list[Repaired]]:
        report = await examine(
            settings_from(url=url).url,
            names=streams or (),
            log=log,
            window_ms=parse_duration(window, name="--window"),
            state=state,
        )
        return report, await repair_all(report.findings) if fix else []

    report, repaired = run_async(visit())
    if as_json:
        facts: dict[str, object] = {
            "servers": report.servers,
            "streams": report.streams,
            "first_look": report.is_first_look,
            "findings": [each.as_facts() for each in report.findings],
        }
        if fix:
            facts["repaired"] = [
                {
                    "check": each.finding.check.name,
                    "place": each.finding.place,
                    "before": each.before,
                    "after": each.after,
                    "said": each.said,
                }
                for each in repaired
            ]
        print_json(facts)
    else:
        _print(report, repaired, fix=fix)
    if report.is_critical:
        raise typer.Exit(CRITICAL)


_COLOURS = {"critical": "red", "warning": "yellow", "note": "cyan"}


def _print(report: Report, repaired: list[Repaired], *, fix: bool) -> None:
    for finding in report.findings:
        typer.secho(f"{finding.level:<8}", fg=_COLOURS[finding.level], bold=True, nl=False)
        typer.echo(f"  {finding.check.name}  {finding.place}")
        typer.echo(f"          found  {finding.evidence}")
        typer.echo(f"          why    {finding.check.why}")
        typer.echo(f"          fix    {finding.fix}")
        typer.echo("")
    for each in repaired:
        _print_repaired(each)
    looked = [*report.servers, *(f"stream {name}" for name in report.streams)]
    typer.echo(f"looked at: this machine, this Python{''.join(', ' + each for each in looked)}")
    if report.is_first_look:
        typer.echo("first look: errors and drops that only count up are told from the next one on")
    counts = {level: 0 for level in _COLOURS}
    for finding in report.findings:
        counts[finding.level] += 1
    typer.echo(", ".join(f"{count} {level}" for level, count in counts.items()))
    if not fix and (mendable := _mendable(report.findings)):
        typer.echo(f"--fix mends {mendable} of them by itself")


def _mendable(findings: list[Finding]) -> int:
    return sum(finding.repair is not None for finding in findings)


def _print_repaired(each: Repaired) -> None:
    name = f"{each.finding.check.name}  {each.finding.place}"
    if each.after is None:
        typer.secho(f"not mended  {name}: {each.said}", fg="red")
    else:
        said = f" ({each.said})" if each.said else ""
        typer.secho(f"mended      {name}: {each.before!r} → {each.after!r}{said}", fg="green")
