"""What stands beside the server, checked by the programs that read it, and run where that is cheap.

Those that need a program which CI does not install are ``slow``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from standpipe.cli import app_with
from standpipe.server.provision import beside, bundle, units
from standpipe.server.provision.bundle import Secrets
from standpipe.server.provision.description import Description
from standpipe.server.provision.layout import Places
from tests.conditions import eventually_sync
from tests.servers.fleet import Fleet, free_port
from tests.servers.provisioned import described, provisioned

SCHEMA = Path(__file__).parents[1] / "data" / "compose-spec.json"
ALONE: dict[str, Any] = {"name": "Grid_1.north", "tls": True, "hostnames": ["queue-1.example.net"]}
KINDS: dict[str, dict[str, Any]] = {
    "alone": ALONE,
    "pair": {"nodes": ["10.0.0.5", "10.0.0.6"], "networks": ["10.0.0.0/24"]},
    "cluster": {"role": "cluster", "tls": True, "nodes": ["10.0.0.5", "[fd00::6]:7000"]},
}


def made(kind: str, server: str = "redis-7.0") -> tuple[Description, Secrets, dict[str, str]]:
    description = described(server, **KINDS[kind])
    secrets = bundle.fresh_secrets(description, Secrets())
    return description, secrets, beside.files(description, secrets)


def require(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"program not installed: {program}")
    return found


def ran(*command: str | Path) -> str:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def lay_out(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- containers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["redis-6.2", "valkey-9.1"])
@pytest.mark.parametrize("kind", KINDS)
def test_compose(kind: str, server: str) -> None:
    """The Compose file is one by the specification's schema; each file that it mounts is there."""
    description, _, files = made(kind, server)
    found = yaml.safe_load(files["compose.yaml"])
    schema = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    schema.validate(found)
    (service,) = found["services"].values()
    mounted = [each.split(":")[0] for each in service["volumes"] if each.startswith("./")]
    assert all(each.removeprefix("./") in files for each in mounted)
    assert ("tls-port" in files["container/server.conf"]) == description.tls
    assert service["image"].endswith(server.partition("-")[2])
    broken = {**found, "services": {"x": {**service, "imagine": "that"}}}
    with pytest.raises(jsonschema.ValidationError, match="imagine"):
        schema.validate(broken)


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_fit_together(kind: str) -> None:
    """The manifests' names, labels and files refer to one another."""
    _, _, files = made(kind)
    manifests = {
        f"{each['kind']}/{each['metadata']['name']}": each
        for each in yaml.safe_load_all(files["kubernetes.yaml"])
    }
    stateful = next(each for name, each in manifests.items() if name.startswith("StatefulSet"))
    name = stateful["metadata"]["name"]
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    spec = stateful["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    for service in (f"Service/{name}", f"Service/{spec['serviceName']}"):
        assert manifests[service]["spec"]["selector"] == labels
    (volume,) = spec["template"]["spec"]["volumes"]
    secret = manifests[f"Secret/{volume['secret']['secretName']}"]
    items = {each["key"]: each["path"] for each in volume["secret"]["items"]}
    assert set(items) == set(secret["stringData"])
    (container,) = spec["template"]["spec"]["containers"]
    places = [f"{container['volumeMounts'][1]['mountPath']}/{path}" for path in items.values()]
    config = secret["stringData"]["server.conf"]
    wanted = re.findall(r"^(?:aclfile|tls-\w+(?:-cert)?-file) (.+)$", config, re.MULTILINE)
    assert wanted and set(wanted) <= set(places)
    assert container["command"][1] in places


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_valid(kind: str, tmp_path: Path) -> None:
    """Each manifest is one by Kubernetes' own schema, without an unknown field."""
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("kubernetes-validate is not installed")
    lay_out(tmp_path, made(kind)[2])
    assert ran(program, "--strict", tmp_path / "kubernetes.yaml").count("passed") == 4


# --- monitoring ----------------------------------------------------------------------------------

RULE_TESTS = """
rule_files: [standpipe-alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'redis_up{instance="a"}', values: '1+0x10 0+0x30'}
      - {series: 'redis_memory_used_bytes{instance="a"}', values: '50+0x20 90+0x40'}
      - {series: 'redis_memory_max_bytes{instance="a"}', values: '100+0x60'}
      - {series: 'redis_memory_used_bytes{instance="b"}', values: '90+0x60'}
      - {series: 'redis_memory_max_bytes{instance="b"}', values: '0+0x60'}
      - {series: 'redis_stream_group_lag{group="behind"}', values: '0+10x100'}
      - {series: 'redis_stream_group_lag{group="steady"}', values: '5000+0x100'}
    alert_rule_test:
      - {eval_time: 5m, alertname: QueueServerDown}
      - eval_time: 15m
        alertname: QueueServerDown
        exp_alerts: [{exp_labels: {severity: critical, instance: a},
          exp_annotations: {summary: The server does not answer,
            description: "Producers wait or spool, workers stand still."}}]
      - eval_time: 30m
        alertname: QueueMemoryNearlyFull
        exp_alerts: [{exp_labels: {severity: warning, instance: a},
          exp_annotations: {summary: More than 80 % of maxmemory are used,
            description: "At 100 % new entries are refused (OOM). Look at lag and at groups that \
nobody reads."}}]
      - eval_time: 70m
        alertname: QueueLagGrows
        exp_alerts: [{exp_labels: {severity: warning, group: behind},
          exp_annotations: {summary: "A group falls behind, and further behind",
            description: "By its trend, not by a threshold: its workers do less than what comes. \
Add some."}}]
"""


@pytest.mark.slow
def test_prometheus(tmp_path: Path) -> None:
    """Prometheus takes the configuration and the rules; an alert fires when it should, and a group
    that is far behind but does not fall back further gives none."""
    promtool = require("promtool")
    for kind in KINDS:
        lay_out(tmp_path, made(kind)[2])
        said = ran(promtool, "check", "config", tmp_path / "prometheus/prometheus.yml")
        assert "SUCCESS: 1 rule files found" in said
    (tmp_path / "prometheus/rules-test.yml").write_text(RULE_TESTS)
    ran(promtool, "test", "rules", tmp_path / "prometheus/rules-test.yml")


def test_the_exporter_asks_as_monitoring() -> None:
    """redis_exporter gets the user that may look and nothing else, and each shard by its name."""
    description = described("redis-7.0", streams=[{"name": "water", "shards": 2}])
    secrets = bundle.fresh_secrets(description, Secrets())
    text = beside.files(description, secrets)["prometheus/redis-exporter.env"]
    assert f"REDIS_PASSWORD={secrets.passwords['monitoring']}\n" in text
    keys = ",".join(f"db0={key}" for key in description.streams[0].keys)
    assert f"REDIS_EXPORTER_CHECK_SINGLE_STREAMS={keys}\n" in text


# --- the load balancer ---------------------------------------------------------------------------


def _balanced(folder: Path, files: dict[str, str], secrets: Secrets, port: int) -> Path:
    """The configuration with places of the test's own."""
    text = files["haproxy.cfg"].replace("bind :6380", f"bind 127.0.0.1:{port}")
    # More would need more files than a test may have open.
    text = (
        text.replace("maxconn 20000", "maxconn 100")
        .replace("/run/haproxy/", f"{folder}/")
        .replace("/etc/haproxy/", f"{folder}/")
    )
    if secrets.authority is not None:
        (folder / "ca.pem").write_text(secrets.authority.certificate)
        pair = secrets.clients["balancer"]
        (folder / "balancer.pem").write_text(pair.certificate + pair.key)
    (folder / "haproxy.cfg").write_text(text)
    return folder / "haproxy.cfg"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "pair"])
def test_haproxy_takes_it(kind: str, tmp_path: Path) -> None:
    """HAProxy finds nothing wrong with its configuration, with TLS and without."""
    _, secrets, files = made(kind)
    path = _balanced(tmp_path, files, secrets, 6380)
    assert "Configuration file is valid" in ran(require("haproxy"), "-c", "-f", path)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize("tls", [False, True])
def test_the_primary_is_found(tls: bool, own_fleet: Fleet, tmp_path: Path) -> None:
    """Clients reach the primary, whichever server that is, and are cut off from one that was."""
    program = require("haproxy")
    first = provisioned(own_fleet, described("redis-7.0", tls=tls, nodes=["a", "b"]))
    second = provisioned(
        own_fleet,
        described(
            "redis-7.0", tls=tls, role="replica", nodes=[f"127.0.0.1:{first.port}", "127.0.0.1:1"]
        ),
        secrets=first.secrets,
    )
    nodes = [f"127.0.0.1:{each.port}" for each in (first, second)]
    description = described("redis-7.0", tls=tls, nodes=nodes)
    port = free_port()
    files = beside.files(description, first.secrets)
    path = _balanced(tmp_path, files, first.secrets, port)

    def reached() -> int | None:
        """The port of the server that a client comes to."""
        old, first.port = first.port, port
        try:
            return int(first.info("server")["tcp_port"])
        except Exception:
            return None
        finally:
            first.port = old

    process = subprocess.Popen([program, "-db", "-f", str(path)])
    try:
        eventually_sync(lambda: reached() == first.port, 20)
        assert second.info("replication")["role"] == "slave"
        second.command("REPLICAOF", "NO", "ONE")
        first.command("REPLICAOF", "127.0.0.1", second.port)
        eventually_sync(lambda: reached() == second.port, 20)
    finally:
        process.kill()
        process.wait()


# --- units ---------------------------------------------------------------------------------------

DEBIAN_UNIT = Path("/lib/systemd/system/redis-server.service")


def _unit_files(folder: Path, kind: str = "pair") -> list[Path]:
    description, secrets, _ = made(kind)
    program = folder / "standpipe"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths: list[Path] = []
    for file in bundle.machine_files(description, secrets):
        if file.path.startswith(units.SYSTEMD):
            path = folder / Path(file.path).name
            path.write_text(file.text.replace("/usr/local/bin/standpipe", str(program)))
            paths.append(path)
    assert len(paths) == 5
    return paths


@pytest.mark.slow
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """systemd finds nothing wrong with them: no unknown setting, no program that is missing."""
    program = require("systemd-analyze")
    paths = _unit_files(tmp_path)
    done = subprocess.run(
        [program, "verify", "--man=no", *map(str, paths)], capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    own = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, own) == (0, [])


def test_services_do_not_give_up(tmp_path: Path) -> None:
    """What is started again is so without an end: a janitor without its server ends within half a
    second, and after five times systemd would leave it at that."""
    again = [path for path in _unit_files(tmp_path) if "Restart=always" in path.read_text()]
    assert len(again) == 4
    for path in again:
        head, _, _ = path.read_text().partition("[Service]")
        assert "\nStartLimitIntervalSec=0\n" in head, path.name


def test_units_run_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the units run are commands with options that they take: without a server they fail for
    want of it, not for wrong usage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "handlers.py").write_text("def handle(event): ...\n")
    description, secrets, _ = made("alone")
    files = {file.path: file.text for file in bundle.machine_files(description, secrets)}
    work = re.search('WORK="(.*)"', files["/etc/standpipe/workers/power.g.env"])
    assert work
    found = []
    for text in files.values():
        for line in re.findall("^ExecStart=/usr/local/bin/standpipe (.*)$", text, re.MULTILINE):
            words = line.replace("$WORK", work[1]).replace("%I", "power").split()
            # In this process, so that it needs a second for none of them.
            words = ["1" if word == "auto" else word for word in words]
            env = {"STANDPIPE_URL": f"redis://127.0.0.1:{free_port()}", "STANDPIPE_ARCHIVE": "a"}
            done = CliRunner().invoke(app_with(words[:1]), words, env=env)
            assert done.exit_code == 1 and "onnection refused" in done.stderr, done.stderr
            found.append(words[0])
    assert sorted(found) == ["archive", "retain", "work"]


def test_instances_are_told_apart() -> None:
    """Each group has an instance of its own, with a name that systemd takes."""
    pairs = [("power", "g"), ("a.b", "c"), ("a", "b.c"), ("a/b", "g"), ("a_b", "g"), ("wärme", "g")]
    names = [units.instance_name(*pair) for pair in pairs]
    assert names[0] == "power.g" and len(set(names)) == len(pairs)
    assert all(re.fullmatch(r"[A-Za-z0-9_.:-]+", name) for name in names)


@pytest.mark.parametrize("name", ["x" * 63, "2nd-grid", "true", "123", "a" * 51 + "-b"])
def test_names_that_others_take(name: str) -> None:
    """Whatever a deployment is called, Kubernetes, Compose and Prometheus get a name that they
    take: a DNS label that begins with a letter, with room for what is added to it."""
    description = described("redis-7.0", name=name)
    files = beside.files(description, bundle.fresh_secrets(description, Secrets()))
    manifests = list(yaml.safe_load_all(files["kubernetes.yaml"]))
    labels = [each["metadata"]["name"] for each in manifests]
    assert all(re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in labels), labels
    stateful = next(each for each in manifests if each["kind"] == "StatefulSet")
    assert len(stateful["metadata"]["name"]) <= 52
    schema = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    schema.validate(yaml.safe_load(files["compose.yaml"]))
    (job,) = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    assert job["job_name"] == labels[0]


def test_servers_are_told_apart() -> None:
    """Servers whose long names begin alike have names of their own in HAProxy."""
    long = "queue." + "x" * 60
    description = described("redis-7.0", nodes=[f"{long}.one", f"{long}.two", "a.b", "a-b"])
    files = beside.files(description, bundle.fresh_secrets(description, Secrets()))
    names = re.findall(r"^ +server (\S+) ", files["haproxy.cfg"], re.MULTILINE)
    assert len(set(names)) == 4


def test_only_named_networks_come_in(tmp_path: Path) -> None:
    """Where networks are named, the kernel lets through them, the other servers and no others."""
    (unit,) = (path for path in _unit_files(tmp_path) if path.name == "redis-server.service")
    lines = unit.read_text().splitlines()
    assert "IPAddressDeny=any" in lines
    assert "IPAddressAllow=localhost 10.0.0.0/24 10.0.0.5 10.0.0.6" in lines


def _exposure(program: str, path: Path) -> float:
    said = ran(program, "security", "--offline=true", "--no-pager", path)
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    assert found, said
    return float(found[1])


@pytest.mark.slow
def test_the_server_is_shut_in(tmp_path: Path) -> None:
    """The server is exposed no more than in Debian's own unit."""
    program = require("systemd-analyze")
    paths = {path.name: path for path in _unit_files(tmp_path, "alone")}
    own = _exposure(program, paths["redis-server.service"])
    assert own <= 1.2
    assert _exposure(program, paths["standpipe-worker@.service"]) <= 1.5
    if DEBIAN_UNIT.exists():
        assert own <= _exposure(program, DEBIAN_UNIT)


@pytest.mark.slow
def test_logs_are_rotated(tmp_path: Path) -> None:
    """logrotate takes its file and rotates a log by it."""
    program = require("logrotate")
    description, secrets, _ = made("alone")
    places = Places.of(description)
    files = bundle.machine_files(description, secrets)
    text = next(f.text for f in files if f.path == f"/etc/logrotate.d/{places.service}")
    log = tmp_path / "log" / "redis-server.log"
    log.parent.mkdir(mode=0o755)
    log.write_text("started\n")
    config = tmp_path / "rotate.conf"
    config.write_text(text.replace("/var/log/redis", str(log.parent)))
    config.chmod(0o644)
    ran(program, "--force", "--state", tmp_path / "state", config)
    assert (log.parent / "redis-server.log.1").read_text() == "started\n"
