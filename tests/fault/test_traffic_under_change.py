"""Backends come and go, programs are exchanged, options change: who is connected does not notice.

PYDATAPATH_BIG=1 pytest tests/fault/test_traffic_under_change.py     200 applies, 50 upgrades, 20 other options
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest
from rows import tell
from scene import BIG, Cluster, cluster_up
from streaming import (
    IPERF_RATE,
    SEQUENCE_PORT,
    STREAMED,
    TALKERS,
    Account,
    Traffic,
    say,
    stream_objects,
)

from pydatapath import Datapath, Options, connecting, schema
from pydatapath.instance import Instance
from pydatapath.kernel import attach, packing, table_writes
from pydatapath.lab import Pod
from pydatapath.node import Node
from pydatapath.records import Records

Connect = Callable[..., AbstractContextManager[None]]

pytestmark = pytest.mark.timeout(900 if BIG else 400)

VIPS = ("10.96.0.90", "fd00:10:96::90")
APPLIES, UPGRADES, OTHERWISE = (200, 50, 20) if BIG else (40, 8, 4)
DATAGRAMS, RATE = (500_000, 2_500) if BIG else (60_000, 1_250)  # of two streams; of each a second
CONTROL = 100_000 if BIG else 10_000
CONTROL_CHANGES = (APPLIES // 5, UPGRADES // 4, OTHERWISE // 4)
MOVES = 3 * OTHERWISE
CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")
LOAD = (
    f"in IPv4 and as many in IPv6: {TALKERS} TCP connections that talk, new calls by TCP and UDP, {RATE} numbered"
    f" datagrams a second by the VIP and as many by SNAT; and iperf3 at {IPERF_RATE}bit/s"
)
# What may change while connections are open: no address
OTHER_OPTIONS: tuple[dict[str, Any], ...] = (
    {"algorithm": "maglev", "max_flows": 60_000},
    {"timeout": ("udp=180", "tcp-closing=120")},
    {"pod_flow_rate": "100000/60", "pod_fast_path": "always"},
    {"nat_type": "symmetric"},
    {"nat_type": "full-cone", "algorithm": "maglev", "max_backends": 65_536},
    {},
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of both families; the first is loaded, and hides its pods from the outside."""
    name = f"change-{os.getpid()}"
    with cluster_up(name, pods=4, dual_stack=True, cluster_cidr=CLUSTER, masquerade=True) as made:
        made.serve(*(pod for pod in made.lab.pods if pod.number > 1))
        yield made


def staying(cluster: Cluster) -> Pod:
    return cluster.lab.pod(1, 2)


def coming_and_going(cluster: Cluster) -> list[Pod]:
    return [cluster.lab.pod(1, 3), cluster.lab.pod(1, 4), cluster.lab.pod(2, 2), cluster.lab.pod(2, 3)]


def apply(datapath: Datapath, pods: list[Pod]) -> None:
    made = [*stream_objects("streams", VIPS[0], pods), *stream_objects("streams6", VIPS[1], pods)]
    datapath.apply(schema.parse(one, "test") for one in made)


def load(cluster: Cluster, number: int = 1, **more: Any) -> None:
    """As Cluster.load, without a handle that stays."""
    node = cluster.lab.node(number).netns
    options = Options(node_name=node, cluster_cidr=CLUSTER, masquerade=True, **more)
    Datapath.load(options, netns=node).close()


def traffic(cluster: Cluster, targets: tuple[str, str] = VIPS, datagrams: int = 0) -> Traffic:
    """As the test's first line says; all begin while the backend that stays is the only one. `datagrams`: at least, by
    two streams.
    """
    lab = cluster.lab
    others, each = coming_and_going(cluster), datagrams // 2
    return Traffic(lab.pod(1, 1), targets, staying(cluster), lab.outside, others, RATE, each)


@dataclass
class Changes:
    """What is done to a node while traffic runs, evenly over the time that it needs."""

    cluster: Cluster
    number: int
    applies: int
    upgrades: int
    otherwise: int

    def run(self, seconds: float) -> None:
        """Does all of it, in an order by chance but the same each time."""
        chance = Random(1)
        steps: list[Callable[[], None]] = [self._apply(chance) for _ in range(self.applies)]
        steps += [partial(load, self.cluster, self.number)] * self.upgrades
        others = (OTHER_OPTIONS[place % len(OTHER_OPTIONS)] for place in range(self.otherwise))
        steps += [partial(load, self.cluster, self.number, **more) for more in others]
        chance.shuffle(steps)
        began = time.monotonic()
        for place, step in enumerate(steps, 1):
            step()
            time.sleep(max(0.0, began + seconds * place / len(steps) - time.monotonic()))

    def _apply(self, chance: Random) -> Callable[[], None]:
        others = [pod for pod in coming_and_going(self.cluster) if chance.random() < 0.5]
        pods = [staying(self.cluster), *others]
        chance.shuffle(pods)

        def step() -> None:
            with Datapath.open(netns=self.cluster.lab.node(self.number).netns) as datapath:
                apply(datapath, pods)

        return step


def assert_nothing_noticed(account: Account, repeats: int) -> None:
    tell(
        repeats=repeats,
        sent=account.sent,
        lost_max=account.lost,
        misdelivered=account.strays + account.twice,
        gap_ms_max=round(account.silence, 1),
        broken=len(account.broken),
        new_failed=len(account.failed),
    )
    assert account.broken == []
    assert account.failed == []
    assert (account.lost, account.strays, account.twice, account.refused) == (0, 0, 0, 0)


@pytest.fixture(scope="module")
def control(cluster: Cluster) -> Account:
    """What is lost of the same traffic on a node without us, while the other node changes as before."""
    lab = cluster.lab
    cluster.datapaths.pop(1).unload()
    cluster.load(2, cluster_cidr=CLUSTER, masquerade=True)
    apply(cluster.datapaths[2], [staying(cluster)])
    node, stays = lab.node(1), staying(cluster)
    back = [[node.pod_cidr, "via", node.address], [node.pod_cidr6, "via", node.address6]]
    for way in back:
        lab.outside.exec(["ip", "route", "add", *way], check=True)
    try:
        with traffic(cluster, (stays.address, stays.address6), CONTROL) as running:
            Changes(cluster, 2, *CONTROL_CHANGES).run(CONTROL / RATE / 2)
            return running.end()
    finally:
        for way in back:
            lab.outside.exec(["ip", "route", "del", *way], check=True)
        cluster.datapaths.pop(2).unload()
        cluster.load(1, cluster_cidr=CLUSTER, masquerade=True)


def test_F1_F2_who_is_connected_notices_no_change(
    cluster: Cluster, control: Account, capsys: pytest.CaptureFixture[str]
):
    """No connection breaks, no datagram is lost or goes astray, every new call is answered, no count is forgotten."""
    apply(cluster.datapaths[1], [staying(cluster)])
    before = cluster.datapaths[1].status().counters
    with traffic(cluster, datagrams=DATAGRAMS) as running:
        apply(cluster.datapaths[1], [staying(cluster), *coming_and_going(cluster)])
        Changes(cluster, 1, APPLIES, UPGRADES, OTHERWISE).run(DATAGRAMS / RATE / 2)
        account = running.end()
    what = f"{APPLIES} applies, {UPGRADES} upgrades, {OTHERWISE} with other options"
    say(capsys, f"{what}: {account}")
    for why in account.failed + account.broken:  # what we know of it, for whoever looks for the cause
        port = re.search(r"port (\d+)", why)
        flows = [one for one in cluster.datapaths[1].flows() if port and one.original.sport == int(port[1])]
        say(capsys, f"{why}: {flows}; {cluster.datapaths[1].status().counters}")
    tell(control_lost_max=control.lost)
    assert_nothing_noticed(account, APPLIES + UPGRADES + OTHERWISE)
    assert account.sent >= 2 * DATAGRAMS
    assert all(len(names) > 1 for names in account.names), "new calls are shared by all that come and go"
    with Datapath.open(netns=cluster.lab.node(1).netns) as datapath:
        # By the number of its port alone a call by TCP could be taken for a stream
        streams = [one for one in datapath.flows() if one.protocol == "UDP" and one.original.dport == SEQUENCE_PORT]
        packets = {f"{one.original.src}:{one.original.sport}": one.packets[0] for one in streams}
        for stream in STREAMED:
            # Every packet is counted, once; but for one that comes just when a map of another size takes over
            missing = account.sent_by[stream] - packets[account.own_ends[stream]]
            assert 0 <= missing <= MOVES
        after = datapath.status().counters
    assert all(after[name] >= count for name, count in before.items())
    # Every second one is by UDP, and may find the flow of an earlier one by the same port
    assert after["new_flow"] - before["new_flow"] >= account.calls // 2 - len(account.failed)


def test_as_much_is_lost_over_the_bare_bridge(control: Account, capsys: pytest.CaptureFixture[str]):
    """The control: the same traffic on a node without us, while the other node changes as before."""
    say(capsys, f"the bare bridge: {control}")
    assert control.sent >= 2 * CONTROL
    assert_nothing_noticed(control, sum(CONTROL_CHANGES))


def detach_before_attaching(real: Connect) -> Connect:
    """A fault: for a moment no program is there. (One place alone may be empty: another program does its work.)"""

    def connected(records: Records, instance: Instance, node: Node, *more: Any) -> AbstractContextManager[None]:
        with attach.Attacher() as attacher:
            for one in node.attachments:
                there = attacher.ours(one.interface.index, one.hook, instance.name)
                attacher.remove([there] if there else [])
        return real(records, instance, node, *more)

    return connected


def test_an_exchange_that_leaves_a_gap_is_seen(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A test that can fail: with the programs taken away before the new ones are there, datagrams are lost."""
    apply(cluster.datapaths[1], [staying(cluster)])
    with monkeypatch.context() as patch, traffic(cluster) as running:
        patch.setattr(connecting, "connected", detach_before_attaching(connecting.connected))
        for _ in range(4):
            load(cluster)
        account = running.end()
    say(capsys, f"4 upgrades that detach before they attach: {account}")
    assert account.lost + account.strays > 0


def empty_run_first(real: Callable[..., None]) -> Callable[..., None]:
    """A fault: services are taken away before they come back changed."""

    def write(maps: Any, change: Any) -> None:
        keys = [(at.family, packing.pack_address(at)) for at in change.services]
        table_writes._delete(maps, "services", keys)
        time.sleep(0.02)
        real(maps, change)

    return write


def test_a_change_that_is_not_whole_is_seen(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A test that can fail: with services empty for a fiftieth of a second, new calls are refused."""
    apply(cluster.datapaths[1], [staying(cluster)])
    with monkeypatch.context() as patch, traffic(cluster) as running:
        patch.setattr(table_writes, "write", empty_run_first(table_writes.write))
        Changes(cluster, 1, 20, 0, 0).run(2)
        account = running.end()
    say(capsys, f"20 applies with services empty first: {account}")
    assert account.failed
