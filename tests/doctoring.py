"""Which test provokes which of the doctor's checks, so that none is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

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
