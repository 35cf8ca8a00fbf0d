"""One archive file: its Parquet bytes out of parts, and tables and events out of it."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import bisect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from standpipe.archive.fields import (
    FieldSpec,
    Part,
    as_type,
    column_of,
    events_of,
    exact_values,
    merge_fields,
    spec_type,
)
from standpipe.codec import block_fields, encode_rows
from standpipe.errors import ArchiveDamagedError
from standpipe.event import Batch, Event, EventId
from standpipe.limits import ARCHIVE_DICTIONARY_BYTES, ARCHIVE_GROUP_BYTES, ARCHIVE_GROUP_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT: Final = 1
_META: Final = b"standpipe"
_ID_COLUMNS: Final = ("shard", "entry_ms", "entry_seq", "index", "key", "time")


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself, as JSON in its footer under ``standpipe``."""

    format: int = FORMAT
    stream: str
    shard: int
    generation: int
    after: str
    first: str
    last: str
    entries: int
    events: int
    undecodable: int
    """Entries that no codec reads: rows whose key and time are null, and raw is not."""
    time_min: int | None
    """The earliest of the events' own times, ms; None if it holds no events."""
    time_max: int | None
    added: int | None = None
    """How many entries the shard had ever been given, up to the last; None: not known (before Redis
    7, or after the server lost data)."""
    lost: int | None = None
    """How many entries behind ``after`` were gone before they were archived; None: not known."""
    last_hash: str
    """The SHA-256 of its last entry's fields, beginning: tells one history from another."""
    fields: dict[str, FieldSpec]


class Draft(NamedTuple):
    """What is to be a file."""

    stream: str
    shard: int
    generation: int
    after: EventId
    parts: Sequence[Part]
    last_hash: str
    added: int | None = None
    lost: int | None = None


def build(draft: Draft) -> tuple[FileInfo, bytes]:
    """A file's content.

    Cost: about 0.5 µs per event of five fields, on top of what its parts took.
    """
    import pyarrow as pa

    parts = draft.parts
    specs, columns, marks = merge_fields(parts)
    rows = sum(part.rows for part in parts)
    entries = list(chain.from_iterable(part.entries for part in parts))
    times = pa.chunked_array([part.times for part in parts], pa.int64())
    time_min, time_max = _extremes(times)
    raw = sum(len(part.raw) for part in parts if part.raw is not None)
    info = FileInfo(
        stream=draft.stream,
        shard=draft.shard,
        generation=draft.generation,
        after=draft.after.entry,
        first=f"{entries[0][0]}-{entries[0][1]}",
        last=f"{entries[-1][0]}-{entries[-1][1]}",
        entries=len(entries),
        events=rows - raw,
        undecodable=raw,
        time_min=time_min,
        time_max=time_max,
        added=draft.added,
        lost=draft.lost,
        last_hash=draft.last_hash,
        fields=specs,
    )
    arrays = {
        "shard": _repeated([draft.shard], [rows], pa.int32()),
        "entry_ms": _repeated([e[0] for e in entries], [e[2] for e in entries], pa.uint64()),
        "entry_seq": _repeated([e[1] for e in entries], [e[2] for e in entries], pa.uint64()),
        "index": _indexes([e[2] for e in entries]),
        "key": pa.chunked_array([part.keys for part in parts], pa.string()),
        "time": times.cast(pa.timestamp("ms", "UTC")),
        **{
            column_of(name): pa.chunked_array(found, spec_type(specs[name]))
            for name, found in columns.items()
        },
        "marks": pa.chunked_array(marks, pa.string()),
        "raw": pa.chunked_array([_raw(part) for part in parts], pa.binary()),
    }
    # That a column is never null saves writing, for each row, that it is not.
    schema = pa.schema(
        [pa.field(n, array.type, nullable=n not in _ID_COLUMNS[:4]) for n, array in arrays.items()]
    )
    return info, _written(pa.table(arrays, schema=schema), info)


def _extremes(times: pa.ChunkedArray) -> tuple[int | None, int | None]:
    import pyarrow.compute as pc

    found = pc.min_max(times).as_py()
    return found["min"], found["max"]


def _repeated(values: list[int], counts: list[int], type_: pa.DataType) -> pa.Array:
    """Each value so many times."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(values) == sum(counts):
        return pa.array(values, type_)
    ends = pc.cumulative_sum(pa.array(counts, pa.int32()))
    return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, pa.array(values, type_)))


def _indexes(counts: list[int]) -> pa.Array | pa.ChunkedArray:
    """The index of each event in its entry."""
    import pyarrow as pa

    most = max(counts)
    if most == 1:
        return _repeated([0], [len(counts)], pa.int32())
    upwards = pa.array(range(most), pa.int32())
    return pa.concat_arrays([upwards.slice(0, count) for count in counts])


def _raw(part: Part) -> pa.Array:
    import pyarrow as pa

    if part.raw is None:
        return pa.nulls(part.rows, pa.binary())
    return pa.array([msgspec.msgpack.encode(fields) for _, fields in part.raw], pa.binary())


def _written(table: pa.Table, info: FileInfo) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({_META: msgspec.json.encode(info)})
    per_row = max(1, table.nbytes // len(table))
    sink = pa.BufferOutputStream()
    cast("Any", pq).write_table(
        table,
        sink,
        row_group_size=max(1, min(ARCHIVE_GROUP_ROWS, ARCHIVE_GROUP_BYTES // per_row)),
        compression="zstd",
        # A byte that changed later is an error for whoever reads it, not another value.
        write_page_checksum=True,
        **_encodings(table.schema),
    )
    return sink.getvalue().to_pybytes()


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Which columns are written through a dictionary, and how the others are."""
    import pyarrow as pa

    # IDs and times rise, which deltas say shortest. All else goes through a dictionary until that
    # is as large as limits.py says: readings mostly have few digits, and come again.
    dictionary: list[str] = []
    encoding: dict[str, str] = {}
    for field in schema:
        is_number = pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type)
        if is_number and field.name != "shard":
            encoding[field.name] = "DELTA_BINARY_PACKED"
        elif not pa.types.is_boolean(field.type):
            dictionary.append(field.name)
    return {
        "use_dictionary": dictionary,
        "column_encoding": encoding,
        "dictionary_pagesize_limit": ARCHIVE_DICTIONARY_BYTES,
    }


# --- reading -------------------------------------------------------------------------------------


def read_info(schema: pa.Schema, path: str) -> FileInfo:
    """What a file's footer says of it.

    Raises:
        ArchiveDamagedError: it is none of this package, or of a newer version.
    """
    raw = (schema.metadata or {}).get(_META)
    if raw is None:
        raise ArchiveDamagedError(
            f"{path} is no file of an archive",
            hint="Move it elsewhere: an archive is a folder of its own.",
        )
    try:
        info = msgspec.json.decode(raw, type=FileInfo)
    except msgspec.MsgspecError as error:
        raise ArchiveDamagedError(f"the footer of {path} cannot be read: {error}") from error
    if info.format != FORMAT:
        raise ArchiveDamagedError(
            f"{path} has the format {info.format}, this version reads {FORMAT}",
            hint="Read it with the version of Standpipe that wrote it, or a later one.",
        )
    return info


class Undecodable(NamedTuple):
    """An entry that no codec read when it was archived."""

    id: EventId
    reason: str
    fields: list[bytes]
    """Name, value, name, value… as they stood on the server."""


class Selection(NamedTuple):
    """Which rows and columns of a file are wanted."""

    start: EventId
    """From this event on."""
    end: EventId | None
    """Up to this event."""
    event_start: int | None = None
    event_end: int | None = None
    keys: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    rows: int = ARCHIVE_GROUP_ROWS


def read_rows(
    file: Any, info: FileInfo, wanted: Selection, specs: Mapping[str, FieldSpec]
) -> Iterator[ArchivedTable]:
    """The wanted rows of an open Parquet file, a row group at a time.

    Args:
        file: A pyarrow ParquetFile.
        info: What it says of itself.
        wanted: Which rows.
        specs: The columns of all files that are read together.
    """

    fields = [n for n in info.fields if wanted.fields is None or n in wanted.fields]
    names = [*_ID_COLUMNS, "marks"] + [
        column_of(name) for name in fields if info.fields[name].kind != "null"
    ]
    if info.undecodable:
        names.append("raw")
    metadata = file.metadata
    places = {metadata.schema.column(at).path: at for at in range(metadata.num_columns)}
    for group in range(metadata.num_row_groups):
        if not _may_match(metadata.row_group(group), places, wanted):
            continue
        table: pa.Table = file.read_row_group(group, columns=names).select(names)
        table = _matching(_between(table, wanted), wanted)
        for start in range(0, len(table), wanted.rows):
            yield ArchivedTable(info, table.slice(start, wanted.rows), specs, wanted.fields)


def _may_match(group: Any, places: Mapping[str, int], wanted: Selection) -> bool:
    """Whether a row group's statistics leave it possible that a row is wanted."""

    def between(name: str, low: Any, high: Any) -> bool:
        found = group.column(places[name]).statistics
        if found is None or not found.has_min_max:
            return True
        return (low is None or found.max >= low) and (high is None or found.min <= high)

    if not between("entry_ms", wanted.start.ms, None if wanted.end is None else wanted.end.ms):
        return False
    if wanted.event_start is not None or wanted.event_end is not None:
        found = group.column(places["time"]).statistics
        if found is not None and found.has_min_max:
            low, high = found.min_raw, found.max_raw
            if wanted.event_start is not None and high < wanted.event_start:
                return False
            if wanted.event_end is not None and low > wanted.event_end:
                return False
    return wanted.keys is None or any(between("key", key, key) for key in wanted.keys)


def _between(table: pa.Table, wanted: Selection) -> pa.Table:
    """The rows between the two bounds; they are in order, so a few looks find the ends."""
    ms, seq, index = (table.column(name) for name in ("entry_ms", "entry_seq", "index"))

    def at(row: int) -> tuple[int, int, int]:
        return ms[row].as_py(), seq[row].as_py(), index[row].as_py()

    rows = range(len(table))
    start = bisect.bisect_left(rows, wanted.start, key=at)
    stop = len(table)
    if wanted.end is not None:
        stop = bisect.bisect_right(rows, wanted.end, key=at)
    return table if (start, stop) == (0, len(table)) else table.slice(start, max(0, stop - start))


def _matching(table: pa.Table, wanted: Selection) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    masks: list[pa.ChunkedArray] = []
    if wanted.event_start is not None or wanted.event_end is not None:
        times = table.column("time").cast(pa.int64())
        if wanted.event_start is not None:
            masks.append(pc.greater_equal(times, wanted.event_start))
        if wanted.event_end is not None:
            masks.append(pc.less_equal(times, wanted.event_end))
    if wanted.keys is not None:
        masks.append(pc.is_in(table.column("key"), value_set=pa.array(wanted.keys, pa.string())))
    for mask in masks[1:]:
        masks[0] = pc.and_(masks[0], mask)
    # What is neither true nor false, an entry without events, is left out.
    return table.filter(masks[0]) if masks else table


class ArchivedTable:
    """Some events of one shard, in the shard's order, as they stand in the archive."""

    def __init__(
        self,
        info: FileInfo,
        rows: pa.Table,
        specs: Mapping[str, FieldSpec],
        fields: Collection[str] | None,
    ) -> None:
        import pyarrow.compute as pc

        self.stream: Final = info.stream
        self.shard: Final = info.shard
        self.generation: Final = info.generation
        """How often the server's entry IDs had gone back when these were archived."""
        self._own = info.fields
        self._specs = specs
        self._fields = fields
        self.first: Final = _id_at(rows, 0)
        self.last: Final = _id_at(rows, -1)
        self.undecodable: Final[list[Undecodable]] = []
        """Entries among them that no codec reads; they have no events."""
        if "raw" in rows.column_names:
            is_raw = rows.column("raw").is_valid()
            if pc.any(is_raw).as_py():
                self.undecodable.extend(map(_undecodable, rows.filter(is_raw).to_pylist()))
                rows = rows.filter(pc.invert(is_raw))
            rows = rows.drop_columns(["raw"])
        self._rows = rows

    def __len__(self) -> int:
        """How many events."""
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"<ArchivedTable of {self.stream!r} shard {self.shard}: {len(self)} events, "
            f"{self.first} to {self.last}>"
        )

    @cached_property
    def table(self) -> pa.Table:
        """``shard``, ``entry_ms``, ``entry_seq``, ``index``, ``key``, ``time`` (int64, ms), fields.

        All tables of one :meth:`Archive.read` have the same columns; a field that a file does not
        have is null. A field's column has its own name, or that with an underscore more
        (:func:`column_of`).
        """
        import pyarrow as pa

        rows = self._rows
        columns: dict[str, pa.ChunkedArray] = {name: rows.column(name) for name in _ID_COLUMNS}
        columns["time"] = columns["time"].cast(pa.int64())
        for name, wanted in self._specs.items():
            own = self._own.get(name)
            column = column_of(name)
            if own is None or own.kind == "null":
                columns[column] = pa.chunked_array([pa.nulls(len(rows), spec_type(wanted))])
            else:
                found = rows.column(column)
                columns[column] = as_type(found, own, wanted, name=name, marks=rows.column("marks"))
        return pa.table(columns)

    def events(self) -> list[Event]:
        """The events, exactly as they were: types, and None against a field that is not there."""
        import pyarrow as pa

        rows = self._rows
        fields = [n for n in self._own if self._fields is None or n in self._fields]
        columns = {
            name: exact_values(rows.column(column_of(name)), self._own[name])
            for name in fields
            if self._own[name].kind != "null"
        }
        keys: list[str | None] = rows.column("key").to_pylist()
        times: list[int] = rows.column("time").cast(pa.int64()).to_pylist()
        marks: list[str | None] = rows.column("marks").to_pylist()
        return events_of(keys, times, columns, marks, {name: self._own[name] for name in fields})

    def ids(self) -> list[EventId]:
        """The event IDs, parallel to :meth:`events`."""
        columns = (self._rows.column(name).to_pylist() for name in _ID_COLUMNS[1:4])
        return list(map(EventId, *columns))

    def batch(self) -> Batch:
        """As a live reader gives them: entries, each with its events."""
        ids = self.ids()
        starts = [
            at
            for at, each in enumerate(ids)
            if not at or (each.ms, each.seq, each.index - 1) != ids[at - 1]
        ]
        ends = [*starts, len(ids)][1:]
        entries = [
            _Entry(ids[start], stop - start, self, start)
            for start, stop in zip(starts, ends, strict=True)
        ]
        return Batch(entries, stream=self.stream, shard=self.shard)

    @cached_property
    def _all_events(self) -> list[Event]:
        return self.events()


class _Entry:
    """An entry as it was archived, or the part of it that was asked for."""

    __slots__ = ("_at", "_of", "count", "id")

    def __init__(self, id: EventId, count: int, of: ArchivedTable, at: int) -> None:
        self.id = id
        self.count = count
        self._of = of
        self._at = at

    @property
    def fields(self) -> list[bytes]:
        """As a rows block, whatever it was."""
        return block_fields("rows", self.count, encode_rows(self.events()))

    def events(self) -> list[Event]:
        return self._of._all_events[self._at : self._at + self.count]  # pyright: ignore[reportPrivateUsage]

    def table(self) -> pa.Table:
        rows = self._of.table.slice(self._at, self.count)
        return rows.drop_columns(["shard", "entry_ms", "entry_seq", "index"])


def _id_at(rows: pa.Table, at: int) -> EventId:
    return EventId(*(rows.column(name)[at].as_py() for name in _ID_COLUMNS[1:4]))


def _undecodable(row: dict[str, Any]) -> Undecodable:
    fields: list[bytes] = msgspec.msgpack.decode(row["raw"], type=list[bytes])
    reason: str = json.loads(row["marks"])[""]
    return Undecodable(EventId(row["entry_ms"], row["entry_seq"], row["index"]), reason, fields)
