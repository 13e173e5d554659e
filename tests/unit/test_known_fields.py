"""Fields that a kind has not: told in a sentence, and not refused."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import NODE, SERVICE, SLICE, Edit, at, edited, endpoint, port, spec

from pydatapath import manifests
from pydatapath.known_fields import FIELDS, MOST_SENTENCES, unknown_fields
from pydatapath.model import Service

EXAMPLES = sorted(Path(__file__, "../../../examples").resolve().rglob("*.yaml"))
METADATA: dict[str, Any] = {
    "name": "web",
    "generateName": "web-",
    "namespace": "",
    "uid": "1c4e",
    "selfLink": "/api/v1/web",
    "resourceVersion": "77",
    "generation": 1,
    "creationTimestamp": "2026-11-29T12:00:00Z",
    "deletionTimestamp": "2026-11-30T12:00:00Z",
    "deletionGracePeriodSeconds": 30,
    "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
    "labels": {"anything": "goes"},
    "annotations": {"example.com/anything": "goes"},
    "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
    "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "1c4f", "controller": True}],
}
NAMED = [{"name": "a"}]
EVERYTHING: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **METADATA,
            "namespace": "default",
            "annotations": {"pydatapath.io/algorithm": "maglev", "pydatapath.io/affinity-scope": "service"},
        },
        "spec": {
            "allocateLoadBalancerNodePorts": True,
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10"],
            "externalIPs": ["192.0.2.2"],
            "externalName": "",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30081,
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "loadBalancerClass": "example.com/balancer",
            "loadBalancerIP": "192.0.2.1",
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
            "ports": [
                {
                    "appProtocol": "http",
                    "name": "http",
                    "nodePort": 30080,
                    "port": 80,
                    "protocol": "TCP",
                    "targetPort": "web",
                }
            ],
            "publishNotReadyAddresses": False,
            "selector": {"app": "web"},
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "trafficDistribution": "PreferClose",
            "type": "LoadBalancer",
        },
        "status": {
            "conditions": [{"type": "LoadBalancerPortsError", "status": "False"}],
            "loadBalancer": {
                "ingress": [
                    {
                        "hostname": "lb.example.com",
                        "ip": "192.0.2.1",
                        "ipMode": "VIP",
                        "ports": [{"error": "no", "port": 80, "protocol": "TCP"}],
                    }
                ]
            },
        },
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**METADATA, "namespace": "default", "annotations": {"pydatapath.io/weights": "{}"}},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.1.11"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "deprecatedTopology": {"anything": "goes"},
                "hints": {"forNodes": NAMED, "forZones": NAMED},
                "hostname": "web-1",
                "nodeName": "worker-1",
                "targetRef": {
                    "apiVersion": "v1",
                    "fieldPath": "",
                    "kind": "Pod",
                    "name": "web-1",
                    "namespace": "default",
                    "resourceVersion": "78",
                    "uid": "1c50",
                },
                "zone": "a",
            }
        ],
        "ports": [{"appProtocol": "http", "name": "http", "port": 8080, "protocol": "TCP"}],
    },
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": METADATA,
        "spec": {
            "configSource": {},
            "externalID": "",
            "podCIDR": "10.244.2.0/24",
            "podCIDRs": ["10.244.2.0/24"],
            "providerID": "kind://docker/kind/worker-1",
            "taints": [{"key": "a", "effect": "NoSchedule"}],
            "unschedulable": True,
        },
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.12"}], "phase": "Running"},
    },
]


def told(*documents: dict[str, Any]) -> list[tuple[tuple[str, str, str], str]]:
    return list(unknown_fields(manifests.parse(one, "test") for one in documents))


def sentences(document: dict[str, Any], *edits: Edit) -> list[str]:
    return [sentence for _, sentence in told(edited(document, *edits))]


def paths(document: object, below: str = "") -> set[str]:
    """Where something stands in a document, or in a table of names."""
    if isinstance(document, list):
        return set().union(*(paths(one, f"{below}[]") for one in document))
    if not isinstance(document, dict):
        return set()
    each = {f"{below}.{name}": value for name, value in document.items()}
    return set(each).union(*(paths(value, where) for where, value in each.items()))


def test_what_kubernetes_knows_is_known() -> None:
    """Each field of each kind, as `kubectl get -o json` gives it."""
    assert told(*EVERYTHING) == []


@pytest.mark.parametrize("document", EVERYTHING, ids=lambda one: one["kind"])
def test_what_is_known_kubernetes_knows(document: dict[str, Any]) -> None:
    """No name of the table is made up, or left out in the test above."""
    there = {path.replace("[]", "") for path in paths(document)}
    assert {path for path in paths(FIELDS[document["kind"]]) if path not in there} == set()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_have_no_unknown_field(path: Path) -> None:
    assert list(unknown_fields(manifests.read([str(path)]).objects)) == []


@pytest.mark.parametrize(
    ("document", "edit", "said"),
    [
        (SERVICE, at("specs", value={}), "specs: * (did you mean spec?)"),
        (SERVICE, spec(sesionAffinity="ClientIP"), "spec.sesionAffinity: * (did you mean sessionAffinity?)"),
        (SERVICE, spec(zzz=1), "spec.zzz: *"),
        (SERVICE, port(nodeport=30080), "spec.ports[].nodeport: * (did you mean nodePort?)"),
        (SERVICE, at("metadata", "label", value={}), "metadata.label: * (did you mean labels?)"),
        (SERVICE, at("metadata", "annotations", value={"pydatapath.io/algoritm": "maglev"}),
            "metadata.annotations['pydatapath.io/algoritm']: * (did you mean pydatapath.io/algorithm?)"),
        (SLICE, at("spec", value={}), "spec: *"),
        (SLICE, endpoint(nodename="node1"), "endpoints[].nodename: * (did you mean nodeName?)"),
        (SLICE, endpoint(conditions={"read": True}), "endpoints[].conditions.read: * (did you mean ready?)"),
        (SLICE, endpoint(hints={"forZones": [{"name": "a", "weight": 1}]}), "endpoints[].hints.forZones[].weight: *"),
        (SLICE, at("metadata", "annotations", value={"pydatapath.io/algorithm": "maglev"}),
            "metadata.annotations['pydatapath.io/algorithm']: * (it belongs to a Service)"),
        (NODE, spec(podCidr="10.0.0.0/24"), "spec.podCidr: * (did you mean podCIDR?)"),
        (SERVICE, spec(**{"\x1b[2J": 1}), "spec.'\\x1b[2J': *"),
    ],
)  # fmt: skip
def test_a_slip_is_told_with_what_may_be_meant(document: dict[str, Any], edit: Edit, said: str) -> None:
    """By its path, and quoted where a terminal would obey it."""
    found = sentences(document, edit)
    assert len(found) == 1
    assert found[0].partition(": ")[2] == said.replace("*", "is not known, and does nothing")


def test_a_field_of_many_objects_is_told_once() -> None:
    """Each of the objects has the sentence, which names the first of them and says how many there are."""
    documents = [edited(SERVICE, at("metadata", "name", value=name), spec(next=1)) for name in ("a", "b", "c")]
    found = told(SERVICE, *documents)
    assert [key[2] for key, _ in found] == ["a", "b", "c"]
    (sentence,) = {sentence for _, sentence in found}
    assert sentence.startswith(f"Service {SERVICE['metadata']['namespace']}/a and 2 more: spec.next: is not known")


def test_two_fields_of_thousands_of_objects_are_both_told() -> None:
    documents = [edited(SERVICE, at("metadata", "name", value=f"s{number}"), spec(next=1)) for number in range(3000)]
    found = dict.fromkeys(sentence for _, sentence in told(*documents, edited(SERVICE, spec(last=1))))
    assert [sentence.split(": ")[1] for sentence in found] == ["spec.next", "spec.last"]


def test_of_two_objects_of_one_name_the_last_is_meant() -> None:
    """As it is with what becomes of them."""
    assert told(edited(SERVICE, spec(next=1)), SERVICE) == []
    assert len(told(SERVICE, edited(SERVICE, spec(next=1)), edited(SERVICE, spec(next=1)))) == 1


@pytest.mark.parametrize("count", [20_000, 1_000_000])
def test_thousands_of_made_up_fields_are_not_all_told(count: int) -> None:
    """Nor does anybody wait for them, or find the terminal full."""
    found = manifests.parse(SERVICE, "test")
    spec = {
        **found.manifest["spec"],
        **{f"field-{number}-{'x' * (count < 50_000) * 1000}": 1 for number in range(count)},
    }
    hostile = replace(found, manifest={**found.manifest, "spec": spec})
    begun = time.process_time()
    said = [sentence for _, sentence in unknown_fields([hostile])]
    assert time.process_time() - begun < 10
    assert len(said) == MOST_SENTENCES
    assert max(map(len, said)) < 300


@pytest.mark.parametrize(
    "manifest", [{}, {"metadata": None}, {"metadata": {"annotations": None}}, {"spec": [{"a": 1}, 2]}]
)
def test_what_a_script_has_made_without_a_manifest_is_no_error(manifest: dict[str, Any]) -> None:
    assert all(
        sentence for _, sentence in unknown_fields([Service("default", "web", "ClusterIP", (), (), manifest=manifest)])
    )


@pytest.mark.parametrize("ports", ["text", 1, [1, "text"], {"port": 1}, [[{"a": 1}]]])
def test_what_nobody_reads_may_be_anything(ports: object) -> None:
    ingress = [{"ip": "192.0.2.1", "ports": ports}]
    assert sentences(SERVICE, at("status", value={"loadBalancer": {"ingress": ingress}})) == []
