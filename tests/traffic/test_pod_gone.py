"""C8: a TCP connection whose backend is gone, with its interface or only from the slices."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from calls import Address, ask, dial
from scene import VIP_PORT, Cluster, cluster_up

from pydatapath.kernel.links import Links
from pydatapath.lab import Host

BALANCERS = {4: "203.0.113.61", 6: "2001:db8:77::61"}
VIPS = {4: "10.96.9.1", 6: "fd00:10:96::91"}
FAMILIES = pytest.mark.parametrize("family", VIPS, ids=["IPv4", "IPv6"])
SOON = 0.9  # seconds: Linux would say "no route to host" after three


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes; a service of both families by two pods of the first. New for each test: pods go."""
    networks = ("10.244.0.0/16", "fd00:10:244::/48")
    with cluster_up(f"gone-{os.getpid()}", loaded=(1, 2), dual_stack=True, cluster_cidr=networks) as made:
        pods = [made.lab.pod(1, 2), made.lab.pod(1, 3)]
        made.serve(*pods)
        apply(made, 2, 3)
        with Links(made.lab.outside.netns) as outside:
            node = made.lab.node(1)
            for family, address in BALANCERS.items():
                length, via = (128, node.address6) if family == 6 else (32, node.address)
                outside.route(f"{address}/{length}", via=via)
        yield made


def apply(cluster: Cluster, *pods: int) -> None:
    """These pods of the first node serve."""
    backends = [cluster.lab.pod(1, number) for number in pods]
    for family, vip in VIPS.items():
        cluster.apply(f"web-{family}", vip, backends, type="LoadBalancer", balancer=BALANCERS[family])


def callers(cluster: Cluster, family: int) -> dict[str, tuple[Host, Address]]:
    """Who calls, and where."""
    lab, vip, balancer = cluster.lab, (VIPS[family], VIP_PORT), (BALANCERS[family], VIP_PORT)
    return {"pod": (lab.pod(1, 1), vip), "node": (lab.node(1), vip), "outside": (lab.outside, balancer)}


def open_to_both(sockets: list[tuple[socket.socket, str]], call: tuple[Host, Address]) -> None:
    """Eight connections, or as many as it takes until both pods have some."""
    while len(sockets) < 8 or {pod for _, pod in sockets} != {"node1-pod2", "node1-pod3"}:
        assert len(sockets) < 64
        one = dial(*call)
        sockets.append((one, ""))
        sockets[-1] = (one, ask(one).name)


@FAMILIES
@pytest.mark.parametrize("order", ["slices first", "interface first"])
def test_C8_a_pod_that_is_deleted_with_its_interface(
    cluster: Cluster, figure: Callable[[str], None], family: int, order: str
):
    """The client's next packet is answered by a RST, at once and not after three seconds; others go on."""
    served: dict[str, list[tuple[socket.socket, str]]] = {}
    gone = cluster.lab.pod(1, 2)
    try:
        for name, call in callers(cluster, family).items():
            open_to_both(served.setdefault(name, []), call)
        if order == "slices first":
            apply(cluster, 3)
        with Links(cluster.lab.node(1).netns) as node:
            node.delete(gone.interface)
        cluster.kill(gone)  # too late for a FIN to reach anybody
        if order == "interface first":
            apply(cluster, 3)
        for name, sockets in served.items():
            for one, pod in sockets:
                if pod != gone.name:
                    assert ask(one).name == pod
                    continue
                start = time.monotonic()
                with pytest.raises(ConnectionResetError):
                    ask(one)
                took = time.monotonic() - start
                assert took < SOON
            figure(f"IPv{family}, pod gone, {order}: the {name} learns of it in {took * 1000:.1f} ms")
    finally:
        for one, _ in (one for sockets in served.values() for one in sockets):
            one.close()


@FAMILIES
def test_C8_a_pod_only_taken_out_of_the_slices_keeps_its_connections(cluster: Cluster, family: int):
    """A mistake of the control plane must not cut everybody; new connections go elsewhere."""
    made = [dial(*call) for call in callers(cluster, family).values() for _ in range(8)]
    try:
        before = [ask(one).name for one in made]
        apply(cluster, 3)
        assert [ask(one).name for one in made] == before
        assert "node1-pod2" in before
        for call in callers(cluster, family).values():
            with dial(*call) as one:
                assert ask(one).name == "node1-pod3"
    finally:
        for one in made:
            one.close()
