"""Producer: from events to acknowledged entries, in order per shard, each added once.

How batching adapts without a timer: with nothing in flight a send leaves at once. While a write is
in flight events gather, and the next write takes them all, up to the limits. So latency is one
round trip when idle and blocks are full when loaded.

How an event is added once: every block carries this producer's id and a number that counts up per
shard; ``lua/append.lua`` compares, appends and remembers in one atomic step. A block whose reply
was lost is sent again with the same number and recognised.

producer.py checks and encodes, buffer.py holds and counts, lane.py writes and tries again, block.py
is what they pass on and what receipts wait for; overflow.py moves them to the spool and back.
"""

from standpipe.producer.block import Receipt, Receipts
from standpipe.producer.buffer import ProducerStats
from standpipe.producer.drain import Drained, drain
from standpipe.producer.producer import Producer

__all__ = ["Drained", "Producer", "ProducerStats", "Receipt", "Receipts", "drain"]
