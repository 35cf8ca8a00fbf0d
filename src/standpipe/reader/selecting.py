"""Which events and fields of what is read are wanted. Pure."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from standpipe.archive import column_of
from standpipe.codec import ColumnsEntry
from standpipe.codec.table import readers_table
from standpipe.event import Batch, Entry, Event, EventId
from standpipe.reader.tables import ID_COLUMNS, concatenated, with_ids

if TYPE_CHECKING:
    import pyarrow as pa


class Choice:
    """Devices and fields.

    Args:
        keys: Events of these devices alone; None: of all.
        fields: These fields of each event, where it has them; None: all.
    """

    def __init__(self, keys: Collection[str] | None, fields: Collection[str] | None) -> None:
        self.keys = None if keys is None else frozenset(keys)
        self.fields = None if fields is None else tuple(dict.fromkeys(fields))

    @property
    def is_all(self) -> bool:
        return self.keys is None and self.fields is None

    def of(self, batch: Batch) -> Batch:
        """What a batch has of them; events keep their IDs."""
        if self.is_all:
            return batch
        entries = [piece for entry in batch.entries for piece in self._pieces(entry)]
        return Batch(entries, stream=batch.stream, shard=batch.shard)

    def _pieces(self, entry: Entry) -> list[Entry]:
        """An entry as runs of wanted events: the events of a run have consecutive IDs."""
        events = entry.events()
        if self.keys is None:
            return [_Run(entry, entry.id, [self._event(event) for event in events])]
        pieces: list[Entry] = []
        at = 0
        for is_wanted, run in groupby(events, lambda event: event.key in (self.keys or ())):
            found = list(run)
            if is_wanted:
                first = entry.id._replace(index=entry.id.index + at)
                pieces.append(_Run(entry, first, [self._event(event) for event in found]))
            at += len(found)
        return pieces

    def _event(self, event: Event) -> Event:
        if self.fields is None:
            return event
        has = event.fields
        return Event(event.key, event.time, {n: has[n] for n in self.fields if n in has})

    def table(self, batch: Batch) -> pa.Table:
        """What a batch has of them as a table: the columns of an archive's.

        Raises:
            DecodeError: an entry is no table.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.keys is not None and not any(isinstance(e, ColumnsEntry) for e in batch.entries):
            # Of rows, few of which are wanted, the others need not become columns.
            batch = self.of(batch)
        table = with_ids(concatenated([_table(part) for part in _alike(batch.entries)]), batch)
        if self.keys is not None:
            wanted = pa.array(sorted(self.keys), pa.string())
            table = table.filter(pc.is_in(table.column("key"), value_set=wanted))
        if self.fields is not None:
            names = [name for name in map(column_of, self.fields) if name in table.column_names]
            table = table.select([*ID_COLUMNS, *names])
        return table


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Columns blocks by themselves, what else follows each other together."""
    groups: list[list[Entry]] = []
    was_columns = True
    for entry in entries:
        is_columns = isinstance(entry, ColumnsEntry)
        if is_columns or was_columns:
            groups.append([entry])
        else:
            groups[-1].append(entry)
        was_columns = is_columns
    return groups


def _table(entries: Sequence[Entry]) -> pa.Table:
    """Entries as key, time and the columns of fields, under the names that an archive gives."""
    if len(entries) == 1 and isinstance(entries[0], ColumnsEntry):
        table = entries[0].table()
        return table.rename_columns(
            [*table.column_names[:2], *map(column_of, table.column_names[2:])]
        )
    events = [event for entry in entries for event in entry.events()]
    names = set[str]().union(*(event.fields for event in events))
    new = {name: column_of(name) for name in names if column_of(name) != name}
    if new:
        events = [
            Event(e.key, e.time, {new.get(name, name): v for name, v in e.fields.items()})
            for e in events
        ]
    return readers_table(events)


class _Run:
    """Some events of an entry, one after the other."""

    __slots__ = ("_entry", "_events", "count", "id")

    def __init__(self, entry: Entry, first: EventId, events: list[Event]) -> None:
        self._entry = entry
        self._events = events
        self.id = first
        self.count = len(events)

    @property
    def fields(self) -> list[bytes]:
        return self._entry.fields

    def events(self) -> list[Event]:
        return self._events

    def table(self) -> pa.Table:
        return readers_table(self._events)
