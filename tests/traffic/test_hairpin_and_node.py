"""The node itself calls a service, and a pod reaches itself through its service, with rp_filter on."""

from __future__ import annotations

import contextlib
import socket

import pytest
from calls import KINDS, ask, ask_many, dial, pump
from scene import VIP_PORT, Cluster

from pydatapath.lab import Host, Pod

CALLS = 1_000
VIPS = {
    "itself": ("10.96.0.30", VIP_PORT),
    "local": ("10.96.0.31", VIP_PORT),
    "remote": ("10.96.0.32", VIP_PORT),
    "all": ("10.96.0.33", VIP_PORT),
}


def backends_of(cluster: Cluster, place: str) -> list[Pod]:
    """The backends of the service of this place."""
    one, other, remote = cluster.lab.pod(1, 2), cluster.lab.pod(1, 3), cluster.lab.pod(2, 2)
    return {"itself": [one], "local": [other], "remote": [remote], "all": [one, other, remote]}[place]


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster) -> None:
    """A service of one pod for each place it may have, and one of them all."""
    for place, vip in VIPS.items():
        cluster.apply(place, vip[0], backends_of(cluster, place))


def sysctl(host: Host, name: str) -> str:
    return host.exec(["cat", f"/proc/sys/net/ipv4/conf/{name}"], check=True).stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["local", "remote", "all"])
def test_the_node_is_answered(cluster: Cluster, kind: str, place: str):
    """All of 1,000 calls from the node; the pod sees the bridge's address, to which it can answer."""
    node = cluster.lab.node(1)
    assert sysctl(node, "all/rp_filter") == sysctl(node, "br0/rp_filter") == sysctl(node, "eth0/rp_filter") == "1"
    found = ask_many(node, KINDS[kind], VIPS[place], CALLS)
    assert found.failures == []
    assert set(found.names) == {pod.name for pod in backends_of(cluster, place)}
    assert {one.seen[0] for one in found.answers} == {node.gateway}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_reaches_itself(cluster: Cluster, kind: str):
    """All of 1,000 calls; the pod sees not itself but the bridge's address, to which it can answer (S29, C1)."""
    (pod,) = backends_of(cluster, "itself")
    found = ask_many(pod, KINDS[kind], VIPS["itself"], CALLS)
    assert found.failures == []
    assert set(found.names) == {pod.name}
    assert {one.seen[0] for one in found.answers} == {cluster.lab.node(1).gateway}


def test_only_the_calls_to_itself_are_masqueraded(cluster: Cluster):
    """A pod that is one of three backends: the other two see its own address."""
    pod, *_ = backends_of(cluster, "all")
    found = ask_many(pod, KINDS["TCP"], VIPS["all"], CALLS)
    assert found.failures == []
    seen = {(one.name, one.seen[0]) for one in found.answers}
    others = {(one.name, pod.address) for one in backends_of(cluster, "all")[1:]}
    assert seen == {(pod.name, cluster.lab.node(1).gateway), *others}


@pytest.mark.parametrize("place", ["itself", "local", "remote"])
def test_long_connections_hold(cluster: Cluster, place: str):
    """Several MB each way, from the node and from the pod that is a backend, at the same time."""
    calling: list[Host] = [cluster.lab.node(1), cluster.lab.pod(1, 2)]
    with contextlib.ExitStack() as stack:
        pump({host.name: stack.enter_context(dial(host, VIPS[place])) for host in calling})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_port_from_the_node_and_in_the_pod(cluster: Cluster, kind: str):
    """The node's own call and the masqueraded one would look alike to the pod: one gets another port, both go on."""
    (pod,) = backends_of(cluster, "itself")
    node = cluster.lab.node(1)
    with (
        dial(pod, VIPS["itself"], KINDS[kind], (pod.address, 20_000)) as inside,
        dial(node, VIPS["itself"], KINDS[kind], (node.gateway, 20_000)) as outside,
    ):
        for number in range(20):
            assert ask(inside, f"inside {number}").seen != ask(outside, f"outside {number}").seen


def test_an_address_without_a_service_is_not_left_to_the_network(cluster: Cluster):
    """Within the service network, what no service owns is dropped by name, from the pod and from the node (C2)."""
    for host in (cluster.lab.pod(1, 1), cluster.lab.node(1)):
        before = cluster.datapaths[1].status().counters["drop_no_service"]
        with host.socket(kind=KINDS["UDP"]) as one:
            one.settimeout(0.1)
            one.sendto(b"hello", ("10.96.99.99", 80))
            with pytest.raises(socket.timeout):
                one.recv(100)
        assert cluster.datapaths[1].status().counters["drop_no_service"] == before + 1
