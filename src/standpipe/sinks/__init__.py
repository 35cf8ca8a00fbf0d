"""Sinks: handlers that keep events exactly once, in PostgreSQL, SQLite or Parquet files.

A sink commits the events together with the fact of having them, in one transaction, and only then
does the worker acknowledge. What is delivered again after a crash is found there and left alone.
"""

from __future__ import annotations

from standpipe.sinks.sink import Sink
from standpipe.sinks.url import open_sink

__all__ = ["Sink", "open_sink"]
