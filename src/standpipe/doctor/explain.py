"""What each code of a server's error means: cause, check, cure. Pure.

The codes are the first word of an error reply, and a few words for what no reply comes with.
Sources: https://redis.io/docs/latest/ (the page of each command), the servers' own texts.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final, NamedTuple

from standpipe.errors import ConfigError


class Explanation(NamedTuple):
    """One code."""

    code: str
    error: str
    """The class that Standpipe raises for it."""
    cause: str
    standpipe: str
    """What producers and workers do about it by themselves."""
    check: tuple[str, ...]
    """Commands that show which cause it is."""
    cure: tuple[str, ...]


def _all(*found: Explanation) -> dict[str, Explanation]:
    return {each.code: each for each in found}


EXPLANATIONS: Final = _all(
    Explanation(
        "MISCONF", "NotPersistingError",
        "The server is told to save to disk and cannot: dir is not there or not writable for its "
        "user, dbfilename is taken by something else, the disk is full, or the fork had too little "
        "memory. It refuses writes, so that nothing is acknowledged that a crash would lose.",
        "Producers wait, try again and spool to disk when they have a spool; workers go on with "
        "what they hold.",
        (
            "INFO persistence    (rdb_last_bgsave_status, aof_last_write_status)",
            "CONFIG GET dir dbfilename save appendonly",
            "df -h <dir>; ls -ld <dir>; the end of the server's log",
            "standpipe doctor --log <log file>",
        ),
        (
            "Free space, or chown <dir> to the server's user, or CONFIG SET dir <another folder>.",
            "sysctl -w vm.overcommit_memory=1 where the log says that fork failed.",
            "BGSAVE once: when it succeeds, writes are taken again.",
            "Not: stop-writes-on-bgsave-error no. It hides the loss.",
        ),
    ),
    Explanation(
        "OOM", "ServerFullError",
        "maxmemory is reached and the policy is noeviction, as it should be for a queue: any other "
        "would drop whole streams.",
        "Producers wait, then spool; workers go on, and what they acknowledge can be trimmed.",
        (
            "INFO memory    (used_memory, maxmemory, maxmemory_policy)",
            "standpipe status <stream>    (memory, lag, growth)",
            "standpipe retain <stream> --dry-run    (what could go, and who holds it)",
        ),
        (
            "Let the slow group catch up, or delete the group that nobody reads.",
            "Give the stream max_bytes or max_age, and run the janitor.",
            "CONFIG SET maxmemory <more>, while the machine keeps a fifth of its memory free.",
            "Send blocks (codec rows or columns): a fifth of the memory of plain entries.",
        ),
    ),
    Explanation(
        "NOGROUP", "GroupNotFoundError",
        "The stream or the group is not there (any more): the server came back without its data, "
        "the stream was deleted, or the group was never created.",
        "A worker creates its group again, at the beginning, says so loudly, and goes on with a "
        "growing pause.",
        ("standpipe group list <stream>", "EXISTS <stream>", "INFO persistence"),
        (
            "standpipe group create <stream> <group> --from begin",
            "Find out why the data was lost: appendonly, dir, a replica without persistence.",
        ),
    ),
    Explanation(
        "READONLY", "ReadOnlyServerError",
        "The connection leads to a replica: a failover has happened, or the URL names one.",
        "The connection is made anew; by Sentinel and Cluster the new primary is found.",
        ("INFO replication    (role, master_host)",),
        ("Use redis+sentinel:// or redis+cluster://, or the primary's address.",),
    ),
    Explanation(
        "UNBLOCKED", "ReadOnlyServerError",
        "The primary that a read was waiting on became a replica.",
        "The worker reads from the new primary.",
        ("INFO replication",),
        ("Nothing, if a failover was meant.",),
    ),
    Explanation(
        "LOADING", "ServerLoadingError",
        "The server has started and still reads its data from disk.",
        "Producers and workers wait and try again.",
        ("INFO persistence    (loading_eta_seconds, loading_loaded_perc)",),
        (
            "Wait. For a quicker start: aof-use-rdb-preamble yes, and a rewrite now and then.",
        ),
    ),
    Explanation(
        "BUSY", "ServerBusyError",
        "A script or function has been running for longer than busy-reply-threshold.",
        "Tried again with a growing pause.",
        ("SLOWLOG GET 10", "CLIENT LIST"),
        ("SCRIPT KILL ends one that has not written yet; else wait.",),
    ),
    Explanation(
        "MASTERDOWN", "PrimaryDownError",
        "A replica lost its primary and replica-serve-stale-data is no.",
        "Tried again until the failover is done.",
        ("INFO replication    (master_link_status)",),
        ("Bring the primary back, or let Sentinel or the cluster fail over.",),
    ),
    Explanation(
        "NOREPLICAS", "TooFewReplicasError",
        "min-replicas-to-write asks for more replicas than are connected and up to date.",
        "Producers wait, then spool.",
        ("INFO replication    (connected_slaves, slave0)", "CONFIG GET min-replicas-*"),
        ("Bring the replicas back; lower min-replicas-to-write only if losing events is allowed.",),
    ),
    Explanation(
        "CLUSTERDOWN", "ClusterDownError",
        "Slots are not served: a primary without a replica is gone, or the majority is.",
        "Shards that are served go on; the others wait.",
        ("CLUSTER INFO", "CLUSTER NODES", "standpipe doctor --url redis+cluster://…"),
        ("Start the missing node; redis-cli --cluster fix <node> once it is back.",),
    ),
    Explanation(
        "MOVED", "SlotMovedError",
        "The slot lives on another node.",
        "With redis+cluster:// the map is read anew and the command sent there.",
        ("CLUSTER SLOTS",),
        ("Use redis+cluster:// in the URL.",),
    ),
    Explanation(
        "ASK", "SlotMovedError",
        "The slot is on its way to another node.",
        "Waited out.",
        ("CLUSTER NODES    (slots in [brackets] are moving)",),
        ("Nothing; if it lasts: redis-cli --cluster check <node>.",),
    ),
    Explanation(
        "TRYAGAIN", "SlotMovedError",
        "The keys of one step are on two nodes while their slot moves.",
        "Waited out.",
        ("CLUSTER NODES    (slots in [brackets] are moving)",),
        ("Nothing; if it lasts: redis-cli --cluster check <node>.",),
    ),
    Explanation(
        "CROSSSLOT", "ReplyError",
        "One command names keys of different slots. Standpipe never does: the keys of a shard "
        "carry its hash tag.",
        "None.",
        ("CLUSTER KEYSLOT <key>",),
        ("Put the {tag} of the shard into every key of the command.",),
    ),
    Explanation(
        "NOSCRIPT", "ScriptMissingError",
        "The server does not have the script: it restarted, failed over, or SCRIPT FLUSH was run.",
        "The script is sent again, whole.",
        ("INFO memory    (number_of_cached_scripts)",),
        ("Nothing.",),
    ),
    Explanation(
        "NOAUTH", "AuthenticationError",
        "The server asks for a password and the URL has none.",
        "None: it ends with this error.",
        ("ACL WHOAMI",),
        ("redis://user:password@host:port, or STANDPIPE_URL.",),
    ),
    Explanation(
        "WRONGPASS", "AuthenticationError",
        "User or password is wrong, or the user is off.",
        "None: it ends with this error.",
        ("ACL GETUSER <user>", "ACL LOG"),
        ("Mend the URL; characters such as @ and / in a password are written %40 and %2F.",),
    ),
    Explanation(
        "NOPERM", "NotPermittedError",
        "The ACL does not allow this user the command, the key or the channel.",
        "Producers and workers wait for the right and say so; a command ends.",
        ("ACL LOG    (user, command, key)", "ACL DRYRUN <user> <command> <arguments>"),
        ("standpipe provision writes an ACL file with what each part needs; ACL LOAD reads it.",),
    ),
    Explanation(
        "WRONGTYPE", "WrongTypeError",
        "The key holds something else than a stream.",
        "None: it ends with this error.",
        ("TYPE <key>",),
        ("Choose another stream name, or RENAME what stands there.",),
    ),
    Explanation(
        "BUSYGROUP", "ReplyError",
        "The group is there already.",
        "A worker takes it as it is.",
        ("standpipe group list <stream>",),
        ("standpipe group set <stream> <group> --to … moves it.",),
    ),
    Explanation(
        "EXECABORT", "ReplyError",
        "A command of a MULTI was refused, so none was executed.",
        "Not used by Standpipe.",
        ("The error reply before it.",),
        ("Mend that one.",),
    ),
    Explanation(
        "NOPROTO", "ReplyError",
        "The server does not speak RESP3: it is older than version 6, or a proxy stands between.",
        "None: it ends with this error.",
        ("HELLO 3", "INFO server"),
        ("Redis 6.2 or Valkey 8, or later; a proxy that passes HELLO on.",),
    ),
    Explanation(
        "SPORDER", "SequenceError",
        "An earlier block of this producer is missing on the server; it goes first.",
        "Sent again in order.",
        ("standpipe status <stream>",),
        ("Nothing.",),
    ),
    Explanation(
        "SPFULL", "StreamFullError",
        "The stream has reached its max_len or max_bytes, and when_full is block.",
        "Producers wait, then spool; nothing is dropped.",
        ("standpipe retain <stream> --dry-run", "standpipe status <stream>"),
        (
            "Let the workers catch up and run the janitor.",
            "Raise the limit in the stream's definition.",
            "when_full ring, where the newest readings matter more than all of them.",
        ),
    ),
    Explanation(
        "REFUSED", "ServerUnavailableError",
        "Nothing listens at the address, or a firewall refuses: the server is down, the port is "
        "another, bind leaves this network out.",
        "Tried again with a growing pause; producers spool.",
        ("ss -ltnp", "CONFIG GET bind port tls-port", "the end of the server's log"),
        ("Start the server; mend host and port; bind the internal address.",),
    ),
    Explanation(
        "RESET", "ServerUnavailableError",
        "The connection was cut: a restart, a firewall or NAT that forgot it, CLIENT KILL, or an "
        "output buffer that grew past its limit.",
        "Made anew; blocks whose reply was lost are sent again and recognised.",
        ("INFO clients", "the server's log: closed ASAP", "standpipe doctor    (retransmissions)"),
        ("tcp-keepalive 60 keeps a NAT's memory; look at the network.",),
    ),
    Explanation(
        "TIMEOUT", "ReplyTimeoutError",
        "No reply in time: the server hangs, is overloaded, or the network lets nothing through. "
        "Whether the command was executed is not known.",
        "Sent again; the server recognises what it already has.",
        ("SLOWLOG GET 10", "LATENCY DOCTOR", "standpipe doctor"),
        ("Find the slow command, the slow disk or the lost packets; raise reply_ms_max last.",),
    ),
    Explanation(
        "MAXCLIENTS", "TooManyClientsError",
        "As many connections as maxclients allows are open.",
        "Tried again with a growing pause.",
        ("INFO clients", "CLIENT LIST"),
        ("CONFIG SET maxclients, LimitNOFILE in the unit; close idle clients.",),
    ),
)  # fmt: skip


def explain(text: str) -> Explanation:
    """The explanation of a code, or of an error text that begins with or contains one.

    Raises:
        ConfigError: it is none that is known; the hint names those that are.
    """
    words = text.replace("-", " ").replace(":", " ").replace("(", " ").split()
    for word in words:
        if (code := word.strip(".,)").upper()) in EXPLANATIONS:
            return EXPLANATIONS[code]
    by_error = {each.error.lower(): each for each in reversed(EXPLANATIONS.values())}
    for word in words:
        if word.lower() in by_error:
            return by_error[word.lower()]
    phrases = {
        "max number of clients": "MAXCLIENTS",
        "connection refused": "REFUSED",
        "reset by peer": "RESET",
        "timed out": "TIMEOUT",
        "no reply within": "TIMEOUT",
        "background saving error": "MISCONF",
    }
    for phrase, code in phrases.items():
        if phrase in text.lower():
            return EXPLANATIONS[code]
    near = get_close_matches(text.upper(), EXPLANATIONS, n=1)
    did_you_mean = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{text!r} is no code that is known",
        hint=f"It is one of {', '.join(EXPLANATIONS)}.{did_you_mean}",
    )
