"""The command line as a user runs it: processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ENV = {name: value for name, value in os.environ.items() if not name.startswith("STANDPIPE_")}
if paths := ENV.get("PYTHONPATH"):
    # A relative one would lead somewhere else from the folder of a test.
    ENV["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths.split(":"))


def run(
    *args: str, url: str = "", cwd: Path | None = None, stdin: str | bytes = ""
) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "standpipe", *args],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env=ENV | ({"STANDPIPE_URL": url} if url else {}),
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def started() -> Iterator[object]:
    """Starts commands that go on, and ends them after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(
        *args: str, url: str = "", cwd: Path | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "standpipe", *args],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=cwd,
                env=ENV | ({"STANDPIPE_URL": url} if url else {}),
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
