"""Flows that would share a tuple, on the model: all of them live, and none gets another's packets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import (
    BACKEND,
    CLIENT,
    DIRECT,
    DNS,
    DNS_TWO,
    EXTERNAL,
    FAR,
    FIRST,
    NAMES,
    OTHER,
    OUTSIDE,
    QUERY,
    SECOND,
    SYN,
    VIP_TWO,
    WEB,
    Talk,
    client,
)

from pydatapath.reference import PORTS, Address, Choice, FlowTuple, Hook, Impossible, Packet, Service


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.mark.parametrize("order", [(DIRECT, SYN), (SYN, DIRECT)], ids=["direct first", "service first"])
def test_N93_a_direct_connection_and_a_services_are_told_apart(talk: Talk, order: tuple[Packet, Packet]) -> None:
    """The first keeps its port, the second is given another; each has its own answers."""
    one, two = (talk.send(packet) for packet in order)
    assert one.packet.source_port == 40000
    assert two.packet.source_port in PORTS
    for left, called in zip((one, two), order, strict=True):
        assert talk.answer(left).packet.tuple == called.tuple.reverse


def test_N94_one_port_to_two_services_with_one_backend(talk: Talk) -> None:
    """The second is given a port of the kernel's choice, which must be a free one in its range."""
    talk.put(Address(VIP_TWO, 80), Service.for_all(3, FIRST))
    talk.send(SYN)
    second = replace(SYN, destination=VIP_TWO)
    assert talk.send(second, chosen=Choice(FIRST, 50000)).packet.source_port == 50000
    assert talk.send(second, chosen=Choice(FIRST, 50000)).opened is False
    with pytest.raises(Impossible, match="N103"):
        talk.send(second, chosen=Choice(FIRST, 50001))
    talk.put(Address(EXTERNAL, 80), Service.for_all(4, FIRST))
    with pytest.raises(Impossible, match="N93"):
        talk.send(replace(SYN, destination=EXTERNAL), chosen=Choice(FIRST, 50000))


def test_N103_a_port_that_another_flow_has_left_may_be_taken_over(talk: Talk) -> None:
    """The kernel tries its ports in one order: what was passed over at first may be free for the SYN sent again."""
    talk.open(DIRECT)
    other = talk.open(replace(DIRECT, source_port=50001))
    talk.send(SYN, chosen=Choice(FIRST, 50000))
    talk.answer(other, "R")
    assert talk.send(SYN, chosen=Choice(FIRST, 50001)).packet.source_port == 50001


def test_N103_a_claim_that_is_over_binds_no_port(talk: Talk) -> None:
    """After two minutes without an answer a first packet may leave by another port than before."""
    talk.open(DIRECT)
    talk.send(SYN, chosen=Choice(FIRST, 50000))
    talk.now += 121
    again = talk.send(SYN, chosen=Choice(FIRST, 50001))
    assert (again.packet.source_port, again.opened) == (50001, True)


def test_N9_N15_a_port_is_kept_where_nothing_is_in_its_way(talk: Talk) -> None:
    """The kernel may not choose another without need."""
    with pytest.raises(Impossible, match="N9"):
        talk.send(SYN, chosen=Choice(FIRST, 50000))


def test_N97_two_masqueraded_clients_never_share_a_tuple(talk: Talk) -> None:
    """Behind one address, with one source port, to one backend."""
    talk.serve(WEB, FAR)
    calls = [replace(SYN, source=source) for source in (OUTSIDE, "192.0.2.10")]
    left = [talk.send(call, Hook.FROM_UPLINK) for call in calls]
    assert len({one.packet.tuple for one in left}) == 2
    for one, call in zip(left, calls, strict=True):
        assert talk.answer(one, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


def test_N95_a_new_connection_takes_a_closed_ones_port(talk: Talk) -> None:
    """At once, and it is not changed for it."""
    talk.answer(talk.open(DIRECT), "RA")
    assert talk.send(SYN).packet.source_port == 40000


def test_N95_a_connection_that_gives_way_goes_whole(talk: Talk) -> None:
    """Or the half that stays would take the newcomer's answers with it once it is found to be over."""
    talk.answer(talk.open(DIRECT), "RA")
    talk.send(SYN)
    assert talk.model.flows.main == {}


def test_N95_a_taken_over_answer_is_not_taken_back(talk: Talk) -> None:
    """A UDP flow whose backend is gone leaves its tuple to the next; when it goes on, that one stays whole."""
    talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    talk.put(Address(VIP_TWO, 53, "UDP"), Service.for_all(3, replace(DNS, number=9)))
    second = replace(QUERY, destination=VIP_TWO)
    there = talk.send(second)
    assert there.packet.tuple == FlowTuple(CLIENT, 40000, BACKEND, 5353, "UDP")
    assert talk.goes_to(QUERY) == SECOND
    assert talk.answer(there).packet.tuple == second.tuple.reverse


def test_C8_a_connection_gives_its_tuple_to_no_newcomer(talk: Talk) -> None:
    """Though its backend has left the service."""
    talk.open(SYN)
    talk.put(Address(VIP_TWO, 80), Service.for_all(3, FIRST))
    talk.serve(WEB, OTHER)
    assert talk.send(replace(SYN, destination=VIP_TWO)).packet.source_port in PORTS


@pytest.mark.parametrize("before", [SYN, QUERY], ids=["TCP", "UDP"])
def test_N93_a_direct_call_is_told_apart_from_a_flow_whose_service_is_gone(talk: Talk, before: Packet) -> None:
    """Nobody listens there for a service any more; what was open goes on (C8), or gives way (C9)."""
    there = talk.open(before) if before is SYN else talk.send(before)
    talk.answer(there)
    talk.model.world = replace(talk.model.world, services={})
    direct = replace(before, destination=BACKEND, destination_port=there.packet.destination_port)
    left = talk.send(direct)
    assert (left.packet.source_port == 40000) == (before is QUERY)
    assert talk.answer(left).packet.tuple == direct.tuple.reverse


def test_N22_N23_only_a_flow_whose_ports_are_taken_may_be_dropped(talk: Talk) -> None:
    """Its own port, and four of five others."""
    given_up = Choice(gave_up=True)
    with pytest.raises(Impossible, match="N22"):
        talk.send(SYN, chosen=given_up)
    talk.send(DIRECT)
    with pytest.raises(Impossible, match="N22"):
        talk.send(SYN, chosen=given_up)
    enough = PORTS[: len(PORTS) * 4 // 5 + 1]
    for port in enough[1:]:
        talk.send(replace(DIRECT, source_port=port))
    with pytest.raises(Impossible, match="N22"):
        talk.send(SYN, chosen=given_up)
    talk.send(replace(DIRECT, source_port=enough[0]))
    assert talk.send(SYN, chosen=given_up).counted == ("drop_ports_taken",)


def test_N5_a_lost_half_whose_tuple_is_anothers_is_not_taken_back(talk: Talk) -> None:
    """The flow that lost it goes on by another port."""
    there = talk.open(SYN)
    talk.model.flows.forget(there.packet.tuple.reverse)
    direct = talk.open(DIRECT)
    talk.now += 2
    again = talk.send(client("A"))
    assert again.packet.source_port in PORTS
    assert talk.answer(direct, "A").packet.tuple == DIRECT.tuple.reverse
    assert talk.answer(again, "A").packet.tuple == SYN.tuple.reverse


def test_N5_a_half_open_flow_is_made_whole(talk: Talk) -> None:
    """A lost claim is claimed anew by what is sent again; by another port if it is another's by now."""
    there = talk.send(QUERY)
    talk.model.flows.forget(there.packet.tuple.reverse)
    assert talk.send(QUERY).packet == there.packet
    talk.model.flows.forget(there.packet.tuple.reverse)
    talk.send(replace(QUERY, destination=BACKEND, destination_port=5353))
    again = talk.send(QUERY)
    assert again.packet.source_port in PORTS
    assert talk.answer(again).packet.tuple == QUERY.tuple.reverse
