"""Random histories for the differential test: what may happen, as data.

Services, and then whatever may happen to a few callers of them, so that flows meet often; and incidents of several
steps, which would come about by themselves too seldom.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, replace
from random import Random
from typing import Final, NamedTuple

from packetbed import Serving
from places import DEVICES, V4, V6, Places, at
from steps import (
    PARTS,
    Across,
    Again,
    Answer,
    Direct,
    Interface,
    Lose,
    Nodes,
    Piece,
    Send,
    Serve,
    Step,
    Tell,
    Unasked,
    Wait,
    device_of,
    is_pod,
    piece_of,
    traceable,
)
from wire import Wrong, flagged, ports_tried

from pydatapath.plan import FrontendKind
from pydatapath.reference import WITH_PORTS, ErrorKind, Fragment, Hook, Machine, Packet, Protocol

__all__ = ["history", "opening", "step"]


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
    NETWORKS: tuple[str, ...]  # where nodes' pods may be, as Node objects tell: of both, and of one


FAMILIES: Final = (
    Everybody(
        *astuple(V4),
        *("10.1.0.9", "10.2.0.7", "203.0.113.10", "203.0.113.20", "10.96.9.9"),
        ("198.51.100.0/24", "10.1.0.2/31"),
        "198.51.100.8",
        ("198.51.100.8/31", "198.51.100.0/25"),
    ),
    Everybody(
        *astuple(V6),
        *("fd00:10:1::9", "fd00:10:2::7", "2001:db8:113::10", "2001:db8:113::20", "fd00:10:96::99"),
        ("2001:db8:51::/64", "fd00:10:1::2/127"),
        "2001:db8:51::8",
        ("2001:db8:51::8/127", "2001:db8:51::/80"),
    ),
)
# Every wait is this much longer than a multiple of half a second: with eight of them at most, no entry's age is ever
# near a whole number of seconds, where the time that the test itself takes would count
ODD: Final = 0.04
STEPS: Final = int(os.environ.get("PYDATAPATH_STEPS", "55"))  # fewer than that, after the services
WAITS: Final = (*(0.5, 1, 1.5, 5, 9, 11) * 4, 29, 31, 60, 118, 121, 239, 241, 299, 301, 3600, 431_999, 432_001)
OPENING: Final = (*("S",) * 12, "SA", "A", "PA", "FA", "R", "SF")
ANSWERS: Final = (*("SA",) * 8, "SA!", "A", "A", "A?", "PA", "PA", "FA", "FA", "R", "RA", "S")
NEAR: Final = (0, 0, 0, 1, 1, 2, 3, 4, 5)  # how far back it is
MOST: Final[tuple[Protocol, ...]] = ("TCP", "TCP", "UDP", "SCTP")
LATER: Final = (*("S", "A", "PA") * 3, "A?", "PA?", "FA", "FA", "R", "RA", "SA", "SF")
MISTAKEN: Final[tuple[Wrong, ...]] = ("",) * 6 + ("error", "header", "datagram", "no datagram")
TOLD: Final[tuple[ErrorKind, ...]] = (
    *("port unreachable", "host unreachable", "too big", "time exceeded", "parameter problem"),
    *("port unreachable", "too big", "time exceeded"),
    *("too big", "redirect"),
)
QUOTED: Final = (8, 8, 8, 12, 20, 28, 7)  # bytes of layer 4


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
        *((Hook.TO_UPLINK, one) for one in (*pods, who.STRANGER, who.UPLINK, who.UPLINK, who.UPLINK, who.NODE)),
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
    for incident in (_crowd, _race, _return, _joining, _burial, _long_call, _long_call, *([_meeting] if away else [])):
        if rng.randrange(16) == 0:
            place = rng.randrange(served, len(steps))
            steps[place:place] = incident(rng, rng.choice(scopes))
    return steps


def _crowd(rng: Random, scope: Scope) -> list[Step]:
    """A call of a service, for which its first source ports are taken by direct connections to its only backend."""
    call = _call(rng, scope)
    address, port, _ = _at(backend := rng.choice(scope.places))
    direct = replace(call.packet, destination=address, destination_port=port)
    taken = ports_tried(call.packet)[: rng.choice([2, 4, 5, 8, 9])]
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
    """A client of a service with affinity comes back, by other ports, shortly before or after its backend's time; to
    another port of it, too, which has the pods in another order, or others.
    """
    call, other = _call(rng, scope), _call(rng, scope)
    fronts = [one.packet.tuple.called for one in (call, other) if one.packet.protocol == call.packet.protocol]
    shared = rng.choice(["", "web"])
    serving = [
        Serve(str(front), Serving(rng.sample(scope.places, 3), affinity=10, service=shared))
        for front in dict.fromkeys(fronts)
    ]
    again = []
    for port in range(call.packet.source_port + 1, call.packet.source_port + 5):
        to = rng.choice((fronts[0], *fronts))
        packet = replace(call.packet, source_port=port, destination=to.address, destination_port=to.port)
        again.append(call._replace(packet=packet))
    return [*serving, call, Wait(rng.choice([9, 11]) + ODD), *again]


def _joining(rng: Random, scope: Scope) -> list[Step]:
    """Somebody calls by the uplink whose network becomes a node's, or was: outside the cluster there is no backend."""
    who, call = scope.who, _call(rng, scope).packet
    serving = Serving([rng.choice(scope.places)], outside="local")
    joined = Nodes((Machine(frozenset(), (rng.choice(who.NETWORKS),)),))
    steps: list[Step] = [Serve(str(call.tuple.called), serving)]
    for port, nodes in zip((50001, 50002), rng.sample((joined, Nodes(())), 2), strict=True):
        source = rng.choice((who.FAR, who.FAR_TWO))
        steps += [nodes, _sent_by(Hook.FROM_UPLINK, source, replace(call, source=source, source_port=port))]
    return steps


def _burial(rng: Random, scope: Scope) -> list[Step]:
    """A backend leaves its service, and its pod's interface goes; its caller does not know of it."""
    call = _call(rng, scope)
    front, (one, other) = str(call.packet.tuple.called), rng.sample(scope.places, 2)
    pod = _at(one)[0]
    gone = [Serve(front, Serving([other])), *([Interface(pod, is_there=False)] if pod in DEVICES else [])]
    rng.shuffle(gone)
    later = [Again(1, rng.choice(LATER)), Answer(0, rng.choice(ANSWERS)), Wait(rng.choice(WAITS) + ODD)]
    return [Serve(front, Serving([one])), call, Answer(0, "SA"), *gone, *rng.sample(later, 2), Again(1, "A")]


def _long_call(rng: Random, scope: Scope) -> list[Step]:
    """A call in fragments, one of which may come too early or too late or be of somebody else, and its answer, in
    fragments, too; which are too big for somebody.
    """
    call = _call_away(rng, scope) if scope.away else _call(rng, scope)
    early, other = Fragment(0, PARTS[1]), rng.choice(scope.callers)
    parts: list[Step] = [call._replace(packet=piece_of(call.packet, Fragment(0)))]
    parts += [Piece(0, "", offset, -1) for offset in PARTS[1:]]
    if rng.randrange(3) == 0:
        parts.insert(0, call._replace(packet=piece_of(call.packet, early)))
    if rng.randrange(2) == 0:
        parts.insert(2, _sent_by(*other, piece_of(call.packet, early)))
    if rng.randrange(2) == 0:
        parts.insert(2, Wait(rng.choice([29, 31, 31]) + ODD))
    answer = Answer(rng.choice([0, 1, 2]), rng.choice(ANSWERS))
    return [*parts, answer, Piece(0, "", PARTS[1], -1), Tell(rng.choice(NEAR), "router", "too big", 8, "", False, 0)]


def _meeting(rng: Random, scope: Scope) -> list[Step]:
    """Two pods call a server outside, which tells each of the other; they call each other by that (N31)."""
    ports = rng.choice(scope.ports), rng.choice(scope.ports)
    pods = rng.choices((scope.who.CLIENT, scope.who.BACKEND, scope.who.SECOND), k=2)
    calls: list[Step] = [
        _sent_by(Hook.FROM_POD, pod, Packet(pod, port, scope.who.FAR, 80, "UDP"))
        for pod, port in zip(pods, ports, strict=True)
    ]
    # What is let in at once is one of the last, too, in a full cone
    again = [Across(rng.choice((0, 1, 1, 2)), *one) for one in rng.choices(list(zip(pods, ports, strict=True)), k=4)]
    waits = [Wait(rng.choice(WAITS) + ODD)] if rng.randrange(2) else []
    later = [Again(0, ""), Answer(0, ""), Tell(0, "pod", "port unreachable", 8, "", as_sent=False, off=0)]
    return [*calls, Across(0, pods[0], ports[0]), Across(1, pods[1], ports[1]), *again[:2], *waits, *again[2:], *later]


def _sent_by(hook: Hook, source: str, packet: Packet) -> Send:
    return Send(hook, device_of(source) if hook is Hook.FROM_POD else "", replace(packet, source=source))


def _call(rng: Random, scope: Scope) -> Send:
    """The first packet of somebody who calls a service."""
    (hook, source), front = rng.choice(scope.callers), rng.choice(scope.fronts)
    return _sent_by(hook, source, flagged(Packet(source, rng.choice(scope.ports), *_at(front)), "S"))


def _at(text: str, otherwise: Protocol = "TCP") -> tuple[str, int, Protocol]:
    """Of `10.96.0.10:80/TCP` or `[fd00:10:96::10]:80/TCP`, or without a protocol."""
    where, _, protocol = text.partition("/")
    address, _, port = where.rpartition(":")
    named = [one for one in WITH_PORTS if one == protocol]
    return address.strip("[]"), int(port), named[0] if named else otherwise


def step(rng: Random, scopes: list[Scope]) -> Step:
    """Whatever may happen next."""
    lot, scope = rng.randrange(116), rng.choice(scopes)
    if lot >= 114:
        return _nodes(rng, scope.who)
    if lot >= 100:
        return _piece(rng) if lot < 106 else _tell(rng)
    if lot < 22:
        return _call_away(rng, scope) if scope.away and rng.randrange(5) else _send(rng, scope)
    if scope.away and lot < 32:
        if rng.randrange(3) == 0:
            return _across(rng, scope)
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


def _across(rng: Random, scope: Scope) -> Across:
    who = scope.who
    return Across(rng.choice(NEAR), rng.choice((who.CLIENT, who.BACKEND, who.SECOND)), rng.choice(scope.ports))


def _piece(rng: Random) -> Piece:
    return Piece(rng.choice(NEAR), rng.choice(LATER), rng.choice(PARTS), rng.choice((-1, -1, 0, 1)))


def _tell(rng: Random) -> Tell:
    return Tell(
        rng.choice(NEAR),
        rng.choice(("peer", "peer", "router", "router", "node", "pod")),
        rng.choice(TOLD),
        rng.choice(QUOTED),
        rng.choice(MISTAKEN),
        as_sent=rng.randrange(6) == 0,
        off=rng.choice((0, 0, 0, 0, 0, 1)),
    )


def _nodes(rng: Random, who: Everybody) -> Nodes:
    """Of the other family none are left."""
    may_be = (who.FAR, who.FAR, who.FAR_TWO, who.OUTSIDE, who.ELSEWHERE, who.REMOTE)
    machines = (
        Machine(frozenset(rng.sample(may_be, rng.choice([0, 1, 1, 2]))), tuple(rng.sample(who.NETWORKS, 1)))
        if rng.randrange(2)
        else Machine(frozenset(rng.sample(may_be, 1)))
        for _ in range(rng.choice([0, 1, 1, 2]))
    )
    return Nodes(tuple(machines))


def _send(rng: Random, scope: Scope) -> Send:
    hook, source = rng.choice(scope.callers)
    if rng.randrange(40) == 0:
        return _ping(rng, scope, hook, source)
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
    return Send(hook, device if hook is Hook.FROM_POD else "", traceable(packet), routed=rng.randrange(8) == 0)


def _ping(rng: Random, scope: Scope, hook: Hook, source: str) -> Send:
    """Somebody asks for an echo of an address of a service, or of one that might be."""
    who = scope.who
    packet = Packet(source, 7, rng.choice((who.VIP, who.VIP, who.BALANCER, who.OUTER, who.UNOWNED)), 0, "ICMP")
    if rng.randrange(3) == 0:
        packet = piece_of(packet, Fragment(0))
    return _sent_by(hook, source, packet)


def _call_away(rng: Random, scope: Scope) -> Send:
    """Somebody calls who is outside the cluster, by whatever protocol; or asks him for an echo."""
    hook, source = rng.choice(scope.callers)
    protocol = rng.choice(("TCP", "UDP", "UDP", "SCTP", "ICMP"))
    if protocol == "ICMP":  # never to an address that a service may have: the kernel answers for that
        address, port = rng.choice((scope.who.FAR, scope.who.FAR, scope.who.FAR_TWO, scope.who.OUTSIDE)), 0
    else:
        address, port, _ = _at(rng.choice(scope.away))
    own = rng.choice((*scope.ports, *((0, 0) if protocol == "ICMP" else ()), 0))
    packet = Packet(source, own, address, port, protocol, ttl=rng.choice((64,) * 12 + (1, 2)))
    return _sent_by(hook, source, traceable(flagged(packet, rng.choice(OPENING))))


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
        service=rng.choice(["", "", "web"]),
    )


def _kind(who: Everybody, address: str) -> FrontendKind:
    if address == who.BALANCER:
        return "load-balancer-ip"
    return "node-port" if address in {who.UPLINK, who.NODE} else "cluster-ip"
