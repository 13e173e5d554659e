"""What talks while it is flooded, and what that sees: talking and silent connections, new calls, and what maps hold."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Self

from calls import KINDS, Address, ask, dial
from flooding import IPV6_MORE, Flood, mac_of
from rows import tell
from scene import BIG, VIP_PORT, Cluster
from streaming import Scripts, counted

from pydatapath.kernel import libbpf
from pydatapath.kernel.flowtable import read_flows
from pydatapath.kernel.layout import MAPS, TIMEOUTS, Family, MapType
from pydatapath.kernel.maps import Maps
from pydatapath.lab import Host

__all__ = [
    "BALANCER",
    "STRANGERS",
    "STRANGER_COUNT",
    "SYNS",
    "TALKERS",
    "TALKING",
    "V4",
    "V6",
    "VIP",
    "Idle",
    "Seen",
    "Side",
    "assert_arrived",
    "assert_nobody_was_hurt",
    "fill",
    "flood_from",
    "lasting",
    "macs",
    "reset",
    "under",
]

VIP, BALANCER = ("10.96.0.92", VIP_PORT), ("203.0.113.92", VIP_PORT)
SYNS = 1_000_000 if BIG else 100_000
TALKERS = 100  # inside, and as many outside
WATCHED = 0.3  # seconds between two looks at the maps
LASTING = 10.0 if BIG else 3.0  # seconds that a flood lasts at least, for new calls to meet it
CALLS = 100  # of which one may fail
TALKING = f"{TALKERS} TCP connections that talk inside and {TALKERS} from outside, new calls beside them"
STRANGERS, STRANGERS6 = "198.18.0.1", "2001:2::1"  # of RFC 2544's and RFC 5180's networks: nobody's
STRANGER_COUNT = 99_991  # a prime, so that none comes twice with one of 60,000 ports


@dataclass(frozen=True)
class Side:
    """What is called in a family, and who floods it."""

    family: Family
    vip: Address
    balancer: Address
    strangers: str
    syns: int

    def of(self, host: Host) -> str:
        """A host's address."""
        return host.address6 if self.family is Family.IPV6 else host.address

    def is_strange(self, address: str) -> bool:
        """Whether it is one of the flood's sources."""
        return 0 <= int(ip_address(address)) - int(ip_address(self.strangers)) < STRANGER_COUNT

    def checked_at(self, place: int) -> int:
        """Where a checksum stands in a frame that stands there in IPv4's."""
        return place + IPV6_MORE * (self.family is Family.IPV6)


V4 = Side(Family.IPV4, VIP, BALANCER, STRANGERS, SYNS)
V6 = Side(
    Family.IPV6,
    ("fd00:10:96::92", VIP_PORT),
    ("2001:db8:92::92", VIP_PORT),
    STRANGERS6,
    1_000_000 if BIG else 100_000,
)


def maps_of(cluster: Cluster) -> Maps:
    return Maps(cluster.datapaths[1].instance.map_pins)


def fill(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """How many entries each table has, and for how many it has room."""
    with maps_of(cluster) as maps:
        names = [path.name for path in maps.directory.iterdir() if MAPS[path.name].type is MapType.LRU_HASH]
        return {name: (len(maps[name]), maps[name].info.max_entries) for name in names}


def memory(cluster: Cluster) -> int:
    """Bytes that the kernel has set aside for all maps."""
    with maps_of(cluster) as maps:
        return sum(libbpf.map_memory(maps[path.name].descriptor) for path in maps.directory.iterdir())


class Watch(threading.Thread):
    """Looks, while something else is done, how much the maps hold and what memory they have. A context manager."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster, self.over = cluster, threading.Event()
        self.memory = memory(cluster)
        self.times = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        """At once, and then until told to end; at the end once more."""
        while not self.over.is_set():
            self._look()
            self.over.wait(WATCHED)
        self._look()

    def _look(self) -> None:
        self.times += 1
        found = memory(self.cluster)
        if found != self.memory:
            self.wrong.append(f"{found:,} bytes of maps, {self.memory:,} before")
        self.wrong += [
            f"{name} has {entries:,} entries and room for {room:,}"
            for name, (entries, room) in fill(self.cluster).items()
            if entries > room + room // 100  # what is pushed out and made anew while one counts may count twice
        ]


def counters(cluster: Cluster) -> dict[str, int]:
    return cluster.datapaths[1].status().counters


def reset(cluster: Cluster) -> int:
    """How many segments the backends have answered by a RST."""
    return sum(counted(pod, "Tcp OutRsts") for pod in cluster.lab.pods[1:])


@dataclass
class Idle:
    """Connections that are open and silent, and the entries that they have."""

    cluster: Cluster
    host: Host
    target: Address
    kind: socket.SocketKind
    sockets: list[socket.socket] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def open(self, count: int) -> None:
        self.sockets = [dial(self.host, self.target, self.kind) for _ in range(count)]
        self.names = [ask(one).name for one in self.sockets]
        for one in self.sockets if self.kind == socket.SOCK_STREAM else ():
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def entries(self) -> dict[bytes, bytes]:
        """Theirs, both halves of each, as they stand in the table: who has the same port elsewhere, or calls another
        from it, is another.
        """
        protocol = next(name for name, kind in KINDS.items() if kind == self.kind)
        calls = {(protocol, *one.getsockname()[:2], *self.target[:2]) for one in self.sockets}
        with maps_of(self.cluster) as maps:
            flows = list(read_flows(maps, TIMEOUTS))
            table = dict(maps[f"flows{Family.of(self.target[0]).suffix}"].items())
        called = [(one.flow.protocol, one.flow.original, one.ends) for one in flows]
        ends = [each for name, at, each in called if (name, at.src, at.sport, at.dst, at.dport) in calls]
        return {key: table[key] for key in itertools.chain(*ends) if key in table}

    def broken(self) -> list[str]:
        """What is wrong when all are asked."""
        found = []
        for one, name in zip(self.sockets, self.names, strict=True):
            try:
                if ask(one, "again").name != name:
                    found.append(f"{one.getsockname()}: another backend")
            except (OSError, ValueError) as error:
                found.append(f"{one.getsockname()}: {error}")
        return found

    def close(self) -> None:
        for one in self.sockets:
            one.close()


@dataclass
class Seen:
    """What talkers and silent connections have seen of a flood."""

    talks: list[dict[str, Any]]
    seconds: float
    sent: int
    moved: dict[str, int]  # counters
    entries_changed: int
    entries_lost: int
    silent_broken: list[str]
    forgotten: list[str]

    @property
    def calls(self) -> int:
        """New calls that were tried."""
        return sum(one["calls"] for one in self.talks)

    @property
    def failed(self) -> list[str]:
        """New calls without a right answer, and why."""
        return list(itertools.chain(*(one["failed"] for one in self.talks)))

    @property
    def unanswered(self) -> int:
        """Connections that broke and new calls that failed."""
        return sum(len(one["broken"]) for one in self.talks) + len(self.failed) + len(self.silent_broken)

    def __str__(self) -> str:
        broken = sum(len(one["broken"]) for one in self.talks)
        return (
            f"{self.sent:,} in {self.seconds:.1f} s, {self.moved.get('new_flow', 0):,} of them new flows;"
            f" {broken} of {TALKERS * len(self.talks)} talking connections broken,"
            f" {len(self.silent_broken)} silent ones, {self.entries_changed} of their entries changed or lost,"
            f" {len(self.forgotten)} of the talking ones' forgotten;"
            f" {self.calls - len(self.failed)} of {self.calls} new calls answered, longest answer"
            f" {max(one['longest'] for one in self.talks):.0f} ms"
        )


def forgotten(cluster: Cluster, talks: list[dict[str, Any]]) -> list[str]:
    """Which talking connections did not stand in the table all the time, in both directions: an entry that was pushed
    out and made anew has counted fewer segments than the socket.
    """
    connections = [one for one in cluster.datapaths[1].flows() if one.protocol == "TCP" and one.state != "new"]
    flows = {(one.original.src, one.original.sport): one for one in connections if one.original.dport == VIP_PORT}
    found = []
    for address, port, *segments in itertools.chain(*(one["ends"] for one in talks)):
        flow = flows.get((address, port))
        if flow is None or any(packets < count for packets, count in zip(flow.packets, segments, strict=True)):
            found.append(f"{address}:{port}: {segments} segments, counted {flow.packets if flow else 'none'}")
    return found


def lasting(flood: Callable[[], tuple[int, float]]) -> tuple[int, float]:
    """Floods until LASTING is over; how many were sent, in how many seconds."""
    sent, seconds, began = 0, 0.0, time.monotonic()
    while not sent or time.monotonic() - began < LASTING:
        many, took = flood()
        sent, seconds = sent + many, seconds + took
    return sent, seconds


def settled(idle: list[Idle]) -> dict[bytes, bytes]:
    """The silent ones' entries, once nothing is on its way: an answer is acknowledged half a second later at most (RFC
    5681 4.2).
    """
    found: dict[bytes, bytes] = {}
    for _ in range(10):
        before, found = found, {key: value for one in idle for key, value in one.entries().items()}
        if found == before:
            break
        time.sleep(0.5)
    return found


def under(
    cluster: Cluster,
    idle: list[Idle],
    flood: Callable[[], tuple[int, float]],
    *,
    forgiving: bool = False,
    which: Side = V4,
) -> Seen:
    """Runs a flood, again and again until LASTING is over, while connections talk inside and from outside, and compares
    what is silent with before.

    `forgiving`: a silent socket may be told of one error before it is asked.
    """
    lab = cluster.lab
    before = settled(idle)
    assert len(before) == 2 * sum(len(one.sockets) for one in idle), "both halves of each silent one are watched"
    with Scripts() as scripts, Watch(cluster) as watch:
        scripts.talk(lab.pod(1, 1), which.vip[0], TALKERS)
        scripts.talk(lab.outside, which.balancer[0], TALKERS)
        begun = counters(cluster)
        sent, seconds = lasting(flood)
        talks = [scripts.end_talk(host) for host in (lab.pod(1, 1), lab.outside)]
    left = forgotten(cluster, talks)
    after = {key: value for one in idle for key, value in one.entries().items()}
    changed = sum(after.get(key) != value for key, value in before.items())
    assert watch.wrong == [], "maps have their memory from the beginning, and bounds"
    assert watch.times > 1
    lost = len(before.keys() - after.keys())
    if forgiving:
        for one in idle:
            for each in one.sockets:
                each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    broken = [line for one in idle for line in one.broken()]
    moved = {name: count - begun[name] for name, count in counters(cluster).items()}
    return Seen(talks, seconds, sent, moved, changed, lost, broken, left)


def assert_nobody_was_hurt(seen: Seen, *, touched: bool = False) -> None:
    """`touched`: the flood is about the silent connections themselves, whose entries then count it, but stay."""
    wrong = seen.entries_lost if touched else seen.entries_changed
    tell(
        load=f"{TALKING}, 300 silent ones",
        repeats=1,
        sent=seen.sent,
        gap_ms_max=round(max(one["longest"] for one in seen.talks)),
        broken=sum(len(one["broken"]) for one in seen.talks) + len(seen.silent_broken),
        new_failed=len(seen.failed),
        wrong=wrong + len(seen.forgotten),
    )
    assert [one["broken"] for one in seen.talks] == [[], []]
    assert seen.silent_broken == []
    assert wrong == 0
    assert seen.forgotten == []
    assert [len(one["ends"]) for one in seen.talks] == [TALKERS, TALKERS]
    assert seen.calls >= CALLS, "too few new calls met the flood to say anything of them"
    assert len(seen.failed) <= seen.calls // 100, seen.failed


def assert_arrived(seen: Seen, count: int, *names: str) -> None:
    """So many were met by our programs, by these counters: what they never see, as for a wrong MAC, hurts nobody."""
    moved = {name: number for name, number in seen.moved.items() if number}
    assert sum(moved.get(name, 0) for name in names) > count * 0.95, moved


def macs(cluster: Cluster, host: Host) -> tuple[str, str]:
    """From a host towards the node."""
    device = "eth0" if host == cluster.lab.outside else "br0"
    return mac_of(host), mac_of(cluster.lab.node(1), device)


def flood_from(host: Host, frame: bytes, vary: Any, count: int, pause: float = 0.0) -> tuple[int, float]:
    with Flood(host) as flood:
        return count, flood.send(frame, count, vary, pause=pause)
