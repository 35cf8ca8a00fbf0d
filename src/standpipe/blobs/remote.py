"""Blobs behind any fsspec URL: object stores, and file servers that can rename."""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final

from standpipe.blobs.reference import copy_hashed, digest_of, path_of, temp_path
from standpipe.errors import BlobStoreError, ConfigError, MissingExtraError
from standpipe.limits import BLOB_RANGE_BYTES

# Stores in which an upload appears under its name only when it is complete.
OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})


class Remote:
    """An fsspec URL; see :class:`~standpipe.blobs.blobs.Place`."""

    # fsspec's filesystems raise what their protocols' packages raise.
    errors: type[Exception] = Exception

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url: Final = url.rstrip("/")
        fs, root = open_filesystem(url, options)
        self._fs: Final = fs
        self._root: Final = root.rstrip("/")
        names = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._is_object_store: Final = not OBJECT_STORES.isdisjoint(names)
        # The async ones run on a loop of their own; of the others some have a single connection.
        self._turn: Final[contextlib.AbstractContextManager[object]] = (
            contextlib.nullcontext() if fs.async_impl else threading.RLock()
        )

    def path(self, relative: str) -> str:
        shown = without_password(self._url)
        return f"{shown}/{relative}" if relative else shown

    def is_there(self) -> bool:
        return True  # A prefix is there when something is under it.

    # --- reading ---------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        return self._size(self._full(path_of(name)))

    def read(self, name: str) -> bytes:
        with self._turn:
            return self._fs.cat_file(self._full(path_of(name)))

    def pieces(self, name: str) -> Iterator[bytes]:
        # By ranges, not with open(): a memory:// file has one position for all who read it.
        path = self._full(path_of(name))
        size = self._size(path)
        for start in range(0, size, BLOB_RANGE_BYTES):
            end = min(start + BLOB_RANGE_BYTES, size)
            with self._turn:
                piece = self._fs.cat_file(path, start=start, end=end)
            yield piece

    def files(self) -> Iterator[str]:
        with self._turn:
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root)
            except FileNotFoundError:
                return  # Nothing has been put yet.
        for path in found:
            yield str(path).removeprefix(self._root).lstrip("/")

    # --- putting ---------------------------------------------------------------------------------

    def store(self, data: bytes | Iterator[bytes]) -> tuple[str, int]:
        if isinstance(data, bytes):
            name, size = digest_of(data), len(data)
            self._publish(name, size, lambda path: self._fs.pipe_file(path, data))
            return name, size
        # The name is the hash, so the end has to be known before the upload begins.
        with tempfile.NamedTemporaryFile(prefix="standpipe-blob-") as file:
            name, size = copy_hashed(data, file)
            file.flush()
            self._publish(name, size, lambda path: self._fs.put_file(file.name, path))
        return name, size

    def _publish(self, name: str, size: int, upload: Callable[[str], object]) -> None:
        target = self._full(path_of(name))
        with self._turn:
            if self._is_object_store:
                upload(target)
            elif not self._is_whole(target, size):
                self._upload_and_rename(target, size, upload)
            if not self._is_whole(target, size):
                raise BlobStoreError(f"{self.path(path_of(name))} is not whole after its upload")

    def _upload_and_rename(self, target: str, size: int, upload: Callable[[str], object]) -> None:
        temp = self._full(temp_path())
        self._make_parent(temp)
        try:
            upload(temp)
            self._make_parent(target)
            self._fs.mv(temp, target)
        except BaseException as error:
            # What stays is named by verify; the first error is the one that counts.
            with contextlib.suppress(Exception):
                self._fs.rm_file(temp)
            # Some servers do not rename onto a name that another put has taken in the meantime.
            if not isinstance(error, Exception) or not self._is_whole(target, size):
                raise

    def _make_parent(self, path: str) -> None:
        if parent := path.rpartition("/")[0]:
            self._fs.makedirs(parent, exist_ok=True)

    # --- removing --------------------------------------------------------------------------------

    def remove(self, name: str) -> None:
        with self._turn:
            path = self._full(path_of(name))
            # An object store deletes what is not there without a word.
            self._size(path)
            self._fs.rm_file(path)

    # --- paths -----------------------------------------------------------------------------------

    def _full(self, relative: str) -> str:
        return f"{self._root}/{relative}" if self._root else relative

    def _size(self, path: str) -> int:
        with self._turn:
            # What a listing said earlier does not count: others put and delete.
            self._fs.invalidate_cache()
            return int(self._fs.info(path)["size"])

    def _is_whole(self, path: str, size: int) -> bool:
        try:
            return self._size(path) == size
        except FileNotFoundError:
            return False


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r"://[^/@]*@", "://", url)


def open_filesystem(
    url: str, options: Mapping[str, Any], *, what: str = "blobs", extra: str = "blobs"
) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, and the path on it.

    Args:
        what: What is kept there, for the errors.
        extra: The extra of this package that brings fsspec.

    Raises:
        MissingExtraError, ConfigError, BlobStoreError: as for :class:`Blobs`.
    """
    shown = without_password(url)
    try:
        core: Any = import_module("fsspec.core")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{what} in {shown}: the Python module {error.name} is not installed",
            hint=f"Install it with: pip install 'standpipe[{extra}]'",
        ) from error
    try:
        return core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} in {shown}: a package is not installed: {error}",
            hint="fsspec names the package: install it with pip.",
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"fsspec refuses {shown} or its options: {error}",
            hint="fsspec's documentation lists the protocols and the options of each.",
        ) from error
    except Exception as error:
        raise BlobStoreError(f"cannot connect to {shown}: {error}") from error
