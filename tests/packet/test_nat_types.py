"""The types of NAT (RFC 4787 4 and 5), told from outside as STUN does: how ports are mapped, and who is let in."""

from __future__ import annotations

import pytest
from frames import DROP, ICMP, PASS, REDIRECT, Ether, Outcome, Packet, Raw, addresses, frame, tcp, udp
from packetbed import Bed
from places import MAC, V4, V6, Places
from scapy.layers.inet6 import ICMPv6DestUnreach

from pydatapath.kernel.layout import Hook, NatType

pytestmark = pytest.mark.same_everywhere

MAKE = pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


# What becomes of who was not asked, at a pod's port outside; in the symmetric type that is the node's for others
LET_IN = {NatType.FULL_CONE: REDIRECT, NatType.ENDPOINT_INDEPENDENT: DROP, NatType.SYMMETRIC: PASS}


def outside_ports(bed: Bed, where: Places) -> list[int]:
    """The ports by which one socket, whose own port is another pod's outside, talks to three places."""
    for target, port in ((where.FAR, 53), (where.FAR, 54), (where.FAR[:-1] + "8", 53)):
        bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, target, port))
    return [
        addresses(bed.run(Hook.FROM_POD, udp(where.BACKEND, 5000, target, port), device="pod3"))[1]
        for target, port in ((where.FAR, 53), (where.FAR, 54), (where.FAR[:-1] + "8", 53))
    ]


@FAMILIES
def test_N1_mapping(typed: tuple[NatType, Bed], where: Places):
    """Symmetric: a port for each place that is talked to. Else one for all."""
    type_, bed = typed
    ports = outside_ports(bed, where)
    assert 5000 not in ports
    assert len(set(ports)) == (3 if type_ is NatType.SYMMETRIC else 1)


@FAMILIES
def test_N10_N11_filtering(typed: tuple[NatType, Bed], where: Places):
    """Full cone: who has never been talked to reaches the pod, and is answered. Else not: dropped, or the stack's."""
    type_, bed = typed
    strangers = where.FAR[:-1] + "7"
    there = bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    assert addresses(there)[1] == 5000
    stranger = bed.run(Hook.FROM_UPLINK, udp(strangers, 9, where.UPLINK, 5000))
    assert stranger.verdict == LET_IN[type_]
    if type_ is not NatType.FULL_CONE:
        return
    assert addresses(stranger) == (strangers, 9, where.CLIENT, 5000)
    answer = bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, strangers, 9))
    assert addresses(answer) == (where.UPLINK, 5000, strangers, 9)
    again = bed.run(Hook.FROM_UPLINK, udp(strangers, 9, where.UPLINK, 5000))
    assert addresses(again) == (strangers, 9, where.CLIENT, 5000)


@FAMILIES
def test_N12_what_comes_in_does_not_keep_a_mapping(typed: tuple[NatType, Bed], where: Places):
    """A stranger that goes on sending does not keep the door open for himself, where there is one for him."""
    type_, bed = typed
    bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    stranger = bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 9, where.UPLINK, 5000))
    assert stranger.verdict == LET_IN[type_]
    for _ in range(4):
        bed.age_mappings(100)
        bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 9, where.UPLINK, 5000))
    assert bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 10, where.UPLINK, 5000)).verdict == PASS


def by_pod(bed: Bed, packet: Packet) -> Outcome:
    """From CLIENT or BACKEND, by its own interface."""
    return bed.run(Hook.FROM_POD, packet, device="pod2" if packet.payload.src in {V4.CLIENT, V6.CLIENT} else "pod3")


@FAMILIES
def test_N31_a_pod_calls_another_by_its_end_outside(typed: tuple[NatType, Bed], where: Places):
    """RFC 4787 REQ-9a: seen as its own end outside. Let in as who calls from outside is: in a full cone at once, else
    once the other has sent to that end; in the symmetric type nobody has an end for all, and it is the node's packet.
    """
    type_, bed = typed
    for pod, port in ((where.CLIENT, 5000), (where.BACKEND, 6000)):
        there = by_pod(bed, udp(pod, port, where.FAR, 53))
        assert addresses(there)[:2] == (where.UPLINK, port)
    call, back = udp(where.CLIENT, 5000, where.UPLINK, 6000), udp(where.BACKEND, 6000, where.UPLINK, 5000)
    if type_ is NatType.SYMMETRIC:
        first = by_pod(bed, call)
        assert (first.verdict, first.packet) == (PASS, bytes(call))
        return
    first = by_pod(bed, call)
    if type_ is NatType.FULL_CONE:
        assert arrives(first, where.UPLINK, 5000, where.BACKEND, 6000)
    else:
        assert first.verdict == by_pod(bed, call).verdict == DROP
        assert bed.counted()["drop_unasked"] == 2
    for _ in range(2):
        assert arrives(by_pod(bed, back), where.UPLINK, 6000, where.CLIENT, 5000)
        assert arrives(by_pod(bed, call), where.UPLINK, 5000, where.BACKEND, 6000)
    assert not by_pod(bed, call).walked


def arrives(outcome: Outcome, *ends: object) -> bool:
    """Whether a pod gets it, with these ends, its checksum right."""
    packet = Ether(outcome.packet)
    del packet.payload.payload.chksum
    to_pod = (outcome.verdict, packet.dst) == (REDIRECT, MAC[str(ends[2])])
    return to_pod and addresses(outcome) == ends and bytes(packet) == outcome.packet


@FAMILIES
def test_N31_who_has_no_end_outside_gets_one_by_the_call(typed: tuple[NatType, Bed], where: Places):
    """Let in or not, and keeps it for whoever it calls next: not its own port where that is taken (N1, N3)."""
    type_, bed = typed
    by_pod(bed, udp(where.CLIENT, 5000, where.FAR, 53))
    call = by_pod(bed, udp(where.BACKEND, 5000, where.UPLINK, 5000))
    if type_ is NatType.SYMMETRIC:
        assert (call.verdict, bed.mappings()) == (PASS, {})
        return
    port = addresses(by_pod(bed, udp(where.BACKEND, 5000, where.FAR, 53)))[1]
    assert port != 5000
    assert port % 2 == 0
    if type_ is NatType.ENDPOINT_INDEPENDENT:
        assert (call.verdict, bed.counted()["drop_unasked"]) == (DROP, 1)
        call = by_pod(bed, udp(where.CLIENT, 5000, where.UPLINK, port))
        assert arrives(call, where.UPLINK, 5000, where.BACKEND, 5000)
        return
    assert addresses(call) == (where.UPLINK, port, where.CLIENT, 5000)
    itself = by_pod(bed, udp(where.CLIENT, 5000, where.UPLINK, 5000))
    assert arrives(itself, where.UPLINK, 5000, where.CLIENT, 5000)


@FAMILIES
def test_N31_what_is_nobodys_end_outside_is_the_nodes(typed: tuple[NatType, Bed], where: Places):
    """Another port of UDP, the same one of TCP; and that of a service, which comes first."""
    _, bed = typed
    by_pod(bed, udp(where.CLIENT, 5000, where.FAR, 53))
    by_pod(bed, tcp(where.CLIENT, 5000, where.FAR, 53))
    for packet in (udp(where.BACKEND, 6000, where.UPLINK, 5001), tcp(where.BACKEND, 6000, where.UPLINK, 5000)):
        outcome = by_pod(bed, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    bed.serve({where.called("5000/UDP", where.UPLINK): [where.SECOND + ":7" if where is V4 else f"[{where.SECOND}]:7"]})
    assert addresses(by_pod(bed, udp(where.BACKEND, 6000, where.UPLINK, 5000)))[2:] == (where.SECOND, 7)


@FAMILIES
def test_N32_an_error_of_a_call_by_an_end_outside_finds_the_caller(typed: tuple[NatType, Bed], where: Places):
    """The called pod has closed its port: it says so to whom it has seen, and the caller is told of its own packet."""
    type_, bed = typed
    by_pod(bed, udp(where.BACKEND, 6000, where.FAR, 53))
    call = udp(where.CLIENT, 5000, where.UPLINK, 6000)
    if type_ is NatType.SYMMETRIC:
        assert by_pod(bed, call).verdict == PASS  # nobody is called by an end outside: it is the node's
        return
    if type_ is not NatType.FULL_CONE:
        by_pod(bed, call)
        by_pod(bed, udp(where.BACKEND, 6000, where.UPLINK, 5000))
    heard = by_pod(bed, call)
    assert arrives(heard, where.UPLINK, 5000, where.BACKEND, 6000)
    header = 40 if where is V6 else 20
    layer = ICMPv6DestUnreach(code=4) if where is V6 else ICMP(type=3, code=3)
    error = frame(where.BACKEND, where.UPLINK) / layer / Raw(heard.packet[14 : 14 + header + 8])
    told = by_pod(bed, error)
    assert (told.verdict, told.ip.src, told.ip.dst) == (REDIRECT, where.UPLINK, where.CLIENT)
    start, sent = 14 + header + 8, bytes(call)
    assert told.packet[start + header - 8 :][: 8 + 4] == sent[14 + header - 8 :][: 8 + 4]
    assert told.packet[start + header : start + header + 4] == sent[14 + header :][:4]
    packet = Ether(told.packet)
    packet.payload.payload.delfieldval("cksum" if where is V6 else "chksum")
    assert bytes(packet) == told.packet


@FAMILIES
def test_N27_who_calls_a_port_outside_from_port_0_is_not_let_in(typed: tuple[NatType, Bed], where: Places):
    """Whom nobody could answer."""
    type_, bed = typed
    bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    stranger = bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 0, where.UPLINK, 5000))
    assert stranger.verdict == (PASS if type_ is NatType.SYMMETRIC else DROP)
    assert bed.counted().get("drop_unasked", 0) == (type_ is not NatType.SYMMETRIC)


@FAMILIES
@pytest.mark.parametrize("known", [True, False], ids=["a known one", "a new one"])
def test_N108_a_stranger_to_a_pod_that_is_gone_is_dropped_by_name(
    typed: tuple[NatType, Bed], where: Places, known: bool
):
    """In a full cone, which would let it in: its flow is none's while the pod's interface is gone."""
    type_, bed = typed
    bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    stranger = udp(where.OUTSIDE, 9, where.UPLINK, 5000)
    if known:
        assert bed.run(Hook.FROM_UPLINK, stranger).verdict == LET_IN[type_]
    before = bed.counted()
    bed.kill(where.CLIENT)
    assert bed.run(Hook.FROM_UPLINK, stranger).verdict == (PASS if type_ is NatType.SYMMETRIC else DROP)
    names = {NatType.FULL_CONE: ["drop_pod_gone"], NatType.ENDPOINT_INDEPENDENT: ["drop_unasked"]}
    assert [name for name, count in bed.counted().items() if count != before.get(name)] == names.get(type_, [])
    bed.revive(where.CLIENT)
    assert bed.run(Hook.FROM_UPLINK, stranger).verdict == LET_IN[type_]


@FAMILIES
def test_N108_an_answer_to_a_pod_that_is_gone_is_dropped_by_name(masquerading: Bed, where: Places):
    """What it had outside stays its: no other pod gets its port at once (N25)."""
    for make in (tcp, udp):
        masquerading.run(Hook.FROM_POD, make(where.CLIENT, 5000, where.FAR, 53))
        there = masquerading.run(Hook.FROM_UPLINK, make(where.FAR, 53, where.UPLINK, 5000, **SYN_ACK[make]))
        assert there.verdict == REDIRECT
    masquerading.kill(where.CLIENT)
    masquerading.age(2)
    for make in (tcp, udp):
        late = masquerading.run(Hook.FROM_UPLINK, make(where.FAR, 53, where.UPLINK, 5000, **ACK[make]))
        assert late.verdict == DROP
        other = masquerading.run(Hook.FROM_POD, make(where.BACKEND, 5000, where.FAR, 53), device="pod3")
        assert addresses(other)[1] != 5000
    assert masquerading.counted()["drop_pod_gone"] == 2


@FAMILIES
@MAKE
def test_N108_a_pod_that_nobody_has_heard_of_is_not_gone(masquerading: Bed, where: Places, make):
    """It has come after `load`: the stack brings what it sends, and the answer goes where the route leads."""
    pod = where.CLIENT[:-1] + "9"
    there = masquerading.run(Hook.TO_UPLINK, make(pod, 5000, where.FAR, 53))
    assert (there.verdict, there.ip.src) == (PASS, where.UPLINK)
    for flags in (SYN_ACK, ACK):
        back = masquerading.run(Hook.FROM_UPLINK, make(where.FAR, 53, where.UPLINK, 5000, **flags[make]))
        assert (back.verdict, back.ip.dst) == (REDIRECT, pod)
        masquerading.age(2)


SYN_ACK: dict[object, dict[str, str]] = {tcp: {"flags": "SA"}, udp: {}}
ACK: dict[object, dict[str, str]] = {tcp: {"flags": "A"}, udp: {}}
