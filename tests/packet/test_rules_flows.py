"""Rules of connections that odd packets meet: crossing SYNs, challenges, what comes in the middle, lost flow tables."""

from __future__ import annotations

import pytest
from frames import (
    DROP,
    REDIRECT,
    TCP,
    Outcome,
    Packet,
    Raw,
    addresses,
    answer_to,
    frame,
    key_of,
    leaves,
    reverse,
    sctp,
    tcp,
    udp,
)
from packetbed import Bed
from places import MAC, V4, V6, Places, at

from pydatapath.kernel.layout import FlowState, Hook

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MANY = 16  # backends: that one is met by chance in every one of a test's tries does not happen


def segment(where: Places, flags: str, sport: int = 40000, **fields: int) -> Packet:
    """A segment of the client's; `fields` of the TCP header."""
    packet = tcp(where.CLIENT, sport, where.VIP, 80, flags)
    for name, value in fields.items():
        setattr(packet[TCP], name, value)
    return packet


def serve_many(bed: Bed, where: Places, ports: range = range(8000, 8000 + MANY)) -> None:
    """VIP:80 by as many backends as there are ports."""
    bed.serve({where.called("80/TCP"): [at(where.BACKEND, port) for port in ports]})


def goes_to(bed: Bed, packet: Packet, hook: Hook = Hook.FROM_POD) -> tuple[str, int]:
    """The backend that gets a packet."""
    outcome = bed.run(hook, packet)
    assert outcome.verdict == REDIRECT
    return addresses(outcome)[2:]


def is_seen_as_the_service(bed: Bed, there: Outcome, flags: str, where: Places) -> None:
    """What the backend sends with these flags reaches the client from the service's address."""
    back = bed.answer(there, flags)
    assert back.verdict == REDIRECT
    assert addresses(back) == (where.VIP, 80, where.CLIENT, 40000)


# Who opens, and how


@FAMILIES
def test_N98_both_sides_may_open_at_once(bed: Bed, where: Places):
    """RFC 9293 3.5: SYNs that cross, then a SYN with ACK from either: all translated, and the connection is open."""
    there = bed.run(Hook.FROM_POD, segment(where, "S"))
    is_seen_as_the_service(bed, there, "S", where)
    for flags in ("SA", "A", "PA"):
        is_seen_as_the_service(bed, there, flags, where)
        assert goes_to(bed, segment(where, flags)) == addresses(there)[2:]
    entry = bed.entry(segment(where, "A"))
    assert entry is not None
    assert entry.state == FlowState.ESTABLISHED


@FAMILIES
def test_N98_also_with_a_backend_elsewhere(bed: Bed, where: Places):
    """Its SYN comes in by the uplink."""
    call = tcp(where.CLIENT, 40000, where.VIP, 81)
    assert addresses(bed.run(Hook.FROM_POD, call))[2:] == (where.REMOTE, 8080)
    for flags in ("S", "SA"):
        back = bed.run(Hook.FROM_UPLINK, tcp(where.REMOTE, 8080, where.CLIENT, 40000, flags))
        assert (back.verdict, addresses(back)) == (REDIRECT, reverse(addresses(call)))


@FAMILIES
def test_N103_a_SYN_whose_answers_are_lost_goes_the_same_way(bed: Bed, where: Places):
    """Two answers are lost behind us, so the flow is open here; both SYNs after them go where the first went."""
    serve_many(bed, where)
    there = bed.run(Hook.FROM_POD, segment(where, "S"))
    for _ in range(2):
        is_seen_as_the_service(bed, there, "SA", where)
        assert addresses(bed.run(Hook.FROM_POD, segment(where, "S"))) == addresses(there)
    assert bed.counted()["new_flow"] == 1


KEPT = {
    "data, as Fast Open sends it": ([("MSS", 1460), (34, b"cookie12")], b"GET / HTTP/1.1\r\n\r\n", "S"),
    "ECN's question": ([("MSS", 1460)], b"", "SEC"),
    "accurate ECN's question": ([("MSS", 1460)], b"", "SECN"),
    "MPTCP": ([(30, b"\x01\x81" + bytes(8))], b"", "S"),
}


@FAMILIES
@pytest.mark.parametrize("kind", KEPT)
def test_N107_what_is_new_in_a_SYN_passes_as_it_is(bed: Bed, where: Places, kind: str):
    """Only addresses, ports and sums change; so it is with the answer."""
    options, payload, flags = KEPT[kind]
    packet = frame(where.CLIENT, where.VIP) / TCP(sport=40000, dport=80, flags=flags, options=options) / Raw(payload)
    there = bed.run(Hook.FROM_POD, packet)
    assert there.packet == bytes(leaves(packet, dst=where.BACKEND, dport=8080, mac=MAC[where.BACKEND]))
    answer = frame(where.BACKEND, where.CLIENT) / TCP(sport=8080, dport=40000, flags="SAE", options=options)
    back = bed.run(Hook.FROM_POD, answer, device="pod3")
    assert back.packet == bytes(leaves(answer, src=where.VIP, sport=80))


# Odd packets of an open connection


@FAMILIES
@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA", "", "FSRPAU", "U"])
def test_N99_numbers_out_of_the_window_are_translated(bed: Bed, where: Places, flags: str):
    """No window is tracked (Kubernetes 74839, 117924: what netfilter calls invalid went on as it was)."""
    there = bed.establish(segment(where, "S"))
    for number in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert goes_to(bed, segment(where, flags, seq=number, ack=number ^ 0x55555555)) == addresses(there)[2:]
        answer = answer_to(there, flags)
        answer[TCP].seq = number
        assert addresses(bed.run(Hook.FROM_POD, answer, device="pod3"))[:2] == (where.VIP, 80)


@FAMILIES
def test_N100_a_challenge_is_passed_and_the_next_try_succeeds(bed: Bed, where: Places):
    """A client that has forgotten its connection: SYN, the ACK that challenges it, its RST, and the SYN once more."""
    serve_many(bed, where)
    there = bed.establish(segment(where, "S"))
    again = bed.run(Hook.FROM_POD, segment(where, "S", seq=7_000_000))
    assert addresses(again) == addresses(there)
    is_seen_as_the_service(bed, again, "A", where)
    assert addresses(bed.run(Hook.FROM_POD, segment(where, "R", seq=2000))) == addresses(there)
    last = bed.run(Hook.FROM_POD, segment(where, "S", seq=7_000_000))
    assert last.verdict == REDIRECT
    is_seen_as_the_service(bed, last, "SA", where)
    assert bed.counted() == {"new_flow": 2}


@FAMILIES
def test_N101_a_forged_reset_and_a_forged_SYN_do_not_move_a_connection(bed: Bed, where: Places):
    """Blind, with any numbers, from either side: who goes on sending stays with his backend."""
    serve_many(bed, where)
    there = bed.establish(segment(where, "S"))
    bed.run(Hook.FROM_POD, segment(where, "R", seq=12345))
    bed.answer(there, "R")
    for _ in range(3):
        bed.age(2)
        assert goes_to(bed, segment(where, "A")) == addresses(there)[2:]
        bed.age(2)
        is_seen_as_the_service(bed, there, "A", where)
    assert goes_to(bed, segment(where, "S")) == addresses(there)[2:]
    assert bed.counted() == {"new_flow": 1}


@FAMILIES
def test_N35_what_a_client_sends_keeps_its_flow(bed: Bed, where: Places):
    """A datagram every hundred seconds for twenty minutes, answered or not: one flow, one backend, one source."""
    bed.serve({where.called("53/UDP"): [at(where.BACKEND, port) for port in range(5000, 5000 + MANY)]})
    queries = {port: udp(where.CLIENT, port, where.VIP, 53) for port in (40000, 40001)}
    seen = {port: addresses(bed.run(Hook.FROM_POD, query)) for port, query in queries.items()}
    bed.run(Hook.FROM_POD, udp(*seen[40000][2:], *seen[40000][:2]), device="pod3")
    for _ in range(12):
        bed.age(100)
        for port, query in queries.items():
            assert addresses(bed.run(Hook.FROM_POD, query)) == seen[port]
    assert bed.counted() == {"new_flow": 2}


# Flows that are not known


@FAMILIES
@pytest.mark.parametrize("hook", [Hook.FROM_POD, Hook.FROM_UPLINK], ids=["a pod", "a client outside"])
@pytest.mark.parametrize("flags", ["A", "PA", "FA"])
def test_C10_N104_what_is_in_the_middle_goes_where_its_connection_went(bed: Bed, where: Places, hook: Hook, flags: str):
    """All flows are lost, no backend has changed: each of 32 connections is found again by its hash, both ways."""
    serve_many(bed, where)
    client = where.CLIENT if hook is Hook.FROM_POD else where.FAR
    calls = [tcp(client, port, where.VIP, 80) for port in range(40000, 40032)]
    there = [bed.run(hook, call) for call in calls]
    assert len({addresses(one)[3] for one in there}) > 1
    for one in there:
        bed.answer(one)
    bed.forget_flows()
    for call, before in zip(calls, there, strict=True):
        packet = tcp(*addresses(call), flags, payload=b"more")
        assert addresses(bed.run(hook, packet)) == addresses(before)
        assert addresses(bed.answer(before, "PA")) == reverse(addresses(call))


@FAMILIES
def test_C10_in_random_mode_the_middle_moves_where_the_set_has_changed(bed: Bed, where: Places):
    """That is the price: the backend then answers with a RST, as it should where we made one."""
    serve_many(bed, where)
    calls = [segment(where, "S", port) for port in range(40000, 40032)]
    before = [goes_to(bed, call) for call in calls]
    bed.forget_flows()
    serve_many(bed, where, range(9000, 9000 + MANY))
    after = [goes_to(bed, segment(where, "A", port)) for port in range(40000, 40032)]
    assert {port for _, port in before} <= set(range(8000, 8000 + MANY))
    assert {port for _, port in after} <= set(range(9000, 9000 + MANY))


@FAMILIES
def test_C10_a_middle_that_nobody_serves_is_refused(bed: Bed, where: Places):
    """By a RST with the number that it acknowledges, which is the one that its sender believes."""
    packet = tcp(where.CLIENT, 40000, where.VIP, 9, "A")
    packet[TCP].ack = 77777
    refused = bed.run(Hook.FROM_POD, packet).ip[TCP]
    assert (refused.flags, refused.seq) == ("R", 77777)


@FAMILIES
def test_loxilb_1113_an_INIT_on_an_old_association_is_translated(bed: Bed, where: Places):
    """loxilb 1113: it left with the client's own address. Here whoever comes back after any time is translated."""
    bed.serve({where.called("3868/SCTP"): [at(where.BACKEND, 3868)]})
    packet = sctp(where.CLIENT, 40000, where.VIP, 3868)
    there = bed.run(Hook.FROM_POD, packet)
    bed.answer(there)
    for seconds in (0, 2, 209, 211, 7200):
        bed.age(seconds)
        assert addresses(bed.run(Hook.FROM_POD, packet)) == addresses(there)
        assert addresses(bed.answer(there)) == reverse(addresses(packet))


@FAMILIES
def test_cilium_34833_a_flood_of_SYNs_pushes_out_no_connection(bed: Bed, where: Places):
    """Cilium 34833, 29305: long-lived flows died when the table was full. What has no answer has a table of its own."""
    there = bed.establish(segment(where, "S"))
    bed.establish(query := udp(where.CLIENT, 40000, where.VIP, 53))
    known = set(bed.entries("flows"))
    flood = frame(where.SECOND, where.VIP, to_mac="") / TCP(dport=80, flags="S")
    for number in range(10_000):  # half_open has 8192 entries
        flood[TCP].sport, flood[TCP].dport = 1024 + number, (80, 443)[number % 2]
        assert bed.run(Hook.FROM_POD, flood, device="pod4").verdict == REDIRECT
    assert known <= set(bed.entries("flows"))
    assert goes_to(bed, segment(where, "A")) == addresses(there)[2:]
    assert goes_to(bed, query)[0] == where.BACKEND
    assert key_of(query) in bed.entries("flows")


@FAMILIES
def test_S89_connections_outlive_their_service(bed: Bed, where: Places):
    """The service is gone, its backend is not: who is connected goes on, both ways; who comes finds nothing."""
    there = bed.establish(segment(where, "S"))
    bed.serve({where.called("80/TCP", where.VIP_TWO): [at(where.BACKEND, 8080)]})
    for seconds in (0, 2, 600):
        bed.age(seconds)
        assert goes_to(bed, segment(where, "PA")) == addresses(there)[2:]
        is_seen_as_the_service(bed, there, "PA", where)
    assert bed.run(Hook.FROM_POD, segment(where, "S", 40001)).verdict == DROP


@FAMILIES
def test_S90_who_loses_his_backend_is_balanced_anew_and_others_keep_theirs(bed: Bed, where: Places):
    """Forty datagram sockets, two backends, of which one goes: its sockets have the other at their next datagram."""
    both = [at(address, 5353) for address in (where.BACKEND, where.SECOND)]
    bed.serve({where.called("53/UDP"): both})
    queries = [udp(where.CLIENT, port, where.VIP, 53) for port in range(40000, 40040)]
    before = [goes_to(bed, query)[0] for query in queries]
    assert set(before) == {where.BACKEND, where.SECOND}
    kept = bed.entry(queries[before.index(where.SECOND)], "half_open")
    bed.serve({where.called("53/UDP"): both[1:]})
    assert {goes_to(bed, query)[0] for query in queries} == {where.SECOND}
    after = bed.entry(queries[before.index(where.SECOND)], "half_open")
    assert kept is not None
    assert after is not None
    assert after.packets == kept.packets + 1
    assert bed.counted()["new_flow"] == 40 + before.count(where.BACKEND)
