"""What ``--fix`` does: the one change that a finding names, with what was there before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from standpipe.doctor.finding import Chmod, ConfigSet, Finding, KernelSet
from standpipe.doctor.thresholds import AOF_FIRST_MS_MAX
from standpipe.errors import StandpipeError
from standpipe.wire import Server


class Repaired(NamedTuple):
    """What became of a finding that could be mended."""

    finding: Finding
    before: str
    after: str | None
    """None: it could not be changed."""
    said: str
    """Why not, or what is left to do."""


async def repair_all(findings: Iterable[Finding]) -> list[Repaired]:
    """Mend what can be mended, one after another."""
    wanted = [each for each in findings if each.repair is not None]
    # Files last: a server that writes its configuration anew gives it the mode that it likes.
    wanted.sort(key=lambda each: isinstance(each.repair, Chmod))
    return [await repair(each) for each in wanted]


async def repair(finding: Finding) -> Repaired:
    """Mend what a finding names.

    Returns:
        What was there before and what is there now; it never raises: what one repair cannot do must
        not keep the others from being done.
    """
    wanted = finding.repair
    try:
        if isinstance(wanted, ConfigSet):
            return await _set_option(finding, wanted)
        if isinstance(wanted, KernelSet):
            return _set_kernel(finding, wanted)
        assert isinstance(wanted, Chmod), "a finding that can be mended says how"
        return _set_mode(finding, wanted)
    except OSError as error:
        return Repaired(finding, "", None, f"{error.strerror or error}; try again as root")
    except StandpipeError as error:
        return Repaired(finding, "", None, error.message)


def _set_kernel(finding: Finding, wanted: KernelSet) -> Repaired:
    path = Path(wanted.path)
    before = path.read_text().strip()
    path.write_text(wanted.value)
    left = "until the machine starts again: put it into its settings too"
    return Repaired(finding, before, path.read_text().strip(), left)


def _set_mode(finding: Finding, wanted: Chmod) -> Repaired:
    path = Path(wanted.path)
    before = f"{path.stat().st_mode & 0o7777:04o}"
    path.chmod(wanted.mode)
    return Repaired(finding, before, f"{wanted.mode:04o}", "")


async def _set_option(finding: Finding, wanted: ConfigSet) -> Repaired:
    assert finding.node is not None, "an option is one of a server"
    async with Server(finding.node, name="standpipe-doctor") as server:
        key = wanted.option
        before = await _option(server, key)
        await server.call("CONFIG", "SET", wanted.option, wanted.value, key=key)
        after = await _option(server, key)
        if wanted == ConfigSet("appendonly", "yes") and not await _has_aof(server, key):
            said = (
                "until it starts again: its first AOF is not written yet. CONFIG REWRITE keeps it, "
                "when INFO says aof_rewrite_in_progress:0 and aof_last_bgrewrite_status:ok"
            )
            return Repaired(finding, before, after, said)
        try:
            await server.call("CONFIG", "REWRITE", key=key)
            said = "written into its configuration file"
        except StandpipeError as error:
            said = f"until it starts again: CONFIG REWRITE said {error.message}"
        return Repaired(finding, before, after, said)


async def _has_aof(server: Server, key: str) -> bool:
    """Wait until the first AOF is whole.

    Until then the data is in the snapshot alone, which a server that finds `appendonly yes` in its
    file does not read: it would start empty.
    """
    deadline = time.monotonic() + AOF_FIRST_MS_MAX / 1000
    while time.monotonic() < deadline:
        info = await server.info(key, "persistence")
        under_way = info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled")
        if under_way == ("0", "0"):
            return info.get("aof_last_bgrewrite_status") == "ok"
        await asyncio.sleep(0.1)
    return False


async def _option(server: Server, name: str) -> str:
    found = await server.call("CONFIG", "GET", name, key=name)
    values = list(found.values()) if isinstance(found, dict) else found[1::2]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType]
    return values[0].decode() if values else ""  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
