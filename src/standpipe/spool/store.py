"""The spool itself: blocks in and out, in order, bounded."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from standpipe.clock import now_ms
from standpipe.errors import ConfigError, SpoolError, SpoolFullError, SpoolOrderError
from standpipe.limits import (
    SPOOL_BYTES_MAX,
    SPOOL_DISK_FREE_BYTES_MIN,
    SPOOL_PAGE_BYTES,
    SPOOL_RESERVE_BYTES,
    SPOOL_SHRINK_BYTES_MIN,
)
from standpipe.spool.block import SpooledBlock
from standpipe.spool.file import DISK_FULL_HINT, SIZE, SpoolFile, meta, pragma, set_meta
from standpipe.spool.reader import SpoolReader

T = TypeVar("T")
log: Final = logging.getLogger("standpipe.spool")

_STORED: Final = "sequence, mark, count, arguments, spooled_at, checksum, payload"


class Spool(SpoolReader):
    """One producer's blocks on local disk, in order per shard, while the server cannot take them.

    Args:
        path: Its file, on a local disk. Created, with its folders, when it is not there.
        bytes_max: Bytes that its blocks may take on disk, at most: each counts with its payload
            and what the file may need for it. Besides, there are the write-ahead log
            (SPOOL_WAL_BYTES, or what a larger append brings) and SPOOL_RESERVE_BYTES.
        fsync: Whether a call returns when the disk has what it wrote. Without, a crash of the
            machine costs the last calls; a crash of the process costs nothing either way.
        disk_free_bytes_min: Bytes that appending leaves free on the disk.

    Raises:
        ConfigError: ``bytes_max`` is below 1.
        SpoolInUseError: another producer has it.
        SpoolUnusableError: it cannot be created or opened, or the file is no spool.
        SpoolDamagedError: SQLite cannot make sense of it.
        SpoolFullError: there is no room on the disk to create it. Retryable.

    Delivery:
        A call has done all of what it does or nothing, also when the process is killed within it.
        If it is killed before it hears so, a block may be there that it does not know to be.

    All methods block, and may be called from any thread; they take turns. Each raises
    SpoolInUseError, SpoolUnusableError and SpoolDamagedError as above.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        bytes_max: int = SPOOL_BYTES_MAX,
        fsync: bool = False,
        disk_free_bytes_min: int = SPOOL_DISK_FREE_BYTES_MIN,
    ) -> None:
        if bytes_max < 1:
            raise ConfigError(f"bytes_max is {bytes_max}", hint="It is at least 1.")
        self.bytes_max: Final = bytes_max
        self._fsync = fsync
        self._disk_free_bytes_min = disk_free_bytes_min
        super().__init__(path)
        try:
            with self._file.writing() as db:
                set_meta(db, "bytes_max", str(bytes_max))
        except BaseException:
            self.close()
            raise
        # The process before may have been killed when it had drained and not yet done this.
        self._shrink()

    def _open(self, path: Path | str) -> SpoolFile:
        return SpoolFile(path, writes=True, fsync=self._fsync)

    @staticmethod
    def open_readonly(path: Path | str) -> SpoolReader:
        """Open a spool for reading, also while a producer has it; see :class:`SpoolReader`."""
        return SpoolReader(path)

    def bind(self, stream_name: str, shard_keys: Sequence[str], definition: str = "") -> None:
        """Say which stream the blocks belong to, once per start of the producer.

        Args:
            stream_name: The stream.
            shard_keys: The keys of its shards.
            definition: What a producer that starts while the server is away has to know of it.

        Raises:
            ConfigError: it belongs to another stream, or holds blocks for a shard that is not among
                these: the stream was made anew with another number of shards.
        """
        with self._file.writing() as db:
            bound = meta(db, "stream")
            if bound is not None and bound != stream_name:
                raise ConfigError(
                    f"the spool {self.path} belongs to the stream {bound!r}, not to "
                    f"{stream_name!r}",
                    hint="Give every stream a spool of its own.",
                )
            for (shard_key,) in db.execute(
                "SELECT DISTINCT shard_key FROM series WHERE blocks > 0 ORDER BY number"
            ):
                if shard_key not in shard_keys:
                    raise ConfigError(
                        f"the spool {self.path} holds blocks for {shard_key}, which is no shard of "
                        f"{stream_name!r} (any more)",
                        hint="Drain it into a stream with the earlier number of shards, or move it "
                        "away.",
                    )
            set_meta(db, "stream", stream_name)
            set_meta(db, "definition", definition)

    # --- in --------------------------------------------------------------------------------------

    def append(self, blocks: Sequence[SpooledBlock]) -> None:
        """Store blocks behind those that are there, all of them or none.

        Args:
            blocks: Of one producer id, by rising number per shard. A shard's blocks are drained in
                the order in which they came, so once a shard has had blocks of another producer id,
                none of the earlier one can follow.

        Raises:
            SpoolFullError: ``bytes_max`` would be passed, or the disk is full. Retryable.
            ConfigError: a single block is larger than ``bytes_max``.
            SpoolOrderError: a number does not rise.

        Cost: one transaction; each byte is written twice, to the log and to the file.
        """
        by_series: dict[tuple[str, str], list[SpooledBlock]] = {}
        for block in blocks:
            by_series.setdefault((block.shard_key, block.producer_id), []).append(block)
        with self._file.writing() as db:
            self._require_room(db, [block.size for block in blocks])
            for (shard_key, producer_id), behind in by_series.items():
                self._append_to(db, shard_key, producer_id, behind)

    def _require_room(self, db: sqlite3.Connection, sizes: Sequence[int]) -> None:
        size = sum(sizes)
        held: int = db.execute("SELECT SUM(bytes + aside_bytes) FROM series").fetchone()[0] or 0
        if max(sizes, default=0) > self.bytes_max:
            raise ConfigError(
                f"a block of {max(sizes)} bytes is larger than the spool's bytes_max "
                f"({self.bytes_max})",
                hint="Raise bytes_max, or send smaller blocks.",
            )
        if held + size > self.bytes_max:
            raise SpoolFullError(
                f"the spool {self.path} holds {held} bytes; {size} more would pass bytes_max "
                f"({self.bytes_max})"
            )
        # A byte is in the write-ahead log and in the file at the same time. The room that both have
        # already is not asked of the disk.
        room = pragma(db, "freelist_count") * SPOOL_PAGE_BYTES
        needed = max(0, size - self._file.log_bytes) + max(0, size - room)
        free = self._file.disk_free_bytes - needed - self._disk_free_bytes_min
        if needed and free < 0:
            raise SpoolFullError(
                f"the disk of the spool {self.path} has {self._file.disk_free_bytes} bytes left; "
                f"{needed} are needed, and {self._disk_free_bytes_min} are to stay free",
                hint=DISK_FULL_HINT,
            )
        if free >= SPOOL_RESERVE_BYTES:
            self._file.keep_reserve()

    def _append_to(
        self,
        db: sqlite3.Connection,
        shard_key: str,
        producer_id: str,
        blocks: Sequence[SpooledBlock],
    ) -> None:
        number, last = self._newest_series(db, shard_key, producer_id)
        for block in blocks:
            if block.sequence <= last:
                raise SpoolOrderError(
                    f"block {block.sequence} of producer {producer_id} on {shard_key} was given to "
                    f"the spool after block {last}"
                )
            last = block.sequence
        db.executemany(
            f"INSERT INTO block (series, {_STORED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    number,
                    block.sequence,
                    block.mark,
                    block.count,
                    block.arguments,
                    block.spooled_at,
                    block.checksum,
                    block.payload,
                )
                for block in blocks
            ),
        )
        events, size = sum(block.count for block in blocks), sum(block.size for block in blocks)
        db.execute(
            "UPDATE series SET last_sequence = ?, blocks = blocks + ?, events = events + ?, "
            "bytes = bytes + ? WHERE number = ?",
            (last, len(blocks), events, size, number),
        )

    def _newest_series(
        self, db: sqlite3.Connection, shard_key: str, producer_id: str
    ) -> tuple[int, int]:
        """The number of the series, which may be new, and its last sequence number."""
        newest = db.execute(
            "SELECT producer_id, number, last_sequence FROM series WHERE shard_key = ? "
            "ORDER BY number DESC LIMIT 1",
            (shard_key,),
        ).fetchone()
        if newest is not None and newest[0] == producer_id:
            return newest[1], newest[2]
        if _series_number(db, shard_key, producer_id) is not None:
            raise SpoolOrderError(
                f"producer {producer_id} gave the spool a block for {shard_key} after another "
                "producer had begun"
            )
        number = db.execute(
            "INSERT INTO series (shard_key, producer_id) VALUES (?, ?)", (shard_key, producer_id)
        ).lastrowid
        assert number is not None, "SQLite numbers every row"
        return number, 0

    # --- out -------------------------------------------------------------------------------------

    def remove(self, shard_key: str, producer_id: str, through: int) -> int:
        """Forget the blocks of this producer id on this shard up to a number: they are settled.

        Returns:
            How many blocks there were.

        Raises:
            SpoolFullError: the disk is full and the reserve is used up; the blocks are still there.
                Retryable.

        Cost: one transaction. When the last block is gone, and the file is larger than
        SPOOL_SHRINK_BYTES_MIN, the space goes back to the disk: some 0.4 s per GB, once.
        """
        removed = self._freeing(lambda db: _remove(db, shard_key, producer_id, through))
        if removed:
            self._shrink()
        return removed

    def set_aside(self, shard_key: str, producer_id: str, sequence: int, *, reason: str) -> bool:
        """Take one block out of the order and keep it with a reason.

        For a block that the server refuses for good, or that is damaged, so that it neither holds
        up those behind it nor is lost. It still counts towards ``bytes_max``.

        Returns:
            Whether there was such a block.

        Raises:
            SpoolFullError: as :meth:`remove`.
        """
        return self._freeing(lambda db: _set_aside(db, shard_key, producer_id, sequence, reason))

    def remove_aside(self, shard_key: str, producer_id: str, sequence: int) -> bool:
        """Forget a block that was set aside.

        Returns:
            Whether there was such a block.

        Raises:
            SpoolFullError: as :meth:`remove`.
        """
        removed = self._freeing(lambda db: _remove_aside(db, shard_key, producer_id, sequence))
        if removed:
            self._shrink()
        return removed

    def _freeing(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Do what has to work on a full disk as well: the reserve is given up for it."""
        try:
            with self._file.writing() as db:
                return change(db)
        except SpoolFullError:
            if not self._file.give_up_reserve():
                raise
        with self._file.writing() as db:
            return change(db)

    def _shrink(self) -> None:
        """Give space back to the disk if there is nothing to drain and most of the file is free.

        Before, it would only be taken again, or blocks would have to be moved within the file.
        """
        try:
            with self._file.outside() as db:
                if db.execute("SELECT 1 FROM series WHERE blocks > 0").fetchone():
                    return
                free, pages = pragma(db, "freelist_count"), pragma(db, "page_count")
                if free * SPOOL_PAGE_BYTES >= SPOOL_SHRINK_BYTES_MIN and free > pages // 2:
                    db.execute("VACUUM")
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except SpoolError as error:
            # What was asked for is done; the file only stays as large as it is.
            log.warning("%s could not be made smaller: %s (%s)", self.path, error, error.hint)


def _series_number(db: sqlite3.Connection, shard_key: str, producer_id: str) -> int | None:
    row = db.execute(
        "SELECT number FROM series WHERE shard_key = ? AND producer_id = ?",
        (shard_key, producer_id),
    ).fetchone()
    return None if row is None else row[0]


def _remove(db: sqlite3.Connection, shard_key: str, producer_id: str, through: int) -> int:
    number = _series_number(db, shard_key, producer_id)
    these = "FROM block WHERE series = ? AND sequence <= ?"
    blocks, events, size = db.execute(
        f"SELECT COUNT(*), SUM(count), SUM({SIZE}) {these}", (number, through)
    ).fetchone()
    if blocks:
        db.execute(f"DELETE {these}", (number, through))
        db.execute(
            "UPDATE series SET blocks = blocks - ?, events = events - ?, bytes = bytes - ? "
            "WHERE number = ?",
            (blocks, events, size, number),
        )
        _remove_empty_series(db, shard_key)
    return blocks


def _set_aside(
    db: sqlite3.Connection, shard_key: str, producer_id: str, sequence: int, reason: str
) -> bool:
    number = _series_number(db, shard_key, producer_id)
    this = "FROM block WHERE series = ? AND sequence = ?"
    found = db.execute(f"SELECT count, {SIZE} {this}", (number, sequence)).fetchone()
    if found is None:
        return False
    db.execute(
        f"INSERT INTO aside (series, {_STORED}, reason, set_aside_at) "
        f"SELECT series, {_STORED}, ?, ? {this}",
        (reason, now_ms(), number, sequence),
    )
    db.execute(f"DELETE {this}", (number, sequence))
    db.execute(
        "UPDATE series SET blocks = blocks - 1, events = events - :count, bytes = bytes - :size, "
        "aside_blocks = aside_blocks + 1, aside_events = aside_events + :count, "
        "aside_bytes = aside_bytes + :size WHERE number = :number",
        {"count": found[0], "size": found[1], "number": number},
    )
    return True


def _remove_aside(db: sqlite3.Connection, shard_key: str, producer_id: str, sequence: int) -> bool:
    number = _series_number(db, shard_key, producer_id)
    this = "FROM aside WHERE series = ? AND sequence = ?"
    found = db.execute(f"SELECT count, {SIZE} {this}", (number, sequence)).fetchone()
    if found is None:
        return False
    db.execute(f"DELETE {this}", (number, sequence))
    db.execute(
        "UPDATE series SET aside_blocks = aside_blocks - 1, aside_events = aside_events - ?, "
        "aside_bytes = aside_bytes - ? WHERE number = ?",
        (*found, number),
    )
    _remove_empty_series(db, shard_key)
    return True


def _remove_empty_series(db: sqlite3.Connection, shard_key: str) -> None:
    # The newest one stays: it says which number was the last.
    db.execute(
        "DELETE FROM series WHERE shard_key = ? AND blocks = 0 AND aside_blocks = 0 "
        "AND number < (SELECT MAX(number) FROM series WHERE shard_key = ?)",
        (shard_key, shard_key),
    )
