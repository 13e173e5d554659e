"""What the tests of the model share: a node of two IP versions, and who talks with whom, one packet after another.

    BRIDGE 10.1.0.1, fd00:1::1      the node            CLIENT, BACKEND, SECOND .2 to .4   its pods
    UPLINK 192.0.2.1, 2001:db8::1   it at its uplink    OUTSIDE .9                         a client
    REMOTE 10.2.0.3, fd00:2::3      another node's pod  NOWHERE 10.3.0.3, fd00:3::3        without a way

Each service is called at VIP, TCP's port 80 and UDP's port 53, and has one backend. The names alone are IPv4's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pydatapath.reference import (
    NODE,
    Address,
    Backend,
    Choice,
    Egress,
    Hook,
    Masquerade,
    Model,
    Own,
    Packet,
    Route,
    Service,
    Verdict,
    World,
)


@dataclass(frozen=True)
class Places:
    """Who is where, in one IP version."""

    BRIDGE: str
    CLIENT: str
    BACKEND: str
    SECOND: str
    UPLINK: str
    OUTSIDE: str
    REMOTE: str
    NOWHERE: str
    VIP: str
    VIP_TWO: str
    EXTERNAL: str
    UNOWNED: str  # in the service network, but no service's

    @property
    def web(self) -> Address:
        """Where TCP's service is called."""
        return Address(self.VIP, 80)

    @property
    def first(self) -> Backend:
        """Its backend."""
        return Backend(self.BACKEND, 8080, 1)

    @property
    def syn(self) -> Packet:
        """The client calls it."""
        return Packet(self.CLIENT, 40000, self.VIP, 80, flags="S")

    @property
    def services(self) -> dict[Address, Service]:
        """Both services."""
        names = Address(self.VIP, 53, "UDP")
        return {self.web: Service.for_all(1, self.first), names: Service.for_all(2, Backend(self.BACKEND, 5353, 4))}

    @property
    def endpoints(self) -> dict[str, str]:
        """Who is known on the node: both IP versions by the same interfaces."""
        pods = {self.CLIENT: "pod2", self.BACKEND: "pod3", self.SECOND: "pod4"}
        return {self.BRIDGE: NODE, self.UPLINK: NODE, **pods}


V4 = Places(
    *("10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "192.0.2.1", "192.0.2.9", "10.2.0.3", "10.3.0.3"),
    *("10.96.0.10", "10.96.0.20", "203.0.113.7", "10.96.9.9"),
)
V6 = Places(
    *("fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:1::4", "2001:db8::1", "2001:db8::9", "fd00:2::3", "fd00:3::3"),
    *("fd00:96::10", "fd00:96::20", "2001:db8:113::7", "fd00:96::99"),
)
VERSIONS = pytest.mark.parametrize("at", [V4, V6], ids=["IPv4", "IPv6"])

BRIDGE, CLIENT, BACKEND, SECOND = V4.BRIDGE, V4.CLIENT, V4.BACKEND, V4.SECOND
UPLINK, REMOTE, NOWHERE, OUTSIDE = V4.UPLINK, V4.REMOTE, V4.NOWHERE, V4.OUTSIDE
VIP, VIP_TWO, EXTERNAL = V4.VIP, V4.VIP_TWO, V4.EXTERNAL
FIRST, OTHER, FAR = V4.first, Backend(SECOND, 8080, 2), Backend(REMOTE, 8080, 3)
DNS, DNS_TWO = Backend(BACKEND, 5353, 4), Backend(SECOND, 5353, 5)
WEB, NAMES = V4.web, Address(VIP, 53, "UDP")
WORLD = World(
    (Own(V4.BRIDGE, V4.UPLINK), Own(V6.BRIDGE, V6.UPLINK)),
    services={**V4.services, **V6.services},
    endpoints={**V4.endpoints, **V6.endpoints},
    interfaces=frozenset({"pod2", "pod3", "pod4"}),
    pod_networks=("10.1.0.0/24", "fd00:1::/64"),
    exclusive_networks=("10.1.0.0/24", "fd00:1::/64"),
    cluster_networks=("10.2.0.0/24", "fd00:2::/64"),
    service_networks=("10.96.0.0/12", "fd00:96::/112"),
    routes=(
        *(Route("10.2.0.0/24", 1500), Route("192.0.2.0/24")),
        *(Route("fd00:2::/64", 1500), Route("2001:db8::/64")),
    ),
)
HIDDEN = replace(WORLD, masquerade=Masquerade((Egress(V4.UPLINK), Egress(V6.UPLINK))))  # who leaves the cluster
SYN = V4.syn
QUERY = Packet(CLIENT, 40000, VIP, 53, "UDP", length=32)
DIRECT = Packet(CLIENT, 40000, BACKEND, 8080, flags="S")  # past the service
BOTH = pytest.mark.parametrize("first", [SYN, QUERY], ids=["TCP", "UDP"])


class Talk:
    """A model, a clock, and who sends what."""

    def __init__(self, world: World = WORLD) -> None:
        self.model = Model(world)
        self.now = 1000.0

    def serve(self, at: Address, *backends: Backend) -> None:
        """Changes one service's backends."""
        self.put(at, replace(self.model.world.services[at], inside=backends, outside=backends))

    def put(self, at: Address, service: Service) -> None:
        """Changes one service."""
        self.model.world = replace(self.model.world, services={**self.model.world.services, at: service})

    def kill(self, interface: str) -> None:
        """A pod's interface goes."""
        self.model.world = replace(self.model.world, interfaces=self.model.world.interfaces - {interface})

    def send(self, packet: Packet, hook: Hook = Hook.FROM_POD, chosen: Choice | None = None) -> Verdict:
        """What becomes of a packet."""
        return self.model.receive(hook, packet, self.now, chosen=chosen)

    def goes_to(self, packet: Packet, chosen: Backend | None = None) -> str:
        """The address that a pod's packet is sent to."""
        verdict = self.send(packet, chosen=Choice(chosen))
        assert verdict.kind == "forward"
        return verdict.packet.destination

    def answer(self, to: Verdict, flags: str = "SA", hook: Hook = Hook.FROM_POD) -> Verdict:
        """What becomes of the answer to a packet that left."""
        return self.send(answer_to(to.packet, flags), hook)

    def open(self, packet: Packet, hook: Hook = Hook.FROM_POD) -> Verdict:
        """A first packet, its answer, and TCP's third; gives the first as it left."""
        there = self.send(packet, hook)
        assert self.answer(there).packet.tuple == packet.tuple.reverse
        if packet.protocol == "TCP":
            self.send(replace(packet, flags="A"), hook)
        return there


def answer_to(packet: Packet, flags: str) -> Packet:
    """What the receiver of a packet sends back to where it seems to come from."""
    back = packet.turned_round()
    return replace(back, flags={"TCP": flags, "ICMP": back.flags}.get(packet.protocol, ""), ttl=64)


def client(flags: str) -> Packet:
    """A segment of the client's."""
    return replace(SYN, flags=flags)
