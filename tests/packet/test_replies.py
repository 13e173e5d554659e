"""Answers: what a backend sends comes to the client from the address that the client called.

Also the ways that are not pod to pod: a pod to itself, the node to a service, a backend on another node.
"""

from __future__ import annotations

import pytest
from frames import PASS, REDIRECT, Outcome, Packet, addresses, answer_to, key_of, leaves, met_at, reverse, tcp, udp
from packetbed import Bed, ids
from places import BACKEND, CLIENT, MAC, NODE, OUTSIDE, REMOTE, VIP

from pydatapath.kernel.layout import FlowFlag, FlowState, Hook

SYN = tcp(CLIENT, 40000, VIP, 80)
QUERY = udp(CLIENT, 40000, VIP, 53)
BOTH = pytest.mark.parametrize("packet", [SYN, QUERY], ids=["TCP", "UDP"])


def answered(bed: Bed, packet: Packet, hook: Hook, back_hook: Hook, **run: str) -> tuple[Outcome, Packet, Outcome]:
    """A packet as it left, its answer, and that as it left."""
    there = bed.run(hook, packet)
    answer = answer_to(there, "SA")
    return there, answer, bed.run(back_hook, answer, **run)


@BOTH
def test_the_answer_comes_from_the_service(bed: Bed, packet: Packet):
    """Address, port and MAC are turned back; nothing else changes, the TTL neither."""
    _, answer, back = answered(bed, packet, Hook.FROM_POD, Hook.FROM_POD, device="pod3")
    want = leaves(answer, src=VIP, sport=packet.dport, mac=MAC[CLIENT])
    assert back.packet == bytes(want)
    assert back.verdict == REDIRECT
    assert addresses(back) == reverse(addresses(packet))


@BOTH
def test_the_answer_of_another_nodes_pod(bed: Bed, packet: Packet):
    """By the uplink, so one hop off its TTL (N72)."""
    bed.serve({f"{VIP}:{packet.dport}/{packet.lastlayer().underlayer.name}": [f"{REMOTE}:7"]})
    _, answer, back = answered(bed, packet, Hook.FROM_POD, Hook.FROM_UPLINK)
    want = leaves(answer, src=VIP, sport=packet.dport, mac=MAC[CLIENT], ttl=63)
    assert (back.packet, back.verdict) == (bytes(want), REDIRECT)


@BOTH
def test_the_answer_to_a_client_outside(bed: Bed, packet: Packet):
    """In by the uplink, the answer out by it: where no route leads there, the stack takes it, translated."""
    call = leaves(packet, src=OUTSIDE)
    _, answer, back = answered(bed, call, Hook.FROM_UPLINK, Hook.FROM_POD, device="pod3")
    assert (back.packet, back.verdict) == (bytes(leaves(answer, src=VIP, sport=packet.dport)), PASS)


@BOTH
def test_the_answer_promotes_the_flow(bed: Bed, packet: Packet):
    """Both halves move from the half-open table to the main one, with their counts, and are established: of TCP once
    its client has answered that, too.
    """
    there, answer, _ = answered(bed, packet, Hook.FROM_POD, Hook.FROM_POD, device="pod3")
    bed.confirm(packet)
    assert bed.entries("half_open") == {}
    forward, back = bed.entry(packet), bed.entry(answer)
    assert set(bed.entries()) == {key_of(packet), key_of(answer)}
    assert forward is not None
    assert back is not None
    assert forward.state == back.state == FlowState.ESTABLISHED
    flags = FlowFlag.PAIRED | (FlowFlag.OPENED if packet is SYN else 0)
    assert (forward.flags, back.flags) == (flags, flags | FlowFlag.REPLY)
    assert forward.to == addresses(there)
    assert back.to == reverse(addresses(packet))
    own = 1 if packet is QUERY else 2
    assert (forward.packets, forward.bytes) == (own, own * (len(packet) - 14))
    assert (back.packets, back.bytes) == (1, len(answer) - 14)
    assert bed.counted() == {"new_flow": 1}


@BOTH
def test_a_known_flow_never_walks(bed: Bed, packet: Packet):
    """After the answer the hook's own small program does all, in both directions, and counts packets and bytes."""
    there = bed.establish(packet)
    opened = bed.entry(packet)
    assert opened is not None
    more = tcp(CLIENT, 40000, VIP, 80, "PA", payload=b"GET /") if packet is SYN else packet
    answer = answer_to(there, "PA")
    for _ in range(3):
        went = bed.run(Hook.FROM_POD, more)
        came = bed.run(Hook.FROM_POD, answer, device="pod3")
        assert not went.walked
        assert not came.walked
        assert went.packet == bytes(leaves(more, dst=BACKEND, dport=went.ip.dport, mac=MAC[BACKEND]))
        assert came.packet == bytes(leaves(answer, src=VIP, sport=packet.dport, mac=MAC[CLIENT]))
    forward, back = bed.entry(more), bed.entry(answer)
    assert forward is not None
    assert back is not None
    assert (forward.packets, forward.bytes) == (opened.packets + 3, opened.bytes + 3 * (len(more) - 14))
    assert (back.packets, back.bytes) == (4, len(answer_to(there)) - 14 + 3 * (len(answer) - 14))


@pytest.mark.parametrize("flags", ["S", "SA"])
def test_what_opens_does_walk(bed: Bed, flags: str):
    """The small program leaves what may begin a connection anew to the other."""
    bed.establish(SYN)
    assert bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 80, flags)).walked


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_what_closes_does_not_walk(bed: Bed, flags: str):
    """Closing is noted on the hot path: there are two such packets in every short connection."""
    bed.establish(SYN)
    assert not bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 80, flags)).walked


@pytest.mark.parametrize("hook", list(Hook), ids=ids)
def test_a_known_packet_is_translated_at_every_hook(bed: Bed, hook: Hook):
    """A flow belongs to the node, not to an interface: wherever its packets turn up they are turned round."""
    query = met_at(hook, QUERY)
    bed.answer(bed.run(Hook.FROM_POD, query), device="pod3")
    ttl = 63 if hook is Hook.FROM_UPLINK else 64
    want = leaves(query, dst=BACKEND, dport=5353, mac=MAC[BACKEND], ttl=ttl)
    outcome = bed.run(hook, query)
    assert (outcome.packet, outcome.verdict) == (bytes(want), REDIRECT)


# A pod to itself through its service


@BOTH
def test_S29_N29_a_pod_reaches_itself(bed: Bed, packet: Packet):
    """It sees the node's address, so that its answer comes back to be turned round (C1)."""
    protocol = packet.lastlayer().underlayer.name
    bed.serve({f"{VIP}:{packet.dport}/{protocol}": [f"{CLIENT}:8080"]})
    there, answer, back = answered(bed, packet, Hook.FROM_POD, Hook.FROM_POD, device="pod2")
    assert there.packet == bytes(leaves(packet, src=NODE, dst=CLIENT, dport=8080, mac=MAC[CLIENT]))
    assert back.packet == bytes(leaves(answer, src=VIP, sport=packet.dport, dst=CLIENT, mac=MAC[CLIENT]))
    assert there.verdict == back.verdict == REDIRECT
    bed.confirm(packet)
    assert len(bed.entries()) == 2


def test_S29_only_what_goes_to_itself_is_masqueraded(bed: Bed):
    """With another backend chosen the same pod keeps its own address."""
    bed.serve({f"{VIP}:80/TCP": [f"{CLIENT}:8080", f"{BACKEND}:8080"]})
    seen = {addresses(bed.run(Hook.FROM_POD, tcp(CLIENT, port, VIP, 80)))[::2] for port in range(20000, 20060)}
    assert seen == {(NODE, CLIENT), (CLIENT, BACKEND)}


def test_a_pod_to_itself_beside_the_nodes_own_connection(bed: Bed):
    """The node and the pod may use one source port: both see their own answers (N20)."""
    bed.serve({f"{VIP}:80/TCP": [f"{CLIENT}:8080"]})
    own = bed.run(Hook.TO_BRIDGE, tcp(NODE, 40000, VIP, 80))
    pods = bed.run(Hook.FROM_POD, SYN)
    assert addresses(own)[0] == addresses(pods)[0] == NODE
    assert addresses(own) != addresses(pods)
    assert addresses(bed.answer(own, device="pod2")) == (VIP, 80, NODE, 40000)
    assert addresses(bed.answer(pods, device="pod2")) == (VIP, 80, CLIENT, 40000)


# The node itself


@pytest.mark.parametrize("packet", [tcp(NODE, 40000, VIP, 80), udp(NODE, 40000, VIP, 53)], ids=["TCP", "UDP"])
def test_N33_the_node_reaches_a_service(bed: Bed, packet: Packet):
    """Its packets go out by the bridge and are translated there; the answer goes up the stack, to the bridge's MAC."""
    there, answer, back = answered(bed, packet, Hook.TO_BRIDGE, Hook.FROM_POD, device="pod3")
    port = addresses(there)[3]
    assert there.packet == bytes(leaves(packet, dst=BACKEND, dport=port, mac=MAC[BACKEND]))
    assert there.verdict == REDIRECT
    assert back.packet == bytes(leaves(answer, src=VIP, sport=packet.dport, mac=MAC[NODE]))
    assert back.verdict == PASS


@pytest.mark.parametrize("port", [81, 54], ids=["TCP", "UDP"])
def test_N33_the_node_reaches_another_nodes_pod(bed: Bed, port: int):
    """The answer arrives by the uplink and is put in at the bridge, where the reverse path filter expects it."""
    packet = tcp(NODE, 40000, VIP, port) if port == 81 else udp(NODE, 40000, VIP, port)
    there, answer, back = answered(bed, packet, Hook.TO_BRIDGE, Hook.FROM_UPLINK)
    assert there.packet == bytes(leaves(packet, dst=REMOTE, dport=addresses(there)[3]))
    assert there.verdict == REDIRECT
    assert back.packet == bytes(leaves(answer, src=VIP, sport=port, mac=MAC[NODE]))
    assert back.verdict == REDIRECT


# Connections that no service takes part in


@BOTH
def test_a_direct_connection_to_a_backend_is_left_alone(bed: Bed, packet: Packet):
    """It is entered, so that its tuple is taken; it passes to the stack as it came, both ways, and is counted."""
    port = 8080 if packet is SYN else 5353
    direct = leaves(packet, dst=BACKEND, dport=port, mac=MAC[BACKEND])
    answer = leaves(direct, src=BACKEND, dst=CLIENT, sport=port, dport=40000)
    more = tcp(*addresses(direct), "PA", payload=b"more") if packet is SYN else direct
    for sent, device in ((direct, "pod2"), (answer, "pod3"), (more, "pod2"), (answer, "pod3")):
        outcome = bed.run(Hook.FROM_POD, sent, device=device)
        assert (outcome.packet, outcome.verdict) == (bytes(sent), PASS)
    entries = bed.entries()
    flags = FlowFlag.PLAIN | FlowFlag.PAIRED | (FlowFlag.OPENED if packet is SYN else 0)
    assert {entry.flags for entry in entries.values()} == {flags, flags | FlowFlag.REPLY}
    assert [entry.packets for entry in entries.values()] == [2, 2]
    assert not bed.run(Hook.FROM_POD, udp(CLIENT, 40000, BACKEND, 5353)).walked or packet is SYN


def test_what_is_nobodys_backend_is_not_entered(bed: Bed):
    """Pod to pod beside all services: no flow, no counter, not a byte changed."""
    packet = tcp(CLIENT, 40000, BACKEND, 22)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.packet, outcome.verdict) == (bytes(packet), PASS)
    assert bed.entries("flows") == bed.entries("half_open") == bed.counted() == {}
