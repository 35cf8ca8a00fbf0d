"""TLS as a bundle has it: both sides show a certificate, to clients, replicas and on the bus."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from standpipe import Event, Producer, Stream, Worker
from standpipe.errors import StandpipeError
from standpipe.server.provision import bundle, certificates
from standpipe.server.provision.bundle import Secrets
from standpipe.testing import Ledger, check, send_and_record
from tests.conditions import eventually, eventually_sync
from tests.servers.entries import make_events
from tests.servers.fleet import KINDS, TLS, Fleet, TestCluster, require_server
from tests.servers.provisioned import ProvisionedServer, described, provisioned, refused
from tests.servers.working import running

pytestmark = pytest.mark.servers


@pytest.fixture
def tls_provisioned(own_fleet: Fleet) -> ProvisionedServer:
    require_server(TLS)
    return provisioned(own_fleet, described(TLS, tls=True))


async def _balances(url_of: Any, name: str, folder: Path, shards: int = 1) -> None:
    """A producer and a worker, each as its user; what was sent, stored and handled is the same."""
    ledger = Ledger(folder / "sends.log")
    async with (
        Stream(name, url_of("producer"), shards=shards) as stream,
        Producer(stream) as producer,
    ):
        await send_and_record(producer, ledger, ledger.events(2_000, keys=20))
    seen: list[Event] = []
    async with Stream(name, url_of("worker")) as stream:
        worker = Worker(stream, "g", retain=False)
        worker.batch(seen.extend)
        async with running(worker):
            await eventually(lambda: len(seen) >= 2_000, 20)
    async with Stream(name, url_of("reader")) as stream:
        report = await check(stream, ledger)
    report.raise_unless_sound()
    assert report.stored == len(seen) == 2_000


async def test_a_ledger_that_balances(tls_provisioned: ProvisionedServer, tmp_path: Path) -> None:
    """Over TLS with the bundle's certificates and users nothing is lost, and nothing is twice."""
    await _balances(tls_provisioned.url_of, "power", tmp_path)
    assert refused(tls_provisioned) == []


@pytest.mark.parametrize("name", KINDS)
async def test_every_server_without_tls(name: str, own_fleet: Fleet, tmp_path: Path) -> None:
    """The same on every server there is, without TLS, on one shard and on three."""
    require_server(name)
    streams = [{"name": "power", "groups": ["g"]}, {"name": "water", "shards": 3}]
    server = provisioned(own_fleet, described(name, streams=streams))
    for stream, shards in (("power", 1), ("water", 3)):
        (tmp_path / stream).mkdir()
        await _balances(server.url_of, stream, tmp_path / stream, shards)
    assert refused(server) == []


async def test_a_client_shows_a_certificate(
    tls_provisioned: ProvisionedServer, tmp_path: Path
) -> None:
    """A password alone does not do, nor a certificate of another authority, nor no TLS."""
    url = tls_provisioned.url_of("reader")
    bare = url.partition("?")[0]
    ca = tls_provisioned.client_files("reader")["ssl_ca_certs"]
    other = certificates.make_certificate(certificates.make_authority("other"), "reader")
    (tmp_path / "other.pem").write_text(other.certificate)
    (tmp_path / "other.key").write_text(other.key)
    foreign = f"ssl_certfile={tmp_path}/other.pem&ssl_keyfile={tmp_path}/other.key"
    for bad in (
        f"{bare}?ssl_ca_certs={ca}",
        f"{bare}?ssl_ca_certs={ca}&{foreign}",
        bare.replace("rediss", "redis"),
    ):
        with pytest.raises(StandpipeError):
            async with Stream("power", bad) as stream:
                await stream.exists()
    async with Stream("power", url) as stream:
        assert not await stream.exists()


def test_a_replica_follows_over_tls(own_fleet: Fleet) -> None:
    """A replica follows as a user that may do nothing else, over TLS."""
    require_server(TLS)
    primary = provisioned(own_fleet, described(TLS, tls=True, nodes=["127.0.0.1", "127.0.0.2"]))
    nodes = [f"127.0.0.1:{primary.port}", "127.0.0.1:1"]
    replica = provisioned(
        own_fleet,
        described(TLS, tls=True, role="replica", nodes=nodes),
        secrets=primary.secrets,
    )
    primary.command("XADD", "power", "*", "n", "1")
    eventually_sync(lambda: replica.info("replication")["master_link_status"] == "up", 20)
    eventually_sync(lambda: replica.command("XLEN", "power") == 1)
    with pytest.raises(redis.RedisError):
        replica.user = ("replication", primary.secrets.passwords["replication"])
        replica.command("XLEN", "power")


async def test_a_cluster_over_tls(own_fleet: Fleet, tmp_path: Path) -> None:
    """Three nodes form a cluster over an encrypted bus, and serve a stream of three shards."""
    require_server(TLS)
    secrets = Secrets()
    nodes: list[Any] = []
    for _ in range(3):
        description = described(
            TLS, tls=True, role="cluster", nodes=["127.0.0.1"],
            streams=[{"name": "water", "groups": ["g"], "shards": 3}],
        )  # fmt: skip
        nodes.append(provisioned(own_fleet, description, secrets=secrets))
        secrets = nodes[0].secrets
    TestCluster(nodes, primaries=3)
    await _balances(nodes[0].url_of, "water", tmp_path, shards=3)
    for node in nodes:
        assert refused(node) == []
        assert node.command("CONFIG", "GET", "tls-cluster")[1] == "yes"


async def test_renewed_certificates_serve(
    tls_provisioned: ProvisionedServer, tmp_path: Path
) -> None:
    """Made anew by the same authority, the server's certificate is taken by clients that have the
    old ones, after a restart."""
    old = tls_provisioned.secrets
    tls_provisioned.secrets = bundle.fresh_secrets(tls_provisioned.description, old, renew=True)
    assert old.server is not None and tls_provisioned.secrets.server != old.server
    assert tls_provisioned.secrets.passwords == old.passwords
    tls_provisioned.restart()
    files = tls_provisioned.client_files("producer")
    for name, pem in zip(("ssl_certfile", "ssl_keyfile"), old.clients["producer"], strict=True):
        files[name].write_text(pem)
    query = "&".join(f"{name}={path}" for name, path in files.items())
    url = f"{tls_provisioned.url_of('producer').partition('?')[0]}?{query}"
    async with Stream("power", url) as stream, Producer(stream) as producer:
        await (await producer.send_many(make_events(10)))


# --- the certificates themselves -----------------------------------------------------------------


def test_they_are_made_anew_in_time() -> None:
    """What ends within two months, has other names or another authority is made anew; else kept."""
    description = described("redis-7.0", tls=True, bind=["10.0.0.5"], hostnames=["q.example.net"])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first = bundle.fresh_secrets(description, Secrets(), now=now)
    assert len(first.renewed) == 2 + len(first.clients)
    same = bundle.fresh_secrets(description, first, now=now + timedelta(days=330))
    assert same.renewed == () and same.server == first.server
    later = bundle.fresh_secrets(description, first, now=now + timedelta(days=340))
    assert len(later.renewed) == 1 + len(first.clients)
    assert later.authority == first.authority and later.server != first.server
    moved = described("redis-7.0", tls=True, bind=["10.0.0.6"])
    assert bundle.fresh_secrets(moved, first, now=now).renewed == (
        "server: its names have changed",
    )
    stranger = certificates.make_authority("stranger", now=now)
    mixed = Secrets(first.passwords, stranger, first.server, first.clients)
    assert (
        "server: it is not one of this authority"
        in bundle.fresh_secrets(description, mixed, now=now).renewed
    )


def test_the_server_has_its_names(tmp_path: Path) -> None:
    """The certificate is for the addresses and names of the description; a client's is for none,
    and cannot serve."""
    from cryptography import x509

    description = described(
        "redis-7.0", tls=True, bind=["10.0.0.5", "fd00::5"], hostnames=["queue-1.example.net"]
    )
    found = bundle.fresh_secrets(description, Secrets())
    assert found.server is not None and found.authority is not None
    certificate = x509.load_pem_x509_certificate(found.server.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {
        "10.0.0.5", "fd00::5", "127.0.0.1"
    }  # fmt: skip
    assert names.get_values_for_type(x509.DNSName) == ["queue-1.example.net", "localhost"]
    client = x509.load_pem_x509_certificate(found.clients["worker"].certificate.encode())
    usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [each.dotted_string for each in usage] == ["1.3.6.1.5.5.7.3.2"]
    # OpenSSL, which the servers use, takes the chain with all its checks on.
    (tmp_path / "ca.pem").write_text(found.authority.certificate)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    assert context.get_ca_certs()[0]["subject"] == ((("commonName", "standpipe authority"),),)
