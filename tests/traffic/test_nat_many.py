"""Many at once behind one address call one server: who is answered, is so rightly. PYDATAPATH_BIG=1 makes it 60,000."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import selectors
import socket
import struct
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from socket import AF_INET, AF_INET6, SOCK_DGRAM, AddressFamily, SocketKind
from typing import Self

import pytest
from calls import KINDS, SECONDS, Address, ask, dial, family_of
from nat_scene import FAMILIES, IPV4, IPV6, NETWORKS, Ends, Eye, nat_cluster
from scene import BIG, PORT, Cluster

from pydatapath.kernel import links
from pydatapath.lab import Host, Pod

SOURCES = 200  # of the first node: as many pods
FIRST_PORT = 5_000
PORTS = 300 if BIG else 20  # of each source
# What the first node has to give: all but node ports and four tunnels'; or the own ones and a range of 4,100
ROOM, RANGE = (64_512 - 2_768 - 4, "1024-65535") if BIG else (PORTS + 4_100, "20000-24099")
AT_ONCE = 300  # datagrams that are not answered yet: fewer than any queue on the way holds
OF_NODE, OF_PODS = (10_000, 9_000) if BIG else (1_000, 1_000)  # calls of the second node, from the same ports
OWN_PORT = 40_000  # the first of these: among those that Linux gives to sockets, and we to who must leave his own
OPENING = 64  # ports from which calls open at once
FILES = OF_NODE + OF_PODS + 2 * PORTS + 100  # here, and in the server; often 20,000 is all that a process may have
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
pytestmark = pytest.mark.timeout(900 if BIG else 180)
families = pytest.mark.parametrize(**FAMILIES)
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes; each of the first one's two pods has a hundred addresses more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), max(hard, FILES)))
    try:
        with nat_cluster(f"natmany-{os.getpid()}") as made:
            made.load(1, cluster_cidr=NETWORKS, masquerade=True, snat_ports=RANGE)
            for number in (1, 2):
                pod = made.lab.pod(1, number)
                with links.Links(pod.netns) as there:
                    for ends in (IPV4, IPV6):
                        for address in addresses_of(pod, ends):
                            there.address("eth0", f"{address}/{32 if ends is IPV4 else 128}")
            yield made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def addresses_of(pod: Pod, ends: Ends) -> list[str]:
    """Those that it has beside its own."""
    network = ends.of(pod).removesuffix(str(10 + pod.number))
    half = SOURCES // 2
    return [f"{network}{20 + half * (pod.number - 1) + count}" for count in range(half)]


@pytest.fixture(autouse=True)
def nobody_leaks(cluster: Cluster) -> Iterator[None]:
    """O1, in every test."""
    eye = Eye(cluster.lab.outside)
    yield
    assert [frame.hex() for frame in eye.leaks()] == []
    eye.close()


def drops(cluster: Cluster, node: int) -> Tally[str]:
    """What the node has dropped until now, by name."""
    counters = cluster.datapaths[node].status().counters
    return Tally({name: count for name, count in counters.items() if name.startswith("drop_")})


@families
@kinds
def test_N3_pods_with_one_port_have_a_port_each(cluster: Cluster, kind: SocketKind, ends: Ends):
    """200 addresses behind two interfaces, each with port 5000, all at once: 200 ports, and to each its own answers."""
    pods = cluster.lab.pods_of(cluster.lab.node(1))
    before = drops(cluster, 1)
    with contextlib.ExitStack() as stack:
        calls = [
            stack.enter_context(dial(pod, (ends.first, PORT), kind, (address, FIRST_PORT)))
            for pod in pods
            for address in addresses_of(pod, ends)
        ]
        seen = [[ask(one, f"{one.getsockname()[0]} {again}").seen for one in calls] for again in range(2)]
    assert len(set(seen[0])) == SOURCES
    assert {address for address, _ in seen[0]} == {ends.of(cluster.lab.node(1))}
    assert seen[0] == seen[1]
    assert drops(cluster, 1) - before == Tally()


@dataclass
class Heard:
    """What came of a datagram from each end: what the server saw each as, by address and port; what was wrong."""

    sent: int = 0
    seen: dict[Address, Address] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    dropped: Tally[str] = field(default_factory=Tally)
    seconds: float = 0.0


class Crowd:
    """All ends of the first node's pods: one socket for each pod and port, which sends from each of the addresses."""

    def __init__(self, cluster: Cluster, ends: Ends) -> None:
        self.cluster, self.ends = cluster, ends
        self.selector = selectors.EpollSelector()
        self.everybody: list[tuple[socket.socket, str]] = []
        for pod in cluster.lab.pods_of(cluster.lab.node(1)):
            for port in range(FIRST_PORT, FIRST_PORT + PORTS):
                one = pod.socket(family_of((ends.first, 0)), SOCK_DGRAM)
                told_where_to(one)
                one.bind(("", port))
                self.selector.register(one, selectors.EVENT_READ, port)
                self.everybody += [(one, address) for address in addresses_of(pod, ends)]
        random.Random(1).shuffle(self.everybody)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()

    def call(self, word: str, count: int) -> Heard:
        """A datagram of the first `count` ends, with its address and port in it; until all are answered or dropped."""
        heard, before = Heard(), drops(self.cluster, 1)
        start = last = time.monotonic()
        waiting = iter(self.everybody[:count])
        while len(heard.seen) + heard.dropped.total() < count and time.monotonic() - last < SECONDS:
            free = AT_ONCE - (heard.sent - len(heard.seen) - heard.dropped.total())
            for one, address in islice(waiting, max(free, 0)):
                self._send(one, address, word)
                heard.sent += 1
            ready = self.selector.select(0.1)
            for key, _ in ready:
                self._receive(key, word, heard)
                last = time.monotonic()
            if not ready:
                heard.dropped = drops(self.cluster, 1) - before
        heard.dropped = drops(self.cluster, 1) - before
        heard.seconds = time.monotonic() - start
        return heard

    def _send(self, one: socket.socket, address: str, word: str) -> None:
        message = f"{address} {one.getsockname()[1]} {word}".encode()
        one.sendmsg([message], [from_where(one.family, address)], 0, (self.ends.first, PORT))

    def _receive(self, key: selectors.SelectorKey, word: str, heard: Heard) -> None:
        one: socket.socket = key.fileobj  # type: ignore[assignment]
        with contextlib.suppress(BlockingIOError):
            while True:
                data, told, _, source = one.recvmsg(2_048, 100, socket.MSG_DONTWAIT)
                own = (where_to(told), key.data)
                _, seen, port, message = data.decode().split(" ", 3)
                if message != f"{own[0]} {own[1]} {word}" or source[:2] != (self.ends.first, PORT) or own in heard.seen:
                    heard.wrong.append(f"{own} was told {message!r} by {source}")
                heard.seen[own] = (seen, int(port))


def told_where_to(one: socket.socket) -> None:
    """Ask to be told of each datagram's destination."""
    if one.family == AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def from_where(family: AddressFamily, address: str) -> tuple[int, int, bytes]:
    """The control message that names a datagram's source."""
    packed = socket.inet_pton(family, address)
    if family == AF_INET6:
        return socket.IPPROTO_IPV6, IPV6_PKTINFO, struct.pack("=16sI", packed, 0)
    return socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4x", 0, packed)


def where_to(told: list[tuple[int, int, bytes]]) -> str:
    """The destination out of the control messages."""
    for level, _, data in told:
        if level == socket.IPPROTO_IPV6:
            return socket.inet_ntop(AF_INET6, data[:16])
        if level == socket.IPPROTO_IP:
            return socket.inet_ntop(AF_INET, data[8:12])
    raise ValueError("no destination")


@families
def test_N3_N22_N23_mappings_up_to_the_last_ports(cluster: Cluster, figure: Callable[[str], None], ends: Ends):
    """O3: whoever is not answered was dropped by name; nobody gets another's answer, nor loses the port that he has."""
    with dial(cluster.lab.pod(1, 1), (ends.first, PORT), SOCK_DGRAM) as one:
        ask(one)  # so that the server's MAC is known
    with Crowd(cluster, ends) as crowd:
        most = crowd.call("most", int(0.9 * ROOM))
        rest = crowd.call("all", len(crowd.everybody))
        again = crowd.call("again", len(crowd.everybody))
    for heard in (most, rest, again):
        figure(
            f"{heard.sent} sources by UDP for {ROOM} ports, IPv{4 if ends is IPV4 else 6}: {len(heard.seen)} answered,"
            f" {heard.dropped.total()} dropped by name, {len(heard.wrong)} misdelivered; {heard.seconds:.1f} s"
        )
        assert heard.wrong == []
        assert heard.dropped.keys() <= {"drop_ports_taken"}
        assert heard.sent == len(heard.seen) + heard.dropped.total()
        assert len(set(heard.seen.values())) == len(heard.seen)
        assert {address for address, _ in heard.seen.values()} == {ends.of(cluster.lab.node(1))}
    assert most.dropped == Tally()
    assert rest.sent == again.sent == SOURCES * PORTS
    for heard, later in ((most, rest), (rest, again)):
        assert {own: later.seen[own] for own in heard.seen} == heard.seen


@dataclass
class Talks:
    """Connected sockets: as whom the server sees each, and what was wrong; after five failures nobody asks any more."""

    seen: dict[socket.socket, Address] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def ask(self, calls: Iterable[socket.socket]) -> None:
        """A question on each, one after the other; the server must see it as whom it has seen it before."""
        for one in calls:
            if len(self.failures) == 5:
                break
            try:
                seen = ask(one, f"{random.getrandbits(60)}").seen
                if seen != self.seen.setdefault(one, seen):
                    self.failures.append(f"{one.getsockname()[:2]}: {self.seen[one]} has become {seen}")
            except (OSError, ValueError) as error:
                self.failures.append(f"{one.getsockname()[:2]}: {error}")


@families
@kinds
def test_N18_N20_the_node_calls_while_its_pods_do(
    cluster: Cluster, figure: Callable[[str], None], kind: SocketKind, ends: Ends
):
    """From the same ports, to one server, at the same time; each goes on until all are there, and after."""
    node, start, before, talks = cluster.lab.node(2), time.monotonic(), drops(cluster, 2), Talks()
    with contextlib.ExitStack() as stack:
        for first in range(0, OF_NODE, OPENING):
            open_some(stack, cluster, kind, ends, range(first, min(first + OPENING, OF_NODE)), talks)
        calls = list(talks.seen)
        random.Random(2).shuffle(calls)
        talks.ask(calls)
    dropped = drops(cluster, 2) - before
    assert talks.failures == [], dropped
    assert len(set(talks.seen.values())) == OF_NODE + OF_PODS
    assert {address for address, _ in talks.seen.values()} == {ends.of(node)}
    assert dropped == Tally()
    figure(
        f"{OF_NODE} calls of the node and {OF_PODS} of its pods at once, {'UDP' if kind == SOCK_DGRAM else 'TCP'},"
        f" IPv{4 if ends is IPV4 else 6}: all answered, twice; {time.monotonic() - start:.1f} s"
    )


def open_some(
    stack: contextlib.ExitStack, cluster: Cluster, kind: SocketKind, ends: Ends, numbers: range, talks: Talks
) -> None:
    """From each of some ports a call of the node and one of a pod, now this first, now that."""
    node, opening = cluster.lab.node(2), list[socket.socket]()
    pods = cluster.lab.pods_of(node)
    for number in numbers:
        callers: list[Host] = [node, pods[number % 2]] if number < OF_PODS else [node]
        for caller in callers if number % 4 < 2 else reversed(callers):
            opening.append(stack.enter_context(begun(caller, kind, ends, OWN_PORT + number)))
            if kind == SOCK_DGRAM:
                talks.ask(opening[-1:])  # without a packet there is no flow
    talks.ask(opening)


def begun(caller: Host, kind: SocketKind, ends: Ends, port: int) -> socket.socket:
    """A socket that is about to connect, from a port."""
    made = caller.socket(family_of((ends.first, PORT)), kind)
    made.setblocking(False)
    made.bind((ends.of(caller), port))
    made.connect_ex((ends.first, PORT))
    made.settimeout(SECONDS)
    return made
