"""The bundle's folder: its files, and the secrets that are made once. Blocks, for milliseconds.

description.toml    as it was completed: the same bundle can be written from it anywhere
README.md           what goes where and why
renew.sh            makes certificates anew that are about to end
machine/…           the machine's files, laid out below the root
beside/…            load balancer, monitoring, Compose, Kubernetes
secrets/            0700: passwords.toml, and with TLS ca, servers/…, clients/…
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from standpipe.errors import ProvisionError
from standpipe.server.provision.bundle import Secrets, server_key
from standpipe.server.provision.certificates import Pair
from standpipe.server.provision.description import Description
from standpipe.server.provision.layout import File, url

PASSWORDS: Final = "passwords.toml"
_FIRST_LINE: Final = "# As it was completed; `standpipe provision` reads it."

# --- secrets -------------------------------------------------------------------------------------


def read_secrets(folder: Path, description: Description) -> Secrets:
    """The secrets of a folder; empty ones where there is none yet.

    Raises:
        ProvisionError: a file of it cannot be read.
    """
    try:
        text = _read(folder / PASSWORDS)
        table: dict[str, Any] = tomllib.loads(text or "")
        passwords: dict[str, str] = table.get("passwords", {})
        clients = {path.stem: _pair(path) for path in sorted((folder / "clients").glob("*.pem"))}
        return Secrets(
            passwords,
            _pair(folder / "ca.pem"),
            _pair(folder / "servers" / f"{server_key(description)}.pem"),
            {name: pair for name, pair in clients.items() if pair is not None},
        )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProvisionError(
            f"the secrets in {folder} cannot be read: {error}",
            hint="Restore them from a copy: what is running uses these passwords.",
        ) from error


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def _pair(path: Path) -> Pair | None:
    certificate, key = _read(path), _read(path.with_suffix(".key"))
    return None if certificate is None or key is None else Pair(certificate, key)


def write_secrets(folder: Path, description: Description, secrets: Secrets) -> None:
    """Write the secrets, readable for nobody else; what has not changed is not touched.

    Raises:
        ProvisionError: the folder cannot be written.
    """
    passwords = secrets.passwords
    lines = [
        "# Written by `standpipe provision`: the only place where these passwords stand as they",
        "# are. The server has their SHA-256. Keep this folder as you keep other secrets; without",
        "# it new passwords, and a new authority, are made.",
        "",
        "[passwords]",
        *(
            f"{_name(name)} = {json.dumps(word)}"
            for name, word in sorted(secrets.passwords.items())
        ),
        "",
        "[urls]",
        *(
            f"{_name(user.name)} = {json.dumps(url(description, user.name, passwords[user.name]))}"
            for user in description.users
        ),
    ]
    files = {PASSWORDS: "\n".join(lines) + "\n"}
    pairs = {"ca": secrets.authority, f"servers/{server_key(description)}": secrets.server}
    pairs |= {f"clients/{name}": pair for name, pair in secrets.clients.items()}
    for name, pair in pairs.items():
        if pair is not None:
            files |= {f"{name}.pem": pair.certificate, f"{name}.key": pair.key}
    _write_all(folder, files, mode=0o600)


def _name(name: str) -> str:
    return json.dumps(name) if "." in name else name


# --- the folder ----------------------------------------------------------------------------------


def write_bundle(
    folder: Path,
    description: Description,
    secrets: Secrets,
    machine: list[File],
    beside: Mapping[str, str],
    *,
    secrets_folder: Path,
) -> None:
    """Write the whole folder; what has not changed is not touched.

    Raises:
        ProvisionError: it cannot be written, or has other files of the same names.
    """
    _refuse_another(folder)
    write_secrets(secrets_folder, description, secrets)
    modes = {"renew.sh": 0o700}
    texts = {
        "description.toml": to_toml(description),
        "README.md": _readme(description, machine, beside),
        "renew.sh": _renew(folder, secrets_folder),
    }
    _write_all(folder, texts, mode=0o644, modes=modes)
    files = {each.path.lstrip("/"): each.text for each in machine}
    modes = {each.path.lstrip("/"): each.mode for each in machine}
    _write_all(folder / "machine", files, mode=0o644, modes=modes)
    # Some of them hold a password.
    _write_all(folder / "beside", beside, mode=0o600)
    # Of an earlier description there may be files that are none of this one's any more.
    for place, kept in ((folder / "machine", files), (folder / "beside", beside)):
        for path in [each for each in place.rglob("*") if each.is_file()]:
            if str(path.relative_to(place)) not in kept:
                path.unlink()


def _refuse_another(folder: Path) -> None:
    """Files of the same names that are not a bundle's are not written over, nor cleared away."""
    names = ("description.toml", "README.md", "renew.sh", "machine", "beside")
    others = [name for name in names if (folder / name).exists()]
    try:
        text = (folder / "description.toml").read_text("utf-8", "replace")
    except OSError:
        text = ""
    if others and not text.startswith(_FIRST_LINE):
        raise ProvisionError(
            f"{folder} is no bundle, and has {', '.join(others)}",
            hint="Name a folder of its own with --out.",
        )


def _write_all(
    folder: Path,
    files: Mapping[str, str],
    *,
    mode: int,
    modes: Mapping[str, int] | None = None,
) -> None:
    for name, text in files.items():
        path = folder / name
        wanted = (modes or {}).get(name, mode)
        try:
            _make_private(path.parent)
            if path.exists() and path.read_text("utf-8", "replace") == text:
                path.chmod(wanted)
                continue
            write_whole(path, text, wanted)
        except OSError as error:
            raise ProvisionError(
                f"{path} cannot be written: {error.strerror or error}",
                hint="Name a folder that you may write to with --out, on a disk with free space.",
            ) from error


def _make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, closed to others: what is below may be
    secret whatever its mode will be in its place."""
    if not folder.exists():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def write_whole(path: Path, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write a file so that it is there whole or not at all, and at no moment open to others."""
    new = path.with_name(f".{path.name}.standpipe-new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if owner is not None:
            os.chown(new, *owner)
        new.chmod(mode)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


# --- what the texts say --------------------------------------------------------------------------


def to_toml(description: Description) -> str:
    """A description as its file has it, everything spelled out."""
    fields: dict[str, Any] = msgspec.to_builtins(description)
    tables = {name: fields.pop(name) for name in ("streams", "users")}
    lines = [_FIRST_LINE, *_pairs(fields)]
    for name, rows in tables.items():
        for row in rows:
            lines += ["", f"[[{name}]]", *_pairs(row)]
    return "\n".join(lines) + "\n"


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and lists of strings are TOML's.
    return [
        f"{n} = {json.dumps(v, ensure_ascii=False)}" for n, v in fields.items() if v is not None
    ]


def _renew(folder: Path, secrets_folder: Path) -> str:
    apart = os.path.relpath(secrets_folder, folder)
    return f"""\
#!/bin/sh
# Makes certificates anew that end within two months, and puts them in place. Run it from a timer,
# on the machine that keeps the secrets, as root; it changes nothing while all are good.
set -eu
cd "$(dirname "$0")"
exec {shutil.which("standpipe") or "standpipe"} provision description.toml \\
    --out . --secrets {apart} --apply "$@"
"""


def _readme(description: Description, machine: list[File], beside: Mapping[str, str]) -> str:
    memory = description.memory_plan
    lines = [
        f"# {description.name}: {description.role} on {description.server}",
        "",
        "Put it in place with `standpipe provision description.toml --out . --apply`, as root on",
        "the machine. `--check` says what differs there. The guide is docs/provision.md.",
        "",
        "| file | mode | owner | what it is |",
        "|---|---|---|---|",
        *(f"| `{f.path}` | {f.mode:04o} | {f.owner}:{f.group} | {f.why} |" for f in machine),
        "",
        "Beside the machine:",
        "",
        *(f"- `beside/{name}`" for name in beside),
        "",
        "| memory | bytes |",
        "|---|---:|",
        f"| of the machine | {memory.total:,} |",
        f"| left to the system | {memory.system:,} |",
        f"| maxmemory | {memory.maxmemory:,} |",
        f"| of that, pending lists | {memory.pending:,} |",
        f"| of that, entries of all streams | {memory.entries:,} |",
        f"| pages copied in a fork | {memory.fork:,} |",
        f"| buffers | {memory.buffers:,} |",
        "",
        "The `max_bytes` of all streams together should stay below the entries' share.",
    ]
    return "\n".join(lines) + "\n"
