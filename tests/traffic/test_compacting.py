"""Room for a service where the free slots lie apart: others move, and are called all the time."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator

import pytest
from calls import KINDS, ask_many
from scene import VIP_PORT, Cluster, cluster_up, objects

from pydatapath import EndpointSlice, Service, schema
from pydatapath.kernel import packing, tables

VIPS = {name: f"10.96.0.{91 + place}" for place, name in enumerate("abcd")}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A loaded node with 64 slots."""
    with cluster_up(f"co-{os.getpid()}", nodes=1, pods=3, max_backends=16) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(1, 3))
        yield made


def weighted(cluster: Cluster, name: str, weight: int) -> list[Service | EndpointSlice]:
    """A service that needs one slot more than this weight for each of its two ports."""
    pods = [cluster.lab.pod(1, 2), cluster.lab.pod(1, 3)]
    service, backends = objects(name, VIPS[name], pods)
    manifest = copy.deepcopy(dict(backends.manifest))
    manifest["metadata"]["annotations"] = {"pydatapath.io/weights": json.dumps({pods[0].address: weight})}
    made = schema.parse(manifest, "test")
    assert isinstance(made, EndpointSlice)
    assert isinstance(service, Service)
    return [service, made]


def first_slot(cluster: Cluster, name: str) -> int:
    key = packing.pack_address(tables.Address(VIPS[name], VIP_PORT, "TCP"))
    value = cluster.datapaths[1]._maps["services"].lookup(key)
    assert value is not None
    return packing.unpack_called(value).inside.first_slot


def test_S108_a_service_finds_room_by_moving_others(cluster: Cluster):
    """24 of 64 slots are free, 20 and 4 of them in a row; two runs of 11 find room, and each service answers."""
    datapath = cluster.datapaths[1]
    for name in "abc":
        datapath.apply(weighted(cluster, name, 9))
    datapath.delete_service("b")
    before = {name: first_slot(cluster, name) for name in "ac"}
    datapath.apply(weighted(cluster, "d", 10), dry_run=True)
    assert {name: first_slot(cluster, name) for name in "ac"} == before, "a dry run moves nothing"
    datapath.apply(weighted(cluster, "d", 10))
    assert first_slot(cluster, "a") == before["a"]
    assert first_slot(cluster, "c") != before["c"]
    for name in "acd":
        for kind in KINDS.values():
            assert ask_many(cluster.lab.pod(1, 1), kind, (VIPS[name], VIP_PORT), 20).failures == []
    assert datapath.status(check=True).drift == ()
