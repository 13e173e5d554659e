"""Large bodies between a pod and the outside, whole under all offloads; what becomes of TCP's headers on the way.

PYDATAPATH_BIG=1 makes each body a gigabyte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_PACKET, SOCK_RAW, SOCK_STREAM

import pytest
from bulk_server import content, digest
from calls import SECONDS, family_of
from nat_scene import ETH_P_ALL, EXPEDITED, FAMILIES, IPV4, Ends, Eye, nat_cluster, server, set_and_watch
from scene import BIG, READY_SECONDS, Cluster

from pydatapath.lab import Host, Pod

SIZE = 1_000_000_000 if BIG else 50_000_000
TRANSFER_SECONDS = 150
SERVER, BULK_PORT = Path(__file__).with_name("bulk_server.py"), 9_500
MTU = 1_500
ON = ("tx", "on", "sg", "on", "tso", "on", "gso", "on", "gro", "off")
OFF = ("tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off")
MERGING = (*ON[:-1], "on")
# What the ends (and the switch between) do, and the node; and whether streams then pass the node in large segments.
# veth merges (GRO) only what a peer has sent that does not segment: veth_skb_is_eligible_for_gro in drivers/net/veth.c
OFFLOADS = {"segments as sent": (ON, ON, True), "none": (OFF, OFF, False), "GRO at the node": (OFF, MERGING, True)}
families = pytest.mark.parametrize(**FAMILIES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes; outside a web server."""
    with nat_cluster(f"natbulk-{os.getpid()}", servers=False) as made:
        command = [sys.executable, "-I", "-S", str(SERVER), str(BULK_PORT)]
        with made.lab.outside.popen(command, stdout=subprocess.PIPE) as running:
            try:
                assert running.stdout is not None
                assert select.select([running.stdout], [], [], READY_SECONDS)[0], "the server does not get ready"
                assert running.stdout.readline() == "ready\n"
                yield made
            finally:
                running.kill()


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is uploaded, in a file."""
    path = tmp_path_factory.mktemp("bulk") / "body"
    with path.open("wb") as file:
        file.writelines(content(SIZE))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def expected() -> str:
    """The SHA-256 of the body."""
    return digest(SIZE)


@pytest.fixture(autouse=True)
def nobody_leaks(cluster: Cluster) -> Iterator[None]:
    """O1, in every test."""
    eye = Eye(cluster.lab.outside)
    yield
    assert [frame.hex() for frame in eye.leaks()] == []
    eye.close()


@pytest.fixture(params=OFFLOADS)
def large(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[bool]:
    """All interfaces between a pod and the outside with these offloads; whether segments are large then."""
    of_ends, of_node, are_large = OFFLOADS[request.param]
    switch(cluster, of_ends, of_node)
    yield are_large
    switch(cluster, ON, ON)


def switch(cluster: Cluster, of_ends: tuple[str, ...], of_node: tuple[str, ...]) -> None:
    """Switch offloads; of the switch those towards the node, which sends on what the outside has sent."""
    lab = cluster.lab
    for netns, device, features in (
        (lab.pod(1, 1).netns, "eth0", of_ends),
        (lab.node(1).netns, "pod1", of_node),
        (lab.node(1).netns, "eth0", of_node),
        (f"{lab.name}-switch", "node1", of_ends),
        (lab.outside.netns, "eth0", of_ends),
    ):
        command = ["nsenter", f"--net=/run/netns/{netns}", "--", "ethtool", "-K", device, *features]
        subprocess.run(command, check=True, capture_output=True, timeout=10)


def received(host: Host, ends: Ends) -> tuple[int, int, int]:
    """Packets, as the stack gets them, and their bytes; segments of TCP whose checksums were wrong."""
    told = json.loads(host.exec(["nstat", "-asz", "-j"], check=True).stdout)["kernel"]
    names = ("IpInReceives", "IpExtInOctets") if ends is IPV4 else ("Ip6InReceives", "Ip6InOctets")
    return told[names[0]], told[names[1]], told["TcpInCsumErrors"]


def downloaded(pod: Pod, url: str) -> str:
    """The SHA-256 of what curl gets in a pod."""
    made = hashlib.sha256()
    with pod.popen(["curl", "-sSf", "-m", str(TRANSFER_SECONDS), url], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while data := running.stdout.buffer.read1(1 << 20):
            made.update(data)
    assert running.returncode == 0
    return made.hexdigest()


def uploaded(pod: Pod, url: str, body: Path) -> str:
    """The SHA-256 of what the server gets from curl in a pod."""
    command = ["curl", "-sSf", "-m", str(TRANSFER_SECONDS), "-H", "Expect:", "-T", str(body), url]
    return pod.exec(command, check=True, timeout=TRANSFER_SECONDS + SECONDS).stdout


@families
@pytest.mark.parametrize("way", ["download", "upload"])
def test_N78_large_bodies_arrive_whole(
    cluster: Cluster, figure: Callable[[str], None], body: Path, expected: str, large: bool, way: str, ends: Ends
):
    """curl in a pod and a web server outside agree on each byte, whatever the interfaces make of the segments."""
    pod, outside = cluster.lab.pod(1, 1), cluster.lab.outside
    url = f"http://{ends.first if ends is IPV4 else f'[{ends.first}]'}:{BULK_PORT}/{SIZE}"
    receiver = pod if way == "download" else outside
    before, start = received(receiver, ends), time.monotonic()
    found = downloaded(pod, url) if way == "download" else uploaded(pod, url, body)
    seconds = time.monotonic() - start
    packets, octets, wrong = (now - then for now, then in zip(received(receiver, ends), before, strict=True))
    figure(
        f"{way} of {SIZE / 1e6:.0f} MB, IPv{4 if ends is IPV4 else 6}, {octets / packets / 1e3:.1f} kB a segment:"
        f" {seconds:.1f} s"
    )
    assert found == expected
    assert wrong == 0
    assert (octets / packets > MTU) == large, "the offloads were not as asked for"


@families
def test_N72_N73_segments_lose_one_hop_and_keep_their_class(cluster: Cluster, ends: Ends):
    """TCP, from the first SYN to the last FIN, out and back."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(1, 1)
    with (
        server(outside, (ends.first, 9_501), SOCK_STREAM) as listening,
        server(pod, (ends.of(pod), 9_502), SOCK_STREAM) as one,
        watching(outside) as at_server,
        watching(pod) as at_pod,
    ):
        for end in (listening, one):
            set_and_watch(end)
        listening.listen()
        one.connect((ends.first, 9_501))
        with listening.accept()[0] as other:
            other.settimeout(SECONDS)
            for sender, receiver in ((one, other), (other, one)) * 10:
                sender.sendall(bytes(10_000))
                rest = 10_000
                while rest and (data := receiver.recv(rest)):
                    rest -= len(data)
                assert rest == 0
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        for watch, source in ((at_server, ends.of(pod.node)), (at_pod, ends.first)):
            seen = heads(watch, source)
            assert len(seen) > 20
            assert set(seen) == {(63, EXPEDITED)}


def watching(host: Host) -> socket.socket:
    """Sees what passes eth0."""
    made = host.socket(AF_PACKET, SOCK_RAW, socket.htons(ETH_P_ALL))
    made.bind(("eth0", ETH_P_ALL))
    made.setblocking(False)
    return made


def heads(watch: socket.socket, source: str) -> list[tuple[int, int]]:
    """Hops and class of each packet of TCP from an address."""
    found = []
    packed = socket.inet_pton(family_of((source, 0)), source)
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = watch.recv(100)
            if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP and frame[26:30] == packed:
                found.append((frame[22], frame[15]))
            if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP and frame[22:38] == packed:
                found.append((frame[21], int.from_bytes(frame[14:16]) >> 4 & 0xFF))
    return found
