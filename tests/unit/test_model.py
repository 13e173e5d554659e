"""The model objects: what they call themselves, and the rules that they answer without help."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import pytest

from pydatapath.model import AddressType, Backend, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort


def a_slice(
    address_type: AddressType = "IPv4",
    *,
    service: str | None = "web",
    headless: bool = False,
    ports: tuple[EndpointPort, ...] = (),
) -> EndpointSlice:
    return EndpointSlice("shop", "web-abc", service, address_type, ports, headless=headless)


def test_a_service_and_a_slice_are_known_by_namespace_and_name() -> None:
    """`key` is what every command and every message calls an object."""
    assert Service("shop", "web").key == "shop/web"
    assert a_slice().key == "shop/web-abc"


def test_objects_do_not_change() -> None:
    """A model object can be shared and kept: nobody alters it, and nobody adds to it."""
    port = ServicePort("http", "TCP", 80)
    with pytest.raises(FrozenInstanceError):
        port.port = 81
    assert not hasattr(port, "__dict__")


def test_the_manifest_takes_no_part_in_equality_and_is_not_printed() -> None:
    """Two objects that mean the same are equal whatever else their manifests say, and a repr fits on a screen."""
    one, two = Service("shop", "web", manifest={"a": 1}), Service("shop", "web", manifest={"a": 2})
    assert one == two
    assert hash(one) == hash(two)
    assert "manifest" not in repr(one)


def test_S6_slice_belongs_to_a_service_by_label_and_namespace() -> None:
    """The service of a slice is its namespace and its label, and nothing else."""
    assert a_slice().service_key == "shop/web"
    assert a_slice(service=None).service_key is None


@pytest.mark.parametrize(
    ("found", "proxied"),
    [
        pytest.param(a_slice(), True, id="IPv4"),
        pytest.param(a_slice("IPv6"), True, id="IPv6"),
        pytest.param(a_slice("FQDN"), False, id="S6 names are for DNS"),
        pytest.param(a_slice(service=None), False, id="S6 no label"),
        pytest.param(a_slice(headless=True), False, id="S5 headless label"),
    ],
)
def test_S5_S6_which_slices_count(found: EndpointSlice, proxied: bool) -> None:
    """A slice counts when it names a service, holds addresses, and is not hidden by label."""
    assert found.proxied is proxied


@pytest.mark.parametrize(("address_type", "family"), [("IPv4", 4), ("IPv6", 6), ("FQDN", None)])
def test_S8_a_slice_is_of_one_family(address_type: AddressType, family: int | None) -> None:
    """The family is the IP version of the addresses; names have none."""
    assert a_slice(address_type).family == family


def test_S15_port_without_number_is_ignored() -> None:
    """Of a slice's ports only those with a number above 0 can be reached."""
    http, none, zero = EndpointPort("http", "TCP", 8080), EndpointPort("a", "TCP", None), EndpointPort("b", "UDP", 0)
    assert a_slice(ports=(none, http, zero)).numbered_ports == (http,)


def test_S16_only_the_first_address_is_used() -> None:
    """`address` is the first of the addresses."""
    assert Endpoint(("10.244.1.2", "10.244.1.3")).address == "10.244.1.2"


def test_S19_S27_an_endpoint_that_says_nothing_is_ready_serving_and_remote() -> None:
    """The defaults of an endpoint are what Kubernetes means by missing conditions and a missing nodeName."""
    endpoint = Endpoint(("10.244.1.2",))
    assert (endpoint.ready, endpoint.serving, endpoint.terminating, endpoint.node_name) == (True, True, False, None)
    assert (endpoint.zone, endpoint.for_zones, endpoint.for_nodes) == (None, (), ())
    assert endpoint.weight == 1


def test_a_backend_is_shown_with_the_fields_of_service_list() -> None:
    """The fields of Backend, in their order, are those of `service list -o json`."""
    backend = Backend("10.244.1.2", 8080, "TCP", "node1", "web-1", local=True, flows=3)
    assert asdict(backend) == {
        "address": "10.244.1.2",
        "port": 8080,
        "protocol": "TCP",
        "node": "node1",
        "name": "web-1",
        "local": True,
        "state": "active",
        "flows": 3,
    }
