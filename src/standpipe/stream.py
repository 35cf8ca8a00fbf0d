"""Stream: one logical log on a server, and the definition that every process shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict, Unpack

import msgspec

from standpipe.codec import PlainLayout, check_codec
from standpipe.errors import ConfigError, StreamNotFoundError
from standpipe.keyspace import archived_key, check_stream_name, definition_key, shard_keys, side_key
from standpipe.limits import (
    AGE_MS_MIN,
    FILL_PERCENT,
    PART_EVENTS_MAX,
    SHARDS_MAX,
    STREAM_BYTES_MIN,
)
from standpipe.wire import Server, script

log: Final = logging.getLogger("standpipe.stream")

_TYPES: Final[Mapping[str, type]] = {
    "float": float,
    "int": int,
    "str": str,
    "bool": bool,
    "bytes": bytes,
}


class Limits(TypedDict, total=False):
    """Limits of a stream; see :class:`Stream` for each."""

    max_len: int | None
    max_bytes: int | None
    max_age_ms: int | None
    when_full: Literal["block", "ring"]


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all processes have to agree on about a stream; kept on the server as JSON.

    A stream without one has one shard, the default names and no schema, as redis-cli makes it.
    """

    version: int = 1
    shards: int = 1
    codec: str = "rows"
    key_field: str = "key"
    time_field: str = "time"
    schema: dict[str, Literal["float", "int", "str", "bool", "bytes"]] | None = None
    max_len: int | None = None
    max_bytes: int | None = None
    when_full: Literal["block", "ring"] = "block"
    max_age_ms: int | None = None

    @property
    def limits(self) -> Limits:
        """What :meth:`Stream.set_limits` may change; all the rest is for the stream's life."""
        return Limits(
            max_len=self.max_len,
            max_bytes=self.max_bytes,
            max_age_ms=self.max_age_ms,
            when_full=self.when_full,
        )

    @property
    def layout(self) -> PlainLayout:
        """How plain entries of this stream are written and read."""
        schema = None if self.schema is None else {k: _TYPES[v] for k, v in self.schema.items()}
        return PlainLayout(key_field=self.key_field, time_field=self.time_field, schema=schema)

    @property
    def entries_max(self) -> int | None:
        """What one shard may have of ``max_len``."""
        return None if self.max_len is None else -(-self.max_len // self.shards)

    @property
    def spare_entries(self) -> int:
        """How many of these retention leaves free for producers, and a run of plain events has at
        most: what needs more would wait for ever where only acknowledged entries are left."""
        if self.entries_max is None:
            return PART_EVENTS_MAX
        share = self.entries_max * (100 - FILL_PERCENT) // 100
        return max(1, share, min(PART_EVENTS_MAX, self.entries_max // 2))

    @property
    def bytes_max(self) -> int | None:
        """What one shard may have of ``max_bytes``."""
        return None if self.max_bytes is None else -(-self.max_bytes // self.shards)

    @property
    def shard_limits(self) -> str:
        """What the append script takes as the limits of one shard; empty when there are none."""
        if self.max_len is None and self.max_bytes is None:
            return ""
        return f"{self.when_full} {self.entries_max or 0} {self.bytes_max or 0}"


class Stream:
    """One named, append-only log, on one server or over the shards of a cluster.

    Args:
        name: The stream's name; with one shard also its key on the server.
        url: The server: a URL (``redis://…``, see README) or a Server that the caller closes.
        shards: 1 to 256. Fixed when the stream is first used; None takes what the server has.
        codec: ``plain``, ``rows`` or ``columns``: what producers write unless told otherwise.
        key_field: The field of a plain entry that holds the key.
        time_field: The field of a plain entry that holds the time.
        schema: Types of the fields of plain entries, such as ``{"volts": float, "serial": str}``;
            fields without one have their numbers recognised.
        max_len: Entries that the stream may have (a block is one entry), at least one per shard; as
            all limits divided evenly among the shards. None: no limit.
        max_bytes: Bytes that it may take on the server, as MEMORY USAGE estimates them, at least
            STREAM_BYTES_MIN per shard. None: no limit.
        max_age_ms: How old an entry may be, ms, at least AGE_MS_MIN. None: any age.
        when_full: ``block``: what a group has not acknowledged stays, whatever the limits say;
            producers wait, or spool. ``ring``: the oldest entries go, read or not, and what each
            group loses is counted (:meth:`lost_key`).

    Raises:
        ConfigError: a name, a URL or a value that is not allowed; on opening also: the server has
            another definition of this stream.

    Use it as an async context manager, or call :meth:`open` and :meth:`close`.
    """

    def __init__(
        self,
        name: str,
        url: str | Server,
        *,
        shards: int | None = None,
        codec: str | None = None,
        key_field: str | None = None,
        time_field: str | None = None,
        schema: Mapping[str, type] | None = None,
        max_len: int | None = None,
        max_bytes: int | None = None,
        when_full: Literal["block", "ring"] | None = None,
        max_age_ms: int | None = None,
    ) -> None:
        self.name: Final = check_stream_name(name, shards or 1)
        if shards is not None and not 1 <= shards <= SHARDS_MAX:
            raise ConfigError(f"shards is {shards}", hint=f"A stream has 1 to {SHARDS_MAX} shards.")
        if key_field is not None and key_field == time_field:
            raise ConfigError(
                f"key_field and time_field are both {key_field!r}", hint="Give them two names."
            )
        asked = {
            "shards": shards,
            "codec": None if codec is None else check_codec(codec),
            "key_field": key_field,
            "time_field": time_field,
            "schema": None if schema is None else _schema_names(schema),
            "max_len": max_len,
            "max_bytes": max_bytes,
            "max_age_ms": max_age_ms,
            "when_full": when_full,
        }
        self._asked: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
        _check_limits(Definition(**self._asked))
        self._owns_server = isinstance(url, str)
        self.server: Final = Server(url) if isinstance(url, str) else url
        self._definition: Definition | None = None
        self._keys: tuple[str, ...] = ()
        self._shard_limits = ""

    # --- what it is ------------------------------------------------------------------------------

    @property
    def definition(self) -> Definition:
        """What the server and this process agreed on.

        Raises:
            ConfigError: the stream is not open.
        """
        if self._definition is None:
            raise ConfigError(
                f"stream {self.name!r} is not open", hint="Use `async with Stream(...)` or open()."
            )
        return self._definition

    @property
    def is_open(self) -> bool:
        return self._definition is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its shards, in order."""
        self.definition  # noqa: B018  raises when it is not open
        return self._keys

    @property
    def shards(self) -> int:
        return len(self.keys)

    @property
    def shard_limits(self) -> str:
        """:attr:`Definition.shard_limits`, as they are now: every append asks."""
        return self._shard_limits

    def dead_key(self, shard: int) -> str:
        """The key of a shard's dead letters."""
        return side_key(self.keys[shard], "dead")

    def trimmed_key(self, shard: int) -> str:
        """The key of the number of entries that the limits have let go of a shard."""
        return side_key(self.keys[shard], "trimmed")

    def lost_key(self, shard: int) -> str:
        """The key of the numbers of events that a ring has lost: ``group:<name>``, ``archive``."""
        return side_key(self.keys[shard], "lost")

    def requeued_key(self, shard: int, group: str) -> str:
        """The key of the dead letters of a shard that were requeued for a group."""
        return side_key(self.keys[shard], f"requeued:{group}")

    def archived_key(self, shard: int) -> str:
        """The key of the entry ID up to which a shard is archived."""
        return archived_key(self.keys[shard])

    def report_keys(self, group: str) -> tuple[str, str]:
        """The keys of what the workers of a group say they do, and of how long each is believed.

        Beside the first shard, for they are of the whole stream.
        """
        key = self.keys[0]
        return side_key(key, f"workers:{group}"), side_key(key, f"workers-until:{group}")

    async def exists(self) -> bool:
        """Whether an entry was ever sent or a group created: whether any shard's key is there."""
        for key in self.keys:
            if await self.server.call("EXISTS", key, key=key):
                return True
        return False

    async def require(self) -> None:
        """Raise unless the stream exists.

        Raises:
            StreamNotFoundError: nothing stands at any of its keys.
        """
        if not await self.exists():
            raise StreamNotFoundError(
                f"stream {self.name!r} does not exist on {self.server.address.shown}"
            )

    # --- opening and closing ---------------------------------------------------------------------

    async def open(self) -> Stream:
        """Agree with the server on the definition; the first process with an opinion writes it.

        Raises:
            ConfigError: the server's definition differs from what this process asked for.
            ServerError: the server cannot be reached or refuses.

        Cost: GET; once in a stream's life also EXISTS, SET NX and another GET.
        """
        if self._definition is not None:
            return self
        try:
            self._take(await self._agree())
        except BaseException:
            # Whoever opens it in vain has nothing to close.
            await self.close()
            raise
        return self

    async def _agree(self) -> Definition:
        key = definition_key(self.name)
        raw: bytes | None = await self.server.call("GET", key, key=key)
        if raw is None and self._asked:
            await self._require_unused()
            wanted = msgspec.json.encode(Definition(**self._asked))
            # NX: of two processes that begin at once one wins, and the other compares itself to it.
            await self.server.call("SET", key, wanted, "NX", key=key)
            raw = await self.server.call("GET", key, key=key)
        return self._read(raw)

    def open_as(self, raw: str) -> None:
        """Open it with a definition that is known already, without asking the server.

        Args:
            raw: The JSON that :attr:`definition` was written as.

        Raises:
            ConfigError: it differs from what this process asked for, or cannot be read.
        """
        self._take(self._read(raw))

    def _take(self, found: Definition) -> None:
        for name, value in self._asked.items():
            has = getattr(found, name)
            # The codec is what a producer writes by default; any group reads all three.
            if has != value and name != "codec":
                raise ConfigError(
                    f"stream {self.name!r} has {name} {has!r} on the server, {value!r} was asked",
                    hint=f"Leave {name} out to use what the server has, "
                    + (
                        f"or change it: standpipe stream set {self.name}."
                        if name in Limits.__annotations__
                        else "or choose another name."
                    ),
                )
        if "codec" in self._asked:
            found = msgspec.structs.replace(found, codec=self._asked["codec"])
        self._use(found)
        self._keys = shard_keys(self.name, found.shards)

    def _use(self, definition: Definition) -> None:
        self._definition, self._shard_limits = definition, definition.shard_limits

    # --- limits ----------------------------------------------------------------------------------

    async def set_limits(self, **changes: Unpack[Limits]) -> Definition:
        """Change limits, for all processes; what is not named stays.

        Args:
            changes: ``max_len``, ``max_bytes``, ``max_age_ms`` (None: no limit) and ``when_full``,
                as :class:`Stream` takes them.

        Returns:
            The definition as it is now.

        Raises:
            ConfigError: a value that is not allowed.
            StreamNotFoundError: there is no such stream.
            ServerError: the server cannot be reached or refuses.

        Delivery:
            Whoever changes them at the same time changes either what this one has written, or
            before it. Running producers and janitors go by them within LIMITS_LOOK_MS.

        Cost: GET and a script (GET, SET), again for each change of another process in between.
        """
        key = definition_key(self.name)
        while True:
            raw: bytes | None = await self.server.call("GET", key, key=key)
            if raw is None:
                await self.require()
            found = msgspec.structs.replace(self._read(raw), **changes)
            _check_limits(found)
            wanted = msgspec.json.encode(found)
            if await self.server.run(script("define"), (key,), raw or b"", wanted):
                await self.refresh()
                return found

    async def refresh(self) -> bool:
        """Go by the limits that the stream has now.

        Returns:
            Whether they are others than before.

        Raises:
            ConfigError: it has another definition than this process goes by, not only other limits.
            ServerError: the server cannot be reached or refuses.

        Cost: GET.
        """
        key = definition_key(self.name)
        raw: bytes | None = await self.server.call("GET", key, key=key)
        if raw is None:
            # Nobody has set one, or the server has lost it: a producer gives it back.
            return False
        return self._adopt(self._read(raw))

    def _adopt(self, found: Definition) -> bool:
        """Take over the limits of what the server has; raise if it differs in more than these."""
        mine = msgspec.structs.replace(self.definition, codec=found.codec, **found.limits)
        if found != mine:
            raise ConfigError(
                f"stream {self.name!r} has another definition on {self.server.address.shown} than "
                f"this process goes by: {found}, not {mine}",
                hint="Is it the right server? If the stream was made anew, start again.",
            )
        if found.limits == self.definition.limits:
            return False
        self._use(msgspec.structs.replace(self.definition, **found.limits))
        log.info("the limits of stream %s are now %s", self.name, found.limits)
        return True

    async def confirm(self) -> None:
        """Raise unless the server has the definition that this process goes by, but for the limits,
        which are taken over; one that has none (it lost its data) is given it again.

        Raises:
            ConfigError: it has another one.
            ServerError: the server cannot be reached or refuses.
        """
        key = definition_key(self.name)
        await self.server.call("SET", key, msgspec.json.encode(self.definition), "NX", key=key)
        self._adopt(self._read(await self.server.call("GET", key, key=key)))

    async def _require_unused(self) -> None:
        """Refuse to lay several shards beside entries that stand under the name itself."""
        shards = self._asked.get("shards", 1)
        if shards > 1 and await self.server.call("EXISTS", self.name, key=self.name):
            raise ConfigError(
                f"stream {self.name!r} is there with one shard, {shards} were asked",
                hint="Leave shards out to use it as it is, or choose another name.",
            )

    def _read(self, raw: bytes | str | None) -> Definition:
        if raw is None:
            return Definition()
        try:
            return msgspec.json.decode(raw, type=Definition)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"the definition of stream {self.name!r} on the server cannot be read: {error}",
                hint=f"A newer version may have written it; see GET {definition_key(self.name)}.",
            ) from None

    async def close(self) -> None:
        """Close the connections, if the stream made them."""
        self._definition = None
        if self._owns_server:
            await self.server.close()

    async def __aenter__(self) -> Stream:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} on {self.server.address.shown}>"


def _check_limits(definition: Definition) -> None:
    """Refuse limits that no shard could live with.

    Raises:
        ConfigError: one of them.
    """
    shards = definition.shards
    for name, value, least, unit in (
        ("max_len", definition.max_len, shards, f"over all {shards} shards"),
        ("max_bytes", definition.max_bytes, STREAM_BYTES_MIN * shards, f"over all {shards} shards"),
        ("max_age_ms", definition.max_age_ms, AGE_MS_MIN, "in ms"),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}", hint=f"It is at least {least}, {unit}.")
    if definition.when_full not in ("block", "ring"):
        raise ConfigError(f"when_full is {definition.when_full!r}", hint="It is 'block' or 'ring'.")


def _schema_names(schema: Mapping[str, type]) -> dict[str, str]:
    names = {kind: name for name, kind in _TYPES.items()}
    for field, kind in schema.items():
        if kind not in names:
            raise ConfigError(
                f"schema: field {field!r} has the type {kind!r}",
                hint="A field is one of float, int, str, bool and bytes.",
            )
    return {field: names[kind] for field, kind in schema.items()}
