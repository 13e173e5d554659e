"""The benchmarks' own ground: each case's packets go the way that its name says, and a run that is stopped leaves
nothing behind, and goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import packets
from bench.measures import MEASURES
from bench.paths import ROOT, ReadyCase, ready
from bench.processes import run
from bench.run import COMPARISON
from bench.topology import CLIENT_IP, Node, Where, node
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import Family

NETNS = Path("/run/netns")
CASES = ["veth", "vip-local"]
COMMAND = [sys.executable, "-m", "bench", "run", "--only", ",".join(CASES), "--measures", "throughput"]
RUN_SECONDS = 60.0
REDIRECT = 7  # TC_ACT_REDIRECT


def benchmark(*options: str) -> subprocess.Popen[str]:
    """Two cases and one measure, which needs no more than the tests do; not of our session, as a user's is not."""
    command = [*COMMAND, "--duration", "1", *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def rounds_of(found: dict[str, Any]) -> list[tuple[int, str]]:
    return sorted((one["round"], one["case"]) for one in found["samples"])


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_stopped_leaves_nothing_behind_and_goes_on(tmp_path: Path, by: signal.Signals) -> None:
    """Stopped in its second round: what has been measured is saved and not measured again. (Of what was left behind,
    tests/conftest.py would name namespaces, pins and processes.)
    """
    path = tmp_path / "run.json"
    first = benchmark("--rounds", "3", "--json", str(path))
    deadline = time.monotonic() + RUN_SECONDS
    while not path.exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline, "no round ended"
        time.sleep(0.02)
    first.send_signal(by)
    _, said = first.communicate(timeout=RUN_SECONDS)
    assert first.returncode == 128 + by, said
    assert "stopped; everything is cleared up" in said
    assert f"--json {path} --resume" in said
    assert [one for one in NETNS.iterdir() if f"bench{first.pid}-" in one.name] == []
    stopped = json.loads(path.read_text())
    assert rounds_of(stopped)[:2] == [(1, case) for case in CASES]
    assert len(stopped["samples"]) < 3 * len(CASES)

    second = benchmark("--rounds", "2", "--json", str(path), "--resume")
    _, said = second.communicate(timeout=RUN_SECONDS)
    assert second.returncode == 2
    assert "rounds was 3 and is 2" in said

    third = benchmark("--rounds", "3", "--json", str(path), "--resume")
    table, said = third.communicate(timeout=RUN_SECONDS)
    assert third.returncode == 0, said
    ended = json.loads(path.read_text())
    assert rounds_of(ended) == [(number, case) for number in (1, 2, 3) for case in CASES]
    assert ended["conntrack"] == dict.fromkeys(CASES, 0)
    assert ended["samples"][:2] == stopped["samples"][:2]
    assert all(one["values"]["gbit_per_s"] > 0.1 and one["values"]["cpu_per_gbit_us"] > 0 for one in ended["samples"])
    assert re.search(r"(?m)^veth +- +\d+\.\d\d", table)
    assert "100%" not in said, "the time left is told before a measurement, not after the last"


HOPS = {Where.LINK: 0, Where.POD: 0, Where.SUBNET: 1, Where.NODE2: 2, Where.ROUTED: 1}


@pytest.fixture(params=HOPS, ids=lambda where: where.name)
def laid(request: pytest.FixtureRequest) -> Iterator[Node]:
    """Namespaces with nothing in them."""
    where: Where = request.param
    with node(f"bench{os.getpid()}-laid", where=where, backends=2, bridge_netfilter=False) as made:
        yield made


def test_packets_pass_as_many_routers_as_a_case_has(laid: Node) -> None:
    """There and back: a bare link and a bridge have none, a node's routing one, two nodes two."""
    for namespace, address in ((laid.client, laid.backends[-1]), (laid.server, CLIENT_IP)):
        answer = run(["ping", "-c1", "-W2", address], netns=namespace)
        found = re.search(r"ttl=(\d+)", answer)
        assert found, answer
        assert 64 - int(found[1]) == HOPS[laid.where]
    assert {path.name for path in NETNS.iterdir() if path.name.startswith(f"{laid.name}-")} == {
        f"{laid.name}-{part}" for part in ("client", "server", *laid.where.parts)
    }
    bridges = {one for one in laid.nodes.values() if run(["ip", "-br", "link", "show", "type", "bridge"], netns=one)}
    assert len(bridges) == {Where.LINK: 0, Where.SUBNET: 0, Where.NODE2: 2}.get(laid.where, 1)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[ReadyCase]:
    """The virtual IP whose backend is a pod of another node."""
    case = COMPARISON.cases["vip-remote"]
    with ready(case, f"bench{os.getpid()}", tmp_path, {"iperf3"}, backends=2, cpu=None) as made:
        yield made


def test_a_virtual_ip_of_a_remote_pod_leads_over_the_uplink_to_the_other_node(remote: ReadyCase) -> None:
    """And by our programs: netfilter tracks nothing on either node."""
    figures = remote.measure(MEASURES["throughput"], 1)
    shown = json.loads(run(["ip", "-s", "-j", "link", "show", "eth0"], netns=remote.node.netns))
    sent = shown[0]["stats64"]["tx"]["bytes"]
    assert sent > figures["gbit_per_s"] * 1e9 / 8 * 0.9
    assert remote.node.conntrack_count() == 0
    assert len(remote.node.nodes) == 2


def test_rules_are_laid_while_somebody_else_changes_theirs() -> None:
    """iptables-legacy has one lock for the whole machine, which a host's own tools may hold for long."""
    with Path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        assert COMPARISON.cases["vip-iptables-legacy"].lack() == ""
    assert time.monotonic() - begun < 15


def test_a_packet_of_ours_is_beside_one_that_is_only_redirected(tmp_path: Path) -> None:
    """Each kind has its figure in both families, and what is done to it costs more than nothing."""
    path = tmp_path / "costs.json"
    cases = "redirect,known-udp,first-tcp,under-wrk"
    command = [sys.executable, "-m", "bench", "packet_costs", "--rounds", "1", "--cases", cases, "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = {one["case"]: one["values"] for one in json.loads(path.read_text())["samples"]}
    for family in ("ipv4_ns", "ipv6_ns"):
        assert 0 < found["redirect"][family] < found["known-udp"][family] < found["first-tcp"][family]
    assert found["under-wrk"]["connection_ns"] > found["first-tcp"]["ipv4_ns"]


@pytest.mark.parametrize("masquerade", [False, True], ids=["to a pod", "to the outside"])
def test_the_flow_whose_packet_is_timed_is_known_and_translated(masquerade: bool):
    """A packet that goes by the route, or is not known, would be another one's cost."""
    with packets.bench(masquerade=masquerade) as this:
        descriptor = libbpf.open_pin(str(this.datapath.instance.program_pins / "from_pod"))
        context = bytearray(192)
        struct.pack_into("=I", context, 40, this.index)
        for family in Family:
            far, port = packets.VIPS[family], packets.CALLED
            if masquerade:
                packets.enter_masqueraded(this, family)
                far = packets.outside_of(family, this.lab.outside)
            else:
                packets.enter(this, family, "UDP")
            frame = packets.packet(this.address(family, 1), far, "UDP", port)
            with this.lab.node(1).entered():
                done = libbpf.run(descriptor, frame, bytes(context))
            hops = 22 if family is Family.IPV4 else 21
            assert done.verdict == REDIRECT
            assert done.packet[hops] == frame[hops] - masquerade, "a pod of this node is no hop away"
            assert this.datapath.status().counters["new_flow"] <= 2  # the clock's own
        os.close(descriptor)
