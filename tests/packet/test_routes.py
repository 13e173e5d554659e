"""What the routing table says is kept for its jiffy: of the packets that it was said of, and of no other."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from frames import DROP, PASS, REDIRECT, addresses, tcp, udp
from packetbed import Bed
from places import V4, V6, Places, at
from programs import NAME

from pydatapath.kernel import clock
from pydatapath.kernel.layout import Hook

NARROW = 1280  # IPv6's least (RFC 8200 5)
PAIRS = 40  # in some of them both packets have one jiffy

pytestmark = pytest.mark.same_everywhere
FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", "-n", NAME, *arguments], check=True)


@pytest.fixture
def narrow(bed: Bed, where: Places) -> Iterator[Bed]:
    """A service whose backend is elsewhere, behind a link that is narrower than the pods'."""
    bed.serve({where.called("53/UDP"): [at(where.REMOTE, 53)]})
    ip("link", "set", "uplink", "mtu", str(NARROW))
    yield bed
    ip("link", "set", "uplink", "mtu", "1500")


@FAMILIES
@pytest.mark.parametrize("first", ["small", "large"])
def test_N71_what_is_too_long_for_the_link_is_the_stacks_whatever_went_before(narrow: Bed, where: Places, first: str):
    """The stack tells its sender; what is short enough goes past it, also where the long one has come first."""
    small, large = (udp(where.CLIENT, 40000, where.VIP, 53, payload=bytes(size)) for size in (64, NARROW))
    packets = ((small, REDIRECT), (large, PASS))
    for _ in range(PAIRS):
        for packet, verdict in packets if first == "small" else reversed(packets):
            assert narrow.run(Hook.FROM_POD, packet).verdict == verdict


@pytest.fixture
def narrow_outside(masquerading: Bed, where: Places) -> Iterator[Bed]:
    """Who is masqueraded leaves by a link that is narrower than the pods'."""
    ip("link", "set", "uplink", "mtu", str(NARROW))
    yield masquerading
    ip("link", "set", "uplink", "mtu", "1500")


@FAMILIES
def test_N71_what_is_masqueraded_and_too_long_is_the_stacks_as_it_came(narrow_outside: Bed, where: Places):
    """It tells the pod, or cuts it up, which of the node's own address it would not; what leaves is translated then."""
    small, large = (udp(where.CLIENT, 40000, where.FAR, 53, payload=bytes(size)) for size in (64, NARROW))
    assert addresses(narrow_outside.run(Hook.FROM_POD, small))[0] == where.UPLINK
    for _ in range(3):
        passed = narrow_outside.run(Hook.FROM_POD, large)
        assert (passed.verdict, passed.packet) == (PASS, bytes(large))
        assert addresses(narrow_outside.run(Hook.TO_UPLINK, large)) == (where.UPLINK, 40000, where.FAR, 53)


@FAMILIES
@pytest.mark.parametrize(("size", "verdict"), [(1000, REDIRECT), (NARROW, PASS)], ids=["fit", "do not"])
def test_N71_segments_that_are_cut_later_are_as_long_as_they_will_be(
    narrow_outside: Bed, where: Places, size: int, verdict: int
):
    """What a pod hands over at once is no packet yet (GSO): asked is whether what it is cut into fits."""
    call = tcp(where.CLIENT, 40000, where.FAR, 80)
    narrow_outside.establish(call)
    data = tcp(where.CLIENT, 40000, where.FAR, 80, "A", payload=bytes(2 * NARROW))
    for _ in range(2):
        assert narrow_outside.run(Hook.FROM_POD, data, gso=(2, size)).verdict == verdict


@FAMILIES
def test_N71_what_is_too_long_and_is_the_nodes_on_its_way_to_another_address_is_dropped_by_name(
    narrow_outside: Bed, where: Places
):
    """A service whose backend is outside: as it came it would go elsewhere, and as it is to be Linux takes none in."""
    narrow_outside.serve({where.called("53/UDP"): [at(where.FAR, 53)]})
    small, large = (udp(where.CLIENT, 40000, where.VIP, 53, payload=bytes(size)) for size in (64, NARROW))
    assert addresses(narrow_outside.run(Hook.FROM_POD, small))[0] == where.UPLINK
    assert narrow_outside.run(Hook.FROM_POD, large).verdict == DROP
    assert narrow_outside.counted()["drop_no_route"] == 1


@FAMILIES
def test_what_has_no_known_way_is_the_stacks_translated_where_it_takes_that(bed: Bed, where: Places):
    """A pod's answer under an address that is not the host's: the stack may know a way that programs do not."""
    balancer = where.FAR[:-1] + "7"
    bed.serve({where.called("53/UDP", balancer): [at(where.BACKEND, 53)]})
    there = bed.run(Hook.FROM_UPLINK, udp(where.NOWHERE, 40000, balancer, 53))
    back = bed.answer(there)
    assert back.verdict == PASS
    assert addresses(back) == (balancer, 53, where.NOWHERE, 40000)


@FAMILIES
def test_a_route_that_is_taken_away_is_not_gone_by_later(bed: Bed, where: Places):
    """A change waits for the end of the jiffy, and no longer."""
    bed.serve({where.called("53/UDP"): [at(where.REMOTE, 53)]})
    query = udp(where.CLIENT, 40000, where.VIP, 53)
    assert bed.run(Hook.FROM_POD, query).verdict == REDIRECT
    ip("route", "add", "unreachable", where.REMOTE)
    time.sleep(2 / clock.HZ)
    try:
        assert bed.run(Hook.FROM_POD, query).verdict == PASS
    finally:
        ip("route", "del", "unreachable", where.REMOTE)
    time.sleep(2 / clock.HZ)
    assert bed.run(Hook.FROM_POD, query).verdict == REDIRECT
