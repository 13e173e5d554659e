"""What goes wrong in the middle: a load that fails, records that are lost, a pod that comes back elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from calls import KINDS, ask_many
from host_state import dump
from scene import VIP_PORT, Cluster, pydatapath

from pydatapath import Options, connecting, instance, loading
from pydatapath.carrying import Move
from pydatapath.errors import DatapathError, KernelError
from pydatapath.kernel.attach import Attacher, Place
from pydatapath.kernel.gateway import SERVICE_GATEWAYS
from pydatapath.kernel.layout import ENDPOINT, MAPS, EndpointKind, Family
from pydatapath.kernel.links import Links, delete_namespace, write_sysctls
from pydatapath.kernel.packing import unpack_ip
from pydatapath.kernel.tc import Filter, own_filters
from pydatapath.lab import Lab, LabSpec
from pydatapath.records import HostChange, Records

NAME = f"re-{os.getpid()}"
VIP = ("10.96.0.61", VIP_PORT)
VIP6 = ("fd00:10:96::61", VIP_PORT)
GATEWAY6 = "fd00:10:244:1::1"  # the bridge of node1
ASKING = {"accept_dad": "1", "dad_transmits": "60"}  # a minute of duplicate address detection


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service that works."""
    with playground() as made:
        yield made


@pytest.fixture
def dual_stack() -> Iterator[Cluster]:
    """The same with IPv6 beside IPv4."""
    with playground(dual_stack=True) as made:
        yield made


@contextlib.contextmanager
def playground(*, dual_stack: bool = False) -> Iterator[Cluster]:
    with Lab.up(LabSpec(NAME, nodes=1, pods=2, dual_stack=dual_stack)) as lab:
        made = Cluster(lab)
        made.serve(lab.pod(1, 2))
        made.load(1)
        made.apply("web", VIP[0], [lab.pod(1, 2)])
        try:
            yield made
        finally:
            made.close()


def works(cluster: Cluster, vip: tuple[str, int] = VIP) -> None:
    """New connections from a pod and from the node are answered."""
    for host in (cluster.lab.pod(1, 1), cluster.lab.node(1)):
        for kind in KINDS.values():
            assert ask_many(host, kind, vip, 20).failures == []


def hanging(cluster: Cluster) -> list[Filter]:
    """All our filters, with the programs' numbers."""
    with cluster.lab.node(1).entered():
        return [one for index, _ in socket.if_nameindex() for one in own_filters(index, instance.DEFAULT, ())]


def own_pins(cluster: Cluster, family: Family) -> set[str]:
    """The pinned maps of one family's own."""
    pins = cluster.datapaths[1].instance.map_pins
    return {path.name for path in pins.iterdir() if MAPS[path.name].family is family}


def route6(cluster: Cluster) -> str:
    """The node's IPv6 routes that are ours."""
    return cluster.lab.node(1).exec(["ip", "-6", "route", "show", "proto", "218"], check=True).stdout


def own_addresses6(cluster: Cluster) -> set[str]:
    """The IPv6 addresses that the programs take for the node's own."""
    entries = cluster.datapaths[1]._maps["endpoints6"].items()
    return {unpack_ip(key) for key, value in entries if ENDPOINT.unpack(value)[2] == EndpointKind.NODE}


def use_IPv6(cluster: Cluster, *, wanted: bool) -> None:
    """Gives the bridge its IPv6 address or takes it, as an administrator would."""
    node = cluster.lab.node(1)
    options = ["nodad"] if wanted else []
    node.exec(["ip", "-6", "address", "add" if wanted else "del", f"{GATEWAY6}/64", "dev", "br0", *options], check=True)


def test_IPv6_comes_with_its_address_and_goes_with_it(dual_stack: Cluster):
    """Services of IPv6 are kept all the time, planned by a load with IPv6, and leave nothing behind without."""
    use_IPv6(dual_stack, wanted=False)
    dual_stack.load(1)
    works(dual_stack)
    dual_stack.apply("web6", VIP6[0], [dual_stack.lab.pod(1, 2)])
    assert (own_pins(dual_stack, Family.IPV6), route6(dual_stack)) == (set(), "")
    assert dual_stack.datapaths[1].service("web6").backends == ()
    for _ in range(2):
        use_IPv6(dual_stack, wanted=True)
        dual_stack.load(1)
        works(dual_stack, VIP6)
        works(dual_stack)
        assert own_addresses6(dual_stack) == {GATEWAY6, dual_stack.lab.node(1).address6}
        assert [one.address for one in dual_stack.datapaths[1].service("web6").backends] == [
            dual_stack.lab.pod(1, 2).address6
        ] * 2
        assert {one.family for one in dual_stack.datapaths[1].flows()} == {4, 6}
        use_IPv6(dual_stack, wanted=False)
        dual_stack.load(1)
        works(dual_stack)
        assert (own_pins(dual_stack, Family.IPV6), route6(dual_stack)) == (set(), "")
        status = dual_stack.datapaths[1].status()
        assert (status.drift, status.backends, {one.family for one in dual_stack.datapaths[1].flows()}) == ((), 2, {4})


def test_IPv6_that_cannot_be_loaded_leaves_nothing(dual_stack: Cluster, monkeypatch: pytest.MonkeyPatch):
    """It fails when the first program is exchanged: IPv4 goes on, and of IPv6 there is neither map nor plan."""
    use_IPv6(dual_stack, wanted=False)
    dual_stack.load(1)
    dual_stack.apply("web6", VIP6[0], [dual_stack.lab.pod(1, 2)])
    use_IPv6(dual_stack, wanted=True)
    exchange, failed = Attacher.exchange, []

    def fail_at_the_first(*given: Any) -> dict[Place, KernelError]:
        if not failed:
            failed.append(given)
            raise KernelError("no luck")
        return exchange(*given)  # to hang the old ones up again works

    with monkeypatch.context() as patched:
        patched.setattr(Attacher, "exchange", fail_at_the_first)
        with pytest.raises(KernelError, match="no luck"):
            loading.load(dual_stack.datapaths[1].instance, Options(node_name=dual_stack.lab.node(1).netns))
    assert (own_pins(dual_stack, Family.IPV6), route6(dual_stack)) == (set(), "")
    status = dual_stack.datapaths[1].status()
    assert status.backends == 2
    assert all(one.startswith("the node's IPv6 ") for one in status.drift), "the host has it, the datapath has not"
    works(dual_stack)
    dual_stack.load(1)
    works(dual_stack, VIP6)


def test_an_address_that_is_still_asked_about_holds_no_load_up(dual_stack: Cluster):
    """While the kernel looks for duplicates of the bridge's address it is no route's source: the route has none."""
    node = dual_stack.lab.node(1)
    use_IPv6(dual_stack, wanted=False)
    dual_stack.datapaths[1].unload()
    write_sysctls(node.netns, {f"net/ipv6/conf/br0/{name}": value for name, value in ASKING.items()})
    node.exec(["ip", "-6", "address", "add", f"{GATEWAY6}/64", "dev", "br0"], check=True)
    assert "tentative" in node.exec(["ip", "-6", "address", "show", "br0"]).stdout
    dual_stack.load(1)
    assert "fd00:10:96::/112" in route6(dual_stack)
    assert " src " not in route6(dual_stack)
    assert "tentative" in node.exec(["ip", "-6", "address", "show", "br0"]).stdout
    use_IPv6(dual_stack, wanted=False)
    use_IPv6(dual_stack, wanted=True)
    dual_stack.apply("web6", VIP6[0], [dual_stack.lab.pod(1, 2)])
    works(dual_stack, VIP6)


def test_a_reload_refused_before_the_exchange_changes_nothing(cluster: Cluster):
    """A route to the new service network is another's: what runs goes on, and the records say what they said."""
    works(cluster)
    node = cluster.lab.node(1)
    with Links(node.netns) as links:
        links.route("10.99.0.0/16", via="192.168.50.100")
    before = dump(cluster.lab, [node])
    options = ["--node-name", node.netns, "--service-cidr", "10.96.0.0/12", "--service-cidr", "10.99.0.0/16"]
    done = pydatapath("--netns", node.netns, "load", *options)
    assert done.returncode == 1
    assert "10.99.0.0/16" in done.stderr
    assert cluster.datapaths[1].options.service_cidr == Options().service_cidr
    works(cluster)
    after = dump(cluster.lab, [node])
    assert {key: value for key, value in after.items() if "state.db" not in value} == {
        key: value for key, value in before.items() if "state.db" not in value
    }


def test_a_reload_that_fails_half_way_leaves_the_old_programs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """Two of the filters are exchanged when it fails: all run the old programs again, and they still serve."""
    works(cluster)
    exchange, failed = Attacher.exchange, []

    def fail_at_the_third(
        self: Attacher, places: Sequence[Place], instance: str, over: Sequence[Filter] = (), *more: Any
    ) -> dict[Place, KernelError]:
        if failed:
            return exchange(self, places, instance, over)
        failed.append(places[2])
        found = exchange(self, places[:2], instance, over)
        assert hanging(cluster) != before
        return found | {places[2]: KernelError(f"no luck with {places[2].name}")}

    def plan_as_before(*given: Any) -> None:
        assert hanging(cluster) == before, "a plan takes a while, in which the two loads' programs would not agree"
        planned.append(given)

    # One filter hangs where it no longer belongs: it is taken away by the same message, and comes back
    cluster.lab.node(1).exec(["ip", "link", "set", "pod1", "nomaster"], check=True)
    before, planned = hanging(cluster), list[Any]()
    monkeypatch.setattr(Attacher, "exchange", fail_at_the_third)
    monkeypatch.setattr(loading, "_plan_as_before", plan_as_before)
    with pytest.raises(KernelError, match="no luck"):
        loading.load(cluster.datapaths[1].instance, Options(node_name=cluster.lab.node(1).netns))
    assert len(planned) == 1
    assert hanging(cluster) == before
    cluster.lab.node(1).exec(["ip", "link", "set", "pod1", "master", "br0"], check=True)
    works(cluster)


@pytest.mark.parametrize("at", ["the records", "what is carried"])
def test_a_load_that_fails_behind_the_exchange_is_turned_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, at: str
):
    """At an interface that is no pod's any more, too, hangs what hung there; and the plan is the old one."""
    works(cluster)
    node, which = cluster.lab.node(1), cluster.datapaths[1].instance
    node.exec(["ip", "link", "set", "pod1", "nomaster"], check=True)

    def state() -> dict[str, Any]:
        with Records(which.records) as records:
            kept = {name: records.get(name) for name in ("algorithm", "options", "since", "programs", "unfinished")}
            changes = {kind: records.host_changes(kind) for kind in HostChange}
        return {**kept, "hangs": hanging(cluster), "pins": sorted(which.pins.rglob("*")), **changes}

    def fail(*_: object) -> None:
        raise KernelError("no luck")

    def fail_to_record(self: Records, facts: dict[str, object]) -> None:
        if "since" in facts:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full
        put(self, facts)

    before, put = state(), Records.put
    with monkeypatch.context() as patched:
        if at == "the records":
            patched.setattr(Records, "put", fail_to_record)
        else:
            patched.setattr(Move, "catch_up", fail)
        options = Options(node_name=node.netns, algorithm="maglev", max_flows=20_000, service_cidr=("10.96.0.0/16",))
        with pytest.raises(DatapathError, match=r"no luck|no room"):
            loading.load(which, options)
    assert state() == {**before, "unfinished": False}
    node.exec(["ip", "link", "set", "pod1", "master", "br0"], check=True)
    assert cluster.datapaths[1].status(check=True).drift == ()
    works(cluster)


def test_a_load_that_is_refused_after_one_that_was_killed_changes_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """Killed between the exchange and its end: the programs that hang are not those that are pinned, and stay."""
    works(cluster)
    node = cluster.lab.node(1)
    # As a kill there leaves it: nothing is turned back, nothing recorded
    command = (
        "import os\nfrom pydatapath.carrying import Move\nfrom pydatapath.cli import main\n"
        "Move.catch_up = lambda *_: os._exit(9)\nmain()"
    )
    load = ["--netns", node.netns, "load", "--node-name", node.netns]
    assert node.exec([sys.executable, "-c", command, *load, "--max-flows", "20000"]).returncode == 9
    before = hanging(cluster)
    works(cluster)
    assert pydatapath(*load, "--uplink", "nothere").returncode == 1
    assert hanging(cluster) == before
    works(cluster)
    assert pydatapath(*load).returncode == 0
    assert cluster.datapaths[1].status().drift == ()
    works(cluster)


def test_what_somebody_hung_up_a_second_time_goes(cluster: Cluster):
    """At whatever priority, for whatever protocol, of the programs that run or ran before; by load and by unload."""
    node, which = cluster.lab.node(1), cluster.datapaths[1].instance
    works(cluster)
    for command in ("load", "unload"):
        for way in ("protocol ip prio 9", "protocol ipv6 prio 10", "prio 11"):
            more = f"filter add dev pod2 ingress {way} bpf da pinned {which.program_pins / 'from_pod'}"
            node.exec(["tc", *more.split()], check=True)
        arguments = ["--node-name", node.netns] if command == "load" else []
        assert pydatapath("--netns", node.netns, command, *arguments).returncode == 0
        left = node.exec(["tc", "filter", "show", "dev", "pod2", "ingress"]).stdout
        assert left.count("direct-action") == (command == "load"), left
    cluster.load(1)


@pytest.mark.parametrize("there", [False, True], ids=["none of our filters", "somebody's filter beside ours"])
def test_a_load_that_fails_leaves_no_maps_of_other_sizes(cluster: Cluster, there: bool):
    """Nor programs, whatever hangs at the interfaces or does not, however often it is tried."""
    node, which = cluster.lab.node(1), cluster.datapaths[1].instance
    before = sorted(path.name for path in which.pins.iterdir())
    works(cluster)
    if there:
        beside = f"filter add dev pod1 ingress prio 7 handle 9 bpf da pinned {which.program_pins / 'from_pod'}"
        node.exec(["tc", *beside.split()], check=True)
    else:
        for name in [one.name for one in cluster.datapaths[1].status().interfaces]:
            node.exec(["tc", "qdisc", "del", "dev", name, "clsact"], check=True)
        with Links(node.netns) as links:
            links.route("10.99.0.0/16", via="192.168.50.100")
    for _ in range(2):
        options = ["--max-flows", "20000", "--service-cidr", "10.96.0.0/12", "--service-cidr", "10.99.0.0/16"]
        done = pydatapath("--netns", node.netns, "load", "--node-name", node.netns, *options)
        assert (done.returncode, done.stderr.count("already")) == (1, 1), done.stderr
        assert sorted(path.name for path in which.pins.iterdir()) == before
    if there:
        works(cluster)
        node.exec(["tc", *["filter", "del", "dev", "pod1", "ingress", "prio", "7", "handle", "9", "bpf"]], check=True)
    cluster.load(1)
    works(cluster)


def test_unload_without_records_takes_all_away(dual_stack: Cluster):
    """Filters are ours by their name, routes by their protocol: nobody needs to remember them."""
    cluster = dual_stack
    node = cluster.lab.node(1)
    there = "".join(dump(cluster.lab, [node]).values())
    assert all(str(gateway) in there for gateway in SERVICE_GATEWAYS.values())
    which = cluster.datapaths[1].instance
    cluster.datapaths[1].close()
    which.records.write_bytes(b"garbage" * 1000)
    done = pydatapath("--netns", node.netns, "unload")
    assert (done.returncode, done.stderr) == (0, "")
    assert not which.exists
    left = "".join(dump(cluster.lab, [node]).values())
    assert "pydatapath/default" not in left
    for gateway in SERVICE_GATEWAYS.values():
        assert str(gateway) not in left
    del cluster.datapaths[1]


def test_a_pod_that_comes_back_behind_another_interface(cluster: Cluster):
    """Its address was learned at an interface that is gone: load forgets that, and the pod is found again."""
    works(cluster)
    lab = cluster.lab
    node, pod = lab.node(1), lab.pod(1, 2)
    assert served_interfaces(cluster) == {"pod1", "pod2"}
    with Links(node.netns) as links:
        links.delete("pod2")
        assert served_interfaces(cluster) == {"pod1"}, "the kernel takes an interface's entry away with it (C8)"
        links.veth("pod2", "eth0", pod.netns, peer_mac="02:00:0a:f4:01:0c", bridge="br0")
    with Links(pod.netns) as links:
        links.up("eth0")
        links.address("eth0", f"{pod.address}/24")
        links.route("default", via=node.gateway)
    done = pydatapath("--netns", node.netns, "load", "--node-name", node.netns)
    assert done.returncode == 0
    assert served_interfaces(cluster) == {"pod1", "pod2"}
    works(cluster)
    node.exec(["ip", "link", "set", "pod1", "nomaster"], check=True)
    cluster.load(1)
    assert served_interfaces(cluster) == {"pod2"}, "it lives, and is no pod's any more"


def test_a_pod_that_has_made_up_sources_until_there_was_no_room(cluster: Cluster):
    """Nobody is pushed out by it, and none is learned; a load makes room, and who is there is known at once."""
    works(cluster)
    lab = cluster.lab
    endpoints = cluster.datapaths[1]._maps["endpoints"]
    known = dict(endpoints.items())
    pod = known[ip_address(lab.pod(1, 1).address).packed]
    room = endpoints.info.max_entries - len(known)
    made_up = (ip_address("10.246.0.0") + number for number in range(room))
    endpoints.update_many({address.packed: pod for address in made_up})
    with pytest.raises(KernelError, match="the map 'endpoints' is full: it holds 16,384 entries"):
        endpoints.update(ip_address("10.244.1.77").packed, pod)
    works(cluster)
    cluster.load(1)
    assert dict(cluster.datapaths[1]._maps["endpoints"].items()) == known
    works(cluster)


def served_interfaces(cluster: Cluster) -> set[str]:
    """The pods' interfaces that the programs know of."""
    entries = dict(cluster.datapaths[1]._maps["interfaces"].items())
    assert all(key == value for key, value in entries.items())
    with cluster.lab.node(1).entered():
        return {socket.if_indextoname(int.from_bytes(key, sys.byteorder)) for key in entries}


def test_records_of_an_earlier_version_do_not_cost_the_next_hop(cluster: Cluster):
    """They name a neighbour by its bridge alone: it is the one that is needed, and unload takes it away."""
    node = cluster.lab.node(1)
    with Records(cluster.datapaths[1].instance.records) as records:
        for subject in records.host_changes(HostChange.NEIGHBOUR):
            records.forget_host_change(HostChange.NEIGHBOUR, subject)
        records.note_host_change(HostChange.NEIGHBOUR, "br0")
    cluster.load(1)
    works(cluster)
    cluster.datapaths[1].unload()
    assert "PERMANENT" not in node.exec(["ip", "neigh"], check=True).stdout


def test_a_namespace_that_is_gone_leaves_nothing_after_unload_all():
    """Its filters went with it; pins and records are removed, and nothing of the machine's own is looked at."""
    lab = Lab.up(LabSpec(f"{NAME}-g", nodes=1, pods=1))
    node = lab.node(1)
    loading.load(instance.here("gone", node.netns), Options())
    which = instance.find("gone", node.netns)
    connecting.disconnect(which)  # as the kernel does when the namespace ends
    cookie = which.cookie
    for host in lab.hosts:
        delete_namespace(host.netns)
    assert cookie in {one.cookie for one in instance.left_behind()}
    done = pydatapath("unload", "--all")
    assert done.returncode == 0, done.stderr
    assert not which.exists
