"""Consumer groups by hand: what an operator does to them, over all shards of a stream.

A worker creates its group and takes over from the dead by itself; this is for the rest: to look at
what is pending, to give it to another consumer or acknowledge it, to move a group, and to remove
what nobody needs. Every function takes an open stream, and ``shard`` to keep to one of its shards.
"""

from __future__ import annotations

from standpipe.groups.changing import (
    Created,
    Deleted,
    Moved,
    Removed,
    create_group,
    delete_group,
    move_group,
    remove_consumer,
)
from standpipe.groups.pending import (
    PendingConsumer,
    PendingEntry,
    PendingReport,
    Settled,
    ack_entries,
    claim_entries,
    claim_idle,
    read_pending,
)
from standpipe.groups.shards import ShardGroup, list_groups

__all__ = [
    "Created",
    "Deleted",
    "Moved",
    "PendingConsumer",
    "PendingEntry",
    "PendingReport",
    "Removed",
    "Settled",
    "ShardGroup",
    "ack_entries",
    "claim_entries",
    "claim_idle",
    "create_group",
    "delete_group",
    "list_groups",
    "move_group",
    "read_pending",
    "remove_consumer",
]
