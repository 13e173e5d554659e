"""A packet's walk: known flow -> its pod is there -> addresses -> leave; else classify -> choose -> claim -> leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pydatapath.reference.beside import Frame, hand_over, needs_no_walk
from pydatapath.reference.claims import begin, give_up
from pydatapath.reference.entry import Dropped, Entry, Moment
from pydatapath.reference.errors import follow_error
from pydatapath.reference.flows import Flows
from pydatapath.reference.fragments import Fragments
from pydatapath.reference.leave import Verdict, leave
from pydatapath.reference.nat import (
    Inside,
    Mappings,
    Search,
    calls_pod,
    hairpin,
    inside_end,
    is_in_the_way,
    is_mapped,
    outside_address,
    unasked_inside,
    waits,
)
from pydatapath.reference.opening import follow_half_open, opens_as_usual
from pydatapath.reference.packet import Packet, Protocol
from pydatapath.reference.services import (
    Choice,
    Chooser,
    allows,
    is_inside,
    may_call,
    no_backend,
    no_service,
    refuse,
    seen_source,
    service_called,
    used_set,
)
from pydatapath.reference.timers import State
from pydatapath.reference.world import UPLINK, Backend, Hook, NatType, Service, World

__all__ = ["Model"]

ANSWER_TTL: Final = 64


class Model:
    """The datapath of one node. Assign to `world` what changes; flows and bound clients stay, as they do there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flows = Flows()
        self.mappings = Mappings()
        self.fragments = Fragments()
        self.chooser = Chooser()

    def choices(self, packet: Packet, hook: Hook, now: float) -> tuple[Backend, ...]:
        """The backends that the packet may go to if it begins a flow (S26, S73, N103); none where it calls none."""
        service = service_called(packet, hook, self.world)
        if service is None or not allows(service, packet):
            return ()
        used = used_set(service, inside=is_inside(packet, hook, self.world))
        return self.chooser.allowed(packet.tuple, service, used, now, self.world)

    def receive(
        self,
        hook: Hook,
        packet: Packet,
        now: float,
        *,
        chosen: Choice | None = None,
        interface: str | None = None,
        meant: str = "",
    ) -> Verdict:
        """What becomes of a packet that one of our programs has not met yet. `now`: seconds, never less than before.

        `chosen`: what the kernel chose, where this packet begins a flow; else it is not looked at. `interface`: where
        a pod's packet came in, if not by the pod's own; or the uplink by which one leaves. `meant`: the interface of
        the pod whose MAC a frame is for, if it is one's. Raises Impossible where that may not be chosen; do not go on
        with the model then.
        """
        frame = Frame(hook, interface or self._interface_of(packet), meant)
        walked = not needs_no_walk(frame, packet, self.flows, self.world)
        verdict = hand_over(frame, packet, self._receive(hook, packet, now, chosen, interface), self.world)
        return verdict if walked else replace(verdict, walked=False)

    def _receive(self, hook: Hook, packet: Packet, now: float, chosen: Choice | None, interface: str | None) -> Verdict:
        """As receive, where all pods are behind a bridge."""
        if hook is Hook.FROM_UPLINK and self.world.is_spoofed(packet):
            return Verdict("drop", packet, reason="drop_spoofed", walked=not packet.is_plain)
        if hook is Hook.TO_LOOPBACK and not self._is_ours_by_loopback(packet):
            return Verdict("pass", packet, "stack", walked=False)  # there nothing else is ours: S106
        moment = Moment(packet, now, self.world)
        self.mappings.life = self.world.timeouts["UDP", State.ESTABLISHED]
        entry = self.flows.quick(moment)
        if entry is None and self._opens_as_usual(hook, moment):
            entry = follow_half_open(self.flows, moment)
            if packet.answers_opening:
                self._learn(hook, packet, interface)
        if entry is not None:
            return replace(self._send(hook, moment, entry), walked=False)
        if hook is Hook.FROM_UPLINK and self.world.is_own(packet.source):
            return Verdict("drop", packet, reason="drop_spoofed")  # N87; of a known flow it is not asked
        if not packet.is_later and not self._is_of_a_live_flow(packet):
            self._learn(hook, packet, interface)
        try:
            return self._walk(hook, Moment(packet, now, self.world), chosen or Choice(), interface)
        except Dropped as drop:
            return Verdict("drop", packet, reason=drop.reason, refused=drop.refused)

    def _walk(self, hook: Hook, moment: Moment, told: Choice, interface: str | None) -> Verdict:
        """What needs more than a look at a known flow."""
        packet = moment.packet
        if packet.error:
            return self._error(hook, moment)
        if packet.is_later:
            return self._later(hook, moment)
        if packet.asks and self._owns_address(hook, packet):
            return self._pong(packet)
        entry = follow_half_open(self.flows, moment) or self.flows.follow(moment)
        if packet.is_echo and entry is not None and packet.asks == entry.reply:
            raise Dropped("drop_untranslated")  # a pod's query and its answer to another: by 0 they are one
        self._look_for_the_pod(hook, moment, entry)
        if entry is not None:
            self._refresh_mapping(entry, packet, moment.now)
            return self._let_in(hook, moment, entry)
        self._learn(hook, packet, interface)
        return self._first(hook, replace(moment, world=self.world), told, interface or UPLINK)

    def _opens_as_usual(self, hook: Hook, moment: Moment) -> bool:
        """And nothing else speaks against it, as what only a walk finds out."""
        packet = moment.packet
        if not opens_as_usual(self.flows, moment) or (hook is Hook.FROM_UPLINK and self.world.is_own(packet.source)):
            return False
        entry = self.flows.half_open[packet.tuple]
        return not (entry.masqueraded and hook is Hook.FROM_UPLINK and self.world.has_lost(entry.to.destination))

    def _error(self, hook: Hook, moment: Moment) -> Verdict:
        """N49, N57: an error goes where its flow's direction goes; one of no flow is left to the stack."""
        entry = follow_error(self.flows, moment)
        return self._pass(hook, moment.packet) if entry is None else self._send(hook, moment, entry)

    def _later(self, hook: Hook, moment: Moment) -> Verdict:
        """N63: a later fragment leaves with the addresses of its first, or as it came where those stayed.

        Where the first was not seen, the stack has it; but at a cluster IP nobody else could deliver it (N64).
        """
        packet = moment.packet
        to = self.fragments.follow(packet, moment.now)
        if to is not None:
            return Verdict("pass", packet, "stack") if to == packet.tuple else leave(hook, packet, to, self.world)
        if self.world.is_cluster_ip(packet.destination) and may_call(packet, hook, self.world):
            raise Dropped("drop_fragment")
        return replace(self._pass(hook, packet), reason="pass_fragment")

    def _owns_address(self, hook: Hook, packet: Packet) -> bool:
        return may_call(packet, hook, self.world) and self.world.answers_ping(packet.destination)

    @staticmethod
    def _pong(ping: Packet) -> Verdict:
        """S39, N48: a service's address answers by itself; but nobody would put together an answer to a part (C3)."""
        if ping.is_first:
            raise Dropped("drop_fragment")
        return Verdict("answer", replace(ping.turned_round(), ttl=ANSWER_TTL))

    def _is_ours_by_loopback(self, packet: Packet) -> bool:
        """Whether the node calls a node port of its own, or what it sends is of a known flow."""
        if not packet.is_plain:
            return False
        known = not packet.is_syn and packet.tuple in self.flows.main
        known = known or (packet.tuple in self.flows.half_open and not packet.answers_opening)
        return known or service_called(packet, Hook.TO_LOOPBACK, self.world) is not None

    def _refresh_mapping(self, entry: Entry, packet: Packet, now: float) -> None:
        """N12, N35: by what the inside end of a masqueraded flow sends, and answers to that; asked once a second."""
        if not entry.masqueraded or not is_mapped(entry.to, self.world.masquerade):
            return
        if self.world.is_pod(packet.source):
            self.mappings.keep(Inside(inside_end(packet), entry.to.source), entry.to.reverse.called, now)
        elif entry.reply and self.world.is_pod(entry.to.destination):
            self.mappings.keep(Inside(entry.to.called, packet.destination), packet.tuple.called, now)

    def _learn(self, hook: Hook, packet: Packet, interface: str | None) -> None:
        """A pod is behind the interface by which its packets come in: what it answers first included, for one of its
        addresses may never call.
        """
        if hook is Hook.FROM_POD:
            self.world = self.world.learned(packet.source, interface or self._interface_of(packet))

    def _is_of_a_live_flow(self, packet: Packet) -> bool:
        """It teaches nothing: of a pod that ends it may come late, when another has the address."""
        return packet.is_plain and not packet.extended and not packet.is_syn and packet.tuple in self.flows.main

    def _interface_of(self, packet: Packet) -> str:
        """That of the pod that sends it."""
        return self.world.endpoints.get(packet.source) or f"veth of {packet.source}"

    def _look_for_the_pod(self, hook: Hook, moment: Moment, entry: Entry | None) -> None:
        """C8: a backend that is in no slice any more and has lost its interface, too: its flow is over, its client is
        refused at once. N108: what comes in for a masqueraded pod that has lost it goes nowhere; but a pod that is not
        known has come after `load`. Raises Dropped.
        """
        packet, world = moment.packet, moment.world
        if entry is not None and entry.is_forsaken(world) and world.has_nobody(entry.to.destination):
            self.flows.end(packet.tuple, entry)
            raise refuse("drop_pod_gone", packet)
        comes_in = entry is not None and entry.masqueraded and hook is Hook.FROM_UPLINK
        if entry is not None and comes_in and world.has_lost(entry.to.destination):
            raise Dropped("drop_pod_gone")

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
        if (self.world.is_target(packet.tuple.called) or self._meets_known_answer(hook, packet)) and not leaves:
            return self._begin(hook, moment, [plain], told)
        nobody = no_service(packet, hook, self.world)
        if nobody is not None:
            raise nobody
        entry = self._hidden(hook, packet, plain, interface)
        if not entry.masqueraded and self._is_in_the_way(hook, moment):
            return self._begin(hook, moment, [entry], told, own=True)
        across = None if entry.masqueraded else hairpin(hook, self.mappings, moment)
        if across:
            entry = Entry(across, masqueraded=True)
        if entry.masqueraded or calls_pod(hook, packet, self.world) or self._is_nodes(hook, packet, "SCTP"):
            return self._begin(hook, moment, [entry], told)
        return self._other(hook, moment, told)

    def _meets_known_answer(self, hook: Hook, packet: Packet) -> bool:
        """N93: whether it begins a call to where a backend listened, by a port of which a flow of its service lasts."""
        if self.world.masquerade is not None and hook is Hook.TO_UPLINK:
            return False  # N20 is more
        return self.flows.meets_known_answer(packet)

    def _is_nodes(self, hook: Hook, packet: Packet, protocol: Protocol) -> bool:
        """N18, N46: of the node's own SCTP and pings no socket can be asked for, and no port (or identifier) is its own
        that is not entered.
        """
        leaves = self.world.masquerade is not None and hook is Hook.TO_UPLINK and packet.protocol == protocol
        return leaves and self.world.is_own(packet.source)

    def _first_echo(self, hook: Hook, moment: Moment, told: Choice, interface: str) -> Verdict:
        """N44: an echo request that leaves the cluster begins a flow, or that must be told apart from one."""
        packet = moment.packet
        entry = self._hidden(hook, packet, Entry(packet.tuple, plain=True), interface)
        told_apart = self._is_in_the_way(hook, moment) or calls_pod(hook, packet, self.world)
        told_apart = told_apart or (packet.source_port != 0 and self._is_nodes(hook, packet, "ICMP"))
        if packet.asks and (entry.masqueraded or told_apart):
            own = hook is Hook.TO_UPLINK and not entry.masqueraded
            return self._begin(hook, moment, [entry], told, own=own)
        return self._other(hook, moment, told)

    def _is_in_the_way(self, hook: Hook, moment: Moment) -> bool:
        """N20: whether the node's own call has the ends of a masqueraded flow, or its port is a pod's for others."""
        return is_in_the_way(hook, self.mappings, self.flows, moment)

    def _other(self, hook: Hook, moment: Moment, told: Choice) -> Verdict:
        """Nobody's packet: to the stack, but for what comes for a mapping, or would leave under a pod's address."""
        packet, how = moment.packet, self.world.masquerade
        inside = unasked_inside(hook, self.mappings, moment)
        if inside is not None:
            if how is None or how.type is not NatType.FULL_CONE or packet.source_port == 0:
                raise Dropped("drop_unasked")
            to = replace(packet.tuple, destination=inside.address, destination_port=inside.port)
            entry = Entry(to, masqueraded=True)
            self._look_for_the_pod(hook, moment, entry)
            return self._begin(hook, moment, [entry], told)
        return self._pass(hook, packet)

    def _pass(self, hook: Hook, packet: Packet) -> Verdict:
        """To the stack as it came; but not out under a pod's address (C13, N84), nor to a next hop that nobody is."""
        if hook is Hook.TO_UPLINK and self.world.must_hide(packet.source, packet.destination):
            raise Dropped("drop_untranslated")
        if hook is Hook.TO_BRIDGE and self.world.is_by_bridge(packet.destination):
            raise Dropped("drop_no_service")
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
            backends = self.chooser.allowed(key, service, used, moment.now, self.world)
        else:
            backends = (self.chooser.choose(key, service, used, moment.now, self.world, told.backend),)
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

    def _begin(self, hook: Hook, moment: Moment, entries: list[Entry], told: Choice, *, own: bool = False) -> Verdict:
        """Enters a flow; `entries`: as it may be, one, or several where none was. `own`: the node's, in a pod's way, or
        a client's who is seen as the node.
        """
        search = self._search(moment)
        own = own or self._hides_caller(hook, moment.packet, entries[0])
        entries = [replace(one, opened=moment.packet.protocol == "TCP" and moment.packet.opens) for one in entries]
        hidden = [one for one in entries if own or self._is_sought(one, moment.packet)]
        if hidden and not own and moment.packet.has_port_0:
            raise Dropped("drop_untranslated")  # N27
        if hidden and not own and not self._may_begin(moment):
            raise search.finds_none("drop_pod_limit")
        if told.gave_up:
            if any(search.may_find_none(one) for one in hidden):
                raise search.finds_none()
            raise give_up(self.flows, [one for one in entries if one not in hidden], moment)
        if hidden:
            entry, opened = search.begin(entries[0], told)
        else:
            entry, opened = begin(self.flows, entries[0], moment, told.source_port)
        return replace(self._let_in(hook, moment, entry), opened=opened)

    def _may_begin(self, moment: Moment) -> bool:
        """N24: who is no pod has no limit, such as whoever the node hides behind its bridge's address."""
        pod = moment.packet.source
        return not self.world.is_pod(pod) or self.mappings.pay(pod, self.world.masquerade, moment.now)

    def _hides_caller(self, hook: Hook, packet: Packet, entry: Entry) -> bool:
        """C4, N97: a client from outside that is sent elsewhere; no pod whose end outside somebody calls."""
        return self.world.masquerade is not None and hook is Hook.FROM_UPLINK and entry.to.source != packet.source

    def _search(self, moment: Moment) -> Search:
        return Search(self.flows, self.mappings, moment)

    @staticmethod
    def _is_sought(entry: Entry, packet: Packet) -> bool:
        """Whether its port is looked for: not that of who calls a mapping from outside."""
        return entry.masqueraded and entry.to.source != packet.source

    def _let_in(self, hook: Hook, moment: Moment, entry: Entry) -> Verdict:
        """What is entered leaves, but for a pod that waits until another one has sent to it."""
        if waits(moment.packet, entry, self.world):
            return Verdict("drop", moment.packet, reason="drop_unasked")
        return self._send(hook, moment, entry)

    def _send(self, hook: Hook, moment: Moment, entry: Entry) -> Verdict:
        """A plain flow's packets are the stack's, unchanged (N9); all others leave by the shortest way.

        Where pods are hidden a plain flow's fragments are noted, too: it is what exempts the later ones from that. Not
        those of an error about it: nobody sends one in fragments (RFC 1812 4.3.2.3: 576 bytes, RFC 4443 2.4: 1,280).
        """
        packet = moment.packet
        if packet.is_first and (not entry.plain or (self.world.masquerade and not packet.error)):
            self.fragments.note(packet, entry.to, moment.now)
        return Verdict("pass", packet, "stack") if entry.plain else leave(hook, packet, entry.to, self.world)
