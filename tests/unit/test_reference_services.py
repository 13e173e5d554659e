"""Which backends a caller may get, on the model, and who gets none: policies, source ranges, masquerading."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import (
    BACKEND,
    BRIDGE,
    CLIENT,
    EXTERNAL,
    FAR,
    FIRST,
    OTHER,
    OUTSIDE,
    REMOTE,
    SECOND,
    SYN,
    UPLINK,
    VIP,
    WEB,
    WORLD,
    Talk,
)

from pydatapath.reference import Address, Backend, Choice, Hook, Impossible, Service, Verdict


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_S26_any_backend_of_the_set_may_be_chosen(talk: Talk) -> None:
    """And no other."""
    talk.serve(WEB, FIRST, OTHER)
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == (FIRST, OTHER)
    assert talk.goes_to(SYN, OTHER) == SECOND
    with pytest.raises(Impossible, match=r"10\.2\.0\.3:8080"):
        talk.send(replace(SYN, source_port=2), chosen=Choice(FAR))


def test_N103_a_SYN_sent_again_goes_the_same_way(talk: Talk) -> None:
    """To the same backend while the set is the same, and it is no new flow."""
    talk.serve(WEB, FIRST, OTHER)
    assert talk.goes_to(SYN, OTHER) == SECOND
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == (OTHER,)
    again = talk.send(SYN)
    assert (again.packet.destination, again.opened) == (SECOND, False)
    with pytest.raises(Impossible):
        talk.send(SYN, chosen=Choice(FIRST))


@pytest.mark.parametrize(
    ("hook", "source", "backends"),
    [
        pytest.param(Hook.FROM_POD, CLIENT, (FIRST, FAR), id="S52 pod"),
        pytest.param(Hook.TO_BRIDGE, BRIDGE, (FIRST, FAR), id="S53 node"),
        pytest.param(Hook.FROM_UPLINK, REMOTE, (FIRST, FAR), id="S54 another node's pod"),
        pytest.param(Hook.FROM_UPLINK, OUTSIDE, (FIRST,), id="S50 outside"),
        pytest.param(Hook.TO_UPLINK, UPLINK, (FIRST, FAR), id="S43 S53 node, by the uplink"),
        pytest.param(Hook.TO_UPLINK, CLIENT, (), id="what leaves was met before"),
    ],
)
def test_S50_to_S55_who_calls_decides_on_the_set(talk: Talk, hook: Hook, source: str, backends: tuple[Backend]) -> None:
    """externalTrafficPolicy Local: callers outside have the local backends, those in the cluster all."""
    talk.put(Address(EXTERNAL, 80), Service(3, inside=(FIRST, FAR), outside=(FIRST,)))
    assert talk.model.choices(replace(SYN, source=source, destination=EXTERNAL), hook, talk.now) == backends


def test_S36_S51_backends_that_the_policy_keeps_away_are_a_drop(talk: Talk) -> None:
    """Not a refusal: the service works, elsewhere."""
    talk.put(WEB, Service(1, inside=(FIRST,), drop_outside=True))
    assert talk.send(replace(SYN, source=OUTSIDE), Hook.FROM_UPLINK).reason == "drop_policy"
    talk.put(WEB, Service(1, outside=(FIRST,), drop_inside=True))
    assert talk.send(SYN).reason == "drop_policy"


def test_S41_a_service_without_backends_refuses(talk: Talk) -> None:
    """Nothing is translated and no flow is entered."""
    talk.serve(WEB)
    assert talk.send(SYN) == Verdict("drop", SYN, reason="drop_no_backend", refused=True)
    assert talk.model.flows.half_open == {}


def test_S38_an_address_that_no_service_owns_leads_nowhere(talk: Talk) -> None:
    """Dropped by name; but not by the uplink outwards, where another machine may have it, nor where it never comes."""
    lost = replace(SYN, destination="10.96.9.9")
    sources = {Hook.FROM_UPLINK: OUTSIDE}
    found = {hook: talk.send(replace(lost, source=sources.get(hook, CLIENT)), hook).reason for hook in Hook}
    assert found == {
        Hook.FROM_POD: "drop_no_service",
        Hook.FROM_UPLINK: "drop_no_service",
        Hook.TO_BRIDGE: "drop_no_service",
        Hook.TO_UPLINK: "",
        Hook.TO_LOOPBACK: "",
    }


def test_S37_C2_another_port_of_a_service_is_refused(talk: Talk) -> None:
    """An address that no service owns is silent; and nobody answers a RST."""
    other = replace(SYN, destination_port=81)
    refused = [talk.send(one).refused for one in (other, replace(other, destination="10.96.9.9"))]
    assert [*refused, talk.send(replace(other, flags="R")).refused] == [True, False, False]
    talk.model.world = replace(WORLD, service_networks=(), cluster_ips=frozenset({VIP}))
    assert talk.send(other).refused
    assert talk.send(replace(other, source=UPLINK), Hook.TO_UPLINK).refused


def test_S62_S63_S67_who_is_in_no_source_range_is_dropped(talk: Talk) -> None:
    """Pods too, by their own address, and before it matters who would answer."""
    talk.put(WEB, replace(Service.for_all(1, FIRST), sources=("192.0.2.0/24",)))
    assert talk.send(SYN).counted == ("drop_source_range",)
    assert talk.model.choices(SYN, Hook.FROM_POD, talk.now) == ()
    assert talk.send(replace(SYN, source=OUTSIDE), Hook.FROM_UPLINK).packet.destination == BACKEND
    talk.put(WEB, Service(1, sources=()))
    assert talk.send(SYN).counted == ("drop_source_range",)


@pytest.mark.parametrize(
    ("backend", "source"), [(FIRST, OUTSIDE), (FAR, UPLINK)], ids=["S50 C4 here", "S49 C4 elsewhere"]
)
def test_C4_a_client_from_elsewhere_that_is_sent_elsewhere_is_masqueraded(
    talk: Talk, backend: Backend, source: str
) -> None:
    """The answer must come back through this node; from a backend on it, it does, and the client is seen."""
    talk.serve(WEB, backend)
    called = replace(SYN, source=OUTSIDE)
    there = talk.send(called, Hook.FROM_UPLINK)
    assert there.packet.source == source
    back = talk.answer(there, hook=Hook.FROM_POD if backend is FIRST else Hook.FROM_UPLINK)
    assert back.packet.tuple == called.tuple.reverse


def test_S54_another_nodes_pod_is_masqueraded_on_its_way_back_out(talk: Talk) -> None:
    """Else the answer would go straight to it and the flow would die."""
    talk.put(Address(EXTERNAL, 80), Service.for_all(3, Backend("10.2.0.9", 8080, 7)))
    verdict = talk.send(replace(SYN, source=REMOTE, destination=EXTERNAL), Hook.FROM_UPLINK)
    assert (verdict.packet.source, verdict.to) == (UPLINK, "route")


def test_N87_what_only_this_node_can_have_sent_does_not_come_in_by_an_uplink(talk: Talk) -> None:
    """Its pods' addresses, and services'; nor does a packet from itself. Others' pods come in that way."""
    talk.serve(WEB, FIRST)
    for source in (CLIENT, VIP, OUTSIDE):
        sent = replace(SYN, source=source, destination=source if source == OUTSIDE else VIP)
        assert talk.send(sent, Hook.FROM_UPLINK).reason == "drop_spoofed"
    assert talk.send(replace(SYN, source=REMOTE), Hook.FROM_UPLINK).kind == "forward"
