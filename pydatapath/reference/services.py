"""From the address that was called to a backend. Which one is the kernel's to choose, within what stands here."""

from __future__ import annotations

from dataclasses import dataclass

from pydatapath.reference.entry import Dropped
from pydatapath.reference.packet import Address, FlowTuple, Packet
from pydatapath.reference.world import Backend, Hook, Service, World, is_within

__all__ = [
    "Choice",
    "Chooser",
    "Impossible",
    "allows",
    "is_inside",
    "no_backend",
    "no_service",
    "seen_source",
    "service_called",
    "used_set",
]


class Impossible(Exception):
    """What the kernel is said to have chosen is not among what it may choose; str() names the flow and the rule."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the kernel chose for a new flow, as far as it is known: None is for the model to choose.

    `gave_up`: it dropped the packet, because none of the source ports that it tried was free (N22, N23).
    """

    backend: Backend | None = None
    source_port: int | None = None
    gave_up: bool = False


def service_called(packet: Packet, hook: Hook, world: World) -> Service | None:
    """The service port that a packet calls (S11, S14); None where it calls none.

    An answer to a connection that opens is no call: a client's port may be a service's number.
    """
    answers = packet.is_syn and not packet.opens
    return world.services.get(packet.tuple.called) if may_call(packet, hook, world) and not answers else None


def may_call(packet: Packet, hook: Hook, world: World) -> bool:
    """What leaves by an uplink was met when it came in, unless it is the node's own, to an external address (S43)."""
    return hook is not Hook.TO_UPLINK or world.is_own(packet.source)


def is_inside(packet: Packet, hook: Hook, world: World) -> bool:
    """Whether the caller is in the cluster: a pod of any node (S28, S52, S54), or this node itself (S30, S53)."""
    return hook is not Hook.FROM_UPLINK or world.is_in_cluster(packet.source)


def used_set(service: Service, *, inside: bool) -> tuple[Backend, ...]:
    """The backends that the traffic policies leave to a caller (S50 to S55)."""
    return service.inside if inside else service.outside


def allows(service: Service, packet: Packet) -> bool:
    """S62 to S64: everybody by his own address, pods and the node too. C6: where no range is left, nobody."""
    return service.sources is None or is_within(packet.source, service.sources)


def no_backend(service: Service, packet: Packet, *, inside: bool) -> Dropped:
    """A caller's set is empty: dropped where the policy keeps others from it (S36, S51), else refused (S41)."""
    if service.drop_inside if inside else service.drop_outside:
        return Dropped("drop_policy")
    return refuse("drop_no_backend", packet)


def no_service(packet: Packet, hook: Hook, world: World) -> Dropped | None:
    """Another port of a service's address: refused (S37). An address that no service owns: dropped (S38).

    So is what the node sends to its next hop to services, and no flow: nobody is there. None: none of these; or it
    leaves by an uplink, where another machine may have that address, or by the loopback interface.
    """
    to = packet.destination
    if world.is_cluster_ip(to) and may_call(packet, hook, world):
        return refuse("drop_no_service", packet)
    lost = world.is_service_address(to) and hook not in {Hook.TO_UPLINK, Hook.TO_LOOPBACK}
    nowhere = hook is Hook.TO_BRIDGE and to == world.next_hop(to)
    return Dropped("drop_no_service") if lost or nowhere else None


def refuse(reason: str, packet: Packet) -> Dropped:
    """C2: its sender is told at once, TCP's by a RST, others' by ICMP port unreachable; but a RST is never answered.

    Nor is a part of a segment: a RST is the segment turned round.
    """
    return Dropped(reason, refused="R" not in packet.flags and (packet.protocol != "TCP" or packet.is_plain))


def seen_source(packet: Packet, hook: Hook, backend: Backend, world: World) -> str:
    """The address that the backend sees: the caller's own wherever its answer comes back by this node anyway (C4).

    The node's for a pod that is balanced to itself (S29, C1), or its answer would never leave it; and for who comes
    from elsewhere and is sent elsewhere (S49, S54), or the answer would go past this node. Where the node calls what it
    serves itself (S56), no address of its own may come in: its next hop's to services.
    """
    own = world.own_of(packet.source)
    if hook is Hook.FROM_UPLINK and not world.is_here(backend.address):
        return own.uplink or own.address
    if hook.is_egress and world.is_own(backend.address):
        return world.next_hop(packet.source)
    return own.address if backend.address == packet.source else packet.source


class Chooser:
    """Which backends a new flow may go to. It remembers what must be the same the next time.

    `affinity`: of each client and service port, or where they share their clients (C11) all ports of a Service, the
    backend and the time of the last new connection (S73).
    """

    def __init__(self) -> None:
        self.affinity: dict[tuple[str, int], tuple[Backend, float]] = {}
        self._chosen: dict[tuple[FlowTuple, tuple[Backend, ...]], Backend] = {}

    def allowed(
        self, key: FlowTuple, service: Service, used: tuple[Backend, ...], now: float, world: World
    ) -> tuple[Backend, ...]:
        """The backends that a first packet may be sent to: one where the client or the packet is bound, else all (S26).

        N103: a packet that is sent again goes the same way while the set is the same one; affinity comes before that.
        """
        kept = self._kept(key, service, used, now, world)
        again = self._chosen.get((key, used))
        return kept or (used if again is None else (again,))

    def _kept(
        self, key: FlowTuple, service: Service, used: tuple[Backend, ...], now: float, world: World
    ) -> tuple[Backend, ...]:
        """S73: by the client's address, whatever its port. S76: never a backend that is not in the used set.

        C11: by what another port of the Service has chosen, as long as that serves there, whichever is on that pod.
        """
        kept, since = self.affinity.get((key.source, service.clients), (None, 0.0))
        if kept is None or not service.affinity or now - since > service.affinity or not world.serves(kept):
            return ()
        return tuple(one for one in used if one == kept or (service.shared and one.address == kept.address))

    def choose(
        self,
        key: FlowTuple,
        service: Service,
        used: tuple[Backend, ...],
        now: float,
        world: World,
        told: Backend | None,
    ) -> Backend:
        """The backend of a new flow: the one that the kernel chose, if it is allowed. Raises Impossible.

        S74: each new connection binds its client anew, for the service's whole time. S76: what bound it before is
        thrown away. S79: so it is for both sets, which share this; C11: and for ports that share it.
        """
        allowed = self.allowed(key, service, used, now, world)
        backend = allowed[0] if told is None else told
        if backend not in allowed:
            at, *places = (str(Address(one.address, one.port, key.protocol)) for one in (backend, *allowed))
            raise Impossible(f"{key} went to {at}, and may go to {', '.join(places)} only (N103, S73)")
        if service.affinity:
            self.affinity[key.source, service.clients] = (backend, now)
        else:
            self._chosen[key, used] = backend
        return backend
