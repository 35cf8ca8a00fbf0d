"""Consumers at work in a test, and what a server is asked meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

import redis

from standpipe import Stream
from standpipe.consumer import Consumer, Delivery
from tests.servers.fleet import TestServer

NEVER_IDLE_MS = 60_000


class Taken:
    """A consumer and what it has delivered so far."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.deliveries: list[Delivery] = []
        self.error: BaseException | None = None

    @property
    def ids(self) -> list[bytes]:
        return [entry_id for delivery in self.deliveries for entry_id in delivery.ids]

    @property
    def numbers(self) -> list[int]:
        return [event.fields["n"] for delivery in self.deliveries for event in delivery.batch]

    def ack_all(self) -> None:
        for delivery in self.deliveries:
            self.consumer.ack(delivery.shard, delivery.ids)

    async def take(self) -> None:
        try:
            async for delivery in self.consumer.deliveries():
                self.deliveries.append(delivery)
        except Exception as error:
            self.error = error


@contextlib.asynccontextmanager
async def consuming(
    stream: Stream, name: str = "me", *, leave: bool = False, **options: int | str
) -> AsyncIterator[Taken]:
    """A consumer that reads; closed at the end, like a process that dies, or told to leave."""
    consumer = Consumer(stream, "g", name, **{"idle_ms_min": NEVER_IDLE_MS, **options})
    await consumer.start()
    taken = Taken(consumer)
    taking = asyncio.create_task(taken.take())
    try:
        yield taken
        if leave:
            await consumer.leave()
    finally:
        await consumer.close()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


def hand_out(server: TestServer, stream: Stream, consumer: str, count: int) -> list[str]:
    """What a consumer held that is dead by now, and has been idle for long: the entry IDs."""
    with contextlib.suppress(redis.ResponseError):
        server.cli("XGROUP", "CREATE", stream.name, "g", "0")
    ((_, rows),) = server.command(
        "XREADGROUP", "GROUP", "g", consumer, "COUNT", count, "STREAMS", stream.name, ">"
    )
    ids = [row[0] for row in rows]
    claim = ("XCLAIM", stream.name, "g", consumer, 0, *ids)
    server.command(*claim, "IDLE", 10 * NEVER_IDLE_MS, "RETRYCOUNT", 1, "JUSTID")
    return ids


@contextlib.contextmanager
def watching(server: TestServer) -> Iterator[list[tuple[str, str]]]:
    """The (connection, command) of all that a server executes meanwhile."""
    seen: list[tuple[str, str]] = []
    client = redis.Redis(port=server.port, decode_responses=True)
    with client.monitor() as monitor:

        def listen() -> None:
            for found in monitor.listen():
                if found["command"] == "PING over":
                    return
                seen.append(
                    (
                        f"{found['client_address']}:{found['client_port']}",
                        " ".join(f'"{part}"' for part in found["command"].split(" ")),
                    )
                )

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield seen
        finally:
            server.command("PING", "over")
            thread.join(10)
    client.close()
