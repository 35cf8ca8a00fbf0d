"""What is said to the server: commands in RESP, and the Lua scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast

import hiredis

Argument = str | bytes | int | float


# hiredis' own annotation says a tuple of one.
_pack_command: Final[Callable[[tuple[Argument, ...]], bytes]] = cast(Any, hiredis).pack_command


def pack(*arguments: Argument) -> bytes:
    """One command in RESP, ready to be written."""
    return _pack_command(arguments)


def holds_arguments(packed: bytes, count: int) -> bool:
    """Whether some bytes are so many RESP arguments and nothing else: bytes that are not would put
    all that follows on their connection out of step.

    Cost: 0.1 µs per argument.
    """
    reader = hiredis.Reader()
    try:
        reader.feed(b"*%d\r\n%b" % (count, packed))
        found = reader.gets()
    except hiredis.ProtocolError:
        return False
    # Of too few there would be something left; of too many, no reply yet.
    is_whole = isinstance(found, list) and not reader.has_data()
    return is_whole and all(type(each) is bytes for each in cast("list[object]", found))


class Script(NamedTuple):
    """A Lua script of this package: see the head of its file for keys, arguments and reply."""

    name: str
    text: str
    sha: str

    def pack(self, keys: Sequence[str], *arguments: Argument, whole: bool = False) -> bytes:
        """An EVALSHA, or with ``whole`` the EVAL that teaches the server the script as well."""
        if whole:
            return pack("EVAL", self.text, len(keys), *keys, *arguments)
        return pack("EVALSHA", self.sha, len(keys), *keys, *arguments)


@cache
def script(name: str) -> Script:
    """The script in ``lua/<name>.lua``."""
    body = "\n".join(_lua_lines(name))
    return Script(name, body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest())


def _lua_lines(name: str) -> Iterator[str]:
    for line in (files("standpipe") / "lua" / f"{name}.lua").read_text("utf-8").splitlines():
        if line.lstrip().startswith("-- include "):
            yield from _lua_lines(line.split()[2])
        # Comments are for readers of the file; the server keeps and hashes what is left.
        elif line and not line.lstrip().startswith("--"):
            yield line
