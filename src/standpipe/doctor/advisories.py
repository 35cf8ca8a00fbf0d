"""Faults of server versions that concern a queue: which versions have them, where they end. Pure.

What is listed is what a user of streams, scripts, TLS or a cluster can meet. A line of versions
that a fault does not name, between the first that has it and the last that is mended, was never
mended: so each line that is maintained has to be named.

Sources: https://github.com/redis/redis/releases , https://github.com/valkey-io/valkey/releases ,
https://www.cve.org
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Product = Literal["redis", "valkey"]
Version = tuple[int, int, int]

KNOWN_ON: Final = "2026-11-24"
"""The day up to which this list was kept."""


class Advisory(NamedTuple):
    """One fault."""

    name: str
    what: str
    is_grave: bool
    """Code of an attacker can run, or entries can be lost."""
    product: Product
    since: Version
    mended: Mapping[tuple[int, int], Version]
    """Line of versions → its first version without the fault."""


def _mended(*versions: str) -> Mapping[tuple[int, int], Version]:
    parsed = [parse_version(version) for version in versions]
    return {(version[0], version[1]): version for version in parsed}


def parse_version(text: str) -> Version:
    """``8.2.3`` → (8, 2, 3); what follows is left out.

    Raises:
        ValueError: it does not begin with a version.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise ValueError(f"{text!r} is no version")
    return int(found[1]), int(found[2]), int(found[3] or 0)


ADVISORIES: Final = (
    Advisory(
        "CVE-2022-31144", "XAUTOCLAIM can write past a buffer", True, "redis", (7, 0, 0),
        _mended("7.0.4"),
    ),
    Advisory(
        "CVE-2022-35951", "XAUTOCLAIM with a crafted COUNT can overflow", True, "redis", (7, 0, 0),
        _mended("7.0.5"),
    ),
    Advisory(
        "CVE-2025-49844", "a Lua script can run code of an attacker", True, "redis", (2, 6, 0),
        _mended("6.2.20", "7.2.11", "7.4.6", "8.0.4", "8.2.2"),
    ),
    Advisory(
        "CVE-2025-49844", "a Lua script can run code of an attacker", True, "valkey", (7, 2, 0),
        _mended("7.2.11", "8.0.6", "8.1.4"),
    ),
    Advisory(
        "CVE-2025-62507", "XACKDEL can overflow the stack", True, "redis", (8, 2, 0),
        _mended("8.2.3"),
    ),
    Advisory(
        "CVE-2026-23479", "a blocked read whose client is evicted uses freed memory",
        True, "redis", (7, 2, 0), _mended("7.2.14", "7.4.9", "8.2.6", "8.4.3", "8.6.3"),
    ),
    Advisory(
        "stream RESTORE", "a crafted stream can make two consumers share a pending record", True,
        # Of 7.2 no note says in which version: named is the first after the other lines' mends.
        "redis", (6, 2, 0), _mended("6.2.23", "7.2.16", "7.4.10", "8.2.8", "8.4.5", "8.6.5"),
    ),
    Advisory(
        "CVE-2026-63639", "a crafted stream can make two consumers share a pending record", True,
        "valkey", (7, 2, 0), _mended("8.0.10", "8.1.9", "9.0.5", "9.1.1"),
    ),
    Advisory(
        "CVE-2026-81934", "TLS connections can use freed memory", True, "redis", (6, 2, 0),
        _mended("6.2.24", "7.2.16", "7.4.11", "8.2.9", "8.4.6", "8.6.6", "8.8.2", "8.10.1"),
    ),
    Advisory(
        "CVE-2026-56684", "TLS connections can use freed memory", True, "valkey", (7, 2, 0),
        _mended("8.0.10", "8.1.9", "9.0.5", "9.1.1"),
    ),
    Advisory(
        "GHSA-fq2f-crmw-q97r", "the script debugger can use freed memory", True,
        "valkey", (9, 1, 0), _mended("9.1.2"),
    ),
    Advisory(
        "GHSA-f4q9-j22m-xqq9", "an oversized Pub/Sub message overflows a buffer of the cluster bus",
        True, "valkey", (7, 2, 0), _mended("8.0.12", "8.1.11", "9.0.7", "9.1.3"),
    ),
)  # fmt: skip

MAINTAINED: Final[Mapping[Product, frozenset[tuple[int, int]]]] = {
    "redis": frozenset({(6, 2), (7, 2), (7, 4), (8, 2), (8, 4), (8, 6), (8, 8), (8, 10)}),
    "valkey": frozenset({(8, 0), (8, 1), (9, 0), (9, 1)}),
}
"""Lines of versions that got the mends above in the year before KNOWN_ON."""


def advisories_for(product: Product, version: Version) -> list[tuple[Advisory, Version | None]]:
    """The faults of a version, each with the first version of its line without it.

    Returns:
        None in place of a version where its line was never mended.
    """
    line = version[:2]
    found: list[tuple[Advisory, Version | None]] = []
    for advisory in ADVISORIES:
        if advisory.product != product or version < advisory.since:
            continue
        mended = advisory.mended.get(line)
        # A line that began after all that were mended was cut from sources that had the mend.
        is_later = line > max(advisory.mended)
        is_affected = version < mended if mended else not is_later
        if is_affected:
            found.append((advisory, mended))
    return found
