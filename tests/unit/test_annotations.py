"""The annotations of pydatapath's own, from the manifest to the model, and every refusal a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pydatapath.annotations import weigh, weights_of
from pydatapath.errors import ManifestError
from pydatapath.model import EndpointSlice, Service
from pydatapath.schema import parse

ALGORITHM, WEIGHTS = "pydatapath.io/algorithm", "pydatapath.io/weights"
SCOPE = "pydatapath.io/affinity-scope"


def service(text: str | None, annotation: str = ALGORITHM) -> Service:
    found = parse(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "annotations": {} if text is None else {annotation: text}},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
        },
        "web.yaml",
    )
    assert isinstance(found, Service)
    return found


def slice_document(text: str | None, *addresses: str, kind: str = "IPv4") -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", **({"annotations": {WEIGHTS: text}} if text is not None else {})},
        "addressType": kind,
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def weights(text: str | None, *addresses: str, kind: str = "IPv4") -> list[int]:
    found = parse(slice_document(text, *addresses, kind=kind), "web.yaml")
    assert isinstance(found, EndpointSlice)
    return [endpoint.weight for endpoint in found.endpoints]


def test_S26_a_service_says_how_its_flows_are_shared() -> None:
    """`random`, `maglev`, or nothing: then the node decides."""
    assert [service(text).algorithm for text in ("random", "maglev")] == ["random", "maglev"]
    assert service(None).algorithm is None


@pytest.mark.parametrize("text", ["Maglev", "", "rr", "maglev "])
def test_S26_an_unknown_algorithm_is_refused_in_one_sentence(text: str) -> None:
    """File, object, field, fault and what is allowed."""
    with pytest.raises(ManifestError) as caught:
        service(text)
    where = f"web.yaml: Service default/web: metadata.annotations['{ALGORITHM}']"
    assert str(caught.value) == f"{where}: {text!r} is not random or maglev"


@pytest.mark.parametrize(("text", "scope"), [(None, "port"), ("port", "port"), ("service", "service")])
def test_C11_a_service_says_whether_its_ports_share_their_clients(text: str | None, scope: str) -> None:
    """Without a word each port has its own."""
    assert service(text, SCOPE).affinity_scope == scope


@pytest.mark.parametrize("text", ["Service", "", "ports"])
def test_C11_an_unknown_scope_is_refused_in_one_sentence(text: str) -> None:
    """As above."""
    with pytest.raises(ManifestError) as caught:
        service(text, SCOPE)
    where = f"web.yaml: Service default/web: metadata.annotations['{SCOPE}']"
    assert str(caught.value) == f"{where}: {text!r} is not port or service"


def test_C12_a_slice_gives_weights_by_address() -> None:
    """An endpoint that is not named has 1; 0 drains; addresses that are not in the slice mean nothing."""
    text = '{"10.244.1.11": 3, "10.244.1.12": 0, "10.244.1.13": 1000, "10.244.9.9": 7}'
    addresses = ("10.244.1.11", "10.244.1.12", "10.244.1.13", "10.244.1.14")
    assert weights(text, *addresses) == [3, 0, 1000, 1]
    assert weights(None, *addresses) == weights("{}", *addresses) == [1, 1, 1, 1]


def test_C12_S9_an_address_may_be_written_otherwise_than_the_endpoint() -> None:
    """Leading zeros are decimal, IPv6 has many spellings: the address counts, not its text."""
    assert weights('{"010.244.001.011": 3}', "10.244.1.11") == [3]
    assert weights('{"FD00:0::1": 0}', "fd00::1", kind="IPv6") == [0]


def test_C12_S16_the_first_address_has_the_weight() -> None:
    """Further addresses of an endpoint are not used, nor are their weights."""
    document = slice_document('{"10.244.1.12": 5}', "10.244.1.11")
    document["endpoints"][0]["addresses"].append("10.244.1.12")
    found = parse(document, "web.yaml")
    assert isinstance(found, EndpointSlice)
    assert found.endpoints[0].weight == 1


REFUSED = [
    ("", ": '' is not JSON"),
    ("10.244.1.11=3", ": '10.244.1.11=3' is not JSON"),
    ("[" * 100_000, f": '{'[' * 59}...' is not JSON"),
    ("[3]", ": a map of addresses to weights is expected, not a list"),
    ("null", ": a map of addresses to weights is expected, not null"),
    ('{"web": 3}', ": 'web' is not an IPv4 or IPv6 address"),
    ('{"127.0.0.1": 3}', ": '127.0.0.1' is a loopback address, which no service or endpoint can have"),
    ('{"\\ud800": 3}', r": '\ud800' is not an IPv4 or IPv6 address"),
    ('{"10.244.1.11": -1}', ".10.244.1.11: -1 is not a weight (0 to 1,000)"),
    ('{"10.244.1.11": 1001}', ".10.244.1.11: 1001 is not a weight (0 to 1,000)"),
    ('{"10.244.1.11": null}', ".10.244.1.11: null is not a weight (0 to 1,000)"),
    ('{"10.244.1.11": 1.5}', ".10.244.1.11: 1.5 is not a whole number"),
    ('{"10.244.1.11": NaN}', ".10.244.1.11: nan is not a whole number"),
    ('{"10.244.1.11": true}', ".10.244.1.11: a whole number is expected, not a boolean"),
    ('{"10.244.1.11": "3"}', ".10.244.1.11: a whole number is expected, not a string"),
]


@pytest.mark.parametrize(("text", "fault"), REFUSED, ids=[fault for _, fault in REFUSED])
def test_C12_bad_weights_are_refused_in_one_sentence(text: str, fault: str) -> None:
    """File, object, annotation, the address where there is one, and what is allowed."""
    with pytest.raises(ManifestError) as caught:
        weights(text, "10.244.1.11")
    assert str(caught.value) == f"web.yaml: EndpointSlice default/web-1: metadata.annotations['{WEIGHTS}']{fault}"


def test_C12_a_weight_is_written_beside_the_others() -> None:
    """Other weights and annotations stay."""
    document = slice_document('{"10.244.1.11": 3}', "10.244.1.11", "10.244.1.12")
    document["metadata"]["annotations"]["team"] = "shop"
    weigh(document, "10.244.1.12", 0)
    assert weights_of(document) == {"10.244.1.11": 3, "10.244.1.12": 0}
    assert json.loads(document["metadata"]["annotations"][WEIGHTS]) == weights_of(document)
    assert document["metadata"]["annotations"]["team"] == "shop"


def test_C12_a_weight_of_one_leaves_no_trace() -> None:
    """A slice whose weights are all 1 is the slice that never had any, so that nothing seems to have changed."""
    document = slice_document(None, "10.244.1.11")
    weigh(document, "10.244.1.11", 0)
    assert document != slice_document(None, "10.244.1.11")
    weigh(document, "10.244.1.11", 1)
    assert document == slice_document(None, "10.244.1.11")
