"""A killed put and a full disk leave no blob that is half there."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from standpipe.blobs import Blobs
from standpipe.errors import BlobDeniedError, BlobStoreError
from tests.servers.fileserver import ftp_server

pytestmark = pytest.mark.faults
MIB = 1024 * 1024

PUTTER = """
import io, os, sys
from standpipe.blobs import Blobs
blobs = Blobs(sys.argv[1])
while True:
    print(blobs.put(io.BytesIO(os.urandom(8 * 1024 * 1024))), flush=True)
    print(blobs.put(os.urandom(100_000)), flush=True)
"""


@contextlib.contextmanager
def putting(where: str) -> Iterator[subprocess.Popen[str]]:
    """A process that puts until it is killed, which it is at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUTTER, where],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def wait_until_half_written(folder: Path, seen: set[str], size: int) -> None:
    """Wait until a new temporary file has that size. Busy: a kill has to meet the put."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / "tmp") as entries:
            for entry in entries:
                if entry.name not in seen and entry.stat().st_size >= size:
                    return
    raise AssertionError(f"no put was seen with {size} bytes written")


@pytest.mark.parametrize(("kind", "rounds"), [("folder", 16), ("ftp", 6)])
def test_a_killed_put_leaves_no_half_blob(tmp_path: Path, kind: str, rounds: int) -> None:
    """However far a put has come when its process is killed: each blob that has a name is whole,
    and what the process has been told is put is there."""
    folder = tmp_path / "root" / "blobs"
    folder.parent.mkdir()
    references: list[str] = []
    cut: set[str] = set()
    with contextlib.ExitStack() as stack:
        where = str(folder)
        if kind == "ftp":
            where = f"{stack.enter_context(ftp_server(folder.parent))}/blobs"
        sizes = itertools.cycle([0, 1, MIB, 4 * MIB, 8 * MIB - 1, 8 * MIB])
        for size in itertools.islice(sizes, rounds):
            with putting(where) as process:
                assert process.stdout is not None
                # The first put of each process is one that is told.
                told = [process.stdout.readline()]
                wait_until_half_written(folder, cut, size)
                process.kill()
                told += process.stdout
            references += [line.strip() for line in told if line.endswith("\n")]
            cut |= {path.name for path in (folder / "tmp").iterdir()}
        blobs = Blobs(where)
        assert blobs.verify(references) == []
        assert all(map(blobs.exists, references))
        # Else the kills would have missed what they were for.
        assert len(cut) >= rounds // 3
        assert blobs.get(blobs.put(b"after")) == b"after"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root: to mount a small disk")
    mounted = subprocess.run(line, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("needs root: to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_full_disk_is_told_and_costs_no_blob(small_disk: Path, tmp_path: Path, kind: str) -> None:
    """The put that does not fit fails with what is wrong, leaves nothing behind, and harms none."""
    blobs = Blobs(small_disk / "blobs")
    payload = tmp_path / "payload"
    references: list[str] = []
    with pytest.raises(BlobStoreError, match="No space left on device") as caught:
        for _ in range(9):
            payload.write_bytes(os.urandom(MIB))
            references.append(blobs.put(payload.read_bytes() if kind == "bytes" else payload))
    assert caught.value.retryable
    assert "free space" in caught.value.hint
    assert 5 <= len(references) < 9
    assert list((small_disk / "blobs" / "tmp").iterdir()) == []
    assert blobs.verify(references) == []
    assert blobs.delete(references.pop())
    assert blobs.exists(blobs.put(payload))


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    """What is there can still be read; a put says that writing is not allowed."""
    blobs = Blobs(small_disk / "blobs")
    reference = blobs.put(b"before")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert blobs.get(reference) == b"before"
    assert blobs.verify([reference]) == []
    for data in (b"before", b"after"):
        with pytest.raises(BlobDeniedError, match="Read-only file system"):
            blobs.put(data)
