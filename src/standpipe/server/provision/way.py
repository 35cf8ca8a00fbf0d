"""Whether large packets get through to the other machines: the way's MTU, measured end to end.

A switch in between that is set lower drops large packets, often in silence: connections open, small
commands work, and a block never arrives. An echo request that must not be cut up (DF) finds that:
its answer has the same size, so both directions are measured.

Sources: https://www.rfc-editor.org/rfc/rfc1191 , https://www.rfc-editor.org/rfc/rfc4821
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import Any, Final, NamedTuple

from standpipe.limits import MTU_MAX, MTU_MIN, PROBE_MS_MAX, PROBE_TRIES
from standpipe.server.provision.description import Description

# linux/in.h and linux/in6.h; the socket module has no names for them.
IP_MTU_DISCOVER: Final = 10
IP_MTU: Final = 14
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
PMTUDISC_PROBE: Final = 3
"""Set DF, and leave what the kernel has learned about the way aside: it is what is measured."""

_ECHO_REPLIES: Final = (0, 129)
"""The types of ICMP and of ICMPv6."""

_HEADERS: Final = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}
"""Bytes of the IP and ICMP headers."""


class Way(NamedTuple):
    """The way to another machine."""

    host: str
    interface_mtu: int | None
    """The MTU of the interface that leads there; None: no way at all."""
    mtu: int | None
    """The largest packet that gets there and back; None: none does, or none may be sent."""
    why: str = ""
    """Why it is not known."""

    @property
    def is_wrong(self) -> bool:
        """Whether packets as large as the interface sends them are lost, or none may be large."""
        if self.mtu is None or self.interface_mtu is None:
            return False
        return self.mtu < min(self.interface_mtu, MTU_MAX) or self.mtu < MTU_MIN

    @property
    def text(self) -> str:
        """One line for people."""
        if self.mtu is None:
            return f"its MTU is not known: {self.why}"
        said = f"packets of {self.mtu} bytes get through"
        if self.is_wrong:
            return (
                f"{said}, the interface sends {self.interface_mtu}: set the interface, or every "
                f"switch on the way, to the same ({MTU_MIN} to {MTU_MAX})"
            )
        return said

    def as_facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "host": self.host,
            "interface_mtu": self.interface_mtu,
            "mtu": self.mtu,
            "is_wrong": self.is_wrong,
            "why": self.why,
        }


def measure_ways(description: Description) -> list[Way]:
    """The ways to all other servers of a deployment."""
    own = {address.lstrip("-") for address in description.bind} | set(description.hostnames)
    hosts = dict.fromkeys(node.host for node in description.servers)
    return [measure(host) for host in hosts if host not in own]


def measure(host: str) -> Way:
    """Measure the way to a host.

    Cost: one packet and its answer where all is well; else a search between 68 and the interface's
        MTU, of PROBE_TRIES packets that are waited for PROBE_MS_MAX each per step that fails.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 7, type=socket.SOCK_DGRAM)[0]
        interface = _interface_mtu(family, address)
        with _echo_socket(family) as echo:
            echo.settimeout(PROBE_MS_MAX / 1000)
            if _gets_through(echo, family, address, min(interface, MTU_MAX)):
                return Way(host, interface, min(interface, MTU_MAX))
            # IPv6 has no links below 1280.
            least, most = (1280 if family == socket.AF_INET6 else 68), min(interface, MTU_MAX)
            if not _gets_through(echo, family, address, least):
                return Way(host, interface, None, "it does not answer (ICMP may be blocked)")
            while most - least > 1:
                middle = (least + most) // 2
                if _gets_through(echo, family, address, middle):
                    least = middle
                else:
                    most = middle
            return Way(host, interface, least)
    except PermissionError:
        return Way(host, None, None, "it takes root to send echo requests here")
    except OSError as error:
        return Way(host, None, None, str(error.strerror or error))


def _interface_mtu(family: int, address: Any) -> int:
    level, discover, mtu = (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU)
        if family == socket.AF_INET6
        else (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(level, discover, PMTUDISC_PROBE)
        probe.connect(address)
        return probe.getsockopt(level, mtu)


def _echo_socket(family: int) -> socket.socket:
    protocol = socket.getprotobyname("ipv6-icmp" if family == socket.AF_INET6 else "icmp")
    try:
        # The kernel's own echo sockets, where net.ipv4.ping_group_range allows them.
        found = socket.socket(family, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        found = socket.socket(family, socket.SOCK_RAW, protocol)
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        found.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
    return found


def _gets_through(echo: socket.socket, family: int, address: Any, size: int) -> bool:
    """Whether a packet of so many bytes, headers included, comes back."""
    mark = os.urandom(16)
    payload = mark.ljust(size - _HEADERS[socket.AddressFamily(family)], b"\0")
    for attempt in range(PROBE_TRIES):
        kind = 128 if family == socket.AF_INET6 else 8
        head = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, attempt)
        if echo.type == socket.SOCK_RAW and family == socket.AF_INET:
            head = head[:2] + struct.pack("!H", _checksum(head + payload)) + head[4:]
        try:
            echo.sendto(head + payload, address)
            if _answered(echo, mark):
                return True
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            # A router on the way said so, or the interface itself.
            return False
    return False


def _answered(echo: socket.socket, mark: bytes) -> bool:
    deadline = time.monotonic() + PROBE_MS_MAX / 1000
    while time.monotonic() < deadline:
        packet = echo.recv(65_536)
        if echo.type == socket.SOCK_RAW and echo.family == socket.AF_INET:
            packet = packet[(packet[0] & 15) * 4 :]
        # An error of a router on the way comes here too, and quotes the packet that it dropped.
        if packet[0] in _ECHO_REPLIES and mark in packet:
            return True
    return False


def _checksum(packet: bytes) -> int:
    """The Internet checksum (RFC 1071); the kernel computes that of its own echo sockets."""
    even = packet.ljust(len(packet) + len(packet) % 2, b"\0")
    words = struct.unpack(f"!{len(even) // 2}H", even)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
