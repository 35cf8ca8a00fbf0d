"""References to blobs, the names that follow from them, and the pieces that are hashed. Pure."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from typing import IO, Final, NamedTuple

from standpipe.clock import now_ms
from standpipe.errors import BlobReferenceError, InputError
from standpipe.event import Event

TEMP: Final = "tmp"
BLOB_PATH: Final = re.compile(r"([0-9a-f]{2})/([0-9a-f]{2})/(\1\2[0-9a-f]{60})")
TEMP_PATH: Final = re.compile(r"tmp/([0-9]{1,15})-[0-9a-f]{32}")

_PREFIX: Final = "blob:sha256:"
# One spelling per reference, and nothing but hex in the part that becomes a path.
_REFERENCE: Final = re.compile(
    r"blob:sha256:(?P<digest>[0-9a-f]{64});size=(?P<size>0|[1-9][0-9]{0,17})"
    r"(?:;type=(?P<type>[^;]{1,255}))?"
)
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
)


class BlobReference(NamedTuple):
    """What the text of a reference says: ``blob:sha256:<64 hex>;size=123456;type=image/png``."""

    digest: str
    """The SHA-256 of the content, in lower-case hex."""
    size: int
    """Bytes."""
    media_type: str | None
    """Such as ``image/png``; None when it was not given."""

    def __str__(self) -> str:
        end = f";type={self.media_type}" if self.media_type else ""
        return f"{_PREFIX}{self.digest};size={self.size}{end}"

    @classmethod
    def parse(cls, text: object) -> BlobReference:
        """Read a reference.

        Raises:
            BlobReferenceError: it is none; not retryable.
        """
        found = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
        if found is None or (found["type"] and not _MEDIA_TYPE.fullmatch(found["type"])):
            shown = repr(text)
            raise BlobReferenceError(
                f"{shown if len(shown) <= 200 else shown[:200] + '…'} is not a blob reference"
            )
        return cls(found["digest"], int(found["size"]), found["type"])


def references(event: Event) -> list[str]:
    """The references among an event's fields, such as for the ``keep`` of :meth:`Blobs.collect`.

    Raises:
        BlobReferenceError: a text begins like a reference and is none: it may be a damaged one.
    """
    texts = (value for value in event.fields.values() if isinstance(value, str))
    return [str(BlobReference.parse(text)) for text in texts if text.startswith(_PREFIX)]


def check_media_type(media_type: str | None) -> str | None:
    """The media type, or None for none.

    Raises:
        InputError: it is not of the form type/subtype.
    """
    if media_type is None or _MEDIA_TYPE.fullmatch(media_type):
        return media_type
    raise InputError(
        f"media type is {media_type!r}",
        hint="Write type/subtype without parameters, such as image/png.",
    )


def path_of(digest: str) -> str:
    """Where a blob lies below the folder or URL."""
    return f"{digest[:2]}/{digest[2:4]}/{digest}"


def temp_path() -> str:
    """A name for a put in progress; it says when the put began."""
    return f"{TEMP}/{now_ms()}-{uuid.uuid4().hex}"


def digest_of(data: bytes) -> str:
    """The SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()


def copy_hashed(pieces: Iterable[bytes], file: IO[bytes]) -> tuple[str, int]:
    """Write the pieces; their SHA-256 and size."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
        size += len(piece)
    return digest.hexdigest(), size
