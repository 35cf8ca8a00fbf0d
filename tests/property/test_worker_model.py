"""Whatever happens to the workers of a group, each event ends once as handled or as a dead letter.

The model is two sets of numbers: those that were sent, and those of them that handlers reject. What
happens in between, on a real server, is Hypothesis' choice.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from standpipe import Batch, Event, Reject, Retry, Stream, Worker
from standpipe.codec import CODECS
from standpipe.errors import ServerError
from tests.conditions import eventually
from tests.servers.entries import make_events, numbers
from tests.servers.fleet import TestServer
from tests.servers.working import letters, running, send, settled

pytestmark = [pytest.mark.servers, pytest.mark.faults]
IDLE_MS = 150
WORKERS_MAX = 3


async def _nothing() -> None:
    pass


class Group(RuleBasedStateMachine):
    """Workers of one group that come, go, die, lose their connection and their entries."""

    server: TestServer

    @initialize(shards=st.sampled_from([1, 3]))
    def begin(self, shards: int) -> None:
        self.runner = asyncio.Runner()
        self.stream = Stream(f"model_{uuid.uuid4().hex}", self.server.url, shards=shards)
        self.sent = 0
        self.rejected: set[int] = set()
        self.failing: set[int] = set()
        """Those that fail the next time they are handled."""
        self.handled: Counter[int] = Counter()
        self.workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self.runner.run(self.stream.open())

    # --- what happens ---

    @rule(
        count=st.integers(1, 12),
        codec=st.sampled_from(CODECS),
        fate=st.sampled_from(["good", "good", "one is rejected", "one fails"]),
    )
    def send(self, count: int, codec: str, fate: str) -> None:
        first, self.sent = self.sent, self.sent + count
        if fate == "one is rejected":
            self.rejected.add(first + count // 2)
        if fate == "one fails":
            self.failing.add(first + count // 2)
        self.runner.run(send(self.stream, make_events(count, first=first), codec))

    @precondition(lambda self: len(self.workers) < WORKERS_MAX)
    @rule(kind=st.sampled_from(["each", "batch"]), in_flight=st.sampled_from([1, 5, 1_000]))
    def start(self, kind: str, in_flight: int) -> None:
        worker = self._worker(kind, in_flight)

        async def run() -> None:
            self.workers.append((worker, asyncio.create_task(worker.run())))
            # Starting is the one moment at which a cut connection is an error.
            await eventually(lambda: worker.consumer._readers)

        self.runner.run(run())

    def _worker(self, kind: str, in_flight: int) -> Worker:
        worker = Worker(
            self.stream,
            "g",
            idle_ms_min=IDLE_MS,
            in_flight_events_max=in_flight,
            deliveries_max=1_000,
            drain_ms_max=1,
        )

        async def each(event: Event) -> None:
            self._handle([event])
            await asyncio.sleep(0.005)
            self.handled.update(numbers([event]))

        async def batch(batch: Batch) -> None:
            self._handle(batch.events)
            await asyncio.sleep(0.005)
            self.handled.update(numbers(batch))

        (worker.each if kind == "each" else worker.batch)(each if kind == "each" else batch)
        return worker

    def _handle(self, events: list[Event]) -> None:
        found = set(numbers(events))
        if failing := found & self.failing:
            self.failing -= failing
            raise Retry(after=10)
        if found & self.rejected:
            raise Reject("the model says so")

    @rule(ms=st.integers(1, 60))
    def time_passes(self, ms: int) -> None:
        self.runner.run(asyncio.sleep(ms / 1000))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), how=st.sampled_from(["stop", "cancel", "die"]))
    def end(self, data: st.DataObject, how: str) -> None:
        worker, task = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))

        async def run() -> None:
            if how == "die":
                # As a process that is killed: nothing more reaches the server.
                worker.consumer.leave = _nothing  # type: ignore[method-assign]
                task.cancel()
            else:
                worker.stop() if how == "stop" else task.cancel()
            await asyncio.wait([task])

        self.runner.run(run())

    @rule()
    def cut(self) -> None:
        self.server.cli("CLIENT", "KILL", "TYPE", "normal")

    @precondition(lambda self: self.workers)
    @rule()
    def take_all_away(self) -> None:
        """A consumer that is dead itself takes over all that is pending."""
        for key in self.stream.keys:
            rows = (
                self.server.command("XPENDING", key, "g", "-", "+", 1_000)
                if self._has_group(key)
                else []
            )
            if ids := [row[0] for row in rows]:
                claim = ("XCLAIM", key, "g", "dead", 0, *ids)
                self.server.command(*claim, "IDLE", 60_000, "JUSTID")

    def _has_group(self, key: str) -> bool:
        if not self.server.command("EXISTS", key):
            return False
        return any("g" in row for row in self.server.command("XINFO", "GROUPS", key))

    # --- what has to hold ---

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.runner.run(self._check())
        finally:
            self.runner.close()

    async def _check(self) -> None:
        last = self._worker("each", 1_000)
        async with running(last):
            await eventually(
                lambda: settled(self.stream),
                20,
                what="all is settled",
                ignore=(ServerError, ValueError),
            )
            await eventually(lambda: not any(w.consumer.in_flight for w, _ in self.workers))
            await eventually(lambda: last.consumer.in_flight == 0)
        for worker, task in self.workers:
            worker.stop()
            await task
        found: list[dict[str, Any]] = await letters(self.stream)
        dead = Counter(numbers(msgspec.msgpack.decode(one["d"], type=Event) for one in found))
        assert dead == Counter(self.rejected)
        assert set(self.handled) == set(range(self.sent)) - self.rejected
        await self.stream.close()


def test_any_course_of_events(server: TestServer) -> None:
    """Workers may start, stop, die, be cut off or robbed of their entries in any order: in the end
    each event is handled at least once or is a dead letter exactly once, and nothing is pending."""

    class OnServer(Group):
        pass

    OnServer.server = server
    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
