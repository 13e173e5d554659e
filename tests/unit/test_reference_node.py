"""What the node itself sends, on the model: to services, to pods elsewhere, and to its own node ports."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import BACKEND, BRIDGE, EXTERNAL, FAR, FIRST, REMOTE, SYN, UPLINK, VERSIONS, VIP, WEB, WORLD, Places, Talk

from pydatapath.reference import PORTS, Address, Backend, Hook, Own, Packet, Service, Verdict


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_S30_C4_the_node_calls_with_its_own_address(talk: Talk) -> None:
    """Its answers come back to it anyway: up to its own stack, with the service's address."""
    called = replace(SYN, source=BRIDGE)
    there = talk.send(called, Hook.TO_BRIDGE)
    back = talk.answer(there)
    assert there.packet.source == BRIDGE
    assert (back.kind, back.to, back.packet.tuple) == ("node", "node", called.tuple.reverse)


def test_N90_a_services_answer_for_the_node_comes_in_by_the_bridge(talk: Talk) -> None:
    """Where the route to services leads, or the reverse path filter would drop what comes by the uplink."""
    talk.serve(WEB, FAR)
    there = talk.send(replace(SYN, source=BRIDGE), Hook.TO_BRIDGE)
    assert talk.answer(there, hook=Hook.FROM_UPLINK).to == "bridge"


@pytest.mark.parametrize(("uplink", "up"), [(UPLINK, "uplink"), ("", "node")])
def test_N90_S43_an_external_services_answer_for_the_node_comes_in_by_the_uplink(
    talk: Talk, uplink: str, up: str
) -> None:
    """The node calls it by the uplink; one that no uplink was told of takes it where it is."""
    talk.model.world = replace(WORLD, own=(Own(BRIDGE, uplink),))
    talk.put(Address(EXTERNAL, 80), Service.for_all(3, FIRST))
    there = talk.send(replace(SYN, source=UPLINK, destination=EXTERNAL), Hook.TO_UPLINK)
    assert (there.to, talk.answer(there).to) == (BACKEND, up)


@pytest.mark.parametrize("order", [("direct", "service"), ("service", "direct")], ids=" then ".join)
def test_N93_the_nodes_own_connections_are_told_apart(talk: Talk, order: tuple[str, str]) -> None:
    """Directly by the uplink, and through a service by the bridge; answers come in where their routes lead."""
    talk.serve(WEB, FAR)
    ways = {
        "direct": (Hook.TO_UPLINK, Packet(BRIDGE, 40000, REMOTE, 8080, flags="S"), "pass", "node"),
        "service": (Hook.TO_BRIDGE, Packet(BRIDGE, 40000, VIP, 80, flags="S"), "forward", "bridge"),
    }
    left = {way: talk.send(ways[way][1], ways[way][0]) for way in order}
    assert left[order[1]].packet.source_port in PORTS
    for way, there in left.items():
        _, called, kind, up = ways[way]
        assert (there.kind, there.packet.ttl) == (kind, 64)
        back = talk.answer(there, hook=Hook.FROM_UPLINK)
        assert back.packet.tuple == called.tuple.reverse
        plain = there.packet == called
        assert (back.kind, back.to) == (("pass", "stack") if plain else ("node", up))


@VERSIONS
def test_S56_an_answer_of_the_nodes_own_whose_flow_is_over_leads_nowhere(talk: Talk, at: Places) -> None:
    """Nobody has the next hop's address: dropped by name."""
    late = Packet(at.BRIDGE, 8080, WORLD.next_hop(at.BRIDGE), 40000, flags="A")
    verdict = talk.send(late, Hook.TO_BRIDGE)
    assert (verdict.reason, verdict.refused) == ("drop_no_service", False)


# Its own node ports, by its own loopback interface


def call_of_its_own(talk: Talk, at: Places, *backends: Backend) -> Packet:
    """Makes a node port that callers outside have no backends of; the node's call of it."""
    talk.put(Address(at.UPLINK, 30080), Service(3, inside=backends, drop_outside=True))
    return Packet(at.UPLINK, 40000, at.UPLINK, 30080, flags="S")


@VERSIONS
@pytest.mark.parametrize("far", [False, True], ids=["a backend here", "a backend elsewhere"])
def test_S46_S53_the_node_reaches_its_own_node_port(talk: Talk, at: Places, far: bool) -> None:
    """It is a caller inside; the answer comes from its own address, and so in by the loopback interface (N90)."""
    backend = Backend(at.REMOTE if far else at.BACKEND, 8080, 9)
    call = call_of_its_own(talk, at, backend)
    there = talk.send(call, Hook.TO_LOOPBACK)
    assert (there.kind, there.to) == ("forward", "route" if far else at.BACKEND)
    assert there.packet == replace(call, destination=backend.address, destination_port=8080)
    back = talk.answer(there, hook=Hook.FROM_UPLINK if far else Hook.FROM_POD)
    assert (back.kind, back.to, back.packet.tuple) == ("node", "loopback", call.tuple.reverse)


@VERSIONS
def test_S46_S56_the_node_reaches_itself_by_its_own_node_port(talk: Talk, at: Places) -> None:
    """Its server sees the next hop's address, by the bridge, and answers to it there."""
    call = call_of_its_own(talk, at, Backend(at.BRIDGE, 8080, 9))
    there = talk.send(call, Hook.TO_LOOPBACK)
    assert (there.kind, there.to, there.packet.source) == ("node", "bridge", WORLD.next_hop(at.BRIDGE))
    back = talk.answer(there, hook=Hook.TO_BRIDGE)
    assert (back.kind, back.to, back.packet.tuple) == ("node", "loopback", call.tuple.reverse)


@VERSIONS
def test_S41_a_node_port_without_backends_refuses_the_node(talk: Talk, at: Places) -> None:
    """As it does anybody."""
    verdict = talk.send(call_of_its_own(talk, at), Hook.TO_LOOPBACK)
    assert (verdict.reason, verdict.refused) == ("drop_no_backend", True)


@VERSIONS
def test_S106_on_the_loopback_interface_only_calls_of_services_are_ours(talk: Talk, at: Places) -> None:
    """All else is not looked at, be it another port of a service, or of a flow that is known."""
    call = call_of_its_own(talk, at, at.first)
    talk.send(call, Hook.TO_LOOPBACK)
    talk.model.world = replace(talk.model.world, services=WORLD.services)
    for one in (call, replace(call, destination_port=30081), replace(call, destination=at.VIP, destination_port=81)):
        assert talk.send(one, Hook.TO_LOOPBACK) == Verdict("pass", one, "stack", walked=False)
