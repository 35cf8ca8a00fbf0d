"""Taking notice of a cancellation that a library has lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def heeding_cancel() -> AsyncGenerator[None]:
    """End the block with CancelledError if its task was cancelled in it and it took no notice.

    redis-py writes by ``asyncio.wait_for`` where it has a timeout. Before Python 3.12 that returns
    as if nothing were if it is cancelled when the write is just done; a loop around it would then
    go on for ever, and whoever has cancelled it would wait for its end as long.

    Source: https://github.com/python/cpython/issues/86296
    """
    task = asyncio.current_task()
    assert task is not None, "an async context manager runs in a task"
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
