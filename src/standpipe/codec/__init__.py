"""Events to entry fields and back, in three layouts: plain, rows and columns. Pure: no server here.

An entry is a flat list of bytes, name, value, name, value…, as Redis hands it over. An entry whose
fields are exactly ``c``, ``n`` and ``d`` is a block: codec, number of events, payload. Every other
entry is one plain event. docs/wire-format.md describes all three for other languages.

Encoding takes events that :func:`standpipe.event.check_events` has let pass and tables that
:func:`check_table` has let pass. Decoding takes whatever stands in the stream, whoever wrote it:
the header is checked at once, the content when it is asked for, and what is wrong with either is a
DecodeError.

values.py turns one value into text and back, plain.py, rows.py and columns.py are the layouts,
payload.py is what both blocks share, dicts.py and structs.py are short ways to rows, and table.py
is what a table of events is.
"""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from typing import Final

from standpipe.codec.columns import ColumnsEntry, encode_columns
from standpipe.codec.dicts import rows_from_dicts
from standpipe.codec.plain import PlainEntry, PlainLayout, encode_plain
from standpipe.codec.rows import (
    RowsEntry,
    encode_rows,
    read_event,
    row_part,
    rows_part,
    rows_payload,
)
from standpipe.codec.structs import StructRows
from standpipe.codec.table import check_table, events_to_table
from standpipe.errors import CodecError, DecodeError
from standpipe.event import Entry
from standpipe.limits import DECODED_EVENTS_MAX

__all__ = [
    "CODECS",
    "MARKS",
    "ColumnsEntry",
    "PlainEntry",
    "PlainLayout",
    "RowsEntry",
    "StructRows",
    "block_fields",
    "check_codec",
    "check_table",
    "decode_entry",
    "encode_columns",
    "encode_plain",
    "encode_rows",
    "events_to_table",
    "read_event",
    "row_part",
    "rows_from_dicts",
    "rows_part",
    "rows_payload",
]

CODECS: Final = ("plain", "rows", "columns")
"""The layouts by the name that ``codec=`` takes."""

MARKS: Final = {"plain": "", "rows": "rows1", "columns": "arrow1"}
"""What stands in a block's field ``c``. A plain entry has none."""

_BLOCKS: Final = {b"rows1": RowsEntry, b"arrow1": ColumnsEntry}
_BLOCK_NAMES: Final = frozenset({b"c", b"n", b"d"})


def check_codec(name: str) -> str:
    """Return the name if it names a codec.

    Raises:
        CodecError: it does not; the hint names the nearest one.
    """
    if name in CODECS:
        return name
    from difflib import get_close_matches

    near = get_close_matches(str(name).lower(), CODECS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise CodecError(f"codec is {name!r}", hint=f"{hint}{CodecError.default_hint}")


def block_fields(codec: str, count: int, payload: bytes) -> list[bytes]:
    """The fields of a block's entry: ``c``, its mark; ``n``, its events; ``d``, the payload.

    Raises:
        CodecError: the codec writes no blocks, or there is no event in it.
    """
    mark = MARKS.get(codec)
    if not mark:
        raise CodecError(f"codec {codec!r} writes no blocks", hint="Blocks are rows or columns.")
    if count < 1:
        raise CodecError(f"the block has {count} events", hint="Send at least one event.")
    return [b"c", mark.encode(), b"n", b"%d" % count, b"d", payload]


def decode_entry(entry_id: bytes, fields: list[bytes], layout: PlainLayout) -> Entry:
    """What an entry of the stream is: one plain event, or a block of them.

    Args:
        entry_id: As Redis writes it, ``1700000000000-0``.
        fields: Name, value, name, value…, as Redis hands them over.
        layout: How the stream's plain entries are laid out.

    Returns:
        A PlainEntry (its ``typed_by`` says what gave each field its type) or a block. The content
        is decoded when ``events()`` or ``table()`` is called, which may raise DecodeError too.

    Raises:
        DecodeError: it has the fields of a block and is none that this version reads; not
            retryable.
    """
    if len(fields) != 6 or fields[0] not in _BLOCK_NAMES or not _BLOCK_NAMES.issubset(fields[::2]):
        return PlainEntry(entry_id, fields, layout)
    header = dict(zip(fields[::2], fields[1::2], strict=True))
    mark, number = header[b"c"], header[b"n"]
    block = _BLOCKS.get(mark)
    if block is None:
        raise DecodeError(
            f"the entry has the fields c, n and d of a block, but c is {mark[:40]!r}",
            hint="Was it written by a newer version of Standpipe? If it is meant to be plain, give "
            "its fields other names.",
        )
    # Longer digits would be above the limit anyway, and slow to read.
    if not number.isdigit() or len(number) > 20 or not 1 <= int(number) <= DECODED_EVENTS_MAX:
        raise DecodeError(
            f"n is {number[:40]!r}, not a number of events",
            hint=f"A block announces 1 to {DECODED_EVENTS_MAX} events.",
        )
    return block(entry_id, fields, int(number), header[b"d"])
