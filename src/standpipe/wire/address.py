"""Where the server is: URLs and what redis-py is to be told of them."""

from __future__ import annotations

import socket
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.asyncio.connection import (
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from standpipe.config import mask_password
from standpipe.errors import (
    ConfigError,
)
from standpipe.limits import (
    CONNECT_MS_MAX,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES_MAX,
    SOCKET_READ_BYTES,
)

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


def options_of(address: Address, name: str) -> dict[str, Any]:
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
