"""The worker itself.

Every event ends in one of three ways: its handler returned and it is acknowledged; it is a dead
letter with the reason; or it stays pending for another member of the group. An entry is settled
when all of its events are: that is when the acknowledgement leaves, together with the entry's dead
letters in one atomic step.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final, TypeVar, cast, overload

from standpipe.consumer import Consumer, Delivery, cancel_tasks, finish
from standpipe.errors import (
    ConfigError,
    DecodeError,
    EventTypeError,
    HandlerError,
)
from standpipe.event import Batch, Event
from standpipe.limits import (
    CONCURRENCY,
    DELIVERIES_MAX,
    DRAIN_MS_MAX,
    IDLE_MS_MIN,
    IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_EVENTS_MAX,
    LEASE_MS,
    LEAVE_MS_MAX,
    SYNC_LOOK_MS,
    SYNC_SLICE_EVENTS_MAX,
    SYNC_SLICE_MS,
    TURN_MS_MAX,
)
from standpipe.policy import after_failure, handler_backoff_ms
from standpipe.retention import keep
from standpipe.stream import Stream
from standpipe.worker.acks import Acks, NotAcknowledged
from standpipe.worker.call import Call, Calls, event_counts
from standpipe.worker.context import Context, Reject, Retry, WorkerStats
from standpipe.worker.handler import AckMode, Handler, unfinished
from standpipe.worker.opening import Opener, decode_error
from standpipe.worker.ordered import Lines, NotBegun
from standpipe.worker.presence import Kind, Presence
from standpipe.worker.settling import Settler
from standpipe.worker.threads import Slice, Threads
from standpipe.worker.tries import Tries

log: Final = logging.getLogger("standpipe.worker")

H = TypeVar("H", bound=Callable[..., Any])


class Worker:
    """Runs a handler as a member of a consumer group.

    Args:
        stream: The stream; opened if it is not.
        group: The group's name; created at ``start`` where it does not exist.
        name: The consumer's name; default: unique to this process.
        start: Where a new group begins; see Consumer.
        concurrency: Handlers running at the same time; default: 64 for ``each``, 1 for ``batch``.
        deliveries_max: Deliveries after which a failing event becomes a dead letter.
        idle_ms_min: Entries of other members idle for this long are taken over.
        in_flight_events_max: Events delivered and not yet settled, at most.
        in_flight_bytes_max: Bytes of their entries, as the server sent them, at most.
        drain_ms_max: How long a stopping worker waits for the handlers in progress.
        ordered: Keep the order of each key, also across retries, crashes and rebalances: a shard
            belongs to one worker of the group at a time, which handles its events one after
            another; one that fails holds up its shard. For all workers of the group or for none.
        lease_ms: In ordered mode, how long a shard stays with a worker that is not heard of, ms.
        retain: Also keep the stream within its limits, as one of the workers and janitors that may.

    Raises:
        ConfigError: a value that is not allowed.

    Delivery:
        At least once. A handler that has returned may run again for the same event if the process
        dies before the acknowledgement has left; a whole block is delivered again if its worker
        dies inside it. ``Context.event_id`` with the shard makes a sink idempotent.

    Example:
        worker = Worker(stream, group="monitoring_group")

        @worker.each
        async def store(event: Event, context: Context) -> None: ...

        await worker.run()
    """

    def __init__(
        self,
        stream: Stream,
        group: str,
        *,
        name: str | None = None,
        start: str = "0",
        concurrency: int | None = None,
        deliveries_max: int = DELIVERIES_MAX,
        idle_ms_min: int = IDLE_MS_MIN,
        in_flight_events_max: int = IN_FLIGHT_EVENTS_MAX,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        drain_ms_max: int = DRAIN_MS_MAX,
        ordered: bool = False,
        lease_ms: int = LEASE_MS,
        retain: bool = True,
    ) -> None:
        for option, value in (
            ("concurrency", 1 if concurrency is None else concurrency),
            ("deliveries_max", deliveries_max),
        ):
            if value < 1:
                raise ConfigError(f"{option} is {value}", hint="It is at least 1.")
        self.stream: Final = stream
        self.consumer: Final = Consumer(
            stream,
            group,
            name,
            start=start,
            idle_ms_min=idle_ms_min,
            in_flight_events_max=in_flight_events_max,
            in_flight_bytes_max=in_flight_bytes_max,
            ordered=ordered,
            lease_ms=lease_ms,
        )
        self.stats: Final = WorkerStats()
        self._settler: Final = Settler(self.consumer, self.stats)
        self._concurrency = concurrency
        self._deliveries_max = deliveries_max
        self._drain_ms_max = drain_ms_max
        self._retain = retain
        self._janitor: asyncio.Task[None] | None = None
        self._handler: Handler | None = None
        leases = self.consumer.leases
        self._lines = None if leases is None else Lines(leases)
        """The calls of ordered mode; None in others."""
        self._calls: Calls = self._lines or Calls()
        if leases is not None and self._lines is not None:
            leases.is_busy, leases.changed = self._is_busy, self._lines.changed
        self._tries = Tries(self.consumer, self._calls, deliveries_max)
        self._busy = 0
        self._presence = Presence(
            self.consumer, self.stats, lambda: (self._busy, self._calls.ready())
        )
        self._quiet = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._later: set[asyncio.TimerHandle] = set()
        self._turn_ends = 0.0
        self._suspects = asyncio.Lock()
        self._threads: Threads | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slices: set[Slice] = set()
        """What threads are at."""
        self._running: set[Call] = set()
        """What async handlers are at."""
        self._call_s = SYNC_SLICE_MS / 1000
        """How long a sync handler takes for one event, smoothed; begins with one event per hop."""

    # --- handlers --------------------------------------------------------------------------------

    @overload
    def each(self, handler: H, *, ack: AckMode = "auto") -> H: ...

    @overload
    def each(self, *, ack: AckMode = "auto") -> Callable[[H], H]: ...

    def each(self, handler: H | None = None, *, ack: AckMode = "auto") -> H | Callable[[H], H]:
        """Use a function for every single event: ``handler(event)`` or ``handler(event, context)``.

        An async one runs concurrently with others; a plain one runs in a thread. Annotated with a
        msgspec Struct, a dataclass or a TypedDict, it gets its event as one; an event that is none
        is a dead letter at once.

        Args:
            handler: The function; left out where the decorator has options.
            ack: ``auto``: an event is acknowledged when the handler returns. ``manual``: when it
                has called ``context.ack()``; an event that it has not, when it returns, is tried
                again as if it had failed.

        Raises:
            HandlerError: it cannot be called with one or two arguments, it is a generator, its
                annotation is none that an event can be, the worker has a handler already, or it
                could not acknowledge anything.
        """
        return self._set_handler(handler, ack, is_batch=False)

    @overload
    def batch(self, handler: H, *, ack: AckMode = "auto") -> H: ...

    @overload
    def batch(self, *, ack: AckMode = "auto") -> Callable[[H], H]: ...

    def batch(self, handler: H | None = None, *, ack: AckMode = "auto") -> H | Callable[[H], H]:
        """Use a function for whole batches: ``handler(batch)`` or ``handler(batch, context)``.

        Annotated with a list of a type, it gets a list, without the events that are none.
        If it fails, it is called again for the batch, and at the last try for ever smaller parts,
        so that only the events that fail by themselves become dead letters.

        Args:
            handler: The function; left out where the decorator has options.
            ack: As :meth:`each`; ``manual`` with ``batch.ack(…)`` or ``context.ack(…)``, for all of
                the batch or parts of it. What the handler raises is about the rest.

        Raises:
            HandlerError: as :meth:`each`.
        """
        return self._set_handler(handler, ack, is_batch=True)

    def _set_handler(
        self, handler: H | None, ack: AckMode, *, is_batch: bool
    ) -> H | Callable[[H], H]:
        if handler is None:
            return lambda handler: cast("H", self._set_handler(handler, ack, is_batch=is_batch))
        if self._handler is not None:
            raise HandlerError("the worker has a handler already", hint="Use one worker for each.")
        self._handler = Handler(handler, ack, is_batch=is_batch)
        return handler

    @property
    def _the_handler(self) -> Handler:
        assert self._handler is not None, "run() has seen that there is one"
        return self._handler

    # --- life ------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask :meth:`run` to drain and return; may be called from a signal handler."""
        self._stop_asked.set()
        if self._lines is not None:
            # Before a runner passes one call over because of it, and makes a later one.
            self._lines.close()

    async def run(self) -> None:
        """Handle events until :meth:`stop` is called or an error comes that no retry mends.

        On the way out it reads no more, waits up to ``drain_ms_max`` for the handlers in progress,
        acknowledges, gives back what is left, and leaves the group. Cancelled, or ended by an
        error, it does the same but for the waiting.

        Raises:
            HandlerError: there is no handler, or it returns something that has to be awaited.
            ConfigError: it has run already; or of the stream, as ServerError.
            ServerError: at the start, or later if no retry can mend it.

        Cost: one read of all shards with the waiting acknowledgements per round trip.
        """
        handler = self._handler
        if handler is None:
            raise HandlerError(
                "the worker has no handler", hint="Decorate a function with @worker.each first."
            )
        if self._threads is not None:
            raise ConfigError("the worker has run already", hint="Make a new Worker for each run.")
        opened_here = not self.stream.is_open
        await self.stream.open()
        count = self._concurrency or (1 if handler.is_batch else CONCURRENCY)
        runners: list[asyncio.Task[None]] = []
        # Threads of its own: asyncio's pool may have fewer than `concurrency`.
        self._threads = Threads(count)
        self._loop = asyncio.get_running_loop()
        try:
            await self.consumer.start()
            if self._retain:
                self._janitor = asyncio.create_task(keep(self.stream), name="standpipe-janitor")
            runners = [asyncio.create_task(self._run_calls()) for _ in range(count)]
            self._presence.start(Kind(handler.name, handler.is_batch, count))
            await self._until_stopped(runners)
            await self._drain()
            for runner in runners:
                if runner.done():
                    runner.result()
        finally:
            # Whoever cancels this is told so afterwards: what was handled is to be acknowledged,
            # and nobody has to wait for the rest until it has been idle for long enough.
            await finish(self._leave(runners))
            if opened_here:
                await self.stream.close()

    async def _leave(self, runners: list[asyncio.Task[None]]) -> None:
        """The way out, whatever led to it, bounded in time."""
        assert self._threads is not None
        self._begin_nothing()
        for task in (*runners, self._janitor):
            if task is not None:
                task.cancel()
        if runners:
            _, deaf = await asyncio.wait(runners, timeout=LEAVE_MS_MAX / 1000)
            if deaf:
                log.error("%d calls of handler %s ignore that they are cancelled",
                          len(deaf), self._the_handler.name)  # fmt: skip
        try:
            async with asyncio.timeout(LEAVE_MS_MAX / 1000):
                await self._report_all()
                for call in self._in_progress():
                    # It goes on in a thread, or ignores that it is cancelled.
                    if call.acks is not None:
                        call.acks.close()
                        self._acknowledge(call)
                await self._tries.give_back()
                await self.consumer.leave()
                await self._presence.leave()
        except TimeoutError:
            log.warning("the group could not be left within %d ms: what is held is taken over when "
                        "it has been idle for long enough", LEAVE_MS_MAX)  # fmt: skip
        except Exception:
            # The error that ends run() is the first one; this must not take its place.
            log.exception("the group could not be left")
        finally:
            # A thread cannot be cancelled: one that is still at work is not waited for.
            await self._presence.close()
            self._threads.close(wait=not any(piece.current for piece in self._slices))
            await self.consumer.close()
            if self._janitor is not None:
                await asyncio.gather(self._janitor, return_exceptions=True)

    async def _report_all(self) -> None:
        for piece in list(self._slices):
            while True:
                try:
                    await self._report(piece)
                    break
                except HandlerError as error:
                    # The first of them has ended run(); these events stay pending as well.
                    log.error("%s", error)

    def _begin_nothing(self) -> None:
        """Let no handler begin any more."""
        self.stop()
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        self._calls.clear()
        for piece in self._slices:
            piece.take_back()

    async def _until_stopped(self, runners: list[asyncio.Task[None]]) -> None:
        """Take in deliveries until asked to stop; raise what ended the intake or a runner."""
        intake = asyncio.create_task(self._intake(), name="standpipe-intake")
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            done, _ = await asyncio.wait(
                [intake, stopped, *runners], return_when=asyncio.FIRST_COMPLETED
            )
            for ended in done - {stopped}:
                await ended
            await self.consumer.stop_reading()
        finally:
            await cancel_tasks([intake, stopped])

    async def _drain(self) -> None:
        """Let the handlers in progress finish. The rest is not begun."""
        self._begin_nothing()
        try:
            async with asyncio.timeout(self._drain_ms_max / 1000):
                while self._busy:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            at = sorted(
                f"{call.first} of shard {call.opened[0].shard}" for call in self._in_progress()
            )
            log.warning(
                "handler %s still runs after %d ms for %s%s: left pending, and so is what has not "
                "begun",
                self._the_handler.name,
                self._drain_ms_max,
                ", ".join(at[:10]),
                f" and {len(at) - 10} more" if len(at) > 10 else "",
            )

    def _in_progress(self) -> set[Call]:
        """What the handler is at."""
        in_threads = {piece.current for piece in self._slices}
        return {call for call in self._running | in_threads if call is not None}

    # --- from deliveries to calls ----------------------------------------------------------------

    async def _intake(self) -> None:
        opener = self._opener()

        def take(delivery: Delivery) -> bool:
            calls = opener.calls_at_once(delivery)
            for call in calls or ():
                self._calls.put_nowait(call)
            return calls is not None

        if self.consumer.leases is None:
            # Else one that has to wait might be overtaken by a later one of its shard.
            self.consumer.offer_to(take)
        async for delivery in self.consumer.deliveries():
            if (
                self.consumer.leases is None
                or self.consumer.leases.fence(delivery.shard) == delivery.fence
            ):
                for call in await opener.calls(delivery):
                    self._calls.put_nowait(call)

    def _opener(self) -> Opener:
        return Opener(
            self._settler,
            is_batch=self._the_handler.is_batch,
            deliveries_max=self._deliveries_max,
        )

    # --- calling ---------------------------------------------------------------------------------

    async def _run_calls(self) -> None:
        is_sliced = not (self._the_handler.is_async or self._the_handler.is_batch)
        while True:
            call = await self._calls.get()
            self._busy += 1
            try:
                if call.deliveries > 1:
                    await self._try_again(call)
                elif not is_sliced:
                    await self._try([call])
                else:
                    calls = [call, *self._more_calls(call)]
                    # Those to be tried again go one at a time, and do not wait behind the others.
                    self._calls.put_back([call for call in calls if call.deliveries > 1])
                    await self._try([call for call in calls if call.deliveries == 1])
            finally:
                self._busy -= 1
                if self._lines is not None:
                    self._lines.done(call)
                if not self._busy:
                    self._quiet.set()
            if time.monotonic() > self._turn_ends:
                await self._pause()

    def _is_busy(self, shard: int) -> bool:
        """Whether something is in progress on a shard; a thread may outlive the drain."""
        at = [piece.current for piece in list(self._slices)]
        in_threads = any(call is not None and call.opened[0].shard == shard for call in at)
        return in_threads or (self._lines is not None and self._lines.is_busy(shard))

    async def _pause(self) -> None:
        """Let reading and renewing have their turn: to take from a full queue is no pause."""
        ended = self._turn_ends
        await asyncio.sleep(0)
        # All runners share one turn, begun by the first of them.
        if self._turn_ends == ended:
            self._turn_ends = time.monotonic() + TURN_MS_MAX / 1000

    def _more_calls(self, first: Call) -> list[Call]:
        """What else goes into the same hop to a thread, which costs more than a quick handler."""
        count = min(SYNC_SLICE_EVENTS_MAX, int(SYNC_SLICE_MS / 1000 / max(self._call_s, 1e-9)))
        if self._lines is not None:
            return self._lines.more(first, count - 1)
        return [self._calls.get_nowait() for _ in range(min(count - 1, self._calls.qsize()))]

    async def _try_again(self, call: Call) -> None:
        """Call the handler once more.

        The try is counted on the server first. Of those whose workers may have died of them only
        one at a time has its last try, so that it is clear which one it was if this worker dies
        too.
        """
        async with self._suspects if call.is_suspect else nullcontext():
            if not self._stop_asked.is_set():
                is_alone = not self._tries.may_be_ahead(call)
                await self._tries.begin(call)
                await self._try([call])
                if is_alone:
                    # Its acknowledgement must not go down with the next one.
                    await self.consumer.flush(call.opened[0].shard)

    def _holds(self, call: Call) -> bool:
        """Whether an entry of a call is still this worker's."""
        return any(self.consumer.holds(entry.shard, entry.id) for entry in call.opened)

    async def _try(self, calls: list[Call]) -> None:
        """Call the handler, and settle or queue again what comes of it.

        Not for what another worker has taken over meanwhile.
        """
        if self.consumer.has_lost_some:
            calls = [call for call in calls if self._holds(call)]
        handler = self._handler
        assert handler is not None
        if handler.is_async:
            for call in calls:
                await self._came_of(call, await self._call(call))
        elif calls:
            await self._call_in_thread(calls)

    def _arguments(self, call: Call) -> tuple[Any, ...]:
        if self._lines is not None:
            # Here, for between this and the handler nothing waits.
            self._lines.require(call)
        handler = self._handler
        assert handler is not None
        argument = call.argument if handler.convert is None else handler.convert(call.argument)
        if handler.is_manual:
            self._open_acks(call)
        if not handler.wants_context:
            return (argument,)
        context = Context(
            self.stream.name,
            int(call.opened[0].shard),
            self.consumer.group,
            call.first,
            call.deliveries,
            None if self._lines is None else call.opened[0].fence,
            call.acks,
        )
        return argument, context

    async def _call(self, call: Call) -> BaseException | None:
        """Call an async handler; returns what it raised."""
        handler = self._handler
        assert handler is not None
        self._running.add(call)
        try:
            await handler.function(*self._arguments(call))
        except Exception as error:
            return error
        except asyncio.CancelledError as error:
            runner = asyncio.current_task()
            if runner is not None and runner.cancelling():
                raise
            # Not this worker but something that the handler waited for was cancelled.
            return error
        finally:
            self._running.discard(call)
        return None

    async def _call_in_thread(self, calls: list[Call]) -> None:
        """Call a plain handler for each in turn, and settle or queue again what comes of it."""
        handler, threads = self._the_handler.function, self._threads
        assert threads is not None

        def handle(call: Call) -> BaseException | None:
            try:
                result = handler(*self._arguments(call))
            except Exception as error:
                return error
            return None if result is None else unfinished(handler, result)

        piece = Slice(calls, handle, is_ordered=self._lines is not None)
        # Where this is cut off it stays there: what its thread has done by then is to be reported.
        self._slices.add(piece)
        ended = threads.run(piece.run)
        while not ended.done():
            await asyncio.wait([ended], timeout=SYNC_LOOK_MS / 1000)
            is_over = ended.done() and self._lines is None
            if not is_over and (waiting := piece.take_back()):
                self._calls.put_back(waiting)
            await self._report(piece)
            self._call_s += (piece.call_s() - self._call_s) / 4
        self._slices.discard(piece)
        ended.result()

    async def _report(self, piece: Slice) -> None:
        """Settle or queue again what a thread is through with, even while it goes on."""
        while done := piece.outcome():
            await self._came_of(*done)

    # --- settling --------------------------------------------------------------------------------

    async def _came_of(self, call: Call, error: BaseException | None) -> None:
        if self._lines is not None and self._lines.is_stale(call):
            # Its shard is another worker's, which handles it again.
            if not isinstance(error, NotBegun):
                self.consumer.stats.refused += len(call.opened)
            return
        if isinstance(error, NotBegun):
            self._calls.put_back([call])
            return
        if call.acks is not None:
            await self._came_of_manual(call, call.acks, error)
        elif error is not None:
            await self._failed(call, error)
        else:
            counts = event_counts(call.argument)
            self.stats.handled += sum(counts)
            await self._settler.settle(call.opened, counts)

    def _open_acks(self, call: Call) -> None:
        """Let the handler acknowledge what it is about to be called for; in whatever thread."""
        loop, is_ordered = self._loop, self._lines is not None
        assert loop is not None

        def added() -> None:
            loop.call_soon_threadsafe(self._acknowledge, call)

        call.acks = Acks(call.argument, call.first, added, is_ordered=is_ordered)
        if isinstance(call.argument, Batch):
            call.argument.acks = call.acks

    def _acknowledge(self, call: Call) -> None:
        """Settle what a handler that goes on has acknowledged by now."""
        if call.acks is None or (self._lines is not None and self._lines.is_stale(call)):
            return
        if any(entry.letters for entry in call.opened):
            return  # They have to be kept in the same step, which takes its time: afterwards.
        opened, counts = call.counts_at(call.acks.take())
        self.stats.handled += sum(counts)
        self._settler.acknowledge(opened, counts)

    async def _came_of_manual(self, call: Call, acks: Acks, error: BaseException | None) -> None:
        """Settle what the handler has acknowledged; the rest has failed, whatever it raised."""
        missing = acks.close()
        opened, counts = call.counts_at(acks.take())
        self.stats.handled += sum(counts)
        await self._settler.settle(opened, counts)
        call.acks = None
        if missing:
            await self._failed(call.pick(missing), error or NotAcknowledged())
        elif isinstance(error, HandlerError):
            raise error
        elif error is not None:
            log.warning("handler failed for %s of shard %d, after it had acknowledged all: %s",
                        call.first, call.opened[0].shard, error)  # fmt: skip

    async def _failed(self, call: Call, error: BaseException) -> None:
        if isinstance(error, HandlerError):
            raise error
        if isinstance(error, Reject):
            await self._give_up(call, error.reason, None)
            return
        if isinstance(error, EventTypeError):
            await self._give_up_invalid(call, error)
            return
        if isinstance(error, DecodeError) and isinstance(call.argument, Batch):
            entries = call.argument.entries
            # It met an entry that is not what its header says. One that stands alone and can be
            # decoded is no such entry: then the handler has a reason of its own.
            if any(map(decode_error, entries)) or len(entries) > 1:
                # Where they were: in ordered mode what comes behind them has to wait.
                self._calls.put_back(
                    await self._opener().decodable(call.argument, call.opened, call.deliveries)
                )
                return
        if isinstance(error, Retry) and not error.counts:
            await self._put_off(call, error.after_ms)
            return
        # What is no Unicode can neither be logged nor kept.
        text = "".join(traceback.format_exception_only(error)).strip()
        if isinstance(error, NotAcknowledged):
            text = str(error)
        reason = text.encode(errors="backslashreplace").decode()
        if after_failure(call.deliveries, self._deliveries_max) == "dead":
            await self._give_up(call, reason, error)
            return
        self.stats.retried += 1
        wait_ms = error.after_ms if isinstance(error, Retry) else None
        if wait_ms is None:
            wait_ms = handler_backoff_ms(call.deliveries)
        log.warning(
            "handler failed for %s of shard %d, delivery %d of %d, again in %d ms: %s",
            call.first,
            call.opened[0].shard,
            call.deliveries,
            self._deliveries_max,
            wait_ms,
            reason,
        )
        call.deliveries += 1
        self._queue_later(call, wait_ms)

    async def _put_off(self, call: Call, wait_ms: int | None) -> None:
        """Try again later as if this try had not been, also for those who take it over."""
        self.stats.retried += 1
        if call.deliveries > 1:
            # It was counted before it began. A higher count is that of an entry's other event.
            for entry in call.opened:
                if entry.deliveries == call.deliveries:
                    entry.deliveries -= 1
            call.deliveries -= 1
            await self._tries.count(call)
            call.deliveries += 1
        log.debug("put off %s of shard %d", call.first, call.opened[0].shard)
        self._queue_later(call, handler_backoff_ms(1) if wait_ms is None else wait_ms)

    def _queue_later(self, call: Call, wait_ms: int) -> None:
        def put() -> None:
            self._later.discard(timer)
            if self._lines is None:
                self._calls.put_nowait(call)
            else:
                self._lines.changed()

        if self._stop_asked.is_set():
            return  # It is given back.
        if self._lines is not None:
            self._lines.put_back_until(call, wait_ms / 1000)
        timer = asyncio.get_running_loop().call_later(wait_ms / 1000, put)
        self._later.add(timer)

    async def _give_up(self, call: Call, reason: str, error: BaseException | None) -> None:
        argument = call.argument
        if isinstance(argument, Event) or len(argument) == 1:
            await self._settler.bury(
                argument, call.opened, call.first, call.deliveries, reason, error
            )
            return
        # Only what fails by itself is given up: the halves are tried apart, down to single events.
        middle = len(argument) // 2
        halves: list[Call] = []
        for start, stop in ((0, middle), (middle, len(argument))):
            part, indexes = argument.part(start, stop)
            opened = [call.opened[index] for index in indexes]
            first = part.entries[0].id
            # Of a block that its workers may have died of, either half may be what they died of.
            is_suspect = call.is_suspect
            halves.append(Call(part, opened, first, call.deliveries, is_suspect=is_suspect))
        if self._lines is not None:
            self._calls.put_back(halves)
            return
        for half in halves:
            await self._try([half])

    async def _give_up_invalid(self, call: Call, error: EventTypeError) -> None:
        """Bury the events that are not of the handler's type, and call it for the others."""
        batch = call.argument
        if isinstance(batch, Event):
            ((_, reason),) = error.invalid
            await self._settler.bury(batch, call.opened, call.first, call.deliveries, reason, None)
            return
        for place, reason in error.invalid:
            bad = call.pick([place])
            await self._settler.bury(
                bad.argument, bad.opened, bad.first, call.deliveries, reason, None
            )
        invalid = {place for place, _ in error.invalid}
        if valid := [place for place in range(len(batch)) if place not in invalid]:
            await self._try([call.pick(valid)])
