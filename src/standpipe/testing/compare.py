"""The comparison of what was sent with what is stored, and its report. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

import msgspec

from standpipe.errors import LedgerUnsoundError
from standpipe.event import Event, EventId
from standpipe.limits import LEDGER_EXAMPLES_MAX, LEDGER_SENDER_EVENTS_MAX
from standpipe.testing.ledger import number_of
from standpipe.testing.log import STORED, STRENGTH, TWICE, Books, Outcome, digest

Fault = Literal[
    "lost", "phantoms", "resurrected", "altered", "duplicates", "out_of_order", "undecodable"
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

_FAILED: Final = STRENGTH[Outcome.FAILED]
_ACKNOWLEDGED: Final = STRENGTH[Outcome.ACKNOWLEDGED]
_OUTCOME_BITS: Final = 3


class Finding(msgspec.Struct, frozen=True):
    """One example of a fault."""

    number: int | None
    """The event's number in the ledger; None: it carries none."""
    key: str | None = None
    """The key that it is stored under; None also for what is not stored."""
    shard: int | None = None
    event_id: str | None = None
    """Where it is stored; None: nowhere."""

    def __str__(self) -> str:
        text = "without a number"
        if self.number is not None:
            sender, n = divmod(self.number, LEDGER_SENDER_EVENTS_MAX)
            text = f"number {self.number} (event {n} of sender {sender})"
        if self.event_id is not None:
            text += f", key {self.key!r}, at {self.event_id} of shard {self.shard}"
        return text


class Report(msgspec.Struct, frozen=True):
    """What the comparison found. ``str(report)`` is a table of it."""

    sent: int
    """Events whose intent is logged; acknowledged + failed + unknown."""
    acknowledged: int
    failed: int
    """Certainly not added, as their sender says."""
    unknown: int
    """Of which the log does not say whether they were added; they may be stored once, or not."""
    unknown_stored: int
    stored: int
    """Events in the stream, each copy counted."""
    lost: int
    """Acknowledged, and not stored."""
    phantoms: int
    """Stored, and not in the ledger."""
    resurrected: int
    """Stored, though their send had certainly failed."""
    altered: int
    """Stored with another content than was sent; each copy counted."""
    duplicates: int
    """Copies beyond the first of an event."""
    duplicated: int
    """Events that are stored more than once."""
    out_of_order: int
    """Events that stand behind a later one of their key and sender; first copies alone."""
    undecodable: int
    """Entries that no codec reads."""
    unchecked: int
    """Stored events whose content the log says nothing about."""
    cut_records: int
    """Lines of the logs that were left out because a kill had cut them short."""
    added_once: bool
    """Whether a duplicate is a fault."""
    ordered: bool
    """Whether a violation of the order is a fault."""
    examples: dict[Fault, tuple[Finding, ...]]
    """The first findings of each fault that there is; entries that no codec reads have none."""

    @property
    def unknown_missing(self) -> int:
        return self.unknown - self.unknown_stored

    @property
    def faults(self) -> dict[Fault, int]:
        """How many of each fault that counts; empty: there is none."""
        allowed = {"duplicates": not self.added_once, "out_of_order": not self.ordered}
        counts: dict[Fault, int] = {fault: getattr(self, fault) for fault in FAULTS}
        return {f: count for f, count in counts.items() if count and not allowed.get(f)}

    @property
    def is_sound(self) -> bool:
        """No fault was found, and something was acknowledged: a ledger without proves nothing."""
        return self.acknowledged > 0 and not self.faults

    def raise_unless_sound(self) -> Report:
        """Return the report itself if it is sound.

        Raises:
            LedgerUnsoundError: it is not; carries the report.
        """
        if not self.is_sound:
            raise LedgerUnsoundError(
                f"the ledger is not sound: {self._verdict}\n{self}", report=self
            )
        return self

    @property
    def _verdict(self) -> str:
        if self.is_sound:
            return "sound"
        if not self.faults:
            return "nothing was acknowledged, which proves nothing"
        return ", ".join(f"{count:,} {_spoken(f)}" for f, count in self.faults.items())

    def __str__(self) -> str:
        lines = [
            ("sent", self.sent, ""),
            ("acknowledged", self.acknowledged, ""),
            ("failed", self.failed, "certainly not added"),
            (
                "unknown",
                self.unknown,
                f"{self.unknown_stored:,} of them stored, {self.unknown_missing:,} not",
            ),
            ("stored", self.stored, "events in the stream"),
            ("lost", self.lost, "acknowledged, and not stored"),
            ("phantoms", self.phantoms, "stored, and never sent"),
            ("resurrected", self.resurrected, "stored, though the send had certainly failed"),
            ("altered", self.altered, "stored with other content than was sent"),
            (
                "duplicates",
                self.duplicates,
                f"copies of {self.duplicated:,} events" + _pardon(self.added_once),
            ),
            (
                "out of order",
                self.out_of_order,
                "behind a later one of their key" + _pardon(self.ordered),
            ),
            ("undecodable", self.undecodable, "entries that no codec reads"),
        ]
        if self.unchecked:
            lines.append(("unchecked", self.unchecked, "stored; the log has no digest of them"))
        if self.cut_records:
            lines.append(("cut records", self.cut_records, "lines of the log, left out"))
        text = [f"{name:<14}{count:>12,}   {note}".rstrip() for name, count, note in lines]
        for fault in self.faults:
            found = self.examples.get(fault, ())
            text += [f"  {_spoken(fault)}: {finding}" for finding in found]
            if found and len(found) < getattr(self, fault):
                text.append(f"  {_spoken(fault)}: and {getattr(self, fault) - len(found):,} more")
        return "\n".join([*text, self._verdict])


def _spoken(fault: Fault) -> str:
    return fault.replace("_", " ")


def _pardon(counts: bool) -> str:
    return "" if counts else " (allowed)"


class Comparison:
    """Compares stored events, seen in the order of the stream, with the books.

    Args:
        books: From :func:`read_logs`; used up by the comparison, which marks in it what it has met.
        added_once: Whether a duplicate is a fault.
        ordered: Whether a violation of the order per key and sender is a fault.
        examples_max: Findings kept of each fault.

    Cost: 9 bytes per event sent, and about 120 per distinct key.
    """

    def __init__(
        self,
        books: Books,
        *,
        added_once: bool = True,
        ordered: bool = True,
        examples_max: int = LEDGER_EXAMPLES_MAX,
    ) -> None:
        self.undecodable = 0
        """To be set by whoever reads the entries."""
        self._books = books
        self._added_once = added_once
        self._ordered = ordered
        self._examples_max = examples_max
        self._examples: dict[Fault, list[Finding]] = {}
        self._counts: dict[Fault, int] = dict.fromkeys(FAULTS, 0)
        self._stored = 0
        self._duplicated = 0
        self._unchecked = 0

    def see(self, shard: int, ids: Iterable[EventId], events: Iterable[Event]) -> None:
        """Take the next events of one shard."""
        for event_id, event in zip(ids, events, strict=True):
            self._stored += 1
            number = number_of(event)
            for fault in self._faults_of(number, event):
                self._note(fault, number, event.key, shard, event_id)

    def _faults_of(self, number: int | None, event: Event) -> list[Fault]:
        """What is wrong with one stored event, which is marked as met."""
        sent_by, n = divmod(-1 if number is None else number, LEDGER_SENDER_EVENTS_MAX)
        sender = self._books.senders.get(sent_by)
        if number is None or sender is None or n >= len(sender.states):
            return ["phantoms"]
        found: list[Fault] = []
        expected = sender.digests[n]
        if not expected:
            self._unchecked += 1
        elif digest(event) != expected:
            found.append("altered")
        state = sender.states[n]
        if state & STORED:
            # A copy stands behind later events by nature, so the order looks at the first alone.
            if not state & TWICE:
                sender.states[n] = state | TWICE
                self._duplicated += 1
            found.append("duplicates")
            return found
        sender.states[n] = state | STORED
        if state == _FAILED:
            found.append("resurrected")
        if n < sender.last.get(event.key, -1):
            found.append("out_of_order")
        else:
            sender.last[event.key] = n
        return found

    def report(self) -> Report:
        """What all of it comes to, once everything stored was seen."""
        acknowledged = failed = unknown = unknown_stored = 0
        for sent_by, sender in self._books.senders.items():
            for n, state in enumerate(sender.states):
                outcome = state & _OUTCOME_BITS
                if outcome == _ACKNOWLEDGED:
                    acknowledged += 1
                    if not state & STORED:
                        self._note("lost", sent_by * LEDGER_SENDER_EVENTS_MAX + n)
                elif outcome == _FAILED:
                    failed += 1
                else:
                    unknown += 1
                    unknown_stored += bool(state & STORED)
        self._counts["undecodable"] = self.undecodable
        return Report(
            sent=self._books.sent,
            acknowledged=acknowledged,
            failed=failed,
            unknown=unknown,
            unknown_stored=unknown_stored,
            stored=self._stored,
            duplicated=self._duplicated,
            unchecked=self._unchecked,
            cut_records=self._books.cut_records,
            added_once=self._added_once,
            ordered=self._ordered,
            examples={fault: tuple(found) for fault, found in self._examples.items()},
            **self._counts,
        )

    def _note(
        self,
        fault: Fault,
        number: int | None,
        key: str | None = None,
        shard: int | None = None,
        event_id: EventId | None = None,
    ) -> None:
        self._counts[fault] += 1
        found = self._examples.setdefault(fault, [])
        if len(found) < self._examples_max:
            found.append(Finding(number, key, shard, None if event_id is None else str(event_id)))
