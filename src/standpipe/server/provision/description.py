"""What a deployment is to be: a short TOML file or flags, checked, the rest filled in.

    server = "redis-7.0"
    bind = ["10.0.0.5", "127.0.0.1"]

    [[streams]]
    name = "power_grid_stream"
    groups = ["monitoring_group"]

Everything else has a default. What is wrong is an error that names the field and the value.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from standpipe.config import parse_size
from standpipe.errors import ConfigError
from standpipe.keyspace import check_stream_name, shard_keys
from standpipe.limits import IN_FLIGHT_EVENTS_MAX, PENDING_ENTRY_BYTES, SHARDS_MAX
from standpipe.server.datafolder import memory_bytes
from standpipe.server.provision.serverconf import (
    MemoryPlan,
    Version,
    plan_memory,
    said_version,
)

Role = Literal["primary", "replica", "cluster"]
Persistence = Literal["always", "everysec", "none"]
UserRole = Literal["producer", "worker", "reader", "keeper", "operator", "monitoring"]

USER_ROLES: Final[tuple[UserRole, ...]] = (
    "producer",
    "worker",
    "reader",
    "keeper",
    "operator",
    "monitoring",
)
MACHINE_USERS: Final = ("replication", "balancer")
"""Users of the deployment itself: a replica at its primary, and the load balancer's check."""

MEMORY_MIN: Final = 128 * 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_UNQUOTED: Final = r"[\s\"'\\$%`]"
_UNQUOTED_HINT: Final = (
    "Without white space, quotes, backslash, '$' and '%': each file format has its own way with "
    "them."
)
_SYSTEM_FOLDERS: Final = re.compile(
    r"/|/(bin|boot|dev|etc|home|lib|lib64|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)|"
    r"/(etc|usr|var)/[^/]+"
)
"""Folders that belong to more than a server: their owner and mode are not to be changed."""
_HIDDEN_FOLDERS: Final = (
    "/home/", "/root/", "/run/", "/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/",
)  # fmt: skip
_HOST: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")


class StreamNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stream, and who reads it."""

    name: str
    shards: int = 1
    groups: tuple[str, ...] = ()
    workers: int = 4
    """Worker processes of each group, over all machines: what may be pending follows from it."""
    when_full: Literal["block", "ring"] = "block"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its shards."""
        return shard_keys(self.name, self.shards)


class UserNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user, and what it may do."""

    name: str
    role: UserRole
    streams: tuple[str, ...] = ()
    """Of these streams alone; none named: of all that the description has."""


class Node(msgspec.Struct, frozen=True):
    """A server of the deployment."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A deployment as it is asked for; every field of the file, and its default."""

    name: str = "standpipe"
    """Of the deployment: the certificates' authority carries it."""
    server: str | None = None
    """``redis-7.0``, ``valkey-9.1``…; None: the one that is installed here."""
    role: Role = "primary"
    memory: str | None = None
    """The machine's RAM: ``16GiB``; None: this machine's."""
    cores: int | None = None
    """The machine's processors; None: this machine's."""
    bind: tuple[str, ...] = ("127.0.0.1",)
    """Addresses of the internal network to listen on."""
    port: int = 6379
    networks: tuple[str, ...] = ()
    """From where clients come, ``10.0.0.0/24``: the kernel lets no other packet to the server; none
    named: from anywhere."""
    hostnames: tuple[str, ...] = ()
    """Names that clients use for this server; its certificate carries them."""
    tls: bool = True
    persistence: Persistence = "everysec"
    data: str | None = None
    """The server's folder; None: ``/var/lib/redis`` or ``/var/lib/valkey``."""
    program: str = "/usr/local/bin/standpipe"
    """The command line on the machine, for the workers' unit."""
    nodes: tuple[str, ...] = ()
    """All servers, ``host`` or ``host:port``: the primary first; of a cluster every node."""
    streams: tuple[StreamNeed, ...] = ()
    users: tuple[UserNeed, ...] = tuple(UserNeed(role, role) for role in USER_ROLES)

    # --- what follows from it --------------------------------------------------------------------

    @property
    def version(self) -> Version:
        """The server's version.

        Raises:
            ConfigError: none is given; :func:`complete` fills it in.
        """
        if self.server is None:
            raise ConfigError("server is not given", hint="Name it: server = 'redis-7.0'.")
        return Version.parse(self.server)

    @property
    def folder(self) -> str:
        """The server's data folder."""
        return self.data or f"/var/lib/{self.version.product}"

    @property
    def servers(self) -> tuple[Node, ...]:
        """All servers; of one that stands alone, itself."""
        if not self.nodes:
            return (Node(self.bind[0].lstrip("-"), self.port),)
        return tuple(_node(text, self.port) for text in self.nodes)

    @property
    def has_replicas(self) -> bool:
        """Whether one server follows another."""
        return self.role != "primary" or len(self.servers) > 1

    @property
    def memory_plan(self) -> MemoryPlan:
        """How the machine's memory is shared out."""
        groups = sum(len(each.groups) * each.workers for each in self.streams)
        pending = groups * IN_FLIGHT_EVENTS_MAX * PENDING_ENTRY_BYTES
        return plan_memory(parse_size(self.memory or "0", name="memory"), pending=pending)

    def streams_of(self, user: UserNeed) -> tuple[StreamNeed, ...]:
        """The streams that a user may use."""
        return tuple(s for s in self.streams if not user.streams or s.name in user.streams)


# --- reading -------------------------------------------------------------------------------------


def read(path: Path | None, flags: Mapping[str, Any] | None = None) -> Description:
    """Read a description, flags over file, and check it.

    Args:
        path: The TOML file; None: flags alone.
        flags: Field → value; None stands for not given.

    Raises:
        ConfigError: the file cannot be read, or a field is wrong.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(
                f"the description {path} cannot be read: {error.strerror}",
                hint="docs/provision.md shows one; it has five lines.",
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the description {path} is no TOML: {error}") from error
    data |= {name: value for name, value in (flags or {}).items() if value is not None}
    return parse(data)


def parse(data: Mapping[str, Any]) -> Description:
    """Check a description that was read already.

    Raises:
        ConfigError: a field is unknown, or its value is not allowed.
    """
    try:
        found = msgspec.convert(data, Description)
    except msgspec.ValidationError as error:
        raise _field_error(data, str(error)) from None
    _check(found)
    return found


def _field_error(data: Mapping[str, Any], said: str) -> ConfigError:
    """msgspec's error with the field's name as the file has it, and the value that is wrong."""
    what, _, path = said.partition(" - at `$")
    field, value = path.rstrip("`").lstrip("."), cast(Any, data)
    for step in re.findall(r"\.?(\w+)|\[(\d+)\]", field):
        key: str | int = int(step[1]) if step[1] else step[0]
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            break
    if found := re.search(r"unknown field `(\w+)`", what):
        where = f"{field}.{found[1]}" if field else found[1]
        return ConfigError(
            f"description: there is no field {where!r}",
            hint="Fields are " + ", ".join(_fields(field)) + ".",
        )
    shown = "" if isinstance(value, dict) else f" is {value!r}"
    return ConfigError(
        f"description: {field or 'a field'}{shown}: {what.replace('`', '')}",
        hint="docs/provision.md lists every field with what it takes.",
    )


def _fields(path: str) -> Sequence[str]:
    kind: Any = Description
    if path.startswith("streams"):
        kind = StreamNeed
    elif path.startswith("users"):
        kind = UserNeed
    return [field.name for field in msgspec.structs.fields(kind)]


# --- checking ------------------------------------------------------------------------------------


def _wrong(field: str, value: object, hint: str) -> ConfigError:
    return ConfigError(f"description: {field} is {value!r}", hint=hint)


def _check(found: Description) -> None:
    if not _NAME.fullmatch(found.name):
        raise _wrong("name", found.name, "Letters, digits, '-', '_' and '.', at most 63.")
    if found.server is not None:
        Version.parse(found.server)
    if found.memory is not None and parse_size(found.memory, name="memory") < MEMORY_MIN:
        raise _wrong("memory", found.memory, "The machine's RAM, at least 128MiB.")
    if found.cores is not None and found.cores < 1:
        raise _wrong("cores", found.cores, "The machine's processors, at least 1.")
    _check_network(found)
    if found.data is not None:
        _check_data(found.data)
    if not re.fullmatch(r"/[\w./-]+", found.program):
        raise _wrong("program", found.program, "An absolute path, such as /opt/app/bin/standpipe.")
    _check_streams(found)
    _check_users(found)


def _check_data(data: str) -> None:
    if not re.fullmatch(r"/(?!/)[^\s\"'#\\%$]*", data) or os.path.normpath(data) != data:
        raise _wrong(
            "data", data, "An absolute path without white space, quotes, '%', '$', '..' or a '/' "
            "at its end.",
        )  # fmt: skip
    if _SYSTEM_FOLDERS.fullmatch(data):
        raise _wrong("data", data, f"A folder of its own, which the server gets: {data}/queue.")
    if data.startswith(_HIDDEN_FOLDERS):
        raise _wrong("data", data, "The server's unit sees no homes and a /tmp of its own.")


def _check_network(found: Description) -> None:
    if not found.bind:
        raise _wrong("bind", [], "Addresses of the internal network; 127.0.0.1 for this machine.")
    for address in found.bind:
        try:
            is_wide = ipaddress.ip_address(address.lstrip("-")).is_unspecified
        except ValueError:
            raise _wrong("bind", address, "IP addresses of this machine, not names.") from None
        if is_wide:
            raise _wrong(
                "bind", address,
                "Name the addresses of the internal network, so that no other is listened on.",
            )  # fmt: skip
    top = 55_535 if found.role == "cluster" else 65_535
    if not 1 <= found.port <= top:
        raise _wrong("port", found.port, f"1 to {top} (a cluster's bus is 10000 above it).")
    for network in found.networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise _wrong("networks", network, "A network, such as 10.0.0.0/24.") from None
    for name in found.hostnames:
        if not _HOST.fullmatch(name):
            raise _wrong("hostnames", name, "A host's name, such as queue-1.example.net.")
    for text in found.nodes:
        _node(text, found.port)
    if len(set(found.servers)) != len(found.servers):
        raise _wrong("nodes", list(found.nodes), "Each server once.")
    if found.role == "replica" and len(found.nodes) < 2:
        raise _wrong(
            "nodes", list(found.nodes),
            "A replica needs the primary first, and itself: ['10.0.0.5', '10.0.0.6'].",
        )  # fmt: skip


def is_address(host: str) -> bool:
    """Whether a host is given by its address, not by a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _node(text: str, port_default: int) -> Node:
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:\s]+)(?::(\d+))?", text)
    host, port = "", 0
    if found:
        host = found[1] or found[3]
        port = int(found[2] or found[4] or port_default)
    if not is_address(host) and not _HOST.fullmatch(host):
        port = 0
    if not 1 <= port <= 65_535:
        raise _wrong("nodes", text, "host or host:port, an IPv6 address in brackets.")
    return Node(host, port)


def _check_streams(found: Description) -> None:
    for number, stream in enumerate(found.streams):
        where = f"streams[{number}]"
        if not 1 <= stream.shards <= SHARDS_MAX:
            raise _wrong(f"{where}.shards", stream.shards, f"1 to {SHARDS_MAX}.")
        try:
            check_stream_name(stream.name, stream.shards)
        except ConfigError as error:
            raise ConfigError(
                f"description: {where}.name: {error.message}", hint=error.hint
            ) from None
        if not 1 <= stream.workers <= 10_000:
            raise _wrong(f"{where}.workers", stream.workers, "1 to 10000 processes.")
        if re.search(_UNQUOTED, stream.name):
            raise _wrong(f"{where}.name", stream.name, _UNQUOTED_HINT)
        for group in stream.groups:
            if not group or re.search(_UNQUOTED, group):
                raise _wrong(f"{where}.groups", group, _UNQUOTED_HINT)
    names = [stream.name for stream in found.streams]
    if len(set(names)) != len(names):
        raise _wrong("streams", names, "Each stream once.")


def _check_users(found: Description) -> None:
    names = {stream.name for stream in found.streams}
    seen: set[str] = set()
    for number, user in enumerate(found.users):
        where = f"users[{number}]"
        taken = {"default", *MACHINE_USERS, *seen}
        if not _NAME.fullmatch(user.name) or user.name in taken:
            raise _wrong(
                f"{where}.name", user.name,
                f"Letters, digits, '-', '_' and '.', and none of {', '.join(sorted(taken))}.",
            )  # fmt: skip
        seen.add(user.name)
        for name in user.streams:
            if name not in names:
                raise _wrong(
                    f"{where}.streams", name, f"One of {', '.join(sorted(names)) or '(none)'}."
                )


# --- filling in from the machine -----------------------------------------------------------------


def complete(found: Description) -> Description:
    """The description with what it leaves to the machine that this runs on.

    Raises:
        ConfigError: no server is named, and none is installed here.
    """
    server = found.server or _installed()
    memory = found.memory or str(memory_bytes())
    cores = found.cores or os.cpu_count() or 1
    return msgspec.structs.replace(found, server=server, memory=memory, cores=cores)


def _installed() -> str:
    # Not the PATH as it is: a virtual environment may have a server of its own there.
    for program in ("valkey-server", "redis-server"):
        path = shutil.which(program, path="/usr/bin:/usr/local/bin:/usr/sbin")
        if path is None:
            continue
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=10
        ).stdout
        if version := said_version(said):
            return str(version)
    raise ConfigError(
        "description: server is not given, and none is installed here",
        hint="Name it: server = 'redis-7.0'; or `apt-get install redis-server` first.",
    )
