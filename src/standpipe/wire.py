"""The only module that speaks to the server.

redis-py keeps what it is good at: URLs, TLS, authentication, Sentinel, the map of a cluster,
parsing by hiredis. Two of its habits are turned off here, because a queue cannot afford them:

* its ``socket_timeout`` of 5 s ends a longer blocking read, and its own retries hide that: a
  ``BLOCK 7000`` became a TimeoutError after a minute. Here every exchange has one deadline of its
  own, which counts the BLOCK time in.
* its retries send a command again whose outcome is unknown: one ``xadd()`` left two entries. Here
  nothing is sent again below the producer, which knows what may be.

Replies are the server's own, over RESP3, as bytes: redis-py's reshaping differs between its default
and an explicit ``protocol=3``, so its command layer is not used at all.

Sources: https://redis.io/docs/latest/develop/reference/protocol-spec/ ,
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import hiredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from standpipe.config import mask_password
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
    SequenceError,
    ServerBusyError,
    ServerFullError,
    ServerLoadingError,
    ServerUnavailableError,
    SlotMovedError,
    StandpipeError,
    StreamFullError,
    TooFewReplicasError,
    TooManyClientsError,
    WrongTypeError,
)
from standpipe.forks import forks, require_same_process
from standpipe.keyspace import shard_keys, slot
from standpipe.limits import (
    CONNECT_MS_MAX,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES_MAX,
    REPLY_MS_MAX,
    SHARDS_MAX,
    SOCKET_READ_BYTES,
)

Argument = str | bytes | int | float

# --- what the server says ------------------------------------------------------------------------

_BY_CODE: Final[Mapping[str, type[StandpipeError]]] = {
    "OOM": ServerFullError,
    "MISCONF": NotPersistingError,
    "READONLY": ReadOnlyServerError,
    # A blocked read ends with it when its primary becomes a replica.
    "UNBLOCKED": ReadOnlyServerError,
    "LOADING": ServerLoadingError,
    "BUSY": ServerBusyError,
    "MASTERDOWN": PrimaryDownError,
    "NOREPLICAS": TooFewReplicasError,
    "CLUSTERDOWN": ClusterDownError,
    "MOVED": SlotMovedError,
    "ASK": SlotMovedError,
    "TRYAGAIN": SlotMovedError,
    "NOSCRIPT": ScriptMissingError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
    "NOPERM": NotPermittedError,
    "WRONGTYPE": WrongTypeError,
    "NOGROUP": GroupNotFoundError,
    "SPORDER": SequenceError,
    "SPFULL": StreamFullError,
}
_BY_TEXT: Final[Sequence[tuple[str, type[StandpipeError]]]] = (
    ("max number of clients", TooManyClientsError),
    ("unknown command", CommandMissingError),
    ("unknown subcommand", CommandMissingError),
    ("invalid username-password pair", AuthenticationError),
    ("invalid password", AuthenticationError),
    # A command inside a script: Redis 6.2 and 7.0 say the first, later versions the second.
    ("the user executing the script can't", NotPermittedError),
    ("acl failure in script", NotPermittedError),
)
# Redis 6.2 wraps what a command inside a script says: "ERR Error running script …: -OOM command…".
_IN_SCRIPT: Final = re.compile(r"[:\s]-?(" + "|".join(_BY_CODE) + r")\s")


_ITS_ERRORS: Final = (OSError, RedisError, RedisClusterException)
"""What redis-py raises when a connection cannot be made; the last is no RedisError."""


def translate(error: BaseException, where: str) -> StandpipeError:
    """The error of this package for what redis-py, the socket or the server said.

    Args:
        error: As caught, or as found inside a reply.
        where: Host and port, for the message.
    """
    if isinstance(error, StandpipeError):
        return error
    text = str(error)
    code: str = getattr(error, "status_code", None) or ""
    if not code:
        code, _, rest = text.partition(" ")
        if code in _BY_CODE:
            text = rest
    kind = _BY_CODE.get(code)
    if code == "UNBLOCKED" and "no longer exists" in text:
        # Redis 7.0 says so to a blocked read whose stream is deleted; others say NOGROUP.
        kind = GroupNotFoundError
    if kind is None and (found := _IN_SCRIPT.search(text)):
        code, kind = found[1], _BY_CODE[found[1]]
    if kind is None:
        kind = next((k for part, k in _BY_TEXT if part in text.lower()), None)
        code = ""
    if kind is not None:
        return kind(f"{where}: {code} {text}".replace("  ", " ").strip())
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        # While connecting: in an exchange it is told apart.
        return ServerUnavailableError(f"{where}: no connection within {CONNECT_MS_MAX} ms")
    if isinstance(error, (OSError, RedisConnectionError, MaxConnectionsError)):
        return ServerUnavailableError(f"{where}: {text or type(error).__name__}")
    if isinstance(error, RedisClusterException):
        if "not enabled" in text:
            return ConfigError(f"{where}: the server is no cluster", hint="Use redis:// for it.")
        return ClusterDownError(f"{where}: {text}")
    return ReplyError(f"{where}: {text or repr(error)}", hint="")


# --- packing -------------------------------------------------------------------------------------


# hiredis' own annotation says a tuple of one.
_pack_command: Final[Callable[[tuple[Argument, ...]], bytes]] = cast(Any, hiredis).pack_command


def pack(*arguments: Argument) -> bytes:
    """One command in RESP, ready to be written."""
    return _pack_command(arguments)


def holds_arguments(packed: bytes, count: int) -> bool:
    """Whether some bytes are so many RESP arguments and nothing else: bytes that are not would put
    all that follows on their connection out of step.

    Cost: 0.1 µs per argument.
    """
    reader = hiredis.Reader()
    try:
        reader.feed(b"*%d\r\n%b" % (count, packed))
        found = reader.gets()
    except hiredis.ProtocolError:
        return False
    # Of too few there would be something left; of too many, no reply yet.
    is_whole = isinstance(found, list) and not reader.has_data()
    return is_whole and all(type(each) is bytes for each in cast("list[object]", found))


class Script(NamedTuple):
    """A Lua script of this package: see the head of its file for keys, arguments and reply."""

    name: str
    text: str
    sha: str

    def pack(self, keys: Sequence[str], *arguments: Argument, whole: bool = False) -> bytes:
        """An EVALSHA, or with ``whole`` the EVAL that teaches the server the script as well."""
        if whole:
            return pack("EVAL", self.text, len(keys), *keys, *arguments)
        return pack("EVALSHA", self.sha, len(keys), *keys, *arguments)


@cache
def script(name: str) -> Script:
    """The script in ``lua/<name>.lua``."""
    body = "\n".join(_lua_lines(name))
    return Script(name, body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest())


def _lua_lines(name: str) -> Iterator[str]:
    for line in (files("standpipe") / "lua" / f"{name}.lua").read_text("utf-8").splitlines():
        if line.lstrip().startswith("-- include "):
            yield from _lua_lines(line.split()[2])
        # Comments are for readers of the file; the server keeps and hashes what is left.
        elif line and not line.lstrip().startswith("--"):
            yield line


# --- one connection ------------------------------------------------------------------------------


class Link:
    """One connection, owned by one caller, never shared while a read blocks on it.

    Made by :meth:`Server.link`. After any error other than an error reply it is closed for good;
    its owner asks the server for a new one.
    """

    def __init__(self, connection: AbstractConnection, where: str, reply_ms_max: int) -> None:
        # A URL may set this, and a cluster's connections have it: it would end a blocking read.
        connection.socket_timeout = None
        self._connection = connection
        self._forks = forks()
        self.where: Final = where
        self.reply_ms_max: Final = reply_ms_max
        """How long an exchange that names no time waits for each reply, ms."""
        self.taught: set[str] = set()
        """Scripts sent whole over this link, so that their SHA is known to its server."""

    @property
    def is_open(self) -> bool:
        return self._connection.is_connected

    @property
    def peer(self) -> str:
        """Who is on the other side: of a Sentinel's or a cluster's URL, the server itself."""
        writer: Any = getattr(self._connection, "_writer", None)
        found = None if writer is None else writer.get_extra_info("peername")
        return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else self.where

    async def is_usable(self) -> bool:
        """Whether it is open and, with nothing under way, not closed by the server meanwhile.

        Raises:
            ForkedError: as :meth:`exchange`.
        """
        require_same_process(self._forks, "connection")
        if not self.is_open:
            return False
        writer: Any = getattr(self._connection, "_writer", None)
        if writer is None or writer.is_closing():
            # Reset, or given up by the kernel: redis-py looks for the end of an orderly closed one.
            return False
        try:
            return not await self._connection.can_read()
        except _ITS_ERRORS:
            return False

    async def exchange(
        self,
        commands: Iterable[bytes],
        count: int,
        *,
        reply_ms_max: int | None = None,
        into: list[Any] | None = None,
    ) -> list[Any]:
        """Write packed commands in one go and read all their replies.

        Args:
            commands: As :func:`pack` makes them.
            count: How many replies are to come.
            reply_ms_max: How long to wait for the first reply, and for each after the one before,
                ms; default: the link's. A blocking read adds its BLOCK time to that.
            into: An empty list for the replies: what has come before an error stays in it.

        Returns:
            The replies in order, as bytes, int, float, bool, list, dict or None. An error reply
            stands in its place as a StandpipeError and is not raised: the others have happened.

        Raises:
            ServerUnavailableError: the connection broke; what was written may have been executed.
            ReplyTimeoutError: a reply did not come in time; likewise. Both retryable.
            ForkedError: the link belongs to the process that this one was forked from.

        Delivery:
            If the process dies here, the server may or may not have executed each command.
        """
        require_same_process(self._forks, "connection")
        connection = self._connection
        if not connection.is_connected:
            # redis-py would connect anew without a word: to another server, perhaps.
            raise ServerUnavailableError(f"{self.where}: the connection is closed")
        deadline_ms = self.reply_ms_max if reply_ms_max is None else reply_ms_max
        replies: list[Any] = [] if into is None else into
        now = asyncio.get_running_loop().time
        writer: Any = getattr(connection, "_writer", None)
        try:
            async with asyncio.timeout(deadline_ms / 1000) as limit:
                # redis-py would wait here until almost all is on its way. But a large write over a
                # slow line takes long, and as long as replies come it must not be begun again.
                writer.writelines(commands)
                for left in range(count - 1, -1, -1):
                    try:
                        replies.append(
                            # No timeout of redis-py's, not even an infinite one: with it, a
                            # connection that the kernel gives up would be a reply of None.
                            await connection.read_response(
                                disable_decoding=True, disconnect_on_error=False
                            )
                        )
                    except RedisError as error:
                        if isinstance(error, (RedisConnectionError, RedisTimeoutError)) and not (
                            getattr(error, "status_code", None)
                        ):
                            raise
                        replies.append(translate(error, self.where))
                    if left:
                        limit.reschedule(now() + deadline_ms / 1000)
        except TimeoutError:
            await self.close()
            raise ReplyTimeoutError(
                f"{self.where}: no reply within {deadline_ms} ms ({len(replies)} of {count} came)"
            ) from None
        except RedisTimeoutError as error:
            await self.close()
            raise ServerUnavailableError(
                f"{self.where}: the connection is dead, the other side has stopped answering"
            ) from error
        except (OSError, RedisError) as error:
            await self.close()
            raise translate(error, self.where) from error
        except BaseException:
            # Cancelled half-way: the next reply would be this exchange's, so the link cannot go on.
            await self.close()
            raise
        return replies

    async def call(self, *arguments: Argument, reply_ms_max: int | None = None) -> Any:
        """One command, one reply.

        Raises:
            StandpipeError: the error reply, translated; or as :meth:`exchange`.
        """
        (reply,) = await self.exchange((pack(*arguments),), 1, reply_ms_max=reply_ms_max)
        if isinstance(reply, StandpipeError):
            raise reply
        return reply

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a script; the server learns it when it does not know it.

        Raises:
            StandpipeError: as :meth:`call`.
        """
        reply = (await self.exchange((script.pack(keys, *arguments),), 1))[0]
        if isinstance(reply, ScriptMissingError):
            # EVAL teaches and runs in one step, and needs no permission for SCRIPT LOAD.
            packed = script.pack(keys, *arguments, whole=True)
            reply = (await self.exchange((packed,), 1))[0]
        if isinstance(reply, StandpipeError):
            raise reply
        return reply

    async def close(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._forks == forks():
            # In a forked process it would take the parent's socket out of the parent's event loop.
            await _drop(self._connection)


async def _drop(connection: AbstractConnection) -> None:
    writer: Any = getattr(connection, "_writer", None)
    await connection.disconnect(nowait=True)
    if writer is not None:
        # TLS would say goodbye first, and wait for a server that may not answer.
        writer.transport.abort()


# --- the server ----------------------------------------------------------------------------------

_SCHEMES: Final = (
    "redis, rediss, valkey, valkeys, unix, redis+sentinel, rediss+sentinel, "
    "redis+cluster, rediss+cluster"
)
_URL_HINT: Final = (
    "Write redis://host:6379/0, rediss://host:6380?ssl_ca_certs=ca.pem, unix:///path, "
    "redis+sentinel://host:26379/mymaster or redis+cluster://host:7000."
)


class Address(NamedTuple):
    """A parsed URL."""

    kind: str
    """``single``, ``sentinel`` or ``cluster``."""
    hosts: tuple[tuple[str, int], ...]
    """Host and port, of each Sentinel or start node; empty for unix sockets."""
    service: str
    """The name Sentinel knows the primary by."""
    url: str
    """What redis-py parses for database, credentials and TLS."""
    shown: str
    """The URL without its password."""


def parse_address(url: str) -> Address:
    """Read a server URL.

    Raises:
        ConfigError: it is not one of the forms in the hint.
    """
    parts = urlsplit(url.strip())
    scheme = parts.scheme.lower().replace("valkeys", "rediss").replace("valkey", "redis")
    base, _, kind = scheme.partition("+")
    shown = mask_password(url)
    kinds = ("",) if base == "unix" else ("", "sentinel", "cluster")
    if base not in ("redis", "rediss", "unix") or kind not in kinds:
        raise ConfigError(
            f"URL {shown!r} has the scheme {parts.scheme!r}, not one of {_SCHEMES}", hint=_URL_HINT
        )
    if base == "unix":
        if not parts.path:
            raise ConfigError(f"URL {shown!r} names no socket", hint=_URL_HINT)
        return Address("single", (), "", url.strip(), shown)
    userinfo, _, hostlist = parts.netloc.rpartition("@")
    hosts = tuple(_host(part, shown, kind) for part in hostlist.split(","))
    path = parts.path.strip("/")
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ConfigError(f"URL {shown!r} names no Sentinel service", hint=_URL_HINT)
    elif kind == "" and len(hosts) != 1:
        raise ConfigError(f"URL {shown!r} names several hosts", hint=_URL_HINT)
    if path and not path.isdigit():
        raise ConfigError(f"URL {shown!r}: database {path!r} is not a number", hint=_URL_HINT)
    if kind == "cluster" and path not in ("", "0"):
        raise ConfigError(f"URL {shown!r}: a cluster has database 0 alone", hint=_URL_HINT)
    host, port = hosts[0]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    netloc = f"{userinfo}@{where}" if userinfo else where
    plain = urlunsplit((base, netloc, f"/{path}" if path else "", parts.query, ""))
    try:
        parse_url(plain)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"URL {shown!r}: {error}", hint=_URL_HINT) from None
    return Address(kind or "single", hosts, unquote(service), plain, shown)


def _host(text: str, shown: str, kind: str) -> tuple[str, int]:
    port_default = 26379 if kind == "sentinel" else 6379
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"URL {shown!r}: {text!r} is no host:port", hint=_URL_HINT) from None
    if not host:
        raise ConfigError(f"URL {shown!r} names no host", hint=_URL_HINT)
    return host, port if port is not None else port_default


class Server:
    """A server, a Sentinel-watched primary or a cluster; hands out connections to it.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, ``redis+cluster://``
            (and ``rediss+…``, ``valkey://``).
        name: What connections are called in CLIENT LIST.
        reply_ms_max: How long the reply to a command that does not block may take, ms.

    Raises:
        ConfigError: the URL is none of these, or the time is none.

    Nothing is connected before the first call. Close it with :meth:`close`, or use it as an async
    context manager.
    """

    def __init__(
        self, url: str, *, name: str = "standpipe", reply_ms_max: int = REPLY_MS_MAX
    ) -> None:
        if reply_ms_max < 1:
            raise ConfigError(f"reply_ms_max is {reply_ms_max}", hint="It is at least 1 ms.")
        self.address = parse_address(url)
        self.name = name
        self.reply_ms_max: Final = reply_ms_max
        self._nodes: Any = None
        self._cluster_lock = asyncio.Lock()
        self._start_hosts = self.address.hosts
        self._shared: dict[str, Link] = {}
        self._shared_lock = asyncio.Lock()
        self._capabilities: frozenset[str] | None = None
        self._new_connection: Callable[[], AbstractConnection] | None = None
        self._sentinels: Sequence[Any] = ()

    @property
    def is_cluster(self) -> bool:
        return self.address.kind == "cluster"

    async def link(self, key: str) -> Link:
        """A new connection to the node that serves a key; the caller closes it.

        Raises:
            ServerUnavailableError, ServerLoadingError, ClusterDownError: retryable.
            AuthenticationError: user or password is wrong.
        """
        where = self.address.shown
        connection: AbstractConnection | None = None
        try:
            if self.is_cluster:
                node = await self._node_of(key)
                connection, where = _node_connection(node), f"{node.host}:{node.port}"
            else:
                connection = self._connection()
            async with asyncio.timeout(CONNECT_MS_MAX / 1000):
                await connection.connect()
        except BaseException as error:
            if connection is not None:
                # Cut off in the handshake it would keep its socket.
                await _drop(connection)
            if not isinstance(error, _ITS_ERRORS):
                raise
            found = translate(error, where)
            if self.is_cluster:
                await self.refresh()
            raise found from error
        return Link(connection, where, self.reply_ms_max)

    def _connection(self) -> AbstractConnection:
        if self._new_connection is None:
            self._new_connection = self._connecting()
        return self._new_connection()

    def _connecting(self) -> Callable[[], AbstractConnection]:
        options = _options(self.address, self.name)
        tls = {"ssl": True} if options.pop("tls") else {}
        if self.address.kind != "sentinel":
            return cast(Any, ConnectionPool).from_url(self.address.url, **options).make_connection
        # Sentinels have their own users, if any; the credentials are the server's.
        sentinel = Sentinel(
            list(self.address.hosts),
            sentinel_kwargs={"socket_timeout": CONNECT_MS_MAX / 1000, "protocol": 3},
        )
        self._sentinels = sentinel.sentinels
        client = cast(Any, sentinel).master_for(self.address.service, **tls, **options)
        # It keeps the client alive, and so the pool to which connections hold a weak reference.
        return lambda: client.connection_pool.make_connection()  # noqa: PLW0108

    async def _topology(self) -> Any:
        """redis-py's map of the cluster, a NodesManager."""
        async with self._cluster_lock:
            if self._nodes is None:
                options = _options(self.address, self.name)
                tls = {"ssl": True} if options.pop("tls") else {}
                # Here redis-py asks by itself, one node after another: one that takes connections
                # and answers nothing would be waited for without end.
                options["socket_timeout"] = CONNECT_MS_MAX / 1000
                cluster = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self._start_hosts],
                    **tls,
                    **options,
                )
                nodes: Any = cluster.nodes_manager
                try:
                    # The map alone: all of it would ask the first primary for its list of commands,
                    # and fail for every shard when that one is down.
                    await nodes.initialize()
                except BaseException as error:
                    await _disconnect(nodes)
                    if not isinstance(error, _ITS_ERRORS):
                        raise
                    raise translate(error, self.address.shown) from error
                self._nodes = nodes
            return self._nodes

    async def _node_of(self, key: str) -> ClusterNode:
        return (await self._topology()).get_node_from_slot(slot(key))

    async def refresh(self) -> None:
        """Forget the cluster's map; the next use reads it anew. Connections stay as they are."""
        nodes, self._nodes = self._nodes, None
        if nodes is not None:
            # Those of the URL may be the ones that have died: any node that was seen can tell.
            seen = [(str(node.host), int(node.port)) for node in nodes.nodes_cache.values()]
            self._start_hosts = tuple(dict.fromkeys((*self.address.hosts, *seen)))
            await _disconnect(nodes)

    async def call(self, *arguments: Argument, key: str, reply_ms_max: int | None = None) -> Any:
        """One command that does not block, over a connection shared by such commands.

        Args:
            arguments: The command.
            key: A key that decides the node in a cluster.
            reply_ms_max: Deadline, ms; default: the server's.

        Raises:
            StandpipeError: the error reply, translated; or as :meth:`Link.exchange`.
        """
        (reply,) = await self.call_many([arguments], key=key, reply_ms_max=reply_ms_max)
        if isinstance(reply, StandpipeError):
            raise reply
        return reply

    async def call_many(
        self,
        commands: Sequence[Sequence[Argument]],
        *,
        key: str,
        reply_ms_max: int | None = None,
    ) -> list[Any]:
        """Several commands in one round trip; error replies stand in their places, not raised."""
        packed = [pack(*arguments) for arguments in commands]
        async with self._shared_lock:
            link = await self._shared_link(key)
            replies = await link.exchange(packed, len(packed), reply_ms_max=reply_ms_max)
            moved = [i for i, reply in enumerate(replies) if isinstance(reply, SlotMovedError)]
            if moved and self.is_cluster:
                # These were not executed, so they may be sent again, by a new map.
                await self.refresh()
                link = await self._shared_link(key)
                again = [packed[i] for i in moved]
                found = await link.exchange(again, len(again), reply_ms_max=reply_ms_max)
                for i, reply in zip(moved, found, strict=True):
                    replies[i] = reply
            return replies

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a script over the shared connection; see :meth:`Link.run`."""
        async with self._shared_lock:
            try:
                return await (await self._shared_link(keys[0])).run(script, keys, *arguments)
            except SlotMovedError:
                if not self.is_cluster:
                    raise
                await self.refresh()
                return await (await self._shared_link(keys[0])).run(script, keys, *arguments)

    async def _shared_link(self, key: str) -> Link:
        node = ""
        if self.is_cluster:
            found = await self._node_of(key)
            node = f"{found.host}:{found.port}"
        link = self._shared.get(node)
        if link is None or not await link.is_usable():
            if link is not None:
                await link.close()
            link = self._shared[node] = await self.link(key)
        return link

    async def scan(self, pattern: str, *only: str) -> list[bytes]:
        """The keys that match, on all primaries; those added meanwhile may be missing.

        ``only`` narrows it further: ``"TYPE", "stream"``.

        Cost: SCAN over all keys, a thousand at a time; ServerError where one refuses.
        """
        keys = {"": ""}
        if self.is_cluster:
            nodes = await self._topology()
            # A key of each primary, by which a link to it is found.
            spread = shard_keys("any", SHARDS_MAX)
            keys = {nodes.get_node_from_slot(slot(key)).name: key for key in spread}
        found: set[bytes] = set()
        for key in keys.values():
            link, cursor = await self.link(key), None
            try:
                while cursor != b"0":
                    command = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", 1000, *only)
                    cursor, page = await link.call(*command)
                    found.update(page)
            finally:
                await link.close()
        return sorted(found)

    async def capabilities(self, key: str) -> frozenset[str]:
        """What this server can do beyond Redis 6.2, probed rather than read off its version.

        Returns:
            Of ``waitaof``, ``xackdel`` (commands), ``claim`` (XREADGROUP … CLAIM), ``idmp``
            (XADD … IDMP), ``xnack``: those that it has.
        """
        if self._capabilities is None:
            # The probes of options name a key that no stream has and fail in parsing or on it.
            probe = f"{{{key}}}:probe" if "{" not in key else f"{key}:probe"
            claim = ("XREADGROUP", "GROUP", "-", "-", "CLAIM", 0, "STREAMS", probe, ">")
            idmp = ("XADD", probe, "NOMKSTREAM", "IDMP", "-", "-", "*", "-", "-")
            info = [("COMMAND", "INFO", name) for name in ("WAITAOF", "XACKDEL", "XNACK")]
            replies = await self.call_many([*info, claim, idmp], key=key)
            found = {
                name
                for name, reply in zip(("waitaof", "xackdel", "xnack"), replies, strict=False)
                if isinstance(reply, (list, dict)) and any(cast("list[Any]", reply))
            }
            if isinstance(replies[3], GroupNotFoundError):
                found.add("claim")
            if replies[4] is None:
                found.add("idmp")
            self._capabilities = frozenset(found)
        return self._capabilities

    async def info(self, key: str, *sections: str) -> dict[str, str]:
        """INFO of the node that serves a key, as a flat mapping."""
        return info_fields(await self.call("INFO", *sections, key=key))

    async def close(self) -> None:
        """Close what is open; the object can be used again."""
        links, self._shared = list(self._shared.values()), {}
        self._capabilities = None
        for link in links:
            await link.close()
        for sentinel in self._sentinels:
            await sentinel.aclose()
        await self.refresh()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def info_fields(reply: bytes) -> dict[str, str]:
    """The reply to INFO as a flat mapping."""
    lines = reply.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _options(address: Address, name: str) -> dict[str, Any]:
    """redis-py's options that are the same for every kind of server; ``tls`` is for the caller."""
    options: dict[str, Any] = {
        "protocol": 3,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_MS_MAX / 1000,
        "socket_read_size": SOCKET_READ_BYTES,
        "retry": Retry(NoBackoff(), 0),
        "client_name": name,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "tls": False,
    }
    parsed: dict[str, Any] = dict(parse_url(address.url))
    kind = parsed.pop("connection_class", None)
    if kind is not UnixDomainSocketConnection:
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = _keepalive()
    if address.kind != "single":
        # from_url() does this for a single server; Sentinel and Cluster want it spelled out.
        parsed.pop("host", None)
        parsed.pop("port", None)
        if address.kind == "cluster":
            parsed.pop("db", None)
        options.update(parsed)
        options["tls"] = kind is SSLConnection
    return options


def _keepalive() -> dict[int, int]:
    """When the kernel finds out that the other side of an idle connection is gone.

    That is all it is asked for: TCP_USER_TIMEOUT, which limits how long written bytes may stay
    unacknowledged, is left alone, since every exchange has a deadline of its own.
    """
    # macOS has the first under another name.
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    wanted = {
        idle: KEEPALIVE_IDLE_S,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEPALIVE_PROBES_MAX,
    }
    return {getattr(socket, name): n for name, n in wanted.items() if hasattr(socket, name)}


async def _disconnect(nodes: Any) -> None:
    await nodes.aclose("startup_nodes")
    await nodes.aclose("nodes_cache")


def _node_connection(node: ClusterNode) -> AbstractConnection:
    options: dict[str, Any] = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
    return node.connection_class(**options)
