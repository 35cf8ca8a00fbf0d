"""The memory of a stream and its servers, as ``standpipe status`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from standpipe.observe import MemoryWatch
    from standpipe.stream import Stream


async def memory_of(stream: Stream) -> MemoryWatch | None:
    """What the stream takes and where that is going; None where one may not ask."""
    from standpipe.errors import CommandMissingError, NotPermittedError
    from standpipe.observe import watch_memory

    try:
        return await watch_memory(stream)
    except (NotPermittedError, CommandMissingError):
        return None


def memory_lines(memory: MemoryWatch | None) -> list[str]:
    """The same for people."""
    if memory is None:
        return ["memory: this user may not ask for it"]
    from standpipe.cli.status import shown_size
    from standpipe.cli.tables import lasting

    def rate(bytes_per_s: float) -> str:
        sign = "-" if bytes_per_s < 0 else "+"
        return f"{sign}{shown_size(round(abs(bytes_per_s)))}/s"

    line = f"stream {shown_size(memory.bytes)}, {rate(memory.bytes_per_s)}"
    if memory.limit_in_ms is not None:
        line += f", at its max_bytes in {lasting(memory.limit_in_ms)} at this rate"
    lines = [line]
    for server in memory.servers:
        where = "server"
        if len(memory.servers) > 1:
            where = f"server of shards {', '.join(map(str, server.shards))}"
        line = f"{where} {shown_size(server.used_bytes)}"
        if server.maxmemory_bytes is not None:
            line += f" of {shown_size(server.maxmemory_bytes)}"
        line += f", {rate(server.bytes_per_s)}"
        if server.full_in_ms is not None:
            line += f", full in {lasting(server.full_in_ms)} at this rate"
        if server.maxmemory_bytes is None:
            line += ", without a maxmemory"
        elif server.policy != "noeviction":
            line += f"; {server.policy} deletes streams then"
        lines.append(line)
    return lines
