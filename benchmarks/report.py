"""Writes the figures of benchmarks/run.py into the documentation, and draws their chart.

    python benchmarks/report.py benchmarks/results/DATE.json

What stands between ``<!-- bench -->`` and ``<!-- /bench -->`` in docs/performance.md and README.md
is replaced: all tables in the former, the first in the latter.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from measuring import stolen_told

ROOT = Path(__file__).parent.parent
CHART = ROOT / "docs" / "performance.png"
NAMES = {
    "redis-py": "redis-py 8, pipelines of 1,000",
    "faststream": "FastStream, batches of 1,000",
    "standpipe-plain": "Standpipe, plain",
    "standpipe-rows": "Standpipe, rows",
    "standpipe-rows-struct": "Standpipe, rows, msgspec Struct",
    "standpipe-rows-send": "Standpipe, rows, one `send` per event",
    "standpipe-columns": "Standpipe, columns",
}
CPU = ("produce_cpu_us", "consume_cpu_us", "server_cpu_us")


def markdown(result: dict[str, Any]) -> list[str]:
    """All tables, as lines of Markdown."""
    lines = [*headline(result), "", *rates(result, "aof"), ""]
    if any(name.endswith("no-aof") for name in result["figures"]):
        lines += ["Without an append-only file:", "", *rates(result, "no-aof"), ""]
    for name, limit in result["server_limit"].items():
        plain = result["figures"].get(f"standpipe-plain produce {name}")
        share = (
            f"; Standpipe plain is at {100 * plain['events_per_s'] / limit:.0f} % of it"
            if plain
            else ""
        )
        aof = "with AOF everysec" if name == "aof" else "without AOF"
        lines.append(f"- `redis-benchmark` XADD of the same fields, {aof}: {limit:,.0f}/s{share}.")
    if result["latency"]:
        lines += ["", *latencies(result)]
    starts = result["start_ms"]
    if starts:
        told = ", ".join(f"`standpipe {name}` {ms:.0f} ms" for name, ms in starts.items())
        lines += ["", f"Start to end of a command: {told}."]
    return lines


def headline(result: dict[str, Any]) -> list[str]:
    versions = result["versions"]
    told = ", ".join(f"{name} {versions[name]}" for name in ("python", "redis", "server"))
    return [
        f"{result['when']}, {result['machine']['cores']} cores, {told}, AOF everysec, level "
        f"`memory`; medians of {result['rounds']} rounds{stolen_told(result)}."
    ]


def rates(result: dict[str, Any], aof: str) -> list[str]:
    lines = [
        "| | produced/s | consumed/s | both at once/s | of redis-py's | producer µs | worker µs "
        "| server µs | server, of a core | bytes/event |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    other = result["figures"].get(f"redis-py both {aof}")
    for subject, name in NAMES.items():
        found = {
            mode: result["figures"].get(f"{subject} {mode} {aof}")
            for mode in ("produce", "consume", "both")
        }
        if found["produce"] is None:
            continue
        cells = [name]
        for mode in ("produce", "consume", "both"):
            figures = found[mode]
            cells.append(f"{figures['events_per_s']:,.0f}" if figures else "-")
        is_told = other is not None and found["both"] is not None
        cells.append(
            f"{found['both']['events_per_s'] / other['events_per_s']:.1f} x" if is_told else "-"
        )
        both = found["both"] or found["produce"]
        cells += [f"{both[field]:.2f}" if field in both else "-" for field in CPU]
        cells.append(f"{both['server_core_percent']:.0f} %")
        cells.append(f"{found['produce']['server_bytes']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def latencies(result: dict[str, Any]) -> list[str]:
    lines = [
        "| from when it was due to its handler, ms | p50 | p99 | p99.9 | max | sent/s "
        "| sender µs | worker µs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in result["latency"].items():
        subject, rate = name.split()
        title = f"{NAMES[subject].split(', pipe')[0]}, {int(rate):,} events/s"
        cells = [f"{found[mark]:.2f}" for mark in ("p50", "p99", "p99.9", "max")]
        cells.append(f"{found['reached_per_s']:,.0f}")
        sides = (found.get("sender_cpu_us"), found.get("worker_cpu_us"))
        cells += ["-" if cpu is None else f"{cpu:.0f}" for cpu in sides]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def draw(result: dict[str, Any]) -> None:
    """End to end, both sides at once, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        name.replace("`", ""): figures["events_per_s"]
        for subject, name in NAMES.items()
        if (figures := result["figures"].get(f"{subject} both aof"))
    }
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    colours = ["#2a6f97" if name.startswith("Standpipe") else "#a0a0a0" for name in shown]
    bars = axes.barh(list(shown), list(shown.values()), color=colours)
    axes.bar_label(bars, [f"{value:,.0f}" for value in shown.values()], padding=4)
    axes.set_xscale("log")
    axes.set_xlim(right=max(shown.values()) * 6)
    axes.invert_yaxis()
    axes.set_xlabel("events per second, sent, stored, delivered and acknowledged (log)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(CHART, dpi=130)


def put(path: Path, lines: list[str]) -> None:
    text = path.read_text()
    new = "<!-- bench -->\n" + "\n".join(lines) + "\n<!-- /bench -->"
    text, count = re.subn(r"<!-- bench -->.*?<!-- /bench -->", lambda _: new, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path} has {count} places for the figures, not one")
    path.write_text(text)


if __name__ == "__main__":
    outcome = json.loads(Path(sys.argv[1]).read_text())
    put(ROOT / "docs" / "performance.md", markdown(outcome))
    put(ROOT / "README.md", [*headline(outcome), "", *rates(outcome, "aof")])
    draw(outcome)
