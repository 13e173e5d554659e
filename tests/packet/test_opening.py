"""The short way from SYN to connection: what the hooks' own programs do, and when they leave it to the walk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversation import ELSEWHERE, SYN, client, halves, send
from frames import REDIRECT, Outcome, addresses, answer_to, key_of, reverse, tcp
from packetbed import Bed
from places import BACKEND, CLIENT, SECOND, VIP
from scapy.packet import Packet

from pydatapath.kernel import clock, flowtable
from pydatapath.kernel.layout import IPV4, TIMEOUTS, FlowFlag, FlowState, Hook

pytestmark = pytest.mark.same_everywhere


def raw_half_open(bed: Bed) -> dict[bytes, bytes]:
    """The table as the programs have it."""
    return dict(bed.maps["half_open"].items())


def taken_places(bed: Bed) -> list[bytes]:
    """The places of the clients that may still come."""
    tuple_size = IPV4.tuple.struct.size
    return [value for _, value in bed.maps["openings"].items() if value[tuple_size - 4]]


@pytest.fixture(autouse=True)
def nobody_opens(bed: Bed) -> None:
    """Places are left by who comes; what has been there before stays, and says nothing."""
    for key, value in bed.maps["openings"].items():
        if any(value):
            bed.maps["openings"].update(key, bytes(len(value)))


def test_N4_a_connection_opens_by_one_walk_and_one_waiting_entry(bed: Bed):
    """The SYN is walked; its SYN-ACK is noted in the claim, and the client's ACK moves both directions."""
    there = bed.run(Hook.FROM_POD, SYN)
    back = bed.answer(there)
    assert addresses(back) == reverse(addresses(SYN))
    assert (there.walked, back.walked, len(raw_half_open(bed)), len(taken_places(bed))) == (True, False, 1, 1)
    on = bed.run(Hook.FROM_POD, client("A"))
    assert addresses(on) == addresses(there)
    assert not on.walked
    assert (raw_half_open(bed), taken_places(bed)) == ({}, [])
    forward, answer = halves(bed, there, SYN)
    assert (forward.packets, answer.packets) == (2, 1)
    assert (forward.bytes, answer.bytes) == (len(SYN) + len(client("A")) - 28, len(answer_to(there)) - 14)
    assert {forward.state, answer.state} == {FlowState.ESTABLISHED}
    assert (answer.flags, answer.answer) == (FlowFlag.REPLY | FlowFlag.PAIRED | FlowFlag.OPENED, 0)


@pytest.mark.parametrize(
    ("said", "by"),
    [
        (lambda: client("A", ack=7), "client"),
        (lambda: client("S"), "client"),
        (lambda: client("FA"), "client"),
        (lambda: "SA", "server"),
        (lambda: "A", "server"),
    ],
    ids=["another number", "SYN again", "FIN at once", "SYN-ACK again", "ACK"],
)
def test_whatever_else_is_said_is_walked_and_makes_it_two_entries(bed: Bed, said: Callable[[], Packet | str], by: str):
    """Each direction has its own from then on, with what it has counted."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    one = said()
    outcome = bed.answer(there, one) if isinstance(one, str) else bed.run(Hook.FROM_POD, one)
    assert (outcome.verdict, outcome.walked) == (REDIRECT, True)
    table = "flows" if one == client("FA") else "half_open"
    assert len(dict(bed.maps[table].items())) == 2
    forward, answer = halves(bed, there, SYN, table)
    assert (forward.packets, answer.packets) == ((2, 1) if by == "client" else (1, 2))
    if table == "half_open":
        assert send(bed, client("A")) == BACKEND
    assert len(bed.entries()) == 2


def opened(bed: Bed, clients: int = 600) -> dict[int, tuple[Packet, Outcome, bool]]:
    """So many connections that wait for their clients: the call, as it left, and whether its answer was walked."""
    found = {}
    for port in range(20_000, 20_000 + clients):
        call = tcp(CLIENT, port, VIP, 80)
        there = bed.run(Hook.FROM_POD, call)
        found[port] = (call, there, bed.answer(there).walked)
    return found


def test_a_place_that_is_taken_is_not_taken_away(bed: Bed):
    """Two clients whose tuples have one place: the second one opens by two entries, and neither is chosen for anew."""
    ends = opened(bed)
    walked = [port for port, (*_, far) in ends.items() if far]
    assert walked, "of 600 tuples none had another's place: the hash has changed?"
    bed.serve(ELSEWHERE)
    for call, there, _ in ends.values():
        on = bed.run(Hook.FROM_POD, tcp(*addresses(call), "A"))
        assert addresses(on) == addresses(there)
    assert len(bed.entries()) == 2 * len(ends)
    assert raw_half_open(bed) == {}


def test_a_place_of_one_who_never_came_is_free_in_time(bed: Bed):
    """By then the claim is over as well (TCP_NEW)."""
    shared = next(call for call, _, walked in opened(bed).values() if walked)
    for seconds, walked in ((119, True), (121, False)):
        bed.run(Hook.FROM_POD, tcp(*addresses(shared), "R"))
        entries = {key: IPV4.flow.struct.unpack(raw) for key, raw in raw_half_open(bed).items()}
        stamp = max(entry[1] for entry in entries.values()) - seconds * clock.HZ  # the newest one is of just now
        for key, (to, _, *rest) in entries.items():
            bed.maps["half_open"].update(key, IPV4.flow.struct.pack(to, stamp, *rest))
        assert bed.answer(bed.run(Hook.FROM_POD, shared)).walked is walked


def test_N95_a_closed_connections_entries_stand_for_the_next(bed: Bed):
    """A client that takes its port again is given them, counted from the beginning; meanwhile they are nobody's."""
    there = bed.establish(SYN)
    send(bed, client("R"))
    again = bed.run(Hook.FROM_POD, SYN)
    assert bed.entries() == {}
    assert len(dict(bed.maps["flows"].items())) == 2
    assert addresses(again) == addresses(there)
    bed.answer(again)
    on = bed.run(Hook.FROM_POD, client("A"))
    assert not on.walked
    forward, answer = halves(bed, again, SYN)
    assert (forward.packets, answer.packets, {forward.state, answer.state}) == (2, 1, {FlowState.ESTABLISHED})
    assert not (forward.flags | answer.flags) & (FlowFlag.RST | FlowFlag.FIN)


def test_N95_what_is_retired_is_no_flow_to_those_who_list_them(bed: Bed):
    """Its stamp is no time: neither of the machine's first minutes nor of long ago."""
    bed.establish(SYN)
    send(bed, client("R"))
    bed.run(Hook.FROM_POD, SYN)
    assert [one.flow.state for one in flowtable.read_flows(bed.maps, TIMEOUTS)] == ["new"]
    assert sum(flowtable.flows_by_backend(bed.maps, TIMEOUTS).values()) == 1


@pytest.mark.parametrize("changed", [False, True])
def test_N5_a_claim_that_is_lost_while_it_is_alone(bed: Bed, changed: bool):
    """Nobody knows then whom the client has called: it is chosen for anew, the same way if nothing has changed."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    bed.maps["half_open"].delete(key_of(answer_to(there)))
    if changed:
        bed.serve(ELSEWHERE)
    assert send(bed, client("A")) == (SECOND if changed else BACKEND)
    assert len(bed.entries("half_open")) == 1
    if not changed:
        back = bed.answer(there, "PA")
        assert addresses(back) == reverse(addresses(SYN))
        assert len(bed.entries()) == 2


def test_a_place_that_leads_elsewhere_leads_nowhere(bed: Bed):
    """What another client's place says of this one is looked at, not believed."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there)
    ((at, place),) = ((key, value) for key, value in bed.maps["openings"].items() if any(value))
    other = bed.run(Hook.FROM_POD, tcp(CLIENT, 40001, VIP, 80))
    bed.answer(other)
    wrong = place[: len(place) // 2] + key_of(tcp(*addresses(other)))
    bed.maps["openings"].update(at, wrong)
    assert send(bed, client("A")) == BACKEND
    assert [one.to for one in bed.entries("half_open").values() if one.to[3] == 40001]
    assert bed.entry(tcp(CLIENT, 40001, VIP, 80)) is None


def test_a_retired_entry_says_nothing_where_the_next_has_another_backend(bed: Bed):
    """A late word of the old backend is nobody's, and the new connection has its own two entries."""
    there = bed.establish(SYN)
    send(bed, client("R"))
    bed.serve(ELSEWHERE)
    again = bed.run(Hook.FROM_POD, SYN)
    assert addresses(again)[2] == SECOND
    bed.answer(again, device="pod4")
    assert send(bed, client("A")) == SECOND
    assert len(dict(bed.maps["flows"].items())) == 2  # nothing is left that another flow would find to be over
    late = bed.answer(there, "A")
    assert late.verdict != REDIRECT
    assert {one.to[2] for one in bed.entries().values()} == {SECOND, CLIENT}
