"""The doctor finds what is wrong with a server, and no more; its repair mends it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe.doctor import Check, Finding, client, machine, server
from standpipe.doctor.certificate import CERTIFICATE, check_certificate
from standpipe.doctor.client import check_client
from standpipe.doctor.logfile import check_log
from standpipe.doctor.machine import check_disk
from standpipe.doctor.reading import ServerFacts, measure_cpu, node_urls, read_server
from standpipe.doctor.repair import repair
from standpipe.doctor.run import HISTORY, REACHED, examine
from standpipe.doctor.server import check_server
from standpipe.errors import TooManyClientsError
from standpipe.wire import Server
from tests.conditions import eventually
from tests.doctoring import of, only, provokes
from tests.faults.disk import fill, mounted_disk
from tests.faults.network import Network, require_network
from tests.servers.certificates import make_certificates
from tests.servers.fleet import TestCluster, TestSentinel, TestServer, free_port
from tests.servers.sight import Sight

OwnServer = Callable[..., TestServer]

SOUND: dict[str, str | None] = {
    "appendonly": "yes",
    "maxmemory": "256mb",
    "enable-debug-command": None,
    "enable-protected-configs": None,
    "latency-monitor-threshold": "100",
}
"""What a server needs so that nothing is found but its version and its default user."""


SPIN = "local n = 0 for i = 1, ARGV[1] do n = n + i end"
"""A script that keeps the server busy: about 10 ms for a million."""


async def read(url: str) -> ServerFacts:
    async with Server(url) as opened:
        return await read_server(opened, "standpipe")


async def look(target: TestServer, before: ServerFacts | None = None) -> list[Finding]:
    facts = await read(target.url)
    return list(check_server(facts, None if before is None else before.counters()))


async def test_sound_server(own_server: OwnServer, server_name: str) -> None:
    """A server that is set up as it should be has no finding but its version's faults and, as it
    listens on the loopback alone, a note on its default user."""
    target = own_server(server_name, **SOUND)
    target.command("CONFIG", "REWRITE")
    (target.data / "server.conf").chmod(0o600)
    findings = [each for each in await look(target) if each.check is not server.VERSION]
    assert [(each.check, each.level) for each in findings] == [(server.ACL, "note")]


CASES: list[tuple[Check, dict[str, str], str, str]] = [
    (server.EVICTION, {"maxmemory-policy": "allkeys-lru"}, "critical", "allkeys-lru"),
    (server.MEMORY, {"maxmemory": "0"}, "warning", "maxmemory = 0"),
    (server.FORK_ROOM, {"maxmemory": "100000gb"}, "warning", "leaves 0 %"),
    (server.PERSISTENCE, {"appendonly": "no"}, "critical", "appendonly = 'no'"),
    (server.PERSISTENCE, {"appendonly": "no", "save": "3600 1"}, "warning", "save = '3600 1'"),
    (server.FSYNC, {"appendfsync": "no"}, "warning", "appendfsync = 'no'"),
    (server.FSYNC, {"appendfsync": "always"}, "note", "appendfsync = 'always'"),
    (server.FSYNC, {"no-appendfsync-on-rewrite": "yes"}, "warning", "no-appendfsync-on-rewrite"),
    (server.AOF_SIZE, {"auto-aof-rewrite-percentage": "0"}, "warning", "'0'"),
    (server.EXPOSED, {"protected-mode": "no"}, "warning", "protected-mode = 'no'"),
    (server.SLOW, {"slowlog-log-slower-than": "-1"}, "note", "'-1'"),
    (server.LATENCY, {"latency-monitor-threshold": "0"}, "note", "'0'"),
]


@pytest.mark.parametrize(
    ("check", "setting", "level", "evidence"), CASES, ids=[str(case[1]) for case in CASES]
)
@provokes(
    server.EVICTION, server.MEMORY, server.FORK_ROOM, server.PERSISTENCE, server.FSYNC,
    server.AOF_SIZE, server.EXPOSED, server.SLOW, server.LATENCY,
)  # fmt: skip
async def test_bad_option(
    own_server: OwnServer,
    server_name: str,
    check: Check,
    setting: dict[str, str],
    level: str,
    evidence: str,
) -> None:
    """An option that is wrong is found with its value; the command that the finding gives mends it,
    and what --fix can mend it mends, in the running server and in its file: then nothing is found
    any more."""
    target = own_server(server_name, **SOUND)
    for name, value in reversed(setting.items()):
        target.command("CONFIG", "SET", name, value)
    found = only(check, await look(target))
    assert found.level == level and evidence in found.evidence and found.fix
    words = found.fix.partition(",")[0].split()
    if words[:2] == ["CONFIG", "SET"]:
        target.command(*words)
        assert of(check, await look(target)) == []
        target.command("CONFIG", "SET", name, value)
    if found.repair is not None:
        done = await repair(found)
        assert done.after is not None and done.before != done.after, done
        assert "written into its configuration file" in done.said
        assert of(check, await look(target)) == []
        # A value that is the default is left out of the file.
        assert f"{name} {value}" not in (target.data / "server.conf").read_text()


@provokes(server.EXPOSED, server.ACL)
async def test_wide_bind(own_server: OwnServer) -> None:
    """Every interface, no password and no protection together are critical."""
    target = own_server("valkey-9.1", **SOUND)
    target.command("CONFIG", "SET", "bind", "* -::*")
    (found,) = of(server.EXPOSED, await look(target))
    assert found.level == "warning" and "every interface" in found.evidence
    assert only(server.ACL, await look(target)).level == "warning"
    target.command("CONFIG", "SET", "protected-mode", "no")
    assert {each.level for each in of(server.EXPOSED, await look(target))} == {
        "critical",
        "warning",
    }
    target.command("ACL", "SETUSER", "default", "resetpass", ">secret")
    async with Server(target.url.replace("//", "//:secret@")) as opened:
        facts = await read_server(opened, "standpipe")
    levels = {each.level for each in of(server.EXPOSED, check_server(facts, None))}
    assert levels == {"warning"}
    target.user = ("default", "secret")
    target.command("ACL", "SETUSER", "operator", "on", ">secret", "~*", "&*", "+@all")
    target.user = ("operator", "secret")
    target.command("ACL", "SETUSER", "default", "off")
    target.command("CONFIG", "SET", "bind", "127.0.0.1")
    target.command("CONFIG", "SET", "protected-mode", "yes")
    async with Server(target.url.replace("//", "//operator:secret@")) as opened:
        findings = list(check_server(await read_server(opened, "standpipe"), None))
    assert of(server.ACL, findings) == of(server.EXPOSED, findings) == []


@provokes(server.MEMORY, server.EVICTION)
async def test_memory_used(own_server: OwnServer, server_name: str) -> None:
    """Memory that is nearly full is told before the server refuses; evicted keys are losses."""
    target = own_server(server_name, **SOUND)
    # So much that a connection more or less is nothing.
    target.command("SET", "filling", b"x" * 50_000_000)
    used = int(target.info("memory")["used_memory"])
    target.command("CONFIG", "SET", "maxmemory", int(used * 1.12))
    assert only(server.MEMORY, await look(target)).level == "warning"
    target.command("CONFIG", "SET", "maxmemory", int(used * 1.02))
    assert only(server.MEMORY, await look(target)).level == "critical"
    target.command("CONFIG", "SET", "maxmemory", int(used * 1.5))
    assert of(server.MEMORY, await look(target)) == []
    target.command("CONFIG", "SET", "maxmemory", "0")
    for number in range(50):
        target.command("SET", f"key{number}", "x" * 10_000)
    target.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    target.command("CONFIG", "SET", "maxmemory", used + 100_000)
    target.command("SET", "one", "more")
    texts = [each.evidence for each in of(server.EVICTION, await look(target))]
    assert any("keys were evicted" in text for text in texts), texts
    target.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    target.command("CONFIG", "RESETSTAT")
    assert of(server.EVICTION, await look(target)) == []


@provokes(server.VERSION)
async def test_version(server_name: str, own_server: OwnServer) -> None:
    """The faults of the very version that runs are named."""
    target = own_server(server_name)
    (named, *_) = of(server.VERSION, await look(target))
    assert target.version in named.evidence
    if server_name == "redis-6.2":
        assert "CVE-2025-49844" in named.evidence
    facts = await read(target.url)
    facts.info = facts.info | {"redis_version": "6.0.16"}
    facts.info.pop("valkey_version", None)
    assert only(server.VERSION, check_server(facts, None)).level == "critical"
    facts.info = facts.info | {"redis_version": "unknown"}
    assert "tells no version" in only(server.VERSION, check_server(facts, None)).evidence


async def test_old_line(own_server: OwnServer) -> None:
    """A line whose makers mend it no more is a note, beside the faults that they left in it."""
    facts = await read(own_server("redis-7.0").url)
    levels = {each.level: each.evidence for each in of(server.VERSION, check_server(facts, None))}
    assert "its makers mend this line no more" in levels["note"]
    assert "CVE-2025-49844" in levels["warning"]


@provokes(server.RIGHTS)
async def test_rights(own_server: OwnServer, server_name: str) -> None:
    """What the user may not ask is said, and the rest is looked at all the same."""
    target = own_server(server_name)
    rules = ("on", "nopass", "~*", "+@all", "-config", "-acl", "-slowlog")
    target.command("ACL", "SETUSER", "watcher", *rules)
    async with Server(target.url.replace("//", "//watcher:x@")) as opened:
        facts = await read_server(opened, "standpipe")
    findings = list(check_server(facts, None))
    evidence = only(server.RIGHTS, findings).evidence
    assert evidence == "this user may not use CONFIG GET, SLOWLOG GET, ACL GETUSER"
    assert only(server.MEMORY, findings).level == "warning"
    assert of(server.RIGHTS, await look(target)) == []


@provokes(server.DISK_ERROR)
async def test_failed_snapshot(own_server: OwnServer, tmp_path: Path) -> None:
    """A snapshot that could not be written is critical, with what to look at; after one that
    could it is gone."""
    target = own_server("redis-7.0", **SOUND | {"enable-protected-configs": "yes"})
    gone = tmp_path / "gone"
    gone.mkdir()
    target.command("CONFIG", "SET", "dir", str(gone))
    gone.rmdir()
    target.command("BGSAVE")
    await eventually(
        lambda: target.info("persistence")["rdb_last_bgsave_status"] == "err", what="it failed"
    )
    found = only(server.DISK_ERROR, await look(target))
    assert found.level == "critical" and "dbfilename = 'dump.rdb'" in found.evidence
    target.command("CONFIG", "SET", "dir", str(target.data))
    target.command("BGSAVE")
    await eventually(
        lambda: target.info("persistence")["rdb_last_bgsave_status"] == "ok", what="it was saved"
    )
    assert of(server.DISK_ERROR, await look(target)) == []


@provokes(server.FSYNC)
async def test_delayed_fsync(own_server: OwnServer) -> None:
    """Writes that had to wait for a slow disk since the last look are told."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    target = own_server("redis-7.0", **SOUND)
    before = await read(target.url)
    slow = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]
    inject = ["-e", "inject=fsync,fdatasync:delay_enter=4s", "-p", str(target.pid)]
    tracer = subprocess.Popen([*slow, *inject], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:

        def has_waited() -> bool:
            if tracer.poll() is not None:
                pytest.skip("strace may not trace here")
            target.command("SET", "k", "v")
            return target.info("persistence")["aof_delayed_fsync"] != "0"

        await eventually(has_waited, 60, what="a write waited for fsync")
    finally:
        tracer.terminate()
        tracer.wait()
    texts = [each.evidence for each in of(server.FSYNC, await look(target, before))]
    assert any("waited for an fsync" in text for text in texts)


@provokes(server.AOF_SIZE)
async def test_aof_size(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An AOF that has grown far beyond its last rewrite is told, and well again after the next."""
    monkeypatch.setattr(server, "AOF_GROWTH_BYTES_MIN", 1_000_000)
    target = own_server("valkey-9.1", **SOUND, **{"auto-aof-rewrite-min-size": "1gb"})
    # Many times what it was, and still small.
    target.command("SET", "same", b"x" * 100_000)
    assert of(server.AOF_SIZE, await look(target)) == []
    for _ in range(20):
        target.command("SET", "same", b"x" * 100_000)
    assert only(server.AOF_SIZE, await look(target)).level == "warning"
    target.command("BGREWRITEAOF")

    async def is_well() -> bool:
        return of(server.AOF_SIZE, await look(target)) == []

    await eventually(is_well, what="it is written anew")
    # Large, and not much larger than it was.
    target.command("SET", "large", os.urandom(2_000_000))
    target.command("BGREWRITEAOF")
    await eventually(
        lambda: int(target.info("persistence")["aof_base_size"]) > 2_000_000, what="as it is now"
    )
    target.command("SET", "same", b"x" * 1_000_000)
    assert of(server.AOF_SIZE, await look(target)) == []


@provokes(server.DANGEROUS)
@pytest.mark.parametrize(
    "option", ["enable-debug-command", "enable-module-command", "enable-protected-configs"]
)
async def test_dangerous(own_server: OwnServer, option: str) -> None:
    """Each option that lets clients run or write anything is told, until the server starts again
    without it."""
    target = own_server("valkey-9.1", **SOUND | {option: "yes"})
    found = only(server.DANGEROUS, await look(target))
    assert option in found.evidence and f"`{option} no`" in found.fix
    target.restart(**{option: "no"})
    assert of(server.DANGEROUS, await look(target)) == []


@provokes(server.SLOW)
async def test_slow_commands(own_server: OwnServer, server_name: str) -> None:
    """Slow commands since the last look are counted, and the slowest is shown; older ones not."""
    target = own_server(server_name, **SOUND, **{"slowlog-log-slower-than": "20000"})
    target.command("EVAL", SPIN, "0", "10000000")
    before = await read(target.url)
    assert of(server.SLOW, await look(target, before)) == []
    target.command("EVAL", SPIN, "0", "20000000")
    found = only(server.SLOW, await look(target, before))
    assert found.evidence.startswith("1 since the last look") and "EVAL" in found.evidence


@provokes(server.LATENCY)
async def test_latency_event(own_server: OwnServer, server_name: str) -> None:
    """What the latency monitor has seen within the hour is told."""
    target = own_server(server_name, **SOUND)
    target.command("EVAL", SPIN, "0", "50000000")
    found = of(server.LATENCY, await look(target))
    assert any("command" in each.evidence for each in found), found
    target.command("CONFIG", "SET", "latency-monitor-threshold", 1)

    async def is_well() -> bool:
        target.command("LATENCY", "RESET")
        target.command("EVAL", SPIN, "0", "500000")
        return bool(target.command("LATENCY", "LATEST")) and not of(
            server.LATENCY, await look(target)
        )

    # A machine that is busy can make that long as well.
    await eventually(is_well, 30, what="only what is short was seen")


@provokes(server.CLIENTS)
async def test_clients(own_server: OwnServer, server_name: str) -> None:
    """Connections near their limit, those turned away, and a pause."""
    target = own_server(server_name, **SOUND, maxclients="5")
    before = await read(target.url)
    async with Server(target.url) as opened:
        await opened.call("PING", key="k")
        held = [await opened.link("k") for _ in range(4)]
        with pytest.raises(TooManyClientsError):
            await opened.link("k")
        facts = await read_server(opened, "standpipe")
        await opened.call("CONFIG", "SET", "maxclients", 100, key="k")
        for link in held:
            await link.close()
    found = of(server.CLIENTS, check_server(facts, before.counters()))
    texts = [each.evidence for each in found]
    assert any("of 5 connections" in text for text in texts), texts
    assert any("turned away since the last look" in text for text in texts), texts
    assert of(server.CLIENTS, await look(target, facts)) == []


@provokes(server.CLIENTS)
async def test_paused(own_server: OwnServer) -> None:
    target = own_server("valkey-9.1", **SOUND)
    target.command("CLIENT", "PAUSE", "60000", "WRITE")
    assert "CLIENT PAUSE: write" in only(server.CLIENTS, await look(target)).evidence
    target.command("CLIENT", "UNPAUSE")
    assert of(server.CLIENTS, await look(target)) == []


@provokes(server.REPLICATION)
async def test_replication(
    sentinel: Callable[..., TestSentinel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica is told as such, a dead link is critical, and a replica that is silent or far
    behind is named."""
    both = sentinel("valkey-9.1", **SOUND)
    assert of(server.REPLICATION, await look(both.primary)) == []
    await eventually(
        lambda: both.replica.info("replication")["master_link_status"] == "up",
        what="the link is up",
    )
    assert "this is a replica" in only(server.REPLICATION, await look(both.replica)).evidence
    monkeypatch.setattr(server, "REPLICA_SILENT_S_MAX", 2)
    both.replica.stop()

    async def is_silent() -> bool:
        found = of(server.REPLICATION, await look(both.primary))
        return any("was silent for" in each.evidence for each in found)

    try:
        await eventually(is_silent, 30, what="the primary misses its replica")
        monkeypatch.setattr(server, "REPLICA_SILENT_S_MAX", 1_000)
        monkeypatch.setattr(server, "REPLICA_LAG_BYTES_MAX", 1_000_000)
        assert of(server.REPLICATION, await look(both.primary)) == []
        both.primary.command("SET", "much", b"x" * 1_000_000)
        found = only(server.REPLICATION, await look(both.primary))
        assert re.search(r"is 1,0\d\d,\d{3} bytes behind", found.evidence), found.evidence
    finally:
        both.replica.cont()

    async def is_heard() -> bool:
        return of(server.REPLICATION, await look(both.primary)) == []

    await eventually(is_heard, 30, what="the replica is back")
    both.sentinel.kill()
    both.primary.kill()
    await eventually(
        lambda: both.replica.info("replication")["master_link_status"] == "down",
        what="the link is down",
    )
    levels = [each.level for each in of(server.REPLICATION, await look(both.replica))]
    assert levels == ["critical", "critical"]


@provokes(server.CLUSTER)
async def test_cluster(cluster: Callable[..., TestCluster]) -> None:
    """Each node of a cluster is looked at; one that is gone is critical on the others, and in
    their log."""
    three = cluster("valkey-9.1", **SOUND, loglevel="notice")
    async with Server(three.url) as opened:
        urls = await node_urls(opened, "standpipe")
    assert {url.rpartition(":")[2] for url in urls} == {str(node.port) for node in three.nodes}
    assert of(server.CLUSTER, await look(three.nodes[0])) == []
    three.nodes[2].kill()

    async def is_found() -> list[Finding]:
        return of(server.CLUSTER, await look(three.nodes[0]))

    (found,) = await eventually(is_found, 30, what="the cluster is down")
    assert found.level == "critical" and "slots served" in found.evidence

    def is_logged() -> bool:
        lines = [each.evidence for each in check_log(three.nodes[0].data / "server.log")]
        return any(each.startswith("slots of the cluster were not served") for each in lines)

    await eventually(is_logged, 30, what="its log says so")
    three.nodes[2].restart()

    async def is_well() -> bool:
        return of(server.CLUSTER, await look(three.nodes[0])) == []

    await eventually(is_well, 30, what="the node is back")


@provokes(server.CLOCK)
async def test_clock(own_server: OwnServer, server_name: str, tmp_path: Path) -> None:
    """A server whose clock is off is told by how much, until its clock is set."""
    sight = Sight(tmp_path)
    target = own_server(server_name, inside=sight.inside, **SOUND)
    assert of(server.CLOCK, await look(target)) == []
    sight.move_clock(-61_000)
    told = only(server.CLOCK, await look(target)).evidence
    found = re.search(r"([-+][\d,]+) ms", told)
    # A machine that is busy answers late.
    assert found and -61_500 < int(found[1].replace(",", "")) < -60_500, told
    sight.move_clock(0)
    assert of(server.CLOCK, await look(target)) == []


@provokes(server.CPU)
async def test_busy_server(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A main thread that is busy all the time is told; an idle one is not."""
    target = own_server("valkey-9.1", **SOUND)
    async with Server(target.url) as opened:
        idle = await measure_cpu(opened, "k", 300)
    assert idle is not None and idle < 50
    facts = await read(target.url)
    facts.cpu_percent = idle
    assert of(server.CPU, check_server(facts, None)) == []

    async with Server(target.url) as opened, Server(target.url) as busy:

        async def keep_busy() -> None:
            while True:
                await busy.call("EVAL", SPIN, 0, "2000000", key="k")

        work = asyncio.create_task(keep_busy())
        # A machine that is shared need not give it a whole core: half of one shows the same.
        monkeypatch.setattr(server, "SERVER_CPU_PERCENT_MAX", 50)

        async def is_busy() -> float:
            percent = await measure_cpu(opened, "k", 1_000) or 0
            return percent if percent >= 50 else 0

        percent = await eventually(is_busy, 60, what="the server gets half a core")
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    facts.cpu_percent = percent
    assert only(server.CPU, check_server(facts, None)).level == "warning"


@provokes(server.CONFIG_FILE)
async def test_config_mode(own_server: OwnServer, server_name: str) -> None:
    """A configuration that every user can read is told, and --fix closes it."""
    target = own_server(server_name, **SOUND)
    path = target.data / "server.conf"
    path.chmod(0o644)
    found = only(server.CONFIG_FILE, await look(target))
    assert "mode 0644" in found.evidence
    assert (await repair(found)).after == "0600"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert of(server.CONFIG_FILE, await look(target)) == []


@provokes(server.TLS)
async def test_no_tls(tmp_path: Path) -> None:
    """A server on another machine that speaks without TLS is told; one with it is not."""
    require_network()
    with Network() as network:
        away = network.server("redis-7.0", tmp_path / "away", appendonly="yes")
        found = only(server.TLS, await look(away))
        assert "another machine" in found.evidence
        assert of(server.ACL, await look(away))[0].level == "warning"
        away.kill()
        files = make_certificates(tmp_path / "certificates", address=network.host)
        away = network.server("redis-7.0", tmp_path / "tls", files, appendonly="yes")
        assert of(server.TLS, await look(away)) == []


@provokes(CERTIFICATE)
async def test_certificate(tls_server: OwnServer, tmp_path: Path) -> None:
    """A certificate that ends soon is told, of the server as of the client, the sooner the more
    gravely; a new one is not."""
    target = tls_server(**SOUND)
    files = target.certificates
    assert files is not None
    url = f"{target.url}&ssl_certfile={files.client}&ssl_keyfile={files.client_key}"
    ours, theirs = await check_certificate(url, "s")
    assert "client certificate" in ours.place and theirs.place == "s"
    assert ours.level == theirs.level == "critical" and "ends in 1 days" in theirs.evidence
    for days, levels in ((20, ["warning"]), (365, [])):
        new = make_certificates(tmp_path / str(days), days=days)
        pairs = {"ca-cert": new.ca, "cert": new.server, "key": new.server_key}
        words = [word for name, path in pairs.items() for word in (f"tls-{name}-file", str(path))]
        target.command("CONFIG", "SET", *words)
        target.certificates = new
        assert [each.level for each in await check_certificate(target.url, "s")] == levels
    assert await check_certificate("redis://127.0.0.1:1", "s") == []
    assert "handshake failed" in (
        (await check_certificate(f"rediss://127.0.0.1:{free_port()}", "s"))[0].evidence
    )


@provokes(client.PROTOCOL)
async def test_protocol(own_server: OwnServer) -> None:
    """A connection over RESP2 is told, and all is read over it that is read over RESP3."""
    url = own_server("redis-6.2").url
    facts = await read(url)
    assert facts.protocol == 3 and of(client.PROTOCOL, check_client([facts])) == []
    older = await read(f"{url}?protocol=2")
    assert "RESP2" in only(client.PROTOCOL, check_client([older])).evidence
    assert older.config == facts.config and older.default_user == facts.default_user


# --- the disk ------------------------------------------------------------------------------------


@provokes(machine.DISK_FULL)
def test_full_disk(tmp_path: Path) -> None:
    """A disk that fills is told by how far it is full, and is well again when it is not."""
    with mounted_disk(tmp_path / "disk", 16) as disk:
        # In memory, so it is quick as well.
        assert list(check_disk(disk)) == []
        (disk / "most").write_bytes(b"\0" * (14 << 20))
        assert only(machine.DISK_FULL, check_disk(disk)).level == "warning"
        ballast = fill(disk)
        assert only(machine.DISK_FULL, check_disk(disk)).level == "critical"
        ballast.unlink()
        (disk / "most").unlink()
        assert of(machine.DISK_FULL, check_disk(disk)) == []
        assert list(disk.iterdir()) == []


@provokes(machine.DISK_SPEED)
def test_slow_disk(tmp_path: Path) -> None:
    """A disk that takes long for a small write is told: fsync is delayed by 60 ms, for real."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = (
        "import sys; from pathlib import Path; from standpipe.doctor.machine import check_disk\n"
        "print([f.evidence for f in check_disk(Path(sys.argv[1]))])"
    )
    slow = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fsync"]
    inject = ["-e", "inject=fsync:delay_enter=60000", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        [*slow, *inject], capture_output=True, text=True, check=False, env=os.environ
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert "fsync of 4 KiB takes" in done.stdout, done


# --- all together --------------------------------------------------------------------------------


@provokes(REACHED, HISTORY)
async def test_unreachable(own_server: OwnServer, tmp_path: Path) -> None:
    """A server that is not there is critical, and the machine is looked at all the same; notes of
    the last look that cannot be kept are one more finding. Both are gone when that is mended."""
    (tmp_path / "file").touch()
    report = await examine(
        f"redis://127.0.0.1:{free_port()}", window_ms=10, state=tmp_path / "file" / "state.json"
    )
    assert report.is_critical and report.findings[0].check is REACHED
    assert report.servers == [] and report.is_first_look
    history = only(HISTORY, report.findings)
    assert history.level == "note" and "cannot write" in history.evidence
    target = own_server("valkey-9.1", **SOUND)
    report = await examine(target.url, window_ms=10, state=tmp_path / "state.json")
    assert of(REACHED, report.findings) == of(HISTORY, report.findings) == []
    assert report.servers == [target.url] and (tmp_path / "state.json").exists()
