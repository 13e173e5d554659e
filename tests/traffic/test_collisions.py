"""One port of a client, to a backend directly and through the VIP at once: two connections, two streams of data (N93).

Both nodes are loaded: what is plain on the client's node passes the other node's datapath, too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
from calls import KINDS, Answer, ask, dial, pump, volley
from scene import PORT, VIP_PORT, Cluster

from pydatapath.lab import Host, Pod

VIPS = {"local": "10.96.0.40", "remote": "10.96.0.41"}
OTHER_VIPS = {"local": "10.96.0.42", "remote": "10.96.0.43"}
ports = itertools.count(30_000)


def backend_of(cluster: Cluster, place: str) -> Pod:
    """The only backend of the service of this place."""
    return cluster.lab.pod(1, 2) if place == "local" else cluster.lab.pod(2, 2)


@pytest.fixture(scope="module", autouse=True)
def services(both_loaded: Cluster) -> None:
    """For each place two services with the same backend."""
    for place, vip in VIPS.items():
        both_loaded.apply(place, vip, [backend_of(both_loaded, place)])
        both_loaded.apply(f"{place}-too", OTHER_VIPS[place], [backend_of(both_loaded, place)])


def client_of(cluster: Cluster, name: str) -> tuple[Host, str]:
    """Who calls, and from which address: the node by its bridge's, as its calls to services do."""
    if name == "pod":
        return cluster.lab.pod(1, 1), cluster.lab.pod(1, 1).address
    return cluster.lab.node(1), cluster.lab.node(1).gateway


def carry_on(kind: str, first, second) -> None:
    """Both connections at work at the same time, to the end."""
    if kind == "TCP":
        pump({"first": first, "second": second})
    else:
        volley({"first": first, "second": second})


@contextlib.contextmanager
def two_calls(cluster: Cluster, client: str, kind: str, targets: list[tuple[str, int]]) -> Iterator[list[Answer]]:
    """Two connections from the same port, opened one after the other; both work, before and after the block."""
    host, address = client_of(cluster, client)
    own = (address, next(ports))
    with dial(host, targets[0], KINDS[kind], own) as first:
        answers = [ask(first, "I am first")]
        with dial(host, targets[1], KINDS[kind], own) as second:
            answers += [ask(second, "I am second"), ask(first, "I am still first")]
            carry_on(kind, first, second)
            yield answers
            assert ask(first, "at the end").name == answers[0].name


@pytest.mark.parametrize("order", ["VIP first", "direct first"])
@pytest.mark.parametrize("client", ["pod", "node"])
@pytest.mark.parametrize("place", VIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_directly_and_by_the_vip_at_once(both_loaded: Cluster, kind: str, place: str, client: str, order: str):
    """The second of the two is seen with another port by the backend, and neither ever gets the other's data."""
    backend = backend_of(both_loaded, place)
    targets = [(VIPS[place], VIP_PORT), (backend.address, PORT)]
    if order == "direct first":
        targets.reverse()
    with two_calls(both_loaded, client, kind, targets) as answers:
        first, second, again = answers
        assert first.name == second.name == backend.name
        assert first.seen == again.seen == first.own
        assert second.seen != first.seen


@pytest.mark.parametrize("client", ["pod", "node"])
@pytest.mark.parametrize("place", VIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_by_two_vips_at_once(both_loaded: Cluster, kind: str, place: str, client: str):
    """Two services with the same backend, one client port (N94)."""
    targets = [(VIPS[place], VIP_PORT), (OTHER_VIPS[place], VIP_PORT)]
    with two_calls(both_loaded, client, kind, targets) as answers:
        first, second, again = answers
        assert first.seen == again.seen == first.own
        assert second.seen != first.seen


@pytest.mark.parametrize("place", VIPS)
def test_a_port_is_used_again_at_once(both_loaded: Cluster, place: str):
    """A connection by the VIP that has just been closed leaves nothing that a direct one could trip over (N95)."""
    client, backend = both_loaded.lab.pod(1, 1), backend_of(both_loaded, place)
    for target in [(VIPS[place], VIP_PORT), (backend.address, PORT)] * 5:
        own = (client.address, 29_999)
        with dial(client, target, own=own) as calling:
            assert ask(calling).name == backend.name
            pump({"again": calling}, lines=20)
            calling.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: reset, no TIME_WAIT in the client
