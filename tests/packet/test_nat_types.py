"""The types of NAT (RFC 4787 4 and 5), told from outside as STUN does: how ports are mapped, and who is let in."""

from __future__ import annotations

import pytest
from packetbed import DROP, PASS, REDIRECT, V4, V6, Bed, Hook, Places, addresses, udp

from pydatapath.kernel.layout import NatType

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


def outside_ports(bed: Bed, where: Places) -> list[int]:
    """The ports by which one socket, whose own port is another pod's outside, talks to three places."""
    for target, port in ((where.FAR, 53), (where.FAR, 54), (where.FAR[:-1] + "8", 53)):
        bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, target, port))
    return [
        addresses(bed.run(Hook.FROM_POD, udp(where.BACKEND, 5000, target, port), device="pod3"))[1]
        for target, port in ((where.FAR, 53), (where.FAR, 54), (where.FAR[:-1] + "8", 53))
    ]


@FAMILIES
def test_N1_mapping(typed: tuple[NatType, Bed], where: Places):
    """Symmetric: a port for each place that is talked to. Else one for all."""
    type_, bed = typed
    ports = outside_ports(bed, where)
    assert 5000 not in ports
    assert len(set(ports)) == (3 if type_ is NatType.SYMMETRIC else 1)


@FAMILIES
def test_N10_N11_filtering(typed: tuple[NatType, Bed], where: Places):
    """Full cone: who has never been talked to reaches the pod, and is answered. Else not: dropped, or the stack's."""
    type_, bed = typed
    there = bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    assert addresses(there)[1] == 5000
    stranger = bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 9, where.UPLINK, 5000))
    if type_ is not NatType.FULL_CONE:
        assert stranger.verdict == (PASS if type_ is NatType.SYMMETRIC else DROP)
        return
    assert (stranger.verdict, addresses(stranger)) == (REDIRECT, (where.OUTSIDE, 9, where.CLIENT, 5000))
    answer = bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.OUTSIDE, 9))
    assert addresses(answer) == (where.UPLINK, 5000, where.OUTSIDE, 9)
    again = bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 9, where.UPLINK, 5000))
    assert addresses(again) == (where.OUTSIDE, 9, where.CLIENT, 5000)


@FAMILIES
def test_N12_what_comes_in_does_not_keep_a_mapping(typed: tuple[NatType, Bed], where: Places):
    """A stranger that goes on sending does not keep the door open for himself."""
    type_, bed = typed
    bed.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    if type_ is not NatType.FULL_CONE:
        return
    for _ in range(4):
        bed.age_mappings(100)
        bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 9, where.UPLINK, 5000))
    assert bed.run(Hook.FROM_UPLINK, udp(where.OUTSIDE, 10, where.UPLINK, 5000)).verdict == PASS
