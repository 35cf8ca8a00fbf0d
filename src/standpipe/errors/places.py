"""Places beside the stream: payloads, sinks, the archive, what is replayed into."""

from __future__ import annotations

from standpipe.errors.root import StandpipeError


class BlobError(StandpipeError):
    """A payload beside the stream could not be kept or given back."""


class BlobReferenceError(BlobError):
    """A text is no reference to a blob."""

    default_hint = (
        "A reference is what put() or attach() returned: blob:sha256:<64 hex>;size=<bytes>."
    )


class BlobMissingError(BlobError):
    """The blob that a reference names is not there.

    Args:
        reference: The reference.
    """

    default_hint = (
        "Check that this process sees the folder or URL that the producer puts into, and that "
        "nothing removes blobs before their events; put the payload again to mend it."
    )

    def __init__(self, message: str, *, reference: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reference = reference


class BlobCorruptError(BlobError):
    """The content of a blob is not what was put.

    Args:
        reference: The reference.
    """

    default_hint = "Check the disk; delete() the blob and put the payload again from where it came."

    def __init__(self, message: str, *, reference: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reference = reference


class BlobTooLargeError(BlobError):
    """A payload is larger than ``blob_bytes_max``."""

    default_hint = "Raise blob_bytes_max, or put the payload in parts."


class BlobDeniedError(BlobError):
    """Permissions, or a read-only file system, forbid it."""

    default_hint = "Give this user the right to read, and to put also to write, in that place."


class BlobStoreError(BlobError):
    """The place of the blobs failed: disk full, I/O error, network, folder not there."""

    retryable = True
    default_hint = (
        "Check the free space, that the disk is mounted and the URL reachable, and put it again."
    )


class SinkError(StandpipeError):
    """A sink, the place where a worker keeps events, failed or refused."""


class SinkUnreachableError(SinkError):
    """The database or folder is down, locked, full or out of reach: its events wait."""

    retryable = True
    default_hint = "Bring it back: the events stay in the stream until then, and none is given up."


class SinkUnusableError(SinkError):
    """The table or folder, or the rights on it, are not what the sink needs: its events wait."""

    default_hint = "docs/sinks.md says which columns and which unique index the table has to have."


class SinkRefusedError(SinkError):
    """An event does not fit the table; it becomes a dead letter with this reason."""

    default_hint = (
        "Change the column or the producer, then requeue the dead letter; or send that field under "
        "another name."
    )


class ArchiveError(StandpipeError):
    """The archive, or the place where it is kept, failed or refused."""


class ArchiveNotFoundError(ArchiveError):
    """Nothing of the stream is archived there."""

    default_hint = (
        "Check the folder or URL and the name; `standpipe archive run` archives a stream."
    )


class ArchiveUnreachableError(ArchiveError):
    """The place failed: disk full, I/O error, network, store not there. Nothing is lost by it."""

    retryable = True
    default_hint = (
        "Check the free space, that the disk is mounted and the URL reachable: what is not yet "
        "archived stays in the stream."
    )


class ArchiveUnusableError(ArchiveError):
    """Permissions, or something that stands in the way, forbid it."""

    default_hint = "Give a folder of its own that this user may read and write."


class ArchiveDamagedError(ArchiveError):
    """A file of the archive is not what was written, or is gone."""

    default_hint = "`standpipe archive verify` names every such file; put a copy in its place."


class ArchiveInUseError(ArchiveError):
    """Another process archives the shard.

    Args:
        left_ms: For how long it has it, at least, ms.
    """

    default_hint = "Wait until it ends; of one that died the lease is over within seconds."

    def __init__(self, message: str, *, left_ms: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.left_ms = left_ms


class ReplayError(StandpipeError):
    """A replay could not be carried out."""


class ReplayFileError(ReplayError):
    """The file of a replay cannot be written: disk full, rights, no such folder. None was made."""

    default_hint = "Give the path of a file in a folder with free space that this user may write."


class ReplayInUseError(ReplayError):
    """Another process replays into the stream under the same name."""

    default_hint = "Wait until it ends, or give this replay another name with --name."


class ReplayLostError(ReplayError):
    """A replay was interrupted, and the events that it was sending are not kept any more: which of
    them have arrived cannot be told."""

    default_hint = (
        "Look at the end of the target stream, and begin anew with another --name and --from."
    )
