"""Services made by hand: their addresses, and what `backend add`, `drain` and `remove` make of the slices."""

from __future__ import annotations

from typing import Any

import pytest

from pydatapath.editing import (
    PortSpec,
    add_backends,
    cluster_ips_of,
    drain_backend,
    free_cluster_ip,
    new_service,
    remove_backend,
)
from pydatapath.errors import Conflict, DatapathError, ManifestError, NotFound
from pydatapath.kernel.layout import Family
from pydatapath.model import EndpointSlice, Service
from pydatapath.schema import parse

PORTS = [PortSpec("", "TCP", 80, 8080)]
WEB = new_service("default", "web", ["10.96.0.10"], PORTS)
DUAL = new_service("default", "web", ["10.96.0.10", "fd00:10:96::20"], PORTS)
SIX = new_service("default", "web", ["fd00:10:96::20"], PORTS)
FIRST, SECOND = "10.244.1.11", "10.244.1.12"
FIRST6, SECOND6 = "fd00:10:244:1::11", "fd00:10:244:1::12"
FOUR_NETWORK, SIX_NETWORK = "10.96.0.0/12", "fd00:10:96::/112"
BOTH = (Family.IPV4, Family.IPV6)


def by_hand(
    *addresses: str, slices: tuple[EndpointSlice, ...] = (), weight: int = 1, service: Service = WEB
) -> tuple[EndpointSlice, ...]:
    return tuple(add_backends(service, slices, [(address, None, "") for address in addresses], weight=weight))


def of_a_manifest(*addresses: str, kind: str = "IPv4", **annotations: str) -> EndpointSlice:
    metadata: dict[str, Any] = {"name": "web-abc", "labels": {"kubernetes.io/service-name": "web"}}
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "annotations": annotations},
        "addressType": kind,
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


@pytest.mark.parametrize(
    ("given", "families", "networks", "found"),
    [
        pytest.param([], [], [FOUR_NETWORK, SIX_NETWORK], ["10.96.0.2"], id="IPv4 unless said otherwise"),
        pytest.param([], [], [SIX_NETWORK, FOUR_NETWORK], ["10.96.0.2"], id="whatever comes first"),
        pytest.param([], [], [SIX_NETWORK], ["fd00:10:96::2"], id="IPv6 on a node that has no other"),
        pytest.param(
            [], [Family.IPV6], [FOUR_NETWORK, SIX_NETWORK], ["fd00:10:96::2"], id="IPv6 where it is asked for"
        ),
        pytest.param([], BOTH, [FOUR_NETWORK, SIX_NETWORK], ["10.96.0.2", "fd00:10:96::2"], id="one of each"),
        pytest.param(["FD00:10:96:0::20"], [], [], ["fd00:10:96::20"], id="given, in its canonical form"),
        pytest.param(["fd00::1", "10.0.0.1"], [], [], ["fd00::1", "10.0.0.1"], id="two given, in their order"),
        pytest.param(
            ["fd00::1"], BOTH, [FOUR_NETWORK, SIX_NETWORK], ["fd00::1", "10.96.0.2"], id="one given, one free"
        ),
    ],
)
def test_a_service_by_hand_gets_addresses_of_the_families_that_are_asked_for(
    given: list[str], families: list[Family], networks: list[str], found: list[str]
) -> None:
    """Those that others have are left out; Kubernetes' habit is one family."""
    assert list(cluster_ips_of(given, families, networks, {"10.96.0.1", "fd00:10:96::1"})) == found


@pytest.mark.parametrize(
    ("networks", "family", "message"),
    [
        (["10.96.0.1/32"], Family.IPV4, "no cluster IP of IPv4 is free in the service networks"),
        (["10.96.0.1/32", "fd00::1/128"], Family.IPV6, "no cluster IP of IPv6 is free in the service networks"),
        ([FOUR_NETWORK], Family.IPV6, "no service network is of IPv6"),
    ],
)
def test_where_no_address_is_free_the_family_is_named(networks: list[str], family: Family, message: str) -> None:
    """None of the other family is taken instead."""
    with pytest.raises(DatapathError, match=f"^{message}$") as caught:
        free_cluster_ip(networks, {"10.96.0.1", "fd00::1"}, family)
    assert caught.value.hint


def test_an_address_of_a_family_that_is_not_asked_for_is_refused() -> None:
    """Of the two one is a mistake."""
    with pytest.raises(DatapathError, match=r"^the cluster IP fd00::1 is of IPv6, which is not asked for$"):
        cluster_ips_of(["fd00::1"], [Family.IPV4], [FOUR_NETWORK], ())


@pytest.mark.parametrize(
    ("service", "families", "policy"),
    [
        (WEB, ["IPv4"], "SingleStack"),
        (SIX, ["IPv6"], "SingleStack"),
        (DUAL, ["IPv4", "IPv6"], "RequireDualStack"),
    ],
)
def test_a_service_by_hand_says_its_families_as_a_manifest_does(
    service: Service, families: list[str], policy: str
) -> None:
    """So that a cluster takes what `export` gives."""
    spec = service.manifest["spec"]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (families, policy)
    assert (spec["clusterIP"], tuple(spec["clusterIPs"])) == (service.cluster_ips[0], service.cluster_ips)


def test_backends_by_hand_stand_in_a_slice_of_their_family() -> None:
    """An EndpointSlice holds addresses of one."""
    made = by_hand(FIRST, FIRST6, SECOND6, service=DUAL)
    assert {one.name: (one.address_type, [*weights(one)]) for one in made} == {
        "web-by-hand-8080": ("IPv4", [FIRST]),
        "web-by-hand-8080-ipv6": ("IPv6", [FIRST6, SECOND6]),
    }


@pytest.mark.parametrize(
    ("service", "backend", "family"), [(WEB, FIRST6, "IPv6"), (SIX, FIRST, "IPv4")], ids=["IPv4", "IPv6"]
)
def test_S8_a_backend_that_would_never_be_called_is_refused(service: Service, backend: str, family: str) -> None:
    """Each family is balanced among its own backends."""
    message = f"^Service default/web has no cluster IP of {family}: the backend {backend} would never be called$"
    with pytest.raises(DatapathError, match=message) as caught:
        by_hand(backend, service=service)
    assert f"--ip-family {family.lower()}" in caught.value.hint


@pytest.mark.parametrize("spelling", ["fd00:10:244:1::11", "FD00:10:244:1:0:0:0:11"])
def test_a_backend_is_the_same_in_every_spelling(spelling: str) -> None:
    """As it is typed, and as a manifest has it."""
    slices = [of_a_manifest(spelling, SECOND6, kind="IPv6")]
    for typed in (FIRST6, "FD00:10:244:1::0011"):
        assert [weights(one)[FIRST6] for one in drain_backend(SIX, slices, typed, 8080)] == [0]
        (kept,), emptied = remove_backend(SIX, slices, typed, None)
        assert (weights(kept), emptied) == ({SECOND6: 1}, [])
        with pytest.raises(Conflict, match=f"^Service default/web has the backend {FIRST6} already$"):
            by_hand(typed, slices=tuple(slices), service=SIX)


def test_the_last_backend_of_a_family_takes_its_slice_with_it() -> None:
    """The other family's stays."""
    slices = by_hand(FIRST, FIRST6, service=DUAL)
    kept, emptied = remove_backend(DUAL, slices, FIRST6, 8080)
    assert (kept, [one.name for one in emptied]) == ([], ["web-by-hand-8080-ipv6"])


def test_an_IPv6_backend_with_a_port_is_told_in_brackets() -> None:
    """As it is typed."""
    with pytest.raises(NotFound, match=r"^Service default/web has no backend \[fd00:10:244:1::11\]:9090$"):
        remove_backend(SIX, by_hand(FIRST6, service=SIX), FIRST6, 9090)
