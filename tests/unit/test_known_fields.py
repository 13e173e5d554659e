"""Fields that a kind has not: told in a sentence, and not refused."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from samples import NODE, SERVICE, SLICE, Edit, at, edited, endpoint, port, spec

from pydatapath import manifests
from pydatapath.known_fields import MOST_SENTENCES, unknown_fields

EXAMPLES = sorted(Path(__file__, "../../../examples").resolve().rglob("*.yaml"))


def told(*documents: dict[str, Any]) -> list[tuple[tuple[str, str, str], str]]:
    return list(unknown_fields(manifests.parse(one, "test") for one in documents))


def sentences(document: dict[str, Any], *edits: Edit) -> list[str]:
    return [sentence for _, sentence in told(edited(document, *edits))]


def test_what_kubernetes_exports_is_known() -> None:
    """With what the API server writes, and all that these kinds may hold."""
    everything = [
        spec(type="LoadBalancer", loadBalancerClass="example.com/x", trafficDistribution="PreferClose"),
        spec(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10}}),
        at("metadata", "managedFields", value=[{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]),
        at("metadata", "ownerReferences", value=[{"kind": "Gateway", "name": "g"}]),
        at("metadata", "labels", value={"anything": "goes"}),
        at("metadata", "annotations", value={"example.com/anything": "goes", "pydatapath.io/algorithm": "maglev"}),
        at("status", value={"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP", "ports": []}]}}),
        port(appProtocol="http"),
    ]
    hints = {"forZones": [{"name": "a"}], "forNodes": [{"name": "b"}]}
    slices = [
        endpoint(hints=hints, zone="a", hostname="web-1", deprecatedTopology={"any": "thing"}),
        at("metadata", "annotations", value={"pydatapath.io/weights": "{}"}),
    ]
    assert told(edited(SERVICE, *everything), edited(SLICE, *slices), NODE) == []


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
            "metadata.annotations['pydatapath.io/algorithm']: *"),
        (NODE, spec(podCidr="10.0.0.0/24"), "spec.podCidr: * (did you mean podCIDR?)"),
        (SERVICE, spec(**{"\x1b[2J": 1}), "spec.'\\x1b[2J': *"),
    ],
)  # fmt: skip
def test_a_slip_is_told_with_what_may_be_meant(document: dict[str, Any], edit: Edit, said: str) -> None:
    """By its path, and quoted where a terminal would obey it."""
    found = sentences(document, edit)
    assert len(found) == 1
    assert found[0].partition(": ")[2] == said.replace("*", "is no field that is known here, and does nothing")


def test_a_field_of_many_objects_is_told_once() -> None:
    """Each of the objects has the sentence, which names the first of them and says how many there are."""
    documents = [edited(SERVICE, at("metadata", "name", value=name), spec(next=1)) for name in ("a", "b", "c")]
    found = told(SERVICE, *documents)
    assert [key[2] for key, _ in found] == ["a", "b", "c"]
    (sentence,) = {sentence for _, sentence in found}
    assert sentence.startswith(f"Service {SERVICE['metadata']['namespace']}/a and 2 more: spec.next: is no field")


def test_two_fields_of_thousands_of_objects_are_both_told() -> None:
    documents = [edited(SERVICE, at("metadata", "name", value=f"s{number}"), spec(next=1)) for number in range(3000)]
    found = dict.fromkeys(sentence for _, sentence in told(*documents, edited(SERVICE, spec(last=1))))
    assert [sentence.split(": ")[1] for sentence in found] == ["spec.next", "spec.last"]


def test_thousands_of_made_up_fields_are_not_all_told() -> None:
    """Nor does anybody wait for them."""
    document = copy.deepcopy(SERVICE)
    document["spec"] |= {f"field-{number}-{'x' * 1000}": number for number in range(20_000)}
    begun = time.process_time()
    found = sentences(document)
    assert len(found) == MOST_SENTENCES
    assert max(map(len, found)) < 300
    assert time.process_time() - begun < 5
