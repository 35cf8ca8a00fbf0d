"""Archiver processes, for tests that kill them: see nursery.serve.

The process archives the stream again and again, many small files, and puts them together, until it
is killed; with ``turns`` it ends after so many.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from standpipe import Stream
from standpipe.archive import Archive, Archiver, merging, place
from standpipe.archive import archiver as archiving
from standpipe.archive.lease import Lease
from standpipe.errors import ArchiveInUseError
from tests.faults.nursery import kill_at, serve

OWNERS: dict[str, Any] = {
    "clear": place.Folder,
    "store": place.Folder,
    "_make_folder": place.Folder,
    "_write": place.Folder,
    "_rename": place.Folder,
    "_sync_folder": place,
    "remove": place.Folder,
    "confirm": Lease,
    "set_cursor": Lease,
    "release": Lease,
    "find_position": archiving,
    "build": archiving,
    "merge_small": archiving,
    "_merged": merging,
}
"""Where each step is that a process may die before or after."""


async def archive(name: str, url: str, folder: str, turns: int | None) -> None:
    async with Stream(name, url) as stream:
        while turns is None or turns > 0:
            turns = None if turns is None else turns - 1
            archiver = Archiver(
                stream, Archive(folder), rows_max=random.randint(10, 200), lease_ms=300
            )
            try:
                await archiver.run()
                if turns is not None or random.random() < 0.3:
                    await archiver.merge(everything=True)
            except ArchiveInUseError:
                continue  # One that was killed, or another one, has it.


def start(given: dict[str, Any]) -> None:
    if point := given.pop("point", None):
        name, when, number = point
        kill_at(OWNERS[name], name, when, number)
    asyncio.run(archive(**given))


if __name__ == "__main__":
    logging.disable()
    # Imported when first used: before the forks, so that each is cheap.
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    serve(start)
