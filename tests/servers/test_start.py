"""How long the command line takes to start: a script that sends one reading pays it each time.

The bounds are of CPU time, which a busy machine stretches far less than the clock; the least of
some runs counts, because what else a machine does only ever adds. A machine that is slower by
itself is allowed more: by what importing redis-py, the larger part of a send, takes on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.commands import ENV
from tests.servers.fleet import Fleet

HELP_MS_MAX = 200
HELP_TIMES_MAX = 1.2
SEND_MS_MAX = 400
SEND_TIMES_MAX = 2.6
RUNS_MAX = 10


def cpu_ms(*args: str, url: str, stdin: Path, compiled: Path) -> float:
    """The CPU time, of all threads, that one run of Python takes from its start to its end.

    Args:
        args: Python's.
        compiled: A folder for compiled modules. As installed they are compiled; where the
            environment forbids that, each start would compile all of them anew.
    """
    env = {name: value for name, value in ENV.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with stdin.open("rb") as given:
        process = subprocess.Popen(
            [sys.executable, *args],
            stdin=given,
            stdout=subprocess.DEVNULL,
            env=env | {"STANDPIPE_URL": url, "PYTHONPYCACHEPREFIX": str(compiled)},
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return (used.ru_utime + used.ru_stime) * 1000


@pytest.mark.parametrize(
    ("args", "ms_max", "times_max"),
    [
        (("--help",), HELP_MS_MAX, HELP_TIMES_MAX),
        (("send", "{stream}", "--format", "ndjson"), SEND_MS_MAX, SEND_TIMES_MAX),
    ],
    ids=["help", "send"],
)
def test_starting_is_quick(
    fleet: Fleet,
    stream_name: str,
    tmp_path: Path,
    args: tuple[str, ...],
    ms_max: float,
    times_max: float,
) -> None:
    """The help is there within 200 ms of CPU time, and one event is sent within 400, or on a slow
    machine within so many times what the import takes there."""
    reading = tmp_path / "reading.ndjson"
    reading.write_text('{"key": "meter-1", "time": 1767225600000, "volts": 230.5}\n')
    url = fleet.shared("valkey-9.1").url
    given = [arg.format(stream=stream_name) for arg in args]
    took: list[float] = []
    imports: list[float] = []

    def is_quick() -> bool:
        return min(took) <= max(ms_max, times_max * min(imports))

    # The first run of each compiles what it imports.
    while len(took) < 2 or (not is_quick() and len(took) < RUNS_MAX):
        took.append(cpu_ms("-m", "standpipe", *given, url=url, stdin=reading, compiled=tmp_path))
        imports.append(
            cpu_ms("-c", "import redis.asyncio", url=url, stdin=reading, compiled=tmp_path)
        )
    assert is_quick(), f"CPU-ms: {sorted(map(round, took))}, imports {sorted(map(round, imports))}"
