"""Whatever groups do, ``block`` loses nothing and ``ring`` counts what each group loses.

The model is a list of entries, and per group what it was given last and has not acknowledged. After
each step the real server's entries are compared with it: what is missing has gone, and the model
says for whom it was not done with.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from standpipe import Stream
from standpipe.clock import now_ms
from standpipe.codec import (
    CODECS,
    MARKS,
    PlainLayout,
    encode_columns,
    encode_plain,
    events_to_table,
    rows_part,
    rows_payload,
)
from standpipe.errors import StreamFullError
from standpipe.event import EventId
from standpipe.retention import Janitor
from standpipe.retention.janitor import keep_entries
from standpipe.wire import script
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer

pytestmark = pytest.mark.servers
GROUPS = ("a", "b", "archive")
"""One is called as the archive is counted: they must not be taken for each other."""
HOUR_MS = 3_600_000
NOTHING = EventId(0, 0)


@dataclass
class GroupModel:
    last: EventId
    pending: set[EventId] = field(default_factory=set)


class Kept(RuleBasedStateMachine):
    """A stream with limits, its groups, an archive and a janitor."""

    server: TestServer

    @initialize(
        when_full=st.sampled_from(["block", "ring"]),
        max_len=st.sampled_from([None, 1, 4, 30, 400]),
        old=st.sampled_from([0, 5, 150]),
        is_busy=st.booleans(),
    )
    def begin(self, when_full: Any, max_len: int | None, old: int, is_busy: bool) -> None:
        self.runner = asyncio.Runner()
        name = f"model_{uuid.uuid4().hex}"
        self.stream = Stream(name, self.server.url, when_full=when_full, max_len=max_len)
        self.groups: dict[str, GroupModel] = {}
        self.archived: EventId | None = None
        self.lost: Counter[str] = Counter()
        self.gone = 0
        self.is_busy = is_busy
        self.runner.run(self.stream.open())
        self.key = self.stream.keys[0]
        start = now_ms() - 2 * HOUR_MS
        self.entries = [(EventId(start, n), 1) for n in range(old)]
        adds = [("XADD", self.key, found.entry, "n", 1) for found, _ in self.entries]
        self.runner.run(self.stream.server.call_many(adds, key=self.key))
        self.call("XGROUP", "CREATE", self.key, GROUPS[0], 0, "MKSTREAM")
        self.groups[GROUPS[0]] = GroupModel(NOTHING)

    def call(self, *arguments: Any) -> Any:
        return self.runner.run(self.stream.server.call(*arguments, key=self.stream.name))

    # --- what happens ---

    @rule(codec=st.sampled_from(CODECS), count=st.sampled_from([1, 2, 7, 60]))
    def add(self, codec: str, count: int) -> None:
        definition = self.stream.definition
        if codec == "plain":
            count = min(count, definition.spare_entries)
        events = make_events(count)
        if codec == "plain":
            payload: list[Any] = []
            for event in events:
                fields = encode_plain(event, PlainLayout())
                payload += [len(fields), *fields]
        elif codec == "rows":
            payload = [rows_payload(count, [rows_part(events)], compress=True)]
        else:
            payload = [encode_columns(events_to_table(events), compress=False)]
        beside = (self.stream.trimmed_key(0), self.stream.lost_key(0), self.stream.archived_key(0))
        keys = (self.key, f"{{{self.key}}}:seq:m", *beside)
        arguments = ("", 0, 0, 60_000, self.stream.shard_limits, MARKS[codec], count, *payload)
        try:
            reply = self.runner.run(self.stream.server.run(script("append"), keys, *arguments))
        except StreamFullError:
            assert definition.when_full == "block"
            reply = ["full"]
        for first, entries in zip(reply[1::2], reply[2::2], strict=True):
            found = EventId.parse(first)
            per_entry = count if MARKS[codec] else 1
            ids = [EventId(found.ms, found.seq + n) for n in range(entries)]
            self.entries += [(entry_id, per_entry) for entry_id in ids]
        self.compare()

    @precondition(lambda self: len(self.groups) < len(GROUPS))
    @rule(data=st.data(), start=st.sampled_from(["0", "$", "middle"]))
    def create(self, data: st.DataObject, start: str) -> None:
        name = data.draw(st.sampled_from([name for name in GROUPS if name not in self.groups]))
        at = self.place(data) if start == "middle" else NOTHING
        if start == "$":
            at = max([entry_id for entry_id, _ in self.entries], default=NOTHING)
        self.call("XGROUP", "CREATE", self.key, name, at.entry, "MKSTREAM")
        self.groups[name] = GroupModel(at)

    def place(self, data: st.DataObject) -> EventId:
        ids = [entry_id for entry_id, _ in self.entries]
        return data.draw(st.sampled_from([NOTHING, *ids]))

    def a_group(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.groups)))

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        name, at = self.a_group(data), self.place(data)
        self.call("XGROUP", "SETID", self.key, name, at.entry)
        self.groups[name].last = at

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), consumer=st.sampled_from("xy"), count=st.sampled_from([1, 3, 200]))
    def read(self, data: st.DataObject, consumer: str, count: int) -> None:
        name = self.a_group(data)
        command = ("XREADGROUP", "GROUP", name, consumer, "COUNT", count, "STREAMS", self.key, ">")
        reply = self.call(*command)
        rows = next(iter(reply.values())) if reply else []
        for entry_id, _ in rows:
            found = EventId.parse(entry_id)
            self.groups[name].last = found
            self.groups[name].pending.add(found)

    @precondition(lambda self: any(group.pending for group in self.groups.values()))
    @rule(data=st.data(), all_of_them=st.booleans())
    def acknowledge(self, data: st.DataObject, all_of_them: bool) -> None:
        name = self.a_group(data)
        pending = self.groups[name].pending
        if pending:
            ids = sorted(pending)
            chosen = ids if all_of_them else data.draw(st.lists(st.sampled_from(ids), max_size=9))
            if chosen:
                self.call("XACK", self.key, name, *(found.entry for found in chosen))
                pending.difference_update(chosen)

    @precondition(lambda self: any(group.pending for group in self.groups.values()))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        name = self.a_group(data)
        there = {entry_id for entry_id, _ in self.entries}
        # One whose entry is gone is taken off the list by a claim, on most servers.
        if ids := sorted(self.groups[name].pending & there):
            found = data.draw(st.sampled_from(ids))
            self.call("XCLAIM", self.key, name, "z", 0, found.entry, "JUSTID")

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def destroy(self, data: st.DataObject) -> None:
        name = self.a_group(data)
        self.call("XGROUP", "DESTROY", self.key, name)
        del self.groups[name]

    @rule(data=st.data(), there=st.booleans())
    def archive(self, data: st.DataObject, there: bool) -> None:
        key = self.stream.archived_key(0)
        self.archived = self.place(data) if there else None
        self.call("SET", key, self.archived.entry) if self.archived else self.call("DEL", key)

    @rule(
        max_len=st.sampled_from([None, 2, 10, 100]),
        max_age_ms=st.sampled_from([None, HOUR_MS]),
        when_full=st.sampled_from(["block", "ring"]),
    )
    def limit(self, **limits: Any) -> None:
        self.runner.run(self.stream.set_limits(**limits))

    @invariant()
    def keep_clean(self) -> None:
        """In half of the histories the janitor comes after every step."""
        if hasattr(self, "runner") and self.is_busy:
            self.clean()

    @rule()
    def clean(self) -> None:
        self.runner.run(Janitor(self.stream).once())
        self.compare()
        definition = self.stream.definition
        keep = keep_entries(definition)
        over = keep is not None and len(self.entries) > keep
        old = definition.max_age_ms is not None and any(
            entry_id.ms < now_ms() - HOUR_MS for entry_id, _ in self.entries
        )
        if definition.when_full == "block" and (over or old):
            # What is left above the limits is held by somebody.
            assert self.waits_for(self.entries[0][0])
        elif definition.when_full == "ring":
            assert not old
            assert definition.max_len is None or len(self.entries) <= definition.max_len

    # --- what has to hold ---

    def waits_for(self, entry_id: EventId) -> list[str]:
        """Who is not done with an entry."""
        found = [
            f"group:{name}"
            for name, group in self.groups.items()
            if entry_id > group.last or entry_id in group.pending
        ]
        if self.archived is not None and entry_id > self.archived:
            found.append("archive")
        return found

    def compare(self) -> None:
        there = {EventId.parse(row[0]) for row in self.call("XRANGE", self.key, "-", "+")}
        gone = [entry for entry in self.entries if entry[0] not in there]
        assert gone == self.entries[: len(gone)], "the oldest go first"
        self.entries = self.entries[len(gone) :]
        assert {entry_id for entry_id, _ in self.entries} == there
        self.gone += len(gone)
        for entry_id, events in gone:
            waiting = self.waits_for(entry_id)
            assert not waiting or self.stream.definition.when_full == "ring", waiting
            for name in waiting:
                self.lost[name] += events
        counted = self.call("HGETALL", self.stream.lost_key(0))
        assert {name.decode(): int(count) for name, count in counted.items()} == self.lost
        assert int(self.call("GET", self.stream.trimmed_key(0)) or 0) == self.gone

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            try:
                self.clean()
            finally:
                self.call("UNLINK", self.key)
                self.runner.run(self.stream.close())
                self.runner.close()


def _run(server: TestServer, examples: int) -> None:
    class OnServer(Kept):
        pass

    OnServer.server = server
    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_is_lost_uncounted(server: TestServer) -> None:
    """Entries are added, read, acknowledged, claimed, groups come, move and go, limits change: in
    ``block`` nothing goes that anybody waits for, in ``ring`` the counters say for each group how
    many events it has lost; and what nobody waits for does go."""
    _run(server, 12)


@pytest.mark.slow
def test_nothing_is_lost_uncounted_in_many_histories(server: TestServer) -> None:
    """The same in 500 histories."""
    _run(server, 500)
