"""Plain events as the append script takes them: RESP arguments, packed many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, Final, cast

from standpipe.codec import PlainLayout, encode_plain
from standpipe.codec.values import ENCODING_FAILED, TO_TEXT, name_culprit, to_json
from standpipe.event import Event, FieldValue
from standpipe.wire import pack

_NUMBERS: Final = frozenset({float, int, bool})
_values_of: Final = dict[str, FieldValue].values


class _Heads(dict[int, bytes]):
    """How RESP begins an argument of so many bytes."""

    def __missing__(self, size: int) -> bytes:
        return b"$%d\r\n" % size


_heads: Final = _Heads({size: b"$%d\r\n" % size for size in range(64)})


def plain_part(events: Sequence[Event], layout: PlainLayout) -> tuple[bytes, int]:
    """The arguments of the append script for some events, and how many there are.

    Of each event in turn: how many arguments follow for it, then what
    :func:`~standpipe.codec.encode_plain` makes of it. Events with the same names that follow each
    other are laid out together, in loops that run in C.

    Raises:
        FieldError: as encode_plain.
    """
    if len(events) == 1:
        return _one_by_one(events, layout)
    rows = [cast("dict[str, FieldValue]", event.fields) for event in events]
    values = list(chain.from_iterable(map(_values_of, rows)))
    keys = [event.key for event in events]
    if None in keys or None in values:
        # What is nothing is left out, so that each is laid out by itself.
        return _one_by_one(events, layout)
    try:
        key_pieces = _pieces(list(map(str.encode, cast("list[str]", keys))))
        time_pieces = _pieces(_numbers([event.time for event in events]))
        if set(map(type, values)) <= _NUMBERS:
            value_pieces = _pieces(_numbers(values))
        else:
            value_pieces = _pieces([TO_TEXT[type(value)](value) for value in values])
    except ENCODING_FAILED as error:
        name_culprit(events, error)
    found: list[bytes] = []
    arguments = start = at = 0
    for names, run in groupby(map(tuple, rows)):
        if layout.key_field in names or layout.time_field in names:
            return _one_by_one(events, layout)  # Which refuses it.
        count, width = len(list(run)), len(names)
        stop, end = start + count, at + count * width
        between = [
            _resp(b"%d" % (2 * width + 4), layout.key_bytes),
            b"\r\n" + _resp(layout.time_bytes),
        ]
        between += [b"\r\n" + _resp(name.encode()) for name in names]
        # Of each argument that varies its head and itself, behind what comes before it.
        one = [piece for constant in between for piece in (constant, b"", b"")]
        one.append(b"\r\n")
        flat, step = one * count, len(one)
        for place in (1, 2):
            flat[place::step] = key_pieces[place - 1][start:stop]
            flat[place + 3 :: step] = time_pieces[place - 1][start:stop]
            for column in range(width):
                flat[place + 6 + 3 * column :: step] = value_pieces[place - 1][
                    at + column : end : width
                ]
        found += flat
        arguments += count * (2 * width + 5)
        start, at = stop, end
    return b"".join(found), arguments


def _pieces(arguments: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    return list(map(_heads.__getitem__, map(len, arguments))), arguments


def _numbers(values: list[Any]) -> list[bytes]:
    """Numbers and bools as text, all at once."""
    return to_json(values)[1:-1].split(b",") if values else []


def _one_by_one(events: Sequence[Event], layout: PlainLayout) -> tuple[bytes, int]:
    arguments: list[bytes] = []
    for event in events:
        fields = encode_plain(event, layout)
        arguments += (b"%d" % len(fields), *fields)
    return _resp(*arguments), len(arguments)


def _resp(*arguments: bytes) -> bytes:
    """RESP of some arguments without the command's header, to be joined into a longer command."""
    packed = pack(*arguments)
    return packed[packed.index(b"\n") + 1 :]
