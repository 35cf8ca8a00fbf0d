"""Whether a function can be called as a handler, and what it is called."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, cast

from standpipe.errors import HandlerError


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
