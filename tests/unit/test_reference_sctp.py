"""SCTP, on the model: as UDP where flows begin, as TCP where backends go; its chunks are not looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import BACKEND, CLIENT, SECOND, VIP, VIP_TWO, Talk

from pydatapath.reference import PORTS, TIMEOUTS, Address, Backend, Choice, Hook, Packet, Service, State, Verdict

PHONES = Address(VIP, 36412, "SCTP")
ONE, TWO = Backend(BACKEND, 8080, 11), Backend(SECOND, 8080, 12)
INIT = Packet(CLIENT, 40000, VIP, 36412, "SCTP", length=72)


@pytest.fixture
def talk() -> Talk:
    """With a service whose clients speak SCTP."""
    talk = Talk()
    talk.put(PHONES, Service.for_all(3, ONE))
    return talk


def test_S18_SCTP_is_balanced_like_TCP_and_UDP(talk: Talk) -> None:
    """To any backend of the set, and back from the address that was called."""
    talk.serve(PHONES, ONE, TWO)
    assert talk.model.choices(INIT, Hook.FROM_POD, talk.now) == (ONE, TWO)
    there = talk.send(INIT, chosen=Choice(TWO))
    assert (there.to, there.opened, there.packet.destination_port) == (SECOND, True, 8080)
    assert talk.answer(there).packet.tuple == INIT.tuple.reverse


def test_S18_N4_an_association_waits_as_both_its_directions(talk: Talk) -> None:
    """So that an INIT that is sent again finds its own; with the answer both are in the main table."""
    there = talk.send(INIT)
    both = {INIT.tuple, there.packet.tuple.reverse}
    assert set(talk.model.flows.half_open) == both
    again = talk.send(INIT)
    assert (again.packet, again.opened) == (there.packet, False)
    talk.answer(there)
    assert (set(talk.model.flows.main), talk.model.flows.half_open) == (both, {})
    assert [one.packets for one in talk.model.flows.main.values()] == [2, 1]


@pytest.mark.parametrize("answered", [True, False])
def test_S18_C8_an_association_stays_with_a_backend_that_is_gone(talk: Talk, answered: bool) -> None:
    """It has shared state with it; it never chooses again."""
    _ = talk.open(INIT) if answered else talk.send(INIT)
    talk.serve(PHONES, TWO)
    assert talk.goes_to(INIT) == BACKEND
    talk.now += 2
    assert talk.goes_to(INIT) == BACKEND


def test_S18_C8_an_association_gives_its_tuple_to_no_newcomer(talk: Talk) -> None:
    """Though its backend has left the service."""
    talk.open(INIT)
    talk.serve(PHONES, TWO)
    talk.put(replace(PHONES, address=VIP_TWO), Service.for_all(4, replace(ONE, number=13)))
    assert talk.send(replace(INIT, destination=VIP_TWO)).packet.source_port in PORTS


def test_S18_N93_a_direct_association_and_a_services_are_told_apart(talk: Talk) -> None:
    """The second is given another port."""
    direct = replace(INIT, destination=BACKEND, destination_port=8080)
    one, two = talk.send(direct), talk.send(INIT)
    assert (one.packet, two.packet.source_port in PORTS) == (direct, True)
    assert [talk.answer(left).packet.tuple for left in (one, two)] == [direct.tuple.reverse, INIT.tuple.reverse]


@pytest.mark.parametrize(("answered", "state"), [(False, State.NEW), (True, State.ESTABLISHED)])
@pytest.mark.parametrize("over", [False, True])
def test_S18_N42_an_association_is_over_at_its_timeout(talk: Talk, answered: bool, state: State, over: bool) -> None:
    """Two minutes without an answer, or three and a half after one."""
    _ = talk.open(INIT) if answered else talk.send(INIT)
    talk.now += TIMEOUTS["SCTP", state] + (1 if over else -1)
    assert talk.send(INIT).opened == over


def test_S18_S41_without_backends_it_is_refused(talk: Talk) -> None:
    """By ICMP port unreachable: a RST is TCP's."""
    talk.serve(PHONES)
    assert talk.send(INIT) == Verdict("drop", INIT, reason="drop_no_backend", refused=True)


def test_S18_N5_each_packet_refreshes_an_association(talk: Talk) -> None:
    """Within the second, too: none is met by a look at a known flow alone."""
    there = talk.open(INIT)
    talk.now += 0.5
    assert talk.answer(there).walked
    assert {one.last_seen for one in talk.model.flows.main.values()} == {talk.now}
