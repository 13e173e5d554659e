"""The writes that turn one state of the maps into another: safe after each single write, complete at the end.

The maps are dicts here, written in the order that `pydatapath.kernel.tables.write` keeps, and read as `read_live` does.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydatapath.plan import Address, Change, Live, LiveBackend, OutOfRoom, PortPlan, Run, change

brief = settings(deadline=None, max_examples=50)  # a busy machine is no bug

# What a packet to an address meets: nobody owns the address, or these answer it
Answer = tuple[Address, ...] | None


@dataclass
class Maps:
    """The four maps, and every number and generation that was given."""

    slot_limit: int = 256
    backend_limit: int = 128
    services: dict[Address, Run] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    backends: dict[int, LiveBackend] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    targets: dict[Address, int] = field(default_factory=dict)

    def read(self, numbers: Collection[int] | None) -> Live:
        """What `tables.read_live` gives for these service ports, or for all (None)."""
        live = Live(slot_limit=self.slot_limit, whole=numbers is None)
        live.services = dict(self.services)
        live.targets = dict(self.targets)
        live.free_backends = self._free()
        for run in self.services.values():
            if (numbers is None or run.number in numbers) and run.slot_count:
                live.slots[run.first_slot] = tuple(
                    self.slots[place] for place in range(run.first_slot, run.first_slot + run.slot_count)
                )
        members = sorted(self.active) if numbers is None else [one for run in live.slots.values() for one in run]
        live.backends = {one: self.backends[one] for one in members if one in self.active}
        return live

    def _free(self) -> Iterator[tuple[int, int]]:
        numbers = range(1, self.backend_limit)
        yield from ((one, 0) for one in numbers if one not in self.backends)
        yield from ((one, self.backends[one].generation) for one in sorted(self.backends) if one not in self.active)

    def writes(self, wanted: Change) -> Iterator[Callable[[], object]]:
        """Each single write of a change, in the order of `tables.write`."""
        for number, backend in wanted.backends.items():
            yield lambda n=number, b=backend: (self.backends.update({n: b}), self.active.add(n))
        for at, count in wanted.targets.items():
            yield lambda a=at, c=count: self.targets.update({a: c})
        for first, members in wanted.slots.items():
            for place, number in enumerate(members, start=first):
                yield lambda p=place, n=number: self.slots.update({p: n})
        for at, run in wanted.services.items():
            yield lambda a=at, r=run: self.services.update({a: r})
        for at in wanted.removed_services:
            yield lambda a=at: self.services.pop(a)
        for number in wanted.gone_backends:
            yield lambda n=number: self.active.discard(n)
        for at in wanted.removed_targets:
            yield lambda a=at: self.targets.pop(a)

    def answer(self, at: Address) -> Answer:
        """Who can answer a new flow to an address: every slot is looked into, as random choice would."""
        run = self.services.get(at)
        if run is None:
            return None
        members = [self.slots[place] for place in range(run.first_slot, run.first_slot + run.slot_count)]
        assert all(one in self.active for one in members), "a packet meets a slot whose backend is gone"
        return tuple(self.backends[one].address for one in members)

    def check(self, wanted: Collection[PortPlan], numbers: dict[tuple[str, ...], int]) -> None:
        """The maps hold exactly what is wanted."""
        assert {at: self.answer(at) for at in self.services} == answers(wanted)
        assert {at: run.number for at, run in self.services.items()} == {
            at: numbers[port.key] for port in wanted for at in port.frontends
        }
        assert Tally(self.backends[one].address for one in self.active) == self.targets
        assert len(self.active) == sum(len(port.backends) for port in wanted)
        runs = sorted({(run.first_slot, run.slot_count) for run in self.services.values() if run.slot_count})
        for (first, count), (second, _) in pairwise(runs):
            assert first + count <= second, "two runs share a slot"
        assert all(first + count <= self.slot_limit for first, count in runs)


def answers(wanted: Collection[PortPlan]) -> dict[Address, Answer]:
    return {at: port.backends for port in wanted for at in port.frontends}


FRONTENDS = [Address(f"10.96.0.{last}", 80, "TCP") for last in range(1, 6)]
BACKENDS = [Address(f"10.244.1.{last}", 8080, "TCP") for last in range(1, 7)]
SERVICES = ["a", "b", "c", "d"]


def port(service: str, frontends: str, backends: str) -> PortPlan:
    """A service port; its addresses and backends are said by their places, as in `"a", "01", "123"`."""
    chosen = tuple(FRONTENDS[int(place)] for place in frontends), tuple(BACKENDS[int(place)] for place in backends)
    return PortPlan("default", service, "http", "TCP", *chosen)


@st.composite
def worlds(draw: st.DrawFn) -> list[PortPlan]:
    """Some of the services, each address with one of them or with none, each with some of the backends."""
    owners = draw(st.lists(st.sampled_from([*SERVICES, None]), min_size=len(FRONTENDS), max_size=len(FRONTENDS)))
    found = []
    for name in sorted({one for one in owners if one}):
        places = "".join(str(place) for place, owner in enumerate(owners) if owner == name)
        members = draw(st.sets(st.sampled_from("012345")))
        found.append(port(name, places, "".join(sorted(members))))
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
        before = {at: self.maps.answer(at) for at in FRONTENDS}
        used = {number: one.generation for number, one in self.maps.backends.items()}
        planned, after = self.plan(wanted, everything=everything), answers(wanted)
        for place, write in enumerate(self.maps.writes(planned)):
            if place == stop:
                return planned
            write()
            for at in FRONTENDS:
                assert self.maps.answer(at) in (before[at], after.get(at)), f"half a change at {at}"
        for number, one in planned.backends.items():
            assert one.generation == used.get(number, 0) + 1, "a flow of the number's last owner would go here"
        return planned


@settings(brief)
@given(st.lists(worlds(), min_size=1, max_size=5))
def test_every_address_answers_as_before_or_as_wanted_after_each_write(steps: list[list[PortPlan]]) -> None:
    """From any state to any other no packet meets half a change, and at the end the maps hold what is wanted."""
    cluster = Cluster()
    for wanted in steps:
        cluster.apply(wanted)
        cluster.maps.check(wanted, cluster.numbers)


@settings(brief)
@given(st.lists(worlds(), min_size=1, max_size=3))
def test_a_second_change_to_the_same_is_empty(steps: list[list[PortPlan]]) -> None:
    """What is there already is not written again, whether some services are looked at or all."""
    cluster = Cluster()
    for wanted in steps:
        cluster.apply(wanted)
        assert cluster.plan(wanted).empty
        assert cluster.plan(wanted, everything=True).empty


@settings(brief)
@given(worlds(), worlds(), worlds(), st.integers(0, 40))
def test_a_change_that_was_killed_is_finished_by_the_next(
    first: list[PortPlan], second: list[PortPlan], third: list[PortPlan], stop: int
) -> None:
    """Killed after any of its writes, a change leaves nothing that a look at everything does not put right."""
    cluster = Cluster()
    cluster.apply(first)
    cluster.apply(second, stop=stop)
    cluster.apply(third, everything=True)
    cluster.maps.check(third, cluster.numbers)


@settings(brief)
@given(worlds(), worlds())
def test_only_new_backends_are_written(first: list[PortPlan], second: list[PortPlan]) -> None:
    """A backend that stays keeps its number, so that its flows go on, and one that is over frees it."""
    cluster = Cluster()
    cluster.apply(first)
    number_of = {(one.service, one.address): number for number, one in cluster.maps.backends.items()}
    planned = cluster.apply(second)
    given_anew = {(one.service, one.address) for one in planned.backends.values()}
    assert not given_anew & number_of.keys()
    had = {(cluster.maps.backends[one].service, cluster.maps.backends[one].address) for one in planned.gone_backends}
    assert had <= number_of.keys()


def test_an_address_moves_from_service_to_service_in_one_write() -> None:
    """The taker's run is complete before the address is switched, and the giver's goes only after."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    planned = cluster.apply([port("b", "0", "23")])
    assert list(planned.services) == [FRONTENDS[0]]
    assert planned.removed_services == []
    assert len(planned.gone_backends) == 2


def test_a_new_address_of_a_service_is_one_write() -> None:
    """Where the backends stay the same, so does the run of slots."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    run = cluster.maps.services[FRONTENDS[0]]
    planned = cluster.apply([port("a", "01", "01")])
    assert planned == Change(services={FRONTENDS[1]: run})


def test_a_service_without_backends_is_known_and_has_no_slots() -> None:
    """Its address is switched to the empty run before its last backend goes."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "0")])
    planned = cluster.apply([port("a", "0", "")])
    assert planned == Change(
        services={FRONTENDS[0]: Run(0, 0, 1)},
        gone_backends={1: LiveBackend(BACKENDS[0], 1, 1)},
        removed_targets=[BACKENDS[0]],
    )


def test_numbers_that_were_never_given_come_first() -> None:
    """A freed number is given again only when no other is left, and then under the next generation."""
    cluster = Cluster(Maps(backend_limit=5))
    for members in ("0", "1", "2", "3"):
        cluster.apply([port("a", "0", members)])
    assert {number: one.generation for number, one in cluster.maps.backends.items()} == {1: 1, 2: 1, 3: 1, 4: 1}
    cluster.apply([port("a", "0", "4")])
    assert cluster.maps.backends[1] == LiveBackend(BACKENDS[4], 2, 1)


def test_a_backend_of_two_services_is_one_target() -> None:
    """Targets count the backends at an address: it is forgotten with the last of them."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "0"), port("b", "1", "0")])
    assert cluster.maps.targets == {BACKENDS[0]: 2}
    cluster.apply([port("b", "1", "0")])
    assert cluster.maps.targets == {BACKENDS[0]: 1}
    cluster.apply([])
    assert cluster.maps.targets == {}


def test_slots_of_others_are_left_alone() -> None:
    """A run goes into the first gap that holds it, between the runs of services that do not change."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01"), port("b", "1", "012"), port("c", "2", "0")])
    cluster.apply([port("a", "0", "01"), port("c", "2", "0")])
    cluster.apply([port("a", "0", "01"), port("c", "2", "0"), port("d", "3", "45")])
    assert cluster.maps.services[FRONTENDS[3]].first_slot == 2
    cluster.apply([port("a", "0", "01"), port("b", "1", "0123"), port("c", "2", "0"), port("d", "3", "45")])
    assert cluster.maps.services[FRONTENDS[1]].first_slot == 6


@pytest.mark.parametrize(
    ("maps", "table", "size"),
    [
        pytest.param(Maps(slot_limit=4), "slots", 4, id="slots"),
        pytest.param(Maps(backend_limit=4), "backends", 128, id="backends"),
    ],
)
def test_a_map_without_room_is_named(maps: Maps, table: str, size: int) -> None:
    """OutOfRoom is raised before anything is written, with the map's name and size."""
    cluster = Cluster(maps)
    cluster.apply([port("a", "0", "01")])
    with pytest.raises(OutOfRoom) as caught:
        cluster.plan([port("a", "0", "01"), port("b", "1", "023")])
    assert (caught.value.table, caught.value.size) == (table, size)
    assert cluster.maps.answer(FRONTENDS[0]) == (BACKENDS[0], BACKENDS[1])
    assert cluster.maps.answer(FRONTENDS[1]) is None


def test_an_address_answers_again_after_it_was_gone() -> None:
    """A service that goes and comes back has a number of its own, and no flow of the old one is taken for its."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "0")])
    cluster.apply([])
    cluster.apply([port("a", "0", "0")])
    assert cluster.maps.services[FRONTENDS[0]].number == 2
    assert cluster.maps.answer(FRONTENDS[0]) == (BACKENDS[0],)


def test_a_run_with_a_backend_that_is_gone_is_written_anew() -> None:
    """Where the map holds what nobody wrote, a slot that leads nowhere does not stay because the rest is right."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    cluster.maps.active.discard(2)
    wanted = [port("a", "0", "0")]
    planned = cluster.plan(wanted, everything=True)
    assert list(planned.slots.values()) == [(1,)]
    for write in cluster.maps.writes(planned):
        write()
    cluster.maps.check(wanted, cluster.numbers)


def test_an_address_that_the_map_gives_to_another_is_taken() -> None:
    """The run at a service's address is its own only if it has its number."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    wanted = port("b", "0", "01")
    planned = change([wanted], {7: [FRONTENDS[0]]}, {wanted.key: 7}, cluster.maps.read({7}))
    assert {run.number for run in planned.services.values()} == {7}
    assert len(planned.backends) == 2
