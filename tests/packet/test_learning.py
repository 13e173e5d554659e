"""Endpoints are learned as a bridge learns: whoever sends from a pod's interface is to be found there."""

from __future__ import annotations

import pytest
from frames import IP, PASS, Ether, Packet, Raw, addresses, tcp, udp
from packetbed import Bed, Case, ids
from places import BACKEND, CLIENT, MAC, NODE, OUTSIDE, VIP
from scapy.layers.l2 import ARP

from pydatapath.kernel.layout import EndpointKind, Hook

NEW, NEW_MAC = "10.1.0.99", "02:00:00:00:00:99"
FROM_NEW = Ether(src=NEW_MAC, dst=MAC[NODE])


def learned(bed: Bed, packet: Packet, hook: Hook = Hook.FROM_POD, address: str = NEW) -> tuple[int, str, int] | None:
    """Who answers to the address once the packet has come in."""
    bed.run(hook, packet)
    return bed.endpoint(address)


@pytest.mark.parametrize(
    "row",
    [
        Case("an ARP request", FROM_NEW / ARP(op=1, psrc=NEW, hwsrc=NEW_MAC, pdst=NODE)),
        Case("an ARP reply", FROM_NEW / ARP(op=2, psrc=NEW, hwsrc=NEW_MAC, pdst=NODE)),
        Case("a gratuitous ARP", Ether(src=NEW_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc=NEW, pdst=NEW)),
        Case("TCP to a service", tcp(NEW, 1, VIP, 80)),
        Case("UDP to the world", udp(NEW, 1, OUTSIDE, 53)),
        Case("TCP to another pod", tcp(NEW, 1, BACKEND, 22)),
    ],
    ids=ids,
)
def test_a_pod_is_learned(bed: Bed, row: Case):
    """Its address, interface and MAC, from the first ARP or IP packet that it sends."""
    assert bed.endpoint(NEW) is None
    row.packet[Ether].src = NEW_MAC
    assert learned(bed, row.packet) == (bed.devices["pod2"], NEW_MAC, EndpointKind.POD)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_who_only_ever_answers_is_learned(bed: Bed, protocol: str):
    """One of a pod's addresses may never call: by its first answer, TCP's without a walk; the next goes there."""
    one, flags = (tcp, {"flags": "SA"}) if protocol == "TCP" else (udp, {})
    bed.serve({f"{VIP}:80/{protocol}": [f"{NEW}:8080"]})
    calling = one(CLIENT, 40000, VIP, 80)
    assert Ether(bed.run(Hook.FROM_POD, calling).packet).dst != NEW_MAC
    answer = one(NEW, 8080, CLIENT, 40000, **flags)
    answer[Ether].src = NEW_MAC
    back = bed.run(Hook.FROM_POD, answer, device="pod3")
    assert (addresses(back), back.walked) == ((VIP, 80, CLIENT, 40000), protocol == "UDP")
    assert bed.endpoint(NEW) == (bed.devices["pod3"], NEW_MAC, EndpointKind.POD)
    assert Ether(bed.run(Hook.FROM_POD, calling).packet).dst == NEW_MAC


def test_a_live_flow_teaches_nothing(bed: Bed):
    """Nor by the walk that it meets each second: of a pod that ends it may come late, when another has the address."""
    bed.serve({f"{VIP}:53/UDP": [f"{NEW}:8080"]})
    bed.run(Hook.FROM_POD, udp(CLIENT, 40000, VIP, 53))
    answer = udp(NEW, 8080, CLIENT, 40000)
    answer[Ether].src = NEW_MAC
    seen = []
    for device, seconds in (("pod3", 0), ("pod4", 0), ("pod4", 1)):
        bed.age(seconds)
        bed.run(Hook.FROM_POD, answer, device=device)
        seen.append(bed.endpoint(NEW))
    assert seen == [(bed.devices["pod3"], NEW_MAC, EndpointKind.POD)] * 3


def test_who_begins_anew_is_learned(bed: Bed):
    """A flow that is over is no live one, though it stands in its table."""
    bed.serve({f"{VIP}:53/UDP": [f"{BACKEND}:8080"]})
    call = udp(NEW, 40000, VIP, 53)
    bed.establish(call)
    bed.age(1000)
    call[Ether].src = NEW_MAC
    bed.run(Hook.FROM_POD, call, device="pod4")
    assert bed.endpoint(NEW) == (bed.devices["pod4"], NEW_MAC, EndpointKind.POD)


def test_ARP_passes_as_it_came(bed: Bed):
    """Learning changes nothing about the packet."""
    packet = FROM_NEW / ARP(psrc=NEW, pdst=NODE)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


@pytest.mark.parametrize("hook", [Hook.FROM_UPLINK, Hook.TO_BRIDGE], ids=["the uplink", "the bridge"])
def test_nothing_is_learned_elsewhere(bed: Bed, hook: Hook):
    """A pod's address in a packet that did not come from a pod's interface says nothing."""
    assert learned(bed, tcp(NEW, 1, VIP, 80), hook) is None
    assert learned(bed, FROM_NEW / ARP(psrc=NEW, pdst=NODE), hook) is None


@pytest.mark.parametrize("address", [OUTSIDE, VIP, "10.1.1.1", "10.0.255.255", "10.1.255.255"])
def test_only_the_pod_network_is_learned(bed: Bed, address: str):
    """A pod cannot make itself the place of another network's address, a service's least of all."""
    assert learned(bed, tcp(address, 1, BACKEND, 80), address=address) is None
    assert learned(bed, FROM_NEW / ARP(psrc=address, pdst=NODE), address=address) is None


def test_the_nodes_own_address_is_never_taken(bed: Bed):
    """It lies in the pod network, at the bridge: no pod's ARP or packet moves it."""
    before = bed.endpoint(NODE)
    assert learned(bed, FROM_NEW / ARP(op=2, psrc=NODE, hwsrc=NEW_MAC, pdst=BACKEND), address=NODE) == before
    assert learned(bed, tcp(NODE, 1, VIP, 80), address=NODE) == before


def test_a_pod_that_moved_is_found_where_it_is(bed: Bed):
    """The last word counts: an interface, a MAC."""
    bed.run(Hook.FROM_POD, FROM_NEW / ARP(psrc=NEW, pdst=NODE))
    bed.run(Hook.FROM_POD, Ether(src="02:00:00:00:00:98") / ARP(psrc=NEW, pdst=NODE), device="pod4")
    assert bed.endpoint(NEW) == (bed.devices["pod4"], "02:00:00:00:00:98", EndpointKind.POD)


def test_what_was_learned_is_used(bed: Bed):
    """A backend that nobody knew is sent to the stack; once it has spoken, straight to its interface."""
    bed.serve({f"{VIP}:80/TCP": [f"{NEW}:8080"]})
    bed.run(Hook.FROM_POD, FROM_NEW / ARP(psrc=NEW, pdst=NODE), device="pod3")
    outcome = bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 80))
    assert addresses(outcome) == (CLIENT, 40000, NEW, 8080)
    assert Ether(outcome.packet).dst == NEW_MAC


@pytest.mark.parametrize("length", range(14, 14 + 28))
def test_a_cut_ARP_teaches_nothing_wrong(bed: Bed, length: int):
    """Either its sender is all there, or nothing is learned."""
    packet = bytes(FROM_NEW / ARP(psrc=NEW, pdst=NODE))[:length]
    before = bed.maps["endpoints"].lookup(bytes(4)), len(bed.maps["endpoints"])
    if length > 14:
        assert bed.run(Hook.FROM_POD, packet).packet == packet
    known = bed.endpoint(NEW) is not None
    assert known is (length >= 14 + 18)
    assert len(bed.maps["endpoints"]) == before[1] + known


def test_no_fragment_and_no_other_protocol_teaches(bed: Bed):
    """They are not looked into: the pod has said by ARP where it is before it could send them."""
    assert learned(bed, FROM_NEW / IP(src=NEW, dst=NODE, proto=47) / Raw(bytes(8))) is None
    assert learned(bed, FROM_NEW / IP(src=NEW, dst=NODE, proto=17, frag=3) / Raw(bytes(8))) is None
