"""A function as a handler: whether it can be one, and how it is to be called."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Literal, cast

from standpipe.errors import HandlerError
from standpipe.typed import converter

AckMode = Literal["auto", "manual"]
"""``auto``: what a handler is called for is acknowledged when it returns."""


class Handler:
    """A user's function, and what is to be known to call it.

    Args:
        function: As it was given to the worker.
        is_batch: Whether it is called for whole batches.
        ack: Who acknowledges.

    Raises:
        HandlerError: it cannot be one.
    """

    def __init__(self, function: Callable[..., Any], ack: AckMode, *, is_batch: bool) -> None:
        if ack not in ("auto", "manual"):
            raise HandlerError(f"ack is {ack!r}", hint='It is "auto" or "manual".')
        self.function: Final = function
        self.name: Final = name_of(function)
        self.is_batch: Final = is_batch
        self.is_manual: Final = ack == "manual"
        """Whether it acknowledges by itself."""
        self.wants_context: Final = takes_context(function)
        self.convert: Final = converter(function, is_batch=is_batch)
        """Makes its argument of an event or a batch; None: it takes that itself."""
        self.is_async: Final = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  an object with an async __call__
        )
        has_batch = is_batch and self.convert is None
        if self.is_manual and not self.wants_context and not has_batch:
            raise HandlerError(
                f"{self.name} has nothing to acknowledge with",
                hint="Let it take the context as its second argument, and call context.ack().",
            )


def unfinished(handler: Callable[..., Any], result: object) -> HandlerError | None:
    """The error for a plain handler that has only begun: what it returned would have to be run."""
    kind = type(result)
    if not issubclass(kind, (Awaitable, Generator, AsyncGenerator)):
        return None
    if issubclass(kind, Coroutine):
        # Python would warn of it otherwise.
        cast("Coroutine[Any, Any, Any]", result).close()
    return HandlerError(
        f"{name_of(handler)} returned a {kind.__name__}, so it has handled nothing yet",
        hint="Declare the handler itself with `async def`, and without `yield`.",
    )


def name_of(handler: object) -> str:
    return getattr(handler, "__name__", repr(handler))


def takes_context(handler: Callable[..., Any]) -> bool:
    name = name_of(handler)
    if not callable(handler):
        raise HandlerError(f"{name} is not callable")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise HandlerError(
            f"{name} is a generator: calling it runs nothing of it",
            hint="Write the handler without `yield`.",
        )
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        # Some functions written in C have no signature: they get the event alone.
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(needed) > 2 or not positional or named:
        raise HandlerError(
            f"{name} takes {len(needed)} arguments{' and ' if named else ''}{', '.join(named)}",
            hint="A handler takes the event (or batch) and, if it wants it, the context.",
        )
    return len(needed) == 2
