"""Standpipe: a message queue and ingestion layer for telemetry on Redis and Valkey Streams.

The names below are the public API; every other module is private. They are imported when first
used, so that ``import standpipe`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from standpipe import datasets, errors, groups, sync
    from standpipe.archive import Archive, Archiver
    from standpipe.deadletter import DeadLetters, Selection
    from standpipe.errors import StandpipeError
    from standpipe.event import Batch, Event, EventId
    from standpipe.producer import Producer, Receipt
    from standpipe.reader import Reader
    from standpipe.server.embedded import EmbeddedServer
    from standpipe.stream import Stream
    from standpipe.worker import Context, Reject, Retry, Worker

    __version__: str

__all__ = [
    "Archive",
    "Archiver",
    "Batch",
    "Context",
    "DeadLetters",
    "EmbeddedServer",
    "Event",
    "EventId",
    "Producer",
    "Reader",
    "Receipt",
    "Reject",
    "Retry",
    "Selection",
    "StandpipeError",
    "Stream",
    "Worker",
    "__version__",
    "datasets",
    "errors",
    "groups",
    "sync",
]

_HOMES = {
    "Archive": "archive",
    "Archiver": "archive",
    "Batch": "event",
    "Context": "worker",
    "DeadLetters": "deadletter",
    "EmbeddedServer": "server.embedded",
    "Event": "event",
    "EventId": "event",
    "Producer": "producer",
    "Reader": "reader",
    "Receipt": "producer",
    "Reject": "worker",
    "Retry": "worker",
    "Selection": "deadletter",
    "StandpipeError": "errors",
    "Stream": "stream",
    "Worker": "worker",
}
_MODULES = ("datasets", "errors", "groups", "sync")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"standpipe.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"standpipe.{_HOMES[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("standpipe")
    else:
        raise AttributeError(f"module 'standpipe' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
