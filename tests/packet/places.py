"""Who is where in a packet bed.

    10.1.0.1          the node, at its bridge br0         10.1.0.0/24   the pod network
    10.1.0.2, .3, .4  the pods CLIENT, BACKEND, SECOND    10.96.0.0/12  the service network
    10.2.0.3          REMOTE, a pod of another node, by the interface uplink; 10.3.0.3 NOWHERE, which has no route
    192.168.9.1       UPLINK, the node at its uplink; 198.51.100.9 FAR, a client by the same way
    192.0.2.9         OUTSIDE, a client to whom no route leads

The same in IPv6 is V6: the pods fd00:10:1::/64, the services fd00:10:96::/112, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from pydatapath.kernel.gateway import SERVICE_GATEWAY_MAC

__all__ = [
    "BACKEND",
    "CLIENT",
    "CLUSTER_NETWORKS",
    "DEVICES",
    "FAR",
    "GATEWAY_MAC",
    "MAC",
    "NODE",
    "NOWHERE",
    "OUTSIDE",
    "POD_NETWORKS",
    "REMOTE",
    "SECOND",
    "SERVICE_NETWORKS",
    "UPLINK",
    "UPLINK_MAC",
    "V4",
    "V6",
    "V6_CLUSTER_NETWORKS",
    "V6_POD_NETWORKS",
    "V6_SERVICE_NETWORKS",
    "VIP",
    "VIP_TWO",
    "Places",
    "at",
]


@dataclass(frozen=True)
class Places:
    """Who is where, in one family."""

    NODE: str
    CLIENT: str
    BACKEND: str
    SECOND: str
    REMOTE: str
    NOWHERE: str
    OUTSIDE: str
    UPLINK: str
    FAR: str
    VIP: str
    VIP_TWO: str
    NEXT_HOP: str  # a router on the uplink's network, by which REMOTE and FAR are reached

    def called(self, port: str, vip: str = "") -> str:
        """How Bed.serve names a service port, such as 80/TCP, at VIP or another address."""
        return at(vip or self.VIP, port)


def at(address: str, port: object) -> str:
    """An address with a port, as a URL has it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


V4 = Places(
    *("10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"),
    *("10.2.0.3", "10.3.0.3", "192.0.2.9"),
    *("192.168.9.1", "198.51.100.9", "10.96.0.10", "10.96.0.20", "192.168.9.2"),
)
V6 = Places(
    *("fd00:10:1::1", "fd00:10:1::2", "fd00:10:1::3", "fd00:10:1::4"),
    *("fd00:10:2::3", "fd00:10:3::3", "2001:db8:2::9"),
    *("2001:db8:9::1", "2001:db8:51::9", "fd00:10:96::10", "fd00:10:96::20", "2001:db8:9::2"),
)
NODE, CLIENT, BACKEND, SECOND = V4.NODE, V4.CLIENT, V4.BACKEND, V4.SECOND
REMOTE, NOWHERE, OUTSIDE = V4.REMOTE, V4.NOWHERE, V4.OUTSIDE
UPLINK, FAR = V4.UPLINK, V4.FAR
VIP, VIP_TWO = V4.VIP, V4.VIP_TWO
CLUSTER_NETWORKS = (IPv4Network("10.2.0.0/24"),)
POD_NETWORKS = (IPv4Network("10.1.0.0/24"),)
SERVICE_NETWORKS = (IPv4Network("10.96.0.0/12"),)
V6_CLUSTER_NETWORKS = (IPv6Network("fd00:10:2::/64"),)
V6_POD_NETWORKS = (IPv6Network("fd00:10:1::/64"),)
V6_SERVICE_NETWORKS = (IPv6Network("fd00:10:96::/112"),)
MAC = {
    address: f"02:00:00:00:00:{index:02x}"
    for where in (V4, V6)
    for index, address in enumerate((where.NODE, where.CLIENT, where.BACKEND, where.SECOND), 1)
}
UPLINK_MAC = "02:00:00:00:01:01"
GATEWAY_MAC = SERVICE_GATEWAY_MAC

DEVICES = {
    address: device
    for where in (V4, V6)
    for address, device in ((where.CLIENT, "pod2"), (where.BACKEND, "pod3"), (where.SECOND, "pod4"))
}
