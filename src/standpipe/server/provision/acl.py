"""The users of a server and what each may do: the commands and keys that our code uses. Pure.

Since Redis 7 a user has selectors: sets of commands for a set of keys each. So a producer may SET
its sequence number and not the stream. Redis 6.2 has one list of commands and one of keys, every
command for every key: there a producer could overwrite its own stream, though no other's.

A pattern names a shard's key whole and its side keys behind the key's hash tag, as
:mod:`standpipe.keyspace` makes them: ``power`` and ``{power}:seq:*``. So a user of ``power`` has no
part in ``power_grid``, nor in ``power:spare``.

Sources: https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/ ,
https://valkey.io/topics/acl/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from standpipe.keyspace import definition_key, side_key
from standpipe.server.provision.description import (
    Description,
    StreamNeed,
    UserNeed,
    UserRole,
)
from standpipe.server.provision.serverconf import Version

# --- what each role may do -----------------------------------------------------------------------

Keys = Literal[
    "shard", "name", "definition", "dead", "requeued", "seq", "trimmed", "lost", "archived",
    "archive", "janitor", "lease", "members", "workers", "all",
]  # fmt: skip

_SIDE: Final[Mapping[Keys, tuple[str, ...]]] = {
    "dead": ("dead",),
    "requeued": ("requeued:*",),
    "seq": ("seq:*",),
    "trimmed": ("trimmed",),
    "lost": ("lost",),
    "archived": ("archived",),
    "archive": ("archive:*",),
    "janitor": ("janitor", "janitor:*"),
    "lease": ("lease:*",),
    "members": ("members:*",),
    "workers": ("workers:*", "workers-until:*"),
}
"""Side keys by what they are for; each stands behind the hash tag of its shard."""


@dataclass(frozen=True)
class Grant:
    """Commands that are allowed for some keys of a stream."""

    keys: tuple[Keys, ...]
    commands: str
    only_ring: bool = False
    """For streams alone whose oldest entries go when they are full."""


_SCRIPTS: Final = Grant(("all",), "eval evalsha")
"""A script names all its keys; each command in it is checked again by itself, as this user."""

_CONNECT: Final = "hello auth ping echo client|setname client|setinfo client|id command|info"
"""What clients in any language say when they connect."""

_CLUSTER: Final = (
    "cluster|slots cluster|shards cluster|nodes cluster|info readonly readwrite asking"
)

_STATUS: Final = (
    Grant(("definition", "trimmed", "archived"), "get"),
    Grant(
        ("shard", "requeued"),
        "exists xlen xinfo|stream xinfo|groups xinfo|consumers xpending memory|usage type",
    ),
    # How far a group is behind only the next entry says, and what is requeued has to be counted;
    # XINFO STREAM shows entries anyway.
    Grant(("shard", "requeued"), "xrange"),
    Grant(("dead",), "xlen exists"),
    Grant(("lost", "workers"), "hgetall hmget zrange zrangebyscore"),
)

GRANTS: Final[Mapping[UserRole, tuple[Grant, ...]]] = {
    "producer": (
        _SCRIPTS,
        Grant(("definition",), "get set"),
        Grant(("name",), "exists"),
        Grant(("shard",), "xadd xlen memory|usage exists"),
        Grant(("seq",), "get set"),
        Grant(("shard",), "xtrim xrange xpending xinfo|groups", only_ring=True),
        Grant(("trimmed",), "incrby", only_ring=True),
        Grant(("lost",), "hincrby", only_ring=True),
        Grant(("archived",), "get", only_ring=True),
    ),
    "worker": (
        _SCRIPTS,
        Grant(("definition",), "get"),
        Grant(
            ("shard",),
            "exists xlen xinfo|stream xinfo|groups xinfo|consumers xgroup|create "
            "xgroup|delconsumer xreadgroup xread xrange xrevrange xpending xclaim xautoclaim xack",
        ),
        Grant(("dead",), "xadd xrevrange"),
        Grant(
            ("requeued",),
            "exists xinfo|stream xinfo|groups xinfo|consumers xgroup|create xgroup|delconsumer "
            "xreadgroup xrange xlen xpending xclaim xautoclaim xack xtrim del",
        ),
        Grant(("lease",), "hmget hset hdel set pttl pexpire del"),
        # Asked of several of these keys at a time.
        Grant(("shard", "requeued", "lease"), "exists"),
        Grant(("members",), "zadd zrem zremrangebyscore zrange"),
        Grant(("workers",), "hset hdel zadd zrem zrangebyscore pexpire"),
    ),
    "reader": (
        _SCRIPTS,
        Grant(("definition", "archived"), "get"),
        Grant(("shard",), "exists xlen xrange xrevrange xread xinfo|stream"),
    ),
    "keeper": (
        _SCRIPTS,
        *_STATUS,
        Grant(("shard",), "xrevrange xtrim"),
        Grant(("trimmed",), "incrby"),
        Grant(("lost",), "hincrby"),
        Grant(("archived",), "exists set"),
        Grant(("archive", "janitor"), "exists get hmget hset hdel set pttl pexpire del"),
    ),
    "operator": (
        _SCRIPTS,
        *_STATUS,
        Grant(
            ("all",),
            "@stream exists type del unlink get set incrby ttl pttl memory|usage hgetall hmget "
            "hdel hset hincrby zrange zrangebyscore zrem",
        ),
    ),
    "monitoring": (_SCRIPTS, *_STATUS),
}
"""The least that each role's code works with; found by running it, and by trying all the rest. A
worker does not keep its stream within limits here (``--no-retain``): who may trim is the keeper."""

KEYLESS: Final[Mapping[UserRole, str]] = {
    "producer": "info time wait waitaof",
    "worker": "info time",
    "reader": "info time",
    "keeper": "info time scan",
    "operator": "info time role dbsize scan lastsave bgsave bgrewriteaof config|get acl|whoami "
    "acl|getuser acl|list acl|users acl|log acl|dryrun slowlog|get slowlog|len slowlog|reset "
    "latency|latest latency|history latency|reset latency|doctor client|list client|info "
    "client|kill client|unpause memory|stats memory|doctor cluster|slot-stats",
    "monitoring": "info time role select dbsize scan slowlog|get slowlog|len latency|latest "
    "latency|history client|list memory|stats cluster|slot-stats",
}
"""Commands without keys. CONFIG GET shows passwords, so only the operator has it."""

MACHINES: Final = {
    "replication": "psync replconf ping",
    "balancer": "ping role",
}
"""The users of the machines: a replica, and a load balancer that looks for the primary."""

_SINCE: Final[Mapping[str, tuple[int, int]]] = {
    "acl|dryrun": (7, 0),
    "cluster|shards": (7, 0),
    "client|setinfo": (7, 2),
    "waitaof": (7, 2),
}
"""Commands that came after Redis 6.2. Every Valkey has them."""

_SLOT_STATS: Final = {"redis": (8, 2), "valkey": (8, 0)}

# --- patterns ------------------------------------------------------------------------------------


def _escaped(name: str) -> str:
    """A key as a pattern that matches it alone.

    Parentheses go into brackets: at the end of a pattern they would end the selector.
    """
    return re.sub(r"[()]", r"[\g<0>]", re.sub(r"[*?\[\]\\]", r"\\\g<0>", name))


def patterns(stream: StreamNeed, keys: Keys) -> tuple[str, ...]:
    """The patterns of some keys of a stream."""
    if keys == "name":
        return (_escaped(stream.name),)
    if keys == "definition":
        return (_escaped(definition_key(stream.name)),)
    if keys == "shard":
        return tuple(map(_escaped, stream.keys))
    if keys == "all":
        side = tuple(_side(key, "*") for key in stream.keys)
        whole = (*patterns(stream, "shard"), *side, *patterns(stream, "definition"))
        return tuple(dict.fromkeys((*patterns(stream, "name"), *whole)))
    return tuple(_side(key, what) for key in stream.keys for what in _SIDE[keys])


def _side(shard_key: str, pattern: str) -> str:
    # What is asked for ends in a star at most, which is meant.
    return _escaped(side_key(shard_key, "")) + pattern


# --- rules ---------------------------------------------------------------------------------------


def password_hash(password: str) -> str:
    """A password as the file has it: ``#`` and its SHA-256."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def rules(user: UserNeed, description: Description) -> list[str]:
    """A user's rules, but for its password, one a line."""
    version = description.version
    streams = description.streams_of(user)
    keyless = f"{_CONNECT} {KEYLESS[user.role]}"
    if description.role == "cluster":
        keyless += f" {_CLUSTER}"
    if user.role == "producer" and _needs_config(description):
        keyless += " config|get"
    grants = [
        (grant.commands, [p for keys in grant.keys for s in chosen for p in patterns(s, keys)])
        for grant in GRANTS[user.role]
        if (chosen := [s for s in streams if not grant.only_ring or s.when_full == "ring"])
    ]
    if version.numbers < (7, 0):
        commands = " ".join([keyless, *(found for found, _ in grants)])
        keys = dict.fromkeys(f"~{pattern}" for _, found in grants for pattern in found)
        return ["resetchannels", " ".join(keys), _allowed(commands, version)]
    selectors = [
        f"({' '.join(dict.fromkeys(f'~{p}' for p in found))} {_allowed(commands, version)})"
        for commands, found in grants
    ]
    return ["resetchannels", _allowed(keyless, version), *selectors]


def _needs_config(description: Description) -> bool:
    """Whether a producer can learn by CONFIG GET alone that what it sent is on disk.

    With appendfsync always that is so, and where WAITAOF is missing or answers too early nothing
    else says it.
    """
    return description.persistence == "always"


def _allowed(commands: str, version: Version) -> str:
    return " ".join(f"+{each}" for each in _known(commands.split(), version))


def _known(commands: Iterable[str], version: Version) -> Iterator[str]:
    for command in dict.fromkeys(commands):
        first = _SINCE.get(command, (6, 2)) if version.product == "redis" else (7, 2)
        if command == "cluster|slot-stats":
            first = _SLOT_STATS[version.product]
        if version.numbers >= first:
            yield command


def acl_users(description: Description) -> tuple[str, ...]:
    """The names of all users that get a password."""
    names = [user.name for user in description.users]
    if description.has_replicas:
        names.append("replication")
    return (*names, "balancer")


def render(description: Description, passwords: Mapping[str, str]) -> str:
    """The file of users. It holds passwords as SHA-256 alone, and has no room for comments.

    Args:
        description: The deployment, completed.
        passwords: Of each of :func:`acl_users`.
    """
    lines = ["user default reset off"]
    lines += [_line(user.name, passwords, rules(user, description)) for user in description.users]
    for name, commands in MACHINES.items():
        if name in passwords:
            base = f"hello auth {commands}"
            rule = ["resetchannels", _allowed(base, description.version)]
            lines.append(_line(name, passwords, rule))
    return "\n".join(lines) + "\n"


def _line(name: str, passwords: Mapping[str, str], rule: Sequence[str]) -> str:
    return " ".join(
        ["user", name, "reset", "on", password_hash(passwords[name]), *filter(None, rule)]
    )
