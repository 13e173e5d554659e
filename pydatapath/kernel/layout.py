"""What C and Python share, Python's side of bpf/contract.h: structs, numbers, and the maps that hold them.

Addresses and ports are in network byte order as they stand in packets; everything else is the machine's. Whenever
the compiler runs the structs here are compared, field by field, with those that it made of contract.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "AFFINITY",
    "ANSWERED",
    "BACKEND",
    "CLIENT",
    "ENDPOINT",
    "FLOW",
    "FRAGMENT",
    "LAYOUT_VERSION",
    "MAPS",
    "RUN",
    "SERVICE",
    "SOURCE_RANGE",
    "TAILS",
    "TRANSPORT_ADDRESS",
    "TUPLE",
    "BackendState",
    "Counter",
    "EndpointKind",
    "FlowFlag",
    "FlowState",
    "Hook",
    "MapContract",
    "MapType",
    "Record",
    "ServiceFlag",
    "VipKind",
    "flow_state",
    "timeout",
]

LAYOUT_VERSION: Final = 2

PROTOCOLS: Final = {"TCP": 6, "UDP": 17}
PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}


class FlowState(IntEnum):
    """The life of a flow. CLOSING stands in no entry: it is read off both directions' flags."""

    NEW = 0
    ESTABLISHED = 1
    CLOSING = 2


class FlowFlag(IntFlag):
    """REPLY: the answering direction. PLAIN: nothing is rewritten. FIN, RST: this direction has sent one."""

    REPLY = 1
    PLAIN = 2
    FIN = 4
    RST = 8


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


class Hook(IntEnum):
    """Where a program sits (enum hook in bpf/forward.h)."""

    FROM_POD = 0
    FROM_UPLINK = 1
    TO_BRIDGE = 2
    TO_UPLINK = 3

    @property
    def program(self) -> str:
        """The name of the program at the hook."""
        return self.name.lower()

    @property
    def role(self) -> str:
        """What an interface with this hook is to us: pod, bridge or uplink."""
        return {Hook.FROM_POD: "pod", Hook.TO_BRIDGE: "bridge"}.get(self, "uplink")

    @property
    def direction(self) -> str:
        """The tc hook: ingress or egress."""
        return "egress" if self in (Hook.TO_BRIDGE, Hook.TO_UPLINK) else "ingress"


# The programs that the hooks' go on in, by their places in the program array: `walk` where a packet needs more than its
# known flow, and `leave` where that has decided what it becomes
TAILS: Final = {"walk": 0, "leave": 1}

# Seconds without a packet after which a flow is over, by protocol and state. Netfilter's for TCP's long state;
# RFC 4787 REQ-5 for UDP (at least two minutes, five by default); RFC 7857 2.1 for TCP's last four minutes.
TIMEOUTS: Final = {
    "UDP_NEW": 120,
    "UDP_ESTABLISHED": 300,
    "TCP_NEW": 120,
    "TCP_ESTABLISHED": 432_000,
    "TCP_CLOSING": 240,
}
# Seconds for which later fragments follow the first: as long as Linux waits for them (net.ipv4.ipfrag_time)
FRAGMENTS_TIMEOUT: Final = 30


def timeout(protocol: str, state: FlowState) -> int:
    """Seconds that a flow of this protocol and state lives without a packet."""
    if protocol == "UDP" and state is FlowState.CLOSING:
        state = FlowState.ESTABLISHED
    return TIMEOUTS[f"{protocol}_{state.name}"]


@dataclass(frozen=True)
class Record:
    """A struct of contract.h: its fields in order, each with its code of the `struct` module ("x": padding)."""

    name: str
    fields: tuple[tuple[str, str], ...]

    @property
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


_TUPLE_FIELDS: Final = (
    ("source", "4s"),
    ("destination", "4s"),
    ("source_port", "2s"),
    ("destination_port", "2s"),
    ("protocol", "B"),
    ("zero", "3x"),
)
TUPLE_RECORD: Final = Record("tuple", _TUPLE_FIELDS)
FLOW_RECORD: Final = Record(
    "flow",
    (
        ("to", "16s"),
        ("last_seen", "Q"),
        ("packets", "Q"),
        ("bytes", "Q"),
        ("backend", "I"),
        ("generation", "I"),
        ("state", "B"),
        ("flags", "B"),
        ("zero", "14x"),
    ),
)
TRANSPORT_ADDRESS_RECORD: Final = Record(
    "transport_address", (("address", "4s"), ("port", "2s"), ("protocol", "B"), ("zero", "x"))
)
SERVICE_RECORD: Final = Record(
    "service",
    (
        ("inside", "8s"),  # struct run: first_slot, slot_count
        ("outside", "8s"),
        ("number", "I"),
        ("affinity", "I"),
        ("flags", "I"),
        ("zero", "4x"),
    ),
)
RUN: Final = struct.Struct("=II")
ANSWERED_RECORD: Final = Record("answered", (("since", "Q"), ("count", "I"), ("zero", "4x")))
LEAVING_RECORD: Final = Record("leaving", (("key", "16s"), ("to", "16s")))
FRAGMENT_KEY_RECORD: Final = Record(
    "fragment_key",
    (("source", "4s"), ("destination", "4s"), ("identification", "2s"), ("protocol", "B"), ("zero", "x")),
)
FRAGMENT_RECORD: Final = Record("fragment", (("first_seen", "Q"), ("source", "4s"), ("destination", "4s")))
SOURCE_RANGE_RECORD: Final = Record("source_range", (("prefix_length", "I"), ("service", "I"), ("network", "4s")))
CLIENT_RECORD: Final = Record("client", (("address", "4s"), ("service", "I")))
AFFINITY_RECORD: Final = Record(
    "affinity", (("last_used", "Q"), ("backend", "I"), ("generation", "I"), ("position", "I"), ("zero", "4x"))
)
BACKEND_RECORD: Final = Record(
    "backend",
    (("address", "4s"), ("port", "2s"), ("protocol", "B"), ("state", "B"), ("generation", "I"), ("service", "I")),
)
ENDPOINT_RECORD: Final = Record("endpoint", (("interface", "I"), ("mac", "6s"), ("kind", "B"), ("zero", "x")))

TUPLE: Final = TUPLE_RECORD.struct
FLOW: Final = FLOW_RECORD.struct
TRANSPORT_ADDRESS: Final = TRANSPORT_ADDRESS_RECORD.struct
SERVICE: Final = SERVICE_RECORD.struct
ANSWERED: Final = ANSWERED_RECORD.struct
FRAGMENT: Final = FRAGMENT_RECORD.struct
SOURCE_RANGE: Final = SOURCE_RANGE_RECORD.struct
CLIENT: Final = CLIENT_RECORD.struct
AFFINITY: Final = AFFINITY_RECORD.struct
BACKEND: Final = BACKEND_RECORD.struct
ENDPOINT: Final = ENDPOINT_RECORD.struct


BPF_F_NO_PREALLOC: Final = 1


class MapType(IntEnum):
    """enum bpf_map_type, those that we use."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11


@dataclass(frozen=True)
class MapContract:
    """One pinned map: its type, the structs of its keys and values (None: a plain number), its size's -D name."""

    name: str
    type: MapType
    key: Record | int
    value: Record | int
    size: str
    flags: int = 0  # of BPF_MAP_CREATE

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self.key if isinstance(self.key, int) else self.key.struct.size

    @property
    def value_size(self) -> int:
        """Bytes of a value (of one CPU's, in a per-CPU map)."""
        return self.value if isinstance(self.value, int) else self.value.struct.size


MAPS: Final = {
    contract.name: contract
    for contract in (
        MapContract("flows", MapType.LRU_HASH, TUPLE_RECORD, FLOW_RECORD, "MAX_FLOW_ENTRIES"),
        MapContract("half_open", MapType.LRU_HASH, TUPLE_RECORD, FLOW_RECORD, "MAX_HALF_OPEN_ENTRIES"),
        MapContract("fragments", MapType.LRU_HASH, FRAGMENT_KEY_RECORD, FRAGMENT_RECORD, "MAX_FRAGMENTS"),
        MapContract("services", MapType.HASH, TRANSPORT_ADDRESS_RECORD, SERVICE_RECORD, "MAX_SERVICES"),
        MapContract("slots", MapType.ARRAY, 4, 4, "MAX_SLOTS"),
        MapContract("backends", MapType.ARRAY, 4, BACKEND_RECORD, "MAX_BACKENDS"),
        MapContract("targets", MapType.HASH, TRANSPORT_ADDRESS_RECORD, 4, "MAX_BACKENDS"),
        MapContract("ranges", MapType.LPM_TRIE, SOURCE_RANGE_RECORD, 4, "MAX_RANGES", flags=BPF_F_NO_PREALLOC),
        MapContract("vips", MapType.HASH, 4, 4, "MAX_SERVICES"),
        MapContract("affinities", MapType.LRU_HASH, CLIENT_RECORD, AFFINITY_RECORD, "MAX_AFFINITIES"),
        MapContract("endpoints", MapType.LRU_HASH, 4, ENDPOINT_RECORD, "MAX_ENDPOINTS"),
        MapContract("leaving", MapType.PERCPU_ARRAY, 4, LEAVING_RECORD, "ONE"),
        MapContract("answers", MapType.PERCPU_ARRAY, 4, ANSWERED_RECORD, "ONE"),
        MapContract("counters", MapType.PERCPU_ARRAY, 4, 8, "COUNTERS"),
    )
}
