"""A disk that is small enough to be filled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of its own at a new folder; without root the test is skipped."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root: to mount a small disk")
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    if subprocess.run(line, capture_output=True, check=False).returncode != 0:
        # Root of a container may not mount either.
        pytest.skip("needs root: to mount a small disk")
    try:
        yield folder
    finally:
        # Lazily: a program that has just been ended may still hold a file.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left of a disk; the file that takes it is to be removed."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        while (stat := os.statvfs(folder)).f_bavail:
            # Whoever else writes there may take some of it first: then there is less to take.
            with contextlib.suppress(OSError):
                size = file.seek(0, os.SEEK_END)
                os.posix_fallocate(file.fileno(), size, stat.f_bavail * stat.f_frsize)
    return ballast
