"""What the doctor, its explanations and the hints of errors tell a user to type can be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import standpipe
from standpipe.cli import app_with

SOURCE = Path(standpipe.__file__).parent
PLACES = [
    path
    for folder in ("doctor", "errors", "server", "cli")
    for path in sorted((SOURCE / folder).rglob("*.py"))
]


def texts(tree: ast.AST) -> Iterator[str]:
    """All texts of a module but docstrings; what is put into one stands there as X."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}  # fmt: skip
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in inside | said:
            yield str(node.value)


def advised(text: str) -> list[str]:
    """The commands in a text: between backticks, or a line that is one."""
    found = re.findall(r"`standpipe ([^`]+)`", text)
    if line := re.match(r"standpipe ((?:[a-z]+ )*[a-z-].*)", text):
        found.append(line[1].partition("    ")[0])
    return found


def fault(line: str) -> str | None:
    """Why a command line cannot be typed so; None: it can."""
    command: Any = typer.main.get_command(app_with())
    for word in line.split():
        if hasattr(command, "commands") and not word.startswith("-"):
            if word not in command.commands:
                return f"there is no command {word!r}"
            command = command.commands[word]
        elif word.startswith("-"):
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            if (option := word.partition("=")[0].rstrip(".,;:)…")) not in known:
                return f"{command.name} has no option {option}"
    return None


@pytest.mark.parametrize("path", PLACES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_advised_commands_exist(path: Path) -> None:
    """Each `standpipe …` in an advice is a command that there is, with options that it has."""
    tree = ast.parse(path.read_text("utf-8"))
    lines = {line for text in texts(tree) for line in advised(text)}
    faults = {line: why for line in lines if (why := fault(line)) is not None}
    assert faults == {}


def test_what_is_looked_for() -> None:
    """The look finds the commands of an explanation and of a finding, and what is wrong in them."""
    for name, least in (("explain", 8), ("streams", 4)):
        tree = ast.parse((SOURCE / "doctor" / f"{name}.py").read_text("utf-8"))
        assert len({line for text in texts(tree) for line in advised(text)}) >= least
    assert advised("standpipe status <stream>    (lag)") == ["status <stream>"]
    assert fault("pending grid g --detail") == "pending has no option --detail"
    assert fault("vanish") == "there is no command 'vanish'"
    assert fault("group set <stream> <group> --to …") is None
