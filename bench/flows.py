"""Fill a table with flows, and what a packet costs beside them.

Ours are written into the map as they would stand there after a reply: a connection is two entries, there and back. They
form a ring: a packet of one becomes a packet of the next, in random order, so that BPF_PROG_TEST_RUN, which hands the
rewritten packet to the program again, meets another flow each time, without a clock or a system call in between.
"""

from __future__ import annotations

import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from bench.packets import established, packet
from bench.processes import BenchError, run
from bench.topology import CLIENT_IP, Node
from pydatapath import Datapath
from pydatapath.kernel import libbpf, netns
from pydatapath.kernel.clock import HZ, jiffies
from pydatapath.kernel.layout import ENDPOINT, LAYOUTS, PROTOCOLS, Family, FlowFlag

__all__ = ["fill", "fill_conntrack", "packet_ns", "ring"]

FILL = Path(__file__).with_name("conntrack_fill.py")
LAYOUT = LAYOUTS[Family.IPV4]
OTHER_VIP = "10.96.0.11"  # of no service: what is called meanwhile has other flows
FIRST_PORT, PORTS = 1024, 60_000
DPORT = 30_000  # and up; below: the ring of two
BATCH = 32_768
REPEAT, ROUNDS = 100_001, 7  # odd: a ring of two does not end where it began
FILL_S = 120.0
REDIRECTED = 7  # TC_ACT_REDIRECT
CLIENT_PORT, SERVER_PORT = "veth-client", "veth-server"


def ring(count: int, backend: str, dport: int = DPORT, seed: int = 1) -> list[bytes]:
    """The keys of so many flows of the client, in random order; every other one is for a virtual IP."""
    source, ends = socket.inet_aton(CLIENT_IP), [socket.inet_aton(one) for one in (OTHER_VIP, backend)]
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    protocol = PROTOCOLS["TCP"]
    return [
        LAYOUT.tuple.struct.pack(
            source,
            ends[place % 2],
            (FIRST_PORT + number % PORTS).to_bytes(2, "big"),
            (dport + number // PORTS).to_bytes(2, "big"),
            protocol,
        )
        for place, number in enumerate(numbers)
    ]


def _reverse(key: bytes) -> bytes:
    source, destination, sport, dport, protocol = LAYOUT.tuple.struct.unpack(key)
    packed: bytes = LAYOUT.tuple.struct.pack(destination, source, dport, sport, protocol)
    return packed


def _entries(keys: Sequence[bytes], stamp: int) -> Iterator[tuple[bytes, bytes]]:
    """The flows of a ring, both directions of each."""
    for key, to in pairwise([*keys, keys[0]]):
        yield key, established(LAYOUT, to, stamp)
        yield _reverse(to), established(LAYOUT, _reverse(key), stamp, FlowFlag.REPLY)


def _now() -> int:
    """Jiffies in 64 bits: they begin five minutes before their lower half overflows (INITIAL_JIFFIES)."""
    low, about = jiffies(), (1 << 32) + round((time.monotonic() - 300) * HZ)
    return low + ((about - low + (1 << 31)) >> 32 << 32)


def _write(datapath: Datapath, keys: Sequence[bytes]) -> None:
    table = datapath._maps["flows"]
    batch: dict[bytes, bytes] = {}
    for key, value in _entries(keys, _now()):
        batch[key] = value
        if len(batch) == BATCH:
            table.update_many(batch)
            batch = {}
    table.update_many(batch)


def fill(this: Node, count: int) -> list[bytes]:
    """Put so many flows into our table; the keys."""
    keys = ring(count, this.backends[0])
    with Datapath.open(this.name, this.netns) as datapath:
        if keys:
            _write(datapath, keys)
        held = datapath._maps["flows"].lookup(keys[0]) if keys else b""
        if held is None:
            raise BenchError(f"of {count:,} flows the first is out of the table again")
    return keys


def packet_ns(this: Node, keys: Sequence[bytes]) -> dict[str, float]:
    """ns of a packet of one known flow (two that take turns), and of any of the ring's at random."""
    with Datapath.open(this.name, this.netns) as datapath:
        index = _interface(this, CLIENT_PORT)
        endpoints, vip = datapath._maps["endpoints"], socket.inet_aton(OTHER_VIP)
        # the packets that become calls of the virtual IP go by the same way as those for the backend
        endpoints.update(vip, ENDPOINT.pack(_interface(this, SERVER_PORT), bytes(6), 0))
        try:
            few = ring(2, this.backends[0], DPORT - 1)
            _write(datapath, few)
            found = {"one_flow_ns": _cost(this, datapath, few[0], index)}
            if keys:
                found["random_flow_ns"] = _cost(this, datapath, keys[0], index)
            return found
        finally:
            endpoints.delete(vip)


def _interface(this: Node, name: str) -> int:
    with netns.entered(netns.path_of(this.netns)):
        return socket.if_nametoindex(name)


def _cost(this: Node, datapath: Datapath, key: bytes, index: int) -> float:
    """The median of some runs, each begun with the packet that the last one ended with."""
    _, destination, sport, dport, _ = LAYOUT.tuple.struct.unpack(key)
    frame = bytearray(packet(CLIENT_IP, socket.inet_ntoa(destination), "TCP", int.from_bytes(dport, "big")))
    frame[34:36] = sport
    context = bytearray(192)
    struct.pack_into("=I", context, 40, index)
    costs = []
    with libbpf.opened(libbpf.open_pin(str(datapath.instance.program_pins / "from_pod"))) as descriptor:
        for _ in range(ROUNDS):
            with netns.entered(netns.path_of(this.netns)):
                ran = libbpf.run(descriptor, bytes(frame), bytes(context), REPEAT)
            if ran.packet[26:38] == frame[26:38] or ran.verdict != REDIRECTED:
                raise BenchError("the packet of a known flow has not been translated")
            frame = bytearray(ran.packet)
            costs.append(ran.nanoseconds)
    return statistics.median(costs)


def fill_conntrack(this: Node, count: int) -> None:
    """As `fill`, into netfilter's table of connections. Raises BenchError where that cannot hold them."""
    most = int(run(["sysctl", "-n", "net.netfilter.nf_conntrack_max"], netns=this.netns))
    if count > most:
        raise BenchError(f"nf_conntrack_max is {most:,} here, and only the machine's own namespace can raise it")
    if count:
        run([sys.executable, str(FILL), str(count)], netns=this.netns, timeout=FILL_S)
        held = this.conntrack_count()
        if held < count:
            raise BenchError(f"of {count:,} connections {held:,} are in the table")
