"""Whether this process is the one in which something was made, or was forked from it since."""

from __future__ import annotations

import os
from typing import Final

from standpipe.errors import ForkedError


class _Forks:
    """How many forks lie between the program's start and this process; free to ask."""

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork either.
            os.register_at_fork(after_in_child=self._on_fork)

    def _on_fork(self) -> None:
        self.count += 1


_FORKS: Final = _Forks()


def forks() -> int:
    """A number that differs between a process and those that were forked from it."""
    return _FORKS.count


def require_same_process(made: int, what: str) -> None:
    """Raise if this process was forked since.

    Args:
        made: :func:`forks` when the object was made.
        what: The object, for the message.

    Raises:
        ForkedError: it was.
    """
    if made != _FORKS.count:
        raise ForkedError(f"the {what} was made in another process, before a fork")
