"""C8: what happens to flows whose backend is gone, by what is left of it: its place in the slices, its interface."""

from __future__ import annotations

import pytest
from frames import PASS, REDIRECT, TCP, addresses, tcp, udp
from packetbed import Bed
from places import V4, V6, Places, at

from pydatapath.kernel.layout import Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


def connect(bed: Bed, where: Places) -> None:
    """A connection through the service, quite open."""
    bed.establish(tcp(where.CLIENT, 40000, where.VIP, 80))


def remove(bed: Bed, where: Places) -> None:
    """Takes the backend out of the slices; another serves."""
    bed.serve({where.called("80/TCP"): [at(where.SECOND, 8080)]})


def data(where: Places):
    """The client's next segment."""
    return tcp(where.CLIENT, 40000, where.VIP, 80, "PA", payload=b"more")


@FAMILIES
def test_C8_a_backend_only_taken_from_the_slices_keeps_its_connections(bed: Bed, where: Places):
    """A control plane's mistake must not cut everybody."""
    connect(bed, where)
    remove(bed, where)
    for seconds in (0, 2, 100):
        bed.age(seconds)
        assert addresses(bed.run(Hook.FROM_POD, data(where)))[2] == where.BACKEND


@FAMILIES
@pytest.mark.parametrize("seconds", [0, 30], ids=["at once", "later"])
def test_C8_without_its_interface_the_next_packet_gets_a_reset(bed: Bed, where: Places, seconds: int):
    """Whether it comes within the second in which a flow is not looked at, or later; the flow is over then."""
    connect(bed, where)
    remove(bed, where)
    bed.kill(where.BACKEND)
    bed.age(seconds)
    outcome = bed.run(Hook.FROM_POD, data(where))
    segment = outcome.ip[TCP]
    assert outcome.verdict == REDIRECT
    assert addresses(outcome) == (where.VIP, 80, where.CLIENT, 40000)
    assert segment.flags == "R"
    assert bed.counted()["drop_pod_gone"] == 1
    assert bed.entries() == {}
    assert addresses(bed.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.VIP, 80)))[2] == where.SECOND


@FAMILIES
def test_C8_a_pod_that_is_still_in_the_slices_is_not_given_up(bed: Bed, where: Places):
    """Its interface may be made anew: the slices are what says that it is over."""
    connect(bed, where)
    bed.kill(where.BACKEND)
    assert addresses(bed.run(Hook.FROM_POD, data(where)))[2] == where.BACKEND


@FAMILIES
def test_C8_an_endpoint_that_load_has_forgotten_is_gone_too(bed: Bed, where: Places):
    """Nobody has the address, which is of this node's pods."""
    connect(bed, where)
    remove(bed, where)
    name = "endpoints6" if where is V6 else "endpoints"
    bed.maps[name].delete(
        next(key for key, _ in bed.maps[name].items() if bed.endpoint(where.BACKEND) and key.endswith(b"\3"))
    )
    assert bed.endpoint(where.BACKEND) is None
    assert bed.run(Hook.FROM_POD, data(where)).ip[TCP].flags == "R"


@FAMILIES
def test_C8_a_backend_elsewhere_keeps_its_connections(bed: Bed, where: Places):
    """Its own node answers for it."""
    there = bed.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.VIP, 81))
    bed.run(Hook.FROM_UPLINK, tcp(where.REMOTE, 8080, where.CLIENT, addresses(there)[1], "SA"))
    bed.serve({where.called("81/TCP"): [at(where.SECOND, 8080)]})
    next_one = tcp(where.CLIENT, 40000, where.VIP, 81, "PA", payload=b"more")
    assert addresses(bed.run(Hook.FROM_POD, next_one))[2] == where.REMOTE


@FAMILIES
def test_C8_who_is_no_backend_is_the_stacks_business(bed: Bed, where: Places):
    """The address of a pod that is gone may be another's by now, whose interface we have not seen yet."""
    bed.kill(where.SECOND)
    for packet in (tcp(where.FAR, 40000, where.SECOND, 8080), udp(where.FAR, 40000, where.SECOND, 53)):
        assert bed.run(Hook.FROM_UPLINK, packet).verdict == PASS


@FAMILIES
def test_C9_UDP_has_chosen_again_before(bed: Bed, where: Places):
    """Its next datagram goes to another backend, whatever has become of the old one's interface."""
    query = udp(where.CLIENT, 40000, where.VIP, 53)
    bed.establish(query)
    bed.kill(where.BACKEND)
    bed.serve({where.called("53/UDP"): [at(where.SECOND, 5353)]})
    assert addresses(bed.run(Hook.FROM_POD, query))[2] == where.SECOND
