"""Handlers for `standpipe work`: one for single events, one for batches.

standpipe work power_grid_stream examples.handlers:alarm --group alarms
standpipe work power_grid_stream examples.handlers:store --group storage --processes 2
"""

import sqlite3

from standpipe import Batch, Context, Event, Reject, Retry

VOLTS_MIN, VOLTS_MAX = 207.0, 253.0
"""EN 50160: 230 V ± 10 %."""


def alarm(event: Event, context: Context) -> None:
    """Say which device is outside its limits. Plain functions run in threads."""
    volts = event.fields.get("volts")
    if volts is None:
        return  # A missing reading is None; that is no alarm.
    if not isinstance(volts, (int, float)):
        raise Reject(f"volts is {volts!r}")  # Never going to work: a dead letter at once.
    if not VOLTS_MIN <= volts <= VOLTS_MAX:
        print(f"{event.key}: {volts} V ({context.queued_ms} ms ago)", flush=True)


def store(batch: Batch, context: Context) -> None:
    """Keep readings with exactly-once effect: the event ID is the key, so a repetition changes
    nothing. The argument's annotation makes it a handler of batches."""
    with sqlite3.connect("readings.db") as database:
        database.execute("CREATE TABLE IF NOT EXISTS reading (id PRIMARY KEY, key, time, fields)")
        try:
            database.executemany(
                "INSERT OR IGNORE INTO reading VALUES (?, ?, ?, ?)",
                [
                    (f"{context.shard}:{event_id}", event.key, event.time, repr(dict(event.fields)))
                    for event_id, event in zip(batch.ids, batch.events, strict=True)
                ],
            )
        except sqlite3.OperationalError as error:
            raise Retry(str(error), after="2s") from error  # Locked, most likely: again in 2 s.
    database.close()
