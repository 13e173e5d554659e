"""`nat list`, `nat stats` and `port-forward`: what is said is what is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from socket import SOCK_DGRAM, SOCK_STREAM, SocketKind
from typing import Any

import pytest
import yaml
from calls import KINDS, ask, dial
from nat_scene import FAMILIES, IPV4, Ends, nat_cluster, server
from scene import PORT, Cluster, pydatapath

families = pytest.mark.parametrize(**FAMILIES)
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes."""
    with nat_cluster(f"natshown-{os.getpid()}") as made:
        yield made


def on_node(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line at the first node."""
    return pydatapath("--netns", cluster.lab.node(1).netns, *arguments)


def shown(cluster: Cluster, *arguments: str) -> Any:
    """What it says, as JSON; YAML says the same as one of two looks around it: a flow may end between them."""
    found = []
    for form in ("json", "yaml", "json"):
        done = on_node(cluster, *arguments, "-o", form)
        assert (done.returncode, done.stderr) == (0, "")
        found.append(json.loads(done.stdout) if form == "json" else yaml.safe_load(done.stdout))
    assert shape(found[1]) in (shape(found[0]), shape(found[2]))
    return found[2]


def shape(found: Any) -> Any:
    """What does not change from one look to the next."""
    if isinstance(found, list):
        return [shape(one) for one in found]
    if isinstance(found, dict):
        return {name: shape(one) for name, one in found.items() if name not in ("idle", "expires", "flows")}
    return found


@families
def test_what_is_masqueraded_is_listed(cluster: Cluster, ends: Ends):
    """Each pod's port once, with all whom it talks to; an echo by its identifier."""
    pod, outside, node = cluster.lab.pod(1, 1), cluster.lab.outside, cluster.lab.node(1)
    with (
        server(outside, (ends.first, 7_000)) as a,
        server(outside, (ends.second, 7_001)) as b,
        server(pod, (ends.of(pod), 6_000)) as one,
        dial(pod, (ends.first, PORT), SOCK_STREAM, (ends.of(pod), 6_001)) as stream,
    ):
        ask(stream)
        for there in (a, b):
            one.sendto(b"hello", there.getsockname()[:2])
            there.recv(100)
        pod.exec(["ping", "-c", "1", "-e", "99", ends.first], check=True)
        found = shown(cluster, "nat", "list")
        kind = "icmp" if ends is IPV4 else "icmpv6"
        rows = {(row["protocol"], row["inside"]["address"], row["inside"]["port"]): row for row in found}
        for protocol, port, remotes in (
            ("udp", 6_000, [(ends.first, 7_000), (ends.second, 7_001)]),
            ("tcp", 6_001, [(ends.first, PORT)]),
            (kind, 99, [(ends.first, 0)]),
        ):
            row = rows[protocol, ends.of(pod), port]
            assert row["family"] == (4 if ends is IPV4 else 6)
            assert row["outside"] == {"address": ends.of(node), "port": port}
            assert [(end["address"], end["port"]) for end in row["remotes"]] == remotes
            assert 0 <= row["idle"] < row["expires"]
        line = next(
            line
            for line in on_node(cluster, "nat", "list").stdout.splitlines()
            if ":6000 " in line and ends.of(pod) in line
        )
        assert line.split()[0] == "udp"
        assert "+1" in line.split()


def test_what_is_used_is_counted(cluster: Cluster):
    """By outside address and protocol; and who has the most flows."""
    pod = cluster.lab.pod(1, 2)
    before = shown(cluster, "nat", "stats")
    calling = [dial(pod, (IPV4.first, PORT)) for _ in range(20)]
    try:
        for one in calling:
            ask(one)
        found = shown(cluster, "nat", "stats")
    finally:
        for one in calling:
            one.close()
    assert (found["families"], found["type"], found["ports"]) == ([4, 6], "endpoint-independent", "1024-65535")
    assert found["dropped"].keys() == {"ports_taken", "unasked", "untranslated", "pod_limit"}
    used, had = ({(row["address"], row["protocol"]): row for row in one["addresses"]} for one in (found, before))
    node = cluster.lab.node(1)
    assert {(node.address, "udp"), (node.address, "tcp"), (node.address6, "tcp")} <= used.keys()
    assert used[node.address, "tcp"]["used"] - had[node.address, "tcp"]["used"] == 20
    assert used[node.address, "tcp"]["of"] == 65_535 - 1_024 + 1 - 2_768 - 4  # less node ports and tunnels'
    assert {row["address"]: row["flows"] for row in found["sources"]}[pod.address] >= 20
    assert "masqueraded  IPv4 and IPv6" in on_node(cluster, "nat", "stats").stdout


def test_C14_timers_are_changed_by_load(cluster: Cluster):
    """As an upgrade: flows stay, and end by the new times; what is less than an RFC asks is told."""
    pod = cluster.lab.pod(1, 1)
    options = ("--cluster-cidr", "10.244.0.0/16", "--cluster-cidr", "fd00:10:244::/48", "--masquerade")

    def left() -> tuple[float, float]:
        """Seconds until the flow and the mapping are over, as they are shown."""
        (flow,) = [one for one in shown(cluster, "flow", "list") if one["original"]["sport"] == 6_100]
        (mapping,) = [one for one in shown(cluster, "nat", "list") if one["inside"]["port"] == 6_100]
        return flow["expires"], mapping["expires"]

    with dial(pod, (IPV4.first, PORT), SOCK_DGRAM, (pod.address, 6_100)) as one:
        ask(one)
        assert all(250 < seconds <= 300 for seconds in left())
        done = on_node(cluster, "load", *options, "--timeout", "udp=100", "--timeout", "icmp=61")
        assert done.returncode == 0
        assert done.stderr == "Warning: --timeout udp=100 is less than the 120 s of RFC 4787 REQ-5\n"
        assert all(50 < seconds <= 100 for seconds in left())
        assert shown(cluster, "status")["timers"]["udp"] == 100
        assert "timers     udp 100 s, icmp 61 s\n" in on_node(cluster, "status").stdout
        ask(one)
        refused = on_node(cluster, "load", *options, "--timeout", "udp=0")
        assert refused.returncode == 1
        assert refused.stderr.startswith("Error: --timeout 'udp=0' is no time\n")
        assert shown(cluster, "status")["timers"]["udp"] == 100
        assert on_node(cluster, "load", *options).stderr == ""
        assert all(250 < seconds <= 300 for seconds in left())


@families
@kinds
def test_a_port_of_the_node_leads_to_a_pod(cluster: Cluster, kind: SocketKind, ends: Ends):
    """For the outside, a pod elsewhere, and the node itself; after an upgrade, too; no longer when it is deleted."""
    node, pod = cluster.lab.node(1), cluster.lab.pod(1, 2)
    proto = "udp" if kind == SOCK_DGRAM else "tcp"
    host = f"[{ends.of(pod)}]" if ":" in ends.of(pod) else ends.of(pod)
    gateway = node.gateway if ends is IPV4 else node.gateway6
    pod.exec(["ping", "-c", "1", gateway], check=True)  # now the node knows where it is (C4)
    added = on_node(cluster, "port-forward", "add", "8081", f"{host}:{PORT}", "--proto", proto)
    assert (added.returncode, added.stderr) == (0, "")
    for again in (False, True):
        if again:
            cluster.load(1, cluster_cidr=("10.244.0.0/16", "fd00:10:244::/48"), masquerade=True)
        for caller in (cluster.lab.outside, cluster.lab.pod(2, 1), node):
            with dial(caller, (ends.of(node), 8_081), kind) as one:
                found = ask(one)
            assert found.name == pod.name
            if caller is cluster.lab.outside:
                assert found.seen[0] == ends.of(caller)
    rows = [row for row in shown(cluster, "port-forward", "list") if row["protocol"] == proto]
    assert [(row["addresses"], row["port"], row["target"]) for row in rows] == [
        ([ends.of(node)], 8_081, {"address": ends.of(pod), "port": PORT})
    ]
    assert on_node(cluster, "service", "list").stdout.splitlines()[1:] == []
    deleted = on_node(cluster, "port-forward", "delete", "8081", "--proto", proto)
    assert (deleted.returncode, deleted.stderr) == (0, "")
    with (
        pytest.raises(ConnectionRefusedError),
        dial(cluster.lab.outside, (ends.of(node), 8_081), kind) as one,
    ):
        ask(one)


def test_what_a_port_forward_cannot_have(cluster: Cluster):
    """One sentence each."""
    node, pod = cluster.lab.node(1), f"{cluster.lab.pod(1, 2).address}:{PORT}"
    cluster.apply("web", "10.96.7.1", [cluster.lab.pod(1, 2)], externalIPs=[node.address])
    assert on_node(cluster, "port-forward", "add", f"{node.address}:8090", pod).returncode == 0
    with server(node, (node.address, 8_091), SOCK_STREAM) as listening:
        listening.listen()
        for place, message in (
            ("80", "Error: port-forward 0.0.0.0:80/tcp: Service default/web has the port"),
            ("8090", f"Error: port-forward 0.0.0.0:8090/tcp: port-forward {node.address}:8090/tcp has the port"),
            ("8091", f"Error: port-forward 0.0.0.0:8091/tcp: a program on the node has {node.address}:8091/tcp"),
            ("30080", "Error: port-forward 0.0.0.0:30080/tcp: 30080 is in the range of services' node ports"),
            ("192.0.2.1:8092", "Error: port-forward 192.0.2.1:8092/tcp: the node has no such address"),
        ):
            done = on_node(cluster, "port-forward", "add", place, pod)
            assert (done.returncode, done.stderr.splitlines()[0]) == (1, message)
            assert done.stderr.splitlines()[1].startswith("Hint: ")
    done = on_node(cluster, "port-forward", "delete", "8099")
    assert done.stderr.splitlines()[0] == "Error: port-forward 8099/tcp does not exist"
    assert on_node(cluster, "port-forward", "delete", f"{node.address}:8090").returncode == 0
    assert shown(cluster, "port-forward", "list") == []


def test_whom_a_port_forward_cannot_have(cluster: Cluster):
    """What no endpoint can be, the node itself, and a service: one sentence each, and nothing is there afterwards."""
    node = cluster.lab.node(1)
    for target, message in (
        (
            "[fd00::b%eth0]:80",
            "[::]:8096/tcp: 'fd00::b%eth0' is not an IPv4 or IPv6 address (a zone has no place in it)",
        ),
        ("[::ffff:10.244.1.11]:80", "is an IPv4 address in IPv6 notation (write 10.244.1.11)"),
        ("255.255.255.255:80", "0.0.0.0:8096/tcp: 255.255.255.255 is a reserved address, which no pod can have"),
        (f"{node.address}:80", f"0.0.0.0:8096/tcp: {node.address} is the node's own address"),
        (f"{node.gateway}:80", f"0.0.0.0:8096/tcp: {node.gateway} is the node's own address"),
        (f"[{node.address6}]:80", f"[::]:8096/tcp: {node.address6} is the node's own address"),
        ("10.96.7.1:80", "0.0.0.0:8096/tcp: 10.96.7.1 is in a service network"),
    ):
        done = on_node(cluster, "port-forward", "add", "8096", target)
        said, hint, *rest = done.stderr.splitlines()
        assert (done.returncode, said[:20], rest) == (1, "Error: port-forward ", []), done.stderr
        assert said.endswith(message)
        assert hint.startswith("Hint: ")
    assert shown(cluster, "port-forward", "list") == []


def test_a_port_forward_of_sctp(cluster: Cluster):
    """Beside one of TCP at the same port, which stays."""
    pod = f"{cluster.lab.pod(1, 2).address}:{PORT}"
    for proto in ("tcp", "sctp"):
        added = on_node(cluster, "port-forward", "add", "8097", pod, "--proto", proto)
        assert (added.returncode, added.stdout, added.stderr) == (0, f"port-forward 0.0.0.0:8097/{proto} added\n", "")
    again = on_node(cluster, "port-forward", "add", "8097", pod, "--proto", "sctp")
    assert again.returncode == 1
    assert again.stderr.startswith(
        "Error: port-forward 0.0.0.0:8097/sctp: port-forward 0.0.0.0:8097/sctp has the port\n"
    )
    assert [row["protocol"] for row in shown(cluster, "port-forward", "list")] == ["sctp", "tcp"]
    deleted = on_node(cluster, "port-forward", "delete", "8097", "--proto", "sctp")
    assert (deleted.returncode, deleted.stdout) == (0, "port-forward 0.0.0.0:8097/sctp deleted\n")
    assert [row["protocol"] for row in shown(cluster, "port-forward", "list")] == ["tcp"]
    assert on_node(cluster, "port-forward", "delete", "8097").returncode == 0


def test_a_port_forward_that_a_load_ends_is_told(cluster: Cluster):
    """By load, and by status as long as its address is no place of node ports; one for all addresses stays."""
    node, pod = cluster.lab.node(1), f"{cluster.lab.pod(1, 2).address}:{PORT}"
    options = ("--cluster-cidr", "10.244.0.0/16", "--cluster-cidr", "fd00:10:244::/48", "--masquerade")
    for place in (f"{node.address}:8098", "8099"):
        assert on_node(cluster, "port-forward", "add", place, pod).returncode == 0
    said = f"port-forward {node.address}:8098/tcp: nobody can call it, for node ports do not answer at {node.address}"
    elsewhere = on_node(cluster, "load", *options, "--nodeport-addresses", f"{node.gateway}/32")
    assert (elsewhere.returncode, elsewhere.stderr) == (0, f"Warning: {said}\n")
    assert shown(cluster, "status")["conflicts"] == [said]
    assert f"conflict: {said}\n" in on_node(cluster, "status").stdout
    back = on_node(cluster, "load", *options)
    assert (back.returncode, back.stderr) == (0, "")
    assert shown(cluster, "status")["conflicts"] == []
    for place in (f"{node.address}:8098", "8099"):
        assert on_node(cluster, "port-forward", "delete", place).returncode == 0


def test_apply_with_prune_leaves_port_forwards_alone(cluster: Cluster):
    """They are no manifest's."""
    pod = f"{cluster.lab.pod(1, 2).address}:{PORT}"
    assert on_node(cluster, "port-forward", "add", "8095", pod).returncode == 0
    cluster.datapaths[1].apply([], prune=True)
    assert [row["port"] for row in shown(cluster, "port-forward", "list")] == [8_095]
    assert cluster.datapaths[1].objects() == []
    assert on_node(cluster, "port-forward", "delete", "0.0.0.0:8095").returncode == 0


@kinds
def test_N89_rules_of_others_that_masquerade_are_told(cluster: Cluster, kind: SocketKind):
    """As long as they are there; a pod is translated once, and answered, whoever does it."""
    pod, node = cluster.lab.pod(1, 1), cluster.lab.node(1)
    hook = "type nat hook postrouting priority 100;"
    rules = (
        f"table ip other {{ chain out {{ {hook} ip saddr 10.244.0.0/16 masquerade; }}; }}\n"
        f"table ip bystander {{ chain out {{ {hook} ip saddr 172.17.0.0/16 masquerade; }}; }}\n"
    )
    assert shown(cluster, "status")["conflicts"] == []
    node.exec(["nft", "-f", "-"], stdin=rules, check=True)
    try:
        (said,) = shown(cluster, "status")["conflicts"]
        assert said.startswith("chain out of the nftables table ip other translates what pods send, too")
        assert cluster.datapaths[1].translated_elsewhere() == [said]
        for _ in range(20):
            with dial(pod, (IPV4.first, PORT), kind) as one:
                assert ask(one).seen[0] == node.address
    finally:
        for table in ("other", "bystander"):
            node.exec(["nft", "delete", "table", "ip", table], check=True)
    assert shown(cluster, "status")["conflicts"] == []
