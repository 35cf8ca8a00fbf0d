"""What a server sees of its machine: another clock, or less memory than there is.

The server is a real one and reads clock and memory as it always does. A small library that is
loaded before the C library answers it, so that the machine's own clock stays as it is.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *ahead_us;
static long pages;

__attribute__((constructor)) static void look(void) {
    const char *path = getenv("SEEN_CLOCK"), *memory = getenv("SEEN_PAGES");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file >= 0) {
        void *seen = mmap(NULL, sizeof *ahead_us, PROT_READ, MAP_SHARED, file, 0);
        if (seen != MAP_FAILED) ahead_us = seen;
        close(file);
    }
    pages = memory ? atol(memory) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int done = syscall(SYS_clock_gettime, id, now);
    if (done == 0 && id == CLOCK_REALTIME && ahead_us) {
        int64_t us = now->tv_sec * INT64_C(1000000) + now->tv_nsec / 1000 + *ahead_us;
        now->tv_sec = us / 1000000;
        now->tv_nsec = us % 1000000 * 1000;
    }
    return done;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (into) *into = found.tv_sec;
    return found.tv_sec;
}

long sysconf(int name) {
    static long (*real)(int);
    if (name == _SC_PHYS_PAGES && pages) return pages;
    if (!real) real = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
    return real(name);
}
"""


def _build(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("program not installed: cc")
    (folder / "sight.c").write_text(_LIBRARY)
    built = folder / "sight.so"
    line = [compiler, "-O1", "-fPIC", "-shared", "-o", str(built), str(folder / "sight.c"), "-ldl"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


class Sight:
    """What one server sees; without a compiler the test is skipped.

    Args:
        folder: A folder of the test's.
        memory: The machine's memory, bytes; None: as it is.
    """

    def __init__(self, folder: Path, *, memory: int | None = None) -> None:
        self._library = _build(folder)
        self._clock = folder / "clock"
        self._memory = memory
        self.move_clock(0)

    def move_clock(self, ms: int) -> None:
        """Set by how much the server's clock is ahead, also while it runs."""
        # In place, as the server has the file mapped.
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("q", ms * 1000))

    @property
    def inside(self) -> tuple[str, ...]:
        """For ``TestServer(inside=…)``."""
        words = [f"LD_PRELOAD={self._library}", f"SEEN_CLOCK={self._clock}"]
        if self._memory is not None:
            words.append(f"SEEN_PAGES={self._memory // os.sysconf('SC_PAGESIZE')}")
        return ("/usr/bin/env", *words)
