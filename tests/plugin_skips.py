"""Fails a run that skipped a test for a reason that tests/skips.txt does not list.

Loaded by .ci/run with ``-p tests.plugin_skips``; a run by hand may skip what it likes.
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED_FILE = Path(__file__).with_name("skips.txt")
_PREFIX = "Skipped: "


def read_allowed(path: Path) -> list[str]:
    """The patterns of the file, without comments and empty lines."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class SkipGuard:
    """Collects the reasons of all skips of a run."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed
        self.refused: Counter[str] = Counter()

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # A test that is expected to fail is reported as skipped too, but it did run.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        reason = reason.removeprefix(_PREFIX)
        if not any(fnmatchcase(reason, pattern) for pattern in self.allowed):
            self.refused[reason] += 1

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skips that tests/skips.txt does not allow", red=True)
            for reason, count in self.refused.most_common():
                terminalreporter.line(f"{count} times: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    # With xdist the reports of all workers come together in the controller, which decides.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipGuard(read_allowed(ALLOWED_FILE)), "skip-guard")
