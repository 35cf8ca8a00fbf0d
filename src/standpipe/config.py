"""The settings, one table: defaults, file, environment, flags, and the page that documents them.

The table is the class :class:`Settings`: a field is a setting, with its default, its kind, its
limits and its help. A value is looked for in the flags, then in the environment, then in the file,
and is the default otherwise. ``python -m standpipe.config`` prints docs/settings.md.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from standpipe.clock import parse_duration
from standpipe.errors import ConfigError
from standpipe.limits import (
    AGE_MS_MIN,
    BLOCK_BYTES_MAX,
    BLOCK_EVENTS_MAX,
    BUFFER_BYTES_MAX,
    BUFFER_EVENTS_MAX,
    CONCURRENCY,
    DELIVERIES_MAX,
    DRAIN_MS_MAX,
    EVENT_BYTES_MAX,
    IDLE_MS_MIN,
    IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_EVENTS_MAX,
    LEASE_MS,
    LEASE_MS_MIN,
    SEND_DEADLINE_MS,
    SERVER_PORT,
    SHARDS_MAX,
    SPOOL_BYTES_MAX,
    STREAM_BYTES_MIN,
)

FILE_NAME: Final = "standpipe.toml"
FILE_VARIABLE: Final = "STANDPIPE_CONFIG"
# Written again, not imported: msgspec and zstandard come with the codecs and would cost
# `standpipe --help` 40 ms. A test compares the two.
CODECS: Final = ("plain", "rows", "columns")
WHEN_FULL: Final = ("block", "ring")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

Kind = Literal["url", "path", "place", "integer", "duration", "size", "choice", "level"]
T = TypeVar("T")

_WRITTEN: Final[Mapping[Kind, str]] = {
    "url": "URL",
    "path": "path",
    "place": "path or URL",
    "integer": "number",
    "duration": "duration",
    "size": "size",
    "level": "memory, fsync, replicas=N (1 to 99), or fsync,replicas=N",
}
_DURATION_UNITS: Final = (
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
)
_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-z]*)")
# What producer.level reads; a test compares the two.
_LEVEL: Final = re.compile(r"\s*(memory|fsync|replicas=[1-9][0-9]?)\s*")
_SIZE_HINT: Final = "Write bytes, or a number and a unit: 65536, 64KiB, 64MiB, 1GB."


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    Args:
        name: The key in the file; environment variable and flag follow from it.
        kind: How a value is written, and read.
        default: Its value where nobody gives one; None where there is none.
        help: What it decides, in a sentence.
        unset: What None stands for.
        at_least: The smallest number allowed.
        at_most: The largest number allowed; None: no limit.
        choices: The words allowed, for the kind ``choice``.
    """

    name: str
    kind: Kind
    default: object
    help: str
    unset: str = ""
    at_least: int = 1
    at_most: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def env(self) -> str:
        # Kubernetes sets <SERVICE>_PORT, _HOST and _SERVICE_* in every pod beside a service that is
        # called standpipe, so no setting may have such a name; a test sees to it.
        return f"STANDPIPE_{self.name.upper()}"

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def is_path(self, value: str) -> bool:
        """Whether a value is a path, which starts at the folder of the file that it stands in."""
        return self.kind == "path" or (self.kind == "place" and "://" not in value)

    @property
    def allowed(self) -> str:
        """How a value is written and between which limits, for people."""
        if self.kind == "choice":
            return ", ".join(self.choices)
        written = _WRITTEN[self.kind]
        if self.kind in ("url", "path", "place", "level"):
            return written
        if self.at_most is None:
            return f"{written}, at least {self.show(self.at_least)}"
        return f"{written}, {self.show(self.at_least)} to {self.show(self.at_most)}"

    def show(self, value: object) -> str:
        """A value as it would be written in the file, without its password."""
        if value is None:
            return self.unset
        if self.kind in ("url", "place"):
            return mask_password(str(value))
        if isinstance(value, int) and self.kind == "duration":
            return _in_units(value, _DURATION_UNITS)
        if isinstance(value, int) and self.kind == "size":
            return _in_units(value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("", 1)))
        return str(value)

    def read(self, value: object) -> object:
        """Turn what stands in a file, a variable or a flag into the setting's value.

        Raises:
            ConfigError: it is none that this setting takes.
        """
        match self.kind:
            case "url":
                return self._read_url(value)
            case "path":
                return Path(self._text(value)).expanduser()
            case "place":
                text = self._text(value)
                return text if "://" in text else str(Path(text).expanduser())
            case "choice":
                return self._read_choice(value)
            case "level":
                return self._read_level(value)
            case "integer" | "duration" | "size":
                return self._read_number(value)

    def _text(self, value: object) -> str:
        if isinstance(value, Path):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{self.name} is {value!r}, not text", hint=f"Give a {self.allowed}.")
        return value.strip()

    def _read_url(self, value: object) -> str:
        text = self._text(value)
        if not re.match(r"[a-z+]+://.", text, re.IGNORECASE):
            raise ConfigError(
                f"{self.name} is {mask_password(text)!r}, not a URL",
                hint=f"Write redis://host:{SERVER_PORT}, rediss:// for TLS.",
            )
        return text

    def _read_choice(self, value: object) -> str:
        text = self._text(value).lower()
        if text not in self.choices:
            raise ConfigError(
                f"{self.name} is {value!r}",
                hint=_did_you_mean(text, self.choices) or f"Choose one of {self.allowed}.",
            )
        return text

    def _read_level(self, value: object) -> str:
        text = self._text(value)
        if not all(_LEVEL.fullmatch(part) for part in text.split(",")):
            raise ConfigError(f"{self.name} is {value!r}", hint=f"Write {self.allowed}.")
        return text

    def _read_number(self, value: object) -> int:
        # bool is an int to Python, but `shards = true` in a file is a mistake.
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ConfigError(
                f"{self.name} is {value!r}, not a {_WRITTEN[self.kind]}",
                hint=f"Give a {self.allowed}.",
            )
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9_]{1,30}\s*", value):
            number = _to_int(value)
        elif self.kind == "duration":
            number = parse_duration(value, name=self.name) if isinstance(value, str) else value
        elif self.kind == "size":
            number = parse_size(value, name=self.name) if isinstance(value, str) else value
        else:
            number = value if isinstance(value, int) else None
        if number is None:
            raise ConfigError(
                f"{self.name} is {value!r}, not a whole number", hint=f"Give a {self.allowed}."
            )
        if number < self.at_least or (self.at_most is not None and number > self.at_most):
            raise ConfigError(f"{self.name} is {value!r}", hint=f"Give a {self.allowed}.")
        return number


def _setting(default: T, kind: Kind, help: str, **more: Any) -> T:
    return field(default=default, metadata={"setting": {"kind": kind, "help": help, **more}})


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The values in force. Printed without passwords."""

    url: str = _setting(
        f"redis://127.0.0.1:{SERVER_PORT}",
        "url",
        "The server: redis://, rediss:// (TLS), unix://, redis+sentinel:// or redis+cluster://. "
        "The default is where `standpipe up` listens.",
    )
    data: Path | None = _setting(
        None,
        "path",
        "The folder in which `standpipe up` keeps the embedded server's data. A relative path in "
        "the file starts at the file's folder.",
        unset="standpipe/server in XDG_DATA_HOME (~/.local/share)",
    )
    shards: int | None = _setting(
        None,
        "integer",
        "Shards of a stream that is first used now. A stream keeps the number it began with.",
        unset="what the stream has; a new one gets 1",
        at_most=SHARDS_MAX,
    )
    codec: str | None = _setting(
        None,
        "choice",
        "How producers write events into entries; readers read all of them.",
        unset="what the stream has; a new one gets rows",
        choices=CODECS,
    )
    max_len: int | None = _setting(
        None,
        "integer",
        "Entries that a stream which is first used now may have (a block of events is one entry), "
        "divided evenly among its shards, each of which may have at least one.",
        unset="what the stream has; a new one has no limit",
    )
    max_bytes: int | None = _setting(
        None,
        "size",
        "Bytes that it may take on the server, likewise; at least 64KiB per shard.",
        unset="what the stream has; a new one has no limit",
        at_least=STREAM_BYTES_MIN,
    )
    max_age: int | None = _setting(
        None,
        "duration",
        "How old its entries may be.",
        unset="what the stream has; a new one keeps any age",
        at_least=AGE_MS_MIN,
    )
    when_full: Literal["block", "ring"] | None = _setting(
        None,
        "choice",
        "What happens at these limits: with block what a group has not acknowledged stays, and "
        "producers wait, or spool; with ring the oldest entries go, read or not, and what each "
        "group loses is counted.",
        unset="what the stream has; a new one blocks",
        choices=WHEN_FULL,
    )
    event_bytes_max: int = _setting(
        EVENT_BYTES_MAX,
        "size",
        "A larger event is refused: keep its payload elsewhere and send the path.",
    )
    block_events_max: int = _setting(
        BLOCK_EVENTS_MAX,
        "integer",
        "Events that a producer puts into one entry. After a crash a whole entry comes again.",
        at_most=1_000_000,
    )
    block_bytes_max: int = _setting(
        BLOCK_BYTES_MAX, "size", "Bytes that a producer puts into one entry, before compression."
    )
    buffer_bytes_max: int = _setting(
        BUFFER_BYTES_MAX,
        "size",
        "Bytes that a producer holds until the server has acknowledged them; then sending waits.",
    )
    buffer_events_max: int = _setting(
        BUFFER_EVENTS_MAX, "integer", "Events that a producer holds, likewise."
    )
    send_deadline_ms: int = _setting(
        SEND_DEADLINE_MS,
        "duration",
        "How long a producer tries to send before it reports the events as failed.",
    )
    acknowledge: str = _setting(
        "memory",
        "level",
        "When an event counts as acknowledged: the server has it in memory, on disk (fsync), or so "
        "many replicas have it. A server that cannot give the level is an error at the start.",
    )
    spool: Path | None = _setting(
        None,
        "path",
        "A file on a local disk that takes what the server does not take. Every producer process "
        "needs one of its own. A relative path in the file starts at the file's folder.",
        unset="no spool",
    )
    spool_bytes_max: int = _setting(
        SPOOL_BYTES_MAX, "size", "Bytes that events may take in the spool; then sending waits."
    )
    archive: str | None = _setting(
        None,
        "place",
        "Where streams are archived: a folder, or any fsspec URL (s3://bucket/readings). A "
        "relative path in the file starts at the file's folder.",
        unset="no archive",
    )
    concurrency: int | None = _setting(
        None,
        "integer",
        "Handlers of one worker that run at the same time.",
        unset=f"{CONCURRENCY} for single events, 1 for batches",
        at_most=100_000,
    )
    in_flight_events_max: int = _setting(
        IN_FLIGHT_EVENTS_MAX,
        "integer",
        "Events that one worker holds without having acknowledged them.",
    )
    in_flight_bytes_max: int = _setting(
        IN_FLIGHT_BYTES_MAX,
        "size",
        "Bytes of the entries that one worker holds, likewise; decoded they take several times as "
        "much memory.",
    )
    idle_ms_min: int = _setting(
        IDLE_MS_MIN,
        "duration",
        "An entry that its worker has not renewed for this long goes to another one.",
        at_least=100,
    )
    deliveries_max: int = _setting(
        DELIVERIES_MAX,
        "integer",
        "Deliveries after which an event that keeps failing becomes a dead letter.",
    )
    lease_ms: int = _setting(
        LEASE_MS,
        "duration",
        "In ordered mode: how long a shard stays with a worker that is not heard of any more.",
        at_least=LEASE_MS_MIN,
    )
    drain_ms_max: int = _setting(
        DRAIN_MS_MAX,
        "duration",
        "How long a stopping worker waits for the handlers that still run.",
        at_least=0,
    )
    log_level: str = _setting(
        "info", "choice", "What is logged to standard error.", choices=LOG_LEVELS
    )
    origins: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, hash=False
    )
    """Setting → where its value comes from; one that is not in it has its default."""

    def origin(self, name: str) -> str:
        """Where a setting's value comes from, for people."""
        return self.origins.get(name, "default")

    def __repr__(self) -> str:
        shown = (f"{row.name}={row.show(getattr(self, row.name))!r}" for row in SETTINGS)
        return f"Settings({', '.join(shown)})"


SETTINGS: Final[tuple[Setting, ...]] = tuple(
    Setting(name=row.name, default=row.default, **row.metadata["setting"])
    for row in fields(Settings)
    if "setting" in row.metadata
)
"""The table itself."""

_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


# --- loading -------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """A value that somebody gave, and where."""

    name: str
    value: object
    origin: str


def load(
    flags: Mapping[str, object] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """The settings in force: flags, else environment, else file, else defaults.

    Args:
        flags: Setting → value, as given on the command line; None: not given there.
        env: The environment; default: this process's. A variable that is set but empty counts as
            not set. Variables that are no settings are left alone.
        file: A TOML file; default: the one that STANDPIPE_CONFIG names, else ``standpipe.toml`` in
            the current folder where there is one.

    Raises:
        ConfigError: a value that is not allowed, a key that is no setting, or a file that cannot be
            read. The message names the setting, the value and where it was given.
    """
    variables: Mapping[str, str] = os.environ if env is None else env
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    # The last one wins, and a wrong value is an error even where a later one would hide it.
    for given in (*_from_file(variables, file), *_from_env(variables), *_from_flags(flags or {})):
        try:
            values[given.name] = _BY_NAME[given.name].read(given.value)
        except ConfigError as error:
            message = f"{error.message}, given by {given.origin}"
            raise ConfigError(message, hint=error.hint) from None
        origins[given.name] = given.origin
    settings = Settings(**values, origins=MappingProxyType(origins))  # pyright: ignore[reportArgumentType]
    _check_together(settings)
    return settings


def _from_file(variables: Mapping[str, str], file: Path | None) -> Iterator[_Given]:
    chosen = file or (Path(named) if (named := variables.get(FILE_VARIABLE, "")) else None)
    path = chosen or Path(FILE_NAME)
    hint = f"Pass another file with --config, or name it in {FILE_VARIABLE}."
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if chosen is None:
            return
        raise ConfigError(f"there is no settings file {path}", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}", hint=hint) from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}",
            hint='A line is `name = value`; text stands in quotes: url = "redis://…".',
        ) from None
    for name, value in table.items():
        _check_name(name, f"the file {path}")
        is_path = isinstance(value, str) and value.strip() and _BY_NAME[name].is_path(value)
        found = path.parent / Path(value.strip()).expanduser() if is_path else value
        yield _Given(name, found, f"{name} in the file {path}")


def _from_env(variables: Mapping[str, str]) -> Iterator[_Given]:
    for setting in SETTINGS:
        if value := variables.get(setting.env, "").strip():
            yield _Given(setting.name, value, f"the environment variable {setting.env}")


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, value in flags.items():
        if value is not None:
            _check_name(name, "the flags")
            yield _Given(name, value, f"the flag {_BY_NAME[name].flag}")


def _check_name(name: str, where: str) -> None:
    if name not in _BY_NAME:
        raise ConfigError(
            f"{where} has {name!r}, which is no setting",
            hint=_did_you_mean(name, tuple(_BY_NAME)) or "docs/settings.md lists all settings.",
        )


def _check_together(settings: Settings) -> None:
    # An event or a block above the buffer could never be sent: send would wait without end.
    for name in ("event_bytes_max", "block_bytes_max"):
        value = getattr(settings, name)
        if value > settings.buffer_bytes_max:
            raise ConfigError(
                f"{name} ({value}, {settings.origin(name)}) is above buffer_bytes_max "
                f"({settings.buffer_bytes_max}, {settings.origin('buffer_bytes_max')})",
                hint="Raise buffer_bytes_max, best to several times as much.",
            )


# --- reading and showing values ------------------------------------------------------------------


def parse_size(value: str | int, *, name: str = "size") -> int:
    """Turn ``"64MiB"`` into bytes; an int is bytes already.

    Args:
        value: A number with a unit (``B kB MB GB`` in steps of 1000, ``KiB MiB GiB`` of 1024), or
            bytes.
        name: The setting it belongs to, for the error.

    Raises:
        ConfigError: not a size, or negative.
    """
    if isinstance(value, int):
        if value < 0:
            raise ConfigError(f"{name} is {value} bytes, below zero", hint=_SIZE_HINT)
        return value
    found = _SIZE.fullmatch(value.strip().lower())
    if found is None or found[2] not in _SIZE_UNITS:
        raise ConfigError(f"{name} is {value!r}, not a size", hint=_SIZE_HINT)
    return round(float(found[1]) * _SIZE_UNITS[found[2]])


def mask_password(url: str) -> str:
    """The URL with ``***`` for its passwords, to be shown in a log or an error."""
    # To the last @, since passwords are often pasted without percent-encoding. Where an @ stands
    # elsewhere this hides more than the password, never less.
    credentials = r"((?:^(?![a-z+]+://)|//)[^/?#@:]*:).*@"
    masked = re.sub(credentials, r"\1***@", url, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"([?&]\w*password=)[^&#]*", r"\1***", masked, flags=re.IGNORECASE)


def _to_int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _in_units(number: int, units: tuple[tuple[str, int], ...]) -> str:
    """The number in the largest unit that it is a whole multiple of: exact, and read back alike."""
    for unit, size in units:
        if number and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def _did_you_mean(word: str, words: tuple[str, ...]) -> str:
    near = get_close_matches(word.lower().replace("-", "_"), words, n=1)
    return f"Did you mean {near[0]}?" if near else ""


# --- the documented page -------------------------------------------------------------------------


class Described(NamedTuple):
    """A setting as docs/settings.md shows it."""

    name: str
    default: str
    allowed: str
    env: str
    flag: str
    help: str


def describe() -> list[Described]:
    """All settings in the order of the table, as text for people."""
    return [
        Described(row.name, row.show(row.default), row.allowed, row.env, row.flag, row.help)
        for row in SETTINGS
    ]


_PAGE_HEAD: Final = f"""\
# Settings

<!-- Generated by `make docs` from src/standpipe/config.py; edit it there. -->

A setting is looked for in this order; the first place that has it decides:

1. the flag on the command line: `--idle-ms-min 10s`
2. the environment: `STANDPIPE_IDLE_MS_MIN=10s`; a variable that is set but empty counts as not set
3. the file `{FILE_NAME}` in the current folder, or the one given with `--config` or in
   `{FILE_VARIABLE}`: `idle_ms_min = "10s"`
4. the default

The file is TOML, flat, with the names below as keys. A key that is no setting is an error, and so
is a wrong value even where another place overrides it.

```toml
url = "redis://127.0.0.1:{SERVER_PORT}"
idle_ms_min = "10s"
buffer_bytes_max = "128MiB"
```

A duration is a number with a unit (`ms`, `s`, `m`, `h`, `d`, `w`; `1h30m` works too); without one
it is milliseconds. A size is a number with a unit (`KiB`, `MiB`, `GiB` in steps of 1024; `kB`,
`MB`, `GB` of 1000); without one it is bytes. Passwords in URLs are never printed.
"""


def page() -> str:
    """docs/settings.md."""
    rows = (
        f"\n## {row.name}\n\n{row.help}\n\n"
        f"- Default: {row.default}\n"
        f"- Allowed: {row.allowed}\n"
        f"- Environment: `{row.env}`\n"
        f"- Flag: `{row.flag}`\n"
        for row in describe()
    )
    return _PAGE_HEAD + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
