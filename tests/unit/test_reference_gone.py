"""Backends that go, on the model: what becomes of the flows that they have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talking import (
    BACKEND,
    CLIENT,
    DNS,
    DNS_TWO,
    FAR,
    FIRST,
    NAMES,
    OTHER,
    OUTSIDE,
    QUERY,
    SECOND,
    SYN,
    VIP,
    WEB,
    Talk,
    client,
)

from pydatapath.reference import Hook, Packet, Service, Verdict


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.mark.parametrize("ended", ["RST", "FINs", "the backend is gone"])
def test_N102_a_SYN_on_what_is_over_chooses_anew(talk: Talk, ended: str) -> None:
    """On a live connection it chooses nothing."""
    there = talk.open(SYN)
    assert talk.goes_to(SYN) == BACKEND
    if ended == "the backend is gone":
        talk.serve(WEB, OTHER)
    else:
        talk.serve(WEB, OTHER, FIRST)
        for flags in ["R"] if ended == "RST" else ["FA"]:
            talk.send(client(flags))
            talk.answer(there, flags)
    assert talk.goes_to(SYN, OTHER) == SECOND


def test_C8_S88_a_connection_stays_with_a_backend_that_is_gone(talk: Talk) -> None:
    """Both ways; and so does one whose service was deleted (S89)."""
    there = talk.open(SYN)
    talk.serve(WEB, OTHER)
    talk.now += 2
    assert talk.goes_to(client("A")) == BACKEND
    talk.model.world = replace(talk.model.world, services={})
    assert talk.answer(there, "A").packet.tuple == SYN.tuple.reverse


@pytest.mark.parametrize("answered", [True, False])
def test_C9_N105_a_datagram_chooses_again_at_once(talk: Talk, answered: bool) -> None:
    """Within the second, too; nothing of the old flow is left."""
    there = talk.open(QUERY) if answered else talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    assert talk.goes_to(QUERY) == SECOND
    assert there.packet.tuple.reverse not in {**talk.model.flows.main, **talk.model.flows.half_open}


def test_C9_datagrams_end_with_their_service(talk: Talk) -> None:
    """Nobody is left: the next one is refused and the flow is over."""
    talk.open(QUERY)
    talk.serve(NAMES)
    assert talk.send(QUERY).reason == "drop_no_backend"
    assert talk.model.flows.main == {}


def test_C9_another_backend_at_the_same_place_is_another(talk: Talk) -> None:
    """Its generation tells."""
    talk.open(QUERY)
    talk.serve(NAMES, replace(DNS, generation=2))
    assert talk.send(QUERY).opened


def test_C9_a_late_answer_is_still_the_services(talk: Talk) -> None:
    """It is the caller's next packet that chooses again."""
    there = talk.send(QUERY)
    talk.serve(NAMES, DNS_TWO)
    assert talk.answer(there).packet.tuple == QUERY.tuple.reverse


def test_S94_a_draining_backend_keeps_its_datagrams(talk: Talk) -> None:
    """Until it serves no more."""
    talk.open(QUERY)
    talk.serve(NAMES, DNS_TWO)
    talk.model.world = replace(talk.model.world, draining=frozenset({DNS}))
    assert talk.goes_to(QUERY) == BACKEND


# The pod is gone, too

INIT = Packet(CLIENT, 40000, VIP, 80, "SCTP")


@pytest.mark.parametrize("first", [SYN, INIT], ids=["TCP", "SCTP"])
@pytest.mark.parametrize("later", [0, 2], ids=["at once", "later"])
def test_C8_a_connection_to_a_pod_that_is_gone_is_refused(talk: Talk, first: Packet, later: float) -> None:
    """By its next packet, within the second, too. Nothing of it is left, and the caller may begin again."""
    at = first.tuple.called
    talk.put(at, Service.for_all(3, replace(FIRST, number=9)))
    talk.open(first)
    talk.serve(at, OTHER)
    talk.kill("pod3")
    talk.now += later
    data = replace(first, flags="A" if first is SYN else "")
    assert talk.send(data) == Verdict("drop", data, reason="drop_pod_gone", refused=True)
    assert talk.model.flows.main == talk.model.flows.half_open == {}
    assert talk.goes_to(first) == SECOND


def test_C8_an_address_of_this_node_that_no_pod_has_is_a_pod_that_is_gone(talk: Talk) -> None:
    """Where the pod was is not known any more."""
    talk.open(SYN)
    talk.model.world = replace(talk.model.world, endpoints={CLIENT: "pod2"}, services={})
    assert talk.send(client("A")).reason == "drop_pod_gone"


@pytest.mark.parametrize("why", ["its interface is there", "it is elsewhere", "it is in its service"])
def test_C8_a_connection_goes_on_while_its_pod_may_be_there(talk: Talk, why: str) -> None:
    """A control plane's mistake must not cut everybody; nor does what it does not know yet."""
    backend = FAR if why == "it is elsewhere" else FIRST
    talk.serve(WEB, backend)
    talk.open(SYN)
    if why == "it is in its service":
        talk.kill("pod3")
    else:
        talk.serve(WEB, OTHER)
    assert talk.goes_to(client("A")) == backend.address


def test_C8_what_a_gone_backend_has_sent_still_arrives(talk: Talk) -> None:
    """It is the caller's packet that is refused."""
    there = talk.open(SYN)
    talk.serve(WEB, OTHER)
    talk.kill("pod3")
    talk.now += 2
    assert talk.answer(there, "FA").packet.tuple == SYN.tuple.reverse


def test_C8_C2_a_reset_is_not_answered(talk: Talk) -> None:
    """It ends the flow, and goes nowhere."""
    talk.open(SYN)
    talk.serve(WEB, OTHER)
    talk.kill("pod3")
    assert talk.send(client("R")) == Verdict("drop", client("R"), reason="drop_pod_gone")


def test_C9_datagrams_choose_again_before_anybody_is_refused(talk: Talk) -> None:
    """There may be another backend."""
    talk.open(QUERY)
    talk.serve(NAMES, DNS_TWO)
    talk.kill("pod3")
    assert talk.goes_to(QUERY) == SECOND


def test_C8_who_calls_no_service_is_the_stacks_business(talk: Talk) -> None:
    """The address of a pod that is gone may be another's by now, whose interface nobody has told of yet."""
    talk.kill("pod3")
    assert talk.send(Packet(OUTSIDE, 40000, BACKEND, 22, flags="S"), Hook.FROM_UPLINK).kind == "pass"
