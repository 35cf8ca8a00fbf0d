"""The progress bar of commands that take a while."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """On a terminal a bar, gone at the end; elsewhere nothing, and what draws it is not loaded.

    Args:
        title: In front of it.
        text: Behind it: rich's format, of the task's ``completed``, ``total`` and ``fields``.
        total: Where it ends; None: not known.
        is_quiet: No bar on a terminal either.
        shows_left: The time that it will take, in place of what it has taken.
        fields: What ``text`` names, to begin with.
    """

    def __init__(
        self,
        title: str,
        text: str,
        *,
        total: int | None,
        is_quiet: bool,
        shows_left: bool = False,
        **fields: Any,
    ) -> None:
        self._progress: Progress | None = None
        if is_quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        time = TimeRemainingColumn() if shows_left else TimeElapsedColumn()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(text),
            time,
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total, **fields)

    def update(self, **fields: Any) -> None:
        """New values of ``completed``, ``total`` or what the text names."""
        if self._progress is not None:
            self._progress.update(self._task, **fields)

    def say(self, text: str) -> None:
        """A line on standard error, above the bar."""
        if self._progress is None:
            typer.echo(text, err=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
