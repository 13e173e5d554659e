"""A service, a slice, and edits of them: what the tests of manifests begin with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pydatapath.errors import DatapathError
from pydatapath.manifests import parse
from pydatapath.model import EndpointSlice, Service

Edit = Callable[[dict[str, Any]], Any]


SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
    "spec": {
        "clusterIP": "10.96.0.10",
        "ports": [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        ],
    },
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
    "endpoints": [
        {
            "addresses": ["10.244.1.11"],
            "conditions": {"ready": True},
            "nodeName": "node1",
            "targetRef": {"kind": "Pod", "name": "web-1", "namespace": "shop"},
        },
        {"addresses": ["10.244.2.11", "10.244.2.12"]},
    ],
}


NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "worker-2",
        "uid": "1c4e",
        "resourceVersion": "77",
        "labels": {"topology.kubernetes.io/zone": "west-1a", "kubernetes.io/hostname": "worker-2"},
    },
    "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.168.50.12"},
            {"type": "InternalIP", "address": "2001:DB8:50::12"},
            {"type": "ExternalIP", "address": "203.0.113.12"},
            {"type": "Hostname", "address": "worker-2"},
            {"type": "InternalDNS", "address": "worker-2.local"},
        ],
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-29T12:00:00Z"}],
    },
}


def at(*path: str | int, value: object) -> Edit:
    """An edit that puts `value` at `path`."""

    def edit(document: dict[str, Any]) -> None:
        owner: Any = document
        for step in path[:-1]:
            owner = owner.setdefault(step, {}) if isinstance(owner, dict) else owner[step]
        owner[path[-1]] = value

    return edit


def spec(**fields: object) -> Edit:
    """An edit that updates `spec`."""
    return lambda document: document["spec"].update(fields)


def port(**fields: object) -> Edit:
    """An edit that updates the first port of a Service."""
    return lambda document: document["spec"]["ports"][0].update(fields)


def endpoint(**fields: object) -> Edit:
    """An edit that updates the first endpoint of a slice."""
    return lambda document: document["endpoints"][0].update(fields)


def affinity(seconds: object) -> Edit:
    """An edit that asks for session affinity of some seconds."""
    return spec(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}})


def ranges(*networks: object) -> Edit:
    """An edit that says which networks may call the load balancer."""
    return spec(type="LoadBalancer", loadBalancerSourceRanges=list(networks))


def edited(document: dict[str, Any], *edits: Edit) -> dict[str, Any]:
    result = copy.deepcopy(document)
    for edit in edits:
        edit(result)
    return result


def named(name: str, document: dict[str, Any] = SERVICE) -> dict[str, Any]:
    return edited(document, at("metadata", "name", value=name))


def service(*edits: Edit) -> Service:
    found = parse(edited(SERVICE, *edits), "web.yaml")
    assert isinstance(found, Service)
    return found


def endpoint_slice(*edits: Edit) -> EndpointSlice:
    found = parse(edited(SLICE, *edits), "web.yaml")
    assert isinstance(found, EndpointSlice)
    return found


def refusal(action: Callable[[], object]) -> str:
    """What is wrong, in the words of the error that ends `action`."""
    with pytest.raises(DatapathError) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)
