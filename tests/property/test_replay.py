"""Whatever a stream holds, and however much of it is archived and trimmed, a replay between any two
points gives what a plain list of its events gives."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standpipe import Event, EventId, Reader, Stream
from standpipe.archive import Archive, Archiver
from standpipe.codec import (
    PlainLayout,
    block_fields,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
)
from standpipe.wire import Server
from tests.servers.fleet import Fleet

KEYS = ("a", "b", "c", None)
FIRST_MS = 1_700_000_000_000


class Placed(NamedTuple):
    """An event and where it stands; sorted as a replay gives it."""

    ms: int
    seq: int
    shard: int
    index: int
    event: Event

    @property
    def id(self) -> EventId:
        return EventId(self.ms, self.seq, self.index)


class Add(NamedTuple):
    shard: int
    later_ms: int
    codec: str
    keys: tuple[str | None, ...]
    ago_ms: int


adds = st.builds(
    Add,
    shard=st.integers(0, 2),
    later_ms=st.integers(0, 3),
    codec=st.sampled_from(("plain", "rows", "columns", "unreadable")),
    keys=st.lists(st.sampled_from(KEYS), min_size=3, max_size=6).map(tuple),
    ago_ms=st.integers(0, 10_000),
)
steps = st.lists(
    st.one_of(*[adds] * 6, st.sampled_from(("archive", "trim"))), min_size=12, max_size=40
)


class Query(NamedTuple):
    """Points as fractions of what there is, so that most of them meet something."""

    start: tuple[str, float] | None
    end: tuple[str, float] | None
    keys: frozenset[str] | None
    rows: int


some_points = st.tuples(
    st.sampled_from(("event", "off", "entry", "time")),
    st.integers(0, 10**6).map(lambda n: n % 1009 / 1008),
)
points = st.one_of(some_points, some_points, some_points, st.none())
queries = st.builds(
    Query,
    start=points,
    end=points,
    keys=st.one_of(
        st.none(), st.none(), st.frozensets(st.sampled_from(("a", "b", "c", "z")), min_size=1)
    ),
    rows=st.integers(1, 8),
)


@given(
    shards=st.sampled_from((3, 2, 1)), steps=steps, asked=st.lists(queries, min_size=3, max_size=4)
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_replay_is_what_the_list_gives(
    fleet: Fleet, shards: int, steps: Sequence[Add | str], asked: Sequence[Query]
) -> None:
    """Archive, trim and add in any order: between any two points, of any devices, in batches as in
    tables, each event comes once and in order, with its ID; and no gap is told."""
    server = fleet.shared("valkey-9.1")

    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(Path(folder))
            async with (
                Server(server.url) as wire,
                Stream(f"replay-{uuid.uuid4().hex}", wire, shards=shards) as stream,
            ):
                placed = await _played(stream, archive, steps)
                for query in asked:
                    await _compare(stream, archive, placed, query)
                await wire.call_many([("UNLINK", key) for key in stream.keys], key=stream.keys[0])

    asyncio.run(check())


async def _played(stream: Stream, archive: Archive, steps: Sequence[Add | str]) -> list[Placed]:
    found: list[Placed] = []
    last = [(0, 0)] * stream.shards
    ms = FIRST_MS
    for step in steps:
        if step == "archive":
            if any(last[shard] > (0, 0) for shard in range(stream.shards)):
                await Archiver(stream, archive, rows_max=7).run()
            continue
        if step == "trim":
            await _trim(stream)
            continue
        assert isinstance(step, Add)
        shard = step.shard % stream.shards
        ms += step.later_ms
        seq = last[shard][1] + 1 if last[shard][0] == ms else 0
        last[shard] = ms, seq
        n = len(found)
        keys = step.keys[:1] if step.codec == "plain" else step.keys
        events = [
            Event(key, ms - step.ago_ms + at, {"n": n + at, "v": float(at)})
            for at, key in enumerate(keys)
        ]
        key = stream.keys[shard]
        await stream.server.call("XADD", key, f"{ms}-{seq}", *_fields(step, events), key=key)
        if step.codec != "unreadable":
            found += [Placed(ms, seq, shard, at, event) for at, event in enumerate(events)]
    return sorted(found, key=lambda each: each[:4])


def _fields(step: Add, events: list[Event]) -> list[bytes]:
    if step.codec == "plain":
        return encode_plain(events[0], PlainLayout())
    if step.codec == "rows":
        return block_fields("rows", len(events), encode_rows(events))
    if step.codec == "columns":
        return block_fields("columns", len(events), encode_columns(events_to_table(events)))
    return [b"c", b"rows1", b"n", b"5", b"d", b"\xc1"]


async def _trim(stream: Stream) -> None:
    for shard, key in enumerate(stream.keys):
        cursor = await stream.server.call("GET", stream.archived_key(shard), key=key)
        if cursor is not None:
            at = EventId.parse(cursor)
            await stream.server.call("XTRIM", key, "MINID", f"{at.ms}-{at.seq + 1}", key=key)


async def _compare(stream: Stream, archive: Archive, placed: list[Placed], query: Query) -> None:
    start, first = _point(placed, query.start, is_end=False)
    end, last = _point(placed, query.end, is_end=True)
    expected = [
        each
        for each in placed
        if (first is None or each.id >= first)
        and (last is None or each.id <= last)
        and (query.keys is None or each.event.key in query.keys)
    ]
    options = {
        "start": "-" if start is None else start,
        "end": end,
        "keys": query.keys,
        "archive": archive,
        "from_oldest": True,
    }
    if not any([await stream.exists(), archive.shards(stream.name)]):
        return
    reader = Reader(stream, **options)
    found = [
        Placed(each.ms, each.seq, batch.shard, each.index, event)
        async for batch in reader.batches()
        for each, event in zip(batch.ids, batch, strict=True)
    ]
    assert found == expected
    assert list(reader.gaps) == []
    rows: list[tuple[object, ...]] = []
    reader = Reader(stream, **options)
    async for table in reader.tables(rows=query.rows):
        names = ("entry_ms", "entry_seq", "shard", "index", "key", "time", "n", "v")
        rows += zip(*(table.column(name).to_pylist() for name in names), strict=True)
    assert rows == [
        (*each[:4], each.event.key, each.event.time, *each.event.fields.values())
        for each in expected
    ]


def _point(
    placed: list[Placed], asked: tuple[str, float] | None, *, is_end: bool
) -> tuple[str | int | EventId | None, EventId | None]:
    """A point as it is given to a reader, and the first or last event that it lets in."""
    if asked is None or not placed:
        return None, None
    how, share = asked
    at = placed[round(share * (len(placed) - 1))]
    beyond = 2**40
    if how == "time":
        return at.ms, EventId(at.ms, 2**64 if is_end else 0, beyond if is_end else 0)
    if how == "entry":
        return f"{at.ms}-{at.seq}", EventId(at.ms, at.seq, beyond if is_end else 0)
    if how == "event":
        return at.id, at.id
    # Between the entries, or behind the last event of one.
    off = EventId(at.ms, at.seq, at.index + 3)
    return str(off), off
