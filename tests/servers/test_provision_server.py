"""The generated configuration: every server boots with it, and an option of another version does
not slip in."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import redis

from standpipe.server.provision import bundle, serverconf
from standpipe.server.provision.serverconf import ROWS, Version
from tests.servers.fleet import KINDS, Fleet, TestServer, require_server
from tests.servers.provisioned import described, provisioned

pytestmark = pytest.mark.servers
ROLES = {
    "primary": {"nodes": ["127.0.0.1:7001", "127.0.0.1:7002"]},
    "replica": {"role": "replica", "nodes": ["127.0.0.1:1", "127.0.0.1:7002"]},
    "cluster": {"role": "cluster", "nodes": ["127.0.0.1:7001"]},
    "memory": {"persistence": "none"},
    "cores": {"cores": 8, "persistence": "always"},
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", KINDS)
def test_every_server_boots_with_its_file(name: str, role: str, own_fleet: Fleet) -> None:
    """Each version takes each role's configuration, and runs as it says, the default user off."""
    require_server(name)
    description = described(name, **ROLES[role])
    server = provisioned(own_fleet, description, admin=False)
    reply = server.command("CONFIG", "GET", "*")
    found = dict(zip(reply[::2], reply[1::2], strict=True))
    lines = (line.partition(" ") for line in server.files()["server.conf"].splitlines())
    wanted = {name: value.strip('"') for name, _, value in lines if name and name != "#"}
    # 6.2 does not tell these; the size is told in bytes.
    wanted = {name: value for name, value in wanted.items() if name in found}
    assert len(wanted) > 30
    for option, value in wanted.items():
        assert _as_told(value) in found[option], option
    with pytest.raises(redis.RedisError, match=r"NOAUTH|WRONGPASS|[Aa]uthentication"):
        server.user = None
        server.command("PING")


def _as_told(value: str) -> str:
    """A value of the file as CONFIG GET tells it."""
    told = {"256mb": str(256 * 1024 * 1024), "relative": "", "10%": ""}
    return told.get(value, value.removeprefix("replica "))


@pytest.mark.parametrize("name", KINDS)
def test_later_options_are_refused(name: str, own_fleet: Fleet) -> None:
    """Each option that is left out for a version is one that it does not start with: no version is
    given less than it can have."""
    require_server(name)
    version = Version.parse(name)
    later = [row for row in ROWS if not row.is_for(version) and row.before is None]
    if version.numbers >= (8, 2):
        assert not later
    plan = bundle.server_plan(described("valkey-9.1", role="cluster"), _secrets())
    values = {row.name: row.value(plan) if callable(row.value) else row.value for row in later}
    for option, value in values.items():
        server = TestServer(name, own_fleet.root / option, {option: value})
        with pytest.raises(AssertionError, match="FATAL CONFIG FILE ERROR") as caught:
            own_fleet._start(server)
        assert re.search(rf">>> '{option} ", str(caught.value))


def _secrets() -> bundle.Secrets:
    return bundle.fresh_secrets(described("valkey-9.1", role="cluster"), bundle.Secrets())


def test_unknown_option_ends_the_start(own_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that names no option of the version is found by the boot: a mistake in the table is."""
    row = serverconf.Row("stream-node-max-events", "100", "There is no such option.")
    section = serverconf.Section("mistakes", (row,))
    monkeypatch.setattr(serverconf, "SECTIONS", (*serverconf.SECTIONS, section))
    with pytest.raises(AssertionError, match="stream-node-max-events"):
        provisioned(own_fleet, described("valkey-9.1"))


def test_another_address_is_served_too(own_fleet: Fleet) -> None:
    """protected-mode does not turn away who comes from another address with a password."""
    server = provisioned(own_fleet, described("valkey-9.1", bind=["127.0.0.1", "127.0.0.2"]))
    server.host = "127.0.0.2"
    assert server.command("PING") == "PONG"
    assert server.command("CONFIG", "GET", "protected-mode")[1] == "yes"


def test_old_versions_have_less() -> None:
    """The table tells versions apart, at the edges too."""
    rows = {row.name: row for row in ROWS}
    debug, threads = rows["enable-debug-command"], rows["io-threads-do-reads"]
    assert not debug.is_for(Version("redis", 6, 2))
    assert debug.is_for(Version("redis", 7, 0)) and debug.is_for(Version("valkey", 7, 2))
    assert threads.is_for(Version("redis", 7, 4)) and not threads.is_for(Version("redis", 8, 0))
    assert not threads.is_for(Version("valkey", 8, 0))
    assert replace(debug, since=(9, 0)).is_for(Version("valkey", 8, 0))
    # Of neither side of this edge there is a server to boot: redis.conf of 7.4 has it.
    hiding = rows["hide-user-data-from-log"]
    assert hiding.is_for(Version("redis", 7, 4)) and not hiding.is_for(Version("redis", 7, 2))
