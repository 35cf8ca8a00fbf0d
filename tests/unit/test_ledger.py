"""The demo's ledger: it has to notice every way in which the books can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from standpipe.demo.ledger import RECORD_BYTES, Account, balance, read_records, records
from standpipe.event import Event, EventId

EVENTS = [Event(f"meter-{n}", 1_700_000_000_000 + n, {"flow_m3s": n / 8}) for n in range(6)]
IDS = [EventId(1_700_000_000_000, 0, n) for n in range(6)]
SENT_NS = 1_000_000_000


def _records(chosen: list[int], at_ns: int = SENT_NS, events: list[Event] | None = None):
    source = events or EVENTS
    return records([0] * len(chosen), [IDS[n] for n in chosen], [source[n] for n in chosen], at_ns)


def _account(processed: object, *, dead: int = 0, sent: object = None) -> Account:
    everything = _records([0, 1, 2, 3, 4, 5]) if sent is None else sent
    return balance(everything, processed, dead=dead, steady_from=3)  # type: ignore[arg-type]


def test_all_processed_once_balances() -> None:
    """Every event sent and handled once is a balanced ledger without duplicates."""
    account = _account(_records([3, 4, 5, 0, 1, 2], SENT_NS + 2_000_000))
    assert account.balances
    assert (account.processed, account.duplicates, account.lost) == (6, 0, 0)


def test_latency_is_that_of_the_steady_part() -> None:
    """Latency is counted from the steady part on, of the first handling of each event."""
    flat = _records([0, 1, 2], SENT_NS + 900_000_000)
    steady = _records([3, 4, 5], SENT_NS + 2_000_000)
    again = _records([4], SENT_NS + 800_000_000)
    account = _account(np.concatenate([flat, again, steady]))
    assert account.latency_p50_ms == pytest.approx(2)
    assert account.latency_max_ms == pytest.approx(2)


def test_the_flat_out_rate_is_that_of_the_first_half() -> None:
    """The flat-out rate is not bent by the events that had to wait for a takeover."""
    flat = np.concatenate(
        [_records([0, 1], SENT_NS + 100_000_000), _records([2], SENT_NS + 3_000_000_000)]
    )
    steady = _records([3, 4, 5], SENT_NS + 2_000_000)
    account = _account(np.concatenate([flat, steady]))
    assert account.flat_handled_per_s == pytest.approx(1.5 / 0.1)


def test_handled_twice_is_a_duplicate_and_no_loss() -> None:
    """At least once: a repetition is counted and the ledger still balances."""
    account = _account(_records([0, 1, 2, 3, 4, 5, 2, 2]))
    assert account.balances
    assert (account.processed, account.duplicates) == (6, 2)


def test_a_missing_event_is_lost() -> None:
    """An event that nobody handled makes the ledger fail."""
    account = _account(_records([0, 1, 2, 4, 5]))
    assert account.lost == 1
    assert not account.balances


def test_a_dead_letter_accounts_for_a_missing_event() -> None:
    """A dead letter is no loss: it is kept, with its reason."""
    account = _account(_records([0, 1, 2, 4, 5]), dead=1)
    assert account.lost == 0
    assert account.balances


def test_an_event_from_nowhere_is_unknown() -> None:
    """Something processed that nobody sent makes the ledger fail."""
    account = _account(_records([0, 1, 2, 3, 4, 5]), sent=_records([0, 1, 2, 3, 4]))
    assert account.unknown == 1
    assert not account.balances


def test_other_content_at_the_right_place_is_altered() -> None:
    """The place alone does not count: an event that says something else makes the ledger fail."""
    changed = [*EVENTS]
    changed[3] = Event("meter-3", EVENTS[3].time, {"flow_m3s": 0.376})
    account = _account(_records([0, 1, 2, 3, 4, 5], events=changed))
    assert account.altered == 1
    assert not account.balances


def test_two_events_at_one_place_are_a_loss() -> None:
    """Two acknowledgements for one place mean that one of the events is not there."""
    sent = np.concatenate([_records([0, 1, 2, 3, 4, 5]), _records([5])])
    account = _account(_records([0, 1, 2, 3, 4, 5]), sent=sent)
    assert account.lost == 1


def test_nothing_sent_does_not_balance() -> None:
    """An empty ledger proves nothing, so it does not pass."""
    empty = _records([])
    assert not balance(empty, empty, dead=0, steady_from=0).balances


def test_a_record_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    """A record that a SIGKILL cut short is not read as another one."""
    whole = _records([0, 1]).tobytes()
    path = tmp_path / "w.records"
    path.write_bytes(whole + whole[: RECORD_BYTES - 1])
    assert len(read_records([path])) == 2
