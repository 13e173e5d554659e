"""Where the packets go: a client pod, a server, and the node between them, out of network namespaces.

    NAME-node      br0 10.244.1.1/24, eth0 192.168.50.11/24 and the default route
    NAME-client    eth0 10.244.1.11/24, default route over 10.244.1.1
    NAME-server    eth0 10.244.1.12/24 (and .13, .14... one for each backend), default route over 10.244.1.1
    NAME-uplink    eth0 192.168.50.1/24: somebody has to answer ARP for the default gateway

Outside, the server is at the other end of the uplink, and there is no fourth namespace:

    NAME-server    eth0 192.168.50.1/24; a route to the pods by 192.168.50.11, or none

Behind another node, that node is at the other end of the uplink, and each has a route to the other's pods:

    NAME-node2     br0 10.244.2.1/24, eth0 192.168.50.12/24
    NAME-server    eth0 10.244.2.12/24 (and .13...)

In another subnet, the node has no bridge, but 10.244.1.1/24 and 10.244.2.1/24 on the pods' own links. On a bare link
there is no node at all: client and server are the two ends of one veth pair.

Every case of the benchmark has such namespaces for itself, with equal settings, so that nothing of one case (a
netfilter hook, a filter, a flow) touches another.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run

__all__ = ["BRIDGE", "NODE_IP", "POD_NETWORK", "UPLINK", "Node", "Where", "delete", "node", "stale_nodes"]

BRIDGE = "br0"
UPLINK = "eth0"
POD_NETWORK = "10.244.0.0/16"
NEAR_PODS, FAR_PODS = "10.244.1", "10.244.2"
CLIENT_IP = f"{NEAR_PODS}.11"
NODE_IP, NODE2_IP = "192.168.50.11", "192.168.50.12"
OUTSIDE_IP = "192.168.50.1"
FIRST_BACKEND = 12
NETNS_DIR = Path("/run/netns")
PARTS = ("client", "server", "uplink", "node2", "node")  # of a node's namespaces; in this order they are deleted

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

    LINK = "at the other end of the client's own link"
    POD = "on the node's bridge"
    SUBNET = "in another subnet of the node, which has no bridge"
    NODE2 = "on another node's bridge, behind the uplink"
    ROUTED = "behind the node's uplink, with a route to the pods"
    OUTSIDE = "behind the node's uplink, with no route to the pods"

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is beside client and server."""
        more = {Where.LINK: (), Where.POD: ("uplink", "node"), Where.NODE2: ("node2", "node")}
        return more.get(self, ("node",))

    def backends(self, count: int) -> tuple[str, ...]:
        """The server's addresses; outside it has one, however many are wanted."""
        if self in {Where.ROUTED, Where.OUTSIDE}:
            return (OUTSIDE_IP,)
        pods = FAR_PODS if self in {Where.SUBNET, Where.NODE2} else NEAR_PODS
        return tuple(f"{pods}.{FIRST_BACKEND + number}" for number in range(count))

    @property
    def neighbours(self) -> tuple[str, str]:
        """What client and server have as the next hop to each other."""
        if self is Where.LINK:
            return f"{NEAR_PODS}.{FIRST_BACKEND}", CLIENT_IP
        first = _gateway(CLIENT_IP)
        return first, NODE_IP if self in {Where.ROUTED, Where.OUTSIDE} else _gateway(self.backends(1)[0])


@dataclass(frozen=True)
class Node:
    """The names and addresses of one case's namespaces; `backends` are the server's addresses."""

    name: str
    backends: tuple[str, ...]
    where: Where = Where.POD

    @property
    def netns(self) -> str:
        """The namespace that is the node; on a bare link, where there is none, the client's."""
        return f"{self.name}-node" if "node" in self.where.parts else self.client

    @property
    def node2(self) -> str:
        """The other node's namespace."""
        return f"{self.name}-node2"

    @property
    def client(self) -> str:
        """The client pod's namespace."""
        return f"{self.name}-client"

    @property
    def server(self) -> str:
        """The server's namespace."""
        return f"{self.name}-server"

    @property
    def nodes(self) -> dict[str, str]:
        """The nodes by the names that Kubernetes has for them, and their namespaces."""
        return {"node1": self.netns, **({"node2": self.node2} if "node2" in self.where.parts else {})}

    @property
    def server_node(self) -> str:
        """The name of the node that the server is a pod of."""
        return "node2" if self.where is Where.NODE2 else "node1"

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
    for part in ("client", "server", *this.where.parts):
        run(["ip", "netns", "add", f"{this.name}-{part}"])
        _ip(f"{this.name}-{part}", "link set lo up")


def _gateway(pod: str) -> str:
    """The node's own address in a pod's subnet."""
    return pod.rpartition(".")[0] + ".1"


def _mac(address: str) -> str:
    return "02:00:" + ":".join(f"{int(octet):02x}" for octet in address.split("."))


def _add_links(this: Node) -> None:
    """All links, addresses and routes."""
    where = this.where
    if where is Where.LINK:
        _add_bare_link(this)
        return
    for netns in this.nodes.values():
        set_sysctls(netns, NODE_SYSCTLS)
    if where is Where.SUBNET:
        _add_pod(this.netns, this.client, "veth-client", (CLIENT_IP,), bridged=False)
        _add_pod(this.netns, this.server, "veth-server", this.backends, bridged=False)
        return
    _add_bridge(this.netns, _gateway(CLIENT_IP))
    _add_uplink(this)
    _add_pod(this.netns, this.client, "veth-client", (CLIENT_IP,))
    if where is Where.POD:
        _add_pod(this.netns, this.server, "veth-server", this.backends)
    elif where is Where.NODE2:
        _add_bridge(this.node2, _gateway(this.backends[0]))
        _add_pod(this.node2, this.server, "veth-server", this.backends)
        _ip(this.netns, f"route add {FAR_PODS}.0/24 via {NODE2_IP}")
        _ip(this.node2, f"route add {NEAR_PODS}.0/24 via {NODE_IP}")
    elif where is Where.ROUTED:
        _ip(this.server, f"route add {POD_NETWORK} via {NODE_IP}")


def _add_bare_link(this: Node) -> None:
    _ip(
        this.client,
        f"link add eth0 address {_mac(CLIENT_IP)} type veth peer name eth0 address {_mac(this.backends[0])} "
        f"netns {this.server}",
        f"address add {CLIENT_IP}/24 dev eth0",
        "link set eth0 up",
    )
    _ip(this.server, *(f"address add {address}/24 dev eth0" for address in this.backends), "link set eth0 up")


def _add_bridge(netns: str, gateway: str) -> None:
    _ip(
        netns,
        f"link add {BRIDGE} address {_mac(gateway)} type bridge",
        f"address add {gateway}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )


def _add_uplink(this: Node) -> None:
    """The node's uplink and who is at its other end: the server, another node, or somebody who answers ARP."""
    to_node2 = this.where is Where.NODE2
    far = NODE2_IP if to_node2 else OUTSIDE_IP
    netns = this.node2 if to_node2 else f"{this.name}-uplink" if this.where is Where.POD else this.server
    _ip(
        this.netns,
        f"link add {UPLINK} address {_mac(NODE_IP)} type veth peer name eth0 address {_mac(far)} netns {netns}",
        f"address add {NODE_IP}/24 dev {UPLINK}",
        f"link set {UPLINK} up",
        f"route add default via {far} dev {UPLINK}",
    )
    _ip(netns, f"address add {far}/24 dev eth0", "link set eth0 up")


def _add_pod(node: str, netns: str, port: str, addresses: Sequence[str], *, bridged: bool = True) -> None:
    """A veth into a pod, whose node's side is a port of the bridge, or has the pod's gateway's address itself."""
    gateway = _gateway(addresses[0])
    _ip(
        node,
        f"link add {port} type veth peer name eth0 address {_mac(addresses[0])} netns {netns}",
        f"link set {port} master {BRIDGE}" if bridged else f"address add {gateway}/24 dev {port}",
        f"link set {port} up",
    )
    _ip(
        netns,
        *(f"address add {address}/24 dev eth0" for address in addresses),
        "link set eth0 up",
        f"route add default via {gateway}",
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
    """A node with its pods for the length of the `with`; nothing of it remains, whatever happens inside."""
    this = Node(name, where.backends(backends), where)
    try:
        _add_namespaces(this)
        for each in this.nodes.values():
            set_bridge_netfilter(each, bridge_netfilter)
        for pod in (this.client, this.server):
            set_sysctls(pod, POD_SYSCTLS)
        _add_links(this)
        # all neighbour tables know every address of the pods and the gateways from now on
        before_client, before_server = where.neighbours
        for address in this.backends:
            run(["ping", "-c1", "-W2", "-q", "-I", address, before_server], netns=this.server)
        run(["ping", "-c1", "-W2", "-q", before_client], netns=this.client)
        yield this
    finally:
        delete(this)


def stale_nodes() -> list[Node]:
    """The nodes of earlier runs that were killed outright. The namespaces of a live run are not among them."""
    found = sorted(path.name for path in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []
    pattern = rf"(bench(\d+)-[a-z0-9-]+)-(?:{'|'.join(PARTS)})"
    matches = [match for name in found if (match := re.fullmatch(pattern, name))]
    names = {match[1] for match in matches if not Path(f"/proc/{match[2]}").exists()}
    return [Node(name, (), Where.NODE2) for name in sorted(names)]


def delete(this: Node) -> None:
    """Delete a node's namespaces, as many of them as there are; links, rules and routes go with them."""
    for part in PARTS:
        if (NETNS_DIR / f"{this.name}-{part}").exists():
            run(["ip", "netns", "delete", f"{this.name}-{part}"])
