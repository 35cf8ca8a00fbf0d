"""Which keys a stream has on the server and which shard an event goes to. Pure.

A stream with one shard is the key of its own name, so that redis-cli and every other client reach
it under that name. With N shards, shard i is ``name:{i-k}`` where k is the smallest number that
puts the hash tag ``i-k`` into the i-th N-th of the 16384 slots: the shards lie evenly over a
cluster, and any language finds the same keys without asking. Side keys carry the hash tag of their
shard, so one atomic step touches one slot.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ (hash tags)
"""

from __future__ import annotations

import binascii
import re
from functools import lru_cache
from typing import Final

from standpipe.errors import ConfigError
from standpipe.limits import SHARDS_MAX, STREAM_NAME_BYTES_MAX

SLOTS: Final = 16_384
_CHARACTER: Final = r"[^\s{}\x00-\x1f\x7f\ud800-\udfff]"
_NAME: Final = re.compile(rf"{_CHARACTER}+(\{{{_CHARACTER}+\}}{_CHARACTER}*)?")


def slot(key: str) -> int:
    """The cluster slot of a key, 0 to 16383: CRC16 (XMODEM) of its hash tag, or of all of it."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key.encode(), 0) % SLOTS


def partition(key: str | None, shards: int) -> int:
    """The shard of a partition key: ``crc32(key) % shards``; without a key it is shard 0."""
    if shards == 1 or key is None:
        return 0
    return binascii.crc32(key.encode()) % shards


def check_stream_name(name: str, shards: int = 1) -> str:
    """Return the name if it can name a stream.

    Raises:
        ConfigError: empty, too long, with white space, or with braces that are no single hash tag
            (or with any braces when there are several shards).
    """
    # Half a surrogate pair counts as one byte here; the pattern below refuses it.
    size = len(name.encode(errors="replace"))
    if not 1 <= size <= STREAM_NAME_BYTES_MAX:
        raise ConfigError(
            f"stream name {name[:40]!r} has {size} bytes",
            hint=f"A name has 1 to {STREAM_NAME_BYTES_MAX} bytes.",
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"stream name {name!r} cannot be a key of a stream",
            hint="No white space, no control characters, at most one {tag} after other text.",
        )
    if shards > 1 and "{" in name:
        raise ConfigError(
            f"stream name {name!r} has a hash tag, which would put all {shards} shards on one node",
            hint="Choose a name without braces, or one shard.",
        )
    return name


@lru_cache(maxsize=64)
def _tags(shards: int) -> tuple[str, ...]:
    found: list[str] = []
    for shard in range(shards):
        salt = 0
        while slot(f"{shard}-{salt}") * shards // SLOTS != shard:
            salt += 1
        found.append(f"{shard}-{salt}")
    return tuple(found)


def shard_keys(name: str, shards: int) -> tuple[str, ...]:
    """The keys of all shards, in order.

    Raises:
        ConfigError: the name or the number of shards (1 to 256) is not allowed.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise ConfigError(f"shards is {shards}", hint=f"A stream has 1 to {SHARDS_MAX} shards.")
    check_stream_name(name, shards)
    if shards == 1:
        return (name,)
    return tuple(f"{name}:{{{tag}}}" for tag in _tags(shards))


def side_key(shard_key: str, what: str) -> str:
    """A key beside a shard, in the same slot: ``{power_grid_stream}:dead``.

    Args:
        shard_key: One of :func:`shard_keys`.
        what: ``dead``, ``seq:<producer>``, ``definition``…
    """
    tagged = shard_key if "{" in shard_key else f"{{{shard_key}}}"
    return f"{tagged}:{what}"


def definition_key(name: str) -> str:
    """The key of the hash that holds the stream's definition, whatever its number of shards."""
    return side_key(name, "definition")


def archived_key(shard_key: str) -> str:
    """The key of a shard's archive cursor: the entry ID up to which all is archived.

    While it exists nothing behind that entry may be trimmed.
    """
    return side_key(shard_key, "archived")
