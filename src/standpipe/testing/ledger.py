"""Ledger: numbers events, and writes down which were to be sent and what became of each."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import msgspec

from standpipe.clock import now_ms
from standpipe.errors import (
    ConfigError,
    FieldError,
    LedgerUnusableError,
    NotAcknowledgedError,
    NotDurableError,
    ReplyTimeoutError,
    SpooledError,
    StandpipeError,
    UnknownOutcomeError,
)
from standpipe.event import Event, FieldValue
from standpipe.limits import LEDGER_INTENT_EVENTS, LEDGER_SENDER_EVENTS_MAX, LEDGER_SENDERS_MAX
from standpipe.testing.log import FORMAT, NUMBER_FIELD, AppendOnlyFile, Outcome, intent_record

_MAY_BE_THERE: Final = (
    UnknownOutcomeError,
    SpooledError,
    NotDurableError,
    NotAcknowledgedError,
    ReplyTimeoutError,
)
"""Errors of this package after which an event may be in the stream, or come to it yet."""


def outcome_of(error: BaseException | None) -> Outcome:
    """What an error says about the send that raised it.

    None is an acknowledgement. A producer of this package says when an event may be there in spite
    of the error (UnknownOutcomeError, SpooledError, NotDurableError…); after its other errors it is
    not. After errors of others, cancellation among them, it may be there.
    """
    if error is None:
        return Outcome.ACKNOWLEDGED
    is_sure = isinstance(error, StandpipeError) and not isinstance(error, _MAY_BE_THERE)
    return Outcome.FAILED if is_sure else Outcome.UNKNOWN


class Ledger:
    """A log of sends, and the numbers of the events that it is about.

    Args:
        path: The log; created if it is not there, else appended to. Each Ledger counts its events
            under a sender number of its own, so one stream and one log may see many of them.
            Give every process a log of its own.

    Raises:
        LedgerUnusableError: the log cannot be written; or, from any method, it was opened by the
            process from which this one was forked.

    Delivery:
        A record is written before the call returns and outlives a SIGKILL. An event of which only
        the intent is there counts as unknown.

    Cost: one write per call of a method, and per 1000 events of :meth:`events`; the log takes about
    11 bytes per event, and 40 per outcome record. Methods may be called from any thread.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.sender: Final = random.SystemRandom().randrange(LEDGER_SENDERS_MAX)
        self._next = self.sender * LEDGER_SENDER_EVENTS_MAX
        self._end = self._next + LEDGER_SENDER_EVENTS_MAX
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._file = AppendOnlyFile(path)
        header = msgspec.json.encode(["ledger", FORMAT, self.sender]) + b"\n"
        # The last line may have been cut by a kill; this one must not become part of it.
        self._file.write(header if self._file.is_empty else b"\n" + header)

    @property
    def path(self) -> Path:
        return self._file.path

    # --- before sending --------------------------------------------------------------------------

    def events(
        self,
        count: int,
        *,
        keys: int | Sequence[str] = 10,
        fields: Callable[[int], Mapping[str, FieldValue]] | None = None,
    ) -> Iterator[Event]:
        """Numbered events to send, in this order; their intent is logged 1000 at a time.

        Args:
            count: How many, at least 1.
            keys: Their keys in turn, or how many to make up.
            fields: From an event's place (0, 1, …) to its fields. Default: ``value``, a float that
                needs all its digits.
        """
        names = [f"device-{n}" for n in range(keys)] if isinstance(keys, int) else list(keys)
        if count < 1 or not names:
            raise ConfigError(
                f"{count} events of {len(names)} keys were asked", hint="Ask for at least 1."
            )
        fields_of = fields or _fields_of
        made = (Event(names[n % len(names)], now_ms(), fields_of(n)) for n in range(count))
        return self._stamped(made)

    def _stamped(self, events: Iterator[Event]) -> Iterator[Event]:
        while chunk := list(islice(events, LEDGER_INTENT_EVENTS)):
            yield from self.stamp_many(chunk)

    def stamp(self, event: Event) -> Event:
        """The event with a number of its own, its intent logged. See :meth:`stamp_many`."""
        return self.stamp_many([event])[0]

    def stamp_many(self, events: Iterable[Event]) -> list[Event]:
        """The events, each with a number of its own in ``ledger_number``, and their intent logged.

        Send them in this order if the order is to be checked. An event that failed is sent again
        under the same number only if its outcome is recorded anew; better, stamp it again.
        """
        self._require_own_process()
        with self._lock:
            first = self._next
            numbered = [
                Event(event.key, event.time, {**event.fields, NUMBER_FIELD: number})
                for number, event in enumerate(events, start=first)
            ]
            if first + len(numbered) > self._end:
                raise ConfigError(
                    f"a ledger numbers {LEDGER_SENDER_EVENTS_MAX} events at most",
                    hint="Open another Ledger on the same log.",
                )
            if numbered:
                self._file.write(intent_record(first, numbered))
                self._next += len(numbered)
        return numbered

    # --- after sending ---------------------------------------------------------------------------

    def record(
        self,
        events: Event | Iterable[Event],
        outcome: Outcome | Literal["acknowledged", "failed", "unknown"],
        *,
        reason: str = "",
    ) -> None:
        """Write down what became of events that this or another Ledger has numbered.

        Args:
            events: One or many.
            outcome: ``failed`` only if it is certain that they were not and will not be added.
            reason: For whoever reads the log.

        Raises:
            FieldError: an event carries no number; nothing was recorded.
        """
        self._require_own_process()
        kind = Outcome(outcome)
        runs: list[list[int]] = []
        for event in [events] if isinstance(events, Event) else events:
            number = number_of(event)
            if number is None:
                raise FieldError(
                    f"event of {event.key!r} carries no number of a ledger",
                    field=NUMBER_FIELD,
                    hint="Send what Ledger.events() or stamp() returned.",
                )
            if runs and number == sum(runs[-1]):
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
        tail = [reason] if reason else []
        self._file.write(b"".join(msgspec.json.encode([kind, *r, *tail]) + b"\n" for r in runs))

    @contextmanager
    def sending(self, events: Event | Sequence[Event]) -> Generator[None]:
        """Record the outcome of a block that sends: left in order, they are acknowledged.

        An error goes on to the caller; what it says is decided by :func:`outcome_of`.
        """
        try:
            yield
        except BaseException as error:
            self.record(events, outcome_of(error), reason=reason_of(error))
            raise
        self.record(events, Outcome.ACKNOWLEDGED)

    # --- its end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; everything is in it already."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            # Both processes would give out the same numbers.
            raise LedgerUnusableError(
                f"the ledger on {self.path} was opened by process {self._pid}, not by this one",
                hint="Open a Ledger after the fork, on a log of its own.",
            )


def number_of(event: Event) -> int | None:
    """The number that an event carries; None: it carries none."""
    value = event.fields.get(NUMBER_FIELD)
    if isinstance(value, float) and value.is_integer():
        # A language without integers wrote it.
        return int(value)
    return value if type(value) is int else None


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _fields_of(n: int) -> Mapping[str, FieldValue]:
    # Multiples of the golden ratio: all different, and none of them has a short decimal.
    return {"value": n * 0.6180339887498949 % 1 * 400 + 0.1}
