"""SCTP (S18, N82): addresses and ports change, and the CRC32c with the ports."""

from __future__ import annotations

import pytest
from frames import DROP, PASS, REDIRECT, SCTP, Ether, Packet, addresses, leaves, reverse, sctp
from packetbed import Bed
from places import MAC, V4, V6, Places, at

from pydatapath.kernel.layout import Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


@pytest.fixture
def serving(bed: Bed) -> Bed:
    """Services by SCTP: one at the port of its backend, one at another, one without any; and one by TCP."""
    services = {}
    for where in (V4, V6):
        services |= {
            where.called("3868/SCTP"): [at(where.BACKEND, 3868)],
            where.called("2905/SCTP"): [at(where.BACKEND, 7777)],
            where.called("9/SCTP"): [],
            where.called("80/TCP"): [at(where.BACKEND, 8080)],
        }
    bed.serve(services)
    return bed


@FAMILIES
@pytest.mark.parametrize(("called", "listens"), [(3868, 3868), (2905, 7777)], ids=["same port", "another port"])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1000, 1400])
def test_S18_N82_there_and_back(serving: Bed, where: Places, called: int, listens: int, size: int):
    """Each packet leaves with the CRC that scapy makes of it, whatever its length."""
    packet = sctp(where.CLIENT, 40000, where.VIP, called, payload=(bytes(range(256)) * 6)[:size])
    there = serving.run(Hook.FROM_POD, packet)
    assert there.verdict == REDIRECT
    assert there.packet == bytes(leaves(packet, dst=where.BACKEND, dport=listens, mac=MAC[where.BACKEND]))
    back = serving.answer(there)
    assert addresses(back) == reverse(addresses(packet))
    again = Ether(back.packet)
    del again[SCTP].chksum
    assert bytes(again) == back.packet


@FAMILIES
def test_N82_a_checksum_that_is_not_made_yet_stays(serving: Bed, where: Places):
    """0 stands for it in a packet of a local socket, whose CRC is made when it leaves the machine."""
    packet = sctp(where.CLIENT, 40000, where.VIP, 2905)
    packet[SCTP].chksum = 0
    there = serving.run(Hook.FROM_POD, bytes(packet))
    assert there.ip[SCTP].chksum == 0
    assert addresses(there) == (where.CLIENT, 40000, where.BACKEND, 7777)


@FAMILIES
def test_C8_an_association_goes_on_without_its_backend(serving: Bed, where: Places):
    """As a TCP connection does, and not as UDP's next datagram, which chooses again."""
    packet = sctp(where.CLIENT, 40000, where.VIP, 3868)
    serving.answer(serving.run(Hook.FROM_POD, packet))
    serving.serve({where.called("3868/SCTP"): [at(where.SECOND, 3868)]})
    assert addresses(serving.run(Hook.FROM_POD, packet))[2] == where.BACKEND
    assert addresses(serving.run(Hook.FROM_POD, sctp(where.CLIENT, 40001, where.VIP, 3868)))[2] == where.SECOND


@FAMILIES
def test_S41_it_is_refused_by_ICMP(serving: Bed, where: Places):
    """C2: port unreachable, since there is no RST that everybody would believe."""
    outcome = serving.run(Hook.FROM_POD, sctp(where.CLIENT, 40000, where.VIP, 9))
    icmp = outcome.ip.payload
    assert (outcome.verdict, icmp.type, icmp.code) == (REDIRECT, *((1, 4) if where is V6 else (3, 3)))


@FAMILIES
def test_S14_it_is_a_port_of_its_own(serving: Bed, where: Places):
    """TCP's number is not SCTP's."""
    assert serving.run(Hook.FROM_POD, sctp(where.CLIENT, 40000, where.VIP, 80)).ip.payload.type in (1, 3)


@FAMILIES
def test_N82_a_flow_that_is_idle_is_over_after_210_seconds(serving: Bed, where: Places):
    """Netfilter's time, in which seven heartbeats fit."""
    packet = sctp(where.CLIENT, 40000, where.VIP, 3868)
    serving.answer(serving.run(Hook.FROM_POD, packet))
    serving.serve({where.called("3868/SCTP"): [at(where.SECOND, 3868)]})
    serving.age(200)
    assert addresses(serving.run(Hook.FROM_POD, packet))[2] == where.BACKEND
    serving.age(220)
    assert addresses(serving.run(Hook.FROM_POD, packet))[2] == where.SECOND


@FAMILIES
def test_cut_headers_are_the_stacks(serving: Bed, where: Places):
    """Fewer than 12 bytes are no SCTP."""
    packet: Packet = sctp(where.CLIENT, 40000, where.VIP, 3868, payload=b"")
    short = bytes(packet)[:-4]
    assert serving.run(Hook.FROM_POD, short).verdict in (PASS, DROP)
    assert serving.entries("half_open") == {}


def init(where: Places, called: int, *, tag: int = 0) -> Packet:
    """An INIT chunk, which opens an association (RFC 9260 3.3.2)."""
    packet = sctp(where.CLIENT, 40000, where.VIP, called, payload=b"\1\0\0\x14" + bytes(16))
    packet[SCTP].tag = tag
    return Ether(bytes(packet))


@FAMILIES
def test_N82_N102_an_INIT_on_an_association_whose_backend_is_gone_begins_anew(serving: Bed, where: Places):
    """As a SYN does: Diameter's peers try again from the same port, and would stay with a dead backend for ever."""
    serving.answer(serving.run(Hook.FROM_POD, init(where, 3868)))
    serving.serve({where.called("3868/SCTP"): [at(where.SECOND, 3868)]})
    assert addresses(serving.run(Hook.FROM_POD, init(where, 3868, tag=7)))[2] == where.BACKEND  # no INIT is under a tag
    assert addresses(serving.run(Hook.FROM_POD, init(where, 3868)))[2] == where.SECOND


@FAMILIES
def test_N102_an_INIT_on_a_live_association_stays_with_it(serving: Bed, where: Places):
    """A peer that has restarted is known by its ports (RFC 9260 5.2)."""
    there = serving.run(Hook.FROM_POD, init(where, 3868))
    serving.answer(there)
    serving.serve({where.called("3868/SCTP"): [at(where.BACKEND, 3868), at(where.SECOND, 3868)]})
    for _ in range(3):
        assert addresses(serving.run(Hook.FROM_POD, init(where, 3868)))[2] == where.BACKEND
