"""Reading an archive whose files change, and files that are none of ours."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from standpipe import Archive, Event, EventId
from standpipe.archive.file import build
from standpipe.archive.gathering import Gathering
from standpipe.archive.names import BEGIN, file_path
from standpipe.archive.place import Folder
from standpipe.codec import PlainLayout, block_fields, encode_rows
from standpipe.errors import (
    ArchiveDamagedError,
    ArchiveNotFoundError,
    ArchiveUnusableError,
    ConfigError,
    EventError,
    MissingExtraError,
)

HOUR = 1_700_000_000_000


def put(archive: Archive, after: EventId, numbers: Sequence[int], rows_max: int = 1000) -> EventId:
    """Files of blocks of one event each, one a millisecond; where they end."""
    gathering = Gathering("s", 0, PlainLayout(), after=after, generation=0, rows_max=rows_max)
    rows = [
        (b"%d-0" % (HOUR + n), block_fields("rows", 1, encode_rows([Event("m", n, {"n": n})])))
        for n in numbers
    ]
    for draft in gathering.add(rows) + gathering.finish():
        info, content = build(draft)
        first, last = EventId.parse(info.first), EventId.parse(info.last)
        path = file_path(
            "s", shard=0, generation=0, after=draft.after, first=first, last=last, content=content
        )
        archive.place.store(path, content, "test")
    return gathering.after


def numbers(archive: Archive, **options: object) -> list[int]:
    return [e.fields["n"] for table in archive.read("s", **options) for e in table.events()]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_share_an_archive(tmp_path: Path) -> None:
    """One lists, and forgets the files that are gone, while another takes in what files say."""
    archive = Archive(tmp_path)
    put(archive, BEGIN, range(30), rows_max=1)
    files = archive.files("s")
    # Of other streams it knows many: going through them takes its time.
    archive._infos.update({f"other/{n}": archive.info(files[0]) for n in range(5_000)})
    ended = threading.Event()
    failed: list[Exception] = []

    def look() -> None:
        try:
            while not ended.is_set():
                for file in files:
                    assert archive.info(file).stream == "s"
        except Exception as error:
            failed.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            assert len(archive.files("s")) == 30
            for file in files:
                archive._infos.pop(file.path, None)
    finally:
        ended.set()
        looking.join()
    assert not failed


class TornFolder(Folder):
    """A folder whose next listing is torn: one file was removed just before it was met, and the one
    that has taken its place appeared behind the listing's back."""

    hidden: Sequence[str] = ()

    def files(self, folder: str) -> list[str]:
        found = [path for path in super().files(folder) if path not in self.hidden]
        self.hidden = ()
        return found


def test_a_listing_that_is_torn(tmp_path: Path) -> None:
    """Files are put together while they are listed: neither the old ones nor the new one are seen,
    so it is listed again."""
    archive = Archive(tmp_path)
    end = put(archive, BEGIN, range(3))
    put(archive, end, range(3, 6))
    torn = TornFolder(tmp_path)
    archive.place = torn  # type: ignore[misc]
    torn.hidden = [file.path for file in archive.files("s")]
    assert numbers(archive) == list(range(6))


def test_what_was_put_together_since(tmp_path: Path) -> None:
    """A reader that has begun goes on in the larger file, behind what it has read, and stops where
    the archive ended when it began."""
    archive = Archive(tmp_path)
    end = put(archive, BEGIN, range(9), rows_max=3)
    reading = archive.read("s", rows=2)
    seen = [event.fields["n"] for event in next(reading).events()]
    parts = archive.files("s")
    put(archive, BEGIN, range(12))
    for part in parts:
        archive.place.remove(part.path)
    assert archive.position("s", 0) > end
    seen += [event.fields["n"] for table in reading for event in table.events()]
    assert seen == list(range(9))
    assert numbers(archive) == list(range(12))


def test_a_file_that_is_gone_for_good(tmp_path: Path) -> None:
    """Removed while it is read, and nothing has taken its place: an error that names it."""
    archive = Archive(tmp_path)
    put(archive, BEGIN, range(9), rows_max=3)
    reading = archive.read("s")
    next(reading)
    gone = archive.files("s")[1]
    archive.place.remove(gone.path)
    with pytest.raises(ArchiveDamagedError, match="is not there any more"):
        list(reading)


def test_what_is_no_archive(tmp_path: Path) -> None:
    """Nothing there, a stream that is not, a file in place of the folder, a foreign file of one of
    our names: errors that say so."""
    archive = Archive(tmp_path / "none")
    assert archive.streams() == []
    assert (archive.position("s", 0), archive.oldest("s", 0), archive.files("s")) == (None,) * 2 + (
        [],
    )
    with pytest.raises(ArchiveNotFoundError, match="nothing of stream 's'"):
        archive.read("s")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveUnusableError):
        Archive(tmp_path / "file").streams()
    put(archive, BEGIN, range(3))
    with pytest.raises(ArchiveNotFoundError, match="shard 7"):
        archive.read("s", shard=7)
    (file,) = archive.files("s")
    pq.write_table(pa.table({"a": [1]}), archive.path(file))
    with pytest.raises(ArchiveDamagedError, match="is no file of an archive"):
        numbers(Archive(tmp_path / "none"))
    Path(archive.path(file)).write_bytes(b"PAR1")
    with pytest.raises(ArchiveDamagedError, match="cannot be read"):
        numbers(Archive(tmp_path / "none"))


def test_bounds(tmp_path: Path) -> None:
    """Times, event IDs and their texts, both ends inclusive."""
    archive = Archive(tmp_path)
    put(archive, BEGIN, range(9), rows_max=4)
    assert numbers(archive, start=HOUR + 2, end=HOUR + 4) == [2, 3, 4]
    assert numbers(archive, start="2023-11-14T22:13:20.007Z") == [7, 8]
    assert numbers(archive, start=f"{HOUR + 1}-0", end=f"{HOUR + 5}-0/0") == [1, 2, 3, 4, 5]
    assert numbers(archive, start=EventId(HOUR + 8, 0, 1)) == []
    assert numbers(archive, after=EventId(HOUR + 6, 0), event_end=7) == [7]
    assert numbers(archive, end=5) == []
    assert archive.oldest("s", 0) == EventId(HOUR, 0)
    with pytest.raises(ConfigError, match="not a time"):
        archive.read("s", start="yesterday")
    with pytest.raises((ConfigError, EventError)):
        archive.read("s", end="1-2/x")
    with pytest.raises(ConfigError, match="rows is 0"):
        archive.read("s", rows=0)


def test_places() -> None:
    """A protocol whose package is missing, or that does not exist, is an error with a hint."""
    with pytest.raises((MissingExtraError, ConfigError)) as caught:
        Archive("nosuch://x")
    assert caught.value.hint
