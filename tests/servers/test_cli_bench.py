"""`standpipe bench` measures a server and leaves nothing on it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.conditions import eventually_sync
from tests.servers.commands import run, started  # noqa: F401  a fixture
from tests.servers.fleet import TestServer


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
def test_bench(own_server: Callable[..., TestServer], codec: str) -> None:
    """Its figures are there for each codec, over several shards, and its stream is gone again."""
    server = own_server("valkey-9.1")
    done = run(
        "bench", "--codec", codec, "--events", "5000", "--shards", "2", "--json", url=server.url
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["stream"] == {"codec": codec, "shards": 2, "events": 5_000}
    for side in ("produce", "consume"):
        assert all(value > 0 for value in facts[side].values()), facts
    assert facts["server_bytes_per_event"] > 1
    latency = facts["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert server.command("KEYS", "*standpipe_bench*") == []


def test_interrupted(
    own_server: Callable[..., TestServer],
    started: Callable[..., subprocess.Popen[str]],  # noqa: F811
) -> None:
    """Interrupted while its worker is at work it leaves nothing behind either."""
    server = own_server("valkey-9.1")
    bench = started("bench", "--events", "1000", url=server.url)

    def is_timing() -> bool:
        keys = server.command("KEYS", "*:workers:latency")
        return bool(keys) and server.command("EXISTS", keys[0]) == 1

    eventually_sync(is_timing, deadline_s=60)
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130 and "Traceback" not in said, said
    assert server.command("KEYS", "*standpipe_bench*") == []


def test_wrong_codec() -> None:
    done = run("bench", "--codec", "json", url="redis://127.0.0.1:1")
    assert done.returncode != 0 and "plain, rows and columns" in done.stderr
