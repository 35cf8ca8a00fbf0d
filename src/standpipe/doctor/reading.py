"""What the doctor reads from a server: everything at once, so that its checks can be pure.

What the user may not ask for is None, and named, never taken for "nothing there".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

from standpipe.doctor.advisories import Product
from standpipe.errors import CommandMissingError, NotPermittedError, StandpipeError
from standpipe.wire import Server, info_fields

_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_CONTAINERS: Final = (
    "ACL", "CLIENT", "CLUSTER", "CONFIG", "FUNCTION", "MEMORY", "SCRIPT", "XGROUP", "XINFO",
)  # fmt: skip
_KEY_SECOND: Final = (
    "DEL", "KEYS", "SCAN", "UNLINK", "XACK", "XADD", "XAUTOCLAIM", "XCLAIM", "XDEL", "XPENDING",
    "XRANGE", "XREVRANGE", "XTRIM",
)  # fmt: skip
"""Commands whose second word says which command it is, or is a key. Of no other command anything
but its name is shown: what follows may be a password, a script or somebody's payload."""


@dataclass(slots=True)
class ServerFacts:
    """One server, as it answered."""

    url: str
    """Where this very server is reached, with the password: of a Sentinel's URL the primary."""
    shown: str
    """The address that was given, without the password."""
    info: dict[str, str]
    config: dict[str, str] | None
    slow: list[SlowCommand] | None
    latency: list[LatencyEvent] | None
    default_user: dict[str, Any] | None
    """ACL GETUSER default."""
    cluster: dict[str, str] | None
    """CLUSTER INFO; None where it is no cluster."""
    protocol: int
    """What the connection speaks: 3, or 2 behind something that knows no other."""
    clock_ms: int | None
    """How far its clock is ahead of this machine's; None: this user may not ask for it."""
    clock_doubt_ms: int
    """By how much that may be wrong: half the round trip."""
    cpu_percent: float | None = None
    """Of one core, in its main thread, over the window."""
    denied: list[str] = field(default_factory=list[str])
    """Commands that this user may not use."""

    @property
    def product(self) -> Product:
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str:
        return self.info.get("valkey_version") or self.info.get("redis_version", "")

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "unix" or parts.hostname in _LOCAL

    def number(self, name: str) -> int:
        """A number of INFO; 0 where the server does not have it."""
        return int(self.info.get(name) or 0)

    def option(self, name: str) -> str | None:
        """An option of its configuration; None where it is not known."""
        return None if self.config is None else self.config.get(name)

    def counters(self) -> dict[str, int]:
        """Counters that only grow until it starts again."""
        names = ("rejected_connections", "aof_delayed_fsync", "evicted_keys", "total_error_replies")
        found = {name: self.number(name) for name in names}
        if self.slow is not None:
            found["slowlog"] = max((each.number for each in self.slow), default=-1) + 1
        return found


@dataclass(slots=True, frozen=True)
class SlowCommand:
    number: int
    at: int
    """Seconds since the epoch."""
    took_us: int
    words: str


@dataclass(slots=True, frozen=True)
class LatencyEvent:
    name: str
    at: int
    """Seconds since the epoch."""
    last_ms: int
    max_ms: int


async def read_server(server: Server, key: str) -> ServerFacts:
    """Ask the server that serves a key.

    Raises:
        ServerError: it cannot be reached, or refuses INFO.
    """
    denied: list[str] = []
    began = time.time()
    reply = None
    try:
        reply = await server.call("TIME", key=key)
    except (NotPermittedError, CommandMissingError):
        denied.append("TIME")
    doubt_ms = round((time.time() - began) * 500)
    clock_ms: int | None = None
    if reply is not None:
        clock_ms = int(reply[0]) * 1000 + int(reply[1]) // 1000 - round(began * 1000) - doubt_ms
    protocol = int(texts(await server.call("HELLO", key=key)).get("proto", 2))
    info = info_fields(await server.call("INFO", "all", key=key))
    commands = {
        "CONFIG GET": ("CONFIG", "GET", "*"),
        "SLOWLOG GET": ("SLOWLOG", "GET", 64),
        "LATENCY LATEST": ("LATENCY", "LATEST"),
        "ACL GETUSER": ("ACL", "GETUSER", "default"),
    }
    if info.get("cluster_enabled") == "1":
        commands["CLUSTER INFO"] = ("CLUSTER", "INFO")
    replies = dict(
        zip(commands, await server.call_many(list(commands.values()), key=key), strict=True)
    )
    for name, answer in list(replies.items()):
        if isinstance(answer, (NotPermittedError, CommandMissingError)):
            denied.append(name)
            replies[name] = None
        elif isinstance(answer, StandpipeError):
            raise answer
    config, slow, latency = (replies[n] for n in ("CONFIG GET", "SLOWLOG GET", "LATENCY LATEST"))
    user, cluster = replies["ACL GETUSER"], replies.get("CLUSTER INFO")
    return ServerFacts(
        url=await _url_of(server, key),
        shown=server.address.shown,
        info=info,
        config=None if config is None else {k: str(v) for k, v in texts(config).items()},
        slow=None if slow is None else [_slow(each) for each in slow],
        latency=None
        if latency is None
        else [LatencyEvent(e[0].decode(), int(e[1]), int(e[2]), int(e[3])) for e in latency],
        default_user=None if user is None else texts(user),
        cluster=None if cluster is None else info_fields(cluster),
        protocol=protocol,
        clock_ms=clock_ms,
        clock_doubt_ms=doubt_ms,
        denied=denied,
    )


def _slow(entry: Any) -> SlowCommand:
    words = [bytes(word)[:40].decode("utf-8", "replace") for word in entry[3]]
    named = 2 if words[0].upper() in _CONTAINERS + _KEY_SECOND else 1
    rest = len(words) - named
    said = " ".join(words[:named]) + (f" and {rest} words more" if rest > 0 else "")
    return SlowCommand(int(entry[0]), int(entry[1]), int(entry[2]), said)


async def _url_of(server: Server, key: str) -> str:
    if server.address.kind != "sentinel":
        return server.address.url
    # The address names the Sentinel, which has options, a clock and a certificate of its own.
    link = await server.link(key)
    try:
        return _at(server.address.url, *link.peer.rpartition(":")[::2])
    finally:
        await link.close()


def _at(url: str, host: str, port: str) -> str:
    """The URL with another host and port; without a host, with its own."""
    parts = urlsplit(url)
    userinfo, at, _ = parts.netloc.rpartition("@")
    # What a node that was told no address says of itself: the one under which it was asked.
    host = host or parts.hostname or ""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return urlunsplit((parts.scheme, f"{userinfo}{at}{where}", "", parts.query, ""))


def texts(reply: Any) -> dict[str, Any]:
    """A map, or in older versions a flat list of names and values, with bytes as text."""
    if isinstance(reply, dict):
        pairs: Any = cast("dict[Any, Any]", reply).items()
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, set, tuple)):
        return [_text(each) for each in cast("list[Any]", value)]
    return value


async def node_urls(server: Server, key: str) -> list[str]:
    """The URL of each node: of a cluster all that are up, else the server's own."""
    if not server.is_cluster:
        return [server.address.url]
    rows = (await server.call("CLUSTER", "NODES", key=key)).decode().splitlines()
    return list(_nodes(rows, server.address.url))


def _nodes(rows: list[str], url: str) -> Iterator[str]:
    for row in rows:
        columns = row.split()
        # 10.0.0.1:7000@17000,hostname
        host, _, port = columns[1].partition("@")[0].rpartition(":")
        flags = columns[2].split(",")
        if "fail" in flags or "noaddr" in flags or "handshake" in flags:
            continue
        yield _at(url, host, port)


async def measure_cpu(server: Server, key: str, window_ms: int) -> float | None:
    """The share of one core that the server's main thread takes over a window, in percent.

    Returns:
        None where the server does not tell, as Redis 6.2.
    """
    before, began = await _main_thread_s(server, key), time.monotonic()
    await asyncio.sleep(window_ms / 1000)
    after = await _main_thread_s(server, key)
    if before is None or after is None:
        return None
    return 100 * (after - before) / (time.monotonic() - began)


async def _main_thread_s(server: Server, key: str) -> float | None:
    info: Mapping[str, str] = await server.info(key, "cpu")
    names = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    if not all(name in info for name in names):
        return None
    return sum(float(info[name]) for name in names)
