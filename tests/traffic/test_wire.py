"""What is on the wire: checksums with offloads on and off, large segments, and a stream as fast as it goes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import KINDS, ask_many, dial, pump, volley
from capture import capturing, checksums, complaints
from scene import BIG, VIP_PORT, Cluster

from pydatapath.kernel.links import set_offloads
from pydatapath.lab import Pod

VIPS = {"local": ("10.96.0.20", VIP_PORT), "remote": ("10.96.0.21", VIP_PORT)}
IPERF_PORT = 5201
IPERF_SECONDS = 5 if BIG else 1


def backend_of(cluster: Cluster, place: str) -> Pod:
    """The only backend of the service of this place."""
    return cluster.lab.pod(1, 2) if place == "local" else cluster.lab.pod(2, 2)


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster) -> None:
    """One service with a backend on the client's node, one with a backend elsewhere."""
    for place, vip in VIPS.items():
        cluster.apply(place, vip[0], [backend_of(cluster, place)])
        cluster.apply(f"iperf-{place}", vip[0], [backend_of(cluster, place)], port=IPERF_PORT, target=IPERF_PORT)


@pytest.fixture(params=["offloads on", "offloads off"])
def offloads(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[bool]:
    """Every pod's interface with checksum and segmentation offloads on, or off: what it sends then is complete."""
    on = request.param == "offloads on"
    for pod in cluster.lab.pods:
        set_offloads(pod.netns, "eth0", on=on)
    yield on
    for pod in cluster.lab.pods:
        set_offloads(pod.netns, "eth0", on=True)


@pytest.mark.parametrize("place", VIPS)
def test_checksums_are_right_at_both_ends(cluster: Cluster, offloads: bool, place: str, tmp_path: Path):
    """Complete sums are right, and those left to an offload are the pseudo-header's of the new addresses."""
    client, backend = cluster.lab.pod(1, 1), backend_of(cluster, place)
    at_client, at_backend = tmp_path / "client.pcap", tmp_path / "backend.pcap"
    with capturing("tcp or udp", {client: at_client, backend: at_backend}):
        for kind in KINDS.values():
            assert ask_many(client, kind, VIPS[place], 100).failures == []
        with dial(client, VIPS[place]) as stream:
            pump({"segments": stream}, lines=200)
    for path in (at_client, at_backend):
        found = checksums(path)
        assert found.keys() <= ({"right", "partial"} if offloads else {"right"}), found
        assert found.total() >= 700
        if offloads:
            assert found["partial"] >= 400, "the offloads were not on"
        else:
            assert complaints(path) == (found.total(), [])


@pytest.mark.parametrize("place", VIPS)
def test_large_data_arrives_whole(cluster: Cluster, offloads: bool, place: str):
    """Several MB each way on three connections at once, and datagrams of all sizes up to the MTU, unharmed."""
    client = cluster.lab.pod(1, 1)
    with dial(client, VIPS[place], KINDS["UDP"]) as datagrams:
        volley({"x" * size: datagrams for size in (1, 100, 1400)}, rounds=20)
    with contextlib.ExitStack() as stack:
        pump({f"stream {number}": stack.enter_context(dial(client, VIPS[place])) for number in range(3)})


@pytest.mark.parametrize("place", VIPS)
def test_a_stream_as_fast_as_it_goes(cluster: Cluster, figure: Callable[[str], None], place: str):
    """iperf3 through the VIP moves data both ways; its figures are shown, not judged."""
    client, backend = cluster.lab.pod(1, 1), backend_of(cluster, place)
    for way in ((), ("--reverse",)):
        with backend.popen(["iperf3", "-s", "-1", "-p", str(IPERF_PORT)], stdout=subprocess.PIPE) as server:
            _wait_until_open(backend)
            command = ["iperf3", "-J", "-t", str(IPERF_SECONDS), "-p", str(IPERF_PORT), "-c", VIPS[place][0], *way]
            done = json.loads(client.exec(command, check=True).stdout)
            server.communicate(timeout=10)
        sent = done["end"]["sum_sent"]
        assert sent["bytes"] > 0
        assert done["end"]["sum_received"]["bytes"] > 0
        figure(
            f"iperf3 {IPERF_SECONDS} s, VIP to a {place} backend{' '.join(('', *way))}:"
            f" {sent['bits_per_second'] / 1e9:.1f} Gbit/s, {sent['retransmits']} retransmits"
        )


def _wait_until_open(backend: Pod) -> None:
    """Until iperf3 listens, as ss tells: a connection would be the one that `iperf3 -1` serves."""
    deadline = time.monotonic() + 10
    while f":{IPERF_PORT}" not in backend.exec(["ss", "-Htln"]).stdout:
        assert time.monotonic() < deadline, "iperf3 does not start"
        time.sleep(0.02)
