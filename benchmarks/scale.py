"""Whether cost grows in proportion: events/s and CPU-µs per event as a stream, its shards, its keys
or its pending entries grow; and what the size of blocks does.

    python benchmarks/scale.py [--only events,shards,keys,block,pending] [--quick] [--rounds N]
                               [--json FILE] [--into docs/performance.md]
    python benchmarks/scale.py --from FILE --into docs/performance.md

One thing varies at a time, on the embedded server with its AOF (everysec); the cases take turns
within each round; given are the medians over the rounds, of CPU the least. Producing and consuming
follow one another. A handler decodes every event, and what came is counted: a run that lost one, or
got one twice, ends with an error. What starting and stopping costs whatever the length (connecting,
the group, leaving it) is measured with a stream of one event and taken off; the table names it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import uvloop
from measuring import Stolen, machine, stolen_told
from sides import DEVICES, dicts

from standpipe import Batch, EmbeddedServer, Producer, Stream, Worker
from standpipe.limits import BLOCK_EVENTS_MAX

CHUNK = 5_000
PREPARED = 500_000
"""Readings that are made before the clock starts, and sent over and over: 50 million dicts would
not fit in memory. A block is compressed by itself, so that they repeat makes none smaller."""
SMALL = 200_000
"""Cases below this many events are repeated within a round until they have handled as many."""
LARGE = 2_000_000
"""Cases above this many events run in the first round alone."""
AGAIN_MIN = 3
"""Such a run is made so often at least and its range is shown: one alone may be a lucky one."""
EVENTS = 500_000
"""Events of a case that varies something else."""
SEEDED = 1_000
"""Entries that one script call makes pending."""
GROUP = "scale"
RECOVERY_S = 20.0
"""What was pending already is handled for this long at most; then what came is counted."""


class Case(NamedTuple):
    """One line of a table."""

    varies: str
    value: int
    codec: str
    events: int = EVENTS
    shards: int = 1
    keys: int = DEVICES
    block: int = BLOCK_EVENTS_MAX
    is_baseline: bool = False

    @property
    def name(self) -> str:
        return f"{self.varies} {self.codec} {self.value}"


def throughput_cases(quick: bool) -> list[Case]:
    """What is sent and handled; of each codec and each thing that varies one is the baseline."""
    most = 1_000_000 if quick else 50_000_000
    plain_most = min(most, 2_000_000)
    found: list[Case] = []
    for codec, limit in (("plain", plain_most), ("rows", most), ("columns", most)):
        counts = {10_000, 100_000, 1_000_000, 10_000_000, 50_000_000, limit}
        found += [
            Case("events", count, codec, events=count, is_baseline=count == 1_000_000)
            for count in sorted(counts)
            if count <= limit
        ]
        # A table is cut into blocks of 16,384 rows: several for each of 64 shards.
        events = {"plain": EVENTS // 2, "rows": EVENTS, "columns": 4 * EVENTS}[codec]
        found += [
            Case("shards", shards, codec, events, shards=shards, is_baseline=shards == 1)
            for shards in (1, 4, 16, 64)
        ]
        found += [
            Case("keys", keys, codec, events, keys=keys, is_baseline=keys == DEVICES)
            for keys in (1, 10, 100, 1_000, DEVICES)
        ]
    found += [
        Case("block", block, "rows", EVENTS // 10 if block == 1 else EVENTS, block=block,
             is_baseline=block == BLOCK_EVENTS_MAX)
        for block in (1, 10, 50, 100, 500, 1_000, 2_000, 5_000)
    ]  # fmt: skip
    return found


# --- what is sent --------------------------------------------------------------------------------


class Prepared:
    """Readings of so many keys, as lists of dicts and as a table."""

    def __init__(self) -> None:
        self._keys: int | None = None
        self._dicts: list[dict[str, Any]] = []
        self._table: pa.Table = pa.table({})

    def of(self, keys: int) -> Prepared:
        if self._keys != keys:
            gc.unfreeze()
            self._dicts = dicts(PREPARED, keys)
            self._table = pa.Table.from_pylist(self._dicts)
            self._keys = keys
            # Else each collection of the measured code would look through these as well.
            gc.collect()
            gc.freeze()
        return self

    def lists(self, count: int) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, count, CHUNK):
            at = start % PREPARED
            yield self._dicts[at : at + min(CHUNK, count - start)]

    def tables(self, count: int) -> Iterator[pa.Table]:
        for start in range(0, count, PREPARED):
            yield self._table.slice(0, min(PREPARED, count - start))


# --- measuring -----------------------------------------------------------------------------------


Figures = dict[str, float | None]


class Took(NamedTuple):
    """Seconds on the clock, of this process and of the server."""

    wall: float
    client: float
    server: float


async def server_cpu_s(stream: Stream) -> float:
    info = await stream.server.info(stream.name, "cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def took(stream: Stream, run: Callable[[], Awaitable[Any]]) -> Took:
    server, client, wall = await server_cpu_s(stream), time.process_time(), time.perf_counter()
    await run()
    wall_s, client_s = time.perf_counter() - wall, time.process_time() - client
    return Took(wall_s, client_s, await server_cpu_s(stream) - server)


async def produce(stream: Stream, case: Case, prepared: Prepared, count: int) -> Took:
    async with Producer(stream, codec=case.codec, block_events_max=case.block) as producer:

        async def run() -> None:
            if case.codec == "columns":
                for table in prepared.tables(count):
                    await producer.send_table(table)
            else:
                for part in prepared.lists(count):
                    await producer.send_many(part)
            await producer.flush()

        found = await took(stream, run)
        assert producer.stats.acknowledged == count, f"{producer.stats} of {count}"
        return found


async def consume(
    stream: Stream,
    count: int,
    *,
    codec: str,
    name: str | None = None,
    seconds_max: float = 3600,
) -> tuple[Took, int]:
    """Handle so many events, or what comes in so many seconds; returns how many came."""
    seen = 0
    worker = Worker(stream, GROUP, name=name)

    @worker.batch
    async def handle(batch: Batch) -> None:
        nonlocal seen
        seen += batch.table().num_rows if codec == "columns" else len(batch.events)
        if seen >= count:
            worker.stop()

    late = asyncio.get_running_loop().call_later(seconds_max, worker.stop)
    found = await took(stream, worker.run)
    late.cancel()
    return found, seen


async def forget(stream: Stream) -> None:
    for key in stream.keys:
        await stream.server.call("UNLINK", key, key=key)


async def throughput(url: str, case: Case, prepared: Prepared, count: int) -> tuple[Took, Took]:
    """Produce and consume so many events of a case."""
    name = f"scale_{case.varies}_{case.codec}_{case.shards}"
    async with Stream(name, url, shards=case.shards, codec=case.codec) as stream:
        try:
            produced = await produce(stream, case, prepared, count)
            consumed, seen = await consume(stream, count, codec=case.codec)
            assert seen == count, f"{case.name}: {seen} of {count} events came"
        finally:
            await forget(stream)
    return produced, consumed


def per_event(found: Sequence[Took], fixed: Took, events: int) -> Figures:
    """Rate and CPU-µs per event of several runs of the same, without what each costs at least.

    None: what is left is less than that cost itself, so it says nothing.
    """
    wall, client, server = (
        total - least if total > 2 * least else None
        for total, least in zip(_median(found), fixed, strict=True)
    )
    return {
        "events_per_s": None if wall is None else events / wall,
        "client_cpu_us": None if client is None else client / events * 1e6,
        "server_cpu_us": None if server is None else server / events * 1e6,
    }


async def fixed_cost(url: str, case: Case, prepared: Prepared) -> tuple[Took, Took]:
    """What a run of one event takes, median of nine: of the same codec and shards."""
    runs = [await throughput(url, case, prepared, 1) for _ in range(9)]
    produced, consumed = zip(*runs, strict=True)
    return _median(produced), _median(consumed)


def _median(found: Sequence[Took]) -> Took:
    return Took(*(statistics.median(values) for values in zip(*found, strict=True)))


async def measure_throughput(url: str, cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    prepared = Prepared()
    runs: dict[Case, list[tuple[Figures, Figures]]] = {case: [] for case in cases}
    fixed: dict[tuple[str, int], tuple[Took, Took]] = {}
    for number in range(rounds):
        # Measured anew in each round: the machine may be slower now.
        fixed.clear()
        # Few changes of the prepared readings; within one number of keys the cases take turns.
        for case in sorted(cases, key=lambda c: c.keys):
            if number and case.events > LARGE:
                continue
            ready = prepared.of(case.keys)
            alike = (case.codec, case.shards)
            if alike not in fixed:
                # What is measured first would pay for imports.
                await throughput(url, case, ready, CHUNK)
                fixed[alike] = await fixed_cost(url, case, ready)
            found = [
                await throughput(url, case, ready, case.events)
                for _ in range(max(1, SMALL // case.events))
            ]
            produced, consumed = (
                per_event(runs_of, least, case.events)
                for runs_of, least in zip(zip(*found, strict=True), fixed[alike], strict=True)
            )
            runs[case].append((produced, consumed))
    return [
        {
            **case._asdict(),
            "produce": _together([produced for produced, _ in found]),
            "consume": _together([consumed for _, consumed in found]),
            "fixed_ms": [took.wall * 1000 for took in fixed[case.codec, case.shards]],
        }
        for case, found in runs.items()
    ]


def _together(found: list[Figures]) -> Figures:
    """Of rates the median; of CPU the least, as others on the machine can only add to it.

    None where a round could not tell: the others would be the slow ones.
    """

    def of(name: str) -> float | None:
        values = [value for each in found if (value := each[name]) is not None]
        if len(values) < len(found):
            return None
        return min(values) if name.endswith("cpu_us") else statistics.median(values)

    return {name: of(name) for name in found[0]}


# --- pending entries -----------------------------------------------------------------------------

ADD = """
for n = 1, ARGV[1] do
  redis.call('XADD', KEYS[1], '*', 'key', 'meter-' .. n, 'time', 1767225600000 + n, 'volts', 230.5,
    'amps', 1.25)
end
"""
TAKE = """
local found = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[1], 'STREAMS',
  KEYS[1], '>')
local command = {'XCLAIM', KEYS[1], ARGV[2], ARGV[3], 0}
for _, entry in ipairs(found[1][2]) do command[#command + 1] = entry[1] end
for _, word in ipairs({'IDLE', ARGV[4], 'JUSTID'}) do command[#command + 1] = word end
redis.call(unpack(command))
"""


async def add_plain(stream: Stream, count: int) -> None:
    """Plain entries as another client would add them, made by the server itself: quickly."""
    for start in range(0, count, SEEDED):
        some = min(SEEDED, count - start)
        await stream.server.call("EVAL", ADD, 1, stream.name, some, key=stream.name)


async def take(stream: Stream, entries: int, name: str, *, idle_ms: int = 0) -> None:
    """Make entries pending for a member of the group, as if idle for so long."""
    key = stream.name
    await stream.server.call("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM", key=key)
    for start in range(0, entries, SEEDED):
        some = min(SEEDED, entries - start)
        await stream.server.call("EVAL", TAKE, 1, key, some, GROUP, name, idle_ms, key=key)


async def used_bytes(stream: Stream) -> int:
    return int((await stream.server.info(stream.name, "memory"))["used_memory"])


class Pending:
    """Measurements with entries that wait in a group for their acknowledgement."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._prepared = Prepared().of(DEVICES)

    @asynccontextmanager
    async def stream(self, codec: str) -> AsyncIterator[Stream]:
        async with Stream(f"scale_pending_{codec}", self._url, codec=codec) as stream:
            try:
                yield stream
            finally:
                await forget(stream)

    async def beside(self, entries: int, events: int) -> tuple[Took, float]:
        """Handle rows while another member, alive, has so many plain entries pending; also what
        each of those takes on the server, bytes."""
        async with self.stream("rows") as stream:
            await add_plain(stream, entries)
            before = await used_bytes(stream)
            await take(stream, entries, "alive")
            size = (await used_bytes(stream) - before) / entries
            await produce(stream, Case("pending", entries, "rows"), self._prepared, events)
            found, seen = await consume(stream, events, codec="rows")
            assert seen == events, f"{seen} of {events} events came beside {entries} pending"
        return found, size

    async def again(self, codec: str, events: int, name: str, idle_ms: int) -> tuple[Took, int]:
        """A worker handles what is pending already, for RECOVERY_S at most: its own, or what a dead
        member has left. Returns how many events came."""
        async with self.stream(codec) as stream:
            if codec == "plain":
                await add_plain(stream, events)
            else:
                await produce(stream, Case("pending", events, codec), self._prepared, events)
            entries = await stream.server.call("XLEN", stream.name, key=stream.name)
            await take(stream, entries, name, idle_ms=idle_ms)
            return await consume(
                stream, events, codec=codec, name="worker_01", seconds_max=RECOVERY_S
            )


async def measure_pending(url: str, rounds: int, quick: bool) -> list[dict[str, Any]]:
    sizes = [10, 1_000, 100_000] if quick else [10, 100, 1_000, 10_000, 100_000, 1_000_000]
    pending = Pending(url)
    await pending.beside(10, CHUNK)
    least = _median([(await pending.beside(10, 1))[0] for _ in range(9)])
    runs: dict[int, list[tuple[Took, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            runs[size].append(await pending.beside(size, EVENTS))
    found: list[dict[str, Any]] = []
    for size in sizes:
        line: dict[str, Any] = {"varies": "pending", "value": size}
        line["consume"] = per_event([took for took, _ in runs[size]], least, EVENTS)
        # Of fewer the server's buffers are more than what they take.
        line["server_bytes_per_entry"] = (
            statistics.median(size for _, size in runs[size]) if size >= 10_000 else None
        )
        for codec in ("plain", "rows"):
            if size < 1_000:
                continue
            for what, name, idle_ms in (("back", "worker_01", 0), ("dead", "dead", 3_600_000)):
                again = [
                    await pending.again(codec, size, name, idle_ms)
                    for _ in range(max(rounds, AGAIN_MIN))
                ]
                line[f"{what}_{codec}"] = [
                    {"events": seen, "wall_s": took.wall} for took, seen in again
                ]
        found.append(line)
    return found


# --- the tables ----------------------------------------------------------------------------------

WHAT = {
    "events": "Events in the stream",
    "shards": "Shards",
    "keys": "Distinct keys",
    "block": "Events per block (`block_events_max`), rows",
}


def rate(of: Figures) -> str:
    found = of["events_per_s"]
    return "?" if found is None else f"{found:,.0f}"


def cpu(of: Figures) -> str:
    both = (of["client_cpu_us"], of["server_cpu_us"])
    return " + ".join("?" if found is None else f"{found:.3f}" for found in both)


def change(of: Figures, baseline: Figures) -> str:
    """How much faster or slower than the baseline."""
    if of is baseline:
        return "·"
    mine, other = of["events_per_s"], baseline["events_per_s"]
    return "?" if mine is None or other is None else f"{(mine / other - 1) * 100:+.0f} %"


def change_of_cpu(of: Figures, baseline: Figures) -> str:
    """How much more or less CPU an event takes than in the baseline, client and server together."""
    if of is baseline:
        return "·"
    mine, other = ((each["client_cpu_us"], each["server_cpu_us"] or 0.0) for each in (of, baseline))
    if mine[0] is None or other[0] is None:
        return "?"
    return f"{((mine[0] + mine[1]) / (other[0] + other[1]) - 1) * 100:+.0f} %"


def throughput_table(varies: str, lines: list[dict[str, Any]]) -> Iterator[str]:
    yield f"**{WHAT[varies]}**"
    yield ""
    yield (
        f"| | {varies} | produce, events/s | | CPU-µs, producer + server | | "
        "consume, events/s | | CPU-µs, worker + server | |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for line in lines:
        baseline = next(
            other for other in lines if other["codec"] == line["codec"] and other["is_baseline"]
        )
        cells = [line["codec"], f"{line['value']:,}"]
        for side in ("produce", "consume"):
            of, least = line[side], baseline[side]
            cells += (rate(of), change(of, least), cpu(of), change_of_cpu(of, least))
        yield f"| {' | '.join(cells)} |"
    yield ""


def pending_table(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "**Pending in the group**"
    yield ""
    yield (
        "| pending | rows consumed beside them, events/s | | CPU-µs, worker + server | "
        "| server bytes per pending entry |"
    )
    yield "|---:|---:|---:|---:|---:|---:|"
    for line in lines:
        of, size = line["consume"], line["server_bytes_per_entry"]
        first = lines[0]["consume"]
        cells = [
            f"{line['value']:,}",
            rate(of),
            change(of, first),
            cpu(of),
            change_of_cpu(of, first),
            f"{size:.0f}" if size is not None else "",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        f"**Events that were pending already, handled again** (slowest to fastest run; for "
        f"{RECOVERY_S:.0f} s at most: in brackets how many came in the slowest, if not all)"
    )
    yield ""
    kinds = ("back_plain", "back_rows", "dead_plain", "dead_rows")
    yield (
        "| events | back under its own name, plain, events/s | likewise, rows | left by a dead "
        "worker, plain | likewise, rows |"
    )
    yield "|---:|---:|---:|---:|---:|"
    for line in lines:
        if kinds[0] not in line:
            continue
        cells = [f"{line['value']:,}"]
        for kind in kinds:
            rates = sorted(run["events"] / run["wall_s"] for run in line[kind])
            least = min(run["events"] for run in line[kind])
            part = "" if least >= line["value"] else f" ({least:,})"
            cells.append(f"{rates[0]:,.0f} to {rates[-1]:,.0f}{part}")
        yield f"| {' | '.join(cells)} |"
    yield ""


def markdown(result: dict[str, Any]) -> str:
    """The tables, and the line that says where they come from."""
    versions, machine = result["versions"], result["machine"]
    text = [
        f"{result['when']}, {machine['cores']} cores, Python {versions['python']}, "
        f"{versions['server']}, AOF everysec; medians of {result['rounds']} rounds, of CPU the "
        f"least of them; above {LARGE:,} events one{stolen_told(result)}. Percentages are against "
        "the line marked · of the same codec; ?: too little beside what starting costs to be told.",
        "",
    ]
    lines = result["lines"]
    for varies in WHAT:
        if some := [line for line in lines if line["varies"] == varies]:
            text += throughput_table(varies, some)
    if some := [line for line in lines if line["varies"] == "pending"]:
        text += pending_table(some)
    fixed = {
        (line["codec"], line["shards"]): line["fixed_ms"] for line in lines if "fixed_ms" in line
    }
    if fixed:
        parts = [
            f"{codec} with {shards} shard{'s' * (shards > 1)} {ms[0]:.1f} and {ms[1]:.1f}"
            for (codec, shards), ms in fixed.items()
            if shards in (1, 64)
        ]
        text.append(
            "Taken off, because it is the same however long a stream is: what it takes to send one "
            f"event, and to start and stop a worker for it, ms: {'; '.join(parts)}."
        )
    return "\n".join(text).rstrip()


def write_into(page: Path, table: str) -> None:
    """Put the tables between their markers in a page.

    Raises:
        SystemExit: the page has no such markers.
    """
    begin, end = "<!-- bench:scale -->", "<!-- /bench:scale -->"
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{page} has not one {begin} and one {end}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")


# --- all of it -----------------------------------------------------------------------------------


async def main(only: Sequence[str], rounds: int, quick: bool) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    stolen = Stolen()
    cases = [case for case in throughput_cases(quick) if case.varies in only]
    with tempfile.TemporaryDirectory(prefix="standpipe-bench-") as folder:
        async with EmbeddedServer(Path(folder) / "server", port=0) as server:
            if cases:
                lines += await measure_throughput(server.url, cases, rounds)
            if "pending" in only:
                lines += await measure_pending(server.url, rounds, quick)
    return {
        **machine(),
        "stolen_percent": stolen.percent(),
        "rounds": rounds,
        "lines": lines,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = (*WHAT, "pending")
    parser.add_argument("--only", default=",".join(names), help="some of: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a million events at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: read this file")
    parser.add_argument("--into", type=Path, help="put the tables between the page's markers")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    outcome = (
        json.loads(given.source.read_text())
        if given.source
        else uvloop.run(main(wanted, given.rounds, given.quick))
    )
    print(markdown(outcome))
    if given.json:
        given.json.write_text(json.dumps(outcome, indent=2) + "\n")
    if given.into:
        write_into(given.into, markdown(outcome))
