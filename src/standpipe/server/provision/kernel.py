"""The machine's settings that a queue needs: kernel, huge pages. Pure.

Sources: https://docs.kernel.org/admin-guide/sysctl/ ,
https://docs.kernel.org/networking/ip-sysctl.html ,
https://redis.io/docs/latest/operate/oss_and_stack/management/admin/
"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Final, NamedTuple

from standpipe.server.provision.layout import File

SYSCTL_PATH: Final = "/etc/sysctl.d/90-standpipe.conf"
HUGE_PAGES_UNIT: Final = "standpipe-hugepages.service"
HUGE_PAGES_PATH: Final = f"/etc/systemd/system/{HUGE_PAGES_UNIT}"


class Setting(NamedTuple):
    """A kernel parameter and the reason for its value."""

    name: str
    value: str
    why: str


SETTINGS: Final = (
    Setting(
        "vm.overcommit_memory",
        "1",
        "The server forks to write its data out. Pages are shared until they change, but the "
        "kernel would otherwise refuse a fork for which it could not promise all of them.",
    ),
    Setting(
        "vm.swappiness",
        "1",
        "A page of the server that went to the swap stops everybody until it is back. Swap itself "
        "may stay: it is what is left when memory runs out all the same.",
    ),
    Setting(
        "net.core.somaxconn",
        "65535",
        "The queue of connections that wait for the server (its tcp-backlog): all clients "
        "reconnect at once after a restart.",
    ),
    Setting(
        "net.ipv4.tcp_max_syn_backlog",
        "65535",
        "Likewise for connections whose handshake is under way.",
    ),
    Setting(
        "net.core.netdev_max_backlog",
        "16384",
        "Packets that wait for a processor: a burst of many producers on a 10 Gbit/s interface.",
    ),
    Setting(
        "net.core.rmem_max",
        "16777216",
        "What one connection may buffer, received: 10 Gbit/s over 13 ms. The next three likewise.",
    ),
    Setting("net.core.wmem_max", "16777216", "Sent."),
    Setting(
        "net.ipv4.tcp_rmem",
        "4096 131072 16777216",
        "The kernel grows each connection's buffer from the second number to the third.",
    ),
    Setting("net.ipv4.tcp_wmem", "4096 65536 16777216", "Likewise, sent."),
    Setting(
        "net.ipv4.tcp_slow_start_after_idle",
        "0",
        "Meters send in bursts: a connection that rested does not begin anew with ten packets.",
    ),
    Setting(
        "net.ipv4.tcp_mtu_probing",
        "1",
        "A way that swallows large packets in silence is noticed, and smaller ones are sent.",
    ),
)

_NOTE: Final = (
    "net.ipv4.tcp_low_latency is not set: it has had no effect since Linux 4.14, which took the",
    "queue away that it switched off. What it was for, small latency, is TCP_NODELAY, which the",
    "server and Standpipe's connections set.",
)


def render_sysctl() -> str:
    """The file of kernel parameters, each with its reason."""
    lines = ["# Written by `standpipe provision`. In force at once with: sysctl -p " + SYSCTL_PATH]
    for name, value, why in SETTINGS:
        lines += ["", *(f"# {line}" for line in wrap(why, 94)), f"{name} = {value}"]
    lines += ["", *(f"# {line}" for line in _NOTE)]
    return "\n".join(lines) + "\n"


_HUGE_PAGES: Final = """\
# Written by `standpipe provision`.
[Unit]
Description=Transparent huge pages off, for the queue's server
Documentation=https://docs.kernel.org/admin-guide/mm/transhuge.html
# With them each write after a fork copies 2 MiB instead of 4 KiB: latency, and twice the memory.
DefaultDependencies=no
After=sysinit.target local-fs.target
Before={services}
ConditionPathExists=/sys/kernel/mm/transparent_hugepage/enabled

[Service]
# Done when it has run, so that starting it does it again.
Type=oneshot
ExecStart=/bin/sh -c 'echo never > /sys/kernel/mm/transparent_hugepage/enabled'
ExecStart=/bin/sh -c 'echo never > /sys/kernel/mm/transparent_hugepage/defrag'

[Install]
WantedBy=basic.target
"""


def machine_files() -> list[File]:
    """The files of the machine's settings."""
    services = "redis-server.service valkey-server.service"
    return [
        File(
            SYSCTL_PATH, render_sysctl(), "kernel parameters",
            then=("sysctl", "-q", "-p", SYSCTL_PATH),
        ),
        File(
            HUGE_PAGES_PATH, _HUGE_PAGES.format(services=services), "transparent huge pages off",
            then=("systemctl", "enable", "--now", HUGE_PAGES_UNIT),
        ),
    ]  # fmt: skip


_HUGE_PAGES_NAME: Final = "transparent_hugepage"


class Differing(NamedTuple):
    """A parameter of the running kernel that has another value."""

    name: str
    value: str
    wanted: str


def differing(root: Path) -> list[Differing]:
    """The parameters that the kernel has and that are not as :data:`SETTINGS` wants them."""
    found: list[Differing] = []
    for name, wanted, _ in SETTINGS:
        try:
            text = (root / "proc/sys" / name.replace(".", "/")).read_text()
        except OSError:
            # Not in this kernel, or not in a container: nobody could set it here.
            continue
        if (value := " ".join(text.split())) != wanted:
            found.append(Differing(name, value, wanted))
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if path.exists() and "[never]" not in (text := path.read_text()):
        found.append(Differing(_HUGE_PAGES_NAME, text.strip(), "never"))
    return found


def files_not_in_force(root: Path) -> set[str]:
    """Those of :func:`machine_files` that the running kernel is not as: somebody changed it by
    hand, or the command that puts them into force had failed."""
    return {
        HUGE_PAGES_PATH if name == _HUGE_PAGES_NAME else SYSCTL_PATH
        for name, _, _ in differing(root)
    }
