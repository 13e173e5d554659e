"""A packet's walk: known flow -> its pod is there -> addresses -> leave; else classify -> choose -> claim -> leave."""

from __future__ import annotations

from dataclasses import replace

from pydatapath.reference.claims import begin, give_up
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import Flows
from pydatapath.reference.leave import Verdict, leave
from pydatapath.reference.opening import follow_half_open
from pydatapath.reference.packet import Packet
from pydatapath.reference.services import (
    Choice,
    Chooser,
    allows,
    is_inside,
    no_backend,
    no_service,
    refuse,
    seen_source,
    service_called,
    used_set,
)
from pydatapath.reference.world import Backend, Hook, Service, World

__all__ = ["Model"]


class Model:
    """The datapath of one node. Assign to `world` what changes; flows and bound clients stay, as they do there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flows = Flows()
        self.chooser = Chooser()

    def choices(self, packet: Packet, hook: Hook, now: float) -> tuple[Backend, ...]:
        """The backends that the packet may go to if it begins a flow (S26, S73, N103); none where it calls none."""
        service = service_called(packet, hook, self.world)
        if service is None or not allows(service, packet):
            return ()
        used = used_set(service, inside=is_inside(packet, hook, self.world))
        return self.chooser.allowed(packet.tuple, service, used, now)

    def receive(
        self, hook: Hook, packet: Packet, now: float, *, chosen: Choice | None = None, interface: str | None = None
    ) -> Verdict:
        """What becomes of a packet that one of our programs has not met yet. `now`: seconds, never less than before.

        `chosen`: what the kernel chose, where this packet begins a flow; else it is not looked at. `interface`: where
        a pod's packet came in, if not by the pod's own. Raises Impossible where that may not be chosen; do not go on
        with the model then.
        """
        if hook is Hook.FROM_UPLINK and self.world.is_spoofed(packet):
            return Verdict("drop", packet, reason="drop_spoofed", walked=False)
        known = not packet.is_syn and packet.tuple in self.flows.main
        if hook is Hook.TO_LOOPBACK and not known and service_called(packet, hook, self.world) is None:
            return Verdict("pass", packet, "stack", walked=False)  # there nothing else is ours: S106
        entry = self.flows.quick(Moment(packet, now, self.world))
        if entry is not None:
            return replace(self._send(hook, packet, entry), walked=False)
        if hook is Hook.FROM_UPLINK and self.world.is_own(packet.source):
            return Verdict("drop", packet, reason="drop_spoofed")  # N87; of a known flow it is not asked
        self._learn(hook, packet, interface)
        moment = Moment(packet, now, self.world)
        try:
            entry = follow_half_open(self.flows, moment) or self.flows.follow(moment)
            self._look_for_the_pod(moment, entry)
            if entry is not None:
                return self._send(hook, packet, entry)
            return self._first(hook, moment, chosen or Choice())
        except Dropped as drop:
            return Verdict("drop", packet, reason=drop.reason, refused=drop.refused)

    def _learn(self, hook: Hook, packet: Packet, interface: str | None) -> None:
        """A pod is behind the interface by which its packets come in; of a known flow's that is not looked at again."""
        if hook is Hook.FROM_POD and (packet.is_syn or packet.tuple not in self.flows.main):
            known = self.world.endpoints.get(packet.source)
            self.world = self.world.learned(packet.source, interface or known or f"veth of {packet.source}")

    def _look_for_the_pod(self, moment: Moment, entry: Entry | None) -> None:
        """C8: a backend that is in no slice any more and has lost its interface, too: its flow is over, its client is
        refused at once. Raises Dropped.
        """
        packet, world = moment.packet, moment.world
        if entry is not None and entry.is_forsaken(world) and world.has_nobody(entry.to.destination):
            self.flows.end(packet.tuple, entry)
            raise refuse("drop_pod_gone", packet)

    def _first(self, hook: Hook, moment: Moment, told: Choice) -> Verdict:
        """The first packet of a flow, or one of none: to a service, to where a backend listens, or neither."""
        packet = moment.packet
        service = service_called(packet, hook, self.world)
        if service is not None:
            return self._begin(hook, moment, self._to_service(hook, moment, service, told), told)
        if self.world.is_target(packet.tuple.called):
            return self._begin(hook, moment, [Entry(packet.tuple, plain=True)], told)
        nobody = no_service(packet, hook, self.world)
        if nobody is not None:
            raise nobody
        return Verdict("pass", packet, "stack")

    def _to_service(self, hook: Hook, moment: Moment, service: Service, told: Choice) -> list[Entry]:
        """The caller's direction of the flow; as many as there may be where the kernel found a port for none."""
        key = moment.packet.tuple
        inside = is_inside(moment.packet, hook, self.world)
        used = used_set(service, inside=inside)
        if not allows(service, moment.packet):
            raise Dropped("drop_source_range")  # S67: before it matters who is there to answer
        if not used:
            raise no_backend(service, moment.packet, inside=inside)
        if told.gave_up:
            backends = self.chooser.allowed(key, service, used, moment.now)
        else:
            backends = (self.chooser.choose(key, service, used, moment.now, told.backend),)
        return [self._to_backend(hook, moment.packet, backend) for backend in backends]

    def _to_backend(self, hook: Hook, packet: Packet, backend: Backend) -> Entry:
        """Both of a flow's ends may change (S29, C4)."""
        source = seen_source(packet, hook, backend, self.world)
        to = replace(packet.tuple, source=source, destination=backend.address, destination_port=backend.port)
        return Entry(to, backend=backend)

    def _begin(self, hook: Hook, moment: Moment, entries: list[Entry], told: Choice) -> Verdict:
        if told.gave_up:
            raise give_up(self.flows, entries, moment)
        entry, opened = begin(self.flows, entries[0], moment, told.source_port)
        return replace(self._send(hook, moment.packet, entry), opened=opened)

    def _send(self, hook: Hook, packet: Packet, entry: Entry) -> Verdict:
        """A plain flow's packets are the stack's, unchanged (N9); all others leave by the shortest way."""
        return Verdict("pass", packet, "stack") if entry.plain else leave(hook, packet, entry.to, self.world)
