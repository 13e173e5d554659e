"""What C and Python share: Python's side is held against contract.h as it is written."""

from __future__ import annotations

import re
import struct

import pytest

from pydatapath.kernel import layout, source, tables
from pydatapath.kernel.layout import (
    BACKEND,
    ENDPOINT,
    FLOW,
    LAYOUT_VERSION,
    MAPS,
    RUN,
    SERVICE,
    TRANSPORT_ADDRESS,
    TUPLE,
    FlowFlag,
    FlowState,
    Hook,
    MapType,
    Record,
    ServiceFlag,
    flow_state,
    timeout,
)
from pydatapath.plan import Called, Run

RECORDS = {value.name: value for value in vars(layout).values() if isinstance(value, Record)}
C_SIZES = {"__u8": 1, "__be16": 2, "__u16": 2, "__be32": 4, "__u32": 4, "__u64": 8}
MAP_TYPES = {"lpm_trie": MapType.LPM_TRIE, "lru_hash": MapType.LRU_HASH, "hash": MapType.HASH, "array": MapType.ARRAY}
MAP_TYPES["percpu_array"] = MapType.PERCPU_ARRAY


def c_text(name: str) -> str:
    return re.sub(r"/\*.*?\*/", "", (source.directory() / name).read_text(), flags=re.DOTALL)


def c_fields(name: str) -> list[tuple[str, int]]:
    """The fields of a struct in contract.h, each with its bytes."""
    body = re.search(rf"^struct {name} {{\n(.*?)^}};", c_text("contract.h"), re.DOTALL | re.MULTILINE)
    assert body is not None
    found = re.findall(r"^\t(?:struct )?(\w+) (\w+)(?:\[(\d+)\])?;", body[1], re.MULTILINE)
    assert len(found) == body[1].count(";")
    sizes = {**C_SIZES, "tuple": layout.TUPLE.size, "run": RUN.size}
    return [(field, sizes[kind] * int(count or 1)) for kind, field, count in found]


def test_every_struct_of_the_contract_has_a_record() -> None:
    """And no record is without its struct. A run stands in no map, only in struct service."""
    assert set(re.findall(r"^struct (\w+) {", c_text("contract.h"), re.MULTILINE)) == {*RECORDS, "run"}
    assert c_fields("run") == [("first_slot", 4), ("slot_count", 4)]


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_has_the_fields_of_its_struct(name: str) -> None:
    """Names and sizes in the struct's order; without holes, so offsets follow from them."""
    record, offset = RECORDS[name], 0
    for (field, place, size), (c_field, c_size) in zip(record.shape, c_fields(name), strict=True):
        assert (field, place, size) == (c_field, offset, c_size)
        offset += c_size
    assert record.struct.size == offset


def test_sizes_are_those_that_the_contract_asserts() -> None:
    """Each struct's _Static_assert names the size that Python packs: the compiler pads nothing that is not named."""
    found = re.findall(r'_Static_assert\(sizeof\(struct (\w+)\) == (\d+), "layout (\d+)"\)', c_text("contract.h"))
    assert {name: int(size) for name, size, _ in found} == {name: one.struct.size for name, one in RECORDS.items()}
    assert {int(version) for *_, version in found} == {LAYOUT_VERSION}
    assert f"#if LAYOUT_VERSION != {LAYOUT_VERSION}\n" in c_text("contract.h")


def test_fields_are_packed_in_the_order_of_the_struct() -> None:
    """The packers that the rest of the package uses write what contract.h describes."""
    at = (b"\x0a\x00\x00\x01", b"\x1f\x90", 6)
    assert TRANSPORT_ADDRESS.pack(*at) == bytes.fromhex("0a000001 1f90 06 00")
    assert TUPLE.pack(b"abcd", b"efgh", b"ij", b"kl", 17) == b"abcdefghijkl\x11\0\0\0"
    assert SERVICE.pack(RUN.pack(1, 2), RUN.pack(3, 4), 5, 6, 2) == struct.pack("=8I", 1, 2, 3, 4, 5, 6, 2, 0)
    assert BACKEND.pack(*at, 1, 7, 9) == bytes.fromhex("0a000001 1f90 06 01") + struct.pack("=II", 7, 9)
    assert ENDPOINT.pack(5, b"MACMAC", 1) == struct.pack("=I", 5) + b"MACMAC\x01\0"
    assert FLOW.unpack(bytes(range(64)))[0] == bytes(range(16))


@pytest.mark.parametrize(
    "called",
    [
        Called(Run(7, 2), Run(9, 1), 5, affinity=10_800),
        Called(Run(), Run(), 5, flags=ServiceFlag.DROP_INSIDE | ServiceFlag.DROP_OUTSIDE),
        Called(Run(1, 1), Run(), 1 << 31, flags=ServiceFlag.DROP_OUTSIDE),
    ],
    ids=str,
)
def test_what_is_called_is_read_back_as_it_was_written(called: Called) -> None:
    """The plan's view of a service in the map and the struct are the same thing."""
    assert tables.unpack_called(tables.pack_called(called)) == called


def test_the_maps_are_those_of_the_c_code() -> None:
    """Name, type, structs and size of every pinned map but the program array, which is made anew at each load."""
    text = "".join(c_text(path.name) for path in source.directory().glob("*.[ch]"))
    found = re.findall(
        r'BPF_TABLE_PINNED\("(\w+)", ([\w ]+), ([\w ]+), (\w+), (\w+), MAP_DIRECTORY "/(\w+)"(, \d+)?\);', text
    )
    assert {one[3] for one in found} == {one[5] for one in found} == MAPS.keys()
    plain = {"u32": 4, "__be32": 4, "u64": 8}
    for kind, key, value, name, size, _, flags in found:
        contract = MAPS[name]
        assert (contract.type, contract.size) == (MAP_TYPES[kind], size)
        assert contract.flags == int(flags.strip(", ") or 0)
        for c_type, ours in ((key, contract.key), (value, contract.value)):
            assert plain.get(c_type, c_type) == (ours if isinstance(ours, int) else f"struct {ours.name}")


def test_the_hooks_are_those_of_the_c_code() -> None:
    """The order is enum hook's, and each hook has a program of its name."""
    body = re.search(r"enum hook {(.*?)}", c_text("forward.h"), re.DOTALL)
    assert body is not None
    assert re.findall(r"\w+", body[1]) == [hook.name for hook in Hook]
    programs = re.findall(r"^int (\w+)\(struct __sk_buff \*skb\)", c_text("datapath.c"), re.MULTILINE)
    assert sorted(programs) == sorted([*layout.TAILS, *(hook.program for hook in Hook)])
    for hook in Hook:
        direction, _, role = hook.program.partition("_")
        assert (hook.direction, hook.role) == ({"from": "ingress", "to": "egress"}[direction], role)


@pytest.mark.parametrize(
    ("protocol", "state", "least", "most"),
    [
        pytest.param("UDP", FlowState.ESTABLISHED, 300, 300, id="N34 RFC 4787 REQ-5c: five minutes by default"),
        pytest.param("UDP", FlowState.NEW, 120, 300, id="N34 RFC 4787 REQ-5: two minutes at least"),
        pytest.param("UDP", FlowState.CLOSING, 300, 300, id="UDP knows no end"),
        pytest.param("TCP", FlowState.ESTABLISHED, 7440, 432_000, id="N36 RFC 5382 REQ-5, netfilter's five days"),
        pytest.param("TCP", FlowState.NEW, 75, 240, id="N37 RFC 7857 2.1: a SYN-ACK after 75 s arrives"),
        pytest.param("TCP", FlowState.CLOSING, 240, 240, id="N37 N38 RFC 5382 REQ-5: four minutes"),
    ],
)
def test_N34_to_N38_a_flow_lives_as_long_as_the_rfcs_ask(
    protocol: str, state: FlowState, least: int, most: int
) -> None:
    """Seconds without a packet, by protocol and state; C is given the same numbers."""
    assert least <= timeout(protocol, state) <= most


def test_the_c_code_asks_for_the_same_timeouts() -> None:
    """Every timeout is used, and no other but the least of them."""
    assert set(re.findall(r"TIMEOUT_(\w+)", c_text("flow.h"))) - {"SHORTEST"} == layout.TIMEOUTS.keys()


@pytest.mark.parametrize(
    ("stored", "flags", "reply", "state"),
    [
        (FlowState.ESTABLISHED, FlowFlag(0), FlowFlag.REPLY, FlowState.ESTABLISHED),
        (FlowState.ESTABLISHED, FlowFlag.FIN, FlowFlag.REPLY, FlowState.ESTABLISHED),
        (FlowState.ESTABLISHED, FlowFlag(0), FlowFlag.REPLY | FlowFlag.FIN, FlowState.ESTABLISHED),
        (FlowState.ESTABLISHED, FlowFlag.FIN, FlowFlag.REPLY | FlowFlag.FIN, FlowState.CLOSING),
        (FlowState.ESTABLISHED, FlowFlag.RST, FlowFlag.REPLY, FlowState.CLOSING),
        (FlowState.ESTABLISHED, FlowFlag(0), FlowFlag.REPLY | FlowFlag.RST, FlowState.CLOSING),
        (FlowState.NEW, FlowFlag(0), FlowFlag.REPLY, FlowState.NEW),
    ],
    ids=str,
)
def test_N39_a_connection_closes_by_two_fins_or_one_rst(
    stored: FlowState, flags: FlowFlag, reply: FlowFlag, state: FlowState
) -> None:
    """One FIN leaves the other half open: only both, or a reset from either side, shorten the wait."""
    assert flow_state(stored, flags, reply) is state
