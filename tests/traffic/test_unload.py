"""`unload` leaves the host as it was, and never touches what others put there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest
from calls import KINDS, ask, ask_many, dial
from host_state import dump, filters, tc
from in_kernel import ids
from rows import tell
from scene import PORT, VIP_PORT, Cluster, objects, pydatapath

from pydatapath import Datapath
from pydatapath.kernel import links
from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.lab import Host, Lab, LabSpec

NAME = f"un-{os.getpid()}"
VIP = ("10.96.0.60", VIP_PORT)
VIP6 = ("fd00:10:96::60", VIP_PORT)
ACCEPT_LOCAL = "net/ipv4/conf/lo/accept_local"
ALL = "u32 match u32 0 0 action mirred egress mirror dev foreign0"  # and count


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A lab for each test, with servers, and nothing loaded."""
    with playground() as made:
        yield made


@pytest.fixture
def dual_stack() -> Iterator[Cluster]:
    """The same with IPv6 beside IPv4."""
    with playground(dual_stack=True) as made:
        yield made


@contextlib.contextmanager
def playground(*, dual_stack: bool = False) -> Iterator[Cluster]:
    with Lab.up(LabSpec(NAME, nodes=2, pods=2, dual_stack=dual_stack)) as lab:
        made = Cluster(lab)
        made.serve(lab.pod(1, 2), lab.pod(2, 2))
        try:
            yield made
        finally:
            made.close()


def use(cluster: Cluster) -> None:
    """Traffic of all kinds through the datapath of node1."""
    cluster.apply("web", VIP[0], [cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)])
    for host in (cluster.lab.pod(1, 1), cluster.lab.pod(1, 2), cluster.lab.node(1)):
        for kind in KINDS.values():
            assert ask_many(host, kind, VIP, 30).failures == []


def unload(cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """By the command line, as a user does it."""
    for datapath in cluster.datapaths.values():
        datapath.close()
    return pydatapath("--netns", cluster.lab.node(1).netns, "unload")


def assert_nothing_leaked(cluster: Cluster, before: dict[str, str]) -> None:
    """The host is as it was; parts of it that are not are a figure."""
    after = dump(cluster.lab)
    tell(leaked=sum(after.get(part) != before.get(part) for part in {*before, *after}))
    assert after == before


def test_the_host_is_as_it_was(cluster: Cluster):
    """Namespaces, pins, records, links, routes, neighbours, qdiscs, filters and sysctls: the same before and after."""
    before = dump(cluster.lab)
    cluster.load(1)
    use(cluster)
    assert dump(cluster.lab) != before
    done = unload(cluster)
    assert (done.returncode, done.stderr) == (0, "")
    assert dump(cluster.lab) == before


def test_a_host_with_IPv6_is_as_it_was(dual_stack: Cluster):
    """With both families loaded and used there are more routes, neighbours and programs; none of them stays."""
    before = dump(dual_stack.lab)
    dual_stack.load(1)
    use(dual_stack)
    backends = [dual_stack.lab.pod(1, 2), dual_stack.lab.pod(2, 2)]
    dual_stack.apply("web6", VIP6[0], backends)
    for host in (dual_stack.lab.pod(1, 1), dual_stack.lab.node(1)):
        assert ask_many(host, KINDS["TCP"], VIP6, 30).failures == []
    during = "".join(dump(dual_stack.lab, [dual_stack.lab.node(1)]).values())
    for gateway in SERVICE_GATEWAYS.values():
        assert str(gateway) in during
    done = unload(dual_stack)
    assert (done.returncode, done.stderr) == (0, "")
    assert dump(dual_stack.lab) == before


def accept_local(host: Host) -> str:
    return host.exec(["sysctl", "-n", ACCEPT_LOCAL.replace("/", ".")], check=True).stdout.strip()


def test_S46_a_sysctl_that_was_set_before_stays_set(cluster: Cluster):
    """What the node's own node ports need is taken back only by who has set it."""
    node = cluster.lab.node(1)
    links.write_sysctls(node.netns, {ACCEPT_LOCAL: "1"})
    cluster.load(1)
    assert accept_local(node) == "1"
    unload(cluster)
    assert accept_local(node) == "1"


def test_S46_a_sysctl_is_taken_back_where_node_ports_end(cluster: Cluster):
    """A reload without an uplink: nobody calls a node port, and the loopback is nothing to us. Then they are back."""
    node = cluster.lab.node(1)
    cluster.load(1)
    assert (accept_local(node), len(filters(node, "lo", "egress"))) == ("1", 1)
    node.exec(["ip", "route", "del", "default"], check=True)
    cluster.load(1)
    assert (accept_local(node), filters(node, "lo", "egress")) == ("0", [])
    cluster.load(1, uplink=("eth0",))
    assert (accept_local(node), len(filters(node, "lo", "egress"))) == ("1", 1)
    cluster.load(1, uplink=("eth0",))  # what is noted as the value before stays so
    unload(cluster)
    assert accept_local(node) == "0"


def test_the_kernel_keeps_no_program_and_no_map(cluster: Cluster):
    """They end with the last filter and pin, at the latest when the kernel has cleaned up behind it."""
    cluster.load(1)
    use(cluster)
    datapath = cluster.datapaths[1]
    programs = {program["id"] for one in datapath.status().interfaces for program in one.programs}
    maps = {datapath._maps[one.name].info.id for one in datapath.status().maps}
    assert len(programs) >= 3
    assert programs <= ids("prog")
    assert maps <= ids("map")
    unload(cluster)
    deadline = time.monotonic() + 5
    while (left := (programs & ids("prog")) | (maps & ids("map"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == set()


def test_what_is_not_loaded_is_said_so(cluster: Cluster):
    """The second unload does nothing, says it, and is no failure; all of it also with --all."""
    cluster.load(1)
    assert "unloaded" in unload(cluster).stdout
    before = dump(cluster.lab)
    for arguments in ((), ("--all",)):
        again = pydatapath("--netns", cluster.lab.node(1).netns, "unload", *arguments)
        assert (again.returncode, again.stderr) == (0, "")
        assert "not loaded" in again.stdout
    assert dump(cluster.lab) == before


@pytest.fixture
def foreign(cluster: Cluster) -> Host:
    """Node 1 with an interface of somebody else's, for somebody else's filters to mirror to."""
    node, other = cluster.lab.node(1).netns, cluster.lab.hosts[0].netns
    with links.Links(node) as inside, links.Links(other) as outside:
        inside.veth("foreign0", "foreign1", other, peer_mac="02:00:00:00:00:77")
        links.write_sysctls(node, {"net/ipv6/conf/foreign0/disable_ipv6": "1"}, optional=True)
        links.write_sysctls(other, {"net/ipv6/conf/foreign1/disable_ipv6": "1"}, optional=True)
        outside.up("foreign1")
    deadline = time.monotonic() + 5
    for host in (cluster.lab.node(1), cluster.lab.hosts[0]):
        while " UP " not in host.exec(["ip", "-br", "link"]).stdout.partition("foreign")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return cluster.lab.node(1)


def test_F10_foreign_filters_and_qdiscs_stay_and_work(cluster: Cluster, foreign: Host):
    """Before and behind ours, at the same hooks: they see the traffic while we are loaded, and are there afterwards."""
    client, server = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    for interface in ("pod1", "br0", "eth0"):
        tc(foreign, "qdisc", "add", "dev", interface, "clsact")
    tc(foreign, *f"filter add dev pod1 ingress prio 3 protocol ip {ALL} continue".split())
    tc(foreign, *f"filter add dev pod1 ingress prio 20 protocol ip {ALL}".split())
    # and one of the same priority as ours where we have no business
    tc(foreign, *f"filter add dev pod1 egress prio 7 protocol ip {ALL} continue".split())
    before = dump(cluster.lab)
    cluster.load(1)
    use(cluster)

    def seen(priority: int) -> int:
        (found,) = [one for one in filters(foreign, "pod1", "ingress") if one["pref"] == priority]
        return found["options"]["actions"][0]["stats"]["packets"]

    counted = seen(3), seen(20)
    with dial(client, (server.address, PORT)) as one:
        for _ in range(10):
            ask(one)
    tell(repeats=1, sent=10, load="new calls by TCP and UDP of two pods and the node; ten lines of a connection")
    assert seen(3) - counted[0] >= 10
    assert seen(20) - counted[1] >= 10, "a plain packet must reach the filters behind ours"
    unload(cluster)
    assert_nothing_leaked(cluster, before)


def test_F10_what_others_hung_on_our_qdisc_stays(cluster: Cluster, foreign: Host):
    """A filter that came after load keeps its clsact, and nothing else is left."""
    cluster.load(1)
    tc(foreign, *f"filter add dev pod2 ingress prio 9 protocol ip {ALL}".split())
    unload(cluster)
    leaks = len(filters(foreign, "pod2", "ingress")) - 1 + len(filters(foreign, "pod1", "ingress"))
    tell(repeats=1, leaked=leaks, load="nobody")
    (left,) = filters(foreign, "pod2", "ingress")
    assert (left["pref"], left["kind"]) == (9, "u32")
    assert filters(foreign, "pod1", "ingress") == []
    assert "clsact" not in tc(foreign, "qdisc", "show", "dev", "pod1")


def test_F10_a_place_taken_by_others_is_left_to_them(cluster: Cluster, foreign: Host):
    """A foreign filter at our own priority: load refuses, names it, and leaves the host as it was."""
    tc(foreign, "qdisc", "add", "dev", "pod2", "clsact")
    tc(foreign, *f"filter add dev pod2 ingress prio 7 protocol ip {ALL}".split())
    before = dump(cluster.lab)
    done = pydatapath("--netns", foreign.netns, "load", "--node-name", foreign.netns)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: pod2 ingress already has a filter at priority 7")
    tell(repeats=1, load="nobody")
    assert_nothing_leaked(cluster, before)


def test_interfaces_that_are_gone_hold_nothing_up(cluster: Cluster):
    """A pod's veth vanished while loaded: unload takes the rest away, without a complaint."""
    node = cluster.lab.node(1)
    cluster.load(1)
    with links.Links(node.netns) as inside:
        inside.delete("pod1")
    done = unload(cluster)
    assert (done.returncode, done.stderr) == (0, "")
    assert filters(node, "pod2", "ingress") == filters(node, "br0", "egress") == []


def test_two_labs_do_not_see_each_other(cluster: Cluster):
    """Same addresses, same instance name: one is loaded, used and unloaded, the other goes on."""
    cluster.load(1)
    cluster.apply("web", VIP[0], [cluster.lab.pod(1, 2)])
    with Lab.up(LabSpec(f"{NAME}b", nodes=1, pods=2)) as lab, Datapath.load(netns=lab.node(1).netns) as second:
        assert second.services == []
        second.apply(objects("web", "10.96.0.61", [lab.pod(1, 2)]))
        assert [one.service.cluster_ips for one in cluster.datapaths[1].services] == [(VIP[0],)]
        assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20).failures == []
        before = dump(cluster.lab)
        second.unload()
        after = dump(cluster.lab)
        assert {name for name in after if name not in before or after[name] != before[name]} <= {
            "/run/pydatapath",
            "/sys/fs/bpf",
        }
    found = ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20)
    assert (found.failures, set(found.names)) == ([], {"node1-pod2"})
    assert cluster.datapaths[1].status().drift == ()
