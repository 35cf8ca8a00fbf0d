"""`standpipe archive` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import Archive, Stream
from tests.conditions import eventually_sync
from tests.servers.archiving import add, numbers_of
from tests.servers.commands import run
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import send

pytestmark = pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
Started = Callable[..., subprocess.Popen[str]]


async def test_from_run_to_detach(server: TestServer, stream_name: str, tmp_path: Path) -> None:
    """Run, status, files, verify, compact and detach, for people and for programs; exit codes."""
    async with Stream(stream_name, server.url, shards=2) as stream:
        await send(stream, make_events(100))

        def archive(*words: str) -> subprocess.CompletedProcess[str]:
            return run("archive", words[0], stream_name, *words[1:], url=server.url, cwd=tmp_path)

        nameless = archive("run")
        assert (nameless.returncode, "no archive is named" in nameless.stderr) == (2, True)
        (tmp_path / "standpipe.toml").write_text('archive = "kept"\n')
        done = archive("run")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("archived 100 events of ")
        await send(stream, make_events(100, first=100))
        said = json.loads(archive("run", "--once", "--json").stdout)
        assert (said["events"], said["files"], said["archive"]) == (100, 2, str(tmp_path / "kept"))
        shown = archive("status")
        assert shown.returncode == 0
        assert f"stream {stream_name} in {tmp_path / 'kept'}" in " ".join(shown.stdout.split())
        shards = json.loads(archive("status", "--json").stdout)["shards"]
        assert [(each["files"], each["not_yet"], each["gaps"]) for each in shards] == [
            (2, 0, 0)
        ] * 2
        compacted = archive("compact", "--all")
        assert compacted.stdout == "4 files put together; there are 2 now\n"
        files = archive("files").stdout.splitlines()
        assert len(files) == 2
        assert archive("verify").stdout.endswith(": sound\n")
        # It raises where the file is not there.
        os.unlink(files[1])  # noqa: PTH108
        checked = archive("verify", "--json")
        assert checked.returncode == 1
        verified = json.loads(checked.stdout)
        assert (verified["is_sound"], verified["findings"][0]["kind"]) == (False, "cursor")
        asked = archive("detach")
        assert asked.returncode == 2
        assert "trimmed without being archived" in asked.stderr
        detached = archive("detach", "--yes")
        assert detached.stdout.startswith("shard 0 detached: archived up to ")
        assert "warning" in detached.stderr
        assert server.command("EXISTS", *map(stream.archived_key, (0, 1))) == 0


def test_follow_until_told_to_stop(
    server: TestServer, stream_name: str, tmp_path: Path, started: Started
) -> None:
    """--follow goes on until SIGTERM, then says what it has done."""
    add(server, stream_name, "100-0", 0)
    archive = Archive(tmp_path / "kept")
    line = ("archive", "run", stream_name, "--to", "kept", "--follow", "--every", "1s")
    process = started(*line, url=server.url, cwd=tmp_path)
    eventually_sync(lambda: archive.files(stream_name), 30)
    add(server, stream_name, "100-1", 1)
    eventually_sync(lambda: len(archive.files(stream_name)) == 2, 30)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith("archived 2 events of 2 entries in 2 files")
    assert numbers_of(archive, stream_name) == [0, 1]
