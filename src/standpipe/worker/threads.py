"""Plain handlers in threads: several calls per hop, which the loop can look into while they run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Final

from standpipe.worker.call import Call

Outcome = BaseException | None
"""What a handler raised."""


class Slice:
    """Calls that one thread makes in turn.

    The loop may take the outcomes out while the thread goes on, and take back what has not begun:
    one call that hangs neither hides what was done before it nor holds up what comes after.

    Args:
        calls: What to make.
        handle: Makes one.
        is_ordered: Make none after one that failed.
    """

    def __init__(
        self, calls: Iterable[Call], handle: Callable[[Call], Outcome], *, is_ordered: bool = False
    ) -> None:
        self._handle = handle
        self._is_ordered = is_ordered
        # Taking one out is atomic, so that a call is either the thread's or the loop's.
        self._waiting: Final = deque(calls)
        self._outcomes: Final[deque[tuple[Call, Outcome]]] = deque()
        self._done = 0
        self._began = time.perf_counter()
        self.current: Call | None = None
        """The call that the thread is at."""

    def run(self) -> None:
        """Make the calls; in the thread."""
        self._began = time.perf_counter()
        while True:
            try:
                self.current = self._waiting.popleft()
            except IndexError:
                return
            outcome = self._handle(self.current)
            self._outcomes.append((self.current, outcome))
            self._done += 1
            self.current = None
            if outcome is not None and self._is_ordered:
                return

    def outcome(self) -> tuple[Call, Outcome] | None:
        """A call that is done and what came of it, each once; None: there is none at present."""
        return self._outcomes.popleft() if self._outcomes else None

    def take_back(self) -> list[Call]:
        """The calls that have not begun, in order; the thread will not make them."""
        taken: list[Call] = []
        while True:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:
                return taken

    def call_s(self) -> float:
        """How long a call takes, as far as is known."""
        return (time.perf_counter() - self._began) / max(1, self._done)


class Threads:
    """Threads that work for the event loop, and that never keep the process alive.

    Those of ThreadPoolExecutor are joined when Python exits: a handler that hangs would keep its
    process from ending.

    Args:
        count: How many at most; each is started when there is work for it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._work: SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]] | None] = (
            SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()

    def run(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Have something done by a thread; the future is done when it is, with its error."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._busy += 1
        if len(self._threads) < min(self._busy, self._count):
            name = f"standpipe-handler-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()
        self._work.put((work, future))
        return future

    def _serve(self) -> None:
        while (given := self._work.get()) is not None:
            work, future = given
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, future, error)
            except RuntimeError:
                return  # The loop is closed: nobody waits for this any more.
            del given, work, future, error

    def _finish(self, future: asyncio.Future[None], error: BaseException | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def close(self, *, wait: bool) -> None:
        """End the threads; those that are at work when they have done it, waited for or not."""
        while True:
            try:
                self._work.get_nowait()
            except Empty:
                break
        for _ in self._threads:
            self._work.put(None)
        if wait:
            for thread in self._threads:
                thread.join()
