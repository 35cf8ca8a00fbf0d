"""Worker: runs a user's handler over what its consumer delivers, and settles every event.

worker.py is the worker as a whole, call.py what it has to call the handler for, context.py what the
handler gets and may raise, threads.py where plain handlers run.
"""

from standpipe.worker.context import Context, Reject, Retry, WorkerStats
from standpipe.worker.worker import Worker

__all__ = ["Context", "Reject", "Retry", "Worker", "WorkerStats"]
