"""Dicts with the same names straight to rows: column by column, with no Event in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, cast

import msgspec

from standpipe.codec.rows import Row
from standpipe.event import Event, are_plain_columns, are_plain_names
from standpipe.limits import DICT_SHAPES_MAX


class _Shape(NamedTuple):
    """How dicts with the same names stand in rows."""

    columns: tuple[Callable[[dict[str, Any]], Any], ...]
    """Take the key, the time and each field out of a dict."""
    fields: Callable[..., Any]
    """Makes what is encoded as an event's fields out of their values."""


def rows_from_dicts(
    dicts: Sequence[dict[str, Any]], *, key_field: str, time_field: str
) -> list[Event] | None:
    """What :func:`encode_rows` and :func:`rows_part` take in the place of Events, checked as
    events_from_dicts does.

    Args:
        dicts: At least one.
        key_field: The name that holds the key.
        time_field: The name that holds the time.

    Returns:
        None where their names differ, or one of them needs a closer look.
    """
    shape = _shape_of(tuple(dicts[0]), key_field, time_field)
    if shape is None or set(map(len, dicts)) != {len(shape.columns)}:
        return None
    try:
        # As many names, and each of these: so they are the same.
        keys, times, *columns = (list(map(take, dicts)) for take in shape.columns)
    except KeyError:
        return None
    if not are_plain_columns(keys, times, columns):
        return None
    return cast("list[Event]", [*map(Row, keys, times, map(shape.fields, *columns))])


@lru_cache(DICT_SHAPES_MAX)
def _shape_of(names: tuple[str, ...], key_field: str, time_field: str) -> _Shape | None:
    fields = [name for name in names if name not in (key_field, time_field)]
    if len(fields) != len(names) - 2 or not fields or not are_plain_names(fields):
        return None
    attributes = {f"f{place}": name for place, name in enumerate(fields)}
    sent = msgspec.defstruct(
        "Fields", [(attribute, Any) for attribute in attributes], rename=attributes, gc=False
    )
    return _Shape(tuple(map(itemgetter, (key_field, time_field, *fields))), sent)
