"""A flow's life: states, what opens and closes it, a backend that goes away, and time."""

from __future__ import annotations

import pytest
from conversation import BOTH, ELSEWHERE, QUERY, SYN, client, halves, send, states
from frames import DROP, REDIRECT, Packet, addresses, answer_to, key_of, leaves, reverse, tcp, udp
from packetbed import Bed, Serving
from places import BACKEND, CLIENT, MAC, SECOND, VIP

from pydatapath.kernel import clock, layout
from pydatapath.kernel.layout import FlowFlag, FlowState, Hook

pytestmark = pytest.mark.same_everywhere

# What opens and closes a connection


def test_two_FINs_close(bed: Bed):
    """One FIN is a half-closed connection, which may go on for long (N39); with the second it is closing."""
    there = bed.establish(SYN)
    send(bed, client("FA"))
    assert states(bed, there) == {FlowState.ESTABLISHED}
    assert [half.flags for half in halves(bed, there, SYN)] == [
        FlowFlag.PAIRED | FlowFlag.OPENED | FlowFlag.FIN,
        FlowFlag.PAIRED | FlowFlag.OPENED | FlowFlag.REPLY,
    ]
    bed.answer(there, "FA")
    assert states(bed, there) == {FlowState.CLOSING}
    last = bed.run(Hook.FROM_POD, client("A"))
    assert last.packet == bytes(leaves(client("A"), dst=BACKEND, dport=8080, mac=MAC[BACKEND]))


def test_two_FINs_of_one_side_are_one(bed: Bed):
    """A FIN that is sent again closes nothing."""
    there = bed.establish(SYN)
    send(bed, client("FA"))
    send(bed, client("FA"))
    assert states(bed, there) == {FlowState.ESTABLISHED}


@pytest.mark.parametrize("side", ["client", "backend"])
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_N38_RST_shortens_the_state(bed: Bed, side: str, flags: str):
    """Translated like all others, it leaves the flow closing: its entries stay for what is still on its way."""
    there = bed.establish(SYN)
    outcome = bed.run(Hook.FROM_POD, client(flags)) if side == "client" else bed.answer(there, flags)
    assert addresses(outcome) == (addresses(there) if side == "client" else reverse(addresses(SYN)))
    assert states(bed, there) == {FlowState.CLOSING}


@pytest.mark.parametrize("side", ["client", "backend"])
def test_N38_N101_a_RST_that_nobody_believed_is_forgotten(bed: Bed, side: str):
    """Its sender goes on: the connection is established again, and a SYN that was forged, too, chooses nothing anew."""
    there = bed.establish(SYN)
    _ = bed.run(Hook.FROM_POD, client("R")) if side == "client" else bed.answer(there, "R")
    bed.age(2)
    _ = bed.answer(there, "A") if side == "client" else bed.run(Hook.FROM_POD, client("A"))
    assert states(bed, there) == {FlowState.CLOSING}  # the other side may not have heard of it yet
    bed.age(2)
    _ = bed.run(Hook.FROM_POD, client("A")) if side == "client" else bed.answer(there, "A")
    assert states(bed, there) == {FlowState.ESTABLISHED}
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080", *(f"{SECOND}:{port}" for port in range(8000, 8016))]})
    assert {send(bed, SYN) for _ in range(10)} == {BACKEND}


@pytest.mark.parametrize("side", ["client", "backend"])
def test_N38_N101_a_RST_is_forgotten_also_by_who_only_answers(bed: Bed, side: str):
    """The other side speaks first each time; the answer that follows at once shows that the RST was forged."""
    there = bed.establish(SYN)
    _ = bed.run(Hook.FROM_POD, client("R")) if side == "client" else bed.answer(there, "R")
    bed.age(2)
    _ = bed.answer(there, "A") if side == "client" else bed.run(Hook.FROM_POD, client("A"))
    _ = bed.run(Hook.FROM_POD, client("A")) if side == "client" else bed.answer(there, "A")
    assert states(bed, there) == {FlowState.ESTABLISHED}


@pytest.mark.parametrize("side", ["client", "backend"])
def test_RST_ends_a_half_open_flow(bed: Bed, side: str):
    """Refused or given up: both entries go, and the next attempt may be given another backend."""
    there = bed.run(Hook.FROM_POD, SYN)
    outcome = bed.run(Hook.FROM_POD, client("R")) if side == "client" else bed.answer(there, "RA")
    assert addresses(outcome) == (addresses(there) if side == "client" else reverse(addresses(SYN)))
    assert bed.entries("half_open") == bed.entries("flows") == {}
    bed.serve(ELSEWHERE)
    assert send(bed, SYN) == SECOND


@pytest.mark.parametrize("ended_by", ["RST", "FINs"])
def test_N102_SYN_on_a_closing_connection_chooses_anew(bed: Bed, ended_by: str):
    """A client may take its port again before TIME_WAIT is over; an old backend has no right to it."""
    there = bed.establish(SYN)
    for flags in ["R"] if ended_by == "RST" else ["FA"]:
        send(bed, client(flags))
        bed.answer(there, flags)
    bed.serve(ELSEWHERE)
    again = bed.run(Hook.FROM_POD, SYN)
    assert addresses(again)[2] == SECOND
    assert bed.entry(SYN, "flows") is None
    claim = bed.entry(answer_to(again), "half_open")
    assert claim is not None
    assert claim.packets == 1


def test_N102_SYN_on_a_live_connection_chooses_nothing(bed: Bed):
    """It goes where the connection goes, though there are 16 more backends by now."""
    bed.establish(SYN)
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:8080", *(f"{SECOND}:{port}" for port in range(8000, 8016))]})
    assert {send(bed, SYN) for _ in range(10)} == {BACKEND}
    assert bed.counted() == {"new_flow": 1}


@pytest.mark.parametrize("established", [True, False], ids=["established", "half-open"])
def test_N102_SYN_on_a_connection_whose_backend_is_gone_chooses_anew(bed: Bed, established: bool):
    """Nobody is sent to a backend that no longer serves (Cilium 20382)."""
    _ = bed.establish(SYN) if established else bed.run(Hook.FROM_POD, SYN)
    bed.serve(ELSEWHERE)
    assert send(bed, SYN) == SECOND


def test_N103_a_SYN_sent_again_goes_to_the_same_backend(bed: Bed):
    """With 16 backends to choose from, each of ten retransmissions goes where the first went, by the same ports."""
    bed.serve({f"{VIP}:80/TCP": [f"{BACKEND}:{port}" for port in range(8000, 8016)]})
    seen = {addresses(bed.run(Hook.FROM_POD, SYN)) for _ in range(11)}
    assert len(seen) == 1
    assert bed.counted() == {"new_flow": 1}
    (claim,) = bed.entries("half_open").values()
    assert claim.packets == 11


def test_17457_the_backend_that_answers_first_has_the_connection(bed: Bed):
    """The backends change between two SYNs: the slower one's answer must not meet a client that has another's."""
    first = bed.run(Hook.FROM_POD, SYN)
    bed.serve(ELSEWHERE)
    second = bed.run(Hook.FROM_POD, SYN)
    assert addresses(second)[2] == SECOND
    assert addresses(bed.answer(second, device="pod4")) == reverse(addresses(SYN))
    late = bed.answer(first)
    assert (late.verdict, late.packet) == (DROP, bytes(answer_to(first)))
    assert bed.counted() == {"new_flow": 2, "drop_late_answer": 1}
    assert send(bed, client("A")) == SECOND
    assert bed.entries("half_open") == {}


def test_N5_a_connection_that_was_over_leaves_no_half_behind(bed: Bed):
    """A half that is found to be over later would take another's entries with it, which have its tuple by then."""
    first = bed.run(Hook.FROM_POD, SYN)
    bed.serve(ELSEWHERE)
    second = bed.run(Hook.FROM_POD, SYN)
    bed.answer(second, device="pod4")
    bed.confirm(SYN)
    bed.answer(second, "R", device="pod4")
    bed.answer(first)  # the second was reset, so the first answer that is late opens the connection
    bed.confirm(SYN)
    assert set(bed.entries()) == {key_of(SYN), key_of(answer_to(first))}
    direct = tcp(CLIENT, 40000, SECOND, 8080)
    bed.run(Hook.FROM_POD, direct)
    assert send(bed, client("A")) == BACKEND


def test_N39_a_FIN_in_the_first_answer_counts(bed: Bed):
    """An answer may open and end its direction at once."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.answer(there, "FA")
    send(bed, client("FA"))
    assert states(bed, there) == {FlowState.CLOSING}


# A backend that goes away


@pytest.mark.parametrize("established", [True, False], ids=["established", "half-open"])
def test_C9_a_datagram_finds_another_backend_at_once(bed: Bed, established: bool):
    """The packet itself sees that its backend no longer serves; both old entries are gone."""
    there = bed.establish(QUERY) if established else bed.run(Hook.FROM_POD, QUERY)
    bed.serve(ELSEWHERE)
    assert send(bed, QUERY) == SECOND
    assert key_of(answer_to(there)) not in {**bed.entries("flows"), **bed.entries("half_open")}
    assert bed.counted() == {"new_flow": 2}


@pytest.mark.parametrize("established", [True, False], ids=["established", "half-open"])
def test_C8_S88_S89_a_connection_stays_with_a_backend_that_is_gone(bed: Bed, established: bool):
    """TCP goes on, both ways, and only new connections go elsewhere; an answer that was on its way opens one."""
    there = bed.establish(SYN) if established else bed.run(Hook.FROM_POD, SYN)
    bed.serve(ELSEWHERE)
    assert addresses(bed.answer(there, "A" if established else "SA")) == reverse(addresses(SYN))
    assert send(bed, client("A")) == BACKEND
    assert send(bed, tcp(CLIENT, 40001, VIP, 80)) == SECOND


@pytest.mark.parametrize("services", [{f"{VIP}:53/UDP": []}, {}], ids=["no backend left", "no service left"])
def test_C9_S91_S92_N105_datagrams_end_with_the_service(bed: Bed, services: dict[str, list[str]]):
    """Nobody is left: the next datagram is refused at once, or dropped, by name; and the flow is over."""
    bed.establish(QUERY)
    bed.serve(services)
    outcome = bed.run(Hook.FROM_POD, QUERY)
    assert outcome.verdict == (REDIRECT if services else DROP)
    assert bed.entries("flows") == {}
    assert bed.counted() == {"new_flow": 1, ("drop_no_backend" if services else "drop_no_service"): 1}


@BOTH
@pytest.mark.parametrize("established", [True, False], ids=["established", "half-open"])
def test_S90_S94_C12_a_backend_that_drains_keeps_its_flows(bed: Bed, packet: Packet, established: bool):
    """Datagrams of a flow still go to it, and a connection goes on; new ones go elsewhere."""
    there = bed.establish(packet) if established else bed.run(Hook.FROM_POD, packet)
    port, protocol = (8080, "80/TCP") if packet is SYN else (5353, "53/UDP")
    bed.serve({f"{VIP}:{protocol}": Serving([f"{SECOND}:{port}"], draining=[f"{BACKEND}:{port}"])})
    assert addresses(bed.answer(there, "A" if established else "SA")) == reverse(addresses(packet))
    assert send(bed, client("A") if packet is SYN else QUERY) == BACKEND
    other = tcp(CLIENT, 40001, VIP, 80) if packet is SYN else udp(CLIENT, 40001, VIP, 53)
    assert send(bed, other) == SECOND
    if packet is SYN:  # N102: nobody is sent to one that ends
        assert send(bed, SYN) == SECOND


def test_S94_a_backend_that_drains_and_stops_serving_is_gone(bed: Bed):
    """Its datagrams move at once (C9)."""
    bed.establish(QUERY)
    bed.serve({f"{VIP}:53/UDP": Serving([f"{SECOND}:5353"], draining=[f"{BACKEND}:5353"])})
    assert send(bed, QUERY) == BACKEND
    bed.serve(ELSEWHERE)
    assert send(bed, QUERY) == SECOND


def test_C12_a_backend_that_drains_and_comes_back_is_the_same(bed: Bed):
    """Its flows have never left it."""
    bed.establish(QUERY)
    before = bed.entry(QUERY)
    bed.serve({f"{VIP}:53/UDP": Serving([f"{SECOND}:5353"], draining=[f"{BACKEND}:5353"])})
    bed.serve({f"{VIP}:53/UDP": [f"{BACKEND}:5353", f"{SECOND}:5353"]})
    assert send(bed, QUERY) == BACKEND
    after = bed.entry(QUERY)
    assert before is not None
    assert after is not None
    assert (before.backend, before.generation) == (after.backend, after.generation)


def test_C9_another_backend_with_the_same_number_is_not_taken_for_the_old(bed: Bed):
    """A backend's number may be given again; its generation tells."""
    bed.establish(QUERY)
    entry = bed.entry(QUERY)
    assert entry is not None
    bed.serve(ELSEWHERE)
    bed.amend("flows", key_of(QUERY), backend=bed.newest_backend(), generation=entry.generation - 1)
    assert send(bed, QUERY) == SECOND


# Time


# A TCP flow that is new has no entry of the client's: see the next test
LIVES = [
    ("TCP", FlowState.ESTABLISHED),
    ("TCP", FlowState.CLOSING),
    ("UDP", FlowState.NEW),
    ("UDP", FlowState.ESTABLISHED),
]


@pytest.mark.parametrize(("protocol", "state"), LIVES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("over", [False, True], ids=["just before", "just after"])
def test_N42_a_flow_is_over_at_its_timeout(bed: Bed, protocol: str, state: FlowState, over: bool):
    """An entry that is too old is a miss, whoever collects it: its packets choose again, one second earlier not."""
    packet = client("A") if protocol == "TCP" else QUERY
    if state is FlowState.NEW:
        bed.run(Hook.FROM_POD, packet)
    else:
        bed.establish(packet)
    for key, entry in bed.entries().items():
        closing = FlowFlag.RST if state is FlowState.CLOSING else FlowFlag(0)
        bed.amend("flows", key, flags=entry.flags | closing)
    if protocol == "TCP":  # a datagram would choose again for its backend's sake
        bed.serve(ELSEWHERE)
    bed.age(layout.timeout(protocol, state) + (1 if over else -1))
    goes_to = send(bed, packet)
    assert bed.counted() == {"new_flow": 2 if over else 1}
    assert goes_to == (SECOND if over and protocol == "TCP" else BACKEND)


@pytest.mark.parametrize("over", [False, True], ids=["just before", "just after"])
def test_N42_an_answer_that_comes_too_late_is_no_answer(bed: Bed, over: bool):
    """A connection that was never answered is forgotten, and what its backend sends then is its own."""
    there = bed.run(Hook.FROM_POD, SYN)
    bed.age(layout.timeout("TCP", FlowState.NEW) + (1 if over else -1))
    assert addresses(bed.answer(there)) == (reverse(addresses(there)) if over else reverse(addresses(SYN)))


@BOTH
@pytest.mark.parametrize("direction", ["there", "back"])
def test_N5_either_direction_refreshes_both(bed: Bed, packet: Packet, direction: str):
    """After over a second; so one-way traffic keeps both halves, and the LRU sees them equally recent."""
    there = bed.establish(packet)
    stamps = [half.last_seen for half in halves(bed, there, packet)]
    bed.age(100)
    outcome = bed.run(Hook.FROM_POD, packet) if direction == "there" else bed.answer(there, "A")
    assert outcome.walked
    fresh = [half.last_seen for half in halves(bed, there, packet)]
    assert fresh[0] == fresh[1] >= max(stamps)
    if packet is QUERY:
        assert not bed.run(Hook.FROM_POD, packet).walked


def test_a_fresh_stamp_is_not_written_again(bed: Bed):
    """Within a second the hot path leaves the entry's time alone: no write that nobody needs."""
    there = bed.establish(QUERY)
    bed.age(0.5)
    before = [half.last_seen for half in halves(bed, there, QUERY)]
    assert not bed.run(Hook.FROM_POD, QUERY).walked
    assert [half.last_seen for half in halves(bed, there, QUERY)] == before


@BOTH
def test_half_open_packets_refresh_both(bed: Bed, packet: Packet):
    """What is sent again keeps both halves of a half-open flow, or its answer would find nothing."""
    there = bed.run(Hook.FROM_POD, packet)
    bed.age(100)
    bed.run(Hook.FROM_POD, packet)
    bed.age(100)
    assert addresses(bed.answer(there)) == reverse(addresses(packet))


@BOTH
@pytest.mark.parametrize("lost", ["there", "back"])
def test_N5_a_half_that_is_gone_is_made_anew(bed: Bed, packet: Packet, lost: str):
    """Whoever deleted it, the next packet of the other direction that looks (within a second or so) heals it."""
    there = bed.establish(packet)
    before = halves(bed, there, packet)
    answer = answer_to(there, "A")
    bed.maps["flows"].delete(key_of(packet if lost == "there" else answer))
    bed.age(2)
    bed.run(Hook.FROM_POD, answer if lost == "there" else packet, device="pod3" if lost == "there" else "pod2")
    after = halves(bed, there, packet)
    for old, new in zip(before, after, strict=True):
        assert (new.to, new.backend, new.generation, new.state, new.flags) == (
            old.to,
            old.backend,
            old.generation,
            old.state,
            old.flags,
        )
        assert abs(new.last_seen - old.last_seen) < 10 * clock.HZ


@BOTH
def test_N5_a_half_open_flow_is_made_whole(bed: Bed, packet: Packet):
    """A flood may push one half out of the half-open table: what is sent again puts it back."""
    there = bed.run(Hook.FROM_POD, packet)
    bed.lose(answer_to(there))
    bed.run(Hook.FROM_POD, packet)
    assert addresses(bed.answer(there)) == reverse(addresses(packet))


def test_N5_a_FIN_that_heals_counts(bed: Bed):
    """A closing packet that meets a missing half is remembered all the same."""
    there = bed.establish(SYN)
    bed.maps["flows"].delete(key_of(answer_to(there)))
    bed.age(2)
    send(bed, client("FA"))
    bed.answer(there, "FA")
    assert states(bed, there) == {FlowState.CLOSING}


def test_C9_a_late_answer_is_still_the_services(bed: Bed):
    """A datagram that a backend sent before it was taken away reaches the client from the address that it called."""
    there = bed.run(Hook.FROM_POD, QUERY)
    bed.serve(ELSEWHERE)
    assert addresses(bed.answer(there)) == reverse(addresses(QUERY))
    assert send(bed, QUERY) == SECOND
