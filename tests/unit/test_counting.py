"""Delivery counts that several handlers wait for leave together, each for itself answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from standpipe.consumer.counting import Counting, Hold
from standpipe.errors import ServerUnavailableError
from tests.conditions import eventually


class Server:
    """Takes what is sent, and answers when it is let."""

    def __init__(self) -> None:
        self.exchanges: list[list[int]] = []
        self.answers = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def exchange(self, holds: Sequence[Hold]) -> None:
        self.exchanges.append([hold.shard for hold in holds])
        await self.answers.acquire()
        if self.error is not None:
            raise self.error


async def writing(counting: Counting, server: Server, *shards: int) -> list[asyncio.Task[None]]:
    """One caller for each shard, of whom the first one's count is on its way."""
    before = len(server.exchanges)
    callers = [asyncio.create_task(counting.write(Hold(n, [b"1-1"], 2))) for n in shards]
    await eventually(lambda: len(server.exchanges) > before)
    return callers


async def test_those_that_come_meanwhile_go_together() -> None:
    """The first count leaves at once, all others in one exchange; nobody goes on before his own."""
    server = Server()
    first, *others = await writing(Counting(server.exchange), server, *range(64))
    server.answers.release()
    await first
    await eventually(lambda: len(server.exchanges) == 2)
    assert server.exchanges == [[0], list(range(1, 64))]
    assert not any(each.done() for each in others)
    server.answers.release()
    await asyncio.gather(*others)
    assert len(server.exchanges) == 2


async def test_an_error_is_for_all_of_its_exchange_and_no_other() -> None:
    """Who was sent along learns that it failed; who comes after is not concerned."""
    server = Server()
    counting = Counting(server.exchange)
    first, *others = await writing(counting, server, 0, 1, 2)
    server.answers.release()
    await first
    server.error = ServerUnavailableError("gone")
    server.answers.release()
    found = await asyncio.gather(*others, return_exceptions=True)
    assert found == [server.error, server.error]
    server.error = None
    (later,) = await writing(counting, server, 3)
    server.answers.release()
    await later


async def test_one_that_is_cancelled_leaves_the_others_theirs() -> None:
    """Cancelled on the way, the count of one caller is not written; those sent along are."""
    server = Server()
    counting = Counting(server.exchange)
    first, second, third, fourth = await writing(counting, server, 0, 1, 2, 3)
    third.cancel()
    server.answers.release()
    await first
    await eventually(lambda: len(server.exchanges) == 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await eventually(lambda: len(server.exchanges) == 3)
    server.answers.release()
    await fourth
    assert server.exchanges == [[0], [1, 3], [3]]
