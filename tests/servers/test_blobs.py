"""Payloads travel beside the stream: the event carries the reference, the worker gets the bytes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standpipe import Event, Producer, Stream, Worker
from standpipe.blobs import BlobReference, Blobs
from standpipe.errors import BlobCorruptError, BlobMissingError, EventTooLargeError
from tests.conditions import eventually
from tests.servers.fileserver import ftp_server
from tests.servers.fleet import TestServer

pytestmark = pytest.mark.servers
IMAGE = os.urandom(300_000)
EXAMPLE = Path(__file__).parents[2] / "examples" / "media.py"
ABSENT = f"blob:sha256:{'0' * 64};size=3"


@pytest.fixture
async def stream(server: TestServer, stream_name: str) -> AsyncIterator[Stream]:
    async with Stream(stream_name, server.url) as found:
        yield found


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


async def work(worker: Worker, until: object) -> None:
    """Run a worker until a condition holds."""
    running = asyncio.create_task(worker.run())
    try:
        await eventually(until)  # type: ignore[arg-type]
    finally:
        worker.stop()
        await running


@pytest.mark.parametrize("codec", ["plain", "rows", "columns"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_worker_gets_the_payload_with_one_call(
    stream: Stream, blobs: Blobs, codec: str, kind: str
) -> None:
    """What is too large for an event is attached to it, and a handler reads it, with each codec."""
    event = Event("camera-7", 1_700_000_000_000, {"lux": 3.5})
    seen: list[tuple[Event, bytes]] = []
    worker = Worker(stream, "g")

    async def handle(event: Event) -> None:
        seen.append((event, await blobs.afetch(event, "image")))

    def handle_in_thread(event: Event) -> None:
        seen.append((event, blobs.fetch(event, "image")))

    worker.each(handle if kind == "async" else handle_in_thread)
    async with Producer(stream, codec=codec) as producer:
        with pytest.raises(EventTooLargeError) as caught:
            await producer.send(Event("camera-7", event.time, {"image": IMAGE}))
        assert "standpipe.blobs" in caught.value.hint
        sent = await blobs.aattach(event, "image", IMAGE, media_type="image/png")
        await (await producer.send(sent))
    await work(worker, lambda: seen)
    assert seen == [(sent, IMAGE)]
    assert BlobReference.parse(seen[0][0].fields["image"]).media_type == "image/png"


async def test_a_missing_payload_becomes_a_dead_letter_that_names_it(
    stream: Stream, blobs: Blobs
) -> None:
    """An event whose blob is gone does not hold up the others, and says what is missing."""
    good = blobs.attach(Event("camera-7", 1, {}), "image", IMAGE)
    bad = Event("camera-7", 2, {"image": ABSENT})
    seen: list[bytes] = []
    worker = Worker(stream, "g", deliveries_max=2)

    @worker.each
    async def handle(event: Event) -> None:
        seen.append(await blobs.afetch(event, "image"))

    async with Producer(stream, codec="plain") as producer:
        await (await producer.send_many([bad, good]))

    async def letters() -> list[list[bytes]]:
        dead = stream.dead_key(0)
        return [
            fields for _, fields in await stream.server.call("XRANGE", dead, "-", "+", key=dead)
        ]

    await work(worker, letters)
    (letter,) = await letters()
    reason = dict(zip(letter[::2], letter[1::2], strict=True))[b"reason"].decode()
    assert "BlobMissingError" in reason
    assert ABSENT in reason
    assert seen == [IMAGE]


def test_the_media_example_runs(server: TestServer, tmp_path: Path) -> None:
    """examples/media.py sends a picture, made up or from a file, and its worker receives it."""
    server.command("UNLINK", "camera_stream", "{camera_stream}:definition")
    (tmp_path / "picture.png").write_bytes(IMAGE)
    for arguments, size in (([], 200_000), (["picture.png"], len(IMAGE))):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"STANDPIPE_URL": server.url, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        assert f"received camera-7: {size} bytes of image/png" in done.stdout
    assert len(list((tmp_path / "blobs").rglob("[0-9a-f]" * 64))) == 2


# --- a file server that renames ------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder that the FTP server serves."""
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def remote(served: Path) -> Iterator[Blobs]:
    with ftp_server(served) as url:
        yield Blobs(f"{url}/deep/blobs")


def test_blobs_on_a_file_server(remote: Blobs, served: Path, tmp_path: Path) -> None:
    """Bytes and files come back whole from a server that has one connection per filesystem."""
    file = tmp_path / "payload"
    file.write_bytes(os.urandom(9 * 1024 * 1024 + 1))
    assert remote.verify() == []
    references = [remote.put(data) for data in (b"", IMAGE, file, IMAGE)]
    assert remote.get(references[1]) == IMAGE
    with remote.open(references[2]) as opened:
        assert opened.read() == file.read_bytes()
    with ThreadPoolExecutor(4) as threads:
        (shared,) = set(threads.map(remote.put, [b"shared" * 10_000] * 8))
        assert set(threads.map(remote.get, [shared] * 8)) == {b"shared" * 10_000}
    assert remote.verify([*references, shared]) == []
    assert len([path for path in served.rglob("*") if path.is_file()]) == 4
    assert "secret" not in repr(remote)


def test_two_producers_and_a_worker_on_a_file_server(remote: Blobs, served: Path) -> None:
    """Each process has its own connection and sees what the others have put and deleted."""
    with ftp_server(served) as url:
        other = Blobs(f"{url}/deep/blobs")
        with pytest.raises(BlobMissingError):
            other.get(ABSENT)
        reference = remote.put(IMAGE)
        assert other.get(reference) == IMAGE
        assert other.put(IMAGE) == reference
        assert remote.verify([reference]) == []
        # What remote has listed just now is not what it goes by.
        assert other.delete(reference)
        assert not remote.exists(reference)
        with pytest.raises(BlobMissingError):
            remote.get(reference)


def test_a_corrupt_blob_on_a_file_server(remote: Blobs, served: Path) -> None:
    """It is found when it is read, and mended by delete and put."""
    reference = remote.put(IMAGE)
    digest = BlobReference.parse(reference).digest
    path = served / "deep" / "blobs" / digest[:2] / digest[2:4] / digest
    path.write_bytes(IMAGE[:-1] + b"?")
    with pytest.raises(BlobCorruptError):
        remote.get(reference)
    with pytest.raises(BlobCorruptError), remote.open(reference) as opened:
        opened.read()
    assert [finding.kind for finding in remote.verify()] == ["corrupt"]
    assert remote.delete(reference)
    assert remote.get(remote.put(IMAGE)) == IMAGE
