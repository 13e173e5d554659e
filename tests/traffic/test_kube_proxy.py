"""What the benchmarks compare with is right: by kube-proxy's rules, as bench/ lays them, calls are spread over the
backends and masqueraded as the real one does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import KINDS, ask_many
from scene import PORT, VIP_PORT, Cluster, cluster_up

from bench.kube_proxy import ServicePort, restore_input
from bench.kube_proxy_nft import count_rules, nft_input, one_changed

VIP = ("10.96.0.10", VIP_PORT)
CALLS = 600
CLUSTER_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/16"
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")  # without it the answers of a bridge's pods pass us by

IPTABLES = {"iptables": "iptables-nft", "iptables-legacy": "iptables-legacy"}  # iptables' two forms, and their commands

layouts = pytest.mark.parametrize("layout", [*IPTABLES, "nftables"])
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with three pods, of which two serve; we are not loaded."""
    with cluster_up(f"kube-{os.getpid()}", nodes=1, loaded=()) as made:
        made.serve(*made.lab.pods[1:])
        made.lab.outside.exec(["ip", "route", "add", f"{VIP[0]}/32", "via", made.lab.node(1).address], check=True)
        with made.lab.node(1).entered():
            bridged = BRIDGED.exists()
            if bridged:
                BRIDGED.write_text("1")
        yield made


def ports(cluster: Cluster, count: int = 2) -> list[ServicePort]:
    """The service, over TCP and UDP, with so many of its backends."""
    backends = tuple((pod.address, PORT) for pod in cluster.lab.pods[1 : 1 + count])
    return [ServicePort(f"default/web:{kind.lower()}", VIP[0], kind.lower(), VIP_PORT, backends) for kind in KINDS]


def run(cluster: Cluster, *command: str, stdin: str = "") -> str:
    done = cluster.lab.node(1).exec(list(command), stdin=stdin)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def laid(cluster: Cluster, layout: str) -> Iterator[str]:
    """The rules, in the node alone."""
    if command := IPTABLES.get(layout):
        run(cluster, f"{command}-restore", "--noflush", stdin=restore_input(ports(cluster), CLUSTER_CIDR))
    else:
        table = nft_input(ports(cluster), CLUSTER_CIDR, SERVICE_CIDR, [cluster.lab.node(1).address])
        run(cluster, "nft", "-f", "-", stdin=table)
    yield layout
    if command:
        run(cluster, f"{command}-restore", stdin="".join(f"*{one}\nCOMMIT\n" for one in ("mangle", "filter", "nat")))
    else:
        run(cluster, "nft", "delete", "table", "ip", "kube-proxy")


@kinds
@layouts
def test_calls_are_spread_evenly_and_masqueraded_where_they_come_from_elsewhere(cluster: Cluster, laid: str, kind):
    """The node's own, whose address is none of the cluster's, and those from outside; a pod's keep their address."""
    lab = cluster.lab
    hosts = {"the node": lab.node(1), "outside": lab.outside}
    if BRIDGED.exists():
        hosts["a pod"] = lab.pod(1, 1)
    for name, host in hosts.items():
        found = ask_many(host, kind, VIP, CALLS)
        assert found.failures == [], name
        assert set(found.names) == {"node1-pod2", "node1-pod3"}
        assert all(abs(count - CALLS / 2) < 75 for count in found.names.values()), found.names  # six sigma
        seen = {one.seen[0] for one in found.answers}
        assert seen == ({host.address} if name == "a pod" else {lab.node(1).gateway}), name
    forms = {name for name, command in IPTABLES.items() if "KUBE-SERVICES" in run(cluster, f"{command}-save")}
    assert forms == {laid} - {"nftables"}, "and by no other rules than those"


@layouts
def test_one_changed_service_is_changed_alone(cluster: Cluster, laid: str):
    """As kube-proxy changes it: in nftables mode that service's chain, by iptables all of it."""
    changed = ports(cluster, 1)
    if command := IPTABLES.get(laid):
        run(cluster, f"{command}-restore", "--noflush", stdin=restore_input(changed, CLUSTER_CIDR))
    else:
        run(cluster, "nft", "-f", "-", stdin="".join(map(one_changed, changed)))
    assert ask_many(cluster.lab.node(1), KINDS["TCP"], VIP, 40).names == {"node1-pod2": 40}


@layouts
def test_how_many_rules_a_service_has(cluster: Cluster, laid: str, figure: Callable[[str], None]):
    """By iptables three and three for each endpoint; by nftables one, with an element of a map."""
    if command := IPTABLES.get(laid):
        rules = [line for line in run(cluster, f"{command}-save").splitlines() if line.startswith("-A")]
        own = [line for line in rules if "default/web" in line]
        expected = len(KINDS) * (3 + 3 * 2) - len(KINDS)
    else:
        listed = run(cluster, "nft", "list", "table", "ip", "kube-proxy")
        own = [line for line in listed.splitlines() if "numgen" in line]
        rules = [""] * count_rules(listed)
        expected = len(KINDS)
    figure(f"{laid}: {len(own)} rules of one service of two ports and two endpoints, {len(rules)} rules in all")
    assert len(own) == expected


def test_the_chains_have_kube_proxys_names():
    """Its hashes, as they were recorded of version 1.36."""
    dns = ServicePort("default/dns:dns", "10.96.0.10", "udp", 53, (("10.244.1.11", 9090),))
    assert "KUBE-SVC-2MBSHUE5GJKPO227" in restore_input([dns], CLUSTER_CIDR)
    table = nft_input([dns], CLUSTER_CIDR, SERVICE_CIDR, ["192.168.50.11"])
    assert "10.96.0.10 . udp . 53 : goto service-Z3XHB2ZZ-default/dns/udp/dns" in table
    assert "meta l4proto udp dnat ip to numgen random mod 1 map { 0 : 10.244.1.11 . 9090 }" in table
