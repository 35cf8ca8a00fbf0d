"""Readings in files or on standard input, turned into events: NDJSON, CSV, Parquet, line protocol.

Everything is read in chunks of bounded size, so that a file of any length, or a pipe that never
ends, takes the same memory. A bad line becomes a :class:`~standpipe.errors.LineError` in its chunk,
with its number, the reason and its text, and the other lines go through. docs/sending-files.md
describes the formats to users.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path, PurePath
from typing import BinaryIO, Final

from standpipe.errors import ConfigError
from standpipe.formats.delimited import CsvParser
from standpipe.formats.lineprotocol import LineProtocolParser
from standpipe.formats.lines import compression_of, read_pieces
from standpipe.formats.ndjson import NdjsonParser, to_ndjson
from standpipe.formats.reading import Chunk, ReadOptions, Rejects

__all__ = [
    "FORMATS",
    "Chunk",
    "ReadOptions",
    "Rejects",
    "guess_format",
    "read_events",
    "rejects_format",
    "to_ndjson",
]

FORMATS: Final = ("ndjson", "csv", "parquet", "line")

_SUFFIXES: Final = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".line": "line",
    ".lp": "line",
    ".influx": "line",
}
_CHOICE: Final = f"Name the format with --format: {', '.join(FORMATS)}."


def guess_format(path: str) -> str:
    """The format that a file name's suffix stands for, as in ``day.csv`` or ``day.csv.gz``.

    Args:
        path: The file's path; ``-`` is standard input.

    Raises:
        ConfigError: the suffix stands for none; the hint names the option.
    """
    name = PurePath(path)
    if path == "-":
        raise ConfigError("standard input has no suffix that names its format", hint=_CHOICE)
    if compression_of(name):
        name = name.with_suffix("")
    suffix = name.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix == ".json":
        raise ConfigError(
            f"{path} may be one JSON document or one per line",
            hint="With an object per line pass --format ndjson; an array becomes lines by: "
            "jq -c '.[]' FILE | standpipe send --format ndjson -",
        )
    raise ConfigError(f"the name {path!r} does not say the file's format", hint=_CHOICE)


def rejects_format(format: str) -> str:
    """The format in which the rejects of an input are written and can be sent again."""
    return "ndjson" if format == "parquet" else format


def read_events(
    source: BinaryIO | Path, format: str, options: ReadOptions | None = None
) -> Generator[Chunk]:
    """Read an input to its end, chunk by chunk; the last chunk may be empty.

    From a pipe, a chunk holds the lines that have come so far, so that nothing waits for more.

    Args:
        source: A path (``.gz`` and ``.zst`` are unpacked), or an open binary stream, which is left
            open; Parquet needs one that can seek.
        format: One of ``FORMATS``.
        options: How to read it; default: ``ReadOptions()``.

    Raises:
        ConfigError: the format is unknown; and, while iterating, the file cannot be opened, is not
            of that format, or its columns do not fit the options. Not retryable.
        InputError: while iterating: reading failed on the way; the chunks before are good.

    Cost:
        2 to 6 µs per event of three fields. Text takes some 10 MB of memory whatever the input's
        size; Parquet and compressed files take the 50 MB of pyarrow besides.
    """
    options = options or ReadOptions()
    if format == "parquet":
        from standpipe.formats.parquet import read_parquet

        return read_parquet(source, options)
    return _read_lines(source, _parser(format, options))


def _parser(format: str, options: ReadOptions) -> NdjsonParser | CsvParser | LineProtocolParser:
    if format == "ndjson":
        return NdjsonParser(options)
    if format == "csv":
        return CsvParser(options)
    if format == "line":
        return LineProtocolParser(options)
    raise ConfigError(f"format is {format!r}", hint=_CHOICE)


def _read_lines(
    source: BinaryIO | Path, parser: NdjsonParser | CsvParser | LineProtocolParser
) -> Generator[Chunk]:
    for piece in read_pieces(source):
        chunk = parser.parse(piece)
        chunk.lines, chunk.bytes = piece.end - 1, piece.position
        yield chunk
