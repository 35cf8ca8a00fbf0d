"""Payloads beside the stream come back as they were put, or as an error that says why not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from standpipe import Event
from standpipe.blobs import BlobReference, Blobs, Collected, references
from standpipe.errors import (
    BlobCorruptError,
    BlobDeniedError,
    BlobMissingError,
    BlobReferenceError,
    BlobStoreError,
    BlobTooLargeError,
    ConfigError,
    InputError,
    MissingExtraError,
)
from standpipe.limits import BLOB_CHUNK_BYTES, BLOB_RANGE_BYTES

MIB = 1024 * 1024
DAY_S = 86_400
ABSENT = f"blob:sha256:{'0' * 64};size=3"
NO_REFERENCES: list[Any] = [
    "",
    "blob:",
    "/etc/passwd",
    f"blob:sha256:{'../' * 21}x;size=1",
    f"blob:sha256:{'0' * 62}/..;size=1",
    f"blob:sha256:{'0' * 63};size=1",
    f"blob:sha256:{'0' * 65};size=1",
    f"blob:sha256:{'A' * 64};size=1",
    f"blob:sha256:{'0' * 63}\u0663;size=1",
    f"blob:sha256:{'0' * 64}",
    f"blob:sha256:{'0' * 64};size=",
    f"blob:sha256:{'0' * 64};size=-1",
    f"blob:sha256:{'0' * 64};size=01",
    f"blob:sha256:{'0' * 64};size=\u0663",
    f"blob:sha256:{'0' * 64};size=1{'0' * 18}",
    f"blob:sha256:{'0' * 64};size=1\n",
    f" blob:sha256:{'0' * 64};size=1",
    f"blob:sha256:{'0' * 64};size=1;type=",
    f"blob:sha256:{'0' * 64};size=1;type=png",
    f"blob:sha256:{'0' * 64};size=1;type=image/png;x=y",
    f"blob:sha256:{'0' * 64};size=1;type=image/../../png",
    f"blob:md5:{'0' * 32};size=1",
    None,
    12,
    b"blob:sha256:" + b"0" * 64 + b";size=1",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    """Blobs in a local folder, which is not there yet."""
    return Blobs(folder)


@pytest.fixture
def protocols() -> Iterator[dict[str, type]]:
    """fsspec's table of protocols, in which a test may enter its own."""
    table: dict[str, type] = import_module("fsspec.registry")._registry
    before = dict(table)
    yield table
    table.clear()
    table.update(before)


@pytest.fixture
def disk(protocols: dict[str, type]) -> str:
    """A protocol of fsspec's own local files, which file:// does not use: a server that renames."""

    class Disk(LocalFileSystem):
        protocol = "disk"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return LocalFileSystem._strip_protocol(path.removeprefix("disk://"))

    protocols["disk"] = Disk
    return "disk"


@pytest.fixture(params=["folder", "file", "memory", "disk"])
def anywhere(request: pytest.FixtureRequest, folder: Path, disk: str) -> Blobs:
    """Blobs in each kind of place."""
    where = {
        "folder": str(folder),
        "file": folder.as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}/blobs",
        "disk": f"{disk}://{folder}",
    }
    return Blobs(where[request.param])


def path_of(folder: Path, reference: str) -> Path:
    """Where docs/blobs.md says that a blob lies."""
    digest = BlobReference.parse(reference).digest
    return folder / digest[:2] / digest[2:4] / digest


def files_in(folder: Path) -> list[str]:
    """All files but the lock."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    )


def set_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


# --- references ----------------------------------------------------------------------------------


def test_a_reference_says_hash_size_and_type(blobs: Blobs) -> None:
    """The reference's text is the documented one, and its parts can be read from it."""
    reference = blobs.put(b"hello", media_type="image/svg+xml")
    digest = hashlib.sha256(b"hello").hexdigest()
    assert reference == f"blob:sha256:{digest};size=5;type=image/svg+xml"
    assert type(reference) is str
    assert BlobReference.parse(reference) == (digest, 5, "image/svg+xml")
    assert BlobReference.parse(blobs.put(b"hello")) == (digest, 5, None)


@pytest.mark.parametrize("text", NO_REFERENCES, ids=repr)
def test_what_is_no_reference_reaches_no_file(folder: Path, text: Any) -> None:
    """A text that could lead elsewhere is a typed error before any path is made of it."""
    blobs = Blobs(folder)
    for use in (blobs.get, blobs.open, blobs.exists, blobs.delete):
        with pytest.raises(BlobReferenceError, match="is not a blob reference"):
            use(text)
    with pytest.raises(BlobReferenceError):
        blobs.verify([text])
    assert not folder.exists()


@given(st.text() | st.from_regex(r"blob:sha256:[0-9a-f]{64};size=[0-9]{1,20}(;type=\S+)?"))
def test_each_reference_has_one_spelling(text: str) -> None:
    """Any text is either refused or written back exactly as it was."""
    try:
        parsed = BlobReference.parse(text)
    except BlobReferenceError:
        return
    assert str(parsed) == text
    assert re.fullmatch("[0-9a-f]{64}", parsed.digest)


@pytest.mark.parametrize("media_type", ["", "png", "text/plain; charset=utf-8", "a/b\n", "ä/b"])
def test_a_media_type_is_type_and_subtype(blobs: Blobs, media_type: str) -> None:
    """What would make an unreadable reference is refused before anything is written."""
    with pytest.raises(InputError, match="media type is"):
        blobs.put(b"x", media_type=media_type)


# --- putting and getting -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES + 1, BLOB_RANGE_BYTES, BLOB_RANGE_BYTES + 1]
)
def test_what_is_put_comes_back(anywhere: Blobs, tmp_path: Path, size: int) -> None:
    """Bytes, a path and an open file give the same reference and the same bytes, everywhere."""
    data = os.urandom(size)
    file = tmp_path / "payload"
    file.write_bytes(data)
    reference = anywhere.put(data)
    assert not list(tmp_path.glob("blobs/tmp/*"))
    assert anywhere.put(bytearray(data)) == anywhere.put(memoryview(data)) == reference
    assert anywhere.put(file) == reference
    assert anywhere.put(io.BytesIO(b"head" + data)) != reference
    stream = io.BytesIO(b"head" + data)
    stream.seek(4)
    assert anywhere.put(stream) == reference
    assert not stream.closed
    assert anywhere.get(reference) == data
    with anywhere.open(reference) as opened:
        assert opened.read() == data
        assert opened.read() == b""
    with anywhere.open(reference) as opened:
        assert b"".join(iter(lambda: opened.read(100_003), b"")) == data
    assert anywhere.exists(reference)
    assert anywhere.verify([reference]) == []


def test_a_file_that_is_new_comes_back(anywhere: Blobs, tmp_path: Path) -> None:
    """A stream of unknown length whose content is not there yet is kept whole."""
    data = os.urandom(3 * MIB + 7)
    (tmp_path / "payload").write_bytes(data)
    assert anywhere.get(anywhere.put(tmp_path / "payload")) == data
    assert anywhere.verify() == []


def test_a_blob_lies_under_its_hash(blobs: Blobs, folder: Path) -> None:
    """Other programs find a blob by the documented path, and nothing else stays behind."""
    reference = blobs.put(b"hello")
    assert files_in(folder) == [path_of(folder, reference).relative_to(folder).as_posix()]
    assert path_of(folder, reference).read_bytes() == b"hello"


@pytest.mark.parametrize("kind", ["bytes", "stream"])
def test_the_same_content_is_not_written_again(blobs: Blobs, folder: Path, kind: str) -> None:
    """A second put leaves the file alone and begins its age anew."""
    path = path_of(folder, blobs.put(b"hello"))
    set_age(path, DAY_S)
    before = path.stat().st_ino
    blobs.put(b"hello" if kind == "bytes" else io.BytesIO(b"hello"))
    assert path.stat().st_ino == before
    assert time.time() - path.stat().st_mtime < 60
    assert len(files_in(folder)) == 1


def test_a_blob_of_the_wrong_size_is_written_again(anywhere: Blobs, folder: Path) -> None:
    """What another program has cut off is mended by the next put."""
    reference = anywhere.put(b"hello")
    if folder.exists():
        path_of(folder, reference).write_bytes(b"h")
    else:
        root = Path(repr(anywhere).removeprefix("<Blobs in memory:/").removesuffix(">"))
        MemoryFileSystem().pipe_file(str(path_of(root, reference)), b"h")
    assert not anywhere.exists(reference)
    assert anywhere.put(b"hello") == reference
    assert anywhere.get(reference) == b"hello"


def test_an_object_store_is_written_each_time(protocols: dict[str, type]) -> None:
    """In S3, GCS and Azure each put renews the object's age, and no temporary name is used."""
    uploads: list[str] = []

    class ObjectStore(MemoryFileSystem):
        protocol = "abfss"

        def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
            uploads.append(path)
            super().pipe_file(path, value, **options)

    protocols["abfss"] = ObjectStore
    blobs = Blobs("abfss://bucket/blobs")
    reference = blobs.put(b"hello")
    assert blobs.put(b"hello") == reference
    assert [path.rpartition("bucket")[2] for path in uploads] == [
        str(path_of(Path("/blobs"), reference))
    ] * 2
    assert blobs.get(reference) == b"hello"


def put_one(where: str) -> str:
    """In a process of its own."""
    return Blobs(where).put(io.BytesIO(b"x" * 2 * MIB))


def test_puts_of_the_same_content_at_the_same_time(anywhere: Blobs, folder: Path) -> None:
    """Threads that put the same content get the same reference, and there is one whole blob."""
    data = os.urandom(2 * MIB)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: anywhere.put(data), range(24)))
        (reference,) = found
        assert all(got == data for got in threads.map(anywhere.get, [reference] * 8))
    assert anywhere.verify([reference]) == []
    if folder.exists():
        assert len(files_in(folder)) == 1


def test_processes_put_the_same_content(folder: Path) -> None:
    """The same holds for processes, which share nothing but the folder."""
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        (reference,) = set(processes.map(put_one, [str(folder)] * 9))
    assert Blobs(folder).verify([reference]) == []
    assert len(files_in(folder)) == 1


def test_large_payloads_take_little_memory(anywhere: Blobs, tmp_path: Path) -> None:
    """A file of 48 MiB goes in and out in pieces."""
    if "memory:" in repr(anywhere):
        return  # That place is the memory.
    file = tmp_path / "payload"
    with file.open("wb") as out:
        for _ in range(48):
            out.write(os.urandom(MIB))
    tracemalloc.start()
    try:
        reference = anywhere.put(file)
        digest = hashlib.sha256()
        with anywhere.open(reference) as opened:
            while piece := opened.read(MIB):
                digest.update(piece)
        assert anywhere.verify() == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert digest.hexdigest() == BlobReference.parse(reference).digest
    assert peak < 4 * BLOB_RANGE_BYTES


def test_the_disk_has_a_blob_before_its_name(
    blobs: Blobs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is forced to disk, then renamed, then the three folders are forced to disk."""
    done: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        done.append(("rename", str(target)))
        return real_replace(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc that names open files")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    path = path_of(folder, blobs.put(b"hello"))
    names = [str(path.parent), str(path.parent.parent), str(folder)]
    at = done.index(("rename", str(path)))
    assert done[at - 1][0] == "fsync"
    assert done[at - 1][1].startswith(f"{folder}/tmp/")
    assert done[at + 1 :] == [("fsync", name) for name in names]
    # The folder's own name too: it was made by this put.
    assert ("fsync", str(folder.parent)) in done[:at]
    done.clear()
    blobs.put(b"hello")
    assert done == [("fsync", name) for name in names]


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_missing_blob_is_named(anywhere: Blobs) -> None:
    """The error has the reference and says what to look at; asking and deleting are no errors."""
    anywhere.put(b"another")
    for use in (anywhere.get, anywhere.open):
        with pytest.raises(BlobMissingError, match="is not there") as caught:
            use(ABSENT)
        assert caught.value.reference == ABSENT
        assert ABSENT in str(caught.value)
        assert "sees the folder or URL" in caught.value.hint
    assert not anywhere.exists(ABSENT)
    assert not anywhere.delete(ABSENT)


def test_a_missing_folder_is_no_missing_blob(blobs: Blobs) -> None:
    """A disk that is not mounted is worth another try; it does not mean that blobs are lost."""
    for use in (blobs.get, blobs.open, blobs.exists, blobs.delete):
        with pytest.raises(BlobStoreError, match="is not there") as caught:
            use(ABSENT)
        assert caught.value.retryable
    with pytest.raises(BlobStoreError, match="is not there"):
        blobs.verify()


@pytest.mark.parametrize("damage", ["flip first", "flip last", "cut", "grow", "empty"])
def test_a_corrupt_blob_is_never_handed_out_whole(blobs: Blobs, folder: Path, damage: str) -> None:
    """get() gives nothing of it; open() raises before its end, and again when asked again."""
    data = os.urandom(2 * BLOB_CHUNK_BYTES + 100)
    reference = blobs.put(data)
    path = path_of(folder, reference)
    path.write_bytes(
        {
            "flip first": bytes([data[0] ^ 1]) + data[1:],
            "flip last": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:-1],
            "grow": data + b"x",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(BlobCorruptError, match="is not what") as caught:
        blobs.get(reference)
    assert caught.value.reference == reference
    assert "put the payload again" in caught.value.hint
    read = 0
    with pytest.raises(BlobCorruptError), blobs.open(reference) as opened:
        while piece := opened.read(50_000):
            read += len(piece)
    assert read < len(data)
    if damage.startswith("flip"):
        with blobs.open(reference) as opened:
            for _ in range(2):
                with pytest.raises(BlobCorruptError):
                    while opened.read(MIB):
                        pass
    (finding,) = blobs.verify()
    assert (finding.kind, finding.path) == ("corrupt", str(path))
    assert blobs.delete(reference)
    assert blobs.get(blobs.put(data)) == data


def test_a_reference_with_another_size_is_refused(blobs: Blobs) -> None:
    """A forged size is found before anything is loaded."""
    reference = blobs.put(b"hello").replace("size=5", "size=500")
    with pytest.raises(BlobCorruptError, match="it has 5 bytes"):
        blobs.get(reference)
    with pytest.raises(BlobCorruptError):
        blobs.open(reference)
    assert not blobs.exists(reference)
    assert [finding.kind for finding in blobs.verify([reference])] == ["corrupt"]


@pytest.mark.parametrize("kind", ["bytes", "stream", "path"])
def test_a_payload_above_the_limit_leaves_nothing(folder: Path, kind: str, tmp_path: Path) -> None:
    """It is refused while it is read, and what was written of it is gone."""
    blobs = Blobs(folder, blob_bytes_max=2 * MIB)
    data = b"x" * (2 * MIB + 1)
    (tmp_path / "payload").write_bytes(data)
    given = {"bytes": data, "stream": io.BytesIO(data), "path": tmp_path / "payload"}[kind]
    with pytest.raises(BlobTooLargeError, match="more than 2097152 bytes"):
        blobs.put(given)
    assert files_in(folder) == []
    large = Blobs(folder).put(data)
    with pytest.raises(BlobTooLargeError) as caught:
        blobs.get(large)
    assert "open()" in caught.value.hint
    with blobs.open(large) as opened:
        assert opened.read() == data


class Failing(io.RawIOBase):
    """A device that goes away in the middle."""

    def __init__(self) -> None:
        self.left = 3

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if not self.left:
            raise ConnectionResetError("the camera is gone")
        return b"x" * size


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Failing(), "the camera is gone"),
        (io.StringIO("text"), "gives str instead of bytes"),
        ("/a/path/as/text", "has no attribute 'read'"),
        (Path("no such file"), "no such file cannot be read"),
        (Path("/"), "/ cannot be read"),
    ],
    ids=["failing", "text", "str", "missing", "folder"],
)
def test_a_payload_that_cannot_be_read_is_the_callers(
    anywhere: Blobs, folder: Path, source: Any, says: str
) -> None:
    """It is an input error, not one of the place, and leaves nothing behind."""
    if isinstance(source, Failing):
        source.left = 3
    with pytest.raises(InputError, match=re.escape(says)):
        anywhere.put(source)
    assert files_in(folder) == []


def test_a_place_that_may_not_be_written_is_a_typed_error() -> None:
    """The kernel lets nobody, not even root, make files there."""
    blobs = Blobs("/sys/standpipe-blobs" if sys.platform == "linux" else "/standpipe-blobs")
    with pytest.raises(BlobDeniedError, match="cannot write to /s") as caught:
        blobs.put(b"x")
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, OSError)


def test_a_place_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    """What stands in the way is named."""
    (tmp_path / "file").touch()
    with pytest.raises(BlobStoreError, match=r"file.*: (Not a directory|File exists)"):
        Blobs(tmp_path / "file").put(b"x")


@pytest.mark.parametrize(
    ("where", "options", "says"),
    [
        ("", {}, "no folder is named"),
        ("folder", {"key": 1}, "takes no options, but was given key"),
        ("file://host/folder", {}, "names the host 'host'"),
        ("nosuchprotocol://x", {}, "fsspec refuses nosuchprotocol://x"),
        ("folder", {"blob_bytes_max": 0}, "blob_bytes_max is 0"),
    ],
)
def test_a_wrong_place_is_a_config_error(where: str, options: dict[str, Any], says: str) -> None:
    """What is wrong shows when the place is named, not at the first put."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        Blobs(where, **options)


def test_without_fsspec_a_url_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """A local folder does without fsspec; a URL says how to install it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for where in (folder, folder.as_uri()):
        assert Blobs(where).get(Blobs(where).put(b"x")) == b"x"
    with pytest.raises(MissingExtraError, match="fsspec") as caught:
        Blobs("memory://x")
    assert "standpipe[blobs]" in caught.value.hint


def test_a_protocol_without_its_package_names_it() -> None:
    """fsspec's own words say which package is missing."""
    assert importlib.util.find_spec("ocifs") is None
    with pytest.raises(MissingExtraError, match="ocifs"):
        Blobs("oci://bucket/x")


def test_a_password_in_the_url_is_not_shown() -> None:
    """Neither errors nor repr carry it into a log."""
    with pytest.raises(BlobStoreError, match=r"cannot connect to ftp://127\.0\.0\.1:1/x") as caught:
        Blobs("ftp://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_importing_needs_no_fsspec() -> None:
    """Those who keep blobs in a folder pay for nothing else."""
    code = "import sys, standpipe.blobs; sys.exit('fsspec' in sys.modules)"
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert done.returncode == 0


# --- events --------------------------------------------------------------------------------------


def test_an_event_carries_the_reference(anywhere: Blobs) -> None:
    """attach leaves the event as it is and gives one with the reference; fetch reads it."""
    event = Event("camera-7", 1_700_000_000_000, {"lux": 3.5, "image": b"thumbnail"})
    sent = anywhere.attach(event, "image", b"PNG...", media_type="image/png")
    assert event.fields["image"] == b"thumbnail"
    assert (sent.key, sent.time, sent.fields["lux"]) == (event.key, event.time, 3.5)
    assert references(sent) == [sent.fields["image"]]
    assert anywhere.fetch(sent, "image") == b"PNG..."


def test_a_field_without_a_reference_is_named(blobs: Blobs) -> None:
    """The error says which field of which device it is."""
    event = Event("camera-7", 0, {"image": None, "lux": 3.5})
    with pytest.raises(BlobReferenceError, match="'camera-7' has no field 'video'") as caught:
        blobs.fetch(event, "video")
    assert "image, lux" in caught.value.hint
    with pytest.raises(BlobReferenceError, match="field 'image' of 'camera-7': None is not"):
        blobs.fetch(event, "image")


def test_a_damaged_reference_in_an_event_is_not_passed_over() -> None:
    """Else collect would remove what it refers to."""
    assert references(Event("a", 0, {"text": "blob", "n": 1, "none": None})) == []
    with pytest.raises(BlobReferenceError):
        references(Event("a", 0, {"image": "blob:sha256:00;size=1"}))


async def test_async_faces_leave_the_loop_free(anywhere: Blobs) -> None:
    """While a payload comes in slowly, other coroutines run."""
    go = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert go.wait(10)
            return super().read(size)

    putting = asyncio.create_task(anywhere.aput(Slow(b"slow"), media_type="text/plain"))
    await asyncio.sleep(0)
    go.set()
    reference = await putting
    assert await anywhere.aget(reference) == b"slow"
    event = await anywhere.aattach(Event.now("a"), "text", b"slow", media_type="text/plain")
    assert event.fields["text"] == reference
    assert await anywhere.afetch(event, "text") == b"slow"


# --- keeping house -------------------------------------------------------------------------------


def test_a_deleted_blob_is_gone(anywhere: Blobs) -> None:
    """delete says whether the blob was there."""
    reference = anywhere.put(b"hello")
    assert anywhere.delete(reference)
    assert not anywhere.delete(reference)
    with pytest.raises(BlobMissingError):
        anywhere.get(reference)


def test_verify_finds_what_is_wrong(blobs: Blobs, folder: Path) -> None:
    """Missing, corrupt, unreadable and stray files are named; a put in progress is none of them."""
    good, bad, circle = (blobs.put(data) for data in (b"good", b"bad", b"circle"))
    path_of(folder, bad).write_bytes(b"dab")
    path_of(folder, circle).unlink()
    path_of(folder, circle).symlink_to(path_of(folder, circle))
    old, new = time.time_ns() // 1_000_000 - 2 * 3_600_000, time.time_ns() // 1_000_000
    stray = folder / "tmp" / f"{old}-{uuid.uuid4().hex}"
    stray.write_bytes(b"half of")
    (folder / "tmp" / f"{new}-{uuid.uuid4().hex}").write_bytes(b"in progress")
    (folder / "notes.txt").write_bytes(b"?")
    found = {(finding.kind, finding.path) for finding in blobs.verify([good, bad, ABSENT])}
    assert found == {
        ("corrupt", str(path_of(folder, bad))),
        ("unreadable", str(path_of(folder, circle))),
        ("missing", str(path_of(folder, ABSENT))),
        ("stray", str(stray)),
        ("stray", str(folder / "notes.txt")),
    }
    (finding,) = [each for each in blobs.verify() if each.path == str(stray)]
    assert "began 2h ago" in finding.detail


@pytest.fixture
def aged(blobs: Blobs, folder: Path) -> Iterator[dict[str, str]]:
    """References of an old blob, a young one, and one that is old and kept."""
    found = {name: blobs.put(name.encode()) for name in ("old", "young", "kept")}
    for name in ("old", "kept"):
        set_age(path_of(folder, found[name]), 2 * DAY_S)
    yield found


def test_collect_removes_what_is_old_and_not_kept(
    blobs: Blobs, folder: Path, aged: dict[str, str]
) -> None:
    """It counts what it removes; what is kept or young, and files of others, stay."""
    two_days_ago = time.time_ns() // 1_000_000 - 2 * DAY_S * 1000
    (folder / "tmp" / f"{two_days_ago}-{uuid.uuid4().hex}").write_bytes(b"half of")
    (folder / "notes.txt").write_bytes(b"?")
    assert blobs.collect([aged["kept"]], older_than="1d") == Collected(
        removed=1, removed_bytes=3, kept=2, strays=1
    )
    assert [blobs.exists(aged[name]) for name in aged] == [False, True, True]
    assert (folder / "notes.txt").exists()
    assert blobs.collect(older_than="1d").removed == 1


def test_collect_with_a_wrong_reference_removes_nothing(blobs: Blobs, aged: dict[str, str]) -> None:
    """A list that cannot be read whole decides nothing."""
    with pytest.raises(BlobReferenceError):
        blobs.collect([aged["kept"], "oops"], older_than="1d")
    assert all(map(blobs.exists, aged.values()))


def test_collect_asks_for_an_age(blobs: Blobs, aged: dict[str, str]) -> None:
    """An age below an hour would remove what is about to be sent."""
    with pytest.raises(ConfigError, match=r"older_than is 59m, less than 1h"):
        blobs.collect(older_than="59m")
    assert all(map(blobs.exists, aged.values()))


def test_collect_behind_a_url_says_what_to_do() -> None:
    """Where a put and collect cannot take turns, the store's own rules have to do it."""
    with pytest.raises(ConfigError, match="a local folder alone") as caught:
        Blobs("memory://collect").collect(older_than="7d")
    assert "lifecycle rules" in caught.value.hint


@pytest.mark.parametrize("kind", ["bytes", "stream"])
def test_a_put_is_never_undone_by_collect(blobs: Blobs, folder: Path, kind: str) -> None:
    """Whatever the order in which they meet, a blob is there when its put has returned."""
    reference = blobs.put(b"hello")
    path = path_of(folder, reference)
    stop = threading.Event()
    removed = 0

    def collect() -> None:
        nonlocal removed
        while not stop.is_set():
            removed += blobs.collect(older_than="1d").removed

    with ThreadPoolExecutor(1) as threads:
        collecting = threads.submit(collect)
        try:
            for _ in range(400):
                # If it is collected already, the put has to write it again.
                with contextlib.suppress(FileNotFoundError):
                    set_age(path, 2 * DAY_S)
                blobs.put(b"hello" if kind == "bytes" else io.BytesIO(b"hello"))
                assert path.read_bytes() == b"hello"
        finally:
            stop.set()
        collecting.result()
    assert removed > 0
