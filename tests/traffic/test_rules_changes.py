"""Rules of a service that changes while it is served: its type, its label, its ports and addresses."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from copy import deepcopy
from socket import SOCK_DGRAM
from typing import Any

import pytest
from calls import KINDS, Address, ask, ask_many, dial
from scene import VIP_PORT, Cluster, objects

from pydatapath import schema
from pydatapath.kernel.links import Links
from pydatapath.lab import Pod

NO_ANSWER = r"timed out|refused"
SOON = 0.3  # seconds for what is dropped without a word
LABEL = "service.kubernetes.io/service-proxy-name"
vips = (f"10.96.11.{number}" for number in itertools.count(1))


@pytest.fixture(scope="module", autouse=True)
def routes(cluster: Cluster) -> None:
    """The outside reaches external addresses by the first node."""
    with Links(cluster.lab.outside.netns) as outside:
        outside.route("203.0.113.0/24", via=cluster.lab.node(1).address)


@pytest.fixture
def vip(cluster: Cluster) -> Iterator[Address]:
    """A service called `web` with one backend here, each time at another address."""
    address = next(vips)
    change(cluster, address)
    yield address, VIP_PORT
    cluster.datapaths[1].delete([("Service", "default", "web"), ("EndpointSlice", "default", "web-1")])


def backend(cluster: Cluster) -> Pod:
    """Who serves."""
    return cluster.lab.pod(1, 2)


def change(cluster: Cluster, vip: str, *, labels: dict[str, str] | None = None, **more: Any) -> None:
    """Applies the service as it shall be now."""
    service, slice_ = objects("web", vip, [backend(cluster)], **more)
    document = deepcopy(dict(service.manifest))
    document["metadata"] = {**document["metadata"], "labels": labels or {}}
    cluster.datapaths[1].apply([schema.parse(document, "test"), slice_])


def is_served(cluster: Cluster, target: Address) -> bool:
    """Whether new calls of a pod are answered, by TCP and UDP; not: neither is."""
    caller, served = cluster.lab.pod(1, 1), set()
    for kind in KINDS.values():
        try:
            with caller.socket(kind=kind) as one:
                one.settimeout(SOON)
                one.connect(target)
                served.add(ask(one).name == backend(cluster).name)
        except OSError:
            served.add(False)
    assert len(served) == 1
    return served.pop()


WAYS_OUT = {
    "S2 it becomes an ExternalName": {"type": "ExternalName", "externalName": "example.org"},
    "S4 the label is put on": {"labels": {LABEL: ""}},
    "S4 the label is put on with a value": {"labels": {LABEL: "another"}},
    "S3 it becomes headless": {"headless": True},
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_S2_S3_S4_a_service_that_is_handed_away_counts_at_once_and_comes_back(cluster: Cluster, vip: Address, way: str):
    """New calls find nothing, datagrams end, connections go on (S89); taken back, the same socket is answered."""
    more = dict(WAYS_OUT[way])
    with dial(cluster.lab.pod(1, 1), vip) as stream, dial(cluster.lab.pod(1, 1), vip, SOCK_DGRAM) as datagrams:
        assert ask(stream).name == ask(datagrams).name == backend(cluster).name
        change(cluster, "None" if more.pop("headless", False) else vip[0], **more)
        assert not is_served(cluster, vip)
        assert ask(stream, "still").name == backend(cluster).name
        datagrams.settimeout(SOON)
        with pytest.raises(OSError, match=NO_ANSWER):
            ask(datagrams)
        change(cluster, vip[0])
        assert is_served(cluster, vip)
        assert ask(datagrams, "again").name == ask(stream, "again").name == backend(cluster).name


@pytest.mark.parametrize("way", ["S2 it becomes an ExternalName", "S4 the label is put on"])
def test_S2_S4_plain_traffic_to_its_pods_stays_as_it_is(cluster: Cluster, vip: Address, way: str):
    """Whoever has the service, its pods are reached by their own addresses, and see who calls."""
    caller, target = cluster.lab.pod(1, 1), (backend(cluster).address, 8080)
    with dial(caller, target) as before:
        assert ask(before).seen[0] == caller.address
        change(cluster, vip[0], **WAYS_OUT[way])
        assert ask(before).seen[0] == caller.address
        for kind in KINDS.values():
            found = ask_many(caller, kind, target, 20)
            assert found.failures == []
            assert {one.seen[0] for one in found.answers} == {caller.address}


def connect_and_ask(late: socket.socket, target: Address) -> None:
    """A call by a socket that is there."""
    late.connect(target)
    ask(late)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the port": ({}, {"port": 81}),
    "the node port": ({"type": "NodePort", "node_port": 30090}, {"type": "NodePort", "node_port": 30091}),
    "the external address": ({"externalIPs": ["203.0.113.91"]}, {"externalIPs": ["203.0.113.92"]}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", CHANGES)
def test_S93_what_is_open_follows_its_backend_where_ports_and_addresses_change(
    cluster: Cluster, vip: Address, what: str, kind: str
):
    """Who is there goes on by the old address, as in kube-proxy, and who comes must take the new one."""
    before, after = CHANGES[what]
    change(cluster, vip[0], **before)
    node = cluster.lab.node(1).address
    old, new = {
        "the port": (vip, (vip[0], 81)),
        "the node port": ((node, 30090), (node, 30091)),
        "the external address": (("203.0.113.91", VIP_PORT), ("203.0.113.92", VIP_PORT)),
    }[what]
    caller = cluster.lab.pod(1, 1) if what == "the port" else cluster.lab.outside
    with dial(caller, old, KINDS[kind]) as one:
        assert ask(one).name == backend(cluster).name
        change(cluster, vip[0], **after)
        for number in range(3):
            assert ask(one, f"after {number}").name == backend(cluster).name
        with dial(caller, new, KINDS[kind]) as other:
            assert ask(other).name == backend(cluster).name
        with caller.socket(kind=KINDS[kind]) as late:
            late.settimeout(SOON)
            with pytest.raises(OSError, match=rf"{NO_ANSWER}|unreachable|No route"):
                connect_and_ask(late, old)
        assert ask(one, "at last").name == backend(cluster).name
