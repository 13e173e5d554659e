"""Who leaves the cluster does so behind the node's address: who is hidden, behind which address, and by which port.

A masqueraded flow is a flow as others, but that its source port is looked for: it is kept where it can be (N15), else
another one by chance (N21), which is the kernel's to choose. Of UDP one inside end has one outside end, whoever it
talks to, and no other inside end has that one (N1, N3): its mapping, which lives by what is sent outwards (N35).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pydatapath.reference.claims import FREE_ENOUGH, Claim, claim_answer, enter, is_taken, with_port
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import FRESH, Flows
from pydatapath.reference.leave import way_out
from pydatapath.reference.packet import Address, FlowTuple, Packet
from pydatapath.reference.services import Choice, Impossible
from pydatapath.reference.timers import TIMEOUTS, State
from pydatapath.reference.world import UPLINK, Hook, Masquerade, NatType, World

__all__ = [
    "Inside",
    "Mapping",
    "Mappings",
    "Search",
    "calls_pod",
    "hairpin",
    "inside_end",
    "is_in_the_way",
    "is_mapped",
    "outside_address",
    "unasked_inside",
    "waits",
]

TUNNELS: Final = frozenset({4789, 8472, 6081, 51_820})  # VXLAN's two, Geneve's, WireGuard's
RESERVED: Final = TUNNELS | {68, 546}  # N19: and those of DHCP's clients, which hear without a socket of that port
# N25: of these the first 36 are tried for one that was no other pod's lately; with half of all it misses them as seldom
CHOICE_ENOUGH: Final = 2


@dataclass(frozen=True, slots=True)
class Mapping:
    """The other end of a mapping, and when the inside end has last sent something by it."""

    end: Address
    last_seen: float

    def is_alive(self, now: float, life: float) -> bool:
        """N42: it is over with its time, whoever collects it."""
        return now - self.last_seen <= life


class Inside(NamedTuple):
    """What has an outside end: an inside one, behind each of the node's addresses behind which it leaves."""

    end: Address
    behind: str


class Mappings:
    """UDP's mappings, by both their ends: `outside` by the inside one, `inside` by the outside one.

    `paid`: until when what each pod has begun is paid for (N24). `life`: seconds that they outlive what was sent last
    (N34); set anew where the world's timeouts change.
    """

    def __init__(self) -> None:
        self.life = TIMEOUTS["UDP", State.ESTABLISHED]
        self.paid: dict[str, float] = {}
        self.outside: dict[Inside, Mapping] = {}
        self.inside: dict[Address, Mapping] = {}

    def pay(self, pod: str, how: Masquerade | None, now: float) -> bool:
        """N24: one pod begins so many flows at once, and no more than that again in its time. False: not this one."""
        if how is None or how.pod_flows is None:
            return True
        flows, seconds = how.pod_flows
        paid = max(self.paid.get(pod, now), now)
        if paid - now > seconds - seconds / flows / 2:
            return False
        self.paid[pod] = paid + seconds / flows
        return True

    def outside_of(self, inside: Inside, now: float) -> Address | None:
        """The outside end of an inside one behind an address, if it has one there (N1).

        N5: also where its outside half is lost, unless another inside end has that by now.
        """
        mapping = self.outside.get(inside)
        if mapping is None or not mapping.is_alive(now, self.life):
            return None
        back = self.inside.get(mapping.end)
        return mapping.end if back is None or back.end == inside.end else None

    def follow(self, inside: Inside, now: float) -> Address | None:
        """As `outside_of`; kept by that (N35), and whole again (N5)."""
        outside = self.outside_of(inside, now)
        if outside is not None:
            back = self.inside.setdefault(outside, Mapping(inside.end, self.outside[inside].last_seen))
            if now - back.last_seen >= FRESH:
                self.enter(inside.end, outside, now)
        return outside

    def inside_of(self, outside: Address, now: float) -> Address | None:
        """Who is behind an outside end; None: nobody."""
        mapping = self.inside.get(outside)
        return mapping.end if mapping and mapping.is_alive(now, self.life) else None

    def is_free(self, outside: Address, inside: Address, now: float, quarantine: float) -> bool:
        """N3: no other inside end has it; N25: nor had another pod's until so many seconds ago."""
        holder = self.inside.get(outside)
        if holder is None or holder.end == inside:
            return True
        return not holder.is_alive(now, self.life + (0 if holder.end.address == inside.address else quarantine))

    def enter(self, inside: Address, outside: Address, now: float) -> None:
        """Both are each other's from now on."""
        self.outside[Inside(inside, outside.address)] = Mapping(outside, now)
        self.inside[outside] = Mapping(inside, now)

    def keep(self, inside: Inside, outside: Address, now: float) -> None:
        """N12, N35: by what an inside end sends, and the answers to that; N5: made anew by its flow, if it is lost."""
        lost = inside not in self.outside
        if lost:
            self.outside[inside] = Mapping(outside, now)
        if self.follow(inside, now) is None and lost:
            del self.outside[inside]

    def forget(self, half: Inside | Address) -> None:
        """Drops one half, as an LRU that is full may do (N5)."""
        if isinstance(half, Inside):
            self.outside.pop(half, None)
        else:
            self.inside.pop(half, None)


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


def hairpin(hook: Hook, mappings: Mappings, moment: Moment) -> FlowTuple | None:
    """N31: as what a pod's packet leaves that calls another's end outside; None: it calls none.

    The other one sees its end outside (RFC 4787 REQ-9a): behind the address that is called, where it leaves behind that
    one, too. A port of TCP, or an identifier, is one server's alone.
    """
    packet, world = moment.packet, moment.world
    if hook is not Hook.FROM_POD or world.masquerade is None or not is_mapped(packet.tuple, world.masquerade):
        return None
    if not world.is_pod(packet.source) or world.is_in_cluster(packet.destination):
        return None
    inside = mappings.inside_of(packet.tuple.called, moment.now)
    if inside is None:
        return None
    source = packet.destination
    if source not in world.masquerade.addresses(packet.source):
        source = world.masquerade.address(packet.source, UPLINK) or source
    return replace(packet.tuple, source=source, destination=inside.address, destination_port=inside.port)


def waits(packet: Packet, entry: Entry, world: World) -> bool:
    """N10, N31: who calls another pod's end outside is let in once that one has sent to his, but for a full cone."""
    if world.masquerade is None or world.masquerade.type is NatType.FULL_CONE:
        return False
    asked = entry.reply or entry.state is not State.NEW
    return entry.masqueraded and not asked and world.is_pod(packet.source) and world.is_pod(entry.to.destination)


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

        N25: what was another pod's lately is taken only where there is little else, or by the node itself. N104: what
        comes in the middle of a TCP connection is taken up by its own port or not at all. N1: UDP goes by its mapping's
        or, where that is taken at one server, by another there, of that flow alone. N20: a plain entry is the node's
        own, in the way of a masqueraded one, which keeps its port where it can. Raises Impossible for a port that may
        not be, Dropped where there is none.
        """
        known = self._known(entry)
        entry = replace(known or entry, last_seen=self.moment.now).counting(self.moment.packet)
        choosy = entry.masqueraded and not known
        may = known or self._may_keep(entry)
        found = claim_answer(self.flows, entry, self.moment, choosy=choosy) if may else Claim.TAKEN
        if found is Claim.TAKEN:
            if not self._may_change:
                raise self.finds_none()
            masqueraded = entry.masqueraded or entry.plain
            entry = with_port(entry, self._other_port(entry, told))
            entry = replace(entry, masqueraded=masqueraded, by_chance=True)
            found = claim_answer(self.flows, entry, self.moment)
        elif told.source_port not in {None, entry.to.source_port}:
            raise Impossible(f"the source port of {entry.to} is free, and must be kept (N15)")
        if not known and entry.masqueraded and self._is_mapped(entry):
            self.mappings.enter(inside_end(self.moment.packet), entry.to.reverse.called, self.moment.now)
        return enter(self.flows, entry, self.moment, found)

    def may_find_none(self, entry: Entry) -> bool:
        """N22, N23: whether the kernel may give up: then only this new flow fails."""
        known = self._known(entry)
        taken = self._is_taken(known or entry, choosy=entry.masqueraded and not known)
        taken = taken or not (known or self._may_keep(entry))
        free = self._free(entry, choosy=False) if taken and self._may_change else 0
        return taken and free * FREE_ENOUGH <= len(self._others(entry))

    def finds_none(self, reason: str = "drop_ports_taken") -> Dropped:
        """N23: the pod is told that it cannot have what it asks for, if it begins something (RFC 5508 REQ-8)."""
        return Dropped(reason, refused=self._may_change)

    @property
    def _may_change(self) -> bool:
        """Whether the packet begins something: TCP's mid-stream goes by the port that it has."""
        return self.moment.packet.protocol != "TCP" or self.moment.packet.is_syn

    def _known(self, entry: Entry) -> Entry | None:
        """The entry with the outside end that the inside end has already."""
        end = self._mapped_end(entry)
        return replace(entry, to=replace(entry.to, source_port=end.port)) if end else None

    def _mapped_end(self, entry: Entry) -> Address | None:
        inside = Inside(inside_end(self.moment.packet), entry.to.source)
        return self.mappings.follow(inside, self.moment.now) if self._is_mapped(entry) else None

    def _is_mapped(self, entry: Entry) -> bool:
        world = self.moment.world
        hides = entry.masqueraded and is_mapped(entry.to, world.masquerade)
        return hides and world.is_pod(self.moment.packet.source)

    def _may_keep(self, entry: Entry) -> bool:
        """Whether it may have the port that it has. A service's client that its backend sees as the node keeps its own
        (C4): what the node itself says to backends is entered, too.
        """
        return not (entry.masqueraded or entry.plain) or self._may_have(entry, choosy=True)

    def _may_have(self, entry: Entry, *, choosy: bool = False) -> bool:
        """N3, N18, N19: never a port that answers for something else at the node, nor another inside end's."""
        end, world = entry.to.reverse.called, self.moment.world
        if entry.plain:  # N88: of a tunnel the source port is a hash, and nothing answers to it
            return entry.to.destination_port in TUNNELS or self._is_unmapped(entry)
        if end.protocol == "ICMP":
            return end.port != 0  # by which a query of the peer's would pass for its answer
        if end.port in {0, *RESERVED} or self._is_a_service(end) or end in world.sockets:
            return False
        if world.masquerade is None or end.port in world.masquerade.node_ports:
            return False
        if not self._is_mapped(entry) or self._mapped_end(entry):
            return self._is_unmapped(entry)
        quarantine = world.quarantine if choosy else 0
        return self.mappings.is_free(end, inside_end(self.moment.packet), self.moment.now, quarantine)

    def _is_a_service(self, end: Address) -> bool:
        """Whether a service is called there; but for one that leads to who asks alone, as a forward to a pod does."""
        service = self.moment.world.services.get(end)
        own = inside_end(self.moment.packet)
        return service is not None and [(one.address, one.port) for one in service.outside] != [(own.address, own.port)]

    def _is_unmapped(self, entry: Entry) -> bool:
        """N20: for what gets no mapping: whether the port is that of none."""
        end, how = entry.to.reverse.called, self.moment.world.masquerade
        return not is_mapped(entry.to, how) or self.mappings.inside_of(end, self.moment.now) is None

    def _is_taken(self, entry: Entry, *, choosy: bool = False) -> bool:
        return is_taken(self.flows, entry, entry.to.source_port, self.moment, choosy=choosy)

    def _is_free(self, entry: Entry, *, choosy: bool) -> bool:
        return self._may_have(entry, choosy=choosy) and not self._is_taken(entry, choosy=choosy)

    def _free(self, entry: Entry, *, choosy: bool) -> int:
        """How many of the other ports are."""
        return sum(self._is_free(with_port(entry, port), choosy=choosy) for port in self._others(entry))

    def _others(self, entry: Entry) -> range:
        """N17: the ports of the range that are odd or even as the one is that cannot be kept (RFC 4787 REQ-4)."""
        how = self.moment.world.masquerade
        ports = how.ports_for(entry.to) if how else range(0)
        return range(ports.start + (ports.start + entry.to.source_port) % 2, ports.stop, 2)

    def _other_port(self, entry: Entry, told: Choice) -> int:
        ports, port = self._others(entry), told.source_port
        tried = ports if port is None else [port] if port in ports else []
        free = next((one for one in tried if self._is_free(with_port(entry, one), choosy=True)), None)
        if free is None and self._free(entry, choosy=True) * CHOICE_ENOUGH <= len(ports):
            free = next((one for one in tried if self._is_free(with_port(entry, one), choosy=False)), None)
        if free is None and port is None:
            raise self.finds_none()
        if free is None:
            raise Impossible(f"{port} is no port for {entry.to}: taken, reserved or not of {ports} (N3, N19, N25)")
        return free
