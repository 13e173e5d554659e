"""A flow's life, on the model: claimed, answered, refreshed, over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import BACKEND, BOTH, CLIENT, OTHER, QUERY, SECOND, SYN, WEB, Talk, answer_to, client

from pydatapath.kernel import layout
from pydatapath.reference import TIMEOUTS, Entry, FlowTuple, Packet, Protocol, State, Verdict


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_N4_a_TCP_flow_waits_as_its_answers_claim_a_UDP_flow_as_both(talk: Talk) -> None:
    """With the answer both directions of either stand in the main table, and nothing in the other."""
    talk.send(SYN)
    assert list(talk.model.flows.half_open) == [FlowTuple(BACKEND, 8080, CLIENT, 40000)]
    talk.send(QUERY)
    assert len(talk.model.flows.half_open) == 3
    talk.open(SYN)
    talk.open(QUERY)
    assert talk.model.flows.half_open == {}
    assert len(talk.model.flows.main) == 4


def test_N4_a_SYN_ACK_promotes_nothing_but_its_clients_answer_does(talk: Talk) -> None:
    """Who floods gets SYN-ACKs, too. What waits for the client keeps its backend, whatever is changed meanwhile."""
    there = talk.send(SYN)
    for _ in range(2):
        assert talk.answer(there).packet.tuple == SYN.tuple.reverse
    assert (talk.model.flows.main, len(talk.model.flows.half_open)) == ({}, 2)
    assert talk.goes_to(SYN) == BACKEND
    assert talk.model.flows.main == {}
    talk.serve(WEB, OTHER)
    assert talk.goes_to(client("A")) == BACKEND
    forward, back = talk.model.flows.main[SYN.tuple], talk.model.flows.main[there.packet.tuple.reverse]
    assert (forward.packets, back.packets, talk.model.flows.half_open) == (3, 2, {})


def test_N4_a_servers_first_word_promotes_where_no_SYN_ACK_was_seen(talk: Talk) -> None:
    """Such as that of a connection which is older than the programs."""
    there = talk.send(client("A"))
    talk.answer(there, "A")
    assert set(talk.model.flows.main) == {SYN.tuple, there.packet.tuple.reverse}


def test_N108_each_direction_counts_its_own_packets(talk: Talk) -> None:
    """Those of layer 3 as they arrive, from the first on."""
    talk.send(QUERY)
    there = talk.send(replace(QUERY, length=100))
    talk.answer(there)
    forward, back = talk.model.flows.main[QUERY.tuple], talk.model.flows.main[there.packet.tuple.reverse]
    assert (forward.packets, forward.octets, back.packets, back.octets) == (2, 132, 1, 100)


def test_17457_the_backend_that_answers_first_has_the_connection(talk: Talk) -> None:
    """The set changes between two SYNs: the slower one's answer is dropped by name."""
    slow = talk.send(SYN)
    talk.serve(WEB, OTHER)
    quick = talk.send(SYN)
    assert talk.answer(quick).packet.tuple == SYN.tuple.reverse
    assert talk.answer(slow) == Verdict("drop", answer_to(slow.packet, "SA"), reason="drop_late_answer")
    assert talk.goes_to(client("A")) == SECOND


def test_17457_N5_of_a_connection_that_gave_way_nothing_is_left(talk: Talk) -> None:
    """The quicker backend resets, the slower one's answer comes after all: that one has the connection, whole."""
    slow = talk.send(SYN)
    talk.serve(WEB, OTHER)
    talk.answer(talk.open(SYN), "R")
    assert talk.answer(slow).packet.tuple == SYN.tuple.reverse
    assert talk.goes_to(client("A")) == BACKEND
    assert set(talk.model.flows.main) == {SYN.tuple, slow.packet.tuple.reverse}


def test_N38_a_RST_leaves_an_answered_flow_closing(talk: Talk) -> None:
    """It is passed on, and the flow lives four minutes for what is still on its way."""
    there = talk.open(SYN)
    assert talk.answer(there, "R").packet.tuple == SYN.tuple.reverse
    talk.now += 239
    assert talk.goes_to(client("A")) == BACKEND
    talk.now += 241
    assert talk.send(client("A")).opened


def test_N38_N101_a_RST_that_its_sender_did_not_send_is_forgotten(talk: Talk) -> None:
    """It goes on sending a second later, and the connection has its long life back."""
    there = talk.open(SYN)
    talk.answer(there, "R")
    talk.now += 0.5
    talk.answer(there, "A")
    assert talk.model.flows.main[there.packet.tuple.reverse].rst
    talk.now += 1
    talk.answer(there, "A")
    talk.now += 241
    assert not talk.send(client("A")).opened


def test_N38_N101_a_RST_is_forgotten_also_by_who_only_answers(talk: Talk) -> None:
    """The caller speaks first each time; the answer that follows at once shows that the RST was forged."""
    there = talk.open(SYN)
    talk.answer(there, "R")
    talk.now += 1.5
    talk.send(client("A"))
    talk.now += 0.01
    talk.answer(there, "A")
    assert not talk.model.flows.main[there.packet.tuple.reverse].rst
    talk.now += 241
    assert not talk.send(client("A")).opened


def test_a_RST_ends_a_half_open_flow(talk: Talk) -> None:
    """Refused or given up: the next attempt is a new flow."""
    there = talk.send(SYN)
    assert talk.answer(there, "RA").packet.tuple == SYN.tuple.reverse
    assert talk.model.flows.half_open == {}
    talk.send(SYN)
    talk.send(client("R"))
    assert talk.model.flows.half_open == {}


def test_N39_one_FIN_is_half_a_close(talk: Talk) -> None:
    """With one the flow lives on for long, with both it is closing."""
    there = talk.open(SYN)
    talk.send(client("FA"))
    talk.now += 241
    assert not talk.send(client("A")).opened
    talk.answer(there, "FA")
    talk.now += 241
    assert talk.send(client("A")).opened


@pytest.mark.parametrize(
    ("protocol", "state"), [("UDP", State.NEW), ("UDP", State.ESTABLISHED), ("TCP", State.ESTABLISHED)]
)
@pytest.mark.parametrize("over", [False, True])
def test_N42_a_flow_is_over_at_its_timeout(talk: Talk, protocol: Protocol, state: State, over: bool) -> None:
    """Whoever collects it: N34, N36."""
    first, later = (SYN, client("A")) if protocol == "TCP" else (QUERY, QUERY)
    _ = talk.send(first) if state is State.NEW else talk.open(first)
    talk.now += TIMEOUTS[protocol, state] + (1 if over else -1)
    assert talk.send(later).opened == over


def test_N37_a_claim_that_nobody_answered_is_forgotten(talk: Talk) -> None:
    """What its backend sends then is its own."""
    there = talk.send(SYN)
    talk.now += 121
    late = talk.answer(there)
    assert late == Verdict("pass", answer_to(there.packet, "SA"), "stack")


def test_N37_what_was_never_answered_does_not_close() -> None:
    """Whatever stands in its way."""
    entry = Entry(SYN.tuple)
    found = [replace(entry, state=one).timeout(TIMEOUTS, closing=True) for one in (State.NEW, State.ESTABLISHED)]
    assert found == [120, 240]


def test_N34_to_N39_the_models_timeouts_are_the_kernels() -> None:
    """Stated twice on purpose; here is where they must agree."""
    assert {key: float(layout.timeout(key[0], layout.FlowState[key[1].name])) for key in TIMEOUTS} == TIMEOUTS


@BOTH
def test_N5_either_direction_refreshes_both_once_a_second(talk: Talk, first: Packet) -> None:
    """Within the second nothing is written but counts."""
    there = talk.open(first)
    began = talk.now
    talk.now += 0.9
    assert not talk.answer(there, "A").walked
    assert {one.last_seen for one in talk.model.flows.main.values()} == {began}
    talk.now += 0.2
    assert talk.answer(there, "A").walked
    assert {one.last_seen for one in talk.model.flows.main.values()} == {talk.now}


@BOTH
@pytest.mark.parametrize("lost", ["there", "back"])
def test_N5_a_half_that_is_gone_is_made_anew(talk: Talk, first: Packet, lost: str) -> None:
    """By the next packet of the other direction that looks."""
    there = talk.open(first)
    before = {key: one.to for key, one in talk.model.flows.main.items()}
    talk.model.flows.forget(first.tuple if lost == "there" else there.packet.tuple.reverse)
    talk.now += 2
    _ = talk.answer(there, "A") if lost == "there" else talk.send(replace(first, flags="A" if first is SYN else ""))
    assert {key: one.to for key, one in talk.model.flows.main.items()} == before
