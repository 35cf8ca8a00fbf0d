"""The servers that the other tests stand on are what they say they are."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.exceptions import MovedError

from tests.conditions import eventually, eventually_sync
from tests.servers import fleet as fleet_module
from tests.servers.fleet import KINDS, Fleet, TestCluster, TestSentinel, TestServer, is_alive

OwnServer = Callable[..., TestServer]


@pytest.mark.parametrize("name", KINDS)
def test_each_server_boots_and_reports_its_version(name: str, fleet: Fleet) -> None:
    """A server's name and the version that it reports are the same."""
    assert fleet.shared(name).version.startswith(KINDS[name].version)


def test_shared_server_stays_the_same(server: TestServer, fleet: Fleet, stream_name: str) -> None:
    """A server is started once per session, and a test's stream is its own."""
    assert fleet.shared(server.name) is server
    assert server.cli("EXISTS", stream_name) == "0"
    assert server.cli("XADD", stream_name, "1-1", "volts", 230.5) == "1-1"
    assert server.cli("XRANGE", stream_name, "-", "+") == "1-1\nvolts\n230.5"
    assert server.command("XLEN", stream_name) == 1


def test_error_reply_is_raised(server: TestServer) -> None:
    """An error reply is never mistaken for a value."""
    with pytest.raises(redis.ResponseError, match="unknown command"):
        server.cli("NOSUCHCOMMAND")


def test_debug_and_dir_are_allowed(server_name: str, own_server: OwnServer, tmp_path: Path) -> None:
    """Tests can make a server slow and take its disk away."""
    server = own_server(server_name)
    assert server.cli("DEBUG", "SLEEP", "0") == "OK"
    assert server.cli("CONFIG", "SET", "dir", str(tmp_path)) == "OK"


def test_own_server_takes_settings(own_server: OwnServer) -> None:
    """Settings reach the server, in place of the defaults."""
    server = own_server("valkey-9.1", maxmemory="50mb", save="60 1")
    assert server.cli("CONFIG", "GET", "maxmemory") == f"maxmemory\n{50 * 1024 * 1024}"
    assert server.cli("CONFIG", "GET", "save") == "save\n60 1"
    assert server.config["maxmemory"] == "50mb"


def test_killed_server_comes_back_where_it_was(server_name: str, own_server: OwnServer) -> None:
    """A restart keeps port and folder, so that what was persisted is there again."""
    server = own_server(server_name, appendonly="yes", appendfsync="always")
    server.cli("SET", "kept", "yes")
    port, pid = server.port, server.pid
    server.kill()
    with pytest.raises(redis.ConnectionError):
        server.cli("PING")
    server.restart(maxmemory="100mb")
    assert (server.port, server.cli("GET", "kept")) == (port, "yes")
    assert server.pid != pid
    assert server.cli("CONFIG", "GET", "maxmemory") == f"maxmemory\n{100 * 1024 * 1024}"


def test_stopped_server_answers_nothing_until_continued(own_server: OwnServer) -> None:
    """SIGSTOP leaves the server alive and silent; SIGCONT lets it answer."""
    server = own_server("valkey-9.1")
    status = Path(f"/proc/{server.pid}/stat")
    server.stop()
    eventually_sync(lambda: status.read_text().split(") ")[1].startswith("T"))
    server.cont()
    assert server.cli("PING") == "PONG"


def test_ended_shared_server_is_noticed(tmp_path: Path) -> None:
    """A test that ends a shared server fails, and the next one gets a new server."""
    fleet = Fleet(tmp_path)
    try:
        first = fleet.shared("valkey-9.1")
        fleet.check(first)
        first.kill()
        with pytest.raises(AssertionError, match="ended in this test"):
            fleet.check(first)
        assert fleet.shared("valkey-9.1").cli("PING") == "PONG"
    finally:
        fleet.close()


def test_cluster_is_whole(server_name: str, cluster: Callable[..., TestCluster]) -> None:
    """Three primaries serve all slots, and each key is found where its slot is."""
    found = cluster(server_name)
    assert len(found.nodes) == 3
    owners = {found.node_of(key).port for key in ("a", "b", "c", "d", "e", "f")}
    assert len(owners) == 3
    assert found.node_of("power").cli("SET", "power", "1") == "OK"
    elsewhere = next(node for node in found.nodes if node is not found.node_of("power"))
    with pytest.raises(MovedError):
        elsewhere.cli("GET", "power")


def test_cluster_replica_takes_over(cluster: Callable[..., TestCluster]) -> None:
    """With replicas, a primary that dies is replaced."""
    found = cluster("valkey-9.1", replicas=1)
    dead = found.node_of("power")
    dead.kill()
    eventually_sync(lambda: found.node_of("power") is not dead, 30, what="a replica was promoted")


def test_sentinel_promotes_the_replica(
    server_name: str, sentinel: Callable[..., TestSentinel]
) -> None:
    """Sentinel names the primary, and the replica once the primary is dead."""
    found = sentinel(server_name)
    assert found.current() is found.primary
    found.primary.kill()
    eventually_sync(lambda: found.current() is found.replica, 30, what="the replica is named")
    eventually_sync(lambda: found.replica.cli("SET", "a", "1"), 10, ignore=(redis.ResponseError,))


def test_tls_server_speaks_only_tls(tls_server: OwnServer) -> None:
    """The server answers over TLS to who trusts its CA, and to nobody in the clear."""
    server = tls_server()
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        assert client.ping()
    with (
        contextlib.closing(redis.Redis.from_url(f"redis://127.0.0.1:{server.port}")) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    with (
        contextlib.closing(redis.Redis.from_url(f"rediss://127.0.0.1:{server.port}")) as client,
        pytest.raises(redis.ConnectionError, match="certificate verify failed"),
    ):
        client.ping()


def test_tls_server_can_ask_for_client_certificates(tls_server: OwnServer) -> None:
    """With tls-auth-clients the client's certificate is what lets it in."""
    server = tls_server(tls_auth_clients="yes")
    assert server.cli("PING") == "PONG"
    with (
        contextlib.closing(redis.Redis.from_url(server.url)) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()


def test_tied_process_ends_with_its_starter() -> None:
    """A process that was killed leaves no server behind."""
    starter = (
        "import subprocess, sys\n"
        "from standpipe.server.embedded import tied_command\n"
        "tied = tied_command(sys.executable, '-c', 'import time; time.sleep(60)', number=9)\n"
        "print(subprocess.Popen(tied).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        eventually_sync(lambda: not is_alive(child), what="the child is gone")


def test_missing_server_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not installed skips the test with a reason that CI knows, or fails it."""
    monkeypatch.setattr(fleet_module, "find_server", lambda name: None)
    monkeypatch.delenv("STANDPIPE_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^server not installed: redis-8\.2$"):
        fleet_module.require_server("redis-8.2")
    monkeypatch.setenv("STANDPIPE_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match=r"^server not installed: redis-8\.2$"):
        fleet_module.require_server("redis-8.2")


def test_selection_names_servers_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt server is an error, not a test run on nothing."""
    monkeypatch.setenv("STANDPIPE_TEST_SERVERS", "redis-6.2, valkey-9.1")
    assert fleet_module.selected_servers() == ["redis-6.2", "valkey-9.1"]
    monkeypatch.setenv("STANDPIPE_TEST_SERVERS", "all")
    assert fleet_module.selected_servers() == list(KINDS)
    monkeypatch.setenv("STANDPIPE_TEST_SERVERS", "redis-5")
    with pytest.raises(pytest.UsageError, match="redis-5"):
        fleet_module.selected_servers()


async def test_eventually_waits_and_gives_up() -> None:
    """A condition, async or not, ends the wait when it holds, and fails it at the deadline."""
    numbers = iter(range(100))

    async def third() -> bool:
        return next(numbers) > 2

    assert await eventually(third) is True
    assert await eventually(lambda: next(numbers)) == 4
    with pytest.raises(AssertionError, match=r"not within 0.1 s: rain; the last answer was None"):
        await eventually(lambda: None, 0.1, what="rain")
    with pytest.raises(AssertionError, match="KeyError"):
        await eventually(lambda: {}["a"], 0.1, ignore=(KeyError,))
