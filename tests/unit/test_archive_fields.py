"""A column of a file loses nothing of the values of its field, whatever they are together."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from standpipe import Event
from standpipe.archive.fields import FieldSpec, unified
from standpipe.archive.file import Selection, build, read_info, read_rows
from standpipe.archive.gathering import Gathering
from standpipe.archive.names import BEGIN
from standpipe.codec import PlainLayout, block_fields, encode_rows
from standpipe.event import FieldValue
from standpipe.limits import ARCHIVE_COLUMNS_MAX

MISSING = object()
BIG = 2**53 + 1


def kept(values: list[object]) -> tuple[str, list[object], list[FieldValue]]:
    """A field with these values: its kind in the file, what comes back, and the column itself."""
    events = [Event("m", n, {} if v is MISSING else {"f": v}) for n, v in enumerate(values)]  # type: ignore[dict-item]
    gathering = Gathering("s", 0, PlainLayout(), after=BEGIN, generation=0)
    fields = block_fields("rows", len(events), encode_rows(events))
    (draft,) = gathering.add([(b"1-1", fields)]) + gathering.finish()
    _, content = build(draft)
    parquet = pq.ParquetFile(pa.BufferReader(content))
    info = read_info(parquet.schema_arrow, "test")
    (table,) = read_rows(parquet, info, Selection(BEGIN, None), info.fields)
    found = [event.fields.get("f", MISSING) for event in table.events()]
    spec = info.fields.get("f", FieldSpec("null"))
    column = table.table.column("f").to_pylist() if "f" in info.fields else []
    return spec.kind, found, column


@pytest.mark.parametrize(
    ("values", "kind", "column"),
    [
        ([1, 2, None, MISSING], "int", [1, 2, None, None]),
        ([None, None, 1], "int", [None, None, 1]),
        ([1.0, 2.5], "float", [1.0, 2.5]),
        ([1, 2.5, 3, 4.0], "number", [1.0, 2.5, 3.0, 4.0]),
        ([1, 2.0, 3.0, 4.0, MISSING], "number", [1.0, 2.0, 3.0, 4.0, None]),
        ([0, -0.0, 0.0], "number", [0.0, -0.0, 0.0]),
        ([1, -0.0], "number", [1.0, -0.0]),
        ([2**53, 0.5], "number", [2.0**53, 0.5]),
        ([1, 2.0**60, 0.5], "number", [1.0, 2.0**60, 0.5]),
        ([1, math.inf, -math.inf], "number", [1.0, math.inf, -math.inf]),
        ([BIG, 0.5], "text", [str(BIG), "0.5"]),
        ([BIG, 1], "int", [BIG, 1]),
        ([2**64 - 1, 1], "text", [str(2**64 - 1), "1"]),
        ([1, "1", 1.0, True, None], "text", ["1", "1", "1.0", "true", None]),
        ([True, False], "bool", [True, False]),
        ([True, 1], "text", ["true", "1"]),
        ([b"\xff", "a", 1, 2.5], "bytes", [b"\xff", b"a", b"1", b"2.5"]),
        ([None, None], "null", [None, None]),
        ([None, MISSING], "null", [None, None]),
        (["nan", math.inf], "text", ["nan", "inf"]),
        ([MISSING], "null", []),
    ],
)
def test_values_of_one_field(values: list[object], kind: str, column: list[FieldValue]) -> None:
    """The values come back with their types; the column is what the rule says."""
    found = kept(values)
    assert found[0] == kind
    assert list(map(repr, found[1])) == list(map(repr, values))
    assert list(map(repr, found[2])) == list(map(repr, column))


def test_the_same_rule_over_files() -> None:
    """What a column is over several files is what it would be in one."""
    small, large = FieldSpec("int"), FieldSpec("int", is_large=True)
    real, single, text = FieldSpec("float"), FieldSpec("float32"), FieldSpec("text")
    assert unified([small, large]).kind == "int"
    assert unified([small, real]).kind == "number"
    assert unified([small, single, FieldSpec("number")]).kind == "number"
    assert unified([large, real]).kind == "text"
    assert unified([single, real]).kind == "float"
    assert unified([FieldSpec("null"), single]).kind == "float32"
    assert unified([small, FieldSpec("bool")]).kind == "text"
    assert unified([text, FieldSpec("bytes")]).kind == "bytes"
    assert unified([FieldSpec("null")]).kind == "null"


def test_more_fields_than_a_file_has_columns() -> None:
    """Fields beyond the limit begin another file; an entry that has more by itself is kept raw."""
    half = ARCHIVE_COLUMNS_MAX // 2 + 1

    def rows(at: int, first: int, count: int) -> tuple[bytes, list[bytes]]:
        event = Event("m", 1, {f"f{n}": n for n in range(first, first + count)})
        return b"%d-0" % at, block_fields("rows", 1, encode_rows([event]))

    gathering = Gathering("s", 0, PlainLayout(), after=BEGIN, generation=0)
    entries = [rows(1, 0, half), rows(2, half, half), rows(3, 0, 2 * half), rows(4, 0, 1)]
    drafts = gathering.add(entries) + gathering.finish()
    infos = [build(draft)[0] for draft in drafts]
    assert [(info.entries, info.events, info.undecodable) for info in infos] == [
        (1, 1, 0),
        (3, 2, 1),
    ]
    assert [len(info.fields) for info in infos] == [half, half + 1]
    assert infos[1].after == "1-0"
