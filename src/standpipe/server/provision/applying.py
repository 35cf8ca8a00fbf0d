"""Files put in place: compared, shown, replaced, and what they replace kept. Blocks.

Nothing is replaced that is as it should be, so a second run changes nothing. A file is replaced by
a rename: who reads it gets the old one or the new one, whole.
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

from standpipe.errors import ProvisionError
from standpipe.server.provision.keeping import write_whole
from standpipe.server.provision.layout import File

BACKUPS: Final = "var/backups/standpipe"
"""Below the root. Not beside the files: a copy in logrotate.d or sysusers.d would be read too."""

Kind = Literal["create", "replace", "attributes", "same"]


class Change(NamedTuple):
    """What a file is, and what it is to be."""

    file: File
    kind: Kind
    before: str | None
    """What stands there; None: nothing."""
    attributes: tuple[str, ...]
    """What differs beside the text, such as ``mode 0644, not 0600``."""

    def diff(self, mask: Callable[[str], str]) -> str:
        """A unified diff without passwords and keys; empty where the text is the same."""
        if self.kind not in ("create", "replace"):
            return ""
        path = self.file.path
        lines = difflib.unified_diff(
            mask(self.before or "").splitlines(keepends=True),
            mask(self.file.text).splitlines(keepends=True),
            "/dev/null" if self.before is None else f"{path} (before)",
            f"{path} (after)",
        )
        return "".join(lines)


class Owners:
    """The users of the machine that is below the root, which need not be this one's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, file: File) -> tuple[int, int] | None:
        """A file's user and group by number; None while one of them is not there."""
        user = self._number("passwd", file.owner)
        group = self._number("group", file.group)
        return None if user is None or group is None else (user, group)

    def _number(self, table: str, name: str) -> int | None:
        if name == "root":
            return 0
        if self._root == Path("/"):
            try:
                found = pwd.getpwnam(name) if table == "passwd" else grp.getgrnam(name)
            except KeyError:
                return None
            return found[2]
        try:
            rows = (self._root / "etc" / table).read_text("utf-8", "replace").splitlines()
        except OSError:
            return None
        return next((int(r.split(":")[2]) for r in rows if r.startswith(f"{name}:")), None)


def compare(files: Sequence[File], root: Path) -> list[Change]:
    """Each file against what stands below the root.

    Raises:
        ProvisionError: one cannot be read, or a link leads out of the root.
    """
    owners = Owners(root)
    return [_compared(file, root, owners) for file in files]


def _compared(file: File, root: Path, owners: Owners) -> Change:
    path = _inside(root, file.path)
    try:
        found = path.lstat()
        before = path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return Change(file, "create", None, ())
    except OSError as error:
        raise ProvisionError(
            f"{path} cannot be read: {error.strerror or error}", hint="Run it as root."
        ) from error
    attributes: list[str] = []
    mode = stat.S_IMODE(found.st_mode)
    if mode != file.mode:
        attributes.append(f"mode {mode:04o}, not {file.mode:04o}")
    owner = owners.find(file)
    if owner is None:
        attributes.append(f"there is no user or group {file.owner}:{file.group}")
    elif owner != (found.st_uid, found.st_gid):
        attributes.append(
            f"owner {found.st_uid}:{found.st_gid}, not {file.owner}:{file.group} "
            f"({owner[0]}:{owner[1]})"
        )
    kind: Kind = "attributes" if attributes else "same"
    if before != file.text and not file.keeps_text:
        kind = "replace"
    return Change(file, kind, before, tuple(attributes))


def _inside(root: Path, path: str) -> Path:
    """Where a path is below the root; a link there must not lead to this machine's own files."""
    found = root / path.lstrip("/")
    top = root.resolve()
    if not found.parent.resolve().is_relative_to(top):
        raise ProvisionError(
            f"{found} leads out of {root}, by a link",
            hint="Make the link relative, or remove it.",
        )
    return found


# --- putting in place ----------------------------------------------------------------------------


class Ran(NamedTuple):
    """A command that made a change take effect."""

    command: tuple[str, ...]
    code: int | None
    """None: the program is not there."""
    said: str


class Applied(NamedTuple):
    """What was done."""

    changes: list[Change]
    backups: Path | None
    """Where what was replaced is kept; None: nothing was."""
    ran: list[Ran]
    restart: list[str]
    """Services whose files have changed: they go on with the old ones until they are restarted."""


class Placement:
    """Puts files in place below a root.

    Args:
        root: ``/``, or the root of an image or of a test.
        activate: Run the commands that make changes take effect. Below another root these are only
            those that make users and folders there.

    Raises:
        ProvisionError: the root is the machine's own, and this process is not root's.
    """

    def __init__(self, root: Path, *, activate: bool = True) -> None:
        if os.geteuid() != 0 and root == Path("/"):
            raise ProvisionError("--apply needs root", hint="Run it with sudo, or with --root DIR.")
        self.root: Final = root
        self._activate = activate
        self._owners = Owners(root)
        self._backups: Path | None = None
        self._ran: list[Ran] = []

    def apply(
        self,
        files: Sequence[File],
        on_change: Callable[[Change], None],
        not_in_force: Collection[str] = (),
    ) -> Applied:
        """Put the files in place, in order.

        Args:
            files: As the bundle has them.
            on_change: Called with each change before it is made.
            not_in_force: Paths of files whose command is run though they are as they should be.

        Raises:
            ProvisionError: one cannot be written, or its owner is not there. Those before it are
                in place, and what they replaced is kept.
        """
        done: list[Change] = []
        restart: list[str] = []
        last = {file.then: file.path for file in files if file.then}
        waiting: set[tuple[str, ...]] = set()
        for file in files:
            change = _compared(file, self.root, self._owners)
            if change.kind != "same":
                on_change(change)
                self._place(change)
                done.append(change)
                if file.then:
                    waiting.add(file.then)
                if file.restart and file.restart not in restart:
                    restart.append(file.restart)
            elif file.path in not_in_force:
                waiting.add(file.then)
            # Once for all files of the same command, when the last of them is there.
            if file.then in waiting and last[file.then] == file.path:
                self._run(file.then)
        return Applied(done, self._backups, self._ran, restart)

    def _place(self, change: Change) -> None:
        file, path = change.file, _inside(self.root, change.file.path)
        owner = self._owners.find(file)
        if owner is None and os.geteuid() == 0:
            raise ProvisionError(
                f"{file.path} is to belong to {file.owner}:{file.group}, who is not there",
                hint=f"Install the server's package, or: useradd --system {file.owner}",
            )
        if os.geteuid() != 0:
            # An image is built without root: who unpacks it as root gives the files away.
            owner = None
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if change.before is not None and change.kind == "replace":
                self._keep(path, file.path)
            if change.kind == "attributes":
                if owner is not None:
                    os.chown(path, *owner, follow_symlinks=False)
                path.chmod(file.mode)
            else:
                write_whole(path, file.text, file.mode, owner)
        except OSError as error:
            kept = f" What was replaced is kept in {self._backups}." if self._backups else ""
            raise ProvisionError(
                f"{path} cannot be written: {error.strerror or error}",
                hint=f"Mend that and run it again: it goes on where it stopped.{kept}",
            ) from error

    def _keep(self, path: Path, name: str) -> None:
        """Copy what is about to be replaced, with its mode and owner."""
        if self._backups is None:
            top = _inside(self.root, f"/{BACKUPS}/x").parent
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            number = 0
            while True:
                place = top / (f"{stamp}-{number}" if number else stamp)
                try:
                    place.mkdir(mode=0o700)
                    break
                except FileExistsError:
                    number += 1
            self._backups = place
        copy = self._backups / name.lstrip("/")
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        found = path.stat()
        if os.geteuid() == 0:
            os.chown(copy, found.st_uid, found.st_gid)

    def _run(self, command: tuple[str, ...]) -> None:
        if not self._activate:
            return
        if self.root != Path("/"):
            if not command[0].startswith("systemd-") or os.geteuid() != 0:
                return
            # These read the files that they are given from this machine's root.
            top = self.root.resolve()
            files = (str(top / a[1:]) if a.startswith("/") else a for a in command[1:])
            command = (command[0], f"--root={top}", *files)
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60, env=_plain()
            )
        except FileNotFoundError:
            self._ran.append(Ran(command, None, "not installed"))
        except subprocess.TimeoutExpired:
            self._ran.append(Ran(command, -1, "did not end within 60 s"))
        else:
            self._ran.append(Ran(command, ran.returncode, (ran.stdout + ran.stderr).strip()))


def _plain() -> dict[str, str]:
    # Without /sbin, which a user's PATH may lack, sysctl is not found.
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
