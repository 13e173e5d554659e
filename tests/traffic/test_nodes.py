"""Node objects, applied as kubectl gives them: what pods and other nodes see of each other, and what it costs."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from socket import SocketKind
from typing import Any, Self

import pytest
from calls import KINDS, ask, dial
from nat_scene import FAMILIES, Ends, nat_cluster
from scene import PORT, VIP_PORT, Cluster, objects, pydatapath

from pydatapath import Datapath
from pydatapath.errors import NotFound
from pydatapath.kernel import tables
from pydatapath.kernel.maps import Maps
from pydatapath.lab import Host
from pydatapath.schema import parse

families = pytest.mark.parametrize(**FAMILIES)
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))
MANY = 5_000  # nodes: as many as Kubernetes supports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes that are not told of --cluster-cidr, and masquerade."""
    with nat_cluster(f"nodes-{os.getpid()}", cluster_cidr=()) as made:
        made.serve(made.lab.node(2))  # type: ignore[arg-type]
        try:
            yield made
        finally:
            made.kill(made.lab.node(2))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def forgotten(cluster: Cluster) -> Iterator[None]:
    """No objects are left to the next test."""
    yield
    for datapath in cluster.datapaths.values():
        datapath.apply([], prune=True)


def document(name: str, addresses: Iterable[str], pods: Iterable[str], zone: str = "") -> dict[str, Any]:
    """A Node, as the API server has it."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDRs": list(pods)},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


def all_nodes(cluster: Cluster) -> str:
    """What `kubectl get nodes -o json` says."""
    items = [
        document(node.name, (node.address, node.address6), (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"))
        for number, node in enumerate(cluster.lab.nodes, 1)
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def applied(cluster: Cluster, text: str) -> None:
    for node in cluster.lab.nodes:
        done = pydatapath("--netns", node.netns, "apply", "-f", "-", stdin=text)
        assert (done.returncode, done.stderr) == (0, "")


def seen_from(caller: Host, called: str, kind: SocketKind) -> bool:
    """Whether the called one sees the caller's own address and port."""
    with dial(caller, (called, PORT), kind) as one:
        return ask(one).seen == one.getsockname()[:2]


@families
@kinds
def test_N85_a_pod_and_another_node_see_each_other_as_they_are(cluster: Cluster, kind: SocketKind, ends: Ends):
    """Once a Node object names it, and until it is deleted; and so do pods of the two nodes."""
    pod, node, far = cluster.lab.pod(1, 1), cluster.lab.node(2), cluster.lab.pod(2, 1)
    called = (ends.of(node), ends.of(far))
    assert [seen_from(pod, one, kind) for one in called] == [False, False]
    applied(cluster, all_nodes(cluster))
    assert [seen_from(pod, one, kind) for one in called] == [True, True]
    assert not seen_from(pod, ends.first, kind)  # outside, as before
    for one in cluster.lab.nodes:
        done = pydatapath("--netns", one.netns, "delete", "node", *(other.name for other in cluster.lab.nodes))
        assert done.stdout.splitlines() == [f"node/{other.name} deleted" for other in cluster.lab.nodes]
    assert [seen_from(pod, one, kind) for one in called] == [False, False]


def test_nodes_are_listed(cluster: Cluster):
    """As table and as JSON; the same again is no change, and what does not exist is told by name."""
    applied(cluster, all_nodes(cluster))
    one, two = cluster.lab.nodes
    again = pydatapath("--netns", one.netns, "apply", "-f", "-", stdin=all_nodes(cluster))
    assert again.stdout.splitlines() == [f"node/{one.name} unchanged", f"node/{two.name} unchanged"]
    rows = json.loads(pydatapath("--netns", one.netns, "node", "list", "-o", "json").stdout)
    assert rows[1] == {
        "name": two.name,
        "internal_ips": [two.address, two.address6],
        "external_ips": [],
        "pod_cidrs": ["10.244.2.0/24", "fd00:10:244:2::/64"],
        "zone": None,
    }
    entries = {row.name: row.entries for row in cluster.datapaths[1].status().maps}
    assert (entries["networks"], entries["networks6"], entries["ranges"]) == (4, 4, 0)
    lines = pydatapath("--netns", one.netns, "node", "list", "-o", "wide").stdout.splitlines()
    assert lines[0].split() == ["NAME", "INTERNAL-IPS", "EXTERNAL-IPS", "POD-CIDRS", "ZONE"]
    assert lines[1].split()[:2] == [one.name, one.address]


def test_what_exists_is_deleted_though_another_does_not(cluster: Cluster):
    """As kubectl does, by name and by manifest: each that does not exist is an error, unless --ignore-not-found."""
    one, two = cluster.lab.nodes
    applied(cluster, all_nodes(cluster))
    gone = pydatapath("--netns", one.netns, "delete", "node", "worker-9", two.name)
    assert (gone.returncode, gone.stdout) == (1, f"node/{two.name} deleted\n")
    assert gone.stderr.splitlines()[0] == "Error: Node worker-9 does not exist"
    again = pydatapath("--netns", one.netns, "delete", "-f", "-", stdin=all_nodes(cluster))
    assert (again.returncode, again.stdout) == (1, f"node/{one.name} deleted\n")
    assert again.stderr.splitlines()[0] == f"Error: Node {two.name} does not exist"
    nothing = pydatapath("--netns", one.netns, "delete", "--ignore-not-found", "-f", "-", stdin=all_nodes(cluster))
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")
    with pytest.raises(NotFound, match="Node worker-9 does not exist"):
        cluster.datapaths[1].delete([("Node", "", "worker-9")])


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_is_exported_is_applied_as_it_was(cluster: Cluster, form: str):
    """Of all kinds, also what was made by hand; on another node, too; and of nothing."""
    netns, other = (node.netns for node in cluster.lab.nodes)
    empty = pydatapath("--netns", netns, "export", "-o", form)
    assert (empty.returncode, json.loads(empty.stdout)["items"] if form == "json" else []) == (0, [])
    assert pydatapath("--netns", netns, "apply", "--prune", "-f", "-", stdin=empty.stdout).stdout == ""
    applied(cluster, all_nodes(cluster))
    cluster.apply(
        "web", "10.96.0.30", [cluster.lab.pod(1, 1), cluster.lab.pod(2, 1)], node_port=30_030, type="NodePort"
    )
    made = pydatapath("--netns", netns, "service", "add", "shop/hand", "--port", "80", "--backend", "10.244.1.11:8080")
    assert made.returncode == 0, made.stderr
    drained = pydatapath("--netns", netns, "backend", "drain", "shop/hand", "10.244.1.11:8080")
    assert drained.returncode == 0, drained.stderr
    exported = pydatapath("--netns", netns, "export", "-o", form).stdout
    again = pydatapath("--netns", netns, "apply", "--prune", "-f", "-", stdin=exported)
    assert (again.returncode, again.stderr) == (0, "")
    assert [line.rpartition(" ")[2] for line in again.stdout.splitlines()] == ["unchanged"] * 6
    done = pydatapath("--netns", other, "apply", "--prune", "-f", "-", stdin=exported)
    assert done.returncode == 0, done.stderr
    assert pydatapath("--netns", other, "export", "-o", form).stdout == exported


def test_S87_the_zone_of_a_node_object_counts_at_once(cluster: Cluster):
    """Without --zone: services whose endpoints have hints for zones get others when the node's label changes."""
    datapath, pods = cluster.datapaths[1], [cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)]
    service, backends = objects("web", "10.96.0.30", pods)
    hinted = json.loads(json.dumps(backends.manifest))
    for endpoint, zone in zip(hinted["endpoints"], ("east", "west"), strict=True):
        endpoint["hints"] = {"forZones": [{"name": zone}]}
    datapath.apply([service, parse(hinted, "test")])
    for zone, pod in (("west", pods[1]), ("east", pods[0]), ("west", pods[1])):
        datapath.apply([parse(document(cluster.lab.node(1).netns, (), (), zone), "test")])
        for _ in range(8):
            with dial(cluster.lab.pod(1, 1), ("10.96.0.30", VIP_PORT)) as one:
                assert ask(one).name == pod.name


def nth(number: int, *, moved: bool = False) -> dict[str, Any]:
    """One of many nodes."""
    high, low = divmod(number, 250)
    own = (f"172.{20 + moved}.{high}.{low + 1}", f"fd00:172:{moved:x}::{number + 1:x}")
    return document(f"w{number}", own, (f"10.{120 + high}.{low}.0/24", f"fd00:100:{number:x}::/64"))


class Work:
    """What is done in a block: calls of Python functions, and hundreds of SQLite's instructions."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done = {"calls": 0, "steps": 0}
        self._patch, self._connect = patch, sqlite3.connect

    def _count(self, what: str) -> None:
        self.done[what] += 1

    def _connected(self, *arguments: Any, **more: Any) -> sqlite3.Connection:
        made = self._connect(*arguments, **more)
        made.set_progress_handler(lambda: self._count("steps"), 100)
        return made

    def __enter__(self) -> Self:
        self._patch.setattr(sqlite3, "connect", self._connected)
        sys.setprofile(lambda _, event, __: self._count("calls") if event == "call" else None)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._patch.undo()


def test_one_of_thousands_of_nodes_changes_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """What is done for it is the same as among ten; and the maps hold what a load, which looks at all, puts there."""
    datapath = cluster.datapaths[1]
    works: dict[int, dict[str, int]] = {}
    for many in (10, MANY):
        datapath.apply([parse(nth(number), "test") for number in range(many)])
        datapath.apply([parse(nth(0, moved=True), "test")])  # what is read once is read now
        with Work(monkeypatch) as work:
            assert [one.action for one in datapath.apply([parse(nth(1, moved=True), "test")])] == ["configured"]
        works[many] = work.done
    assert all(works[MANY][what] <= 1.5 * count + 20 for what, count in works[10].items()), works
    held = members(datapath)
    assert len(held) == 4 * MANY
    assert "172.21.0.1/32" in held
    assert "172.20.0.1/32" not in held
    cluster.load(1, cluster_cidr=(), masquerade=True)
    assert members(cluster.datapaths[1]) == held


def members(datapath: Datapath) -> dict[str, Any]:
    """What the maps hold of nodes."""
    with Maps(datapath.instance.map_pins) as maps:
        return dict(tables.read_members(maps))
