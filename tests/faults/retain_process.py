"""A janitor process that tests kill: ``python -m tests.faults.retain_process URL STREAM``.

Says ``trimmed <entries>`` whenever it has let something go.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from standpipe import Stream
from standpipe.retention import Janitor


async def keep(url: str, name: str) -> None:
    async with Stream(name, url) as stream:
        janitor = Janitor(stream, lease_ms=300)
        running = asyncio.create_task(janitor.run())
        said = 0
        while not running.done():
            if janitor.stats.trimmed > said:
                said = janitor.stats.trimmed
                print("trimmed", said, flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), 0.02)
        running.result()


if __name__ == "__main__":
    asyncio.run(keep(*sys.argv[1:]))
