"""Loads with other sizes are killed while maps move: the next one, a repair, an apply between find what runs."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import pytest
from calls import KINDS, ask, ask_many, dial
from moving import BEFORE, DONE, STEPS, VIP, Sockets, broken, folders, killed_load, load, recalls, sizes, talk
from rows import tell
from scene import Cluster

from pydatapath import applying, carrying
from pydatapath.errors import KernelError
from pydatapath.kernel.layout import LAYOUT_VERSION
from pydatapath.kernel.maps import Maps
from pydatapath.lab import Pod
from pydatapath.records import Records

LOAD = "ten connections of TCP and ten of UDP, which talk before and after"


def failing(*_: object) -> None:
    raise KernelError("it does not work today")


def forget_programs(cluster: Cluster) -> None:
    """As a version before this one has it."""
    with Records(cluster.datapaths[1].instance.records) as records:
        records._db.execute("DELETE FROM facts WHERE name = 'programs'")


def untracked(cluster: Cluster, sockets: Sockets) -> set[int]:
    """The client's ports of those connections that the flow table does not have."""
    tracked = {one.original.sport for one in cluster.datapaths[1].flows()}
    return {one.getsockname()[1] for one in sockets.values()} - tracked


@pytest.mark.parametrize("step", BEFORE)
def test_F30_a_move_that_is_killed_is_finished_by_the_next_load(
    cluster: Cluster, sockets: Sockets, later: Sockets, monkeypatch: pytest.MonkeyPatch, step: str
):
    """Killed before the programs are exchanged: what they do until the next load is carried then."""
    names = talk(sockets)
    killed_load(cluster, monkeypatch, step, max_flows=2048)
    tell(repeats=1)
    assert broken(sockets, names) == []
    later.update({f"{kind} new": dial(cluster.lab.pod(1, 1), VIP, KINDS[kind]) for kind in KINDS})
    names.update(talk(later))
    begun = time.monotonic()
    load(cluster, max_flows=2048)
    tell(recovery_s=round(time.monotonic() - begun, 2))
    assert (sizes(cluster)[0], folders(cluster)) == (4096, {f"maps_v{LAYOUT_VERSION}", "programs"})
    assert untracked(cluster, sockets | later) == set()
    assert broken(sockets | later, names) == []


def used_port(cluster: Cluster, backend: Pod) -> int:
    """A client's port, by which it has called the service when this was its only backend."""
    cluster.apply("web", VIP[0], [backend])
    with dial(cluster.lab.pod(1, 1), VIP) as first:
        assert ask(first).name == backend.name
        # Closed by a RST: no TIME_WAIT holds the port
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return int(first.getsockname()[1])


def dial_again(cluster: Cluster, port: int) -> socket.socket:
    """A connection by a port of the client's that was used before."""
    pod = cluster.lab.pod(1, 1)
    return dial(pod, VIP, own=(pod.address, port))


@pytest.mark.parametrize("mended", ["load", "repair"])
@pytest.mark.parametrize("options", [{"max_flows": 2048}, {"max_backends": 1024}], ids=["flows", "backends"])
def test_F30_what_a_killed_load_has_copied_is_over(
    cluster: Cluster, later: Sockets, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], mended: str
):
    """What is applied behind it is in effect at once; and a port by which somebody had called before, and calls another
    backend since, does not lead to the first one again.
    """
    client, (_, one, other) = cluster.lab.pod(1, 1), cluster.lab.pods
    port = used_port(cluster, one)
    before = sizes(cluster)
    killed_load(cluster, monkeypatch, "connected", **options)
    cluster.apply("web", VIP[0], [other])
    assert sizes(cluster) == before, "what runs is in its place"
    assert ask_many(client, KINDS["TCP"], VIP, 20).names.keys() == {other.name}
    later["again"] = dial_again(cluster, port)
    assert talk(later) == {"again": other.name}
    if mended == "load":
        load(cluster, **options)
    else:
        repaired(cluster)
    tell(repeats=1, load="one connection by a port that was used before")
    assert broken(later, {"again": other.name}) == []
    assert folders(cluster) == {f"maps_v{LAYOUT_VERSION}", "programs"}
    assert cluster.datapaths[1].status().drift == ()


def test_F30_a_reused_port_leads_to_its_new_backend_without_an_apply(
    cluster: Cluster, later: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """As above, where the load itself is the first to find what the killed one has left."""
    one, other = cluster.lab.pods[1:]
    port = used_port(cluster, one)
    killed_load(cluster, monkeypatch, "connected", max_flows=2048)
    with monkeypatch.context() as patched:  # the plan's maps are those that run, whatever the others are
        patched.setattr(carrying, "restore", lambda _: None)
        cluster.apply("web", VIP[0], [other])
    later["again"] = dial_again(cluster, port)
    assert talk(later) == {"again": other.name}
    load(cluster, max_flows=2048)
    tell(repeats=1, load="one connection by a port that was used before")
    assert broken(later, {"again": other.name}) == []


def test_F30_what_opened_while_a_load_failed_that_was_killed_then(
    cluster: Cluster, later: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """The new programs ran for a moment, and those of before hang again: what opened meanwhile goes on."""
    one = later["TCP"] = cluster.lab.pod(1, 1).socket(socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(5)
    real, times = carrying.Move.catch_up, iter((False, True))

    def opens(move: carrying.Move, maps: Maps) -> None:
        real(move, maps)
        if next(times):
            one.connect(VIP)
            talk(later)
            failing()

    with monkeypatch.context() as patched:
        patched.setattr(carrying.Move, "catch_up", opens)
        killed_load(cluster, patched, "switch_back", max_flows=2048)
    load(cluster, max_backends=1024)
    tell(repeats=1, load="one connection that opened meanwhile")
    assert untracked(cluster, later) == set()
    assert broken(later, talk(later)) == []


@pytest.mark.parametrize("step", ["_runs", "_keep"])  # the first asks, behind the exchange, what hangs now
def test_F30_behind_the_exchange_the_new_maps_stay(
    cluster: Cluster, sockets: Sockets, later: Sockets, monkeypatch: pytest.MonkeyPatch, step: str
):
    """What is applied then is in effect, too, and what was open and what opens is carried on."""
    names = talk(sockets)
    killed_load(cluster, monkeypatch, step, max_flows=2048, max_backends=1024)
    later["new"] = dial(cluster.lab.pod(1, 1), VIP)
    names.update(talk(later))
    cluster.apply("web", VIP[0], cluster.lab.pods[1:2])
    assert sizes(cluster) == (4096, 1024)
    assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20).names.keys() == {cluster.lab.pods[1].name}
    cluster.apply("web", VIP[0], cluster.lab.pods[1:])
    load(cluster, max_flows=2048, max_backends=1024)
    tell(repeats=1)
    assert untracked(cluster, sockets | later) == set()
    # C9: what UDP's backend was, the next datagram chooses again
    stay = later | {label: one for label, one in sockets.items() if one.type == socket.SOCK_STREAM}
    assert broken(stay, names) == []


def test_what_is_recorded_and_not_in_effect_is_applied_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """A killed load has planned its copy: of what is in the maps that run instead the records know nothing."""
    killed_load(cluster, monkeypatch, "connected", max_backends=40_000, algorithm="maglev")
    with Records(cluster.datapaths[1].instance.records) as records:
        assert not records.get(applying.UNFINISHED)
    cluster.apply("web", VIP[0], cluster.lab.pods[1:])  # unchanged
    with (
        Records(cluster.datapaths[1].instance.records) as records,
        Maps(cluster.datapaths[1].instance.map_pins) as maps,
    ):
        assert applying.pending(records, maps)[0].empty


def repaired(cluster: Cluster) -> list[str]:
    """What a repair found and mended."""
    begun = time.monotonic()
    found = cluster.datapaths[1].repair()
    tell(repeats=1, recovery_s=round(time.monotonic() - begun, 2))
    return found


def hanging(cluster: Cluster) -> list[int]:
    """The ids of the programs at interfaces."""
    return [one["id"] for at in cluster.datapaths[1].status().interfaces for one in at.programs]


@pytest.mark.parametrize("by", ["this version", "the one before"])
@pytest.mark.parametrize("step", STEPS)
def test_F11_F30_a_move_that_is_killed_is_mended_by_repair(
    cluster: Cluster, sockets: Sockets, later: Sockets, monkeypatch: pytest.MonkeyPatch, step: str, by: str
):
    """It makes what the records say: all as before where they were not written yet, else what the load had done. What
    was opened since is known still, and where only names were to be changed no program is another one.
    """
    names = talk(sockets)
    killed_load(cluster, monkeypatch, step, max_flows=2048, max_backends=40_000, algorithm="maglev")
    if by == "the one before":
        forget_programs(cluster)
    assert talk(sockets) == names
    later.update({f"{kind} new": dial(cluster.lab.pod(1, 1), VIP, KINDS[kind]) for kind in KINDS})
    names.update(talk(later))
    datapath, before = cluster.datapaths[1], hanging(cluster)
    left = folders(cluster) - {f"maps_v{LAYOUT_VERSION}", "programs"}
    told = {f"a load that was killed has left {one} behind" for one in left}
    assert told <= {one.removesuffix(": `pydatapath repair` mends it") for one in datapath.status().drift}
    assert told <= {*repaired(cluster)}
    wanted = (4096, 40_000) if step in DONE else (262_144, 65_536)
    assert (sizes(cluster), folders(cluster)) == (wanted, {f"maps_v{LAYOUT_VERSION}", "programs"})
    assert not recalls(cluster)
    assert (datapath.options.max_flows == 2048) == (step in DONE)
    assert datapath.status().drift == ()
    assert untracked(cluster, sockets | later) == set()
    assert broken(sockets | later, names) == []
    if by == "this version":
        assert hanging(cluster) == before, "nothing is compiled, or exchanged"
    cluster.apply("web", VIP[0], cluster.lab.pods[1:2])
    assert ask_many(cluster.lab.pod(1, 1), KINDS["TCP"], VIP, 20).names.keys() == {cluster.lab.pods[1].name}
    assert datapath.repair() == []


def test_F11_another_load_after_one_that_was_killed_may_fail(
    cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """What it puts back are the programs of the records, and not what is still in their place."""
    killed_load(cluster, monkeypatch, "_keep", max_flows=2048)
    names, before = talk(sockets), hanging(cluster)
    with monkeypatch.context() as patched:
        patched.setattr(carrying.Move, "catch_up", failing)
        with pytest.raises(KernelError):
            load(cluster, max_backends=1024)
    assert (hanging(cluster), sizes(cluster)) == (before, (4096, 65_536))
    repaired(cluster)  # what the first has left
    assert (hanging(cluster), cluster.datapaths[1].status().drift) == (before, ())
    assert talk(sockets) == names


def test_F11_a_load_that_is_killed_and_compiles_nothing_is_mended_by_repair(
    cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
):
    """It leaves no folder; what services are planned for is not what the load before was told."""
    names, before = talk(sockets), hanging(cluster)
    killed_load(cluster, monkeypatch, "connected", algorithm="maglev", zone="a")
    found = [
        "services are planned for the zone 'a', which no load that was finished was told",
        "services are planned for the algorithm 'maglev', which no load that was finished was told",
    ]
    datapath = cluster.datapaths[1]
    assert [one.removesuffix(": `pydatapath repair` mends it") for one in datapath.status().drift] == found
    assert repaired(cluster) == found
    assert (hanging(cluster), datapath.status().drift, datapath.repair()) == (before, (), [])
    with Records(datapath.instance.records) as records:
        assert (records.get("zone"), records.get("algorithm")) == ("", "random")
    assert talk(sockets) == names
