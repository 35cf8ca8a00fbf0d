"""Reading without a group: tail and replay, across the archive and the live stream.

points.py says what a point is, kept.py what a shard still has and what was missed, source.py reads
one shard through the archive and the live stream, merging.py puts the shards in order, following.py
goes on with what arrives, pace.py gives events out in their time, selecting.py and tables.py make
of them what is asked for. reader.py is the Reader.
"""

from __future__ import annotations

from standpipe.reader.kept import Gap, Kept
from standpipe.reader.points import SEQ_MAX, Point, id_before, parse_point, shown_point
from standpipe.reader.reader import Reader
from standpipe.reader.source import read_kept

__all__ = [
    "SEQ_MAX",
    "Gap",
    "Kept",
    "Point",
    "Reader",
    "id_before",
    "parse_point",
    "read_kept",
    "shown_point",
]
