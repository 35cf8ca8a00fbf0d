"""append.lua: one atomic step that adds a block once, in order, and remembers that it did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from standpipe.errors import SequenceError
from standpipe.keyspace import side_key
from standpipe.wire import Link, Server, script
from tests.servers.fleet import TestServer

TTL_MS = 60_000


class Appender:
    """Runs the script as a producer does."""

    def __init__(self, link: Link, key: str) -> None:
        self.link = link
        self.key = key
        self.memory = side_key(key, "seq:p")

    async def block(
        self, number: int | str, *, floor: int = 0, acknowledged: int = 0, payload: bytes = b"x"
    ) -> list[Any]:
        arguments = (number, floor, acknowledged, TTL_MS, "", "rows1", 3, payload)
        return await self.link.run(script("append"), (self.key, self.memory), *arguments)

    async def plain(self, number: int, *events: list[bytes], floor: int = 0) -> list[Any]:
        listed = [part for fields in events for part in (len(fields), *fields)]
        arguments = (number, floor, floor, TTL_MS, "", "", len(events), *listed)
        return await self.link.run(script("append"), (self.key, self.memory), *arguments)

    async def entries(self) -> list[Any]:
        return await self.link.call("XRANGE", self.key, "-", "+")


@pytest.fixture
async def append(server: TestServer, stream_name: str) -> AsyncIterator[Appender]:
    async with Server(server.url) as wire:
        link = await wire.link(stream_name)
        yield Appender(link, stream_name)
        await link.close()


async def test_block(append: Appender) -> None:
    """A block is one entry with its mark, its number of events and its payload."""
    payload = bytes(range(256))
    status, first, entries = await append.block(1, payload=payload)
    assert (status, entries) == (b"new", 1)
    assert await append.entries() == [[first, [b"c", b"rows1", b"n", b"3", b"d", payload]]]


async def test_block_sent_twice(append: Appender) -> None:
    """The same number again adds nothing and answers with the same ID."""
    _, first, _ = await append.block(1)
    _, second, _ = await append.block(2)
    assert await append.block(1) == [b"old", first, b"1"]
    assert await append.block(2) == [b"old", second, b"1"]
    assert [entry_id for entry_id, _ in await append.entries()] == [first, second]


async def test_plain_run_sent_twice(append: Appender) -> None:
    """So for a run of plain events, each an entry with its own fields, whose IDs come as runs."""
    events = [[b"volts", b"%d" % n, b"raw", bytes([n, 0, 255])] for n in range(250)]
    status, *runs = await append.plain(1, *events)
    assert status == b"new"
    again, *told = await append.plain(1, *events)
    assert again == b"old"
    found = await append.entries()
    assert [fields for _, fields in found] == events
    for given in (runs, told):
        ids: list[bytes] = []
        for first, count in zip(given[::2], given[1::2], strict=True):
            ms, _, seq = first.partition(b"-")
            ids += [b"%s-%d" % (ms, int(seq) + i) for i in range(int(count))]
        assert ids == [entry_id for entry_id, _ in found]


async def test_block_out_of_order(append: Appender) -> None:
    """A block whose predecessor is still to come is refused, and goes in behind it."""
    await append.block(1)
    with pytest.raises(SequenceError, match="expected block 2, got 3") as caught:
        await append.block(3, floor=1, acknowledged=1)
    assert caught.value.retryable
    assert len(await append.entries()) == 1
    await append.block(2, floor=1, acknowledged=1)
    assert (await append.block(3, floor=1, acknowledged=1))[0] == b"new"


async def test_block_behind_one_given_up(append: Appender) -> None:
    """A block that the producer has given up is not waited for, nor called a loss."""
    await append.block(1)
    assert (await append.block(4, floor=3, acknowledged=1))[0] == b"new"


async def test_memory_that_is_gone(append: Appender) -> None:
    """A server that has forgotten what it acknowledged adds the next block, and says so."""
    await append.block(1)
    await append.block(2, floor=1, acknowledged=1)
    await append.link.call("DEL", append.memory)
    assert (await append.block(3, floor=2, acknowledged=2))[0] == b"gap"
    assert (await append.block(4, floor=3, acknowledged=3))[0] == b"new"
    assert len(await append.entries()) == 4


async def test_memory_is_bounded(append: Appender) -> None:
    """Only the IDs of blocks that may be sent again are remembered."""
    for number in range(1, 51):
        await append.block(number, floor=number - 1, acknowledged=number - 1)
    assert len(await append.link.call("GET", append.memory)) < 50
    assert await append.block(7, floor=49, acknowledged=49) == [b"old"]
    assert len(await append.entries()) == 50


async def test_memory_goes_by_itself(append: Appender) -> None:
    """What is remembered of a producer ends when it has sent nothing for long enough."""
    await append.block(1)
    left = await append.link.call("PTTL", append.memory)
    assert TTL_MS - 10_000 < left <= TTL_MS


async def test_without_a_number(append: Appender) -> None:
    """Without a number nothing is checked and nothing remembered."""
    await append.block("")
    await append.block("")
    assert len(await append.entries()) == 2
    assert await append.link.call("EXISTS", append.memory) == 0
