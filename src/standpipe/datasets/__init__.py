"""Telemetry for demonstrations, tests and measurements: simulated by reference models, or measured.

Nothing here is made up. The readings come from packages that carry them, or carry the model that
computes them; none of these packages is a dependency of Standpipe itself, each is an extra.

===================  ==========================================================  ==========
name                 readings                                                    extra
===================  ==========================================================  ==========
``wntr``             water networks, simulated by EPANET (the default)           ``demo``
``simbench``         electrical grids: loads, solar power, stores, for a year    ``simbench``
``pvanalytics``      photovoltaic inverters, measured, with missing readings     ``datasets``
``solar-data-tools`` photovoltaic inverters, measured, with gaps                 ``solar``
``river``            flow in a water pipeline, measured, with gaps               ``datasets``
===================  ==========================================================  ==========
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from standpipe.clock import parse_duration, parse_time
from standpipe.datasets import grid, measured, network
from standpipe.datasets.pace import replay
from standpipe.datasets.series import Dataset, build
from standpipe.datasets.source import DAY_MS, Recording, Request, need
from standpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Dataset", "load", "names", "replay", "variants"]


class _Source(NamedTuple):
    """A dataset's reader, its variants (the first is the default), and the extra that brings it."""

    read: Callable[[Request], Recording]
    variants: Sequence[str]
    extra: str


_SOURCES: Final = {
    "wntr": _Source(network.read, network.VARIANTS, "demo"),
    "simbench": _Source(grid.read, grid.VARIANTS, "simbench"),
} | {
    collection.name: _Source(collection.read, tuple(collection.records), collection.extra)
    for collection in measured.COLLECTIONS
}


def names() -> tuple[str, ...]:
    """The datasets' names, the default first."""
    return tuple(_SOURCES)


def variants(name: str) -> tuple[str, ...]:
    """The networks, grids or records of a dataset, the default first.

    Raises:
        ConfigError: there is no dataset of that name.
    """
    return tuple(_source(name).variants)


def load(
    name: str = "wntr",
    *,
    variant: str | None = None,
    days: float | None = 7,
    skip_days: float = 0,
    step: str | int | None = None,
    devices: int | None = None,
    start: str | int | None = None,
    path: str | Path | None = None,
) -> Dataset:
    """Load a dataset, or simulate it.

    Args:
        name: One of :func:`names`.
        variant: One of :func:`variants`; None takes the first. ``simbench`` also takes the name of
            any subnet, and each code in scenarios 0 to 2.
        days: How many days of it. A record that ends earlier gives what it has; None gives all of
            it (not of a simulation, which has no end).
        skip_days: How many days to leave out at its start: 180 gives a grid in summer.
        step: Time between two readings, ``"15m"`` or ms, for a simulation; default 15 minutes. A
            measured record has its own.
        devices: How many devices; None takes those there are. Fewer are spread evenly over them.
            More are copies: ``Net3-2/node/101`` reports what ``Net3/node/101`` reports, but begins
            at another step and wraps around at the end. As many copies as there are steps differ.
        start: The time of the first reading, as :func:`standpipe.clock.parse_time` reads it; None
            leaves the times as they were recorded (a simulation begins at 2026-01-01T00:00:00Z).
        path: A file (``simbench``: a folder) of the same layout to read instead of the package's
            own; then the package need not be installed, except for ``wntr``, which simulates it.

    Raises:
        ConfigError: an argument is wrong, or the file cannot be read.
        MissingExtraError: the extra that brings the data is not installed.

    Cost: seconds where a package is imported for the first time; see docs/datasets.md.
    """
    source = _source(name)
    if devices is not None and devices < 1:
        raise ConfigError(f"devices is {devices}", hint="Give a whole number of at least 1.")
    if step is not None and name != "wntr":
        raise ConfigError(
            f"step is given, but the dataset {name!r} has its own", hint="Leave step out."
        )
    if variant is None and (path is None or name != "wntr"):
        variant = source.variants[0]
    request = Request(
        variant=variant,
        days_ms=None if days is None else _days_ms("days", days),
        skip_ms=_days_ms("skip_days", skip_days, least=0),
        step_ms=None if step is None else parse_duration(step, name="step"),
        path=None if path is None else Path(path),
    )
    start_ms = None if start is None else parse_time(start, name="start")
    need("numpy", dataset=name, extra=source.extra)
    recording = source.read(request)
    return build(
        recording,
        name=name,
        variant=variant or recording.root,
        devices=devices,
        start_ms=start_ms,
    )


def _source(name: str) -> _Source:
    try:
        return _SOURCES[name]
    except KeyError:
        raise ConfigError(
            f"there is no dataset {name!r}", hint=f"The datasets are {', '.join(_SOURCES)}."
        ) from None


def _days_ms(name: str, days: float, *, least: int = 1) -> int:
    """Days as whole milliseconds."""
    found = round(days * DAY_MS) if math.isfinite(days) else -1
    if found < least:
        raise ConfigError(
            f"{name} is {days}", hint="Give a number of days above 0; 0.5 is twelve hours."
        )
    return found
