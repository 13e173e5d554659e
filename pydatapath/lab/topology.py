"""What a lab consists of: pure data, from a LabSpec to namespaces, bridges, veths, addresses and routes.

    NAME-outside  eth0 192.168.50.100
        |
    NAME-switch   bridge `uplink`, no address: a switch, it only connects
        |
    NAME-nodeN    eth0 192.168.50.(10+N), bridge br0 10.244.N.1/24, routes to the other nodes' pods
        |
    NAME-nodeN-podI  eth0 10.244.N.(10+I), the other end is `podI` on the node, a port of br0

The numbers follow from the names, so a lab that exists is known from its namespaces' names alone: no state file.

A dual-stack lab has IPv6 beside it, with numbers that read alike: uplink network 2001:db8:50::/64, where the outside is
::100 and node N ::(10+N); node N's pods are fd00:10:244:N::/64, its bridge ::1 and pod I ::(10+I).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from pydatapath.errors import LabError

__all__ = [
    "OUTSIDE_IP",
    "OUTSIDE_IP6",
    "UPLINK_NETWORK",
    "UPLINK_NETWORK6",
    "Bridge",
    "LabSpec",
    "Namespace",
    "Place",
    "Route",
    "Topology",
    "Veth",
    "containers_of",
    "node_ip",
    "node_ip6",
    "parse_place",
    "places_of",
    "pod_cidr",
    "pod_cidr6",
    "pod_gateway",
    "pod_gateway6",
    "pod_ip",
    "pod_ip6",
    "topology_of",
]

UPLINK_NETWORK = "192.168.50.0/24"
OUTSIDE_IP = "192.168.50.100"
UPLINK_NETWORK6 = "2001:db8:50::/64"
OUTSIDE_IP6 = "2001:db8:50::100"
MAX_NODES = 89  # .11 to .99 of the uplink network; .100 is the outside's
MAX_PODS = 244  # .11 to .254 of a node's pod network
MAX_NAME = 32  # for tidy tables; the kernel would take a file name of 255

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PLACE = re.compile(r"(?P<lab>.+)-(?:(?P<special>switch|outside)|node(?P<node>[1-9]\d*)(?:-pod(?P<pod>[1-9]\d*))?)")

# No duplicate address detection and no router solicitations: a lab is ready when it is up. Kernels without IPv6 have
# none of these; kernels without br_netfilter have none of the second, which would lead bridged packets through
# netfilter's hooks and is on in a fresh namespace: a plain bridge is to be a plain bridge.
_QUIET_IPV6 = {
    f"net/ipv6/conf/{where}/{key}": "0" for where in ("all", "default") for key in ("accept_dad", "accept_ra")
}
_PLAIN_BRIDGE = {f"net/bridge/bridge-nf-call-{tables}": "0" for tables in ("iptables", "ip6tables", "arptables")}

# IPv6 with link-local addresses, also where new namespaces inherit that these are off; and nobody follows a redirect,
# which a node cannot be told not to send. The FIB helper of eBPF asks the forwarding of the interface that a packet
# came in by, a bridge's port: ports have it from `default`.
_DUAL_STACK = {
    f"net/ipv6/conf/{where}/{key}": "0"
    for where in ("all", "default")
    for key in ("disable_ipv6", "addr_gen_mode", "accept_redirects")
}
_ROUTER6 = {f"net/ipv6/conf/{where}/forwarding": "1" for where in ("all", "default")}

# rp_filter 1 is what many distributions set, so the lab proves that the datapath works with it. A node tells its pods
# nothing of shorter ways (redirects): they would go around the bridge that the lab is to show.
_ROUTER = {"net/ipv4/ip_forward": "1"} | {
    f"net/ipv4/conf/{where}/{key}": value
    for where in ("all", "default")
    for key, value in (("rp_filter", "1"), ("send_redirects", "0"))
}


@dataclass(frozen=True)
class LabSpec:
    """What to build: `nodes` nodes with `pods` pods each, with IPv6 beside IPv4 when `dual_stack`.

    Raises LabError when name or numbers will not do.
    """

    name: str = "lab"
    nodes: int = 2
    pods: int = 2
    dual_stack: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {self.nodes}")
        if not 0 <= self.pods <= MAX_PODS:
            raise LabError(f"a node of a lab has 0 to {MAX_PODS} pods, not {self.pods}")


@dataclass(frozen=True, order=True)
class Place:
    """One namespace of a lab. `node` and `pod` count from 1; 0 means that it is none: the switch or the outside."""

    lab: str
    special: str = ""
    node: int = 0
    pod: int = 0

    @property
    def short_name(self) -> str:
        """The name within its lab: `switch`, `outside`, `node1`, `node1-pod2`."""
        return self.special or f"node{self.node}" + (f"-pod{self.pod}" if self.pod else "")

    @property
    def netns(self) -> str:
        """The name of the namespace."""
        return f"{self.lab}-{self.short_name}"

    @property
    def kind(self) -> str:
        """`switch`, `outside`, `node` or `pod`."""
        return self.special or ("pod" if self.pod else "node")

    @property
    def address(self) -> str:
        """The IPv4 address of its eth0, "" for the switch."""
        if self.special:
            return OUTSIDE_IP if self.special == "outside" else ""
        return pod_ip(self.node, self.pod) if self.pod else node_ip(self.node)

    @property
    def address6(self) -> str:
        """The IPv6 address that its eth0 has in a dual-stack lab, "" for the switch."""
        if self.special:
            return OUTSIDE_IP6 if self.special == "outside" else ""
        return pod_ip6(self.node, self.pod) if self.pod else node_ip6(self.node)


@dataclass(frozen=True)
class Namespace:
    """A namespace with what is set in it before it has interfaces; `optional`: where the kernel has such a thing."""

    name: str
    sysctls: MappingProxyType[str, str]
    optional: MappingProxyType[str, str]


@dataclass(frozen=True)
class Bridge:
    """A bridge with a fixed MAC; `address` and `address6` with their prefix lengths, "" for none."""

    netns: str
    name: str
    mac: str
    address: str = ""
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that it has."""
        return tuple(filter(None, (self.address, self.address6)))


@dataclass(frozen=True)
class Veth:
    """A veth pair: `port` of `bridge` in `netns`, and `eth0` with `mac` and `address` (with length) in `peer_netns`.

    `address6` is "" but in a dual-stack lab.
    """

    netns: str
    port: str
    bridge: str
    peer_netns: str
    mac: str
    address: str
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that eth0 has."""
        return tuple(filter(None, (self.address, self.address6)))


@dataclass(frozen=True)
class Route:
    """In `netns`, packets for `destination` (a network or `default`) go to `via`, which tells the family."""

    netns: str
    destination: str
    via: str


@dataclass(frozen=True)
class Topology:
    """A whole lab, in the order to build it in; the switch, by which a lab is found, is the first namespace."""

    namespaces: tuple[Namespace, ...]
    bridges: tuple[Bridge, ...]
    veths: tuple[Veth, ...]
    routes: tuple[Route, ...]


def check_name(name: str) -> None:
    """Raise LabError when `name` cannot be a lab's."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        rule = f"letters, digits and dashes, at most {MAX_NAME}, not starting with a dash"
        raise LabError(f"{name!r} cannot be the name of a lab", hint=f"a name is {rule}")


def node_ip(node: int) -> str:
    """The address of node `node` on the uplink network."""
    return f"192.168.50.{10 + node}"


def pod_ip(node: int, pod: int) -> str:
    """The address of pod `pod` on node `node`."""
    return f"10.244.{node}.{10 + pod}"


def pod_gateway(node: int) -> str:
    """The address of node `node`'s bridge, which is its pods' default gateway."""
    return f"10.244.{node}.1"


def pod_cidr(node: int) -> str:
    """The network of node `node`'s pods."""
    return f"10.244.{node}.0/24"


def node_ip6(node: int) -> str:
    """The IPv6 address of node `node` on the uplink network: its digits read as those of `node_ip`."""
    return f"2001:db8:50::{10 + node}"


def pod_ip6(node: int, pod: int) -> str:
    """The IPv6 address of pod `pod` on node `node`."""
    return f"fd00:10:244:{node}::{10 + pod}"


def pod_gateway6(node: int) -> str:
    """The IPv6 address of node `node`'s bridge, which is its pods' default gateway."""
    return f"fd00:10:244:{node}::1"


def pod_cidr6(node: int) -> str:
    """The IPv6 network of node `node`'s pods."""
    return f"fd00:10:244:{node}::/64"


def containers_of(place: Place) -> tuple[str, ...]:
    """The names of the containers in a pod; (): it is not divided into containers."""
    return ("app", "sidecar") if (place.node, place.pod) == (1, 1) else ()


def parse_place(netns: str) -> Place | None:
    """The place that a namespace's name stands for, None when it is not a name of ours."""
    match = _PLACE.fullmatch(netns)
    if match is None or not _NAME.fullmatch(match["lab"]) or len(match["lab"]) > MAX_NAME:
        return None
    place = Place(match["lab"], match["special"] or "", int(match["node"] or 0), int(match["pod"] or 0))
    return place if place.node <= MAX_NODES and place.pod <= MAX_PODS else None


def places_of(names: Iterable[str]) -> dict[str, list[Place]]:
    """The labs among namespaces called `names`: lab name to its places, sorted. What has no switch is not a lab."""
    labs: dict[str, list[Place]] = {}
    for place in sorted(filter(None, map(parse_place, names))):
        labs.setdefault(place.lab, []).append(place)
    return {lab: places for lab, places in labs.items() if Place(lab, "switch") in places}


def topology_of(spec: LabSpec) -> Topology:
    """All that has to be built for `spec`."""
    lab = spec.name
    switch, outside = Place(lab, "switch"), Place(lab, "outside")
    nodes = [Place(lab, node=node) for node in range(1, spec.nodes + 1)]
    pods = [Place(lab, node=node.node, pod=pod) for node in nodes for pod in range(1, spec.pods + 1)]
    dual = spec.dual_stack
    veths = [_veth(switch, place.short_name, "uplink", place, dual) for place in (outside, *nodes)]
    veths += [_veth(Place(lab, node=pod.node), f"pod{pod.pod}", "br0", pod, dual) for pod in pods]
    return Topology(
        tuple(_namespace(place, dual) for place in (switch, outside, *nodes, *pods)),
        (Bridge(switch.netns, "uplink", _mac("192.168.50.0")), *(_bridge(node, dual) for node in nodes)),
        tuple(veths),
        (*_routes(nodes, pods), *(_routes6(nodes, pods) if dual else ())),
    )


def _namespace(place: Place, dual: bool) -> Namespace:
    optional = _QUIET_IPV6 | (_PLAIN_BRIDGE if place.kind in ("switch", "node") else {})
    sysctls = _ROUTER if place.kind == "node" else {}
    if dual:
        sysctls = sysctls | _DUAL_STACK | (_ROUTER6 if place.kind == "node" else {})
    return Namespace(place.netns, MappingProxyType(sysctls), MappingProxyType(optional))


def _bridge(node: Place, dual: bool) -> Bridge:
    gateway, gateway6 = pod_gateway(node.node), pod_gateway6(node.node)
    return Bridge(node.netns, "br0", _mac(gateway), f"{gateway}/24", f"{gateway6}/64" if dual else "")


def _veth(holder: Place, port: str, bridge: str, place: Place, dual: bool) -> Veth:
    address6 = f"{place.address6}/64" if dual else ""
    return Veth(holder.netns, port, bridge, place.netns, _mac(place.address), f"{place.address}/24", address6)


def _routes(nodes: list[Place], pods: list[Place]) -> list[Route]:
    routes = [
        Route(node.netns, pod_cidr(other.node), other.address) for node in nodes for other in nodes if other != node
    ]
    routes += [Route(node.netns, "default", OUTSIDE_IP) for node in nodes]
    return routes + [Route(pod.netns, "default", pod_gateway(pod.node)) for pod in pods]


def _routes6(nodes: list[Place], pods: list[Place]) -> list[Route]:
    routes = [
        Route(node.netns, pod_cidr6(other.node), other.address6) for node in nodes for other in nodes if other != node
    ]
    routes += [Route(node.netns, "default", OUTSIDE_IP6) for node in nodes]
    return routes + [Route(pod.netns, "default", pod_gateway6(pod.node)) for pod in pods]


def _mac(address: str) -> str:
    """A locally administered MAC that shows the IPv4 address it belongs to: 02:00 and the four bytes."""
    return "02:00:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))
