"""A bed for one packet at a time: the real programs, the real maps, one namespace with routes, and no cluster.

Packets are made by scapy and run by BPF_PROG_TEST_RUN. That reports the verdict, the packet as it would leave, and
nothing of where a redirect leads: the MAC that was written tells which pod was meant. Who is where: places.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from frames import (
    REDIRECT,
    TCP,
    Outcome,
    Packet,
    addresses,
    answer_to,
    key_of,
    packed,
    reverse,
    shown,
    tcp,
    transport_of,
)
from places import DEVICES, MAC, V4, V6

from pydatapath.kernel import clock, flowtable, libbpf, table_writes, tables
from pydatapath.kernel.compile import NAT_POD_PARTS, Sizes
from pydatapath.kernel.layout import (
    AFFINITY,
    ANSWERED,
    ENDPOINT,
    LAYOUTS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    BackendState,
    EndpointKind,
    Family,
    Hook,
    MappingSide,
    MemberKind,
)
from pydatapath.kernel.layout import BACKEND as BACKEND_STRUCT
from pydatapath.kernel.maps import Maps, possible_cpus
from pydatapath.membership import kind_of, member_change, members_of
from pydatapath.model import Node
from pydatapath.plan import Address, Change, EndpointSet, Frontend, FrontendKind, PortPlan, change

__all__ = [
    "FEW_PORTS",
    "OTHER_TIMEOUTS",
    "SIZES",
    "Bed",
    "Case",
    "Entry",
    "Serving",
    "ids",
]

# LRU maps hand out free entries to CPUs by the hundred: not so small that one CPU takes what another has
SIZES = Sizes(flows=1024, half_open=1024, services=64, backends=64, endpoints=1024, fragments=1024, networks=64)

# C14: other times than the usual, all of them, of those that histories let pass
OTHER_TIMEOUTS = {
    "UDP_NEW": 60,
    "UDP_ESTABLISHED": 240,
    "TCP_NEW": 30,
    "TCP_ESTABLISHED": 3_602,
    "TCP_CLOSING": 120,
    "ICMP_NEW": 10,
    "ICMP_ESTABLISHED": 30,
    "SCTP_NEW": 300,
    "SCTP_ESTABLISHED": 240,
    "QUARANTINE": 60,
}
FEW_PORTS = (20_000, 20_007)  # of each parity four: soon they are taken, or were another's lately
_SKB_BYTES = 192  # struct __sk_buff (include/uapi/linux/bpf.h), and where test-run lets us fill it in
_SKB_IFINDEX, _SKB_CB, _SKB_GSO_SEGS, _SKB_GSO_SIZE = 40, 48, 164, 176
_NOT_WALKED = 0x77  # skb->cb[0] tells `walk` the hook: what stays there was never overwritten
_UNWALKED = 3  # in skb->cb[1], enum seen_flow's: none but `recall` would have looked at it


class Serving(NamedTuple):
    """What serves a port: its Cluster and Local set, which of them callers outside the cluster (and inside) get, and
    the seconds of session affinity. `service`: the Service that it is a port of, whose ports share their clients; "":
    its own.
    """

    cluster: Sequence[str] = ()
    local: Sequence[str] = ()
    outside: EndpointSet = "cluster"
    inside: EndpointSet = "cluster"
    affinity: int = 0
    kind: FrontendKind = "cluster-ip"
    sources: tuple[str, ...] | None = None
    draining: Sequence[str] = ()
    service: str = ""


class Entry(NamedTuple):
    """One direction of a flow in a map. `to`: (source, source port, destination, destination port)."""

    to: tuple[str, int, str, int]
    last_seen: int
    packets: int
    bytes: int
    backend: int
    generation: int
    state: int
    flags: int
    awaited: bytes
    granted: bytes
    answer: int


@dataclass(frozen=True)
class Case:
    """A packet at a hook, and what must leave. `want` None: the packet as it came."""

    why: str
    packet: Packet
    want: Packet | None = None
    hook: Hook = Hook.FROM_POD
    verdict: int = REDIRECT
    counted: str = ""


def ids(case: object) -> str:
    """A case's name for pytest: its reason."""
    return case.why if isinstance(case, Case) else str(case)


def _entry(raw: bytes) -> Entry:
    layout = next(one for one in LAYOUTS.values() if one.flow.struct.size == len(raw))
    to, *rest = layout.flow.struct.unpack(raw)
    source, destination, sport, dport, _ = layout.tuple.struct.unpack(to)
    ends = str(ip_address(source)), int.from_bytes(sport, "big"), str(ip_address(destination))
    return Entry((*ends, int.from_bytes(dport, "big")), *rest)


def whole(entries: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """A flow table as its readers see it: an answered claim that is alone is two entries, what is retired is none."""
    if not entries:
        return {}
    flow = next(one for one in LAYOUTS.values() if one.tuple.struct.size == len(next(iter(entries)))).flow.struct
    found = flowtable.whole({key: flow.unpack(raw) for key, raw in entries.items()})
    return {key: flow.pack(*entry) for key, entry in found.items() if entry[1]}


def _table(name: str, family: Family) -> str:
    """The family's own map."""
    return name + family.suffix


class Bed:
    """The loaded programs and their maps."""

    def __init__(self, pins: Path, devices: Mapping[str, int]) -> None:
        self.pins = pins
        self.maps = Maps(pins)
        self._there = {one.name for one in pins.iterdir()}  # no mappings where nothing is masqueraded
        self.devices = devices
        self.programs = {name: libbpf.open_pin(str(pins / "programs" / name)) for name in _program_names()}
        self._numbers: dict[str, int] = {}
        self._counted: dict[str, int] = {}

    def close(self) -> None:
        """Gives the descriptors back."""
        self.maps.close()
        for descriptor in self.programs.values():
            os.close(descriptor)

    def forget_flows(self) -> None:
        """Empties the flow tables."""
        self._empty("flows", "half_open")

    def _empty(self, *names: str) -> None:
        for name in self._there.intersection(_table(name, family) for name in names for family in Family):
            self.maps[name].delete_many([key for key, _ in self.maps[name].items()])

    def reset(self) -> None:
        """Empties every map and puts the pods and the node in their places."""
        self.forget_flows()
        self._empty(
            "services", "targets", "endpoints", "affinities", "vips", "ranges", "networks", "fragments", "mappings"
        )
        empty = BACKEND_STRUCT.pack(bytes(16), bytes(2), 0, BackendState.UNUSED, 0, 0)
        self.maps["backends"].update_many({struct.pack("=I", one): empty for one in range(SIZES.backends)})
        self.maps["slots"].update_many({struct.pack("=I", one): bytes(4) for one in range(4 * SIZES.backends)})
        for where in (V4, V6):
            self.put_endpoint(where.UPLINK, self.devices["br0"], MAC[where.NODE], EndpointKind.NODE)
        for address, device in DEVICES.items():
            self.put_endpoint(address, self.devices[device], MAC[address], EndpointKind.POD)
            self.revive(address)
        for where in (V4, V6):
            self.put_endpoint(where.NODE, self.devices["br0"], MAC[where.NODE], EndpointKind.NODE)
        self._numbers = {}
        self._counted = tables.counters(self.maps)

    # What is in place

    def join(self, *nodes: Node) -> None:
        """Makes these all nodes that Node objects name, as `apply` writes them."""
        kinds: dict[str, list[MemberKind]] = {}
        for one in nodes:
            for network, kind in members_of(one).items():
                kinds.setdefault(network, []).append(kind)
        wanted = {network: kind_of(each) for network, each in kinds.items()}
        table_writes.write(self.maps, Change(members=member_change(tables.read_members(self.maps), wanted)))

    def serve(self, services: Mapping[str, Sequence[str] | Serving]) -> None:
        """Makes these the services, by the plan that `apply` writes: {"10.96.0.10:80/TCP": ["10.1.0.3:8080"]}."""
        wanted = [_port_plan(called, backends) for called, backends in services.items()]
        before = {number: [_address(called)] for called, number in self._numbers.items()}
        for called in services:
            self._numbers.setdefault(called, len(self._numbers) + 1)
        numbers = {_port_plan(called, services.get(called, ())).key: each for called, each in self._numbers.items()}
        live = tables.read_live(self.maps, before)
        table_writes.write(self.maps, change(wanted, before, numbers, live))

    def put_endpoint(self, address: str, interface: int, mac: str, kind: EndpointKind) -> None:
        """Writes who answers to an address."""
        value = ENDPOINT.pack(interface, bytes.fromhex(mac.replace(":", "")), kind)
        self.maps[_table("endpoints", Family.of(address))].update(packed(address), value)

    def kill(self, address: str) -> None:
        """Lets a pod's interface be gone, as the kernel does where one is deleted."""
        self.maps["interfaces"].delete(struct.pack("=I", self.devices[DEVICES[address]]))

    def revive(self, address: str) -> None:
        """Lets a pod's interface be there. Call it inside the namespace: a device map is written there only."""
        index = struct.pack("=I", self.devices[DEVICES[address]])
        self.maps["interfaces"].update(index, index)

    def endpoint(self, address: str) -> tuple[int, str, int] | None:
        """(interface, MAC, kind) of who answers to an address."""
        raw = self.maps[_table("endpoints", Family.of(address))].lookup(packed(address))
        if raw is None:
            return None
        interface, mac, kind = ENDPOINT.unpack(raw)
        return interface, mac.hex(":"), kind

    # What happens

    def run(self, hook: Hook, packet: Packet | bytes, *, device: str = "", gso: tuple[int, int] = (0, 0)) -> Outcome:
        """Runs the hook's program on a packet that came in (or goes out) at a device. `gso`: segments, their size."""
        device = device or {Hook.FROM_POD: "pod2", Hook.TO_BRIDGE: "br0", Hook.TO_LOOPBACK: "lo"}.get(hook, "uplink")
        context = bytearray(_SKB_BYTES)
        fields = {
            _SKB_IFINDEX: self.devices[device],
            _SKB_CB: _NOT_WALKED,
            _SKB_GSO_SEGS: gso[0],
            _SKB_GSO_SIZE: gso[1],
        }
        for offset, number in fields.items():
            struct.pack_into("=I", context, offset, number)
        result = libbpf.run(self.programs[hook.program], bytes(packet), bytes(context))
        mark, seen = struct.unpack_from("=II", result.context, _SKB_CB)
        return Outcome(result.verdict, result.packet, mark != _NOT_WALKED and seen != _UNWALKED)

    def check(self, case: Case) -> None:
        """Runs a case; packet, verdict and counter must be as it says."""
        before = self.counted().get(case.counted, 0)
        outcome = self.run(case.hook, case.packet)
        want = bytes(case.packet if case.want is None else case.want)
        assert shown(outcome.packet) == shown(want)
        assert outcome.packet == want
        assert outcome.verdict == case.verdict
        if case.counted:
            assert self.counted().get(case.counted, 0) == before + 1

    def answer(self, to: Outcome, flags: str = "SA", *, device: str = "pod3") -> Outcome:
        """What comes of the answer to a packet that left, sent by the pod that got it."""
        return self.run(Hook.FROM_POD, answer_to(to, flags), device=device)

    def confirm(self, packet: Packet, hook: Hook = Hook.FROM_POD) -> None:
        """Of TCP the client's word on the answer, by which a flow moves to the main table."""
        if isinstance(transport_of(packet.payload), TCP):
            self.run(hook, tcp(*addresses(packet), "A"))

    def establish(self, packet: Packet) -> Outcome:
        """Takes a pod's flow through its first packet, the answer, TCP's third; gives the first packet as it left."""
        there = self.run(Hook.FROM_POD, packet)
        back = self.answer(there)
        assert addresses(back) == reverse(addresses(packet))
        self.confirm(packet)
        assert self.entry(packet) is not None
        return there

    # What is known then

    def entries(self, table: str = "flows") -> dict[bytes, Entry]:
        """A flow table, of both families: without what is retired, and each answered flow as two entries."""
        tables = (_table(table, family) for family in Family)
        return {key: _entry(raw) for name in tables for key, raw in whole(dict(self.maps[name].items())).items()}

    def entry(self, packet: Packet | bytes, table: str = "flows") -> Entry | None:
        """The entry that a packet with these addresses finds."""
        return self.entries(table).get(key_of(packet))

    def lose(self, packet: Packet | bytes) -> None:
        """Drops a half of a half-open flow, as an LRU that is full may do."""
        self.settle("half_open")
        self.maps[_table("half_open", _family_of(key_of(packet)))].delete(key_of(packet))

    def settle(self, table: str) -> None:
        """Makes an answered claim that is alone two entries, as whatever is out of the ordinary does."""
        for own in (self.maps[_table(table, family)] for family in Family):
            own.update_many(whole(dict(own.items())))

    def newest_backend(self) -> int:
        """The highest number that is given to a backend."""
        values = self.maps["backends"].values()
        size = BACKEND_STRUCT.size
        states = [BACKEND_STRUCT.unpack_from(values, place)[3] for place in range(0, len(values), size)]
        return max(number for number, state in enumerate(states) if state == BackendState.ACTIVE)

    def amend(self, table: str, key: bytes, **fields: int) -> None:
        """Changes fields of an entry: `last_seen`, `state`, ..."""
        family = _family_of(key)
        flow, own = LAYOUTS[family].flow.struct, self.maps[_table(table, family)]
        raw = own.lookup(key)
        assert raw is not None
        names = Entry._fields[1:]
        to, *rest = flow.unpack(raw)
        values = dict(zip(names, rest, strict=True)) | fields
        own.update(key, flow.pack(to, *(values[name] for name in names)))

    def age(self, seconds: float) -> None:
        """Lets the flows' entries be older by this much."""
        for table in ("flows", "half_open"):
            self.settle(table)
            for key, entry in self.entries(table).items():
                self.amend(table, key, last_seen=entry.last_seen - int(seconds * clock.HZ))

    def age_mappings(self, seconds: float) -> None:
        """Lets the mappings be older by this much, and what pods have begun."""
        for family, layout in LAYOUTS.items():
            mapping, own = layout.mapping.struct, self.maps[_table("mappings", family)]
            for key, raw in own.items():
                last_seen, *rest = mapping.unpack(raw)
                parts = NAT_POD_PARTS if key[-1] == MappingSide.BUDGET else 1
                own.update(key, mapping.pack(last_seen - int(seconds * clock.HZ) * parts, *rest))

    def mappings(self) -> dict[tuple[str, int, str, int], tuple[str, int]]:
        """The mappings of UDP: (address, port, protocol, side) to (address, port)."""
        found = {}
        for family, layout in LAYOUTS.items():
            for key, raw in self.maps[_table("mappings", family)].items():
                address, port, protocol, side = layout.mapping_key.struct.unpack(key)
                _, to, to_port = layout.mapping.struct.unpack(raw)
                at_key = str(ip_address(address)), int.from_bytes(port, "big"), PROTOCOL_NAMES[protocol], side
                found[at_key] = (str(ip_address(to)), int.from_bytes(to_port, "big"))
        return found

    def age_affinities(self, seconds: float) -> None:
        """Lets what clients keep be older by this much."""
        for own in (self.maps[_table("affinities", family)] for family in Family):
            for key, raw in own.items():
                last_used, *rest = AFFINITY.unpack(raw)
                own.update(key, AFFINITY.pack(last_used - int(seconds * clock.HZ), *rest))

    def age_fragments(self, seconds: float) -> None:
        """Lets the first fragments that were seen be older by this much."""
        for family, layout in LAYOUTS.items():
            fragment, own = layout.fragment.struct, self.maps[_table("fragments", family)]
            for key, raw in own.items():
                first_seen, *rest = fragment.unpack(raw)
                own.update(key, fragment.pack(first_seen - int(seconds * clock.HZ), *rest))

    def spend_answers(self, count: int, *, seconds_ago: float = 0) -> None:
        """Lets every CPU have made this many answers in the second of the last one, which was so long ago."""
        answers, cpus = self.maps["answers"], possible_cpus()
        raw = libbpf.lookup(answers.descriptor, bytes(4), ANSWERED.size * cpus)
        assert raw is not None
        since = max(since for since, _ in ANSWERED.iter_unpack(raw))
        answers.update(bytes(4), ANSWERED.pack(since - int(seconds_ago * clock.HZ), count) * cpus)

    def counted(self) -> dict[str, int]:
        """What was counted since the reset, by name, without the zeros."""
        now = tables.counters(self.maps)
        return {name: count - self._counted[name] for name, count in now.items() if count != self._counted[name]}


def _family_of(key: bytes) -> Family:
    return next(family for family, layout in LAYOUTS.items() if layout.tuple.struct.size == len(key))


def _program_names() -> list[str]:
    return [hook.program for hook in Hook]


def _address(text: str) -> Address:
    """Of `10.96.0.10:80/TCP` or `[fd00:10:96::10]:80/TCP`."""
    where, _, protocol = text.partition("/")
    address, _, port = where.rpartition(":")
    return Address(address.strip("[]"), int(port), protocol if protocol in PROTOCOLS else "TCP")


def _port_plan(called: str, serving: Sequence[str] | Serving) -> PortPlan:
    where = _address(called)
    if not isinstance(serving, Serving):
        serving = Serving(serving)
    cluster, local = (
        tuple(sorted(_address(f"{backend}/{where.protocol}") for backend in one))
        for one in (serving.cluster, serving.local)
    )
    frontend = Frontend(where, serving.kind, serving.inside, serving.outside)
    return PortPlan(
        "default",
        serving.service or called,
        called,
        where.protocol,
        (frontend,),
        cluster,
        local,
        serving.affinity,
        serving.sources,
        weights={_address(f"{backend}/{where.protocol}"): 0 for backend in serving.draining},
        family=Family.of(where.address),
        shared=bool(serving.service),
    )
