"""A bundle written, put in place and compared: as the command line does it, below a root."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from standpipe.cli import app_with
from standpipe.errors import ConfigError, ProvisionError
from standpipe.server.provision import applying, bundle, keeping
from standpipe.server.provision.bundle import Secrets
from standpipe.server.provision.description import Description, complete, parse, read
from standpipe.server.provision.layout import File
from standpipe.server.provision.serverconf import plan_memory, said_version
from tests.servers.commands import ENV, run
from tests.servers.provisioned import described

DESCRIPTION = """
server = "redis-7.0"
memory = "16GiB"
cores = 8
bind = ["10.0.0.5"]

[[streams]]
name = "power_grid_stream"
groups = ["monitoring_group"]
"""
PASSWD = "root:x:0:0::/:/bin/sh\nredis:x:{uid}:{gid}::/:/bin/sh\nstandpipe:x:{uid}:{gid}::/:\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a description, and the root of a machine that has the users."""
    (tmp_path / "queue.toml").write_text(DESCRIPTION)
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    # Without root nobody's files are given away: then the machine's redis is who runs the test.
    uid, gid = (61_234, 61_235) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    (etc / "passwd").write_text(PASSWD.format(uid=uid, gid=gid))
    (etc / "group").write_text(f"redis:x:{gid}:\nstandpipe:x:{gid}:\n")
    return tmp_path


def command(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One `standpipe provision` in this process: a new one takes a second to begin."""
    paths = {"queue.toml", "bundle", "second", "root", "bundle/secrets", "bundle/description.toml"}
    given = [str(place / each) if each in paths else each for each in options]
    done = CliRunner().invoke(app_with(), ["provision", *given], catch_exceptions=False)
    return subprocess.CompletedProcess(given, done.exit_code, done.stdout, done.stderr)


def provision(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    usual = ("queue.toml", "--out", "bundle", "--root", "root", "--no-activate")
    return command(place, *usual, *options)


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every file with what a second run must not change."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid,
            path.stat().st_mtime_ns, path.stat().st_ino,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }  # fmt: skip


# --- writing, putting in place, comparing --------------------------------------------------------


def test_twice_is_once(place: Path) -> None:
    """Put in place, nothing differs; a second run touches no file, and makes no password anew."""
    first = provision(place, "--apply")
    assert first.returncode == 0, first.stderr
    before = snapshot(place)
    again = provision(place, "--apply")
    assert again.returncode == 0 and again.stdout.strip() == "nothing to change"
    assert snapshot(place) == before
    checked = provision(place, "--check")
    assert (checked.returncode, checked.stdout.strip()) == (0, "nothing differs")
    if os.geteuid() == 0:
        config = place / "root/etc/redis/redis.conf"
        assert (config.stat().st_uid, stat.S_IMODE(config.stat().st_mode)) == (61_234, 0o600)


def test_nothing_is_said_of_secrets(place: Path) -> None:
    """Passwords and private keys are in the output of no command, and readable for nobody else."""
    said = provision(place, "--apply").stdout + provision(place, "--check", "--json").stdout
    (place / "root/etc/redis/users.acl").write_text("user default on nopass\n")
    said += provision(place, "--check").stdout + provision(place, "--json").stdout
    description = complete(read(place / "queue.toml"))
    secrets = keeping.read_secrets(place / "bundle/secrets", description)
    assert len(secrets.passwords) == 7 and secrets.server is not None
    words = [*secrets.passwords.values(), *secrets.server.key.splitlines()[1:2]]
    assert not any(word in said for word in words)
    assert "***" in said
    for path in (place / "bundle/secrets").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((place / "bundle").stat().st_mode) == 0o700
    acl = (place / "root/etc/redis/users.acl").read_text()
    assert not any(word in acl for word in secrets.passwords.values())


def test_what_is_replaced_is_shown_and_kept(place: Path) -> None:
    """A file that stood there is shown before and after, and kept with its mode and owner."""
    config = place / "root/etc/redis/redis.conf"
    config.parent.mkdir()
    config.write_text("# ours\nprotected-mode no\n")
    config.chmod(0o640)
    done = provision(place, "--apply", "--json")
    facts = json.loads(done.stdout)
    change = next(c for c in facts["changes"] if c["path"] == "/etc/redis/redis.conf")
    assert change["change"] == "replace"
    assert "-protected-mode no\n" in change["diff"] and "+protected-mode yes\n" in change["diff"]
    assert facts["restart"] == ["redis-server"]
    kept = place / facts["backups"] / "etc/redis/redis.conf"
    assert kept.read_text() == "# ours\nprotected-mode no\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    # Only what is replaced is kept, and the second time nothing is.
    assert sum(path.is_file() for path in (place / facts["backups"]).rglob("*")) == 1
    assert json.loads(provision(place, "--apply", "--json").stdout)["backups"] is None


def test_check_names_what_differs(place: Path) -> None:
    """A changed line, a wrong mode and a file that is gone are each named; the exit code is 1, and
    nothing is written."""
    provision(place, "--apply")
    root = place / "root/etc"
    config = root / "redis/redis.conf"
    config.write_text(config.read_text().replace("appendonly yes", "appendonly no"))
    (root / "redis/users.acl").chmod(0o644)
    (root / "sysctl.d/90-standpipe.conf").unlink()
    before = snapshot(place)
    done = provision(place, "--check", "--json")
    assert done.returncode == 1
    found = {c["path"]: c for c in json.loads(done.stdout)["changes"]}
    assert {path: c["change"] for path, c in found.items()} == {
        "/etc/redis/redis.conf": "replace",
        "/etc/redis/users.acl": "attributes",
        "/etc/sysctl.d/90-standpipe.conf": "create",
    }
    assert found["/etc/redis/users.acl"]["attributes"] == ["mode 0644, not 0600"]
    assert "-appendonly no" in found["/etc/redis/redis.conf"]["diff"]
    assert snapshot(place) == before
    assert provision(place, "--apply").returncode == 0
    assert provision(place, "--check").returncode == 0


def test_what_is_the_operators_stays(place: Path) -> None:
    """A file that is the operator's to change is written once, and then left as it is."""
    provision(place, "--apply")
    own = place / "root/etc/standpipe/workers/power_grid_stream.monitoring_group.env"
    own.write_text('WORK="power_grid_stream --group monitoring_group grid:store"\n')
    assert provision(place, "--check").returncode == 0
    provision(place, "--apply")
    assert "grid:store" in own.read_text()


def test_a_link_does_not_lead_out(place: Path, tmp_path: Path) -> None:
    """Below another root nothing of this machine is written, whatever links lie there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / "root/etc/sysctl.d").symlink_to(outside)
    done = provision(place, "--apply")
    assert done.returncode == 1 and "leads out of" in done.stderr
    assert list(outside.iterdir()) == []


def test_a_run_that_failed_goes_on(place: Path) -> None:
    """Stopped half-way, what is in place is whole; the next run does the rest."""
    blocked = place / "root/etc/redis/users.acl"
    blocked.mkdir(parents=True)
    done = provision(place, "--apply")
    assert done.returncode == 1 and "users.acl" in done.stderr
    config = place / "root/etc/redis/redis.conf"
    assert config.read_text().endswith("\n")
    blocked.rmdir()
    assert provision(place, "--apply").returncode == 0
    assert provision(place, "--check").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users are made below the root")
def test_users_are_made_first(place: Path) -> None:
    """On a machine without the server's package the users are made before files are given them."""
    for name in ("passwd", "group"):
        (place / "root/etc" / name).unlink()
    done = command(place, "queue.toml", "--out", "bundle", "--root", "root", "--apply")
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd is not installed")
    assert done.returncode == 0, done.stderr
    assert "ran      systemd-sysusers" in done.stdout
    passwd = (place / "root/etc/passwd").read_text()
    assert "redis:" in passwd and "standpipe:" in passwd
    assert (place / "root/etc/redis/redis.conf").stat().st_uid != 0


# The machine's own /etc and /var are overlaid, and vm.* is not to be changed for all others.
IN_A_MACHINE = """
set -e
for name in etc var; do
    mkdir -p $1/$name
    mount -t tmpfs none $1/$name
    mkdir $1/$name/up $1/$name/work
    mount -t overlay none -o lowerdir=/$name,upperdir=$1/$name/up,workdir=$1/$name/work /$name
done
mount --bind /proc/sys/vm /proc/sys/vm && mount -o remount,ro,bind /proc/sys/vm
shift
set +e
"$@"
echo "code $?"
cat /proc/sys/net/core/somaxconn
stat -c '%a %U' /etc/redis/redis.conf
"""


def test_on_a_machine_itself(place: Path) -> None:
    """Put in place on a machine, parameters of the kernel are in force at once; a command that
    fails is shown, and makes the exit code 1 though the files are there."""
    if os.geteuid() != 0 or shutil.which("sysctl") is None:
        pytest.skip("needs root: it is put in place")
    options = ["provision", str(place / "queue.toml"), "--out", str(place / "bundle"), "--apply"]
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", IN_A_MACHINE, "sh", str(place / "over"),
         sys.executable, "-m", "standpipe", *options],
        capture_output=True, text=True, check=False, timeout=120, env=ENV,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("needs root: that may mount")
    assert "code 1\n65535\n600 redis\n" in done.stdout, done.stdout[-2000:] + done.stderr
    said = re.findall(r"^ran +(.*)$", done.stdout, re.MULTILINE)
    assert said[0].startswith("systemd-sysusers") and said[0].endswith(": ok")
    assert any(line.startswith("sysctl -q -p") for line in said)
    assert any(line.startswith("systemctl daemon-reload") for line in said)
    assert "restart  systemctl restart redis-server" in done.stdout
    assert not Path("/etc/sysctl.d/90-standpipe.conf").exists()


def test_another_machine_has_the_same_secrets(place: Path) -> None:
    """A replica's bundle, written with the first one's secrets, has the same passwords and
    authority, and a certificate of its own."""
    provision(place)
    done = command(
        place, "queue.toml", "--out", "second", "--secrets", "bundle/secrets", "--bind",
        "10.0.0.6", "--role", "replica", "--node", "10.0.0.5", "--node", "10.0.0.6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = place / "bundle/machine", place / "second/machine"
    acl = "etc/redis/users.acl"
    worker = [line for line in (one / acl).read_text().splitlines() if "user worker" in line]
    assert worker[0] in (two / acl).read_text()
    assert (one / "etc/redis/tls/ca.pem").read_text() == (two / "etc/redis/tls/ca.pem").read_text()
    names = [(each / "etc/redis/tls/server.pem").read_text() for each in (one, two)]
    assert names[0] != names[1]
    assert "replicaof 10.0.0.5 6379" in (two / "etc/redis/redis.conf").read_text()
    assert not (place / "second/secrets").exists()


def test_the_script_renews(place: Path) -> None:
    """renew.sh of the bundle makes nothing anew while all is good."""
    provision(place, "--apply")
    text = (place / "bundle/renew.sh").read_text()
    assert stat.S_IMODE((place / "bundle/renew.sh").stat().st_mode) == 0o700
    before = snapshot(place / "bundle/secrets")
    script = text.replace("exec standpipe", "exec true") if "exec standpipe" in text else text
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0
    options = ("--secrets", "bundle/secrets", "--out", "bundle", "--root", "root")
    done = command(place, "bundle/description.toml", *options, "--apply", "--no-activate")
    assert done.stdout.strip() == "nothing to change", done.stderr
    assert snapshot(place / "bundle/secrets") == before
    renewed = provision(place, "--apply", "--renew")
    assert "/etc/redis/tls/server.pem" in renewed.stdout and renewed.returncode == 0


def test_an_owner_who_is_not_there(tmp_path: Path) -> None:
    """A file is given to nobody else than to whom it belongs."""
    if os.geteuid() != 0:
        pytest.skip("needs root: only root gives files away")
    (tmp_path / "etc").mkdir()
    placement = applying.Placement(tmp_path)
    with pytest.raises(ProvisionError, match="nobody-here"):
        placement.apply([File("/etc/x", "x", "", 0o600, "nobody-here")], lambda _: None)
    assert not (tmp_path / "etc/x").exists()


# --- the description -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"memry": "1GiB"}, "memry"),
        ({"memory": "lots"}, "lots"),
        ({"memory": "1MiB"}, "1MiB"),
        ({"server": "redis-5.0"}, "redis-5.0"),
        ({"server": "redis-9.0"}, "redis-9.0"),
        ({"server": "mysql-8"}, "mysql-8"),
        ({"role": "boss"}, "boss"),
        ({"port": 0}, "port is 0"),
        ({"port": "6379"}, "port is '6379'"),
        ({"port": 60_000, "role": "cluster"}, "60000"),
        ({"bind": []}, "bind"),
        ({"bind": ["0.0.0.0"]}, "0.0.0.0"),
        ({"bind": ["queue-1"]}, "queue-1"),
        ({"networks": ["10.0.0.5/24"]}, "10.0.0.5/24"),
        ({"hostnames": ["a b"]}, "a b"),
        ({"role": "replica"}, "nodes"),
        ({"nodes": ["a:b"]}, "a:b"),
        ({"nodes": ["a", "a:6379"]}, "a:6379"),
        ({"data": "var/lib"}, "var/lib"),
        ({"data": "/var lib"}, "/var lib"),
        ({"persistence": "maybe"}, "maybe"),
        ({"streams": [{"name": "a b"}]}, "streams[0].name"),
        ({"streams": [{"name": 'a"b'}]}, "streams[0].name"),
        ({"streams": [{"name": "a", "shards": 300}]}, "streams[0].shards is 300"),
        ({"streams": [{"name": "a", "groups": ["x y"]}]}, "x y"),
        ({"streams": [{"name": "a", "group": ["g"]}]}, "streams[0].group"),
        ({"streams": [{"name": "a"}, {"name": "a"}]}, "streams"),
        ({"users": [{"name": "default", "role": "worker"}]}, "default"),
        ({"users": [{"name": "w", "role": "admin"}]}, "admin"),
        ({"users": [{"name": "w", "role": "worker", "streams": ["x"]}]}, "users[0].streams"),
        ({"program": "standpipe"}, "program"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, Any], said: str) -> None:
    """Each mistake is an error that names the field and its value, and a way out."""
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_mistake_on_the_command_line(tmp_path: Path) -> None:
    """Wrong usage: exit code 2, one line and a hint, nothing written."""
    assert run("provision", "--role", "boss", "--out", "bundle", cwd=tmp_path).returncode == 2
    for options in (["gone.toml"], ["--apply", "--check"], ["--secrets", "gone"]):
        done = command(tmp_path, *options, "--out", "bundle")
        assert done.returncode == 2 and "hint: " in done.stderr, done.stderr
    assert not (tmp_path / "bundle").exists()


def test_no_folder_of_others_is_written_over(place: Path) -> None:
    """A folder that has files of the same names and is no bundle is refused as it is: neither a
    README of somebody's is replaced, nor is what lies in a folder `machine` cleared away."""
    others = place / "project"
    (others / "machine").mkdir(parents=True)
    (others / "machine" / "drawing.txt").write_text("mine")
    (others / "README.md").write_text("mine")
    done = command(place, "--out", str(others))
    assert done.returncode == 1 and "is no bundle" in done.stderr and "hint:" in done.stderr
    assert (others / "machine" / "drawing.txt").read_text() == "mine"
    assert (others / "README.md").read_text() == "mine"
    assert not (others / "secrets").exists()


def test_check_needs_secrets(place: Path) -> None:
    """Without the bundle's secrets --check would call every password wrong: it says so instead."""
    done = command(place, "--out", str(place / "elsewhere"), "--check")
    assert done.returncode == 2 and "no secrets" in done.stderr and "--secrets" in done.stderr


def test_a_description_survives_its_file(tmp_path: Path) -> None:
    """Written as TOML and read again, a description is the same."""
    found = described(
        "valkey-9.1", role="cluster", nodes=["10.0.0.5", "[fd00::1]:7000"], tls=True,
        streams=[{"name": "water", "groups": ["g", "h"], "shards": 3}],
        users=[{"name": "meter-1", "role": "producer", "streams": ["water"]}],
    )  # fmt: skip
    (tmp_path / "d.toml").write_text(keeping.to_toml(found))
    assert read(tmp_path / "d.toml") == found
    assert str(found.servers[1]) == "[fd00::1]:7000"


def test_memory_is_shared_out() -> None:
    """At every size the shares fit the machine together, and more memory is more for the queue."""
    before = 0
    for mib in (128, 256, 512, 1024, 4096, 16_384, 262_144):
        plan = plan_memory(mib * 2**20, pending=1000)
        assert plan.system + plan.maxmemory + plan.fork + plan.buffers <= plan.total
        assert plan.maxmemory > max(before, plan.total * 0.45)
        assert plan.entries == plan.maxmemory - 1000
        before = plan.maxmemory
    groups = [{"name": "a", "groups": ["g", "h"], "workers": 10}]
    assert described("redis-7.0", streams=groups).memory_plan.pending == 2 * 10 * 20_000 * 180


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Redis server v=7.0.15 sha=0:0 malloc=jemalloc-5.2.1 bits=64", "redis-7.0"),
        ("Valkey server v=9.1.2 sha=0:0", "valkey-9.1"),
        ("Redis server v=5.0.1", None),
        ("cat (GNU coreutils) 9.1", None),
    ],
)
def test_versions_are_read(said: str, version: str | None) -> None:
    """A server's own word for its version, or none."""
    found = said_version(said)
    assert (None if found is None else str(found)) == version


def test_secrets_of_no_use_stay() -> None:
    """A user that one bundle does not have may be another's: its password is kept."""
    some = described("redis-7.0", users=[{"name": "w", "role": "worker"}])
    first = bundle.fresh_secrets(described("redis-7.0"), Secrets({"old": "x"}))
    second = bundle.fresh_secrets(some, first)
    assert {"old", "producer", "w"} <= set(second.passwords)
    assert second.passwords["producer"] == first.passwords["producer"]
    assert isinstance(some, Description)
