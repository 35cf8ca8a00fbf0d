"""The datasets hand out what the models computed and the devices measured, and nothing else."""

from __future__ import annotations

import asyncio
import csv
import math
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from time import monotonic
from zoneinfo import ZoneInfo

import pytest

from standpipe import datasets
from standpipe.clock import parse_time
from standpipe.datasets import Dataset, load, replay
from standpipe.errors import ConfigError, MissingExtraError
from standpipe.event import Event, check_events
from standpipe.limits import REPLAY_EVENTS_MAX

DATA = Path(__file__).parents[1] / "data"
SIMBENCH = DATA / "simbench"
SLICES = {
    "simbench": SIMBENCH,
    "pvanalytics": DATA / "pvanalytics-2173.csv",
    "solar-data-tools": DATA / "solar-data-tools-TAEFC1044741.csv",
    "river": DATA / "river-water-flow.csv",
}
PACKAGES = {
    "simbench": ("simbench", "networks/1-complete_data-mixed-all-0-sw", "simbench"),
    "pvanalytics": ("pvanalytics", "data/ac_power_inv_2173.csv", "datasets"),
    "solar-data-tools": ("sdt_dask", "examples/example_data/TAEFC1044741.csv", "solar"),
    "river": ("river", "datasets/water-flow.csv", "datasets"),
}
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

wntr_installed = pytest.mark.skipif(
    find_spec("wntr") is None, reason="wntr is not installed: pip install 'standpipe[demo]'"
)


def load_slice(name: str, **options: object) -> Dataset:
    variant = "LV1.101" if name == "simbench" else None
    return load(name, variant=variant, path=SLICES[name], **{"days": None, **options})  # type: ignore[arg-type]


def rows_of(file: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter=delimiter))


def series_of(dataset: Dataset) -> dict[str, list[dict[str, object]]]:
    """Key → the fields of its events, in order of time."""
    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    for event in dataset.events():
        found[str(event.key)].append(dict(event.fields))
    return found


def in_order(events: list[Event]) -> bool:
    places = [(event.time, str(event.key)) for event in events]
    return all(a < b for a, b in pairwise(places))


# --- water networks ------------------------------------------------------------------------------


@wntr_installed
def test_a_week_of_net3_is_every_element_at_every_step() -> None:
    """Net3's 97 nodes and 119 links report 673 times in 7 days: 145,368 events in order."""
    dataset = load()
    events = list(dataset.events())
    assert (dataset.name, dataset.variant, dataset.devices) == ("wntr", "Net3", 216)
    assert len(events) == dataset.count == 145_368
    assert in_order(events)
    assert events[0].time == dataset.start_ms == parse_time("2026-01-01T00:00:00Z")
    assert events[-1].time == dataset.end_ms == dataset.start_ms + 7 * DAY_MS
    assert dataset.step_ms == 15 * 60_000
    assert dataset.keys == tuple(event.key for event in events[:216])
    assert sum("/node/" in key for key in dataset.keys) == 97
    assert {"Net3/node/101", "Net3/link/20"} <= set(dataset.keys)
    check_events(events)


@wntr_installed
def test_readings_are_what_epanet_computed() -> None:
    """Each value is, as a 32-bit float, the one EPANET computes when wntr runs it by itself."""
    import numpy as np
    import wntr

    file = Path(wntr.__file__).parent / "library/networks/Net1.inp"
    network = wntr.network.WaterNetworkModel(str(file))
    network.options.time.duration = 86_400
    network.options.time.report_timestep = 3600
    results = run_epanet(network)
    # A step larger than the network's own hydraulic one leaves the computation as it is.
    series = series_of(load(variant="Net1", days=1, step="1h"))
    fields = {"pressure_m": ("node", "pressure"), "demand_m3s": ("node", "demand")}
    fields["flow_m3s"] = ("link", "flowrate")
    compared = 0
    for field, (kind, quantity) in fields.items():
        for name, expected in getattr(results, kind)[quantity].items():
            values = [reading[field] for reading in series[f"Net1/{kind}/{name}"]]
            assert np.array(values, np.float32).tolist() == expected.tolist()
            # Nine digits are enough to tell any two 32-bit floats apart.
            digits = [Decimal(repr(value)).normalize().as_tuple().digits for value in values]
            assert max(map(len, digits)) <= 9
            compared += len(values)
    assert compared == 25 * (2 * 11 + 13)


def run_epanet(network: object) -> object:
    import wntr

    with tempfile.TemporaryDirectory() as folder:
        return wntr.sim.EpanetSimulator(network).run_sim(file_prefix=f"{folder}/n")


@wntr_installed
def test_a_simulation_reads_an_input_file_of_ones_own(tmp_path: Path) -> None:
    """path simulates any EPANET file; its name is the keys' first part."""
    import wntr

    shutil.copy(Path(wntr.__file__).parent / "library/networks/Net1.inp", tmp_path / "town.inp")
    dataset = load(path=tmp_path / "town.inp", days=1, step="6h")
    assert (dataset.devices, dataset.count) == (24, 24 * 5)
    assert dataset.keys[0] == "town/link/10"
    assert dataset.variant == "town"


@wntr_installed
def test_the_pressure_of_a_node_that_is_cut_off_is_unknown() -> None:
    """Net2 runs dry after its 55 hours: EPANET's pressures of 25,000 km become None."""
    before = load(variant="Net2", days=2)
    assert all(None not in event.fields.values() for event in before.events())
    after = [event for event in load(variant="Net2", days=7).events() if "/node/" in str(event.key)]
    pressures = [event.fields["pressure_m"] for event in after]
    assert pressures.count(None) > 1000
    assert max(value for value in pressures if isinstance(value, float)) < 200


@wntr_installed
def test_a_part_of_the_devices_has_some_of_each_kind() -> None:
    """Fewer devices are spread over the network, nodes and links alike, with unchanged readings."""
    whole, part = series_of(load(days=1)), series_of(load(days=1, devices=10))
    assert len(part) == 10
    assert {key.split("/")[1] for key in part} == {"node", "link"}
    assert all(whole[key] == readings for key, readings in part.items())
    assert len(load(days=1, devices=1).keys) == 1


@wntr_installed
def test_copies_of_a_network_differ_but_only_in_when_they_begin() -> None:
    """A copy's readings are its original's, from another step on and wrapped around."""
    dataset = load(days=1, devices=5 * 216 + 20)
    events = list(dataset.events())
    assert dataset.devices == len(set(dataset.keys)) == 1100
    assert len(events) == dataset.count == 1100 * 97
    assert in_order(events)
    series = series_of(dataset)
    original = series["Net3/node/101"]
    turned = [original]
    for copy in range(2, 6):
        readings = series[f"Net3-{copy}/node/101"]
        shift = next(n for n in range(97) if original[n:] + original[:n] == readings)
        assert shift > 0
        assert series[f"Net3-{copy}/link/20"] == [
            *series["Net3/link/20"][shift:],
            *series["Net3/link/20"][:shift],
        ]
        assert readings not in turned
        turned.append(readings)
    assert sum(key.startswith("Net3-6/") for key in dataset.keys) == 20


@wntr_installed
def test_many_devices_cost_no_memory_of_the_model() -> None:
    """A hundred thousand devices' first step is there without the other steps being built."""
    step = next(load(days=1, devices=100_000).steps())
    assert len(step) == 100_000
    assert len({event.key for event in step}) == 100_000


@wntr_installed
def test_the_time_of_a_simulation_can_be_chosen() -> None:
    """start, step, days and skip_days decide on the times; skipped days are still simulated."""
    dataset = load(variant="Net1", days=0.5, step=HOUR_MS, start="2024-02-29T12:00:00Z")
    assert [step[0].time for step in dataset.steps()] == [
        parse_time("2024-02-29T12:00:00Z") + hour * HOUR_MS for hour in range(13)
    ]
    whole = [step for step in load(variant="Net1", days=2, step="1h").steps()]
    later = list(load(variant="Net1", days=1, skip_days=1, step="1h").steps())
    assert later == whole[24:]


@wntr_installed
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variant": "Net4"}, "no water network 'Net4'"),
        ({"days": None}, "days is None"),
        ({"days": 0}, "days is 0"),
        ({"days": -1}, "days is -1"),
        ({"days": math.nan}, "days is nan"),
        ({"skip_days": -1}, "skip_days is -1"),
        ({"step": "1500ms"}, "step is 1500 ms"),
        ({"step": 0}, "step is 0 ms"),
        ({"step": "soon"}, "not a duration"),
        ({"start": "soon"}, "not a time"),
        ({"devices": 0}, "devices is 0"),
        ({"days": 3650}, "readings, more than"),
        ({"path": DATA / "river-water-flow.csv"}, "cannot be simulated"),
        ({"path": DATA / "nowhere.inp"}, "cannot be simulated"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(options: dict[str, object], text: str) -> None:
    """A wrong argument or file is a ConfigError that names it and the way out."""
    with pytest.raises(ConfigError, match=text) as caught:
        load(**options)  # type: ignore[arg-type]
    assert caught.value.hint


@wntr_installed
def test_a_wntr_that_carries_no_networks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases of wntr before 1.4 lack the networks: the error says to update, not to spell."""
    import wntr

    monkeypatch.setattr(wntr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ConfigError, match=f"wntr {wntr.__version__} does not carry") as caught:
        load()
    assert "--upgrade" in caught.value.hint


# --- electrical grids ----------------------------------------------------------------------------


def test_a_grid_reports_profile_times_nominal_power() -> None:
    """Each reading is the product that SimBench defines; only loads have reactive power."""
    series = series_of(load_slice("simbench"))
    compared = 0
    for table, fields in {
        "Load": {"p_mw": ("pLoad", "_pload"), "q_mvar": ("qLoad", "_qload")},
        "RES": {"p_mw": ("pRES", "")},
        "Storage": {"p_mw": ("pStor", "")},
    }.items():
        profiles = rows_of(SIMBENCH / f"{table}Profile.csv", ";")
        for element in rows_of(SIMBENCH / f"{table}.csv", ";"):
            if element["subnet"] != "LV1.101":
                continue
            readings = series.pop("LV1.101/" + element["id"][len("LV1.101 ") :].replace(" ", "_"))
            assert readings == [
                {
                    field: float(row[element["profile"] + suffix]) * float(element[nominal])
                    for field, (nominal, suffix) in fields.items()
                }
                for row in profiles
            ]
            compared += 1
    assert compared == 28 + 8 + 5
    assert series == {}, "other grids of the files are left out"


def test_a_store_at_rest_reports_zero_without_a_sign(tmp_path: Path) -> None:
    """Zero times the negative power that SimBench gives stores is 0.0, never -0.0."""
    folder = tmp_path / "grid"
    shutil.copytree(SIMBENCH, folder)
    header, first, *others = (SIMBENCH / "StorageProfile.csv").read_text().splitlines()
    label, *values = first.split(";")
    rested = ";".join([label, *["0"] * len(values)])
    (folder / "StorageProfile.csv").write_text("\n".join([header, rested, *others]) + "\n")
    step = next(load("simbench", variant="LV1.101", path=folder).steps())
    powers = [event.fields["p_mw"] for event in step if "Storage" in str(event.key)]
    assert list(map(repr, powers)) == ["0.0"] * 5


def test_a_grid_is_counted_and_ordered() -> None:
    """Every element reports at every step, by time and then by key."""
    dataset = load_slice("simbench")
    events = list(dataset.events())
    assert (dataset.devices, len(events)) == (41, 41 * 116)
    assert dataset.count == len(events)
    assert in_order(events)
    check_events(events)
    assert load_slice("simbench", days=1).count == 41 * 96


def test_berlin_labels_become_even_steps_in_utc() -> None:
    """The hour that comes twice in October is two hours: every time shows the file's own label."""
    steps = [step[0].time for step in load_slice("simbench").steps()]
    labels = [row["time"] for row in rows_of(SIMBENCH / "LoadProfile.csv", ";")]
    berlin = ZoneInfo("Europe/Berlin")
    shown = [datetime.fromtimestamp(ms / 1000, berlin).strftime("%d.%m.%Y %H:%M") for ms in steps]
    assert shown == labels
    assert labels.count("30.10.2016 02:15") == 2
    assert {b - a for a, b in pairwise(steps)} == {15 * 60_000}
    assert steps[0] == parse_time("2016-10-29T20:00:00Z")


def test_a_grid_without_stores_is_read(tmp_path: Path) -> None:
    """Scenario 0 has no file of stores; the rest is read as always."""
    folder = tmp_path / "grid"
    shutil.copytree(SIMBENCH, folder)
    (folder / "Storage.csv").unlink()
    assert load("simbench", variant="LV1.101", path=folder).devices == 28 + 8


@pytest.mark.parametrize("variant", ["LV9.101", "1-EHV-mixed--0-sw", "1-LV-rural9--0-sw"])
def test_a_grid_that_is_not_there_is_named(variant: str) -> None:
    """An unknown grid is an error that lists the codes."""
    with pytest.raises(ConfigError, match=variant) as caught:
        load("simbench", variant=variant, path=SIMBENCH)
    assert "1-LV-rural2--0-sw" in caught.value.hint


# --- measured records ----------------------------------------------------------------------------


def test_an_empty_value_is_a_missing_reading() -> None:
    """An event without a value in the file is kept, with None."""
    rows = rows_of(SLICES["pvanalytics"])
    events = list(load_slice("pvanalytics").events())
    values = [event.fields["ac_power_normalized"] for event in events]
    assert values == [
        float(row["value_normalized"] or "nan") if row["value_normalized"] else None for row in rows
    ]
    assert (len(values), values.count(None)) == (300, 264)
    assert [event.time for event in events] == [parse_time(row["timestamp"]) for row in rows]
    assert events[0].key == "pvanalytics/inverter/2173"


def test_the_loggers_number_for_none_is_a_missing_reading() -> None:
    """-1,000,000 kW becomes None where it stands, and every other value stays."""
    rows = rows_of(SLICES["solar-data-tools"])
    events = list(load_slice("solar-data-tools").events())
    values = [event.fields["ac_power_kw"] for event in events]
    assert [row["meas_val_f"] for row in rows].count("-1000000.0") == 1
    assert values == [
        None if row["meas_val_f"] == "-1000000.0" else float(row["meas_val_f"]) for row in rows
    ]
    (missing,) = (event.time for event in events if None in event.fields.values())
    assert missing == parse_time("2016-04-05T13:30:00Z")


@pytest.mark.parametrize(
    ("name", "gap_ms"),
    [("river", 32 * HOUR_MS), ("solar-data-tools", 10 * HOUR_MS)],
)
def test_a_gap_stays_a_gap(name: str, gap_ms: int) -> None:
    """No reading is made up for a time that the record lacks, wherever the record is put."""
    for start in (None, "2026-07-01T00:00:00Z"):
        dataset = load_slice(name, start=start)
        times = [event.time for event in dataset.events()]
        assert max(b - a for a, b in pairwise(times)) >= gap_ms
        assert min(b - a for a, b in pairwise(times)) == dataset.step_ms
        assert len(times) == dataset.count == len(rows_of(SLICES[name]))


def test_zones_of_a_record_are_respected() -> None:
    """A time with an offset is that moment in UTC."""
    first = next(load_slice("river").events())
    assert first == Event(
        "river/pipeline/water-flow", parse_time("2022-04-18T23:00:00Z"), {"flow_lps": 101.3}
    )


def test_a_part_of_a_record_is_by_time() -> None:
    """skip_days and days choose by time, not by count of readings: gaps take part."""
    whole = list(load_slice("river").events())
    first = whole[0].time + 4 * DAY_MS
    part = list(load_slice("river", skip_days=4, days=3).events())
    assert part == [event for event in whole if first <= event.time < first + 3 * DAY_MS]
    assert len(part) < 3 * 24
    assert list(load_slice("river", days=1000).events()) == whole


def test_copies_of_a_record_keep_its_times() -> None:
    """A copied device reports at the record's times, with the record's values from elsewhere."""
    series = series_of(load_slice("river", devices=3))
    assert list(series) == [
        "river-2/pipeline/water-flow",
        "river-3/pipeline/water-flow",
        "river/pipeline/water-flow",
    ]
    one, two, three = series.values()
    assert one != two != three != one
    by_value = [sorted(str(reading) for reading in readings) for readings in (one, two, three)]
    assert by_value[0] == by_value[1] == by_value[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Time,Water flow [l/s]\n", "empty"),
        ("Time,Flow\n2022-04-19T01:00:00+02:00,1\n", "cannot be read"),
        ("Time,Water flow [l/s]\nyesterday,1\n", "cannot be read"),
        ("Time,Water flow [l/s]\n2022-04-19T01:00:00+02:00,much\n", "cannot be read"),
        ("Time,Water flow [l/s]\n,1\n2022-04-19T01:00:00+02:00,2\n", "without a time"),
        (
            "Time,Water flow [l/s]\n2022-04-19T01:00:00+02:00,1\n2022-04-19T01:00:00+02:00,2\n",
            "out of order",
        ),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """A file that cannot be read as the record it is said to be is a ConfigError naming it."""
    file = tmp_path / "flow.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason) as caught:
        load("river", path=file)
    assert str(file) in str(caught.value)


def test_a_time_that_a_record_does_not_have_is_refused() -> None:
    """Skipping the whole record is an error that says how long it is."""
    with pytest.raises(ConfigError, match="it is 11d"):
        load_slice("river", skip_days=30)


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simbench", {}),
        ("simbench", {"devices": 100}),
        ("simbench", {"devices": 2000, "days": 1}),
        ("solar-data-tools", {"devices": 3}),
        pytest.param("wntr", {"variant": "Net1", "days": 1}, marks=wntr_installed),
    ],
)
def test_a_table_has_the_events_row_by_row(name: str, options: dict[str, object]) -> None:
    """table() is events() in columns; what a device does not report, and None, is null."""
    dataset = load(**options) if name == "wntr" else load_slice(name, **options)  # type: ignore[arg-type]
    table = dataset.table()
    events = list(dataset.events())
    assert table.num_rows == len(events) == dataset.count
    assert table["key"].to_pylist() == [event.key for event in events]
    assert table["time"].to_pylist() == [event.time for event in events]
    assert [str(kind) for kind in table.schema.types[:2]] == ["string", "int64"]
    for field in table.column_names[2:]:
        assert table[field].to_pylist() == [event.fields.get(field) for event in events]


# --- names, packages, errors ---------------------------------------------------------------------


def test_an_unknown_dataset_is_an_error_that_lists_the_names() -> None:
    """A misspelt dataset tells what there is."""
    with pytest.raises(ConfigError, match="no dataset 'epanet'") as caught:
        load("epanet")
    assert all(name in caught.value.hint for name in datasets.names())
    with pytest.raises(ConfigError, match="no dataset 'epanet'"):
        datasets.variants("epanet")


def test_the_default_dataset_is_the_first_of_the_names() -> None:
    """names() and variants() begin with what load() takes by itself."""
    assert datasets.names() == ("wntr", "simbench", "pvanalytics", "solar-data-tools", "river")
    assert datasets.variants("wntr")[0] == "Net3"
    assert datasets.variants("simbench")[0] == "1-LV-rural2--0-sw"
    assert datasets.variants("pvanalytics") == ("2173", "7539")


@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_missing_package_names_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its package a dataset fails with the pip command for its extra."""
    package, _, extra = PACKAGES[name]
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=package) as caught:
        load(name)
    assert f"pip install 'standpipe[{extra}]'" in caught.value.hint


def test_a_missing_simulator_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without wntr the default dataset fails with the pip command for the demo."""
    monkeypatch.setitem(sys.modules, "wntr", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="wntr") as caught:
        load()
    assert "pip install 'standpipe[demo]'" in caught.value.hint


@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_package_is_read_without_being_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are found in the installed package, whose code does not run."""
    package, place, _ = PACKAGES[name]
    installed = tmp_path / package / place
    installed.parent.mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')\n")
    copy = shutil.copytree if SLICES[name].is_dir() else shutil.copy
    copy(SLICES[name], installed)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    variant = "LV1.101" if name == "simbench" else None
    found = load(name, variant=variant, days=None)
    assert list(found.events()) == list(load_slice(name).events())


@pytest.mark.parametrize("name", list(SLICES))
def test_only_a_simulation_has_a_step_to_choose(name: str) -> None:
    """A record is never resampled: step is refused."""
    with pytest.raises(ConfigError, match="step is given"):
        load(name, step="1m", path=SLICES[name])


def test_an_unknown_record_is_an_error_that_lists_the_records() -> None:
    """A misspelt record tells what there is."""
    with pytest.raises(ConfigError, match="no record '2174'") as caught:
        load("pvanalytics", variant="2174")
    assert "2173" in caught.value.hint


def test_importing_the_datasets_imports_nothing_heavy() -> None:
    """The command line starts without numpy, pyarrow or wntr, datasets included."""
    code = (
        "import sys; import standpipe.datasets as d; d.names(); d.variants('wntr');"
        "print({'numpy', 'pandas', 'pyarrow', 'wntr'} & set(sys.modules))"
    )
    path = {"PYTHONPATH": str(Path(datasets.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


# --- replay --------------------------------------------------------------------------------------


def some_events(count: int, *, every_ms: int = 1000) -> list[Event]:
    return [Event(f"meter-{n}", n * every_ms, {"flow": float(n)}) for n in range(count)]


async def test_a_replay_at_a_rate_keeps_the_rate() -> None:
    """No event comes before it is due, and the last one not long after."""
    events = some_events(400)
    start = monotonic()
    got: list[Event] = []
    async for burst in replay(events, rate=1000):
        assert burst
        got += burst
        # Event number n is due n milliseconds after the start; the first list is due at once.
        assert len(got) - 1 <= (monotonic() - start) * 1000 + 1
    assert got == events
    assert 0.39 <= monotonic() - start < 0.9


async def test_a_replay_below_the_tick_sends_one_by_one() -> None:
    """A low rate gives lists of one event, evenly spaced."""
    moments = [(monotonic(), len(burst)) async for burst in replay(some_events(4), rate=10)]
    assert [size for _, size in moments] == [1] * 4
    first = moments[0][0]
    for number, (moment, _) in enumerate(moments):
        assert number / 10 - 0.002 <= moment - first < number / 10 + 0.5


async def test_a_replay_catches_up_after_a_stall() -> None:
    """Time lost by the reader is made up for: the whole takes no longer than the rate says."""
    start = monotonic()
    sizes: list[int] = []
    async for burst in replay(some_events(400), rate=1000):
        sizes.append(len(burst))
        if len(sizes) == 2:
            await asyncio.sleep(0.3)
    assert sum(sizes) == 400
    assert max(sizes) >= 290
    assert 0.39 <= monotonic() - start < 0.65


async def test_a_replay_at_a_high_rate_is_not_held_up_by_its_tick() -> None:
    """A rate above a full list per tick is kept: the next list follows without a pause."""
    events = some_events(40 * REPLAY_EVENTS_MAX)
    start = monotonic()
    sizes = [len(burst) async for burst in replay(events, rate=4_000_000)]
    assert sum(sizes) == len(events)
    assert 0.049 <= monotonic() - start < 0.35


async def test_a_replay_at_a_speed_follows_the_events_times() -> None:
    """Each step comes when its time says, sped up; a gap in the record is a pause."""
    dataset = load_slice("river", skip_days=4.5, days=3)
    steps = list(dataset.steps())
    speed = 72 * HOUR_MS / 1000 / 0.6
    start = monotonic()
    got: list[Event] = []
    pauses: list[float] = []
    async for burst in replay(dataset, speed=speed):
        pauses.append(monotonic() - start)
        got += burst
        due = (burst[-1].time - dataset.start_ms) / 1000 / speed
        assert due - 0.002 <= pauses[-1] < due + 0.5
    assert got == [event for step in steps for event in step]
    gap = max(b[0].time - a[0].time for a, b in pairwise(steps)) / 1000 / speed
    assert gap > 0.2
    assert max(b - a for a, b in pairwise(pauses)) >= gap - 0.05


async def test_a_replay_without_a_pace_pauses_for_nobody_and_lets_others_run() -> None:
    """Flat out the lists are full and follow each other, and the event loop still gets its turn."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    events = some_events(3 * REPLAY_EVENTS_MAX + 1)
    lists = [burst async for burst in replay([events[:7], [], events[7:]])]
    running.cancel()
    assert [len(burst) for burst in lists] == [*[REPLAY_EVENTS_MAX] * 3, 1]
    assert [event for burst in lists for event in burst] == events
    assert turns >= 3


async def test_a_replay_at_a_speed_that_cannot_be_kept_is_bounded() -> None:
    """Steps that are all due come in lists of bounded size, each step whole."""
    events = some_events(REPLAY_EVENTS_MAX + 10, every_ms=0)
    lists = [burst async for burst in replay(events, speed=1e9)]
    assert [len(burst) for burst in lists] == [REPLAY_EVENTS_MAX, 10]
    whole = [burst async for burst in replay([events], speed=1)]
    assert whole == [events]


@pytest.mark.parametrize("source", [[], [[]]])
async def test_a_replay_of_nothing_ends(source: list[list[Event]]) -> None:
    """Without events there is no list."""
    for pace in ({}, {"rate": 1.0}, {"speed": 1.0}):
        assert [burst async for burst in replay(source, **pace)] == []


@pytest.mark.parametrize(
    "pace",
    [{"rate": 0.0}, {"rate": -1.0}, {"speed": 0.0}, {"speed": math.inf}, {"rate": math.nan}],
)
def test_a_pace_that_is_none_is_refused(pace: dict[str, float]) -> None:
    """A rate or a speed is a finite number above 0."""
    with pytest.raises(ConfigError, match="is ") as caught:
        replay([], **pace)
    assert "above 0" in caught.value.hint


def test_two_paces_are_refused() -> None:
    """A replay follows a rate or a speed, not both."""
    with pytest.raises(ConfigError, match="both rate and speed"):
        replay([], rate=1, speed=1)
