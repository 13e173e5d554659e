"""What C and Python share: Python's side is held against contract.h as it is written."""

from __future__ import annotations

import re
import struct

import pytest

from pydatapath.kernel import layout, packing, source
from pydatapath.kernel.layout import (
    BACKEND,
    ENDPOINT,
    IPV4,
    IPV6,
    LAYOUT_VERSION,
    LAYOUTS,
    MAPS,
    RUN,
    SERVICE,
    Family,
    FlowFlag,
    FlowState,
    Hook,
    MapContract,
    MapType,
    Record,
    ServiceFlag,
    flow_state,
    timeout,
)
from pydatapath.plan import Called, Run

SHARED = {value.name: value for value in vars(layout).values() if isinstance(value, Record)}
RECORDS = {
    family: SHARED | {value.name: value for value in vars(LAYOUTS[family]).values() if isinstance(value, Record)}
    for family in Family
}
C_SIZES = {"__u8": 1, "__be16": 2, "__u16": 2, "__be32": 4, "__u32": 4, "__u64": 8}
MAP_TYPES = {"lpm_trie": MapType.LPM_TRIE, "lru_hash": MapType.LRU_HASH, "hash": MapType.HASH, "array": MapType.ARRAY}
MAP_TYPES["percpu_array"] = MapType.PERCPU_ARRAY
families = pytest.mark.parametrize("family", Family, ids=lambda family: family.name)


def c_text(name: str) -> str:
    return re.sub(r"/\*.*?\*/", "", (source.directory() / name).read_text(), flags=re.DOTALL)


def contract(family: Family) -> str:
    """contract.h as one family has it, without what stands in an `#if` for the other."""
    text = re.sub(r"(?m)^#if FAMILY == 4\n#define WORDS.*?^#endif\n", "", c_text("contract.h"), flags=re.DOTALL)
    kept = r"\1" if family is Family.IPV6 else ""
    text = re.sub(r"(?ms)^#if FAMILY == 6\n(.*?)^#endif\n", kept, text)
    assert "#if FAMILY" not in text
    return text.replace("WORDS", str(family.address_size // 4))


def c_fields(name: str, family: Family) -> list[tuple[str, int]]:
    """The fields of a struct in contract.h, each with its bytes."""
    body = re.search(rf"^struct {name} {{\n(.*?)^}};", contract(family), re.DOTALL | re.MULTILINE)
    assert body is not None
    found = re.findall(r"^\t(?:struct )?(\w+) (\w+)(?:\[(\d+)\])?;", body[1], re.MULTILINE)
    assert len(found) == body[1].count(";")
    sizes = C_SIZES | {"run": RUN.size} | {one.name: one.struct.size for one in RECORDS[family].values()}
    return [(field, sizes[kind] * int(count or 1)) for kind, field, count in found]


@families
def test_every_struct_of_the_contract_has_a_record(family: Family) -> None:
    """And no record is without its struct. A run stands in no map, only in struct service."""
    assert set(re.findall(r"^struct (\w+) {", contract(family), re.MULTILINE)) == {*RECORDS[family], "run"}
    assert c_fields("run", family) == [("first_slot", 4), ("slot_count", 4)]


@families
@pytest.mark.parametrize("name", sorted(RECORDS[Family.IPV4]))
def test_a_record_has_the_fields_of_its_struct(name: str, family: Family) -> None:
    """Names and sizes in the struct's order; without holes, so offsets follow from them."""
    record, offset = RECORDS[family][name], 0
    for (field, place, size), (c_field, c_size) in zip(record.shape, c_fields(name, family), strict=True):
        assert (field, place, size) == (c_field, offset, c_size)
        offset += c_size
    assert record.struct.size == offset


@families
def test_sizes_are_those_that_the_contract_asserts(family: Family) -> None:
    """Each struct's _Static_assert names the size that Python packs: the compiler pads nothing that is not named."""
    text = re.sub(r"\(FAMILY == 4 \? (\d+) : (\d+)\)", r"\1" if family is Family.IPV4 else r"\2", contract(family))
    found = re.findall(r'_Static_assert\(sizeof\(struct (\w+)\) == (\d+), "layout (\d+)"\)', text)
    sizes = {name: one.struct.size for name, one in RECORDS[family].items() if name != "address"}
    assert {name: int(size) for name, size, _ in found} == sizes
    assert {int(version) for *_, version in found} == {LAYOUT_VERSION}
    assert f"#if LAYOUT_VERSION != {LAYOUT_VERSION}\n" in c_text("contract.h")


def test_fields_are_packed_in_the_order_of_the_struct() -> None:
    """The packers that the rest of the package uses write what contract.h describes."""
    four, six = b"\x0a\x00\x00\x01", bytes.fromhex("fd00 0000 0000 0000 0000 0000 0000 0001")
    assert IPV4.transport_address.struct.pack(four, b"\x1f\x90", 6) == bytes.fromhex("0a000001 1f90 06 00")
    assert IPV6.transport_address.struct.pack(six, b"\x1f\x90", 6) == six + bytes.fromhex("1f90 06 00")
    assert IPV4.tuple.struct.pack(b"abcd", b"efgh", b"ij", b"kl", 17) == b"abcdefghijkl\x11\0\0\0"
    assert IPV6.tuple.struct.pack(six, six, b"ij", b"kl", 132) == six + six + b"ijkl\x84\0\0\0"
    assert SERVICE.pack(RUN.pack(1, 2), RUN.pack(3, 4), 5, 6, 2, 7) == struct.pack("=8I", 1, 2, 3, 4, 5, 6, 2, 7)
    backend = BACKEND.pack(six, b"\x1f\x90", 6, 1, 7, 9)
    assert backend == six + bytes.fromhex("1f90 06 01") + struct.pack("=III", 7, 9, 0)
    assert ENDPOINT.pack(5, b"MACMAC", 1) == struct.pack("=I", 5) + b"MACMAC\x01\0"
    assert IPV4.flow.struct.unpack(bytes(range(64)))[0] == bytes(range(16))
    assert IPV6.flow.struct.unpack(bytes(range(104)))[0] == bytes(range(40))


@pytest.mark.parametrize(
    "called",
    [
        Called(Run(7, 2), Run(9, 1), 5, affinity=10_800, shared=3),
        Called(Run(), Run(), 5, flags=ServiceFlag.DROP_INSIDE | ServiceFlag.DROP_OUTSIDE),
        Called(Run(1, 1), Run(), 1 << 31, flags=ServiceFlag.DROP_OUTSIDE),
    ],
    ids=str,
)
def test_what_is_called_is_read_back_as_it_was_written(called: Called) -> None:
    """The plan's view of a service in the map and the struct are the same thing."""
    assert packing.unpack_called(packing.pack_called(called)) == called


def test_the_maps_are_those_of_the_c_code() -> None:
    """Name, type, structs and size of every pinned map but the program array, which is made anew at each load."""
    text = "".join(c_text(path.name) for path in source.directory().glob("*.[ch]"))
    found = re.findall(
        r'BPF_TABLE_PINNED\("(\w+)", ([\w ]+), ([\w ]+), (\w+), (\w+),\s+'
        r'MAP_DIRECTORY "/(\w+)"( FAMILY_NAME)?(, \d+)?\);',
        text,
    )
    assert len(found) == text.count("BPF_TABLE_PINNED") - 2
    former = re.search(r'BPF_TABLE_PINNED\((.*), former, MAX_FORMER_ENTRIES, FORMER_DIRECTORY "/flows"', text)
    assert former is not None
    assert f"BPF_TABLE_PINNED({former[1]}, flows, " in text, "what is recalled is what flows are"
    assert {one[3] for one in found} == {one[5] for one in found} == {one.in_c for one in MAPS.values()}
    plain = {"u32": 4, "__be32": 4, "u64": 8}
    for kind, key, value, name, size, _, own, flags in found:
        ours = [one for one in MAPS.values() if one.in_c == name]
        assert {one.family for one in ours} == ({*Family} if own else {None})
        for one in ours:
            assert shape(one) == (map_type(kind, name), size, int(flags.strip(", ") or 0))
            for c_type, side in ((key, one.key), (value, one.value)):
                assert plain.get(c_type, c_type) == (side if isinstance(side, int) else f"struct {side.name}")


def shape(one: MapContract) -> tuple[MapType, str, int]:
    return one.type, one.size, one.flags


def map_type(kind: str, name: str) -> MapType:
    """As C says it; bcc knows no table of devices with a hash, so that one is a hash to it, and made by Python."""
    return MapType.DEVMAP_HASH if name == "interfaces" else MAP_TYPES[kind]


@families
def test_the_maps_that_hold_addresses_are_each_familys_own(family: Family) -> None:
    """They end in the family's suffix, and hold its structs; the others are of both families."""
    own = {name: one for name, one in MAPS.items() if one.family is family}
    assert own.keys() == {one.in_c + family.suffix for one in own.values()}
    assert own.keys() == {name for name, one in MAPS.items() if one.is_of([family]) and not one.is_of([])}
    records = [side for one in own.values() for side in (one.key, one.value) if isinstance(side, Record)]
    assert all(RECORDS[family][record.name].shape == record.shape for record in records)
    assert {name for name, one in MAPS.items() if one.family is None} == {
        "slots",
        "backends",
        "interfaces",
        "answers",
        "counters",
    }


def test_no_program_has_anothers_place() -> None:
    """IPv6's programs come behind all of IPv4's, and each place is in the array; RECALL's is there while flows move."""
    places = layout.program_places([Family.IPV4, Family.IPV6], Hook)
    taken = {*places.values(), *(layout.tail_place(layout.RECALL, family) for family in Family)}
    assert len(taken) == len(places) + 2 == layout.PROGRAM_ARRAY_SIZE == max(taken) + 1
    assert max(places.values()) < min(taken - {*places.values()}), "an array of a version before this one is the same"
    four = layout.program_places([Family.IPV4], Hook)
    assert four.items() <= places.items()
    assert four.keys() == {*layout.TAILS}


def test_the_hooks_are_those_of_the_c_code() -> None:
    """The order is enum hook's, and each hook has a program of its name."""
    body = re.search(r"enum hook {(.*?)}", c_text("forward.h"), re.DOTALL)
    assert body is not None
    assert re.findall(r"\w+", body[1]) == [hook.name for hook in Hook]
    text = c_text("datapath.c") + c_text("walk.h") + c_text("recall.h")
    programs = re.findall(r"^int (\w+)\(struct __sk_buff \*skb\)", text, re.MULTILINE)
    assert sorted(programs) == sorted([*layout.TAILS, layout.RECALL, *(hook.program for hook in Hook)])
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
        pytest.param("SCTP", FlowState.NEW, 30, 240, id="N82 netfilter's cookies are half a minute on their way"),
        pytest.param("SCTP", FlowState.ESTABLISHED, 90, 432_000, id="N82 RFC 9260 8.3: three heartbeats at least"),
        pytest.param("SCTP", FlowState.CLOSING, 90, 432_000, id="N82 SCTP's end is not looked at"),
    ],
)
def test_N34_to_N38_a_flow_lives_as_long_as_the_rfcs_ask(
    protocol: str, state: FlowState, least: int, most: int
) -> None:
    """Seconds without a packet, by protocol and state; C is given the same numbers."""
    assert least <= timeout(protocol, state) <= most


def test_the_c_code_asks_for_the_same_timeouts() -> None:
    """Every timeout is used, and no other but the least of them."""
    assert (
        set(re.findall(r"TIMEOUT_(\w+)", c_text("flow.h") + c_text("nat.h"))) - {"SHORTEST"} == layout.TIMEOUTS.keys()
    )


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
