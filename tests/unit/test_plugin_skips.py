"""The plugin by which CI fails on skips that nobody has agreed to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin_skips import ALLOWED_FILE, read_allowed

ROOT = Path(__file__).parents[2]
PASSES = "def test_passes(): assert True\n"
SKIPS = "import pytest\n@pytest.mark.skip(reason={!r})\ndef test_skips(): pass\n"


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest of its own, with the plugin and these tests."""
    (folder / "test_it.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.plugin_skips", "-c", os.devnull]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "with xdist"])
def test_a_skip_that_is_not_listed_fails_the_run_and_is_named(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Exit code 1 and the reason in words, also when workers report to a controller."""
    result = run(tmp_path, PASSES + SKIPS.format("no time today"), *options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 passed, 1 skipped" in result.stdout
    assert "1 times: no time today" in result.stdout


def test_a_module_that_is_skipped_whole_counts_too(tmp_path: Path) -> None:
    """importorskip leaves out a file without a report for any test."""
    result = run(tmp_path, "import pytest\npytest.importorskip('no_such_module')\n" + PASSES)
    assert result.returncode in (1, 5), result.stdout + result.stderr
    assert "no_such_module" in result.stdout.partition("does not allow")[2]


def test_a_listed_skip_and_an_expected_failure_are_accepted(tmp_path: Path) -> None:
    """What the list names may be skipped; a test that is expected to fail has run."""
    allowed = read_allowed(ALLOWED_FILE)[0].replace("*", "x")
    xfail = "@pytest.mark.xfail(reason='known')\ndef test_fails(): assert False\n"
    result = run(tmp_path, PASSES + SKIPS.format(allowed) + xfail)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed, 1 skipped, 1 xfailed" in result.stdout


def test_the_list_has_one_pattern_a_line(tmp_path: Path) -> None:
    """Comments and empty lines are no patterns; an empty one would match nothing and mislead."""
    file = tmp_path / "skips.txt"
    file.write_text("# why\n\n  server not installed: *  \n", "utf-8")
    assert read_allowed(file) == ["server not installed: *"]
