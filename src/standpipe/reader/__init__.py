"""Reading without a group: tail and replay, across the archive and the live stream.

points.py says what a point is, kept.py what a shard still has and what was missed, source.py reads
one shard through the archive and the live stream, merging.py puts the shards in order, following.py
goes on with what arrives, pace.py gives events out in their time, selecting.py and tables.py make
of them what is asked for. reader.py is the Reader.
"""

from __future__ import annotations

from standpipe.reader.kept import Gap
from standpipe.reader.points import Point, id_before, parse_point
from standpipe.reader.reader import Reader

__all__ = ["Gap", "Point", "Reader", "id_before", "parse_point"]
