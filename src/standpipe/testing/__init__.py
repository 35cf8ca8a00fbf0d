"""A ledger of sends: whether a stream holds what a producer says it has sent. For tests.

Whatever producer is under test sends uniquely numbered events; an external log keeps what happened
to each; then the stream is drained and compared with it. The producer may be ours, another client
or another language.

    ledger = Ledger("sends.log")
    await send_and_record(producer, ledger, ledger.events(10_000))
    (await check(stream, ledger)).raise_unless_sound()

log.py is the log on disk, ledger.py writes it, compare.py compares (pure), and checking.py drains
streams and drives producers. docs/testing.md shows all of it at work.
"""

from __future__ import annotations

from standpipe.testing.checking import check, send_and_record
from standpipe.testing.compare import Comparison, Finding, Report
from standpipe.testing.ledger import Ledger, outcome_of
from standpipe.testing.log import (
    NUMBER_FIELD,
    AppendOnlyFile,
    Books,
    Outcome,
    digest,
    read_logs,
)

__all__ = [
    "NUMBER_FIELD",
    "AppendOnlyFile",
    "Books",
    "Comparison",
    "Finding",
    "Ledger",
    "Outcome",
    "Report",
    "check",
    "digest",
    "outcome_of",
    "read_logs",
    "send_and_record",
]
