"""Retention: what the limits of a stream let go, without passing over a group or the archive.

janitor.py keeps one stream within its limits, janitors.py all streams of a server;
``lua/retain.lua`` finds out what may go and lets it go, in one atomic step.
"""

from standpipe.retention.janitor import Janitor, JanitorStats, ShardLook, janitor_of, keep, look
from standpipe.retention.janitors import Janitors, find_streams

__all__ = [
    "Janitor",
    "JanitorStats",
    "Janitors",
    "ShardLook",
    "find_streams",
    "janitor_of",
    "keep",
    "look",
]
