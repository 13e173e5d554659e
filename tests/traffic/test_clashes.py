"""Two services claim one address and port: the older one answers there, and everybody is told (S70, C7)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import Any

import pytest
from calls import ask, ask_many, dial
from scene import PORT, VIP_PORT, Cluster, pydatapath

from pydatapath.lab import Pod

EXTERNAL = ("203.0.113.9", VIP_PORT)
OLD, NEW = "2024-05-06T07:08:09Z", "2025-05-06T07:08:09Z"


def manifests(name: str, vip: str, pod: Pod, made: str) -> list[dict[str, Any]]:
    """A service as an API server exports it, and its one backend."""
    kinds = [{"name": kind.lower(), "protocol": kind} for kind in ("TCP", "UDP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "creationTimestamp": made},
        "spec": {
            "clusterIP": vip,
            "externalIPs": [EXTERNAL[0]],
            "ports": [{**kind, "port": VIP_PORT} for kind in kinds],
        },
    }
    backends = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{**kind, "port": PORT} for kind in kinds],
        "endpoints": [{"addresses": [pod.address], "nodeName": pod.node.netns}],
    }
    return [service, backends]


@pytest.fixture
def two(cluster: Cluster) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """An older service behind one pod and a younger one behind another, which comes first by name."""
    older = manifests("older", "10.96.4.1", cluster.lab.pod(1, 2), OLD)
    yield older, manifests("newer", "10.96.4.2", cluster.lab.pod(1, 3), NEW)
    pydatapath("--netns", cluster.lab.node(1).netns, "delete", "service", "older")
    pydatapath("--netns", cluster.lab.node(1).netns, "delete", "service", "newer")


def apply(cluster: Cluster, *objects: dict[str, Any], how: str = "apply") -> str:
    """By the command line. Returns what was said on stderr."""
    text = "\n".join(json.dumps(one) for one in objects)
    done = pydatapath("--netns", cluster.lab.node(1).netns, how, "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    return done.stderr


def conflicts(cluster: Cluster) -> list[str]:
    """What status says of it."""
    done = pydatapath("--netns", cluster.lab.node(1).netns, "status", "-o", "json")
    found: list[str] = json.loads(done.stdout)["conflicts"]
    return found


def answering(cluster: Cluster, target: tuple[str, int] = EXTERNAL) -> set[str]:
    found = ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, target, 10)
    assert found.failures == []
    return set(found.names)


def test_S70_C7_the_older_one_answers_and_the_other_is_reported(cluster: Cluster, two: Any):
    """Whatever comes first, and again; the other answers at its own address, and there alone."""
    older, newer = two
    old, new = cluster.lab.pod(1, 2).name, cluster.lab.pod(1, 3).name
    apply(cluster, *newer)
    assert answering(cluster) == {new}
    said = [
        f"Service default/newer: {EXTERNAL[0]}:80/{kind} belongs to Service default/older, which is older"
        for kind in ("tcp", "udp")
    ]
    for objects in (older, newer, [*newer, *older]):
        assert apply(cluster, *objects) == "".join(f"Warning: {one}\n" for one in said)
        assert answering(cluster) == {old}
        assert conflicts(cluster) == said
    assert answering(cluster, ("10.96.4.2", VIP_PORT)) == {new}


def test_C7_the_older_ones_flows_do_not_notice_the_younger_one(cluster: Cluster, two: Any):
    """Connections and datagram sockets stay with their backend while the other comes and goes."""
    older, newer = two
    apply(cluster, *older)
    client, name = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2).name
    with dial(client, EXTERNAL, SOCK_STREAM) as stream, dial(client, EXTERNAL, SOCK_DGRAM) as datagrams:
        for how in ("apply", "delete"):
            assert ask(stream).name == ask(datagrams).name == name
            apply(cluster, *newer, how=how)
        assert ask(stream).name == ask(datagrams).name == name


@pytest.mark.parametrize("how", ["deleted", "changed"])
def test_C7_when_the_older_one_goes_the_other_answers(cluster: Cluster, two: Any, how: str):
    """In the same command, and nobody is reported any more."""
    older, newer = two
    apply(cluster, *older, *newer)
    if how == "deleted":
        apply(cluster, *older, how="delete")
    else:
        older[0]["spec"]["externalIPs"] = []
        apply(cluster, *older)
    assert answering(cluster) == {cluster.lab.pod(1, 3).name}
    assert conflicts(cluster) == []
