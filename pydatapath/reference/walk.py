"""A packet's walk: known flow -> its pod is there -> addresses -> leave; else classify -> choose -> claim -> leave."""

from __future__ import annotations

from dataclasses import replace

from pydatapath.reference.claims import begin, give_up
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.flows import Flows
from pydatapath.reference.leave import Verdict, leave
from pydatapath.reference.nat import (
    Mappings,
    Search,
    calls_pod,
    inside_end,
    is_in_the_way,
    is_mapped,
    outside_address,
    unasked_inside,
)
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
from pydatapath.reference.world import UPLINK, Backend, Hook, NatType, Service, World

__all__ = ["Model"]


class Model:
    """The datapath of one node. Assign to `world` what changes; flows and bound clients stay, as they do there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flows = Flows()
        self.mappings = Mappings()
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
        a pod's packet came in, if not by the pod's own; or the uplink by which one leaves. Raises Impossible where that
        may not be chosen; do not go on with the model then.
        """
        if hook is Hook.FROM_UPLINK and self.world.is_spoofed(packet):
            return Verdict("drop", packet, reason="drop_spoofed", walked=packet.is_echo)
        known = not packet.is_syn and packet.tuple in self.flows.main and not packet.is_echo
        if hook is Hook.TO_LOOPBACK and not known and service_called(packet, hook, self.world) is None:
            return Verdict("pass", packet, "stack", walked=False)  # there nothing else is ours: S106
        entry = self.flows.quick(Moment(packet, now, self.world))
        if entry is not None:
            return replace(self._send(hook, packet, entry), walked=False)
        if hook is Hook.FROM_UPLINK and self.world.is_own(packet.source):
            return Verdict("drop", packet, reason="drop_spoofed")  # N87; of a known flow it is not asked
        self._learn(hook, packet, interface)
        try:
            return self._walk(hook, Moment(packet, now, self.world), chosen or Choice(), interface or UPLINK)
        except Dropped as drop:
            return Verdict("drop", packet, reason=drop.reason, refused=drop.refused)

    def _walk(self, hook: Hook, moment: Moment, told: Choice, interface: str) -> Verdict:
        """What needs more than a look at a known flow."""
        packet = moment.packet
        entry = follow_half_open(self.flows, moment) or self.flows.follow(moment)
        if not packet.is_echo:
            self._look_for_the_pod(moment, entry)
        if entry is not None:
            self._refresh_mapping(entry, packet, moment.now)
            return self._send(hook, packet, entry)
        return self._first(hook, moment, told, interface)

    def _refresh_mapping(self, entry: Entry, packet: Packet, now: float) -> None:
        """N12, N35: by what the inside end of a masqueraded flow sends, and answers to that; asked once a second."""
        if not entry.masqueraded or not is_mapped(entry.to, self.world.masquerade):
            return
        if self.world.is_pod(packet.source):
            self.mappings.refresh(inside_end(packet), now)
        elif entry.reply:
            self.mappings.refresh(entry.to.called, now)

    def _learn(self, hook: Hook, packet: Packet, interface: str | None) -> None:
        """A pod is behind the interface by which its packets come in; of a known flow's that is not looked at again."""
        if hook is Hook.FROM_POD and (packet.is_syn or packet.is_echo or packet.tuple not in self.flows.main):
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

    def _first(self, hook: Hook, moment: Moment, told: Choice, interface: str) -> Verdict:
        """The first packet of a flow, or one of none: to a service, to where a backend listens, to the outside."""
        packet = moment.packet
        if packet.is_echo:
            return self._first_echo(hook, moment, told, interface)
        service = service_called(packet, hook, self.world)
        if service is not None:
            entries = self._to_service(hook, moment, service, told)
            return self._begin(hook, moment, [self._hidden(hook, packet, one, interface) for one in entries], told)
        leaves = hook in {Hook.FROM_POD, Hook.TO_UPLINK} and self.world.must_hide(packet.source, packet.destination)
        plain = Entry(packet.tuple, plain=True)
        if self.world.is_target(packet.tuple.called) and not leaves:
            return self._begin(hook, moment, [plain], told)
        nobody = no_service(packet, hook, self.world)
        if nobody is not None:
            raise nobody
        entry = self._hidden(hook, packet, plain, interface)
        if entry.masqueraded or self._is_told_apart(hook, moment):
            return self._begin(hook, moment, [entry], told)
        return self._other(hook, moment, told)

    def _first_echo(self, hook: Hook, moment: Moment, told: Choice, interface: str) -> Verdict:
        """N44: an echo request that leaves the cluster begins a flow, or that must be told apart from one."""
        packet = moment.packet
        entry = self._hidden(hook, packet, Entry(packet.tuple, plain=True), interface)
        if packet.source_port and (entry.masqueraded or self._is_told_apart(hook, moment)):
            return self._begin(hook, moment, [entry], told)
        return self._other(hook, moment, told)

    def _is_told_apart(self, hook: Hook, moment: Moment) -> bool:
        """Whether a flow that is not masqueraded is entered, so that it and its answers are no masqueraded one's."""
        in_the_way = is_in_the_way(hook, self.mappings, self.flows, moment)
        return in_the_way or calls_pod(hook, moment.packet, self.world)

    def _other(self, hook: Hook, moment: Moment, told: Choice) -> Verdict:
        """Nobody's packet: to the stack, but for what comes for a mapping, or would leave under a pod's address."""
        packet, how = moment.packet, self.world.masquerade
        inside = unasked_inside(hook, self.mappings, moment)
        if inside is not None:
            if how is None or how.type is not NatType.FULL_CONE:
                raise Dropped("drop_unasked")
            to = replace(packet.tuple, destination=inside.address, destination_port=inside.port)
            return self._begin(hook, moment, [Entry(to, masqueraded=True)], told)
        if hook is Hook.TO_UPLINK and self.world.must_hide(packet.source, packet.destination):
            raise Dropped("drop_untranslated")  # C13, N84
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

    def _hidden(self, hook: Hook, packet: Packet, entry: Entry, interface: str) -> Entry:
        """The entry of a flow that leaves the cluster behind the node's address; any other as it is."""
        outside = outside_address(hook, packet, entry.to, interface, self.world)
        if not outside:
            return entry
        return replace(entry, to=replace(entry.to, source=outside), plain=False, masqueraded=True)

    def _begin(self, hook: Hook, moment: Moment, entries: list[Entry], told: Choice) -> Verdict:
        """Enters a flow; `entries`: as it may be, one, or several where none was."""
        search = self._search(moment)
        hidden = [one for one in entries if self._is_sought(one, moment.packet)]
        if told.gave_up:
            if any(search.may_find_none(one) for one in hidden):
                raise Dropped("drop_ports_taken")
            raise give_up(self.flows, [one for one in entries if one not in hidden], moment)
        if hidden:
            entry, opened = search.begin(entries[0], told)
        else:
            entry, opened = begin(self.flows, entries[0], moment, told.source_port)
        return replace(self._send(hook, moment.packet, entry), opened=opened)

    def _search(self, moment: Moment) -> Search:
        return Search(self.flows, self.mappings, moment)

    @staticmethod
    def _is_sought(entry: Entry, packet: Packet) -> bool:
        """Whether its port is looked for: not that of who calls a mapping from outside."""
        return entry.masqueraded and entry.to.source != packet.source

    def _send(self, hook: Hook, packet: Packet, entry: Entry) -> Verdict:
        """A plain flow's packets are the stack's, unchanged (N9); all others leave by the shortest way."""
        return Verdict("pass", packet, "stack") if entry.plain else leave(hook, packet, entry.to, self.world)
