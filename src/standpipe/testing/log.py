"""The log of sends on disk: one JSON array per line, appended and never changed.

    ["ledger", 1, 46977221]                  format, and the sender: a number of 26 bits
    ["intent", 3152587935186944, 2, "mw…"]   first number, how many, their digests or null
    ["acknowledged", 3152587935186944, 1]    likewise "failed" and "unknown"; a reason may follow

Numbers are ``sender * 2**26 + n``, n from 0 without gaps: below 2**53, so that every language's
numbers hold them. A line is written by one write and no buffer of ours, so it outlives a SIGKILL;
one that the kill cut short is no JSON, and is left out.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from standpipe.codec.values import sniff
from standpipe.errors import LedgerDamagedError, LedgerUnusableError
from standpipe.event import Event, FieldValue
from standpipe.limits import INTEGER_MAX, INTEGER_MIN, LEDGER_SENDER_EVENTS_MAX, LEDGER_SENDERS_MAX

NUMBER_FIELD: Final = "ledger_number"
"""The field that carries an event's number."""

FORMAT: Final = 1


class Outcome(enum.StrEnum):
    """What is known of a send. The later of these outweighs the earlier for the same event."""

    FAILED = "failed"
    """It was certainly not added, and is not going to be."""
    UNKNOWN = "unknown"
    """It may have been added; also the outcome of a send of which only the intent is logged."""
    ACKNOWLEDGED = "acknowledged"


# --- what an event says --------------------------------------------------------------------------

_pack: Final = msgspec.msgpack.Encoder(order="sorted").encode


def digest(event: Event) -> int:
    """64 bits that stand for an event's key, time and fields, whatever codec carried it.

    What plain entries and columns do not tell apart is one value here: 3, 3.0 and the text ``3``,
    and a field that is None and one that is missing.

    Returns:
        BLAKE2b (8 bytes, little-endian) of the MessagePack array ``[key, time, fields]``, names
        sorted, without None; never 0.
    """
    fields = {n: _settled(value) for n, value in event.fields.items() if value is not None}
    packed = _pack((event.key, event.time, fields))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") or 1


def _settled(value: FieldValue) -> FieldValue:
    """The value as a plain entry would give it back, whole numbers as int."""
    if isinstance(value, (str, bytes)):
        value = sniff(value.encode() if isinstance(value, str) else value)
    if isinstance(value, float) and value.is_integer() and INTEGER_MIN <= value <= INTEGER_MAX:
        return int(value)
    return value


# --- writing -------------------------------------------------------------------------------------


class AppendOnlyFile:
    """A file to whose end whole records are written, each at once and past any buffer of ours.

    Args:
        path: Created if it is not there, readable by its owner alone.

    Raises:
        LedgerUnusableError: it cannot be opened or written; after that it is closed.

    Delivery:
        What :meth:`write` has returned from is with the kernel: it outlives a SIGKILL of this
        process, not a power cut.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path)
        try:
            self._file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        except OSError as error:
            raise LedgerUnusableError(f"{self.path} cannot be written: {error.strerror}") from error

    @property
    def is_empty(self) -> bool:
        return os.fstat(self._file).st_size == 0

    def write(self, record: bytes) -> None:
        """Append a record, or several that may be cut between two by a kill."""
        try:
            while record:
                # Everything at once but on a full disk or a signal.
                record = record[os.write(self._file, record) :]
        except OSError as error:
            # Nothing may follow what could be half a record.
            self.close()
            raise LedgerUnusableError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


# --- reading -------------------------------------------------------------------------------------

STRENGTH: Final = {outcome: place for place, outcome in enumerate(Outcome, start=1)}
STORED: Final = 4
TWICE: Final = 8
"""Marks beside the outcome's strength in an event's state."""


class Sender:
    """All events of one sender, 9 bytes each."""

    __slots__ = ("digests", "last", "states")

    def __init__(self) -> None:
        self.digests = array("Q")
        """0 where the log gives none."""
        self.states = bytearray()
        """The strongest outcome's strength (0: none yet), and the marks of the comparison."""
        self.last: dict[str | None, int] = {}
        """By key: the highest number met in the stream, for the comparison."""


class Books:
    """What logs say about all sends. Filled by :meth:`read`."""

    def __init__(self) -> None:
        self.senders: dict[int, Sender] = {}
        self.cut_records = 0
        """Lines that are no JSON: a kill cut them short."""

    @property
    def sent(self) -> int:
        return sum(len(sender.states) for sender in self.senders.values())

    def read(self, path: str | os.PathLike[str]) -> None:
        """Add what a log says.

        Raises:
            LedgerUnusableError: it cannot be read.
            LedgerDamagedError: a line is JSON but no record, or contradicts those before it.
        """
        decode = msgspec.json.Decoder().decode
        try:
            with Path(path).open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.isspace():
                        continue
                    try:
                        record = decode(line)
                    except msgspec.DecodeError:
                        self.cut_records += 1
                        continue
                    try:
                        self._add(record)
                    except (ValueError, KeyError) as error:
                        raise LedgerDamagedError(
                            f"line {number} of {path} is no record of a ledger: {error}"
                        ) from error
        except OSError as error:
            raise LedgerUnusableError(f"{path} cannot be read: {error.strerror}") from error

    def _add(self, record: Any) -> None:
        match record:
            case ["intent", int(first), int(count), (str() | None) as digests]:
                self._intend(first, count, digests)
            case [str(kind), int(first), int(count), *_] if kind in STRENGTH:
                self._settle(first, count, STRENGTH[Outcome(kind)])
            case ["ledger", 1, int(sender)] if 0 <= sender < LEDGER_SENDERS_MAX:
                if sender in self.senders:
                    raise ValueError(f"sender {sender} begins a second time")
                self.senders[sender] = Sender()
            case ["ledger", int(number), *_] if number > FORMAT:
                raise ValueError("it was written by a newer version")
            case _:
                raise ValueError(f"it says {str(record)[:80]}")

    def _intend(self, first: int, count: int, digests: str | None) -> None:
        sender, n = self._find(first)
        # A gap would be a lost line: what was sent then would look as if nobody had.
        if n != len(sender.states) or not 1 <= count <= LEDGER_SENDER_EVENTS_MAX - n:
            raise ValueError(f"the sender's next number is its {len(sender.states)}th, not {n}th")
        raw = bytes(8 * count) if digests is None else base64.b64decode(digests, validate=True)
        if len(raw) != 8 * count:
            raise ValueError(f"{len(raw)} bytes of digests for {count} events")
        sender.digests.frombytes(raw)
        sender.states.extend(bytes(count))

    def _settle(self, first: int, count: int, strength: int) -> None:
        sender, n = self._find(first)
        if not 1 <= count <= len(sender.states) - n:
            raise ValueError("an outcome without an intent before it")
        states = sender.states
        for place in range(n, n + count):
            if states[place] < strength:
                states[place] = strength

    def _find(self, number: int) -> tuple[Sender, int]:
        sender, n = divmod(number, LEDGER_SENDER_EVENTS_MAX)
        if sender not in self.senders:
            raise ValueError(f"no sender {sender} stands before it")
        return self.senders[sender], n


def read_logs(*paths: str | os.PathLike[str]) -> Books:
    """What some logs say together.

    Raises:
        LedgerUnusableError, LedgerDamagedError: as :meth:`Books.read`.

    Cost: 9 bytes of memory per event.
    """
    books = Books()
    for path in paths:
        books.read(path)
    return books


def intent_record(first: int, events: Iterable[Event]) -> bytes:
    """The line that says that these events, numbered from ``first``, are about to be sent."""
    digests = array("Q", map(digest, events))
    packed = base64.b64encode(digests.tobytes()).decode()
    return msgspec.json.encode(["intent", first, len(digests), packed]) + b"\n"
