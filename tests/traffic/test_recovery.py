"""What goes wrong in the middle: a load that fails, records that are lost, a pod that comes back elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from calls import KINDS, ask_many
from host_state import dump
from scene import VIP_PORT, Cluster, pydatapath

from pydatapath import Options, connecting, instance, loading
from pydatapath.errors import KernelError
from pydatapath.kernel.attach import Attacher
from pydatapath.kernel.links import Links, delete_namespace
from pydatapath.lab import Lab, LabSpec

NAME = f"re-{os.getpid()}"
VIP = ("10.96.0.61", VIP_PORT)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service that works."""
    with Lab.up(LabSpec(NAME, nodes=1, pods=2)) as lab:
        made = Cluster(lab)
        made.serve(lab.pod(1, 2))
        made.load(1)
        made.apply("web", VIP[0], [lab.pod(1, 2)])
        try:
            yield made
        finally:
            made.close()


def works(cluster: Cluster) -> None:
    """New connections from a pod and from the node are answered."""
    for host in (cluster.lab.pod(1, 1), cluster.lab.node(1)):
        for kind in KINDS.values():
            assert ask_many(host, kind, VIP, 20).failures == []


def test_a_reload_refused_before_the_exchange_changes_nothing(cluster: Cluster):
    """A route to the new service network is another's: what runs goes on, and the records say what they said."""
    works(cluster)
    node = cluster.lab.node(1)
    with Links(node.netns) as links:
        links.route("10.99.0.0/16", via="192.168.50.100")
    before = dump(cluster.lab, [node])
    options = ["--node-name", node.netns, "--service-cidr", "10.96.0.0/12", "--service-cidr", "10.99.0.0/16"]
    done = pydatapath("--netns", node.netns, "load", *options)
    assert done.returncode == 1
    assert "10.99.0.0/16" in done.stderr
    assert cluster.datapaths[1].options.service_cidr == Options().service_cidr
    works(cluster)
    after = dump(cluster.lab, [node])
    assert {key: value for key, value in after.items() if "state.db" not in value} == {
        key: value for key, value in before.items() if "state.db" not in value
    }


def test_a_reload_that_fails_half_way_leaves_the_old_programs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """Two of four filters are exchanged when it fails: all four run the old programs again, and they still serve."""
    works(cluster)
    exchanged: list[str] = []
    attach = Attacher.attach

    def fail_at_the_third(self: Attacher, index: int, name: str, *rest: object) -> None:
        if len(exchanged) == 2:
            exchanged.append("failed")
            raise KernelError(f"no luck with {name}")
        exchanged.append(name)
        attach(self, index, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Attacher, "attach", fail_at_the_third)
    before = {one.name: one.programs for one in cluster.datapaths[1].status().interfaces}
    with pytest.raises(KernelError, match="no luck"):
        loading.load(cluster.datapaths[1].instance, Options(node_name=cluster.lab.node(1).netns))
    assert {one.name: one.programs for one in cluster.datapaths[1].status().interfaces} == before
    works(cluster)


def test_unload_without_records_takes_all_away(cluster: Cluster):
    """Filters are ours by their name, routes by their protocol: nobody needs to remember them."""
    node = cluster.lab.node(1)
    which = cluster.datapaths[1].instance
    cluster.datapaths[1].close()
    which.records.write_bytes(b"garbage" * 1000)
    done = pydatapath("--netns", node.netns, "unload")
    assert (done.returncode, done.stderr) == (0, "")
    assert not which.exists
    left = "".join(dump(cluster.lab, [node]).values())
    assert "pydatapath/default" not in left
    assert "169.254.218.122" not in left
    del cluster.datapaths[1]


def test_a_pod_that_comes_back_behind_another_interface(cluster: Cluster):
    """Its address was learned at an interface that is gone: load forgets that, and the pod is found again."""
    works(cluster)
    lab = cluster.lab
    node, pod = lab.node(1), lab.pod(1, 2)
    with Links(node.netns) as links:
        links.delete("pod2")
        links.veth("pod2", "eth0", pod.netns, peer_mac="02:00:0a:f4:01:0c", bridge="br0")
    with Links(pod.netns) as links:
        links.up("eth0")
        links.address("eth0", f"{pod.address}/24")
        links.route("default", via=node.gateway)
    done = pydatapath("--netns", node.netns, "load", "--node-name", node.netns)
    assert done.returncode == 0
    works(cluster)


def test_a_namespace_that_is_gone_leaves_nothing_after_unload_all():
    """Its filters went with it; pins and records are removed, and nothing of the machine's own is looked at."""
    lab = Lab.up(LabSpec(f"{NAME}-g", nodes=1, pods=1))
    node = lab.node(1)
    loading.load(instance.here("gone", node.netns), Options())
    which = instance.find("gone", node.netns)
    connecting.disconnect(which)  # as the kernel does when the namespace ends
    cookie = which.cookie
    for host in lab.hosts:
        delete_namespace(host.netns)
    assert cookie in {one.cookie for one in instance.left_behind()}
    done = pydatapath("unload", "--all")
    assert done.returncode == 0, done.stderr
    assert not which.exists
