"""The way to another machine: its MTU is measured, also where large packets vanish in silence."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from standpipe.server.provision import way
from standpipe.server.provision.way import measure, measure_ways
from tests.faults.network import Network, require_network
from tests.servers.provisioned import described

pytestmark = pytest.mark.faults


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    require_network()
    # What is lost here is lost at once, and what gets through takes well below a millisecond.
    monkeypatch.setattr(way, "PROBE_MS_MAX", 150)
    monkeypatch.setattr(way, "PROBE_TRIES", 2)
    with Network() as found:
        yield found


def set_mtu(network: Network, *, cable: int, inner: int) -> None:
    """The MTU of the cable between this machine and the router, and of that to the server."""
    for where, device, mtu in (
        ((), network._cable, cable),
        (("-n", network.router), "out", cable),
        (("-n", network.router), "in", inner),
        (("-n", network.namespace), "eth", inner),
    ):
        subprocess.run(["ip", *where, "link", "set", "dev", device, "mtu", str(mtu)], check=True)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_a_way_that_is_right(network: Network, mtu: int) -> None:
    """Where all links have the same MTU, packets of that size get through, jumbo frames too."""
    set_mtu(network, cable=mtu, inner=mtu)
    found = measure(network.host)
    assert (found.interface_mtu, found.mtu, found.is_wrong) == (mtu, mtu, False)


@pytest.mark.parametrize(("cable", "inner"), [(1500, 1400), (9000, 1500), (1400, 1400)])
def test_a_link_that_is_lower(network: Network, cable: int, inner: int) -> None:
    """A link in between with a lower MTU is found, to the byte; so is one below Ethernet's."""
    set_mtu(network, cable=cable, inner=inner)
    found = measure(network.host)
    assert (found.interface_mtu, found.mtu, found.is_wrong) == (cable, inner, True)
    assert str(inner) in found.text and "set the interface" in found.text


def test_a_black_hole(network: Network) -> None:
    """A router that drops large packets and says nothing is found as well."""
    set_mtu(network, cable=1500, inner=1500)
    rules = (
        "table inet hole { chain out { type filter hook forward priority 0; "
        "ip length > 1300 drop; }; }"
    )
    subprocess.run(
        ["ip", "netns", "exec", network.router, "nft", "-f", "-"],
        input=rules, text=True, check=True,
    )  # fmt: skip
    found = measure(network.host)
    assert (found.interface_mtu, found.mtu, found.is_wrong) == (1500, 1300, True)


def test_a_host_that_does_not_answer(network: Network) -> None:
    """Without an answer the MTU is not known, which is said and is no fault."""
    network._in(network.namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all")
    found = measure(network.host)
    assert (found.mtu, found.is_wrong) == (None, False)
    assert "does not answer" in found.text


def test_each_other_server_is_asked(network: Network) -> None:
    """The ways to all servers of a deployment but the own one."""
    description = described("redis-7.0", bind=["127.0.0.1"], nodes=["127.0.0.1", network.host])
    (found,) = measure_ways(description)
    assert (found.host, found.mtu) == (network.host, 1500)


def test_a_name_that_is_none() -> None:
    """A host whose name is not known is said, not raised."""
    found = measure("queue-1.invalid")
    assert found.mtu is None and found.why and not found.is_wrong
