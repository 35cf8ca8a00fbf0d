"""A server to talk to and a stream on it, for tests that need no others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from standpipe import Stream
from standpipe.wire import Server
from tests.servers.fleet import TestServer


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture
async def stream(wire: Server, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, wire) as found:
        yield found
