"""`standpipe doctor` and `standpipe explain`, as an operator runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.servers.commands import run
from tests.servers.fleet import TestServer

OwnServer = Callable[..., TestServer]


def test_doctor(own_server: OwnServer, server_name: str, tmp_path: Path) -> None:
    """It says what is wrong, why, and what mends it, and exits with 3 while something is critical;
    --fix mends it, and the next look does not find it any more."""
    server = own_server(server_name, **{"maxmemory-policy": "allkeys-lru"})
    server.command("XADD", "power_grid_stream", "*", "volts", "230.5")
    (tmp_path / "server.log").write_text("1:M 24 Nov 2026 15:10:00.200 # Background saving error\n")
    options = ("--window", "100ms", "--state", str(tmp_path / "state.json"))
    done = run("doctor", "power_grid_stream", "--log", str(tmp_path / "server.log"), *options,
               url=server.url)  # fmt: skip
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    at = lines.index(f"critical  server.eviction  {server.url}")
    assert lines[at + 1] == "          found  maxmemory-policy = 'allkeys-lru'"
    assert lines[at + 2].startswith("          why    Every policy but noeviction")
    assert "noeviction" in lines[at + 3]
    assert any(line.startswith("critical  log.lines") for line in lines)
    assert "stream power_grid_stream" in done.stdout and "first look" in done.stdout

    done = run("doctor", "--fix", "--json", *options, url=server.url)
    assert done.returncode == 3, done.stderr
    repaired = {each["check"]: each for each in json.loads(done.stdout)["repaired"]}
    assert repaired["server.eviction"]["before"] == "allkeys-lru"
    assert repaired["server.eviction"]["after"] == "noeviction"
    assert repaired["server.persistence"]["after"] == "yes"

    done = run("doctor", "--json", *options, url=server.url)
    facts = json.loads(done.stdout)
    checks = {each["check"]: each["level"] for each in facts["findings"]}
    assert "server.eviction" not in checks and "server.persistence" not in checks
    assert "critical" not in checks.values() and done.returncode == 0
    assert facts["streams"] == ["power_grid_stream"] and facts["first_look"] is False


def test_wrong_usage(tmp_path: Path) -> None:
    done = run(
        "doctor", "--log", str(tmp_path / "none"), "--window", "1ms", url="redis://127.0.0.1:1"
    )
    assert done.returncode == 2 and "cannot be read" in done.stderr and "hint:" in done.stderr


def test_explain() -> None:
    """A code has cause, check and cure; all of them are listed; one that is none is wrong usage."""
    done = run("explain", "-OOM command not allowed when used memory > 'maxmemory'.")
    assert done.returncode == 2  # a leading dash is an option to the shell's reader
    done = run("explain", "OOM command not allowed when used memory > 'maxmemory'.")
    assert done.returncode == 0 and done.stdout.startswith("OOM  (ServerFullError)")
    assert all(part in done.stdout for part in ("\ncause\n", "\ncheck\n", "\ncure\n"))
    assert json.loads(run("explain", "MISCONF", "--json").stdout)["error"] == "NotPersistingError"
    assert "MISCONF" in run("explain").stdout
    done = run("explain", "MISCNF")
    assert done.returncode == 2 and "Did you mean MISCONF?" in done.stderr
