"""One client port used towards one backend several times at once: directly, and through services (N93, N94)."""

from __future__ import annotations

from itertools import permutations

import pytest
from frames import PASS, REDIRECT, Outcome, Packet, addresses, answer_to, key_of, reverse, tcp, udp
from packetbed import Bed
from places import BACKEND, CLIENT, FAR, NODE, REMOTE, VIP, VIP_TWO

from pydatapath.kernel.layout import Hook

pytestmark = pytest.mark.same_everywhere

CALLED = {"TCP": {"direct": (BACKEND, 8080), "one": (VIP, 80), "two": (VIP_TWO, 80)}}
CALLED["UDP"] = {"direct": (BACKEND, 5353), "one": (VIP, 53), "two": (VIP_TWO, 53)}
ORDERS = [*permutations(["direct", "one", "two"], 2), *permutations(["direct", "one", "two"])]


def first_packet(protocol: str, called: str) -> Packet:
    """From the one client port."""
    address, port = CALLED[protocol][called]
    return tcp(CLIENT, 10000, address, port) if protocol == "TCP" else udp(CLIENT, 10000, address, port)


def later_packet(protocol: str, called: str) -> Packet:
    """Data on the same way."""
    address, port = CALLED[protocol][called]
    if protocol == "TCP":
        return tcp(CLIENT, 10000, address, port, "PA", payload=called.encode())
    return udp(CLIENT, 10000, address, port, payload=called.encode())


def check_own_answers(bed: Bed, seen: dict[str, Outcome], packets: dict[str, Packet], flags: str) -> None:
    """The backend tells all of them apart, and each answer comes back to the flow that it belongs to."""
    assert len({addresses(outcome) for outcome in seen.values()}) == len(seen)
    for called, outcome in seen.items():
        back = bed.run(Hook.FROM_POD, answer_to(outcome, flags), device="pod3")
        assert addresses(back) == reverse(addresses(packets[called])), called


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
def test_N93_N94_each_has_its_own_answers(bed: Bed, protocol: str, order: tuple[str, ...], at_once: bool):
    """In any order, half-open or established: the first keeps the port, later ones are given another."""
    firsts = {called: first_packet(protocol, called) for called in order}
    seen: dict[str, Outcome] = {}
    for called in order:
        seen[called] = bed.run(Hook.FROM_POD, firsts[called])
        if not at_once:
            check_own_answers(bed, {called: seen[called]}, firsts, "SA")
    ports = [addresses(outcome)[1] for outcome in seen.values()]
    assert ports[0] == 10000
    assert all(port >= 32768 for port in ports[1:])
    assert {addresses(outcome)[2] for outcome in seen.values()} == {BACKEND}
    check_own_answers(bed, seen, firsts, "SA")

    laters = {called: later_packet(protocol, called) for called in order}
    again = {called: bed.run(Hook.FROM_POD, packet) for called, packet in laters.items()}
    assert {called: addresses(outcome) for called, outcome in again.items()} == {
        called: addresses(outcome) for called, outcome in seen.items()
    }
    check_own_answers(bed, again, laters, "PA")
    assert bed.counted() == {"new_flow": len(order)}


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_N9_a_port_is_kept_where_nothing_is_in_its_way(bed: Bed, protocol: str):
    """Other clients, or the same port to other backends: no source port is ever changed without need."""
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080"], f"{VIP}:53/UDP": [f"{BACKEND}:5353"]})
    for client in (CLIENT, "10.1.0.4"):
        packet = tcp(client, 10000, VIP, 80) if protocol == "TCP" else udp(client, 10000, VIP, 53)
        assert addresses(bed.run(Hook.FROM_POD, packet))[:2] == (client, 10000)


def test_TCP_and_UDP_do_not_meet(bed: Bed):
    """One client port, one backend port, two protocols: two flows, nothing to change."""
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:80"], f"{VIP}:80/UDP": [f"{BACKEND}:80"]})
    there = [bed.run(Hook.FROM_POD, packet) for packet in (tcp(CLIENT, 10000, VIP, 80), udp(CLIENT, 10000, VIP, 80))]
    assert [addresses(outcome) for outcome in there] == [(CLIENT, 10000, BACKEND, 80)] * 2
    assert [addresses(bed.answer(outcome)) for outcome in there] == [(VIP, 80, CLIENT, 10000)] * 2


@pytest.mark.parametrize("first", ["direct", "one"])
@pytest.mark.parametrize("second", ["one", "two"])
def test_N95_a_new_connection_takes_a_closed_ones_port(bed: Bed, first: str, second: str):
    """The port of a connection that was reset may be used at once, and is not changed for it."""
    there = bed.establish(first_packet("TCP", first))
    bed.run(Hook.FROM_POD, answer_to(there, "RA"), device="pod3")
    packet = first_packet("TCP", second)
    left = bed.run(Hook.FROM_POD, packet)
    assert addresses(left) == (CLIENT, 10000, BACKEND, 8080)
    assert addresses(bed.answer(left)) == reverse(addresses(packet))


def test_N95_a_taken_over_answer_is_not_taken_back(bed: Bed):
    """A UDP flow whose backend was taken away leaves its tuple to the next; when it goes on, that one stays whole."""
    old, new = udp(CLIENT, 10000, VIP, 53), udp(CLIENT, 10000, VIP_TWO, 53)
    bed.run(Hook.FROM_POD, old)
    bed.serve({f"{VIP}:53/UDP": ["10.1.0.4:5353"], f"{VIP_TWO}:53/UDP": [f"{BACKEND}:5353"]})
    left = bed.run(Hook.FROM_POD, new)
    assert addresses(left) == (CLIENT, 10000, BACKEND, 5353)
    assert addresses(bed.run(Hook.FROM_POD, old))[2] == "10.1.0.4"
    assert addresses(bed.answer(left)) == reverse(addresses(new))


@pytest.mark.parametrize("called", ["direct", "two"])
def test_C8_a_connection_is_not_given_up_for_a_newcomer(bed: Bed, called: str):
    """It goes on though its backend has left the service: who comes with the same ports is given another."""
    there = bed.establish(first_packet("TCP", "one"))
    bed.serve({f"{VIP}:80/TCP": ["10.1.0.4:8080"], f"{VIP_TWO}:80/TCP": [f"{BACKEND}:8080"]})
    left = bed.run(Hook.FROM_POD, first_packet("TCP", called))
    assert addresses(left)[1] >= 32768
    assert addresses(bed.run(Hook.FROM_POD, later_packet("TCP", "one"))) == addresses(there)
    assert addresses(bed.answer(there, "PA")) == (VIP, 80, CLIENT, 10000)


@pytest.mark.parametrize("way", ["bed", "past"])
@pytest.mark.parametrize(("protocol", "answered"), [("TCP", True), ("TCP", False), ("UDP", True)])
def test_N93_a_direct_call_is_told_apart_from_a_flow_whose_service_is_gone(
    request: pytest.FixtureRequest, protocol: str, answered: bool, way: str
):
    """Nobody listens there for a service any more, but what was open still is: TCP goes on, UDP gives way (C8, C9).

    By the bridge, and past it.
    """
    bed: Bed = request.getfixturevalue(way)
    before, direct = first_packet(protocol, "one"), first_packet(protocol, "direct")
    there = bed.establish(before) if answered else bed.run(Hook.FROM_POD, before)
    bed.serve({})
    left = bed.run(Hook.FROM_POD, direct)
    if protocol == "UDP":
        assert addresses(left) == (CLIENT, 10000, BACKEND, 5353)
    else:
        assert addresses(left)[1] >= 32768
        assert addresses(bed.answer(there, "PA" if answered else "SA")) == reverse(addresses(before))
    check_own_answers(bed, {"direct": left}, {"direct": direct}, "SA")


# The node itself: it calls services by the bridge, and everything on other machines directly by the uplink


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("order", [("direct", "service"), ("service", "direct")], ids=" then ".join)
def test_N93_the_nodes_own_connections_are_told_apart(bed: Bed, protocol: str, order: tuple[str, str]):
    """To one pod of another node from one port, directly and through a service, in both orders."""
    build, backend, port = (tcp, 8080, 81) if protocol == "TCP" else (udp, 5353, 54)
    ways = {
        "direct": (Hook.TO_UPLINK, build(NODE, 10000, REMOTE, backend), PASS),
        "service": (Hook.TO_BRIDGE, build(NODE, 10000, VIP, port), REDIRECT),
    }
    seen = {}
    for called in order:
        hook, packet, verdict = ways[called]
        seen[called] = bed.run(hook, packet)
        assert seen[called].verdict == verdict
        assert addresses(seen[called])[2:] == (REMOTE, backend)
    ports = [addresses(outcome)[1] for outcome in seen.values()]
    assert ports[0] == 10000
    assert ports[1] >= 32768
    for called, outcome in seen.items():
        _, packet, verdict = ways[called]
        back = bed.run(Hook.FROM_UPLINK, answer_to(outcome))
        assert addresses(back) == reverse(addresses(packet))
        assert back.verdict == verdict


@pytest.mark.parametrize("packet", [tcp(FAR, 4, VIP, 80), udp(CLIENT, 4, VIP, 53)], ids=["a stranger's", "a pod's"])
def test_what_the_stack_forwards_is_not_met_again_at_an_uplink(bed: Bed, packet: Packet):
    """It was met where it came in, and what goes out there goes to another machine, which may have that address."""
    outcome = bed.run(Hook.TO_UPLINK, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bed.counted() == {}


def test_N5_N93_a_datagram_flow_that_lost_its_claim_to_another_takes_another_port(bed: Bed):
    """A direct flow has its answer's tuple by now: the next datagram leaves from a port of its own."""
    called = first_packet("UDP", "one")
    there = bed.run(Hook.FROM_POD, called)
    bed.lose(answer_to(there))
    direct = bed.run(Hook.FROM_POD, first_packet("UDP", "direct"))
    again = bed.run(Hook.FROM_POD, called)
    assert addresses(again)[1] != addresses(direct)[1]
    assert addresses(bed.answer(again)) == reverse(addresses(called))
    assert addresses(bed.answer(direct)) == reverse(addresses(direct))


@pytest.mark.parametrize("answered", [False, True], ids=["half-open", "established"])
def test_N5_a_lost_half_whose_tuple_is_anothers_is_not_taken_back(bed: Bed, answered: bool):
    """The LRU drops the answer of a service flow, a direct connection claims it: from then on two ports leave."""
    called = first_packet("TCP", "one")
    there = bed.establish(called)
    bed.maps["flows"].delete(key_of(answer_to(there)))
    direct = bed.run(Hook.FROM_POD, first_packet("TCP", "direct"))
    assert addresses(direct) == (CLIENT, 10000, BACKEND, 8080)
    if answered:
        bed.answer(direct)
    bed.age(2)
    again = bed.run(Hook.FROM_POD, tcp(CLIENT, 10000, VIP, 80, "A"))
    assert addresses(again)[1] != 10000
    assert addresses(bed.answer(again)) == reverse(addresses(called))
    assert addresses(bed.answer(direct)) == (BACKEND, 8080, CLIENT, 10000)
