"""What lines of a server's log mean: which are trouble, how often, when, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from standpipe.doctor.finding import MANUAL, Check, Finding, Level
from standpipe.errors import ConfigError

LOG: Final = Check(
    "log.lines",
    "lines of the server's log that mean trouble (`--log FILE`)",
    "It is where the server says why it refuses, and what happened before it ended.",
    MANUAL + "Section C (Logs & Debugging)",
)

CHECKS: Final = (LOG,)


class _Pattern(NamedTuple):
    expression: str
    level: Level
    meaning: str
    fix: str


_PATTERNS: Final = (
    _Pattern(
        "Can't save in background: fork|Can't rewrite append only file in background: fork",
        "critical",
        "the kernel refused the fork: there was not enough memory for a second process",
        "sysctl -w vm.overcommit_memory=1, and lower maxmemory",
    ),
    _Pattern(
        "Background saving error|Failed opening the (temp )?RDB file|Error moving temp DB file|"
        "Write error (while )?saving DB",
        "critical",
        "no snapshot could be written: writes are refused with MISCONF",
        "look at dir, dbfilename, their permissions and the free space; `standpipe explain "
        "MISCONF`",
    ),
    _Pattern(
        "Short write while writing to the AOF file|Error writing to the AOF file|"
        "Write error writing append only file|Can't (recover from AOF write|persist AOF for fsync) "
        "error|Fail to fsync the (temp )?AOF|Error trying to .* AOF (manifest|base|incr) file|"
        "Background AOF rewrite .*(error|fail|signal)",
        "critical",
        "the AOF could not be written or rewritten: writes are refused, or the file grows",
        "free space on the disk of the data folder",
    ),
    _Pattern(
        "Asynchronous AOF fsync is taking too long",
        "warning",
        "the disk did not keep up: the server waited for it with its clients",
        "a faster disk, with nothing else on it; no `appendfsync always`",
    ),
    _Pattern(
        "MISCONF",
        "critical",
        "writes are refused because the server cannot persist",
        "`standpipe explain MISCONF`",
    ),
    _Pattern(
        r"OOM|Out Of Memory|zmalloc: Out of memory",
        "critical",
        "memory is full: of the server's maxmemory, or of the machine",
        "`standpipe explain OOM`",
    ),
    _Pattern(
        r"overcommit_memory is set to 0|Memory overcommit must be enabled",
        "warning",
        "vm.overcommit_memory is 0: a fork can fail under load",
        "sysctl -w vm.overcommit_memory=1",
    ),
    _Pattern(
        "Transparent Huge Pages",
        "warning",
        "transparent huge pages are on: latency and memory suffer after each fork",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    _Pattern(
        "TCP backlog setting of .* cannot be enforced",
        "warning",
        "net.core.somaxconn is lower than tcp-backlog",
        "sysctl -w net.core.somaxconn=65535, and start the server again",
    ),
    _Pattern(
        "maxclients has been reduced|is not enough for the server to start",
        "warning",
        "the open-file limit is too low for maxclients",
        "LimitNOFILE=65535 in the server's systemd unit",
    ),
    _Pattern(
        r"(crashed by signal|=== (REDIS|VALKEY) BUG REPORT START|ASSERTION FAILED|Guru Meditation)",
        "critical",
        "the server crashed; the lines that follow say where",
        "look for its version in the release notes, keep the report, install a later version",
    ),
    _Pattern(
        "Bad file format reading the append only file|Unexpected end of file reading the append|"
        "Unrecoverable error reading the append only file|AOF MANIFEST FILE ERROR|"
        "Short read or OOM loading DB|Wrong signature trying to load|Internal error in RDB|"
        "Stream listpack|Terminating server after rdb file reading failure|"
        "Fatal error loading the DB",
        "critical",
        "the data on disk cannot be read: the server does not start",
        "copy the folder first; then redis-check-aof or redis-check-rdb, or a backup",
    ),
    _Pattern(
        r"Truncating the AOF|AOF loaded anyway",
        "warning",
        "a power cut left half a command at the end of the AOF, which was cut off",
        "nothing: nobody got it acknowledged at the level fsync",
    ),
    _Pattern(
        # The channel of a first copy (8.0 and later) is closed when that is done.
        r"Connection with (replica(?! \(rdbchannel)|slave|master|primary).* lost|"
        "(MASTER|PRIMARY|REPLICA) timeout|"
        "Failed trying to (load the (MASTER|PRIMARY)|receive)|Disconnecting timedout replica|"
        "(Master|Primary) is currently unable to PSYNC|"
        "scheduled to be closed ASAP for overcoming of output buffer limits",
        "warning",
        "replication broke off: until it is back a failover loses what is missing",
        "look at the network between them and at client-output-buffer-limit replica",
    ),
    _Pattern(
        "Possible SECURITY ATTACK",
        "critical",
        "something that speaks HTTP connected: the port can be reached from where it should not",
        "bind to the internal network, protected-mode yes, a firewall",
    ),
    _Pattern(
        "Disk is full|No space left on device",
        "critical",
        "the disk is full",
        "free space on the disk of the data folder, or grow it",
    ),
    _Pattern(
        "Cluster state changed: fail",
        "critical",
        "slots of the cluster were not served",
        "CLUSTER NODES shows which primary was missing",
    ),
    _Pattern(
        r"Received SIGTERM|User requested shutdown",
        "note",
        "the server was stopped on purpose",
        "nothing",
    ),
)
# 12345:M 24 Nov 2026 14:59:36.123 # Background saving error
_TIME: Final = re.compile(r"\d+:\w\s+(\d{1,2} \w{3} (?:\d{4} )?\d\d:\d\d:\d\d(?:\.\d+)?)")


class _Seen:
    def __init__(self, number: int, when: str, text: str) -> None:
        self.count = 0
        self.first = (number, when)
        self.last = (number, when, text)


def check_log(path: Path) -> Iterator[Finding]:
    """Read a server's log from its beginning.

    Returns:
        One finding for each kind of trouble: how often, the first and the last line of it, when.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("r", encoding="utf-8", errors="replace") as lines:
            yield from _judge(str(path), lines)
    except OSError as error:
        raise ConfigError(
            f"--log {path} cannot be read: {error.strerror}",
            hint="CONFIG GET logfile names the file; the manual's is "
            "/var/log/redis/redis-server.log, and sudo may be needed.",
        ) from None


def _judge(path: str, lines: Iterable[str]) -> Iterator[Finding]:
    patterns = [(re.compile(each.expression), each) for each in _PATTERNS]
    any_of = re.compile("|".join(f"(?:{each.expression})" for each in _PATTERNS))
    seen: dict[_Pattern, _Seen] = {}
    for number, line in enumerate(lines, start=1):
        if not any_of.search(line):
            continue
        # A line that fits several means the first: they stand from the particular to the general.
        pattern = next(each for expression, each in patterns if expression.search(line))
        time = _TIME.match(line)
        when = time[1] if time else "time unknown"
        found = seen.setdefault(pattern, _Seen(number, when, line))
        found.count += 1
        found.last = (number, when, line.strip())
    for pattern, found in seen.items():
        first = f"first in line {found.first[0]} ({found.first[1]}), " if found.count > 1 else ""
        number, when, text = found.last
        times = "once" if found.count == 1 else f"{found.count} times"
        yield Finding(
            LOG, pattern.level, path,
            f"{pattern.meaning}; {times}, {first}last in line {number} ({when}): {text[:160]}",
            pattern.fix,
        )  # fmt: skip
