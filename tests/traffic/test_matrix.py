"""The matrix of a dual-stack cluster: both families, TCP and UDP, every caller, every way into a service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from calls import KINDS, Address, Answers, ask_many
from scene import PORT, VIP_PORT, Cluster, cluster_up

from pydatapath import schema
from pydatapath.kernel.links import Links
from pydatapath.lab import Host, Pod

NODE_PORT = 30080
CALLS = 60
CALLERS = ("pod", "backend", "node", "other node's pod", "outside")
WAYS = ("ClusterIP", "NodePort", "external IP", "LB IP")


@dataclass(frozen=True)
class Family:
    """The addresses of one family."""

    number: int
    vip: str
    external: str
    balancer: str
    networks: tuple[str, ...]  # by which the outside reaches the services

    def of(self, host: Host) -> str:
        """A host's address."""
        return host.address6 if self.number == 6 else host.address

    @property
    def kind(self) -> str:
        """EndpointSlice.addressType."""
        return f"IPv{self.number}"


FAMILIES = (
    Family(4, "10.96.7.1", "203.0.113.7", "203.0.113.8", ("10.96.0.0/12", "203.0.113.0/24")),
    Family(6, "fd00:10:96::71", "2001:db8:77::7", "2001:db8:77::8", ("fd00:10:96::/112", "2001:db8:77::/64")),
)


@pytest.fixture(scope="module")
def dual() -> Iterator[Cluster]:
    """Two nodes with both families, both loaded; a service with a backend on each."""
    networks = ("10.244.0.0/16", "fd00:10:244::/48")
    with cluster_up(f"matrix-{os.getpid()}", loaded=(1, 2), dual_stack=True, cluster_cidr=networks) as made:
        made.serve(*backends_of(made))
        with Links(made.lab.outside.netns) as outside:
            for family in FAMILIES:
                for network in family.networks:
                    outside.route(network, via=family.of(made.lab.node(1)))
        for datapath in made.datapaths.values():
            datapath.apply([schema.parse(document, "test") for document in documents(made)])
        yield made


def backends_of(cluster: Cluster) -> tuple[Pod, Pod]:
    """One on the node that is called, one elsewhere."""
    return cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)


def documents(cluster: Cluster) -> list[dict[str, object]]:
    """One Service with addresses of both families, and a slice for each."""
    kinds = [{"name": kind.lower(), "protocol": kind} for kind in KINDS]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": [family.vip for family in FAMILIES],
            "externalIPs": [family.external for family in FAMILIES],
            "ports": [{**kind, "port": VIP_PORT, "targetPort": PORT, "nodePort": NODE_PORT} for kind in kinds],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": family.balancer} for family in FAMILIES]}},
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"web-{family.number}", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family.kind,
            "ports": [{**kind, "port": PORT} for kind in kinds],
            "endpoints": [{"addresses": [family.of(pod)], "nodeName": pod.node.netns} for pod in backends_of(cluster)],
        }
        for family in FAMILIES
    ]
    return [service, *slices]


def caller(cluster: Cluster, name: str) -> Host:
    """Who calls."""
    return {
        "pod": cluster.lab.pod(1, 1),
        "backend": cluster.lab.pod(1, 2),
        "node": cluster.lab.node(1),
        "other node's pod": cluster.lab.pod(2, 1),
        "outside": cluster.lab.outside,
    }[name]


def target(cluster: Cluster, way: str, family: Family) -> Address:
    """Where the service is called."""
    node = family.of(cluster.lab.node(1))
    addresses = {"ClusterIP": family.vip, "NodePort": node, "external IP": family.external, "LB IP": family.balancer}
    return addresses[way], NODE_PORT if way == "NodePort" else VIP_PORT


def seen_sources(cluster: Cluster, name: str, way: str, family: Family) -> dict[str, str]:
    """Whom each backend sees: the caller wherever the answer comes back by its node anyway (C4)."""
    here, there = backends_of(cluster)
    node = cluster.lab.node(1)
    bridge = node.gateway6 if family.number == 6 else node.gateway
    own = family.of(caller(cluster, name))
    if (name, way) == ("node", "ClusterIP"):
        own = bridge  # by which the node's route to its services leads
    seen = {here.name: own, there.name: own}
    if name == "backend":
        seen[here.name] = bridge
    if name == "outside" or (name, way) == ("other node's pod", "NodePort"):
        seen[there.name] = family.of(node)
    return seen


def fault(cluster: Cluster, found: Answers, name: str, way: str, family: Family) -> str:
    """What is wrong with a cell's answers, or ""."""
    if found.failures:
        return f"{len(found.failures)} failed, the first: {found.failures[0]}"
    if set(found.names) != {pod.name for pod in backends_of(cluster)}:
        return f"only {', '.join(found.names)} answered"
    seen = {one.name: one.seen[0] for one in found.answers}
    wanted = seen_sources(cluster, name, way, family)
    return "" if seen == wanted else f"seen as {seen}, not {wanted}"


def test_S8_S28_S30_S46_S49_every_way_from_everywhere(dual: Cluster, figure: Callable[[str], None]):
    """Each cell: all calls answered, by both backends, from the address that was called, and seen as who they are."""
    faults = {}
    figure(f"{'family':7} {'proto':6} {'caller':17} " + " ".join(f"{way:12}" for way in WAYS))
    for family in FAMILIES:
        for kind, type_ in KINDS.items():
            for name in CALLERS:
                cells = []
                for way in WAYS:
                    found = ask_many(caller(dual, name), type_, target(dual, way, family), CALLS)
                    wrong = fault(dual, found, name, way, family)
                    cells.append("wrong" if wrong else "right")
                    if wrong:
                        faults[family.kind, kind, name, way] = wrong
                figure(f"{family.kind:7} {kind:6} {name:17} " + " ".join(f"{cell:12}" for cell in cells))
    assert faults == {}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_S27_plain_traffic_is_as_it_was(dual: Cluster, family: Family, kind: str):
    """Pod to pod without the service: no address changes, here and there (the second kind of communication)."""
    calling = dual.lab.pod(1, 1)
    for pod in backends_of(dual):
        found = ask_many(calling, KINDS[kind], (family.of(pod), PORT), CALLS)
        assert found.failures == []
        assert {one.seen[0] for one in found.answers} == {family.of(calling)}
