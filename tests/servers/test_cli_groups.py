"""Groups by hand on the command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.servers.fleet import Fleet, TestServer, require_server, selected_servers
from tests.servers.test_cli import run
from tests.servers.test_groups import add, give, raw_consumers, raw_groups

AT_ONCE = ("--idle", "0s")


@pytest.fixture
def server(fleet: Fleet) -> TestServer:
    """One server: what the commands stand on is tested on every one (test_groups.py)."""
    name = selected_servers()[-1]
    require_server(name)
    return fleet.shared(name)


def facts(*args: str, server: TestServer, code: int = 0) -> Any:
    """What a command prints with --json."""
    done = run(*args, "--json", url=server.url)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def refusal(*args: str, server: TestServer, code: int = 1) -> str:
    """What a command that refuses says; it prints no facts, and always a way out."""
    done = run(*args, url=server.url)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "hint: " in done.stderr
    return done.stderr


def test_a_group_from_its_creation_to_its_end(server: TestServer, stream_name: str) -> None:
    """Create, list, set and delete do what they say; what would lose something is refused."""
    add(server, stream_name)
    made = facts("group", "create", stream_name, "g", "--from", "4-0", server=server)
    assert made["shards"] == [
        {"shard": 0, "key": stream_name, "outcome": "created", "is_new_stream": False}
    ]
    again = run("group", "create", stream_name, "g", url=server.url)
    assert again.returncode == 1
    assert "exists already" in again.stdout
    assert give(server, stream_name, "g", "w", 2) == ["4-0", "5-0"]
    (listed,) = facts("group", "list", stream_name, server=server)["groups"]
    assert (listed["name"], listed["pending"], listed["last_delivered"]) == ("g", 2, "5-0")
    assert [(c["name"], c["pending"]) for c in listed["consumers"]] == [("w", 2)]

    dry = facts("group", "set", stream_name, "g", "--to", "begin", "--dry-run", server=server)
    assert dry["dry_run"] is True
    assert (dry["shards"][0]["again"], dry["shards"][0]["is_exact"]) == (5, True)
    assert "w (idle " in refusal("group", "set", stream_name, "g", "--to", "begin", server=server)
    assert raw_groups(server, stream_name)["g"]["last-delivered-id"] == "5-0"
    done = run("group", "set", stream_name, "g", "--to", "9-0", *AT_ONCE, url=server.url)
    assert done.returncode == 0, done.stderr
    assert "3 entries skipped" in done.stdout

    said = refusal("group", "delete", stream_name, "g", *AT_ONCE, server=server)
    assert "2 entries pending" in said
    would = run("group", "delete", stream_name, "g", "--dry-run", url=server.url)
    assert would.returncode == 0
    assert "would be deleted, with 2 entries pending" in would.stdout
    assert "g" in raw_groups(server, stream_name)
    gone = facts("group", "delete", stream_name, "g", "--force", server=server)
    assert (gone["shards"][0]["outcome"], gone["shards"][0]["pending"]) == ("deleted", 2)
    assert raw_groups(server, stream_name) == {}


def test_a_lag_that_is_not_known_is_printed_as_unknown(
    server: TestServer, stream_name: str
) -> None:
    """A null lag is the word unknown for people and null for programs, never 0."""
    add(server, stream_name)
    server.command("XGROUP", "CREATE", stream_name, "g", "2-0")
    server.command("XDEL", stream_name, "5-0")
    assert " unknown " in run("group", "list", stream_name, url=server.url).stdout
    (listed,) = facts("group", "list", stream_name, server=server)["groups"]
    assert listed["lag"] is None
    would = run("group", "delete", stream_name, "g", "--dry-run", url=server.url).stdout
    assert "unknown not delivered" in would


def test_from_a_failed_worker_to_a_healthy_one(server: TestServer, stream_name: str) -> None:
    """The manual's way: see what the failed worker has, claim it, remove it, acknowledge."""
    add(server, stream_name)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    ids = give(server, stream_name, "g", "worker_01", 3)
    give(server, stream_name, "g", "worker_02", 1)
    server.command("XCLAIM", stream_name, "g", "worker_01", 0, *ids, "IDLE", 90_000, "JUSTID")

    shown = run("pending", stream_name, "g", "--events", "-n", "2", url=server.url)
    assert shown.returncode == 0, shown.stderr
    assert f"4 entries of {stream_name} pending for g" in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["worker_01", "3"] in rows
    assert [row for row in rows if row and row[0] in ids] == [
        ["1-0", "0", "worker_01", "1m", "30s", "1", "1"],
        ["2-0", "0", "worker_01", "1m", "30s", "1", "1"],
    ]
    found = facts("pending", stream_name, "g", "--idle", "1m", "-c", "worker_01", server=server)
    assert [entry["id"] for entry in found["entries"]] == ids
    assert (found["pending"], found["entries"][0]["events"]) == (4, None)

    remove = ("group", "remove-consumer", stream_name, "g", "worker_01", *AT_ONCE)
    assert "has 3 entries pending" in refusal(*remove, server=server)
    claim = ("claim", stream_name, "g", "--from", "worker_01")
    assert "has no consumer 'worker_20'" in refusal(*claim, "--to", "worker_20", server=server)
    claimed = facts(*claim, "--to", "worker_02", server=server)
    assert [(each["id"], each["outcome"]) for each in claimed["entries"]] == [
        (entry_id, "claimed") for entry_id in ids
    ]
    late = run("claim", stream_name, "g", "--to", "worker_01", "1-0", "9-0", url=server.url)
    assert late.returncode == 1
    assert [line.split("  ")[1].split(" (")[0] for line in late.stdout.splitlines()] == [
        "not idle",
        "not pending",
    ]
    assert "removed" in run(*remove, url=server.url).stdout
    assert list(raw_consumers(server, stream_name, "g")) == ["worker_02"]

    acked = run("ack", stream_name, "g", "1-0", "2-0", url=server.url)
    assert acked.returncode == 0, acked.stderr
    assert acked.stdout.startswith("1-0  acknowledged (shard 0, worker_02, ")
    said = facts("ack", stream_name, "g", "1-0", "3-0/0", server=server, code=1)["entries"]
    assert [(each["id"], each["outcome"]) for each in said] == [
        ("1-0", "not pending"),
        ("3-0", "acknowledged"),
    ]
    assert server.command("XPENDING", stream_name, "g")[0] == 1


def test_an_event_of_a_block_is_refused(server: TestServer, stream_name: str) -> None:
    """`ack` explains that the entry is the unit, and does nothing, also to the other IDs."""
    events = msgspec.msgpack.encode([["m", 1_700_000_000_000, {"volts": v}] for v in (230, 231)])
    server.command("XADD", stream_name, "1-0", "volts", 230)
    server.command("XADD", stream_name, "*", "c", "rows1", "n", 2, "d", events)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    _, block = give(server, stream_name, "g", "w", 5)
    said = refusal("ack", stream_name, "g", "1-0", f"{block}/1", server=server)
    assert "is 1 of the 2 events of one entry, and the entry is the unit" in said
    assert server.command("XPENDING", stream_name, "g")[0] == 2
    whole = run("ack", stream_name, "g", f"{block}/0", f"{block}/1", url=server.url)
    assert (whole.returncode, whole.stdout.split(" (")[0]) == (0, f"{block}  acknowledged")


def test_one_shard_of_several(server: TestServer, stream_name: str) -> None:
    """--shard keeps to one shard; one that there is not is wrong usage."""
    server.command("SET", f"{{{stream_name}}}:definition", '{"shards":2}')
    made = facts("group", "create", stream_name, "g", "--shard", "1", server=server)
    assert [each["shard"] for each in made["shards"]] == [1]
    said = refusal("group", "list", stream_name, "--shard", "2", server=server, code=2)
    assert "shard is 2" in said
