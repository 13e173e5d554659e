"""Fragments, on the model: the later ones follow the first, which alone has the ports."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import HIDDEN, NAMES, V4, V6, VERSIONS, WEB, Places, Talk

from pydatapath.kernel import layout
from pydatapath.reference import Backend, Fragment, Hook, Packet, Protocol, Verdict
from pydatapath.reference.fragments import TIMEOUT, Datagram

LATE = 2 * TIMEOUT  # seconds


@pytest.fixture
def talk() -> Talk:
    return Talk()


def first(packet: Packet, identification: int = 7) -> Packet:
    """The first fragment of a datagram."""
    return replace(packet, length=996, fragment=Fragment(identification))


def later(packet: Packet, identification: int = 7, offset: int = 976) -> Packet:
    """Another one, of the same datagram."""
    part = Fragment(identification, offset)
    return replace(packet, source_port=0, destination_port=0, flags="", length=700, fragment=part)


def query(at: Places) -> Packet:
    """A datagram of a pod to a service."""
    return Packet(at.CLIENT, 40000, at.VIP, 53, "UDP")


def outwards(at: Places, protocol: Protocol = "UDP") -> Packet:
    """A pod calls the outside, or asks it for an echo."""
    return Packet(at.CLIENT, 5000, at.OUTSIDE, 0 if protocol == "ICMP" else 53, protocol)


@VERSIONS
def test_N63_later_fragments_follow_the_first(talk: Talk, at: Places) -> None:
    """In any order behind it, both ways; the answer's are of its own sender."""
    call = query(at)
    there = talk.send(first(call))
    assert (there.packet.destination, there.packet.destination_port, there.opened) == (at.BACKEND, 5353, True)
    for offset in (1952, 976):
        verdict = talk.send(later(call, offset=offset))
        assert verdict == Verdict("forward", replace(later(call, offset=offset), destination=at.BACKEND), at.BACKEND)
    answer = first(there.packet.readdressed(there.packet.tuple.reverse))
    assert talk.send(answer).packet.tuple == call.tuple.reverse
    assert talk.send(later(answer)).packet.source == at.VIP


@VERSIONS
def test_N63_also_those_of_a_flow_that_was_answered(talk: Talk, at: Places) -> None:
    """A first fragment is a packet of its flow, whatever came before; it is counted there, the later ones are not."""
    there = talk.open(query(at))
    answer = first(there.packet.readdressed(there.packet.tuple.reverse))
    for part in (answer, later(answer)):
        assert (talk.send(part).kind, talk.send(part).packet.source) == ("forward", at.VIP)
    entry = talk.model.flows.main[answer.tuple]
    assert (entry.packets, entry.octets) == (3, 60 + 2 * 996)


@VERSIONS
def test_N66_of_later_ones_only_addresses_change(talk: Talk, at: Places) -> None:
    """And the hops that are left, of all of them, where they are routed (N72)."""
    talk.serve(replace(NAMES, address=at.VIP), Backend(at.REMOTE, 5353, 9))
    assert talk.send(first(query(at))).packet.ttl == 63
    part = later(query(at))
    assert talk.send(part).packet == replace(part, destination=at.REMOTE, ttl=63)
    last = replace(part, ttl=1)
    assert talk.send(last) == Verdict("pass", last, "stack")


@VERSIONS
def test_N63_a_first_fragment_is_forgotten_after_half_a_minute(talk: Talk, at: Places) -> None:
    """Not sooner than a receiver gives up; the last one in order is no end, since it may not come last."""
    talk.send(first(query(at)))
    talk.now += TIMEOUT
    assert talk.send(later(query(at))).kind == "forward"
    talk.now += 0.1
    assert talk.send(later(query(at))).reason == "drop_fragment"
    talk.send(first(query(at)))
    assert talk.send(later(query(at))).kind == "forward"
    assert TIMEOUT == layout.FRAGMENTS_TIMEOUT


@VERSIONS
def test_N64_a_fragment_before_its_first_is_dropped_by_name(talk: Talk, at: Places) -> None:
    """At a cluster IP, where nobody else could deliver it; elsewhere the stack may."""
    assert talk.send(later(query(at))) == Verdict("drop", later(query(at)), reason="drop_fragment")
    stray = later(replace(query(at), destination=at.SECOND))
    assert talk.send(stray) == Verdict("pass", stray, "stack", reason="pass_fragment")
    assert talk.send(later(query(at)), Hook.TO_UPLINK).reason == "pass_fragment"  # another machine's address, maybe
    node = replace(stray, source=at.BRIDGE, destination=at.UNOWNED)
    assert talk.send(node, Hook.TO_BRIDGE).counted == ("drop_no_service",)


@VERSIONS
def test_N63_datagrams_do_not_mix(talk: Talk, at: Places) -> None:
    """Another identification, sender or, in IPv4, protocol is another datagram's."""
    talk.send(first(query(at)))
    others = [later(query(at), 8), replace(later(query(at)), source=at.SECOND)]
    assert {talk.send(one).reason for one in others} == {"drop_fragment"}
    tcp = talk.send(replace(later(query(at)), protocol="TCP"))
    assert tcp.reason == ("drop_fragment" if at is V4 else "")


@VERSIONS
def test_N68_a_later_fragment_of_IPv6_names_any_protocol(at: Places) -> None:
    """RFC 8200 4.5: what stands in its header need not be the first one's."""
    assert Datagram.of(later(query(at))).protocol == ("UDP" if at is V4 else "")


def test_N65_fragments_push_out_no_flow(talk: Talk) -> None:
    """They have a table of their own."""
    talk.open(query(V4))
    flows = dict(talk.model.flows.main)
    for number in range(100):
        talk.send(later(query(V4), number))
    assert talk.model.flows.main == flows
    assert not talk.model.fragments.noted


@VERSIONS
def test_what_is_no_services_is_not_noted(talk: Talk, at: Places) -> None:
    """Neither what nobody has a flow for, nor what a flow leaves as it is."""
    for packet in (replace(query(at), destination=at.SECOND), replace(query(at), destination=at.BACKEND)):
        direct = replace(packet, destination_port=5353)
        assert talk.send(first(direct)).packet == first(direct)
        assert talk.send(later(direct)).packet == later(direct)
    assert not talk.model.fragments.noted


@VERSIONS
def test_N82_a_part_of_SCTP_keeps_its_ports_or_is_dropped(talk: Talk, at: Places) -> None:
    """How its checksum changes depends on how long all of them are together."""
    called = replace(WEB, address=at.VIP, protocol="SCTP")
    for port, kind in ((132, "forward"), (133, "drop")):
        world = talk.model.world
        service = replace(world.services[replace(WEB, address=at.VIP)], number=9)
        backends = (Backend(at.BACKEND, port, 9),)
        service = replace(service, inside=backends, outside=backends)
        talk.model.world = replace(world, services={**world.services, replace(called, port=132): service})
        verdict = talk.send(first(Packet(at.CLIENT, port, at.VIP, 132, "SCTP", "S")))
        assert (verdict.kind, verdict.reason) == (kind, "drop_rewrite" if kind == "drop" else "")
        assert verdict.opened


@VERSIONS
def test_C2_a_part_of_a_segment_is_refused_in_silence(talk: Talk, at: Places) -> None:
    """A RST is the segment turned round. A datagram's sender is told."""
    closed = replace(at.syn, destination_port=9)
    assert talk.send(first(closed)) == Verdict("drop", first(closed), reason="drop_no_service")
    assert talk.send(first(replace(closed, protocol="UDP", flags=""))).refused


@VERSIONS
def test_N87_a_spoofed_fragment_is_dropped(talk: Talk, at: Places) -> None:
    """The later ones, too: they have all that is asked for."""
    for part in (first(query(at)), later(query(at)), replace(later(query(at)), source=at.UPLINK)):
        assert talk.send(part, Hook.FROM_UPLINK) == Verdict("drop", part, reason="drop_spoofed")


@VERSIONS
def test_S40_a_first_fragment_tells_where_its_pod_is(talk: Talk, at: Places) -> None:
    """Of a known flow, too; a later one tells nothing."""
    talk.open(query(at))
    for part, known in ((later(query(at)), "pod2"), (first(query(at)), "pod9")):
        talk.model.receive(Hook.FROM_POD, part, talk.now, interface="pod9")
        assert talk.model.world.endpoints[at.CLIENT] == known


@VERSIONS
def test_by_the_loopback_interface_fragments_are_the_nodes_own(talk: Talk, at: Places) -> None:
    """A datagram to one of its own node ports is as large as that interface allows."""
    talk.send(first(query(at)))
    for part in (first(query(at)), later(query(at))):
        assert talk.send(part, Hook.TO_LOOPBACK) == Verdict("pass", part, "stack", walked=False)


# Masquerading


@VERSIONS
@pytest.mark.parametrize("protocol", ["UDP", "ICMP"])
def test_N63_N70_fragments_leave_behind_the_nodes_address(at: Places, protocol: Protocol) -> None:
    """Of datagrams and of large pings; and what is answered in fragments finds its pod."""
    talk, call = Talk(HIDDEN), outwards(at, protocol)
    there = talk.send(first(call))
    assert talk.send(later(call)).packet == replace(later(call), source=at.UPLINK, ttl=63)
    answer = first(there.packet.readdressed(there.packet.tuple.reverse))
    for part in (answer, later(answer)):
        assert talk.send(part, Hook.FROM_UPLINK).to == at.CLIENT


@VERSIONS
def test_C13_N84_a_part_without_its_first_does_not_leave(at: Places) -> None:
    """The stack would send it with the pod's own address; the node's own is the stack's."""
    talk, stray = Talk(HIDDEN), later(outwards(at))
    assert talk.send(stray).counted == ("pass_fragment",)
    assert talk.send(stray, Hook.TO_UPLINK).counted == ("drop_untranslated",)
    assert talk.send(replace(stray, source=at.UPLINK), Hook.TO_UPLINK).kind == "pass"


@VERSIONS
@pytest.mark.parametrize("protocol", ["UDP", "ICMP"])
def test_N63_N70_who_is_called_directly_answers_in_fragments(at: Places, protocol: Protocol) -> None:
    """A router leads a caller to a pod: the answer is not hidden, nor are its later parts, wherever they are met."""
    talk, call = Talk(HIDDEN), outwards(at, protocol)
    asked = replace(call, source=at.OUTSIDE, destination=at.CLIENT)
    talk.send(asked, Hook.FROM_UPLINK)
    answer = first(asked.readdressed(asked.tuple.reverse))
    for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
        assert talk.send(answer, hook) == Verdict("pass", answer, "stack")
        assert talk.send(later(answer), hook) == Verdict("pass", later(answer), "stack")


# A packet that cannot be


def test_a_part_that_cannot_be_is_not_made() -> None:
    """Later fragments have no ports."""
    with pytest.raises(ValueError, match="neither a later fragment nor an error has ports"):
        replace(query(V6), fragment=Fragment(1, 8))
    with pytest.raises(ValueError, match="is no fragment"):
        Datagram.of(query(V4))
