"""The demo's course: server, workers, data, the kill, and the balance."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console

from standpipe import EmbeddedServer, Event, Producer, Stream, datasets
from standpipe.demo.ledger import RECORD_BYTES, Account, balance, read_records, records
from standpipe.demo.process import Report, records_path, report_path
from standpipe.demo.show import Display, Moment, print_ledger
from standpipe.errors import StandpipeError
from standpipe.keyspace import definition_key, partition
from standpipe.observe import stream_status

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from standpipe.producer import Receipts

GROUP: Final = "monitoring_group"
WORKERS: Final = 3
VICTIM: Final = 1
CHUNK_EVENTS: Final = 5_000
TAKEOVER_MS: Final = 2_000
"""Short, so that the takeover happens while one watches; the default of a worker is 30 s."""
POLL_S: Final = 0.02
SETTLE_S_MAX: Final = 60
"""How long the workers may take for what is left after the last event was sent."""


class Options(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    dataset: str = "wntr"
    variant: str | None = None
    days: float = 7
    devices: int | None = None
    shards: int = 2
    rate: float = 1_000
    """Events per second of the steady part."""
    steady_s: float = 10
    """How long the steady part lasts, s."""
    url: str | None = None
    data: Path | None = None


class Result(msgspec.Struct, frozen=True):
    """What the demo found; the JSON output."""

    account: Account
    balances: bool
    facts: dict[str, Any]


class _Sent:
    """What was sent, kept aside until there is time to digest it."""

    def __init__(self) -> None:
        self.lists: list[tuple[list[Event], Receipts, int]] = []
        self.steady_from = 0

    async def records(self, shards: int) -> npt.NDArray[np.void]:
        import numpy as np

        found: list[npt.NDArray[np.void]] = []
        for events, receipts, at_ns in self.lists:
            ids = await receipts
            if None in ids:
                raise StandpipeError("the server no longer remembers where an event was added")
            homes = [partition(event.key, shards) for event in events]
            found.append(records(homes, [i for i in ids if i is not None], events, at_ns))
        return np.concatenate(found)


async def run(options: Options, console: Console) -> Result:
    """Run the whole demo.

    Raises:
        StandpipeError: the data set, the server or a worker could not be started.
    """
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="standpipe-demo-")))
        display = Display(console)
        dataset = await asyncio.to_thread(
            datasets.load,
            options.dataset,
            variant=options.variant,
            days=options.days,
            devices=options.devices,
        )
        display.say(
            f"data     {dataset.name} {dataset.variant}: {dataset.count:,} readings of "
            f"{dataset.devices:,} devices ({dataset.summary})"
        )
        url = options.url
        if url is None:
            server = EmbeddedServer(options.data or scratch / "server", port=0)
            await stack.enter_async_context(server)
            url = server.url
            display.say(f"server   {url}, data and AOF in {server.data}")
        name = f"standpipe_demo_{uuid.uuid4().hex[:8]}"
        stream = await stack.enter_async_context(Stream(name, url, shards=options.shards))
        stack.push_async_callback(_remove, stream)
        crew = _Crew(url, name, scratch)
        stack.push_async_callback(crew.kill)
        await crew.start()
        display.say(
            f"workers  {WORKERS} processes of {GROUP!r}: pids {', '.join(map(str, crew.pids))}"
        )
        with display:
            course = _Course(options, stream, crew, display, dataset)
            return await course.run(console)


async def _remove(stream: Stream) -> None:
    """The demo's keys are its own, on a server that may not be."""
    for shard, key in enumerate(stream.keys):
        await stream.server.call("UNLINK", key, stream.dead_key(shard), key=key)
    # What the worker that was killed has said of itself would go by itself, but later.
    await stream.server.call("UNLINK", *stream.report_keys(GROUP), key=stream.keys[0])
    await stream.server.call("UNLINK", definition_key(stream.name), key=definition_key(stream.name))


class _Crew:
    """The worker processes."""

    def __init__(self, url: str, stream: str, folder: Path) -> None:
        self._line = [sys.executable, "-m", "standpipe.demo.process", url, stream, GROUP]
        self._folder = folder
        self.names = [f"worker_{n + 1:02}" for n in range(WORKERS)]
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def alive(self) -> int:
        return sum(process.returncode is None for process in self._processes)

    async def start(self) -> None:
        for name in self.names:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *self._line, name, str(self._folder), str(TAKEOVER_MS)
                )
            )
        deadline = time.monotonic() + SETTLE_S_MAX
        while not all(report_path(self._folder, name).exists() for name in self.names):
            if self.alive < WORKERS or time.monotonic() > deadline:
                raise StandpipeError("a worker process of the demo did not start")
            await asyncio.sleep(POLL_S)

    def reports(self) -> list[Report]:
        return [
            msgspec.json.decode(report_path(self._folder, name).read_bytes(), type=Report)
            for name in self.names
        ]

    @property
    def record_paths(self) -> list[Path]:
        return [records_path(self._folder, name) for name in self.names]

    @property
    def handled(self) -> int:
        return sum(path.stat().st_size for path in self.record_paths) // RECORD_BYTES

    def signal_one(self, number: signal.Signals) -> int:
        os.kill(self.pids[VICTIM], number)
        return self.pids[VICTIM]

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
        codes = [await process.wait() for process in self._processes]
        failed = [c for n, c in enumerate(codes) if c and n != VICTIM]
        if failed:
            raise StandpipeError(f"a worker process of the demo failed with {failed[0]}")

    async def kill(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


class _Course:
    def __init__(
        self,
        options: Options,
        stream: Stream,
        crew: _Crew,
        display: Display,
        dataset: datasets.Dataset,
    ) -> None:
        self._options = options
        self._stream = stream
        self._crew = crew
        self._display = display
        self._dataset = dataset
        self._moment = Moment(total=dataset.count)
        self._sent = _Sent()
        self._acknowledged: list[Producer] = []
        self._facts: dict[str, Any] = {}

    async def run(self, console: Console) -> Result:
        watching = asyncio.create_task(self._watch())
        killing = asyncio.create_task(self._kill_in_the_middle())
        try:
            steady = min(
                self._dataset.count // 2, round(self._options.rate * self._options.steady_s)
            )
            events = list(self._dataset.events())
            await self._flat_out(events[: len(events) - steady])
            # The steady part is about latency, so it does not queue behind the first one.
            await self._until_handled(but=self._crew.names[VICTIM])
            await self._steadily(events[len(events) - steady :])
            self._moment.phase = "waiting for the rest: the dead worker's entries are taken over"
            await killing
            await self._until_handled()
        finally:
            for side in (watching, killing):
                side.cancel()
            for ended in await asyncio.gather(watching, killing, return_exceptions=True):
                if isinstance(ended, Exception):
                    self._display.say(f"[red]{ended}[/red]")
        await self._crew.stop()
        self._facts["taken over"] = f"{sum(r.taken_over for r in self._crew.reports()):,} entries"
        self._moment.phase = "balancing the ledger"
        self._display.update(self._moment)
        return await self._account(console)

    async def _flat_out(self, events: list[Event]) -> None:
        self._moment.phase = f"flat out: {len(events):,} readings in blocks"
        async with Producer(self._stream, codec="rows") as producer:
            self._acknowledged.append(producer)
            began = time.perf_counter()
            for start in range(0, len(events), CHUNK_EVENTS):
                await self._send(producer, events[start : start + CHUNK_EVENTS])
            await producer.flush()
            took_s = time.perf_counter() - began
        self._facts["flat out, blocks"] = (
            f"{len(events) / took_s:,.0f} events/s sent and acknowledged"
        )
        self._sent.steady_from = len(events)

    async def _steadily(self, events: Sequence[Event]) -> None:
        rate = self._options.rate
        self._moment.phase = f"steady: {len(events):,} readings as plain entries, {rate:,.0f}/s"
        async with Producer(self._stream, codec="plain") as producer:
            self._acknowledged.append(producer)
            async for due in datasets.replay(events, rate=rate):
                await self._send(producer, due)
        self._facts["steady, plain"] = f"{rate:,.0f} events/s"

    async def _send(self, producer: Producer, events: list[Event]) -> None:
        at_ns = time.time_ns()
        self._sent.lists.append((events, await producer.send_many(events), at_ns))

    async def _kill_in_the_middle(self) -> None:
        """SIGKILL a worker while it holds entries, once a third of the readings are handled."""
        name = self._crew.names[VICTIM]
        # Another process writes what is read here: nothing could wake this one.
        while self._crew.handled < self._dataset.count // 3:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        while True:
            # Stopped first: what it holds then is what it holds when it dies.
            self._crew.signal_one(signal.SIGSTOP)
            await asyncio.sleep(POLL_S)
            if held := await self._held(name):
                break
            self._crew.signal_one(signal.SIGCONT)
            await asyncio.sleep(POLL_S)
        pid = self._crew.signal_one(signal.SIGKILL)
        self._display.say(f"SIGKILL  {name} (pid {pid}), which held {held:,} entries")
        self._facts["killed"] = f"{name} with {held:,} entries pending"

    async def _held(self, consumer: str) -> int:
        """Entries pending for one consumer, over all shards."""
        status = await stream_status(self._stream)
        groups = [group for shard in status.shards for group in shard.groups]
        return sum(each.pending for g in groups for each in g.consumers if each.name == consumer)

    async def _until_handled(self, *, but: str | None = None) -> None:
        """Wait until every entry is delivered, and acknowledged by all consumers but one."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while not await self._is_handled(but):
            if time.monotonic() > deadline:
                # No error: the ledger will show what is missing.
                self._display.say(f"not everything is handled after {SETTLE_S_MAX} s")
                return
            await asyncio.sleep(POLL_S)

    async def _is_handled(self, but: str | None) -> bool:
        status = await stream_status(self._stream)
        return all(
            group.last_delivered == shard.last
            and not any(each.pending for each in group.consumers if each.name != but)
            for shard in status.shards
            for group in shard.groups
        )

    async def _watch(self) -> None:
        """Keep the display fresh."""
        moment, before, sent, handled = self._moment, time.perf_counter(), 0, 0
        while True:
            status = await stream_status(self._stream)
            groups = [group for shard in status.shards for group in shard.groups]
            lags = [group.lag for group in groups]
            moment.lag = None if None in lags else sum(lag for lag in lags if lag is not None)
            moment.pending = sum(group.pending for group in groups)
            moment.sent = sum(p.stats.acknowledged for p in self._acknowledged)
            moment.handled = self._crew.handled
            moment.taken_over = sum(report.taken_over for report in self._crew.reports())
            moment.workers = self._crew.alive
            now = time.perf_counter()
            moment.rate_in = (moment.sent - sent) / (now - before)
            moment.rate_out = (moment.handled - handled) / (now - before)
            before, sent, handled = now, moment.sent, moment.handled
            self._display.update(moment)
            await asyncio.sleep(0.2)

    async def _account(self, console: Console) -> Result:
        sent = await self._sent.records(self._stream.shards)
        processed = read_records(self._crew.record_paths)
        status = await stream_status(self._stream)
        dead = sum(shard.dead for shard in status.shards)
        account = balance(sent, processed, dead=dead, steady_from=self._sent.steady_from)
        memory = [shard.memory_bytes for shard in status.shards]
        if None not in memory:
            kept = sum(size for size in memory if size is not None)
            self._facts["server memory"] = f"{kept / max(1, len(sent)):.1f} bytes per event"
        if account.flat_handled_per_s is not None:
            self._facts["flat out, handled"] = f"{account.flat_handled_per_s:,.0f} events/s"
        for name, value in (
            ("p50", account.latency_p50_ms),
            ("p99", account.latency_p99_ms),
            ("max", account.latency_max_ms),
        ):
            if value is not None:
                self._facts[f"latency {name}"] = f"{value:.2f} ms (steady part, send to handled)"
        return Result(account, account.balances, self._facts)


def show_result(result: Result, console: Console) -> None:
    """Print the ledger and the figures."""
    print_ledger(console, result.account, result.facts)
