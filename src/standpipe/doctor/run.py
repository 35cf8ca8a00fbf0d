"""One visit of the doctor: read everything, check everything, remember it for the next time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from standpipe.doctor import certificate, client, logfile, machine, server, streams
from standpipe.doctor.certificate import check_certificate
from standpipe.doctor.client import check_client
from standpipe.doctor.finding import LEVELS, Check, Finding
from standpipe.doctor.history import History, default_path, grown
from standpipe.doctor.logfile import check_log
from standpipe.doctor.machine import LocalServer, Machine, check_machine, clients_asked
from standpipe.doctor.reading import ServerFacts, measure_cpu, node_urls, read_server
from standpipe.doctor.server import RIGHTS, check_server
from standpipe.doctor.streams import check_stream, find_streams, read_stream, unreadable
from standpipe.doctor.thresholds import DOCTOR_SAMPLES, DOCTOR_WINDOW_MS
from standpipe.errors import NotPermittedError, ServerError, StandpipeError
from standpipe.stream import Stream
from standpipe.wire import Server

REACHED: Final = Check(
    "server.reached",
    "whether the server can be reached",
    "Nothing of it could be checked.",
    "docs/errors.md",
)
HISTORY: Final = Check(
    "doctor.history",
    "the doctor's own notes of its last look",
    "Without them counters cannot be told by how much they grew.",
    "docs/doctor.md",
)

CHECKS: Final[tuple[Check, ...]] = (
    REACHED,
    HISTORY,
    *machine.CHECKS,
    *server.CHECKS,
    *certificate.CHECKS,
    *client.CHECKS,
    *streams.CHECKS,
    *logfile.CHECKS,
)
"""Everything that is looked at, in the order of docs/doctor.md."""


@dataclass(slots=True)
class Report:
    """What was looked at and found."""

    findings: list[Finding] = field(default_factory=list[Finding])
    """The gravest first."""
    servers: list[str] = field(default_factory=list[str])
    streams: list[str] = field(default_factory=list[str])
    is_first_look: bool = False
    """There is no earlier look to compare counters with."""

    @property
    def is_critical(self) -> bool:
        return any(each.level == "critical" for each in self.findings)


async def examine(
    url: str,
    *,
    names: Sequence[str] = (),
    log: Path | None = None,
    window_ms: int = DOCTOR_WINDOW_MS,
    state: Path | None = None,
    root: Path = Path("/"),
) -> Report:
    """Look at the machine, the server, this Python, the streams and the log.

    Args:
        url: The server's URL; of a cluster every node is looked at.
        names: The streams to look at; none: all that there are.
        log: The server's log file.
        window_ms: How long lag and load are watched, ms.
        state: Where the counters of the last look are kept; default: in the user's state folder.
        root: The folder below which /proc and /sys lie.

    Returns:
        All findings. A server that cannot be reached is one of them: the machine is looked at all
        the same.

    Raises:
        ConfigError: the URL, or the log file.

    Cost: per server about ten commands, and two more a window later; per stream a status for each
        of DOCTOR_SAMPLES looks, and the last entries of each shard. `pip check`, about a second.
    """
    history = History(default_path() if state is None else state)
    found = Report()
    facts: list[ServerFacts] = []
    if log is not None:
        found.findings += check_log(log)
    async with Server(url, name="standpipe-doctor") as opened:
        try:
            facts = await _servers(opened, found, window_ms)
            await _streams(opened, names, found, history, window_ms)
        except ServerError as error:
            _not_looked_at(found, opened, error)
    for each in facts:
        run_id = each.info.get("run_id", each.shown)
        found.findings += check_server(each, history.before(run_id))
        found.findings += await check_certificate(each.url, each.shown)
        history.remember(run_id, each.counters())
    here = Machine(root)
    found.findings += check_machine(here, local_servers(facts), history.before(here.boot()))
    found.is_first_look = history.before(here.boot()) is None
    history.remember(here.boot(), here.counters())
    found.findings += await asyncio.to_thread(lambda: list(check_client(facts)))
    history.write()
    if history.fault:
        told = "Give --state a file that this user may write."
        found.findings.append(Finding(HISTORY, "note", "doctor", history.fault, told))
    found.findings.sort(key=lambda each: LEVELS.index(each.level))
    return found


async def _servers(opened: Server, found: Report, window_ms: int) -> list[ServerFacts]:
    facts: list[ServerFacts] = []
    urls = await node_urls(opened, "standpipe")
    nodes = [Server(url, name="standpipe-doctor") for url in urls] if len(urls) > 1 else [opened]

    async def look(node: Server) -> None:
        try:
            read = await read_server(node, "standpipe")
            facts.append(read)
            read.cpu_percent = await measure_cpu(node, "standpipe", window_ms)
        except ServerError as error:
            # One that is gone, or goes now, must not hide what the others say.
            _not_looked_at(found, node, error)

    try:
        await asyncio.gather(*map(look, nodes))
    finally:
        for node in nodes:
            if node is not opened:
                await node.close()
    found.servers += [each.shown for each in facts]
    return facts


def _not_looked_at(found: Report, server: Server, error: ServerError) -> None:
    place = server.address.shown
    if isinstance(error, NotPermittedError):
        told = "Run the doctor as the operator: `standpipe provision` makes that user."
        found.findings.append(Finding(RIGHTS, "warning", place, error.message, told))
    elif not any(each.check is REACHED and each.place == place for each in found.findings):
        found.findings.append(Finding(REACHED, "critical", place, error.message, error.hint))


async def _streams(
    opened: Server, names: Sequence[str], found: Report, history: History, window_ms: int
) -> None:
    wanted = list(names)
    if not wanted:
        wanted = await find_streams(opened)

    async def look(name: str) -> None:
        try:
            async with Stream(name, opened) as stream:
                facts = await read_stream(stream, window_ms, DOCTOR_SAMPLES)
        except StandpipeError as error:
            found.findings.append(unreadable(name, error))
            return
        counter = f"{opened.address.shown} {name}"
        before = history.before(counter)
        more = None if before is None else grown(before, facts.counters())
        found.findings += check_stream(facts, more)
        found.streams.append(name)
        history.remember(counter, facts.counters())

    await asyncio.gather(*(look(name) for name in wanted))


def local_servers(facts: list[ServerFacts]) -> list[LocalServer]:
    """Those of them that run on this machine."""
    found: list[LocalServer] = []
    for each in facts:
        if each.is_local and each.info.get("process_id"):
            backlog, clients = each.option("tcp-backlog"), each.option("maxclients")
            found.append(
                LocalServer(
                    pid=each.number("process_id"),
                    folder=each.option("dir"),
                    tcp_backlog=None if backlog is None else int(backlog),
                    clients_max=None if clients is None else int(clients),
                    clients_asked=clients_asked(each.info.get("config_file")),
                )
            )
    return found
