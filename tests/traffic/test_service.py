"""A pod calls a service: everyone is answered, rightly, by all backends alike. PYDATAPATH_BIG=1 makes it 20,000."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection

import pytest
from calls import KINDS, Answers, ask_many
from scene import BIG, VIP_PORT, Cluster

from pydatapath.kernel import links
from pydatapath.lab import Pod
from pydatapath.lab.netfilter import traces

VIP = ("10.96.0.10", VIP_PORT)
CALLS = 20_000 if BIG else 3_000
CHI_SQUARE = 27.6  # of 2 degrees of freedom, exceeded once in a million runs


def backends_of(cluster: Cluster) -> tuple[Pod, Pod, Pod]:
    """Two on the node itself, one on the other."""
    return cluster.lab.pod(1, 2), cluster.lab.pod(1, 3), cluster.lab.pod(2, 2)


@pytest.fixture(scope="module", autouse=True)
def service(cluster: Cluster) -> None:
    """Three backends behind VIP; a client with ports enough, for looking for a free one among 28,000 takes long."""
    links.write_sysctls(cluster.lab.pod(1, 1).netns, {"net/ipv4/ip_local_port_range": "1024 65535"})
    cluster.apply("web", VIP[0], backends_of(cluster))


def assert_even(names: Tally[str], backends: Collection[Pod]) -> None:
    """Each backend has its share, as far as chance allows (in the big run: within 5 %)."""
    assert set(names) == {pod.name for pod in backends}
    share = names.total() / len(backends)
    assert sum((count - share) ** 2 / share for count in names.values()) < CHI_SQUARE, names
    if BIG:
        assert all(abs(count - share) < 0.05 * share for count in names.values()), names


def told(what: str, found: Answers) -> str:
    """One line for the report."""
    shares = ", ".join(f"{name} {count}" for name, count in sorted(found.names.items()))
    return f"{what}: {len(found.answers)} answered, {len(found.failures)} failed, {shares}; {found.seconds:.1f} s"


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_answered_rightly(cluster: Cluster, figure: Callable[[str], None], kind: str):
    """Two local backends and a remote one share new calls evenly, answer as the VIP, and see the client itself."""
    client = cluster.lab.pod(1, 1)
    found = ask_many(client, KINDS[kind], VIP, CALLS)
    figure(told(f"{kind} pod to VIP", found))
    assert found.failures == []
    assert len(found.answers) == CALLS
    assert_even(found.names, backends_of(cluster))
    assert {one.seen[0] for one in found.answers} == {client.address}
    if kind == "TCP":
        assert all(one.seen == one.own for one in found.answers)


@pytest.mark.parametrize("kind", KINDS)
def test_two_clients_with_the_same_ports_do_not_meet(cluster: Cluster, kind: str):
    """Two pods call the same backends at once; each gets its own answers."""
    for client in (cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)):
        found = ask_many(client, KINDS[kind], VIP, 300, at_once=100)
        assert found.failures == []
        assert set(found.names) == {pod.name for pod in backends_of(cluster)}


def test_what_the_commands_show_is_what_happened(cluster: Cluster):
    """The flows of this client are counted for each backend, and the counters know no drop."""
    before = {one.name: one.flows for one in _web(cluster)}
    found = ask_many(cluster.lab.pod(1, 1), KINDS["UDP"], VIP, 90)
    assert found.failures == []
    flows = [one for one in cluster.datapaths[1].flows() if one.service and one.service.startswith("default/web")]
    assert sum(one.flows for one in _web(cluster)) - sum(before.values()) >= 80  # some ports may be used again
    assert {one.original.dst for one in flows if one.nat == "dnat"} == {VIP[0]}
    counted = cluster.datapaths[1].status().counters
    assert [name for name, count in counted.items() if name.startswith("drop") and count] == []


def _web(cluster: Cluster):
    return cluster.datapaths[1].service("web").backends


def test_netfilter_takes_no_part(cluster: Cluster):
    """No rule, no table, no tracked connection in any namespace, after all that traffic."""
    ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 100)
    for host in cluster.hosts():
        found = traces(host)
        assert found.none, f"{host.name}: {found}"
