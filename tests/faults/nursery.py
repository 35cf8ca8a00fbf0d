"""Processes that are started cheaply, and that end where a test says."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Nursery:
    """Starts processes, one at a time, by forking one that has imported all they need.

    Args:
        module: What it runs: a module that calls :func:`serve`.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._rest = b""
        self.pid: int | None = None
        self.status: int | None = None
        """How the last one ended: the signal that killed it, or 0."""

    def begin(self, **given: object) -> None:
        self._in.write(json.dumps(given).encode() + b"\n")
        word, _, pid = self._line(30).partition(b" ")
        assert word == b"pid"
        self.pid = int(pid)

    def wait(self, deadline_s: float) -> bool:
        """Wait until the process has ended; False: it has not."""
        if b"\n" not in self._rest and not select.select([self._out], [], [], deadline_s)[0]:
            return False
        word, _, status = self._line(1).partition(b" ")
        assert word == b"ended"
        self.status = int(status)
        self.pid = None
        return True

    def kill(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait(10)

    def _line(self, deadline_s: float) -> bytes:
        while b"\n" not in self._rest:
            assert select.select([self._out], [], [], deadline_s)[0], "the nursery hangs"
            chunk = self._out.read(4096)
            assert chunk, "the nursery has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        if self.pid is not None:
            self.kill()
        self._in.close()
        self._process.wait(10)
        self._out.close()


# --- inside of the processes ---------------------------------------------------------------------


def serve(start: Callable[[dict[str, Any]], None]) -> None:
    """Fork a process for each line of JSON on standard input, which is called with what it says.

    Says ``pid <pid>``, and ``ended`` when it has. In a process that began no thread yet.
    """
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            start(json.loads(line))
            os._exit(0)
        print("pid", child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", status, flush=True)


def kill_at(owner: type, name: str, when: str, number: int) -> None:
    """End this process, as SIGKILL does, before or after one of the calls of a method."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def before() -> bool:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        return calls == number

    def call(*args: Any, **options: Any) -> Any:
        is_last = before()
        result = original(*args, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    async def call_async(*args: Any, **options: Any) -> Any:
        is_last = before()
        result = await original(*args, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call_async if asyncio.iscoroutinefunction(original) else call)
