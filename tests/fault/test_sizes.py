"""Maps that are full: the error names the map and the option, nothing is half done, and all others can be changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import pytest
from rows import tell, tell_worst
from scene import Cluster, cluster_up, objects, pydatapath

from pydatapath import Datapath, Options
from pydatapath.errors import KernelError
from pydatapath.kernel.maps import Maps

SERVICES, RANGES = 64, 16  # --max-services, and the quarter of it
LOAD = "nobody"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with room for few services."""
    with cluster_up(f"sizes-{os.getpid()}", nodes=1, max_services=SERVICES) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing(cluster: Cluster) -> Iterator[None]:
    """No service is there, before and afterwards."""
    yield
    cluster.datapaths[1].apply([], prune=True)


def apply(cluster: Cluster, name: str, number: int, ranges: Sequence[str] = ()) -> None:
    """A service of two ports for whoever is in these ranges."""
    called = {"balancer": f"203.0.113.{number}", "type": "LoadBalancer", "loadBalancerSourceRanges": [*ranges]}
    cluster.datapaths[1].apply(objects(name, f"10.96.1.{number}", cluster.lab.pods, **called))


def drift(cluster: Cluster) -> tuple[str, ...]:
    """Where maps are not what the records say."""
    found = cluster.datapaths[1].status(check=True).drift
    tell_worst(wrong=len(found))
    return found


def names(cluster: Cluster) -> set[str]:
    return {one.service.name for one in cluster.datapaths[1].services}


def networks(first: int, count: int) -> list[str]:
    return [f"198.51.{number}.0/24" for number in range(first, first + count)]


def allowed(cluster: Cluster) -> int:
    """How many source ranges the map holds."""
    with Maps(cluster.datapaths[1].instance.map_pins) as maps:
        return len(maps["ranges"])


def test_source_ranges_for_which_there_is_no_room(cluster: Cluster):
    """Refused by name before anything is written; then other services are made, and records and maps agree."""
    apply(cluster, "one", 1, networks(0, 5))
    held = allowed(cluster)
    with pytest.raises(
        KernelError, match=rf"the map 'ranges' is full: it holds {RANGES} entries, and \d+ loadB"
    ) as full:
        apply(cluster, "two", 2, networks(20, 5))
    assert full.value.hint == "load with a larger --max-services, of which it has a quarter"
    assert allowed(cluster) == held
    apply(cluster, "three", 3)
    status = cluster.datapaths[1].status(check=True)
    tell(repeats=1, wrong=len(status.drift))
    assert names(cluster) == {"one", "three"}
    assert status.drift == ()


def test_source_ranges_are_exchanged_where_both_have_no_room(cluster: Cluster):
    """The old ones go first then."""
    for first in (0, 20, 40):
        apply(cluster, "one", 1, networks(first, 7))
        assert 14 <= allowed(cluster) <= RANGES
    assert drift(cluster) == ()
    tell(repeats=3)


def test_services_for_which_there_is_no_room(cluster: Cluster):
    """With a larger --max-services there is, and what was there goes on."""
    datapath = cluster.datapaths[1]

    def fill() -> None:
        for number in range(1, SERVICES + 2):
            apply(cluster, f"web{number}", number)

    with pytest.raises(KernelError, match=r"the map 'services' is full: it holds 64 entries, \d+ are needed") as full:
        fill()
    assert full.value.hint == "load with a larger --max-services"
    assert drift(cluster) == ()
    before = names(cluster)
    node = cluster.lab.node(1).netns
    options = {"node_name": node, "cluster_cidr": ("10.244.0.0/16",), "masquerade": False}
    Datapath.load(Options(**options, max_services=4 * SERVICES), netns=node).close()
    assert names(cluster) == before
    assert drift(cluster) == ()
    apply(cluster, "later", 200)
    datapath.apply([], prune=True)
    tell(repeats=1)
    Datapath.load(Options(**options, max_services=SERVICES), netns=node).close()
    assert drift(cluster) == ()


def test_what_sizes_cost_is_said_before(cluster: Cluster):
    """The help of `load` says what the kernel will set aside for each."""
    text = " ".join(pydatapath("load", "--help").stdout.split())
    said = {name: [*map(int, re.findall(r"(\d+)", cost))] for name, cost in HELP.findall(text)}
    node = cluster.lab.node(1).netns
    options = Options(node_name=node, cluster_cidr=("10.244.0.0/16",), masquerade=False)
    Datapath.load(options, netns=node).close()
    with Maps(cluster.datapaths[1].instance.map_pins) as maps:
        each = {one.name: one.bytes / one.max_entries for one in cluster.datapaths[1].status().maps}
        assert maps["flows"].info.max_entries == 2 * options.max_flows
    assert said["max-flows"][0] == pytest.approx(2 * each["flows"], rel=0.05)
    backend = each["backends"] + 4 * each["slots"] + each["targets"]
    assert 0.5 * said["max-backends"][0] < backend < said["max-backends"][0]
    assert 0.4 * said["max-services"][0] < each["services"] + each["vips"] < said["max-services"][0]


HELP = re.compile(r"--(max-\w+) N .*?each takes (\d+ bytes(?: of memory, and of IPv6 \d+)?)")
