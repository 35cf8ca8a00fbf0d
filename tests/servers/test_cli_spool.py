"""`send` with a spool, and the commands for one: as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Event, Producer, Stream
from standpipe.spool import Spool, SpooledBlock
from tests.conditions import eventually_sync
from tests.servers.commands import run
from tests.servers.entries import TIME
from tests.servers.fleet import TestServer, free_port

OwnServer = Callable[..., TestServer]
Started = Callable[..., subprocess.Popen[str]]
SEND = ("send", "power", "-F", "ndjson", "--json", "--spool", "s", "--send-deadline-ms", "100ms")


def lines(first: int, count: int) -> str:
    """Numbered readings of one device."""
    return "".join(
        json.dumps({"key": "m", "time": TIME + n, "n": n}) + "\n"
        for n in range(first, first + count)
    )


def stored(server: TestServer) -> list[int]:
    tailed = run("tail", "power", "--json", url=server.url)
    assert tailed.returncode == 0, tailed.stderr
    return [json.loads(line)["fields"]["n"] for line in tailed.stdout.splitlines()]


def waiting(path: Path) -> int:
    """Events in a spool, which may not be there yet."""
    if not path.exists() or not path.stat().st_size:
        return 0
    return json.loads(run("spool", "show", str(path), "--json").stdout)["events"]


@pytest.fixture
def server(own_server: OwnServer) -> TestServer:
    """One that keeps what it has acknowledged when it is killed."""
    return own_server("valkey-9.1", appendonly="yes", appendfsync="always")


def test_send_while_the_server_is_away(server: TestServer, tmp_path: Path) -> None:
    """What the server does not take waits in the spool, and the exit code is 3; the next run sends
    it first, and the exit code is 0 when all is acknowledged."""
    first = run(*SEND, url=server.url, cwd=tmp_path, stdin=lines(0, 10))
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["in_spool"] == 0
    server.kill()
    for number in (10, 20):
        sent = run(*SEND, url=server.url, cwd=tmp_path, stdin=lines(number, 10))
        assert sent.returncode == 3, sent.stderr
        facts = json.loads(sent.stdout)
        assert (facts["sent"], facts["spooled"], facts["in_spool"]) == (10, 10, number)
    server.start()
    assert stored(server) == list(range(10))
    last = run(*SEND[:4], *SEND[5:], url=server.url, cwd=tmp_path, stdin=lines(30, 10))
    assert last.returncode == 0, last.stderr
    assert "0 events went there, 20 were drained, 0 wait" in last.stdout
    assert stored(server) == list(range(40))


def test_a_first_start_needs_the_server(tmp_path: Path) -> None:
    """A spool that knows no stream yet does not help: the error says that the server is away."""
    url = f"redis://127.0.0.1:{free_port()}"
    sent = run(*SEND, url=url, cwd=tmp_path, stdin=lines(0, 1))
    assert sent.returncode == 1
    assert "error: " in sent.stderr
    assert "hint: " in sent.stderr


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_nothing_that_was_read(
    server: TestServer, tmp_path: Path, started: Started, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end an input that would go on; all lines that were read are on the server,
    or in the spool while that is away."""
    sending = started(*SEND, url=server.url, cwd=tmp_path, stdin=subprocess.PIPE)
    assert sending.stdin is not None
    sending.stdin.write(lines(0, 10))
    sending.stdin.flush()
    eventually_sync(lambda: server.command("XLEN", "power"), 20, what="events have arrived")
    server.kill()
    sending.stdin.write(lines(10, 990) + '{"key": "m", "time": 1, "n": 99')
    sending.stdin.flush()
    # They have been read when the pipe is empty.
    eventually_sync(lambda: _in_pipe(sending) == 0, 20, what="the lines were read")
    sending.send_signal(number)
    sending.wait(20)
    assert sending.stdout is not None
    assert sending.stderr is not None
    assert sending.returncode == 3, sending.stderr.read()
    facts = json.loads(sending.stdout.read())
    assert (facts["sent"], facts["rejected"], facts["unsent"]) == (1000, 0, 0)
    server.start()
    drained = run("spool", "drain", "s", "--json", url=server.url, cwd=tmp_path)
    assert drained.returncode == 0, drained.stderr
    assert json.loads(drained.stdout)["drained"] == facts["in_spool"] >= 900
    assert stored(server) == list(range(1000))


def _in_pipe(process: subprocess.Popen[str]) -> int:
    import array
    import fcntl
    import termios

    assert process.stdin is not None
    count = array.array("i", [0])
    fcntl.ioctl(process.stdin.fileno(), termios.FIONREAD, count)
    return count[0]


@pytest.mark.faults
def test_a_signal_ends_a_wait_for_input(
    server: TestServer, tmp_path: Path, started: Started
) -> None:
    """A command at the end of a silent pipe ends at once when asked to."""
    sending = started(*SEND, url=server.url, cwd=tmp_path, stdin=subprocess.PIPE)
    assert sending.stdin is not None
    sending.stdin.write(lines(0, 3))
    sending.stdin.flush()
    eventually_sync(lambda: server.command("XLEN", "power"), 20, what="events have arrived")
    sending.send_signal(signal.SIGTERM)
    sending.wait(5)
    assert sending.stdout is not None
    assert sending.returncode == 0
    assert json.loads(sending.stdout.read())["sent"] == 3


@pytest.mark.faults
def test_a_signal_ends_a_wait_for_a_named_pipe(
    server: TestServer, tmp_path: Path, started: Started
) -> None:
    """So does one that was given a named pipe."""
    os.mkfifo(tmp_path / "pipe")
    sending = started("send", "power", "pipe", *SEND[2:], url=server.url, cwd=tmp_path)
    with (tmp_path / "pipe").open("w") as pipe:
        pipe.write(lines(0, 3))
        pipe.flush()
        eventually_sync(lambda: server.command("XLEN", "power"), 20, what="events have arrived")
        sending.send_signal(signal.SIGTERM)
        sending.wait(5)
    assert sending.returncode == 0


@pytest.mark.faults
@pytest.mark.slow
def test_a_signal_with_a_full_spool(server: TestServer, tmp_path: Path, started: Started) -> None:
    """Where nothing takes what was read, the command says how many there are, with exit code 1."""
    assert run(*SEND, url=server.url, cwd=tmp_path, stdin=lines(0, 1)).returncode == 0
    server.kill()
    (tmp_path / "r.ndjson").write_text(lines(1, 20_000))
    options = ("--spool-bytes-max", "20KiB", "--buffer-events-max", "500", "--block-events-max")
    sending = started(
        "send", "power", "r.ndjson", *SEND[4:], *options, "50", url=server.url, cwd=tmp_path
    )
    eventually_sync(lambda: waiting(tmp_path / "s"), 20, what="the spool is in use")
    sending.send_signal(signal.SIGTERM)
    out, err = sending.communicate(timeout=40)
    assert sending.returncode == 1
    assert "events were not acknowledged" in err, (out, err)


# --- spool show, verify, drain -------------------------------------------------------------------


@pytest.fixture
def quick(own_server: OwnServer) -> TestServer:
    return own_server("valkey-9.1")


@pytest.fixture
async def spool(quick: TestServer, tmp_path: Path) -> Path:
    """A spool with 30 events of two shards that were sent while the server was out of memory."""
    path = tmp_path / "s"
    async with Stream("power", quick.url, shards=2, codec="plain", key_field="meter") as stream:
        producer = await Producer(stream, spool=path, deadline_ms=50, block_events_max=5).start()
        quick.command("CONFIG", "SET", "maxmemory", "1")
        await producer.send_many(Event(f"m{n % 5}", TIME + n, {"n": n}) for n in range(30))
        await producer.flush()
        await producer.close()
    quick.command("CONFIG", "SET", "maxmemory", "0")
    return path


def test_show(quick: TestServer, spool: Path) -> None:
    """`spool show` gives what waits per shard, what was set aside and why, and the first events."""
    found = json.loads(run("spool", "show", str(spool), "--json", "--events", "3").stdout)
    assert (found["stream"], found["events"], found["aside"]) == ("power", 30, [])
    assert sum(each["events"] for each in found["series"]) == 30
    assert len(found["series"]) == 2
    assert len(found["first_events"]) == 3
    assert {each["key"] for each in found["first_events"]} <= {f"m{n}" for n in range(5)}
    series = found["series"][0]
    with Spool(spool) as holder:
        name = (series["shard_key"], series["producer_id"])
        holder.set_aside(*name, series["first_sequence"], reason="the server said no")
        # While a producer has it.
        text = run("spool", "show", str(spool), "--events", "1").stdout
    assert "the spool of power" in text
    assert "the server said no" in text
    assert "set aside: 5 events in 1 blocks" in text
    assert f"{series['shard_key']} " in text
    assert " n=" in text.splitlines()[-1]


def test_verify(quick: TestServer, spool: Path) -> None:
    """`spool verify` exits with 0 for a sound spool and with 1 and the finding for another."""
    sound = run("spool", "verify", str(spool))
    assert sound.returncode == 0
    assert sound.stdout.endswith(" blocks, sound\n")
    with Spool(spool) as holder:
        first = holder.summary().series[0]
        block = SpooledBlock(first.shard_key, first.producer_id, 1000, "rows1", 1, b"no rows")
        holder.append([block])
    found = run("spool", "verify", str(spool), "--json")
    assert found.returncode == 1
    kinds = {each["kind"]: each for each in json.loads(found.stdout)["findings"]}
    assert set(kinds) == {"content", "gap"}
    assert kinds["content"]["sequence"] == 1000
    assert "content: block 1000 of " in run("spool", "verify", str(spool)).stdout


def test_drain(quick: TestServer, spool: Path) -> None:
    """`spool drain` sends what waits and says how much that was; of an empty one nothing."""
    drained = run("spool", "drain", str(spool), url=quick.url)
    assert drained.returncode == 0, drained.stderr
    assert "drained 30 events; nothing waits" in drained.stdout
    assert sorted(stored(quick)) == list(range(30))
    again = run("spool", "drain", str(spool), "--json", url=quick.url)
    assert json.loads(again.stdout) == {"drained": 0, "set_aside": 0, "aside_events": 0}


def test_drain_gives_a_lost_definition_back(quick: TestServer, spool: Path) -> None:
    """A server that has lost everything gets the stream's definition from the spool."""
    quick.command("FLUSHALL")
    assert run("spool", "drain", str(spool), url=quick.url).returncode == 0
    assert sorted(stored(quick)) == list(range(30))
    assert '"key_field":"meter"' in quick.cli("GET", "{power}:definition")


def test_drain_refuses_what_is_in_use(quick: TestServer, spool: Path) -> None:
    """While a producer has the spool it drains it; the error names its process."""
    with Spool(spool):
        refused = run("spool", "drain", str(spool), url=quick.url)
    assert refused.returncode == 1
    assert "is in use by process " in refused.stderr


def test_drain_gives_up_at_its_deadline(quick: TestServer, spool: Path) -> None:
    """At the deadline it ends with exit code 1 and the reason; the events still wait."""
    quick.command("CONFIG", "SET", "maxmemory", "1")
    refused = run("spool", "drain", str(spool), "--deadline", "300ms", url=quick.url)
    assert refused.returncode == 1
    assert "30 events still wait" in refused.stderr
    assert "OOM" in refused.stderr
    assert waiting(spool) == 30


def test_drain_ends_where_waiting_does_not_help(quick: TestServer, spool: Path) -> None:
    """A password that is wrong, or a stream that was made anew in another way, is an error at
    once, and the events still wait."""
    url = f"redis://nobody:wrong@127.0.0.1:{quick.port}"
    refused = run("spool", "drain", str(spool), url=url)
    assert refused.returncode == 1
    assert "WRONGPASS" in refused.stderr
    quick.command("SET", "{power}:definition", '{"shards":4}')
    other = run("spool", "drain", str(spool), url=quick.url)
    assert other.returncode == 2
    assert "has shards 4 on the server, 2 was asked" in other.stderr
    assert waiting(spool) == 30


def test_a_spool_that_is_not_there(tmp_path: Path) -> None:
    """None of the commands creates one."""
    for name in ("show", "verify", "drain"):
        done = run("spool", name, str(tmp_path / "none"))
        assert done.returncode == 1
        assert "there is no spool at" in done.stderr
    assert not (tmp_path / "none").exists()
