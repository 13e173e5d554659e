"""Services made by hand, from the command line: of IPv6 and of both families; draining, flushing, cutting (C8, C12)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from socket import SOCK_DGRAM, SOCK_STREAM

import pytest
from calls import KINDS, Address, ask, ask_many, dial, family_of
from scene import PORT, VIP_PORT, Cluster, cluster_up, pydatapath

from pydatapath import Datapath, Options, PydatapathError
from pydatapath.kernel import clock, flowtable
from pydatapath.kernel.layout import LAYOUTS, TIMEOUTS, Family
from pydatapath.lab import Pod
from pydatapath.views import Flow

SOON = 0.9  # seconds: a client that learns nothing sends again, and waits
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PORTS = ("--port", f"tcp={VIP_PORT}/tcp", "--port", f"udp={VIP_PORT}/udp", "--target-port", str(PORT))
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with both families, the first one loaded; all pods but the first of each node serve."""
    networks = ("10.244.0.0/16", "fd00:10:244::/48")
    with cluster_up(f"by-hand-{os.getpid()}", dual_stack=True, cluster_cidr=networks) as made:
        made.serve(*(pod for pod in made.lab.pods if pod.number > 1))
        yield made


@pytest.fixture(autouse=True)
def no_flows(cluster: Cluster) -> None:
    """A client's port may be one that it had before."""
    cluster.datapaths[1].flush_flows()


def run(cluster: Cluster, *arguments: str) -> str:
    """A command on the loaded node; it must succeed."""
    done = pydatapath("--netns", cluster.lab.node(1).netns, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(cluster: Cluster, *arguments: str) -> str:
    """What a command says that fails."""
    done = pydatapath("--netns", cluster.lab.node(1).netns, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr


def address_of(pod: Pod, family: int) -> str:
    return pod.address6 if family == 6 else pod.address


def at(pod: Pod, family: int) -> str:
    """A backend as it is typed."""
    return f"[{pod.address6}]:{PORT}" if family == 6 else f"{pod.address}:{PORT}"


def service(cluster: Cluster, family: int, *pods: Pod) -> tuple[str, Address]:
    """A service of one family, made by hand: its name, and where it is called over TCP and UDP."""
    number = next(numbers)
    name, vip = f"hand-{number}", f"fd00:10:96::5:{number}" if family == 6 else f"10.96.5.{number}"
    backends = [word for pod in pods for word in ("--backend", at(pod, family))]
    run(cluster, "service", "add", name, *PORTS, "--cluster-ip", vip, *backends)
    return name, (vip, VIP_PORT)


def local_and_remote(cluster: Cluster) -> tuple[Pod, Pod]:
    """A backend on the client's node, one on the other."""
    return cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)


@contextlib.contextmanager
def connections(
    cluster: Cluster, vip: Address, kind: str, count: int = 20
) -> Iterator[list[tuple[socket.socket, str]]]:
    """Connections from a pod, each with the name of the backend that answers it; of two backends each has some."""
    client = cluster.lab.pod(1, 1)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(dial(client, vip, KINDS[kind])) for _ in range(count)]
        yield [(one, ask(one).name) for one in made]


def entries(datapath: Datapath) -> int:
    """What stands in the flow tables, of both families."""
    maps = datapath._maps
    return sum(len(maps[table + suffix]) for table in flowtable.TABLES for suffix in ("", "6"))


def flow_of(datapath: Datapath, one: socket.socket) -> Flow:
    """The flow of a client's socket."""
    source = one.getsockname()[:2]
    (found,) = [flow for flow in datapath.flows() if (flow.original.src, flow.original.sport) == source]
    return found


def grow_old(datapath: Datapath, old: Flow) -> None:
    """Lets a UDP flow have been silent for so long that it is over."""
    ends = next(one.ends for one in flowtable.read_flows(datapath._maps, TIMEOUTS) if one.flow.original == old.original)
    family = Family(old.family)
    flows, layout = datapath._maps["flows" + family.suffix], LAYOUTS[family].flow.struct
    for end in ends:
        to, last_seen, *rest = layout.unpack(flows.lookup(end) or b"")
        flows.update(end, layout.pack(to, last_seen - 1000 * clock.HZ, *rest))
    assert old.original not in [flow.original for flow in datapath.flows()]


# Making services


@FAMILIES
def test_a_service_by_hand_is_called(cluster: Cluster, family: int):
    """From a pod and from the node, over TCP and UDP; `backend list` shows its backends."""
    pods = local_and_remote(cluster)
    name, vip = service(cluster, family, *pods)
    for caller in (cluster.lab.pod(1, 1), cluster.lab.node(1)):
        for kind in KINDS.values():
            found = ask_many(caller, kind, vip, 60)
            assert (found.failures, set(found.names)) == ([], {pod.name for pod in pods})
    listed = json.loads(run(cluster, "backend", "list", name, "-o", "json"))
    # Where a backend is is known of this node's own pods only
    assert {(one["address"], one["port"], one["protocol"], one["node"]) for one in listed} == {
        (address_of(pod, family), PORT, protocol, pod.node.netns if pod.node.number == 1 else None)
        for pod in pods
        for protocol in KINDS
    }
    assert f"{at(pods[0], family)}/tcp" in run(cluster, "backend", "list", name)


@pytest.mark.parametrize("how", [["service", "delete"], ["delete", "service"]], ids=" ".join)
def test_a_service_that_is_deleted_takes_its_backends_by_hand_along(cluster: Cluster, how: list[str]):
    """Another one of its name begins without them; slices of manifests stay, as kubectl's would, with `delete`."""
    pods = local_and_remote(cluster)
    name, (vip, _) = service(cluster, 4, *pods)
    said = run(cluster, *how, name).splitlines()
    assert [line.split("/")[0] for line in said] == ["endpointslice", "service"], said
    run(cluster, "service", "add", name, *PORTS, "--cluster-ip", vip)
    assert json.loads(run(cluster, "backend", "list", name, "-o", "json")) == []
    run(cluster, "service", "delete", name)


def test_a_script_that_is_wrong_is_told_so(cluster: Cluster):
    """By the errors of the package, which name what is wrong; and nothing is changed."""
    name, _ = service(cluster, 4, cluster.lab.pod(1, 2))
    datapath = cluster.datapaths[1]
    before = datapath.manifests()
    for call, said in (
        (lambda: datapath.apply([before[0]]), "a Service, EndpointSlice or Node is expected, not {"),
        (lambda: datapath.add_backend(name, "x", PORT), "'x' is not an IPv4 or IPv6 address"),
        (lambda: Datapath.load(Options(max_flows=3), netns=cluster.lab.node(1).netns), "'max_flows' must be from"),
        (lambda: Datapath.load(Options(bridge="br0"), netns=cluster.lab.node(1).netns), "'bridge' must be a list"),
    ):
        with pytest.raises(PydatapathError, match=re.escape(said)):
            call()
    assert datapath.manifests() == before
    assert datapath.status().drift == ()
    run(cluster, "service", "delete", name)


@FAMILIES
def test_backends_come_and_go_by_hand(cluster: Cluster, family: int):
    """What is added is called, what is removed is not."""
    first, second = local_and_remote(cluster)
    name, vip = service(cluster, family, first)
    for command, serving in ((("add", second), {first, second}), (("remove", first), {second})):
        run(cluster, "backend", command[0], name, at(command[1], family))
        found = ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, vip, 60)
        assert (found.failures, set(found.names)) == ([], {pod.name for pod in serving})
    assert f"has no backend {at(first, family)}" in refused(cluster, "backend", "remove", name, at(first, family))


@pytest.mark.parametrize("asked", ["addresses", "families"])
def test_a_dual_stack_service_by_hand_is_called_in_both_families(cluster: Cluster, asked: str):
    """With addresses of its own choice or free ones; each family has its own slice, as a manifest has it."""
    pods, name = local_and_remote(cluster), f"dual-{asked}"
    given = ("--cluster-ip", "10.96.6.1", "--cluster-ip", "FD00:10:96:0::6:1")
    backends = [word for pod in pods for family in (4, 6) for word in ("--backend", at(pod, family))]
    words = given if asked == "addresses" else ("--ip-family", "dual")
    run(cluster, "service", "add", name, *PORTS, *words, *backends)
    shown = json.loads(run(cluster, "service", "show", name, "-o", "json"))
    four, six = shown["cluster_ips"]
    if asked == "addresses":
        assert (four, six) == ("10.96.6.1", "fd00:10:96::6:1")
    for vip in (four, six):
        for kind in KINDS.values():
            found = ask_many(cluster.lab.pod(1, 1), kind, (vip, VIP_PORT), 60)
            assert (found.failures, set(found.names)) == ([], {pod.name for pod in pods})
    slices = {one.name for one in cluster.datapaths[1].objects() if one.service == name}
    assert slices == {f"{name}-by-hand-8080-8080", f"{name}-by-hand-8080-8080-ipv6"}
    run(cluster, "service", "delete", name)
    assert not {one.name for one in cluster.datapaths[1].objects() if name in (one.name, one.service)}


def test_a_service_has_one_family_unless_two_are_asked_for(cluster: Cluster):
    """IPv4, as Kubernetes has it; a backend of the other would never be called."""
    run(cluster, "service", "add", "single", "--port", "3868/sctp")
    (shown,) = [one for one in json.loads(run(cluster, "service", "list", "-o", "json")) if one["name"] == "single"]
    assert [":" in address for address in shown["cluster_ips"]] == [False]
    assert [(one["protocol"], one["port"]) for one in shown["ports"]] == [("SCTP", 3868)]
    said = refused(cluster, "backend", "add", "single", at(cluster.lab.pod(1, 2), 6))
    assert said.startswith("Error: Service default/single has no cluster IP of IPv6: ")


def test_where_IPv6_is_not_loaded_its_services_are_refused():
    """Nobody could call them; nothing is made."""
    with cluster_up(f"by-hand-4-{os.getpid()}", nodes=1, pods=1) as four:
        said = refused(four, "service", "add", "six", "--port", "80", "--cluster-ip", "fd00:10:96::7")
        assert said.startswith(
            "Error: Service default/six has an IPv6 address only, and IPv6 is not loaded here\nHint: "
        )
        said = refused(four, "service", "add", "six", "--port", "80", "--ip-family", "dual")
        assert said.startswith("Error: no service network is of IPv6\nHint: ")
        assert four.datapaths[1].objects() == []


# Draining


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_C12_a_backend_drains_by_hand(cluster: Cluster, family: int, kind: str):
    """Its open connections go on, new ones go to the others; added again it gets its share."""
    drained, other = local_and_remote(cluster)
    name, vip = service(cluster, family, drained, other)
    client = cluster.lab.pod(1, 1)
    with connections(cluster, vip, kind) as before:
        run(cluster, "backend", "drain", name, at(drained, family))
        assert {one.name for one in ask_many(client, KINDS[kind], vip, 40).answers} == {other.name}
        assert [ask(one).name for one, _ in before] == [name for _, name in before]
        assert {name for _, name in before} == {drained.name, other.name}
        states = {
            one["address"]: one["state"] for one in json.loads(run(cluster, "backend", "list", name, "-o", "json"))
        }
        assert states == {address_of(drained, family): "draining", address_of(other, family): "active"}
        run(cluster, "backend", "add", name, at(drained, family))
        assert set(ask_many(client, KINDS[kind], vip, 60).names) == {drained.name, other.name}


# Flushing


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_an_open_connection_goes_on_after_its_flow_is_flushed(cluster: Cluster, family: int, kind: str):
    """Nothing of it is left in any table; the client's next packet begins a flow to the same backend."""
    name, vip = service(cluster, family, *local_and_remote(cluster))
    datapath = cluster.datapaths[1]
    with connections(cluster, vip, kind, count=8) as before:
        for one, _ in before:
            ask(one)
        assert entries(datapath) >= 2 * len(before)
        assert run(cluster, "flow", "flush", "--service", name) == f"{len(before)} flows ended\n"
        assert (datapath.flows(), entries(datapath)) == ([], 0)
        for one, backend in before:
            assert ask(one).name == backend
            assert flow_of(datapath, one).packets[0] <= 3


@FAMILIES
def test_a_flush_ends_what_matches_and_nothing_else(cluster: Cluster, family: int):
    """By service, caller, backend and state."""
    (_, vip), (other, other_vip) = (service(cluster, family, pod) for pod in local_and_remote(cluster))
    backend, caller = (address_of(cluster.lab.pod(*where), family) for where in ((1, 2), (1, 1)))
    datapath = cluster.datapaths[1]
    with dial(cluster.lab.pod(1, 1), vip) as one, dial(cluster.lab.pod(1, 1), other_vip, SOCK_DGRAM) as two:
        ask(one)
        ask(two)
        for words in (
            ("--service", other, "--state", "new"),
            ("--src", backend),
            ("--dst", backend, "--service", other),
            ("--src", caller, "--state", "closing"),
        ):
            assert run(cluster, "flow", "flush", *words) == "0 flows ended\n"
        kept = flow_of(datapath, two)
        assert run(cluster, "flow", "flush", "--src", caller, "--dst", backend) == "1 flow ended\n"
        assert [(flow.original, flow.service) for flow in datapath.flows()] == [(kept.original, f"default/{other}:udp")]
        assert entries(datapath) == 2
    said = refused(cluster, "flow", "flush", "--service", "no-such-service")
    assert said.startswith("Error: Service default/no-such-service does not exist\n")


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_flows_without_an_answer_are_flushed(cluster: Cluster, family: int, kind: str):
    """They stand in the other table: TCP's as a claim alone, UDP's in both directions."""
    name, vip = service(cluster, family)
    nobody = "[fd00:10:244:2::77]:8080" if family == 6 else "10.244.2.77:8080"
    run(cluster, "backend", "add", name, nobody)
    with cluster.lab.pod(1, 1).socket(family_of(vip), KINDS[kind]) as calling:
        calling.setblocking(False)
        calling.connect_ex(vip)
        if kind == "UDP":
            calling.send(b"hello")
        assert flow_of(cluster.datapaths[1], calling).state == "new"
    assert run(cluster, "flow", "flush", "--service", name, "--state", "established") == "0 flows ended\n"
    assert run(cluster, "flow", "flush", "--service", name, "--state", "new") == "1 flow ended\n"
    assert entries(cluster.datapaths[1]) == 0


@FAMILIES
def test_N5_what_is_left_of_a_flow_is_flushed(cluster: Cluster, family: int):
    """Whichever half the LRU has dropped."""
    name, vip = service(cluster, family, *local_and_remote(cluster))
    datapath = cluster.datapaths[1]
    flows = datapath._maps["flows6" if family == 6 else "flows"]
    for side in (0, 1):
        with dial(cluster.lab.pod(1, 1), vip, SOCK_DGRAM) as one:
            ask(one)
            (tracked,) = flowtable.read_flows(datapath._maps, TIMEOUTS)
            flows.delete(tracked.ends[side])
            assert [flow.original for flow in datapath.flows()] == [tracked.flow.original]
            assert run(cluster, "flow", "flush", "--service", name) == "1 flow ended\n"
            assert entries(datapath) == 0


@FAMILIES
@pytest.mark.parametrize("side", [0, 1], ids=["the client's", "the reply's"])
def test_N5_what_a_program_makes_anew_meanwhile_is_flushed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, family: int, side: int
):
    """It had found the other half before that was deleted; the test writes what such a program does."""
    _, vip = service(cluster, family, *local_and_remote(cluster))
    datapath = cluster.datapaths[1]
    flows = datapath._maps["flows6" if family == 6 else "flows"]
    with dial(cluster.lab.pod(1, 1), vip, SOCK_DGRAM) as one:
        ask(one)
        (tracked,) = flowtable.read_flows(datapath._maps, TIMEOUTS)
        value = flows.lookup(tracked.ends[side])
        assert value is not None
        monkeypatch.setattr(flowtable, "wait_for_programs", lambda: flows.update(tracked.ends[side], value))
        assert datapath.flush_flows() == 1
        assert entries(datapath) == 0


def test_without_a_filter_all_flows_of_both_families_are_flushed(cluster: Cluster):
    """As `conntrack -F`: also the plain ones, and those that are over."""
    datapath, client = cluster.datapaths[1], cluster.lab.pod(1, 1)
    with contextlib.ExitStack() as stack:
        for family in (4, 6):
            _, vip = service(cluster, family, *local_and_remote(cluster))
            for kind in KINDS.values():
                for target in (vip, (address_of(cluster.lab.pod(1, 2), family), PORT)):
                    ask(stack.enter_context(dial(client, target, kind)))
        assert {(flow.family, flow.nat) for flow in datapath.flows()} == {
            (4, "dnat"),
            (4, "none"),
            (6, "dnat"),
            (6, "none"),
        }
        grow_old(datapath, next(flow for flow in datapath.flows() if flow.protocol == "UDP"))
        assert run(cluster, "flow", "flush") == "7 flows ended\n"
        assert entries(datapath) == 0


# Cutting


@FAMILIES
def test_C8_reset_cuts_the_connections_to_the_removed_backend(
    cluster: Cluster, figure: Callable[[str], None], family: int
):
    """At the client's next packet; those to the other backend go on, and nothing is left of the flows."""
    removed, other = local_and_remote(cluster)
    name, vip = service(cluster, family, removed, other)
    with connections(cluster, vip, "TCP") as before:
        cut = [one for one, backend in before if backend == removed.name]
        assert 0 < len(cut) < len(before)
        said = run(cluster, "backend", "remove", "--reset", name, at(removed, family)).splitlines()
        assert said[-1] == f"{len(cut)} flow{'s' if len(cut) > 1 else ''} ended"
        assert {flow.reply.src for flow in cluster.datapaths[1].flows()} == {address_of(other, family)}
        assert entries(cluster.datapaths[1]) == 2 * (len(before) - len(cut))
        for one, backend in before:
            start = time.monotonic()
            if one in cut:
                with pytest.raises(ConnectionResetError):
                    ask(one)
            else:
                assert ask(one).name == backend
            assert time.monotonic() - start < SOON
        figure(f"IPv{family}, remove --reset: {len(cut)} connections cut, {len(before) - len(cut)} go on")


@FAMILIES
def test_C8_reset_cuts_where_no_other_backend_is_left(cluster: Cluster, family: int):
    """The datapath itself answers."""
    (removed, _) = local_and_remote(cluster)
    name, vip = service(cluster, family, removed)
    with dial(cluster.lab.pod(1, 1), vip) as one:
        ask(one)
        run(cluster, "backend", "remove", "--reset", name, at(removed, family))
        start = time.monotonic()
        with pytest.raises(ConnectionResetError):
            ask(one)
        assert time.monotonic() - start < SOON


@FAMILIES
def test_C8_reset_cuts_a_backend_that_drains_and_leaves_other_services_alone(cluster: Cluster, family: int):
    """Drained first and cut when the time is over; what it serves elsewhere, or plainly, goes on."""
    removed, other = local_and_remote(cluster)
    (name, vip), (_, kept_vip) = service(cluster, family, removed), service(cluster, family, removed)
    run(cluster, "backend", "add", name, at(other, family), "--weight", "0")
    client = cluster.lab.pod(1, 1)
    with (
        dial(client, vip) as one,
        dial(client, kept_vip) as kept,
        dial(client, (address_of(removed, family), PORT)) as direct,
    ):
        assert ask(one).name == ask(kept).name == ask(direct).name == removed.name
        run(cluster, "backend", "drain", name, at(removed, family))
        assert ask(one).name == removed.name
        said = run(cluster, "backend", "remove", "--reset", name, at(removed, family))
        assert said.endswith("\n1 flow ended\n")
        with pytest.raises(ConnectionResetError):
            ask(one)
        assert ask(kept).name == ask(direct).name == removed.name


@FAMILIES
def test_C8_reset_cuts_one_backend_only(cluster: Cluster, family: int):
    """One that was removed before, without --reset, keeps its connections still."""
    removed, other = local_and_remote(cluster)
    name, vip = service(cluster, family, removed, other)
    with connections(cluster, vip, "TCP") as before:
        run(cluster, "backend", "remove", name, at(other, family))
        run(cluster, "backend", "remove", "--reset", name, at(removed, family))
        kept = [(one, backend) for one, backend in before if backend == other.name]
        assert 0 < len(kept) < len(before)
        assert [ask(one).name for one, _ in kept] == [backend for _, backend in kept]


@FAMILIES
def test_C9_reset_moves_datagrams_as_removal_does(cluster: Cluster, family: int):
    """The next one is answered by another backend."""
    removed, other = local_and_remote(cluster)
    name, vip = service(cluster, family, removed, other)
    with connections(cluster, vip, "UDP") as before:
        run(cluster, "backend", "remove", "--reset", name, at(removed, family))
        assert {ask(one).name for one, _ in before} == {other.name}


@FAMILIES
def test_C8_the_removed_backend_learns_of_it_when_it_next_sends(cluster: Cluster, family: int):
    """What it sends comes to the client from an address that that never called, and is answered by a reset."""
    backend, client = cluster.lab.pod(1, 2), cluster.lab.pod(1, 1)
    number = next(numbers)
    vip = f"fd00:10:96::5:{number}" if family == 6 else f"10.96.5.{number}"
    place = (address_of(backend, family), 9000 + number)
    typed = f"[{place[0]}]:{place[1]}" if family == 6 else f"{place[0]}:{place[1]}"
    run(cluster, "service", "add", f"hand-{number}", "--port", "80", "--cluster-ip", vip, "--backend", typed)
    with backend.socket(family_of(place), SOCK_STREAM) as listening:
        listening.bind(place)
        listening.listen()
        with dial(client, (vip, 80)) as one, listening.accept()[0] as served:
            served.settimeout(SOON)
            run(cluster, "backend", "remove", "--reset", f"hand-{number}", typed)
            served.send(b"hello")
            with pytest.raises(ConnectionResetError):
                served.recv(1)
            one.settimeout(SOON)
            one.send(b"hello")
            with pytest.raises(ConnectionResetError):
                one.recv(1)
