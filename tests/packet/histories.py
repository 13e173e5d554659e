"""Random histories for the differential test: what may happen, as data.

A step names what it refers to by its place among what was sent, left or stands in the tables so far. So a history is a
plain list, from which steps may be taken away until only those are left that show a difference.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, replace
from functools import cache
from ipaddress import ip_address
from random import Random
from typing import Final, NamedTuple

from packetbed import DEVICES, POD_NETWORKS, V4, V6, V6_POD_NETWORKS, Places, Serving, at
from wire import flagged, is_by_bridge, ports_tried

from pydatapath.plan import FrontendKind
from pydatapath.reference import WITH_PORTS, FlowTuple, Hook, Packet, Protocol

__all__ = [
    "Again",
    "Answer",
    "Direct",
    "Interface",
    "Lose",
    "Send",
    "Serve",
    "Step",
    "Unasked",
    "Wait",
    "history",
    "opening",
    "step",
    "traceable",
    "way_of",
]


@dataclass(frozen=True)
class Everybody(Places):
    """Who is where, in one family, and who else a history plays with."""

    STRANGER: str  # a pod here that nobody has heard of yet
    ELSEWHERE: str  # one of another node
    BALANCER: str
    OUTER: str  # a cluster IP outside the service networks
    UNOWNED: str  # in the service network, but no service's
    RANGES: tuple[str, ...]  # loadBalancerSourceRanges
    FAR_TWO: str  # beside FAR


FAMILIES: Final = (
    Everybody(
        *astuple(V4),
        *("10.1.0.9", "10.2.0.7", "203.0.113.10", "203.0.113.20", "10.96.9.9"),
        ("198.51.100.0/24", "10.1.0.2/31"),
        "198.51.100.8",
    ),
    Everybody(
        *astuple(V6),
        *("fd00:10:1::9", "fd00:10:2::7", "2001:db8:113::10", "2001:db8:113::20", "fd00:10:96::99"),
        ("2001:db8:51::/64", "fd00:10:1::2/127"),
        "2001:db8:51::8",
    ),
)
# Every wait is this much longer than a multiple of half a second: with eight of them at most, no entry's age is ever
# near a whole number of seconds, where the time that the test itself takes would count
ODD: Final = 0.04
STEPS: Final = int(os.environ.get("PYDATAPATH_STEPS", "55"))  # fewer than that, after the services
WAITS: Final = (*(0.5, 1, 1.5, 5, 9, 11) * 4, 60, 118, 121, 239, 241, 299, 301, 3600, 431_999, 432_001)
OPENING: Final = (*("S",) * 12, "SA", "A", "PA", "FA", "R", "SF")
ANSWERS: Final = (*("SA",) * 8, "A", "PA", "PA", "FA", "FA", "R", "RA", "S")
NEAR: Final = (0, 0, 0, 1, 1, 2, 3, 4, 5)  # how far back it is
MOST: Final[tuple[Protocol, ...]] = ("TCP", "TCP", "UDP", "SCTP")
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


class Unasked(NamedTuple):
    """Where one of the last packets went, something is sent back, but by another port."""

    back: int
    port: int


class Serve(NamedTuple):
    """A service port at an address has these backends now; None: it goes."""

    called: str
    serving: Serving | None


class Lose(NamedTuple):
    """One half of a flow is dropped, as a full LRU does: by its key, or its place among all."""

    half: FlowTuple | int


class Interface(NamedTuple):
    """The interface of a pod goes, or is there again."""

    pod: str
    is_there: bool


class Wait(NamedTuple):
    """Time passes."""

    seconds: float


Step = Send | Answer | Again | Direct | Unasked | Serve | Lose | Interface | Wait


class Scope(NamedTuple):
    """What a history plays with, of one family: the fewer, the more often two flows meet. `away`: who is called outside
    the cluster, if anybody is.
    """

    who: Everybody
    fronts: tuple[str, ...]
    places: tuple[str, ...]
    callers: tuple[tuple[Hook, str], ...]
    ports: tuple[int, ...]
    away: tuple[str, ...] = ()


def _narrow(who: Everybody, protocol: Protocol, other: Protocol) -> Scope:
    fronts = (f"{at(who.VIP, 80)}/{protocol}", f"{at(who.VIP_TWO, 80)}/{protocol}", f"{at(who.VIP, 80)}/{other}")
    places = tuple(at(one, 8080) for one in (who.BACKEND, who.SECOND, who.CLIENT))
    callers = tuple((Hook.FROM_POD, one) for one in (who.CLIENT, who.CLIENT, who.BACKEND))
    return Scope(who, fronts, places, callers, (10000, 10000, 8080))


def _wide(rng: Random, who: Everybody) -> Scope:
    called = *(at(one, 80) for one in (who.VIP, who.VIP_TWO, who.BALANCER, who.OUTER)), at(who.UPLINK, 30080)
    fronts = rng.sample([f"{one}/{protocol}" for one in called for protocol in WITH_PORTS], 6)
    serving = (who.BACKEND, who.SECOND, who.REMOTE, who.CLIENT, who.NODE, who.STRANGER, who.NOWHERE)
    callers = (
        *((Hook.FROM_POD, one) for one in (who.CLIENT, who.CLIENT, who.BACKEND, who.SECOND, who.STRANGER)),
        *((Hook.FROM_UPLINK, one) for one in (who.FAR, who.REMOTE, who.ELSEWHERE, who.OUTSIDE)),
        *((hook, one) for hook in (Hook.TO_BRIDGE, Hook.TO_UPLINK) for one in (who.NODE, who.UPLINK)),
        (Hook.TO_LOOPBACK, who.UPLINK),
    )
    places = *(at(one, 8080) for one in serving), at(who.BACKEND, 80)
    return Scope(who, tuple(fronts), places, callers, (10000, 10001, 8080))


def _far_up(who: Everybody) -> Scope:
    fronts = (f"{at(who.VIP, 80)}/TCP", f"{at(who.BALANCER, 80)}/UDP", f"{at(who.BALANCER, 80)}/TCP")
    places = tuple(at(one, 8080) for one in (who.REMOTE, who.BACKEND, who.ELSEWHERE))
    by_uplink = (Hook.FROM_UPLINK, who.FAR), (Hook.FROM_UPLINK, who.ELSEWHERE), (Hook.TO_UPLINK, who.UPLINK)
    return Scope(who, fronts, places, (*by_uplink, (Hook.TO_BRIDGE, who.NODE)), (10000, 10000, 8080))


def _node_port(who: Everybody, protocol: Protocol) -> Scope:
    """The node calls its own node port, and others do."""
    fronts = (f"{at(who.UPLINK, 30080)}/{protocol}", f"{at(who.VIP, 80)}/{protocol}", f"{at(who.NODE, 30080)}/TCP")
    places = tuple(at(one, 8080) for one in (who.BACKEND, who.NODE, who.REMOTE))
    own = (Hook.TO_LOOPBACK, who.UPLINK), (Hook.TO_LOOPBACK, who.NODE)
    return Scope(who, fronts, places, (*own, *own, (Hook.FROM_UPLINK, who.FAR), (Hook.FROM_POD, who.CLIENT)), (10000,))


def _away(rng: Random, who: Everybody) -> Scope:
    """Pods call who is outside the cluster, and so does the node, by the same ports; some are backends of services."""
    one, other = rng.sample(WITH_PORTS, 2)
    at_the_node = f"{at(who.UPLINK, 10001)}/{one}", f"{at(who.UPLINK, 30080)}/{other}"
    fronts = f"{at(who.VIP, 80)}/{one}", f"{at(who.VIP, 80)}/{other}", f"{at(who.BALANCER, 80)}/UDP", *at_the_node
    places = *(at(one, 80) for one in (who.FAR, who.FAR, who.FAR_TWO, who.OUTSIDE)), at(who.BACKEND, 8080)
    pods = (who.CLIENT, who.CLIENT, who.BACKEND, who.SECOND)
    callers = (
        *((Hook.FROM_POD, one) for one in pods * 3),
        *((Hook.TO_UPLINK, one) for one in (*pods, who.UPLINK, who.UPLINK, who.UPLINK, who.NODE)),
    )
    called = tuple(at(one, 80) for one in (who.FAR, who.FAR, who.FAR_TWO, who.OUTSIDE, who.BALANCER, who.UPLINK))
    return Scope(who, fronts, places, callers, (10000, 10000, 10001, 5000, 30080, 4789, 700), called)


def _scopes(rng: Random, who: Everybody) -> list[Scope]:
    """Three to choose from, and the widest, which has backends for a whole history."""
    protocol, other = rng.choice(MOST), rng.choice(WITH_PORTS)
    return [_narrow(who, protocol, other), _far_up(who), _node_port(who, protocol), _wide(rng, who)]


def opening(rng: Random, *, away: bool = False) -> tuple[list[Scope], list[Step]]:
    """What a history plays with, in one family or, now and then, in both; and the services that it begins with.

    `away`: mostly with who is outside the cluster.
    """
    if away and rng.randrange(6):
        scopes = [_away(rng, rng.choice(FAMILIES))]
    elif rng.randrange(6) == 0:
        scopes = [rng.choices(_scopes(rng, who)[:3], (2, 1, 1))[0] for who in FAMILIES]
    else:
        scopes = rng.choices(_scopes(rng, rng.choice(FAMILIES)), (3, 1, 1, 2))
    return scopes, [Serve(front, _serving(rng, scope, front)) for scope in scopes for front in scope.fronts]


def history(rng: Random, *, away: bool = False) -> list[Step]:
    """Services, and then whatever happens. `away`: as for `opening`."""
    scopes, steps = opening(rng, away=away)
    served = len(steps)
    steps += [step(rng, scopes) for _ in range(rng.randrange(5, STEPS))]
    for incident in (_crowd, _race, _return, _burial):
        if rng.randrange(16) == 0:
            place = rng.randrange(served, len(steps))
            steps[place:place] = incident(rng, rng.choice(scopes))
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


def _burial(rng: Random, scope: Scope) -> list[Step]:
    """A backend leaves its service, and its pod's interface goes; its caller does not know of it."""
    call = _call(rng, scope)
    front, (one, other) = str(call.packet.tuple.called), rng.sample(scope.places, 2)
    pod = _at(one)[0]
    gone = [Serve(front, Serving([other])), *([Interface(pod, is_there=False)] if pod in DEVICES else [])]
    rng.shuffle(gone)
    later = [Again(1, rng.choice(LATER)), Answer(0, rng.choice(ANSWERS)), Wait(rng.choice(WAITS) + ODD)]
    return [Serve(front, Serving([one])), call, Answer(0, "SA"), *gone, *rng.sample(later, 2), Again(1, "A")]


def _call(rng: Random, scope: Scope) -> Send:
    """The first packet of somebody who calls a service."""
    (hook, source), front = rng.choice(scope.callers), rng.choice(scope.fronts)
    packet = flagged(Packet(source, rng.choice(scope.ports), *_at(front)), "S")
    return Send(hook, device_of(source) if hook is Hook.FROM_POD else "", packet)


def _at(text: str, otherwise: Protocol = "TCP") -> tuple[str, int, Protocol]:
    """Of `10.96.0.10:80/TCP` or `[fd00:10:96::10]:80/TCP`, or without a protocol."""
    where, _, protocol = text.partition("/")
    address, _, port = where.rpartition(":")
    named = [one for one in WITH_PORTS if one == protocol]
    return address.strip("[]"), int(port), named[0] if named else otherwise


def step(rng: Random, scopes: list[Scope]) -> Step:
    """Whatever may happen next."""
    lot, scope = rng.randrange(100), rng.choice(scopes)
    if lot < 22:
        return _call_away(rng, scope) if scope.away and rng.randrange(5) else _send(rng, scope)
    if scope.away and lot < 32:
        return Unasked(rng.choice(NEAR), rng.choice([80, 81, 10000]))
    if lot < 52:
        return Answer(rng.choice(NEAR), rng.choice(ANSWERS))
    if lot < 72:
        return Again(rng.choice(NEAR), rng.choice(LATER))
    if lot < 76:
        return Direct(rng.choice(NEAR), rng.choice([0, 0, 1, 2]))
    if lot < 84:
        front = rng.choice(scope.fronts)
        return Serve(front, _serving(rng, scope, front) if rng.randrange(8) else None)
    if lot < 88:
        return Lose(rng.randrange(8))
    if lot < 91:
        return Interface(rng.choice((scope.who.CLIENT, scope.who.BACKEND, scope.who.SECOND)), is_there=lot == 88)
    return Wait(rng.choice(WAITS) + ODD)


def _send(rng: Random, scope: Scope) -> Send:
    hook, source = rng.choice(scope.callers)
    if rng.randrange(40) == 0:
        hook = rng.choice(list(Hook))  # by a way that nobody would expect it on
    who = scope.who
    elsewhere = at(rng.choice((who.VIP, who.OUTER, who.UNOWNED, who.BALANCER)), 81)
    called = rng.choice([*scope.fronts * 4, *scope.places, elsewhere])
    address, port, protocol = _at(called, _at(rng.choice(scope.fronts))[2])
    packet = Packet(
        source,
        rng.choice(scope.ports),
        address,
        port,
        protocol,
        ttl=rng.choice((64,) * 12 + (1, 2)),
        length=rng.choice([60, 77, 1000]),
    )
    packet = flagged(packet, rng.choice(OPENING))
    device = rng.choice(list(DEVICES.values())) if rng.randrange(30) == 0 else device_of(source)
    return Send(hook, device if hook is Hook.FROM_POD else "", traceable(packet))


def _call_away(rng: Random, scope: Scope) -> Send:
    """Somebody calls who is outside the cluster, by whatever protocol; or asks him for an echo."""
    hook, source = rng.choice(scope.callers)
    protocol = rng.choice(("TCP", "UDP", "UDP", "SCTP", "ICMP"))
    if protocol == "ICMP":  # never to an address that a service may have: the kernel answers for that
        address, port = rng.choice((scope.who.FAR, scope.who.FAR, scope.who.FAR_TWO, scope.who.OUTSIDE)), 0
    else:
        address, port, _ = _at(rng.choice(scope.away))
    packet = Packet(source, rng.choice(scope.ports), address, port, protocol, ttl=rng.choice((64,) * 12 + (1, 2)))
    packet = flagged(packet, rng.choice(OPENING))
    return Send(hook, device_of(source) if hook is Hook.FROM_POD else "", traceable(packet))


def _serving(rng: Random, scope: Scope, front: str) -> Serving:
    places = list(dict.fromkeys(rng.sample(scope.places, len(scope.places))))
    cluster = places[: rng.choice([0, 1, 1, 1, 2, 2, 2, 3])]
    local = [one for one in places[: rng.randrange(5)] if is_pod(_at(one)[0])]
    sets = ("cluster", "cluster", "cluster", "cluster", "local")
    return Serving(
        cluster,
        local,
        outside=rng.choice(sets),
        inside=rng.choice(sets),
        affinity=rng.choice([0, 0, 10, 10, 300]),
        kind=_kind(scope.who, _at(front)[0]),
        sources=rng.choice([None, None, None, None, (), scope.who.RANGES]),
        draining=[one for one in scope.places if one not in {*cluster, *local} and rng.randrange(2)],
    )


def _kind(who: Everybody, address: str) -> FrontendKind:
    if address == who.BALANCER:
        return "load-balancer-ip"
    return "node-port" if address in {who.UPLINK, who.NODE} else "cluster-ip"


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


def way_of(packet: Packet) -> tuple[Hook, str]:
    """The hook that a packet meets first, and the interface of the pod that sends it."""
    own = {address for who in FAMILIES for address in (who.NODE, who.UPLINK)}
    if packet.source in own:
        if packet.destination in own:
            return Hook.TO_LOOPBACK, ""
        return (
            Hook.TO_BRIDGE if is_pod(packet.destination) or is_by_bridge(packet.destination) else Hook.TO_UPLINK
        ), ""
    return (Hook.FROM_POD, device_of(packet.source)) if is_pod(packet.source) else (Hook.FROM_UPLINK, "")
