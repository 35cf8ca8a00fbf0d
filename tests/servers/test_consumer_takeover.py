"""What one member of a group holds, renews, settles, takes over and forgets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Stream
from standpipe.consumer.lane import Lane
from standpipe.wire import script
from tests.conditions import eventually
from tests.faults.proxy import Proxy
from tests.servers.consuming import consuming, hand_out, watching
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import calls, pending, send

pytestmark = pytest.mark.servers
OwnServer = Callable[..., TestServer]


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


# --- holding and taking over ---------------------------------------------------------------------


async def test_a_full_consumer_renews_what_it_holds(stream: Stream, server: TestServer) -> None:
    """One that has no room for more still renews: it is not taken for dead."""
    await send(stream, make_events(20), "plain")
    async with consuming(stream, "full", idle_ms_min=300, in_flight_events_max=5) as full:
        await eventually(lambda: full.consumer.in_flight >= 5)
        async with consuming(stream, "other", idle_ms_min=300) as other:
            before = calls(server, "xautoclaim")
            await eventually(lambda: calls(server, "xautoclaim") >= before + 20)
            assert other.consumer.stats.taken_over == 0
            assert other.numbers == list(range(5, 20))
        assert full.consumer.stats.taken_from_us == 0


async def test_a_busy_consumer_takes_over_too(stream: Stream, server: TestServer) -> None:
    """A consumer whose room is used up by new events still takes over; what it takes comes on top
    of the limit."""
    await send(stream, make_events(300), "plain")
    hand_out(server, stream, "dead", 100)
    async with consuming(stream, idle_ms_min=300, in_flight_events_max=40) as taken:
        await eventually(lambda: taken.consumer.in_flight >= 50)
        assert taken.consumer.stats.taken_over >= 10
        while taken.consumer.stats.taken_over < 100:
            taken.ack_all()
            over = taken.consumer.stats.taken_over
            await eventually(lambda over=over: taken.consumer.stats.taken_over > over)
            # A takeover asks for a limit and a quarter at most, while a read fills the limit.
            assert taken.consumer.in_flight <= 40 + 50
        taken.ack_all()


async def test_a_takeover_of_more_than_fits_goes_on_as_soon_as_there_is_room(
    stream: Stream, server: TestServer
) -> None:
    """What a dead member held is more than may be in flight: the rest is taken over while it is
    worked on, not a part at each regular sweep, which would be every second here."""
    await send(stream, make_events(600), "plain")
    hand_out(server, stream, "dead", 600)
    idle_ms = 3_000
    async with consuming(stream, idle_ms_min=idle_ms, in_flight_events_max=20) as taken:
        await eventually(lambda: taken.consumer.stats.taken_over > 0)
        began = time.monotonic()
        while taken.consumer.stats.taken_over < 600:
            taken.ack_all()
            over = taken.consumer.stats.taken_over
            await eventually(lambda over=over: taken.consumer.stats.taken_over > over)
            assert taken.consumer.in_flight <= 40
        # By regular sweeps: 600 entries, 25 at a time, one a second.
        assert time.monotonic() - began < 12
        taken.ack_all()


async def test_a_takeover_is_as_early_as_it_may_be(server: TestServer, stream_name: str) -> None:
    """What a dead member held is taken over when it has been idle for idle_ms_min, not only when
    the next regular sweep comes along."""
    idle_ms = 2_400

    async def takes_over(number: int) -> tuple[float, list[int]]:
        async with Stream(f"{stream_name}_{number}", server.url) as stream:
            await send(stream, make_events(3), "plain")
            async with consuming(stream, idle_ms_min=idle_ms) as taken:
                await eventually(lambda: len(taken.ids) == 3)
                # Somebody else reads, and is gone at once.
                taken.ack_all()
                await eventually(lambda: taken.consumer.stats.acknowledged == 3)
                await taken.consumer.stop_reading()
                await asyncio.sleep(number / 10)
                await send(stream, make_events(1, first=3), "plain")
                server.cli("XREADGROUP", "GROUP", "g", "dead", "STREAMS", stream.name, ">")
                died = asyncio.get_running_loop().time()
                await eventually(lambda: 3 in taken.numbers)
                return asyncio.get_running_loop().time() - died, taken.numbers

    found = await asyncio.gather(*[takes_over(number) for number in range(8)])
    assert all(numbers == [0, 1, 2, 3] for _, numbers in found)
    assert min(took for took, _ in found) > 0.9 * idle_ms / 1000
    # Two sweeps are 640 to 800 ms apart.
    assert max(took for took, _ in found) < idle_ms / 1000 + 0.4


async def test_a_takeover_is_counted_when_it_is_handled(stream: Stream, server: TestServer) -> None:
    """Entries handed from one consumer to the next, without a try, keep their delivery count."""
    await send(stream, make_events(2), "plain")
    hand_out(server, stream, "dead", 2)
    for name in ("first", "second", "third"):
        async with consuming(stream, name, leave=True) as taken:
            await eventually(lambda taken=taken: len(taken.ids) == 2)
            assert set(taken.deliveries[0].deliveries.values()) == {1}
            assert set(await pending(stream)) == {(name.encode(), 1)}
    async with consuming(stream, "fourth") as taken:
        await eventually(lambda: len(taken.ids) == 2)
        await taken.consumer.count_delivery(0, taken.ids[:1], 2)
        assert [count for _, count in await pending(stream)] == [2, 1]


async def test_what_is_anothers_is_left_alone(stream: Stream, server: TestServer) -> None:
    """A consumer that learns too late that it lost its entries neither settles nor renews them."""
    await send(stream, make_events(4), "plain")
    async with consuming(stream) as taken:
        await eventually(lambda: len(taken.ids) == 4)
        server.command("XCLAIM", stream.name, "g", "other", 0, *taken.ids)
        await taken.consumer.settle(0, taken.ids[0], [[b"reason", b"too late"]])
        assert server.cli("XLEN", stream.dead_key(0)) == "0"
        assert taken.consumer.stats.taken_from_us == 1
        await taken.consumer.count_delivery(0, taken.ids[1:3], 9)
        assert taken.consumer.stats.taken_from_us == 3
        assert [taken.consumer.holds(0, i) for i in taken.ids] == [False, False, False, True]
        assert set(await pending(stream)) == {(b"other", 2)}
        taken.consumer.ack(0, taken.ids[:3])
        assert taken.consumer.in_flight == 1
    assert len(await pending(stream)) == 4


async def test_settling_is_one_step(stream: Stream, server: TestServer) -> None:
    """An acknowledgement and its dead letters happen together, and only once."""
    await send(stream, make_events(1))
    async with consuming(stream) as taken:
        await eventually(lambda: taken.ids)
        letters = [[b"n", b"%d" % n, b"d", b"\x00\xff"] for n in range(3)]
        await taken.consumer.settle(0, taken.ids[0], letters)
        await taken.consumer.settle(0, taken.ids[0], letters)
        assert taken.consumer.in_flight == 0
        assert taken.consumer.stats.acknowledged == 1
    assert await pending(stream) == []
    assert server.cli("XLEN", stream.dead_key(0)) == "3"


class SettleCutter(Proxy):
    """Loses the reply to the first settling of letters that does not acknowledge."""

    def _choose(self, request: bytes) -> str:
        if self.done["lost reply"] or b"\r\nkeep\r\n" not in request:
            return ""
        self.done["lost reply"] += 1
        return "lost reply"


@pytest.mark.parametrize("size", [10, 10_000])
async def test_many_letters_are_kept_in_parts(own_server: OwnServer, size: int) -> None:
    """Thousands of letters, or large ones, are kept by several calls, none of which holds up the
    server for long; a reply that is lost doubles none, and the entry is acknowledged last."""
    server = own_server("valkey-9.1")
    async with SettleCutter(server.port) as proxy, Stream("s", proxy.url) as stream:
        await send(stream, make_events(1))
        async with consuming(stream) as taken:
            await eventually(lambda: taken.ids)
            letters = [[b"n", b"%d" % n, b"d", b"x" * size] for n in range(2_500)]
            with watching(server) as seen:
                await taken.consumer.settle(0, taken.ids[0], letters)
            assert proxy.done["lost reply"] == 1
            assert taken.consumer.in_flight == 0
            assert taken.consumer.stats.acknowledged == 1
        assert await pending(stream) == []
        rows = server.command("XRANGE", stream.dead_key(0), "-", "+")
        assert [int(fields[1]) for _, fields in rows] == list(range(2_500))
    sizes = Counter(line.count('"d"') for _, line in seen if line.startswith('"EVAL'))
    assert max(sizes) <= (1_000 if size == 10 else 420)


async def test_letters_that_were_cut_off_are_kept_again(
    stream: Stream, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process dies between two parts of an entry's letters the entry is still pending."""
    await send(stream, make_events(1))
    monkeypatch.setattr("standpipe.consumer.lane.IDS_PER_COMMAND_MAX", 2)
    letters = [[b"n", b"%d" % n] for n in range(5)]
    async with consuming(stream) as taken:
        await eventually(lambda: taken.ids)
        whole = Lane._settle_part

        async def dies(*given: object, is_last: bool) -> None:
            if is_last:
                raise KeyError("the process is gone")
            await whole(*given, is_last=is_last)

        with monkeypatch.context() as patched, pytest.raises(KeyError):
            patched.setattr(Lane, "_settle_part", dies)
            await taken.consumer.settle(0, taken.ids[0], letters)
        assert server.cli("XLEN", stream.dead_key(0)) == "4"
        assert len(await pending(stream)) == 1
        await taken.consumer.settle(0, taken.ids[0], letters)
    rows = server.command("XRANGE", stream.dead_key(0), "-", "+")
    assert {int(fields[1]) for _, fields in rows} == set(range(5))
    assert await pending(stream) == []


async def test_nothing_is_taken_from_the_living(stream: Stream, server: TestServer) -> None:
    """Of many consumers that hold entries for long and sweep all the time none takes another's."""
    await send(stream, make_events(40), "plain")
    async with contextlib.AsyncExitStack() as stack:
        everyone = [
            await stack.enter_async_context(
                consuming(stream, f"c{n}", idle_ms_min=600, in_flight_events_max=10)
            )
            for n in range(4)
        ]
        await eventually(lambda: sum(one.consumer.in_flight for one in everyone) == 40)
        before = calls(server, "xautoclaim")
        await eventually(lambda: calls(server, "xautoclaim") >= before + 30)
        assert [one.consumer.stats.taken_over for one in everyone] == [0] * 4
        assert sorted(n for one in everyone for n in one.numbers) == list(range(40))


async def test_names_of_the_dead_are_forgotten(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Consumers that were killed long ago are removed from the group, when what they held has been
    taken over; those that live stay."""
    await send(stream, make_events(3), "plain")
    server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    for n in range(3):
        server.cli("XREADGROUP", "GROUP", "g", f"dead{n}", "COUNT", 1, "STREAMS", stream.name, ">")
    rows = server.command("XPENDING", stream.name, "g", "-", "+", 9)
    server.command("XACK", stream.name, "g", rows[0][0], rows[1][0])

    def names() -> set[str]:
        return {row[1] for row in server.command("XINFO", "CONSUMERS", stream.name, "g")}

    with caplog.at_level(logging.INFO, "standpipe.consumer"):
        async with (
            consuming(stream, "one", idle_ms_min=50) as one,
            consuming(stream, "two", idle_ms_min=50) as two,
        ):
            # 20 times 50 ms after they were seen last, which was just now.
            await eventually(lambda: set(one.numbers + two.numbers) == {2})
            assert names() >= {"dead0", "dead1", "dead2"}
            # Redis 6.2 does not know one yet that was never given anything.
            await eventually(lambda: names() <= {"one", "two"})
            assert names()
            stats = (one.consumer.stats, two.consumer.stats)
            await eventually(lambda: sum(each.consumers_removed for each in stats) == 3)
            # Looking for the dead ends nothing: both still are given what comes.
            await send(stream, make_events(1, first=3), "plain")
            await eventually(lambda: set(one.numbers + two.numbers) == {2, 3})
    assert all(f"dead{n}" in caplog.text for n in range(3))


async def test_a_consumer_with_something_pending_is_never_removed(
    stream: Stream, server: TestServer
) -> None:
    """The script looks and removes in one step, and only names that hold nothing."""
    await send(stream, make_events(2), "plain")
    hand_out(server, stream, "holds", 1)
    for name in ("empty", "fresh"):
        server.cli("XGROUP", "CREATECONSUMER", stream.name, "g", name)
    await eventually(
        lambda: all(row[5] >= 20 for row in server.command("XINFO", "CONSUMERS", stream.name, "g"))
    )
    forget = script("forget")
    assert await stream.server.run(forget, (stream.name,), "g", 60_000, 9) == []
    assert await stream.server.run(forget, (f"{stream.name}:gone",), "g", 20, 9) == []
    assert await stream.server.run(forget, (stream.name,), "g", 20, 1) == [b"empty"]
    assert await stream.server.run(forget, (stream.name,), "g", 20, 9) == [b"fresh"]
    assert await pending(stream) == [(b"holds", 1)]


# --- deleted entries -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["own", "taken over"])
async def test_deleted_entries_are_cleared(
    stream: Stream, server: TestServer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Entries that were deleted while pending are counted as lost, named, and taken off the list:
    with what this consumer left itself, and with what it takes over."""
    await send(stream, make_events(10), "plain")
    ids = hand_out(server, stream, "me" if how == "own" else "dead", 10)
    server.command("XTRIM", stream.name, "MINID", ids[3])
    server.command("XDEL", stream.name, ids[7])
    with caplog.at_level(logging.ERROR, "standpipe.consumer"):
        async with consuming(stream) as taken:
            await eventually(lambda: len(taken.ids) == 6)
            await eventually(lambda: taken.consumer.stats.lost == 4)
            assert taken.numbers == [3, 4, 5, 6, 8, 9]
            assert len(await pending(stream)) == 6
    assert all(ids[n] in caplog.text for n in (0, 1, 2, 7))
    assert ids[3] not in caplog.text


class RangeCutter(Proxy):
    """Cuts the connection once, when the entries that were taken over are asked for."""

    def _choose(self, request: bytes) -> str:
        if self.done["half a request"] or b"XRANGE" not in request:
            return ""
        self.done["half a request"] += 1
        return "half a request"


async def test_deleted_entries_are_counted_if_the_takeover_fails(
    own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The server names deleted entries once: they are counted though what follows fails."""
    server = own_server("valkey-9.1")
    async with RangeCutter(server.port) as proxy, Stream("s", proxy.url) as stream:
        await send(stream, make_events(4), "plain")
        ids = hand_out(server, stream, "dead", 4)
        server.command("XDEL", stream.name, ids[1], ids[2])
        async with consuming(stream, idle_ms_min=300) as taken:
            await eventually(lambda: len(taken.ids) == 2)
            assert proxy.done["half a request"] == 1
            assert taken.consumer.stats.lost == 2
    assert ids[1] in caplog.text
    assert ids[2] in caplog.text


async def test_deleted_while_it_is_held(stream: Stream, server: TestServer) -> None:
    """What is deleted while it is being handled is lost if the server says so, taken by nobody."""
    await send(stream, make_events(3), "plain")
    async with consuming(stream, idle_ms_min=200) as taken:
        await eventually(lambda: len(taken.ids) == 3)
        server.command("XDEL", stream.name, taken.ids[1])
        before = calls(server, "xclaim")
        await eventually(lambda: calls(server, "xclaim") >= before + 2)
        # Redis 6.2 goes on renewing an entry that is not there.
        assert taken.consumer.stats.lost == (0 if server.name == "redis-6.2" else 1)
        assert taken.consumer.stats.taken_from_us == 0
        taken.ack_all()
        await eventually(lambda: taken.consumer.stats.acknowledged >= 2)
        assert taken.consumer.in_flight == 0
    assert await pending(stream) == []
