"""The wire reaches every kind of server, and everything that goes wrong has a type and a hint."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis

from standpipe.errors import (
    AuthenticationError,
    ClusterDownError,
    CommandMissingError,
    ConfigError,
    GroupNotFoundError,
    NotPermittedError,
    NotPersistingError,
    PrimaryDownError,
    ReadOnlyServerError,
    ReplyError,
    ReplyTimeoutError,
    ScriptMissingError,
    ServerBusyError,
    ServerError,
    ServerFullError,
    ServerLoadingError,
    ServerUnavailableError,
    SlotMovedError,
    StandpipeError,
    TooFewReplicasError,
    TooManyClientsError,
    WrongTypeError,
)
from standpipe.keyspace import shard_keys, side_key
from standpipe.limits import KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES_MAX
from standpipe.wire import Link, Server, pack, script
from tests.conditions import eventually, eventually_sync
from tests.faults.proxy import Proxy
from tests.servers.certificates import make_certificates
from tests.servers.fleet import Fleet, TestCluster, TestSentinel, TestServer, free_port
from tests.servers.moving import begin_move, move_slot

OwnServer = Callable[..., TestServer]


@pytest.fixture
async def wire(server: TestServer) -> AsyncIterator[Server]:
    async with Server(server.url) as found:
        yield found


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Short, since the path of a unix socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="sp"))
    yield folder
    shutil.rmtree(folder)


def open_files() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def ping(url: str) -> None:
    """Connect, say PING, and leave nothing open, whatever comes of it."""
    async with Server(url) as wire:
        assert await wire.call("PING", key="k") == b"PONG"


# --- reaching a server ---------------------------------------------------------------------------


async def test_one_server(server: TestServer, stream_name: str) -> None:
    """A plain URL reaches the server, under every name that the scheme has."""
    for scheme in ("redis", "valkey"):
        async with Server(f"{scheme}://127.0.0.1:{server.port}") as wire:
            assert await wire.call("PING", key=stream_name) == b"PONG"


async def test_database(server: TestServer, stream_name: str) -> None:
    """The number in the path chooses the database."""
    async with Server(f"{server.url}/3") as wire:
        await wire.call("SET", stream_name, "x", key=stream_name)
    assert server.command("EXISTS", stream_name) == 0
    async with Server(f"{server.url}/3") as wire:
        assert await wire.call("DEL", stream_name, key=stream_name) == 1


async def test_client_name(server: TestServer, stream_name: str) -> None:
    """The server's CLIENT LIST says which connections are ours."""
    async with Server(server.url, name=stream_name) as wire:
        await wire.call("PING", key=stream_name)
        assert f"name={stream_name}" in server.cli("CLIENT", "LIST")


async def test_nothing_is_left_open(server: TestServer, stream_name: str) -> None:
    """Closing a server closes its connections, and it can be used again."""
    wire = Server(server.url, name=stream_name)
    await wire.call("PING", key=stream_name)
    await wire.close()
    await eventually(lambda: f"name={stream_name}" not in server.cli("CLIENT", "LIST"))
    assert await wire.call("PING", key=stream_name) == b"PONG"
    await wire.close()


async def test_unix_socket(server_name: str, own_server: OwnServer, socket_folder: Path) -> None:
    """A unix socket is reached by its path; without one the error says so."""
    path = socket_folder / "s"
    own_server(server_name, unixsocket=str(path))
    await ping(f"unix://{path}")
    with pytest.raises(ServerUnavailableError, match="No such file"):
        await ping(f"unix://{path}.none")


async def test_tls(tls_server: OwnServer) -> None:
    """A server with a certificate of the CA in the URL is trusted, and spoken to in TLS."""
    server = tls_server()
    await ping(server.url)


async def test_tls_without_the_right_ca(tls_server: OwnServer, tmp_path: Path) -> None:
    """A server whose CA is another one, or not given, is refused with a hint to look at TLS."""
    server = tls_server()
    other = make_certificates(tmp_path / "other").ca
    for query in (f"?ssl_ca_certs={other}", ""):
        with pytest.raises(ServerUnavailableError, match="certificate verify failed") as caught:
            await ping(f"rediss://127.0.0.1:{server.port}{query}")
        assert "TLS" in caught.value.hint


async def test_tls_server_in_the_clear(tls_server: OwnServer) -> None:
    """Speaking plainly to a TLS port, or TLS to a plain one, is a typed error with that hint."""
    server = tls_server()
    with pytest.raises(ServerUnavailableError) as caught:
        await ping(f"redis://127.0.0.1:{server.port}")
    assert "TLS" in caught.value.hint


async def test_tls_client_certificate(tls_server: OwnServer) -> None:
    """Where the server asks for a client's certificate, the URL can give it."""
    server = tls_server(tls_auth_clients="yes")
    files = server.certificates
    assert files is not None
    with pytest.raises(ServerUnavailableError):
        await ping(server.url)
    url = f"{server.url}&ssl_certfile={files.client}&ssl_keyfile={files.client_key}"
    await ping(url)


async def test_tls_closing_does_not_wait(tls_server: OwnServer) -> None:
    """A TLS connection to a server that hangs is closed at once, without its goodbye."""
    server = tls_server()
    async with Server(server.url) as wire:
        before = open_files()
        link = await wire.link("k")
        server.stop()
        await link.close()
        await eventually(lambda: open_files() == before, 2)
        server.cont()


async def test_password(server_name: str, own_server: OwnServer) -> None:
    """The URL's password opens a server with requirepass, whatever characters it has."""
    password = "p@ss/w:rd#1"
    server = own_server(server_name, requirepass=password)
    await ping(f"redis://:p%40ss%2Fw%3Ard%231@127.0.0.1:{server.port}")
    for url in (server.url, f"redis://:wrong@127.0.0.1:{server.port}"):
        with pytest.raises(AuthenticationError) as caught:
            await ping(url)
        assert "URL" in caught.value.hint
        assert "wrong" not in f"{caught.value} {caught.value.hint}".replace("WRONGPASS", "")


async def test_acl_user(server_name: str, own_server: OwnServer) -> None:
    """A user of the server's ACL gets in, and meets NOPERM at what is not his."""
    server = own_server(server_name)
    server.command("ACL", "SETUSER", "meter", "on", ">secret", "~power*", "+@all", "-flushall")
    async with Server(f"redis://meter:secret@127.0.0.1:{server.port}") as wire:
        assert await wire.call("XADD", "power", "*", "volts", 230.5, key="power")
        for command in (("FLUSHALL",), ("GET", "water")):
            with pytest.raises(NotPermittedError, match="NOPERM") as caught:
                await wire.call(*command, key="power")
            assert "ACL" in caught.value.hint and not caught.value.retryable
    with pytest.raises(AuthenticationError):
        await ping(f"redis://meter:other@127.0.0.1:{server.port}")


# --- Sentinel ------------------------------------------------------------------------------------


async def test_sentinel_finds_the_primary(
    server_name: str, sentinel: Callable[..., TestSentinel]
) -> None:
    """A Sentinel URL leads to the primary, and after a failover that it was asked for to the new
    one."""
    found = sentinel(server_name)
    async with Server(found.url) as wire:
        await wire.call("SET", "where", "here", key="where")
        assert found.primary.cli("GET", "where") == "here"
        eventually_sync(lambda: found.replica.cli("GET", "where") == "here")
        eventually_sync(
            lambda: found.sentinel.cli("SENTINEL", "FAILOVER", "mymaster"),
            20,
            ignore=(redis.ResponseError,),
            what="Sentinel begins the failover",
        )
        watched = f"address=127.0.0.1:{found.replica.port},"
        eventually_sync(lambda: watched in found.sentinel.cli("INFO", "sentinel"), 30)
        # Sentinel does that some ten seconds later; until then the old primary takes writes.
        found.primary.command("CLIENT", "KILL", "TYPE", "normal")

        async def write() -> bool:
            return await wire.call("SET", "where", "there", key="where") == b"OK"

        await eventually(write, 20, ignore=(ServerError,))
        assert found.replica.cli("GET", "where") == "there"


async def test_sentinel_after_a_death(sentinel: Callable[..., TestSentinel]) -> None:
    """When the primary dies, calls fail with a typed error, and then go on at the new one."""
    found = sentinel("valkey-9.1")
    async with Server(found.url) as wire:
        await wire.call("SET", "where", "here", key="where")
        found.primary.kill()
        with pytest.raises(ServerUnavailableError):
            await wire.call("SET", "where", "lost", key="where")

        async def write() -> bool:
            return await wire.call("SET", "where", "there", key="where") == b"OK"

        await eventually(write, 30, ignore=(ServerError,))
        assert found.replica.cli("GET", "where") == "there"


async def test_sentinel_without_that_name(sentinel: Callable[..., TestSentinel]) -> None:
    """A service that no Sentinel knows is a typed error."""
    found = sentinel("valkey-9.1")
    with pytest.raises(ServerUnavailableError, match="nosuch"):
        await ping(found.url.replace("mymaster", "nosuch"))


# --- Cluster -------------------------------------------------------------------------------------


async def test_cluster(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """Each shard's key is written on the node that has its slot; a slot that moves is followed;
    a single URL to one of the nodes is told to use the cluster's; a dead node is a typed error."""
    found = cluster(server_name)
    keys = shard_keys("power", 8)
    async with Server(found.url) as wire:
        for key in keys:
            await wire.call("XADD", key, "*", "volts", 1, key=key)
            assert found.node_of(key).command("XLEN", key) == 1
        assert {found.node_of(key).port for key in keys} == {n.port for n in found.nodes}

        # A slot that moves is followed; who goes on asking the node that had it is told.
        link = await wire.link(keys[0])
        moved_from = found.node_of(keys[0])
        target = next(node for node in found.nodes if node is not moved_from)
        move_slot(found, keys[0], target)
        with pytest.raises(SlotMovedError, match="MOVED"):
            await link.call("XLEN", keys[0])
        await link.close()
        assert await wire.call("XLEN", keys[0], key=keys[0]) == 1
        move_slot(found, keys[0], moved_from)
        side = side_key(keys[0], "seq:p")
        arguments = (1, 0, 0, 60_000, "", "rows1", 1, b"payload")
        assert (await wire.run(script("append"), [keys[0], side], *arguments))[0] == b"new"
        move_slot(found, keys[0], target)
        assert found.node_of(keys[0]) is target

    async with Server(target.url) as single:
        elsewhere = next(key for key in keys if found.node_of(key) is not target)
        with pytest.raises(SlotMovedError) as caught:
            await single.call("XLEN", elsewhere, key=elsewhere)
        assert caught.value.retryable and "redis+cluster://" in caught.value.hint

    # One of several start nodes is enough.
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{target.port}"
    async with Server(f"redis+cluster://{hosts}") as wire:
        assert await wire.call("XLEN", keys[0], key=keys[0]) == 2
        target.kill()
        with pytest.raises(ServerUnavailableError):
            await wire.call("XLEN", keys[0], key=keys[0])


async def test_cluster_without_nodes() -> None:
    """A cluster none of whose nodes answers is a typed, retryable error."""
    with pytest.raises((ServerUnavailableError, ClusterDownError)) as caught:
        await ping(f"redis+cluster://127.0.0.1:{free_port()}")
    assert caught.value.retryable and caught.value.hint


async def test_cluster_url_to_a_single_server(server: TestServer) -> None:
    """A cluster URL to a server that is none is an error of configuration, with the way out."""
    with pytest.raises(ConfigError, match="no cluster") as caught:
        await ping(f"redis+cluster://127.0.0.1:{server.port}")
    assert "redis://" in caught.value.hint


async def test_cluster_node_that_hangs(
    cluster: Callable[..., TestCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that takes connections and answers nothing is not asked for the map without end; the
    next start node is."""
    found = cluster("valkey-9.1", cluster_require_full_coverage="no")
    first, second = found.nodes[:2]
    key = next(key for key in shard_keys("power", 8) if found.node_of(key) is second)
    monkeypatch.setattr("standpipe.wire.server.CONNECT_MS_MAX", 1000)
    first.stop()
    try:
        start = time.monotonic()
        with pytest.raises(ClusterDownError) as caught:
            await ping(found.url)
        assert caught.value.retryable
        assert 0.8 < time.monotonic() - start < 5
        async with Server(f"{found.url},127.0.0.1:{second.port}") as wire:
            assert await wire.call("XLEN", key, key=key) == 0
    finally:
        first.cont()


# --- sockets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "tls", "sentinel", "cluster"])
async def test_socket_options(kind: str, own_fleet: Fleet) -> None:
    """Whatever the kind of server: a small write leaves at once, and the kernel probes a connection
    on which nothing happens, within minutes rather than hours."""
    if kind == "single":
        url = own_fleet.own("valkey-9.1").url
    elif kind == "tls":
        url = own_fleet.tls().url
    else:
        url = getattr(own_fleet, kind)("valkey-9.1").url
    async with Server(url) as wire:
        link = await wire.link("k")
        used = link._connection._writer.get_extra_info("socket")
        assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = getattr(socket, "TCP_KEEPIDLE", None) or socket.TCP_KEEPALIVE
        assert used.getsockopt(socket.IPPROTO_TCP, idle) == KEEPALIVE_IDLE_S
        options = {
            socket.TCP_KEEPINTVL: KEEPALIVE_INTERVAL_S,
            socket.TCP_KEEPCNT: KEEPALIVE_PROBES_MAX,
        }
        for option, value in options.items():
            assert used.getsockopt(socket.IPPROTO_TCP, option) == value
        await link.close()


async def test_timeout_of_redis_py_in_the_url(server: TestServer, stream_name: str) -> None:
    """A socket_timeout in the URL, which redis-py would apply to a blocking read, does not."""
    async with Server(f"{server.url}?socket_timeout=0.1") as wire:
        link = await wire.link(stream_name)
        read = pack("XREAD", "BLOCK", 400, "STREAMS", stream_name, "$")
        start = time.monotonic()
        assert await link.exchange((read,), 1) == [None]
        assert time.monotonic() - start > 0.3
        assert link.is_open
        await link.close()


# --- what a server can do ------------------------------------------------------------------------

CAPABILITIES = {
    "redis-6.2": set(),
    "redis-7.0": set(),
    "valkey-8.1": {"waitaof"},
    "redis-8.2": {"waitaof", "xackdel"},
    "valkey-9.1": {"waitaof"},
}


async def test_capabilities(server: TestServer, wire: Server, stream_name: str) -> None:
    """What a server can do beyond Redis 6.2 is found by asking it, and asking leaves no key."""
    assert await wire.capabilities(stream_name) == CAPABILITIES[server.name]
    assert server.command("KEYS", f"*{stream_name}*") == []


# --- one exchange --------------------------------------------------------------------------------


async def test_replies_in_order(wire: Server, stream_name: str) -> None:
    """An error reply stands in its place among the others and does not end the exchange."""
    replies = await wire.call_many(
        [("SET", stream_name, "text"), ("XLEN", stream_name), ("GET", stream_name)],
        key=stream_name,
    )
    assert replies[0] == b"OK" and replies[2] == b"text"
    assert isinstance(replies[1], WrongTypeError)


async def test_block_may_be_longer_than_the_reply_deadline(
    server: TestServer, stream_name: str
) -> None:
    """A blocking read waits as long as it says: no timeout of the socket ends it."""
    async with Server(server.url, reply_ms_max=300) as wire:
        link = await wire.link(stream_name)
        assert link._connection.socket_timeout is None
        read = pack("XREAD", "BLOCK", 700, "STREAMS", stream_name, "$")
        start = time.monotonic()
        replies = await link.exchange((read,), 1, reply_ms_max=700 + link.reply_ms_max)
        assert replies == [None]
        assert 0.6 < time.monotonic() - start < 1
        assert link.is_open
        await link.close()


async def test_many_slow_replies(own_server: OwnServer) -> None:
    """The deadline is each reply's: many that are slow together are not given up half-way, which
    would only begin them again."""
    async with Server(own_server("valkey-9.1").url, reply_ms_max=800) as wire:
        link = await wire.link("k")
        short, long = (pack("BLPOP", "k", timeout) for timeout in (0.2, 1.5))
        assert await link.exchange([short] * 6, 6) == [None] * 6
        with pytest.raises(ReplyTimeoutError, match=r"no reply within 800 ms \(1 of 2 came\)"):
            await link.exchange([short, long], 2)


async def test_stopped_server(server_name: str, own_server: OwnServer) -> None:
    """A server that hangs is a ReplyTimeoutError after the deadline, and the link is not used
    again: its late reply would be taken for the next one."""
    server = own_server(server_name)
    async with Server(server.url, reply_ms_max=200) as wire:
        link = await wire.link("k")
        server.stop()
        start = time.monotonic()
        with pytest.raises(ReplyTimeoutError, match="no reply within 200 ms") as caught:
            await link.call("PING")
        assert time.monotonic() - start < 1
        assert caught.value.retryable and caught.value.hint
        server.cont()
        assert not link.is_open
        with pytest.raises(ServerUnavailableError, match="closed"):
            await link.call("PING")
        assert await wire.call("PING", key="k") == b"PONG"


async def test_stopped_server_at_connecting(own_server: OwnServer) -> None:
    """A server that accepts and says nothing is given up on within the connection's deadline."""
    server = own_server("valkey-9.1")
    server.stop()
    try:
        with pytest.raises(ServerUnavailableError, match="no connection within 5000 ms"):
            await ping(server.url)
    finally:
        server.cont()


async def test_cancelled_exchange(wire: Server, server: TestServer, stream_name: str) -> None:
    """A cancelled exchange closes its link, so that no reply is taken for another's."""
    link = await wire.link(stream_name)
    read = pack("XREAD", "BLOCK", 0, "STREAMS", stream_name, "$")
    reading = asyncio.create_task(link.exchange((read,), 1, reply_ms_max=60_000))
    await eventually(lambda: "cmd=xread" in server.cli("CLIENT", "LIST"))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not link.is_open


async def test_killed_connection(wire: Server, server: TestServer, stream_name: str) -> None:
    """A connection that the server cuts in the middle is a ServerUnavailableError."""
    link = await wire.link(stream_name)
    number = await link.call("CLIENT", "ID")
    read = pack("XREAD", "BLOCK", 0, "STREAMS", stream_name, "$")
    reading = asyncio.create_task(link.exchange((read,), 1, reply_ms_max=60_000))
    await eventually(lambda: "cmd=xread" in server.cli("CLIENT", "LIST", "ID", number))
    server.command("CLIENT", "KILL", "ID", number)
    with pytest.raises(ServerUnavailableError) as caught:
        await reading
    assert caught.value.retryable
    assert not link.is_open


async def test_killed_server(server_name: str, own_server: OwnServer) -> None:
    """A server that dies under a read is a ServerUnavailableError, and so is one that is gone."""
    server = own_server(server_name)
    async with Server(server.url) as wire:
        link = await wire.link("k")
        read = pack("XREAD", "BLOCK", 0, "STREAMS", "k", "$")
        reading = asyncio.create_task(link.exchange((read,), 1, reply_ms_max=60_000))
        await eventually(lambda: "cmd=xread" in server.cli("CLIENT", "LIST"))
        server.kill()
        with pytest.raises(ServerUnavailableError):
            await reading
        with pytest.raises(ServerUnavailableError, match=r"refused|Connect call failed") as caught:
            await wire.link("k")
        assert "server runs" in caught.value.hint


async def test_script_is_taught(server_name: str, own_server: OwnServer) -> None:
    """A script that the server has forgotten is taught again without the caller's doing."""
    server = own_server(server_name)
    async with Server(server.url) as wire:
        for number in (1, 2, 3):
            arguments = (number, number - 1, number - 1, 60_000, "", "rows1", 1, b"payload")
            reply = await wire.run(script("append"), ["s", side_key("s", "seq:p")], *arguments)
            assert reply[0] == b"new"
            server.command("SCRIPT", "FLUSH")
    assert server.command("XLEN", "s") == 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_that_was_reset_meanwhile(server: TestServer, loop: str) -> None:
    """A connection that is reset while nothing is under way is unavailable, on the loop of the
    command line as well: its owner makes a new one."""

    async def run() -> None:
        async with Proxy(server.port) as proxy, Server(proxy.url) as wire:
            link = await wire.link("x")
            assert await link.call("PING") == b"PONG"
            proxy.reset()
            await eventually(link._connection._writer.is_closing)
            with pytest.raises(ServerUnavailableError):
                await link.call("PING")
            assert not link.is_open

    with asyncio.Runner(loop_factory=pytest.importorskip(loop).new_event_loop) as runner:
        runner.run(run())


# --- what a server says --------------------------------------------------------------------------


@contextlib.contextmanager
def _oom(server: TestServer) -> Iterator[None]:
    server.command("CONFIG", "SET", "maxmemory", "1")
    yield


@contextlib.contextmanager
def _misconf(server: TestServer) -> Iterator[None]:
    """A snapshot that cannot be written, since its folder is gone."""
    folder = Path(tempfile.mkdtemp())
    server.command("CONFIG", "SET", "dir", str(folder))
    server.command("CONFIG", "SET", "save", "3600 1")
    folder.rmdir()
    server.command("BGSAVE")
    eventually_sync(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield


@contextlib.contextmanager
def _readonly(server: TestServer) -> Iterator[None]:
    server.command("REPLICAOF", "127.0.0.1", free_port())
    yield


@contextlib.contextmanager
def _masterdown(server: TestServer) -> Iterator[None]:
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.command("REPLICAOF", "127.0.0.1", free_port())
    yield


@contextlib.contextmanager
def _noreplicas(server: TestServer) -> Iterator[None]:
    server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    yield


@contextlib.contextmanager
def _busy(server: TestServer) -> Iterator[None]:
    """A script that runs until SCRIPT KILL."""
    server.command("CONFIG", "SET", "lua-time-limit", "1")
    endless = redis.Redis(port=server.port, socket_timeout=None, retry=None).connection_pool
    connection = endless.get_connection()
    connection.send_command("EVAL", "while true do end", 0)

    def is_busy() -> bool:
        try:
            server.command("PING")
        except redis.ResponseError as error:
            return "BUSY" in str(error)
        return False

    eventually_sync(is_busy)
    try:
        yield
    finally:
        server.command("SCRIPT", "KILL")
        connection.disconnect()
        endless.disconnect()


@contextlib.contextmanager
def _loading(server: TestServer) -> Iterator[None]:
    """DEBUG RELOAD of a data set that takes four seconds, as each key is made to take its time."""
    # A loading server looks at its clients after every 2 MiB.
    fill = "for i = 1, 400 do redis.call('SET', 'k' .. i, ('x'):rep(50000)) end"
    server.command("EVAL", fill, 0)
    server.command("CONFIG", "SET", "rdbcompression", "no")
    server.command("CONFIG", "SET", "key-load-delay", "10000")
    reloading = redis.Redis(port=server.port, socket_timeout=None, retry=None).connection_pool
    connection = reloading.get_connection()
    connection.send_command("DEBUG", "RELOAD")

    def is_loading() -> bool:
        return server.info("persistence")["loading"] == "1"

    eventually_sync(is_loading, ignore=(redis.RedisError,))
    try:
        yield
        # Only then has the error been met while it was loading.
        assert is_loading()
    finally:
        assert connection.read_response() in (b"OK", "OK")
        connection.disconnect()
        reloading.disconnect()


@contextlib.contextmanager
def _healthy(server: TestServer) -> Iterator[None]:
    server.command("SET", "text", "x")
    yield


_XADD = ("XADD", "s", "*", "volts", 1)
Provoke = Callable[[TestServer], contextlib.AbstractContextManager[None]]
SAID: dict[str, tuple[Provoke, tuple[str | int, ...], type[StandpipeError], bool]] = {
    "OOM": (_oom, _XADD, ServerFullError, True),
    "MISCONF": (_misconf, _XADD, NotPersistingError, True),
    "READONLY": (_readonly, _XADD, ReadOnlyServerError, True),
    "MASTERDOWN": (_masterdown, ("XLEN", "s"), PrimaryDownError, True),
    "NOREPLICAS": (_noreplicas, _XADD, TooFewReplicasError, True),
    "BUSY": (_busy, _XADD, ServerBusyError, True),
    "LOADING": (_loading, _XADD, ServerLoadingError, True),
    "NOSCRIPT": (_healthy, ("EVALSHA", "0" * 40, 0), ScriptMissingError, True),
    "WRONGTYPE": (_healthy, ("XLEN", "text"), WrongTypeError, False),
    "NOGROUP": (
        _healthy,
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"),
        GroupNotFoundError,
        False,
    ),
    "unknown command": (_healthy, ("XNOSUCH", "s"), CommandMissingError, False),
    "other": (_healthy, ("XADD", "s", "0-0", "volts", 1), ReplyError, False),
}


@pytest.mark.parametrize("case", SAID)
async def test_error_replies(case: str, server_name: str, own_server: OwnServer) -> None:
    """What the server says has the type, the retryability and the hint that belong to it."""
    provoke, command, kind, is_retryable = SAID[case]
    server = own_server(server_name)
    async with Server(server.url) as wire:
        link = await wire.link("s")
        with provoke(server), pytest.raises(StandpipeError) as caught:
            await link.call(*command)
        await link.close()
    error = caught.value
    assert type(error) is kind
    assert error.retryable is is_retryable
    assert error.hint or kind is ReplyError
    assert str(server.port) in str(error)
    if case.isupper():
        assert case in str(error)


IN_SCRIPTS = ("OOM", "MISCONF", "READONLY", "NOREPLICAS", "BUSY", "LOADING")


@pytest.mark.parametrize("case", IN_SCRIPTS)
async def test_error_replies_in_scripts(case: str, server_name: str, own_server: OwnServer) -> None:
    """The same from inside a script, where Redis 6.2 wraps it, and nothing was done by then."""
    provoke, _, kind, _ = SAID[case]
    server = own_server(server_name)
    async with Server(server.url) as wire:
        link = await wire.link("s")
        with provoke(server), pytest.raises(StandpipeError) as caught:
            await _append(link, "s")
        assert type(caught.value) is kind
        await link.close()
        if case == "OOM":
            server.command("CONFIG", "SET", "maxmemory", "0")
        assert server.command("EXISTS", "s", side_key("s", "seq:p")) == 0


async def _append(link: Link, key: str) -> object:
    keys = [key, side_key(key, "seq:p")]
    return await link.run(script("append"), keys, 1, 0, 0, 60_000, "", "rows1", 1, b"payload")


async def test_wrong_type_in_scripts(server: TestServer, wire: Server, stream_name: str) -> None:
    """A script that finds something else than a stream says so."""
    server.command("SET", stream_name, "text")
    link = await wire.link(stream_name)
    with pytest.raises(WrongTypeError, match="WRONGTYPE"):
        await _append(link, stream_name)
    await link.close()


@pytest.mark.parametrize("forbidden", ["xadd", "set", "get", "evalsha"])
async def test_acl_in_scripts(forbidden: str, server_name: str, own_server: OwnServer) -> None:
    """A command that the ACL forbids inside a script is NotPermittedError, and nothing was
    added: an append is never done by half."""
    server = own_server(server_name)
    server.command("ACL", "SETUSER", "meter", "on", ">secret", "~*", "+@all", f"-{forbidden}")
    async with Server(f"redis://meter:secret@127.0.0.1:{server.port}") as wire:
        link = await wire.link("s")
        with pytest.raises(NotPermittedError) as caught:
            await _append(link, "s")
        assert "ACL" in caught.value.hint
        await link.close()
    assert server.command("EXISTS", "s") == 0


async def test_too_many_clients(server_name: str, own_server: OwnServer) -> None:
    """A server with all its connections taken says so before anything is sent."""
    server = own_server(server_name)
    async with Server(server.url) as wire:
        await wire.call("CONFIG", "SET", "maxclients", 1, key="k")
        with pytest.raises(TooManyClientsError) as caught:
            await wire.link("k")
        assert caught.value.retryable and "maxclients" in caught.value.hint


async def test_cluster_down(server_name: str, own_server: OwnServer) -> None:
    """A node whose cluster does not serve a key's slot says CLUSTERDOWN."""
    server = own_server(server_name, cluster_enabled="yes")
    async with Server(server.url) as wire:
        with pytest.raises(ClusterDownError, match="CLUSTERDOWN") as caught:
            await wire.call("XLEN", "k", key="k")
        assert caught.value.retryable and "CLUSTER INFO" in caught.value.hint


async def test_slot_in_between(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """ASK and TRYAGAIN, while a slot is on its way, are SlotMovedErrors (Redis 6.2 says ASK for
    both)."""
    found = cluster(server_name)
    key = "power"
    source = found.node_of(key)
    side = side_key(key, "seq:p")
    source.command("XADD", key, "*", "a", "b")
    begin_move(found, key, next(node for node in found.nodes if node is not source))
    async with Server(found.url) as wire:
        link = await wire.link(key)
        with pytest.raises(SlotMovedError, match="ASK"):
            await link.call("GET", side)
        with pytest.raises(SlotMovedError, match=r"ASK|TRYAGAIN"):
            await link.call("DEL", key, side)
        await link.close()


async def test_refused_connection() -> None:
    """A port that nobody listens on is a typed error that names it."""
    port = free_port()
    with pytest.raises(ServerUnavailableError, match=str(port)) as caught:
        await ping(f"redis://127.0.0.1:{port}")
    assert caught.value.retryable


async def test_unknown_host() -> None:
    """A name that cannot be resolved is a typed error, too."""
    with pytest.raises(ServerUnavailableError, match=r"no-such-host\.invalid"):
        await ping("redis://no-such-host.invalid:6390")


def test_reply_deadline_is_a_time() -> None:
    """A deadline below a millisecond is refused."""
    with pytest.raises(ConfigError, match="reply_ms_max is 0"):
        Server("redis://127.0.0.1:6390", reply_ms_max=0)
