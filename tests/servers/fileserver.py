"""A real FTP server in a process of its own: a place for blobs where half a file can be seen."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conditions import eventually_sync


@contextlib.contextmanager
def ftp_server(folder: Path) -> Iterator[str]:
    """Serve a folder to read and write; the URL of it, with user and password."""
    log = folder.with_name(f"{folder.name}.log")
    options = ["-i", "127.0.0.1", "-p", "0", "-w", "-d", str(folder), "-u", "user", "-P", "secret"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyftpdlib", *options], stdout=out, stderr=out
        )

    def port() -> str:
        assert process.poll() is None, log.read_text()
        found = re.search(r"server on 127\.0\.0\.1:(\d+)", log.read_text())
        return found[1] if found else ""

    try:
        yield f"ftp://user:secret@127.0.0.1:{eventually_sync(port)}"
    finally:
        process.terminate()
        process.wait(10)
