"""Tables of events with their IDs: the columns of an archive's, and putting them together. Pure."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from standpipe.archive.fields import EXACT_MAX, FieldSpec, as_type, kind_of, spec_type, unified
from standpipe.errors import DecodeError
from standpipe.event import Batch

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS: Final = ("shard", "entry_ms", "entry_seq", "index", "key", "time")
"""What every table has beside the fields, in this order."""

Specs = Mapping[str, FieldSpec]
"""What each column of a field is."""


def with_ids(table: pa.Table, batch: Batch) -> pa.Table:
    """A batch's table of key, time and columns of fields, with those that say where each event
    stands."""
    import pyarrow as pa

    entries = batch.entries
    counts = [entry.count for entry in entries]
    indexes = [at for e in entries for at in range(e.id.index, e.id.index + e.count)]
    columns = {
        "shard": pa.repeat(pa.scalar(batch.shard, pa.int32()), len(table)),
        "entry_ms": _repeated([entry.id.ms for entry in entries], counts),
        "entry_seq": _repeated([entry.id.seq for entry in entries], counts),
        "index": pa.array(indexes, pa.int32()),
        "key": table.column("key"),
        "time": table.column("time"),
    }
    for name in table.column_names[2:]:
        columns[name] = table.column(name)
    return pa.table(columns)


def _repeated(values: list[int], counts: list[int]) -> pa.Array:
    import pyarrow as pa

    if len(values) == sum(counts):
        return pa.array(values, pa.uint64())
    return pa.concat_arrays(
        [pa.repeat(pa.scalar(v, pa.uint64()), n) for v, n in zip(values, counts, strict=True)]
    )


def specs_of(table: pa.Table) -> dict[str, FieldSpec]:
    """What the columns of a table's fields are: all but key, time and those of the IDs."""
    names = [name for name in table.column_names if name not in ID_COLUMNS]
    return {name: _spec(table.column(name)) for name in names}


def _spec(column: pa.ChunkedArray) -> FieldSpec:
    import pyarrow.compute as pc

    kind = kind_of(column.type)
    if kind != "int":
        return FieldSpec("null" if kind is None or kind == "huge" else kind)
    found = pc.min_max(column).as_py()
    low, high = found["min"] or 0, found["max"] or 0
    return FieldSpec("int", is_large=low < -EXACT_MAX or high > EXACT_MAX)


def merged(all_specs: Iterable[Specs]) -> dict[str, FieldSpec]:
    """The columns of several tables together: whole numbers and others are floats if that is exact,
    what else differs is text, or bytes."""
    found: dict[str, dict[FieldSpec, None]] = {}
    for specs in all_specs:
        for name, spec in specs.items():
            found.setdefault(name, {})[spec] = None
    return {name: unified(each) for name, each in found.items()}


def conform(table: pa.Table, specs: Specs) -> pa.Table:
    """A table with just these columns of fields, null where it has none.

    Raises:
        DecodeError: a value does not fit its column: an unsigned one beyond 64 bits signed.
    """
    import pyarrow as pa

    own = specs_of(table)
    columns = {name: table.column(name) for name in table.column_names if name in ID_COLUMNS}
    try:
        for name, wanted in specs.items():
            has = own.get(name)
            columns[name] = (
                pa.chunked_array([pa.nulls(len(table), spec_type(wanted))])
                if has is None or has.kind == "null"
                else as_type(table.column(name), has, wanted)
            )
    except pa.ArrowException as error:
        raise DecodeError(f"the events do not fit into one table: {error}") from None
    return pa.table(columns)


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other, whatever their columns.

    Raises:
        DecodeError: as :func:`conform`.
    """
    import pyarrow as pa

    if not tables:
        nothing = {"key": pa.array([], pa.string()), "time": pa.array([], pa.int64())}
        return pa.table(nothing)
    first = tables[0].schema
    if all(table.schema.equals(first) for table in tables):
        return pa.concat_tables(tables)
    specs = merged(map(specs_of, tables))
    return pa.concat_tables([conform(table, specs) for table in tables])
