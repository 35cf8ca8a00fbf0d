"""Worker processes, started, ill-treated and listened to by a test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

from standpipe.server.embedded import tied_command

ROOT = Path(__file__).parents[2]


class Process:
    """A worker process and what it has said so far."""

    def __init__(self, *arguments: str, module: str = "worker_process") -> None:
        self.process = subprocess.Popen(
            # They end with the tests, however those end.
            tied_command(
                sys.executable,
                "-m",
                f"tests.faults.{module}",
                *arguments,
                number=signal.SIGKILL,
            ),
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[list[str]] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.split())

    def numbers(self, word: str) -> list[int]:
        return [int(n) for said, n, *_ in self.said if said == word]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """SIGKILL, however it is, and read what it had said."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._listener.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
