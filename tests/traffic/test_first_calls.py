"""The very first packet, to a pod that nobody has heard of yet: it waits while the kernel asks for the address."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from calls import KINDS, ask, dial
from scene import VIP_PORT, Cluster, cluster_up

from pydatapath.lab import Host


@pytest.fixture(params=["from a pod", "from the node"])
def caller(request: pytest.FixtureRequest, fresh: Cluster) -> Host:
    """Who calls; in a lab of its own, where nobody has called before."""
    return fresh.lab.pod(1, 1) if request.param == "from a pod" else fresh.lab.node(1)


@pytest.fixture
def fresh() -> Iterator[Cluster]:
    """A cluster whose pods listen and have never sent a packet."""
    with cluster_up(f"first-{os.getpid()}") as made:
        made.serve(*(pod for pod in made.lab.pods if pod.number > 1))
        yield made


def test_the_first_packet_arrives(fresh: Cluster, caller: Host):
    """Once, at once, and from the caller's own port: nothing is lost, sent again, or translated twice on its way."""
    node = fresh.lab.node(1)
    remote_first = [fresh.lab.pod(2, 2), fresh.lab.pod(1, 2), fresh.lab.pod(1, 3), fresh.lab.pod(2, 3)]
    assert node.exec(["ip", "-4", "neigh", "show", "nud", "reachable"], check=True).stdout == ""
    for number, (backend, kind) in enumerate(zip(remote_first, ["UDP", "UDP", "TCP", "TCP"], strict=True)):
        vip = (f"10.96.4.{number}", VIP_PORT)
        fresh.apply(f"first{number}", vip[0], [backend])
        with dial(caller, vip, KINDS[kind]) as calling:
            answer = ask(calling)
            assert (answer.name, answer.seen[1]) == (backend.name, answer.own[1])
            resent = caller.exec(["nstat", "-asz", "TcpRetransSegs"], check=True).stdout.split()[-2]
            assert (kind, resent) == (kind, "0")
    flows = [one for one in fresh.datapaths[1].flows() if one.nat == "none"]
    assert flows == [], "what was translated is not entered again as a plain flow"
