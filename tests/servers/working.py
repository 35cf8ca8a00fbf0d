"""Workers at work in a test, and what a group has left behind, read past the code under test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from standpipe import Event, Producer, Stream, Worker
from tests.servers.fleet import TestServer


@contextlib.asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    """Workers at work; stopped, and their errors raised, at the end."""
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.gather(*tasks)


async def send(stream: Stream, events: list[Event], codec: str = "rows") -> None:
    async with Producer(stream, codec=codec) as producer:
        await (await producer.send_many(events))


async def settled(stream: Stream, group: str = "g") -> bool:
    """Whether the group has been given everything and nothing is pending."""
    for key in stream.keys:
        last = await stream.server.call("XREVRANGE", key, "+", "-", "COUNT", 1, key=key)
        groups = await stream.server.call("XINFO", "GROUPS", key, key=key)
        (info,) = [found for found in groups if found[b"name"] == group.encode()]
        if info[b"pending"] or (last and info[b"last-delivered-id"] != last[0][0]):
            return False
    return True


async def pending(stream: Stream, group: str = "g") -> list[tuple[bytes, int]]:
    """The (consumer, deliveries) of each pending entry, in order, over all shards."""
    found = []
    for key in stream.keys:
        rows = await stream.server.call("XPENDING", key, group, "-", "+", 100_000, key=key)
        found += [(consumer, count) for _, consumer, _, count in rows]
    return found


async def letters(stream: Stream) -> list[dict[str, Any]]:
    """The dead letters of all shards."""
    found = []
    for shard, key in enumerate(stream.keys):
        for _, fields in await stream.server.call(
            "XRANGE", stream.dead_key(shard), "-", "+", key=key
        ):
            pairs = dict(zip(fields[::2], fields[1::2], strict=True))
            found.append({name.decode(): value for name, value in pairs.items()})
    return found


def calls(server: TestServer, command: str) -> int:
    """How often a server has run a command (``xgroup|create``: a subcommand, but on Redis 6.2)."""
    found = server.info("commandstats").get(f"cmdstat_{command}", "calls=0")
    return int(found.partition("calls=")[2].partition(",")[0])
