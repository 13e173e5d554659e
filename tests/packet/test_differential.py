"""Random histories, step by step through the kernel's programs and through the model: both must do the same.

PYDATAPATH_DIFFERENTIAL=100000 PYDATAPATH_SEED=5000 pytest tests/packet/test_differential.py     others, and more
(PYDATAPATH_STEPS=15: shorter ones)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from histories import history, opening, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packetbed import Bed
from steps import Send, Serve, Step
from twins import Run, compare, shortest
from worlds import HERE, HIDDEN, LIMITED, OTHERWISE_TIMED, PAST

from pydatapath.kernel.layout import NatType as KernelNatType
from pydatapath.reference import (
    Backend,
    Choice,
    Chooser,
    Entry,
    Flows,
    FlowTuple,
    Fragments,
    Hook,
    Model,
    NatType,
    Packet,
    Service,
    Verdict,
    World,
)
from pydatapath.reference.entry import Moment
from pydatapath.reference.fragments import Datagram
from pydatapath.reference.nat import Search

COUNT = int(os.environ.get("PYDATAPATH_DIFFERENTIAL", "5000"))
AWAY = int(os.environ.get("PYDATAPATH_DIFFERENTIAL", "2000"))  # with masquerading
FIRST = int(os.environ.get("PYDATAPATH_SEED", "0"))
PATIENCE, SLOW = 20, 0.05  # seconds after which it ends where a history takes this long on average: in an emulator
SOON = 400  # histories within which a fault must show
# Which kernel it is makes no difference to these, but in an emulator a history takes a second
ON_THE_MACHINE = pytest.mark.skipif("PYDATAPATH_EMULATED" in os.environ, reason="hundreds of histories take too long")


def told(run: Run) -> str:
    """The message of a history that differs."""
    return "\n".join([f"after these {len(run.steps)} steps: {run.difference}", *(f"    {one!r}," for one in run.steps)])


def take(
    bed: Bed,
    count: int,
    made: Callable[[Random], list[Step]],
    capsys: pytest.CaptureFixture[str],
    model: Callable[[World], Model] = Model,
    world: World = HERE,
) -> None:
    """Takes the kernel and the model through so many histories, and says how long that took."""
    began, packets, done, spent = time.monotonic(), 0, 0, 0.0
    while done < count and not ("PYDATAPATH_EMULATED" in os.environ and spent > PATIENCE and spent > done * SLOW):
        run = compare(bed, made(Random(FIRST + done)), model, world)
        if run.difference:
            pytest.fail(f"PYDATAPATH_SEED={FIRST + done}, {told(shortest(bed, run, model, world))}", pytrace=False)
        packets += sum(isinstance(one, Send) for one in run.steps)
        done, spent = done + 1, time.monotonic() - began
    assert done == count or "PYDATAPATH_EMULATED" in os.environ, f"only {done:,} of {count:,} in {spent:.0f} s"
    with capsys.disabled():
        sys.stdout.write(f"\n{done:,} of {count:,} histories, {packets:,} packets, {spent:.1f} s\n")


@pytest.mark.timeout(180 + COUNT // 20)
def test_the_kernel_does_what_the_model_does(bed: Bed, capsys: pytest.CaptureFixture[str]):
    """In thousands of histories, always the same ones."""
    take(bed, COUNT, history, capsys)


@pytest.mark.timeout(180 + COUNT // 20)
def test_pods_pass_the_bridge_by_as_in_the_model(past: Bed, capsys: pytest.CaptureFixture[str]):
    """In thousands of histories, always the same ones, and nothing else is another than where they do not."""
    take(past, AWAY, history, capsys, Model, PAST)


@pytest.mark.timeout(180 + COUNT // 20)
def test_who_leaves_the_cluster_is_masqueraded_as_in_the_model(
    typed: tuple[KernelNatType, Bed], capsys: pytest.CaptureFixture[str]
):
    """In thousands of histories, always the same ones, of pods and the node that call the same outside."""
    kind, bed = typed
    count = AWAY if kind is KernelNatType.ENDPOINT_INDEPENDENT else AWAY // 4
    how = replace(HIDDEN.masquerade, type=NatType[kind.name]) if HIDDEN.masquerade else None
    take(bed, count, partial(history, away=True), capsys, Model, replace(HIDDEN, masquerade=how))


@pytest.mark.timeout(180 + COUNT // 20)
def test_C14_flows_end_at_the_times_that_are_said_as_in_the_model(timed: Bed, capsys: pytest.CaptureFixture[str]):
    """In a few hundred histories: other timers than usual, few ports, and pods that pass the bridge by."""
    take(timed, AWAY // 4, partial(history, away=True), capsys, Model, OTHERWISE_TIMED)


@pytest.mark.timeout(180 + COUNT // 20)
def test_N24_what_a_pod_pays_for_its_flows_is_as_in_the_model(limited: Bed, capsys: pytest.CaptureFixture[str]):
    """After each packet; that who has paid is refused, garbage tries (test_garbage.py): it has the calls for that."""
    take(limited, AWAY // 4, partial(history, away=True), capsys, Model, LIMITED)


# A step is a choice of its own, so that it may be taken away; what is in it comes from a seed, for as many choices as
# `step` makes would leave hypothesis with histories of a packet or two
seeds = st.integers(0, 0xFFFFFFFF).map(Random)


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """As history makes them."""
    scopes, steps = opening(draw(seeds))
    return steps + [step(draw(seeds), scopes) for _ in range(draw(st.integers(0, 40)))]


@settings(deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories())
def test_hypothesis_finds_no_history_that_differs(bed: Bed, steps: list[Step]):
    """Always the same ones, and the shortest if there is one."""
    run = compare(bed, steps)
    assert not run.difference, told(run)


# Models with one fault each: a comparison that does not see these sees nothing


class Unrefreshed(Flows):
    """What comes after a second refreshes nothing."""

    def follow(self, moment: Moment) -> Entry | None:
        seen = {key: entry.last_seen for key, entry in self.main.items()}
        found = super().follow(moment)
        for key in seen.keys() & self.main.keys():
            self.main[key] = replace(self.main[key], last_seen=seen[key])
        return found


class Unended(Flows):
    """A SYN does not begin a closing connection anew."""

    def has_ended(self, entry: Entry, world: World, now: float, *, opens: bool = False) -> bool:
        return super().has_ended(entry, world, now)


class Unmet(Flows):
    """Plain calls are not told apart from flows of a service that is gone."""

    def meets_known_answer(self, packet: Packet) -> bool:
        return False


class Bound(Chooser):
    """Affinity has no end."""

    def _kept(
        self, key: FlowTuple, service: Service, used: tuple[Backend, ...], now: float, world: World
    ) -> tuple[Backend, ...]:
        return super()._kept(key, service, used, 0, world)


class Untranslated(Model):
    """The port that was called is the backend's."""

    def _to_backend(self, hook: Hook, packet: Packet, backend: Backend) -> Entry:
        entry = super()._to_backend(hook, packet, backend)
        return replace(entry, to=replace(entry.to, destination_port=packet.destination_port))


class Unhidden(Model):
    """Every backend sees the caller's own address, and a pod itself."""

    def _to_backend(self, hook: Hook, packet: Packet, backend: Backend) -> Entry:
        entry = super()._to_backend(hook, packet, backend)
        return replace(entry, to=replace(entry.to, source=packet.source))


class Unrouted(Model):
    """No TTL falls."""

    def _send(self, hook: Hook, moment: Moment, entry: Entry) -> Verdict:
        verdict = super()._send(hook, moment, entry)
        return replace(verdict, packet=replace(verdict.packet, ttl=moment.packet.ttl))


class Unburied(Model):
    """Nobody looks whether a pod is there."""

    def _look_for_the_pod(self, hook: Hook, moment: Moment, entry: Entry | None) -> None:
        pass


class Unasked(Model):
    """What is sent by the loopback interface is met as what is sent by the bridge."""

    def receive(self, hook: Hook, packet: Packet, *args: Any, **kwargs: Any) -> Verdict:
        return super().receive(Hook.TO_BRIDGE if hook is Hook.TO_LOOPBACK else hook, packet, *args, **kwargs)


class Resettled(Flows):
    """An SCTP association whose backend is gone chooses again."""

    def begins_anew(self, entry: Entry, moment: Moment) -> bool:
        again = entry.to.protocol == "SCTP" and entry.is_forsaken(moment.world)
        return again or super().begins_anew(entry, moment)


class OneVersion(Model):
    """IPv6's backends see an address of the node's that is not its own."""

    def _to_backend(self, hook: Hook, packet: Packet, backend: Backend) -> Entry:
        entry = super()._to_backend(hook, packet, backend)
        hidden = entry.to.source != packet.source and ":" in packet.source
        return replace(entry, to=replace(entry.to, source="fd00::1")) if hidden else entry


class Unforgetting(Fragments):
    """A first fragment is followed for ever."""

    def follow(self, later: Packet, now: float) -> FlowTuple | None:
        return super().follow(later, 0)


class Mixing(Fragments):
    """One identification is one datagram, whoever sends it."""

    def follow(self, later: Packet, now: float) -> FlowTuple | None:
        of, own = Datagram.of(later), super().follow(later, now)
        others = (replace(later, source=one.source) for one in self.noted if one[1:] == of[1:])
        return own or next(filter(None, (super(Mixing, self).follow(one, now) for one in others)), None)


class Unquoting(Model):
    """An error quotes what has left, not what its receiver has sent."""

    def _error(self, hook: Hook, moment: Moment) -> Verdict:
        verdict = super()._error(hook, moment)
        return replace(verdict, packet=replace(verdict.packet, error=moment.packet.error))


class Renaming(Model):
    """All errors come from the address that was called."""

    def _error(self, hook: Hook, moment: Moment) -> Verdict:
        verdict = super()._error(hook, moment)
        told = verdict.packet.error
        renamed = told and told != moment.packet.error
        return (
            replace(verdict, packet=replace(verdict.packet, source=verdict.packet.tuple.source)) if renamed else verdict
        )


class Reviving(Model):
    """An error keeps its flow alive."""

    def _error(self, hook: Hook, moment: Moment) -> Verdict:
        for key in (moment.packet.tuple, moment.packet.tuple.reverse):
            if key in self.flows.main:
                self.flows.main[key] = replace(self.flows.main[key], last_seen=moment.now)
        return super()._error(hook, moment)


class Alone(Model):
    """Node objects tell nothing."""

    def receive(self, hook: Hook, packet: Packet, *args: Any, **kwargs: Any) -> Verdict:
        nodes, self.world = self.world.nodes, replace(self.world, nodes=())
        try:
            return super().receive(hook, packet, *args, **kwargs)
        finally:
            self.world = replace(self.world, nodes=nodes)


def made(
    world: World,
    flows: type[Flows] = Flows,
    chooser: type[Chooser] = Chooser,
    fragments: type[Fragments] = Fragments,
) -> Model:
    """A model of these parts."""
    model = Model(world)
    model.flows, model.chooser, model.fragments = flows(), chooser(), fragments()
    return model


FAULTS: dict[str, Callable[[World], Model]] = {
    one.__name__: one if issubclass(one, Model) else partial(made, **{part: one})
    for part, one in (
        ("flows", Unrefreshed),
        ("flows", Unended),
        ("flows", Unmet),
        ("chooser", Bound),
        ("", Untranslated),
        ("", Unhidden),
        ("", Unrouted),
        ("", Unburied),
        ("", Unasked),
        ("flows", Resettled),
        ("", OneVersion),
        ("fragments", Unforgetting),
        ("fragments", Mixing),
        ("", Unquoting),
        ("", Renaming),
        ("", Reviving),
        ("", Alone),
    )
}


@ON_THE_MACHINE
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_with_a_fault_differs_soon(bed: Bed, fault: str):
    """Within the first of the histories, whatever the fault is about."""
    runs = (compare(bed, history(Random(seed)), FAULTS[fault]) for seed in range(SOON))
    assert any(run.difference for run in runs)


# Of pods that pass the bridge by


class Bridged(Model):
    """They do not."""

    def receive(self, *args: Any, **kwargs: Any) -> Verdict:
        return super().receive(*args, **{**kwargs, "meant": ""})


class Routing(Model):
    """They do by whatever MAC."""

    def receive(self, hook: Hook, packet: Packet, *args: Any, **kwargs: Any) -> Verdict:
        meant = self.world.endpoints.get(packet.destination, "")
        return super().receive(hook, packet, *args, **{**kwargs, "meant": meant})


class Handing(Model):
    """They are handed over where they must not be."""

    wrongly = ""

    def receive(self, hook: Hook, packet: Packet, *args: Any, **kwargs: Any) -> Verdict:
        verdict, meant = super().receive(hook, packet, *args, **kwargs), kwargs["meant"]
        wrong = meant == kwargs["interface"] if self.wrongly == "back" else meant not in self.world.interfaces
        is_his = meant and meant == self.world.endpoints.get(packet.destination)
        return replace(verdict, kind="forward", to=packet.destination) if wrong and is_his else verdict


class Lost(Handing):
    """To who is no more."""

    wrongly = "lost"


class Turning(Handing):
    """To where they come from."""

    wrongly = "back"


FAULTS_PAST = {one.__name__: one for one in (Bridged, Routing, Lost, Turning)} | {"Unmet": FAULTS["Unmet"]}


@ON_THE_MACHINE
@pytest.mark.parametrize("fault", FAULTS_PAST.values(), ids=FAULTS_PAST)
def test_a_model_with_a_fault_in_passing_by_differs_soon(past: Bed, fault: Callable[[World], Model]):
    """As above."""
    runs = (compare(past, history(Random(seed)), fault, PAST) for seed in range(2 * SOON))
    assert any(run.difference for run in runs)


# Of masquerading


class Robbing(Model):
    """Two pods may have one port outside."""

    def _search(self, moment: Moment) -> Search:
        return Robber(self.flows, self.mappings, moment)


class Robber(Search):
    """Looks for a port, and not whose it is."""

    def _may_have(self, entry: Entry, *, choosy: bool = False) -> bool:
        return True


class Keeping(Model):
    """An echo's identifier is kept, also if it is 0."""

    def _search(self, moment: Moment) -> Search:
        return Keeper(self.flows, self.mappings, moment)


class Keeper(Search):
    """As it is, but for that."""

    def _may_have(self, entry: Entry, *, choosy: bool = False) -> bool:
        return entry.to.protocol == "ICMP" or super()._may_have(entry, choosy=choosy)


class Haunted(Model):
    """Who is masqueraded is there, whatever has become of the pod."""

    def _look_for_the_pod(self, hook: Hook, moment: Moment, entry: Entry | None) -> None:
        if entry is None or not entry.masqueraded:
            super()._look_for_the_pod(hook, moment, entry)


class Fading(Model):
    """What is sent does not keep a mapping."""

    def _refresh_mapping(self, entry: Entry, packet: Packet, now: float) -> None:
        pass


class Shown(Model):
    """To a service's backend outside a pod shows itself."""

    def _hidden(self, hook: Hook, packet: Packet, entry: Entry, interface: str) -> Entry:
        return entry if entry.backend else super()._hidden(hook, packet, entry, interface)


class Open(Model):
    """Who was not asked is let in to the stack."""

    def _other(self, hook: Hook, moment: Moment, told: Choice) -> Verdict:
        if hook is Hook.FROM_UPLINK:
            return Verdict("pass", moment.packet, "stack")
        return super()._other(hook, moment, told)


class Taking(Model):
    """The node's own calls take what is a pod's."""

    def _is_in_the_way(self, hook: Hook, moment: Moment) -> bool:
        return False


class Leaking(Model):
    """A pod that tells of an error outside shows itself."""

    def _error(self, hook: Hook, moment: Moment) -> Verdict:
        verdict, source = super()._error(hook, moment), moment.packet.source
        is_the_peers = source == moment.packet.tuple.source
        return verdict if is_the_peers else replace(verdict, packet=replace(verdict.packet, source=source))


class Parted(Model):
    """Of a flow that is not masqueraded the first fragment alone is exempted."""

    def _send(self, hook: Hook, moment: Moment, entry: Entry) -> Verdict:
        verdict = super()._send(hook, moment, entry)
        if moment.packet.is_first and entry.plain:
            self.fragments = Fragments()
        return verdict


class Welcoming(Model):
    """A pod that calls another by its end outside is let in at once."""

    def _let_in(self, hook: Hook, moment: Moment, entry: Entry) -> Verdict:
        return self._send(hook, moment, entry)


FAULTS_AWAY = (Robbing, Keeping, Haunted, Fading, Shown, Open, Taking, Leaking, Parted, Alone, Welcoming)


@ON_THE_MACHINE
@pytest.mark.parametrize("fault", FAULTS_AWAY)
def test_a_model_with_a_fault_in_masquerading_differs_soon(masquerading: Bed, fault: type[Model]):
    """As above."""
    runs = (compare(masquerading, history(Random(seed), away=True), fault, HIDDEN) for seed in range(2 * SOON))
    assert any(run.difference for run in runs)


def test_a_history_that_differs_is_told_without_what_does_not_matter(bed: Bed):
    """Of a port that is not translated, a service and a call of it are left."""
    runs = (compare(bed, history(Random(seed)), Untranslated) for seed in range(SOON))
    run = shortest(bed, next(run for run in runs if run.difference), Untranslated)
    assert [type(one) for one in run.steps] == [Serve, Send]
    assert "left as" in told(run) or "in half_open" in told(run)
