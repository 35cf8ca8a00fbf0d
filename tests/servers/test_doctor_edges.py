"""The doctor where something is missing: rights, a node, a Sentinel's answer; and what --fix must
not break."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from standpipe.doctor import certificate, server
from standpipe.doctor import repair as repairing
from standpipe.doctor.certificate import check_certificate
from standpipe.doctor.finding import Finding
from standpipe.doctor.reading import node_urls, read_server
from standpipe.doctor.repair import repair
from standpipe.doctor.run import REACHED, Report, examine
from standpipe.doctor.server import check_server
from standpipe.wire import Server
from tests.conditions import eventually
from tests.doctoring import of, only
from tests.servers.fleet import TestCluster, TestSentinel, TestServer

OwnServer = Callable[..., TestServer]


async def visit(url: str, tmp_path: Path) -> Report:
    return await examine(url, window_ms=50, state=tmp_path / "state.json")


async def look(url: str) -> list[Finding]:
    async with Server(url) as opened:
        return list(check_server(await read_server(opened, "standpipe"), None))


# --- what is not answered ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["time", "info", "scan", "hello", "xinfo", "client", "ping"])
async def test_few_rights(
    own_server: OwnServer, server_name: str, tmp_path: Path, command: str
) -> None:
    """A command that this user may not use is told as a right that is missing: the server is there,
    so nothing says that it cannot be reached."""
    target = own_server(server_name)
    target.command("XADD", "grid", "*", "volts", "230.5")
    target.command("ACL", "SETUSER", "few", "on", "nopass", "~*", "+@all", f"-{command}")
    report = await visit(target.url.replace("//", "//few:x@"), tmp_path)
    assert of(REACHED, report.findings) == []
    told = [each.evidence.lower() for each in report.findings if "may not use" in each.evidence
            or "NOPERM" in each.evidence]  # fmt: skip
    if command not in ("hello", "ping"):  # no check depends on them
        assert any(command in text for text in told), report.findings


async def test_dead_node(cluster: Callable[..., TestCluster], tmp_path: Path) -> None:
    """A node that died just now, which the others do not know yet, is critical, and they are looked
    at all the same."""
    three = cluster("valkey-9.1", **{"cluster-node-timeout": "60000"})
    os.kill(three.nodes[2].pid, signal.SIGKILL)
    report = await visit(three.url, tmp_path)
    # Of the cluster as a whole there may be one too: its streams cannot be looked for either.
    places = [each.place for each in of(REACHED, report.findings)]
    assert any(str(three.nodes[2].port) in place for place in places)
    assert {each.rpartition(":")[2] for each in report.servers} == {
        str(node.port) for node in three.nodes[:2]
    }


async def test_dies_halfway(own_server: OwnServer, tmp_path: Path) -> None:
    """A server that dies while it is watched is a finding, and what it said before is judged."""
    target = own_server("valkey-9.1")
    target.command("XADD", "grid", "*", "volts", "230.5")
    at_work = asyncio.create_task(
        examine(target.url, window_ms=3_000, state=tmp_path / "state.json")
    )

    def is_read() -> bool:
        return "cmdstat_acl|getuser" in target.info("commandstats")

    await eventually(is_read, what="the doctor has read what it asks for")
    target.kill()
    report = await asyncio.wait_for(at_work, 120)
    assert only(REACHED, report.findings).level == "critical"
    assert only(server.PERSISTENCE, report.findings)


async def test_sentinel(sentinel: Callable[..., TestSentinel]) -> None:
    """Behind a Sentinel it is the primary that is looked at and mended, not the Sentinel."""
    both = sentinel("valkey-9.1")
    both.primary.command("CONFIG", "SET", "slowlog-log-slower-than", "-1")
    found = only(server.SLOW, await look(both.url))
    assert (await repair(found)).after == "10000"
    assert "10000" in both.primary.cli("CONFIG", "GET", "slowlog-log-slower-than")


async def test_slow_words(own_server: OwnServer, server_name: str) -> None:
    """Of a slow command its name and its stream are shown: no payload, script or password."""
    target = own_server(server_name, **{"slowlog-log-slower-than": "0"})
    target.command("XADD", "grid", "*", "note", "hush-payload")
    target.command("EVAL", "return 'hush-script'", "0")
    target.command("SET", "k", "hush-value")
    target.command("ACL", "SETUSER", "w", ">hush-password")
    async with Server(target.url) as opened:
        slow = (await read_server(opened, "standpipe")).slow
    words = [each.words for each in slow or []]
    assert "XADD grid and 3 words more" in words and "EVAL and 2 words more" in words
    assert not any("hush" in each for each in words)


async def test_nodes_without_address(cluster: Callable[..., TestCluster]) -> None:
    """A node that was told no address of its own, and one of IPv6, have URLs that can be used."""
    from standpipe.doctor.reading import _nodes  # pyright: ignore[reportPrivateUsage]

    rows = ["a :7000@17000 myself,master", "b ::1:7001@17001 master", "c 10.0.0.1:7002@17002 slave"]
    assert list(_nodes(rows, "rediss://u:p@10.0.0.9:7000?ssl_ca_certs=x")) == [
        "rediss://u:p@10.0.0.9:7000?ssl_ca_certs=x",
        "rediss://u:p@[::1]:7001?ssl_ca_certs=x",
        "rediss://u:p@10.0.0.1:7002?ssl_ca_certs=x",
    ]
    async with Server(cluster("valkey-9.1").url) as opened:
        assert len(await node_urls(opened, "standpipe")) == 3


# --- what --fix leaves alone ---------------------------------------------------------------------


async def test_maxmemory_stays_above_what_is_used(own_server: OwnServer) -> None:
    """maxmemory is not lowered below what is in memory: writes would be refused at once."""
    target = own_server("valkey-9.1", maxmemory="100000gb")
    assert only(server.FORK_ROOM, await look(target.url)).repair is not None
    async with Server(target.url) as opened:
        facts = await read_server(opened, "standpipe")
    facts.info |= {"used_memory": str(facts.number("total_system_memory") // 2)}
    assert only(server.FORK_ROOM, check_server(facts, None)).repair is None


async def test_appendonly_outlives_a_crash(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first AOF is being written the file does not ask for one yet: a server that starts
    again then would leave its snapshot aside and be empty."""
    monkeypatch.setattr(repairing, "AOF_FIRST_MS_MAX", 300)
    target = own_server("redis-7.0", appendonly="no")
    for number in range(50):
        target.command("SET", f"key{number}", "value")
    target.command("SAVE")
    # Each key takes the child 0.2 s.
    target.command("CONFIG", "SET", "rdb-key-save-delay", "200000")
    found = only(server.PERSISTENCE, await look(target.url))
    done = await repair(found)
    assert done.after == "yes" and "first AOF is not written yet" in done.said
    # The fleet writes the file anew: with what the server has left there.
    kept = "yes" if "appendonly yes" in (target.data / "server.conf").read_text() else "no"
    target.kill()
    target.restart(appendonly=kept)
    assert target.command("DBSIZE") == 50


async def test_full_disk_gets_no_aof(own_server: OwnServer) -> None:
    """No AOF is switched on where there is no room for it."""
    target = own_server("valkey-9.1", appendonly="no")
    async with Server(target.url) as opened:
        facts = await read_server(opened, "standpipe")
    assert only(server.PERSISTENCE, check_server(facts, None)).repair is not None
    facts.info |= {"used_memory": str(1 << 60)}
    assert only(server.PERSISTENCE, check_server(facts, None)).repair is None


async def test_open_server_is_not_shut(own_server: OwnServer) -> None:
    """protected-mode is not switched on under clients from other machines that have no password."""
    target = own_server("valkey-9.1")
    target.command("CONFIG", "SET", "protected-mode", "no")
    assert of(server.EXPOSED, await look(target.url))[0].repair is not None
    target.command("CONFIG", "SET", "bind", "* -::*")
    assert of(server.EXPOSED, await look(target.url))[0].repair is None


async def test_configuration_of_another(own_server: OwnServer) -> None:
    """A configuration that its server reads as one of the others is not closed to it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    target = own_server("valkey-9.1")
    path = target.data / "server.conf"
    path.chmod(0o644)
    async with Server(target.url) as opened:
        facts = await read_server(opened, "standpipe")
    assert only(server.CONFIG_FILE, check_server(facts, None)).repair is not None
    # The server itself runs as root here: another process stands for one that does not.
    other = subprocess.Popen(["sleep", "60"], user=65534)  # noqa: ASYNC220
    try:
        facts.info |= {"process_id": str(other.pid)}
        found = only(server.CONFIG_FILE, check_server(facts, None))
    finally:
        other.kill()
        other.wait()
    assert found.repair is None and "chown" in found.fix


# --- certificates --------------------------------------------------------------------------------


async def test_locked_key(tls_server: OwnServer, tmp_path: Path) -> None:
    """A client's key that is locked is opened with the URL's password; without one that is a
    finding, and nobody is asked at the terminal."""
    target = tls_server()
    files = target.certificates
    assert files is not None
    key = load_pem_private_key(files.client_key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
        )
    )
    url = f"{target.url}&ssl_certfile={files.client}&ssl_keyfile={locked}"
    (found,) = await check_certificate(url, "s")
    assert "handshake failed" in found.evidence
    ours, theirs = await check_certificate(f"{url}&ssl_password=open%20sesame", "s")
    assert "ends in" in ours.evidence and "ends in" in theirs.evidence


async def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra that reads certificates they are a note, not a traceback."""
    monkeypatch.setattr(certificate, "find_spec", lambda _: None)
    (found,) = await check_certificate("rediss://127.0.0.1:1", "s")
    assert found.level == "note" and "not checked" in found.evidence
