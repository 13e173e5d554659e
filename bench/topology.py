"""One node of a cluster out of network namespaces: a bridge, a client pod, and a server, which is a pod or outside.

    NAME-node      br0 10.244.1.1/24, eth0 192.168.50.11/24 and the default route
    NAME-client    eth0 10.244.1.11/24, default route over 10.244.1.1
    NAME-server    eth0 10.244.1.12/24 (and .13, .14... one for each backend), default route over 10.244.1.1
    NAME-uplink    eth0 192.168.50.1/24: somebody has to answer ARP for the default gateway

Outside, the server is at the other end of the uplink, and there is no fourth namespace:

    NAME-server    eth0 192.168.50.1/24; a route to the pods by 192.168.50.11, or none

Every case of the benchmark has such a node for itself, with equal settings, so that nothing of one case (a netfilter
hook, a filter, a flow) touches another.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run

__all__ = ["BRIDGE", "CLIENT_IP", "NODE_IP", "POD_NETWORK", "UPLINK", "Node", "Where", "delete", "node", "stale_nodes"]

BRIDGE = "br0"
UPLINK = "eth0"
POD_NETWORK = "10.244.0.0/16"
CLIENT_IP = "10.244.1.11"
GATEWAY_IP = "10.244.1.1"
NODE_IP = "192.168.50.11"
UPLINK_IP = "192.168.50.1"
FIRST_BACKEND = 12
NETNS_DIR = Path("/run/netns")

# nginx closes each short connection, so TIME_WAIT lies with the server; the wide range and the reuse keep the client
# from running out of ports all the same. Timestamps are one clock for all connections (2): with an offset for each, as
# Linux 6.18 has, a NAT that gives a port to another connection meets the old one's TIME_WAIT at the server, which drops
# the SYN as too old (PAWSTimewait), and the figure is the retransmission timer's. IPv6 is off: router solicitations and
# DAD are noise.
POD_SYSCTLS = {
    "net.ipv4.tcp_timestamps": "2",
    "net.ipv4.ip_local_port_range": "16384 65000",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.ipv4.tcp_max_tw_buckets": "131072",
    "net.core.somaxconn": "4096",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
NODE_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}


class Where(enum.Enum):
    """Where the server is."""

    POD = "on the node's bridge"
    ROUTED = "behind the node's uplink, with a route to the pods"
    OUTSIDE = "behind the node's uplink, with no route to the pods"


@dataclass(frozen=True)
class Node:
    """The names and addresses of one node; `backends` are the server's addresses."""

    name: str
    backends: tuple[str, ...]
    where: Where = Where.POD

    @property
    def netns(self) -> str:
        """The namespace that is the node."""
        return f"{self.name}-node"

    @property
    def client(self) -> str:
        """The client pod's namespace."""
        return f"{self.name}-client"

    @property
    def server(self) -> str:
        """The server's namespace."""
        return f"{self.name}-server"

    @property
    def uplink(self) -> str:
        """The namespace at the other end of the uplink."""
        return f"{self.name}-uplink" if self.where is Where.POD else self.server

    @property
    def all_netns(self) -> tuple[str, ...]:
        """Every namespace of this node, pods first: in this order they are deleted."""
        return tuple(dict.fromkeys((self.client, self.server, self.uplink, self.netns)))

    def conntrack_count(self) -> int:
        """How many connections netfilter tracks in the node's namespace; 0 where it takes no part (or is not built)."""
        try:
            return int(run(["sysctl", "-n", "net.netfilter.nf_conntrack_count"], netns=self.netns))
        except BenchError:
            return 0


def set_sysctls(netns: str, values: dict[str, str]) -> None:
    """Set kernel parameters inside one namespace."""
    run(["sysctl", "-q", "-w", *(f"{key}={value}" for key, value in values.items())], netns=netns)


def _ip(netns: str, *lines: str) -> None:
    """Run `ip` commands, one per line, inside a namespace."""
    run(["ip", "-netns", netns, "-batch", "-"], stdin="\n".join(lines) + "\n")


def _add_namespaces(this: Node) -> None:
    for netns in this.all_netns:
        run(["ip", "netns", "add", netns])
        _ip(netns, "link set lo up")


def _add_links(this: Node) -> None:
    """The bridge, a veth into each pod (host side a port of the bridge), and the uplink."""
    set_sysctls(this.netns, NODE_SYSCTLS)
    _ip(
        this.netns,
        f"link add {BRIDGE} address 02:00:0a:f4:01:01 type bridge",
        f"address add {GATEWAY_IP}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"link add {UPLINK} address 02:00:c0:a8:32:0b type veth peer name eth0 netns {this.uplink}",
        f"address add {NODE_IP}/24 dev {UPLINK}",
        f"link set {UPLINK} up",
        f"route add default via {UPLINK_IP} dev {UPLINK}",
    )
    _ip(this.uplink, f"address add {UPLINK_IP}/24 dev eth0", "link set eth0 up")
    _add_pod(this, this.client, "veth-client", (CLIENT_IP,))
    if this.where is Where.POD:
        _add_pod(this, this.server, "veth-server", this.backends)
    elif this.where is Where.ROUTED:
        _ip(this.server, f"route add {POD_NETWORK} via {NODE_IP}")


def _add_pod(this: Node, netns: str, port: str, addresses: Sequence[str]) -> None:
    mac = "02:00:" + ":".join(f"{int(octet):02x}" for octet in addresses[0].split("."))
    _ip(
        this.netns,
        f"link add {port} type veth peer name eth0 address {mac} netns {netns}",
        f"link set {port} master {BRIDGE}",
        f"link set {port} up",
    )
    _ip(
        netns,
        *(f"address add {address}/24 dev eth0" for address in addresses),
        "link set eth0 up",
        f"route add default via {GATEWAY_IP}",
    )


def set_bridge_netfilter(netns: str, on: bool) -> None:
    """Let bridged packets pass netfilter, or not. A new namespace has it ON wherever the kernel has br_netfilter."""
    if Path("/proc/sys/net/bridge").is_dir():
        keys = ("iptables", "ip6tables", "arptables")
        set_sysctls(netns, {f"net.bridge.bridge-nf-call-{key}": str(int(on)) for key in keys})
    elif on:
        raise BenchError("kube-proxy's rules need br_netfilter where client and server share a bridge: modprobe it")


@contextlib.contextmanager
def node(name: str, *, where: Where, backends: int, bridge_netfilter: bool) -> Iterator[Node]:
    """A node with its pods for the length of the `with`; nothing of it remains, whatever happens inside.

    `backends` is the number of the server's addresses where it is a pod; outside it has one.
    """
    pods = tuple(f"10.244.1.{FIRST_BACKEND + i}" for i in range(backends))
    this = Node(name, pods if where is Where.POD else (UPLINK_IP,), where)
    try:
        _add_namespaces(this)
        set_bridge_netfilter(this.netns, bridge_netfilter)
        for pod in (this.client, this.server):
            set_sysctls(pod, POD_SYSCTLS)
        _add_links(this)
        # the node's neighbour table knows every address of the pods and the gateway from now on
        gateway = GATEWAY_IP if where is Where.POD else NODE_IP
        for address in this.backends:
            run(["ping", "-c1", "-W2", "-q", "-I", address, gateway], netns=this.server)
        run(["ping", "-c1", "-W2", "-q", GATEWAY_IP], netns=this.client)
        yield this
    finally:
        delete(this)


def stale_nodes() -> list[Node]:
    """The nodes of earlier runs that were killed outright. The namespaces of a live run are not among them."""
    found = sorted(path.name for path in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []
    matches = [
        match for name in found if (match := re.fullmatch(r"(bench(\d+)-[a-z-]+)-(?:node|client|server|uplink)", name))
    ]
    names = {match[1] for match in matches if not Path(f"/proc/{match[2]}").exists()}
    return [Node(name, ()) for name in sorted(names)]


def delete(this: Node) -> None:
    """Delete a node's namespaces, as many of them as there are; links, rules and routes go with them."""
    for netns in this.all_netns:
        if (NETNS_DIR / netns).exists():
            run(["ip", "netns", "delete", netns])
