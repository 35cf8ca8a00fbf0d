"""What the server or the way to it says."""

from __future__ import annotations

from standpipe.errors.root import StandpipeError


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
