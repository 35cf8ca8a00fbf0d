"""A file or standard input as runs of whole lines, in bounded memory, compressed or not."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final, NamedTuple, cast

from standpipe.errors import ConfigError, InputError
from standpipe.limits import INPUT_CHUNK_BYTES, LINE_BYTES_MAX

# Only the first line of what one read returns can then be too long, which read_pieces relies on.
assert INPUT_CHUNK_BYTES <= LINE_BYTES_MAX

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}

_OTHER_CONTENT: Final = (
    (b"\x1f\x8b", "gzip", "Name the file NAME.gz, or unpack it on the way in: gzip -dc FILE."),
    (
        b"\x28\xb5\x2f\xfd",
        "zstd",
        "Name the file NAME.zst, or unpack it on the way in: zstd -dc FILE.",
    ),
    (b"PAR1", "Parquet", "Pass --format parquet."),
    (b"\xff\xfe", "UTF-16 text", "Turn it into UTF-8: iconv -f utf-16 -t utf-8 FILE."),
    (b"\xfe\xff", "UTF-16 text", "Turn it into UTF-8: iconv -f utf-16 -t utf-8 FILE."),
)
"""What a text format cannot begin with, and what to do about it: better one error at the start than
one for every line."""


class Piece(NamedTuple):
    """Whole lines that stand together in the input.

    Args:
        first: The number of its first line, from 1.
        data: The lines, each ended by a newline (the input's last one too).
        position: Bytes of the input read so far, as they lie on disk.
        too_long: The size of a line above ``LINE_BYTES_MAX``; it alone is then the piece, and
            ``data`` is empty. 0 otherwise.
        final: Nothing comes after it. The last piece may be empty.
    """

    first: int
    data: bytes
    position: int
    too_long: int = 0
    final: bool = False

    @property
    def end(self) -> int:
        """The number of the line after the piece."""
        return self.first + self.data.count(b"\n") + (self.too_long > 0)


def compression_of(path: PurePath) -> str | None:
    """``gzip`` or ``zstd`` by the file name's last suffix; None when it is not compressed."""
    return _COMPRESSIONS.get(path.suffix.lower())


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """The file, open for reading and closed at the end.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            hint="Check the path and its permissions; - stands for standard input.",
        ) from error
    with file:
        yield file


def read_pieces(source: BinaryIO | Path) -> Generator[Piece]:
    """Read a source to its end, piece by piece.

    A piece is what one read returns, cut at the last newline: from a pipe the lines come as soon as
    they are there, from a file about ``INPUT_CHUNK_BYTES`` at once. A byte order mark is dropped.

    Args:
        source: A file's path (``.gz`` and ``.zst`` are unpacked), or an open binary stream, which
            is left open.

    Raises:
        ConfigError: the file cannot be opened, or its content is no text.
        InputError: reading failed on the way; the pieces before it are good.
    """
    if isinstance(source, Path):
        with opened(source) as file:
            yield from _pieces(*_reader(file, compression_of(source)), name=str(source))
    else:
        yield from _pieces(*_reader(source, None), name="the input")


def _reader(
    file: BinaryIO, compression: str | None
) -> tuple[Callable[[int], bytes], Callable[[int], int]]:
    """How to read up to so many bytes, and the position in the input after so many were read."""
    if compression is None:
        # read1 returns what is there; read would wait until a slow pipe has filled the chunk.
        read = cast("Callable[[int], bytes]", getattr(file, "read1", file.read))
        return read, lambda count: count
    import pyarrow as pa

    # Arrow's reader notices a file that was cut off; the one of the zstandard package takes it for
    # one that ended.
    unpacked = cast("Any", pa).CompressedInputStream(file, compression)
    return unpacked.read, lambda _count: file.tell()


def _pieces(
    read: Callable[[int], bytes], position: Callable[[int], int], *, name: str
) -> Generator[Piece]:
    number = 1  # of the line under way
    rest = bytearray()  # its bytes so far
    dropped = 0  # its bytes so far once it is too long to be kept
    count = 0  # bytes read
    while block := _read(read, count, name):
        if not count:
            _check_content(block, name)
        count += len(block)
        first_end = block.find(b"\n")
        head = len(block) if first_end < 0 else first_end
        if dropped or len(rest) + head > LINE_BYTES_MAX:
            dropped += len(rest) + head
            rest.clear()
            if first_end < 0:
                continue
            yield Piece(number, b"", position(count), too_long=dropped)
            number, dropped, block = number + 1, 0, block[first_end + 1 :]
        end = block.rfind(b"\n") + 1
        if not end:
            rest += block
            continue
        piece = Piece(number, _without_mark(number, bytes(rest) + block[:end]), position(count))
        rest = bytearray(block[end:])
        number = piece.end
        yield piece
    if dropped:
        yield Piece(number, b"", position(count), too_long=dropped)
        number += 1
    data = _without_mark(number, bytes(rest))
    yield Piece(number, data + b"\n" if data else b"", position(count), final=True)


def _read(read: Callable[[int], bytes], count: int, name: str) -> bytes:
    try:
        return read(INPUT_CHUNK_BYTES)
    except OSError as error:
        raise InputError(
            f"{name} cannot be read on after {count} bytes of content: {error}",
            hint="What was read before is good. Check the file (gzip -t, zstd -t) or the disk.",
        ) from error


def _without_mark(number: int, data: bytes) -> bytes:
    """The lines without the byte order mark that Windows puts before the first."""
    return data.removeprefix(_UTF8_BOM) if number == 1 else data


def _check_content(block: bytes, name: str) -> None:
    for start, what, hint in _OTHER_CONTENT:
        if block.startswith(start):
            raise ConfigError(f"{name} is {what}, not lines of text", hint=hint)
