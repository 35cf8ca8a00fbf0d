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

# In the order of the tree: it is the order of the pages that are made of it.
# isort: off
from standpipe.errors.root import (
    StandpipeError,
)
from standpipe.errors.given import (
    InputError,
    ConfigError,
    EventError,
    FieldError,
    EventTooLargeError,
    CodecError,
    LineError,
    EntryUnitError,
    HandlerError,
    AckError,
    ForkedError,
    MissingExtraError,
    DecodeError,
    EventTypeError,
    StreamError,
    StreamNotFoundError,
    NotKeptError,
    WrongTypeError,
    GroupNotFoundError,
    ConsumerNotFoundError,
    GroupInUseError,
    LetterNotFoundError,
)
from standpipe.errors.sending import (
    ProducerError,
    BackpressureError,
    ProducerClosedError,
    NotAcknowledgedError,
    UnknownOutcomeError,
    SpooledError,
    SequenceError,
    SpoolError,
    SpoolFullError,
    SpoolInUseError,
    SpoolUnusableError,
    SpoolNotDrainedError,
    SpoolDamagedError,
    SpoolOrderError,
)
from standpipe.errors.places import (
    BlobError,
    BlobReferenceError,
    BlobMissingError,
    BlobCorruptError,
    BlobTooLargeError,
    BlobDeniedError,
    BlobStoreError,
    SinkError,
    SinkUnreachableError,
    SinkUnusableError,
    SinkRefusedError,
    ArchiveError,
    ArchiveNotFoundError,
    ArchiveUnreachableError,
    ArchiveUnusableError,
    ArchiveDamagedError,
    ArchiveInUseError,
    ReplayError,
    ReplayFileError,
    ReplayInUseError,
    ReplayLostError,
)
from standpipe.errors.server import (
    ServerError,
    ServerUnavailableError,
    ReplyTimeoutError,
    ServerFullError,
    ServerNearlyFullError,
    NotPersistingError,
    ReadOnlyServerError,
    ServerLoadingError,
    ServerBusyError,
    PrimaryDownError,
    TooFewReplicasError,
    NotDurableError,
    StreamFullError,
    TooManyClientsError,
    ClusterDownError,
    SlotMovedError,
    ScriptMissingError,
    AuthenticationError,
    NotPermittedError,
    CommandMissingError,
    ReplyError,
)
from standpipe.errors.tools import (
    LedgerError,
    LedgerUnusableError,
    LedgerDamagedError,
    LedgerUnsoundError,
    ProvisionError,
    EmbeddedServerError,
    BinaryMissingError,
    FolderUnusableError,
    FolderInUseError,
    PortTakenError,
    ServerExitedError,
)
# isort: on

__all__ = [
    "AckError",
    "ArchiveDamagedError",
    "ArchiveError",
    "ArchiveInUseError",
    "ArchiveNotFoundError",
    "ArchiveUnreachableError",
    "ArchiveUnusableError",
    "AuthenticationError",
    "BackpressureError",
    "BinaryMissingError",
    "BlobCorruptError",
    "BlobDeniedError",
    "BlobError",
    "BlobMissingError",
    "BlobReferenceError",
    "BlobStoreError",
    "BlobTooLargeError",
    "ClusterDownError",
    "CodecError",
    "CommandMissingError",
    "ConfigError",
    "ConsumerNotFoundError",
    "DecodeError",
    "EmbeddedServerError",
    "EntryUnitError",
    "EventError",
    "EventTooLargeError",
    "EventTypeError",
    "FieldError",
    "FolderInUseError",
    "FolderUnusableError",
    "ForkedError",
    "GroupInUseError",
    "GroupNotFoundError",
    "HandlerError",
    "InputError",
    "LedgerDamagedError",
    "LedgerError",
    "LedgerUnsoundError",
    "LedgerUnusableError",
    "LetterNotFoundError",
    "LineError",
    "MissingExtraError",
    "NotAcknowledgedError",
    "NotDurableError",
    "NotKeptError",
    "NotPermittedError",
    "NotPersistingError",
    "PortTakenError",
    "PrimaryDownError",
    "ProducerClosedError",
    "ProducerError",
    "ProvisionError",
    "ReadOnlyServerError",
    "ReplayError",
    "ReplayFileError",
    "ReplayInUseError",
    "ReplayLostError",
    "ReplyError",
    "ReplyTimeoutError",
    "ScriptMissingError",
    "SequenceError",
    "ServerBusyError",
    "ServerError",
    "ServerExitedError",
    "ServerFullError",
    "ServerLoadingError",
    "ServerNearlyFullError",
    "ServerUnavailableError",
    "SinkError",
    "SinkRefusedError",
    "SinkUnreachableError",
    "SinkUnusableError",
    "SlotMovedError",
    "SpoolDamagedError",
    "SpoolError",
    "SpoolFullError",
    "SpoolInUseError",
    "SpoolNotDrainedError",
    "SpoolOrderError",
    "SpoolUnusableError",
    "SpooledError",
    "StandpipeError",
    "StreamError",
    "StreamFullError",
    "StreamNotFoundError",
    "TooFewReplicasError",
    "TooManyClientsError",
    "UnknownOutcomeError",
    "WrongTypeError",
]
