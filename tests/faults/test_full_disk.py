"""A server whose disk is full makes producers wait; with room again, all that was acknowledged is
there, and still is after a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from standpipe import Producer, Stream
from tests.conditions import eventually
from tests.faults.disk import fill, mounted_disk
from tests.faults.feeder import Feeder
from tests.servers.fleet import Fleet, TestServer, require_server

pytestmark = [pytest.mark.faults, pytest.mark.servers]
NAMES = ("redis-7.0", "redis-8.2", "valkey-9.1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", 16) as found:
        yield found


@pytest.fixture
def fleet_on_disk(disk: Path) -> Iterator[Fleet]:
    """Servers that keep their data on that disk."""
    found = Fleet(disk)
    try:
        yield found
    finally:
        found.close()


def _is_written(server: TestServer) -> bool:
    said = server.info("persistence")
    return said["aof_buffer_length"] == said["aof_pending_bio_fsync"] == "0"


async def _require_all_once(feeder: Feeder, server: TestServer) -> None:
    """As the feeder does, over connections to the server as it is now."""
    async with Stream("power", server.url) as stream:
        await feeder.require_all_once(stream)


@pytest.mark.parametrize("name", NAMES)
async def test_append_only_file(
    name: str, disk: Path, fleet_on_disk: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """An AOF that cannot be written makes the server refuse; it takes events again by itself as
    soon as there is room."""
    require_server(name)
    server = fleet_on_disk.own(name, appendonly="yes", appendfsync="everysec")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(200)
        ballast = fill(disk)
        await eventually(lambda: producer.stats.retries >= 3, 20, what="the server refuses")
        assert "MISCONF" in caplog.text
        ballast.unlink()
        freed = time.monotonic()
        await feeder.until(1, 20)
        print(f"{name}: events go in {time.monotonic() - freed:.1f} s after there is room")
        await feeder.until(200)
        await feeder.finish()
        await eventually(lambda: _is_written(server))
        server.kill()
        server.start()
        await _require_all_once(feeder, server)
        assert producer.stats.failed == producer.stats.forgotten == 0


@pytest.mark.parametrize("name", NAMES)
async def test_append_only_file_that_is_synced_always(
    name: str, disk: Path, fleet_on_disk: Fleet
) -> None:
    """A server that has promised to sync every write ends itself rather than break its word; the
    producer waits until it is started again."""
    require_server(name)
    server = fleet_on_disk.own(name, appendonly="yes", appendfsync="always")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(200)
        ballast = fill(disk)
        await eventually(lambda: not server.is_running, 20, what="the server ends")
        ballast.unlink()
        server.start()
        started = time.monotonic()
        await feeder.until(1, 20)
        print(f"{name}: events go in {time.monotonic() - started:.1f} s after the start")
        await feeder.until(200)
        await feeder.finish()
        server.kill()
        server.start()
        await _require_all_once(feeder, server)
        assert producer.stats.failed == producer.stats.forgotten == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("redis-7.0", marks=pytest.mark.slow),
        pytest.param("redis-8.2", marks=pytest.mark.slow),
        "valkey-9.1",
    ],
)
async def test_snapshot(
    name: str, disk: Path, fleet_on_disk: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot that cannot be written makes the server refuse until the next one can."""
    require_server(name)
    server = fleet_on_disk.own(name, save="1 1")
    async with Stream("power", server.url) as stream, Producer(stream) as producer:
        feeder = Feeder(producer)
        await feeder.until(200)
        ballast = fill(disk)
        await eventually(lambda: producer.stats.retries >= 3, 30, what="the server refuses")
        assert "MISCONF" in caplog.text
        ballast.unlink()
        freed = time.monotonic()
        # The server tries a snapshot again five seconds after one that failed.
        await feeder.until(1, 30)
        print(f"{name}: events go in {time.monotonic() - freed:.1f} s after there is room")
        await feeder.until(200)
        await feeder.finish()
        server.terminate()
        server.start()
        await _require_all_once(feeder, server)
        assert producer.stats.failed == producer.stats.forgotten == 0
