"""Going on with what arrives at the shards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from standpipe.errors import StandpipeError
from standpipe.limits import READ_BLOCK_MS, SEND_DEADLINE_MS
from standpipe.reader.source import Read, Source, pause
from standpipe.stream import Stream
from standpipe.wire import Link, pack

_QUEUE_PAGES: int = 16
"""Pages that wait for a slow consumer; then nothing more is read."""


async def followed(stream: Stream, sources: Sequence[Source[Read]]) -> AsyncGenerator[Read, None]:
    """What arrives, each shard in its order, until the iteration is left."""
    groups = [[source] for source in sources] if stream.server.is_cluster else [list(sources)]
    arrived: asyncio.Queue[Read | Exception] = asyncio.Queue(maxsize=_QUEUE_PAGES)
    loops = [asyncio.create_task(_keep_following(stream, group, arrived)) for group in groups]
    try:
        while True:
            found = await arrived.get()
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def _keep_following(
    stream: Stream, sources: list[Source[Read]], arrived: asyncio.Queue[Read | Exception]
) -> None:
    try:
        await _follow(stream, sources, arrived)
    except Exception as error:
        # Whatever it is: without this loop the reader would wait in silence for ever.
        await arrived.put(error)


async def _follow(
    stream: Stream, sources: list[Source[Read]], arrived: asyncio.Queue[Read | Exception]
) -> None:
    by_key = {stream.keys[source.shard].encode(): source for source in sources}
    link: Link | None = None
    attempt = 0
    deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
    try:
        while True:
            try:
                if link is None or not link.is_open:
                    link = await stream.server.link(stream.keys[sources[0].shard])
                # It only says where something has arrived. The page is read by itself, so that what
                # was trimmed before it is noticed.
                points = [source.behind for source in sources]
                read = pack(
                    "XREAD", "COUNT", 1, "BLOCK", READ_BLOCK_MS, "STREAMS", *by_key, *points
                )
                wait = READ_BLOCK_MS + link.reply_ms_max
                (reply,) = await link.exchange((read,), 1, reply_ms_max=wait)
                if isinstance(reply, StandpipeError):
                    raise reply
            except StandpipeError as error:
                attempt += 1
                if link is not None:
                    # The shard may be on another node by now: ask anew for the one that has it.
                    await link.close()
                await pause(stream, error, attempt, deadline)
                continue
            attempt = 0
            deadline = time.monotonic() + SEND_DEADLINE_MS / 1000
            waiting = [by_key[key] for key in reply or ()]
            while waiting:
                # In turn, so that a busy shard does not keep the others waiting.
                for source in list(waiting):
                    found = await source.next()
                    if found is None:
                        waiting.remove(source)
                    else:
                        await arrived.put(found)
    finally:
        if link is not None:
            await link.close()
