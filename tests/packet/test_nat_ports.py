"""Where ports outside are few: nearly all are found (N22), and who finds none is told (N23)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from frames import (
    DROP,
    ICMP,
    REDIRECT,
    Ether,
    Outcome,
    Packet,
    Raw,
    addresses,
    answer_to,
    frame,
    pack_tuple,
    packed,
    sctp,
    tcp,
    udp,
)
from packetbed import Bed
from places import V4, V6, Places
from programs import NAME, masquerading_bed
from scapy.layers.inet6 import ICMPv6EchoRequest

from pydatapath.kernel import compile, netns
from pydatapath.kernel.layout import LAYOUTS, PROTOCOLS, Family, Hook, MappingSide

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
PORTS = range(20_000, 20_200)
TIMES = 100 if "PYDATAPATH_EMULATED" in os.environ else 400
SIDES = (MappingSide.INSIDE, MappingSide.OUTSIDE)


@pytest.fixture(scope="module")
def loaded_narrow(namespace: dict[str, int], keep: Callable[[], AbstractContextManager[None]]) -> Iterator[Bed]:
    """The programs with masquerading, which have few ports to give."""
    how = compile.Masquerade(ports=(PORTS[0], PORTS[-1]))
    with masquerading_bed(namespace, keep, "narrow", how) as made:
        yield made


@pytest.fixture
def narrow(loaded_narrow: Bed) -> Iterator[Bed]:
    """As `masquerading`, with few ports."""
    with netns.entered(netns.path_of(NAME)):
        loaded_narrow.reset()
        yield loaded_narrow


def echo(source: str, port: int, destination: str, _: int = 0) -> Packet:
    """A query, whose identifier is its port."""
    return frame(source, destination) / (
        ICMPv6EchoRequest(id=port) if ":" in source else ICMP(id=port) / Raw(b"12345678")
    )


MAKE = pytest.mark.parametrize("make", [tcp, udp, sctp, echo], ids=["TCP", "UDP", "SCTP", "ping"])


def fill(bed: Bed, where: Places, make: Callable[..., Packet], ports: range) -> list[Outcome]:
    """CLIENT takes these ports, which it has itself; as they leave."""
    return [bed.run(Hook.FROM_POD, make(where.CLIENT, port, where.FAR, 80)) for port in ports]


def forget(bed: Bed, there: Outcome, where: Places) -> None:
    """The flow that BACKEND's call from port 5000 began, and its mapping; by its own port both are known, too."""
    suffix, layout = ("6", LAYOUTS[Family.IPV6]) if where is V6 else ("", LAYOUTS[Family.IPV4])
    outside, port, far, called = addresses(there)
    number = PROTOCOLS[type(there.ip.payload).__name__]
    for ends in ((where.BACKEND, 5000, far, called), (far, called, outside, port)):
        bed.maps[f"half_open{suffix}"].delete(pack_tuple(number, *ends))
    for side, (address, own) in enumerate([(where.BACKEND, 5000), (outside, port)]):
        key = layout.mapping_key.struct.pack(packed(address), own.to_bytes(2, "big"), number, SIDES[side])
        bed.maps[f"mappings{suffix}"].delete(key)


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N22_of_ten_ports_one_is_free_and_found(narrow: Bed, where: Places, make: Callable[..., Packet]):
    """96 tries: of ten thousand calls one finds none, of these two or more once in ten thousand runs."""
    taken = len(PORTS) * 9 // 10
    fill(narrow, where, make, PORTS[:taken])
    fill(narrow, where, make, range(5000, 5001))
    call, found = bytes(make(where.BACKEND, 5000, where.FAR, 80)), []
    for _ in range(TIMES):
        there = narrow.run(Hook.FROM_POD, call, device="pod3")
        if addresses(there)[0] == where.UPLINK:
            found.append(addresses(there)[1])
            forget(narrow, there, where)
    assert TIMES - len(found) <= 1
    assert set(found) == set(PORTS[taken::2])


@FAMILIES
@MAKE
def test_N23_who_finds_no_port_is_told(narrow: Bed, where: Places, make: Callable[..., Packet]):
    """Communication administratively prohibited, of the server (RFC 5508 REQ-8); nobody else is harmed."""
    held = fill(narrow, where, make, PORTS)
    fill(narrow, where, make, range(5000, 5001))
    call = make(where.BACKEND, 5000, where.FAR, 80)
    told = narrow.run(Hook.FROM_POD, call, device="pod3")
    assert (told.verdict, told.ip.src, told.ip.dst) == (REDIRECT, where.FAR, where.BACKEND)
    error = told.ip.payload
    assert (error.type, error.code) == ((1, 1) if where is V6 else (3, 13))
    header = 40 if where is V6 else 20
    assert told.packet[14 + header + 8 :] == bytes(call)[14 : 14 + header + 8]
    again = Ether(told.packet)
    again.payload.payload.delfieldval("cksum" if where is V6 else "chksum")
    assert bytes(again) == told.packet
    assert narrow.counted()["drop_ports_taken"] == 1
    if make is not echo:
        back = narrow.run(Hook.FROM_UPLINK, answer_to(held[7]))
        assert addresses(back) == (where.FAR, 80, where.CLIENT, PORTS[7])
    if make is tcp:
        elsewhere = narrow.run(Hook.FROM_POD, tcp(where.BACKEND, 5000, where.FAR, 81), device="pod3")
        assert addresses(elsewhere)[:2] == (where.UPLINK, 5000)


@FAMILIES
def test_N23_at_the_uplink_too(narrow: Bed, where: Places):
    """What the stack sends out for a pod: the error goes up to it, which knows the way to the pod."""
    fill(narrow, where, udp, PORTS)
    fill(narrow, where, udp, range(5000, 5001))
    told = narrow.run(Hook.TO_UPLINK, udp(where.BACKEND, 5000, where.FAR, 80))
    assert (told.verdict, told.ip.src, told.ip.dst) == (REDIRECT, where.FAR, where.BACKEND)


@FAMILIES
def test_N23_not_in_the_middle_of_a_connection_nor_without_limit(narrow: Bed, where: Places):
    """Which is no new one; and all answers together have a limit. Each drop has its one name."""
    fill(narrow, where, tcp, PORTS)
    fill(narrow, where, tcp, range(5000, 5001))
    middle = tcp(where.BACKEND, 5000, where.FAR, 80, "A")
    assert narrow.run(Hook.FROM_POD, middle, device="pod3").verdict == DROP
    narrow.run(Hook.FROM_POD, tcp(where.BACKEND, 5000, where.FAR, 80), device="pod3")
    narrow.spend_answers(1_000_000)
    limited = narrow.run(Hook.FROM_POD, tcp(where.BACKEND, 5000, where.FAR, 80), device="pod3")
    assert limited.verdict == DROP
    assert narrow.counted()["drop_ports_taken"] == 3
    assert "drop_answer_limit" not in narrow.counted()
