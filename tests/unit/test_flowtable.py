"""Reading flows: tuples as people write them, the two directions of a flow, the clock's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydatapath.cli.flow import list_
from pydatapath.guarding import SourceRange
from pydatapath.kernel import clock, layout, packing, tables
from pydatapath.kernel.flowtable import Entry, _clients_of, _family, _paired, _protocol, _reverse, unpack_tuple, whole
from pydatapath.kernel.layout import LAYOUTS, MAPS, PROTOCOLS, Family, FlowFlag, FlowState
from pydatapath.kernel.maps import Maps
from pydatapath.plan import Address
from pydatapath.tracking import FlowFilter
from pydatapath.views import Flow, Tuple

CLIENT, VIP = ("10.244.1.11", 40000), ("10.96.0.10", 80)
BACKEND, NODE = ("10.244.1.12", 8080), ("10.244.1.1", 40000)
CLIENT6, BACKEND6 = ("fd00:10:244:1::b", 40000), ("fd00:10:244:1::c", 8080)
ports = st.integers(0, 65535)
fours = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
# A mapped address is IPv4's (RFC 4291 2.5.5.2): manifests with one are refused
sixes = st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda at: at.ipv4_mapped is None).map(str)
addresses = st.one_of(
    fours, sixes, st.sampled_from(["::", "::1", "2001:db8::1:0:0:1", "::1.2.3.4"]).map(IPv6Address).map(str)
)
pairs = st.one_of(st.tuples(fours, fours), st.tuples(sixes, sixes))
unhurried = settings(deadline=None)  # a busy machine is no bug


def raw(source: tuple[str, int], destination: tuple[str, int], protocol: int = PROTOCOLS["TCP"]) -> bytes:
    """A struct tuple as packets carry it: network byte order."""
    (src, sport), (dst, dport) = source, destination
    packed = ip_address(src).packed, ip_address(dst).packed, sport.to_bytes(2, "big"), dport.to_bytes(2, "big")
    return LAYOUTS[Family.of(src)].tuple.struct.pack(*packed, protocol)


def flow(original: Tuple, reply: Tuple) -> Flow:
    rest: dict[str, Any] = {"state": "new", "packets": (1, 0), "bytes": (60, 0), "idle": 0.0, "expires": 120.0}
    return Flow("TCP", original, reply, **rest)


def test_a_tuple_is_read_in_network_byte_order() -> None:
    """Addresses and ports arrive as they stand in packets and are shown as people write them."""
    found = unpack_tuple(bytes.fromhex("0af4010b 0a60000a 9c40 0050 06 000000"))
    assert found == Tuple("10.244.1.11", 40000, "10.96.0.10", 80)
    assert str(found) == "10.244.1.11:40000 > 10.96.0.10:80"


def test_an_IPv6_tuple_is_shown_with_brackets() -> None:
    """So that the port is told from the address; canonical, as manifests have it."""
    found = unpack_tuple(raw(CLIENT6, BACKEND6))
    assert found == Tuple("fd00:10:244:1::b", 40000, "fd00:10:244:1::c", 8080)
    assert str(found) == "[fd00:10:244:1::b]:40000 > [fd00:10:244:1::c]:8080"


@settings(unhurried)
@given(pairs, ports, ports, st.sampled_from(sorted(PROTOCOLS)))
def test_any_tuple_is_read_back(ends: tuple[str, str], sport: int, dport: int, protocol: str) -> None:
    """What is packed is unpacked, whatever the numbers; its size says the family."""
    source, destination = ends
    packed = raw((source, sport), (destination, dport), PROTOCOLS[protocol])
    assert unpack_tuple(packed) == Tuple(source, sport, destination, dport)
    assert (_family(packed), _protocol(packed)) == (Family.of(source), protocol)


@pytest.mark.parametrize(("client", "backend"), [(CLIENT, BACKEND), (CLIENT6, BACKEND6)], ids=["IPv4", "IPv6"])
def test_the_other_direction_has_ends_exchanged(client: tuple[str, int], backend: tuple[str, int]) -> None:
    """A flow's other half has the reverse of the tuple that the packet leaves with, of the same protocol."""
    assert _reverse(raw(client, backend, PROTOCOLS["UDP"])) == raw(backend, client, PROTOCOLS["UDP"])


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_only_TCPs_half_open_flows_are_their_claim_alone(protocol: str) -> None:
    """UDP's and SCTP's have both entries, so none is made up for the client."""
    key, to = raw(BACKEND6, CLIENT6, PROTOCOLS[protocol]), raw(("fd00:10:96::a", 80), CLIENT6, PROTOCOLS[protocol])
    claim = (to, 1, 2, 3, 4, 5, 0, int(FlowFlag.REPLY), bytes(4), bytes(4))
    expected = {_reverse(to): (_reverse(key), *claim[1:7], 0, bytes(4), bytes(4))} if protocol == "TCP" else {}
    assert _clients_of({key: claim}) == expected


def entry(to: bytes, flags: int = 0, packets: int = 3) -> Entry:
    """A struct flow, unpacked."""
    return (to, 1000, packets, 60 * packets, 7, 2, 1, int(flags), bytes(4), bytes(4), 0)


def both_directions(protocol: str = "TCP") -> dict[bytes, Entry]:
    """A flow of a service as it stands in the main table."""
    number = PROTOCOLS[protocol]
    call, there = raw(CLIENT, VIP, number), raw(CLIENT, BACKEND, number)
    return {call: entry(there), _reverse(there): entry(_reverse(call), FlowFlag.REPLY, packets=2)}


def test_a_flow_is_found_once_wherever_it_stands() -> None:
    """Also one that moves while the tables are read: it stands in both, and is answered."""
    main = both_directions()
    call, reply = main
    assert list(_paired({}, main)) == [(call, main[call], main[reply], True)]
    assert list(_paired({reply: main[reply]}, main)) == [(call, main[call], main[reply], True)]
    assert [(key, answered) for key, _, _, answered in _paired({reply: main[reply]}, {})] == [(call, False)]
    datagrams = both_directions("UDP")
    (call, original), (_, back) = datagrams.items()
    assert list(_paired(datagrams, {})) == [(call, original, back, False)]


def test_what_a_SYN_ACK_has_answered_shows_both_counts() -> None:
    """It waits as two entries; of one alone nobody knows what the client had sent."""
    answered = {
        key: (*one[:6], int(FlowState.ANSWERED), one[7] | FlowFlag.PAIRED, *one[8:])
        for key, one in both_directions().items()
    }
    (call, original), (key, reply) = answered.items()
    assert list(_paired(answered, {})) == [(call, original, reply, True)]
    assert [(found, made[2]) for found, made, *_ in _paired({key: reply}, {})] == [(call, 0)]


def test_an_answered_claim_that_is_alone_is_read_as_both_directions() -> None:
    """It has counted for its client; its own packet is the one SYN-ACK, whose bytes stand beside."""
    (_, original), (key, reply) = both_directions().items()
    alone = {key: (*reply[:2], 3, 150, *reply[4:6], int(FlowState.ANSWERED), int(FlowFlag.REPLY), *reply[8:10], 60)}
    (call, client), (answered, answer) = sorted(whole(alone).items(), key=lambda one: one[1][7] & 1)
    assert (answered, call) == (key, _reverse(reply[0]))
    assert (client[0], client[2:4], answer[2:4]) == (original[0], (3, 150), (1, 60))
    assert {one[6] for one in (client, answer)} == {FlowState.ANSWERED}
    assert (client[7], answer[7]) == (FlowFlag.PAIRED, FlowFlag.PAIRED | FlowFlag.REPLY)
    assert list(_paired(whole(alone), {})) == [(call, client, answer, True)]
    assert whole({key: reply}) == {key: reply}


@pytest.mark.parametrize("where", ["flows", "half_open"])
def test_N5_a_flow_whose_clients_half_is_lost_is_one_still(where: str) -> None:
    """The reply makes it anew, so it is listed, counted and flushed; nobody knows what the client had sent."""
    main = both_directions("UDP")
    (call, original), (key, reply) = main.items()
    left = {key: reply}
    ((found, made, answer, answered),) = _paired({}, left) if where == "flows" else _paired(left, {})
    assert (found, answer, answered) == (call, reply, where == "flows")
    assert made == (original[0], 1000, 0, 0, *original[4:])


def test_what_is_left_of_a_flow_whose_client_has_another_is_no_flow() -> None:
    """The client's tuple is the other one's, in whichever table."""
    old, new = both_directions("UDP"), entry(raw(CLIENT, (BACKEND[0], 9090), PROTOCOLS["UDP"]))
    call, reply = old
    for half_open, flows in (({call: new}, {reply: old[reply]}), ({}, {call: new, reply: old[reply]})):
        assert [(key, original) for key, original, *_ in _paired(half_open, flows)] == [(call, new)]


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (FlowFilter(), True),
        (FlowFilter(service="web"), True),
        (FlowFilter(service="default/web"), True),
        (FlowFilter(service="we"), False),
        (FlowFilter(service="shop/web"), False),
        (FlowFilter(src=CLIENT[0]), True),
        (FlowFilter(src=VIP[0]), False),
        (FlowFilter(dst=VIP[0]), True),
        (FlowFilter(dst=BACKEND[0]), True),
        (FlowFilter(dst=CLIENT[0]), False),
        (FlowFilter(state="new"), True),
        (FlowFilter(state="closing"), False),
        (FlowFilter(service="web", src=CLIENT[0], dst=VIP[0], state="new"), True),
        (FlowFilter(service="web", src=VIP[0]), False),
    ],
)
def test_a_filter_takes_the_flows_for_which_all_holds(wanted: FlowFilter, taken: bool) -> None:
    """For `flow list`, `count` and `flush` alike."""
    one = replace(flow(Tuple(*CLIENT, *VIP), Tuple(*BACKEND, *CLIENT)), service="default/web:80")
    assert wanted.takes(one) is taken


def test_a_flow_of_no_service_is_no_services() -> None:
    """A plain connection to a backend."""
    one = flow(Tuple(*CLIENT, *BACKEND), Tuple(*BACKEND, *CLIENT))
    assert FlowFilter().takes(one)
    assert not FlowFilter(service="web").takes(one)


@settings(unhurried)
@given(st.sampled_from([16, 40]).flatmap(lambda size: st.binary(min_size=size, max_size=size)))
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


@pytest.mark.parametrize(
    ("given", "meant"),
    [("10.244.1.11", "10.244.1.11"), ("FD00:10:244:1:0::b", "fd00:10:244:1::b"), ("::1", "::1")],
)
def test_a_filter_takes_any_spelling_of_an_address(given: str, meant: str) -> None:
    """Flows show the canonical one, and are compared with it."""
    assert {one.process_value(click.Context(list_), given) for one in list_.params if one.name in ("src", "dst")} == {
        meant
    }


def test_a_filter_that_is_no_address_is_said_so() -> None:
    """Instead of finding nothing."""
    with pytest.raises(click.BadParameter, match="'fd00::1/64' is no IP address: such as "):
        list_.make_context("list", ["--src", "fd00::1/64"])


def test_the_tick_is_one_of_those_that_kernels_have() -> None:
    """CONFIG_HZ, told by the resolution of the coarse clock."""
    assert clock.HZ in (100, 250, 300, 1000)


@settings(unhurried)
@given(addresses, ports, st.sampled_from(["TCP", "UDP", "SCTP"]))
def test_an_address_in_a_map_is_read_back(address: str, port: int, protocol: Any) -> None:
    """What a service is called at goes into the maps and comes out the same, and so does a backend."""
    at = Address(address, port, protocol)
    assert packing.unpack_address(packing.pack_address(at), at.family) == at
    backend = tables.LiveBackend(at, 7, 9)
    packed = packing.pack_backend(backend, tables.BackendState.ACTIVE)
    assert packing.unpack_backend(packed) == (backend, tables.BackendState.ACTIVE)


def test_a_backends_IPv4_address_is_mapped() -> None:
    """One array has the backends of both families (RFC 4291 2.5.5.2)."""
    backend = tables.LiveBackend(Address("10.244.1.12", 8080, "TCP"), 1, 1)
    address = layout.BACKEND.unpack(packing.pack_backend(backend, tables.BackendState.ACTIVE))[0]
    assert IPv6Address(address).ipv4_mapped == IPv4Address("10.244.1.12")


@pytest.mark.parametrize(
    ("network", "bits"),
    [("10.0.0.0/8", 8), ("0.0.0.0/0", 0), ("192.0.2.7/32", 32), ("2001:db8::/33", 33), ("::/0", 0), ("::1/128", 128)],
)
def test_S62_a_source_range_is_read_back(network: str, bits: int) -> None:
    """The service port's number is the first 32 bits of what is matched."""
    one = SourceRange(7, network)
    packed = packing.pack_range(one)
    assert int.from_bytes(packed[:4], "little") == 32 + bits
    assert packing.unpack_range(packed, Family.of(network)) == one


def test_a_family_is_loaded_where_its_maps_are(tmp_path: Path) -> None:
    """IPv6 where one of its maps is pinned; then the others must be, too. IPv4 always."""
    maps = Maps(tmp_path)
    assert tables.loaded_families(maps) == [Family.IPV4]
    (tmp_path / "backends").touch()
    assert tables.loaded_families(maps) == [Family.IPV4]
    (tmp_path / next(name for name, one in MAPS.items() if one.family is Family.IPV6)).touch()
    assert tables.loaded_families(maps) == [Family.IPV4, Family.IPV6]


def test_numbers_that_were_never_given_are_read_first() -> None:
    """First those never used, then those that are gone, with their generation; never 0, nor one that drains (C12)."""
    one = Address("10.244.1.12", 8080, "TCP")
    states = [tables.BackendState(state) for state in (0, 1, 3, 0, 2, 3)]
    array = b"".join(
        packing.pack_backend(tables.LiveBackend(one, 10 * number, 1), state) for number, state in enumerate(states)
    )
    assert list(tables._free_backends(array)) == [(3, 30), (2, 20), (5, 50)]
    assert list(tables._numbers_in(array, tables.BackendState.ACTIVE)) == [1]
    drained = tables.LiveBackend(one, 40, 1, draining=True)
    assert list(tables._backends_in(array, tables.BackendState.DRAINING)) == [(4, drained)]
