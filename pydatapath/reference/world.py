"""What the datapath is told: services and their backends, who lives where, and which ways are known.

A World never changes; whoever changes a service makes a new World and puts it in the Model's place for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Final

from pydatapath.reference.packet import Address, FlowTuple, Packet, Version, version_of
from pydatapath.reference.timers import TIMEOUTS, Timeouts

__all__ = [
    "NEXT_HOPS",
    "NODE",
    "UPLINK",
    "Backend",
    "Egress",
    "Hook",
    "Machine",
    "Masquerade",
    "NatType",
    "Own",
    "Route",
    "Service",
    "World",
    "is_within",
]

NODE: Final = "node"  # the interface of the node's own addresses
UPLINK: Final = "uplink"  # the interface to other machines, where there is one
# Of the node's own routes to services, over the bridge: nobody has these addresses
NEXT_HOPS: Final[Mapping[Version, str]] = MappingProxyType({4: "169.254.218.122", 6: "fd70:7964:6174:6170::1"})

ANY_PORTS: Final = range(1024, 65_536)  # for a pod's port that cannot be kept
LOW_PORTS: Final = ((512, range(1, 512)), (1024, range(600, 1024)))  # N16: for one below 512, for one below 1024

# N85: what is of one link, of this host or of many receivers
NEVER_TRANSLATED: Final = (
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
    *("::/127", "fe80::/10", "ff00::/8"),
)


class Hook(StrEnum):
    """Where a packet is met. What leaves is met only if the node itself sends it: else it was met coming in."""

    FROM_POD = "from_pod"
    FROM_UPLINK = "from_uplink"
    TO_BRIDGE = "to_bridge"
    TO_UPLINK = "to_uplink"
    TO_LOOPBACK = "to_loopback"

    @property
    def is_egress(self) -> bool:
        """Whether the node's own stack has had the packet, and has routed it already."""
        return self in {Hook.TO_BRIDGE, Hook.TO_UPLINK, Hook.TO_LOOPBACK}


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """One endpoint of one service port. `number` and `generation` tell it from an older one at the same place (C9)."""

    address: str
    port: int
    number: int = 1
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Service:
    """One service port at one address where it is called.

    Callers inside the cluster and outside may have different backends (S50 to S55). Where theirs are none, but others
    exist that the traffic policy keeps from them, `drop_...` says so (S36, S51). `affinity`: seconds (S73), 0: none.
    `sources`: loadBalancerSourceRanges, the networks that may call (S62); None: everybody. `shared`: by which number
    the ports of its Service keep their clients together (C11); 0: it keeps its own.
    """

    number: int
    inside: tuple[Backend, ...] = ()
    outside: tuple[Backend, ...] = ()
    drop_inside: bool = False
    drop_outside: bool = False
    affinity: float = 0
    sources: tuple[str, ...] | None = None
    shared: int = 0

    @classmethod
    def for_all(cls, number: int, *backends: Backend, affinity: float = 0, shared: int = 0) -> Service:
        """A service whose traffic policies are Cluster: the same backends for all (S20, S28)."""
        return cls(number, backends, backends, affinity=affinity, shared=shared)

    @property
    def clients(self) -> int:
        """The number by which its clients are kept."""
        return self.shared or self.number


@dataclass(frozen=True, slots=True)
class Route:
    """A network to which a way is known. `mtu` None: not looked at, as where the next hop's MAC is not known yet.
    `interface`: the uplink that it leads by.
    """

    network: str
    mtu: int | None = None
    interface: str = UPLINK


@dataclass(frozen=True, slots=True)
class Machine:
    """What a Node object tells: a machine's own addresses, and the networks of its pods."""

    addresses: frozenset[str] = frozenset()
    pod_networks: tuple[str, ...] = ()


class NatType(StrEnum):
    """What stays of UDP's mappings whoever is talked to, and who may answer (RFC 4787 4 and 5).

    ENDPOINT_INDEPENDENT: a port is the same for all, and only who was talked to may answer (N1, N10). SYMMETRIC:
    neither port nor answer is another's business. FULL_CONE: everybody may send to a port that somebody has (N11).
    """

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    SYMMETRIC = "symmetric"
    FULL_CONE = "full-cone"


@dataclass(frozen=True, slots=True)
class Egress:
    """The address behind which pods leave by an uplink; `network`: those pods only."""

    address: str
    interface: str = UPLINK
    network: str = ""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """How who leaves the cluster is hidden. Of `egress` the first that fits counts (N7).

    `ports`: those that are taken where a pod's own cannot be kept, ANY_PORTS unless a range was asked for;
    `node_ports`, first and last, are never (N19). `unmasqueraded`: networks to which pods show themselves, beside
    the cluster's own. `pod_flows`: so many flows a pod may begin at once, and again in so many seconds (N24).
    """

    egress: tuple[Egress, ...]
    type: NatType = NatType.ENDPOINT_INDEPENDENT
    ports: range = ANY_PORTS
    node_ports: range = range(30_000, 32_768)
    unmasqueraded: tuple[str, ...] = ()
    pod_flows: tuple[int, float] | None = None

    def ports_for(self, to: FlowTuple) -> range:
        """Those for a flow whose own source port this is. N16: unless a range was asked for a low one stays low, in
        Linux's classes: a server may let in nobody else. An identifier has no class.
        """
        if self.ports != ANY_PORTS or to.protocol == "ICMP":
            return self.ports
        return next((one for below, one in LOW_PORTS if to.source_port < below), self.ports)

    def is_of(self, version: Version) -> bool:
        """Whether anybody is hidden in this IP version."""
        return any(version_of(one.address) == version for one in self.egress)

    def address(self, source: str, interface: str) -> str:
        """The outside address of a pod that leaves by an uplink; "" where there is none of its IP version."""
        fitting = (
            one.address
            for one in self.egress
            if one.interface == interface
            and version_of(one.address) == version_of(source)
            and (not one.network or is_within(source, (one.network,)))
        )
        return next(fitting, "")

    def addresses(self, source: str) -> set[str]:
        """All outside addresses of a pod, one for each uplink at most."""
        return {self.address(source, one.interface) for one in self.egress}


@dataclass(frozen=True, slots=True)
class Own:
    """The node's own addresses of one IP version: what others see of it.

    `address`: what a pod sees that calls itself. `uplink`: what a backend elsewhere sees of a caller from elsewhere; ""
    where no uplink is known.
    """

    address: str
    uplink: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """All that is decided on besides the flows, of one IP version or of both.

    `own`: the node's own addresses, for each IP version that it has. `interfaces`: the pods' interfaces that are there.
    `endpoints`: the interface behind which each known address is, NODE for the node's own. `targets`: addresses where
    a backend listens, besides those of the services here. `draining`: backends that take no new flows but keep those
    that they have (S94). `cluster_networks`: the other nodes' pods, as configured; `nodes`: as Node objects tell, with
    the nodes' own addresses. `exclusive_networks`: the pod networks that are
    this node's alone. `cluster_ips`: those outside the service networks. `external_ips`: external and balancers'
    addresses that are no node's. `masquerade` None: who leaves the cluster does so as he is. `sockets`: where the
    node's own listen. `timeouts`: seconds without a packet, by protocol and state (C14). `quarantine`: for so many
    seconds an outside port that was freed is no other pod's (N25). `pod_fast_path`: what the node's pods send to each
    other goes past the bridge.
    """

    own: tuple[Own, ...]
    services: Mapping[Address, Service] = field(default_factory=lambda: MappingProxyType({}))
    endpoints: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    interfaces: frozenset[str] = frozenset()
    pod_networks: tuple[str, ...] = ()
    exclusive_networks: tuple[str, ...] = ()
    service_networks: tuple[str, ...] = ()
    cluster_networks: tuple[str, ...] = ()
    nodes: tuple[Machine, ...] = ()
    cluster_ips: frozenset[str] = frozenset()
    external_ips: frozenset[str] = frozenset()
    routes: tuple[Route, ...] = ()
    targets: frozenset[Address] = frozenset()
    draining: frozenset[Backend] = frozenset()
    masquerade: Masquerade | None = None
    sockets: frozenset[Address] = frozenset()
    timeouts: Timeouts = field(default_factory=lambda: TIMEOUTS)
    quarantine: float = 120
    pod_fast_path: bool = False

    def own_of(self, address: str) -> Own:
        """The node's own addresses of the IP version that this one is of."""
        return next(one for one in self.own if version_of(one.address) == version_of(address))

    def next_hop(self, address: str) -> str:
        """Where the node's own routes to services lead, of the IP version of this address."""
        return NEXT_HOPS[version_of(address)]

    @property
    def has_uplink(self) -> bool:
        """Whether there is one, of whichever IP version its addresses are."""
        return any(one.uplink for one in self.own)

    def is_pod(self, address: str) -> bool:
        """Whether a pod of this node may have it."""
        return is_within(address, self.pod_networks)

    def is_in_cluster(self, address: str) -> bool:
        """Whether a pod of any node may have it: such callers are inside (S28, S52, S54).

        A node's own address is no pod's, in whatever network of a node's pods it is.
        """
        configured = self.is_pod(address) or is_within(address, self.cluster_networks)
        told = any(is_within(address, one.pod_networks) for one in self.nodes)
        return configured or (told and not self.is_nodes(address))

    def is_nodes(self, address: str) -> bool:
        """Whether it is an address that some Node object names."""
        return any(address in one.addresses for one in self.nodes)

    def is_in_service_network(self, address: str) -> bool:
        """Whether the way to it leads over the bridge (S103)."""
        return is_within(address, self.service_networks)

    def is_by_bridge(self, address: str) -> bool:
        """Whether the node's own route there leads over the bridge, to the next hop for services, or is that one."""
        return self.is_in_service_network(address) or address == self.next_hop(address)

    def is_service_address(self, address: str) -> bool:
        """Whether only a service may own it (S38)."""
        return address in self.cluster_ips or self.is_in_service_network(address)

    def is_cluster_ip(self, address: str) -> bool:
        """Whether a service owns it and is called there only: its other ports are refused (S37)."""
        return self.is_service_address(address) and (
            address in self.cluster_ips or any(at.address == address for at in self.services)
        )

    def answers_ping(self, address: str) -> bool:
        """Whether a service owns it, and nobody else would answer (C3)."""
        return address in self.external_ips or self.is_cluster_ip(address)

    def is_here(self, address: str) -> bool:
        """Whether who answers to it is known to be on this node: such an answer comes back through it anyway (C4)."""
        return address in self.endpoints

    def is_own(self, address: str) -> bool:
        """Whether it is the node's own."""
        return self.endpoints.get(address) == NODE

    def is_spoofed(self, packet: Packet) -> bool:
        """N87: whether a packet from elsewhere has a source that only one from here can have, or is its own sender."""
        here = is_within(packet.source, self.exclusive_networks) or self.is_in_service_network(packet.source)
        return here or packet.source == packet.destination

    def must_hide(self, source: str, destination: str) -> bool:
        """Whether a packet with these addresses must not leave by an uplink (N84, C13): told by them alone (N96)."""
        if self.masquerade is None or not self.is_pod(source) or not self.masquerade.is_of(version_of(source)):
            return False
        shown = (*self.service_networks, *self.masquerade.unmasqueraded, *NEVER_TRANSLATED)
        is_ours = self.is_in_cluster(destination) or self.is_nodes(destination)
        return not is_ours and not is_within(destination, shown)

    def has_nobody(self, address: str) -> bool:
        """C8: whether no pod will answer to it: its interface is no more, or it is this node's alone and nobody's."""
        if not self.is_here(address):
            return is_within(address, self.exclusive_networks)
        return self.has_lost(address)

    def has_lost(self, address: str) -> bool:
        """Whether a pod that is known to have it has no interface any more."""
        return self.is_here(address) and not self.is_own(address) and self.endpoints[address] not in self.interfaces

    def is_target(self, address: Address) -> bool:
        """Whether a backend listens there: direct connections to it are kept apart from a service's (N93)."""
        return address in self.targets or any(
            address == Address(backend.address, backend.port, at.protocol)
            for at, service in self.services.items()
            for backend in (*service.inside, *service.outside)
        )

    def serves(self, backend: Backend | None) -> bool:
        """Whether a flow's backend serves still (C8, C9). None, a plain flow's, is never gone."""
        return backend in self.draining or self.takes_new_flows(backend)

    def takes_new_flows(self, backend: Backend | None) -> bool:
        """Whether a flow's backend may be chosen still: it serves, and does not drain (S94, N102)."""
        used = (service.inside + service.outside for service in self.services.values())
        return backend is None or any(backend in backends for backends in used)

    def route(self, address: str) -> Route | None:
        """The way to an address: the longest prefix has it; None where none is known."""
        fitting = (route for route in self.routes if is_within(address, (route.network,)))
        return max(fitting, key=lambda route: ip_network(route.network).prefixlen, default=None)

    def learned(self, address: str, interface: str) -> World:
        """As a bridge learns: a pod's address is where it sends from. The node's own are told, not learned."""
        if not self.is_pod(address) or self.endpoints.get(address) in {NODE, interface}:
            return self
        return replace(self, endpoints=MappingProxyType({**self.endpoints, address: interface}))


@lru_cache(maxsize=4096)
def is_within(address: str, networks: tuple[str, ...]) -> bool:
    """Whether one of the networks has the address (S9); one of the other IP version never has."""
    return any(ip_address(address) in ip_network(network) for network in networks)
