"""What a packet costs in our programs, in ns: by BPF_PROG_TEST_RUN one kind at a time, and by the kernel's own
statistics (bpf_enable_stats) under iperf3.

Run as root: `.venv/bin/python -m bench.packet_costs`. A test run's packet is warm in every cache: real ones cost more,
and the second table says how much.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

from bench.measures import HTTP_PORT, WRK_CONNECTIONS
from bench.servers import server_commands
from pydatapath import Datapath, Options, schema
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import ENDPOINT, LAYOUTS, PROTOCOLS, Family, FamilyLayout, FlowFlag, FlowState
from pydatapath.lab import Host, Lab, LabSpec

Cost: TypeAlias = Callable[[Family], float]

VIPS = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd00:10:96::10"}
TARGET, CALLED, IPERF, SPORT = HTTP_PORT, 80, 5201, 40000
REPEAT, ROUNDS, OPENINGS, SECONDS = 100_000, 9, 4000, 4
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
    with Lab.up(LabSpec(f"costs{os.getpid()}", nodes=1, pods=2, dual_stack=True)) as lab:
        name = lab.node(1).netns
        datapath = Datapath.load(Options(node_name=name, masquerade=masquerade, cluster_cidr=CLUSTER), netns=name)
        try:
            for title, port, target in (("web", CALLED, TARGET), ("iperf", IPERF, IPERF)):
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


def run(this: Bench, frame: bytes, repeat: int = REPEAT) -> int:
    """ns for one run of from_pod."""
    context = bytearray(192)
    struct.pack_into("=I", context, 40, this.index)
    descriptor = libbpf.open_pin(str(this.datapath.instance.program_pins / "from_pod"))
    try:
        with this.lab.node(1).entered():
            return libbpf.run(descriptor, frame, bytes(context), repeat).nanoseconds
    finally:
        os.close(descriptor)


def median(this: Bench, frame: bytes) -> float:
    """The median of some rounds."""
    return statistics.median(run(this, frame) for _ in range(ROUNDS))


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


def openings(this: Bench, family: Family, protocol: str, called: str) -> float:
    """ns of a flow's first packet: each is another one, run once, the clock's own cost taken off."""
    frame = bytearray(packet(this.address(family, 1), called, protocol, CALLED, "S"))
    ports = 14 + (40 if family is Family.IPV6 else 20)
    empty = bytes(12) + b"\x88\xcc" + bytes(60)  # LLDP: passes at once
    clock_cost = statistics.median(run(this, empty, 1) for _ in range(500)) - run(this, empty)
    costs = []
    for port in range(1024, 1024 + OPENINGS):
        struct.pack_into("!H", frame, ports, port)
        costs.append(run(this, bytes(frame), 1) - clock_cost)
    return statistics.median(costs)


def row(this: Bench, title: str, cost: Cost) -> None:
    """Prints a row of the first table."""
    costs = []
    for family in Family:
        costs.append(cost(family))
        forget(this)
    print(f"{title:48}" + "".join(f"{one:8.0f}" for one in costs))


def by_kind(this: Bench) -> None:
    """The first table."""
    print(f"{'ns a packet, by BPF_PROG_TEST_RUN':48}{'IPv4':>8}{'IPv6':>8}")

    def known(protocol: str, *, plain: bool = False) -> Cost:
        def cost(family: Family) -> float:
            enter(this, family, protocol, plain=plain)
            return median(this, packet(this.address(family, 1), VIPS[family], protocol, CALLED))

        return cost

    def passing(protocol: str) -> Cost:
        return lambda family: median(this, packet(this.address(family, 1), FAR_AWAY[family], protocol, 9))

    row(this, "known flow, TCP, translated to a pod here", known("TCP"))
    row(this, "known flow, UDP, translated to a pod here", known("UDP"))
    row(this, "known flow, TCP, direct to a backend's port", known("TCP", plain=True))
    row(this, "passing through: TCP to nowhere of ours", passing("TCP"))
    row(this, "passing through: UDP to nowhere of ours", passing("UDP"))
    row(this, "new flow, TCP (SYN)", lambda family: openings(this, family, "TCP", VIPS[family]))
    row(this, "new flow, UDP", lambda family: openings(this, family, "UDP", VIPS[family]))


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


def leaving(this: Bench) -> None:
    """The rows of who leaves the cluster: every run asks for the route, and takes a hop."""

    def known(family: Family) -> float:
        enter_masqueraded(this, family)
        frame = packet(this.address(family, 1), outside_of(family, this.lab.outside), "UDP", CALLED)
        return statistics.median(run(this, frame, HOPS) for _ in range(OPENINGS))

    def opening(protocol: str, family: Family) -> float:
        return openings(this, family, protocol, outside_of(family, this.lab.outside))

    row(this, "known flow, UDP, masqueraded", known)
    for protocol in ("TCP", "UDP"):
        row(
            this,
            f"new flow, {protocol}, masqueraded",
            functools.partial(opening, protocol),
        )


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


def under_load(this: Bench, family: Family) -> None:
    """A row of the second table for each program that ran."""
    server = this.lab.pod(1, 2).popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        before = taken(this)
        done = this.lab.pod(1, 1).exec(["iperf3", "-J", "-c", VIPS[family], "-t", str(SECONDS)], timeout=60)
        after = taken(this)
    finally:
        server.kill()
        server.wait()
    speed = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    for name in after:
        total, runs = (now - then for now, then in zip(after[name], before[name], strict=True))
        if runs > 1000:
            print(f"{name:16}IPv{family:<6}{runs:12,}{total / runs:12.0f}{speed:12.1f}")


def connecting(this: Bench) -> None:
    """What all of our programs take for one short connection of a real client, its packets together."""
    caller = ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{SECONDS}s", "-H", "Connection: close"]
    with tempfile.TemporaryDirectory() as folder:
        server = this.lab.pod(1, 2).popen(server_commands(Path(folder), None)["nginx"])
        try:
            time.sleep(0.5)
            before = taken(this)["from_pod"]
            done = this.lab.pod(1, 1).exec([*caller, f"http://{VIPS[Family.IPV4]}:{CALLED}/"], timeout=60)
            after = taken(this)["from_pod"]
        finally:
            server.kill()
            server.wait()
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found, done.stdout
    total, runs = ((now - then) / int(found[1]) for now, then in zip(after, before, strict=True))
    print(f"{'a short TCP connection of 1 request, IPv4':48}{int(found[1]):12,}{runs:12.1f}{total:12.0f}")


def main() -> None:
    """All tables."""
    with bench() as this:
        by_kind(this)
        print(f"\n{'under iperf3':16}{'family':9}{'packets':>12}{'ns a packet':>12}{'Gbit/s':>12}")
        with statistics_on():
            for family in Family:
                under_load(this, family)
            print(f"\n{'under wrk':48}{'connections':>12}{'packets':>12}{'ns of ours':>12}")
            connecting(this)
    with bench(masquerade=True) as this:
        print(f"\n{'ns a packet that leaves the cluster':48}{'IPv4':>8}{'IPv6':>8}")
        leaving(this)


if __name__ == "__main__":
    main()
