"""What the routing table says is kept for its jiffy: of the packets that it was said of, and of no other."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from packetbed import PASS, REDIRECT, V4, V6, Bed, Hook, Places, at, udp
from programs import NAME

from pydatapath.kernel import clock

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
