"""``standpipe status``: what a stream and its groups look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from standpipe.observe import StreamStatus

EXAMPLE = "Example: standpipe status power_grid_stream --url redis://127.0.0.1:6390"


@command
def status(stream: StreamName, url: Url = None, as_json: Json = False) -> None:
    """Show per shard and group: length, lag, pending, oldest pending age, consumers, memory."""
    import msgspec

    from standpipe.observe import stream_status
    from standpipe.stream import Stream

    async def read() -> StreamStatus:
        async with Stream(stream, settings_from(url=url).url) as opened:
            return await stream_status(opened)

    found = run_async(read())
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _print(found)


def _print(status: StreamStatus) -> None:
    from rich.console import Console
    from rich.table import Table

    from standpipe.clock import format_duration

    def size(count: int | None) -> str:
        return "?" if count is None else f"{count / 1024**2:,.1f} MiB"

    console = Console()
    shards = Table(title=f"{status.name} on {status.url}", title_justify="left")
    for name in ("shard", "key", "entries", "first", "last", "memory", "dead letters"):
        shards.add_column(name, justify="left" if name in ("key", "first", "last") else "right")
    groups = Table(title="groups", title_justify="left")
    for name in ("group", "shard", "lag", "pending", "oldest pending", "consumers"):
        groups.add_column(name, justify="left" if name in ("group", "consumers") else "right")
    for shard in status.shards:
        shards.add_row(
            str(shard.shard),
            shard.key,
            f"{shard.length:,}",
            shard.first or "-",
            shard.last or "-",
            size(shard.memory_bytes),
            f"{shard.dead:,}",
        )
        for group in shard.groups:
            oldest = group.oldest_pending_ms
            groups.add_row(
                group.name,
                str(shard.shard),
                "unknown" if group.lag is None else f"{group.lag:,}",
                f"{group.pending:,}",
                "-" if oldest is None else format_duration(max(0, oldest)),
                "\n".join(
                    f"{c.name} ({c.pending:,} pending, idle {format_duration(c.idle_ms)})"
                    for c in group.consumers
                )
                or "-",
            )
    console.print(shards)
    if groups.row_count:
        console.print(groups)
    else:
        console.print("no consumer groups")
