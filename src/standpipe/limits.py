"""Every limit and default that has a number: its unit is in the name, its reason beside it."""

from __future__ import annotations

from typing import Final

# --- events and blocks ---------------------------------------------------------------------------

EVENT_BYTES_MAX: Final = 64 * 1024
"""An event above this belongs beside the stream, with its path in the event (the manual's media
files): the server keeps everything in memory and copies an entry whole for every group."""

KEY_BYTES_MAX: Final = 512
"""A device id; longer keys are a payload put in the wrong place."""

FIELDS_PER_EVENT_MAX: Final = 512
"""Lua's unpack() has a stack of some thousand values; 512 pairs stay far below it."""

BLOCK_EVENTS_MAX: Final = 2_000
"""Events per block. The server's cost per event falls until about 500; until 2,000 a block of the
water network's readings still shrinks, from 11.1 to 9.9 bytes per event. Larger ones only make
redelivery after a crash coarser, as the entry is the unit of acknowledgement."""

PART_EVENTS_MAX: Final = 500
"""Events of a list that are checked in and encoded together; a block gathers several such parts
while the one before it is under way. Of plain events no more are appended in one step, in which the
server does nothing else: about 2 ms."""

BLOCK_BYTES_MAX: Final = 256 * 1024
"""Encoded bytes per block, before compression: what a worker must hold and a reply must carry."""

TABLE_BLOCK_ROWS_MAX: Final = 16_384
"""Rows per columns block; Arrow's framing of some hundred bytes is then below 0.1 byte per row."""

TABLE_BLOCK_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of a table's values per columns block, before compression: wide tables take fewer rows. As
much as one write may have, and far below DECODED_BYTES_MAX, which a reader refuses."""

COMPRESS_BYTES_MIN: Final = 256
"""Below this zstd saves less than its own frame costs."""

ROWS_ZSTD_LEVEL: Final = 3
"""Rows repeat names and keys: 2 % smaller than at level 1 for 0.02 µs per event. Higher levels
take three times as long and come out no smaller."""

COLUMNS_ZSTD_LEVEL: Final = 1
"""Compression is most of what columns cost: level 3 takes half as much again, to save 6 %."""

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""Integers are 64 bits signed: what MessagePack, Arrow and other languages read alike."""

TIME_MS_MIN: Final = -62_135_596_800_000
TIME_MS_MAX: Final = 253_402_300_799_999
"""Years 1 to 9999, what datetime can show. A time outside is most likely in another unit."""

# --- reading files ------------------------------------------------------------------------------

INPUT_CHUNK_BYTES: Final = 64 * 1024
"""Bytes of a file or of standard input that are read, parsed and sent together: about a thousand
lines, enough that the cost per call vanishes. With 256 KiB CSV takes a third longer per event,
since the events of a chunk no longer stay in the processor's cache. A Linux pipe holds as much."""

INPUT_CHUNK_ROWS: Final = 4_096
"""Rows of a Parquet file that are turned into events together."""

LINE_BYTES_MAX: Final = 1024 * 1024
"""A longer line is passed over without being kept. No event of that size could be sent, and a file
without line ends (a binary one) must not fill the memory."""

DECODED_EVENTS_MAX: Final = 1_000_000
"""Events that a block may announce. Standpipe writes far smaller ones; a block that announces more
would take the reader's memory before its content is looked at."""

DECODED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes that a block may take when decompressed: 256 times BLOCK_BYTES_MAX, so that raised limits
fit, while a kilobyte of zstd that claims gigabytes is refused: it would kill every worker."""

NUMBER_BYTES_MAX: Final = 64
"""Text above this is never read as a number: the longest shortest form of a float has 24 bytes."""

# --- payloads beside the stream ------------------------------------------------------------------

BLOB_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bytes of one payload: a device that never stops sending must not fill the disk, and get() holds
a payload in memory."""

BLOB_CHUNK_BYTES: Final = 1024 * 1024
"""Bytes that are read, hashed and written together; above this the cost per call is gone."""

BLOB_RANGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes per request when a blob behind a URL is read piece by piece: at some 30 ms per request
still 250 MB/s."""

BLOB_STRAY_MS_MIN: Final = 3600 * 1000
"""A temporary file older than this belongs to a put that was killed."""

BLOB_AGE_MS_MIN: Final = 3600 * 1000
"""A younger blob is never collected: its event may still wait to be sent (SEND_DEADLINE_MS)."""

# --- streams -------------------------------------------------------------------------------------

SHARDS_MAX: Final = 256
"""Shards per stream. The tags are searched for, about SHARDS² steps: 30 ms at 256."""

STREAM_NAME_BYTES_MAX: Final = 256

STREAM_BYTES_MIN: Final = 64 * 1024
"""The smallest ``max_bytes`` of a shard: an empty stream with a few groups has kilobytes, and a
shard that can hold no block would never take one."""

LIMITS_LOOK_MS: Final = 2_000
"""How often a process looks whether the limits of its stream were changed: one GET. So long two
processes may go by different ones."""

# --- retention -----------------------------------------------------------------------------------

AGE_MS_MIN: Final = 1_000
"""The smallest ``max_age``: the janitor looks once a second."""

FILL_PERCENT: Final = 90
"""Up to which share of max_len and max_bytes a stream is filled with entries that everybody has
acknowledged. What is left is for producers, until the janitor looks again."""

RETAIN_LOOK_MS: Final = 1_000
RETAIN_LOOK_MS_MIN: Final = 50
RETAIN_LOOKS_PER_FILL: Final = 4
"""The janitor looks at a stream after the first, or sooner: so often in the time in which it would
be full at the present rate, but not more often than after the second. A look costs the server some
30 µs per shard."""

RETAIN_STEP_ENTRIES: Final = 1_000
RETAIN_STEP_BYTES: Final = 4 * 1024 * 1024
"""Entries and bytes that go in one step, during which the server does nothing else: 200 blocks of
20 kB take it 0.4 to 2.5 ms. As many bytes as one write of a producer may add."""

RETAIN_READ_ENTRIES: Final = 100
"""Of these, those that are read because a ring counts the events in them: they may be large."""

RETAIN_FIND_MS: Final = 10_000
"""How often a janitor of all streams looks for new ones: a SCAN of the server."""

RETAIN_RETRY_MS_MAX: Final = 10_000
"""The longest pause after a failed look."""

RETAIN_COUNT_MAX: Final = 10_000
"""Entries of a shard that a dry run counts by reading them; above it the number is "at least"."""

MEMORY_WINDOW_MS: Final = 500
"""Time between the two readings that tell how fast a stream grows."""

# --- producer ------------------------------------------------------------------------------------

MEMORY_HEADROOM_PERCENT: Final = 5
"""Share of the server's maxmemory that producers leave free: for pending lists, dead letters and
leases, which a server that is out of memory would refuse as well, and for what the writes of
several producers add until each has looked again."""

MEMORY_LOOK_MS: Final = 1_000
MEMORY_LOOKS_PER_FILL: Final = 8
"""A producer asks for the server's memory after the first, or sooner: so often in the time in which
it would be full at the present rate, and before it has written such a part of what is free. One
INFO per look, 30 µs of the server."""

MEMORY_UNLIMITED_LOOK_MS: Final = 10_000
"""Likewise of a server without maxmemory, or one that evicts: only the configuration can change
that."""


BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes that a producer holds between send() and the acknowledgement; then send() waits."""

DICT_SHAPES_MAX: Final = 256
"""Sets of names for which it is remembered how dicts that have them are encoded together."""

HOMES_REMEMBERED_MAX: Final = 200_000
"""Keys whose shard a producer remembers, about 20 MB, before it begins anew."""

BUFFER_EVENTS_MAX: Final = 1_000_000
"""Events that a producer holds, whatever their size."""

EVENT_HELD_BYTES: Final = 200
"""What one of them costs at most beside its payload, receipt included. A producer takes no more
than its buffer_bytes_max and this for each of its buffer_events_max."""

WRITE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of one write to the server. Larger writes add no throughput and make a cut dearer."""

WRITE_BLOCKS_MAX: Final = 64
"""Blocks of one shard in one write. The append script looks through all that are in flight, so the
server's cost per block rises with them: 71 µs at 100 and 1.6 ms at 1,500 were measured."""

SEQUENCE_TTL_MS: Final = 24 * 3600 * 1000
"""How long the server remembers a producer's last sequence number, at least: twice the producer's
deadline if that is more, so that a block that was held back by an outage is still recognised."""

SEND_DEADLINE_MS: Final = 120_000
"""How long a block is tried before its receipt fails; Kafka's delivery.timeout.ms is the same."""

CONFIRM_MS_MAX: Final = 5_000
"""How long one write waits for the disk or the replicas (WAITAOF, WAIT). With ``everysec`` the disk
takes one second, two when it is slow; replicas lag longer while they load."""

FSYNC_PROBES: Final = 8
FSYNC_PROBE_MS: Final = 110
"""How often WAITAOF is probed, and how long each probe waits: together less than the second that
lies between two syncs."""

SPOOL_AFTER_MS: Final = 2_000
"""How long a shard is in trouble before what waits for it goes to the spool: longer than a restart
or a failover of the server mostly takes, and what a crash of the producer may cost meanwhile."""

REFUSALS_MAX: Final = 3
"""Tries after which a spooled block that the server refuses for its own sake is set aside. More
than one: a proxy in between may say something that no server does, for a moment."""

SPOOL_HEAD_BYTES: Final = 1024 * 1024
SPOOL_HEAD_BLOCKS: Final = 256
"""What is brought back from the spool at once for each shard: enough that the cost per transaction
vanishes, little enough that the shards of a large cluster together stay small in memory."""

SPOOLED_SEQUENCE_TTL_MS: Final = 7 * 24 * 3600 * 1000
"""SEQUENCE_TTL_MS of a producer with a spool: a block whose outcome is unknown may be drained after
a weekend without a server. Memory: one string per producer start and shard, for a week."""

FAILED_BLOCKS_MAX: Final = 10_000
"""Failed blocks that are remembered until flush() because nobody has awaited their receipts; some
10 MB. Of older ones the events are counted, and count as unseen even if somebody still looks."""

RETRY_MS_MIN: Final = 20
RETRY_MS_MAX: Final = 2_000
"""Backoff between tries: doubling from the first to the second, half of it jitter."""

# --- spool ---------------------------------------------------------------------------------------

SPOOL_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bytes of blocks that a spool keeps on disk: an outage of an hour at 300 kB/s."""

SPOOL_PAGE_BYTES: Final = 4096
"""Measured with blocks of 40 KiB: pages of 8 to 64 KiB append 15-35 % faster, but take up to 60 %
more room, and a small write then writes as much more."""

SPOOL_BLOCK_OVERHEAD_BYTES: Final = 128
"""What a block counts beside its payload, and beside as much again up to half a page, which is what
its last page may leave empty. Measured with payloads of 0 to 256 KiB: together never less than a
block takes on disk; 5 % more with blocks of 40 KiB, twice as much with those of 100 bytes."""

SPOOL_DISK_FREE_BYTES_MIN: Final = 64 * 1024 * 1024
"""Room that appending leaves on the disk for the other programs of the machine: one that cannot log
or be logged in to is worse off than one whose readings wait."""

SPOOL_WAL_BYTES: Final = 4 * 1024 * 1024
"""The write-ahead log of a spool is copied into its file at this size. Four times as much made
appending 10 % faster and the longest append three times as long (45 ms)."""

SPOOL_RESERVE_BYTES: Final = 2 * SPOOL_WAL_BYTES
"""Kept beside a spool and given up when its disk is full: removing blocks takes room for the log,
and as much to copy it into the file."""

SPOOL_SHRINK_BYTES_MIN: Final = 16 * 1024 * 1024
"""A drained spool gives its space back to the disk from here on; below, it is kept for the next
outage."""

SPOOL_BUSY_MS_MAX: Final = 1_000
"""How long a spool waits for another program that has locked its file, such as a SQLite shell."""

SPOOL_WATCH_MS: Final = 100
"""How often a drain looks at what is left; that takes well below a millisecond."""

SPOOL_CHECK_BLOCKS: Final = 32
"""Blocks that a check holds at once; between them the producer gets its turn."""

# --- connections ---------------------------------------------------------------------------------

CONNECT_MS_MAX: Final = 5_000
REPLY_MS_MAX: Final = 10_000
"""How long a reply to a command that does not block may take, from the reply before it when several
are sent together. A blocking read gets its own deadline: its BLOCK time plus this."""

KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES_MAX: Final = 3
"""A connection on which nothing happens is probed after the first, in seconds, and given up when so
many probes, so far apart, stay unanswered: after 45 s, where Linux by itself takes 2 h 11 min.
Short enough that NAT routers and firewalls, which forget idle connections after minutes, do not."""

SOCKET_READ_BYTES: Final = 256 * 1024
"""Bytes asked of the socket at once; redis-py's default of 64 KiB makes four times the calls."""

# --- consumer and worker -------------------------------------------------------------------------

READ_COUNT: Final = PART_EVENTS_MAX
"""Entries per read and shard: of plain events, as many as are appended in one step. So a group
keeps up with its producers, and the server is held up no longer than by these. A read is bounded by
the events in flight as well."""

PAGE_COUNT: Final = 256
"""Entries per page and shard of what a reader goes through: some of each shard are in memory until
their time has come."""

READ_BLOCK_MS: Final = 2_000
"""How long a read waits at the server when there is nothing new. It only bounds how fast a drain is
noticed on an idle stream; new entries end it at once."""

IN_FLIGHT_EVENTS_MAX: Final = 20_000
"""Events that one worker process holds unacknowledged; a pending entry costs the server about
180 bytes."""

IN_FLIGHT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of entries that one worker process holds unacknowledged, as the server sent them; decoded
they take several times as much. A producer holds as many."""

BYTES_PER_ENTRY_GUESS: Final = TABLE_BLOCK_BYTES_MAX
"""As EVENTS_PER_ENTRY_GUESS, in bytes: the first read asks for few entries. What is expected halves
with each read at most, so that small entries are soon read by the hundred."""

EVENTS_PER_ENTRY_GUESS: Final = PART_EVENTS_MAX
"""What a consumer takes an entry to hold before it has seen one; after that it goes by the last.
High: a first read that is too small costs a round trip, one that is too large costs memory."""

ACK_GRACE_MS: Final = 5
"""How long an acknowledgement waits for a read to travel with, when the reader is blocked. It is on
no event's path; a crash within it means a few more redeliveries."""

IDS_PER_COMMAND_MAX: Final = 1_000
"""Entry IDs in one XACK or script call, so that no single command holds up the server for long."""

IDLE_MS_MIN: Final = 30_000
"""An entry not renewed for this long is taken over from its consumer."""

RENEWALS_PER_IDLE: Final = 3
"""A live worker renews its entries this many times per idle_ms_min, so that two may fail."""

CLAIM_COUNT: Final = 256
"""Entries per XAUTOCLAIM call; the server scans ten times as many for idle ones."""

GIVEN_IDLE_MS_MIN: Final = 1_000
"""What somebody claims for a consumer at work it takes in after so long, at its next sweep. Longer
than the reply to a read takes: what that brings looks the same on the server meanwhile."""

FORGET_IDLES_MIN: Final = 20
"""A consumer not seen for this many idle_ms_min (10 minutes) that holds nothing is taken off its
group: a killed process would leave its name there for ever. Long before, what it held has been
taken over."""

FORGET_TRIES: Final = 4
"""How often in that time each living member looks for such names."""

LEASE_MS: Final = 10_000
"""How long a shard stays with its owner of ordered mode that is not heard of any more. As long as
REPLY_MS_MAX: a slow reply alone must not cost a worker its shards."""

LEASE_MS_MIN: Final = 100
"""Below this an event loop that is merely busy loses its shards."""

LEASE_LOOK_MS: Final = 1_000
LEASE_LOOKS_MIN: Final = 5
"""Members of a group in ordered mode renew their leases, and look at those of others, after the
first, or so often in the time of a lease if that is sooner. So all but one of the looks may fail;
a shard without an owner lies for so long at most before it is seen, and so does each half of a
move: the one that gives it up, and the one that takes it."""

DELIVERIES_MAX: Final = 5
"""Deliveries of an entry before its failing event is dead-lettered."""

COUNT_AHEAD_ENTRIES_MAX: Final = 100
"""Entries whose second try is counted in one round trip, so that each waits for a hundredth of it.
If one of them kills its worker, those behind it were counted and had not begun: few, therefore."""

RETRY_AFTER_MS: Final = 200
RETRY_AFTER_MS_MAX: Final = 30_000
"""Backoff of a failing handler: doubling from the first to the second, with jitter."""

CONCURRENCY: Final = 64
"""Async handlers of one worker that run at the same time."""

SYNC_SLICE_MS: Final = 10
SYNC_SLICE_EVENTS_MAX: Final = 256
"""A sync handler of single events gets about this much work per hop to a thread: the hop costs some
50 µs, which would be all of it for a handler that takes one. Short, so that slow handlers still
spread over the threads."""

SYNC_LOOK_MS: Final = 100
"""A thread that is at its slice for longer has met a slow event: what is done is reported, and the
rest goes to other threads. Ten times what a slice should take."""

TURN_MS_MAX: Final = 10
"""How long async handlers that never wait go on before reading and renewing have their turn."""

TRACE_CHARS_MAX: Final = 4_000
"""The end of a handler's traceback that a dead letter keeps; the end is where the error stands."""

REQUEUED_LOOK_MS: Final = 1_000
"""A member of a group looks this often whether dead letters were requeued for it: one EXISTS, or in
a cluster one per shard. They have waited for a person already: one more second counts for little.
"""

REQUEUED_LOOK_GAP_MS: Final = 50
"""In a cluster there is at least so much between two such looks of a member, so that it sends 20 in
a second at most: with 20 shards it is as often as elsewhere, with 256 each 13 s."""

STRANGERS_MS_MAX: Final = 2_500
"""Before a member of ordered mode joins, a consumer that was at work lately and is none has so long
to be at work once more. Each XREADGROUP shows it, and one waits for READ_BLOCK_MS."""

START_TRIES_MAX: Final = 8
"""How often a worker that starts asks who else is at work, over a connection that is cut."""

STRANGERS_LOOK_MS: Final = 250
"""How often the member looks for it meanwhile."""

LEAVE_TRIES_MAX: Final = 5
"""How often a consumer that leaves tries to tell the server: for about half a second."""

LEAVE_MS_MAX: Final = 5_000
"""How long a worker that ends, for whatever reason, takes to cancel its handlers, and again to send
its last acknowledgements and give back the rest, so that a server that hangs does not keep it."""

DRAIN_MS_MAX: Final = 10_000
"""How long a stopping worker waits for the handlers in progress before it leaves their entries
pending for others."""

PROCESSES_MAX: Final = 256
"""Worker processes of one command: each has a Python of some 50 MB and two connections."""

WRONG_USAGE_MS_MAX: Final = 30_000
"""A worker process that says within this time of its first start that its settings are wrong is
not started again: it would say so for ever. Long enough for slow imports."""

# --- what workers report, and what is made of it --------------------------------------------------

REPORT_MS: Final = 5_000
"""A worker says so often what it does: one script call of half a kilobyte, some 60 µs of the
server's time. It measures over this time, so shorter bursts do not show."""

REPORT_TTL_MS: Final = 3 * REPORT_MS
"""How long a worker counts as there after its last report: two may be lost. One that was killed is
shown until then."""

REPORT_LOOK_MS: Final = 100
"""How often a worker looks at itself between two reports, on average: whether handlers are at work,
and how late the event loop is. Some 50 looks make a share that is right within 7 points; they cost
a fifth of a percent of a processor."""

LOOP_LATE_MS: Final = TURN_MS_MAX
"""An event loop that is later than this for a look was held up by what it was at: a handler."""

STATUS_WINDOW_MS: Final = 2_000
"""Time between the two readings by which `standpipe status` tells where a backlog is going: long
enough that one read or one block more or less does not look like a trend."""

STATUS_READINGS_MAX: Final = 31
"""Readings that a status which is watched goes by: the last minute at its usual pace."""

STEADY_PERCENT: Final = 5
"""A backlog is steady whose change is less than this of what comes in meanwhile."""

KEEPS_UP_MS: Final = 1_000
"""A group whose oldest unacknowledged entry is younger keeps up, however many there are."""

BUSY_PERCENT: Final = 85
"""From here on a processor or all the handlers of a worker count as taken: a queue before something
that is taken for more grows without bounds, and measuring over seconds hides peaks."""

PROCESSOR_SHARERS_MAX: Final = 10
"""On a crowded machine a worker that gets less than such a part of one is not said to compute:
that many threads were ready and did not run is true of those that wait for something, too."""

WAITING_PERCENT: Final = 50
"""A worker that has nothing to handle for more of the time waits for the server."""

BLOCKED_PERCENT: Final = 30
"""An event loop that stands still for more of the time, without computing, is being blocked."""

FAILING_PERCENT: Final = 10
"""More failures among the calls of a handler are worth a word."""

SPARE_PERCENT: Final = 60
"""Workers are too many if fewer would be taken for less than this: the rest is for peaks, and for
the work of one that dies."""

SILENT_MS_MIN: Final = IDLE_MS_MIN
"""A consumer unseen for this long is taken for dead: a living one reads every READ_BLOCK_MS."""

# --- dead letters --------------------------------------------------------------------------------

DEAD_PAGE_LETTERS: Final = 128
"""Dead letters read together, over all shards: with an event and a traceback a letter has up to
some 70 KB, so a page takes 9 MB at most."""

DEAD_IDS_MAX: Final = 128
"""Dead letters that one call of a script requeues: about a millisecond during which the server does
nothing else."""

REQUEUES_MAX: Final = 3
"""How often a letter is requeued unless told otherwise, so that a program that requeues everything
again and again ends."""

# --- groups by hand ------------------------------------------------------------------------------

MOVE_COUNT_MAX: Final = 10_000
"""Entries of a shard that are counted before a group is moved over them: the server copies each to
count its events, and blocks of 40 KiB would make 400 MB. Above it the number is "at least" this."""

COUNT_PAGE_ENTRIES: Final = 128
"""Entries that one call of the counting script copies: some 5 MB of blocks, a few milliseconds
during which the server does nothing else."""

COUNT_SAMPLE_ENTRIES: Final = 1_000
"""Where the number of entries is known, so many are looked at, half of them at each end, to tell
how many events they hold."""

PENDING_SHOWN: Final = 20
"""Pending entries that are shown unless more are asked for; the summary counts all of them."""

ENTRIES_PER_LOOK: Final = 32
"""Entries fetched at once to see how many events they carry: 8 MB of the largest blocks."""

# --- sinks ---------------------------------------------------------------------------------------

SINK_COLUMNS_MAX: Final = 1_500
"""Columns of a sink's table. PostgreSQL has 1600 at most, dropped ones included, SQLite 2000."""

SINK_RETRY_MS_MIN: Final = 200
SINK_RETRY_MS_MAX: Final = 10_000
"""Backoff while a sink is out of reach: doubling from the first to the second, with jitter. A
database that is back is found within the second of these."""

SINK_BUSY_MS_MAX: Final = 10_000
"""How long a sink waits for the lock of a SQLite file, for that of a PostgreSQL table that gets a
column (its readers wait as long), or for another's transaction that has the same events."""

SINK_CONNECT_S_MAX: Final = 10
SINK_SILENCE_MS_MAX: Final = 30_000
"""How long connecting to PostgreSQL may take, and how long data that was sent may stay without the
network's acknowledgement: a thread that waits cannot be cancelled, and holds up a drain. As long
PostgreSQL waits for a client in the middle of a transaction."""

SINK_FILE_STEM_BYTES_MAX: Final = 120
"""Bytes of a stream's name in the name of a Parquet file; IDs and number take up to 110, and most
file systems end at 255."""

POSTGRES_NAME_BYTES_MAX: Final = 63
"""Bytes of a name in PostgreSQL (NAMEDATALEN - 1), which cuts longer ones in silence."""

# --- archive -------------------------------------------------------------------------------------

ARCHIVE_SLICE_MS: Final = 3600 * 1000
"""An archive file holds entries of one hour at most, of the hour that its folder names."""

ARCHIVE_FILE_ROWS_MAX: Final = 1_000_000
ARCHIVE_FILE_BYTES_MAX: Final = 128 * 1024 * 1024
"""Rows of an archive file, and bytes of its columns in memory, before compression; only a single
entry may take it beyond. A file is held in memory two or three times while it is written, and some
ten times smaller on disk: large enough that opening it costs nothing beside reading it."""

ARCHIVE_CHUNK_ROWS: Final = 16_384
"""Events of rows and plain entries that are turned into columns together: beyond some thousand the
cost per column vanishes, and as Python objects they take some ten megabytes."""

ARCHIVE_GROUP_ROWS: Final = 262_144
ARCHIVE_GROUP_BYTES: Final = 64 * 1024 * 1024
"""Rows of a row group, and bytes of its columns in memory: what a reader holds at a time, and the
smallest part that it can leave out. With half as many rows a file takes 15 % more room, since each
row group has its own dictionaries."""

ARCHIVE_DICTIONARY_BYTES: Final = 256 * 1024
"""A column of a row group is written through a dictionary until that is so large: 32 768 different
floats, an eighth of the rows. Readings of a simulated network took 5.4 bytes per event, 6.9 without
dictionaries and 7.3 with their bytes sorted by place (BYTE_STREAM_SPLIT), for 0.02 µs more."""

ARCHIVE_READ_ROWS: Final = 131_072
"""Events per table when reading: half a row group."""

ARCHIVE_COLUMNS_MAX: Final = 2_048
"""Different fields in one archive file: a further one begins another file. Each column costs every
reader some microseconds and kilobytes, whether it asks for it or not."""

ARCHIVE_FILE_STEM_BYTES_MAX: Final = 64
ARCHIVE_FOLDER_STEM_BYTES_MAX: Final = 200
"""Bytes of a stream's name in the name of an archive file, where three entry IDs and a digest take
up to 170, and of its folder; most file systems end at 255."""

ARCHIVE_PAGE_BYTES: Final = 4 * 1024 * 1024
ARCHIVE_PAGE_ENTRIES_MAX: Final = 2_048
"""What an archiver asks of the server at once, in bytes of entries and in entries: the server does
nothing else meanwhile, for some milliseconds."""

ARCHIVE_EVERY_MS: Final = 60_000
ARCHIVE_EVERY_MS_MIN: Final = 1_000
"""How often an archiver that follows a stream archives what is new. Each time makes a file per
shard, until those of an hour are put together: more often means more and smaller files, and more
rarely more memory in use on the server."""

ARCHIVE_FINDINGS_MAX: Final = 1_000
"""Findings that a check of an archive keeps; the rest are counted."""

ARCHIVE_LOOKS_MAX: Final = 5
"""Listings of an archive until nothing vanishes from one to the next. A second one does, unless
files are being put together right then."""

# --- reading and replaying ------------------------------------------------------------------------

GAPS_KEPT_MAX: Final = 1_000
"""Gaps that a reader remembers one by one; the others it counts. A stream that is trimmed under it
could give one per page."""

REPLAY_AHEAD_SHARDS_MAX: Final = 8
"""Up to so many shards the archive's next table is read while the last one is used. A table holds a
row group, 32 MB at most, so beyond that one per shard has to do."""

REPLAY_GROUP_ROWS: Final = 131_072
"""Rows of a row group of a file that a replay writes: held in memory until then."""

COPY_STEP_EVENTS: Final = 16_384
"""Events that a replay into another stream sends between two notes of how far it is: enough that
the note costs nothing, little enough that they are held in memory whatever their size."""

COPY_QUEUE_BATCHES: Final = 4
"""Batches that are read ahead of what is being sent."""

REPLAY_BATCH_ROWS: Final = 16_384
"""Events of the archive that become Python objects together: some ten megabytes."""

# --- embedded server -----------------------------------------------------------------------------

SERVER_PORT: Final = 6390
SERVER_PORTS_TRIED: Final = 100
"""The port of a data folder that has had none yet, and how many above it are tried when taken.
Beside 6379, so that a server of the system is never in the way."""

SERVER_MEMORY_PERCENT: Final = 50
"""maxmemory of the embedded server, of the memory that this process may use. The rest is for the
copy-on-write pages of an AOF rewrite, the clients' buffers, and the workers beside it."""

SERVER_START_MS_MAX: Final = 60_000
"""How long the starting server may go without progress. While it reads its data set each step
forward begins the time anew: ending a server that loads would only make it load again."""

SERVER_STOP_MS_MAX: Final = 30_000
"""How long SIGTERM may take (the AOF is written out) before SIGKILL."""

RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_MS: Final = 60_000
"""Restarts of a server that dies by itself within the window, before giving up loudly."""

RESTART_MS_MIN: Final = 200
RESTART_MS_MAX: Final = 5_000
"""Backoff before a restart: full jitter, doubling from the first to the second."""

ORPHAN_MS_MAX: Final = 5_000
"""How long a start waits for the server of a parent that was killed: the kernel has sent it SIGTERM
already, and it only has to write its AOF out."""

SERVER_LOG_BYTES_MAX: Final = 16 * 1024 * 1024
"""A server log above this is moved to server.log.1 at the next start of the server."""

# --- provisioning --------------------------------------------------------------------------------

MTU_MIN: Final = 1500
MTU_MAX: Final = 9000
"""What an interface may have: from Ethernet's own to jumbo frames."""

SYSTEM_PERCENT: Final = 5
SYSTEM_BYTES_MIN: Final = 256 * 1024 * 1024
"""Memory of a server's machine that is left to the kernel and to what runs beside the server."""

FORK_PERCENT: Final = 50
"""Pages that are copied while a child writes the data out, of the data. All of them could be; of an
append-only log new entries go to new pages, and what is written to again are pending lists, the
last node of each stream and what is trimmed."""

SERVER_BUFFER_PERCENT: Final = 10
"""Buffers of clients, replicas and the append-only file, and what the allocator wastes, of the
data: the server does not count most of it against maxmemory."""

PENDING_ENTRY_BYTES: Final = 180
"""What an entry costs the server in a group's pending list, measured."""

SERVER_CORES_MIN: Final = 4
SERVER_IO_THREADS_MAX: Final = 8
"""Cores from which on the server gets threads for its sockets, and how many of these at most: above
eight they were not seen to help (redis.conf)."""

CERTIFICATE_DAYS: Final = 397
CERTIFICATE_AUTHORITY_DAYS: Final = 3650
"""How long certificates are valid: those of servers and clients for 13 months, so that renewing is
a habit and not an adventure after ten years; that of the authority for ten years."""

CERTIFICATE_RENEW_DAYS: Final = 60
"""A certificate that ends within so many days is made anew: a month before the doctor warns."""

PASSWORD_BYTES: Final = 32
"""Random bytes of a generated password: nobody has to type it, nor can its SHA-256 be guessed."""

PROBE_MS_MAX: Final = 1_000
PROBE_TRIES: Final = 3
"""How long the answer to a packet that measures the way may take, and how often it is sent: one
that is lost for another reason must not be taken for one that is too large."""

# --- standpipe.testing ---------------------------------------------------------------------------

LEDGER_SENDERS_MAX: Final = 2**26
"""A ledger takes one of so many sender numbers at random: of a hundred restarts that send to one
stream, two get the same once in 13 000 runs, and then the check says so."""

LEDGER_SENDER_EVENTS_MAX: Final = 2**26
"""Events of one sender, 67 million. With the sender's number the product is 2**52: every language's
numbers hold it exactly."""

LEDGER_INTENT_EVENTS: Final = 1_000
"""Events whose intent is logged together: one write of 11 kB. When the process dies, those of them
that were not sent yet count as unknown."""

LEDGER_EXAMPLES_MAX: Final = 10
"""Findings that a report keeps of each fault; the rest are counted."""

# --- datasets ------------------------------------------------------------------------------------

DATASET_VALUES_AT_ONCE: Final = 65_536
"""Readings of a dataset held as Python objects at the same time: some megabytes, and enough that
numpy's cost per call is spread thin."""

SIMULATED_READINGS_MAX: Final = 10_000_000
"""wntr holds about 100 bytes per reading until a simulation has ended: 1 GB at most. A year of Net3
has 7.6 million readings."""

PRESSURE_M_MAX: Final = 1_000
"""No water network has 100 bar. Above this EPANET has computed a node that is cut off from every
source, whose pressure is not known."""

REPLAY_TICK_MS: Final = 10
"""Time between two bursts of a replay at a rate, at least: below it the timer of the event loop
costs more than the events."""

REPLAY_EVENTS_MAX: Final = 5_000
"""Events per list of a replay, so that one that lags behind does not catch up in a single burst. A
step that has more by itself stays whole when the speed is what is set."""
