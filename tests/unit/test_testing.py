"""The ledger of sends: every way in which a stream can differ from it is found, and counted apart.

Nothing here has a server: what a stream would hold is given as a list of events.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standpipe.codec import (
    PlainLayout,
    block_fields,
    decode_entry,
    encode_columns,
    encode_plain,
    encode_rows,
    events_to_table,
)
from standpipe.errors import (
    BackpressureError,
    ConfigError,
    EventTooLargeError,
    FieldError,
    LedgerDamagedError,
    LedgerUnsoundError,
    LedgerUnusableError,
    NotAcknowledgedError,
    NotDurableError,
    ProducerClosedError,
    ReplyTimeoutError,
    ServerFullError,
    SpooledError,
    UnknownOutcomeError,
)
from standpipe.event import Event, EventId
from standpipe.testing import (
    NUMBER_FIELD,
    Comparison,
    Ledger,
    Outcome,
    Report,
    digest,
    outcome_of,
    read_logs,
)

TIME = 1_700_000_000_000
Sent = tuple[Path, list[Event]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "sends.log")


@pytest.fixture
def sent(ledger: Ledger) -> Sent:
    """A log of six acknowledged events of two keys, and the events."""
    events = list(ledger.events(6, keys=2))
    ledger.record(events, "acknowledged")
    return ledger.path, events


def compared(paths: Path | Iterable[Path], stored: Iterable[Event], **options: Any) -> Report:
    """The report on a stream of one shard that holds these events in this order."""
    books = read_logs(*([paths] if isinstance(paths, Path) else paths))
    comparison = Comparison(books, **options)
    listed = list(stored)
    comparison.see(0, [EventId(TIME, 0, n) for n in range(len(listed))], listed)
    return comparison.report()


def changed(event: Event, **fields: Any) -> Event:
    return Event(event.key, event.time, {**event.fields, **fields})


# --- each fault ----------------------------------------------------------------------------------


def test_a_sound_stream(sent: Sent) -> None:
    """All that was acknowledged stands there once, as it was sent and in order: nothing is said."""
    path, events = sent
    report = compared(path, events)
    assert report.faults == {}
    assert report.raise_unless_sound() is report
    assert (report.sent, report.acknowledged, report.stored) == (6, 6, 6)
    assert str(report).endswith("\nsound")


FAULTS: dict[str, Callable[[list[Event]], list[Event]]] = {
    "lost": lambda events: events[:-1],
    "phantoms": lambda events: [*events, Event("device-0", TIME, {"value": 1})],
    "altered": lambda events: [changed(events[0], value=1), *events[1:]],
    "duplicates": lambda events: [*events, events[0]],
    "out_of_order": lambda events: [events[2], events[1], events[0], *events[3:]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str, sent: Sent) -> None:
    """A single fault is found, counted once under its own name, and raised."""
    path, events = sent
    report = compared(path, FAULTS[fault](events))
    assert report.faults == {fault: 1}
    assert len(report.examples[fault]) == 1  # type: ignore[index]
    with pytest.raises(LedgerUnsoundError, match=f"1 {fault.replace('_', ' ')}") as caught:
        report.raise_unless_sound()
    assert caught.value.report is report
    assert pickle.loads(pickle.dumps(caught.value)).report == report


def test_resurrected(sent: Sent, ledger: Ledger) -> None:
    """What had certainly failed and is stored all the same is counted apart from phantoms."""
    path, events = sent
    more = list(ledger.events(2, keys=["device-9"]))
    ledger.record(more, Outcome.FAILED)
    assert compared(path, events).is_sound
    report = compared(path, [*events, more[1]])
    assert report.faults == {"resurrected": 1}
    assert report.examples["resurrected"][0].number == more[1].fields[NUMBER_FIELD]


def test_undecodable(sent: Sent) -> None:
    """An entry that nobody can read is a fault: no producer was to write it."""
    path, events = sent
    comparison = Comparison(read_logs(path))
    comparison.see(0, [EventId(TIME, n) for n in range(6)], events)
    comparison.undecodable = 1
    assert comparison.report().faults == {"undecodable": 1}


@pytest.mark.parametrize("stored", [0, 1])
def test_unknown_may_be_there_or_not(stored: int, sent: Sent, ledger: Ledger) -> None:
    """A send of unknown outcome is no fault, whether it is stored once or not; twice is one."""
    path, events = sent
    said, only_intended = ledger.events(2, keys=["device-9"])
    ledger.record(said, "unknown")
    report = compared(path, [*events, *[said, only_intended] * stored])
    assert report.is_sound
    assert (report.unknown, report.unknown_stored, report.unknown_missing) == (
        2,
        2 * stored,
        2 - 2 * stored,
    )
    assert compared(path, [*events, said, said]).faults == {"duplicates": 1}


def test_copies_and_events_stored_twice_are_counted(sent: Sent) -> None:
    """Three copies of one event are two duplicates of one event, and no violation of the order."""
    path, events = sent
    report = compared(path, [*events, events[0], events[0], events[3]])
    assert (report.duplicates, report.duplicated, report.out_of_order) == (3, 2, 0)


def test_a_copy_with_other_content_is_altered_too(sent: Sent) -> None:
    """Each copy is compared, not the first alone."""
    path, events = sent
    report = compared(path, [*events, changed(events[0], value=1)])
    assert report.faults == {"duplicates": 1, "altered": 1}


def test_what_may_be_is_counted_and_allowed(sent: Sent) -> None:
    """A producer that promises neither is not blamed for it, and the counts still stand there."""
    path, events = sent
    stored = [events[2], events[0], *events[1:], events[5]]
    report = compared(path, stored, added_once=False, ordered=False)
    assert report.is_sound
    assert (report.duplicates, report.out_of_order) == (2, 1)
    assert "(allowed)" in str(report)


def test_order_is_per_key_and_sender(tmp_path: Path) -> None:
    """Different keys, and one key of different senders, may stand in any order."""
    first, second = Ledger(tmp_path / "a.log"), Ledger(tmp_path / "b.log")
    ours, theirs = list(first.events(4, keys=2)), list(second.events(4, keys=2))
    for book, events in ((first, ours), (second, theirs)):
        book.record(events, "acknowledged")
    paths = (first.path, second.path)
    stored = [ours[1], theirs[0], ours[0], theirs[1], ours[3], ours[2], theirs[3], theirs[2]]
    assert compared(paths, stored).is_sound
    stored[2], stored[5] = stored[5], stored[2]
    assert compared(paths, stored).faults == {"out_of_order": 1}


def test_events_of_another_ledger_are_phantoms(tmp_path: Path, sent: Sent) -> None:
    """A number is unique beyond one ledger: another run's events are not taken for this one's."""
    path, events = sent
    strangers = list(Ledger(tmp_path / "other.log").events(6, keys=2))
    report = compared(path, [*events, *strangers])
    assert report.faults == {"phantoms": 6}


@pytest.mark.parametrize("number", [None, True, "12", 1.5, -1, 2**62, 0])
def test_numbers_that_are_none(number: Any, sent: Sent) -> None:
    """Whatever stands in the number's place is a phantom, not an error of the check."""
    path, events = sent
    if isinstance(number, int) and number == 0:
        # The first number that the sender has not given out.
        number = events[-1].fields[NUMBER_FIELD] + 1
    assert compared(path, [*events, changed(events[0], **{NUMBER_FIELD: number})]).faults == {
        "phantoms": 1
    }


def test_nothing_acknowledged_proves_nothing(ledger: Ledger) -> None:
    """A run in which nothing was acknowledged is not sound: no loss could have been seen."""
    events = list(ledger.events(3))
    report = compared(ledger.path, events)
    assert report.faults == {} and not report.is_sound
    with pytest.raises(LedgerUnsoundError, match="nothing was acknowledged"):
        report.raise_unless_sound()


def test_examples_are_bounded(ledger: Ledger) -> None:
    """A report keeps the first findings alone and counts the others."""
    events = list(ledger.events(100))
    ledger.record(events, "acknowledged")
    report = compared(ledger.path, [], examples_max=3)
    assert report.lost == 100
    assert [f.number for f in report.examples["lost"]] == [e.fields[NUMBER_FIELD] for e in events][
        :3
    ]
    assert "lost: and 97 more" in str(report)


def test_a_finding_says_where(sent: Sent) -> None:
    """An example names the number, the key and the place in the stream."""
    path, events = sent
    number = events[1].fields[NUMBER_FIELD]
    said = f"number {number} (event 1 of sender {number >> 26})"
    text = str(compared(path, [*events, events[1]]))
    assert f"  duplicates: {said}, key 'device-1', at {TIME}-0/6 of shard 0\n" in text
    assert f"  lost: {said}\n" in str(compared(path, [events[0], *events[2:]]))


# --- a model -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    outcomes=st.lists(st.lists(st.sampled_from(list(Outcome)), max_size=3), max_size=12),
    stored=st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=25),
    keys=st.integers(1, 3),
)
def test_against_a_model(
    tmp_path_factory: pytest.TempPathFactory,
    outcomes: list[list[Outcome]],
    stored: list[tuple[int, bool]],
    keys: int,
) -> None:
    """Whatever is sent, recorded and stored, the counts are those of a model made of sets."""
    ledger = Ledger(tmp_path_factory.mktemp("model") / "sends.log")
    events = list(ledger.events(len(outcomes), keys=keys)) if outcomes else []
    for event, said in zip(events, outcomes, strict=True):
        for outcome in said:
            ledger.record(event, outcome)
    # Numbers beyond those that were sent are phantoms.
    strangers = [Event("device-0", TIME, {"value": n}) for n in range(15)]
    standing = [
        (
            n,
            altered,
            changed((events + strangers)[n], spoilt=1) if altered else (events + strangers)[n],
        )
        for n, altered in stored
    ]
    report = compared(ledger.path, [event for *_, event in standing])

    def final(n: int) -> Outcome:
        for outcome in (Outcome.ACKNOWLEDGED, Outcome.UNKNOWN, Outcome.FAILED):
            if outcome in outcomes[n]:
                return outcome
        return Outcome.UNKNOWN

    finals = Counter(final(n) for n in range(len(events)))
    ours = [n for n, _ in stored if n < len(events)]
    firsts = list(dict.fromkeys(ours))
    assert report.sent == len(events)
    for outcome in Outcome:
        assert getattr(report, outcome) == finals[outcome]
    assert report.stored == len(stored)
    assert report.phantoms == len(stored) - len(ours)
    assert report.lost == sum(
        final(n) is Outcome.ACKNOWLEDGED for n in range(len(events)) if n not in ours
    )
    assert report.resurrected == sum(final(n) is Outcome.FAILED for n in firsts)
    assert report.unknown_stored == sum(final(n) is Outcome.UNKNOWN for n in firsts)
    assert report.altered == sum(altered for n, altered in stored if n < len(events))
    assert report.duplicates == len(ours) - len(firsts)
    assert report.duplicated == sum(count > 1 for count in Counter(ours).values())
    assert report.out_of_order == sum(
        any(before > n and before % keys == n % keys for before in firsts[:place])
        for place, n in enumerate(firsts)
    )


# --- content, whatever codec ---------------------------------------------------------------------

FIELDS: tuple[dict[str, Any], ...] = (
    {"f": 230.1, "i": 7, "b": True, "t": "on", "none": None},
    {"f": 3.0, "i": -(2**63), "b": False, "t": "230.50"},
    {"f": -0.0, "i": 2**53 + 1, "b": True, "t": "1e400", "raw": b"\xff\x00"},
    {"f": 1e22, "i": 0, "b": True, "t": "", "raw": b"text"},
)


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
def test_the_digest_is_that_of_any_codec(codec: str) -> None:
    """An event has the same digest as sent and as each codec gives it back."""
    events = [Event("d", TIME, fields) for fields in FIELDS]
    layout = PlainLayout()
    if codec == "plain":
        read = [decode_entry(b"1-0", encode_plain(e, layout), layout).events()[0] for e in events]
    else:
        payload = (
            encode_rows(events) if codec == "rows" else encode_columns(events_to_table(events))
        )
        read = decode_entry(b"1-0", block_fields(codec, 4, payload), layout).events()
    assert list(map(digest, read)) == list(map(digest, events))


def test_the_digest_sees_key_time_and_fields() -> None:
    """Any difference between two events shows in their digests."""
    base = Event("a", 1, {"x": 1.0})
    others = [
        Event("b", 1, {"x": 1.0}),
        Event(None, 1, {"x": 1.0}),
        Event("a", 2, {"x": 1.0}),
        Event("a", 1, {"x": 1.0000001}),
        Event("a", 1, {"x": True}),
        Event("a", 1, {"y": 1.0}),
        Event("a", 1, {"x": 1.0, "y": 1.0}),
        Event("a", 1, {"x": None}),
        Event("a", 1, {"x": "1.0e"}),
    ]
    assert len({digest(base), *map(digest, others)}) == 10


def test_the_digest_is_as_documented() -> None:
    """Another language can compute it: BLAKE2b of a MessagePack array with sorted names."""
    import hashlib

    packed = msgspec.msgpack.encode(["m", TIME, {"a": 3, "b": 230.5}])
    expected = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
    assert digest(Event("m", TIME, {"b": 230.5, "c": None, "a": 3.0})) == expected


# --- the log -------------------------------------------------------------------------------------


def test_the_log_is_as_documented(ledger: Ledger) -> None:
    """Lines of JSON: the sender, then intents with digests, then outcomes by ranges."""
    events = list(ledger.events(3))
    ledger.record([events[0], events[1]], "acknowledged")
    ledger.record([events[2], events[0]], "unknown", reason="no reply")
    first = ledger.sender * 2**26
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert lines[0] == ["ledger", 1, ledger.sender]
    assert lines[1][:3] == ["intent", first, 3]
    assert lines[2:] == [
        ["acknowledged", first, 2],
        ["unknown", first + 2, 1, "no reply"],
        ["unknown", first, 1, "no reply"],
    ]


def test_the_strongest_outcome_counts(ledger: Ledger) -> None:
    """A later, weaker record takes nothing back: a retry that fails does not undo the first try."""
    events = list(ledger.events(3))
    ledger.record(events, "failed")
    ledger.record(events[1:], "unknown")
    ledger.record(events[2], "acknowledged")
    ledger.record(events, "failed")
    report = compared(ledger.path, events)
    assert (report.failed, report.unknown, report.acknowledged) == (1, 1, 1)


def test_a_log_of_another_language(tmp_path: Path) -> None:
    """A log that gives no digests, and its numbers as 42.0, is compared in all but content."""
    path = tmp_path / "js.log"
    first = 7 * 2**26
    path.write_text(f'["ledger",1,7]\n["intent",{first},2,null]\n["acknowledged",{first},2]\n')
    stored = [Event("m", TIME, {"v": n, NUMBER_FIELD: float(first + n)}) for n in range(2)]
    report = compared(path, stored)
    assert report.is_sound and report.unchecked == 2
    assert "unchecked" in str(report)
    assert compared(path, stored[:1]).faults == {"lost": 1}


@pytest.mark.parametrize("missing", [1, 5, 40])
def test_a_record_cut_by_a_kill_is_left_out(missing: int, ledger: Ledger) -> None:
    """Half a record says nothing, and what is appended by the next process is read."""
    events = list(ledger.events(4))
    ledger.record(events[:2], "acknowledged")
    ledger.record(events[2:], "acknowledged", reason="a reason that is longer than the cut")
    ledger.close()
    os.truncate(ledger.path, ledger.path.stat().st_size - missing)
    report = compared(ledger.path, events)
    # Of the newline alone nothing is missed.
    assert report.cut_records == (missing > 1)
    assert report.acknowledged == (2 if missing > 1 else 4)
    with Ledger(ledger.path) as again:
        (event,) = again.events(1)
        again.record(event, "acknowledged")
    report = compared(ledger.path, [*events, event])
    assert report.acknowledged == (3 if missing > 1 else 5)
    assert report.is_sound


@pytest.mark.parametrize(
    "line",
    [
        '["intent",{next},1,"AAAA"]',
        '["intent",{next},1,"AAAAAAAAAAAAAAAAAAAAAA=="]',
        '["intent",{next},1,"?"]',
        '["intent",{next},0,null]',
        '["intent",{gap},1,null]',
        '["intent",12,1,null]',
        '["acknowledged",{next},1]',
        '["acknowledged",{first},9]',
        '["acknowledged",{first},0]',
        '["acknowledged",{first}]',
        '["ledger",1,{sender}]',
        '["ledger",2,3,"more"]',
        '["sent",{first},1]',
        '{{"a":1}}',
        "3",
    ],
)
def test_a_line_that_is_no_record(line: str, sent: Sent, ledger: Ledger) -> None:
    """What no producer can have meant is an error that names the line, never passed over."""
    path, events = sent
    first = events[0].fields[NUMBER_FIELD]
    text = line.format(first=first, next=first + 6, gap=first + 7, sender=ledger.sender)
    with path.open("a") as file:
        file.write(text + "\n")
    with pytest.raises(LedgerDamagedError, match=r"line 4 of .*sends\.log"):
        read_logs(path)


def test_a_log_that_cannot_be_used(tmp_path: Path) -> None:
    """A path that cannot be written or read is an error of ours with the reason."""
    with pytest.raises(LedgerUnusableError, match="No such file"):
        Ledger(tmp_path / "no" / "sends.log")
    with pytest.raises(LedgerUnusableError, match="No such file"):
        read_logs(tmp_path / "sends.log")
    closed = Ledger(tmp_path / "sends.log")
    closed.close()
    closed.close()
    with pytest.raises(LedgerUnusableError, match="cannot be written"):
        next(closed.events(1))


FULL = """
import resource, sys
from standpipe.errors import LedgerUnusableError
from standpipe.testing import Ledger

ledger = Ledger(sys.argv[1])
events = list(ledger.events(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
for _ in range(2):
    try:
        ledger.record(events * 100, "acknowledged")
        sys.exit(0)
    except LedgerUnusableError as error:
        print(error)
"""


def test_nothing_follows_half_a_record(tmp_path: Path) -> None:
    """A log whose disk is full is not written again: what followed would be glued to half a
    record. What was whole is read."""
    log = tmp_path / "sends.log"
    done = _run(FULL, str(log))
    first, second = done.stdout.splitlines()
    assert first.endswith("cannot be written: File too large")
    assert second.endswith("cannot be written: Bad file descriptor")
    assert log.stat().st_size == 3_000
    books = read_logs(log)
    assert (books.sent, books.cut_records) == (1, 1)


FORKED = """
import os, sys
from standpipe.errors import LedgerUnusableError
from standpipe.event import Event
from standpipe.testing import Ledger

ledger = Ledger(sys.argv[1])
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    ledger.stamp(Event("m", 0, {}))
except LedgerUnusableError:
    os._exit(7)
"""


def test_a_forked_process_takes_another_ledger(tmp_path: Path) -> None:
    """A fork that went on counting would give out its parent's numbers a second time."""
    # In a process of its own: forking one that has threads, as this one may, is a warning.
    done = _run(FORKED, str(tmp_path / "sends.log"))
    assert done.returncode == 7, done.stderr


# --- the ledger's methods ------------------------------------------------------------------------


def test_events_are_as_asked(ledger: Ledger) -> None:
    """Keys in turn, fields of one's own, numbers that count up, intent logged before they come."""
    events = ledger.events(2_500, keys=["a", "b"], fields=lambda n: {"n": n})
    found = [next(events)]
    assert read_logs(ledger.path).sent == 1_000
    found += events
    assert [event.key for event in found] == ["a", "b"] * 1_250
    assert [event.fields["n"] for event in found] == list(range(2_500))
    numbers = [event.fields[NUMBER_FIELD] for event in found]
    assert numbers == list(range(numbers[0], numbers[0] + 2_500))
    assert numbers[-1] < 2**53
    assert read_logs(ledger.path).sent == 2_500


def test_values_need_all_their_digits(ledger: Ledger) -> None:
    """A value that was rounded to 32 bits on its way differs, for nearly every event."""
    import struct

    events = list(ledger.events(1_000))
    ledger.record(events, "acknowledged")
    rounded = [
        changed(e, value=struct.unpack("f", struct.pack("f", e.fields["value"]))[0]) for e in events
    ]
    assert compared(ledger.path, rounded).altered == 1_000


def test_stamping(ledger: Ledger) -> None:
    """An event of the user's own keeps what it has, and a new stamp is a new number."""
    own = Event("m", TIME, {"volts": 230.5})
    once = ledger.stamp(own)
    again = ledger.stamp(once)
    assert (once.key, once.time, once.fields["volts"]) == ("m", TIME, 230.5)
    assert again.fields[NUMBER_FIELD] == once.fields[NUMBER_FIELD] + 1
    assert ledger.stamp_many([]) == []
    ledger.record([once, again], "acknowledged")
    assert compared(ledger.path, [once, again]).is_sound


def test_sending(ledger: Ledger) -> None:
    """A block left in order is acknowledged; an error goes on and says what is known."""
    events = list(ledger.events(4))
    with ledger.sending(events[0]):
        pass
    for event, error in (
        (events[1], FieldError("wrong", field="x")),
        (events[2], ConnectionResetError("cut")),
        (events[3], KeyboardInterrupt()),
    ):
        with pytest.raises(type(error)), ledger.sending(event):
            raise error
    report = compared(ledger.path, events[:1])
    assert (report.acknowledged, report.failed, report.unknown) == (1, 1, 2)
    assert '"ConnectionResetError: cut"' in ledger.path.read_text()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "acknowledged"),
        (EventTooLargeError("x"), "failed"),
        (ConfigError("x"), "failed"),
        (BackpressureError("x"), "failed"),
        (ReplyTimeoutError("x"), "unknown"),
        (UnknownOutcomeError("x"), "unknown"),
        (SpooledError("x"), "unknown"),
        (NotDurableError("x"), "unknown"),
        (ProducerClosedError("x"), "failed"),
        (ServerFullError("x"), "failed"),
        (asyncio.CancelledError(), "unknown"),
        (NotAcknowledgedError("x", count=1), "unknown"),
        (OSError("x"), "unknown"),
    ],
)
def test_outcome_of(error: BaseException | None, outcome: str) -> None:
    """An event has failed when a producer of this package says so, and no other may be there."""
    assert outcome_of(error) == outcome


def test_an_event_without_a_number(ledger: Ledger) -> None:
    """An outcome of an event that no ledger has numbered is refused, and nothing is recorded."""
    before = ledger.path.read_bytes()
    good = ledger.stamp(Event("m", TIME, {}))
    middle = ledger.path.read_bytes()
    assert middle > before
    with pytest.raises(FieldError, match="no number"):
        ledger.record([good, Event("m", TIME, {})], "acknowledged")
    with pytest.raises(ValueError, match="sent"):
        ledger.record(good, "sent")  # type: ignore[arg-type]
    assert ledger.path.read_bytes() == middle


@pytest.mark.parametrize("asked", [{"count": 0}, {"count": 1, "keys": 0}, {"count": 1, "keys": []}])
def test_no_events(asked: dict[str, Any], ledger: Ledger) -> None:
    """Asking for no events is a mistake that shows at the call, not at the first event."""
    with pytest.raises(ConfigError):
        ledger.events(**asked)


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    """Numbers are unique and the log is whole, however many threads send."""
    from concurrent.futures import ThreadPoolExecutor

    def send(_: int) -> Sequence[Event]:
        events = [ledger.stamp(Event("m", TIME, {})) for _ in range(200)]
        for event in events:
            ledger.record(event, "acknowledged")
        return events

    with ThreadPoolExecutor(4) as pool:
        found = [event for events in pool.map(send, range(4)) for event in events]
    assert len({event.fields[NUMBER_FIELD] for event in found}) == 800
    assert compared(ledger.path, found, ordered=False).is_sound


def test_importing_needs_no_pytest() -> None:
    """A program that checks its own producer needs nothing of the test tools, and no numpy."""
    done = _run("import sys, standpipe.testing; print(*[m for m in sys.modules if '.' not in m])")
    loaded = set(done.stdout.split())
    assert "standpipe" in loaded
    assert not loaded & {"pytest", "_pytest", "hypothesis", "numpy", "pyarrow"}


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
