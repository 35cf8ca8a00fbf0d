"""What the server says: its error replies and INFO as what this package means by them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

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
from standpipe.limits import (
    CONNECT_MS_MAX,
)

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


ITS_ERRORS: Final = (OSError, RedisError, RedisClusterException)
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


def info_fields(reply: bytes) -> dict[str, str]:
    """The reply to INFO as a flat mapping."""
    lines = reply.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
