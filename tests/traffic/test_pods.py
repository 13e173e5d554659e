"""Pods among themselves, with a datapath on both nodes: no translation, whatever the services do."""

from __future__ import annotations

import contextlib

import pytest
from calls import KINDS, ask, ask_many, dial, pump
from scene import PORT, VIP_PORT, Cluster

from pydatapath.lab import Pod

VIP = ("10.96.0.50", VIP_PORT)


def backends_of(cluster: Cluster) -> list[Pod]:
    """Two on each node."""
    return [cluster.lab.pod(node, number) for node in (1, 2) for number in (2, 3)]


@pytest.fixture(scope="module", autouse=True)
def service(both_loaded: Cluster) -> None:
    """The same service on both nodes."""
    both_loaded.apply("web", VIP[0], backends_of(both_loaded))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", [(1, 3), (2, 3)], ids=["pod of node1", "pod of node2"])
@pytest.mark.parametrize("client", [(1, 1), (2, 1), (1, 2)], ids=["from node1", "from node2", "from a backend"])
def test_both_sides_see_unchanged_addresses(
    both_loaded: Cluster, client: tuple[int, int], server: tuple[int, int], kind: str
):
    """Directly, to a port that is a backend and to one that is none."""
    calling, called = both_loaded.lab.pod(*client), both_loaded.lab.pod(*server)
    with dial(calling, (called.address, PORT), KINDS[kind]) as one:
        answer = ask(one)
    assert (answer.name, answer.seen, answer.source) == (called.name, answer.own, (called.address, PORT))
    assert answer.own[0] == calling.address


def test_plain_flows_are_entered_only_towards_backends(both_loaded: Cluster):
    """A connection to a port that serves nobody's service stays out of the flow table."""
    client, server = both_loaded.lab.pod(2, 1), both_loaded.lab.pod(1, 2)
    with server.socket() as listening:
        listening.bind((server.address, 9999))
        listening.listen()
        with dial(client, (server.address, 9999)), dial(client, (server.address, PORT)) as backend:
            own = backend.getsockname()
            for datapath in both_loaded.datapaths.values():
                flows = [one for one in datapath.flows() if one.original.src == client.address]
                assert [one for one in flows if one.original.dport == 9999] == []
                (flow,) = [one for one in flows if (one.original.sport, one.original.dport) == (own[1], PORT)]
                assert (flow.nat, flow.service) == ("none", None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node", [1, 2])
def test_backends_see_the_client_itself(both_loaded: Cluster, node: int, kind: str):
    """A pod of either node calls the VIP: all backends of both nodes answer, and none sees any node's address."""
    client = both_loaded.lab.pod(node, 1)
    found = ask_many(client, KINDS[kind], VIP, 400)
    assert found.failures == []
    assert set(found.names) == {pod.name for pod in backends_of(both_loaded)}
    assert {one.seen[0] for one in found.answers} == {client.address}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node", [1, 2])
def test_either_node_calls_too(both_loaded: Cluster, node: int, kind: str):
    """Each node reaches the service by its own datapath, and any pod without it."""
    calling = both_loaded.lab.node(node)
    found = ask_many(calling, KINDS[kind], VIP, 200)
    assert found.failures == []
    assert set(found.names) == {pod.name for pod in backends_of(both_loaded)}
    for pod in backends_of(both_loaded):
        with dial(calling, (pod.address, PORT), KINDS[kind]) as one:
            answer = ask(one)
            assert (answer.name, answer.seen) == (pod.name, answer.own)


def test_long_connections_across_nodes(both_loaded: Cluster):
    """Several MB each way: directly and by the VIP, from both nodes' pods and from both nodes, at the same time."""
    streams = {}
    with contextlib.ExitStack() as stack:
        for node in (1, 2):
            elsewhere = (both_loaded.lab.pod(3 - node, 2).address, PORT)
            for host in (both_loaded.lab.pod(node, 1), both_loaded.lab.node(node)):
                streams[f"{host.name} to VIP"] = stack.enter_context(dial(host, VIP))
                streams[f"{host.name} directly"] = stack.enter_context(dial(host, elsewhere))
        pump(streams, lines=1000)


def test_the_instances_of_two_nodes_do_not_meet(both_loaded: Cluster):
    """Both are called `default`; each knows its own node's interfaces, and a change of one is none of the other's."""
    first, second = (both_loaded.datapaths[node] for node in (1, 2))
    assert first.instance.name == second.instance.name == "default"
    assert first.instance.pins != second.instance.pins
    assert (first.status().node_name, second.status().node_name) == tuple(
        both_loaded.lab.node(node).netns for node in (1, 2)
    )
    first.delete([("Service", "default", "web"), ("EndpointSlice", "default", "web-1")])
    try:
        assert first.services == []
        assert len(second.services) == 1
        assert ask_many(both_loaded.lab.pod(2, 1), KINDS["TCP"], VIP, 50).failures == []
        with dial(both_loaded.lab.pod(1, 1), VIP, KINDS["UDP"]) as one:
            one.settimeout(0.1)
            with pytest.raises(OSError, match=r"timed out|refused"):
                ask(one)
    finally:
        both_loaded.apply("web", VIP[0], backends_of(both_loaded))
