"""Packets for our programs, made by hand: what they are of, where their flows are entered, and what a run of one costs
(BPF_PROG_TEST_RUN).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from bench.measures import HTTP_PORT, IPERF_PORT
from pydatapath import Datapath, Options, schema
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import ENDPOINT, LAYOUTS, PROTOCOLS, Family, FamilyLayout, FlowFlag, FlowState
from pydatapath.lab import Host, Lab, LabSpec

__all__ = [
    "CALLED",
    "FAR_AWAY",
    "VIPS",
    "Bench",
    "bench",
    "documents",
    "enter",
    "enter_masqueraded",
    "established",
    "forget",
    "median",
    "openings",
    "outside_of",
    "packet",
    "run_by",
    "short_runs",
    "statistics_on",
    "taken",
]

VIPS = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd00:10:96::10"}
TARGET, CALLED, SPORT = HTTP_PORT, 80, 40000
REPEAT, ROUNDS, OPENINGS = 100_000, 9, 4000
FAR_AWAY = {Family.IPV4: "198.51.100.77", Family.IPV6: "2001:db8:99::77"}
CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")
HOPS = 50  # that a packet has left where each run takes one


class _Statistics(libbpf._ProgramInfo):
    """struct bpf_prog_info up to run_cnt."""

    _fields_ = (  # type: ignore[assignment]  # the base class's are of other types
        ("rest", ctypes.c_uint8 * 112),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Bench:
    """One loaded node with a pod that calls and one that serves, in both families."""

    lab: Lab
    datapath: Datapath

    def address(self, family: Family, number: int) -> str:
        """A pod's address."""
        pod = self.lab.pod(1, number)
        return pod.address6 if family is Family.IPV6 else pod.address

    @property
    def index(self) -> int:
        """The calling pod's interface."""
        return interface_index(self.lab, "pod1")


def interface_index(lab: Lab, name: str) -> int:
    """The index of an interface of the node."""
    import socket

    with lab.node(1).entered():
        return socket.if_nametoindex(name)


def documents(lab: Lab, port: int, target: int, name: str) -> list[dict[str, object]]:
    """A service of both families by one pod."""
    ports = [{"name": kind.lower(), "protocol": kind} for kind in ("TCP", "UDP", "SCTP")]
    pod = lab.pod(1, 2)
    vips = list(VIPS.values())
    service: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIPs": vips, "ports": [{**one, "port": port, "targetPort": target} for one in ports]},
    }
    slices: list[dict[str, object]] = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-{family.lower()}", "labels": {"kubernetes.io/service-name": name}},
            "addressType": family,
            "ports": [{**one, "port": target} for one in ports],
            "endpoints": [{"addresses": [address], "nodeName": pod.node.netns}],
        }
        for family, address in (("IPv4", pod.address), ("IPv6", pod.address6))
    ]
    return [service, *slices]


@contextlib.contextmanager
def bench(*, masquerade: bool = False) -> Iterator[Bench]:
    """The node, for the length of the block."""
    with Lab.up(LabSpec(f"costs{os.getpid()}{'m' * masquerade}", nodes=1, pods=2, dual_stack=True)) as lab:
        name = lab.node(1).netns
        datapath = Datapath.load(Options(node_name=name, masquerade=masquerade, cluster_cidr=CLUSTER), netns=name)
        try:
            for title, port, target in (("web", CALLED, TARGET), ("iperf", IPERF_PORT, IPERF_PORT)):
                datapath.apply([schema.parse(one, "bench") for one in documents(lab, port, target, title)])
            yield Bench(lab, datapath)
        finally:
            datapath.unload()


def packet(source: str, destination: str, protocol: str, dport: int, flags: str = "A") -> bytes:
    """A small packet, by scapy."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.layers.sctp import SCTP

    layer = IPv6 if ":" in source else IP
    transport = {"TCP": TCP(sport=SPORT, dport=dport, flags=flags), "UDP": UDP(sport=SPORT, dport=dport)}
    load = transport.get(protocol) or SCTP(sport=SPORT, dport=dport, tag=1)
    return bytes(Ether(dst="02:00:00:00:00:01") / layer(src=source, dst=destination) / load / (b"x" * 64))


def run_by(this: Bench, program: int, frame: bytes, repeat: int = REPEAT) -> int:
    """ns for one run of the program of this descriptor."""
    context = bytearray(192)
    struct.pack_into("=I", context, 40, this.index)
    with this.lab.node(1).entered():
        return libbpf.run(program, frame, bytes(context), repeat).nanoseconds


def run(this: Bench, frame: bytes, repeat: int = REPEAT) -> int:
    """ns for one run of from_pod."""
    with libbpf.opened(libbpf.open_pin(str(this.datapath.instance.program_pins / "from_pod"))) as descriptor:
        return run_by(this, descriptor, frame, repeat)


def median(this: Bench, frame: bytes, rounds: int = ROUNDS) -> float:
    """The median of some rounds."""
    return statistics.median(run(this, frame) for _ in range(rounds))


def short_runs(this: Bench, frame: bytes, count: int) -> float:
    """The median of so many runs that are short, since each takes a hop off the packet."""
    return statistics.median(run(this, frame, HOPS) for _ in range(count))


def kernel_now(this: Bench) -> int:
    """The kernel's 64-bit jiffies, of which a user's clock has the lower half: read off a flow that is made for it."""
    run(this, packet(this.address(Family.IPV4, 1), VIPS[Family.IPV4], "TCP", CALLED, "S"), 1)
    own = this.datapath._maps["half_open"]
    return max(int(LAYOUTS[Family.IPV4].flow.struct.unpack(value)[1]) for _, value in own.items())


def established(layout: FamilyLayout, to: bytes, stamp: int, flags: int = 0) -> bytes:
    """One direction of a flow that has been answered, and goes to no service's backend."""
    entry: bytes = layout.flow.struct.pack(to, stamp, 0, 0, 0, 0, FlowState.ESTABLISHED, flags, bytes(4), bytes(4), 0)
    return entry


def enter(this: Bench, family: Family, protocol: str, *, plain: bool = False) -> None:
    """A flow whose packet becomes another one of a flow that becomes the first again: each repetition is translated."""
    layout, maps = LAYOUTS[family], this.datapath._maps
    client, backend = (ip_address(this.address(family, number)).packed for number in (1, 2))
    vip = ip_address(VIPS[family]).packed
    ends = struct.pack("!HH", SPORT, CALLED), struct.pack("!HH", SPORT, TARGET)
    keys = [
        layout.tuple.struct.pack(client, there, ports[:2], ports[2:], PROTOCOLS[protocol])
        for there, ports in ((vip, ends[0]), (backend, ends[1]))
    ]
    flags = FlowFlag.PLAIN if plain else FlowFlag(0)
    last_seen = kernel_now(this)
    for key, to in (keys, keys[::-1]):
        value = established(layout, key if plain else to, last_seen, flags)
        maps[f"flows{family.suffix}"].update(key, value)
    know(this, family)


def know(this: Bench, family: Family) -> None:
    """Makes both ends of the flow known at the serving pod: it has sent nothing yet that it could be learned by."""
    endpoint = ENDPOINT.pack(interface_index(this.lab, "pod2"), bytes(6), 0)
    for address in (VIPS[family], this.address(family, 2)):
        this.datapath._maps[f"endpoints{family.suffix}"].update(ip_address(address).packed, endpoint)


def forget(this: Bench) -> None:
    """Takes what `enter` and the openings have made."""
    maps = this.datapath._maps
    for family in Family:
        for table in ("flows", "half_open"):
            own = maps[f"{table}{family.suffix}"]
            own.delete_many([key for key, _ in own.items()])
        maps[f"endpoints{family.suffix}"].delete(ip_address(VIPS[family]).packed)


def openings(this: Bench, family: Family, protocol: str, called: str, count: int = OPENINGS) -> float:
    """ns of a flow's first packet: each is another one, run once, the clock's own cost taken off."""
    frame = bytearray(packet(this.address(family, 1), called, protocol, CALLED, "S"))
    ports = 14 + (40 if family is Family.IPV6 else 20)
    empty = bytes(12) + b"\x88\xcc" + bytes(60)  # LLDP: passes at once
    clock_cost = statistics.median(run(this, empty, 1) for _ in range(500)) - run(this, empty)
    costs = []
    for port in range(1024, 1024 + count):
        struct.pack_into("!H", frame, ports, port)
        costs.append(run(this, bytes(frame), 1) - clock_cost)
    return statistics.median(costs)


def enter_masqueraded(this: Bench, family: Family) -> None:
    """As `enter`: a pod's packet to the outside becomes the node's, and that the pod's again."""
    layout, maps = LAYOUTS[family], this.datapath._maps
    node, outside = (outside_of(family, host) for host in (this.lab.node(1), this.lab.outside))
    client, far = ip_address(this.address(family, 1)).packed, ip_address(outside).packed
    ports = struct.pack("!H", SPORT), struct.pack("!H", CALLED)
    keys = [layout.tuple.struct.pack(one, far, *ports, PROTOCOLS["UDP"]) for one in (client, ip_address(node).packed)]
    flags, last_seen = FlowFlag.PAIRED | FlowFlag.MASQUERADED, kernel_now(this)
    for key, to in (keys, keys[::-1]):
        value = established(layout, to, last_seen, flags)
        maps[f"flows{family.suffix}"].update(key, value)


def outside_of(family: Family, host: Host) -> str:
    """A host's address in the uplink's network."""
    return str(host.address6 if family is Family.IPV6 else host.address)


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """The kernel counts what programs take (bpf(2), BPF_ENABLE_STATS), which itself costs some ns each time."""
    descriptor = libbpf.library().bpf_enable_stats(0)
    try:
        yield
    finally:
        os.close(descriptor)


def taken(this: Bench) -> dict[str, tuple[int, int]]:
    """(ns, runs) of each program at a hook so far."""
    found = {}
    for path in sorted(this.datapath.instance.program_pins.iterdir()):
        if path.name != "walks":
            descriptor = libbpf.open_pin(str(path))
            info = _Statistics()
            libbpf._info(descriptor, info)
            os.close(descriptor)
            found[path.name] = (info.run_time_ns, info.run_cnt)
    return found
