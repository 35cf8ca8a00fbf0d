"""A camera's pictures beside the stream: the event carries the reference, the worker the bytes.

standpipe up                          # in another terminal, or set STANDPIPE_URL to your server
python examples/media.py picture.png  # without a file it makes up 200 kB
"""

import asyncio
import os
import sys
from pathlib import Path

from standpipe import Event, Producer, Stream, Worker
from standpipe.blobs import BlobReference, Blobs

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")
PLACE = os.environ.get("BLOBS", "blobs")  # a folder, or s3://bucket/prefix with standpipe[blobs]


async def main() -> None:
    blobs = Blobs(PLACE)
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else os.urandom(200_000)

    async with Stream("camera_stream", URL) as stream:
        # First the picture, then the event: so every event's picture is there when it is read.
        event = await blobs.aattach(
            Event.now("camera-7", lux=310.0), "picture", picture, media_type="image/png"
        )
        async with Producer(stream) as producer:
            await (await producer.send(event))
        print("sent    ", event.fields["picture"])

        worker = Worker(stream, group="vision")

        @worker.each
        async def look(event: Event) -> None:
            data = await blobs.afetch(event, "picture")
            kind = BlobReference.parse(event.fields["picture"]).media_type
            print(f"received {event.key}: {len(data)} bytes of {kind}")
            worker.stop()

        await worker.run()


asyncio.run(main())
