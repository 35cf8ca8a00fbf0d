"""What users of other libraries have suffered from, where no other test holds it.

docs/workers.md lists all of it, and which test holds what.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from standpipe import DeadLetters, Event, Producer, Reject, Retry, Selection, Stream, Worker
from tests.conditions import eventually
from tests.servers.entries import make_events
from tests.servers.fleet import TestServer
from tests.servers.working import calls, running, send, settled

pytestmark = pytest.mark.servers
OwnServer = Callable[..., TestServer]
UNREAD = 150_000


async def test_nothing_is_trimmed_unless_asked(own_server: OwnServer) -> None:
    """150,000 entries that nobody has read are all there: there is no limit by default, and no
    worker trims. (Elsewhere a default MAXLEN has cost as many.)"""
    server = own_server("valkey-9.1")
    async with Stream("s", server.url) as stream:
        async with Producer(stream, codec="plain") as producer:
            for first in range(0, UNREAD, 5_000):
                await producer.send_many(make_events(5_000, first=first))
            await producer.flush()
        assert server.command("XLEN", "s") == UNREAD
        worker = Worker(stream, "g")
        worker.batch(lambda batch: None)
        async with running(worker):
            await eventually(lambda: worker.stats.handled >= 1_000)
    assert server.command("XLEN", "s") == UNREAD
    assert calls(server, "xtrim") == calls(server, "xdel") == 0


@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
async def test_the_permissions_in_the_documentation_are_enough(
    own_server: OwnServer, ordered: bool
) -> None:
    """docs/operations.md names the commands that a worker needs, for each mode."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    producers, workers, letters_too, in_order = re.search(
        r"producers `([^`]+)` on .*?workers\s+besides\s+`([^`]+)`, for dead letters and what is "
        r"requeued `([^`]+)`, in ordered mode\s+`([^`]+)`",
        text,
        re.DOTALL,
    ).groups()  # type: ignore[union-attr]
    names = f"{producers} {workers} {letters_too} {in_order if ordered else ''}".split()
    server = own_server("valkey-9.1")
    server.command(
        "ACL", "SETUSER", "w", "on", ">pw", "~s*", "~{s}*", "+hello", "+client|setname",
        *[f"+{name.lower()}" for name in names],
    )  # fmt: skip
    url = server.url.replace("//", "//w:pw@")
    async with Stream("s", url) as stream:
        await send(stream, make_events(5))
        worker = Worker(stream, "g", ordered=ordered, idle_ms_min=300)
        failed: list[int] = []

        @worker.each
        async def handle(event: Event) -> None:
            n = event.fields["n"]
            assert isinstance(n, int)
            if n < 2 and n not in failed:
                failed.append(n)
                raise Reject("not now") if n else Retry(after=1)

        async with running(worker):
            await eventually(lambda: worker.stats.dead == 1 and worker.stats.handled == 4)
            async with Stream("s", server.url) as operators:
                await DeadLetters(operators).requeue(Selection())
            await eventually(lambda: worker.stats.handled == 5)
            await eventually(lambda: settled(stream))
            await eventually(lambda: server.cli("EXISTS", stream.requeued_key(0, "g")) == "0")
