"""What holds on the model whatever was sent before: random packets of both IP versions, answers, changes, pauses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from talking import V4, V6, WORLD

from pydatapath.reference import WITH_PORTS, Address, Backend, Hook, Model, Packet, Route, Service, Verdict

EMPTY = replace(WORLD, services={}, routes=(Route("0.0.0.0/0"), Route("::/0")))
FLAGS = ["S", "SA", "A", "PA", "FA", "R", "RA"]
FRONTS = {at: [(at.VIP, 80), (at.VIP_TWO, 80), (at.UPLINK, 30080)] for at in (V4, V6)}
BACKENDS = {at: [(at.BACKEND, 8080), (at.SECOND, 8080), (at.REMOTE, 8080)] for at in (V4, V6)}
some = settings(max_examples=150, deadline=None, database=None)


class Change(NamedTuple):
    """A service port has these backends now."""

    front: Address
    backends: list[tuple[str, int]]


class Interface(NamedTuple):
    """A pod's interface goes, or comes back."""

    name: str
    is_there: bool


versions = st.sampled_from([V4, V6])
protocols = st.sampled_from(WITH_PORTS)
ports = st.sampled_from([10000, 10001, 8080])


@st.composite
def calls(draw: st.DrawFn) -> tuple[Hook, Packet]:
    """Somebody sends to a service or to where a backend listens; the node to its own node port."""
    at = draw(versions)
    by_pod = [(Hook.FROM_POD, at.CLIENT), (Hook.FROM_POD, at.BACKEND)]
    hook, source = draw(st.sampled_from([*by_pod, (Hook.FROM_UPLINK, at.OUTSIDE), (Hook.TO_LOOPBACK, at.UPLINK)]))
    protocol = draw(protocols)
    flags = draw(st.sampled_from(FLAGS)) if protocol == "TCP" else ""
    places = FRONTS[at][2:] if hook is Hook.TO_LOOPBACK else FRONTS[at] + BACKENDS[at]
    destination, port = draw(st.sampled_from(places))
    return hook, Packet(source, draw(ports), destination, port, protocol, flags)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Other backends for a service port."""
    at = draw(versions)
    front = Address(*draw(st.sampled_from(FRONTS[at])), draw(protocols))
    return Change(front, draw(st.lists(st.sampled_from(BACKENDS[at]), unique=True, max_size=3)))


interfaces = st.builds(Interface, st.sampled_from(sorted(WORLD.interfaces)), st.booleans())
answers = st.tuples(st.integers(0, 5), st.sampled_from(FLAGS))
again = st.tuples(st.integers(0, 5), st.sampled_from(FLAGS), st.just("again"))
pauses = st.sampled_from([0.1, 2.0, 121.0, 250.0, 500_000.0])
steps = st.lists(calls() | again | answers | answers | changes() | interfaces | pauses, max_size=25)


@dataclass
class History:
    """A model and what was sent; every backend that comes has a number of its own."""

    model: Model
    now: float = 0.0
    numbers: int = 0
    sent: tuple[tuple[Hook, Packet], ...] = ()
    left: tuple[Verdict, ...] = ()

    def take(self, step: object) -> None:
        """One step of whatever kind."""
        match step:
            case float():
                self.now += step
            case Change(front, backends):
                self.change(front, backends)
            case Interface(name, is_there):
                there = self.model.world.interfaces - {name}
                self.model.world = replace(self.model.world, interfaces=there | {name} if is_there else there)
            case Hook() as hook, Packet() as packet:
                self.send(hook, packet)
            case int() as back, str() as flags, "again" if back < len(self.sent):
                hook, packet = self.sent[-1 - back]
                self.send(hook, replace(packet, flags=flags if packet.protocol == "TCP" else ""))
            case int() as back, str() as flags if back < len(self.left):
                self.answer(self.left[-1 - back], flags)

    def send(self, hook: Hook, packet: Packet) -> Verdict:
        """A packet; what leaves may be answered."""
        verdict = self.model.receive(hook, packet, self.now)
        self.sent, self.left = (*self.sent, (hook, packet)), (*self.left, verdict)
        return verdict

    def answer(self, verdict: Verdict, flags: str) -> Verdict:
        """The answer to a packet that left, by the way that it left by."""
        packet = verdict.packet.readdressed(verdict.packet.tuple.reverse)
        answer = replace(packet, flags=flags if packet.protocol == "TCP" else "", ttl=64)
        hook = Hook.FROM_POD if EMPTY.is_pod(answer.source) else Hook.FROM_UPLINK
        return self.model.receive(hook, answer, self.now)

    def change(self, at: Address, places: list[tuple[str, int]]) -> None:
        """Another set of backends: those that stay keep their number, as in a plan."""
        services = self.model.world.services
        have = {(one.address, one.port): one for one in services[at].inside} if at in services else {}
        backends = []
        for place in sorted(places):
            self.numbers += 1
            backends.append(have.get(place) or Backend(*place, self.numbers))
        number = 1 + FRONT_ADDRESSES.index(at)
        self.model.world = replace(self.model.world, services={**services, at: Service.for_all(number, *backends)})


FRONT_ADDRESSES = [
    Address(*front, protocol) for fronts in FRONTS.values() for front in fronts for protocol in WITH_PORTS
]


def after(history: list[object]) -> History:
    """The model after all steps, with all services there from the start."""
    past = History(Model(EMPTY))
    for at, fronts in FRONTS.items():
        for front in FRONT_ADDRESSES:
            if (front.address, front.port) in fronts:
                past.change(front, BACKENDS[at])
    for step in history:
        past.take(step)
    return past


@some
@given(steps)
def test_N3_N93_no_two_live_flows_share_a_reply_tuple(history: list[object]) -> None:
    """At no time, in either table: an answer is always one flow's."""
    past = after([])
    for step in history:
        past.take(step)
        callers_of: dict[object, set[object]] = {}
        for came, leaves in past.model.flows.live(past.model.world, past.now):
            callers_of.setdefault(leaves.reverse, set()).add(came)
        assert all(len(callers) == 1 for callers in callers_of.values()), callers_of


@some
@given(steps, calls())
def test_N30_replies_get_back_the_address_that_was_called(history: list[object], call: tuple[Hook, Packet]) -> None:
    """Whatever went before: who is answered at once, is answered by whom he called."""
    hook, packet = call
    past = after([*history, *(Interface(name, is_there=True) for name in EMPTY.interfaces)])
    there = past.send(hook, replace(packet, flags="S") if packet.protocol == "TCP" else packet)
    if there.kind == "drop":
        return
    back = past.answer(there, "SA")
    assert back.packet.tuple == packet.tuple.reverse


@some
@given(
    steps,
    versions.flatmap(lambda at: st.permutations([at.CLIENT, at.BACKEND, at.SECOND])),
    ports,
    st.sampled_from([22, 443]),
    st.sampled_from(["", *FLAGS]),
)
def test_N9_a_plain_packet_between_pods_is_never_rewritten(
    history: list[object], pods: list[str], sport: int, dport: int, flags: str
) -> None:
    """To a port where no backend listens: left to the stack as it came, and no flow is entered for it."""
    past = after(history)
    before = dict(past.model.flows.main), dict(past.model.flows.half_open)
    packet = Packet(pods[0], sport, pods[1], dport, "TCP" if flags else "UDP", flags)
    assert past.send(Hook.FROM_POD, packet) == Verdict("pass", packet, "stack")
    assert before == (past.model.flows.main, past.model.flows.half_open)


@some
@given(steps)
def test_N4_N5_every_flow_is_whole(history: list[object]) -> None:
    """Both directions of every flow stand in the main table, each the other's mirror; nothing else stands there."""
    flows = after(history).model.flows
    for key, entry in flows.main.items():
        other = flows.main[entry.to.reverse]
        assert other.to == key.reverse
        assert (other.backend, other.state, other.plain) == (entry.backend, entry.state, entry.plain)
        assert {entry.reply, other.reply} == {True, False} or entry.to.reverse == key


@some
@given(steps, calls().filter(lambda call: call[1].tuple.called in FRONT_ADDRESSES))
def test_C8_no_caller_of_a_service_is_left_with_a_gone_pod(history: list[object], call: tuple[Hook, Packet]) -> None:
    """Whose backend has left the service, with its interface: he is told, or gets another backend (C9)."""
    past = after(history)
    past.send(*call)
    past.model.world = replace(past.model.world, services={}, interfaces=frozenset())
    verdict = past.send(*call)
    assert verdict.to not in EMPTY.endpoints


@some
@given(steps)
def test_N108_what_is_dropped_has_a_name(history: list[object]) -> None:
    """And what is not, has none; lengths never change (N81)."""
    past = after(history)
    kinds = Counter((verdict.kind == "drop", bool(verdict.reason)) for verdict in past.left)
    assert set(kinds) <= {(True, True), (False, False)}
    assert {verdict.packet.length for verdict in past.left} <= {60}
