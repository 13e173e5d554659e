"""F24: manifests of more than a node has room for, and of nearly that, while others talk: refused whole, or made.

PYDATAPATH_BIG=1 pytest tests/fault/test_large_manifests.py     10,000 services of 100 backends
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from measuring import measured
from rows import tell
from scene import BIG, Cluster, cluster_up
from streaming import TALKERS, Traffic, stream_objects

from pydatapath import schema

pytestmark = pytest.mark.timeout(900 if BIG else 400)

VIPS = ("10.96.0.91", "fd00:10:96::91")
CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")
RATE = 500  # datagrams a second in each of four streams
SERVICES, FITTING, EACH, ROOM = (10_000, 600, 100, 65_536) if BIG else (200, 100, 100, 16_384)
FIRST_VIP, FIRST_BACKEND = ip_address("10.100.0.0"), ip_address("10.128.0.1")
LOAD = f"of each family {TALKERS} TCP connections, new calls; iperf3, {4 * RATE} numbered datagrams a second"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with room for so many backends, and a service that is called all the time."""
    options: dict[str, Any] = {"cluster_cidr": CLUSTER, "masquerade": True, "max_backends": ROOM}
    with cluster_up(f"large-{os.getpid()}", nodes=1, pods=2, dual_stack=True, **options) as made:
        made.serve(made.lab.pod(1, 2))
        for number, vip in enumerate(VIPS):
            objects = stream_objects(f"streams-{number}", vip, [made.lab.pod(1, 2)])
            made.datapaths[1].apply(schema.parse(one, "test") for one in objects)
        yield made


def large(path: Path, services: int) -> Path:
    """A file of so many services, each of EACH backends elsewhere."""
    addresses = [str(FIRST_BACKEND + number) for number in range(EACH)]
    items: list[dict[str, Any]] = []
    for number in range(services):
        name = f"large-{number}"
        ports = [{"name": "http", "protocol": "TCP", "port": 80}]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}}
        items.append({**service, "spec": {"clusterIP": str(FIRST_VIP + number), "ports": ports}})
        slices: dict[str, Any] = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
        labels = {"kubernetes.io/service-name": name}
        slices |= {"metadata": {"name": f"{name}-1", "labels": labels}, "ports": ports}
        items.append({**slices, "endpoints": [{"addresses": [address]} for address in addresses]})
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return path


def applied(cluster: Cluster, path: Path) -> tuple[int, int, float, str]:
    """The exit code of the command, its most memory (MiB), seconds, and what it said."""
    node = cluster.lab.node(1).netns
    program = str(Path(sys.executable).with_name("pydatapath"))
    command = [program, "--netns", node, "apply", "-f", str(path)]
    begun = time.monotonic()
    done = measured(command, timeout=300)
    return done.returncode, done.megabytes, round(time.monotonic() - begun, 1), done.stderr


def test_F24_what_has_no_room_is_refused_and_what_has_is_made(
    cluster: Cluster, tmp_path: Path, figure: Callable[[str], None]
):
    """Before any change, by the map's name and the option's; those who talk meanwhile do not notice either."""
    lab, datapath = cluster.lab, cluster.datapaths[1]
    before = datapath.manifests()
    with Traffic(lab.pod(1, 1), VIPS, lab.pod(1, 2), lab.outside, [], RATE) as running:
        code, refusing_mb, refusing, said = applied(cluster, large(tmp_path / "over.json", SERVICES))
        assert (code, datapath.manifests()) == (1, before)
        assert re.fullmatch(r"Error: the map '(backends|slots)' has no room left: it holds [\d,]+ entries\n.*\n", said)
        assert said.endswith("Hint: load again with a larger --max-backends\n")
        code, making_mb, making, said = applied(cluster, large(tmp_path / "fits.json", FITTING))
        assert (code, said, len(datapath.services)) == (0, "", 2 + FITTING)
        account = running.end()
    figure(f"{SERVICES} x {EACH} refused: {refusing} s, {refusing_mb} MiB; {FITTING}: {making} s, {making_mb} MiB")
    figure(str(account))
    tell(repeats=2, sent=account.sent, lost_max=account.lost, gap_ms_max=round(account.silence, 1))
    tell(broken=len(account.broken), new_failed=len(account.failed))
    assert (account.lost, account.strays, account.broken, account.failed) == (0, 0, [], [])
