"""What a check is and what it finds. Pure.

Check     what is looked at, why it matters, and where that is written
Finding   what was read in one place, and the command that mends it
Repair    what ``--fix`` may do by itself: change an option, a kernel setting or a file's mode
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Level = Literal["critical", "warning", "note"]
"""critical: events are lost or refused, now or at the next crash. warning: something will go
wrong under load, or is going wrong slowly. note: worth knowing; nothing has to be done."""

LEVELS: Final[tuple[Level, ...]] = ("critical", "warning", "note")


class Check(NamedTuple):
    """One thing that the doctor looks at."""

    name: str
    """Where it looks and what at: ``server.eviction``."""
    looks_at: str
    why: str
    source: str
    """Where the advice comes from: a page, or a chapter of the manual."""


class ConfigSet(NamedTuple):
    """Change an option of the running server."""

    option: str
    value: str


class KernelSet(NamedTuple):
    """Write a value into a file of /proc/sys or /sys."""

    path: str
    value: str


class Chmod(NamedTuple):
    """Change the mode of a file."""

    path: str
    mode: int


Repair = ConfigSet | KernelSet | Chmod


class Finding(NamedTuple):
    """What a check found in one place."""

    check: Check
    level: Level
    place: str
    """Whose it is: ``machine``, ``127.0.0.1:6390``, ``stream power_grid_stream``…"""
    evidence: str
    """What was read, as it was read."""
    fix: str
    """The command that mends it, or what to do where no command can."""
    repair: Repair | None = None
    """What ``--fix`` does about it; None: that is for a human to decide."""
    node: str | None = None
    """The URL of the server that a ConfigSet goes to."""

    def as_facts(self) -> dict[str, str | bool]:
        """For JSON."""
        return {
            "check": self.check.name,
            "level": self.level,
            "place": self.place,
            "evidence": self.evidence,
            "why": self.check.why,
            "source": self.check.source,
            "fix": self.fix,
            "fixable": self.repair is not None,
        }


MANUAL: Final = "the manual, "
