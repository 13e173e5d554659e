"""The answers to a balancer's health checks, as kube-proxy gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from samples import at, service, spec

from pydatapath.health import HealthCheck, health_check, health_checks
from pydatapath.model import EndpointSlice, Service
from pydatapath.schema import parse
from pydatapath.serving import Here

HERE = Here("node1")


def balanced(**fields: Any) -> Service:
    """A service that balancers ask for."""
    asked = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}
    return service(spec(**asked | fields))


def slice_of(
    *endpoints: tuple[str, str], name: str = "web-1", weights: dict[str, int] | None = None, **conditions: object
) -> EndpointSlice:
    """Endpoints, address and node, of both ports of `shop/web`, all in one condition."""
    metadata = {
        "namespace": "shop",
        "name": name,
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"pydatapath.io/weights": json.dumps(weights or {})},
    }
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv6" if any(":" in address for address, _ in endpoints) else "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": [address], "nodeName": node, "conditions": conditions} for address, node in endpoints
        ],
    }
    found = parse(document, "test")
    assert isinstance(found, EndpointSlice)
    return found


def count(*slices: EndpointSlice) -> int:
    found = health_check(balanced(), slices, HERE)
    assert found is not None
    return found.endpoints


FIRST, SECOND, REMOTE = ("10.244.1.11", "node1"), ("10.244.1.12", "node1"), ("10.244.2.11", "node2")


@pytest.mark.parametrize(
    ("endpoints", "healthy", "status"),
    [(1, True, 200), (2, True, 200), (0, True, 503), (1, False, 503), (0, False, 503)],
)
def test_S80_who_has_endpoints_and_is_healthy_is_well(endpoints: int, healthy: bool, status: int) -> None:
    """200, else 503."""
    answer = HealthCheck("shop", "web", 32000, endpoints).answer(healthy=healthy)
    assert answer.status == status
    assert json.loads(answer.body)["serviceProxyHealthy"] is healthy


def test_S80_endpoints_on_this_node_that_are_ready_count() -> None:
    """Those elsewhere do not, nor those of which nobody says where they are."""
    assert count(slice_of(FIRST, SECOND, REMOTE, ready=True)) == 2
    assert count(slice_of(FIRST, REMOTE)) == 1
    assert count(slice_of(REMOTE)) == count() == 0


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"ready": False, "serving": True, "terminating": True}, 0),
        ({"ready": False, "serving": True}, 0),
        ({"ready": True, "terminating": True}, 1),
    ],
    ids=["S80 terminating, though it still serves", "S80 not ready", "S25 ready while terminating"],
)
def test_S80_who_is_not_ready_does_not_count(conditions: dict[str, bool], expected: int) -> None:
    """The balancer shall send new connections elsewhere while the old ones end."""
    assert count(slice_of(FIRST, **conditions)) == expected


def test_S80_C12_who_drains_does_not_count() -> None:
    """It takes no new flows: were it the only one, they would be dropped here."""
    assert count(slice_of(FIRST, SECOND, weights={FIRST[0]: 0, SECOND[0]: 5})) == 1


@pytest.mark.parametrize(
    "edit",
    [
        {"externalTrafficPolicy": "Cluster"},
        {"type": "NodePort"},
        {"healthCheckNodePort": 0},
        {"clusterIP": "None"},
        {"clusterIP": "fd00::10"},
    ],
    ids=["S82 policy Cluster", "S72 no balancer", "S80 no port", "S3 headless", "S7 another family"],
)
def test_S72_S80_S82_nobody_asks_for_other_services(edit: dict[str, Any]) -> None:
    """There is nothing to listen for."""
    assert health_check(balanced(**edit), [slice_of(FIRST)], HERE) is None


def test_S81_addresses_are_counted_each_once() -> None:
    """Not ports, and not slices: one pod behind two ports and in two slices is one."""
    assert count(slice_of(FIRST), slice_of(FIRST, SECOND, name="web-2")) == 2


def test_S81_the_answer_is_kube_proxys_to_the_letter() -> None:
    """Headers and body, tabs included."""
    answer = HealthCheck("shop", "web", 32000, 3).answer()
    assert answer.headers == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": "3",
    }
    assert answer.body == (
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        '\t"localEndpoints": 3,\n\t"serviceProxyHealthy": true\n}'
    )


def test_S82_each_family_counts_its_own_endpoints() -> None:
    """A service of both is asked for over each, and may be well over one of them only."""
    both = balanced(clusterIPs=["10.96.0.10", "fd00::10"])
    slices = [slice_of(FIRST, SECOND), slice_of(("fd00:1::11", "node1"), name="web-6"), slice_of(REMOTE, name="web-2")]
    assert [health_check(both, slices, HERE, family) for family in (4, 6)] == [
        HealthCheck("shop", "web", 32000, 2),
        HealthCheck("shop", "web", 32000, 1),
    ]


def test_S82_all_services_of_a_node() -> None:
    """Those that are asked for, in their order."""
    other = service(at("metadata", "name", value="other"))
    assert list(health_checks([(other, []), (balanced(), [slice_of(FIRST)])], HERE)) == [
        HealthCheck("shop", "web", 32000, 1)
    ]
