"""What C and Python share, Python's side of bpf/contract.h: structs, numbers, and the maps that hold them.

Addresses and ports are in network byte order as they stand in packets; everything else is the machine's. Whenever
the compiler runs the structs here are compared, field by field, with those that it made of contract.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Final, TypeAlias

__all__ = [
    "ANSWERED",
    "BACKEND",
    "ENDPOINT",
    "IPV4",
    "IPV6",
    "LAYOUTS",
    "LAYOUT_VERSION",
    "MAPS",
    "RUN",
    "SERVICE",
    "BackendState",
    "Change",
    "Counter",
    "EndpointKind",
    "Family",
    "FamilyLayout",
    "FlowFlag",
    "FlowState",
    "Hook",
    "MapContract",
    "MapType",
    "MemberKind",
    "Record",
    "ServiceFlag",
    "VipKind",
    "flow_state",
    "program_places",
    "timeout",
]

LAYOUT_VERSION: Final = 3

PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}
PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}


class Family(IntEnum):
    """An IP version. All programs, and the maps that hold addresses, are there once for each."""

    IPV4 = 4
    IPV6 = 6

    @staticmethod
    def of(address: str) -> Family:
        """The family of an address or network in text."""
        return Family.IPV6 if ":" in address else Family.IPV4

    @property
    def suffix(self) -> str:
        """What the names of its maps and programs end in."""
        return "6" if self is Family.IPV6 else ""

    @property
    def address_size(self) -> int:
        """Bytes of an address."""
        return 16 if self is Family.IPV6 else 4


class FlowState(IntEnum):
    """The life of a flow. ANSWERED, TCP only: by a SYN-ACK that its client has not confirmed.

    CLOSING stands in no entry: it is read off both directions' flags.
    """

    NEW = 0
    ANSWERED = 3
    ESTABLISHED = 1
    CLOSING = 2


class FlowFlag(IntFlag):
    """REPLY: the answering direction. PLAIN: nothing is rewritten. FIN, RST: this direction has sent one.

    PAIRED: there are entries for both directions. MASQUERADED: it leaves the cluster behind the node's address.
    OPENED: it was begun by a SYN, and not found in the middle.
    """

    REPLY = 1
    PLAIN = 2
    FIN = 4
    RST = 8
    PAIRED = 16
    MASQUERADED = 32
    OPENED = 64


class MappingSide(IntEnum):
    """What a mapping is looked up by: the one that the outside sees, or the pod's end. Where pods leave behind several
    addresses that has several, one for each: by INSIDE, and for the others by the numbers behind BUDGET.
    """

    INSIDE = 0
    OUTSIDE = 1
    BUDGET = 2  # no mapping: until when a pod's new flows are paid for (N24), or who may replace what is over


class NatType(IntEnum):
    """Mapping and filtering (RFC 4787 4 and 5): endpoint-independent and address and port-dependent; both the latter;
    both the former.
    """

    ENDPOINT_INDEPENDENT = 0
    SYMMETRIC = 1
    FULL_CONE = 2


def flow_state(stored: FlowState, flags: FlowFlag, other: FlowFlag) -> FlowState:
    """The state of a flow whose two directions have these flags."""
    if stored is FlowState.ESTABLISHED and (flags & other & FlowFlag.FIN or (flags | other) & FlowFlag.RST):
        return FlowState.CLOSING
    return stored


class BackendState(IntEnum):
    """UNUSED: never given. ACTIVE takes new flows, DRAINING keeps those it has, GONE serves no more."""

    UNUSED = 0
    ACTIVE = 1
    DRAINING = 2
    GONE = 3


class EndpointKind(IntEnum):
    """Who answers to an address: a pod behind an interface, or the node itself."""

    POD = 0
    NODE = 1


class Change(IntEnum):
    """Who has changed `endpoints`: the places of two counts, packets' and Python's."""

    TAUGHT = 0
    TOLD = 1


class ServiceFlag(IntFlag):
    """DROP_INSIDE, DROP_OUTSIDE: where there is no backend such callers are dropped instead of refused. RANGES: only
    sources in the service port's ranges may call.
    """

    DROP_INSIDE = 1
    DROP_OUTSIDE = 2
    RANGES = 4


class VipKind(IntEnum):
    """Whose an address is: a cluster IP has no ports but the service's, of another address only those are ours (C2)."""

    CLUSTER = 1
    EXTERNAL = 2


class MemberKind(IntEnum):
    """What Node objects tell of a network: a node's pods are in it, or it is one address that is a node's own."""

    PODS = 1
    NODE = 2


class Counter(IntEnum):
    """What is counted, by its place in the map `counters`. DROP_: not delivered; PASS_: left to the stack."""

    NEW_FLOW = 0
    PASS_FRAGMENT = 1
    PASS_MALFORMED = 2
    DROP_NO_SERVICE = 3
    DROP_NO_BACKEND = 4
    DROP_PORTS_TAKEN = 5
    DROP_NO_ROUTE = 6
    DROP_REWRITE = 7
    DROP_LATE_ANSWER = 8
    DROP_POLICY = 9
    DROP_SOURCE_RANGE = 10
    DROP_FRAGMENT = 11
    DROP_ANSWER_LIMIT = 12
    DROP_POD_GONE = 13
    PASS_HEADERS = 14
    DROP_HEADERS = 15
    DROP_SPOOFED = 16
    DROP_HOPS = 17
    DROP_UNASKED = 18
    DROP_UNTRANSLATED = 19
    DROP_POD_LIMIT = 20


class Hook(IntEnum):
    """Where a program sits (enum hook in bpf/forward.h)."""

    FROM_POD = 0
    FROM_UPLINK = 1
    TO_BRIDGE = 2
    TO_UPLINK = 3
    TO_LOOPBACK = 4

    @property
    def program(self) -> str:
        """The name of the program at the hook."""
        return self.name.lower()

    @property
    def role(self) -> str:
        """What an interface with this hook is to us: pod, bridge, loopback or uplink."""
        roles = {Hook.FROM_POD: "pod", Hook.TO_BRIDGE: "bridge", Hook.TO_LOOPBACK: "loopback"}
        return roles.get(self, "uplink")

    @property
    def direction(self) -> str:
        """The tc hook: ingress or egress."""
        return "ingress" if self in (Hook.FROM_POD, Hook.FROM_UPLINK) else "egress"


# The programs that the hooks' go on in: `walk` where a packet needs more than its known flow, and `leave` where that
# has decided what it becomes; between them `search` or `nat` where a new flow needs another port; and before `walk`
# `settle`, where a connection does not open as nearly all do
TAILS: Final = ("walk", "leave", "search", "settle", "nat")
RECALL: Final = "recall"  # there only while flows move (kernel/recalling.py)


def tail_place(tail: str, family: Family) -> int:
    """A tail's place in the program array; RECALL's is behind all others."""
    if tail == RECALL:
        return IPV6_HOOKS + len(Hook) + (family is Family.IPV6)
    return len(TAILS) * (family is Family.IPV6) + TAILS.index(tail)


def program_places(families: Collection[Family], hooks: Iterable[Hook]) -> dict[str, int]:
    """The names of the programs in the program array, each with its place there: first the tails of IPv4, then (where
    IPv6 is loaded) those of IPv6, then IPv6's programs of the hooks, which IPv4's go on in with an IPv6 packet.
    """
    places = {f"{tail}{family.suffix}": tail_place(tail, family) for family in families for tail in TAILS}
    if Family.IPV6 in families:
        places |= {f"{hook.program}6": IPV6_HOOKS + hook for hook in hooks}
    return places


IPV6_HOOKS: Final = 2 * len(TAILS)
PROGRAM_ARRAY_SIZE: Final = IPV6_HOOKS + len(Hook) + len(Family)

# Seconds without a packet after which a flow is over, by protocol and state. Netfilter's for TCP's long state;
# RFC 4787 REQ-5 for UDP (at least two minutes, five by default); RFC 7857 2.1 for TCP's last four minutes; netfilter's
# for SCTP, which keeps its associations alive itself (RFC 9260 8.3: a heartbeat every 30 s). `load` may change them.
TIMEOUTS: Final[Mapping[str, int]] = {
    "UDP_NEW": 120,
    "UDP_ESTABLISHED": 300,
    "TCP_NEW": 120,
    "TCP_ESTABLISHED": 432_000,
    "TCP_CLOSING": 240,
    "ICMP_NEW": 60,
    "ICMP_ESTABLISHED": 60,
    "SCTP_NEW": 120,
    "SCTP_ESTABLISHED": 210,
    "QUARANTINE": 120,  # RFC 6888 REQ-8: what a pod was called by outside is no other's for so long after its end
}
# Seconds for which later fragments follow the first: as long as Linux waits for them (net.ipv4.ipfrag_time)
FRAGMENTS_TIMEOUT: Final = 30


def timeout(protocol: str, state: FlowState, timeouts: Mapping[str, int] = TIMEOUTS) -> int:
    """Seconds that a flow of this protocol and state lives without a packet."""
    if protocol != "TCP" and state is FlowState.CLOSING:
        state = FlowState.ESTABLISHED
    if state is FlowState.ANSWERED:
        state = FlowState.NEW
    return timeouts[f"{protocol}_{state.name}"]


Fields: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Record:
    """A struct of contract.h: its fields in order, each with its code of the `struct` module ("x": padding)."""

    name: str
    fields: Fields

    @cached_property
    def struct(self) -> struct.Struct:
        """Packs and unpacks it."""
        return struct.Struct("=" + "".join(code for _, code in self.fields))

    @property
    def shape(self) -> list[tuple[str, int, int]]:
        """(field, offset, size) of each field, in bytes, for the comparison with the compiler's view."""
        shape, offset = [], 0
        for name, code in self.fields:
            size = struct.calcsize("=" + code)
            shape.append((name, offset, size))
            offset += size
        return shape


SERVICE_RECORD: Final = Record(
    "service",
    (
        ("inside", "8s"),  # struct run: first_slot, slot_count
        ("outside", "8s"),
        ("number", "I"),
        ("affinity", "I"),
        ("flags", "I"),
        ("shared", "I"),
    ),
)
RUN: Final = struct.Struct("=II")
ANSWERED_RECORD: Final = Record("answered", (("since", "Q"), ("count", "I"), ("zero", "4x")))
AFFINITY_RECORD: Final = Record(
    "affinity", (("last_used", "Q"), ("backend", "I"), ("generation", "I"), ("position", "I"), ("zero", "4x"))
)
BACKEND_RECORD: Final = Record(
    "backend",
    (
        ("address", "16s"),  # of both families: IPv4's is mapped
        ("port", "2s"),
        ("protocol", "B"),
        ("state", "B"),
        ("generation", "I"),
        ("service", "I"),
        ("zero", "4x"),
    ),
)
ENDPOINT_RECORD: Final = Record("endpoint", (("interface", "I"), ("mac", "6s"), ("kind", "B"), ("zero", "x")))

SERVICE: Final = SERVICE_RECORD.struct
ANSWERED: Final = ANSWERED_RECORD.struct
AFFINITY: Final = AFFINITY_RECORD.struct
BACKEND: Final = BACKEND_RECORD.struct
ENDPOINT: Final = ENDPOINT_RECORD.struct


class FamilyLayout:
    """The structs that hold addresses, as one family has them. What fills a struct up to its size is IPv6's alone."""

    def __init__(self, family: Family) -> None:
        at = f"{family.address_size}s"
        self.family = family
        self.address = Record("address", (("words", at),))
        self.transport_address = Record(
            "transport_address", (("address", at), ("port", "2s"), ("protocol", "B"), ("zero", "x"))
        )
        self.tuple = _tuple(at)
        tuple_bytes = f"{self.tuple.struct.size}s"
        self.flow = _flow(tuple_bytes, self._fill("most_zero", "16x"))
        self.opening = Record("opening", (("key", tuple_bytes), ("to", tuple_bytes)))
        self.leaving = _leaving(tuple_bytes, f"{self.flow.struct.size}s")
        self.routed = _routed(at, self._fill("more_zero", "4x"))
        self.nearby = Record(
            "nearby",
            (("changes", "Q"), ("address", at), ("endpoint", f"{ENDPOINT.size}s"), *self._fill("more_zero", "4x")),
        )
        self.mapping_key = Record("mapping_key", (("address", at), ("port", "2s"), ("protocol", "B"), ("side", "B")))
        self.mapping = Record(
            "mapping",
            (("last_seen", "Q"), ("address", at), ("port", "2s"), ("zero", "2x"), *self._fill("more_zero", "4x")),
        )
        self.fragment_key = Record(
            "fragment_key",
            (("source", at), ("destination", at), ("identification", "4s"), ("protocol", "B"), ("zero", "3x")),
        )
        self.fragment = Record("fragment", (("first_seen", "Q"), ("source", at), ("destination", at)))
        self.source_range = Record("source_range", (("prefix_length", "I"), ("service", "I"), ("network", at)))
        self.network = Record("network", (("prefix_length", "I"), ("address", at)))
        self.client = Record("client", (("address", at), ("service", "I")))

    def _fill(self, name: str, code: str) -> Fields:
        return ((name, code),) if self.family is Family.IPV6 else ()


def _tuple(at: str) -> Record:
    return Record(
        "tuple",
        (
            ("source", at),
            ("destination", at),
            ("source_port", "2s"),
            ("destination_port", "2s"),
            ("protocol", "B"),
            ("zero", "3x"),
        ),
    )


def _flow(tuple_bytes: str, fill: Fields) -> Record:
    return Record(
        "flow",
        (
            ("to", tuple_bytes),
            ("last_seen", "Q"),
            ("packets", "Q"),
            ("bytes", "Q"),
            ("backend", "I"),
            ("generation", "I"),
            ("state", "B"),
            ("flags", "B"),
            ("zero", "2x"),
            ("awaited", "4s"),
            ("granted", "4s"),
            ("answer", "I"),
            *fill,
        ),
    )


def _leaving(tuple_bytes: str, flow_bytes: str) -> Record:
    return Record(
        "leaving",
        (
            ("key", tuple_bytes),
            ("to", tuple_bytes),
            ("flow", flow_bytes),
            ("other", flow_bytes),
            ("length", "I"),
            ("tcp_flags", "H"),
            ("rounds", "H"),
        ),
    )


def _routed(at: str, fill: Fields) -> Record:
    return Record(
        "routed",
        (
            ("at", "I"),
            *((name, at) for name in ("source", "destination", "next_hop")),
            *((name, "I") for name in ("from", "traffic", "interface")),
            ("mtu", "H"),
            *((name, "B") for name in ("protocol", "answer")),
            *fill,
        ),
    )


IPV4: Final = FamilyLayout(Family.IPV4)
IPV6: Final = FamilyLayout(Family.IPV6)
LAYOUTS: Final = {layout.family: layout for layout in (IPV4, IPV6)}


BPF_F_NO_PREALLOC: Final = 1
BPF_F_RDONLY_PROG: Final = 1 << 7
BPF_F_MMAPABLE: Final = 1 << 10  # since Linux 5.5


class MapType(IntEnum):
    """enum bpf_map_type, those that we use."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    DEVMAP_HASH = 25


@dataclass(frozen=True)
class MapContract:
    """One pinned map: its name in C, its type, the structs of its keys and values (a number: so many bytes), its size's
    -D name, and the family whose own it is (None: of both).
    """

    in_c: str
    type: MapType
    key: Record | int
    value: Record | int
    size: str
    flags: int = 0  # of BPF_MAP_CREATE
    family: Family | None = None

    @property
    def name(self) -> str:
        """The name of the map and its pin."""
        return self.in_c + (self.family.suffix if self.family else "")

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self.key if isinstance(self.key, int) else self.key.struct.size

    @property
    def value_size(self) -> int:
        """Bytes of a value (of one CPU's, in a per-CPU map)."""
        return self.value if isinstance(self.value, int) else self.value.struct.size

    @property
    def shown_flags(self) -> int:
        """The flags that the kernel shows: programs may only read a device map, whatever was asked for."""
        return self.flags | (BPF_F_RDONLY_PROG if self.type is MapType.DEVMAP_HASH else 0)

    def is_of(self, families: Collection[Family]) -> bool:
        """Whether it is there where these families are loaded."""
        return self.family is None or self.family in families


def _maps_of(layout: FamilyLayout) -> tuple[MapContract, ...]:
    lru, table, family = MapType.LRU_HASH, MapType.HASH, layout.family
    at, called, trie = layout.address, layout.transport_address, MapType.LPM_TRIE
    ranges = MapContract("ranges", trie, layout.source_range, 4, "MAX_RANGES", BPF_F_NO_PREALLOC, family)
    return (
        MapContract("flows", lru, layout.tuple, layout.flow, "MAX_FLOW_ENTRIES", family=family),
        MapContract("half_open", lru, layout.tuple, layout.flow, "MAX_HALF_OPEN_ENTRIES", family=family),
        MapContract("openings", MapType.ARRAY, 4, layout.opening, "MAX_OPENINGS", family=family),
        MapContract("fragments", lru, layout.fragment_key, layout.fragment, "MAX_FRAGMENTS", family=family),
        MapContract("services", table, called, SERVICE_RECORD, "MAX_SERVICES", family=family),
        MapContract("targets", table, called, 4, "MAX_BACKENDS", family=family),
        ranges,
        MapContract("networks", trie, layout.network, 4, "MAX_NETWORKS", BPF_F_NO_PREALLOC, family),
        MapContract("vips", table, at, 4, "MAX_SERVICES", family=family),
        MapContract("affinities", lru, layout.client, AFFINITY_RECORD, "MAX_AFFINITIES", family=family),
        MapContract("endpoints", table, at, ENDPOINT_RECORD, "MAX_ENDPOINTS", family=family),
        MapContract("nearby", MapType.PERCPU_ARRAY, 4, layout.nearby, "MAX_NEARBY", family=family),
        MapContract("changes", MapType.ARRAY, 4, 8, "CHANGES", family=family),
        MapContract("routes", MapType.PERCPU_ARRAY, 4, layout.routed, "MAX_ROUTES", family=family),
        MapContract("leaving", MapType.PERCPU_ARRAY, 4, layout.leaving, "ONE", family=family),
        MapContract("mappings", lru, layout.mapping_key, layout.mapping, "MAX_MAPPING_ENTRIES", family=family),
    )


_SHARED: Final = (
    MapContract("slots", MapType.ARRAY, 4, 4, "MAX_SLOTS", BPF_F_MMAPABLE),
    MapContract("backends", MapType.ARRAY, 4, BACKEND_RECORD, "MAX_BACKENDS", BPF_F_MMAPABLE),
    MapContract("interfaces", MapType.DEVMAP_HASH, 4, 4, "MAX_ENDPOINTS"),
    MapContract("answers", MapType.PERCPU_ARRAY, 4, ANSWERED_RECORD, "ONE"),
    MapContract("counters", MapType.PERCPU_ARRAY, 4, 8, "COUNTERS"),
)
MAPS: Final = {contract.name: contract for contract in (*_maps_of(IPV4), *_maps_of(IPV6), *_SHARED)}
