"""What an archive holds in a test, and streams that are written by raw commands."""

from __future__ import annotations

from typing import Any

from standpipe import Event, EventId, Stream
from standpipe.archive import Archive
from standpipe.codec import block_fields, encode_rows
from tests.servers.entries import TIME
from tests.servers.fleet import TestServer

Found = list[list[tuple[EventId, Event]]]


def archived(archive: Archive, stream: Stream, **options: Any) -> Found:
    """Everything that is archived, by shard."""
    there = archive.shards(stream.name)
    return [
        [
            pair
            for table in (archive.read(stream.name, shard=n, **options) if n in there else ())
            for pair in zip(table.ids(), table.events(), strict=True)
        ]
        for n in range(stream.shards)
    ]


def add(server: TestServer, key: str, entry_id: str, *numbers: int) -> None:
    """An entry of an ID of one's own: a block of events with these numbers."""
    events = [Event("m", TIME + n, {"n": n}) for n in numbers]
    server.command("XADD", key, entry_id, *block_fields("rows", len(events), encode_rows(events)))


def numbers_of(archive: Archive, name: str, **options: Any) -> list[int]:
    """The numbers of the archived events, in order."""
    return [
        event.fields["n"] for table in archive.read(name, **options) for event in table.events()
    ]
