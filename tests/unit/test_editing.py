"""Services made by hand: what `backend add`, `drain` and `remove` make of the slices, in weights above all."""

from __future__ import annotations

from typing import Any

import pytest

from pydatapath.editing import PortSpec, add_backends, drain_backend, new_service, remove_backend
from pydatapath.errors import Conflict, ManifestError, NotFound
from pydatapath.model import EndpointSlice
from pydatapath.schema import parse

WEB = new_service("default", "web", "10.96.0.10", [PortSpec("", "TCP", 80, 8080)])
FIRST, SECOND = "10.244.1.11", "10.244.1.12"


def by_hand(*addresses: str, slices: tuple[EndpointSlice, ...] = (), weight: int = 1) -> tuple[EndpointSlice, ...]:
    return tuple(add_backends(WEB, slices, [(address, None, "") for address in addresses], weight=weight))


def of_a_manifest(*addresses: str, **annotations: str) -> EndpointSlice:
    metadata: dict[str, Any] = {"name": "web-abc", "labels": {"kubernetes.io/service-name": "web"}}
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "annotations": annotations},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }
    found = parse(document, "web.yaml")
    assert isinstance(found, EndpointSlice)
    return found


def weights(*slices: EndpointSlice) -> dict[str, int]:
    return {endpoint.address: endpoint.weight for one in slices for endpoint in one.endpoints}


def test_C12_a_backend_is_added_with_its_weight() -> None:
    """The annotation stands in the slice that is made, beside those that were there."""
    made = by_hand(FIRST, weight=3)
    assert weights(*made) == {FIRST: 3}
    assert weights(*by_hand(SECOND, slices=made)) == {FIRST: 3, SECOND: 1}


def test_C12_without_a_weight_a_slice_has_no_annotation() -> None:
    """It is as it was before there were weights."""
    (made,) = by_hand(FIRST)
    assert "annotations" not in made.manifest["metadata"]


def test_C12_a_weight_that_cannot_be_is_refused() -> None:
    """For a caller from Python as for a manifest."""
    with pytest.raises(ManifestError, match="1001 is not a weight"):
        by_hand(FIRST, weight=1001)


@pytest.mark.parametrize("port", [None, 8080])
def test_C12_a_backend_drains_wherever_it_stands(port: int | None) -> None:
    """In slices by hand and of manifests; the other backends and slices are left alone."""
    slices = [*by_hand(FIRST, SECOND), of_a_manifest(FIRST, team="shop")]
    drained = drain_backend(WEB, slices, FIRST, port)
    assert [one.name for one in drained] == ["web-by-hand-8080", "web-abc"]
    assert [weights(one) for one in drained] == [{FIRST: 0, SECOND: 1}, {FIRST: 0}]
    assert drained[1].manifest["metadata"]["annotations"]["team"] == "shop"
    assert [one.name for one in drain_backend(WEB, slices, SECOND, port)] == ["web-by-hand-8080"]


@pytest.mark.parametrize(("address", "port"), [("10.244.1.13", None), (FIRST, 9090)])
def test_C12_what_is_no_backend_does_not_drain(address: str, port: int | None) -> None:
    """The sentence names the service and the backend as it was typed."""
    text = address if port is None else f"{address}:{port}"
    with pytest.raises(NotFound, match=f"^Service default/web has no backend {text}$"):
        drain_backend(WEB, by_hand(FIRST), address, port)


def test_C12_a_backend_that_drains_is_put_back_by_adding_it() -> None:
    """It takes new flows again, with the weight that is given now; no second slice has it."""
    slices = [of_a_manifest(FIRST)]
    drained = drain_backend(WEB, slices, FIRST, None)
    assert weights(*by_hand(FIRST, slices=tuple(drained))) == {FIRST: 1}
    (again,) = by_hand(FIRST, slices=tuple(drained), weight=5)
    assert (again.name, weights(again)) == ("web-abc", {FIRST: 5})


@pytest.mark.parametrize("weight", [1, 3])
def test_a_backend_that_serves_is_not_added_again(weight: int) -> None:
    """Whatever its weight: one is a mistake of the two."""
    with pytest.raises(Conflict, match=f"^Service default/web has the backend {FIRST} already$"):
        by_hand(FIRST, slices=by_hand(FIRST, weight=weight), weight=2)


def test_C12_a_weight_goes_with_its_backend() -> None:
    """A backend that is removed and added again begins anew."""
    slices = by_hand(SECOND, slices=by_hand(FIRST, weight=3))
    kept, emptied = remove_backend(WEB, slices, FIRST, None)
    assert (weights(*kept), emptied) == ({SECOND: 1}, [])
    assert weights(*by_hand(FIRST, slices=tuple(kept))) == {FIRST: 1, SECOND: 1}
