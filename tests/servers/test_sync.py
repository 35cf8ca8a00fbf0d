"""The blocking face does the same from a plain script, and inside a loop that runs already."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from standpipe import Event, Reject, sync
from standpipe.errors import (
    ConfigError,
    ServerUnavailableError,
    StreamNotFoundError,
    WrongTypeError,
)
from tests.conditions import eventually_sync
from tests.servers.entries import TIME, make_events, numbers
from tests.servers.fleet import TestServer, free_port


def test_sending_and_reading(server: TestServer, stream_name: str) -> None:
    """What is sent, singly, in lists and as a table, is acknowledged and read back."""
    import pyarrow as pa

    with sync.Stream(stream_name, server.url, shards=2) as stream:
        first = stream.send(Event("m-1", TIME, {"n": 0}))
        second = stream.send({"key": "m-1", "time": TIME, "n": 1})
        assert first is not None and second is not None and first < second
        many = stream.send_many(make_events(100, keys=1, first=2))
        assert len(many) == 100 and None not in many
        table = pa.table({"key": ["m-1"] * 3, "time": [TIME] * 3, "n": [102, 103, 104]})
        ids = stream.send_table(table)
        events = list(stream.read())
        assert sorted(numbers(events)) == list(range(105))
        assert numbers(stream.read(start=ids[0], end=ids[0])) == [102]
        batches = list(stream.read_batches())
        assert sum(batch.table().num_rows for batch in batches) == 105
        assert {event_id for batch in batches for event_id in batch.ids} >= {first, *many, *ids}


def test_following(server: TestServer, stream_name: str) -> None:
    """Following waits for what is sent by another thread, and can be left."""
    with sync.Stream(stream_name, server.url) as stream, sync.Stream(stream_name, server.url) as b:
        stream.send_many(make_events(3))
        sender = threading.Thread(target=lambda: b.send_many(make_events(3, first=3)))
        seen: list[int] = []
        for event in stream.read(follow=True):
            seen += numbers([event])
            if len(seen) == 3:
                sender.start()
            if len(seen) == 6:
                break
        sender.join()
        assert seen == list(range(6))
        # Left in the middle, it has given its connection back.
        gc.collect()
        eventually_sync(lambda: "cmd=xread" not in server.cli("CLIENT", "LIST"))


@pytest.mark.filterwarnings("error")
def test_reading_that_outlives_the_stream(server: TestServer, stream_name: str) -> None:
    """An iteration that is still there when the stream is closed ends with it, quietly."""
    with sync.Stream(stream_name, server.url) as stream:
        stream.send_many(make_events(3))
        events = stream.read(follow=True)
        assert numbers([next(events)]) == [0]
        never_begun = stream.read()
    events.close()
    with pytest.raises(ConfigError, match="not open"):
        next(never_begun)
    del events
    gc.collect()


def test_working(server: TestServer, stream_name: str) -> None:
    """A handler gets the events, plain or async, until something stops it."""
    with sync.Stream(stream_name, server.url) as stream:
        stream.send_many(make_events(200))
        seen: list[int] = []

        def handle(event: Event) -> None:
            if event.fields["n"] == 7:
                raise Reject("seven")
            seen.append(event.fields["n"])
            if len(seen) == 199:
                server.command("XGROUP", "DESTROY", stream_name, "g")
                server.command("DEL", stream_name)
                server.command("SET", stream_name, "no stream any more")

        with pytest.raises(WrongTypeError):
            stream.work("g", handle)
        assert sorted(seen) == [n for n in range(200) if n != 7]


def test_errors_come_through(server: TestServer, stream_name: str) -> None:
    """Errors are those of the async face, with their types."""
    with (
        pytest.raises(ServerUnavailableError),
        sync.Stream("s", f"redis://127.0.0.1:{free_port()}"),
    ):
        pass
    with pytest.raises(ConfigError, match="not open"):
        sync.Stream(stream_name, server.url).send(make_events(1)[0])
    with sync.Stream(stream_name, server.url) as stream, pytest.raises(StreamNotFoundError):
        list(stream.read())
    server.command("SET", stream_name, "text")
    with sync.Stream(stream_name, server.url) as stream, pytest.raises(WrongTypeError):
        stream.send(make_events(1)[0])
    with pytest.raises(TypeError, match="nosuch"):
        sync.Stream(stream_name, server.url, producer={"nosuch": 1}).__enter__()


def test_used_twice(server: TestServer, stream_name: str) -> None:
    """A stream can be opened again after it was closed."""
    stream = sync.Stream(stream_name, server.url)
    for n in range(2):
        with stream:
            stream.send_many(make_events(5, first=5 * n))
    with stream:
        assert numbers(stream.read()) == list(range(10))


async def test_inside_a_running_loop(server: TestServer, stream_name: str) -> None:
    """As in a notebook's cell: a loop that runs already is not in the way."""
    with sync.Stream(stream_name, server.url, producer={"block_events_max": 10}) as stream:
        stream.send_many(make_events(50))
        assert numbers(stream.read()) == list(range(50))


def test_from_several_threads(server: TestServer, stream_name: str) -> None:
    """Threads share a stream; each has its own results."""
    with sync.Stream(stream_name, server.url) as stream:
        ids: dict[int, object] = {}

        def send(first: int) -> None:
            for event in make_events(50, first=first):
                ids[event.fields["n"]] = stream.send(event)

        threads = [threading.Thread(target=send, args=(50 * n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        standing = {
            event.fields["n"]: event_id
            for batch in stream.read_batches()
            for event_id, event in zip(batch.ids, batch, strict=True)
        }
        assert standing == ids and len(ids) == 300


# --- Ctrl-C --------------------------------------------------------------------------------------

# A shell that runs the tests in the background has switched SIGINT off for all below it.
_HEAD = """
import signal, sys
from standpipe import sync
signal.signal(signal.SIGINT, signal.default_int_handler)
name, url = sys.argv[1:]
"""
_FOLLOW = """
with sync.Stream(name, url) as stream:
    try:
        for event in stream.read(follow=True):
            print(event.fields["n"], flush=True)
    except KeyboardInterrupt:
        stream.send({"key": "m", "n": 99})
        print("interrupted", flush=True)
"""
_WORK = """
def handle(event):
    print(event.fields["n"], flush=True)

with sync.Stream(name, url) as stream:
    stream.work("g", handle, name="w", in_flight_events_max=1)
    print("drained", flush=True)
"""


@contextmanager
def running(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _HEAD + script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[str], first_lines: list[str]) -> list[str]:
    """What it prints after Ctrl-C, once it has printed these lines."""
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in first_lines] == first_lines
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert err == ""
    assert process.returncode == 0
    return out.split()


def test_ctrl_c_while_following(server: TestServer, stream_name: str) -> None:
    """Ctrl-C ends the wait for more, leaves the stream usable and the process without a trace of
    complaints."""
    server.command("XADD", stream_name, "*", "n", 1)
    with running(_FOLLOW, stream_name, server.url) as process:
        assert interrupted(process, ["1"]) == ["interrupted"]
    assert server.command("XLEN", stream_name) == 2


def test_ctrl_c_while_working(server: TestServer, stream_name: str) -> None:
    """Ctrl-C drains the worker: what was handled is acknowledged, and the consumer has left."""
    server.command("XADD", stream_name, "*", "n", 1)
    with running(_WORK, stream_name, server.url) as process:
        assert interrupted(process, ["1"]) == ["drained"]
    assert server.command("XPENDING", stream_name, "g")[0] == 0
    assert server.command("XINFO", "CONSUMERS", stream_name, "g") == []
