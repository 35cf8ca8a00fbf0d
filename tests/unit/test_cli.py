"""Which commands are built at a start."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from standpipe.cli import COMMANDS, _needed, app_with  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["send", "power", "--help"], ["send"]),
        (["--config", "send", "tail", "power"], ["tail"]),
        (["--log-level=debug", "--config=a.toml", "group", "list"], ["group"]),
        ([], COMMANDS),
        (["--help"], COMMANDS),
        (["--config"], COMMANDS),
        (["sned"], COMMANDS),
    ],
)
def test_what_a_command_line_needs(words: Sequence[str], names: Sequence[str]) -> None:
    """The command that is asked for; all where none is, so that help and hints know them."""
    assert list(_needed(words)) == list(names)


def test_one_command_stands_alone() -> None:
    """Built alone, a command is still called by its name."""
    app = app_with(["version"])
    assert [each.name for each in app.registered_commands] == ["version"]
    assert app.registered_callback is not None
