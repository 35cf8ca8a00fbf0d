"""Standpipe beside redis-py, FastStream and the server's own limit: rates, CPU, memory, latency.

    python benchmarks/run.py [--quick] [--rounds N] [--only SUBJECT,…] [--json FILE]

Everything runs in one go on the embedded server, the subjects in turn within each round, so that a
machine whose speed drifts treats them alike; medians over the rounds are given. Each side is a
process of its own, so its CPU is its own: process time, and INFO cpu of the server.
``benchmarks/report.py FILE`` writes the tables and the chart into the documentation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import uvloop
from measuring import Stolen, bench_server, latency, limit_of_server, machine, measure
from report import markdown

# Events per measurement: about a second of the quicker side's work.
SUBJECTS = {
    "redis-py": 100_000,
    "faststream": 20_000,
    "standpipe-plain": 200_000,
    "standpipe-rows": 1_000_000,
    "standpipe-rows-struct": 1_000_000,
    "standpipe-rows-send": 300_000,
    "standpipe-columns": 5_000_000,
}
PLAIN = ("redis-py", "standpipe-plain")
"""Those that are measured without an append-only file as well."""
LATENCY = {"redis-py": (1_000, 10_000), "standpipe-plain": (1_000, 10_000),
           "standpipe-rows": (1_000, 10_000)}  # fmt: skip
MODES = ("produce", "consume", "both")


def start_ms(*words: str, runs: int = 9) -> float:
    """Median wall time of a command, ms."""
    times: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        line = [sys.executable, "-m", "standpipe", *words]
        subprocess.run(line, check=True, capture_output=True, input=b'{"key":"m","volts":1.5}\n')
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


async def main(subjects: dict[str, int], rounds: int, latency_s: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    limits: dict[str, list[float]] = defaultdict(list)
    timed: dict[str, list[dict[str, float]]] = defaultdict(list)
    starts: dict[str, float] = {}
    stolen = Stolen()
    for aof in (True, False):
        name = "aof" if aof else "no-aof"
        async with bench_server(aof=aof) as bench:
            wanted = subjects if aof else {k: n for k, n in subjects.items() if k in PLAIN}
            for number in range(rounds):
                for subject, count in wanted.items():
                    for mode in MODES:
                        if subject.endswith("-send") and mode != "produce":
                            continue
                        figures = await measure(bench, subject, mode, count)
                        found[f"{subject} {mode} {name}"].append(figures)
                        told = f"{figures['events_per_s']:>12,.0f} events/s"
                        print(f"{number + 1}/{rounds} {subject:<22} {mode:<8} {name:<7}{told}")
                limit = limit_of_server(bench.url, 300_000)
                await bench.server.call("UNLINK", "bench_limit", key="bench_limit")
                if limit is not None:
                    limits[name].append(limit)
            if aof:
                for _ in range(max(1, rounds // 2)):
                    for subject, rates in LATENCY.items():
                        for rate in rates if subject in subjects else ():
                            figures = await latency(bench, subject, rate, latency_s)
                            timed[f"{subject} {rate}"].append(figures)
                            print(f"latency {subject} at {rate}/s: p50 {figures['p50']:.2f} ms")
                starts["--help"] = start_ms("--help")
                words = ("send", "bench_start", "--format", "ndjson", "--url", bench.url)
                starts["send"] = start_ms(*words)
    return {
        **machine(),
        "stolen_percent": stolen.percent(),
        "rounds": rounds,
        "events": subjects,
        "figures": {name: medians(each) for name, each in found.items()},
        "server_limit": {name: statistics.median(each) for name, each in limits.items()},
        "latency": {name: medians(each) for name, each in timed.items()},
        "start_ms": starts,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a fifth of the events")
    parser.add_argument("--only", help="subjects, separated by commas")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(SUBJECTS)
    counts = {name: SUBJECTS[name] // (5 if options.quick else 1) for name in chosen}
    outcome = uvloop.run(
        main(counts, 1 if options.quick else options.rounds, 3 if options.quick else 20)
    )
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")
    print("\n".join(markdown(outcome)))
