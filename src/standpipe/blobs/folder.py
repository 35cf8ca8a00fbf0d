"""Blobs in a local folder: written beside, forced to disk, renamed. Raises OSError alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from standpipe.blobs.reference import (
    BLOB_PATH,
    TEMP_PATH,
    copy_hashed,
    digest_of,
    path_of,
    temp_path,
)
from standpipe.limits import BLOB_CHUNK_BYTES

_LOCK: Final = "lock"


class Collected(NamedTuple):
    """What :meth:`Blobs.collect` did."""

    removed: int
    """Blobs removed."""
    removed_bytes: int
    """Their bytes."""
    kept: int
    """Blobs kept, because they were asked for or are too young."""
    strays: int
    """Files of puts that were killed, removed."""


class Folder:
    """A local folder of blobs; see :class:`~standpipe.blobs.blobs.Place`."""

    errors: type[Exception] = OSError

    def __init__(self, root: Path) -> None:
        # Absolute, so that a program which changes its folder keeps its blobs. Symlinks stay.
        self._root: Final = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100

    def path(self, relative: str) -> str:
        return str(self._root / relative)

    def is_there(self) -> bool:
        return self._root.is_dir()

    # --- reading ---------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        return (self._root / path_of(name)).stat().st_size

    def read(self, name: str) -> bytes:
        return (self._root / path_of(name)).read_bytes()

    def pieces(self, name: str) -> Iterator[bytes]:
        with (self._root / path_of(name)).open("rb", buffering=0) as file:
            while piece := file.read(BLOB_CHUNK_BYTES):
                yield piece

    def files(self) -> Iterator[str]:
        folders = [""]
        while folders:
            folder = folders.pop()
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    relative = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(relative)
                    elif relative != _LOCK:
                        yield relative

    # --- putting ---------------------------------------------------------------------------------

    def store(self, data: bytes | Iterator[bytes]) -> tuple[str, int]:
        name, size = "", 0
        if isinstance(data, bytes):
            name, size = digest_of(data), len(data)
            if self._renew(self._root / path_of(name), size):
                return name, size
        temp = self._root / temp_path()
        try:
            with self._create(temp) as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    name, size = copy_hashed(data, file)
                file.flush()
                os.fsync(file.fileno())
            target = self._root / path_of(name)
            if not self._renew(target, size):
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._locked(fcntl.LOCK_SH):
                    temp.replace(target)
                self._make_durable(target)
        finally:
            temp.unlink(missing_ok=True)
        return name, size

    def _renew(self, path: Path, size: int) -> bool:
        """Whether the blob is there and need not be written; if so, its age begins anew."""
        if not path.exists():
            return False
        with self._locked(fcntl.LOCK_SH):
            try:
                if path.stat().st_size != size:
                    return False
                os.utime(path)
            except (FileNotFoundError, PermissionError):
                # Removed just now, or another user's: then it is replaced by one of our own.
                return False
        # Whoever renamed it may not have forced the folder to disk yet; our caller counts on it.
        self._make_durable(path)
        return True

    def _create(self, temp: Path) -> BinaryIO:
        try:
            return temp.open("xb")
        except FileNotFoundError:
            made = [each for each in (temp.parent, *temp.parent.parents) if not each.exists()]
            temp.parent.mkdir(parents=True, exist_ok=True)
            for each in made:
                _sync_folder(each.parent)
            return temp.open("xb")

    def _make_durable(self, path: Path) -> None:
        """Force the blob's entry to disk, and those of the folders that lead to it.

        Always all three: that a folder is there does not say that its maker has come this far.
        """
        for folder in (path.parent, path.parent.parent, self._root):
            _sync_folder(folder)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Generator[None]:
        """Hold the lock: shared to put, exclusive to remove. It ends with the process."""
        # Only an exclusive lock on a network file system asks for the right to write.
        mode = os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY
        lock = os.open(self._root / _LOCK, mode | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)

    # --- removing --------------------------------------------------------------------------------

    def remove(self, name: str) -> None:
        (self._root / path_of(name)).unlink()

    def collect(self, keep: set[str], before_ms: int) -> Collected:
        removed = removed_bytes = kept = strays = 0
        for relative in self.files():
            path = self._root / relative
            if found := BLOB_PATH.fullmatch(relative):
                try:
                    size = None if found[3] in keep else self._remove_older(path, before_ms)
                except FileNotFoundError:
                    continue  # Deleted by someone else since it was listed.
                if size is None:
                    kept += 1
                else:
                    removed, removed_bytes = removed + 1, removed_bytes + size
            elif (found := TEMP_PATH.fullmatch(relative)) and int(found[1]) < before_ms:
                path.unlink(missing_ok=True)
                strays += 1
        return Collected(removed, removed_bytes, kept, strays)

    def _remove_older(self, path: Path, before_ms: int) -> int | None:
        """Remove a blob that was last put before that time; its size, or None if it is younger."""
        # Between the look and the removal nobody may renew it and count on it.
        with self._locked(fcntl.LOCK_EX):
            found = path.stat()
            if found.st_mtime_ns // 1_000_000 >= before_ms:
                return None
            path.unlink()
            return found.st_size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder: they write names through at once.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
