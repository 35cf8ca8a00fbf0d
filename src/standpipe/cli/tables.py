"""Tables as the commands print them: plain, without boxes, numbers to the right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def new_table(title: str | None, *columns: str, texts: tuple[str, ...] = ()) -> Table:
    """An empty table; columns are numbers, but for those named in ``texts``."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    add_columns(table, *columns, texts=texts)
    return table


def add_columns(table: Table, *columns: str, texts: tuple[str, ...] = ()) -> None:
    for name in columns:
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")


def console() -> Console:
    from rich.console import Console

    # Into a file or a pipe a line is as long as it has to be.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def number_or_unknown(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def lasting(ms: int) -> str:
    """A duration, as people read it."""
    from standpipe.clock import format_duration

    return format_duration(max(0, ms))
