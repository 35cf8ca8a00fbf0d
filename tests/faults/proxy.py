"""A TCP proxy that fails on purpose, in the ways in which networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Sequence

FAULTS = ("lost reply", "half a reply", "half a request", "late reply")
"""What can be done to a write.

* ``lost reply``: the server executes it, and the connection is cut before its reply arrives.
* ``half a reply``: cut in the middle of the reply.
* ``half a request``: cut in the middle of the request.
* ``late reply``: the reply is held back for ``late_ms``, longer than the client waits.

``late second half`` is the same for half of it, and not done unless asked for.
"""


class Proxy:
    """Stands between a client and the server on a port; use it as an async context manager.

    Args:
        port: The server's.
        seed: Of the choice among the faults, so that a run can be repeated.
        faults: Those to choose from.
        every: Of so many writes one fails; 0: none does.
        late_ms: How long a late reply is held back.
        write: The command that makes a request a write, as it stands in it.

    Only writes, by default requests which run a script, are tampered with: a connection can always
    be made.
    """

    def __init__(
        self,
        port: int,
        *,
        seed: int = 0,
        faults: Sequence[str] = FAULTS,
        every: int = 0,
        late_ms: int = 0,
        write: str = "EVAL",
    ) -> None:
        self.every = every
        self.done: Counter[str] = Counter()
        """How often each fault was done."""
        self._target = port
        self._chance = random.Random(seed)
        self._faults = faults
        self._late_ms = late_ms
        self._write = b"\r\n" + write.encode()
        self._writes = 0
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._listener is not None
        return self._listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._listener.wait_closed()

    def reset(self) -> None:
        """Reset all connections (RST), whatever is under way or not."""
        for writer in self._writers:
            made: socket.socket = writer.get_extra_info("socket")
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Only __aexit__ cancels, and asyncio would log that as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self._writers.add(writer)
        server: asyncio.StreamWriter | None = None
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self._target)
            link = _Link(self, reader, writer, from_server, server)
            async with asyncio.TaskGroup() as both:
                both.create_task(link.requests())
                both.create_task(link.replies())
        except* (OSError, _Cut):
            pass
        finally:
            self._links.discard(task)
            self._writers.discard(writer)
            for end in (writer, server):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    def _choose(self, request: bytes) -> str:
        if not self.every or self._write not in request:
            return ""
        self._writes += 1
        if self._writes % self.every:
            return ""
        fault = self._chance.choice(self._faults)
        self.done[fault] += 1
        return fault


class _Cut(Exception):
    """Ends both directions of a connection."""


class _Link:
    """The two directions of one connection."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._to_client = to_client
        self._server = server
        self._to_server = to_server
        self._fault = ""

    async def requests(self) -> None:
        while request := await self._client.read(65_536):
            fault = self._proxy._choose(request)
            if fault == "half a request":
                self._to_server.write(request[: len(request) // 2])
                await self._to_server.drain()
                raise _Cut
            self._fault = fault or self._fault
            self._to_server.write(request)
            await self._to_server.drain()
        raise _Cut

    async def replies(self) -> None:
        while reply := await self._server.read(65_536):
            fault, self._fault = self._fault, ""
            if fault == "lost reply":
                raise _Cut
            if fault == "half a reply":
                self._to_client.write(reply[: len(reply) // 2])
                await self._to_client.drain()
                raise _Cut
            if fault == "late second half":
                self._to_client.write(reply[: len(reply) // 2])
                await self._to_client.drain()
                reply = reply[len(reply) // 2 :]
            if fault in ("late reply", "late second half"):
                await asyncio.sleep(self._proxy._late_ms / 1000)
            self._to_client.write(reply)
            await self._to_client.drain()
        raise _Cut
