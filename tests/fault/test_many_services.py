"""As many services as large clusters have: applied at once, changed one by one, all of them called.

PYDATAPATH_BIG=1 pytest tests/fault/test_many_services.py     10,000 services of 5 endpoints, and 50,000 of 2
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from calls import KINDS, ask_many
from rows import tell
from scene import BIG, PORT, VIP_PORT, Cluster, cluster_up

from pydatapath import EndpointSlice, Service, schema
from pydatapath.lab import Pod

pytestmark = pytest.mark.timeout(600)

SIZES = ((10_000, 5), (50_000, 2)) if BIG else ((500, 5), (1000, 2))
CALLED, CALLS = 50, 4  # services, by chance; and of each
SEED = int(os.environ.get("PYDATAPATH_SEED") or random.SystemRandom().randrange(1 << 32))
FIRST_VIP = ip_address("10.100.0.0")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A node with room for them, on which nothing is applied; two pods serve, at five addresses each."""
    with cluster_up(f"many-{os.getpid()}", nodes=1, max_backends=131_072) as made:
        for pod in made.lab.pods[1:]:
            for address in addresses(pod, 5):
                pod.exec(["ip", "address", "add", f"{address}/24", "dev", "eth0"], check=True)
        made.serve(*made.lab.pods[1:])
        yield made


def addresses(pod: Pod, count: int) -> list[str]:
    """So many of a pod's, beside its first."""
    network, _, own = pod.address.rpartition(".")
    return [f"{network}.{10 * int(own) + one}" for one in range(count)]


def vip(number: int) -> str:
    return str(FIRST_VIP + number)


def service(number: int) -> Service:
    ports = [{"protocol": "TCP", "port": VIP_PORT, "targetPort": PORT}]
    spec = {"clusterIP": vip(number), "ports": ports}
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{number}"}, "spec": spec}
    found = schema.parse(document, "test")
    assert isinstance(found, Service)
    return found


def endpoints(number: int, pod: Pod, count: int) -> EndpointSlice:
    """So many addresses of a pod serve it."""
    document: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"s{number}-1", "labels": {"kubernetes.io/service-name": f"s{number}"}},
        "addressType": "IPv4",
        "ports": [{"protocol": "TCP", "port": PORT}],
        "endpoints": [{"addresses": [one], "nodeName": pod.node.netns} for one in addresses(pod, count)],
    }
    found = schema.parse(document, "test")
    assert isinstance(found, EndpointSlice)
    return found


def wrong_of(caller: Pod, served: dict[int, Pod]) -> list[str]:
    """Services that another pod answers than it must."""
    found = []
    for number, pod in served.items():
        names = set(ask_many(caller, KINDS["TCP"], (vip(number), VIP_PORT), CALLS).names)
        found += [f"{vip(number)}: {names}, not {pod.name}"] if names != {pod.name} else []
    return found


@pytest.mark.parametrize(("services", "each"), SIZES, ids=["{}x{}".format(*size) for size in SIZES])
def test_many_services_are_made_changed_one_by_one_and_called(
    cluster: Cluster, services: int, each: int, figure: Callable[[str], None]
):
    """Who is called answers, before its change and after it; again there is nothing to change, and nothing drifts."""
    datapath, (caller, first, second) = cluster.datapaths[1], cluster.lab.pods
    objects = [one for number in range(services) for one in (service(number), endpoints(number, first, each))]
    called = random.Random(SEED).sample(range(services), CALLED)
    begun = time.perf_counter()
    datapath.apply(objects)
    applying = time.perf_counter() - begun
    wrong, changing = wrong_of(caller, dict.fromkeys(called, first)), []
    for number in called[::2]:
        changed = endpoints(number, second, each)
        begun = time.perf_counter()
        datapath.apply([changed])
        changing.append(time.perf_counter() - begun)
        wrong += wrong_of(caller, {number: second})
    wrong += wrong_of(caller, dict.fromkeys(called[1::2], first))
    objects += [endpoints(number, second, each) for number in called[::2]]  # the last of a name counts
    begun = time.perf_counter()
    differences, _ = datapath.diff(objects, prune=True)
    comparing = time.perf_counter() - begun
    wrong += [*(str(one.name) for one in differences), *datapath.status(check=True).drift]
    figure(
        f"{services:,} x {each}: first apply {applying:.3f} s, one change {statistics.median(changing):.4f} s,"
        f" diff of all {comparing:.3f} s; of {CALLED * 2} times called by {CALLS} connections {len(wrong)} wrong"
    )
    tell(repeats=len(changing), wrong=len(wrong), seed=SEED)
    assert wrong == []
