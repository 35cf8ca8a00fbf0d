"""What a source of readings is asked for and hands over, and how its files are reached."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from standpipe.clock import format_duration
from standpipe.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Request:
    """What :func:`standpipe.datasets.load` asks a source for.

    Args:
        variant: Which network, grid or record; None when a file of the user's own is read.
        days_ms: How much of it, ms; None means all there is.
        skip_ms: What to leave out at its start, ms.
        step_ms: Time between readings, ms; None where the source is not to choose.
        path: A file or folder to read instead of the package's own; None means the package's.
    """

    variant: str | None
    days_ms: int | None
    skip_ms: int
    step_ms: int | None
    path: Path | None


@dataclass(frozen=True)
class Group:
    """Devices that report the same fields.

    Args:
        names: The devices' names below the recording's root, such as ``node/101``.
        fields: Field name → values by step (row) and profile (column); NaN is a missing reading.
        profiles: Each device's column in the values.
        factors: Field name → what each device multiplies its profile by; empty means nothing.
    """

    names: Sequence[str]
    fields: Mapping[str, NDArray[np.float64]]
    profiles: NDArray[np.intp]
    factors: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Recording:
    """Readings of some devices at the same times.

    Args:
        root: What every key begins with.
        times: The time of each step, ms since the epoch, ascending.
        step_ms: The usual time between two steps, ms.
        groups: The devices.
        summary: One sentence on what the readings are.
        licence: Under which terms the data may be used.
        source_url: Where the data is described.
    """

    root: str
    times: NDArray[np.int64]
    step_ms: int
    groups: Sequence[Group]
    summary: str
    licence: str
    source_url: str


def window(times: NDArray[np.int64], request: Request) -> slice:
    """The steps of a record that the request asks for.

    Raises:
        ConfigError: the record ends before they begin.
    """
    first = int(times[0]) + request.skip_ms
    start = int(times.searchsorted(first))
    stop = len(times)
    if request.days_ms is not None:
        stop = int(times.searchsorted(first + request.days_ms))
    if start >= stop:
        length = format_duration(int(times[-1] - times[0]))
        raise ConfigError(
            f"{request.variant or request.path} has no reading in that time: it is {length} long",
            hint="Lower skip_days, or raise days.",
        )
    return slice(start, stop)


def need(module: str, *, dataset: str, extra: str) -> Any:
    """Import a module that only an extra brings.

    Raises:
        MissingExtraError: it, or something it imports itself, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(error.name or module, dataset, extra) from error


def package_folder(package: str, *, dataset: str, extra: str) -> Path:
    """The folder of an installed package, which is not imported: that can take seconds.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package, dataset, extra)
    return Path(next(iter(spec.submodule_search_locations)))


def _missing(module: str, dataset: str, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"the dataset {dataset!r} needs the Python module {module}, which is not installed",
        hint=f"Install it with: pip install 'standpipe[{extra}]'",
    )


def read_columns(file: Path, columns: Mapping[str, Any], *, delimiter: str = ",") -> Any:
    """Read some columns of a CSV file.

    Args:
        file: The file; its first line names the columns.
        columns: Column name → Arrow type. An empty value, or NULL, is null.
        delimiter: What stands between two values.

    Returns:
        A pyarrow Table with these columns in this order.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or a value is not of its type.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.read_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(
                column_types=dict(columns),
                include_columns=list(columns),
                null_values=["", "NULL", "NaN", "nan"],
                strings_can_be_null=True,
            ),
        )
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}",
            hint=f"It has to be a CSV file with the columns {', '.join(list(columns)[:6])}.",
        ) from error
