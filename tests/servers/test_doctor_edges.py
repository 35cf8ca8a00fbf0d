"""The doctor where something is missing: rights, a node, a Sentinel's answer; and what --fix must
not break."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
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
from tests.faults.disk import fill, mounted_disk
from tests.servers.fleet import (
    Fleet,
    TestCluster,
    TestSentinel,
    TestServer,
    require_server,
)
from tests.servers.sight import Sight

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


async def test_maxmemory_stays_above_what_is_used(own_server: OwnServer, tmp_path: Path) -> None:
    """maxmemory is not lowered below what is in memory, as writes would be refused at once; when
    that is less it is. (Of its machine the server sees 100 MB.)"""
    sight = Sight(tmp_path, memory=100_000_000)
    target = own_server("valkey-9.1", inside=sight.inside, maxmemory="90mb")
    for number in range(5):
        target.command("SET", f"filling{number}", b"x" * 10_000_000)
    found = only(server.FORK_ROOM, await look(target.url))
    assert found.repair is None and "bytes leaves 6 %" in found.evidence
    target.command("FLUSHALL")
    found = only(server.FORK_ROOM, await look(target.url))
    assert (await repair(found)).after is not None
    assert of(server.FORK_ROOM, await look(target.url)) == []
    assert target.command("SET", "k", "v") == "OK"


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


async def test_full_disk_gets_no_aof(own_fleet: Fleet, tmp_path: Path) -> None:
    """No AOF is switched on where there is no room for it; it is when there is."""
    with mounted_disk(tmp_path / "disk", 16) as disk:
        target = own_fleet._start(TestServer("valkey-9.1", disk / "data", {"appendonly": "no"}))
        target.command("SET", "filling", os.urandom(4_000_000))
        ballast = fill(disk)
        found = only(server.PERSISTENCE, await look(target.url))
        assert found.repair is None and "the disk has 0 bytes free" in found.evidence
        ballast.unlink()
        found = only(server.PERSISTENCE, await look(target.url))
        assert (await repair(found)).after == "yes"
        assert of(server.PERSISTENCE, await look(target.url)) == []
        target.kill()
        target.restart(appendonly="yes")
        assert target.command("STRLEN", "filling") == 4_000_000
        target.kill()


async def test_open_server_is_not_shut(own_server: OwnServer) -> None:
    """protected-mode is not switched on under clients from other machines that have no password."""
    target = own_server("valkey-9.1")
    target.command("CONFIG", "SET", "protected-mode", "no")
    assert of(server.EXPOSED, await look(target.url))[0].repair is not None
    target.command("CONFIG", "SET", "bind", "* -::*")
    assert of(server.EXPOSED, await look(target.url))[0].repair is None


async def test_configuration_of_another(own_fleet: Fleet) -> None:
    """A configuration that its server reads as one of the others is not closed to it; when it is
    the server's own it is, and the server starts with it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to run a server as another user")
    require_server("redis-7.0")
    # The tests' own folder is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101
        as_nobody = (
            shutil.which("setpriv") or "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
        )
        target = TestServer("redis-7.0", Path(folder) / "data", inside=as_nobody)
        target.data.mkdir()
        os.chown(target.data, 65534, 65534)
        own_fleet._start(target)
        path = target.data / "server.conf"
        path.chmod(0o644)
        found = only(server.CONFIG_FILE, await look(target.url))
        assert found.repair is None and f"then chmod 600 {path}" in found.fix
        os.chown(path, 65534, 65534)
        found = only(server.CONFIG_FILE, await look(target.url))
        assert (await repair(found)).after == "0600"
        assert of(server.CONFIG_FILE, await look(target.url)) == []
        target.restart()
        target.kill()


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
