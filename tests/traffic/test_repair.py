"""What is changed by hand, or gone: `status` names it, `repair` mends it, and what went on goes on."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import KINDS, ask_many
from rows import tell, tell_more, tell_worst
from scene import VIP_PORT, Cluster, cluster_up, pydatapath

from pydatapath import Datapath
from pydatapath.kernel import libbpf, packing, tables
from pydatapath.kernel.attach import Attacher, Place
from pydatapath.kernel.layout import Hook
from pydatapath.lab import Host

VIP = ("10.96.0.81", VIP_PORT)
LOAD = "new calls by TCP and UDP, from a pod and the node, after each"
U32 = struct.Struct("=I")
# A program that leaves all to the next one: TC_ACT_UNSPEC
PASS = bytes.fromhex("b7000000ffffffff 9500000000000000")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service that works, and a Node object."""
    with cluster_up(f"rp-{os.getpid()}", nodes=1, pods=3) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(1, 3))
        made.apply("web", VIP[0], [made.lab.pod(1, 2), made.lab.pod(1, 3)], node_port=30081, type="NodePort")
        yield made


def node_of(cluster: Cluster) -> Host:
    return cluster.lab.node(1)


def tc(cluster: Cluster, *words: str) -> None:
    node_of(cluster).exec(["tc", *words], check=True)


def works(cluster: Cluster) -> None:
    """New connections from a pod and from the node are answered, by both backends."""
    for host in (cluster.lab.pod(1, 1), cluster.lab.node(1)):
        for kind in KINDS.values():
            assert ask_many(host, kind, VIP, 8).failures == []


def drift(cluster: Cluster) -> list[str]:
    """What `status` finds."""
    return [one.removesuffix(": `pydatapath repair` mends it") for one in cluster.datapaths[1].status().drift]


def programs(cluster: Cluster) -> dict[str, int]:
    """The ids of the pinned programs."""
    found = {}
    for path in cluster.datapaths[1].instance.program_pins.iterdir():
        with libbpf.opened(libbpf.open_pin(str(path))) as descriptor:
            found[path.name] = libbpf.program_info(descriptor).id if path.name != "walks" else 0
    return found


def check(cluster: Cluster, damage: Callable[[Cluster], object], *parts: str) -> list[str]:
    """After the damage `status` says all these parts, after a repair nothing, and the service works."""
    assert drift(cluster) == []
    try:
        return mended_of(cluster, damage, parts)
    except BaseException:
        pydatapath("--netns", node_of(cluster).netns, "load", "--node-name", node_of(cluster).netns)
        raise


def mended_of(cluster: Cluster, damage: Callable[[Cluster], object], parts: tuple[str, ...]) -> list[str]:
    damage(cluster)
    tell_more(repeats=1)
    found = drift(cluster)
    for part in parts:
        assert part in "\n".join(found)
    begun = time.monotonic()
    mended = cluster.datapaths[1].repair()
    tell_worst(recovery_s=round(time.monotonic() - begun, 2))
    assert set(found) <= set(mended)
    assert drift(cluster) == []
    works(cluster)
    assert cluster.datapaths[1].repair() == []
    return mended


def command(cluster: Cluster, *words: str) -> tuple[int, str, str]:
    done = pydatapath("--netns", node_of(cluster).netns, *words)
    return done.returncode, done.stdout, done.stderr


def test_where_nothing_has_drifted_nothing_is_done(cluster: Cluster):
    """It says so, and is done."""
    works(cluster)
    assert command(cluster, "repair") == (0, "nothing to do: all is as it should be\n", "")
    assert json.loads(command(cluster, "status", "-o", "json")[1])["drift"] == []


def test_F11_status_names_what_repair_mends(cluster: Cluster):
    """By hand a filter went; each says so in one line."""
    tc(cluster, *["filter", "del", "dev", "pod1", "ingress", "prio", "7"])
    lost = "interface pod1 has no from_pod filter"
    code, out, err = command(cluster, "status")
    assert (code, err) == (0, "")
    assert out.endswith(f"\n\ndrift: {lost}: `pydatapath repair` mends it\n")
    begun = time.monotonic()
    assert command(cluster, "repair") == (0, f"mended: {lost}\n", "")
    tell(repeats=1, recovery_s=round(time.monotonic() - begun, 2))
    works(cluster)


# Filters, pins, the host


def hang_twice(cluster: Cluster) -> None:
    path = cluster.datapaths[1].instance.program_pins / "from_pod"
    tc(cluster, *f"filter add dev pod1 ingress prio 9 bpf da pinned {path}".split())


def hang_another(cluster: Cluster) -> None:
    """Under our name, at our place: the program of another hook."""
    which = cluster.datapaths[1].instance
    with (
        node_of(cluster).entered(),
        Attacher() as attacher,
        libbpf.opened(libbpf.open_pin(str(which.program_pins / "to_uplink"))) as program,
    ):
        place = Place(socket.if_nametoindex("pod1"), "pod1", Hook.FROM_POD, program)
        assert attacher.exchange([place], which.name) == {}


def test_of_many_places_only_those_fail_that_cannot_be_had(cluster: Cluster):
    """Each by its own error, more than the kernel's answers would have room for; all the others have the program."""
    which = cluster.datapaths[1].instance
    with (
        node_of(cluster).entered(),
        Attacher() as attacher,
        libbpf.opened(libbpf.open_pin(str(which.program_pins / "from_pod"))) as program,
    ):
        index = socket.if_nametoindex("pod1")
        before = attacher.ours(index, Hook.FROM_POD, which.name)
        there = [Place(index, "pod1", Hook.FROM_POD, program)] * 1000
        gone = Place(54321, "gone", Hook.FROM_POD, program)
        failed = attacher.exchange([gone, *there, *[gone] * 400], which.name)
        assert {place: (str(error), error.errno) for place, error in failed.items()} == {
            gone: ("cannot attach from_pod to gone ingress: No such device", errno.ENODEV)
        }
        assert attacher.ours(index, Hook.FROM_POD, which.name) == before


def hang_elsewhere(cluster: Cluster) -> None:
    """At an interface where it does not belong."""
    node_of(cluster).exec(["ip", "link", "add", "other", "type", "veth", "peer", "name", "other2"], check=True)
    path = cluster.datapaths[1].instance.program_pins / "from_pod"
    tc(cluster, *["qdisc", "add", "dev", "other", "clsact"])
    tc(cluster, *f"filter add dev other ingress prio 7 handle 1 bpf da pinned {path}".split())


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (
            lambda c: tc(c, *["filter", "del", "dev", "pod1", "ingress", "prio", "7"]),
            "interface pod1 has no from_pod filter",
        ),
        (lambda c: tc(c, *["qdisc", "del", "dev", "eth0", "clsact"]), "interface eth0 has no to_uplink filter"),
        (hang_twice, "interface pod1 has a filter of ours a second time: "),
        (hang_another, "the from_pod filter of interface pod1 runs another program, "),
        (hang_elsewhere, "interface other has a filter of ours a second time: "),
        (
            lambda c: node_of(c).exec(["ip", "route", "del", "10.96.0.0/12"], check=True),
            "the route to 10.96.0.0/12 over br0 is gone",
        ),
        (
            lambda c: node_of(c).exec(["ip", "neigh", "del", "169.254.218.122", "dev", "br0"], check=True),
            "the neighbour entry of 169.254.218.122 at br0 is gone",
        ),
        (
            lambda c: node_of(c).exec(["sysctl", "-qw", "net.ipv4.conf.lo.accept_local=0"], check=True),
            "the sysctl net.ipv4.conf.lo.accept_local is no longer 1",
        ),
    ],
    ids=["filter", "clsact", "twice", "another", "elsewhere", "route", "neighbour", "sysctl"],
)
def test_F11_what_hangs_on_the_host_is_mended(cluster: Cluster, damage: Callable[[Cluster], object], part: str):
    """By hand somebody took it away, or changed it."""
    before = programs(cluster)
    check(cluster, damage, part)
    assert programs(cluster) == before, "nothing is compiled"
    node_of(cluster).exec(["ip", "link", "del", "other"])


@pytest.mark.parametrize("name", ["services", "flows", "slots", "counters", "interfaces"])
def test_F11_a_map_whose_pin_is_gone_is_pinned_again(cluster: Cluster, name: str):
    """It is the map that the programs use, with all that is in it."""
    pin = cluster.datapaths[1].instance.map_pins / name
    with libbpf.opened(libbpf.open_pin(str(pin))) as descriptor:
        before = libbpf.map_info(descriptor).id
    ids = programs(cluster)
    check(cluster, lambda _: pin.unlink(), f"the map {name} is no longer pinned")
    with libbpf.opened(libbpf.open_pin(str(pin))) as descriptor:
        assert libbpf.map_info(descriptor).id == before
    assert programs(cluster) == ids, "nothing is compiled"


def test_F11_a_pin_of_another_map_is_exchanged(cluster: Cluster):
    """The programs use one, status and apply would use the other; and who has that one open finds theirs again."""
    pin = cluster.datapaths[1].instance.map_pins / "targets"
    before = cluster.datapaths[1]._maps["targets"].info.id

    def exchange(_: Cluster) -> None:
        with libbpf.opened(libbpf.open_pin(str(pin))) as descriptor:
            info = libbpf.map_info(descriptor)
        pin.unlink()
        made = libbpf.create_map(info.type, "other", info.key_size, info.value_size, info.max_entries, info.flags)
        with libbpf.opened(made):
            libbpf.pin(made, str(pin))
        assert other._maps["targets"].info.id != before

    with Datapath.open(netns=node_of(cluster).netns) as other:
        check(cluster, exchange, "the map targets is pinned as another one than the programs use")
        assert other._maps["targets"].info.id == before


@pytest.mark.parametrize("name", ["from_pod", "leave"])
def test_F11_a_program_whose_pin_is_gone_is_pinned_again(cluster: Cluster, name: str):
    """It is found at an interface, or by the array of tail calls."""
    before = programs(cluster)
    pins = cluster.datapaths[1].instance.program_pins
    check(cluster, lambda _: (pins / name).unlink(), f"the program {name} is no longer pinned")
    assert programs(cluster) == before, "nothing is compiled"


def test_F11_tail_calls_come_back_whose_pin_is_gone(cluster: Cluster):
    """The kernel empties their array with its last pin: there is another one, and the same maps."""
    pins = cluster.datapaths[1].instance.program_pins
    check(cluster, lambda _: (pins / "walks").unlink(), "the program walks is no longer pinned")


def test_F11_a_tail_call_is_mended(cluster: Cluster):
    """New flows go by it."""

    def cut(_: Cluster) -> None:
        with libbpf.opened(libbpf.open_pin(str(cluster.datapaths[1].instance.program_pins / "walks"))) as walks:
            assert libbpf.remove(walks, U32.pack(0))

    check(cluster, cut, "the array of tail calls does not lead to walk")


def test_F11_where_nothing_is_pinned_it_is_loaded_anew(cluster: Cluster):
    """All pins are gone, and the filters, too: what load does, with the options that it had."""
    which = cluster.datapaths[1].instance
    options = cluster.datapaths[1].options

    def wipe(_: Cluster) -> None:
        for path in sorted(which.pins.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name in ("pod1", "pod2", "pod3", "br0", "eth0"):
            tc(cluster, "qdisc", "del", "dev", name, "clsact")

    check(cluster, wipe, "the program walk is no longer pinned", "the map services is no longer pinned")
    assert cluster.datapaths[1].options == options


# Entries of maps


def first(cluster: Cluster, name: str) -> tuple[bytes, bytes]:
    """An entry of a map."""
    return next(iter(cluster.datapaths[1]._maps[name].items()))


def service_entry(cluster: Cluster) -> tuple[bytes, bytes]:
    at = tables.Address(*VIP, "TCP")
    key = packing.pack_address(at)
    value = cluster.datapaths[1]._maps["services"].lookup(key)
    assert value is not None
    return key, value


def put(cluster: Cluster, name: str, key: bytes, value: bytes) -> None:
    cluster.datapaths[1]._maps[name].update(key, value)


def delete(cluster: Cluster, name: str, key: bytes) -> None:
    assert cluster.datapaths[1]._maps[name].delete(key)


def flip_slot(cluster: Cluster, to: int) -> None:
    called = packing.unpack_called(service_entry(cluster)[1])
    put(cluster, "slots", U32.pack(called.inside.first_slot), U32.pack(to))


def end_backend(cluster: Cluster, state: int) -> None:
    """A backend's entry in another state."""
    called = packing.unpack_called(service_entry(cluster)[1])
    maps = cluster.datapaths[1]._maps
    number = maps["slots"].lookup(U32.pack(called.inside.first_slot)) or b""
    entry = bytearray(maps["backends"].lookup(number) or b"")
    entry[packing.STATE_OFFSET] = state
    put(cluster, "backends", number, bytes(entry))


WRONG = f"default/web:tcp is not in the maps as it is recorded, at {VIP[0]}:{VIP[1]}/tcp"


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda c: delete(c, "services", service_entry(c)[0]), WRONG),
        (lambda c: put(c, "services", service_entry(c)[0], bytes(32)), WRONG),
        (
            lambda c: put(c, "services", service_entry(c)[0], struct.pack("=8I", 262140, 9, 1 << 31, 5, 1, 0, 99, 0)),
            WRONG,
        ),
        (
            lambda c: put(c, "services", packing.pack_address(tables.Address("10.96.9.9", 1, "UDP")), bytes(32)),
            "the maps have a service at 10.96.9.9:1/udp, where none is",
        ),
        (lambda c: put(c, "services", bytes([10, 96, 0, 81, 0, 80, 99, 0]), bytes(32)), "that no version writes"),
        (lambda c: flip_slot(c, 0), WRONG),
        (lambda c: flip_slot(c, 1 << 30), WRONG),
        (lambda c: end_backend(c, 3), WRONG),
        (lambda c: end_backend(c, 77), WRONG),
        (lambda c: end_backend(c, 2), "the backend 10.244.1.12:8080/tcp of default/web:tcp is not in the maps"),
        (lambda c: delete(c, "targets", first(c, "targets")[0]), "the map targets is wrong about 10.244.1.1"),
        (lambda c: put(c, "targets", first(c, "targets")[0], U32.pack(7)), ": 7 backends listen there to it"),
        (lambda c: put(c, "targets", bytes([10, 0, 0, 1, 0, 80, 6, 0]), U32.pack(1)), "wrong about 10.0.0.1:80/tcp"),
        (lambda c: delete(c, "vips", first(c, "vips")[0]), f"the map vips is wrong about {VIP[0]}"),
        (lambda c: put(c, "vips", first(c, "vips")[0], U32.pack(9)), f"the map vips is wrong about {VIP[0]}"),
        (lambda c: put(c, "networks", U32.pack(8) + bytes([11, 0, 0, 0]), U32.pack(9)), "wrong about 11.0.0.0/8"),
        (lambda c: put(c, "ranges", U32.pack(40) + U32.pack(1) + bytes([9, 0, 0, 0]), U32.pack(1)), "about 9.0.0.0/8"),
        (
            lambda c: put(c, "ranges", U32.pack(3) + bytes(8), U32.pack(1)),
            "the map ranges has an entry that no version",
        ),
        (lambda c: delete(c, "interfaces", first(c, "interfaces")[0]), "the map interfaces lacks pod interface pod"),
        (lambda c: delete(c, "endpoints", bytes([10, 244, 1, 1])), "the map endpoints lacks address 10.244.1.1"),
    ],
    ids=[
        "no-service",
        "empty-service",
        "wild-service",
        "one-more-service",
        "stray-service",
        "slot",
        "wild-slot",
        "backend-gone",
        "backend-wild",
        "backend-drains",
        "no-target",
        "target",
        "one-more-target",
        "no-vip",
        "vip",
        "network",
        "range",
        "stray-range",
        "interface",
        "endpoint",
    ],
)
def test_F11_an_entry_that_was_changed_by_hand_is_mended(
    cluster: Cluster, damage: Callable[[Cluster], object], part: str
):
    """Deleted, changed or added, also to what no program reads."""
    check(cluster, damage, part)


def test_F11_a_second_look_needs_no_services_to_be_many(cluster: Cluster):
    """Where objects are many, entries are compared when asked to, and status says that they were not."""
    from pydatapath import reporting

    few, reporting.FEW = reporting.FEW, 1
    try:
        flip_slot(cluster, 0)
        shown = cluster.datapaths[1].status()
        assert shown.drift == ()
        assert shown.unchecked == "2 objects were not compared with the maps: `status --check` does"
        shown = cluster.datapaths[1].status(check=True)
        assert (WRONG in shown.drift[0], shown.unchecked) == (True, "")
        begun = time.monotonic()
        assert cluster.datapaths[1].repair()
        tell(repeats=1, recovery_s=round(time.monotonic() - begun, 2))
        assert cluster.datapaths[1].status(check=True).drift == ()
    finally:
        reporting.FEW = few


def test_while_somebody_changes_it_nothing_is_called_drift(cluster: Cluster):
    """What is half-way is not as it was, nor as it will be."""
    with cluster.datapaths[1].instance.locked():
        shown = cluster.datapaths[1].status()
    assert shown.drift == ()
    assert shown.unchecked.startswith("not all was looked at: instance 'default' has been busy")


# What comes and goes


def test_F13_interfaces_come_and_go(cluster: Cluster, tmp_path: Path):
    """A pod's veth made anew, a bridge made anew, an uplink of another name and with another address."""
    lab = cluster.lab
    node, pod = lab.node(1), lab.pod(1, 2)

    def new_veth(_: Cluster) -> None:
        script = f"""ip link del pod2
        ip link add pod2 type veth peer name eth0 netns {pod.netns}
        ip link set pod2 master br0 up
        ip -n {pod.netns} link set eth0 address 02:00:0a:f4:01:0c up
        ip -n {pod.netns} address add {pod.address}/24 dev eth0
        ip -n {pod.netns} route add default via {node.gateway}"""
        node.exec(["sh", "-ec", script], check=True)

    check(cluster, new_veth, "interface pod2 has no from_pod filter")
    before = programs(cluster)

    def new_bridge(_: Cluster) -> None:
        script = f"""ip link del br0
        ip link add br0 address 02:00:0a:f4:01:01 type bridge
        ip link set br0 up
        ip address add {node.gateway}/24 dev br0
        for port in pod1 pod2 pod3; do ip link set $port master br0; done"""
        node.exec(["sh", "-ec", script], check=True)

    check(cluster, new_bridge, "the route to 10.96.0.0/12 over br0 is gone", "interface br0 has no to_bridge filter")
    assert programs(cluster) == before, "nothing is compiled"

    def new_name(_: Cluster) -> None:
        script = "ip link set eth0 down; ip link set eth0 name wan0; ip link set wan0 up"
        node.exec(["sh", "-ec", f"ip route save default > {tmp_path}/r; {script}; ip route restore < {tmp_path}/r"])
        node.exec(["ip", "route", "replace", "default", "via", "192.168.50.100", "dev", "wan0"], check=True)

    check(cluster, new_name, "the node's first uplink was eth0 (", "and is wan0 (")

    def new_address(_: Cluster) -> None:
        node.exec(["ip", "address", "add", "192.168.50.77/24", "dev", "wan0"], check=True)

    check(cluster, new_address, "the node's IPv4 addresses was 192.168.50.11 at load")
    assert "192.168.50.77" in cluster.datapaths[1].status().node_ips


def test_what_cannot_be_mended_is_an_error_and_changes_nothing(cluster: Cluster):
    """Our place at a hook is another's: that is not ours to take away."""
    pin = cluster.datapaths[1].instance.program_pins / "foreign"
    with libbpf.opened(libbpf.load_program(3, PASS, "foreign")) as program:
        libbpf.pin(program, str(pin))
    tc(cluster, *["filter", "del", "dev", "pod1", "ingress", "prio", "7"])
    tc(cluster, *f"filter add dev pod1 ingress prio 7 handle 1 bpf da pinned {pin}".split())
    pin.unlink()
    assert drift(cluster) == ["interface pod1 has no from_pod filter"]
    code, out, err = command(cluster, "repair")
    assert (code, out) == (1, "")
    assert err.startswith("Error: pod1 ingress already has a filter at priority 7: foreign")
    assert "not ours\nHint: " in err
    tc(cluster, *["filter", "del", "dev", "pod1", "ingress", "prio", "7"])
    assert cluster.datapaths[1].repair() == ["interface pod1 has no from_pod filter"]
    works(cluster)
