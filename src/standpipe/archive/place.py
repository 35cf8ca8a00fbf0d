"""Where an archive is kept: a local folder, or any fsspec URL.

A file is there whole or not at all. In a folder it is written beside, forced to disk and renamed;
an object store shows an upload when it is complete; on other file servers it is uploaded beside and
renamed.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit

from standpipe.blobs.remote import OBJECT_STORES, open_filesystem, without_password
from standpipe.errors import (
    ArchiveUnreachableError,
    ArchiveUnusableError,
    BlobStoreError,
    StandpipeError,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_UNFINISHED: Final = "_unfinished"
"""The folder of files that are being written. Readers of Parquet folders pass over names that begin
with an underscore."""


class Place(Protocol):
    """Where the files of an archive are. Paths are below it, with ``/`` between folders."""

    shown: Final[str]
    """Its path or URL, without a password."""

    def folders(self) -> list[str]:
        """The names of the folders directly in it."""
        ...

    def files(self, folder: str) -> list[str]:
        """The paths of all files below a folder."""
        ...

    def open(self, path: str) -> Any:
        """A file as pyarrow takes it: a path, or a binary file that can seek.

        Raises:
            FileNotFoundError: it is not there (any more).
        """
        ...

    def read(self, path: str) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: it is not there (any more).
        """
        ...

    def store(self, path: str, content: bytes, owner: str) -> None:
        """Put a file there, whole or not at all; one of the same name is replaced.

        Args:
            owner: Whose it is while it is being written: see :meth:`clear`.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def clear(self, owner: str) -> int:
        """Remove what an owner of before began to write and did not finish; how many files."""
        ...


def open_place(url: str | Path, options: Mapping[str, Any] | None = None) -> Place:
    """The place that a path or URL names; nothing is created.

    Raises:
        ConfigError: fsspec refuses the URL or its options.
        MissingExtraError: fsspec or the protocol's package is not installed.
        ArchiveUnreachableError: it cannot be connected to; retryable.
    """
    if isinstance(url, Path):
        return Folder(url)
    if "://" not in url:
        return Folder(Path(url))
    parts = urlsplit(url)
    if parts.scheme in ("file", "local"):
        return Folder(Path(unquote(parts.path)))
    return Remote(url, options or {})


@contextlib.contextmanager
def place_errors(shown: str, kinds: type[Exception]) -> Generator[None]:
    """What a place raises, as errors of this package; a file that is not there passes."""
    try:
        yield
    except (StandpipeError, FileNotFoundError):
        raise
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ArchiveUnusableError(f"the archive {shown} cannot be used: {error}") from error
    except kinds as error:
        raise ArchiveUnreachableError(
            f"the archive {shown}: {error or type(error).__name__}"
        ) from error


# --- a local folder ------------------------------------------------------------------------------


class Folder:
    """A folder of a local disk, or of a network file system that renames atomically."""

    def __init__(self, root: Path) -> None:
        # Absolute, so that a program which changes its folder keeps its archive. Symlinks stay.
        self._root: Final = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100
        self.shown: Final = str(self._root)

    def folders(self) -> list[str]:
        with self._errors():
            try:
                return sorted(path.name for path in self._root.iterdir() if path.is_dir())
            except FileNotFoundError:
                return []

    def files(self, folder: str) -> list[str]:
        found: list[str] = []
        left = [folder]
        with self._errors():
            while left:
                name = left.pop()
                try:
                    with os.scandir(self._root / name) as entries:
                        for entry in entries:
                            path = f"{name}/{entry.name}"
                            if entry.is_dir(follow_symlinks=False):
                                left.append(path)
                            else:
                                found.append(path)
                except FileNotFoundError:
                    continue  # Removed since it was seen, or nothing was ever archived.
        return sorted(found)

    def open(self, path: str) -> Any:
        with self._errors():
            return (self._root / path).open("rb")

    def read(self, path: str) -> bytes:
        with self._errors():
            return (self._root / path).read_bytes()

    def store(self, path: str, content: bytes, owner: str) -> None:
        target = self._root / path
        unfinished = self._root / _UNFINISHED / f"{owner}.{uuid.uuid4().hex}"
        with self._errors():
            self._make_folder(unfinished.parent)
            self._make_folder(target.parent)
            try:
                with unfinished.open("xb") as file:
                    self._write(file, content)
                self._rename(unfinished, target)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

    def _write(self, file: BinaryIO, content: bytes) -> None:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

    def _rename(self, unfinished: Path, target: Path) -> None:
        """The moment from which on the file is there."""
        unfinished.replace(target)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, and put their names onto the disk."""
        if folder.is_dir():
            return
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in missing:
            _sync_folder(each.parent)

    def remove(self, path: str) -> None:
        with self._errors():
            (self._root / path).unlink(missing_ok=True)

    def clear(self, owner: str) -> int:
        count = 0
        with self._errors():
            for path in (self._root / _UNFINISHED).glob("*"):
                if path.name.rpartition(".")[0] == owner:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return place_errors(self.shown, OSError)


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder onto the disk: syncing a file does not."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# --- an fsspec URL -------------------------------------------------------------------------------

# A dictionary in this process: an upload is there when it is complete, as in an object store.
_WHOLE_UPLOADS: Final = OBJECT_STORES | {"memory"}


class Remote:
    """An fsspec URL."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.shown: Final = without_password(url.rstrip("/"))
        try:
            fs, root = open_filesystem(url, options, what="an archive", extra="archive")
        except BlobStoreError as error:
            raise ArchiveUnreachableError(error.message) from error
        self._fs: Final = fs
        self._root: Final = root.rstrip("/")
        names = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._uploads_whole: Final = not _WHOLE_UPLOADS.isdisjoint(names)
        # The async ones run on a loop of their own; of the others some have a single connection.
        self._turn: Final[contextlib.AbstractContextManager[object]] = (
            contextlib.nullcontext() if fs.async_impl else threading.RLock()
        )

    def folders(self) -> list[str]:
        with self._errors(), self._turn:
            self._fs.invalidate_cache()
            try:
                found: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        names = (str(each["name"]) for each in found if each["type"] == "directory")
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def files(self, folder: str) -> list[str]:
        with self._errors(), self._turn:
            # What a listing said earlier does not count: others write and remove.
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._fs.find(self._full(folder))
            except FileNotFoundError:
                return []
        return sorted(path.removeprefix(self._root).lstrip("/") for path in found)

    def open(self, path: str) -> Any:
        with self._errors(), self._turn:
            size = int(self._fs.info(self._full(path))["size"])
        return io.BufferedReader(_Ranges(self, path, size), buffer_size=64 * 1024)

    def read(self, path: str) -> bytes:
        with self._errors(), self._turn:
            return self._fs.cat_file(self._full(path))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """A part of a file."""
        with self._errors(), self._turn:
            return self._fs.cat_file(self._full(path), start=start, end=stop)

    def store(self, path: str, content: bytes, owner: str) -> None:
        target = self._full(path)
        with self._errors(), self._turn:
            if self._uploads_whole:
                self._fs.pipe_file(target, content)
            else:
                unfinished = self._full(f"{_UNFINISHED}/{owner}.{uuid.uuid4().hex}")
                for each in (unfinished, target):
                    self._fs.makedirs(each.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(unfinished, content)
                self._fs.mv(unfinished, target)
            self._fs.invalidate_cache()
            size = int(self._fs.info(target)["size"])
            if size != len(content):
                raise ArchiveUnreachableError(
                    f"the archive {self.shown}: {path} has {size} bytes after its upload, not "
                    f"{len(content)}"
                )

    def remove(self, path: str) -> None:
        with self._errors(), self._turn, contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    def clear(self, owner: str) -> int:
        count = 0
        for path in [] if self._uploads_whole else self.files(_UNFINISHED):
            if path.rpartition("/")[2].rpartition(".")[0] == owner:
                self.remove(path)
                count += 1
        return count

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        # fsspec's filesystems raise what their protocols' packages raise.
        return place_errors(self.shown, Exception)


class _Ranges(io.RawIOBase):
    """A remote file, of which only what is asked for is fetched.

    Not fsspec's own: a memory:// file has one position for all who read it.
    """

    def __init__(self, place: Remote, path: str, size: int) -> None:
        super().__init__()
        self._place = place
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        piece = self._place.read_range(self._path, self._at, stop)
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
