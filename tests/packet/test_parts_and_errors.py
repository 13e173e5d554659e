"""Fragments and ICMP errors of flows in every state, in both families: what the reference model was first to see."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import DROP, PASS, REDIRECT, IPv6, Outcome, answer_to, leaves, tcp, udp
from packetbed import Bed
from places import MAC, V4, V6, Places, at
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from steps import piece_of
from wire import ELSEWHERE_MAC, frame, tuple_in

from pydatapath.kernel.layout import Hook
from pydatapath.reference import Error, Fragment, Packet

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
FIRST, LATER = Fragment(7), Fragment(7, 976)


def run(bed: Bed, packet: Packet, hook: Hook = Hook.FROM_POD, device: str = "pod2") -> Outcome:
    """A packet of the model's, at a hook."""
    from_pod = hook is Hook.FROM_POD
    raw = frame(packet, MAC.get(packet.source, ELSEWHERE_MAC) if from_pod else ELSEWHERE_MAC)
    return bed.run(hook, raw, device=device if from_pod else "")


def error(sender: str, about: Packet) -> Packet:
    """A packet is too big for a link, which its sender is told."""
    return Packet(sender, 0, about.source, 0, "ICMP", error=Error("too big", about))


def left(packet: Packet, outcome: Outcome) -> Packet:
    """A packet as it has left."""
    return packet.readdressed(tuple_in(outcome.packet))


# Parts of a datagram


@FAMILIES
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_N63_S105_also_of_a_flow_that_was_answered(bed: Bed, where: Places, protocol: str):
    """Its first fragments are packets of the flow as others, both ways, and its later ones follow them."""
    bed.serve({where.called(f"80/{protocol}"): [at(where.BACKEND, 80)]})  # one port: SCTP's checksum covers it
    call = Packet(where.CLIENT, 40000, where.VIP, 80, "TCP", "S")
    if protocol != "TCP":
        call = replace(call, protocol="UDP" if protocol == "UDP" else "SCTP", flags="")
    there = left(call, run(bed, call))
    answer = there.readdressed(there.tuple.reverse)
    answer = replace(answer, flags="SA" if protocol == "TCP" else "")
    run(bed, answer, device="pod3")
    more = replace(call, flags="PA" if protocol == "TCP" else "")
    run(bed, more)
    assert len(bed.entries()) == 2
    for packet, to, device in ((answer, call.tuple.reverse, "pod3"), (more, there.tuple, "pod2")):
        outcome = run(bed, piece_of(packet, FIRST), device=device)
        want = piece_of(packet, FIRST).readdressed(to)
        assert outcome.verdict == REDIRECT
        assert outcome.packet[12:] == frame(want, "02:00:00:00:00:00")[12:]
        outcome = run(bed, piece_of(packet, LATER), device=device)
        want = replace(piece_of(packet, LATER), source=to.source, destination=to.destination)
        assert outcome.packet[12:] == frame(want, "02:00:00:00:00:00")[12:]
    assert bed.counted() == {"new_flow": 1}


@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N75_extension_headers_of_a_flow_that_was_answered(bed: Bed, make: type):
    """Of IPv6, in front of the answer's ports: it is of the flow as the ones before."""
    called, port = (80, 8080) if make is tcp else (53, 5353)
    there = bed.establish(make(V6.CLIENT, 40000, V6.VIP, called))
    answer = answer_to(there, "A")
    for header in (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()):
        full = answer.copy()
        inner = full[IPv6].payload.copy()
        full[IPv6].remove_payload()
        del full[IPv6].nh
        full = full / header / inner
        outcome = bed.run(Hook.FROM_POD, full, device="pod3")
        assert (outcome.verdict, outcome.ip.src) == (REDIRECT, V6.VIP)
        assert outcome.packet[14:] == bytes(leaves(full, src=V6.VIP, sport=called))[14:]
    assert bed.counted() == {"new_flow": 1}
    assert port in {entry.to[3] for entry in bed.entries().values()}


@FAMILIES
@pytest.mark.parametrize("protocol", ["UDP", "ICMP"])
def test_N63_N70_who_is_called_directly_answers_in_fragments(masquerading: Bed, where: Places, protocol: str):
    """A router leads a caller outside to a pod. Its answer is not hidden, and no part of it is dropped for that."""
    asked = Packet(where.FAR, 5000, where.CLIENT, 53, "UDP")
    if protocol == "ICMP":
        asked = replace(asked, protocol="ICMP", destination_port=0)
    run(masquerading, asked, Hook.FROM_UPLINK)
    answer = asked.readdressed(asked.tuple.reverse)
    for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
        for part in (piece_of(answer, FIRST), piece_of(answer, LATER)):
            outcome = run(masquerading, part, hook)
            assert (outcome.verdict, tuple_in(outcome.packet)) == (PASS, tuple_in(frame(part, ELSEWHERE_MAC)))
    assert masquerading.counted() == {"new_flow": 1}


@FAMILIES
def test_N108_a_part_that_is_dropped_has_one_reason(masquerading: Bed, where: Places):
    """It is not counted as left to the stack, too."""
    stray = piece_of(Packet(where.CLIENT, 5000, where.FAR, 53, "UDP"), LATER)
    assert run(masquerading, stray, Hook.TO_UPLINK).verdict == DROP
    assert masquerading.counted() == {"drop_untranslated": 1}


# Errors


@FAMILIES
def test_N90_a_routers_error_for_the_node_comes_in_where_the_router_is(bed: Bed, where: Places):
    """By the bridge, where the service's answers come in, a reverse path filter would drop it."""
    call = Packet(where.NODE, 40000, where.VIP, 81, "TCP", "S")
    there = run(bed, call, Hook.TO_BRIDGE)
    outcome = run(bed, error(where.NEXT_HOP, left(call, there)), Hook.FROM_UPLINK)
    assert outcome.packet[12:] == frame(error(where.NEXT_HOP, call), ELSEWHERE_MAC)[12:]
    assert outcome.verdict == PASS
    outcome = run(bed, error(where.REMOTE, left(call, there)), Hook.FROM_UPLINK)
    assert outcome.packet[12:] == frame(error(where.VIP, call), ELSEWHERE_MAC)[12:]
    assert outcome.verdict == REDIRECT


@FAMILIES
def test_C13_N84_no_pods_error_shows_it_outside(masquerading: Bed, where: Places):
    """Nor that of a pod which is not the flow's, such as a router for others: RFC 5508 REQ-5."""
    call = Packet(where.CLIENT, 5000, where.FAR, 53, "UDP")
    there = left(call, run(masquerading, call))
    answer = there.readdressed(there.tuple.reverse)
    about = left(answer, run(masquerading, answer, Hook.FROM_UPLINK))
    for sender, device in ((where.CLIENT, "pod2"), (where.SECOND, "pod4")):
        outcome = run(masquerading, error(sender, about), device=device)
        want = replace(error(where.UPLINK, answer), ttl=63)
        assert outcome.packet[12:] == frame(want, ELSEWHERE_MAC)[12:]


@FAMILIES
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "half-open"])
def test_N42_N57_an_error_about_a_flow_that_is_over_is_the_stacks(bed: Bed, where: Places, answered: bool):
    """Whoever has its tuple by now has not sent what is quoted."""
    call = Packet(where.CLIENT, 40000, where.VIP, 53, "UDP")
    there = left(call, run(bed, call))
    if answered:
        run(bed, there.readdressed(there.tuple.reverse), device="pod3")
    told = error(where.BACKEND, there)
    bed.age(299 if answered else 119)
    assert run(bed, told, device="pod3").verdict == REDIRECT
    bed.age(2)
    outcome = run(bed, told, device="pod3")
    assert (outcome.verdict, outcome.packet[14:]) == (PASS, frame(told, ELSEWHERE_MAC)[14:])


@FAMILIES
def test_N53_N76_a_quoted_sum_that_becomes_0_is_the_other_0(bed: Bed, where: Places):
    """RFC 768: 0 says that there is none. Both are one number to the error's own sum, which stays right."""
    call = Packet(where.CLIENT, 40000, where.VIP, 53, "UDP")
    raw = frame(error(where.BACKEND, left(call, run(bed, call))), MAC[where.BACKEND])
    covered = slice(34 if where is V4 else 22, None)  # ICMPv6's sum is of the addresses, too

    def becomes(before: int) -> int:
        packet = raw[:-2] + before.to_bytes(2, "big")  # the last of the eight bytes
        outcome = bed.run(Hook.FROM_POD, packet, device="pod3")
        assert outcome.verdict == REDIRECT
        own = [int.from_bytes(one[covered], "big") % 0xFFFF for one in (packet, outcome.packet)]
        assert own[0] == own[1]
        return int.from_bytes(outcome.packet[-2:], "big")

    assert becomes((1 - becomes(1)) % 0xFFFF) == 0xFFFF
