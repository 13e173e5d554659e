"""Masquerading, on the model: who is hidden, behind which address and port, and what is let in to him."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import HIDDEN, OUTSIDE, UPLINK, V4, V6, VERSIONS, Places, Talk

from pydatapath.kernel import compile
from pydatapath.reference import (
    TIMEOUTS,
    Address,
    Backend,
    Choice,
    Egress,
    Entry,
    Hook,
    Impossible,
    Machine,
    Masquerade,
    NatType,
    Packet,
    Protocol,
    Service,
    State,
    Verdict,
)
from pydatapath.reference.nat import Inside, inside_end
from pydatapath.reference.world import NEVER_TRANSLATED

HOW = Masquerade((Egress(V4.UPLINK), Egress(V6.UPLINK)))
PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP", "ICMP"])


@pytest.fixture
def talk() -> Talk:
    return Talk(HIDDEN)


def of_type(kind: NatType) -> Talk:
    """Where mappings and filtering are of this type."""
    return Talk(replace(HIDDEN, masquerade=replace(HOW, type=kind)))


def calls(at: Places, protocol: Protocol = "UDP", source: str = "", port: int = 5000, called: int = 53) -> Packet:
    """A pod's first packet to the outside; an echo request has an identifier, and no port that is called."""
    flags = "S" if protocol in {"TCP", "SCTP"} else ""
    return Packet(source or at.CLIENT, port, at.OUTSIDE, 0 if protocol == "ICMP" else called, protocol, flags)


def seen(verdict: Verdict) -> Address:
    """The source that the outside sees."""
    return verdict.packet.tuple.reverse.called


def node_calls(packet: Packet) -> Packet:
    """The same call, of the node itself."""
    return replace(packet, source=V6.UPLINK if ":" in packet.source else V4.UPLINK)


# Who is hidden


@VERSIONS
@PROTOCOLS
def test_N15_N72_a_pod_leaves_behind_the_nodes_address(talk: Talk, at: Places, protocol: Protocol) -> None:
    """By its own port and the shortest way, one hop on; the answer comes to it from whom it has called."""
    call = calls(at, protocol)
    there = talk.send(call)
    assert there == Verdict("forward", replace(call, source=at.UPLINK, ttl=63), "route", opened=True)
    back = talk.answer(there, hook=Hook.FROM_UPLINK)
    assert (back.kind, back.to, back.packet.tuple, back.packet.ttl) == ("forward", at.CLIENT, call.tuple.reverse, 63)


@VERSIONS
def test_N85_within_the_cluster_nobody_is_hidden(talk: Talk, at: Places) -> None:
    """Nor from the node, nor where a packet is of one link, or of many receivers."""
    link, many = ("fe80::9", "ff02::9") if ":" in at.CLIENT else ("169.254.1.9", "224.0.0.9")
    for destination in (at.SECOND, at.REMOTE, at.BRIDGE, at.UPLINK, link, many):
        call = Packet(at.CLIENT, 5000, destination, 9, "UDP")
        assert talk.send(call) == Verdict("pass", call, "stack")


def test_N85_networks_that_are_not_masqueraded(talk: Talk) -> None:
    """There pods show who they are, also where they leave."""
    talk.model.world = replace(HIDDEN, masquerade=replace(HOW, unmasqueraded=("192.0.2.8/29",)))
    for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
        assert talk.send(calls(V4), hook).packet == calls(V4)


@VERSIONS
@PROTOCOLS
def test_N85_nobody_is_hidden_from_the_nodes_that_Node_objects_name(talk: Talk, at: Places, protocol: Protocol) -> None:
    """Nor from their pods; as long as these objects are there."""
    call = calls(at, protocol)
    for node in (Machine(frozenset({at.OUTSIDE})), Machine(pod_networks=(f"{at.OUTSIDE}/{128 if at is V6 else 32}",))):
        talk.model.world = replace(HIDDEN, nodes=(Machine(), node))
        assert talk.send(call) == Verdict("pass", call, "stack")
        assert talk.send(call, Hook.TO_UPLINK) == Verdict("pass", call, "stack")
    talk.model.world = HIDDEN
    assert seen(talk.send(call)).address == at.UPLINK


@VERSIONS
def test_N86_only_pods_are_hidden(talk: Talk, at: Places) -> None:
    """Who has another address is not."""
    call = replace(calls(at), source=at.NOWHERE)
    assert talk.send(call, Hook.TO_UPLINK) == Verdict("pass", call, "stack")


@VERSIONS
@PROTOCOLS
def test_what_has_no_known_way_is_hidden_where_it_leaves(talk: Talk, at: Places, protocol: Protocol) -> None:
    """The stack finds the way, and its hop is counted there."""
    talk.model.world = replace(HIDDEN, routes=())
    call = calls(at, protocol)
    assert talk.send(call) == Verdict("pass", call, "stack")
    assert talk.send(call, Hook.TO_UPLINK) == Verdict("pass", replace(call, source=at.UPLINK), "stack", opened=True)


@VERSIONS
@PROTOCOLS
def test_C13_N84_nothing_leaves_under_a_pods_address(talk: Talk, at: Places, protocol: Protocol) -> None:
    """By an uplink that has no address for it: dropped by name."""
    elsewhere = Masquerade((Egress(V4.UPLINK, "uplink2"), Egress(V6.UPLINK, "uplink2")))
    talk.model.world = replace(HIDDEN, masquerade=elsewhere)
    assert talk.send(calls(at, protocol)).kind == "pass"
    assert talk.send(calls(at, protocol), Hook.TO_UPLINK).reason == "drop_untranslated"


def test_N7_a_pod_network_has_an_address_of_its_own(talk: Talk) -> None:
    """The first that fits counts, of the uplink by which it leaves."""
    egress = Egress("192.0.2.7", network="10.1.0.2/32"), Egress("192.0.2.6", "uplink2"), Egress(UPLINK)
    talk.model.world = replace(HIDDEN, masquerade=replace(HOW, egress=egress))
    assert [seen(talk.send(calls(V4, source=one))).address for one in (V4.CLIENT, V4.SECOND)] == ["192.0.2.7", UPLINK]
    verdict = talk.model.receive(Hook.TO_UPLINK, calls(V4, "TCP"), talk.now, interface="uplink2")
    assert verdict.packet.source == "192.0.2.6"


@VERSIONS
def test_N96_a_stale_packet_exempts_nobody(talk: Talk, at: Places) -> None:
    """It is the addresses that count, whatever came before."""
    stray = replace(calls(at, "TCP"), source=at.OUTSIDE, source_port=53, destination=at.CLIENT, destination_port=5000)
    talk.send(replace(stray, flags="FA"), Hook.FROM_UPLINK)
    assert talk.send(calls(at, "TCP")).packet.source == at.UPLINK


@VERSIONS
def test_a_service_with_a_backend_outside_hides_the_pod_from_it(talk: Talk, at: Places) -> None:
    """Both of the packet's ends change, and both change back."""
    talk.serve(at.web, Backend(at.OUTSIDE, 8080, 9))
    there = talk.send(at.syn)
    assert there.packet.tuple == replace(at.syn.tuple, source=at.UPLINK, destination=at.OUTSIDE, destination_port=8080)
    assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.tuple == at.syn.tuple.reverse


def test_N93_where_a_backend_listens_outside_a_direct_connection_is_hidden_too(talk: Talk) -> None:
    """Beside one of the service with the same ports."""
    talk.serve(V4.web, Backend(OUTSIDE, 53, 9))
    direct, served = calls(V4, "TCP", port=40000), V4.syn
    left = [talk.send(one) for one in (direct, served)]
    assert len({seen(one) for one in left}) == 2
    for there, call in zip(left, (direct, served), strict=True):
        assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


# By which port


@VERSIONS
@PROTOCOLS
def test_N3_N17_N45_two_pods_with_one_port_and_one_server(talk: Talk, at: Places, protocol: Protocol) -> None:
    """The second has another port, odd or even as its own; each has its own answers."""
    ones, twos = (calls(at, protocol, source) for source in (at.CLIENT, at.BACKEND))
    one, two = talk.send(ones), talk.send(twos)
    assert (seen(one).port, seen(two).port % 2) == (5000, 0)
    assert seen(two).port != 5000
    for there, call in ((one, ones), (two, twos)):
        assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


def test_N15_N17_N19_which_port_is_the_kernels_to_choose(talk: Talk) -> None:
    """Within the range, of the parity, neither taken nor reserved; where its own is free, that one alone."""
    with pytest.raises(Impossible, match="N15"):
        talk.send(calls(V4), chosen=Choice(source_port=6000))
    for port in (5000, 6001, 1022, 30080, 8472):
        talk = Talk(HIDDEN)
        talk.send(calls(V4))
        with pytest.raises(Impossible, match="N3"):
            talk.send(calls(V4, source=V4.BACKEND), chosen=Choice(source_port=port))
    talk = Talk(HIDDEN)
    talk.send(calls(V4))
    assert seen(talk.send(calls(V4, source=V4.BACKEND), chosen=Choice(source_port=6000))).port == 6000


@pytest.mark.parametrize("port", [68, 546, 4789, 6081, 8472, 30080, 32767, 51820])
def test_N19_reserved_ports_are_not_kept(talk: Talk, port: int) -> None:
    """Of tunnels and node ports; but the identifier of an echo may be any number but 0."""
    assert seen(talk.send(calls(V4, port=port))).port != port
    assert seen(talk.send(calls(V4, "ICMP", port=port))).port == port


@pytest.mark.parametrize(
    ("own", "others"), [(100, (1, 512, 600, 2000)), (700, (2, 598, 1024, 2000)), (1024, (1022, 700))]
)
def test_N16_a_low_port_stays_low(own: int, others: tuple[int, ...]) -> None:
    """In its class, unless a range was asked for; an identifier has none."""
    for port in others:
        talk = Talk(HIDDEN)
        talk.send(calls(V4, port=own))
        with pytest.raises(Impossible, match="no port"):
            talk.send(calls(V4, source=V4.BACKEND, port=own), chosen=Choice(source_port=port))
    for protocol, how in (("UDP", replace(HOW, ports=range(7000, 7100))), ("ICMP", HOW)):
        talk = Talk(replace(HIDDEN, masquerade=how))
        for pod in (V4.CLIENT, V4.BACKEND):
            there = talk.send(
                calls(V4, protocol, pod, port=own), chosen=Choice(source_port=7002 if pod != V4.CLIENT else None)
            )
        assert seen(there).port == 7002


def test_N18_N19_nor_are_ports_of_the_nodes_own(talk: Talk) -> None:
    """Of its sockets, and of services at its address; another protocol's do not matter."""
    talk.put(Address(UPLINK, 5000, "UDP"), Service.for_all(7, V4.first))
    talk.model.world = replace(talk.model.world, sockets=frozenset({Address(UPLINK, 6000, "UDP")}))
    assert seen(talk.send(calls(V4, port=5000))).port != 5000
    assert seen(talk.send(calls(V4, port=6000))).port != 6000
    assert seen(talk.send(calls(V4, "TCP", port=6000))).port == 6000


def test_N103_what_is_sent_again_leaves_by_the_same_port(talk: Talk) -> None:
    """Though that was found by chance."""
    talk.send(calls(V4, "TCP"))
    call = calls(V4, "TCP", V4.BACKEND)
    first = talk.send(call, chosen=Choice(source_port=7000))
    again = talk.send(call)
    assert (seen(again), again.opened) == (seen(first), False)


def test_N104_what_comes_in_mid_stream_keeps_its_port_or_is_dropped(talk: Talk) -> None:
    """State was lost: its own port, if nobody has that."""
    middle = replace(calls(V4, "TCP"), flags="A")
    assert seen(talk.send(middle)).port == 5000
    assert talk.send(replace(middle, source=V4.BACKEND)).reason == "drop_ports_taken"


@VERSIONS
@PROTOCOLS
def test_N20_N46_the_nodes_own_call_has_another_port(talk: Talk, at: Places, protocol: Protocol) -> None:
    """Where a pod's has its ends; each has its own answers. Else it stays; SCTP and a ping are entered (N18, N46)."""
    free = node_calls(calls(at, protocol, port=7))
    assert talk.send(free, Hook.TO_UPLINK) == Verdict("pass", free, "stack", opened=protocol in {"SCTP", "ICMP"})
    call, own = calls(at, protocol), node_calls(calls(at, protocol))
    pods, nodes = talk.send(call), talk.send(own, Hook.TO_UPLINK)
    assert (seen(pods).port == 5000, seen(nodes).port == 5000, nodes.kind) == (True, False, "pass")
    assert talk.answer(nodes, hook=Hook.FROM_UPLINK).packet.tuple == own.tuple.reverse
    assert talk.answer(pods, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


@VERSIONS
def test_N1_N20_a_mapped_port_is_the_pods_at_every_server(talk: Talk, at: Places) -> None:
    """The node's own datagram to another place leaves by another port, and the pod may call there, too."""
    talk.send(calls(at))
    call = calls(at, called=54)
    own = node_calls(call)
    nodes = talk.send(own, Hook.TO_UPLINK)
    assert (seen(nodes).address, seen(nodes).port == 5000) == (at.UPLINK, False)
    assert talk.answer(nodes, hook=Hook.FROM_UPLINK).packet.tuple == own.tuple.reverse
    pods = talk.send(call)
    assert seen(pods).port == 5000
    assert talk.answer(pods, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse


@VERSIONS
def test_N1_N20_where_its_port_is_the_nodes_already_a_pod_has_another_for_that_server(talk: Talk, at: Places) -> None:
    """For that flow alone: all others go by its mapping."""
    talk.send(calls(at))
    port = seen(talk.send(node_calls(calls(at, called=54)), Hook.TO_UPLINK)).port
    pod = {"source": at.SECOND, "port": port}
    assert seen(talk.send(calls(at, **pod))).port == port
    there = talk.send(calls(at, called=54, **pod))
    assert seen(there).port != port
    assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.tuple.called.port == port
    assert seen(talk.send(calls(at, called=55, **pod))).port == port


@VERSIONS
@pytest.mark.parametrize("side", ["inside", "outside"])
def test_N5_a_lost_half_of_a_mapping_is_made_anew(talk: Talk, at: Places, side: str) -> None:
    """By the next packet of its flow; what the socket begins then goes by the same port."""
    talk.send(calls(at))
    call = calls(at, source=at.SECOND)
    port = seen(talk.send(call)).port
    inside = Inside(inside_end(call), at.UPLINK)
    talk.model.mappings.forget(inside if side == "inside" else Address(at.UPLINK, port, "UDP"))
    talk.send(call)
    assert talk.model.mappings.inside_of(Address(at.UPLINK, port, "UDP"), talk.now) == inside.end
    assert talk.model.mappings.outside_of(inside, talk.now) == Address(at.UPLINK, port, "UDP")
    assert seen(talk.send(calls(at, source=at.SECOND, called=54))).port == port


MANY = [f"10.1.0.{number}" for number in range(20, 26)]  # pods
FEW_PORTS = replace(
    HIDDEN,
    masquerade=replace(HOW, ports=range(7000, 7008)),
    interfaces=HIDDEN.interfaces | {f"veth of {pod}" for pod in MANY},
)


def test_N22_N23_where_no_port_is_free_only_the_new_flow_fails() -> None:
    """By name; those that live, live on. Nobody else may be dropped so."""
    talk = Talk(FEW_PORTS)
    left = [talk.send(calls(V4, source=pod)) for pod in MANY[:5]]
    with pytest.raises(Impossible, match="N22"):
        talk.send(calls(V4, source="10.1.0.99", port=7001), chosen=Choice(gave_up=True))
    talk = Talk(FEW_PORTS)
    left = [talk.send(calls(V4, source=pod)) for pod in MANY]
    assert [one.reason for one in left] == ["", "", "", "", "", "drop_ports_taken"]
    assert left[5].refused
    assert talk.send(calls(V4, source=MANY[5]), chosen=Choice(gave_up=True)).reason == "drop_ports_taken"
    for there, pod in zip(left[:5], MANY, strict=False):
        assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.destination == pod


# Mappings


def test_N1_N8_a_datagram_socket_has_one_port_outside(talk: Talk) -> None:
    """Whoever it talks to; also where its own port was another's. If that port is taken there, it is dropped."""
    talk.send(calls(V4))
    first = seen(talk.send(calls(V4, source=V4.BACKEND), chosen=Choice(source_port=6000)))
    for call in (
        calls(V4, source=V4.BACKEND, called=54),
        replace(calls(V4, source=V4.BACKEND), destination="192.0.2.8"),
    ):
        assert seen(talk.send(call)) == first


def test_N1_by_two_uplinks_a_socket_has_a_port_behind_each() -> None:
    """The address is that of the uplink by which it leaves; each port is kept for itself, and by itself (N35)."""
    both = (Egress(UPLINK), Egress("198.51.100.1", "uplink2"))
    talk = Talk(replace(HIDDEN, masquerade=replace(HOW, egress=both)))

    def sent(pod: str, uplink: str, chosen: int | None = None, called: int = 53) -> Address:
        call, told = calls(V4, source=pod, called=called), Choice(source_port=chosen)
        return seen(talk.model.receive(Hook.TO_UPLINK, call, talk.now, chosen=told, interface=uplink))

    for uplink in ("uplink", "uplink2"):
        sent(V4.CLIENT, uplink)
        talk.model.flows.main.clear()
        talk.model.flows.half_open.clear()
    ends = [sent(V4.BACKEND, "uplink", 6000), sent(V4.BACKEND, "uplink2", 6002, 54)]
    assert ends == [Address(UPLINK, 6000, "UDP"), Address("198.51.100.1", 6002, "UDP")]
    for called in (55, 57):
        talk.now += 299
        assert sent(V4.BACKEND, "uplink2", called=called) == ends[1]
    assert sent(V4.BACKEND, "uplink", called=58).port == 5000  # where nobody has sent anything for ten minutes


def test_a_symmetric_one_has_as_many_as_it_needs() -> None:
    """There two pods may have one port, as those of TCP may, towards two servers."""
    talk = of_type(NatType.SYMMETRIC)
    ports = [seen(talk.send(calls(V4, source=pod, called=called))).port for pod, called in (
        (V4.CLIENT, 53), (V4.BACKEND, 54), (V4.BACKEND, 53))]  # fmt: skip
    assert ports[:2] == [5000, 5000]
    assert ports[2] != 5000
    assert talk.model.mappings.outside == {}


@pytest.mark.parametrize("kind", [NatType.ENDPOINT_INDEPENDENT, NatType.FULL_CONE])
def test_N3_a_mapping_is_one_inside_ends_alone(kind: NatType) -> None:
    """Also towards others than it has talked to."""
    talk = of_type(kind)
    talk.send(calls(V4))
    assert seen(talk.send(calls(V4, source=V4.BACKEND, called=54))).port != 5000


def stranger(there: Verdict, port: int = 54) -> Packet:
    """From whom the pod has not talked to, to the port by which it has left."""
    return Packet(OUTSIDE, port, there.packet.source, there.packet.source_port, "UDP")


def test_N10_N13_who_was_not_asked_is_not_let_in(talk: Talk) -> None:
    """Dropped by name; what comes for the node's own ports is the node's (N14)."""
    there = talk.send(calls(V4))
    assert talk.send(stranger(there), Hook.FROM_UPLINK).reason == "drop_unasked"
    other = replace(stranger(there), destination_port=5353)
    assert talk.send(other, Hook.FROM_UPLINK) == Verdict("pass", other, "stack")


def test_N11_full_cone_lets_everybody_in() -> None:
    """As a flow whose first packet came from outside; the answer leaves by the mapping's port."""
    talk = of_type(NatType.FULL_CONE)
    there = talk.send(calls(V4))
    came = talk.send(stranger(there), Hook.FROM_UPLINK)
    assert (came.kind, came.to, came.opened, came.packet.source_port) == ("forward", V4.CLIENT, True, 54)
    assert talk.answer(came).packet.tuple == stranger(there).tuple.reverse


def lives(talk: Talk, there: Verdict) -> bool:
    """Whether the mapping by which a packet left is alive."""
    return talk.model.mappings.inside_of(seen(there), talk.now) is not None


def test_N34_N42_a_mapping_ends_with_its_time(talk: Talk) -> None:
    """Five minutes after the last packet outwards; its port is another's then."""
    there = talk.send(calls(V4))
    talk.now += 300
    assert lives(talk, there)
    talk.now += 1
    assert not lives(talk, there)
    talk.now += 120  # N25
    assert seen(talk.send(calls(V4, source=V4.BACKEND))).port == 5000


# How many


@VERSIONS
@PROTOCOLS
def test_N24_one_pod_cannot_take_all(at: Places, protocol: Protocol) -> None:
    """Ten flows at once and one more every six seconds; what it has goes on, and others are not asked to pay."""
    talk = Talk(replace(HIDDEN, masquerade=replace(HOW, pod_flows=(10, 60))))

    def begins(port: int, source: str = "") -> bool:
        verdict = talk.send(calls(at, protocol, source=source, port=port))
        assert verdict.kind == "forward" or (verdict.reason, verdict.refused) == ("drop_pod_limit", True)
        return verdict.kind == "forward"

    assert [begins(5000 + number) for number in range(12)] == [True] * 10 + [False] * 2
    assert all(begins(5000 + number) for number in range(10)), "those are there already"
    assert begins(5000, at.BACKEND)
    for seconds, more in ((7, 1), (12, 2), (600, 10)):
        talk.now += seconds
        assert [begins(6000 + seconds * 20 + number) for number in range(more + 1)] == [True] * more + [False]


# What was freed lately


def answered(talk: Talk, call: Packet) -> Verdict:
    """A pod's first packet, as it left; it was answered, and TCP's answer, too."""
    there = talk.send(call)
    assert talk.answer(there, hook=Hook.FROM_UPLINK).packet.tuple == call.tuple.reverse
    if call.protocol == "TCP":
        talk.send(replace(call, flags="A"))
    return there


@PROTOCOLS
def test_N25_a_freed_port_is_no_other_pods_for_two_minutes(talk: Talk, protocol: Protocol) -> None:
    """After its end, which is a timeout's. Its own pod has it at once."""
    answered(talk, calls(V4, protocol))
    talk.now += TIMEOUTS[protocol, State.ESTABLISHED] + 1
    for later, kept in ((0, False), (118, False), (2, True)):
        talk.now += later
        other = talk.send(calls(V4, protocol, source=V4.BACKEND), chosen=None if kept else Choice(source_port=6000))
        assert seen(other).port == (5000 if kept else 6000)
        talk.model.flows.end(calls(V4, protocol, source=V4.BACKEND).tuple, Entry(other.packet.tuple))
        talk.model.mappings.outside.clear()
    own = Talk(HIDDEN)
    answered(own, calls(V4, protocol))
    own.now += TIMEOUTS[protocol, State.ESTABLISHED] + 1
    assert seen(own.send(calls(V4, protocol))).port == 5000


@pytest.mark.parametrize(("later", "port"), [(0, 6000), (119, 6000), (121, 5000)])
def test_N25_a_closed_connections_port_is_another_pods_after_two_minutes(talk: Talk, later: float, port: int) -> None:
    """As long as its server may remember it; its own pod may open it again at once (N95)."""
    call = calls(V4, "TCP")
    there = answered(talk, call)
    talk.send(replace(call, flags="FA"))
    talk.answer(there, "FA", Hook.FROM_UPLINK)
    talk.now += later
    assert seen(talk.send(calls(V4, "TCP", source=V4.BACKEND), chosen=Choice(source_port=port))).port == port
    if port != 5000:
        assert seen(talk.send(call)).port == 5000


def test_N25_what_was_another_pods_is_taken_where_there_is_little_else() -> None:
    """Rather than that a call fails; but not where more than half of the ports are free."""
    talk = Talk(FEW_PORTS)
    answered(talk, calls(V4, source=MANY[0]))
    assert seen(talk.send(calls(V4, source=MANY[1]), chosen=Choice(source_port=7000))).port == 7000
    talk.now += 301
    with pytest.raises(Impossible, match="N25"):
        talk.send(calls(V4, source=MANY[2]), chosen=Choice(source_port=7000))
    talk = Talk(FEW_PORTS)
    for pod in MANY[:5]:
        answered(talk, calls(V4, source=pod))
    talk.now += 301
    assert seen(talk.send(calls(V4, source=MANY[5]), chosen=Choice(source_port=7002))).port == 7002


@pytest.mark.parametrize("life", [300, 130], ids=["default", "said"])
def test_C14_N34_N35_an_idle_mapping_goes_and_a_busy_one_stays_for_an_hour(talk: Talk, life: float) -> None:
    """One packet a second before each end of its time keeps it, and its port; then silence, and it is gone."""
    times = {**TIMEOUTS, ("UDP", State.ESTABLISHED): life}
    talk.model.world = replace(HIDDEN, timeouts=times)
    talk.send(calls(V4, source=V4.BACKEND))
    there = talk.send(calls(V4))
    outside, began = seen(there), talk.now
    assert outside.port != 5000
    while talk.now - began <= 3600:
        talk.now += life - 1
        assert seen(talk.send(calls(V4))) == outside
    talk.now += life
    assert lives(talk, there)
    talk.now += 1
    assert not lives(talk, there)
    assert talk.send(stranger(there), Hook.FROM_UPLINK).kind == "pass"


def test_C14_a_change_of_the_times_counts_at_once(talk: Talk) -> None:
    """Also for what is there: the time is counted from its last packet."""
    there = talk.send(calls(V4))
    talk.now += 200
    talk.model.world = replace(HIDDEN, timeouts={**TIMEOUTS, ("UDP", State.ESTABLISHED): 190})
    assert talk.send(stranger(there), Hook.FROM_UPLINK).kind == "pass"


@pytest.mark.parametrize("between", [0.0, 200.0])
def test_N12_N35_a_mapping_lives_by_what_is_sent_outwards(talk: Talk, between: float) -> None:
    """What comes in does not keep it, and does not keep a packet outwards from keeping it."""
    there = talk.send(calls(V4))
    talk.now += 200
    talk.answer(there, hook=Hook.FROM_UPLINK)
    talk.send(calls(V4))
    talk.now += between
    talk.answer(there, hook=Hook.FROM_UPLINK)
    talk.now += 299 - between
    assert lives(talk, there)
    talk.now += 2
    assert not lives(talk, there)


def test_N35_answers_to_who_came_in_keep_a_mapping() -> None:
    """They are sent outwards, whoever has begun the flow; it is looked at once a second."""
    talk = of_type(NatType.FULL_CONE)
    there = talk.send(calls(V4))
    came = talk.send(stranger(there), Hook.FROM_UPLINK)
    for _ in range(3):
        talk.now += 200
        talk.send(stranger(there), Hook.FROM_UPLINK)
        talk.now += 1
        talk.answer(came)
    assert lives(talk, there)


def test_N40_an_echo_is_answered_within_a_minute(talk: Talk) -> None:
    """Later its identifier is free."""
    there = talk.send(calls(V4, "ICMP"))
    talk.now += 60
    assert talk.answer(there, hook=Hook.FROM_UPLINK).kind == "forward"
    talk.now += 61
    assert talk.answer(there, hook=Hook.FROM_UPLINK).kind == "pass"
    assert seen(talk.send(calls(V4, "ICMP", V4.BACKEND))).port == 5000


def test_N9_without_masquerade_who_leaves_is_as_he_is() -> None:
    """And nothing is entered for it."""
    talk = Talk(replace(HIDDEN, masquerade=None))
    for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
        assert talk.send(calls(V4), hook) == Verdict("pass", calls(V4), "stack")
    assert (talk.model.flows.half_open, talk.model.flows.main) == ({}, {})


def test_the_models_ports_are_the_kernels(talk: Talk) -> None:
    """Stated twice on purpose; here is where they must agree."""
    how, kernel = HOW, compile.Masquerade()
    assert (how.ports[0], how.ports[-1], how.node_ports[0], how.node_ports[-1]) == (*kernel.ports, *kernel.node_ports)
    assert [one.name for one in NatType] == [one.name for one in type(kernel.type)]
    assert {str(one) for networks in compile.NEVER_TRANSLATED.values() for one in networks} == set(NEVER_TRANSLATED)


def test_a_version_without_an_outside_address_is_not_masqueraded() -> None:
    """The other is."""
    world = replace(HIDDEN, masquerade=Masquerade((Egress(V4.UPLINK),)))
    assert [Talk(world).send(calls(at), Hook.TO_UPLINK).packet.source for at in (V4, V6)] == [V4.UPLINK, V6.CLIENT]
