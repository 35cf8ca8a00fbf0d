"""Replay into another stream: each event once, whatever dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Event, Reader, Stream, replay
from standpipe.archive import Archive, Archiver
from standpipe.codec import block_fields, encode_rows
from standpipe.errors import ConfigError, ReplayInUseError, ReplayLostError
from standpipe.keyspace import partition, side_key
from standpipe.limits import SEQUENCE_TTL_MS
from standpipe.replay import streams
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.entries import events_in, events_of, make_events
from tests.servers.fleet import TestServer
from tests.servers.working import send

# --- another stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_into_another_stream(
    server: TestServer, wire: Server, stream_name: str, tmp_path: Path, codec: str
) -> None:
    """Every event of the archive and the live stream arrives in the other one, in its key's order;
    nothing of the replay is left on the server."""
    archive = Archive(tmp_path)
    async with (
        Stream(stream_name, wire, shards=3) as source,
        Stream(stream_name + "-copy", wire, shards=2, codec=codec) as target,
    ):
        await send(source, make_events(1_500))
        await Archiver(source, archive).run()
        for key in source.keys:
            server.command("XTRIM", key, "MAXLEN", 0)
        await send(source, make_events(500, first=1_500))
        done = await replay.to_stream(Reader(source, archive=archive), target, name="copy")
        assert (done.events, done.refused, done.is_complete) == (2_000, 0, True)
        assert await events_in(target) == make_events(2_000)
        for shard in await events_of(target):
            by_key: dict[str, list[int]] = {}
            for _, event in shard:
                by_key.setdefault(event.key, []).append(event.fields["n"])
            assert all(found == sorted(found) for found in by_key.values())
        left = [key for key in server.command("KEYS", f"*{stream_name}-copy*") if ":seq:" in key]
        assert left == []
        # For a day it is known to be complete, so that starting it again does nothing.
        assert (
            0 < server.command("PTTL", side_key(target.keys[0], "replay:copy")) <= SEQUENCE_TTL_MS
        )
        reader = Reader(source, archive=archive)
        done = await replay.to_stream(reader, target, name="copy")
        assert (done.events, done.is_complete) == (0, True)
        assert done.was_complete_at is not None
        assert await events_in(target) == make_events(2_000)
        done = await replay.to_stream(reader, target, name="copy", again=True)
        assert (done.events, done.was_complete_at) == (2_000, None)
        assert len(await events_in(target)) == 4_000


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
async def test_a_restart_goes_on_without_doubles(
    server: TestServer,
    wire: Server,
    stream_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
) -> None:
    """A replay that dies at any point of a step, in the middle of sending it too, goes on when it
    is started again: each event arrives once. What was archived and trimmed meanwhile changes
    nothing."""
    # Each step is one batch, so that there are enough of them to die in.
    monkeypatch.setattr(streams, "COPY_STEP_EVENTS", 1)
    monkeypatch.setattr("standpipe.reader.reader.REPLAY_BATCH_ROWS", 256)
    archive = Archive(tmp_path)
    async with (
        Stream(stream_name, wire, shards=2) as source,
        Stream(stream_name + "-copy", wire, shards=2, codec=codec) as target,
    ):
        await send(source, make_events(7_000), codec="plain")
        copying = streams._Copying
        # Where it dies: before a note, after it, after half a step, after all of it.
        for deaths, place in enumerate(("_write", "_forget", "half", "all") * 2):
            with monkeypatch.context() as patch:
                patch.setattr(copying, *dying(copying, place, after=deaths % 3 + 1))
                with pytest.raises(Died):
                    await replay.to_stream(Reader(source, archive=archive), target, name="copy")
            await Archiver(source, archive).run()
            for key in source.keys:
                server.command("XTRIM", key, "MAXLEN", "~", 100)
        done = await replay.to_stream(Reader(source, archive=archive), target, name="copy")
        assert done.is_complete
        assert await events_in(target) == make_events(7_000)


def dying(copying: type, place: str, *, after: int) -> tuple[str, Callable[..., object]]:
    """A method of a replay that dies the so-manieth time."""
    name = place if place.startswith("_") else "_put"
    method = getattr(copying, name)
    left = after

    async def dies(self: object, *args: object) -> object:
        nonlocal left
        left -= 1
        if left:
            return await method(self, *args)
        if place == "half":
            events, *others = args
            # What had been written when it died: the blocks of one shard of the target.
            written = [event for event in events if partition(event.key, 2) == 0]
            await method(self, written, *others)
            raise Died
        if place in ("all", "_forget"):
            await method(self, *args)
        raise Died

    return name, dies


async def test_following_into_another_stream(wire: Server, stream_name: str) -> None:
    """A replay that follows keeps the other stream up, and goes on behind what it has sent when it
    is stopped and started again, whatever --from said."""
    async with (
        Stream(stream_name, wire, shards=2) as source,
        Stream(stream_name + "-copy", wire) as target,
    ):
        for first in (0, 400):
            await send(source, make_events(200, first=first))
            stop = asyncio.Event()
            reader = Reader(source, follow=True)
            running = asyncio.create_task(
                replay.to_stream(reader, target, name="mirror", stop=stop)
            )

            async def arrived(count: int) -> bool:
                return len(await events_in(target)) == count

            await eventually(lambda count=first + 200: arrived(count))
            await send(source, make_events(200, first=first + 200))
            await eventually(lambda count=first + 400: arrived(count))
            stop.set()
            await asyncio.wait_for(running, 20)
        assert await events_in(target) == make_events(800)


async def test_what_begins_now_goes_on_from_there(wire: Server, stream_name: str) -> None:
    """A replay of what comes from now on never takes what came before, when it is started again
    neither: not even of a shard of which nothing had come until then; and it misses nothing."""
    keys = [next(f"m{i}" for i in range(99) if partition(f"m{i}", 2) == n) for n in (0, 1)]
    async with (
        Stream(stream_name, wire, shards=2) as source,
        Stream(stream_name + "-copy", wire) as target,
    ):
        await send(source, make_events(100))
        stop = asyncio.Event()

        def start() -> asyncio.Task[replay.Replayed]:
            reader = Reader(source, start="$", follow=True)
            return asyncio.create_task(replay.to_stream(reader, target, name="x", stop=stop))

        running, sent = start(), 0

        async def has_begun() -> bool:
            nonlocal sent
            await send(source, [Event(keys[0], sent, {"n": 1_000 + sent})])
            sent += 1
            return bool(await events_in(target))

        await eventually(has_begun)
        await eventually(lambda: _ends_with(target, 999 + sent))
        stop.set()
        await asyncio.wait_for(running, 20)
        await send(source, [Event(keys[1], 0, {"n": 2_000})])
        stop.clear()
        running = start()
        await eventually(lambda: _ends_with(target, 2_000))
        stop.set()
        await asyncio.wait_for(running, 20)
        found = [event.fields["n"] for event in await events_in(target)]
        assert found == [*range(found[0], 1_000 + sent), 2_000] and found[0] >= 1_000


async def _ends_with(stream: Stream, n: int) -> bool:
    return (await events_in(stream))[-1].fields["n"] == n


@pytest.mark.parametrize("name", ["copy", None])
async def test_a_part_into_another_stream(wire: Server, stream_name: str, name: str | None) -> None:
    """What a reader leaves out by `after` and `until` is left out of the other stream too."""
    async with Stream(stream_name, wire) as source, Stream(stream_name + "-c", wire) as target:
        await send(source, make_events(30), codec="plain")
        ids = [event_id for event_id, _ in (await events_of(source))[0]]
        reader = Reader(source, after={0: ids[9]}, until={0: ids[19]})
        assert (await replay.to_stream(reader, target, name=name)).events == 10
        assert await events_in(target) == make_events(10, first=10)


async def test_notes_that_do_not_fit(
    server: TestServer, stream: Stream, wire: Server, stream_name: str
) -> None:
    """A name that stands for another replay, another process that goes on, a step that is no more
    what it was, and one that is too old to be remembered, are errors."""
    await send(stream, make_events(100), codec="plain")
    async with Stream(stream_name + "-copy", wire) as target:
        with pytest.raises(ConfigError, match="into itself"):
            await replay.to_stream(Reader(stream), stream)
        key = side_key(target.keys[0], "replay:x")
        server.command("SET", key, "{}")
        with pytest.raises(ConfigError, match="cannot be read"):
            await replay.to_stream(Reader(stream), target, name="x")
        note = {
            "source": "other redis://x", "start": "0-0/0", "end": "5-0/0", "producer": "p", "at": 1,
        }  # fmt: skip
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ConfigError, match="is one of other"):
            await replay.to_stream(Reader(stream), target, name="x")
        ids = [entry_id for entry_id, _ in server.command("XRANGE", stream_name, "-", "+")]
        note |= {
            "source": f"{stream_name} {wire.address.shown}",
            "end": f"{ids[-1]}/0",
            "step": {"0": f"{ids[49]}/0"},
            "events": 60,
            "at": 2**45,
        }
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ReplayLostError, match=r"of the 60 events .*, 50 are kept"):
            await replay.to_stream(Reader(stream), target, name="x")
        note |= {"events": 50, "at": 2**40 - SEQUENCE_TTL_MS}
        server.command("SET", key, json.dumps(note))
        with pytest.raises(ReplayLostError, match="more than a day ago"):
            await replay.to_stream(Reader(stream), target, name="x")
        server.command("DEL", key)
        assert await events_in(target) == []

        def other_process(done: replay.Replayed) -> None:
            server.command("SET", key, json.dumps(note))

        with pytest.raises(ReplayInUseError):
            await replay.to_stream(Reader(stream), target, name="x", on_progress=other_process)


async def test_events_that_the_other_stream_cannot_take(
    server: TestServer, stream: Stream, wire: Server, stream_name: str
) -> None:
    """An event that no codec carries is left out, counted and said; the others arrive. Fields of
    mixed types arrive in a stream of columns as rows."""
    events = [Event("m", 5, {"n": 0, "v": 1}), Event("m", 6, {"n": 1, "v": "one"})]
    await send(stream, events)
    async with Stream(stream_name + "-copy", wire, codec="columns") as target:
        done = await replay.to_stream(Reader(stream), target)
        assert (done.events, done.refused) == (2, 0)
        assert await events_in(target) == events
    broken = [*events, Event("m", 7, {"n": 2, "v": float("nan")})]
    server.command("DEL", stream_name)
    server.command("XADD", stream_name, "*", *block_fields("rows", 3, encode_rows(broken)))
    async with Stream(stream_name + "-other", wire) as target:
        done = await replay.to_stream(Reader(stream), target)
        assert (done.events, done.refused) == (2, 1)
        assert await events_in(target) == events
