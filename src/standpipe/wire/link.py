"""One connection: commands written, replies read, one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.asyncio.connection import (
    AbstractConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from standpipe.errors import (
    ReplyTimeoutError,
    ScriptMissingError,
    ServerUnavailableError,
    StandpipeError,
)
from standpipe.forks import forks, require_same_process
from standpipe.wire.replies import ITS_ERRORS, translate
from standpipe.wire.script import Argument, Script, pack


class Link:
    """One connection, owned by one caller, never shared while a read blocks on it.

    Made by :meth:`Server.link`. After any error other than an error reply it is closed for good;
    its owner asks the server for a new one.
    """

    def __init__(self, connection: AbstractConnection, where: str, reply_ms_max: int) -> None:
        # A URL may set this, and a cluster's connections have it: it would end a blocking read.
        connection.socket_timeout = None
        self._connection = connection
        self._forks = forks()
        self.where: Final = where
        self.reply_ms_max: Final = reply_ms_max
        """How long an exchange that names no time waits for each reply, ms."""
        self.taught: set[str] = set()
        """Scripts sent whole over this link, so that their SHA is known to its server."""

    @property
    def is_open(self) -> bool:
        return self._connection.is_connected

    @property
    def peer(self) -> str:
        """Who is on the other side: of a Sentinel's or a cluster's URL, the server itself."""
        writer: Any = getattr(self._connection, "_writer", None)
        found = None if writer is None else writer.get_extra_info("peername")
        return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else self.where

    async def is_usable(self) -> bool:
        """Whether it is open and, with nothing under way, not closed by the server meanwhile.

        Raises:
            ForkedError: as :meth:`exchange`.
        """
        require_same_process(self._forks, "connection")
        if not self.is_open:
            return False
        writer: Any = getattr(self._connection, "_writer", None)
        if writer is None or writer.is_closing():
            # Reset, or given up by the kernel: redis-py looks for the end of an orderly closed one.
            return False
        try:
            return not await self._connection.can_read()
        except ITS_ERRORS:
            return False

    async def exchange(
        self,
        commands: Iterable[bytes],
        count: int,
        *,
        reply_ms_max: int | None = None,
        into: list[Any] | None = None,
    ) -> list[Any]:
        """Write packed commands in one go and read all their replies.

        Args:
            commands: As :func:`pack` makes them.
            count: How many replies are to come.
            reply_ms_max: How long to wait for the first reply, and for each after the one before,
                ms; default: the link's. A blocking read adds its BLOCK time to that.
            into: An empty list for the replies: what has come before an error stays in it.

        Returns:
            The replies in order, as bytes, int, float, bool, list, dict or None. An error reply
            stands in its place as a StandpipeError and is not raised: the others have happened.

        Raises:
            ServerUnavailableError: the connection broke; what was written may have been executed.
            ReplyTimeoutError: a reply did not come in time; likewise. Both retryable.
            ForkedError: the link belongs to the process that this one was forked from.

        Delivery:
            If the process dies here, the server may or may not have executed each command.
        """
        self.write(commands)
        return await self.replies(count, reply_ms_max=reply_ms_max, into=into)

    def write(self, commands: Iterable[bytes]) -> None:
        """The first half of :meth:`exchange`: the server gets to work, :meth:`replies` must follow.

        Raises:
            ServerUnavailableError, ForkedError: as :meth:`exchange`; nothing was written.
        """
        require_same_process(self._forks, "connection")
        if not self._connection.is_connected:
            # redis-py would connect anew without a word: to another server, perhaps.
            raise ServerUnavailableError(f"{self.where}: the connection is closed")
        writer: Any = getattr(self._connection, "_writer", None)
        # Where it was reset meanwhile uvloop refuses, and asyncio writes in vain: reading then says
        # what has happened.
        if not writer.is_closing():
            # redis-py would wait here until almost all is on its way. But a large write over a slow
            # line takes long, and as long as replies come it must not be begun again.
            writer.writelines(commands)

    async def replies(
        self, count: int, *, reply_ms_max: int | None = None, into: list[Any] | None = None
    ) -> list[Any]:
        """The second half of :meth:`exchange`: the replies to what was written."""
        connection = self._connection
        deadline_ms = self.reply_ms_max if reply_ms_max is None else reply_ms_max
        replies: list[Any] = [] if into is None else into
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(deadline_ms / 1000) as limit:
                for left in range(count - 1, -1, -1):
                    try:
                        replies.append(
                            # No timeout of redis-py's, not even an infinite one: with it, a
                            # connection that the kernel gives up would be a reply of None.
                            await connection.read_response(
                                disable_decoding=True, disconnect_on_error=False
                            )
                        )
                    except RedisError as error:
                        if isinstance(error, (RedisConnectionError, RedisTimeoutError)) and not (
                            getattr(error, "status_code", None)
                        ):
                            raise
                        replies.append(translate(error, self.where))
                    if left:
                        limit.reschedule(now() + deadline_ms / 1000)
        except TimeoutError:
            await self.close()
            raise ReplyTimeoutError(
                f"{self.where}: no reply within {deadline_ms} ms ({len(replies)} of {count} came)"
            ) from None
        except RedisTimeoutError as error:
            await self.close()
            raise ServerUnavailableError(
                f"{self.where}: the connection is dead, the other side has stopped answering"
            ) from error
        except (OSError, RedisError) as error:
            await self.close()
            raise translate(error, self.where) from error
        except BaseException:
            # Cancelled half-way: the next reply would be this exchange's, so the link cannot go on.
            await self.close()
            raise
        return replies

    async def call(self, *arguments: Argument, reply_ms_max: int | None = None) -> Any:
        """One command, one reply.

        Raises:
            StandpipeError: the error reply, translated; or as :meth:`exchange`.
        """
        (reply,) = await self.exchange((pack(*arguments),), 1, reply_ms_max=reply_ms_max)
        if isinstance(reply, StandpipeError):
            raise reply
        return reply

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a script; the server learns it when it does not know it.

        Raises:
            StandpipeError: as :meth:`call`.
        """
        reply = (await self.exchange((script.pack(keys, *arguments),), 1))[0]
        if isinstance(reply, ScriptMissingError):
            # EVAL teaches and runs in one step, and needs no permission for SCRIPT LOAD.
            packed = script.pack(keys, *arguments, whole=True)
            reply = (await self.exchange((packed,), 1))[0]
        if isinstance(reply, StandpipeError):
            raise reply
        return reply

    async def close(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._forks == forks():
            # In a forked process it would take the parent's socket out of the parent's event loop.
            await drop(self._connection)


async def drop(connection: AbstractConnection) -> None:
    writer: Any = getattr(connection, "_writer", None)
    await connection.disconnect(nowait=True)
    if writer is not None:
        # TLS would say goodbye first, and wait for a server that may not answer.
        writer.transport.abort()
