"""ICMP errors about translated packets: by them path MTU discovery and traceroute work.

An error quotes the packet that it is about, as that was where it got stuck, and travels against it. So it is of the
other direction of that packet's flow, goes where that direction goes, and quotes there what its receiver has sent:

    CLIENT calls       CLIENT:5000 -> VIP:80
    it leaves as       CLIENT:5000 -> BACKEND:8080     and is too big for a link: ROUTER tells CLIENT, and quotes this
    the answer's way   BACKEND:8080 -> CLIENT:5000     becomes VIP:80 -> CLIENT:5000
    so CLIENT is told                                  by ROUTER, about CLIENT:5000 -> VIP:80

Its sender stays who it is, such as a router, from whose address nothing else would come (N50); unless it is the other
end itself, which is known by another address (N54, N55), or a pod that must not be seen outside (N84).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pydatapath.reference.entry import Entry, Moment
from pydatapath.reference.flows import Flows
from pydatapath.reference.packet import Error, FlowTuple, Packet
from pydatapath.reference.world import World

__all__ = ["follow_error", "readdressed"]

ENOUGH: Final = 8  # bytes of layer 4 by which a flow is known: what RFC 792 promises (N51)


def follow_error(flows: Flows, moment: Moment) -> Entry | None:
    """The direction of a flow that an error is of; None: of none that is known, or it tells too little of the packet.

    It is looked at only: no error refreshes a flow, ends one, or moves it on (N41, N58). By the identifier 0 an echo
    request has the tuple of the reply to another one: what is found by it is not its own flow.
    """
    error = moment.packet.error
    if error is None or not _is_told(error):
        return None
    key = moment.packet.tuple
    entry = flows.main.get(key) or flows.half_open.get(key)
    if entry is None or (error.about.is_echo and error.about.asks != entry.reply):
        return None
    return None if flows.has_ended(entry, moment.world, moment.now) else entry


def _is_told(error: Error) -> bool:
    """Whether it is one (N60) that tells a packet's ports: those of a later fragment are not there."""
    return error.kind != "redirect" and error.quoted >= ENOUGH and not error.about.is_later


def readdressed(packet: Packet, to: FlowTuple, world: World, *, is_here: bool) -> Packet:
    """An error as it leaves, where the direction that it is of leaves with these addresses and ports (N49, N55, N56).

    `kind` stays, and so do other bytes of it (N62). `is_here`: it goes to a pod of this node, or to the node itself.
    """
    if packet.error is None:
        raise ValueError(f"{packet.tuple} is no error")
    return replace(
        packet,
        source=to.source if _is_renamed(packet, to, world, is_here=is_here) else packet.source,
        destination=to.destination,
        error=replace(packet.error, about=packet.error.about.readdressed(to.reverse)),
    )


def _is_renamed(packet: Packet, to: FlowTuple, world: World, *, is_here: bool) -> bool:
    """Whether its sender has another name where it goes: the other end of the flow, or a pod that is hidden there."""
    hides = not is_here and world.must_hide(packet.source, to.destination)
    return packet.source == packet.tuple.source or hides
