"""Sinks: every event that a worker was given is there once, with its own values."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from standpipe import Batch, Context, Event, Reject, Retry, Stream, Worker
from standpipe.errors import SinkUnreachableError, SinkUnusableError
from standpipe.sinks import Sink, open_sink
from tests.conditions import eventually
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.places import (
    KINDS,
    MS,
    ParquetPlace,
    Place,
    PostgresPlace,
    SqlitePlace,
    batch_of,
)
from tests.servers.postgres import Postgres
from tests.servers.working import letters, pending, running, send, settled

pytestmark = pytest.mark.servers


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path / "readings.db")
    if request.param == "parquet":
        return ParquetPlace(tmp_path / "readings")
    return PostgresPlace(request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=("postgres", "sqlite"))
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that is a table of a database."""
    if request.param == "sqlite":
        return SqlitePlace(tmp_path / "readings.db")
    return PostgresPlace(request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


def fields_of(row: dict[str, Any]) -> dict[str, Any]:
    ids = {"time", "key", "stream", "shard", "entry_ms", "entry_seq", "entry_index"}
    return {name: value for name, value in row.items() if name not in ids and value is not None}


def numbered(count: int, first: int = 0) -> list[Event]:
    return [Event(f"m{n % 3}", MS + n, {"n": n, "x": n / 2}) for n in range(first, first + count)]


# --- what is stored ------------------------------------------------------------------------------


def test_values_come_back_as_they_were(place: Place) -> None:
    """Numbers to their last digit, any text and any bytes; None, and what is missing, as NULL."""
    events = [
        Event("a", MS, {"i": 2**63 - 1, "f": 0.1 + 0.2, "t": 'x\t"\\N\n\\.,', "b": True}),
        Event("b", MS + 1, {"i": -(2**63), "f": 5e-324, "t": "", "b": False, "y": b"\0\xff\\x"}),
        Event(None, MS + 2, {"i": 0, "f": -1.7976931348623157e308, "t": "\\N", "y": b""}),
        Event("ключ 'q' \"d\"", -62_135_596_800_000, {"f": None, "t": "🌊", 'na"me; --': 1}),
        Event("e", 253_402_300_799_999, {"time": 7, "Stream": "up", "field_key": 1.5, "%s": 2}),
        Event("nothing", MS + 3, {}),
    ]
    sink = place.sink()
    sink.write(batch_of(events[:2], events[2:]))
    sink.close()
    rows = place.rows()
    assert len(rows) == len(events)
    columns = {"time": "field_time", "Stream": "field_Stream", "field_key": "field_field_key"}
    for event, row in zip(sorted(events, key=lambda e: e.time), rows, strict=True):
        assert (row["key"], row["time"]) == (event.key, event.time)
        given = {columns.get(k, k): v for k, v in event.fields.items() if v is not None}
        assert fields_of(row) == given
    assert [row["entry_index"] for row in rows] == [1, 0, 1, 0, 3, 2]


def test_what_comes_again_is_there_once(place: Place) -> None:
    """Delivered again alone, together with new events, in parts or by another process: once."""
    events = numbered(40)
    whole = batch_of(*(events[n : n + 10] for n in range(0, 40, 10)))
    sink, other = place.sink(), place.sink()
    for start, stop in ((5, 12), (0, 3), (8, 25), (0, 40), (39, 40), (0, 40)):
        sink.write(whole.part(start, stop)[0])
        other.write(whole.part(start, stop)[0])
    sink.close()
    other.close()
    rows = place.rows()
    assert [row["n"] for row in rows] == list(range(40))
    assert [(row["entry_ms"] - MS, row["entry_index"]) for row in rows] == [
        (n // 10, n % 10) for n in range(40)
    ]
    assert [row["x"] for row in rows] == [n / 2 for n in range(40)]


def test_shards_and_sources_are_told_apart(place: Place) -> None:
    """The same entry ID on another shard, stream or server is another event."""
    for n, (options, shard, stream) in enumerate(
        [({}, 0, "s"), ({}, 1, "s"), ({}, 0, "t"), ({"source": "north"}, 0, "s")]
    ):
        sink = place.sink(**options)
        sink.write(batch_of([Event("m", MS + n, {"n": n})], shard=shard, stream=stream))
        sink.close()
    rows = place.rows()
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    assert [row["stream"] for row in rows] == ["s", "s", "t", "north/s"]


def test_two_at_once_write_it_once(place: Place) -> None:
    """Two sinks that are given the same events at the same moment, with fields that no table has
    yet, keep each once: neither fails for good."""
    events = [Event("m", MS + n, {"n": n, f"f{n % 7}": n}) for n in range(60)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(3)

    def work(parts: list[tuple[int, int]]) -> None:
        sink = place.sink()
        try:
            barrier.wait()
            for start, stop in parts:
                until_kept(sink, whole.part(start, stop)[0])
        except BaseException as error:
            errors.append(error)
        finally:
            sink.close()

    whole = batch_of(*(events[n : n + 6] for n in range(0, 60, 6)))
    plans = [
        [(0, 20), (20, 60)],
        [(10, 40), (0, 10), (40, 60)],
        [(0, 60)],
    ]
    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = place.rows()
    assert [row["n"] for row in rows] == list(range(60))
    assert all(row[f"f{n % 7}"] == n for n, row in enumerate(rows))


def until_kept(sink: Sink, batch: Batch) -> None:
    """What a worker does with Retry, in short."""
    for _ in range(100):
        try:
            return sink.write(batch)
        except Retry as error:
            assert not error.counts
            threading.Event().wait(error.after_ms / 1000)
    raise AssertionError("never kept")


# --- what does not fit ---------------------------------------------------------------------------


def test_whole_numbers_are_widened(place: Place) -> None:
    """A column of whole numbers takes others from then on, and keeps what it has."""
    sink = place.sink()
    for n, value in enumerate([1, 2.5, 3, -4]):
        sink.write(batch_of([Event("m", MS + n, {"x": value})], ms=MS + n))
    with pytest.raises(Reject, match="'x' is text"):
        sink.write(batch_of([Event("m", MS, {"x": "high"})], ms=MS + 9))
    sink.close()
    assert [row["x"] for row in place.rows()] == [1, 2.5, 3, -4]


def test_a_widening_that_would_round_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    """No value that is there is changed by one that comes: that one is refused."""
    place = PostgresPlace(postgres, f"t{uuid.uuid4().hex[:12]}")
    sink = place.sink()
    sink.write(batch_of([Event("m", MS, {"x": 2**53 + 1})]))
    with pytest.raises(Reject, match=str(2**53 + 1)):
        sink.write(batch_of([Event("m", MS + 1, {"x": 0.5})], ms=MS + 1))
    sink.close()
    assert [row["x"] for row in place.rows()] == [2**53 + 1]


def test_another_event_with_a_known_id_is_not_swallowed(table: Place) -> None:
    """Two servers' streams of one name in one table: what the one hides of the other is refused,
    and the rest of the batch is not stored half."""
    sink = table.sink()
    sink.write(batch_of([Event("m", MS, {"x": 1.5})]))
    for fields in ({"x": 2.5}, {"x": 1.5, "y": 1}, {"x": None}):
        with pytest.raises(Reject, match="source"):
            sink.write(batch_of([Event("m", MS, fields)], [Event("m", MS + 1, {"x": 1.0})]))
    with pytest.raises(Reject, match="source"):
        sink.write(batch_of([Event("n", MS, {"x": 1.5})]))
    sink.close()
    assert [fields_of(row) for row in table.rows()] == [{"x": 1.5}]


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_only_what_does_not_fit_is_dead(stream: Stream, place: Place) -> None:
    """In a worker the events of a batch that do not fit become dead letters with the reason, and
    all the others are kept."""
    events = make_events(300)
    for n in (7, 150, 151):
        events[n] = Event("m", MS + n, {"n": n, "volts": "high"})
    await send(stream, events)
    worker = Worker(stream, "g")
    sink = place.sink()
    worker.batch(sink.write)
    async with running(worker):
        # There is no group before the worker has made it.
        await eventually(lambda: settled(stream), 30, ignore=(ValueError,))
    sink.close()
    found = await letters(stream)
    assert all(b"field 'volts' is text, and its column holds numbers" in x["reason"] for x in found)
    assert len(found) == worker.stats.dead == 3
    assert {row["n"] for row in place.rows()} == set(range(300)) - {7, 150, 151}
    assert place.count() == 297


# --- tables that are not as they should be -------------------------------------------------------

DDL = (
    "CREATE TABLE {} (time {time} NOT NULL, key TEXT, stream TEXT NOT NULL, shard INTEGER NOT NULL,"
    " entry_ms BIGINT NOT NULL, entry_seq BIGINT NOT NULL, entry_index INTEGER NOT NULL, x {x}{})"
)
UNIQUE = ", UNIQUE (stream, shard, entry_ms, entry_seq, entry_index)"


def make_table(place: Place, extra: str, x: str) -> None:
    if isinstance(place, SqlitePlace):
        place.query(DDL.format("readings", extra, time="INTEGER", x=x))
    else:
        assert isinstance(place, PostgresPlace)
        place.server.rows(DDL.format(place.table, extra, time="timestamptz", x=x))


def test_a_table_of_the_users_own(table: Place) -> None:
    """A table that is there is used as it is: other columns, no time in its key."""
    make_table(table, UNIQUE, "NUMERIC(20, 3)")
    sink = table.sink()
    for _ in range(2):
        sink.write(batch_of([Event("m", MS, {"x": 1.25, "y": 2})]))
    sink.close()
    assert [(float(row["x"]), row["y"]) for row in table.rows()] == [(1.25, 2)]


@pytest.mark.parametrize("key", ["", ", UNIQUE (stream, shard, entry_ms)", ", UNIQUE (x)"])
def test_a_table_that_would_keep_events_twice_is_refused(table: Place, key: str) -> None:
    """Without a unique index on the event ID nothing is written; the events wait."""
    make_table(table, key, "REAL")
    sink = table.sink()
    with pytest.raises(SinkUnusableError, match="no unique index"):
        sink.open()
    with pytest.raises(Retry):
        sink.write(batch_of([Event("m", MS, {"x": 1.25})]))
    assert table.count() == 0


def test_a_table_that_was_dropped_is_made_again(
    table: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping the table under a sink costs a retry, not an event."""
    monkeypatch.setattr("standpipe.sinks.sink.SINK_RETRY_MS_MAX", 50)
    sink = table.sink()
    sink.write(batch_of([Event("m", MS, {"x": 1})]))
    if isinstance(table, SqlitePlace):
        table.query("DROP TABLE readings")
    else:
        assert isinstance(table, PostgresPlace)
        table.server.rows(f"DROP TABLE {table.table}")
    with pytest.raises(Retry):
        sink.write(batch_of([Event("m", MS + 1, {"x": 1})]))
    until_kept(sink, batch_of([Event("m", MS + 1, {"x": 1})]))
    sink.close()
    assert [row["time"] for row in table.rows()] == [MS + 1]


def test_the_row_that_postgres_refuses_is_rejected(postgres: Postgres) -> None:
    """What only the database knows, a check of the user's, makes a dead letter of the row."""
    place = PostgresPlace(postgres, f"t{uuid.uuid4().hex[:12]}")
    make_table(place, UNIQUE, "REAL CHECK (x > 0)")
    sink = place.sink()
    with pytest.raises(Reject, match="violates check constraint"):
        sink.write(batch_of([Event("m", MS, {"x": -1.5})]))
    sink.write(batch_of([Event("m", MS, {"x": 1.5})]))
    sink.close()
    assert place.count() == 1


def test_a_schema_can_be_named(postgres: Postgres) -> None:
    """table=schema.table writes there."""
    postgres.rows("CREATE SCHEMA IF NOT EXISTS metering")
    sink = open_sink(postgres.url(table="metering.readings"))
    sink.write(batch_of([Event("m", MS, {"x": -1.5})]))
    sink.close()
    assert [row["x"] for row in postgres.rows("SELECT * FROM metering.readings")] == [-1.5]


def test_commits_are_durable_where_the_server_is_lax(postgres: Postgres) -> None:
    """synchronous_commit = off, as this server has it, does not hold for the sink's commits: the
    log is flushed beyond them when write() returns."""
    place = PostgresPlace(postgres, f"t{uuid.uuid4().hex[:12]}")
    assert postgres.rows("SHOW synchronous_commit") == [{"synchronous_commit": "off"}]
    # At the end of a page the next record begins behind a header, of 40 bytes at most.
    query = "SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() <= 40"
    with closing(place.sink()) as sink, postgres.connect() as watching:
        for n in range(20):
            sink.write(batch_of([Event("m", MS + n, {"x": n})], ms=MS + n))
            assert watching.execute(query).fetchone() == (True,), n


def test_the_rights_that_writing_takes(postgres: Postgres) -> None:
    """INSERT and SELECT are enough for a table that is there; a new field, which takes its owner,
    makes the event wait, and no dead letter, until someone adds the column; others go on."""
    place = PostgresPlace(postgres, f"t{uuid.uuid4().hex[:12]}")
    make_table(place, UNIQUE, "REAL")
    role = f"r{uuid.uuid4().hex[:12]}"
    postgres.rows(f"CREATE ROLE {role} LOGIN")
    postgres.rows(f"GRANT INSERT, SELECT ON {place.table} TO {role}")
    sink = open_sink(postgres.url(table=place.table, user=role))
    batch = batch_of([Event("m", MS, {"x": 1.5})])
    sink.write(batch)
    sink.write(batch)
    more = batch_of([Event("m", MS + 1, {"x": 2.5, "y": 1})], ms=MS + 1)
    with pytest.raises(Retry, match="must be owner") as caught:
        sink.write(more)
    assert not caught.value.counts
    sink.write(batch_of([Event("m", MS + 2, {"x": 3.5})], ms=MS + 2))
    postgres.rows(f"ALTER TABLE {place.table} ADD COLUMN y bigint")
    sink.write(more)
    sink.close()
    found = [(row["x"], row["y"]) for row in place.rows()]
    assert found == [(1.5, None), (2.5, 1), (3.5, None)]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_what_another_is_about_to_write(
    postgres: Postgres, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was taken for dead holds the same events in a transaction: the other waits for
    its end, bounded, and then keeps them once, whichever end it is."""
    import psycopg

    monkeypatch.setattr("standpipe.sinks.postgres.SINK_BUSY_MS_MAX", 100)
    place = PostgresPlace(postgres, f"t{uuid.uuid4().hex[:12]}")
    sink = place.sink()
    sink.write(batch_of([Event("m", MS, {"x": 1.5})]))
    batch = batch_of([Event("m", MS + 1, {"x": 2.5})], ms=MS + 1)
    connection = psycopg.connect(host=str(postgres.folder), user="standpipe", dbname="postgres")
    with connection:
        connection.execute(
            f"INSERT INTO {place.table} SELECT time + interval '1 ms', key, stream, shard,"
            f" entry_ms + 1, entry_seq, entry_index, 2.5 FROM {place.table}"
        )
        with pytest.raises(Retry, match="lock timeout") as caught:
            sink.write(batch)
        assert not caught.value.counts
        getattr(connection, ending)()
    until_kept(sink, batch)
    sink.close()
    assert [row["x"] for row in place.rows()] == [1.5, 2.5]


# --- parquet -------------------------------------------------------------------------------------


def test_a_file_that_was_committed_gets_its_name(tmp_path: Path) -> None:
    """A process that died after the commit, before the file had its name, has lost nothing: the
    next write gives it, and the events are not written again. Rubbish of others is removed."""
    place = ParquetPlace(tmp_path / "r")
    batch = batch_of(numbered(5), ms=MS)
    sink = place.sink()
    sink.write(batch)
    (path,) = place.folder.glob("*.parquet")
    sink.write(batch_of(numbered(5, 5), ms=MS + 5))
    (last,) = set(place.folder.glob("*.parquet")) - {path}
    last.rename(place.folder / f".{last.name}.tmp")
    sink.write(batch_of(numbered(5, 5), ms=MS + 5))
    sink.close()
    assert [row["n"] for row in place.rows()] == list(range(10))
    rubbish = place.folder / ".s.0.1-0_1-0.99.parquet.tmp"
    rubbish.write_bytes(b"half a file")
    sink = place.sink()
    sink.open()
    sink.close()
    assert not rubbish.exists()
    assert place.count() == 10


def test_names_of_files(tmp_path: Path) -> None:
    """A file's name carries stream, shard and the range of its entries, whatever the stream's."""
    place = ParquetPlace(tmp_path / "r")
    sink = place.sink()
    sink.write(batch_of(numbered(2), numbered(2), shard=3, stream="plant/a:b"))
    sink.write(batch_of(numbered(1), stream="ß" * 128))
    sink.close()
    short, long = sorted(place.folder.glob("*.parquet"), key=lambda path: len(path.name))
    assert short.name == f"plant%2Fa%3Ab.3.{MS}-0_{MS + 1}-0.1.parquet"
    assert len(long.name) < 250
    assert pq.read_metadata(short).num_rows == 4


# --- out of reach --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_reach_is_no_fault_of_the_events(kind: str, tmp_path: Path) -> None:
    """A place that is not there is found at once, waited for with backoff, and used when it is."""
    blocker = tmp_path / "later"
    blocker.write_text("a file where a folder should be")
    url = {
        "sqlite": f"sqlite:{blocker}/r.db",
        "parquet": f"parquet:{blocker}/r",
        "postgres": f"postgres:///d?host={blocker}",
    }[kind]
    sink = open_sink(url)
    with pytest.raises(SinkUnreachableError):
        sink.open()
    batch = batch_of(numbered(3))
    for _ in range(2):
        with pytest.raises(Retry) as caught:
            sink.write(batch)
        assert not caught.value.counts
    if kind != "postgres":
        blocker.unlink()
        blocker.mkdir()
        until_kept(sink, batch)
    sink.close()


async def test_what_is_put_off_does_not_count(stream: Stream) -> None:
    """Retry(counts=False) is no delivery: not here, not on the server, and not for those who take
    the event over; another error still counts."""
    await send(stream, make_events(4))
    seen: list[int] = []
    tries, is_down = 0, True

    def handle(batch: Batch, context: Context) -> None:
        seen.append(context.deliveries)
        if is_down:
            raise Retry("down", after=1 if len(seen) < tries else "1h", counts=False)
        if len(seen) == tries + 1:
            raise ValueError("another")

    for _ in range(4):
        tries += 4
        worker = Worker(stream, "g", deliveries_max=3, idle_ms_min=100)
        worker.batch(handle)
        run = asyncio.create_task(worker.run())
        await eventually(lambda tries=tries: len(seen) == tries)
        await eventually(lambda: set_back(stream))
        # What it leaves behind the next one takes over.
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    # The first read counts by itself, the takeover as the second; no try did.
    assert seen == [1] * 4 + [2] * 12
    is_down = False
    worker = Worker(stream, "g", deliveries_max=3, idle_ms_min=100)
    worker.batch(handle)
    async with running(worker):
        await eventually(lambda: settled(stream))
    assert seen[16:] == [2, 3]
    assert await letters(stream) == []


async def set_back(stream: Stream) -> bool:
    """Whether the server counts the first delivery alone."""
    return {count for _, count in await pending(stream)} == {1}


# --- the command ---------------------------------------------------------------------------------


def work(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "standpipe", "work", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_the_command_keeps_events_and_drains(
    stream: Stream, server: TestServer, tmp_path: Path
) -> None:
    """``work --sink URL`` in two processes keeps every event once, and SIGTERM ends it with nothing
    pending."""
    place = ParquetPlace(tmp_path / "readings")
    await send(stream, make_events(500))
    options = ("-g", "g", "--processes", "2", "--url", server.url)
    with work(stream.name, "--sink", place.url, *options, cwd=tmp_path) as process:
        await eventually(lambda: settled(stream), 30, ignore=(ValueError,))
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0, said
    assert sorted(row["n"] for row in place.rows()) == list(range(500))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--sink URL"),
        (("app:store", "--sink", "sqlite:r.db"), "--sink URL"),
        (("--sink", "mysql://u:secret@h/d"), "no sink has a URL"),
        (("--sink", "sqlite:wrong.db"), "no unique index"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """Neither or both of handler and sink, a URL that is none, a table that does not do: the
    command ends at once and says so, without the password."""
    make_table(SqlitePlace(tmp_path / "wrong.db"), "", "REAL")
    process = work("s", "-g", "g", *arguments, cwd=tmp_path)
    _, error = process.communicate(timeout=30)
    assert process.returncode in (1, 2)
    assert said in error and "secret" not in error
