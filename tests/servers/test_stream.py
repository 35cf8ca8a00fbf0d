"""What all processes have to agree on about a stream is agreed on when they open it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from standpipe import Stream
from standpipe.codec import PlainLayout
from standpipe.errors import CodecError, ConfigError, ServerUnavailableError, StreamNotFoundError
from standpipe.keyspace import definition_key, shard_keys
from standpipe.stream import Definition
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.fleet import TestCluster, TestServer, free_port


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


async def test_looking_leaves_nothing(server: TestServer, wire: Server, stream_name: str) -> None:
    """A stream that is opened without an opinion has one shard under its own name, and opening it
    writes nothing."""
    async with Stream(stream_name, wire) as stream:
        assert stream.keys == (stream_name,)
        assert stream.definition == Definition()
        assert not await stream.exists()
    assert server.command("KEYS", f"*{stream_name}*") == []


async def test_first_opinion_counts(server: TestServer, wire: Server, stream_name: str) -> None:
    """The first process that says how a stream is writes it down for all that come later."""
    schema = {"volts": float, "serial": str}
    async with Stream(
        stream_name, wire, shards=4, codec="plain", key_field="meter", schema=schema
    ) as first:
        assert first.keys == shard_keys(stream_name, 4)
        agreed = first.definition
    async with Stream(stream_name, wire) as second:
        assert second.definition == agreed
        assert second.shards == 4
        assert second.definition.codec == "plain"
        assert second.definition.layout == PlainLayout(key_field="meter", schema=schema)
    # In words that other languages read.
    assert json.loads(server.cli("GET", definition_key(stream_name))) == {
        "shards": 4,
        "codec": "plain",
        "key_field": "meter",
        "schema": {"volts": "float", "serial": "str"},
    }


@pytest.mark.parametrize(
    "other", [{"shards": 5}, {"key_field": "id"}, {"time_field": "at"}, {"schema": {"volts": int}}]
)
async def test_other_opinions(wire: Server, stream_name: str, other: dict[str, object]) -> None:
    """Who takes a stream for something else is told what it is."""
    async with Stream(stream_name, wire, shards=4, schema={"volts": float}):
        pass
    (name,) = other
    with pytest.raises(ConfigError, match=f"has {name} .* on the server") as caught:
        await Stream(stream_name, wire, **other).open()
    assert "Leave" in caught.value.hint
    async with Stream(stream_name, wire, shards=4):
        pass


async def test_codec_is_each_producers_own(wire: Server, stream_name: str) -> None:
    """The codec is a default, so another one is no contradiction."""
    async with Stream(stream_name, wire, codec="plain"):
        pass
    async with Stream(stream_name, wire, codec="columns") as stream:
        assert stream.definition.codec == "columns"
    async with Stream(stream_name, wire) as stream:
        assert stream.definition.codec == "plain"


async def test_two_at_once(wire: Server, server: TestServer, stream_name: str) -> None:
    """Of two processes that begin at once with different opinions one wins; the other is told."""
    async with Server(server.url) as other:
        tries = [Stream(stream_name, wire, shards=2), Stream(stream_name, other, shards=3)]
        opened = await asyncio.gather(*(s.open() for s in tries), return_exceptions=True)
    winner, loser = sorted(opened, key=lambda found: isinstance(found, Exception))
    assert isinstance(winner, Stream) and isinstance(loser, ConfigError)
    assert f"has shards {winner.shards} on the server" in str(loser)


async def test_entries_that_would_be_hidden(
    server: TestServer, wire: Server, stream_name: str
) -> None:
    """Several shards are not laid beside entries that someone has put under the name itself."""
    server.command("XADD", stream_name, "*", "volts", 230.5)
    with pytest.raises(ConfigError, match="is there with one shard, 4 were asked"):
        await Stream(stream_name, wire, shards=4).open()
    async with Stream(stream_name, wire, codec="rows") as stream:
        assert stream.keys == (stream_name,) and await stream.exists()


@pytest.mark.parametrize(
    "written", ["no json", '{"version": 2, "shape": "round"}', '{"shards": 0}']
)
async def test_definition_that_cannot_be_read(
    written: str, server: TestServer, wire: Server, stream_name: str
) -> None:
    """A definition that this version cannot read is an error, not a guess."""
    server.command("SET", definition_key(stream_name), written)
    with pytest.raises(ConfigError) as caught:
        await Stream(stream_name, wire).open()
    assert caught.value.hint


async def test_whether_it_is_there(server: TestServer, wire: Server, stream_name: str) -> None:
    """A stream is there when any of its shards is."""
    async with Stream(stream_name, wire, shards=3) as stream:
        with pytest.raises(StreamNotFoundError, match=f"{stream_name}.*127.0.0.1") as caught:
            await stream.require()
        assert caught.value.hint
        server.command("XADD", stream.keys[2], "*", "volts", 230.5)
        assert await stream.exists()
        await stream.require()


async def test_who_closes_the_server(server: TestServer, stream_name: str) -> None:
    """A stream closes the connections that it made itself, and leaves those of a Server that it was
    given."""
    async with Server(server.url, name=stream_name) as wire:
        async with Stream(stream_name, wire):
            pass
        assert f"name={stream_name}" in server.cli("CLIENT", "LIST")
    await eventually(lambda: f"name={stream_name}" not in server.cli("CLIENT", "LIST"))
    stream = Stream(stream_name, server.url)
    for _ in range(2):
        async with stream:
            assert stream.is_open
        assert not stream.is_open
    with pytest.raises(ConfigError, match="not open"):
        stream.keys  # noqa: B018  raises


async def test_server_that_is_not_there() -> None:
    """Opening a stream on a server that is not there is a typed error at once."""
    with pytest.raises(ServerUnavailableError):
        await Stream("power", f"redis://127.0.0.1:{free_port()}").open()


def test_wrong_arguments() -> None:
    """What cannot be a stream is refused before anything is connected."""
    url = "redis://127.0.0.1:1"
    for arguments, kind, match in (
        ({"name": "with space"}, ConfigError, "with space"),
        ({"name": "a{b}c", "shards": 2}, ConfigError, "hash tag"),
        ({"shards": 0}, ConfigError, "shards is 0"),
        ({"shards": 257}, ConfigError, "shards is 257"),
        ({"codec": "row"}, CodecError, "'row'"),
        ({"key_field": "x", "time_field": "x"}, ConfigError, "'x'"),
        ({"schema": {"volts": complex}}, ConfigError, "'volts'"),
        ({"url": "http://127.0.0.1"}, ConfigError, "'http'"),
    ):
        with pytest.raises(kind, match=match) as caught:
            Stream(**{"name": "power", "url": url} | arguments)
        assert caught.value.hint


async def test_cluster(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """In a cluster a stream is defined once for all nodes, and the shards lie evenly over them."""
    found = cluster(server_name)
    async with Stream("power", found.url, shards=9) as stream:
        homes = [found.node_of(key).port for key in stream.keys]
        assert sorted(map(homes.count, set(homes))) == [3, 3, 3]
        assert not await stream.exists()
        found.node_of(stream.keys[8]).command("XADD", stream.keys[8], "*", "volts", 1)
        assert await stream.exists()
    async with Stream("power", found.url) as stream:
        assert stream.shards == 9
