"""States of a stream as a server would show them, for what is said about them."""

from __future__ import annotations

from typing import Any

from standpipe.observe import ConsumerStatus, GroupStatus, ShardStatus, StreamStatus, WorkerStatus
from standpipe.worker import WorkerReport


def report(**known: Any) -> WorkerReport:
    """A worker that has measured and has time left, but for what is given."""
    usual: dict[str, Any] = {
        "host": "north", "pid": 1, "concurrency": 4, "processors": 4, "in_flight": 10,
        "in_flight_max": 1_000, "window_ms": 5_000, "events_per_s": 100.0, "handlers": 1.0,
        "waiting_share": 0.3, "cpu_share": 0.2, "cpu_wait_share": 0.0, "loop_lag_ms": 0,
        "blocked_share": 0.0, "idle_processors": 2.0, "failures": 0, "is_ordered": False,
        "is_batch": False,
    }  # fmt: skip
    return WorkerReport(**usual | known)


def worker(name: str = "w", **known: Any) -> WorkerStatus:
    return WorkerStatus("g", name, 100, report(**known))


def reading(
    at: int = 0,
    *,
    lag: int | None = 0,
    pending: int = 0,
    behind_ms: int | None = 0,
    added: int | None = None,
    requeued: int = 0,
    consumers: tuple[ConsumerStatus, ...] = (),
    workers: list[WorkerStatus] | None = None,
    shards: int = 1,
    server_cpu_ms: int | None = None,
) -> StreamStatus:
    """A stream of some shards, whose first has what is given, with one group ``g``."""

    def shard(number: int) -> ShardStatus:
        has = number == 0
        group = GroupStatus(
            "g",
            lag if has else 0,
            pending if has else 0,
            None,
            "0-0",
            list(consumers) if has else [],
            behind_ms if has else 0,
            requeued if has else 0,
        )
        return ShardStatus(
            shard=number,
            key=f"s{number}",
            length=100,
            first="1-0",
            last="2-0",
            memory_bytes=None,
            dead=0,
            trimmed=0,
            groups=[group],
            added=None if added is None else added if has else 0,
            server_cpu_ms=server_cpu_ms,
        )

    return StreamStatus("s", "redis://here", [*map(shard, range(shards))], at, workers or [])


def grows(*, workers: list[WorkerStatus], shards: int = 1, cpu_ms: int = 0) -> list[StreamStatus]:
    """Two readings 2 s apart: 300 entries come in each second, and 100 are done."""
    return [
        reading(0, lag=1_000, behind_ms=9_000, added=5_000, workers=workers, shards=shards,
                server_cpu_ms=0),
        reading(2_000, lag=1_400, behind_ms=10_000, added=5_600, workers=workers, shards=shards,
                server_cpu_ms=cpu_ms),
    ]  # fmt: skip
