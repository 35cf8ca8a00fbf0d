"""The archive: every shard's events in Parquet files, in a folder or behind any fsspec URL.

names.py says what files are called and which of them count, fields.py turns events into columns
and back, file.py is one file, place.py where files are kept, and reading.py reads them.
gathering.py makes drafts of files out of entries, history.py finds where the archive of a shard
goes on, lease.py sees to it that one process does, and archiver.py does it; merging.py puts small
files together. verifying.py looks for what is wrong, and watching.py says how far it is.
"""

from __future__ import annotations

from standpipe.archive.archiver import Archiver, ArchiverStats
from standpipe.archive.fields import column_of, field_of
from standpipe.archive.file import ArchivedTable, FileInfo, Undecodable
from standpipe.archive.names import ArchiveFile
from standpipe.archive.reading import Archive, Bound
from standpipe.archive.verifying import Finding, Verified, verify
from standpipe.archive.watching import ArchivedShard, detach, status

__all__ = [
    "Archive",
    "ArchiveFile",
    "ArchivedShard",
    "ArchivedTable",
    "Archiver",
    "ArchiverStats",
    "Bound",
    "FileInfo",
    "Finding",
    "Undecodable",
    "Verified",
    "column_of",
    "detach",
    "field_of",
    "status",
    "verify",
]
