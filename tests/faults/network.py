"""A network of its own for a server, whose router loses, swallows or resets what passes.

::

    this machine ── veth ── router (a network namespace) ── veth ── server (another)

The faults are done in the router, on packets that are forwarded, so both ends see what they would
see of a real network: a packet that is dropped where it is sent is an error to that sender's TCP.
Needs root, and the programs ``ip``, ``ss`` (iproute2) and ``nft`` (nftables).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import pytest

from tests.servers.certificates import Certificates
from tests.servers.fleet import TestServer

PREFIX = "sp"
_NAMESPACES = Path("/run/netns")
_COUNTER = itertools.count()


def require_network() -> None:
    """Skip the test where no network can be made."""
    programs = ("ip", "ss", "nft", "nsenter")
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, programs)):
        pytest.skip(f"needs root: to make a network, with {', '.join(programs)}")
    # Root of a container may not make one either.
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("needs root: that may make a network")


def sweep() -> None:
    """Remove the networks of processes that were killed before they could do so themselves."""
    for path in _NAMESPACES.glob(f"{PREFIX}*"):
        found = re.fullmatch(rf"{PREFIX}(\d+)[rs]\d+", path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)


class Network:
    """A context manager: the network stands inside, and nothing of it afterwards.

    Its namespaces carry the number of this process; what a killed one has left is removed by the
    next. Both cables end in a namespace, so they go with these.
    """

    def __init__(self) -> None:
        mark = f"{os.getpid()}{{}}{next(_COUNTER)}"
        self.router = PREFIX + mark.format("r")
        self.namespace = PREFIX + mark.format("s")
        self._cable = PREFIX + mark.format("c")
        # 198.18.0.0/15 is for tests of networks (RFC 2544): eight addresses of it, drawn so that
        # the networks of several processes are unlikely to meet.
        net, part = divmod(8 * random.SystemRandom().randrange(2**14), 256)
        base = f"198.{18 + net // 256}.{net % 256}"
        self._here, self._gate = f"{base}.{part + 1}", f"{base}.{part + 2}"
        self._inner_gate, self.host = f"{base}.{part + 5}", f"{base}.{part + 6}"
        """The server's address."""
        self._servers: list[TestServer] = []

    def __enter__(self) -> Network:
        sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _build(self) -> None:
        cable, router, server = self._cable, self.router, self.namespace
        for name in (router, server):
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "out", "netns", router)
        _run(
            "ip", "-n", router, "link", "add", "in", "type", "veth",
            "peer", "name", "eth", "netns", server,
        )  # fmt: skip
        for where, device, address in (
            ((), cable, self._here),
            (("-n", router), "out", self._gate),
            (("-n", router), "in", self._inner_gate),
            (("-n", server), "eth", self.host),
        ):
            _run("ip", *where, "address", "add", f"{address}/30", "dev", device)
            _run("ip", *where, "link", "set", "dev", device, "up")
        _run("ip", "-n", server, "link", "set", "dev", "lo", "up")
        _run("ip", "-n", server, "route", "add", "default", "via", self._inner_gate)
        _run("ip", "route", "add", f"{self.host}/32", "via", self._gate, "dev", cable)
        self._in(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.heal()

    def _remove(self) -> None:
        # A namespace lives as long as a process in it.
        for server in self._servers:
            server.kill()
        subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, check=False)
        for name in (self.router, self.namespace):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def server(
        self, name: str, data: Path, certificates: Certificates | None = None, **settings: str
    ) -> TestServer:
        """A server of the fleet inside, started; it ends with the network."""
        inside = (*_inside(self.namespace), "--")
        settings = {"protected-mode": "no", **settings}
        server = TestServer(
            name, data, settings, host=self.host, inside=inside, certificates=certificates
        )
        self._servers.append(server)
        return server.start()

    def run_in_router(self, *command: str) -> str:
        """Run a program on the way to the server."""
        return self._in(self.router, *command)

    # --- the faults ---

    def heal(self) -> None:
        """All passes again."""
        self._rule()

    def lose(self, percent: int) -> None:
        """Lose that share of the packets, by chance, in each direction."""
        self._rule(f"meta l4proto tcp numgen random mod 100 < {percent} counter drop")

    def slow(self, kbytes_per_s: int) -> None:
        """A slow line: what comes faster is dropped, as a policer does it."""
        self._rule(f"limit rate over {kbytes_per_s} kbytes/second burst 32 kbytes counter drop")

    def swallow(self) -> None:
        """A black hole: nothing passes, and nobody is told."""
        self._rule("counter drop")

    def reset(self) -> None:
        """Answer each packet of an established connection with a reset; new ones can be made."""
        self._rule("tcp flags & syn == 0 counter reject with tcp reset")

    def forget(self) -> None:
        """Swallow the connections that are established now, and no others: what a NAT router does
        that has forgotten them."""
        ports = ", ".join(map(str, self.ports()))
        assert ports, "there is no connection to forget"
        self._rule(
            f"tcp sport {{ {ports} }} ip daddr {self.host} counter drop",
            f"tcp dport {{ {ports} }} ip saddr {self.host} counter drop",
        )

    def ports(self) -> list[int]:
        """This end's ports of the connections that are established with the server."""
        said = _run("ss", "-Htn", "state", "established", "dst", self.host)
        return [int(line.split()[2].rpartition(":")[2]) for line in said.splitlines()]

    def is_quiet(self) -> bool:
        """Whether the server's kernel has confirmed all that was sent. Until then a connection is
        not probed for whether the other side is there; the data is sent again instead."""
        said = _run("ss", "-Htni", "state", "established", "dst", self.host)
        return "unacked:" not in said

    @property
    def hits(self) -> int:
        """Packets that the present fault has met."""
        said = self._in(self.router, "nft", "list", "table", "ip", "faults")
        return sum(map(int, re.findall(r"counter packets (\d+)", said)))

    def _rule(self, *rules: str) -> None:
        # One transaction: there is no moment with half of it.
        table = (
            "add table ip faults\n"
            "add chain ip faults passing { type filter hook forward priority 0; }\n"
            "flush chain ip faults passing\n"
        )
        lines = "".join(f"add rule ip faults passing {rule}\n" for rule in rules)
        self._in(self.router, "nft", "-f", "-", given=table + lines)

    def _in(self, namespace: str, *command: str, given: str | None = None) -> str:
        return _run(*_inside(namespace), "--", *command, given=given)


def _inside(namespace: str) -> tuple[str, ...]:
    # Absolute: a server's command line is run without a look at PATH.
    return (shutil.which("nsenter") or "nsenter", f"--net={_NAMESPACES / namespace}")


def _run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{given or ''}"
    return done.stdout
