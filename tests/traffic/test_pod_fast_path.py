"""Pods of one node among themselves, past the bridge: what they notice of it (nothing), and what the bridge does."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from calls import KINDS, SECONDS, ask, ask_many, dial, pump
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw
from scene import PORT, VIP_PORT, Cluster, cluster_up, pydatapath

from pydatapath.fast_path import PodFastPath
from pydatapath.kernel.links import Links, write_sysctls
from pydatapath.lab import Pod
from pydatapath.lab.topology import Place

VIPS = {4: "10.96.8.1", 6: "fd00:10:96::81"}
FAMILIES = pytest.mark.parametrize("family", VIPS, ids=["IPv4", "IPv6"])
OTHER_PORT = 8081  # where they serve, too, and no service has a backend
COUNT = 100
FEW = 20  # frames that a bridge has of two pods' ARP, neighbour discovery and the like
CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")
ETH_P_ALL = 3
SYSCTL = "net/bridge/bridge-nf-call-iptables"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node of three pods, with nothing loaded; two serve, in both families."""
    with cluster_up(f"past-{os.getpid()}", nodes=1, loaded=(), dual_stack=True) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(1, 3), ports=(PORT, OTHER_PORT))
        yield made


@pytest.fixture
def past(cluster: Cluster) -> Cluster:
    """It is loaded with `always`, and both servers are a service's."""
    if 1 not in cluster.datapaths or cluster.datapaths[1].status().pod_fast_path != "always: on":
        cluster.load(1, cluster_cidr=CLUSTER, pod_fast_path="always")
    for family, vip in VIPS.items():
        cluster.apply(f"web-{family}", vip, [cluster.lab.pod(1, 2), cluster.lab.pod(1, 3)])
    meet(cluster)
    return cluster


def meet(cluster: Cluster) -> None:
    """Let all pods know each other's MACs, and the node know where they are."""
    for host in cluster.lab.pods:
        others = [other for other in cluster.lab.pods if other != host]
        pings = [f"ping -c1 -W2 -q {address}" for other in others for address in (other.address, other.address6)]
        host.exec(["sh", "-ec", "\n".join(pings)], check=True)


def address_of(pod: Pod, family: int) -> str:
    """Its address of a family."""
    return pod.address6 if family == 6 else pod.address


def sent_to(*pods: Pod) -> int:
    """How many frames have gone out to pods by the node's ends of their links: past the bridge they do not."""
    links = json.loads(pods[0].node.exec(["ip", "-j", "-s", "link"], check=True).stdout)
    return sum(one["stats64"]["tx"]["packets"] for one in links if one["ifname"] in {pod.interface for pod in pods})


@contextlib.contextmanager
def bridged(*pods: Pod, frames: bool) -> Iterator[None]:
    """What happens in the block is seen at the bridge, or is not."""
    before = sent_to(*pods)
    yield
    seen = sent_to(*pods) - before
    assert seen >= COUNT if frames else seen < FEW


def say(cluster: Cluster, *options: str) -> tuple[str, str]:
    """Load by the command line; what it warns of, and what `status` says then."""
    name = cluster.lab.node(1).netns
    networks = [word for network in CLUSTER for word in ("--cluster-cidr", network)]
    done = pydatapath("--netns", name, "load", "--node-name", name, "--no-masquerade", *networks, *options)
    assert done.returncode == 0, done.stderr
    status = json.loads(pydatapath("--netns", name, "status", "-o", "json").stdout)
    assert status["drift"] == []
    return done.stderr, status["pod_fast_path"]


def converse(client: Pod, server: Pod, family: int, kind: str, port: int = OTHER_PORT) -> None:
    """A hundred questions and answers, on one socket."""
    with dial(client, (address_of(server, family), port), KINDS[kind]) as one:
        for number in range(COUNT):
            answer = ask(one, f"question {number}")
            assert (answer.name, answer.seen) == (server.name, answer.own)


WAYS = list(itertools.product(VIPS, KINDS, (OTHER_PORT, PORT)))  # PORT is a backend's


@pytest.mark.parametrize("option", ["always", "never"])
def test_pods_talk_past_the_bridge(past: Cluster, option: PodFastPath):
    """By each family and protocol, to any port and to a backend's; without the option the bridge has it all."""
    if option == "never":
        past.load(1, cluster_cidr=CLUSTER)
    pods = client, server = past.lab.pod(1, 1), past.lab.pod(1, 2)
    for family, kind, port in WAYS:
        with bridged(*pods, frames=option == "never"):
            converse(client, server, family, kind, port)


@FAMILIES
@pytest.mark.parametrize("size", [56, 4000], ids=["whole", "in fragments"])
def test_pods_ping_past_the_bridge(past: Cluster, family: int, size: int):
    """Also what comes in parts; the TTL does not fall."""
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 3)
    command = ["ping", "-c", str(COUNT), "-i", "0.002", "-s", str(size), address_of(server, family)]
    with bridged(client, server, frames=False):
        said = client.exec(command, check=True).stdout
    assert f"{COUNT} received" in said
    assert said.count("ttl=64") == COUNT


@FAMILIES
def test_much_comes_through_both_ways(past: Cluster, family: int):
    """Long connections, in segments as large as there are, every byte in its place."""
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 2)
    with bridged(client, server, frames=False), contextlib.ExitStack() as stack:
        ends = address_of(server, family), OTHER_PORT
        pump({f"connection {number}": stack.enter_context(dial(client, ends)) for number in range(3)})


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_services_are_as_ever(past: Cluster, family: int, kind: str):
    """Called by a pod beside them and by their own backends, which may get themselves."""
    for client in past.lab.pods:
        found = ask_many(client, KINDS[kind], (VIPS[family], VIP_PORT), COUNT)
        assert found.failures == []
        assert set(found.names) == {"node1-pod2", "node1-pod3"}


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_N93_one_port_of_a_client_directly_and_by_the_service(past: Cluster, family: int, kind: str):
    """At the same time, in both orders; each answer comes from where it was asked for."""
    client, backend = past.lab.pod(1, 1), past.lab.pod(1, 2)
    past.apply(f"web-{family}", VIPS[family], [backend])
    ends = (address_of(backend, family), PORT), (VIPS[family], VIP_PORT)
    for place, order in enumerate((ends, ends[::-1])):
        own = address_of(client, family), 25_000 + place + 10 * family
        with dial(client, order[0], KINDS[kind], own) as one, dial(client, order[1], KINDS[kind], own) as other:
            for number in range(10):
                for asked, end in ((one, order[0]), (other, order[1])):
                    answer = ask(asked, f"question {number}")
                    assert (answer.name, answer.source) == (backend.name, end)


@FAMILIES
def test_what_is_for_the_gateways_MAC_is_routed(past: Cluster, family: int):
    """By the node's stack, which takes a hop off."""
    client, server, node = past.lab.pod(1, 1), past.lab.pod(1, 3), past.lab.node(1)
    gateway = json.loads(node.exec(["ip", "-j", "link", "show", node.bridge], check=True).stdout)[0]["address"]
    address = address_of(server, family)
    client.exec(["ip", "neigh", "replace", address, "lladdr", gateway, "dev", "eth0"], check=True)
    try:
        with bridged(server, frames=True):
            command = ["ping", "-c", str(COUNT), "-i", "0.002", address]
            assert f"{COUNT} received" in client.exec(command, check=True).stdout
        server.exec(["ping", "-c1", "-W2", address_of(client, family)], check=True)
        with dial(client, (address, OTHER_PORT)) as one:
            assert ask(one).name == server.name
    finally:
        client.exec(["ip", "neigh", "del", address, "dev", "eth0"], check=True)


def mac_of(pod: Pod) -> str:
    """Of its eth0."""
    return str(json.loads(pod.exec(["ip", "-j", "link", "show", "eth0"], check=True).stdout)[0]["address"])


@pytest.mark.parametrize("tag", ["", "81000005"], ids=["none", "a tag"])
def test_a_tagged_frame_is_bridged(past: Cluster, tag: str):
    """The kernel has put its tag beside it, where our program must look: the same without one is not bridged."""
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 3)
    datagram = UDP(sport=9, dport=9) / Raw(b"tagged")
    packet = bytes(IP(src=client.address, dst=server.address) / datagram)
    macs = bytes.fromhex((mac_of(server) + mac_of(client)).replace(":", ""))
    raw = macs + bytes.fromhex(tag) + b"\x08\x00" + packet
    with (
        server.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as listening,
        client.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending,
    ):
        listening.bind(("eth0", ETH_P_ALL))
        listening.settimeout(SECONDS)
        sending.bind(("eth0", 0))
        with bridged(server, frames=bool(tag)):
            for _ in range(COUNT):
                sending.send(raw)
        came = 0
        while came < COUNT:
            came += listening.recv(2048) == packet


def plug_in(pod: Pod, mac: str) -> None:
    """Give a pod that has lost its link another one, with the same addresses."""
    place = Place(pod.place.lab, node=1, pod=pod.number)
    with Links(pod.node.netns) as node:
        node.veth(pod.interface, "eth0", pod.netns, peer_mac=mac, bridge=pod.node.bridge)
    with Links(pod.netns) as inside:
        for address in (f"{place.address}/24", f"{place.address6}/64"):
            inside.address("eth0", address)
        inside.up("eth0")
        for via in (pod.node.gateway, pod.node.gateway6):
            inside.route("default", via=via)


@pytest.mark.parametrize("same_mac", [True, False], ids=["the same MAC", "another MAC"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_comes_back_with_its_address_is_reached(past: Cluster, kind: str, *, same_mac: bool):
    """At once by the bridge, where no `load` has seen its new interface; past it again after one."""
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 3)
    mac = mac_of(server)
    with Links(server.node.netns) as node:
        node.delete(server.interface)
    plug_in(server, mac if same_mac else f"02:00:00:00:77:{len(kind):02x}")
    for pod, other in ((client, server), (server, client)):
        for address in (other.address, other.address6):
            pod.exec(["ip", "neigh", "del", address, "dev", "eth0"])  # as it would soon by itself
    with bridged(server, frames=True):
        for family in VIPS:
            converse(client, server, family, kind)
    past.load(1, cluster_cidr=CLUSTER, pod_fast_path="always")
    converse(server, past.lab.pod(1, 2), 4, kind)  # by which it is learned, where the node has not heard of it
    converse(server, past.lab.pod(1, 2), 6, kind)
    with bridged(client, server, frames=False):
        converse(client, server, 4, kind)
        converse(client, server, 6, kind)


# What stands between pods


RULE = f"""
table bridge filter {{
    chain forward {{
        type filter hook forward priority 0
        udp dport {OTHER_PORT} drop
    }}
}}
"""


def rule_of_a_bridge(cluster: Cluster) -> None:
    """nftables drops what is for a port."""
    node = cluster.lab.node(1)
    done = node.exec(["nft", "-f", "-"], stdin=RULE)
    if "not supported" in done.stderr or "No such file" in done.stderr:
        pytest.skip(f"no nftables for bridges here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def no_rule(cluster: Cluster) -> None:
    """As before."""
    cluster.lab.node(1).exec(["nft", "flush", "ruleset"], check=True)


def bridge_netfilter(value: str, cluster: Cluster) -> None:
    """The sysctl, which a new namespace has on."""
    if not Path("/proc/sys", SYSCTL).exists():
        pytest.skip("no br_netfilter here")
    write_sysctls(cluster.lab.node(1).netns, {SYSCTL: value})


def on_node(command: Sequence[str], cluster: Cluster) -> None:
    """Whatever command it takes."""
    done = cluster.lab.node(1).exec(command)
    if "not supported" in done.stderr:
        pytest.xfail(f"this kernel does not have it: {' '.join(command)}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


Change = Callable[[Cluster], None]
LINK = "ip link set"


def by_command(put: str, take: str, what: str) -> tuple[Change, Change, str]:
    """What two commands put there and take away."""
    return partial(on_node, put.split()), partial(on_node, take.split()), what


STANDING: dict[str, tuple[Change, Change, str]] = {
    "a rule of the bridge": (rule_of_a_bridge, no_rule, "the chain forward of the nftables table bridge filter"),
    "iptables": (
        partial(bridge_netfilter, "1"),
        partial(bridge_netfilter, "0"),
        "iptables (net.bridge.bridge-nf-call-iptables is 1)",
    ),
    "VLANs": by_command(
        f"{LINK} br0 type bridge vlan_filtering 1",
        f"{LINK} br0 type bridge vlan_filtering 0",
        "VLAN filtering of br0",
    ),
    "isolation": by_command(
        f"{LINK} pod3 type bridge_slave isolated on",
        f"{LINK} pod3 type bridge_slave isolated off",
        "the isolation of pod3",
    ),
    "a queue": by_command(
        "tc qdisc replace dev pod3 root tbf rate 1gbit burst 1mb latency 50ms",
        "tc qdisc del dev pod3 root",
        "the qdisc tbf of pod3",
    ),
}


@pytest.mark.parametrize("kind", STANDING)
def test_auto_passes_nothing_by_and_says_what_it_would_have(past: Cluster, kind: str):
    """In one sentence; `always` passes it by, and says so; where there is nothing auto is on, and silent."""
    put, take, what = STANDING[kind]
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 2)
    put(past)
    try:
        assert say(past, "--pod-fast-path", "auto") == (
            f"Warning: --pod-fast-path auto is off: it would pass by {what}\n",
            f"auto: off, it would pass by {what}",
        )
        with bridged(client, server, frames=True):
            converse(client, server, 4, "TCP")
        assert say(past, "--pod-fast-path", "always") == (
            f"Warning: --pod-fast-path always: what pods here send to each other passes by {what}\n",
            f"always: on, passing by {what}",
        )
        with bridged(client, server, frames=False):
            converse(client, server, 4, "TCP")
    finally:
        take(past)
    assert say(past, "--pod-fast-path", "auto") == ("", "auto: on")
    with bridged(client, server, frames=False):
        converse(client, server, 4, "TCP")
    assert say(past) == ("", "never")


def test_a_rule_of_the_bridge_holds_for_auto(past: Cluster):
    """And does not for always, which was said."""
    client, server = past.lab.pod(1, 1), past.lab.pod(1, 2)
    rule_of_a_bridge(past)
    try:
        say(past, "--pod-fast-path", "auto")
        with dial(client, (server.address, OTHER_PORT), KINDS["UDP"]) as one:
            one.settimeout(0.2)
            with pytest.raises(TimeoutError):
                ask(one)
            say(past, "--pod-fast-path", "always")
            one.settimeout(SECONDS)
            assert ask(one).name == server.name
    finally:
        no_rule(past)


def test_a_rule_that_comes_later_is_drift_and_repair_minds_it(past: Cluster):
    """Which loads as it was asked to: with auto."""
    name = past.lab.node(1).netns
    assert say(past, "--pod-fast-path", "auto") == ("", "auto: on")
    rule_of_a_bridge(past)
    try:
        drift = json.loads(pydatapath("--netns", name, "status", "-o", "json").stdout)["drift"]
        assert drift[0].startswith("the node's pod fast path was on at load, and is off now")
        assert pydatapath("--netns", name, "repair").returncode == 0
        status = json.loads(pydatapath("--netns", name, "status", "-o", "json").stdout)
        assert status["drift"] == []
        assert status["pod_fast_path"].startswith("auto: off, it would pass by the chain forward")
        assert "fast path  auto: off, it would pass by" in pydatapath("--netns", name, "status").stdout
    finally:
        no_rule(past)
