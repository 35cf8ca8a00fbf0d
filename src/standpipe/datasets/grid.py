"""Electrical grids: SimBench's load, generation and storage profiles, a year in quarter hours.

A SimBench grid names, for each of its loads, generators and stores, a nominal power and a profile;
a reading is their product, to the last bit what ``simbench.get_absolute_values`` returns. The files
are read from the installed package without importing it, since that brings in pandapower and takes
seconds.

SimBench labels its steps with the local time of Berlin without a zone, so an hour is missing in
March and one comes twice in October. The steps themselves are even: the times here are counted from
the first label.

Source: https://simbench.de/en/ and https://simbench.readthedocs.io/
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from standpipe.datasets.source import (
    Group,
    Recording,
    Request,
    package_folder,
    read_columns,
    window,
)
from standpipe.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

STEP_MS: Final = 15 * 60_000
LABEL_FORMAT: Final = "%d.%m.%Y %H:%M"
LABEL_ZONE: Final = "Europe/Berlin"
SUBNETS: Final = {
    "LV-rural2": "LV2.101",
    "LV-rural1": "LV1.101",
    "LV-rural3": "LV3.101",
    "LV-semiurb4": "LV4.101",
    "LV-semiurb5": "LV5.201",
    "LV-urban6": "LV6.201",
    "MV-rural": "MV1.101",
    "MV-semiurb": "MV2.101",
    "MV-urban": "MV3.101",
    "MV-comm": "MV4.101",
    "HV-mixed": "HV1",
    "HV-urban": "HV2",
}
"""The part of a SimBench code that names a grid of one voltage level → the grid's subnet; the first
is the default. The transmission grid (EHV) is not among them: power stations, which these profiles
leave out, are most of it."""

VARIANTS: Final = tuple(f"1-{grid}--0-sw" for grid in SUBNETS)
_CODE: Final = re.compile(r"1-([HML]V-[a-z]+\d?)--([012])-(?:no_)?sw")


class _Kind(NamedTuple):
    """One kind of element: its file, and for each field the nominal column and profile's suffix."""

    table: str
    fields: dict[str, tuple[str, str]]


# Only loads have a profile for reactive power. SimBench leaves it constant for the others, and a
# constant is no reading.
_KINDS: Final = (
    _Kind("Load", {"p_mw": ("pLoad", "_pload"), "q_mvar": ("qLoad", "_qload")}),
    _Kind("RES", {"p_mw": ("pRES", "")}),
    _Kind("Storage", {"p_mw": ("pStor", "")}),
)


def read(request: Request) -> Recording:
    """Read a grid's profiles and multiply them by the nominal powers.

    The variant is a SimBench code of one voltage level, such as ``1-LV-rural2--0-sw``, or the name
    of one of its 3,000 subnets, such as ``LV2.102``, in scenario 0 (today). ``path`` is a folder
    with SimBench's CSV files, of whatever scenario.

    Raises:
        MissingExtraError: simbench is not installed.
        ConfigError: no such grid, or its files cannot be read.
    """
    subnet, scenario = _parse(str(request.variant))
    folder = request.path or (
        package_folder("simbench", dataset="simbench", extra="simbench")
        / "networks"
        / f"1-complete_data-mixed-all-{scenario}-sw"
    )
    times: NDArray[np.int64] | None = None
    steps = slice(0)
    groups: list[Group] = []
    for kind in _KINDS:
        if kind.table == "Storage" and not (folder / "Storage.csv").exists():
            continue  # scenario 0 is today's grid, which has no stores
        elements = _elements(folder, kind, subnet)
        if not elements.num_rows:
            continue
        profiles = elements["profile"].unique().to_pylist()
        suffixes = [suffix for _, suffix in kind.fields.values()]
        table = _profiles(folder, kind, [name + end for end in suffixes for name in profiles])
        if times is None:
            times = _times(table)
            steps = window(times, request)
        groups.append(_group(kind, elements, profiles, table, steps, subnet))
    if times is None:
        raise ConfigError(
            f"SimBench has no grid {request.variant!r}",
            hint=f"Name a subnet, such as LV2.102, or a code: {', '.join(VARIANTS)}; the digit "
            "after -- is the scenario, 0 to 2.",
        )
    return Recording(
        root=subnet,
        times=times[steps],
        step_ms=STEP_MS,
        groups=groups,
        summary=f"SimBench's profiles of the electrical grid {subnet}: power of every load, "
        "generator and store",
        licence="SimBench data: Open Database License 1.0 (ODbL)",
        source_url="https://simbench.de/en/",
    )


def _parse(variant: str) -> tuple[str, str]:
    """The subnet and the scenario that a variant names."""
    code = _CODE.fullmatch(variant)
    if code is None:
        return variant, "0"
    return SUBNETS.get(code[1], variant), code[2]


def _elements(folder: Path, kind: _Kind, subnet: str) -> Any:
    """The rows of a grid's loads, generators or stores."""
    import pyarrow as pa
    from pyarrow import compute

    columns: dict[str, Any] = dict.fromkeys(("id", "profile", "subnet"), pa.string())
    columns |= {nominal: pa.float64() for nominal, _ in kind.fields.values()}
    table = read_columns(folder / f"{kind.table}.csv", columns, delimiter=";")
    # MV1.101_LV1.101_eq, say, is a low-voltage grid as the medium-voltage grid above sees it.
    owners = compute.list_element(compute.split_pattern(table["subnet"], "_"), 0)
    return table.filter(compute.equal(owners, subnet))


def _profiles(folder: Path, kind: _Kind, names: list[str]) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {"time": pa.string()} | dict.fromkeys(names, pa.float64())
    return read_columns(folder / f"{kind.table}Profile.csv", columns, delimiter=";")


def _times(table: Any) -> NDArray[np.int64]:
    """The time of every step, counted from the first label."""
    import numpy as np

    label = datetime.strptime(table["time"][0].as_py(), LABEL_FORMAT)
    first = round(label.replace(tzinfo=ZoneInfo(LABEL_ZONE)).timestamp() * 1000)
    return first + np.arange(table.num_rows, dtype=np.int64) * STEP_MS


def _group(
    kind: _Kind, elements: Any, profiles: list[str], table: Any, steps: slice, subnet: str
) -> Group:
    import numpy as np

    numbers = {name: number for number, name in enumerate(profiles)}
    rows = table.slice(steps.start, steps.stop - steps.start)
    return Group(
        # "LV2.101 Load 9" is Load_9 below LV2.101.
        names=[
            name.removeprefix(f"{subnet} ").replace(" ", "_") for name in elements["id"].to_pylist()
        ],
        fields={
            field: np.stack([rows[name + suffix].to_numpy() for name in profiles], axis=1)
            for field, (_, suffix) in kind.fields.items()
        },
        profiles=np.array([numbers[name] for name in elements["profile"].to_pylist()], np.intp),
        factors={
            field: elements[nominal].to_numpy() for field, (nominal, _) in kind.fields.items()
        },
    )
