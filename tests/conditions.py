"""Waiting for a condition with a deadline: what tests use in place of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    deadline_s: float = 10,
    *,
    what: str = "",
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """Wait until a condition, a function or an async one, returns something true; return that.

    Args:
        condition: Called every 20 ms.
        deadline_s: After this the test fails.
        what: What is waited for, for the failure; default: the condition's name.
        ignore: Errors of the condition that mean "not yet".
    """
    watch = _Watch(condition, deadline_s, what)
    while True:
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
        except ignore as error:
            value = watch.failed(error)
        if value:
            return value
        watch.check(value)
        await asyncio.sleep(POLL_S)


def eventually_sync(
    condition: Callable[[], T],
    deadline_s: float = 10,
    *,
    what: str = "",
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """:func:`eventually` for tests that are not async."""
    watch = _Watch(condition, deadline_s, what)
    while True:
        try:
            value = condition()
        except ignore as error:
            value = watch.failed(error)
        if value:
            return value
        watch.check(value)
        time.sleep(POLL_S)


class _Watch:
    """The deadline, and what the failure says when it is over."""

    def __init__(self, condition: object, deadline_s: float, what: str) -> None:
        self.deadline_s = deadline_s
        self.what = what or getattr(condition, "__qualname__", repr(condition))
        self.until = time.monotonic() + deadline_s
        self.error: Exception | None = None

    def failed(self, error: Exception) -> None:
        self.error = error

    def check(self, value: object) -> None:
        if time.monotonic() > self.until:
            raise AssertionError(
                f"not within {self.deadline_s} s: {self.what}; the last answer was "
                f"{value if self.error is None else self.error!r}"
            ) from self.error
        self.error = None
