"""The steps of a history as data, and what those say that name a packet that has left.

A step names what it refers to by its place among what was sent, left or stands in the tables so far. So a history is a
plain list, from which steps may be taken away until only those are left that show a difference.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from packetbed import Serving
from places import DEVICES, POD_NETWORKS, V4, V6, V6_POD_NETWORKS
from wire import Wrong, flagged, is_by_bridge, ports_tried

from pydatapath.reference import Address, Error, ErrorKind, FlowTuple, Fragment, Hook, Machine, Packet
from pydatapath.reference.nat import Inside

__all__ = [
    "PARTS",
    "Across",
    "Again",
    "Answer",
    "Direct",
    "Interface",
    "Lose",
    "Nodes",
    "Piece",
    "Send",
    "Serve",
    "Step",
    "Tell",
    "Unasked",
    "Wait",
    "device_of",
    "follow_up",
    "is_pod",
    "piece_of",
    "traceable",
]

PARTS: Final = (0, 976, 1952)  # where the fragments of a datagram begin, in bytes


class Send(NamedTuple):
    """Somebody sends a packet, met at a hook, by the interface of a pod where it is from one. `routed`: to the MAC of
    the gateway, also where a pod is called.
    """

    hook: Hook
    device: str
    packet: Packet
    wrong: Wrong = ""
    routed: bool = False

    @property
    def meant(self) -> str:
        """The interface of the pod whose MAC the frame is for, as pods know each other; "" for the gateway's."""
        to, nodes_own = self.packet.destination, (V4.NODE, V6.NODE)
        beside = self.hook is Hook.FROM_POD and is_pod(to) and to not in nodes_own and not self.routed
        return device_of(to) if beside else ""


class Answer(NamedTuple):
    """The receiver of one of the last packets that left answers it."""

    back: int
    flags: str


class Again(NamedTuple):
    """One of the last packets comes again, with these flags."""

    back: int
    flags: str


class Direct(NamedTuple):
    """Who sent one of the last packets that left calls where that went, without the service, and from this port of
    those that the kernel tries.
    """

    back: int
    attempt: int


class Unasked(NamedTuple):
    """Where one of the last packets went, something is sent back, but by another port; or, with the same identifier, a
    query in place of the answer.
    """

    back: int
    port: int


class Across(NamedTuple):
    """A pod calls where one of the last packets came from, as that was seen where it went (N31)."""

    back: int
    pod: str
    port: int


class Piece(NamedTuple):
    """One of the last packets comes again as a part of a datagram, from this offset on; -1: of the datagram that it was
    a part of, if it was of one.
    """

    back: int
    flags: str
    offset: int
    identification: int


class Tell(NamedTuple):
    """Somebody tells the sender of one of the last packets what became of it, by an ICMP error.

    `teller`: who was called there, a router, the node, or some pod. `as_sent`: it is quoted as it was before it came
    here. `off`: the quoted source's port is another, by so much.
    """

    back: int
    teller: Literal["peer", "router", "node", "pod"]
    kind: ErrorKind
    quoted: int
    wrong: Wrong
    as_sent: bool
    off: int


class Serve(NamedTuple):
    """A service port at an address has these backends now; None: it goes."""

    called: str
    serving: Serving | None


class Nodes(NamedTuple):
    """These are all nodes that Node objects name now."""

    nodes: tuple[Machine, ...]


class Lose(NamedTuple):
    """One half of a flow or a mapping is dropped, as a full LRU does: by its key, or its place among all."""

    half: FlowTuple | Inside | Address | int


class Interface(NamedTuple):
    """The interface of a pod goes, or is there again."""

    pod: str
    is_there: bool


class Wait(NamedTuple):
    """Time passes."""

    seconds: float


Step = Send | Answer | Again | Direct | Unasked | Across | Piece | Tell | Serve | Nodes | Lose | Interface | Wait


def follow_up(step: Step, sent: Send, left: Packet) -> Send | None:
    """What a step says of a packet that was sent, and has left like this; None: nothing, of such a one."""
    packet = sent.packet
    match step:
        case Again(_, flags):
            return sent._replace(packet=traceable(flagged(packet, flags)))
        case Tell() if not packet.error:
            return _tell(step, packet if step.as_sent else left)
        case Answer(_, flags) if not packet.error:
            return _answer(left, flags)
        case Direct(_, attempt) if packet.is_plain:
            return _direct(sent, left, attempt)
        case Unasked(_, port) if packet.is_plain or packet.is_echo:
            return _unasked(left, port)
        case Across(_, pod, port) if left.source_port and not packet.is_echo:
            called = FlowTuple(pod, port, left.source, left.source_port, left.protocol)
            if (":" in pod) == (":" in left.source):
                packet = replace(left.readdressed(called), fragment=None, ttl=64, length=60)
                return Send(Hook.FROM_POD, device_of(pod), traceable(flagged(packet, "S")))
        case Piece(_, flags, offset) if not packet.error and (offset or not packet.is_later):
            return _piece(step, sent, flags)
    return None


def _answer(left: Packet, flags: str) -> Send:
    packet = replace(left.turned_round(), ttl=64)
    packet = traceable(flagged(packet, "" if packet.is_later else flags))
    if packet.flags == "A" and packet.is_plain:
        packet = replace(packet, length=60 if ":" in packet.source else 40)  # an ACK alone
    return Send(*_way_of(packet), packet)


def _direct(sent: Send, left: Packet, attempt: int) -> Send:
    """From who sent it, to where it went."""
    call = sent.packet
    packet = replace(left, source=call.source, source_port=ports_tried(call)[attempt], ttl=64)
    return sent._replace(packet=flagged(packet, "S"))


def _unasked(left: Packet, port: int) -> Send:
    """To where it came from, as that was seen there, from where it went, by another port."""
    back = left.turned_round()
    if left.asks and port % 2:
        back = replace(back, source_port=left.source_port, destination_port=0, flags="")
        return Send(*_way_of(back), replace(back, ttl=64))
    packet = traceable(flagged(replace(back, source_port=port if back.source_port else 0, ttl=64), "S"))
    return Send(*_way_of(packet), packet)


def _piece(piece: Piece, sent: Send, flags: str) -> Send:
    packet, number = sent.packet, piece.identification
    if number < 0:
        number = packet.fragment.identification if packet.fragment else 0
    packet = piece_of(packet, Fragment(number, piece.offset))
    return sent._replace(packet=packet if packet.is_later else traceable(flagged(packet, flags)))


def _tell(tell: Tell, about: Packet) -> Send:
    """Who has sent it is told, as far as the teller knows who that is."""
    who = V6 if ":" in about.source else V4
    tellers = {"peer": about.destination, "router": who.NEXT_HOP, "node": who.NODE, "pod": who.SECOND}
    if about.source_port:
        about = replace(about, source_port=about.source_port + tell.off)
    error = Error(tell.kind, about, tell.quoted)
    packet = Packet(tellers[tell.teller], 0, about.source, 0, "ICMP", error=error)
    return Send(*_way_of(packet), packet, tell.wrong)


def piece_of(packet: Packet, part: Fragment) -> Packet:
    """A packet as a part of a datagram: of a long one the first, or another, which has no ports."""
    if part.offset == 0:
        return replace(packet, fragment=part, length=PARTS[1] + (48 if ":" in packet.source else 20))
    return replace(packet, source_port=0, destination_port=0, flags="", fragment=part, length=700)


def traceable(packet: Packet) -> Packet:
    """A RST that the stack must answer "time exceeded" leaves no trace of what was chosen for it."""
    return replace(packet, ttl=64) if "R" in packet.flags else packet


def device_of(source: str) -> str:
    """The interface by which a pod's packets come in."""
    return DEVICES.get(source, "pod4")


@cache
def is_pod(address: str) -> bool:
    """Whether a pod of this node may have it."""
    return any(ip_address(address) in network for network in (*POD_NETWORKS, *V6_POD_NETWORKS))


def _way_of(packet: Packet) -> tuple[Hook, str]:
    """The hook that a packet meets first, and the interface of the pod that sends it."""
    own = {address for who in (V4, V6) for address in (who.NODE, who.UPLINK)}
    if packet.source in own:
        if packet.destination in own:
            return Hook.TO_LOOPBACK, ""
        return (
            Hook.TO_BRIDGE if is_pod(packet.destination) or is_by_bridge(packet.destination) else Hook.TO_UPLINK
        ), ""
    return (Hook.FROM_POD, device_of(packet.source)) if is_pod(packet.source) else (Hook.FROM_UPLINK, "")
