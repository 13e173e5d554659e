"""What is played on while maps move: a node whose connections talk before and after, loads with other sizes, and one
that is killed on its way.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import KINDS, ask, dial
from rows import tell_worst
from scene import VIP_PORT, Cluster, cluster_up

from pydatapath import Datapath, Options, carrying, connecting, loading
from pydatapath.kernel import libbpf, recalling, restoring
from pydatapath.kernel.attach import Attacher
from pydatapath.kernel.cache import WALKS
from pydatapath.kernel.layout import LAYOUTS, RECALL, Family, tail_place
from pydatapath.kernel.maps import Maps

__all__ = [
    "BEFORE",
    "DONE",
    "FLOW",
    "STEPS",
    "VIP",
    "Sockets",
    "broken",
    "cluster",
    "folders",
    "killed_load",
    "later",
    "load",
    "packets",
    "pins",
    "recalls",
    "sizes",
    "sockets",
    "talk",
]

VIP = ("10.96.0.91", VIP_PORT)
FLOW = LAYOUTS[Family.IPV4].flow.struct
Sockets = dict[str, Any]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node with a service of two backends, that hides its pods from the outside."""
    with cluster_up(f"carry-{os.getpid()}", nodes=1, masquerade=True) as made:
        made.serve(*made.lab.pods[1:])
        made.apply("web", VIP[0], made.lab.pods[1:])
        yield made


@pytest.fixture
def later() -> Iterator[Sockets]:
    """Room for connections that begin in the middle of a load."""
    made: Sockets = {}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def sockets(cluster: Cluster) -> Iterator[Sockets]:
    """Connections of both protocols that have talked."""
    kinds = [*KINDS.items()] * 10
    made = {f"{name} {place}": dial(cluster.lab.pod(1, 1), VIP, kind) for place, (name, kind) in enumerate(kinds)}
    talk(made)
    yield made
    for one in made.values():
        one.close()


def talk(sockets: Sockets) -> dict[str, str]:
    """Who answers on each; when that returns, TCP's last acknowledgement is sent, too."""
    names = {label: ask(one, label).name for label, one in sockets.items()}
    for one in sockets.values():
        if one.type == socket.SOCK_STREAM:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return names


def broken(sockets: Sockets, names: dict[str, str]) -> list[str]:
    """Those that are not answered, or by another backend than before."""
    found = []
    for label, one in sockets.items():
        try:
            name = talk({label: one})[label]
        except (OSError, ValueError) as error:
            name = repr(error)
        if name != names[label]:
            found.append(f"{label}: {name}")
    tell_worst(broken=len(found))
    return found


def load(cluster: Cluster, *, break_flows: bool = False, **more: Any) -> None:
    node = cluster.lab.node(1).netns
    options = Options(node_name=node, cluster_cidr=("10.244.0.0/16",), masquerade=True, **more)
    Datapath.load(options, netns=node, break_flows=break_flows).close()


def pins(cluster: Cluster) -> Path:
    return cluster.datapaths[1].instance.pins


def folders(cluster: Cluster) -> set[str]:
    return {path.name for path in pins(cluster).iterdir()}


def sizes(cluster: Cluster) -> tuple[int, int]:
    """How many entries `flows` and `backends` hold."""
    with Maps(cluster.datapaths[1].instance.map_pins) as maps:
        return maps["flows"].info.max_entries, maps["backends"].info.max_entries


def recalls(cluster: Cluster) -> bool:
    """Whether the programs look in another table, too."""
    with libbpf.opened(libbpf.open_pin(str(cluster.datapaths[1].instance.program_pins / WALKS))) as walks:
        return restoring._tails(walks).keys() >= {tail_place(RECALL, Family.IPV4)}


def packets(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """Of each flow, by its client's end."""
    flows = cluster.datapaths[1].flows()
    return {f"{one.protocol} {one.original.src}:{one.original.sport}": one.packets for one in flows}


# Where a load can be killed, each the function that is not called any more; from the last but two on the records are
# written, and only names are to be changed
STEPS = ("begin", "switch", "half of it", "connected", "catch_up", "end", "_keep", "half of the names")
BEFORE = STEPS[:4]  # the exchange
DONE = STEPS[-3:]


def killed_load(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, step: str, **options: Any) -> None:
    """A load that ends before a step, and does nothing any more."""
    child = os.fork()
    if not child:
        try:
            die: Callable[..., None] = lambda *_: os._exit(7)  # noqa: E731
            halves = {"half of it": "_next_", "half of the names": "programs_"}
            if step in halves:
                real, part = Path.rename, halves[step]
                monkeypatch.setattr(Path, "rename", lambda self, to: die() if part in self.name else real(self, to))
            else:
                owners = {"connected": connecting, "_keep": loading, "_runs": Attacher}
                owners |= dict.fromkeys(("begin", "end"), recalling)
                monkeypatch.setattr(owners.get(step, carrying.Move), step, die)
            load(cluster, **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
