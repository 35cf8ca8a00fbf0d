"""Acknowledgement levels: how they are written, and what the server's answers mean."""

from __future__ import annotations

import pytest

from standpipe.errors import ConfigError, ReplyError
from standpipe.producer.level import Level
from standpipe.wire import pack


@pytest.mark.parametrize(
    ("text", "level", "shown"),
    [
        ("memory", Level(), "memory"),
        ("fsync", Level(fsync=True), "fsync"),
        ("replicas=2", Level(replicas=2), "replicas=2"),
        (" replicas=1 , fsync ", Level(fsync=True, replicas=1), "fsync,replicas=1"),
        ("memory,fsync", Level(fsync=True), "fsync"),
    ],
)
def test_parse(text: str, level: Level, shown: str) -> None:
    """A level is read from one word, or from several that hold together."""
    assert Level.parse(text) == level
    assert str(level) == shown
    assert Level.parse(shown) == level


@pytest.mark.parametrize(
    "text", ["", "disk", "replicas", "replicas=0", "replicas=x", "replicas=100", "fsync replicas=1"]
)
def test_parse_refuses(text: str) -> None:
    """Anything else is an error that shows how to write it, never a lower level."""
    with pytest.raises(ConfigError, match="acknowledge is") as caught:
        Level.parse(text)
    assert "fsync,replicas=1" in caught.value.hint


def test_commands() -> None:
    """The disk is asked by WAITAOF where there is one, the replicas by WAIT."""
    assert Level().commands(50) == []
    both = Level(fsync=True, replicas=2)
    assert both.commands(50) == [pack("WAITAOF", 1, 0, 50), pack("WAIT", 2, 50)]
    assert both._replace(by_waitaof=False).commands(50) == [pack("WAIT", 2, 50)]


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ([[1, 0], 2], None),
        ([[1, 0], 3], None),
        ([[0, 0], 2], "not yet on its disk, in the memory of 2 of 2 replicas"),
        ([[1, 0], 1], "on its disk, in the memory of 1 of 2 replicas"),
        ([ReplyError("ERR off"), 2], r"not yet on its disk \(ERR off\), in the memory of 2 of 2"),
        ([[1, 0], ReplyError("ERR no")], r"on its disk, in the memory of 0 of 2 replicas \(ERR no"),
    ],
)
def test_shortfall(replies: list, said: str | None) -> None:
    """What comes back is compared with what was asked for, and a shortfall says what is known."""
    error = Level(fsync=True, replicas=2).shortfall(replies, "host:1")
    if said is None:
        assert error is None
        return
    assert error is not None
    assert error.retryable
    with pytest.raises(type(error), match=said):
        raise error
