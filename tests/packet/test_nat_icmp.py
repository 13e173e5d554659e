"""ICMP and masquerading: queries are told apart by their identifiers, and errors find whom they are for."""

from __future__ import annotations

import pytest
from frames import DROP, ICMP, PASS, REDIRECT, Ether, Outcome, Packet, Raw, answer_to, frame, tcp, udp
from packetbed import Bed
from places import V4, V6, Places
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest

from pydatapath.kernel.layout import Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


def ping(where: Places, source: str, destination: str, identifier: int = 77, *, answer: bool = False) -> Packet:
    """A query of an identifier, or its answer."""
    if where is V6:
        layer = (ICMPv6EchoReply if answer else ICMPv6EchoRequest)(id=identifier, seq=5, data=b"abcdefgh")
    else:
        layer = ICMP(type=0 if answer else 8, id=identifier, seq=5) / Raw(b"abcdefgh")
    return frame(source, destination) / layer


@FAMILIES
def test_N44_N45_pings_are_told_apart_by_their_identifiers(masquerading: Bed, where: Places):
    """Two pods ping one host with one identifier: both get their own answers."""
    one = masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR))
    other = masquerading.run(Hook.FROM_POD, ping(where, where.BACKEND, where.FAR), device="pod3")
    assert one.verdict == other.verdict == REDIRECT
    for pod, there in ((where.CLIENT, one), (where.BACKEND, other)):
        source, destination, identifier = there.ip.src, there.ip.dst, there.ip.payload.id
        assert (source, destination) == (where.UPLINK, where.FAR)
        assert sum_is_right(there)
        answer = masquerading.run(Hook.FROM_UPLINK, ping(where, where.FAR, where.UPLINK, identifier, answer=True))
        assert answer.verdict == REDIRECT
        assert (answer.ip.src, answer.ip.dst, answer.ip.payload.id) == (where.FAR, pod, 77)
        assert sum_is_right(answer)
    assert one.ip.payload.id == 77
    assert other.ip.payload.id != 77


def sum_is_right(outcome: Outcome) -> bool:
    """Whether the checksum of an ICMP packet is what scapy makes it."""
    again = Ether(outcome.packet)
    layer = again.payload.payload
    layer.delfieldval("cksum" if "cksum" in layer.fields else "chksum")
    return bytes(again) == outcome.packet


@FAMILIES
def test_N44_an_identifier_may_be_0(masquerading: Bed, where: Places):
    """Outside it is another, for both pods: of 0 nobody could tell a query from its answer. Both are answered."""
    seen = set()
    for pod, device in ((where.CLIENT, "pod2"), (where.BACKEND, "pod3")):
        for _ in range(2):
            there = masquerading.run(Hook.FROM_POD, ping(where, pod, where.FAR, 0), device=device)
            assert (there.verdict, there.ip.src) == (REDIRECT, where.UPLINK)
            assert sum_is_right(there)
            outside = there.ip.payload.id
            answer = masquerading.run(Hook.FROM_UPLINK, ping(where, where.FAR, where.UPLINK, outside, answer=True))
            assert (answer.verdict, answer.ip.dst, answer.ip.payload.id) == (REDIRECT, pod, 0)
            assert sum_is_right(answer)
            seen.add(outside)
    assert len(seen) == 2
    assert 0 not in seen
    own = ping(where, where.UPLINK, where.FAR, 0)
    assert masquerading.run(Hook.TO_UPLINK, own).packet == bytes(own)


@FAMILIES
@pytest.mark.parametrize("identifier", [0, 77])
def test_N44_N46_a_query_from_outside_is_no_answer(masquerading: Bed, where: Places, identifier: int):
    """While a pod asks who asks the node by the same identifier."""
    there = masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR, identifier))
    for name in {identifier, there.ip.payload.id}:
        query = ping(where, where.FAR, where.UPLINK, name)
        outcome = masquerading.run(Hook.FROM_UPLINK, query)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(query))
        reply = ping(where, where.UPLINK, where.FAR, name, answer=True)
        outcome = masquerading.run(Hook.TO_UPLINK, reply)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(reply))
    answer = ping(where, where.FAR, where.UPLINK, there.ip.payload.id, answer=True)
    assert masquerading.run(Hook.FROM_UPLINK, answer).ip.dst == where.CLIENT


@FAMILIES
def test_C13_N44_a_pods_query_is_no_answer(masquerading: Bed, where: Places):
    """To who asks it by its own address, and is answered as it is; of 0 the two would be one flow."""
    masquerading.run(Hook.FROM_UPLINK, ping(where, where.FAR, where.CLIENT, 0))
    answer = ping(where, where.CLIENT, where.FAR, 0, answer=True)
    for _ in range(2):
        outcome = masquerading.run(Hook.FROM_POD, answer)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(answer))
        assert masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR, 0)).verdict == DROP
    assert masquerading.counted() == {"new_flow": 1, "drop_untranslated": 2}
    assert masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR, 1)).ip.src == where.UPLINK


@pytest.mark.parametrize("kind", [10, 13, 15, 17, 14, 18])
def test_N47_other_queries_are_dropped_by_name(masquerading: Bed, kind: int):
    """Router solicitation, timestamp, information and address mask; as the answers to such (RFC 792, RFC 950)."""
    query = frame(V4.CLIENT, V4.FAR) / Raw(bytes([kind, 0]) + (0xFFFF - (kind << 8)).to_bytes(2, "big") + bytes(16))
    query.payload.proto = 1
    inside = masquerading.run(Hook.FROM_POD, query)
    assert (inside.verdict, inside.packet) == (PASS, bytes(query))
    assert masquerading.run(Hook.TO_UPLINK, query).verdict == DROP
    assert masquerading.counted() == {"drop_untranslated": 1}


def test_N47_IPv6s_too(masquerading: Bed):
    """Node information (RFC 4620)."""
    query = frame(V6.CLIENT, V6.FAR) / Raw(bytes([139, 0, 0, 0]) + bytes(16))
    query.payload.nh = 58
    assert masquerading.run(Hook.FROM_POD, query).verdict == PASS
    assert masquerading.run(Hook.TO_UPLINK, query).verdict == DROP
    assert masquerading.counted() == {"drop_untranslated": 1}


@FAMILIES
def test_N46_the_nodes_own_ping_keeps_working(masquerading: Bed, where: Places):
    """Its answer is nobody's flow."""
    own = ping(where, where.UPLINK, where.FAR)
    assert masquerading.run(Hook.TO_UPLINK, own).packet == bytes(own)
    answer = ping(where, where.FAR, where.UPLINK, answer=True)
    outcome = masquerading.run(Hook.FROM_UPLINK, answer)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(answer))


@FAMILIES
def test_N46_a_pod_that_pings_behind_the_node_has_another_identifier(masquerading: Bed, where: Places):
    """Also before the node is answered: what it waits for is not the pod's."""
    own = ping(where, where.UPLINK, where.FAR)
    assert masquerading.run(Hook.TO_UPLINK, own).packet == bytes(own)
    there = masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR))
    assert (there.ip.src, there.ip.payload.id == 77) == (where.UPLINK, False)
    answer = ping(where, where.FAR, where.UPLINK, answer=True)
    for _ in range(2):
        outcome = masquerading.run(Hook.FROM_UPLINK, answer)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(answer))
    back = masquerading.run(Hook.FROM_UPLINK, ping(where, where.FAR, where.UPLINK, there.ip.payload.id, answer=True))
    assert (back.ip.dst, back.ip.payload.id) == (where.CLIENT, 77)


@FAMILIES
def test_N22_N46_the_nodes_ping_finds_an_identifier_whichever_are_taken(masquerading: Bed, where: Places):
    """All that it had before are a pod's meanwhile."""
    taken = [77]
    for _ in range(6):
        masquerading.reset()
        for identifier in taken:
            masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR, identifier))
        there = masquerading.run(Hook.TO_UPLINK, ping(where, where.UPLINK, where.FAR)).ip.payload.id
        assert there not in taken
        answer = ping(where, where.FAR, where.UPLINK, there, answer=True)
        assert masquerading.run(Hook.FROM_UPLINK, answer).ip.payload.id == 77
        taken.append(there)


@FAMILIES
def test_N46_by_the_identifier_0_the_node_and_its_peer_ping_each_other(masquerading: Bed, where: Places):
    """The two would be one flow."""
    for own, hook in ((True, Hook.TO_UPLINK), (False, Hook.FROM_UPLINK)) * 2:
        query = ping(where, *((where.UPLINK, where.FAR) if own else (where.FAR, where.UPLINK)), 0)
        outcome = masquerading.run(hook, query)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(query))


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N49_an_error_finds_the_pod(masquerading: Bed, where: Places, make):
    """From a router on the way, about the packet as it left; the pod sees its own."""
    packet = make(where.CLIENT, 40000, where.FAR, 80)
    there = masquerading.run(Hook.FROM_POD, packet)
    quoted = there.packet[14 : 14 + (48 if where is V6 else 28)]
    layer = ICMPv6DestUnreach(code=4) if where is V6 else ICMP(type=3, code=3)
    outcome = masquerading.run(Hook.FROM_UPLINK, frame(where.NEXT_HOP, where.UPLINK) / layer / Raw(quoted))
    assert (outcome.verdict, outcome.ip.src, outcome.ip.dst) == (REDIRECT, where.NEXT_HOP, where.CLIENT)
    inner = outcome.packet[14 + (48 if where is V6 else 28) :]
    sent = bytes(packet)[14:]
    start = 8 if where is V6 else 12
    end = 40 if where is V6 else 20
    assert inner[start : end + 4] == sent[start : end + 4]
    assert sum_is_right(outcome)


@FAMILIES
@pytest.mark.parametrize("answers", [True, False])
def test_N44_N49_an_error_about_a_query_of_0_is_not_of_the_answers_flow(
    masquerading: Bed, where: Places, answers: bool
):
    """A pod has been asked by 0, and asks the same peer by 0: of what it says of the first nothing is translated."""
    there = masquerading.run(Hook.FROM_POD, ping(where, where.CLIENT, where.FAR, 0))
    about = bytes(ping(where, where.FAR, where.CLIENT, 0, answer=answers))[14 : 14 + (48 if where is V6 else 28)]
    layer = ICMPv6DestUnreach(code=4) if where is V6 else ICMP(type=3, code=3)
    error = frame(where.CLIENT, where.FAR) / layer / Raw(about)
    outcome = masquerading.run(Hook.FROM_POD, error)
    assert outcome.verdict == (REDIRECT if answers else PASS)
    quoted = outcome.packet[-len(about) :]
    assert (quoted == about) == (not answers)
    assert there.ip.payload.id.to_bytes(2) == quoted[-4:-2] or not answers


@FAMILIES
def test_N54_an_error_of_a_pod_leaves_behind_the_nodes_address(masquerading: Bed, where: Places):
    """A closed port of a pod's, told to the server: from whom it has talked to, about what it has sent."""
    there = masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 40000, where.FAR, 80))
    answer = masquerading.run(Hook.FROM_UPLINK, answer_to(there))
    quoted = answer.packet[14 : 14 + (48 if where is V6 else 28)]
    layer = ICMPv6DestUnreach(code=4) if where is V6 else ICMP(type=3, code=3)
    outcome = masquerading.run(Hook.FROM_POD, frame(where.CLIENT, where.FAR) / layer / Raw(quoted))
    assert (outcome.verdict, outcome.ip.src, outcome.ip.dst) == (REDIRECT, where.UPLINK, where.FAR)
    assert sum_is_right(outcome)


@FAMILIES
def test_N5_N44_an_answer_for_a_query_that_has_another_identifier_by_now_is_late(masquerading: Bed, where: Places):
    """Of a pod's query of 0 the LRU has dropped its own half, and the next one leaves by another: one at a time."""
    query = ping(where, where.CLIENT, where.FAR, 0)
    first = masquerading.run(Hook.FROM_POD, query)
    name = "half_open6" if where is V6 else "half_open"
    (lost,) = (key for key, half in masquerading.entries("half_open").items() if half.to[0] == where.UPLINK)
    masquerading.maps[name].delete(lost)
    second = masquerading.run(Hook.FROM_POD, query)
    for there, verdict in ((first, DROP), (second, REDIRECT)):
        answer = ping(where, where.FAR, where.UPLINK, there.ip.payload.id, answer=True)
        assert masquerading.run(Hook.FROM_UPLINK, answer).verdict == verdict
    assert masquerading.counted()["drop_late_answer"] == 1
