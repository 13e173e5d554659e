"""Interfaces that go while something is done with them, addresses that pass to another pod, deleted namespaces.

PYDATAPATH_BIG=1 pytest tests/fault/test_interfaces.py     thousands instead of hundreds
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from calls import KINDS, ask, ask_many, dial
from in_kernel import ids
from rows import tell
from scene import BIG, VIP_PORT, Cluster, cluster_up, pydatapath
from streaming import Scripts, say

from pydatapath import Datapath, Options
from pydatapath.errors import DatapathError
from pydatapath.kernel import libbpf
from pydatapath.kernel.attach import Attacher, Place
from pydatapath.kernel.layout import Hook
from pydatapath.kernel.links import Links, delete_namespace
from pydatapath.kernel.maps import Maps
from pydatapath.lab import Pod

pytestmark = pytest.mark.timeout(900 if BIG else 400)

ONE, TWO = ("10.96.0.93", VIP_PORT), ("10.96.0.94", VIP_PORT)
DELETIONS = 3000 if BIG else 300
REUSES, REUSING_SECONDS = (1000, 800) if BIG else (100, 50)  # the latter where the machine is slow
LOADS_AT_MOST = 200 if BIG else 40
LOAD = "calls by TCP and UDP from a pod"
U32 = struct.Struct("=I")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node whose pods but the first serve. New for each test: pods go."""
    with cluster_up(f"if-{os.getpid()}", nodes=1, pods=4) as made:
        made.serve(*made.lab.pods[1:])
        made.apply("one", ONE[0], [made.lab.pod(1, 2)])
        yield made


def load(cluster: Cluster) -> None:
    """As Cluster.load, without a handle that stays."""
    node = cluster.lab.node(1).netns
    options = Options(node_name=node, cluster_cidr=("10.244.0.0/16",), masquerade=False)
    Datapath.load(options, netns=node).close()


class Churn(threading.Thread):
    """Pods' interfaces that come to the bridge and go again, one after the other, a moment after each other."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.node, self.pod = cluster.lab.node(1).netns, cluster.lab.pod(1, 3).netns
        self.deleted = 0
        self.ending = threading.Event()
        self.failure = ""

    def run(self) -> None:
        """Until told to end."""
        try:
            with Links(self.node) as links:
                while not self.ending.is_set():
                    for number in range(4):
                        links.veth(f"churn{number}", f"c{number}", self.pod, peer_mac="02:00:00:00:77:01", bridge="br0")
                    for number in range(4):
                        time.sleep(0.005)
                        links.delete(f"churn{number}")
                        self.deleted += 1
        except DatapathError as error:
            self.failure = str(error)


def test_F12_interfaces_that_go_while_programs_are_attached(cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    """Whatever goes while a load looks, asks, writes or attaches: it is left out, and nobody else notices."""
    churn, failed, loads = Churn(cluster), list[str](), 0
    tell(load="50 TCP connections that talk, and new calls by TCP and UDP")
    with Scripts() as scripts:
        scripts.talk(cluster.lab.pod(1, 1), ONE[0], 50)
        churn.start()
        try:
            while loads < LOADS_AT_MOST and churn.deleted < DELETIONS:
                try:
                    load(cluster)
                except DatapathError as error:
                    failed.append(str(error))
                loads += 1
        finally:
            churn.ending.set()
            churn.join(10)
        talk = scripts.end_talk(cluster.lab.pod(1, 1))
    say(
        capsys,
        f"{churn.deleted} interfaces deleted during {loads} loads: {len(failed)} loads failed,"
        f" {len(talk['broken'])} of 50 connections broken ({talk['lines']:,} lines),"
        f" {len(talk['failed'])} of {talk['calls']} new calls failed",
    )
    tell(repeats=churn.deleted, broken=len(talk["broken"]), new_failed=len(talk["failed"]), wrong=len(failed))
    assert churn.failure == ""
    assert churn.deleted >= DELETIONS // 2, "too few to have met anything"
    assert failed == []
    assert (talk["broken"], talk["failed"]) == ([], [])
    load(cluster)
    status = cluster.datapaths[1].status()
    assert status.drift == ()
    assert not [one for one in status.interfaces if one.name.startswith("churn")]
    with Maps(cluster.datapaths[1].instance.map_pins) as maps, cluster.lab.node(1).entered():
        indexes = {index for index, _ in socket.if_nameindex()}
        assert {U32.unpack(key)[0] for key, _ in maps["interfaces"].items()} <= indexes


class Replacing:
    """A pod's address that passes from one pod to another and back: what an agent does with each that comes."""

    def __init__(self, cluster: Cluster, links: Links, attacher: Attacher) -> None:
        self.cluster, self.node = cluster, cluster.lab.node(1)
        self.here, self.next = cluster.lab.pod(1, 3), cluster.lab.pod(1, 4)
        self.address = self.here.address
        self.links, self.attacher = links, attacher
        links.delete(self.next.interface)
        self.programs = cluster.datapaths[1].instance.program_pins

    def replace(self) -> None:
        """The pod goes, with its interface; the other one is there at once, with a MAC of its own, and says so."""
        self.links.delete(self.here.interface)
        self.here, self.next = self.next, self.here
        mac = f"02:00:00:00:66:0{self.here.number}"
        self.links.veth(self.here.interface, "eth0", self.here.netns, peer_mac=mac, bridge="br0")
        with Links(self.here.netns) as inside:
            inside.address("eth0", f"{self.address}/24")
            inside.up("eth0")
            inside.route("default", via=self.node.gateway)
        self._attach()
        with self.here.socket(kind=socket.SOCK_DGRAM) as hello:
            hello.sendto(b"hello", (self.node.gateway, 9))

    def _attach(self) -> None:
        instance = self.cluster.datapaths[1].instance
        program = libbpf.open_pin(str(self.programs / Hook.FROM_POD.program))
        try:
            with self.node.entered(), Maps(instance.map_pins) as maps:
                index = socket.if_nametoindex(self.here.interface)
                maps["interfaces"].update(U32.pack(index), U32.pack(index))
                self.attacher.add_clsact(index, self.here.interface)
                place = Place(index, self.here.interface, Hook.FROM_POD, program)
                assert self.attacher.exchange([place], instance.name) == {}
        finally:
            os.close(program)


@contextlib.contextmanager
def watching(pod: Pod) -> Iterator[socket.socket]:
    """Every frame that a pod gets; not what it sends."""
    with pod.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as eye:  # type: ignore[arg-type]
        eye.setblocking(False)
        yield eye


def strays(eye: socket.socket, ports: dict[int, str]) -> list[str]:
    """The protocols of the frames that came from these ports."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, place = eye.recvfrom(256)
            port = int.from_bytes(frame[34:36], "big")
            if place[2] != socket.PACKET_OUTGOING and frame[23] in (6, 17) and port in ports:
                found.append(ports[port])
    return found


@pytest.fixture
def place(cluster: Cluster) -> Iterator[Replacing]:
    """The third pod's address."""
    with contextlib.ExitStack() as stack:
        with cluster.lab.node(1).entered():
            attacher = stack.enter_context(Attacher())
        yield Replacing(cluster, stack.enter_context(Links(cluster.lab.node(1).netns)), attacher)


def test_F14_an_address_that_passes_to_another_pod(
    cluster: Cluster, place: Replacing, capsys: pytest.CaptureFixture[str]
):
    """Its service has another backend, and the new pod serves another service: no old flow reaches its servers.

    UDP is chosen for again. A segment of an old connection may come to the new pod's stack, which resets it: no more
    than that, and no line is ever answered by the wrong pod.
    """
    caller = cluster.lab.pod(1, 1)
    reached: list[str] = []
    wrong: list[str] = []
    times = reset = 0
    began = time.monotonic()
    while times < REUSES and time.monotonic() - began < REUSING_SECONDS:
        cluster.apply("two", TWO[0], [])
        cluster.apply("one", ONE[0], [cluster.lab.pod(1, 3)])  # whoever has its address
        with dial(caller, ONE, KINDS["UDP"]) as datagrams, dial(caller, ONE) as lines:
            assert {ask(datagrams).name, ask(lines).name} == {place.here.name}
            cluster.apply("one", ONE[0], [cluster.lab.pod(1, 2)])
            place.replace()
            cluster.apply("two", TWO[0], [cluster.lab.pod(1, 3)])
            with watching(place.here) as eye:
                ports = {datagrams.getsockname()[1]: "UDP", lines.getsockname()[1]: "TCP"}
                names = {ask(datagrams).name for _ in range(3)}
                wrong += [f"UDP by {name}" for name in names - {cluster.lab.pod(1, 2).name}]
                try:
                    wrong.append(f"TCP by {ask(lines).name}")
                except (OSError, ValueError):
                    reset += 1
                reached += strays(eye, ports)
        times += 1
        assert {one.name for one in ask_many(caller, KINDS["UDP"], TWO, 2).answers} == {place.here.name}
    udp, tcp = reached.count("UDP"), reached.count("TCP")
    say(
        capsys,
        f"an address passed on {times} times: {udp} datagrams and {tcp} segments of old flows reached the new pod,"
        f" {len(wrong)} answers by it; {reset} old connections reset",
    )
    tell(repeats=times, misdelivered=udp, wrong=len(wrong))
    assert wrong == []
    assert udp == 0
    assert reset == times >= REUSES // 10


def ids_of(cluster: Cluster) -> tuple[set[int], set[int]]:
    """Of the programs and of the maps of an instance."""
    instance = cluster.datapaths[1].instance
    with Maps(instance.map_pins) as maps:
        found = {maps[path.name].info.id for path in maps.directory.iterdir()}
    programs = set()
    for path in instance.program_pins.iterdir():
        if path.name != "walks":
            descriptor = libbpf.open_pin(str(path))
            programs.add(libbpf.program_info(descriptor).id)
            os.close(descriptor)
    return programs, found


def left_of(programs: set[int], maps: set[int]) -> tuple[set[int], set[int]]:
    """Which of them the kernel still has."""
    return programs & ids("prog"), maps & ids("map")


def left_soon(programs: set[int], maps: set[int], but: set[int]) -> tuple[set[int], set[int]]:
    """As left_of, when no more than these maps are left, or after ten seconds: the kernel takes its time."""
    deadline = time.monotonic() + 10
    while left_of(programs, maps) != (set(), but) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left_of(programs, maps)


@pytest.mark.parametrize("held", [False, True], ids=["nobody looks", "somebody holds the maps"])
def test_F15_a_namespace_that_is_deleted_with_its_programs(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], held: bool
):
    """What is left is pins, which `unload --all` finds; ten seconds later the kernel has nothing of it."""
    programs, maps = ids_of(cluster)
    datapath = cluster.datapaths.pop(1)
    instance = datapath.instance
    datapath.close()
    handle = Maps(instance.map_pins)
    assert handle["flows"].info.id in maps
    if not held:
        handle.close()
    delete_namespace(cluster.lab.node(1).netns)
    done = pydatapath("unload", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"instance {instance.name} is gone with its namespace: pins and records removed" in done.stdout
    if held:
        flows = handle["flows"].info.id
        assert left_soon(programs, maps, {flows}) == (set(), {flows})
        handle.close()
    left = left_soon(programs, maps, set())
    say(
        capsys,
        f"a namespace deleted: of {len(programs)} programs {len(left[0])}, of {len(maps)} maps {len(left[1])} left",
    )
    tell(repeats=1, leaked=len(left[0]) + len(left[1]), load="nobody")
    assert left == (set(), set())
    assert not instance.pins.exists()
