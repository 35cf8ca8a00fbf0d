"""A block as the spool keeps it: what it consists of, its checksum, and whether it makes sense.

Pure: no file here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import msgspec

from standpipe.clock import now_ms
from standpipe.errors import DecodeError
from standpipe.event import Event
from standpipe.limits import SPOOL_BLOCK_OVERHEAD_BYTES, SPOOL_PAGE_BYTES

if TYPE_CHECKING:
    from standpipe.codec import PlainLayout


class SpooledBlock(msgspec.Struct, frozen=True):
    """One block of a producer, with everything that sending it later takes.

    The server recognises a block by ``producer_id`` and ``sequence``. It may stand there already,
    since a block whose reply was lost is spooled too: it has to be sent under these two.
    """

    shard_key: str
    producer_id: str
    sequence: int
    """Its number among the producer's blocks of this shard, from 1."""
    mark: str
    """The codec's mark (``rows1``, ``arrow1``), or empty for a run of plain events."""
    count: int
    """How many events it carries."""
    payload: bytes
    """Of a plain run the RESP arguments of its events, as they are sent."""
    arguments: int = 0
    """Of a plain run: how many RESP arguments the payload holds."""
    spooled_at: int = msgspec.field(default_factory=now_ms)
    """When it was spooled, in ms since the epoch."""

    @property
    def size(self) -> int:
        """What it counts towards ``bytes_max``: at least what it takes on disk."""
        payload = len(self.payload)
        return SPOOL_BLOCK_OVERHEAD_BYTES + payload + min(payload, SPOOL_PAGE_BYTES // 2)

    @property
    def checksum(self) -> int:
        """CRC-32 of all that it consists of."""
        rest = (
            f"{self.shard_key} {self.producer_id} {self.sequence} {self.mark} {self.count} "
            f"{self.arguments} {self.spooled_at}"
        )
        return zlib.crc32(self.payload, zlib.crc32(rest.encode()))

    def events(self, layout: PlainLayout) -> list[Event]:
        """The events that it carries.

        Args:
            layout: How the stream's plain entries are laid out.

        Raises:
            DecodeError: the payload is not what its mark and counts say.

        Cost: decodes the block.
        """
        from standpipe.codec import decode_entry

        if self.mark:
            return decode_entry(b"0-1", _entry_fields(self), layout).events()
        arguments = list(_plain_arguments(self.payload))
        found: list[Event] = []
        at = 0
        while at < len(arguments):
            stop = at + 1 + int(arguments[at])
            found += decode_entry(b"0-1", arguments[at + 1 : stop], layout).events()
            at = stop
        return found


class AsideBlock(msgspec.Struct, frozen=True):
    """A block that was set aside: it is kept, but not drained."""

    block: SpooledBlock
    reason: str
    set_aside_at: int
    """In ms since the epoch."""


class SeriesSummary(msgspec.Struct, frozen=True):
    """The blocks of one producer on one shard."""

    shard_key: str
    producer_id: str
    blocks: int
    events: int
    bytes: int
    """As :attr:`SpooledBlock.size` counts them."""
    first_sequence: int | None
    """Of the oldest block; None when there is none."""
    last_sequence: int
    """The highest number that was ever given to the spool."""
    oldest_spooled_at: int | None
    """When the oldest block was spooled, in ms since the epoch; None when there is none."""
    aside_blocks: int
    aside_events: int
    aside_bytes: int


class SpoolSummary(msgspec.Struct, frozen=True):
    """What a spool holds; read without looking at the blocks."""

    stream: str | None
    """The stream that it belongs to; None when it has had no producer yet."""
    bytes_max: int
    """As the producer had it that opened the spool last."""
    file_bytes: int
    """What it takes on disk now, the write-ahead log included."""
    series: tuple[SeriesSummary, ...]
    """By shard; within a shard in the order in which they are drained."""

    @property
    def blocks(self) -> int:
        return sum(each.blocks for each in self.series)

    @property
    def events(self) -> int:
        return sum(each.events for each in self.series)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.series)

    @property
    def aside_blocks(self) -> int:
        return sum(each.aside_blocks for each in self.series)

    @property
    def aside_events(self) -> int:
        return sum(each.aside_events for each in self.series)

    @property
    def aside_bytes(self) -> int:
        return sum(each.aside_bytes for each in self.series)

    @property
    def oldest_spooled_at(self) -> int | None:
        times = [each.oldest_spooled_at for each in self.series]
        return min((at for at in times if at is not None), default=None)


class SpoolFinding(msgspec.Struct, frozen=True):
    """Something that is not as it should be in a spool."""

    kind: Literal["file", "totals", "checksum", "content", "gap"]
    """``file``: SQLite finds it damaged. ``totals``: what the spool counted is not what is there.
    ``checksum``: a block is not the one that was stored. ``content``: a block cannot be read as
    what it claims to be. ``gap``: numbers are missing between two blocks."""
    text: str
    shard_key: str | None = None
    producer_id: str | None = None
    sequence: int | None = None


def content_fault(block: SpooledBlock) -> str | None:
    """Why the block is not what its mark and counts say, or None when it is.

    Cost: decodes the block.
    """
    # The codecs bring zstandard and msgspec's decoders: 30 ms that storing blocks does not need.
    from standpipe.codec import PlainLayout, decode_entry

    if not block.mark:
        return _plain_fault(block)
    try:
        entry = decode_entry(b"0-1", _entry_fields(block), PlainLayout())
        # Of columns the table is enough: its length is checked against n.
        _ = entry.table() if block.mark.startswith("arrow") else entry.events()
    except DecodeError as error:
        return error.message
    return None


def _entry_fields(block: SpooledBlock) -> list[bytes]:
    return [b"c", block.mark.encode(), b"n", b"%d" % block.count, b"d", block.payload]


def _plain_arguments(payload: bytes) -> Iterator[bytes]:
    """The RESP arguments that a sound payload of plain events consists of."""
    at = 0
    while at < len(payload):
        start = payload.index(b"\r\n", at) + 2
        stop = start + int(payload[at + 1 : start - 2])
        yield payload[start:stop]
        at = stop + 2


def _plain_fault(block: SpooledBlock) -> str | None:
    """The same for a run of plain events: of each how many arguments follow for it, then these."""
    events = arguments = position = following = 0
    while position < len(block.payload):
        header = block.payload[position : position + 16].partition(b"\r\n")[0]
        if not (header.startswith(b"$") and header[1:].isdigit()):
            return f"no RESP argument begins at byte {position}"
        start = position + len(header) + 2
        position = start + int(header[1:]) + 2
        argument = block.payload[start : position - 2]
        if block.payload[position - 2 : position] != b"\r\n":
            return f"the RESP argument before byte {position} does not end there"
        arguments += 1
        if following:
            following -= 1
        elif argument.isdigit() and len(argument) < 8:
            following = int(argument)
            events += 1
        else:
            return f"argument {arguments} is not the number of arguments of an event"
    if following or (events, arguments) != (block.count, block.arguments):
        return (
            f"it is to hold {block.count} events in {block.arguments} arguments, but holds "
            f"{events} in {arguments}" + (f", the last {following} short" if following else "")
        )
    return None
