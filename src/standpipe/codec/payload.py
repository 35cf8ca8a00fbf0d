"""What rows and columns blocks share: a header that is read at once, and a payload under zstd."""

from __future__ import annotations

import threading
from typing import Final

import msgspec
import zstandard

from standpipe.codec.plain import id_from
from standpipe.errors import DecodeError
from standpipe.event import EventId
from standpipe.limits import COMPRESS_BYTES_MIN, DECODED_BYTES_MAX

# No MessagePack array and no Arrow stream begins with it, so nothing else has to say what d is.
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Block(msgspec.Struct):
    """The header of a block and its payload, as it stands in the entry."""

    entry_id: bytes
    fields: list[bytes]
    count: int
    payload: bytes

    @property
    def id(self) -> EventId:
        return id_from(self.entry_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.entry_id!r}: {self.count} events>"


class _Zstd(threading.local):
    """Contexts are costly to make and must not be shared, so every thread keeps its own."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: Final = _Zstd()


def pack(payload: bytes | memoryview, compress: bool, level: int) -> bytes:
    """The payload, or the zstd frame that holds it where that is smaller."""
    size = len(payload)
    if not compress or size < COMPRESS_BYTES_MIN:
        return bytes(payload)
    compressor = _zstd.compressors.get(level)
    if compressor is None:
        compressor = _zstd.compressors[level] = zstandard.ZstdCompressor(level=level)
    smaller = compressor.compress(payload)
    return smaller if len(smaller) < size else bytes(payload)


def unpack(payload: bytes) -> bytes:
    """The payload, out of its zstd frame if it is in one.

    Raises:
        DecodeError: the frame is damaged, or holds more than DECODED_BYTES_MAX.
    """
    if not payload.startswith(_ZSTD_MAGIC):
        return payload
    try:
        size = zstandard.frame_content_size(payload)
        check_size(size)
        if size >= 0:
            return _zstd.decompressor.decompress(payload, allow_extra_data=False)
        # Writers that stream do not know the size beforehand, so their frames do not say it.
        with _zstd.decompressor.stream_reader(payload) as stream:
            unpacked = stream.read(DECODED_BYTES_MAX + 1)
    except zstandard.ZstdError as error:
        raise DecodeError(f"the block's zstd frame is damaged: {error}") from error
    check_size(len(unpacked))
    return unpacked


def check_size(size: int) -> None:
    """Refuse what would take more than DECODED_BYTES_MAX.

    Raises:
        DecodeError: it would.
    """
    if size > DECODED_BYTES_MAX:
        raise DecodeError(
            f"the block would take {size} bytes, more than {DECODED_BYTES_MAX}",
            hint="Write smaller blocks.",
        )
