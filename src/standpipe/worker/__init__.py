"""Worker: runs a user's handler over what its consumer delivers, and settles every event.

worker.py is the worker as a whole, call.py what it has to call the handler for, context.py what the
handler gets and may raise, handler.py what can be one, threads.py where plain ones run, ordered.py
the calls of ordered mode, presence.py what the worker says of itself to the server, processors.py
the machine's processors.
"""

from standpipe.worker.context import Context, Reject, Retry, WorkerStats
from standpipe.worker.presence import WorkerReport
from standpipe.worker.worker import Worker

__all__ = ["Context", "Reject", "Retry", "Worker", "WorkerReport", "WorkerStats"]
