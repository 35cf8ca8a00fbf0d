"""Janitors: one for each stream of a server that has a definition."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from standpipe.errors import StandpipeError
from standpipe.keyspace import definition_key
from standpipe.limits import RETAIN_FIND_MS
from standpipe.retention.janitor import Janitor
from standpipe.stream import Stream
from standpipe.wire import Server

log: Final = logging.getLogger("standpipe.retention")

_SUFFIX: Final = ":definition"


async def find_streams(server: Server) -> list[str]:
    """The names of the streams that have a definition: others have no limits.

    Raises:
        ServerError: the server cannot be reached or refuses.

    Cost: SCAN over all keys of all primaries.
    """
    names: set[str] = set()
    for key in await server.scan(f"*{_SUFFIX}"):
        # The way back from keyspace.definition_key.
        name = key.decode("utf-8", "replace").removesuffix(_SUFFIX)
        if name.startswith("{") and name.endswith("}"):
            name = name[1:-1]
        if definition_key(name).encode() == key:
            names.add(name)
    return sorted(names)


class Janitors:
    """Keep all streams of a server within their limits, also those that come later.

    Args:
        server: The server; whoever made it closes it.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, str] = {}
        """Stream → what was said last of why it is not kept: once, not at every look."""

    async def run(self) -> None:
        """Until this is cancelled."""
        failed = 0
        try:
            while True:
                try:
                    await self._meet(await find_streams(self._server))
                    failed = 0
                except StandpipeError as error:
                    failed += 1
                    # Ever more rarely, as a janitor does.
                    if failed & (failed - 1) == 0:
                        log.warning("retention: the streams of %s cannot be listed: %s (%s)",
                                    self._server.address.shown, error, error.hint)  # fmt: skip
                except Exception:
                    # Whatever it is, the server beside it goes on.
                    log.exception("retention failed in a way that was not foreseen")
                await asyncio.sleep(RETAIN_FIND_MS / 1000)
        finally:
            tasks, self._tasks = list(self._tasks.values()), {}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _meet(self, names: list[str]) -> None:
        """Start a janitor for each stream that has none; end those of streams that are gone."""
        for name in [name for name in self._tasks if name not in names]:
            self._tasks.pop(name).cancel()
        self._said = {name: text for name, text in self._said.items() if name in names}
        for name in names:
            task = self._tasks.get(name)
            if task is not None and not task.done():
                continue
            if task is not None:
                # As after a stream was made anew.
                log.warning("retention of %s begins again: %s", name, task.exception())
            try:
                stream = await Stream(name, self._server).open()
            except StandpipeError as error:
                if error.retryable:
                    raise
                # Somebody else's key of such a name, or one that this user may not read: the
                # streams behind it are kept all the same.
                if self._said.get(name) != str(error):
                    self._said[name] = str(error)
                    log.warning("retention of %s: %s (%s)", name, error, error.hint)
                continue
            self._tasks[name] = asyncio.create_task(Janitor(stream).run(), name="standpipe-janitor")
