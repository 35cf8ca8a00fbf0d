"""The settings: where values come from, what is refused, and what the page says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe import codec, limits
from standpipe.config import (
    CODECS,
    SETTINGS,
    WHEN_FULL,
    Setting,
    Settings,
    describe,
    load,
    mask_password,
    page,
    parse_size,
)
from standpipe.errors import ConfigError
from standpipe.producer.level import Level
from standpipe.stream import Definition

BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that no settings file of the checkout is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "standpipe.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def refused(**arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(**{"env": {}, **arguments})
    assert caught.value.hint, "every refusal names the way out"
    return caught.value


# --- where values come from ----------------------------------------------------------------------


def test_without_anything_given_all_settings_have_their_defaults() -> None:
    """Nothing given means the defaults of the table, each of them shown as such."""
    settings = load(env={})
    assert settings == Settings()
    assert settings.url == "redis://127.0.0.1:6390"
    assert settings.buffer_bytes_max == limits.BUFFER_BYTES_MAX
    assert (settings.shards, settings.codec, settings.data, settings.concurrency) == (None,) * 4
    assert {settings.origin(name) for name in BY_NAME} == {"default"}


def test_flags_win_over_environment_over_file_over_defaults(folder: Path) -> None:
    """The nearest source decides, each setting by itself, and origin() says which it was."""
    write(folder, "idle_ms_min = 1000\ndeliveries_max = 2\nshards = 3\n")
    settings = load(
        {"idle_ms_min": "3s", "deliveries_max": None},
        env={"STANDPIPE_IDLE_MS_MIN": "2s", "STANDPIPE_DELIVERIES_MAX": "7"},
    )
    assert (settings.idle_ms_min, settings.deliveries_max, settings.shards) == (3000, 7, 3)
    assert settings.origin("idle_ms_min") == "the flag --idle-ms-min"
    assert settings.origin("deliveries_max") == "the environment variable STANDPIPE_DELIVERIES_MAX"
    assert settings.origin("shards") == "shards in the file standpipe.toml"


def test_the_process_environment_is_read_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without ``env`` the variables of this process count."""
    monkeypatch.setenv("STANDPIPE_SHARDS", "5")
    assert load().shards == 5
    assert load(env={}).shards is None


def test_the_file_is_the_given_one_else_the_named_one_else_the_one_here(folder: Path) -> None:
    """--config beats STANDPIPE_CONFIG beats standpipe.toml; only one file is read."""
    write(folder, "shards = 1\ndeliveries_max = 9")
    named = write(folder, "shards = 2", "named.toml")
    given_file = write(folder, "shards = 3", "given.toml")
    assert load(env={}).shards == 1
    settings = load(env={"STANDPIPE_CONFIG": str(named)})
    assert (settings.shards, settings.deliveries_max) == (2, limits.DELIVERIES_MAX)
    assert load(env={"STANDPIPE_CONFIG": str(named)}, file=given_file).shards == 3
    assert load(env={"STANDPIPE_CONFIG": ""}).shards == 1


def test_a_file_that_was_asked_for_must_be_there() -> None:
    """A named file that is missing is an error; the default one may be missing."""
    error = refused(file=Path("none.toml"))
    assert "none.toml" in error.message
    assert "STANDPIPE_CONFIG" in error.hint
    assert "other.toml" in refused(env={"STANDPIPE_CONFIG": "other.toml"}).message


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    """Compose files and unit files pass empty variables on; they must not be values."""
    assert load(env={"STANDPIPE_URL": "", "STANDPIPE_SHARDS": "  "}) == Settings()


def test_variables_that_are_no_settings_are_left_alone() -> None:
    """Kubernetes and the tests set variables of their own that begin alike."""
    env = {"STANDPIPE_PORT": "tcp://10.0.0.1:6390", "STANDPIPE_SERVICE_HOST": "10.0.0.1"}
    assert load(env=env) == Settings()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_no_setting_has_a_name_that_kubernetes_sets(setting: Setting) -> None:
    """A pod beside a service called standpipe gets STANDPIPE_PORT and the like."""
    assert setting.name not in {"port", "host", "service"}
    assert not setting.name.startswith(("port_", "service_"))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_read_from_every_source(folder: Path, setting: Setting) -> None:
    """Each row of the table works as a key, as a variable and as a flag."""
    text, value = {
        "url": ("rediss://h:1", "rediss://h:1"),
        "path": ("/somewhere/else", Path("/somewhere/else")),
        "place": ("s3://bucket/readings", "s3://bucket/readings"),
        "integer": ("17", 17),
        "duration": ("17s", 17_000),
        "size": ("17MiB", 17 * 2**20),
        "level": ("fsync,replicas=2", "fsync,replicas=2"),
        "choice": (setting.choices[-1:] or ("",))[0:1] * 2,
    }[setting.kind]
    # Large enough for any block, so that only the setting in question matters.
    room = {} if setting.name == "buffer_bytes_max" else {"STANDPIPE_BUFFER_BYTES_MAX": "1GiB"}
    from_env = load(env={setting.env: text, **room})
    from_flag = load({setting.name: text}, env=room)
    write(folder, f'{setting.name} = "{text}"')
    from_file = load(env=room)
    for settings in (from_env, from_flag, from_file):
        assert getattr(settings, setting.name) == value
        assert setting.name in settings.origins


def test_paths_start_at_the_file_that_names_them(folder: Path) -> None:
    """A relative data folder does not depend on where the command is called."""
    (folder / "etc").mkdir()
    file = write(folder / "etc", 'data = "queue"')
    assert load(env={}, file=file).data == folder / "etc" / "queue"
    assert load(env={"STANDPIPE_DATA": "queue"}).data == Path("queue")
    assert load(env={}, file=write(folder / "etc", 'spool = "out.spool"')).spool == (
        folder / "etc" / "out.spool"
    )
    assert load({"data": Path("~/queue")}, env={}).data == Path.home() / "queue"
    absolute = write(folder, 'data = "/var/queue"')
    assert load(env={}, file=absolute).data == Path("/var/queue")


# --- how values are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [("30s", 30_000), ("500ms", 500), ("1h30m", 5_400_000), (" 2 m ", 120_000), ("1500", 1500)],
)
def test_durations_have_units_or_are_milliseconds(text: str, ms: int) -> None:
    """A duration is read alike from text with a unit, digits and a TOML integer."""
    assert BY_NAME["idle_ms_min"].read(text) == ms
    assert BY_NAME["idle_ms_min"].read(ms) == ms


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65_536),
        ("0", 0),
        ("64KiB", 65_536),
        ("64 kib", 65_536),
        ("1.5MiB", 1_572_864),
        ("2GiB", 2**31),
        ("64kB", 64_000),
        ("3MB", 3_000_000),
        ("1GB", 10**9),
        ("12B", 12),
        (4096, 4096),
    ],
)
def test_sizes_have_units_or_are_bytes(text: str | int, size: int) -> None:
    """KiB, MiB, GiB go by 1024, kB, MB, GB by 1000, and no unit means bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "1e6", "-1", "1,5MiB", "1TiB2", -1])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    """Anything else is an error that names the setting and shows how sizes are written."""
    with pytest.raises(ConfigError, match="buffer") as caught:
        parse_size(text, name="buffer")
    assert "64MiB" in caught.value.hint


@pytest.mark.parametrize("kind", ["duration", "size", "integer"])
@given(number=st.integers(1, 10**14))
def test_a_shown_number_reads_back_as_itself(kind: Any, number: int) -> None:
    """What is printed can be pasted into the file: show() loses nothing."""
    setting = Setting("x", kind, None, "")
    assert setting.read(setting.show(number)) == number


@pytest.mark.parametrize(("given_text", "level"), [("INFO", "info"), (" Debug ", "debug")])
def test_choices_do_not_depend_on_case(given_text: str, level: str) -> None:
    """LOG_LEVEL=INFO is how other programs write it."""
    assert load(env={"STANDPIPE_LOG_LEVEL": given_text}).log_level == level


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("idle_ms_min", "30 parsecs", "not a duration"),
        ("idle_ms_min", "10ms", "10ms"),
        ("idle_ms_min", -5, "-5"),
        ("drain_ms_max", "-1", "-1"),
        ("deliveries_max", "five", "not a whole number"),
        ("deliveries_max", "0", "0"),
        ("deliveries_max", 2.5, "2.5"),
        ("deliveries_max", "2.5", "not a whole number"),
        ("deliveries_max", "_", "not a whole number"),
        ("deliveries_max", True, "True"),
        ("shards", 257, "257"),
        ("buffer_bytes_max", "64 megs", "not a size"),
        ("event_bytes_max", "0", "0"),
        ("codec", "row", "row"),
        ("codec", 3, "not text"),
        ("log_level", "loud", "loud"),
        ("acknowledge", "disk", "disk"),
        ("acknowledge", "fsync,replicas=0", "replicas=0"),
        ("when_full", "wait", "wait"),
        ("max_len", "0", "0"),
        ("max_bytes", "63KiB", "63KiB"),
        ("spool", "", "not text"),
        ("url", "localhost:6379", "not a URL"),
        ("url", 6379, "not text"),
        ("data", "", "not text"),
        ("data", ["a"], "not text"),
    ],
)
def test_a_wrong_value_names_setting_value_and_source(name: str, value: object, words: str) -> None:
    """The error says which setting, what was given and where, and how to write it."""
    error = refused(flags={name: value})
    assert error.message.startswith(f"{name} is ")
    assert words in error.message
    assert error.message.endswith(f"given by the flag {BY_NAME[name].flag}")


def test_the_source_of_a_wrong_value_is_named_for_file_and_environment(folder: Path) -> None:
    """Who has three places to set a value must be told in which one it is wrong."""
    assert "STANDPIPE_SHARDS" in refused(env={"STANDPIPE_SHARDS": "many"}).message
    write(folder, "shards = 0")
    assert "shards in the file standpipe.toml" in refused().message


def test_a_wrong_value_is_an_error_even_when_it_is_overridden(folder: Path) -> None:
    """A mistake in the file does not wait for the day on which the flag is left out."""
    write(folder, "shards = 0")
    assert "standpipe.toml" in refused(flags={"shards": 2}).message


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("idle_ms", "idle_ms_min"),
        ("shard", "shards"),
        ("buffer-bytes-max", "buffer_bytes_max"),
        ("URL", "url"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_name(
    folder: Path, key: str, near: str
) -> None:
    """A misspelt key is never silently without effect."""
    write(folder, f"{key} = 1")
    error = refused()
    assert key in error.message
    assert "standpipe.toml" in error.message
    assert error.hint == f"Did you mean {near}?"


def test_an_unknown_key_near_to_nothing_points_to_the_page(folder: Path) -> None:
    """Where there is no near name the hint leads to the list of all."""
    write(folder, "[zzz]\nqqq = 1")
    assert "docs/settings.md" in refused().hint
    assert "the flags" in refused(flags={"zzz": 1}, file=write(folder, "")).message


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"url = redis://h", "not valid TOML"), (b"url = '\xff'", "not UTF-8")],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, content: bytes, words: str) -> None:
    """A broken file is an error with its name and place, not a traceback."""
    (folder / "standpipe.toml").write_bytes(content)
    error = refused()
    assert "standpipe.toml" in error.message
    assert words in error.message


def test_a_folder_in_place_of_the_file_is_an_error(folder: Path) -> None:
    """An operating system error keeps its reason."""
    assert "directory" in refused(file=folder).message


@pytest.mark.parametrize("name", ["event_bytes_max", "block_bytes_max"])
def test_what_never_fits_into_the_buffer_is_refused(name: str) -> None:
    """A producer would wait for ever for room for a block that is larger than its buffer."""
    error = refused(flags={"buffer_bytes_max": "512KiB", name: "1MiB"})
    assert name in error.message
    assert "--buffer-bytes-max" in error.message


# --- passwords -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user@h:6379", "redis://user@h:6379"),
        ("redis://user:SECRET@h:6379", "redis://user:***@h:6379"),
        ("rediss://:SECRET@h/1?ssl_ca_certs=ca.pem", "rediss://:***@h/1?ssl_ca_certs=ca.pem"),
        ("redis://u:SEC/RET@h:1", "redis://u:***@h:1"),
        ("redis://u:S@CRET?SECRET#@h:1", "redis://u:***@h:1"),
        ("redis+sentinel://u:SECRET@a:1,b:2/main", "redis+sentinel://u:***@a:1,b:2/main"),
        ("u:SECRET@h", "u:***@h"),
        ("//u:SECRET@h", "//u:***@h"),
        ("redis:/u:SECRET@h", "redis:***@h"),
        ("unix:///run/s.sock?password=SECRET&db=1", "unix:///run/s.sock?password=***&db=1"),
        ("redis://h?sentinel_password=SECRET", "redis://h?sentinel_password=***"),
    ],
)
def test_passwords_are_masked_wherever_they_stand(url: str, shown: str) -> None:
    """A URL is shown whole but for its passwords."""
    assert mask_password(url) == shown


@given(
    password=st.builds("{}SECRET{}".format, st.text("x/?#@:%&"), st.text("x/?#@:%&")),
    tail=st.sampled_from(["", "/0", "/0?ssl_ca_certs=a@b", "/main"]),
)
def test_no_password_survives_masking(password: str, tail: str) -> None:
    """However odd the password, nothing of it is shown."""
    assert "SECRET" not in mask_password(f"redis://user:{password}@host:1{tail}")


def test_settings_and_errors_are_printed_without_passwords() -> None:
    """Neither repr, nor show, nor an error gives a password away."""
    settings = load(env={"STANDPIPE_URL": "redis://u:SECRET@h:1"})
    assert settings.url == "redis://u:SECRET@h:1"
    assert "SECRET" not in repr(settings)
    assert "u:***@h:1" in repr(settings)
    assert BY_NAME["url"].show(settings.url) == "redis://u:***@h:1"
    assert "SECRET" not in refused(flags={"url": "//u:SECRET@h"}).message


# --- the table and its page ----------------------------------------------------------------------


def test_the_table_and_the_class_are_the_same_settings() -> None:
    """Every field but origins is a row, with the field's default, a help and limits that hold."""
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "origins"]
    assert [setting.name for setting in SETTINGS] == names
    for setting in SETTINGS:
        assert setting.help.endswith(".")
        assert setting.default is not None or setting.unset, f"{setting.name} explains None"
        if setting.default is not None:
            assert setting.read(setting.default) == setting.default
            assert setting.read(setting.show(setting.default)) == setting.default


def test_the_codecs_of_the_table_are_those_of_the_codec_package() -> None:
    """The names are written twice to save start-up time, so they are compared here."""
    assert CODECS == codec.CODECS


@given(
    text=st.lists(
        st.sampled_from(["memory", " fsync", "replicas=1", "replicas=99 ", "replicas=0"])
        | st.sampled_from(["replicas=100", "replicas=", "disk", "FSYNC", "", "fsync fsync"])
        | st.text(max_size=4),
        min_size=1,
        max_size=3,
    ).map(",".join)
)
def test_the_levels_of_the_table_are_those_that_a_producer_reads(text: str) -> None:
    """The rule is written twice to save start-up time, so both are asked here."""

    def takes(read: Callable[[str], object]) -> bool:
        try:
            read(text)
        except ConfigError:
            return False
        return True

    assert takes(BY_NAME["acknowledge"].read) == takes(Level.parse)


def test_what_a_full_stream_may_do_is_what_a_definition_knows() -> None:
    """So are these words."""
    assert get_args(get_type_hints(Definition)["when_full"]) == WHEN_FULL


def test_settings_cannot_be_changed() -> None:
    """What was loaded stays as it is for the whole run."""
    settings = load(env={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.url = "redis://other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.origins["url"] = "me"  # type: ignore[index]


def test_the_page_has_every_setting_with_variable_flag_and_default() -> None:
    """Whoever looks for a name, a variable or a flag finds it on the page."""
    text = page()
    for row in describe():
        for part in (f"## {row.name}\n", f"`{row.env}`", f"`{row.flag}`", row.default, row.help):
            assert part in text
