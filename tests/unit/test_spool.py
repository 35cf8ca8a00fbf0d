"""The spool keeps blocks in order, bounded and undamaged, or says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from standpipe import Event
from standpipe.codec import (
    PlainLayout,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
)
from standpipe.errors import (
    ConfigError,
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolInUseError,
    SpoolOrderError,
    SpoolUnusableError,
    StandpipeError,
)
from standpipe.limits import SPOOL_SHRINK_BYTES_MIN
from standpipe.spool import Spool, SpooledBlock, SpoolReader
from standpipe.wire import pack

SHARDS = ("power:{0-0}", "power:{1-2}")
A, B = SHARDS
TIME = 1_700_000_000_000


def block(
    sequence: int,
    *,
    shard: str = A,
    producer: str = "p1",
    size: int = 100,
    count: int = 3,
    mark: str = "rows1",
) -> SpooledBlock:
    """A block whose payload follows from its number, so that it cannot be mistaken for another."""
    payload = random.Random(f"{shard} {producer} {sequence}").randbytes(size)
    return SpooledBlock(shard, producer, sequence, mark, count, payload, 0, TIME + sequence)


def events(count: int) -> list[Event]:
    return [
        Event(f"meter-{n}", TIME + n, {"volts": 230.5 + n, "state": "ok", "raw": b"\r\n$1\r\n"})
        for n in range(count)
    ]


def rows_block(sequence: int = 1, *, count: int = 40, says: int | None = None) -> SpooledBlock:
    payload = encode_rows(events(count))
    return SpooledBlock(A, "p1", sequence, "rows1", says or count, payload)


def columns_block(sequence: int = 1, *, count: int = 40, says: int | None = None) -> SpooledBlock:
    payload = encode_columns(events_to_table(events(count)))
    return SpooledBlock(A, "p1", sequence, "arrow1", says or count, payload)


def plain_block(
    sequence: int = 1, *, count: int = 40, says: int | None = None, more: int = 0
) -> SpooledBlock:
    parts: list[bytes] = []
    arguments = 0
    for event in events(count):
        fields = encode_plain(event, PlainLayout())
        packed = pack(len(fields), *fields)
        parts.append(packed[packed.index(b"\n") + 1 :])
        arguments += len(fields) + 1
    return SpooledBlock(A, "p1", sequence, "", says or count, b"".join(parts), arguments + more)


def all_of(spool: SpoolReader, shard: str = A) -> list[SpooledBlock]:
    return spool.head(shard, bytes_max=2**40, count_max=2**40)


def sequences(spool: SpoolReader, shard: str = A) -> list[int]:
    return [each.sequence for each in all_of(spool, shard)]


def kinds(spool: SpoolReader) -> list[str]:
    return [finding.kind for finding in spool.verify()]


def tamper(path: Path, statement: str, *values: Any) -> None:
    """Change what stands in the file of a closed spool, as a failing disk or a stranger would."""
    database = sqlite3.connect(path)
    with database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "power.spool"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with Spool(path) as opened:
        opened.bind("power", SHARDS)
        yield opened


# --- in and out ----------------------------------------------------------------------------------


def test_blocks_come_out_as_they_went_in(spool: Spool) -> None:
    """Every field of a block survives, of each layout, whatever bytes the payload has."""
    blocks = [
        plain_block(1),
        rows_block(2),
        columns_block(3),
        SpooledBlock(A, "p1", 2**53, "rows1", 1, bytes(range(256)) * 300, 0, 0),
    ]
    spool.append(blocks)
    assert all_of(spool) == blocks


def test_shards_do_not_mix_and_keep_their_order(spool: Spool) -> None:
    """Each shard has its own blocks, oldest first, however they were given."""
    spool.append([block(1), block(1, shard=B), block(2, shard=B)])
    spool.append([block(4, shard=B), block(2), block(5, shard=B), block(7)])
    assert sequences(spool, A) == [1, 2, 7]
    assert sequences(spool, B) == [1, 2, 4, 5]
    assert all_of(spool, "power:{2-0}") == []


def test_head_is_bounded_in_bytes_and_blocks_but_never_empty(spool: Spool) -> None:
    """A head fits what was asked for; a block that is larger by itself comes alone."""
    spool.append([block(n, size=1000) for n in range(1, 6)])

    def head(bytes_max: int, count_max: int) -> list[int]:
        found = spool.head(A, bytes_max=bytes_max, count_max=count_max)
        return [each.sequence for each in found]

    assert head(3000, 9) == [1, 2, 3]
    assert head(2999, 9) == [1, 2]
    assert head(9999, 4) == [1, 2, 3, 4]
    assert head(1, 9) == [1]
    assert head(9999, 1) == [1]


def test_remove_takes_what_is_settled_and_nothing_else(spool: Spool) -> None:
    """Blocks up to the number go; those behind it, of the other shard and producer stay."""
    spool.append([block(n) for n in (1, 2, 5, 6)])
    spool.append([block(n, shard=B) for n in (1, 2, 3)])
    assert spool.remove(A, "p1", 4) == 2
    assert spool.remove(A, "p1", 4) == 0
    assert spool.remove(A, "p2", 9) == 0
    assert (sequences(spool, A), sequences(spool, B)) == ([5, 6], [1, 2, 3])


def test_an_earlier_producers_blocks_come_first(path: Path) -> None:
    """After a restart under a new id the blocks of the old one are drained first, under its id."""
    with Spool(path) as spool:
        spool.append([block(n, producer="z") for n in (7, 8)])
    with Spool(path) as spool:
        spool.append([block(n, producer="a") for n in (1, 2)])
        found = [(each.producer_id, each.sequence) for each in all_of(spool)]
        assert found == [("z", 7), ("z", 8), ("a", 1), ("a", 2)]
        # Settling the new id's first block settles none of the old id's.
        assert spool.remove(A, "a", 1) == 1
        assert spool.remove(A, "z", 9) == 2
        assert sequences(spool) == [2]


def test_a_number_that_does_not_rise_is_refused(path: Path) -> None:
    """A block out of order is an error, also when the one before is drained or in another run."""
    with Spool(path) as spool:
        for wrong in ([3, 3], [3, 2]):
            with pytest.raises(SpoolOrderError, match="after block 3"):
                spool.append([block(n) for n in wrong])
        assert sequences(spool) == []
        spool.append([block(3)])
        spool.remove(A, "p1", 3)
    with Spool(path) as spool:
        with pytest.raises(SpoolOrderError, match="after block 3"):
            spool.append([block(3)])
        spool.append([block(1, producer="p2")])
        spool.append([block(2, producer="p2")])
        assert sequences(spool) == [1, 2]


def test_an_earlier_producer_cannot_follow_a_later_one(spool: Spool) -> None:
    """Once another producer id has begun on a shard, blocks of the one before come too late."""
    spool.append([block(1), block(1, producer="p2")])
    with pytest.raises(SpoolOrderError, match="another producer had begun"):
        spool.append([block(2)])
    spool.append([block(2, shard=B)])


def test_an_append_is_done_whole_or_not_at_all(spool: Spool) -> None:
    """When one of several blocks is refused, none of them is stored."""
    spool.append([block(1)])
    before = spool.summary()
    with pytest.raises(SpoolOrderError):
        spool.append([block(2), block(1, shard=B), block(2, shard=B), block(2, shard=B)])
    assert spool.summary() == before
    spool.append([])
    assert spool.summary() == before


def test_threads_take_turns(spool: Spool) -> None:
    """Producing threads and a draining one share a spool without losing or mixing anything."""
    failures: list[BaseException] = []

    def guarded(run: Callable[[], None]) -> threading.Thread:
        def call() -> None:
            try:
                run()
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=call)

    def produce(shard: str) -> None:
        for n in range(1, 101):
            spool.append([block(n, shard=shard)])

    drained: list[int] = []

    def drain() -> None:
        while len(drained) < 100 and not failures:
            for each in spool.head(A, bytes_max=500, count_max=10):
                drained.append(each.sequence)
                spool.remove(A, "p1", each.sequence)

    threads = [guarded(lambda: produce(A)), guarded(lambda: produce(B)), guarded(drain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert drained == sequences(spool, B) == list(range(1, 101))


# --- bounds --------------------------------------------------------------------------------------


def test_a_full_spool_refuses_and_takes_again_when_it_has_room(path: Path) -> None:
    """bytes_max is kept to the byte, overhead included; the refusal is retryable."""
    size = block(1, size=1000).size
    with Spool(path, bytes_max=3 * size) as spool:
        spool.append([block(1, size=1000), block(2, size=1000)])
        with pytest.raises(SpoolFullError, match="bytes_max") as caught:
            spool.append([block(3, size=1000), block(1, shard=B, size=1000)])
        assert caught.value.retryable
        assert caught.value.hint
        spool.append([block(3, size=1000)])
        with pytest.raises(SpoolFullError):
            spool.append([block(1, shard=B, size=0)])
    # What was set aside counts as well, and a restart changes nothing.
    with Spool(path, bytes_max=3 * size) as spool:
        spool.set_aside(A, "p1", 1, reason="refused")
        with pytest.raises(SpoolFullError):
            spool.append([block(1, shard=B, size=0)])
        spool.remove(A, "p1", 2)
        spool.append([block(1, shard=B, size=1000)])
        assert spool.summary().bytes + spool.summary().aside_bytes == 3 * size


@pytest.mark.parametrize("size", [0, 20, 990, 1340, 2000, 3000, 4100, 6100, 10_200, 43_000])
def test_blocks_count_with_at_least_what_they_take_on_disk(path: Path, size: int) -> None:
    """A spool that is full to bytes_max is not larger than that, whatever size its blocks have."""
    bytes_max = 5_000_000
    with Spool(path, bytes_max=bytes_max) as spool:
        empty = spool.summary().file_bytes
        count = bytes_max // block(1, size=size).size
        spool.append([block(n, size=size) for n in range(10**9, 10**9 + count)])
        with pytest.raises(SpoolFullError):
            spool.append([block(2 * 10**9, size=size)])
    assert path.stat().st_size <= bytes_max + empty


def test_a_block_that_can_never_fit_is_not_worth_waiting_for(path: Path) -> None:
    """A block above bytes_max is an error that is not retryable."""
    with Spool(path, bytes_max=5000) as spool:
        with pytest.raises(ConfigError, match="5000") as caught:
            spool.append([block(1, size=5000)])
        assert not caught.value.retryable
    with pytest.raises(ConfigError):
        Spool(path, bytes_max=0)


def test_space_of_removed_blocks_is_used_again(path: Path) -> None:
    """A spool that is filled and drained over and over stays as large as it was the first time."""
    with Spool(path, bytes_max=9_000_000) as spool:
        sizes: list[int] = []
        number = 0
        for _ in range(6):
            for _ in range(20):
                spool.append([block(number := number + 1, size=40_000) for _ in range(10)])
            sizes.append(spool.summary().file_bytes)
            spool.remove(A, "p1", number - 5)
            assert spool.summary().blocks == 5
            spool.remove(A, "p1", number)
        # The write-ahead log has its largest size after the second round.
        assert max(sizes) < 1.02 * sizes[1]


def test_a_drained_spool_gives_its_space_back(path: Path) -> None:
    """After a large outage the file shrinks to almost nothing, also when the process was killed
    just before; after a small one the space is kept."""
    with Spool(path) as spool:
        spool.append([block(n, size=100_000) for n in range(1, 11)])
        small = spool.summary().file_bytes
        spool.remove(A, "p1", 10)
        assert spool.summary().file_bytes >= small
        count = SPOOL_SHRINK_BYTES_MIN // 100_000 + 10
        spool.append([block(n, size=100_000) for n in range(11, 11 + count)])
        assert spool.summary().file_bytes > SPOOL_SHRINK_BYTES_MIN
        spool.remove(A, "p1", count + 9)
        assert spool.summary().file_bytes > SPOOL_SHRINK_BYTES_MIN
        spool.remove(A, "p1", count + 10)
        assert spool.summary().file_bytes < 100_000
        spool.append([block(n, size=100_000) for n in range(1000, 1000 + count)])
    tamper(path, "DELETE FROM block")
    tamper(path, "UPDATE series SET blocks = 0, events = 0, bytes = 0")
    assert path.stat().st_size > SPOOL_SHRINK_BYTES_MIN
    with Spool(path) as spool:
        assert spool.summary().file_bytes < 100_000


def test_the_disk_is_not_filled_up(path: Path) -> None:
    """Appending leaves the asked-for room on the disk; draining goes on without it."""
    with Spool(path) as spool:
        spool.append([block(1)])
    with Spool(path, disk_free_bytes_min=2**60) as spool:
        with pytest.raises(SpoolFullError, match="stay free") as caught:
            spool.append([block(2)])
        assert caught.value.retryable
        assert spool.remove(A, "p1", 1) == 1


# --- what can be asked of it ---------------------------------------------------------------------


def test_the_summary_says_what_is_there(spool: Spool, path: Path) -> None:
    """Per producer and shard: blocks, events, bytes, first and last number, age of the oldest."""
    assert spool.summary().series == ()
    assert spool.summary().oldest_spooled_at is None
    spool.append([block(n, count=n) for n in (4, 5, 9)])
    spool.append([block(2, shard=B, producer="p2")])
    spool.remove(A, "p1", 4)
    spool.set_aside(A, "p1", 5, reason="refused")
    summary = spool.summary()
    assert (summary.stream, summary.bytes_max) == ("power", spool.bytes_max)
    assert summary.file_bytes >= path.stat().st_size > 0
    first, second = summary.series
    size = block(1).size
    assert (first.shard_key, first.producer_id) == (A, "p1")
    assert (first.blocks, first.events, first.bytes) == (1, 9, size)
    assert (first.first_sequence, first.last_sequence) == (9, 9)
    assert first.oldest_spooled_at == TIME + 9
    assert (first.aside_blocks, first.aside_events, first.aside_bytes) == (1, 5, size)
    assert (second.shard_key, second.producer_id, second.blocks) == (B, "p2", 1)
    assert (summary.blocks, summary.events, summary.bytes) == (2, 12, 2 * size)
    assert (summary.aside_blocks, summary.aside_events, summary.aside_bytes) == (1, 5, size)
    assert summary.oldest_spooled_at == TIME + 2
    spool.remove(A, "p1", 9)
    first, _ = spool.summary().series
    assert (first.blocks, first.first_sequence, first.last_sequence) == (0, None, 9)
    assert first.oldest_spooled_at is None


def test_a_reader_sees_a_spool_that_is_in_use(spool: Spool, path: Path) -> None:
    """Opened for reading it shows the state of the moment and does not disturb the producer."""
    with Spool.open_readonly(path) as reader:
        for n in range(1, 4):
            spool.append([block(n)])
            assert sequences(reader) == list(range(1, n + 1))
            assert reader.summary() == spool.summary()
        assert reader.stream == "power"
        assert not {"file", "totals", "checksum"} & set(kinds(reader))
        spool.remove(A, "p1", 3)
        assert reader.summary().blocks == 0
        spool.close()
        assert reader.summary().blocks == 0
    with Spool.open_readonly(path) as reader:
        assert reader.summary().blocks == 0


def test_a_reader_needs_a_spool(tmp_path: Path) -> None:
    """Reading what is not there is an error and creates nothing."""
    with pytest.raises(SpoolUnusableError, match="no spool at"):
        Spool.open_readonly(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_is_kept_with_the_reason(spool: Spool) -> None:
    """A block that cannot be sent makes way, is not lost, and can be taken out later."""
    spool.append([block(n) for n in (1, 2, 3)])
    assert spool.set_aside(A, "p1", 2, reason="NOPERM: no permission")
    assert not spool.set_aside(A, "p1", 2, reason="again")
    assert sequences(spool) == [1, 3]
    spool.remove(A, "p1", 3)
    (found,) = spool.aside(count_max=10)
    assert (found.block, found.reason) == (block(2), "NOPERM: no permission")
    assert found.set_aside_at > TIME
    assert spool.remove_aside(A, "p1", 2)
    assert not spool.remove_aside(A, "p1", 2)
    assert spool.aside(count_max=10) == []


# --- whose it is ---------------------------------------------------------------------------------


def test_a_spool_belongs_to_one_stream(path: Path) -> None:
    """Binding it to another stream names both, and leaves it as it was."""
    with Spool(path) as spool:
        assert spool.stream is None
        spool.bind("power", SHARDS)
        assert spool.stream == "power"
    with Spool(path) as spool:
        with pytest.raises(ConfigError, match="'power', not to 'water'"):
            spool.bind("water", ["water"])
        spool.bind("power", SHARDS)
        assert spool.stream == "power"


def test_blocks_for_a_shard_that_is_gone_are_not_forgotten(spool: Spool) -> None:
    """A stream made anew with other shards is an error for as long as blocks are left."""
    spool.append([block(1), block(1, shard=B)])
    with pytest.raises(ConfigError, match=r"holds blocks for power:\{0-0\}"):
        spool.bind("power", ["power"])
    spool.remove(A, "p1", 1)
    spool.bind("power", [B])
    spool.remove(B, "p1", 1)
    spool.bind("power", ["power"])


def test_only_one_has_it(spool: Spool, path: Path) -> None:
    """A second producer, of this process or another, learns the pid of the first."""
    spool.append([block(1)])
    with pytest.raises(SpoolInUseError, match=f"process {os.getpid()}$") as caught:
        Spool(path)
    assert caught.value.hint
    program = "import sys; from standpipe.spool import Spool; Spool(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert f"SpoolInUseError: {path} is in use by process {os.getpid()}" in done.stderr
    spool.append([block(2)])
    spool.close()
    with Spool(path) as again:
        assert sequences(again) == [1, 2]


def test_a_strangers_lock_is_an_error_and_passes(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program writes to the file, reading works and writing is a typed error."""
    monkeypatch.setattr("standpipe.spool.file.SPOOL_BUSY_MS_MAX", 50)
    spool.append([block(1)])
    spool.close()
    with Spool(path) as quick:
        stranger = sqlite3.connect(path, isolation_level=None)
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(SpoolInUseError, match="locked"):
            quick.append([block(2)])
        assert sequences(quick) == [1]
        quick.close()
        with pytest.raises(SpoolInUseError, match="locked"):
            Spool(path, bytes_max=1000)
        stranger.close()
    # An opening that failed has left nothing open.
    with Spool(path, bytes_max=1000) as again:
        assert again.bytes_max == again.summary().bytes_max == 1000
        assert sequences(again) == [1]


def test_its_files_are_for_its_owner_alone(spool: Spool, path: Path) -> None:
    """Readings may be confidential: nobody else can read the file, its log or its folder."""
    spool.append([block(1)])
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_fsync_forces_each_call_to_disk(path: Path) -> None:
    """fsync=True sets what SQLite documents as durable across a power cut; without, not."""
    for fsync, level in ((True, 2), (False, 1)):
        with Spool(path, fsync=fsync) as spool, spool._file.reading() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (level,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_closing_twice_is_fine_and_using_it_after_is_an_error(spool: Spool) -> None:
    """A closed spool says that it is closed."""
    spool.close()
    spool.close()
    with pytest.raises(SpoolUnusableError, match="is closed"):
        spool.append([block(1)])
    with pytest.raises(SpoolUnusableError, match="is closed"):
        spool.summary()


# --- damage --------------------------------------------------------------------------------------


def test_a_sound_spool_has_no_findings(spool: Spool) -> None:
    """Blocks of all three layouts, some drained and one set aside, are found to be in order."""
    spool.append([plain_block(1), rows_block(2), columns_block(3), rows_block(4, count=1)])
    spool.append([plain_block(5, count=1), columns_block(6, count=1), rows_block(7)])
    spool.remove(A, "p1", 1)
    spool.set_aside(A, "p1", 4, reason="refused")
    assert spool.verify() == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (rows_block(says=41), "n says 41 events, the payload is an array of 40"),
        (columns_block(says=39), "39"),
        (plain_block(says=41), "41 events in 440 arguments, but holds 40 in 440"),
        (plain_block(more=1), "in 441 arguments, but holds 40 in 440"),
        (SpooledBlock(A, "p1", 1, "rows9", 40, b"\x90"), "c is b'rows9'"),
        (SpooledBlock(A, "p1", 1, "rows1", 1, b"\x91\xc1"), "the rows block is damaged"),
        (SpooledBlock(A, "p1", 1, "arrow1", 1, b"nothing"), ""),
        (SpooledBlock(A, "p1", 1, "", 1, b"$1\r\n4\r\n$1\r\na\r\n", 2), "the last 3 short"),
        (SpooledBlock(A, "p1", 1, "", 1, b"$1\r\nx\r\n", 1), "argument 1 is not the number"),
        (SpooledBlock(A, "p1", 1, "", 1, b"$1\r\n2\r\n$9\r\na\r\n", 2), "does not end there"),
        (SpooledBlock(A, "p1", 1, "", 1, b"hello", 2), "no RESP argument begins at byte 0"),
        (SpooledBlock(A, "p1", 1, "", 1, b"", 2), "but holds 0 in 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.mark}-{value.count}",
)
def test_a_block_that_is_not_what_it_claims_is_found(
    spool: Spool, wrong: SpooledBlock, text: str
) -> None:
    """Counts, marks and layouts are checked against the payload itself."""
    spool.append([wrong])
    (finding,) = spool.verify()
    assert (finding.kind, finding.sequence) == ("content", 1)
    assert text in finding.text


def test_what_is_drained_during_a_check_is_no_gap(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check beside a producer that drains finds nothing wrong."""
    monkeypatch.setattr("standpipe.spool.reader.SPOOL_CHECK_BLOCKS", 2)
    spool.append([rows_block(n) for n in range(1, 12)])
    through = iter((4, 7, 9))

    def drain_meanwhile(block: SpooledBlock) -> None:
        spool.remove(A, "p1", next(through, 0))

    monkeypatch.setattr("standpipe.spool.reader.content_fault", drain_meanwhile)
    with Spool.open_readonly(path) as reader:
        assert reader.verify() == []
    assert sequences(spool) == [10, 11]


def test_a_gap_is_found(spool: Spool) -> None:
    """Missing numbers within a series are a finding; a block that was set aside is not missing."""
    spool.append([rows_block(n) for n in (3, 4, 6, 9)])
    spool.append([msgspec_replace(rows_block(1), producer_id="p2")])
    spool.set_aside(A, "p1", 4, reason="refused")
    found = [(finding.kind, finding.sequence, finding.text) for finding in spool.verify()]
    assert found == [
        ("gap", 6, "1 numbers are missing between 3 and it"),
        ("gap", 9, "2 numbers are missing between 6 and it"),
    ]


def msgspec_replace(given: SpooledBlock, **changes: Any) -> SpooledBlock:
    import msgspec

    return msgspec.structs.replace(given, **changes)


@pytest.mark.parametrize(
    "change",
    [
        "payload = CAST(substr(payload, 1, 50) || x'00' || substr(payload, 52) AS BLOB)",
        "payload = substr(payload, 2)",
        "payload = 'text'",
        "mark = 'arrow1'",
        "count = count + 1",
        "arguments = 1",
        "spooled_at = spooled_at + 1",
        "checksum = checksum + 1",
        "sequence = 20",
    ],
)
def test_a_changed_block_is_never_handed_out(path: Path, change: str) -> None:
    """A block that is not as it was stored is named; those before it still come out, and those
    behind it once it is set aside."""
    with Spool(path) as spool:
        spool.append([block(n) for n in (1, 2, 30)])
    tamper(path, f"UPDATE block SET {change} WHERE sequence = 2")
    number = 20 if "sequence" in change else 2
    with Spool(path) as spool:
        assert sequences(spool) == [1]
        spool.remove(A, "p1", 1)
        with pytest.raises(SpoolDamagedError, match=f"block {number} of producer p1") as caught:
            all_of(spool)
        error = caught.value
        assert (error.shard_key, error.producer_id, error.sequence) == (A, "p1", number)
        assert not error.retryable
        assert "checksum" in kinds(spool)
        assert spool.set_aside(A, "p1", number, reason=str(error))
        assert sequences(spool) == [30]
        assert "checksum" in kinds(spool)


def test_wrong_counters_are_found(path: Path) -> None:
    """The spool's own bookkeeping is checked against what is there."""
    with Spool(path) as spool:
        spool.append([rows_block(1)])
    tamper(path, "UPDATE series SET events = events + 1")
    with Spool(path) as spool:
        (finding,) = spool.verify()
        assert (finding.kind, finding.producer_id) == ("totals", "p1")
        assert "1 blocks, 41 events" in finding.text


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"garbage!" * 16)


def spoil_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * 4096))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def as_text(path: Path) -> None:
    path.write_text("these are my notes")


@pytest.mark.parametrize("spoil", [spoil_header, spoil_middle, cut_short, as_text])
def test_a_damaged_file_is_an_error_and_is_left_alone(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    """Whatever has happened to the file: a typed error with a hint, and not a byte is changed."""
    with Spool(path) as spool:
        spool.bind("power", SHARDS)
        for n in range(1, 101):
            spool.append([block(n, size=5000)])
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(SpoolDamagedError) as caught, Spool(path) as spool:
        spool.append([block(101)])
        all_of(spool)
    assert "overwrites" in caught.value.hint
    if spoil is spoil_middle:
        # What can be opened may take more blocks, if the damage does not lie in their way.
        with Spool.open_readonly(path) as reader:
            assert "file" in kinds(reader)
    else:
        assert path.read_bytes() == before
        with pytest.raises(SpoolDamagedError):
            Spool.open_readonly(path)
    assert path.exists()


def test_a_log_without_its_file_is_not_deleted(path: Path) -> None:
    """Blocks that stand in the write-ahead log alone are kept when the file has gone missing."""
    spool = Spool(path)
    spool.append([block(n) for n in (1, 2)])
    wal = path.with_name(path.name + "-wal")
    for name in (path, wal):
        shutil.copy(name, f"{name}.kept")
    spool.close()
    for there in (False, True):
        path.unlink(missing_ok=True)
        if there:
            path.touch()
        shutil.copy(f"{wal}.kept", wal)
        before = wal.read_bytes()
        assert len(before) > 0
        with pytest.raises(SpoolDamagedError, match="missing or empty"):
            Spool(path)
        assert wal.read_bytes() == before
    shutil.copy(f"{path}.kept", path)
    with Spool(path) as again:
        assert sequences(again) == [1, 2]


def test_a_file_that_was_deleted_takes_nothing_more(spool: Spool, path: Path) -> None:
    """Blocks are never written to a file that will be gone when it is closed."""
    spool.append([block(1)])
    path.unlink()
    with pytest.raises(SpoolUnusableError, match="No such file"):
        spool.append([block(2)])
    assert sequences(spool) == [1]


def test_a_file_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    """Another program's database is neither filled nor changed."""
    path = tmp_path / "readings.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE reading (id)")
    database.close()
    before = path.read_bytes()
    for opening in (Spool, Spool.open_readonly):
        with pytest.raises(SpoolUnusableError, match="no spool"):
            opening(path)
    assert path.read_bytes() == before


def test_a_newer_layout_is_left_alone(path: Path) -> None:
    """A spool of a later version is refused with both numbers."""
    Spool(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(SpoolUnusableError, match="layout 7; this version of Standpipe reads 1"):
        Spool(path)


@pytest.mark.parametrize("where", ["file/spool", "folder"])
def test_an_impossible_path_is_a_typed_error(tmp_path: Path, where: str) -> None:
    """A path that no file can have is an error of the spool, with a hint."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpoolUnusableError) as caught:
        Spool(tmp_path / where)
    assert caught.value.hint


def test_an_empty_file_becomes_a_spool(path: Path) -> None:
    """A creation that was cut short before anything was written is begun anew."""
    path.parent.mkdir()
    path.touch()
    with Spool(path) as spool:
        spool.append([block(1)])
        assert sequences(spool) == [1]


def test_every_error_of_the_disk_has_a_type(spool: Spool) -> None:
    """Each kind of SQLite error becomes an error of the spool; none escapes as it is."""
    for name, kind in (
        ("SQLITE_FULL", SpoolFullError),
        ("SQLITE_BUSY", SpoolInUseError),
        ("SQLITE_LOCKED", SpoolInUseError),
        ("SQLITE_CORRUPT", SpoolDamagedError),
        ("SQLITE_NOTADB", SpoolDamagedError),
        ("SQLITE_READONLY", SpoolUnusableError),
        ("SQLITE_CANTOPEN", SpoolUnusableError),
        ("SQLITE_IOERR_WRITE", SpoolUnusableError),
        ("SQLITE_IOERR_FSYNC", SpoolUnusableError),
        ("SQLITE_NOMEM", SpoolUnusableError),
    ):
        failure = sqlite3.OperationalError("what SQLite says")
        failure.sqlite_errorcode = getattr(sqlite3, name)
        with pytest.raises(SpoolError) as caught, spool._file.writing():
            raise failure
        assert type(caught.value) is kind
        assert caught.value.hint
        assert isinstance(caught.value, StandpipeError)
        assert caught.value.__cause__ is failure


def test_importing_it_is_cheap() -> None:
    """Storing and draining need neither the codecs nor pyarrow."""
    program = (
        "import sys, standpipe.spool; "
        "print([n for n in ('standpipe.codec', 'pyarrow', 'redis') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "[]\n"
