"""Read the past: from the archive, on into the live stream, each event once.

standpipe up                      # in another terminal, or set STANDPIPE_URL to your server
python examples/replay.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from standpipe import Archive, Archiver, Event, Producer, Reader, Stream, replay

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")
STREAM = "replay_example_stream"


async def fill(stream: Stream, archive: Archive) -> None:
    """Some readings; the older ones are archived, and then trimmed from the stream."""
    async with Producer(stream) as producer:
        for first in (0, 500):
            readings = [
                Event.now(f"inverter-{n % 5}", n=n, volts=230 + n % 7)
                for n in range(first, first + 500)
            ]
            await (await producer.send_many(readings))
            if not first:
                await Archiver(stream, archive).run()
                for key in stream.keys:
                    await stream.server.call("XTRIM", key, "MAXLEN", 0, key=key)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder) / "archive")
        async with Stream(STREAM, URL, shards=2) as stream:
            await fill(stream, archive)

            live = len([event async for event in Reader(stream)])
            both = len([event async for event in Reader(stream, archive=archive)])
            print(f"{live} events in the live stream, {both} with the archive")

            one = Reader(stream, archive=archive, start="-1h", keys=["inverter-3"], fields=["n"])
            rows = sum([len(table) async for table in one.tables()])
            print(f"{rows} of inverter-3 as tables")

            reader = Reader(stream, archive=archive)
            done = await replay.to_file(reader, Path(folder) / "day.parquet")
            print(f"{done.events} written to day.parquet, {done.gaps} gaps")

            async with Stream("replay_example_copy", stream.server) as copy:
                await replay.to_stream(Reader(stream, archive=archive), copy, name="example")
                count = len([event async for event in Reader(copy)])
                print(f"{count} in the copy")


if __name__ == "__main__":
    asyncio.run(main())
