"""The documentation says what the code does: commands, settings, errors, links, examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from standpipe import config, errors
from standpipe.cli import COMMANDS
from standpipe.keyspace import archived_key, definition_key, shard_keys, side_key
from tests.servers.fleet import TestServer

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*.md")])


def _all_errors(kind: type[errors.StandpipeError]) -> list[type[errors.StandpipeError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _all_errors(child))]


def test_generated_pages_are_up_to_date() -> None:
    """docs/settings.md, errors.md and commands.md are what the code says now."""
    line = [sys.executable, str(ROOT / "scripts" / "pages.py"), "--check"]
    done = subprocess.run(line, capture_output=True, check=False, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run `make docs`"


def test_every_setting_has_a_flag_that_some_command_takes() -> None:
    """A setting's flag, as documented, is really an option of a command or of all of them."""
    text = (ROOT / "docs" / "commands.md").read_text()
    missing = [row.flag for row in config.describe() if f"{row.flag} " not in text]
    assert missing == []


@pytest.mark.parametrize("kind", _all_errors(errors.StandpipeError))
def test_every_error_stands_in_the_tree(kind: type[errors.StandpipeError]) -> None:
    """The tree on top of errors.py is complete, and says which errors are retryable."""
    tree = (errors.__doc__ or "").splitlines()
    (line,) = [
        each for each in tree if re.search(rf"[─ ]{kind.__name__}\b|^{kind.__name__}$", each)
    ]
    if not kind.__subclasses__():
        assert line.rstrip().endswith("retryable") == kind.retryable, line


def test_every_concrete_error_has_a_hint() -> None:
    """An error that a user can meet names a way out, by itself or where it is raised."""
    said_where_raised = {"ReplyError", "ServerExitedError", "MissingExtraError", "ConfigError"}
    leaves = [kind for kind in _all_errors(errors.StandpipeError) if not kind.__subclasses__()]
    silent = {kind.__name__ for kind in leaves if not kind.default_hint and not kind.retryable}
    assert silent - said_where_raised == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link in the documentation leads to a file that is there."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    """`standpipe something` in the documentation is a command that there is."""
    # Inside code alone: prose says "standpipe" of the thing. Commands to come are marked so.
    code = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), flags=re.DOTALL)
    used = {
        word
        for piece in code
        for word in re.findall(r"(?:^|[`$(|&;] *|\n)standpipe ([a-z]+)", piece)
    }
    assert used - set(COMMANDS) == set()


def test_every_file_that_the_manual_table_names_is_there() -> None:
    """A test that docs/manual.md names as holding a section exists."""
    text = (ROOT / "docs" / "manual.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)`", text))
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - there == set()


# --- examples ------------------------------------------------------------------------------------


def _run_example(name: str, server: TestServer, *arguments: str, cwd: Path | None = None) -> str:
    done = _start_example(name, server, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _start_example(
    name: str, server: TestServer, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=cwd,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env=os.environ | {"STANDPIPE_URL": server.url, "PYTHONPATH": str(ROOT / "src")},
    )


@pytest.fixture
def fresh(server: TestServer) -> TestServer:
    """A server without the streams that the examples use."""
    names = ("power_grid_stream", "pump_stream", "sound_stream", "broken_stream", "inverter_stream")
    for name in names:
        server.command("UNLINK", *shard_keys(name, 1), *shard_keys(name, 4), definition_key(name))
        server.command("UNLINK", side_key(name, "dead"))
    return server


def test_the_quickstart_runs(fresh: TestServer) -> None:
    """examples/quickstart.py sends ten events and handles ten."""
    out = _run_example("quickstart.py", fresh)
    assert out.startswith("acknowledged as ")
    assert len(re.findall(r"^\d+-\d+/\d+  inverter-\d: [\d.]+ V$", out, flags=re.MULTILINE)) == 10


def test_the_notebook_example_runs(fresh: TestServer) -> None:
    """examples/notebook.py sends an event and a table without async and reads both."""
    out = _run_example("notebook.py", fresh)
    assert "'key': 'pump-2'" in out
    assert "'flow_m3s': None" in out


def test_the_durable_example_runs(fresh: TestServer, tmp_path: Path) -> None:
    """examples/durable.py takes the highest level that the server gives, and is acknowledged."""
    out = _run_example("durable.py", fresh, cwd=tmp_path)
    assert re.search(r"^acknowledged at the level (fsync|memory) as \d+-\d+/0$", out, re.MULTILINE)
    assert "acknowledged=1" in out
    assert (tmp_path / "pump_stream.spool").is_file()


def test_the_archive_example_runs(server: TestServer, tmp_path: Path) -> None:
    """examples/archive.py archives a stream and reads it with DuckDB, polars and pandas; what it
    prints is what docs/archive.md shows."""
    server.command("UNLINK", "archived_pump_stream", side_key("archived_pump_stream", "archived"))
    out = _run_example("archive.py", server, cwd=tmp_path)
    assert f"```\n{out}```" in (ROOT / "docs" / "archive.md").read_text()
    assert list(tmp_path.glob("archive/stream=archived_pump_stream/date=*/hour=*/*.parquet"))


def test_the_replay_example_runs(fresh: TestServer) -> None:
    """examples/replay.py reads over the seam, into a file and into another stream; what it prints
    is what docs/replay.md shows."""
    for name in ("replay_example_stream", "replay_example_copy"):
        fresh.command("UNLINK", *shard_keys(name, 1), *shard_keys(name, 2), definition_key(name))
        fresh.command("UNLINK", *(archived_key(key) for key in shard_keys(name, 2)))
        fresh.command("UNLINK", side_key(name, "replay:example"))
    out = _run_example("replay.py", fresh)
    assert f"```\n{out}```" in (ROOT / "docs" / "replay.md").read_text()


def test_the_ledger_example_runs(fresh: TestServer, tmp_path: Path) -> None:
    """examples/ledger.py finds the one producer sound, also when it runs again, and the other not;
    what it prints is what docs/testing.md shows."""
    text = (ROOT / "docs" / "testing.md").read_text()
    sound = _run_example("ledger.py", fresh, cwd=tmp_path)
    assert f"```\n{sound}```" in text
    assert re.search(
        r"^acknowledged +20,000$", _run_example("ledger.py", fresh, cwd=tmp_path), re.M
    )

    broken = _start_example("ledger.py", fresh, "broken", cwd=tmp_path)
    assert broken.returncode == 1, broken.stderr

    def masked(output: str) -> str:
        # Numbers and places are new in each run, and with them which shard's block comes first.
        output = re.sub(r"\d{6,}|of sender \d+|at \d+-\d+/\d+", "_", output)
        return "\n".join(sorted(output.splitlines()))

    (shown,) = re.findall(r"```\n([^`]*1 lost, 1 altered, 2 duplicates\n)```", text)
    assert masked(broken.stdout) == masked(shown)


def test_the_typed_example_runs(fresh: TestServer) -> None:
    """examples/typed.py handles two readings and shows the third as a dead letter."""
    assert _run_example("typed.py", fresh).splitlines() == [
        "inverter-1: 276.6 W",
        "inverter-3: 0.0 W",
        "inverter-2: $.volts: Expected float, got str",
    ]


def test_the_readme_program_runs(fresh: TestServer, tmp_path: Path) -> None:
    """The README's program, as it stands there, sends an event and handles it."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = program.replace("redis://127.0.0.1:6390", fresh.url)
    # The worker of the README runs for ever; here it stops after the event.
    assert "print(event.key, event.fields)" in program
    program = program.replace(
        "print(event.key, event.fields)",
        "print(event.key, event.fields)\n            worker.stop()",
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "acknowledged as " in done.stdout
    assert "inverter-7 {'volts': 230.5, 'amps': 1.2}" in done.stdout


def test_the_handlers_example_stores_once(fresh: TestServer, tmp_path: Path) -> None:
    """examples/handlers.py keeps each event once, even when it is delivered twice."""
    import sqlite3

    sys.path.insert(0, str(ROOT))
    try:
        from examples import handlers
    finally:
        sys.path.remove(str(ROOT))
    from standpipe.codec import PlainLayout, decode_entry
    from standpipe.event import Batch, EventId
    from standpipe.worker import Context, Reject

    fields = [b"key", b"m1", b"volts", b"260.5"]
    batch = Batch([decode_entry(b"1700000000000-0", fields, PlainLayout())])
    context = Context("s", 0, "g", EventId(1_700_000_000_000, 0), 1)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        handlers.store(batch, context)
        handlers.store(batch, context)
        database = sqlite3.connect("readings.db")
        rows = database.execute("SELECT id, key FROM reading").fetchall()
        database.close()
    finally:
        os.chdir(before)
    assert rows == [("0:1700000000000-0/0", "m1")]
    handlers.alarm(batch.events[0], context)
    wrong = decode_entry(b"1700000000000-0", [b"key", b"m1", b"volts", b"high"], PlainLayout())
    with pytest.raises(Reject, match="volts is 'high'"):
        handlers.alarm(wrong.events()[0], context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    """A test that a page names for a promise exists."""
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M), name
