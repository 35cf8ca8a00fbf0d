"""msgspec Structs straight to and from rows: no dict, and no Event, in between.

It takes Structs whose fields are numbers, text or bools, or may be None. Whatever else there is,
an enum, a constraint on the key, a value that has to be looked at closely, goes the long way over
Events, which also says what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast

import msgspec

from standpipe.codec.payload import unpack
from standpipe.codec.rows import Row, RowsEntry, announced
from standpipe.errors import DecodeError
from standpipe.event import Event, Milliseconds, are_plain_columns
from standpipe.limits import FIELDS_PER_EVENT_MAX

_SIMPLE: Final = (
    msgspec.inspect.FloatType,
    msgspec.inspect.IntType,
    msgspec.inspect.StrType,
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
)


class StructRows(NamedTuple):
    """How the instances of a Struct type stand in rows."""

    make: Callable[..., Any]
    """The type itself."""
    attributes: tuple[str, ...]
    """Its attributes, in the order in which it takes them."""
    names: tuple[str, ...]
    """What they are called in the stream."""
    fields: Callable[..., Any]
    """Makes what is encoded as an event's fields out of their values."""
    decode: Callable[[bytes], list[Any]]
    """An array as objects with key, time and fields, whose attributes are the type's."""

    @classmethod
    def of(cls, kind: Any) -> StructRows | None:
        """Those of a type; None: its instances go the long way."""
        return _rows_of(kind) if inspect.isclass(kind) else None

    def events(self, structs: Sequence[Any]) -> list[Event] | None:
        """What :func:`encode_rows` and :func:`rows_part` take in the place of Events, checked as
        check_events does; None: one of them needs a closer look."""
        columns = {
            name: list(map(attrgetter(attribute), structs))
            for attribute, name in zip(self.attributes, self.names, strict=True)
        }
        keys = columns.pop("key", None) or [None] * len(structs)
        times = columns.pop("time", None)
        if times is None or not are_plain_columns(keys, times, columns.values()):
            return None
        return cast("list[Event]", [*map(Row, keys, times, map(self.fields, *columns.values()))])

    def read(self, entry: RowsEntry) -> list[Any] | None:
        """A block's events as Structs; None: they have to be looked at one by one.

        Fields that the type does not have are passed over and not looked at.
        """
        try:
            payload = unpack(entry.payload)
            if announced(payload) != entry.count:
                return None
            rows = self.decode(payload)
        except (DecodeError, ValueError, RecursionError):
            return None
        fields = [row.fields for row in rows]
        columns = [
            map(attrgetter(name), rows)
            if name in ("key", "time")
            else map(attrgetter(attribute), fields)
            for attribute, name in zip(self.attributes, self.names, strict=True)
        ]
        return list(map(self.make, *columns))


@cache
def _rows_of(kind: type) -> StructRows | None:
    if not issubclass(kind, msgspec.Struct) or hasattr(kind, "__post_init__"):
        return None
    try:
        info = msgspec.inspect.type_info(kind)
        given = msgspec.structs.fields(kind)
    except (TypeError, NameError):
        return None
    config = kind.__struct_config__
    if config.array_like or config.tag is not None or config.omit_defaults:
        return None
    if not all(map(_is_simple, cast(Any, info).fields)) or not _takes_positions(kind):
        return None
    hints = {field.encode_name: field.type for field in given}
    if hints.get("key", str) not in (str, str | None) or hints.get("time", int) is not int:
        return None
    others = [field for field in given if field.encode_name not in ("key", "time")]
    if not 0 < len(others) <= FIELDS_PER_EVENT_MAX or "" in hints:
        return None
    renamed = {field.name: field.encode_name for field in others}
    sent = msgspec.defstruct("Fields", [(f.name, Any) for f in others], rename=renamed, gc=False)
    read = msgspec.defstruct(
        "Fields",
        [(f.name, f.type, _default(f)) for f in others],
        rename=renamed,
        forbid_unknown_fields=config.forbid_unknown_fields,
        kw_only=True,
        gc=False,
    )
    row = msgspec.defstruct(
        "Row",
        [("key", hints.get("key", str | None)), ("time", Milliseconds), ("fields", read)],
        array_like=True,
        gc=False,
    )
    return StructRows(
        kind,
        tuple(field.name for field in given),
        tuple(field.encode_name for field in given),
        sent,
        msgspec.msgpack.Decoder(list[row]).decode,
    )


def _is_simple(field: Any) -> bool:
    return all(isinstance(part, _SIMPLE) for part in getattr(field.type, "types", (field.type,)))


def _takes_positions(kind: type) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(kind).parameters.values()}
    return kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.field() if field.default is msgspec.NODEFAULT else field.default
