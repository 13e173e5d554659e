"""From pod to pod of one node, past the bridge between them: what `load --pod-fast-path` asks for.

Of what a pod sends it changes the way alone: what would go on to the stack, to be bridged, is handed over to the
receiver as it came. The bridge has all that it alone can place: a frame that is not for the MAC of the pod whose
address is called (a gateway's, a router's, many receivers'), and who is not known here, or not there any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydatapath.reference.flows import Flows
from pydatapath.reference.leave import Verdict
from pydatapath.reference.packet import Packet
from pydatapath.reference.world import NODE, Hook, World

__all__ = ["Frame", "hand_over", "needs_no_walk"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What layer 2 says of a packet: `came_by` and `meant` are the interfaces of the pod that sends it, by which it
    came in, and of the one whose MAC it is for; "" for nobody's here.
    """

    hook: Hook
    came_by: str
    meant: str

    def is_beside(self, destination: str, world: World) -> bool:
        """Whether it may be handed over to the pod that has this address."""
        interface = world.endpoints.get(destination, NODE)
        known = world.pod_fast_path and self.hook is Hook.FROM_POD and interface in world.interfaces - {NODE}
        return known and self.meant == interface and self.came_by != interface


def hand_over(frame: Frame, packet: Packet, verdict: Verdict, world: World) -> Verdict:
    """What becomes of a packet, where this would: what is left to the stack as it came need not go there."""
    stays = verdict.kind == "pass" and verdict.packet == packet
    if not stays or not frame.is_beside(packet.destination, world):
        return verdict
    return replace(verdict, kind="forward", to=packet.destination)


def needs_no_walk(frame: Frame, packet: Packet, flows: Flows, world: World) -> bool:
    """Whether it is seen without the walk that this packet is nobody's: it begins no connection, is of no flow, calls
    neither a service nor where a backend listens, and its sender is known.
    """
    if not packet.is_plain or packet.extended or packet.is_syn or not frame.is_beside(packet.destination, world):
        return False
    if packet.tuple in flows.main or packet.tuple in flows.half_open:
        return False
    is_called = world.answers_ping(packet.destination) or world.is_target(packet.tuple.called)
    is_called = is_called or flows.meets_known_answer(packet)
    return not is_called and world.endpoints.get(packet.source) == frame.came_by
