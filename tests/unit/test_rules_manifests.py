"""Rules of what manifests say: addresses as Kubernetes reads them, and fields that do not matter (S9, S10)."""

from __future__ import annotations

import pytest
from samples import Edit, at, endpoint, endpoint_slice, ranges, refusal, service, spec

from pydatapath.model import EndpointSlice, Service
from pydatapath.plan import Here, PortPlan, plan_service

HERE = Here("node1", ("192.168.50.11",), "a")


def plan(one: Service, slices: EndpointSlice | None = None) -> list[PortPlan]:
    """What becomes of a service."""
    return plan_service(one, [slices or endpoint_slice()], HERE)


PLAIN = spec(
    type="LoadBalancer", clusterIP="10.96.0.10", externalIPs=["192.0.2.7"], loadBalancerSourceRanges=["10.0.0.0/8"]
)
ODD = {
    "the cluster IP": spec(clusterIP="010.096.0.010"),
    "external addresses": spec(externalIPs=["192.000.002.007"]),
    "source ranges": spec(loadBalancerSourceRanges=[" 010.001.002.003/8\n"]),
}


@pytest.mark.parametrize("what", ODD)
def test_S9_addresses_are_read_as_Kubernetes_does(what: str) -> None:
    """Leading zeros are decimal, networks lose their host's bits and blanks: the plan is that of the plain words."""
    assert plan(service(PLAIN, ODD[what])) == plan(service(PLAIN))


def test_S9_so_are_those_of_endpoints_and_of_a_balancer() -> None:
    """In a slice, and in the status."""
    padded = endpoint_slice(endpoint(addresses=["010.244.001.011"]))
    assert plan(service(), padded) == plan(service())
    made = [
        service(spec(type="LoadBalancer"), at("status", "loadBalancer", "ingress", value=[{"ip": ip}]))
        for ip in ("203.0.113.9", "203.000.113.009")
    ]
    assert plan(made[0]) == plan(made[1])


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (spec(clusterIP="10.96.0"), "10.96.0"),
        (spec(externalIPs=["192.0.2.7", "192.0.2.256"]), "192.0.2.256"),
        (ranges("10.0.0.0/8", "10.0.0.0/33"), "10.0.0.0/33"),
        (spec(externalIPs=[""]), "externalIPs"),
    ],
    ids=["a cluster IP", "an external address", "a source range", "nothing"],
)
def test_S9_what_is_broken_is_refused_by_a_sentence_that_names_it(edit: Edit, word: str) -> None:
    """kube-proxy skips it without a word."""
    assert word in refusal(lambda: service(edit))


NO_MATTER = {
    "selector": spec(selector={"app": "another"}),
    "ipFamilyPolicy": spec(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv4", "IPv6"]),
    "trafficDistribution": spec(trafficDistribution="PreferClose"),
    "publishNotReadyAddresses": spec(publishNotReadyAddresses=True),
    "appProtocol": lambda document: document["spec"]["ports"][0].update(appProtocol="kubernetes.io/h2c"),
    "targetPort": lambda document: document["spec"]["ports"][0].update(targetPort=9),
}


@pytest.mark.parametrize("field", NO_MATTER)
def test_S10_fields_that_the_slices_have_decided_do_not_matter(field: str) -> None:
    """With and without it a service is planned alike, ready endpoints or not."""
    for slices in (endpoint_slice(), endpoint_slice(endpoint(conditions={"ready": False}))):
        assert plan(service(NO_MATTER[field]), slices) == plan(service(), slices)


def test_S10_so_it_is_with_the_slices_own() -> None:
    """appProtocol of a slice's port."""
    edited = endpoint_slice(at("ports", 0, "appProtocol", value="kubernetes.io/ws"))
    assert plan(service(), edited) == plan(service())
