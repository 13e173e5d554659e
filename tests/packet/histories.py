"""Random histories for the differential test: what may happen, as data.

A step names what it refers to by its place among what was sent, left or stands in the tables so far. So a history is a
plain list, from which steps may be taken away until only those are left that show a difference.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from random import Random
from typing import Final, NamedTuple

from packetbed import (
    BACKEND,
    CLIENT,
    DEVICES,
    FAR,
    NODE,
    NOWHERE,
    OUTSIDE,
    REMOTE,
    SECOND,
    UPLINK,
    VIP,
    VIP_TWO,
    Serving,
)
from wire import in_service_network, ports_tried

from pydatapath.kernel.layout import PROTOCOLS
from pydatapath.plan import FrontendKind
from pydatapath.reference import FlowTuple, Hook, Packet, Protocol

__all__ = [
    "Again",
    "Answer",
    "Direct",
    "Lose",
    "Send",
    "Serve",
    "Step",
    "Wait",
    "history",
    "opening",
    "step",
    "traceable",
    "way_of",
]

STRANGER, ELSEWHERE = "10.1.0.9", "10.2.0.7"  # a pod here that nobody has heard of yet; one of another node
BALANCER, OUTER = "203.0.113.10", "203.0.113.20"  # a balancer's address; a cluster IP outside the service networks
UNOWNED = "10.96.9.9"  # in the service network, but no service's
# Every wait is this much longer than a multiple of half a second: with eight of them at most, no entry's age is ever
# near a whole number of seconds, where the time that the test itself takes would count
ODD: Final = 0.04
WAITS: Final = (*(0.5, 1, 1.5, 5, 9, 11) * 4, 60, 118, 121, 239, 241, 299, 301, 3600, 431_999, 432_001)
OPENING: Final = (*("S",) * 12, "SA", "A", "PA", "FA", "R", "SF")
ANSWERS: Final = (*("SA",) * 8, "A", "PA", "PA", "FA", "FA", "R", "RA", "S")
NEAR: Final = (0, 0, 0, 1, 1, 2, 3, 4, 5)  # how far back it is
LATER: Final = (*("S", "A", "PA") * 3, "FA", "FA", "R", "RA", "SA", "SF")


class Send(NamedTuple):
    """Somebody sends a packet, met at a hook, by the interface of a pod where it is from one."""

    hook: Hook
    device: str
    packet: Packet


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


class Serve(NamedTuple):
    """A service port at an address has these backends now; None: it goes."""

    called: str
    serving: Serving | None


class Lose(NamedTuple):
    """One half of a flow is dropped, as a full LRU does: by its key, or its place among all."""

    half: FlowTuple | int


class Wait(NamedTuple):
    """Time passes."""

    seconds: float


Step = Send | Answer | Again | Direct | Serve | Lose | Wait


class Scope(NamedTuple):
    """What a history plays with: the fewer, the more often two flows meet."""

    fronts: tuple[str, ...]
    places: tuple[str, ...]
    callers: tuple[tuple[Hook, str], ...]
    ports: tuple[int, ...]


KINDS: Final[dict[str, FrontendKind]] = {BALANCER: "load-balancer-ip", UPLINK: "node-port"}
NARROW = Scope(
    (f"{VIP}:80/TCP", f"{VIP_TWO}:80/TCP", f"{VIP}:80/UDP"),
    (f"{BACKEND}:8080", f"{SECOND}:8080", f"{CLIENT}:8080"),
    ((Hook.FROM_POD, CLIENT), (Hook.FROM_POD, CLIENT), (Hook.FROM_POD, BACKEND)),
    (10000, 10000, 8080),
)
WIDE = Scope(
    tuple(
        f"{at}/{protocol}"
        for at in (f"{VIP}:80", f"{VIP_TWO}:80", f"{BALANCER}:80", f"{OUTER}:80", f"{UPLINK}:30080")
        for protocol in PROTOCOLS
    ),
    (*(f"{one}:8080" for one in (BACKEND, SECOND, REMOTE, CLIENT, NODE, STRANGER, NOWHERE)), f"{BACKEND}:80"),
    tuple((Hook.FROM_POD, one) for one in (CLIENT, CLIENT, BACKEND, SECOND, STRANGER))
    + tuple((Hook.FROM_UPLINK, one) for one in (FAR, REMOTE, ELSEWHERE, OUTSIDE))
    + tuple((hook, one) for hook in (Hook.TO_BRIDGE, Hook.TO_UPLINK) for one in (NODE, UPLINK)),
    (10000, 10001, 8080),
)
FAR_UP = Scope(
    (f"{VIP}:80/TCP", f"{BALANCER}:80/UDP", f"{BALANCER}:80/TCP"),
    (f"{REMOTE}:8080", f"{BACKEND}:8080", f"{ELSEWHERE}:8080"),
    ((Hook.FROM_UPLINK, FAR), (Hook.FROM_UPLINK, ELSEWHERE), (Hook.TO_UPLINK, UPLINK), (Hook.TO_BRIDGE, NODE)),
    (10000, 10000, 8080),
)


def opening(rng: Random) -> tuple[Scope, list[Step]]:
    """What a history plays with, and the services that it begins with."""
    scope = rng.choice([NARROW, NARROW, WIDE, FAR_UP])
    return scope, [Serve(front, _serving(rng, scope, front)) for front in scope.fronts]


def history(rng: Random) -> list[Step]:
    """Services, and then whatever happens."""
    scope, steps = opening(rng)
    steps += [step(rng, scope) for _ in range(rng.randrange(5, 55))]
    for incident in (_crowd, _race, _return):
        if rng.randrange(16) == 0:
            place = rng.randrange(len(scope.fronts), len(steps))
            steps[place:place] = incident(rng, scope)
    return steps


def _crowd(rng: Random, scope: Scope) -> list[Step]:
    """A call of a service, for which most source ports are taken by direct connections to its only backend, or all."""
    call = _call(rng, scope)
    address, port, _ = _at(backend := rng.choice(scope.places))
    direct = replace(call.packet, destination=address, destination_port=port)
    taken = ports_tried(call.packet)[: rng.choice([2, 4, 5, 5, 5])]
    connections = [call._replace(packet=replace(direct, source_port=one)) for one in taken]
    return [Serve(str(call.packet.tuple.called), Serving([backend])), *connections, call]


def _race(rng: Random, scope: Scope) -> list[Step]:
    """A first packet that is sent again, to another backend meanwhile; both answer, the second one late."""
    call = _call(rng, scope)
    front, (one, other) = str(call.packet.tuple.called), rng.sample(scope.places, 2)
    between = [Answer(rng.choice(NEAR), rng.choice(["R", "FA"])), Again(0, "FA"), Wait(rng.choice(WAITS) + ODD)]
    late = [Answer(back, "SA") for back in rng.sample(range(5), 3)]
    return [
        Serve(front, Serving([one])),
        call,
        Serve(front, Serving([other])),
        call,
        Answer(1, "SA"),
        *rng.sample(between, rng.randrange(4)),
        *late,
    ]


def _return(rng: Random, scope: Scope) -> list[Step]:
    """A client of a service with affinity comes back, by other ports, shortly before or after its backend's time."""
    call = _call(rng, scope)
    serving = Serving(rng.sample(scope.places, 3), affinity=10)
    ports = [call.packet.source_port + more for more in range(1, 5)]
    again = [call._replace(packet=replace(call.packet, source_port=port)) for port in ports]
    return [Serve(str(call.packet.tuple.called), serving), call, Wait(rng.choice([9, 11]) + ODD), *again]


def _call(rng: Random, scope: Scope) -> Send:
    """The first packet of somebody who calls a service."""
    (hook, source), front = rng.choice(scope.callers), rng.choice(scope.fronts)
    packet = Packet(source, rng.choice(scope.ports), *_at(front), flags="S" if front.endswith("TCP") else "")
    return Send(hook, device_of(source) if hook is Hook.FROM_POD else "", packet)


def _at(text: str, otherwise: Protocol = "TCP") -> tuple[str, int, Protocol]:
    """Of `10.96.0.10:80/TCP`, or without a protocol."""
    at, _, protocol = text.partition("/")
    address, _, port = at.partition(":")
    return address, int(port), "UDP" if (protocol or otherwise) == "UDP" else "TCP"


def step(rng: Random, scope: Scope) -> Step:
    """Whatever may happen next."""
    lot = rng.randrange(100)
    if lot < 22:
        return _send(rng, scope)
    if lot < 52:
        return Answer(rng.choice(NEAR), rng.choice(ANSWERS))
    if lot < 74:
        return Again(rng.choice(NEAR), rng.choice(LATER))
    if lot < 78:
        return Direct(rng.choice(NEAR), rng.choice([0, 0, 1, 2]))
    if lot < 86:
        front = rng.choice(scope.fronts)
        return Serve(front, _serving(rng, scope, front) if rng.randrange(8) else None)
    if lot < 90:
        return Lose(rng.randrange(8))
    return Wait(rng.choice(WAITS) + ODD)


def _send(rng: Random, scope: Scope) -> Send:
    hook, source = rng.choice(scope.callers)
    if rng.randrange(40) == 0:
        hook = rng.choice(list(Hook))  # by a way that nobody would expect it on
    elsewhere = f"{rng.choice((VIP, OUTER, UNOWNED, BALANCER))}:81"
    called = rng.choice([*scope.fronts * 4, *scope.places, elsewhere])
    address, port, protocol = _at(called, rng.choice(["TCP", "UDP"]))
    packet = Packet(
        source,
        rng.choice(scope.ports),
        address,
        port,
        protocol,
        rng.choice(OPENING) if protocol == "TCP" else "",
        ttl=rng.choice((64,) * 12 + (1, 2)),
        length=rng.choice([40, 60, 1000]),
    )
    device = rng.choice(list(DEVICES.values())) if rng.randrange(30) == 0 else device_of(source)
    return Send(hook, device if hook is Hook.FROM_POD else "", traceable(packet))


def _serving(rng: Random, scope: Scope, front: str) -> Serving:
    places = rng.sample(scope.places, len(scope.places))
    cluster = places[: rng.choice([0, 1, 1, 1, 2, 2, 2, 3])]
    local = [one for one in places[: rng.randrange(5)] if one.startswith("10.1.")]
    sets = ("cluster", "cluster", "cluster", "cluster", "local")
    return Serving(
        cluster,
        local,
        outside=rng.choice(sets),
        inside=rng.choice(sets),
        affinity=rng.choice([0, 0, 10, 10, 300]),
        kind=KINDS.get(front.split(":", maxsplit=1)[0], "cluster-ip"),
        sources=rng.choice([None, None, None, None, (), ("198.51.100.0/24", "10.1.0.2/31")]),
        draining=[one for one in scope.places if one not in {*cluster, *local} and rng.randrange(2)],
    )


def traceable(packet: Packet) -> Packet:
    """A RST that the stack must answer "time exceeded" leaves no trace of what was chosen for it."""
    return replace(packet, ttl=64) if "R" in packet.flags else packet


def device_of(source: str) -> str:
    """The interface by which a pod's packets come in."""
    return DEVICES.get(source, "pod4")


def way_of(packet: Packet) -> tuple[Hook, str]:
    """The hook that a packet meets first, and the interface of the pod that sends it."""
    source = IPv4Address(packet.source)
    if packet.source in {NODE, UPLINK}:
        near = packet.destination.startswith("10.1.") or in_service_network(packet.destination)
        return (Hook.TO_BRIDGE if near else Hook.TO_UPLINK), ""
    if source.packed.startswith(b"\x0a\x01"):
        return Hook.FROM_POD, device_of(packet.source)
    return Hook.FROM_UPLINK, ""
