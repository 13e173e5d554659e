"""Every way into a service, from everywhere: who answers, by which address, and whom the backend sees."""

from __future__ import annotations

import socket
from socket import SOCK_DGRAM, SOCK_STREAM

import pytest
from calls import KINDS, SECONDS, ask, ask_many, dial, pump
from scene import PORT, VIP_PORT, Cluster, objects

from pydatapath import EndpointSlice, schema
from pydatapath.kernel.links import Links
from pydatapath.lab import Host, Pod

VIP, EXTERNAL, BALANCER = "10.96.3.1", "203.0.113.7", "203.0.113.8"
NODE_PORT = 30080
BRIDGE = "10.244.1.1"  # the node, as its own pods see it


@pytest.fixture(scope="module", autouse=True)
def routes(cluster: Cluster) -> None:
    """The outside knows that the first node is the way to the service's addresses, as a router would tell it."""
    with Links(cluster.lab.outside.netns) as outside:
        for network in ("10.96.0.0/12", "203.0.113.0/24"):
            outside.route(network, via=cluster.lab.node(1).address)


def backends_of(cluster: Cluster) -> list[Pod]:
    """One on the loaded node, one elsewhere."""
    return [cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)]


def apply(cluster: Cluster, backends: list[Pod] | None = None, **spec: object) -> None:
    """The service of this module, called in all ways."""
    cluster.apply(
        "web",
        VIP,
        backends_of(cluster) if backends is None else backends,
        **{"type": "LoadBalancer", "node_port": NODE_PORT, "balancer": BALANCER, "externalIPs": [EXTERNAL], **spec},
    )


def way(cluster: Cluster, name: str) -> tuple[str, int]:
    """Where the service is called."""
    ways = {"cluster-ip": VIP, "node-port": cluster.lab.node(1).address, "external-ip": EXTERNAL, "balancer": BALANCER}
    return ways[name], NODE_PORT if name == "node-port" else VIP_PORT


def caller(cluster: Cluster, name: str) -> Host:
    """Who calls."""
    return {
        "pod": cluster.lab.pod(1, 1),
        "backend": cluster.lab.pod(1, 2),
        "node": cluster.lab.node(1),
        "pod-elsewhere": cluster.lab.pod(2, 1),
        "outside": cluster.lab.outside,
    }[name]


WAYS = ("cluster-ip", "node-port", "external-ip", "balancer")
# A pod elsewhere reaches by this node what this node owns; the other ways lead it to the outside, as its node has no
# datapath. The node itself meets no hook of ours on its way to its own address.
MATRIX = [
    *((name, at) for name in ("pod", "backend", "outside") for at in WAYS),
    *(("node", at) for at in WAYS if at != "node-port"),
    ("pod-elsewhere", "node-port"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "at"), MATRIX)
def test_S28_S31_S49_all_ways_lead_to_all_backends(cluster: Cluster, name: str, at: str, kind: str):
    """Each answer comes from the address that was called, and the backend sees who called wherever that may be (C4)."""
    apply(cluster)
    calling, target = caller(cluster, name), way(cluster, at)
    found = ask_many(calling, KINDS[kind], target, 200)
    assert found.failures == []
    assert set(found.names) == {pod.name for pod in backends_of(cluster)}
    here, there = backends_of(cluster)
    own = BRIDGE if (name, at) == ("node", "cluster-ip") else calling.address
    hidden = {there.name: cluster.lab.node(1).address} if name in ("outside", "pod-elsewhere") else {}
    hairpin = {here.name: BRIDGE} if name == "backend" else {}
    sources = {here.name: own, there.name: own} | hidden | hairpin
    assert {one.name: one.seen[0] for one in found.answers} == sources


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["node-port", "external-ip", "balancer"])
def test_S50_S52_externalTrafficPolicy_Local(cluster: Cluster, at: str, kind: str):
    """From outside only this node's backend answers and sees the client; pods still reach all."""
    ways = {"node-port": cluster.lab.node(1).address, "external-ip": "203.0.113.17", "balancer": "203.0.113.18"}
    target = ways[at], 30081 if at == "node-port" else VIP_PORT
    more = {"node_port": 30081, "balancer": ways["balancer"], "externalIPs": [ways["external-ip"]]}
    # Another service than the other tests': a flow that is there goes on whatever the policy (S93)
    cluster.apply(
        "local", "10.96.3.2", backends_of(cluster), type="LoadBalancer", externalTrafficPolicy="Local", **more
    )
    found = ask_many(cluster.lab.outside, KINDS[kind], target, 60)
    assert found.failures == []
    assert set(found.names) == {backends_of(cluster)[0].name}
    assert {one.seen[0] for one in found.answers} == {cluster.lab.outside.address}
    inside = ask_many(cluster.lab.pod(1, 1), KINDS[kind], target, 100)
    assert set(inside.names) == {pod.name for pod in backends_of(cluster)}


@pytest.mark.parametrize(
    ("name", "at"),
    [("pod", "balancer"), ("outside", "balancer"), ("pod", "cluster-ip"), ("node", "cluster-ip"), ("node", "balancer")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_S41_S42_N91_without_backends_callers_are_refused_at_once(cluster: Cluster, name: str, at: str, kind: str):
    """By RST or ICMP, in the kernel: no time-out."""
    apply(cluster, backends=[])
    with (
        pytest.raises(ConnectionRefusedError),
        dial(caller(cluster, name), way(cluster, at), KINDS[kind]) as one,
    ):
        ask(one)


def test_S95_a_refused_datagram_socket_is_served_when_a_backend_comes(cluster: Cluster):
    """Nothing but `apply` was run between the refusal and the answer, both on one socket."""
    apply(cluster, backends=[])
    with dial(cluster.lab.outside, way(cluster, "node-port"), SOCK_DGRAM) as one:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                ask(one)
        apply(cluster)
        assert ask(one).name in {pod.name for pod in backends_of(cluster)}


@pytest.mark.parametrize("name", ["pod", "outside", "node"])
def test_S39_C3_a_virtual_IP_answers_a_ping(cluster: Cluster, name: str):
    """By ping's own judgement, at a cluster IP and at a balancer's."""
    apply(cluster, backends=[])
    for address in (VIP, BALANCER):
        done = caller(cluster, name).exec(["ping", "-c", "3", "-i", "0.01", "-W", "2", address])
        assert "3 received" in done.stdout, done.stdout


def test_S73_session_affinity_ClientIP(cluster: Cluster):
    """One client, one backend, whatever way it takes (S75)."""
    apply(cluster, sessionAffinity="ClientIP")
    found = [ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, way(cluster, at), 30) for at in WAYS]
    assert [each.failures for each in found] == [[]] * 4
    assert len({name for each in found for name in each.names}) == 1


def test_a_long_stream_from_outside_to_a_backend_elsewhere(cluster: Cluster):
    """In and out by one uplink, several MB each way, behind the node's address."""
    apply(cluster, backends=[backends_of(cluster)[1]])
    with dial(cluster.lab.outside, way(cluster, "balancer")) as one:
        pump({"stream": one}, lines=1000)


def test_S48_a_service_on_the_nodes_own_address_leaves_its_other_ports_alone(cluster: Cluster):
    """What the node itself listens to, beside the node port, is the node's."""
    apply(cluster)
    node = cluster.lab.node(1)
    with node.socket() as listening:
        listening.bind((node.address, PORT))
        listening.listen()
        with dial(cluster.lab.outside, (node.address, PORT)) as one, dial(cluster.lab.pod(1, 1), (node.address, PORT)):
            assert one.getpeername() == (node.address, PORT)


@pytest.mark.parametrize("name", ["node", "pod", "outside"])
@pytest.mark.parametrize("at", ["cluster-ip", "balancer"])
def test_S56_a_service_that_the_node_itself_serves(cluster: Cluster, name: str, at: str):
    """Such as the API server's: the node reaches it as others do, and these are seen as who they are."""
    node, calling = cluster.lab.node(1), caller(cluster, name)
    more = {"type": "LoadBalancer", "balancer": "203.0.113.30", "port": 443, "target": 6443}
    made = objects("api", "10.96.3.9", [], **more)
    (slice_,) = [one for one in made if isinstance(one, EndpointSlice)]
    document = {**slice_.manifest, "endpoints": [{"addresses": [node.address], "nodeName": node.netns}]}
    for datapath in cluster.datapaths.values():
        datapath.apply([made[0], schema.parse(document, "test")])
    address = "10.96.3.9" if at == "cluster-ip" else "203.0.113.30"
    with node.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((node.address, 6443))
        listening.listen()
        listening.settimeout(SECONDS)
        with dial(calling, (address, 443)) as one:
            accepted, peer = listening.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert one.recv(100) == b"hello"
                one.sendall(b"and back")
                assert accepted.recv(100) == b"and back"
    assert peer[0] == ("169.254.218.122" if name == "node" else calling.address)
