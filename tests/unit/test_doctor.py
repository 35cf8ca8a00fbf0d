"""What the doctor reads is judged right: machine, log, versions, trends, codes of errors."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from standpipe import errors
from standpipe.doctor import client, logfile, machine
from standpipe.doctor.advisories import ADVISORIES, MAINTAINED, advisories_for, parse_version
from standpipe.doctor.client import check_conflicts
from standpipe.doctor.explain import EXPLANATIONS, explain
from standpipe.doctor.finding import Chmod, Finding, KernelSet
from standpipe.doctor.history import History, grown
from standpipe.doctor.logfile import check_log
from standpipe.doctor.machine import LocalServer, Machine, check_machine
from standpipe.doctor.repair import repair
from standpipe.doctor.run import HISTORY
from standpipe.doctor.streams import stream_name
from standpipe.keyspace import shard_keys, side_key
from standpipe.wire.replies import _BY_CODE  # pyright: ignore[reportPrivateUsage]
from tests.doctoring import of, only, provokes

GOOD = {
    "proc/sys/kernel/osrelease": "6.1.0-41-amd64",
    "proc/sys/kernel/random/boot_id": "b1",
    "proc/sys/vm/overcommit_memory": "1",
    "proc/sys/net/core/somaxconn": "65535",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/class/net/eth0/operstate": "up",
    "sys/class/net/eth0/mtu": "1500",
    "sys/class/net/eth0/statistics/rx_packets": "1000000",
    "sys/class/net/eth0/statistics/tx_packets": "1000000",
    "sys/class/net/eth0/statistics/rx_errors": "7",
    "sys/class/net/eth0/statistics/tx_errors": "0",
    "sys/class/net/eth0/statistics/rx_dropped": "0",
    "sys/class/net/eth0/statistics/tx_dropped": "0",
    "sys/class/net/eth1/operstate": "down",
    "sys/class/net/eth1/mtu": "500",
    "sys/class/net/lo/operstate": "unknown",
    "sys/class/net/lo/mtu": "65536",
    "proc/net/snmp": "Tcp: OutSegs RetransSegs\nTcp: 1000000 9000",
    "proc/net/netstat": "TcpExt: ListenOverflows ListenDrops\nTcpExt: 5 5\nIpExt: A\nIpExt: 1",
    "proc/77/status": "Name: redis-server\nVmSwap:\t       0 kB\n",
    "proc/77/limits": "Limit\nMax open files            65535                65535      files\n",
}
SERVER = LocalServer(pid=77, folder=None, tcp_backlog=4096, clients_max=10_000)


def lay_out(root: Path, **changed: str) -> Machine:
    """A machine below a folder, without fault but for what is changed."""
    for path, text in {**GOOD, **changed}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return Machine(root)


def look(root: Path, **changed: str) -> list[Finding]:
    before = lay_out(root).counters()
    return list(check_machine(lay_out(root, **changed), [SERVER], before))


def test_good_machine(tmp_path: Path) -> None:
    """A machine that is set up as the manual says has no findings: neither its loopback's MTU nor
    counters that stand still, nor an interface that is down."""
    assert look(tmp_path) == []


@pytest.mark.parametrize(
    ("check", "path", "bad", "evidence"),
    [
        (machine.KERNEL, "proc/sys/kernel/osrelease", "4.19.0-27-amd64", "Linux 4.19.0-27-amd64"),
        (machine.OVERCOMMIT, "proc/sys/vm/overcommit_memory", "0", "vm.overcommit_memory = 0"),
        (machine.BACKLOG, "proc/sys/net/core/somaxconn", "128", "somaxconn = 128"),
        (
            machine.HUGE_PAGES,
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            "[always]",
        ),
        (machine.SWAP, "proc/77/status", "VmSwap:\t  2048 kB", "VmSwap: 2048 kB"),
        (machine.FILES, "proc/77/limits", "Max open files  1024  1024 files", "1024, maxclients"),
        (machine.MTU, "sys/class/net/eth0/mtu", "1400", "eth0 has MTU 1400"),
        (machine.MTU, "sys/class/net/eth0/mtu", "9216", "eth0 has MTU 9216"),
        (
            machine.INTERFACE,
            "sys/class/net/eth0/statistics/rx_dropped",
            "300",
            "eth0: rx_dropped 300 of 0 packets",
        ),
        (
            machine.RETRANSMISSIONS,
            "proc/net/snmp",
            "Tcp: OutSegs RetransSegs\nTcp: 1002000 9100",
            "100 of 2000 TCP segments",
        ),
        (
            machine.LISTEN,
            "proc/net/netstat",
            "TcpExt: ListenOverflows ListenDrops\nTcpExt: 9 9",
            "4 connections dropped",
        ),
    ],
)
@provokes(
    machine.KERNEL, machine.OVERCOMMIT, machine.BACKLOG, machine.HUGE_PAGES, machine.SWAP,
    machine.FILES, machine.MTU, machine.INTERFACE, machine.RETRANSMISSIONS, machine.LISTEN,
)  # fmt: skip
def test_bad_machine(
    tmp_path: Path, check: machine.Check, path: str, bad: str, evidence: str
) -> None:
    """Each value that is wrong is one finding, with what was read; the others stay quiet."""
    findings = look(tmp_path, **{path: bad})
    found = only(check, findings)
    assert len(findings) == 1
    assert evidence in found.evidence and found.level == "warning" and found.fix


def test_nothing_to_compare(tmp_path: Path) -> None:
    """At the first look counters say nothing: they may have grown in years."""
    bad = lay_out(tmp_path, **{"sys/class/net/eth0/statistics/rx_errors": "999999"})
    assert list(check_machine(bad, [SERVER], None)) == []


def test_unreadable_machine(tmp_path: Path) -> None:
    """What a container does not show is no finding."""
    assert list(check_machine(Machine(tmp_path), [SERVER], {})) == []


async def test_kernel_repair(tmp_path: Path) -> None:
    """--fix writes the value, and says what was there; what it may not write it says as well."""
    lay_out(tmp_path, **{"proc/sys/vm/overcommit_memory": "0"})
    path = tmp_path / "proc/sys/vm/overcommit_memory"
    finding = only(machine.OVERCOMMIT, look(tmp_path, **{"proc/sys/vm/overcommit_memory": "0"}))
    assert finding.repair == KernelSet("/proc/sys/vm/overcommit_memory", "1")
    done = await repair(finding._replace(repair=KernelSet(str(path), "1")))
    assert (done.before, done.after) == ("0", "1")
    assert look(tmp_path, **{"proc/sys/vm/overcommit_memory": path.read_text()}) == []
    not_done = await repair(finding._replace(repair=KernelSet(str(tmp_path), "1")))
    assert not_done.after is None and "Is a directory" in not_done.said


async def test_mode_repair(tmp_path: Path) -> None:
    path = tmp_path / "redis.conf"
    path.touch(mode=0o644)
    path.chmod(0o644)
    finding = Finding(machine.KERNEL, "warning", "", "", "", Chmod(str(path), 0o600))
    done = await repair(finding)
    assert (done.before, done.after) == ("0644", "0600")
    assert path.stat().st_mode & 0o777 == 0o600


# --- the last look -------------------------------------------------------------------------------


def test_history(tmp_path: Path) -> None:
    """Counters of the last look are there at the next one, those of others stay, and a counter that
    fell has begun anew."""
    path = tmp_path / "state" / "doctor.json"
    first = History(path)
    assert first.before("a") is None
    first.remember("a", {"drops": 5})
    first.write()
    second = History(path)
    assert second.before("a") == {"drops": 5}
    second.remember("b", {"drops": 1})
    second.write()
    assert History(path).before("a") == {"drops": 5}
    assert grown({"drops": 5, "gone": 1}, {"drops": 7, "new": 3}) == {"drops": 2}
    assert grown({"drops": 5}, {"drops": 2}) == {"drops": 2}


@provokes(HISTORY)
def test_history_unusable(tmp_path: Path) -> None:
    """A past that cannot be read or kept is said, and stops nothing."""
    path = tmp_path / "doctor.json"
    path.write_text("{ cut off")
    damaged = History(path)
    assert damaged.fault is not None and "cannot read" in damaged.fault
    assert damaged.before("a") is None
    (tmp_path / "file").touch()
    unkept = History(tmp_path / "file" / "doctor.json")
    unkept.write()
    assert unkept.fault is not None and "cannot" in unkept.fault


# --- versions ------------------------------------------------------------------------------------


def names(product: str, version: str) -> set[str]:
    found = advisories_for(product, parse_version(version))  # pyright: ignore[reportArgumentType]
    return {each.name for each, _ in found}


def test_versions() -> None:
    """A version has the faults that its line has mended later, and those its line never mended."""
    assert "CVE-2025-62507" in names("redis", "8.2.2")
    assert "CVE-2025-62507" not in names("redis", "8.2.3")
    assert "CVE-2025-62507" not in names("redis", "7.4.1")  # XACKDEL came with 8.2
    assert "CVE-2022-35951" in names("redis", "7.0.4")
    assert "CVE-2022-35951" not in names("redis", "7.0.15")
    # 7.0 got no mend of 2025 from its makers; 7.4.6 did.
    assert "CVE-2025-49844" in names("redis", "7.0.15")
    assert "CVE-2025-49844" not in names("redis", "7.4.6")
    assert names("redis", "8.10.1") == set()
    assert names("valkey", "9.1.2") == {"GHSA-f4q9-j22m-xqq9"}
    assert names("valkey", "9.1.3") == set()
    # A line of the future was cut from sources that have the mends.
    assert names("valkey", "10.0.0") == set() and names("redis", "9.0.0") == set()
    with pytest.raises(ValueError, match="no version"):
        parse_version("unknown")


def test_no_maintained_line_is_left_out() -> None:
    """A fault names the mend of every maintained line that can have it: else a version of that line
    would be called clean, or never mended, by an oversight."""
    for each in ADVISORIES:
        span = {
            line for line in MAINTAINED[each.product] if each.since[:2] <= line <= max(each.mended)
        }
        assert span - set(each.mended) == set(), each.name
    assert "CVE-2026-23479" in names("redis", "7.2.13")
    assert "CVE-2026-23479" not in names("redis", "7.2.14")


def test_newest_of_each_line_is_clean() -> None:
    """What the advice says to install has none of the faults."""
    for product, lines in MAINTAINED.items():
        for line in lines:
            ends = [a.mended[line] for a in ADVISORIES if a.product == product and line in a.mended]
            if ends:
                newest = max(ends)
                assert advisories_for(product, newest) == [], (product, newest)


# --- which key is which stream's -----------------------------------------------------------------


def test_stream_names() -> None:
    """Shards belong to their stream; what stands beside them is no stream of its own."""
    assert {stream_name(key) for key in shard_keys("grid", 4)} == {"grid"}
    assert stream_name("power_grid_stream") == "power_grid_stream"
    assert stream_name("plant:{a}") == "plant:{a}"
    for key in (*shard_keys("grid", 4), "power_grid_stream"):
        assert stream_name(side_key(key, "dead")) is None


# --- the log -------------------------------------------------------------------------------------

LOG = """\
101:C 24 Nov 2026 14:00:00.001 # oO0OoO0OoO0Oo Redis is starting oO0OoO0OoO0Oo
101:M 24 Nov 2026 14:00:00.010 # WARNING: The TCP backlog setting of 511 cannot be enforced because\
 /proc/sys/net/core/somaxconn is set to 128.
101:M 24 Nov 2026 14:00:00.011 * Ready to accept connections
101:M 24 Nov 2026 15:10:00.000 * 10000 changes in 60 seconds. Saving...
102:C 24 Nov 2026 15:10:00.100 # Failed opening the temp RDB file temp-102.rdb (in server root dir \
/nowhere) for saving: Permission denied
101:M 24 Nov 2026 15:10:00.200 # Background saving error
101:M 24 Nov 2026 15:10:06.200 # Background saving error
101:M 24 Nov 2026 16:00:00.000 * Asynchronous AOF fsync is taking too long (disk is busy?). Writing\
 the AOF buffer without waiting for fsync to complete, this may slow down Redis.
"""


@provokes(logfile.LOG)
def test_log(tmp_path: Path) -> None:
    """Each kind of trouble is one finding: how often, the first and the last line, its time and its
    meaning; lines without trouble are none."""
    path = tmp_path / "redis-server.log"
    path.write_text(LOG)
    backlog, saving, fsync = check_log(path)
    assert backlog.level == "warning" and "once, last in line 2" in backlog.evidence
    assert saving.level == "critical" and "MISCONF" in saving.evidence
    assert "3 times, first in line 5 (24 Nov 2026 15:10:00.100)" in saving.evidence
    assert "last in line 7 (24 Nov 2026 15:10:06.200)" in saving.evidence
    assert fsync.level == "warning" and "the disk did not keep up" in fsync.evidence
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        list(check_log(tmp_path / "none"))


# --- the client ----------------------------------------------------------------------------------


@provokes(client.CONFLICTS)
def test_conflicts(tmp_path: Path) -> None:
    """`pip check` of an environment in which a package asks for another version, for real."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    assert list(check_conflicts(str(python))) == []
    (site,) = (tmp_path / "v").glob("lib/python*/site-packages")
    for name, needs in (("telemetry", "Requires-Dist: redis>=99\n"), ("redis", "")):
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir()
        meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
        (folder / "METADATA").write_text(meta)
        (folder / "RECORD").touch()
    found = only(client.CONFLICTS, check_conflicts(str(python)))
    assert found.level == "warning" and "redis>=99" in found.evidence


@provokes(client.LIBRARIES)
def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old or missing library is named, with the version that is needed."""
    assert of(client.LIBRARIES, client.check_client([])) == []
    old = {"redis": "4.6.0", "hiredis": "3.3.0"}
    monkeypatch.setattr(client, "version", old.__getitem__)
    found = only(client.LIBRARIES, client.check_client([]))
    assert "redis is 4.6.0" in found.evidence and "pip install 'redis>=" in found.fix


def test_library_versions() -> None:
    """What the doctor asks for is what the package asks for."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    redis, hiredis = client._REDIS_PY_MIN, client._HIREDIS_MIN  # pyright: ignore[reportPrivateUsage]
    assert f'"redis[hiredis]>={redis[0]}.{redis[1]}"' in text
    wanted = next(each for each in requires("redis") or [] if each.startswith("hiredis"))
    assert wanted.startswith(f"hiredis>={'.'.join(map(str, hiredis))}")


# --- explain -------------------------------------------------------------------------------------


def test_every_code_is_explained() -> None:
    """Each code that the wire translates has its explanation, and names the class it becomes."""
    for code, kind in _BY_CODE.items():
        assert EXPLANATIONS[code].error == kind.__name__
    for code, each in EXPLANATIONS.items():
        assert issubclass(getattr(errors, each.error), errors.ServerError | errors.StandpipeError)
        assert each.code == code and each.cause and each.check and each.cure


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("misconf", "MISCONF"),
        ("-OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        ("ServerFullError", "OOM"),
        ("101:M 24 Nov 2026 15:10:00.200 # Background saving error", "MISCONF"),
        ("redis://h:1: [Errno 111] Connection refused", "REFUSED"),
        ("ERR max number of clients reached", "MAXCLIENTS"),
    ],
)
def test_explain(text: str, code: str) -> None:
    """A code is found in whatever a user has at hand."""
    assert explain(text).code == code


def test_explain_unknown() -> None:
    with pytest.raises(errors.ConfigError, match="no code") as caught:
        explain("MISCNF")
    assert "Did you mean MISCONF?" in caught.value.hint
