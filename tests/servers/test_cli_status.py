"""`standpipe status` as a user runs it: who does what, where it is going, and what would help."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import eventually_sync
from tests.servers.commands import run, started  # noqa: F401  a fixture
from tests.servers.fleet import Fleet, TestServer, require_server, selected_servers

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def server(fleet: Fleet) -> TestServer:
    """One server: what the command stands on is tested on every one (test_observe.py)."""
    name = selected_servers()[-1]
    require_server(name)
    return fleet.shared(name)


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    """A folder with a handler in app.py."""
    (tmp_path / "app.py").write_text("def store(event):\n    pass\n")
    return tmp_path


def state(server: TestServer, stream: str, *options: str) -> dict[str, Any]:
    found = run("status", stream, "--json", *options, url=server.url)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_workers_and_advice(
    server: TestServer,
    stream_name: str,
    handler: Path,
    started: Start,  # noqa: F811
) -> None:
    """A worker process is listed from its start, by its pid; with it gone, what waits is said."""
    for n in range(3):
        server.command("XADD", stream_name, "*", "n", n)
    worker = started("work", stream_name, "app:store", "-g", "g", url=server.url, cwd=handler)
    eventually_sync(lambda: state(server, stream_name)["workers"], 20)
    (found,) = state(server, stream_name)["workers"]
    assert (found["group"], found["report"]["pid"]) == ("g", worker.pid)
    assert found["report"]["handler"] == "store" and found["report"]["loop_lag_ms"] is None
    assert state(server, stream_name)["groups"][0]["workers"] == 1
    text = run("status", stream_name, url=server.url).stdout
    assert f"{worker.pid} on " in text and "g: nothing waits" in text
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    ended = state(server, stream_name)
    assert ended["workers"] == []

    server.command("XADD", stream_name, "*", "n", 3)
    (judged,) = state(server, stream_name, "--window", "200ms")["groups"]
    assert [advice["kind"] for advice in judged["advice"]] == ["no_worker"]
    assert judged["trend"]["direction"] == "steady" and judged["trend"]["window_ms"] >= 200
    (once,) = state(server, stream_name, "--window", "0s")["groups"]
    assert once["trend"]["direction"] is None and once["trend"]["behind_ms"] > 0
    text = run("status", stream_name, "--window", "200ms", url=server.url).stdout
    assert "warning: no worker is there" in text and "Start one with `standpipe work`" in text


def test_watching(server: TestServer, stream_name: str, started: Start) -> None:  # noqa: F811
    """``--watch`` goes on, each reading judged with those before, until SIGINT ends it well."""
    server.command("XADD", stream_name, "*", "n", 1)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    options = ("--watch", "--window", "100ms", "--json")
    watching = started("status", stream_name, *options, url=server.url)
    assert watching.stdout is not None
    lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
    trends = [line["groups"][0]["trend"] for line in lines]
    assert trends[0]["direction"] is None and trends[2]["direction"] == "steady"
    assert trends[2]["window_ms"] > trends[1]["window_ms"] >= 100
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 0

    wrong = run("status", stream_name, "--watch", "--window", "0s", url=server.url)
    assert wrong.returncode == 2 and "--window above 0s" in wrong.stderr


def test_requeued_and_dead_are_counted(server: TestServer, stream_name: str) -> None:
    """What was given up and what was put back is seen, with what it waits for."""
    server.command("XADD", stream_name, "*", "n", 1)
    server.command("XGROUP", "CREATE", stream_name, "g", "$")
    for _ in range(2):
        server.command("XADD", f"{{{stream_name}}}:dead", "*", "reason", "x")
    server.command("XADD", f"{{{stream_name}}}:requeued:g", "*", "id", "1-0")
    found = state(server, stream_name)
    assert found["shards"][0]["dead"] == 2 and found["shards"][0]["groups"][0]["requeued"] == 1
    assert [advice["kind"] for advice in found["groups"][0]["advice"]] == ["requeued"]
    text = run("status", stream_name, url=server.url).stdout
    assert "requeued" in text and "start one" in text
