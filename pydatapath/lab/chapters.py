"""The chapters of the demo: each shows one thing with real traffic, and finds out for itself whether it is so."""

from __future__ import annotations

import socket
from collections import Counter as Tally
from collections.abc import Callable, Collection
from typing import NamedTuple

from pydatapath.datapath import Datapath
from pydatapath.lab import netfilter
from pydatapath.lab.client import Place
from pydatapath.lab.hosts import Host, Pod
from pydatapath.lab.stage import PORT, VIP, Failed, Stage, expect

__all__ = ["CHAPTERS", "Chapter"]

QUESTIONS = 60  # that none of 3 backends is left out by chance: 1 - 3 * (2/3)^60, all but certain
TRIES = 200  # until a pod chosen out of 3 is a certain one: it fails once in 10^35
WIDTH = 40  # of a histogram, in characters
LOCALHOST: Place = ("127.0.0.1", 9000)


class Chapter(NamedTuple):
    """A numbered part of the demo; `play` raises Failed where it does not see what it is to show."""

    title: str
    play: Callable[[Stage, Datapath], None]


def container_to_container(stage: Stage, _: Datapath) -> None:
    """Over localhost, which is the pod's own."""
    pod = stage.client
    found = stage.ask_in_container("sidecar", LOCALHOST)
    stage.tell("line", f"sidecar asked {_at(LOCALHOST)}, {found.name} answered and saw {_at(found.server_peer)}")
    expect(found.name == "app", f"{found.name} answered, not app")
    expect(found.server_peer[0] == LOCALHOST[0], f"app saw {found.server_peer[0]}, not localhost")
    neighbour = stage.backends[0]
    try:
        stage.connect(neighbour, (pod.address, LOCALHOST[1])).close()
    except Failed as error:
        expect(isinstance(error.__cause__, ConnectionRefusedError), f"{error}, but it should have been refused")
        stage.tell("line", f"{neighbour.name} asked {pod.address}:{LOCALHOST[1]} and was refused")
    else:
        raise Failed(f"{neighbour.name} reached what listens on localhost of {pod.name} only")
    stage.tell("ok", "two containers of one pod talk over localhost, and nobody else hears them")
    stage.tell("why", "A pod is one network namespace: its containers share its address and its localhost.")


def pod_to_pod(stage: Stage, _: Datapath) -> None:
    """Over the bridge and over the nodes' routes, addresses unchanged."""
    near, far, _last = stage.backends
    for server, way in ((near, f"over the bridge {stage.node.bridge}"), (far, "over the routes between the nodes")):
        for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
            found = stage.ask(stage.client, (server.address, PORT), kind)
            stage.tell("line", f"{stage.client.name} to {server.name} by {protocol}, {way}")
            stage.tell("line", f"   the client sees  {_ends(found.client_local, found.client_remote)}")
            stage.tell("line", f"   the server sees  {_ends(found.server_peer, found.server_local)}")
            expect(found.name == server.name, f"{found.name} answered, not {server.name}")
            expect(found.unchanged, "client and server do not see the same addresses: something translated them")
    stage.tell("ok", "both sides see the same addresses and ports, on one node and between two")
    stage.tell("why", "Pods reach pods by bridge and routes, without NAT; the datapath leaves their packets alone.")


def pod_to_service(stage: Stage, datapath: Datapath) -> None:
    """Spread over the backends; one dies and comes back while the service lives on."""
    for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        tally = stage.ask_many(stage.client, QUESTIONS, kind)
        stage.tell("line", f"{stage.client.name} asked {_at(VIP)} {QUESTIONS} times by {protocol}, all answered:")
        _show(stage, tally, stage.backends)
    stage.tell("ok", "every backend took its share")
    stage.tell("why", "Each new connection gets a backend at random; the virtual IP is no machine's address.")
    with stage.connect(stage.client, VIP) as held:
        keeper = _one_flow(stage, datapath, held)
        lost = next(pod for pod in stage.backends[1:] if pod.name != keeper)
        _lose(stage, datapath, lost, held, keeper)
    stage.start_backends(lost)
    stage.apply(datapath)
    stage.tell("line", f"{lost.name} is back, and in the slice again; {QUESTIONS} questions more:")
    _show(stage, stage.ask_many(stage.client, QUESTIONS), stage.backends)
    stage.tell("ok", "the address stayed, the others took over, and the one that came back serves again")
    stage.tell("why", "A service outlives its pods: clients keep the virtual IP, only its backends change.")


def _one_flow(stage: Stage, datapath: Datapath, held: socket.socket) -> str:
    """Show what the kernel remembers of a connection that is open; the name of the backend that it has."""
    found = stage.ask_again(held)
    flow = stage.flow(datapath, found.client_local)
    stage.tell("line", "one connection, held open, in the flow table (`pydatapath flow list`):")
    width = max(len(str(flow.original)), len(str(flow.reply)))
    stage.tell("line", f"   original  {flow.original!s:{width}}   as {stage.client.name} sends")
    stage.tell("line", f"   reply     {flow.reply!s:{width}}   as {found.name} answers")
    stage.tell("line", f"   {flow.protocol.lower()}, {flow.state}, nat {flow.nat}, service {flow.service}")
    expect((flow.original.dst, flow.original.dport) == VIP, f"the original goes to {flow.original.dst}, not to the VIP")
    expect((flow.reply.src, flow.reply.sport) == found.server_local, "the reply does not come from who answered")
    expect(found.client_remote == VIP, f"the client sees {_at(found.client_remote)}, not the address that it called")
    expect(found.server_peer == found.client_local, f"the backend sees {_at(found.server_peer)}, not the client")
    expect((flow.state, flow.nat) == ("established", "dnat"), "the flow is not established with nat dnat")
    stage.tell("ok", "the destination is translated on the way there, and back again on the way home")
    stage.tell("why", f"The client believes it talks to {_at(VIP)}; the backend sees the client's true address.")
    return found.name


def _lose(stage: Stage, datapath: Datapath, lost: Pod, held: socket.socket, keeper: str) -> None:
    """A backend dies; its service does not, and neither does a connection to another backend."""
    stage.stop(lost)
    stage.apply(datapath, without=[lost])
    others = [pod for pod in stage.backends if pod != lost]
    stage.tell("line", f"{lost.name} is killed, and its endpoint taken out of the slice; {QUESTIONS} questions more:")
    _show(stage, stage.ask_many(stage.client, QUESTIONS), others)
    found = stage.ask_again(held)
    expect(found.name == keeper, f"the connection held open to {keeper} was answered by {found.name}")
    stage.tell("line", f"the connection held open to {keeper} goes on")


def pod_to_itself(stage: Stage, _: Datapath) -> None:
    """Through a service that it is a backend of: both addresses must be translated."""
    pod = stage.backends[0]
    for tries in range(1, TRIES + 1):
        found = stage.ask(pod, VIP)
        if found.name == pod.name:
            stage.tell("line", f"{pod.name} asked {_at(VIP)}, and at try {tries} its own server answered")
            break
    else:
        raise Failed(f"{pod.name} asked {_at(VIP)} {TRIES} times and never reached itself")
    stage.tell("line", f"   the client sees  {_ends(found.client_local, found.client_remote)}")
    stage.tell("line", f"   the server sees  {_ends(found.server_peer, found.server_local)}")
    expect(found.client_remote == VIP, f"the client sees {_at(found.client_remote)}, not the address that it called")
    expect(found.server_peer[0] == stage.node.gateway, f"the server saw {found.server_peer[0]}, not the node's bridge")
    stage.tell("ok", f"the pod reached itself, and saw the node's address {found.server_peer[0]} call")
    stage.tell("why", "It would drop a packet that comes from its own address, so the source is translated, too.")


def node_to_service(stage: Stage, _: Datapath) -> None:
    """The node's own programs call services like everybody else."""
    tally = stage.ask_many(stage.node, QUESTIONS)
    stage.tell("line", f"{stage.node.name} itself asked {_at(VIP)} {QUESTIONS} times, all answered:")
    _show(stage, tally, stage.backends)
    found = stage.ask(stage.node, VIP)
    seen = found.server_peer[0]
    own = (stage.node.gateway, stage.node.address)
    expect(seen in own, f"{found.name} saw {seen}, which is no address of {stage.node.name}")
    stage.tell("ok", f"the node reaches the service; {found.name} saw its address {seen} call")
    stage.tell("why", "Its packets to service addresses leave by the bridge, where the same program meets them.")


def no_netfilter(stage: Stage, datapath: Datapath) -> None:
    """The other way of doing all this had no part in it."""
    hosts: tuple[Host, ...] = stage.lab.hosts
    found = {host.name: netfilter.traces(host) for host in hosts}
    node = found[stage.node.name]
    rules = "could not be asked for" if node.rules is None else f"{len(node.rules.splitlines())} lines"
    tracked = "no conntrack in this kernel" if node.connections is None else f"{node.connections} connections tracked"
    stage.tell("line", f"in {stage.node.name}, after {stage.exchanges} questions and answers:")
    made = datapath.status().counters["new_flow"]
    stage.tell("line", f"   pydatapath           {made} flows made")
    stage.tell("line", f"   nft list ruleset     {rules}")
    stage.tell("line", f"   iptables' tables     {' '.join(node.tables) or 'none'}")
    stage.tell("line", f"   conntrack            {tracked}, {node.handled} packets seen")
    expect(made > 0, "the datapath has made no flow: who translated all that?")
    for name, one in found.items():
        expect(one.none, f"netfilter is at work in {name}: {one}")
    stage.tell("line", f"and the same in the {len(hosts) - 1} other namespaces of the lab")
    stage.tell("ok", "no rule, no table, no tracked connection: netfilter took no part in any of this")
    stage.tell("why", "kube-proxy writes iptables rules for each service; here eBPF did it all, at the pods' doors.")


def _show(stage: Stage, tally: Tally[str], pods: Collection[Pod]) -> None:
    """A histogram of who answered how often. Raises Failed when it was not just `pods`, each of them."""
    most = max(tally.values())
    for pod in pods:
        count = tally[pod.name]
        where = "local" if pod.node == stage.node else "remote"
        bar = "#" * round(count * WIDTH / most)
        stage.tell("line", f"   {pod.name}  {pod.address}  {where:6}  {count:3}  {bar}")
    strangers = sorted(set(tally) - {pod.name for pod in pods})
    expect(not strangers, f"{', '.join(strangers)} answered, and should not")
    left_out = [pod.name for pod in pods if not tally[pod.name]]
    expect(not left_out, f"{', '.join(left_out)} never answered")


def _at(place: Place) -> str:
    return f"{place[0]}:{place[1]}"


def _ends(source: Place, destination: Place) -> str:
    return f"{_at(source)} > {_at(destination)}"


CHAPTERS = (
    Chapter("Container to container, in one pod", container_to_container),
    Chapter("Pod to pod", pod_to_pod),
    Chapter("Pod to service", pod_to_service),
    Chapter("Pod to itself, through its own service", pod_to_itself),
    Chapter("The node to the service", node_to_service),
    Chapter("Without netfilter", no_netfilter),
)
