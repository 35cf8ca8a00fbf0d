"""A server, a primary behind Sentinels, or a cluster: where connections come from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    ConnectionPool,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from standpipe.cancelling import heeding_cancel
from standpipe.errors import (
    ConfigError,
    GroupNotFoundError,
    SlotMovedError,
    StandpipeError,
)
from standpipe.keyspace import shard_keys, slot
from standpipe.limits import (
    CONNECT_MS_MAX,
    REPLY_MS_MAX,
    SHARDS_MAX,
)
from standpipe.wire.address import options_of, parse_address
from standpipe.wire.link import Link, drop
from standpipe.wire.replies import ITS_ERRORS, info_fields, translate
from standpipe.wire.script import Argument, Script, pack


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
            async with heeding_cancel(), asyncio.timeout(CONNECT_MS_MAX / 1000):
                await connection.connect()
        except BaseException as error:
            if connection is not None:
                # Cut off in the handshake it would keep its socket.
                await drop(connection)
            if not isinstance(error, ITS_ERRORS):
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
        options = options_of(self.address, self.name)
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
                options = options_of(self.address, self.name)
                tls = {"ssl": True} if options.pop("tls") else {}
                # redis-py asks node after node, and would wait for a silent one without end.
                options["socket_timeout"] = CONNECT_MS_MAX / 1000
                cluster = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self._start_hosts],
                    **tls,
                    **options,
                )
                nodes: Any = cluster.nodes_manager
                try:
                    # The map alone: its commands are asked of the first primary, which may be down.
                    async with heeding_cancel():
                        await nodes.initialize()
                except BaseException as error:
                    await _disconnect(nodes)
                    if not isinstance(error, ITS_ERRORS):
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


async def _disconnect(nodes: Any) -> None:
    await nodes.aclose("startup_nodes")
    await nodes.aclose("nodes_cache")


def _node_connection(node: ClusterNode) -> AbstractConnection:
    options: dict[str, Any] = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
    return node.connection_class(**options)
