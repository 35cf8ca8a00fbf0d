"""Checks of the Python environment: the client's libraries, and whether they fit the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from standpipe.doctor.advisories import parse_version
from standpipe.doctor.finding import MANUAL, Check, Finding
from standpipe.doctor.reading import ServerFacts
from standpipe.doctor.thresholds import PIP_CHECK_S_MAX

PLACE: Final = "this Python"

LIBRARIES: Final = Check(
    "client.libraries",
    "the versions of redis-py and hiredis",
    "An older redis-py does not know the protocol of a newer server; without hiredis replies are "
    "parsed in Python.",
    MANUAL + "Section B (client and protocol)",
)
CONFLICTS: Final = Check(
    "client.conflicts",
    "`pip check`: packages whose requirements are not met",
    "A library that was replaced by one of another version fails where nobody looks for it.",
    MANUAL + "Section C: pip check",
)
PROTOCOL: Final = Check(
    "client.protocol",
    "the protocol that the connection speaks",
    "Over RESP2 maps arrive as lists; a proxy in between may speak no other.",
    MANUAL + "Section B (RESP protocol)",
)

CHECKS: Final = (LIBRARIES, CONFLICTS, PROTOCOL)

_REDIS_PY_MIN: Final = (8, 1, 0)
_HIREDIS_MIN: Final = (3, 2, 0)
"""What pyproject.toml asks of redis-py, and that of hiredis; a test compares them."""


def check_client(servers: list[ServerFacts]) -> Iterator[Finding]:
    """Look at the libraries of this process.

    Cost: one `pip check` in a process of its own, about a second.
    """
    for name, least in (("redis", _REDIS_PY_MIN), ("hiredis", _HIREDIS_MIN)):
        wanted = ".".join(map(str, least))
        try:
            has = version(name)
        except PackageNotFoundError:
            has = "not installed"
        if has == "not installed" or parse_version(has) < least:
            yield Finding(
                LIBRARIES, "warning", PLACE, f"{name} is {has}, {wanted} or later is needed",
                f"pip install '{name}>={wanted}'",
            )  # fmt: skip
    yield from check_conflicts(sys.executable)
    for server in servers:
        if server.protocol != 3:
            yield Finding(
                PROTOCOL, "warning", server.shown, f"RESP{server.protocol}",
                "Look for a proxy between here and the server, or raise its version to 6 or later.",
            )  # fmt: skip


def check_conflicts(python: str) -> Iterator[Finding]:
    """Look whether the packages of a Python fit one another.

    Args:
        python: Its program.
    """
    try:
        said = subprocess.run(
            [python, "-m", "pip", "check", "--disable-pip-version-check"],
            capture_output=True, text=True, timeout=PIP_CHECK_S_MAX, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(CONFLICTS, "note", PLACE, f"pip check could not run: {error}", "Install pip.")
        return
    if "No module named pip" in said.stderr:
        yield Finding(
            CONFLICTS, "note", PLACE, "pip is not installed: not checked",
            f"{python} -m ensurepip, or `uv pip check`",
        )  # fmt: skip
    elif said.returncode:
        lines = said.stdout.strip().splitlines()
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        yield Finding(
            CONFLICTS, "warning", PLACE, "; ".join(lines[:3]) + more,
            "Install the versions that are asked for, each application in an environment of its "
            "own.",
        )  # fmt: skip
