"""A bounded soak (F32): pods and services come and go, and nothing of ours grows with their number.

PYDATAPATH_BIG=1 pytest tests/fault/test_soak.py     ten minutes instead of forty seconds
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from calls import KINDS, ask_many
from host_state import filters
from in_kernel import InKernel
from rows import tell
from scene import BIG, PORT, VIP_PORT, Cluster, cluster_up, objects
from stand import MAX_BACKENDS, MAX_FLOWS, OWN_SIZES
from streaming import Scripts

from pydatapath import Datapath
from pydatapath.kernel.layout import MAPS, MapType
from pydatapath.kernel.links import Links, create_namespace, delete_namespace
from pydatapath.kernel.maps import Maps

pytestmark = pytest.mark.timeout(1200 if BIG else 400)

SECONDS = 600.0 if BIG else 40.0
FEWEST, LONGEST = 20, 2.5 * SECONDS  # rounds, and how long they may take where the machine is slow
LOAD_EVERY = 5  # rounds
KEPT = 3  # services that are there at once, of those that come and go
TALKERS = 20
STEADY = ("10.96.0.95", VIP_PORT)
GROWS_MB = 2.0  # between the middle and the end: an allocator is not quite still
EXPIRING = ("tcp-opening=2", "tcp-closing=2", "udp-unanswered=2", "udp=2", "icmp=2")  # so that the end can be seen
EXPIRED_SECONDS, KERNEL_SECONDS = 20.0, 15.0
LOAD = f"{TALKERS} TCP connections that talk and new calls by TCP and UDP; calls of each pod that comes, inside and out"
OPTIONS = {"max_backends": MAX_BACKENDS, "max_flows": MAX_FLOWS, "masquerade": True, "timeout": EXPIRING}
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service that stays; the fourth pod is the one that comes and goes."""
    with cluster_up(f"so-{os.getpid()}", nodes=1, pods=4, loaded=()) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(1, 3), made.lab.outside)  # type: ignore[arg-type]
        try:
            yield made
        finally:
            made.kill(made.lab.outside)  # type: ignore[arg-type]


@dataclass
class Soak:
    """One long-lived handle, and what was there of us after each round."""

    cluster: Cluster
    datapath: Datapath
    in_kernel: InKernel
    failures: list[str] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)
    megabytes: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.megabytes)

    def round(self) -> None:
        """A pod goes and another comes, and so does a service, which it calls."""
        lab, number = self.cluster.lab, self.rounds
        self._another_pod(number)
        if number % LOAD_EVERY:
            self.datapath.repair()
        else:
            self.cluster.load(1, **OPTIONS)
            self.cluster.datapaths.pop(1).close()
        vip = (f"10.96.3.{1 + number % 200}", VIP_PORT)
        self.datapath.apply(objects(f"soak{number}", vip[0], [lab.pod(1, 2 + number % 2)]))
        for target in (vip, STEADY, (lab.outside.address, PORT)):
            for kind in KINDS.values():
                self.failures += ask_many(lab.pod(1, 4), kind, target, 5).failures
        if number >= KEPT:
            name = f"soak{number - KEPT}"
            self.datapath.delete([("EndpointSlice", "default", f"{name}-1"), ("Service", "default", name)])
        self._look()

    def _another_pod(self, number: int) -> None:
        """With a namespace, an interface and a MAC of its own, at the address that the last one had."""
        pod, node = self.cluster.lab.pod(1, 4), self.cluster.lab.node(1)
        with Links(node.netns) as links:
            links.delete(pod.interface)
            delete_namespace(pod.netns)
            create_namespace(pod.netns)
            mac = f"02:00:00:00:55:{number % 256:02x}"
            links.veth(pod.interface, "eth0", pod.netns, peer_mac=mac, bridge=node.bridge)
        with Links(pod.netns) as inside:
            inside.address("eth0", f"{pod.address}/24")
            inside.up("eth0")
            inside.route("default", via=node.gateway)

    def _look(self) -> None:
        gc.collect()
        for name, count in {**of_process(), **self.in_kernel(), **self._of_instance()}.items():
            self.counts.setdefault(name, []).append(count)
        self.megabytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6)

    def _of_instance(self) -> dict[str, int]:
        which = self.datapath.instance
        with Maps(which.map_pins) as maps:
            tables = [path.name for path in which.map_pins.iterdir()]
            tables = [name for name in tables if MAPS[name].type in (MapType.HASH, MapType.LPM_TRIE)]
            entries = sum(len(maps[name]) for name in tables)
        pins = len([*which.pins.rglob("*")])
        return {"entries": entries, "pins": pins, "filters": hung(self.cluster)}

    def grown(self) -> dict[str, int]:
        """What is more at the end than in the middle. Of each the least of a third of the rounds: the kernel takes its
        time with what is over, which makes more of it for a moment, but never less of what leaks.
        """
        third = self.rounds // 3
        least = {name: (min(seen[third:-third]), min(seen[-third:])) for name, seen in self.counts.items()}
        return {name: end - middle for name, (middle, end) in least.items() if end > middle}

    def grown_megabytes(self) -> float:
        """Of this process, by the medians of the same rounds."""
        third = self.rounds // 3
        return statistics.median(self.megabytes[-third:]) - statistics.median(self.megabytes[third:-third])


def of_process() -> dict[str, int]:
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}


def hung(cluster: Cluster) -> int:
    """How many filters hang at the node's interfaces."""
    node = cluster.lab.node(1)
    names = ["br0", "eth0", "lo", *(pod.interface for pod in cluster.lab.pods)]
    return sum(len(filters(node, name, way)) for name in names for way in ("ingress", "egress"))


def soon(found: Callable[[], object], wanted: object, seconds: float) -> object:
    """What is found once it is what is wanted, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while (now := found()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def test_F32_pods_and_services_come_and_go_and_nothing_grows(cluster: Cluster, figure: Callable[[str], None]):
    """What is there of us is at the end what it was in the middle; flows expire, and unloaded nothing is left.

    That is descriptors, threads, maps, programs, pins, filters, entries and, within a bound, memory.
    """
    lab = cluster.lab
    before = {**of_process(), "filters": hung(cluster)}
    in_kernel = InKernel(OWN_SIZES)
    cluster.load(1, **OPTIONS)
    soak = Soak(cluster, cluster.datapaths.pop(1), in_kernel)
    try:
        soak.datapath.apply(objects("steady", STEADY[0], [lab.pod(1, 2), lab.pod(1, 3)]))
        begun = time.monotonic()
        with Scripts() as scripts:
            scripts.talk(lab.pod(1, 1), STEADY[0], TALKERS)
            while (lasted := time.monotonic() - begun) < SECONDS or (soak.rounds < FEWEST and lasted < LONGEST):
                soak.round()
            talk = scripts.end_talk(lab.pod(1, 1))
        flows = soon(soak.datapath.flows, [], EXPIRED_SECONDS)
    finally:
        soak.datapath.unload()
    left = soon(in_kernel, {"maps": 0, "programs": 0}, KERNEL_SECONDS)
    gc.collect()
    after = {**of_process(), "filters": hung(cluster)}
    grown, megabytes = soak.grown(), soak.grown_megabytes()
    figure(
        f"soak of {lasted:.0f} s, {soak.rounds} rounds: grown {grown or 'nothing'}, {megabytes:+.2f} MB of"
        f" {soak.megabytes[-1]:.0f}; {len(talk['broken'])} of {TALKERS} connections broken, {len(talk['failed'])} of"
        f" {talk['calls']} new calls and {len(soak.failures)} of the pods' own failed"
    )
    tell(
        repeats=soak.rounds,
        gap_ms_max=round(talk["longest"]),
        broken=len(talk["broken"]),
        new_failed=len(talk["failed"]) + len(soak.failures),
        leaked=sum(grown.values()) + len(flows),  # type: ignore[arg-type]
    )
    assert (talk["broken"], talk["failed"], soak.failures) == ([], [], [])
    assert soak.rounds >= 6, "of fewer there is no middle and no end"
    assert grown == {}
    assert megabytes < GROWS_MB
    assert flows == []
    assert left == {"maps": 0, "programs": 0}
    assert not soak.datapath.instance.pins.exists()
    assert after == before
