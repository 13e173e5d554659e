"""Who leaves the cluster does so behind the node's address: who is hidden, behind which address, and by which port.

A masqueraded flow is a flow as others, but that its source port is looked for: it is kept where it can be (N15), else
another one by chance (N21), which is the kernel's to choose. Of UDP one inside end has one outside end, whoever it
talks to, and no other inside end has that one (N1, N3): its mapping, which lives by what is sent outwards (N35).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pydatapath.reference.claims import Claim, claim_answer, enter, is_taken, with_port
from pydatapath.reference.entry import TIMEOUTS, Dropped, Entry, Moment, State
from pydatapath.reference.flows import FRESH, Flows
from pydatapath.reference.leave import way_out
from pydatapath.reference.packet import Address, FlowTuple, Packet
from pydatapath.reference.services import Choice, Impossible
from pydatapath.reference.world import Hook, Masquerade, NatType, World

__all__ = [
    "Mapping",
    "Mappings",
    "Search",
    "calls_pod",
    "inside_end",
    "is_in_the_way",
    "is_mapped",
    "outside_address",
    "unasked_inside",
]

TUNNELS: Final = frozenset({4789, 8472, 6081, 51_820})  # N19: VXLAN's two, Geneve's, WireGuard's
# N22: the kernel tries 96 ports; where more than one of five is free it misses them all once in two thousand million
FREE_ENOUGH: Final = 5
TIMEOUT: Final = TIMEOUTS["UDP", State.ESTABLISHED]  # N34


@dataclass(frozen=True, slots=True)
class Mapping:
    """The other end of a mapping, and when the inside end has last sent something by it."""

    end: Address
    last_seen: float

    def is_alive(self, now: float) -> bool:
        """N42: it is over with its time, whoever collects it."""
        return now - self.last_seen <= TIMEOUT


class Mappings:
    """UDP's mappings, by both their ends: `outside` by the inside one, `inside` by the outside one."""

    def __init__(self) -> None:
        self.outside: dict[Address, Mapping] = {}
        self.inside: dict[Address, Mapping] = {}

    def outside_of(self, inside: Address, now: float) -> Address | None:
        """The outside end of an inside one, if it has one (N1)."""
        mapping = self.outside.get(inside)
        return mapping.end if mapping and mapping.is_alive(now) and self._is_whole(inside, mapping) else None

    def inside_of(self, outside: Address, now: float) -> Address | None:
        """Who is behind an outside end; None: nobody."""
        mapping = self.inside.get(outside)
        return mapping.end if mapping and mapping.is_alive(now) else None

    def is_free(self, outside: Address, inside: Address, now: float) -> bool:
        """N3: no other inside end has it."""
        return self.inside_of(outside, now) in {None, inside}

    def enter(self, inside: Address, outside: Address, now: float) -> None:
        """Both are each other's from now on."""
        self.outside[inside], self.inside[outside] = Mapping(outside, now), Mapping(inside, now)

    def refresh(self, inside: Address, now: float) -> None:
        """N12, N35: by what an inside end sends, and the answers to that."""
        outside = self.outside_of(inside, now)
        if outside is not None and now - self.outside[inside].last_seen >= FRESH:
            self.enter(inside, outside, now)

    def _is_whole(self, inside: Address, mapping: Mapping) -> bool:
        back = self.inside.get(mapping.end)
        return back is not None and back.end == inside


# Who is hidden


def outside_address(hook: Hook, packet: Packet, to: FlowTuple, interface: str, world: World) -> str:
    """The address behind which a new flow leaves that would leave as `to`; "" where it is not to be masqueraded.

    What a pod sends is looked at where it comes in, if the way out is known there, else where the stack sends it out,
    by the uplink `interface`. So is what the node sends to a service that is served outside.
    """
    if hook is Hook.FROM_UPLINK or world.is_here(to.destination):
        return ""
    if world.masquerade is None or not world.must_hide(to.source, to.destination):
        return ""
    if hook is Hook.TO_UPLINK:
        return world.masquerade.address(to.source, interface)
    way = way_out(packet, to.destination, world)
    return world.masquerade.address(to.source, way.interface) if way else ""


def is_in_the_way(hook: Hook, mappings: Mappings, flows: Flows, moment: Moment) -> bool:
    """N20: answers to the node's own new connection would be taken for a pod's, by a flow or a mapping.

    It is entered as a flow then, and leaves by another port where its ends are a masqueraded one's.
    """
    packet = moment.packet
    if moment.world.masquerade is None or hook is not Hook.TO_UPLINK:
        return False
    answer, begins = packet.tuple.reverse, packet.protocol != "TCP" or packet.opens
    entered = answer in flows.half_open or answer in flows.main
    return begins and (entered or mappings.inside_of(answer.called, moment.now) is not None)


def calls_pod(hook: Hook, packet: Packet, world: World) -> bool:
    """Whether somebody outside calls a pod by its own address, which a router leads here: its answer is not hidden."""
    begins = packet.protocol != "TCP" or packet.opens  # N96: a stale packet exempts nobody
    return hook is Hook.FROM_UPLINK and begins and world.must_hide(packet.destination, packet.source)


def unasked_inside(hook: Hook, mappings: Mappings, moment: Moment) -> Address | None:
    """The inside end to whose mapping somebody sends who was not talked to (N10, N11); None: to no mapping."""
    if hook is not Hook.FROM_UPLINK or not is_mapped(moment.packet.tuple, moment.world.masquerade):
        return None
    return mappings.inside_of(moment.packet.tuple.called, moment.now)


def is_mapped(to: FlowTuple, how: Masquerade | None) -> bool:
    """Whether masqueraded flows of this protocol go by mappings (N1)."""
    return how is not None and to.protocol == "UDP" and how.type is not NatType.SYMMETRIC


def inside_end(packet: Packet) -> Address:
    """The end from which a packet is sent."""
    return packet.tuple.reverse.called


# By which port


@dataclass(frozen=True, slots=True)
class Search:
    """The search of a port for a new flow, of the packet that begins it. Entries have the outside address already."""

    flows: Flows
    mappings: Mappings
    moment: Moment

    def begin(self, entry: Entry, told: Choice) -> tuple[Entry, bool]:
        """Enters the flow: as it leaves, and whether it is one indeed, not its first packet sent again.

        N104: what comes in the middle of a TCP connection is taken up by its own port or not at all; N1: UDP by its
        mapping's or not at all. Raises Impossible for a port that may not be, Dropped where there is none.
        """
        known = self._known(entry)
        entry = replace(known or entry, last_seen=self.moment.now).counting(self.moment.packet)
        found = claim_answer(self.flows, entry, self.moment) if known or self._may_have(entry) else Claim.TAKEN
        if found is Claim.TAKEN:
            if known or not self._may_change:
                raise Dropped("drop_ports_taken")
            entry = with_port(entry, self._other_port(entry, told))
            found = claim_answer(self.flows, entry, self.moment)
        elif told.source_port not in {None, entry.to.source_port}:
            raise Impossible(f"the source port of {entry.to} is free, and must be kept (N15)")
        if not known and is_mapped(entry.to, self.moment.world.masquerade):
            self.mappings.enter(inside_end(self.moment.packet), entry.to.reverse.called, self.moment.now)
        return enter(self.flows, entry, self.moment, found)

    def may_find_none(self, entry: Entry) -> bool:
        """N22, N23: whether the kernel may give up: then only this new flow fails."""
        known = self._known(entry)
        if known or not self._may_change:
            return self._is_taken(known or entry) or not (known or self._may_have(entry))
        ports = self._others(entry)
        free = sum(self._is_free(with_port(entry, port)) for port in ports)
        return not self._is_free(entry) and free * FREE_ENOUGH <= len(ports)

    @property
    def _may_change(self) -> bool:
        return self.moment.packet.protocol != "TCP" or self.moment.packet.is_syn

    def _known(self, entry: Entry) -> Entry | None:
        """The entry with the outside end that the inside end has already."""
        inside = inside_end(self.moment.packet)
        if not is_mapped(entry.to, self.moment.world.masquerade):
            return None
        self.mappings.refresh(inside, self.moment.now)
        end = self.mappings.outside_of(inside, self.moment.now)
        return replace(entry, to=replace(entry.to, source=end.address, source_port=end.port)) if end else None

    def _may_have(self, entry: Entry) -> bool:
        """N3, N18, N19: never a port that answers for something else at the node, nor another inside end's."""
        end, world = entry.to.reverse.called, self.moment.world
        if end.protocol == "ICMP":
            return True
        if end.port in {0, *TUNNELS} or end in world.services or end in world.sockets:
            return False
        if world.masquerade is None or end.port in world.masquerade.node_ports:
            return False
        inside = inside_end(self.moment.packet)
        return not is_mapped(entry.to, world.masquerade) or self.mappings.is_free(end, inside, self.moment.now)

    def _is_taken(self, entry: Entry) -> bool:
        return is_taken(self.flows, entry, entry.to.source_port, self.moment)

    def _is_free(self, entry: Entry) -> bool:
        return self._may_have(entry) and not self._is_taken(entry)

    def _others(self, entry: Entry) -> range:
        """N17: the ports of the range that are odd or even as the one is that cannot be kept (RFC 4787 REQ-4)."""
        how = self.moment.world.masquerade
        ports = how.ports if how else range(0)
        return range(ports.start + (ports.start + entry.to.source_port) % 2, ports.stop, 2)

    def _other_port(self, entry: Entry, told: Choice) -> int:
        ports, port = self._others(entry), told.source_port
        tried = ports if port is None else [port]
        free = next((one for one in tried if one in ports and self._is_free(with_port(entry, one))), None)
        if free is None and port is None:
            raise Dropped("drop_ports_taken")
        if free is None:
            raise Impossible(f"{port} is no port for {entry.to}: taken, reserved or not of {ports} (N3, N19)")
        return free
