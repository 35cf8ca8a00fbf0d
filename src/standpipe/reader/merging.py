"""Several shards in the order of their entry IDs; of equal IDs the lower shard comes first."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from standpipe.event import Batch, Entry
from standpipe.reader.source import Source
from standpipe.reader.tables import concatenated

if TYPE_CHECKING:
    import pyarrow as pa

Place = tuple[int, int, int]
"""Milliseconds and sequence number of an entry, and its shard."""


async def merged_batches(sources: Sequence[Source[Batch]]) -> AsyncGenerator[Batch, None]:
    """What the sources have, as batches of one shard each, in order."""
    left: dict[int, tuple[Sequence[Entry], int]] = {}
    heads: list[tuple[Place, Source[Batch]]] = []

    async def refill(source: Source[Batch]) -> None:
        batch = await source.next()
        if batch is not None:
            left[source.shard] = batch.entries, 0
            heapq.heappush(heads, (_place(batch.entries[0], source.shard), source))

    for source in sources:
        await refill(source)
    while heads:
        _, source = heapq.heappop(heads)
        entries, start = left[source.shard]
        stop = len(entries)
        if heads:
            # All that comes before the next shard's oldest goes out at once.
            limit = heads[0][0]
            stop = start + 1
            while stop < len(entries) and _place(entries[stop], source.shard) < limit:
                stop += 1
        yield Batch(entries[start:stop], stream=source.stream, shard=source.shard)
        if stop < len(entries):
            left[source.shard] = entries, stop
            heapq.heappush(heads, (_place(entries[stop], source.shard), source))
        else:
            await refill(source)


def _place(entry: Entry, shard: int) -> Place:
    return entry.id.ms, entry.id.seq, shard


class _Left(NamedTuple):
    """What is left of a source's table."""

    table: pa.Table
    last: Place


async def merged_tables(sources: Sequence[Source[pa.Table]]) -> AsyncGenerator[pa.Table, None]:
    """What the sources have, as tables over all shards, in order.

    Each table goes up to the earliest end of the tables at hand: nothing before that is to come.
    """
    if len(sources) == 1:
        while (table := await sources[0].next()) is not None:
            yield table
        return
    left: dict[int, _Left] = {}
    open_sources = list(sources)
    while True:
        for source in list(open_sources):
            if source.shard not in left:
                table = await source.next()
                if table is None:
                    open_sources.remove(source)
                else:
                    left[source.shard] = _Left(table, _row(table, -1, source.shard))
        if not left:
            return
        limit = min(each.last for each in left.values())
        parts: list[pa.Table] = []
        for shard in sorted(left):
            table, last = left[shard]
            stop = bisect_right(range(len(table)), limit, key=lambda at: _row(table, at, shard))
            if stop:
                parts.append(table.slice(0, stop))
            if stop == len(table):
                del left[shard]
            else:
                left[shard] = _Left(table.slice(stop), last)
        yield _in_order(parts)


def _row(table: pa.Table, at: int, shard: int) -> Place:
    return table.column("entry_ms")[at].as_py(), table.column("entry_seq")[at].as_py(), shard


def _in_order(parts: Sequence[pa.Table]) -> pa.Table:
    import pyarrow.compute as pc

    table = concatenated(parts)
    if len(parts) == 1:
        return table
    # The sort is stable: of equal IDs the lower shard stays first, and events stay in their entry.
    by_id = [("entry_ms", "ascending"), ("entry_seq", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=by_id))
