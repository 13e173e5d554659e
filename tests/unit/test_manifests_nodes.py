"""Node manifests: what is read of them, and what is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import NODE, at, edited, refusal

from pydatapath.errors import Refused
from pydatapath.manifests import parse, read
from pydatapath.model import Node


def node(*edits: Callable[[dict[str, Any]], None]) -> Node:
    """The node, edited."""
    found = parse(edited(NODE, *edits), "test")
    assert isinstance(found, Node)
    return found


def test_a_node_is_its_addresses_its_pods_networks_and_its_zone() -> None:
    """Canonical; names are no addresses."""
    assert node() == Node(
        name="worker-2",
        pod_cidrs=("10.244.2.0/24", "fd00:10:244:2::/64"),
        internal_ips=("192.168.50.12", "2001:db8:50::12"),
        external_ips=("203.0.113.12",),
        zone="west-1a",
    )
    assert (node().namespace, node().key) == ("", "worker-2")


def test_what_a_node_does_not_say_it_has_not() -> None:
    """One that has just joined has a name alone; an old one podCIDR; k3s says one twice; networks are trimmed."""
    bare = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "new"}}
    assert parse(bare, "test") == Node("new")
    assert node(at("spec", value={"podCIDR": "10.244.2.7/24"})).pod_cidrs == ("10.244.2.0/24",)
    assert node(at("spec", value={"podCIDR": "", "podCIDRs": None})).pod_cidrs == ()
    twice = [{"type": kind, "address": "192.0.2.7"} for kind in ("InternalIP", "InternalIP", "ExternalIP", "Other")]
    found = node(at("status", "addresses", value=twice))
    assert (found.internal_ips, found.external_ips) == (("192.0.2.7",), ("192.0.2.7",))


def test_a_heartbeat_is_no_change() -> None:
    """Of the status addresses are kept, and nothing that only the API server writes; parsed again it is the same."""
    later = node(
        at("status", "conditions", value=[{"type": "Ready", "lastHeartbeatTime": "2026-11-29T12:05:00Z"}]),
        at("status", "images", value=[{"names": ["nginx"], "sizeBytes": 7}]),
        at("metadata", "resourceVersion", value="78"),
    )
    assert later.manifest == node().manifest
    assert later.manifest["status"] == {"addresses": NODE["status"]["addresses"]}
    assert "namespace" not in later.manifest["metadata"]
    assert parse(dict(later.manifest), "test") == node()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            at("metadata", "namespace", value="shop"),
            "test: Node worker-2: metadata.namespace: no namespace holds a Node",
        ),
        (at("metadata", "name", value="Worker"), "metadata.name: 'Worker' is not a DNS name"),
        (at("apiVersion", value="v2"), "apiVersion: 'v2' is not v1"),
        (at("spec", "podCIDRs", 0, value="10.244.2.0"), "spec.podCIDRs[0]: '10.244.2.0' is not a network"),
        (at("spec", "podCIDRs", value="10.244.2.0/24"), "spec.podCIDRs: a list is expected, not a string"),
        (
            at("spec", "podCIDRs", value=["10.244.2.0/24", "10.244.3.0/24"]),
            "spec.podCIDRs: there is at most one of each family",
        ),
        (
            at("spec", "podCIDRs", 0, value="0.0.0.0/0"),
            "spec.podCIDRs[0]: 0.0.0.0/0 is too wide for one node's pods (/8 at most)",
        ),
        (
            at("spec", value={"podCIDR": "10.0.0.0/7"}),
            "spec.podCIDR: 10.0.0.0/7 is too wide for one node's pods (/8 at most)",
        ),
        (
            at("spec", "podCIDRs", 1, value="fc00::/15"),
            "spec.podCIDRs[1]: fc00::/15 is too wide for one node's pods (/16 at most)",
        ),
        (
            at("spec", "podCIDR", value="10.9.0.0/24"),
            "spec.podCIDR: 10.9.0.0/24 is not the first of podCIDRs, 10.244.2.0/24",
        ),
        (
            at("status", "addresses", 0, "address", value="worker-2"),
            "status.addresses[0].address: 'worker-2' is not an IPv4 or IPv6 address",
        ),
        (
            at("status", "addresses", 0, "address", value="127.0.0.1"),
            "status.addresses[0].address: '127.0.0.1' is a loopback address, which no node can have",
        ),
        (
            at("metadata", "labels", "topology.kubernetes.io/zone", value="west/1"),
            "metadata.labels['topology.kubernetes.io/zone']: 'west/1' is not the value of a label",
        ),
    ],
)
def test_a_bad_node_is_refused_in_one_sentence(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    """With the object, by its name where that is one, and the field."""
    said = refusal(lambda: node(edit))
    assert message in said
    assert said.startswith("test: Node")
    assert "\n" not in said


def test_nodes_stand_beside_services_in_a_list(tmp_path: Path) -> None:
    """As kubectl gives them; one that is there twice is refused, by its name alone."""
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "NodeList", "items": [edited(NODE)]}))
    assert [one.name for one in read([str(path)]).objects] == ["worker-2"]
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [NODE, NODE]}))
    with pytest.raises(Refused, match=r"Node worker-2: stands in .* and again in"):
        read([str(path)])
    found = read([str(path)], keep_going=True)
    assert [fault.key for fault in found.faults] == [("Node", "", "worker-2")]
