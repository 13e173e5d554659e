"""`load` on a loaded instance exchanges the programs; who is connected does not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from calls import KINDS, ask, ask_many, dial
from scene import VIP_PORT, Cluster

from pydatapath import Datapath, Options
from pydatapath.lab import Host, Pod

VIP = ("10.96.0.70", VIP_PORT)
RELOADS = 20


def backends_of(cluster: Cluster) -> tuple[Pod, Pod]:
    """One on the node itself, one on the other."""
    return cluster.lab.pod(1, 2), cluster.lab.pod(2, 2)


@pytest.fixture(scope="module", autouse=True)
def service(cluster: Cluster) -> None:
    """A local and a remote backend."""
    cluster.apply("web", VIP[0], backends_of(cluster))


@dataclass
class PingPong:
    """One socket that asks and asks, in a thread of its own; the longest wait for an answer, in seconds."""

    socket: socket.socket
    ending: threading.Event
    answers: int = 0
    longest: float = 0.0
    names: set[str] = field(default_factory=set)
    failure: str = ""

    def run(self) -> None:
        """Until told to end, or until something fails."""
        try:
            while not self.ending.is_set():
                start = time.monotonic()
                self.names.add(ask(self.socket, f"number {self.answers}").name)
                self.longest = max(self.longest, time.monotonic() - start)
                self.answers += 1
                time.sleep(0.001)
        except (OSError, ValueError) as error:
            self.failure = f"after {self.answers} answers: {error}"


def resent(host: Host) -> int:
    """How many TCP segments a host has sent again."""
    return int(host.exec(["nstat", "-asz", "TcpRetransSegs"], check=True).stdout.split()[-2])


def reload(cluster: Cluster) -> None:
    """As `cluster.load`, without a handle that stays."""
    node = cluster.lab.node(1).netns
    Datapath.load(Options(node_name=node), netns=node).close()


def test_reloads_under_traffic_break_nothing(cluster: Cluster, figure: Callable[[str], None]):
    """Twenty of them: no connection breaks, no datagram is lost, no backend changes, new calls are answered."""
    ending = threading.Event()
    callers: list[Host] = [cluster.lab.pod(1, 1), cluster.lab.pod(1, 2), cluster.lab.node(1)]
    players = [PingPong(dial(host, VIP, kind), ending) for host in callers for kind in KINDS.values() for _ in range(2)]
    threads = [threading.Thread(target=one.run) for one in players]
    try:
        for thread in threads:
            thread.start()
        for _ in range(RELOADS):
            reload(cluster)
            for kind in KINDS.values():
                assert ask_many(cluster.lab.pod(1, 1), kind, VIP, 20).failures == []
    finally:
        ending.set()
        for thread in threads:
            thread.join(10)
        for one in players:
            one.socket.close()
    again = sum(resent(host) for host in callers)
    broken = sum(bool(one.failure) for one in players)
    longest = max(one.longest for one in players) * 1000
    figure(
        f"{RELOADS} reloads, {len(players)} connections: {sum(one.answers for one in players)} answers,"
        f" {broken} broken, {again} segments sent again, longest wait {longest:.0f} ms"
    )
    assert [one.failure for one in players] == [""] * len(players)
    assert all(len(one.names) == 1 for one in players)


def test_a_reload_keeps_objects_and_interfaces(cluster: Cluster):
    """Services, flows and the list of interfaces are the same afterwards; there is no drift."""
    with dial(cluster.lab.pod(1, 1), VIP) as one:
        name = ask(one).name
        before = cluster.datapaths[1].status()
        reload(cluster)
        after = cluster.datapaths[1].status()
        assert ask(one).name == name
    assert (after.services, after.backends, after.drift) == (before.services, before.backends, ())
    assert [(a.name, a.role) for a in after.interfaces] == [(b.name, b.role) for b in before.interfaces]


def test_what_is_not_compiled_in_changes_without_recompiling(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """The programs that run stay, also where none are kept; what is compiled in, or the same again, makes others."""
    monkeypatch.setenv("PYDATAPATH_NO_CACHE", "1")
    node = cluster.lab.node(1).netns
    reload(cluster)
    before = running(cluster)
    for more in ({"algorithm": "maglev"}, {"algorithm": "maglev", "zone": "a"}, {"node_name": "another"}):
        options = Options(**{"node_name": node, **more})  # type: ignore[arg-type]
        Datapath.load(options, netns=node).close()
        assert (running(cluster), cluster.datapaths[1].options) == (before, options)
        assert cluster.datapaths[1].status(check=True).drift == ()
        assert cluster.datapaths[1].status().node_name == options.node_name
        assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20).failures == []
    (cluster.datapaths[1].instance.program_pins / "leave").unlink()
    reload(cluster)
    assert not before & (mended := running(cluster)), "what is lost is compiled again"
    Datapath.load(Options(node_name=node, timeout=("tcp-established=7777",)), netns=node).close()
    assert not mended & (others := running(cluster))
    reload(cluster)
    assert not others & (last := running(cluster))
    reload(cluster)
    assert not last & running(cluster)


def running(cluster: Cluster) -> set[int]:
    """The ids of the programs at the node's interfaces."""
    return {int(one["id"]) for at in cluster.datapaths[1].status().interfaces for one in at.programs}


def test_a_reload_that_cannot_be_leaves_all_as_it_was(cluster: Cluster):
    """Asked for what there is not, it refuses; traffic and status know nothing of it."""
    node = cluster.lab.node(1).netns
    before = cluster.datapaths[1].status()
    with pytest.raises(Exception, match=r"br9"):
        Datapath.load(Options(node_name=node, bridge=("br9",)), netns=node)
    assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20).failures == []
    after = cluster.datapaths[1].status()
    assert (after.interfaces, after.since, after.drift) == (before.interfaces, before.since, ())
