"""Room in the array of slots where free slots lie apart: runs move, and no service is ever half anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapmodel import FRONTENDS, Cluster, Maps, port, worlds

from pydatapath.compacting import stages
from pydatapath.plan import OutOfRoom, PortPlan
from pydatapath.slots import Room, Run

brief = settings(deadline=None, max_examples=100)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[set[Run], int, list[int]]:
    """Runs with gaps between them, how many slots there are, and the lengths of runs that are wanted."""
    parts = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=12))
    runs, end = set(), 0
    for gap, count in parts:
        runs.add(Run(end + gap, count))
        end += gap + count
    return runs, end + draw(st.integers(0, 8)), draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))


def moved(runs: set[Run], limit: int, needs: list[int]) -> set[Run]:
    """Where the runs are after all stages; each stage is checked."""
    here = set(runs)
    for stage in stages(runs, limit, needs):
        assert stage.keys() <= here
        assert all(run.slot_count == to.slot_count for run, to in stage.items())
        # Both places are led to until every address is switched: all old and all new ones are apart
        held = sorted([*here, *stage.values()])
        assert len(set(held)) == len(held)
        assert all(one.first_slot + one.slot_count <= other.first_slot for one, other in pairwise(held))
        assert all(run.first_slot + run.slot_count <= limit for run in held)
        here = {stage.get(run, run) for run in here}
    return here


@settings(brief)
@given(layouts())
def test_S108_a_move_goes_to_slots_that_nobody_uses(layout: tuple[set[Run], int, list[int]]) -> None:
    """At every stage; and afterwards what is wanted finds room, in the order in which it is taken."""
    runs, limit, needs = layout
    try:
        after = moved(*layout)
    except OutOfRoom:
        fits = sum(run.slot_count for run in runs) + sum(needs) <= limit
        assert not fits or max([*needs, *(run.slot_count for run in runs)]) > 1, "runs of one slot always find room"
        return
    room = Room(after, limit)
    for need in needs:
        room.take(need)


def test_where_it_fits_nothing_moves() -> None:
    """However the free slots lie."""
    assert list(stages({Run(0, 2), Run(4, 2)}, 8, [2, 2])) == []


def test_the_last_runs_fill_the_first_gaps() -> None:
    """One stage is enough where each of them fits into a gap."""
    assert list(stages({Run(1, 1), Run(3, 1), Run(5, 1)}, 6, [3])) == [{Run(5, 1): Run(0, 1), Run(3, 1): Run(2, 1)}]


def test_a_run_goes_back_where_that_alone_makes_room() -> None:
    """It fits into no gap before it, and into the one behind it."""
    assert list(stages({Run(1, 3)}, 7, [4])) == [{Run(1, 3): Run(4, 3)}]


@pytest.mark.parametrize(("runs", "needs"), [({Run(0, 6)}, [3]), ({Run(1, 3), Run(5, 3)}, [2])], ids=["full", "stuck"])
def test_what_finds_no_room_is_refused(runs: set[Run], needs: list[int]) -> None:
    """There are too few slots, or what is in the way fits nowhere."""
    with pytest.raises(OutOfRoom):
        list(stages(runs, 8, needs))


def test_thousands_of_gaps_are_closed_in_one_stage() -> None:
    """And in a moment: the last half goes into the gaps of the first."""
    runs = {Run(2 * place, 1) for place in range(20_000)}
    (stage,) = stages(runs, 40_000, [20_000])
    assert len(stage) == 10_000


def fragmented() -> Cluster:
    """Two services of three slots, three free slots behind each."""
    cluster = Cluster(Maps(slot_limit=12))
    full = [port(name, str(place), "012") for place, name in enumerate("abcd")]
    cluster.apply(full)
    cluster.apply([full[0], full[2]])
    assert Room({run for one in cluster.maps.services.values() for run in one.runs}, 12).gaps == [Run(3, 3), Run(9, 3)]
    return cluster


@pytest.mark.parametrize("everything", [False, True])
def test_S108_a_service_finds_room_by_moving_others(everything: bool) -> None:
    """After every write each of them is whole, in its old slots or in its new ones; backends keep their numbers."""
    cluster = fragmented()
    before = dict(cluster.maps.backends)
    wanted = [*cluster.wanted, port("e", "4", "01234")]
    (move,) = cluster.apply(wanted, everything=everything).moves
    assert (list(move.slots), list(move.services)) == ([3], [FRONTENDS[2]])
    cluster.maps.check(wanted, cluster.numbers)
    kept = cluster.maps.services[FRONTENDS[2]].inside
    assert [before[number] for number in cluster.maps.members(kept)] == [
        cluster.maps.backends[number] for number in cluster.maps.members(kept)
    ]
    assert cluster.plan(wanted, everything=True).empty


def test_S108_a_service_that_changes_and_must_move_does_both() -> None:
    """What it has is found where it went."""
    cluster = fragmented()
    wanted = [cluster.wanted[0], port("c", "23", "012"), port("e", "4", "01234")]
    cluster.apply(wanted)
    cluster.maps.check(wanted, cluster.numbers)


@settings(deadline=None, max_examples=60)
@given(st.lists(worlds(), min_size=2, max_size=6), st.integers(40, 70), st.booleans())
def test_S108_in_a_narrow_map_no_service_is_ever_half(
    steps: list[list[PortPlan]], limit: int, everything: bool
) -> None:
    """Whatever changes to whatever: every prefix of the writes, moves among them, finds every service whole."""
    cluster = Cluster(Maps(slot_limit=limit))
    for wanted in steps:
        before = list(cluster.wanted), dict(cluster.numbers)
        try:
            cluster.apply(wanted, everything=everything)
        except OutOfRoom:
            cluster.wanted, cluster.numbers = before
            continue
        cluster.maps.check(wanted, cluster.numbers)


def test_a_killed_move_is_finished_by_the_next_look() -> None:
    """After any of its writes."""
    for stop in range(20):
        cluster = fragmented()
        wanted = [*cluster.wanted, port("e", "4", "01234")]
        cluster.apply(wanted, stop=stop)
        cluster.apply(wanted, everything=True)
        cluster.maps.check(wanted, cluster.numbers)
