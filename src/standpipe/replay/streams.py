"""Replay into another stream, so that a restart neither repeats nor leaves out an event.

It goes in steps. Before each the target's server notes from which event to which it goes, and under
which producer id its events are sent. A producer id is used for one step alone; the events of a
step are sorted by their IDs and cut into blocks always in the same way. So a step that was
interrupted is read and sent again as it was, and the server adds those of its blocks that it does
not have.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import msgspec

from standpipe.clock import now_ms
from standpipe.codec import check_codec, encode_plain
from standpipe.errors import (
    CodecError,
    ConfigError,
    EventError,
    InputError,
    ReplayInUseError,
    ReplayLostError,
)
from standpipe.event import Batch, Event, EventId, check_event
from standpipe.keyspace import side_key
from standpipe.limits import (
    COPY_QUEUE_BATCHES,
    COPY_STEP_EVENTS,
    DECODED_BYTES_MAX,
    SEQUENCE_TTL_MS,
)
from standpipe.producer import Producer
from standpipe.reader import Reader
from standpipe.reader.source import retried
from standpipe.replay.running import Progress, Replayed, Run, until_stopped
from standpipe.stream import Stream
from standpipe.wire import script

log: Final = logging.getLogger("standpipe.replay")

_NO_LIMIT: Final = 2**62


class Note(msgspec.Struct, frozen=True):
    """What the target's server remembers of a replay."""

    source: str
    start: str
    end: str
    producer: str
    """Under which id the events of the step are sent."""
    at: int
    """When this was written, ms."""
    done: dict[str, str] = {}
    """Shard → event behind which the step begins; a shard that is not there begins at the start."""
    step: dict[str, str] = {}
    """Shard → event with which the step ends."""
    events: int = 0
    """In the step."""
    is_complete: bool = False
    """Whether it came to its end, at ``at``."""


async def to_stream(
    reader: Reader,
    target: Stream,
    *,
    name: str | None = None,
    again: bool = False,
    codec: str | None = None,
    acknowledge: str = "memory",
    on_progress: Progress | None = None,
    stop: asyncio.Event | None = None,
) -> Replayed:
    """Send what a reader reads into another stream.

    Args:
        reader: What is read. Where a note is found, it goes on from there, between the bounds that
            it had at the first start.
        target: Where to; opened if it is not. Its events get new IDs, and keep key, time and
            fields.
        name: Under which the target's server remembers how far it is, and for a day after the end
            that it is complete; None: it does not.
        again: Replay once more what is complete under this name, instead of doing nothing. One that
            was interrupted goes on all the same.
        codec: How the target's entries are written; default: the target's.
        acknowledge: As for :class:`standpipe.Producer`.
        on_progress: Called after each step.
        stop: Set it to end after the step in progress.

    Returns:
        What was done in this run: nothing, if it was complete.

    Raises:
        ConfigError: the target is the source, or the name stands for the replay of another stream.
        ReplayInUseError: another process replays under this name.
        ReplayLostError: the step that was interrupted cannot be sent again as it was: some of it
            was trimmed, or more than SEQUENCE_TTL_MS have passed.
        What the reader and the producer raise.

    Delivery: cut connections and servers that restart neither repeat nor lose an event. With a name
        nor does the death of this process, if it is started again within SEQUENCE_TTL_MS (a day)
        and the target's server has kept its data. Without one it begins anew, and what had been
        sent stands there twice.

    Order: as it is read, by key. Following several shards, each in its order.
    """
    is_same_server = target.server.address == reader.stream.server.address
    if target.name == reader.stream.name and is_same_server:
        raise ConfigError(
            f"{target.name!r} would be replayed into itself", hint="Name another stream."
        )
    opened_here = not target.is_open
    await target.open()
    try:
        copying = _Copying(reader, target, name, codec, acknowledge)
        return await copying.run(on_progress, stop, again=again)
    finally:
        if opened_here:
            await target.close()


class _Copying:
    def __init__(
        self, reader: Reader, target: Stream, name: str | None, codec: str | None, acknowledge: str
    ) -> None:
        self._reader = reader
        self._target = target
        self._key = None if name is None else side_key(target.keys[0], f"replay:{name}")
        self._name = name
        self._codec = check_codec(codec or target.definition.codec)
        self._acknowledge = acknowledge
        self._known = b""
        """The note as it stands on the server."""
        source = reader.stream
        self._source = f"{source.name} {source.server.address.shown}"

    async def run(
        self, on_progress: Progress | None, stop: asyncio.Event | None, *, again: bool
    ) -> Replayed:
        run = Run(self._reader, on_progress)
        note = await self._begin(run, again=again)
        if note.is_complete:
            run.done.was_complete_at = note.at
            return run.end(is_complete=True)
        reader = self._resumed(note)
        async with aclosing(_steps(until_stopped(reader.batches(), stop))) as steps:
            async for step in steps:
                before = note.producer
                note = msgspec.structs.replace(
                    note,
                    done=note.done | note.step,
                    step={str(batch.shard): str(_last(batch)) for batch in step},
                    events=sum(map(len, step)),
                    producer=uuid.uuid4().hex,
                    at=now_ms(),
                )
                await self._write(note)
                await self._forget(before)
                run.add(await self._send(step, note, run), reader)
        is_complete = stop is None or not stop.is_set()
        if is_complete and not reader.is_following:
            # Not removed: whoever starts it again cannot know whether this process, which may die
            # now, has come to the end.
            await self._write(msgspec.structs.replace(note, is_complete=True, at=now_ms()))
            await self._forget(note.producer)
        return run.end(is_complete=is_complete or reader.is_following)

    async def _begin(self, run: Run, *, again: bool) -> Note:
        """The note that stands there, its step sent; or a new one."""
        raw: bytes | None = None
        if (key := self._key) is not None:
            call = self._target.server.call
            raw = await retried(self._target, lambda: call("GET", key, key=key))
        found = None if raw is None else self._read(raw)
        self._known = raw or b""
        if found is not None and found.is_complete and not again:
            return found
        if found is None or found.is_complete:
            bounds, begins = self._reader.bounds, await self._reader.begins()
            return Note(
                self._source,
                str(bounds.start),
                str(bounds.end),
                uuid.uuid4().hex,
                now_ms(),
                done={str(shard): str(event) for shard, event in begins.items()},
            )
        note = found
        log.warning("going on with the replay %s behind %s", self._name, note.done | note.step)
        if note.step:
            await self._again(note, run)
        return note

    def _read(self, raw: bytes) -> Note:
        try:
            note = msgspec.json.decode(raw, type=Note)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"the note {self._key} cannot be read: {error}", hint="Give another --name."
            ) from None
        if note.source != self._source:
            raise ConfigError(
                f"the replay {self._name!r} is one of {note.source}, not of {self._source}",
                hint="Give this one another --name.",
            )
        return note

    def _resumed(self, note: Note) -> Reader:
        return self._reader.resumed(
            start=EventId.parse(note.start),
            end=EventId.parse(note.end),
            after=_positions(note.done | note.step),
        )

    async def _again(self, note: Note, run: Run) -> None:
        """Send a step again of which it is not known whether it has arrived."""
        known = [
            await retried(self._target, lambda key=key: self._exists(key, note.producer))
            for key in self._target.keys
        ]
        if now_ms() - note.at > SEQUENCE_TTL_MS and not any(known):
            raise ReplayLostError(
                f"the replay {self._name!r} was interrupted more than a day ago: which of the "
                f"{note.events} events behind {note.done} have arrived is not remembered"
            )
        reader = self._reader.resumed(
            start=EventId.parse(note.start),
            end=EventId.parse(note.end),
            after=_positions(note.done),
            until=_positions(note.step),
        )
        step = [batch async for batch in reader.batches()]
        found = sum(map(len, step))
        if found != note.events:
            raise ReplayLostError(
                f"of the {note.events} events that the replay {self._name!r} was sending when it "
                f"was interrupted, {found} are kept"
            )
        run.add(await self._send(step, note, run), reader)

    async def _exists(self, key: str, producer: str) -> bool:
        return await self._target.server.call("EXISTS", _sequence_key(key, producer), key=key)

    async def _send(self, step: list[Batch], note: Note, run: Run) -> int:
        """Returns how many events were sent."""
        events = _in_order(step)
        try:
            await self._put(events, note.producer, self._codec)
        except CodecError:
            # A field of mixed types fits into no column. Nothing of it was taken yet.
            await self._put(events, note.producer, "rows")
        except EventError:
            taken = [event for event in events if self._can_be_sent(event)]
            run.done.refused += len(events) - len(taken)
            await self._put(taken, note.producer, "rows" if self._codec == "columns" else None)
            return len(taken)
        return len(events)

    async def _put(self, events: list[Event], producer_id: str, codec: str | None) -> None:
        # It must take all or nothing, without a wait in between: how the events are cut into blocks
        # would depend on how fast the server is.
        producer = Producer(
            self._target,
            codec=codec or self._codec,
            on_full="raise",
            buffer_bytes_max=_NO_LIMIT,
            buffer_events_max=_NO_LIMIT,
            event_bytes_max=DECODED_BYTES_MAX,
            acknowledge=self._acknowledge,
            producer_id=producer_id,
        )
        await retried(self._target, producer.start)
        async with producer:
            if events:
                await (await producer.send_many(events))

    def _can_be_sent(self, event: Event) -> bool:
        try:
            check_event(event)
            if self._codec == "plain":
                encode_plain(event, self._target.definition.layout)
        except InputError as error:
            log.warning("an event of %r was left out: %s", event.key, error)
            return False
        return True

    async def _write(self, note: Note) -> None:
        if self._key is None:
            return
        raw = msgspec.json.encode(note)
        keys, known = (self._key,), self._known
        ttl = SEQUENCE_TTL_MS if note.is_complete else ""
        server = self._target.server
        is_mine: int = await retried(
            self._target, lambda: server.run(script("note"), keys, known, raw, ttl)
        )
        if not is_mine:
            raise ReplayInUseError(f"another process replays under the name {self._name!r}")
        self._known = raw

    async def _forget(self, producer: str) -> None:
        """Remove what the server remembers of a producer that sends no more."""
        for key in self._target.keys:
            gone = _sequence_key(key, producer)
            await retried(
                self._target,
                lambda key=key, gone=gone: self._target.server.call("DEL", gone, key=key),
            )


async def _steps(found: AsyncGenerator[Batch, None]) -> AsyncGenerator[list[Batch], None]:
    """Batches as they are there, some at a time."""
    queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=COPY_QUEUE_BATCHES)

    async def pump() -> None:
        try:
            async for batch in found:
                await queue.put(batch)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumping = asyncio.create_task(pump())
    try:
        while True:
            step: list[Batch] = []
            found_next = await queue.get()
            while isinstance(found_next, Batch):
                step.append(found_next)
                if queue.empty() or sum(map(len, step)) >= COPY_STEP_EVENTS:
                    break
                found_next = queue.get_nowait()
            if step:
                yield step
            if isinstance(found_next, Exception):
                raise found_next
            if found_next is None:
                return
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
        await found.aclose()


def _in_order(step: list[Batch]) -> list[Event]:
    """The events of a step by their IDs, however they came."""
    placed = [
        (event_id.ms, event_id.seq, batch.shard, event_id.index, event)
        for batch in step
        for event_id, event in zip(batch.ids, batch.events, strict=True)
    ]
    placed.sort(key=lambda each: each[:4])
    return [each[4] for each in placed]


def _last(batch: Batch) -> EventId:
    last = batch.entries[-1]
    return last.id._replace(index=last.id.index + last.count - 1)


def _positions(texts: Mapping[str, str]) -> dict[int, EventId]:
    return {int(shard): EventId.parse(text) for shard, text in texts.items()}


def _sequence_key(key: str, producer: str) -> str:
    return side_key(key, f"seq:{producer}")
