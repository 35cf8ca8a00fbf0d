"""Times and durations as people write them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe.clock import format_duration, format_time, now_ms, parse_duration, parse_time
from standpipe.errors import ConfigError
from standpipe.limits import TIME_MS_MAX, TIME_MS_MIN

NOW = 1_700_000_000_000


def test_now_is_the_wall_clock_in_whole_milliseconds() -> None:
    """Between two readings of the system's clock lies now_ms, as an int."""
    before = time.time_ns()
    now = now_ms()
    after = time.time_ns()
    assert type(now) is int
    assert before // 1_000_000 <= now <= after // 1_000_000


# --- durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0s", 0),
        ("1ms", 1),
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("5min", 300_000),
        ("2h", 7_200_000),
        ("7d", 604_800_000),
        ("2w", 1_209_600_000),
        ("1.5s", 1_500),
        ("0.25h", 900_000),
        ("1h30m", 5_400_000),
        ("1d2h3m4s5ms", 93_784_005),
        ("2h 5m", 7_500_000),
        (" 30 S ", 30_000),
        (250, 250),
        (0, 0),
    ],
)
def test_durations_are_read(text: str | int, ms: int) -> None:
    """A number with a unit, several of them joined, or an int of milliseconds."""
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "30",
        "30x",
        "-30s",
        "30s!",
        "x30s",
        "1,5s",
        "1e3s",
        ".5s",
        "1h-5m",
        "9" * 400 + "s",
        "٣s",
        -1,
    ],
)
def test_what_is_no_duration_is_refused(text: str | int) -> None:
    """Everything else is a ConfigError that names the setting and shows how to write one."""
    with pytest.raises(ConfigError, match="idle") as caught:
        parse_duration(text, name="idle")
    assert "30s" in caught.value.hint


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59_999))
def test_joined_units_add_up(days: int, hours: int, minutes: int, ms: int) -> None:
    """A joined duration is the sum of its parts."""
    expected = ((days * 24 + hours) * 60 + minutes) * 60_000 + ms
    assert parse_duration(f"{days}d{hours}h{minutes}m{ms}ms") == expected


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (350, "350ms"),
        (999, "999ms"),
        (1_000, "1.0s"),
        (1_250, "1.2s"),
        (59_999, "59.9s"),
        (60_000, "1m"),
        (61_500, "1m 1s"),
        (3_600_000, "1h"),
        (7_500_000, "2h 5m"),
        (86_400_000, "1d"),
        (90_061_000, "1d 1h"),
    ],
)
def test_durations_are_shown_in_their_two_largest_units(ms: int, text: str) -> None:
    """People see two units at most, never more than has passed."""
    assert format_duration(ms) == text


@given(st.integers(0, 10**12))
def test_a_shown_duration_reads_back_and_is_never_longer(ms: int) -> None:
    """What format_duration writes parse_duration reads, cut off by less than its last unit."""
    read = parse_duration(format_duration(ms))
    assert read <= ms < read + max(3_600_000 if ms >= 86_400_000 else 60_000, 1)


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (NOW, NOW),
        (-1, -1),
        (1.6, 2),
        (float(NOW), NOW),
        ("1700000000000", NOW),
        (" 1700000000000 ", NOW),
        ("-1000000", -1_000_000),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20.123456Z", NOW + 123),
        ("2023-11-14T22:13:20", NOW),
        ("2023-11-14 22:13:20", NOW),
        ("2023-11-14T23:13:20+01:00", NOW),
        ("20231114T221320Z", NOW),
        ("2023-11-14", NOW - 22 * 3_600_000 - 13 * 60_000 - 20_000),
        ("1969-12-31T23:59:59.999Z", -1),
        ("now", NOW),
        ("-2h", NOW - 7_200_000),
        ("-1d12h", NOW - 129_600_000),
        (TIME_MS_MIN, TIME_MS_MIN),
        (TIME_MS_MAX, TIME_MS_MAX),
    ],
)
def test_times_are_read(value: str | float, ms: int) -> None:
    """Milliseconds, ISO 8601 (UTC where no zone is given), now, or so long ago."""
    found = parse_time(value, now=NOW)
    assert type(found) is int
    assert found == ms


def test_relative_times_go_by_the_wall_clock() -> None:
    """Without ``now`` the current time is what -1s goes back from."""
    before = now_ms()
    assert before - 1000 <= parse_time("-1s") <= now_ms() - 1000
    assert before <= parse_time("now") <= now_ms()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2023",
        "12:00",
        "2023-13-01",
        "-2 parsecs",
        "-",
        "1e12",
        "0x10",
        True,
        None,
        float("nan"),
        float("inf"),
        [1],
        {"a": 1},
        b"1700000000000",
        "9" * 5000,
    ],
)
def test_what_is_no_time_is_refused(value: Any) -> None:
    """Anything else, of whatever type, is a ConfigError that names the field."""
    with pytest.raises(ConfigError, match=r"when is .*not a time") as caught:
        parse_time(value, name="when")
    assert "1700000000000" in caught.value.hint


@pytest.mark.parametrize(
    "value",
    [
        TIME_MS_MIN - 1,
        TIME_MS_MAX + 1,
        NOW * 1_000,
        NOW * 1_000_000,
        1e300,
        str(NOW * 1_000),
        "0001-01-01T00:00:00+01:00",
        "-9999w9999w99999w999999w",
    ],
)
def test_times_outside_the_calendar_are_refused(value: Any) -> None:
    """Microseconds taken for milliseconds are an error, not the year 55 000."""
    with pytest.raises(ConfigError, match="outside the years") as caught:
        parse_time(value, now=NOW)
    assert "divided" in caught.value.hint


@given(st.integers(TIME_MS_MIN, TIME_MS_MAX))
def test_a_shown_time_reads_back_as_itself(ms: int) -> None:
    """format_time and parse_time are each other's inverse over all years."""
    assert parse_time(format_time(ms)) == ms


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
)
def test_zones_are_taken_into_account_to_the_millisecond(moment: datetime, minutes: int) -> None:
    """ISO 8601 with any offset is the same instant, cut off to whole milliseconds."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_time(aware.isoformat()) == expected


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (NOW, "2023-11-14T22:13:20.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (TIME_MS_MIN, "0001-01-01T00:00:00.000Z"),
        (TIME_MS_MAX, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_shown_as_iso_8601_in_utc(ms: int, text: str) -> None:
    """Always UTC, always three digits of milliseconds, always four of the year."""
    assert format_time(ms) == text


@pytest.mark.parametrize(
    "value",
    [
        "1" * 31,
        "20260131" + "1" * 30,
        "2026-01-31" + "1" * 30,
        "-" + "9" * 15 + "d",
        "-" + "9" * 400 + "d",
        "-" + ("9" * 15 + "d") * 300,
        "9" * 400,
        10**400,
        pytest.param(10**5000, id="thousands of digits"),
        1e308,
        "0001-01-01T00:00+23:59",
    ],
)
def test_overlong_times_are_refused(value: Any) -> None:
    """Neither a run of digits nor a number beyond all calendars is a time, and the error stays
    readable."""
    with pytest.raises(ConfigError) as caught:
        parse_time(value)
    assert len(str(caught.value)) < 200
    assert caught.value.hint
