"""A worker process for tests that kill, stop or lose one.

Run as ``python -m tests.faults.worker_process URL STREAM MODE [OPTION=VALUE…]``. Says on standard
output what its handler does: ``begin <n> <deliveries>``, ``done <n>``. The modes:

* ``hang``: no handler ever returns.
* ``slow``: each takes 20 ms; ``slower``: 100 ms.
* ``fail``: each raises.
* ``poison``: the process ends in the middle of number 5; the others take 20 ms.
* ``deadly-batch``: the same with a handler of batches.
* ``late``: each waits for a line on standard input and then raises; what the worker then counts is
  said as ``counts <taken from us> <dead>``.
"""

from __future__ import annotations

import asyncio
import os
import sys

from standpipe import Batch, Context, Event, Stream, Worker
from tests.conditions import eventually


async def work(url: str, name: str, mode: str, *options: str) -> None:
    pairs = [option.partition("=")[::2] for option in options]
    given = {key: int(value) if value.isdigit() else value for key, value in pairs}
    async with Stream(name, url) as stream:
        worker = Worker(stream, "g", **given)  # type: ignore[arg-type]

        async def handle_batch(batch: Batch, context: Context) -> None:
            for event in batch:
                print("begin", event.fields["n"], context.deliveries, flush=True)
            if any(event.fields["n"] == 5 for event in batch):
                os._exit(1)
            await asyncio.sleep(0.02)
            for event in batch:
                print("done", event.fields["n"], flush=True)

        async def handle(event: Event, context: Context) -> None:
            n = event.fields["n"]
            print("begin", n, context.deliveries, flush=True)
            if mode == "hang":
                await asyncio.Event().wait()
            if mode == "fail":
                raise ValueError("this meter is always wrong")
            if mode == "poison" and n == 5:
                os._exit(1)
            if mode == "late":
                await asyncio.to_thread(sys.stdin.readline)
                raise ValueError("too late")
            await asyncio.sleep(0.1 if mode == "slower" else 0.02)
            print("done", n, flush=True)

        if mode == "deadly-batch":
            worker.batch(handle_batch)
        else:
            worker.each(handle)

        async def count() -> None:
            await eventually(lambda: worker.consumer.stats.taken_from_us, 60)
            print("counts", worker.consumer.stats.taken_from_us, worker.stats.dead, flush=True)

        counting = asyncio.create_task(count())
        try:
            await worker.run()
        finally:
            counting.cancel()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
