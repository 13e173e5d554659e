"""What many services cost: applying them, changing one endpoint, `diff`, `status`, memory, and a packet.

Run as root: `.venv/bin/python -m bench.scale`, or `--sizes 1000x5` for one. Seconds are those of the wall clock, the
median of some runs and from the least to the most, and in brackets what the process took of a CPU, in the median: on a
busy machine the latter says more.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from bench.packets import CALLED, VIPS, Bench, documents, enter, forget, median, openings, packet
from pydatapath import Datapath, Options, schema
from pydatapath.documents import to_yaml
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import Family
from pydatapath.lab import Lab, LabSpec
from pydatapath.model import Manifested

SIZES = ("10x5", "1000x5", "10000x5", "50000x2")
MAX_BACKENDS = 131_072
FIRST_APPLIES, CHANGES = 5, 10
FIRST_CALL, MOST_CALLS = 20_000, 200  # ports; that 200 calls all miss one of five is less likely than 1e-19
PYDATAPATH = Path(sys.executable).with_name("pydatapath")
# A small process runs each command: a child's most memory is at least what its parent had
RUN = """
import json, os, sys, time
began = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, descriptor, "/dev/null", os.O_WRONLY, 0) for descriptor in (1, 2)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
took = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""
FIRST_VIP, FIRST_POD = int(ip_address("10.100.0.0")), int(ip_address("10.128.0.0"))


class Cost(NamedTuple):
    """Seconds by the wall clock and of a CPU, and the most memory (bytes) that a command had; 0 where it was none."""

    wall: float
    cpu: float
    memory: int = 0


@dataclass(frozen=True)
class Costs:
    """Those of some runs."""

    each: list[Cost]

    def __str__(self) -> str:
        walls, cpus, memories = zip(*self.each, strict=True)
        spread = f", {min(walls):.3f} to {max(walls):.3f}, {len(walls)} runs" if len(walls) > 1 else ""
        memory = f", {max(memories) / 2**20:.0f} MiB" if any(memories) else ""
        return f"{statistics.median(walls):8.3f} ({statistics.median(cpus):6.3f}){spread}{memory}"


@dataclass(frozen=True)
class Sample:
    """So many services of so many endpoints, as manifests."""

    services: int
    endpoints: int

    def manifests(self) -> Iterator[dict[str, Any]]:
        """Each service and its slice."""
        for number in range(self.services):
            name = f"s{number}"
            yield {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "scale"},
                "spec": {
                    "clusterIP": str(ip_address(FIRST_VIP + number)),
                    "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
                },
            }
            yield self.slice_of(number, self.endpoints)

    def slice_of(self, number: int, endpoints: int) -> dict[str, Any]:
        """The slice of one service."""
        first = FIRST_POD + number * self.endpoints
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"s{number}-1",
                "namespace": "scale",
                "labels": {"kubernetes.io/service-name": f"s{number}"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [str(ip_address(first + one))], "nodeName": "b"} for one in range(endpoints)],
        }


@contextlib.contextmanager
def loaded(lab: Lab) -> Iterator[Datapath]:
    """A fresh datapath on the lab's node."""
    name = lab.node(1).netns
    datapath = Datapath.load(Options(node_name=name, max_backends=MAX_BACKENDS), netns=name)
    try:
        yield datapath
    finally:
        datapath.unload()


def timed(work: Callable[[], object], times: int = 1) -> Costs:
    """Some runs in this process."""
    costs = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return Costs(costs)


def command(lab: Lab, *words: str, times: int = 1) -> Costs:
    """Some runs of a whole command, with byte code beside it as where it is installed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    costs = []
    for _ in range(times):
        asked = [sys.executable, "-S", "-c", RUN, str(PYDATAPATH), "--netns", lab.node(1).netns, *words]
        code, *cost = json.loads(subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout)
        if code > (words[0] == "diff"):
            raise SystemExit(f"pydatapath {' '.join(words)}: exit code {code}")
        costs.append(Cost(*cost))
    return Costs(costs)


def say(title: str, cost: object) -> None:
    """Prints a row."""
    print(f"  {title:52}{cost}", flush=True)


def measure(lab: Lab, sample: Sample, folder: Path) -> None:
    """All rows of one size."""
    print(f"{sample.services:,} services of {sample.endpoints} endpoints: seconds (of a CPU), most memory")
    manifests = list(sample.manifests())
    as_json, as_yaml = folder / "all.json", folder / "all.yaml"
    as_json.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    as_yaml.write_text(to_yaml(manifests))
    for path in (as_json, as_yaml):
        with loaded(lab):
            say(f"first apply, the whole command, {path.suffix[1:].upper()}", command(lab, "apply", "-f", str(path)))
    objects = [schema.parse(copy.deepcopy(one), "bench") for one in manifests]
    first_applies(lab, objects)
    with loaded(lab) as datapath:
        datapath.apply(objects)
        say("apply all again, API", timed(lambda: datapath.apply(objects)))
        one_changed(lab, datapath, sample, folder)
        say("diff of all, none differs, JSON", command(lab, "diff", "-f", str(as_json), "--prune", times=5))
        say("diff of all, none differs, API", timed(lambda: datapath.diff(objects, prune=True), 5))
        say("status", command(lab, "status", times=5))
        say("status --check", command(lab, "status", "--check", times=2))
        say("service list", command(lab, "service", "list", times=2))
        say("memory of the maps", f"{sum(one.bytes for one in datapath.status().maps) / 2**20:8.0f} MiB")
        packets(lab, datapath, sample)


def first_applies(lab: Lab, objects: list[Manifested]) -> None:
    """All, each time by a datapath that was just loaded: the machine's own state is in a single one."""
    costs = []
    for _ in range(FIRST_APPLIES):
        with loaded(lab) as datapath:
            costs += timed(lambda: datapath.apply(objects)).each
    say("first apply, API", Costs(costs))
    say("first apply, API, each", " ".join(f"{one.wall:.3f}" for one in costs))


def one_changed(lab: Lab, datapath: Datapath, sample: Sample, folder: Path) -> None:
    """One endpoint of one service goes and comes; by the API it is in effect when a packet has come to it."""
    number = sample.services // 2
    slices = [sample.slice_of(number, count) for count in (sample.endpoints - 1, sample.endpoints)]
    calls, effects, whole = [], [], []
    for run in range(CHANGES):
        caller = Caller(Bench(lab, datapath), sample, number, FIRST_CALL + run * MOST_CALLS)
        for one in slices:
            parsed = schema.parse(copy.deepcopy(one), "bench")
            began = time.perf_counter()
            calls += timed(lambda: datapath.apply([parsed])).each  # noqa: B023 - called at once
            if one is slices[1]:
                caller.call_until_met()
                effects.append(Cost(time.perf_counter() - began, 0))
    say("one endpoint's change, API", Costs(calls))
    say("one endpoint's coming, API, until a SYN meets it", Costs(effects))
    for _ in range(CHANGES // 2):
        for one in slices:
            (folder / "one.json").write_text(json.dumps(one))
            whole += command(lab, "apply", "-f", str(folder / "one.json")).each
    say("one endpoint's change, the whole command", Costs(whole))


class Caller:
    """Calls one service by SYNs of so many ports, each run once by the pod's program."""

    def __init__(self, this: Bench, sample: Sample, number: int, first_port: int) -> None:
        self._this, self._port = this, first_port
        vip = str(ip_address(FIRST_VIP + number))
        self._frame = bytearray(packet(this.address(Family.IPV4, 1), vip, "TCP", CALLED, "S"))
        self._wanted = ip_address(FIRST_POD + (number + 1) * sample.endpoints - 1).packed

    def call_until_met(self) -> None:
        """Raises SystemExit where the last endpoint is not met by any."""
        pin = self._this.datapath.instance.program_pins / "from_pod"
        context = bytearray(192)
        struct.pack_into("=I", context, 40, self._this.index)
        with libbpf.opened(libbpf.open_pin(str(pin))) as program, self._this.lab.node(1).entered():
            for port in range(self._port, self._port + MOST_CALLS):
                struct.pack_into("!H", self._frame, 34, port)
                if libbpf.run(program, bytes(self._frame), bytes(context), 1).packet[30:34] == self._wanted:
                    return
        raise SystemExit(f"of {MOST_CALLS} calls none came to the endpoint that was applied")


def packets(lab: Lab, datapath: Datapath, sample: Sample) -> None:
    """What a packet costs beside them: of a flow that is known, and a flow's first."""
    datapath.apply([schema.parse(one, "bench") for one in documents(lab, CALLED, 8080, "web")])
    this = Bench(lab, datapath)
    enter(this, Family.IPV4, "TCP")
    frame = packet(this.address(Family.IPV4, 1), VIPS[Family.IPV4], "TCP", CALLED)
    say("ns: a known flow's packet", f"{min(median(this, frame) for _ in range(3)):8.0f}")
    forget(this)
    vip = str(ip_address(FIRST_VIP + sample.services // 2))
    say("ns: a flow's first packet (SYN)", f"{openings(this, Family.IPV4, 'TCP', vip):8.0f}")
    forget(this)


def main() -> None:
    """All sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", default=",".join(SIZES), metavar="SERVICESxENDPOINTS,...", help="which to measure")
    sizes = [Sample(*map(int, one.split("x"))) for one in parser.parse_args().sizes.split(",")]
    with Lab.up(LabSpec(f"scale{os.getpid()}", nodes=1, pods=2, dual_stack=True)) as lab:
        for sample in sizes:
            with tempfile.TemporaryDirectory() as folder:
                measure(lab, sample, Path(folder))


if __name__ == "__main__":
    main()
