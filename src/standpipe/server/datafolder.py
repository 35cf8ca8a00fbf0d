"""The data folder of the embedded server: who holds it, its configuration, its log.

    standpipe.lock    held by the process that runs the server; its pid, the port and the URL
    server.pid        held by the server itself; its pid
    server.conf       written anew at each start
    server.log        and server.log.1, the one before
    appendonlydir/    the data

Both locks are flock(2): they end with the process that holds them, whatever ended it, so a crash
leaves nothing to clean up and a pid that was given to another process is not mistaken for ours.
The files stay when the lock is let go: removing a locked file would let two processes lock two
files of the same name.

Everything here blocks, for well below a millisecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Final, cast

from standpipe.errors import FolderInUseError, FolderUnusableError
from standpipe.limits import SERVER_LOG_BYTES_MAX

CONFIG_NAME: Final = "server.conf"
LOG_QUOTE_LINES: Final = 8
LOG_QUOTE_BYTES: Final = 64 * 1024


def default_folder() -> Path:
    """Where the embedded server keeps its data unless told otherwise: ``standpipe/server`` under
    XDG_DATA_HOME, which is ~/.local/share where that variable is not set."""
    given = os.environ.get("XDG_DATA_HOME", "")
    # The specification says that a relative path is to be ignored.
    root = Path(given) if given.startswith("/") else Path("~/.local/share").expanduser()
    return root / "standpipe" / "server"


class DataFolder:
    """The folder, locked from :meth:`lock` to :meth:`unlock`.

    Args:
        path: Created with mode 0700 when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 (keeps symlinks)
        self.log: Final = self.path / "server.log"
        self.last_port: int | None = None
        """The port that a server on this folder used last; known once locked."""
        self._lock: int | None = None
        self._log_start = 0

    def lock(self) -> None:
        """Take the folder for this process.

        Raises:
            FolderInUseError: another process, or another server of this one, has it.
            FolderUnusableError: it cannot be created, locked or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable("create the data folder", error) from error
        lock = self._open("standpipe.lock")
        is_free = self._flock(lock)
        record = _read_record(lock)
        if not is_free:
            os.close(lock)
            pid, url = record.get("pid", "(unknown)"), record.get("url")
            raise FolderInUseError(
                f"{self.path} is in use: process {pid} runs a server on it"
                + (f" at {url}" if url else "")
            )
        self._lock = lock
        port = record.get("port")
        self.last_port = port if isinstance(port, int) else None
        self.remember(self.last_port, url=None)

    def remember(self, port: int | None, *, url: str | None) -> None:
        """Write down who holds the folder, for the error of those who come second."""
        assert self._lock is not None, "the folder is locked before anything is written"
        record = json.dumps({"pid": os.getpid(), "port": port, "url": url})
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, record.encode(), 0)
        except OSError as error:
            raise self._unusable("write to", error) from error

    def unlock(self) -> None:
        """Let the folder go; without effect when it is not held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self) -> int | None:
        """A locked descriptor for the server to inherit, or None while another server runs here.

        The server and each process that it forks hold the lock for as long as they live, also when
        the process that started them does not live any more.
        """
        claim = self._open("server.pid")
        if self._flock(claim):
            return claim
        os.close(claim)
        return None

    def name_server(self, claim: int, pid: int) -> None:
        """Write the pid of the server that holds the claim, for :meth:`orphan_error`."""
        try:
            os.ftruncate(claim, 0)
            os.pwrite(claim, str(pid).encode(), 0)
        except OSError as error:
            raise self._unusable("write to", error) from error

    def orphan_error(self) -> FolderInUseError:
        """The error for a server that outlived the process which started it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.path / "server.pid").read_text())
            return FolderInUseError(
                f"{self.path} is in use: a server (process {pid}) still runs on it, "
                "though the process that started it is gone",
                hint=f"End it with `kill {pid}`, which writes its data out, and start again. "
                "A server that was not started here is never taken over.",
            )
        return FolderInUseError(f"{self.path} is in use by a server of unknown process id")

    def write_config(self, text: str) -> None:
        """Write server.conf with mode 0600: it may hold a password."""
        new = self.path / (CONFIG_NAME + ".new")
        try:
            new.unlink(missing_ok=True)
            new.touch(mode=0o600, exist_ok=False)
            new.write_text(text)
            new.replace(self.path / CONFIG_NAME)
        except OSError as error:
            raise self._unusable("write to", error) from error

    def open_log(self) -> int:
        """A descriptor of the log to append to; a log that has grown too large is moved aside."""
        try:
            if self.log.exists() and self.log.stat().st_size > SERVER_LOG_BYTES_MAX:
                self.log.replace(self.log.with_name("server.log.1"))
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._unusable("write the server's log in", error) from error
        self._log_start = os.fstat(descriptor).st_size
        return descriptor

    def read_log(self) -> str:
        """What the server has logged since its last start, the end of it when it is long."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - LOG_QUOTE_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"

    def _open(self, name: str) -> int:
        try:
            return os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable("write to", error) from error

    def _flock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(descriptor)
            raise self._unusable("lock", error) from error
        return True

    def _unusable(self, what: str, error: OSError) -> FolderUnusableError:
        return FolderUnusableError(f"cannot {what} {self.path}: {error.strerror or error}")


def _read_record(descriptor: int) -> dict[str, Any]:
    """What the lock file says; nothing when its writer was cut off half-way."""
    try:
        record: object = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return cast(dict[str, Any], record) if isinstance(record, dict) else {}


# --- the machine ---------------------------------------------------------------------------------


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or less where a container limits it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # Absent outside a container, and the word "max" where there is no limit.
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(found)
