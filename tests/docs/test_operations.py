"""The walk through the manual in docs/operations.md: its sections, and that its commands run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from standpipe.cli import app_with
from tests.servers.fleet import TestServer

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WALK = (ROOT / "docs" / "operations.md").read_text().partition("\n## The embedded server")[0]

SECTIONS = [
    "Environment Prerequisites",
    "1. Kernel Optimization and Resource Allocation",
    "2. Service Provisioning and Hardening",
    "3. Stream Initialization and Data Ingestion",
    "4. Consumer Group Configuration",
    "5. High-Speed Message Consumption",
    "6. Message Acknowledgment and PEL Cleanup",
    "Section B: Dependency Fault-Lines",
    "Section C: Logs & Debugging",
    "Optimization & Hardening",
    "The Admin Desk",
]
"""As the manual has them, but for its introduction and Section A, which say how it works."""

QUESTIONS = ("consumer failures", "memory", "media files", "MISCONF", "replay")
"""Those of the Admin Desk."""

GOES_ON = ("up", "work")
"""Commands that run until they are stopped."""


def lines() -> Iterator[str]:
    """The walk's commands, without what is said of them."""
    for block in re.findall(r"```sh\n(.*?)```", WALK, re.DOTALL):
        for line in block.splitlines():
            yield line.partition(" #")[0].strip()


def test_sections_in_order() -> None:
    """Each section of the manual is there, in its order, with a command of ours."""
    parts = re.split(r"^### (.*)$", WALK, flags=re.MULTILINE)
    assert parts[1::2] == SECTIONS
    assert all("standpipe " in text for text in parts[2::2])


def test_the_table_is_complete() -> None:
    """docs/manual.md has a row for each of these sections and questions, and each row a test."""
    text = (ROOT / "docs" / "manual.md").read_text()
    # The first is the table's head.
    _, *rows = re.findall(r"^\| (.*?) \| .* \| (.*) \|$", text, re.MULTILINE)
    names = [name for name, _ in rows]
    wanted = ["Environment prerequisites", *(f"{n}. " for n in range(1, 7)), "B: ", "C: "]
    wanted += ["Tuning: ", "Hardening: ", *(f"Desk: {each}" for each in QUESTIONS)]
    assert [each for each in wanted if not any(name.startswith(each) for name in names)] == []
    assert [name for name, held in rows if "test" not in held] == []


ALL: Any = typer.main.get_command(app_with())


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and what is left of them."""
    found = ALL
    while words and words[0] in getattr(found, "commands", ()):
        found, words = found.commands[words[0]], words[1:]
    return found, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    """`standpipe something --option` in the documentation is an option that the command takes."""
    # A line that goes on in the next is one.
    text = page.read_text().replace("\\\n", " ")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    unknown: list[str] = []
    for line in re.findall(
        r"(?:^|[`$(|&;] *|sudo )standpipe ([^`\n|;&)#]+)", "\n".join(code), re.M
    ):
        words = line.replace("'", " ").replace('"', " ").split()
        command, rest = command_of(words)
        taken = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        taken |= {"--help", "-h"}
        for word in rest:
            name = word.strip("[]().,").partition("=")[0]
            if re.fullmatch("--[a-z][a-z-]*", name) and name not in taken:
                unknown.append(f"{line}: {name}")
    assert unknown == []


class Walking:
    """What happens between the commands: a worker that is given entries and dies."""

    def __init__(self, server: TestServer) -> None:
        self._server = server

    def before(self, words: list[str]) -> list[str]:
        """The words as they are run."""
        group = ("power_grid_stream", "monitoring_group")
        if words[0] == "pending":
            self._server.command("XADD", group[0], "*", "volts", "229.8")
            self._server.command(
                "XREADGROUP", "GROUP", group[1], "worker_01", "STREAMS", group[0], ">"
            )
        if "ID" in words:
            ((oldest, *_), *_) = self._server.command("XPENDING", *group, "-", "+", 1)
            words = [oldest if word == "ID" else word for word in words]
        if words[0] in ("doctor", "status"):
            words = [*words, "--window", "50ms"]
        return words


def test_the_walk_runs(
    own_server: Callable[..., TestServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk's commands, one after another, do what they say on a server that is set up well;
    those that need root, or run until they are stopped, are commands with options that exist."""
    server = own_server("valkey-9.1", appendonly="yes", maxmemory="1gb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    toml = re.search(r"```toml\n(.*?)```", WALK, re.DOTALL)
    assert toml is not None
    (tmp_path / "queue.toml").write_text(toml[1])
    (tmp_path / "readings.ndjson").write_text(
        '{"key": "inverter-1", "volts": 230.5, "amps": 1.2}\n'
    )
    log = tmp_path / "redis-server.log"
    log.write_text("1:M 24 Nov 2026 15:10:00.200 * Ready to accept connections\n")
    walking = Walking(server)
    ran: list[str] = []
    for line in lines():
        program, *words = shlex.split(line.replace("/var/log/redis/redis-server.log", str(log)))
        if program != "standpipe" or words[0] in GOES_ON:
            continue
        words = walking.before(words)
        done = CliRunner().invoke(app_with(words[:1]), words, env={"STANDPIPE_URL": server.url})
        assert done.exit_code == 0, f"{line}\n{done.stdout}{done.stderr}"
        ran.append(line)
    assert len(ran) == sum(line.startswith("standpipe ") for line in lines()) - len(GOES_ON)
    assert (tmp_path / "replayed.parquet").exists() and list(tmp_path.glob("archive/**/*.parquet"))
