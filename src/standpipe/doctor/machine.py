"""Checks of the machine: the kernel's settings, its memory, network and disk.

Everything is read below one root folder, so that a test can lay out a machine of its own.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from standpipe.doctor.finding import MANUAL, Check, Finding, KernelSet
from standpipe.doctor.history import Counters, grown
from standpipe.doctor.thresholds import (
    DISK_SYNC_MS_MAX,
    DISK_USED_PERCENT_CRITICAL,
    DISK_USED_PERCENT_WARNING,
    INTERFACE_FAULTS_PPM_MAX,
    RETRANSMITTED_PERCENT_MAX,
)
from standpipe.limits import MTU_MAX, MTU_MIN

PLACE: Final = "machine"
_ADMIN: Final = "https://redis.io/docs/latest/operate/oss_and_stack/management/admin/"
_SYSCTL: Final = "/etc/sysctl.d/90-standpipe.conf"

KERNEL: Final = Check(
    "machine.kernel",
    "the version of Linux",
    "Memory management that a large, forking process needs came with later kernels.",
    MANUAL + "Technical Specifications: Linux 5.4+",
)
OVERCOMMIT: Final = Check(
    "machine.overcommit",
    "vm.overcommit_memory",
    "With less than 1 the kernel may refuse the fork that writes a snapshot or rewrites the AOF; "
    "writes are then refused with MISCONF.",
    MANUAL + "step 1; " + _ADMIN,
)
BACKLOG: Final = Check(
    "machine.backlog",
    "net.core.somaxconn against the server's tcp-backlog",
    "The kernel cuts the queue of new connections to somaxconn: when many clients reconnect at "
    "once, the rest are dropped and wait for a retransmission.",
    MANUAL + "step 1; https://docs.kernel.org/admin-guide/sysctl/net.html",
)
HUGE_PAGES: Final = Check(
    "machine.huge_pages",
    "transparent huge pages",
    "After a fork each write copies 2 MiB instead of 4 KiB: latency spikes and twice the memory.",
    MANUAL + "Environment Prerequisites; " + _ADMIN + " (latency)",
)
SWAP: Final = Check(
    "machine.swap",
    "how much of the server is swapped out",
    "A page that has to come back from disk stops the one thread that serves everybody.",
    "https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency/",
)
FILES: Final = Check(
    "machine.files",
    "the server's open-file limit against its maxclients",
    "The server lowers maxclients to what the limit allows at its start, and turns the rest away.",
    "https://redis.io/docs/latest/develop/reference/clients/",
)
MTU: Final = Check(
    "machine.mtu",
    "the MTU of each interface that is up",
    "Below 1500 every block is cut into more packets; above 9000 few switches pass them on.",
    MANUAL + "Technical Specifications: MTU 1500 to 9000",
)
INTERFACE: Final = Check(
    "machine.interface",
    "errors and drops of each interface since the last look",
    "Lost packets are sent again after 200 ms or more: that is what latency is lost to.",
    MANUAL + "Section B (packet loss, retransmissions)",
)
RETRANSMISSIONS: Final = Check(
    "machine.retransmissions",
    "TCP segments sent again since the last look",
    "A cable, a switch or a link that is full: each one holds its connection up.",
    MANUAL + "Section B (packet loss, retransmissions)",
)
LISTEN: Final = Check(
    "machine.listen",
    "connections dropped since the last look because a listen queue was full",
    "Clients that reconnect wait a second or more, and some give up.",
    MANUAL + "step 1; https://docs.kernel.org/networking/snmp_counter.html",
)
DISK_FULL: Final = Check(
    "machine.disk_full",
    "how full the disk of the server's data folder is",
    "A full disk ends persistence: the server refuses writes with MISCONF.",
    MANUAL + "Admin Desk (MISCONF)",
)
DISK_SPEED: Final = Check(
    "machine.disk_speed",
    "how long a small write takes to reach the disk of the data folder",
    "When fsync takes longer than its turn, the server waits for it with its clients.",
    MANUAL + "Section B (fsync and disk)",
)

CHECKS: Final = (
    KERNEL, OVERCOMMIT, BACKLOG, HUGE_PAGES, SWAP, FILES, MTU, INTERFACE, RETRANSMISSIONS, LISTEN,
    DISK_FULL, DISK_SPEED,
)  # fmt: skip


class LocalServer(NamedTuple):
    """What the machine's checks need to know of a server that runs on it."""

    pid: int
    folder: str | None
    """Its ``dir``; None where it may not be asked."""
    tcp_backlog: int | None
    clients_max: int | None
    clients_asked: int | None = None
    """What its configuration file asks for; None where that cannot be read."""


_CLIENTS_DEFAULT: Final = 10_000
"""``maxclients`` where the configuration says nothing of it, in every version."""


def clients_asked(path: str | None) -> int | None:
    """The ``maxclients`` of a configuration file: a server lowers its own to what its open-file
    limit allows, so what it says of it is not what was asked for."""
    try:
        lines = Path(path or "").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    rows = [line.split() for line in lines]
    if any(row and row[0].lower() == "include" for row in rows):
        return None
    said = [row[1].strip('"') for row in rows if len(row) == 2 and row[0].lower() == "maxclients"]
    asked = [int(each) for each in said if each.isdecimal()]
    return asked[-1] if asked else _CLIENTS_DEFAULT


class Machine:
    """This machine, or one that is laid out below ``root``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: str) -> str:
        """Where a file of this machine is."""
        return str(self._root / path.lstrip("/"))

    def text(self, path: str) -> str | None:
        """A file's content; None where it is not there or may not be read."""
        try:
            return Path(self.path(path)).read_text("utf-8", "replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        found = self.text(path)
        return int(found) if found is not None and re.fullmatch(r"-?\d+", found) else None

    def interfaces(self) -> list[str]:
        """Those that are up, but for the loopback."""
        folder = self._root / "sys/class/net"
        names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        return [
            name
            for name in names
            if name != "lo" and self.text(f"/sys/class/net/{name}/operstate") != "down"
        ]

    def counters(self) -> Counters:
        """Counters that only grow until the machine restarts."""
        found: Counters = {}
        for name in self.interfaces():
            for what in ("rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_dropped",
                         "tx_dropped"):  # fmt: skip
                value = self.number(f"/sys/class/net/{name}/statistics/{what}")
                if value is not None:
                    found[f"{name} {what}"] = value
        tcp = {**self._table("/proc/net/snmp"), **self._table("/proc/net/netstat")}
        for name in ("OutSegs", "RetransSegs", "ListenOverflows", "ListenDrops"):
            if name in tcp:
                found[name] = tcp[name]
        return found

    def boot(self) -> str:
        """Which start of the machine this is."""
        return self.text("/proc/sys/kernel/random/boot_id") or ""

    def _table(self, path: str) -> Mapping[str, int]:
        """The Tcp and TcpExt rows of a file that has names in one line and numbers in the next."""
        lines = [line.split() for line in (self.text(path) or "").splitlines()]
        found: dict[str, int] = {}
        for names, values in zip(lines[::2], lines[1::2], strict=False):
            if names[:1] in (["Tcp:"], ["TcpExt:"]):
                found.update(zip(names[1:], map(int, values[1:]), strict=False))
        return found


def check_machine(
    machine: Machine, servers: list[LocalServer], before: Counters | None
) -> Iterator[Finding]:
    """Look at the machine.

    Args:
        machine: The machine.
        servers: The servers on it that are looked at.
        before: Its counters at the last look; None when there was none since it started.
    """
    yield from _kernel(machine)
    yield from _settings(machine, servers)
    for server in servers:
        yield from _process(machine, server)
        if server.folder is not None:
            yield from check_disk(Path(server.folder))
    for name in machine.interfaces():
        mtu = machine.number(f"/sys/class/net/{name}/mtu")
        if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
            yield Finding(
                MTU, "warning", PLACE, f"{name} has MTU {mtu}",
                f"ip link set {name} mtu 1500 (or 9000, if every switch on the way takes it)",
            )  # fmt: skip
    if before is not None:
        yield from _grown(grown(before, machine.counters()))


def _kernel(machine: Machine) -> Iterator[Finding]:
    release = machine.text("/proc/sys/kernel/osrelease")
    found = re.match(r"(\d+)\.(\d+)", release or "")
    if found and (int(found[1]), int(found[2])) < (5, 4):
        yield Finding(
            KERNEL, "warning", PLACE, f"Linux {release}", "Install a kernel of 5.4 or later."
        )


def _settings(machine: Machine, servers: list[LocalServer]) -> Iterator[Finding]:
    overcommit = machine.number("/proc/sys/vm/overcommit_memory")
    if overcommit is not None and overcommit != 1:
        yield Finding(
            OVERCOMMIT, "warning", PLACE, f"vm.overcommit_memory = {overcommit}",
            f"sysctl -w vm.overcommit_memory=1, and the same line in {_SYSCTL}",
            KernelSet(machine.path("/proc/sys/vm/overcommit_memory"), "1"),
        )  # fmt: skip
    allowed = machine.number("/proc/sys/net/core/somaxconn")
    wanted = max((each.tcp_backlog or 0 for each in servers), default=0)
    if allowed is not None and allowed < wanted:
        yield Finding(
            BACKLOG, "warning", PLACE, f"net.core.somaxconn = {allowed}, tcp-backlog = {wanted}",
            f"sysctl -w net.core.somaxconn=65535, the same line in {_SYSCTL}, and start the "
            "server again",
            KernelSet(machine.path("/proc/sys/net/core/somaxconn"), "65535"),
        )  # fmt: skip
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    if "[always]" in (machine.text(path) or ""):
        yield Finding(
            HUGE_PAGES, "warning", PLACE, f"{path}: {machine.text(path)}",
            f"echo madvise > {path}, at each start of the machine (`standpipe provision` writes "
            "the unit)",
            KernelSet(machine.path(path), "madvise"),
        )  # fmt: skip


def _process(machine: Machine, server: LocalServer) -> Iterator[Finding]:
    status = machine.text(f"/proc/{server.pid}/status") or ""
    if (found := re.search(r"VmSwap:\s+(\d+) kB", status)) and int(found[1]) > 0:
        yield Finding(
            SWAP, "warning", f"process {server.pid}", f"VmSwap: {found[1]} kB",
            "Lower maxmemory or add memory; then `swapoff -a && swapon -a` brings the pages back.",
        )  # fmt: skip
    limits = machine.text(f"/proc/{server.pid}/limits") or ""
    found = re.search(r"Max open files\s+(\d+)", limits)
    if found is None or server.clients_max is None:
        return
    allowed, asked = int(found[1]), max(server.clients_asked or 0, server.clients_max)
    # The server keeps 32 descriptors for itself.
    if allowed < asked + 32 and allowed <= server.clients_max + 32:
        told = f"Max open files = {allowed}, maxclients = {server.clients_max}"
        yield Finding(
            FILES, "warning", f"process {server.pid}",
            told if asked == server.clients_max else f"{told} of {asked} that were asked for",
            "Set LimitNOFILE=65535 in the server's systemd unit and start it again.",
        )  # fmt: skip


def _grown(more: Mapping[str, int]) -> Iterator[Finding]:
    for name in sorted({key.split()[0] for key in more if " " in key}):
        faults = {
            what: more.get(f"{name} {what}", 0)
            for what in ("rx_errors", "tx_errors", "rx_dropped", "tx_dropped")
        }
        packets = more.get(f"{name} rx_packets", 0) + more.get(f"{name} tx_packets", 0)
        if sum(faults.values()) * 1_000_000 > INTERFACE_FAULTS_PPM_MAX * max(packets, 1):
            told = ", ".join(f"{what} {count}" for what, count in faults.items() if count)
            yield Finding(
                INTERFACE, "warning", PLACE,
                f"{name}: {told} of {packets} packets since the last look",
                f"Look at `ethtool -S {name}`, the cable and the switch's port; raise the ring "
                f"with `ethtool -G {name} rx 4096` if it is drops.",
            )  # fmt: skip
    sent, again = more.get("OutSegs", 0), more.get("RetransSegs", 0)
    if sent >= 100 and again * 100 > RETRANSMITTED_PERCENT_MAX * sent:
        yield Finding(
            RETRANSMISSIONS, "warning", PLACE,
            f"{again} of {sent} TCP segments were sent again since the last look",
            "`ss -ti` shows which connections; `mtr --tcp` where on the way; check the MTU end to "
            "end.",
        )  # fmt: skip
    if overflows := max(more.get("ListenOverflows", 0), more.get("ListenDrops", 0)):
        yield Finding(
            LISTEN, "warning", PLACE,
            f"{overflows} connections dropped on a full listen queue since the last look",
            "Raise net.core.somaxconn and the server's tcp-backlog (65535), and start the server "
            "again.",
        )  # fmt: skip


def check_disk(folder: Path) -> Iterator[Finding]:
    """Look at the disk below a server's data folder.

    Cost: five writes of 4 KiB with fsync, into a file that is removed at once.
    """
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    used = 100 - 100 * found.f_bavail / max(found.f_blocks, 1)
    if used >= DISK_USED_PERCENT_WARNING:
        free = found.f_bavail * found.f_frsize
        yield Finding(
            DISK_FULL,
            "critical" if used >= DISK_USED_PERCENT_CRITICAL else "warning",
            str(folder),
            f"{used:.0f} % used, {free:,} bytes free",
            "Free space or grow the disk: an AOF rewrite needs as much again as the data set.",
        )
    took_ms = _sync_ms(folder)
    if took_ms is not None and took_ms > DISK_SYNC_MS_MAX:
        yield Finding(
            DISK_SPEED, "warning", str(folder), f"fsync of 4 KiB takes {took_ms:.0f} ms (median)",
            "Use a local NVMe disk, nothing else on it, and appendfsync everysec.",
        )  # fmt: skip


def _sync_ms(folder: Path) -> float | None:
    """Median time of a small write with fsync; None where nothing may be written."""
    path = folder / f".standpipe-doctor-{os.getpid()}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        path.unlink()
        times: list[float] = []
        for _ in range(5):
            os.write(descriptor, b"\0" * 4096)
            began = time.perf_counter()
            os.fsync(descriptor)
            times.append((time.perf_counter() - began) * 1000)
        return statistics.median(times)
    except OSError:
        # A full disk has its own finding.
        return None
    finally:
        os.close(descriptor)
