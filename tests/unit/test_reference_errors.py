"""ICMP errors, on the model: whom they find, who they come from, and what they quote."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from talking import BOTH, HIDDEN, V4, V6, VERSIONS, Places, Talk, answer_to

from pydatapath.reference import (
    TIMEOUTS,
    Address,
    Backend,
    Error,
    ErrorKind,
    Fragment,
    Hook,
    Packet,
    Protocol,
    State,
    Verdict,
)

KINDS = pytest.mark.parametrize("kind", [one for one in get_args(ErrorKind) if one != "redirect"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP", "ICMP"])
ROUTERS = {V4: "198.51.100.1", V6: "2001:db8:51::1"}


@pytest.fixture
def talk() -> Talk:
    return Talk()


def error(sender: str, about: Packet, kind: ErrorKind = "port unreachable", quoted: int = 8, ttl: int = 64) -> Packet:
    """An error to who has sent a packet, as far as its teller knows."""
    return Packet(sender, 0, about.source, 0, "ICMP", ttl=ttl, error=Error(kind, about, quoted))


def quoted(verdict: Verdict) -> Packet:
    """The packet that an error quotes as it leaves."""
    assert verdict.packet.error is not None
    return verdict.packet.error.about


def far(talk: Talk, at: Places) -> Packet:
    """Lets the service be served elsewhere, and gives a call of it."""
    talk.serve(at.web, Backend(at.REMOTE, 8080, 9))
    return at.syn


def outwards(at: Places, protocol: Protocol = "UDP") -> Packet:
    """A pod's packet to the outside."""
    flags = "S" if protocol in {"TCP", "SCTP"} else ""
    return Packet(at.CLIENT, 5000, at.OUTSIDE, 0 if protocol == "ICMP" else 53, protocol, flags)


# Whom they find, who they come from


@KINDS
@BOTH
def test_N55_an_error_of_the_backend_is_the_services(talk: Talk, first: Packet, kind: ErrorKind) -> None:
    """It comes from the address that was called, and quotes what the client has sent."""
    for there in (talk.send(first), talk.open(first)):
        back = talk.send(error(V4.BACKEND, there.packet, kind))
        told = replace(there.packet.readdressed(first.tuple))
        assert back == Verdict("forward", error(V4.VIP, told, kind), V4.CLIENT)


@VERSIONS
@KINDS
def test_N49_N50_N59_an_error_of_a_router_stays_the_routers(talk: Talk, at: Places, kind: ErrorKind) -> None:
    """From whichever address: path MTU discovery and traceroute work through a service's address."""
    call = far(talk, at)
    there = talk.send(call)
    back = talk.send(error(ROUTERS[at], there.packet, kind), Hook.FROM_UPLINK)
    told = there.packet.readdressed(call.tuple)
    assert back == Verdict("forward", error(ROUTERS[at], told, kind, ttl=63), at.CLIENT)


@VERSIONS
def test_N56_an_error_about_an_answer_finds_the_backend(talk: Talk, at: Places) -> None:
    """Of the client or from the way to it: it quotes what the backend has sent."""
    answer = answer_to(talk.open(at.syn).packet, "A")
    back = talk.send(answer)
    for sender in (at.CLIENT, at.SECOND):
        told = talk.send(error(sender, back.packet))
        assert (told.kind, told.to, told.packet.source) == ("forward", at.BACKEND, sender)
        assert quoted(told) == answer


@VERSIONS
def test_N56_also_one_that_is_elsewhere(talk: Talk, at: Places) -> None:
    """A client from elsewhere, hidden from it behind the node."""
    call = replace(far(talk, at), source=at.OUTSIDE)
    there = talk.send(call, Hook.FROM_UPLINK)
    answer = answer_to(there.packet, "SA")
    back = talk.send(answer, Hook.FROM_UPLINK)
    told = talk.send(error(ROUTERS[at], back.packet), Hook.FROM_UPLINK)
    assert (told.packet.source, told.packet.destination) == (ROUTERS[at], at.REMOTE)
    assert quoted(told).tuple == answer.tuple


@VERSIONS
def test_N32_an_error_of_a_hairpin_flow_finds_the_pod_itself(talk: Talk, at: Places) -> None:
    """In its own terms, in both directions."""
    call = replace(at.syn, source=at.BACKEND)
    there = talk.send(call)
    told = talk.send(error(at.BACKEND, there.packet))
    assert (told.to, told.packet.source, quoted(told).tuple) == (at.BACKEND, at.VIP, call.tuple)
    answer = answer_to(there.packet, "SA")
    told = talk.send(error(at.BACKEND, talk.send(answer).packet))
    assert (told.to, told.packet.source, quoted(told)) == (at.BACKEND, at.BRIDGE, answer)


@VERSIONS
def test_N90_an_error_for_the_node_comes_in_where_its_sender_is(talk: Talk, at: Places) -> None:
    """A router's by the uplink; but the backend's own comes from the service, and so by the bridge."""
    there = talk.send(replace(far(talk, at), source=at.BRIDGE), Hook.TO_BRIDGE)
    ways = [talk.send(error(one, there.packet), Hook.FROM_UPLINK).to for one in (ROUTERS[at], at.REMOTE)]
    assert ways == ["node", "bridge"]


@VERSIONS
def test_N72_an_error_has_hops_left(talk: Talk, at: Places) -> None:
    """One less where it is routed; the last one's is the stack's, unless the node would take it for its own."""
    about = talk.send(far(talk, at)).packet
    last = error(ROUTERS[at], about, ttl=1)
    assert talk.send(last, Hook.FROM_UPLINK) == Verdict("pass", last, "stack")
    hidden = Talk(HIDDEN)
    last = error(ROUTERS[at], hidden.send(outwards(at)).packet, ttl=1)
    assert hidden.send(last, Hook.FROM_UPLINK).reason == "drop_hops"


# Masquerading


@VERSIONS
@PROTOCOLS
def test_N49_an_error_finds_the_pod_that_is_hidden(at: Places, protocol: Protocol) -> None:
    """It quotes the pod's own address, and its port or identifier, though others were seen outside."""
    talk, call = Talk(HIDDEN), outwards(at, protocol)
    talk.send(replace(call, source=at.SECOND))
    there = talk.send(call)
    assert there.packet.tuple.reverse.called != Address(at.UPLINK, 5000, protocol)
    back = talk.send(error(ROUTERS[at], there.packet, "time exceeded"), Hook.FROM_UPLINK)
    assert (back.to, back.packet.source, back.packet.destination) == (at.CLIENT, ROUTERS[at], at.CLIENT)
    assert quoted(back).tuple == call.tuple


@VERSIONS
@PROTOCOLS
def test_N54_an_error_of_a_pod_leaves_behind_the_nodes_address(at: Places, protocol: Protocol) -> None:
    """About an answer that comes too late for it: it quotes what the outside has sent."""
    talk, call = Talk(HIDDEN), outwards(at, protocol)
    answer = answer_to(talk.send(call).packet, "SA" if protocol == "TCP" else "")
    told = talk.send(error(at.CLIENT, talk.send(answer, Hook.FROM_UPLINK).packet))
    assert (told.to, told.packet.source, quoted(told).tuple) == ("route", at.UPLINK, answer.tuple)


@VERSIONS
def test_C13_N84_no_pods_error_shows_it_outside(at: Places) -> None:
    """Nor one that is not the peer's: a pod may be a router for others. Within the cluster it stays who it is."""
    talk, call = Talk(HIDDEN), outwards(at)
    answer = answer_to(talk.send(call).packet, "")
    told = talk.send(error(at.SECOND, talk.send(answer, Hook.FROM_UPLINK).packet))
    assert (told.to, told.packet.source) == ("route", at.UPLINK)
    for caller, hook in ((at.CLIENT, Hook.FROM_POD), (at.UPLINK, Hook.TO_BRIDGE)):
        there = talk.send(replace(at.syn, source=caller), hook)
        assert talk.send(error(at.SECOND, there.packet)).packet.source == at.SECOND


@VERSIONS
def test_C13_N84_nor_one_about_nothing_known(at: Places) -> None:
    """It is the stack's, and dropped where that would send it out."""
    talk = Talk(HIDDEN)
    stray = error(at.CLIENT, answer_to(outwards(at), ""))
    assert talk.send(stray) == Verdict("pass", stray, "stack")
    assert talk.send(stray, Hook.TO_UPLINK).reason == "drop_untranslated"


# What they tell


@VERSIONS
@pytest.mark.parametrize(("size", "found"), [(7, False), (8, True), (28, True)])
def test_N51_eight_bytes_are_enough(talk: Talk, at: Places, size: int, found: bool) -> None:
    """Of less the ports are not told."""
    there = talk.send(at.syn)
    back = talk.send(error(at.BACKEND, there.packet, quoted=size))
    assert (back.packet.source == at.VIP) is found


@VERSIONS
def test_N52_the_first_of_several_fragments_is_found_by(talk: Talk, at: Places) -> None:
    """It has ports, which the later ones have not (N57)."""
    part = replace(at.syn, fragment=Fragment(7), length=996)
    there = talk.send(part)
    back = talk.send(error(at.BACKEND, there.packet, "too big"))
    assert quoted(back) == part
    rest = replace(part, source_port=0, destination_port=0, flags="", fragment=Fragment(7, 976))
    stray = error(at.BACKEND, talk.send(rest).packet, "time exceeded")
    assert talk.send(stray) == Verdict("pass", stray, "stack")


@VERSIONS
def test_N60_a_redirect_is_not_translated(talk: Talk, at: Places) -> None:
    """It tells who is a neighbour of whom, and of its own link only."""
    there = talk.send(at.syn)
    stray = error(at.BACKEND, there.packet, "redirect")
    assert talk.send(stray) == Verdict("pass", stray, "stack")


@VERSIONS
def test_N60_no_error_is_refused(talk: Talk, at: Places) -> None:
    """Whatever the service has come to: an error is answered by nothing."""
    there = talk.open(at.syn)
    talk.serve(at.web)
    talk.kill("pod3")
    for about in (there.packet, at.syn.readdressed(at.syn.tuple.reverse)):
        assert not talk.send(error(about.destination, about)).refused


# What they change: nothing


@VERSIONS
@KINDS
def test_N41_N58_an_error_changes_no_flow(talk: Talk, at: Places, kind: ErrorKind) -> None:
    """Forged or not: it keeps none alive, ends none, and is no answer to one that waits."""
    there = talk.send(at.syn)
    waiting = dict(talk.model.flows.half_open)
    talk.now += 5
    talk.send(error(at.BACKEND, there.packet, kind))
    assert (talk.model.flows.half_open, talk.model.flows.main) == (waiting, {})
    talk.open(at.syn)
    answered = dict(talk.model.flows.main)
    talk.now += 5
    talk.send(error(at.BACKEND, there.packet, kind))
    assert talk.model.flows.main == answered


@VERSIONS
@BOTH
def test_N42_N57_an_error_about_a_flow_that_is_over_is_the_stacks(talk: Talk, at: Places, first: Packet) -> None:
    """As one about a flow that nobody knows: whoever has its tuple by now has not sent what is quoted."""
    call = replace(first, source=at.CLIENT, destination=at.VIP)
    there = talk.open(call)
    talk.now += TIMEOUTS[call.protocol, State.ESTABLISHED]
    assert talk.send(error(at.BACKEND, there.packet)).packet.source == at.VIP
    talk.now += 0.1
    for about in (there.packet, call.readdressed(replace(call.tuple, source_port=9))):
        stray = error(at.BACKEND, about)
        assert talk.send(stray) == Verdict("pass", stray, "stack")


@VERSIONS
def test_N9_an_error_about_a_plain_flow_stays_as_it_is(talk: Talk, at: Places) -> None:
    """It is the stack's, as all of that flow's packets are."""
    direct = replace(at.syn, destination=at.BACKEND, destination_port=8080)
    talk.send(direct)
    told = error(at.BACKEND, direct)
    assert talk.send(told) == Verdict("pass", told, "stack")


# Pings of a service's address


@VERSIONS
def test_S39_C3_N48_a_services_address_answers_a_ping(talk: Talk, at: Places) -> None:
    """A cluster IP and an external one, with one hop left, too; no part of a ping, and nobody else's address."""
    talk.model.world = replace(talk.model.world, external_ips=frozenset({at.EXTERNAL}))
    for called in (at.VIP, at.EXTERNAL):
        ping = Packet(at.CLIENT, 7, called, 0, "ICMP", ttl=1)
        assert talk.send(ping) == Verdict("answer", Packet(called, 0, at.CLIENT, 7, "ICMP"))
        assert talk.send(replace(ping, fragment=Fragment(1))).reason == "drop_fragment"
        assert talk.send(ping, Hook.TO_UPLINK).kind == "pass"
    for called in (at.SECOND, at.OUTSIDE, at.UNOWNED):
        ping = Packet(at.CLIENT, 7, called, 0, "ICMP")
        assert talk.send(ping) == Verdict("pass", ping, "stack")


def test_S103_what_is_at_nobody_behind_the_bridge_is_dropped_by_name(talk: Talk) -> None:
    """A ping of the node's own, of an address that no service owns."""
    ping = Packet(V4.BRIDGE, 7, V4.UNOWNED, 0, "ICMP")
    assert talk.send(ping, Hook.TO_BRIDGE).reason == "drop_no_service"


# A packet that cannot be


def test_an_error_that_cannot_be_is_not_made() -> None:
    """It is ICMP, never about another error (N60), and has no ports of its own."""
    told = error(V4.BACKEND, V4.syn)
    for about, protocol in ((V4.syn, "UDP"), (told, "ICMP")):
        with pytest.raises(ValueError, match="an error is ICMP, and never about another one"):
            replace(told, protocol=protocol, error=Error("too big", about))
    with pytest.raises(ValueError, match="neither a later fragment nor an error has ports"):
        replace(told, source_port=1)
