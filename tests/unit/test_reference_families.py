"""IPv4 and IPv6, on the model: each rule that looks at an address holds for both, and each has its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import BACKEND, SYN, V4, V6, VERSIONS, WORLD, Places, Talk

from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.reference import Backend, Choice, Hook, Machine, Route, Service


@pytest.fixture
def talk() -> Talk:
    return Talk()


@VERSIONS
def test_S8_S28_N30_a_service_is_served_in_its_version(talk: Talk, at: Places) -> None:
    """The backend sees the caller, and the caller the address that it has called."""
    there = talk.send(at.syn)
    assert there.packet == replace(at.syn, destination=at.BACKEND, destination_port=8080)
    assert talk.answer(there).packet.tuple == at.syn.tuple.reverse


def test_S8_one_version_may_have_no_backend(talk: Talk) -> None:
    """It refuses alone."""
    talk.serve(V6.web)
    assert (talk.send(V6.syn).reason, talk.goes_to(SYN)) == ("drop_no_backend", BACKEND)


@VERSIONS
def test_S29_C1_a_pod_that_calls_itself_sees_the_node(talk: Talk, at: Places) -> None:
    """By the node's address of its version."""
    called = replace(at.syn, source=at.BACKEND)
    there = talk.send(called)
    assert there.packet.source == at.BRIDGE
    assert talk.answer(there).packet.tuple == called.tuple.reverse


@VERSIONS
def test_C4_S49_a_client_from_elsewhere_that_is_sent_elsewhere_is_masqueraded(talk: Talk, at: Places) -> None:
    """Behind the uplink's address of its version."""
    talk.serve(at.web, Backend(at.REMOTE, 8080, 9))
    there = talk.send(replace(at.syn, source=at.OUTSIDE), Hook.FROM_UPLINK)
    assert (there.packet.source, there.to, there.packet.ttl) == (at.UPLINK, "route", 63)


@VERSIONS
def test_S30_S56_N90_the_node_calls_what_it_serves_itself(talk: Talk, at: Places) -> None:
    """Its server sees the next hop of its version, and the answer comes in by the bridge."""
    talk.serve(at.web, Backend(at.BRIDGE, 8080, 9))
    there = talk.send(replace(at.syn, source=at.BRIDGE), Hook.TO_BRIDGE)
    assert (there.kind, there.packet.source) == ("node", WORLD.next_hop(at.BRIDGE))
    assert talk.answer(there, hook=Hook.TO_BRIDGE).to == "bridge"


@VERSIONS
def test_S37_S38_C2_what_no_service_has_is_refused_or_dropped(talk: Talk, at: Places) -> None:
    """Another port of a service, and an address of none."""
    other, lost = replace(at.syn, destination_port=81), replace(at.syn, destination=at.UNOWNED)
    assert [talk.send(one).refused for one in (other, lost)] == [True, False]
    assert talk.send(lost).reason == "drop_no_service"


@VERSIONS
def test_S50_S54_who_is_in_the_cluster_is_told_by_address(talk: Talk, at: Places) -> None:
    """A pod of another node is inside, a client is not."""
    talk.put(at.web, Service(1, inside=(at.first,), drop_outside=True))
    assert talk.send(replace(at.syn, source=at.REMOTE), Hook.FROM_UPLINK).kind == "forward"
    assert talk.send(replace(at.syn, source=at.OUTSIDE), Hook.FROM_UPLINK).reason == "drop_policy"


@VERSIONS
def test_S52_S54_pods_that_Node_objects_tell_of_are_inside(talk: Talk, at: Places) -> None:
    """The nodes themselves are not, wherever their addresses are."""
    talk.put(at.web, Service(1, inside=(at.first,), drop_outside=True))
    within = Machine(pod_networks=("192.0.2.0/24", "2001:db8::/64"))
    for nodes, reason in (((within,), ""), ((within, Machine(frozenset({at.OUTSIDE}))), "drop_policy")):
        talk.model.world = replace(talk.model.world, nodes=nodes)
        assert talk.send(replace(at.syn, source=at.OUTSIDE), Hook.FROM_UPLINK).reason == reason


def test_S62_C6_ranges_of_one_version_close_the_other(talk: Talk) -> None:
    """To everybody: no usable range is left there."""
    for at in (V4, V6):
        talk.put(at.web, replace(Service.for_all(1, at.first), sources=("10.1.0.0/24", "2001:db8::/32")))
    assert talk.goes_to(SYN) == BACKEND
    assert talk.send(V6.syn).reason == "drop_source_range"
    assert talk.send(replace(V6.syn, source=V6.OUTSIDE), Hook.FROM_UPLINK).kind == "forward"


def test_S75_what_binds_a_client_is_of_its_version(talk: Talk) -> None:
    """A pod that calls one service port by both may get two backends."""
    other = {V4: Backend(V4.SECOND, 8080, 2), V6: Backend(V6.SECOND, 8080, 12)}
    for at in (V4, V6):
        talk.put(at.web, Service.for_all(1, at.first, other[at], affinity=10))
    talk.send(SYN, chosen=Choice(other[V4]))
    free = talk.model.choices(replace(V6.syn, source_port=2), Hook.FROM_POD, talk.now)
    assert free == (V6.first, other[V6])


@VERSIONS
def test_C8_a_pod_is_gone_in_both_versions_at_once(talk: Talk, at: Places) -> None:
    """It is its interface that goes."""
    talk.open(at.syn)
    talk.serve(at.web)
    talk.kill("pod3")
    assert talk.send(replace(at.syn, flags="A")).reason == "drop_pod_gone"


def test_S40_pods_are_found_where_they_send_from(talk: Talk) -> None:
    """By their addresses of either version."""
    talk.model.receive(Hook.FROM_POD, replace(V6.syn, source="fd00:1::77"), talk.now, interface="pod77")
    assert talk.model.world.endpoints == {**WORLD.endpoints, "fd00:1::77": "pod77"}


def test_N72_the_longest_prefix_has_the_way() -> None:
    """Of the address's own version."""
    routes = (Route("::/0", 1400), Route("0.0.0.0/0"), Route("fd00:2::/64", 9000), Route("fd00::/16", 1))
    world = replace(WORLD, routes=routes)
    assert [world.route(at) for at in (V6.REMOTE, V6.OUTSIDE)] == [routes[2], routes[0]]


def test_the_models_next_hops_are_the_kernels() -> None:
    """Stated twice on purpose; here is where they must agree."""
    assert {str(at) for at in SERVICE_GATEWAYS.values()} == {WORLD.next_hop(at.BRIDGE) for at in (V4, V6)}
