"""Reading flows: tuples as people write them, the two directions of a flow, the clock's arithmetic."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydatapath.kernel import clock, tables
from pydatapath.kernel.flowtable import _reverse, unpack_tuple
from pydatapath.kernel.layout import PROTOCOLS, TUPLE
from pydatapath.plan import Address
from pydatapath.views import Flow, Tuple

CLIENT, VIP = ("10.244.1.11", 40000), ("10.96.0.10", 80)
BACKEND, NODE = ("10.244.1.12", 8080), ("10.244.1.1", 40000)
ports = st.integers(0, 65535)
addresses = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
unhurried = settings(deadline=None)  # a busy machine is no bug


def raw(source: tuple[str, int], destination: tuple[str, int], protocol: int = PROTOCOLS["TCP"]) -> bytes:
    """A struct tuple as packets carry it: network byte order."""
    (src, sport), (dst, dport) = source, destination
    packed = IPv4Address(src).packed, IPv4Address(dst).packed, sport.to_bytes(2, "big"), dport.to_bytes(2, "big")
    return TUPLE.pack(*packed, protocol)


def flow(original: Tuple, reply: Tuple) -> Flow:
    rest: dict[str, Any] = {"state": "new", "packets": (1, 0), "bytes": (60, 0), "idle": 0.0, "expires": 120.0}
    return Flow("TCP", original, reply, **rest)


def test_a_tuple_is_read_in_network_byte_order() -> None:
    """Addresses and ports arrive as they stand in packets and are shown as people write them."""
    found = unpack_tuple(bytes.fromhex("0af4010b 0a60000a 9c40 0050 06 000000"))
    assert found == Tuple("10.244.1.11", 40000, "10.96.0.10", 80)
    assert str(found) == "10.244.1.11:40000 > 10.96.0.10:80"


@settings(unhurried)
@given(addresses, ports, addresses, ports)
def test_any_tuple_is_read_back(source: str, sport: int, destination: str, dport: int) -> None:
    """What is packed is unpacked, whatever the numbers."""
    assert unpack_tuple(raw((source, sport), (destination, dport))) == Tuple(source, sport, destination, dport)


def test_the_other_direction_has_ends_exchanged() -> None:
    """A flow's other half has the reverse of the tuple that the packet leaves with, of the same protocol."""
    assert _reverse(raw(CLIENT, BACKEND, PROTOCOLS["UDP"])) == raw(BACKEND, CLIENT, PROTOCOLS["UDP"])


@settings(unhurried)
@given(st.binary(min_size=16, max_size=16))
def test_the_reverse_of_the_reverse_is_the_tuple(some: bytes) -> None:
    """So each of the two halves finds the other."""
    assert _reverse(_reverse(some)) == some


@pytest.mark.parametrize(
    ("reply", "nat"),
    [
        pytest.param((VIP, CLIENT), "none", id="plain"),
        pytest.param((BACKEND, CLIENT), "dnat", id="a service"),
        pytest.param((VIP, NODE), "snat", id="another source"),
        pytest.param((BACKEND, NODE), "both", id="hairpin"),
    ],
)
def test_what_is_translated_follows_from_the_tuples(reply: tuple[tuple[str, int], tuple[str, int]], nat: str) -> None:
    """The reply as the backend sends it, against the call as the client sends it."""
    (src, sport), (dst, dport) = reply
    assert flow(Tuple(*CLIENT, *VIP), Tuple(src, sport, dst, dport)).nat == nat


@pytest.mark.parametrize(
    ("then", "now", "ticks"),
    [
        pytest.param(1000, 1500, 500, id="plain"),
        pytest.param(1500, 1500, 0, id="just now"),
        pytest.param(1501, 1500, 0, id="seen after the clock was read"),
        pytest.param(0xFFFFFF00, 0x100, 0x200, id="32 bits are over in between, as five minutes after boot"),
        pytest.param((7 << 32) + 10, 30, 20, id="a stamp has 64 bits, the clock 32"),
        pytest.param(0, (1 << 31) - 1, (1 << 31) - 1, id="the longest span"),
    ],
)
def test_N43_age_is_right_where_the_clock_wraps(then: int, now: int, ticks: int) -> None:
    """Ticks of a monotonic clock, in seconds, never negative."""
    assert clock.age(then, now) == ticks / clock.HZ


def test_the_tick_is_one_of_those_that_kernels_have() -> None:
    """CONFIG_HZ, told by the resolution of the coarse clock."""
    assert clock.HZ in (100, 250, 300, 1000)


@settings(unhurried)
@given(addresses, ports, st.sampled_from(["TCP", "UDP"]))
def test_an_address_in_a_map_is_read_back(address: str, port: int, protocol: Any) -> None:
    """What a service is called at goes into the maps and comes out the same."""
    at = Address(address, port, protocol)
    assert tables.unpack_address(tables.pack_address(at)) == at


def test_numbers_that_were_never_given_are_read_first() -> None:
    """First those never used, then those that are gone, with their generation; never 0, nor one that drains (C12)."""
    one = Address("10.244.1.12", 8080, "TCP")
    states = [tables.BackendState(state) for state in (0, 1, 3, 0, 2, 3)]
    array = b"".join(
        tables._pack_backend(tables.LiveBackend(one, 10 * number, 1), state) for number, state in enumerate(states)
    )
    assert list(tables._free_backends(array)) == [(3, 30), (2, 20), (5, 50)]
    assert list(tables._numbers_in(array, tables.BackendState.ACTIVE)) == [1]
    drained = tables.LiveBackend(one, 40, 1, draining=True)
    assert list(tables._backends_in(array, tables.BackendState.DRAINING)) == [(4, drained)]
