"""The same without async, as in a notebook or a script.

python examples/notebook.py
"""

import os

import pyarrow as pa

from standpipe import Event, sync

URL = os.environ.get("STANDPIPE_URL", "redis://127.0.0.1:6390")

with sync.Stream("pump_stream", URL) as stream:
    print("one event:", stream.send(Event.now("pump-3", flow_m3s=0.042, pressure_m=31.5)))

    table = pa.table(
        {
            "key": ["pump-1", "pump-2", "pump-3"],
            "time": [1767225600000] * 3,
            "flow_m3s": [0.040, 0.038, None],
        }
    )
    print("a table:", stream.send_table(table)[-1])

    for batch in stream.read_batches(start="-5m"):
        print(batch.table().to_pylist())
