"""What a lab consists of: pure data, from a LabSpec to namespaces, bridges, veths, addresses and routes.

    NAME-outside  eth0 192.168.50.100
        |
    NAME-switch   bridge `uplink`, no address: a switch, it only connects
        |
    NAME-nodeN    eth0 192.168.50.(10+N), bridge br0 10.244.N.1/24, routes to the other nodes' pods
        |
    NAME-nodeN-podI  eth0 10.244.N.(10+I), the other end is `podI` on the node, a port of br0

The numbers follow from the names, so a lab that exists is known from its namespaces' names alone: no state file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from pydatapath.errors import LabError

__all__ = [
    "OUTSIDE_IP",
    "UPLINK_NETWORK",
    "Bridge",
    "LabSpec",
    "Namespace",
    "Place",
    "Route",
    "Topology",
    "Veth",
    "containers_of",
    "node_ip",
    "parse_place",
    "places_of",
    "pod_cidr",
    "pod_gateway",
    "pod_ip",
    "topology_of",
]

UPLINK_NETWORK = "192.168.50.0/24"
OUTSIDE_IP = "192.168.50.100"
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

# rp_filter 1 is what many distributions set, so the lab proves that the datapath works with it. A node tells its pods
# nothing of shorter ways (redirects): they would go around the bridge that the lab is to show.
_ROUTER = {"net/ipv4/ip_forward": "1"} | {
    f"net/ipv4/conf/{where}/{key}": value
    for where in ("all", "default")
    for key, value in (("rp_filter", "1"), ("send_redirects", "0"))
}


@dataclass(frozen=True)
class LabSpec:
    """What to build: `nodes` nodes with `pods` pods each. Raises LabError when name or numbers will not do."""

    name: str = "lab"
    nodes: int = 2
    pods: int = 2

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


@dataclass(frozen=True)
class Namespace:
    """A namespace with what is set in it before it has interfaces; `optional`: where the kernel has such a thing."""

    name: str
    sysctls: MappingProxyType[str, str]
    optional: MappingProxyType[str, str]


@dataclass(frozen=True)
class Bridge:
    """A bridge with a fixed MAC; `address` with its prefix length, "" for none."""

    netns: str
    name: str
    mac: str
    address: str = ""


@dataclass(frozen=True)
class Veth:
    """A veth pair: `port` of `bridge` in `netns`, and `eth0` with `mac` and `address` (with length) in `peer_netns`."""

    netns: str
    port: str
    bridge: str
    peer_netns: str
    mac: str
    address: str


@dataclass(frozen=True)
class Route:
    """In `netns`, packets for `destination` (a network or `default`) go to `via`."""

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
    bridges = [Bridge(switch.netns, "uplink", _mac("192.168.50.0"))]
    bridges += [
        Bridge(node.netns, "br0", _mac(pod_gateway(node.node)), f"{pod_gateway(node.node)}/24") for node in nodes
    ]
    veths = [_veth(switch, place.short_name, "uplink", place) for place in (outside, *nodes)]
    veths += [_veth(Place(lab, node=pod.node), f"pod{pod.pod}", "br0", pod) for pod in pods]
    routes = [
        Route(node.netns, pod_cidr(other.node), other.address) for node in nodes for other in nodes if other != node
    ]
    routes += [Route(node.netns, "default", OUTSIDE_IP) for node in nodes]
    routes += [Route(pod.netns, "default", pod_gateway(pod.node)) for pod in pods]
    namespaces = tuple(map(_namespace, (switch, outside, *nodes, *pods)))
    return Topology(namespaces, tuple(bridges), tuple(veths), tuple(routes))


def _namespace(place: Place) -> Namespace:
    optional = _QUIET_IPV6 | (_PLAIN_BRIDGE if place.kind in ("switch", "node") else {})
    sysctls = _ROUTER if place.kind == "node" else {}
    return Namespace(place.netns, MappingProxyType(sysctls), MappingProxyType(optional))


def _veth(holder: Place, port: str, bridge: str, place: Place) -> Veth:
    return Veth(holder.netns, port, bridge, place.netns, _mac(place.address), f"{place.address}/24")


def _mac(address: str) -> str:
    """A locally administered MAC that shows the IPv4 address it belongs to: 02:00 and the four bytes."""
    return "02:00:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))
