"""Blobs: puts payloads, hands them out verified, and keeps house, wherever they are kept."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, NamedTuple, Protocol, cast
from urllib.parse import unquote, urlsplit

from standpipe.blobs.folder import Collected, Folder
from standpipe.blobs.reference import (
    BLOB_PATH,
    TEMP_PATH,
    BlobReference,
    check_media_type,
    digest_of,
    path_of,
)
from standpipe.blobs.remote import Remote
from standpipe.clock import format_duration, now_ms, parse_duration
from standpipe.errors import (
    BlobCorruptError,
    BlobDeniedError,
    BlobMissingError,
    BlobReferenceError,
    BlobStoreError,
    BlobTooLargeError,
    ConfigError,
    InputError,
    StandpipeError,
)
from standpipe.event import Event
from standpipe.limits import BLOB_AGE_MS_MIN, BLOB_BYTES_MAX, BLOB_CHUNK_BYTES, BLOB_STRAY_MS_MIN

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Payload = bytes | bytearray | memoryview | Path | BinaryIO
"""What can be put: bytes, the path of a file, or a binary file, read from where it stands."""


class BlobFinding(NamedTuple):
    """Something that :meth:`Blobs.verify` found wrong."""

    kind: Literal["missing", "corrupt", "unreadable", "stray"]
    """``stray``: a file that is no blob, mostly what a killed put has left; harmless."""
    path: str
    detail: str


class Place(Protocol):
    """Where blobs are kept. What lies below a place raises passes through it."""

    errors: type[Exception]
    """What of that is to be turned into this package's errors."""

    def path(self, relative: str) -> str:
        """The whole path, to be shown."""
        ...

    def is_there(self) -> bool:
        """Whether the place itself is, so that a blob that is not found is really missing."""
        ...

    def size(self, name: str) -> int: ...

    def read(self, name: str) -> bytes: ...

    def pieces(self, name: str) -> Iterator[bytes]: ...

    def files(self) -> Iterator[str]:
        """The relative path of every file but the lock."""
        ...

    def store(self, data: bytes | Iterator[bytes]) -> tuple[str, int]:
        """Keep the data; its SHA-256, which is its name, and its size."""
        ...

    def remove(self, name: str) -> None: ...


class Blobs:
    """Keeps payloads that are too large for an event, and gives them back.

    Args:
        where: A local folder (created by the first put), or any fsspec URL: ``s3://bucket/prefix``,
            ``gs://…``, ``sftp://…``, ``memory://…``. ``file://…`` is a local folder too.
        blob_bytes_max: A larger payload is refused, bytes; ``get`` loads no larger one.
        options: For a URL, what its fsspec filesystem takes: ``Blobs(url, key=…, secret=…)``.

    Raises:
        ConfigError: the URL or an option is wrong; not retryable.
        MissingExtraError: a URL is given, and fsspec or the package for its protocol is missing.
        BlobStoreError: some filesystems connect at once, and this one could not; retryable.

    Delivery:
        A reference is returned when the blob is on disk, or in the store. Put first, then send: if
        the process dies in between, a blob is left that no event names, which does no harm.

    Every method raises BlobStoreError (retryable: disk full, network, folder not there) and
    BlobDeniedError (permissions) besides what it names. All methods block but those that begin with
    ``a``, which do the same in a thread. An instance may be used from any number of threads.
    """

    def __init__(
        self, where: str | Path, *, blob_bytes_max: int = BLOB_BYTES_MAX, **options: Any
    ) -> None:
        if blob_bytes_max < 1:
            raise ConfigError(f"blob_bytes_max is {blob_bytes_max}", hint="It is at least 1.")
        self.blob_bytes_max: Final = blob_bytes_max
        self._place = _place(where, options)

    def __repr__(self) -> str:
        return f"<Blobs in {self._place.path('')}>"

    # --- putting ---------------------------------------------------------------------------------

    def put(self, data: Payload, *, media_type: str | None = None) -> str:
        """Keep a payload and return its reference, a text of less than 400 characters.

        Args:
            data: Bytes, a Path, or an open binary file, which is read to its end and left open.
            media_type: Such as ``image/png``; it becomes part of the reference, not of the blob.

        Raises:
            InputError: the payload cannot be read, or the media type is none; not retryable.
            BlobTooLargeError: it is larger than ``blob_bytes_max``; not retryable.

        Delivery:
            If the process dies here, at most a file in ``tmp`` is left, which verify names and
            collect removes. A blob that is there with the right size is not written again; in a
            local folder its age begins anew. An object store (S3, GCS, Azure) is written to each
            time, so that its lifecycle rules count from the last put.

        Cost:
            One write, an fsync of the file and of three folders; memory for a chunk of 1 MiB. A
            file or stream for a URL is first copied to a local temporary file, since its name is
            its hash; then one upload and one look.
        """
        media_type = check_media_type(media_type)
        with contextlib.ExitStack() as stack:
            source: bytes | Iterator[bytes]
            if isinstance(data, (bytes, bytearray, memoryview)):
                source = bytes(data)
                if len(source) > self.blob_bytes_max:
                    raise _too_large(self.blob_bytes_max)
            else:
                file = stack.enter_context(_open(data)) if isinstance(data, Path) else data
                source = _read(file, self.blob_bytes_max)
            with self._mapped("write to"):
                digest, size = self._place.store(source)
        return str(BlobReference(digest, size, media_type))

    def attach(
        self, event: Event, field: str, data: Payload, *, media_type: str | None = None
    ) -> Event:
        """Put a payload and return the event with the reference in this field.

        A value that the event has in the field is replaced. Raises, Delivery and Cost: :meth:`put`.
        """
        reference = self.put(data, media_type=media_type)
        return Event(event.key, event.time, {**event.fields, field: reference})

    # --- reading ---------------------------------------------------------------------------------

    def get(self, reference: str) -> bytes:
        """The payload, whole and verified.

        Raises:
            BlobReferenceError: it is no reference; not retryable.
            BlobMissingError: the blob is not there; not retryable.
            BlobCorruptError: its content is not what was put; not retryable.
            BlobTooLargeError: it is larger than ``blob_bytes_max``: use :meth:`open`.

        Cost:
            One look, one read and one hash; the payload's size in memory. Of a URL two requests.
        """
        wanted = BlobReference.parse(reference)
        if wanted.size > self.blob_bytes_max:
            raise BlobTooLargeError(
                f"blob {wanted.digest} has {wanted.size} bytes, more than {self.blob_bytes_max}",
                hint="Read it piece by piece with open(), or raise blob_bytes_max.",
            )
        # Before anything is loaded: a file of any size may stand under the name.
        self._check_size(wanted)
        with self._mapped("read", wanted):
            data = self._place.read(wanted.digest)
        if digest_of(data) != wanted.digest:
            raise self._corrupt(wanted, "its content has another SHA-256")
        return data

    def fetch(self, event: Event, field: str) -> bytes:
        """The payload that a field of an event refers to: :meth:`get` for handlers.

        Raises:
            BlobReferenceError: the field is not there or holds no reference; not retryable.
        """
        if field not in event.fields:
            raise BlobReferenceError(
                f"event of {event.key!r} has no field {field!r}",
                hint=f"Its fields are: {', '.join(event.fields) or 'none'}.",
            )
        try:
            BlobReference.parse(event.fields[field])
        except BlobReferenceError as error:
            raise BlobReferenceError(f"field {field!r} of {event.key!r}: {error.message}") from None
        return self.get(cast(str, event.fields[field]))

    def open(self, reference: str) -> BinaryIO:
        """The payload as a file to read from, for what is too large for the memory.

        It cannot seek. Its last piece is handed out only when all of it is verified: who has come
        to the end has read what was put. Close it, or use it in a ``with`` statement.

        Raises:
            BlobReferenceError, BlobMissingError, BlobCorruptError: as :meth:`get`; the last also
                while reading.
        """
        wanted = BlobReference.parse(reference)
        self._check_size(wanted)
        return cast(BinaryIO, io.BufferedReader(_Stream(self._verified(wanted))))

    def exists(self, reference: str) -> bool:
        """Whether the blob is there with the size that the reference says; its content is not read.

        Raises:
            BlobReferenceError: it is no reference; not retryable.
        """
        wanted = BlobReference.parse(reference)
        try:
            self._check_size(wanted)
        except (BlobMissingError, BlobCorruptError):
            return False
        return True

    # --- in threads ------------------------------------------------------------------------------

    async def aput(self, data: Payload, *, media_type: str | None = None) -> str:
        """:meth:`put` in a thread; if it is cancelled, the thread still goes on to its end."""
        return await asyncio.to_thread(self.put, data, media_type=media_type)

    async def aattach(
        self, event: Event, field: str, data: Payload, *, media_type: str | None = None
    ) -> Event:
        """:meth:`attach` in a thread, for async producers."""
        return await asyncio.to_thread(self.attach, event, field, data, media_type=media_type)

    async def aget(self, reference: str) -> bytes:
        """:meth:`get` in a thread."""
        return await asyncio.to_thread(self.get, reference)

    async def afetch(self, event: Event, field: str) -> bytes:
        """:meth:`fetch` in a thread, for async handlers."""
        return await asyncio.to_thread(self.fetch, event, field)

    # --- keeping house ---------------------------------------------------------------------------

    def delete(self, reference: str) -> bool:
        """Remove a blob, for all events that refer to the same content.

        Returns:
            Whether it was there.

        Raises:
            BlobReferenceError: it is no reference; not retryable.
        """
        wanted = BlobReference.parse(reference)
        try:
            with self._mapped("remove from", wanted):
                self._place.remove(wanted.digest)
        except BlobMissingError:
            return False
        return True

    def verify(self, expected: Iterable[str] = ()) -> list[BlobFinding]:
        """Read every blob and say what is wrong; nothing is changed.

        Args:
            expected: References that have to be there.

        Returns:
            What was found, in no order; empty when all is well. A temporary file counts as stray
            an hour after its put began.

        Raises:
            BlobReferenceError: one of ``expected`` is no reference; not retryable.

        Cost:
            Reads everything, piece by piece; of a URL one listing and all of its bytes.
        """
        findings: dict[str, BlobFinding] = {}
        for wanted in {BlobReference.parse(reference) for reference in expected}:
            path = self._where(wanted)
            try:
                self._check_size(wanted)
            except BlobMissingError:
                findings[path] = BlobFinding("missing", path, f"{wanted} refers to it")
            except BlobCorruptError:
                findings[path] = BlobFinding("corrupt", path, f"it is not as long as {wanted} says")
        with self._mapped("read"):
            for relative in self._place.files():
                if found := self._look_at(relative):
                    findings[found.path] = found
        return list(findings.values())

    def _look_at(self, relative: str) -> BlobFinding | None:
        path = self._place.path(relative)
        if found := BLOB_PATH.fullmatch(relative):
            digest = hashlib.sha256()
            try:
                for piece in self._place.pieces(found[3]):
                    digest.update(piece)
            except FileNotFoundError:
                return None  # Removed since it was listed.
            except OSError as error:
                # One bad sector must not hide what the rest of the disk is like.
                return BlobFinding("unreadable", path, f"it cannot be read: {error}")
            if digest.hexdigest() == found[3]:
                return None
            return BlobFinding("corrupt", path, f"its content has SHA-256 {digest.hexdigest()}")
        if found := TEMP_PATH.fullmatch(relative):
            age_ms = now_ms() - int(found[1])
            if age_ms < BLOB_STRAY_MS_MIN:
                return None  # A put in progress, most likely.
            ago = format_duration(age_ms)
            return BlobFinding("stray", path, f"its put began {ago} ago and did not end")
        return BlobFinding("stray", path, "it is none of the files that are written here")

    def collect(self, keep: Iterable[str] = (), *, older_than: str | int) -> Collected:
        """Remove the blobs of a local folder that nothing refers to any more.

        Args:
            keep: References to keep whatever their age; read to its end before anything is removed.
            older_than: Age since the last put, ms or ``"7d"``, at least an hour. Longer than it
                takes to gather ``keep`` and to send an event after its put; without ``keep``,
                longer than stream, dead letters and archive keep an event.

        Raises:
            ConfigError: the age is too small, or the blobs are behind a URL; not retryable.
            BlobReferenceError: something in ``keep`` is no reference; nothing was removed.

        Delivery:
            Safe while others put: a put of a blob that is about to go either renews its age or
            writes it again. If the process dies here, the rest is left for the next time.

        Cost:
            Lists the folder; one lock and one look per blob.
        """
        age_ms = parse_duration(older_than, name="older_than")
        if age_ms < BLOB_AGE_MS_MIN:
            raise ConfigError(
                f"older_than is {format_duration(age_ms)}, less than "
                f"{format_duration(BLOB_AGE_MS_MIN)}",
                hint="An event is sent after its blob is put, and may have to wait for its server.",
            )
        if not isinstance(self._place, Folder):
            raise ConfigError(
                f"collect works in a local folder alone, not in {self._place.path('')}",
                hint="Only there can it take turns with a put; let the store's lifecycle rules "
                "remove what is older than the stream keeps, see docs/blobs.md.",
            )
        digests = {BlobReference.parse(reference).digest for reference in keep}
        with self._mapped("remove from"):
            return self._place.collect(digests, now_ms() - age_ms)

    # --- verifying, and errors -------------------------------------------------------------------

    def _check_size(self, wanted: BlobReference) -> None:
        with self._mapped("read", wanted):
            size = self._place.size(wanted.digest)
        if size != wanted.size:
            raise self._corrupt(wanted, f"it has {size} bytes")

    def _verified(self, wanted: BlobReference) -> Generator[bytes]:
        """The blob piece by piece; the last one is held back until everything is verified."""
        digest, held = hashlib.sha256(), b""
        with self._mapped("read", wanted):
            for piece in self._place.pieces(wanted.digest):
                if held:
                    yield held
                digest.update(piece)
                held = piece
        if digest.hexdigest() != wanted.digest:
            raise self._corrupt(wanted, "its content has another SHA-256")
        if held:
            yield held

    def _where(self, wanted: BlobReference) -> str:
        return self._place.path(path_of(wanted.digest))

    def _corrupt(self, wanted: BlobReference, why: str) -> BlobCorruptError:
        return BlobCorruptError(
            f"{self._where(wanted)} is not what {wanted} says: {why}", reference=str(wanted)
        )

    @contextlib.contextmanager
    def _mapped(self, doing: str, wanted: BlobReference | None = None) -> Generator[None]:
        """Turn what the file system or fsspec raises into this package's errors."""
        try:
            yield
        except StandpipeError:
            raise
        except self._place.errors as error:
            place = self._place.path("")
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                if wanted is not None and self._place.is_there():
                    raise BlobMissingError(
                        f"{self._where(wanted)} is not there, to which {wanted} refers",
                        reference=str(wanted),
                    ) from error
                reason = f"{error.filename or place} is not there"
            message = f"cannot {doing} {place}: {reason}"
            is_denied = isinstance(error, PermissionError) or (
                isinstance(error, OSError) and error.errno == errno.EROFS
            )
            raise (BlobDeniedError if is_denied else BlobStoreError)(message) from error


class _Stream(io.RawIOBase):
    """Pieces as a file. Once reading has failed it fails for good, lest it looks like the end."""

    def __init__(self, pieces: Generator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        piece = self._take()
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(piece))
        target[:count] = piece[:count]
        self._piece = piece[count:]
        return count

    def readall(self) -> bytes:
        pieces: list[memoryview] = []
        while piece := self._take():
            pieces.append(piece)
            self._piece = piece[len(piece) :]
        return b"".join(pieces)

    def _take(self) -> memoryview:
        """What is left of the last piece, or the next one; nothing at the end."""
        if self._error is not None:
            raise self._error
        if not self._piece:
            try:
                self._piece = memoryview(next(self._pieces, b""))
            except BaseException as error:
                self._error = error
                raise
        return self._piece

    def close(self) -> None:
        self._pieces.close()
        super().close()


def _place(where: str | Path, options: Mapping[str, Any]) -> Place:
    folder = where
    if isinstance(where, str) and "://" in where:
        scheme = where.partition("://")[0].lower()
        if scheme not in ("file", "local"):
            return Remote(where, options)
        # Our own folder does more than fsspec's: it renames, forces to disk and takes turns.
        parts = urlsplit(where)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"{where!r} names the host {parts.netloc!r}", hint="Write file:///path/of/folder."
            )
        folder = unquote(parts.path)
    if options:
        raise ConfigError(
            f"a local folder takes no options, but was given {', '.join(options)}",
            hint="Options are for URLs.",
        )
    if not str(folder):
        raise ConfigError("no folder is named", hint="Name one, or a URL such as s3://bucket/path.")
    return Folder(Path(folder))


# --- what is put ---------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="Check the path and its permissions."
        ) from error


def _read(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """The chunks of an open file; what goes wrong with it is the caller's, not the place's."""
    size = 0
    while True:
        try:
            piece = cast(object, file.read(BLOB_CHUNK_BYTES))
        except Exception as error:
            raise InputError(
                f"the payload cannot be read: {error}",
                hint="Nothing was put; give bytes, a Path or a file that is open for reading.",
            ) from error
        if not isinstance(piece, bytes):
            raise InputError(
                f"the payload gives {type(piece).__name__} instead of bytes",
                hint="Open the file in binary mode, and not as a non-blocking one.",
            )
        if not piece:
            return
        size += len(piece)
        if size > bytes_max:
            raise _too_large(bytes_max)
        yield piece


def _too_large(bytes_max: int) -> BlobTooLargeError:
    return BlobTooLargeError(f"the payload has more than {bytes_max} bytes")
