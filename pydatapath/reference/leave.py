"""Where a packet goes once its addresses are known, and what it looks like there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from pydatapath.reference.errors import readdressed
from pydatapath.reference.packet import FlowTuple, Packet, version_of
from pydatapath.reference.world import NODE, Hook, Route, World

__all__ = ["Kind", "Verdict", "leave", "way_out"]

Kind = Literal["forward", "pass", "drop", "node", "answer"]

# An interface takes this much more than its MTU, for a VLAN's tag: VLAN_HLEN in Linux's __is_skb_forwardable
TAG_ROOM = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a packet.

    `kind`: "forward", straight to where `to` says: a pod's address, or "route" for another machine; "node", to the
    node's own sockets, up where it came in ("node"), or by the "bridge", the "uplink" or the "loopback" interface;
    "pass", left to the "stack"; "answer", by the datapath itself; or "drop". `packet`: as it leaves, or as it was when
    it was dropped. `reason`: the counter of a drop, or of what is left to the stack unread (N108). `refused`: its
    sender is told by a RST, or by ICMP port unreachable: type 3, code 3, or of ICMPv6 type 1, code 4 (C2); who finds no
    port, or may have none, by ICMP alone, code 13, or 1 (N23, N24). `opened`: a flow began with it. `walked`: it took
    more than a look at a known flow.
    """

    kind: Kind
    packet: Packet
    to: str = ""
    reason: str = ""
    refused: bool = False
    opened: bool = False
    walked: bool = True

    @property
    def counted(self) -> tuple[str, ...]:
        """The counters that it moves, by name (N108)."""
        return (*(["new_flow"] if self.opened else []), *([self.reason] if self.reason else []))


class _Way(Enum):
    POD = auto()
    NODE = auto()
    ROUTE = auto()
    STACK = auto()  # no way known: the stack may know more
    STRAIGHT = auto()  # it is on its way already


def leave(hook: Hook, packet: Packet, to: FlowTuple, world: World) -> Verdict:
    """Sends the packet with these addresses (N99: whatever its flags are), one hop on where it is routed (N72).

    An error goes where the direction goes that it is of.
    """
    if _has_lost_its_sum(packet, to):
        return Verdict("drop", packet, reason="drop_rewrite")
    way = _way(hook, packet, to, world)
    if packet.error:
        translated = readdressed(packet, to, world, is_here=way in {_Way.POD, _Way.NODE})
    else:
        translated = packet.readdressed(to)
    if _is_routed(hook, way):
        if packet.ttl <= 1 and world.is_own(packet.tuple.destination):
            return Verdict("drop", packet, reason="drop_hops")  # or the node would take it for its own
        if packet.ttl <= 1:
            return Verdict("pass", packet, "stack")  # which answers "time exceeded", about the packet as it came
        if way is not _Way.STACK:
            translated = translated.one_hop_on()
    if way is _Way.STACK and not hook.is_egress:
        return _to_stack(packet, translated, to, world)
    match way:
        case _Way.POD:
            return Verdict("forward", translated, to.destination)
        case _Way.NODE:
            return Verdict("node", translated, _up(hook, packet, translated.source, world))
        case _Way.ROUTE:
            return Verdict("forward", translated, "route")
        case _Way.STACK:
            return Verdict("drop", translated, reason="drop_no_route")  # the stack has had it already
    return Verdict("pass", translated, "stack")


def _to_stack(packet: Packet, translated: Packet, to: FlowTuple, world: World) -> Verdict:
    """N71: what is too long, and under another source, the stack has as it came: it cuts that up, or tells who sent it,
    and what it sends is translated at the uplink. So it has what would be under the node's own address of IPv4, which
    it would take for forged. But for a cluster IP, which it expects. For another destination that is no way.
    """
    too_long = world.route(to.destination) is not None
    forged = version_of(to.source) == 4 and world.is_own(to.source)
    expected = packet.error or packet.source == to.source or world.is_by_bridge(to.source)
    if expected or not (too_long or forged):
        return Verdict("pass", translated, "stack")
    if packet.destination != to.destination:
        return Verdict("drop", packet, reason="drop_no_route")
    return Verdict("pass", packet, "stack")


def _way(hook: Hook, packet: Packet, to: FlowTuple, world: World) -> _Way:
    """A pod of this node by its interface (N30, S40), another machine as the routing table says."""
    if hook is Hook.TO_UPLINK and packet.tuple.destination == to.destination:
        return _Way.STRAIGHT  # the node's own direct connection, under another port
    interface = world.endpoints.get(to.destination)
    if interface is not None:
        return _Way.NODE if interface == NODE else _Way.POD
    return _Way.STACK if way_out(packet, to.destination, world) is None else _Way.ROUTE


def way_out(packet: Packet, destination: str, world: World) -> Route | None:
    """The way to another machine; None where the stack may know more, and says "too long" to the sender (N71)."""
    route = world.route(destination)
    return None if route and route.mtu is not None and packet.length > route.mtu + TAG_ROOM else route


def _is_routed(hook: Hook, way: _Way) -> bool:
    """N72: within the pods' subnet a TTL stays; what the node itself sends is not routed by it."""
    if way is _Way.POD:
        return hook is Hook.FROM_UPLINK
    return way in {_Way.ROUTE, _Way.STACK} and not hook.is_egress


def _has_lost_its_sum(packet: Packet, to: FlowTuple) -> bool:
    """N82: SCTP's checksum covers the ports; where they change, its own change depends on the whole packet's length."""
    ports = packet.source_port, packet.destination_port
    return packet.protocol == "SCTP" and packet.is_first and ports != (to.source_port, to.destination_port)


def _up(hook: Hook, packet: Packet, source: str, world: World) -> str:
    """N90: a packet comes in where the route to its new source leads, or a reverse path filter drops it.

    To a service network that is the bridge, to the node's own address, of its node ports, the loopback interface, to an
    external or balancer's address the uplink. A router that tells of an error has its own address, and comes that way.
    """
    by_bridge = world.is_by_bridge(source)
    if world.is_own(source) and not by_bridge:
        return "loopback"
    there_already = {Hook.FROM_POD: by_bridge, Hook.FROM_UPLINK: not by_bridge}
    if packet.source == source or there_already.get(hook, False):
        return NODE
    if by_bridge:
        return "bridge"
    return "uplink" if world.has_uplink else NODE
