"""Records of real devices, with the gaps and missing readings that real devices have.

The files are read from the installed packages, which are not imported. A reading that is missing in
the file, or stands there as the number its logger wrote for "none", becomes None; a time that is
missing stays missing. Nothing is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
    from collections.abc import Mapping


@dataclass(frozen=True)
class _Record:
    """One file of one device.

    Args:
        file: Its path below the package's folder.
        device: The device's name.
        summary: One sentence on what it measures.
    """

    file: str
    device: str
    summary: str


@dataclass(frozen=True)
class Collection:
    """The records that one package carries.

    Args:
        name: The dataset's name, as given to ``load``.
        package: The Python package whose folder holds the files.
        extra: The extra that brings it.
        records: Variant → record; the first one is the default.
        time_column: The column of the time.
        zoned: Whether the times carry their offset from UTC; without it they are UTC.
        value_column: The column of the reading.
        field: What the reading is called here, unit included.
        missing: The number that stands for a missing reading; None where there is none.
        step_ms: The usual time between two readings, ms.
        licence: Under which terms the data may be used.
        source_url: Where the data is described.
    """

    name: str
    package: str
    extra: str
    records: Mapping[str, _Record]
    time_column: str
    zoned: bool
    value_column: str
    field: str
    missing: float | None
    step_ms: int
    licence: str
    source_url: str

    def read(self, request: Request) -> Recording:
        """Read a record.

        ``path`` is a file with the same columns as the package's own.

        Raises:
            MissingExtraError: the package is not installed.
            ConfigError: no such record, or its file cannot be read.
        """
        import numpy as np
        import pyarrow as pa

        record = self.records.get(str(request.variant))
        if record is None:
            raise ConfigError(
                f"the dataset {self.name!r} has no record {request.variant!r}",
                hint=f"Its records are {', '.join(self.records)}.",
            )
        file = request.path or (
            package_folder(self.package, dataset=self.name, extra=self.extra) / record.file
        )
        table = read_columns(
            file,
            {
                self.time_column: pa.timestamp("ms", tz="UTC" if self.zoned else None),
                self.value_column: pa.float64(),
            },
        )
        times = table[self.time_column].cast(pa.int64()).to_numpy()
        if table[self.time_column].null_count or not (np.diff(times) > 0).all() or not len(times):
            raise ConfigError(
                f"{file} is empty, or has a line without a time or out of order",
                hint="Every line needs a time later than the one before.",
            )
        steps = window(times, request)
        values = table[self.value_column].to_numpy()[steps].copy()
        if self.missing is not None:
            values[values == self.missing] = np.nan
        return Recording(
            root=self.name,
            times=times[steps],
            step_ms=self.step_ms,
            groups=[
                Group([record.device], {self.field: values[:, None]}, np.zeros(1, np.intp), {})
            ],
            summary=record.summary,
            licence=self.licence,
            source_url=self.source_url,
        )


PVANALYTICS: Final = Collection(
    name="pvanalytics",
    package="pvanalytics",
    extra="datasets",
    records={
        "2173": _Record(
            "data/ac_power_inv_2173.csv",
            "inverter/2173",
            "A month of a photovoltaic inverter's power, 1254 of 3000 readings missing",
        ),
        "7539": _Record(
            "data/ac_power_inv_7539.csv",
            "inverter/7539",
            "Ten days of a photovoltaic inverter's power, without the nights",
        ),
    },
    time_column="timestamp",
    zoned=True,
    value_column="value_normalized",
    field="ac_power_normalized",
    missing=None,
    step_ms=15 * 60_000,
    licence="MIT",
    source_url="https://pvanalytics.readthedocs.io/",
)

# The file gives no zone and no unit. Its days begin and end as they do in the west of the USA when
# the times are UTC, and its peaks are the rated powers of the inverters' types (SMA 7000TL,
# TRIO-27.6) in kilowatts.
SOLAR_DATA_TOOLS: Final = Collection(
    name="solar-data-tools",
    package="sdt_dask",
    extra="solar",
    records={
        "TAEFC1044741": _Record(
            "examples/example_data/TAEFC1044741.csv",
            "inverter/TAEFC1044741",
            "Seven months of a photovoltaic inverter's power, with a gap of 275 days in between",
        ),
        "ZT162185000441C1203": _Record(
            "examples/example_data/ZT162185000441C1203.csv",
            "inverter/ZT162185000441C1203",
            "Seven months of a photovoltaic inverter's power, without the nights",
        ),
    },
    time_column="ts",
    zoned=False,
    value_column="meas_val_f",
    field="ac_power_kw",
    missing=-1_000_000.0,
    step_ms=5 * 60_000,
    licence="BSD-2-Clause",
    source_url="https://solar-data-tools.readthedocs.io/",
)

RIVER: Final = Collection(
    name="river",
    package="river",
    extra="datasets",
    records={
        "water-flow": _Record(
            "datasets/water-flow.csv",
            "pipeline/water-flow",
            "Two months of the flow through a branch of a water pipeline, with gaps of up to 32"
            " hours",
        ),
    },
    time_column="Time",
    zoned=True,
    value_column="Water flow [l/s]",
    field="flow_lps",
    missing=None,
    step_ms=60 * 60_000,
    licence="BSD-3-Clause; the data was donated by Tecnojest s.r.l.",
    source_url="https://riverml.xyz/latest/api/datasets/WaterFlow/",
)

COLLECTIONS: Final = (PVANALYTICS, SOLAR_DATA_TOOLS, RIVER)
