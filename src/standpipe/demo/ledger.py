"""The ledger: what was sent against what was processed, event by event. Pure but for its files.

A worker process writes one record per handled event before it acknowledges, to an AppendOnlyFile,
so that they outlive a SIGKILL. (standpipe.testing is the ledger of what was sent to a stream.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from standpipe.event import Event, EventId
from standpipe.testing import digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECORD: Final = (
    ("shard", "<u2"),
    ("ms", "<u8"),
    ("seq", "<u4"),
    ("index", "<u4"),
    ("digest", "<u8"),
    ("at_ns", "<u8"),
)
RECORD_BYTES: Final = 34


def records(
    shards: Iterable[int], ids: Iterable[EventId], events: Iterable[Event], at_ns: int
) -> npt.NDArray[np.void]:
    """One record per event: where it stands, what it says, and when it was sent or handled."""
    import numpy as np

    rows = [
        (shard, ms, seq, index, digest(event), at_ns)
        for shard, (ms, seq, index), event in zip(shards, ids, events, strict=True)
    ]
    return np.array(rows, dtype=np.dtype(list(RECORD)))


class Account(msgspec.Struct, frozen=True):
    """What the ledger says."""

    sent: int
    processed: int
    """Distinct events that a handler has finished."""
    duplicates: int
    """Events handled more than once: a worker died between handling and acknowledging."""
    dead: int
    lost: int
    """Sent and acknowledged, and neither processed nor a dead letter."""
    unknown: int
    """Processed, though nobody sent them."""
    altered: int
    """Processed with another content than was sent."""
    flat_handled_per_s: float | None
    """Of the flat-out part: from the first sent to half of them handled, events per second. Later
    ones may be among those that the killed worker held, and wait for the takeover."""
    latency_p50_ms: float | None
    """Send to handled, of the events sent at a steady rate."""
    latency_p99_ms: float | None
    latency_max_ms: float | None

    @property
    def balances(self) -> bool:
        return self.sent > 0 and not (self.lost or self.unknown or self.altered)


def read_records(paths: Iterable[Path]) -> npt.NDArray[np.void]:
    """All records of the workers' files; one cut short by a SIGKILL in mid-write is left out."""
    import numpy as np

    dtype = np.dtype(list(RECORD))
    assert dtype.itemsize == RECORD_BYTES
    parts: list[npt.NDArray[np.void]] = []
    for path in paths:
        raw = path.read_bytes()
        parts.append(np.frombuffer(raw[: len(raw) // RECORD_BYTES * RECORD_BYTES], dtype=dtype))
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def balance(
    sent: npt.NDArray[np.void], processed: npt.NDArray[np.void], *, dead: int, steady_from: int
) -> Account:
    """Compare both sides.

    Args:
        sent: A record of each acknowledged event, ``at_ns`` when it was sent.
        processed: A record of each handled event, ``at_ns`` when its handler was through.
        dead: Dead letters found on the server.
        steady_from: Index in ``sent`` from which events were sent at a steady rate.
    """
    import numpy as np

    place = ["shard", "ms", "seq", "index"]
    sent_places = sent[place]
    order = np.argsort(processed, order=[*place, "at_ns"], kind="stable")
    ordered = processed[order]
    distinct, first = np.unique(ordered[place], return_index=True)
    handled = ordered[first]
    sent_distinct, sent_index = np.unique(sent_places, return_index=True)
    common, in_sent, in_handled = np.intersect1d(
        sent_distinct, distinct, assume_unique=True, return_indices=True
    )
    origin = sent[sent_index[in_sent]]
    outcome = handled[in_handled]
    steady = sent_index[in_sent] >= steady_from
    delays = (
        outcome["at_ns"][steady].astype(np.int64) - origin["at_ns"][steady].astype(np.int64)
    ) / 1e6

    flat_rate: float | None = None
    if not steady.all():
        began = int(origin["at_ns"][~steady].min())
        half_ns = float(np.median(outcome["at_ns"][~steady].astype(np.int64) - began))
        flat_rate = int(np.count_nonzero(~steady)) / 2 / half_ns * 1e9 if half_ns else None

    def percentile(q: float) -> float | None:
        # Of the first handling: an event that is handled again after a crash was not late.
        return float(np.percentile(delays, q)) if delays.size else None

    missing = len(sent_distinct) - len(common)
    return Account(
        sent=len(sent),
        processed=len(distinct),
        duplicates=len(processed) - len(distinct),
        dead=dead,
        # Two events at one place would be one overwritten by the other: that counts as lost.
        lost=max(0, missing - dead) + len(sent) - len(sent_distinct),
        unknown=len(distinct) - len(common),
        altered=int(np.count_nonzero(origin["digest"] != outcome["digest"])),
        flat_handled_per_s=flat_rate,
        latency_p50_ms=percentile(50),
        latency_p99_ms=percentile(99),
        latency_max_ms=percentile(100),
    )
