"""From events to the rows of a sink: names, kinds, and what does not fit; and the sinks' URLs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe import Event
from standpipe.errors import ConfigError, SinkRefusedError
from standpipe.limits import SINK_COLUMNS_MAX
from standpipe.sinks import open_sink
from standpipe.sinks.rows import ID_COLUMNS, Kind, Rows, Rules, column_name, rows_of
from tests.servers.places import MS, Block, batch_of

ANY = Rules(name_bytes_max=None, is_case_blind=False, takes_nul=True, takes_nan=True)
STRICT = Rules(name_bytes_max=63, is_case_blind=True, takes_nul=False, takes_nan=False)


def rows(*values: dict[str, Any], rules: Rules = ANY, **known: Kind) -> Rows:
    events = [Event("m", MS, fields) for fields in values]
    return rows_of(batch_of(events), "s", ID_COLUMNS | known, rules)


def kind_of(*values: Any, **known: Kind) -> Kind:
    found = rows(*({"x": value} for value in values), **known)
    return found.kinds[found.names.index("x")]


@given(st.sets(st.text(alphabet="field_timeTIMEkey", min_size=1), max_size=30))
def test_columns_of_fields_never_meet(names: set[str]) -> None:
    """Different fields have different columns, and none has one of an ID's."""
    columns = {column_name(name) for name in names}
    assert len(columns) == len(names)
    assert not {column.lower() for column in columns} & set(ID_COLUMNS)


def test_columns_have_the_names_of_their_fields() -> None:
    """A field's column is called as the field is, but where an ID's column has that name."""
    assert column_name("volts") == "volts"
    assert column_name("time") == "field_time"
    assert column_name("Time") == "field_Time"
    assert column_name("field_time") == "field_field_time"
    assert column_name("field_7") == "field_7"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], Kind.INT),
        ([1.0], Kind.FLOAT),
        ([1, 1.5], Kind.FLOAT),
        (["a"], Kind.TEXT),
        ([True], Kind.BOOL),
        ([b"a"], Kind.BYTES),
    ],
)
def test_the_first_values_decide_the_kind(values: list[Any], kind: Kind) -> None:
    """A new column takes the kind of its values; whole and other numbers together are numbers."""
    found = rows(*({"x": value} for value in values))
    assert found.new == {"x": kind}
    assert not found.widened


def test_a_field_without_values_makes_no_column() -> None:
    """None says that there is no reading: it makes no column, and fits every one."""
    assert rows({"x": None}).new == {}
    assert "x" not in rows({"x": None}, x=Kind.INT).names


def test_whole_numbers_are_widened_and_numbers_are_not_narrowed() -> None:
    """A column of whole numbers that meets another becomes one of numbers, and stays it."""
    assert rows({"x": 1.5}, x=Kind.INT).widened == ["x"]
    assert kind_of(1.5, x=Kind.INT) is Kind.FLOAT
    assert rows({"x": 1}, x=Kind.FLOAT).widened == []
    assert kind_of(1, x=Kind.FLOAT) is Kind.FLOAT


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", Kind.INT),
        (1, Kind.TEXT),
        (True, Kind.INT),
        (1, Kind.BOOL),
        (b"a", Kind.TEXT),
        ("a", Kind.BYTES),
        (2**53 + 1, Kind.FLOAT),
        (2**63, Kind.INT),
        (-(2**63) - 1, Kind.INT),
        ([1], Kind.TEXT),
    ],
)
def test_what_does_not_fit_is_refused_by_name(value: Any, kind: Kind) -> None:
    """A value that its column would change or cannot hold is refused, and the field named."""
    with pytest.raises(SinkRefusedError, match="'x'"):
        rows({"x": value}, x=kind)


def test_a_new_column_has_one_kind() -> None:
    """Text and numbers under one new name are refused together; each alone makes the column."""
    with pytest.raises(SinkRefusedError, match="both text and whole numbers"):
        rows({"x": 1}, {"x": "a"})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"x" * 64: 1}, "64 bytes"),
        ({"µ" * 32: 1}, "64 bytes"),
        ({"Volts": 1}, "upper and lower"),
        ({"a": 1, "A": 1}, "upper and lower"),
        ({"x": "a\0b"}, "U\\+0000"),
        ({"a\0b": 1}, "U\\+0000"),
        ({"x": float("nan")}, "not a number"),
    ],
)
def test_what_a_database_cannot_hold_is_refused(fields: dict[str, Any], why: str) -> None:
    """What one database would cut, fold or drop is refused for it, and taken by the others."""
    with pytest.raises(SinkRefusedError, match=why):
        rows(fields, rules=STRICT, volts=Kind.INT)
    if "\0" not in "".join(fields):
        assert rows(fields, volts=Kind.INT).names[len(ID_COLUMNS) :] == list(fields)


def test_names_without_end_are_refused() -> None:
    """A table does not grow beyond what databases take."""
    known = {f"f{n}": Kind.INT for n in range(SINK_COLUMNS_MAX - len(ID_COLUMNS))}
    assert rows({"f0": 1}, **known)
    with pytest.raises(SinkRefusedError, match="columns"):
        rows({"one_more": 1}, **known)


def test_ids_and_times_out_of_range_are_refused() -> None:
    """An entry ID beyond 63 bits and a time beyond the year 9999 fit no column."""
    event = Event("m", MS, {"x": 1})
    for batch in (
        batch_of([event], ms=2**63),
        batch_of([Event("m", 10**15, {"x": 1})]),
        batch_of([Event("m\0", MS, {"x": 1})]),
    ):
        with pytest.raises(SinkRefusedError):
            rows_of(batch, "s", ID_COLUMNS, STRICT)


def test_every_row_says_which_event_it_is() -> None:
    """Stream, shard, entry and index stand in each row, also in those of a part of an entry."""
    events = [Event("m", MS + n, {"n": n}) for n in range(6)]
    batch, _ = batch_of(events[:3], events[3:], shard=4).part(2, 5)
    found = rows_of(batch, "north/s", ID_COLUMNS, ANY)
    by_name = dict(zip(found.names, found.columns, strict=True))
    assert by_name["n"] == [2, 3, 4]
    assert by_name["entry_index"] == [2, 0, 1]
    assert by_name["entry_ms"] == [MS, MS + 1, MS + 1]
    assert by_name["shard"] == [4] * 3
    assert by_name["stream"] == ["north/s"] * 3


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("sqlite:a/b.db", "table 'readings' of a/b.db"),
        ("sqlite:///a/b.db?table=t", "table 't' of /a/b.db"),
        ("parquet:a/b", "folder a/b"),
        ("postgres://u:secret@h:5433/d?table=m.r&sslmode=require", "table 'm.r' of 'd' on h"),
        ("postgresql:///d?host=/run/pg", "table 'readings' of 'd' on /run/pg"),
    ],
)
def test_urls(url: str, what: str) -> None:
    """A URL says which sink; what is printed of it has no password."""
    assert str(open_sink(url)) == what


@pytest.mark.parametrize(
    "url",
    [
        "",
        "readings.db",
        "mysql://h/d",
        "sqlite:",
        "parquet:?source=x",
        "sqlite:a?tables=t",
        "sqlite:a?table=",
        "parquet:a?table=t",
        "postgres://h/d?no_such_parameter=1",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """What is no sink's URL, or has an option that is not known, is an error and not a guess."""
    with pytest.raises(ConfigError):
        open_sink(url)


def test_a_block_without_events_is_no_row() -> None:
    """An empty batch has no rows and needs no column."""
    from standpipe import Batch

    found = rows_of(Batch([Block([], MS)], stream="s"), "s", ID_COLUMNS, ANY)
    assert [len(column) for column in found.columns] == [0] * len(ID_COLUMNS)
