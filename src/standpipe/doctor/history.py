"""What the doctor saw at its last look, so that counters can be told by how much they grew.

One small JSON file per user. It is no data of anybody's: where it cannot be read or written the
doctor says so in a note and goes on without a past.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

Counters = dict[str, int]


def default_path() -> Path:
    """``standpipe/doctor.json`` under XDG_STATE_HOME, which is ~/.local/state where it is unset."""
    given = os.environ.get("XDG_STATE_HOME", "")
    root = Path(given) if given.startswith("/") else Path("~/.local/state").expanduser()
    return root / "standpipe" / "doctor.json"


def grown(before: Mapping[str, int], now: Mapping[str, int]) -> Counters:
    """By how much each counter grew. One that fell has begun anew: all of it is growth."""
    return {
        name: value - before[name] if value >= before[name] else value
        for name, value in now.items()
        if name in before
    }


class History:
    """The counters of the last look, by who counts (a start of the machine, a run of a server)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: str | None = None
        """Why there is no past or no future, when that is so."""
        self._before = self._read()
        self._now: dict[str, Counters] = {}

    def before(self, counter: str) -> Counters | None:
        """None when this one was never looked at."""
        return self._before.get(counter)

    def remember(self, counter: str, counters: Counters) -> None:
        self._now[counter] = counters

    def write(self) -> None:
        """Keep what was remembered, for the next look; what was not looked at this time stays."""
        kept = {**self._before, **self._now}
        # Each restart is a counter of its own: the oldest go.
        kept = dict(list(kept.items())[-100:])
        new = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(json.dumps(kept))
            new.replace(self.path)
        except OSError as error:
            self.fault = f"cannot write {self.path}: {error.strerror or error}"

    def _read(self) -> dict[str, Counters]:
        try:
            found: Any = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.fault = f"cannot read {self.path}: {error}"
            return {}
        return cast("dict[str, Counters]", found) if isinstance(found, dict) else {}
