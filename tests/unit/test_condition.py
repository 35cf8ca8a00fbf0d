"""The condition of a consumer's way to its server: what is logged of it, and what is not."""

from __future__ import annotations

import logging

import pytest

from standpipe.consumer.condition import Condition
from standpipe.errors import (
    ReplyTimeoutError,
    ServerLoadingError,
    ServerUnavailableError,
)

FACTS = {"stream": "s", "shard": None, "group": "g", "consumer": "me"}


@pytest.fixture
def condition(caplog: pytest.LogCaptureFixture) -> Condition:
    caplog.set_level(logging.INFO, "standpipe.consumer")
    found = Condition(FACTS)
    found.is_at("a:1")
    return found


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.state, record.error) for record in caplog.records]  # type: ignore[attr-defined]


def test_an_outage_is_two_lines(condition: Condition, caplog: pytest.LogCaptureFixture) -> None:
    """However many loops meet it, and however often, an outage begins once and ends once."""
    for _ in range(5):
        condition.met("reader", ServerUnavailableError("reset"), 20)
        condition.met("keeper", ReplyTimeoutError("no reply"), 20)
    condition.through("reader", "a:1")
    condition.through("flusher", "a:1")
    assert condition.is_waiting
    condition.through("keeper", "a:1")
    assert not condition.is_waiting
    assert lines(caplog) == [
        ("waiting", "ServerUnavailableError"),
        ("ok", "ServerUnavailableError"),
    ]
    last = caplog.records[-1]
    assert (last.tries, last.server, last.server_before) == (10, "a:1", "a:1")  # type: ignore[attr-defined]
    assert all(vars(record).items() >= FACTS.items() for record in caplog.records)


def test_an_outage_of_several_lanes_is_two_lines(
    condition: Condition, caplog: pytest.LogCaptureFixture
) -> None:
    """Lanes that meet it, each with its own error again and again: a line for each kind, and one
    when the last of them is through, which says where those are that had met it."""
    for lane, server in enumerate(("a:1", "b:2", "c:3")):
        condition.is_at(server, lane=lane)
    for _ in range(5):
        condition.met("reader", ServerUnavailableError("refused"), 20, lane=0)
        condition.met("reader", ServerLoadingError("LOADING"), 20, lane=1)
    condition.through("reader", "d:4", lane=0)
    condition.through("reader", "c:3", lane=2)
    assert condition.is_waiting
    condition.through("reader", "b:2", lane=1)
    assert not condition.is_waiting
    assert lines(caplog) == [
        ("waiting", "ServerUnavailableError"),
        ("waiting", "ServerLoadingError"),
        ("ok", "ServerLoadingError"),
    ]
    assert "by b:2, d:4 in place of a:1, b:2" in caplog.records[-1].message


def test_each_change_is_a_line(condition: Condition, caplog: pytest.LogCaptureFixture) -> None:
    """What becomes another trouble is said, and so is another server in the end."""
    condition.met("reader", ServerUnavailableError("refused"), 20)
    condition.met("reader", ServerLoadingError("LOADING"), 20)
    condition.met("keeper", ServerLoadingError("LOADING"), 20)
    condition.through("keeper", "b:2")
    condition.through("reader", "b:2")
    condition.met("reader", ServerUnavailableError("refused"), 20)
    assert lines(caplog) == [
        ("waiting", "ServerUnavailableError"),
        ("waiting", "ServerLoadingError"),
        ("ok", "ServerLoadingError"),
        ("waiting", "ServerUnavailableError"),
    ]
    assert "by b:2 in place of a:1" in caplog.records[2].message
