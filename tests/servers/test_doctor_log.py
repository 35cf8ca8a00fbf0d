"""What `standpipe doctor --log` makes of the logs of real servers that got into trouble."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from standpipe.doctor import Finding, logfile, server
from standpipe.doctor.logfile import check_log
from standpipe.doctor.reading import read_server
from standpipe.doctor.server import check_server
from standpipe.wire import Server
from tests.conditions import eventually, eventually_sync
from tests.doctoring import of, provokes
from tests.faults.disk import fill, mounted_disk
from tests.servers.fleet import Fleet, TestServer, require_server
from tests.servers.test_doctor_machine import limited

OwnServer = Callable[..., TestServer]

NOTICE = {"loglevel": "notice"}
"""As servers log that nobody told otherwise."""


def findings(target: TestServer, *, besides: str = "stopped on purpose") -> list[Finding]:
    """What is found in its log, but for what the test did on purpose."""
    found = check_log(target.data / "server.log")
    return [each for each in found if besides not in each.evidence]


def meant(target: TestServer, level: str, meaning: str) -> Finding:
    """The only finding of its log: of this level, with this meaning, a line and a time."""
    (found,) = findings(target)
    assert found.level == level and found.evidence.startswith(meaning), found
    place = re.search(r"last in line (\d+) \(\d\d? \w{3} \d{4} [\d:.]+\): (.*)", found.evidence)
    assert place, found.evidence
    assert place[2] in target.log.splitlines()[int(place[1]) - 1]
    return found


def starts(target: TestServer) -> bool:
    try:
        target.start()
    except AssertionError:
        return False
    return True


@provokes(logfile.LOG)
def test_failed_snapshot(own_server: OwnServer, server_name: str, tmp_path: Path) -> None:
    """A log without trouble has no finding; a snapshot that failed is critical, with both of its
    lines."""
    target = own_server(server_name, **NOTICE, save="3600 1")
    assert findings(target) == []
    gone = tmp_path / "gone"
    gone.mkdir()
    target.command("CONFIG", "SET", "dir", str(gone))
    gone.rmdir()
    target.command("BGSAVE")
    eventually_sync(
        lambda: target.info("persistence")["rdb_last_bgsave_status"] == "err", what="it failed"
    )
    found = meant(target, "critical", "no snapshot could be written")
    assert "2 times" in found.evidence and "explain MISCONF" in found.fix


def test_few_files(own_server: OwnServer, server_name: str) -> None:
    """maxclients that the server had to lower is told; one that it could keep is not."""
    few = own_server(server_name, inside=limited(500), **NOTICE)
    assert meant(few, "warning", "the open-file limit is too low").fix.startswith("LimitNOFILE")


def test_short_queue(own_server: OwnServer, server_name: str) -> None:
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    target = own_server(server_name, **NOTICE, tcp_backlog=str(allowed + 1))
    meant(target, "warning", "net.core.somaxconn is lower")


def test_stranger(own_server: OwnServer, server_name: str) -> None:
    """Something that speaks HTTP to the server is told."""
    target = own_server(server_name, **NOTICE)
    with socket.create_connection((target.host, target.port)) as browser:
        browser.sendall(b"POST / HTTP/1.1\r\nHost: queue\r\n\r\n")
        browser.settimeout(10)
        with contextlib.suppress(ConnectionError):
            while browser.recv(4096):
                pass
    meant(target, "critical", "something that speaks HTTP connected")


def test_crash(own_server: OwnServer, server_name: str) -> None:
    target = own_server(server_name, **NOTICE)
    with contextlib.suppress(redis.ConnectionError):
        target.command("DEBUG", "SEGFAULT")
    eventually_sync(lambda: not target.is_running, what="it has crashed")
    meant(target, "critical", "the server crashed")


def test_no_memory(own_server: OwnServer, server_name: str) -> None:
    """Memory that the machine does not give ends the server, and its log says so."""
    program = shutil.which("prlimit")
    if program is None:
        pytest.skip("program not installed: prlimit")
    target = own_server(server_name, inside=(program, "--as=400000000", "--"), **NOTICE)
    with pytest.raises(redis.ConnectionError):
        target.command("SETRANGE", "filling", 450_000_000, "x")
    eventually_sync(lambda: not target.is_running, what="it has ended")
    found = findings(target, besides="the server crashed")
    assert [each.level for each in found] == ["critical"]
    assert found[0].evidence.startswith("memory is full")


def test_damaged_files(own_server: OwnServer, server_name: str) -> None:
    """A cut at the end of the AOF is a warning; what cannot be read is critical."""
    target = own_server(server_name, **NOTICE, appendonly="yes")
    for number in range(20):
        target.command("SET", f"key{number}", "value" * 20)
    target.terminate()
    files = [path for path in target.data.rglob("*.aof") if "base" not in path.name]
    (written,) = files
    os.truncate(written, written.stat().st_size - 7)
    target.start()
    target.terminate()
    meant(target, "warning", "a power cut left half a command")
    (target.data / "server.log").unlink()
    damaged = bytearray(written.read_bytes())
    damaged[300:320] = b"?" * 20
    written.write_bytes(damaged)
    assert not starts(target)
    meant(target, "critical", "the data on disk cannot be read")


def test_damaged_snapshot(own_server: OwnServer, server_name: str) -> None:
    target = own_server(server_name, **NOTICE)
    target.command("SET", "key", "value")
    target.command("SAVE")
    target.terminate()
    snapshot = target.data / "dump.rdb"
    snapshot.write_bytes(b"DAMAGED" + snapshot.read_bytes()[7:])
    assert not starts(target)
    meant(target, "critical", "the data on disk cannot be read")


def test_stopped(own_server: OwnServer, server_name: str) -> None:
    """That somebody stopped it is worth knowing, where one looks for why it was gone."""
    target = own_server(server_name, **NOTICE)
    target.terminate()
    (found,) = findings(target, besides="no such words")
    assert found.level == "note" and "stopped on purpose" in found.evidence


def test_lost_replica(own_server: OwnServer, server_name: str) -> None:
    """A primary that has lost its replica says so, and a replica that has lost its primary."""
    primary = own_server(server_name, **NOTICE)
    link = {"replicaof": f"{primary.host} {primary.port}"}
    gone, replica = (own_server(server_name, **NOTICE, **link) for _ in range(2))
    for each in (gone, replica):
        eventually_sync(
            lambda each=each: each.info("replication")["master_link_status"] == "up",
            20,
            what="it follows",
        )
    assert findings(primary) == findings(replica) == []
    gone.kill()
    eventually_sync(
        lambda: primary.info("replication")["connected_slaves"] == "1", what="one is gone"
    )
    meant(primary, "warning", "replication broke off")
    primary.kill()
    eventually_sync(
        lambda: replica.info("replication")["master_link_status"] == "down", what="it is cut off"
    )
    meant(replica, "warning", "replication broke off")


def test_refused_fork(own_server: OwnServer) -> None:
    """A fork that the kernel refuses is told from a snapshot that failed for another reason."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    target = own_server("redis-7.0", **NOTICE)
    calls = ["-e", "trace=clone,fork", "-e", "inject=clone,fork:error=ENOMEM"]
    tracer = subprocess.Popen(
        ["strace", "-f", "-q", "-o", "/dev/null", *calls, "-p", str(target.pid)],
        stderr=subprocess.DEVNULL,
    )
    try:

        def is_refused() -> bool:
            if tracer.poll() is not None:
                pytest.skip("strace may not trace here")
            with contextlib.suppress(redis.ResponseError):
                target.command("BGSAVE")
            return "Can't save in background" in target.log

        eventually_sync(is_refused, 30, what="the fork is refused")
    finally:
        tracer.terminate()
        tracer.wait()
    found = next(each for each in findings(target) if "refused the fork" in each.evidence)
    assert found.level == "critical" and "vm.overcommit_memory=1" in found.fix


async def look(target: TestServer) -> list[Finding]:
    async with Server(target.url) as opened:
        return list(check_server(await read_server(opened, "standpipe"), None))


@pytest.mark.parametrize("name", ["redis-6.2", "redis-7.0", "valkey-9.1"])
async def test_full_disk_stops_the_aof(own_fleet: Fleet, tmp_path: Path, name: str) -> None:
    """An AOF that cannot be written, or not rewritten, is critical until there is room again."""
    require_server(name)
    with mounted_disk(tmp_path / "disk", 16) as disk:
        target = own_fleet._start(TestServer(name, disk / "data", NOTICE | {"appendonly": "yes"}))
        target.command("SET", "filling", os.urandom(3_000_000))
        ballast = fill(disk)

        def is_refused() -> bool:
            with contextlib.suppress(redis.ResponseError):
                target.command("SET", "more", b"x" * 100_000)
            return target.info("persistence")["aof_last_write_status"] == "err"

        await eventually(is_refused, 30, what="the AOF could not be written")
        # Later versions say so at once, 6.2 when the child has tried.
        with contextlib.suppress(redis.ResponseError):
            target.command("BGREWRITEAOF")
        await eventually(
            lambda: target.info("persistence")["aof_last_bgrewrite_status"] == "err",
            what="it could not be rewritten",
        )
        found = of(server.DISK_ERROR, await look(target))
        assert {each.evidence.partition(":")[0] for each in found} == {
            "aof_last_write_status",
            "aof_last_bgrewrite_status",
        }
        assert {each.level for each in found} == {"critical"}
        meant(target, "critical", "the AOF could not be written or rewritten")
        ballast.unlink()
        await eventually(
            lambda: target.info("persistence")["aof_last_write_status"] == "ok",
            what="the AOF is written again",
        )
        target.command("BGREWRITEAOF")

        async def is_well() -> bool:
            return of(server.DISK_ERROR, await look(target)) == []

        await eventually(is_well, what="it is rewritten")
        target.kill()
