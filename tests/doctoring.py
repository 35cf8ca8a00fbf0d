"""Which test provokes which of the doctor's checks, so that none is left out."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable, Iterable
from typing import TypeVar

from typer.testing import CliRunner

from standpipe.cli import app_with
from standpipe.doctor import Check, Finding

F = TypeVar("F", bound=Callable[..., object])

PROVOKED: set[str] = set()


def provokes(*checks: Check) -> Callable[[F], F]:
    """Say that a test sets what these checks look for, and sees their findings."""

    def note(test: F) -> F:
        PROVOKED.update(check.name for check in checks)
        return test

    return note


def of(check: Check, findings: Iterable[Finding]) -> list[Finding]:
    """Those of one check."""
    return [each for each in findings if each.check is check]


def only(check: Check, findings: Iterable[Finding]) -> Finding:
    """The one of a check; there has to be exactly one."""
    (found,) = of(check, findings)
    return found


def advised(finding: Finding) -> list[list[str]]:
    """The commands of ours that a finding's advice gives, each as its arguments."""
    commands = re.findall(r"`standpipe ([^`]+)`", finding.fix)
    return [shlex.split(each) for each in commands]


async def run_advised(words: list[str], url: str) -> str:
    """Run one of them on a server, in this process: a new one takes a second to begin."""
    line = [*words, "--url", url]
    done = await asyncio.to_thread(
        CliRunner().invoke, app_with(words[:1]), line, catch_exceptions=False
    )
    assert done.exit_code == 0, f"{line}: {done.stdout}{done.stderr}"
    return done.stdout
