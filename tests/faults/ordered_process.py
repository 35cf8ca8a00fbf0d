"""A worker process of ordered mode that notes what it has handled, for tests that ill-treat it.

Run as ``python -m tests.faults.ordered_process URL STREAM LOG LEASE_MS``. Appends a line to
the log, in one write, for each event: ``e <fence> <pid> <shard> <key> <n>``, when its handler is
through, before it is acknowledged. Drained by SIGTERM it says ``counts <refused> <leases lost>``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from standpipe import Context, Event, Stream, Worker


async def work(url: str, name: str, path: str, lease_ms: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with Stream(name, url) as stream:
        # A block that is in progress at five deaths in a row would be taken for deadly.
        options = {"lease_ms": int(lease_ms), "deliveries_max": 1_000}
        worker = Worker(stream, "g", ordered=True, **options)

        @worker.each
        async def handle(event: Event, context: Context) -> None:
            await asyncio.sleep(0.001)
            fields = (context.fence, os.getpid(), context.shard, event.key, event.fields["n"])
            os.write(log, f"e {' '.join(map(str, fields))}\n".encode())

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()
        stats = worker.consumer.stats
        print("counts", stats.refused, stats.leases_lost, flush=True)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
