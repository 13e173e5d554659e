"""A pod that calls another one by its end outside, on the model (RFC 4787 REQ-9a)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import HIDDEN, V4, VERSIONS, Places, Talk

from pydatapath.reference import Choice, Error, FlowTuple, Hook, Masquerade, NatType, Packet, Verdict
from pydatapath.reference.world import Egress

CONE = pytest.mark.parametrize("kind", [NatType.FULL_CONE, NatType.ENDPOINT_INDEPENDENT], ids=["cone", "filtered"])


def begun(at: Places, kind: NatType) -> Talk:
    """CLIENT is seen as port 5000, BACKEND as 6000: both have called somebody outside."""
    how = Masquerade((Egress(at.UPLINK),), kind)
    talk = Talk(replace(HIDDEN, masquerade=how))
    for pod, port in ((at.CLIENT, 5000), (at.BACKEND, 6000)):
        assert talk.send(Packet(pod, port, at.OUTSIDE, 53, "UDP")).packet.source == at.UPLINK
    return talk


def across(at: Places, *, back: bool = False) -> Packet:
    """CLIENT calls BACKEND by its end outside; or the other way round."""
    source, port, called = (at.BACKEND, 6000, 5000) if back else (at.CLIENT, 5000, 6000)
    return Packet(source, port, at.UPLINK, called, "UDP")


@VERSIONS
def test_N31_in_a_full_cone_a_pod_is_let_in_at_once(at: Places) -> None:
    """It is seen as its end outside, and is answered."""
    talk = begun(at, NatType.FULL_CONE)
    call = across(at)
    there = talk.send(call)
    to = FlowTuple(at.UPLINK, 5000, at.BACKEND, 6000, "UDP")
    assert there == Verdict("forward", call.readdressed(to), at.BACKEND, opened=True)
    assert talk.answer(there).packet.tuple == call.tuple.reverse


@VERSIONS
def test_N10_N31_else_once_the_other_has_sent_to_it(at: Places) -> None:
    """Both send; who sends second is let in, and then both are."""
    talk = begun(at, NatType.ENDPOINT_INDEPENDENT)
    for opened in (True, False):
        assert talk.send(across(at)) == Verdict("drop", across(at), reason="drop_unasked", opened=opened)
    for _ in range(2):
        assert talk.send(across(at, back=True)).to == at.CLIENT
        assert talk.send(across(at)).to == at.BACKEND


@VERSIONS
def test_N31_in_a_symmetric_one_nobody_has_an_end_for_all(at: Places) -> None:
    """It is the node's packet, as it is in all types for a port that is nobody's."""
    assert begun(at, NatType.SYMMETRIC).send(across(at)) == Verdict("pass", across(at), "stack")
    other = replace(across(at), destination_port=6001)
    assert begun(at, NatType.FULL_CONE).send(other) == Verdict("pass", other, "stack")


@VERSIONS
def test_N1_N31_who_has_no_end_outside_gets_one(at: Places) -> None:
    """Which is its for whoever it calls."""
    talk = begun(at, NatType.FULL_CONE)
    there = talk.send(replace(across(at), source=at.SECOND), chosen=Choice(source_port=7000))
    assert there.packet.tuple == FlowTuple(at.UPLINK, 7000, at.BACKEND, 6000, "UDP")
    assert talk.send(Packet(at.SECOND, 5000, at.OUTSIDE, 53, "UDP")).packet.source_port == 7000


@VERSIONS
@CONE
def test_N31_a_flow_ends_with_its_time(at: Places, kind: NatType) -> None:
    """Then it begins anew, with what filtering says."""
    talk = begun(at, kind)
    for packet in (across(at), across(at, back=True), across(at)):
        verdict = talk.send(packet)
    assert verdict.to == at.BACKEND
    talk.now += 299
    assert talk.send(across(at, back=True)).to == at.CLIENT
    talk.now += 299
    talk.send(Packet(at.BACKEND, 6000, at.OUTSIDE, 54, "UDP"))
    assert talk.send(across(at)).to == at.BACKEND
    talk.now += 301
    for pod, port in ((at.CLIENT, 5000), (at.BACKEND, 6000)):
        talk.send(Packet(pod, port, at.OUTSIDE, 53, "UDP"))
    assert talk.send(across(at)).kind == ("forward" if kind is NatType.FULL_CONE else "drop")


@VERSIONS
@CONE
def test_N32_an_error_quotes_what_its_receiver_has_sent(at: Places, kind: NatType) -> None:
    """Of a closed port: from whom the caller has called, about its own packet."""
    talk = begun(at, kind)
    for packet in (across(at), across(at, back=True), across(at)):
        there = talk.send(packet)
    told = Packet(at.BACKEND, 0, at.UPLINK, 0, "ICMP", error=Error("port unreachable", there.packet))
    verdict = talk.send(told, Hook.FROM_POD)
    assert (verdict.to, verdict.packet.source, verdict.packet.destination) == (at.CLIENT, at.UPLINK, at.CLIENT)
    assert verdict.packet.error == Error("port unreachable", replace(across(at), ttl=there.packet.ttl))


@VERSIONS
@CONE
@pytest.mark.parametrize("behind", ["uplink", "uplink2"])
def test_N31_two_pods_meet_by_their_ends_at_any_uplink(at: Places, kind: NatType, behind: str) -> None:
    """Each is seen by the address by which the other is called, where it has that one, too."""
    second = {4: "198.51.100.1", 6: "2001:db8:51::1"}[6 if ":" in at.UPLINK else 4]
    how = Masquerade((Egress(at.UPLINK), Egress(second, "uplink2")), kind)
    talk, seen = Talk(replace(HIDDEN, masquerade=how)), {"uplink": at.UPLINK, "uplink2": second}[behind]
    for pod, port in ((at.CLIENT, 5000), (at.BACKEND, 6000)):
        call = Packet(pod, port, at.OUTSIDE, 53, "UDP")
        assert talk.model.receive(Hook.TO_UPLINK, call, talk.now, interface=behind).packet.source == seen
    there, back = replace(across(at), destination=seen), replace(across(at, back=True), destination=seen)
    talk.send(there)
    assert talk.send(back).packet.tuple == FlowTuple(seen, 6000, at.CLIENT, 5000, "UDP")
    assert talk.send(there).packet.tuple == FlowTuple(seen, 5000, at.BACKEND, 6000, "UDP")


def test_N31_who_has_no_end_there_is_seen_by_its_own() -> None:
    """Its network has another address at the only uplink."""
    at = V4
    how = Masquerade((Egress("192.0.2.7", network=f"{at.CLIENT}/32"), Egress(at.UPLINK)), NatType.FULL_CONE)
    talk = Talk(replace(HIDDEN, masquerade=how))
    talk.send(Packet(at.BACKEND, 6000, at.OUTSIDE, 53, "UDP"))
    assert talk.send(across(at)).packet.tuple == FlowTuple("192.0.2.7", 5000, at.BACKEND, 6000, "UDP")
