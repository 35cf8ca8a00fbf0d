"""Consumer: one member of a group; reads, acknowledges, renews and takes over.

consumer.py is the member as a whole, lane.py what happens over one pair of connections (one that
blocks in reads, one for everything else), requeued.py the same for dead letters that were put back,
ordered.py and leases.py what ordered mode does otherwise, condition.py what is logged of an outage,
mixing.py whether all members have the same mode, intake.py what has arrived and how much more may,
acking.py the acknowledgements that are on their way, member.py who reads.
"""

from standpipe.consumer.consumer import Consumer, cancel_tasks, default_consumer_name, finish
from standpipe.consumer.intake import ConsumerStats, Delivery, Undecodable
from standpipe.consumer.requeued import count_requeued

__all__ = [
    "Consumer",
    "ConsumerStats",
    "Delivery",
    "Undecodable",
    "cancel_tasks",
    "count_requeued",
    "default_consumer_name",
    "finish",
]
