"""The acknowledgements that have not reached the server yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from standpipe.limits import IDS_PER_COMMAND_MAX

Acks = list[tuple[int, list[bytes]]]
"""Shards, and the IDs of entries of theirs."""


class Acking:
    """Of one lane: what waits to be sent, and what is known to be acknowledged here alone.

    Args:
        shards: Those of the lane.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self._waiting: Acks = []
        self.of: Final[dict[int, set[bytes]]] = {shard: set() for shard in shards}
        """Per shard: acknowledged here and not yet by the server: not to be delivered again."""
        self.ready: Final = asyncio.Event()
        """Set while something waits to be sent."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, shard: int, ids: list[bytes]) -> None:
        self.of[shard].update(ids)
        self._waiting.append((shard, ids))
        self.ready.set()

    def take(self) -> Acks:
        """All that wait, joined by shard and cut to commands: to be sent, and then confirmed or put
        back."""
        by_shard: dict[int, list[bytes]] = {}
        for shard, ids in self._waiting:
            by_shard.setdefault(shard, []).extend(ids)
        self._waiting = []
        self.ready.clear()
        return [
            (shard, ids[start : start + IDS_PER_COMMAND_MAX])
            for shard, ids in by_shard.items()
            for start in range(0, len(ids), IDS_PER_COMMAND_MAX)
        ]

    def put_back(self, acks: Acks) -> None:
        if acks:
            self._waiting = acks + self._waiting
            self.ready.set()

    def confirmed(self, shard: int, ids: Iterable[bytes]) -> None:
        """The server has acknowledged them."""
        self.of[shard].difference_update(ids)

    def drop(self, shard: int) -> int:
        """Send none of a shard's; returns how many had not been sent."""
        dropped = sum(len(ids) for owner, ids in self._waiting if owner == shard)
        self._waiting = [(owner, ids) for owner, ids in self._waiting if owner != shard]
        self.of[shard].clear()
        return dropped
