"""What the doctor finds of a machine, made wrong for real: in a network of its own, or for one
process. What cannot be made wrong for one test alone is laid out below a folder, in tests/unit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from standpipe.doctor import Finding, machine
from standpipe.doctor.machine import Machine, check_machine
from standpipe.doctor.reading import read_server
from standpipe.doctor.run import local_servers
from standpipe.wire import Server
from tests.doctoring import of, only
from tests.faults.network import Network, require_network
from tests.servers.commands import ENV
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]

# A look in which the named checks are mended; no other, as they are of the machine that all share.
LOOK = """
import asyncio, json, sys
from pathlib import Path
from standpipe.doctor.repair import repair
from standpipe.doctor.run import examine

async def main(url, state, *mend):
    report = await examine(url, window_ms=10, state=Path(state))
    for each in report.findings:
        if each.check.name in mend:
            assert (await repair(each)).after is not None, each
    print(json.dumps({each.check.name: each.as_facts() for each in report.findings}))

asyncio.run(main(*sys.argv[1:]))
"""
# Frames of a protocol that nobody speaks (IEEE 802, for local experiments): the other end drops
# them.
STRANGE = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
    out.bind(("in", 0))
    for _ in range(500):
        out.send(b"\\xff" * 6 + b"\\x02" + bytes(5) + b"\\x88\\xb5" + bytes(50))
"""
# A server that accepts nothing, and more clients than its queue takes.
CROWD = """
import socket, time
from pathlib import Path
with socket.create_server(("127.0.0.1", 0), backlog=1) as door:
    clients = [socket.socket() for _ in range(10)]
    for each in clients:
        each.setblocking(False)
        each.connect_ex(door.getsockname())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        rows = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
        tcp = dict(zip(*(row for row in rows if row[0] == "TcpExt:")))
        if int(tcp["ListenOverflows"]):
            break
        time.sleep(0.02)
"""


class Inside:
    """The doctor and other programs inside a network: with its /proc/net and its /sys."""

    def __init__(self, network: Network, url: str, state: Path) -> None:
        self._ip = ("ip", "netns", "exec", network.namespace)
        self._url, self._state = url, state

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [*self._ip, *command], capture_output=True, text=True, check=False, timeout=60, env=ENV
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def look(self, *mend: machine.Check) -> Mapping[str, Mapping[str, Any]]:
        """The findings by their check's name; those of some checks are mended."""
        names = [each.name for each in mend]
        said = self.run(sys.executable, "-c", LOOK, self._url, str(self._state), *names)
        return json.loads(said)


def test_bad_network(tmp_path: Path) -> None:
    """A queue of connections that is cut, an MTU that is too small, and then packets that are
    dropped, sent again and turned away are told with their numbers; mended as the findings say, or
    over, they are no more."""
    require_network()
    with Network() as network:
        target = network.server(
            "redis-7.0", tmp_path / "away", bind=f"{network.host} 127.0.0.1", tcp_backlog="511"
        )
        inside = Inside(network, f"redis://127.0.0.1:{target.port}", tmp_path / "state.json")
        inside.run("sysctl", "-q", "-w", "net.core.somaxconn=128")
        inside.run("ip", "link", "set", "eth", "mtu", "1400")
        found = inside.look(machine.BACKLOG)
        backlog, mtu = found[machine.BACKLOG.name], found[machine.MTU.name]
        assert "net.core.somaxconn = 128, tcp-backlog = 511" in backlog["evidence"]
        assert "eth has MTU 1400" in mtu["evidence"]
        assert inside.run("cat", "/proc/sys/net/core/somaxconn").strip() == "65535"
        inside.run(*mtu["fix"].partition(" (")[0].split())

        network.run_in_router(sys.executable, "-c", STRANGE)
        inside.run(sys.executable, "-c", CROWD)
        target.command("SET", "much", b"x" * 3_000_000)
        # Else packets of 64 KB would be lost, or by chance none of some fifty.
        inside.run("ip", "link", "set", "eth", "gso_max_segs", "1")
        network.lose(5)
        assert len(target.command("GET", "much")) == 3_000_000
        network.heal()
        found = inside.look()
        assert machine.BACKLOG.name not in found and machine.MTU.name not in found
        drops = found[machine.INTERFACE.name]["evidence"]
        dropped = re.search(r"eth: rx_dropped (\d+) of \d+ packets", drops)
        assert dropped and int(dropped[1]) >= 500, drops
        again = found[machine.RETRANSMISSIONS.name]["evidence"]
        assert re.match(r"\d+ of \d+ TCP segments were sent again", again), again
        assert re.match(r"[1-9]\d* connections dropped", found[machine.LISTEN.name]["evidence"])

        counted = (machine.INTERFACE, machine.RETRANSMISSIONS, machine.LISTEN)
        found = inside.look()
        assert not {each.name for each in counted} & set(found)


async def test_few_files(own_server: OwnServer, server_name: str) -> None:
    """A server that may open few files has lowered its maxclients by itself, and is told; one that
    may open enough is not."""

    async def look(target: TestServer) -> list[Finding]:
        async with Server(target.url) as opened:
            facts = await read_server(opened, "standpipe")
        return list(check_machine(Machine(), local_servers([facts]), None))

    few = own_server(server_name, inside=limited(500), maxclients="5000")
    told = only(machine.FILES, await look(few)).evidence
    assert told == "Max open files = 500, maxclients = 468 of 5000 that were asked for"
    assert of(machine.FILES, await look(own_server(server_name, maxclients="400"))) == []
    enough = own_server(server_name, inside=limited(500), maxclients="400")
    assert of(machine.FILES, await look(enough)) == []


def limited(files: int) -> tuple[str, ...]:
    """Run a server with so many files at most."""
    programs = [shutil.which(name) for name in ("prlimit", "setpriv")]
    if None in programs:
        pytest.skip("program not installed: prlimit")
    prlimit, setpriv = map(str, programs)
    # Root could raise the limit again.
    bound = (setpriv, "--bounding-set=-sys_resource", "--") if os.geteuid() == 0 else ()
    return (*bound, prlimit, f"--nofile={files}:{files}", "--")
