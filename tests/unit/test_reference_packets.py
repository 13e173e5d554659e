"""A packet and its answer, on the model: addresses, hops, and what stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import (
    BACKEND,
    BOTH,
    BRIDGE,
    CLIENT,
    FAR,
    NOWHERE,
    OUTSIDE,
    QUERY,
    REMOTE,
    SECOND,
    SYN,
    V6,
    WEB,
    WORLD,
    Talk,
    client,
)

from pydatapath.reference import Backend, FlowTuple, Hook, Packet, Protocol, Route, Verdict


@pytest.fixture
def talk() -> Talk:
    return Talk()


@BOTH
def test_S28_the_backend_sees_the_pod_that_called(talk: Talk, first: Packet) -> None:
    """Only the destination changes, and the packet goes straight into the backend's pod."""
    verdict = talk.send(first)
    assert (verdict.kind, verdict.to, verdict.opened) == ("forward", BACKEND, True)
    port = 8080 if first is SYN else 5353
    assert verdict.packet == replace(first, destination=BACKEND, destination_port=port)
    assert verdict.counted == ("new_flow",)


@BOTH
def test_N30_the_answer_comes_from_the_address_that_was_called(talk: Talk, first: Packet) -> None:
    """The client never sees a backend's address, though both are behind one bridge."""
    back = talk.answer(talk.send(first))
    assert (back.kind, back.to) == ("forward", CLIENT)
    assert back.packet.tuple == first.tuple.reverse


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_S14_one_number_in_TCP_UDP_and_SCTP_is_three_ports(talk: Talk, protocol: Protocol) -> None:
    """What is no TCP calls no service at TCP's port 80."""
    verdict = talk.send(replace(SYN, protocol=protocol, flags=""))
    assert verdict == Verdict("drop", verdict.packet, reason="drop_no_service", refused=True)


def test_S29_C1_a_pod_that_calls_itself_sees_the_node(talk: Talk) -> None:
    """Hairpin: with its own address as source its answer would never leave it."""
    called = replace(SYN, source=BACKEND)
    there = talk.send(called)
    assert there.packet.tuple == FlowTuple(BRIDGE, 40000, BACKEND, 8080)
    assert talk.answer(there).packet.tuple == called.tuple.reverse


def test_N72_one_hop_off_where_it_is_routed_only(talk: Talk) -> None:
    """Not within the pods' subnet; TTL 1 goes to the stack as it came, which says so to the sender."""
    assert talk.send(replace(SYN, ttl=1)).packet.ttl == 1
    talk.serve(WEB, FAR)
    far = replace(SYN, source_port=2)
    assert talk.send(far).packet.ttl == 63
    last = replace(SYN, source_port=3, ttl=1)
    assert talk.send(last) == Verdict("pass", last, "stack", opened=True)


def test_N71_what_is_too_long_for_the_way_is_the_stacks(talk: Talk) -> None:
    """It tells the sender; so does it with what it alone may know a way for."""
    talk.serve(WEB, FAR)
    assert talk.send(replace(SYN, length=1540)).kind == "pass"
    talk.serve(WEB, Backend(NOWHERE, 8080, 6))
    lost = replace(SYN, source_port=2)
    assert talk.send(lost).packet == replace(lost, destination=NOWHERE, destination_port=8080)
    node = replace(SYN, source=BRIDGE, source_port=3)
    assert talk.send(node, Hook.TO_BRIDGE).reason == "drop_no_route"


def test_N72_the_longest_prefix_has_the_way() -> None:
    """As in any routing table."""
    world = replace(WORLD, routes=(Route("0.0.0.0/0", 1400), Route("10.2.0.0/24", 9000), Route("10.0.0.0/8", 1)))
    assert [world.route(at) for at in (REMOTE, OUTSIDE)] == [Route("10.2.0.0/24", 9000), Route("0.0.0.0/0", 1400)]


def test_S3_what_calls_no_service_stays_as_it_is(talk: Talk) -> None:
    """No NAT, no flow."""
    direct = Packet(CLIENT, 1, SECOND, 22, flags="S")
    assert talk.send(direct) == Verdict("pass", direct, "stack")
    assert talk.model.flows.main == talk.model.flows.half_open == {}


def test_S40_a_known_flows_packets_teach_nothing(talk: Talk) -> None:
    """Of a pod that ends they may come late. But its SYN does: one that comes back elsewhere says so first."""
    talk.open(SYN)
    talk.model.receive(Hook.FROM_POD, replace(client("A"), ttl=9), talk.now + 2, interface="pod9")
    assert talk.model.world.endpoints[CLIENT] == "pod2"
    talk.model.receive(Hook.FROM_POD, SYN, talk.now + 2, interface="pod9")
    assert talk.model.world.endpoints[CLIENT] == "pod9"


def test_S40_who_only_answers_is_found_by_its_first_answer(talk: Talk) -> None:
    """Also by one that needs no walk."""
    there = talk.send(SYN)
    backend = there.packet.destination
    talk.model.world = replace(talk.model.world, endpoints={CLIENT: "pod2"})
    answer = replace(there.packet.turned_round(), flags="SA")
    assert not talk.model.receive(Hook.FROM_POD, answer, talk.now, interface="pod7").walked
    assert talk.model.world.endpoints[backend] == "pod7"


def test_S40_pods_are_found_where_they_send_from(talk: Talk) -> None:
    """As a bridge learns; but the node's own addresses are nobody else's."""
    for source in ("10.1.0.77", BRIDGE, OUTSIDE):
        talk.model.receive(Hook.FROM_POD, replace(SYN, source=source), talk.now, interface="pod77")
    learned = talk.model.world.endpoints
    assert learned == {**WORLD.endpoints, "10.1.0.77": "pod77"}


def test_a_packet_that_cannot_be_is_not_made() -> None:
    """Only TCP has flags, and both ends are of one IP version."""
    with pytest.raises(ValueError, match="UDP has no flags: 'S'"):
        replace(QUERY, flags="S")
    with pytest.raises(ValueError, match="are of two IP versions"):
        replace(SYN, source=V6.CLIENT)


def test_a_flow_in_words() -> None:
    """As it stands in a message: IPv6's addresses are in brackets, as in a URL."""
    ends = "[fd00:1::2]:40000 -> [fd00:96::10]:80 TCP"
    assert (str(V6.syn.tuple), str(V6.web), str(WEB)) == (ends, "[fd00:96::10]:80/TCP", "10.96.0.10:80/TCP")
