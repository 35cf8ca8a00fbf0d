"""The check of a stream against ledgers, and sending that keeps one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import Final

from standpipe.errors import ConfigError, StandpipeError, StreamNotFoundError
from standpipe.event import Event
from standpipe.limits import LEDGER_EXAMPLES_MAX, PART_EVENTS_MAX
from standpipe.producer import Producer, Receipts
from standpipe.reader import Point, Reader
from standpipe.stream import Stream
from standpipe.testing.compare import Comparison, Report
from standpipe.testing.ledger import Ledger, outcome_of, reason_of
from standpipe.testing.log import read_logs


async def check(
    stream: Stream,
    *ledgers: Ledger | str | os.PathLike[str],
    added_once: bool = True,
    ordered: bool = True,
    start: Point = "-",
    end: Point | None = None,
    examples_max: int = LEDGER_EXAMPLES_MAX,
) -> Report:
    """Drain a stream and compare it with what ledgers say was sent to it.

    Args:
        stream: The stream, of any codec and number of shards; opened if it is not. Everything in it
            (between the two points) is to come from these ledgers, and nothing to be trimmed.
        ledgers: The ledgers, or the paths of their logs: all that sent to the stream. They have
            stopped sending.
        added_once: Whether a duplicate is a fault.
        ordered: Whether it is a fault that an event stands behind a later one of its key.
        start: Where to begin, as a Reader takes it.
        end: Where to stop, likewise.
        examples_max: Findings kept of each fault.

    Returns:
        The report. A stream that does not exist holds nothing, so all that was acknowledged is
        lost.

    Raises:
        ConfigError: no ledger was given.
        LedgerUnusableError, LedgerDamagedError: a log cannot be read, or is none.
        ServerError: the stream cannot be read.

    Cost: 9 bytes of memory per event sent, about 120 per distinct key, and a page of
    256 entries per shard, one of them decoded; 3 to 12 µs of CPU per event, by codec; one XRANGE
    per page.
    """
    if not ledgers:
        raise ConfigError("no ledger was given", hint="Give the Ledger, or the path of its log.")
    comparison = Comparison(
        read_logs(*dict.fromkeys(map(_log_of, ledgers))),
        added_once=added_once,
        ordered=ordered,
        examples_max=examples_max,
    )
    reader = Reader(stream, start=start, end=end)
    try:
        async with aclosing(reader.batches()) as batches:
            async for batch in batches:
                comparison.see(batch.shard, batch.ids, batch.events)
    except StreamNotFoundError:
        pass  # A server that forgot everything is a finding, not a failure of the check.
    comparison.undecodable = reader.undecodable
    return comparison.report()


def _log_of(ledger: Ledger | str | os.PathLike[str]) -> Path:
    """The log's path, in the one form that tells whether two are the same."""
    return Path(ledger.path if isinstance(ledger, Ledger) else ledger).resolve()


async def send_and_record(
    producer: Producer,
    ledger: Ledger,
    events: Iterable[Event],
    *,
    together: int = PART_EVENTS_MAX,
) -> None:
    """Send a ledger's events with a producer and record what its receipts say of each.

    Args:
        producer: A producer that is started.
        ledger: Where the outcomes go.
        events: From ``ledger.events()`` or ``stamp_many()``.
        together: Events per call of ``send_many``.

    An event that is refused or fails does not end it: that is an outcome, and recorded.

    Delivery: if the process dies, what is not recorded yet counts as unknown.
    """
    if together < 1:
        raise ConfigError(f"together is {together}", hint="It is at least 1.")
    on_the_way: Final = deque[tuple[Sequence[Event], Receipts]]()
    remaining = iter(events)
    while chunk := list(islice(remaining, together)):
        try:
            on_the_way.append((chunk, await producer.send_many(chunk)))
        except StandpipeError as error:
            ledger.record(chunk, outcome_of(error), reason=reason_of(error))
        while on_the_way and on_the_way[0][1].is_done:
            await _settle(ledger, *on_the_way.popleft())
    while on_the_way:
        await _settle(ledger, *on_the_way.popleft())


async def _settle(ledger: Ledger, events: Sequence[Event], receipts: Receipts) -> None:
    by_error: dict[StandpipeError | None, list[Event]] = {}
    for event, error in zip(events, await receipts.errors(), strict=True):
        by_error.setdefault(error, []).append(event)
    for error, those in by_error.items():
        reason = "" if error is None else reason_of(error)
        ledger.record(those, outcome_of(error), reason=reason)
