"""Manifests that are refused: one sentence for each, with the object, the field and the fault."""

from __future__ import annotations

from typing import Any

import pytest
from samples import SERVICE, Edit, affinity, at, edited, port, ranges, refusal, spec

from pydatapath.manifests import parse

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
    (at("kind", value="Pod"), "Pod shop/web: neither a Service, an EndpointSlice nor a Node"),
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
