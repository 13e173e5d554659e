"""Between SYN, SYN-ACK and ACK: who may answer, who may confirm, and what is left where they do not."""

from __future__ import annotations

import pytest
from conversation import ELSEWHERE, SYN, client, halves, send, states
from frames import DROP, REDIRECT, Outcome, addresses, answer_to, key_of, reverse, tcp
from packetbed import Bed
from places import BACKEND, CLIENT, SECOND, VIP
from scapy.layers.inet import TCP

from pydatapath.kernel.layout import FlowState, Hook

pytestmark = pytest.mark.same_everywhere


def test_N4_a_SYN_ACK_promotes_nothing_but_its_clients_answer_does(bed: Bed):
    """Who floods gets SYN-ACKs, too. What waits for the client keeps its backend, whatever is changed meanwhile."""
    there = bed.run(Hook.FROM_POD, SYN)
    for _ in range(2):
        assert addresses(bed.answer(there)) == reverse(addresses(SYN))
    assert bed.entries() == {}
    assert {half.state for half in halves(bed, there, SYN, "half_open")} == {FlowState.ANSWERED}
    assert send(bed, SYN) == BACKEND
    assert bed.entries() == {}
    bed.serve(ELSEWHERE)
    assert send(bed, client("A")) == BACKEND
    assert [half.packets for half in halves(bed, there, SYN)] == [3, 2]
    assert bed.entries("half_open") == {}


def test_N4_an_ACK_of_what_was_never_sent_confirms_nothing(bed: Bed):
    """Who makes up clients does not get the SYN-ACK, and cannot know its number; the client can."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    for number in (0, 1000, 1002, 2**32 - 1):
        assert send(bed, client("PA", ack=number)) == BACKEND
    assert send(bed, client("P", ack=1001)) == BACKEND
    assert bed.entries() == {}
    assert {half.state for half in halves(bed, there, SYN, "half_open")} == {FlowState.ANSWERED}
    assert send(bed, client("PA")) == BACKEND
    assert [half.packets for half in halves(bed, there, SYN)] == [7, 1]
    assert bed.entries("half_open") == {}


@pytest.mark.parametrize(
    ("flags", "ack", "confirmed"),
    [("A", 1001, False), ("A", 1002, True), ("PA", 1001, True), ("FA", 1001, True)],
    ids=["an ACK of the SYN alone", "an ACK of data", "data", "FIN"],
)
def test_N4_what_the_server_believes_is_confirmed(bed: Bed, flags: str, ack: int, confirmed: bool):
    """Where a SYN-ACK is sent again with another number the client may acknowledge either: the server knows.

    To what is out of place it says again what it has said, by an ACK, and has no connection for that.
    """
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    again = answer_to(there, "SA")
    again[TCP].seq = 5000
    bed.run(Hook.FROM_POD, again, device="pod3")
    assert send(bed, client("A")) == BACKEND
    assert bed.entries() == {}
    said = answer_to(there, flags)
    said[TCP].ack = ack
    assert addresses(bed.run(Hook.FROM_POD, said, device="pod3")) == reverse(addresses(SYN))
    expected = FlowState.ESTABLISHED if confirmed else FlowState.ANSWERED
    table, other = ("flows", "half_open") if confirmed else ("half_open", "flows")
    assert {half.state for half in halves(bed, there, SYN, table)} == {expected}
    assert [half.packets for half in halves(bed, there, SYN, table)] == [2, 3]
    assert bed.entries(other) == {}


@pytest.mark.parametrize("opening", ["S", "A"])
def test_N4_an_ACK_alone_is_no_answer_to_a_SYN(bed: Bed, opening: str):
    """It is about an older connection (RFC 9293 3.10.7.4); but what was found in the middle it confirms."""
    there = bed.run(Hook.FROM_POD, client(opening))
    assert addresses(bed.answer(there, "A")) == reverse(addresses(SYN))
    assert len(bed.entries()) == (2 if opening == "A" else 0)
    assert len(bed.entries("half_open")) == (1 if opening == "S" else 0)
    assert addresses(bed.answer(there)) == reverse(addresses(SYN))
    assert send(bed, client("A")) == BACKEND
    assert len(bed.entries()) == 2


def test_N4_the_latest_SYN_ACK_is_the_one_to_acknowledge(bed: Bed):
    """A server that has forgotten the first SYN answers the next one with a number of its own."""
    there = bed.run(Hook.FROM_POD, SYN)
    for number in (1000, 2**32 - 1):
        answer = answer_to(there, "SA")
        answer[TCP].seq = number
        bed.run(Hook.FROM_POD, answer, device="pod3")
    assert send(bed, client("A", ack=0)) == BACKEND
    assert {half.state for half in halves(bed, there, SYN)} == {FlowState.ESTABLISHED}


def test_N4_a_server_that_believes_nothing_ends_it(bed: Bed):
    """Its RST to a forged ACK leaves nothing behind."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    send(bed, client("A", ack=7))
    bed.answer(there, "R")
    assert bed.entries() == bed.entries("half_open") == {}


def test_N5_what_is_answered_and_has_lost_a_half_goes_on(bed: Bed):
    """Either half of it, as an LRU that is full of a flood drops them: the client's ACK makes the other anew."""
    for number, lost in enumerate(("client's", "answer's")):
        syn = tcp(CLIENT, 40001 + number, VIP, 80)
        there = bed.run(Hook.FROM_POD, syn)
        bed.answer(there)
        bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080"]})
        bed.lose(syn if lost == "client's" else answer_to(there))
        ack = tcp(*addresses(syn), "A")
        assert addresses(bed.run(Hook.FROM_POD, ack)) == addresses(there)
        bed.serve(ELSEWHERE)
        assert addresses(bed.run(Hook.FROM_POD, ack)) == addresses(there)
        assert len(bed.entries()) == 2 * (number + 1)
        assert addresses(bed.answer(there, "PA")) == reverse(addresses(syn))
        assert [half.packets for half in halves(bed, there, syn)] == ([2, 2] if lost == "client's" else [3, 1])


def answered_by_the_first(bed: Bed) -> tuple[Outcome, Outcome]:
    """Two SYNs went to two backends, since the set changed between them; the first one has answered."""
    first = bed.run(Hook.FROM_POD, SYN)
    bed.serve(ELSEWHERE)
    second = bed.run(Hook.FROM_POD, SYN)
    assert addresses(second)[2] == SECOND
    assert addresses(bed.answer(first)) == reverse(addresses(SYN))
    return first, second


@pytest.mark.parametrize("flags", ["RA", "A"])
def test_17457_whatever_the_slower_backend_says_the_quicker_ones_connection_goes_on(bed: Bed, flags: str):
    """It refuses, or takes the SYN for one of an old connection's: the client's ACK goes to who has answered."""
    _, second = answered_by_the_first(bed)
    said = bed.answer(second, flags, device="pod4")
    assert said.verdict == (DROP if flags == "A" else REDIRECT)
    for _ in range(2):
        assert send(bed, client("A")) == BACKEND
        bed.age(2)
    assert len(bed.entries()) == 2
    assert bed.entries("half_open") == {}


def test_N5_a_claim_that_is_taken_over_takes_no_other_flows_half(bed: Bed):
    """It had none of its own; what stands under its client's tuple by now waits for that client."""
    others = {f"{VIP}:81/TCP": [f"{SECOND}:8080"]}  # so that a direct connection to that backend is entered
    bed.serve(ELSEWHERE | others)
    bed.run(Hook.FROM_POD, SYN)
    bed.age(130)
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080"]} | others)
    bed.answer(bed.run(Hook.FROM_POD, SYN))
    bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, SECOND, 8080))
    bed.serve(ELSEWHERE | others)
    assert send(bed, client("A")) == BACKEND


def test_N5_what_is_left_over_of_a_flow_that_has_moved_begins_nothing(bed: Bed):
    """Such as by a SYN-ACK that is sent again while another CPU sees the client's ACK: FINs and counts stay."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    bed.settle("half_open")
    left_over = bed.maps["half_open"].lookup(key_of(SYN))
    assert left_over is not None
    bed.confirm(SYN)
    bed.answer(there, "FA")
    bed.run(Hook.FROM_POD, client("FA"))
    bed.maps["half_open"].update(key_of(SYN), left_over)
    bed.age(2)
    assert send(bed, client("A")) == BACKEND
    assert states(bed, there) == {FlowState.CLOSING}
    assert [half.packets for half in halves(bed, there, SYN)] == [4, 2]
    assert bed.entries("half_open") == {}
