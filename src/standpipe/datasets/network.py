"""Water networks, simulated hydraulically by EPANET through wntr.

wntr carries the reference networks that hydraulic engineers compare their programs with. EPANET
computes pressure and demand at every node and the flow in every link; these are the readings.

EPANET computes with 32-bit floats. Each becomes the shortest decimal number that is the same
32-bit float, 0.0123 and not 0.012299999594688416: what a device with such a display would send.

Source: https://usepa.github.io/WNTR/ and https://epanet22.readthedocs.io/
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from standpipe.clock import format_time, parse_time
from standpipe.datasets.source import Group, Recording, Request, need
from standpipe.errors import ConfigError
from standpipe.limits import PRESSURE_M_MAX, SIMULATED_READINGS_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIANTS: Final = ("Net3", "Net1", "Net2", "Net6", "ky4", "ky10")
STEP_MS: Final = 15 * 60_000
START_MS: Final = parse_time("2026-01-01T00:00:00Z")


def read(request: Request) -> Recording:
    """Simulate a network.

    The variant is one of :data:`VARIANTS`; ``path`` is an EPANET input file (.inp) of one's own.
    Both the first and the last moment are reported: 7 days in steps of 15 minutes are 673 steps.

    Raises:
        MissingExtraError: wntr is not installed.
        ConfigError: no such network, or EPANET cannot simulate it as asked for.
    """
    wntr = need("wntr", dataset="wntr", extra="demo")
    file = request.path or _shipped(wntr, str(request.variant))
    step_s, skipped, steps = _plan(request)
    try:
        network = wntr.network.WaterNetworkModel(str(file))
        _check_size(network.num_nodes + network.num_links, skipped + steps)
        times = network.options.time
        times.duration = (skipped + steps - 1) * step_s
        times.report_start = 0
        times.report_timestep = step_s
        times.hydraulic_timestep = min(int(times.hydraulic_timestep), step_s)
        # How old the water is or what it carries is not read here and takes half of the time.
        network.options.quality.parameter = "NONE"
        # EPANET reads and writes files.
        with tempfile.TemporaryDirectory(prefix="standpipe-") as folder:
            results = wntr.sim.EpanetSimulator(network).run_sim(file_prefix=f"{folder}/network")
    except ConfigError:
        raise
    except Exception as error:  # wntr raises what its parser stumbles over, KeyError included.
        raise ConfigError(
            f"{file} cannot be simulated: {error}",
            hint="It has to be an EPANET input file (.inp) that EPANET runs without an error.",
        ) from error
    pressures = results.node["pressure"]
    if len(pressures) != skipped + steps:
        end = format_time(START_MS + int(pressures.index[-1]) * 1000)
        raise ConfigError(
            f"EPANET stopped the simulation of {file} at {end}, {len(pressures)} steps of "
            f"{skipped + steps}",
            hint="Lower days; EPANET itself says in its report what went wrong.",
        )
    licence = "Revised BSD (wntr)" if request.path is None else "as its file says"
    return _recording(request.variant or file.stem, results, skipped, step_s, licence)


def _recording(root: str, results: Any, skipped: int, step_s: int, licence: str) -> Recording:
    import numpy as np

    pressures = results.node["pressure"].iloc[skipped:]
    demands = results.node["demand"].iloc[skipped:][pressures.columns]
    flows = results.link["flowrate"].iloc[skipped:]
    pressure_m = _shortest(pressures.to_numpy())
    pressure_m[np.abs(pressure_m) > PRESSURE_M_MAX] = np.nan
    return Recording(
        root=root,
        times=pressures.index.to_numpy().astype(np.int64) * 1000 + START_MS,
        step_ms=step_s * 1000,
        groups=[
            _group(
                [f"node/{name}" for name in pressures.columns],
                pressure_m=pressure_m,
                demand_m3s=_shortest(demands.to_numpy()),
            ),
            _group(
                [f"link/{name}" for name in flows.columns],
                flow_m3s=_shortest(flows.to_numpy()),
            ),
        ],
        summary=f"EPANET's hydraulic simulation of the water network {root}: pressure and demand at"
        " every node, flow in every link",
        licence=licence,
        source_url="https://usepa.github.io/WNTR/",
    )


def _group(names: list[str], **fields: NDArray[np.float64]) -> Group:
    import numpy as np

    return Group(names, fields, np.arange(len(names)), {})


def _shortest(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each 32-bit float as the shortest decimal that reads back as the same 32-bit float."""
    import pyarrow as pa

    texts = pa.array(values.ravel()).cast(pa.string())
    return texts.cast(pa.float64()).to_numpy().reshape(values.shape).copy()


def _plan(request: Request) -> tuple[int, int, int]:
    """The step in seconds, how many steps to leave out, and how many to hand over."""
    step_ms = STEP_MS if request.step_ms is None else request.step_ms
    if step_ms < 1000 or step_ms % 1000:
        raise ConfigError(
            f"step is {step_ms} ms", hint="EPANET reports in whole seconds: 30s, 15m, 1h."
        )
    if request.days_ms is None:
        raise ConfigError(
            "days is None, but a simulation does not end by itself",
            hint="Say how many days to simulate.",
        )
    return step_ms // 1000, -(-request.skip_ms // step_ms), request.days_ms // step_ms + 1


def _check_size(elements: int, steps: int) -> None:
    if elements * steps > SIMULATED_READINGS_MAX:
        most = SIMULATED_READINGS_MAX // elements
        raise ConfigError(
            f"{steps} steps of {elements} nodes and links are {elements * steps} readings, more "
            f"than {SIMULATED_READINGS_MAX}",
            hint=f"Lower days or raise step: {most} steps of this network fit.",
        )


def _shipped(wntr: Any, variant: str) -> Path:
    """The file of a network that wntr carries."""
    if variant not in VARIANTS:
        raise ConfigError(
            f"there is no water network {variant!r}",
            hint=f"The networks are {', '.join(VARIANTS)}; path takes an EPANET file of your own.",
        )
    file = Path(wntr.__file__).parent / "library" / "networks" / f"{variant}.inp"
    if not file.is_file():
        raise ConfigError(
            f"the installed wntr {wntr.__version__} does not carry the network {variant!r}",
            hint="Update it with: pip install --upgrade 'standpipe[demo]'",
        )
    return file
