"""The URLs of sinks: ``postgres://…``, ``sqlite:path``, ``parquet:folder``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

from standpipe.errors import ConfigError

if TYPE_CHECKING:
    from standpipe.sinks.sink import Sink

TABLE: Final = "readings"
"""The table of a sink whose URL names none."""

_HINT: Final = (
    "Write postgres://user@host/database?table=readings, sqlite:path.db?table=readings or "
    "parquet:folder."
)


def open_sink(url: str) -> Sink:
    """The sink that a URL names; it connects with its first batch, or with ``open()``.

    Args:
        url: ``postgres://user@host/database`` with any parameter of libpq,
            ``sqlite:path.db`` or ``parquet:folder``. All take ``source``, which tells apart
            streams of the same name; the first two ``table``, which may name a schema
            (default ``readings``).

    Raises:
        ConfigError: it is none of these.
    """
    scheme, colon, rest = url.partition(":")
    place, _, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    source = given.pop("source", None) or None
    if not colon or scheme not in ("postgres", "postgresql", "sqlite", "parquet"):
        # A URL may hold a password.
        raise ConfigError(f"no sink has a URL that begins with {scheme[:40]!r}", hint=_HINT)
    if scheme.startswith("postgres"):
        from standpipe.sinks.postgres import PostgresSink

        table = given.pop("table", TABLE)
        rest_of_query = urlencode(given, quote_via=quote)
        conninfo = f"postgresql:{place}" + (f"?{rest_of_query}" if rest_of_query else "")
        return PostgresSink(conninfo, table=_name(table), source=source)
    # sqlite:///absolute/path is how SQLAlchemy writes it.
    path = Path(place.removeprefix("//")).expanduser()
    if not place.strip("/"):
        raise ConfigError(f"{url!r} names no path", hint=_HINT)
    table = given.pop("table", TABLE) if scheme == "sqlite" else ""
    if given:
        raise ConfigError(f"{url!r} has an option that is not known: {', '.join(given)}")
    if scheme == "sqlite":
        from standpipe.sinks.sqlite import SqliteSink

        return SqliteSink(path, table=_name(table), source=source)
    from standpipe.sinks.parquet import ParquetSink

    return ParquetSink(path, source=source)


def _name(table: str) -> str:
    if not table or "\0" in table:
        raise ConfigError(f"table {table!r} is no name", hint=_HINT)
    return table
