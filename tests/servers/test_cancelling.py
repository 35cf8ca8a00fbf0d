"""Cancelling what connects: whoever waits for the end of it must not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from standpipe.wire import Server
from tests.servers.fleet import TestCluster

pytestmark = pytest.mark.servers


async def ends_when_cancelled(work: Callable[[], Awaitable[object]]) -> bool:
    """Cancel it after each number of turns of the event loop at which it is still at work."""
    for turns in range(1_000):
        task = asyncio.ensure_future(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            return turns > 3
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            return False
    return False


async def test_a_cluster(cluster: Callable[..., TestCluster]) -> None:
    """A cancellation is never lost while a cluster's map is read or a connection is made, at
    whatever moment it comes: a janitor would go on for ever."""
    async with Server(cluster("valkey-9.1").url) as server:

        async def connects_anew() -> None:
            await server.refresh()
            await (await server.link("any")).close()

        assert await ends_when_cancelled(connects_anew)
        assert await ends_when_cancelled(lambda: server.scan("*"))
