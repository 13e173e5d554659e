"""An outside end is one inside end's, and stays so: towards every server, and where half of a mapping is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from frames import REDIRECT, Outcome, Packet, addresses, answer_to, packed, tcp, udp
from packetbed import Bed
from places import DEVICES, V4, V6, Places

from pydatapath.kernel.layout import LAYOUTS, PROTOCOLS, Family, Hook, MappingSide

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
HALVES = pytest.mark.parametrize("side", [MappingSide.INSIDE, MappingSide.OUTSIDE], ids=["inside", "outside"])


def sends(bed: Bed, pod: str, port: int, server: str, called: int = 53) -> Outcome:
    """A pod's datagram, as it leaves."""
    return bed.run(Hook.FROM_POD, udp(pod, port, server, called), device=DEVICES[pod])


def other_server(where: Places) -> str:
    """Another than FAR."""
    return where.FAR[:-1] + "8"


def is_answered(bed: Bed, there: Outcome, *ends: object) -> bool:
    """Whether the answer to what has left comes to these ends."""
    return addresses(bed.run(Hook.FROM_UPLINK, answer_to(there)))[2:] == ends


def lose(bed: Bed, side: MappingSide, address: str, port: int) -> None:
    """One half of a mapping goes, as a full LRU drops it."""
    family = Family.of(address)
    key = LAYOUTS[family].mapping_key.struct.pack(packed(address), port.to_bytes(2, "big"), PROTOCOLS["UDP"], side)
    bed.maps[f"mappings{family.suffix}"].delete(key)


# A port that is a pod's at one server, and the node's at another


@FAMILIES
def test_N1_N20_a_mapped_port_is_the_pods_at_every_server(masquerading: Bed, where: Places):
    """The node calls from it where the pod has not been yet, and leaves by another; then the pod calls there, too."""
    sends(masquerading, where.CLIENT, 5000, where.FAR)
    own = masquerading.run(Hook.TO_UPLINK, udp(where.UPLINK, 5000, other_server(where), 53))
    assert addresses(own)[0] == where.UPLINK
    assert addresses(own)[1] != 5000
    pods = sends(masquerading, where.CLIENT, 5000, other_server(where))
    assert (pods.verdict, addresses(pods)) == (REDIRECT, (where.UPLINK, 5000, other_server(where), 53))
    assert is_answered(masquerading, own, where.UPLINK, 5000)
    assert is_answered(masquerading, pods, where.CLIENT, 5000)


@FAMILIES
def test_N1_N20_where_its_port_is_the_nodes_already_a_pod_has_another_for_that_server(masquerading: Bed, where: Places):
    """For that one alone: no connection would be the worse deviation."""
    sends(masquerading, where.CLIENT, 5000, where.FAR)
    own = masquerading.run(Hook.TO_UPLINK, udp(where.UPLINK, 5000, other_server(where), 53))
    port = addresses(own)[1]
    assert addresses(sends(masquerading, where.SECOND, port, where.FAR))[1] == port
    there = sends(masquerading, where.SECOND, port, other_server(where))
    source, found, *_ = addresses(there)
    assert (there.verdict, source) == (REDIRECT, where.UPLINK)
    assert found not in {port, 5000}
    assert found % 2 == port % 2
    assert addresses(sends(masquerading, where.SECOND, port, other_server(where))) == addresses(there)
    assert is_answered(masquerading, own, where.UPLINK, 5000)
    assert is_answered(masquerading, there, where.SECOND, port)
    assert addresses(sends(masquerading, where.SECOND, port, where.FAR, 54))[1] == port


# Half of a mapping


@FAMILIES
@HALVES
@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_N5_a_lost_half_of_a_mapping_is_made_anew(masquerading: Bed, where: Places, side: MappingSide, answered: bool):
    """By the next packet of a flow of it, within a second; what the socket begins then goes by the same port (N1)."""
    sends(masquerading, where.CLIENT, 5000, where.FAR)
    there = sends(masquerading, where.BACKEND, 5000, where.FAR)
    port, before = addresses(there)[1], masquerading.mappings()
    assert port != 5000
    if answered:
        assert is_answered(masquerading, there, where.BACKEND, 5000)
    lose(masquerading, side, *((where.BACKEND, 5000) if side == MappingSide.INSIDE else (where.UPLINK, port)))
    assert len(masquerading.mappings()) == len(before) - 1
    masquerading.age(2)
    assert addresses(sends(masquerading, where.BACKEND, 5000, where.FAR)) == addresses(there)
    assert masquerading.mappings() == before
    assert addresses(sends(masquerading, where.BACKEND, 5000, other_server(where)))[1] == port


@FAMILIES
def test_N1_N5_nor_does_a_new_flow_take_another_port_then(masquerading: Bed, where: Places):
    """It makes the outside half anew itself, where it comes first."""
    sends(masquerading, where.CLIENT, 5000, where.FAR)
    port = addresses(sends(masquerading, where.BACKEND, 5000, where.FAR))[1]
    before = masquerading.mappings()
    lose(masquerading, MappingSide.OUTSIDE, where.UPLINK, port)
    assert addresses(sends(masquerading, where.BACKEND, 5000, other_server(where)))[1] == port
    assert masquerading.mappings() == before


@FAMILIES
def test_N3_N5_what_another_has_by_now_is_lost(masquerading: Bed, where: Places):
    """The half is another inside end's: the flow stays as it is, and what is new goes by another port."""
    sends(masquerading, where.CLIENT, 5000, where.FAR)
    there = sends(masquerading, where.BACKEND, 5000, where.FAR)
    port = addresses(there)[1]
    lose(masquerading, MappingSide.OUTSIDE, where.UPLINK, port)
    assert addresses(sends(masquerading, where.SECOND, port, other_server(where)))[1] == port
    masquerading.age(2)
    assert addresses(sends(masquerading, where.BACKEND, 5000, where.FAR)) == addresses(there)
    assert masquerading.mappings()[where.UPLINK, port, "UDP", MappingSide.OUTSIDE] == (where.SECOND, port)
    assert addresses(sends(masquerading, where.BACKEND, 5000, where.FAR, 54))[1] not in {port, 5000}


# Stamps of another CPU


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N3_N42_a_stamp_that_is_ahead_is_not_an_old_one(masquerading: Bed, where: Places, make: Callable[..., Packet]):
    """Another CPU has written it a moment later than this one has read its clock."""
    call = make(where.CLIENT, 5000, where.FAR, 80)
    there = masquerading.run(Hook.FROM_POD, call)
    masquerading.age(-10)
    masquerading.age_mappings(-10)
    other = masquerading.run(Hook.FROM_POD, make(where.BACKEND, 5000, where.FAR, 80), device="pod3")
    assert addresses(other)[1] != 5000
    masquerading.age(-10)
    assert is_answered(masquerading, there, where.CLIENT, 5000)
    masquerading.age(-10)
    again = masquerading.run(Hook.FROM_POD, call if make is udp else make(where.CLIENT, 5000, where.FAR, 80, "A"))
    assert addresses(again) == addresses(there)
    entry = masquerading.entry(call)
    assert entry is not None
    assert entry.packets == 2
