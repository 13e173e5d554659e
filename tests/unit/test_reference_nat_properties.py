"""What holds on the model of masquerading, whatever was sent before: calls, answers, strangers' packets, pauses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from talking import HIDDEN, V4, V6

from pydatapath.reference import (
    TIMEOUTS,
    Address,
    Backend,
    Hook,
    Masquerade,
    Model,
    NatType,
    Packet,
    Protocol,
    Service,
    State,
    Verdict,
)

some = settings(max_examples=200, deadline=None, database=None)
OUTSIDE = {V4: ["192.0.2.9", "192.0.2.8"], V6: ["2001:db8::9", "2001:db8::8"]}
PROTOCOLS: list[Protocol] = ["TCP", "UDP", "UDP", "SCTP", "ICMP"]
UDP_LIVES = TIMEOUTS["UDP", State.ESTABLISHED]
FEW = range(7000, 7006)  # ports: so that they are taken soon

versions = st.sampled_from([V4, V6])
kinds = st.sampled_from(NatType)


@st.composite
def calls(draw: st.DrawFn) -> Packet:
    """A pod, or the node itself, calls the outside, or a service that leads there."""
    at = draw(versions)
    source = draw(st.sampled_from([at.CLIENT, at.BACKEND, at.SECOND, at.UPLINK]))
    protocol = draw(st.sampled_from(PROTOCOLS))
    if protocol == "ICMP":
        return Packet(source, draw(st.sampled_from([5000, 7001])), OUTSIDE[at][0], 0, "ICMP")
    called = draw(st.sampled_from([*OUTSIDE[at], at.EXTERNAL]))
    flags = {"TCP": draw(st.sampled_from(["S", "S", "A", "R"])), "SCTP": "S"}.get(protocol, "")
    return Packet(source, draw(st.sampled_from([5000, 5000, 7001])), called, 80, protocol, flags)


# An answer, or something from another port (a stranger), to one of the last packets that left; one of these again
answers = st.tuples(st.integers(0, 4), st.sampled_from(["SA", "A", "FA", "R"]), st.sampled_from([0, 0, 81]))
again = st.tuples(st.integers(0, 4), st.just("again"))
pauses = st.sampled_from([0.5, 2.0, 61.0, 121.0, 250.0, 301.0])
steps = st.lists(calls() | calls() | answers | answers | again | pauses, max_size=30)


@dataclass
class Past:
    """A model, what left the node, and when each inside end has last sent something outwards, or had an answer."""

    model: Model
    now: float = 0.0
    sent: list[Packet] = field(default_factory=list)
    left: list[Packet] = field(default_factory=list)
    outwards: dict[Address, float] = field(default_factory=dict)
    answered: dict[Address, float] = field(default_factory=dict)

    def take(self, step: object) -> list[Verdict]:
        """One step of whatever kind; all that became of the packet, at one hook after the other."""
        match step:
            case float():
                self.now += step
            case Packet():
                return self.leave(step)
            case int() as back, "again" if back < len(self.sent):
                return self.leave(self.sent[-1 - back])
            case int() as back, str() as flags, int() as port if back < len(self.left):
                return [self.come(self.left[-1 - back], flags, port)]
        return []

    def leave(self, packet: Packet) -> list[Verdict]:
        """From a pod, and by the uplink where the stack has it; the node's own by the uplink alone."""
        hooks = [Hook.FROM_POD, Hook.TO_UPLINK] if self.model.world.is_pod(packet.source) else [Hook.TO_UPLINK]
        verdicts: list[Verdict] = []
        for hook in hooks:
            verdicts.append(self.model.receive(hook, packet, self.now))
            if (verdicts[-1].kind, verdicts[-1].packet) != ("pass", packet):
                break  # carries a mark: tests/traffic/test_nat_types.py says that it is not walked again
        self.sent.append(packet)
        if verdicts[-1].kind != "drop":
            self.left.append(verdicts[-1].packet)
            self.outwards[packet.tuple.reverse.called] = self.now
        return verdicts

    def come(self, to: Packet, flags: str, port: int) -> Verdict:
        """The answer to what has left, or a stranger's packet."""
        packet = to.readdressed(to.tuple.reverse)
        port = port if port and packet.source_port else packet.source_port
        had = flags if packet.protocol == "TCP" else ""
        verdict = self.model.receive(Hook.FROM_UPLINK, replace(packet, source_port=port, flags=had), self.now)
        self.answered[verdict.packet.tuple.called] = self.now
        return verdict


def begun(kind: NatType) -> Past:
    """A service whose backend is outside, at an external address, in both versions; and few ports."""
    backends = {at: Backend(OUTSIDE[at][0], 80, 9) for at in (V4, V6)}
    services = {Address(at.EXTERNAL, 80): Service.for_all(1, backends[at]) for at in (V4, V6)}
    how = Masquerade(HIDDEN.masquerade.egress if HIDDEN.masquerade else (), kind, FEW)
    return Past(Model(replace(HIDDEN, masquerade=how, services=services)))


def through(kind: NatType, history: list[object]) -> Iterator[tuple[Past, list[Verdict]]]:
    """The model after each of the steps, and what became of its packet."""
    past = begun(kind)
    for step in history:
        yield past, past.take(step)


@some
@given(kinds, steps)
def test_N3_N97_no_two_live_mappings_share_a_reply_tuple(kind: NatType, history: list[object]) -> None:
    """An answer is always one flow's; an outside end is always one inside end's."""
    for past, _ in through(kind, history):
        callers: dict[object, set[object]] = {}
        for came, leaves in past.model.flows.live(past.model.world, past.now):
            callers.setdefault(leaves.reverse, set()).add(came)
        assert all(len(one) == 1 for one in callers.values()), callers
        mappings = past.model.mappings
        insides = [one for one in mappings.outside if mappings.outside_of(one, past.now)]
        outsides = [mappings.outside_of(one, past.now) for one in insides]
        assert len(set(outsides)) == len(outsides)
        assert all(
            mappings.inside_of(out, past.now) == one.end for one, out in zip(insides, outsides, strict=True) if out
        )


@some
@given(kinds, steps)
def test_N12_N34_N42_no_mapping_outlives_its_timers(kind: NatType, history: list[object]) -> None:
    """Who has sent nothing for five minutes, nor had an answer, has none; who has sent something lately has one."""
    for past, _ in through(kind, history):
        for inside in past.model.mappings.outside:
            alive = past.model.mappings.outside_of(inside, past.now) is not None
            silent = past.now - past.outwards.get(inside.end, -UDP_LIVES)
            unheard = past.now - past.answered.get(inside.end, -UDP_LIVES)
            assert not (alive and min(silent, unheard) > UDP_LIVES), inside
            assert alive or silent > UDP_LIVES - 1, inside  # a stamp is not written again within a second


@some
@given(kinds, steps)
def test_C13_N84_nothing_leaves_under_a_pods_address(kind: NatType, history: list[object]) -> None:
    """Whatever went before (N96)."""
    for past, _ in through(kind, history):
        assert not [one for one in past.left if past.model.world.must_hide(one.source, one.destination)]


@some
@given(kinds, steps, calls())
def test_an_answer_comes_from_whom_was_called(kind: NatType, history: list[object], call: Packet) -> None:
    """And to who has called, whatever went before."""
    past = begun(kind)
    for step in history:
        past.take(step)
    there = past.leave(replace(call, flags="S") if call.protocol == "TCP" else call)[-1]
    if there.kind != "drop":
        back = past.come(there.packet, "SA", 0)
        assert (back.packet.tuple, back.reason) == (call.tuple.reverse, "")
