"""Events to columns that lose nothing, and columns back to the same events. Pure.

A column of a file has one type, a field need not: what a cell does not say stands in ``marks``, a
JSON object per row, mostly null. It names the fields of that row whose value was of another type
than an unmarked cell of its column (``"int"``, ``"float"``, ``"bool"``, ``"text"``, ``"bytes"``),
and says of a null whether the field was there as None (``"none"``) or not at all (``"missing"``),
where that is not what most nulls of the column are.

The type of a column in a file:

* one type alone: that type. 32-bit floats stay such until they meet others.
* ints and floats, if every int is exact as a float (within ±2**53): float64. Whole values then are
  ints, others floats, and the exceptions are marked; or the other way round, whichever has fewer.
* anything else: text, each value as a plain entry would hold it; bytes, where one of them is.
"""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false
from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from standpipe.codec.values import TO_TEXT
from standpipe.event import Event, FieldValue
from standpipe.limits import INTEGER_MAX, INTEGER_MIN

if TYPE_CHECKING:
    import pyarrow as pa

RESERVED: Final = (
    "stream", "date", "hour", "shard", "entry_ms", "entry_seq", "index", "key", "time", "marks",
    "raw",
)  # fmt: skip
"""Names of columns that are no fields; the first three come from the folders."""

# Whatever its case: SQL does not tell Key from key.
_TAKEN: Final = re.compile(rf"_*({'|'.join(RESERVED)})?", re.IGNORECASE)

EXACT_MAX: Final = 2**53
"""Up to here every int is exact as a float."""


def column_of(field: str) -> str:
    """The column of a field: its name, with an underscore more where that is reserved.

    ``key`` is in ``_key``, ``_key`` in ``__key``: no two fields share a column.
    """
    return f"_{field}" if _TAKEN.fullmatch(field) else field


def field_of(column: str) -> str:
    """The field of a column."""
    return column[1:] if _TAKEN.fullmatch(column) else column


# --- one part: some entries, as arrays -----------------------------------------------------------

Kind = Literal["int", "float", "float32", "text", "bool", "bytes", "huge"]
"""Types of values; ``huge`` is an int beyond 64 bits, which other writers can send, as text."""

_KIND_OF: Final[Mapping[type, Kind]] = {
    int: "int",
    float: "float",
    str: "text",
    bool: "bool",
    bytes: "bytes",
}
_fields_of: Final = attrgetter("fields")
_key_of: Final = attrgetter("key")
_time_of: Final = attrgetter("time")


class Cells:
    """One field over the rows of a part."""

    __slots__ = ("nones", "of")

    def __init__(self, of: dict[Kind, pa.Array], nones: pa.Array | None = None) -> None:
        self.of = of
        """Per type its values, null in the other rows."""
        self.nones = nones
        """Where it is there as None; None: nowhere."""

    @property
    def valid(self) -> int:
        """In how many rows it has a value."""
        return sum(len(array) - array.null_count for array in self.of.values())


class Part:
    """Some entries of a shard in a row, as columns."""

    __slots__ = ("cells", "entries", "keys", "raw", "rows", "times")

    def __init__(
        self,
        entries: list[tuple[int, int, int]],
        keys: pa.Array,
        times: pa.Array,
        cells: dict[str, Cells],
        raw: list[tuple[str, list[bytes]]] | None = None,
    ) -> None:
        self.entries = entries
        """Milliseconds and sequence number of each, and how many rows it has."""
        self.keys = keys
        self.times = times
        self.cells = cells
        self.raw = raw
        """Of entries that no codec reads, a row each: why, and name, value, name, value…"""
        self.rows = len(keys)

    @property
    def nbytes(self) -> int:
        arrays = chain.from_iterable(each.of.values() for each in self.cells.values())
        raw = sum(len(value) for _, fields in self.raw or () for value in fields)
        return self.keys.nbytes + self.times.nbytes + sum(a.nbytes for a in arrays) + raw


def part_of_events(entries: list[tuple[int, int, int]], events: Sequence[Event]) -> Part:
    """Events as columns.

    Cost: about 1 µs per event of five fields.
    """
    import pyarrow as pa

    rows = list(map(_fields_of, events))
    present = Counter(chain.from_iterable(rows))
    cells = {name: _cells(name, rows, count) for name, count in present.items()}
    return Part(
        entries,
        pa.array(list(map(_key_of, events)), pa.string()),
        pa.array(list(map(_time_of, events)), pa.int64()),
        cells,
    )


def _cells(name: str, rows: list[Mapping[str, FieldValue]], present: int) -> Cells:
    import pyarrow as pa

    if present == len(rows):
        values: list[FieldValue] = list(map(itemgetter(name), rows))
    else:
        values = [row.get(name) for row in rows]
    types = set(map(type, values)) - {type(None)}
    of: dict[Kind, pa.Array] = {}
    for kind in types:
        own = values if len(types) == 1 else [v if type(v) is kind else None for v in values]
        of |= typed_arrays(_KIND_OF[kind], own)
    cells = Cells(of)
    if cells.valid < present:
        cells.nones = pa.array(
            [value is None and name in row for value, row in zip(values, rows, strict=True)]
        )
    return cells


def typed_arrays(kind: Any, values: list[Any]) -> dict[Kind, pa.Array]:
    """Values of one type, None among them; ints beyond 64 bits stand apart from the others."""
    import pyarrow as pa

    types = arrow_types()
    if kind != "int":
        return {kind: pa.array(values, types[kind])}
    try:
        return {kind: pa.array(values, types[kind])}
    except (OverflowError, pa.ArrowInvalid):
        fits = [v is not None and INTEGER_MIN <= v <= INTEGER_MAX for v in values]
        small = [v if fit else None for v, fit in zip(values, fits, strict=True)]
        huge = [
            str(v) if v is not None and not fit else None
            for v, fit in zip(values, fits, strict=True)
        ]
        return {kind: pa.array(small, types[kind]), "huge": pa.array(huge, pa.string())}


def part_of_table(entries: list[tuple[int, int, int]], table: pa.Table) -> Part:
    """A table of events, as a columns block gives it, as columns of a file.

    Every event of such a block has every column, as None where it is null.
    """
    import pyarrow as pa

    cells: dict[str, Cells] = {}
    for name in table.column_names[2:]:
        array = _whole(table.column(name))
        nones = array.is_null() if array.null_count else None
        kind = kind_of(array.type)
        # A column that holds nothing has no type of its own.
        of: dict[Kind, pa.Array] = {}
        if array.null_count < len(array) and kind is not None:
            of = {kind: array.cast(arrow_types()[kind])}
        cells[name] = Cells(of, nones)
    keys = _whole(table.column("key")).cast(pa.string())
    return Part(entries, keys, _whole(table.column("time")), cells)


def part_of_raw(entries: list[tuple[int, int, int]], raw: list[tuple[str, list[bytes]]]) -> Part:
    """Entries that no codec reads, a row each."""
    import pyarrow as pa

    return Part(entries, pa.nulls(len(raw), pa.string()), pa.nulls(len(raw), pa.int64()), {}, raw)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def kind_of(type_: pa.DataType) -> Kind | None:
    """The kind of a column's values; None: it holds nothing."""
    import pyarrow as pa

    types = pa.types
    if types.is_null(type_):
        return None
    if types.is_integer(type_):
        return "int"
    if types.is_boolean(type_):
        return "bool"
    if types.is_floating(type_):
        return "float" if type_ == pa.float64() else "float32"
    return "bytes" if type_ == pa.binary() else "text"


def arrow_types() -> dict[Kind, pa.DataType]:
    """The type of the arrays of each kind."""
    import pyarrow as pa

    return {
        "int": pa.int64(),
        "float": pa.float64(),
        "float32": pa.float32(),
        "text": pa.string(),
        "bool": pa.bool_(),
        "bytes": pa.binary(),
        "huge": pa.string(),
    }


# --- many parts: the columns of a file -----------------------------------------------------------


class FieldSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file says of a field's column."""

    kind: Literal["int", "float", "float32", "number", "text", "bool", "bytes", "null"]
    """``number``: ints and floats, as float64. ``null``: only None; it has no column then."""
    whole: Literal["int", "float"] = "float"
    """Of ``number``: what an unmarked whole value is."""
    is_large: bool = False
    """Of ``int``: some are beyond ±2**53."""
    nulls: Literal["missing", "none"] = "missing"
    """What an unmarked null is: a field that is not there, or one that is None."""


def merge_fields(
    parts: Sequence[Part],
) -> tuple[dict[str, FieldSpec], dict[str, list[pa.Array]], list[pa.Array]]:
    """The columns of a file out of its parts.

    Returns:
        What each field's column is; its arrays, one per part; and the marks, one array per part.
    """
    names = dict.fromkeys(chain.from_iterable(part.cells for part in parts))
    specs: dict[str, FieldSpec] = {}
    columns: dict[str, list[pa.Array]] = {}
    marks: list[list[tuple[str, str, pa.Array]]] = [[] for _ in parts]
    for name in names:
        cells = [part.cells.get(name) for part in parts]
        nulls = _mark_nulls(name, cells, parts, marks)
        spec, arrays = _merged(name, cells, parts, marks)
        specs[name] = msgspec.structs.replace(spec, nulls=nulls)
        if arrays is not None:
            columns[name] = arrays
    texts = [_mark_texts(part, found) for part, found in zip(parts, marks, strict=True)]
    return specs, columns, texts


def _mark_nulls(
    name: str,
    cells: list[Cells | None],
    parts: Sequence[Part],
    marks: list[list[tuple[str, str, pa.Array]]],
) -> Literal["missing", "none"]:
    """Mark the fewer of the nulls of a field; what the others are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    nones = missing = 0
    for cell, part in zip(cells, parts, strict=True):
        own = 0 if cell is None or cell.nones is None else pc.sum(cell.nones).as_py() or 0
        nones += own
        missing += part.rows - own - (0 if cell is None else cell.valid)
    if nones <= missing:
        for found, cell in zip(marks, cells, strict=True):
            if cell is not None and cell.nones is not None:
                found.append((name, "none", cell.nones))
        return "missing"
    if missing:
        for found, cell, part in zip(marks, cells, parts, strict=True):
            if cell is None:
                found.append((name, "missing", pa.repeat(pa.scalar(True), part.rows)))
            else:
                there = [array.is_valid() for array in cell.of.values()]
                there += [] if cell.nones is None else [cell.nones]
                mask = pc.invert(functools.reduce(pc.or_, there))
                found.append((name, "missing", mask))
    return "none"


def _merged(
    name: str,
    cells: list[Cells | None],
    parts: Sequence[Part],
    marks: list[list[tuple[str, str, pa.Array]]],
) -> tuple[FieldSpec, list[pa.Array] | None]:
    import pyarrow as pa

    types = arrow_types()
    kinds: set[Any] = set(chain.from_iterable(cell.of for cell in cells if cell is not None))
    if not kinds:
        return FieldSpec("null"), None
    if kinds <= {"float", "float32"} and len(kinds) == 2:
        return FieldSpec("float"), [
            _coalesced([array.cast(pa.float64()) for array in cell.of.values()])
            if cell is not None and cell.of
            else pa.nulls(part.rows, pa.float64())
            for cell, part in zip(cells, parts, strict=True)
        ]
    if len(kinds) == 1 and "huge" not in kinds:
        (kind,) = kinds
        arrays = [
            cell.of[kind] if cell is not None and cell.of else pa.nulls(part.rows, types[kind])
            for cell, part in zip(cells, parts, strict=True)
        ]
        is_large = kind == "int" and not all(map(_is_exact, arrays))
        return FieldSpec(kind, is_large=is_large), arrays
    if kinds <= {"int", "float", "float32"} and all(
        _is_exact(cell.of["int"]) for cell in cells if cell is not None and "int" in cell.of
    ):
        return _numbers(name, cells, parts, marks)
    return _texts(name, cells, parts, marks, is_bytes="bytes" in kinds)


def _coalesced(arrays: Sequence[pa.Array]) -> pa.Array:
    import pyarrow.compute as pc

    return arrays[0] if len(arrays) == 1 else pc.coalesce(*arrays)


def _is_exact(ints: pa.Array) -> bool:
    import pyarrow.compute as pc

    found = pc.min_max(ints).as_py()
    low, high = found["min"], found["max"]
    return low is None or (low >= -EXACT_MAX and high <= EXACT_MAX)


def _numbers(
    name: str,
    cells: list[Cells | None],
    parts: Sequence[Part],
    marks: list[list[tuple[str, str, pa.Array]]],
) -> tuple[FieldSpec, list[pa.Array]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays: list[pa.Array] = []
    ints: list[pa.Array | None] = []
    whole_floats: list[pa.Array | None] = []
    for cell, part in zip(cells, parts, strict=True):
        of = {} if cell is None else cell.of
        floats = [of[kind].cast(pa.float64()) for kind in ("float", "float32") if kind in of]
        own_floats = _coalesced(floats) if floats else None
        own_ints = of.get("int")
        both = [a for a in (own_floats, own_ints and own_ints.cast(pa.float64())) if a is not None]
        arrays.append(_coalesced(both) if both else pa.nulls(part.rows, pa.float64()))
        ints.append(None if own_ints is None else own_ints.is_valid())
        whole_floats.append(None if own_floats is None else is_whole(own_floats))
    count = {
        "int": sum(pc.sum(mask).as_py() or 0 for mask in ints if mask is not None),
        "float": sum(pc.sum(mask).as_py() or 0 for mask in whole_floats if mask is not None),
    }
    whole = "int" if count["int"] >= count["float"] else "float"
    exceptions, mark = (whole_floats, "float") if whole == "int" else (ints, "int")
    for found, mask in zip(marks, exceptions, strict=True):
        if mask is not None and pc.any(mask).as_py():
            found.append((name, mark, mask))
    return FieldSpec("number", whole=whole), arrays


def is_whole(floats: pa.Array) -> pa.Array:
    """Which of them could be ints: false for null and for -0.0, which no int is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.and_(
        pc.equal(pc.floor(floats), floats), pc.less_equal(pc.abs(floats), float(EXACT_MAX))
    )
    # The sign of a zero shows in what 1 divided by it is.
    negative_zero = pc.and_(pc.equal(floats, 0.0), pc.less(pc.divide(pa.scalar(1.0), floats), 0.0))
    return pc.and_(found, pc.invert(negative_zero)).fill_null(False)


def _texts(
    name: str,
    cells: list[Cells | None],
    parts: Sequence[Part],
    marks: list[list[tuple[str, str, pa.Array]]],
    *,
    is_bytes: bool,
) -> tuple[FieldSpec, list[pa.Array]]:
    import pyarrow as pa

    type_ = pa.binary() if is_bytes else pa.string()
    unmarked = "bytes" if is_bytes else "text"
    arrays: list[pa.Array] = []
    for cell, part, found in zip(cells, parts, marks, strict=True):
        own: list[pa.Array] = []
        for kind, array in ({} if cell is None else cell.of).items():
            if kind in ("text", "bytes", "huge"):
                own.append(array.cast(type_))
            else:
                texts = [None if value is None else text_of(value) for value in array.to_pylist()]
                own.append(pa.array(texts, type_))
            if kind != unmarked:
                mark = {"huge": "int", "float32": "float"}.get(kind, kind)
                found.append((name, mark, array.is_valid()))
        arrays.append(_coalesced(own) if own else pa.nulls(part.rows, type_))
    return FieldSpec(unmarked), arrays


def text_of(value: FieldValue) -> bytes:
    """A value as a plain entry would hold it; what is no number reads back as well."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value).encode()
    return TO_TEXT[type(value)](value)


def _mark_texts(part: Part, masks: list[tuple[str, str, pa.Array]]) -> pa.Array:
    """The marks of each row as JSON; null where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if part.raw is not None:
        return pa.array([json.dumps({"": why}, ensure_ascii=False) for why, _ in part.raw])
    if not masks:
        return pa.nulls(part.rows, pa.string())
    # Few combinations stand in many rows: each is written out once.
    bits = [pc.if_else(mask, "1", "0") for _, _, mask in masks]
    codes = pc.binary_join_element_wise(*bits, "").dictionary_encode()
    texts: list[str | None] = []
    for code in codes.dictionary.to_pylist():
        found = {n: m for (n, m, _), bit in zip(masks, code, strict=True) if bit == "1"}
        texts.append(json.dumps(found, ensure_ascii=False) if found else None)
    return pa.array(texts, pa.string()).take(codes.indices)


# --- back to events ------------------------------------------------------------------------------

_FROM_MARK: Final[Mapping[str, Callable[[Any], FieldValue]]] = {
    "int": int,
    "float": float,
    "bool": lambda value: value in ("true", b"true"),
    "text": lambda value: value.decode() if isinstance(value, bytes) else value,
    "bytes": lambda value: value,
    "none": lambda _: None,
}


def value_of(mark: str, value: Any) -> FieldValue:
    """What a marked cell stands for."""
    return _FROM_MARK[mark](value)


def exact_values(array: pa.Array | pa.ChunkedArray, spec: FieldSpec) -> list[FieldValue]:
    """The values of a column as they were, but for those that are marked; None where it is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values: list[Any] = array.to_pylist()
    if spec.kind == "number" and spec.whole == "int":
        whole = is_whole(array)
        if pc.any(whole).as_py():
            ints = pc.if_else(whole, array, pa.scalar(None, array.type)).cast(pa.int64())
            pairs = zip(values, ints.to_pylist(), strict=True)
            values = [value if whole is None else whole for value, whole in pairs]
    return values


def events_of(
    keys: list[str | None],
    times: list[int],
    columns: Mapping[str, list[FieldValue]],
    marks: Sequence[str | None],
    specs: Mapping[str, FieldSpec],
) -> list[Event]:
    """Events out of the values of their columns.

    Args:
        keys, times: One per event.
        columns: Field → its values, None where it is null.
        marks: One per event.
        specs: Of the fields that are wanted: those of the columns, and those that are only ever
            None and so have no column.
    """
    # A null of the one kind is a None, of the other no field.
    leave_out = {
        name
        for name, values in columns.items()
        if specs[name].nulls == "missing" and None in values
    }
    nothing: list[FieldValue] = [None] * len(keys)
    always_none = [n for n, s in specs.items() if s.kind == "null" and s.nulls == "none"]
    columns = {**columns, **dict.fromkeys(always_none, nothing)}
    names = tuple(columns)
    rows: Iterable[dict[str, FieldValue]]
    if not names:
        rows = [{} for _ in keys]
    elif leave_out:
        rows = [
            {n: v for n, v in zip(names, row, strict=True) if v is not None or n not in leave_out}
            for row in zip(*columns.values(), strict=True)
        ]
    else:
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    events = list(map(Event, keys, times, rows))
    parsed: dict[str, dict[str, str]] = {}
    for event, text in zip(events, marks, strict=True):
        if text is None:
            continue
        if text not in parsed:
            parsed[text] = json.loads(text)
        row: Any = event.fields
        for name, mark in parsed[text].items():
            if mark == "missing":
                row.pop(name, None)
            elif name in specs:
                row[name] = value_of(mark, row.get(name))
    return events


def unified(specs: Iterable[FieldSpec]) -> FieldSpec:
    """The type of a column over several files, by the rule that each of them goes by."""
    found = set(specs)
    kinds: set[Any] = {spec.kind for spec in found} - {"null"}
    if not kinds:
        return FieldSpec("null")
    if len(kinds) == 1:
        (kind,) = kinds
        return FieldSpec(kind, is_large=any(spec.is_large for spec in found))
    if kinds == {"float", "float32"}:
        return FieldSpec("float")
    if kinds <= {"int", "float", "float32", "number"} and not any(s.is_large for s in found):
        return FieldSpec("number")
    return FieldSpec("bytes" if "bytes" in kinds else "text")


def spec_type(spec: FieldSpec) -> pa.DataType:
    """The Arrow type of a column."""
    import pyarrow as pa

    if spec.kind == "null":
        return pa.null()
    return pa.float64() if spec.kind == "number" else arrow_types()[spec.kind]


def as_type(
    array: pa.ChunkedArray,
    own: FieldSpec,
    wanted: FieldSpec,
    *,
    name: str = "",
    marks: pa.ChunkedArray | None = None,
) -> pa.ChunkedArray:
    """A column of a field as the column of several files or tables.

    Of a file's column ``marks`` say what its cells cannot about the field ``name``.
    """
    import pyarrow as pa

    type_ = spec_type(wanted)
    if array.type == type_:
        return array
    if wanted.kind in ("text", "bytes") and own.kind in ("int", "float", "float32", "number"):
        values = exact_values(array, own)
        if own.kind == "number" and marks is not None:
            for at, text in enumerate(marks.to_pylist()):
                mark = None if text is None else json.loads(text).get(name)
                if mark in ("int", "float"):
                    values[at] = value_of(mark, values[at])
        texts = [None if value is None else text_of(value) for value in values]
        return pa.chunked_array([pa.array(texts, type_)])
    # Through text: there is no way from a bool straight to bytes.
    return array.cast(pa.string()).cast(type_) if own.kind == "bool" else array.cast(type_)
