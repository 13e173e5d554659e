"""The writes that turn one state of the maps into another: safe after each single write, complete at the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapmodel import BACKENDS, BACKENDS6, FRONTENDS, Cluster, Maps, answers, port, worlds

from pydatapath.guarding import GuardChange, SourceRange
from pydatapath.kernel.layout import ServiceFlag, VipKind
from pydatapath.plan import Address, Called, Change, Frontend, LiveBackend, OutOfRoom, PortPlan, Run, change


def weighted(one: PortPlan, weights: dict[int, int]) -> PortPlan:
    """With the weights of some backends, by their places."""
    return one._replace(weights={BACKENDS[place]: weight for place, weight in weights.items()})


brief = settings(deadline=None, max_examples=50)  # a busy machine is no bug


@settings(brief)
@given(st.lists(worlds(), min_size=1, max_size=5))
def test_S108_every_address_answers_as_before_or_as_wanted_after_each_write(steps: list[list[PortPlan]]) -> None:
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
def test_C12_only_new_backends_are_written(first: list[PortPlan], second: list[PortPlan]) -> None:
    """A backend that stays or drains keeps its number, so that its flows go on, and one that is over frees it."""
    backends = (*BACKENDS, *BACKENDS6)
    cluster = Cluster()
    cluster.apply(first)
    cluster.apply(second)
    had = {(one.service, at): cluster.backend(one.service, at) for one in second for at in backends}
    drained = set(cluster.maps.draining)
    planned = cluster.apply(first)
    for one in first:
        served = {at for backends in one.sets.values() for at in backends}
        for at in {*served, *one.draining}:
            number = had.get((one.service, at), 0)
            assert cluster.backend(one.service, at) == number or (number == 0 and at in served)
    again = planned.backends.keys() & {number for number in had.values() if number}
    assert again <= drained


def test_an_address_moves_from_service_to_service_in_one_write() -> None:
    """The taker's run is complete before the address is switched, and the giver's goes only after."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    planned = cluster.apply([port("b", "0", "23")])
    assert list(planned.services) == [FRONTENDS[0]]
    assert planned.removed_services == []
    assert len(planned.gone_backends) == 2


def test_C12_a_backend_that_drains_leaves_the_slots_and_keeps_its_number() -> None:
    """The service goes to slots without it, then it is marked; it is a target still, and its number is its own."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    drained = [weighted(port("a", "0", "1"), {0: 0})]
    assert cluster.apply(drained) == Change(
        slots={2: (2,)},
        services={FRONTENDS[0]: Called(Run(2, 1), Run(2, 1), 1)},
        draining_backends={1: LiveBackend(BACKENDS[0], 1, 1, draining=True)},
    )
    assert cluster.maps.targets == {BACKENDS[0]: 1, BACKENDS[1]: 1}
    cluster.apply([*drained, port("b", "1", "2345")])
    assert cluster.maps.backends[1] == LiveBackend(BACKENDS[0], 1, 1)
    cluster.maps.check(cluster.wanted, cluster.numbers)


def test_C12_a_backend_that_drains_no_longer_is_the_same_backend() -> None:
    """It is active before a slot leads to it, under its old number and generation, and counted once."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    cluster.apply([weighted(port("a", "0", "1"), {0: 0})])
    planned = cluster.apply([port("a", "0", "01")])
    assert planned == Change(
        backends={1: LiveBackend(BACKENDS[0], 1, 1)},
        slots={0: (1, 2)},
        services={FRONTENDS[0]: Called(Run(0, 2), Run(0, 2), 1)},
    )


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("wanted", [[port("a", "0", "1")], []], ids=["backend", "service"])
def test_C12_a_backend_that_drains_goes_with_its_endpoint(wanted: list[PortPlan], everything: bool) -> None:
    """When its pod or its service is over, it is gone like any other."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    cluster.apply([weighted(port("a", "0", "1"), {0: 0})])
    planned = cluster.apply(wanted, everything=everything)
    assert 1 in planned.gone_backends
    assert BACKENDS[0] in planned.removed_targets
    assert cluster.maps.draining == set()


def test_C12_a_backend_that_never_served_need_not_drain() -> None:
    """It has no flows: it gets no number, and is no target."""
    cluster = Cluster()
    planned = cluster.apply([weighted(port("a", "0", "1"), {0: 0})])
    assert [one.address for one in planned.backends.values()] == [BACKENDS[1]]
    assert planned.draining_backends == {}


def test_C12_where_all_drain_nobody_takes_new_flows() -> None:
    """The service has no slots, its backends are kept."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    cluster.apply([weighted(port("a", "0", ""), {0: 0, 1: 0})])
    assert cluster.maps.services[FRONTENDS[0]] == Called(Run(), Run(), 1)
    assert cluster.maps.draining == {1, 2}


def test_C12_a_backend_stands_in_as_many_slots_as_its_weight() -> None:
    """It has one number in all of them, and a run that stays is found again by its slots."""
    cluster = Cluster()
    cluster.apply([weighted(port("a", "0", "01", local="1"), {0: 2, 1: 4})])
    assert cluster.maps.members(Run(0, 3)) == (1, 2, 2)
    assert cluster.maps.services[FRONTENDS[0]] == Called(Run(0, 3), Run(3, 1), 1)
    planned = cluster.apply([weighted(port("a", "0", "01", local="1"), {0: 3})])
    assert planned.slots == {4: (1, 2, 1, 1)}
    assert cluster.maps.services[FRONTENDS[0]].outside == Run(3, 1)


def maglev(*plans: PortPlan) -> list[PortPlan]:
    return [one._replace(algorithm="maglev") for one in plans]


def settle(cluster: Cluster, wanted: list[PortPlan]) -> Change:
    """Makes a change without a look at each slot after each write: there are 16,381."""
    planned = cluster.plan(wanted)
    for write in cluster.maps.writes(planned):
        write()
    return planned


def test_S26_a_maglev_table_is_written_once() -> None:
    """Two sets of the same backends share it, and what is there already is found by its slots."""
    cluster = Cluster(Maps(slot_limit=3 * 16_381))
    wanted = maglev(port("a", "0", "012", local="012"))
    assert [len(slots) for slots in settle(cluster, wanted).slots.values()] == [16_381]
    assert cluster.plan(wanted).empty
    assert cluster.plan(wanted, everything=True).empty
    cluster.maps.check(wanted, cluster.numbers)
    fewer = maglev(port("a", "0", "01", local="1"))
    assert list(settle(cluster, fewer).slots) == [16_381, 2 * 16_381]
    cluster.maps.check(fewer, cluster.numbers)


def test_S26_a_service_goes_from_random_to_maglev_and_back() -> None:
    """Its backends stay, only their slots are new; the room of the old ones is free for the next change."""
    cluster = Cluster(Maps(slot_limit=16_384))
    ways = [[port("a", "0", "01")], maglev(port("a", "0", "01"))]
    settle(cluster, ways[0])
    for wanted in (ways[1], ways[0], ways[1]):
        planned = settle(cluster, wanted)
        assert (planned.backends, planned.gone_backends, len(planned.slots)) == ({}, {}, 1)
        cluster.maps.check(wanted, cluster.numbers)


def test_S26_a_maglev_table_without_room_is_refused() -> None:
    """The old table stays until the new one is in use: both need room."""
    cluster = Cluster(Maps(slot_limit=2 * 16_381 - 1))
    wanted = maglev(port("a", "0", "01"))
    settle(cluster, wanted)
    with pytest.raises(OutOfRoom) as caught:
        cluster.plan(maglev(port("a", "0", "012")))
    assert (caught.value.table, caught.value.size) == ("slots", 2 * 16_381 - 1)
    cluster.maps.check(wanted, cluster.numbers)


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
    web = port("a", "0", "01")._replace(frontends=(Frontend(FRONTENDS[0], "load-balancer-ip"),))
    cluster.apply([web._replace(sources=("10.0.0.0/8",))])
    planned = cluster.apply([web._replace(sources=("192.0.2.0/24",))])
    new, old = (SourceRange(1, network) for network in ("192.0.2.0/24", "10.0.0.0/8"))
    assert planned == Change(guards=GuardChange(ranges=[new], removed_ranges=[old]))


def test_an_address_that_two_services_share_stays_with_the_other() -> None:
    """One external IP, two services at different ports: it is a service's own until the last one goes."""
    cluster = Cluster()
    shared = [Address("203.0.113.7", number, "TCP") for number in (80, 443)]
    one, two = (
        port(name, "", "0")._replace(frontends=(Frontend(at, "external-ip"),))
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


def test_C11_ports_that_share_their_clients_name_their_services_oldest_port() -> None:
    """Each service's own; a port with another setting has none, and the oldest's end is the next one's turn."""
    cluster = Cluster()
    ports = [port("a", str(at), str(at), affinity=60)._replace(port=f"p{at}", shared=True) for at in range(3)]
    ports += [port("b", "3", "3", affinity=60)._replace(shared=True), port("c", "4", "4")._replace(shared=True)]
    cluster.apply(ports)
    assert [cluster.maps.services[at].shared for at in FRONTENDS] == [1, 1, 1, 4, 0]
    cluster.apply([*ports[1:3], ports[3]._replace(shared=False), ports[4]], everything=True)
    assert [cluster.maps.services[at].shared for at in FRONTENDS[1:]] == [2, 2, 0, 0]


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


def test_of_two_entries_of_one_backend_that_in_the_slots_stays() -> None:
    """Where the map holds what nobody wrote, the flows of the entry that serves do not go with the other one."""
    cluster = Cluster()
    wanted = [port("a", "0", "01")]
    cluster.apply(wanted)
    cluster.maps.backends[3] = cluster.maps.backends[1]
    cluster.maps.active.add(3)
    planned = cluster.plan(wanted, everything=True)
    assert (list(planned.gone_backends), planned.slots, planned.services) == ([3], {}, {})


def test_an_address_that_the_map_gives_to_another_is_taken() -> None:
    """The run at a service's address is its own only if it has its number."""
    cluster = Cluster()
    cluster.apply([port("a", "0", "01")])
    wanted = port("b", "0", "01")
    planned = change([wanted], {7: [FRONTENDS[0]]}, {wanted.key: 7}, cluster.maps.read({7}))
    assert {called.number for called in planned.services.values()} == {7}
    assert len(planned.backends) == 2
