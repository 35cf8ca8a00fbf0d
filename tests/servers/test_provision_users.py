"""The users of a bundle: each can do its whole work, and nothing that is not its work."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.connection import Connection

from standpipe import DeadLetters, Event, Producer, Reader, Reject, Selection, Stream, Worker
from standpipe.errors import NotPermittedError, StandpipeError
from standpipe.groups import (
    claim_idle,
    create_group,
    delete_group,
    list_groups,
    move_group,
    read_pending,
    remove_consumer,
)
from standpipe.keyspace import definition_key, side_key
from standpipe.observe import stream_status
from standpipe.retention import find_streams, janitor_of
from standpipe.retention.janitor import keep, look
from standpipe.server.provision import acl
from standpipe.server.provision.description import USER_ROLES, StreamNeed
from tests.conditions import eventually
from tests.servers.commands import run
from tests.servers.entries import make_events
from tests.servers.fleet import KINDS, Fleet, require_server, selected_servers
from tests.servers.provisioned import ProvisionedServer, described, provisioned, refused
from tests.servers.working import running, settled

pytestmark = pytest.mark.servers

STREAMS: list[dict[str, Any]] = [
    {"name": "power", "groups": ["g"]},
    {"name": "water", "groups": ["g"], "shards": 3},
    {"name": "ring", "groups": ["g"], "when_full": "ring"},
    {"name": "power_grid", "groups": ["g"]},
]
USERS = [{"name": role, "role": role, "streams": ["power", "water", "ring"]} for role in USER_ROLES]


@pytest.fixture(scope="module", params=selected_servers())
def users_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProvisionedServer]:
    """A server with the users of three streams, and a fourth stream that is none of theirs."""
    require_server(request.param)
    fleet = Fleet(tmp_path_factory.mktemp("users"))
    try:
        description = described(request.param, streams=STREAMS, users=USERS)
        server = provisioned(fleet, description)
        server.command("XADD", "power_grid", "*", "volts", "230")
        yield server
    finally:
        fleet.close()


# --- what each is for ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["power", "water", "ring"])
async def test_each_does_its_work(users_server: ProvisionedServer, name: str) -> None:
    """Producer, worker (takeover, dead letters, requeue), reader, operator and monitoring do all
    their work as the users that they are given; nothing is refused on the way."""
    server = users_server
    server.command("FLUSHALL")
    refused(server)
    shards = 3 if name == "water" else 1
    limits: dict[str, Any] = {"max_len": 5_000, "when_full": "ring"} if name == "ring" else {}
    async with Stream(name, server.url_of("producer"), shards=shards, **limits) as stream:
        for codec, first in (("plain", 0), ("rows", 100), ("columns", 200)):
            async with Producer(stream, codec=codec) as producer:
                await (await producer.send_many(make_events(100, first=first)))
                await (await producer.send(Event("meter", 0, {"n": -1, "codec": codec})))
    await _works(server, name)
    await _is_read(server, name)
    await _is_operated(server, name)
    assert refused(server) == []


async def _works(server: ProvisionedServer, name: str) -> None:
    seen: set[int] = set()
    async with Stream(name, server.url_of("worker")) as stream:
        worker = Worker(stream, "g", idle_ms_min=200, name="one", retain=False)

        @worker.each
        async def handle(event: Event) -> None:
            number = event.fields["n"]
            assert isinstance(number, int)
            if number == 7:
                raise Reject("not this one")
            seen.add(number)

        await create_group(stream, "g", "begin")
        # Somebody who died with entries in hand.
        for key in stream.keys:
            await stream.server.call(
                "XREADGROUP", "GROUP", "g", "dead", "COUNT", 5, "STREAMS", key, ">", key=key
            )
        async with running(worker):
            await eventually(lambda: len(seen) == 300, 20)
            await eventually(lambda: settled(stream), 20)
            async with Stream(name, server.url_of("operator")) as operated:
                letters = DeadLetters(operated)
                (letter,) = [each async for each in letters.find()]
                assert letter.reason.endswith("not this one")
                seen.discard(7)
                await letters.requeue(Selection())
            # Requeued, it is refused once more.
            await eventually(lambda: _dead(server, stream) == 1, 20)


def _dead(server: ProvisionedServer, stream: Stream) -> int:
    return sum(server.command("XLEN", stream.dead_key(shard)) for shard in range(stream.shards))


async def _is_read(server: ProvisionedServer, name: str) -> None:
    async with Stream(name, server.url_of("reader")) as stream:
        found = [event async for event in Reader(stream, start="-")]
        assert len(found) == 303
        following = Reader(stream, start="$", follow=True)
        task = asyncio.create_task(anext(aiter(following)))
        await eventually(lambda: "xread" in server.cli("CLIENT", "LIST"))
        async with (
            Stream(name, server.url_of("producer")) as sending,
            Producer(sending) as producer,
        ):
            await (await producer.send(Event("meter", 0, {"n": 1_000})))
        assert (await asyncio.wait_for(task, 10)).fields == {"n": 1_000}


async def _is_operated(server: ProvisionedServer, name: str) -> None:
    async with Stream(name, server.url_of("monitoring")) as stream:
        status = await stream_status(stream)
        assert sum(shard.dead for shard in status.shards) == 1
        assert all(shard.memory_bytes for shard in status.shards)
        # What is requeued is counted, though its group has not been given it.
        key = stream.requeued_key(0, "g")
        # The worker may have ended before it cleared away what it had settled there.
        server.command("DEL", key)
        server.command("XADD", key, "*", "d", "x")
        server.command("XGROUP", "CREATE", key, "g", "0")
        status = await stream_status(stream)
        server.command("DEL", key)
        assert [group.requeued for group in status.shards[0].groups] == [1]
    async with Stream(name, server.url_of("operator")) as stream:
        assert {group.name for group in await list_groups(stream)} == {"g"}
        report = await read_pending(stream, "g")
        assert report is not None
        for key in stream.keys:
            await stream.server.call("XGROUP", "CREATECONSUMER", key, "g", "by_hand", key=key)
        await claim_idle(stream, "g", "by_hand", idle_ms_min=60_000)
        await DeadLetters(stream).purge(Selection())
        await create_group(stream, "second", "begin")
        await move_group(stream, "second", "end")
        await remove_consumer(stream, "g", "by_hand", active_ms=0)
        await delete_group(stream, "second")


async def test_ordered_mode(users_server: ProvisionedServer) -> None:
    """A worker in ordered mode has its leases, takes over by lease, and gives back what it has."""
    users_server.command("FLUSHALL")
    refused(users_server)
    async with (
        Stream("water", users_server.url_of("producer"), shards=3) as stream,
        Producer(stream) as producer,
    ):
        await (await producer.send_many(make_events(200)))
    async with Stream("water", users_server.url_of("worker")) as stream:
        seen: list[Any] = []
        workers = [
            Worker(stream, "g", ordered=True, lease_ms=400, name=name, retain=False)
            for name in ("a", "b")
        ]
        for worker in workers:
            worker.each(lambda event: seen.append(event.fields["n"]))
        async with running(*workers):
            await eventually(lambda: len(seen) == 200, 20)
            await eventually(lambda: settled(stream), 20)
    assert refused(users_server) == []


async def test_a_ring(users_server: ProvisionedServer) -> None:
    """The producer of a ring lets the oldest entries go, and counts them."""
    users_server.command("FLUSHALL")
    refused(users_server)
    url = users_server.url_of("producer")
    async with (
        Stream("ring", url, max_len=150, when_full="ring") as stream,
        Producer(stream, codec="plain") as producer,
    ):
        for _ in range(3):
            await (await producer.send_many(make_events(150)))
    assert int(users_server.command("GET", "{ring}:trimmed")) >= 200
    # The janitor takes its lease, and lets go what is above the limits.
    async with Stream("ring", users_server.url_of("keeper")) as stream:
        keeping = asyncio.create_task(keep(stream))
        await eventually(lambda: janitor_of(stream), 20)
        await look(stream, 0, "trim")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert await find_streams(stream.server) == ["ring"]
    assert refused(users_server) == []


async def test_on_disk(own_fleet: Fleet) -> None:
    """With persistence always a producer learns that what it sent is on disk, on every version."""
    for name in selected_servers():
        require_server(name)
        server = provisioned(own_fleet, described(name, persistence="always"))
        async with (
            Stream("power", server.url_of("producer")) as stream,
            Producer(stream, acknowledge="fsync") as producer,
        ):
            assert await (await producer.send(Event("meter", 0, {"n": 1}))) is not None
        assert refused(server) == []


def test_the_doctor(own_fleet: Fleet, tmp_path: Path) -> None:
    """The doctor, as the operator, may ask all that it asks, and the configuration gives it nothing
    to say about security, memory or persistence."""
    server = provisioned(own_fleet, described("valkey-9.1"))
    server.command("XADD", "power", "*", "n", "1")
    done = run(
        "doctor", "power", "--json", "--window", "200ms", "--state", str(tmp_path / "state"),
        url=server.url_of("operator"),
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    found = {each["check"] for each in json.loads(done.stdout)["findings"]}
    assert not found & {
        "server.exposed", "server.acl", "server.dangerous", "server.eviction", "server.memory",
        "server.fork_room", "server.persistence", "server.config_file", "server.rights",
    }  # fmt: skip
    assert refused(server) == []


# --- what nobody may -----------------------------------------------------------------------------

FOREIGN = ["power_grid", "powe", "power:spare", "{power_grid}:dead", "{power_grid}:seq:p"]
EVERYBODY_NOT = [
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["CONFIG", "SET", "maxmemory", "1"],
    ["CONFIG", "REWRITE"],
    ["DEBUG", "SLEEP", "0"],
    ["SHUTDOWN", "NOSAVE"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "LOAD", "return 1"],
    ["SCRIPT", "KILL"],
    ["KEYS", "*"],
    ["ACL", "SETUSER", "x", "on"],
    ["ACL", "SAVE"],
    ["MODULE", "LIST"],
    ["REPLICAOF", "NO", "ONE"],
    ["MONITOR"],
    ["SUBSCRIBE", "x"],
    ["PUBLISH", "x", "y"],
    ["SWAPDB", "0", "1"],
    ["MIGRATE", "127.0.0.1", "1", "power", "0", "10"],
    ["CLUSTER", "RESET"],
    ["SAVE"],
    ["CLIENT", "PAUSE", "1"],
    ["RANDOMKEY"],
    ["RENAME", "power", "power2"],
    ["RESTORE", "power", "0", "x"],
    ["COPY", "power", "power_grid"],
    ["SORT", "power"],
    ["FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"],
]
ALL_NOT_BUT = {
    # What some may and all others not: (command, who may).
    ("CONFIG", "GET", "*"): {"operator"},
    ("ACL", "GETUSER", "worker"): {"operator"},
    ("SLOWLOG", "GET"): {"operator", "monitoring"},
    ("SCAN", "0"): {"keeper", "operator", "monitoring"},
    ("CLIENT", "KILL", "ID", "0"): {"operator"},
    ("XADD", "power", "*", "n", "1"): {"producer", "operator"},
    ("XRANGE", "power", "-", "+"): {"worker", "reader", "keeper", "operator", "monitoring"},
    ("XREAD", "STREAMS", "power", "0"): {"worker", "reader", "operator"},
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "power", ">"): {"worker", "operator"},
    ("XACK", "power", "g", "1-1"): {"worker", "operator"},
    ("XGROUP", "CREATE", "power", "new", "0"): {"worker", "operator"},
    ("XGROUP", "DESTROY", "power", "new"): {"operator"},
    ("XGROUP", "SETID", "power", "g", "0"): {"operator"},
    ("XTRIM", "power", "MAXLEN", "1000000"): {"keeper", "operator"},
    ("XDEL", "power", "1-1"): {"operator"},
    ("XSETID", "power", "9999999999999-1"): {"operator"},
    ("XINFO", "STREAM", "power"): {"worker", "reader", "keeper", "operator", "monitoring"},
    ("TYPE", "power"): {"keeper", "operator", "monitoring"},
    ("DEL", "power"): {"operator"},
    ("UNLINK", "power"): {"operator"},
}
ONLY_WITH_SELECTORS = {
    # One list of commands and one of keys cannot tell these apart (Redis 6.2).
    ("SET", "power", "x"): {"operator"},
    ("SET", "{power}:definition", "x"): {"producer", "operator"},
    ("SET", "{power}:archived", "9-9"): {"keeper", "operator"},
    ("GET", "{power}:seq:p"): {"producer", "operator"},
    ("XADD", "{power}:dead", "*", "n", "1"): {"worker", "operator"},
    ("XTRIM", "{power}:dead", "MAXLEN", "0"): {"operator"},
    ("XADD", "{power}:requeued:g", "*", "n", "1"): {"operator"},
    ("DEL", "{power}:requeued:g"): {"worker", "operator"},
    ("XRANGE", "{power}:dead", "-", "+"): {"operator"},
}
# The worker on 6.2 has DEL and XTRIM for its requeued entries, and so for the stream.
_OF_62 = {
    ("XTRIM", "power", "MAXLEN", "1000000"): {"producer", "worker"},
    ("XADD", "power", "*", "n", "1"): {"worker"},
    ("XRANGE", "power", "-", "+"): {"producer"},
    ("DEL", "power"): {"worker", "keeper"},
}


REFUSED = "(?i)no permission|can't run this command|can't access at least one|acl failure in script"


class Session:
    """One connection of a user."""

    def __init__(self, server: ProvisionedServer, role: str) -> None:
        self._connection = Connection(
            host="127.0.0.1", port=server.port, username=role, protocol=2,
            password=server.secrets.passwords[role], socket_timeout=10,
        )  # fmt: skip

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()

    def says(self, *command: str) -> str:
        """The error that a command meets; empty: none."""
        try:
            self._connection.send_command(*command)
            self._connection.read_response()
        except redis.ResponseError as error:
            return str(error)
        return ""

    def may(self, *command: str) -> bool:
        """Whether a command gets past the ACL; what it says then does not matter."""
        # Unknown to this version, or switched off (DEBUG): nobody may do it either.
        closed = REFUSED + "|unknown (sub)?command|DEBUG command not allowed"
        return not re.search(closed, self.says(*command))


@pytest.mark.parametrize("role", USER_ROLES)
def test_nobody_may(users_server: ProvisionedServer, role: str) -> None:
    """No user can empty, stop, reconfigure or look over the server, or run functions."""
    with Session(users_server, role) as session:
        assert [each for each in EVERYBODY_NOT if session.may(*each)] == []


@pytest.mark.parametrize("role", USER_ROLES)
def test_another_stream_is_refused(users_server: ProvisionedServer, role: str) -> None:
    """A stream that is not the user's is refused in every command, also when its name begins with
    the same letters, and also in a script that does not name it as a key."""
    with Session(users_server, role) as session:
        for key in FOREIGN:
            for command in (
                ["XADD", key, "*", "a", "b"], ["XRANGE", key, "-", "+"], ["XLEN", key],
                ["GET", key], ["SET", key, "x"], ["DEL", key], ["XINFO", "STREAM", key],
                ["EXISTS", key], ["XREAD", "STREAMS", key, "0"],
                ["XREADGROUP", "GROUP", "g", "c", "STREAMS", key, ">"],
                ["XACK", key, "g", "1-1"], ["XTRIM", key, "MAXLEN", "0"], ["TYPE", key],
                ["XGROUP", "CREATE", key, "g2", "0", "MKSTREAM"], ["MEMORY", "USAGE", key],
                ["EVAL", "return 1", "1", key],
                ["EVAL", f"return redis.call('XLEN', '{key}')", "0"],
                ["EVAL", f"return redis.call('SET', '{key}', 'x')", "1", "power"],
            ):  # fmt: skip
                said = session.says(*command)
                assert re.search(REFUSED, said), (command, said)


def _expected(server: ProvisionedServer) -> dict[tuple[str, ...], set[str]]:
    if server.name != "redis-6.2":
        return ALL_NOT_BUT | ONLY_WITH_SELECTORS
    return {command: who | _OF_62.get(command, set()) for command, who in ALL_NOT_BUT.items()}


@pytest.mark.parametrize("role", USER_ROLES)
def test_each_may_what_is_its_work_alone(users_server: ProvisionedServer, role: str) -> None:
    """Of the commands on its own stream each user has those of its work, and no others."""
    users_server.command("FLUSHALL")
    expected = _expected(users_server)
    with Session(users_server, role) as session:
        found = {command: session.may(*command) for command in expected}
    assert found == {command: role in who for command, who in expected.items()}


def test_the_default_user_is_off(users_server: ProvisionedServer) -> None:
    """Without a name nobody comes in, and with a wrong password neither."""
    before, users_server.user = users_server.user, None
    try:
        with pytest.raises(redis.AuthenticationError):
            users_server.command("PING")
        users_server.user = ("worker", "wrong")
        with pytest.raises(redis.AuthenticationError):
            users_server.command("PING")
    finally:
        users_server.user = before


async def test_a_producer_cannot_work(users_server: ProvisionedServer) -> None:
    """What our own code says when a user is not the right one for it."""
    async with Stream("power", users_server.url_of("producer")) as stream:
        worker = Worker(stream, "g")
        worker.each(lambda event: None)
        with pytest.raises(NotPermittedError) as caught:
            await worker.run()
    assert "ACL" in caught.value.hint
    async with Stream("power", users_server.url_of("reader")) as stream:
        producer = Producer(stream)
        with pytest.raises(StandpipeError):
            async with producer:
                await (await producer.send(Event("m", 0, {"n": 1})))


# --- passwords and patterns ----------------------------------------------------------------------


def test_the_file_has_no_password() -> None:
    """Passwords stand in the file as SHA-256 alone, and are long and different."""
    description = described("redis-7.0")
    passwords = {name: f"pass-{name}" for name in acl.acl_users(description)}
    text = acl.render(description, passwords)
    assert not any(word in text for word in passwords.values())
    assert all(acl.password_hash(word) in text for word in passwords.values())
    assert text.splitlines()[0] == "user default reset off"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stream", ["a*b", "a?[x]", "grid(east)", "x:y", "é~+#", "half{tag}"])
def test_names_are_taken_literally(stream: str, name: str, own_server: Callable[..., Any]) -> None:
    """A stream's name with signs of patterns in it matches itself, and nothing else."""
    require_server(name)
    server = own_server(name)
    need = StreamNeed(stream)
    patterns = [f"~{each}" for each in acl.patterns(need, "all")]
    rule = patterns
    if name != "redis-6.2":
        rule = [f"({' '.join(patterns)} +exists)"]
    server.command("ACL", "SETUSER", "u", "reset", "on", ">u", "+exists", *rule)
    server.user = ("u", "u")
    for key in (stream, side_key(stream, "dead"), definition_key(stream)):
        assert server.command("EXISTS", key) == 0
    for key in ("aXb", "a1x", "gride", "x", "half", "{other}:dead", stream + "2", stream[:-1]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            server.command("EXISTS", key)
