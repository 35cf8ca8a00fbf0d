"""What can be asked of a spool without changing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from standpipe.errors import SpoolDamagedError
from standpipe.limits import SPOOL_CHECK_BLOCKS
from standpipe.spool.block import (
    AsideBlock,
    SeriesSummary,
    SpooledBlock,
    SpoolFinding,
    SpoolSummary,
    content_fault,
)
from standpipe.spool.file import SIZE, SpoolFile, meta

_COLUMNS: Final = (
    "shard_key, producer_id, sequence, mark, count, payload, arguments, spooled_at, checksum"
)


class SpoolReader:
    """Reads a spool, also while a producer has it.

    Args:
        path: The spool's file.

    Raises:
        SpoolUnusableError: it is not there, cannot be read, or is no spool.
        SpoolDamagedError: SQLite cannot make sense of it.

    All methods block; they may be called from any thread and raise as this does. A check of a large
    spool holds back the copying of the write-ahead log, which grows for as long.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = self._open(path)
        self.path: Final = self._file.path

    def _open(self, path: Path | str) -> SpoolFile:
        return SpoolFile(path, writes=False)

    def close(self) -> None:
        """Close it; without effect the second time."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stream(self) -> str | None:
        """The stream that it belongs to; None when it has had no producer yet."""
        with self._file.reading() as db:
            return meta(db, "stream")

    @property
    def definition(self) -> str | None:
        """What :meth:`Spool.bind` was told of that stream; None when it has had no producer yet."""
        with self._file.reading() as db:
            return meta(db, "definition")

    def head(self, shard_key: str, *, bytes_max: int, count_max: int) -> list[SpooledBlock]:
        """The oldest blocks of a shard, in the order in which they have to be sent.

        Args:
            bytes_max: Of their payloads together. The first is there whatever its size.
            count_max: How many blocks, at least 1.

        Returns:
            Empty when there is none. Blocks of earlier producer ids come first.

        Raises:
            SpoolDamagedError: the oldest block is not the one that was stored; it is named.
                :meth:`Spool.set_aside` lets those behind it through.
        """
        found: list[SpooledBlock] = []
        size = 0
        with self._file.reading() as db:
            for block, checksum in _oldest_first(db, shard_key, count_max):
                if not _is_intact(block, checksum):
                    if found:
                        break
                    raise SpoolDamagedError(
                        f"block {block.sequence} of producer {block.producer_id} on {shard_key} "
                        f"in {self.path} is not the one that was stored",
                        shard_key=shard_key,
                        producer_id=block.producer_id,
                        sequence=block.sequence,
                    )
                size += len(block.payload)
                if found and size > bytes_max:
                    break
                found.append(block)
        return found

    def aside(self, *, count_max: int) -> list[AsideBlock]:
        """The blocks that were set aside, oldest first.

        Their checksums are not looked at: a damaged block may be among them for that.
        """
        with self._file.reading() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS}, reason, set_aside_at FROM series JOIN aside "
                "ON series = number ORDER BY set_aside_at, series, sequence LIMIT ?",
                (count_max,),
            )
            return [
                AsideBlock(SpooledBlock(*values), reason, at)
                for *values, _checksum, reason, at in rows
            ]

    def summary(self) -> SpoolSummary:
        """What it holds.

        Cost: reads the counters and the first block of each series, whatever it holds.
        """
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT shard_key, producer_id, blocks, events, bytes, first.sequence, "
                "last_sequence, spooled_at, aside_blocks, aside_events, aside_bytes "
                "FROM series LEFT JOIN block AS first ON series = number AND sequence = "
                "(SELECT MIN(sequence) FROM block WHERE series = number) "
                "ORDER BY shard_key, number"
            )
            return SpoolSummary(
                stream=meta(db, "stream"),
                bytes_max=int(meta(db, "bytes_max") or 0),
                file_bytes=self._file.bytes_on_disk,
                series=tuple(SeriesSummary(*row) for row in rows),
            )

    # --- checking --------------------------------------------------------------------------------

    def verify(self) -> list[SpoolFinding]:
        """Look for damage: of the file, of the counters, and of every block.

        Returns:
            What is wrong; empty when all is well. A gap is a finding as well, though one comes
            about without damage when a block was refused for good before it was spooled.

        Cost: reads and decodes all that is stored.
        """
        found: list[SpoolFinding] = []
        checks = (self._check_file, self._check_totals, self._check_gaps, self._check_blocks)
        for check in checks:
            try:
                found.extend(check())
            except SpoolDamagedError as error:
                found.append(SpoolFinding("file", error.message))
        return found

    def _check_file(self) -> Iterator[SpoolFinding]:
        with self._file.reading() as db:
            lines: list[str] = [row[0] for row in db.execute("PRAGMA integrity_check")]
        for line in lines:
            if line != "ok":
                yield SpoolFinding("file", line)

    def _check_totals(self) -> Iterator[SpoolFinding]:
        for table, prefix in (("block", ""), ("aside", "aside_")):
            with self._file.reading() as db:
                rows = db.execute(
                    f"SELECT shard_key, producer_id, {prefix}blocks, {prefix}events, {prefix}bytes,"
                    f" COUNT(sequence), TOTAL(count), TOTAL({SIZE}) "
                    f"FROM series LEFT JOIN {table} ON series = number GROUP BY number"
                ).fetchall()
            for shard_key, producer_id, *numbers in rows:
                if numbers[:3] != numbers[3:]:
                    text = (
                        "{} blocks, {} events and {} bytes were counted, "
                        "but there are {}, {:.0f} and {:.0f}"
                    ).format(*numbers)
                    yield SpoolFinding("totals", prefix + text, shard_key, producer_id)

    def _check_gaps(self) -> Iterator[SpoolFinding]:
        # All at once, without payloads: what a producer removes meanwhile would look like a gap.
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT shard_key, producer_id, number, sequence, is_aside FROM series JOIN ("
                "SELECT series, sequence, 0 AS is_aside FROM block "
                "UNION ALL SELECT series, sequence, 1 FROM aside) ON series = number "
                "ORDER BY number, sequence"
            ).fetchall()
        series: int | None = None
        last: int | None = None
        aside = 0
        for shard_key, producer_id, number, sequence, is_aside in rows:
            if number != series:
                series, last, aside = number, None, 0
            if is_aside:
                aside += 1
                continue
            missing = 0 if last is None else sequence - last - 1 - aside
            if missing:
                text = f"{missing} numbers are missing between {last} and it"
                yield SpoolFinding("gap", text, shard_key, producer_id, sequence)
            last, aside = sequence, 0

    def _check_blocks(self) -> Iterator[SpoolFinding]:
        for block, checksum in self._all_blocks():
            where = (block.shard_key, block.producer_id, block.sequence)
            if not _is_intact(block, checksum):
                yield SpoolFinding("checksum", "it is not the block that was stored", *where)
            elif fault := content_fault(block):
                yield SpoolFinding("content", fault, *where)

    def _all_blocks(self) -> Iterator[tuple[SpooledBlock, int]]:
        """A few at a time, so that a producer gets its turn in between; with their checksums."""
        for table in ("block", "aside"):
            position = (0, 0)
            while True:
                with self._file.reading() as db:
                    rows = db.execute(
                        f"SELECT number, {_COLUMNS} FROM {table} JOIN series ON series = number "
                        "WHERE (series, sequence) > (?, ?) ORDER BY series, sequence LIMIT ?",
                        (*position, SPOOL_CHECK_BLOCKS),
                    ).fetchall()
                if not rows:
                    break
                for number, *values, checksum in rows:
                    block = SpooledBlock(*values)
                    position = (number, block.sequence)
                    yield block, checksum


def _oldest_first(
    db: sqlite3.Connection, shard_key: str, count_max: int
) -> Iterator[tuple[SpooledBlock, int]]:
    """A shard's blocks with their stored checksums, read one by one."""
    series = db.execute(
        "SELECT number FROM series WHERE shard_key = ? AND blocks > 0 ORDER BY number",
        (shard_key,),
    ).fetchall()
    for (number,) in series:
        # One series at a time: ordered over all of them, SQLite would sort the blocks, payloads
        # and all, before it gave the first.
        for *values, checksum in db.execute(
            f"SELECT {_COLUMNS} FROM block JOIN series ON number = series "
            "WHERE series = ? ORDER BY sequence LIMIT ?",
            (number, count_max),
        ):
            yield SpooledBlock(*values), checksum
            count_max -= 1


def _is_intact(block: SpooledBlock, checksum: int) -> bool:
    # Damage can reach the byte that says which type a value has.
    return type(block.payload) is bytes and block.checksum == checksum
