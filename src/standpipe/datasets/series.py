"""Dataset: readings of any number of devices, as events, as steps and as columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, repeat
from math import gcd
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from standpipe.event import Event
from standpipe.limits import DATASET_VALUES_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from standpipe.datasets.source import Group, Recording

_GOLDEN: Final = 0.618_033_988_75
"""Copies begin this part of the recording later than the one before: they spread evenly over it,
whatever their number, and the start of a copy does not depend on how many follow."""


@dataclass(frozen=True)
class _Crew:
    """The chosen devices of one group, copies included.

    ``members`` are the devices' numbers in the group; ``shifts`` say how many steps later in the
    recording each one reads.
    """

    group: Group
    keys: list[str]
    members: NDArray[np.intp]
    shifts: NDArray[np.intp]

    def values(self, name: str, start: int, stop: int) -> NDArray[np.float64]:
        """The values of a field, by step (row) and device (column)."""
        import numpy as np

        source = self.group.fields[name]
        profiles = self.group.profiles[self.members]
        if self.shifts.any():
            rows = np.arange(start, stop)[:, None] + self.shifts
            rows %= len(source)
            found = source[rows, profiles]
        else:
            found = source[start:stop].take(profiles, axis=1)
        if name in self.group.factors:
            # Adding 0.0 turns -0.0, a negative factor times zero, into the 0.0 that a meter shows.
            found = found * self.group.factors[name][self.members] + 0.0
        return found


@dataclass(frozen=True, eq=False)
class Dataset:
    """Readings of devices at known times; made by :func:`standpipe.datasets.load`.

    Every device reports once per step. The order is by time, then by key.

    Args:
        name: The dataset's name, as given to ``load``.
        variant: Which of the dataset's networks, grids or records it is.
        summary: One sentence on what the readings are.
        licence: Under which terms the data may be used.
        source_url: Where the data is described.
        devices: Number of devices.
        step_ms: The usual time between two readings of a device, ms. A record with gaps has longer
            ones too.
        start_ms: The time of the first step, ms since the epoch.
        end_ms: The time of the last step, ms since the epoch.
        count: Number of events.
        keys: The devices' keys, in order.
    """

    name: str
    variant: str
    summary: str
    licence: str
    source_url: str
    devices: int
    step_ms: int
    start_ms: int
    end_ms: int
    count: int
    keys: Sequence[str] = field(repr=False)
    _times: NDArray[np.int64] = field(repr=False)
    _crews: Sequence[_Crew] = field(repr=False)
    _order: NDArray[np.intp] | None = field(repr=False)

    def events(self) -> Iterator[Event]:
        """All events, in order.

        Cost: 0.2 to 0.5 µs per event; memory for a few thousand events, whatever the count.
        """
        return chain.from_iterable(self.steps())

    def steps(self) -> Iterator[list[Event]]:
        """The events of each step as a list, in order. A missing reading is None.

        Cost: as :meth:`events`.
        """
        arrange = None if self._order is None else itemgetter(*self._order.tolist())
        for start, stop in self._spans():
            parts = [
                (
                    crew.keys,
                    list(crew.group.fields),
                    [_lists(crew.values(name, start, stop)) for name in crew.group.fields],
                )
                for crew in self._crews
            ]
            for row, time in enumerate(self._times[start:stop].tolist()):
                events: list[Event] = []
                for keys, names, fields in parts:
                    readings = _readings(names, [values[row] for values in fields])
                    events.extend(map(Event, keys, repeat(time), readings))
                yield events if arrange is None else list(arrange(events))

    def table(self) -> pa.Table:
        """All events as one pyarrow Table, in the order of :meth:`events`.

        The columns are ``key``, ``time`` (int64, ms), then one per field. A field that a device
        does not report, and a missing reading, are null.

        Cost: about 0.1 µs and 50 bytes per event, all of them in memory.
        """
        import numpy as np
        import pyarrow as pa

        keys = pa.array(self.keys, pa.string())
        names = list(dict.fromkeys(chain.from_iterable(c.group.fields for c in self._crews)))
        tables: list[pa.Table] = []
        for start, stop in self._spans():
            count = stop - start
            columns: dict[str, Any] = {
                "key": keys.take(pa.array(np.tile(np.arange(self.devices), count))),
                "time": pa.array(np.repeat(self._times[start:stop], self.devices)),
            }
            for name in names:
                values = np.hstack(
                    [
                        crew.values(name, start, stop)
                        if name in crew.group.fields
                        else np.full((count, len(crew.keys)), np.nan)
                        for crew in self._crews
                    ]
                )
                if self._order is not None:
                    values = values[:, self._order]
                # from_pandas makes NaN null; readings have no other NaN.
                columns[name] = pa.array(values.ravel(), pa.float64(), from_pandas=True)
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Runs of steps that are small enough to be held as Python objects at the same time."""
        length = max(1, DATASET_VALUES_AT_ONCE // self.devices)
        for start in range(0, len(self._times), length):
            yield start, min(start + length, len(self._times))


def _lists(values: NDArray[np.float64]) -> list[list[float | None]]:
    """The values as lists of Python floats, NaN as None."""
    import numpy as np

    missing = np.isnan(values)
    if not missing.any():
        return values.tolist()
    objects = values.astype(object)
    objects[missing] = None
    return objects.tolist()


def _readings(
    names: list[str], values: list[list[float | None]]
) -> Iterator[dict[str, float | None]] | list[dict[str, float | None]]:
    """The fields of one step's events."""
    # One and two fields are what all datasets have; written out they take a third of the time.
    if len(names) == 1:
        (name,) = names
        return [{name: value} for value in values[0]]
    if len(names) == 2:
        first, second = names
        return [{first: a, second: b} for a, b in zip(*values, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def build(
    recording: Recording, *, name: str, variant: str, devices: int | None, start_ms: int | None
) -> Dataset:
    """Make the dataset of a recording for the wanted number of devices.

    Args:
        recording: What the source handed over.
        name: The dataset's name.
        variant: Its variant.
        devices: How many; fewer than recorded are spread evenly over the recorded ones, more are
            copies that read the recording from another step on. None means all, without copies.
        start_ms: The time of the first step, ms since the epoch; None leaves the times as they are.
    """
    import numpy as np

    crews = _crews(recording, devices)
    keys = list(chain.from_iterable(crew.keys for crew in crews))
    ranks = sorted(range(len(keys)), key=keys.__getitem__)
    times = recording.times
    if start_ms is not None:
        times = times - times[0] + start_ms
    return Dataset(
        name=name,
        variant=variant,
        summary=recording.summary,
        licence=recording.licence,
        source_url=recording.source_url,
        devices=len(keys),
        step_ms=recording.step_ms,
        start_ms=int(times[0]),
        end_ms=int(times[-1]),
        count=len(keys) * len(times),
        keys=tuple(keys[rank] for rank in ranks),
        _times=times,
        _crews=crews,
        _order=None if ranks == list(range(len(keys))) else np.array(ranks, dtype=np.intp),
    )


def _crews(recording: Recording, devices: int | None) -> list[_Crew]:
    """Choose the devices and lay out the copies."""
    import numpy as np

    recorded = sorted(
        (name, number, member)
        for number, group in enumerate(recording.groups)
        for member, name in enumerate(group.names)
    )
    wanted = len(recorded) if devices is None else devices
    stride = _stride(len(recording.times))
    keys: list[list[str]] = [[] for _ in recording.groups]
    members: list[list[int]] = [[] for _ in recording.groups]
    shifts: list[list[int]] = [[] for _ in recording.groups]
    for copy, first in enumerate(range(0, wanted, len(recorded))):
        root = recording.root if copy == 0 else f"{recording.root}-{copy + 1}"
        size = min(len(recorded), wanted - first)
        for index in range(size):
            # Evenly over the sorted names, so that every kind of device is among a few of them.
            name, number, member = recorded[index * len(recorded) // size]
            keys[number].append(f"{root}/{name}")
            members[number].append(member)
            shifts[number].append(copy * stride % len(recording.times))
    return [
        _Crew(group, keys[i], np.array(members[i], np.intp), np.array(shifts[i], np.intp))
        for i, group in enumerate(recording.groups)
        if keys[i]
    ]


def _stride(steps: int) -> int:
    """Steps from one copy's start to the next one's: no two of the first ``steps`` copies agree."""
    stride = max(1, round(steps * _GOLDEN))
    while gcd(stride, steps) != 1:
        stride += 1
    return stride
