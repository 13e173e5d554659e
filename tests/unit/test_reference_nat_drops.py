"""What masquerading drops by name, on the model: what nobody could answer, or tell from an answer, or would get."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import HIDDEN, VERSIONS, Places, Talk

from pydatapath.reference import (
    Address,
    Backend,
    Error,
    FlowTuple,
    Hook,
    Masquerade,
    NatType,
    Packet,
    Protocol,
    Verdict,
)


def cone() -> Talk:
    """Where everybody may send to a port that somebody has."""
    egress = HIDDEN.masquerade.egress if HIDDEN.masquerade else ()
    return Talk(replace(HIDDEN, masquerade=Masquerade(egress, NatType.FULL_CONE)))


def calls(at: Places, protocol: Protocol = "UDP", source: str = "", port: int = 5000, called: int = 53) -> Packet:
    """A pod's first packet to the outside."""
    flags = "S" if protocol in {"TCP", "SCTP"} else ""
    return Packet(source or at.CLIENT, port, at.OUTSIDE, 0 if protocol == "ICMP" else called, protocol, flags)


def stranger(there: Verdict, port: int = 54) -> Packet:
    """Who was called sends from another port to where that came from."""
    return replace(there.packet.turned_round(), source_port=port, ttl=64)


@VERSIONS
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_N27_port_0_is_dropped_by_name(at: Places, protocol: Protocol) -> None:
    """Whoever is called; but a service's backend here hears a datagram from it."""
    talk = Talk(HIDDEN)
    for call in (calls(at, protocol, port=0), calls(at, protocol, called=0)):
        for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
            assert talk.send(call, hook) == Verdict("drop", call, reason="drop_untranslated")
    query = Packet(at.CLIENT, 0, at.VIP, 53, "UDP")
    assert talk.send(query).packet.tuple == FlowTuple(at.CLIENT, 0, at.BACKEND, 5353, "UDP")
    talk.serve(Address(at.VIP, 53, "UDP"), Backend(at.OUTSIDE, 53))
    assert talk.send(replace(query, source=at.SECOND)).reason == "drop_untranslated"


@VERSIONS
def test_N27_who_calls_a_port_outside_from_port_0_is_not_let_in(at: Places) -> None:
    """Not even in a full cone."""
    talk = cone()
    there = talk.send(calls(at))
    unasked = stranger(there, 0)
    assert talk.send(unasked, Hook.FROM_UPLINK) == Verdict("drop", unasked, reason="drop_unasked")
    assert talk.send(stranger(there), Hook.FROM_UPLINK).kind == "forward"


@VERSIONS
def test_N44_of_the_identifier_0_a_query_is_no_answer(at: Places) -> None:
    """It is another one outside, of which the peer's query is the node's; and so is its query by 0."""
    talk = Talk(HIDDEN)
    there = talk.send(calls(at, "ICMP", port=0))
    assert there.packet.source_port != 0
    for identifier in (0, there.packet.source_port):
        query = Packet(at.OUTSIDE, identifier, at.UPLINK, 0, "ICMP")
        assert talk.send(query, Hook.FROM_UPLINK) == Verdict("pass", query, "stack")
    back = talk.answer(there, hook=Hook.FROM_UPLINK).packet
    assert (back.tuple, back.asks) == (calls(at, "ICMP", port=0).tuple.reverse, False)


@VERSIONS
def test_C13_N44_of_the_identifier_0_a_pods_query_is_no_answer(at: Places) -> None:
    """To who has asked it by its own address."""
    talk, asked = Talk(HIDDEN), Packet(at.OUTSIDE, 0, at.CLIENT, 0, "ICMP")
    talk.send(asked, Hook.FROM_UPLINK)
    assert talk.send(asked.turned_round()) == Verdict("pass", asked.turned_round(), "stack")
    query = calls(at, "ICMP", port=0)
    assert talk.send(query) == Verdict("drop", query, reason="drop_untranslated")


@VERSIONS
def test_N44_N49_an_error_about_a_query_of_0_is_not_of_the_answers_flow(at: Places) -> None:
    """A pod has been asked by 0, and asks the same peer by 0: of what it says of the first nothing is translated."""
    talk = Talk(HIDDEN)
    there = talk.send(calls(at, "ICMP", port=0))
    answer = talk.answer(there, hook=Hook.FROM_UPLINK).packet
    for about, told in ((answer, "forward"), (replace(answer, flags=""), "pass")):
        error = Packet(at.CLIENT, 0, at.OUTSIDE, 0, "ICMP", error=Error("port unreachable", about))
        verdict = talk.send(error)
        assert verdict.kind == told
        assert (verdict.packet == error) == (told == "pass")


@VERSIONS
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "ICMP"])
def test_N108_what_comes_for_a_pod_that_is_gone_is_dropped_by_name(at: Places, protocol: Protocol) -> None:
    """Its flow stays: nobody else gets its port at once (N25)."""
    talk = Talk(HIDDEN)
    there = talk.send(calls(at, protocol))
    talk.kill("pod2")
    assert talk.answer(there, hook=Hook.FROM_UPLINK).reason == "drop_pod_gone"
    assert talk.send(calls(at, protocol, at.BACKEND)).packet.source_port != 5000


@VERSIONS
def test_N108_so_is_what_a_full_cone_would_let_in(at: Places) -> None:
    """From whom the pod has heard already, or not."""
    talk = cone()
    there = talk.send(calls(at))
    assert talk.send(stranger(there), Hook.FROM_UPLINK).kind == "forward"
    talk.kill("pod2")
    for port in (54, 999):
        unasked = stranger(there, port)
        assert talk.send(unasked, Hook.FROM_UPLINK) == Verdict("drop", unasked, reason="drop_pod_gone")
