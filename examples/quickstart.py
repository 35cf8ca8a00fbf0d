"""Send readings and handle them, in one program.

standpipe up                      # in another terminal, or set STANDPIPE_URL to your server
python examples/quickstart.py
"""

import asyncio
import os

from standpipe import Context, Event, Producer, Stream, Worker

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")


async def main() -> None:
    async with Stream("power_grid_stream", URL) as stream:
        # Producer: an await on the receipt is the server's acknowledgement.
        async with Producer(stream) as producer:
            receipt = await producer.send(Event.now("inverter-7", volts=230.5, amps=1.2))
            print("acknowledged as", await receipt)
            await producer.send_many(
                Event.now(f"inverter-{n}", volts=229.0 + n / 8, amps=1.25) for n in range(9)
            )

        # Worker: every event of the stream goes to one worker of the group.
        worker = Worker(stream, group="monitoring_group")
        seen = 0

        @worker.each
        async def check(event: Event, context: Context) -> None:
            nonlocal seen
            seen += 1
            print(f"{context.event_id}  {event.key}: {event.fields['volts']} V")
            if seen == 10:
                worker.stop()

        await worker.run()


asyncio.run(main())
