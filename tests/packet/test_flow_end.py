"""Flows that are ended by hand: both directions go, and what a program makes anew meanwhile goes, too."""

from __future__ import annotations

import pytest
from frames import answer_to, key_of, tcp, udp
from packetbed import Bed
from places import CLIENT, VIP

from pydatapath.kernel import flowtable
from pydatapath.kernel.layout import Hook

pytestmark = pytest.mark.same_everywhere

CALLS = {"TCP": tcp(CLIENT, 40000, VIP, 80), "UDP": udp(CLIENT, 40000, VIP, 53)}


@pytest.mark.parametrize("left", ["client's", "answer's"])
@pytest.mark.parametrize("protocol", CALLS)
def test_N5_a_half_that_a_program_makes_while_its_flow_is_ended_goes(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, protocol: str, left: str
):
    """The program had found one half before it was deleted. TCP's waits as two entries from its SYN-ACK on."""
    call = CALLS[protocol]
    there = bed.run(Hook.FROM_POD, call)
    answer = answer_to(there)
    if protocol == "TCP":
        bed.answer(there)
        bed.settle("half_open")
    half_open = bed.maps["half_open"]
    key = key_of(call if left == "client's" else answer)
    value = half_open.lookup(key)
    assert value is not None
    monkeypatch.setattr(flowtable, "wait_for_programs", lambda: half_open.update(key, value))
    flowtable.end_flows(bed.maps, flowtable.all_ends(bed.maps))
    assert bed.entries("half_open") == bed.entries() == {}


def test_a_claim_that_a_SYN_makes_while_its_flow_is_ended_stays(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    """It is no half: a SYN that nobody has answered yet is one entry, and its answer must find it."""
    bed.run(Hook.FROM_POD, CALLS["TCP"])
    monkeypatch.setattr(flowtable, "wait_for_programs", lambda: bed.run(Hook.FROM_POD, CALLS["TCP"]))
    flowtable.end_flows(bed.maps, flowtable.all_ends(bed.maps))
    assert len(bed.entries("half_open")) == 1
