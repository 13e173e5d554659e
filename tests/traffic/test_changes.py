"""Backends come and go while connections run: who may go on goes on, who must move moves, and nobody hangs (C8, C9)."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections import Counter as Tally
from collections.abc import Iterator
from socket import SOCK_DGRAM, SOCK_STREAM

import pytest
from calls import KINDS, ask, ask_many, dial, pump
from scene import PORT, VIP_PORT, Cluster

from pydatapath.lab import Pod

CONNECTIONS = 50
NO_ANSWER = r"timed out|refused"
vips = (f"10.96.1.{number}" for number in itertools.count(1))


def backends_of(cluster: Cluster) -> tuple[Pod, Pod, Pod]:
    """Two on the client's node, one on the other."""
    return cluster.lab.pod(1, 2), cluster.lab.pod(1, 3), cluster.lab.pod(2, 2)


@pytest.fixture
def vip(cluster: Cluster) -> tuple[str, int]:
    """A service called `web` with all three backends, each time at another address."""
    address = next(vips)
    cluster.apply("web", address, backends_of(cluster))
    return address, VIP_PORT


@contextlib.contextmanager
def connections(cluster: Cluster, vip: tuple[str, int], kind: str) -> Iterator[list[tuple[socket.socket, str]]]:
    """50 connections from a pod, each with the name of the backend that answers it; each backend has some."""
    client = cluster.lab.pod(1, 1)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(dial(client, vip, KINDS[kind])) for _ in range(CONNECTIONS)]
        named = [(one, ask(one).name) for one in made]
        # without one: 3 * (2/3)^50, five times in a billion
        assert {name for _, name in named} == {pod.name for pod in backends_of(cluster)}
        yield named


@pytest.mark.parametrize("removed", [0, 2], ids=["local", "remote"])
def test_tcp_connections_outlive_the_removal_of_their_backend(cluster: Cluster, vip: tuple[str, int], removed: int):
    """All 50 carry their data on, those to the removed backend too; new ones go to the others only."""
    backends = backends_of(cluster)
    others = {pod.name for pod in backends if pod is not backends[removed]}
    with connections(cluster, vip, "TCP") as before:
        cluster.apply("web", vip[0], [pod for pod in backends if pod.name in others])
        found = ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, vip, 200)
        assert found.failures == []
        assert set(found.names) == others
        pump({f"connection {number}": one for number, (one, _) in enumerate(before)}, lines=50)
        assert [ask(one).name for one, _ in before] == [name for _, name in before]


@pytest.mark.parametrize("removed", [0, 2], ids=["local", "remote"])
def test_udp_moves_at_the_next_datagram(cluster: Cluster, vip: tuple[str, int], removed: int):
    """A socket whose backend is removed is answered by another, without losing a datagram; all others stay."""
    backends = backends_of(cluster)
    gone = backends[removed].name
    with connections(cluster, vip, "UDP") as before:
        cluster.apply("web", vip[0], [pod for pod in backends if pod.name != gone])
        for one, name in before:
            answers = [ask(one, f"after {number}").name for number in range(3)]
            assert len(set(answers)) == 1
            assert answers[0] != gone
            assert name in (gone, answers[0])


def test_udp_finds_the_first_backend_of_an_empty_service(cluster: Cluster, vip: tuple[str, int]):
    """No backend is left, nobody answers; one comes, and the same socket is answered (S95, C9)."""
    backend = backends_of(cluster)[0]
    with connections(cluster, vip, "UDP") as before:
        cluster.apply("web", vip[0], [])
        some = [one for one, _ in before[:5]]
        for one in some:
            one.settimeout(0.05)
            with pytest.raises(OSError, match=NO_ANSWER):
                ask(one)
            one.settimeout(5)
        cluster.apply("web", vip[0], [backend])
        assert Tally(ask(one, "again").name for one in some) == {backend.name: 5}


def test_a_service_that_comes_back_takes_no_old_flow_for_its_own(cluster: Cluster, vip: tuple[str, int]):
    """Deleted and made again with other backends: the same UDP socket is answered by those."""
    backend = backends_of(cluster)[0]
    with connections(cluster, vip, "UDP") as before:
        cluster.datapaths[1].delete([("Service", "default", "web")])
        one = next(one for one, name in before if name != backend.name)
        one.settimeout(0.05)
        with pytest.raises(OSError, match=NO_ANSWER):
            ask(one)
        one.settimeout(5)
        cluster.apply("web", vip[0], [backend])
        assert ask(one, "again").name == backend.name


def test_changes_without_pause_lose_no_call(cluster: Cluster, vip: tuple[str, int]):
    """Backends come and go thirty times while pods call, one of them staying: every call is answered."""
    stays, *others = backends_of(cluster)
    with connections(cluster, vip, "TCP") as before:
        for number in range(30):
            cluster.apply("web", vip[0], [stays, *others[: number % 3]])
            found = ask_many(cluster.lab.pod(1, 1), SOCK_DGRAM if number % 2 else SOCK_STREAM, vip, 10)
            assert found.failures == []
        assert [ask(one).name for one, _ in before] == [name for _, name in before]


def test_a_backend_that_dies_is_noticed(cluster: Cluster, vip: tuple[str, int]):
    """Its connections end at once, new ones to it are refused at once, those to others go on."""
    dying = cluster.lab.pod(1, 2)
    with connections(cluster, vip, "TCP") as before:
        cluster.kill(dying)
        try:
            for one, name in before:
                start = time.monotonic()
                if name == dying.name:
                    with contextlib.suppress(ConnectionResetError):
                        assert one.recv(100) == b""
                else:
                    assert ask(one).name == name
                assert time.monotonic() - start < 1
            found = ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, vip, 60)
            assert found.seconds < 3
            assert {text.split("] ")[1] for text in found.failures} == {"Connection refused"}
            assert dying.name not in found.names
            cluster.apply("web", vip[0], [pod for pod in backends_of(cluster) if pod != dying])
            assert ask_many(cluster.lab.pod(1, 1), SOCK_STREAM, vip, 60).failures == []
        finally:
            cluster.serve(dying)


def test_a_backend_shared_by_two_services_leaves_one(cluster: Cluster, vip: tuple[str, int]):
    """UDP flows of the service that keeps the backend stay there."""
    backend = backends_of(cluster)[0]
    other_vip = (next(vips), VIP_PORT)
    cluster.apply("other", other_vip[0], [backend])
    client = cluster.lab.pod(1, 1)
    with dial(client, other_vip, SOCK_DGRAM) as kept, dial(client, (backend.address, PORT), SOCK_DGRAM) as direct:
        assert ask(kept).name == ask(direct).name == backend.name
        cluster.apply("web", vip[0], [])
        assert ask(kept).name == ask(direct).name == backend.name
        cluster.apply("other", other_vip[0], [])
        assert ask(direct).name == backend.name
