"""What the tests of masquerading share: two loaded nodes, servers outside, and an eye on what leaves them."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from socket import AF_INET6, AF_PACKET, SOCK_DGRAM, SOCK_RAW, SocketKind
from typing import Any

from calls import SECONDS, family_of
from scene import Cluster, cluster_up

from pydatapath.kernel import links
from pydatapath.lab import Host

__all__ = [
    "EXPEDITED",
    "FAMILIES",
    "IPV4",
    "IPV6",
    "NETWORKS",
    "Ends",
    "Eye",
    "nat_cluster",
    "server",
    "set_and_watch",
    "wait_until",
]

NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
LEAKS = "(ip and src net 10.244.0.0/16) or (ip6 and src net fd00:10:244::/48)"
SO_ATTACH_FILTER, ETH_P_ALL = 26, 0x0003
IP_RECVTTL, IP_RECVTOS, IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_RECVTCLASS, IPV6_TCLASS = 12, 13, 51, 52, 66, 67
EXPEDITED = 0xB8  # DSCP 46


@dataclass(frozen=True)
class Ends:
    """One family: the outside's two addresses, and what tells a host's."""

    first: str
    second: str
    length: int

    def of(self, host: object) -> str:
        """A host's address."""
        return str(getattr(host, "address6" if ":" in self.first else "address"))


IPV4 = Ends("192.168.50.100", "192.168.50.101", 24)
IPV6 = Ends("2001:db8:50::100", "2001:db8:50::101", 64)
FAMILIES = {"argnames": "ends", "argvalues": [IPV4, IPV6], "ids": ["IPv4", "IPv6"]}


class Eye:
    """Sees what reaches the outside under a pod's address (O1), and nothing else."""

    def __init__(self, outside: Host) -> None:
        program = subprocess.run(
            ["tcpdump", "-ddd", "-i", "lo", "-y", "EN10MB", *LEAKS.split()], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        lines = [struct.pack("=HBBI", *map(int, line.split())) for line in program[1:]]
        code = bytearray(b"".join(lines))
        self._code = (socket.socket, code)  # the kernel copies it, from where it is now
        self._socket = outside.socket(AF_PACKET, SOCK_RAW, socket.htons(ETH_P_ALL))
        address = _address_of(code)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(lines), address))
        self._socket.setblocking(False)
        self.leaks()

    def leaks(self) -> list[bytes]:
        """The frames that it has seen since it was last asked."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(256))
        return found

    def close(self) -> None:
        """Looks no more."""
        self._socket.close()


def _address_of(code: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(code))


@contextlib.contextmanager
def nat_cluster(name: str, *, servers: bool = True, **options: Any) -> Iterator[Cluster]:
    """Two loaded nodes of two pods each, in both families; the outside has two addresses, and an echo server."""
    with cluster_up(
        name, pods=2, loaded=(1, 2), dual_stack=True, **{"cluster_cidr": NETWORKS, "masquerade": True, **options}
    ) as made:
        outside = made.lab.outside
        with links.Links(outside.netns) as there:
            for ends in (IPV4, IPV6):
                there.address("eth0", f"{ends.second}/{ends.length}")
        # A server that does not say its address answers from the first, which the kernel does not prefer to a newer one
        second = [f"{IPV6.second}/{IPV6.length}", "dev", "eth0", "preferred_lft", "0"]
        outside.exec(["ip", "-6", "address", "change", *second], check=True)
        if servers:
            made.serve(outside, *made.lab.pods)  # type: ignore[arg-type]
        try:
            yield made
        finally:
            if servers:
                made.kill(outside)  # type: ignore[arg-type]


def server(host: Host, at: tuple[str, int], kind: SocketKind = SOCK_DGRAM) -> socket.socket:
    """A socket in `host` that is bound to an address; of UDP it is told of each datagram's hops and traffic class."""
    made = host.socket(family_of(at), kind)
    made.settimeout(SECONDS)
    if made.family == AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(at)
    return made


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Until it holds, but not for ever."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(0.01)


def set_and_watch(end: socket.socket) -> None:
    """Send with 64 hops to live and one class, and be told what comes with."""
    if end.family == AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, 16, 64)  # IPV6_UNICAST_HOPS
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_TCLASS, EXPEDITED)
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
    else:
        end.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, EXPEDITED)
        end.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        end.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
