"""Who reads."""

from __future__ import annotations

from typing import Any, NamedTuple

from standpipe.stream import Stream


class Member(NamedTuple):
    """Who reads: one name in one group of one stream."""

    stream: Stream
    group: str
    name: str
    start: str
    """Where the group begins if it has to be created."""
    idle_ms_min: int

    def facts(self, shard: int | None, state: str | None = None) -> dict[str, Any]:
        """What a log line says beside its text."""
        return {
            "stream": self.stream.name,
            "shard": None if shard is None else int(shard),
            "group": self.group,
            "consumer": self.name,
            **({} if state is None else {"state": state}),
        }
