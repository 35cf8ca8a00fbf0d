"""The processors of this machine: how many this process may use, and how many are idle."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from standpipe.limits import PROCESSES_MAX


def allowed_processors() -> int:
    """How many this process may use, by its affinity and by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, quota()))


def quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The processors of the control group's quota, rounded up; without one PROCESSES_MAX.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    try:
        limit, period = map(int, path.read_text().split())
    except (OSError, ValueError):
        return PROCESSES_MAX  # No such file, or "max 100000".
    return max(1, math.ceil(limit / period))


def idle_seconds(path: Path = Path("/proc/stat")) -> float | None:
    """For how long the processors have been idle since the start, s, all together.

    None where the system does not say so. Waiting for a disk is idle: somebody could compute.

    Source: https://man7.org/linux/man-pages/man5/proc_stat.5.html
    """
    try:
        with path.open() as file:
            name, *ticks = file.readline().split()
        if name != "cpu":
            return None
        return (int(ticks[3]) + int(ticks[4])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def waited_seconds(path: Path = Path("/proc/self/task")) -> float | None:
    """For how long threads of this process were ready to run and had no processor, s, all together.

    None where the system does not say so.

    Source: https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
    """
    waited = 0
    try:
        for thread in path.iterdir():
            try:
                waited += int((thread / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has ended meanwhile.
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9
