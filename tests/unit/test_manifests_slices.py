"""Manifests of endpoint slices: what is taken, what it means, and the one sentence for what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from samples import SLICE, Edit, at, edited, endpoint, endpoint_slice, named, refusal

from pydatapath.manifests import parse
from pydatapath.model import Endpoint, EndpointPort, EndpointSlice


class TestEndpointSlice:
    def test_an_ordinary_slice(self) -> None:
        """Every field of an ordinary slice arrives, with the API's defaults (S16, S19)."""
        assert endpoint_slice() == EndpointSlice(
            namespace="shop",
            name="web-abc",
            service="web",
            address_type="IPv4",
            ports=(EndpointPort("http", "TCP", 8080), EndpointPort("dns", "UDP", 5353)),
            endpoints=(
                Endpoint(("10.244.1.11",), node_name="node1", target_name="web-1"),
                Endpoint(("10.244.2.11", "10.244.2.12")),
            ),
        )

    def test_S5_the_headless_label_hides_a_slice(self) -> None:
        """The label counts whatever its value."""
        found = endpoint_slice(at("metadata", "labels", "service.kubernetes.io/headless", value=""))
        assert found.headless
        assert not found.proxied

    @pytest.mark.parametrize("label", [None, ""])
    def test_S6_slice_without_a_service(self, label: str | None) -> None:
        """A missing or empty service label makes a slice that belongs to nobody."""
        labels = {} if label is None else {"kubernetes.io/service-name": label}
        found = endpoint_slice(at("metadata", "labels", value=labels))
        assert found.service is None
        assert not found.proxied

    def test_S6_slice_of_names(self) -> None:
        """A slice of domain names is taken, and does not count."""
        found = endpoint_slice(
            at("addressType", value="FQDN"), at("endpoints", value=[{"addresses": ["web.example.org"]}])
        )
        assert found.endpoints[0].address == "web.example.org"
        assert not found.proxied

    @pytest.mark.parametrize("number", [None, 0])
    def test_S15_port_without_number_is_ignored(self, number: int | None) -> None:
        """A slice port without a number, or with 0, is kept and does not count."""
        found = endpoint_slice(at("ports", 0, "port", value=number))
        assert found.ports[0] == EndpointPort("http", "TCP", None)
        assert [one.name for one in found.numbered_ports] == ["dns"]

    @pytest.mark.parametrize("name", [None, ""])
    def test_S15_port_without_name_is_the_unnamed_port(self, name: str | None) -> None:
        """The API server makes a missing name the empty one, and so do we: nil never reaches a proxy."""
        found = endpoint_slice(at("ports", value=[{"name": name, "port": 8080}]))
        assert found.ports == (EndpointPort("", "TCP", 8080),)

    @pytest.mark.parametrize(
        ("conditions", "ready", "serving", "terminating"),
        [
            (None, True, True, False),
            ({}, True, True, False),
            ({"ready": None, "serving": None, "terminating": None}, True, True, False),
            ({"ready": False}, False, True, False),
            ({"ready": False, "serving": True, "terminating": True}, False, True, True),
            ({"ready": True, "serving": False}, True, False, False),
        ],
    )
    def test_S19_conditions_that_are_not_there(
        self, conditions: object, ready: bool, serving: bool, terminating: bool
    ) -> None:
        """Nil ready and nil serving are true, nil terminating is false, each by itself."""
        found = endpoint_slice(endpoint(conditions=conditions)).endpoints[0]
        assert (found.ready, found.serving, found.terminating) == (ready, serving, terminating)

    def test_S84_zone_and_hints(self) -> None:
        """Where an endpoint is, and which zones and nodes are advised to call it."""
        hints = {"forZones": [{"name": "west"}, {"name": "eu_2.B"}], "forNodes": [{"name": "node1"}]}
        found = endpoint_slice(endpoint(zone="west", hints=hints)).endpoints[0]
        assert (found.zone, found.for_zones, found.for_nodes) == ("west", ("west", "eu_2.B"), ("node1",))
        assert endpoint_slice(endpoint(zone="", hints={"forZones": None})).endpoints[0].zone is None

    def test_the_status_of_a_slice_is_dropped(self) -> None:
        """Slices have no status: whatever stands there is not kept."""
        assert "status" not in endpoint_slice(at("status", value={"x": 1})).manifest


A_LABEL_VALUE = "the value of a label (at most 63 of A-Z, a-z, 0-9, -, _ and .)"
REFUSED_SLICES: list[tuple[Edit, str]] = [
    (
        at("apiVersion", value="discovery.k8s.io/v1beta1"),
        "apiVersion: 'discovery.k8s.io/v1beta1' is not discovery.k8s.io/v1",
    ),
    (
        at("metadata", "labels", value={"kubernetes.io/service-name": "a b"}),
        "metadata.labels['kubernetes.io/service-name']: 'a b' is not the value of a label",
    ),
    (at("addressType", value=None), "addressType: is missing (IPv4, IPv6 or FQDN)"),
    (at("addressType", value="ipv4"), "addressType: 'ipv4' is not IPv4, IPv6 or FQDN"),
    (at("endpoints", value={"addresses": []}), "endpoints: a list is expected, not a map"),
    (endpoint(addresses=None), "endpoints[0].addresses: at least one address is needed"),
    (endpoint(addresses="10.244.1.11"), "endpoints[0].addresses: a list is expected, not a string"),
    (
        endpoint(addresses=["10.244.1.11", "fd00::1"]),
        "endpoints[0].addresses[1]: 'fd00::1' is an IPv6 address in a slice of addressType IPv4",
    ),
    (endpoint(conditions={"ready": "true"}), "endpoints[0].conditions.ready: true or false is expected, not a string"),
    (
        endpoint(nodeName="node 1"),
        "endpoints[0].nodeName: 'node 1' is not a DNS name (at most 253 of a-z, 0-9, - and .)",
    ),
    (
        endpoint(targetRef={"name": "\u202eweb"}),
        r"endpoints[0].targetRef.name: '\u202eweb' is not a DNS name (at most 253 of a-z, 0-9, - and .)",
    ),
    *(
        (
            endpoint(addresses=[address]),
            f"endpoints[0].addresses[0]: '{address}' is {words} address, which no service or endpoint can have",
        )
        for address, words in (
            ("127.0.0.1", "a loopback"),
            ("127.1.2.3", "a loopback"),
            ("169.254.169.254", "a link-local"),
            ("224.0.0.1", "a multicast"),
            ("000.000.000.000", "an unspecified"),
            ("::1", "a loopback"),
            ("fe80::1", "a link-local"),
            ("ff02::1", "a multicast"),
            ("::", "an unspecified"),
        )
    ),
    (endpoint(zone="a b"), f"endpoints[0].zone: 'a b' is not {A_LABEL_VALUE}"),
    (endpoint(zone=7), "endpoints[0].zone: a string is expected, not a number"),
    (endpoint(hints=[]), "endpoints[0].hints: a map is expected, not a list"),
    (endpoint(hints={"forZones": ["a"]}), "endpoints[0].hints.forZones[0]: a map is expected, not a string"),
    (endpoint(hints={"forZones": [{}]}), "endpoints[0].hints.forZones[0].name: is missing"),
    (endpoint(hints={"forZones": [{"name": "-"}]}), f"endpoints[0].hints.forZones[0].name: '-' is not {A_LABEL_VALUE}"),
    (
        endpoint(hints={"forNodes": [{"name": "a"}, {"name": "Node"}]}),
        "endpoints[0].hints.forNodes[1].name: 'Node' is not a DNS name (at most 253 of a-z, 0-9, - and .)",
    ),
    (at("ports", 0, "port", value=65536), "ports[0].port: 65536 is not a port (1 to 65535)"),
    (at("ports", 1, "name", value="http"), "ports[1].name: 'http' is taken by ports[0]"),
]


@pytest.mark.parametrize(("edit", "fault"), REFUSED_SLICES, ids=[fault for _, fault in REFUSED_SLICES])
def test_a_bad_slice_is_refused_in_one_sentence(edit: Edit, fault: str) -> None:
    """As for services; an endpoint is named by its place in the list."""
    message = refusal(lambda: parse(edited(SLICE, edit), "web.yaml", ":7"))
    assert message == f"web.yaml: EndpointSlice shop/web-abc: {fault}"


def test_the_name_of_a_slice_is_a_dns_name() -> None:
    """Slices, unlike services, may have dots in their names, and no underscores."""
    assert parse(named("web.abc", SLICE), "web.yaml").key == "shop/web.abc"
    assert refusal(lambda: parse(named("web_abc", SLICE), "web.yaml", ":7")) == (
        "web.yaml:7: EndpointSlice: metadata.name: 'web_abc' is not a DNS name (at most 253 of a-z, 0-9, - and .)"
    )


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1", "a loopback"),
        ("169.254.1.1", "a link-local"),
        ("224.0.0.1", "a multicast"),
        (str(IPv4Address(0)), "an unspecified"),
        ("::1", "a loopback"),
        ("fe80::1", "a link-local"),
        ("ff02::1", "a multicast"),
        ("::", "an unspecified"),
    ],
)
def test_an_endpoint_has_an_address_that_others_can_reach(address: str, what: str) -> None:
    """Loopback, link-local, multicast and unspecified endpoints are refused, as by the API server."""
    kind = "IPv6" if ":" in address else "IPv4"
    document = edited(SLICE, at("addressType", value=kind), at("endpoints", value=[{"addresses": [address]}]))
    assert refusal(lambda: parse(document, "web.yaml")) == (
        f"web.yaml: EndpointSlice shop/web-abc: endpoints[0].addresses[0]: '{address}' is {what} address, "
        "which no service or endpoint can have"
    )
