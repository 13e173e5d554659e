"""Manifests to model objects: what is taken, what it means, and the one sentence for what is refused."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pydatapath.documents import documents
from pydatapath.errors import ManifestError
from pydatapath.manifests import Loaded, parse, read, to_yaml
from pydatapath.model import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

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
    with pytest.raises(ManifestError) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)


class TestService:
    def test_S1_a_service_with_a_cluster_ip_is_proxied(self) -> None:
        """Every field of an ordinary service arrives, with the API's defaults."""
        assert service() == Service(
            namespace="shop",
            name="web",
            type="ClusterIP",
            cluster_ips=("10.96.0.10",),
            ports=(ServicePort("http", "TCP", 80, 8080), ServicePort("dns", "UDP", 53, "dns")),
            proxied=True,
        )

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(spec(clusterIP="None"), id="S3 headless"),
            pytest.param(spec(clusterIP="None", clusterIPs=["None"], ports=None), id="S3 headless without ports"),
            pytest.param(spec(clusterIP=None, clusterIPs=["None"]), id="S3 headless by the list"),
            pytest.param(spec(clusterIP=""), id="S1 no address"),
            pytest.param(spec(type="ExternalName", externalName="example.org", ports=[]), id="S2 ExternalName"),
            pytest.param(
                at("metadata", "labels", "service.kubernetes.io/service-proxy-name", value=""), id="S4 another proxy"
            ),
        ],
    )
    def test_S1_S2_S3_S4_not_proxied(self, edit: Edit) -> None:
        """Without a cluster IP, headless, ExternalName or handed to another proxy: known, and left alone."""
        assert service(edit).proxied is False

    def test_S5_headless_label_on_a_service_means_nothing(self) -> None:
        """The headless label counts on slices only."""
        assert service(at("metadata", "labels", "service.kubernetes.io/headless", value="")).proxied

    def test_S7_S8_dual_stack_in_any_order(self) -> None:
        """Both cluster IPs are taken in the order given, in their canonical form."""
        found = service(spec(clusterIP="FD00:0::A", clusterIPs=["fd00::a", "10.96.0.10"]))
        assert found.cluster_ips == ("fd00::a", "10.96.0.10")

    def test_S9_leading_zeros_are_decimal(self) -> None:
        """010 in an address is ten, as Kubernetes reads it, and not eight."""
        assert service(spec(clusterIP="010.096.000.010")).cluster_ips == ("10.96.0.10",)

    def test_S14_one_number_in_three_protocols(self) -> None:
        """TCP, UDP and SCTP on one number are three ports, for node ports too."""
        ports = [
            {"name": name.lower(), "port": 53, "protocol": name, "nodePort": 30053} for name in ("TCP", "UDP", "SCTP")
        ]
        found = service(spec(type="NodePort", ports=ports))
        assert [(one.protocol, one.port, one.node_port) for one in found.ports] == [
            ("TCP", 53, 30053),
            ("UDP", 53, 30053),
            ("SCTP", 53, 30053),
        ]

    @pytest.mark.parametrize(
        ("value", "target"), [(None, 80), (0, 80), ("", 80), (8080, 8080), ("http-alt", "http-alt")]
    )
    def test_S11_target_port_is_kept_for_people(self, value: object, target: object) -> None:
        """A targetPort is a number or a name; absent, zero and empty mean the port itself."""
        assert service(port(targetPort=value)).ports[0].target_port == target

    def test_S57_external_ips(self) -> None:
        """The externalIPs are taken in order."""
        assert service(spec(externalIPs=["192.0.2.7", "2001:db8::7"])).external_ips == ("192.0.2.7", "2001:db8::7")

    def test_S59_S60_load_balancer_ips_are_those_of_mode_vip(self) -> None:
        """Ingress addresses of mode VIP or of none are taken; hostnames and mode Proxy are not."""
        ingress = [
            {"ip": "192.0.2.1"},
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"},
        ]
        found = service(spec(type="LoadBalancer"), at("status", "loadBalancer", "ingress", value=ingress))
        assert found.load_balancer_ips == ("192.0.2.1", "192.0.2.2")

    def test_S61_node_port_zero_is_none(self) -> None:
        """A nodePort of 0 means that there is none."""
        assert service(spec(type="LoadBalancer"), port(nodePort=0)).ports[0].node_port is None

    @pytest.mark.parametrize(
        ("edit", "policy"),
        [
            pytest.param(spec(type="NodePort"), "Local", id="node port"),
            pytest.param(spec(type="LoadBalancer"), "Local", id="balancer"),
            pytest.param(spec(externalIPs=["192.0.2.1"]), "Local", id="external IP"),
            pytest.param(spec(), "Cluster", id="S71 no way in from outside"),
            pytest.param(
                at("status", "loadBalancer", "ingress", value=[{"ip": "192.0.2.1"}]), "Cluster", id="S71 a left-over"
            ),
        ],
    )
    def test_S71_the_external_policy_counts_where_there_is_a_way_in(self, edit: Edit, policy: str) -> None:
        """It counts for LoadBalancer, NodePort and services with externalIPs; all others have Cluster, the default."""
        assert service(edit, spec(externalTrafficPolicy="Local")).external_policy == policy
        assert service(edit).external_policy == "Cluster"

    @pytest.mark.parametrize(("value", "policy"), [(None, "Cluster"), ("Cluster", "Cluster"), ("Local", "Local")])
    def test_S35_the_internal_policy(self, value: str | None, policy: str) -> None:
        """internalTrafficPolicy is Cluster unless said."""
        assert service(spec(internalTrafficPolicy=value)).internal_policy == policy

    @pytest.mark.parametrize(
        ("kind", "config", "seconds"),
        [
            (None, None, 0),
            ("None", None, 0),
            ("ClientIP", None, 10_800),
            ("ClientIP", {"clientIP": None}, 10_800),
            ("ClientIP", {"clientIP": {"timeoutSeconds": 1}}, 1),
            ("ClientIP", {"clientIP": {"timeoutSeconds": 86_400}}, 86_400),
        ],
    )
    def test_S73_session_affinity(self, kind: str | None, config: object, seconds: int) -> None:
        """ClientIP keeps a client for three hours, or for the seconds said; None for none."""
        assert service(spec(sessionAffinity=kind, sessionAffinityConfig=config)).affinity == seconds

    def test_S9_S62_source_ranges_are_canonical(self) -> None:
        """Trimmed, without the host's bits and leading zeros, of both families, in their order."""
        ranges = ["192.0.2.7/24", " 010.0.0.0/8\n", "2001:DB8::1/32", "0.0.0.0/0", "192.0.2.1/32"]
        found = service(spec(type="LoadBalancer", loadBalancerSourceRanges=ranges)).source_ranges
        assert found == ("192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0", "192.0.2.1/32")

    @pytest.mark.parametrize(
        ("kind", "policy", "port"),
        [("LoadBalancer", "Local", 32000), ("LoadBalancer", "Cluster", None), ("NodePort", "Local", None)],
    )
    def test_S72_S80_the_health_check_node_port(self, kind: str, policy: str, port: int | None) -> None:
        """Only a LoadBalancer with policy Local has one; 0 is none."""
        fields = {"type": kind, "externalTrafficPolicy": policy}
        assert service(spec(**fields, healthCheckNodePort=32000)).health_check_node_port == port
        assert service(spec(**fields, healthCheckNodePort=0)).health_check_node_port is None

    def test_the_namespace_is_default_unless_said(self) -> None:
        """A manifest without namespace means `default`, in the manifest too."""
        found = service(at("metadata", "namespace", value=None))
        assert found.key == "default/web"
        assert found.manifest["metadata"]["namespace"] == "default"

    def test_the_manifest_is_free_of_what_the_server_writes(self) -> None:
        """Fields that only the API server writes are dropped, so that unchanged means equal; the rest stays."""
        noise = {
            "uid": "1",
            "resourceVersion": "2",
            "generation": 3,
            "managedFields": [{}],
            "selfLink": "/x",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        }
        plain, noisy = service(), service(lambda document: document["metadata"].update(noise))
        assert noisy.manifest == plain.manifest == SERVICE

    def test_of_the_status_only_the_load_balancer_stays(self) -> None:
        """S59 needs status.loadBalancer; conditions come and go without meaning anything here."""
        status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}, "conditions": []}
        assert service(at("status", value=status)).manifest["status"] == {"loadBalancer": status["loadBalancer"]}
        assert "status" not in service(at("status", value={"loadBalancer": {}})).manifest

    def test_what_was_handed_in_is_not_altered(self) -> None:
        """`parse` reads; the caller's document is as it was."""
        document = edited(SERVICE, at("metadata", "uid", value="1"), at("status", value={"loadBalancer": {}}))
        before = copy.deepcopy(document)
        parse(document, "web.yaml")
        assert document == before


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


# Before a name is known the place in the file is told.
REFUSED_NAMELESS: list[tuple[Edit, str]] = [
    (at("metadata", value=None), "Service: metadata.name: is missing"),
    (at("metadata", value=[]), "Service: metadata: a map is expected, not a list"),
    (
        at("metadata", "name", value="Web"),
        "Service: metadata.name: 'Web' is not a name for a service (at most 63 of a-z, 0-9 and -, a letter first)",
    ),
    (
        at("metadata", "name", value="a\x1bc"),
        r"Service: metadata.name: 'a\x1bc' is not a name for a service (at most 63 of a-z, 0-9 and -, a letter first)",
    ),
    (
        at("metadata", "namespace", value="../etc"),
        "Service: metadata.namespace: '../etc' is not a DNS label (at most 63 of a-z, 0-9 and -)",
    ),
    (at("metadata", "name", value=7), "Service: metadata.name: a string is expected, not a number"),
    (at("spec", "x", value=float("nan")), "holds nan, which is no number in JSON"),
    (at("spec", "x", value={1: 2}), "holds a key that is not plain text"),
    (at("spec", "x", value=2**70), "holds a whole number of more than 64 bits"),
    (at("spec", "x", value=b"a"), "holds a Python bytes, which JSON does not have"),
    (at("spec", "x", value="\ud800"), r"holds text that is no Unicode: '\ud800'"),
    (at("kind", value=None), "kind: is missing"),
    (at("kind", value="Servce"), "kind: 'Servce' is not a kind of Kubernetes (did you mean Service?)"),
    (at("kind", value="Zzz"), "kind: 'Zzz' is not a kind of Kubernetes"),
    (at("kind", value="a\x1b]0;"), r"kind: 'a\x1b]0;' is not the name of a kind"),
    (at("kind", value=["Service"]), "kind: ['Service'] is not the name of a kind"),
    (at("kind", value="Pod"), "Pod shop/web: neither a Service nor an EndpointSlice"),
]

REFUSED_SERVICES: list[tuple[Edit, str]] = [
    (at("apiVersion", value="v2"), "apiVersion: 'v2' is not v1"),
    (at("apiVersion", value=None), "apiVersion: is missing (v1)"),
    (
        at("metadata", "labels", "app", value=1),
        "metadata.labels['app']: a string is expected, not a number (put it in quotes)",
    ),
    (
        at("metadata", "annotations", value={"a": True}),
        "metadata.annotations['a']: a string is expected, not a boolean (put it in quotes)",
    ),
    (at("spec", value="x"), "spec: a map is expected, not a string"),
    (at("spec", value=None), "spec.ports: at least one port is needed"),
    (spec(ports="80"), "spec.ports: a list is expected, not a string"),
    (spec(ports=[80]), "spec.ports[0]: a map is expected, not a number"),
    (spec(ports=[]), "spec.ports: at least one port is needed"),
    (spec(type="clusterip"), "spec.type: 'clusterip' is not ClusterIP, NodePort, LoadBalancer or ExternalName"),
    (spec(clusterIP="10.96.0.300"), "spec.clusterIP: '10.96.0.300' is not an IPv4 or IPv6 address"),
    (spec(clusterIP="10.96.0.10/32"), "spec.clusterIP: '10.96.0.10/32' is not an IPv4 or IPv6 address"),
    (spec(clusterIP=10), "spec.clusterIP: a string is expected, not a number"),
    (spec(clusterIP=None, clusterIPs=[10.96]), "spec.clusterIPs[0]: an IP address is expected, not a number"),
    (
        spec(clusterIP="fd00::1%eth0"),
        "spec.clusterIP: 'fd00::1%eth0' is not an IPv4 or IPv6 address (a zone has no place in it)",
    ),
    (
        spec(clusterIP="::ffff:10.96.0.10"),
        "spec.clusterIP: '::ffff:10.96.0.10' is an IPv4 address in IPv6 notation (write 10.96.0.10)",
    ),
    (spec(clusterIPs=["10.96.0.11"]), "spec.clusterIPs[0]: 10.96.0.11 differs from spec.clusterIP '10.96.0.10'"),
    (
        spec(clusterIPs=["10.96.0.10", "10.96.0.11"]),
        "spec.clusterIPs: one IPv4 and one IPv6 address are the most that a service may have",
    ),
    (
        spec(externalIPs=["127.0.0.1"]),
        "spec.externalIPs[0]: '127.0.0.1' is a loopback address, which no service or endpoint can have",
    ),
    (port(port=None), "spec.ports[0].port: is missing"),
    (port(port=70000), "spec.ports[0].port: 70000 is not a port (1 to 65535)"),
    (port(port=0), "spec.ports[0].port: 0 is not a port (1 to 65535)"),
    (port(port=-1), "spec.ports[0].port: -1 is not a port (1 to 65535)"),
    (port(port="80"), "spec.ports[0].port: a whole number is expected, not a string"),
    (port(port=True), "spec.ports[0].port: a whole number is expected, not a boolean"),
    (port(port=80.0), "spec.ports[0].port: 80.0 is not a whole number"),
    (port(protocol="tcp"), "spec.ports[0].protocol: 'tcp' is not TCP, UDP or SCTP"),
    (port(targetPort="8080"), "spec.ports[0].targetPort: '8080' is not the name of a port (a number has no quotes)"),
    (
        port(targetPort="a_b"),
        "spec.ports[0].targetPort: 'a_b' is not the name of a port (at most 15 of a-z, 0-9 and -, one a letter)",
    ),
    (port(nodePort=30080), "spec.ports[0].nodePort: has no place in a service of type ClusterIP"),
    (port(name=None), "spec.ports[0].name: is missing: each of several ports needs a name"),
    (port(name="dns"), "spec.ports[1].name: 'dns' is taken by spec.ports[0]"),
    (port(port=53, protocol="UDP"), "spec.ports[1].port: 53/UDP is taken by spec.ports[0]"),
    (
        spec(
            type="NodePort",
            ports=[{"name": "a", "port": 1, "nodePort": 30000}, {"name": "b", "port": 2, "nodePort": 30000}],
        ),
        "spec.ports[1].nodePort: 30000/TCP is taken by spec.ports[0]",
    ),
    (
        at("status", "loadBalancer", "ingress", value=[{"ip": "lb"}]),
        "status.loadBalancer.ingress[0].ip: 'lb' is not an IPv4 or IPv6 address",
    ),
    (
        at("status", "loadBalancer", "ingress", value=[{"ip": "192.0.2.1", "ipMode": "NAT"}]),
        "status.loadBalancer.ingress[0].ipMode: 'NAT' is not VIP or Proxy",
    ),
    (
        spec(externalTrafficPolicy="local"),
        "spec.externalTrafficPolicy: 'local' is not Cluster or Local",
    ),
    (spec(internalTrafficPolicy=True), "spec.internalTrafficPolicy: True is not Cluster or Local"),
    (spec(sessionAffinity="clientIP"), "spec.sessionAffinity: 'clientIP' is not ClientIP or None"),
    (
        spec(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 5}}),
        "spec.sessionAffinityConfig: has no place where sessionAffinity is None",
    ),
    (affinity(0), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not from 1 to 86400 seconds (a day)"),
    (
        affinity(86401),
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not from 1 to 86400 seconds (a day)",
    ),
    (affinity("5"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: a whole number is expected, not a string"),
    (affinity(1.5), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 1.5 is not a whole number"),
    (ranges("192.0.2.1"), "spec.loadBalancerSourceRanges[0]: '192.0.2.1' is not a network (such as 192.0.2.0/24)"),
    (
        ranges("192.0.2.0/33"),
        "spec.loadBalancerSourceRanges[0]: '192.0.2.0/33' is not a network (such as 192.0.2.0/24)",
    ),
    (
        ranges("10.0.0.0/255.0.0.0"),
        "spec.loadBalancerSourceRanges[0]: '10.0.0.0/255.0.0.0' is not a network (such as 192.0.2.0/24)",
    ),
    (ranges("10.0.0.0/8", ""), "spec.loadBalancerSourceRanges[1]: '' is not a network (such as 192.0.2.0/24)"),
    (ranges(10), "spec.loadBalancerSourceRanges[0]: a network is expected, not a number"),
    (spec(loadBalancerSourceRanges="10.0.0.0/8"), "spec.loadBalancerSourceRanges: a list is expected, not a string"),
    (spec(healthCheckNodePort=65536), "spec.healthCheckNodePort: 65536 is not a port (1 to 65535)"),
]


@pytest.mark.parametrize(("edit", "fault"), REFUSED_NAMELESS, ids=[fault for _, fault in REFUSED_NAMELESS])
def test_an_object_without_a_good_name_is_refused_in_one_sentence(edit: Edit, fault: str) -> None:
    """File, line, fault and what is allowed, in a sentence that a terminal can show."""
    assert refusal(lambda: parse(edited(SERVICE, edit), "web.yaml", ":7")) == f"web.yaml:7: {fault}"


@pytest.mark.parametrize(("edit", "fault"), REFUSED_SERVICES, ids=[fault for _, fault in REFUSED_SERVICES])
def test_a_bad_service_is_refused_in_one_sentence(edit: Edit, fault: str) -> None:
    """File, object, field, fault and what is allowed."""
    assert refusal(lambda: parse(edited(SERVICE, edit), "web.yaml", ":7")) == f"web.yaml: Service shop/web: {fault}"


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


@pytest.mark.parametrize(
    ("document", "what"), [(None, "null"), ("x", "a string"), ([], "a list"), (7, "a number"), (True, "a boolean")]
)
def test_a_document_is_a_map(document: object, what: str) -> None:
    """What is no map is refused before anything is looked for in it."""
    assert refusal(lambda: parse(document, "web.yaml", ":7")) == (
        f"web.yaml:7: a map with apiVersion, kind and metadata is expected, not {what}"
    )


def test_a_document_that_holds_itself_is_refused() -> None:
    """A Python caller can build what no file can hold: it ends at the limit of depth, in no time."""
    knot: list[Any] = []
    knot += [knot, knot]
    document = edited(SERVICE, at("spec", "knot", value=knot))
    assert refusal(lambda: parse(document, "web.yaml")) == "web.yaml: is nested deeper than 64 levels"


# Files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, *items: object) -> None:
    Path(path).write_text(yaml.safe_dump_all(items), encoding="utf-8")


def keys(loaded: Loaded) -> list[str]:
    return [found.key for found in loaded.objects]


class TestRead:
    def test_files_folders_and_their_order(self, folder: Path) -> None:
        """Paths in the order given; a folder gives its manifests by name, nothing hidden, nothing deeper."""
        write("z.yaml", named("first"))
        Path("d/deeper").mkdir(parents=True)
        write("d/b.yml", named("b"), SLICE)
        write("d/a.yaml", named("a"))
        Path("d/c.json").write_text(json.dumps(named("c")))
        write("d/.hidden.yaml", named("hidden"))
        write("d/deeper/x.yaml", named("deeper"))
        Path("d/notes.txt").write_text("not a manifest")
        assert keys(read(["z.yaml", "d"])) == ["shop/first", "shop/a", "shop/b", "shop/web-abc", "shop/c"]

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`-` is standard input, YAML or JSON."""
        for text in (json.dumps(SERVICE), yaml.safe_dump(SERVICE)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            assert keys(read(["-"])) == ["shop/web"]

    def test_standard_input_that_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A daemon without standard input gets a sentence."""
        monkeypatch.setattr(sys, "stdin", None)
        assert refusal(lambda: read(["-"])) == "standard input: holds no objects"

    def test_a_pipe_is_read_to_its_end(self, folder: Path) -> None:
        """`apply -f <(command)` hands over a pipe."""
        reader, writer = os.pipe()
        try:
            with os.fdopen(writer, "w") as stream:
                stream.write(json.dumps(SERVICE))
            assert keys(read([f"/dev/fd/{reader}"])) == ["shop/web"]
        finally:
            os.close(reader)

    @pytest.mark.parametrize(
        ("kind", "items"),
        [
            ("List", [SERVICE, SLICE]),
            ("List", [{"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE]}]),
            ("ServiceList", [{key: SERVICE[key] for key in ("metadata", "spec")}, SLICE]),
        ],
        ids=["List", "List of List", "ServiceList whose items do not say what they are"],
    )
    def test_lists_are_expanded(self, folder: Path, kind: str, items: list[object]) -> None:
        """A list gives its items, typed lists say the kind for those that do not."""
        write("all.yaml", {"apiVersion": "v1", "kind": kind, "items": items})
        assert keys(read(["all.yaml"])) == ["shop/web", "shop/web-abc"]

    def test_known_kinds_are_named_and_skipped(self, folder: Path) -> None:
        """What Kubernetes knows and we do not use, and what belongs to somebody else, is told by name."""
        write(
            "all.yaml",
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": "shop"}},
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}},
            {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "web"}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "\x1b[31m", "namespace": "a\nb"}},
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "job-"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": "x"},
        )
        assert read(["all.yaml"]) == Loaded(
            [],
            [
                "Deployment default/web",
                "Pod shop/web-1",
                "Node node1",
                "Service.serving.knative.dev web",
                r"Secret 'a\nb'/'\x1b[31m'",
                "Job default/without a name",
                "ConfigMap default/without a name",
            ],
        )

    def test_no_object_twice(self, folder: Path) -> None:
        """The same object in two places is an error that names both."""
        write("a.yaml", SLICE, SERVICE)
        write("b.yaml", SERVICE)
        where = Path("a.yaml").read_text().splitlines().index("---") + 2
        assert refusal(lambda: read(["a.yaml", "b.yaml"])) == (
            f"b.yaml: Service shop/web: stands in a.yaml:{where} and again in b.yaml:1"
        )

    def test_a_service_and_a_slice_may_share_a_name(self, folder: Path) -> None:
        """Names are unique by kind."""
        write("a.yaml", SERVICE, named("web", SLICE))
        assert keys(read(["a.yaml"])) == ["shop/web", "shop/web"]

    def test_one_error_tells_of_the_others(self, folder: Path) -> None:
        """The first fault is the message, the hint counts the others and names the next three."""
        bad = [edited(named(f"s{number}"), port(port=0)) for number in range(6)]
        write("bad.yaml", *bad[:5])
        write("more.yaml", bad[5])
        with pytest.raises(ManifestError) as caught:
            read(["bad.yaml", "more.yaml"])
        fault = "bad.yaml: Service shop/s{}: spec.ports[0].port: 0 is not a port (1 to 65535)"
        assert str(caught.value) == fault.format(0)
        assert caught.value.hint == f"and 5 more: {fault.format(1)}; {fault.format(2)}; {fault.format(3)}; ..."

    def test_one_error_alone_has_no_hint(self, folder: Path) -> None:
        """Where there is nothing more to say, nothing more is said."""
        write("bad.yaml", edited(SERVICE, port(port=0)), SLICE)
        with pytest.raises(ManifestError) as caught:
            read(["bad.yaml"])
        assert caught.value.hint == ""

    def test_the_collector_is_back_at_work(self, folder: Path) -> None:
        """Garbage collection rests while reading, and only then: after an error too, and never where it was off."""
        write("a.yaml", SERVICE)
        read(["a.yaml"])
        assert gc.isenabled()
        refusal(lambda: read(["nothing"]))
        assert gc.isenabled()
        gc.disable()
        try:
            read(["a.yaml"])
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_without_libyaml(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where PyYAML has no C parser the one in Python does: slower, and the same."""
        monkeypatch.delattr(yaml, "CSafeLoader")
        write("a.yaml", SERVICE, SLICE)
        assert keys(read(["a.yaml"])) == ["shop/web", "shop/web-abc"]
        Path("b.yaml").write_text("a: 1\nb: \x1b")
        assert refusal(lambda: read(["b.yaml"])) == "b.yaml:2: not YAML: special characters are not allowed"

    def test_yaml_is_imported_only_for_yaml(self) -> None:
        """`service list` and JSON manifests do not pay for PyYAML."""
        program = (
            "import sys; from pydatapath import manifests; "
            "manifests.documents('{\"a\": 1}', '-'); sys.exit('yaml' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


LAUGHS = "\n".join(
    ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)]
)

REFUSED_FILES = [
    ("empty.yaml", b"", "empty.yaml: holds no objects"),
    ("empty.json", b" \n", "empty.json: holds no objects"),
    ("comment.yaml", b"# nothing\n---\n---\n", "comment.yaml: holds no objects"),
    ("text.yaml", b"hello", "text.yaml:1: a map with apiVersion, kind and metadata is expected, not a string"),
    (
        "list.yaml",
        b"---\n---\n- 1",
        "list.yaml:3: a map with apiVersion, kind and metadata is expected, not a list",
    ),
    ("items.yaml", b"kind: List\nitems: 7", "items.yaml:1: List: items: a list is expected, not a number"),
    ("item.yaml", b"kind: List\nitems: [{}]", "item.yaml:1: items[0]: kind: is missing"),
    ("syntax.yaml", b"a: 1\nb: [1\nc: 2", "syntax.yaml:3: not YAML: did not find expected ',' or ']'"),
    ("control.yaml", b"a: 1\nb: \x1b", "control.yaml:2: not YAML: control characters are not allowed"),
    ("syntax.json", b'{\n"kind": }', "syntax.json:2: not JSON: Expecting value"),
    ("rest.json", b"{} x", "rest.json:1: not JSON: Expecting value"),
    ("latin.yaml", b"a: 1\nb: \xff", "latin.yaml:2: not UTF-8 text (byte 0xff)"),
    ("utf16.yaml", "kind: Node".encode("utf-16-le"), "utf16.yaml:1: not YAML: control characters are not allowed"),
    ("twice.yaml", b"kind: Service\nkind: Service", "twice.yaml:2: the key 'kind' stands twice in one map"),
    ("twice.json", b'{"kind": 1, "kind": 2}', "twice.json: the key 'kind' stands twice in one map"),
    ("tag.yaml", b"a: !!python/none", "tag.yaml:1: the tag 'tag:yaml.org,2002:python/none' has no place in a manifest"),
    ("map.yaml", b"a: !x {}", "map.yaml:1: the tag '!x' has no place in a manifest"),
    ("nan.yaml", b"a: .nan", "nan.yaml:1: holds .nan, which is no number in JSON"),
    ("huge.yaml", b"a: 1.0e+999", "huge.yaml:1: holds '1.0e+999', which is no number in JSON"),
    ("nan.json", b'{"a": NaN}', "nan.json: holds NaN, which is no number in JSON"),
    ("huge.json", b'{"a": 1e400}', "huge.json:1: holds inf, which is no number in JSON"),
    ("long.json", b'{"a": %s}' % (b"9" * 5000), "long.json:1: holds a whole number of more than 64 bits"),
    ("long.yaml", b"a: %s" % (b"9" * 5000), "long.yaml:1: holds a whole number of more than 64 bits"),
    ("key.yaml", b"? [a]\n: b", "key.yaml:1: the key of a map is plain text"),
    ("alias.yaml", b"a: *b", "alias.yaml:1: the alias 'b' has no anchor before it"),
    ("knot.yaml", b"a: &a [*a]", "knot.yaml:1: the alias 'a' has no anchor before it"),
    ("merge.yaml", b"a: 1\n<<: 2", "merge.yaml:2: a map is expected under <<"),
    ("laughs.yaml", LAUGHS.encode(), "laughs.yaml:6: aliases stand for more than 2 MB of text"),
    ("deep.yaml", b"[" * 100_000, "deep.yaml:1: is nested deeper than 64 levels"),
    ("deeper.yaml", b"a: " + b"{a: " * 100_000, "deeper.yaml:1: is nested deeper than 64 levels"),
    ("deepest.yaml", b"- " * 100_000, "deepest.yaml:1: is nested deeper than 64 levels"),
    ("deep.json", b'{"a":' + b"[" * 100_000, "deep.json:1: is nested deeper than 64 levels"),
    ("flat.json", b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "flat.json:1: is nested deeper than 64 levels"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), REFUSED_FILES, ids=[name for name, *_ in REFUSED_FILES])
def test_F25_a_bad_file_is_refused_in_one_sentence(folder: Path, name: str, data: bytes, message: str) -> None:
    """Broken and hostile text ends in a sentence with file and line: no other exception, no wait, no crash."""
    Path(name).write_bytes(data)
    assert refusal(lambda: read([name])) == message


def test_F25_what_is_no_file_is_refused_at_once(folder: Path) -> None:
    """Devices are not read, a pipe without a writer is empty, a file of a terabyte is not begun."""
    os.mkfifo("pipe")
    Path("empty").mkdir()
    Path("lost.yaml").symlink_to("nowhere")
    with Path("huge.yaml").open("wb") as stream:
        stream.truncate(10**12)
    assert [refusal(lambda path=path: read([path])) for path in ("/dev/zero", "pipe", "empty", "lost.yaml")] == [
        "/dev/zero: neither a file nor a folder",
        "pipe: holds no objects",
        "empty: no .yaml, .yml or .json file in this folder",
        "lost.yaml: no such file or directory",
    ]
    assert refusal(lambda: read(["huge.yaml"])) == "huge.yaml: larger than 100 MB"


@pytest.mark.parametrize(
    ("path", "shown"), [("a\x1b[31m", r"'a\x1b[31m'"), ("a\0b", r"'a\x00b'"), ("", "''"), ("größe", "größe")]
)
def test_F26_a_hostile_file_name_is_quoted(folder: Path, path: str, shown: str) -> None:
    """A file's name is printed as it is unless a terminal would obey it."""
    assert refusal(lambda: read([path])) == f"{shown}: no such file or directory"


# Text to data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05Z"),
        ("2025-01-02", "2025-01-02"),
        ("12:30", "12:30"),
        ("10.96.0.10", "10.96.0.10"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("0x1F", 31),
        ("-0b11", -3),
        ("010", 8),
        ("08", "08"),
        ("1_000", 1000),
        ("0x_", "0x_"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e5", "1e5"),
        ("-", None),
        ("'80'", "80"),
        ("!!str 80", "80"),
        ("! 80", "80"),
        ("=", "="),
        ("|\n  a\n  b", "a\nb"),
        ("!!map {b: 1}", {"b": 1}),
    ],
)
def test_plain_text_means_what_kubectl_takes_it_for(text: str, value: object) -> None:
    """YAML 1.1 without dates and without numbers to base 60: a creationTimestamp stays text."""
    if text == "-":
        value = [None]
    assert documents(f"a: {text}" if text != "-" else "a:\n-", "x") == [(1, {"a": value})]


def test_keys_are_text_and_bom_and_json_streams_are_fine(folder: Path) -> None:
    """A key keeps its spelling, a byte order mark is nothing, JSON objects may follow each other."""
    assert documents("80: x\non: y", "x") == [(1, {"80": "x", "on": "y"})]
    assert documents('{"a": 1}\n\n{"a": 2} null', "x") == [(1, {"a": 1}), (3, {"a": 2})]
    assert documents("{a: 1}", "x") == [(1, {"a": 1})]
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(SERVICE).encode())
    assert keys(read(["bom.yaml"])) == ["shop/web"]


def test_anchors_and_merge_keys() -> None:
    """Aliases and `<<` serve those who like them; what a map says itself wins."""
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [{y: 4}, *b]}\nthree: *b\nfour: {'<<': 1}"
    ((_, document),) = documents(text, "x")
    assert document == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 1, "y": 4},
        "three": {"x": 1, "y": 2},
        "four": {"<<": 1},
    }


def test_anchors_end_with_their_document() -> None:
    """An alias does not reach into the document before."""
    assert refusal(lambda: documents("a: &a 1\n---\nb: *a", "x")) == "x:3: the alias 'a' has no anchor before it"


# Anything at all

unhurried = settings(deadline=None)  # a busy machine is no bug
INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"))
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)
WORDS = st.sampled_from(
    (
        "80",
        "TCP",
        "UDP",
        "http",
        "10.96.0.1",
        "fd00::1",
        "::ffff:1.2.3.4",
        "None",
        "IPv6",
        "FQDN",
        "ExternalName",
        "web",
    )
)
VALUES = JSON_LIKE | WORDS | st.sampled_from([0, 80, 65536, 2**70, [], {}, [[]], [{}], "\x1b[31m", "\ud800"])


def places(document: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything in a document."""
    found = [path] if path else []
    steps = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for step, value in steps:
        found += places(value, (*path, step))
    return found


def found_or_refused(action: Callable[[], Any]) -> Any:
    """What `action` gives, or None where it raises ManifestError; its message must be printable."""
    try:
        return action()
    except ManifestError as error:
        message = str(error) + error.hint
    assert message.isprintable()
    return None


@settings(unhurried)
@given(JSON_LIKE)
def test_any_document_gives_an_object_or_a_manifest_error(document: object) -> None:
    """Whatever a Python caller hands over, the only exception is ManifestError, in printable words."""
    found_or_refused(lambda: parse(document, "x"))


@settings(unhurried, max_examples=300)
@given(
    st.sampled_from([SERVICE, SLICE]).flatmap(
        lambda document: st.tuples(
            st.just(document), st.lists(st.tuples(st.sampled_from(places(document)), VALUES), min_size=1, max_size=3)
        )
    )
)
def test_any_edit_of_a_good_document_gives_an_object_or_a_manifest_error(
    case: tuple[dict[str, Any], list[tuple[tuple[str | int, ...], object]]],
) -> None:
    """As above, where it is likelier to hurt: nearly right documents. What is taken can be stored and printed."""
    document = copy.deepcopy(case[0])
    for path, value in case[1]:
        try:
            at(*path, value=value)(document)
        except (AttributeError, IndexError, KeyError, TypeError):
            continue  # an earlier edit took this place away
    found = found_or_refused(lambda: parse(document, "x"))
    if found is None:
        return
    assert repr(found).isprintable()
    assert found.key.isascii()
    assert parse(json.loads(json.dumps(found.manifest)), "x") == found
    assert parse(found.manifest, "x").manifest == found.manifest


@settings(unhurried)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_gives_documents_or_a_manifest_error(text: str) -> None:
    """Whatever a file holds, the only exception is ManifestError."""
    found_or_refused(lambda: documents(text.encode("utf-8", "replace").decode(), "x"))


@settings(unhurried)
@given(
    st.dictionaries(
        TEXT,
        st.recursive(
            st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
            lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
            max_leaves=20,
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    """`to_yaml` and `documents` are each other's inverse, for every text and number."""
    assert [found for _, found in documents(to_yaml([document, document]), "x")] == [document, document]


def test_shared_parts_are_written_out() -> None:
    """An exported manifest has no anchors: people read it."""
    labels = {"app": "web"}
    assert to_yaml([{"a": labels, "b": labels}]) == "a:\n  app: web\nb:\n  app: web\n"
