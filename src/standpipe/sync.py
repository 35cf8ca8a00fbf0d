"""The same for scripts and notebooks that are not async: a thin face over the async core.

    from standpipe import Event, sync

    with sync.Stream("power_grid_stream", "redis://127.0.0.1:6390") as stream:
        stream.send(Event.now("inverter-7", volts=230.5, amps=1.2))
        for event in stream.read(start="-1h"):
            print(event)

Everything runs in one background thread with its own event loop (anyio's blocking portal), so it
works inside a notebook that has a loop already. Calls wait for their result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from standpipe.errors import ConfigError
from standpipe.event import Batch, Event, EventId
from standpipe.forks import forks, require_same_process
from standpipe.producer import Producer
from standpipe.reader import Point, Reader
from standpipe.stream import Stream as AsyncStream
from standpipe.worker import Worker


class Stream:
    """A stream with its producer, blocking. Use it as a context manager.

    Args:
        name, url, stream options: as :class:`standpipe.Stream`.
        producer: Options of :class:`standpipe.Producer`, such as ``{"deadline_ms": 30_000}``.

    Raises:
        ConfigError, ServerError: on entering, as the async ones.
    """

    def __init__(
        self, name: str, url: str, *, producer: Mapping[str, Any] | None = None, **stream: Any
    ) -> None:
        self._options: Final = (name, url, dict(stream), dict(producer or {}))
        self._portal: BlockingPortal | None = None
        self._forks = forks()
        self._readings: set[_Reading] = set()
        self._stack = ExitStack()
        self._stream: AsyncStream | None = None
        self._producer: Producer | None = None

    def __enter__(self) -> Stream:
        name, url, stream_options, producer_options = self._options
        self._forks = forks()

        async def make() -> tuple[AsyncStream, Producer]:
            # Both bind to the loop they are used in, so they are made inside it.
            stream = AsyncStream(name, url, **stream_options)
            return stream, Producer(stream, **producer_options)

        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._stream, self._producer = self._portal.call(make)
            stack.enter_context(self._portal.wrap_async_context_manager(self._stream))
            stack.enter_context(self._portal.wrap_async_context_manager(self._producer))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        portal, self._portal = self._portal, None
        # In a forked process the background thread is not there to be waited for.
        require_same_process(self._forks, "stream")
        if portal is not None:
            while self._readings:
                portal.call(self._readings.pop().close)
        self._stack.__exit__(kind, error, trace)

    def _running(self) -> tuple[BlockingPortal, AsyncStream, Producer]:
        require_same_process(self._forks, "stream")
        if self._portal is None or self._stream is None or self._producer is None:
            raise ConfigError("the stream is not open", hint="Use `with sync.Stream(...)`.")
        return self._portal, self._stream, self._producer

    def send(self, event: Event | Mapping[str, Any] | msgspec.Struct) -> EventId | None:
        """Send one event and wait for the acknowledgement; see :meth:`standpipe.Producer.send`."""
        portal, _, producer = self._running()

        async def call() -> EventId | None:
            return await (await producer.send(event))

        return portal.call(call)

    def send_many(
        self, events: Iterable[Event | Mapping[str, Any] | msgspec.Struct]
    ) -> list[EventId | None]:
        """Send many and wait; IDs in the events' order. Much faster than a loop over send."""
        portal, _, producer = self._running()

        async def call() -> list[EventId | None]:
            return await (await producer.send_many(events))

        return portal.call(call)

    def send_table(self, table: Any) -> list[EventId | None]:
        """Send a table or data frame and wait; see :meth:`standpipe.Producer.send_table`."""
        portal, _, producer = self._running()

        async def call() -> list[EventId | None]:
            return await (await producer.send_table(table))

        return portal.call(call)

    def read(
        self,
        *,
        start: Point = "-",
        end: Point | None = None,
        follow: bool = False,
        **options: Any,
    ) -> Iterator[Event]:
        """Events between two points, or from one onwards, with any other options of
        :class:`standpipe.Reader`: ``archive``, ``keys``, ``speed``…"""
        for batch in self.read_batches(start=start, end=end, follow=follow, **options):
            yield from batch

    def read_batches(
        self,
        *,
        start: Point = "-",
        end: Point | None = None,
        follow: bool = False,
        **options: Any,
    ) -> Iterator[Batch]:
        """The same as batches: with event IDs, or as tables."""
        portal, stream, _ = self._running()
        reading = _Reading(Reader(stream, start=start, end=end, follow=follow, **options))
        self._readings.add(reading)
        try:
            while True:
                batch = portal.call(reading.advance)
                if batch is None:
                    return
                yield batch
        finally:
            # After the stream's end it is closed, and the portal gone.
            if reading in self._readings:
                self._readings.discard(reading)
                portal.call(reading.close)

    def work(self, group: str, handler: Callable[..., Any], **options: Any) -> None:
        """Run a handler of single events as a worker until interrupted (Ctrl-C drains).

        Args:
            group: The consumer group.
            handler: ``handler(event)`` or ``handler(event, context)``.
            options: Of :class:`standpipe.Worker`.
        """
        portal, stream, _ = self._running()

        async def begin() -> Worker:
            worker = Worker(stream, group, **options)
            worker.each(handler)
            return worker

        worker = portal.call(begin)
        running = portal.start_task_soon(worker.run)
        try:
            running.result()
        except KeyboardInterrupt:
            portal.call(worker.stop)
            running.result()


class _Reading:
    """One iteration over a reader, in the background thread."""

    def __init__(self, reader: Reader) -> None:
        self._batches = reader.batches()
        self._turn = anyio.Lock()
        self._step: anyio.CancelScope | None = None

    async def advance(self) -> Batch | None:
        """The next batch; None at the end."""
        # The scope comes first: what waits for its turn can be cancelled, too.
        with anyio.CancelScope() as self._step:
            async with self._turn:
                return await anext(self._batches, None)
        return None

    async def close(self) -> None:
        # After Ctrl-C the step is still waiting here. It has to be over before the generator can be
        # closed.
        if self._step is not None:
            self._step.cancel()
        async with self._turn:
            await self._batches.aclose()
