"""Worker: runs a user's handler over what its consumer delivers, and settles every event.

worker.py is the worker as a whole, opening.py what makes calls of deliveries, call.py such a call,
handler.py what can be called, context.py what it gets and may raise, acks.py what it acknowledges
by itself, threads.py where plain ones run, ordered.py the calls of ordered mode, settling.py how
entries end, presence.py what the worker says of itself to the server, processors.py the machine's
processors.
"""

from standpipe.worker.context import Context, Reject, Retry, WorkerStats
from standpipe.worker.presence import WorkerReport
from standpipe.worker.worker import Worker

__all__ = ["Context", "Reject", "Retry", "Worker", "WorkerReport", "WorkerStats"]
