"""Two connections to where some shards are: one that blocks in reads, and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from standpipe.errors import ScriptMissingError, StandpipeError
from standpipe.stream import Stream
from standpipe.wire import Link, script


class Links:
    """Two connections, each made when it is needed and made anew when it is gone.

    Args:
        stream: The stream, whose server they are to.
        key: In a cluster, whose place they are to.
    """

    def __init__(self, stream: Stream, key: str) -> None:
        self.stream = stream
        self._key = key
        self._read_link: Link | None = None
        self._control_link: Link | None = None
        self._control = asyncio.Lock()

    async def _reading(self) -> Link:
        if self._read_link is None or not self._read_link.is_open:
            self._read_link = await self.stream.server.link(self._key)
        return self._read_link

    async def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Commands that do not block, over the second connection."""
        async with self._control:
            if self._control_link is None or not self._control_link.is_open:
                self._control_link = await self.stream.server.link(self._key)
            return await self._control_link.exchange(commands, len(commands))

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Commands that do not block, over the second connection; an error reply is raised."""
        replies = await self._exchange(commands)
        for reply in replies:
            if isinstance(reply, StandpipeError):
                raise reply
        return replies

    async def _run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        async with self._control:
            if self._control_link is None or not self._control_link.is_open:
                self._control_link = await self.stream.server.link(self._key)
            return await self._control_link.run(script(name), keys, *arguments)

    async def _run_all(
        self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """A script for several shards, in one round trip; error replies stand in their places."""
        if not calls:
            return []
        known = script(name)
        replies = await self._exchange([known.pack(keys, *given) for keys, given in calls])
        # Another client may teach the server the script in between: then some were executed.
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, ScriptMissingError)]
        if missing:
            again = [known.pack(calls[n][0], *calls[n][1], whole=True) for n in missing]
            for n, reply in zip(missing, await self._exchange(again), strict=True):
                replies[n] = reply
        return replies

    async def close(self) -> None:
        for link in (self._read_link, self._control_link):
            if link is not None:
                await link.close()

    def _server(self) -> str:
        """Where this lane is connected to."""
        links = (self._control_link, self._read_link)
        return next((link.peer for link in links if link is not None and link.is_open), "")
