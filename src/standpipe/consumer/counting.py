"""Delivery counts on their way to the server: those that come while some leave go together.

Each try of a handler is counted before it begins. After a crash there are thousands of them, and
handlers that run at the same time would wait for as many round trips one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

from standpipe.errors import StandpipeError


class Hold(NamedTuple):
    """Entries of a shard to be renewed."""

    shard: int
    ids: list[bytes]
    deliveries: int | None = None
    """Their delivery count from now on; None: it stays."""


class _Waiting:
    """A hold that somebody waits for."""

    __slots__ = ("error", "hold", "is_sent")

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.is_sent = False
        self.error: StandpipeError | None = None


class Counting:
    """Sends the counts of many callers, each of whom goes on when its own has been answered.

    Args:
        send: Sends some at once.
    """

    def __init__(self, send: Callable[[Sequence[Hold]], Coroutine[Any, Any, None]]) -> None:
        self._send: Final = send
        self._waiting: list[_Waiting] = []
        self._turn: Final = asyncio.Lock()

    async def write(self, hold: Hold) -> None:
        """Send a count, with those that others wait to send.

        Raises:
            StandpipeError: that of the exchange, whoever's count it was about.
        """
        mine = _Waiting(hold)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if not mine.is_sent:
                    await self._send_waiting()
        finally:
            # A caller that is cancelled begins no try, so there is none to count.
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error

    async def _send_waiting(self) -> None:
        taken, self._waiting = self._waiting, []
        try:
            await self._send([each.hold for each in taken])
        except StandpipeError as error:
            for each in taken:
                each.error = error
        except BaseException:
            # The caller that sent for all was cancelled: the next one sends what is left.
            self._waiting = taken + self._waiting
            raise
        for each in taken:
            each.is_sent = True
