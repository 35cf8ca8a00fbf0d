"""``standpipe status``: what a stream and its groups look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from standpipe.cli.memory import memory_lines, memory_of
from standpipe.cli.running import (
    Json,
    StreamName,
    Url,
    command,
    print_json,
    run_async,
    settings_from,
)

if TYPE_CHECKING:
    from standpipe.observe import MemoryWatch, StreamStatus

_TEXTS = ("key", "group", "consumers")

EXAMPLE = "Example: standpipe status power_grid_stream --url redis://127.0.0.1:6390"


@command
def status(stream: StreamName, url: Url = None, as_json: Json = False) -> None:
    """Show per shard and group: length, lag, pending, oldest pending age, consumers, memory."""
    import msgspec

    from standpipe.observe import stream_status
    from standpipe.stream import Stream

    async def read() -> tuple[StreamStatus, MemoryWatch | None]:
        async with Stream(stream, settings_from(url=url).url) as opened:
            found = await stream_status(opened)
            return found, await memory_of(opened)

    found, memory = run_async(read())
    if as_json:
        print_json(msgspec.to_builtins(found) | {"memory": msgspec.to_builtins(memory)})
    else:
        _print(found)
        for line in memory_lines(memory):
            typer.echo(line)


def _print(status: StreamStatus) -> None:
    from standpipe.cli.tables import add_columns, console, lasting, new_table, number_or_unknown
    from standpipe.event import EventId

    def age(ms: int | None) -> str:
        return "-" if ms is None else lasting(ms)

    def since(entry_id: str | None) -> str:
        return (
            "-" if entry_id is None else age(status.read_at - EventId.parse(entry_id).ms) + " ago"
        )

    shards = new_table(
        f"{status.name} on {status.url}",
        "shard", "key", "entries", "oldest", "newest", "memory", "dead",
        texts=_TEXTS,
    )  # fmt: skip
    # Only a stream with limits is trimmed, so only there the columns are needed.
    is_ring = any(shard.trimmed for shard in status.shards)
    if is_ring:
        add_columns(shards, "trimmed")
    groups = new_table(
        "groups", "group", "shard", "lag", "pending", "oldest pending", "consumers", texts=_TEXTS
    )
    is_lossy = any(group.lost for shard in status.shards for group in shard.groups)
    if is_lossy:
        add_columns(groups, "lost events")
    for shard in status.shards:
        shards.add_row(
            str(shard.shard),
            shard.key,
            f"{shard.length:,}",
            since(shard.first),
            since(shard.last),
            shown_size(shard.memory_bytes),
            f"{shard.dead:,}",
            *([f"{shard.trimmed or 0:,}"] if is_ring else []),
        )
        for group in shard.groups:
            consumers = [
                f"{each.name}: {each.pending:,} pending, idle {lasting(each.idle_ms)}"
                for each in group.consumers
            ]
            groups.add_row(
                group.name,
                str(shard.shard),
                number_or_unknown(group.lag),
                f"{group.pending:,}",
                age(group.oldest_pending_ms),
                "\n".join(consumers) or "none",
                *([number_or_unknown(group.lost)] if is_lossy else []),
            )
    console().print(shards)
    if groups.row_count:
        console().print(groups)
    else:
        console().print("no consumer groups")


def shown_size(count: int | None) -> str:
    """Bytes in the unit in which they have one to four digits."""
    if count is None:
        return "unknown"
    for power, unit in enumerate(("B", "KiB", "MiB")):
        if count < 1024 ** (power + 1):
            return f"{count / 1024**power:,.{min(power, 1)}f} {unit}"
    return f"{count / 1024**3:,.1f} GiB"
