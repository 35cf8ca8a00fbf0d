"""The sink that writes to a table of a PostgreSQL database, with COPY.

A batch is copied straight into the table. When one of its events is there already, PostgreSQL
refuses the whole COPY; the batch then goes by way of a temporary table and ``ON CONFLICT DO
NOTHING``. That is rare: it takes a worker that died between the commit and the acknowledgement.

Source: https://www.postgresql.org/docs/current/sql-copy.html,
https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from standpipe.errors import (
    ConfigError,
    MissingExtraError,
    SinkError,
    SinkRefusedError,
    SinkUnreachableError,
    SinkUnusableError,
)
from standpipe.event import Batch
from standpipe.limits import (
    POSTGRES_NAME_BYTES_MAX,
    SINK_BUSY_MS_MAX,
    SINK_CONNECT_S_MAX,
    SINK_SILENCE_MS_MAX,
)
from standpipe.sinks.rows import (
    ID_COLUMNS,
    PRIMARY_KEY,
    Kind,
    Rows,
    Rules,
    another_event,
    identity_of,
    rows_of,
)
from standpipe.sinks.sink import Sink

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

_RULES: Final = Rules(
    name_bytes_max=POSTGRES_NAME_BYTES_MAX, is_case_blind=False, takes_nul=False, takes_nan=True
)
_TYPES: Final = {
    Kind.INT: "bigint",
    Kind.FLOAT: "double precision",
    Kind.TEXT: "text",
    Kind.BOOL: "boolean",
    Kind.BYTES: "bytea",
}
_KINDS: Final = {
    "int8": Kind.INT,
    "float8": Kind.FLOAT,
    "text": Kind.TEXT,
    "varchar": Kind.TEXT,
    "bool": Kind.BOOL,
    "bytea": Kind.BYTES,
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_UNIQUE_INDEXES: Final = """
    SELECT array_agg(a.attname::text)
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = %s::regclass AND i.indisunique AND i.indisvalid AND i.indimmediate
        AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indexrelid
"""
_COLUMNS: Final = """
    SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_BEGIN: Final = """
    SELECT set_config('lock_timeout', %(lock)s, true),
        set_config('idle_in_transaction_session_timeout', %(idle)s, true),
        CASE WHEN current_setting('synchronous_commit') = 'off'
            THEN set_config('synchronous_commit', 'on', true) END
"""
"""What holds for each of our transactions. A commit that is not on the disk yet must not be
acknowledged; the stricter levels are left. And a worker that is stopped, or whose machine is gone,
must not keep those waiting who have taken over its events."""

_REFUSED_STATES: Final = frozenset({"42804", "54000", "54001", "54011"})
"""Wrong type of a column the user made; a row or an index entry that is too large or too wide."""


class PostgresSink(Sink):
    """Keeps events in a table of a PostgreSQL database.

    Args:
        conninfo: A URL that libpq reads; its passwords may stand in ``~/.pgpass``.
        table: The table, or ``schema.table``; created where it does not exist.
        source: As for every :class:`Sink`.

    Raises:
        ConfigError: libpq cannot read the URL.
        MissingExtraError: psycopg is not installed.
    """

    def __init__(self, conninfo: str, *, table: str, source: str | None = None) -> None:
        super().__init__(source=source)
        psycopg = _psycopg()
        from psycopg.conninfo import conninfo_to_dict

        try:
            self._parameters: dict[str, Any] = conninfo_to_dict(conninfo)
        except psycopg.Error as error:
            raise ConfigError(f"the sink's URL cannot be read: {error}") from None
        self._names = table.split(".", 1)
        self._identity: tuple[str, ...] = PRIMARY_KEY
        self._connection: psycopg.Connection[Any] | None = None

    def __str__(self) -> str:
        # Without user and password.
        host = self._parameters.get("host", "localhost")
        return (
            f"table {'.'.join(self._names)!r} of {self._parameters.get('dbname', '')!r} on {host}"
        )

    @property
    def _table(self) -> sql.Identifier:
        from psycopg import sql

        return sql.Identifier(*self._names)

    # --- opening ---------------------------------------------------------------------------------

    @property
    def _is_open(self) -> bool:
        return self._connection is not None and not self._connection.closed

    def _open(self) -> None:
        if self._is_open:
            return
        import psycopg

        defaults: dict[str, Any] = {
            "connect_timeout": SINK_CONNECT_S_MAX,
            "tcp_user_timeout": SINK_SILENCE_MS_MAX,
            "keepalives_idle": SINK_SILENCE_MS_MAX // 1000,
            "application_name": "standpipe",
        }
        with self._errors():
            connection = psycopg.connect(
                **(defaults | self._parameters),
                autocommit=True,
                # What a pooler between may not keep from one transaction to the next.
                prepare_threshold=None,
            )
        try:
            with self._errors():
                self._make_table(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _make_table(self, connection: psycopg.Connection[Any]) -> None:
        from psycopg import sql

        types = {Kind.INT: "bigint NOT NULL", Kind.TEXT: "text NOT NULL"}
        types_of = {
            name: types.get(kind, "timestamptz NOT NULL") for name, kind in ID_COLUMNS.items()
        }
        types_of |= {"key": "text", "shard": "integer NOT NULL", "entry_index": "integer NOT NULL"}
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(name), _type(type_))
            for name, type_ in types_of.items()
        ]
        create = sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({}))").format(
            self._table, sql.SQL(", ").join(columns), _names(PRIMARY_KEY)
        )
        regclass = self._table.as_string(connection)
        with connection.transaction(), connection.cursor() as cursor:
            self._begin(cursor)
            cursor.execute("SELECT to_regclass(%s)", (regclass,))
            if cursor.fetchone() == (None,):
                self._lock_changes(cursor)
                cursor.execute(create)
            known = self._columns(cursor)
            if missing := [name for name in ID_COLUMNS if name not in known]:
                raise SinkUnusableError(f"{self} has no column {', '.join(missing)}")
            cursor.execute(_UNIQUE_INDEXES, (regclass,))
            keys = [set(names) for (names,) in cursor.fetchall()]
        self._identity = identity_of(keys, str(self))

    def _begin(self, cursor: psycopg.Cursor[Any]) -> None:
        limits = {"lock": f"{SINK_BUSY_MS_MAX}ms", "idle": f"{SINK_SILENCE_MS_MAX}ms"}
        cursor.execute(_BEGIN, limits)

    def _lock_changes(self, cursor: psycopg.Cursor[Any]) -> None:
        """Let one process at a time change the table: CREATE … IF NOT EXISTS alone can collide."""
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            (f"standpipe sink {'.'.join(self._names)}",),
        )

    def _columns(self, cursor: psycopg.Cursor[Any]) -> dict[str, Kind]:
        cursor.execute(_COLUMNS, (self._table.as_string(cursor),))
        return {name: _KINDS.get(type_, Kind.OTHER) for name, type_ in cursor.fetchall()}

    # --- writing ---------------------------------------------------------------------------------

    def _store(self, batch: Batch, stream: str) -> None:
        import psycopg

        with self._errors():
            try:
                self._transact(batch, stream, self._copy)
            except psycopg.errors.UniqueViolation:
                # Some of them are there. It may also be an index of the user's own; then the merge
                # meets it again.
                self._transact(batch, stream, self._merge)

    def _transact(
        self, batch: Batch, stream: str, put: Callable[[psycopg.Cursor[Any], Rows], None]
    ) -> None:
        """One transaction; before it another that changes the table, where the batch needs it."""
        from psycopg import sql

        connection = self._connection
        assert connection is not None
        while True:
            with connection.transaction(), connection.cursor() as cursor:
                self._begin(cursor)
                # The lock that COPY takes. With it the columns stay what is read here.
                cursor.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(self._table))
                rows = rows_of(batch, stream, self._columns(cursor), _RULES)
                if not rows.new and not rows.widened:
                    put(cursor, rows)
                    return
            with connection.transaction(), connection.cursor() as cursor:
                self._begin(cursor)
                self._change(cursor, rows)

    def _change(self, cursor: psycopg.Cursor[Any], rows: Rows) -> None:
        """Add columns, and make those of whole numbers take others."""
        from psycopg import sql

        self._lock_changes(cursor)
        known = self._columns(cursor)
        for name, kind in rows.new.items():
            if name not in known:
                cursor.execute(
                    sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                        self._table, sql.Identifier(name), _type(_TYPES[kind])
                    )
                )
        for name in rows.widened:
            if known.get(name) is not Kind.INT:
                continue
            column = sql.Identifier(name)
            cursor.execute(sql.SQL("LOCK TABLE {}").format(self._table))
            cursor.execute(
                sql.SQL(
                    "SELECT {0} FROM {1} "
                    "WHERE {0}::double precision::numeric <> {0}::numeric LIMIT 1"
                ).format(column, self._table)
            )
            if (found := cursor.fetchone()) is not None:
                raise SinkRefusedError(
                    f"column {name!r} holds {found[0]}, which floating point numbers would round, "
                    "so that it takes whole numbers alone"
                )
            cursor.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE double precision").format(
                    self._table, column
                )
            )

    def _copy(
        self, cursor: psycopg.Cursor[Any], rows: Rows, into: sql.Identifier | None = None
    ) -> None:
        from psycopg import sql

        times, *others = rows.columns
        moments = [_EPOCH + timedelta(milliseconds=ms) for ms in times]
        line = sql.SQL("COPY {} ({}) FROM STDIN").format(into or self._table, _names(rows.names))
        with cursor.copy(line) as copy:
            for row in zip(moments, *others, strict=True):
                copy.write_row(row)

    def _merge(self, cursor: psycopg.Cursor[Any], rows: Rows) -> None:
        """Insert those that are not there; require that the others are there with these values."""
        from psycopg import sql

        stage, names = sql.Identifier("pg_temp", "standpipe_stage"), _names(rows.names)
        cursor.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE standpipe_stage ON COMMIT DROP AS "
                "SELECT {} FROM {} WITH NO DATA"
            ).format(names, self._table)
        )
        self._copy(cursor, rows, stage)
        identity = _names(self._identity)
        cursor.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT ({}) DO NOTHING").format(
                self._table, names, names, stage, identity
            )
        )
        both = sql.SQL(
            "SELECT {} FROM {} s JOIN {} t USING ({}) WHERE ROW({}) IS DISTINCT FROM ROW({})"
        )
        cursor.execute(
            both.format(
                _names(rows.names, "s"),
                stage,
                self._table,
                identity,
                _names(rows.names, "s"),
                _names(rows.names, "t"),
            )
            + sql.SQL(" LIMIT 1")
        )
        if (row := cursor.fetchone()) is not None:
            raise SinkRefusedError(another_event(rows.names, row))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- errors ----------------------------------------------------------------------------------

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Turn psycopg's errors into ours."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise _sink_error(error) from error


def _sink_error(error: psycopg.Error) -> SinkError:
    import psycopg

    # psycopg says it in several lines, and the log has one for each warning.
    text = " ".join(str(error).split())
    is_about_the_row = isinstance(error, (psycopg.DataError, psycopg.IntegrityError))
    if is_about_the_row or error.sqlstate in _REFUSED_STATES:
        return SinkRefusedError(f"PostgreSQL refuses the row: {text}")
    if isinstance(error, (psycopg.ProgrammingError, psycopg.NotSupportedError)):
        return SinkUnusableError(text)
    return SinkUnreachableError(text)


def _names(names: list[str] | tuple[str, ...], table: str | None = None) -> sql.Composed:
    from psycopg import sql

    parts = [sql.Identifier(*([table] if table else []), name) for name in names]
    return sql.SQL(", ").join(parts)


def _type(name: str) -> sql.SQL:
    from psycopg import sql

    # One of the types in this file.
    return sql.SQL(name)  # pyright: ignore[reportArgumentType]


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            f"the PostgreSQL sink needs psycopg: {error}",
            hint='Install it: pip install "standpipe[postgres]".',
        ) from error
    return psycopg
