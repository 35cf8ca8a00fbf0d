"""The only module that speaks to the server.

redis-py keeps what it is good at: URLs, TLS, authentication, Sentinel, the map of a cluster,
parsing by hiredis. Two of its habits are turned off here, because a queue cannot afford them:

* its ``socket_timeout`` of 5 s ends a longer blocking read, and its own retries hide that: a
  ``BLOCK 7000`` became a TimeoutError after a minute. Here every exchange has one deadline of its
  own, which counts the BLOCK time in.
* its retries send a command again whose outcome is unknown: one ``xadd()`` left two entries. Here
  nothing is sent again below the producer, which knows what may be.

Replies are the server's own, over RESP3, as bytes: redis-py's reshaping differs between its default
and an explicit ``protocol=3``, so its command layer is not used at all.

Sources: https://redis.io/docs/latest/develop/reference/protocol-spec/ ,
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from standpipe.wire.address import Address, parse_address
from standpipe.wire.link import Link
from standpipe.wire.replies import info_fields, translate
from standpipe.wire.script import Script, holds_arguments, pack, script
from standpipe.wire.server import Server

__all__ = [
    "Address",
    "Link",
    "Script",
    "Server",
    "holds_arguments",
    "info_fields",
    "pack",
    "parse_address",
    "script",
    "translate",
]
