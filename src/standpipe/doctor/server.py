"""Checks of a server: what is set so that entries can be lost, refused or read by others. Pure."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from standpipe.doctor.advisories import KNOWN_ON, MAINTAINED, advisories_for, parse_version
from standpipe.doctor.finding import MANUAL, Check, Chmod, ConfigSet, Finding, Level
from standpipe.doctor.history import Counters, grown
from standpipe.doctor.reading import ServerFacts
from standpipe.doctor.thresholds import (
    AOF_GROWTH_BYTES_MIN,
    AOF_GROWTH_MAX,
    CLIENTS_USED_PERCENT_MAX,
    CLOCK_MS_MAX,
    FORK_ROOM_PERCENT_MIN,
    MEMORY_USED_PERCENT_CRITICAL,
    MEMORY_USED_PERCENT_WARNING,
    REPLICA_LAG_BYTES_MAX,
    REPLICA_SILENT_S_MAX,
    SERVER_CPU_PERCENT_MAX,
    SLOW_EVENT_MS_MIN,
)

_DOCS: Final = "https://redis.io/docs/latest/operate/oss_and_stack/"
_SECURITY: Final = _DOCS + "management/security/"
_PERSISTENCE: Final = _DOCS + "management/persistence/"
_LATENCY: Final = _DOCS + "management/optimization/latency/"
_REPLICATION: Final = _DOCS + "management/replication/"

VERSION: Final = Check(
    "server.version",
    "the server's version, its known faults of streams, scripts, TLS and cluster, and its age",
    "A fault that is known is used; a line that is no longer maintained gets no mends.",
    MANUAL + "Technical Specifications: Redis 6.2+; https://www.cve.org",
)
RIGHTS: Final = Check(
    "server.rights",
    "what this user may not ask the server",
    "What cannot be read was not checked.",
    "https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/",
)
EVICTION: Final = Check(
    "server.eviction",
    "maxmemory-policy, and whether keys were evicted",
    "Every policy but noeviction drops whole streams, read or not, when memory is full.",
    MANUAL + "Technical Specifications: Memory Policy No-Eviction",
)
MEMORY: Final = Check(
    "server.memory",
    "maxmemory and how much of it is used",
    "At the limit writes are refused (OOM); without one the kernel ends the server.",
    MANUAL + "Section C (OOM command not allowed)",
)
FORK_ROOM: Final = Check(
    "server.fork_room",
    "the memory that maxmemory leaves to the machine",
    "While a fork writes a snapshot or an AOF, every page that changes is there twice.",
    MANUAL + "step 1 (BGSAVE); " + _PERSISTENCE,
)
PERSISTENCE: Final = Check(
    "server.persistence",
    "whether what is acknowledged outlives the server",
    "Without AOF a crash loses everything since the last snapshot; without both, everything.",
    _PERSISTENCE,
)
DISK_ERROR: Final = Check(
    "server.disk_error",
    "the outcome of the last snapshot, AOF write and AOF rewrite",
    "After an error of these the server refuses writes (MISCONF), or the next crash loses more.",
    MANUAL + "Admin Desk (MISCONF)",
)
FSYNC: Final = Check(
    "server.fsync",
    "appendfsync, and writes that waited for a slow fsync since the last look",
    "no leaves it to the kernel: up to 30 s are lost with the power. always waits for the disk at "
    "each write.",
    MANUAL + "Section B (fsync always)",
)
AOF_SIZE: Final = Check(
    "server.aof_size",
    "how much the AOF has grown since its last rewrite",
    "It fills the disk, and each start reads all of it.",
    _PERSISTENCE,
)
EXPOSED: Final = Check(
    "server.exposed",
    "protected-mode, bind and the default user's password",
    "Whoever reaches the port reads and deletes everything, and scripts run there.",
    MANUAL + "step 2; " + _SECURITY,
)
ACL: Final = Check(
    "server.acl",
    "what the default user may do",
    "A worker that is taken over can then do everything: FLUSHALL, CONFIG, another stream.",
    MANUAL + "Security Hardening (ACL)",
)
TLS: Final = Check(
    "server.tls",
    "whether the connection leaves this machine unencrypted",
    "Readings and passwords can be read and changed on the way.",
    MANUAL + "Security Hardening (TLS)",
)
CONFIG_FILE: Final = Check(
    "server.config_file",
    "the mode of the server's configuration file",
    "It holds passwords; every user of the machine can read it.",
    MANUAL + "Security Hardening: chmod 600",
)
DANGEROUS: Final = Check(
    "server.dangerous",
    "DEBUG, MODULE and protected options that clients may use",
    "DEBUG can crash the server, MODULE LOAD and CONFIG SET dir run or write anything.",
    _SECURITY,
)
SLOW: Final = Check(
    "server.slow",
    "SLOWLOG entries since the last look",
    "One slow command holds everybody up. (The manual looks for it in the log file: no version of "
    "the server writes it there.)",
    MANUAL + "Section C; https://redis.io/docs/latest/commands/slowlog-get/",
)
LATENCY: Final = Check(
    "server.latency",
    "the latency monitor's events of the last hour",
    "fork, fsync and expiry stop the one thread that serves everybody.",
    _LATENCY,
)
CLIENTS: Final = Check(
    "server.clients",
    "connections against maxclients, those turned away since the last look, CLIENT PAUSE",
    "A reconnect of all at once is turned away, and producers fill their buffers.",
    "https://redis.io/docs/latest/develop/reference/clients/",
)
REPLICATION: Final = Check(
    "server.replication",
    "whether this is the primary, and how far its replicas are behind",
    "A replica refuses writes; what it does not have yet is lost in a failover.",
    _REPLICATION,
)
CLUSTER: Final = Check(
    "server.cluster",
    "the state of the cluster and its slots",
    "Shards in slots that nobody serves take nothing and give nothing.",
    MANUAL + "Scaling Logic; https://redis.io/docs/latest/commands/cluster-info/",
)
CLOCK: Final = Check(
    "server.clock",
    "the server's clock against this machine's",
    "Entry IDs carry the server's time: latency, retention and replay by time go by it.",
    "https://redis.io/docs/latest/commands/xadd/",
)
CPU: Final = Check(
    "server.cpu",
    "how busy the server's main thread is over the window",
    "At 100 % of one core it is the bottleneck, and every queue before it grows.",
    MANUAL + "Scaling Logic (100% utilization)",
)

CHECKS: Final = (
    VERSION, RIGHTS, EVICTION, MEMORY, FORK_ROOM, PERSISTENCE, DISK_ERROR, FSYNC, AOF_SIZE,
    EXPOSED, ACL, TLS, CONFIG_FILE, DANGEROUS, SLOW, LATENCY, CLIENTS, REPLICATION, CLUSTER, CLOCK,
    CPU,
)  # fmt: skip

_LOOPBACK: Final = ("127.0.0.1", "::1")
_WIDE: Final = ("*", "0.0.0.0", "::", "-::*")


class _Look(NamedTuple):
    """A server and what its counters grew by; makes findings about it."""

    facts: ServerFacts
    more: Counters | None

    def finding(
        self, check: Check, level: Level, evidence: str, fix: str, repair: Any = None
    ) -> Finding:
        return Finding(check, level, self.facts.shown, evidence, fix, repair, self.facts.url)

    def set(self, check: Check, level: Level, option: str, value: str) -> Finding:
        """One option has the wrong value: `CONFIG SET` mends it."""
        return self.finding(
            check, level, f"{option} = {self.facts.option(option)!r}",
            f"CONFIG SET {option} {value}, and `{option} {value}` in its configuration file",
            ConfigSet(option, value),
        )  # fmt: skip


def check_server(facts: ServerFacts, before: Counters | None) -> Iterator[Finding]:
    """Look at what a server said.

    Args:
        facts: As read.
        before: Its counters at the last look; None when there was none since it started.
    """
    look = _Look(facts, None if before is None else grown(before, facts.counters()))
    for check in _CHECKS:
        yield from check(look)


def _version(look: _Look) -> Iterator[Finding]:
    facts = look.facts
    told = f"{facts.product} {facts.version}"
    try:
        version = parse_version(facts.version)
    except ValueError:
        yield look.finding(
            VERSION, "note", f"INFO tells no version: {facts.version!r}",
            "Look for a proxy between here and the server, and at the server's own version.",
        )  # fmt: skip
        return
    if facts.product == "redis" and version < (6, 2, 0):
        yield look.finding(VERSION, "critical", told, "Install Redis 6.2 or Valkey 8.0, or later.")
        return
    found = advisories_for(facts.product, version)
    if found:
        ends = [mended for _, mended in found]
        newest = max((end for end in ends if end is not None), default=None)
        # One of them without an end: the line has to be left.
        way = "another line" if None in ends or newest is None else ".".join(map(str, newest))
        names = "; ".join(f"{each.name}: {each.what}" for each, _ in found)
        yield look.finding(
            VERSION, "warning", f"{told} has, unless its packager mended them: {names}",
            f"Install {facts.product} {way} or later (list of {KNOWN_ON}).",
        )  # fmt: skip
    if version[:2] not in MAINTAINED[facts.product] and version[:2] < max(
        MAINTAINED[facts.product]
    ):
        yield look.finding(
            VERSION, "note", f"{told}: its makers mend this line no more",
            "Move to a line that they do, or make sure that your distribution mends it.",
        )  # fmt: skip


def _rights(look: _Look) -> Iterator[Finding]:
    if look.facts.denied:
        told = ", ".join(look.facts.denied)
        yield look.finding(
            RIGHTS, "note", f"this user may not use {told}",
            "Run the doctor as the operator: `standpipe provision` makes that user.",
        )  # fmt: skip


def _eviction(look: _Look) -> Iterator[Finding]:
    policy = look.facts.info.get("maxmemory_policy")
    if policy and policy != "noeviction":
        yield look.finding(
            EVICTION, "critical", f"maxmemory-policy = {policy!r}",
            "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
            ConfigSet("maxmemory-policy", "noeviction"),
        )  # fmt: skip
    if evicted := look.facts.number("evicted_keys"):
        yield look.finding(
            EVICTION, "critical", f"{evicted} keys were evicted since the server started",
            "What they held is lost. Set the policy, then send again what you have elsewhere.",
        )  # fmt: skip


def _memory(look: _Look) -> Iterator[Finding]:
    used, limit = look.facts.number("used_memory"), look.facts.number("maxmemory")
    if not limit:
        total = look.facts.number("total_system_memory")
        # More than that, and it is the fork that has too little.
        wanted = f"{_memory_for(total)}" if total else "to 60 % of the machine's memory"
        yield look.finding(
            MEMORY, "warning", "maxmemory = 0: no limit",
            f"CONFIG SET maxmemory {wanted}, and the same in its configuration file",
        )  # fmt: skip
        return
    percent = 100 * used / limit
    if percent >= MEMORY_USED_PERCENT_WARNING:
        yield look.finding(
            MEMORY,
            "critical" if percent >= MEMORY_USED_PERCENT_CRITICAL else "warning",
            f"{used:,} of {limit:,} bytes used: {percent:.0f} %",
            "`standpipe retain --dry-run` shows what could go and what holds it; or raise "
            "maxmemory, or let the workers catch up.",
        )


def _memory_for(total: int) -> int:
    """What maxmemory may be on a machine with so much memory."""
    return total * 6 // 10


def _fork_room(look: _Look) -> Iterator[Finding]:
    total, limit = look.facts.number("total_system_memory"), look.facts.number("maxmemory")
    if total and limit and (left := 100 - 100 * limit / total) < FORK_ROOM_PERCENT_MIN:
        told = f"maxmemory {limit:,} of the machine's {total:,} bytes leaves {max(left, 0):.0f} %"
        wanted, used = _memory_for(total), look.facts.number("used_memory")
        if used * 100 >= MEMORY_USED_PERCENT_WARNING * wanted:
            # Lowered now, it would refuse writes at once.
            yield look.finding(
                FORK_ROOM, "warning", f"{told}; {used:,} are used",
                "Add memory, or let go what all have read (`standpipe retain --dry-run` says what "
                f"holds it); then CONFIG SET maxmemory {wanted}.",
            )  # fmt: skip
            return
        yield look.finding(
            FORK_ROOM, "warning", told,
            f"CONFIG SET maxmemory {wanted}, and the same in its configuration file",
            ConfigSet("maxmemory", str(wanted)),
        )  # fmt: skip


def _persistence(look: _Look) -> Iterator[Finding]:
    if look.facts.info.get("aof_enabled") == "1":
        return
    snapshots = look.facts.option("save")
    level: Level = "critical" if snapshots == "" else "warning"
    told = f"appendonly = 'no', save = {snapshots!r}"
    free, used = _free_bytes(look.facts), look.facts.number("used_memory")
    if free is not None and free < used:
        # The first AOF would fill the disk, and then writes are refused.
        yield look.finding(
            PERSISTENCE, level, f"{told}; the disk has {free:,} bytes free, {used:,} are in memory",
            "Free space for an AOF as large as what is in memory; then CONFIG SET appendonly yes.",
        )  # fmt: skip
        return
    yield look.finding(
        PERSISTENCE, level, told,
        "CONFIG SET appendonly yes, and when INFO says aof_rewrite_in_progress:0 the same in its "
        "configuration file. (In the file alone it would start with nothing but an empty AOF.)",
        ConfigSet("appendonly", "yes"),
    )  # fmt: skip


def _free_bytes(facts: ServerFacts) -> int | None:
    """The room on the disk of its data folder; None where that cannot be seen from here."""
    folder = facts.option("dir")
    if folder is None or not facts.is_local:
        return None
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _disk_error(look: _Look) -> Iterator[Finding]:
    for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"):
        said = look.facts.info.get(name, "ok")
        if said != "ok":
            folder, file = look.facts.option("dir"), look.facts.option("dbfilename")
            yield look.finding(
                DISK_ERROR, "critical", f"{name}: {said}; dir = {folder!r}, dbfilename = {file!r}",
                "Give the server's user a folder that it may write, with free space (`df`, "
                "`ls -ld`); its log names the cause. `standpipe explain MISCONF` goes on.",
            )  # fmt: skip


def _fsync(look: _Look) -> Iterator[Finding]:
    if look.facts.info.get("aof_enabled") == "1":
        when = look.facts.option("appendfsync")
        if when == "no":
            yield look.set(FSYNC, "warning", "appendfsync", "everysec")
        elif when == "always":
            yield look.finding(
                FSYNC, "note", "appendfsync = 'always'",
                "Right where acknowledged means on disk; else everysec, which is far quicker.",
            )  # fmt: skip
        if look.facts.option("no-appendfsync-on-rewrite") == "yes":
            yield look.set(FSYNC, "warning", "no-appendfsync-on-rewrite", "no")
    if look.more and (delayed := look.more.get("aof_delayed_fsync", 0)):
        yield look.finding(
            FSYNC, "warning", f"{delayed} writes waited for an fsync since the last look",
            "Put the data folder on a faster disk, with nothing else on it.",
        )  # fmt: skip


def _aof_size(look: _Look) -> Iterator[Finding]:
    now, base = look.facts.number("aof_current_size"), look.facts.number("aof_base_size")
    if now >= AOF_GROWTH_BYTES_MIN and now > AOF_GROWTH_MAX * max(base, 1):
        yield look.finding(
            AOF_SIZE, "warning", f"{now:,} bytes, {base:,} after the last rewrite",
            "BGREWRITEAOF, and auto-aof-rewrite-percentage 100",
        )  # fmt: skip
    if look.facts.option("auto-aof-rewrite-percentage") == "0":
        yield look.set(AOF_SIZE, "warning", "auto-aof-rewrite-percentage", "100")


def _exposed(look: _Look) -> Iterator[Finding]:
    facts = look.facts
    bound = (facts.option("bind") or "").split()
    # Without any bind the server listens everywhere.
    is_wide = facts.config is not None and (not bound or any(each in _WIDE for each in bound))
    is_open = "nopass" in _flags(facts)
    if facts.option("protected-mode") == "no":
        if (is_open or facts.default_user is None) and not _is_alone(facts):
            # Set now, it would turn away every client from another machine.
            yield look.finding(
                EXPOSED, "critical" if is_wide and is_open else "warning", "protected-mode = 'no'",
                "Give clients users and passwords (`standpipe provision`), switch the default user "
                "off, then CONFIG SET protected-mode yes; a firewall until then.",
            )  # fmt: skip
        else:
            yield look.set(EXPOSED, "warning", "protected-mode", "yes")
    if is_wide:
        yield look.finding(
            EXPOSED, "warning", f"bind = {facts.option('bind')!r}: every interface",
            "`bind` the addresses of the internal network in its configuration file, and start it "
            "again",
        )  # fmt: skip


def _acl(look: _Look) -> Iterator[Finding]:
    user = look.facts.default_user
    if user is None:
        return
    flags = _flags(look.facts)
    if "on" in flags and "nopass" in flags and "+@all" in str(user.get("commands")):
        yield look.finding(
            ACL, "note" if _is_alone(look.facts) else "warning",
            "the default user needs no password and may do everything",
            "`standpipe provision` writes an ACL file with a user for each part; then "
            "`user default off`.",
        )  # fmt: skip


def _is_alone(facts: ServerFacts) -> bool:
    """Whether it listens on the loopback alone."""
    bound = (facts.option("bind") or "").split()
    return bool(bound) and all(each.lstrip("-") in _LOOPBACK for each in bound)


def _flags(facts: ServerFacts) -> list[str]:
    return [] if facts.default_user is None else list(facts.default_user.get("flags", []))


def _tls(look: _Look) -> Iterator[Finding]:
    parts = urlsplit(look.facts.url)
    if parts.scheme == "redis" and not look.facts.is_local:
        yield look.finding(
            TLS, "warning", f"{look.facts.shown} is on another machine, without TLS",
            "rediss:// with certificates of your own: `standpipe provision` makes them.",
        )  # fmt: skip


def _config_file(look: _Look) -> Iterator[Finding]:
    path = look.facts.info.get("config_file")
    if not path or not look.facts.is_local:
        return
    try:
        found = Path(path).stat()
    except OSError:
        # In a container, or not for this user's eyes: so nor for others'.
        return
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o007:
        return
    told = f"{path} has mode {mode:04o}"
    user = _user_of(look.facts.number("process_id"))
    if user is not None and user in (0, found.st_uid):
        yield look.finding(
            CONFIG_FILE, "warning", told, f"chmod 600 {path}", Chmod(path, 0o600)
        )  # fmt: skip
    else:
        # Closed as it is, the server could not read it at its next start.
        yield look.finding(
            CONFIG_FILE, "warning", f"{told} and is not its server's own",
            f"chown it to the server's user, then chmod 600 {path}",
        )  # fmt: skip


def _user_of(pid: int) -> int | None:
    """As whom a process of this machine runs, by number."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:
        return None
    row = next((line for line in status.splitlines() if line.startswith("Uid:")), None)
    return None if row is None else int(row.split()[2])


def _dangerous(look: _Look) -> Iterator[Finding]:
    for name in ("enable-debug-command", "enable-module-command", "enable-protected-configs"):
        if look.facts.option(name) == "yes":
            yield look.finding(
                DANGEROUS, "warning", f"{name} = 'yes'",
                f"`{name} no` in its configuration file, and start it again",
            )  # fmt: skip


def _slow(look: _Look) -> Iterator[Finding]:
    if look.facts.option("slowlog-log-slower-than") == "-1":
        yield look.set(SLOW, "note", "slowlog-log-slower-than", "10000")
    count = (look.more or {}).get("slowlog", 0)
    if count and look.facts.slow:
        worst = max(look.facts.slow[:count], key=lambda each: each.took_us)
        yield look.finding(
            SLOW, "warning",
            f"{count} since the last look; the slowest {worst.took_us / 1000:,.0f} ms: "
            f"{worst.words}",
            "SLOWLOG GET shows them; a read of large entries or a KEYS of somebody's is typical.",
        )  # fmt: skip


def _latency(look: _Look) -> Iterator[Finding]:
    if look.facts.option("latency-monitor-threshold") == "0":
        yield look.set(LATENCY, "note", "latency-monitor-threshold", "100")
    hour_ago = time.time() - 3600
    for each in look.facts.latency or []:
        if each.at >= hour_ago and each.max_ms >= SLOW_EVENT_MS_MIN:
            yield look.finding(
                LATENCY, "warning",
                f"{each.name}: {each.last_ms} ms within the last hour, {each.max_ms} ms at most",
                f"LATENCY HISTORY {each.name} and LATENCY DOCTOR say more; LATENCY RESET forgets.",
            )  # fmt: skip


def _clients(look: _Look) -> Iterator[Finding]:
    now, limit = look.facts.number("connected_clients"), look.facts.number("maxclients")
    if limit and now * 100 >= CLIENTS_USED_PERCENT_MAX * limit:
        yield look.finding(
            CLIENTS, "warning",
            f"{now} of {limit} connections, {look.facts.number('blocked_clients')} of them waiting",
            "Raise maxclients and the open-file limit, or look in CLIENT LIST for idle ones.",
        )  # fmt: skip
    paused = look.facts.info.get("paused_actions", "none")
    if paused != "none":
        yield look.finding(
            CLIENTS, "warning", f"CLIENT PAUSE: {paused} are held up", "CLIENT UNPAUSE"
        )
    if rejected := (look.more or {}).get("rejected_connections", 0):
        yield look.finding(
            CLIENTS, "warning", f"{rejected} connections were turned away since the last look",
            "Raise maxclients and the open-file limit.",
        )  # fmt: skip


def _replication(look: _Look) -> Iterator[Finding]:
    facts = look.facts
    if facts.info.get("role") == "slave":
        # In a cluster, and behind a Sentinel, replicas are looked at as well.
        level: Level = "note" if facts.cluster is not None else "critical"
        yield look.finding(
            REPLICATION, level, f"this is a replica of {facts.info.get('master_host')}",
            "Point the URL at the primary, or use redis+sentinel:// so that it is found.",
        )  # fmt: skip
        if facts.info.get("master_link_status") != "up":
            yield look.finding(
                REPLICATION, "critical", "master_link_status: down",
                "Look whether the primary lives and whether masterauth and TLS are right.",
            )  # fmt: skip
        return
    written = facts.number("master_repl_offset")
    for number in range(facts.number("connected_slaves")):
        row = facts.info.get(f"slave{number}", "")
        fields = {
            name: value for name, _, value in (part.partition("=") for part in row.split(","))
        }
        behind = written - int(fields.get("offset") or 0)
        silent = int(fields.get("lag") or 0)
        if behind > REPLICA_LAG_BYTES_MAX or silent > REPLICA_SILENT_S_MAX:
            yield look.finding(
                REPLICATION, "warning",
                f"replica {fields.get('ip')}:{fields.get('port')} is {behind:,} bytes behind and "
                f"was silent for {silent} s",
                "A failover now loses that much. Look at its disk and network; send with "
                "level replicas=1 what must not be lost.",
            )  # fmt: skip


def _cluster(look: _Look) -> Iterator[Finding]:
    said = look.facts.cluster
    if said is None:
        return
    served = int(said.get("cluster_slots_ok", 0))
    if said.get("cluster_state") != "ok" or served < 16_384:
        yield look.finding(
            CLUSTER, "critical",
            f"cluster_state: {said.get('cluster_state')}, {served} of 16384 slots served",
            "CLUSTER NODES shows which primary is missing; `redis-cli --cluster fix` after it is "
            "back.",
        )  # fmt: skip


def _clock(look: _Look) -> Iterator[Finding]:
    ahead_ms = look.facts.clock_ms
    if ahead_ms is not None and abs(ahead_ms) - look.facts.clock_doubt_ms > CLOCK_MS_MAX:
        yield look.finding(
            CLOCK, "warning", f"its clock is {ahead_ms:+,} ms from this machine's",
            "Run chrony or systemd-timesyncd on both machines (`timedatectl`).",
        )  # fmt: skip


def _cpu(look: _Look) -> Iterator[Finding]:
    percent = look.facts.cpu_percent
    if percent is not None and percent >= SERVER_CPU_PERCENT_MAX:
        yield look.finding(
            CPU, "warning", f"its main thread takes {percent:.0f} % of a core",
            "Send blocks (codec rows or columns) rather than plain entries; then io-threads; then "
            "a cluster with more shards.",
        )  # fmt: skip


_CHECKS: Final[tuple[Callable[[_Look], Iterator[Finding]], ...]] = (
    _version, _rights, _eviction, _memory, _fork_room, _persistence, _disk_error, _fsync,
    _aof_size, _exposed, _acl, _tls, _config_file, _dangerous, _slow, _latency, _clients,
    _replication, _cluster, _clock, _cpu,
)  # fmt: skip
