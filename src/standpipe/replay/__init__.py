"""Replay: what a Reader reads, into a handler, a file or another stream.

    from standpipe import Reader, Stream, replay

    reader = Reader(stream, start="-2h", archive="archive", keys=["inverter-7"])
    done = await replay.to_file(reader, "inverter-7.parquet")

A group of its own is :func:`standpipe.groups.create_group` with a start.
"""

from __future__ import annotations

from standpipe.replay.files import FORMATS, guess_format, to_file, to_lines
from standpipe.replay.handlers import to_handler
from standpipe.replay.running import Progress, Replayed
from standpipe.replay.streams import to_stream

__all__ = [
    "FORMATS",
    "Progress",
    "Replayed",
    "guess_format",
    "to_file",
    "to_handler",
    "to_lines",
    "to_stream",
]
