"""What the wire does without a server: URLs, packing, and what the server's words mean."""

from __future__ import annotations

import hashlib

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException
from redis.exceptions import TimeoutError as RedisTimeoutError

from standpipe import errors
from standpipe.config import mask_password
from standpipe.wire import pack, parse_address, script, translate

# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "plain"),
    [
        ("redis://10.0.0.7", "single", [("10.0.0.7", 6379)], "", "redis://10.0.0.7:6379"),
        ("redis://host:7000/3", "single", [("host", 7000)], "", "redis://host:7000/3"),
        ("  REDIS://Host:1 ", "single", [("host", 1)], "", "redis://host:1"),
        ("valkey://host", "single", [("host", 6379)], "", "redis://host:6379"),
        ("valkeys://host", "single", [("host", 6379)], "", "rediss://host:6379"),
        ("redis://[::1]:7000", "single", [("::1", 7000)], "", "redis://[::1]:7000"),
        (
            "rediss://u:p%40ss@host:1/0?ssl_ca_certs=ca.pem",
            "single",
            [("host", 1)],
            "",
            "rediss://u:p%40ss@host:1/0?ssl_ca_certs=ca.pem",
        ),
        ("unix:///run/redis.sock?db=2", "single", [], "", "unix:///run/redis.sock?db=2"),
        (
            "redis+sentinel://:pw@a,b:2,[::1]/mymaster/4",
            "sentinel",
            [("a", 26379), ("b", 2), ("::1", 26379)],
            "mymaster",
            "redis://:pw@a:26379/4",
        ),
        ("redis+sentinel://a/my%20one", "sentinel", [("a", 26379)], "my one", "redis://a:26379"),
        ("valkeys+cluster://a:1,b", "cluster", [("a", 1), ("b", 6379)], "", "rediss://a:1"),
        ("redis+cluster://a/0", "cluster", [("a", 6379)], "", "redis://a:6379/0"),
    ],
)
def test_urls(url: str, kind: str, hosts: list[object], service: str, plain: str) -> None:
    """Each form of a URL is read as what it says."""
    address = parse_address(url)
    assert (address.kind, list(address.hosts)) == (kind, hosts)
    assert (address.service, address.url) == (service, plain)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "scheme"),
        ("localhost:6379", "scheme"),
        ("http://host", "'http'"),
        ("redis+tls://host", "'redis+tls'"),
        ("unix+cluster:///run/s", "scheme"),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://host:port", "'host:port'"),
        ("redis://host:70000", "'host:70000'"),
        ("redis://a,b", "several hosts"),
        ("redis://host/db", "'db'"),
        ("unix://", "no socket"),
        ("redis+sentinel://host", "no Sentinel service"),
        ("redis+cluster://host/1", "database 0"),
        ("redis://host?db=x", "db"),
        ("redis://host?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_wrong_urls(url: str, why: str) -> None:
    """What is no URL of a server is refused with the reason and with how to write one."""
    with pytest.raises(errors.ConfigError, match=why.replace("+", r"\+")) as caught:
        parse_address(url)
    assert "redis://host:6379/0" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host"),
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("redis://user:secret@host", "redis://user:***@host"),
        ("redis://user@host", "redis://user@host"),
        # Passwords that should have been percent-encoded.
        ("redis://user:sec@ret@host", "redis://user:***@host"),
        ("redis://user:sec/ret@host", "redis://user:***@host"),
        ("redis://user:sec?ret@host", "redis://user:***@host"),
        ("redis://user:sec:ret#@host", "redis://user:***@host"),
        ("redis+sentinel://:secret@a,b:1/m", "redis+sentinel://:***@a,b:1/m"),
        ("unix:///run/s?password=secret&db=1", "unix:///run/s?password=***&db=1"),
        ("rediss://h?a=1&ssl_password=secret", "rediss://h?a=1&ssl_password=***"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    """No form of a URL shows its password, neither where it is printed nor in an error."""
    assert mask_password(url) == shown
    try:
        address = parse_address(url)
    except errors.ConfigError as error:
        assert "secret" not in f"{error} {error.hint}" and "ret@" not in str(error)
    else:
        assert address.shown == shown


# --- packing -------------------------------------------------------------------------------------


def test_packing() -> None:
    """A command is packed as the protocol says, whatever its arguments are."""
    packed = pack("XADD", "stróm", b"\x00\r\n", 7, 230.5, "")
    assert packed == (
        b"*6\r\n$4\r\nXADD\r\n$6\r\nstr\xc3\xb3m\r\n$3\r\n\x00\r\n\r\n"
        b"$1\r\n7\r\n$5\r\n230.5\r\n$0\r\n\r\n"
    )


@pytest.mark.parametrize("name", ["append", "forget", "hold", "leave", "settle"])
def test_scripts(name: str) -> None:
    """A script is sent without its comments, by the hash that the server gives it."""
    found = script(name)
    assert "redis.call" in found.text and "-- " not in found.text
    assert found.sha == hashlib.sha1(found.text.encode()).hexdigest()
    assert found.pack(["k"], 1, b"\xff") == pack("EVALSHA", found.sha, 1, "k", 1, b"\xff")
    assert found.pack(["k"], 1, whole=True) == pack("EVAL", found.text, 1, "k", 1)


# --- what the server says ------------------------------------------------------------------------

SAID = {
    "OOM command not allowed when used memory > 'maxmemory'.": errors.ServerFullError,
    "MISCONF Errors writing to the AOF file: No space left on device": errors.NotPersistingError,
    "READONLY You can't write against a read only replica.": errors.ReadOnlyServerError,
    "LOADING Redis is loading the dataset in memory": errors.ServerLoadingError,
    "BUSY Valkey is busy running a script.": errors.ServerBusyError,
    "MASTERDOWN Link with MASTER is down": errors.PrimaryDownError,
    "NOREPLICAS Not enough good replicas to write.": errors.TooFewReplicasError,
    "CLUSTERDOWN Hash slot not served": errors.ClusterDownError,
    "MOVED 3999 127.0.0.1:6381": errors.SlotMovedError,
    "ASK 3999 127.0.0.1:6381": errors.SlotMovedError,
    "TRYAGAIN Multiple keys request during rehashing of slot": errors.SlotMovedError,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> "
    "replica?)": errors.ReadOnlyServerError,
    "NOSCRIPT No matching script. Please use EVAL.": errors.ScriptMissingError,
    "NOAUTH Authentication required.": errors.AuthenticationError,
    "WRONGPASS invalid username-password pair or user is disabled.": errors.AuthenticationError,
    "ERR invalid password": errors.AuthenticationError,
    "NOPERM this user has no permissions to run the 'xadd' command": errors.NotPermittedError,
    "WRONGTYPE Operation against a key holding the wrong kind of value": errors.WrongTypeError,
    "NOGROUP No such key 'y' or consumer group 'g'": errors.GroupNotFoundError,
    "SPORDER expected block 2, got 3": errors.SequenceError,
    "ERR max number of clients reached": errors.TooManyClientsError,
    "ERR unknown command `XACKDEL`, with args beginning with:": errors.CommandMissingError,
    "ERR unknown subcommand 'NOPE'. Try XINFO HELP.": errors.CommandMissingError,
    # Inside scripts: Redis 6.2 and 7.0, then later ones.
    "ERR Error running script (call to f_ab): @user_script:27: @user_script: 27: -OOM command not "
    "allowed when used memory > 'maxmemory'.": errors.ServerFullError,
    "ERR Error running script (call to f_ab): @user_script:27: @user_script: 27: -READONLY You "
    "can't write against a read only replica.": errors.ReadOnlyServerError,
    "ERR Error running script (call to f_ab): @user_script:52: @user_script: 52: The user "
    "executing the script can't run this command or subcommand": errors.NotPermittedError,
    "ERR ACL failure in script: User u has no permissions to run the 'set' command script: ab, on "
    "@user_script:52.": errors.NotPermittedError,
    # Codes that only begin like one of those.
    "BUSYGROUP Consumer Group name already exists": errors.ReplyError,
    "ERR The ID specified in XADD must be greater than 0-0": errors.ReplyError,
}


@pytest.mark.parametrize("said", SAID)
def test_replies(said: str) -> None:
    """Each error reply has its type, keeps the server's words and says where they come from."""
    error = translate(BaseParser.parse_error(said), "host:1")
    assert type(error) is SAID[said]
    assert str(error).startswith("host:1: ")
    assert said.partition(" ")[2][-30:] in str(error)
    assert error.hint or type(error) is errors.ReplyError


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), errors.ServerUnavailableError),
        (RedisConnectionError("Connection closed by server."), errors.ServerUnavailableError),
        (RedisTimeoutError("Timeout connecting to server"), errors.ServerUnavailableError),
        (TimeoutError(), errors.ServerUnavailableError),
        (RedisClusterException("no reachable node"), errors.ClusterDownError),
        (RedisClusterException("Cluster mode is not enabled on this node"), errors.ConfigError),
    ],
)
def test_connections(raised: Exception, kind: type[errors.StandpipeError]) -> None:
    """What happens to a connection has a type and a hint, too."""
    error = translate(raised, "host:1")
    assert type(error) is kind
    assert error.hint and str(error).startswith("host:1: ")


def test_own_errors_stay() -> None:
    """An error of ours is not wrapped again."""
    error = errors.ConfigError("no")
    assert translate(error, "host:1") is error
