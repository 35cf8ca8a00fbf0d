"""The server's configuration: one table of options, each with its reason and the versions that
know it. Pure.

The embedded server and a provisioned one are configured from the same rows; a :class:`Plan` says
what they differ in. A server refuses to start on an option that it does not know, so each row names
the version from which on it may be written. The tests boot every server there is with all of them,
and show that a version before refuses them.

Sources: https://redis.io/docs/latest/operate/oss_and_stack/management/config/ ,
https://valkey.io/topics/valkey.conf/ , and redis.conf of each version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Final, Literal, NamedTuple, cast

from standpipe.errors import ConfigError
from standpipe.limits import (
    FORK_PERCENT,
    SERVER_BUFFER_PERCENT,
    SERVER_CORES_MIN,
    SERVER_IO_THREADS_MAX,
    SYSTEM_BYTES_MIN,
    SYSTEM_PERCENT,
)

Fsync = Literal["always", "everysec", "no"]
Product = Literal["redis", "valkey"]

_MIB: Final = 1024 * 1024

# --- versions ------------------------------------------------------------------------------------


class Version(NamedTuple):
    """A server's product, and the first two numbers of its version."""

    product: Product
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.product}-{self.major}.{self.minor}"

    @property
    def numbers(self) -> tuple[int, int]:
        return self.major, self.minor

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read ``redis-7.0`` or ``valkey 9.1.2``.

        Raises:
            ConfigError: it is none, or one that Standpipe writes no configuration for.
        """
        found = re.fullmatch(r"(redis|valkey)[- ]?(\d+)\.(\d+)(\.\d+)*", text.strip().lower())
        hint = "Write redis-6.2 to redis-8.x, or valkey-7.2 to valkey-9.x."
        if found is None:
            raise ConfigError(f"server is {text!r}, not a product and its version", hint=hint)
        product = cast(Product, found[1])
        version = cls(product, int(found[2]), int(found[3]))
        first, last = ((6, 2), 8) if product == "redis" else ((7, 2), 9)
        if version.numbers < first or version.major > last:
            raise ConfigError(f"server is {text!r}, which is not supported", hint=hint)
        return version


def said_version(said: str) -> Version | None:
    """The version that ``redis-server --version`` or ``valkey-server --version`` says.

    Returns:
        None if it says none, or one that is not supported.
    """
    found = re.search(r"\b(Redis|Valkey) server v=(\d+\.\d+)", said)
    if found is None:
        return None
    try:
        return Version.parse(f"{found[1]}-{found[2]}")
    except ConfigError:
        return None


# --- memory --------------------------------------------------------------------------------------


class MemoryPlan(NamedTuple):
    """What a machine's memory is for, in bytes.

    The kernel and everything beside the server have ``system``: SYSTEM_PERCENT, SYSTEM_BYTES_MIN at
    least, but never more than a quarter. The rest is shared so that beside each byte of data there
    is room for FORK_PERCENT of a byte in pages copied while a child writes the data out, and for
    SERVER_BUFFER_PERCENT in the buffers of clients and replicas::

        maxmemory = (RAM - system) / (1 + FORK_PERCENT/100 + SERVER_BUFFER_PERCENT/100)

    Of ``maxmemory``, ``pending`` is what the pending lists of all groups may take, since the server
    counts them as data; ``entries`` is what is left for the streams' entries.
    """

    total: int
    system: int
    fork: int
    buffers: int
    maxmemory: int
    pending: int

    @property
    def entries(self) -> int:
        return max(0, self.maxmemory - self.pending)


def plan_memory(total: int, *, pending: int = 0) -> MemoryPlan:
    """Share a machine's memory out.

    Args:
        total: The machine's RAM, bytes.
        pending: What the groups' pending lists may take, bytes.
    """
    system = min(max(total * SYSTEM_PERCENT // 100, SYSTEM_BYTES_MIN), total // 4)
    maxmemory = (total - system) * 100 // (100 + FORK_PERCENT + SERVER_BUFFER_PERCENT)
    # In whole MiB: a number that people compare at a glance.
    maxmemory = max(maxmemory // _MIB, 1) * _MIB
    return MemoryPlan(
        total,
        system,
        fork=maxmemory * FORK_PERCENT // 100,
        buffers=maxmemory * SERVER_BUFFER_PERCENT // 100,
        maxmemory=maxmemory,
        pending=pending,
    )


# --- what servers differ in ----------------------------------------------------------------------


class TlsFiles(NamedTuple):
    """Where a server finds its certificates."""

    ca: str
    certificate: str
    key: str


class Credentials(NamedTuple):
    """The user as which a replica follows its primary."""

    user: str
    password: str


@dataclass(frozen=True)
class Plan:
    """What a configuration is written for."""

    version: Version
    bind: str
    """Addresses to listen on, separated by spaces."""
    port: int
    maxmemory: int
    fsync: Fsync | None = "everysec"
    """When the append-only file is forced to disk; None: there is none, and no snapshot either."""
    folder: str = "."
    is_embedded: bool = False
    """Run and watched by Standpipe, on a data folder of its own."""
    log: str = ""
    """The log file; empty: standard output."""
    cores: int = 1
    tls: TlsFiles | None = None
    acl: str | None = None
    """The file of users."""
    primary: tuple[str, int] | None = None
    """Host and port of the primary that this server follows."""
    replication: Credentials | None = None
    """As whom it follows; a primary has it too, since it may become a replica."""
    is_cluster: bool = False


class Option(NamedTuple):
    """One line of a configuration and the reason for it."""

    name: str
    value: str
    why: str


Value = str | Callable[[Plan], str | None]


@dataclass(frozen=True)
class Row:
    """One option of the table."""

    name: str
    value: Value
    """The value, or what makes it from the plan; None leaves the option out."""
    why: str | Callable[[Plan], str]
    since: tuple[int, int] = (6, 2)
    """The first Redis that knows it."""
    valkey: tuple[int, int] = (7, 2)
    """The first Valkey that knows it; Valkey began as Redis 7.2."""
    before: tuple[int, int] | None = None
    """The first version of either product that has no use for it any more."""

    def is_for(self, version: Version) -> bool:
        """Whether this version knows the option, and has a use for it."""
        first = self.since if version.product == "redis" else self.valkey
        return version.numbers >= first and (self.before is None or version.numbers < self.before)


class Section(NamedTuple):
    """Rows that belong together, under a heading."""

    title: str
    rows: tuple[Row, ...]


# --- values that depend on the plan --------------------------------------------------------------


def _provisioned(value: Value) -> Callable[[Plan], str | None]:
    """A value that the embedded server does not have."""
    return lambda plan: (
        None if plan.is_embedded else value(plan) if callable(value) else value
    )  # fmt: skip


def _with_tls(value: Callable[[Plan, TlsFiles], str]) -> Callable[[Plan], str | None]:
    return lambda plan: None if plan.tls is None else value(plan, plan.tls)


def _if_kept(value: str) -> Callable[[Plan], str | None]:
    """A value that only a server has which writes snapshots."""
    return lambda plan: None if plan.is_embedded or plan.fsync is None else value


def _in_cluster(value: str) -> Callable[[Plan], str | None]:
    return lambda plan: value if plan.is_cluster else None


def _io_threads(plan: Plan) -> str | None:
    if plan.is_embedded or plan.cores < SERVER_CORES_MIN:
        return None
    return str(min(plan.cores - 2, SERVER_IO_THREADS_MAX))


def _snapshots(plan: Plan) -> str:
    return '""' if plan.is_embedded or plan.fsync is None else "3600 1"


def _why_snapshots(plan: Plan) -> str:
    if plan.fsync is None:
        return "Nothing is kept on disk: persistence is none."
    if plan.is_embedded:
        return "The append-only file is the copy; a snapshot would be a second."
    return "Once an hour, if anything changed: one file that a backup can copy at any time."


def _why_maxmemory(plan: Plan) -> str:
    if plan.is_embedded:
        return "Half of the memory; the rest is for copy-on-write and buffers."
    return (
        f"What the system does not need, with {FORK_PERCENT} % as much left for pages copied in a "
        f"fork and {SERVER_BUFFER_PERCENT} % for buffers."
    )


def _backlog(plan: Plan) -> str:
    return "4096" if plan.is_embedded else "65535"


def _replica_buffer(plan: Plan) -> str:
    soft = max(64 * _MIB, plan.maxmemory // 20)
    return f"replica {max(256 * _MIB, plan.maxmemory // 10)} {soft} 60"


# --- the table -----------------------------------------------------------------------------------

SECTIONS: Final[tuple[Section, ...]] = (
    Section(
        "network",
        (
            Row("bind", lambda p: p.bind, "Nothing else is listened on: the internal network."),
            Row(
                "protected-mode",
                "yes",
                "Without a password, connections from other machines are refused even if bind is "
                "widened.",
            ),
            Row(
                "port",
                lambda p: "0" if p.tls else str(p.port),
                lambda p: (
                    "Nothing is spoken without TLS." if p.tls else "The port that clients know."
                ),
            ),
            Row("tls-port", _with_tls(lambda p, _f: str(p.port)), "The port that clients know."),
            Row("tls-ca-cert-file", _with_tls(lambda _p, f: f.ca), "Who signs all certificates."),
            Row(
                "tls-cert-file",
                _with_tls(lambda _p, f: f.certificate),
                "Shown to clients, replicas and the other nodes; its names are their addresses.",
            ),
            Row("tls-key-file", _with_tls(lambda _p, f: f.key), "Readable for the server alone."),
            Row(
                "tls-auth-clients",
                _with_tls(lambda _p, _f: "yes"),
                "A client shows a certificate of the same authority: a password that was read "
                "somewhere is not enough.",
            ),
            Row(
                "tls-protocols",
                _with_tls(lambda _p, _f: '"TLSv1.2 TLSv1.3"'),
                "Older versions of TLS are broken.",
            ),
            Row(
                "tls-replication",
                _with_tls(lambda _p, _f: "yes"),
                "A replica gets everything, so it gets it encrypted.",
            ),
            Row(
                "tls-cluster",
                lambda p: "yes" if p.tls and p.is_cluster else None,
                "The nodes' bus is encrypted too.",
            ),
            Row(
                "tcp-backlog",
                _backlog,
                "Many producers may reconnect at once after a restart; the kernel's somaxconn has "
                "to allow it.",
            ),
            Row("tcp-keepalive", "60", "Finds dead peers within minutes."),
            Row("timeout", "0", "A worker that waits for entries is idle, not gone."),
            Row(
                "maxclients",
                _provisioned("10000"),
                "The unit's LimitNOFILE leaves room for them and for the server's own files.",
            ),
        ),
    ),
    Section(
        "memory",
        (
            Row(
                "maxmemory",
                lambda p: str(p.maxmemory),
                _why_maxmemory,
            ),
            Row(
                "maxmemory-policy",
                "noeviction",
                "A full queue refuses new entries; every other policy drops kept ones.",
            ),
            Row(
                "maxmemory-clients",
                _provisioned("10%"),
                "Readers that do not read cannot fill the memory with their replies.",
                since=(7, 0),
            ),
            Row(
                "lazyfree-lazy-user-del",
                "yes",
                "DEL of a long stream does not hold up the others.",
            ),
            Row(
                "disable-thp",
                _provisioned("yes"),
                "With huge pages each write after a fork copies 2 MiB instead of 4 KiB.",
            ),
            Row(
                "oom-score-adj",
                _provisioned("relative"),
                "If memory runs out, the child that writes a snapshot goes first, the server last.",
            ),
        ),
    ),
    Section(
        "persistence",
        (
            Row(
                "dir",
                lambda p: p.folder,
                lambda p: (
                    "The server is started in its folder, which so can be moved."
                    if p.is_embedded
                    else "The server must be allowed to write here, or writes fail with MISCONF."
                ),
            ),
            Row(
                "appendonly",
                lambda p: "no" if p.fsync is None else "yes",
                lambda p: (
                    "Nothing is kept on disk: persistence is none."
                    if p.fsync is None
                    else "What was acknowledged outlives the process."
                ),
            ),
            Row(
                "appendfsync",
                lambda p: p.fsync or "no",
                "everysec: a power cut costs about a second, a crash of the process nothing. "
                "always: nothing, but every write waits for the disk, and so does every client.",
            ),
            Row(
                "no-appendfsync-on-rewrite",
                "no",
                "yes would stop forcing to disk for as long as a rewrite takes.",
            ),
            Row(
                "auto-aof-rewrite-percentage",
                _provisioned("100"),
                "A file twice as large as after its last rewrite is written anew.",
            ),
            Row(
                "auto-aof-rewrite-min-size",
                _provisioned("256mb"),
                "A small file loads in no time; forking for it would only cost.",
            ),
            Row("aof-use-rdb-preamble", "yes", "Loads faster than the commands it stands for."),
            Row(
                "aof-load-truncated",
                "yes",
                "A power cut can leave half a command at the end, which nobody got acknowledged; "
                "it is cut off, and the log says so.",
            ),
            Row("save", _snapshots, _why_snapshots),
            Row("dbfilename", _if_kept("dump.rdb"), "The snapshot, inside dir."),
            Row(
                "stop-writes-on-bgsave-error",
                _if_kept("yes"),
                "A disk that fails is noticed by those who write (MISCONF), not after a restart.",
            ),
            Row("rdbchecksum", _if_kept("yes"), "A damaged snapshot is not loaded as if whole."),
            Row(
                "rdb-save-incremental-fsync",
                _if_kept("yes"),
                "Written out bit by bit, so that the disk stays free for the append-only file.",
            ),
            Row("aof-rewrite-incremental-fsync", _if_kept("yes"), "Likewise, while rewriting."),
        ),
    ),
    Section(
        "streams",
        (
            Row(
                "stream-node-max-bytes",
                "4096",
                "Larger nodes were measured: 1 % less memory, the read of a single entry up to "
                "three times as dear.",
            ),
            Row("stream-node-max-entries", "100", "As above."),
        ),
    ),
    Section(
        "threads",
        (
            Row(
                "io-threads",
                _io_threads,
                "Reading and writing sockets beside the thread that runs commands; two cores are "
                "left for the child that writes to disk and for the kernel.",
            ),
            Row(
                "io-threads-do-reads",
                lambda p: "yes" if _io_threads(p) else None,
                "Blocks are large to read and small to answer. Later versions always do.",
                before=(8, 0),
            ),
        ),
    ),
    Section(
        "replication",
        (
            Row(
                "replicaof",
                lambda p: None if p.primary is None else f"{p.primary[0]} {p.primary[1]}",
                "The primary that this server follows.",
            ),
            Row(
                "masteruser",
                lambda p: p.replication.user if p.replication else None,
                "As whom it follows: a user that may do nothing else. A primary has it as well, "
                "for the time when it is a replica.",
            ),
            Row(
                "masterauth",
                lambda p: p.replication.password if p.replication else None,
                "Its password; for this line alone the file's mode would have to be 0600.",
            ),
            Row(
                "repl-backlog-size",
                lambda p: str(max(64 * _MIB, p.maxmemory // 50)) if p.replication else None,
                "A replica that was cut off goes on from here instead of copying all again.",
            ),
            Row(
                "client-output-buffer-limit",
                lambda p: _replica_buffer(p) if p.replication else None,
                "What is written while a replica loads has to wait here; the default would cut off "
                "a replica of a busy queue, again and again.",
            ),
            Row(
                "repl-diskless-sync",
                lambda p: "yes" if p.replication else None,
                "A replica is filled over the network, not by way of the disk.",
            ),
        ),
    ),
    Section(
        "cluster",
        (
            Row("cluster-enabled", _in_cluster("yes"), "The stream's shards lie on several nodes."),
            Row("cluster-config-file", _in_cluster("nodes.conf"), "Written by the server itself."),
            Row(
                "cluster-node-timeout",
                _in_cluster("5000"),
                "A node that is silent for 5 s is failed over; producers wait or spool meanwhile.",
            ),
            Row(
                "cluster-require-full-coverage",
                _in_cluster("no"),
                "Shards that are served go on while another one is not.",
            ),
            Row(
                "cluster-slot-stats-enabled",
                _in_cluster("yes"),
                "CLUSTER SLOT-STATS shows which shards are hot.",
                since=(8, 2),
                valkey=(8, 0),
            ),
        ),
    ),
    Section(
        "observation",
        (
            Row("latency-monitor-threshold", "100", "Lets LATENCY DOCTOR say what was slow (ms)."),
            Row(
                "slowlog-log-slower-than",
                _provisioned("10000"),
                "Commands above 10 ms (in µs) hold up all others; SLOWLOG GET shows them.",
            ),
            Row("slowlog-max-len", _provisioned("1024"), "The last thousand, not 128."),
            Row("loglevel", _provisioned("notice"), "What an operator has to know, no more."),
            Row(
                "logfile",
                lambda p: p.log or '""',
                lambda p: (
                    "Rotated by logrotate; the server opens it anew for each line."
                    if p.log
                    else "To standard output: what is said before the configuration is read, and a "
                    "crash, land there too."
                ),
            ),
            Row(
                "hide-user-data-from-log",
                _provisioned("yes"),
                "A crash report does not carry readings or keys.",
                since=(7, 4),
                valkey=(8, 0),
            ),
            Row(
                "proc-title-template",
                '"{title} {listen-addr} {config-file}"',
                "ps shows which one it is.",
            ),
        ),
    ),
    Section(
        "hardening",
        (
            Row("aclfile", lambda p: p.acl, "Who may do what; the default user is off."),
            Row(
                "acl-pubsub-default",
                _provisioned("resetchannels"),
                "A new user has no channel until it is given one.",
            ),
            Row("enable-debug-command", "no", "DEBUG can crash the server.", since=(7, 0)),
            Row("enable-module-command", "no", "MODULE LOAD runs code from a file.", since=(7, 0)),
            Row(
                "enable-protected-configs",
                "no",
                "CONFIG SET dir would let a client write files anywhere.",
                since=(7, 0),
            ),
        ),
    ),
    Section(
        "process",
        (
            Row(
                "daemonize",
                "no",
                lambda p: (
                    "Standpipe watches the process; it must not leave."
                    if p.is_embedded
                    else "systemd watches the process; it must not leave."
                ),
            ),
            Row(
                "shutdown-timeout",
                _provisioned("10"),
                "On SIGTERM replicas have 10 s to catch up, so that none of them lacks the end.",
                since=(7, 0),
            ),
        ),
    ),
)

ROWS: Final = tuple(row for section in SECTIONS for row in section.rows)


def options(plan: Plan) -> Iterator[tuple[str, list[Option]]]:
    """The options of a plan, by section; each is known to the plan's version."""
    for section in SECTIONS:
        found: list[Option] = []
        for row in section.rows:
            value = row.value(plan) if callable(row.value) else row.value
            if value is not None and row.is_for(plan.version):
                found.append(
                    Option(row.name, value, row.why(plan) if callable(row.why) else row.why)
                )
        if found:
            yield section.title, found


# --- settings of the caller's own ----------------------------------------------------------------

OWN_OPTIONS: Final = frozenset(
    (
        "bind",
        "port",
        "appendfsync",
        "dir",
        "daemonize",
        "supervised",
        "logfile",
        "pidfile",
        "include",
    )
)
"""Options that Standpipe decides for the embedded server: the first three are arguments of it, the
rest would break how it is run."""


def check_settings(settings: Mapping[str, str]) -> list[Option]:
    """Settings of the caller's own, as options.

    Args:
        settings: Option → value, as valkey.conf writes them. An empty value is written ``""``.

    Raises:
        ConfigError: a setting that Standpipe decides itself, or one that is no single line.
    """
    found: list[Option] = []
    for given, value in settings.items():
        name = given.strip().lower()
        if name in OWN_OPTIONS:
            raise ConfigError(
                f"the setting {name!r} cannot be given",
                hint="bind, port and appendfsync are arguments of their own; the rest of "
                f"{', '.join(sorted(OWN_OPTIONS))} is decided by how the server is run.",
            )
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or re.search(r"[\r\n\0]", value):
            raise ConfigError(
                f"the setting {given!r} is not one line of a server's configuration",
                hint="Give name and value as in valkey.conf, such as maxmemory and 2gb.",
            )
        found.append(Option(name, value or '""', "Given by the caller."))
    return found


def render(
    plan: Plan, *, head: tuple[str, ...] = (), settings: Mapping[str, str] | None = None
) -> str:
    """The configuration file.

    Args:
        plan: What it is written for.
        head: Lines of comment to begin with.
        settings: As :func:`check_settings` takes them; they take the place of the table's.

    Raises:
        ConfigError: as :func:`check_settings`.
    """
    given = {option.name: option for option in check_settings(settings or {})}
    lines = [f"# {line}" if line else "#" for line in head]
    for title, found in options(plan):
        lines += ["", f"# --- {title} ---"]
        for option in found:
            name, value, why = given.pop(option.name, option)
            lines += ["", *(f"# {line}" for line in wrap(why, 94)), f"{name} {value}"]
    if given:
        lines += ["", "# --- given by the caller ---"]
        lines += [f"{name} {value}" for name, value, _ in given.values()]
    return "\n".join(lines) + "\n"
