"""From where on what the doctor reads is a finding: each threshold with its unit and why. Pure."""

from __future__ import annotations

from typing import Final

INTERFACE_FAULTS_PPM_MAX: Final = 10
"""Errors and drops per million packets that are no finding: a link that is good has none."""

RETRANSMITTED_PERCENT_MAX: Final = 1
"""TCP segments sent again, of all, that are no finding: above it latency suffers visibly."""

DISK_USED_PERCENT_WARNING: Final = 80
DISK_USED_PERCENT_CRITICAL: Final = 95
"""How full a server's disk may be: a rewrite of the AOF needs as much again as the data set."""

DISK_SYNC_MS_MAX: Final = 20
"""A small write to disk that takes longer, ms, is a finding: NVMe takes below one."""

MEMORY_USED_PERCENT_WARNING: Final = 80
MEMORY_USED_PERCENT_CRITICAL: Final = 95
"""How much of maxmemory may be used: the rest is the time there is to react."""

FORK_ROOM_PERCENT_MIN: Final = 20
"""Memory of the machine that maxmemory must leave: pages copied for a fork, and buffers."""

AOF_GROWTH_MAX: Final = 4
AOF_GROWTH_BYTES_MIN: Final = 1024 * 1024 * 1024
"""An AOF that is more than so many times its last rewrite, and at least so large, is a finding."""

CLIENTS_USED_PERCENT_MAX: Final = 80
"""Connections, of maxclients, above which a reconnect of all at once can be turned away."""

CERTIFICATE_MS_WARNING: Final = 30 * 86_400_000
CERTIFICATE_MS_CRITICAL: Final = 7 * 86_400_000
"""How long a certificate must still be valid, ms."""

SLOW_EVENT_MS_MIN: Final = 100
"""A latency event of the server below it, ms, is no finding."""

REPLICA_LAG_BYTES_MAX: Final = 16 * 1024 * 1024
REPLICA_SILENT_S_MAX: Final = 10
"""How far a replica may be behind: what a failover would lose."""

CLOCK_MS_MAX: Final = 1_000
"""How far the server's clock may be from this machine's: entry IDs carry the server's."""

SERVER_CPU_PERCENT_MAX: Final = 90
"""Of one core, over the window: the server runs commands in one thread."""

DOCTOR_WINDOW_MS: Final = 5_000
DOCTOR_SAMPLES: Final = 5
"""How long and how often the doctor looks before it calls lag a trend."""

DEAD_CONSUMER_MS: Final = 5 * 60_000
"""A consumer that has entries and asked for nothing for so long does not live."""

UNREAD_GROUP_MS: Final = 3_600_000
"""A group with lag from which nobody has read for so long is read by nobody."""

PENDING_AGE_MS_MAX: Final = 10 * 60_000
"""An entry that is pending for longer was forgotten, or its handler fails again and again."""

HOT_SHARD_RATIO: Final = 2
"""A shard with more than so many times the mean of all is hot."""

HOT_KEY_PERCENT: Final = 25
"""The share of one device in a sample above which its shard will be hot."""

SAMPLE_EVENTS: Final = 2_000
"""Events that are read from a shard's end to find hot keys and big entries."""

SAMPLE_BYTES: Final = 8 * 1024 * 1024
"""What such a sample may have on the wire, about."""

ENTRY_BYTES_LARGE: Final = 1024 * 1024
"""An entry that is larger holds its connection, and the server, up."""

STREAMS_LOOKED_AT_MAX: Final = 200
"""Streams that the doctor finds by itself; more have to be named."""

AOF_FIRST_MS_MAX: Final = 2 * 60_000
"""How long --fix waits for a first AOF before it leaves the configuration file as it is."""

PIP_CHECK_S_MAX: Final = 60
"""How long `pip check` may take: a large environment on a slow disk."""
