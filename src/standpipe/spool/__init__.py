"""Spool: a producer's blocks on local disk, in order, while the server cannot take them.

Each block keeps the producer id and the number under which it may have been sent already, so that
draining adds it once. The spool gives out neither: a producer that starts takes a new id and counts
from 1, as without a spool. An id that outlived its process would have to be kept together with the
last number that was given out; and a file that went back to an earlier state (a backup, a cloned
machine) would give numbers out twice, whose second blocks the server would take for ones that it
has and drop.

block.py is what is stored, file.py the SQLite file and its errors, reader.py what can be asked of
it, store.py the spool.
"""

from standpipe.spool.block import (
    AsideBlock,
    SeriesSummary,
    SpooledBlock,
    SpoolFinding,
    SpoolSummary,
)
from standpipe.spool.reader import SpoolReader
from standpipe.spool.store import Spool

__all__ = [
    "AsideBlock",
    "SeriesSummary",
    "Spool",
    "SpoolFinding",
    "SpoolReader",
    "SpoolSummary",
    "SpooledBlock",
]
