"""The node at its own node ports: its packets go by the loopback interface (S46, S56)."""

from __future__ import annotations

import pytest
from frames import PASS, REDIRECT, Ether, Packet, addresses, leaves, reverse, tcp, udp
from packetbed import Bed, Serving
from places import MAC, V4, V6, Places, at

from pydatapath.kernel.layout import EndpointKind, Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
NO_MAC = "00:00:00:00:00:00"


@pytest.fixture
def serving(bed: Bed) -> Bed:
    """A node port at the uplink's address, to a pod here, one elsewhere, the node itself, and to nobody."""
    services = {}
    for where in (V4, V6):
        mine = where.UPLINK
        bed.put_endpoint(mine, bed.devices["br0"], MAC[where.NODE], EndpointKind.NODE)
        for port, backend in ((30080, [where.BACKEND]), (30081, [where.REMOTE]), (30082, [mine]), (30009, [])):
            backends = [at(address, 8080) for address in backend]
            services[where.called(f"{port}/TCP", mine)] = Serving(backends, kind="node-port")
        services[where.called("30053/UDP", mine)] = Serving([at(where.BACKEND, 5353)], kind="node-port")
    bed.serve(services)
    return bed


def from_node(make: object, where: Places, port: int, **more: object) -> Packet:
    """A packet as it is on the loopback interface: from the address that it is for, with no MAC."""
    packet = make(where.UPLINK, 40000, where.UPLINK, port, **more)  # type: ignore[operator]
    packet[Ether].src = packet[Ether].dst = NO_MAC
    return packet


@FAMILIES
@pytest.mark.parametrize(("make", "port", "listens"), [(tcp, 30080, 8080), (udp, 30053, 5353)], ids=["TCP", "UDP"])
def test_S46_there_and_back(serving: Bed, where: Places, make: object, port: int, listens: int):
    """The pod sees the node's address; the answer comes in by loopback, where such a source may."""
    packet = from_node(make, where, port)
    there = serving.run(Hook.TO_LOOPBACK, packet)
    assert there.verdict == REDIRECT
    assert there.packet == bytes(leaves(packet, dst=where.BACKEND, dport=listens, mac=MAC[where.BACKEND]))
    back = serving.answer(there)
    assert back.verdict == REDIRECT
    assert addresses(back) == reverse(addresses(packet))
    assert Ether(back.packet).dst == NO_MAC


@FAMILIES
def test_S46_a_backend_elsewhere(serving: Bed, where: Places):
    """From the node's own address, by the uplink, and back."""
    there = serving.run(Hook.TO_LOOPBACK, from_node(tcp, where, 30081))
    assert (there.verdict, addresses(there)) == (REDIRECT, (where.UPLINK, 40000, where.REMOTE, 8080))
    back = serving.run(Hook.FROM_UPLINK, tcp(where.REMOTE, 8080, where.UPLINK, 40000, "SA"))
    assert addresses(back) == (where.UPLINK, 30081, where.UPLINK, 40000)
    assert (back.verdict, Ether(back.packet).dst) == (REDIRECT, NO_MAC)


@FAMILIES
def test_S56_the_node_serves_itself(serving: Bed, where: Places):
    """Its server sees the services' next hop; the answer goes back to loopback."""
    there = serving.run(Hook.TO_LOOPBACK, from_node(tcp, where, 30082))
    source, sport, *_ = addresses(there)
    assert source not in (where.UPLINK, where.NODE)
    back = serving.run(Hook.TO_BRIDGE, tcp(where.UPLINK, 8080, source, sport, "SA"))
    assert addresses(back) == (where.UPLINK, 30082, where.UPLINK, 40000)
    assert (back.verdict, Ether(back.packet).dst) == (REDIRECT, NO_MAC)


@FAMILIES
def test_S41_nobody_serves(serving: Bed, where: Places):
    """Refused at once, as anybody would be."""
    outcome = serving.run(Hook.TO_LOOPBACK, from_node(tcp, where, 30009))
    assert (outcome.verdict, addresses(outcome)) == (REDIRECT, (where.UPLINK, 30009, where.UPLINK, 40000))


@FAMILIES
def test_what_calls_no_service_is_left_alone(serving: Bed, where: Places):
    """Neither entered nor walked: the loopback interface is everybody's."""
    own = "::1" if where is V6 else "127.0.0.1"
    for packet in (
        from_node(tcp, where, 8080),
        from_node(udp, where, 30080),
        tcp(own, 40000, own, 30080),
        tcp(where.UPLINK, 30080, where.UPLINK, 40000, "SA"),
    ):
        outcome = serving.run(Hook.TO_LOOPBACK, packet)
        assert (outcome.verdict, outcome.packet, outcome.walked) == (PASS, bytes(packet), False)
    assert serving.entries("half_open") == {}


@FAMILIES
@pytest.mark.parametrize("confirmed", [True, False])
def test_C8_S89_a_connection_outlives_its_service(serving: Bed, where: Places, confirmed: bool):
    """What is open goes on, by its flow, also what was answered just now; a new call finds nobody there but the node
    itself.
    """
    packet = from_node(tcp, where, 30080)
    serving.answer(serving.run(Hook.TO_LOOPBACK, packet))
    if confirmed:
        serving.confirm(packet, Hook.TO_LOOPBACK)
    serving.serve({})
    data = from_node(tcp, where, 30080, flags="PA", payload=b"more")
    assert addresses(serving.run(Hook.TO_LOOPBACK, data)) == (where.UPLINK, 40000, where.BACKEND, 8080)
    assert serving.run(Hook.TO_LOOPBACK, from_node(tcp, where, 30080)).verdict == PASS
