"""The maps as dicts, written in the order that `kernel.table_writes.write` keeps, and read as `read_live` does.

A Cluster makes changes to them and looks at every address after each single write.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import strategies as st

from pydatapath.guarding import GuardChange, Guards, SourceRange
from pydatapath.kernel.layout import Family, ServiceFlag
from pydatapath.plan import (
    Address,
    Called,
    Change,
    EndpointSet,
    Frontend,
    FrontendKind,
    Live,
    LiveBackend,
    PortPlan,
    Run,
    change,
)

# What a packet to an address meets: nobody owns it; or these answer callers inside, these outside, each as often as it
# stands there, and the others are dropped; and for this long a client keeps its backend
Answer = tuple[tuple[Address, ...], tuple[Address, ...], ServiceFlag, int] | None


@dataclass
class Maps:
    """The maps, and every number and generation that was given."""

    slot_limit: int = 512
    backend_limit: int = 128
    services: dict[Address, Called] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    backends: dict[int, LiveBackend] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    draining: set[int] = field(default_factory=set)
    targets: dict[Address, int] = field(default_factory=dict)
    guards: Guards = field(default_factory=Guards)

    def read(self, numbers: Collection[int] | None) -> Live:
        """What `tables.read_live` gives for these service ports, or for all (None)."""
        live = Live(slot_limit=self.slot_limit, backend_limit=self.backend_limit, whole=numbers is None)
        live.services = dict(self.services)
        live.targets = dict(self.targets)
        live.guards = Guards(dict(self.guards.vips), set(self.guards.ranges))
        live.free_backends = self._free()
        changing = [one for one in self.services.values() if numbers is None or one.number in numbers]
        live.other_slots = self.members
        live.slots = {run.first_slot: self.members(run) for one in changing for run in one.runs}
        members = sorted(self.active) if numbers is None else [one for run in live.slots.values() for one in run]
        live.backends = {one: self.backends[one] for one in members if one in self.active}
        for one in sorted(self.draining):
            if numbers is None or self.backends[one].service in numbers:
                live.backends[one] = self.backends[one]._replace(draining=True)
        return live

    def _free(self) -> Iterator[tuple[int, int]]:
        numbers = range(1, self.backend_limit)
        yield from ((one, 0) for one in numbers if one not in self.backends)
        gone = self.backends.keys() - self.active - self.draining
        yield from ((one, self.backends[one].generation) for one in sorted(gone))

    def _put(self, number: int, backend: LiveBackend) -> None:
        self.backends[number] = backend
        self.active.add(number)
        self.draining.discard(number)

    def _drain(self, number: int) -> None:
        self.active.remove(number)
        self.draining.add(number)

    def _end(self, number: int) -> None:
        self.active.discard(number)
        self.draining.discard(number)

    def writes(self, wanted: Change) -> Iterator[Callable[[], object]]:
        """Each single write of a change, in the order of `table_writes.write`."""
        for move in wanted.moves:
            yield from self._run_writes(move.slots, move.services)
        for number, backend in wanted.backends.items():
            yield lambda n=number, b=backend: self._put(n, b)
        for at, count in wanted.targets.items():
            yield lambda a=at, c=count: self.targets.update({a: c})
        yield from self._run_writes(wanted.slots, {})
        yield from self._guard_writes(wanted.guards)
        for at, called in wanted.services.items():
            yield lambda a=at, c=called: self.services.update({a: c})
        for at in wanted.removed_services:
            yield lambda a=at: self.services.pop(a)
        for number in wanted.draining_backends:
            yield lambda n=number: self._drain(n)
        for number in wanted.gone_backends:
            yield lambda n=number: self._end(n)
        for at in wanted.removed_targets:
            yield lambda a=at: self.targets.pop(a)
        yield from self._guard_removals(wanted.guards)

    def _run_writes(
        self, runs: dict[int, tuple[int, ...]], services: dict[Address, Called]
    ) -> Iterator[Callable[[], object]]:
        for first, members in runs.items():
            for place, number in enumerate(members, start=first):
                yield lambda p=place, n=number: self.slots.update({p: n})
        for at, called in services.items():
            yield lambda a=at, c=called: self.services.update({a: c})

    def _guard_writes(self, guards: GuardChange) -> Iterator[Callable[[], object]]:
        for address, kind in guards.vips.items():
            yield lambda a=address, k=kind: self.guards.vips.update({a: k})
        for one in guards.ranges:
            yield lambda o=one: self.guards.ranges.add(o)

    def _guard_removals(self, guards: GuardChange) -> Iterator[Callable[[], object]]:
        for address in guards.removed_vips:
            yield lambda a=address: self.guards.vips.pop(a)
        for one in guards.removed_ranges:
            yield lambda o=one: self.guards.ranges.remove(o)

    def members(self, run: Run) -> tuple[int, ...]:
        """The backend numbers in a run's slots."""
        return tuple(self.slots[place] for place in range(run.first_slot, run.first_slot + run.slot_count))

    def answer(self, at: Address) -> Answer:
        """Who can answer a new flow to an address: every slot is looked into, as random choice would."""
        called = self.services.get(at)
        if called is None:
            return None
        inside, outside = self.members(called.inside), self.members(called.outside)
        assert self.active.issuperset(inside + outside), "a packet meets a slot whose backend is gone, or drains"
        found = (tuple(self.backends[one].address for one in members) for members in (inside, outside))
        return (*found, called.flags, called.affinity)

    def check(self, wanted: Collection[PortPlan], numbers: dict[tuple[str, ...], int]) -> None:
        """The maps hold exactly what is wanted."""
        assert {at: self.answer(at) for at in self.services} == answers(wanted)
        assert {at: called.number for at, called in self.services.items()} == {
            one.address: numbers[port.key] for port in wanted for one in port.frontends
        }
        assert Tally(self.backends[one].address for one in self.active | self.draining) == self.targets
        wanted_guards = [port.guard(numbers[port.key]) for port in wanted]
        assert self.guards.vips == {at: kind for guard in wanted_guards for at, kind in guard.vips.items()}
        assert self.guards.ranges == {
            SourceRange(guard.number, network) for guard in wanted_guards for network in guard.networks
        }
        assert sorted((self.backends[one].service, self.backends[one].address) for one in self.active) == sorted(
            (numbers[port.key], at) for port in wanted for at in {at for used in port.sets.values() for at in used}
        )
        drained = {(self.backends[one].service, self.backends[one].address) for one in self.draining}
        assert len(drained) == len(self.draining)
        assert drained <= {(numbers[port.key], at) for port in wanted for at in port.draining}
        runs = sorted({run for called in self.services.values() for run in called.runs})
        for first, second in pairwise(runs):
            assert first.first_slot + first.slot_count <= second.first_slot, "two runs share a slot"
        assert all(run.first_slot + run.slot_count <= self.slot_limit for run in runs)


def answers(wanted: Collection[PortPlan]) -> dict[Address, Answer]:
    return {
        one.address: (port.slots[one.inside], port.slots[one.outside], port.flags(one), port.affinity)
        for port in wanted
        for one in port.frontends
    }


FRONTENDS = [Address(f"10.96.0.{last}", 80, "TCP") for last in range(1, 6)]
BACKENDS = [Address(f"10.244.1.{last}", 8080, "TCP") for last in range(1, 7)]
FRONTENDS6 = [Address(f"fd00:10:96::{last}", 80, "TCP") for last in range(1, 4)]
BACKENDS6 = [Address(f"fd00:10:244:1::{last}", 8080, "TCP") for last in range(1, 4)]
SERVICES = ["a", "b", "c", "d"]


KINDS: list[FrontendKind] = ["cluster-ip", "load-balancer-ip"]
SOURCES = [None, (), ("10.0.0.0/8",), ("10.0.0.0/8", "192.0.2.0/24")]
SOURCES6 = [None, (), ("2001:db8::/32",)]
WEIGHTS = [1, 1, 1, 2, 3, 0, 0]


# An address of each kind: ClusterIP and others of policy Cluster; ClusterIP of policy Local; others of policy Local
SETS: list[tuple[EndpointSet, EndpointSet]] = [("cluster", "cluster"), ("local", "local"), ("cluster", "local")]


def port(service: str, frontends: str, backends: str, local: str | None = None, affinity: int = 0) -> PortPlan:
    """A service port; its addresses and backends are said by their places, as in `"a", "01", "123"`.

    With `local` the addresses are those of a node port of policy Local.
    """
    inside, outside = SETS[0] if local is None else SETS[2]
    called = tuple(Frontend(FRONTENDS[int(place)], "cluster-ip", inside, outside) for place in frontends)
    cluster, here = (tuple(BACKENDS[int(place)] for place in places or "") for places in (backends, local))
    return PortPlan("default", service, "http", "TCP", called, cluster, here, affinity)


@st.composite
def worlds(draw: st.DrawFn) -> list[PortPlan]:
    """Some of the services, each in one family, in both (S8) or in none."""
    return draw(families(Family.IPV4)) + draw(families(Family.IPV6))


@st.composite
def families(draw: st.DrawFn, family: Family) -> list[PortPlan]:
    """Some of the services in one family, each address with one of them or with none, each with some of the backends,
    weighted.

    A service's two sets are drawn each for itself: the local one may have what the other has not (S24, S87). Some
    backends drain: they are in neither set.
    """
    six = family is Family.IPV6
    frontends, backends = (FRONTENDS6, BACKENDS6) if six else (FRONTENDS, BACKENDS)
    owners = draw(st.lists(st.sampled_from([*SERVICES, None]), min_size=len(frontends), max_size=len(frontends)))
    found = []
    for name in sorted({one for one in owners if one}):
        called = tuple(
            Frontend(frontends[place], draw(st.sampled_from(KINDS)), *draw(st.sampled_from(SETS)))
            for place, owner in enumerate(owners)
            if owner == name
        )
        drawn = draw(st.lists(st.sampled_from(WEIGHTS), min_size=len(backends), max_size=len(backends)))
        weights = {at: weight for at, weight in zip(backends, drawn, strict=True) if weight != 1}
        taking = st.sampled_from([at for at in backends if weights.get(at, 1)])
        cluster, local = (tuple(sorted(draw(st.sets(taking)))) if any(drawn) else () for _ in range(2))
        affinity, sources = draw(st.sampled_from((0, 10_800))), draw(st.sampled_from(SOURCES6 if six else SOURCES))
        found.append(
            PortPlan(
                "default",
                name,
                "http",
                "TCP",
                called,
                cluster,
                local,
                affinity,
                sources,
                weights=weights,
                family=family,
            )
        )
    return found


class Cluster:
    """Maps, the numbers of service ports as the records give them, and what was asked for last."""

    def __init__(self, maps: Maps | None = None) -> None:
        self.maps = maps or Maps()
        self.numbers: dict[tuple[str, ...], int] = {}
        self.wanted: list[PortPlan] = []
        self._last = 0

    def plan(self, wanted: list[PortPlan], *, everything: bool = False) -> Change:
        """The change to what is wanted, of the services that differ from before or of all."""
        self.wanted, old = wanted, self.wanted
        changing = [one for one in wanted if everything or one not in old]
        keys = {one.key for one in changing} | {one.key for one in old if one not in wanted}
        had = {self.numbers[key] for key in keys if key in self.numbers}
        for one in wanted:
            if one.key not in self.numbers:
                self._last += 1
                self.numbers[one.key] = self._last
        for key in self.numbers.keys() - {one.key for one in wanted}:
            del self.numbers[key]
        live = self.maps.read(None if everything else had | {self.numbers[one.key] for one in changing})
        before = live.called if everything else {number: live.called.get(number, []) for number in had}
        return change(changing, before, self.numbers, live)

    def apply(self, wanted: list[PortPlan], *, everything: bool = False, stop: int | None = None) -> Change:
        """Makes the change, and checks after each write that every address answers as before or as wanted."""
        before = {at: self.maps.answer(at) for at in (*FRONTENDS, *FRONTENDS6)}
        had = dict(self.maps.backends)
        alive = self.maps.active | self.maps.draining
        planned, after = self.plan(wanted, everything=everything), answers(wanted)
        for place, write in enumerate(self.maps.writes(planned)):
            if place == stop:
                return planned
            write()
            for at, answer in before.items():
                assert self.maps.answer(at) in (answer, after.get(at)), f"half a change at {at}"
        for number, one in planned.backends.items():
            if number in alive:
                assert had[number] == one, "the flows that it has would go elsewhere"
            else:
                last = had[number].generation if number in had else 0
                assert one.generation == last + 1, "a flow of the number's last owner would go here"
        return planned

    def backend(self, service: str, address: Address) -> int:
        """The number of a backend of a service, active or draining; 0 where it has none."""
        keys = {number: key for key, number in self.numbers.items()}
        for number in self.maps.active | self.maps.draining:
            one = self.maps.backends[number]
            if one.address == address and keys.get(one.service, ("", ""))[1] == service:
                return number
        return 0
