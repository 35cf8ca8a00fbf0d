"""The columns layout: a block of events as an Arrow IPC stream, for bulk and data frames."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from standpipe.codec.payload import Block, check_size, pack, unpack
from standpipe.codec.table import settled_table
from standpipe.errors import DecodeError, InputError
from standpipe.event import Event, FieldValue
from standpipe.limits import COLUMNS_ZSTD_LEVEL

if TYPE_CHECKING:
    import pyarrow as pa


def encode_columns(table: pa.Table, *, compress: bool = True) -> bytes:
    """A table as the payload of one columns block: an Arrow IPC stream.

    Args:
        table: From :func:`check_table` or :func:`events_to_table`, or a slice of one; with at least
            one row.
        compress: Whether a zstd frame takes the stream's place where that is smaller.
    """
    import pyarrow as pa

    if any(column.num_chunks > 1 for column in table.columns):
        table = table.combine_chunks()  # One batch, so that a reader's columns are whole.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pack(memoryview(sink.getvalue()), compress, COLUMNS_ZSTD_LEVEL)


class ColumnsEntry(Block):
    """A block of events whose fields stand in columns."""

    decoded: Any = None

    def table(self) -> pa.Table:
        """The block as a table that lies over the payload itself, or over what it unpacks to.

        Columns are not copied, except those that other writers gave another type than
        :func:`check_table` gives. Values are handed over as they are, NaN included.

        Raises:
            DecodeError: the payload is no Arrow stream of ``n`` rows with the columns ``key``,
                ``time`` and fields; not retryable.
        """
        if self.decoded is None:
            self.decoded = _read_columns(unpack(self.payload), self.count)
        return self.decoded

    def events(self) -> list[Event]:
        """The block's events, in order. Each has every column as a field, None where it is null.

        Raises:
            DecodeError: as :meth:`table`.
        """
        table = self.table()
        keys, times, *values = (column.to_pylist() for column in table.columns)
        names = table.column_names[2:]
        # Name by name is five times as fast as a dict out of each row.
        fields: list[dict[str, FieldValue]] = [{} for _ in keys]
        for name, column in zip(names, values, strict=True):
            for each, value in zip(fields, column, strict=True):
                each[name] = value
        return list(map(Event, keys, times, fields))


def _read_columns(payload: bytes, count: int) -> pa.Table:
    import pyarrow as pa

    try:
        check_size(sum(map(_decompressed_bytes, pa.ipc.MessageReader.open_stream(payload))))
        # The pool's threads cost more than they save on a block.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        table = pa.ipc.open_stream(payload, options=options).read_all()
        if len(table) != count:
            raise DecodeError(f"n says {count} events, the payload holds {len(table)} rows")
        # A foreign writer's offsets may point anywhere; following them could end the process.
        table.validate(full=True)
        for column in table.columns:
            _check_unfolded(column)
        return settled_table(table)
    except InputError as error:
        raise DecodeError(f"columns block: {error.message}", hint=error.hint) from error
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, LookupError) as error:
        raise DecodeError(f"the columns block is damaged: {error}") from error


def _check_unfolded(column: pa.ChunkedArray) -> None:
    """Bound what a column takes when it is unfolded: one long text can stand for every row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, types = column.type, pa.types
    if types.is_string_view(kind) or types.is_binary_view(kind):
        raise DecodeError(
            f"a column is {kind}, which few Arrow readers know",
            hint="Write utf8 or binary; polars: compat_level=CompatLevel.oldest().",
        )
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        for chunk in column.chunks:
            longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
            check_size(longest * len(chunk))


def _decompressed_bytes(message: Any) -> int:
    """What the compressed buffers of an Arrow message announce to be; 0 if none is compressed.

    pyarrow allocates what they announce before it looks at them and offers no limit, so the
    message's flatbuffer, which pyarrow has verified by now, is walked here.

    Source: https://github.com/apache/arrow/blob/main/format/Message.fbs
    """
    if message.type not in ("record batch", "dictionary"):
        return 0  # Nothing in it is compressed, and pyarrow has verified no other kind.
    data, body = memoryview(message.metadata), memoryview(message.body)

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[at : at + size], "little", signed=size > 2)

    def follow(at: int) -> int:
        return at + number(at)

    def member(table: int, index: int) -> int:
        """Where the table's index-th member stands; 0 if it has none."""
        vtable = table - number(table)
        slot = 4 + 2 * index
        within = number(vtable + slot, 2) if slot < number(vtable, 2) else 0
        return table + within if within else 0

    header = follow(member(follow(0), 2))
    if message.type == "dictionary":
        header = follow(member(header, 1))
    buffers, compression = member(header, 2), member(header, 3)
    if not buffers or not compression:
        return 0
    vector = follow(buffers)
    starts = (number(vector + 4 + 16 * index, 8) for index in range(number(vector)))
    sizes = (int.from_bytes(body[start : start + 8], "little", signed=True) for start in starts)
    # A single buffer that is not compressed says -1.
    return sum(max(0, size) for size in sizes)
