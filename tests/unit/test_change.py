"""The writes that turn one state of the maps into another: safe after each single write, complete at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapmodel import BACKENDS, FRONTENDS, Cluster, Maps, answers, port, worlds

from pydatapath.guarding import GuardChange, SourceRange
from pydatapath.kernel.layout import ServiceFlag, VipKind
from pydatapath.plan import Address, Called, Change, Frontend, LiveBackend, OutOfRoom, PortPlan, Run, change

brief = settings(deadline=None, max_examples=50)  # a busy machine is no bug


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
    called = cluster.maps.services[FRONTENDS[0]]
    planned = cluster.apply([port("a", "01", "01")])
    own = GuardChange(vips={FRONTENDS[1].address: VipKind.CLUSTER})
    assert planned == Change(services={FRONTENDS[1]: called}, guards=own)


def test_S62_a_change_of_ranges_leaves_the_backends_alone() -> None:
    """New ranges are written before the service asks for them, old ones go after it."""
    cluster = Cluster()
    web = replace(port("a", "0", "01"), frontends=(Frontend(FRONTENDS[0], "load-balancer-ip"),))
    cluster.apply([replace(web, sources=("10.0.0.0/8",))])
    planned = cluster.apply([replace(web, sources=("192.0.2.0/24",))])
    new, old = (SourceRange(1, network) for network in ("192.0.2.0/24", "10.0.0.0/8"))
    assert planned == Change(guards=GuardChange(ranges=[new], removed_ranges=[old]))


def test_an_address_that_two_services_share_stays_with_the_other() -> None:
    """One external IP, two services at different ports: it is a service's own until the last one goes."""
    cluster = Cluster()
    shared = [Address("203.0.113.7", number, "TCP") for number in (80, 443)]
    one, two = (
        replace(port(name, "", "0"), frontends=(Frontend(at, "external-ip"),))
        for name, at in zip("ab", shared, strict=True)
    )
    cluster.apply([one, two])
    assert cluster.apply([two]).guards == GuardChange()
    assert cluster.apply([]).guards == GuardChange(removed_vips=["203.0.113.7"])


def test_a_service_without_backends_is_known_and_has_no_slots() -> None:
    """Its address is switched to the empty run before its last backend goes."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "0")])
    planned = cluster.apply([port("a", "0", "")])
    assert planned == Change(
        services={FRONTENDS[0]: Called(Run(), Run(), 1)},
        gone_backends={1: LiveBackend(BACKENDS[0], 1, 1)},
        removed_targets=[BACKENDS[0]],
    )


def test_S50_S52_a_backend_of_both_sets_is_one_backend() -> None:
    """Whoever calls, a backend has one number, so that flows and affinity from inside and outside mean the same."""
    cluster = Cluster()
    planned = cluster.apply([port("a", "0", "012", local="1")])
    assert len(planned.backends) == 3
    assert cluster.maps.services[FRONTENDS[0]] == Called(Run(0, 3), Run(3, 1), 1)
    assert cluster.maps.members(Run(0, 3)) == (1, 2, 3)
    assert cluster.maps.members(Run(3, 1)) == (2,)


def test_two_sets_of_the_same_backends_are_one_run() -> None:
    """On a node that has them all a policy costs no slots."""
    cluster = Cluster()
    planned = cluster.apply([port("a", "0", "01", local="01")])
    assert planned.slots == {0: (1, 2)}
    assert cluster.maps.services[FRONTENDS[0]] == Called(Run(0, 2), Run(0, 2), 1)


def test_the_run_of_a_set_that_stays_is_not_written() -> None:
    """A change elsewhere in the cluster leaves the run of this node's backends where it is, and the other way round."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "012", local="1")])
    planned = cluster.apply([port("a", "0", "0123", local="1")])
    assert (planned.slots, planned.services) == ({4: (1, 2, 3, 4)}, {FRONTENDS[0]: Called(Run(4, 4), Run(3, 1), 1)})
    planned = cluster.apply([port("a", "0", "0123", local="12")])
    assert (planned.slots, planned.services) == ({0: (2, 3)}, {FRONTENDS[0]: Called(Run(4, 4), Run(0, 2), 1)})


@pytest.mark.parametrize(
    ("backends", "local", "flags"),
    [
        pytest.param("0", "", ServiceFlag.DROP_OUTSIDE, id="S51 something elsewhere"),
        pytest.param("", "", ServiceFlag(0), id="S51 nothing anywhere"),
        pytest.param("0", "0", ServiceFlag(0), id="S50 something here"),
    ],
)
def test_S51_the_flag_is_switched_with_the_run(backends: str, local: str, flags: ServiceFlag) -> None:
    """Where the last local backend goes, callers from outside are dropped from the same write on."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01", local="1")])
    planned = cluster.apply([port("a", "0", backends, local=local)])
    assert [called.flags for called in planned.services.values()] == [flags]


def test_S78_a_change_of_affinity_is_one_write() -> None:
    """The backends and their run stay; the service is written with its new time."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    planned = cluster.apply([port("a", "0", "01", affinity=60)])
    assert planned == Change(services={FRONTENDS[0]: Called(Run(0, 2), Run(0, 2), 1, affinity=60)})


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
    assert cluster.maps.services[FRONTENDS[3]].inside.first_slot == 2
    cluster.apply([port("a", "0", "01"), port("b", "1", "0123"), port("c", "2", "0"), port("d", "3", "45")])
    assert cluster.maps.services[FRONTENDS[1]].inside.first_slot == 6


@pytest.mark.parametrize(
    ("maps", "table", "size"),
    [
        pytest.param(Maps(slot_limit=4), "slots", 4, id="slots"),
        pytest.param(Maps(backend_limit=4), "backends", 4, id="backends"),
    ],
)
def test_a_map_without_room_is_named(maps: Maps, table: str, size: int) -> None:
    """OutOfRoom is raised before anything is written, with the map's name and size."""
    cluster = Cluster(maps)
    cluster.apply([port("a", "0", "01")])
    with pytest.raises(OutOfRoom) as caught:
        cluster.plan([port("a", "0", "01"), port("b", "1", "023")])
    assert (caught.value.table, caught.value.size) == (table, size)
    assert cluster.maps.answer(FRONTENDS[0]) == answers([port("a", "0", "01")])[FRONTENDS[0]]
    assert cluster.maps.answer(FRONTENDS[1]) is None


def test_an_address_answers_again_after_it_was_gone() -> None:
    """A service that goes and comes back has a number of its own, and no flow of the old one is taken for its."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "0")])
    cluster.apply([])
    cluster.apply([port("a", "0", "0")])
    assert cluster.maps.services[FRONTENDS[0]].number == 2
    cluster.maps.check(cluster.wanted, cluster.numbers)


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
    assert {called.number for called in planned.services.values()} == {7}
    assert len(planned.backends) == 2
