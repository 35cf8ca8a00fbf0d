"""What the demo prints: a live panel while it runs, the ledger at the end."""

from __future__ import annotations

from typing import Any

import msgspec
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from standpipe.demo.ledger import Account


class Moment(msgspec.Struct):
    """What is known while the demo runs."""

    phase: str = "starting"
    total: int = 0
    """Events to be sent."""
    sent: int = 0
    """Acknowledged so far."""
    handled: int = 0
    rate_in: float = 0.0
    """Events per second over the last refresh."""
    rate_out: float = 0.0
    lag: int | None = None
    """Entries that no worker has been given yet."""
    pending: int = 0
    taken_over: int = 0
    workers: int = 0


class Display:
    """A live panel on a terminal; without one, a line per phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.completed:>9,.0f} / {task.total:,.0f}"),
            console=console,
        )
        self._in = self._progress.add_task("sent", total=1)
        self._out = self._progress.add_task("handled", total=1)
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._phase = ""

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, moment: Moment) -> None:
        """Show where things stand."""
        if moment.phase != self._phase:
            self._phase = moment.phase
            self.say(f"[bold]{moment.phase}[/bold]")
        if not self._console.is_terminal:
            return
        self._progress.update(self._in, completed=moment.sent, total=moment.total or None)
        self._progress.update(self._out, completed=moment.handled, total=moment.total or None)
        facts = Table.grid(padding=(0, 3))
        facts.add_row("rate in", "rate out", "lag", "pending", "taken over", "workers")
        facts.add_row(
            f"{moment.rate_in:,.0f}/s",
            f"{moment.rate_out:,.0f}/s",
            "?" if moment.lag is None else f"{moment.lag:,} entries",
            f"{moment.pending:,} entries",
            f"{moment.taken_over:,} entries",
            f"{moment.workers}",
        )
        self._live.update(Group(self._progress, facts))


def print_ledger(console: Console, account: Account, facts: dict[str, Any]) -> None:
    """The ledger, and the figures beside it."""
    table = Table(
        title="ledger", title_justify="left", show_header=False, box=box.SIMPLE, pad_edge=False
    )
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("meaning", style="dim")
    table.add_row("sent", f"{account.sent:,}", "acknowledged by the server")
    table.add_row("processed", f"{account.processed:,}", "distinct events a handler finished")
    table.add_row(
        "duplicates", f"{account.duplicates:,}", "handled again after the kill: at least once"
    )
    table.add_row("dead-lettered", f"{account.dead:,}", "")
    table.add_row("lost", f"{account.lost:,}", "sent, and neither processed nor dead-lettered")
    table.add_row("unknown", f"{account.unknown:,}", "processed, and never sent")
    table.add_row("altered", f"{account.altered:,}", "processed with another content")
    console.print(table)
    figures = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        figures.add_row(name, str(value))
    console.print(figures, highlight=False)
    console.print(
        "[bold green]the ledger balances[/bold green]"
        if account.balances
        else "[bold red]the ledger does not balance[/bold red]"
    )
